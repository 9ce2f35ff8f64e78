"""What figures of probes are made of: bars, panels, lines of differences. Knows `Results`' rows and plotly; not which
figure shows what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import plotly.graph_objects as go

from htc_probe.probes.files.results import Ceiling, Comparison, Interval, Kept, Results, SuiteGap
from htc_probe.probes.inputs.representations import Representation
from htc_probe.probes.show import style, table
from htc_probe.probes.show.style import COLOURS, NEUTRAL, SERIES, Panel, across, escape

_OTHERS = SERIES[3:7]
MIDDLE = {"color": NEUTRAL, "width": 1}
Item = TypeVar("Item")


class Group(NamedTuple):
    """Bars that stand together."""

    name: str
    """Of HTML."""
    cells: Mapping[Representation, Interval]
    floor: float | None = None
    alone: float | None = None
    """What the category alone gives."""
    control: Mapping[Representation, float] = {}


def bars(
    results: Results,
    keys: Sequence[Representation],
    groups: Sequence[Group],
    title: str,
    subtitle: str,
    axis: dict[str, Any],
    *,
    dots: bool = False,
    **layout: Any,
) -> go.Figure:
    """Horizontal, so that names and whiskers have room on a narrow page too."""
    traces: list[Any] = []
    thick = 0.8 / max(len(keys), 1)
    colours, seen = palette(results), set()
    for number, key in enumerate(keys):
        offset, colour = (number - (len(keys) - 1) / 2) * thick, colours[key]
        cells = {place + offset: group.cells[key] for place, group in enumerate(groups) if key in group.cells}
        # A colour that is used twice gets a pattern. Pale, so that whiskers in the colour itself and grey lines are
        # seen on it.
        pattern = {"shape": "/" if colour in seen else ""}
        seen.add(colour)
        look: dict[str, Any] = {"marker": {"color": colour, "opacity": 0.5, "pattern": pattern}}
        look |= {"width": thick * 0.92, "orientation": "h"}
        kind = go.Scatter if dots else go.Bar
        traces.append(
            kind(
                x=[cell.estimate for cell in cells.values()],
                y=list(cells),
                name=escape(table.name_in(results, key)),
                error_x=whiskers(list(cells.values()), colour),
                customdata=[_words(cell) for cell in cells.values()],
                hovertemplate="%{x:.3f} %{customdata}<extra>%{fullData.name}</extra>",
                **({"mode": "markers", "marker": {"color": colour, "size": 9}} if dots else look),
            )
        )
        control = [(group.control[key], place + offset) for place, group in enumerate(groups) if key in group.control]
        cross = {"symbol": "x-thin", "size": 7, "line": {"color": NEUTRAL, "width": 1.5}}
        traces += _marks(control, "control labels", cross, legendgroup="control", showlegend=number == 0)
    if any(group.floor for group in groups):
        traces.append(
            go.Scatter(  # one line, broken between the groups
                x=[x for group in groups for x in (group.floor, group.floor, None)],
                y=[y for place in range(len(groups)) for y in (place - 0.45, place + 0.45, None)],
                mode="lines",
                name="floor",
                line={"color": NEUTRAL, "width": 2.5},
                hovertemplate="floor: %{x:.3f}<extra></extra>",
            )
        )
    alone = [(group.alone, place) for place, group in enumerate(groups) if group.alone is not None]
    diamond = {"symbol": "diamond-open", "size": 9, "color": NEUTRAL, "line": {"width": 2}}
    traces += _marks(alone, "category alone", diamond)
    names = {"tickvals": list(range(len(groups))), "ticktext": [group.name for group in groups]}
    return titled(
        traces,
        title,
        subtitle,
        200 + round(len(groups) * (26 + 15 * len(keys))),
        barmode="overlay",
        xaxis={"zeroline": True, "zerolinecolor": NEUTRAL, **axis},
        yaxis={"range": [len(groups) - 0.45, -0.55], "showgrid": False, "zeroline": False, "automargin": True, **names},
        **layout,
    )


def _marks(places: Sequence[tuple[float, float]], name: str, marker: dict[str, Any], **more: Any) -> list[go.Scatter]:
    if not places:
        return []
    hover = f"{name}: %{{x:.3f}}<extra></extra>"
    x, y = zip(*places, strict=True)
    return [go.Scatter(x=x, y=y, mode="markers", name=name, marker=marker, hovertemplate=hover, **more)]


def forest(
    results: Results,
    suite: str,
    shown: Sequence[Comparison | Kept | SuiteGap | Ceiling],
    names: Sequence[str],
    colours: Sequence[str],
    title: str,
    axis: str,
    *,
    apart: int = 24,
    shapes: Sequence[dict[str, Any]] = (),
) -> go.Figure | None:
    """One line a comparison, `apart` pixels, on an axis with 0 in its middle; filled where it holds."""
    if not shown:
        return None
    cells = [one.difference for one in shown]
    symbols = ["circle" if table.holds(one) else "circle-open" for one in shown]
    dots = go.Scatter(
        x=[cell.estimate for cell in cells],
        y=list(range(len(shown))),
        mode="markers",
        error_x=whiskers(cells),
        marker={"size": 9, "color": colours, "symbol": symbols},
        customdata=[[_words(cell), _p(one)] for cell, one in zip(cells, shown, strict=True)],
        hovertemplate="%{x:+.3f} %{customdata[0]}, %{customdata[1]}<extra></extra>",
        showlegend=False,
    )
    reach = max([1e-6, *(abs(value) for cell in cells for value in cell if value is not None)]) * 1.05
    ticks = {"tickvals": list(range(len(shown))), "ticktext": list(names)}
    return titled(
        [dots],
        f"{escape(suite)}: {title}",
        sample(results, suite),
        140 + apart * len(shown),
        legend=False,
        xaxis={"title": axis, "range": [-reach, reach], "zeroline": False},
        yaxis={"range": [len(shown) - 0.5, -0.5], "zeroline": False, "automargin": True, **ticks},
        shapes=[across(x=0, line=MIDDLE), *shapes],
    )


def _p(one: Comparison | Kept | SuiteGap | Ceiling) -> str:
    if isinstance(one, Kept):
        return one.verdict
    return "not tested" if one.p_holm is None else f"p {one.p_holm:.2g} after Holm"


def panels(
    heads: Sequence[str],
    drawn: Callable[[Panel, Item], Sequence[Any]],
    items: Sequence[Item],
    axes: Callable[[Item], tuple[dict[str, Any], dict[str, Any]]],
    height: int = 240,
) -> tuple[list[Any], dict[str, Any]]:
    """Panels two by two, one an item: `drawn(panel, item)` gives its traces, `axes(item)` its two axes. Gives all
    traces, and the layout.
    """
    beside = min(2, len(heads))
    down = math.ceil(len(heads) / beside)
    places = style.panels(down, beside, 0.14, min(0.35, 95 / (height * down)) if down > 1 else 0)
    layout: dict[str, Any] = {"height": 190 + height * down}
    for panel, item in zip(places, [*items, *[None] * (len(places) - len(items))], strict=True):
        layout |= panel.axes(*({}, {}) if item is None else axes(item))
    layout["annotations"] = [panel.head(head, 13) for panel, head in zip(places, heads, strict=False)]
    return [trace for panel, item in zip(places, items, strict=False) for trace in drawn(panel, item)], layout


def line(name: str, panel: Panel, colour: str, width: float = 2, dash: str | None = None) -> dict[str, Any]:
    """A line that is in the legend once."""
    line = {"color": colour, "width": width} | ({"dash": dash} if dash else {})
    text = escape(name)
    return {"name": text, "legendgroup": text, "showlegend": panel.number == 0, "line": line, **panel.trace}


def level(
    name: str, ends: Sequence[Any], panel: Panel, value: float, colour: str, dash: str, told: str = ""
) -> go.Scatter:
    """A line at one value, between the ends of x."""
    hover = f"{told}%{{y:.3f}}<extra></extra>"
    look = line(name, panel, colour, 1.5, dash)
    return go.Scatter(x=ends, y=[value, value], mode="lines", hovertemplate=hover, **look)


def titled(
    traces: Sequence[Any], title: str, subtitle: str, height: float, *, legend: bool = True, **layout: Any
) -> go.Figure:
    """With room for a legend of some lines below the axes."""
    foot = {"xref": "container", "y": 0, "yref": "container", "yanchor": "bottom"}
    return style.titled(
        traces,
        title,
        subtitle,
        height,
        title={"font": {"size": 16}, "subtitle": {"font": {"size": 13}}, "y": 0.98, "yanchor": "top"},
        margin={"b": 120 if legend else 50},
        legend=foot,
        hoverlabel={"namelength": -1},
        **layout,
    )


def palette(results: Results) -> dict[Representation, str]:
    """Each representation's colour, the same in every figure; floors are grey."""
    keys = dict.fromkeys(table.key_of(row) for row in results.rows)
    others = [key for key in keys if key.name not in COLOURS and not key.is_floor]
    given = {key: _OTHERS[number % len(_OTHERS)] for number, key in enumerate(others)}
    return {key: NEUTRAL if key.is_floor else given.get(key) or COLOURS[key.name] for key in keys}


def whiskers(cells: Sequence[Interval], colour: str = NEUTRAL) -> dict[str, Any]:
    def reach(cell: Interval, end: float | None) -> float:
        return 0.0 if end is None or cell.estimate is None else abs(end - cell.estimate)

    up, down = ([reach(cell, getattr(cell, end)) for cell in cells] for end in ("upper", "lower"))
    look = {"color": colour, "thickness": 1.5, "width": 3}
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, **look}


def _words(cell: Interval) -> str:
    return "no interval" if cell.lower is None or cell.upper is None else f"[{cell.lower:.3f}, {cell.upper:.3f}]"


def sample(results: Results, suite: str) -> str:
    return f"n = {table.sample(results, suite)}"


def below(about: str) -> str:
    """A second line of a tick; none for no text."""
    return f'<br><span style="font-size:11px">{about}</span>' if about else ""


def short(name: str, most: int = 14) -> str:
    return escape(style.cut(name, most))
