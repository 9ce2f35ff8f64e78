"""Streamed probes measured on a slice, extrapolated to a million rows: `python -m benchmarks.stream`.

Knows clocks, a temporary file and random features; not runs. The slice must hold more training rows than the sample
that Hessians come from (8 rows a feature), so that a step costs what it costs at full size, and five tiles. Seconds
a row come from the times at which tiles are asked for, once reading waits for computing; what is left of the total does
not grow with the rows. How many passes a strength takes is that of the slice.
"""

import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.fft import dct

from htc_probe.extract import command
from htc_probe.probes.solvers import survey as stream
from htc_probe.probes.solvers.lbfgs import StreamedPath
from htc_probe.probes.solvers.problems import Target

CLASSES = (2, 2, 4, 5, 8, 10, 20, 40, 60, 100)


@dataclass(frozen=True)
class Settings:
    rows: int = 81_920
    """Of the slice."""
    width: int = 4096
    full: int = 1_000_000
    """Rows to extrapolate to."""
    strengths: tuple[float, ...] = (0.1, 0.01)
    """Strong to weak; of the logistic probes."""
    numbers: int = 4
    """Targets of ridge, at 19 strengths."""
    folds: int = 4
    """One of them is held out by the logistic probes."""
    budget: float = 4.0
    """GB."""
    threads: int = 2
    device: str = "cpu"


class Clocked:
    """Features that note when their tiles are asked for."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.dataset, self.shape = dataset, dataset.shape
        self.asked: list[tuple[float, int]] = []

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.asked.append((time.perf_counter(), rows.start))
        return self.dataset[rows]

    def seconds_a_row(self) -> float:
        """Over all passes since the last call, the first three tiles of each left out: they are read ahead."""
        seconds = rows = 0.0
        at = [place for place, (_, first) in enumerate(self.asked) if first == 0]
        for begin, end in zip(at, [*at[1:], len(self.asked)], strict=True):
            tiles = self.asked[begin + 3 : end]
            seconds += tiles[-1][0] - tiles[0][0]
            rows += tiles[-1][1] - tiles[0][1]
        self.asked.clear()
        return seconds / rows


class Part(NamedTuple):
    name: str
    passes: int
    seconds: float
    """Of the slice, in all."""
    seconds_a_row: float

    def at(self, rows: int, slice_rows: int) -> float:
        """Seconds with that many rows."""
        return self.seconds + self.passes * self.seconds_a_row * (rows - slice_rows)


def write(path: Path, settings: Settings) -> list[Target]:
    """Features with the spectrum i^-1 and heavy-tailed rows in float16, and classes that depend on them."""
    rng = np.random.default_rng(0)
    scale_D = np.arange(1, settings.width + 1, dtype=np.float32) ** -0.5
    # With a cosine transform, a rotation that is cheap.
    signs_D = rng.choice(np.array([-1, 1], dtype=np.float32), settings.width)
    weights = [rng.standard_normal((settings.width, k), dtype=np.float32) * scale_D[:, None] for k in CLASSES]
    labels: list[list[np.ndarray]] = [[] for _ in CLASSES]
    with h5py.File(path, "w") as file:
        stored = file.create_dataset("x", (settings.rows, settings.width), "float16", chunks=(64, settings.width))
        for first in range(0, settings.rows, 4096):
            x = rng.standard_normal((min(4096, settings.rows - first), settings.width), dtype=np.float32)
            x *= np.exp(0.3 * rng.standard_normal((len(x), 1), dtype=np.float32)) * scale_D
            for of_task, weight in zip(labels, weights, strict=True):
                of_task.append((3 * x @ weight + rng.gumbel(size=(len(x), weight.shape[1]))).argmax(1))
            x = dct(x * signs_D, norm="ortho")
            stored[first : first + len(x)] = x
    return [Target(np.concatenate(y), k) for y, k in zip(labels, CLASSES, strict=True)]


def peak() -> float:
    """MB that the process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    rng = np.random.default_rng(1)
    folds_n = rng.permutation(np.arange(settings.rows) % settings.folds)
    numbers_nT = rng.standard_normal((settings.rows, settings.numbers))
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        targets = write(Path(folder) / "slice.h5", settings)
        before = peak()
        with h5py.File(Path(folder) / "slice.h5") as file:
            features = Clocked(file["x"])
            began = time.perf_counter()
            survey = stream.survey(
                features, folds_n, numbers_nT, targets, budget=int(settings.budget * 2**30), device=settings.device
            )
            parts.append(Part("survey, ridge", 1, time.perf_counter() - began, features.seconds_a_row()))
            path = StreamedPath(features, survey, targets, folds_n > 0)
            for strength in settings.strengths:
                began, passes = time.perf_counter(), path.passes
                fit = path.advance(strength)
                seconds = time.perf_counter() - began
                name = f"logistic, {strength:g} (gap {fit.gap.max():.0e})"
                parts.append(Part(name, path.passes - passes, seconds, features.seconds_a_row()))
    table = Table(title=f"{settings.width} features, {fit.weights.shape[1]} columns, {survey.plan}")
    for column in ("", "passes", f"{settings.rows:,} rows, s", "us a row", "MB/s read", f"{settings.full:,} rows, s"):
        table.add_column(column)
    for part in parts:
        table.add_row(
            part.name,
            str(part.passes),
            f"{part.seconds:.1f}",
            f"{part.seconds_a_row * 1e6:.0f}",
            f"{2 * settings.width / part.seconds_a_row / 2**20:.0f}",
            f"{part.at(settings.full, settings.rows):.0f}",
        )
    console = Console(width=120)
    console.print(table)
    labels = settings.full * (8 * settings.numbers + 8 * len(targets) + 8) / 2**20
    console.print(
        f"peak memory {peak():.0f} MB, {before:.0f} MB before the first pass; budget {settings.budget * 1024:.0f} MB. "
        f"{settings.full:,} rows add {labels:.0f} MB of labels"
    )


if __name__ == "__main__":
    sys.exit(command.main("python -m benchmarks.stream", Settings, main, None, interrupted="nothing was kept"))
