"""What a page is given, and what several begin with."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import streamlit as st

from htc_probe.dashboards import data
from htc_probe.dashboards.charts.source import Source
from htc_probe.dashboards.parts.controls import Selection, fill, plain, side_by_side
from htc_probe.dashboards.parts.copies import copy
from htc_probe.dashboards.runs import RunFile
from htc_probe.extract.store import NUMERIC
from htc_probe.extract.words import counted
from htc_probe.probes.files.results import Results

_FEWEST, _FEWEST_OF_A_NUMBER = 20, 11
"""Images: a probe in five folds needs ten of each of two classes, or ten of another number than the commonest."""


class View(NamedTuple):
    """One run, and what of it is looked at."""

    path: Path
    """For messages and commands; files are read by `data` with `key`."""
    key: data.RunKey
    header: data.Header
    selection: Selection
    runs: tuple[RunFile, ...]
    """All that may be opened, this one among them."""

    @property
    def source(self) -> Source:
        """The run as charts read it."""
        return Source(self.path, self.key, self.header)


class Page(NamedTuple):
    """A page, and what of the sidebar does something on it."""

    show: Callable[[View], None]
    title: str = ""
    """Its heading; "" where it writes one itself."""
    image: bool = True
    attention: Callable[[], bool] = lambda: False
    """Whether layer and head do something, as the page is now."""
    log: bool = False
    beside: bool = False
    """Whether it has figures of one image, which pinned images can be seen in side by side."""


def each_image(view: View, part: Callable[[View], None], key: str) -> None:
    """Draws a part of a page that is about one image: of the image that is shown, or of the pinned ones side by side.
    Widgets of the part need keys of `key_here`; what is chosen for all copies stands before it.
    """
    rows = view.selection.beside
    if not rows:
        return part(view)
    for column, row in zip(side_by_side(len(rows), f"{key}_pinned", least=210), rows, strict=True):
        with column, copy(str(row + 1)):
            st.markdown(f"**Image {row + 1:,}**: {plain(view.header.ids[row])}")
            part(view._replace(selection=view.selection._replace(image=row)))


def not_analysed(view: View, what: str, *analyses: str) -> None:
    """Says that there is none of `what`, or that another version of these analyses made it, and what computes it."""
    if old := [name for name in analyses if name in data.outdated(view.path, view.header)]:
        what = f"Another version of htc-probe made {' and '.join(old)} of this run, so it is not shown."
    fill(what, f"htc-analyze {' '.join(analyses)}", view.path)


def scores(path: Path, header: data.Header) -> Results | None:
    """What htc-probe found of a run; None, and what fills it, where it left nothing."""
    beside, name = data.probes_beside(path), plain(path.stem)
    if beside is None:
        if not header.tasks:
            st.info(f"{name} has no labels, so there is nothing to probe.")
            return None
        fewest = _FEWEST_OF_A_NUMBER if any(task.kind in NUMERIC for task in header.tasks) else _FEWEST
        if header.shape.images < fewest:
            images = counted(header.shape.images, "image")
            st.info(f"{name} has {images}. Its probes need at least {fewest}: extract more to see what can be read.")
            return None
        fill(f"{name} has no probe scores yet.", "htc-probe semantic detail", path)
        return None
    found = data.probe_results(data.key_of(beside))
    if found.run.get("created") != header.created:
        st.warning(f"The scores of {name} are from an earlier state of the run; run htc-probe again.")
    return found
