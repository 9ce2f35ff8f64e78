"""Laws and known answers of the Gram eigenbasis and the logistic probes, beside scikit-learn's."""

import pathlib
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from htc_probe.extract.errors import UserError
from htc_probe.probes import LogisticProbe, MultilabelProbe
from htc_probe.probes.solvers.basis import Basis
from htc_probe.probes.solvers.newton import Path
from htc_probe.probes.solvers.problems import Fit, Target, log_probabilities
from htc_probe.probes.solvers.products import half_copy

STRENGTHS = [10.0**power for power in (2, 1, 0, -1, -2, -3, -4)]


@pytest.fixture(autouse=True)
def quiet():
    """Nothing here may warn: no overflow, no division by zero, no lost convergence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def features(n: int, width: int, seed: int = 0) -> np.ndarray:
    """(n, width) float16 with a power-law spectrum, offsets, and one massive dimension."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, width)) * np.arange(1, width + 1) ** -0.5
    x = x @ np.linalg.qr(rng.standard_normal((width, width)))[0] + rng.standard_normal(width)
    x[:, 0] = 300 + 80 * x[:, 0]
    return x.astype(np.float16)


def labels(x: np.ndarray, classes: int, seed: int = 0) -> np.ndarray:
    """(n,) classes that are learnt in part; every one occurs."""
    rng = np.random.default_rng(seed)
    z = StandardScaler().fit_transform(x.astype(np.float64))
    z = z @ rng.standard_normal((x.shape[1], classes)) / x.shape[1] ** 0.5
    y = (z + rng.gumbel(size=z.shape)).argmax(1)
    y[:classes] = np.arange(classes)
    return y


def fit_one(x: np.ndarray, target: Target, strength: float, **options) -> tuple[Basis, Fit]:
    basis = Basis.fit(x)
    return basis, Path(basis.train, basis.eigenvalues, [target], **options).advance(strength)


