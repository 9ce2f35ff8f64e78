"""What scores amount to: what is kept of v_pooled and what is lost, of which suite more, class by class, and how far a
reader that is not linear gets. Knows the scores of every representation by task; not runs, probes, features or files.

Legend: N images, G groups, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from htc_probe.probes.files import results
from htc_probe.probes.files.results import Ceiling, ClassScore, Comparison, Interval, Kept, SuiteGap, finite
from htc_probe.probes.inputs.representations import WHOLE, Representation
from htc_probe.probes.inputs.tasks import SUITES, ProbeTask
from htc_probe.probes.scores import intervals
from htc_probe.probes.scores.intervals import Sampled, effective_groups
from htc_probe.probes.scores.metrics import METRIC, Scores

_LEVEL = 1 - intervals.COVERAGE
_OF_CLASS = {"classes": "recall", "multilabel": "average precision"}

_Tested = TypeVar("_Tested", Ceiling, Comparison, SuiteGap)
TaskScores = Mapping[str, Scores]
"""By the task's name."""
AllScores = Mapping[Representation, TaskScores]
"""Of each representation that is compared."""


class Subject(NamedTuple):
    """What is claimed something of: a task, or the mean of a suite's."""

    suite: str
    task: str | None
    """None: the mean."""
    metric: str
    """The task's own, or `mean`."""
    tasks: tuple[ProbeTask, ...]

    def score(self, scores: TaskScores, metric: str | None = None) -> Sampled:
        """The mean of the tasks' own metrics, or of one that all have."""
        return intervals.mean([scores[task.task.name].of[metric or METRIC[task.task.kind]] for task in self.tasks])

    def floor(self, scores: TaskScores) -> Sampled:
        return intervals.mean([scores[task.task.name].floor[METRIC[task.task.kind]] for task in self.tasks])

    def groups(self, scores: TaskScores) -> float:
        """That it stands on."""
        return max(scores[task.task.name].effective_groups for task in self.tasks)


def single_tasks(tasks: Sequence[ProbeTask]) -> list[Subject]:
    return [Subject(task.task.suite, task.task.name, METRIC[task.task.kind], (task,)) for task in tasks]


def suite_means(tasks: Sequence[ProbeTask]) -> list[Subject]:
    """In the order of their first tasks."""
    suites = dict.fromkeys(task.task.suite for task in tasks)
    return [Subject(suite, None, "mean", tuple(task for task in tasks if task.task.suite == suite)) for suite in suites]


def kept(tasks: Sequence[ProbeTask], scores_of: AllScores, margin: float) -> list[Kept]:
    """Whether each representation scores as v_pooled does, within `margin` of the metric: by task, and by suite. These
    are two families for Holm's correction.
    """
    whole = scores_of.get(WHOLE)
    if whole is None:
        return []
    beside = [(representation, scores) for representation, scores in scores_of.items() if representation != WHOLE]
    decided: list[Kept] = []
    for family in (single_tasks(tasks), suite_means(tasks)):
        decided += _decided([_kept(subject, *column, whole, margin) for column in beside for subject in family])
    return decided


def suite_gaps(tasks: Sequence[ProbeTask], scores_of: AllScores) -> list[SuiteGap]:
    """Of each representation beside v_pooled: the semantic suite's retention minus that of details."""
    whole, means = scores_of.get(WHOLE), {subject.suite: subject for subject in suite_means(tasks)}
    if whole is None or not means.keys() >= set(SUITES):
        return []
    gaps = []
    for representation, scores in scores_of.items():
        if representation == WHOLE:
            continue
        groups = max(subject.groups(scores) for subject in means.values())
        of_suites = (means[suite] for suite in SUITES)
        quantities = [(mean.score(scores), mean.score(whole), mean.floor(whole)) for mean in of_suites]
        first, second = (intervals.kept(*own, groups) for own in quantities)
        told, p = Interval(None, None, None), None
        if first is not None and second is not None:
            told, p = difference_of(first, second, groups)
        gaps.append(SuiteGap(*representation, *SUITES, told, p, p))
    return corrected(gaps)


