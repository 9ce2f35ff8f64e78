"""What `htc-probe` found, as JSON and CSV (schema version 3). The only reader and writer of this format.

Knows files and plain numbers; not runs, probes or tables, and imports no numpy.
"""

from __future__ import annotations

import csv
import io
import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, get_args, get_origin, get_type_hints

from htc_probe.extract.errors import UserError
from htc_probe.extract.files import replaced

_SCHEMA = "htc-probes"
_SCHEMA_VERSION = 3
_MOST_BYTES = 2**26
"""A file that is larger is not read: some kB are usual."""
NOT_DEFINED = "not defined (pooled V is at its floor)"
"""A retention without bounds: pooled V cannot be told from its floor, so that its ratio could be anything."""
KEPT = "kept within the margin"
LOST = "lost more than the margin"
GAINED = "gained more than the margin"
UNDECIDED = "not decided"
NOTHING = "nothing to keep"
"""Pooled V is not clearly further above its floor than the margin, so that all of it could go within the margin."""


class Interval(NamedTuple):
    estimate: float | None
    lower: float | None
    upper: float | None


@dataclass(frozen=True)
class Row:
    """One probe: a task read from one representation. Bits are per image, see `probes.metrics`."""

    suite: str
    task: str
    kind: str
    """classes, multilabel, number or circular."""
    unit: str
    """Of a number or circular value, and of its MAE."""
    representation: str
    """z_voco, v_d, v_pooled, or any other that was asked for."""
    layer: int | None
    """Of z_voco; None for the others."""
    width: int
    """Features."""
    metric: str
    """top-1, mAP, R2 or circular R2: larger is better, 1 is perfect."""
    estimate: float
    lower: float
    upper: float
    """Ends of the 95% interval, resampling groups of held-out images."""
    n: int
    """Held-out images scored: each once."""
    n_groups: int
    floor: float
    """The same metric on the same images without features: majority class, random ranking, mean, or mean direction."""
    metrics: dict[str, Interval]
    """Every metric of the kind, cross-entropy and V-information included."""
    bits: float
    """V-information H(Y) - H(Y|X): what the probe saves, held out. `metrics` has its interval."""
    compression: float | None
    """Of the online code (Voita & Titov 2020): uniform code / code length; None where it was not computed."""
    compression_interval: Interval | None
    """With its interval over groups of images, sent in the same order."""
    code_bits: float | None
    """The length of that code, an image."""
    control: float | None
    """The metric on type-level control labels, the mean of their draws; None where they were not probed, and of the
    task whose classes are the types.
    """
    selectivity: Interval | None
    """Estimate minus control, paired."""
    retention: Interval | None
    """(estimate - floor) / (pooled V's - floor); None without pooled V; without numbers where it is `NOT_DEFINED`."""
    strength: float
    """L2 strength relative to the mean loss: the median of those that the folds chose by the metric."""
    coded_strength: float
    """The same of those chosen by cross-entropy, with which bits are counted."""
    at_edge: bool
    """Most folds chose an end of all strengths there are, and its neighbour was worse."""
    gap: float | None
    """Certified: no fit's objective exceeds its minimum by more nats than this (before 0.3.0: by a larger share of it);
    None for ridge, which is exact.
    """
    fold_scores: tuple[float | None, ...]
    """One an outer fold; None where the metric is undefined."""
    classes: tuple[str, ...]
    """Classes or labels scored; () for numbers and circular values."""


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
    bits: Interval
    """The mean V-information of the tasks."""
    retention: Interval | None
    tasks: int


@dataclass(frozen=True)
class Comparison:
    """Two representations on the same held-out images."""

    suite: str
    task: str | None
    """None: the mean of the suite."""
    a: str
    b: str
    """Names with layers, as `label` gives them."""
    metric: str
    """The task's own; `mean` of a suite; or `bits` for what a says of Y beyond b, I(a; Y | b), when a contains b."""
    difference: Interval
    """a minus b."""
    p: float
    """Two-sided, of no difference."""
    p_holm: float
    """Corrected over the tasks and pairs of this kind (Holm 1979)."""


@dataclass(frozen=True)
class Baseline:
    """What can be predicted of a task without the model."""

    suite: str
    task: str
    name: str
    """`category alone`: from the counts of labels in the image's category, see `probes.controls.oracle`."""
    metric: str
    score: Interval
    bits: Interval


