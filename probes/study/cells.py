"""The work of a probing, cut into cells that can be computed anywhere and kept: one representation in one fold, a
reader that is not linear there, or its online code. Knows arrays and a folder; not runs, scores or tables.

A finished cell is kept under a digest of all that it was computed from, so an interrupted command, or the same one
with another task or representation, computes only what is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from htc_probe.extract.files import replaced
from htc_probe.extract.store import NUMERIC
from htc_probe.probes.inputs.labels import Labels
from htc_probe.probes.scores.metrics import Gaussian, Prediction, VonMises
from htc_probe.probes.solvers import survey
from htc_probe.probes.study import ceiling, codelength, protocol, streamed
from htc_probe.probes.study.ceiling import Reader
from htc_probe.probes.study.codelength import Codelength
from htc_probe.probes.study.protocol import HeldOut

VERSION = 2  # of what a cell computes and of its file


class Fold(NamedTuple):
    """Probes of all tasks, trained on `train` and used on `test`, (N,) bool each."""

    train: np.ndarray
    test: np.ndarray

    def compute(
        self, x_ND: np.ndarray, tasks: Sequence[Labels], groups: np.ndarray, settings: protocol.Settings
    ) -> list[HeldOut]:
        return protocol.hold_out(x_ND, tasks, groups, self.train, self.test, settings)

    def pack(self, found: Sequence[HeldOut]) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for number, one in enumerate(found):
            # Of numbers and angles both are one.
            if isinstance(one.prediction, tuple):
                arrays[f"p{number}"] = np.stack(one.prediction[:2])
            else:
                arrays |= {f"p{number}": one.prediction, f"q{number}": np.asarray(one.coded)}
            gap = np.nan if one.gap is None else one.gap
            arrays[f"c{number}"] = np.array([one.strength, one.coded_strength, one.at_edge, gap])
        return arrays

    def unpack(self, arrays: dict[str, np.ndarray], tasks: Sequence[Labels]) -> list[HeldOut]:
        found = []
        for number, task in enumerate(tasks):
            strength, coded_strength, at_edge, gap = arrays[f"c{number}"].tolist()
            prediction = _prediction(task, arrays[f"p{number}"])
            coded = prediction if task.kind in NUMERIC else arrays[f"q{number}"]
            gap = None if np.isnan(gap) else gap
            found.append(HeldOut(prediction, coded, strength, coded_strength, bool(at_edge), gap))
        return found


def _prediction(task: Labels, values: np.ndarray) -> Prediction:
    if task.kind == "number":
        return Gaussian(*values)
    return VonMises(values[0], values[1], task.period) if task.kind == "circular" else values


class Ceiling(NamedTuple):
    """Readers with a hidden layer, on top of the linear probes of a fold: `train` and `test` are its rows."""

    train: np.ndarray
    test: np.ndarray
    strengths: np.ndarray
    """Of the linear probes, by task."""

    def compute(
        self, x_ND: np.ndarray, tasks: Sequence[Labels], groups: np.ndarray, settings: protocol.Settings
    ) -> list[Reader]:
        return ceiling.hold_out(x_ND, tasks, groups, self.train, self.test, self.strengths.tolist(), settings)

    def pack(self, found: Sequence[Reader]) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for number, one in enumerate(found):
            arrays[f"c{number}"] = np.array([one.epochs, one.decay])
            if one.prediction is not None:
                said = one.prediction
                arrays[f"p{number}"] = np.stack(said[:2]) if isinstance(said, tuple) else said
        return arrays

    def unpack(self, arrays: dict[str, np.ndarray], tasks: Sequence[Labels]) -> list[Reader]:
        found = []
        for number, task in enumerate(tasks):
            epochs, decay = arrays[f"c{number}"].tolist()
            said = _prediction(task, arrays[f"p{number}"]) if epochs else None
            found.append(Reader(said, int(epochs), decay))
        return found


class StreamedFold(Fold):
    """The same for features that are read as they are needed, within a budget in bytes."""

    def compute(  # type: ignore[override]
        self, features: survey.Features, tasks: Sequence[Labels], groups: np.ndarray, settings: protocol.Settings
    ) -> list[HeldOut]:
        return streamed.hold_out(features, tasks, groups, self.train, self.test, settings, settings.budget)


class Code(NamedTuple):
    """The online code of all tasks over the rows `used`, (N,) bool."""

    used: np.ndarray

    def compute(
        self, x_ND: np.ndarray, tasks: Sequence[Labels], groups: np.ndarray, settings: protocol.Settings
    ) -> list[Codelength]:
        x_nD, groups_n = x_ND[self.used], groups[self.used]
        labels = [task.among(self.used) for task in tasks]
        predict = codelength.probes_of(x_nD, labels, groups_n, device=settings.device)
        return codelength.online(labels, groups_n, predict, settings.seed)

    def pack(self, found: Sequence[Codelength]) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for number, one in enumerate(found):
            arrays |= {f"r{number}": one.row_bits, f"u{number}": one.row_uniform}
            arrays |= {f"t{number}": np.array([one.bits, one.uniform]), f"c{number}": np.array(one.choices, dtype=int)}
        return arrays

    def unpack(self, arrays: dict[str, np.ndarray], tasks: Sequence[Labels]) -> list[Codelength]:
        found = []
        for number in range(len(tasks)):
            bits, uniform = arrays[f"t{number}"].tolist()
            choices = tuple(arrays[f"c{number}"].tolist())
            found.append(Codelength(bits, uniform, arrays[f"r{number}"], arrays[f"u{number}"], choices))
        return found


Cell = Fold | Code | Ceiling


class Kept:
    """A folder of finished cells."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(
        self, cell: Cell, features: str, tasks: Sequence[Labels], groups: np.ndarray, settings: protocol.Settings
    ) -> Path:
        """Where the cell is kept; `features` says where its array comes from, which is cheaper than its digest."""
        digest = hashlib.blake2b(digest_size=16)
        said = (VERSION, type(cell).__name__, features, astuple(settings), [t[:1] + t[2:] for t in tasks])
        digest.update(repr(said).encode())
        for array in (*cell, groups, *(task.y for task in tasks)):
            digest.update(np.ascontiguousarray(array).tobytes())
        return self.folder / f"{digest.hexdigest()}.npz"

    def read(self, path: Path, cell: Cell, tasks: Sequence[Labels]) -> list[Any] | None:
        """None where the cell is not kept, or its file is damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cell.unpack(dict(arrays), tasks)
        except Exception:  # damage has many names: numpy's, those of zip archives, of missing arrays
            return None

    def write(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        """A cell that cannot be kept costs time when the command is interrupted, and nothing else."""
        with contextlib.suppress(OSError), replaced(path) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
