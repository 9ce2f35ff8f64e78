"""A run made of its shards: copied, or linked where it is virtual, and compared. Knows h5py, runs and their schema."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from htc_probe.extract.errors import UserError
from htc_probe.extract.store import hdf5
from htc_probe.extract.store.read import Part, Run, open_run, part_of
from htc_probe.extract.store.schema import Column, RunInfo, RunShape, StoreDtype, Task
from htc_probe.extract.store.write import GrowingRun


def assemble(
    path: Path,
    info: RunInfo,
    shape: RunShape,
    tasks: Sequence[Task],
    shards: Sequence[Path],
    *,
    store_dtype: StoreDtype = "float16",
    virtual: bool = False,
    on_file: Callable[[], object] = lambda: None,
) -> Path:
    """Makes a run of its shards, in their order, reads it back and only then marks it complete.

    Every dataset holds what a RunWriter would have written that was given all the images. A `virtual` run keeps the
    large ones in the shards, which must lie in a folder beside it whose name ends in .shards. Raises UserError as
    RunWriter does, and for a shard that is damaged or no shard of this run. `on_file` is called after each shard was
    copied or linked, and after each was compared.
    """
    skipped: list[tuple[str, str]] = []
    with _Assembly(path, info, shape, tasks, store_dtype=store_dtype, virtual=virtual) as writer:
        for shard in shards:
            with open_run(shard) as run:
                writer.extend(run)
                skipped += run.skipped
            on_file()
        return writer.finish(skipped, check=lambda written: writer.compare(written, shards, on_file))


class _Assembly(GrowingRun):
    """A run that grows by shards."""

    def __init__(self, *args: Any, virtual: bool, **options: Any) -> None:
        self._virtual, self._parts = virtual, list[Part]()
        super().__init__(*args, **options)

    def _holds(self, column: Column) -> bool:
        return not (self._virtual and column.dataset.linked)

    def extend(self, shard: Run) -> None:
        """Adds the images of a finished shard: copied, or linked where the run is virtual.

        Raises UserError: a shard of other sizes, tasks or types, or one that cannot be read.
        """
        start, stop = self._room_for(len(shard))
        mine = replace(self._shape, images=len(shard)), self._tasks, self._columns["latents/z_voco"].dtype
        if (shard.shape, shard.tasks, shard.store_dtype) != mine:
            raise UserError(
                f"{shard.path} is no shard of {self.path}: its sizes, tasks or types differ; remove it and run the "
                "same command again"
            )
        for name, dataset in self._datasets.items():
            with self._guard():
                self._require_room(len(shard) * self._columns[name].image_bytes)
                dataset.resize(stop, axis=0)
                _copy(shard, name, dataset, start)
        self._parts.append(part_of(shard))
        self._count = stop

    def _before_finish(self, file: h5py.File) -> None:
        """The large datasets of a virtual run, as HDF5's own virtual datasets, so that other tools read it too."""
        if self._virtual:
            file.attrs["shards"] = json.dumps(self._parts)
        for name, column in self._columns.items():
            if self._holds(column):
                continue
            layout, start = h5py.VirtualLayout((self._count, *column.tail), column.dtype), 0
            for part in self._parts:
                if part.images:
                    size = (part.images, *column.tail)
                    source = h5py.VirtualSource(part.pattern, name, size, column.dtype)
                    layout[start : start + part.images] = source
                start += part.images
            file.create_virtual_dataset(name, layout)

    def compare(self, written: h5py.File, shards: Sequence[Path], on_file: Callable[[], object]) -> None:
        """Raises UserError where the file does not hold what its shards do, or an image twice."""
        start, seen = 0, set[bytes]()
        for path in shards:
            with open_run(path) as shard:
                for name in self._datasets:
                    if not _same(shard, name, written[name], start):
                        raise UserError(
                            f"{self.partial} does not hold at {name} what {path} does: the disk or the memory errs; "
                            "the shards are kept: run the same command again"
                        )
                digests = {hashlib.blake2b(name.encode(), digest_size=12).digest() for name in shard.ids()}
                if len(digests) != len(shard) or digests & seen:
                    raise UserError(
                        f"{path} holds an image a second time: the data changed while the run was made, or names "
                        f"an image twice; remove {path.parent} and extract again"
                    )
                seen |= digests
                start += len(shard)
            on_file()
        if any(len(written[name]) != start for name in self._columns):
            raise UserError(f"{self.partial} does not hold {start} images as its shards do; run the same command again")


def _copy(shard: Run, name: str, target: h5py.Dataset, start: int) -> None:
    """The rows of a shard's dataset into `target` from row `start` on. Chunks that fit are copied as they are."""
    if len(shard) == 0 or 0 in target.shape:
        return
    if not hdf5.is_text(target.dtype) and start % target.chunks[0] == 0:
        for at in target.iter_chunks(tuple(slice(start, None) if i == 0 else slice(None) for i in range(target.ndim))):
            offset = tuple(piece.start for piece in at)
            mask, packed = shard.packed_chunk(name, (offset[0] - start, *offset[1:]))
            target.id.write_direct_chunk(offset, packed, mask)
    else:
        target[start:] = shard.rows(name, 0, len(shard))


def _same(shard: Run, name: str, written: h5py.Dataset, start: int) -> bool:
    """Whether `written` holds a shard's rows from row `start` on, byte for byte."""
    stop = start + len(shard)
    if len(written) < stop:
        return False
    theirs = shard.rows(name, 0, len(shard))
    ours = hdf5.values(written, slice(start, stop))
    if hdf5.is_text(written.dtype):
        return bool(np.array_equal(ours, theirs))
    return ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()
