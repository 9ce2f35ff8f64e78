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
    is_undefined,
    label,
    of_label,
)
from htc_probe.probes.inputs.representations import Representation, shown
from htc_probe.probes.show.grid import GREY, Chart, Grid, Line, plain_table

METRICS = {
    "top-1": "share of images whose class is right",
    "mAP": "mean average precision over labels",
    "R2": "share of the variance explained",
    "circular R2": "1 - mean(1 - cosine of the error) over the same of the floor",
}
_PAPER = {"semantic": 26.67, "detail": 30.70}
"""Top-1 of z_voco in the paper (arXiv 2512.08240), in percent."""
_SIGNIFICANT = 0.05
_SHORT = {KEPT: "kept", LOST: "lost", GAINED: "gained", UNDECIDED: "?", NOTHING: "-"}
"""Verdicts in a narrow column."""
_FEW = 20
"""Held-out images of a class below which one of them moves its recall by more than 5 points."""

_MOST_LAYERS = 48

_T = TypeVar("_T")


def key_of(item: Row | SuiteMean | Kept | SuiteGap | Ceiling | ClassScore | Confusion | CurvePoint) -> Representation:
    return Representation(item.representation, item.layer)


def render(results: Results) -> Group:
    """For every suite its scores, its layers where several were probed, its bits, differences, what is kept of
    pooled V, what representations add to each other and what a reader that is not linear finds; then of which suite
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


def name_in(results: Results, key: Representation) -> str:
    """By which a person reads of it. z_voco alone is that of the model's last layer, where no other was probed."""
    (word, layer), last = key, results.run.get("layers")
    alone = layer == last and {row.layer for row in results.rows} <= {None, last}
    return shown(word) if alone else shown(word, layer, last)


def name_of(results: Results, word: str) -> str:
    """The same of what `label` made one word of."""
    return name_in(results, Representation(*of_label(word)))


def suites(results: Results) -> list[str]:
    return list(dict.fromkeys(row.suite for row in results.rows))


def tasks(results: Results, suite: str) -> dict[str, list[Row]]:
    """The rows of each task of the suite."""
    rows_of: dict[str, list[Row]] = {}
    for row in results.rows:
        if row.suite == suite:
            rows_of.setdefault(row.task, []).append(row)
    return rows_of


def columns(results: Results, suite: str) -> list[Representation]:
    """What to compare side by side: z_voco at its last layer only, without joins whose use is told by what they add
    (`added`), and floors last.
    """
    joins = {pair.a for pair in results.comparisons if pair.metric == "bits"}
    keys = dict.fromkeys(key_of(row) for row in results.rows if row.suite == suite)
    last = max((key.layer for key in keys if key.layer is not None), default=None)
    kept = [key for key in keys if key.layer in (None, last) and label(*key) not in joins]
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
    for pair in results.comparisons:
        if (pair.suite, pair.task) == (suite, task) and pair.metric != "bits" and pair.p_holm < _SIGNIFICANT:
            better, worse = (pair.a, pair.b) if (pair.difference.estimate or 0) > 0 else (pair.b, pair.a)
            if better == label(*top):
                beaten.add(worse)
    return top if all(label(*key) in beaten for key in estimates if key != top) else None


def against(results: Results, suite: str) -> dict[tuple[str | None, Representation], Comparison]:
    """(task, column) -> what text reads of the token minus that column, else z_voco's last layer, else the first one.
    Task None: the mean of the suite.
    """
    keys = columns(results, suite)
    first = next((key for name in ("voco_read", "z_voco") for key in keys if key.name == name), keys[0])
    compared = {(pair.task, key): pair for key in keys for pair in between(results, suite, first, key)}
    return _in_order(results, suite, compared)


def _in_order(
    results: Results, suite: str, by_key: Mapping[tuple[Any, Representation], _T]
) -> dict[tuple[str | None, Representation], _T]:
    """By task, the mean last, and by column; without other columns."""
    order = [(task, key) for task in [*tasks(results, suite), None] for key in columns(results, suite)]
    return {place: by_key[place] for place in order if place in by_key}


