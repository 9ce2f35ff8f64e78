"""The images as points: which lie together, by what they show, and which are nearest to the one that is shown.

Lays out; reads through data, draws by figures.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import streamlit as st

from htc_probe.analysis.sections import Map
from htc_probe.analysis.stats.draws import Intervals
from htc_probe.dashboards import data, figures
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts import gallery, hover
from htc_probe.dashboards.parts.chart import draw, made, points
from htc_probe.dashboards.views.view import View
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import NUMERIC, Task
from htc_probe.probes.files.predictions import Predicted
from htc_probe.probes.inputs.representations import shown

_AT_ONCE = 24
"""Pictures of the selection on the page."""
_EVERY = "all classes"
_LABEL, _PROBE = "label", "probe"
_METHODS: dict[str, Callable[[Map], tuple[np.ndarray, Intervals]]] = {
    "UMAP": lambda found: (found.umap, found.umap_kept),
    "PCA": lambda found: (found.pca, found.pca_kept),
}
_NOTHING, _ANCHORS = "one colour", "attention on the anchors"


class _Coloured(NamedTuple):
    """By what the points are coloured."""

    words: str
    """Nothing where they are not."""
    colour: figures.Classes | figures.Amounts | None
    task: Task | None
    """The task whose label stands under pictures."""


def show(view: View) -> None:
    """Draws the page."""
    maps = data.sections(view.path, view.header).map
    if maps is None:
        needs = "" if view.header.finished else " A map needs a finished run."
        ui.fill(f"This run has no map yet.{needs}", "htc-analyze map", view.path)
        return
    data.check_map(maps, view.header.shape.images)
    method, number, coloured = _choices(view, maps)
    grid = st.grid(5, min_column_width=180)  # one below the other in a narrow window
    with grid.cell(column_span=3):
        _map(view, maps, method, number, coloured)
    with grid.cell(column_span=2):
        _selection(view, coloured)
        if not view.selection.chosen:
            _trust(maps)
    _neighbours(view, maps, coloured)
    if view.selection.chosen:
        _trust(maps)


def shows_attention() -> bool:
    """Whether the points are coloured by attention."""
    return st.session_state.get("map_colour", st.query_params.get("map_colour")) == _ANCHORS


def _choices(view: View, maps: Map) -> tuple[str, int, _Coloured]:
    """How the map is made, of what (a number of `found.map_of`), and its colours."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = _pick("Map of", maps.map_of, "map_of")
        method = _pick("By", list(_METHODS), "map_by")
        tasks = {task.name: task for task in view.header.tasks}
        first = next((task.name for task in tasks.values() if task.kind == "classes"), _NOTHING)
        colours = [_ANCHORS] * bool(view.header.shape.anchors) + [_NOTHING]
        options = sorted(tasks, key=first.__ne__) + [name for name in colours if name not in tasks]
        chosen = ui.select("Coloured by", options, "map_colour", width=240)
        task = tasks.get(chosen)
        label = None
        if task is not None and task.classes:
            every = [] if task.kind == "multilabel" else [_EVERY]
            label = ui.select("Class", [*every, *task.classes], "map_class", width=240)
            label = None if label in every else label
        predicted = None if task is None else _said(view, task, name)
        surely = predicted is not None and _pick("Show", [_LABEL, _PROBE], "map_score") == _PROBE
    if task is not None and predicted is not None and surely:
        return method, maps.map_of.index(name), _surely(view, maps.rows, task, label, name, predicted)
    return method, maps.map_of.index(name), _coloured(view, maps.rows, chosen, task, label)


def _pick(label: str, options: Sequence[str], key: str) -> str:
    return ui.pick(label, options, key, format_func=lambda option: ui.plain(shown(option)))


def _coloured(view: View, rows: np.ndarray, chosen: str, task: Task | None, label: str | None) -> _Coloured:
    """`one`: the only class that is told from the others; None for all classes."""
    if task is None and chosen == _ANCHORS:
        selection = view.selection
        mass_N = data.anchor_values(view.key, selection.layer, selection.head)
        uniform = view.header.shape.anchors / view.header.shape.keys
        axis = f"share of all attention (uniform: {uniform:.2%})"
        return _Coloured(f"{_ANCHORS}, {selection.words}", figures.Amounts(mass_N[rows], axis, ".2%"), None)
    if task is None:
        return _Coloured("", None, None)
    labels = data.labels(view.key)[task.name][rows]
    if task.kind in NUMERIC:
        return _Coloured(task.name, figures.Amounts(labels, f"{task.name} {task.unit}".strip()), task)
    if label is None:
        return _Coloured(task.name, figures.Classes(task.classes, labels), task)
    place = task.classes.index(label)
    if task.kind == "multilabel":
        flags = labels[:, place]
        colour = figures.Classes((label, f"no {label}"), np.where(task.known(flags), 1 - flags.astype(int), -1), 0)
    else:
        colour = figures.Classes((label, f"not {label}"), np.where(labels < 0, -1, (labels != place).astype(int)), 0)
    return _Coloured(f"{task.name}: {label}", colour, task)


