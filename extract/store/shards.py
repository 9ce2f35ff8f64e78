"""An unfinished run: shards in NAME.h5.shards/, each of a fixed block of images, and how far they are.

Knows the folder, its lock and its manifest. Does not know models, nor HDF5: `extract.store` writes the files.

    manifest.json           settings and sizes: shard s holds the images s * shard_images and following
    00000000-00001024.h5    images 0 to 1,023: a file that has such a name is whole, so the names are the record of what
                            is done. A shard that takes long is made in several files, whose batches are the same.
    0-of-1/                 where a process writes its current file, before it is moved up
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from htc_probe.extract.errors import UserError
from htc_probe.extract.files import replaced, settle
from htc_probe.extract.store import RunInfo, RunShape, StoreDtype, Task, estimate_bytes

_SHARD_BYTES = 128 * 10**6  # before packing: some seconds to some minutes of work
_SHARD_IMAGES = 1024  # at most, where images are small and the model is slow
_VERSION = 2
_MOST_BYTES = 2**24  # of a manifest
SECONDS = 15.0  # after which a file is closed at the next batch; what is in it is lost when the process is killed
_WAIT = 20  # seconds for another process to write the manifest


@dataclass(frozen=True)
class Job:
    """What all shards of a run have in common."""

    info: RunInfo
    shape: RunShape
    tasks: tuple[Task, ...]
    store_dtype: StoreDtype
    shard_images: int

    @property
    def shards(self) -> int:
        return -(-self.shape.images // self.shard_images)

    def images_of(self, shard: int) -> range:
        """Indices of its images in the source."""
        return range(shard * self.shard_images, min((shard + 1) * self.shard_images, self.shape.images))


class Piece(NamedTuple):
    """A finished file."""

    path: Path
    images: range
    """Their indices in the source, those that were skipped among them."""


class Share(NamedTuple):
    """Shard s is made by the process with s % ranks == rank."""

    rank: int
    ranks: int


_ALONE = Share(0, 1)


def shard_images(shape: RunShape, tasks: Sequence[Task], store_dtype: StoreDtype, batch_size: int) -> int:
    """Some 128 MB of images, at most 1,024; whole batches, so that none depends on where a run was interrupted."""
    each = estimate_bytes(shape, tasks, store_dtype) / shape.images
    return max(1, min(_SHARD_IMAGES, int(_SHARD_BYTES / each)) // batch_size) * batch_size


def folder_of(out: Path) -> Path:
    """Where the shards of the run at `out` are."""
    return out.with_name(out.name + ".shards")


class Shards:
    """The folder of one run. `open_shards` gives it locked: alone, or beside other processes when `share` has several.

    `own` is the folder in which this process writes, which no other one may use.
    """

    def __init__(self, out: Path, job: Job, share: Share = _ALONE, *, own: str = ""):
        self.out, self.folder, self.job, self.share = out, folder_of(out), job, share
        self.own = self.folder / (own or f"{share.rank}-of-{share.ranks}")

    def pieces(self) -> list[Piece]:
        """The finished files in the order of their images, of which those of a shard follow each other from its start.

        Two workers may have made a shard, one that was taken for lost among them: then files of the other are left out.
        """
        found = []
        for path in self.folder.glob("*-*.h5"):
            name = re.fullmatch(r"(\d+)-(\d+)\.h5", path.name, re.ASCII)
            if name and path.is_file():
                found.append(Piece(path, range(int(name[1]), int(name[2]))))
        kept: list[Piece] = []
        for piece in sorted(found, key=lambda piece: (piece.images.start, -piece.images.stop)):
            end, block = kept[-1].images.stop if kept else 0, self.job.images_of(piece.images.start // self._each)
            follows = piece.images.start == end or (piece.images.start == block.start and end <= block.start)
            if follows and piece.images.start < piece.images.stop <= block.stop:
                kept.append(piece)
        return kept

    def left(self) -> dict[int, range]:
        """The images that are missing of every shard of this process that is not finished."""
        ends = {piece.images.start // self._each: piece.images.stop for piece in self.pieces()}
        left = {}
        for shard in range(self.share.rank, self.job.shards, self.share.ranks):
            block = self.job.images_of(shard)
            if ends.get(shard, block.start) < block.stop:
                left[shard] = range(ends.get(shard, block.start), block.stop)
        return left

    def done(self) -> int:
        """How many images are in finished files, of all processes."""
        return sum(len(piece.images) for piece in self.pieces())

    @property
    def _each(self) -> int:
        return self.job.shard_images

    def keep(self, written: Path, images: range) -> None:
        """Moves a file that is whole and on the disk from this process's folder to the finished ones."""
        settle(written, self.folder / f"{images.start:08d}-{images.stop:08d}.h5")

    def remove(self) -> None:
        """Removes the folder; what is left of it when that is cut short is removed by the next command."""
        shutil.rmtree(self.folder)

    def words(self) -> str:
        """What a stopped process leaves behind, for the person."""
        done = self.done()
        if not done:
            return f"nothing is finished yet: images are kept every {SECONDS:.0f} s or {self.job.shard_images} images"
        return f"{done} of {self.job.shape.images} images are kept; the same command goes on from there"


