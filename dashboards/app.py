"""The Streamlit script of htc-dashboard: joins sidebar and views.

Its arguments are the folders and files that it may open, and nothing else is.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from dashboards import average_view, controls, data, image_view, probe_view, run_view
from extract.errors import UserError


def main(roots: Sequence[Path]) -> None:
    """Draws the whole page for the runs under `roots`."""
    # No page_icon: Streamlit fetches Material icons for it from the network.
    st.set_page_config(page_title="htc-dashboard", layout="wide")
    try:
        page(roots)
    except UserError as error:
        st.error(controls.plain(str(error)))
        st.button("Look again")


def page(roots: Sequence[Path]) -> None:
    """The same; raises UserError when there is no run, or the shown one vanished or is damaged."""
    runs, refused = data.available(roots)
    if not runs:
        places = ", ".join(map(str, roots))
        raise UserError(f"No finished run in {places}. Make one with: htc-extract --split val")
    with st.sidebar:
        path = controls.choose_run(runs)
        key = data.key_of(path)
        header = data.header(key)
        st.caption(run_view.summary(header))
        st.divider()
        image = controls.choose_image(header.ids)
        layer, head = controls.choose_attention(header.shape)
        log = st.toggle("Logarithmic shares", key="log", help="For many patches, where uniform is near 0.")
        if refused:
            links = controls.plain(", ".join(link.name for link in refused))
            st.caption(f"Not opened, because they lead out of the folder: {links}")
    selection = controls.Selection(image, layer, head, log)

    st.title(controls.plain(path.stem))
    st.markdown(run_view.facts(header))
    names = ["One image", "Average over the run", "Probe scores", "About the run"]
    one, average, scores, about = st.tabs(names, key="view", on_change="rerun")  # computes only the open one
    if one.open:
        with one:
            image_view.show(key, header, selection)
    if average.open:
        with average:
            average_view.show(key, header, selection)
    if scores.open:
        with scores:
            beside = data.probes_beside(path)
            if beside is None:
                st.info("No probe scores beside this run. Make them with: htc-probe semantic detail")
            else:
                probe_view.show(data.probe_results(data.key_of(beside)), header)
    if about.open:
        with about:
            run_view.show(header)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
