"""The one exception that commands turn into a line on the screen. Knows nothing else."""


class UserError(Exception):
    """A mistake the person at the command line can mend: the value, what was expected, the way out.

    Commands print it in one line and exit with 2; anything else is our own fault and keeps its traceback.
    """
