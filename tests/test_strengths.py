"""The search for a strength finds what the whole ladder holds, and chooses for each number by that number."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from htc_probe.probes.inputs.labels import Labels
from htc_probe.probes.scores import metrics
from htc_probe.probes.study import protocol
from htc_probe.probes.study.protocol import Settings
from htc_probe.probes.study.strengths import FIRST, LADDER, Search

CRITERIA = ("top-1", "cross-entropy")


def followed(search: Search, cost: dict[str, dict[int, float]]) -> Search:
    """The search on known costs by rung, to its end."""
    while rungs := search.missing():
        for rung in rungs:
            assert rung not in search.costs, "no rung is tried twice"
            search.costs[rung] = {name: cost[name][rung] for name in CRITERIA}
    return search


def curve(best: int, slope: float = 0.1) -> dict[int, float]:
    return {rung: 1 + slope * abs(rung - best) for rung in range(len(LADDER))}


@pytest.mark.parametrize("best", range(len(LADDER)))
def test_a_search_with_one_valley_ends_in_it_wherever_it_lies(best: int) -> None:
    search = followed(Search(FIRST), {name: curve(best) for name in CRITERIA})
    assert search.best("top-1") == search.best("cross-entropy") == best
    assert search.at_edge("top-1") == (best in (0, len(LADDER) - 1))


@pytest.mark.parametrize("low", FIRST)
@pytest.mark.parametrize("high", [LADDER.index(100.0), LADDER.index(1.0)])
def test_rungs_that_do_worse_hide_no_valley_behind_them(low: int, high: int) -> None:
    """A cost that falls at strong penalties, rises, and falls deeper at weak ones."""
    cost = {rung: min(1 + 0.1 * abs(rung - high), 0.8 + 0.5 * abs(rung - low)) for rung in range(len(LADDER))}
    assert followed(Search(FIRST), dict.fromkeys(CRITERIA, cost)).best("cross-entropy") == low


def test_a_valley_far_outside_is_found_where_ridge_points() -> None:
    cost = {rung: 0.3 if rung == 26 else 1 + 0.01 * rung for rung in range(len(LADDER))}
    assert followed(Search(FIRST), dict.fromkeys(CRITERIA, cost)).best("top-1") != 26
    search = followed(Search(FIRST, [25, 26, 27]), dict.fromkeys(CRITERIA, cost))
    assert search.best("top-1") == 26 and {25, 27} <= search.costs.keys()


def test_each_criterion_has_its_own_rung_and_ties_go_to_the_stronger() -> None:
    wrong = {rung: 0.2 if rung >= 12 else 0.5 for rung in range(len(LADDER))}
    search = followed(Search(FIRST), {"top-1": wrong, "cross-entropy": curve(17)})
    assert (search.best("top-1"), search.best("cross-entropy")) == (12, 17)
    assert max(search.costs) == FIRST[-1], "an end that is as good as the rung before it is not followed"


def test_what_leaves_nothing_to_gain_is_not_searched_on() -> None:
    perfect = {rung: 0.0 for rung in range(len(LADDER))}
    bits = {rung: 0.004 - 1e-4 * rung for rung in range(len(LADDER))}
    search = followed(Search(FIRST, [27]), {"top-1": perfect, "cross-entropy": bits})
    assert set(search.costs) == set(FIRST)


# ---- planted


def hidden(seed: int, classes: int, deviation: float) -> tuple[np.ndarray, np.ndarray]:
    """A label in directions of little variance beside loud ones of none of it."""
    n, nuisances = 900, 40
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    signal = rng.standard_normal((n, classes))
    x = rng.standard_normal((n, nuisances)) @ turn[:nuisances]
    return x + deviation * signal @ turn[nuisances : nuisances + classes], signal.argmax(1)


def top1(x: np.ndarray, y: np.ndarray, classes: int, settings: Settings = Settings()) -> float:  # noqa: B008 - frozen
    train = np.arange(len(x)) % 5 != 0
    (found,) = protocol.hold_out(x, [Labels("classes", y, classes)], np.arange(len(x)), train, ~train, settings)
    return float((np.asarray(found.prediction).argmax(1) == y[~train]).mean())


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("classes", "deviation"), [(6, 0.07), (2, 0.07), (6, 0.01), (3, 0.003)])
def test_a_label_in_directions_of_little_variance_is_found(classes: int, deviation: float, guided: bool) -> None:
    x, y = hidden(1, classes, deviation)
    train = np.arange(len(x)) % 5 != 0
    scaler = StandardScaler().fit(x[train])
    best = max(
        LogisticRegression(C=1 / (strength * train.sum()), max_iter=5000)
        .fit(scaler.transform(x[train]), y[train])
        .score(scaler.transform(x[~train]), y[~train])
        for strength in 10.0 ** np.arange(-8, 1, 2)
    )
    assert best > 0.7, "what scikit-learn's whole grid reads"
    assert top1(x, y, classes, Settings(guided=guided)) > best - 0.05


def test_rows_of_outliers_hide_no_label() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 20))
    y = (x[:, :4] + 0.3 * rng.standard_normal((600, 4))).argmax(1)
    clean = top1(x, y, 4)
    x[[1, 2, 3]] *= 1000
    assert clean > 0.8 and top1(x, y, 4) > clean - 0.12 > np.bincount(y).max() / len(y) + 0.3


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("deviation", "factor", "rows"), [(0.01, 300, 1), (0.03, 300, 3), (0.1, 1000, 3)])
def test_outliers_hide_no_label_in_directions_of_little_variance(
    deviation: float, factor: float, rows: int, guided: bool
) -> None:
    """Squared errors of rows far out would decide where ridge points; all else then looks constant."""
    rng = np.random.default_rng(0)
    hidden, n = rng.standard_normal((400, 3)), 400
    y = (hidden @ rng.standard_normal((3, 3)) * 2 + 0.3 * rng.gumbel(size=(n, 3))).argmax(1)
    x = np.concatenate([hidden * deviation, rng.standard_normal((n, 21))], 1)
    x = x @ np.linalg.qr(rng.standard_normal((24, 24)))[0]
    x[[3, 77, 201][:rows]] *= factor
    assert top1(x, y, 3, Settings(guided=guided)) > 0.75 > np.bincount(y).max() / n + 0.2


def test_top1_is_chosen_by_right_answers_as_scikit_learn_does_it() -> None:
    """By right answers, along half decades: what scikit-learn's own choice by accuracy finds is found."""
    rng = np.random.default_rng(0)
    gained = []
    for _ in range(3):
        n, classes = 800, 8
        centres = rng.standard_normal((classes, 128))
        y = rng.integers(0, classes, n)
        x = 0.28 * centres[y] + rng.standard_normal((n, 128))
        train = np.arange(n) % 4 != 0
        (found,) = protocol.hold_out(x, [Labels("classes", y, classes)], np.arange(n), train, ~train)
        ours = float((np.asarray(found.prediction).argmax(1) == y[~train]).mean())
        z = StandardScaler().fit(x[train])
        theirs = LogisticRegressionCV(
            Cs=1 / (train.sum() * np.array(LADDER)[list(FIRST)]),
            cv=3,
            scoring="accuracy",
            max_iter=2000,
            use_legacy_attributes=False,
            l1_ratios=(0,),
        ).fit(z.transform(x[train]), y[train])
        gained.append(ours - theirs.score(z.transform(x[~train]), y[~train]))
        assert {found.strength, found.coded_strength} <= set(LADDER)
    assert np.mean(gained) > -0.02