@dataclass(frozen=True)
class CurvePoint:
    """A probe trained on a part of the training images of every fold."""

    suite: str
    task: str
    representation: str
    layer: int | None
    images: int
    """Trained on, the mean over folds."""
    metric: str
    score: Interval
    bits: Interval


@dataclass(frozen=True)
class Confusion:
    """Held-out images by class and by the class that the probe chose."""

    task: str
    representation: str
    layer: int | None
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """[true class][chosen class]"""


@dataclass(frozen=True)
class Kept:
    """Whether a representation keeps what pooled V scores, within a margin."""

    suite: str
    task: str | None
    """None: the mean of the suite."""
    representation: str
    layer: int | None
    metric: str
    """The task's own, or `mean`; the margin is in its unit."""
    margin: float
    difference: Interval
    """The representation's score minus v_pooled's, on the same images."""
    within: float | None
    """p of two one-sided tests, that the scores differ by the margin or more; None where there is `NOTHING` to keep."""
    within_holm: float | None
    """Corrected over the tasks, or the means, of all representations (Holm 1979), as the next one."""
    beyond: float
    """p, two-sided, that they differ by the margin or less."""
    beyond_holm: float
    verdict: str
    """`KEPT`, `LOST`, `GAINED`, `UNDECIDED` or `NOTHING`."""


@dataclass(frozen=True)
class SuiteGap:
    """Whether a representation keeps more of one suite than of another."""

    representation: str
    layer: int | None
    first: str
    second: str
    """Suites: semantic and detail."""
    difference: Interval
    """The first suite's retention minus the second's, both of the mean of its tasks; three times None where pooled V is
    not clearly above its floor in one of them.
    """
    p: float | None
    """Two-sided, of no difference."""
    p_holm: float | None
    """Corrected over the representations (Holm 1979)."""


@dataclass(frozen=True)
class ClassScore:
    """One class, or one label, of a task."""

    suite: str
    task: str
    representation: str
    layer: int | None
    name: str
    """Of the class or label."""
    metric: str
    """recall (of a class: the share of its images that are right) or average precision (of a label)."""
    score: Interval
    """Without ends where a single group has the class."""
    floor: float | None
    """The same without features: of classes 1 for the most frequent one and 0 for the others."""
    n: int
    """Held-out images that have it."""
    n_groups: int


@dataclass(frozen=True)
class Ceiling:
    """What a reader that is not linear finds of a task: a hidden layer on top of the linear probe."""

    suite: str
    task: str
    representation: str
    layer: int | None
    metric: str
    score: Interval
    difference: Interval
    """That score minus the linear probe's, on the same images."""
    p: float
    """Two-sided, of no difference."""
    p_holm: float
    """Corrected over tasks and representations (Holm 1979)."""
    folds: int
    """Outer folds in which the hidden layer did better than none on the inner folds; in others both readers are one."""


