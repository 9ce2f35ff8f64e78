"""What is odd about features is told with its numbers, and nothing is told of what is not odd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from htc_probe.extract.store import open_run
from htc_probe.probes.inputs import oddities
from htc_probe.probes.inputs.representations import Representation
from htc_probe.probes.study.findings import probe
from htc_probe.probes.study.plan import make_plan
from made.planted import SIZE, N, make_run, planted_run, quick

ROWS, WIDTH = 600, 64
NAMES = [f"image {row}" for row in range(ROWS)]


def told(x: np.ndarray, groups: np.ndarray | None = None, used: np.ndarray | None = None) -> list[str]:
    return oddities.told(
        x.astype(np.float32),
        np.ones(len(x), bool) if used is None else used,
        np.arange(len(x)) if groups is None else groups,
        NAMES,
    )


def usual(kind: str) -> np.ndarray:
    """Features that nothing is wrong with."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, WIDTH))
    return {
        "noise": lambda: x + 30,
        "mixed": lambda: x @ rng.standard_normal((WIDTH, WIDTH)),
        "scales": lambda: x * np.logspace(-1, 1, WIDTH),
        "heavy": lambda: rng.standard_t(4, (ROWS, WIDTH)),
        "one": lambda: x[:, :1],
        "rare": lambda: (rng.random((ROWS, 300)) < 0.04) * 1.0,
        "classes": lambda: np.eye(6)[rng.integers(0, 6, ROWS)],
        "wide": lambda: rng.standard_normal((ROWS, 3 * ROWS)),
        "constant": lambda: np.tile(x[:1], (ROWS, 1)),
        "almost constant": lambda: np.concatenate([np.tile(x[:1], (ROWS, 1)), x[:, :9]], 1),
    }[kind]()


KINDS = ("noise", "mixed", "scales", "heavy", "one", "rare", "classes", "wide", "constant", "almost constant")


@pytest.mark.parametrize("kind", KINDS)
def test_of_usual_features_nothing_is_told(kind: str) -> None:
    assert told(usual(kind)) == []


@pytest.mark.parametrize("kind", ["noise", "mixed", "heavy", "wide", "one"])
@pytest.mark.parametrize(("rows", "size"), [((17,), 10), ((3, 99, 400), 20), ((5, 50, 500), 1e6)])
def test_rows_far_out_are_told_by_name(kind: str, rows: tuple[int, ...], size: float) -> None:
    x = usual(kind) - (30 if kind == "noise" else 0)
    x[list(rows)] = np.abs(x).mean() * size * np.sign(x[list(rows)] + 1e-9) + x[list(rows)]
    (said,) = told(x)
    assert said.startswith(f"{len(rows)} of 600 rows are outliers, up to ")
    assert all(f"image {row}" in said for row in rows)
    assert float(said.split("up to ")[1].split(" times")[0].replace(",", "")) > 4


def test_a_row_that_is_far_out_in_one_feature_alone_is_told() -> None:
    x = usual("mixed")
    x[7, 3] = 1e4
    (said,) = told(x)
    assert said.startswith("1 of 600 rows are outliers") and "(image 7)" in said
    x = usual("scales")
    x[7, 0] = 1e3  # the smallest, which no other row shows
    assert "image 7" in told(x)[0]


@pytest.mark.parametrize("few", [1, 3, 5])
def test_a_handful_of_features_with_nearly_all_variance_is_told(few: int) -> None:
    x = usual("noise")
    at = [5, 40, 11, 60, 2][:few]
    x[:, at] *= 100
    (said,) = told(x)
    assert said.startswith(f"{few} of 64 features hold 99.")
    assert {int(one) for one in said.split("(feature ")[1].split(")")[0].split(", ")} == set(at)
    x[:, [7, 8, 9, 12, 13, 14]] *= 100
    assert told(x) == []  # no handful


@pytest.mark.parametrize("few", [1, 2, 5])
def test_a_handful_of_directions_with_nearly_all_variance_is_told(few: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, few)) @ rng.standard_normal((few, 200)) + 0.02 * rng.standard_normal((ROWS, 200))
    (said,) = told(x)
    assert f"{few} of 200 principal directions hold 9" in said