def _said(view: View, task: Task, representation: str) -> Predicted | None:
    """What the probe of the task said from this representation, z_voco's last layer that was probed; None where there
    is none of this run.
    """
    beside = data.said_beside(view.path)
    if beside is None:
        return None
    key = data.key_of(beside)
    try:
        predictions = data.predictions(key)
    except UserError as error:
        st.warning(ui.plain(str(error)))
        return None
    layers = [layer for name, source, layer in predictions if (name, source) == (task.name, representation)]
    if not layers or predictions.run.get("created") != view.header.created:
        return None
    last = max(layers, key=lambda layer: -1 if layer is None else layer)
    return data.predicted(key, (task.name, representation, last), view.header.shape.images)


def _surely(
    view: View, rows: np.ndarray, task: Task, label: str | None, representation: str, predicted: Predicted
) -> _Coloured:
    """By how sure a probe is of what is true, or how far off it is. `one`: the label of a multilabel task."""
    values = np.full(view.header.shape.images, np.nan)
    reader = f"a probe of {shown(representation)}"
    if predicted.error is not None:
        values[predicted.rows] = np.abs(predicted.error)
        axis = f"error {task.unit}".strip()
        return _Coloured(f"error of {reader} for {task.name}", figures.Amounts(values[rows], axis), task)
    if predicted.kind == "classes":
        values[predicted.rows] = predicted.of_true
    elif label in predicted.classes and predicted.sure is not None:
        number = predicted.classes.index(label)
        sure, true = predicted.sure[:, number], predicted.y[:, number]
        values[predicted.rows] = np.where(task.known(true), np.where(true == 1, sure, 1 - sure), np.nan)
    words = f"probability that {reader} gives to the true {task.name}" + (
        "" if predicted.kind == "classes" else f": {label}"
    )
    return _Coloured(words, figures.Amounts(values[rows], "probability of the true label", ".0%"), task)


def _map(view: View, maps: Map, method: str, number: int, coloured: _Coloured) -> None:
    key, header, selection = view.key, view.header, view.selection
    points_MN2, kept = _METHODS[method](maps)
    estimate, lower, upper = (end[number] for end in kept)
    first, second = (f"component {axis + 1} ({maps.pca_variance[number, axis]:.1%} of the variance)" for axis in (0, 1))
    axes = (first, second) if method == "PCA" else ("", "")
    total = header.shape.images
    of_all = "" if len(maps.rows) == total else f" of {total:,}"
    by = f", coloured by {coloured.words}" if coloured.words else ""
    title = f"{method} of {shown(maps.map_of[number])}{by}"
    kept_words = f"{estimate:.1%} [{lower:.1%}, {upper:.1%}] of an image's 10 nearest<br>are its 10 nearest on this map"
    subtitle = f"{len(maps.rows):,}{of_all} images; {kept_words}, by chance {maps.kept_chance:.1%}"
    current = {"current": maps.place(selection.image), "current_name": f"image {selection.image + 1:,}"}
    told: dict[str, Any] = {"title": title, "subtitle": subtitle, "axes": axes, **current}
    chosen = np.flatnonzero(np.isin(maps.rows, selection.chosen))
    figure = made(figures.latent_map, points_MN2[number], maps.rows, coloured.colour, chosen=chosen, **told)
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

    hover.pictures("map", repr((key, coloured.words)), picture)
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


def _trust(maps: Map) -> None:
    names = [shown(name) for name in maps.map_of]
    kept = {method: np.stack(look(maps)[1]) for method, look in _METHODS.items()}
    draw(made(figures.kept_bars, kept, maps.map_of, names, maps.kept_chance, n=len(maps.rows)), "map_kept")
    ui.how_to_read(
        "A map in two dimensions separates some neighbours. Where a bar is low, images that lie together may differ. "
        "The nearest images below are found in all dimensions, not on the map."
    )


# ---- neighbours


def _neighbours(view: View, maps: Map, coloured: _Coloured) -> None:
    st.header("Which images are nearest to this one?")
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
