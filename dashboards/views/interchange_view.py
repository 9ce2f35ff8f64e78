"""Anchors of one image with patches of another: whom answers and probes follow, task by task, and pair by pair.

Lays out; draws by charts. Letters in names: n images.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import streamlit as st

from htc_probe.analysis.causes.following import WHOM, Row, follows, rows
from htc_probe.analysis.sections import Interchange
from htc_probe.dashboards import charts, data
from htc_probe.dashboards.charts.interchange import Table, Task, differ_words
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts.chart import draw, made, points
from htc_probe.dashboards.parts.effects import nearest
from htc_probe.dashboards.views.view import View
from htc_probe.extract.store import NUMERIC


@ui.fragment
def show(view: View, interchange: Interchange) -> None:
    table_of = Table(rows(interchange))
    _overview(view, interchange, table_of)
    left, middle, right = ui.side_by_side([4, 3, 3], "mixed", least=250, align="bottom")
    task = table_of.tasks[ui.select("Task", list(table_of.tasks), "mixed", place=left)]
    factors = ["all", *table_of.factors(task)]
    factor = ui.select("The sources differ", factors, "differ", place=middle, format_func=differ_words)
    only_right = not task.is_number and right.toggle(
        "Only labels read right unmixed", key="only_right", help="For both sources by themselves."
    )
    for column, readout in zip(ui.side_by_side(2, "cells", least=380), table_of.readouts, strict=False):
        told: dict[str, Any] = {"task": task.words, "readout": readout, "differ": factor, "only_right": only_right}
        with column, ui.possible():
            draw(made(charts.interchange.two_by_two, view.path, **told), f"cells_{readout}")
    ui.how_to_read(
        "Colours by column: the patches decide what is read. Colours by row: the anchors decide. Each pair is mixed "
        "both ways, so the two mixed cells show one measurement, seen from A and from B. Unmixed cells count all "
        "images; mixed cells count pairs with different labels."
    )
    _pairs(view, interchange, task)
    every = st.expander("All numbers as a table", key="all_rows", on_change="rerun")
    if every.open:
        with every:
            _all_rows(table_of.rows)


def _overview(view: View, interchange: Interchange, table_of: Table) -> None:
    names = list(table_of.tasks)

    def clicked() -> None:
        for point in points("follow")[:1]:
            st.session_state["mixed"] = names[int(np.ravel(point["customdata"])[0])]

    draw(made(charts.interchange.follow, view.path), "follow", on_click=clicked)
    why_not = {"answers": interchange.answers, "probes": interchange.probes}
    missing = "".join(f" No {name}: {why}." for name, why in why_not.items() if why != "yes")
    ui.how_to_read(
        "Of the mixed images whose sources have different labels, the share read as the anchors' source, and as the "
        "patches' source. For numbers, the weight of a source's value: at 1 the reading is that value. Click a point "
        "to see its task below." + ui.plain(missing)
    )


def _all_rows(every: Sequence[Row]) -> None:
    names = "suite", "task", "readout", "factor", "mix"
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in every] for name in names}
    columns["only right"] = [row.only_right for row in every]
    columns["measure"] = ["weight" if len(row.whom) == 2 else "share" for row in every]
    whom_K33 = np.array([np.concatenate([row.whom, np.full((3 - len(row.whom), 3), np.nan)]) for row in every])
    for side, name in enumerate(WHOM):
        for end, what in enumerate(("", ", lower", ", upper")):
            columns[name + what] = whom_K33[:, side, end].round(4).tolist()
    columns["by chance"] = np.round([row.chance for row in every], 4).tolist()
    columns["cases"], columns["couples"] = [row.cases for row in every], [row.couples for row in every]
    ui.table(columns, "interchange_rows")


# ---- single pairs


class _Read(NamedTuple):
    """One thing that was read of every image: a task, by answers or probes."""

    readout: str
    task: str
    suite: str
    kind: str
    columns: np.ndarray
    """Of the arrays of `Readouts`; a label each where `kind` is multilabel."""
    names: list[str]
    """Of the classes or labels."""
    period: float
    """Of a circular value; else 0."""


def _reads(interchange: Interchange, view: View) -> list[_Read]:
    periods = {task.name: task.period for task in view.header.tasks}
    read = interchange.read
    columns_of: dict[tuple[str, str, str, str], list[int]] = {}
    for column, of in enumerate(zip(read.readout, read.task, read.suite, read.kind, strict=True)):
        columns_of.setdefault(of, []).append(column)
    reads = []
    for (readout, task, suite, kind), columns in columns_of.items():
        classes = read.classes[columns[0]]
        names = json.loads(classes) if classes else [read.label[column] for column in columns]
        reads.append(_Read(readout, task, suite, kind, np.array(columns), names, periods.get(task, 0.0)))
    return reads


def _pairs(view: View, interchange: Interchange, task: Task) -> None:
    st.markdown("**Single mixtures**")
    reads = _reads(interchange, view)
    wanted = [read for read in reads if read.suite == task.suite and task.name in ("", read.task)]
    left, right = ui.side_by_side([6, 4], "pairs", least=300, align="bottom")
    words = {"all": "all", **{source: f"follow {'the ' * (source != 'neither')}{source}" for source in WHOM}}
    whom = ui.pick("Mixtures", list(words), "pairs", place=left, format_func=words.__getitem__)
    mixed = interchange.partner >= 0
    numbers = np.flatnonzero(mixed if whom == "all" else mixed & _any_follows(interchange, wanted, WHOM.index(whom)))
    if not len(numbers):
        st.caption(f"No mixture in {ui.plain(task.words)} does.")
        return
    rows_of_sample = data.rows_of(view.key, interchange.images)
    sampled = [rows_of_sample[number] for number in numbers]
    # Another image or another list begins at the image itself, or the nearest in the sample.
    state, here = st.session_state, (view.key, view.selection.image, task.words, whom)
    if state.get("pairs_of") != here:
        state["pairs_of"], state["pair"] = here, sampled.index(nearest(sampled, view.selection.image)) + 1
    with right:
        chosen = st.number_input(f"Mixture, of {len(numbers):,}", 1, len(numbers), key="pair") - 1
        ui.select_button(sampled, "pairs_select")
    a = int(numbers[chosen])
    b = int(interchange.partner[a])
    one, other, told = ui.side_by_side([2, 2, 4], "pair", least=150)
    for column, letter, number in ((one, "A", a), (other, "B", b)):
        with column:
            _show_image(view, letter, rows_of_sample[number], interchange.images[number])
    with told:
        ui.how_to_read(
            "Mixtures (anchors of A, patches of B) in which the answer or probe follows the source chosen at the left; "
            "for a mean, of any task of its suite. The table has all tasks, the chosen one first: what is read of both "
            "mixtures and of each source alone. In brackets: the source with that label, where their labels differ; "
            "for numbers the nearer source, for lists how many of the differing labels follow it."
        )
    rest = [read for read in reads if not any(read is other for other in wanted)]
    ui.table(_told(interchange, [*wanted, *rest], a, b, view), "pair_table")


def _show_image(view: View, letter: str, row: int, name: str) -> None:
    st.image(data.thumbnail(view.key, row), width="stretch", alt=f"thumbnail of image {name}")
    st.caption(f"{letter}: image {row + 1:,}, {ui.plain(name)}")
    st.button(f"Show {letter} on all pages", key=f"show_{letter}", on_click=ui.go_to_image, args=(row,))


def _any_follows(interchange: Interchange, reads: Sequence[_Read], whom: int) -> np.ndarray:
    """(n,) whether anything of `reads` follows that one of WHOM."""
    swapped, true, partner = interchange.read.swapped, interchange.read.true, interchange.partner
    followed = [
        follows(swapped[:, column], true[:, column], partner, read.kind, read.period) == whom
        for read in reads
        for column in read.columns
    ]
    return np.any(followed, 0) if followed else np.zeros(len(partner), dtype=bool)


def _told(interchange: Interchange, reads: Sequence[_Read], a: int, b: int, view: View) -> dict[str, list[str]]:
    """What is true and was read of images number a and b, and of both mixtures; a row a task and readout."""
    units = {task.name: task.unit for task in view.header.tasks}
    heads = ("task", "read by", "anchors A, patches B", "anchors B, patches A", "A is", "B is", "from A", "from B")
    columns: dict[str, list[str]] = {head: [] for head in heads}
    arrays = interchange.read.true, interchange.read.unmixed, interchange.read.swapped
    for read in reads:
        true, alone, mixed = (values[:, read.columns] for values in arrays)
        said = [
            _text(read, mixed[first]) + _whose(read, mixed[first], true[first], true[second], letters)
            for first, second, letters in ((a, b, "AB"), (b, a, "BA"))
        ]
        said += [_text(read, values) for values in (true[a], true[b], alone[a], alone[b])]
        task = f"{read.task}, {units[read.task]}" if read.kind in NUMERIC and units.get(read.task) else read.task
        for head, cell in zip(heads, (task, f"{read.readout}s", *said), strict=True):
            columns[head].append(cell)
    return columns


def _text(read: _Read, values: np.ndarray) -> str:
    if not np.isfinite(values).any():
        return "unknown"
    if read.kind == "multilabel":
        return ", ".join(name for name, value in zip(read.names, values, strict=True) if value == 1) or "none"
    if read.kind in NUMERIC:
        return f"{float(values[0]):.3g}"
    return read.names[int(values[0])]


def _whose(read: _Read, said: np.ndarray, anchors: np.ndarray, patches: np.ndarray, letters: str) -> str:
    """Whose label it is, in brackets; of lists, how many of the labels that differ are whose."""
    stacked = np.stack([anchors, patches])
    followed = [
        int(follows(np.array([value, np.nan]), stacked[:, column], np.array([1, -1]), read.kind, read.period)[0])
        for column, value in enumerate(said)
    ]
    told = [whom for whom in followed if whom >= 0]
    if not told:
        return ""
    if read.kind == "multilabel":
        return f" ({letters[0]}: {told.count(0)}, {letters[1]}: {told.count(1)} of {len(told)})"
    whom = "neither" if told[0] == 2 else letters[told[0]]
    return f" (nearer {whom})" if read.kind in NUMERIC else f" ({whom})"
