"""Charts on a page. Knows Streamlit and plotly; not what a figure shows.

`st.plotly_chart` builds a chart anew whenever its figure changes, and draws it several times until it has its size and
colours: with a page of them, most of what a click costs. Here a chart stays, and a new figure is drawn over it once
(chart.js, a Streamlit component without a frame). Clicks arrive as events, so that the same point can be clicked twice.
plotly.js is that of the plotly package.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

import plotly.graph_objects as go
import streamlit as st

from htc_probe.dashboards import data
from htc_probe.dashboards.charts.code import code
from htc_probe.dashboards.charts.source import Nothing
from htc_probe.dashboards.data import kept
from htc_probe.dashboards.parts.copies import key_here, stays_here

_component = st.components.v2.component(
    "htc_chart",
    html='<div class="chart"></div>',
    css="#js-plotly-tester, .chart { contain: strict; } .chart:fullscreen { background: var(--st-background-color); }",
    js="\n".join(Path(__file__).with_name(name).read_text() for name in ("chart.js", "saved.js")),
    isolate_styles=False,  # plotly puts its own style sheet into the page
)


P = ParamSpec("P")


class Made(NamedTuple):
    """A figure as it is sent to the browser."""

    figure: str
    """JSON."""
    height: int
    """In pixels."""
    words: str
    """Its title and what is under it."""
    code: str
    """Three lines that make it in a notebook."""


def made(make: Callable[P, go.Figure], *args: P.args, **kwargs: P.kwargs) -> Made:
    """`make(*args, **kwargs)` of dashboards.charts, kept while the runs among its arguments stay as they are: to make a
    figure takes some 10 ms, and most clicks change few of a page's.
    """
    runs = [data.state(value) for value in (*args, *kwargs.values()) if isinstance(value, Path)]
    return _made(f"{make.__module__}.{make.__qualname__}", pickle.dumps((runs, args, kwargs)), make)


def drawable(make: Callable[P, go.Figure], *args: P.args, **kwargs: P.kwargs) -> Made | None:
    """The same; None where the run holds nothing for it."""
    try:
        return made(make, *args, **kwargs)
    except Nothing:
        return None


@kept(200)
def _made(name: str, arguments: bytes, _make: Callable[..., go.Figure]) -> Made:
    _, args, kwargs = pickle.loads(arguments)  # what `made` was given, in this process
    figure = _make(*args, **kwargs)
    figure.layout.template = None  # the page's is put in its place
    title = figure.layout.title
    words = re.sub(r"<[^>]*>", " ", f"{title.text}; {title.subtitle.text}")
    return Made(figure.to_json(), figure.layout.height, words, code(_make, args, kwargs))


def draw(
    figure: Made, key: str, *, on_click: Callable[[], None] | None = None, on_area: Callable[[], None] | None = None
) -> None:
    """One chart over the width of its column, described for screen readers by its own title. Its buttons save it as a
    picture or as numbers, and copy it as code. `on_click` is called when a point, bar or cell is clicked, `on_area`
    when a box or a lasso is drawn, or undone by a double click; `points` then says what is in it.
    """
    key = key_here(key)
    sent = {
        "figure": figure.figure,
        "alt": figure.words,
        "code": figure.code,
        "name": key,
        "clicks": on_click is not None,
        "areas": on_area is not None,
    }
    on_click, on_area = stays_here(on_click or _nothing), stays_here(on_area or _nothing)
    # Its place is kept before it is there: while a page fills up, charts from below would come into sight and be drawn.
    _component(key=key, data=sent, height=figure.height, on_clicked_change=on_click, on_area_change=on_area)


def _nothing() -> None:
    pass


def points(key: str) -> list[dict[str, Any]]:
    """What was clicked in the chart `key` (with Shift, all that were), or is in the area, each with `x`, `y` and, where
    the figure has it, `customdata`; for what `draw` calls.
    """
    told = st.session_state[key_here(key)]
    return list(told.get("clicked") or told.get("area") or ())
