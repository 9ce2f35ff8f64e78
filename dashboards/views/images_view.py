"""The images as a collection: browse, filter, sort and select them; pin, tag and note the one that is shown.

Lays out; reads through data.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import streamlit as st

from htc_probe.dashboards import data
from htc_probe.dashboards.notes import Note
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts import gallery, noting
from htc_probe.dashboards.runs import RunFile
from htc_probe.dashboards.views.view import View
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Task
from htc_probe.probes.scores.intervals import mean_known

_AT_ONCE = 48
"""Images on the page."""
_ANY, _RIGHT, _WRONG = "any", "right", "wrong"
_NONE = "none"
_RUN, _ID, _ENTROPY, _ANCHORS, _LOSS = "order of the run", "id", "entropy of attention", "anchor share", "loss"
_LOWEST, _HIGHEST = "lowest first", "highest first"


class _Sorted(NamedTuple):
    """What images are sorted by."""

    words: str
    amount_N: np.ndarray
    form: str = ".3g"


@ui.fragment
def show(view: View) -> None:
    """Draws the page."""
    missing: dict[str, str] = {}
    rows, by, task = _filtered(view, missing)
    main, side = ui.side_by_side([8, 4], "images", least=300)
    with main:
        _found(view, rows, by, task)
    with side:
        _current(view)
    if missing:
        with st.expander("What else images can be filtered and sorted by"):
            for what, command in missing.items():
                ui.fill(what, command, view.path)


def shows_attention() -> bool:
    """Whether images are sorted by what layer and head change."""
    return st.session_state.get("sort", st.query_params.get("sort")) in (_ENTROPY, _ANCHORS)


# ---- filters


def _filtered(view: View, missing: dict[str, str]) -> tuple[np.ndarray, _Sorted | None, Task | None]:
    """The rows to show in their order, by what they are sorted, and the task whose label stands under them."""
    selection, images = view.selection, view.header.shape.images
    keep_N = np.isin(np.arange(images), selection.chosen) if selection.chosen else np.ones(images, bool)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        keep_N &= _by_label(view) & _by_tag(view) & _by_id(view)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        found = _choose_reader(view, missing)
        if found is not None:
            keep_N &= _by_right(view, *found)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        rows, by = _sorted(view, np.flatnonzero(keep_N), None if found is None else found[1], missing)
    tasks = {task.name: task for task in view.header.tasks}
    task = tasks.get(st.session_state.get("task", ""), next(iter(tasks.values()), None))
    return rows, by, task


def _several(label: str, options: Sequence[str], key: str, **more: Any) -> list[str]:
    """Any number of many; in the address."""
    if any(name not in options for name in st.session_state.get(key, ())):
        st.session_state[key] = [name for name in st.session_state[key] if name in options]
    return st.multiselect(label, options, key=key, bind="query-params", width=264, **more)


def _by_label(view: View) -> np.ndarray:
    keep_N = np.ones(view.header.shape.images, bool)
    labels = data.labels(view.key)
    found = {task.name: data.groups(task, labels[task.name]) for task in view.header.tasks}
    if not found:
        return keep_N
    options = {f"{task}: {name}": (task, name) for task, names in found.items() for name in names}
    told = "Of several tasks, an image must match all. Of several classes of one task, it must match any."
    chosen = [options[name] for name in _several("Labels", list(options), "labels", placeholder="all", help=told)]
    for task in view.header.tasks:
        if names := [name for of, name in chosen if of == task.name]:
            keep_N &= data.labelled(task, labels[task.name], names)
    return keep_N


def _by_tag(view: View) -> np.ndarray:
    notes, ids = data.notes(view.path), view.header.ids
    keep_N = np.ones(len(ids), bool)
    tags = sorted({tag for note in notes.values() for tag in note.tags})
    options = [*tags, *([noting.NOTED] if any(note.text for note in notes.values()) else [])]
    for tag in _several("Tags", options, "tags", placeholder="all" if options else "no image has a tag", help=None):
        keep_N &= [name in notes and _tagged(notes[name], tag) for name in ids]
    return keep_N


def _tagged(note: Note, tag: str) -> bool:
    return tag in note.tags or (tag == noting.NOTED and bool(note.text))


def _by_id(view: View) -> np.ndarray:
    part = st.text_input("Id", key="id_part", bind="query-params", placeholder="a part of it", width=160).casefold()
    return np.array([part in name.casefold() for name in view.header.ids] if part else [True] * len(view.header.ids))


# ---- right and wrong


def _choose_reader(view: View, missing: dict[str, str]) -> tuple[data.Reader, data.Read] | None:
    """Of all that read the images; None where nothing did."""
    readers = data.readers(view.path, view.header)
    if all(reader.source == data.ANSWERS for reader in readers):
        missing["Right, wrong and loss need probes."] = "htc-probe semantic detail"
    if all(reader.source != data.ANSWERS for reader in readers):
        missing["Right and wrong answers need the model's answers."] = "htc-analyze interchange"
    if not readers:
        return None
    task = ui.select("Task", list(dict.fromkeys(reader.task for reader in readers)), "task", width=230)
    sources = [reader.source for reader in readers if reader.task == task]
    reader = data.Reader(task, ui.select("Read from", sources, "read", width=230))
    return reader, readers[reader]()


def _by_right(view: View, reader: data.Reader, read: data.Read) -> np.ndarray:
    keep_N = np.ones(len(read.right_N), bool)
    if not np.isfinite(read.right_N).any():
        return keep_N
    which = ui.pick("Prediction", [_ANY, _RIGHT, _WRONG], "right")
    if which != _ANY:
        keep_N &= read.right_N == (which == _RIGHT)
    others = {run.name: run.path for run in view.runs if run.path != view.path and _same_images(view, run)}
    if not others:
        return keep_N
    other = ui.select("And in the run", [_NONE, *others], "right_of", width=230)
    if other == _NONE:
        return keep_N
    there = ui.pick("Prediction there", [_RIGHT, _WRONG], "right_there")
    right_N = data.right_there(view.key, others[other], reader)
    if right_N is None:
        st.caption(ui.plain(f"{other} has no prediction of {reader.task} from {reader.source}."))
        return keep_N
    return keep_N & (right_N == (there == _RIGHT))


def _same_images(view: View, run: RunFile) -> bool:
    """As far as its name tells."""
    other = data.header(data.key_of(run.path)).info
    return (other.dataset, other.split) == (view.header.info.dataset, view.header.info.split)


# ---- the order


def _sorted(
    view: View, rows: np.ndarray, read: data.Read | None, missing: dict[str, str]
) -> tuple[np.ndarray, _Sorted | None]:
    selection, ids = view.selection, view.header.ids
    ways: dict[str, Callable[[], _Sorted]] = {}
    ways[_ENTROPY] = lambda: _Sorted("bits", _entropy(view))
    if view.header.shape.anchors:
        ways[_ANCHORS] = lambda: _Sorted(
            "anchors", data.anchor_values(view.key, selection.layer, selection.head), ".2%"
        )
    if read is not None and read.loss_N is not None:
        loss_N, unit = read.loss_N, read.unit
        ways[_LOSS] = lambda: _Sorted(unit, loss_N)
    ways |= _effects(view, missing)
    chosen = ui.select("Sort by", [_RUN, _ID, *ways], "sort", width=330, on_change=ui.everywhere)
    if chosen == _RUN:
        return rows, None
    highest = ui.pick("Order", [_LOWEST, _HIGHEST], "order") == _HIGHEST
    if chosen == _ID:
        return np.array(sorted(rows.tolist(), key=ids.__getitem__, reverse=highest), int), None
    by = ways[chosen]()
    known = int(np.isfinite(by.amount_N[rows]).sum())
    if known < len(rows):
        st.caption(f"{known:,} of these {len(rows):,} images have a value; the others come last.")
    return data.ordered(rows, by.amount_N, highest), by


def _entropy(view: View) -> np.ndarray:
    value_NLH, selection = data.entropies(view.key), view.selection
    value_NL = value_NLH.mean(-1) if selection.head is None else value_NLH[..., selection.head]
    return np.asarray(value_NL.mean(-1) if selection.layer is None else value_NL[:, selection.layer])


def _effects(view: View, missing: dict[str, str]) -> dict[str, Callable[[], _Sorted]]:
    """Of taking groups of tokens away, closed in all layers."""
    try:
        section = data.sections(view.path, view.header).knockouts
        rows = [] if section is None else data.rows_of(view.key, section.images)
    except UserError:  # the page of knock-outs tells of it
        section = None
    if section is None or "zero" not in section.group.modes:
        missing["Effects need knock-outs."] = "htc-analyze knockouts"
        return {}
    images, group = view.header.shape.images, section.group
    closed = group.modes.index("zero")
    ways: dict[str, Callable[[], _Sorted]] = {}
    for number, name in enumerate(group.names):
        effects = {"z_voco": (group.change[:, closed, number], "of z_voco")}
        if group.answers is not None:
            effects["the true answers"] = (-mean_known(group.answers[:, closed, number], -1), "nats lost")
        for what, (value_n, unit) in effects.items():
            if np.isfinite(value_n).any():

                def way(value_n: np.ndarray = value_n, unit: str = unit) -> _Sorted:
                    amount_N = np.full(images, np.nan)
                    amount_N[rows] = value_n
                    return _Sorted(unit, amount_N)

                ways[f"effect of knocking out {name} on {what}"] = way
    return ways


# ---- what is found


def _current(view: View) -> None:
    """The image of all pages, with its labels, tags and note."""
    image, header = view.selection.image, view.header
    name = header.ids[image]
    st.markdown(f"**Image {image + 1:,}**: {ui.plain(name)}")
    st.image(data.thumbnail(view.key, image), width=180, alt=f"thumbnail of image {name}")
    labels = data.labels(view.key)
    told = [f"{task.name}: {data.label_text(task, labels[task.name][image])}" for task in header.tasks]
    st.caption(" · ".join(map(ui.plain, told)))
    ui.pin_button(image, len(header.ids), "pin_here")
    noting.show(view.path, name)


def _found(view: View, rows: np.ndarray, by: _Sorted | None, task: Task | None) -> None:
    total, chosen = view.header.shape.images, len(view.selection.chosen)
    of = f"{chosen:,} selected images" if chosen else f"{total:,} images"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{len(rows):,} of {of}**")
        if len(rows):
            ui.select_button(rows, "images_select")
            noting.tag_all(view.path, [view.header.ids[row] for row in rows])
        noting.export(view.path)
    if not len(rows):
        st.info("No image matches all filters. Remove one.")
        return
    pages = -(-len(rows) // _AT_ONCE)
    list_of = zlib.crc32(rows.tobytes())  # another list begins at its first page
    if st.session_state.setdefault("images_of", list_of) != list_of or st.session_state.get("images_page", 1) > pages:
        st.session_state["images_page"] = 1
    st.session_state["images_of"] = list_of
    page = st.pagination(pages, key="images_page", max_visible_pages=7, bind="query-params") if pages > 1 else 1
    on_page = rows[_AT_ONCE * (page - 1) : _AT_ONCE * page].tolist()
    label_N = None if task is None else data.labels(view.key)[task.name]
    pictures = []
    for row, source in zip(on_page, data.pictures(view.key, on_page), strict=True):
        name = view.header.ids[row]
        lines = [gallery.short(name)]
        if task is not None and label_N is not None:
            lines.append(data.label_text(task, label_N[row]))
        if by is not None:
            amount = by.amount_N[row]
            lines.append(f"{amount:{by.form}} {by.words}" if np.isfinite(amount) else "unknown")
        words = " · ".join([f"{row + 1:,}", name, *lines[1:]])
        pictures.append(gallery.Picture(row, source, words, tuple(lines), row == view.selection.image))
    gallery.show(pictures, "images_gallery", ui.go_to_image)
    ui.how_to_read(
        "Click an image to show it on all pages. Below each image are its id, its label"
        + (f" of {ui.plain(task.name)}" if task is not None else "")
        + " and the value that it is sorted by."
    )
