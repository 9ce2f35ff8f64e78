"""Laws of the online code: whole groups in order, what every label costs, nothing read ahead, scikit-learn's probes."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from htc_probe.extract.store import Kind
from htc_probe.probes.inputs.labels import Labels
from htc_probe.probes.scores.metrics import Gaussian, Prediction, VonMises
from htc_probe.probes.study import codelength
from htc_probe.probes.study.codelength import blocks, online, probes_of

N = 240
EACH = np.arange(N)
RNG = np.random.default_rng(0)
STRENGTHS = (10.0, 0.1, 1e-3)


def constant(*predictions: Prediction) -> codelength.Predict:
    """One task; each candidate predicts the same for every row."""

    def predict(_: np.ndarray, test: np.ndarray) -> list[list[Prediction]]:
        return [[repeated(p, len(test)) for p in predictions]]

    def repeated(p: Prediction, m: int) -> Prediction:
        if isinstance(p, VonMises):
            return VonMises(np.full(m, p.mean), np.full(m, p.concentration), p.period)
        return Gaussian(*(np.full(m, v) for v in p)) if isinstance(p, Gaussian) else np.tile(p, (m, 1))

    return predict


def oracle(y: np.ndarray, n_classes: int) -> codelength.Predict:
    """Two candidates: knows nothing, knows everything."""
    uniform = np.full((len(y), n_classes), -np.log(n_classes))
    sure = np.where(np.eye(n_classes)[y] == 1, 0.0, -np.inf)
    return lambda train, test: [[uniform[test], sure[test]]]


# Blocks


def test_blocks_end_at_the_fractions_and_hold_every_row_once() -> None:
    found = blocks(np.arange(8000), seed=1)
    np.testing.assert_array_equal(
        np.cumsum([len(block) for block in found]), [8, 16, 32, 64, 128, 256, 500, 1000, 2000, 4000, 8000]
    )
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.arange(8000))
    assert not np.array_equal(found[0], blocks(np.arange(8000), seed=2)[0])
    np.testing.assert_array_equal(found[3], blocks(np.arange(8000), seed=1)[3])


def test_blocks_are_whole_groups_and_never_empty() -> None:
    groups = np.sort(RNG.integers(0, 30, 400))
    found = blocks(groups, seed=0)
    assert all(len(block) for block in found) and len(found) < len(codelength.FRACTIONS)
    seen = [set(groups[block]) for block in found]
    assert sum(map(len, seen)) == len(set(groups))
    for fraction, rows in ((0.25, found[:-2]), (0.5, found[:-1])):
        reached = sum(map(len, rows))
        assert fraction * 400 <= reached < fraction * 400 + np.bincount(groups).max()


# The code


def test_knowing_nothing_costs_the_uniform_code() -> None:
    y = RNG.integers(0, 5, N)
    (found,) = online([Labels("classes", y, 5)], EACH, constant(np.full(5, -np.log(5))), seed=0)
    assert found.bits == pytest.approx(N * np.log2(5)) == pytest.approx(found.uniform)
    assert found.compression == pytest.approx(1)
    np.testing.assert_allclose(found.row_bits, np.log2(5))


def test_the_code_is_the_first_block_uniform_and_then_what_the_probe_of_the_blocks_before_gave() -> None:
    y = RNG.integers(0, 3, N)
    log_p = np.log(RNG.dirichlet(np.ones(3), N))
    (found,) = online([Labels("classes", y, 3)], EACH, lambda train, test: [[log_p[test]]], seed=4)
    parts = blocks(EACH, seed=4)
    expected, t = len(parts[0]) * np.log2(3), len(parts[0])
    for block in parts[1:]:
        chance = np.exp(log_p[block, y[block]])
        expected -= np.log2(chance * t / (t + 1) + 1 / (t + 1) / 3).sum()
        t += len(block)
    assert found.bits == pytest.approx(expected) == pytest.approx(found.row_bits.sum())
    assert found.compression == pytest.approx(N * np.log2(3) / expected)


def test_every_probe_is_trained_on_all_rows_before_its_block_and_on_no_other() -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def predict(train: np.ndarray, test: np.ndarray) -> list[list[Prediction]]:
        seen.append((train, test))
        return [[np.full((len(test), 2), -np.log(2))]]

    online([Labels("classes", RNG.integers(0, 2, N), 2)], EACH, predict, seed=0)
    parts = blocks(EACH, seed=0)
    assert len(seen) == len(parts) - 1
    for number, (train, test) in enumerate(seen):
        np.testing.assert_array_equal(np.sort(train), np.sort(np.concatenate(parts[: number + 1])))
        np.testing.assert_array_equal(test, parts[number + 1])


def test_a_block_is_sent_with_the_strength_that_was_best_before_it() -> None:
    y = RNG.integers(0, 4, N)
    (found,) = online([Labels("classes", y, 4)], EACH, oracle(y, 4), seed=0)
    assert found.choices == (0,) + (1,) * (len(blocks(EACH, 0)) - 2)
    last = blocks(EACH, 0)[-1]
    changed = y.copy()
    changed[last] = (changed[last] + 1) % 4
    (other,) = online([Labels("classes", changed, 4)], EACH, oracle(y, 4), seed=0)
    assert other.choices == found.choices
    np.testing.assert_array_equal(np.delete(other.row_bits, last), np.delete(found.row_bits, last))
    assert other.bits > found.bits


def test_a_class_that_was_ruled_out_costs_finitely_many_bits_and_sureness_little() -> None:
    y = np.zeros(N, dtype=int)
    sure = np.array([0.0, -np.inf, -np.inf, -np.inf])
    (right,) = online([Labels("classes", y, 4)], EACH, constant(sure), seed=0)
    parts = blocks(EACH, 0)
    assert right.bits - 2 * len(parts[0]) < 1.5 * (len(parts) - 1)
    (wrong,) = online([Labels("classes", y + 1, 4)], EACH, constant(sure), seed=0)
    t = N - len(parts[-1])
    np.testing.assert_allclose(wrong.row_bits[parts[-1]], np.log2(4 * (t + 1)))


@pytest.mark.parametrize(
    ("kind", "values", "prediction"),
    [
        ("classes", np.arange(6), np.log(np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.05]))),
        ("multilabel", np.array([[0], [1]], np.uint8), np.array([1.7])),
        ("number", np.arange(40.0) ** 2, Gaussian(np.array(500.0), np.array(200.0))),
        ("number", np.linspace(0, 1020, 10_000), Gaussian(np.array(700.0), np.array(2.0))),
        ("circular", np.arange(40.0) ** 1.5 % 360, VonMises(np.array(350.0), np.array(3.0), 360)),
        ("circular", np.linspace(0, 360, 10_000, endpoint=False), VonMises(np.array(1.0), np.array(900.0), 360)),
        ("circular", np.linspace(0, 360, 10_000, endpoint=False), VonMises(np.array(1.0), np.array(0.0), 360)),
    ],
)
def test_all_that_can_be_sent_shares_a_probability_of_one(
    kind: Kind, values: np.ndarray, prediction: Prediction
) -> None:
    """Kraft's equality: no code is shorter than probability theory allows."""
    groups = np.repeat([0, 1], len(values))  # each a block that holds every value
    period = prediction.period if isinstance(prediction, VonMises) else 0.0
    task = Labels(kind, np.concatenate([values, values]), 6 if kind == "classes" else 0, period)
    (found,) = online([task], groups, constant(prediction), 0, (0.5, 1.0))
    first, last = blocks(groups, 0, (0.5, 1.0))
    options = min(len(values), codelength.LEVELS)
    one_a_cell = ((np.arange(options) + 0.5) * len(values) / options).astype(int)
    assert (2 ** -found.row_bits[last][one_a_cell]).sum() == pytest.approx(1)
    np.testing.assert_allclose(found.row_bits[first], np.log2(options))


