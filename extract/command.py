"""What all commands share: start and end, the bar on the screen, quiet libraries, `--layers` and `--device`.

Knows no command. torch, transformers and rich are imported where used, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from htc_probe.extract import arguments
from htc_probe.extract.errors import UserError

if TYPE_CHECKING:
    import torch

Config = TypeVar("Config")


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch system sends it before it kills; answered like Ctrl-C."""


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
def terminable() -> Iterator[threading.Event]:
    """SIGTERM raises a KeyboardInterrupt in the body. Gives what is set from then on: Python drops what a signal raises
    while a destructor or a callback runs, and prints a traceback; there is none of this one, and `Bar.advance` asks
    again.
    """
    asked = threading.Event()

    def stop(*_: object) -> None:
        asked.set()
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread, where signals arrive
        yield asked
        return
    dropped = sys.unraisablehook
    sys.unraisablehook = lambda hook: None if isinstance(hook.exc_value, _Terminated) else dropped(hook)
    try:
        yield asked
    finally:
        sys.unraisablehook = dropped
        signal.signal(signal.SIGTERM, before)


class Bar:
    """What moves the bar of `progress`."""

    def __init__(self, bar: Any, task: Any, asked: threading.Event | None) -> None:
        self._bar, self._task, self._asked = bar, task, asked
        self._started, self._advanced = time.monotonic(), 0

    def advance(self, count: int = 1) -> None:
        """`count` more are done. Raises KeyboardInterrupt once SIGTERM came."""
        if self._asked is not None and self._asked.is_set():
            raise _Terminated
        self._advanced += count
        rate = self._advanced / (time.monotonic() - self._started)
        self._bar.update(self._task, advance=count, rate=rate)

    def reach(self, done: int, total: int) -> None:
        """`done` of `total` are done."""
        self._bar.update(self._task, completed=done, total=total)


@contextlib.contextmanager
def progress(
    name: str = "", unit: str = "", *, total: int | None = None, done: int = 0, asked: threading.Event | None = None
) -> Iterator[Bar]:
    """A bar with the time left, where stderr is a terminal; without a `total` it runs to and fro until it is told.

    `unit`: what is counted, where that is shown; {task.fields[rate]} in it are those in a second. `asked`: from
    `terminable`.
    """
    from rich import progress as rich
    from rich.console import Console

    counted = (rich.MofNCompleteColumn(), unit) if unit else (rich.TimeElapsedColumn(), "so far")
    columns = (*filter(None, [name]), rich.BarColumn(), counted[0], f"{counted[1]},", rich.TimeRemainingColumn())
    console = Console(stderr=True)
    with rich.Progress(*columns, "left", console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Bar(bar, bar.add_task("", total=total, completed=done, rate=0.0), asked)


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
