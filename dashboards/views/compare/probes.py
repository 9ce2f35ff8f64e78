"""What can be read from two runs, by task and representation. Lays out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import streamlit as st

from htc_probe.analysis import compare
from htc_probe.analysis.compare import Differences
from htc_probe.dashboards import charts, data
from htc_probe.dashboards.charts.compare_probes import Probe, Read
from htc_probe.dashboards.charts.two import Two
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts import gallery
from htc_probe.dashboards.parts.chart import draw, drawable, made
from htc_probe.dashboards.views.compare.two import columns_of, number
from htc_probe.dashboards.views.view import View, scores
from htc_probe.probes.files.results import NOT_DEFINED
from htc_probe.probes.inputs.representations import shown
from htc_probe.probes.show.table import not_defined

_SHOWN = 24
"""Images of a kind on the page."""


def probes(view: View, two: Two) -> None:
    """What can be read from both."""
    mine, theirs = (scores(path, header) for path, header in zip(two.paths, two.headers, strict=True))
    if mine is None or theirs is None:
        return
    with ui.possible():
        _both(view, two)


def _both(view: View, two: Two) -> None:
    probes = charts.compare_probes.read_of(two, "Score").probes
    final = [source for source in dict.fromkeys(probe.source for probe in probes) if "@" not in source]
    left, right = ui.side_by_side(2, "compare_read")
    if set(st.session_state.get("compare_sources", [])) - set(final):
        st.session_state["compare_sources"] = final[:3]
    chosen = (
        left.multiselect("Read from", final, default=final[:3], key="compare_sources", format_func=shown) or final[:3]
    )
    measure = right.segmented_control(
        "Measure",
        charts.compare_probes.MEASURES,
        key="versus",
        default="Score",
        required=True,
        bind="query-params",
        help="Score: top-1, accuracy of labels, R2. Bits: V-information, what the probe tells of a label beyond how "
        "often labels occur. Retention: the share of pooled V's score above the floor.",
    )
    read = charts.compare_probes.read_of(two, measure)
    lines = read.lines
    for suite in dict.fromkeys(probe.mine.suite for probe, _ in lines):
        told: dict[str, Any] = {"suite": suite, "read": tuple(chosen), "measure": measure}
        draw(made(charts.compare_probes.differences, *two.paths, **told), f"compare_{suite}")
    _how_paired(read)
    _numbers(read, lines)
    if (figure := drawable(charts.compare_probes.layers, *two.paths, measure=measure)) is not None:
        draw(figure, "compare_layers")
        ui.how_to_read(
            "Layer 0 is the embedding, the same for every image. Dot: significant at 5% (Holm-corrected, all cells)."
        )
    _one_probe(view, read)


def _how_paired(read: Read) -> None:
    two = read.two
    ui.how_to_read(
        "Right of 0, more can be read from this run. Filled dot: significant at 5% (Holm-corrected over the dots of "
        "the figure). Bars: 95% intervals over groups of images, given the probes. The floor is the score of a "
        "predictor that sees no features."
    )
    if read.measure == "Retention":
        ui.how_to_read("Retention is a ratio within a run. The two are taken as independent, so intervals are wide.")
        if tasks := not_defined([row for probe in read.probes for row in (probe.mine, probe.theirs)]):
            st.caption(
                f"Left out, as retention is {ui.plain(NOT_DEFINED)} in one of the runs: {ui.plain(', '.join(tasks))}."
            )
    elif read.scored:
        ui.how_to_read(
            "Predictions of both runs' probes are compared image by image, on the images that both have. For lists of "
            "labels the score is the share that is right (not mAP); R2 uses the variance of these images' labels."
        )
    else:
        for path in two.paths:
            if data.said_beside(path) is None and two.pairs.paired:
                ui.fill(
                    f"{ui.plain(path.stem)} has no predictions of the probes for single images, so the two scores are "
                    "taken as independent, with wider intervals.",
                    "htc-probe semantic detail",
                    path,
                )
    if two.chosen:
        st.caption("Probe scores use all images, not only the selected ones.")
    if read.left_out:
        parts = [
            f"{read.name(source)} ({tasks[0] if len(tasks) == 1 else f'{len(tasks)} tasks'})"
            for source, tasks in read.left_out.items()
        ]
        st.caption(f"Left out, as the probes of the two runs differ: {ui.plain(', '.join(parts))}.")


def _numbers(read: Read, lines: Sequence[tuple[Probe, Differences]]) -> None:
    floors = [read.floors(probe) for probe, _ in lines]
    columns = {
        "suite": [probe.mine.suite for probe, _ in lines],
        "task": [probe.mine.task for probe, _ in lines],
        "read from": [read.name(probe.source) for probe, _ in lines],
        "measure": [read.metric(probe) for probe, _ in lines],
        **columns_of([line for _, line in lines], read.two.names),
    }
    for side, name in enumerate(read.two.names):
        columns[f"floor of {name}"] = [number(both[side]) for both in floors]
    columns["compared"] = ["paired" if line.paired else "as independent" for _, line in lines]
    with st.expander("All numbers"):
        ui.table(columns, "compare_numbers")


def _one_probe(view: View, read: Read) -> None:
    """One task and representation: layers, training images, confusions, and images that tell the runs apart."""
    st.header("How do the runs differ in one probe?")
    left, right = st.columns(2)
    tasks = list(dict.fromkeys(probe.mine.task for probe in read.probes))
    task = ui.select("Task", tasks, "compare_task", place=left)
    sources = sorted(
        (probe.source for probe in read.probes if probe.mine.task == task), key=lambda source: "@" in source
    )
    source = ui.select("Read from", sources, "compare_source", place=right, format_func=read.name)
    probe = read.probe(task, source)
    which: dict[str, Any] = {"task": task, "read": source}
    over = drawable(charts.compare_probes.task_layers, *read.two.paths, **which, measure=read.measure)
    if over is not None:
        draw(over, "compare_task_layers")
        ui.how_to_read("Left: both runs. Right: their difference, with a 95% interval for each layer by itself.")
    learning = drawable(charts.compare_probes.learning, *read.two.paths, **which, measure=read.measure)
    if learning is not None:
        draw(learning, "compare_learning")
        ui.how_to_read("How many images a probe needs to learn the task. Where the curves differ, one run needs fewer.")
    confusion = drawable(charts.compare_probes.confusion, *read.two.paths, **which)
    if confusion is not None:
        draw(confusion, "compare_confusion")
        cells = len(charts.compare_probes.confusions(read, probe)[1]) ** 2
        ui.how_to_read(
            "Each row sums to 100 %. Difference: orange on the diagonal is what this run gets right more often. Dot: "
            f"significant at 5% (Holm-corrected, {cells:,} cells; the two runs are taken as independent)."
        )
    _telling(view, read.two, probe, read.scored.get(probe.key))


def _telling(view: View, two: Two, probe: Probe, scored: compare.Scored | None) -> None:
    """Images by which of the runs gets them right, to look at."""
    if scored is None:
        return
    known = scored.asked
    mine, theirs = (known & ~wrong for wrong in scored.wrong)
    kinds = {
        f"only {two.names[0]}": mine & ~theirs,
        f"only {two.names[1]}": theirs & ~mine,
        "both": mine & theirs,
        "neither": known & ~mine & ~theirs,
    }
    by_kind = {"number": "within the standard deviation of the labels", "circular": "nearer than the floor"}
    words = by_kind.get(probe.mine.kind, "right")
    st.markdown(f"**In which images do the runs differ?** Which probe is {words}:")
    names = list(kinds)
    kind = st.segmented_control(
        "Which probe is right",
        range(4),
        default=0,
        required=True,
        key="compare_which",
        label_visibility="collapsed",
        format_func=lambda kind: ui.plain(f"{names[kind]} ({int(kinds[names[kind]].sum()):,})"),
    )
    places = np.flatnonzero(kinds[names[kind]])
    if not len(places):
        st.caption("There is no such image.")
        return
    gain = (scored.bits[0] - scored.bits[1])[places]
    order = np.argsort(np.abs(gain))[::-1]
    rows = data.pairs(two.one.key, two.other.key).rows[places[order]].tolist()
    ids, sources = view.header.ids, data.pictures(view.key, rows[:_SHOWN])
    pictures = []
    for row, source, bits in zip(rows, sources, gain[order], strict=False):
        lines, current = (f"{row + 1:,}", f"{bits:+.1f} bits"), row == view.selection.image
        pictures.append(gallery.Picture(row, source, f"{row + 1:,} · {ids[row]}", lines, current))
    gallery.show(pictures, "compare_gallery", ui.go_to_image)
    ui.select_button(rows, "compare_select")
    ui.how_to_read(
        f"The {len(pictures)} images with the largest differences: how many more bits this run's probe gives to the "
        "true label (below 0: the other run's probe). Click one to show it on all pages."
    )
