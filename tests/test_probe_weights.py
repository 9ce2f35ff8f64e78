"""Probes as weights: what they predict, what they read, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

import htc_probe.probes
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import open_run
from htc_probe.probes.cli import main
from htc_probe.probes.files import results
from htc_probe.probes.files.weights import Key, Probe, load, save
from htc_probe.probes.inputs.labels import Labels
from htc_probe.probes.study import protocol
from made.planted import COIN, PRESENT, SHAPE, SIZE, N, make_run, planted_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and what the command wrote of it."""
    folder = tmp_path_factory.mktemp("runs")
    path = planted_run(folder / "planted-val.h5")
    argv = ["--run", str(path), "--folds", "3", "--jobs", "1", "--no-controls", "--representations", "z_voco", "v_d"]
    assert main(argv) == 0
    return folder


def fitted(kind: str, y: np.ndarray, x: np.ndarray, strength: float, classes: tuple[str, ...] = ()) -> Probe:
    labels = Labels(kind, y, len(classes) if kind == "classes" else 0)  # type: ignore[arg-type]
    (solved,) = protocol.refit(x, [labels], [strength])
    return Probe(kind, classes, *solved, x.mean(0))


# ---- what the command wrote


def test_the_file_holds_every_probe_that_was_compared(folder: Path) -> None:
    found = htc_probe.probes.load(folder / "planted-val.probes.safetensors")
    tasks = (SHAPE, PRESENT, SIZE, COIN)
    assert set(found) == {(task.name, *at) for task in tasks for at in (("z_voco", 2), ("v_d", None))}
    for task in tasks:
        probe = found[task.name, "z_voco", 2]
        assert (probe.kind, probe.classes) == (task.kind, task.classes)
        assert probe.weights.shape == (12, {"shape": 3, "present": 3, "size": 1, "coin": 1}[task.name])


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        (("size", "z_voco", None), ("size", "z_voco", 2)),
        (("sizes", "v_d", None), ("shape", "v_d", None)),
        (("coin", "v_d"), ("coin", "v_d", None)),
        ("present", ("present", "z_voco", 2)),
        (7, ("shape", "z_voco", 2)),
    ],
)
def test_a_key_that_is_not_there_lists_those_that_are(folder: Path, key: object, nearest: Key) -> None:
    found = htc_probe.probes.load(folder / "planted-val.probes.safetensors")
    assert key not in found and found.get(key) is None
    with pytest.raises(UserError) as refused:
        found[key]  # type: ignore[index]
    assert isinstance(refused.value, KeyError)
    path = folder / "planted-val.probes.safetensors"
    assert str(refused.value) == (
        f"{path} holds nothing for {key!r}; a key is (task, representation, layer), "
        f"such as {nearest!r}. Tasks: shape, present, size, coin. Representations and their layers: z_voco 2; v_d None"
    )


def test_probes_are_scikit_learns_at_the_strength_that_was_chosen(folder: Path) -> None:
    """On all images with a label, and on images that neither saw."""
    found = load(folder / "planted-val.probes.safetensors")
    rows = {(row.task, row.representation): row for row in results.read(folder / "planted-val.probes.json").rows}
    new = planted_run(folder.parent / "new.h5", seed=3)
    with open_run(folder / "planted-val.h5") as run, open_run(new) as other:
        for task, name, layer in found:
            x, fresh = (
                (one.z_voco(2) if layer is not None else one.v_d().reshape(N, -1)).astype(np.float64)
                for one in (run, other)
            )
            scaler, y, strength = StandardScaler().fit(x), run.labels(task), rows[task, name].strength
            z, new_z = scaler.transform(x), scaler.transform(fresh)
            ours = found[task, name, layer].predict(fresh.astype(np.float32))
            if task == "size":
                theirs = Ridge(alpha=strength * N).fit(z, y).predict(new_z)
                np.testing.assert_allclose(ours, theirs, atol=1e-4)
            elif task == "present":
                for label in range(3):
                    model = LogisticRegression(C=1 / (strength * N), tol=1e-8, max_iter=5000).fit(z, y[:, label])
                    assert (model.predict(new_z) == ours[:, label]).mean() >= 0.99
            else:
                known = y >= 0
                model = LogisticRegression(C=1 / (strength * known.sum()), tol=1e-8, max_iter=5000)
                theirs = np.array(run.task(task).classes)[model.fit(z[known], y[known]).predict(new_z)]
                assert (theirs == ours).mean() >= 0.99


def test_probes_carry_over_to_other_images_of_the_world(folder: Path) -> None:
    found = load(folder / "planted-val.probes.safetensors")
    with open_run(planted_run(folder.parent / "more.h5", seed=4)) as other:
        x = other.z_voco(2)
        known = other.labels("shape") >= 0
        truth = np.array(SHAPE.classes)[other.labels("shape")]
        assert (found["shape", "z_voco", 2].predict(x) == truth)[known].mean() > 0.85
        assert (found["present", "z_voco", 2].predict(x) == other.labels("present")).mean() > 0.85
        assert np.corrcoef(found["size", "z_voco", 2].predict(x), other.labels("size"))[0, 1] > 0.97


# ---- the probe