def peer(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[LogisticRegression, StandardScaler, float]:
    """scikit-learn's fit in float64 to a tight tolerance, and its objective."""
    scaler = StandardScaler().fit(x.astype(np.float64))
    z = scaler.transform(x.astype(np.float64))
    model = LogisticRegression(C=1 / (strength * len(y)), tol=1e-9, max_iter=20_000).fit(z, y)
    loss = -model.predict_log_proba(z)[np.arange(len(y)), np.searchsorted(model.classes_, y)].mean()
    return model, scaler, loss + strength / 2 * (model.coef_**2).sum()


# ---- the basis


@pytest.mark.parametrize(("n", "width"), [(300, 40), (41, 40), (40, 40), (30, 200)])
def test_basis_is_the_standardised_features_in_orthonormal_coordinates(n, width):
    x = features(n, width)
    basis = Basis.fit(x)
    z = StandardScaler().fit_transform(x.astype(np.float64))
    r = basis.rotation.shape[1]
    assert r == min(n - 1, width)  # centred rows span one direction less
    assert torch.allclose(basis.rotation.T @ basis.rotation, torch.eye(r), atol=1e-5)
    assert np.allclose(basis.train.numpy() @ basis.rotation.numpy().T, z, atol=2e-4)
    assert torch.allclose(basis.rotate(x), basis.train, atol=1e-4)
    gram = basis.train.T @ basis.train / n
    assert torch.allclose(gram, basis.eigenvalues.diag(), atol=1e-5 * float(basis.eigenvalues[0]))
    assert (basis.eigenvalues.diff() <= 1e-6).all()
    assert np.isclose(float(basis.eigenvalues.sum()), width, rtol=1e-5)


def test_constant_features_have_no_say():
    x = features(50, 6)
    x[:, 2] = np.float16(0.1)
    basis = Basis.fit(x)
    assert basis.scaler.factor[2] == 0 and basis.rotation.shape == (6, 5)
    moved = x.copy()
    moved[:, 2] = 60000
    assert torch.equal(basis.rotate(moved), basis.rotate(x))


def test_features_that_never_vary_have_rank_zero():
    x = np.tile(features(1, 8), (20, 1))
    basis = Basis.fit(x)
    assert basis.train.shape == (20, 0) and basis.rotate(x[:3] * 2).shape == (3, 0)


def test_duplicated_features_count_once():
    x = features(100, 5)
    assert Basis.fit(np.concatenate([x, x, x], 1)).rotation.shape == (15, 5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(value):
    x = features(30, 4)
    basis = Basis.fit(x)
    x[17, 3] = value
    with pytest.raises(UserError, match=f"row 17, feature 3 is {value}"):
        Basis.fit(x)
    with pytest.raises(UserError, match=f"row 17, feature 3 is {value}"):
        basis.rotate(x)


def test_shapes_that_cannot_be_meant_are_refused():
    with pytest.raises(UserError, match="no row"):
        Basis.fit(np.zeros((0, 4)))
    with pytest.raises(UserError, match=r"\(4,\)"):
        Basis.fit(np.zeros(4))
    with pytest.raises(UserError, match="3 features; expected 4"):
        Basis.fit(features(9, 4)).rotate(np.zeros((2, 3)))


def test_features_of_any_type_and_order_in_memory():
    x = features(40, 6).astype(np.float32)
    same = Basis.fit(x).rotate(x)
    frozen = x.copy()
    frozen.flags.writeable = False
    for other in (np.asfortranarray(x), frozen, x.astype(">f4"), x.astype(np.float64), x[:, ::-1][:, ::-1]):
        assert torch.allclose(Basis.fit(other).rotate(other).abs(), same.abs(), atol=1e-3)


# ---- the same as scikit-learn


@pytest.mark.parametrize(("n", "width"), [(600, 40), (150, 300), (200, 1)])
@pytest.mark.parametrize("classes", [2, 3, 9])
def test_whole_paths_reach_scikit_learns_optimum(n, width, classes):
    x = features(n + 400, width)
    y = labels(x, classes)
    x, x_test, y = x[:n], x[n:], y[:n]
    basis = Basis.fit(x)
    path = Path(basis.train, basis.eigenvalues, [Target(y, classes)])
    agreement = []
    for strength in STRENGTHS:
        fit = path.advance(strength)
        model, scaler, best = peer(x, y, strength)
        assert abs(fit.objective[0] / best - 1) < 1e-5
        assert fit.objective[0] <= best * (1 + 1e-9) / (1 - fit.gap[0])
        logs = log_probabilities(fit, basis.rotate(x_test))[0]
        assert np.allclose(np.exp(logs).sum(1), 1)
        agreement.append((logs.argmax(1) == model.predict(scaler.transform(x_test.astype(np.float64)))).mean())
    assert np.mean(agreement) >= 0.999 and min(agreement) >= 0.995


def test_many_tasks_with_unknown_rows_on_pieces_of_the_rows_are_solved_as_if_alone():
    x = features(500, 30)
    rng = np.random.default_rng(1)
    sizes = [4, 2, 7, 2, 4, 3]
    ys = [labels(x, classes, seed) for seed, classes in enumerate(sizes)]
    for y in ys[1:4]:
        y[rng.random(500) < 0.3] = -1
    multi = np.stack([labels(x, 2, 20 + seed) for seed in range(3)], 1).astype(np.uint8)
    multi[rng.random(multi.shape) < 0.3] = 255
    targets = [Target(multi, 0), *(Target(y, classes) for y, classes in zip(ys, sizes, strict=True))]
    basis = Basis.fit(x)
    segments = [slice(0, 130), slice(300, 500)]
    train = np.r_[0:130, 300:500]
    path = Path(basis.train, basis.eigenvalues, targets, segments=segments)
    z = (x.astype(np.float64) - basis.scaler.mean) * basis.scaler.factor
    for strength in (1.0, 1e-2, 1e-3):
        fit = path.advance(strength)
        logs = log_probabilities(fit, basis.train)
        for task, y in enumerate(ys, 1):
            rows = train[y[train] >= 0]
            model = LogisticRegression(C=1 / (strength * len(rows)), tol=1e-9, max_iter=20_000).fit(z[rows], y[rows])
            assert np.allclose(np.exp(logs[task]), model.predict_proba(z), atol=5e-3)
            best = -model.predict_log_proba(z[rows])[np.arange(len(rows)), y[rows]].mean()
            best += strength / 2 * (model.coef_**2).sum()
            assert abs(fit.objective[task] / best - 1) < 1e-5
        alone = []
        for label in range(3):
            rows = train[multi[train, label] != 255]
            model = LogisticRegression(C=1 / (strength * len(rows)), tol=1e-9, max_iter=20_000)
            model.fit(z[rows], multi[rows, label])
            assert np.allclose(1 / (1 + np.exp(-logs[0][:, label])), model.predict_proba(z)[:, 1], atol=5e-3)
            loss = -model.predict_log_proba(z[rows])[np.arange(len(rows)), multi[rows, label]].mean()
            alone.append(loss + strength / 2 * (model.coef_**2).sum())
        assert abs(fit.objective[0] / np.mean(alone) - 1) < 1e-5


def test_a_copy_in_bfloat16_leads_to_the_same_optimum():
    x = features(600, 60)
    y = labels(x, 5)
    basis = Basis.fit(x)
    exact = Path(basis.train, basis.eigenvalues, [Target(y, 5)])
    coarse = Path(basis.train, basis.eigenvalues, [Target(y, 5)], half=basis.train.bfloat16())
    for strength in STRENGTHS:
        a, b = exact.advance(strength), coarse.advance(strength)
        assert abs(a.objective[0] / b.objective[0] - 1) < 5e-6


def test_a_copy_in_bfloat16_is_only_made_of_large_single_precision_rows():
    large = torch.ones(2**11, 2**11)
    assert half_copy(large.double()) is None
    assert half_copy(torch.ones(40, 0)) is half_copy(torch.ones(40, 8)) is half_copy(large, 2) is None
    half = half_copy(large)
    assert half is None or half.dtype == torch.bfloat16


def test_the_processor_decides_on_bfloat16_and_not_a_stopwatch(monkeypatch):
    """However long products take: two runs of one machine give the same bytes."""
    import time

    large = torch.ones(2**11, 2**11)
    chosen = []
    for clock in (lambda: 0.0, iter(range(10**6)).__next__):
        monkeypatch.setattr(time, "perf_counter", clock)
        chosen.append(half_copy(large) is None)
    for instruction, copies in (("avx512_bf16", True), ("amx_bf16", True), ("avx512_f", False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda of=instruction: {of: True})
        assert (half_copy(large) is not None) == copies
    assert chosen[0] == chosen[1]


# ---- laws


def test_a_rotation_of_the_features_changes_nothing():
    basis = Basis.fit(features(300, 20))
    y = labels(basis.train.numpy(), 4)
    turn = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0)))[0]
    turned = basis.train @ turn
    a = Path(basis.train, basis.eigenvalues, [Target(y, 4)]).advance(1e-2)
    b = Path(turned, turned.square().mean(0), [Target(y, 4)]).advance(1e-2)
    assert abs(a.objective[0] / b.objective[0] - 1) < 2e-6
    assert np.allclose(log_probabilities(a, basis.train)[0], log_probabilities(b, turned)[0], atol=1e-2)


