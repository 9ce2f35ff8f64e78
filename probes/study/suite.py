"""All probes of one run: which cells there are, spread over processes, and what their predictions amount to.

Knows runs, cells and scores; adds no rule of its own. Legend: N images (with those of a training run of its own first),
R resamples, G groups.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
from threadpoolctl import threadpool_limits

from htc_probe.extract.errors import UserError
from htc_probe.extract.store import NUMERIC, Run
from htc_probe.probes.files.predictions import Asked
from htc_probe.probes.files.results import (
    Baseline,
    Comparison,
    Confusion,
    CurvePoint,
    Interval,
    Results,
    Row,
    SuiteMean,
    finite,
    label,
)
from htc_probe.probes.files.weights import Key, Probe
from htc_probe.probes.inputs import folds, oddities, tasks
from htc_probe.probes.inputs import representations as features
from htc_probe.probes.inputs.labels import Labels
from htc_probe.probes.inputs.representations import Representation
from htc_probe.probes.inputs.tasks import ProbeTask
from htc_probe.probes.scores import controls, intervals, metrics
from htc_probe.probes.scores.intervals import Sampled
from htc_probe.probes.scores.metrics import METRIC, Gaussian, Prediction, Scores, VonMises
from htc_probe.probes.solvers import ridge
from htc_probe.probes.study import claims, protocol
from htc_probe.probes.study.cells import Ceiling, Cell, Code, Fold, Kept, StreamedFold
from htc_probe.probes.study.codelength import Codelength
from htc_probe.probes.study.protocol import HeldOut
from htc_probe.probes.study.strengths import FIRST, LADDER

CURVE = (0.05, 0.1, 0.2, 0.4)
"""Parts of the training images at which learning curves are measured, besides all of them."""
CONTROL_DRAWS = 3
_MOST_CONFUSED = 60  # classes of a confusion matrix that is kept
_SMALL = 2**25  # numbers of a representation below which folds run side by side, each with one thread
_LARGE_GROUP = 0.1  # of the images
_FEW_GROUPS = 40  # effective ones, from which simulated intervals are not far too short
_NO_BETTER = 0.01  # than what the category alone tells
LOOSE = 1e-3  # a certified gap above it is told


@dataclass(frozen=True)
class Settings:
    """What is computed; the command's flags, without files."""

    names: tuple[str, ...] = ("semantic", "detail")
    """Suites or single tasks."""
    layers: str = ""
    representations: tuple[str, ...] = ()
    folds: int = 5
    seed: int = 0
    match_dim: int | None = None
    guided: bool = False
    curve: bool = False
    controls: bool = True
    types: str | None = None
    device: str = "cpu"
    jobs: int = 0
    memory: float = 8.0
    """GB that a representation may take while it is probed; larger ones are streamed, and all are held out once."""
    margin: float = 0.02
    """Of the metric: a representation that is known to score so near to v_pooled keeps what that has."""
    ceiling: bool = False


class Plan(NamedTuple):
    """What will be fitted, settled before anything is."""

    run: Run
    train: Run | None
    """The probes learn from this run and are scored on the other; None: folds of one run."""
    random: Run | None
    """The same images through random weights: a floor."""
    settings: Settings
    tasks: tuple[ProbeTask, ...]
    representations: tuple[Representation, ...]
    fold: np.ndarray
    """(N,) the outer fold in which an image is held out; -1: only learned from."""
    groups: np.ndarray
    """(N,)"""
    types: ProbeTask | None
    """The task whose classes give types to the control labels; None where there is none."""
    warnings: tuple[str, ...]

    def protocol(self) -> protocol.Settings:
        own = self.settings
        return protocol.Settings(own.seed, own.match_dim, own.guided, own.device, int(own.memory * 1e9))

    @property
    def columns(self) -> tuple[Representation, ...]:
        """What is compared: every representation, z_voco at its last layer alone."""
        last = max((at.layer for at in self.representations if at.layer is not None), default=None)
        return tuple(at for at in self.representations if at.layer in (None, last))

    @property
    def shown(self) -> tuple[Representation, ...]:
        """What has controls and an online code: all columns but joins that are only told by what they add to a part."""
        parts = {at.name for at in self.columns}
        return tuple(at for at in self.columns if "+" not in at.name or not parts & set(at.name.split("+")))

    @property
    def cells(self) -> int:
        """What `probe` counts as progress."""
        return sum(len(_cells(self, at)) + len(_ceilings(self, at)) for at in self.representations)


RANDOM = "random weights"
READ = Representation("voco_read", None)


