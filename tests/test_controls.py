"""Laws of the controls: one label a type with the same frequencies, an oracle that counts, permutations in place."""

import numpy as np
import pytest

from htc_probe.extract.store import UNKNOWN, Kind
from htc_probe.probes.scores import controls, metrics
from htc_probe.probes.scores.metrics import Gaussian

N = 600
FOLD = np.arange(N) % 5


def labels(kind: Kind, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(y with some unknown, types (N,) of very different sizes)."""
    rng = np.random.default_rng(seed)
    types = rng.choice(12, N, p=np.arange(1, 13) / 78)
    if kind == "classes":
        y = rng.choice(4, N, p=[0.5, 0.25, 0.15, 0.1])
        return np.where(rng.random(N) < 0.1, -1, y), types
    if kind == "number":
        return np.where(rng.random(N) < 0.1, np.nan, rng.exponential(size=N)), types
    many = (rng.random((N, 3)) < [0.5, 0.2, 0.8]).astype(np.uint8)
    many[rng.random((N, 3)) < 0.1] = UNKNOWN
    return many, types


def known(kind: Kind, y: np.ndarray) -> np.ndarray:
    return {"classes": y != -1, "multilabel": y != UNKNOWN, "number": np.isfinite(y)}[kind]


# Type-level labels


@pytest.mark.parametrize("kind", ("classes", "multilabel", "number"))
def test_rows_of_a_type_share_one_label_that_occurs_and_unknown_ones_stay_unknown(kind: Kind) -> None:
    y, types = labels(kind)
    drawn = controls.type_labels(kind, y, types, seed=1)
    assert drawn.dtype == y.dtype
    np.testing.assert_array_equal(known(kind, drawn), known(kind, y))
    for column, of in zip(*(np.reshape(v, (N, -1)).T for v in (drawn, known(kind, y))), strict=True):
        assert all(len(np.unique(column[of & (types == t)])) == 1 for t in range(12))
    assert np.isin(drawn[known(kind, y)], y[known(kind, y)]).all()


@pytest.mark.parametrize("kind", ("classes", "multilabel", "number"))
def test_draws_follow_the_seed_and_the_names_of_types_do_not_matter(kind: Kind) -> None:
    y, types = labels(kind)
    first = controls.type_labels(kind, y, types, seed=1)
    names = np.array([f"type {t:02}" for t in types])
    np.testing.assert_array_equal(first, controls.type_labels(kind, y, names, seed=1))
    assert not np.array_equal(first, controls.type_labels(kind, y, types, seed=2), equal_nan=kind == "number")


def test_labels_are_as_frequent_as_before_up_to_the_size_of_a_type() -> None:
    y, types = labels("classes")
    rows = y >= 0
    counts = np.bincount(y[rows], minlength=4)
    largest = np.bincount(types[rows]).max()
    independent = np.random.default_rng(0)
    ours, plain = [], []
    for seed in range(200):
        drawn = controls.type_labels("classes", y, types, seed)[rows]
        ours.append(np.abs(np.bincount(drawn, minlength=4) - counts).max())
        one_each = independent.choice(y[rows], 12)[types[rows]]
        plain.append(np.abs(np.bincount(one_each, minlength=4) - counts).max())
    assert max(ours) <= largest
    assert np.mean(ours) < np.mean(plain) / 2


@pytest.mark.parametrize("kind", ("classes", "number"))
def test_over_seeds_every_type_gets_each_label_as_often_as_rows_have_it(kind: Kind) -> None:
    y, types = labels(kind)
    rows = known(kind, y)
    first = [np.flatnonzero((types == t) & rows)[0] for t in (0, 5, 11)]
    drawn = np.stack([controls.type_labels(kind, y, types, seed)[first] for seed in range(2000)])
    for cut in np.quantile(y[rows], [0.3, 0.6, 0.9]):
        np.testing.assert_allclose((drawn <= cut).mean(0), (y[rows] <= cut).mean(), atol=0.04)


def test_a_type_for_every_row_permutes_the_labels() -> None:
    y = labels("number")[0]
    drawn = controls.type_labels("number", y, np.arange(N), seed=0)
    np.testing.assert_array_equal(np.sort(drawn), np.sort(y))


# The oracle and the floor


def test_the_oracle_counts_the_other_folds() -> None:
    y, category = np.array([0, 0, 1, 1, 1, 0]), np.array(["a", "a", "a", "b", "b", "b"])
    fold = np.array([0, 1, 1, 0, 1, 1])
    shares = np.exp(np.asarray(controls.oracle("classes", y, category, fold, 2)))
    # Rows 1, 2, 4, 5 train fold 0: two of each class, and so in each category.
    np.testing.assert_allclose(shares[[0, 3]], 0.5, rtol=1e-6)
    # Rows 0 (a) and 3 (b) train fold 1: everywhere (1 + 1) / (2 + 2); in a (1 + 2 * 0.5) / (1 + 2).
    np.testing.assert_allclose(shares[[1, 2]], [[2 / 3, 1 / 3]] * 2, rtol=1e-6)
    np.testing.assert_allclose(shares[[4, 5]], [[1 / 3, 2 / 3]] * 2, rtol=1e-6)
    logits = np.asarray(controls.oracle("multilabel", y[:, None].astype(np.uint8), category, fold))
    np.testing.assert_allclose(1 / (1 + np.exp(-logits[:, 0])), shares[:, 1], rtol=1e-6)


def test_the_oracle_of_a_number_is_the_categorys_mean_and_deviation() -> None:
    rng = np.random.default_rng(0)
    category = rng.integers(0, 3, 6000)
    y = np.array([0.0, 5, 9])[category] + np.array([1.0, 0.1, 3])[category] * rng.standard_normal(6000)
    found = controls.oracle("number", y, category, np.arange(6000) % 2)
    assert isinstance(found, Gaussian)
    np.testing.assert_allclose(found.mean, np.array([0, 5, 9])[category], atol=0.25)
    np.testing.assert_allclose(found.scale, np.array([1, 0.14, 3])[category], rtol=0.1)


def test_a_new_category_of_a_number_gets_the_mean_and_deviation_of_all() -> None:
    y = np.repeat([0.0, 1, 10], 100) + np.tile([-0.5, 0.5], 150)
    category, fold = np.repeat([0, 1, 2], 100), np.full(300, -1)
    category[0], fold[0] = 3, 0
    found = controls.oracle("number", y, category, fold)
    assert isinstance(found, Gaussian)
    assert found.mean[0] == pytest.approx(y[1:].mean())
    assert found.scale[0] == pytest.approx(y[1:].std(), rel=0.01)


@pytest.mark.parametrize("kind", ("classes", "multilabel", "number"))
def test_no_label_of_a_fold_reaches_its_own_prediction(kind: Kind) -> None:
    y, category = labels(kind)
    held = FOLD == 2
    other = y.copy()
    other[held] = np.random.default_rng(0).permutation(y[held])
    for number in (0, 1) if kind == "number" else (slice(None),):
        before, after = (np.asarray(controls.oracle(kind, v, category, FOLD, 4)[number]) for v in (y, other))
        np.testing.assert_array_equal(before[held], after[held])
        assert not np.array_equal(before, after)


@pytest.mark.parametrize("kind", ("classes", "multilabel", "number"))
def test_the_floor_is_the_frequency_of_the_other_folds(kind: Kind) -> None:
    y, _ = labels(kind)
    found = controls.floor(kind, y, FOLD, 4)
    for k in range(5):
        held = np.arange(k, N, 5)
        rest = np.delete(y, held, axis=0)
        if kind == "classes":
            expected = np.bincount(rest[rest >= 0], minlength=4) / (rest >= 0).sum()
            np.testing.assert_allclose(np.exp(np.asarray(found)[held]), np.tile(expected, (len(held), 1)), atol=0.005)
        elif isinstance(found, Gaussian):
            np.testing.assert_allclose(found.mean[held], np.nanmean(rest))
            np.testing.assert_allclose(found.scale[held], np.nanstd(rest), rtol=0.005)
        else:
            expected = (rest == 1).sum(0) / (rest != UNKNOWN).sum(0)
            shares = 1 / (1 + np.exp(-np.asarray(found)[held]))
            np.testing.assert_allclose(shares, np.tile(expected, (len(held), 1)), atol=0.005)


@pytest.mark.parametrize("kind", ("classes", "multilabel", "number"))
def test_rare_or_new_categories_are_near_the_floor_and_their_bits_finite(kind: Kind) -> None:
    y, _ = labels(kind)
    found, floor = controls.oracle(kind, y, np.arange(N), FOLD, 4), controls.floor(kind, y, FOLD, 4)
    bits = [metrics.evaluate(kind, y, prediction, FOLD)["cross-entropy"] for prediction in (found, floor)]
    assert bits[0] == pytest.approx(bits[1], abs=0.02)
    rare = controls.oracle(kind, y, np.arange(N) // 2, FOLD, 4)
    assert metrics.evaluate(kind, y, rare, FOLD)["cross-entropy"] < bits[1] + 0.35


def test_rows_of_a_negative_fold_are_only_learned_from() -> None:
    y, category = labels("classes")
    fold = np.where(FOLD == 0, 0, -1)
    found = np.asarray(controls.oracle("classes", y, category, fold, 4))
    expected = np.asarray(controls.oracle("classes", y, category, np.minimum(FOLD, 1), 4))
    np.testing.assert_array_equal(found[fold == 0], expected[fold == 0])
    assert np.isnan(found[fold == -1]).all()
