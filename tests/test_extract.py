"""htc-extract: the run holds what the model computes, and whatever goes wrong leaves no file and one clear line."""

import json
import shutil
import subprocess
import sys
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache

from htc_probe.extract import models
from htc_probe.extract.capture import capture, run_shape
from htc_probe.extract.cli import _can_be_probed, main
from htc_probe.extract.command import main as run_command
from htc_probe.extract.command import parse_layers
from htc_probe.extract.data import open_source, scenes
from htc_probe.extract.errors import UserError
from htc_probe.extract.images import prepare
from htc_probe.extract.store import open_run
from htc_probe.extract.vlm import star
from htc_probe.extract.vlm.model import HTCVLM
from htc_probe.probes.inputs import tasks
from made.models import LAYERS, SIZE, small_model

IMAGES = 5
honest_compress = star.compress


class Shipped(NamedTuple):
    folder: Path
    model: HTCVLM


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """A model, and where it is saved."""
    folder, model = tmp_path_factory.mktemp("model"), small_model()
    model.save_pretrained(folder)
    return Shipped(folder, model)


@pytest.fixture
def command(saved: Shipped, tmp_path: Path) -> list[str]:
    """The arguments of a small extraction to run.h5."""
    return ["--model", str(saved.folder), "--limit", str(IMAGES), "--out", str(tmp_path / "run.h5"), "--device", "cpu"]


def by_hand(model: HTCVLM, images: list[Image.Image]) -> dict[str, Tensor]:
    """Image by image, without the capture."""
    found: dict[str, list[Tensor]] = {"hidden": [], "attention": [], "v_d": [], "pooled": [], "codes": []}
    with torch.no_grad():
        for image in images:
            pixels = prepare(image, SIZE)[None]
            q = model.quantize(pixels)
            anchors, patches = model.hybrid(model.vision_features(pixels), q.quant.flatten(1))
            hidden, attention, _ = model.compress(anchors, patches)
            for name, value in zip(found, (hidden, attention, anchors, patches.mean(1), q.codes), strict=True):
                found[name].append(value)
    return {name: torch.cat(values) for name, values in found.items()}


def test_the_run_is_what_the_model_computes(command: list[str], saved: Shipped, capsys: Any) -> None:
    assert main([*command, "--batch-size", "2"]) == 0
    out = Path(command[5])
    said = capsys.readouterr().out
    assert f"{IMAGES} images" in said and f"Wrote {out}" in said
    assert "Next:  extract more images" in said and "htc-dashboard" in said

    source = open_source("scenes", "val", limit=IMAGES, resolution=SIZE)
    items = [source[i] for i in range(IMAGES)]
    wanted = by_hand(saved.model, [item.image for item in items])
    half = {"rtol": 2e-3, "atol": 1e-4}
    with open_run(out) as run:
        assert run.ids() == [item.id for item in items] and run.groups() == [item.group for item in items]
        for layer in range(LAYERS + 1):
            np.testing.assert_allclose(run.z_voco(layer), wanted["hidden"][:, layer], **half)
        np.testing.assert_allclose(run.v_d(), wanted["v_d"], **half)
        np.testing.assert_allclose(run.v_pooled(), wanted["pooled"], **half)
        np.testing.assert_array_equal(run.codes(), wanted["codes"])
        for i in range(IMAGES):
            np.testing.assert_allclose(run.attention(i), wanted["attention"][i], **half)
        np.testing.assert_allclose(run.anchor_mass(), wanted["attention"][..., :4].sum(-1), atol=1e-5)
        assert run.tasks == scenes.TASKS
        for task in run.tasks:
            np.testing.assert_array_equal(run.labels(task.name), np.array([item.labels[task.name] for item in items]))
        assert run.shape == run_shape(saved.model.config, IMAGES)
        assert (run.info.dataset, run.info.split, run.info.topology) == ("scenes", "val", "star")
        assert run.info.model["sha256"] == models.digest(saved.folder)
        assert run.info.config["dtype"] == "float32" and run.info.environment["torch"] == version("torch")
        assert run.thumbnail(0).shape == (96, 96, 3)


def test_the_size_of_a_batch_changes_nothing(saved: Shipped) -> None:
    source = open_source("scenes", "val", limit=IMAGES, resolution=SIZE)
    (together,), apart = list(capture(saved.model, source)), list(capture(saved.model, source, batch_size=2))
    assert [len(batch.ids) for batch in apart] == [2, 2, 1]
    for name in ("z_voco", "v_d", "v_pooled", "attention", "codes", "thumbnails"):
        pieces = np.concatenate([getattr(batch, name) for batch in apart])
        np.testing.assert_allclose(pieces, getattr(together, name), atol=1e-3)


