"""Erasing a label: the laws of LEACE on the rows that were fitted, and how little is left on others."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

import htc_probe.probes
from htc_probe.extract.errors import UserError
from htc_probe.probes.inputs.labels import Labels
from htc_probe.probes.solvers.erasure import Eraser
from htc_probe.probes.study import protocol

N, WIDTH = 400, 9


def mixed(n: int = N, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """Features of different sizes that go together, away from 0."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, width)) @ rng.standard_normal((width, width)) * rng.uniform(0.1, 30, width) + 7


def planted(kind: str, x: np.ndarray, seed: int = 0) -> np.ndarray:
    """Labels that x tells, as a run has them, a fifth unknown."""
    rng = np.random.default_rng(seed)
    z = (x - x.mean(0)) / x.std(0)
    unknown = rng.random(len(x)) < 0.2
    if kind == "classes":
        return np.where(unknown, -1, (z[:, :4] + 0.5 * rng.standard_normal((len(x), 4))).argmax(1))
    if kind == "two":
        return np.where(unknown, -1, (z[:, 0] + 0.5 * rng.standard_normal(len(x)) > 0).astype(int))
    if kind == "multilabel":
        y = (z[:, :3] + 0.5 * rng.standard_normal((len(x), 3)) > 0).astype(np.uint8)
        return np.where(rng.random(y.shape) < 0.2, np.uint8(255), y)
    angle = np.arctan2(z[:, 0], z[:, 1]) * 180 / np.pi % 360
    return np.where(unknown, np.nan, angle if kind == "angle" else z[:, 0] - z[:, 1])


KINDS = ("classes", "two", "multilabel", "number", "angle")


