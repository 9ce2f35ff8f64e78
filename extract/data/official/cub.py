"""CUB-200-2011: one bird an image, with species, 312 attributes and part positions. Knows its files; no model.

    PATH/images/  images.txt  classes.txt  image_class_labels.txt  train_test_split.txt
    PATH/attributes/image_attribute_labels.txt     image, attribute, present, certainty, seconds
    PATH/parts/parts.txt  part_locs.txt
    PATH/../attributes.txt                         the attributes' names: the archive has them beside CUB_200_2011/,
                                                   many copies in PATH/attributes/; either will do

Splits: `train` and `test`, as train_test_split.txt suggests. Images are whole: each shows one bird.

    species                   semantic   one of 200
    bill_shape, wing_color    detail     and 26 more: one multi-label task for each group of attributes, 1 and 0 as the
                                         annotator said, whether guessing or sure; unknown where not visible
    head_x, head_y            detail     where the beak points: the unit vector from the nape to the beak; unknown where
                                         one of the two is hidden, as it is on a bird that faces the camera

No file says how large the images are. One that ends before its beak or nape is refused when it is read; one that was
stretched a little cannot be told, and turns its heads.

Source: Wah, Branson, Welinder, Perona, Belongie, CNS-TR-2011-001, and the README of the archive (whose 322 attributes
are 312).
"""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from htc_probe.extract.data.files import FileSource, Picture, refuse_split, require
from htc_probe.extract.data.labels import Labels, class_labels, number_labels, table_labels
from htc_probe.extract.data.tables import read_rows, refuse_repeated
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import UNKNOWN

NAME = "CUB-200-2011"
_SPLITS = ("train", "test")
_MARKS = "attributes/image_attribute_labels.txt"
_FILES = (
    f"images images.txt classes.txt image_class_labels.txt train_test_split.txt {_MARKS} parts/parts.txt "
    "parts/part_locs.txt"
)
_NOT_VISIBLE = 1  # of certainties.txt: 1 not visible, 2 guessing, 3 probably, 4 definitely
_ATTRIBUTE_NOTE = "CUB attributes as their annotator marked them; unknown where not visible"
_Point = tuple[float, float]
_HEAD_NOTE = "unit vector from the nape to the beak in the image; unknown where either is hidden"


def open_split(root: Path, split: str, *, limit: int | None = None) -> FileSource:
    """The images of a split, in the order of images.txt (by species). Raises UserError."""
    if split not in _SPLITS:
        raise refuse_split(NAME, split, _SPLITS)
    require(NAME, root, *_FILES.split())
    names = read_rows(root / "images.txt", int, str, form="<image id> <file>")
    in_train = dict(read_rows(root / "train_test_split.txt", int, _flag, form="<image id> <1 for train, 0 for test>"))
    _require_all([number for number, _ in names], in_train, root / "train_test_split.txt")
    refuse_repeated((file for _, file in names), "file", root / "images.txt")
    chosen = [(number, file) for number, file in names if in_train[number] == (split == "train")]
    numbers = [number for number, _ in chosen]
    heads = _heads(root, numbers)
    pictures = [
        Picture(file, root / "images" / file, f"cub/{number}", reach=head and _reach(*head))
        for (number, file), head in zip(chosen, heads, strict=True)
    ]
    labels = [
        class_labels("species", "semantic", _species(root, numbers), note="bird species"),
        *_attributes(root, [number for number, _ in names], numbers),
        *_directions(heads),
    ]
    return FileSource("cub", split, pictures, labels, limit)


def _species(root: Path, numbers: list[int]) -> list[str]:
    names = dict(read_rows(root / "classes.txt", int, str, form="<class id> <class name>"))
    refuse_repeated(names.values(), "class", root / "classes.txt")
    path = root / "image_class_labels.txt"
    species = dict(read_rows(path, int, int, form="<image id> <class id>"))
    _require_all(numbers, species, path)
    for number in numbers:
        if species[number] not in names:
            raise UserError(f"{path} gives image {number} the class {species[number]}, which is not in classes.txt")
    return [names[species[number]] for number in numbers]


# ---- attributes


def _attributes(root: Path, known: list[int], numbers: list[int]) -> Iterator[Labels | None]:
    """One task a group, for the images `numbers` out of all that are `known`."""
    names = read_rows(_names_file(root), int, _attribute, form="<attribute id> has_<group>::<value>")
    refuse_repeated((f"{group}::{value}" for _, (group, value) in names), "attribute", _names_file(root))
    ids = [number for number, _ in names]
    table = _read_marks(root / _MARKS, known, ids)
    image, attribute, present, certainty = table[table[:, 3] != _NOT_VISIBLE].T
    row_of, column_of = np.full(max(known) + 1, -1), np.zeros(max(ids) + 1, int)
    row_of[numbers], column_of[ids] = np.arange(len(numbers)), np.arange(len(ids))
    inside = row_of[image] >= 0
    values = np.full((len(numbers), len(ids)), UNKNOWN, np.uint8)
    values[row_of[image[inside]], column_of[attribute[inside]]] = present[inside]
    for group in dict.fromkeys(group for _, (group, _) in names):
        columns = [i for i, (_, (of, _)) in enumerate(names) if of == group]
        classes = [names[i][1][1] for i in columns]
        yield table_labels(group, "detail", classes, values[:, columns], note=_ATTRIBUTE_NOTE)


