"""The labels of one task, as probes take them. Knows arrays; not runs, features or probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from htc_probe.extract.store import NUMERIC, Kind


class Labels(NamedTuple):
    """A task's labels of all rows."""

    kind: Kind
    y: np.ndarray
    """(n,) int, -1 unknown; (n, C) uint8, 255 unknown; or (n,) float, NaN unknown, from 0 to below a period."""
    n_classes: int = 0
    """K, of a task of classes."""
    period: float = 0.0
    """Of a circular task."""

    def among(self, rows: np.ndarray | slice) -> Labels:
        """Of these rows alone: numbers, (n,) bool or a slice."""
        return self._replace(y=self.y[rows])


def by_solver(tasks: Sequence[Labels]) -> tuple[list[int], list[int], list[int]]:
    """Which tasks are logistic, which numbers, and which circular."""
    numbers, turning = ([i for i, task in enumerate(tasks) if task.kind == kind] for kind in ("number", "circular"))
    return [i for i, task in enumerate(tasks) if task.kind not in NUMERIC], numbers, turning