@pytest.mark.parametrize("kind", ["classes", "multilabel"])
def test_costs_are_those_of_the_numbers_that_are_reported(kind: str) -> None:
    rng = np.random.default_rng(0)
    n = 90
    if kind == "classes":
        task = Labels("classes", rng.integers(-1, 4, n), 4)
        values = rng.standard_normal((n, 4))
        values -= np.log(np.exp(values).sum(1, keepdims=True))
    else:
        task = Labels("multilabel", rng.choice([0, 1, 255], (n, 3), p=[0.6, 0.3, 0.1]).astype(np.uint8))
        values = np.round(rng.standard_normal((n, 3)), 1)  # with ties
    parts = [slice(0, 30), slice(30, 60), slice(60, 90)]
    found = protocol.costs(task, parts, [values[part] for part in parts])
    bits = metrics.row_bits(task.kind, task.y, values)
    if kind == "classes":
        known = task.y >= 0
        assert found["top-1"] == pytest.approx((values.argmax(1) != task.y)[known].mean())
        assert found["cross-entropy"] == pytest.approx(bits[known].mean())
        return
    by_label = []
    for label in range(3):
        of_parts = []
        for part in parts:
            known = task.y[part, label] != 255
            of_parts.append(average_precision_score(task.y[part, label][known], values[part, label][known]))
        by_label.append(np.mean(of_parts))
    assert found["mAP"] == pytest.approx(1 - np.mean(by_label))
