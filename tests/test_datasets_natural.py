"""CUB, DTD, COCO and PACO-LVIS in their official formats: what is read, what is unknown, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from htc_probe.extract.cli import main as extract_main
from htc_probe.extract.data import open_source
from htc_probe.extract.data.files import FileSource, Picture
from htc_probe.extract.data.source import ImageError, Tabled
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import open_run
from htc_probe.probes.cli import main as probes_main
from made.datasets_natural import (
    BLUE,
    FORMATS,
    GREEN,
    PACO_TYPES,
    RED,
    draw,
    edit_json,
    items,
    make_coco,
    make_cub,
    make_dtd,
    make_paco,
    task,
)

UNKNOWN = 255


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each, not to be changed."""
    return {name: one.make(tmp_path_factory.mktemp(name)) for name, one in FORMATS.items()}


# ---- CUB


def test_cub(roots: dict[str, Path]) -> None:
    source = open_source(f"cub:{roots['cub']}", "test")
    assert (source.name, source.split, len(source)) == ("cub", "test", 50)
    assert [(one.name, one.suite, one.kind, one.classes) for one in source.tasks] == [
        ("species", "semantic", "classes", ("001.Black_footed_Albatross", "002.Laysan_Albatross")),
        ("bill_shape", "detail", "multilabel", ("cone", "dagger")),
        ("wing_color", "detail", "multilabel", ("blue", "rufous")),
        ("head_x", "detail", "number", ()),
        ("head_y", "detail", "number", ()),
    ]
    assert "1 of 3 classes with fewer than 10 images are unknown" in task(source, "species").note
    assert "1 of 3 classes with fewer than 10 images are left out" in task(source, "wing_color").note
    assert "not visible" in task(source, "wing_color").note and "nape" in task(source, "head_x").note

    found = {int(item.group.removeprefix("cub/")): item for item in items(source).values()}
    assert sorted(found) == [i for i in range(1, 53) if i not in (1, 25)]
    two = found[2]
    assert two.id == "001.Black_footed_Albatross/Black_footed_Albatross_0002_796002.png"
    assert Path(two.path) == roots["cub"] / "images" / two.id and two.image.getpixel((0, 0)) == RED
    assert [found[i].labels["species"] for i in (2, 24, 26, 48, 49, 52)] == [0, 0, 1, 1, -1, -1]
    for i, item in found.items():
        assert item.labels["bill_shape"].tolist() == [int(i > 24), int(i <= 24)]  # of 7, with a stray 0, too
        hidden = [UNKNOWN, UNKNOWN]
        assert item.labels["wing_color"].tolist() == (hidden if i % 5 == 0 else [int(i % 2 == 0), int(i % 2 == 1)])
        direction = [np.nan, np.nan] if i % 7 == 0 else [0.6, 0.8] if i % 2 else [-0.6, -0.8]
        np.testing.assert_allclose([item.labels["head_x"], item.labels["head_y"]], direction)


def test_cub_train(roots: dict[str, Path]) -> None:
    source = open_source(f"cub:{roots['cub']}", "train")
    assert [item.group for item in items(source).values()] == ["cub/1", "cub/25"]
    # No class has ten images, and both birds look the same way.
    assert [one.name for one in source.tasks] == []


def test_cub_names_its_attributes_in_either_place(tmp_path: Path) -> None:
    root = make_cub(tmp_path)
    beside = open_source(f"cub:{root}", "test").tasks
    shutil.move(tmp_path / "attributes.txt", root / "attributes" / "attributes.txt")
    assert open_source(f"cub:{root}", "test").tasks == beside
    (root / "attributes" / "attributes.txt").unlink()
    with pytest.raises(UserError) as error:
        open_source(f"cub:{root}", "test")
    for place in (tmp_path / "attributes.txt", root / "attributes" / "attributes.txt"):
        assert str(place) in str(error.value)


# ---- DTD