def test_unknown_labels_cost_nothing() -> None:
    y = np.where(EACH % 3 == 0, -1, EACH % 2)
    values = np.where(EACH % 3 == 0, np.nan, EACH % 7)
    many = np.stack([EACH % 2, np.where(EACH % 3 == 0, 255, 1)], 1).astype(np.uint8)
    half, gauss = np.full(2, np.log(0.5)), Gaussian(np.array(3.0), np.array(2.0))
    turned = VonMises(np.array(3.0), np.array(2.0), 24.0)
    angle = Labels("circular", values, period=24.0)
    for task, prediction in ((Labels("classes", y, 2), half), (Labels("number", values), gauss), (angle, turned)):
        (found,) = online([task], EACH, constant(prediction), seed=0)
        assert not found.row_bits[::3].any() and np.delete(found.row_bits, np.s_[::3]).all()
        assert found.uniform == pytest.approx(160 * np.log2(2 if task.kind == "classes" else 7))
    (found,) = online([Labels("multilabel", many)], EACH, constant(np.zeros(2)), seed=0)
    assert found.uniform == found.bits == N + 160


# With probes


def planted(noise: float, seed: int = 0, n: int = N) -> tuple[np.ndarray, list[Labels]]:
    """Features (n, 6) and a task of each kind that can be read from them, some labels unknown."""
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((n, 3))
    x = factor @ rng.standard_normal((3, 6)) + noise * rng.standard_normal((n, 6))
    gone = rng.random(n) < 0.1
    many = (factor > 0.5).astype(np.uint8)
    many[gone, 1] = 255
    return x.astype(np.float32), [
        Labels("classes", np.where(gone, -1, factor.argmax(1)), 3),
        Labels("multilabel", many),
        Labels("number", np.where(gone, np.nan, factor[:, 0])),
        Labels("number", factor[:, 1]),
        Labels("circular", np.where(gone, np.nan, np.arctan2(factor[:, 1], factor[:, 2]) % (2 * np.pi)), 0, 2 * np.pi),
    ]


