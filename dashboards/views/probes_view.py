"""What linear probes read: scores, curves, and what they said of single images, as `htc-probe` left it beside the run.

Lays out; reads through data, draws by charts.
"""

import shlex
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import streamlit as st

from htc_probe.dashboards import charts, data
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts import gallery, hover
from htc_probe.dashboards.parts.chart import draw, drawable, made, points
from htc_probe.dashboards.views.view import View, each_image, scores
from htc_probe.extract.words import counted
from htc_probe.probes.files.predictions import Predicted
from htc_probe.probes.files.results import Results, Row, SuiteMean, label
from htc_probe.probes.inputs.representations import Representation, shown
from htc_probe.probes.show import answers
from htc_probe.probes.show import figures as of_probes
from htc_probe.probes.show import table as of_tables
from htc_probe.probes.show.answers import Answers

_AT_ONCE = 24
"""Pictures on the page."""


def show(view: View) -> None:
    """Draws the page."""
    results = scores(view.path, view.header)
    if results is None:
        return
    if doubts := of_tables.doubts(results):
        with st.expander(f"{len(doubts)} warnings" if len(doubts) > 1 else "1 warning"):
            for doubt in doubts:
                st.caption(ui.plain(doubt))
    parts = {"Scores": _scores, "Layers and training images": _curves, "Image by image": _images}
    ui.tabs(parts, "probes", view, results)


# ---- scores


@ui.fragment
def _scores(view: View, results: Results) -> None:
    left, right = st.columns(2)
    suite = ui.pick("Suite", of_tables.suites(results), "suite", format_func=ui.plain, place=left)
    drawn = {kind: drawable(charts.probes.scores, view.path, suite=suite, show=kind) for kind in charts.probes.KINDS}
    kind = ui.pick("Show", [kind for kind, figure in drawn.items() if figure is not None], "measure", place=right)
    figure = drawn[kind]
    assert figure is not None
    draw(figure, "probe_scores")
    reference = f" {ui.plain(of_tables.paper_reference(suite))}" if kind == "scores" else ""
    ui.how_to_read(ui.plain(of_probes.CAPTIONS[kind]) + reference)
    _score_table(results, suite)
    _classes(view, results, suite)
    gaps = drawable(charts.probes.gaps, view.path)
    if gaps is not None:
        st.header("Are semantics kept better than details?")
        draw(gaps, "probe_gaps")
        ui.how_to_read(ui.plain(of_probes.CAPTIONS["gaps"]))
    st.header("Which of two representations holds more?")
    _compare(view, results, suite)


def _score_table(results: Results, suite: str) -> None:
    lines: list[dict[str, object]] = []
    for row in (row for row in results.rows if row.suite == suite):
        what = {"task": row.task, "metric": row.metric, "control": row.control, "bits": row.bits}
        lines.append(_score(row) | what | {"images": row.n, "groups": row.n_groups})
    for mean in (mean for mean in results.suite_means if mean.suite == suite):
        what = {"task": f"mean of {counted(mean.tasks, 'task')}", "metric": "mixed", "bits": mean.bits.estimate}
        lines.append(_score(mean) | what)
    heads = (
        "task",
        "read from",
        "layer",
        "metric",
        "score",
        "lower",
        "upper",
        "floor",
        "control",
        "bits",
        "images",
        "groups",
    )
    with st.expander("All scores as a table"):
        ui.table({head: [line.get(head) for line in lines] for head in heads}, "probe_score_table")
        ui.how_to_read(
            "Scores on held-out images, with the ends of their 95% intervals over groups of images. Control: the same "
            "probe on random labels for categories. Layer: of z\\_voco; 0 is the embedding."
        )


def _score(line: Row | SuiteMean) -> dict[str, object]:
    """What a task and a mean have in common."""
    ends = {"score": line.estimate, "lower": line.lower, "upper": line.upper, "floor": line.floor}
    return {"read from": shown(line.representation), "layer": line.layer, **ends}


