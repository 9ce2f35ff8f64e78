"""All probes of one run: tasks by representations by folds, spread over processes. Adds no rule of its
own.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import NamedTuple

import joblib
import numpy as np
from threadpoolctl import threadpool_limits

from extract.errors import UserError
from extract.store import Kind, Run
from probes import features, protocol, tasks
from probes.features import Representation
from probes.results import Results, Row, SuiteMean, finite
from probes.tasks import ProbeTask


class Plan(NamedTuple):
    """What will be fitted, settled before anything is."""

    tasks: tuple[ProbeTask, ...]
    representations: tuple[Representation, ...]
    folds: tuple[np.ndarray, ...]
    """Of each task, (n,) the outer fold in which a row is held out."""
    warnings: tuple[str, ...]

    @property
    def fits(self) -> int:
        """Outer folds of all probes: what `probe` counts as progress."""
        return len(self.representations) * sum(len(np.unique(fold)) for fold in self.folds)


def plan(run: Run, names: Sequence[str], *, layers: str = "", folds: int = 5, seed: int = 0) -> Plan:
    """Raises UserError for unknown names or layers, a run without labels, and when no task can be probed."""
    if folds < 2:
        raise UserError(f"--folds {folds} leaves nothing held out; use 2 or more")
    reps = features.representations(run, features.parse_layers(run, layers))
    ready, warnings = tasks.prepare(run, tasks.select(run, names), folds)
    if not ready:
        raise UserError(f"no task of {run.path.name} can be probed: " + "; ".join(warnings))
    held = tuple(protocol.split(one.task.kind, one.y, one.groups, folds, seed) for one in ready)
    if run.shape.stack[-1] != run.shape.layers:
        warnings += (f"z_voco is read at layer {run.shape.stack[-1]}: the run does not store the last one",)
    return Plan(ready, reps, held, warnings)


def probe(
    run: Run,
    plan: Plan,
    *,
    seed: int = 0,
    jobs: int = 0,
    config: dict | None = None,
    on_fit: Callable[[], None] = lambda: None,
) -> Results:
    """Fits and scores everything in `plan`. The result does not depend on `jobs` (processes; 0: one a core).

    `on_fit` is called `plan.fits` times.
    """
    found: dict[tuple[int, int], dict[int, protocol.HeldOut]] = {}
    parallel = joblib.Parallel(n_jobs=jobs or joblib.cpu_count(), return_as="generator_unordered")
    for at, fold, held_out in parallel(_jobs(run, plan, seed)):
        found.setdefault(at, {})[fold] = held_out
        on_fit()

    draws_RG = protocol.resample_groups(len(set(run.groups())), seed)
    rows: list[Row] = []
    draws: dict[tuple[str, Representation], list[np.ndarray]] = {}
    warnings = list(plan.warnings)
    for t, (one, fold) in enumerate(zip(plan.tasks, plan.folds, strict=True)):
        for r, representation in enumerate(plan.representations):
            row, draw, notes = _row(one, representation, fold, found[t, r], draws_RG)
            rows.append(row)
            draws.setdefault((row.suite, representation), []).append(draw)
            warnings += notes
    return Results(
        config=config or {},
        run=_identity(run),
        versions={"python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "scipy", "scikit-learn")},
        warnings=tuple(warnings),
        rows=tuple(rows),
        suite_means=tuple(_mean(rows, suite, rep, of) for (suite, rep), of in draws.items()),
    )


def _jobs(run: Run, plan: Plan, seed: int) -> Iterator:
    """One outer fold a job. Lazy, so that only the representation in work is in memory."""
    for r, representation in enumerate(plan.representations):
        x_ND = features.load(run, representation)
        for t, (one, fold) in enumerate(zip(plan.tasks, plan.folds, strict=True)):
            for k in np.unique(fold):
                yield joblib.delayed(_hold_out)((t, r), int(k), one, x_ND, fold, seed)


def _hold_out(
    at: tuple[int, int], k: int, one: ProbeTask, x_ND: np.ndarray, fold: np.ndarray, seed: int
) -> tuple[tuple[int, int], int, protocol.HeldOut]:
    # One thread a process: the matrices are small, and sums then do not depend on the number of cores.
    with threadpool_limits(1):
        x_nD = x_ND[one.rows]
        return at, k, protocol.hold_out(one.task.kind, x_nD, one.y, one.groups, fold == k, seed)


def _row(
    one: ProbeTask,
    representation: Representation,
    fold: np.ndarray,
    held_out: dict[int, protocol.HeldOut],
    draws_RG: np.ndarray,
) -> tuple[Row, np.ndarray, list[str]]:
    kind: Kind = one.task.kind
    prediction = np.empty(one.y.shape, dtype=int if kind == "classes" else float)
    floor = np.empty_like(prediction)
    for k, result in held_out.items():
        prediction[fold == k], floor[fold == k] = result.prediction, result.floor
    scored = protocol.score(kind, one.y, prediction, floor, fold, one.groups, draws_RG)
    strengths = [held_out[k].choice.strength for k in sorted(held_out)]
    row = Row(
        suite=one.task.suite,
        task=one.task.name,
        kind=kind,
        representation=representation.name,
        layer=representation.layer,
        metric=protocol.METRIC[kind],
        estimate=scored.estimate,
        lower=scored.lower,
        upper=scored.upper,
        n=scored.n,
        n_groups=scored.n_groups,
        floor=scored.floor,
        strength=float(np.median(strengths)),
        at_edge=2 * sum(result.choice.at_edge for result in held_out.values()) > len(held_out),
        fold_scores=finite(scored.fold_scores),
        classes=one.classes,
    )
    label = f"{row.task} from {row.representation}" + (f" layer {row.layer}" if row.layer is not None else "")
    notes = []
    # Stronger than strong is the floor itself, so a score at the floor has nothing to gain outside the grid.
    if row.at_edge and row.lower > row.floor:
        notes.append(f"{label}: most folds chose an end of the grid of strengths; the score may be too low")
    if missed := sum(result.unconverged for result in held_out.values()):
        notes.append(f"{label}: {missed} fits stopped at the iteration limit")
    return row, scored.draws, notes


def _mean(
    rows: Sequence[Row], suite: str, representation: Representation, draws: list[np.ndarray]
) -> SuiteMean:
    of = [row for row in rows if (row.suite, row.representation, row.layer) == (suite, *representation)]
    lower, upper = protocol.interval(np.mean(draws, axis=0))
    return SuiteMean(
        suite=suite,
        representation=representation.name,
        layer=representation.layer,
        estimate=float(np.mean([row.estimate for row in of])),
        lower=lower,
        upper=upper,
        floor=float(np.mean([row.floor for row in of])),
        tasks=len(of),
    )


def _identity(run: Run) -> dict:
    return {
        "file": run.path.name,
        "created": run.created,
        "dataset": run.info.dataset,
        "split": run.info.split,
        "topology": run.info.topology,
        "images": len(run),
        "model": run.info.model.get("name"),
        "sha256": run.info.model.get("sha256"),
        "last_layer": run.shape.stack[-1],
    }
