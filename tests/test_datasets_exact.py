"""CLEVR, 3D Shapes, GQA and saved `datasets` in their official formats: planted labels are read, the rest is unknown.

Each `write_*` writes a small directory as the official release lays it out, with pictures that show what is planted.
"""

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from htc_probe.extract.cli import main as extract_main
from htc_probe.extract.data import open_source
from htc_probe.extract.data.source import ImageError, Source
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import open_run
from htc_probe.probes.cli import main as probe_main
from made.datasets_exact import (
    COLOURS,
    SHAPES,
    label,
    shown,
    task,
    write_3dshapes,
    write_clevr,
    write_datasets,
    write_gqa,
)

# ---- CLEVR


def test_clevr_reads_what_is_planted(tmp_path: Path) -> None:
    source = open_source(f"clevr:{write_clevr(tmp_path)}", "val")
    assert (source.name, source.split, len(source)) == ("clevr", "val", 60)
    first = source[0]
    assert (first.id, first.group) == ("CLEVR_val_000000.png", "clevr/CLEVR_val_000000.png")
    assert first.path == str(tmp_path / "images" / "val" / "CLEVR_val_000000.png") and first.image.size == (480, 320)

    assert shown(source, 0, "presence") == {"large metal sphere", "small metal cube", "large metal cylinder"}
    assert label(source, 0, "count") == 3
    assert [label(source, i, "relation_side") for i in (0, 1)] == ["right", "left"]
    assert [label(source, i, "relation_depth") for i in (0, 1)] == ["behind", "front"]
    # The main object is the cyan cube of scene 0 at (200, 210), and the blue cylinder of scene 1 at (300, 185).
    assert [label(source, i, "size") for i in (0, 1)] == ["small", "large"]
    assert label(source, 1, "colour") == "blue"
    assert label(source, 0, "position_x") == 200 / 480 and label(source, 0, "position_y") == 210 / 320
    # 100 is in radians, from the world's x axis; the camera's right lies at 45 degrees.
    assert label(source, 0, "rotation") == pytest.approx(np.degrees(100 - np.pi / 4) % 90)
    assert label(source, 1, "rotation") is None
    (rotation,) = (task for task in source.tasks if task.name == "rotation")
    assert (rotation.kind, rotation.unit, rotation.period) == ("circular", "degrees", 90)
    suites = {task.name: task.suite for task in source.tasks}
    assert [name for name in suites if suites[name] == "semantic"] == [
        "presence",
        "count",
        "relation_side",
        "relation_depth",
    ]


def test_a_turned_cube_looks_the_same_after_a_quarter_turn_and_for_a_turned_camera(tmp_path: Path) -> None:
    write_clevr(tmp_path)
    path = tmp_path / "scenes" / "CLEVR_val_scenes.json"
    before = open_source(f"clevr:{tmp_path}", "val")
    data = json.loads(path.read_text())
    for scene in data["scenes"]:
        right = complex(*scene["directions"]["right"][:2]) * np.exp(0.3j)
        scene["directions"]["right"] = [right.real, right.imag, 0.0]
        for thing in scene["objects"]:
            thing["rotation"] += np.pi / 2 + 0.3
    path.write_text(json.dumps(data))
    after = open_source(f"clevr:{tmp_path}", "val")
    old, new = (np.array([source[i].labels["rotation"] for i in range(20)]) for source in (before, after))
    np.testing.assert_allclose((old - new + 45) % 90, np.where(np.isnan(old), np.nan, 45), atol=1e-9)
    assert np.isfinite(old).any()


def test_clevr_leaves_out_rare_classes_and_ties(tmp_path: Path) -> None:
    write_clevr(tmp_path)
    path = tmp_path / "scenes" / "CLEVR_val_scenes.json"
    data = json.loads(path.read_text())
    same = data["scenes"][5]["objects"]
    for thing in same:
        thing["pixel_coords"] = [100, 100, 9.5]
    path.write_text(json.dumps(data))
    source = open_source(f"clevr:{tmp_path}", "val")
    colour = task(source, "colour")
    # Only three colours are drawn often; those of the planted scenes are there once.
    assert set(colour.classes) <= set(COLOURS[:3]) and "nearest to the camera" in colour.note
    assert label(source, 5, "colour") is None and label(source, 5, "position_x") is None
    assert label(source, 5, "relation_side") is None and label(source, 5, "relation_depth") is None
    assert label(source, 5, "count") == len(same)


