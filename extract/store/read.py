"""The run file: what one extraction recorded, as HDF5 (schema version 1). The only reader and writer of this
format.

Knows h5py and numpy. Does not know models, data sources, probes or figures, and imports no torch, so that
everything after the extraction opens runs without it. Nothing in a file is ever executed: text, numbers and
JSON only, and every dataset must lie in the file itself, or, in a virtual run, in the shards beside it.

A shard is a run file of some of the images (`extract.shards` knows which); a run is made of shards by `assemble`.

Legend: N images, B images of a batch, L decoder layers, H heads, S keys of `<voco>`, D width, A anchors, C
classes. Layers follow Hugging Face: 0 is the embedding, L the last layer after the final norm.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, get_args

import h5py
import hdf5plugin
import numpy as np

from htc_probe.extract import files
from htc_probe.extract.errors import UserError, reason
from htc_probe.extract.store import hdf5

Kind = Literal["classes", "multilabel", "number", "circular"]
NUMERIC: tuple[Kind, ...] = ("number", "circular")
"""Kinds whose labels are floats, NaN where unknown."""
Suite = Literal["semantic", "detail"]
StoreDtype = Literal["float16", "float32"]

SCHEMA = "htc-run"
SCHEMA_VERSION = 1
THUMBNAIL = 96  # pixels a side

CHUNK_BYTES = 256 * 1024  # of one chunk: small enough to pick out a layer, large enough to stream
_CACHE = 1024 * 1024  # bytes that HDF5 may keep of a dataset before it writes them
# gzip makes files as small at a tenth of the speed, which is less than what a model on a GPU hands over
# (benchmarks/README.md). A checksum a chunk, whose cost does not show, makes a flipped bit an error on reading.
_PACKED = {**hdf5plugin.Blosc(cname="lz4", shuffle=hdf5plugin.Blosc.BITSHUFFLE), "fletcher32": True}
_LINKED = ("images/thumbnail", "latents/", "attention/", "codes")
"""What stays in the shards of a virtual run: nearly all of its bytes. Ids and labels are copied."""
_DIMS = {
    "images/id": ("image",),
    "images/path": ("image",),
    "images/group": ("image",),
    "images/thumbnail": ("image", "y", "x", "channel"),
    "latents/z_voco": ("image", "layer", "width"),
    "latents/v_d": ("image", "anchor", "width"),
    "latents/v_pooled": ("image", "width"),
    "attention/voco": ("image", "block", "head", "key"),
    "attention/anchor_mass": ("image", "block", "head"),
    "codes": ("image", "row", "column", "group"),
    "tokens/role": ("key",),
    "tokens/row": ("key",),
    "tokens/col": ("key",),
    "skipped": ("skipped", "path_and_reason"),
}
"""Axes by dataset. `layer` are the stored ones of 0..L, `block` the L decoder layers."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# What a file may claim before anything of that size is read or allocated; far from what any run needs.
_MOST_PACKED = 1000  # times as many bytes as the whole file has; all zeros are packed 200 times
_MOST_TASKS = 10_000


@dataclass(frozen=True)
class Task:
    """One labelled question about an image.

    How its labels are written: `classes`: the index of the class, -1 where unknown; `number` and `circular`: a float
    in `unit`, NaN where unknown; `multilabel`: a row of 0 and 1 over `classes`, 255 where unknown. Values of a
    circular task that are a multiple of `period` apart mean the same, such as the angles 1 and 361; our own readers
    write those from 0 to below the period.
    """

    name: str
    suite: Suite
    kind: Kind
    classes: tuple[str, ...] = ()
    unit: str = ""
    note: str = ""
    """What the label is and which rule made it: dropped classes, what counts as unknown."""
    period: float = 0.0
    """Of a circular task, in `unit`: 360 of degrees, 180 of the degrees of a line without ends; 0 of other kinds."""


@dataclass(frozen=True)
class RunInfo:
    """Where a run comes from; everything here can be written as JSON."""

    config: dict[str, Any]
    """Settings of the command that wrote the run."""
    model: dict[str, Any]
    """`name`, `sha256` of its weights, `config`."""
    dataset: str
    split: str
    topology: str
    """Which hybrid tokens see one another: star, causal or full."""
    environment: dict[str, Any]
    """Versions of the libraries."""


