"""The Streamlit script of htc-dashboard: joins sidebar and pages.

Its arguments are the folders and files that it may open, and nothing else is.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import streamlit as st

from htc_probe.dashboards import data
from htc_probe.dashboards.parts import controls, gallery, glossary, keys
from htc_probe.dashboards.runs import Refused
from htc_probe.dashboards.views import (
    attention_view,
    causes_view,
    codes_view,
    images_view,
    map_view,
    overview_view,
    probes_view,
    reading_view,
)
from htc_probe.dashboards.views.compare import compare_view
from htc_probe.dashboards.views.view import Page, View
from htc_probe.extract.errors import UserError

PAGES: dict[str, Page] = {
    "Overview": Page(overview_view.show),
    "Images": Page(images_view.show, "Which images are in the run?", attention=images_view.shows_attention),
    "Attention": Page(
        attention_view.show, "Where does the one token look?", attention=lambda: True, log=True, beside=True
    ),
    "What causes what": Page(causes_view.show, "Which tokens change the answers?", beside=True),
    "Probes": Page(probes_view.show, "What can be read from the one token?", beside=True),
    "Reading the token": Page(reading_view.show, "What is in the one token, layer by layer?", image=False),
    "Map": Page(map_view.show, "Which images lie together?", attention=map_view.shows_attention, beside=True),
    "Codes": Page(codes_view.show, "What do the codes say of an image?", beside=True),
    "Compare": Page(
        compare_view.show, "Where do two runs differ?", attention=compare_view.shows_attention, beside=True
    ),
}


def main(roots: Sequence[Path]) -> None:
    """Draws the whole page for the runs under `roots`."""
    try:
        page(roots)
    except UserError as error:
        _name("no run")
        st.error(controls.plain(str(error)))
        st.button("Look again")
        _watch(roots, None, _state(roots, None))


def page(roots: Sequence[Path]) -> None:
    """The same; raises UserError when there is no run, or the shown one vanished or is damaged."""
    controls.drawn_anew()
    runs, refused = data.available(roots)
    with st.sidebar:
        if not runs:
            _tell(refused)
            places = ", ".join(str(root) for root in roots)
            raise UserError(f"No run in {places}. Make one with: htc-extract --split val")
        run = controls.choose_run(runs)
        name = controls.opened(list(PAGES), "page")
        _name(f"{run.name} · {name}")
        key = data.key_of(run.path)
        header = data.header(key)
        st.caption(overview_view.summary(header))
        selection = _select(key, header, PAGES[name])
        glossary.button()
        keys.listen()
        _tell([*refused, *data.refused_beside(run.path)])
        _watch(roots, run.path, _state(roots, run.path))
    parts = {name: partial(_draw, page) for name, page in PAGES.items()}
    controls.tabs(parts, "page", View(run.path, key, header, selection, tuple(runs)))


def _name(what: str) -> None:
    """Names the browser's tab."""
    # No page_icon: Streamlit fetches Material icons for it from the network.
    st.set_page_config(page_title=f"{what} · htc-dashboard", layout="wide")


def _select(key: data.RunKey, header: data.Header, page: Page) -> controls.Selection:
    """What of the sidebar does something on this page; the rest stays as it was chosen."""
    controls.keep("image", "layer", "head", "log", "beside")
    chosen, doubt = controls.chosen(len(header.ids))
    image, layer, head = 0, None, None
    beside: tuple[int, ...] = ()
    if page.image:
        image = controls.choose_image(header.ids, chosen, partial(data.matching, key))
        controls.show_chosen(chosen, doubt)
        beside = _pinned(key, header, image, page.beside)
    if page.attention():
        layer, head = controls.choose_attention(header.shape)
    log = page.log and st.toggle("Log scale", key="log", help="Of shares of attention: tells small shares apart.")
    return controls.Selection(image, layer, head, log, chosen, beside)


def _pinned(key: data.RunKey, header: data.Header, image: int, side_by_side: bool) -> tuple[int, ...]:
    """The pinned images where the page shows them side by side; those that are pinned are in the sidebar."""
    rows = controls.choose_pinned(image, len(header.ids))
    if not rows:
        return ()
    pictures = [
        gallery.Picture(row, source, f"{row + 1:,} · {header.ids[row]}", (f"image {row + 1:,}",), row == image)
        for row, source in zip(rows, data.pictures(key, rows), strict=True)
    ]
    gallery.show(pictures, "pinned_images", controls.go_to_image)
    told = "Figures of one image are drawn once for each pinned image."
    shown = side_by_side and st.toggle("Pinned side by side", key="beside", help=told, bind="query-params")
    return rows if shown else ()


@controls.fragment  # what is chosen on a page draws the page, and not the sidebar
def _draw(page: Page, view: View) -> None:
    if page.title:
        st.title(page.title)
    page.show(view)


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
