"""Laws of the inference: known answers, what must agree, and whether intervals and p-values keep their word."""

import numpy as np
import pytest
from scipy import stats

from htc_probe.probes.scores import intervals, metrics
from htc_probe.probes.scores.intervals import Sampled, difference, holm, interval, resample_groups, retention
from htc_probe.probes.scores.metrics import Gaussian

G = 150
DRAWS = resample_groups(G, 0)
RNG = np.random.default_rng(0)


def sampled(values_G: np.ndarray, draws_RG: np.ndarray = DRAWS) -> Sampled:
    """The mean of one value a group."""
    return Sampled(float(values_G.mean()), draws_RG @ values_G / len(values_G))


# Resampling and intervals


def test_every_resample_draws_as_many_groups_as_there_are() -> None:
    draws = resample_groups(40, seed=1, resamples=30)
    assert draws.shape == (30, 40) and (draws.sum(1) == 40).all()
    np.testing.assert_array_equal(draws, resample_groups(40, seed=1, resamples=30))
    assert (draws != resample_groups(40, seed=2, resamples=30)).any()


def test_an_interval_is_the_percentiles_of_many_groups_and_wider_for_few() -> None:
    draws = np.append(stats.norm.ppf((np.arange(10_000) + 0.5) / 10_000), np.nan)
    np.testing.assert_allclose(interval(draws, 10**6), np.nanquantile(draws, [0.025, 0.975]), atol=1e-3)
    for n_groups in (10, 100):
        reach = stats.t.ppf(0.975, n_groups - 1) * np.sqrt(n_groups / (n_groups - 1))
        np.testing.assert_allclose(interval(draws, n_groups), [-reach, reach], atol=0.02)
    assert np.isnan(interval(np.full(3, np.nan), 100)).all()
    assert np.isnan(interval(draws, 1)).all()


def test_the_mean_of_quantities_keeps_draws_paired() -> None:
    a, b = sampled(RNG.standard_normal(G)), sampled(RNG.standard_normal(G))
    both = intervals.mean([a, b])
    assert both.estimate == pytest.approx((a.estimate + b.estimate) / 2)
    np.testing.assert_allclose(both.draws, (a.draws + b.draws) / 2)


# Differences


def test_the_difference_of_one_value_a_group_is_students_paired_test() -> None:
    a = RNG.standard_normal(G)
    b = a + 0.1 + 0.5 * RNG.standard_normal(G)
    many = resample_groups(G, 1, 20_000)
    found, theirs = difference(sampled(a, many), sampled(b, many), G), stats.ttest_rel(a, b)
    assert found.p == pytest.approx(theirs.pvalue, rel=0.1)
    np.testing.assert_allclose([found.lower, found.upper], theirs.confidence_interval(0.95), rtol=0.03)


def test_a_difference_is_antisymmetric_and_significant_where_its_interval_leaves_out_zero() -> None:
    for shift in (0, 0.1, 0.2, 0.5):
        a, b = sampled(RNG.standard_normal(G)), sampled(RNG.standard_normal(G) + shift)
        ab, ba = difference(a, b, G), difference(b, a, G)
        np.testing.assert_allclose(ab, [-ba.estimate, -ba.upper, -ba.lower, ba.p])
        assert (ab.p < 0.05) == (ab.lower > 0 or ab.upper < 0)


def test_equal_predictions_do_not_differ() -> None:
    a = sampled(RNG.standard_normal(G))
    assert difference(a, a, G) == (0, 0, 0, 1)


# Retention


def test_a_representation_retains_all_of_itself_and_the_floor_nothing() -> None:
    whole, floor = sampled(RNG.standard_normal(G) + 2), sampled(RNG.standard_normal(G))
    assert retention(whole, whole, floor, G) == pytest.approx((1, 1, 1, True))
    assert retention(floor, whole, floor, G) == pytest.approx((0, 0, 0, True))


