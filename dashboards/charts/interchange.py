"""Charts of images mixed of the anchors of one and the patches of another: which source is read.

Letters in names: K tasks; a last axis of 3 is an estimate with its interval.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from htc_probe.analysis.causes.following import Row, rows
from htc_probe.dashboards import figures
from htc_probe.dashboards.charts.source import Nothing, source
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import NUMERIC


def follow(run: Path | str) -> go.Figure:
    """Which source is read, task by task, by answers and by probes."""
    of = source(run)
    interchange = of.analysed(of.sections.interchange, "interchange")
    table, share_by, chance_by = Table(rows(interchange)), {}, {}
    for readout in table.readouts:
        found = [table.find(task, readout) for task in table.tasks.values()]
        unread = np.full((2, 3), np.nan)
        share_by[f"read by {readout}s"] = np.array([unread if row is None else row.whom[:2] for row in found])
        chance_by[f"read by {readout}s"] = np.array([np.nan if row is None else row.chance for row in found])
    n = int((interchange.partner >= 0).sum())
    return figures.follow_dots(list(table.tasks), share_by, chance_by, n=n)


def two_by_two(run: Path | str, *, task: str, readout: str, differ: str = "all", only_right: bool = False) -> go.Figure:
    """One task closely, as an `answer` or a `probe` reads it, of unmixed and of mixed images.

    task: as the page names it. differ: in which label alone the two images differ, `all` is as much as possible.
    only_right: where both are read right unmixed.
    """
    of = source(run)
    table = Table(rows(of.analysed(of.sections.interchange, "interchange")))
    if task not in table.tasks:
        raise UserError(f"{of.path.name} has no interchange of {task!r}; expected one of {', '.join(table.tasks)}")
    asked = table.tasks[task]
    mixed, own = (
        table.find(asked, readout, factor=differ, mix=mix, only_right=only_right) for mix in ("swapped", "unmixed")
    )
    name, words = asked.name or f"mean, {asked.suite}", differ_words(differ)
    if mixed is None or own is None or not mixed.cases:
        raise Nothing(f"No {readout} reads {asked.name or asked.suite} in mixtures whose sources differ {words}.")
    return figures.two_by_two(
        own.whom[0],
        mixed.whom[:2],
        readout=f"Read by {readout}s",
        what=f"{name}, sources differ {words}",
        measure="weight" if asked.is_number else "reads",
        chance=mixed.chance,
        cases=mixed.cases,
        couples=mixed.couples,
    )


def differ_words(factor: str) -> str:
    """In what two images differ, in words."""
    return "in as much as possible" if factor == "all" else f"in {factor} only"


class Task(NamedTuple):
    """What answers and probes are asked of mixed images."""

    suite: str
    name: str
    """ "" for the mean of its suite."""
    kind: str

    @property
    def is_number(self) -> bool:
        return self.kind in NUMERIC

    @property
    def words(self) -> str:
        return f"{self.name} (weight)" if self.is_number else self.name or f"mean, {self.suite}"


class Table:
    """The rows of the interchange, found by what they are of."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.readouts = [readout for readout in ("answer", "probe") if any(row.readout == readout for row in rows)]
        of_all = [Task(row.suite, row.task, row.kind) for row in rows if row.factor == "all"]
        of_all.sort(key=lambda task: (task.suite != "semantic", task.suite, task.kind == "mean"))
        self.tasks = {task.words: task for task in of_all}
        """By what they are called; semantic first, and each suite's mean after its tasks."""

    def find(
        self, task: Task, readout: str, *, factor: str = "all", mix: str = "swapped", only_right: bool = False
    ) -> Row | None:
        wanted = (*task, readout, factor, mix, only_right and not task.is_number)
        return next((row for row in self.rows if row.key == wanted), None)

    def factors(self, task: Task) -> list[str]:
        """In which alone the two images may differ."""
        own = [row.factor for row in self.rows if row.key[:3] == task and row.mix == "swapped"]
        return [factor for factor in dict.fromkeys(own) if factor != "all"]