def columns(kind: str, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows that have it, its values there) of everything that a linear probe may be asked of a label."""
    if kind == "multilabel":
        return [(y[:, c] != 255, y[y[:, c] != 255, c].astype(float)) for c in range(y.shape[1])]
    if kind in ("classes", "two"):
        return [(y >= 0, (y[y >= 0] == c).astype(float)) for c in range(y.max() + 1)]
    known = np.isfinite(y)
    turn = y[known] * np.pi / 180
    return [(known, one) for one in ((np.sin(turn), np.cos(turn)) if kind == "angle" else (y[known],))]


def erased(kind: str, x: np.ndarray, y: np.ndarray) -> tuple[Eraser, np.ndarray]:
    eraser = Eraser.fit(x, y, period=360 if kind == "angle" else None)
    return eraser, eraser.apply(x)


# ---- the laws, on the rows that were fitted


@pytest.mark.parametrize("shape", ["tall", "deficient", "wide", "constant"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_feature_goes_together_with_the_label(kind: str, shape: str) -> None:
    x = mixed()
    y = planted(kind, x)
    if shape == "deficient":  # some features are sums of others
        x = np.concatenate([x, x[:, :3] + x[:, 3:6], x[:, :2]], 1)
    elif shape == "wide":
        x = np.concatenate([x, np.random.default_rng(1).standard_normal((N, 2 * N))], 1)
    elif shape == "constant":
        x = np.concatenate([x, np.tile([[0.1, -3e4, 0.0]], (N, 1))], 1)
    _, left = erased(kind, x, y)
    for known, z in columns(kind, y):
        before, after = (np.abs(np.cov(one[known].T, z)[-1, :-1]) / (one[known].std(0) + 1e-9) for one in (x, left))
        assert before.max() > 0.1 * z.std() and after.max() < 1e-9 * z.std()


@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_probe_fitted_again_is_a_constant(kind: str) -> None:
    """By squared error and by cross-entropy, though nothing holds it back."""
    x = mixed()
    y = planted(kind, x)
    _, left = erased(kind, x, y)
    for known, z in columns(kind, y):
        assert LinearRegression().fit(x[known], z).score(x[known], z) > 0.15
        assert LinearRegression().fit(left[known], z).score(left[known], z) < 1e-9
    if kind in ("classes", "two"):
        known = y >= 0
        scaled = (left[known] - left[known].mean(0)) / (left[known].std(0) + 1e-12)
        said = LogisticRegression(C=1e6, max_iter=2000).fit(scaled, y[known]).predict_proba(scaled)
        np.testing.assert_allclose(said, np.tile(said.mean(0), (len(said), 1)), atol=1e-3)
        np.testing.assert_allclose(said.mean(0), np.bincount(y[known]) / known.sum(), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_way_to_erase_it_changes_the_rows_less(kind: str) -> None:
    """In any norm: Euclid's, Mahalanobis', or another."""
    rng = np.random.default_rng(3)
    x = mixed()
    y = planted(kind, x)
    used = np.any([known for known, _ in columns(kind, y)], axis=0)
    eraser, left = erased(kind, x, y)
    centred = x[used] - x[used].mean(0)
    together = np.stack([x[known].T @ (z - z.mean()) for known, z in columns(kind, y)], 1)
    together /= np.linalg.norm(together, axis=0)
    norms = [np.eye(WIDTH), np.linalg.inv(np.cov(centred.T)), *(np.cov(rng.standard_normal((WIDTH, 40))) for _ in "ab")]
    edits = [left[used] - x[used]]
    for white in (np.eye(WIDTH), *(rng.standard_normal((WIDTH, WIDTH)) for _ in range(20))):
        # Projections that take away what goes together with the label, whatever the space is stretched to before.
        inside, sizes, _ = np.linalg.svd(white @ together, full_matrices=False)
        inside = inside[:, sizes > 1e-9 * sizes[0]]
        projection = np.linalg.solve(white, inside @ inside.T @ white)
        assert np.abs(together - projection @ together).max() < 1e-9
        edits.append(-centred @ projection.T)
    # And what lies next to the best one: a step within all maps that erase.
    free = np.linalg.svd(together)[0][:, np.linalg.matrix_rank(together, tol=1e-9) :]
    for size in (1e-3, 1e-2):
        edits.append(edits[0] + size * centred @ free @ rng.standard_normal((free.shape[1], WIDTH)))
    for norm in norms:
        sizes = np.array([np.einsum("ni,ij,nj->", edit, norm, edit) for edit in edits])
        assert sizes[0] <= sizes[1:].min() * (1 + 1e-9)
    assert eraser.reads.shape[1] == len(np.linalg.svd(together)[1]) - (kind in ("classes", "two"))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_is_changed(kind: str) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([mixed(), np.tile([[0.1, -3e4]], (N, 1))], 1)
    y = planted(kind, x[:, :WIDTH])
    eraser, left = erased(kind, x, y)
    directions = {"classes": 3, "two": 1, "multilabel": 3, "number": 1, "angle": 2}[kind]
    assert eraser.writes.shape == (directions, WIDTH + 2)
    np.testing.assert_array_equal(left[:, WIDTH:], x[:, WIDTH:])
    used = np.any([known for known, _ in columns(kind, y)], axis=0)
    np.testing.assert_allclose(left[used].mean(0), x[used].mean(0), atol=1e-9)
    assert np.linalg.matrix_rank(left - x, tol=1e-6) == directions
    across = np.linalg.svd(eraser.reads)[0][:, directions:]
    moved = rng.standard_normal((N, across.shape[1])) @ across.T
    np.testing.assert_allclose(eraser.apply(x + moved), left + moved, atol=1e-7)
    np.testing.assert_allclose(eraser.apply(left), left, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_units_of_features_and_their_mixture_do_not_matter(kind: str) -> None:
    rng = np.random.default_rng(0)
    x = mixed()
    y = planted(kind, x)
    turned = rng.standard_normal((WIDTH, WIDTH)) * np.logspace(-4, 4, WIDTH)
    _, left = erased(kind, x, y)
    _, other = erased(kind, x @ turned + 5, y)
    np.testing.assert_allclose((other - 5) / np.abs(turned).sum(0), left @ turned / np.abs(turned).sum(0), atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_label_have_no_part_in_it(kind: str) -> None:
    x = mixed()
    y = planted(kind, x)
    nothing = {"multilabel": 255, "classes": -1, "two": -1}.get(kind, np.nan)
    _, left = erased(kind, x, y)
    for strange in (mixed(seed=5) * 1e3, np.full((N, WIDTH), np.inf)):
        more, named = np.concatenate([x, strange]), np.concatenate([y, np.full_like(y, nothing)])
        again = Eraser.fit(more, named, period=360 if kind == "angle" else None)
        np.testing.assert_allclose(again.apply(x), left, atol=1e-9)


# ---- on other rows


@pytest.mark.parametrize("kind", ["number", "classes"])
def test_new_probes_of_new_rows_are_near_their_floor(kind: str) -> None:
    """The label is written many times over: without what one probe reads, another one reads it as well."""
    rng = np.random.default_rng(0)
    n, width = 2400, 60
    hidden = rng.standard_normal((n, 3))
    noise = rng.standard_normal((n, width)) * rng.uniform(0.5, 6, width)
    x = (hidden @ rng.standard_normal((3, width)) + noise).astype(np.float32)
    number = hidden[:, 0] + 0.2 * rng.standard_normal(n)
    y = number if kind == "number" else hidden.argmax(1)
    labels = Labels("number", y) if kind == "number" else Labels("classes", y, 3)
    (solved,) = protocol.refit(x, [labels], [0.01])
    learned = np.arange(n) < 1600
    left = Eraser.fit(x[learned], y[learned]).apply(x).astype(np.float32)
    axes = np.linalg.svd(solved.weights - solved.weights.mean(1, keepdims=True) * (kind == "classes"))[0]
    axes = axes[:, : 1 if kind == "number" else 2]
    without_one = (x - (x - x.mean(0)) @ axes @ axes.T).astype(np.float32)

    def score(features: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
        ((found,),) = (protocol.hold_out(features, [labels], np.arange(n), train, test),)
        if kind == "number":
            return 1 - ((y[test] - found.prediction.mean) ** 2).sum() / ((y[test] - y[train].mean()) ** 2).sum()
        return float((found.prediction.argmax(1) == y[test]).mean() - np.bincount(y[test]).max() / test.sum())

    test = np.arange(n) >= 2000
    fresh = ~learned & ~test
    for train in (learned, fresh):  # the rows that were erased from, and rows that had no part in it
        assert score(x, train, test) > 0.3 and score(without_one, train, test) > 0.2
        assert score(left, train, test) < 0.06


def test_an_angle_needs_its_period() -> None:
    x = mixed(2000)
    y = planted("angle", x)
    known = np.isfinite(y)
    turn = np.cos(y[known] * np.pi / 180)
    as_number = Eraser.fit(x, y).apply(x)[known]
    as_angle = Eraser.fit(x, y, period=360).apply(x)[known]
    assert LinearRegression().fit(as_number, turn).score(as_number, turn) > 0.1
    assert LinearRegression().fit(as_angle, turn).score(as_angle, turn) < 1e-9
    moved = Eraser.fit(x, y - 720, period=360)  # the same angles
    np.testing.assert_allclose(moved.apply(x)[known], as_angle, atol=1e-8)


def test_what_no_row_tells_is_erased_by_doing_nothing() -> None:
    x = mixed()
    for labels in (np.zeros(N, int), np.full(N, 2.5), np.ones((N, 2), bool)):
        np.testing.assert_array_equal(Eraser.fit(x, labels).apply(x), x)
    same = np.tile(x[:1], (N, 1))
    np.testing.assert_array_equal(Eraser.fit(same, planted("classes", x)).apply(same), same)


def test_labels_of_a_run_and_plain_arrays_are_taken_alike() -> None:
    x = mixed()
    y = planted("two", x)
    known = y >= 0
    plain = Eraser.fit(x[known], y[known] > 0).apply(x)
    np.testing.assert_allclose(
        htc_probe.probes.Eraser.fit(x.astype(np.float32), y.astype(np.int32)).apply(x), plain, atol=1e-4
    )
    several = np.stack([x[:, 0], x[:, 1]], 1)
    left = Eraser.fit(x, several).apply(x)
    np.testing.assert_allclose(left[:, :2], np.tile(x[:, :2].mean(0), (N, 1)), atol=1e-9)


@pytest.mark.parametrize(
    ("labels", "period", "said"),
    [
        (np.zeros(N - 1, int), None, "and as many labels"),
        (np.full(N, -1), None, "0 of 400 rows have a label"),
        (np.full((N, 2), 255, np.uint8), None, "0 of 400 rows have a label"),
        (np.arange(N) % 3, 360, "angles, which are floats"),
        (np.arange(N) / 3, 0, "use one above 0"),
        (np.array(["a", "b"] * (N // 2)), None, "expected whole numbers"),
        (np.zeros((N, 2), int), None, "expected whole numbers"),
    ],
)
def test_labels_that_cannot_be_erased_are_refused(labels: np.ndarray, period: float | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Eraser.fit(mixed(), labels, period=period)


def test_features_that_do_not_fit_are_refused() -> None:
    x, y = mixed(), planted("number", mixed())
    with pytest.raises(UserError, match=r"features of shape \(3, 6\); this eraser takes \(rows, 9\)"):
        Eraser.fit(x, y).apply(np.ones((3, 6)))
    with pytest.raises(UserError, match="expected \\(rows, features\\)"):
        Eraser.fit(x[:, 0], y)
    row = int(np.flatnonzero(np.isfinite(y))[7])
    x[row, 2] = np.nan
    with pytest.raises(UserError, match=f"feature 2 is nan in row {row}"):
        Eraser.fit(x, y)
