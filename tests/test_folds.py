"""Laws of folds: whole groups, every row once, labels of all tasks spread."""

import numpy as np
import pytest

from htc_probe.probes.inputs import folds
from htc_probe.probes.inputs.labels import Labels

N = 600


def tasks(seed: int = 0, size: int = 1) -> tuple[list[Labels], np.ndarray]:
    """Labels of every kind, rare ones among them, equal within groups of `size`; and the groups, in no order."""
    rng = np.random.default_rng(seed)
    count = N // size
    kinds = rng.choice(6, count, p=[0.5, 0.25, 0.125, 0.075, 0.03, 0.02])
    skewed = np.exp(rng.standard_normal(count))
    present = (rng.random((count, 4)) < [0.5, 0.1, 0.9, 0.03]).astype(np.uint8)
    present[rng.random(present.shape) < 0.2] = 255
    groups = np.repeat(rng.permutation(count), size)
    made = [Labels("classes", kinds, 6), Labels("multilabel", present), Labels("number", skewed)]
    return [task._replace(y=np.repeat(task.y, size, 0)) for task in made], groups


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("count", [2, 5])
def test_every_row_is_held_out_once_with_its_group(size: int, count: int) -> None:
    labels, groups = tasks(size=size)
    fold = folds.assign(labels, groups, count, seed=4)
    assert fold.shape == (N,) and set(fold) == set(range(count))
    assert all(len(set(fold[groups == group])) == 1 for group in set(groups))
    assert np.ptp(np.bincount(fold)) <= 0.1 * N / count
    np.testing.assert_array_equal(fold, folds.assign(labels, groups, count, seed=4))
    assert (fold != folds.assign(labels, groups, count, seed=5)).any()


@pytest.mark.parametrize("size", [1, 3])
def test_labels_of_all_tasks_are_spread_evenly(size: int) -> None:
    """Each fold has its share of every label, and of the low and the high numbers, to a group or two."""
    labels, groups = tasks(size=size)
    kinds, present, number = (task.y for task in labels)
    middle = np.quantile(number, [0.2, 0.8])
    marks = [kinds == c for c in range(6)] + [present[:, c] == side for c in range(4) for side in (0, 1)]
    marks += [number < middle[0], number > middle[1]]
    fold = folds.assign(labels, groups, 5, seed=0)
    chance = np.random.default_rng(0).integers(0, 5, N // size)[np.unique(groups, return_inverse=True)[1]]
    off, by_chance = (
        np.array([np.abs(np.bincount(how[mark], minlength=5) - mark.sum() / 5).max() / size for mark in marks])
        for how in (fold, chance)
    )
    assert off.max() <= 3.5 and off.mean() < 0.4 * by_chance.mean()


def test_the_rarest_labels_reach_every_fold() -> None:
    rare = np.zeros(N, int)
    rare[:10] = 1
    few = np.full(N, np.nan)
    few[100:110] = np.arange(10)
    once = np.zeros((N, 1), np.uint8)
    once[200:205] = 1
    labels = [Labels("classes", rare, 2), Labels("number", few), Labels("multilabel", once)]
    fold = folds.assign(labels, np.arange(N), 5, seed=0)
    assert np.bincount(fold[rare == 1]).tolist() == [2] * 5
    assert np.bincount(fold[np.isfinite(few)]).tolist() == [2] * 5
    assert np.bincount(fold[once[:, 0] == 1]).tolist() == [1] * 5


@pytest.mark.parametrize("common", [0.0, 5.0, 9.0])
def test_values_beside_a_common_one_are_spread_below_and_above_it(common: float) -> None:
    """All quantiles may be that one value."""
    y = np.full(N, common)
    y[:20] = np.repeat([0.0, 9.0], 10)
    for seed in range(5):
        fold = folds.assign([Labels("number", y)], np.arange(N), 2, seed)
        for value in {0.0, 9.0} - {common}:
            assert np.bincount(fold[y == value], minlength=2).tolist() == [5, 5]


def test_unknown_labels_do_not_steer() -> None:
    labels, groups = tasks()
    unknown = [
        Labels("classes", np.full(N, -1), 3),
        Labels("number", np.full(N, np.nan)),
        Labels("multilabel", np.full((N, 2), 255, np.uint8)),
    ]
    np.testing.assert_array_equal(folds.assign(labels, groups, 5, 0), folds.assign([*unknown, *labels], groups, 5, 0))


def test_groups_of_uneven_size_still_fill_folds_evenly() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), rng.integers(1, 12, 100))
    labels = [Labels("classes", rng.integers(0, 3, 100)[groups], 3)]
    rows = np.bincount(folds.assign(labels, groups, 5, 0), minlength=5)
    assert np.ptp(rows) < 0.15 * len(groups) / 5
    one = folds.assign(labels, np.where(groups < 50, 0, groups), 3, 0)  # a group larger than a fold
    assert set(one) == {0, 1, 2} and len(set(one[groups < 50])) == 1
