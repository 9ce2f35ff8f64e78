"""PACO-LVIS: objects in COCO images, with shade, pattern, material and transparency. Knows its files; no model.

    PATH/annotations/paco_lvis_v1_train.json  paco_lvis_v1_val.json  paco_lvis_v1_test.json
    PATH/train2017/  val2017/     COCO's images: all splits draw on both folders, each row says on which

PATH may be COCO's own folder. Splits: `train`, `val`, `test`.

An item is one object, cut out of its image by its box; parts of objects, and boxes without an area, are left out.
Of an image that was made smaller as a whole the box is too; one whose size no one factor explains is refused when it is
read. Objects of one image share its group, which is also its group in COCO.

    object                                       semantic   one of 75
    shade, pattern, material, transparency       detail     multi-label: an annotated object has what it lists and lacks
                                                            the rest, unless the file says that a kind is unknown

About a quarter of the objects have attributes; those of the others are unknown. The catch-alls other(color),
other(pattern_marking), other(material) and other(transparency) are not among the 55 attributes, and no labels.
Source: Ramanathan et al., CVPR 2023, and docs/PACO_DATASET.md and the readers in facebookresearch/paco.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from htc_probe.extract.data.files import FileSource, Picture, refuse_split, require
from htc_probe.extract.data.labels import Labels, class_labels, table_labels
from htc_probe.extract.data.official.coco import corners, image_group, image_records
from htc_probe.extract.data.tables import read_json, records, refuse_repeated
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import UNKNOWN

NAME = "PACO-LVIS"
_SPLITS = ("train", "val", "test")
_TASKS = {"color": "shade", "pattern_marking": "pattern", "material": "material", "transparency": "transparency"}
_CROP_NOTE = "of an object cut out by its box"


def open_split(root: Path, split: str, *, limit: int | None = None) -> FileSource:
    """The objects of a split, in the order of its file. Raises UserError."""
    if split not in _SPLITS:
        raise refuse_split(NAME, split, _SPLITS)
    file = f"annotations/paco_lvis_v1_{split}.json"
    require(NAME, root, file)
    path = root / file
    data = read_json(path, without=("segmentation",))
    images = {number: (name, (width, height)) for number, name, width, height in image_records(path, data)}
    require(NAME, root, *sorted({name.split("/")[0] for name, _ in images.values() if "/" in name}))
    categories = dict(records(path, data, "categories", id=int, name=str))
    pictures: list[Picture] = []
    names: list[str] = []
    rows: list[dict[str, Any]] = []
    annotations = records(path, data, "annotations", id=int, obj_ann_id=int, image_id=int, category_id=int, bbox=list)
    for (number, object_id, image, category, bbox), row in zip(annotations, data["annotations"], strict=True):
        if number != object_id:  # a part
            continue
        if image not in images or category not in categories:
            raise UserError(
                f"{path}: annotation {number} names image {image} and category {category}, and one of these is not in "
                "the file; expected the official file"
            )
        box = corners(path, bbox, number)
        if box[2] <= box[0] or box[3] <= box[1]:
            continue
        name, size = images[image]
        pictures.append(Picture(str(number), root / name, image_group(image), box, size))
        names.append(categories[category])
        rows.append(row)
    labels = [class_labels("object", "semantic", names, note=f"category {_CROP_NOTE}"), *_attributes(path, data, rows)]
    return FileSource("paco", split, pictures, labels, limit)


def _attributes(path: Path, data: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[Labels | None]:
    names = dict(records(path, data, "attributes", id=int, name=str))
    refuse_repeated(names.values(), "name", f"{path}: attributes")
    listed = [_listed(path, row, names) for row in rows]
    kinds = data.get("attr_type_to_attr_idxs")
    for kind, task in _TASKS.items():
        ids = kinds.get(kind) if isinstance(kinds, dict) else None
        if not isinstance(ids, list) or not all(isinstance(number, int) and number in names for number in ids):
            raise UserError(f"{path}: attr_type_to_attr_idxs lists no {kind!r}; expected the official file")
        classes = {number: names[number] for number in ids if not names[number].startswith("other(")}
        values = np.full((len(rows), len(classes)), UNKNOWN, np.uint8)
        for i, (row, has) in enumerate(zip(rows, listed, strict=True)):
            if has and not _unknown(path, row, kind):
                values[i] = [number in has for number in classes]
        note = f"{kind} {_CROP_NOTE}; unknown where not annotated or said to be unknown"
        yield table_labels(task, "detail", list(classes.values()), values, note=note)


def _listed(path: Path, row: dict[str, Any], names: dict[int, str]) -> set[int]:
    """The ids of the attributes that an object lists; none where nobody annotated it."""
    listed = row.get("attribute_ids") or []
    if not isinstance(listed, list) or not all(isinstance(number, int) and number in names for number in listed):
        raise UserError(f"{path}: attribute_ids of annotation {row['id']} are {listed!r}; expected ids of attributes")
    return set(listed)


def _unknown(path: Path, row: dict[str, Any], kind: str) -> bool:
    flag = row.get(f"unknown_{kind}")
    if flag not in (0, 1):
        raise UserError(f"{path}: unknown_{kind} of annotation {row['id']} is {flag!r}; expected 0 or 1")
    return bool(flag)