def _classes(view: View, results: Results, suite: str) -> None:
    """Of one task of the suite; nothing where its tasks are numbers."""
    tasks = list(dict.fromkeys(row.task for row in results.by_class if row.suite == suite))
    if not tasks:
        return
    st.header("Which classes are read well?")
    draw(made(charts.probes.classes, view.path, task=ui.select("Task", tasks, "classes_of")), "probe_classes")
    ui.how_to_read(ui.plain(of_probes.CAPTIONS["classes"]))


def _compare(view: View, results: Results, suite: str) -> None:
    compared = {name for line in results.comparisons if line.suite == suite for name in (line.a, line.b)}
    keys = {
        of_tables.name_in(results, key): key
        for row in results.rows
        if label(*(key := of_tables.key_of(row))) in compared
    }
    if len(keys) < 2:
        st.info("Only one representation was probed, so there is no second to compare it with.")
        return
    names = list(keys)
    left, right = st.columns(2)
    a = ui.select("First", names, "a", place=left)
    b = ui.select("Minus", [name for name in names if name != a], "b", place=right)
    figure = drawable(charts.probes.compared, view.path, suite=suite, first=a, second=b)
    if figure is None:
        st.info("htc-probe did not compare these two.")
        return
    draw(figure, "probe_compared")
    ui.how_to_read(
        "Score of the first minus score of the second, on the same held-out images, with 95% intervals (not "
        "corrected). Right of 0 the first is better. Filled dot: significant at 5% (Holm-corrected over all tasks and "
        "pairs)."
    )
    rows = of_tables.between(results, suite, keys[a], keys[b])
    columns: dict[str, Sequence[object]] = {
        "task": [line.task or "mean of the suite" for line in rows],
        "metric": [line.metric for line in rows],
        "difference": [line.difference.estimate for line in rows],
        "lower": [line.difference.lower for line in rows],
        "upper": [line.difference.upper for line in rows],
        "p": [line.p for line in rows],
        "p after Holm": [line.p_holm for line in rows],
    }
    with st.expander("These differences as a table"):
        ui.table(columns, "probe_compared_table")


# ---- curves


@ui.fragment
def _curves(view: View, results: Results) -> None:
    suite = ui.pick("Suite", of_tables.suites(results), "suite", format_func=ui.plain)
    layers, learning = (
        drawable(chart, view.path, suite=suite) for chart in (charts.probes.layers, charts.probes.learning)
    )
    if layers is None:
        ui.fill("Only one layer of z\\_voco was probed.", _command(results, "--layers all"), view.path)
    else:
        draw(layers, "probe_layers")
        ui.how_to_read(ui.plain(of_probes.CAPTIONS["layers"]))
    if learning is None:
        ui.fill("Learning curves are not computed yet.", _command(results, "--curve"), view.path)
    else:
        draw(learning, "probe_learning")
        ui.how_to_read(ui.plain(of_probes.CAPTIONS["learning"]))


def _command(results: Results, *options: str) -> str:
    """What these results were made with, and more."""
    config = results.config
    names = config.get("suites")
    suites = [str(name) for name in names] if isinstance(names, list) and names else ["semantic", "detail"]
    parts = ["htc-probe", *suites]
    if config.get("curve") and "--curve" not in options:
        parts.append("--curve")
    if config.get("layers") and "--layers all" not in options:
        parts += ["--layers", str(config["layers"])]
    return " ".join([*map(shlex.quote, parts), *options])


# ---- single images