@pytest.mark.parametrize(
    ("file", "pixels", "size"),
    [
        (2, 2, (960, 640)),  # rendered larger: the scenes' pixels are larger too
        (1, 1, (480, 320)),
        (0.5, 1, (480, 320)),  # made smaller afterwards: they are not
        (2, 1, (480, 320)),  # made larger afterwards: no object of any scene lies beyond the official size
        (2 / 3, 0.7, (320, 213)),  # rendered smaller
    ],
)
def test_clevr_positions_are_shares_of_the_image_that_was_rendered(
    tmp_path: Path, file: float, pixels: float, size: tuple[int, int]
) -> None:
    path = write_clevr(tmp_path, n=20) / "scenes" / "CLEVR_val_scenes.json"
    data = json.loads(path.read_text())
    for scene in data["scenes"]:
        for thing in scene["objects"]:
            x, y, depth = thing["pixel_coords"]
            thing["pixel_coords"] = [x * pixels, y * pixels, depth]
    path.write_text(json.dumps(data))
    for image in (tmp_path / "images" / "val").iterdir():
        with Image.open(image) as opened:
            changed = opened.resize((int(480 * file), int(320 * file)))
        changed.save(image)
    source = open_source(f"clevr:{tmp_path}", "val")
    x, y, _ = data["scenes"][0]["objects"][1]["pixel_coords"]
    assert label(source, 0, "position_x") == pytest.approx(x / size[0])
    assert label(source, 0, "position_y") == pytest.approx(y / size[1])


def test_clevr_refuses_images_that_cannot_be_those_of_its_scenes(tmp_path: Path) -> None:
    source = open_source(f"clevr:{write_clevr(tmp_path, n=12)}", "val")
    for image in (tmp_path / "images" / "val").iterdir():
        with Image.open(image) as opened:
            changed = opened.resize((224, 224))
        changed.save(image)
    with pytest.raises(ImageError, match="480 x 320 pixels, and the upright file has 224 x 224"):
        source[3]
    with pytest.raises(UserError, match="has 224 x 224 pixels, and the scenes have objects as far as"):
        open_source(f"clevr:{tmp_path}", "val")


# ---- GQA


@pytest.mark.parametrize("folder", ["sceneGraphs", "."])
def test_gqa_reads_what_is_planted(tmp_path: Path, folder: str) -> None:
    source = open_source(f"gqa:{write_gqa(tmp_path, folder=folder)}", "val")
    assert (source.name, len(source)) == ("gqa", 60)
    assert (source[0].id, source[0].group) == ("2407890", "vg/2407890")
    assert source[0].path == str(tmp_path / "images" / "2407890.jpg") and source[0].image.size == (640, 480)

    assert [label(source, i, "location") for i in range(4)] == ["kitchen", None, None, None]
    assert [label(source, i, "weather") for i in range(4)] == [None] * 4
    assert [label(source, i, "object") for i in range(4)] == ["tree", None, "car", None]
    assert [label(source, i, "colour") for i in range(4)] == ["green", None, None, None]  # none, two, none listed
    assert [label(source, i, "material") for i in range(4)] == ["wood", None, "metal", None]
    # The tree's box is cut at the left edge: 0 to 200 by 100 to 400 of 640 x 480.
    assert label(source, 0, "position_x") == 100 / 640 and label(source, 0, "position_y") == 250 / 480
    assert label(source, 0, "area") == pytest.approx(200 * 300 / (640 * 480))
    assert [label(source, 1, name) for name in ("position_x", "position_y", "area")] == [None] * 3
    assert label(source, 2, "position_x") == 0.35


