"""A folder of images: what is read, what is unknown, and what is refused with which words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from htc_probe.extract.cli import main
from htc_probe.extract.data import open_source
from htc_probe.extract.data.imagefolder import ImageFolder
from htc_probe.extract.data.source import ImageError
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Task

RED, GREEN = (200, 0, 0), (0, 200, 0)
TOML = """
[texture]
suite = "detail"
kind = "classes"
[present]
suite = "semantic"
kind = "multilabel"
[size]
suite = "detail"
kind = "number"
unit = "cm"
"""
CSV = """file_name,texture,present,size,group
b.png,striped,dog|cat,1.5,first
sub/a.png,,dog;bird,,
"""
ROWS = [
    {"file_name": "b.png", "texture": "striped", "present": ["dog", "cat"], "size": 1.5, "group": "first"},
    {"file_name": "sub/a.png", "texture": None, "present": ["dog", "bird"], "size": None, "group": None},
]


def picture(path: Path, colour: tuple[int, int, int] = RED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    picture(root / "val" / "b.png")
    picture(root / "val" / "sub" / "a.png", GREEN)
    (root / "train").mkdir()
    (root / "tasks.toml").write_text(TOML)
    return root


def as_csv(folder: Path) -> None:
    (folder / "metadata.csv").write_text(CSV)


def as_jsonl(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS) + "\n")


def as_parquet(folder: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "metadata.parquet")


@pytest.mark.parametrize("write", [as_csv, as_jsonl, as_parquet])
def test_three_formats_give_the_same_labels(folder: Path, write: Callable[[Path], None]) -> None:
    write(folder / "val")
    source = open_source(str(folder), "val")
    assert (source.name, source.split, len(source)) == ("photos", "val", 2)
    assert source.tasks == (
        Task("texture", "detail", "classes", ("striped",)),
        Task("present", "semantic", "multilabel", ("bird", "cat", "dog")),
        Task("size", "detail", "number", unit="cm"),
    )
    first, second = source[0], source[1]
    assert (first.id, first.group, first.path) == ("b.png", "first", str(folder / "val" / "b.png"))
    assert (second.id, second.group) == ("sub/a.png", "sub/a.png")
    assert first.labels["texture"] == 0 and first.labels["size"] == 1.5
    assert second.labels["texture"] == -1 and np.isnan(second.labels["size"])
    np.testing.assert_array_equal(first.labels["present"], [0, 1, 1])
    np.testing.assert_array_equal(second.labels["present"], [1, 0, 1])
    assert first.image.getpixel((0, 0)) == RED and second.image.getpixel((0, 0)) == GREEN


def test_a_circular_column_is_read_within_its_period(folder: Path) -> None:
    (folder / "tasks.toml").write_text('[t]\nsuite="detail"\nkind="circular"\nperiod=360\nunit="degrees"')
    table = "file_name,t\nb.png,-30\nsub/a.png,720.5\nc.png,\nd.png,-1e-20\n"
    (folder / "val" / "metadata.csv").write_text(table)
    for file in ("c.png", "d.png"):
        picture(folder / "val" / file)
    source = open_source(str(folder), "val")
    assert source.tasks == (Task("t", "detail", "circular", unit="degrees", period=360),)
    np.testing.assert_array_equal([source[at].labels["t"] for at in range(4)], [330, 0.5, np.nan, 0])


def test_unknown_is_not_none_of_them(folder: Path) -> None:
    (folder / "tasks.toml").write_text('[present]\nsuite="semantic"\nkind="multilabel"')
    (folder / "val" / "metadata.csv").write_text("file_name,present\nb.png,\nsub/a.png,|\nc.png,NaN\nd.png,dog\n")
    source = ImageFolder(folder, "val")
    for file in ("c.png", "d.png"):
        picture(folder / "val" / file)
    assert [source[i].labels["present"] for i in range(4)] == [255, 0, 255, 1]


def test_declared_classes_are_kept_sorted(folder: Path) -> None:
    (folder / "tasks.toml").write_text('[t]\nsuite="detail"\nkind="classes"\nclasses=["z", "m", "a"]')
    (folder / "val" / "metadata.csv").write_text("file_name,t\nb.png,z\nsub/a.png,a\n")
    source = ImageFolder(folder, "val")
    assert source.tasks[0].classes == ("a", "m", "z")
    assert [source[i].labels["t"] for i in range(2)] == [2, 0]


def test_without_metadata_there_are_images_and_no_labels(folder: Path) -> None:
    (folder / "tasks.toml").unlink()
    (folder / "val" / "notes.txt").write_text("not an image")
    picture(folder / "val" / ".hidden" / "c.png")
    source = ImageFolder(folder, "val")
    assert [source[i].id for i in range(len(source))] == ["b.png", "sub/a.png"]
    assert source.tasks == () and source[0].labels == {}
    assert len(ImageFolder(folder, "val", limit=1)) == 1


def test_a_file_without_a_row_comes_last_with_unknown_labels(folder: Path) -> None:
    (folder / "val" / "metadata.csv").write_text("file_name,texture,present,size,id\nsub/a.png,plain,dog,2,one\n")
    source = ImageFolder(folder, "val")
    assert [source[i].id for i in range(2)] == ["one", "b.png"]
    assert source[1].labels["texture"] == -1 and np.isnan(source[1].labels["size"])
    np.testing.assert_array_equal(source[1].labels["present"], [255])


def test_images_are_upright_rgb(folder: Path) -> None:
    (folder / "tasks.toml").unlink()
    turned = Image.new("RGB", (6, 4), RED)
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    turned.save(folder / "train" / "a.jpg", exif=exif)
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(folder / "train" / "b.png")
    Image.new("P", (4, 4)).save(folder / "train" / "c.gif")
    source = ImageFolder(folder, "train")
    assert source[0].image.size == (4, 6)
    assert source[1].image.getpixel((0, 0)) == (128, 128, 128)
    assert {source[i].image.mode for i in range(3)} == {"RGB"}


def test_a_bad_file_is_reported_with_its_path_when_it_is_read(folder: Path) -> None:
    val = folder / "val"
    whole = picture(val / "whole.png").read_bytes()
    files = {"empty.png": b"", "cut.png": whole[: len(whole) - 30], "text.png": b"hello"}
    for name, content in files.items():
        (val / name).write_bytes(content)
    (folder / "tasks.toml").unlink()
    (val / "metadata.csv").write_text("file_name\nmissing.png\n" + "\n".join(files) + "\n")
    source = ImageFolder(folder, "val")
    for index, (name, words) in enumerate(
        [("missing.png", "no such file"), ("empty.png", "empty"), ("cut.png", "damaged"), ("text.png", "not an image")]
    ):
        with pytest.raises(ImageError, match=words) as error:
            source[index]
        assert error.value.path == str(val / name)


@pytest.mark.parametrize(
    ("toml", "table", "words"),
    [
        (TOML, "file_name,texture,present,size,colour\nb.png,a,a,1,red\n", ["'colour'", "no task", "[colour]"]),
        (TOML, "file_name,texture,present\nb.png,a,a\n", ["'size'", "no column", "texture, present"]),
        ("", "name,texture\nb.png,a\n", ["file_name", "name, texture"]),
        ("", "file_name\n", ["no rows"]),
        ("", "file_name\nb.png\nb.png\n", ["'b.png'", "twice"]),
        ("", "file_name\nb.png\n./b.png\n", ["'b.png'", "twice"]),
        ("", "file_name\nb.png\nB.PNG\n", ["'b.png'", "twice"]),
        ("", "file_name, id, id\nb.png,1,2\n", ["column 'id'", "twice"]),
        ("", "file_name;id\nb.png;a;b\n", ["line 2", "semicolon", "double quotes"]),
        ("", "file_name,id\nb.png,x\nsub/a.png,x\n", ["id 'x'", "twice"]),
        ("", "file_name,file_name\nb.png,b.png\n", ["column 'file_name'", "twice"]),
        ("", "file_name\n../../secret.png\n", ["../../secret.png", "out of"]),
        ("", "file_name\n/etc/secret.png\n", ["/etc/secret.png", "out of"]),
        ("", "file_name,id\n,x\n", ["row 1", "no file_name"]),
        ("", "file_name,id\nb.png,a,b\n", ["line 2", "double quotes"]),
        ('[t]\nsuite="detail"\nkind="number"', "file_name,t\nb.png,big\n", ["row 1", "'big'", "no finite number"]),
        ('[t]\nsuite="detail"\nkind="classes"', "file_name,t\nb.png,\n", ["'t'", "empty in every row"]),
        ('[t]\nsuite="detail"\nkind="classes"\nclasses=["a"]', "file_name,t\nb.png,b\n", ["'b'", "not among"]),
        ('[t]\nsuite="details"\nkind="classes"', "file_name,t\nb.png,b\n", ["'details'", "semantic, detail"]),
        ('[t]\nsuite="detail"\nkind="class"', "file_name,t\nb.png,b\n", ["'class'", "multilabel"]),
        ('[t]\nsuite="detail"\nkind="circular"', "file_name,t\nb.png,1\n", ["[t]", "period is None", "period = 360"]),
        ('[t]\nsuite="detail"\nkind="circular"\nperiod=0', "file_name,t\nb.png,1\n", ["[t]", "period is 0"]),
        ('[t]\nsuite="detail"\nkind="circular"\nperiod="a turn"', "file_name,t\nb.png,1\n", ["'a turn'", "360"]),
        ('[t]\nsuite="detail"\nkind="number"\nperiod=360', "file_name,t\nb.png,1\n", ["[t]", 'kind = "circular"']),
        ('[t]\nsuite="detail"\nkind="circular"\nperiod=1\nclasses=["a"]', "file_name,t\nb.png,1\n", ["has classes"]),
        ('[t]\nsuite="detail"\nkind="circular"\nperiod=9', "file_name,t\nb.png,north\n", ["'north'", "finite number"]),
        ('[t]\nsuite="detail"\nkind="number"\nunits="cm"', "file_name,t\nb.png,1\n", ["'units'", "unit"]),
        ("[t\n", "file_name,t\nb.png,b\n", ["tasks.toml", "cannot be read"]),
    ],
)
def test_what_cannot_be_meant_is_refused(folder: Path, toml: str, table: str, words: list[str]) -> None:
    (folder / "tasks.toml").write_text(toml)
    (folder / "val" / "metadata.csv").write_text(table)
    with pytest.raises(UserError) as error:
        ImageFolder(folder, "val")
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message, message


# ---- where metadata lies, and how it is written


def test_metadata_may_lie_in_the_folder_above_its_splits(folder: Path) -> None:
    table = CSV.replace("b.png", "val/b.png").replace("sub/a.png", "val/sub/a.png")
    (folder / "metadata.csv").write_text(table + "train/c.png,plain,cow,2,\n")
    as_csv(folder / "val")
    there = ImageFolder(folder, "val")
    (folder / "val" / "metadata.csv").unlink()
    above = ImageFolder(folder, "val")
    assert above.tasks == there.tasks and [above[i].id for i in range(2)] == ["b.png", "sub/a.png"]
    for i in range(2):
        np.testing.assert_equal(above[i].labels, there[i].labels)
    picture(folder / "train" / "c.png")
    assert ImageFolder(folder, "train").tasks[1].classes == ("cow",)
    (folder / "metadata.csv").write_text(CSV)
    with pytest.raises(UserError, match=r"no row of the split 'val': .* begin with val/, and that of row 1 is 'b.png'"):
        ImageFolder(folder, "val")


@pytest.mark.parametrize("other", ["val/metadata.json", "metadata.json", "val/sub/metadata.csv", "val/METADATA.xlsx"])
def test_a_task_that_no_file_provides_is_refused_and_so_is_metadata_that_is_not_read(folder: Path, other: str) -> None:
    where = ["texture, present, size", f"{folder}/val/metadata.csv", f"{folder}/metadata.csv", "begin with val/"]
    with pytest.raises(UserError) as error:
        ImageFolder(folder, "val")
    assert all(word in str(error.value) for word in where)
    (folder / other).write_text(CSV)
    with pytest.raises(UserError) as error:
        ImageFolder(folder, "val")
    assert all(word in str(error.value) for word in [f"({other} is not read)", *where])
    (folder / "tasks.toml").unlink()
    with pytest.raises(UserError, match="no metadata is read"):
        ImageFolder(folder, "val")


@pytest.mark.parametrize("delimiter", [",", ", ", " , ", ";", "; ", "\t"])
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.CSV", "Metadata.tsv"])
def test_tables_of_every_hand_give_the_same_labels(folder: Path, name: str, delimiter: str) -> None:
    as_csv(folder / "val")
    plain = ImageFolder(folder, "val")
    (folder / "val" / "metadata.csv").unlink()
    text = CSV.replace("dog;bird", '"dog;bird"' if ";" in delimiter else "dog;bird").replace(",", delimiter)
    (folder / "val" / name).write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
    (folder / "tasks.toml").rename(folder / "tasks.TOML")
    source = ImageFolder(folder, "val")
    assert source.tasks == plain.tasks and source.notes == ()
    for i in range(2):
        assert source[i]._replace(image=None, labels=None) == plain[i]._replace(image=None, labels=None)
        np.testing.assert_equal(source[i].labels, plain[i].labels)


@pytest.mark.parametrize("word", ["NA", "N/A", "null", "NULL", "NaN", "<NA>", "#N/A"])
def test_a_word_for_nothing_is_unknown_and_said(folder: Path, word: str) -> None:
    rows = CSV.replace("striped,", f"{word},").replace("1.5,first", f"{word},{word}").replace(",,dog", ",plain,dog")
    (folder / "val" / "metadata.csv").write_text(rows + f"c.png,plain,{word},2,x\n")
    source = ImageFolder(folder, "val")
    picture(folder / "val" / "c.png")
    assert [task.classes for task in source.tasks] == [("plain",), ("bird", "cat", "dog"), ()]
    assert source[0].labels["texture"] == -1 and np.isnan(source[0].labels["size"]) and source[0].group == "b.png"
    np.testing.assert_array_equal(source[2].labels["present"], [255] * 3)
    said = f"unknown in 1 cells that say {word}"
    assert source.notes == (f"texture: {said}", f"present: {said}", f"size: {said}")
    assert [task.note for task in source.tasks] == [said] * 3
    toml = TOML.replace('kind = "classes"', f'kind = "classes"\nclasses = ["{word}", "plain"]')
    (folder / "tasks.toml").write_text(toml)  # a class after all, such as the country NA
    source = ImageFolder(folder, "val")
    assert source.tasks[0].classes == tuple(sorted((word, "plain"))) and not source.tasks[0].note
    assert source.tasks[0].classes[source[0].labels["texture"]] == word


def test_a_missing_number_of_a_parquet_table_is_no_group(folder: Path) -> None:
    rows = [row | {"group": None, "id": None} for row in ROWS] + [{"file_name": "c.png", "group": 3.0}]
    picture(folder / "val" / "c.png")
    table = pyarrow.Table.from_pandas(pyarrow.Table.from_pylist(rows).to_pandas())  # None has become NaN
    parquet.write_table(table, folder / "val" / "metadata.parquet")
    source = ImageFolder(folder, "val")
    assert [source[i].group for i in range(3)] == ["b.png", "sub/a.png", "3.0"]


def test_text_is_compared_in_one_unicode_form(folder: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    for at, file in enumerate((composed, apart)):
        picture(folder / "val" / f"{at}{file}.png")
    (folder / "tasks.toml").write_text(f'["{apart}"]\nsuite="detail"\nkind="classes"\nclasses=["{apart}", "x"]')
    rows = [f"0{apart}.png,{composed},{apart},{apart}", f"1{composed}.png,{apart},{apart} 2,{composed}"]
    (folder / "val" / "metadata.csv").write_text(f"file_name,{composed},id,group\n" + "\n".join(rows) + "\n")
    source = ImageFolder(folder, "val")
    assert source.tasks[0].name == composed
    assert source.tasks[0].classes == (composed, "x")
    items = [source[i] for i in range(2)]
    assert [item.labels[composed] for item in items] == [0, 0]
    assert [item.id for item in items] == [composed, f"{composed} 2"] and {item.group for item in items} == {composed}
    assert len(source) == 4  # and those without a row


def test_a_file_is_found_in_another_case_or_with_the_other_slash(folder: Path) -> None:
    picture(folder / "val" / "c.JPG")
    picture(folder / "val" / "C.png")
    (folder / "val" / "metadata.csv").write_text(
        "file_name,texture,present,size\nC.jpg,plain,a,1\nsub\\a.PNG,plain,a,2\nB.PNG,plain,a,3\nc.png,plain,a,4\n"
    )
    source = ImageFolder(folder, "val")
    assert [source[i].id for i in range(4)] == ["c.JPG", "sub/a.png", "b.png", "C.png"] and len(source) == 4
    picture(folder / "val" / "c.png")
    source = ImageFolder(folder, "val")
    assert [source[i].id for i in range(5)] == ["c.JPG", "sub/a.png", "b.png", "c.png", "C.png"]
    (folder / "val" / "metadata.csv").write_text("file_name,texture,present,size\nc.PNG,plain,a,1\n")
    with pytest.raises(ImageError, match="there is no such file"):  # it could be either
        ImageFolder(folder, "val")[0]


def test_what_is_left_out_is_said(folder: Path) -> None:
    as_csv(folder / "val")
    for name in ("x.heic", "y.HEIC", "z.heic", "notes.txt", "sub/noend"):
        (folder / "val" / name).write_bytes(b"")
    assert ImageFolder(folder, "val").notes[0].startswith("left out 2 .heic, 1 .txt, 1 without an ending, 1 .HEIC; ")
    (folder / "train" / "x.heic").write_bytes(b"")
    with pytest.raises(UserError, match="no images in .*; it has 1 .heic"):
        ImageFolder(folder, "train")


# ---- a folder for each class


@pytest.fixture
def sorted_folder(tmp_path: Path) -> Path:
    """val/ with two cats, one of them deeper, and a dog."""
    for file in ("cat/a.png", "cat/white/b.png", "dog/a.png"):
        picture(tmp_path / "pets" / "val" / file)
    return tmp_path / "pets"


def test_a_folder_for_each_class_is_a_label(sorted_folder: Path) -> None:
    source = ImageFolder(sorted_folder, "val")
    note = "the folder of the split that the image lies in"
    assert source.tasks == (Task("label", "semantic", "classes", ("cat", "dog"), note=note),)
    items = [source[i] for i in range(3)]
    assert [item.id for item in items] == ["cat/a.png", "cat/white/b.png", "dog/a.png"]
    assert [item.labels["label"] for item in items] == [0, 0, 1]
    assert "folders are the classes" in source.notes[0] and "empty tasks.toml" in source.notes[0]
    (sorted_folder / "tasks.toml").write_text('[label]\nsuite="detail"\nkind="classes"\nclasses=["cat","cow","dog"]')
    source = ImageFolder(sorted_folder, "val")
    assert (source.tasks[0].suite, source.tasks[0].classes) == ("detail", ("cat", "cow", "dog"))
    assert [source[i].labels["label"] for i in range(3)] == [0, 0, 2]
    (sorted_folder / "tasks.toml").write_text("")
    assert ImageFolder(sorted_folder, "val").tasks == ()
    (sorted_folder / "tasks.toml").write_text('[pet]\nsuite = "detail"\nkind = "classes"\n')
    with pytest.raises(UserError, match="declares pet, and no metadata is read"):
        ImageFolder(sorted_folder, "val")


def test_folders_that_are_no_classes(sorted_folder: Path) -> None:
    picture(sorted_folder / "val" / "c.png")
    source = ImageFolder(sorted_folder, "val")
    assert source.tasks == () and "not classes: 1 images lie beside them (c.png)" in source.notes[0]
    for split, files in {"one": ["cat/a.png", "cat/b.png"], "each": ["1/a.png", "2/a.png"]}.items():
        for file in files:
            picture(sorted_folder / split / file)
        source = ImageFolder(sorted_folder, split)
        assert source.tasks == () and source.notes == () and len(source) == 2


# ---- what the command prints


def test_the_command_prints_how_often_each_class_is_there_rare_ones_first(folder: Path, capsys: Any) -> None:
    (folder / "tasks.toml").write_text(TOML + '[many]\nsuite = "detail"\nkind = "classes"')
    rows = [
        f"{i}.png,{'strpied' if i == 3 else ('plain', 'striped')[i % 2]},{i // 2},{'a|b' if i % 3 else ''},{i}"
        for i in range(22)
    ]
    for i in range(22):
        picture(folder / "val" / f"{i}.png")
    (folder / "val" / "metadata.csv").write_text("file_name,texture,many,present,size\n" + "\n".join(rows) + "\n")
    (folder / "val" / "x.heic").write_bytes(b"")
    out = folder / "run.h5"
    assert main(["--data", str(folder), "--split", "val", "--out", str(out), "--device", "cpu"]) == 0
    said = [line.strip() for line in capsys.readouterr().out.splitlines()]
    at = next(i for i, line in enumerate(said) if line.startswith("left out 1 .heic"))
    assert said[at + 1 : at + 5] == [
        "texture: strpied 1, striped 10, plain 11; 2 unknown",
        "many: 0 2, 1 2, 10 2, 2 2, 3 2, 4 2, 5 2, 6 2, and 3 more of up to 2; 2 unknown",
        "present: a 14, b 14; 10 unknown",
        "size: 0 to 21 cm; 2 unknown",
    ]


def test_layouts_that_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split 'test'; its splits: train, val"):
        ImageFolder(folder, "test")
    with pytest.raises(UserError, match="no split"):
        ImageFolder(folder / "val", "../train")
    with pytest.raises(UserError, match="no images in"):
        ImageFolder(folder, "train")
    flat = picture(tmp_path / "flat" / "a.png").parent
    with pytest.raises(UserError, match="move the images .* to .*flat/val"):
        ImageFolder(flat, "val")
    as_csv(folder / "val")
    as_jsonl(folder / "val")
    with pytest.raises(UserError, match="metadata.csv and metadata.jsonl; keep one"):
        ImageFolder(folder, "val")
    (folder / "val" / "metadata.csv").unlink()
    (folder / "val" / "metadata.jsonl").write_text('{"file_name": "b.png"}\n{"file_name"')
    with pytest.raises(UserError, match="line 2 is no JSON"):
        ImageFolder(folder, "val")
    (folder / "val" / "metadata.jsonl").write_text('{"file_name": "b.png", "file_name": "c.png"}')
    with pytest.raises(UserError, match="line 1: 'file_name' stands twice"):
        ImageFolder(folder, "val")


def test_open_source_names_what_there_is() -> None:
    assert len(open_source("scenes", "val", limit=3)) == 3
    with pytest.raises(UserError, match="built in .scenes., nor an official data set .*, nor a folder"):
        open_source("nowhere", "val")
    with pytest.raises(UserError, match="train, val, test"):
        open_source("scenes", "nope")
    with pytest.raises(UserError, match="--limit 0"):
        open_source("scenes", "val", limit=0)


@pytest.mark.parametrize(
    ("cells", "known", "classes"),
    [
        (["a|b", "a|NA", "b|null", "b"], [True, False, False, True], ("a", "b")),
        (["a|b", "NA", "", "|"], [True, False, False, True], ("a", "b")),
    ],
)
def test_a_word_for_unknown_among_several_labels_makes_them_unknown(
    tmp_path: Path, cells: list[str], known: list[bool], classes: tuple[str, ...]
) -> None:
    """Which of the labels it stands for nobody knows; it is no class, and no label is absent for it."""
    folder = tmp_path / "photos"
    (folder / "val").mkdir(parents=True)
    for number in range(len(cells)):
        Image.new("RGB", (8, 8)).save(folder / "val" / f"{number}.png")
    rows = "".join(f"{number}.png,{cell}\n" for number, cell in enumerate(cells))
    (folder / "val" / "metadata.csv").write_text("file_name,tags\n" + rows)
    (folder / "tasks.toml").write_text('[tags]\nsuite = "semantic"\nkind = "multilabel"\n')
    source = open_source(str(folder), "val")
    (task,) = source.tasks
    assert task.classes == classes
    labels = np.stack([source[number].labels["tags"] for number in range(len(cells))])
    assert [(row != 255).all() for row in labels] == known and set(labels[~np.array(known)].ravel()) == {255}


def test_null_in_a_list_of_labels_is_unknown(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "val").mkdir(parents=True)
    cells = [["a"], [None], ["NA", "b"], [], None, ["b"]]
    for number in range(len(cells)):
        Image.new("RGB", (8, 8)).save(folder / "val" / f"{number}.png")
    rows = (json.dumps({"file_name": f"{number}.png", "tags": cell}) for number, cell in enumerate(cells))
    (folder / "val" / "metadata.jsonl").write_text("\n".join(rows))
    (folder / "tasks.toml").write_text('[tags]\nsuite = "semantic"\nkind = "multilabel"\n')
    source = open_source(str(folder), "val")
    assert source.tasks[0].classes == ("a", "b")
    labels = [source[number].labels["tags"].tolist() for number in range(len(cells))]
    assert labels == [[1, 0], [255, 255], [255, 255], [0, 0], [255, 255], [0, 1]]


def test_tasks_that_lie_in_a_split_are_refused(tmp_path: Path) -> None:
    """Where they are not read, the run would have no labels, without a word."""
    folder = tmp_path / "photos"
    (folder / "val").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "val" / "0.png")
    (folder / "val" / "tasks.toml").write_text('[breed]\nsuite = "semantic"\nkind = "classes"\n')
    with pytest.raises(UserError, match="tasks.toml lies in a split, .* move it to"):
        open_source(str(folder), "val")


def test_metadata_of_the_split_wins_and_it_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "val").mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (8, 8)).save(folder / "val" / f"{number}.png")
    (folder / "val" / "metadata.csv").write_text("file_name,breed\n0.png,pug\n1.png,lab\n")
    (folder / "metadata.csv").write_text("file_name,breed\nval/0.png,cat\nval/1.png,dog\n")
    (folder / "tasks.toml").write_text('[breed]\nsuite = "semantic"\nkind = "classes"\n')
    source = ImageFolder(folder, "val")
    assert source.tasks[0].classes == ("lab", "pug")
    assert any("is read, and" in note and "is not" in note for note in source.notes)
