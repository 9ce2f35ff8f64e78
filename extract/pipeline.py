"""What keeps the model from waiting: images are read in processes ahead of it, results written in a thread behind it.

Knows sources, processes and threads. Does not know models, tensors or run files.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from htc_probe.extract.data.source import ImageError, Item, Source
from htc_probe.extract.errors import UserError
from htc_probe.extract.images import Frame, thumbnail
from htc_probe.extract.store import THUMBNAIL, Batch

T = TypeVar("T")

_MOST_WORKERS = 4  # each holds a copy of the source's tables
_SKIPPED = "\0"  # opens the id of a stand-in; no id that can be stored holds it
_WORTH_WORKERS = 500  # images; a process takes about a second to start, in which that many small ones are read


class Prepared(NamedTuple):
    """An item of a source as the model and the run take it."""

    id: str
    path: str
    group: str
    labels: dict[str, int | float | np.ndarray]
    pixels: np.ndarray
    """(R, R, 3) uint8, the model's input before it is scaled to [0, 1]."""
    thumbnail: np.ndarray
    """(96, 96, 3) uint8."""


def default_workers(images: int, device: str) -> int:
    """How many processes should read `images` for a model on `device`: none where they would take longer to start than
    they save, and none beside a model on the CPU, which has all cores: they only take them from it.
    """
    from joblib import cpu_count  # knows the limits of containers too

    return 0 if device == "cpu" or images < _WORTH_WORKERS else min(cpu_count() - 1, _MOST_WORKERS)


def read_ahead(
    source: Source, frame: Frame, *, workers: int = 0, ahead: int = 32
) -> Generator[Prepared | ImageError, None, None]:
    """Every image of `source` in order, or why it cannot be used; the same pictures for any number of `workers`.

    With workers, as many processes read some two times `ahead` images in advance; the source must be picklable, and a
    script that calls this needs the usual `if __name__ == "__main__"`. Closing the iterator ends them. Raises UserError
    where one is killed, as it is by the system when memory runs out.
    """
    if workers == 0:
        yield from (_as_error(_prepared(source, index, frame)) for index in range(len(source)))
        return
    step = -(-ahead // workers)
    parts = [range(start, min(start + step, len(source))) for start in range(0, len(source), step)]
    # The thread receives, so that unpacking one part goes on while the model runs on another.
    with ThreadPoolExecutor(1) as thread, _readers(source, frame, parts, workers) as receive:
        waiting: deque[Future[list[_Found]]] = deque()
        for number in range(len(parts) + workers):
            if number < len(parts):
                waiting.append(thread.submit(receive, number))
            if number >= workers:
                yield from map(_as_error, waiting.popleft().result())


class Rest:
    """The images of some shards. With `skip`, one that cannot be read is replaced by a stand-in, which takes its place
    in the batch: what is computed with which image then does not depend on where a run was interrupted.
    """

    def __init__(self, source: Source, indices: Sequence[int], *, skip: bool):
        self.name, self.split, self.tasks = source.name, source.split, source.tasks
        self._source, self._indices, self._skip = source, indices, skip

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Item:
        try:
            return self._source[self._indices[index]]
        except ImageError as error:
            if not self._skip:
                raise
            labels: dict[str, Any] = {task.name: task.unknown(1)[0] for task in self.tasks}
            return Item(_SKIPPED + error.reason, error.path, "", Image.new("RGB", (96, 96), "gray"), labels)


def without_stand_ins(batch: Batch) -> tuple[Batch, list[tuple[str, str]]]:
    """The images that could be read, and path and reason of the others."""
    keep = [at for at, name in enumerate(batch.ids) if not name.startswith(_SKIPPED)]
    if len(keep) == len(batch.ids):
        return batch, []
    skipped = [(path, name[1:]) for name, path in zip(batch.ids, batch.paths, strict=True) if name.startswith(_SKIPPED)]

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: labels[keep] for name, labels in value.items()}
        if isinstance(value, list):
            return [value[at] for at in keep]
        return None if value is None else value[keep]

    return Batch(*map(kept, batch)), skipped