def test_gqa_says_which_classes_are_too_rare(tmp_path: Path) -> None:
    source = open_source(f"gqa:{write_gqa(tmp_path)}", "val")
    assert task(source, "location").classes == ("beach", "kitchen")
    assert "1 of 3 classes with fewer than 10 images are unknown" in task(source, "location").note
    assert task(source, "object").classes == ("car", "tree")
    assert "1 of 3 classes" in task(source, "object").note
    assert not {"pattern", "pose", "shape"} & {task.name for task in source.tasks}  # no image says any of them


def test_gqa_compares_an_image_with_its_graph(tmp_path: Path) -> None:
    source = open_source(f"gqa:{write_gqa(tmp_path, n=12)}", "val")
    before = label(source, 0, "position_x")
    for size in ((320, 240), (640, 400)):
        with Image.open(source._pictures[0].path) as opened:
            changed = opened.resize(size)
        changed.save(source._pictures[0].path)
        if size == (320, 240):
            assert label(source, 0, "position_x") == before
    with pytest.raises(ImageError, match="640 x 480 pixels, and the upright file has 640 x 400"):
        source[0]


@pytest.mark.parametrize(
    ("old", "new", "twice"), [('"2407891": {', '"2407890": {', "2407890"), ('"271882"', '"271881"', "271881")]
)
def test_gqa_refuses_two_graphs_or_objects_of_one_number(tmp_path: Path, old: str, new: str, twice: str) -> None:
    path = write_gqa(tmp_path, n=12) / GQA
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=f"{path}: '{twice}' stands twice in one object"):
        open_source(f"gqa:{tmp_path}", "val")


# ---- 3D Shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_3dshapes(tmp_path_factory.mktemp("shapes"))


def test_3dshapes_reads_the_row_that_it_names(shapes: Path) -> None:
    source = open_source(f"3dshapes:{shapes}", "val")
    with h5py.File(shapes / "3dshapes.h5") as file:
        images, labels = file["images"][:], file["labels"][:]
    for index in (0, 7, len(source) - 1):
        item = source[index]
        row = int(item.id.removeprefix("3dshapes.h5#"))
        assert item.path == f"{shapes}/3dshapes.h5#{row}"
        np.testing.assert_array_equal(np.asarray(item.image), images[row])
        hues = [f"{hue:.1f}" if hue else "0" for hue in labels[row, :3]]
        assert [label(source, index, f"{what}_hue") for what in ("floor", "wall", "object")] == hues
        assert item.group == f"3dshapes/{'-'.join(hues)}"
        assert label(source, index, "shape") == SHAPES[int(labels[row, 4])]
        assert label(source, index, "scale") == pytest.approx(labels[row, 3], abs=1e-6)
        assert label(source, index, "orientation") == pytest.approx(labels[row, 5], abs=1e-6)
    assert task(source, "floor_hue").classes == ("0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9")
    assert [task.suite for task in source.tasks] == ["semantic", *["detail"] * 5]


def test_3dshapes_holds_out_combinations_of_hues_and_each_hue_equally_often(shapes: Path) -> None:
    triples: dict[str, set[tuple[str, ...]]] = {}
    for split in ("train", "val", "test"):
        source = open_source(f"3dshapes:{shapes}", split)
        groups = [source[i].group for i in range(len(source))]
        triples[split] = {tuple(group.removeprefix("3dshapes/").split("-")) for group in groups}
        assert len(groups) == 2 * len(triples[split])  # all images of a combination are in its split
    assert {split: len(found) for split, found in triples.items()} == {"train": 600, "val": 200, "test": 200}
    assert len(set.union(*triples.values())) == 1000
    for split in ("val", "test"):
        for surface in range(3):
            assert set(Counter(triple[surface] for triple in triples[split]).values()) == {20}
            pairs = Counter(triple[:surface] + triple[surface + 1 :] for triple in triples[split])
            assert len(pairs) == 100 and set(pairs.values()) == {2}