def test_the_order_of_strengths_and_the_choice_of_tasks_do_not_change_the_optimum():
    x = features(400, 30)
    targets = [Target(labels(x, classes, classes), classes) for classes in (2, 3, 6, 6)]
    basis = Basis.fit(x)
    path = Path(basis.train, basis.eigenvalues, targets)
    whole = {strength: path.advance(strength) for strength in STRENGTHS}
    path = Path(basis.train, basis.eigenvalues, targets)
    for strength, tasks in ((1e-3, [3]), (1.0, [1, 3, 0]), (1e-4, [2, 0]), (10.0, [0, 1, 2, 3]), (1e-2, [])):
        fit = path.advance(strength, tasks)
        assert len(fit.columns) == len(fit.objective) == len(tasks)
        assert np.allclose(fit.objective, whole[strength].objective[tasks], rtol=1e-5)
        every = log_probabilities(whole[strength], basis.train)
        for some, task in zip(log_probabilities(fit, basis.train), tasks, strict=True):
            assert np.allclose(np.exp(some), np.exp(every[task]), atol=5e-3)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 2e-7])
@pytest.mark.parametrize(("n", "width"), [(400, 30), (60, 100)])
def test_certificates_hold_also_where_the_path_stops_early(tolerance, n, width):
    x = features(n, width)
    rng = np.random.default_rng(0)
    y = labels(x, 6)
    y[rng.random(n) < 0.2] = -1
    multi = (rng.random((n, 4)) < [0.02, 0.3, 0.5, 0.9]).astype(np.uint8)
    multi[:2] = [[0] * 4, [1] * 4]
    targets = [Target(y, 6), Target(labels(x, 2), 2), Target(multi, 0)]
    basis = Basis.fit(x)
    path = Path(basis.train, basis.eigenvalues, targets, tolerance=tolerance)
    tight = Path(basis.train.double(), basis.eigenvalues.double(), targets, tolerance=1e-13)
    for strength in STRENGTHS:
        fit, best = path.advance(strength), tight.advance(strength)
        assert (best.gap < 1e-7).all()
        assert (fit.objective * (1 - fit.gap) <= best.objective * (1 + 1e-12)).all()
        assert (fit.objective >= best.objective * (1 - 2e-7)).all()


