"""What linear probes read: scores, curves, and what they said of single images, as `htc-probe` left it beside the run.

Lays out; reads through data, draws by figures.
"""

import shlex
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import streamlit as st

from htc_probe.dashboards import data, figures
from htc_probe.dashboards.figures.base import escape
from htc_probe.dashboards.parts import gallery, hover
from htc_probe.dashboards.parts.chart import draw, made, points
from htc_probe.dashboards.parts.controls import (
    choose,
    fill,
    fragment,
    go_to_image,
    go_to_point,
    how_to_read,
    pick,
    plain,
    select,
    side_by_side,
    table,
)
from htc_probe.dashboards.views.view import View, scores
from htc_probe.probes.files.predictions import Predicted
from htc_probe.probes.files.results import Results, label
from htc_probe.probes.show import answers
from htc_probe.probes.show import table as of_tables
from htc_probe.probes.show.answers import Answers
from htc_probe.probes.show.figures import CAPTIONS

AT_ONCE = 24
"""Pictures on the page."""


def show(view: View) -> None:
    """Draws the page."""
    found = scores(view.path, view.header)
    if found is None:
        return
    if doubts := of_tables.doubts(found):
        with st.expander(f"{len(doubts)} warnings" if len(doubts) > 1 else "1 warning"):
            for doubt in doubts:
                st.caption(plain(doubt))
    parts = {"Scores": _scores, "Layers and training images": _curves, "Image by image": _images}
    tabs = st.tabs(list(parts), key="probes", bind="query-params", on_change="rerun")
    for tab, part in zip(tabs, parts.values(), strict=True):
        if tab.open:
            with tab:
                part(view, found)


# ---- scores


@fragment
def _scores(view: View, found: Results) -> None:
    left, right = st.columns(2)
    with left:
        suite = pick("Suite", of_tables.suites(found), "suite", format_func=plain)
    kinds = {
        "scores": figures.probe_scores,
        "bits": figures.probe_bits,
        "retention": figures.probe_retention,
        "kept": figures.probe_kept,
        "ceilings": figures.probe_ceilings,
    }
    drawn = {kind: made(make, found, suite) for kind, make in kinds.items()}
    with right:
        kind = pick("Show", [kind for kind, figure in drawn.items() if figure is not None], "measure")
    figure = drawn[kind]
    assert figure is not None
    draw(figure, "probe_scores")
    how_to_read(plain(CAPTIONS[kind]) + (f" {_reference(suite)}" if kind == "scores" else ""))
    _score_table(found, suite)
    _classes(found, suite)
    gaps = made(figures.probe_gaps, found)
    if gaps is not None:
        st.subheader("Semantics and details")
        draw(gaps, "probe_gaps")
        how_to_read(plain(CAPTIONS["gaps"]))
    st.subheader("Two representations on the same images")
    _compare(found, suite)


def _reference(suite: str) -> str:
    return plain(of_tables.paper_reference(suite))


def _score_table(found: Results, suite: str) -> None:
    rows = [row for row in found.rows if row.suite == suite]
    means = [mean for mean in found.suite_means if mean.suite == suite]
    lines = [
        {
            "task": row.task,
            "read from": row.representation,
            "layer": row.layer,
            "metric": row.metric,
            "score": row.estimate,
            "lower": row.lower,
            "upper": row.upper,
            "floor": row.floor,
            "control": row.control,
            "bits": row.bits,
            "images": row.n,
            "groups": row.n_groups,
        }
        for row in rows
    ] + [
        {
            "task": f"mean of {mean.tasks} tasks",
            "read from": mean.representation,
            "layer": mean.layer,
            "metric": "mixed",
            "score": mean.estimate,
            "lower": mean.lower,
            "upper": mean.upper,
            "floor": mean.floor,
            "control": None,
            "bits": mean.bits.estimate,
            "images": None,
            "groups": None,
        }
        for mean in means
    ]
    with st.expander("All scores as a table"):
        table({name: [line[name] for line in lines] for name in lines[0]}, "probe_score_table")
        how_to_read(
            "Scores of held-out images with the ends of their 95 % intervals over groups of images. Control: the same "
            "probe on random labels of categories. Layers are those of z\\_voco; 0 is the embedding."
        )


