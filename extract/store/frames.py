"""Labels as columns of a pandas frame: words, missing where unknown. Knows pandas and tasks; not files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from htc_probe.extract.store.schema import NUMERIC, UNKNOWN, Task


def columns_of(task: Task, labels: np.ndarray, called: str = "") -> dict[str, Any]:
    """The columns of labels as a run stores them, by name: `TASK`, a categorical of its classes or floats in its unit;
    of several labels an image `TASK: LABEL` each, a nullable boolean. `called` is added to the names.
    """
    if task.kind in NUMERIC:
        return {task.name + called: labels}
    if task.kind == "classes":
        return {task.name + called: pd.Categorical.from_codes(labels, list(task.classes))}
    return {
        name + called: pd.arrays.BooleanArray(column == 1, column == UNKNOWN)
        for name, column in zip(label_names(task), labels.T, strict=True)
    }


def label_names(task: Task) -> list[str]:
    """Of the columns of a task with several labels an image."""
    return [f"{task.name}: {name}" for name in task.classes]
