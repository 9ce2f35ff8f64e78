"""Probe results as text tables, and what of them deserves a mark or a doubt. Knows `Results` and rich; not runs, files
or solvers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from rich.console import Group, RenderableType
from rich.text import Text

from htc_probe.probes.files.results import (
    GAINED,
    KEPT,
    LOST,
    NOT_DEFINED,
    NOTHING,
    UNDECIDED,
    Ceiling,
    ClassScore,
    Comparison,
    Confusion,
    CurvePoint,
    Interval,
    Kept,
    Results,
    Row,
    SuiteGap,
    SuiteMean,
    is_defined,
    label,
)
from htc_probe.probes.inputs.representations import Representation
from htc_probe.probes.show.grid import GREY, Chart, Grid, Line, plain_table

METRICS = {
    "top-1": "share of images whose class is right",
    "mAP": "mean average precision over labels",
    "R2": "share of the variance explained",
    "circular R2": "1 - mean(1 - cosine of the error) over the same of the floor",
}
PAPER = {"semantic": 26.67, "detail": 30.70}
"""Top-1 of z_voco in the paper (arXiv 2512.08240), in percent."""
SIGNIFICANT = 0.05
SHORT = {KEPT: "kept", LOST: "lost", GAINED: "gained", UNDECIDED: "?", NOTHING: "-"}
"""Verdicts in a narrow column."""
FEW = 20
"""Held-out images of a class below which one of them moves its recall by more than 5 points."""

_MOST_LAYERS = 48

T = TypeVar("T")


def key_of(item: Row | SuiteMean | Kept | SuiteGap | Ceiling | ClassScore | Confusion | CurvePoint) -> Representation:
    return Representation(item.representation, item.layer)


def render(results: Results) -> Group:
    """For every suite its scores, its layers where several were probed, its bits, differences, what is kept of
    v_pooled, what representations add to each other and what a reader that is not linear finds; then of which suite
    more is kept, how to read all that, and warnings.
    """
    parts: list[RenderableType] = []
    for suite in suites(results):
        parts.append(_scores(results, suite))
        if len(layers(results, suite)) > 1:
            parts.append(_layer_table(results, suite))
        parts.append(_bits(results, suite))
        told = (_differences, _kept, _added, _ceilings)
        parts += [grid for make in told if (grid := make(results, suite)).lines]
    if any(one.p is not None for one in gaps(results).values()):
        parts.append(_gaps(results))
    parts.append(Text(_legend(results), style=GREY))
    parts += [Text(f"! {doubt}", style="yellow") for doubt in doubts(results)]
    return Group(*parts)


# ---- what to show and what to make of it


def suites(results: Results) -> list[str]:
    return list(dict.fromkeys(row.suite for row in results.rows))


def tasks(results: Results, suite: str) -> dict[str, list[Row]]:
    """The rows of each task of the suite."""
    found: dict[str, list[Row]] = {}
    for row in results.rows:
        if row.suite == suite:
            found.setdefault(row.task, []).append(row)
    return found


def columns(results: Results, suite: str) -> list[Representation]:
    """What to compare side by side: z_voco at its last layer only, without joins whose use is told by what they add
    (`added`), and floors last.
    """
    told = {comparison.a for comparison in results.comparisons if comparison.metric == "bits"}
    keys = dict.fromkeys(key_of(row) for row in results.rows if row.suite == suite)
    last = max((key.layer for key in keys if key.layer is not None), default=None)
    kept = [key for key in keys if key.layer in (None, last) and label(*key) not in told]
    return sorted(kept or keys, key=lambda key: key.is_floor)


def layers(results: Results, suite: str) -> list[int]:
    return sorted({row.layer for row in results.rows if row.suite == suite and row.layer is not None})


def best(
    results: Results, suite: str, task: str | None, estimates: Mapping[Representation, float]
) -> Representation | None:
    """The representation that a paired test, after Holm's correction, finds better than each of the others; None where
    there is none or not every pair with it was tested. task None: the mean of the suite.
    """
    if len(estimates) < 2:
        return None
    top = max(estimates, key=lambda key: estimates[key])
    beaten = set()
    for one in results.comparisons:
        if (one.suite, one.task) == (suite, task) and one.metric != "bits" and one.p_holm < SIGNIFICANT:
            better, worse = (one.a, one.b) if (one.difference.estimate or 0) > 0 else (one.b, one.a)
            if better == label(*top):
                beaten.add(worse)
    return top if all(label(*key) in beaten for key in estimates if key != top) else None


def against(results: Results, suite: str) -> dict[tuple[str | None, Representation], Comparison]:
    """(task, column) -> what text reads of the token minus that column, else z_voco's last layer, else the first one.
    Task None: the mean of the suite.
    """
    keys = columns(results, suite)
    first = next((key for name in ("voco_read", "z_voco") for key in keys if key.name == name), keys[0])
    compared = {(one.task, key): one for key in keys for one in between(results, suite, first, key)}
    return _in_order(results, suite, compared)


def _in_order(
    results: Results, suite: str, by_key: Mapping[tuple[Any, Representation], T]
) -> dict[tuple[str | None, Representation], T]:
    """By task, the mean last, and by column; without other columns."""
    order = [(task, key) for task in [*tasks(results, suite), None] for key in columns(results, suite)]
    return {place: by_key[place] for place in order if place in by_key}


def between(results: Results, suite: str, a: Representation, b: Representation) -> list[Comparison]:
    """a's score minus b's, by task and then of the suite's mean; [] where they were not compared."""
    found = {}
    for one in results.comparisons:
        if one.suite == suite and one.metric != "bits":
            if (one.a, one.b) == (label(*a), label(*b)):
                found[one.task] = one
            elif (one.b, one.a) == (label(*a), label(*b)):
                estimate, lower, upper = (None if end is None else -end for end in one.difference)
                found[one.task] = replace(one, a=one.b, b=one.a, difference=Interval(estimate, upper, lower))
    return [found[task] for task in [*tasks(results, suite), None] if task in found]