def between(results: Results, suite: str, a: Representation, b: Representation) -> list[Comparison]:
    """a's score minus b's, by task and then of the suite's mean; [] where they were not compared."""
    compared = {}
    for pair in results.comparisons:
        if pair.suite == suite and pair.metric != "bits":
            if (pair.a, pair.b) == (label(*a), label(*b)):
                compared[pair.task] = pair
            elif (pair.b, pair.a) == (label(*a), label(*b)):
                estimate, lower, upper = (None if end is None else -end for end in pair.difference)
                compared[pair.task] = replace(pair, a=pair.b, b=pair.a, difference=Interval(estimate, upper, lower))
    return [compared[task] for task in [*tasks(results, suite), None] if task in compared]


def kept(results: Results, suite: str) -> dict[tuple[str | None, Representation], Kept]:
    """(task, column) -> whether the column keeps what pooled V has of the task; task None: of the mean."""
    by_key = {(verdict.task, key_of(verdict)): verdict for verdict in results.kept if verdict.suite == suite}
    return _in_order(results, suite, by_key)


def gaps(results: Results) -> dict[Representation, SuiteGap]:
    """Column -> by how much its retention of the first suite exceeds that of the second."""
    by_key = {key_of(gap): gap for gap in results.suite_gaps}
    return {key: by_key[key] for suite in suites(results)[:1] for key in columns(results, suite) if key in by_key}


def holds(claim: Comparison | Ceiling | SuiteGap | Kept) -> bool:
    """Whether it is no chance finding, after Holm's correction."""
    if isinstance(claim, Kept):
        return claim.verdict in (KEPT, LOST, GAINED)
    return claim.p_holm is not None and claim.p_holm < _SIGNIFICANT


def ceilings(results: Results, suite: str) -> dict[tuple[str, Representation], Ceiling]:
    """(task, column) -> what a reader that is not linear finds."""
    by_key = {(ceiling.task, key_of(ceiling)): ceiling for ceiling in results.ceilings if ceiling.suite == suite}
    order = [(task, key) for task in tasks(results, suite) for key in columns(results, suite)]
    return {place: by_key[place] for place in order if place in by_key}


def added(results: Results, pair: Comparison) -> tuple[str, str]:
    """(what is added, what was known) of a comparison in bits: v_d+z_voco with v_d is z_voco, given v_d. As `shown`."""
    parts, known = pair.a.split("+"), of_label(pair.b)[0].split("+")
    more = "+".join(part for part in parts if part not in known)
    return shown(more or pair.a), name_of(results, pair.b)


def not_defined(items: Iterable[Row | SuiteMean]) -> list[str]:
    """The tasks, or the suites of means, whose retention is not defined; each once."""
    without = [item for item in items if is_undefined(item.retention)]
    return list(dict.fromkeys(item.task if isinstance(item, Row) else item.suite for item in without))


