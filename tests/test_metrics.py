"""Laws of the metrics: ours equal scikit-learn's and scipy's, a resample equals the repeated rows, bits add up."""

import itertools
import time
from collections import defaultdict

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as theirs

from htc_probe.extract.store import UNKNOWN, Kind
from htc_probe.probes.scores import controls, metrics
from htc_probe.probes.scores.intervals import resample_groups
from htc_probe.probes.scores.metrics import Gaussian, Prediction

KINDS: tuple[Kind, ...] = ("classes", "multilabel", "number")
N, K, C, FOLDS = 300, 4, 3, 3


def example(kind: Kind, seed: int = 0, n: int = N) -> tuple[np.ndarray, Prediction, Prediction, np.ndarray, np.ndarray]:
    """(y, a prediction with signal, the floor's, fold, groups); scores are rounded, so that some are equal."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, n // 3, n)
    fold = groups % FOLDS
    if kind == "classes":
        y = rng.integers(0, K, n)
        logits = np.round(1.5 * np.eye(K)[y] + rng.standard_normal((n, K)), 1)
        uniform = np.full((n, K), -np.log(K), np.float32)
        return y, stats_log_softmax(logits), uniform, fold, groups
    if kind == "multilabel":
        labels = rng.integers(0, 2, (n, C)).astype(np.uint8)
        logits = np.round(labels - 0.5 + rng.standard_normal((n, C)), 1)
        labels[:, 1:][rng.random((n, C - 1)) < 0.3] = UNKNOWN
        return labels, logits, np.full((n, C), 0.3), fold, groups
    values = np.round(rng.standard_normal(n), 1)
    guess = np.round(0.7 * values + 0.5 * rng.standard_normal(n), 1)
    return values, Gaussian(guess, rng.uniform(0.4, 0.8, n)), Gaussian(np.zeros(n), np.ones(n)), fold, groups


def stats_log_softmax(logits: np.ndarray) -> np.ndarray:
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)


def select(prediction: Prediction, rows: np.ndarray) -> Prediction:
    return Gaussian(*(v[rows] for v in prediction)) if isinstance(prediction, Gaussian) else prediction[rows]


def array(prediction: Prediction) -> np.ndarray:
    assert not isinstance(prediction, Gaussian)
    return prediction


# Against other implementations


def test_metrics_of_classes_are_those_of_scikit_learn() -> None:
    y, prediction, _, fold, _ = example("classes")
    guess = array(prediction).argmax(1)
    found = metrics.evaluate("classes", y, prediction, fold)
    assert found["top-1"] == pytest.approx(theirs.accuracy_score(y, guess))
    assert found["balanced accuracy"] == pytest.approx(theirs.balanced_accuracy_score(y, guess))
    shares = np.exp(array(prediction).astype(float))
    expected = theirs.log_loss(y, shares / shares.sum(1, keepdims=True)) / np.log(2)
    assert found["cross-entropy"] == pytest.approx(expected, rel=1e-5)


def test_metrics_of_numbers_are_those_of_scikit_learn_and_scipy() -> None:
    y, prediction, *_ = example("number")
    assert isinstance(prediction, Gaussian)
    found = metrics.evaluate("number", y, prediction, np.zeros(N))
    assert found["R2"] == pytest.approx(theirs.r2_score(y, prediction.mean))
    assert found["MAE"] == pytest.approx(theirs.mean_absolute_error(y, prediction.mean))
    assert found["Spearman"] == pytest.approx(stats.spearmanr(y, prediction.mean).statistic)
    density = stats.norm.logpdf(y, prediction.mean, prediction.scale)
    assert found["cross-entropy"] == pytest.approx(-density.mean() / np.log(2))


def test_mean_average_precision_is_that_of_scikit_learn_in_every_fold() -> None:
    y, prediction, _, fold, _ = example("multilabel")
    prediction = array(prediction) + 1e-6 * np.random.default_rng(0).random(y.shape)  # scikit-learn sees ties otherwise
    expected = [
        np.mean(
            [
                theirs.average_precision_score(y[rows, c], array(prediction)[rows, c])
                for rows in (np.flatnonzero((fold == k) & (y[:, c] != UNKNOWN)) for k in range(FOLDS))
            ]
        )
        for c in range(C)
    ]
    assert metrics.evaluate("multilabel", y, prediction, fold)["mAP"] == pytest.approx(np.mean(expected))


def test_bits_of_labels_are_summed_over_labels() -> None:
    y, prediction, _, fold, _ = example("multilabel")
    shares = 1 / (1 + np.exp(-array(prediction)))
    known = [y[:, c] != UNKNOWN for c in range(C)]
    losses = [theirs.log_loss(y[rows, c], shares[rows, c]) for c, rows in enumerate(known)]
    found = metrics.evaluate("multilabel", y, prediction, fold)["cross-entropy"]
    assert found == pytest.approx(sum(losses) / np.log(2))


def test_equal_scores_count_as_the_mean_over_all_their_orders() -> None:
    rng = np.random.default_rng(0)
    for blocks in ((6,), (1, 4, 2), (3, 1, 3), (2, 2, 2)):
        scores = np.repeat(np.arange(len(blocks))[::-1], blocks).astype(float)
        y = rng.integers(0, 2, len(scores)).astype(np.uint8)
        y[-1] = 1
        orders = [
            np.concatenate(rows)
            for rows in itertools.product(
                *(itertools.permutations(np.flatnonzero(scores == value)) for value in np.unique(scores)[::-1])
            )
        ]
        expected = np.mean([theirs.average_precision_score(y[rows], -np.arange(len(y))) for rows in orders])
        found = metrics.evaluate("multilabel", y[:, None], scores[:, None], 0 * y)["mAP"]
        assert found == pytest.approx(expected)


# Laws


def random_ranking(n: int, positives: int) -> float:
    """The expected average precision of a random order."""
    share = (positives - 1) / max(n - 1, 1)
    return share + (1 - share) * (1 / np.arange(1, n + 1)).sum() / n


def test_the_floor_of_average_precision_is_that_of_a_random_ranking_of_what_is_known_in_every_fold() -> None:
    rng = np.random.default_rng(0)
    n, fold = 100, np.arange(100) % FOLDS
    y = (rng.random((n, C)) < [0.05, 0.2, 0.6]).astype(np.uint8)
    y[fold == 1, 0] = 0  # a fold without a positive
    y[1, 1], y[rng.random((n, C)) < 0.2] = 1, UNKNOWN
    floor = controls.floor("multilabel", y, fold)
    expected = []
    for c in range(C):
        labels = [y[(fold == k) & (y[:, c] != UNKNOWN), c] for k in range(FOLDS)]
        expected.append(np.mean([random_ranking(len(of), of.sum()) for of in labels if of.any()]))
    told = metrics.evaluate("multilabel", y, floor, fold)["mAP"]
    assert told == pytest.approx(np.mean(expected))
    # No features, whoever asks: a constant probe, and a category that says nothing.
    assert metrics.evaluate("multilabel", y, np.zeros((n, C)), fold)["mAP"] == pytest.approx(told)
    alone = controls.oracle("multilabel", y, np.zeros(n), fold)
    assert metrics.evaluate("multilabel", y, alone, fold)["mAP"] == pytest.approx(told)
    noise = [metrics.evaluate("multilabel", y, rng.standard_normal((n, C)), fold)["mAP"] for _ in range(1000)]
    assert np.mean(noise) == pytest.approx(told, abs=4 * np.std(noise) / np.sqrt(1000))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("signal", (0, 1, 4))
def test_draws_lie_around_the_estimate(kind: Kind, signal: float) -> None:
    rng = np.random.default_rng(1)
    groups = np.arange(200) // 2
    draws = resample_groups(100, 0, 300)
    guess: Prediction
    if kind == "number":
        y: np.ndarray = rng.standard_normal(200)
        guess, floor = Gaussian(signal * y + rng.standard_normal(200), np.ones(200)), Gaussian(0 * y, np.ones(200))
    else:
        y = rng.choice(3, 200, p=(0.05, 0.15, 0.8))
        guess, floor = signal * np.eye(3)[y] + rng.standard_normal((200, 3)), np.log(np.full((200, 3), 1 / 3))
        if kind == "multilabel":
            y = np.eye(3, dtype=np.uint8)[y]
        else:
            guess = stats_log_softmax(guess)
    scores = metrics.score(kind, y, guess, floor, groups % 5, groups, draws)
    for found in (scores.of, scores.floor):
        for name, quantity in found.items():
            shift = np.nanmean(quantity.draws) - quantity.estimate
            assert abs(shift) <= 0.2 * np.nanstd(quantity.draws) + 1e-9, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_resample_is_the_rows_repeated(kind: Kind) -> None:
    y, prediction, floor, fold, groups = example(kind)
    draws_RG = resample_groups(groups.max() + 1, 3, 20)
    scores = metrics.score(kind, y, prediction, floor, fold, groups, draws_RG)
    repeated: dict[tuple[int, str], list[float]] = defaultdict(list)
    for counts_G in draws_RG:
        rows = np.repeat(np.arange(N), counts_G[groups])
        for found, given in ((scores.of, prediction), (scores.floor, floor)):
            expected = metrics.evaluate(kind, y[rows], select(given, rows), fold[rows])
            for name, value in expected.items():
                repeated[id(found), name].append(value)
    for found in (scores.of, scores.floor):
        for name, quantity in found.items():
            if name != "V-information":
                moved = quantity.draws - repeated[id(found), name]  # all alike
                np.testing.assert_allclose(moved, moved[0], atol=1e-12)
                assert moved[0] == pytest.approx(0, abs=1e-12) or name in ("balanced accuracy", "mAP", "R2", "Spearman")


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_counts_every_row_once_and_draws_of_one_each_equal_it(kind: Kind) -> None:
    y, prediction, floor, fold, groups = example(kind)
    scores = metrics.score(kind, y, prediction, floor, fold, groups, np.ones((2, groups.max() + 1), np.uint16))
    once = metrics.evaluate(kind, y, prediction, fold)
    assert set(scores.of) == set(scores.floor) == {*once, "V-information"}
    for name, quantity in scores.of.items():
        np.testing.assert_allclose(quantity.draws, quantity.estimate, rtol=1e-12)
        assert name == "V-information" or quantity.estimate == pytest.approx(once[name], rel=1e-12)
    assert (scores.n, scores.n_groups) == (N, len(np.unique(groups)))


@pytest.mark.parametrize("kind", KINDS)
def test_v_information_is_what_the_probe_saves_and_nothing_without_features(kind: Kind) -> None:
    y, prediction, floor, fold, groups = example(kind)
    draws = resample_groups(groups.max() + 1, 0, 50)
    scores = metrics.score(kind, y, prediction, floor, fold, groups, draws)
    saved = scores.floor["cross-entropy"].draws - scores.of["cross-entropy"].draws
    np.testing.assert_allclose(scores.of["V-information"].draws, saved, atol=1e-12)
    assert scores.of["V-information"].estimate > 0.1
    assert scores.floor["V-information"].estimate == 0
    without = metrics.score(kind, y, floor, floor, fold, groups, draws)
    assert without.of["V-information"].estimate == 0
    assert not without.of["V-information"].draws.any()


def test_sure_and_right_costs_nothing_and_knowing_nothing_costs_every_option() -> None:
    y = np.array([0, 1, 2, 3])
    sure = np.where(np.eye(4) == 1, 0.0, -np.inf)
    assert metrics.evaluate("classes", y, sure, np.zeros(4))["cross-entropy"] == 0
    uniform = np.full((4, 4), np.log(1 / 4))
    assert metrics.evaluate("classes", y, uniform, np.zeros(4))["cross-entropy"] == pytest.approx(2)
    two = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.uint8)
    assert metrics.evaluate("multilabel", two, np.zeros((4, 2)), np.zeros(4))["cross-entropy"] == pytest.approx(2)


def test_bits_of_a_number_do_not_depend_on_its_unit_and_tell_how_often_uncertainty_was_halved() -> None:
    rng = np.random.default_rng(0)
    signal, noise = rng.standard_normal(50_000), 0.5 * rng.standard_normal(50_000)
    y, ones, each = signal + noise, np.ones(50_000), np.arange(50_000)
    draws = np.empty((0, 50_000), np.uint16)
    found = {}
    for unit in (1, 1000):
        probe, floor = Gaussian(unit * signal, unit * 0.5 * ones), Gaussian(0 * y, unit * np.sqrt(1.25) * ones)
        found[unit] = metrics.score("number", unit * y, probe, floor, 0 * each, each, draws).of
    assert found[1]["V-information"].estimate == pytest.approx(found[1000]["V-information"].estimate)
    assert found[1]["V-information"].estimate == pytest.approx(-np.log2(1 - found[1]["R2"].estimate) / 2, abs=0.01)
    moved = found[1000]["cross-entropy"].estimate - found[1]["cross-entropy"].estimate
    assert moved == pytest.approx(np.log2(1000))


@pytest.mark.parametrize("kind", ("multilabel", "number"))
def test_what_ranks_is_not_compared_between_folds(kind: Kind) -> None:
    y, prediction, _, fold, _ = example(kind)
    before = metrics.evaluate(kind, y, prediction, fold)
    if isinstance(prediction, Gaussian):
        name, shifted = "Spearman", Gaussian(prediction.mean * (1 + fold) + 10 * fold, prediction.scale)
        after = metrics.evaluate(kind, y, shifted, fold)
    else:
        name = "mAP"
        after = metrics.evaluate(kind, y, prediction * (1 + fold[:, None]) + 10 * fold[:, None], fold)
    assert after[name] == pytest.approx(before[name], abs=1e-12)


def test_a_constant_score_ranks_nothing() -> None:
    y, _, floor, fold, _ = example("number")
    by_fold = Gaussian(fold.astype(float), np.ones(N))
    assert metrics.evaluate("number", y, by_fold, fold)["Spearman"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_label_do_not_count(kind: Kind) -> None:
    y, prediction, floor, fold, groups = example(kind)
    y = y.copy()
    gone = groups % 5 == 0
    y[gone] = {"classes": -1, "multilabel": UNKNOWN, "number": np.nan}[kind]
    draws = resample_groups(groups.max() + 1, 0, 10)
    scores = metrics.score(kind, y, prediction, floor, fold, groups, draws)
    rest = np.flatnonzero(~gone)
    expected = metrics.score(
        kind, y[rest], select(prediction, rest), select(floor, rest), fold[rest], groups[rest], draws
    )
    assert (scores.n, scores.n_groups) == (expected.n, expected.n_groups) == (len(rest), len(np.unique(groups[rest])))
    for name, quantity in expected.of.items():
        assert scores.of[name].estimate == quantity.estimate
        np.testing.assert_array_equal(scores.of[name].draws, quantity.draws)


def test_a_class_or_label_that_a_resample_lacks_is_left_out_of_its_mean() -> None:
    y, groups = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])
    right = np.log(np.array([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9], [0.1, 0.9]]))
    draws = np.array([[3, 0, 0], [0, 2, 1]], np.uint16)
    scores = metrics.score("classes", y, right, right, np.zeros(4), groups, draws)
    np.testing.assert_allclose(scores.of["balanced accuracy"].draws, [0.5, 1])
    labels, each = np.array([[1, 1], [0, 1], [0, 0]], np.uint8), np.arange(3)
    scores = metrics.score("multilabel", labels, 1.0 * labels, 1.0 * labels, np.zeros(3), each, draws)
    np.testing.assert_allclose(scores.of["mAP"].draws, [1, 1])
    nothing = metrics.score("multilabel", 0 * labels, 1.0 * labels, 1.0 * labels, np.zeros(3), each, draws)
    assert np.isnan(nothing.of["mAP"].estimate)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_row_bits_is_the_cross_entropy(kind: Kind) -> None:
    y, prediction, _, fold, _ = example(kind)
    bits = metrics.row_bits(kind, y, prediction)
    assert bits.shape == (N,)
    assert bits.mean() == pytest.approx(metrics.evaluate(kind, y, prediction, fold)["cross-entropy"])


# Time


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "n", "columns", "seconds"),
    [("classes", 10_000, 100, 2), ("number", 10_000, 1, 6), ("multilabel", 2_000, 40, 5)],
)
def test_a_thousand_resamples_take_about_a_second(kind: Kind, n: int, columns: int, seconds: float) -> None:
    rng = np.random.default_rng(0)
    fold, each = np.arange(n) % 5, np.arange(n)
    draws = resample_groups(n, 0)
    prediction: Prediction
    if kind == "number":
        y: np.ndarray = rng.standard_normal(n)
        prediction = Gaussian(rng.standard_normal(n), np.ones(n))
    else:
        y = rng.integers(0, columns, n) if kind == "classes" else rng.integers(0, 2, (n, columns)).astype(np.uint8)
        prediction = stats_log_softmax(rng.standard_normal((n, columns)))
    start = time.process_time()
    metrics.score(kind, y, prediction, prediction, fold, each, draws)
    assert time.process_time() - start < seconds
