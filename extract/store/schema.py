"""What a run file holds: its types, and the names, axes and types of every dataset. Knows numpy; not HDF5 nor files.

Layers follow Hugging Face: 0 is the embedding, L the last layer after the final norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from htc_probe.extract.errors import UserError

Kind = Literal["classes", "multilabel", "number", "circular"]
NUMERIC: tuple[Kind, ...] = ("number", "circular")
"""Kinds whose labels are floats, NaN where unknown."""
Suite = Literal["semantic", "detail"]
StoreDtype = Literal["float16", "float32"]

UNKNOWN = 255
"""An entry of a row of labels that is not known; of other kinds see `Task`."""

SCHEMA = "htc-run"
SCHEMA_VERSION = 1
THUMBNAIL = 96  # pixels a side
CHUNK_BYTES = 256 * 1024  # of one chunk: small enough to pick out a layer, large enough to stream


def is_known(kind: str, labels: np.ndarray) -> np.ndarray:
    """Which labels, (n,) or (n, C) as a run stores them, say something: bool of their shape."""
    if kind in NUMERIC:
        return np.isfinite(labels)
    return labels >= 0 if kind == "classes" else labels != UNKNOWN


def is_labelled(kind: str, labels: np.ndarray) -> np.ndarray:
    """Which images (...) have a label, all of it where it is a row (..., C)."""
    known = is_known(kind, labels)
    return np.asarray(known.all(-1)) if kind == "multilabel" else known


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

    @property
    def dtype(self) -> np.dtype:
        """Of its labels."""
        return np.dtype(LABELS[self.kind].dtype)

    def known(self, labels: np.ndarray) -> np.ndarray:
        """Which labels say something: bool of their shape."""
        return is_known(self.kind, labels)

    def unknown(self, n: int) -> np.ndarray:
        """n labels that are not known."""
        value = math.nan if self.kind in NUMERIC else -1 if self.kind == "classes" else UNKNOWN
        return np.full((n, len(self.classes)) if self.kind == "multilabel" else n, value, self.dtype)

    def allowed(self, labels: np.ndarray) -> np.ndarray:
        """Which labels a run may hold: bool of their shape."""
        if self.kind in NUMERIC:
            return ~np.isinf(labels)
        return np.isin(labels, (0, 1, UNKNOWN) if self.kind == "multilabel" else np.arange(-1, len(self.classes)))


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

    @property
    def codes_per_group(self) -> int | None:
        """What the model's configuration says; None where it says nothing."""
        config: Any = self.model.get("config")
        mgvq = config.get("mgvq") if isinstance(config, dict) else None
        try:
            return int(mgvq["codebook_size"]) // int(mgvq["groups"])  # type: ignore[index]
        except (TypeError, KeyError, ValueError, ArithmeticError):
            return None


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
            lengths = f"{len(self.roles)} roles, {len(self.rows)} rows, {len(self.cols)} cols"
            raise ValueError(f"{lengths}: one of each a key")
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


class Dataset(NamedTuple):
    """A dataset of a run file."""

    name: str
    dims: tuple[str, ...]
    """Names of its axes, for those who load it with xarray."""
    dtype: str
    """NumPy's name, `text`, or `stored`: float16, or what --store-dtype says."""
    meaning: str
    """With its unit or range."""
    field: str = ""
    """Of a `Batch` that holds it."""
    alone: tuple[str, ...] = ()
    """The axes of which a chunk holds one entry; of images it otherwise holds as many as fill CHUNK_BYTES."""

    @property
    def linked(self) -> bool:
        """Whether it stays in the shards of a virtual run: nearly all of its bytes. Ids and labels are copied."""
        return self.dtype != "text" and not self.name.startswith("labels/")