def by_class(tasks: Sequence[ProbeTask], scores_of: AllScores) -> Iterator[ClassScore]:
    """The recall of every class and the average precision of every label, most frequent first."""
    for task in tasks:
        for representation, scores in scores_of.items():
            classes = scores[task.task.name].by_class
            if classes is None:
                continue
            for c in np.argsort(-classes.images, kind="stable"):
                sizes = classes.groups_KG[[c]].data
                score = classes.of[c]
                told = score.estimate, *intervals.share_interval(score, effective_groups(sizes))
                (floor,) = finite([classes.floor[c]])
                about = task.task.suite, task.task.name, *representation, task.classes[c], _OF_CLASS[task.task.kind]
                yield ClassScore(*about, Interval(*finite(told)), floor, int(classes.images[c]), len(sizes))


def ceilings(
    tasks: Sequence[ProbeTask], linear: AllScores, readers: AllScores, folds: Mapping[Representation, Mapping[str, int]]
) -> list[Ceiling]:
    """Scores of readers with a hidden layer beside those of the linear probes; `folds` by task, see `Ceiling.folds`."""
    made = []
    for representation, scores in readers.items():
        for suite, name, metric, _ in single_tasks(tasks):
            assert name is not None
            score, groups = scores[name].of[metric], scores[name].effective_groups
            told, p = difference_of(score, linear[representation][name].of[metric], groups)
            used = folds[representation][name]
            made.append(Ceiling(suite, name, *representation, metric, interval_of(score, groups), told, p, p, used))
    return corrected(made)


def corrected(family: Sequence[_Tested]) -> list[_Tested]:
    """With the p of each for being so many."""
    adjusted = _holm([claim.p for claim in family])
    return [replace(claim, p_holm=claim.p if p is None else p) for claim, p in zip(family, adjusted, strict=True)]


def _kept(
    subject: Subject, representation: Representation, scores: TaskScores, whole: TaskScores, margin: float
) -> Kept:
    groups, reference = subject.groups(scores), subject.score(whole)
    equivalence = intervals.equivalence(subject.score(scores), reference, groups, margin)
    to_keep = intervals.difference(reference, subject.floor(whole), groups).lower > margin
    within, beyond = equivalence.within if to_keep else None, equivalence.beyond
    told = Interval(*finite(equivalence.difference[:3]))
    return Kept(*subject[:2], *representation, subject.metric, margin, told, within, within, beyond, beyond, "")


def _decided(family: Sequence[Kept]) -> list[Kept]:
    within, beyond = _holm([one.within for one in family]), _holm([one.beyond for one in family])
    decided = []
    for one, near, far in zip(family, within, beyond, strict=True):
        assert far is not None
        more = (one.difference.estimate or 0) > 0
        verdict = results.UNDECIDED
        if far < _LEVEL:
            verdict = results.GAINED if more else results.LOST
        elif near is None:
            verdict = results.NOTHING
        elif near < _LEVEL:
            verdict = results.KEPT
        decided.append(replace(one, within_holm=near, beyond_holm=far, verdict=verdict))
    return decided


def _holm(p: Sequence[float | None]) -> list[float | None]:
    """None ones are no hypotheses and stay so."""
    adjusted = intervals.holm(np.array([math.nan if one is None else one for one in p]))
    return list(finite(adjusted.tolist()))


# ---- numbers as they are told


def interval_of(quantity: Sampled, groups: float) -> Interval:
    return Interval(*finite([quantity.estimate, *intervals.interval(quantity.draws, groups)]))


def difference_of(a: Sampled, b: Sampled, groups: float) -> tuple[Interval, float]:
    """a - b, and its p."""
    *ends, p = intervals.difference(a, b, groups)
    return Interval(*finite(ends)), p