def test_the_ends_of_a_retention_are_where_the_inverted_test_begins_to_reject() -> None:
    common = RNG.standard_normal(G)
    score, whole, floor = (sampled(common + RNG.standard_normal(G) + shift) for shift in (0.7, 1.0, 0.0))
    found = retention(score, whole, floor, G)
    assert found.bounded and found.lower < found.estimate < found.upper
    for ratio, expected in ((found.lower, 0.05), (found.upper, 0.05), (found.estimate, 1)):
        part = Sampled(score.estimate - floor.estimate, score.draws - floor.draws)
        of = Sampled(ratio * (whole.estimate - floor.estimate), ratio * (whole.draws - floor.draws))
        assert difference(part, of, G).p == pytest.approx(expected)


def test_a_whole_that_cannot_be_told_from_the_floor_bounds_nothing() -> None:
    floor = sampled(RNG.standard_normal(G))
    better, same, worse = (sampled(RNG.standard_normal(G) + shift) for shift in (1, 0.02, -1))
    for whole in (same, worse, floor):
        found = retention(better, whole, floor, G)
        assert (found.lower, found.upper, found.bounded) == (-np.inf, np.inf, False)
    assert np.isnan(retention(better, floor, floor, G).estimate)


# Many hypotheses


def test_holm_gives_known_answers_and_leaves_out_what_is_undefined() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.02, 0.04])), [0.03, 0.04, 0.04])
    np.testing.assert_allclose(holm(np.array([0.5, 0.001, 0.9, 0.01])), [1, 0.004, 1, 0.03])
    np.testing.assert_allclose(holm(np.array([0.04, np.nan, 0.01])), [0.04, np.nan, 0.02])
    assert holm(np.array([])).shape == (0,)


def test_sums_by_group() -> None:
    np.testing.assert_array_equal(intervals.group_sums(np.array([1.0, 2, 4]), np.array([3, 0, 3])), [2, 5])
    np.testing.assert_array_equal(intervals.group_sums(np.array([[1, 2], [3, 4]]), ["b", "a"]), [[3, 4], [1, 2]])


# Do they keep their word? Rows come in groups whose answers go together.


def clustered(rng: np.random.Generator, n_groups: int) -> np.ndarray:
    """The groups of rows, one to five rows each."""
    return np.repeat(np.arange(n_groups), rng.integers(1, 6, n_groups))


def answers(rng: np.random.Generator, groups: np.ndarray, y: np.ndarray, signal: float) -> np.ndarray:
    """Log probabilities (n, 4) of a probe that errs alike within a group."""
    noise = rng.standard_normal((groups.max() + 1, 4))[groups] + rng.standard_normal((len(y), 4))
    logits = signal * np.eye(4)[y] + noise
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def is_uniform(p: np.ndarray) -> bool:
    return bool(stats.kstest(p, "uniform").pvalue > 0.01 and 0.03 < (p < 0.05).mean() < 0.07)


@pytest.mark.slow
def test_intervals_of_classes_hold_the_truth_in_95_of_100_data_sets() -> None:
    truth: dict[str, float] = {}
    held: dict[str, list[bool]] = {}
    for number in range(1001):
        rng = np.random.default_rng(number)
        groups = clustered(rng, G if number else 100_000)
        y = rng.integers(0, 4, len(groups))
        prediction, floor = answers(rng, groups, y, 2), np.full((len(y), 4), np.log(1 / 4))
        draws = DRAWS if number else np.empty((0, 100_000), np.uint16)
        for name, found in metrics.score("classes", y, prediction, floor, groups % 3, groups, draws).of.items():
            if number == 0:
                truth[name] = found.estimate
                continue
            lower, upper = interval(found.draws, G)
            held.setdefault(name, []).append(lower <= truth[name] <= upper)
    for name, inside in held.items():
        assert 0.93 <= np.mean(inside) <= 0.97, (name, np.mean(inside))


