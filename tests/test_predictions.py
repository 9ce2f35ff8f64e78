"""What probes said of single images: it is what was scored, whole or not there, and read probe by probe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Task, open_run
from htc_probe.probes import cli
from htc_probe.probes.files import results
from htc_probe.probes.files.predictions import Asked, Writer, load
from htc_probe.probes.files.results import Results
from htc_probe.probes.scores import metrics
from htc_probe.probes.scores.metrics import Gaussian
from htc_probe.probes.study import findings
from made.planted import TASKS, N, make_run, planted_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and what the command wrote of it."""
    path = planted_run(tmp_path_factory.mktemp("runs") / "planted-val.h5")
    argv = ["--run", str(path), "--folds", "3", "--jobs", "1", "--layers", "all", "--representations", "z_voco", "v_d"]
    assert cli.main([*argv, "--no-controls"]) == 0
    return path.parent


@pytest.fixture(scope="module")
def scored(folder: Path) -> Results:
    return results.read(folder / "planted-val.probes.json")


PLACE = "planted-val.probes.predictions.safetensors"


def test_every_probe_that_was_scored_is_there(folder: Path, scored: Results) -> None:
    said = load(folder / PLACE)
    assert set(said) == {(row.task, row.representation, row.layer) for row in scored.rows} and len(said) == 4 * 4
    assert said.run == scored.run and said.run["sha256"] == "00"
    assert ("shape", "z_voco", 3) not in said and said.get(("shape", "z_voco", 3)) is None
    with pytest.raises(UserError, match=r"such as \('shape', 'z_voco', 0\).*: z_voco 0, 1, 2; v_d None$"):
        said["shape", "z_voco", 3]
    with open_run(folder / "planted-val.h5") as run:
        for task in TASKS:
            one, labels = said[task.name, "v_d", None], run.labels(task.name)
            assert (one.kind, one.classes) == (task.kind, task.classes)
            known = np.flatnonzero(labels >= 0) if task.kind == "classes" else np.arange(N)
            np.testing.assert_array_equal(one.rows, known)
            np.testing.assert_array_equal(one.y, labels[known])


def test_they_give_the_scores_and_the_confusions(folder: Path, scored: Results) -> None:
    said = load(folder / PLACE)
    for row in scored.rows:
        one = said[row.task, row.representation, row.layer]
        assert one.prediction is not None and len(one.rows) == row.n
        of = metrics.evaluate(one.kind, one.y, one.prediction, one.fold)
        for name, value in of.items():
            if name == "cross-entropy" and one.kind in ("classes", "multilabel"):
                continue  # bits are counted with probes that are chosen by them
            assert value == pytest.approx(row.metrics[name].estimate, abs=2e-3), (row.task, name)
        if one.kind == "classes":
            assert one.right is not None and one.right.mean() == pytest.approx(row.estimate)
    assert scored.confusions
    for found in scored.confusions:
        one = said[found.task, found.representation, found.layer]
        counts = np.zeros_like(found.counts)
        np.add.at(counts, (one.y, one.said), 1)
        np.testing.assert_array_equal(counts, found.counts)


def test_each_kind_in_its_own_form(folder: Path) -> None:
    said = load(folder / PLACE)
    shape, present, size = (said[task, "z_voco", 2] for task in ("shape", "present", "size"))
    assert shape.sure is not None and shape.of_true is not None and isinstance(shape.prediction, np.ndarray)
    np.testing.assert_allclose(np.exp(shape.prediction).sum(1), 1, atol=3e-3)
    np.testing.assert_allclose(shape.sure, np.exp(shape.prediction).max(1), rtol=1e-6)
    np.testing.assert_array_equal(shape.of_true == shape.sure, shape.right)
    assert present.sure is not None and present.of_true is None
    np.testing.assert_array_equal(present.sure > 0.5, present.said)
    assert size.sure is None and size.right is None and isinstance(size.prediction, Gaussian)
    assert np.corrcoef(size.said, size.y)[0, 1] > 0.9 and (size.prediction.scale > 0).all()


def test_rows_count_in_the_scored_run_when_another_one_was_learned_from(tmp_path: Path) -> None:
    train = planted_run(tmp_path / "train.h5", seed=1, prefix="other ")
    path = planted_run(tmp_path / "val.h5")
    argv = ["shape", "--run", str(path), "--train-run", str(train), "--jobs", "1", "--no-controls"]
    assert cli.main([*argv, "--representations", "z_voco"]) == 0
    one = load(tmp_path / "val.probes.predictions.safetensors")["shape", "z_voco", 2]
    np.testing.assert_array_equal(one.rows, np.arange(4, N))  # the first four have no label
    (row,) = results.read(tmp_path / "val.probes.json").rows
    assert one.right is not None and one.right.mean() == pytest.approx(row.estimate) and row.estimate > 0.7