def test_separable_classes_stay_finite_and_are_told_apart():
    x = np.concatenate([features(40, 100) + 5 * k for k in range(3)]).astype(np.float32)
    y = np.repeat(np.arange(3), 40)
    basis = Basis.fit(x)
    path = Path(basis.train, basis.eigenvalues, [Target(y, 3), Target((y > 0).astype(int), 2)])
    for strength in STRENGTHS:
        fit = path.advance(strength)
        assert fit.weights.isfinite().all() and fit.intercepts.isfinite().all() and (fit.gap < 1e-2).all()
    assert (log_probabilities(fit, basis.train)[0].argmax(1) == y).all()
    for strength in (1e-6, 1e-7, 1e-8):  # no share of next to nothing is proved, but that it is next to nothing
        fit = path.advance(strength)
        assert (fit.excess <= fit.objective).all() and (fit.excess < 1e-4).all()
    assert fit.gap.max() > 1


# ---- what has no finite optimum, or none at all


def test_without_features_the_class_frequencies_are_predicted():
    x = np.tile(features(1, 8), (10, 1))
    y = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, -1])
    multi = np.array([[1, 0, 255]] * 3 + [[0, 0, 1]] + [[255, 255, 0]] * 6, dtype=np.uint8)
    basis = Basis.fit(x)
    path = Path(basis.train, basis.eigenvalues, [Target(y, 3), Target((y > 0) * 1, 2), Target(multi, 0)])
    for strength in (1.0, 1e-4):
        fit = path.advance(strength)
        three, two, logits = log_probabilities(fit, basis.rotate(x[:4]))
        assert np.allclose(np.exp(three), [[3 / 9, 2 / 9, 4 / 9]] * 4)
        assert np.allclose(np.exp(two), [[4 / 10, 6 / 10]] * 4)
        assert np.allclose(logits[:, 0], np.log(3)) and np.allclose(logits[:, 2], -np.log(6))
        assert (logits[:, 1] == -np.inf).all()
        assert np.isclose(fit.objective[0], -(np.array([3, 2, 4]) / 9 * np.log(np.array([3, 2, 4]) / 9)).sum())
        assert (fit.gap < 1e-6).all()


