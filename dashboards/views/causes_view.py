"""The page What causes what: its tabs, and what fills each where it is not analysed. Lays out; knows no numbers."""

from collections.abc import Callable
from functools import partial

import streamlit as st

from htc_probe.analysis import sentences
from htc_probe.analysis.sections import Sections
from htc_probe.dashboards import data
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts.effects import steps_within
from htc_probe.dashboards.views import groups_view, interchange_view, tokens_view
from htc_probe.dashboards.views.view import View, not_analysed


def show(view: View) -> None:
    """Draws the page."""
    sections = data.sections(view.path, view.header)
    st.caption(
        "Attention says where &lt;voco&gt; looks, not what that causes. Here tokens are knocked out, or exchanged "
        "between two images, and the model runs again: any change is their causal effect. z\\_voco is &lt;voco&gt; "
        "after the last layer; the answers depend on &lt;voco&gt; as it enters each layer."
    )
    parts: dict[str, Callable[[View, Sections], None]] = {
        "Token by token": partial(_knockouts, token_by_token=True),
        "Groups of tokens": partial(_knockouts, token_by_token=False),
        "Anchors and patches interchanged": _interchange,
    }
    ui.tabs(parts, "causes", view, sections)


def _knockouts(view: View, sections: Sections, token_by_token: bool) -> None:
    knockouts = sections.knockouts
    if knockouts is None:
        also = ["contributions"] * token_by_token
        not_analysed(view, "This run has no knock-outs yet.", "knockouts", *also)
        return
    _tell(sentences.honest(knockouts) if token_by_token else sentences.matters(knockouts))
    rows = data.rows_of(view.key, knockouts.images)
    steps_within(rows, view.selection.image, view.header.shape.images)
    if token_by_token:
        tokens_view.show(view, knockouts, sections.contributions)
    else:
        groups_view.show(view, knockouts)


def _interchange(view: View, sections: Sections) -> None:
    interchange = sections.interchange
    if interchange is not None:
        _tell(sentences.follows(interchange))
        interchange_view.show(view, interchange)
    elif not view.header.shape.anchors:
        st.info("This model has no anchors, so anchors and patches cannot be interchanged.")
    elif not view.header.tasks:
        st.info("These data have no labels, so it cannot be measured which source image wins.")
    else:
        not_analysed(view, "This run has no interchanges yet.", "interchange")


def _tell(sentence: sentences.Sentence | str) -> None:
    """What the analysis concludes, as `htc-analyze` prints it."""
    st.markdown(ui.plain(sentence.told() if isinstance(sentence, sentences.Sentence) else sentence))
