"""A run as it is read: finished, virtual (large datasets lie in the shards beside it), or unfinished (shards alone).

Knows h5py and the schema. Does not know models, probes or figures, and imports no torch. Every dataset must lie in the
file itself, or, in a virtual run, in the shards beside it.

Legend: N images, L decoder layers, H heads, S keys of `<voco>`, D width, A anchors, C classes.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import h5py
import numpy as np

from htc_probe.extract.errors import UserError
from htc_probe.extract.store import hdf5
from htc_probe.extract.store.schema import OTHERS, SCHEMA, SCHEMA_VERSION, Kind, RunInfo, RunShape, Suite, Task, columns

if TYPE_CHECKING:
    import pandas as pd

# What a file may claim before anything of that size is read or allocated; far from what any run needs.
_MOST_PACKED = 1000  # times as many bytes as the whole file has; all zeros are packed 200 times
_MOST_TASKS = 10_000


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


class Part(NamedTuple):
    """A shard that a virtual run reads."""

    name: str
    """FOLDER.shards/FILE.h5, beside the run."""
    images: int
    size: int
    """In bytes."""

    @property
    def pattern(self) -> str:
        """Its name as HDF5 wants it for a virtual dataset, where % is a sign for counting."""
        return self.name.replace("%", "%%")


def part_of(shard: Run) -> Part:
    """A shard as the runs that are made of it name it."""
    return Part(f"{shard.path.parent.name}/{shard.path.name}", len(shard), shard.path.stat().st_size)


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
        parts: tuple[Part, ...] = (),
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def __repr__(self) -> str:
        shape, info = self.shape, self.info
        states = (
            (not self.finished, "unfinished"),
            (self.finished and self.virtual, "virtual"),
            (not self._file, "closed"),
        )
        kind = "".join(f", {word}" for holds, word in states if holds)
        tokens = [(shape.anchors, "anchors"), (shape.roles.count("patch"), "patches"), (shape.keys, "keys of <voco>")]
        layers = ", ".join(map(str, shape.stack)) or "none"
        lines = [
            f"<Run {self.path.name}: {shape.images:,} images of {info.dataset} {info.split}{kind}>",
            f"model     {info.model.get('name')} ({info.topology}), {shape.layers} layers x {shape.heads} heads",
            f"tokens    {', '.join(f'{count:,} {what}' for count, what in tokens if count)}",
            f"z_voco    {shape.images:,} x {shape.width}, layers {layers}",
        ]
        for suite in get_args(Suite):
            names = [task.name for task in self.tasks if task.suite == suite]
            lines += [f"{suite:<10}{', '.join(names)}"] if names else []
        return "\n".join(lines if self.tasks else [*lines, "labels    none"])

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
        return tuple(left_out for shard in self._shards() for left_out in shard.skipped)

    def ids(self, rows: Sequence[int] | np.ndarray | None = None) -> list[str]:
        """Names of the images, or of those of these rows."""
        return list(self._read("images/id") if rows is None else self._read("images/id")[rows])

    def paths(self) -> list[str]:
        return list(self._read("images/path"))

    def groups(self, rows: Sequence[int] | np.ndarray | None = None) -> list[str]:
        """Images of one group must not be split between train and test; all, or those of these rows."""
        return list(self._read("images/group") if rows is None else self._read("images/group")[rows])

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
                f"layer {layer} is not stored in {self.path.name} (it holds {', '.join(map(str, self.shape.stack))}); "
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

    def codes(self, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """(N, h, w, groups) uint16 MGVQ codes, of all images or these rows. Raises UserError where there is no MGVQ."""
        if self.shape.codes is None:
            raise UserError(f"{self.path.name} has no codes: its model ({self.info.model['name']}) has no MGVQ")
        return self._read("codes") if rows is None else self._rows("codes", np.asarray(rows))

    def attention(self, image: int) -> np.ndarray:
        """(L, H, S) float32: the row of `<voco>` over all keys, of one image."""
        return self._read("attention/voco", self._row(image)).astype(np.float32)

    def attention_blocks(
        self, rows: Sequence[int] | np.ndarray | None = None, *, most: int = 2**21
    ) -> Iterator[np.ndarray]:
        """(B, L, H, S) as stored, of these images or all in order, at most so many numbers at a time."""
        chosen = np.arange(len(self)) if rows is None else np.asarray(rows)
        step = max(1, most // (self.shape.layers * self.shape.heads * self.shape.keys))
        for start in range(0, len(chosen), step):
            yield self._rows("attention/voco", chosen[start : start + step])

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

    def labels(self, name: str) -> np.ndarray:
        """Labels of one task: (N,) int32, -1 unknown; (N,) float64, NaN unknown; or (N, C) uint8, 255 unknown."""
        return self._read(f"labels/{self.task(name).name}")

    def frame(self) -> pd.DataFrame:
        """A row an image, numbered as in all arrays of the run: `id`, and a column a task (see `frames.columns_of`).
        `probes.frame` adds what a probe says.
        """
        import pandas as pd

        from htc_probe.extract.store.frames import columns_of

        columns: dict[str, Any] = {"id": self.ids()}
        for task in self.tasks:
            columns |= columns_of(task, self.labels(task.name))
        return pd.DataFrame(columns, index=pd.RangeIndex(len(self), name="row"))

    def contents(self) -> list[Stored]:
        """Every dataset of the run; reads none of them."""
        if not self.finished:
            shards = [shard.contents() for shard in self._shards()]
            return [_joined(parts) for parts in zip(*shards, strict=True)]
        held = {name: column.dataset for name, column in columns(self.shape, self.tasks, "float32").items()}
        found = []
        for name, kind in (held | {other.name: other for other in OTHERS}).items():
            with self._reading(name):
                dataset = self._file[name]
                dtype = "text" if hdf5.is_text(dataset.dtype) else str(dataset.dtype)
                nbytes, checked = dataset.id.get_storage_size(), dataset.fletcher32
                found.append(Stored(name, kind.dims, dataset.shape, dtype, nbytes, checked))
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
        """The same from the shards, one at a time: HDF5 reads one that it cannot open, as one too many, as zeros."""
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
        values = np.concatenate(pieces) if pieces else self._file[name][:0]
        return values if isinstance(rows, slice) else values[0]

    def _rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Some images of a dataset; those that follow one another are read at once."""
        pieces = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        found = [self._read(name, slice(int(piece[0]), int(piece[-1]) + 1)) for piece in pieces if len(piece)]
        return np.concatenate(found) if len(found) > 1 else found[0] if found else self._read(name, slice(0, 0))

    def _shards(self) -> Iterator[Run]:
        """The shards, one open at a time."""
        for part in self._parts:
            with open_run(self.path.parent / part.name) as shard:
                yield shard

    def packed_chunk(self, name: str, offset: tuple[int, ...]) -> tuple[int, bytes]:
        """A chunk as it lies in the file, packed and with its checksum, after the filters that it did without."""
        with self._reading(name):
            return self._file[name].id.read_direct_chunk(offset)

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        with hdf5.damage(lambda why: f"{self.path} is damaged at {name}: {why}; extract it again"):
            yield


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
            else f"{path} cannot be read as a run: {why}; copy or extract it again"
        ),
        damaged=lambda why: f"{path} is a damaged run: {why}; extract it again",
    )


