"""Two runs: what differs between them in where <voco> looks and in what can be read from it, this run minus the other.

Lays out what tells the runs apart; the rest is in compare_attention and compare_probes.
"""

import shlex
from collections.abc import Callable

import streamlit as st

from htc_probe.dashboards import data
from htc_probe.dashboards.charts.source import Source
from htc_probe.dashboards.charts.two import Two
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.runs import RunFile
from htc_probe.dashboards.views.compare.attention import on_average, one_image
from htc_probe.dashboards.views.compare.probes import probes
from htc_probe.dashboards.views.view import View

_PARTS: dict[str, Callable[[View, Two], None]] = {"Attention": on_average, "One image": one_image, "Probes": probes}


def show(view: View) -> None:
    """Draws the page: this run minus another."""
    file = _choose(view)
    if file is None:
        return
    key = data.key_of(file.path)
    header, mine = data.header(key), data.header(view.key)
    chosen = view.selection.chosen
    two = Two(view.source, Source(file.path, key, header), chosen, data.pairs(view.key, key, chosen))
    _what_differs(two)
    if not len(two.pairs.rows):
        st.info("The other run has none of the selected images.")
        return
    if not mine.shape.images or not header.shape.images:
        st.info("One of the runs has no images yet.")
        return
    ui.tabs(_PARTS, "part", view, two, on_change=ui.everywhere)


def shows_attention() -> bool:
    """Whether the open part is of attention."""
    return ui.opened(list(_PARTS), "part") != "Probes"


def _choose(view: View) -> RunFile | None:
    """The other run, by name; the first of the same images where none was chosen."""
    runs = {run.name: run for run in view.runs if run.path != view.path}
    if not runs:
        st.info(
            "There is only one run here. Compare it, for example, with the same images through the same model with "
            "random weights. To make that run:"
        )
        info = view.header.info
        out = view.path.with_name(view.path.stem + "-random.h5")
        words = ["htc-extract", "--data", info.dataset, "--split", info.split, "--random-weights", "--out", str(out)]
        st.code(shlex.join(words), language=None, wrap_lines=True)
        return None
    wanted = st.session_state.get("with") or st.query_params.get("with")
    if wanted is not None and wanted not in runs:
        st.session_state.pop("with", None)
        if any(run.name == wanted for run in view.runs):
            st.caption("A run has no differences from itself, so another one is shown.")
        else:
            st.warning(ui.plain(f"No run named {wanted}; showing another one."))
    alike = 0 if wanted in runs else next((number for number, run in enumerate(runs.values()) if _alike(view, run)), 0)
    name = st.selectbox(
        "Compare with",
        list(runs),
        index=alike,
        key="with",
        bind="query-params",
        help="All differences are this run (in the sidebar) minus the other one.",
    )
    return runs[name]


def _alike(view: View, run: RunFile) -> bool:
    """Whether it is of the same images, as far as its name tells."""
    mine, theirs = view.header.info, data.header(data.key_of(run.path)).info
    return (mine.dataset, mine.split) == (theirs.dataset, theirs.split)


def _what_differs(two: Two) -> None:
    """The facts that tell the runs apart, and which images are laid side by side."""
    facts = [_facts(header) for header in two.headers]
    differing = [name for name in facts[0] | facts[1] if facts[0].get(name) != facts[1].get(name)]
    if differing:
        sides = zip(two.names, facts, strict=True)
        columns = {run: [of.get(name, "not set") for name in differing] for run, of in sides}
        ui.table({"what": differing, **columns}, "compare_facts")
    else:
        st.caption("Model, data and settings of the two runs are the same.")
    place, (mine, theirs) = two.pairs, two.headers
    if not place.paired:
        st.warning(
            "The runs share no image (by id). Differences are between two averages over different images, with "
            "intervals that take the two as independent. The images may explain them as well as the models."
        )
    else:
        chosen = " of the selection" if two.chosen else ""
        names = [ui.plain(name) for name in two.names]
        beside = [
            f"; {len(values.ids) - len(place.rows):,} more only in {name}"
            for values, name in zip((mine, theirs), names, strict=True)
            if len(values.ids) > len(place.rows) and not chosen
        ]
        text = f"**{names[0]} minus {names[1]}**, image by image: {len(place.rows):,} images{chosen} are in both"
        st.caption(f"{text}, paired by id{''.join(beside)}.")
        if (mine.info.dataset, mine.info.split) != (theirs.info.dataset, theirs.info.split):
            st.warning("The runs have different data; images with the same id are still paired.")
    if not two.same_cells:
        st.info(
            "The runs have different numbers of layers or heads, so single layers and heads are not compared. Averages "
            "over all of them are; curves are drawn over relative depth, without a difference."
        )


def _facts(header: data.Header) -> dict[str, str]:
    info, shape = header.info, header.shape
    facts = {
        "model": str(info.model.get("name", "unknown")),
        "weights (sha256)": str(info.model.get("sha256", "unknown"))[:16],
        "topology": info.topology,
        "data": f"{info.dataset}, {info.split}",
        "images": f"{len(header.ids):,}" + ("" if header.finished else f" of {header.expected:,}, unfinished"),
        "layers × heads": f"{shape.layers} × {shape.heads}",
        "anchors, patches, keys": f"{shape.anchors}, {shape.roles.count('patch')}, {shape.keys}",
        "hidden width": f"{shape.width:,}",
    }
    left_out = ("out", "limit", "model", "data", "split")
    return facts | {f"--{name}": str(value) for name, value in info.config.items() if name not in left_out}
