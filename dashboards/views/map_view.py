"""The images as points: which lie together, by what they show, and which are nearest to the one that is shown.

Lays out; reads through data, draws by charts.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import streamlit as st

from htc_probe.analysis.sections import Map
from htc_probe.dashboards import charts, data
from htc_probe.dashboards.charts.map import ANCHORS, METHODS
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts import gallery, hover
from htc_probe.dashboards.parts.chart import draw, made, points
from htc_probe.dashboards.views.view import View, each_image, not_analysed
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Task
from htc_probe.probes.inputs.representations import shown

_AT_ONCE = 24
"""Pictures of the selection on the page."""
_EVERY = "all classes"
_LABEL, _PROBE = "label", "probe"
_NOTHING = "one colour"


class _Coloured(NamedTuple):
    """By what the points are coloured."""

    told: dict[str, Any]
    """As `charts.map.images` is told."""
    task: Task | None
    """The task whose label stands under pictures."""


def show(view: View) -> None:
    """Draws the page."""
    if view.source.sections.map is None:
        needs = "" if view.header.finished else " A map needs a finished run."
        not_analysed(view, f"This run has no map yet.{needs}", "map")
        return
    maps = charts.map.section(view.source)
    coloured = _choices(view, maps)
    grid = st.grid(5, min_column_width=180)  # one below the other in a narrow window
    with grid.cell(column_span=3):
        _map(view, coloured)
    with grid.cell(column_span=2):
        _selection(view, coloured)
        if not view.selection.chosen:
            _trust(view)
    _neighbours(view, maps, coloured)
    if view.selection.chosen:
        _trust(view)


def shows_attention() -> bool:
    """Whether the points are coloured by attention."""
    return st.session_state.get("map_colour", st.query_params.get("map_colour")) == ANCHORS


def _choices(view: View, maps: Map) -> _Coloured:
    """What is mapped, how, and its colours."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = _pick("Map of", maps.map_of, "map_of")
        method = _pick("By", list(METHODS), "map_by")
        tasks = {task.name: task for task in view.header.tasks}
        first = next((task.name for task in tasks.values() if task.kind == "classes"), _NOTHING)
        colours = [ANCHORS] * bool(view.header.shape.anchors) + [_NOTHING]
        options = sorted(tasks, key=first.__ne__) + [name for name in colours if name not in tasks]
        chosen = ui.select("Coloured by", options, "map_colour", width=240, on_change=ui.everywhere)
        task = tasks.get(chosen)
        label = None
        if task is not None and task.classes:
            every = [] if task.kind == "multilabel" else [_EVERY]
            label = ui.select("Class", [*every, *task.classes], "map_class", width=240)
            label = None if label in every else label
        said = task is not None and _said(view, task, name)
        probe = said and _pick("Show", [_LABEL, _PROBE], "map_score") == _PROBE
    colour = None if task is None and chosen == _NOTHING else chosen
    return _Coloured({"of": name, "by": method, "colour": colour, "label": label, "probe": probe}, task)


def _pick(label: str, options: Sequence[str], key: str) -> str:
    return ui.pick(label, options, key, format_func=lambda option: ui.plain(shown(option)))


def _said(view: View, task: Task, representation: str) -> bool:
    """Whether there is what the probe of the task said from this representation."""
    try:
        return charts.map.predicted(view.source, task.name, representation) is not None
    except UserError as error:
        st.warning(ui.plain(str(error)))
        return False


def _map(view: View, coloured: _Coloured) -> None:
    key, header, selection = view.key, view.header, view.selection
    told = coloured.told | (selection.cell if coloured.told["colour"] == ANCHORS and coloured.task is None else {})
    figure = made(charts.map.images, view.path, **told, image=selection.number, chosen=selection.images)
    draw(figure, "map", on_click=partial(ui.go_to_point, "map"), on_area=_select)

    def picture(row: int) -> hover.Picture:
        lines = [f"{row + 1:,} · {header.ids[row]}"]
        if coloured.task is not None:
            lines.append(f"{coloured.task.name}: {_label(view, coloured.task, row)}")
        try:
            (source,) = data.pictures(key, [row])
        except UserError as error:  # the run went while the page was open
            return hover.Picture("", str(error))
        return hover.Picture(source, "\n".join(lines))

    hover.pictures("map", repr((key, told["colour"])), picture)
    ui.how_to_read(
        "Each point is an image. Similar images lie together, as far as two dimensions allow; in UMAP, distances "
        "between far groups, their sizes and the empty space mean little. Point at a point to see its image; click it "
        "to show the image on all pages (ring). Draw a lasso or a box to select images; double-click to clear the "
        "selection. Classes are drawn in mixed order; pick one to draw it on top."
    )


def _select() -> None:
    ui.choose([point["customdata"] for point in points("map") if isinstance(point.get("customdata"), int)])


def _label(view: View, task: Task, row: int) -> str:
    return data.label_text(task, data.labels(view.key)[task.name][row])


def _trust(view: View) -> None:
    draw(made(charts.map.kept, view.path), "map_kept")
    ui.how_to_read(
        "A map in two dimensions separates some neighbours. Where a bar is low, images that lie together may differ. "
        "The nearest images below are found in all dimensions, not on the map."
    )


# ---- neighbours


def _neighbours(view: View, maps: Map, coloured: _Coloured) -> None:
    st.header("Which images are nearest to this one?")
    each_image(view, partial(_nearest, maps=maps, coloured=coloured), "near")