def _images(view: View, results: Results) -> None:
    left, middle, right = ui.side_by_side(3, "probe", least=200)
    row_of = {row.task: row for row in results.rows}
    task = ui.select("Task", list(row_of), "task", place=left)
    rows = [row for row in results.rows if row.task == task]
    first = of_tables.columns(results, rows[0].suite)
    keys = {of_tables.name_in(results, key): key for key in [*first, *map(of_tables.key_of, rows)]}
    read = ui.select("Read from", list(keys), "read", place=middle)
    key = keys[read]
    place = _predictions(view, results)
    predicted = None if place is None else _predicted(view, place, (task, *key))
    if predicted is None:
        if place is not None:
            ui.fill("The predictions of this run do not include this probe.", _command(results), view.path)
        if (counts := drawable(charts.probes.counts, view.path, task=task, read=read)) is not None:
            draw(counts, "probe_counts")
            ui.how_to_read(ui.plain(of_probes.CAPTIONS["confusions"]))
        return
    assert place is not None
    asked: dict[str, Any] = {"task": task, "read": read, "images": view.selection.images}
    if predicted.kind == "multilabel":
        asked["label"] = ui.select("Label", list(predicted.classes), "label", place=right)
    told = charts.probes.told_of(view.source, **{"label": None, **asked})
    left, right = ui.side_by_side([6, 5], "answers", least=380)
    with left:
        places, words = _overview(view, told, asked)
    with right:
        if not view.selection.beside:
            _current(view, results, place)
    if view.selection.beside:
        each_image(view, partial(_current, results=results, place=place), "probes")
    _gallery(view, told, places, words)


def _predictions(view: View, results: Results) -> data.RunKey | None:
    """The file of predictions; None, and why, where there is none of this run."""
    path = data.said_beside(view.path)
    if path is None:
        ui.fill("This run has no predictions of the probes for single images.", _command(results), view.path)
        return None
    place = data.key_of(path)
    run = data.predictions(place).run
    if (run.get("created"), run.get("sha256")) != (view.header.created, view.header.info.model.get("sha256")):
        ui.fill("The predictions of the probes are from an earlier state of this run.", _command(results), view.path)
        return None
    return place


def _predicted(view: View, place: data.RunKey, probe: tuple[str, str, int | None]) -> Predicted | None:
    if probe not in data.predictions(place):
        return None
    return data.predicted(place, probe, view.header.shape.images)


def _overview(view: View, told: Answers, asked: dict[str, Any]) -> tuple[np.ndarray, str]:
    """All answers in one figure. Returns which of them to look at, and what these are."""
    if told.sure is None:
        figure = made(charts.probes.values, view.path, **asked, image=view.selection.number)
        draw(figure, "probe_values", on_click=partial(ui.go_to_point, "probe_values"))

        def picture(row: int) -> hover.Picture:
            (source,) = data.pictures(view.key, [row])
            return hover.Picture(source, f"{row + 1:,} · {view.header.ids[row]}")

        hover.pictures("probe_values", repr(view.key), picture)
        ui.how_to_read(
            "Each point is a held-out image; on the dashed line the probe is right. Click a point to show its image on "
            "all pages."
        )
        return told.wrong(), "by error, the largest first"
    cell = _cell((view.path.name, *told.names))

    def click() -> None:
        for point in points("probe_confusion")[:1]:
            st.session_state["probe_cell"] = cell._replace(marked=(int(point["y"]) - 1, int(point["x"]) - 1))

    marked = dict(zip(("true", "said"), (told.names[number] for number in cell.marked or ()), strict=False))
    draw(made(charts.probes.confusion, view.path, **asked, **marked), "probe_confusion", on_click=click)
    ui.how_to_read(
        "Rows: the true label. Columns: what the probe predicts for held-out images. Colour: the share of the row; "
        "numbers: images. Click a cell to see its images below."
    )
    if cell.marked is None:
        return told.wrong(), "that the probe gets wrong, the most confident first"
    true, chosen = (told.names[number] for number in cell.marked)
    return told.cell(*cell.marked), f"of {true} that the probe calls {chosen}, the most confident first"


class _Cell(NamedTuple):
    """Which cell of a confusion matrix is looked at."""

    of: tuple[str, ...]
    """The run and the classes: a cell stays while another representation is chosen."""
    marked: tuple[int, int] | None = None
    """True and chosen class."""


