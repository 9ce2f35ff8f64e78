"""Pictures beside the pointer: while it is over a point of a chart, the picture of that point.

Plotly cannot show pictures in its labels, and those of all points are too much to send. A small component without a
frame listens to the chart and asks for one picture at a time; names are set as text, never as HTML.
"""

from collections.abc import Callable
from typing import NamedTuple

import streamlit as st

from htc_probe.dashboards.parts.controls import fragment


class Picture(NamedTuple):
    """What is shown of a point."""

    source: str
    """A data URI."""
    text: str


_HTML = '<div class="picture" role="status" hidden><img alt=""><p></p></div>'
_CSS = """
.picture {
    position: fixed; z-index: 1000; width: 112px; padding: 6px; pointer-events: none;
    background: var(--st-background-color); color: var(--st-text-color);
    border: 1px solid var(--st-border-color); border-radius: 6px; font: 12px/1.3 var(--st-font);
}
.picture[hidden] { display: none; }
img { display: block; width: 112px; height: 112px; border-radius: 3px; }
p { margin: 4px 0 0; overflow-wrap: anywhere; white-space: pre-line; }
"""
_JS = """
export default function ({ data, parentElement, setTriggerValue }) {
    const state = (parentElement.follow ??= follow(parentElement));
    state.chart = data.chart;
    state.tell = setTriggerValue;
    if (state.run !== data.run) {
        state.run = data.run;
        state.seen.clear();
    }
    if (data.row !== null) {
        state.seen.set(data.row, data);
        state.show();
    }
    const turn = ++state.turn;
    return () => { if (turn === state.turn) state.stop(); };  // an older one's end may come after a newer one's start
}

function follow(root) {
    const box = root.querySelector(".picture"), image = box.querySelector("img"), text = box.querySelector("p");
    const state = { seen: new Map(), turn: 0 };
    let row = null, pointer = null, plot = null, timer;

    const row_of = (event) => event.points.map((point) => point.customdata).find(Number.isInteger);
    const hide = () => {
        clearTimeout(timer);
        row = null;
        box.hidden = true;
    };
    state.show = () => {
        const found = state.seen.get(row);
        if (!found) return;
        image.src = found.source;
        text.textContent = found.text;
        box.hidden = false;
        const { offsetWidth: width, offsetHeight: height } = box, { clientX: x, clientY: y } = pointer;
        box.style.left = `${x + 18 + width > innerWidth ? x - 18 - width : x + 18}px`;
        box.style.top = `${y + 28 + height > innerHeight ? y - 28 - height : y + 28}px`;
    };
    const listeners = {
        plotly_hover: (event) => {
            clearTimeout(timer);
            row = row_of(event) ?? null;
            pointer = event.event;
            box.hidden = !state.seen.has(row);
            if (!box.hidden) state.show();
            else if (row !== null) timer = setTimeout(() => state.tell("row", row), 50);
        },
        plotly_unhover: hide,
        plotly_click: hide,
    };
    const detach = () => {
        for (const [name, listener] of Object.entries(listeners)) plot?.removeListener?.(name, listener);
        plot = null;
    };
    // A chart that is drawn anew is another element: the pointer finds it when it gets there.
    const enter = (event) => {
        const here = event.target.closest?.(`.st-key-${state.chart} .js-plotly-plot`) ?? null;
        if (here === null) return row === null ? undefined : hide();
        if (here === plot || !here.on) return;
        hide();
        detach();
        plot = here;
        for (const [name, listener] of Object.entries(listeners)) plot.on(name, listener);
    };
    document.addEventListener("pointerover", enter);
    document.addEventListener("scroll", hide, true);
    state.stop = () => {
        hide();
        detach();
        document.removeEventListener("pointerover", enter);
        document.removeEventListener("scroll", hide, true);
        delete root.follow;
    };
    return state;
}
"""
_component = st.components.v2.component("htc_hover", html=_HTML, css=_CSS, js=_JS)


@fragment
def pictures(chart: str, run: str, picture: Callable[[int], Picture]) -> None:
    """Shows `picture` of the point under the pointer, by the number that is its customdata, over the chart with the key
    `chart`. `run` names what the numbers count.
    """
    key = f"{chart}_hover"

    def ask() -> None:
        st.session_state[f"{key}_row"] = st.session_state[key]["row"]

    row = st.session_state.pop(f"{key}_row", None)
    shown = {} if row is None else picture(row)._asdict()
    data = {"chart": chart, "run": run, "row": row, **shown}
    _component(key=key, data=data, on_row_change=ask)