@contextlib.contextmanager
def open_shards(out: Path, job: Job | None, share: Share = _ALONE) -> Iterator[Shards]:
    """The shards of the run at `out`, for as long as no other process has them. Without a job: those there are.

    Raises UserError: another process works on them, no right to write there, or no manifest where `job` is None.
    Whether the job there is the same as `job` is for the caller to say; one without a finished shard is replaced.
    """
    folder = folder_of(out)
    if job is None and not (folder / "manifest.json").is_file():
        raise UserError(f"no shards at {folder}; make them with htc-extract --shard i/n, each i from 0 to n-1")
    with contextlib.ExitStack() as stack:
        try:
            run_lock = stack.enter_context(_opened(folder / "lock"))
            there = _enter(out, run_lock, job, alone=share.ranks == 1)
            shards = Shards(out, there, share)
            own_lock = stack.enter_context(_opened(shards.own / "lock"))
            if not _lock(own_lock, fcntl.LOCK_EX):
                raise _busy(out)
            for left in shards.own.glob("*.h5*"):  # of a process that was killed
                left.unlink()
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}; choose another place with --out") from error
        try:
            yield shards
        finally:
            shutil.rmtree(shards.own, ignore_errors=True)
            if folder.is_dir() and not shards.pieces() and _lock(run_lock, fcntl.LOCK_EX):
                shutil.rmtree(folder, ignore_errors=True)


def unfinished(out: Path) -> Shards | None:
    """The shards of the run at `out` as they are now, not locked: to be looked at. None where there are none."""
    manifest = folder_of(out) / "manifest.json"
    return Shards(out, _read(manifest)) if manifest.is_file() else None


def _enter(out: Path, lock: int, job: Job | None, *, alone: bool) -> Job:
    """Locks the folder and gives the job that its manifest has."""
    manifest = folder_of(out) / "manifest.json"
    deadline = time.monotonic() + _WAIT
    while True:
        if _lock(lock, fcntl.LOCK_EX):
            if job is not None and not any(manifest.parent.glob("*.h5")):
                content = {"schema": "htc-shards", "schema_version": _VERSION, **asdict(job)}
                with replaced(manifest) as partial:
                    partial.write_text(json.dumps(content, sort_keys=True), encoding="utf-8")
            if alone or _lock(lock, fcntl.LOCK_SH):
                return _read(manifest)
        elif alone:
            raise _busy(out)
        elif _lock(lock, fcntl.LOCK_SH):
            if manifest.is_file():
                return _read(manifest)
            _lock(lock, fcntl.LOCK_UN)
        if time.monotonic() > deadline:
            raise _busy(out)
        time.sleep(0.05)


def _busy(out: Path) -> UserError:
    return UserError(f"another process is writing {out}; wait until it has ended, or choose another --out")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield handle
    finally:
        os.close(handle)


def _lock(handle: int, how: int) -> bool:
    """Takes the lock, or says that another process has it. The system releases it when the process dies."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if os.fstat(handle).st_nlink == 0:  # removed with its folder by the process that finished the run
        raise UserError("the run was finished by another process just now; run the same command again")
    return True


def _read(path: Path) -> Job:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes are more than a manifest has")
        content = json.loads(path.read_text(encoding="utf-8"))
        if (version := int(content["schema_version"])) != _VERSION:
            raise UserError(
                f"{path.parent} was left by another version of htc-probe (schema version {version}, expected "
                f"{_VERSION}); finish it with that version, or remove {path.parent} and extract again"
            )
        sizes: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content["shape"].items()
        }
        shape = RunShape(**sizes)
        if not isinstance(shape.images, int) or shape.images < 1 or int(content["shard_images"]) < 1:
            raise ValueError(f"{shape.images!r:.40} images in shards of {content['shard_images']!r:.40}")
        return Job(
            info=RunInfo(**content["info"]),
            shape=shape,
            tasks=tuple(Task(**task | {"classes": tuple(task["classes"])}) for task in content["tasks"]),
            store_dtype=content["store_dtype"],
            shard_images=int(content["shard_images"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({str(error)[:300]}); remove {path.parent} and extract again") from error