def open_shards(out: Path | str, shards: Sequence[Path]) -> Run:
    """What there is of the unfinished run at `out`: the images of these finished shards, in their order.

    `extract.shards.unfinished(out)` says which there are. Raises UserError as `open_run` does, and where no shard holds
    an image.
    """
    out = Path(out)
    parts: list[Part] = []
    for path in shards:
        with open_run(path) as shard:
            parts.append(part_of(shard))
    with_images = [part for part in parts if part.images]
    if not with_images:
        raise UserError(f"{out} has no finished shard yet; wait for the first one")
    first = open_run(out.parent / with_images[0].name)
    shape = replace(first.shape, images=sum(part.images for part in parts))
    return Run(out, first._file, first.info, shape, first.tasks, first.created, tuple(parts), finished=False)


def _joined(parts: Sequence[Stored]) -> Stored:
    """One dataset of several shards; those of the keys are the same in each."""
    first = parts[0]
    rows = first.shape[0] if first.dims == ("key",) else sum(part.shape[0] for part in parts)
    nbytes, checked = sum(part.nbytes for part in parts), all(part.checked for part in parts)
    return first._replace(shape=(rows, *first.shape[1:]), nbytes=nbytes, checked=checked)


def _parse(path: Path, file: h5py.File) -> Run:
    attrs = file.attrs
    schema = hdf5.text(attrs.get("schema"))
    if schema != SCHEMA:
        raise UserError(
            f"{path} is not a run of htc-extract, but another HDF5 file (schema {schema[:40]!r}); name a run"
        )
    version = int(attrs["schema_version"])
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version}; this htc-probe reads up to {SCHEMA_VERSION}: upgrade it, "
            "or extract again"
        )
    if not bool(attrs["complete"]):
        raise UserError(f"{path} is incomplete: its extraction did not finish; run htc-extract again")
    texts: dict[str, Any] = {name: hdf5.text(attrs[name]) for name in ("dataset", "split", "topology")}
    objects: dict[str, Any] = {name: hdf5.json_object(attrs, name) for name in ("config", "model", "environment")}
    info = RunInfo(**texts, **objects)
    parts = _parse_parts(path, file)
    sources = {part.pattern for part in parts}
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
    for name, column in columns(shape, tasks, str(z_voco.dtype)).items():
        dataset = hdf5.dataset(file, name, sources if column.dataset.linked else ())
        if dataset.shape != (shape.images, *column.tail):
            raise ValueError(f"{name} has shape {dataset.shape}, expected {(shape.images, *column.tail)}")
        if hdf5.is_text(dataset.dtype) != (column.dtype == "text"):
            raise ValueError(f"{name} has type {dataset.dtype}, expected {column.dtype}")
        if dataset.nbytes > _MOST_PACKED * stored:
            raise ValueError(f"{name} says that it holds {dataset.nbytes:,} bytes, in a file of {stored:,}")
    if parts and sum(part.images for part in parts) != shape.images:
        raise ValueError(f"its shards hold {sum(part.images for part in parts)} images, expected {shape.images}")
    return Run(path, file, info, shape, tasks, hdf5.text(attrs["created"]), parts)


def _parse_parts(path: Path, file: h5py.File) -> tuple[Part, ...]:
    """The shards of a virtual run, all there: (). Links are refused, as they lead to other files."""
    shards = json.loads(file.attrs.get("shards", "[]"))
    parts = tuple(Part(str(name), int(images), int(size)) for name, images, size in shards)
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


def list_runs(folder: Path | str) -> list[Path]:
    """The finished runs of a folder (not of folders within), newest first by the time they were finished."""
    found: list[tuple[str, str, Path]] = []
    for path in Path(folder).glob("*.h5"):
        with contextlib.suppress(UserError), open_run(path) as run:
            found.append((run.created, path.name, path))
    return [path for _, _, path in sorted(found, reverse=True)]


def newest_run(place: Path | str) -> Path:
    """The run of a folder that was finished last; the place itself where it is a file or has a run's name.

    Raises UserError when there is none.
    """
    path = Path(place)
    if path.is_file() or path.suffix == ".h5":
        return path
    runs = list_runs(path)
    if not runs:
        raise UserError(f"no finished run in {path}/; make one with: htc-extract --split val")
    return runs[0]