@dataclass(frozen=True)
class RunShape:
    """The sizes that fix every dataset of a run."""

    images: int
    layers: int
    """L, decoder layers; hidden states are numbered 0 to L."""
    stack: tuple[int, ...]
    """The layers, ascending and within 0..L, whose z_voco is stored."""
    heads: int
    width: int
    anchors: int
    codes: tuple[int, int, int] | None
    """Rows, columns and groups of the code grid; None where the model has no MGVQ."""
    roles: tuple[str, ...]
    """(S,) what every key is: prefix, anchor, patch, text (between the image and <voco>) or voco."""
    rows: tuple[int, ...]
    """(S,) its row on the patch grid, -1 where it has none."""
    cols: tuple[int, ...]
    """(S,) its column on the patch grid, -1 where it has none."""

    def __post_init__(self) -> None:
        if not len(self.roles) == len(self.rows) == len(self.cols):
            raise ValueError(
                f"{len(self.roles)} roles, {len(self.rows)} rows, {len(self.cols)} cols: one of each a key"
            )
        if list(self.stack) != sorted(set(self.stack)) or not all(0 <= at <= self.layers for at in self.stack):
            raise ValueError(f"stack {self.stack} must ascend within 0 to {self.layers}")
        if self.roles.count("anchor") != self.anchors:
            raise ValueError(f"{self.roles.count('anchor')} keys are anchors, expected {self.anchors}")

    @property
    def keys(self) -> int:
        """S."""
        return len(self.roles)


class Batch(NamedTuple):
    """What the model gave for B images."""

    ids: list[str]
    paths: list[str]
    groups: list[str]
    """Images of one group must not be split between train and test."""
    thumbnails: np.ndarray
    """(B, 96, 96, 3) uint8."""
    z_voco: np.ndarray
    """(B, len(stack), D) float32."""
    v_d: np.ndarray
    """(B, A, D) float32."""
    v_pooled: np.ndarray
    """(B, D) float32."""
    codes: np.ndarray | None
    """(B, h, w, groups) integers below 65,536; None where the model has no MGVQ."""
    attention: np.ndarray
    """(B, L, H, S) float32, rows of `<voco>`, each summing to 1."""
    labels: dict[str, np.ndarray]
    """One array of B labels a task, by its name."""


class Stored(NamedTuple):
    """A dataset of a run, as it lies in the file."""

    name: str
    dims: tuple[str, ...]
    """Names of its axes, for those who load it with xarray."""
    shape: tuple[int, ...]
    dtype: str
    """NumPy's name, or text."""
    nbytes: int
    """On the disk, packed; 0 where it lies in the shards of a virtual run. Of text the references alone."""
    checked: bool
    """Whether its chunks have checksums; those of a virtual run have them in the shards."""


class _Part(NamedTuple):
    """A shard that a virtual run reads."""

    name: str
    """FOLDER.shards/FILE.h5, beside the run."""
    images: int
    size: int
    """In bytes."""


class _Column(NamedTuple):
    """One dataset with a row an image."""

    tail: tuple[int, ...]
    dtype: Any
    chunk: tuple[int, ...]
    item_bytes: int


