"""In a notebook: images, labels and what probes say are a pandas frame, and every object says in short what it is."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from htc_probe import probes
from htc_probe.analysis import records
from htc_probe.analysis import results as analysis_results
from htc_probe.analysis.cli import main as analyze
from htc_probe.analysis.sections import Attention
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Task, assemble, open_run, open_shards
from htc_probe.probes import cli
from htc_probe.probes.files import predictions, results
from made.planted import COIN, PRESENT, SHAPE, SIZE, N, make_run, planted_run

PREDICTIONS = "planted-val.probes.predictions.safetensors"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, with what htc-probe and htc-analyze wrote beside it."""
    path = planted_run(tmp_path_factory.mktemp("runs") / "planted-val.h5")
    argv = ["--run", str(path), "--folds", "3", "--jobs", "1", "--no-controls", "--representations", "z_voco", "v_d"]
    assert cli.main(argv) == 0 and analyze(["attention", "--run", str(path)]) == 0
    return path


# ---- frames


def test_a_frame_has_words_and_says_what_is_not_known(tmp_path: Path) -> None:
    angle = Task("angle", "detail", "circular", unit="degrees", period=360)
    labels = {
        SHAPE: np.array([2, -1, 0]),
        PRESENT: np.array([[1, 0, 255], [255, 255, 255], [0, 1, 1]], np.uint8),
        SIZE: np.array([3.5, np.nan, 1]),
        angle: np.array([np.nan, 10, 350]),
    }
    path = make_run(tmp_path / "run.h5", np.zeros((3, 1, 4)), labels, ids=["a", "ü", "c"])
    with open_run(path) as run:
        frame = run.frame()
    assert list(frame) == ["id", "shape", "present: cat", "present: dog", "present: hat", "size", "angle"]
    assert frame.index.tolist() == [0, 1, 2] and frame["id"].tolist() == ["a", "ü", "c"]
    assert list(frame["shape"].cat.categories) == ["disc", "box", "star"]
    assert [None if pd.isna(word) else word for word in frame["shape"]] == ["star", None, "disc"]
    assert frame["present: hat"].tolist() == [pd.NA, pd.NA, True] and frame["present: cat"].sum() == 1
    assert frame["present: dog"].isna().tolist() == [False, True, False]
    np.testing.assert_array_equal(frame["size"], [3.5, np.nan, 1])
    np.testing.assert_array_equal(frame["angle"], [np.nan, 10, 350])
    assert pd.read_csv(io.StringIO(frame.to_csv()))["shape"].fillna("").tolist() == ["star", "", "disc"]


def test_a_run_without_labels_has_ids_alone(tmp_path: Path) -> None:
    with open_run(make_run(tmp_path / "run.h5", np.zeros((2, 1, 4)), {})) as run:
        assert list(run.frame()) == ["id"] and len(run.frame()) == 2
        assert repr(run).endswith("labels    none")


@pytest.mark.parametrize(("representation", "layer"), [("z_voco", 2), ("v_d", None)])
def test_what_a_probe_says_is_beside_the_labels(path: Path, representation: str, layer: int | None) -> None:
    frame = probes.frame(path, representation)
    said = predictions.load(path.with_name(PREDICTIONS))
    with open_run(path) as run:
        pd.testing.assert_frame_equal(frame[list(run.frame())], run.frame())
    for row in results.read(path.with_name("planted-val.probes.json")).rows:
        if (row.representation, row.layer) == (representation, layer) and row.kind == "classes":
            asked = frame[frame[row.task].notna()]
            assert (asked[row.task] == asked[f"{row.task} said"]).mean() == pytest.approx(row.estimate)
            assert frame[f"{row.task} said"].notna().equals(frame[row.task].notna()) and len(asked) == row.n
            assert asked[f"{row.task} sure"].between(1 / len(row.classes) - 0.01, 1).all()
    labels, sizes = said["present", representation, layer], said["size", representation, layer]
    assert labels.sure is not None
    for number, name in enumerate(PRESENT.classes):
        np.testing.assert_array_equal(frame[f"present: {name} said"], labels.said[:, number])
        np.testing.assert_array_equal(frame[f"present: {name} sure"], labels.sure[:, number])
    np.testing.assert_array_equal(frame["size said"][sizes.rows], sizes.said)
    assert "size sure" not in frame and f"{COIN.name} said" in frame


def test_a_class_that_was_too_rare_for_a_probe_is_never_said(tmp_path: Path) -> None:
    """And what is said can be compared with the labels all the same."""
    rng = np.random.default_rng(0)
    y = np.concatenate([np.arange(98) % 2 * 2, [1, 1]])  # of the middle class, two images
    features = np.eye(3)[y][:, None] + 0.1 * rng.standard_normal((100, 1, 3))
    path = make_run(tmp_path / "run.h5", features, {SHAPE: y})
    argv = ["--run", str(path), "--folds", "2", "--jobs", "1", "--no-controls", "--representations", "z_voco"]
    assert cli.main(argv) == 0
    frame = probes.frame(path, "z_voco")
    assert set(frame["shape said"].dropna()) == {"disc", "star"}
    assert (frame["shape"] == frame["shape said"]).sum() > 90 and frame["shape said"][98:].isna().all()


