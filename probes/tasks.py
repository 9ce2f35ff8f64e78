"""Which questions of a run are probed, and on which images. Knows labels; not features, solvers or scores.

N images of the run, n images whose label is known and used, C labels of a multi-label task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from extract.errors import UserError
from extract.store import Run, Task

SUITES = ("semantic", "detail")
UNKNOWN = 255  # of a multi-label entry


class ProbeTask(NamedTuple):
    """One task, ready to be folded."""

    task: Task
    rows: np.ndarray
    """(n,) the images used, as indices into the run, ascending."""
    y: np.ndarray
    """(n,) int index into `classes`; (n,) float; or (n, C) uint8 with 255 where unknown."""
    groups: np.ndarray
    """(n,) int, numbered over the whole run."""
    classes: tuple[str, ...]
    """The classes or labels that are left; () for numbers."""


class Preparation(NamedTuple):
    ready: tuple[ProbeTask, ...]
    warnings: tuple[str, ...]
    """What was dropped or skipped, and why, one sentence each."""


def group_codes(groups: Sequence[str]) -> np.ndarray:
    """(N,) int: the images' groups numbered in the order of their names."""
    return np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]


def select(run: Run, names: Sequence[str]) -> tuple[Task, ...]:
    """The tasks that `names` asks for: suites or single tasks, each once, in the run's order.

    Raises UserError for a name that is neither, listing what there is, and for a run without labels.
    """
    if not run.tasks:
        raise UserError(
            f"{run.path.name} holds no labels, so there is nothing to probe; extract data that has some "
            "(a folder needs metadata.csv and tasks.toml)"
        )
    wanted: set[str] = set()
    for name in names:
        found = {task.name for task in run.tasks if name in (task.suite, task.name)}
        if not found and name not in SUITES:
            listed = "; ".join(
                f"{suite}: {', '.join(task.name for task in run.tasks if task.suite == suite) or 'none'}"
                for suite in SUITES
            )
            raise UserError(f"{name!r} is neither a suite nor a task of {run.path.name}; it has {listed}")
        wanted |= found
    if not wanted:
        raise UserError(
            f"{run.path.name} has no task of {' or '.join(names)}; it has "
            + ", ".join(f"{task.name} ({task.suite})" for task in run.tasks)
        )
    return tuple(task for task in run.tasks if task.name in wanted)


def prepare(run: Run, tasks: Sequence[Task], folds: int) -> Preparation:
    """Labels of every task with its unknown images left out and its rare classes dropped.

    A class, or one side of a label, needs `2 * folds` groups, so that every training and held-out fold sees
    it.
    """
    groups = group_codes(run.groups())
    ready: list[ProbeTask] = []
    warnings: list[str] = []
    for task in tasks:
        made, notes = prepare_one(task, run.labels(task.name), groups, folds)
        warnings += notes
        if made is not None:
            ready.append(made)
    return Preparation(tuple(ready), tuple(warnings))


def prepare_one(
    task: Task, labels: np.ndarray, groups: np.ndarray, folds: int
) -> tuple[ProbeTask | None, list[str]]:
    """`prepare` for one task on plain arrays: its labels as stored and (N,) group numbers."""
    enough = 2 * folds
    notes: list[str] = []
    y: np.ndarray
    if task.kind == "number":
        rows = np.flatnonzero(np.isfinite(labels))
        y = labels[rows].astype(np.float64)
        n_groups = len(np.unique(groups[rows]))
        if n_groups < enough:
            return None, [f"{task.name} is skipped: {n_groups} groups with a value, needs {enough}"]
        if y.min() == y.max():
            return None, [f"{task.name} is skipped: every image has the value {y[0]:g}"]
        return ProbeTask(task, rows, y, groups[rows], ()), notes

    def n_groups_of(chosen: np.ndarray) -> int:
        return len(np.unique(groups[chosen]))

    numbers = range(len(task.classes))
    if task.kind == "classes":
        kept = [c for c in numbers if n_groups_of(labels == c) >= enough]
    else:
        kept = [c for c in numbers if min(n_groups_of(labels[:, c] == side) for side in (0, 1)) >= enough]
    what = "classes" if task.kind == "classes" else "labels"
    if dropped := [task.classes[c] for c in numbers if c not in kept]:
        notes.append(
            f"{task.name}: {len(dropped)} of {len(task.classes)} {what} dropped, "
            f"fewer than {enough} groups: {_short(dropped)}"
        )
    if len(kept) < (2 if task.kind == "classes" else 1):
        notes.append(f"{task.name} is skipped: {len(kept)} {what} left")
        return None, notes
    if task.kind == "classes":
        rows = np.flatnonzero(np.isin(labels, kept))
        y = np.searchsorted(kept, labels[rows])
    else:
        y = labels[:, kept]
        rows = np.flatnonzero((y != UNKNOWN).any(1))
        y = y[rows]
    return ProbeTask(task, rows, y, groups[rows], tuple(task.classes[c] for c in kept)), notes


def _short(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
