"""A run file as it is written, batch by batch. Knows h5py and the schema; not who reads it, nor of shards."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, get_args

import h5py
import hdf5plugin
import numpy as np

from htc_probe.extract import files
from htc_probe.extract.errors import UserError, reason
from htc_probe.extract.store import hdf5
from htc_probe.extract.store.schema import (
    CHUNK_BYTES,
    SCHEMA,
    SCHEMA_VERSION,
    UNKNOWN,
    Batch,
    Column,
    RunInfo,
    RunShape,
    StoreDtype,
    Task,
    check_tasks,
    columns,
)

_CACHE = 1024 * 1024  # bytes that HDF5 may keep of a dataset before it writes them
# gzip makes files as small at a tenth of the speed, which is less than what a model on a GPU hands over
# (benchmarks/README.md). A checksum a chunk, whose cost does not show, makes a flipped bit an error on reading.
_PACKED = {**hdf5plugin.Blosc(cname="lz4", shuffle=hdf5plugin.Blosc.BITSHUFFLE), "fletcher32": True}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class GrowingRun:
    """A run file that grows as PATH.partial and takes its name in `finish()`, where it replaces a run of the same name.

    When its block is left without `finish()`, by an exception or not, the partial file is removed. Raises UserError for
    what the person can mend: no room on the disk, no right to write there, task names that cannot be stored.
    """

    def __init__(
        self, path: Path, info: RunInfo, shape: RunShape, tasks: Sequence[Task], *, store_dtype: StoreDtype = "float16"
    ) -> None:
        if store_dtype not in get_args(StoreDtype):
            raise UserError(f"--store-dtype {store_dtype} is unknown; choose float16 or float32")
        check_tasks(tasks)
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._shape, self._tasks = shape, tuple(tasks)
        self._columns = columns(shape, tasks, store_dtype)
        self._count = 0
        self._file: h5py.File | None = None
        # Kept open, because HDF5 empties the cache of a dataset that is closed: half-full chunks would be
        # packed and written anew with every batch.
        self._datasets: dict[str, h5py.Dataset] = {}
        # A chunk of z_voco holds one layer of many images: its cache must hold the open chunks of all layers.
        self._stack_cache = 2 * len(shape.stack) * max(CHUNK_BYTES, 4 * shape.width)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._require_room(0)
            self._file = h5py.File(self.partial, "w", rdcc_nbytes=_CACHE)
        except OSError as error:
            raise self._complaint(error) from error
        with self._guard():
            self._create(info)

    def _create(self, info: RunInfo) -> None:
        assert self._file is not None
        attrs = self._file.attrs
        attrs["schema"], attrs["schema_version"], attrs["complete"] = SCHEMA, SCHEMA_VERSION, False
        attrs["dataset"], attrs["split"], attrs["topology"] = info.dataset, info.split, info.topology
        for name in ("config", "model", "environment"):
            attrs[name] = json.dumps(getattr(info, name), sort_keys=True)
        attrs["code_shape"] = json.dumps(self._shape.codes)
        tokens = self._file.create_group("tokens")
        tokens.create_dataset("role", data=np.array(self._shape.roles, dtype=object), dtype=hdf5.TEXT)
        for name in ("row", "col"):
            places = np.array(getattr(self._shape, f"{name}s"), dtype="int16")
            tokens.create_dataset(name, data=places, fletcher32=places.size > 0)
        self._file.create_group("labels", track_order=True)  # tasks keep the order in which they were given
        for name, column in self._columns.items():
            if not self._holds(column):
                continue
            packed = {} if column.dtype == "text" or 0 in column.tail else _PACKED
            cache = {"rdcc_nbytes": self._stack_cache, "rdcc_nslots": 10007}
            self._datasets[name] = self._file.create_dataset(
                name,
                shape=(0, *column.tail),
                maxshape=(None, *column.tail),
                dtype=hdf5.TEXT if column.dtype == "text" else column.dtype,
                chunks=tuple(max(1, size) for size in column.chunk),
                **packed,
                **(cache if name == "latents/z_voco" else {}),
            )
        for task in self._tasks:
            label = self._file[f"labels/{task.name}"].attrs
            label["suite"], label["kind"], label["unit"], label["note"] = task.suite, task.kind, task.unit, task.note
            label["classes"] = json.dumps(task.classes)
            if task.kind == "circular":
                label["period"] = float(task.period)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    def _room_for(self, images: int) -> tuple[int, int]:
        """The rows of these images, which come after those already written."""
        if self._file is None:
            raise ValueError(f"{self.path} is finished; nothing can be added")
        start, stop = self._count, self._count + images
        if stop > self._shape.images:
            raise ValueError(f"{stop} images appended, but the run was announced with {self._shape.images}")
        return start, stop

    def finish(
        self,
        skipped: Sequence[tuple[str, str]] = (),
        *,
        part: bool = False,
        check: Callable[[h5py.File], None] | None = None,
    ) -> Path:
        """Marks the run complete and gives it its name. `skipped`: path and reason of the images left out.

        A `part` is a shard, which may hold no image. A `check` sees the file as it is on the disk before it is marked.
        """
        if self._file is None:
            raise ValueError(f"{self.path} is already finished")
        if self._count == 0 and not part:
            why = f"; the first of {len(skipped)} skipped: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
            raise UserError(f"{self.path} would hold no image{why}")
        with self._guard():
            rows = np.array([list(pair) for pair in skipped], dtype=object).reshape(len(skipped), 2)
            self._file.create_dataset("skipped", data=rows, dtype=hdf5.TEXT)
            self._before_finish(self._file)
            self._file["latents/z_voco"].attrs["layers"] = np.array(self._shape.stack, dtype="int32")
            self._file.attrs["created"] = datetime.now(UTC).isoformat()
            if check is not None:
                self._file.close()
                files.sync(self.partial)
                with h5py.File(self.partial, "r") as written:
                    check(written)
                self._file = h5py.File(self.partial, "r+")
            self._file.attrs["complete"] = True
            self._file.close()
            files.settle(self.partial, self.path)
            self._file = None
        return self.path

    def _holds(self, column: Column) -> bool:
        """Whether the file itself does."""
        return True

    def _before_finish(self, file: h5py.File) -> None:
        """What else belongs into the file."""

    def _require_room(self, nbytes: int) -> None:
        """Asks the disk for room before HDF5 does, because HDF5 cannot back out: it keeps what it could not
        write, complains about every open dataset and may crash the interpreter when that exits.
        """
        need = nbytes + self._stack_cache + _CACHE * len(self._columns)  # with what waits in the caches
        with tempfile.TemporaryFile(dir=self.path.parent) as ballast:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(ballast.fileno(), 0, need)

    def _complaint(self, error: BaseException) -> UserError:
        # HDF5 hides the system's number in its message on some paths.
        known = isinstance(error, OSError) and error.errno in _NO_ROOM
        if known or any(f"errno = {number}," in str(error) for number in _NO_ROOM):
            return UserError(
                f"no room left for {self.path} after {self._count} of {self._shape.images} images: "
                "free some space, choose another disk with --out, or store less with --limit or --layers"
            )
        return UserError(
            f"cannot write {self.partial}: {reason(error)}; choose another place with --out, "
            "or wait until no other extraction writes there"
        )

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Turns what HDF5 and the system say about the disk into a UserError, with the partial file removed."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            self._discard()
            raise self._complaint(error) from error
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        with contextlib.suppress(OSError):
            os.truncate(self.partial, 0)  # makes room for the flush in close(), in case the disk is full
        with contextlib.suppress(OSError, RuntimeError):
            file.close()
        self.partial.unlink(missing_ok=True)


class RunWriter(GrowingRun):
    """Writes a run: `with RunWriter(path, info, shape, tasks) as writer: ... writer.append(batch); writer.finish()`."""

    def append(self, batch: Batch) -> None:
        """Adds B images after those already written.

        Raises UserError: a tensor with a value that is no finite number (names the image), or beyond float16.
        """
        start, stop = self._room_for(len(batch.ids))
        values = self._values(batch)
        with self._guard():
            self._require_room(sum(value.nbytes for value in values.values()))
            for name, value in values.items():
                dataset = self._datasets[name]
                dataset.resize(stop, axis=0)
                if 0 not in value.shape:
                    dataset[start:stop] = value
        self._count = stop

    def _values(self, batch: Batch) -> dict[str, np.ndarray]:
        """Every dataset's rows for `batch`, checked and in the type in which they are stored."""
        if set(batch.labels) != {task.name for task in self._tasks}:
            raise ValueError(f"labels of {sorted(batch.labels)}, expected {sorted(task.name for task in self._tasks)}")
        is_anchor_S = np.array([role == "anchor" for role in self._shape.roles], dtype=bool)
        given: dict[str, Any] = {f"labels/{name}": value for name, value in batch.labels.items()}
        attention = np.asarray(batch.attention, dtype=np.float32)
        given["attention/anchor_mass"] = attention[..., is_anchor_S].sum(-1, dtype=np.float32)
        values: dict[str, np.ndarray] = {}
        for name, column in self._columns.items():
            value = getattr(batch, column.dataset.field) if column.dataset.field else given[name]
            value = np.asarray(value, dtype=object if column.dtype == "text" else None)
            if value.shape != (len(batch.ids), *column.tail):
                raise ValueError(f"{name} has shape {value.shape}, expected {(len(batch.ids), *column.tail)}")
            if column.dtype.startswith("float") and not name.startswith("labels/"):
                value = _as_stored(name, value, column.dtype, batch.ids)
            elif name == "codes" and value.size and not 0 <= value.min() <= value.max() <= np.iinfo("uint16").max:
                raise ValueError(f"codes run from {value.min()} to {value.max()}, expected 0 to 65535")
            values[name] = value
        for task in self._tasks:
            _check_labels(task, values[f"labels/{task.name}"])
        return values


