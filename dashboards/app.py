"""The Streamlit script of htc-dashboard: joins sidebar and pages.

Its arguments are the folders and files that it may open, and nothing else is.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import streamlit as st

from htc_probe.dashboards import data
from htc_probe.dashboards.parts import controls
from htc_probe.dashboards.runs import Refused
from htc_probe.dashboards.views import (
    attention_view,
    causes_view,
    codes_view,
    map_view,
    overview_view,
    probes_view,
    reading_view,
)
from htc_probe.dashboards.views.compare import compare_view
from htc_probe.dashboards.views.view import View
from htc_probe.extract.errors import UserError

PAGES: dict[str, Callable[[View], None]] = {
    "Overview": overview_view.show,
    "Attention": attention_view.show,
    "What causes what": causes_view.show,
    "Probes": probes_view.show,
    "Reading the token": reading_view.show,
    "Map": map_view.show,
    "Codes": codes_view.show,
    "Compare": compare_view.show,
}


def main(roots: Sequence[Path]) -> None:
    """Draws the whole page for the runs under `roots`."""
    # No page_icon: Streamlit fetches Material icons for it from the network.
    st.set_page_config(page_title="htc-dashboard", layout="wide")
    try:
        page(roots)
    except UserError as error:
        st.error(controls.plain(str(error)))
        st.button("Look again")
        _watch(roots, None, _state(roots, None))


def page(roots: Sequence[Path]) -> None:
    """The same; raises UserError when there is no run, or the shown one vanished or is damaged."""
    runs, refused = data.available(roots)
    with st.sidebar:
        if not runs:
            _tell(refused)
            places = ", ".join(str(root) for root in roots)
            raise UserError(f"No run in {places}. Make one with: htc-extract --split val")
        run = controls.choose_run(runs)
        key = data.key_of(run.path)
        header = data.header(key)
        st.caption(overview_view.summary(header))
        chosen, doubt = controls.chosen(len(header.ids))
        image = controls.choose_image(header.ids, chosen)
        controls.show_chosen(chosen, doubt)
        layer, head = controls.choose_attention(header.shape)
        log = st.toggle("Log scale", key="log", help="Of shares of attention: tells small shares apart.")
        controls.choose_format()
        _tell([*refused, *data.refused_beside(run.path)])
        _watch(roots, run.path, _state(roots, run.path))
    selection = controls.Selection(image, layer, head, log, chosen)
    controls.tabs(PAGES, "page", View(run.path, key, header, selection, tuple(runs)))


@st.fragment(run_every=10)
def _watch(roots: Sequence[Path], shown: Path | None, drawn: object) -> None:
    """Draws the page anew when runs came or went, or the one that is shown grew."""
    if _state(roots, shown) != drawn:
        st.rerun()


def _state(roots: Sequence[Path], shown: Path | None) -> object:
    try:
        return data.available(roots).runs, None if shown is None else data.key_of(shown)
    except UserError:  # it went
        return None


def _tell(refused: Sequence[Refused]) -> None:
    """Which files are not opened, and why."""
    if refused:
        with st.expander(f"{len(refused)} files not opened" if len(refused) > 1 else "1 file not opened"):
            for path, reason in refused:
                st.caption(f"**{controls.plain(path.name)}**: {controls.plain(reason)}")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