def doubts(results: Results) -> list[str]:
    """The warnings of the results and, of tasks with few images of a class, one more. Those that differ only in what
    they are about, which stands before the first colon, are told together.
    """
    rarest = {matrix.task: min(map(sum, matrix.counts)) for matrix in results.confusions if matrix.counts}
    mean = {row.task: row.n / len(row.classes) for row in results.rows if row.kind == "classes" and row.classes}
    few = [f"{task}: fewer than {_FEW} images of some class" for task, n in (mean | rarest).items() if n < _FEW]
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
    for task, own in tasks(results, suite).items():
        by_key = {key: row for row in own if (key := key_of(row)) in keys}
        top = best(results, suite, task, {key: row.estimate for key, row in by_key.items()})
        cells = {key: _score(row, key, key == top) for key, row in by_key.items()}
        first = own[0]
        number = f" K={len(first.classes)}" if first.classes else ""
        details = Text(f"\n{first.metric}{number} n={first.n}", style=GREY)
        lines.append(Line(Text(task) + details, cells, Text(rounded(first.floor), style=GREY)))
        if any(row.control is not None for row in by_key.values()):
            control = {key: Text(rounded(row.control), style=GREY) for key, row in by_key.items()}
            lines.append(Line(Text(" control", style=GREY), control))
        for baseline in results.baselines:
            if (baseline.suite, baseline.task) == (suite, task):
                value = Text(rounded(baseline.score.estimate), style=GREY)
                lines.append(Line(Text(f" {baseline.name}", style=GREY), {}, value))
    means = {key_of(mean): mean for mean in results.suite_means if mean.suite == suite}
    shown = {key: means[key] for key in keys if key in means}
    metrics = list(dict.fromkeys(row.metric for row in rows))
    if shown:
        top = best(results, suite, None, {key: mean.estimate for key, mean in shown.items()})
        cells = {key: _score(mean, key, key == top) for key, mean in shown.items()}
        any_mean = next(iter(shown.values()))
        name = Text(f"mean of {any_mean.tasks}", style="bold")
        details = Text(f"\n{metrics[0] if len(metrics) == 1 else 'mixed'}", style=GREY)
        lines.append(Line(name + details, cells, Text(rounded(any_mean.floor), style=GREY), section=True))
        if any(mean.retention is not None for mean in shown.values()):
            kept = {key: mean.retention for key, mean in shown.items() if mean.retention is not None}
            none = Text("not defined", style=GREY)
            cells = {key: _interval(value) if is_defined(value) else none for key, value in kept.items()}
            lines.append(Line(Text(" retention"), cells))
    title = f"{suite}: what a linear probe reads ({sample(results, suite)})"
    return Grid(title, heads_of(results, keys), lines, "floor", paper_reference(suite))


def heads_of(results: Results, keys: Sequence[Representation]) -> dict[Representation, Text]:
    return {key: Text(name_in(results, key), style=GREY if key.is_floor else "") for key in keys}


def _bits(results: Results, suite: str) -> Grid:
    keys = columns(results, suite)
    lines = []
    for task, own in tasks(results, suite).items():
        by_key = {key: row for row in own if (key := key_of(row)) in keys}
        cells = {key: _interval(row.metrics.get("V-information")) for key, row in by_key.items()}
        lines.append(Line(Text(task), cells))
        if any(row.compression is not None for row in by_key.values()):
            cells = {key: _interval(row.compression_interval) for key, row in by_key.items()}
            lines.append(Line(Text(" compression", style=GREY), cells))
    means = [mean for mean in results.suite_means if mean.suite == suite]
    cells = {key_of(mean): _interval(mean.bits) for mean in means}
    lines.append(Line(Text("mean", style="bold"), cells, section=True))
    return Grid(f"{suite}: bits an image that the probe saves", heads_of(results, keys), lines)


def _differences(results: Results, suite: str) -> Grid:
    """A column for each representation that another one is compared with, without lines where nothing is."""
    compared = against(results, suite)
    heads = heads_of(results, [key for key in columns(results, suite) if any(key == other for _, other in compared)])
    lines = _lines({place: _difference(pair) for place, pair in compared.items()})
    first = name_of(results, next(iter(compared.values())).a) if compared else ""
    return Grid(f"{suite}: {first} minus", heads, lines)


def _lines(cells: Mapping[tuple[str | None, Representation], Text]) -> list[Line]:
    """One a task, and one of their mean."""
    lines = []
    for task in dict.fromkeys(task for task, _ in cells):
        name = Text("mean of the tasks", style="bold") if task is None else Text(task)
        own = {key: cell for (of_task, key), cell in cells.items() if of_task == task}
        lines.append(Line(name, own, section=task is None))
    return lines


def _added(results: Results, suite: str) -> Grid:
    in_bits = [pair for pair in results.comparisons if pair.suite == suite and pair.metric == "bits"]
    heads = {added(results, pair): Text("{} given {}".format(*added(results, pair))) for pair in in_bits}
    lines = [
        Line(Text(task or "mean"), {added(results, pair): _difference(pair) for pair in in_bits if pair.task == task})
        for task in dict.fromkeys(pair.task for pair in in_bits)
    ]
    return Grid(f"{suite}: bits an image that one adds to another", heads, lines)


