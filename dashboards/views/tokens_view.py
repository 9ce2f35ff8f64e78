"""Token by token: what knocking out each does, beside its attention and what it hands over, on the picture; and how
well these tell the effects. Lays out; draws by charts.
"""

from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from htc_probe.analysis.sections import Contributions, Knockouts
from htc_probe.dashboards import charts
from htc_probe.dashboards.charts.effects import ANSWERS, PROBES, Z
from htc_probe.dashboards.charts.tokens import MAPS
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts.chart import draw, made
from htc_probe.dashboards.parts.effects import select_one
from htc_probe.dashboards.views.view import View, each_image, not_analysed

_ALL = "all layers"


@ui.fragment
def show(view: View, knockouts: Knockouts, contributions: Contributions | None) -> None:
    """Draws the tab."""
    told = _choose_effect(view, knockouts)
    each_image(view, partial(_image, knockouts=knockouts, contributions=contributions, told=told), "tokens")
    _dots(view, knockouts, told)
    if contributions is None:
        not_analysed(view, "Value-weighted attention is not computed yet.", "contributions")


def _image(view: View, knockouts: Knockouts, contributions: Contributions | None, told: dict[str, Any]) -> None:
    """The maps of one image, where it is in the sample."""
    name = view.header.ids[view.selection.image]
    if name not in knockouts.images:
        if view.selection.beside:  # else it was said above
            st.info(f"This image is not in the sample of {len(knockouts.images):,} whose tokens were knocked out.")
        return
    effect = charts.tokens.effect(view.source, **told)
    if not np.isfinite(effect.values_NT[knockouts.images.index(name)]).all():
        st.info(f"This image has no label for {ui.plain(effect.words)}, so there is no effect to show.")
        return
    own_scale = st.session_state.get("own_scale", False)
    measured = contributions is not None and name in contributions.images
    columns = ui.side_by_side(3, "maps")
    for column, key in zip(columns, MAPS if measured else MAPS[:2], strict=False):
        with column, ui.possible():
            shown = {"image": view.selection.number, "show": key, "own_scale": own_scale}
            draw(made(charts.tokens.image, view.path, **shown, **told), f"map_{key}")
    if contributions is not None and not measured:
        others = f"{len(contributions.images):,} other images"
        columns[2].info(f"Value-weighted attention was computed for {others}, not for this one.")
    sign = ""
    if effect.signed:
        sign = (
            " Orange: without the token there is a loss; purple: a gain (for numbers: more, less). For a knock-out in "
            "one layer only, choose z\\_voco."
        )
    scale = "each map has its own colour scale" if own_scale else "all maps share one colour scale"
    uniform = f"1 / {len(knockouts.token.role)}"
    ui.how_to_read(
        f"Each map shows a token's share of the map's total, in multiples of a uniform share ({uniform}); "
        f"{scale}.{sign} The effects of single tokens do not add up to that of knocking out all of them."
    )


# ---- the effect that is looked at


def _choose_effect(view: View, knockouts: Knockouts) -> dict[str, Any]:
    """As `charts.tokens.effect` is told."""
    on, of, scale = ui.side_by_side([4, 3, 3], "effect", least=260, align="bottom")
    told = "Shows the pattern of a map with small values."
    scale.toggle("Each map with its own colour scale", key="own_scale", help=told, bind="query-params")
    measured = {Z: knockouts.loo.change, ANSWERS: knockouts.loo.answers, PROBES: knockouts.loo.probe_changes}
    chosen = ui.pick("Effect on", [name for name, values in measured.items() if values is not None], "effect", place=on)
    with of:
        if chosen == ANSWERS:
            return {"on": chosen, "of": select_one("Question", knockouts.questions, "question"), "layer": None}
        if chosen == PROBES:
            mean = not charts.tokens.numbers(view.source, knockouts.probes).all()
            return {"on": chosen, "of": select_one("Probe", knockouts.probes, "probe", mean=mean), "layer": None}
        options = [_ALL, *(f"layer {layer}" for layer in range(1, view.header.shape.layers + 1))]
        return {
            "on": chosen,
            "of": None,
            "layer": options.index(ui.select("Knocked out in", options, "window")) or None,
        }


def _dots(view: View, knockouts: Knockouts, told: dict[str, Any]) -> None:
    effect = charts.tokens.effect(view.source, **told)
    draw(made(charts.tokens.ranks, view.path, image=view.selection.number, **told), "ranks")
    gradients = (
        " Gradients estimate the effect on the true answers to first order." if len(effect.ranks.mean_P3) > 2 else ""
    )
    ui.how_to_read(
        f"1: the score ({effect.layers}) ranks an image's tokens exactly by their effects; 0: it predicts nothing. "
        f"Value-weighted attention: the length of attention × value × output projection.{gradients} Dots are means "
        "over the sample, diamonds this image."
    )