def kept(results: Results, suite: str) -> dict[tuple[str | None, Representation], Kept]:
    """(task, column) -> whether the column keeps what v_pooled has of the task; task None: of the mean."""
    return _in_order(results, suite, {(one.task, key_of(one)): one for one in results.kept if one.suite == suite})


def gaps(results: Results) -> dict[Representation, SuiteGap]:
    """Column -> by how much its retention of the first suite exceeds that of the second."""
    of = {key_of(one): one for one in results.suite_gaps}
    return {key: of[key] for suite in suites(results)[:1] for key in columns(results, suite) if key in of}


def holds(one: Comparison | Ceiling | SuiteGap | Kept) -> bool:
    """Whether it is no chance finding, after Holm's correction."""
    if isinstance(one, Kept):
        return one.verdict in (KEPT, LOST, GAINED)
    return one.p_holm is not None and one.p_holm < SIGNIFICANT


def ceilings(results: Results, suite: str) -> dict[tuple[str, Representation], Ceiling]:
    """(task, column) -> what a reader that is not linear finds."""
    found = {(one.task, key_of(one)): one for one in results.ceilings if one.suite == suite}
    return {(task, key): one for (task, key), one in _in_order(results, suite, found).items() if task is not None}


def added(comparison: Comparison) -> tuple[str, str]:
    """(what is added, what was known) of a comparison in bits: v_d+z_voco with v_d is z_voco, given v_d."""
    parts, known = comparison.a.split("+"), comparison.b.split("@")[0].split("+")
    return "+".join(part for part in parts if part not in known) or comparison.a, comparison.b


def not_defined(items: Iterable[Row | SuiteMean]) -> list[str]:
    """The tasks, or the suites of means, whose retention is not defined; each once."""
    found = [one for one in items if one.retention is not None and not is_defined(one.retention)]
    return list(dict.fromkeys(one.task if isinstance(one, Row) else one.suite for one in found))


def doubts(results: Results) -> list[str]:
    """The warnings of the results and, of tasks with few images of a class, one more. Those that differ only in what
    they are about, which stands before the first colon, are told together.
    """
    rarest = {one.task: min(map(sum, one.counts)) for one in results.confusions if one.counts}
    mean = {row.task: row.n / len(row.classes) for row in results.rows if row.kind == "classes" and row.classes}
    few = [f"{task}: fewer than {FEW} images of some class" for task, n in (mean | rarest).items() if n < FEW]
    about: dict[str, list[str]] = {}
    for warning in (*results.warnings, *few):
        subject, _, reason = warning.partition(": ")
        about.setdefault(reason or warning, []).append(subject if reason else "")
    return [f"{_short(subjects)}: {reason}" if subjects[0] else reason for reason, subjects in about.items()]


# ---- a table of tasks by representations


