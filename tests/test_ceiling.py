"""A reader with a hidden layer: it finds what no linear probe can, and reads the rest as that one does."""

from __future__ import annotations

import numpy as np
import pytest

from htc_probe.extract.store import UNKNOWN
from htc_probe.probes.inputs import circular
from htc_probe.probes.inputs.labels import Labels
from htc_probe.probes.inputs.representations import Representation
from htc_probe.probes.scores.metrics import Gaussian, Prediction, VonMises, evaluate
from htc_probe.probes.study import ceiling, protocol
from htc_probe.probes.study.ceiling import Reader
from htc_probe.probes.study.protocol import Settings
from htc_probe.probes.study.work import Bench, Ceiling

N, D = 1000, 12
RNG = np.random.default_rng(0)
X = (RNG.standard_normal((N, D)) @ np.linalg.qr(RNG.standard_normal((D, D)))[0]).astype(np.float32)
Z = X @ np.linalg.qr(np.random.default_rng(1).standard_normal((D, D)))[0]
GROUPS = np.arange(N) // 2
TEST = GROUPS % 4 == 0


def read(task: Labels, seed: int = 0) -> tuple[Prediction, Prediction, Reader]:
    """(linear, with the layer, the reader)."""
    (linear,) = protocol.hold_out(X, [task], GROUPS, ~TEST, TEST, Settings(seed=seed))
    (found,) = ceiling.hold_out(X, [task], GROUPS, ~TEST, TEST, [linear.strength], Settings(seed=seed))
    return linear.prediction, linear.prediction if found.prediction is None else found.prediction, found


def top1(task: Labels, said: Prediction) -> float:
    return float((np.asarray(said).argmax(1) == task.y[TEST]).mean())


XOR = Labels("classes", (Z[:, 0] * Z[:, 1] > 0).astype(int), 2)


def test_xor_of_two_directions_is_found() -> None:
    linear, further, reader = read(XOR)
    assert top1(XOR, linear) < 0.6 and top1(XOR, further) > 0.9 and reader.epochs > 0
    np.testing.assert_allclose(np.exp(np.asarray(further)).sum(1), 1, atol=1e-5)


def test_products_and_turns_and_labels_are_found() -> None:
    number = Labels("number", (Z[:, 0] * Z[:, 1] * 40 + 300).astype(float))
    linear, further, _ = read(number)
    assert isinstance(linear, Gaussian) and isinstance(further, Gaussian)
    spread = np.var(number.y[TEST])
    assert np.mean((further.mean - number.y[TEST]) ** 2) < 0.2 * spread < np.mean((linear.mean - number.y[TEST]) ** 2)
    assert np.mean(np.abs(further.mean - number.y[TEST]) < 2 * further.scale) > 0.85
    turn = Labels("circular", np.degrees(np.arctan2(Z[:, 0] * Z[:, 1], Z[:, 2])) % 360, 0, 360.0)
    before, after, _ = read(turn)
    assert isinstance(before, VonMises) and isinstance(after, VonMises)
    wide, near = (circular.cosine(one.mean, turn.y[TEST], 360).mean() for one in (before, after))
    assert near > 0.9 > wide
    y = np.stack([Z[:, 0] * Z[:, 1] > 0, Z[:, 2] > 1], 1).astype(np.uint8)
    y[::5, 1] = UNKNOWN
    y[::50] = UNKNOWN
    both = Labels("multilabel", y)
    linear, further, _ = read(both)
    low, high = (evaluate("multilabel", y[TEST], one, np.zeros(TEST.sum()))["mAP"] for one in (linear, further))
    assert high > low + 0.1


@pytest.mark.parametrize("kind", ["classes", "number"])
def test_what_is_linear_is_read_as_well_as_by_the_linear_probe(kind: str) -> None:
    signal = Z[:, :5] + 0.5 * RNG.standard_normal((N, 5))
    if kind == "classes":
        task = Labels("classes", signal.argmax(1), 5)
        linear, further, _ = read(task)
        assert top1(task, further) > top1(task, linear) - 0.03
        return
    task = Labels("number", signal[:, 0].astype(float))
    linear, further, reader = read(task)
    missed = [float(np.mean((one.mean - task.y[TEST]) ** 2)) for one in (linear, further) if isinstance(one, Gaussian)]
    assert missed[1] < 1.05 * missed[0]


def test_noise_stays_noise_and_what_is_constant_or_unknown_stays_with_the_linear_probe() -> None:
    coin = Labels("classes", RNG.integers(0, 2, N), 2)
    assert 0.4 < top1(coin, read(coin)[1]) < 0.6
    unknown = Labels("number", np.where(TEST, Z[:, 0], np.nan).astype(float))
    equal = Labels("number", np.where(TEST, Z[:, 0], 3.0).astype(float))
    found = ceiling.hold_out(X, [unknown, equal], GROUPS, ~TEST, TEST, [1.0, 1.0], Settings())
    assert [one.prediction for one in found] == [None, None]


def test_a_class_that_some_inner_folds_lack_breaks_nothing() -> None:
    y = XOR.y.copy()
    y[np.flatnonzero(~TEST)[:2]] = 2  # one group of the third class
    further = np.asarray(read(Labels("classes", y, 3))[1])
    assert further.shape == (TEST.sum(), 3) and np.isfinite(further).all()


def test_it_follows_the_seed_and_sees_no_label_that_is_held_out() -> None:
    first, again, other = (np.asarray(read(XOR, seed)[1]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    changed = XOR._replace(y=np.where(TEST, 1 - XOR.y, XOR.y))
    np.testing.assert_array_equal(np.asarray(read(changed)[1]), first)


def test_a_cell_is_kept_as_it_was() -> None:
    tasks = [
        XOR,
        Labels("number", (Z[:, 0] * Z[:, 1]).astype(float)),
        Labels("classes", np.zeros(N, int), 2),
        Labels("circular", np.degrees(np.arctan2(Z[:, 0] * Z[:, 1], Z[:, 2])) % 360, 0, 360.0),
    ]
    cell = Ceiling(Representation("z_voco", 4), 0, ~TEST, TEST, np.ones(4))
    found = cell.compute(Bench(X, GROUPS, Settings(), None, ""), tasks)
    again = cell.unpack(cell.pack(found), tasks)
    assert [one[1:] for one in found] == [one[1:] for one in again]
    for one, other in zip(found, again, strict=True):
        assert type(one.prediction) is type(other.prediction)
        if one.prediction is not None and other.prediction is not None:
            np.testing.assert_array_equal(np.hstack(one.prediction), np.hstack(other.prediction))