def test_3dshapes_limit_is_a_sample_and_always_the_same(shapes: Path) -> None:
    def ids(source: Source) -> list[str]:
        return [source[i].id for i in range(len(source))]

    whole, some = (open_source(f"3dshapes:{shapes}", "val", limit=limit) for limit in (None, 50))
    assert len(some) == 50 and set(ids(some)) < set(ids(whole)) and ids(some) != ids(whole)[:50]
    assert ids(some) == ids(open_source(f"3dshapes:{shapes}", "val", limit=50))
    rows = [int(name.split("#")[1]) for name in ids(some)]
    assert rows == sorted(rows) and rows[-1] - rows[0] > 1500
    assert task(some, "floor_hue") == task(whole, "floor_hue")
    by_id = {whole[i].id: whole[i] for i in range(len(whole))}
    for i in range(50):
        assert some[i].labels == by_id[some[i].id].labels and some[i].group == by_id[some[i].id].group


def test_3dshapes_can_be_pickled_after_it_was_read(shapes: Path) -> None:
    source = open_source(f"3dshapes:{shapes}", "test", limit=3)
    first = source[0]
    again = pickle.loads(pickle.dumps(source))
    assert again[0].id == first.id and again[0].image.tobytes() == first.image.tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.__delitem__("labels"), "labels None; expected"),
        (lambda file: (file.__delitem__("labels"), file.create_group("labels")), "labels None; expected"),
        (lambda file: (file.__delitem__("labels"), file.create_dataset("labels", data=np.zeros((3, 6)))), r"\(3, 6\)"),
        (lambda file: (file.__delitem__("images"), file.create_dataset("images", data=np.zeros(2000))), r"\(2000,\)"),
        (lambda file: file["labels"].__setitem__((5, 4), 4.0), "row 5; expected a shape of 0 to 3"),
        (lambda file: file["labels"].__setitem__((6, 0), np.nan), "row 6"),
    ],
)
def test_3dshapes_refuses_another_file(shapes: Path, tmp_path: Path, change: Callable, words: str) -> None:
    shutil.copy(shapes / "3dshapes.h5", tmp_path)
    with h5py.File(tmp_path / "3dshapes.h5", "r+") as file:
        change(file)
    with pytest.raises(UserError, match=words):
        open_source(f"3dshapes:{tmp_path}", "val")


def test_3dshapes_reports_damage(shapes: Path, tmp_path: Path) -> None:
    path = tmp_path / "3dshapes.h5"
    whole = (shapes / "3dshapes.h5").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="3dshapes.h5 cannot be read: .*; download it again"):
        open_source(f"3dshapes:{tmp_path}", "val")
    path.write_bytes(b"no HDF5")
    with pytest.raises(UserError, match="cannot be read"):
        open_source(f"3dshapes:{tmp_path}", "val")
    path.write_bytes(whole)
    source = open_source(f"3dshapes:{tmp_path}", "val")
    path.unlink()
    with pytest.raises(ImageError, match="cannot be read"):
        source[0]


# ---- all of them

CLEVR, GQA = "scenes/CLEVR_val_scenes.json", "sceneGraphs/val_sceneGraphs.json"


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("clevr", ["CLEVR v1.0", CLEVR, "images/val"]),
        ("gqa", ["GQA", GQA, "images"]),
        ("3dshapes", ["3D Shapes", "3dshapes.h5"]),
    ],
)
def test_an_incomplete_folder_names_the_files_that_were_looked_for(tmp_path: Path, name: str, files: list[str]) -> None:
    with pytest.raises(UserError) as error:
        open_source(f"{name}:{tmp_path}", "val")
    assert all(file in str(error.value) for file in [str(tmp_path), *files])


