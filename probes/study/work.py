"""The work of a probing, cut into cells that can be computed anywhere and kept: one representation in one fold, a
reader that is not linear there, or its online code. Knows arrays and a folder; not runs, scores or tables.

A finished cell is kept under a digest of all that it was computed from, so an interrupted command, or the same one
with another task or representation, computes only what is missing. Legend: N rows.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
from threadpoolctl import threadpool_limits

from htc_probe.extract.files import replaced
from htc_probe.extract.store import NUMERIC
from htc_probe.probes.inputs.labels import Labels
from htc_probe.probes.inputs.representations import Representation
from htc_probe.probes.scores.metrics import stacked, unstacked
from htc_probe.probes.study import ceiling, codelength, protocol, streamed
from htc_probe.probes.study.ceiling import Reader
from htc_probe.probes.study.codelength import Codelength
from htc_probe.probes.study.protocol import HeldOut, Settings

_VERSION = 2  # of what a cell computes and of its file


# Cells are one where what they are of is one: their arrays follow from that, and are not compared.


class _Cell:
    """An answer a task, which is kept as arrays by a letter each."""

    def arrays_of(self, answer: Any) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def answer_of(self, arrays: dict[str, np.ndarray], task: Labels) -> Any:
        raise NotImplementedError

    def pack(self, answers: Sequence[Any]) -> dict[str, np.ndarray]:
        """As letter and number of the task."""
        kept = [(number, self.arrays_of(answer)) for number, answer in enumerate(answers)]
        return {f"{letter}{number}": array for number, arrays in kept for letter, array in arrays.items()}

    def unpack(self, arrays: Mapping[str, np.ndarray], tasks: Sequence[Labels]) -> list[Any]:
        by_task: list[dict[str, np.ndarray]] = [{} for _ in tasks]
        for name, array in arrays.items():
            by_task[int(name[1:])][name[0]] = array
        return list(map(self.answer_of, by_task, tasks))


@dataclass(frozen=True)
class _Split(_Cell):
    """What is learned from the rows `train` and used on `test`."""

    representation: Representation
    number: int
    """Of the fold that is held out."""
    train: np.ndarray = field(compare=False, repr=False)
    """(N,) bool"""
    test: np.ndarray = field(compare=False, repr=False)
    """(N,) bool"""

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What it is computed from, beside features and labels."""
        return self.train, self.test


@dataclass(frozen=True)
class Fold(_Split):
    """Probes of all tasks."""

    share: float = 1.0
    """Of the images to be learned from that are."""

    def compute(self, bench: Bench, tasks: Sequence[Labels]) -> list[HeldOut]:
        return protocol.hold_out(bench.x_ND, tasks, bench.groups, self.train, self.test, bench.settings)

    def arrays_of(self, answer: HeldOut) -> dict[str, np.ndarray]:
        gap = np.nan if answer.gap is None else answer.gap
        chosen = np.array([answer.strength, answer.coded_strength, answer.at_edge, gap])
        arrays = {"p": stacked(answer.prediction), "c": chosen}
        if not isinstance(answer.prediction, tuple):  # of numbers and angles both are one
            arrays["q"] = np.asarray(answer.coded)
        return arrays

    def answer_of(self, arrays: dict[str, np.ndarray], task: Labels) -> HeldOut:
        strength, coded_strength, at_edge, gap = arrays["c"].tolist()
        prediction = unstacked(task.kind, arrays["p"], task.period)
        coded = prediction if task.kind in NUMERIC else arrays["q"]
        gap = None if np.isnan(gap) else gap
        return HeldOut(prediction, coded, strength, coded_strength, bool(at_edge), gap)


@dataclass(frozen=True)
class StreamedFold(Fold):
    """The same for features that are read as they are needed, within a budget in bytes."""

    def compute(self, bench: Bench, tasks: Sequence[Labels]) -> list[HeldOut]:
        return streamed.hold_out(bench.x_ND, tasks, bench.groups, self.train, self.test, bench.settings)


