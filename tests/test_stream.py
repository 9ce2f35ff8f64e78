"""Laws of streamed probes: they are those of the same rows in memory, and memory does not grow with the rows."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from htc_probe.extract.errors import UserError
from htc_probe.probes.solvers import newton, ridge
from htc_probe.probes.solvers import survey as stream
from htc_probe.probes.solvers.basis import Basis
from htc_probe.probes.solvers.lbfgs import StreamedPath
from htc_probe.probes.solvers.problems import Target, log_probabilities

N, D, FOLDS = 1500, 24, 4
MB = 2**20


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """(N, D) float16: a decaying spectrum, heavy tails, a massive feature and a constant one."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((N, D)) * np.arange(1, D + 1) ** -0.5) @ np.linalg.qr(rng.standard_normal((D, D)))[0]
    x *= np.exp(0.3 * rng.standard_normal((N, 1)))
    x[:, 3] = 1000 + 20 * x[:, 3]
    x[:, 7] = 0.1
    return x.astype(np.float16)


def standardised(rows: np.ndarray, training: np.ndarray | slice = slice(None)) -> np.ndarray:
    deviation = rows[training].std(0, dtype=float)
    return (rows - rows[training].mean(0, dtype=float)) / np.where(np.ptp(rows, 0) > 0, deviation, np.inf)