def test_of_many_classes_the_chosen_and_the_true_one_are_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(400) % 40
    x = np.eye(40)[y] + 0.4 * rng.standard_normal((400, 40))
    many = Task("many", "semantic", "classes", tuple(f"class {at}" for at in range(40)))
    path = make_run(tmp_path / "run.h5", x[:, None], {many: y})
    argv = ["many", "--run", str(path), "--folds", "2", "--jobs", "1", "--no-controls", "--representations", "z_voco"]
    assert cli.main(argv) == 0
    one = load(tmp_path / "run.probes.predictions.safetensors")["many", "z_voco", 0]
    (row,) = results.read(tmp_path / "run.probes.json").rows
    assert one.prediction is None and one.right is not None and one.of_true is not None
    assert one.right.mean() == pytest.approx(row.estimate) and 0.2 < row.estimate < 1
    assert row.strength != row.coded_strength, "bits are counted with other probes"
    assert -np.log2(one.of_true).mean() > (row.metrics["cross-entropy"].estimate or 0)
    with safe_open(str(tmp_path / "run.probes.predictions.safetensors"), "np") as file:
        assert file.get_tensor("0.0.logs").shape == (400, 2)


def test_an_interrupted_command_leaves_no_predictions_and_the_next_writes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = planted_run(tmp_path / "run.h5")
    argv = ["shape", "size", "--run", str(path), "--folds", "3", "--jobs", "1", "--no-controls"]
    argv += ["--representations", "z_voco", "v_d"]
    assert cli.main([*argv, "--out", str(tmp_path / "whole.json")]) == 0
    whole = (tmp_path / "whole.predictions.safetensors").read_bytes()
    probe = findings.probe

    def until(*given, on_predictions, **rest):
        seen = []

        def then(predictions) -> None:
            on_predictions(predictions)
            seen.append(1)
            if len(seen) == 1:
                raise KeyboardInterrupt

        return probe(*given, on_predictions=then, **rest)

    out = tmp_path / "r.json"
    with monkeypatch.context() as patch:
        patch.setattr(findings, "probe", until)
        assert cli.main([*argv, "--out", str(out)]) == 130
    assert not results.predictions_path(out).exists() and not out.exists()
    assert not list((tmp_path / "r.partial").glob("predictions*")) and list((tmp_path / "r.partial").glob("*.npz"))
    assert cli.main([*argv, "--out", str(out)]) == 0
    assert results.predictions_path(out).read_bytes() == whole
    assert not (tmp_path / "r.partial").exists()


def write(folder: Path, *, finish: bool = True) -> Path:
    rows = np.arange(5)
    asked = [Asked("t", "classes", ("a", "b", "c"), rows, rows % 2, np.array([0, 1, 2, 0, 1]))]
    with Writer(folder / "x.safetensors", folder / "keep", {"created": "now"}, asked, [("z_voco", 1)]) as writer:
        writer.add([np.log(np.full((5, 3), 1 / 3, np.float32))])
        if finish:
            return writer.finish()
    return folder / "x.safetensors"


def test_the_file_is_whole_or_not_there(tmp_path: Path) -> None:
    assert not write(tmp_path, finish=False).exists() and not list(tmp_path.iterdir())
    assert write(tmp_path).exists() and [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another place with --out"):
        Writer(tmp_path / "y.safetensors", tmp_path / "file", {}, [], [])
    (tmp_path / "taken" / "x.safetensors").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["x.safetensors"]


def test_other_readers_of_safetensors_read_it(tmp_path: Path) -> None:
    with safe_open(str(write(tmp_path)), "np") as file:
        assert file.get_tensor("0.0.logs").shape == (5, 3) and file.get_tensor("0.y").tolist() == [0, 1, 2, 0, 1]


def test_a_file_that_is_missing_damaged_or_something_else_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no predictions at"):
        load(tmp_path / "missing")
    path = write(tmp_path)
    whole = path.read_bytes()
    said = load(path)
    for damaged in (b"", whole[:40], whole[:-3], b"\x89HDF" + whole[4:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read"):
            load(path)
        with pytest.raises(UserError, match="cannot be read"):
            said["t", "z_voco", 1]
    path.unlink()
    with pytest.raises(UserError, match="no predictions at"):
        said["t", "z_voco", 1]
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(UserError, match="holds no predictions"):
        load(path)
    arrays = {"0.rows": np.arange(5), "0.fold": np.arange(5), "0.y": np.arange(5), "0.0.said": np.arange(5)}
    about = {
        "schema": "htc-probe-predictions-1",
        "run": "{}",
        "tasks": json.dumps([["t", "classes", ["a", "b"]]]),
        "representations": json.dumps([["z_voco", 1]]),
    }
    for logs in (np.zeros((5, 3), np.float16), np.zeros((5, 2), np.float16)):
        save_file(arrays | {"0.0.logs": logs}, path, about)
        with pytest.raises(UserError, match="cannot be read"):  # columns that are none; classes that are none
            load(path)["t", "z_voco", 1]
    for wrong in ({"tasks": "["}, {"tasks": "[1]"}, {"representations": "{}"}):
        save_file(arrays, path, about | wrong)
        if wrong != {"representations": "{}"}:
            with pytest.raises(UserError, match="cannot be read"):
                load(path)
        else:
            assert not len(load(path))