def _scores(results: Results, suite: str) -> Grid:
    keys = columns(results, suite)
    rows = [row for row in results.rows if row.suite == suite]
    lines = []
    for task, of in tasks(results, suite).items():
        here = {key: row for row in of if (key := key_of(row)) in keys}
        top = best(results, suite, task, {key: row.estimate for key, row in here.items()})
        cells = {key: _score(row, key, key == top) for key, row in here.items()}
        first = of[0]
        number = f" K={len(first.classes)}" if first.classes else ""
        about = Text(f"\n{first.metric}{number} n={first.n}", style=GREY)
        lines.append(Line(Text(task) + about, cells, Text(_number(first.floor), style=GREY)))
        if any(row.control is not None for row in here.values()):
            control = {key: Text(_number(row.control), style=GREY) for key, row in here.items()}
            lines.append(Line(Text(" control", style=GREY), control))
        for one in results.baselines:
            if (one.suite, one.task) == (suite, task):
                value = Text(_number(one.score.estimate), style=GREY)
                lines.append(Line(Text(f" {one.name}", style=GREY), {}, value))
    means = {key_of(mean): mean for mean in results.suite_means if mean.suite == suite}
    shown = {key: means[key] for key in keys if key in means}
    metrics = list(dict.fromkeys(row.metric for row in rows))
    if shown:
        top = best(results, suite, None, {key: mean.estimate for key, mean in shown.items()})
        cells = {key: _score(mean, key, key == top) for key, mean in shown.items()}
        some = next(iter(shown.values()))
        name = Text(f"mean of {some.tasks}", style="bold")
        about = Text(f"\n{metrics[0] if len(metrics) == 1 else 'mixed'}", style=GREY)
        lines.append(Line(name + about, cells, Text(_number(some.floor), style=GREY), section=True))
        if any(mean.retention is not None for mean in shown.values()):
            kept = {key: mean.retention for key, mean in shown.items() if mean.retention is not None}
            none = Text("not defined", style=GREY)
            cells = {key: _interval(value) if is_defined(value) else none for key, value in kept.items()}
            lines.append(Line(Text(" retention"), cells))
    title = f"{suite}: what a linear probe reads ({sample(results, suite)})"
    return Grid(title, _heads(keys), lines, "floor", paper_reference(suite))


def _heads(keys: Sequence[Representation]) -> dict[Representation, Text]:
    return {key: Text(label(*key), style=GREY if key.is_floor else "") for key in keys}


def _bits(results: Results, suite: str) -> Grid:
    keys = columns(results, suite)
    lines = []
    for task, of in tasks(results, suite).items():
        here = {key: row for row in of if (key := key_of(row)) in keys}
        lines.append(Line(Text(task), {key: _interval(row.metrics.get("V-information")) for key, row in here.items()}))
        if any(row.compression is not None for row in here.values()):
            cells = {key: _interval(row.compression_interval) for key, row in here.items()}
            lines.append(Line(Text(" compression", style=GREY), cells))
    means = [mean for mean in results.suite_means if mean.suite == suite]
    cells = {key_of(mean): _interval(mean.bits) for mean in means}
    lines.append(Line(Text("mean", style="bold"), cells, section=True))
    return Grid(f"{suite}: bits an image that the probe saves", _heads(keys), lines)


def _differences(results: Results, suite: str) -> Grid:
    """A column for each representation that another one is compared with, without lines where nothing is."""
    found = against(results, suite)
    heads = _heads([key for key in columns(results, suite) if any(key == other for _, other in found)])
    lines = _lines({place: _difference(one) for place, one in found.items()})
    first = next(iter(found.values())).a if found else ""
    return Grid(f"{suite}: {first} minus", heads, lines)


def _lines(cells: Mapping[tuple[str | None, Representation], Text]) -> list[Line]:
    """One a task, and one of their mean."""
    return [
        Line(
            Text("mean of the tasks" if task is None else task, style="bold" if task is None else ""),
            {key: cell for (other, key), cell in cells.items() if other == task},
            section=task is None,
        )
        for task in dict.fromkeys(task for task, _ in cells)
    ]


def _added(results: Results, suite: str) -> Grid:
    shown = [one for one in results.comparisons if one.suite == suite and one.metric == "bits"]
    heads = {added(one): Text("{} given {}".format(*added(one))) for one in shown}
    lines = [
        Line(Text(task or "mean"), {added(one): _difference(one) for one in shown if one.task == task})
        for task in dict.fromkeys(one.task for one in shown)
    ]
    return Grid(f"{suite}: bits an image that one adds to another", heads, lines)