def _kept(results: Results, suite: str) -> Grid:
    """Without lines where nothing is beside pooled V."""
    verdicts = kept(results, suite)
    heads = heads_of(results, list(dict.fromkeys(key for _, key in verdicts)))
    lines = _lines({place: _verdict(verdict) for place, verdict in verdicts.items()})
    margin = next((verdict.margin for verdict in verdicts.values()), 0.0)
    return Grid(f"{suite}: does it keep pooled V's score, within {margin:g}?", heads, lines)


def _verdict(verdict: Kept) -> Text:
    difference, look = verdict.difference, "" if holds(verdict) else GREY
    if verdict.verdict == UNDECIDED and difference.lower == difference.upper:
        return Text(f"{_SHORT[UNDECIDED]}\nall equal", style=GREY)
    return _with_ends(_SHORT[verdict.verdict], look, difference, 3)


def _ceilings(results: Results, suite: str) -> Grid:
    """Without lines where none was asked for."""
    by_key = ceilings(results, suite)
    lines = []
    for task in dict.fromkeys(task for task, _ in by_key):
        of_task = {key: ceiling for (name, key), ceiling in by_key.items() if name == task}
        over = {key: _difference(ceiling) for key, ceiling in of_task.items()}
        lines.append(Line(Text(task), {key: _interval(ceiling.score) for key, ceiling in of_task.items()}))
        lines.append(Line(Text(" over linear", style=GREY), over))
    heads = heads_of(results, list(dict.fromkeys(key for _, key in by_key)))
    return Grid(f"{suite}: ceiling, what a reader with a hidden layer finds", heads, lines)


def _gaps(results: Results) -> Grid:
    by_key = gaps(results)
    first = next(iter(by_key.values()))
    undefined = Text("not defined", style=GREY)
    cells = {key: undefined if gap.p is None else _difference(gap) for key, gap in by_key.items()}
    title = f"{first.first} minus {first.second}: the shares that are kept of pooled V's means"
    return Grid(title, heads_of(results, list(by_key)), [Line(Text("retention"), cells)])


def _difference(claim: Comparison | Ceiling | SuiteGap) -> Text:
    value, sure = claim.difference.estimate, holds(claim)
    sign = "+" if (value or 0) > 0 else ""
    first = f"{sign}{rounded(value, 3)}{'*' if sure else ''}"
    return _with_ends(first, "" if sure else GREY, claim.difference, 3)


def _legend(results: Results) -> str:
    """How to read the tables: what is in them, and nothing else."""
    rows = results.rows
    metrics = list(dict.fromkeys(row.metric for row in rows))
    matched = results.config.get("protocol", {}).get("match_dim")
    undefined = not_defined(results.suite_means)
    kinds = {"bits" if item.metric == "bits" else "scores" for item in results.comparisons}
    controls, codes = (any(getattr(row, name) is not None for row in rows) for name in ("control", "compression"))
    margin = next((verdict.margin for verdict in results.kept), 0.0)
    shares, above = results.suite_gaps, results.ceilings
    sentences = {
        "Scores are held out, with their 95% interval below. "
        + "; ".join(f"{name}: {METRICS.get(name, '')}" for name in metrics)
        + ". K: classes or labels; n: images.": True,
        f"Of every representation only the first {matched} principal directions are probed.": matched,
        "* of a score: better than every other of its row by paired tests, p < 0.05 after Holm's correction. * of a "
        "difference: p < 0.05 alike. Differences are on the same images; others are in the JSON file.": kinds,
        "Grey: floors, and what is not above its own. floor: without features (majority class, random ranking, "
        "mean).": True,
        "pixels: a probe of the thumbnail.": any(row.representation == "pixels" for row in rows),
        "control: a probe of random labels of object categories, which shows how well it tells these apart.": controls,
        "category alone: the best guess from the image's category.": results.baselines,
        "A suite's mean counts each task once, though metrics differ.": len(metrics) > 1,
        "retention: (mean - floor) / (pooled V's mean - floor).": any(mean.retention for mean in results.suite_means),
        f"retention of {' and '.join(undefined)}: {NOT_DEFINED}.": undefined,
        f"kept: within {margin:g} of pooled V's score by two one-sided tests; lost, gained: further from it "
        "than that; each with p < 0.05 after Holm's correction. ?: not decided by so many images, also "
        "where all are equal. -: pooled V is not "
        "clearly further than that above its floor. Below, the 95% interval of the score minus "
        "pooled V's.": results.kept,
        "Shares kept: above 0, semantics are kept better than details.": any(gap.p is not None for gap in shares),
        "ceiling: a hidden layer on top of the linear probe; over linear: that score minus the linear probe's.": above,
        "Bits: V-information, what the probe saves over knowing how often labels occur.": True,
        "compression: of the online code, which also rewards learning from few images; 1 saves nothing.": codes,
        "One given another: I(a; Y | b), what a probe of both saves over a probe of b alone; below 0, the wider one "
        "learned worse from as many images.": "bits" in kinds,
    }
    return " ".join(text for text, there in sentences.items() if there) + "\n"