DATASETS = (
    Dataset("images/id", ("image",), "text", "name of the image, each once", "ids"),
    Dataset("images/path", ("image",), "text", "file that it was read from, or where in the data set it is", "paths"),
    Dataset("images/group", ("image",), "text", "images of one group are never split between train and test", "groups"),
    Dataset(
        "images/thumbnail",
        ("image", "y", "x", "channel"),
        "uint8",
        "the image as the model saw it, 96 px a side, red, green and blue from 0 to 255",
        "thumbnails",
        ("image",),
    ),
    Dataset(
        "latents/z_voco",
        ("image", "layer", "width"),
        "stored",
        "hidden state of `<voco>` after each stored layer (attribute `layers`: their numbers, 0 the embedding)",
        "z_voco",
        ("layer",),
    ),
    Dataset(
        "latents/v_pooled",
        ("image", "width"),
        "stored",
        "mean of the projected patches, the detail channel",
        "v_pooled",
    ),
    Dataset(
        "attention/voco",
        ("image", "block", "head", "key"),
        "stored",
        "attention of `<voco>` over its keys, 0 to 1; each row sums to 1",
        "attention",
        ("image",),
    ),
    Dataset(
        "attention/anchor_mass",
        ("image", "block", "head"),
        "float32",
        "attention of `<voco>` summed over the anchors, 0 to 1, before it is rounded for storage",
    ),
    Dataset(
        "latents/v_d",
        ("image", "anchor", "width"),
        "stored",
        "the anchors, the semantic channel; absent where the model has none",
        "v_d",
    ),
    Dataset(
        "codes",
        ("image", "row", "column", "group"),
        "uint16",
        "index of the MGVQ code, from 0; absent where the model has no MGVQ",
        "codes",
    ),
)
"""With a row an image, in the order in which they are written."""
LABELS: dict[Kind, Dataset] = {
    "classes": Dataset("labels/TASK", ("image",), "int32", "index of the class, -1 where unknown"),
    "multilabel": Dataset(
        "labels/TASK", ("image", "class"), "uint8", "1 where the class is there, 0 where not, 255 where unknown"
    ),
    "number": Dataset("labels/TASK", ("image",), "float64", "in the task's unit, NaN where unknown"),
    "circular": Dataset(
        "labels/TASK",
        ("image",),
        "float64",
        "in the task's unit, NaN where unknown; a multiple of `period` apart is the same",
    ),
}
"""One a task, under its name."""
OTHERS = (
    Dataset("tokens/role", ("key",), "text", "what each key is: prefix, anchor, patch, text or voco"),
    Dataset("tokens/row", ("key",), "int16", "its row on the grid of patches, -1 where it has none"),
    Dataset("tokens/col", ("key",), "int16", "its column on the grid of patches, -1 where it has none"),
    Dataset("skipped", ("skipped", "path_and_reason"), "text", "images that could not be read, and why"),
)

ATTRIBUTES = {
    "schema": "htc-run",
    "schema_version": "1",
    "complete": "whether the file was written to its end",
    "created": "when it was finished, in UTC, as ISO 8601",
    "dataset": "name of the data set",
    "split": "part of it",
    "topology": "which tokens of the image see one another: star, causal or full",
    "config": "JSON: settings of the command that wrote the run",
    "model": "JSON: `name`, `sha256` of its weights, `config`",
    "environment": "JSON: versions of the libraries",
    "code_shape": "JSON: rows, columns and groups of `codes`; null without MGVQ",
    "shards": "JSON, of a virtual run alone: name, images and size in bytes of each shard",
}
"""Of the file."""


class Column(NamedTuple):
    """One dataset with a row an image, of a run of some shape."""

    dataset: Dataset
    tail: tuple[int, ...]
    """Its sizes after that of images."""
    dtype: str
    """NumPy's name, or text."""
    chunk: tuple[int, ...]

    @property
    def image_bytes(self) -> int:
        """Of one image, before it is packed."""
        return (64 if self.dtype == "text" else np.dtype(self.dtype).itemsize) * math.prod(self.tail)


def columns(shape: RunShape, tasks: Sequence[Task], store_dtype: str) -> dict[str, Column]:
    """Every dataset with a row an image that a run of this shape has, by its name in the file."""
    sizes = {
        "y": THUMBNAIL,
        "x": THUMBNAIL,
        "channel": 3,
        "layer": len(shape.stack),
        "width": shape.width,
        "block": shape.layers,
        "head": shape.heads,
        "key": shape.keys,
        **({"anchor": shape.anchors} if shape.anchors else {}),
        **dict(zip(("row", "column", "group"), shape.codes or (), strict=False)),
    }
    wanted = {item.name: _column(item, sizes, store_dtype) for item in DATASETS if sizes.keys() >= {*item.dims[1:]}}
    for task in tasks:
        wanted[f"labels/{task.name}"] = _column(LABELS[task.kind], {"class": len(task.classes)}, store_dtype)
    return wanted


def _column(dataset: Dataset, sizes: dict[str, int], store_dtype: str) -> Column:
    tail = tuple(sizes[dim] for dim in dataset.dims[1:])
    if dataset.dtype == "text":
        return Column(dataset, tail, "text", (256,))
    dtype = store_dtype if dataset.dtype == "stored" else dataset.dtype
    piece = tuple(1 if dim in dataset.alone else sizes[dim] for dim in dataset.dims[1:])
    fill = CHUNK_BYTES // max(1, np.dtype(dtype).itemsize * math.prod(piece))
    return Column(dataset, tail, dtype, (1 if "image" in dataset.alone else max(1, min(4096, fill)), *piece))


def estimate_bytes(shape: RunShape, tasks: Sequence[Task], store_dtype: StoreDtype = "float16") -> int:
    """Size of the finished run in bytes before compression, which saves some 10 to 20%: an upper bound in practice."""
    return shape.images * sum(item.image_bytes for item in columns(shape, tasks, store_dtype).values()) + 64 * 1024


def check_tasks(tasks: Sequence[Task]) -> None:
    """Raises UserError for tasks that cannot be stored."""
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
