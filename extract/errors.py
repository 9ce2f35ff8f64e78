"""The one exception that commands turn into a line on the screen, and that line of any other. Knows nothing else."""


class UserError(Exception):
    """A mistake the person at the command line can mend: the value, what was expected, the way out.

    Commands print it in one line and exit with 2; anything else is our own fault and keeps its traceback.
    """


def reason(error: BaseException) -> str:
    """One line of what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.splitlines()[0]
    return (str(error) or type(error).__name__).splitlines()[0][:300]
