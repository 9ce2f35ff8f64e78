"""What probes said of images that they had not seen: written by htc-probe, read probe by probe. Knows files and arrays.

    said = load("runs/scenes-val.probes.predictions.safetensors")["texture", "z_voco", 4]
    said.rows[~said.right]                                           # the images that this probe gets wrong

Probabilities are stored as logarithms in 16 bits, which are as exact for the rare as for the certain and rank alike; a
chosen class is stored by itself, as rounding may make two equal. Legend: n rows of the run, K classes, C labels.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from htc_probe.extract.errors import UserError, reason
from htc_probe.extract.files import settle
from htc_probe.extract.store import NUMERIC, Kind
from htc_probe.probes.files.weights import Key, opened, overview, unknown_key, what_is_read
from htc_probe.probes.inputs import circular
from htc_probe.probes.scores.metrics import Gaussian, Prediction, VonMises

_MOST_CLASSES = 32
"""Of more classes, the chosen one and the true one alone are stored."""
_SCHEMA = "htc-probe-predictions-1"
_CODES = {"<i4": "I32", "<i2": "I16", "|u1": "U8", "<u2": "U16", "<f2": "F16", "<f4": "F32", "<f8": "F64"}
_LARGEST = float(np.finfo(np.float16).max)


class Asked(NamedTuple):
    """A task, and the images whose labels score it: those that were held out and have one."""

    task: str
    kind: Kind
    classes: tuple[str, ...]
    """That were probed; () for numbers."""
    rows: np.ndarray
    """(n,) rows of the run, ascending."""
    fold: np.ndarray
    """(n,) in which fold each was held out."""
    y: np.ndarray
    """Labels: (n,) indices into `classes`; (n, C), 255 where unknown; or (n,) numbers or circular values."""
    period: float = 0.0
    """Of a circular task."""


@dataclass(frozen=True, repr=False)
class Predicted:
    """What one probe said of the images that it was scored on."""

    kind: Kind
    classes: tuple[str, ...]
    """That were probed: rare ones are not; () for numbers."""
    rows: np.ndarray
    """(n,) int32, rows of the run, ascending."""
    fold: np.ndarray
    """(n,) int16, in which fold each was held out. What only ranks (mAP, Spearman) is taken within a fold."""
    y: np.ndarray
    """What is true: (n,) int32 indices into `classes`; (n, C) uint8, 255 where unknown; or (n,) float64."""
    said: np.ndarray
    """In the form of y: the class that was chosen; (n, C) bool; or (n,) float32."""
    prediction: Prediction | None
    """As `probes.metrics` takes it, in float32: (n, K) log-probabilities in nats, (n, C) logits, a Gaussian, or a
    VonMises. None of more than _MOST_CLASSES classes.
    """
    logs: np.ndarray
    """(n, 2) float32, log-probabilities of the chosen and of the true class; (n, 0) for other kinds."""
    period: float = 0.0
    """Of a circular task, in its unit."""

    def __repr__(self) -> str:
        right = f", {self.right.mean():.1%} right" if self.kind == "classes" and self.right is not None else ""
        return f"<Predicted of {len(self.rows):,} held-out images: {what_is_read(self.kind, self.classes)}{right}>"

    @cached_property
    def error(self) -> np.ndarray | None:
        """(n,) what was said minus what is true, of circular values the short way round; None for other kinds."""
        if self.kind == "circular":
            return circular.difference(self.said, self.y, self.period)
        return self.said - self.y if self.kind == "number" else None

    @cached_property
    def sure(self) -> np.ndarray | None:
        """(n,) the probability of the chosen class, (n, C) that of each label; None for numbers and angles."""
        if self.kind == "classes":
            return np.exp(self.logs[:, 0])
        return np.exp(-np.logaddexp(0, -self.prediction)) if isinstance(self.prediction, np.ndarray) else None

    @cached_property
    def of_true(self) -> np.ndarray | None:
        """(n,) the probability of the true class; None for labels and numbers."""
        return np.exp(self.logs[:, 1]) if self.kind == "classes" else None

    @cached_property
    def right(self) -> np.ndarray | None:
        """(n,) bool, or (n, C), False where unknown; None for numbers and circular values."""
        return None if self.kind in NUMERIC else self.said == self.y


class Writer:
    """Writes the predictions of all probes of a run: `with Writer(...) as writer:`, `add` for every representation in
    turn, `finish()`.

    They go to a file in the folder `keep` as they come, so that memory holds one representation at a time, and take
    their name in `finish()`; without it, nothing is left. Raises UserError when the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        keep: Path,
        run: Mapping[str, Any],
        asked: Sequence[Asked],
        representations: Sequence[tuple[str, int | None]],
    ) -> None:
        """`run`: which run, as `Results.run` says it."""
        self._path, self._asked = path, tuple(asked)
        self._partial = keep / f"predictions.{os.getpid()}.partial"
        self._awaited = len(representations)
        self._layout = _layout(self._asked, self._awaited)
        about = {
            "schema": _SCHEMA,
            "run": json.dumps(dict(run)),
            "tasks": json.dumps([[*one[:3], *([one.period] if one.period else [])] for one in asked]),
            "representations": json.dumps(representations),
        }
        self._file: BinaryIO | None = None
        with self._guard():
            keep.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb")
            self._file.write(_head(self._layout, about))
        for number, one in enumerate(asked):
            self._put(f"{number}.rows", one.rows)
            self._put(f"{number}.fold", one.fold)
            self._put(f"{number}.y", one.y)
        self._added = 0

    def add(self, predictions: Sequence[Prediction]) -> None:
        """What the next representation's probes said, of each task's rows."""
        for number, (one, prediction) in enumerate(zip(self._asked, predictions, strict=True)):
            for name, array in _stored(one, prediction).items():
                self._put(f"{number}.{self._added}.{name}", array)
        self._added += 1

    def finish(self) -> Path:
        assert self._file is not None and self._added == self._awaited, f"{self._added} of {self._awaited} were added"
        with self._guard():
            self._file.close()
            settle(self._partial, self._path)
        return self._path

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what a full disk left in the buffer
                self._file.close()
        with contextlib.suppress(OSError):
            self._partial.unlink()
        with contextlib.suppress(OSError):  # unless cells are kept there
            self._partial.parent.rmdir()

    def _put(self, name: str, array: np.ndarray) -> None:
        dtype, shape = self._layout[name]
        assert array.shape == shape, f"{name} of shape {array.shape}, announced as {shape}"
        assert self._file is not None
        with self._guard():
            self._file.write(np.ascontiguousarray(array, dtype=dtype).tobytes())

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {reason(error)}; choose another place with --out") from error


