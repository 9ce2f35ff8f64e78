"""How well every task is read from a representation: the scores of what its cells answered. Knows plans, cells and
scores; not results, tables or files.

Legend: N images, n of them scored, R resamples, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import joblib
import numpy as np

from htc_probe.extract.store import NUMERIC
from htc_probe.probes.inputs import oddities
from htc_probe.probes.inputs.labels import Labels
from htc_probe.probes.inputs.representations import Representation, shown
from htc_probe.probes.inputs.tasks import ProbeTask
from htc_probe.probes.scores import controls, intervals, metrics
from htc_probe.probes.scores.intervals import Sampled
from htc_probe.probes.scores.metrics import METRIC, Prediction, Scores
from htc_probe.probes.study import protocol
from htc_probe.probes.study.codelength import Codelength
from htc_probe.probes.study.plan import Plan, Question
from htc_probe.probes.study.protocol import HeldOut
from htc_probe.probes.study.work import Bench, Ceiling, Cell, Code, Fold, Job, Kept

_MOST_CONFUSED = 60  # classes of a confusion matrix that is kept
_SMALL = 2**25  # numbers of a representation below which folds run side by side, each with one thread


class Reading(NamedTuple):
    """One task, read from one representation."""

    scores: Scores
    folds: tuple[HeldOut, ...]
    """Without the predictions: those of many layers would not fit into memory."""
    fold_scores: tuple[float, ...]
    control: Sampled | None
    """Of random labels by type, the mean of the draws."""
    code: Codelength | None
    compression: Sampled | None
    curve: tuple[tuple[int, Scores], ...]
    """(images trained on, scores), from few to many."""
    confusion: np.ndarray | None
    """(K, K) scored images by class and by the class that was chosen."""
    ceiling: Scores | None = None
    """Of the readers with a hidden layer."""
    ceiling_folds: int = 0
    """In how many the layer did better than none."""


class Readings(NamedTuple):
    """All tasks, read from one representation."""

    width: int
    """Features."""
    tasks: dict[str, Reading]
    """By the task's name."""
    warnings: tuple[str, ...]
    """What is odd about the features."""


_Answers = dict[Cell, dict[Question, Any]]


def read(
    plan: Plan,
    representation: Representation,
    kept: Kept | None,
    on_cell: Callable[[], None],
    on_predictions: Callable[[list[Prediction]], None],
) -> Readings:
    """Computes the cells of a representation, or takes them from those that are kept. See `findings.probe`."""
    x_ND = plan.features(representation)
    bench = Bench(x_ND, plan.groups, plan.settings, kept, plan.source(representation))
    alone = representation in plan.streamed or x_ND.size > _SMALL or plan.settings.device != "cpu"
    processes = 0 if alone else plan.settings.jobs or joblib.cpu_count()

    def answered(cells: Sequence[Cell]) -> _Answers:
        answers: _Answers = {}
        questions = [plan.questions_of(cell) for cell in cells]
        jobs = [Job(cell, list(labels.values())) for cell, labels in zip(cells, questions, strict=True)]
        for job, asked, answer in zip(jobs, questions, bench.answers(jobs, processes), strict=True):
            answers[job.cell] = dict(zip(asked, answer, strict=True))
            on_cell()
        return answers

    cells = [cell for cell in plan.cells if cell.representation == representation]
    answers = answered([cell for cell in cells if not isinstance(cell, Ceiling)])
    held_out = {question: _by_fold(answers, question) for question in plan.questions}
    said = {question: _predictions(folds) for question, folds in held_out.items()}
    asked = plan.questions.items()
    on_predictions([metrics.take(_assembled(plan, y, said[question]), plan.labelled(y)) for question, y in asked])
    readings = {task.task.name: _reading(plan, representation, task, answers) for task in plan.tasks}
    hidden = [cell for cell in cells if isinstance(cell, Ceiling)]
    strengths = {number: [folds[number].strength for folds in held_out.values()] for number in plan.numbers}
    readers = answered([replace(cell, strengths=np.array(strengths[cell.number])) for cell in hidden])
    for question, labels in asked if hidden else ():
        by_fold = {cell.number: readers[cell][question].prediction for cell in hidden}
        better = {number: prediction for number, prediction in by_fold.items() if prediction is not None}
        scores = _scored_by(plan, labels, said[question] | better)
        readings[question.task] = readings[question.task]._replace(ceiling=scores, ceiling_folds=len(better))
    return Readings(x_ND.shape[1], readings, _odd(plan, representation, x_ND))


