"""The sidebar, and what every page is made of: charts, tables, captions, and words for what is not there.

Knows Streamlit and names; reads no run and makes no figure. What is chosen stays chosen when another run is picked, as
far as the other run has it, so that runs can be compared; run, page, image, layer, head, the selection and the
pinned images are in the address, which can be shared.
"""

import contextlib
import functools
import logging
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVarTuple, cast

import streamlit as st

from htc_probe.dashboards import selections
from htc_probe.dashboards.charts.source import Nothing
from htc_probe.dashboards.data import kept
from htc_probe.dashboards.parts.chart import points
from htc_probe.dashboards.parts.copies import key_here
from htc_probe.dashboards.runs import RunFile
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import RunShape

_LOG = logging.getLogger(__name__)
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")
_EVERYWHERE = "everywhere"  # of the session: something that all pages show was changed
_MOST_PINNED = 4
_MOST_HELD = 50  # selections that no address can hold


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
    chosen: tuple[int, ...] = ()
    """Rows of the selected images, ascending; () is all images."""
    beside: tuple[int, ...] = ()
    """Rows of the pinned images, where pages show them side by side in the place of `image`."""

    @property
    def number(self) -> int:
        """Of the image, from 1."""
        return self.image + 1

    @property
    def cell(self) -> dict[str, Any]:
        """Layer and head from 1, as charts take them."""
        of = {"layer": self.layer, "head": self.head}
        return {name: None if place is None else place + 1 for name, place in of.items()}

    @property
    def images(self) -> tuple[int, ...]:
        """Numbers, from 1, of the selected images."""
        return tuple(row + 1 for row in self.chosen)


