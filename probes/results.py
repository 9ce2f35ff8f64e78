"""What `htc-probe` found, as JSON and CSV (schema version 1). The only reader and writer of this format.

Knows files and plain numbers; not runs, probes or tables, and imports no numpy.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from extract.errors import UserError

SCHEMA = "htc-probes"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Row:
    """One probe: a task read from one representation."""

    suite: str
    task: str
    kind: str
    """classes, multilabel or number."""
    representation: str
    """z_voco, v_d or v_pooled."""
    layer: int | None
    """Of z_voco; None for the others."""
    metric: str
    """top-1, mAP or R2: larger is better, 1 is perfect."""
    estimate: float
    lower: float
    upper: float
    """Ends of the 95 % interval, resampling groups of held-out images."""
    n: int
    """Held-out images scored: each once."""
    n_groups: int
    floor: float
    """The same metric on the same images without features: majority class, share of positives, or mean."""
    strength: float
    """L2 strength relative to the mean loss: the median of those that the folds chose."""
    at_edge: bool
    """Most folds chose the end of the grid where its neighbour was worse."""
    fold_scores: tuple[float | None, ...]
    """One an outer fold; None where the metric is undefined."""
    classes: tuple[str, ...]
    """Classes or labels scored; () for numbers."""


@dataclass(frozen=True)
class SuiteMean:
    """The mean of a suite's tasks, each counted once though their metrics differ."""

    suite: str
    representation: str
    layer: int | None
    estimate: float
    lower: float
    upper: float
    """The same resamples of groups for every task and representation."""
    floor: float
    tasks: int


@dataclass(frozen=True)
class Results:
    config: dict[str, Any]
    """Settings of the command."""
    run: dict[str, Any]
    """Which run: file, created, dataset, split, topology, images, model, sha256, last_layer (stored)."""
    versions: dict[str, str]
    warnings: tuple[str, ...]
    rows: tuple[Row, ...]
    suite_means: tuple[SuiteMean, ...]


def default_path(run: Path) -> Path:
    """`NAME.probes.json` next to the run."""
    return run.with_name(run.stem + ".probes.json")


def csv_path(path: Path) -> Path:
    """The table that goes with the JSON file `path`."""
    return path.with_suffix(".csv")


def write(results: Results, path: Path) -> tuple[Path, Path]:
    """Writes `path` (JSON) and its CSV, each whole or not at all. Raises UserError when that fails."""
    body = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **asdict(results)}
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    names = [item.name for item in fields(Row)]
    writer.writerow(names)
    for row in results.rows:
        writer.writerow([_cell(getattr(row, name)) for name in names])
    _replace(csv_path(path), table.getvalue())
    _replace(path, json.dumps(body, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    return path, csv_path(path)


def read(path: Path | str) -> Results:
    """Reads the JSON file back. Raises UserError for a missing, foreign, newer or damaged file."""
    path = Path(path)
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no probe results at {path}; make them with: htc-probe semantic detail") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}; run htc-probe again") from error
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise UserError(f"{path} holds no probe results (its schema is not {SCHEMA!r})")
    if body.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {body.get('schema_version')}, expected {SCHEMA_VERSION}; "
            "run htc-probe again"
        )
    try:
        return Results(
            config=dict(body["config"]),
            run=dict(body["run"]),
            versions=dict(body["versions"]),
            warnings=tuple(body["warnings"]),
            rows=tuple(
                Row(**row | {name: tuple(row[name]) for name in ("fold_scores", "classes")})
                for row in body["rows"]
            ),
            suite_means=tuple(SuiteMean(**mean) for mean in body["suite_means"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); run htc-probe again") from error


def finite(values: Sequence[float]) -> tuple[float | None, ...]:
    """Values with None where one is not a finite number, as JSON knows no NaN."""
    return tuple(value if math.isfinite(value) else None for value in values)


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):
        return ";".join("" if item is None else str(item) for item in value)
    return "" if value is None else value


def _replace(path: Path, text: str) -> None:
    # A name of its own for each process, with the permissions that any new file here gets.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}; choose another place with --out") from error