def test_a_class_without_training_rows_gets_probability_zero_and_the_others_their_optimum():
    x = features(200, 10)
    y = labels(x, 4)
    basis = Basis.fit(x)
    seen = np.where(y == 2, -1, y)
    with_gap = Path(basis.train, basis.eigenvalues, [Target(seen, 4)]).advance(1e-2)
    closed = Path(basis.train, basis.eigenvalues, [Target(np.where(seen == 3, 2, seen), 3)]).advance(1e-2)
    logs, others = log_probabilities(with_gap, basis.train)[0], log_probabilities(closed, basis.train)[0]
    assert (logs[:, 2] == -np.inf).all() and with_gap.weights.isfinite().all()
    assert np.allclose(logs[:, [0, 1, 3]], others, atol=1e-4)
    assert np.isclose(with_gap.objective[0], closed.objective[0], rtol=1e-6)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_one_known_class_is_certain_and_none_leaves_all_equal(classes):
    x = features(20, 4)
    basis = Basis.fit(x)
    one, none = np.full(20, classes - 1), np.full(20, -1)
    one[3] = -1
    path = Path(basis.train, basis.eigenvalues, [Target(one, classes), Target(none, classes)])
    for strength in (1.0, 1e-3):
        fit = path.advance(strength)
        certain, equal = log_probabilities(fit, basis.train)
        assert np.array_equal(np.exp(certain), np.tile(np.arange(classes) == classes - 1, (20, 1)))
        assert np.allclose(np.exp(equal), 1 / classes)
        assert (fit.weights == 0).all() and (fit.objective == 0).all() and (fit.gap == 0).all()


def test_labels_known_with_one_value_or_not_at_all():
    x = features(30, 4)
    y = np.full((30, 4), 255, dtype=np.uint8)
    y[:10, 0], y[5:, 1] = 1, 0
    y[:, 3] = labels(x, 2)
    basis = Basis.fit(x)
    fit = Path(basis.train, basis.eigenvalues, [Target(y, 0)]).advance(0.1)
    logits = log_probabilities(fit, basis.train)[0]
    assert (logits[:, 0] == np.inf).all() and (logits[:, 1] == -np.inf).all() and (logits[:, 2] == 0).all()
    assert np.isfinite(logits[:, 3]).all() and np.isfinite(fit.objective).all()


def test_targets_that_do_not_fit_are_refused():
    basis = Basis.fit(features(20, 4))

    def path(y, classes):
        Path(basis.train, basis.eigenvalues, [Target(y, classes)])

    with pytest.raises(ValueError, match="19 rows, the features have 20"):
        path(np.zeros(19, dtype=int), 2)
    with pytest.raises(ValueError, match="class 3; expected less than 3"):
        path(np.arange(20) % 4, 3)
    with pytest.raises(ValueError, match="label 7; expected 0, 1 or 255"):
        path(np.full((20, 2), 7, dtype=np.uint8), 0)


# ---- the estimators


@parametrize_with_checks([LogisticProbe(), MultilabelProbe()])
def test_scikit_learns_own_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some checks provoke scikit-learn's own
        check(estimator)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 6])
def test_estimator_equals_a_standard_scaler_and_scikit_learns_regression(dtype, classes):
    x = features(400, 12)
    y = np.array([f"class {k}" for k in range(classes)])[labels(x, classes)]
    probe = LogisticProbe(0.01).fit(x[:300].astype(dtype), y[:300])
    model, scaler, best = peer(x[:300], y[:300], 0.01)
    z = scaler.transform(x.astype(np.float64))
    assert abs(probe.objective_ / best - 1) < 1e-5 and 0 < probe.gap_ < 1e-3
    assert np.allclose(probe.predict_proba(x.astype(dtype)), model.predict_proba(z), atol=2e-3)
    assert np.allclose(probe.coef_ * scaler.scale_, model.coef_, atol=2e-2)
    assert (probe.predict(x.astype(dtype)) == model.predict(z)).mean() >= 0.995


