"""What all commands share: start and end, the bar on the screen, quiet libraries, `--layers` and `--device`.

Knows no command. torch, transformers and rich are imported where used, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from htc_probe.extract import arguments
from htc_probe.extract.errors import UserError

if TYPE_CHECKING:
    import torch

Config = TypeVar("Config")


def typed(name: str) -> str:
    """How one of the commands is typed in this environment: by its name, or, where the shell does not find that, as
    before a virtual environment is activated, by its place.
    """
    here = Path(sys.executable).parent / name
    if shutil.which(name) or not here.is_file():
        return name
    return str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch system sends it before it kills; answered like Ctrl-C."""


_asked: type[KeyboardInterrupt] | None = None
"""How the command was asked to stop. Python drops what a signal raises while a destructor or a callback runs: bars ask
again."""


def main(
    prog: str,
    parse: type[Config] | Callable[[list[str]], Config],
    work: Callable[[Config], int | None],
    argv: Sequence[str] | None,
    *,
    interrupted: str,
) -> int:
    """Runs a command; gives its exit status: that of `work` (None: 0), 2 for what the user can mend, 130 on Ctrl-C and
    143 on SIGTERM, with the words of the exception or those in `interrupted`, 141 where the output is not read on.

    `parse`: the dataclass of its settings, or a function that makes them from the arguments.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        try:
            config = arguments.parse(parse, words, prog) if isinstance(parse, type) else parse(words)
            with _stoppable():
                status = work(config) or 0
        except arguments.Told as told:
            print(told)
            status = 0
        sys.stdout.flush()  # at exit it would be too late to answer a closed pipe
        return status
    except UserError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        if not _is_closed(sys.stdout.fileno()):
            raise  # another pipe, such as that of a process that died
        # Whoever read the output has enough, as `head` does; what is left goes nowhere, without an error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as stop:
        print(f"{prog}: interrupted; {stop.args[0] if stop.args else interrupted}", file=sys.stderr)
        return 143 if isinstance(stop, _Terminated) else 130


def _is_closed(pipe: int) -> bool:
    """Whether nobody reads what is written to it."""
    poll = select.poll()
    poll.register(pipe, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise a KeyboardInterrupt in the body, and are remembered in `_asked`. What of it Python drops
    is not printed.
    """
    global _asked
    _asked = None

    def stop(number: int, _: object) -> None:
        global _asked
        _asked = _Terminated if number == signal.SIGTERM else KeyboardInterrupt
        raise _asked

    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    try:
        before = {number: signal.signal(number, stop) for number in heard}
    except ValueError:  # not in the main thread, where signals arrive
        yield
        return
    dropped = sys.unraisablehook
    sys.unraisablehook = lambda hook: None if isinstance(hook.exc_value, KeyboardInterrupt) else dropped(hook)
    try:
        yield
    finally:
        sys.unraisablehook = dropped
        for number, handler in before.items():
            signal.signal(number, handler)


class Bar:
    """What moves the bar of `progress`."""

    def __init__(self, bar: Any, task: Any, unit: str, done: int) -> None:
        self._bar, self._task, self._unit, self._done = bar, task, unit, done

    def advance(self, count: int = 1) -> None:
        """`count` more are done. Raises KeyboardInterrupt once the command was asked to stop."""
        self._ask()
        self._bar.update(self._task, advance=count)

    def reach(self, done: int, total: int) -> None:
        """`done` of `total` are done. Raises as `advance` does."""
        self._ask()
        self._bar.update(self._task, completed=done, total=total)

    def words(self) -> str:
        """What the bar says, for a line that stays, also where no bar is shown."""
        task = self._bar.tasks[0]
        done, total = int(task.completed), task.total
        count, left = (f"{done:,}", None) if total is None else (f"{done:,} of {int(total):,}", int(total) - done)
        return f"{count} {self._unit}, {_pace(done - self._done, left, task.elapsed or 0.0)}"

    @staticmethod
    def _ask() -> None:
        if _asked is not None:
            raise _asked


@contextlib.contextmanager
def progress(name: str, unit: str, *, total: int | None = None, done: int = 0, shown: bool = True) -> Iterator[Bar]:
    """A bar with how many are done, how fast, and the time left, where stderr is a terminal; elsewhere nothing.

    `unit`: what is counted, in plural. `done`: how many were before this command. Of several processes that do one
    work, one has its bar `shown`.
    """
    from rich import progress as rich
    from rich.console import Console
    from rich.text import Text

    class Pace(rich.ProgressColumn):
        def render(self, task: rich.Task) -> Text:
            left = None if task.total is None else int(task.total - task.completed)
            return Text(_pace(int(task.completed) - done, left, task.elapsed or 0.0))

    counted = rich.MofNCompleteColumn()
    columns = (f"{name:<13}", rich.BarColumn(16), counted, f"{unit},", Pace())
    console = Console(stderr=True)
    silent = not shown or not console.is_terminal or console.is_dumb_terminal
    # What is printed meanwhile goes above the bar, unless it goes elsewhere than to the terminal.
    given: dict[str, Any] = {"console": console, "redirect_stdout": sys.stdout.isatty()}
    with rich.Progress(*columns, **given, transient=True, disable=silent) as bar:
        yield Bar(bar, bar.add_task("", total=total, completed=done), unit, done)


def _pace(done: int, left: int | None, seconds: float) -> str:
    """How fast `done` were done in so many seconds, and how long those that are left take at this pace. It is that of
    the whole time until now: where nothing comes, the time left grows.
    """
    if done <= 0:
        return f"{_clock(seconds)} so far"
    each = seconds / done
    words = f"{1 / each:.1f}/s" if 0 < each <= 1 else f"{each:.1f} s each"
    return f"{words}, about {_clock(left * each)} left" if left else f"{words}, {_clock(seconds)} so far"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def quiet_transformers() -> None:
    """No bars and no advice of transformers between our own lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def usable_device(name: str) -> torch.device:
    """The device `name`; of `auto`, a GPU where there is one: of several, that of this process of torchrun or Slurm.

    Raises UserError where it cannot be used.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", ""))
        if name == "cuda" and local.isdigit() and torch.cuda.device_count() > 1:
            name = f"cuda:{int(local) % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used ({reason}); use cpu, or a GPU such as cuda:0") from error
    return device


def parse_layers(text: str, last: int, stored: Sequence[int], refusal: Callable[[int], str]) -> tuple[int, ...]:
    """The layers that `text` names, "all" or numbers with commas, ascending; -1 is the `last`.

    Raises UserError where one is not in `stored`, with the words that `refusal` has for it.
    """
    if text == "all":
        return tuple(stored)
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--layers {text} is neither 'all' nor numbers with commas, such as 0,{last}") from None
    layers = {number + last + 1 if number < 0 else number: number for number in numbers}
    for layer, number in layers.items():
        if layer not in stored:
            raise UserError(f"--layers {text}: {refusal(number)}")
    return tuple(sorted(layers))