@contextlib.contextmanager
def behind(consume: Callable[[T], object]) -> Iterator[Callable[[T], None]]:
    """A function that hands things to `consume`, which takes them one by one and in order in a thread of its own.

    At most two things wait or are being consumed: then the function blocks. At the end of the block all are
    consumed. What `consume` raises comes out of the next call, or of the end of the block; after it, and after an
    exception in the block itself, nothing more is consumed.
    """
    stopped = threading.Event()
    handed: deque[Future[None]] = deque()

    def work(thing: T) -> None:
        if not stopped.is_set():
            try:
                consume(thing)
            except BaseException:
                stopped.set()
                raise

    with ThreadPoolExecutor(1) as thread:

        def put(thing: T) -> None:
            while handed and (len(handed) >= 2 or handed[0].done()):
                handed.popleft().result()
            handed.append(thread.submit(work, thing))

        try:
            yield put
            while handed:
                handed.popleft().result()
        finally:
            stopped.set()


# ---- processes that read

_Found = Prepared | tuple[str, str]  # a picture, or path and reason: an ImageError does not survive pickling


def _prepared(source: Source, index: int, frame: Frame) -> _Found:
    try:
        item = source[index]
    except ImageError as error:
        return error.path, error.reason
    resize = None if frame.resize is None else round(frame.resize * THUMBNAIL / frame.size)  # the same square, smaller
    frames = frame, frame._replace(size=THUMBNAIL, resize=resize)
    pixels, small = (thumbnail(item.image, **size._asdict()) for size in frames)
    return Prepared(item.id, item.path, item.group, item.labels, pixels, small)


def _as_error(found: _Found) -> Prepared | ImageError:
    return found if isinstance(found, Prepared) else ImageError(*found)


@contextlib.contextmanager
def _readers(
    source: Source, frame: Frame, parts: Sequence[range], workers: int
) -> Iterator[Callable[[int], list[_Found]]]:
    """Processes that read `parts` of a source in turn, and the function that waits for a part by its number.

    Every process has a pipe of its own. It is ahead by what it holds: it blocks until that is received. When it dies,
    even in the middle of a message, its pipe ends, where a shared queue would wait for ever; and when this process
    dies, so does it.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that torch's and HDF5's threads may hold
    processes: list[BaseProcess] = []
    ends: list[Connection] = []

    def receive(number: int) -> list[_Found]:
        reader = number % workers
        try:
            return ends[reader].recv()
        except (EOFError, OSError):
            raise _complaint(processes[reader], workers) from None

    try:
        for number in range(workers):
            end, far_end = context.Pipe(duplex=False)
            with far_end:
                arguments = far_end, os.getcwd(), source, frame, parts[number::workers]
                processes.append(context.Process(target=_read, args=arguments, daemon=True))
                ends.append(end)
                processes[-1].start()
        yield receive
    finally:
        for process in processes:
            if process.pid is not None:  # it was started
                process.terminate()
                process.join()


def _read(end: Connection, folder: str, source: Source, frame: Frame, parts: Sequence[range]) -> None:
    """What a process does: sends the pictures of one part after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process answers it, and ends the rest
    os.chdir(folder)  # a spawned process starts where Python did, and paths may be relative
    with contextlib.suppress(BrokenPipeError):
        for part in parts:
            end.send([_prepared(source, index, frame) for index in part])


def _complaint(process: BaseProcess, workers: int) -> Exception:
    process.join()
    code = process.exitcode
    if code is not None and code < 0:
        fewer = f"--workers {workers - 1}" + (" or 0" if workers > 1 else "")
        return UserError(
            f"a process that reads images was killed by {signal.Signals(-code).name}, as the system does when memory "
            f"runs out; use fewer: {fewer}"
        )
    return RuntimeError(f"a process that reads images failed with exit code {code}; its own traceback is above")
