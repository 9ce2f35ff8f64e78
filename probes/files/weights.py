"""Probes as weights: written by htc-probe, and applied to features. Knows files and arrays.

    probes = load("runs/scenes-val.probes.safetensors")
    probes["texture", "z_voco", 4].predict(run.z_voco(4))            # classes by name

What a probe reads is not all that there is of its label, see `directions`; `probes.erasure` takes that away.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as as_bytes

from htc_probe.extract.errors import UserError
from htc_probe.extract.files import replaced
from htc_probe.probes.inputs import circular

_SCHEMA = "htc-probe-weights-1"
_ARRAYS = ("weights", "intercepts", "mean")
_SHOWN = 8  # names of classes
Key = tuple[str, str, int | None]
"""Task, representation, layer (None but for z_voco)."""


class UnknownKey(UserError, KeyError):
    """Nothing has this key; a KeyError too, so that `in` and `get` do what they do of any mapping."""

    __str__ = Exception.__str__  # a KeyError's is the repr


def unknown_key(key: object, keys: Collection[Key], path: Path | str) -> UnknownKey:
    """Says which keys there are, and the one that has most in common with `key`."""
    if not keys:
        return UnknownKey(f"{path} holds nothing for {key!r}, and nothing else")
    asked = key if isinstance(key, tuple) else (key,)
    nearest = max(keys, key=lambda one: sum(a == b for a, b in zip(one, asked, strict=False)))
    tasks, representations = _parts_of(keys)
    return UnknownKey(
        f"{path} holds nothing for {key!r}; a key is (task, representation, layer), such as {nearest!r}. Tasks: {tasks}"
        f". Representations and their layers: {representations}"
    )


def what_is_read(kind: str, classes: Sequence[str]) -> str:
    """By a probe of this kind, in words: a number, a circular value, or the first of its classes or labels."""
    if not classes:
        return "a number" if kind == "number" else f"a {kind} value"
    more = [] if len(classes) <= _SHOWN else ["..."]
    return f"{len(classes)} {'labels' if kind == 'multilabel' else kind}, {', '.join([*classes[:_SHOWN], *more])}"


def overview(what: str, keys: Collection[Key]) -> str:
    """Of `what` holds one a key, for a notebook."""
    tasks, representations = _parts_of(keys)
    head = f"<{what}: {len(keys)} by (task, representation, layer)>"
    return f"{head}\ntasks            {tasks}\nrepresentations  {representations}"


def _parts_of(keys: Collection[Key]) -> tuple[str, str]:
    """The tasks of `keys`, and their representations with layers, in words."""
    layers: dict[str, list[str]] = {}
    for name, layer in dict.fromkeys(one[1:] for one in keys):
        layers.setdefault(name, []).append(str(layer))
    tasks = ", ".join(dict.fromkeys(task for task, _, _ in keys))
    return tasks, "; ".join(f"{name} {', '.join(of)}" for name, of in layers.items())


@dataclass(frozen=True, repr=False)
class Probe:
    """A linear probe of one task, fitted on all images of its run at the strength that its folds chose."""

    kind: str
    """classes, multilabel, number or circular."""
    classes: tuple[str, ...]
    """Of the columns; two classes share one column, that of the second. () for numbers and circular values."""
    weights: np.ndarray
    """(D, C) float64, on the features as they are; (D, 2) of a circular value, for its cosine and sine."""
    intercepts: np.ndarray
    """(C,)"""
    mean: np.ndarray
    """(D,) of the features that it was fitted on."""
    period: float = 0.0
    """Of a circular value, in the task's unit."""

    def __repr__(self) -> str:
        return f"<Probe of {len(self.weights)} features: {what_is_read(self.kind, self.classes)}>"

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(n, C) of features (n, D); numbers: the predicted values; circular: cosine and sine."""
        if features.ndim != 2 or features.shape[1] != len(self.weights):
            raise UserError(f"features of shape {features.shape}; this probe takes (rows, {len(self.weights)})")
        return features.astype(np.float64) @ self.weights + self.intercepts

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n,) names of classes, (n, C) bool, (n,) numbers, or (n,) circular values from 0 to below the period, for
        features (n, D).
        """
        z = self.logits(features)
        if self.kind == "number":
            return z[:, 0]
        if self.kind == "circular":
            return circular.values_of(z, self.period)
        if self.kind == "multilabel":
            return z > 0
        return np.array(self.classes)[(z[:, 0] > 0).astype(int) if z.shape[1] == 1 else z.argmax(1)]

    def directions(self) -> np.ndarray:
        """(D, k) orthonormal: all that the probe reads. A constant added to all classes changes no prediction, so K
        classes have at most K - 1 directions. Without them a probe that is fitted again still reads nearly as much:
        to take the label out of features, use `probes.Eraser`.
        """
        w = self.weights
        if self.kind == "classes" and w.shape[1] > 1:
            w = w - w.mean(1, keepdims=True)
        axes, sizes, _ = np.linalg.svd(w, full_matrices=False)
        return axes[:, sizes > 1e-9 * max(sizes.max(initial=0), np.finfo(float).tiny)]