def _classes(found: Results, suite: str) -> None:
    """Of one task of the suite; nothing where its tasks are numbers."""
    tasks = list(dict.fromkeys(one.task for one in found.by_class if one.suite == suite))
    if not tasks:
        return
    st.subheader("Single classes")
    figure = made(figures.probe_classes, found, select("Task", tasks, "classes_of"))
    assert figure is not None
    draw(figure, "probe_classes")
    how_to_read(plain(CAPTIONS["classes"]))


def _compare(found: Results, suite: str) -> None:
    compared = {name for one in found.comparisons if one.suite == suite for name in (one.a, one.b)}
    keys = {label(*key): key for row in found.rows if label(*(key := of_tables.key_of(row))) in compared}
    if len(keys) < 2:
        st.info("These results hold one representation: there is nothing to compare it with.")
        return
    names = list(keys)
    left, right = st.columns(2)
    with left:
        a = select("First", names, "a")
    with right:
        b = select("Minus", [name for name in names if name != a], "b")
    figure = made(figures.probe_differences, found, suite, keys[a], keys[b])
    if figure is None:
        st.info("These two were not compared.")
        return
    draw(figure, "probe_compared")
    how_to_read(
        "Score of the first minus that of the second on the same held-out images, with 95 % intervals (of one test, "
        "not corrected). Right of 0, the first is better. Filled: p < 0.05 after Holm's correction over all tasks and "
        "pairs."
    )
    rows = of_tables.between(found, suite, keys[a], keys[b])
    columns: dict[str, Sequence[object]] = {
        "task": [one.task or "mean of the suite" for one in rows],
        "metric": [one.metric for one in rows],
        "difference": [one.difference.estimate for one in rows],
        "lower": [one.difference.lower for one in rows],
        "upper": [one.difference.upper for one in rows],
        "p": [one.p for one in rows],
        "p after Holm": [one.p_holm for one in rows],
    }
    with st.expander("These differences as a table"):
        table(columns, "probe_compared_table")


# ---- curves


@fragment
def _curves(view: View, found: Results) -> None:
    suite = pick("Suite", of_tables.suites(found), "suite", format_func=plain)
    layers, learning = made(figures.probe_layers, found, suite), made(figures.probe_learning, found, suite)
    if layers is None:
        fill("z_voco was probed at one layer.", _command(found, "--layers all"), view.path)
    else:
        draw(layers, "probe_layers")
        how_to_read(plain(CAPTIONS["layers"]))
    if learning is None:
        fill("Probes were not trained on fewer images.", _command(found, "--curve"), view.path)
    else:
        draw(learning, "probe_learning")
        how_to_read(plain(CAPTIONS["learning"]))


def _command(found: Results, *more: str) -> str:
    """What these results were made with, and more."""
    given = found.config
    names = given.get("suites")
    suites = [str(name) for name in names] if isinstance(names, list) and names else ["semantic", "detail"]
    parts = ["htc-probe", *suites]
    if given.get("curve") and "--curve" not in more:
        parts.append("--curve")
    if given.get("layers") and "--layers all" not in more:
        parts += ["--layers", str(given["layers"])]
    return " ".join([*map(shlex.quote, parts), *more])


# ---- single images