@dataclass(frozen=True, repr=False)
class Results:
    config: dict[str, Any]
    """Settings of the command, and those of the protocol: inner folds, grids, resamples."""
    run: dict[str, Any]
    """Which run: file, created, dataset, split, topology, images, model, sha256, layers (of the model), last_layer
    (stored); `train` holds the same of a run of its own that the probes were trained on.
    """
    versions: dict[str, str]
    warnings: tuple[str, ...]
    rows: tuple[Row, ...]
    suite_means: tuple[SuiteMean, ...]
    comparisons: tuple[Comparison, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    curves: tuple[CurvePoint, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    code_comparisons: tuple[Comparison, ...] = ()
    """`compression` of every two columns, by task; a family of its own for Holm's correction."""
    kept: tuple[Kept, ...] = ()
    """Of everything that is compared, beside pooled V; () without it."""
    suite_gaps: tuple[SuiteGap, ...] = ()
    by_class: tuple[ClassScore, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()
    """() unless they were asked for."""

    def __repr__(self) -> str:
        tasks = {row.task for row in self.rows}
        columns = dict.fromkeys(label(row.representation, row.layer) for row in self.rows)
        file, images, model = (self.run.get(key) for key in ("file", "images", "model"))
        return f"<Results of {file}: {len(tasks)} tasks from {', '.join(columns)}; {images} images, {model}>"


def label(representation: str, layer: int | None) -> str:
    """A representation as one word of the file: z_voco@4, v_d. What a person reads is `representations.shown`."""
    return representation if layer is None else f"{representation}@{layer}"


def of_label(word: str) -> tuple[str, int | None]:
    """The representation and its layer of which `label` made one word."""
    name, _, layer = word.partition("@")
    return (name, int(layer)) if name == "z_voco" and layer.isdecimal() else (word, None)


def is_defined(retention: Interval | None) -> TypeGuard[Interval]:
    """Whether there is one, and it is a number: see `NOT_DEFINED`."""
    return retention is not None and None not in retention


def is_undefined(retention: Interval | None) -> bool:
    """Whether there is one, and it is `NOT_DEFINED`."""
    return retention is not None and not is_defined(retention)


def default_path(run: Path) -> Path:
    """`NAME.probes.json` next to the run."""
    return run.with_name(run.stem + ".probes.json")


def weights_path(path: Path) -> Path:
    """The probes' weights that go with the JSON file `path`, see `probes.load`."""
    return path.with_suffix(".safetensors")


def predictions_path(path: Path) -> Path:
    """What the probes said of held-out images, for the JSON file `path`, see `probes.files.predictions.load`."""
    return path.with_suffix(".predictions.safetensors")


def classes_path(path: Path) -> Path:
    """The table of single classes that goes with the JSON file `path`."""
    return path.with_suffix(".classes.csv")


def write(results: Results, path: Path) -> tuple[Path, ...]:
    """Writes `path` (JSON) and its two CSV, each whole or not at all. Raises UserError when that fails."""
    body = {"schema": _SCHEMA, "schema_version": _SCHEMA_VERSION, **asdict(results)}
    undefined = {"retention": NOT_DEFINED}
    rows = [vars(row) | (undefined if is_undefined(row.retention) else {}) for row in results.rows]
    table, classes = path.with_suffix(".csv"), classes_path(path)
    texts = {
        table: _table([item.name for item in fields(Row)], rows),
        classes: _table(_BY_CLASS, [vars(one) | one.score._asdict() for one in results.by_class]),
        path: json.dumps(body, indent=1, allow_nan=False, ensure_ascii=False) + "\n",
    }
    for place, text in texts.items():
        with replaced(place, "choose another place with --out") as partial:
            partial.write_text(text, encoding="utf-8")
    return path, table, classes


_BY_CLASS = ("suite", "task", "representation", "layer", "name", "metric", *Interval._fields, "floor", "n", "n_groups")


def _table(names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> str:
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(record[name]) for name in names] for record in records)
    return table.getvalue()


def read(path: Path | str) -> Results:
    """Reads the JSON file back. Raises UserError for a missing, foreign, newer or damaged file."""
    path = Path(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes are more than results have")
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no probe results at {path}; make them with: htc-probe semantic detail") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}; run htc-probe again") from error
    if not isinstance(body, dict) or body.get("schema") != _SCHEMA:
        raise UserError(f"{path} holds no probe results (its schema is not {_SCHEMA!r})")
    if body.get("schema_version") != _SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {body.get('schema_version')}, expected {_SCHEMA_VERSION}; run htc-probe again"
        )
    try:
        return _from_json(Results, body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r:.300}); run htc-probe again") from error


def _from_json(kind: Any, value: Any) -> Any:
    """A value of the type `kind`, which is built of this module's own types, from what JSON made of it."""
    origin, inside = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is types.UnionType:
        return None if value is None else _from_json(inside[0], value)
    if origin is tuple:
        return tuple(_from_json(inside[0], item) for item in value)
    if origin is dict:
        return {key: _from_json(inside[1], item) for key, item in value.items()}
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{item.name: _from_json(hints[item.name], value[item.name]) for item in fields(kind)})
    if kind is Interval:
        return Interval(*(_from_json(float | None, item) for item in value))
    if not isinstance(value, int | float if kind is float else kind):
        raise ValueError(f"{value!r} is no {kind.__name__}")
    return value


def finite(values: Sequence[float]) -> tuple[float | None, ...]:
    """Values with None where one is not a finite number, as JSON knows no NaN."""
    return tuple(value if math.isfinite(value) else None for value in values)


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return ";".join(f"{name}={_cell(item[0])}" for name, item in value.items())
    if isinstance(value, tuple):
        return ";".join("" if item is None else str(item) for item in value)
    return "" if value is None else value
