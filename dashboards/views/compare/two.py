"""The two runs of the page Compare, and how its numbers are written."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from htc_probe.dashboards import data
from htc_probe.dashboards.runs import RunFile
from htc_probe.dashboards.views.view import View


class Two(NamedTuple):
    """The page's run and the one beside it."""

    view: View
    other: RunFile
    key: data.RunKey
    """Of the other."""
    header: data.Header
    names: tuple[str, str]
    pairs: data.Pairs
    """Among the chosen images, where some are chosen."""

    @property
    def paths(self) -> tuple[Path, Path]:
        return self.view.path, self.other.path

    @property
    def headers(self) -> tuple[data.Header, data.Header]:
        return self.view.header, self.header

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
        at = self.pairs
        if at.paired:
            return f"{len(at.rows):,} images of both, paired"
        return f"{len(at.rows):,} and {len(at.other_rows):,} other images, unpaired"


def number(value: Any) -> str:
    return "" if value is None or not np.isfinite(value) else f"{float(value):.3g}"


def signed(value: Any) -> str:
    return "" if not np.isfinite(value) else f"{float(value):+.3g}"


def p_value(value: float) -> str:
    return "" if not np.isfinite(value) else "< 0.0001" if value < 1e-4 else f"{value:.4f}"