def plain(text: str) -> str:
    """`text` so that Streamlit shows it as it is: as Markdown, a name could load a remote picture."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


# ---- the sidebar


def keep(*keys: str) -> None:
    """Keeps what was chosen in widgets also while no page shows them: Streamlit forgets it otherwise."""
    for key in keys:
        if key in st.session_state:
            st.session_state[key] = st.session_state[key]


def choose_run(runs: Sequence[RunFile]) -> RunFile:
    """A select box over the runs; says so when the run that was shown is no longer among them."""
    by_name = {run.name: run for run in runs}
    wanted = st.session_state.get("run") or st.query_params.get("run")
    if wanted is not None and wanted not in by_name:
        st.session_state.pop("run", None)
        st.warning(plain(f"No run named {wanted}; showing {runs[0].name}."))
    name = st.selectbox(
        "Run",
        list(by_name),
        key="run",
        format_func=lambda name: name if by_name[name].finished else f"{name} (unfinished)",
        bind="query-params",
    )
    return by_name[name]


def choose_image(ids: Sequence[str], chosen: Sequence[int], matching: Callable[[str], Sequence[int]]) -> int:
    """Number, next and previous, search. Returns the row, from 0. matching: the rows that a search finds."""
    last = len(ids) - 1
    if last == 0:
        st.caption(f"One image: {plain(ids[0])}")
        return 0
    st.session_state["image"] = min(max(st.session_state.get("image", 1), 1), last + 1)

    def step(by: int) -> None:
        rows = chosen or range(last + 1)
        current = st.session_state["image"] - 1
        ahead = [row for row in rows if (row > current if by > 0 else row < current)]
        if ahead:
            st.session_state["image"] = (min(ahead) if by > 0 else max(ahead)) + 1

    number = st.number_input("Image", 1, last + 1, key="image", bind="query-params") - 1
    previous, following = st.columns(2)
    previous.button("Previous", key="previous", shortcut="P", on_click=step, args=(-1,), width="stretch")
    following.button("Next", key="next", shortcut="N", on_click=step, args=(1,), width="stretch")
    _find(number, matching)
    return number


def _find(current: int, matching: Callable[[str], Sequence[int]]) -> None:
    """A form, so that Enter searches again: the same words find the next image."""

    def find() -> None:
        text, rows = st.session_state["find"], matching(st.session_state["find"])
        again = st.session_state.get("found") == text
        if rows and (again or current not in rows):
            st.session_state["image"] = next((row for row in rows if row > current), rows[0]) + 1
        st.session_state["found"] = text

    with st.form("finding", border=False), st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        words = "Words of an id or of labels; `texture: striped` looks in one task. Enter again for the next image."
        st.text_input("Find", key="find", placeholder="id or label", help=words)
        st.form_submit_button("Find", on_click=find)
    if text := st.session_state.get("found"):
        rows = matching(text)
        at = f"{rows.index(current) + 1:,} of " if current in rows else ""
        st.caption(f"{at}{len(rows):,} that match." if rows else f"No image has {plain(text)} in its id or labels.")


_LAYERS = "Decoder layers, counted from 1; 0 is the embedding. Text reads <voco> as it enters each layer."


def choose_attention(shape: RunShape) -> tuple[int | None, int | None]:
    """Layer and head, each from 0, or None for the mean."""
    left, right = st.columns(2)
    chosen = []
    for column, key, count, words in (
        (left, "layer", shape.layers, _LAYERS),
        (right, "head", shape.heads, "Counted from 1."),
    ):
        options = ["mean", *map(str, range(1, count + 1))]
        if st.session_state.get(key, "mean") not in options:
            st.session_state[key] = "mean"
        value = column.selectbox(key.capitalize(), options, key=key, help=words, bind="query-params")
        chosen.append(None if value == "mean" else int(value) - 1)
    return chosen[0], chosen[1]


def show_chosen(chosen: Sequence[int], doubt: str) -> None:
    """Says how many images are selected and what of the address could not be followed, and offers to let go of it."""
    if chosen:
        images = "1 image is" if len(chosen) == 1 else f"{len(chosen):,} images are"
        st.caption(f"{images} selected: pages show these, and Next and Previous stay among them.")
    if doubt:
        st.warning(plain(doubt))
    if chosen or doubt:
        st.button("Clear selection", on_click=choose, args=((),), width="stretch")


# ---- what a click does


def choose(rows: Iterable[int]) -> None:
    """Selects images, on all pages and in the address; () selects all. Everything that selects images calls this. To be
    called from a callback: the pages are drawn after it.
    """
    everywhere()
    rows = tuple(map(int, rows))
    text = selections.encode(rows)
    if selections.is_fingerprint(text):
        held = _held()
        held[text] = rows
        for oldest in list(held)[:-_MOST_HELD]:
            del held[oldest]
    if text:
        st.query_params["selection"] = text
    else:
        st.query_params.pop("selection", None)


def chosen(images: int) -> tuple[tuple[int, ...], str]:
    """Those of the selected images that a run of so many has, ascending, and what of the address cannot be followed, in
    words. () is all images.
    """
    text = st.query_params.get("selection", "")
    if selections.is_fingerprint(text):
        if text not in _held():
            return (), (
                "This selection was too large for the address, and the dashboard that kept it has been restarted. "
                "All images are shown."
            )
        text_rows = _held()[text]
        rows = tuple(row for row in sorted(text_rows) if row < images)
        beyond = len(text_rows) - len(rows)
    else:
        try:
            rows, beyond = selections.decode(text, images)
        except UserError as error:
            return (), f"{error}. All images are shown."
    if not beyond:
        return rows, ""
    shown = "the others are shown" if rows else "all images are shown"
    return rows, f"{beyond:,} of the {beyond + len(rows):,} selected images are not in this run; {shown}."


def _pinned(images: int) -> tuple[tuple[int, ...], str]:
    """The pinned images that a run of so many has, ascending, and what of the address cannot be followed, in words."""
    try:
        rows, beyond = selections.decode(st.query_params.get("pinned", ""), images)
    except UserError as error:
        return (), f"{error}. No image is pinned."
    told = [f"{beyond:,} of the pinned images are not in this run"] * (beyond > 0)
    if len(rows) > _MOST_PINNED:
        told.append(f"the address pins {len(rows):,} images; only the first {_MOST_PINNED} are pinned")
    return rows[:_MOST_PINNED], "; ".join(told)


def _change_pin(row: int, images: int) -> None:
    everywhere()
    rows, _ = _pinned(images)
    if row not in rows and len(rows) == _MOST_PINNED:
        st.session_state["pins_full"] = row
        return
    _pin({*rows} ^ {row})


def _pin(rows: Iterable[int]) -> None:
    if text := selections.encode(rows):
        st.query_params["pinned"] = text
    else:
        st.query_params.pop("pinned", None)


def pin_button(image: int, images: int, key: str) -> None:
    """Pins an image, or lets go of it."""
    word = "Unpin" if image in _pinned(images)[0] else "Pin"
    st.button(f"{word} image {image + 1:,}", key=key, on_click=_change_pin, args=(image, images), width="stretch")


def choose_pinned(image: int, images: int) -> tuple[int, ...]:
    """Pins the image that is shown, or lets go of it; says why a fifth is not pinned. Returns the pinned ones."""
    rows, doubt = _pinned(images)
    pin_button(image, images, "pin")
    if (row := st.session_state.pop("pins_full", None)) is not None:
        st.warning(f"Image {row + 1:,} is not pinned: {_MOST_PINNED} images are pinned already. Unpin one first.")
    if doubt:
        st.warning(plain(doubt))
        st.button("Unpin all", on_click=_pin, args=((),), width="stretch")
    return rows


@kept(1)
def _held() -> dict[str, tuple[int, ...]]:
    """Selections that no address can hold, by what stands there."""
    return {}


def select_button(rows: Iterable[int], key: str, place: Any = st, **more: Any) -> None:
    """Selects these images."""
    rows = tuple(map(int, rows))
    words = f"Select these {len(rows):,} images" if len(rows) > 1 else "Select this image"
    told = "The selection holds on all pages; Next and Previous stay within it."
    place.button(words, key=key, on_click=choose, args=(rows,), help=told, **more)


def go_to_image(row: int) -> None:
    """Shows another image on all pages. To be called from a callback."""
    st.session_state["image"] = row + 1
    everywhere()


def go_to_point(key: str) -> None:
    """Shows the image of the point that was clicked in the chart `key`, whose customdata is the row. For `draw`."""
    for point in points(key)[:1]:
        if isinstance(row := point.get("customdata"), int):
            go_to_image(row)


def go_to_cell(layer: int | None, head: int | None) -> None:
    """Shows another layer and head, each from 0, on all pages. To be called from a callback."""
    st.session_state["layer"] = "mean" if layer is None else str(layer + 1)
    st.session_state["head"] = "mean" if head is None else str(head + 1)
    everywhere()


def go_to_clicked(key: str) -> None:
    """Shows the layer and head of the cell that was clicked in the chart `key`. For `draw`."""
    for point in points(key)[:1]:
        go_to_cell(int(point["x"]) - 1, int(point["y"]) - 1)


# ---- what pages are made of


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Says in words what went wrong in a page or a part of one; the rest stays usable. What nobody expected has its
    traceback in the log, which the server writes to the terminal.
    """
    try:
        yield
    except Exception as error:  # no control flow of Streamlit, which is no Exception
        tell(error)