@dataclass(frozen=True)
class Ceiling(_Split):
    """Readers with a hidden layer, on top of the linear probes of a fold."""

    strengths: np.ndarray = field(compare=False, repr=False, default_factory=lambda: np.zeros(0))
    """Of the linear probes, by task: known when these are fitted."""

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return *super().arrays, self.strengths

    def compute(self, bench: Bench, tasks: Sequence[Labels]) -> list[Reader]:
        rows, strengths = (self.train, self.test), self.strengths.tolist()
        return ceiling.hold_out(bench.x_ND, tasks, bench.groups, *rows, strengths, bench.settings)

    def arrays_of(self, answer: Reader) -> dict[str, np.ndarray]:
        prediction = {} if answer.prediction is None else {"p": stacked(answer.prediction)}
        return {"c": np.array([answer.epochs, answer.decay])} | prediction

    def answer_of(self, arrays: dict[str, np.ndarray], task: Labels) -> Reader:
        epochs, decay = arrays["c"].tolist()
        prediction = unstacked(task.kind, arrays["p"], task.period) if epochs else None
        return Reader(prediction, int(epochs), decay)


@dataclass(frozen=True)
class Code(_Cell):
    """The online code of all tasks over the rows `used`."""

    representation: Representation
    used: np.ndarray = field(compare=False, repr=False)
    """(N,) bool"""

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return (self.used,)

    def compute(self, bench: Bench, tasks: Sequence[Labels]) -> list[Codelength]:
        x_nD, groups_n = bench.x_ND[self.used], bench.groups[self.used]
        labels = [task.among(self.used) for task in tasks]
        predict = codelength.probes_of(x_nD, labels, groups_n, device=bench.settings.device)
        return codelength.online(labels, groups_n, predict, bench.settings.seed)

    def arrays_of(self, answer: Codelength) -> dict[str, np.ndarray]:
        return {"r": answer.row_bits, "u": answer.row_uniform, "c": np.array(answer.choices, dtype=int)}

    def answer_of(self, arrays: dict[str, np.ndarray], task: Labels) -> Codelength:
        return Codelength(arrays["r"], arrays["u"], tuple(arrays["c"].tolist()))


Cell = Fold | Ceiling | Code


class Kept:
    """A folder of finished cells."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, cell: Cell, bench: Bench, tasks: Sequence[Labels]) -> Path:
        """Where the cell is kept."""
        fits, kinds = bench.settings.of_fits, [task[:1] + task[2:] for task in tasks]
        about = (_VERSION, type(cell).__name__, bench.features, fits, kinds)
        digest = hashlib.blake2b(repr(about).encode(), digest_size=16)
        for array in (*cell.arrays, bench.groups, *(task.y for task in tasks)):
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


# ---- computed here or in other processes


class Job(NamedTuple):
    """A cell, and the labels that it is asked for."""

    cell: Cell
    labels: Sequence[Labels]


class Bench(NamedTuple):
    """What the cells of one representation share."""

    x_ND: Any
    """Features as an array, or as rows to be read."""
    groups: np.ndarray
    """(N,)"""
    settings: Settings
    kept: Kept | None
    features: str
    """Where they come from, which is cheaper to tell apart than they are."""

    def answers(self, jobs: Sequence[Job], processes: int) -> Iterator[list[Any]]:
        """Of every job in order: one by one with all threads for 0 processes; else side by side, each with one thread,
        so that sums do not depend on the cores.
        """
        if processes == 0:
            yield from map(self._answer, jobs)
            return
        parallel = joblib.Parallel(n_jobs=processes, return_as="generator")
        yield from parallel(joblib.delayed(self._with_one_thread)(job) for job in jobs)

    def _answer(self, job: Job) -> list[Any]:
        cell, labels = job
        if self.kept is None:
            return list(cell.compute(self, labels))
        path = self.kept.path(cell, self, labels)
        answers: Any = self.kept.read(path, cell, labels)
        if answers is None:
            answers = cell.compute(self, labels)
            self.kept.write(path, cell.pack(answers))
        return list(answers)

    def _with_one_thread(self, job: Job) -> list[Any]:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with threadpool_limits(1):
                return self._answer(job)
        finally:
            torch.set_num_threads(before)
