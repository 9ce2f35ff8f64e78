"""The representations of a run: their shapes and values, files beside it, and names that are none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from sklearn.preprocessing import OneHotEncoder

from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Run, open_run
from htc_probe.probes.inputs import representations
from htc_probe.probes.inputs.representations import READ, Representation, shown
from htc_probe.probes.study.findings import probe
from htc_probe.probes.study.plan import make_plan
from made.planted import COIN, SIZE, WIDTH, N, make_run, quick


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    rng = np.random.default_rng(0)
    z_voco = rng.standard_normal((N, 5, WIDTH))
    path = make_run(
        tmp_path_factory.mktemp("runs") / "run.h5",
        z_voco,
        {SIZE: z_voco[:, 4, 0], COIN: (z_voco[:, 4, 1] > 0).astype(int)},
        codes=rng.integers(0, 6, (N, 2, 2, 3)),
        thumbnails=rng.integers(0, 256, (N, 96, 96, 3), dtype=np.uint8),
        stack=(0, 2, 4),
    )
    with open_run(path) as opened:
        yield opened


def loaded(run: Run, name: str) -> np.ndarray:
    (found,) = representations.select(run, [name], (4,))
    return found.load(run)


# ---- names


def test_layers_are_named_by_number_or_all(run: Run) -> None:
    assert representations.parse_layers(run, "") == (4,)
    assert representations.parse_layers(run, "all") == (0, 2, 4)
    assert representations.parse_layers(run, "2,0") == representations.parse_layers(run, "-5,2,-1,0") == (0, 2, 4)
    assert representations.parse_layers(run, "0") == (0, 4)  # the last one is what all else is compared with
    for wrong in ("1", "5", "-2", "-6", "first", "0 2", "0,x"):
        with pytest.raises(UserError) as refused:
            representations.parse_layers(run, wrong)
        assert wrong.split(",")[-1] in str(refused.value) and "\n" not in str(refused.value)


def test_without_names_there_are_the_default_ones(run: Run, tmp_path: Path) -> None:
    found = representations.select(run, (), (0, 4))
    assert found == (Representation("z_voco", 0), Representation("z_voco", 4)) + tuple(
        Representation(name, None) for name in ("v_d", "v_pooled", "v_d+z_voco", "v_pooled+z_voco", "pixels")
    )
    bare = make_run(tmp_path / "bare.h5", np.ones((4, 2, 3)), {}, v_d=np.ones((4, 0, 3)))
    with open_run(bare) as other:
        names = [at.name for at in representations.select(other, (), (1,))]
        assert names == ["z_voco", "v_pooled", "v_pooled+z_voco", "pixels"]
        for name in ("v_d", "v_d.0", "z_voco+v_d"):
            with pytest.raises(UserError, match="has no anchors"):
                representations.select(other, [name], (1,))
        with pytest.raises(UserError, match="has no codes"):
            representations.select(other, ["code_bag"], (1,))


def test_a_name_asked_for_twice_is_there_once(run: Run) -> None:
    assert len(representations.select(run, ["v_d", "z_voco", "v_d"], (4,))) == 2


@pytest.mark.parametrize(
    "name", ["", "+", "v_d+", "z", "v_d.2", "v_d.-1", "v_d.x", "images/id", "skipped", "codes ", "x.csv", "nowhere.npy"]
)
def test_names_that_are_none_are_refused_before_anything_is_read(run: Run, name: str) -> None:
    with pytest.raises(UserError) as refused:
        representations.select(run, [name], (4,))
    assert "\n" not in str(refused.value)
    assert "no file at" in str(refused.value) or ("is unknown; there are z_voco" in str(refused.value))


# ---- values


def test_representations_are_the_runs_own_numbers(run: Run) -> None:
    np.testing.assert_array_equal(Representation("z_voco", 2).load(run), run.z_voco(2))
    np.testing.assert_array_equal(loaded(run, "v_pooled"), run.v_pooled())
    np.testing.assert_array_equal(loaded(run, "v_d"), run.v_d().reshape(N, -1))
    np.testing.assert_array_equal(loaded(run, "v_d.1"), run.v_d()[:, 1])
    np.testing.assert_array_equal(loaded(run, "v_d.1+z_voco"), np.concatenate([run.v_d()[:, 1], run.z_voco(4)], 1))
    np.testing.assert_array_equal(loaded(run, "latents/v_pooled"), run.v_pooled())
    for name in ("z_voco", "v_d", "codes", "code_bag", "pixels", "latents/z_voco", "v_d+pixels+codes"):
        x = loaded(run, name)
        assert x.dtype == np.float32 and x.ndim == 2 and len(x) == N and np.isfinite(x).all()


def test_codes_are_one_column_for_each_code_at_each_place(run: Run) -> None:
    codes = run.codes()
    encoded = OneHotEncoder(sparse_output=False).fit_transform(codes.reshape(N, -1))
    x = loaded(run, "codes")
    assert sorted(map(tuple, x.T.tolist())) == sorted(map(tuple, encoded.T.tolist()))
    np.testing.assert_array_equal(x.sum(1), np.full(N, 12))


def test_the_code_bag_counts_codes_wherever_they_are(run: Run) -> None:
    codes = run.codes().reshape(N, 4, 3)
    counted = np.concatenate([(codes[:, :, [g]] == np.arange(6)).sum(1) for g in range(3)], 1)
    np.testing.assert_array_equal(loaded(run, "code_bag"), counted)
    moved = representations._one_hot(run.codes()[:, ::-1, ::-1], together=True)
    np.testing.assert_array_equal(moved, counted)


def picture(*colour: int) -> np.ndarray:
    return np.tile(np.array(colour, np.uint8), (96, 96, 1))


def test_pixels_tell_where_colours_are_and_which() -> None:
    red, blue, grey = (
        representations.pixels(picture(*colour)) for colour in [(255, 0, 0), (0, 0, 255), (128, 128, 128)]
    )
    cells, hues = slice(0, 192), slice(192, 208)
    assert len(red) == 192 + 16 + 8 + 8
    np.testing.assert_allclose(red[cells].reshape(64, 3), np.tile([1, 0, 0], (64, 1)))
    assert red[hues].argmax() == 0 and red[hues].sum() == pytest.approx(1)
    assert blue[hues].argmax() == 4 * 16 // 6  # two thirds around
    np.testing.assert_array_equal(grey[hues], 0)  # a grey has no hue
    half = picture(0, 0, 0)
    half[:, 48:] = (0, 255, 0)
    place = representations.pixels(half)[cells].reshape(8, 8, 3)
    np.testing.assert_array_equal(place[:, :4], 0)
    np.testing.assert_allclose(place[:, 4:], np.tile([0, 1, 0], (8, 4, 1)))


def test_hues_are_those_of_the_standard_library() -> None:
    import colorsys

    for colour in np.random.default_rng(0).integers(0, 256, (50, 3)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(colour / 255))
        x = representations.pixels(picture(*colour))
        parts = [(x[192:208], hue * 16, saturation), (x[208:216], saturation * 8, 1), (x[216:224], value * 8, 1)]
        for histogram, at, height in parts:
            assert histogram.sum() == pytest.approx(height, abs=1e-5)
            if abs(at - round(at)) > 1e-3:  # not on the edge of two cells
                assert histogram.argmax() == int(at)


# ---- files


def in_another_order(folder: Path, run: Run, x: np.ndarray, suffix: str) -> Path:
    """A file of x, with ids where it can have them: shuffled, and with rows of images that the run lacks."""
    path = folder / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, x)
        return path
    order = np.random.default_rng(1).permutation(N + 5)
    more = np.concatenate([x, np.full((5, *x.shape[1:]), 7, x.dtype)])[order]
    ids = [[*run.ids(), *(f"other {i}" for i in range(5))][i] for i in order]
    if suffix == ".npz":
        np.savez(path, ids=np.array(ids), x=more)
    else:
        save_file({"x": more}, path, {"ids": json.dumps(ids)})
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_a_file_in_another_order_gives_the_same_features(run: Run, tmp_path: Path, suffix: str) -> None:
    x = np.random.default_rng(0).standard_normal((N, 2, 3))
    path = in_another_order(tmp_path, run, x, suffix)
    np.testing.assert_array_equal(loaded(run, str(path)), x.reshape(N, 6).astype(np.float32))
    joined = loaded(run, f"v_pooled+{path}")
    np.testing.assert_array_equal(joined, np.concatenate([run.v_pooled(), x.reshape(N, 6).astype(np.float32)], 1))


def test_files_of_the_runs_features_score_as_the_run_does(run: Run, tmp_path: Path) -> None:
    paths = [in_another_order(tmp_path, run, run.z_voco(4), suffix) for suffix in (".npy", ".npz", ".safetensors")]
    names = ("z_voco", *map(str, paths))
    found = probe(make_plan(run, quick("size", "coin", representations=names, folds=2)))
    assert len(found.rows) == 8
    for task in ("size", "coin"):
        rows = [row for row in found.rows if row.task == task]
        assert len({(row.estimate, row.lower, row.bits, row.code_bits, row.fold_scores) for row in rows}) == 1
        assert rows[0].estimate > 0.9


def test_a_file_without_ids_has_one_row_an_image(run: Run, tmp_path: Path) -> None:
    save_file({"x": np.arange(2 * N, dtype=np.int32).reshape(N, 2)}, tmp_path / "x.safetensors")
    np.testing.assert_array_equal(loaded(run, str(tmp_path / "x.safetensors")), np.arange(2 * N).reshape(N, 2))


def broken(folder: Path, run: Run) -> dict[Path, str]:
    """Files that cannot be probed, and a word of why."""
    ids, x = run.ids(), np.ones((N, 2), np.float32)
    found: dict[str, str] = {}

    def write(name: str, reason: str, content: bytes) -> None:
        (folder / name).write_bytes(content)
        found[name] = reason

    def array(name: str, reason: str, **arrays: np.ndarray) -> None:
        np.savez(folder / name, **arrays)
        found[name] = reason

    def tensors(name: str, reason: str, ids: object, **arrays: np.ndarray) -> None:
        save_file(arrays, folder / name, None if ids is None else {"ids": json.dumps(ids)})
        found[name] = reason

    for suffix in ("npy", "npz", "safetensors"):
        write(f"empty.{suffix}", "no array to probe", b"")
        write(f"text.{suffix}", "no array to probe", b"not an array, whatever its name says")
        (folder / f"folder.{suffix}").mkdir()
        found[f"folder.{suffix}"] = ""
    good = folder / "good.npz"
    np.savez(good, ids=np.array(ids), x=x)
    write("cut.npz", "no array to probe", good.read_bytes()[:-40])
    save_file({"x": x}, good)
    write("cut.safetensors", "no array to probe", good.read_bytes()[:-40])
    np.save(folder / "object.npy", np.array([{}] * N), allow_pickle=True)
    np.save(folder / "words.npy", np.array([["a"]] * N))
    np.save(folder / "long.npy", np.ones((N + 1, 2)))
    np.save(folder / "flat.npy", np.ones(N))
    np.save(folder / "none.npy", np.ones((N, 0)))
    np.save(folder / "complex.npy", np.ones((N, 2)) * 1j)
    np.save(folder / "nan.npy", np.where(np.arange(N)[:, None] == 3, np.nan, x))
    np.save(folder / "huge.npy", np.where(np.arange(N)[:, None] == 3, 1e300, np.float64(1)))
    found |= dict.fromkeys(("words.npy", "flat.npy", "none.npy", "complex.npy"), "expected numbers")
    found |= {"object.npy": "no array", "long.npy": "rows without ids", "nan.npy": "image 3", "huge.npy": "image 3"}
    array("without.npz", "no array to probe", x=x)
    array("two.npz", "no array to probe", ids=np.array(ids), x=x, y=x)
    array("lacks.npz", "lacks 1 of the run's images, such as 'image 0'", ids=np.array(ids[1:]), x=x[1:])
    array("short.npz", "ids for", ids=np.array(ids), x=x[1:])
    array("twice.npz", "different ids", ids=np.array([*ids, ids[0]]), x=np.ones((N + 1, 2)))
    tensors("two.safetensors", "no array to probe", ids, x=x, y=x)
    tensors("number.safetensors", "no array to probe", 5, x=x)
    tensors("twice.safetensors", "different ids", [*ids[1:], ids[1]], x=x)
    return {folder / name: reason for name, reason in found.items()}


def test_wrong_files_are_one_clear_line(run: Run, tmp_path: Path) -> None:
    for path, reason in broken(tmp_path, run).items():
        with pytest.raises(UserError) as refused:
            loaded(run, str(path))
        message = str(refused.value)
        assert path.name in message and reason in message and "\n" not in message, (path.name, message)


def test_voco_read_is_the_states_that_keys_and_values_are_made_of(tmp_path: Path) -> None:
    """States 0 to L - 1 side by side, in memory and as rows; a label that the last state alone holds is not read."""
    rng = np.random.default_rng(1)
    z_voco = rng.standard_normal((N, 4, WIDTH)).astype(np.float32)
    z_voco[:, 0] = 1
    labels = {COIN: (z_voco[:, 3, 0] > 0).astype(int), SIZE: z_voco[:, 1, 0] + 0.1 * rng.standard_normal(N)}
    path = make_run(tmp_path / "run.h5", z_voco, labels)
    with open_run(path) as run:
        assert representations.read_states(run) == (0, 1, 2)
        expected = z_voco[:, :3].reshape(N, -1)
        np.testing.assert_array_equal(loaded(run, "voco_read"), expected)
        rows = Representation("voco_read", None).rows(run)
        assert rows.shape == expected.shape
        np.testing.assert_array_equal(rows[5:9], expected[5:9])
        found = probe(make_plan(run, quick("detail", representations=("voco_read", "z_voco"))))
    rows_of = {(row.task, row.representation): row for row in found.rows}
    assert rows_of["coin", "z_voco"].estimate > 0.9 and rows_of["coin", "voco_read"].lower <= 0.55
    assert rows_of["size", "voco_read"].estimate > 0.9 and rows_of["size", "z_voco"].estimate < 0.1


@pytest.mark.parametrize("stack", [(0, 2, 3), (3,), (0, 1, 2, 3), (1, 2, 3)])
def test_voco_read_needs_every_state_that_text_reads(tmp_path: Path, stack: tuple[int, ...]) -> None:
    z_voco = np.random.default_rng(0).standard_normal((N, 4, WIDTH))
    path = make_run(tmp_path / "run.h5", z_voco, {COIN: np.arange(N) % 2}, stack=stack)
    with open_run(path) as run:
        there = {1, 2} <= set(stack)
        names = [one.name for one in representations.select(run, [], (3,))]
        assert ("voco_read" in names) == there
        if there:
            assert loaded(run, "voco_read").shape == (N, WIDTH * len(set(stack) - {3}))
            return
        with pytest.raises(UserError, match="text reads .* too; extract again with all layers"):
            representations.select(run, ["voco_read"], (3,))
        plan = make_plan(run, quick("detail", representations=()))
        assert any("does not store all states that text reads" in warning for warning in plan.warnings)


def test_voco_read_is_left_out_where_it_would_have_everything_streamed(tmp_path: Path) -> None:
    z_voco = np.random.default_rng(0).standard_normal((N, 12, WIDTH))
    path = make_run(tmp_path / "run.h5", z_voco, {COIN: np.arange(N) % 2})
    with open_run(path) as run:
        memory = 24 * WIDTH * 8 * N / 1e9
        plan = make_plan(run, quick("detail", memory=memory, representations=()))
        assert READ not in plan.representations and len(set(plan.fold)) > 1
        assert any("voco_read takes more than --memory" in warning for warning in plan.warnings)
        named = make_plan(run, quick("detail", memory=memory, representations=("voco_read",)))
        assert READ in named.representations and any("is streamed" in warning for warning in named.warnings)


def test_a_person_reads_one_name_of_a_representation() -> None:
    told = {
        ("v_pooled", None, 4): "pooled V",
        ("z_voco", 4, 4): "z_voco (layer 4 of 4)",
        ("z_voco", 0, None): "z_voco (layer 0)",
        ("v_d+z_voco", None, 4): "v_d + z_voco",
        ("v_pooled+v_d.0", None, None): "pooled V + v_d (anchor 1)",
        ("voco_read", None, 4): "voco_read",
        ("v_d.npy", None, None): "v_d.npy",
        ("z_voco (random weights)", None, 4): "z_voco (random weights)",
    }
    assert {key: shown(*key) for key in told} == told