class Probes(dict[Key, Probe]):
    """Probes by key, made by `load`. A key that is not there raises UnknownKey, which lists those that are."""

    def __init__(self, probes: Mapping[Key, Probe], path: Path | str) -> None:
        super().__init__(probes)
        self._path = path

    def __repr__(self) -> str:
        return overview(f"Probes {Path(self._path).name}", self)

    def __missing__(self, key: object) -> Probe:
        raise unknown_key(key, self.keys(), self._path)


def save(probes: Mapping[Key, Probe], path: Path) -> Path:
    """Writes all probes, whole or not at all. Raises UserError when that fails."""
    tensors: dict[str, np.ndarray] = {}
    described = []
    for number, ((task, representation, layer), probe) in enumerate(probes.items()):
        for name in _ARRAYS:
            tensors[f"{number}.{name}"] = np.ascontiguousarray(getattr(probe, name), dtype=np.float32)
        period = [probe.period] if probe.kind == "circular" else []
        described.append([task, representation, layer, probe.kind, list(probe.classes), *period])
    with replaced(path, "choose another place with --out") as partial:
        # Not save_file, whose files nobody else may read.
        partial.write_bytes(as_bytes(tensors, {"schema": _SCHEMA, "probes": json.dumps(described)}))
    return path


def load(path: Path | str) -> Probes:
    """The probes that htc-probe wrote. Raises UserError for a file that is missing, damaged or something else."""
    with opened(path, _SCHEMA, "probes") as (file, about):
        found: dict[Key, Probe] = {}
        for number, (task, representation, layer, kind, classes, *period) in enumerate(json.loads(about["probes"])):
            arrays = [file.get_tensor(f"{number}.{name}").astype(np.float64) for name in _ARRAYS]
            found[task, representation, layer] = _checked(Probe(kind, tuple(classes), *arrays, *period))
        return Probes(found, path)


@contextlib.contextmanager
def opened(path: Path | str, schema: str, what: str) -> Iterator[tuple[Any, dict[str, str]]]:
    """The safetensors file and its metadata, with what may be wrong with it told as a UserError; `what` it holds."""
    try:
        with safe_open(str(path), "np") as file:
            about = file.metadata() or {}
            if about.get("schema") != schema:
                raise UserError(f"{path} holds no {what} (its schema is not {schema}); htc-probe writes them")
            yield file, about
    except FileNotFoundError:
        raise UserError(f"no {what} at {path}; make them with: htc-probe semantic detail") from None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} cannot be read ({error}); run htc-probe again") from error


def _checked(probe: Probe) -> Probe:
    kind, classes, weights, intercepts, mean, period = vars(probe).values()
    of_classes = 1 if len(classes) == 2 else len(classes)
    columns = {"classes": of_classes, "multilabel": len(classes), "number": 1, "circular": 2}[kind]
    if not weights.shape == (*mean.shape, *intercepts.shape) == (len(mean), columns):
        raise ValueError(f"weights of shape {weights.shape} for {len(classes)} classes and means of {mean.shape}")
    if (kind == "circular") != (period > 0):
        raise ValueError(f"a {kind} probe of period {period}")
    return probe
