"""What will be fitted, settled before anything is: tasks, representations, folds, and the cells to be computed. Knows
runs and labels; not probes or scores.

Legend: N images (with those of a training run of its own first), R resamples, G groups.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from htc_probe.extract.errors import UserError
from htc_probe.extract.store import NUMERIC, Run, Task
from htc_probe.probes.files.predictions import Asked
from htc_probe.probes.inputs import folds, representations, tasks
from htc_probe.probes.inputs.labels import Labels
from htc_probe.probes.inputs.representations import RANDOM_WEIGHTS, READ, Representation, shown
from htc_probe.probes.inputs.tasks import ProbeTask
from htc_probe.probes.scores import controls, intervals, metrics
from htc_probe.probes.study.protocol import INNER_FOLDS, Settings
from htc_probe.probes.study.work import Ceiling, Cell, Code, Fold, StreamedFold

_CURVE = (0.05, 0.1, 0.2, 0.4)
"""Parts of the training images at which learning curves are measured, besides all of them."""
CONTROL_DRAWS = 3
_LARGE_GROUP = 0.1  # of the images
_FEW_GROUPS = 40  # effective ones, from which simulated intervals are not far too short


class Question(NamedTuple):
    """What a cell's probes are asked: a task, or its random labels by type."""

    task: str
    draw: int | None = None
    """Of random labels; None: the task itself."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is drawn and cut is so once, when it is first asked for."""

    run: Run
    train: Run | None
    """The probes learn from this run and are scored on the other; None: folds of one run."""
    random: Run | None
    """The same images through random weights: a floor."""
    settings: Settings
    tasks: tuple[ProbeTask, ...]
    representations: tuple[Representation, ...]
    streamed: tuple[Representation, ...]
    """Those that memory does not hold."""
    fold: np.ndarray
    """(N,) the outer fold in which an image is held out; -1: only learned from; -2: neither."""
    groups: np.ndarray
    """(N,)"""
    types: ProbeTask | None
    """The task whose classes give types to the control labels; None where there is none."""
    warnings: tuple[str, ...]

    # ---- what is compared

    @cached_property
    def columns(self) -> tuple[Representation, ...]:
        """What is compared: every representation, z_voco at its last layer alone."""
        last = max((rep.layer for rep in self.representations if rep.layer is not None), default=None)
        return tuple(rep for rep in self.representations if rep.layer in (None, last))

    @cached_property
    def shown(self) -> tuple[Representation, ...]:
        """What has controls and an online code: all columns but joins that are only told by what they add to a part."""
        names = {rep.name for rep in self.columns}
        return tuple(rep for rep in self.columns if len(rep.parts) == 1 or not names & set(rep.parts))

    @property
    def runs(self) -> tuple[Run, ...]:
        """Those whose images are probed, in the order of the rows."""
        return (self.run,) if self.train is None else (self.train, self.run)

    # ---- images

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The folds that are held out."""
        return tuple(int(number) for number in np.unique(self.fold) if number >= 0)

    @cached_property
    def scored(self) -> np.ndarray:
        """(N,) bool, held out in some fold."""
        return self.fold >= 0

    @cached_property
    def used(self) -> np.ndarray:
        """(N,) bool, held out or learned from."""
        return self.fold > -2

    @cached_property
    def scored_fold(self) -> np.ndarray:
        """(n,) the fold of each scored image."""
        return self.fold[self.scored]

    @cached_property
    def splits(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """By fold: (N,) bool of the images that are learned from, and of those held out."""
        return {number: ((self.fold != number) & self.used, self.fold == number) for number in self.numbers}

    @cached_property
    def draws_RG(self) -> np.ndarray:
        """How often each resample has each group."""
        return intervals.resample_groups(int(self.groups.max()) + 1, self.settings.seed)

    def features(self, representation: Representation) -> Any:
        """(N, D) float32, or what reads such rows. Raises UserError where two runs differ in their features."""
        if representation == RANDOM_WEIGHTS:
            assert self.random is not None
            return representation.load(self.random)
        if representation in self.streamed:
            own = representation.rows(self.run)
            return own if self.train is None else representations.After(representation.rows(self.train), own)
        x_ND = representation.load(self.run)
        if self.train is None:
            return x_ND
        learned_ND = representation.load(self.train)
        if learned_ND.shape[1] != x_ND.shape[1]:
            raise UserError(
                f"{representation.name} has {x_ND.shape[1]} features in {self.run.path.name} and "
                f"{learned_ND.shape[1]} in {self.train.path.name}; both runs must come from the same model"
            )
        return np.concatenate([learned_ND, x_ND])

    def source(self, representation: Representation) -> str:
        """Where the features come from, and since when."""
        runs = [_identity(run) for run in (self.run, self.train, self.random) if run is not None]
        files = [Path(part) for part in representation.parts if Path(part).is_file()]
        stamps = [(str(file.absolute()), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
        return json.dumps([runs, representation, stamps])

    # ---- questions

    @cached_property
    def questions(self) -> dict[Question, Labels]:
        """The tasks themselves."""
        return {Question(task.task.name): task.labels for task in self.tasks}

    @cached_property
    def controls(self) -> dict[Question, Labels]:
        """Every task but the types' own with random labels by type, draw after draw. Of the types' own task these are
        the task itself with its classes merged or renamed.
        """
        if self.types is None:
            return {}
        types, seed = self.types.labels.y, self.settings.seed
        return {
            Question(task.task.name, draw): task.labels._replace(
                y=controls.type_labels(task.task.kind, task.labels.y, types, seed + 1 + draw)
            )
            for draw in range(CONTROL_DRAWS)
            for task in self.tasks
            if task is not self.types
        }

    def questions_of(self, cell: Cell) -> dict[Question, Labels]:
        """Controls go with the folds of what is shown."""
        controlled = type(cell) is Fold and cell.share == 1 and cell.representation in self.shown
        return self.questions | (self.controls if controlled else {})

    def varies(self, labels: Labels) -> bool:
        """Whether a number's labels differ in every training fold and where they are scored; else its R2 is not
        defined. Few types may have drawn the same one.
        """
        values = [labels.y[part] for part in (*(train for train, _ in self.splits.values()), self.scored)]
        return labels.kind not in NUMERIC or all(np.nanmin(y) < np.nanmax(y) for y in values)

    def asked(self) -> list[Asked]:
        """Every task, with the images of the run that score it."""
        before = len(self.fold) - len(self.run)
        told = []
        for task, labels, classes in self.tasks:
            rows = np.flatnonzero(self.scored)[self.labelled(labels)]
            images = rows - before, self.fold[rows], labels.y[rows]
            told.append(Asked(task.name, task.kind, classes, *images, task.period))
        return told

    def labelled(self, labels: Labels) -> np.ndarray:
        """Which of the scored images have a label."""
        return metrics.labelled(labels.kind, labels.y[self.scored])

    # ---- cells

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """What is computed. Of each representation folds first, one by one; then, of what is compared, learning curves,
        the online code, and readers that are not linear.
        """
        return tuple(cell for representation in self.representations for cell in self._cells(representation))

    def _cells(self, representation: Representation) -> list[Cell]:
        if representation in self.streamed:
            return [StreamedFold(representation, number, *split) for number, split in self.splits.items()]
        cells: list[Cell] = [Fold(representation, number, *split) for number, split in self.splits.items()]
        if representation not in self.columns:
            return cells
        for (share, number), train in self._parts.items():
            cells.append(Fold(representation, number, train, self.splits[number][1], share))
        if self.settings.match_dim is None and representation in self.shown:  # the code is of the features as they are
            cells.append(Code(representation, self.scored))
        if self.settings.ceiling:
            cells += [Ceiling(representation, number, *split) for number, split in self.splits.items()]
        return cells

    @cached_property
    def _parts(self) -> dict[tuple[float, int], np.ndarray]:
        """By share and fold: (N,) bool of the images that a learning curve is measured from, each part in the next."""
        if not self.settings.curve:
            return {}
        order = np.random.default_rng(self.settings.seed).permutation(int(self.groups.max()) + 1)[self.groups]
        return {
            (share, number): train & (order <= np.quantile(order[train], share))
            for share in _CURVE
            for number, (train, _) in self.splits.items()
        }

    # ---- in words

    @property
    def identity(self) -> dict[str, Any]:
        """Which run is probed, and which one the probes learn from where that is another."""
        return _identity(self.run) | ({} if self.train is None else {"train": _identity(self.train)})


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
        "layers": run.shape.layers,
        "last_layer": run.shape.stack[-1],
    }


def make_plan(run: Run, settings: Settings, *, train: Run | None = None, random: Run | None = None) -> Plan:
    """Raises UserError for unknown names or layers, a run without labels, and when no task can be probed."""
    if settings.folds < 2:
        raise UserError(f"--folds {settings.folds} leaves nothing held out; use 2 or more")
    if settings.match_dim is not None and settings.match_dim < 1:
        raise UserError(f"--match-dim {settings.match_dim} leaves no feature; use 1 or more")
    if not 0 < settings.margin < 1:
        raise UserError(f"--margin {settings.margin:g} is no part of a metric; use one between 0 and 1, such as 0.02")
    layers = representations.parse_layers(run, settings.layers)
    chosen = representations.select(run, settings.representations, layers)
    asked = tasks.select(run, settings.names)
    if random is not None:
        if train is not None:
            raise UserError("--random-run gives a floor to folds of one run; leave it out with --train-run")
        if random.ids() != run.ids():
            raise UserError(f"{random.path} does not hold the images of {run.path} in their order; extract it alike")
        chosen += (RANDOM_WEIGHTS,)
    folded = _folded(run, asked, settings) if train is None else _learned_from(train, run, asked)
    if not folded.tasks:
        raise UserError(f"no task of {run.path.name} can be probed: " + "; ".join(folded.warnings))
    fold, warnings = folded.fold, folded.warnings + _uneven(folded.groups[folded.fold >= 0])
    text_reads_voco = run.shape.layers > 1 and run.info.topology != "uncompressed"
    if text_reads_voco and READ not in chosen and not settings.representations:
        warnings += (f"{run.path.name} does not store all states that text reads of <voco>: voco_read is left out",)
    if run.shape.stack[-1] != run.shape.layers:
        warnings += (f"z_voco is read at layer {run.shape.stack[-1]}: the run does not store the last one",)
    types = _types(folded.tasks, settings.types) if settings.controls else None
    rows = len(folded.groups)
    large = tuple(rep for rep in chosen if rep != RANDOM_WEIGHTS and _is_large(run, rows, rep, settings))
    if READ in large and not settings.representations:
        # A default that would change how all others are probed.
        chosen, large = (tuple(rep for rep in some if rep != READ) for some in (chosen, large))
        warnings += (
            f"voco_read takes more than --memory {settings.memory:g} GB and is left out; give more, or name it with "
            "--representations to have it streamed",
        )
    if large:
        name = shown(*large[0], run.shape.layers)
        if settings.match_dim is not None or settings.curve or settings.ceiling:
            raise UserError(
                "features that are streamed have no --match-dim, no --curve and no --ceiling; give more --memory"
            )
        fold = np.where(fold > 0, -1, fold)
        warnings += (
            f"{name} takes more than --memory {settings.memory:g} GB: it is streamed, without controls and "
            f"online code, and for all representations one fold of {int((fold == 0).sum())} images is held out",
        )
    return Plan(run, train, random, settings, folded.tasks, chosen, large, fold, folded.groups, types, warnings)


class _Folded(NamedTuple):
    tasks: tuple[ProbeTask, ...]
    groups: np.ndarray
    """(N,)"""
    fold: np.ndarray
    """(N,) see `Plan.fold`."""
    warnings: tuple[str, ...]


def _folded(run: Run, asked: Sequence[Task], settings: Settings) -> _Folded:
    """Tasks to be learned from folds of the run."""
    groups = tasks.group_codes(run.groups())
    labels = [run.labels(task.name) for task in asked]
    ready, warnings = tasks.prepare(asked, labels, groups, 2 * settings.folds, np.ones(len(run), bool))
    fold = folds.assign([task.labels for task in ready], groups, settings.folds, settings.seed)
    return _Folded(ready, groups, fold, warnings)


def _learned_from(train: Run, run: Run, asked: Sequence[Task]) -> _Folded:
    """Tasks to be learned from `train` and scored on the other, whose groups are not learned from."""
    groups = tasks.group_codes([*train.groups(), *run.groups()])
    is_train = np.arange(len(groups)) < len(train)
    counted = is_train & ~np.isin(groups, groups[len(train) :])
    lost = len(train) - int(counted.sum())
    left_out = f"{lost} images of {train.path.name} are left out: their groups are in {run.path.name} too"
    labels, differ = tasks.together(train, run, asked)
    ready, notes = tasks.prepare(asked, labels, groups, 2 * INNER_FOLDS, counted)
    ready, more = tasks.scorable(ready, groups, ~is_train)
    warnings = ((left_out,) if lost else ()) + differ + notes + more
    return _Folded(ready, groups, np.where(is_train, np.where(counted, -1, -2), 0), warnings)


def _uneven(groups: np.ndarray) -> tuple[str, ...]:
    """A warning where few groups decide: resampling whole groups then tells less than it says."""
    _, sizes = np.unique(groups, return_counts=True)
    largest, effective = sizes.max() / sizes.sum(), intervals.effective_groups(sizes)
    if largest <= _LARGE_GROUP and effective >= _FEW_GROUPS:
        return ()
    few = f"there are only {len(sizes)} groups of images"
    if effective < len(sizes) - 0.5:
        few = (
            f"the largest of {len(sizes)} groups holds {largest:.0%} of the images: they vary like {effective:.1f} "
            "groups of one size"
        )
    return (
        f"{few}, for which intervals are too short and p-values too small; collect more groups, or split large ones",
    )


def _is_large(run: Run, rows: int, representation: Representation, settings: Settings) -> bool:
    """Whether probing it in memory, where its rows stand some six times, takes more than it may."""
    # Anything but latents is held whole anyway.
    return representation.streams(run) and 24 * representation.rows(run).shape[1] * rows > settings.memory * 1e9


def _types(ready: Sequence[ProbeTask], wanted: str | None) -> ProbeTask | None:
    """The task `wanted`, or the semantic task with the most classes."""
    by_name = {task.task.name: task for task in ready if task.task.kind == "classes"}
    if wanted is not None:
        if wanted not in by_name:
            raise UserError(f"--types {wanted} is no task with classes that is probed; there are {', '.join(by_name)}")
        return by_name[wanted]
    semantic = [task for task in by_name.values() if task.task.suite == "semantic"]
    return max(semantic, key=lambda task: len(task.classes), default=None)
