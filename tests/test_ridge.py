"""Laws of the ridge probes: every held-out prediction is that of a fit made without the block, by scikit-learn."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from htc_probe.probes import RidgeProbe
from htc_probe.probes.solvers import ridge
from htc_probe.probes.solvers.basis import Basis
from htc_probe.probes.solvers.problems import Target

STRENGTHS = (10.0, 0.3, 1e-2, 1e-5)
SHAPES = {"primal": (60, 7), "dual": (24, 50), "dual, all ranks": (24, 23)}


def planted(n: int, width: int, targets: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of very different scale, (n, width), and numbers (n, targets) that depend on them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, width)) @ rng.standard_normal((width, width)) * 10.0 ** rng.uniform(-2, 3, width)
    x += rng.normal(0, 50, width)
    weights = rng.standard_normal((width, targets)) / x.std(0)[:, None]
    return x, x @ weights + rng.standard_normal((n, targets)) + 5


def float64(x: np.ndarray) -> Basis:
    return Basis.fit(x, dtype=torch.float64)


def brute_force(x: np.ndarray, y: np.ndarray, strengths: Sequence[float], blocks: np.ndarray) -> np.ndarray:
    """(S, n, T) by one fit of scikit-learn a strength, block and target."""
    z = StandardScaler().fit_transform(x)
    out = np.full((len(strengths), *y.shape), np.nan)
    for target in range(y.shape[1]):
        known = ~np.isnan(y[:, target])
        for block in np.unique(blocks[known]):
            train, test = known & (blocks != block), known & (blocks == block)
            for s, strength in enumerate(strengths):
                if train.any():
                    model = Ridge(alpha=strength * train.sum(), solver="svd").fit(z[train], y[train, target])
                    out[s, test, target] = model.predict(z[test])
    return out


def blockings(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "one row": rng.permutation(n) * 3 - 7,
        "folds": rng.permutation(np.arange(n) % 5),
        "halves": np.arange(n) % 2,
        "groups": rng.integers(0, n // 3, n),
        "one large group": np.where(np.arange(n) < 0.8 * n, -1, np.arange(n)),
    }


@pytest.mark.parametrize("blocking", blockings(3))
@pytest.mark.parametrize("shape", SHAPES)
def test_held_out_predictions_are_those_of_fits_without_the_block(shape: str, blocking: str) -> None:
    n, width = SHAPES[shape]
    x, y = planted(n, width)
    blocks = blockings(n)[blocking]
    found = ridge.leave_out(float64(x), y, STRENGTHS, blocks)
    np.testing.assert_allclose(found, brute_force(x, y, STRENGTHS, blocks), rtol=0, atol=1e-8 * y.std())


@pytest.mark.parametrize("shape", SHAPES)
def test_every_target_is_fitted_on_the_rows_where_it_is_known(shape: str) -> None:
    n, width = SHAPES[shape]
    x, y = planted(n, width, targets=5)
    y[: n // 3, 1] = y[: n // 3, 2] = np.nan  # two targets share a mask, one is known almost nowhere
    y[np.arange(n) % 4 == 0, 3] = np.nan
    y[3:, 4] = np.nan
    blocks = np.arange(n) // 2
    basis = float64(x)
    found = ridge.leave_out(basis, y, STRENGTHS, blocks)
    np.testing.assert_allclose(found, brute_force(x, y, STRENGTHS, blocks), rtol=0, atol=1e-8 * np.nanstd(y))
    strengths = (1.0, 0.1, 1e-2, 1e-3, 1e-4)
    predicted = ridge.predict(ridge.fit(basis, y, strengths), basis.rotate(x))
    z = StandardScaler().fit_transform(x)
    for target, strength in enumerate(strengths):
        known = ~np.isnan(y[:, target])
        model = Ridge(alpha=strength * known.sum(), solver="svd").fit(z[known], y[known, target])
        np.testing.assert_allclose(predicted[:, target], model.predict(z), atol=1e-8 * np.nanstd(y))


def test_a_target_known_in_one_block_has_no_held_out_prediction() -> None:
    x, y = planted(20, 3, targets=1)
    y[5:] = np.nan
    held_out = ridge.leave_out(float64(x), y, STRENGTHS, np.arange(20) // 5)
    assert np.isnan(held_out).all()
    assert np.isnan(ridge.choose(ridge.residual_variance(held_out, y), STRENGTHS).residual_variance).all()


def test_constant_features_give_the_mean_of_the_other_rows() -> None:
    y = np.array([[1.0], [2.0], [6.0]])
    basis = float64(np.full((3, 4), 0.1))
    held_out = ridge.leave_out(basis, y, STRENGTHS, np.arange(3))
    np.testing.assert_allclose(held_out, np.broadcast_to([[4.0], [3.5], [1.5]], (4, 3, 1)))
    choice = ridge.choose(ridge.residual_variance(held_out, y), STRENGTHS)
    assert choice.strengths.tolist() == [10.0] and not choice.at_edge.any()
    fit = ridge.fit(basis, y, [1.0])
    np.testing.assert_allclose(ridge.predict(fit, basis.rotate(np.zeros((2, 4)))), 3.0)


@pytest.mark.parametrize("shape", [(60, 7), (16, 30)])
def test_copies_of_features_act_as_a_weaker_strength(shape: tuple[int, int]) -> None:
    x, y = planted(*shape)
    blocks = np.arange(len(x)) // 2
    twice = ridge.leave_out(float64(np.hstack([x, x])), y, [0.2], blocks)
    np.testing.assert_allclose(twice, ridge.leave_out(float64(x), y, [0.1], blocks), atol=1e-8 * y.std())


@pytest.mark.parametrize("width", [5, 60])
def test_rows_that_repeat_are_told_apart_by_block_alone(width: int) -> None:
    x, y = planted(15, width)
    x = np.vstack([x, x])
    y = np.vstack([y, y[::-1]])
    for blocks in (np.arange(30), np.arange(30) % 15, np.arange(30) // 10):
        found = ridge.leave_out(float64(x), y, STRENGTHS, blocks)
        np.testing.assert_allclose(found, brute_force(x, y, STRENGTHS, blocks), atol=1e-8 * y.std())


def test_a_feature_that_marks_one_row_leaves_it_to_the_others() -> None:
    x, y = planted(30, 4, targets=1)
    x = np.hstack([x, np.arange(30)[:, None] == 11])
    found = ridge.leave_out(float64(x), y, STRENGTHS, np.arange(30))
    np.testing.assert_allclose(found, brute_force(x, y, STRENGTHS, np.arange(30)), atol=1e-8 * y.std())


def test_units_of_features_and_targets_do_not_matter() -> None:
    x, y = planted(40, 6)
    blocks = np.arange(40) % 4
    found = ridge.leave_out(float64(x), y, STRENGTHS, blocks)
    other = ridge.leave_out(float64(x * 2.0 ** np.arange(-10, 2, 2) - 3), 1000 * y + 7, STRENGTHS, blocks)
    np.testing.assert_allclose(other, 1000 * found + 7, atol=1e-6)


def test_the_best_strength_and_its_variance_are_chosen_for_each_target() -> None:
    y = np.array([[0.0, 0.0], [0.0, 0.0], [np.nan, 0.0]])
    held_out = np.array([[[3.0, 2.0]] * 3, [[1.0, 1.0]] * 3, [[2.0, 0.5]] * 3])
    held_out[:, np.isnan(y)] = np.nan
    choice = ridge.choose(ridge.residual_variance(held_out, y), (1.0, 0.1, 0.01))
    assert choice.strengths.tolist() == [0.1, 0.01]
    assert choice.at_edge.tolist() == [False, True]
    assert choice.residual_variance.tolist() == [1.0, 0.25]
    np.testing.assert_array_equal(ridge.residual_variance(held_out, y), [[9, 4], [1, 1], [4, 0.25]])


def test_the_variance_left_is_that_of_the_noise() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 10))
    y = x[:, :1] * 3 + rng.normal(0, 0.5, (2000, 1))
    held_out = ridge.leave_out(float64(x), y, ridge.STRENGTHS, np.arange(2000))
    variance = ridge.residual_variance(held_out, y)
    assert ridge.choose(variance, ridge.STRENGTHS).residual_variance == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize("kind", ["classes", "binary", "multilabel"])
@pytest.mark.parametrize("noise", [0.5, 4.0])
def test_the_bracket_holds_the_best_logistic_strength(kind: str, noise: float) -> None:
    rng = np.random.default_rng(3)
    grid = tuple(10.0**power for power in (2, 1, 0, -1, -2, -3, -4))
    x = rng.standard_normal((600, 40)) * np.arange(1, 41) ** -0.5
    scores = x @ rng.standard_normal((40, 4)) + noise * rng.standard_normal((600, 4))
    classes = scores[:, :2].argmax(1) if kind == "binary" else scores.argmax(1)
    labels = (scores > 0).astype(np.uint8)
    target = {
        "classes": Target(classes, 4),
        "binary": Target(classes, 2),
        "multilabel": Target(np.where(rng.random(labels.shape) < 0.2, 255, labels).astype(np.uint8), 0),
    }[kind]
    (bracket,) = ridge.brackets(float64(x[:300]), [Target(target.y[:300], target.classes)], grid)
    assert bracket and set(bracket) <= set(grid) and len(bracket) <= 6

    z = StandardScaler().fit(x[:300]).transform(x)
    loss = []
    for strength in grid:
        total = 0.0
        for column in target.y.T if kind == "multilabel" else [target.y]:
            rows = np.flatnonzero(column[:300] != 255)
            model = LogisticRegression(C=1 / (strength * len(rows)), max_iter=2000).fit(z[rows], column[rows])
            test = 300 + np.flatnonzero(column[300:] != 255)
            total -= np.log(model.predict_proba(z[test])[np.arange(len(test)), column[test]]).mean()
        loss.append(total)
    assert grid[int(np.argmin(loss))] in bracket


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_unknown_classes_do_not_count_in_the_bracket(share: float) -> None:
    rng = np.random.default_rng(5)
    grid = tuple(10.0**power for power in (2, 1, 0, -1, -2, -3, -4))
    x = rng.standard_normal((900, 60))
    classes = (x @ rng.standard_normal((60, 3)) / 4 + rng.standard_normal((900, 3))).argmax(1)
    known = rng.random(900) > share
    (alone,) = ridge.brackets(float64(x[known]), [Target(classes[known], 3)], grid)
    (found,) = ridge.brackets(float64(x), [Target(np.where(known, classes, -1), 3)], grid)
    assert abs(grid.index(found[0]) - grid.index(alone[0])) <= 1


def test_labels_that_do_not_vary_have_no_bracket() -> None:
    basis, constant = float64(planted(20, 3)[0]), Target(np.zeros(20, dtype=int), 3)
    varied = Target(np.arange(20) % 3, 3)
    assert ridge.brackets(basis, [constant], (1.0, 0.1)) == [()]
    between = ridge.brackets(basis, [varied, constant, varied], (1.0, 0.1))
    assert between == [*ridge.brackets(basis, [varied], (1.0, 0.1)), (), between[0]]


def test_what_cannot_be_fitted_is_refused() -> None:
    x, y = planted(20, 3)
    basis, blocks = float64(x), np.arange(20)
    with pytest.raises(ValueError, match="must lie above 0"):
        ridge.leave_out(basis, y, (1.0, 0.0), blocks)
    with pytest.raises(ValueError, match="one a row"):
        ridge.leave_out(basis, y, (1.0,), blocks[1:])
    with pytest.raises(ValueError, match="expected \\(20, targets\\)"):
        ridge.leave_out(basis, y[:, 0], (1.0,), blocks)
    with pytest.raises(ValueError, match="target 1 is known on no row"):
        ridge.fit(basis, np.where([False, True, False], np.nan, y), [1.0] * 3)
    with pytest.raises(ValueError, match="infinite"):
        ridge.fit(basis, np.where([False, True, False], np.inf, y), [1.0] * 3)
    with pytest.raises(ValueError, match="one a target"):
        ridge.fit(basis, y, [1.0])


@pytest.mark.parametrize("shape", [(60, 7), (24, 50)])
def test_the_estimator_is_ridge_on_standardised_features(shape: tuple[int, int]) -> None:
    x, y = planted(*shape)
    new = planted(10, shape[1], seed=1)[0]
    reference = make_pipeline(StandardScaler(), Ridge(alpha=0.01 * len(x), solver="svd")).fit(x, y)
    probe = RidgeProbe(strengths=(0.01,)).fit(x, y)
    np.testing.assert_allclose(probe.predict(new), reference.predict(new), rtol=1e-8)
    one = RidgeProbe(strengths=(0.01,)).fit(x, y[:, 1])
    np.testing.assert_allclose(one.predict(new), reference.predict(new)[:, 1], rtol=1e-8)
    assert one.coef_.shape == (shape[1],) and probe.coef_.shape == (3, shape[1])


def test_the_estimator_chooses_by_leaving_one_out() -> None:
    x, y = planted(40, 6)
    probe = RidgeProbe(strengths=STRENGTHS).fit(x, y)
    error = np.square(brute_force(x, y, STRENGTHS, np.arange(40)) - y).mean(1)
    assert probe.strength_.tolist() == [STRENGTHS[best] for best in error.argmin(0)]


@parametrize_with_checks([RidgeProbe()])
def test_scikit_learns_own_checks(estimator: RidgeProbe, check) -> None:
    check(estimator)
