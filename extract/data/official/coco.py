"""COCO 2017 instances: what is in an everyday photograph, and where. Knows its files; no model.

    PATH/annotations/instances_train2017.json  instances_val2017.json
    PATH/train2017/  val2017/

Splits: `train` and `val`. Images in which nothing was annotated belong to them: they hold none of the 80 categories.

    objects            semantic   which of the 80 categories are there, also as a crowd
    supercategories    semantic   the same for the 12 groups of categories
    count              semantic   annotated objects; unknown where a region is a crowd (iscrowd), which nobody counted
    centre_x, centre_y detail     the middle of the box, where one object that is no crowd is all there is
    area               detail     of its segment, likewise

Positions and areas are shares of the upright image, not of the square that a model may pad it to. A file whose size is
not the annotated one, nor a multiple of it, is refused when it is read.
Source: Lin et al., ECCV 2014, and the data format at cocodataset.org.
"""

import math
from pathlib import Path
from typing import NamedTuple

from htc_probe.extract.data.files import FileSource, Picture, refuse_split, require
from htc_probe.extract.data.labels import multi_labels, number_labels
from htc_probe.extract.data.tables import read_json, records, refuse_repeated
from htc_probe.extract.errors import UserError

NAME = "COCO 2017"
_SPLITS = ("train", "val")
_LONE_NOTE = "of a lone object: the only annotation of its image, and no crowd; unknown elsewhere"


class _Annotation(NamedTuple):
    name: str
    above: str
    """Its supercategory."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels."""
    area: float
    """Of the segment, in pixels."""
    crowd: bool


def open_split(root: Path, split: str, *, limit: int | None = None) -> FileSource:
    """The images of a split, in the order of its file. Raises UserError."""
    if split not in _SPLITS:
        raise refuse_split(NAME, split, _SPLITS)
    file, folder = f"annotations/instances_{split}2017.json", f"{split}2017"
    require(NAME, root, file, folder)
    data = read_json(root / file, without=("segmentation",))
    images = image_records(root / file, data)
    annotations = _annotations(root / file, data, [image[0] for image in images])
    pictures = [
        Picture(name, root / folder / name, image_group(number), size=(width, height))
        for number, name, width, height in images
    ]
    by_image = [annotations[image[0]] for image in images]
    lone = [objects[0] if len(objects) == 1 and not objects[0].crowd else None for objects in by_image]
    shares = [_shares(only, image[2], image[3]) for only, image in zip(lone, images, strict=True)]
    counts = [None if any(row.crowd for row in objects) else len(objects) for objects in by_image]
    names = [{row.name for row in objects} for objects in by_image]
    above = [{row.above for row in objects} for objects in by_image]
    labels = [
        multi_labels("objects", "semantic", names, note="categories in sight"),
        multi_labels("supercategories", "semantic", above, note="groups of categories"),
        number_labels("count", "semantic", counts, "objects", note="annotated objects; unknown where some are a crowd"),
        number_labels("centre_x", "detail", [x for x, _, _ in shares], "share of the image's width", note=_LONE_NOTE),
        number_labels("centre_y", "detail", [y for _, y, _ in shares], "share of the image's height", note=_LONE_NOTE),
        number_labels("area", "detail", [area for _, _, area in shares], "share of the image", note=_LONE_NOTE),
    ]
    return FileSource("coco", split, pictures, labels, limit)


def image_group(number: int) -> str:
    """The group of a COCO image, in every data set that is built on COCO's images."""
    return f"coco/{number}"


def image_records(path: Path, data: dict) -> list[tuple[int, str, int, int]]:
    """Id, file, width and height of every image that `data`, as read from `path`, lists. Raises UserError."""
    images = records(path, data, "images", id=int, file_name=str, width=int, height=int)
    for _, name, width, height in images:
        if width < 1 or height < 1:
            raise UserError(f"{path}: image {name} is {width} x {height} pixels; expected the official file")
    refuse_repeated((name for _, name, _, _ in images), "file_name", f"{path}: images")
    return images


def corners(path: Path, bbox: list, number: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the box [x, y, width, height] of annotation `number`. Raises UserError."""
    if len(bbox) != 4 or not all(isinstance(side, int | float) and math.isfinite(side) for side in bbox):
        raise UserError(f"{path}: bbox of annotation {number} is {bbox!r}; expected [x, y, width, height] in pixels")
    x, y, width, height = bbox
    return x, y, x + width, y + height


def _annotations(path: Path, data: dict, images: list[int]) -> dict[int, list[_Annotation]]:
    """The annotations of every image, by its id."""
    rows = records(path, data, "categories", id=int, name=str, supercategory=str)
    names = {number: (name, above) for number, name, above in rows}
    by_image: dict[int, list[_Annotation]] = {number: [] for number in images}
    rows = records(path, data, "annotations", id=int, image_id=int, category_id=int, bbox=list, area=float, iscrowd=int)
    for number, image, category, bbox, area, crowd in rows:
        if image not in by_image or category not in names:
            raise UserError(
                f"{path}: annotation {number} names image {image} and category {category}, and one of these is not in "
                "the file; expected the official file"
            )
        by_image[image].append(_Annotation(*names[category], corners(path, bbox, number), area, bool(crowd)))
    return by_image


def _shares(annotation: _Annotation | None, width: int, height: int) -> tuple[float | None, float | None, float | None]:
    """The centre and area of `annotation` as shares of an image of that size; None where there is none."""
    if annotation is None:
        return None, None, None
    left, top, right, bottom = annotation.box
    return (left + right) / 2 / width, (top + bottom) / 2 / height, annotation.area / (width * height)
