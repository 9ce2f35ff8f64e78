"""Attention against chance: even attention has lift 1, and every quantity is what a hand finds on a case it can do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from htc_probe.analysis import records
from htc_probe.analysis.attention import rows as attention
from htc_probe.analysis.stats import draws
from htc_probe.extract.store import Batch, Run, RunInfo, RunShape, RunWriter, open_run

L, H, P, D = 2, 3, 9, 4
Make = Callable[..., Run]


def keys(anchors: int = 4, prefix: int = 0) -> tuple[str, ...]:
    return ("prefix",) * prefix + ("anchor",) * anchors + ("patch",) * P + ("voco",)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run of given attention rows (N, L, H, S)."""

    def made(rows: np.ndarray, role: tuple[str, ...], name: str = "run", ids: list[str] | None = None) -> Run:
        N, layers, heads, _ = rows.shape
        cell = iter(range(P))
        place = [divmod(next(cell), 3) if one == "patch" else (-1, -1) for one in role]
        shape = RunShape(
            images=N,
            layers=layers,
            stack=(layers,),
            heads=heads,
            width=D,
            anchors=role.count("anchor"),
            codes=None,
            roles=role,
            rows=tuple(row for row, _ in place),
            cols=tuple(col for _, col in place),
        )
        info = RunInfo({}, {"name": "made", "sha256": name, "config": {}}, "made", "val", "star", {})
        names = [f"image {i}" for i in range(N)] if ids is None else ids
        batch = Batch(
            ids=names,
            paths=names,
            groups=names,
            thumbnails=np.zeros((N, 96, 96, 3), np.uint8),
            z_voco=np.zeros((N, 1, D)),
            v_d=np.zeros((N, shape.anchors, D)),
            v_pooled=np.zeros((N, D)),
            codes=None,
            attention=rows,
            labels={},
        )
        with RunWriter(tmp_path / f"{name}.h5", info, shape, ()) as writer:
            writer.append(batch)
            writer.finish()
        return open_run(tmp_path / f"{name}.h5")

    return made


