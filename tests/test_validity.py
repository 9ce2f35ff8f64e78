"""What a probe's numbers mean: known signals come out as known, and nothing comes out of nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, special, stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from htc_probe.extract.store import Kind, Task, open_run
from htc_probe.probes.inputs import circular, folds
from htc_probe.probes.inputs.labels import Labels
from htc_probe.probes.scores import controls, intervals, metrics
from htc_probe.probes.scores.intervals import Sampled
from htc_probe.probes.scores.metrics import Gaussian, Prediction, Scores, VonMises
from htc_probe.probes.study import protocol
from htc_probe.probes.study.findings import probe
from htc_probe.probes.study.plan import make_plan
from htc_probe.probes.study.protocol import HeldOut, Settings, smoothed
from made.planted import make_run, quick

KINDS: tuple[Kind, ...] = ("classes", "multilabel", "number", "circular")
N, D = 240, 12


def planted(kind: Kind, seed: int = 0, noise: float = 0.3, n: int = N) -> tuple[np.ndarray, Labels]:
    """Features (n, D), and labels that a linear probe can read from them."""
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((n, 3))
    x = factor @ rng.standard_normal((3, D)) + noise * rng.standard_normal((n, D))
    if kind == "classes":
        return x, Labels(kind, factor.argmax(1), 3)
    if kind == "circular":
        return x, Labels(kind, circular.values_of(factor[:, :2], 24), period=24)
    return x, Labels(kind, (factor > 0).astype(np.uint8) if kind == "multilabel" else factor[:, 0])


def held_out(
    x: np.ndarray, tasks: list[Labels], fold: np.ndarray, groups: np.ndarray, settings: Settings
) -> list[list[HeldOut]]:
    """Of every fold, of every task."""
    return [protocol.hold_out(x, tasks, groups, fold != k, fold == k, settings) for k in range(fold.max() + 1)]


def joined(parts: list[HeldOut], fold: np.ndarray, *, coded: bool = False) -> Prediction:
    """The predictions of all rows, each by the probe that did not see it; `coded`: those that bits are counted with."""
    order = np.argsort(np.argsort(fold, kind="stable"))
    pieces = [one.coded if coded else one.prediction for one in parts]
    if isinstance(pieces[0], Gaussian):
        return Gaussian(*(np.concatenate(values)[order] for values in zip(*pieces, strict=True)))
    if isinstance(pieces[0], VonMises):
        mean, concentration = (np.concatenate([one[at] for one in pieces])[order] for at in (0, 1))
        return VonMises(mean, concentration, pieces[0].period)
    return np.concatenate(pieces)[order]


def cross_validate(
    x: np.ndarray, tasks: list[Labels], groups: np.ndarray | None = None, count: int = 4
) -> list[Scores]:
    groups = np.arange(len(x)) if groups is None else groups
    fold = folds.assign(tasks, groups, count, 0)
    parts = held_out(x, tasks, fold, groups, Settings())
    draws = intervals.resample_groups(groups.max() + 1, 0, 300)
    found = []
    for t, task in enumerate(tasks):
        floor = controls.floor(task.kind, task.y, fold, task.n_classes, task.period)
        scores, bits = (
            metrics.score(
                task.kind, task.y, joined([one[t] for one in parts], fold, coded=coded), floor, fold, groups, draws
            )
            for coded in (False, True)
        )
        of_bits = {name: bits.of[name] for name in ("cross-entropy", "V-information")}
        found.append(scores._replace(of=scores.of | of_bits))
    return found


def mixed(x: np.ndarray, seed: int = 0) -> np.ndarray:
    """The same information in other features: turned, stretched and moved."""
    rng = np.random.default_rng(seed)
    width = x.shape[1]
    return x @ (np.eye(width) + 0.3 * rng.standard_normal((width, width))) + 10 * rng.standard_normal(width)


# ---- planted signals of known strength


@pytest.mark.parametrize("distance", [0.0, 0.7, 2.0, 4.0])
def test_two_gaussian_classes_score_bayes_accuracy_and_their_mutual_information(distance: float) -> None:
    rng = np.random.default_rng(1)
    n = 3000
    y = rng.permutation(n) % 2
    x = rng.standard_normal((n, 8))
    x[:, 0] += distance * (y - 0.5)
    (score,) = cross_validate(mixed(x), [Labels("classes", y, 2)])

    def cost(at: float) -> float:  # bits left, at a point on the line between the means
        p = special.expit(distance * at)
        density = stats.norm.pdf(at, [distance / 2, -distance / 2]).mean()
        return density * stats.entropy([p, 1 - p], base=2)

    information = 1 - integrate.quad(cost, -10, 10)[0]
    assert score.of["top-1"].estimate == pytest.approx(stats.norm.cdf(distance / 2), abs=0.02)
    assert score.of["V-information"].estimate == pytest.approx(information, abs=0.03)


def test_four_gaussian_classes_are_read_as_well_as_by_their_exact_posterior() -> None:
    rng = np.random.default_rng(2)
    n, means = 4000, 1.2 * rng.standard_normal((4, 6))
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    y = rng.choice(4, n, p=shares)
    x = means[y] + rng.standard_normal((n, 6))
    (score,) = cross_validate(mixed(x), [Labels("classes", y, 4)])
    log_p = special.log_softmax(np.log(shares) - ((x[:, None] - means) ** 2).sum(2) / 2, axis=1)
    best = metrics.evaluate("classes", y, log_p.astype(np.float32), np.zeros(n))
    assert score.of["top-1"].estimate == pytest.approx(best["top-1"], abs=0.015)
    assert score.of["cross-entropy"].estimate == pytest.approx(best["cross-entropy"], abs=0.03)
    entropy = stats.entropy(shares, base=2)
    assert score.of["V-information"].estimate == pytest.approx(entropy - best["cross-entropy"], abs=0.04)


@pytest.mark.parametrize("r2", [0.0, 0.3, 0.9, 0.999])
def test_a_number_scores_its_r2_and_the_bits_that_go_with_it(r2: float) -> None:
    rng = np.random.default_rng(3)
    n = 2500
    x = rng.standard_normal((n, 8))
    w = rng.standard_normal(8)
    y = 7 + 3 * (np.sqrt(r2) * x @ w / np.linalg.norm(w) + np.sqrt(1 - r2) * rng.standard_normal(n))
    (score,) = cross_validate(mixed(x), [Labels("number", y)])
    reach = 0.05 * (1 - r2)
    assert score.of["R2"].estimate == pytest.approx(r2, abs=max(reach, 1e-4))
    assert score.of["V-information"].estimate == pytest.approx(-np.log2(1 - r2) / 2, abs=0.04)


def test_labels_score_the_sum_of_their_mutual_informations() -> None:
    """Each label is 1 with the logistic of a direction: what the logits tell, and chance decides."""
    rng = np.random.default_rng(4)
    n = 4000
    x = rng.standard_normal((n, 6))
    strength = np.array([0.5, 1.5, 5.0])
    y = (rng.random((n, 3)) < special.expit(x[:, :3] * strength)).astype(np.uint8)
    (score,) = cross_validate(mixed(x), [Labels("multilabel", y)])

    def left(at: float, a: float) -> float:
        p = special.expit(a * at)
        return stats.norm.pdf(at) * stats.entropy([p, 1 - p], base=2)

    information = sum(1 - integrate.quad(left, -10, 10, (a,))[0] for a in strength)
    assert score.of["V-information"].estimate == pytest.approx(information, abs=0.05)
    best = np.mean([metrics.evaluate("multilabel", y[:, [c]], x[:, [c]], np.zeros(n))["mAP"] for c in range(3)])
    assert score.of["mAP"].estimate == pytest.approx(best, abs=0.02)


def test_many_features_of_noise_cost_little() -> None:
    """More features than rows: the strength that inner folds choose keeps the probe near what is known."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((300, 600))
    y = rng.integers(0, 2, 300)
    noise, signal = cross_validate(
        x, [Labels("classes", y, 2), Labels("number", x[:, :300].sum(1) + rng.standard_normal(300))]
    )
    assert noise.of["V-information"].estimate > -0.1
    assert 0.1 < signal.of["R2"].estimate < 0.9