@contextlib.contextmanager
def possible() -> Iterator[None]:
    """Says why a chart cannot be drawn, where the run holds nothing for it."""
    try:
        yield
    except Nothing as why:
        st.info(plain(str(why)))


def tell(error: Exception) -> None:
    """The same of one error."""
    if isinstance(error, UserError):
        st.error(plain(str(error)))
        return
    page = st.session_state.get("page", "")
    _LOG.error("the page %s failed", page, exc_info=error)
    st.error(
        f"A part of the page {plain(page)} cannot be shown ({plain(type(error).__name__)}). Another version of "
        "htc-analyze or htc-probe may have written the files beside the run: remove them and run the command again. "
        "Otherwise this is a fault of the dashboard; its terminal says where it happened."
    )


def fragment(part: Callable[P, None]) -> Callable[P, None]:
    """`st.fragment`, guarded: what goes wrong in one does not reach the page. What a click in it changes on all pages
    is drawn everywhere.
    """

    @st.fragment
    @functools.wraps(part)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> None:
        if drawn_anew():
            st.rerun()
        with guarded():
            part(*args, **kwargs)

    return drawn


def everywhere() -> None:
    """Says that what is changed is on the whole page. To be called from a callback."""
    st.session_state[_EVERYWHERE] = True


def drawn_anew() -> bool:
    """Whether what all pages show was changed since this was asked last, as the whole page asks before it is drawn: a
    fragment that hears so first is drawn by itself, and that is too little.
    """
    return bool(st.session_state.pop(_EVERYWHERE, False))