def _images(view: View, found: Results) -> None:
    left, middle, right = side_by_side(3, "probe", least=200)
    of = {row.task: row for row in found.rows}
    with left:
        task = select("Task", list(of), "task")
    rows = [row for row in found.rows if row.task == task]
    first = of_tables.columns(found, rows[0].suite)
    keys = {label(*key): key for key in [*first, *((row.representation, row.layer) for row in rows)]}
    with middle:
        key = keys[select("Read from", list(keys), "read")]
    place = _predictions(view, found)
    predicted = None if place is None else _predicted(view, place, (task, *key))
    if predicted is None:
        if place is not None:
            fill("The predictions beside this run lack this probe.", _command(found), view.path)
        _counts_alone(found, task, key)
        return
    assert place is not None
    number = 0
    if predicted.kind == "multilabel":
        with right:
            number = predicted.classes.index(select("Label", list(predicted.classes), "label"))
    said = answers.of(predicted, number)
    if view.selection.chosen:
        said = said.among(np.array(view.selection.chosen))
    question = f"{task}: {predicted.classes[number]}" if predicted.kind == "multilabel" else task
    name = f"{escape(question)} from {escape(label(*key))}"
    selected = " selected" if view.selection.chosen else ""
    left, right = side_by_side([6, 5], "answers", least=380)
    with left:
        which, what = _overview(view, said, name, f"{len(said.rows):,}{selected} held-out images", rows[0].unit)
    with right:
        _current(view, found, place)
    _gallery(view, said, which, what)


def _predictions(view: View, found: Results) -> data.RunKey | None:
    """The file of predictions; None, and why, where there is none of this run."""
    path = data.said_beside(view.path)
    if path is None:
        fill("What the probes said of each image is not beside this run.", _command(found), view.path)
        return None
    place = data.key_of(path)
    run = data.predictions(place).run
    if (run.get("created"), run.get("sha256")) != (view.header.created, view.header.info.model.get("sha256")):
        fill("What the probes said is of an earlier state of this run.", _command(found), view.path)
        return None
    return place


def _predicted(view: View, place: data.RunKey, probe: tuple[str, str, int | None]) -> Predicted | None:
    if probe not in data.predictions(place):
        return None
    return data.predicted(place, probe, view.header.shape.images)


def _counts_alone(found: Results, task: str, key: tuple[str, int | None]) -> None:
    """The confusion matrix of the results, where there are no predictions to look into."""
    for one in found.confusions:
        if (one.task, one.representation, one.layer) == (task, *key):
            counts_KK = np.array(one.counts)
            figure = made(
                figures.confusion,
                counts_KK,
                one.classes,
                title=f"{escape(task)} from {escape(label(*key))}",
                subtitle=f"held-out images by true class and chosen class · n = {counts_KK.sum():,}",
            )
            draw(figure, "probe_counts")
            how_to_read(plain(CAPTIONS["confusions"]))


def _overview(view: View, said: Answers, name: str, sample: str, unit: str) -> tuple[np.ndarray, str]:
    """All answers in one figure. Returns which of them to look at, and what these are."""
    if said.sure is None:
        error = f"{np.abs(said.error).mean():.3g} {escape(unit)}".strip() if len(said.rows) else "unknown"
        # What is said of a circular value lies where the error is the short way round, beyond the period if need be.
        drawn, way = (said.true + said.error, ", the short way round") if said.period else (said.said, "")
        figure = made(
            figures.said_and_true,
            said.true,
            drawn,
            said.rows,
            unit=unit,
            title=name,
            subtitle=f"{sample} · mean error {error}{way}",
            mark=view.selection.image,
        )
        draw(figure, "probe_values", on_click=partial(go_to_point, "probe_values"))

        def picture(row: int) -> hover.Picture:
            (source,) = data.pictures(view.key, [row])
            return hover.Picture(source, f"{row + 1:,} · {view.header.ids[row]}")

        hover.pictures("probe_values", repr(view.key), picture)
        how_to_read(
            "A point is an image that the probe was not trained on; on the dashed line it is right. Click one "
            "to make it the image of all pages."
        )
        return said.wrong(), "by their error, the largest first"
    cell = _cell((view.path.name, *said.names))

    def click() -> None:
        for point in points("probe_confusion")[:1]:
            st.session_state["probe_cell"] = cell._replace(marked=(int(point["y"]) - 1, int(point["x"]) - 1))

    right = float((said.true == said.said).mean()) if len(said.rows) else float("nan")
    figure = made(
        figures.confusion,
        said.counts(),
        said.names,
        title=name,
        subtitle=f"{sample} · {right:.1%} right",
        mark=cell.marked,
    )
    draw(figure, "probe_confusion", on_click=click)
    how_to_read(
        "Rows: what is true. Columns: what the probe chose for images that it was not trained on. Colour: the share of "
        "the row; numbers: images. Click a cell to see its images below."
    )
    if cell.marked is None:
        return said.wrong(), "that the probe gets wrong, the surest first"
    true, chosen = (said.names[at] for at in cell.marked)
    return said.cell(*cell.marked), f"of {true} that the probe calls {chosen}, the surest first"


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