def _by_fold(answers: _Answers, question: Question, share: float = 1.0) -> dict[int, HeldOut]:
    """Of the probes that learned from that share of the images."""
    folds = [cell for cell in answers if isinstance(cell, Fold) and cell.share == share]
    return {cell.number: answers[cell][question] for cell in folds}


def _predictions(held_out: Mapping[int, HeldOut]) -> dict[int, Prediction]:
    return {number: held.prediction for number, held in held_out.items()}


def _odd(plan: Plan, representation: Representation, x_ND: Any) -> tuple[str, ...]:
    """Of a join nothing is told that its parts tell by themselves."""
    parts = representation.parts
    if len(parts) > 1 and {other.name for other in plan.representations}.issuperset(parts):
        return ()
    names = [name for run in plan.runs for name in run.ids()]
    notes = oddities.told(x_ND, plan.used, plan.groups, names)
    name = shown(*representation, plan.run.shape.layers)
    return tuple(f"{name}: {note}" for note in notes)


def _reading(plan: Plan, representation: Representation, task: ProbeTask, answers: _Answers) -> Reading:
    own = Question(task.task.name)
    held_out = _by_fold(answers, own)
    said = _predictions(held_out)
    scores = _scores(plan, task.labels, held_out)
    compared = representation in plan.columns  # of many layers all would not fit into memory
    codes = [given[own] for cell, given in answers.items() if isinstance(cell, Code)]
    return Reading(
        scores=scores if compared else scores._replace(by_class=None),
        folds=tuple(held._replace(prediction=np.empty(0), coded=np.empty(0)) for held in held_out.values()),
        fold_scores=_fold_scores(plan, task.labels, said),
        control=_control(plan, task, answers),
        code=codes[0] if codes else None,
        compression=_compression(plan, codes[0]) if codes else None,
        curve=_curve(plan, task, answers, scores),
        confusion=_confusion(plan, task.labels, said) if compared and representation not in plan.streamed else None,
    )


def _control(plan: Plan, task: ProbeTask, answers: _Answers) -> Sampled | None:
    """None where no draw was asked for or can be scored."""
    kind, drawn = task.task.kind, []
    asked = {question for given in answers.values() for question in given}
    for question, labels in plan.controls.items():
        if question in asked and question.task == task.task.name and plan.varies(labels):
            predictions = _predictions(_by_fold(answers, question))
            scores = _scored_by(plan, labels, predictions, ranks=kind == "multilabel")
            drawn.append(scores.of[METRIC[kind]])
    return intervals.mean(drawn) if drawn else None


def _curve(plan: Plan, task: ProbeTask, answers: _Answers, scores: Scores) -> tuple[tuple[int, Scores], ...]:
    """Empty where all images alone were learned from; `scores` are those of all."""
    sizes: dict[float, list[int]] = {}
    for cell in answers:
        if isinstance(cell, Fold):
            sizes.setdefault(cell.share, []).append(int(cell.train.sum()))
    if len(sizes) == 1:
        return ()
    parts = {share: _by_fold(answers, Question(task.task.name), share) for share in sorted(sizes)}
    return tuple(
        (round(float(np.mean(sizes[share]))), scores if share == 1 else _scores(plan, task.labels, held_out))
        for share, held_out in parts.items()
    )


# ---- scores


