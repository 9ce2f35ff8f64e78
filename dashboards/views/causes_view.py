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
from htc_probe.dashboards.views.view import View


def show(view: View) -> None:
    """Draws the page."""
    sections = data.sections(view.path, view.header)
    st.caption(
        "Attention says where &lt;voco&gt; looks; it is no cause. Here tokens are taken away, or exchanged between two "
        "images, and everything after them is computed again: what changes then, they caused. z_voco is &lt;voco&gt; "
        "after the last layer, which no text reads: answers hang on what it is before that."
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
        ui.fill("This is not analysed yet.", "htc-analyze knockouts" + " contributions" * token_by_token, view.path)
        return
    _tell(sentences.honest(knockouts) if token_by_token else sentences.matters(knockouts))
    rows = data.rows_of(view.key, knockouts.images)
    here = steps_within(rows, view.selection.image, view.header.shape.images)
    if token_by_token:
        tokens_view.show(view, knockouts, sections.contributions, here)
    else:
        groups_view.show(knockouts, here)


def _interchange(view: View, sections: Sections) -> None:
    interchange = sections.interchange
    if interchange is not None:
        _tell(sentences.follows(interchange))
        interchange_view.show(view, interchange)
    elif not view.header.shape.anchors:
        st.info("The model has no anchors: there is nothing to interchange.")
    elif not view.header.tasks:
        st.info("The data of this run came without labels, so that nobody can be followed.")
    else:
        ui.fill("This is not analysed yet.", "htc-analyze interchange", view.path)


def _tell(sentence: sentences.Sentence | str) -> None:
    """What the analysis concludes, as `htc-analyze` prints it."""
    st.markdown(ui.plain(sentence.told() if isinstance(sentence, sentences.Sentence) else sentence))