def plan(run: Run, settings: Settings, *, train: Run | None = None, random: Run | None = None) -> Plan:
    """Raises UserError for unknown names or layers, a run without labels, and when no task can be probed."""
    if settings.folds < 2:
        raise UserError(f"--folds {settings.folds} leaves nothing held out; use 2 or more")
    if settings.match_dim is not None and settings.match_dim < 1:
        raise UserError(f"--match-dim {settings.match_dim} leaves no feature; use 1 or more")
    if not 0 < settings.margin < 1:
        raise UserError(f"--margin {settings.margin:g} is no part of a metric; use one between 0 and 1, such as 0.02")
    reps = features.representations(run, settings.representations, features.parse_layers(run, settings.layers))
    chosen = tasks.select(run, settings.names)
    warnings: tuple[str, ...] = ()
    if random is not None:
        if train is not None:
            raise UserError("--random-run gives a floor to folds of one run; leave it out with --train-run")
        if random.ids() != run.ids():
            raise UserError(f"{random.path} does not hold the images of {run.path} in their order; extract it alike")
        reps += (Representation(f"z_voco ({RANDOM})", None),)
    names = list(run.groups())
    if train is None:
        groups = tasks.group_codes(names)
        counted = np.ones(len(run), bool)
        ready, notes = tasks.prepare(
            chosen, [run.labels(task.name) for task in chosen], groups, 2 * settings.folds, counted
        )
    else:
        groups = tasks.group_codes([*train.groups(), *names])
        counted = np.arange(len(groups)) < len(train)
        counted &= ~np.isin(groups, groups[len(train) :])
        if lost := len(train) - int(counted.sum()):
            warnings += (f"{lost} images of {train.path.name} are left out: their groups are in {run.path.name} too",)
        labels, differ = tasks.together(train, run, chosen)
        warnings += differ
        ready, notes = tasks.prepare(chosen, labels, groups, 2 * protocol.INNER_FOLDS, counted)
        ready, more = tasks.scorable(ready, groups, np.arange(len(groups)) >= len(train))
        notes += more
    warnings += notes
    if not ready:
        raise UserError(f"no task of {run.path.name} can be probed: " + "; ".join(warnings))
    if train is None:
        fold = folds.assign([one.labels for one in ready], groups, settings.folds, settings.seed)
    else:
        fold = np.where(np.arange(len(groups)) < len(train), np.where(counted, -1, -2), 0)
    warnings += _uneven(groups[fold >= 0])
    text_reads_voco = run.shape.layers > 1 and run.info.topology != "uncompressed"
    if text_reads_voco and READ not in reps and not settings.representations:
        warnings += (f"{run.path.name} does not store all states that text reads of <voco>: voco_read is left out",)
    if run.shape.stack[-1] != run.shape.layers:
        warnings += (f"z_voco is read at layer {run.shape.stack[-1]}: the run does not store the last one",)
    types = _types(ready, settings.types) if settings.controls else None
    runs = [one for one in (run, train) if one is not None]
    if READ in reps and not settings.representations and _is_large(runs, READ, settings):
        # A default that would change how all others are probed.
        reps = tuple(at for at in reps if at != READ)
        warnings += (
            f"voco_read takes more than --memory {settings.memory:g} GB and is left out; give more, or name it with "
            "--representations to have it streamed",
        )
    large = [at for at in reps if not at.name.endswith(f"({RANDOM})") and _is_large(runs, at, settings)]
    if large:
        if settings.match_dim is not None or settings.curve or settings.ceiling:
            raise UserError(
                "features that are streamed have no --match-dim, no --curve and no --ceiling; give more --memory"
            )
        fold = np.where(fold > 0, -1, fold)
        warnings += (
            f"{label(*large[0])} takes more than --memory {settings.memory:g} GB: it is streamed, without controls and "
            f"online code, and for all representations one fold of {int((fold == 0).sum())} images is held out",
        )
    return Plan(run, train, random, settings, ready, reps, fold, groups, types, warnings)


def _uneven(groups: np.ndarray) -> tuple[str, ...]:
    """A warning where few groups decide: resampling whole groups then tells less than it says."""
    _, sizes = np.unique(groups, return_counts=True)
    largest, effective = sizes.max() / sizes.sum(), intervals.effective_groups(sizes)
    if largest <= _LARGE_GROUP and effective >= _FEW_GROUPS:
        return ()
    return (
        f"the largest of {len(sizes)} groups holds {largest:.0%} of the images: they vary like {effective:.1f} groups "
        "of one size, for which intervals are too short and p-values too small; collect more groups, or split it",
    )


def _is_large(runs: Sequence[Run], at: Representation, settings: Settings) -> bool:
    """Whether probing it in memory, where its rows stand some six times, takes more than it may."""
    # Anything but latents is held whole anyway.
    latents = at.layer is not None or all(part.startswith(("z_voco", "voco_", "v_")) for part in at.name.split("+"))
    if not latents:
        return False
    width = features.Rows(runs[0], at).shape[1]
    return 24 * width * sum(len(run) for run in runs) > settings.memory * 1e9


def _types(ready: Sequence[ProbeTask], wanted: str | None) -> ProbeTask | None:
    """The task `wanted`, or the semantic task with the most classes."""
    of = {one.task.name: one for one in ready if one.task.kind == "classes"}
    if wanted is not None:
        if wanted not in of:
            raise UserError(f"--types {wanted} is no task with classes that is probed; there are {', '.join(of)}")
        return of[wanted]
    semantic = [one for one in of.values() if one.task.suite == "semantic"]
    return max(semantic, key=lambda one: len(one.classes), default=None)