def paper_reference(suite: str) -> str:
    """What the paper has for a suite of this name; empty for any other."""
    if suite not in _PAPER:
        return ""
    return (
        f"The paper has {_PAPER[suite]:.2f}% top-1 for z_voco on {suite} tasks, of data, classes and sample sizes "
        "that are not known: a reference, not a comparison."
    )


def sample(results: Results, suite: str) -> str:
    """How many images its scores stand on, such as `1,601 to 2,000 images in 2,000 groups, 5 folds`."""
    rows = [row for row in results.rows if row.suite == suite]
    held_out = "none trained on" if "train" in results.run else f"{len(rows[0].fold_scores)} folds"
    return f"{images(results, suite)} in {_range({row.n_groups for row in rows})} groups, {held_out}"


def images(results: Results, suite: str) -> str:
    """`1,601 to 2,000 images`."""
    return f"{_range({row.n for row in results.rows if row.suite == suite})} images"


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _score(item: Row | SuiteMean, key: Representation, marked: bool) -> Text:
    grey = key.is_floor or item.lower <= item.floor
    first, style = rounded(item.estimate) + ("*" if marked else ""), GREY if grey else "bold" if marked else ""
    return _with_ends(first, style, item)


def _interval(value: Interval | None) -> Text:
    if value is None or value.estimate is None:
        return Text("-", style=GREY)
    return _with_ends(rounded(value.estimate), "", value)


def _with_ends(first: str, style: str, value: Interval | Row | SuiteMean, digits: int = 2) -> Text:
    """Short enough for a narrow column; where a number is negative, on two lines if need be."""
    ends = "no interval"
    if value.lower is not None and value.upper is not None:
        low, high = (re.sub(r"^(-?)0\.", r"\1.", rounded(end, digits)) for end in (value.lower, value.upper))
        ends = f"{low} to {high}" if low.startswith("-") else f"{low}-{high}"
    return Text(first, style=style) + Text("\n" + ends, style=GREY)


def rounded(value: float | None, digits: int = 2) -> str:
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

    def add(name: Text, scores: Mapping[int, float], floor: float, height: int) -> None:
        top = max(scores, key=lambda layer: scores[layer])
        room = max(1 - floor, 1e-9)
        chart = Chart([(scores.get(layer, floor) - floor) / room for layer in drawn], height)
        numbers = (rounded(scores.get(stored[0])), f"{rounded(scores[top])} @{top}", rounded(scores.get(stored[-1])))
        table.add_row(name, chart, *numbers, Text(rounded(floor), style=GREY))

    for task, own in tasks(results, suite).items():
        add(Text(task), {row.layer: row.estimate for row in own if row.layer is not None}, own[0].floor, 1)
    means = [mean for mean in results.suite_means if mean.suite == suite and mean.layer is not None]
    if means:
        table.add_section()
        scores = {mean.layer: mean.estimate for mean in means if mean.layer is not None}
        add(Text("mean", style="bold"), scores, means[0].floor, 4)
    return Group(Text(f"{suite}: z_voco by layer", style="bold"), table, Text(caption, style=GREY))