def _columns(shape: RunShape, tasks: Sequence[Task], store_dtype: str) -> dict[str, _Column]:
    """Every dataset with a row an image, by its path in the file."""
    string = _Column((), hdf5.TEXT, (256,), 64)

    def column(tail: tuple[int, ...], dtype: Any, piece: tuple[int, ...] | None = None) -> _Column:
        """`piece`: the part of `tail` in one chunk; as many images as fill CHUNK_BYTES."""
        item_bytes = np.dtype(dtype).itemsize
        piece = tail if piece is None else piece
        rows = max(1, min(4096, CHUNK_BYTES // max(1, item_bytes * int(np.prod(piece, dtype=np.int64)))))
        return _Column(tail, dtype, (rows, *piece), item_bytes)

    attention = (shape.layers, shape.heads, shape.keys)
    columns = {
        "images/id": string,
        "images/path": string,
        "images/group": string,
        "images/thumbnail": column((THUMBNAIL, THUMBNAIL, 3), "uint8")._replace(chunk=(1, THUMBNAIL, THUMBNAIL, 3)),
        "latents/z_voco": column((len(shape.stack), shape.width), store_dtype, piece=(1, shape.width)),
        "latents/v_pooled": column((shape.width,), store_dtype),
        "attention/voco": column(attention, store_dtype)._replace(chunk=(1, *attention)),
        "attention/anchor_mass": column(attention[:2], "float32"),
    }
    if shape.anchors:
        columns["latents/v_d"] = column((shape.anchors, shape.width), store_dtype)
    if shape.codes is not None:
        columns["codes"] = column(shape.codes, "uint16")
    for task in tasks:
        if task.kind == "multilabel":
            columns[f"labels/{task.name}"] = column((len(task.classes),), "uint8")
        else:
            columns[f"labels/{task.name}"] = column((), "int32" if task.kind == "classes" else "float64")
    return columns


def estimate_bytes(shape: RunShape, tasks: Sequence[Task], store_dtype: StoreDtype = "float16") -> int:
    """Size of the finished run in bytes before compression, which saves some 10 to 20 %: an upper bound in
    practice.
    """
    columns = _columns(shape, tasks, store_dtype).values()
    per_image = sum(item.item_bytes * int(np.prod(item.tail, dtype=np.int64)) for item in columns)
    return shape.images * per_image + 64 * 1024


class RunWriter:
    """Writes one run: `with RunWriter(path, info, shape, tasks) as writer: ... writer.append(batch);
    writer.finish()`.

    The file grows as PATH.partial and takes its name in `finish()`, where it replaces a run of the same name.
    When the block is left without `finish()`, by an exception or not, the partial file is removed.

    A `virtual` run is made by `extend` alone: the large datasets stay in the shards.

    Raises UserError for what the person can mend: no room on the disk, no right to write there, a value that
    float16 cannot hold, a value that is no number, task names that cannot be stored.
    """

    def __init__(
        self,
        path: Path,
        info: RunInfo,
        shape: RunShape,
        tasks: Sequence[Task],
        *,
        store_dtype: StoreDtype = "float16",
        virtual: bool = False,
    ) -> None:
        if store_dtype not in get_args(StoreDtype):
            raise UserError(f"--store-dtype {store_dtype} is unknown; choose float16 or float32")
        _check_tasks(tasks)
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._shape, self._tasks = shape, tuple(tasks)
        self._columns = _columns(shape, tasks, store_dtype)
        self._linked = {name for name in self._columns if virtual and name.startswith(_LINKED)}
        self._parts: list[_Part] = []
        self._is_anchor_S = np.array([role == "anchor" for role in shape.roles], dtype=bool)
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
            if name in self._linked:
                continue
            cache = {"rdcc_nbytes": self._stack_cache, "rdcc_nslots": 10007}
            self._datasets[name] = self._file.create_dataset(
                name,
                shape=(0, *column.tail),
                maxshape=(None, *column.tail),
                dtype=column.dtype,
                chunks=tuple(max(1, size) for size in column.chunk),
                **({} if column.dtype == hdf5.TEXT or 0 in column.tail else _PACKED),
                **(cache if name == "latents/z_voco" else {}),
            )
        for task in self._tasks:
            label = self._file[f"labels/{task.name}"].attrs
            label["suite"], label["kind"], label["unit"] = task.suite, task.kind, task.unit
            label["note"] = task.note
            label["classes"] = json.dumps(task.classes)
            if task.kind == "circular":
                label["period"] = float(task.period)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def append(self, batch: Batch) -> None:
        """Adds B images after those already written.

        Raises UserError: a tensor with a value that is no finite number (names the image), or beyond float16.
        """
        if self._file is None:
            raise ValueError(f"{self.path} is finished; nothing can be added")
        start, stop = self._count, self._count + len(batch.ids)
        if stop > self._shape.images:
            raise ValueError(f"{stop} images appended, but the run was announced with {self._shape.images}")
        values = self._values(batch)
        with self._guard():
            self._require_room(sum(value.nbytes for value in values.values()))
            for name, value in values.items():
                dataset = self._datasets[name]
                dataset.resize(stop, axis=0)
                if 0 not in value.shape:
                    dataset[start:stop] = value
        self._count = stop

    def extend(self, shard: Run) -> None:
        """Adds the images of a finished shard: copied, or linked where the run is virtual.

        Raises UserError: a shard of other sizes, tasks or types, or one that cannot be read.
        """
        if self._file is None:
            raise ValueError(f"{self.path} is finished; nothing can be added")
        start, stop = self._count, self._count + len(shard)
        if stop > self._shape.images:
            raise ValueError(f"{stop} images appended, but the run was announced with {self._shape.images}")
        mine = replace(self._shape, images=len(shard)), self._tasks, self._columns["latents/z_voco"].dtype
        if (shard.shape, shard.tasks, shard.store_dtype) != mine:
            raise UserError(
                f"{shard.path} is no shard of {self.path}: its sizes, tasks or types differ; remove it and run the "
                "same command again"
            )
        for name, dataset in self._datasets.items():
            with self._guard():
                column = self._columns[name]
                self._require_room(len(shard) * column.item_bytes * int(np.prod(column.tail, dtype=np.int64)))
                dataset.resize(stop, axis=0)
                _copy(shard, name, dataset, start)
        if self._linked:
            self._parts.append(
                _Part(f"{shard.path.parent.name}/{shard.path.name}", len(shard), shard.path.stat().st_size)
            )
        self._count = stop

    def finish(
        self, skipped: Sequence[tuple[str, str]] = (), *, part: bool = False, shards: Sequence[Path] = ()
    ) -> Path:
        """Marks the run complete and gives it its name. `skipped`: path and reason of the images left out.

        A `part` is a shard, which may hold no image. The file is read back and compared with the `shards` that it
        was extended with before it is marked. Raises UserError where they differ.
        """
        if self._file is None:
            raise ValueError(f"{self.path} is already finished")
        if self._count == 0 and not part:
            why = f"; the first of {len(skipped)} skipped: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
            raise UserError(f"{self.path} would hold no image{why}")
        with self._guard():
            rows = np.array([list(pair) for pair in skipped], dtype=object).reshape(len(skipped), 2)
            self._file.create_dataset("skipped", data=rows, dtype=hdf5.TEXT)
            self._link()
            self._file["latents/z_voco"].attrs["layers"] = np.array(self._shape.stack, dtype="int32")
            self._file.attrs["created"] = datetime.now(UTC).isoformat()
            if shards:
                self._file.close()
                files.sync(self.partial)
                with h5py.File(self.partial, "r") as written:
                    self._compare(written, shards)
                self._file = h5py.File(self.partial, "r+")
            self._file.attrs["complete"] = True
            self._file.close()
            files.settle(self.partial, self.path)
            self._file = None
        return self.path

    def _link(self) -> None:
        """The large datasets of a virtual run, as HDF5's own virtual datasets, so that other tools read it too."""
        assert self._file is not None
        if not self._linked:
            return
        self._file.attrs["shards"] = json.dumps(self._parts)
        for name, column in self._columns.items():
            if name in self._linked:
                layout, start = h5py.VirtualLayout((self._count, *column.tail), column.dtype), 0
                for part in self._parts:
                    if part.images:
                        size = (part.images, *column.tail)
                        source = h5py.VirtualSource(_pattern(part.name), name, size, column.dtype)
                        layout[start : start + part.images] = source
                    start += part.images
                self._file.create_virtual_dataset(name, layout)

    def _compare(self, written: h5py.File, shards: Sequence[Path]) -> None:
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
        if any(len(written[name]) != start for name in self._columns):
            raise UserError(f"{self.partial} does not hold {start} images as its shards do; run the same command again")

    def _require_room(self, nbytes: int) -> None:
        """Asks the disk for room before HDF5 does, because HDF5 cannot back out: it keeps what it could not
        write, complains about every open dataset and may crash the interpreter when that exits.
        """
        need = nbytes + self._stack_cache + _CACHE * len(self._columns)  # with what waits in the caches
        with tempfile.TemporaryFile(dir=self.path.parent) as ballast:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(ballast.fileno(), 0, need)

    def _values(self, batch: Batch) -> dict[str, np.ndarray]:
        """Every dataset's rows for `batch`, checked and in the type in which they are stored."""
        mass_BLH = np.asarray(batch.attention, dtype=np.float32)[..., self._is_anchor_S].sum(-1, dtype=np.float32)
        given: dict[str, Any] = {
            "images/id": np.array(batch.ids, dtype=object),
            "images/path": np.array(batch.paths, dtype=object),
            "images/group": np.array(batch.groups, dtype=object),
            "images/thumbnail": batch.thumbnails,
            "latents/z_voco": batch.z_voco,
            "latents/v_d": batch.v_d,
            "latents/v_pooled": batch.v_pooled,
            "codes": batch.codes,
            "attention/voco": batch.attention,
            "attention/anchor_mass": mass_BLH,
        }
        if set(batch.labels) != {task.name for task in self._tasks}:
            raise ValueError(f"labels of {sorted(batch.labels)}, expected {sorted(task.name for task in self._tasks)}")
        given |= {f"labels/{name}": value for name, value in batch.labels.items()}
        values: dict[str, np.ndarray] = {}
        for name, column in self._columns.items():
            value = np.asarray(given[name])
            if value.shape != (len(batch.ids), *column.tail):
                raise ValueError(f"{name} has shape {value.shape}, expected {(len(batch.ids), *column.tail)}")
            if name.startswith(("latents/", "attention/")):
                value = self._as_stored(name, value, column.dtype, batch.ids)
            elif name == "codes" and value.size and not 0 <= value.min() <= value.max() <= np.iinfo("uint16").max:
                raise ValueError(f"codes run from {value.min()} to {value.max()}, expected 0 to 65535")
            values[name] = value
        for task in self._tasks:
            _check_labels(task, values[f"labels/{task.name}"])
        return values

    @staticmethod
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

    def _complaint(self, error: BaseException) -> UserError:
        if _no_room(error):
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
        """Turns what HDF5 and the system say about the disk into a UserError, with the partial file
        removed.
        """
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


class Run:
    """A run, open for reading; every method reads only the slice it returns. Opened by `open_run`."""

    def __init__(
        self,
        path: Path,
        file: h5py.File,
        info: RunInfo,
        shape: RunShape,
        tasks: tuple[Task, ...],
        created: str,
        parts: tuple[_Part, ...] = (),
        *,
        finished: bool = True,
    ) -> None:
        self.path, self.info, self.shape, self.tasks, self.created = path, info, shape, tasks, created
        self.finished = finished
        """False: only the images of those shards that are there, see `open_shards`."""
        self._file, self._parts = file, parts

    def __len__(self) -> int:
        return self.shape.images

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    @property
    def virtual(self) -> bool:
        """Whether the large datasets lie in the shards beside the run."""
        return bool(self._parts)

    @property
    def store_dtype(self) -> np.dtype:
        """Type of z_voco, v_d, pooled V and attention in the file."""
        return self._file["latents/z_voco"].dtype

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Path and reason of every image that was left out."""
        if self.finished:
            return tuple((str(path), str(why)) for path, why in self._read("skipped"))
        left_out: list[tuple[str, str]] = []
        for part in self._parts:
            with open_run(self.path.parent / part.name) as shard:
                left_out += shard.skipped
        return tuple(left_out)

    def ids(self) -> list[str]:
        return list(self._read("images/id"))

    def paths(self) -> list[str]:
        return list(self._read("images/path"))

    def groups(self) -> list[str]:
        """Images of one group must not be split between train and test."""
        return list(self._read("images/group"))

    def thumbnail(self, image: int) -> np.ndarray:
        """(96, 96, 3) uint8."""
        return self._read("images/thumbnail", self._row(image))

    def z_voco(self, layer: int = -1, images: slice = slice(None)) -> np.ndarray:
        """(N, D) float32: the hidden state of `<voco>`; layer 0 is the embedding, negative layers count from
        the end. Of some `images` only, where they are given.

        Raises UserError when the layer does not exist or was not stored.
        """
        last = self.shape.layers
        number = layer + last + 1 if layer < 0 else layer
        if number not in self.shape.stack:
            if not 0 <= number <= last:
                raise UserError(f"layer {layer} is not in {self.path.name}: its layers are 0 to {last}")
            raise UserError(
                f"layer {layer} is not stored in {self.path.name} (it holds {_listed(self.shape.stack)}); "
                "extract again with --layers"
            )
        return self._read("latents/z_voco", (images, self.shape.stack.index(number))).astype(np.float32)

    def v_d(self, images: slice = slice(None)) -> np.ndarray:
        """(N, A, D) float32: the anchors, the semantic channel. Raises UserError where the model has none."""
        if not self.shape.anchors:
            raise UserError(f"{self.path.name} has no v_d: its model ({self.info.model['name']}) has no anchors")
        return self._read("latents/v_d", (images,)).astype(np.float32)

    def v_pooled(self, images: slice = slice(None)) -> np.ndarray:
        """(N, D) float32: the mean of the patches, the detail channel, of all `images`."""
        return self._read("latents/v_pooled", (images,)).astype(np.float32)

    def codes(self) -> np.ndarray:
        """(N, h, w, groups) uint16: MGVQ code indices. Raises UserError where the model has no MGVQ."""
        if self.shape.codes is None:
            raise UserError(f"{self.path.name} has no codes: its model ({self.info.model['name']}) has no MGVQ")
        return self._read("codes")

    def attention(self, image: int) -> np.ndarray:
        """(L, H, S) float32: the row of `<voco>` over all keys, of one image."""
        return self._read("attention/voco", self._row(image)).astype(np.float32)

    def mean_attention(self) -> np.ndarray:
        """(L, H, S) float32: the mean over all images, read some 32 MB at a time."""
        shape = (self.shape.layers, self.shape.heads, self.shape.keys)
        step = max(1, 2**23 // max(1, int(np.prod(shape))))
        total_LHS = np.zeros(shape)
        for start in range(0, len(self), step):
            rows_NLHS = self._read("attention/voco", slice(start, start + step))
            total_LHS += rows_NLHS.sum(0, dtype=np.float64)
        return (total_LHS / len(self)).astype(np.float32)

    def anchor_mass(self) -> np.ndarray:
        """(N, L, H) float32: attention of `<voco>` summed over the anchors, before 16-bit storage."""
        return self._read("attention/anchor_mass")

    def anchor_mass_of(self, image: int) -> np.ndarray:
        """(L, H) float32: the same of one image."""
        return self._read("attention/anchor_mass", self._row(image))

    def task(self, name: str) -> Task:
        """The task of that name. Raises UserError that lists the tasks there are."""
        for task in self.tasks:
            if task.name == name:
                return task
        names = ", ".join(task.name for task in self.tasks) or "none: the data had no labels"
        raise UserError(f"task {name!r} is not in {self.path.name}; its tasks: {names}")

    def tasks_of(self, suite: Suite) -> tuple[Task, ...]:
        return tuple(task for task in self.tasks if task.suite == suite)

    def labels(self, name: str) -> np.ndarray:
        """Labels of one task: (N,) int32, -1 unknown; (N,) float64, NaN unknown; or (N, C) uint8, 255
        unknown.
        """
        return self._read(f"labels/{self.task(name).name}")

    def contents(self) -> list[Stored]:
        """Every dataset of the run; reads none of them."""
        found = []
        names = [*_columns(self.shape, self.tasks, "float32"), *(name for name in _DIMS if name.startswith("tokens/"))]
        for name in [*names, "skipped"]:
            with self._reading(name):
                dataset = self._file[name]
                dims = _DIMS.get(name, ("image", "class")[: dataset.ndim])
                dtype = "text" if hdf5.is_text(dataset.dtype) else str(dataset.dtype)
                nbytes, checked = dataset.id.get_storage_size(), dataset.fletcher32
                found.append(Stored(name, dims, dataset.shape, dtype, nbytes, checked))
        return found

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """The rows `start` to `stop` of a dataset of `contents`, as they are stored. Raises UserError for damage."""
        return self._read(name, slice(start, stop))

    @property
    def nbytes(self) -> int:
        """Of the file, with the shards of a virtual run."""
        return (self.path.stat().st_size if self.finished else 0) + sum(part.size for part in self._parts)

    def _row(self, image: int) -> int:
        if not 0 <= image < len(self):
            raise UserError(f"image {image} is not in {self.path.name}: it holds 0 to {len(self) - 1}")
        return image

    def _read(self, name: str, at: Any = ()) -> np.ndarray:
        with self._reading(name):
            dataset = self._file[name]
            if dataset.is_virtual or not self.finished:
                return self._gather(name, at)
            return hdf5.values(dataset, at)

    def _gather(self, name: str, at: Any) -> np.ndarray:
        """The same from the shards, one open at a time: HDF5 reads a shard that it cannot open, such as one file
        too many at once, as zeros.
        """
        rows, *rest = at if isinstance(at, tuple) and at else (slice(None) if at == () else at,)
        first, stop, _ = rows.indices(len(self)) if isinstance(rows, slice) else (rows, rows + 1, 1)
        pieces: list[np.ndarray] = []
        start = 0
        for part in self._parts:
            low, high = max(first - start, 0), min(stop - start, part.images)
            start += part.images
            if low < high:
                with h5py.File(self.path.parent / part.name, "r", locking="best-effort") as file:
                    dataset = hdf5.dataset(file, name)
                    wanted = (part.images, *self._file[name].shape[1:])
                    if dataset.shape != wanted:
                        raise OSError(f"shard {part.name} holds {name} of shape {dataset.shape}, expected {wanted}")
                    pieces.append(hdf5.values(dataset, (slice(low, high), *rest)))
        values = np.concatenate(pieces)
        return values if isinstance(rows, slice) else values[0]

    def _chunk(self, name: str, offset: tuple[int, ...]) -> tuple[int, bytes]:
        """A chunk as it lies in the file, packed and with its checksum."""
        with self._reading(name):
            return self._file[name].id.read_direct_chunk(offset)

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        with hdf5.damage(lambda why: f"{self.path} is damaged at {name}: {why}; extract it again"):
            yield


def _copy(shard: Run, name: str, target: h5py.Dataset, start: int) -> None:
    """The rows of a shard's dataset into `target` from row `start` on. Chunks that fit are copied as they are."""
    if len(shard) == 0 or 0 in target.shape:
        return
    if _fits(target, start):
        for at in target.iter_chunks(tuple(slice(start, None) if i == 0 else slice(None) for i in range(target.ndim))):
            offset = tuple(piece.start for piece in at)
            mask, packed = shard._chunk(name, (offset[0] - start, *offset[1:]))
            target.id.write_direct_chunk(offset, packed, mask)
    else:
        target[start:] = shard._read(name)


def _same(shard: Run, name: str, written: h5py.Dataset, start: int) -> bool:
    """Whether `written` holds a shard's rows from row `start` on, byte for byte."""
    stop = start + len(shard)
    if len(written) < stop:
        return False
    theirs = shard._read(name)
    ours = hdf5.values(written, slice(start, stop))
    if hdf5.is_text(written.dtype):
        return bool(np.array_equal(ours, theirs))
    return ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()


def assemble(
    path: Path,
    info: RunInfo,
    shape: RunShape,
    tasks: Sequence[Task],
    shards: Sequence[Path],
    *,
    store_dtype: StoreDtype = "float16",
    virtual: bool = False,
) -> Path:
    """Makes a run of its shards, in their order, reads it back and only then marks it complete.

    Every dataset holds what a RunWriter would have written that was given all the images. A `virtual` run keeps the
    large ones in the shards, which must lie in a folder beside it whose name ends in .shards. Raises UserError as
    RunWriter does, and for a shard that is damaged or no shard of this run.
    """
    skipped: list[tuple[str, str]] = []
    with RunWriter(path, info, shape, tasks, store_dtype=store_dtype, virtual=virtual) as writer:
        for shard in shards:
            with open_run(shard) as run:
                writer.extend(run)
                skipped += run.skipped
        return writer.finish(skipped, shards=shards)


def open_run(path: Path | str) -> Run:
    """Opens a finished run for reading.

    Raises UserError for a missing file, a file that is no HDF5 or no run, one of a newer schema, an
    incomplete or a damaged one, and a virtual one that lacks a shard. A dataset that points outside the file
    (external storage, links, virtual datasets of anything but the run's own shards) counts as damaged: a run from
    elsewhere must not read this machine's files.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no run at {path}; make one with: htc-extract --split val")
    return hdf5.opened(
        path,
        partial(_parse, path),
        foreign=lambda why: (
            f"{path} is still being written; wait until it has its final name"
            if path.name.endswith(".partial")
            else f"{path} is not a run, or cut short: {why}; expected an HDF5 file"
        ),
        damaged=lambda why: f"{path} is a damaged run: {why}; extract it again",
    )


def open_shards(out: Path | str, shards: Sequence[Path]) -> Run:
    """What there is of the unfinished run at `out`: the images of these finished shards, in their order.

    `extract.shards.unfinished(out)` says which there are. Raises UserError as `open_run` does, and where no shard holds
    an image.
    """
    out = Path(out)
    parts: list[_Part] = []
    for shard in shards:
        with open_run(shard) as run:
            if len(run):
                parts.append(_Part(f"{shard.parent.name}/{shard.name}", len(run), shard.stat().st_size))
    if not parts:
        raise UserError(f"{out} has no finished shard yet; wait for the first one")
    first = open_run(out.parent / parts[0].name)
    shape = replace(first.shape, images=sum(part.images for part in parts))
    return Run(out, first._file, first.info, shape, first.tasks, first.created, tuple(parts), finished=False)


def _parse(path: Path, file: h5py.File) -> Run:
    attrs = file.attrs
    if hdf5.text(attrs.get("schema")) != SCHEMA:
        raise UserError(
            f"{path} is HDF5 but not a run of htc-extract (its schema is {hdf5.text(attrs.get('schema'))[:40]!r})"
        )
    version = int(attrs["schema_version"])
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version}; this htc-probe reads up to {SCHEMA_VERSION}: upgrade it, "
            "or extract again"
        )
    if not bool(attrs["complete"]):
        raise UserError(f"{path} is incomplete: its extraction did not finish; run htc-extract again")
    info = RunInfo(
        config=hdf5.json_object(attrs, "config"),
        model=hdf5.json_object(attrs, "model"),
        dataset=hdf5.text(attrs["dataset"]),
        split=hdf5.text(attrs["split"]),
        topology=hdf5.text(attrs["topology"]),
        environment=hdf5.json_object(attrs, "environment"),
    )
    parts = _parse_parts(path, file)
    sources = {_pattern(part.name) for part in parts}
    labels = hdf5.group(file, "labels")
    if len(labels) > _MOST_TASKS:
        raise ValueError(f"it has {len(labels):,} tasks, more than {_MOST_TASKS:,}")
    tasks = tuple(_parse_task(name, hdf5.dataset(file, f"labels/{name}").attrs) for name in labels)
    z_voco, attention = hdf5.dataset(file, "latents/z_voco", sources), hdf5.dataset(file, "attention/voco", sources)
    roles = tuple(str(role) for role in hdf5.dataset(file, "tokens/role").asstr()[()])
    shape = RunShape(
        images=len(hdf5.dataset(file, "images/id")),
        layers=attention.shape[1],
        stack=tuple(int(layer) for layer in z_voco.attrs["layers"]),
        heads=attention.shape[2],
        width=z_voco.shape[2],
        anchors=roles.count("anchor"),
        codes=_parse_codes(file),
        roles=roles,
        rows=tuple(int(row) for row in hdf5.dataset(file, "tokens/row")[()]),
        cols=tuple(int(col) for col in hdf5.dataset(file, "tokens/col")[()]),
    )
    hdf5.dataset(file, "skipped")
    stored = path.stat().st_size + sum(part.size for part in parts)
    for name, column in _columns(shape, tasks, str(z_voco.dtype)).items():
        dataset = hdf5.dataset(file, name, sources if name.startswith(_LINKED) else ())
        if dataset.shape != (shape.images, *column.tail):
            raise ValueError(f"{name} has shape {dataset.shape}, expected {(shape.images, *column.tail)}")
        if hdf5.is_text(dataset.dtype) != hdf5.is_text(column.dtype):
            raise ValueError(f"{name} has type {dataset.dtype}, expected {column.dtype}")
        if dataset.nbytes > _MOST_PACKED * stored:
            raise ValueError(f"{name} says that it holds {dataset.nbytes:,} bytes, in a file of {stored:,}")
    if parts and sum(part.images for part in parts) != shape.images:
        raise ValueError(f"its shards hold {sum(part.images for part in parts)} images, expected {shape.images}")
    return Run(path, file, info, shape, tasks, hdf5.text(attrs["created"]), parts)


def _parse_parts(path: Path, file: h5py.File) -> tuple[_Part, ...]:
    """The shards of a virtual run, all there: (). Links are refused, as they lead to other files."""
    parts = tuple(
        _Part(str(name), int(images), int(size)) for name, images, size in json.loads(file.attrs.get("shards", "[]"))
    )
    for part in parts:
        folder, _, name = part.name.partition("/")
        if not folder.endswith(".shards") or "/" in name or not name.endswith(".h5") or "\0" in part.name:
            raise ValueError(f"{part.name!r} is no shard beside it")
        shard = path.parent / folder / name
        if not shard.is_file() or shard.is_symlink() or shard.parent.is_symlink():
            raise UserError(
                f"{path} is a virtual run and its shard {shard} is missing or a link; bring it back, or remove the "
                "run and extract again"
            )
        if shard.stat().st_size != part.size:
            raise UserError(f"{path} is a virtual run and its shard {shard} has changed; extract again")
    return parts


def _parse_codes(file: h5py.File) -> tuple[int, int, int] | None:
    """The shape of the code grid: what the file says it has, so that codes that are lost are noticed."""
    if "code_shape" not in file.attrs:  # written before models without MGVQ were
        shape = hdf5.dataset(file, "codes").shape
        return shape[1], shape[2], shape[3]
    sizes = json.loads(hdf5.text(file.attrs["code_shape"]))
    return None if sizes is None else (int(sizes[0]), int(sizes[1]), int(sizes[2]))


def _parse_task(name: str, attrs: h5py.AttributeManager) -> Task:
    suite, kind = hdf5.text(attrs["suite"]), hdf5.text(attrs["kind"])
    if suite not in get_args(Suite) or kind not in get_args(Kind):
        raise ValueError(f"task {name} has suite {suite!r} and kind {kind!r}")
    classes = tuple(str(label) for label in json.loads(hdf5.text(attrs["classes"])))
    note = hdf5.text(attrs["note"]) if "note" in attrs else ""  # runs written before notes were have none
    period = float(attrs["period"]) if kind == "circular" else 0.0
    if kind == "circular" and not 0 < period < math.inf:
        raise ValueError(f"task {name} is circular and has period {period}")
    return Task(name, suite, kind, classes, hdf5.text(attrs["unit"]), note, period)  # type: ignore[arg-type]


def _pattern(name: str) -> str:
    """A file's name as HDF5 wants it for a virtual dataset, where % is a sign for counting."""
    return name.replace("%", "%%")


def list_runs(folder: Path | str) -> list[Path]:
    """The finished runs of a folder (not of folders within), newest first by the time they were finished."""
    found: list[tuple[str, str, Path]] = []
    for path in Path(folder).glob("*.h5"):
        with contextlib.suppress(UserError), open_run(path) as run:
            found.append((run.created, path.name, path))
    return [path for _, _, path in sorted(found, reverse=True)]


def newest_run(folder: Path | str) -> Path:
    """The run of a folder that was finished last. Raises UserError when there is none."""
    runs = list_runs(folder)
    if not runs:
        raise UserError(f"no finished run in {folder}/; make one with: htc-extract --split val")
    return runs[0]


def _check_tasks(tasks: Sequence[Task]) -> None:
    names = [task.name for task in tasks]
    for task in tasks:
        if not task.name or "/" in task.name or task.name in {".", ".."} or "\0" in task.name:
            raise UserError(f"task name {task.name!r} cannot be stored; use a name without '/'")
        if names.count(task.name) > 1:
            raise UserError(f"two tasks are named {task.name!r}; names must differ, also between suites")
        if task.kind not in get_args(Kind) or task.suite not in get_args(Suite):
            raise UserError(
                f"task {task.name!r} has kind {task.kind!r} and suite {task.suite!r}; "
                f"kinds: {', '.join(get_args(Kind))}; suites: {', '.join(get_args(Suite))}"
            )
        if task.kind not in NUMERIC and not task.classes:
            raise UserError(f"task {task.name!r} of kind {task.kind} lists no classes")
        if (task.kind == "circular") != (0 < task.period < math.inf):
            raise UserError(
                f"task {task.name!r} of kind {task.kind} has period {task.period:g}; a circular task has one above 0, "
                "such as 360 of degrees, and no other kind has any"
            )


def _check_labels(task: Task, value: np.ndarray) -> None:
    if task.kind == "classes":
        good = np.isin(value, np.arange(-1, len(task.classes)))
        expected = f"-1 to {len(task.classes) - 1}"
    elif task.kind == "multilabel":
        good, expected = np.isin(value, (0, 1, 255)), "0, 1 or 255"
    else:
        good, expected = ~np.isinf(value), "a finite number or NaN"
    if not good.all():
        raise ValueError(f"labels/{task.name} holds {value[~good].flat[0]}, expected {expected}")


def _fits(target: h5py.Dataset, start: int) -> bool:
    """Whether chunks of a shard are chunks of a run that has `start` images before it."""
    return not hdf5.is_text(target.dtype) and start % target.chunks[0] == 0


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _no_room(error: BaseException) -> bool:
    """HDF5 hides the system's number in its message on some paths."""
    known = isinstance(error, OSError) and error.errno in _NO_ROOM
    return known or any(f"errno = {number}," in str(error) for number in _NO_ROOM)