def test_dtd(roots: dict[str, Path]) -> None:
    source = open_source(f"dtd:{roots['dtd']}", "test")
    assert (source.name, source.split, len(source)) == ("dtd", "test", 36)
    assert [(one.name, one.suite, one.kind, one.classes) for one in source.tasks] == [
        ("texture", "detail", "classes", ("banded", "dotted", "grid")),
        ("textures", "detail", "multilabel", ("banded", "dotted", "grid")),
    ]
    for name, item in items(source).items():
        assert item.group == f"dtd/{name}" and Path(item.path) == roots["dtd"] / "images" / name
        number = "bdg".index(name[0])
        assert item.labels["texture"] == number and item.image.getpixel((0, 0)) == (RED, GREEN, BLUE)[number]
        assert item.labels["textures"].tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]][number]


def test_dtd_has_ten_divisions(tmp_path: Path) -> None:
    root = make_dtd(tmp_path)
    first, second = (list(items(open_source(f"dtd:{root}", split))) for split in ("test", "test2"))
    assert len(second) == 12 and not set(first) & set(second)
    assert list(items(open_source(f"dtd:{root}", "test1"))) == first
    with pytest.raises(UserError, match=r"labels/val10\.txt"):
        open_source(f"dtd:{root}", "val10")
    for split in ("test11", "test0", "valid"):
        with pytest.raises(UserError, match=rf"no split '{split}'; its splits: train, val, test, train1 to train10"):
            open_source(f"dtd:{root}", split)


def test_dtd_joint_labels_that_are_missing_are_unknown(tmp_path: Path) -> None:
    root = make_dtd(tmp_path)
    joint = root / "labels" / "labels_joint_anno.txt"
    joint.write_text("".join(line for line in joint.open() if "banded_0003" not in line))
    found = items(open_source(f"dtd:{root}", "test"))
    assert found["banded/banded_0003.png"].labels["textures"].tolist() == [UNKNOWN] * 3
    assert found["banded/banded_0004.png"].labels["textures"].tolist() == [1, 0, 1]
    joint.unlink()
    assert [one.name for one in open_source(f"dtd:{root}", "test").tasks] == ["texture"]


# ---- COCO


def test_coco(roots: dict[str, Path]) -> None:
    source = open_source(f"coco:{roots['coco']}", "val")
    assert (source.name, source.split, len(source)) == ("coco", "val", 60)
    assert [(one.name, one.suite, one.kind, one.classes) for one in source.tasks] == [
        ("objects", "semantic", "multilabel", ("cat", "dog", "person")),
        ("supercategories", "semantic", "multilabel", ("animal", "person")),
        ("count", "semantic", "number", ()),
        ("centre_x", "detail", "number", ()),
        ("centre_y", "detail", "number", ()),
        ("area", "detail", "number", ()),
    ]
    assert "1 of 4 classes with fewer than 10 images are left out" in task(source, "objects").note
    assert "crowd" in task(source, "count").note and "lone object" in task(source, "area").note
    assert task(source, "centre_x").unit == "share of the image's width"
    found = list(items(source).values())
    assert found[3].id == "000000001021.png" and found[3].group == "coco/1021"
    assert Path(found[3].path) == roots["coco"] / "val2017" / "000000001021.png" and found[3].image.size == (80, 40)

    def labels(i: int) -> tuple[list[int], list[int], list[float]]:
        row = found[i].labels
        numbers = [float(row[name]) for name in ("count", "centre_x", "centre_y", "area")]
        return row["objects"].tolist(), row["supercategories"].tolist(), numbers

    nan = float("nan")
    for i, objects, above, numbers in [
        (0, [0, 0, 1], [0, 1], [1, 10 / 80, 10 / 40, 100 / 3200]),
        (21, [0, 1, 0], [1, 0], [1, 31 / 80, 11 / 40, 100 / 3200]),
        (29, [0, 1, 0], [1, 0], [1, 39 / 80, 13 / 40, 140 / 3200]),
        (30, [1, 0, 1], [1, 1], [2, nan, nan, nan]),
        (40, [0, 0, 1], [0, 1], [nan, nan, nan, nan]),  # a rare toaster, and a crowd: not countable
        (45, [0, 0, 1], [0, 1], [nan, nan, nan, nan]),  # a crowd is no lone object
        (46, [0, 0, 0], [0, 0], [0, nan, nan, nan]),
    ]:
        assert labels(i)[:2] == (objects, above)
        np.testing.assert_allclose(labels(i)[2], numbers, err_msg=str(i))


# ---- PACO