def random_rows(N: int, S: int, seed: int = 0, heads: int = H) -> np.ndarray:
    raw = np.random.default_rng(seed).exponential(size=(N, L, heads, S))
    return (raw / raw.sum(-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("prefix", [0, 2])
def test_even_attention_is_chance(prefix: int) -> None:
    role = keys(prefix=prefix)
    S = len(role)
    rows = np.full((5, L, H, S), 1 / S, dtype=np.float16)  # 1 / S is no float16, and all entries err alike
    found = attention.measure(rows, role) | attention.measure_order(rows, role)
    for name, value in {
        "anchor_lift": 1,
        "first_lift": 1,
        "anchor_minus_top": 0,
        "entropy_bits": np.log2(S),
        "patch_gini": 0,
        "anchor_mass": 4 / S,
        "patch_mass": P / S,
        "voco_mass": 1 / S,
        "anchor_share": 4 / 13,
        "anchor_above_patch": 0.5,
        "top_10": 1 / 9,
    }.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
        assert found[name].shape == (5, L, H)
    if prefix:
        np.testing.assert_allclose(found["text_mass"], 2 / S, atol=1e-6)
    assert ("text_mass" in found) == bool(prefix)


def test_a_row_by_hand() -> None:
    role = ("prefix", "anchor", "anchor", "patch", "patch", "patch", "text", "voco")
    row = np.array([0.1, 0.2, 0.1, 0.25, 0.05, 0.0, 0.1, 0.2])
    found = attention.measure(row, role) | attention.measure_order(row, role)
    np.testing.assert_allclose(found.pop("anchor_mass_each"), [0.2, 0.1], rtol=1e-6)
    wanted = {
        "anchor_mass": 0.3,
        "patch_mass": 0.3,
        "voco_mass": 0.2,
        "text_mass": 0.2,
        "anchor_share": 0.5,
        "anchor_lift": 0.5 / (2 / 5),
        "top_patches_mass": 0.3,
        "anchor_minus_top": 0.0,
        "anchor_above_patch": 4 / 6,
        "first_lift": (0.6 / 0.6) / (4 / 5),
        "top_10": 0.25 / 0.3,
        # mean absolute difference over twice the mean: (0.2 + 0.25 + 0.05) * 2 / 9 / (2 * 0.1)
        "patch_gini": 0.5 * 2 / 9 / 0.2,
        "entropy_bits": 3 * 0.1 * np.log2(10) + 2 * 0.2 * np.log2(5) + 0.25 * 2 + 0.05 * np.log2(20),
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-5), name


def test_attention_on_one_key() -> None:
    role = keys()
    rows = np.zeros((1, 1, 2, len(role)))
    rows[..., 0, role.index("patch")] = 1
    rows[..., 1, -1] = 1
    found = attention.measure(rows, role) | attention.measure_order(rows, role)
    assert found["entropy_bits"].tolist() == [[[0, 0]]]
    assert found["patch_gini"][0, 0, 0] == pytest.approx(1 - 1 / P) and np.isnan(found["patch_gini"][0, 0, 1])
    assert found["anchor_share"][0, 0, 0] == 0 and np.isnan(found["anchor_share"][0, 0, 1])


def test_top_counts_are_rounded_up() -> None:
    assert [attention.top_count(patches) for patches in (576, 100, 64)] == [58, 10, 7]


def test_anchor_heads_are_those_that_were_planted() -> None:
    rng = np.random.default_rng(0)
    lift = rng.gamma(4, 1 / 4, size=(300, 4, 8))  # mean 1
    lift[:, 2, 5] += 0.3
    lift[:, 0, 0] -= 0.3
    found = attention.anchor_heads(lift, np.arange(300), seed=0)
    assert np.argwhere(found.p < 0.05).tolist() == [[2, 5]]
    assert 1 < found.lower[2, 5] < 1.3


def test_a_whole_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    role = keys(prefix=1)
    rows = random_rows(30, len(role))
    rows[:, 1, 2, 1:5] *= 4  # one anchor head
    rows /= rows.sum(-1, keepdims=True)
    run = make(rows, role)
    section = attention.analyse(run)
    single = attention.measure(rows, role) | attention.measure_order(rows, role)
    single["effective_keys"] = 2 ** single["entropy_bits"]
    for name, value in single.items():
        found = getattr(section, name)
        np.testing.assert_allclose(found.estimate, value.mean(0), rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(found.by_layer.estimate, value.mean((0, 2)), rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(found.overall.estimate, value.mean((0, 1, 2)), rtol=2e-3, atol=1e-4)
        assert (found.lower < found.estimate).all() and (found.upper > found.estimate).all()
    assert section.anchor_head is not None and section.anchor_heads == 1
    assert section.anchor_head.tolist() == [[0, 0, 0], [0, 0, 1]]
    np.testing.assert_allclose(section.mean_attention, rows.mean(0), rtol=2e-3)
    assert section.paired_images is None and section.difference is None

    monkeypatch.setattr(attention, "_BLOCK", 4 * L * H * len(role))  # four images at a time
    again, first = records.flat(attention.analyse(run)), records.flat(section)
    assert again.keys() == first.keys()
    for name, stored in first.items():
        np.testing.assert_allclose(again[name], stored, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_run_of_even_attention_has_no_anchor_head(make: Make) -> None:
    section = attention.analyse(make(np.full((6, L, H, 14), 1 / 14), keys()))
    assert section.anchor_lift is not None and section.anchor_heads == 0
    np.testing.assert_allclose(section.anchor_lift.by_head, 1, atol=1e-5)


def test_a_second_run_is_compared_on_the_images_of_both(make: Make) -> None:
    """With one layer, no anchors, another order, and an image that the first has not."""
    N = 20
    ours = random_rows(N, 14)
    theirs = random_rows(N, 10, seed=1, heads=2)[:, :1]
    names = [f"image {i}" for i in reversed(range(1, N))] + ["other"]
    run, beside = make(ours, keys()), make(theirs, keys(anchors=0), "beside", names)
    section = attention.analyse(run, beside)
    one, other = (attention.measure(rows, role) for rows, role in ((ours, keys()), (theirs, keys(anchors=0))))
    pairs = one["entropy_bits"].mean((1, 2))[1:] - other["entropy_bits"].mean((1, 2))[N - 2 :: -1]
    assert section.paired_images == N - 1 and section.difference is not None
    found = section.difference.entropy_bits
    assert found is not None and found.overall.only.estimate == pytest.approx(pairs.mean(), abs=2e-3)
    wanted = draws.interval_of_mean(pairs, [f"image {i}" for i in range(1, N)], 0)
    assert found.overall.only.lower == pytest.approx(wanted.lower, abs=2e-3)
    assert found.by_layer is None  # 2 layers and 1
    assert section.difference.anchor_lift is None and section.difference.first_lift is not None
    assert attention.analyse(make(ours, keys(), "third", [f"no {name}" for name in names]), beside).difference is None


def test_a_quantity_is_one_of_the_section(make: Make) -> None:
    rows, role = random_rows(9, 14), keys()
    section = attention.analyse(make(rows, role))
    for quantity in attention.quantities(role).values():
        levels, values = quantity.found(section), quantity.of(attention.measure(rows, role))
        assert levels is not None and quantity.difference(section) is None
        np.testing.assert_allclose(levels.estimate, values.mean(0), rtol=2e-3)
        assert levels.by_layer.estimate.shape == (L,) and levels.overall.estimate.size == 1
    assert attention.Quantity("text_mass", "", "", 0, 1).found(section) is None
