"""Whether intervals and tests keep their word: `python -m benchmarks.calibration`.

Data sets are drawn from a world whose truth is known and probed by `htc-probe`'s own protocol, one after the other.
Coverage is the share of their 95% intervals that hold the truth; false positives are the share of tests at 5% that
find a difference between two representations that are equally good. Knows worlds and tables; adds no statistics.

The designs:

* fixed: probes of a training set of their own (`--train-run`); the truth is what these very probes score on all images.
* 5 folds: the truth is what probes of so many images score in the mean, over training sets too.
* groups of 4: the same, twice as many rows, in groups of four that share most of what they are.
* uneven groups: the same, groups of 1 to 40 rows.
* half in one: the same, one group with half of the rows. No interval is right here: htc-probe warns.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
from rich.console import Console
from rich.table import Table

from htc_probe.extract import command
from htc_probe.probes.inputs import folds
from htc_probe.probes.inputs.labels import Labels
from htc_probe.probes.scores import controls, intervals, metrics
from htc_probe.probes.scores.metrics import Prediction, Scores
from htc_probe.probes.study import protocol

DESIGNS = ("fixed", "5 folds", "groups of 4", "uneven groups", "half in one")
NAMES = {
    "classes": ("top-1", "balanced accuracy", "V-information"),
    "multilabel": ("mAP", "V-information"),
    "number": ("R2", "V-information"),
    "circular": ("circular R2", "V-information"),
}
_FOLDS, _CLASSES, _LABELS, _PERIOD = 5, 4, 3, 360.0


@dataclass(frozen=True)
class Settings:
    sets: int = 300
    """Data sets of each design."""
    rows: int = 400
    """Images of a data set; twice as many in groups of 4."""
    features: int = 12
    population: int = 3000
    """Images on which each data set's probes show what they score in truth (fixed probes: seven times as many)."""
    designs: tuple[str, ...] = DESIGNS
    out: Path | None = None
    """Where every data set's numbers go (.npz), to be looked at again."""


class World(NamedTuple):
    """Labels are linear in the features, with noise."""

    classes: np.ndarray
    labels: np.ndarray
    number: np.ndarray
    angle: np.ndarray

    @classmethod
    def of(cls, features: int) -> World:
        rng = np.random.default_rng(7)
        return cls(*(rng.standard_normal((features, k)) / np.sqrt(features) for k in (_CLASSES, _LABELS, 1, 2)))


class Sample(NamedTuple):
    views: tuple[np.ndarray, np.ndarray]
    """Two representations (n, D) that are equally good: what the labels are made of, seen twice with noise."""
    tasks: list[Labels]
    groups: np.ndarray


class Record(NamedTuple):
    """What one data set said of one number."""

    estimate: float
    lower: float
    upper: float
    truth: float
    difference: float
    """Of the two representations: the estimate, and the p-value of none."""
    p: float


def main(settings: Settings) -> None:
    console = Console(width=120)
    kept: dict[str, np.ndarray] = {}
    for design in settings.designs:
        started = time.perf_counter()
        with joblib.Parallel(n_jobs=os.cpu_count()) as parallel:
            found = parallel(joblib.delayed(record)(settings, design, number) for number in range(settings.sets))
        seconds = time.perf_counter() - started
        by_name = {key: np.array([one[key] for one in found]) for key in found[0]}
        console.print(table(design, by_name, seconds))
        kept |= {f"{design}/{kind}/{name}": values for (kind, name), values in by_name.items()}
        if settings.out is not None:
            np.savez(settings.out, allow_pickle=False, **kept)