def probe(
    plan: Plan,
    *,
    keep: Path | None = None,
    config: dict | None = None,
    on_cell: Callable[[], None] = lambda: None,
    on_predictions: Callable[[list[Prediction]], None] = lambda _: None,
) -> Results:
    """Fits and scores everything in `plan`. The result does not depend on the number of processes.

    Finished cells are kept in the folder `keep`, and taken from there. `on_cell` is called `plan.cells` times,
    `on_predictions` for every representation, with what its probes said of the rows of each task in `asked(plan)`.
    """
    draws_RG = intervals.resample_groups(int(plan.groups.max()) + 1, plan.settings.seed)
    found = [_look(plan, at, keep, draws_RG, on_cell, on_predictions) for at in plan.representations]
    return _results(plan, dict(zip(plan.representations, found, strict=True)), config or {})


def asked(plan: Plan) -> list[Asked]:
    """Every task, with the images of the run that score it."""
    before = 0 if plan.train is None else len(plan.train)
    made = []
    for one in plan.tasks:
        rows = np.flatnonzero(plan.fold >= 0)[_scored(plan, one.labels)]
        y = one.labels.y[rows]
        made.append(
            Asked(one.task.name, one.task.kind, one.classes, rows - before, plan.fold[rows], y, one.task.period)
        )
    return made


def refit(plan: Plan, results: Results) -> dict[Key, Probe]:
    """The probes of what is compared, on all images that any of them learned from, at the strengths in `results`.

    Without those of principal directions (match_dim), which are other features, of what is streamed, and of joins that
    are only told by what they add to a part.
    """
    strengths = {(row.task, row.representation, row.layer): row.strength for row in results.rows}
    found: dict[Key, Probe] = {}
    rows = plan.fold == -1 if plan.train is not None else plan.fold > -2
    for at in plan.shown:
        if _is_streamed(plan, at):
            continue
        x_nD = load(plan, at)[rows]
        labels = [one.labels.among(rows) for one in plan.tasks]
        settings = protocol.Settings(seed=plan.settings.seed, device=plan.settings.device)
        fitted = protocol.refit(x_nD, labels, [strengths[one.task.name, *at] for one in plan.tasks], settings)
        mean_D = x_nD.mean(0, dtype=np.float64)
        for one, solved in zip(plan.tasks, fitted, strict=True):
            found[one.task.name, at.name, at.layer] = Probe(
                one.task.kind, one.classes, solved.weights, solved.intercepts, mean_D, one.task.period
            )
    return found


# ---- the cells of a representation


class Found(NamedTuple):
    """What one representation gave, by task."""

    width: int
    scores: list[Scores]
    held_out: list[list[HeldOut]]
    """Of each fold, without the predictions: those of many layers would not fit into memory."""
    fold_scores: list[tuple[float, ...]]
    control: list[Sampled | None] | None
    codes: list[Codelength] | None
    compression: list[Sampled] | None
    curve: list[tuple[int, list[Scores]]]
    """(images trained on, scores), from few to many."""
    confusion: list[np.ndarray | None]
    warnings: tuple[str, ...]
    """What is odd about the features."""
    ceiling: list[Scores] | None = None
    """Of the readers with a hidden layer."""
    ceiling_folds: tuple[int, ...] = ()
    """Of each task, the folds in which the layer did better than none."""


def _ceilings(plan: Plan, at: Representation) -> list[int]:
    """The folds in which the representation gets a reader that is not linear."""
    asked = plan.settings.ceiling and at in plan.columns and not _is_streamed(plan, at)
    return _numbers(plan) if asked else []


def _cells(plan: Plan, at: Representation) -> list[Cell]:
    """Folds first, one by one; then, for what is compared, learning curves and the online code."""
    numbers = [k for k in np.unique(plan.fold) if k >= 0]
    own = [Fold((plan.fold != k) & (plan.fold > -2), plan.fold == k) for k in numbers]
    if _is_streamed(plan, at):
        return [StreamedFold(*one) for one in own]
    if at not in plan.columns:
        return list(own)
    parts: list[Cell] = []
    if plan.settings.curve:
        order = np.random.default_rng(plan.settings.seed).permutation(int(plan.groups.max()) + 1)[plan.groups]
        for share in CURVE:
            for one in own:
                cut = np.quantile(order[one.train], share)
                parts.append(Fold(one.train & (order <= cut), one.test))
    if plan.settings.match_dim is None and at in plan.shown:  # the code is of the features as they are
        parts.append(Code(plan.fold == 0 if plan.train is not None else plan.fold >= 0))
    return [*own, *parts]


def _is_streamed(plan: Plan, at: Representation) -> bool:
    runs = [run for run in (plan.run, plan.train) if run is not None]
    return not at.name.endswith(f"({RANDOM})") and _is_large(runs, at, plan.settings)


def _control_tasks(plan: Plan) -> list[Labels]:
    """Every task but the types' own with random labels by type, draw after draw."""
    if plan.types is None:
        return []
    return [
        one.labels._replace(
            y=controls.type_labels(one.task.kind, one.labels.y, plan.types.labels.y, plan.settings.seed + 1 + draw)
        )
        for draw in range(CONTROL_DRAWS)
        for one in _with_control(plan)
    ]


def _with_control(plan: Plan) -> list[ProbeTask]:
    """Of the types' own task, random labels by type are the task itself with its classes merged or renamed."""
    return [one for one in plan.tasks if one is not plan.types]