def _as_stored(name: str, value: np.ndarray, dtype: Any, ids: Sequence[str]) -> np.ndarray:
    good = np.isfinite(value)
    if not good.all():
        at = int(np.argwhere(~good)[0, 0])
        what = "NaN" if np.isnan(value[at]).any() else "an infinite value"
        raise UserError(
            f"{name} of image {ids[at]!r} holds {what}: the model's arithmetic broke down; "
            "extract again with --dtype float32, and check the checkpoint if that does not help"
        )
    with np.errstate(over="ignore"):
        stored = value.astype(dtype)
    if not np.isfinite(stored).all():
        peak = float(np.abs(value).max())
        raise UserError(
            f"{name} reaches {peak:.4g}, which {np.dtype(dtype).name} cannot hold "
            f"(at most {np.finfo(dtype).max:.4g}); extract again with --store-dtype float32"
        )
    return stored


def _check_labels(task: Task, value: np.ndarray) -> None:
    good = task.allowed(value)
    if not good.all():
        words = {"classes": f"-1 to {len(task.classes) - 1}", "multilabel": f"0, 1 or {UNKNOWN}"}
        expected = words.get(task.kind, "a finite number or NaN")
        raise ValueError(f"labels/{task.name} holds {value[~good].flat[0]}, expected {expected}")