def test_predictions_are_those_of_the_fit_that_was_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((90, 5)) * [1, 10, 0.1, 3, 0] + 4  # a constant feature among them
    y = ((x[:, :3] - 4) / [1, 10, 0.1]).argmax(1)
    many = (x[:, :2] > 4).astype(np.uint8)
    made: dict[Key, Probe] = {
        ("kind", "z_voco", 4): fitted("classes", y, x, 0.01, ("a", "b", "c")),
        ("two", "v_d", None): fitted("classes", (y == 1).astype(int), x, 0.01, ("no", "yes")),
        ("many", "v_d", None): fitted("multilabel", many, x, 0.01, ("p", "q")),
        ("size", "v_d", None): fitted("number", x[:, 1], x, 1e-6),
    }
    found = load(save(made, tmp_path / "htc_probe.probes.safetensors"))
    assert list(found) == list(made)
    for key, probe in made.items():
        np.testing.assert_allclose(found[key].logits(x), probe.logits(x), atol=1e-3)
    assert (found["kind", "z_voco", 4].predict(x) == np.array(["a", "b", "c"])[y]).mean() > 0.95
    assert (found["two", "v_d", None].predict(x) == np.where(y == 1, "yes", "no")).mean() > 0.8
    assert (found["many", "v_d", None].predict(x) == many).mean() > 0.95
    np.testing.assert_allclose(found["size", "v_d", None].predict(x), x[:, 1], atol=0.1)
    for probe in found.values():
        assert (probe.weights[4] == 0).all()
        with pytest.raises(UserError, match=r"features of shape \(3, 6\); this probe takes \(rows, 5\)"):
            probe.predict(np.ones((3, 6)))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_directions_are_what_is_read_and_no_more(classes: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 8))
    y = (x @ rng.standard_normal((8, classes))).argmax(1)
    probe = fitted("classes", y, x, 0.01, tuple(map(str, range(classes))))
    axes = probe.directions()
    assert axes.shape == (8, classes - 1)
    np.testing.assert_allclose(axes.T @ axes, np.eye(classes - 1), atol=1e-12)
    across = np.linalg.qr(np.concatenate([axes, rng.standard_normal((8, 8 - classes + 1))], 1))[0][:, classes - 1 :]
    moved = x + 100 * rng.standard_normal((200, across.shape[1])) @ across.T
    np.testing.assert_array_equal(probe.predict(moved), probe.predict(x))


# ---- files


def test_damaged_weight_files_are_one_line(folder: Path, tmp_path: Path) -> None:
    good = folder / "planted-val.probes.safetensors"
    with safe_open(good, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        about = file.metadata()
    path = tmp_path / "x.safetensors"
    content = good.read_bytes()
    broken = [b"", b"text", content[:100], content[:-1], content[: len(content) // 2], b"\xff" * 64]
    for body in broken:
        path.write_bytes(body)
        with pytest.raises(UserError) as refused:
            load(path)
        assert "x.safetensors" in str(refused.value) and "\n" not in str(refused.value)
    described = json.loads(about["probes"])
    for change in [
        {"schema": "other"},
        {"probes": "{"},
        {"probes": "5"},
        {"probes": "[5]"},
        {"probes": "[[1, 2]]"},
        {"probes": json.dumps([*described, described[0]])},
        {"probes": json.dumps([[["task"], *described[0][1:]]])},
        {"probes": json.dumps([[*described[0][:4], 5]])},
        {"probes": json.dumps([[*described[0][:3], "shape", []]])},
        {"probes": json.dumps([[*described[0][:4], ["one"]]])},
    ]:
        save_file(tensors, path, about | change)
        with pytest.raises(UserError) as refused:
            load(path)
        assert "x.safetensors" in str(refused.value) and "\n" not in str(refused.value), change
    save_file(tensors, path)
    with pytest.raises(UserError, match="holds no probes"):
        load(path)
    save_file({name: value for name, value in tensors.items() if name != "0.mean"}, path, about)
    with pytest.raises(UserError, match="run htc-probe again"):
        load(path)
    save_file(tensors | {"0.weights": np.ones((12, 3, 2), np.float32)}, path, about)
    with pytest.raises(UserError, match="run htc-probe again"):
        load(path)
    with pytest.raises(UserError, match="no probes at"):
        load(tmp_path / "nowhere.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path)


def test_weights_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    probe = Probe("number", (), np.ones((3, 1)), np.zeros(1), np.zeros(3))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another place with --out"):
        save({("size", "v_d", None): probe}, tmp_path / "file" / "x.safetensors")
    save({("size", "v_d", None): probe}, tmp_path / "x.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "x.safetensors"]


def test_with_a_run_to_learn_from_probes_are_of_its_images(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, 1, 12)) + 50
    train = make_run(tmp_path / "train.h5", x, {SIZE: x[:, 0, 0]}, groups=[f"train {i}" for i in range(N)])
    scored = make_run(tmp_path / "val.h5", x + 1, {SIZE: x[:, 0, 1]})  # of which nothing may be learned
    argv = ["size", "--run", str(scored), "--train-run", str(train), "--jobs", "1", "--representations", "z_voco"]
    assert main([*argv, "--out", str(tmp_path / "r.json")]) == 0
    (probe,) = load(tmp_path / "r.safetensors").values()
    np.testing.assert_allclose(probe.predict(x[:, 0]), x[:, 0, 0], atol=0.05)
    np.testing.assert_allclose(probe.mean, x[:, 0].mean(0), atol=1e-4)
