"""What scores amount to: shares of two suites, equivalence, single classes, and intervals that keep their word."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from htc_probe.extract.store import UNKNOWN, Kind, Task
from htc_probe.probes.files.results import GAINED, KEPT, LOST, NOTHING, UNDECIDED, ClassScore
from htc_probe.probes.inputs.labels import Labels
from htc_probe.probes.inputs.representations import WHOLE, Representation
from htc_probe.probes.inputs.tasks import ProbeTask
from htc_probe.probes.scores import intervals, metrics
from htc_probe.probes.scores.intervals import (
    Sampled,
    difference,
    effective_groups,
    equivalence,
    kept,
    resample_groups,
    share_interval,
)
from htc_probe.probes.scores.metrics import METRIC, Scores
from htc_probe.probes.study import claims

G = 200
DRAWS = resample_groups(G, 0, 400).astype(float)
RNG = np.random.default_rng(0)
ZERO = Sampled(0.0, np.zeros(len(DRAWS)))
TOKEN = Representation("z_voco", 4)


def sampled(values_G: np.ndarray) -> Sampled:
    return Sampled(float(values_G.mean()), DRAWS @ values_G / len(values_G))


def task(name: str, suite: str, kind: Kind = "number", classes: tuple[str, ...] = ()) -> ProbeTask:
    return ProbeTask(Task(name, suite, kind, classes), Labels(kind, np.zeros(0), len(classes)), classes)


def scores(values_G: np.ndarray, floor: float = 0.0, kind: Kind = "number") -> Scores:
    name = METRIC[kind]
    return Scores({name: sampled(values_G)}, {name: Sampled(floor, np.full(len(DRAWS), floor))}, G, G, float(G))


# Which suite is lost more


def paired(share: float, size: float, rng: np.random.Generator) -> tuple[Sampled, Sampled]:
    """A part of that share and its whole, `size` standard errors above the floor."""
    whole = rng.standard_normal(G)
    part = 0.7 * whole + 0.5 * rng.standard_normal(G)
    return sampled(part + share * size / np.sqrt(G)), sampled(whole + size / np.sqrt(G))


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_equal_shares_of_two_suites_are_called_different_in_one_of_twenty(share: float) -> None:
    rng, p, holds = np.random.default_rng(3), [], []
    for _ in range(600):
        ours, theirs = (kept(*paired(share, size, rng), ZERO, G) for size in (8, 25))
        if ours is not None and theirs is not None:
            found = difference(ours, theirs, G)
            p.append(found.p)
            holds.append(found.lower <= 0 <= found.upper)
    assert len(p) > 550
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.08 and 0.92 < np.mean(holds) < 0.98


def test_the_interval_of_two_shares_covers_their_true_difference() -> None:
    rng, holds = np.random.default_rng(4), []
    for _ in range(500):
        ours, theirs = kept(*paired(0.9, 15, rng), ZERO, G), kept(*paired(0.5, 15, rng), ZERO, G)
        assert ours is not None and theirs is not None
        found = difference(ours, theirs, G)
        holds.append(found.lower <= 0.4 <= found.upper)
    assert 0.92 < np.mean(holds) < 0.98


def test_a_share_has_the_draws_of_its_ratio_where_the_whole_is_large_and_none_where_it_is_not_clear() -> None:
    part, whole = paired(0.6, 200, RNG)
    found = kept(part, whole, ZERO, G)
    assert found is not None and found.estimate == pytest.approx(part.estimate / whole.estimate)
    np.testing.assert_allclose(found.draws, part.draws / whole.draws, atol=2e-3)
    # At the floor, below it, and only just significant: a ratio to it would swing by chance.
    for size in (0, -5, 2.5):
        values = RNG.standard_normal(G)
        assert kept(part, sampled(values - values.mean() + size / np.sqrt(G)), ZERO, G) is None


def test_a_compressor_that_loses_details_alone_is_told() -> None:
    tasks = [task("category", "semantic"), task("size", "detail")]
    noise = 0.1 * RNG.standard_normal((3, G))
    whole = {name: scores(0.8 + noise[0]) for name in ("category", "size")}
    found = {TOKEN: {"category": scores(0.79 + noise[1]), "size": scores(0.4 + noise[2])}, WHOLE: whole}
    (gap,) = claims.suite_gaps(tasks, found)
    assert (gap.first, gap.second) == ("semantic", "detail") and gap.p_holm is not None and gap.p_holm < 1e-6
    assert gap.difference.estimate == pytest.approx((0.79 - 0.4) / 0.8, abs=0.05)
    # Nothing to compare: one suite alone, no whole, a whole at its floor.
    assert claims.suite_gaps(tasks[:1], found) == []
    assert claims.suite_gaps(tasks, {TOKEN: found[TOKEN]}) == []
    (gap,) = claims.suite_gaps(tasks, found | {WHOLE: whole | {"size": scores(noise[0] - noise[0].mean())}})
    assert gap.difference == (None, None, None) and gap.p is None and gap.p_holm is None


# Kept, lost


def test_two_one_sided_tests_have_the_p_of_students_test_against_the_margin() -> None:
    b, noise = RNG.standard_normal((2, G)) * 0.1
    a = b + noise - noise.mean() + 0.036
    found = equivalence(sampled(a), sampled(b), G, 0.05)
    lower, upper = (
        stats.ttest_rel(a, b + margin, alternative=way).pvalue for margin, way in ((-0.05, "greater"), (0.05, "less"))
    )
    assert found.within == pytest.approx(max(lower, upper), rel=0.3)
    assert found.within < 0.05 < found.beyond


@pytest.mark.parametrize("true", [-0.05, 0.05])
def test_at_the_margin_kept_is_said_in_one_of_twenty_and_so_is_lost_or_gained(true: float) -> None:
    rng, within, beyond = np.random.default_rng(5), [], []
    for _ in range(600):
        values = 0.2 * rng.standard_normal(G) + true
        found = equivalence(sampled(values), ZERO, G, 0.05)
        within.append(found.within < 0.05)
        beyond.append(found.beyond < 0.05)
        assert min(found.within, found.beyond) < 0.05 or max(found.within, found.beyond) >= 0.05
        assert not (within[-1] and beyond[-1])
    assert 0.02 < np.mean(within) < 0.08 and np.mean(beyond) < 0.05


def test_where_no_image_differs_few_images_decide_nothing() -> None:
    """40 images without a difference are what a true loss of 4% shows one time in five."""
    same = Sampled(0.5, np.full(9, 0.5))
    assert equivalence(same, same, 40, 0.02).within > 0.2
    assert equivalence(same, same, 2000, 0.02).within < 1e-6
    for gap in (-0.03, 0.03):
        found = equivalence(Sampled(0.5 + gap, np.full(9, 0.5 + gap)), same, 2000, 0.02)
        assert found.within > 0.99 and found.beyond < 1e-6


@pytest.mark.parametrize(
    ("score", "whole", "spread", "verdict"),
    [
        (0.8, 0.8, 0.05, KEPT),
        (0.6, 0.8, 0.05, LOST),
        (0.9, 0.8, 0.05, GAINED),
        (0.8, 0.8, 1.0, UNDECIDED),  # no difference is seen, which is not the same as none
        (0.01, 0.01, 0.02, NOTHING),  # all of the whole is within the margin
        (0.0, 0.0, 0.0, NOTHING),
        (0.5, 0.0, 0.02, GAINED),  # of what the whole does not have
    ],
)
def test_a_verdict_says_what_the_images_can_tell(score: float, whole: float, spread: float, verdict: str) -> None:
    noise = RNG.standard_normal((2, G))
    values = [value + spread * (one - one.mean()) for value, one in zip((score, whole), noise, strict=True)]
    found = {TOKEN: {"size": scores(values[0])}, WHOLE: {"size": scores(values[1])}}
    of_task, of_mean = claims.kept([task("size", "detail")], found, 0.02)
    assert of_task.verdict == of_mean.verdict == verdict
    assert (of_task.within is None) == (whole < 0.02)


def test_verdicts_are_corrected_for_their_number_and_nothing_to_keep_is_no_hypothesis() -> None:
    noise = RNG.standard_normal((2, G))
    a, b = (0.5 + 0.095 * (one - one.mean()) for one in noise)
    one = [task("size", "detail")]
    pair = {TOKEN: {"size": scores(a)}, WHOLE: {"size": scores(b)}}
    (alone, _) = claims.kept(one, pair, 0.02)
    assert alone.within is not None and alone.verdict == KEPT and 0.005 < alone.within < 0.05
    many = pair | {Representation(f"v{i}", None): pair[TOKEN] for i in range(9)}
    told = [each for each in claims.kept(one, many, 0.02) if each.task is not None]
    assert {each.verdict for each in told} == {UNDECIDED}
    assert told[0].within_holm == pytest.approx(min(1, 10 * alone.within))
    nothing = {f"t{i}": scores(np.zeros(G)) for i in range(9)}
    tasks = [*one, *(task(f"t{i}", "detail") for i in range(9))]
    with_nothing = claims.kept(tasks, {rep: both | nothing for rep, both in pair.items()}, 0.02)
    assert with_nothing[0].within_holm == pytest.approx(alone.within)


# Shares of a few images


@pytest.mark.parametrize(("images", "truth"), [(10, 0.6), (10, 0.95), (40, 0.9), (40, 0.99)])
def test_the_interval_of_a_recall_holds_the_truth_also_where_all_are_right(images: int, truth: float) -> None:
    rng, holds = np.random.default_rng(6), []
    draws = DRAWS[:, :images]
    for _ in range(300):
        right = rng.random(images) < truth
        drawn = draws.sum(1)
        share = Sampled(float(right.mean()), np.where(drawn > 0, draws @ right / np.maximum(drawn, 1), np.nan))
        lower, upper = share_interval(share, images)
        assert 0 <= lower <= share.estimate <= upper <= 1
        holds.append(lower <= truth <= upper)
    assert np.mean(holds) > 0.91


def test_a_share_of_whole_groups_counts_groups_and_one_group_has_no_interval() -> None:
    values = np.zeros(30)
    values[:15] = 1
    draws = DRAWS[:, :30]
    of_groups = Sampled(0.5, (draws @ values) / draws.sum(1))
    lower, upper = share_interval(of_groups, 30)
    assert upper - lower == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 30), rel=0.15)
    right = Sampled(1.0, np.ones(50))
    assert share_interval(right, 4)[0] < share_interval(right, 40)[0] < 1 and share_interval(right, 4)[1] == 1
    alone = effective_groups(np.array([7]))
    assert np.isnan(share_interval(right, 1)).all() and np.isnan(share_interval(right, alone)).all()
    assert effective_groups(np.array([3, 3, 3])) == pytest.approx(3) and effective_groups(np.array([100, 1, 1])) < 1.1


def of_classes(
    kind: Kind, y: np.ndarray, said: np.ndarray, groups: np.ndarray, names: tuple[str, ...]
) -> list[ClassScore]:
    fold = groups % 2
    floor = np.zeros_like(said)
    floor[:, 0] = 1
    draws_RG = resample_groups(int(groups.max()) + 1, 0, 300)
    scored = metrics.score(kind, y, said, floor, fold, groups, draws_RG)
    one = task("it", "semantic", kind, names)
    return list(claims.by_class([one], {TOKEN: {"it": scored}}))


def test_recalls_are_those_of_counting_and_few_images_have_wide_intervals() -> None:
    y = np.repeat([0, 1, 2], [100, 12, 2])
    groups = np.concatenate([np.arange(112), [112, 112]])  # both of the rare class in one group
    said = np.zeros((len(y), 3))
    said[np.arange(len(y)), y] = 5
    said[:10, :2] = said[:10, 1::-1]  # 10 of the first class wrong
    many, few, single = of_classes("classes", y, said, groups, ("many", "few", "single"))
    assert [one.name for one in (many, few, single)] == ["many", "few", "single"]
    assert [(one.n, one.n_groups) for one in (many, few, single)] == [(100, 100), (12, 12), (2, 1)]
    assert [one.score.estimate for one in (many, few, single)] == [0.9, 1, 1]
    assert [one.floor for one in (many, few, single)] == [1, 0, 0]
    assert many.score.lower is not None and 0.8 < many.score.lower < 0.9
    assert few.score.lower is not None and few.score.lower < 0.8 and few.score.upper == 1
    assert single.score == (1, None, None)


def test_labels_have_the_average_precisions_that_their_mean_is_of() -> None:
    y = (RNG.random((160, 3)) < [0.5, 0.2, 0.1]).astype(np.uint8)
    y[::7, 1] = UNKNOWN
    said = y * (y == 1) + RNG.standard_normal(y.shape)
    groups = np.arange(160)
    found = of_classes("multilabel", y, said, groups, ("a", "b", "c"))
    assert {one.metric for one in found} == {"average precision"}
    assert [one.n for one in found] == sorted(((y == 1).sum(0)).tolist(), reverse=True)
    whole = metrics.evaluate("multilabel", y, said, groups % 2)["mAP"]
    assert np.mean([one.score.estimate or 0 for one in found]) == pytest.approx(whole)
    for one in found:
        assert one.score.lower is not None and one.score.upper is not None and one.score.estimate is not None
        assert one.score.lower < one.score.estimate < one.score.upper


def test_numbers_have_no_classes() -> None:
    assert list(claims.by_class([task("size", "detail")], {TOKEN: {"size": scores(RNG.standard_normal(G))}})) == []
    assert intervals.CLEAR > 1