def test_layers_and_storage(command: list[str]) -> None:
    assert main([*command, "--layers", "-1,0", "--store-dtype", "float32", "--limit", "2"]) == 0
    with open_run(command[5]) as run:
        assert len(run) == 2 and run.shape.stack == (0, LAYERS)
        # Layer 0 is the embedding of <voco>, the same for every image.
        np.testing.assert_array_equal(run.z_voco(0)[0], run.z_voco(0)[1])
        assert np.abs(run.z_voco(-1)[0] - run.z_voco(-1)[1]).max() > 1e-4
        with pytest.raises(UserError, match="not stored"):
            run.z_voco(1)


@pytest.mark.parametrize(("text", "layers"), [("all", (0, 1, 2, 3)), ("3,0,3", (0, 3)), ("-1", (3,)), ("-4", (0,))])
def test_layer_lists(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text, 3, range(4), str) == layers


def test_bfloat16_keeps_the_codes(saved: Shipped, tmp_path: Path) -> None:
    model = models.load(saved.folder, dtype=torch.bfloat16, device="cpu")
    source = open_source("scenes", "val", limit=2, resolution=SIZE)
    half, full = next(capture(model, source)), next(capture(saved.model, source))
    assert model.voco.dtype == torch.bfloat16 and half.z_voco.dtype == np.float32
    np.testing.assert_array_equal(half.codes, full.codes)
    np.testing.assert_allclose(half.attention.sum(-1), 1, atol=1e-5)


def test_the_same_command_again_does_nothing_and_another_is_refused(command: list[str], capsys: Any) -> None:
    out = Path(command[5])
    assert main(command) == 0
    written = out.read_bytes()
    capsys.readouterr()

    assert main([*command, "--batch-size", "1"]) == 0
    assert "nothing to do" in capsys.readouterr().out

    assert main([*command, "--limit", "2", "--layers", "0,3", "--split", "test"]) == 2
    said = capsys.readouterr().err
    for words in ("images: 5 there, 2 now", "layers: 0,1,2,3 there, 0,3 now", "split: val there, test now", "--out"):
        assert words in said
    assert out.read_bytes() == written