def draw(settings: Settings, rng: np.random.Generator, sizes: Sequence[int]) -> Sample:
    """A data set of groups of these sizes; rows of a group share 70% of the variance of all that is drawn."""
    world, groups = World.of(settings.features), np.repeat(np.arange(len(sizes)), sizes)
    share = 0.0 if max(sizes) == 1 else 0.7

    def normal(width: int) -> np.ndarray:
        own, common = rng.standard_normal((len(groups), width)), rng.standard_normal((len(sizes), width))
        return np.sqrt(1 - share) * own + np.sqrt(share) * common[groups]

    hidden = normal(settings.features)
    classes = (2 * hidden @ world.classes + normal(_CLASSES)).argmax(1)
    labels = 2 * hidden @ world.labels + normal(_LABELS) > np.array([0.0, 1.5, 2.5])
    number = (hidden @ world.number + 0.7 * normal(1))[:, 0]
    direction = hidden @ world.angle + 0.4 * normal(2)
    angle = np.degrees(np.arctan2(*direction.T)) % _PERIOD
    tasks = [
        Labels("classes", classes, _CLASSES),
        Labels("multilabel", labels.astype(np.uint8)),
        Labels("number", number),
        Labels("circular", angle, period=_PERIOD),
    ]
    first, second = (hidden + 0.5 * normal(settings.features) for _ in range(2))
    return Sample((first, second), tasks, groups)