def test_paco(roots: dict[str, Path]) -> None:
    source = open_source(f"paco:{roots['paco']}", "val")
    assert (source.name, source.split, len(source)) == ("paco", "val", 60)
    assert [(one.name, one.suite, one.kind, one.classes) for one in source.tasks] == [
        ("object", "semantic", "classes", ("mug", "table")),
        ("shade", "detail", "multilabel", ("black", "light_blue", "red")),
        ("pattern", "detail", "multilabel", ("plain", "striped")),
        # No object is of wood, and the catch-all is no material: nothing is left of that task.
        ("transparency", "detail", "multilabel", ("opaque",)),
    ]
    assert all("cut out by its box" in one.note for one in source.tasks)
    found = items(source)
    assert list(found) == [str(10 * i + 4 * side) for i in range(30) for side in (0, 1)]
    for i in range(30):
        for side in (0, 1):
            item = found[str(10 * i + 4 * side)]
            assert item.group == f"coco/{500 + i}"
            assert Path(item.path) == roots["paco"] / ("train2017", "val2017")[i % 2] / f"{500 + i:012d}.png"
            assert item.image.size == ((20, 30), (34, 38))[side]
            assert item.image.getextrema() == tuple((c, c) for c in (RED, BLUE)[side])  # the box and nothing around it
            assert item.labels["object"] == side
            got = {name: item.labels[name].tolist() for name in ("shade", "pattern", "transparency")}
            if i % 3 == 0:
                assert got == {"shade": [UNKNOWN] * 3, "pattern": [UNKNOWN] * 2, "transparency": [UNKNOWN]}
            else:
                partly = i % 3 == 1 and side == 1
                assert got == {
                    "shade": [int(side == 0), int(partly), int(side == 1)],
                    "pattern": [int(i % 2 == 0), int(i % 2 == 1)],
                    "transparency": [UNKNOWN if partly else 1],
                }


def test_paco_leaves_out_what_nobody_can_cut_and_takes_objects_without_the_fields(tmp_path: Path) -> None:
    root = make_paco(tmp_path)

    def change(data: dict[str, Any]) -> None:
        objects = [row for row in data["annotations"] if row["id"] == row["obj_ann_id"]]
        objects[0]["bbox"] = [5, 5, 0, 10]
        for name in ("attribute_ids", *(f"unknown_{kind}" for kind in PACO_TYPES)):
            del objects[2][name]

    edit_json(root / "annotations" / "paco_lvis_v1_val.json", change)
    found = items(open_source(f"paco:{root}", "val"))
    assert len(found) == 59 and "0" not in found
    assert found["10"].labels["shade"].tolist() == [UNKNOWN] * 3


def test_one_image_is_one_group_in_coco_and_paco(tmp_path: Path) -> None:
    paco = make_paco(tmp_path / "a")
    coco = make_coco(tmp_path / "b")
    edit_json(coco / "annotations" / "instances_val2017.json", lambda data: data["images"][50].update(id=503))
    groups = {item.group for item in items(open_source(f"paco:{paco}", "val")).values()}
    assert open_source(f"coco:{coco}", "val")[50].group in groups


# ---- a limit, and images that are not there


def test_a_limit_is_a_fair_sample_of_a_list_sorted_by_class(roots: dict[str, Path]) -> None:
    for limit in (3, 6, 7, 36, 1000):
        source = open_source(f"dtd:{roots['dtd']}", "test", limit=limit)
        labels = [int(source[i].labels["texture"]) for i in range(len(source))]
        counts = [labels.count(texture) for texture in range(3)]
        assert len(source) == min(limit, 36) and labels == sorted(labels)
        assert max(counts) - min(counts) <= 1, counts
        assert len({source[i].id for i in range(len(source))}) == len(source)
    assert open_source(f"dtd:{roots['dtd']}", "test", limit=6).tasks == open_source(f"dtd:{roots['dtd']}", "test").tasks


def test_labels_stay_with_their_picture(tmp_path: Path) -> None:
    from htc_probe.extract.data.labels import number_labels

    pictures = []
    for i in range(10):
        draw(tmp_path / f"{i}.png", (i, i, i))
        pictures.append(Picture(str(i), tmp_path / f"{i}.png", str(i)))
    labels = number_labels("level", "detail", list(range(10)), "")
    assert labels is not None
    for limit in (None, 1, 3, 4, 10):
        source = FileSource("levels", "all", pictures, [labels], limit=limit)
        assert all(source[i].image.getpixel((0, 0))[0] == source[i].labels["level"] for i in range(len(source)))
        with pytest.raises(IndexError):
            source[len(source)]