@pytest.mark.parametrize(
    ("name", "split", "words"),
    [
        ("clevr", "test", "test scenes were never published.*its splits: train, val"),
        ("gqa", "test", "no scene graphs of test were published.*its splits: train, val"),
        ("3dshapes", "validation", "'validation'; its splits: train, val, test"),
    ],
)
def test_a_split_that_is_not_there_is_refused(tmp_path: Path, name: str, split: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_source(f"{name}:{tmp_path}", split)


def put(*path: str | int, value: Any) -> Callable[[Any], None]:
    """A change of one value deep in a JSON document."""

    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


SCENE = ("scenes", 2)
THING = (*SCENE, "objects", 1)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("clevr", lambda data: data.pop("scenes"), ["scenes", "expected a list"]),
        ("clevr", put(*SCENE, value=7), ["scene 2", "image_filename"]),
        ("clevr", put(*SCENE, "objects", value=None), ["scene 2 has objects"]),
        ("clevr", put(*SCENE, "image_filename", value="../secret.png"), ["scene 2", "../secret.png"]),
        ("clevr", put(*SCENE, "image_filename", value="CLEVR_val_000001.png"), ["scene 2", "no other scene has"]),
        ("clevr", put(*SCENE, "directions", "right", value=[1, 0]), ["scene 2", "right", "three numbers"]),
        ("clevr", put(*SCENE, "relationships", value={}), ["scene 2 has left"]),
        ("clevr", put(*SCENE, "relationships", "left", value=[[]]), ["scene 2", "relationships left", "each object"]),
        ("clevr", put(*THING, "color", value=3), ["scene 2 object 1", "color '3'", "expected text"]),
        ("clevr", put(*THING, "rotation", value="far"), ["scene 2 object 1", "rotation 'far'", "a number"]),
        ("clevr", put(*THING, "pixel_coords", value=[1, 2]), ["scene 2 object 1", "pixel_coords", "three numbers"]),
        ("clevr", put(*THING, "pixel_coords", 2, value=float("nan")), ["scene 2 object 1", "pixel_coords", "'nan'"]),
        ("gqa", put("7", value=[]), ["image 7", "width"]),
        ("gqa", put("7", "width", value=0), ["image 7", "0 x 100"]),
        ("gqa", put("7", "height", value=True), ["image 7", "height 'True'"]),
        ("gqa", put("7", "location", value=3), ["image 7", "location '3'"]),
        ("gqa", put("7", "objects", "8", "w", value="wide"), ["image 7 object 8", "w 'wide'"]),
        ("gqa", put("7", "objects", "8", "attributes", value=[1]), ["image 7 object 8", "attributes", "words"]),
        ("gqa", put("7", "objects", "8", "name", value=None), ["image 7 object 8", "name"]),
        ("gqa", put("../../secret", value={}), ["../../secret"]),
    ],
)
def test_malformed_annotations_are_refused_where_they_stand(
    tmp_path: Path, name: str, change: Callable[[Any], None], words: list[str]
) -> None:
    write, file = {"clevr": (write_clevr, CLEVR), "gqa": (write_gqa, GQA)}[name]
    path = write(tmp_path, n=12) / file
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(UserError) as error:
        open_source(f"{name}:{tmp_path}", "val")
    message = str(error.value)
    assert all(word in message for word in [str(path), *words]) and "\n" not in message, message
    path.write_text('{"scenes": [')
    with pytest.raises(UserError, match="cannot be read as JSON"):
        open_source(f"{name}:{tmp_path}", "val")


@pytest.mark.parametrize(
    ("name", "write", "semantic", "detail"),
    [
        ("clevr", write_clevr, {"presence", "count", "relation_side"}, {"colour", "position_x", "rotation"}),
        ("gqa", write_gqa, {"location", "weather", "object"}, {"colour", "material", "position_x", "area"}),
        ("3dshapes", write_3dshapes, {"shape"}, {"floor_hue", "scale", "orientation"}),
        ("datasets", write_datasets, {"shape", "tags"}, {"size", "colour", "rounded"}),
    ],
)
def test_the_commands_as_typed(
    tmp_path: Path, name: str, write: Callable[[Path], Path], semantic: set[str], detail: set[str]
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    write(root)
    run, result = tmp_path / "run.h5", tmp_path / "result.json"
    limit = ["--limit", "150"] if name == "3dshapes" else []
    data = ["--data", f"{name}:{root}", "--split", "val", *limit]
    assert extract_main([*data, "--out", str(run), "--device", "cpu"]) == 0
    with open_run(run) as opened:
        assert opened.info.split == "val"
        assert len(opened) == (150 if limit else 60) and len(set(opened.ids())) == len(opened)
    assert probe_main(["semantic", "detail", "--run", str(run), "--out", str(result), "--jobs", "1"]) == 0
    probed = {(row["suite"], row["task"]) for row in json.loads(result.read_text())["rows"]}
    assert {("semantic", one) for one in semantic} | {("detail", one) for one in detail} <= probed
