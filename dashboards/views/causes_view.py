"""The page What causes what: its tabs, and what fills each where it is not analysed. Lays out; knows no numbers."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from htc_probe.analysis import sentences
from htc_probe.analysis.sections import Sections
from htc_probe.dashboards import data
from htc_probe.dashboards.parts.controls import fill, plain
from htc_probe.dashboards.parts.effects import steps_within
from htc_probe.dashboards.views import groups_view, interchange_view, tokens_view
from htc_probe.dashboards.views.view import View

TOKENS, GROUPS, INTERCHANGE = "Token by token", "Groups of tokens", "Anchors and patches interchanged"
_SENTENCE = {TOKENS: 1, GROUPS: 2, INTERCHANGE: 3}


def show(view: View) -> None:
    """Draws the page."""
    sections = data.sections(view.path, view.header)
    st.caption(
        "Attention says where &lt;voco&gt; looks; it is no cause. Here tokens are taken away, or exchanged between two "
        "images, and everything after them is computed again: what changes then, they caused. z_voco is &lt;voco&gt; "
        "after the last layer, which no text reads: answers hang on what it is before that."
    )
    names = list(_SENTENCE)
    tabs = st.tabs(names, key="causes", bind="query-params", on_change="rerun")  # computes only the open one
    for tab, name in zip(tabs, names, strict=True):
        if tab.open:
            with tab:
                if name == INTERCHANGE:
                    _interchange(view, sections.interchange)
                else:
                    _knockouts(view, sections, name)


def _knockouts(view: View, sections: Sections, name: str) -> None:
    command = "htc-analyze knockouts" + " contributions" * (name == TOKENS)
    section = sections.knockouts
    if section is None:
        fill("This is not analysed yet.", command, view.path)
    else:
        _sentence("knockouts", section, name)
        rows = data.rows_of(view.key, section["images"])
        here = steps_within(rows, view.selection.image, view.header.shape.images)
        if name == TOKENS:
            tokens_view.show(view, section, sections.contributions, here)
        else:
            groups_view.show(section, here)


def _interchange(view: View, section: Mapping[str, Any] | None) -> None:
    if section is not None:
        _sentence("interchange", section, INTERCHANGE)
        interchange_view.show(view, section)
    elif not view.header.shape.anchors:
        st.info("The model has no anchors: there is nothing to interchange.")
    elif not view.header.tasks:
        st.info("The data of this run came without labels, so that nobody can be followed.")
    else:
        fill("This is not analysed yet.", "htc-analyze interchange", view.path)


def _sentence(analysis: str, section: Mapping[str, Any], name: str) -> None:
    """What the analysis concludes, as `htc-analyze` prints it."""
    given: dict[str, Any] = {analysis: section}
    found = sentences.sentences(Sections(**given))[_SENTENCE[name]]
    st.markdown(plain(found.told() if isinstance(found, sentences.Sentence) else found))