def _nearest(view: View, maps: Map, coloured: _Coloured) -> None:
    image = view.selection.image
    place = maps.place(image)
    if place is None:
        st.info(
            f"Image {image + 1:,} is not on the map, which has {len(maps.rows):,} of {view.header.shape.images:,} "
            "images. Click a point, or press Next, to see another one."
        )
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.image(data.thumbnail(view.key, image), width=96, alt=f"image {image + 1}")
        words = [f"image {image + 1:,}", view.header.ids[image]]
        if coloured.task is not None:
            words.append(f"{coloured.task.name}: {_label(view, coloured.task, image)}")
        st.caption("  \n".join(map(ui.plain, words)), width="content")
    _rows(view, maps, coloured.task, place)
    ui.how_to_read(
        "Each row shows the images nearest to this one in one representation (all dimensions, standardised, Euclidean; "
        "codes: most equal codes). Images of its own group are left out. The number is the distance; 1 is the root "
        "mean square distance of two images of the run."
    )


def _rows(view: View, maps: Map, task: Task | None, place: int) -> None:
    """The nearest images, a row a representation."""
    near = {name: maps.nearest_rows[number, place] for number, name in enumerate(maps.map_of)}
    shared: set[int] = set()
    if "z_voco" in near and "v_pooled" in near:
        shared = (set(near["z_voco"]) & set(near["v_pooled"])) - {-1}
        k = len(near["z_voco"])
        st.markdown(
            f"**{len(shared)} of the {k}** images nearest by z\\_voco are also nearest by pooled V (by chance "
            f"{k**2 / (len(maps.rows) - 1):.2g}). They have a blue frame."
        )
    for number, (name, rows) in enumerate(near.items()):
        known_K = rows >= 0
        st.markdown(f"**{ui.plain(shown(name))}**{_same(view, maps, task, rows[known_K])}")
        away = [f"{value:.2f}" for value in maps.nearest_distance[number, place][known_K]]
        framed = shared if name in ("z_voco", "v_pooled") else ()
        _gallery(view, task, rows[known_K].tolist(), f"map_near_{number}", away, framed)


def _same(view: View, maps: Map, task: Task | None, rows: np.ndarray) -> str:
    """How many of them have the label of the image."""
    image = view.selection.image
    if task is None or task.kind != "classes":
        return ""
    labels = data.labels(view.key)[task.name]
    if labels[image] < 0:
        return ""
    alike, known = int((labels[rows] == labels[image]).sum()), int((labels[rows] >= 0).sum())
    mapped = labels[maps.rows[maps.rows != image]]
    chance = known * float((mapped[mapped >= 0] == labels[image]).mean()) if (mapped >= 0).any() else 0.0
    return f" · same {ui.plain(task.name)}: {alike} of {known}, by chance {chance:.1f}"


def _gallery(
    view: View, task: Task | None, rows: list[int], key: str, notes: Sequence[str] = (), marked: Collection[int] = ()
) -> None:
    """Thumbnails to click, under each the label of the task and its note, or the end of its id."""
    ids, pictures = view.header.ids, []
    for place, (row, source) in enumerate(zip(rows, data.pictures(view.key, rows), strict=True)):
        label = None if task is None else _label(view, task, row)
        name = f"{row + 1:,} · {ids[row]}" + ("" if task is None else f" · {task.name}: {label}")
        lines = (*([] if label is None else [label]), notes[place] if notes else gallery.short(ids[row]))
        pictures.append(gallery.Picture(row, source, name, lines, row == view.selection.image, row in marked))
    gallery.show(pictures, key, ui.go_to_image)


# ---- the selection


def _selection(view: View, coloured: _Coloured) -> None:
    chosen = np.array(view.selection.chosen, np.int64)
    st.header("Selection")
    if not len(chosen):
        st.caption("No images are selected. Draw a lasso or a box on the map to select some for all pages.")
        return
    words, button = st.columns([3, 2], vertical_alignment="center")
    words.markdown(f"**{len(chosen):,}** of {view.header.shape.images:,} images")
    if most := _most(view, coloured.task, chosen):
        st.caption(most)
    button.button("Clear selection", key="map_clear", on_click=ui.choose, args=((),), width="stretch")
    pages = -(-len(chosen) // _AT_ONCE)
    if st.session_state.get("map_page", 1) > pages:
        st.session_state["map_page"] = 1
    page = st.pagination(pages, key="map_page", max_visible_pages=5) if pages > 1 else 1
    _gallery(view, coloured.task, chosen[_AT_ONCE * (page - 1) : _AT_ONCE * page].tolist(), "map_chosen")
    lines = st.expander("As a table", key="map_lines", on_change="rerun")
    if lines.open:
        with lines:
            _lines(view, chosen)


def _lines(view: View, chosen: np.ndarray) -> None:
    labels, header = data.labels(view.key), view.header
    columns: dict[str, Sequence[object]] = {"image": (chosen + 1).tolist(), "id": [header.ids[row] for row in chosen]}
    for task in header.tasks:
        columns[task.name] = [data.label_text(task, value) for value in labels[task.name][chosen]]
    ui.table(columns, "map_table")


def _most(view: View, task: Task | None, chosen: np.ndarray) -> str:
    """The most frequent labels among them, beside those of the whole run."""
    if task is None or task.kind != "classes":
        return ""
    labels = data.labels(view.key)[task.name]
    counts, whole = (np.bincount(part[part >= 0], minlength=len(task.classes)) for part in (labels[chosen], labels))
    if not counts.sum():
        return ""
    shares = [
        f"{task.classes[number]} {counts[number] / counts.sum():.0%} ({whole[number] / whole.sum():.0%})"
        for number in np.argsort(-counts, kind="stable")[:3]
        if counts[number]
    ]
    return ui.plain(f"{task.name}: {', '.join(shares)}; in brackets: in the whole run")
