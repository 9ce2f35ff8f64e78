"""A run as charts are given it: by its path, with images, layers and heads as people count them.

Knows what is read of runs; not what a chart shows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from htc_probe.analysis.sections import Sections
from htc_probe.analysis.stats.draws import Intervals
from htc_probe.dashboards import data
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import RunShape, Task

T = TypeVar("T")


class Nothing(UserError):
    """A run that holds nothing to draw, and why."""


class Source(NamedTuple):
    """One run, finished or not."""

    path: Path
    key: data.RunKey
    header: data.Header

    @property
    def shape(self) -> RunShape:
        return self.header.shape

    @property
    def sections(self) -> Sections:
        """What `htc-analyze` left beside it."""
        return data.sections(self.path, self.header)

    def analysed(self, section: T | None, analysis: str) -> T:
        """`section`. Raises Nothing, with what makes it, where it is None."""
        command = f"htc-analyze {analysis} --run {self.path}"
        return some(section, f"{self.path.name} has no {analysis} analysis beside it; make it with: {command}")

    def row(self, image: int | str) -> int:
        """The row, from 0, of an image by its number from 1 or its id. Raises UserError where there is none."""
        names = self.header.ids
        if isinstance(image, str):
            if (row := data.row_of(self.key).get(image)) is None:
                raise UserError(f"no image of {self.path.name} has the id {image!r}; expected one such as {names[0]!r}")
            return row
        return number("image", image, len(names), self.path)

    def rows(self, images: Sequence[int | str]) -> np.ndarray:
        """(n,) the rows of these images; of all where there are none."""
        return np.array([self.row(image) for image in images] if images else range(len(self.header.ids)))

    def task(self, name: str) -> Task:
        """The task of this name. Raises UserError where there is none."""
        for task in self.header.tasks:
            if task.name == name:
                return task
        names = ", ".join(task.name for task in self.header.tasks) or "none, as the data came without labels"
        raise UserError(f"{self.path.name} has no task {name!r}; it has {names}")

    def cell(self, layer: int | None, head: int | None) -> tuple[int | None, int | None]:
        """Layer and head from 0; None stays the mean. Raises UserError where there is none."""
        layers, heads = self.shape.layers, self.shape.heads
        return (
            None if layer is None else number("layer", layer, layers, self.path),
            None if head is None else number("head", head, heads, self.path),
        )


def number(what: str, value: int, most: int, path: Path) -> int:
    """From 0, of a number from 1. Raises UserError where it is not up to `most`."""
    if not 1 <= value <= most:
        mean = "" if what not in ("layer", "head") else f", or None for the mean over {what}s"
        raise UserError(f"{path.name} has no {what} {value}; expected 1 to {most:,}{mean}")
    return int(value) - 1


def source(run: Path | str) -> Source:
    """The run at this path. Raises UserError where there is none, or it is damaged."""
    path = Path(run)
    try:
        key = data.key_of(path)
    except UserError as gone:
        raise UserError(f"no run at {path}, seen from {Path.cwd()}; expected one such as runs/scenes-val.h5") from gone
    return Source(path, key, data.header(key))


def some(value: T | None, words: str) -> T:
    """`value`. Raises Nothing with these words where it is None."""
    if value is None:
        raise Nothing(words)
    return value


def ends(intervals: Intervals) -> np.ndarray:
    """(..., 3) estimate, lower and upper end."""
    return np.stack(intervals, -1)


def head_words(head: int | None) -> str:
    """A head, from 1, as titles say it."""
    return "mean over heads" if head is None else f"head {head}"


def words(layer: int | None, head: int | None) -> str:
    """Layer and head, from 1, such as `layer 3, mean over heads`."""
    if layer is None and head is None:
        return "mean over layers and heads"
    return f"{'mean over layers' if layer is None else f'layer {layer}'}, {head_words(head)}"