@pytest.mark.slow
def test_intervals_of_numbers_hold_the_truth_in_95_of_100_data_sets() -> None:
    truth: dict[str, float] = {}
    held: dict[str, list[bool]] = {}
    draws_RG = resample_groups(G, 0, 600)
    for number in range(501):
        rng = np.random.default_rng(number)
        groups = clustered(rng, G if number else 100_000)
        one, two = (
            0.7 * rng.standard_normal(groups.max() + 1)[groups] + 0.7 * rng.standard_normal(len(groups)) for _ in "ab"
        )
        probe, floor = (Gaussian(mean, np.full(len(groups), s)) for mean, s in ((one, 1.0), (0 * one, 1.4)))
        draws = draws_RG if number else np.empty((0, 100_000), np.uint16)
        for name, found in metrics.score("number", one + two, probe, floor, groups % 2, groups, draws).of.items():
            if number == 0:
                truth[name] = found.estimate
                continue
            lower, upper = interval(found.draws, G)
            held.setdefault(name, []).append(lower <= truth[name] <= upper)
    for name, inside in held.items():
        assert 0.93 <= np.mean(inside) <= 0.97, (name, np.mean(inside))


@pytest.mark.slow
def test_differences_between_equals_have_uniform_p_and_intervals_that_hold_zero() -> None:
    found: dict[str, list[intervals.Difference]] = {}
    for number in range(700):
        rng = np.random.default_rng(number)
        groups = clustered(rng, G)
        y = rng.integers(0, 4, len(groups))
        floor = np.full((len(y), 4), np.log(1 / 4))
        a, b = (
            metrics.score("classes", y, answers(rng, groups, y, 2), floor, groups % 3, groups, DRAWS).of for _ in "ab"
        )
        for name in a:
            found.setdefault(name, []).append(difference(a[name], b[name], G))
    for name, differences in found.items():
        assert is_uniform(np.array([d.p for d in differences])), name
        inside = np.mean([d.lower <= 0 <= d.upper for d in differences])
        assert 0.93 <= inside <= 0.97, (name, inside)


@pytest.mark.slow
@pytest.mark.parametrize(("of", "kept"), [(2.0, 0.8), (0.35, 0.8), (0.35, 0.0), (0.12, 0.5), (0.12, 8.0)])
def test_retentions_hold_the_truth_in_95_of_100_data_sets_or_are_unbounded(of: float, kept: float) -> None:
    """`of`: the whole's distance from the floor. The standard error of that distance is near 0.1."""
    held, bounded = [], []
    for number in range(1500):
        rng = np.random.default_rng(number)
        common = rng.standard_normal(G)
        shifts = (of * kept, of, 0)
        score, whole, floor = (sampled(0.5 * common + 0.8 * rng.standard_normal(G) + s) for s in shifts)
        found = retention(score, whole, floor, G)
        held.append(found.lower <= kept <= found.upper)
        bounded.append(found.bounded)
    if of > 1:
        assert all(bounded) and 0.93 <= np.mean(held) <= 0.97
    else:  # the unbounded ones hold anything, so that more than 95 in 100 may hold the truth
        assert np.mean(held) >= 0.93 and not all(bounded)


def test_folds_that_disagree_are_told_from_folds_that_vary():
    """The probability of a false alarm is below one in a thousand; a fold that lost what others read is noticed."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(1000):
        right = rng.random((5, 80)) < 0.6
        draws = rng.binomial(400, right.mean(), 500) / 400
        alarms += intervals.folds_disagree(right.mean(1), Sampled(right.mean(), draws))
    assert alarms <= 1
    draws = rng.binomial(400, 0.4, 500) / 400
    assert intervals.folds_disagree([0.28, 0.28, 0.92, 0.28, 0.28], Sampled(0.4, draws))
    assert not intervals.folds_disagree([0.38, 0.44, np.nan, 0.36, 0.42], Sampled(0.4, draws))


@pytest.mark.parametrize("folds", [1, 2, 5, 10])
def test_draws_of_folds_cover_the_training_sets_too(folds: int) -> None:
    """Further out by the share that a fold scores over the share that its probe learned from, within the range."""
    score = sampled(RNG.random(G) < 0.7)
    wider = intervals.over_training_sets(score, folds, 0, 1)
    assert wider.estimate == score.estimate
    assert wider.draws.std() / score.draws.std() == pytest.approx(1 if folds == 1 else np.sqrt(folds / (folds - 1)))
    sure = Sampled(0.999, np.clip(0.999 + 0.002 * RNG.standard_normal(500), 0, 1))
    assert intervals.over_training_sets(sure, folds, 0, 1).draws.max() == 1
    assert intervals.over_training_sets(sure._replace(estimate=0.9), 2).draws.max() > 1
