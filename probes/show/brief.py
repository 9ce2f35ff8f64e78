"""Probe results in brief: one table a suite, a line a warning, and the verdict as the last words. Knows `Results` and
rich; not runs, files or solvers.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from htc_probe.probes.files.results import Results, Row, SuiteMean
from htc_probe.probes.show import table
from htc_probe.probes.show.grid import GREY, Grid, Line
from htc_probe.probes.show.verdict import Verdict

_MOST = 5
"""Warnings that are told of."""
_CAPTION = "Score ± the longer side of its 95% interval. Grey: a floor, or not above one."


def render(results: Results) -> Group:
    """A table a suite, and a line a warning."""
    grids = [_scores(results, suite) for suite in table.suites(results)]
    doubts = table.doubts(results)
    told = doubts[:_MOST] + [f"{len(doubts) - _MOST} more"] * (len(doubts) > _MOST)
    warnings = [Text(f"! {one}", style="yellow", no_wrap=True, overflow="ellipsis") for one in told]
    return Group(*grids, Text(_CAPTION, style=GREY), *warnings)


def last_words(verdict: Verdict) -> Iterator[tuple[RenderableType, bool]]:
    """The verdict line by line, and whether a line may be broken: a command is copied as it stands."""
    first, *others = verdict.sentences
    yield Text(f"\n{first}", style="bold"), True
    yield from ((Text(sentence), True) for sentence in others)
    if verdict.next:
        yield Text(f"Next: {verdict.next}"), False


def _scores(results: Results, suite: str) -> Grid:
    """A line a task, and one of the mean: each score with half its interval, and the floor."""
    keys = table.columns(results, suite)
    lines = []
    for task, rows in table.tasks(results, suite).items():
        cells = {key: _cell(row, key.is_floor) for row in rows if (key := table.key_of(row)) in keys}
        lines.append(Line(Text(task), cells, _floor(rows[0])))
    means = [mean for mean in results.suite_means if mean.suite == suite and table.key_of(mean) in keys]
    if means and means[0].tasks > 1:
        cells = {key: _cell(mean, key.is_floor) for mean in means if (key := table.key_of(mean))}
        lines.append(Line(Text("mean", style="bold"), cells, _floor(means[0]), section=True))
    title = f"{suite}: what a linear probe reads ({table.images(results, suite)})"
    return Grid(title, table.heads_of(results, keys), lines, "floor")


def _cell(item: Row | SuiteMean, is_floor: bool) -> Text:
    reach = max(item.estimate - item.lower, item.upper - item.estimate)
    score = f"{table.rounded(item.estimate)} ±{table.rounded(reach).removeprefix('0')}"
    return Text(score, style=GREY if is_floor or item.lower <= item.floor else "")


def _floor(item: Row | SuiteMean) -> Text:
    return Text(table.rounded(item.floor), style=GREY)