def _kept(results: Results, suite: str) -> Grid:
    """Without lines where nothing is beside v_pooled."""
    found = kept(results, suite)
    heads = _heads(list(dict.fromkeys(key for _, key in found)))
    lines = _lines({place: _verdict(one) for place, one in found.items()})
    margin = next((one.margin for one in found.values()), 0.0)
    return Grid(f"{suite}: does it keep v_pooled's score, within {margin:g}?", heads, lines)


def _verdict(one: Kept) -> Text:
    sure = holds(one)
    ends = _ends(one.difference.lower, one.difference.upper, 3)
    return Text(SHORT[one.verdict], style="" if sure else GREY) + Text("\n" + ends, style=GREY)


def _ceilings(results: Results, suite: str) -> Grid:
    """Without lines where none was asked for."""
    found = ceilings(results, suite)
    lines = []
    for task in dict.fromkeys(task for task, _ in found):
        here = {key: one for (of, key), one in found.items() if of == task}
        lines.append(Line(Text(task), {key: _interval(one.score) for key, one in here.items()}))
        lines.append(Line(Text(" over linear", style=GREY), {key: _difference(one) for key, one in here.items()}))
    heads = _heads(list(dict.fromkeys(key for _, key in found)))
    return Grid(f"{suite}: ceiling, what a reader with a hidden layer finds", heads, lines)


def _gaps(results: Results) -> Grid:
    found = gaps(results)
    first = next(iter(found.values()))
    none = Text("not defined", style=GREY)
    cells = {key: none if one.p is None else _difference(one) for key, one in found.items()}
    title = f"{first.first} minus {first.second}: the shares that are kept of v_pooled's means"
    return Grid(title, _heads(list(found)), [Line(Text("retention"), cells)])


def _difference(one: Comparison | Ceiling | SuiteGap) -> Text:
    value, lower, upper = one.difference
    sure = holds(one)
    sign = "+" if (value or 0) > 0 else ""
    first = Text(f"{sign}{_number(value, 3)}{'*' if sure else ''}", style="" if sure else GREY)
    return first + Text("\n" + _ends(lower, upper, 3), style=GREY)


def _legend(results: Results) -> str:
    """How to read the tables: what is in them, and nothing else."""
    rows = results.rows
    metrics = list(dict.fromkeys(row.metric for row in rows))
    matched = results.config.get("protocol", {}).get("match_dim")
    undefined = not_defined(results.suite_means)
    kinds = {"bits" if one.metric == "bits" else "scores" for one in results.comparisons}
    said = {
        "Scores are held out, with their 95 % interval below. "
        + "; ".join(f"{name}: {METRICS.get(name, '')}" for name in metrics)
        + ". K: classes or labels; n: images.": True,
        f"Of every representation only the first {matched} principal directions are probed.": matched,
        "* of a score: better than every other of its row by paired tests, p < 0.05 after Holm's correction. * of a "
        "difference: p < 0.05 alike. Differences are on the same images; others are in the JSON file.": kinds,
        "Grey: floors, and what is not above its own. floor: without features (majority class, random ranking, "
        "mean).": True,
        "pixels: a probe of the thumbnail.": any(row.representation == "pixels" for row in rows),
        "control: a probe of random labels of object categories, which shows how well it tells these apart.": any(
            row.control is not None for row in rows
        ),
        "category alone: the best guess from the image's category.": results.baselines,
        "A suite's mean counts each task once, though metrics differ.": len(metrics) > 1,
        "retention: (mean - floor) / (v_pooled's mean - floor).": any(mean.retention for mean in results.suite_means),
        f"retention of {' and '.join(undefined)}: {NOT_DEFINED}.": undefined,
        f"kept: within {_margin(results)} of v_pooled's score by two one-sided tests; lost, gained: further from it "
        "than that; each with p < 0.05 after Holm's correction. ?: not decided by so many images. -: v_pooled is not "
        "clearly further than that above its floor. Below, the 95 % interval of the score minus "
        "v_pooled's.": results.kept,
        "Shares kept: above 0, semantics are kept better than details.": any(
            one.p is not None for one in results.suite_gaps
        ),
        "ceiling: a hidden layer on top of the linear probe; over linear: that score minus the linear probe's.": (
            results.ceilings
        ),
        "Bits: V-information, what the probe saves over knowing how often labels occur.": True,
        "compression: of the online code, which also rewards learning from few images; 1 saves nothing.": any(
            row.compression is not None for row in rows
        ),
        "One given another: I(a; Y | b), what a probe of both saves over a probe of b alone; below 0, the wider one "
        "learned worse from as many images.": "bits" in kinds,
    }
    return " ".join(text for text, there in said.items() if there) + "\n"


