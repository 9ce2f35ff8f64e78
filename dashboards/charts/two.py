"""Two runs as charts are given them: by their paths, with the images that are laid side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from htc_probe.analysis.attention.rows import Sample
from htc_probe.dashboards import data
from htc_probe.dashboards.charts.source import Source, source
from htc_probe.extract.errors import UserError


class Two(NamedTuple):
    """A run, and the other one that is subtracted from it."""

    one: Source
    other: Source
    chosen: tuple[int, ...]
    """Rows of the selected images of the first, ascending; () is all."""
    pairs: data.Pairs
    """Among the chosen images, where some are chosen."""

    @property
    def paths(self) -> tuple[Path, Path]:
        return self.one.path, self.other.path

    @property
    def headers(self) -> tuple[data.Header, data.Header]:
        return self.one.header, self.other.header

    @property
    def names(self) -> tuple[str, str]:
        """That tell the two apart."""
        one, other = (path.stem for path in self.paths)
        if one != other:
            return one, other
        one, other = (f"{path.parent.name}/{path.stem}" for path in self.paths)
        return (one, other) if one != other else (str(self.one.path), str(self.other.path))

    @property
    def same_cells(self) -> bool:
        """Whether layers and heads of the two can be laid on one another."""
        one, two = (header.shape for header in self.headers)
        return (one.layers, one.heads) == (two.layers, two.heads)

    @property
    def anchors(self) -> bool:
        return all(header.shape.anchors for header in self.headers)

    @property
    def images(self) -> str:
        mine, theirs = len(self.pairs.rows), len(self.pairs.other_rows)
        return (
            f"{mine:,} images of both, paired"
            if self.pairs.paired
            else f"{mine:,} and {theirs:,} other images, unpaired"
        )

    @property
    def attention(self) -> tuple[Sample, Sample, data.Pairs]:
        """See `data.paired_attention`."""
        return data.paired_attention(self.one.key, self.other.key, self.chosen)

    def mass(self, head: int | None) -> tuple[np.ndarray, np.ndarray]:
        """See `data.paired_mass`."""
        return data.paired_mass(self.one.key, self.other.key, self.chosen, head)

    def words(self, title: str, subtitle: str, unit: str) -> dict[str, Any]:
        """What every figure of the two is told."""
        return {"title": title, "subtitle": subtitle, "names": self.names, "unit": unit}

    def cell(self, layer: int | None, head: int | None) -> tuple[int | None, int | None]:
        """From 0, where both runs have that layer and head; otherwise the means."""
        return self.one.cell(layer, head) if self.same_cells else (None, None)


def two(run: Path | str, other: Path | str, images: Sequence[int | str] = ()) -> Two:
    """The runs at these paths; `images`: those of the first that are looked at. Raises UserError where one is not there
    or they have nothing to lay side by side.
    """
    one, beside = source(run), source(other)
    chosen = tuple(sorted({int(row) for row in one.rows(images)})) if images else ()
    found = Two(one, beside, chosen, data.pairs(one.key, beside.key, chosen))
    if not len(found.pairs.rows) or not len(found.pairs.other_rows):
        raise UserError(f"{one.path.name} and {beside.path.name} share none of these images")
    return found
