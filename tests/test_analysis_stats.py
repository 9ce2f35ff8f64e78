"""Intervals over groups: they hold the truth as often as they say, and what goes together is resampled together."""

import numpy as np
import pytest
from scipy import stats as reference

from htc_probe.analysis.stats import draws as stats
from htc_probe.analysis.stats.draws import Draws


def test_intervals_hold_the_mean_in_95_of_100_data_sets() -> None:
    held = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(80), 3)
        shared = rng.exponential(size=(80, 20))  # images of a group are alike, so 240 images tell as much as 80
        found = stats.intervals_of_means(shared[groups] + rng.normal(0, 0.1, (240, 20)), groups, seed)
        held.append((found.lower < 1) & (found.upper > 1))
    assert 0.92 < np.mean(held) < 0.97


def test_images_without_a_group_in_common_are_taken_as_independent() -> None:
    """And the width is that of Student's interval, where the values are normal."""
    values = np.random.default_rng(0).normal(size=400)
    found = stats.interval_of_mean(values, [f"image {i}" for i in range(400)], seed=1)
    low, high = reference.t.interval(0.95, 399, values.mean(), reference.sem(values))
    assert found.estimate == pytest.approx(values.mean())
    np.testing.assert_allclose([found.lower, found.upper], [low, high], atol=0.012)


def test_copies_of_an_image_in_its_group_add_nothing() -> None:
    values = np.random.default_rng(0).normal(size=50)
    once = stats.interval_of_mean(values, np.arange(50), seed=1)
    thrice = stats.interval_of_mean(np.repeat(values, 3), np.repeat(np.arange(50), 3), seed=1)
    np.testing.assert_allclose(once, thrice)


def test_columns_are_resampled_together_and_seeded() -> None:
    values = np.random.default_rng(0).normal(size=(40, 2, 3))
    together = stats.intervals_of_means(values, np.arange(40), seed=3)
    assert together.estimate.shape == (2, 3)
    alone = stats.interval_of_mean(values[:, 1, 2], np.arange(40), seed=3)
    np.testing.assert_allclose([part[1, 2] for part in together], alone)
    draws = stats.draws_of_means(np.stack([values[:, 0, 0], values[:, 0, 0] + 1], 1), np.arange(40), 3).draws
    np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 1)
    assert stats.interval_of_mean(values[:, 0, 0], np.arange(40), 4) != stats.interval_of_mean(
        values[:, 0, 0], np.arange(40), 3
    )


def test_unknown_values_are_left_out() -> None:
    values = np.array([1.0, 2.0, np.nan, 3.0])
    assert stats.interval_of_mean(values, list("abcd"), 0).estimate == 2.0
    nothing = stats.intervals_of_means(np.array([[1.0, np.nan], [2.0, np.nan]]), list("ab"), 0)
    assert np.isnan([part[1] for part in nothing]).all() and nothing.estimate[0] == 1.5


def test_one_group_has_no_interval() -> None:
    found = stats.interval_of_mean(np.array([1.0, 3.0]), ["a", "a"], 0)
    assert found.estimate == 2.0 and np.isnan(found.lower) and np.isnan(found.upper)


def test_ratios_are_of_sums() -> None:
    found = stats.draws_of_ratios(np.array([1.0, 8.0]), np.array([2.0, 1.0]), list("ab"), 0)
    assert found.estimate == 3.0  # not the mean of 0.5 and 8
    assert set(np.round(found.draws, 3)) == {0.5, 3.0, 8.0}


def test_max_t_finds_what_is_there_and_seldom_more() -> None:
    false, found = 0, []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        values = 1 + 0.5 * rng.normal(size=(100, 40)) + 0.5 * rng.normal(size=(100, 1))
        values[:, 0] += 0.5
        test = stats.max_t(stats.draws_of_means(values, np.arange(100), seed), null=1.0)
        false += (test.p[1:] < 0.05).any()
        found.append(test.p[0])
        assert ((test.p < 0.05) == (test.lower > 1)).mean() > 0.9
    assert false <= 11  # 5% of 100, and what chance adds
    assert max(found) < 0.05


def test_max_t_of_one_mean_is_its_one_sided_bound() -> None:
    found = stats.draws_of_means(np.random.default_rng(0).exponential(size=(12, 1)), np.arange(12), 0)
    off = (found.draws - found.estimate) * np.sqrt(12 / 11)
    test = stats.max_t(found, null=0.5)
    np.testing.assert_allclose(test.lower, found.estimate - np.quantile(off, 0.95))
    np.testing.assert_allclose(test.p, (1 + (off >= found.estimate - 0.5).sum()) / 1001)


def test_max_t_of_images_that_are_all_equal() -> None:
    same = Draws(np.array([1.0, 1.1]), np.tile([1.0, 1.1], (1000, 1)), 50)
    assert stats.max_t(same, 1.05).p.tolist() == [1, 1 / 1001]


def test_the_jackknife_of_a_mean_is_students_interval_over_blocks() -> None:
    values = np.random.default_rng(0).normal(size=20)
    without = np.array([np.delete(values, at).mean() for at in range(20)])
    found = stats.jackknife(values.mean(), without[:, None])
    low, high = reference.t.interval(0.95, 19, values.mean(), reference.sem(values))
    np.testing.assert_allclose([found.lower[0], found.upper[0]], [low, high])


def test_blocks_hold_whole_groups() -> None:
    groups = [f"g{i % 30}" for i in range(100)]
    block = stats.blocks(groups, seed=0, most=7)
    assert set(block) == set(range(7))
    assert all(len({block[i] for i in range(100) if groups[i] == name}) == 1 for name in set(groups))


def test_shuffles_carry_groups_as_a_whole() -> None:
    even = np.repeat(np.arange(12), 3)
    mixed = np.random.default_rng(1).permutation([*np.repeat(np.arange(9), 2), *range(9, 20)])  # 9 of two, 11 of one
    distinct = np.repeat(np.arange(7), np.arange(1, 8))
    for groups, sizes_stay in ((even, True), (mixed, True), (distinct, False)):
        orders = list(stats.shuffles(groups, 0, 50))
        assert len({tuple(order) for order in orders}) > 40
        sizes = np.bincount(groups)
        for order in orders:
            for name in set(groups):
                of = groups[order[groups == name]]
                assert (of == of[0]).all() and (sizes[of[0]] == sizes[name] or not sizes_stay)
            assert not sizes_stay or sorted(order) == list(range(len(groups))), "every label once"
    moved = np.mean([order != np.arange(28) for order in orders])
    assert moved > 0.5, "groups of a size of their own change places too"


def test_groups_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="3 values and 2 groups"):
        stats.interval_of_mean(np.zeros(3), ["a", "b"], 0)