def _varies(plan: Plan, labels: Labels) -> bool:
    """Whether a number's labels differ in every training fold and where they are scored; else its R2 is not defined.
    Few types may have drawn the same one.
    """
    parts = [(plan.fold != k) & (plan.fold > -2) for k in _numbers(plan)] + [plan.fold >= 0]
    return labels.kind not in NUMERIC or all(np.nanmin(labels.y[one]) < np.nanmax(labels.y[one]) for one in parts)


def _look(
    plan: Plan,
    at: Representation,
    keep: Path | None,
    draws_RG: np.ndarray,
    on_cell: Callable[[], None],
    on_predictions: Callable[[list[Prediction]], None],
) -> Found:
    streamed = _is_streamed(plan, at)
    x_ND = _streamed(plan, at) if streamed else load(plan, at)
    compared = at in plan.columns and not streamed
    own = [one.labels for one in plan.tasks]
    shown = compared and at in plan.shown
    with_controls = own + (_control_tasks(plan) if shown else [])
    settings = plan.protocol()
    cells = _cells(plan, at)
    n_own = len({int(k) for k in plan.fold if k >= 0})
    kept = None if keep is None else Kept(keep)
    jobs = plan.settings.jobs or joblib.cpu_count()
    alone = streamed or x_ND.size > _SMALL or plan.settings.device != "cpu"

    def done(asked: Sequence[tuple[Cell, list[Labels]]]) -> Iterator[Any]:
        work = []
        for cell, these in asked:
            path = None if kept is None else kept.path(cell, _source(plan, at), these, plan.groups, settings)
            work.append((cell, these, path))
        for answer in _in_turn(x_ND, work, plan.groups, settings, kept, 0 if alone else jobs):
            yield answer
            on_cell()

    answers = list(done([(cell, with_controls if number < n_own else own) for number, cell in enumerate(cells)]))
    held_out: list[list[HeldOut]] = answers[:n_own]
    on_predictions(
        [
            metrics.take(
                _assembled(plan, one.labels, [fold[t].prediction for fold in held_out]), _scored(plan, one.labels)
            )
            for t, one in enumerate(plan.tasks)
        ]
    )
    found = _score(plan, x_ND.shape[1], answers, n_own, compared, shown, draws_RG)
    found = found._replace(warnings=_odd(plan, at, x_ND))
    if at not in plan.columns:  # of many layers these would not fit into memory
        found = found._replace(scores=[one._replace(by_class=None) for one in found.scores])
    if not _ceilings(plan, at):
        return found
    readers = list(done([(_ceiling(plan, k, held_out[number]), own) for number, k in enumerate(_numbers(plan))]))
    scores = []
    for t, one in enumerate(own):
        linear = [fold[t].prediction for fold in held_out]
        parts = [fold[t].prediction for fold in readers]
        said = [before if more is None else more for before, more in zip(linear, parts, strict=True)]
        scores.append(_scored_by(plan, one, said, draws_RG))
    used = tuple(sum(fold[t].prediction is not None for fold in readers) for t in range(len(own)))
    return found._replace(ceiling=scores, ceiling_folds=used)


def _ceiling(plan: Plan, k: int, linear: Sequence[HeldOut]) -> Ceiling:
    strengths = np.array([one.strength for one in linear[: len(plan.tasks)]])
    return Ceiling((plan.fold != k) & (plan.fold > -2), plan.fold == k, strengths)


def _odd(plan: Plan, at: Representation, x_ND: Any) -> tuple[str, ...]:
    """Of a join nothing is told that its parts tell by themselves."""
    parts = at.name.split("+")
    if len(parts) > 1 and {other.name for other in plan.representations}.issuperset(parts):
        return ()
    names = [name for run in (plan.train, plan.run) if run is not None for name in run.ids()]
    return tuple(f"{label(*at)}: {one}" for one in oddities.told(x_ND, plan.fold > -2, plan.groups, names))


def _streamed(plan: Plan, at: Representation) -> Any:
    """Rows of both runs, read as they are asked for."""
    own = features.Rows(plan.run, at)
    return own if plan.train is None else features.After(features.Rows(plan.train, at), own)


def _in_turn(
    x_ND: np.ndarray,
    work: Sequence[tuple[Cell, list[Labels], Path | None]],
    groups: np.ndarray,
    settings: protocol.Settings,
    kept: Kept | None,
    jobs: int,
) -> Iterator[Any]:
    """The cells' answers in order: one by one with all threads for 0 jobs; else side by side, each with one thread, so
    that sums do not depend on the cores.
    """
    if jobs == 0:
        for cell, labels, path in work:
            yield _answer(cell, x_ND, labels, path, groups, settings, kept)
        return
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator")
    yield from parallel(
        joblib.delayed(_with_one_thread)(cell, x_ND, labels, path, groups, settings, kept)
        for cell, labels, path in work
    )


def _with_one_thread(*what: Any) -> Any:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return _answer(*what)
    finally:
        torch.set_num_threads(before)


def _answer(
    cell: Cell,
    x_ND: np.ndarray,
    labels: list[Labels],
    path: Path | None,
    groups: np.ndarray,
    settings: protocol.Settings,
    kept: Kept | None,
) -> Any:
    if kept is not None and path is not None:
        there = kept.read(path, cell, labels)
        if there is not None:
            return there
    found = cell.compute(x_ND, labels, groups, settings)
    if kept is not None and path is not None:
        kept.write(path, cell.pack(found))  # type: ignore[arg-type]
    return found