@pytest.mark.parametrize("kind", ["noise", "wide", "rare", "one"])
def test_equal_rows_of_different_groups_are_told(kind: str) -> None:
    x = usual(kind)
    groups = np.arange(ROWS) // 2
    x[400], x[500], x[301] = x[10], x[10], x[9]
    (said,) = told(x, groups)
    count = 5 if kind != "rare" else int(said.split(" of")[0])  # two rare rows may be equal as they are
    assert count >= 5 and said.startswith(f"{count} of 600 rows are equal to a row of another group (such as image ")
    together = groups.copy()
    together[[400, 500, 10]], together[[301, 9]] = 1000, 1001
    if kind != "rare":
        assert said.split("such as ")[1].split(")")[0] == "image 9 and image 301"
        assert told(x, together) == []


def test_every_image_twice_is_told_and_minus_zero_is_zero() -> None:
    x = np.tile(usual("noise")[: ROWS // 2], (2, 1))
    assert told(x)[0].startswith("600 of 600 rows are equal to a row of another group (such as image 0 and image 300)")
    x = usual("noise")
    x[1] = x[0]
    x[0, 0], x[1, 0] = 0.0, -0.0
    assert told(x)[0].startswith("2 of 600 rows")


def test_rows_that_are_not_probed_do_not_count() -> None:
    x = usual("noise")
    x[3], x[5] = 1e6, x[4]
    used = np.ones(ROWS, bool)
    used[[3, 5]] = False
    assert told(x, used=used) == []
    assert told(x, used=np.arange(ROWS) == 3) == []
    assert len(told(x)) == 2


def test_a_run_is_told_of_once_for_each_representation_in_its_results(tmp_path: Path) -> None:
    """The same as rows are read in turn, with a run of its own to learn from too; features are left as they are."""
    rng = np.random.default_rng(0)
    z, v_d = rng.standard_normal((N, 2, WIDTH)), rng.standard_normal((N, 2, WIDTH))
    z[:, 0] = z[0, 0]
    z[[9, 20, 31], 1] *= 40
    v_d[100] = v_d[50]
    path = make_run(tmp_path / "odd.h5", z, {SIZE: z[:, 1, 0]}, v_d=v_d)
    names = ("z_voco", "v_d", "v_d+z_voco")
    with open_run(path) as run:
        found = probe(make_plan(run, quick("size", representations=names, layers="all")))
        first, second = (one for one in found.warnings if " rows are " in one)
        assert first.startswith("z_voco (layer 1 of 1): 3 of 240 rows are outliers") and "image 9" in first
        assert second.startswith("v_d: 2 of 240 rows are equal to a row of another group (such as image 50 and ")
        for at, whole in ((Representation("z_voco", 1), first), (Representation("v_d", None), second)):
            (said,) = oddities.told(at.rows(run), np.ones(N, bool), np.arange(N), run.ids())
            assert whole.endswith(said)
        alone = probe(make_plan(run, quick("size", representations=("v_d+v_pooled",))))
        assert not any(" rows are " in one for one in alone.warnings)  # as v_pooled tells them apart
        np.testing.assert_array_equal(Representation("z_voco", 1).load(run), z[:, 1].astype(np.float32))
    other = make_run(
        tmp_path / "train.h5",
        rng.standard_normal((N, 2, WIDTH)),
        {SIZE: rng.standard_normal(N)},
        v_d=np.concatenate([v_d[:1], rng.standard_normal((N - 1, 2, WIDTH))]),
        groups=[f"train {i}" for i in range(N)],
    )
    with open_run(path) as run, open_run(other) as train:
        found = probe(make_plan(run, quick("size", representations=("v_d",)), train=train))
    assert any("v_d: 4 of 480 rows are equal to a row of another group" in one for one in found.warnings)


def test_of_a_planted_run_nothing_is_told(tmp_path: Path) -> None:
    with open_run(planted_run(tmp_path / "planted.h5")) as run:
        found = probe(make_plan(run, quick("size", representations=("z_voco", "v_d", "pixels"), layers="all")))
    assert not [one for one in found.warnings if " of " in one and "hold" in one or " rows are " in one]
