"""The sidebar: which run, image, layer and head. Knows Streamlit and names; reads no run and draws no figure.

What is chosen stays chosen when another run is picked, as far as the other run has it, so that runs can be
compared.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import plotly.graph_objects as go
import streamlit as st

from extract.store import RunShape


class Selection(NamedTuple):
    """What the pages show."""

    image: int
    """Row in the run, from 0."""
    layer: int | None
    """From 0; None is the mean over layers."""
    head: int | None
    """From 0; None is the mean over heads."""
    log: bool
    """Draw shares on a logarithmic axis."""

    @property
    def words(self) -> str:
        """Layer and head as titles say them, such as `layer 3, mean over heads`."""
        layer = "mean over layers" if self.layer is None else f"layer {self.layer + 1}"
        head = "mean over heads" if self.head is None else f"head {self.head + 1}"
        both = self.layer is None and self.head is None
        return "mean over layers and heads" if both else f"{layer}, {head}"

    @property
    def head_words(self) -> str:
        return "mean over heads" if self.head is None else f"head {self.head + 1}"


def plain(text: str) -> str:
    """`text` so that Streamlit shows it as it is: as Markdown, a name could load a remote picture."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def choose_run(runs: Sequence[Path]) -> Path:
    """A select box over the runs; says so when the run that was shown is no longer among them."""
    names = [path.stem for path in runs]
    shown = st.session_state.get("run")
    if shown is not None and shown not in runs:
        st.session_state.pop("run")
        st.warning(plain(f"{shown.name} is no longer there; showing {runs[0].name} instead."))
    return st.selectbox(
        "Run",
        runs,
        key="run",
        format_func=lambda path: (
            path.stem if names.count(path.stem) == 1 else f"{path.parent.name}/{path.stem}"
        ),
    )


def choose_image(ids: Sequence[str]) -> int:
    """Three controls over one number: slider, number and search by id. Returns the row, from 0."""
    last = len(ids) - 1
    image = min(st.session_state.get("image", 0), last)
    st.session_state["image"] = image
    if last == 0:
        st.caption(f"One image: {plain(ids[0])}")
        return 0
    st.session_state.update(image_slider=image + 1, image_number=image + 1, image_id=image)

    def take(key: str, first: int) -> None:
        if st.session_state[key] is not None:
            st.session_state["image"] = st.session_state[key] - first

    st.slider("Image", 1, last + 1, key="image_slider", on_change=take, args=("image_slider", 1))
    number, search = st.columns([2, 3])
    number.number_input("Number", 1, last + 1, key="image_number", on_change=take, args=("image_number", 1))
    search.selectbox(
        "Find by id",
        range(last + 1),
        key="image_id",
        format_func=lambda at: ids[at],
        on_change=take,
        args=("image_id", 0),
        help="Click and type a part of the id.",
    )
    return image


def choose_attention(shape: RunShape) -> tuple[int | None, int | None]:
    """Layer and head, each from 0, or None for the mean."""
    for key, count in (("layer", shape.layers), ("head", shape.heads)):
        st.session_state[key] = st.session_state.get(key, 0) if st.session_state.get(key, 0) <= count else 0
    left, right = st.columns(2)
    layer = left.selectbox(
        "Layer",
        range(shape.layers + 1),
        key="layer",
        format_func=lambda at: str(at) if at else "mean",
        help="Layer l turns z_voco[l-1] into z_voco[l]; layer 0 is the embedding, which attends to nothing.",
    )
    head = right.selectbox(
        "Head",
        range(shape.heads + 1),
        key="head",
        format_func=lambda at: str(at) if at else "mean",
        help="Counted from 1.",
    )
    return (layer - 1 if layer else None), (head - 1 if head else None)


def draw(figure: go.Figure, key: str) -> None:
    """One chart over the width of its column, described for screen readers by its own title."""
    title = figure.layout.title
    words = f"{title.text}; {title.subtitle.text}".replace("<br>", "; ")
    config = {
        "displaylogo": False,
        "modeBarButtonsToRemove": ["zoom", "pan", "zoomIn", "zoomOut", "autoScale"],
    }
    st.plotly_chart(figure, width="stretch", key=key, alt=words, config=config)
