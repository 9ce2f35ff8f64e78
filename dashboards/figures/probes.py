"""Plotly figures of what a probe said of single images. Knows arrays and plotly; not Streamlit, files or runs. Those of
scores are in `probes.figures`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from htc_probe.dashboards.figures.base import OF, cells, circled, dashed, named, outlined, written
from htc_probe.probes.show.style import SHARES, cut, escape, titled

_MARK = "#D55E00"
"""What is selected."""
_NAMED = 30
"""Classes of a confusion matrix whose names still fit."""
_COUNTED = 12  # classes whose counts fit into the cells


def confusion(
    counts_KK: np.ndarray, names: Sequence[str], *, title: str, subtitle: str, mark: tuple[int, int] | None = None
) -> go.Figure:
    """Images by true answer (row) and by what the probe said (column); cells are clicked at (said + 1, true + 1).

    counts_KK: (K, K) ints. Colour is the share of the row. mark: (true, said) of the cell to outline.
    """
    K = len(names)
    share_KK = counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    shown = np.array([escape(name) for name in names], dtype=object)
    custom = np.empty((K, K, 4), dtype=object)
    custom[..., 0], custom[..., 1] = shown[:, None], shown[None, :]
    custom[..., 2], custom[..., 3] = counts_KK, share_KK
    hover = "%{customdata[0]}, predicted %{customdata[1]}<br>%{customdata[2]:,} images, %{customdata[3]:.1%} of the row"
    meta = {"images": 2}
    few = {"text": counts_KK, "showscale": K > _COUNTED}
    bar = {"title": {"text": "share of the row", "side": "right"}, "thickness": 12, "tickformat": ".0%"}
    heat = cells(
        share_KK, (0, 1), SHARES, hover, gap=int(K <= _NAMED), customdata=custom, meta=meta, colorbar=bar, **few
    )
    ticks = named([cut(name) for name in names]) if K <= _NAMED else {"showticklabels": False}
    axis = {"showgrid": False, "zeroline": False, "automargin": True, "fixedrange": True, **ticks}
    true, said = mark or (None, None)
    x = {"title": "predicted", "range": [0.5, K + 0.5], **axis}
    y = {"title": "true", "range": [K + 0.5, 0.5], **axis}
    height, mark_of_cell = max(360, min(620, 190 + 40 * K)), outlined(said, true, K, K, _MARK)
    counts = [written([f"{count:,}" for count in counts_KK.flat], share_KK, (0, 1), SHARES)] if K <= _COUNTED else []
    return titled([heat, *counts], title, subtitle, height, xaxis=x, yaxis=y, shapes=mark_of_cell)


def said_and_true(
    true_n: np.ndarray,
    said_n: np.ndarray,
    rows_n: np.ndarray,
    *,
    unit: str,
    title: str,
    subtitle: str,
    mark: int | None = None,
) -> go.Figure:
    """A number as the probe said it (y) over what is true (x); a point is an image, and its row of the run its
    customdata. mark: the row to outline.
    """
    ends = [float(np.nanmin(true_n)), float(np.nanmax(true_n))] if len(true_n) else [0.0, 1.0]
    marker, hover = (
        {"size": 5, "opacity": 0.5, "color": OF["v_pooled"]},
        "true %{x:.4g}, predicted %{y:.4g}<extra></extra>",
    )
    look = {"mode": "markers", "customdata": rows_n.astype(np.int32), "marker": marker, "name": "an image"}
    traces: list[Any] = [
        dashed(ends, ends, "predicted = true"),
        go.Scattergl(x=true_n.astype(np.float32), y=said_n.astype(np.float32), hovertemplate=hover, **look),
    ]
    current = np.flatnonzero(rows_n == mark)
    if len(current):
        traces.append(circled(true_n[current], said_n[current], "current image", _MARK, 14))
    words = f" ({escape(unit)})" if unit else ""
    x, y = ({"title": f"{axis}{words}", "zeroline": False} for axis in ("true", "predicted"))
    return titled(traces, title, subtitle, 460, xaxis=x, yaxis=y)