def _names_file(root: Path) -> Path:
    places = (root.resolve().parent / "attributes.txt", root / "attributes" / "attributes.txt")
    for path in places:
        if path.is_file():
            return path
    raise UserError(f"{NAME} lacks the names of its attributes: there is neither {places[0]} nor {places[1]}")


def _read_marks(path: Path, images: list[int], attributes: list[int]) -> np.ndarray:
    """(lines, 4) image, attribute, present and certainty. Raises UserError that names a malformed line."""
    allowed = (images, attributes, (0, 1), (1, 2, 3, 4))
    try:
        with warnings.catch_warnings(action="error", category=UserWarning):  # of a file without a line
            # By column, because some official lines have a stray 0 between certainty and seconds.
            table = np.loadtxt(path, dtype=np.int32, usecols=(0, 1, 2, 3), comments=None, ndmin=2)
    except (ValueError, UserWarning):
        raise _complaint(path, images, attributes) from None
    if not all(np.isin(table[:, i], values).all() for i, values in enumerate(allowed)):
        raise _complaint(path, images, attributes)
    marks = table[:, 0].astype(np.int64) * (max(attributes) + 1) + table[:, 1]
    first, counts = np.unique(marks, return_index=True, return_counts=True)[1:]
    if counts.max() > 1:
        image, attribute = table[first[counts > 1][0], :2]
        raise UserError(f"{path} marks attribute {attribute} of image {image} twice; keep one line")
    return table


def _complaint(path: Path, images: list[int], attributes: list[int]) -> UserError:
    """The first line that is not as it should be, found the slow way."""
    allowed = (set(images), set(attributes), {0, 1}, {1, 2, 3, 4})
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            cells = line.split()
            try:
                good = len(cells) >= 4 and all(int(cell) in of for cell, of in zip(cells, allowed, strict=False))
            except ValueError:
                good = False
            if cells and not good:
                return UserError(
                    f"{path} line {number} is {line.strip()!r}; expected <image id> <attribute id> <0 or 1> "
                    "<certainty 1 to 4> <seconds>"
                )
    return UserError(f"{path} is no table of attributes; unpack the archive again")


def _attribute(cell: str) -> tuple[str, str]:
    """(group, value) of a name such as has_bill_shape::dagger."""
    group, separator, value = cell.removeprefix("has_").partition("::")
    if not (group and separator and value):
        raise ValueError(cell)
    return group, value


# ---- the head


def _heads(root: Path, numbers: list[int]) -> list[tuple[_Point, _Point] | None]:
    """Nape and beak of every image, in pixels; None where one of the two is hidden."""
    names = read_rows(root / "parts" / "parts.txt", int, str, form="<part id> <part name>")
    refuse_repeated((name for _, name in names), "part", root / "parts" / "parts.txt")
    ids = {name: number for number, name in names}
    for part in ("beak", "nape"):
        if part not in ids:
            raise UserError(f"{root / 'parts' / 'parts.txt'} has no part {part!r}; it has {', '.join(ids)}")
    form = "<image id> <part id> <x> <y> <visible>"
    rows = read_rows(root / "parts" / "part_locs.txt", int, int, float, float, _flag, form=form, key=2)
    seen = {(image, part): (x, y) for image, part, x, y, visible in rows if visible}
    pairs = [(seen.get((number, ids["nape"])), seen.get((number, ids["beak"]))) for number in numbers]
    return [(nape, beak) if nape and beak else None for nape, beak in pairs]


def _reach(first: _Point, second: _Point) -> _Point:
    return max(first[0], second[0]), max(first[1], second[1])


def _directions(heads: list[tuple[_Point, _Point] | None]) -> Iterator[Labels | None]:
    directions = [head and _direction(*head) for head in heads]
    for axis, unit in enumerate(("-1 left to 1 right", "-1 up to 1 down")):
        values = [None if direction is None else direction[axis] for direction in directions]
        yield number_labels(f"head_{'xy'[axis]}", "detail", values, unit, note=_HEAD_NOTE)


def _direction(start: _Point, end: _Point) -> _Point | None:
    if start == end:
        return None
    x, y = end[0] - start[0], end[1] - start[1]
    return x / math.hypot(x, y), y / math.hypot(x, y)


# ---- lines


def _flag(cell: str) -> bool:
    if cell not in ("0", "1"):
        raise ValueError(cell)
    return cell == "1"


def _require_all(numbers: list[int], table: dict, path: Path) -> None:
    for number in numbers:
        if number not in table:
            raise UserError(f"{path} has no line for image {number} of images.txt; unpack the archive again")