def test_another_model_is_another_run(command: list[str], saved: Shipped, tmp_path: Path, capsys: Any) -> None:
    assert main(command) == 0
    other = tmp_path / "other"
    shutil.copytree(saved.folder, other)
    weights = load_file(other / "model.safetensors")
    weights["voco"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert main([*command, "--model", str(other)]) == 2
    assert f"model: {saved.folder}" in capsys.readouterr().err


# ---- what goes wrong


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--split", "nope"], ["'nope'", "train, val, test"]),
        (["--data", "nowhere"], ["'nowhere'", "scenes"]),
        (["--model", "nowhere"], ["'nowhere'", "shipped"]),
        (["--model", "{tmp}"], ["config.json"]),
        (["--limit", "0"], ["--limit 0"]),
        (["--batch-size", "0"], ["--batch-size 0"]),
        (["--layers", "0,9"], ["no layer 9", "0 to 3"]),
        (["--layers", "some"], ["--layers some", "all"]),
        (["--device", "cuda:77"], ["--device cuda:77", "cpu"]),
        (["--device", "tpux"], ["--device tpux", "cpu"]),
        (["--out", "{tmp}/run.hdf"], [".h5"]),
        (["--data", "{tmp}/photos", "--split", "test"], ["'test'", "its splits: val"]),
        (["--data", "{tmp}/photos"], ["broken.png", "empty", "--on-error skip"]),
        (["--data", "{tmp}/labelled"], ["'colour'", "tasks.toml"]),
    ],
)
def test_bad_input_is_one_line(
    command: list[str], tmp_path: Path, capsys: Any, arguments: list[str], words: list[str]
) -> None:
    for name in ("photos", "labelled"):
        (tmp_path / name / "val").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "val" / "a.png")
    (tmp_path / "photos" / "val" / "broken.png").touch()
    (tmp_path / "labelled" / "val" / "metadata.csv").write_text("file_name,colour\na.png,black\n")

    assert main([*command, *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words), said
    assert not list(tmp_path.glob("run.*"))


def test_random_weights_are_the_same_for_a_seed_and_others_than_the_model_s(
    command: list[str], saved: Shipped, tmp_path: Path, capsys: Any
) -> None:
    runs = {"trained": command}
    for name, seed in (("one", "0"), ("again", "0"), ("other", "1")):
        out = str(tmp_path / f"{name}.h5")
        runs[name] = [*command, "--random-weights", "--seed", seed, "--out", out]
    found = {}
    for name, args in runs.items():
        assert main(args) == 0
        with open_run(Path(args[-1] if name != "trained" else args[5])) as run:
            found[name] = run.z_voco(-1)
            assert ("random weights" in run.info.model["name"]) == (name != "trained")
            assert run.shape == run_shape(saved.model.config, IMAGES)
    np.testing.assert_array_equal(found["one"], found["again"])
    for name in ("trained", "other"):
        assert np.abs(found["one"] - found[name]).max() > 0.1
    assert found["one"].std(0).max() > 1e-4, "images should still differ"

    assert main([*command, "--random-weights"]) == 2
    assert "is there already, made with other settings" in capsys.readouterr().err
    assert main([*runs["one"], "--adapter", str(tmp_path)]) == 2
    assert "belongs to trained weights" in capsys.readouterr().err
    assert main(["--model", "htc-7b", "--limit", "1"]) == 2
    assert "configuration without weights" in capsys.readouterr().err


def test_a_taken_name_is_refused(command: list[str], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "run.h5").write_text("mine")
    assert main(command) == 2
    assert "is taken" in capsys.readouterr().err and (tmp_path / "run.h5").read_text() == "mine"


def test_a_full_disk_is_seen_before_the_start(command: list[str], monkeypatch: Any, capsys: Any) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert main(command) == 2
    assert "1.0 kB free" in capsys.readouterr().err and not Path(command[5]).exists()


def test_an_interrupt_leaves_nothing(command: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    def interrupted(*_: Any) -> Image.Image:
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "render", interrupted)
    assert main(command) == 130
    assert "interrupted" in capsys.readouterr().err and not list(tmp_path.glob("run.*"))


def unnormalised(*args: Any, **settings: Any) -> star.Compressed:
    compressed = honest_compress(*args, **settings)
    return compressed._replace(attention=compressed.attention * 1.01)


def leaking(*args: Any, **settings: Any) -> star.Compressed:
    compressed = honest_compress(*args, **settings)
    doubled = [(torch.cat([k, k], 2), torch.cat([v, v], 2)) for k, v, _ in compressed.cache]
    return compressed._replace(cache=DynamicCache(doubled))


@pytest.mark.parametrize(("broken", "words"), [(unnormalised, "sum to 1"), (leaking, "one position a layer")])
def test_a_broken_law_stops_the_extraction(
    command: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any, broken: Any, words: str
) -> None:
    monkeypatch.setattr(star, "compress", broken)
    assert main(command) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.glob("run.*"))


