"""Probe results as text tables. Knows `Results` and rich; not runs, files or solvers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from probes.results import Results, Row, SuiteMean

METRICS = {
    "top-1": "share of images whose class is right",
    "mAP": "mean average precision over labels",
    "R2": "share of the variance explained",
}


def render(results: Results) -> Group:
    """One table a suite; where several layers were probed, one of z_voco by layer beneath; then the
    warnings.
    """
    suites = list(dict.fromkeys(row.suite for row in results.rows))
    parts: list[RenderableType] = []
    for suite in suites:
        parts.append(suite_table(results, suite))
        if len(_layers(results, suite)) > 1:
            parts.append(layer_table(results, suite))
    parts += [Text(f"! {warning}", style="yellow") for warning in results.warnings]
    return Group(*parts)


def suite_table(results: Results, suite: str) -> Table:
    """Task by representation: score [95 % interval], beside the floor of the same images."""
    rows = [row for row in results.rows if row.suite == suite]
    means = [mean for mean in results.suite_means if mean.suite == suite]
    columns = _columns(rows)
    metrics = list(dict.fromkeys(row.metric for row in rows))
    table = Table(
        title=f"{suite}: what a linear probe reads",
        caption=_caption(metrics),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for name, layer in columns:
        header = f"{name} ({layer})" if layer is not None else name
        table.add_column(header, justify="right", min_width=len("[-0.00,0.00]"))
    table.add_column("floor", justify="right", style="bright_black", no_wrap=True)
    for task, of in _by_task(rows):
        cells = {(row.representation, row.layer): _score(row) for row in of}
        first = of[0]
        name = f"{task} ({len(first.classes)})" if first.classes else task
        scores = [cells[column] for column in columns]
        table.add_row(name, first.metric, str(first.n), *scores, _number(first.floor))
    cells = {(mean.representation, mean.layer): _score(mean) for mean in means}
    table.add_section()
    table.add_row(
        f"mean of {means[0].tasks}",
        "mixed" if len(metrics) > 1 else metrics[0],
        "",
        *[cells[column] for column in columns],
        _number(means[0].floor),
        style="bold",
    )
    return table


def layer_table(results: Results, suite: str) -> Table:
    """z_voco layer by layer, without intervals."""
    rows = [row for row in results.rows if row.suite == suite and row.representation == "z_voco"]
    layers = _layers(results, suite)
    table = Table(
        title=f"{suite}: z_voco by layer (0 is the embedding: the same for every image)",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("task", no_wrap=True)
    for layer in layers:
        table.add_column(str(layer), justify="right", no_wrap=True)
    table.add_column("floor", justify="right", style="bright_black", no_wrap=True)
    for task, of in _by_task(rows):
        at = {row.layer: _number(row.estimate) for row in of}
        table.add_row(task, *[at[layer] for layer in layers], _number(of[0].floor))
    means = {
        mean.layer: mean
        for mean in results.suite_means
        if mean.suite == suite and mean.representation == "z_voco"
    }
    table.add_section()
    cells = [_number(means[layer].estimate) for layer in layers]
    table.add_row("mean", *cells, _number(means[layers[0]].floor), style="bold")
    return table


def _caption(metrics: Sequence[str]) -> str:
    said = "; ".join(f"{name}: {METRICS[name]}" for name in metrics)
    mixed = " The mean counts each task once, though metrics differ by task." if len(metrics) > 1 else ""
    return (
        f"Held-out score [95 % interval]. {said}.{mixed} floor: the same without features "
        "(majority class, share of positives, mean). Number of classes in brackets."
    )


def _columns(rows: Sequence[Row]) -> list[tuple[str, int | None]]:
    """The representations, z_voco at its last layer only."""
    last = max(row.layer for row in rows if row.layer is not None)
    columns = dict.fromkeys((row.representation, row.layer) for row in rows)
    return [column for column in columns if column[1] in (None, last)]


def _layers(results: Results, suite: str) -> list[int]:
    return sorted({row.layer for row in results.rows if row.suite == suite and row.layer is not None})


def _by_task(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for task in dict.fromkeys(row.task for row in rows):
        yield task, [row for row in rows if row.task == task]


def _score(item: Row | SuiteMean) -> str:
    """Without a space inside the interval, so that a narrow terminal breaks before it."""
    return rf"{_number(item.estimate)} \[{_number(item.lower)},{_number(item.upper)}]"


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00")