class Predictions(Mapping[Key, Predicted]):
    """What all probes of a run said; each is read when it is asked for, and no file stays open. Made by `load`. A key
    that is not there raises `weights.UnknownKey`, which lists those that are.
    """

    def __init__(self, path: Path, about: Mapping[str, str]) -> None:
        self._path = path
        self.run: dict[str, Any] = json.loads(about["run"])
        """Which run, as `Results.run` says it: its time (`created`) and its weights (`sha256`) among others."""
        self._tasks = [
            (task, kind, tuple(classes), *(period or [0.0]))
            for task, kind, classes, *period in json.loads(about["tasks"])
        ]
        names = [(name, layer) for name, layer in json.loads(about["representations"])]
        self._places: dict[Key, tuple[int, int]] = {
            (self._tasks[t][0], *names[r]): (t, r) for t in range(len(self._tasks)) for r in range(len(names))
        }

    def __getitem__(self, key: Key) -> Predicted:
        if key not in self._places:
            raise unknown_key(key, self._places.keys(), self._path)
        t, r = self._places[key]
        _, kind, classes, period = self._tasks[t]
        with opened(self._path, _SCHEMA, "predictions") as (file, _):

            def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
                array = file.get_tensor(name)
                if array.shape != shape:
                    raise ValueError(f"{name} is of shape {array.shape}, not {shape}")
                return array

            n, K = file.get_slice(f"{t}.rows").get_shape()[0], len(classes)
            rows, fold = read(f"{t}.rows", (n,)), read(f"{t}.fold", (n,))
            y = read(f"{t}.y", _labels(kind, K, n)[1])
            stored = {name: read(f"{t}.{r}.{name}", shape) for name, _, shape in _tensors(kind, K, n)}
            if kind == "classes" and any((array < 0).any() or (array >= K).any() for array in (y, stored["said"])):
                raise ValueError(f"{key[0]} has classes without a name")
            return Predicted(kind, classes, rows, fold, y, *_said(kind, K, y, stored, period))

    def __repr__(self) -> str:
        return overview(f"Predictions {self._path.name} of {self.run.get('model')}", self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[Key]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def load(path: Path | str) -> Predictions:
    """What htc-probe wrote. Raises UserError for a file that is missing, damaged or something else."""
    with opened(path, _SCHEMA, "predictions") as (_, about):
        return Predictions(Path(path), about)


# ---- what is stored


def _labels(kind: Kind, n_classes: int, n: int) -> tuple[str, tuple[int, ...]]:
    """(dtype, shape) of a task's."""
    if kind in NUMERIC:
        return "<f8", (n,)
    return {"classes": ("<i4", (n,)), "multilabel": ("|u1", (n, n_classes))}[kind]


def _tensors(kind: Kind, n_classes: int, n: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of a probe."""
    if kind == "classes":
        width = n_classes if n_classes <= _MOST_CLASSES else 2
        return [("said", "<u2", (n,)), ("logs", "<f2", (n, width))]
    if kind == "multilabel":
        return [("logits", "<f2", (n, n_classes))]
    return [("mean", "<f4", (n,)), ("concentration" if kind == "circular" else "scale", "<f4", (n,))]


def _stored(asked: Asked, prediction: Prediction) -> dict[str, np.ndarray]:
    """A prediction as those tensors."""
    if isinstance(prediction, tuple):
        return dict(zip(prediction._fields, prediction[:2], strict=False))
    halves = np.clip(prediction, -_LARGEST, _LARGEST)
    if asked.kind == "multilabel":
        return {"logits": halves}
    said = prediction.argmax(1)
    if prediction.shape[1] > _MOST_CLASSES:
        halves = np.take_along_axis(halves, np.stack([said, asked.y], 1), 1)
    return {"said": said, "logs": halves}


def _said(
    kind: Kind, n_classes: int, y: np.ndarray, stored: dict[str, Any], period: float
) -> tuple[np.ndarray, Prediction | None, np.ndarray, float]:
    """What follows from those tensors: `said`, `prediction`, `logs` and `period` of Predicted."""
    none = np.empty((len(y), 0), np.float32)
    if kind == "circular":
        if not 0 < period < np.inf:
            raise ValueError(f"a circular task of period {period}")
        return stored["mean"], VonMises(**stored, period=period), none, period
    if kind == "number":
        return stored["mean"], Gaussian(**stored), none, 0.0
    if kind == "multilabel":
        logits = stored["logits"].astype(np.float32)
        return logits > 0, logits, none, 0.0
    logs, said = stored["logs"].astype(np.float32), stored["said"].astype(np.int32)
    whole = n_classes <= _MOST_CLASSES
    both = np.take_along_axis(logs, np.stack([said, y], 1), 1) if whole else logs
    return said, logs if whole else None, both, 0.0


def _layout(asked: Sequence[Asked], representations: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every array of the file in its order: name -> (dtype, shape)."""
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for number, one in enumerate(asked):
        n = len(one.rows)
        layout[f"{number}.rows"] = "<i4", (n,)
        layout[f"{number}.fold"] = "<i2", (n,)
        layout[f"{number}.y"] = _labels(one.kind, len(one.classes), n)
    for at in range(representations):
        for number, one in enumerate(asked):
            for name, dtype, shape in _tensors(one.kind, len(one.classes), len(one.rows)):
                layout[f"{number}.{at}.{name}"] = dtype, shape
    return layout


def _head(layout: Mapping[str, tuple[str, tuple[int, ...]]], about: Mapping[str, str]) -> bytes:
    """What a safetensors file begins with; its own writer wants all arrays at once."""
    entries: dict[str, Any] = {"__metadata__": dict(about)}
    end = 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
        entries[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