@pytest.mark.parametrize("name", FORMATS)
def test_all_labels_are_those_of_the_items(name: str, roots: dict[str, Path]) -> None:
    for limit in (None, 7):
        source = open_source(f"{name}:{roots[name]}", FORMATS[name].split, limit=limit)
        assert isinstance(source, Tabled)
        for asked, values in source.labels().items():
            np.testing.assert_equal(values, np.array([source[i].labels[asked] for i in range(len(source))]))


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_image_is_found_when_it_is_read(name: str, tmp_path: Path) -> None:
    root = FORMATS[name].make(tmp_path)
    source = open_source(f"{name}:{root}", FORMATS[name].split)
    Path(source[5].path).unlink()
    source = open_source(f"{name}:{root}", FORMATS[name].split)
    with pytest.raises(ImageError, match="there is no such file"):
        source[5]


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "splits"),
    [("cub", "train, test"), ("coco", "train, val"), ("paco", "train, val, test"), ("dtd", "train, val, test")],
)
def test_an_unknown_split_lists_those_there_are(name: str, splits: str, roots: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=f"no split 'all'; its splits: {splits}"):
        open_source(f"{name}:{roots[name]}", "all")


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("cub", "images"),
        ("cub", "images.txt"),
        ("cub", "attributes/image_attribute_labels.txt"),
        ("cub", "parts/part_locs.txt"),
        ("dtd", "images"),
        ("dtd", "labels/test1.txt"),
        ("coco", "val2017"),
        ("coco", "annotations/instances_val2017.json"),
        ("paco", "train2017"),
        ("paco", "annotations/paco_lvis_v1_val.json"),
    ],
)
def test_what_is_missing_is_named(name: str, gone: str, tmp_path: Path) -> None:
    root = FORMATS[name].make(tmp_path)
    shutil.move(root / gone, tmp_path / "gone")
    with pytest.raises(UserError, match=f"it has no {gone} ") as error:
        open_source(f"{name}:{root}", FORMATS[name].split)
    assert str(root) in str(error.value) and "\n" not in str(error.value)