def test_what_is_not_there_or_of_another_run_is_one_line(path: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="holds nothing for .*v_pooled.*Representations and their layers: z_voco 2; v_d"
    ):
        probes.frame(path, "v_pooled")
    other = planted_run(tmp_path / "planted-val.h5", seed=1)
    with pytest.raises(UserError, match="no predictions at .*htc-probe semantic detail"):
        probes.frame(other)
    (tmp_path / PREDICTIONS).write_bytes(path.with_name(PREDICTIONS).read_bytes())
    with pytest.raises(UserError, match="of another run of this name; run htc-probe again"):
        probes.frame(other)
    with pytest.raises(UserError, match="no run at"):
        (tmp_path / "gone.probes.predictions.safetensors").write_bytes(path.with_name(PREDICTIONS).read_bytes())
        probes.frame(tmp_path / "gone.h5")


# ---- what things say that they are


def test_a_run_says_what_it_is(path: Path, tmp_path: Path) -> None:
    with open_run(path) as run:
        lines = repr(run).splitlines()
        assert lines[0] == f"<Run planted-val.h5: {N} images of planted val>"
        assert [line.split()[0] for line in lines[1:]] == ["model", "tokens", "z_voco", "semantic", "detail"]
        assert "planted (star), 2 layers x 1 heads" in lines[1] and "2 anchors, 1 patches" in lines[2]
        assert lines[3].endswith(f"{N} x 12, layers 0, 1, 2")
        assert lines[4].endswith("shape, present") and lines[5].endswith("size, coin")
        info, shape, tasks = run.info, run.shape, run.tasks
    assert repr(run).splitlines()[0].endswith(" of planted val, closed>")
    out, shard = tmp_path / "out.h5", tmp_path / "out.h5.shards" / "00000.h5"
    shard.parent.mkdir()
    shard.write_bytes(path.read_bytes())
    with open_shards(out, [shard]) as run:
        assert repr(run).splitlines()[0] == f"<Run out.h5: {N} images of planted val, unfinished>"
        assert len(run.frame()) == N
    assemble(out, info, shape, tasks, [shard], store_dtype="float32", virtual=True)
    with open_run(out) as run:
        assert repr(run).splitlines()[0] == f"<Run out.h5: {N} images of planted val, virtual>"


def test_probes_and_predictions_say_what_they_are(path: Path) -> None:
    found = probes.load(path.with_name("planted-val.probes.safetensors"))
    assert repr(found) == (
        "<Probes planted-val.probes.safetensors: 8 by (task, representation, layer)>\n"
        "tasks            shape, present, size, coin\n"
        "representations  z_voco 2; v_d None"
    )
    assert repr(found["shape", "z_voco", 2]) == "<Probe of 12 features: 3 classes, disc, box, star>"
    assert repr(found["present", "v_d", None]) == "<Probe of 24 features: 3 labels, cat, dog, hat>"
    assert repr(found["size", "v_d", None]) == "<Probe of 24 features: a number>"
    said = predictions.load(path.with_name(PREDICTIONS))
    assert repr(said).startswith(f"<Predictions {PREDICTIONS} of planted: 8 by (task, ")
    one = said["shape", "z_voco", 2]
    assert one.right is not None
    assert repr(one) == (
        f"<Predicted of {len(one.rows)} held-out images: 3 classes, disc, box, star, {one.right.mean():.1%} right>"
    )
    assert repr(said["size", "v_d", None]) == f"<Predicted of {N} held-out images: a number>"
    scores = results.read(path.with_name("planted-val.probes.json"))
    assert repr(scores) == "<Results of planted-val.h5: 4 tasks from z_voco@2, v_d; 240 images, planted>"


def test_an_analysis_says_what_it_is_and_reads_nothing(path: Path) -> None:
    analysis = analysis_results.read(path.with_name("planted-val.analysis.h5"))
    assert repr(analysis) == (
        f"<Analysis planted-val.analysis.h5 of planted-val.h5: {N} images, planted>\nattention      seed 0"
    )
    with open_run(path) as run:
        found = analysis.of(analysis_results.identity(run))
    analysis.path.rename(analysis.path.with_suffix(".gone"))
    try:
        assert repr(found) == "<Sections>\nattention  Attention"
    finally:
        analysis.path.with_suffix(".gone").rename(analysis.path)
    attention = found.attention
    assert attention is not None
    before = repr(attention)
    lines = dict(line.split(maxsplit=1) for line in before.splitlines()[1:])
    assert lines["images"] == "int" and lines["patch_mass"] == "Levels" and "difference" not in lines
    assert lines["mean_attention"] == "numbers (L = 2, H = 1, S = 4)"
    assert attention.mean_attention.shape == (2, 1, 4) and repr(attention) == before, "read or not, it says the same"
    made = records.build(Attention, {k: records.describe(v) for k, v in records.flat(attention).items()}, {}.get)
    assert repr(made) == before