def tabs(
    parts: Mapping[str, Callable[[*Ts], None]], key: str, *args: *Ts, on_change: str | Callable[[], None] = "rerun"
) -> None:
    """A tab for each part, of which only the open one is drawn, guarded; in the address. on_change: `everywhere` where
    the sidebar hangs on which is open.
    """
    shown = st.tabs(list(parts), key=key, bind="query-params", on_change=cast(Any, on_change))
    for tab, part in zip(shown, parts.values(), strict=True):
        if tab.open:
            with tab, guarded():
                part(*args)


def opened(names: Sequence[str], key: str) -> str:
    """Which of the `tabs` with this key is open, before they are drawn."""
    wanted = st.session_state.get(key) or st.query_params.get(key)
    return next((name for name in names if name == wanted), names[0])


def pick(label: str, options: Sequence[str], key: str, place: Any = st, **more: Any) -> str:
    """One of a few options, all in sight; in the address. `format_func` must make Markdown of names from files."""
    _keep(key, options)
    look = {"default": options[0], "required": True, "bind": "query-params", **more}
    return place.segmented_control(label, options, key=key, **look)


def select(label: str, options: Sequence[str], key: str, place: Any = st, **more: Any) -> str:
    """One of many, in a select box; in the address."""
    _keep(key, options)
    return place.selectbox(label, options, key=key, bind="query-params", **more)


def _keep(key: str, options: Sequence[str]) -> None:
    """Lets go of what was chosen for another run or task and is not there in this one."""
    if st.session_state.get(key, options[0]) not in options:
        st.session_state[key] = options[0]


def side_by_side(spec: int | Sequence[float], key: str, *, least: int = 280, align: Any = "top") -> list[Any]:
    """Columns that go under each other where they would be narrower than `least` pixels, as on a small window."""
    key = key_here(key)
    columns = f".st-key-row_{key} > * > * > [data-testid='stColumn']"  # not those within these
    st.html(f"<style>{columns} {{min-width: min(100%, {least}px)}}</style>")
    return st.container(key=f"row_{key}").columns(spec, vertical_alignment=align)


def table(columns: Mapping[str, Sequence[Any]], key: str) -> None:
    """A table, as text on a canvas; its toolbar has a search and saves it as CSV."""
    st.dataframe(dict(columns), hide_index=True, height="content", key=key_here(key))


def how_to_read(text: str) -> None:
    """A caption in plain words under a figure. `text` is our own and may hold Markdown."""
    st.caption(text)


def fill(what: str, command: str, run: Path) -> None:
    """Says why a place is empty, and the command that fills it; `command` without its run, such as
    `htc-analyze knockouts`.
    """
    st.info(f"{what} To compute it, run:")
    st.code(f"{command} --run {shlex.quote(str(run))}", language=None, wrap_lines=True)
