"""Labels of a whole split as one array a task, with the rule that made them written beside. Knows values; no files.

Unknown is a mask (-1, 255, NaN), never a class and never 0. A class that fewer than `_RARE` images have is unknown
rather than a class that no fold could learn; the task's note says how many there were.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from htc_probe.extract.store import UNKNOWN, Kind, Suite, Task, is_labelled

_RARE = 10  # images; below it, five folds cannot all have two of the class
_SHOWN = 8  # classes of a `summary`


class Labels(NamedTuple):
    """A task and its labels, one an image, in the form that `extract.store.Task` tells."""

    task: Task
    values: np.ndarray
    """(n,) int32 classes, (n,) float64 numbers, or (n, C) uint8 multi-labels."""


def class_labels(name: str, suite: Suite, values: Sequence[str | None], *, note: str = "") -> Labels | None:
    """One class an image, None where unknown. None when fewer than two classes are left."""
    classes, note = _frequent(Counter(value for value in values if value is not None), note, "unknown")
    if len(classes) < 2:
        return None
    index: dict[str | None, int] = {value: i for i, value in enumerate(classes)}
    array = np.array([index.get(value, -1) for value in values], np.int32)
    return Labels(Task(name, suite, "classes", tuple(classes), note=note), array)


def multi_labels(
    name: str,
    suite: Suite,
    present: Sequence[Collection[str]],
    *,
    absent: Sequence[Collection[str]] | None = None,
    note: str = "",
) -> Labels | None:
    """Several classes an image. A class is 1 where `present`, 0 where `absent` (None: wherever it is not present),
    and unknown elsewhere. None when no class is left.
    """
    classes = sorted({value for row in present for value in row})
    index = {value: i for i, value in enumerate(classes)}
    table = np.full((len(present), len(classes)), 0 if absent is None else UNKNOWN, np.uint8)
    for mark, rows in ((0, absent or ()), (1, present)):
        for i, row in enumerate(rows):
            table[i, [index[value] for value in row if value in index]] = mark
    return table_labels(name, suite, classes, table, note=note)


def table_labels(
    name: str, suite: Suite, classes: Sequence[str], values: np.ndarray, *, note: str = ""
) -> Labels | None:
    """`multi_labels` from a table (n, C) of 0, 1 and 255 over `classes` in any order. None when no class is left."""
    kept, note = _frequent(Counter(dict(zip(classes, (values == 1).sum(0).tolist(), strict=True))), note, "left out")
    if not kept:
        return None
    columns = [classes.index(value) for value in kept]
    return Labels(Task(name, suite, "multilabel", tuple(kept), note=note), values[:, columns].astype(np.uint8))


def number_labels(
    name: str, suite: Suite, values: Sequence[float | None], unit: str, *, note: str = "", period: float = 0.0
) -> Labels | None:
    """One number an image in `unit`, None or NaN where unknown; with a period, a circular value. None when all are
    unknown or equal.
    """
    array = np.array([math.nan if value is None else value for value in values], np.float64)
    if period:
        array = array % period % period  # twice, as -1e-20 % 360 is 360
    if len(set(array[~np.isnan(array)])) < 2:
        return None
    kind: Kind = "circular" if period else "number"
    return Labels(Task(name, suite, kind, unit=unit, note=note, period=period), array)


def summary(task: Task, values: np.ndarray) -> str:
    """How often each class is there, rare ones first, as a label that was mistyped once is; of numbers their range.

    `values` are a task's labels in the form of `Labels`.
    """
    if task.kind in ("classes", "multilabel"):
        rows = values == np.arange(len(task.classes))[:, None] if task.kind == "classes" else values.T == 1
        counts = sorted(zip(rows.sum(1).tolist(), task.classes, strict=True))
        unknown = np.sum(~is_labelled(task.kind, values))
        shown = counts if len(counts) <= _SHOWN + 2 else counts[:_SHOWN]
        words = ", ".join(f"{name} {count}" for count, name in shown)
        if len(shown) < len(counts):
            words += f", and {len(counts) - len(shown)} more of up to {counts[-1][0]}"
    else:
        known = values[~np.isnan(values)]
        unknown = len(values) - len(known)
        words = f"{known.min():g} to {known.max():g} {task.unit}".rstrip() if len(known) else "none known"
    return words + (f"; {unknown} unknown" if unknown else "")


def _frequent(counts: Counter[str], note: str, fate: str) -> tuple[list[str], str]:
    """The classes that enough images have, sorted, and `note` with the fate of the others."""
    kept = sorted(value for value, count in counts.items() if count >= _RARE)
    dropped = len(counts) - len(kept)
    rule = f"{dropped} of {len(counts)} classes with fewer than {_RARE} images are {fate}" if dropped else ""
    return kept, "; ".join(part for part in (note, rule) if part)