def _assembled(plan: Plan, labels: Labels, parts: Mapping[int, Prediction]) -> Prediction:
    """Predictions of all scored images in their order, from those of each fold."""
    rows = np.concatenate([np.flatnonzero(plan.scored_fold == number) for number in parts])
    axis = 1 if labels.kind in NUMERIC else 0
    values = np.concatenate([metrics.stacked(part) for part in parts.values()], axis)
    return metrics.unstacked(labels.kind, values.take(np.argsort(rows), axis), labels.period)


def _scores(plan: Plan, labels: Labels, held_out: Mapping[int, HeldOut]) -> Scores:
    """All metrics; cross-entropy and V-information of the probes that were chosen by it."""
    scores = _scored_by(plan, labels, _predictions(held_out))
    if all(held.coded is held.prediction for held in held_out.values()):
        return scores
    coded = _scored_by(plan, labels, {number: held.coded for number, held in held_out.items()}, ranks=False)
    return scores._replace(of=scores.of | {name: coded.of[name] for name in (protocol.BITS, "V-information")})


def _scored_by(plan: Plan, labels: Labels, parts: Mapping[int, Prediction], *, ranks: bool = True) -> Scores:
    scores = scores_of(plan, labels, _assembled(plan, labels, parts), ranks=ranks)
    folds = len(plan.numbers)
    own = {name: (quantity, folds, *metrics.RANGE.get(name, ())) for name, quantity in scores.of.items()}
    return scores._replace(of={name: intervals.over_training_sets(*given) for name, given in own.items()})


def scores_of(plan: Plan, labels: Labels, prediction: Prediction, *, ranks: bool = True) -> Scores:
    """Of a prediction of the scored images, beside the floor; see `metrics.score`."""
    y, groups = labels.y[plan.scored], plan.groups[plan.scored]
    floor = without_features(plan, labels)
    return metrics.score(labels.kind, y, prediction, floor, plan.scored_fold, groups, plan.draws_RG, ranks=ranks)


def without_features(plan: Plan, labels: Labels, categories: np.ndarray | None = None) -> Prediction:
    """The floor's prediction of the scored images, or that of someone who knows their category."""
    y, fold = labels.y[plan.used], plan.fold[plan.used]
    if categories is None:
        prediction = controls.floor(labels.kind, y, fold, labels.n_classes, labels.period)
    else:
        prediction = controls.oracle(labels.kind, y, categories[plan.used], fold, labels.n_classes, labels.period)
    return metrics.take(prediction, np.flatnonzero(fold >= 0))


def _compression(plan: Plan, code: Codelength) -> Sampled:
    """Of other images, sent in the same order: the lengths of both codes are sums over groups."""
    groups = plan.groups[plan.scored]
    rows = code.row_bits, code.row_uniform
    bits, uniform = (plan.draws_RG @ np.bincount(groups, bits, plan.draws_RG.shape[1]) for bits in rows)
    return Sampled(code.compression, np.divide(uniform, bits, out=np.full(len(bits), np.nan), where=bits > 0))


def _fold_scores(plan: Plan, labels: Labels, parts: Mapping[int, Prediction]) -> tuple[float, ...]:
    floor, scores = without_features(plan, labels), []
    for number, prediction in parts.items():
        y = labels.y[plan.fold == number]
        without = metrics.take(floor, np.flatnonzero(plan.scored_fold == number))
        scores.append(metrics.evaluate(labels.kind, y, prediction, np.zeros(len(y)), without)[METRIC[labels.kind]])
    return tuple(scores)


def _confusion(plan: Plan, labels: Labels, parts: Mapping[int, Prediction]) -> np.ndarray | None:
    if labels.kind != "classes" or labels.n_classes > _MOST_CONFUSED:
        return None
    y = labels.y[plan.scored]
    chosen = np.asarray(_assembled(plan, labels, parts)).argmax(1)
    counts = np.zeros((labels.n_classes, labels.n_classes), int)
    np.add.at(counts, (y[y >= 0], chosen[y >= 0]), 1)
    return counts
