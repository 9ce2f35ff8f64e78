"""Directories of `save_to_disk`: what is read, what is unknown, and what is refused."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from htc_probe.extract.data import open_source
from htc_probe.extract.data.source import ImageError, Item, Tabled
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Task
from made.datasets_exact import label, rows, saved, shown, write_datasets

# ---- datasets


def test_datasets_reads_what_is_planted(tmp_path: Path) -> None:
    source = open_source(f"datasets:{write_datasets(tmp_path / 'drawn')}", "val")
    assert (source.name, source.split, len(source)) == ("drawn", "val", 60)
    assert source.tasks == (
        Task("shape", "semantic", "classes", ("disc", "square", "star")),
        Task("tags", "semantic", "multilabel", ("big", "odd", "small")),
        Task("size", "detail", "number", unit="px"),
        Task("colour", "detail", "classes", ("blue", "red")),
        Task("rounded", "detail", "classes", ("False", "True")),
    )
    items: list[Item] = [source[i] for i in range(4)]
    assert [(item.id, item.group) for item in items] == [("0-0", "0"), ("0-1", "0"), ("0-2", "1"), ("0-3", "1")]
    assert items[0].path == f"{tmp_path / 'drawn'}#val/0" and items[0].image.size == (64, 64)
    assert label(source, 0, "shape") == "square" and shown(source, 0, "tags") == {"big", "odd"}
    assert label(source, 0, "size") == 2.5 and label(source, 0, "colour") == "red"
    assert label(source, 0, "rounded") == "False"
    assert [label(source, 1, name) for name in ("shape", "size", "colour", "rounded")] == [None] * 4
    np.testing.assert_array_equal(items[1].labels["tags"], [255, 255, 255])
    drawn = rows(60)[2]
    assert items[2].image.tobytes() == drawn["picture"].tobytes()
    assert (label(source, 2, "shape") == "disc") == drawn["rounded"]
    assert len(open_source(f"datasets:{tmp_path / 'drawn'}", "train")) == 3
    some = open_source(f"datasets:{tmp_path / 'drawn'}", "val", limit=3)
    assert [some[i].id for i in range(len(some))] == ["0-0", "0-20", "0-40"]


def test_datasets_compares_text_in_one_form_and_says_which_cells_are_unknown(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    found = [
        {"picture": row["picture"], apart: [apart, composed, "NA"][i % 3], "group": ["NA", composed, apart][i % 3]}
        for i, row in enumerate(rows(6))
    ]
    features = Features({"picture": ImageFeature(), apart: Value("string"), "group": Value("string")})
    DatasetDict(val=saved(found, features)).save_to_disk(tmp_path)
    (tmp_path / "tasks.toml").write_text(f'["{composed}"]\nsuite = "semantic"\nkind = "classes"')
    source = open_source(f"datasets:{tmp_path}", "val", limit=5)
    said = "unknown in 2 cells that say NA"
    assert isinstance(source, Tabled) and source.notes == (f"{composed}: {said}",)
    assert source.tasks == (Task(composed, "semantic", "classes", (composed,), note=said),)
    assert source.labels()[composed].tolist() == [0, 0, -1, 0, 0]
    assert [source[i].group for i in range(3)] == ["val/0", composed, composed]


def test_a_single_dataset_is_the_split_it_was_or_all(tmp_path: Path) -> None:
    plain = saved(rows(2)).select_columns(["picture", "extra"])
    plain.save_to_disk(tmp_path / "plain")
    source = open_source(f"datasets:{tmp_path / 'plain'}", "all")
    assert source.tasks == () and [source[i].id for i in range(2)] == ["all/0", "all/1"]
    assert source[1].group == "all/1" and source[1].labels == {}
    with pytest.raises(UserError, match="has no split 'val'; its splits: all"):
        open_source(f"datasets:{tmp_path / 'plain'}", "val")
    saved(rows(2), split="validation").save_to_disk(tmp_path / "named")
    (tmp_path / "named" / "tasks.toml").touch()
    assert open_source(f"datasets:{tmp_path / 'named'}", "validation").tasks == ()


def test_a_bad_image_in_a_dataset_is_reported_with_its_row(tmp_path: Path) -> None:
    whole = BytesIO()
    Image.effect_noise((8, 8), 90).save(whole, "png")
    cells = [
        {"bytes": whole.getvalue(), "path": None},
        {"bytes": whole.getvalue()[:70], "path": None},
        {"bytes": b"", "path": None},
        {"bytes": b"hello", "path": "a.png"},
        None,
    ]
    Dataset.from_dict({"image": cells}, features=Features(image=ImageFeature())).save_to_disk(tmp_path / "bad")
    source = open_source(f"datasets:{tmp_path / 'bad'}", "all")
    assert source[0].image.size == (8, 8)
    for row, words in enumerate(["damaged", "empty", "not an image", "no image"], 1):
        with pytest.raises(ImageError, match=words) as error:
            source[row]
        assert error.value.path == f"{tmp_path / 'bad'}#all/{row}"


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        (None, ["shape (classes), tags (multilabel), size (number)", "sides (number)", "[shape]", "no", "tasks.toml"]),
        ('[kind]\nsuite="detail"\nkind="classes"', ["'kind'", "not a column of labels", "shape, tags, size"]),
        ('[extra]\nsuite="detail"\nkind="classes"', ["'extra'", "not a column of labels"]),
        ('[colour]\nsuite="detail"\nkind="number"', ["colour, row 0", "'red'", "no finite number"]),
        ('[shape]\nsuite="detail"\nkind="classes"\nclasses=["disc"]', ["shape, row 0", "'square'", "not among"]),
        ("[shape", ["tasks.toml cannot be read"]),
    ],
)
def test_datasets_refuses_tasks_that_cannot_be_meant(tmp_path: Path, toml: str | None, words: list[str]) -> None:
    root = write_datasets(tmp_path, n=4)
    if toml is None:
        (root / "tasks.toml").unlink()
    else:
        (root / "tasks.toml").write_text(toml)
    with pytest.raises(UserError) as error:
        open_source(f"datasets:{root}", "val")
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message, message


def test_datasets_refuses_folders_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither dataset_dict.json nor state.json; load it with"):
        open_source(f"datasets:{tmp_path}", "val")
    root = write_datasets(tmp_path / "cut", n=4)
    with pytest.raises(UserError, match="no split 'test'; its splits: train, val|its splits: val, train"):
        open_source(f"datasets:{root}", "test")
    for arrow in (root / "val").glob("*.arrow"):
        arrow.write_bytes(arrow.read_bytes()[:300])
    with pytest.raises(UserError, match="cut cannot be loaded by datasets: "):
        open_source(f"datasets:{root}", "val")
    (root / "dataset_dict.json").write_text("{")
    with pytest.raises(UserError, match="cut cannot be loaded by datasets: "):
        open_source(f"datasets:{root}", "val")
    Dataset.from_dict({"label": [1.0]}).save_to_disk(tmp_path / "none")
    with pytest.raises(UserError, match=r"0 columns of images \(columns: label\)"):
        open_source(f"datasets:{tmp_path / 'none'}", "all")
    twice = [row | {"id": "same"} for row in rows(2)]
    saved(twice).save_to_disk(tmp_path / "twice")
    (tmp_path / "twice" / "tasks.toml").touch()
    with pytest.raises(UserError, match="id 'same' stands twice"):
        open_source(f"datasets:{tmp_path / 'twice'}", "all")