def _cell(of: tuple[str, ...]) -> _Cell:
    cell = st.session_state.setdefault("probe_cell", _Cell(of))
    if cell.of != of:
        cell = st.session_state["probe_cell"] = _Cell(of)
    return cell


def _let_go() -> None:
    st.session_state["probe_cell"] = _Cell(st.session_state["probe_cell"].of)


def _current(view: View, results: Results, place: data.RunKey) -> None:
    """What every probe says of the image that all pages show."""
    image, header = view.selection.image, view.header
    if not view.selection.beside:
        st.markdown(f"**Image {image + 1:,}**: {ui.plain(header.ids[image])}")
    st.image(data.thumbnail(view.key, image), width=150, alt=f"thumbnail of image {header.ids[image]}")
    units = {row.task: row.unit for row in results.rows}
    names: dict[str, Representation] = {}
    for suite in of_tables.suites(results):
        names |= {of_tables.name_in(results, key): key for key in of_tables.columns(results, suite)}
    columns: dict[str, list[str]] = {"task": list(units), "true": [""] * len(units)} | {name: [] for name in names}
    for answer, task in enumerate(units):
        for name, key in names.items():
            predicted = _predicted(view, place, (task, *key))
            told = None if predicted is None else answers.of_image(predicted, image)
            columns[name].append("" if told is None else f"{'≠ ' if told.wrong else ''}{told.said}")
            if told is not None:
                columns["true"][answer] = told.true
    ui.table(columns, "probe_image_table")
    measured = ", ".join(f"{task} in {unit}" for task, unit in units.items() if unit)
    ui.how_to_read(
        "What each probe predicts for this image (held out), with its probability; ≠ marks errors. Empty: the image "
        "has no label for this task." + (f" Numbers: {ui.plain(measured)}." if measured else "")
    )


def _gallery(view: View, told: Answers, places: np.ndarray, words: str) -> None:
    """Some of the images, a page at a time."""
    if told.sure is not None and st.session_state["probe_cell"].marked is not None:
        st.button("All errors of the probe", on_click=_let_go)
    if not len(places):
        st.info(f"There are no images {ui.plain(words.split(',')[0])}.")
        return
    list_of = (view.path.name, *(st.session_state.get(key) for key in ("task", "read", "label")), words, len(places))
    before, lists = st.session_state.get("probe_list", (list_of, 0))
    if before != list_of:  # another list begins at its first page
        lists += 1
    st.session_state["probe_list"] = list_of, lists
    pages = -(-len(places) // _AT_ONCE)
    title, middle, button = ui.side_by_side([5, 4, 3], "probe_list", least=190, align="center")
    title.markdown(f"**{counted(len(places), 'image')}** {ui.plain(words)}")
    with middle:
        page = st.pagination(pages, key=f"probe_page_{lists}") if pages > 1 else 1
    rows = told.rows[places]
    ui.select_button(rows, "probe_select", button, width="stretch")
    on_page = places[_AT_ONCE * (page - 1) : _AT_ONCE * page]
    pictures = []
    for place, source in zip(on_page, data.pictures(view.key, [int(row) for row in told.rows[on_page]]), strict=True):
        row = int(told.rows[place])
        if told.sure is None:
            lines = [f"true {told.true[place]:.4g}", f"probe {told.said[place]:.4g}"]
        else:
            true, said = told.names[told.true[place]], told.names[told.said[place]]
            lines = [f"true {true}", f"probe {said}", f"p {told.sure[place]:.3f}"]
        name = f"{row + 1:,} · {view.header.ids[row]} · {', '.join(lines)}"
        shown = (gallery.short(view.header.ids[row]), *lines)
        pictures.append(gallery.Picture(row, source, name, shown, row == view.selection.image))
    gallery.show(pictures, "probe_gallery", ui.go_to_image)
    ui.how_to_read(
        "Under each image: its id, the true label, what the probe predicts, and its probability. Click an image to "
        "show it on all pages."
    )