def load(plan: Plan, at: Representation) -> np.ndarray:
    """(N, D) float32: of the training run's images first, where there is one."""
    if at.name.endswith(f"({RANDOM})"):
        assert plan.random is not None
        last = Representation("z_voco", plan.random.shape.stack[-1])
        return features.load(plan.random, last)
    own = features.load(plan.run, at)
    if plan.train is None:
        return own
    other = features.load(plan.train, at)
    if other.shape[1] != own.shape[1]:
        raise UserError(
            f"{at.name} has {own.shape[1]} features in {plan.run.path.name} and {other.shape[1]} in "
            f"{plan.train.path.name}; both runs must come from the same model"
        )
    return np.concatenate([other, own])


def _source(plan: Plan, at: Representation) -> str:
    runs = [_identity(run) for run in (plan.run, plan.train, plan.random) if run is not None]
    files = [Path(part) for part in at.name.split("+") if Path(part).is_file()]
    stamps = [(str(file.absolute()), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    return json.dumps([runs, at, stamps])


# ---- scores


def _score(
    plan: Plan, width: int, answers: list[Any], n_own: int, compared: bool, shown: bool, draws_RG: np.ndarray
) -> Found:
    held_out: list[list[HeldOut]] = answers[:n_own]
    own = range(len(plan.tasks))
    scores = [_scores(plan, one.labels, [fold[t] for fold in held_out], draws_RG) for t, one in enumerate(plan.tasks)]
    control = None
    if shown and plan.types is not None:
        drawn, asked = _control_tasks(plan), _with_control(plan)
        known: dict[str, Sampled] = {}
        for t, one in enumerate(asked):
            of = [
                _scored_by(
                    plan,
                    drawn[at],
                    [fold[at + len(plan.tasks)].prediction for fold in held_out],
                    draws_RG,
                    ranks=one.task.kind == "multilabel",
                )
                for at in range(t, len(drawn), len(asked))
                if _varies(plan, drawn[at])
            ]
            if of:
                known[one.task.name] = intervals.mean([each.of[METRIC[one.task.kind]] for each in of])
        control = [known.get(one.task.name) for one in plan.tasks]
    curve = []
    if compared and plan.settings.curve:
        cells = _cells(plan, plan.columns[0])
        for number in range(len(CURVE)):
            at = slice(n_own * (number + 1), n_own * (number + 2))
            images = round(float(np.mean([cell.train.sum() for cell in cells[at] if isinstance(cell, Fold)])))
            parts = answers[at]
            curve.append(
                (images, [_scores(plan, plan.tasks[t].labels, [fold[t] for fold in parts], draws_RG) for t in own])
            )
        whole = round(float(np.mean([cell.train.sum() for cell in cells[:n_own] if isinstance(cell, Fold)])))
        curve.append((whole, scores))
    codes: list[Codelength] | None = answers[-1] if shown and plan.settings.match_dim is None else None
    return Found(
        width=width,
        scores=scores,
        held_out=[[one._replace(prediction=np.empty(0), coded=np.empty(0)) for one in fold] for fold in held_out],
        fold_scores=[_fold_scores(plan, one, [fold[t] for fold in held_out]) for t, one in enumerate(plan.tasks)],
        control=control,
        codes=codes,
        compression=None if codes is None else [_compression(plan, code, draws_RG) for code in codes],
        curve=curve,
        confusion=[
            _confusion(plan, one.labels, [fold[t].prediction for fold in held_out]) if compared else None
            for t, one in enumerate(plan.tasks)
        ],
        warnings=(),
    )


def _numbers(plan: Plan) -> list[int]:
    return [int(k) for k in np.unique(plan.fold) if k >= 0]


def _scored(plan: Plan, labels: Labels) -> np.ndarray:
    """Which of the images with a fold have a label."""
    return metrics.labelled(labels.kind, labels.y[plan.fold >= 0])


def _assembled(plan: Plan, labels: Labels, parts: Sequence[Prediction]) -> Prediction:
    """Predictions of all scored images, those with a fold, in their order."""
    at = plan.fold[plan.fold >= 0]

    def whole(pieces: Sequence[np.ndarray]) -> np.ndarray:
        out = np.empty((len(at), *pieces[0].shape[1:]), pieces[0].dtype)
        for k, piece in zip(_numbers(plan), pieces, strict=True):
            out[at == k] = piece
        return out

    if labels.kind == "number":
        gaussians = [one for one in parts if isinstance(one, Gaussian)]
        return Gaussian(whole([g.mean for g in gaussians]), whole([g.scale for g in gaussians]))
    if labels.kind == "circular":
        found = [one for one in parts if isinstance(one, VonMises)]
        return VonMises(whole([g.mean for g in found]), whole([g.concentration for g in found]), labels.period)
    return whole([np.asarray(one) for one in parts])


def _scores(plan: Plan, labels: Labels, parts: Sequence[HeldOut], draws_RG: np.ndarray) -> Scores:
    """All metrics; cross-entropy and V-information of the probes that were chosen by it."""
    scores = _scored_by(plan, labels, [one.prediction for one in parts], draws_RG)
    if all(one.coded is one.prediction for one in parts):
        return scores
    coded = _scored_by(plan, labels, [one.coded for one in parts], draws_RG, ranks=False)
    return scores._replace(of=scores.of | {name: coded.of[name] for name in (protocol.BITS, "V-information")})


def _scored_by(
    plan: Plan, labels: Labels, parts: Sequence[Prediction], draws_RG: np.ndarray, *, ranks: bool = True
) -> Scores:
    scored = plan.fold >= 0
    floor = _without_features(plan, labels)
    prediction = _assembled(plan, labels, parts)
    scores = metrics.score(
        labels.kind, labels.y[scored], prediction, floor, plan.fold[scored], plan.groups[scored], draws_RG, ranks=ranks
    )
    folds = len(_numbers(plan))
    return scores._replace(
        of={
            name: intervals.over_training_sets(one, folds, *metrics.RANGE.get(name, ()))
            for name, one in scores.of.items()
        }
    )


def _without_features(plan: Plan, labels: Labels, categories: np.ndarray | None = None) -> Prediction:
    """The floor's prediction of the scored images, or that of someone who knows their category."""
    used = plan.fold > -2
    y, fold = labels.y[used], plan.fold[used]
    if categories is None:
        prediction = controls.floor(labels.kind, y, fold, labels.n_classes, labels.period)
    else:
        prediction = controls.oracle(labels.kind, y, categories[used], fold, labels.n_classes, labels.period)
    return metrics.take(prediction, np.flatnonzero(fold >= 0))


def _compression(plan: Plan, code: Codelength, draws_RG: np.ndarray) -> Sampled:
    """Of other images, sent in the same order: the lengths of both codes are sums over groups."""
    groups = plan.groups[plan.fold >= 0]
    bits_G, uniform_G = (np.bincount(groups, of, draws_RG.shape[1]) for of in (code.row_bits, code.row_uniform))
    bits, uniform = draws_RG @ bits_G, draws_RG @ uniform_G
    return Sampled(code.compression, np.divide(uniform, bits, out=np.full(len(bits), np.nan), where=bits > 0))


def _fold_scores(plan: Plan, one: ProbeTask, parts: Sequence[HeldOut]) -> tuple[float, ...]:
    found, kind = [], one.task.kind
    floor, at = _without_features(plan, one.labels), plan.fold[plan.fold >= 0]
    for k, part in zip(_numbers(plan), parts, strict=True):
        y = one.labels.y[plan.fold == k]
        without = metrics.take(floor, np.flatnonzero(at == k))
        found.append(metrics.evaluate(kind, y, part.prediction, np.zeros(len(y)), without)[METRIC[kind]])
    return tuple(found)


def _confusion(plan: Plan, labels: Labels, parts: Sequence[Prediction]) -> np.ndarray | None:
    if labels.kind != "classes" or labels.n_classes > _MOST_CONFUSED:
        return None
    y = labels.y[plan.fold >= 0]
    chosen = np.asarray(_assembled(plan, labels, parts)).argmax(1)
    counts = np.zeros((labels.n_classes, labels.n_classes), int)
    np.add.at(counts, (y[y >= 0], chosen[y >= 0]), 1)
    return counts


# ---- what is told


def _results(plan: Plan, found: dict[Representation, Found], config: dict[str, Any]) -> Results:
    warnings = [*plan.warnings, *(one for at in plan.representations for one in found[at].warnings)]
    whole = found.get(Representation("v_pooled", None))
    baselines = tuple(_baselines(plan))
    shortcuts = {one.task: one for one in baselines}
    rows = []
    for t, one in enumerate(plan.tasks):
        for at in plan.representations:
            rows.append(_row(one, t, at, found[at], whole))
            warnings += _doubts(rows[-1], shortcuts.get(one.task.name))
            if intervals.folds_disagree(found[at].fold_scores[t], found[at].scores[t].of[rows[-1].metric]):
                told = ", ".join(f"{score:.2f}" for score in found[at].fold_scores[t])
                warnings.append(
                    f"{one.task.name} from {label(*at)}: folds disagree ({told}), more than their images explain; look "
                    "for outliers, or groups of another kind"
                )
    suites = list(dict.fromkeys(one.task.suite for one in plan.tasks))
    scores = {at: found[at].scores for at in plan.columns}
    further = {at: read for at in plan.columns if (read := found[at].ceiling) is not None}
    return Results(
        config=config | {"protocol": _protocol(plan)},
        run=identity(plan),
        versions={"python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "scipy", "torch", "scikit-learn")},
        warnings=tuple(warnings),
        rows=tuple(rows),
        suite_means=tuple(
            _suite_mean(plan, suite, at, found[at], whole) for suite in suites for at in plan.representations
        ),
        comparisons=(*_differences(plan, found, suites), *_conditional(plan, found)),
        code_comparisons=tuple(_code_differences(plan, found)),
        baselines=baselines,
        curves=tuple(_curve_points(plan, found)),
        confusions=tuple(
            Confusion(one.task.name, at.name, at.layer, one.classes, tuple(map(tuple, counts.tolist())))
            for at in plan.columns
            for one, counts in zip(plan.tasks, found[at].confusion, strict=True)
            if counts is not None
        ),
        kept=tuple(claims.kept(plan.tasks, scores, plan.settings.margin)),
        suite_gaps=tuple(claims.suite_gaps(plan.tasks, scores)),
        by_class=tuple(claims.by_class(plan.tasks, scores)),
        ceilings=tuple(claims.ceilings(plan.tasks, scores, further, {at: found[at].ceiling_folds for at in further})),
    )


def _row(one: ProbeTask, t: int, at: Representation, found: Found, whole: Found | None) -> Row:
    kind, scores = one.task.kind, found.scores[t]
    metric, groups = METRIC[kind], scores.effective_groups
    score = _interval(scores.of[metric], groups)
    parts = [fold[t] for fold in found.held_out]
    gaps = [part.gap for part in parts if part.gap is not None]
    control = None if found.control is None else found.control[t]
    code = None if found.codes is None else found.codes[t]
    row = Row(
        suite=one.task.suite,
        task=one.task.name,
        kind=kind,
        unit=one.task.unit,
        representation=at.name,
        layer=at.layer,
        width=found.width,
        metric=metric,
        estimate=scores.of[metric].estimate,
        lower=_bound(score.lower, scores.of[metric].estimate),
        upper=_bound(score.upper, scores.of[metric].estimate),
        n=scores.n,
        n_groups=scores.n_groups,
        floor=scores.floor[metric].estimate,
        metrics={name: _interval(value, groups) for name, value in scores.of.items()},
        bits=scores.of["V-information"].estimate,
        compression=None if code is None else code.compression,
        compression_interval=None if found.compression is None else _interval(found.compression[t], groups),
        code_bits=None if code is None else code.bits / scores.n,
        control=None if control is None else control.estimate,
        selectivity=None if control is None else _difference(scores.of[metric], control, groups)[0],
        retention=None if whole is None else _retention(scores.of[metric], whole.scores[t], metric, groups),
        strength=float(np.median([part.strength for part in parts])),
        coded_strength=float(np.median([part.coded_strength for part in parts])),
        at_edge=2 * sum(part.at_edge for part in parts) > len(parts),
        gap=max(gaps) if gaps else None,
        fold_scores=finite(found.fold_scores[t]),
        classes=one.classes,
    )
    return row


def _doubts(row: Row, shortcut: Baseline | None) -> list[str]:
    """Why this row should not be trusted."""
    name = f"{row.task} from {label(row.representation, row.layer)}"
    notes = []
    # Stronger than strong is the floor itself, so a score at the floor has nothing to gain outside the ladder.
    if row.at_edge and (row.strength < 1 or row.lower > row.floor) and row.estimate < 0.995:
        end = "weakest" if row.strength < 1 else "strongest"
        notes.append(f"{name}: most folds chose the {end} strength that was tried; the score may be too low")
    if row.gap is not None and row.gap > LOOSE and row.lower > row.floor and row.estimate < 0.995:
        notes.append(f"{name}: the solver proves its objective only to {row.gap:.0e} of the minimum")
    known = None if shortcut is None else shortcut.score.estimate
    if known is not None and row.lower > row.floor and row.lower <= known + _NO_BETTER:
        notes.append(f"{name}: no better than knowing the category alone ({known:.2f}); it may read no more")
    return notes


def _suite_mean(plan: Plan, suite: str, at: Representation, found: Found, whole: Found | None) -> SuiteMean:
    of = [t for t, one in enumerate(plan.tasks) if one.task.suite == suite]
    groups = max(found.scores[t].effective_groups for t in of)
    score, floor = _mean(plan, found, of), _mean(plan, found, of, floor=True)
    bits = intervals.mean([found.scores[t].of["V-information"] for t in of])
    kept = None if whole is None else intervals.retention(score, _mean(plan, whole, of), floor, groups)
    interval = _interval(score, groups)
    return SuiteMean(
        suite=suite,
        representation=at.name,
        layer=at.layer,
        estimate=score.estimate,
        lower=_bound(interval.lower, score.estimate),
        upper=_bound(interval.upper, score.estimate),
        floor=floor.estimate,
        bits=_interval(bits, groups),
        retention=None if kept is None else _kept(kept),
        tasks=len(of),
    )


def _mean(plan: Plan, found: Found, of: Sequence[int], *, floor: bool = False) -> Sampled:
    """The mean of the tasks' own metrics."""
    return claims.mean(plan.tasks, found.scores, of, floor=floor)


def _differences(plan: Plan, found: dict[Representation, Found], suites: Sequence[str]) -> list[Comparison]:
    """Every two columns, by task and by suite; tasks and means are two families for Holm's correction."""
    by_task, by_suite = [], []
    for a, b in combinations(plan.columns, 2):
        for t, one in enumerate(plan.tasks):
            metric = METRIC[one.task.kind]
            groups = found[a].scores[t].effective_groups
            told, p = _difference(found[a].scores[t].of[metric], found[b].scores[t].of[metric], groups)
            by_task.append(_comparison(one.task.suite, one.task.name, a, b, metric, told, p))
        for suite in suites:
            of = [t for t, one in enumerate(plan.tasks) if one.task.suite == suite]
            groups = max(found[a].scores[t].effective_groups for t in of)
            told, p = _difference(_mean(plan, found[a], of), _mean(plan, found[b], of), groups)
            by_suite.append(_comparison(suite, None, a, b, "mean", told, p))
    return [*_corrected(by_task), *_corrected(by_suite)]


def _conditional(plan: Plan, found: dict[Representation, Found]) -> list[Comparison]:
    """What a join says of the labels beyond one of its parts: H(Y | part) - H(Y | join), in bits an image."""
    parts = {("z_voco" if at.layer is not None else at.name): at for at in plan.columns}
    made = []
    for join in plan.columns:
        for name in join.name.split("+") if "+" in join.name else ():
            if name in parts:
                for t, one in enumerate(plan.tasks):
                    before, after = (found[at].scores[t].of["cross-entropy"] for at in (parts[name], join))
                    told, p = _difference(before, after, found[join].scores[t].effective_groups)
                    made.append(_comparison(one.task.suite, one.task.name, join, parts[name], "bits", told, p))
    return _corrected(made)


def _code_differences(plan: Plan, found: dict[Representation, Found]) -> list[Comparison]:
    """Of every two columns, the difference of their compressions of the same images in the same order."""
    made = []
    for a, b in combinations([at for at in plan.columns if found[at].compression is not None], 2):
        for t, one in enumerate(plan.tasks):
            ours, theirs = ((found[at].compression or [])[t] for at in (a, b))
            told, p = _difference(ours, theirs, found[a].scores[t].effective_groups)
            made.append(_comparison(one.task.suite, one.task.name, a, b, "compression", told, p))
    return _corrected(made)


def _comparison(
    suite: str, task: str | None, a: Representation, b: Representation, metric: str, told: Interval, p: float
) -> Comparison:
    return Comparison(suite, task, label(*a), label(*b), metric, told, p, p)


def _corrected(family: Sequence[Comparison]) -> list[Comparison]:
    adjusted = intervals.holm(np.array([one.p for one in family]))
    return [replace(one, p_holm=float(p)) for one, p in zip(family, adjusted, strict=True)]


def _baselines(plan: Plan) -> Iterator[Baseline]:
    if plan.types is None:
        return
    draws_RG = intervals.resample_groups(int(plan.groups.max()) + 1, plan.settings.seed)
    scored = plan.fold >= 0
    for one in plan.tasks:
        if one is plan.types:
            continue  # knowing the category, it is no question
        found = metrics.score(
            one.task.kind,
            one.labels.y[scored],
            _without_features(plan, one.labels, plan.types.labels.y),
            _without_features(plan, one.labels),
            plan.fold[scored],
            plan.groups[scored],
            draws_RG,
        )
        metric = METRIC[one.task.kind]
        score, bits = (_interval(found.of[name], found.effective_groups) for name in (metric, "V-information"))
        yield Baseline(one.task.suite, one.task.name, "category alone", metric, score, bits)


def _curve_points(plan: Plan, found: dict[Representation, Found]) -> Iterator[CurvePoint]:
    for at in plan.columns:
        for images, by_task in found[at].curve:
            for one, scores in zip(plan.tasks, by_task, strict=True):
                metric, groups = METRIC[one.task.kind], scores.effective_groups
                score, bits = (_interval(scores.of[name], groups) for name in (metric, "V-information"))
                yield CurvePoint(one.task.suite, one.task.name, at.name, at.layer, images, metric, score, bits)


def _protocol(plan: Plan) -> dict[str, Any]:
    return asdict(plan.settings) | {
        "inner_folds": protocol.INNER_FOLDS,
        "strengths": [LADDER[rung] for rung in FIRST],
        "ladder": list(LADDER),
        "ridge_strengths": list(ridge.STRENGTHS),
        "resamples": intervals.RESAMPLES,
        "control_draws": CONTROL_DRAWS if plan.types is not None else 0,
        "types": None if plan.types is None else plan.types.task.name,
        "groups": len(np.unique(plan.groups[plan.fold >= 0])),
        "images": int((plan.fold >= 0).sum()),
        "outer_folds": len(_numbers(plan)),
    }


# ---- numbers as they are told


def _interval(quantity: Sampled, groups: float) -> Interval:
    return _told(quantity.estimate, *intervals.interval(quantity.draws, groups))


def _difference(a: Sampled, b: Sampled, groups: float) -> tuple[Interval, float]:
    found = intervals.difference(a, b, groups)
    return _told(found.estimate, found.lower, found.upper), found.p


def _retention(score: Sampled, whole: Scores, metric: str, groups: float) -> Interval:
    return _kept(intervals.retention(score, whole.of[metric], whole.floor[metric], groups))


def _kept(found: intervals.Retention) -> Interval:
    """Three times None where it is not defined, see `results.NOT_DEFINED`."""
    return _told(found.estimate, found.lower, found.upper) if found.bounded else Interval(None, None, None)


def _told(*values: float) -> Interval:
    return Interval(*(value if math.isfinite(value) else None for value in values))


def _bound(value: float | None, estimate: float) -> float:
    """The end of a score's interval; the score itself where no resample has one."""
    return estimate if value is None else value


def identity(plan: Plan) -> dict[str, Any]:
    """Which run is probed, and which one the probes learn from where that is another."""
    return _identity(plan.run) | ({} if plan.train is None else {"train": _identity(plan.train)})


def _identity(run: Run) -> dict[str, Any]:
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