@pytest.fixture(scope="module")
def targets(rows: np.ndarray) -> list[Target]:
    rng = np.random.default_rng(1)
    z = standardised(rows)
    scores = z @ rng.standard_normal((D, 12)) / 2 + rng.gumbel(size=(N, 12))
    labels = (scores[:, :4] > [0, 0.5, 1.5, 3]).astype(np.uint8)
    return [
        Target(scores[:, :2].argmax(1), 2),
        Target(scores[:, 2:8].argmax(1), 6),
        Target(np.where(rng.random(N) < 0.3, -1, scores[:, 8:].argmax(1)), 5),  # the last class has no row
        Target(np.where(rng.random(labels.shape) < 0.4, 255, labels).astype(np.uint8), 0),
    ]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles, and a sample of a quarter of the rows."""
    monkeypatch.setattr(stream, "_TILE", (128, 200))
    monkeypatch.setattr(stream, "_SAMPLE", (64, 16))


def folds(n: int = N) -> np.ndarray:
    return np.random.default_rng(2).permutation(np.arange(n) % FOLDS)


def test_tiles_are_the_rows_in_order(rows: np.ndarray) -> None:
    found = list(stream.tiles(rows, 400))
    assert [first for first, _ in found] == [0, 400, 800, 1200]
    np.testing.assert_array_equal(np.concatenate([tile for _, tile in found]), rows)


def test_an_error_while_reading_reaches_the_one_who_asked() -> None:
    class Torn:
        shape = (1000, 3)

        def __getitem__(self, rows: slice) -> np.ndarray:
            if rows.start >= 600:
                raise OSError("checksum")
            return np.zeros((rows.stop - rows.start, 3))

    with pytest.raises(OSError, match="checksum"):
        list(stream.tiles(Torn(), 100))
    next(iter(stream.tiles(Torn(), 100)))  # and one who leaves early leaves no reader behind


@pytest.mark.usefixtures("small_tiles")
def test_the_scaler_and_the_basis_are_those_of_all_training_rows(rows: np.ndarray) -> None:
    folds_n = folds()
    folds_n[::7] = -1
    survey = stream.survey(rows, folds_n)
    basis = Basis.fit(rows[folds_n >= 0].astype(np.float64), dtype=torch.float64)
    np.testing.assert_allclose(survey.scaler.mean, basis.scaler.mean, rtol=1e-12)
    np.testing.assert_allclose(survey.scaler.factor, basis.scaler.factor, rtol=1e-9)
    assert survey.scaler.factor[7] == 0 and survey.rotation.shape == (D, D - 1)
    np.testing.assert_allclose(survey.eigenvalues, basis.eigenvalues, rtol=1e-6)
    turned = torch.cat(list(survey.standardised(rows))) @ survey.rotation
    np.testing.assert_allclose(turned.square()[folds_n >= 0].mean(0), basis.eigenvalues, rtol=1e-5)
    np.testing.assert_allclose(survey.sample.float(), turned[survey.rows], rtol=0.01, atol=0.01)
    assert (folds_n[survey.rows] >= 0).all() and (np.diff(survey.rows) > 0).all()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("grams", ["one pass", "a pass a mask"])
def test_ridge_is_exact_for_every_fold_strength_and_mask(
    rows: np.ndarray, grams: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    z = standardised(rows)
    y = 1000 + z @ rng.standard_normal((D, 4)) + 3 * rng.standard_normal((N, 4))
    y[: N // 2, 1] = np.nan
    y[rng.random(N) < 0.9, 3] = np.nan
    folds_n = folds()
    folds_n[:100] = -1
    if grams == "a pass a mask":
        full = stream.plan
        monkeypatch.setattr(stream, "plan", lambda *a: full(*a)._replace(grams=FOLDS))
    strengths = (1.0, 1e-2, 1e-5)
    survey = stream.survey(rows, folds_n, y, strengths=strengths)

    training = folds_n >= 0
    z = standardised(rows, training)
    predicted = np.concatenate([ridge.predict(survey.flat(survey.numbers), x) for x in survey.standardised(rows)])
    for target in range(4):
        known = training & ~np.isnan(y[:, target])
        for s, strength in enumerate(strengths):
            error = 0.0
            for fold in range(FOLDS):
                train, test = known & (folds_n != fold), known & (folds_n == fold)
                model = Ridge(alpha=strength * train.sum(), solver="svd").fit(z[train], y[train, target])
                error += np.square(model.predict(z[test]) - y[test, target]).sum()
            assert survey.variance[s, target] == pytest.approx(error / known.sum(), rel=1e-8)
        best = strengths[survey.variance[:, target].argmin()]
        assert survey.choice.strengths[target] == best
        model = Ridge(alpha=best * known.sum(), solver="svd").fit(z[known], y[known, target])
        np.testing.assert_allclose(predicted[:, target], model.predict(z), rtol=1e-6)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("held_out", [None, 2])
def test_logistic_probes_are_those_in_memory(rows: np.ndarray, targets: list[Target], held_out: int | None) -> None:
    training = np.ones(N, dtype=bool) if held_out is None else folds() != held_out
    survey = stream.survey(rows, folds(), labels=targets)
    assert len(survey.rows) < N / 3
    path = StreamedPath(rows, survey, targets, training)
    x = torch.cat(list(survey.standardised(rows))).double() @ survey.rotation.double()
    memory = newton.Path(
        x[torch.from_numpy(training)],
        survey.eigenvalues.double(),
        [Target(target.y[training], target.classes) for target in targets],
        tolerance=1e-12,
    )
    for strength in (10.0, 0.1, 1e-2, 1e-3):
        found, exact = path.advance(strength), memory.advance(strength)
        assert found.columns == exact.columns and found.classes == exact.classes
        np.testing.assert_allclose(found.objective, exact.objective, rtol=1e-6)
        assert (found.objective <= exact.objective * (1 + found.gap + 1e-7)).all()
        streamed = [log_probabilities(survey.flat(found), tile) for tile in survey.standardised(rows)]
        for task, expected in enumerate(log_probabilities(exact, x)):
            got = np.concatenate([tile[task] for tile in streamed])
            if targets[task].classes:
                got, expected = np.exp(got), np.exp(expected)
            np.testing.assert_allclose(got, expected, atol=0.01)


@pytest.mark.usefixtures("small_tiles")
def test_one_task_of_several_is_advanced_alone(rows: np.ndarray, targets: list[Target]) -> None:
    survey = stream.survey(rows, folds(), labels=targets)
    training = np.ones(N, dtype=bool)
    both, path = StreamedPath(rows, survey, targets, training), StreamedPath(rows, survey, targets, training)
    path.advance(0.1)
    alone, all_of_them = path.advance(0.01, [3, 1]), both.advance(0.01)
    np.testing.assert_allclose(alone.objective, all_of_them.objective[[3, 1]], rtol=1e-6)
    assert alone.columns == (slice(0, 4), slice(4, 10))
    after = path.advance(0.01, [0])  # from where it was left at 0.1
    np.testing.assert_allclose(after.objective, all_of_them.objective[[0]], rtol=1e-6)


def test_a_sample_of_all_rows_makes_it_newtons_method(
    rows: np.ndarray, targets: list[Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_SAMPLE", (N, 1))
    path = StreamedPath(rows, stream.survey(rows, folds()), targets, np.ones(N, dtype=bool))
    path.advance(0.01)
    before = path.passes
    path.advance(0.003)
    assert path.passes - before <= 6


@pytest.mark.usefixtures("small_tiles")
def test_the_bracket_from_folds_is_that_of_single_rows(rows: np.ndarray, targets: list[Target]) -> None:
    grid = tuple(10.0**power for power in (2, 1, 0, -1, -2, -3, -4))
    survey = stream.survey(rows, folds(), labels=[*targets, Target(np.zeros(N, dtype=int), 3)], strengths=ridge.COARSE)
    basis = Basis.fit(rows, dtype=torch.float64)
    for centre, exact in zip(survey.centres[:-1], ridge.brackets(basis, targets, grid), strict=True):
        assert abs(grid.index(ridge.around(centre, grid)[0]) - grid.index(exact[0])) <= 1
    assert np.isnan(survey.centres[-1])


def test_a_dataset_of_a_file_will_do(rows: np.ndarray, targets: list[Target], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        stored = file.create_dataset("x", data=rows, chunks=(64, D))
        found = stream.survey(stored, folds(), labels=targets[:1])
        fit = StreamedPath(stored, found, targets[:1], np.ones(N, dtype=bool)).advance(0.1)
    survey = stream.survey(rows, folds(), labels=targets[:1])
    again = StreamedPath(rows, survey, targets[:1], np.ones(N, dtype=bool)).advance(0.1)
    np.testing.assert_array_equal(fit.objective, again.objective)


def test_a_value_that_is_no_number_is_named(rows: np.ndarray) -> None:
    bad = rows.copy()
    bad[1000, 5] = np.inf
    with pytest.raises(UserError, match="row 1000, feature 5 is inf; .*leave the row out"):
        stream.survey(bad, folds())
    folds_n = folds()
    folds_n[1000] = -1
    stream.survey(bad, folds_n)  # left out


def test_a_budget_that_is_too_small_says_what_it_takes(rows: np.ndarray) -> None:
    with pytest.raises(UserError, match="1 MB are too little to stream 4096 features: give at least [0-9]+ MB") as told:
        stream.plan(np.broadcast_to(rows[:, :1], (N, 4096)), 100, 5, MB)
    enough = int(str(told.value).split("at least ")[1].split()[0])
    assert stream.plan(np.broadcast_to(rows[:, :1], (N, 4096)), 100, 5, enough * MB).tile >= 128


def test_labels_of_other_rows_are_refused(rows: np.ndarray, targets: list[Target]) -> None:
    survey = stream.survey(rows, folds())
    with pytest.raises(ValueError, match="target 0 has 10 rows, the features have 1500"):
        StreamedPath(rows, survey, [Target(targets[0].y[:10], 2)], np.ones(N, dtype=bool))


PEAK = textwrap.dedent(
    """
    import resource, sys
    import numpy as np, torch
    from htc_probe.probes.solvers import survey as stream
    from htc_probe.probes.solvers.problems import Target
    from htc_probe.probes.solvers.lbfgs import StreamedPath

    class Rows:
        '''Made when asked for, so that none is in memory but those that are.'''
        def __init__(self, n): self.shape = n, 512
        def __getitem__(self, rows):
            rng = np.random.default_rng(rows.start)
            return rng.standard_normal((min(rows.stop, self.shape[0]) - rows.start, 512), dtype=np.float32)

    def run(n):
        rng = np.random.default_rng(0)
        folds, labels = np.arange(n) % 2, [Target(rng.integers(0, 20, n), 20), Target(rng.integers(0, 2, n), 2)]
        survey = stream.survey(Rows(n), folds, rng.standard_normal((n, 2)), labels, budget=BUDGET)
        StreamedPath(Rows(n), survey, labels, folds == 0).advance(1.0)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    BUDGET = 96 * 2**20
    torch.set_num_threads(1)
    x = torch.ones(64, 64); torch.linalg.eigh(x); torch.linalg.cholesky(torch.eye(9)); x.bfloat16() @ x.bfloat16()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, run(6000), run(36000))
    """
)


@pytest.mark.slow
def test_memory_stays_within_the_budget_whatever_the_number_of_rows() -> None:
    # Freed memory goes back at once, so that the peak is of what was held and not of what malloc keeps for later.
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, env={**os.environ, **malloc}
    )
    before, short, long = map(float, done.stdout.split())
    assert long - before < 96
    assert long - short < 20  # the rows that were added are 70 MB, their labels 2 MB