def _margin(results: Results) -> str:
    return f"{next((one.margin for one in results.kept), 0.0):g}"


def paper_reference(suite: str) -> str:
    """What the paper has for a suite of this name; empty for any other."""
    if suite not in PAPER:
        return ""
    return (
        f"The paper has {PAPER[suite]:.2f} % top-1 for z_voco on {suite} tasks, of data, classes and sample sizes that "
        "are not known: a reference, not a comparison."
    )


def sample(results: Results, suite: str) -> str:
    """How many images its scores stand on, such as `1,601 to 2,000 images in 2,000 groups, 5 folds`."""
    rows = [row for row in results.rows if row.suite == suite]
    images, groups = ({getattr(row, name) for row in rows} for name in ("n", "n_groups"))
    held_out = "none trained on" if "train" in results.run else f"{len(rows[0].fold_scores)} folds"
    return f"{_range(images)} images in {_range(groups)} groups, {held_out}"


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _score(item: Row | SuiteMean, key: Representation, marked: bool) -> Text:
    grey = key.is_floor or item.lower <= item.floor
    first = Text(_number(item.estimate) + ("*" if marked else ""), style=GREY if grey else "bold" if marked else "")
    return first + Text("\n" + _ends(item.lower, item.upper), style=GREY)


def _interval(value: Interval | None) -> Text:
    if value is None or value.estimate is None:
        return Text("-", style=GREY)
    return Text(_number(value.estimate)) + Text("\n" + _ends(value.lower, value.upper), style=GREY)


def _ends(lower: float | None, upper: float | None, digits: int = 2) -> str:
    """Short enough for a narrow column; where a number is negative, on two lines if need be."""
    if lower is None or upper is None:
        return "no interval"
    low, high = (re.sub(r"^(-?)0\.", r"\1.", _number(value, digits)) for value in (lower, upper))
    return f"{low} to {high}" if low.startswith("-") else f"{low}-{high}"


def _number(value: float | None, digits: int = 2) -> str:
    """Fewer digits of large numbers, and no sign of what rounds to 0."""
    if value is None or not math.isfinite(value):
        return "-"
    digits = digits if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:z.{digits}f}"


def _short(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---- layers


def _layer_table(results: Results, suite: str) -> Group:
    """z_voco by layer: a chart from the floor to a perfect score, and the numbers of its ends and its highest point."""
    stored = layers(results, suite)
    drawn = stored[:: -math.ceil(len(stored) / _MOST_LAYERS)][::-1]
    in_a_row = drawn == list(range(drawn[0], drawn[-1] + 1))
    every = f"{drawn[0]} to {drawn[-1]}" if in_a_row else ", ".join(map(str, drawn))
    caption = (
        f"Columns: layers {every} (0 is the embedding, the same for every image), from the floor to a perfect score. "
        "The highest of many is high partly by chance: choose a layer on other images than those that score it.\n"
    )
    table = plain_table(padding=2)
    table.add_column("task", overflow="fold")
    table.add_column("score", no_wrap=True)
    for name in (f"layer {stored[0]}", "highest", f"layer {stored[-1]}"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(Text("floor", style=GREY), justify="right", no_wrap=True)

    def add(name: Text, at: Mapping[int, float], floor: float, height: int) -> None:
        top = max(at, key=lambda layer: at[layer])
        room = max(1 - floor, 1e-9)
        chart = Chart([(at.get(layer, floor) - floor) / room for layer in drawn], height)
        numbers = (_number(at.get(stored[0])), f"{_number(at[top])} @{top}", _number(at.get(stored[-1])))
        table.add_row(name, chart, *numbers, Text(_number(floor), style=GREY))

    for task, of in tasks(results, suite).items():
        add(Text(task), {row.layer: row.estimate for row in of if row.layer is not None}, of[0].floor, 1)
    means = [mean for mean in results.suite_means if mean.suite == suite and mean.layer is not None]
    if means:
        table.add_section()
        at = {mean.layer: mean.estimate for mean in means if mean.layer is not None}
        add(Text("mean", style="bold"), at, means[0].floor, 4)
    return Group(Text(f"{suite}: z_voco by layer", style="bold"), table, Text(caption, style=GREY))
