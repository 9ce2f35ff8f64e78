"""Runs and results to look at on the dashboard, and what one sees of a page. Knows the run file; not models."""

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.io as pio
import pytest

from htc_probe.analysis import results as analysis_results
from htc_probe.analysis.sections import KINDS
from htc_probe.dashboards import cli
from htc_probe.extract.store import Batch, RunInfo, RunShape, RunWriter, Task, open_run
from htc_probe.probes.files import results
from made.filled import filled

# N images, L layers, H heads, A anchors, G x G patches, S keys
L, H, A, G = 3, 2, 4, 5

ROLES = ("prefix",) + ("anchor",) * A + ("patch",) * (G * G) + ("voco",)

S = len(ROLES)

ROWS = (-1,) * (1 + A) + tuple(at // G for at in range(G * G)) + (-1,)

COLS = (-1,) * (1 + A) + tuple(at % G for at in range(G * G)) + (-1,)

TASKS = (
    Task("object", "semantic", "classes", ("disc", "bar")),
    Task("present", "semantic", "multilabel", ("disc", "bar")),
    Task("width", "detail", "number", unit="px"),
)


def random_rows(n: int, seed: int = 0) -> np.ndarray:
    """(n, L, H, S) float32 that sum to 1 over S."""
    rows = np.exp(np.random.default_rng(seed).normal(size=(n, L, H, S)))
    return (rows / rows.sum(-1, keepdims=True)).astype(np.float32)


def write_run(
    path: Path,
    n: int = 4,
    *,
    tasks: tuple[Task, ...] = TASKS,
    dataset: str = "scenes",
    skipped: Sequence[tuple[str, str]] = (),
    anchors: int = A,
) -> Path:
    rng = np.random.default_rng(1)
    kept = [at for at, role in enumerate(ROLES) if anchors or role != "anchor"]
    roles, rows, cols = (tuple(of[at] for at in kept) for of in (ROLES, ROWS, COLS))
    attention = random_rows(n)[..., kept]
    attention /= attention.sum(-1, keepdims=True)
    info = RunInfo({"seed": 0}, {"name": "tiny", "sha256": "0" * 64, "config": {}}, dataset, "val", "star", {})
    shape = RunShape(n, L, tuple(range(L + 1)), H, 8, anchors, (2, 2, 1), roles, rows, cols)
    labels = {"object": np.arange(n) % 3 - 1, "present": np.tile([1, 0], (n, 1)), "width": np.arange(n) + 0.5}
    batch = Batch(
        ids=[f"val-{at:03d}" for at in range(n)],
        paths=[f"val/{at}" for at in range(n)],
        groups=[f"group-{at}" for at in range(n)],
        thumbnails=rng.integers(0, 256, (n, 96, 96, 3), dtype=np.uint8),
        z_voco=rng.normal(size=(n, L + 1, 8)).astype(np.float32),
        v_d=rng.normal(size=(n, anchors, 8)).astype(np.float32),
        v_pooled=rng.normal(size=(n, 8)).astype(np.float32),
        codes=rng.integers(0, 9, (n, 2, 2, 1)),
        attention=attention,
        labels={task.name: labels[task.name] for task in tasks},
    )
    with RunWriter(path, info, shape, tasks) as writer:
        writer.append(batch)
        return writer.finish(skipped)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def failing(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that the command prints when it refuses."""
    assert cli.main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}


def charts(app) -> dict[str, dict]:
    """Key of the chart -> its plotly figure, which the code that goes with it makes too."""
    sent = [item.proto for item in app.get("bidi_component") if item.proto.component_name == "htc_chart"]
    found = {}
    for data in (json.loads(proto.json) for proto in sent):
        figure = found[data["name"]] = json.loads(data["figure"])
        assert in_a_notebook(data["code"]) == figure, data["code"]
    return found


def in_a_notebook(code: str) -> dict:
    """The figure of three lines that a chart is copied as."""
    names: dict[str, Any] = {}
    before, pio.renderers.default = pio.renderers.default, ""  # nothing is shown
    try:
        exec(code, names)
    finally:
        pio.renderers.default = before
    assert len(code.splitlines()) == 3
    names["figure"].layout.template = None
    return json.loads(names["figure"].to_json())


def tables(app) -> list[str]:
    return [table.value.to_string() for table in [*app.table, *app.dataframe]]


_LATER = "Probes", "Reading the token", "Map", "Codes", "Compare"

PAGES = ("Overview", "Images", "Attention", "What causes what", *_LATER)


def press(app, label: str) -> None:
    next(button for button in app.button if button.label == label).click().run()


def write_probes(run: Path, created: str) -> Path:
    row = results.Row(
        suite="semantic",
        task="object",
        kind="classes",
        unit="",
        representation="z_voco",
        layer=L,
        width=8,
        metric="top-1",
        estimate=0.875,
        lower=0.75,
        upper=0.9375,
        n=4,
        n_groups=4,
        floor=0.5,
        metrics={"V-information": results.Interval(0.5, 0.25, 0.75)},
        bits=0.5,
        compression=None,
        compression_interval=None,
        code_bits=None,
        control=0.25,
        selectivity=None,
        retention=None,
        strength=1.0,
        coded_strength=1.0,
        at_edge=False,
        gap=1e-7,
        fold_scores=(0.875,),
        classes=("disc", "bar"),
    )
    bits = row.metrics["V-information"]
    mean = results.SuiteMean("semantic", "z_voco", L, 0.875, 0.75, 0.9375, 0.5, bits, None, tasks=1)
    made = results.Results({}, {"created": created}, {}, ("a warning",), (row,), (mean,))
    return results.write(made, results.default_path(run))[0]


def add_section(path: Path, name: str, section: Any) -> None:
    """A record, or the values of one that matter, see `filled`."""
    with open_run(path) as run:
        of = analysis_results.identity(run)
    kind = KINDS[name]
    record = section if isinstance(section, kind) else filled(kind, section)
    out = analysis_results.default_path(path)
    analysis_results.write(out, name, record, run=of, settings={}, libraries={}, seconds=0.0)
