"""htc-info: what is in a run, at once; and with --verify, whatever is wrong with it and where."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from htc_probe.extract import cli
from htc_probe.extract.info import main
from htc_probe.extract.store import Run, open_run

IMAGES = 4
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "scenes.h5"
    assert cli.main(["--limit", str(IMAGES), "--out", str(out), "--device", "cpu"]) == 0
    return out


@pytest.fixture
def copy(extracted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(extracted, tmp_path / "copy.h5"))


def test_it_tells_what_is_inside(extracted: Path, capsys: Any) -> None:
    assert main([str(extracted)]) == 0
    said = capsys.readouterr().out
    for words in (
        f"{extracted}, complete",
        "htc-tiny",
        "star",
        f"scenes val: {IMAGES} images, 0 skipped",
        "dtype float32",
        "torch ",
        "numpy ",
        "8 classes: boat, car, cup, fish, ...",
        "image widths from the left",
    ):
        assert words in said
    table = [line.split() for line in said.splitlines()]
    assert ["latents/z_voco", "image,", "layer,", "width", "4", "x", "5", "x", "128", "float16"] in [
        row[:10] for row in table
    ]
    suites = [row[:2] for row in table if row and row[0] in ("semantic", "detail")]
    assert ["semantic", "category"] in suites and ["detail", "texture"] in suites
    assert [suite for suite, _ in suites] == sorted((suite for suite, _ in suites), reverse=True)


def test_a_folder_is_told_a_line_a_run(extracted: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    shutil.copy(extracted, tmp_path / "whole.h5")
    (tmp_path / "whole.probes.json").write_text("{}")
    (tmp_path / "whole.analysis.h5").touch()
    (tmp_path / "text.h5").write_text("no run")
    begun = ["--limit", str(IMAGES), "--out", str(tmp_path / "begun.h5"), "--device", "cpu", "--batch-size", "2"]
    assert cli.main([*begun, "--shard-images", "2", "--shard", "0/2"]) == 0
    capsys.readouterr()
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr()
    table = [line.split() for line in said.out.splitlines() if line.strip()]
    assert table[1][:3] == ["whole.h5", str(IMAGES), "htc-tiny"] and table[1][-2:] == ["probes,", "analysis"]
    assert table[2] == ["begun.h5", "2", "of", str(IMAGES), "htc-tiny", "not", "finished"] and len(table) == 3
    assert said.err.count("\n") == 1 and "text.h5 cannot be read as a run: it is not an HDF5 file" in said.err
    assert main([str(tmp_path), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["images"], first["of"], second["images"], second["of"]) == (IMAGES, IMAGES, 2, IMAGES)
    assert first["created"] and first["probes"].endswith("whole.probes.json") and second["created"] is None
    assert main([str(tmp_path / "begun.h5"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == second
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 2 and "no run in" in capsys.readouterr().err
    assert main([str(tmp_path), "--verify"]) == 2 and "name a run in it" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2 and "no finished run in runs/" in capsys.readouterr().err
    (tmp_path / "runs").symlink_to(extracted.parent)
    assert main([]) == 0 and f"run    runs/{extracted.name}, complete" in capsys.readouterr().out


def test_json_is_alone_on_the_output_and_says_what_the_words_say(copy: Path, capsys: Any) -> None:
    assert main([str(copy), "--json", "--verify"]) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    with open_run(copy) as run:
        assert told["images"] == len(run) and told["settings"] == run.info.config and not said.err
        assert [each["name"] for each in told["datasets"]] == [each.name for each in run.contents()]
        assert [each["name"] for each in told["tasks"]] == [task.name for task in run.tasks]
    assert told["checks"] and not any(check["failures"] for check in told["checks"])
    with h5py.File(copy, "r+") as file:
        file["codes"][0] = 60_000
    assert main([str(copy), "--json", "--verify"]) == 2
    said = capsys.readouterr()
    assert [check["law"] for check in json.loads(said.out)["checks"] if check["failures"]] == [
        "codes holds codes of the model"
    ]
    assert "is not whole" in said.err and said.err.count("\n") == 1


def test_the_axes_of_every_dataset_have_names(extracted: Path) -> None:
    with open_run(extracted) as run:
        sizes: dict[str, set[int]] = {}
        for at in run.contents():
            assert len(at.dims) == len(at.shape) and len(set(at.dims)) == len(at.dims), at.name
            for dim, size in zip(at.dims, at.shape, strict=True):
                sizes.setdefault(dim, set()).add(size)
        shape = run.shape
    wanted = {
        "image": IMAGES,
        "layer": len(shape.stack),
        "block": shape.layers,
        "head": shape.heads,
        "key": shape.keys,
        "anchor": shape.anchors,
        "width": shape.width,
        "skipped": 0,
    }
    assert {dim: sizes[dim] for dim in wanted} == {dim: {size} for dim, size in wanted.items()}


def test_everything_in_the_file_is_told(extracted: Path) -> None:
    found = []
    with h5py.File(extracted) as file:
        file.visititems(lambda name, at: found.append(name) if isinstance(at, h5py.Dataset) else None)
    with open_run(extracted) as run:
        assert sorted(found) == sorted(at.name for at in run.contents())


def test_a_whole_run_passes(extracted: Path, capsys: Any) -> None:
    assert main([str(extracted), "--verify"]) == 0
    said = capsys.readouterr().out
    assert "WRONG" not in said and "no checksums" not in said
    for law in ("attention/voco is finite and adds up", "images/id can be read, each image once", "codes holds"):
        assert f"ok     {law}" in said


def flip(path: Path, name: str) -> None:
    """One bit in the middle of the last chunk of a dataset."""
    with h5py.File(path) as file:
        dataset = file[name]
        chunk = dataset.id.get_chunk_info(dataset.id.get_num_chunks() - 1)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("name", ["images/thumbnail", "latents/z_voco", "attention/voco", "codes", "labels/size"])
def test_one_flipped_bit_is_found(copy: Path, capsys: Any, name: str) -> None:
    flip(copy, name)
    assert main([str(copy)]) == 0, "nothing is read"
    assert main([str(copy), "--verify"]) == 2
    said, error = capsys.readouterr()
    wrong = [line for line in said.splitlines() if line.startswith("WRONG")]
    assert len(wrong) == 1 and wrong[0].split()[1] == name
    with open_run(copy) as run:
        # Thumbnails and attention have a chunk an image, and the last is damaged; the others are in one chunk.
        image = run.ids()[-1 if name in ("images/thumbnail", "attention/voco") else 0]
    assert f"from image {image!r} on: " in said and f"damaged at {name}" in said
    assert error.count("\n") == 1 and "is not whole" in error


def unnormalised(file: h5py.File) -> None:
    file["attention/voco"][2, 1, 1] *= 1.01


def negligible(file: h5py.File) -> None:
    file["attention/voco"][2, 1, 1] *= 1.0001


def another_mass(file: h5py.File) -> None:
    file["attention/anchor_mass"][2, 0, 0] += 0.01


def not_a_number(file: h5py.File) -> None:
    file["latents/v_d"][2, 1, 3] = np.nan


def infinite(file: h5py.File) -> None:
    file["latents/z_voco"][2, -1, 0] = -np.inf


def strange_code(file: h5py.File) -> None:
    file["codes"][2, 0, 0, 0] = 2048 // 8  # the codes of a group


def strange_class(file: h5py.File) -> None:
    file["labels/scene"][2] = 6


def strange_mark(file: h5py.File) -> None:
    file["labels/present"][2, 0] = 2


def endless(file: h5py.File) -> None:
    file["labels/size"][2] = np.inf


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (unnormalised, "attention/voco .*\n +image '{id}': attention that does not sum to 1"),
        (another_mass, "attention/anchor_mass .*\n +image '{id}': anchor_mass that is not"),
        (not_a_number, "latents/v_d .*\n +image '{id}': a value that is no finite number"),
        (infinite, "latents/z_voco .*\n +image '{id}': a value that is no finite number"),
        (strange_code, "codes .*\n +image '{id}': a code beyond 0 to 255"),
        (strange_class, "labels/scene .*\n +image '{id}': a class beyond -1 to 5"),
        (strange_mark, "labels/present .*\n +image '{id}': a label other than 0, 1 and 255"),
        (endless, "labels/size .*\n +image '{id}': an infinite number"),
    ],
)
def test_what_breaks_a_law_is_told_with_its_image(
    copy: Path, capsys: Any, edit: Callable[[h5py.File], None], words: str
) -> None:
    with h5py.File(copy, "r+") as file:
        edit(file)
    with open_run(copy) as run:
        image = run.ids()[2]
    assert main([str(copy), "--verify"]) == 2
    said = capsys.readouterr().out
    assert re.search("WRONG  " + words.format(id=re.escape(image)), said), said
    assert said.count(f"image {image!r}") == said.count("WRONG"), "no other image is blamed"


def test_what_float16_rounds_is_allowed(copy: Path) -> None:
    with h5py.File(copy, "r+") as file:
        negligible(file)
    assert main([str(copy), "--verify"]) == 0


def test_an_image_that_is_there_twice(copy: Path, capsys: Any) -> None:
    with h5py.File(copy, "r+") as file:
        file["images/id"][3] = file["images/id"][1]
    assert main([str(copy), "--verify"]) == 2
    assert "is there 2 times" in capsys.readouterr().out


def test_verifying_in_small_pieces_gives_the_same(copy: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(copy, "r+") as file:
        unnormalised(file)
        another_mass(file)
    found = []
    for step in (2**24, 1):
        monkeypatch.setattr("htc_probe.extract.info._STEP", step)
        assert main([str(copy), "--verify"]) == 2
        found.append(capsys.readouterr().out)
    assert found[0] == found[1] and found[0].count("WRONG") == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no run at"),
        (lambda path: path.write_bytes(b"hello"), "it is not an HDF5 file"),
        (lambda path: h5py.File(path, "w").close(), "not a run of htc-extract"),
    ],
)
def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: Any, make: Callable[[Path], Any], words: str) -> None:
    make(tmp_path / "run.h5")
    assert main([str(tmp_path / "run.h5"), "--verify"]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out


def test_an_incomplete_run_is_one_line(copy: Path, capsys: Any) -> None:
    with h5py.File(copy, "r+") as file:
        file.attrs["complete"] = False
    assert main([str(copy)]) == 2
    said = capsys.readouterr()
    assert "is incomplete" in said.err and said.err.count("\n") == 1 and not said.out


def test_it_takes_no_torch_and_help_nothing_heavy(extracted: Path) -> None:
    code = (
        "import sys, contextlib, io\nfrom htc_probe.extract.info import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        "assert '--verify' in said.getvalue() and not {'h5py', 'numpy'} & set(sys.modules)\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    assert main([{str(extracted)!r}, '--verify']) == 0\n"
        "print([name for name in ('torch', 'transformers', 'PIL', 'sklearn') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"


def test_a_long_run_is_told_without_being_read(extracted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the list of what was skipped is read: its length is part of the answer."""
    read: list[str] = []
    honest = Run._read

    def counted(self: Run, name: str, *at: Any, **how: Any) -> np.ndarray:
        read.append(name)
        return honest(self, name, *at, **how)

    monkeypatch.setattr(Run, "_read", counted)
    assert main([str(extracted)]) == 0
    assert set(read) == {"skipped"}