def record(settings: Settings, design: str, number: int) -> dict[tuple[str, str], Record]:
    """One data set: draws it, probes it, compares what is told with what is so."""
    import torch

    torch.set_num_threads(1)
    rng = np.random.default_rng([number, *design.encode()])
    n = settings.rows
    sizes = {
        "groups of 4": [4] * (n // 2),
        "uneven groups": _uneven(rng, n),
        "half in one": [n // 2] + [1] * (n - n // 2),
    }.get(design, [1] * n)
    sample = draw(settings, rng, sizes)
    fixed = design == "fixed"
    many = settings.population * (7 if fixed else 1)
    everyone = draw(settings, rng, [1] * many if max(sizes) == 1 else [4] * (many // 4))
    fold = np.zeros(n, int) if fixed else folds.assign(sample.tasks, sample.groups, _FOLDS, 0)
    learned = draw(settings, rng, [1] * n) if fixed else None
    groups = intervals.resample_groups(int(sample.groups.max()) + 1, number)
    told = []
    for view in (0, 1):
        held_out, truths = _probed(sample, everyone, learned, view, fold)
        told.append([_scores(sample, task, of, fold, groups) for task, of in zip(sample.tasks, held_out, strict=True)])
        if view == 0:
            truth = truths
    found = {}
    for t, task in enumerate(sample.tasks):
        for name in NAMES[task.kind]:
            ours, theirs = (scores[t].of[name] for scores in told)
            groups_used = told[0][t].effective_groups
            if not fixed:
                bounds = metrics.RANGE.get(name, ())
                ours, theirs = (intervals.over_training_sets(one, _FOLDS, *bounds) for one in (ours, theirs))
            lower, upper = intervals.interval(ours.draws, groups_used)
            test = intervals.difference(ours, theirs, groups_used)
            found[task.kind, name] = Record(ours.estimate, lower, upper, truth[t][name], test.estimate, test.p)
    return found


def _uneven(rng: np.random.Generator, n: int) -> list[int]:
    """Sizes of groups that add up to n: most are small, a few have up to 40 rows."""
    sizes: list[int] = []
    while (left := n - sum(sizes)) > 0:
        sizes.append(min(left, int(np.ceil(min(40.0, rng.pareto(1.0) + 0.5)))))
    return sizes


def _probed(
    sample: Sample, everyone: Sample, learned: Sample | None, view: int, fold: np.ndarray
) -> tuple[list[list[tuple[Prediction, Prediction]]], list[dict[str, float]]]:
    """([task][fold] what is said of the held-out rows, for scores and for bits; what is so, of each task)."""
    parts = [sample, everyone] + ([] if learned is None else [learned])
    x = np.concatenate([part.views[view] for part in parts])
    tasks = [
        task._replace(y=np.concatenate([part.tasks[t].y for part in parts])) for t, task in enumerate(sample.tasks)
    ]
    shift = np.cumsum([0, *(part.groups.max() + 1 for part in parts)])
    groups = np.concatenate([part.groups + at for part, at in zip(parts, shift, strict=False)])
    n, many = len(fold), len(everyone.groups)
    held_out: list[list[tuple[Prediction, Prediction]]] = [[] for _ in tasks]
    truths: list[list[dict[str, float]]] = [[] for _ in tasks]
    for k in np.unique(fold):
        test, train = np.zeros(len(x), bool), np.zeros(len(x), bool)
        test[:n], test[n : n + many] = fold == k, True
        train[:n], train[n + many :] = fold != k, True
        size = int((fold == k).sum())
        for t, one in enumerate(protocol.hold_out(x, tasks, groups, train, test)):
            ours, all_of_them = (
                tuple(metrics.take(said, rows) for said in (one.prediction, one.coded))
                for rows in (np.arange(size), np.arange(size, size + many))
            )
            held_out[t].append(ours)  # type: ignore[arg-type]
            truths[t].append(_truth(everyone.tasks[t], all_of_them, size))
    return held_out, [{name: float(np.mean([one[name] for one in of])) for name in of[0]} for of in truths]


def _truth(task: Labels, said: Sequence[Prediction], size: int) -> dict[str, float]:
    """mAP is that of as many images as are ranked together."""
    whole = np.zeros(len(task.y), int)
    floor = controls.floor(task.kind, task.y, np.arange(len(task.y)) % 2, task.n_classes, task.period)
    ranked = np.arange(len(task.y)) // size if task.kind == "multilabel" else whole
    scores = metrics.evaluate(task.kind, task.y, said[0], ranked, floor)
    bits = (metrics.evaluate(task.kind, task.y, one, whole)["cross-entropy"] for one in (floor, said[1]))
    return scores | {"V-information": float(np.subtract(*bits))}


def _scores(
    sample: Sample, task: Labels, held_out: Sequence[tuple[Prediction, Prediction]], fold: np.ndarray, draws: np.ndarray
) -> Scores:
    halves = fold if fold.any() else np.arange(len(fold)) % 2
    floor = controls.floor(task.kind, task.y, halves, task.n_classes, task.period)
    scores, bits = (
        metrics.score(
            task.kind, task.y, _joined([one[which] for one in held_out], fold), floor, fold, sample.groups, draws
        )
        for which in (0, 1)
    )
    return scores._replace(of=scores.of | {"V-information": bits.of["V-information"]})


def _joined(parts: Sequence[Prediction], fold: np.ndarray) -> Prediction:
    order = np.argsort(np.argsort(fold, kind="stable"))
    if isinstance(parts[0], np.ndarray):
        return np.concatenate([np.asarray(part) for part in parts])[order]
    fields = [np.concatenate([part[at] for part in parts])[order] for at in (0, 1)]
    return type(parts[0])(*fields, *parts[0][2:])  # type: ignore[arg-type, call-arg]


def table(design: str, found: dict[tuple[str, str], np.ndarray], seconds: float) -> Table:
    sets = len(next(iter(found.values())))
    made = Table(title=f"{design}: {sets} data sets, {seconds:.0f} s", title_justify="left")
    for name in ("kind", "number", "truth", "coverage", "too low", "too high", "false positives"):
        made.add_column(name, justify="left" if name in ("kind", "number") else "right")
    for (kind, name), values in found.items():
        _, lower, upper, truth, _, p = values.T
        so = truth if design == "fixed" else np.full(sets, truth.mean())
        made.add_row(
            kind,
            name,
            f"{so.mean():.3f}",
            f"{((lower <= so) & (so <= upper)).mean():.3f}",
            f"{(upper < so).mean():.3f}",
            f"{(lower > so).mean():.3f}",
            f"{(p < 0.05).mean():.3f}",
        )
    return made


if __name__ == "__main__":
    sys.exit(command.main("python -m benchmarks.calibration", Settings, main, None, interrupted="nothing was kept"))