def test_multilabel_estimator_is_one_regression_a_label_over_its_known_rows():
    x = features(300, 12).astype(np.float64)
    y = np.stack([labels(x, 2, seed) for seed in range(3)], 1).astype(np.uint8)
    y[np.random.default_rng(0).random(y.shape) < 0.3] = 255
    probe = MultilabelProbe(0.01).fit(x, y)
    z = StandardScaler().fit_transform(x)
    for label in range(3):
        known = y[:, label] != 255
        model = LogisticRegression(C=1 / (0.01 * known.sum()), tol=1e-9, max_iter=10_000).fit(z[known], y[known, label])
        assert np.allclose(probe.predict_proba(x)[:, label], model.predict_proba(z)[:, 1], atol=2e-3)
    assert set(np.unique(probe.predict(x))) == {0, 1}
    assert np.array_equal(probe.predict(x), probe.decision_function(x) > 0)


def test_estimators_refuse_a_strength_that_is_none():
    for strength in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"strength={strength}; expected a number above 0"):
            LogisticProbe(strength).fit(features(20, 3), np.arange(20) % 2)


def test_rows_that_are_predicted_with_certainty_leave_nothing_to_invert() -> None:
    x = np.repeat(1e3 * np.eye(4, dtype=np.float32)[:3], 2, 0) + np.arange(6, dtype=np.float32)[:, None] / 10
    basis = Basis.fit(x)
    path = Path(basis.train, basis.eigenvalues, [Target(np.repeat(np.arange(3), 2), 3)])
    for strength in (1e-2, 1e-4, 1e-6):
        fit = path.advance(strength)
        (logs,) = log_probabilities(fit, basis.train)
        assert np.isfinite(fit.objective).all() and (logs.argmax(1) == np.repeat(np.arange(3), 2)).all()


@pytest.mark.parametrize("seed", range(6))
def test_the_weakest_strengths_of_separable_labels_stay_finite(seed):
    """Where rows are all but certain there is no curvature left to lead a step."""
    rng = np.random.default_rng(seed)
    x = np.repeat(rng.standard_normal((24, 2)), 40, 1) * (1 + 1e-6 * rng.standard_normal((24, 80)))
    basis = Basis.fit(x.astype(np.float32))
    tasks = [Target(rng.integers(0, 3, 24), 3), Target(rng.integers(0, 2, (24, 3)).astype(np.uint8), 0)]
    tasks += [Target((x[:, 0] > 0).astype(int), 2), Target(np.digitize(x[:, 0], [-0.5, 0.5]), 3)]
    path = Path(basis.train, basis.eigenvalues, tasks, tolerance=1e-5)
    last = np.full(len(tasks), np.inf)
    for strength in 10.0 ** np.arange(2, -8.5, -0.5):
        fit = path.advance(strength)
        assert np.isfinite(fit.objective).all() and np.isfinite(fit.gap).all()
        assert (fit.objective <= last * (1 + 1e-3) + 1e-6).all(), "a weaker penalty never costs more"
        last = fit.objective


def test_the_docs_example_runs_and_their_table_is_that_of_the_benchmarks():
    root = pathlib.Path(__file__).parents[1]
    section = (root / "docs/probing.md").read_text().split("## The estimators alone\n")[1].split("\n## ")[0]
    names: dict = {}
    exec(section.split("```python\n")[1].split("```")[0], names)
    accuracy = cross_val_score(names["probe"], names["x"], names["y"], groups=names["groups"], cv=GroupKFold(5)).mean()
    assert 0.5 < accuracy < 0.8 and names["probe"].gap_ < 1e-3

    def rows(text):
        return [
            [cell.split(" (")[0] for cell in line.strip("| ").split(" | ")]
            for line in text.splitlines()
            if "e-0" in line
        ]

    measured = (root / "benchmarks/README.md").read_text().split("## Probes\n")[1].split("\n## ")[0]
    told = rows(section)
    assert len(told) == 8 and told == [row[:6] for row in rows(measured)[:8]]
