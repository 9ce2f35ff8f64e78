"""A folder of images: what is read, what is unknown, and what is refused with which words."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from extract.data import open_source
from extract.data.imagefolder import ImageFolder
from extract.data.source import ImageError
from extract.errors import UserError
from extract.store import Task

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


def test_open_source_names_what_there_is() -> None:
    assert len(open_source("scenes", "val", limit=3)) == 3
    with pytest.raises(UserError, match="built in .scenes., nor an official data set .*, nor a folder"):
        open_source("nowhere", "val")
    with pytest.raises(UserError, match="train, val, test"):
        open_source("scenes", "nope")
    with pytest.raises(UserError, match="--limit 0"):
        open_source("scenes", "val", limit=0)