MARKS, JSON, PACO = "attributes/image_attribute_labels.txt", "annotations/instances_val2017.json", "paco_lvis_v1_val"


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "words"),
    [
        ("cub", "images.txt", "3 001.", "three 001.", "images.txt line 3 is 'three 001."),
        ("cub", "images.txt", "3 001.Black", "99 001.Black", "no line for image 99"),
        ("cub", "train_test_split.txt", "4 0\n", "4 2\n", "line 4 is '4 2'"),
        ("cub", "train_test_split.txt", "4 0\n", "", "no line for image 4"),
        ("cub", "image_class_labels.txt", "5 1\n", "5\n", "line 5 is '5'"),
        ("cub", "image_class_labels.txt", "5 1\n", "5 9\n", "the class 9"),
        ("cub", MARKS, "2 3 1 4 12.7150", "2 3 yes 4 12.7150", "line 8 is '2 3 yes 4 12.7150'"),
        ("cub", MARKS, "2 3 1 4 12.7150", "2 3 1", "line 8 is '2 3 1'"),
        ("cub", MARKS, "2 3 1 4 12.7150", "2 3 2 4 12.7150", "line 8 is '2 3 2 4"),
        ("cub", MARKS, "2 3 1 4 12.7150", "2 3 1 5 12.7150", "line 8 is '2 3 1 5"),
        ("cub", MARKS, "2 3 1 4 12.7150", "2 6 1 4 12.7150", "line 8 is '2 6 1 4"),
        ("cub", MARKS, "2 3 1 4 12.7150", "70 3 1 4 12.7150", "line 8 is '70 3 1"),
        ("cub", "../attributes.txt", "2 has_bill_shape::cone", "2 has_bill_shape", "line 2 is '2 has_bill_shape'"),
        ("cub", "parts/parts.txt", "10 nape", "10 neck", "no part 'nape'"),
        ("cub", "parts/part_locs.txt", "1 2 26.0 18.0 1", "1 2 26.0 18.0", "line 2 is '1 2 26.0 18.0'"),
        ("dtd", "labels/test1.txt", "banded/banded_0002.png", "banded_0002.png", "test1.txt line 3"),
        ("dtd", "labels/labels_joint_anno.txt", "banded/banded_0002.png banded grid ", "banded/b.png", "line 3"),
        ("coco", JSON, '"images"', '"pictures"', "has images 'None'; expected a list"),
        ("coco", JSON, '"file_name": "000000001007.png"', '"file_name": 3', "images[1] has file_name '3'"),
        ("coco", JSON, '"width": 80', '"width": 0', "0 x 40 pixels"),
        ("coco", JSON, '"bbox": [3.0, 8, 20, 10]', '"bbox": [3.0, 8, 20]', "[3.0, 8, 20]; expected [x, y, width,"),
        ("coco", JSON, '"bbox": [3.0, 8, 20, 10]', '"bbox": null', "has bbox 'None'"),
        ("coco", JSON, '"bbox": [3.0, 8, 20, 10]', '"bbox": [3.0, 5, NaN, 10]', "nan, 10]"),
        ("coco", JSON, '"category_id": 17', '"category_id": 16', "category 16"),
        ("coco", JSON, '"image_id": 1000,', '"image_id": 1001,', "names image 1001"),
        ("coco", JSON, '"categories"', "", "cannot be read as JSON"),
        ("paco", f"annotations/{PACO}.json", '"attribute_ids": [0,', '"attribute_ids": ["black",', "['black',"),
        ("paco", f"annotations/{PACO}.json", '"attribute_ids": [0,', '"attribute_ids": [77,', "[77,"),
        ("paco", f"annotations/{PACO}.json", '"unknown_color": 0', '"unknown_color": "no"', "'no'; expected 0 or 1"),
        ("paco", f"annotations/{PACO}.json", '"material": [6, 7]', '"material": 6', "lists no 'material'"),
        ("paco", f"annotations/{PACO}.json", '"obj_ann_id": 10,', "", "obj_ann_id 'None'"),
        ("paco", f"annotations/{PACO}.json", '"category_id": 7', '"category_id": 8', "category 8"),
    ],
)
def test_a_malformed_line_is_named(name: str, file: str, old: str, new: str, words: str, tmp_path: Path) -> None:
    root = FORMATS[name].make(tmp_path)
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        open_source(f"{name}:{root}", FORMATS[name].split)
    said = str(error.value)
    assert words in said and Path(file).name in said and "\n" not in said, said


def repeat(table: str, row: int = 0, **changes: Any) -> Callable[[dict[str, Any]], None]:
    """One more row in a table of a JSON file, its fields changed: what two files that were merged leave."""
    return lambda data: data[table].append(data[table][row] | changes)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("coco", repeat("images", file_name="other.png"), "id 1000 stands twice in .*: images"),
        ("coco", repeat("images", id=5), "file_name '000000001000.png' stands twice in .*: images"),
        ("coco", repeat("categories", name="cup"), "id 1 stands twice in .*: categories"),
        ("coco", repeat("annotations", image_id=1007), "id 9[0-9]+ stands twice in .*: annotations"),
        ("paco", repeat("images", file_name="val2017/other.png"), "id 500 stands twice in .*: images"),
        ("paco", repeat("images", id=5), "file_name .*0500.png' stands twice in .*: images"),
        ("paco", repeat("categories", name="cup"), "id 7 stands twice in .*: categories"),
        ("paco", repeat("annotations"), "id 0 stands twice in .*: annotations"),
        ("paco", repeat("attributes", name="green"), "id 0 stands twice in .*: attributes"),
        ("paco", repeat("attributes", id=99), "name 'black' stands twice in .*: attributes"),
    ],
)
def test_two_rows_of_one_id_are_refused(name: str, change: Callable, words: str, tmp_path: Path) -> None:
    root = FORMATS[name].make(tmp_path)
    edit_json(next((root / "annotations").iterdir()), change)
    with pytest.raises(UserError, match=words):
        open_source(f"{name}:{root}", "val")


