"""Which questions of a run are probed, and on which images. Knows labels; not features, solvers or scores.

N images of the run, C labels of a multi-label task. A separate training run's images come first, see `together`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from htc_probe.extract.errors import UserError
from htc_probe.extract.store import NUMERIC, Run, Task
from htc_probe.extract.words import counted
from htc_probe.probes.inputs.labels import Labels

SUITES = ("semantic", "detail")


class ProbeTask(NamedTuple):
    """One task, ready to be folded."""

    task: Task
    labels: Labels
    """Of all N images: -1, NaN or 255 where it is not known or its class was dropped."""
    classes: tuple[str, ...]
    """The classes or labels that are left; () for numbers and circular values."""


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
            by_suite = {suite: [task.name for task in run.tasks if task.suite == suite] for suite in SUITES}
            listed = "; ".join(f"{suite}: {', '.join(of) or 'none'}" for suite, of in by_suite.items())
            raise UserError(f"{name!r} is neither a suite nor a task of {run.path.name}; it has {listed}")
        wanted |= found
    if not wanted:
        raise UserError(
            f"{run.path.name} has no task of {' or '.join(names)}; it has "
            + ", ".join(f"{task.name} ({task.suite})" for task in run.tasks)
        )
    return tuple(task for task in run.tasks if task.name in wanted)


def prepare(
    tasks: Sequence[Task], labels: Sequence[np.ndarray], groups: np.ndarray, enough: int, counted: np.ndarray
) -> Preparation:
    """The labels (N, ...) of every task with its rare classes dropped.

    A class, one side of a label, or all values of a number but its most common one need `enough` groups among the
    `counted` (N,) bool images, so that every training and held-out fold sees it.
    """
    ready: list[ProbeTask] = []
    warnings: list[str] = []
    for task, given in zip(tasks, labels, strict=True):
        made, notes = prepare_one(task, given, groups, enough, counted)
        warnings += notes
        if made is not None:
            ready.append(made)
    return Preparation(tuple(ready), tuple(warnings))


def prepare_one(
    task: Task, labels: np.ndarray, groups: np.ndarray, enough: int, counted: np.ndarray
) -> tuple[ProbeTask | None, list[str]]:
    """`prepare` for one task: its labels as stored and (N,) group numbers."""
    notes: list[str] = []

    def n_groups_of(chosen: np.ndarray) -> int:
        return len(np.unique(groups[chosen & counted]))

    if task.kind in NUMERIC:
        known = np.isfinite(labels)
        if task.kind == "circular":
            labels = labels % task.period % task.period  # twice, as -1e-20 % 360 is 360
        if (found := n_groups_of(known)) < enough:
            return None, [f"{task.name} is skipped: {found} groups with a value, needs {enough}"]
        values, counts = np.unique(labels[known & counted], return_counts=True)
        common = values[counts.argmax()]
        if (found := n_groups_of(known & (labels != common))) < enough:
            return None, [f"{task.name} is skipped: {found} groups with another value than {common:g}, needs {enough}"]
        notes += _left_out(task, ~known) + _turning(task, labels[known])
        y = np.where(known, labels, np.nan).astype(np.float64)
        return ProbeTask(task, Labels(task.kind, y, period=task.period), ()), notes
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
    classes = tuple(task.classes[c] for c in kept)
    if task.kind == "multilabel":
        y = labels[:, kept]
        nothing = np.asarray(~task.known(y).any(1))
        return ProbeTask(task, Labels("multilabel", y), classes), notes + _left_out(task, nothing)
    y = np.full(len(labels), -1)
    used = np.isin(labels, kept)
    y[used] = np.searchsorted(kept, labels[used])
    return ProbeTask(task, Labels("classes", y, len(kept)), classes), notes + _left_out(task, labels < 0)


def scorable(ready: Sequence[ProbeTask], groups: np.ndarray, scored: np.ndarray) -> Preparation:
    """The tasks that the `scored` (N,) bool images can score: two groups have a label (one of several: a positive), and
    a number varies.
    """
    fit: list[ProbeTask] = []
    warnings: list[str] = []
    for one in ready:
        kind, y = one.task.kind, one.labels.y[scored]
        labelled = y >= 0 if kind == "classes" else (y == 1).any(1) if kind == "multilabel" else np.isfinite(y)
        few = len(np.unique(groups[scored][labelled])) < 2
        if few or (kind in NUMERIC and np.ptp(y[labelled]) == 0):
            warnings.append(f"{one.task.name} is skipped: the images to score it on have no two groups that tell")
        else:
            fit.append(one)
    return Preparation(tuple(fit), tuple(warnings))


def _left_out(task: Task, unknown: np.ndarray) -> list[str]:
    count = int(unknown.sum())
    return [f"{task.name}: {count} of {counted(len(unknown), 'image')} have no label and are left out"] if count else []


class Together(NamedTuple):
    labels: list[np.ndarray]
    """(N, ...) of each task."""
    warnings: tuple[str, ...]
    """Which classes one of the runs alone has, one sentence a task."""


_TURNS = {
    360.0: re.compile(r"\bdeg(ree)?s?\b(?!\s*(c|celsius|f|fahrenheit|k|kelvin)\b)|°(?!\s*[cfk]\b)"),
    2 * np.pi: re.compile(r"\brad(ian)?s?\b"),
}
"""How long a whole turn is, by the units that say so. Temperatures have degrees too."""


def _turning(task: Task, values: np.ndarray) -> list[str]:
    """A warning of a number whose unit is that of angles, and which spans more than a sixth of a turn."""
    unit = task.unit.strip().lower()
    if task.kind != "number" or "/" in unit or " per " in unit:
        return []
    turn = next((turn for turn, words in _TURNS.items() if words.search(unit)), None)
    if turn is None or np.ptp(values) <= turn / 6 * (1 + 1e-9):
        return []
    return [
        f"{task.name}: a number in {task.unit} is read along a straight line; if it comes round, so that {turn:.4g} is "
        f'0 again, write kind = "circular" and period = {turn:.10g} in tasks.toml (half of it for a line without ends)'
    ]


def _described(task: Task) -> str:
    return f"{task.kind} {task.unit}".rstrip() + (f", period {task.period:g}" if task.period else "")


def together(train: Run, test: Run, tasks: Sequence[Task]) -> Together:
    """Labels of the images of both runs, `train`'s first, in the classes of `test`'s tasks; other classes are unknown.

    Raises UserError for a task that `train` lacks or that is of another kind, unit or period there, or whose
    classes are others.
    """
    found: list[np.ndarray] = []
    warnings: list[str] = []
    for task in tasks:
        other = next((one for one in train.tasks if one.name == task.name), None)
        if other is None or (other.kind, other.unit, other.period) != (task.kind, task.unit, task.period):
            wanted, there = (None if one is None else _described(one) for one in (task, other))
            raise UserError(
                f"task {task.name} ({wanted}) of {test.path.name} cannot be learned from {train.path.name}, which "
                f"has {there or 'no such task'}; name tasks that both have"
            )
        if alone := _alone(train, test, task, other):
            what = "classes" if task.kind == "classes" else "labels"
            if len(set(task.classes) & set(other.classes)) < (2 if task.kind == "classes" else 1):
                raise UserError(
                    f"the {what} of {task.name} differ: {alone}; spell them alike and extract again, or name other "
                    "tasks"
                )
            warnings.append(f"{task.name}: the {what} of the two runs differ, and these are left out: {alone}")
        theirs, ours = train.labels(task.name), test.labels(task.name)
        if task.kind == "classes":
            place = {name: number for number, name in enumerate(task.classes)}
            codes = np.array([place.get(name, -1) for name in other.classes] + [-1])  # -1 stays -1
            theirs = codes[theirs]
        elif task.kind == "multilabel":
            columns = {name: number for number, name in enumerate(other.classes)}
            unknown = task.unknown(len(theirs))[:, 0]
            own = [theirs[:, columns[name]] if name in columns else unknown for name in task.classes]
            theirs = np.stack(own, 1)
        found.append(np.concatenate([theirs, ours]))
    return Together(found, tuple(warnings))


def _alone(train: Run, test: Run, task: Task, other: Task) -> str:
    """The classes that one run alone has, in quotes as they are spelt; empty where both have the same."""
    told = []
    for run, own, theirs in ((test, task.classes, other.classes), (train, other.classes, task.classes)):
        if names := [repr(name) for name in own if name not in theirs]:
            told.append(f"{run.path.name} alone has {_short(names, 10)}")
    return " and ".join(told)


def _short(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