def _current(view: View, found: Results, place: data.RunKey) -> None:
    """What every probe says of the image that all pages show."""
    image, header = view.selection.image, view.header
    st.markdown(f"**Image {image + 1:,}**: {plain(header.ids[image])}")
    st.image(data.thumbnail(view.key, image), width=150, alt=f"thumbnail of image {header.ids[image]}")
    units = {row.task: row.unit for row in found.rows}
    names: dict[str, tuple[str, int | None]] = {}
    for suite in of_tables.suites(found):
        names |= {label(*key): key for key in of_tables.columns(found, suite)}
    columns: dict[str, list[str]] = {"task": list(units), "true": [""] * len(units)} | {name: [] for name in names}
    for at, task in enumerate(units):
        for name, key in names.items():
            predicted = _predicted(view, place, (task, *key))
            told = None if predicted is None else answers.of_image(predicted, image)
            columns[name].append("" if told is None else f"{'≠ ' if told.wrong else ''}{told.said}")
            if told is not None:
                columns["true"][at] = told.true
    table(columns, "probe_image_table")
    measured = ", ".join(f"{task} in {unit}" for task, unit in units.items() if unit)
    how_to_read(
        "What each probe says of this image, held out, with its probability; ≠ marks what is not true. Empty: the "
        "image has no label that was scored." + (f" Numbers: {plain(measured)}." if measured else "")
    )


def _gallery(view: View, said: Answers, which: np.ndarray, what: str) -> None:
    """Some of the images, a page at a time."""
    if said.sure is not None and st.session_state["probe_cell"].marked is not None:
        st.button("All that the probe gets wrong", on_click=_let_go)
    if not len(which):
        st.info(f"There are no images {plain(what.split(',')[0])}.")
        return
    list_of = (view.path.name, *(st.session_state.get(key) for key in ("task", "read", "label")), what, len(which))
    before, lists = st.session_state.get("probe_list", (list_of, 0))
    if before != list_of:  # another list begins at its first page
        lists += 1
    st.session_state["probe_list"] = list_of, lists
    pages = -(-len(which) // AT_ONCE)
    title, middle, button = side_by_side([5, 4, 3], "probe_list", least=190, align="center")
    title.markdown(f"**{len(which):,} images** {plain(what)}")
    with middle:
        page = st.pagination(pages, key=f"probe_page_{lists}") if pages > 1 else 1
    button.button(
        f"Select these {len(which):,}", on_click=choose, args=(said.rows[which],), width="stretch", help="On all pages."
    )
    here = which[AT_ONCE * (page - 1) : AT_ONCE * page]
    pictures = []
    for at, source in zip(here, data.pictures(view.key, [int(row) for row in said.rows[here]]), strict=True):
        row = int(said.rows[at])
        lines: tuple[str, ...]
        if said.sure is None:
            lines = (f"true {said.true[at]:.4g}", f"said {said.said[at]:.4g}")
        else:
            lines = (f"true {said.names[said.true[at]]}", f"said {said.names[said.said[at]]}", f"p {said.sure[at]:.3f}")
        name = f"{row + 1:,} · {view.header.ids[row]} · {', '.join(lines)}"
        shown = (_end(view.header.ids[row]), *lines)
        pictures.append(gallery.Picture(row, source, name, shown, row == view.selection.image))
    gallery.show(pictures, "probe_gallery", go_to_image)
    how_to_read(
        "Thumbnail, id, what is true, what the probe said and its probability. Click a picture to make it the image of "
        "all pages."
    )


def _end(name: str, most: int = 13) -> str:
    """Ids differ in how they end."""
    return name if len(name) <= most else f"…{name[1 - most :]}"