@pytest.mark.parametrize(
    ("name", "file", "line", "words"),
    [
        ("cub", "images.txt", "3 002.Laysan_Albatross/other.png", "line 53 is .*, and line 3 is about 3 too"),
        ("cub", "images.txt", "99 001.Black_footed_Albatross/Black_footed_Albatross_0003_796003.png", "no line for"),
        ("cub", "train_test_split.txt", "3 1", "line 53 is '3 1', and line 3 is about 3 too"),
        ("cub", "classes.txt", "1 001.Crow", "line 4 is '1 001.Crow', and line 1"),
        ("cub", "classes.txt", "4 002.Laysan_Albatross", "class '002.Laysan_Albatross' stands twice"),
        ("cub", "image_class_labels.txt", "3 2", "line 53 is '3 2', and line 3"),
        ("cub", "../attributes.txt", "2 has_bill_shape::hooked", "line 6 is .*, and line 2"),
        ("cub", "../attributes.txt", "6 has_bill_shape::cone", "attribute 'bill_shape::cone' stands twice"),
        ("cub", MARKS, "2 3 0 4 12.7150", "attribute 3 of image 2 twice"),
        ("cub", "parts/parts.txt", "2 bill", "line 16 is '2 bill', and line 2"),
        ("cub", "parts/parts.txt", "16 beak", "part 'beak' stands twice"),
        ("cub", "parts/part_locs.txt", "2 2 9.0 9.0 1", "line 781 is .*, and line 17 is about 2 2 too"),
        ("dtd", "labels/test1.txt", "banded/banded_0002.png", "line 37 is .*, and line 3 is about"),
        ("dtd", "labels/labels_joint_anno.txt", "banded/banded_0002.png grid", "line 46 is .*, and line 3 is about"),
    ],
)
def test_two_lines_about_one_thing_are_refused(name: str, file: str, line: str, words: str, tmp_path: Path) -> None:
    root = FORMATS[name].make(tmp_path)
    with (root / file).open("a") as opened:
        opened.write(f"{line}\n")
    if line.startswith("99"):
        with (root / "train_test_split.txt").open("a") as opened:
            opened.write("99 1\n")
        words = "file .*0003_796003.png' stands twice in .*images.txt"
    with pytest.raises(UserError, match=words) as error:
        open_source(f"{name}:{root}", FORMATS[name].split)
    assert Path(file).name in str(error.value)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[1, 2]", b"null\n"])
def test_files_of_something_else_are_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    root = FORMATS[name].make(tmp_path)
    for path in [*root.rglob("*.txt"), *root.rglob("*.json")]:
        whole = path.read_bytes()
        path.write_bytes(content)
        if path.name not in ("test2.txt", "labels_joint_anno.txt"):
            with pytest.raises(UserError) as error:
                open_source(f"{name}:{root}", FORMATS[name].split)
            assert "\n" not in str(error.value)
        path.write_bytes(whole)


# ---- the commands


@pytest.mark.parametrize("name", FORMATS)
def test_the_commands_read_it(name: str, roots: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    split, data, out = FORMATS[name].split, f"{name}:{roots[name]}", tmp_path / "run.h5"
    assert extract_main(["--data", data, "--split", split, "--out", str(out), "--device", "cpu"]) == 0
    source = open_source(data, split)
    suites = list(dict.fromkeys(one.suite for one in source.tasks))
    assert suites == (["detail"] if name == "dtd" else ["semantic", "detail"])
    assert f"htc-probe {' '.join(suites)} --run {out}" in capsys.readouterr().out
    with open_run(out) as run:
        assert run.tasks == source.tasks and (run.info.dataset, run.info.split) == (name, split)
        assert run.ids() == list(items(source)) and run.groups() == [one.group for one in items(source).values()]
        for one in source.tasks:
            expected = [source[i].labels[one.name] for i in range(len(source))]
            np.testing.assert_allclose(run.labels(one.name), np.array(expected))

    assert probes_main(["semantic", "detail", "--run", str(out), "--jobs", "1"]) == 0  # also where one is missing
    found = json.loads((tmp_path / "run.probes.json").read_text())["rows"]
    # Every object of which it is known is opaque: there is nothing to tell apart.
    assert {row["task"] for row in found} == {one.name for one in source.tasks} - {"transparency"}
    semantic = [row for row in found if row["representation"] == "z_voco" and row["task"] in ("species", "object")]
    assert all(row["estimate"] > 0.9 for row in semantic)  # the colour of the picture gives it away
