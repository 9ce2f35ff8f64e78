"""What scores amount to: what is kept of v_pooled and what is lost, of which suite more, class by class, and how far a
reader that is not linear gets. Knows the scores of every representation by task; not runs, probes, features or files.

Legend: N images, G groups, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from htc_probe.probes.files.results import (
    GAINED,
    KEPT,
    LOST,
    NOTHING,
    UNDECIDED,
    Ceiling,
    ClassScore,
    Interval,
    Kept,
    SuiteGap,
    finite,
)
from htc_probe.probes.inputs.representations import Representation
from htc_probe.probes.inputs.tasks import SUITES, ProbeTask
from htc_probe.probes.scores import intervals
from htc_probe.probes.scores.intervals import Sampled, effective_groups
from htc_probe.probes.scores.metrics import METRIC, Scores

WHOLE = Representation("v_pooled", None)
_LEVEL = 1 - intervals.COVERAGE
_OF_CLASS = {"classes": "recall", "multilabel": "average precision"}

Found = Mapping[Representation, Sequence[Scores]]
"""Of each representation that is compared, its scores by task."""


def mean(tasks: Sequence[ProbeTask], scores: Sequence[Scores], of: Sequence[int], *, floor: bool = False) -> Sampled:
    """The mean of the own metrics of the tasks numbered `of`, or that of their floors."""
    return intervals.mean([(scores[t].floor if floor else scores[t].of)[METRIC[tasks[t].task.kind]] for t in of])


def kept(tasks: Sequence[ProbeTask], found: Found, margin: float) -> list[Kept]:
    """Whether each representation scores as v_pooled does, within `margin` of the metric: by task, and by suite. These
    are two families for Holm's correction.
    """
    whole = found.get(WHOLE)
    if whole is None:
        return []
    by_task, by_suite = [], []
    for at, scores in found.items():
        if at == WHOLE:
            continue
        for t, one in enumerate(tasks):
            metric = METRIC[one.task.kind]
            of = scores[t].of[metric], whole[t].of[metric], whole[t].floor[metric]
            by_task.append(_kept(one.task.suite, one.task.name, at, metric, margin, *of, _groups(scores, [t])))
        for suite, these in _suites(tasks).items():
            of = mean(tasks, scores, these), mean(tasks, whole, these), mean(tasks, whole, these, floor=True)
            by_suite.append(_kept(suite, None, at, "mean", margin, *of, _groups(scores, these)))
    return [*_decided(by_task), *_decided(by_suite)]


def suite_gaps(tasks: Sequence[ProbeTask], found: Found) -> list[SuiteGap]:
    """Of each representation beside v_pooled: the semantic suite's retention minus that of details."""
    whole, suites = found.get(WHOLE), _suites(tasks)
    if whole is None or not suites.keys() >= set(SUITES):
        return []
    made = []
    for at, scores in found.items():
        if at == WHOLE:
            continue
        groups = _groups(scores, range(len(tasks)))
        shares = [
            intervals.kept(mean(tasks, scores, of), mean(tasks, whole, of), mean(tasks, whole, of, floor=True), groups)
            for of in (suites[name] for name in SUITES)
        ]
        told, p = Interval(None, None, None), None
        if shares[0] is not None and shares[1] is not None:
            *ends, p = intervals.difference(shares[0], shares[1], groups)
            told = Interval(*finite(ends))
        made.append(SuiteGap(*at, *SUITES, told, p, p))
    adjusted = _holm([one.p for one in made])
    return [replace(one, p_holm=p) for one, p in zip(made, adjusted, strict=True)]


def by_class(tasks: Sequence[ProbeTask], found: Found) -> Iterator[ClassScore]:
    """The recall of every class and the average precision of every label, most frequent first."""
    for t, one in enumerate(tasks):
        for at, scores in found.items():
            given = scores[t].by_class
            if given is None:
                continue
            for c in np.argsort(-given.images, kind="stable"):
                sizes = given.groups_KG[[c]].data
                score = given.of[c]
                told = score.estimate, *intervals.share_interval(score, effective_groups(sizes))
                (floor,) = finite([given.floor[c]])
                yield ClassScore(
                    one.task.suite,
                    one.task.name,
                    *at,
                    one.classes[c],
                    _OF_CLASS[one.task.kind],
                    Interval(*finite(told)),
                    floor,
                    int(given.images[c]),
                    len(sizes),
                )


def ceilings(
    tasks: Sequence[ProbeTask], linear: Found, found: Found, folds: Mapping[Representation, Sequence[int]]
) -> list[Ceiling]:
    """Scores of readers with a hidden layer beside those of the linear probes; `folds` by task, see `Ceiling.folds`."""
    made = []
    for at, scores in found.items():
        for t, one in enumerate(tasks):
            metric = METRIC[one.task.kind]
            score, groups = scores[t].of[metric], _groups(scores, [t])
            ends = intervals.interval(score.draws, groups)
            *told, p = intervals.difference(score, linear[at][t].of[metric], groups)
            made.append(
                Ceiling(
                    one.task.suite,
                    one.task.name,
                    *at,
                    metric,
                    Interval(*finite([score.estimate, *ends])),
                    Interval(*finite(told)),
                    p,
                    p,
                    folds[at][t],
                )
            )
    adjusted = _holm([one.p for one in made])
    return [replace(one, p_holm=math.nan if p is None else p) for one, p in zip(made, adjusted, strict=True)]


def _groups(scores: Sequence[Scores], of: Sequence[int]) -> float:
    """That a quantity of the tasks numbered `of` stands on."""
    return max(scores[t].effective_groups for t in of)


def _suites(tasks: Sequence[ProbeTask]) -> dict[str, list[int]]:
    of: dict[str, list[int]] = {}
    for t, one in enumerate(tasks):
        of.setdefault(one.task.suite, []).append(t)
    return of


def _kept(
    suite: str,
    task: str | None,
    at: Representation,
    metric: str,
    margin: float,
    score: Sampled,
    whole: Sampled,
    floor: Sampled,
    groups: float,
) -> Kept:
    found = intervals.equivalence(score, whole, groups, margin)
    to_keep = intervals.difference(whole, floor, groups).lower > margin
    within = found.within if to_keep else None
    told = Interval(*finite(found.difference[:3]))
    return Kept(suite, task, *at, metric, margin, told, within, within, found.beyond, found.beyond, "")


def _decided(family: Sequence[Kept]) -> list[Kept]:
    within, beyond = _holm([one.within for one in family]), _holm([one.beyond for one in family])
    made = []
    for one, near, far in zip(family, within, beyond, strict=True):
        assert far is not None
        more = (one.difference.estimate or 0) > 0
        verdict = UNDECIDED
        if far < _LEVEL:
            verdict = GAINED if more else LOST
        elif near is None:
            verdict = NOTHING
        elif near < _LEVEL:
            verdict = KEPT
        made.append(replace(one, within_holm=near, beyond_holm=far, verdict=verdict))
    return made


def _holm(p: Sequence[float | None]) -> list[float | None]:
    """None ones are no hypotheses and stay so."""
    adjusted = intervals.holm(np.array([math.nan if one is None else one for one in p]))
    return list(finite(adjusted.tolist()))