def test_models_that_cannot_be_used(saved: Shipped, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(saved.folder, tmp_path / name))

    partial = copy("partial")
    weights = load_file(partial / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "voco"}, partial / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="no fitting weights for voco"):
        models.load(partial, dtype=torch.float32, device="cpu")

    cut = copy("cut")
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        models.digest(cut)

    foreign = copy("foreign")
    (foreign / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="type 'llama'; expected htc_vlm"):
        models.read_config(foreign)
    (foreign / "config.json").write_text("{")
    with pytest.raises(UserError, match="no HTC-VLM configuration"):
        models.read_config(foreign)
    (foreign / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no model.safetensors"):
        models.digest(foreign)


def test_shards_do_not_change_the_digest(saved: Shipped, tmp_path: Path) -> None:
    saved.model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert models.digest(tmp_path) == models.digest(saved.folder)


# ---- real photographs


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """scikit-learn's two JPEGs and crops of them, labelled, and one file that is none."""
    root, rows = tmp_path / "photos", ["file_name,place,left,tags,group"]
    (root / "val").mkdir(parents=True)
    for name in ("china", "flower"):
        whole = root / "val" / f"{name}.jpg"
        whole.write_bytes((resources.files("sklearn.datasets.images") / f"{name}.jpg").read_bytes())
        rows.append(f"{name}.jpg,{name},,outdoors,{name}")
        with Image.open(whole) as image:
            for left in (0, 200):
                image.crop((left, 100, left + 300, 350)).save(root / "val" / f"{name}-{left}.jpg")
                rows.append(f"{name}-{left}.jpg,{name},{left},outdoors|crop,{name}")
    rows.append("lost.jpg,china,7,,china")
    (root / "val" / "metadata.csv").write_text("\n".join(rows) + "\n")
    (root / "tasks.toml").write_text(
        '[place]\nsuite="semantic"\nkind="classes"\n[left]\nsuite="detail"\nkind="number"\nunit="pixels"\n'
        '[tags]\nsuite="semantic"\nkind="multilabel"\n'
    )
    return root


def test_real_photographs(photographs: Path, saved: Shipped, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", str(saved.folder), "--data", "photos", "--split", "val", "--device", "cpu"]
    assert main([*arguments, "--on-error", "skip", "--batch-size", "4"]) == 0
    said = capsys.readouterr().out
    assert "Skipped 1" in said and "lost.jpg" in said and "Next:  extract more images" in said
    with open_run(tmp_path / "runs" / "photos-val.h5") as run:
        assert len(run) == 6 and run.skipped == (("photos/val/lost.jpg", "there is no such file"),)
        assert run.groups() == ["china"] * 3 + ["flower"] * 3
        assert run.task("place").classes == ("china", "flower")
        np.testing.assert_array_equal(run.labels("place"), [0, 0, 0, 1, 1, 1])
        np.testing.assert_array_equal(run.labels("left"), [np.nan, 0, 200, np.nan, 0, 200])
        np.testing.assert_array_equal(run.labels("tags"), [[0, 1], [1, 1], [1, 1]] * 2)
        assert run.task("tags").classes == ("crop", "outdoors")
        with Image.open(photographs / "val" / "flower.jpg") as flower:
            wanted = by_hand(saved.model, [flower])
        np.testing.assert_allclose(run.z_voco()[3], wanted["hidden"][0, -1], rtol=2e-3, atol=1e-4)


# ---- the command itself


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, io\nfrom htc_probe.extract.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        "assert '--on-error' in said.getvalue()\n"
        "print([name for name in ('torch', 'transformers', 'diffusers', 'h5py', 'numpy') if name in sys.modules])\n"
    )
    root = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("lines", [1, 10_000])  # that wait in the buffer until the end, and that do not
def test_a_reader_that_has_enough_gets_no_traceback(lines: int) -> None:
    """As `htc-info RUN | head` is: the pipe is closed before anything is written."""
    code = (
        "import sys\nfrom htc_probe.extract import command\n"
        f"def work(_):\n    for _ in range({lines}):\n        print('a line')\n"
        "sys.exit(command.main('htc-x', lambda _: None, work, [], interrupted=''))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141


def test_a_broken_pipe_that_is_not_the_output_is_not_hidden(capfd: Any) -> None:
    def work(_: object) -> None:
        raise BrokenPipeError("of a process that died")

    with pytest.raises(BrokenPipeError, match="that died"):
        run_command("htc-x", lambda _: None, work, [], interrupted="")


def test_a_folder_of_the_name_of_the_built_in_scenes_is_spoken_of(
    model: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", str(model), "--limit", "2", "--out", "run.h5"]
    assert main(arguments) == 0 and "./scenes" not in capsys.readouterr().out
    (tmp_path / "scenes").mkdir()
    assert main([*arguments[:-1], "again.h5"]) == 0
    assert "for the folder `scenes` here, give --data ./scenes" in capsys.readouterr().out


def test_unknown_flags_are_errors() -> None:
    assert main(["--modle", "x"]) == 2


def test_what_comes_next_can_be_done(tmp_path: Path, model: Path, capsys: Any) -> None:
    """The command says `htc-probe` where that would probe a task, and else what is missing."""
    for limit, able in ((6, False), (120, True)):
        out = tmp_path / f"run {limit}.h5"
        assert main(["--model", str(model), "--limit", str(limit), "--out", str(out), "--device", "cpu"]) == 0
        said = capsys.readouterr().out
        (typed,) = [line for line in said.splitlines() if line.startswith("Next:")]
        assert ("extract more images" in typed) != able and ("htc-probe semantic detail --run" in typed) == able
        with open_run(out) as run:
            ready, _ = tasks.prepare(
                run.tasks,
                [run.labels(task.name) for task in run.tasks],
                np.unique(run.groups(), return_inverse=True)[1],
                10,
                np.ones(len(run), bool),
            )
            assert bool(ready) == able, "htc-probe's own rule"
            told = {task.name: _can_be_probed(run, task) for task in run.tasks}
            assert {task.task.name for task in ready} == {name for name, can in told.items() if can}