def code(x: np.ndarray, tasks: list[Labels], groups: np.ndarray = EACH, seed: int = 0) -> list[codelength.Codelength]:
    return online(tasks, groups, probes_of(x, tasks, groups, STRENGTHS), seed)


def test_what_is_easier_to_read_has_a_shorter_code() -> None:
    found = [code(*planted(noise)) for noise in (0.05, 1.0, 100.0)]
    for easy, hard, not_at_all in zip(*found, strict=True):
        assert easy.compression > 1.2 * hard.compression > 1.2 * not_at_all.compression
        assert np.isfinite(easy.row_bits).all() and easy.uniform == not_at_all.uniform
    for easy in found[0][:2]:
        assert easy.compression > 2.5


def test_the_classes_code_is_that_of_scikit_learns_probes() -> None:
    x, tasks = planted(0.5)
    y = tasks[0].y
    (found,) = code(x, tasks[:1], seed=3)
    sent, *later = blocks(EACH, 3)
    expected, before = np.log2(3) * (y[sent] >= 0).sum(), [0.0]
    for block in later:
        rows, others = sent[y[sent] >= 0], block[y[block] >= 0]
        bits = []
        for strength in STRENGTHS:
            chance = np.zeros((len(others), 3))
            seen = np.unique(y[rows])
            if len(seen) == 0:
                chance[:] = 1 / 3
            elif len(seen) == 1:
                chance[:, seen[0]] = 1
            else:
                scaler = StandardScaler().fit(x[sent])
                probe = LogisticRegression(C=1 / (strength * len(rows)), tol=1e-8, max_iter=10_000)
                probe.fit(scaler.transform(x[rows]), y[rows])
                chance[:, seen] = probe.predict_proba(scaler.transform(x[others]))
            weight = 1 / (len(rows) + 1)
            right = chance[np.arange(len(others)), y[others]]
            bits.append(-np.log2((1 - weight) * right + weight / 3).sum())
        expected += bits[int(np.argmin(before))]
        before = bits
        sent = np.concatenate([sent, block])
    assert found.bits == pytest.approx(expected, rel=1e-3)


def test_a_number_costs_the_bits_of_what_the_probe_leaves() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3000, 5))
    y = x[:, 0] + 0.1 * rng.standard_normal(3000)
    tasks = [Labels("number", y)]
    (found,) = online(tasks, np.arange(3000), probes_of(x, tasks, np.arange(3000), STRENGTHS), seed=0)
    last = blocks(np.arange(3000), 0)[-1]
    cell = (y.max() - y.min()) / codelength.LEVELS
    assert found.row_bits[last].mean() == pytest.approx(np.log2(0.1 * np.sqrt(2 * np.pi * np.e) / cell), abs=0.05)
    assert found.uniform == 3000 * 8


def test_tasks_side_by_side_are_coded_as_alone() -> None:
    x, tasks = planted(0.5)
    groups = EACH // 3
    together = code(x, tasks, groups)
    for task, found in zip(tasks, together, strict=True):
        (alone,) = code(x, [task], groups)
        np.testing.assert_allclose(found.row_bits, alone.row_bits, rtol=1e-2, atol=1e-2)
        assert found.bits == pytest.approx(alone.bits, rel=1e-4)


def test_classes_not_seen_yet_and_constant_labels_are_coded_too() -> None:
    x = RNG.standard_normal((60, 4))
    tasks = [Labels("classes", np.arange(60) % 20, 20), Labels("multilabel", np.zeros((60, 2), np.uint8))]
    tasks += [Labels("number", np.repeat([1.0, 2.0], [59, 1])), Labels("classes", np.full(60, -1), 2)]
    many, constant_label, rare, unknown = code(x, tasks, np.arange(60))
    assert all(np.isfinite(found.row_bits).all() for found in (many, constant_label, rare))
    assert constant_label.compression > 5 and unknown.bits == 0


def test_a_label_in_directions_of_little_variance_has_a_short_code_too() -> None:
    """Wherever ridge on the labels sent points, strengths are tried: nowhere else do weak ones pay."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((32, 32)))[0]
    signal = rng.standard_normal((900, 3))
    x = np.concatenate([rng.standard_normal((900, 29)), 0.003 * signal], 1) @ turn
    tasks = [Labels("classes", signal.argmax(1), 3), Labels("classes", rng.integers(0, 3, 900), 3)]
    read, nothing = online(tasks, np.arange(900), probes_of(x.astype(np.float32), tasks, np.arange(900)), seed=0)
    assert read.compression > 1.3 and nothing.compression < 1.05