# ---- nothing from nothing


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_labels_score_at_the_floor(kind: Kind) -> None:
    x, task = planted(kind)
    (score,) = cross_validate(x, [task._replace(y=np.random.default_rng(1).permutation(task.y))])
    metric = metrics.METRIC[kind]
    low, high = intervals.interval(score.of[metric].draws, N)
    assert low <= score.floor[metric].estimate + 0.02 and score.floor[metric].estimate - 0.02 <= high
    assert -0.15 < score.of["V-information"].estimate < 0.05 * (3 if kind == "multilabel" else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_features_that_do_not_vary_score_the_floor(kind: Kind) -> None:
    """As layer 0, which is the same for every image."""
    _, task = planted(kind)
    x = np.tile(np.array([0.1, -7.3, 1e4, 0], dtype="float32"), (N, 1))  # whose mean does not round to itself
    (score,) = cross_validate(x, [task])
    metric = metrics.METRIC[kind]
    assert score.of[metric].estimate == pytest.approx(score.floor[metric].estimate, abs=1e-12)
    assert score.of["V-information"].estimate == pytest.approx(0, abs=0.02)


def test_a_leak_between_copies_is_closed_by_their_group() -> None:
    """Four photos of each thing, and labels that say nothing but which thing it is."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(60), 4)
    x = rng.standard_normal((60, 80))[groups] + 1e-3 * rng.standard_normal((N, 80))
    y = rng.permutation(np.arange(60) % 5)[groups]
    number = rng.standard_normal(60)[groups]
    many = rng.integers(0, 2, (60, 2))[groups].astype(np.uint8)
    tasks = [Labels("classes", y, 5), Labels("number", number), Labels("multilabel", many)]
    leaky = cross_validate(x, tasks)
    honest = cross_validate(x, tasks, groups)
    for task, open_, closed in zip(tasks, leaky, honest, strict=True):
        metric = metrics.METRIC[task.kind]
        floor = closed.floor[metric].estimate
        assert open_.of[metric].estimate > 0.7  # the trap is real
        low, high = intervals.interval(closed.of[metric].draws, 60)
        assert low < floor + 0.05 and closed.of[metric].estimate < floor + 0.15
        assert closed.n_groups == 60
        assert closed.of["V-information"].estimate < 0.05 < 0.5 < open_.of["V-information"].estimate


@pytest.mark.parametrize("settings", [Settings(), Settings(guided=True), Settings(match_dim=5)])
def test_no_label_and_no_image_of_a_held_out_group_matters_to_a_prediction(settings: Settings) -> None:
    tasks = [planted(kind)[1] for kind in KINDS]
    x, _ = planted("classes")
    groups = np.arange(N) // 3
    fold = folds.assign(tasks, groups, 4, 0)
    test = fold == 1
    row = np.flatnonzero(test)[5]
    other = x.copy()
    other[test & (np.arange(N) != row)] *= -100
    changed = []
    for task in tasks:
        y = task.y.copy()
        y[test] = np.roll(y[test], 7, axis=0)
        changed.append(task._replace(y=y))
    before = protocol.hold_out(x, tasks, groups, ~test, test, settings)
    after = protocol.hold_out(other, changed, groups, ~test, test, settings)
    at = int(np.flatnonzero(np.flatnonzero(test) == row)[0])
    for one, two in zip(before, after, strict=True):
        assert (one.strength, one.at_edge, one.gap) == (two.strength, two.at_edge, two.gap)
        a, b = (np.stack(p.prediction[:2], 1) if isinstance(p.prediction, tuple) else p.prediction for p in (one, two))
        np.testing.assert_array_equal(a[at], b[at])
        assert (a != b).any()  # the others did change


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_labels_are_left_out_of_fit_and_score(kind: Kind) -> None:
    x, task = planted(kind, n=400)
    hidden = np.random.default_rng(0).random(task.y.shape) < 0.4
    unknown = {"classes": -1, "multilabel": 255}.get(kind, np.nan)
    (score,) = cross_validate(x, [task._replace(y=np.where(hidden, unknown, task.y).astype(task.y.dtype))])
    assert score.of[metrics.METRIC[kind]].estimate > 0.9
    assert score.n == (~hidden.reshape(400, -1).all(1)).sum()
    # Hidden where they are positive: read as 0, they would teach the opposite.
    if kind == "multilabel":
        biased = (task.y == 1) & (np.random.default_rng(1).random(task.y.shape) < 0.7)
        found = protocol.refit(x, [Labels(kind, np.where(biased, 255, task.y).astype(np.uint8))], [0.01])[0]
        z = x @ found.weights + found.intercepts
        assert ((z > 0) == task.y).mean() > 0.85


# ---- what the settings do


@pytest.mark.parametrize("dims", [1, 4, None])
def test_probes_are_scikit_learns_on_principal_directions_of_standardised_features(dims: int | None) -> None:
    x = planted("classes", noise=1.0)[0] * np.geomspace(1, 100, D) + 5
    tasks = [planted(kind)[1] for kind in KINDS] + [Labels("classes", planted("classes")[1].y % 2, 2)]
    test = np.arange(N) % 4 == 0
    found = protocol.hold_out(x, tasks, np.arange(N), ~test, test, Settings(match_dim=dims))
    scaler = StandardScaler().fit(x[~test])
    axes = PCA(dims or D).fit(scaler.transform(x[~test]))
    train, new = (axes.transform(scaler.transform(x[rows])) for rows in (~test, test))
    n = len(train)
    for task, one in zip(tasks, found, strict=True):
        y = task.y[~test]
        logistic = LogisticRegression(C=1 / (one.strength * n), tol=1e-9, max_iter=5000)
        if isinstance(one.prediction, Gaussian):
            theirs = Ridge(alpha=one.strength * n).fit(train, y).predict(new)
            np.testing.assert_allclose(one.prediction.mean, theirs, atol=1e-8)
        elif isinstance(one.prediction, VonMises):
            ridge = Ridge(alpha=one.strength * n).fit(train, circular.vectors(y, 24))
            theirs = circular.values_of(ridge.predict(new), 24)
            np.testing.assert_allclose(circular.difference(one.prediction.mean, theirs, 24), 0, atol=1e-8)
        elif task.kind == "classes":
            theirs = smoothed(task, logistic.fit(train, y).predict_log_proba(new), n)
            np.testing.assert_allclose(np.exp(one.prediction), np.exp(theirs), atol=2e-3)
        else:
            columns = [logistic.fit(train, y[:, c]).decision_function(new) for c in range(3)]
            theirs = smoothed(task, np.stack(columns, 1), n)
            np.testing.assert_allclose(special.expit(one.prediction), special.expit(theirs), atol=2e-3)


def test_more_dimensions_than_there_are_change_nothing() -> None:
    tasks = [planted(kind)[1] for kind in KINDS]
    x = planted("classes")[0][:, [*range(6), 0, 1, 2]]  # rank 6
    test = np.arange(N) % 4 == 0
    plain, same, many, fewer = (
        protocol.hold_out(x, tasks, np.arange(N), ~test, test, Settings(match_dim=dims)) for dims in (None, 6, 500, 2)
    )
    for a, b, c, d in zip(plain, same, many, fewer, strict=True):
        first, *rest = (
            np.array(p.prediction[:2] if isinstance(p.prediction, tuple) else p.prediction) for p in (a, b, c, d)
        )
        np.testing.assert_array_equal(first, rest[0])
        np.testing.assert_array_equal(first, rest[1])
        assert (first != rest[2]).any()


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_guided_strengths_are_next_to_those_of_the_whole_grid(noise: float) -> None:
    x, kinds = planted("classes", noise=noise, n=400)
    tasks = [kinds, planted("multilabel", noise=noise, n=400)[1]]
    groups = np.arange(400)
    fold = folds.assign(tasks, groups, 3, 0)
    exact, guided = (held_out(x, tasks, fold, groups, Settings(guided=g)) for g in (False, True))
    for whole, near in zip(exact, guided, strict=True):
        for one, two in zip(whole, near, strict=True):
            assert abs(np.log10(one.strength / two.strength)) < 1.1
    for t, task in enumerate(tasks):
        bits = [
            metrics.evaluate(task.kind, task.y, joined([f[t] for f in parts], fold), fold)["cross-entropy"]
            for parts in (exact, guided)
        ]
        assert bits[1] == pytest.approx(bits[0], abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_units_of_features_do_not_matter(kind: Kind) -> None:
    x, task = planted(kind, noise=1.0)
    test = np.arange(N) % 4 == 0
    other = x * np.geomspace(1e-3, 1e3, D) - 3
    (one,), (two,) = (protocol.hold_out(each, [task], np.arange(N), ~test, test) for each in (x, other))
    a, b = (p.prediction[0] if isinstance(p.prediction, tuple) else p.prediction for p in (one, two))
    assert one.strength == two.strength
    np.testing.assert_allclose(a, b, atol=5e-3)


# ---- what a run's comparisons say

CATEGORY = Task("category", "semantic", "classes", tuple(f"kind {i}" for i in range(12)))
ANIMAL = Task("animal", "detail", "classes", ("no", "yes"))
LENGTH = Task("length", "detail", "number", unit="cm")


def test_a_lookup_table_has_no_selectivity(tmp_path: Path) -> None:
    """One column a type remembers any label of types; one number that is the label itself can do no such thing."""
    rng = np.random.default_rng(0)
    category = rng.permutation(N) % 12
    animal, length = (category < 6).astype(int), np.linspace(1, 5, 12)[category]
    reads = np.stack([animal, length], 1) + 0.1 * rng.standard_normal((N, 2))
    path = make_run(tmp_path / "run.h5", reads[:, None], {CATEGORY: category, ANIMAL: animal, LENGTH: length})
    table = tmp_path / "types.npy"
    np.save(table, np.eye(12)[category])
    with open_run(path) as run:
        plan = make_plan(run, quick("detail", "category", representations=("z_voco", str(table)), controls=True))
        found = probe(plan)
    rows = {(row.task, row.representation): row for row in found.rows}
    for task in ("animal", "length"):
        lookup, reader = rows[task, str(table)], rows[task, "z_voco"]
        assert lookup.estimate > 0.97 and reader.estimate > 0.97
        assert lookup.control == pytest.approx(1, abs=0.03)
        assert lookup.selectivity is not None and lookup.selectivity.estimate == pytest.approx(0, abs=0.03)
        assert reader.selectivity is not None and reader.selectivity.lower > 0.15
        assert any(warning.startswith(f"{task} from {table}: no better than knowing") for warning in found.warnings)
        (baseline,) = (one for one in found.baselines if one.task == task)
        assert baseline.score.estimate == pytest.approx(1, abs=0.01)  # knowing the category is knowing the label
    for representation in (str(table), "z_voco"):  # whose own task has no control but itself
        own = rows["category", representation]
        assert own.control is None and own.selectivity is None


def test_bits_beyond_a_part_are_there_only_where_the_other_part_knows_more(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 300
    factor = rng.standard_normal((n, 2))
    category, animal = np.digitize(factor[:, 0], [-0.5, 0.5]), (factor[:, 1] > 0).astype(int)
    knows = np.concatenate([factor, 0.3 * rng.standard_normal((n, 4))], 1) @ rng.standard_normal((6, 6))
    knows_little = np.concatenate([factor[:, :1], rng.standard_normal((n, 5))], 1) @ rng.standard_normal((6, 6))
    three = Task("three", "semantic", "classes", ("a", "b", "c"))
    path = make_run(
        tmp_path / "run.h5",
        knows[:, None],
        {three: category, ANIMAL: animal, LENGTH: factor[:, 1]},
        v_d=knows_little[:, None],
    )
    with open_run(path) as run:
        found = probe(make_plan(run, quick("semantic", "detail", representations=("z_voco", "v_d", "v_d+z_voco"))))
    bits = {(one.task, one.b): one for one in found.comparisons if one.metric == "bits"}
    for task in ("animal", "length"):
        assert bits[task, "v_d"].difference.lower > 0.4 and bits[task, "v_d"].p_holm < 1e-6
    for task in ("animal", "length", "three"):
        assert -0.2 < bits[task, "z_voco@0"].difference.estimate < 0.08  # v_d adds nothing; more features may cost
    assert bits["three", "v_d"].difference.estimate < 0.05  # what both know neither adds


def test_curves_rise_with_images_to_the_score_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 480
    x = rng.standard_normal((n, 1, 24))
    y = (x[:, 0] @ rng.standard_normal((24, 3)) + 0.5 * rng.standard_normal((n, 3))).argmax(1)
    three = Task("three", "semantic", "classes", ("a", "b", "c"))
    length = x[:, 0] @ rng.standard_normal(24) + rng.standard_normal(n)
    path = make_run(tmp_path / "run.h5", x, {three: y, LENGTH: length})
    with open_run(path) as run:
        plan = make_plan(run, quick("three", "length", curve=True))
        assert len(plan.cells) == 3 * 5 + 1
        found = probe(plan)
    for task in ("three", "length"):
        points = [one for one in found.curves if one.task == task]
        images = [one.images for one in points]
        assert images == sorted(images) and len(images) == 5
        np.testing.assert_allclose(images, [16, 32, 64, 128, 320], atol=2)
        scores = np.array([one.score.estimate for one in points], float)
        bits = np.array([one.bits.estimate for one in points], float)
        for values in (scores, bits):
            assert (np.diff(values) > -0.02).all() and values[-1] > values[0] + 0.2
        (row,) = (row for row in found.rows if row.task == task)
        assert (scores[-1], bits[-1]) == (row.estimate, row.bits)


# ---- intervals and tests, where the predictions come from fitted probes


@pytest.mark.slow
def test_intervals_of_fitted_probes_hold_what_the_probes_would_score_on_all_images() -> None:
    """500 labels that are logistic in the features, in ten worlds. Their chances are known, so what a probe would
    score on thousands of other images is known too. Where the scored images' labels are coins, no probe is better than
    another.
    """
    rng = np.random.default_rng(0)
    worlds, labels, train, scored, width = 10, 50, 120, 300, 6
    draws = intervals.resample_groups(scored, 0)
    each, flat = np.arange(scored), np.full((scored, 2), np.log(0.5), np.float32)
    inside: dict[str, list[bool]] = {}
    p_of_equals: list[float] = []

    def score(y: np.ndarray, log_p: np.ndarray) -> dict[str, Sampled]:
        return metrics.score("classes", y, log_p, flat, np.zeros(scored), each, draws).of

    for _ in range(worlds):
        n = train + labels * scored
        x = rng.standard_normal((n, width))
        views = [x + rng.standard_normal((n, width)) for _ in range(2)]
        chance_NT = special.expit(1.5 * x @ rng.standard_normal((width, labels)))
        y_NT = (rng.random(chance_NT.shape) < chance_NT).astype(int)
        tasks = [Labels("classes", y, 2) for y in y_NT.T]
        rows = np.arange(n) < train
        found = [protocol.hold_out(view, tasks, np.arange(n), rows, ~rows) for view in views]
        for t in range(labels):
            at = slice(t * scored, (t + 1) * scored)
            log_p = [np.asarray(of[t].prediction) for of in found]
            p = np.stack([1 - chance_NT[train:, t], chance_NT[train:, t]], 1)
            truth = {
                "top-1": [np.take_along_axis(p, one.argmax(1)[:, None], 1).mean() for one in log_p],
                "cross-entropy": [-(p * one).sum(1).mean() / np.log(2) for one in log_p],
            }
            scores = [score(y_NT[train:, t][at], one[at]) for one in log_p]
            for metric, values in truth.items():
                low, high = intervals.interval(scores[0][metric].draws, scored)
                inside.setdefault(metric, []).append(low <= values[0] <= high)
                told = intervals.difference(scores[0][metric], scores[1][metric], scored)
                inside.setdefault(f"{metric}, difference", []).append(told.lower <= values[0] - values[1] <= told.upper)
            a, b = (score(coins, one[at])["top-1"] for coins in [rng.integers(0, 2, scored)] for one in log_p)
            p_of_equals.append(intervals.difference(a, b, scored).p)
    for name, held in inside.items():
        assert len(held) == 500 and 0.93 <= np.mean(held) <= 0.97, (name, np.mean(held))
    for level, reach in [(0.05, 0.02), (0.1, 0.03), (0.3, 0.05)]:  # counts have few values, so no finer than that
        assert np.mean(np.array(p_of_equals) < level) == pytest.approx(level, abs=reach)
