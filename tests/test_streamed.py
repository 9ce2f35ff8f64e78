"""The protocol on streamed features says what the one in memory says."""

import numpy as np
import pytest

from htc_probe.probes.inputs import circular
from htc_probe.probes.inputs.labels import Labels
from htc_probe.probes.scores import controls, metrics
from htc_probe.probes.scores.metrics import Gaussian, VonMises
from htc_probe.probes.study import protocol, streamed

N, D = 900, 24


def planted(seed: int) -> tuple[np.ndarray, list[Labels], np.ndarray]:
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((N, 5))
    x = (factor @ rng.standard_normal((5, D)) + rng.standard_normal((N, D))).astype(np.float16)
    classes = (factor[:, :4] + 0.5 * rng.standard_normal((N, 4))).argmax(1)
    classes[rng.random(N) < 0.1] = -1
    labels = (factor[:, :3] + 0.5 * rng.standard_normal((N, 3)) > 0).astype(np.uint8)
    labels[rng.random((N, 3)) < 0.1] = 255
    number = factor[:, 4] + 0.3 * rng.standard_normal(N)
    number[rng.random(N) < 0.1] = np.nan
    tasks = [Labels("classes", classes, 4), Labels("multilabel", labels), Labels("number", number)]
    angle = np.where(np.isnan(number), np.nan, np.arctan2(factor[:, 0], factor[:, 4]) * 180 / np.pi % 360)
    tasks.append(Labels("circular", angle, period=360))
    return x, tasks, np.arange(N) // 3


@pytest.mark.parametrize("seed", [0, 1])
def test_streamed_probes_score_as_those_in_memory(seed: int) -> None:
    x, tasks, groups = planted(seed)
    test = groups % 4 == 0
    settings = protocol.Settings(seed=seed, memory=0.27)
    in_memory = protocol.hold_out(x, tasks, groups, ~test, test, settings)
    found = streamed.hold_out(x, tasks, groups, ~test, test, settings)
    for task, ours, theirs in zip(tasks, found, in_memory, strict=True):
        fold = np.zeros(int(test.sum()))
        a, b = (metrics.evaluate(task.kind, task.y[test], one.coded, fold) for one in (ours, theirs))
        assert a["cross-entropy"] == pytest.approx(b["cross-entropy"], abs=0.1 if task.kind == "circular" else 0.03)
        of_all = controls.floor(task.kind, task.y, np.where(test, 0, -1), task.n_classes, task.period)
        floor = metrics.take(of_all, np.flatnonzero(test))
        a, b = (metrics.evaluate(task.kind, task.y[test], one.prediction, fold, floor) for one in (ours, theirs))
        assert a[metrics.METRIC[task.kind]] == pytest.approx(b[metrics.METRIC[task.kind]], abs=0.06)
        if isinstance(ours.prediction, Gaussian):  # exact: the same strength, the same probe
            assert isinstance(theirs.prediction, Gaussian) and ours.strength == theirs.strength
            np.testing.assert_allclose(ours.prediction.mean, theirs.prediction.mean, atol=1e-4)
            np.testing.assert_allclose(ours.prediction.scale, theirs.prediction.scale, rtol=1e-4)
            continue
        if isinstance(ours.prediction, VonMises):  # by the squared error of sine and cosine
            assert isinstance(theirs.prediction, VonMises) and 0.05 < ours.strength / theirs.strength < 20
            off = circular.difference(ours.prediction.mean, theirs.prediction.mean, 360)
            assert np.median(np.abs(off)) < 3
            np.testing.assert_allclose(ours.prediction.concentration, theirs.prediction.concentration, rtol=0.4)
            continue
        if ours.strength == theirs.strength:
            np.testing.assert_allclose(ours.prediction, theirs.prediction, atol=5e-3)
        if ours.coded_strength == theirs.coded_strength:
            np.testing.assert_allclose(ours.coded, theirs.coded, atol=5e-3)
        # One inner fold, or three, may prefer neighbours.
        assert 0.05 < ours.coded_strength / theirs.coded_strength < 20
