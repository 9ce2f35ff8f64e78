"""Describable Textures Dataset (DTD): photographs of 47 textures. Knows its files; no model.

    PATH/images/banded/banded_0002.jpg ...
    PATH/labels/train1.txt  val1.txt  test1.txt  ...  test10.txt     a file of images/ on each line
    PATH/labels/labels_joint_anno.txt                                file texture texture ...; optional

Splits: `train3` is the third of the ten official training sets; `train`, `val` and `test` are the first ones. The three
of one number are disjoint, those of different numbers are not: each number is a division of the same images.

    texture     detail   the texture that the image was collected for
    textures    detail   all that it shows; unknown for an image that the joint annotation does not list

There is no semantic task. Source: Cimpoi, Maji, Kokkinos, Mohamed, Vedaldi, CVPR 2014.
"""

import re
from pathlib import Path

from htc_probe.extract.data.files import FileSource, Picture, refuse_split, require
from htc_probe.extract.data.labels import Labels, class_labels, multi_labels
from htc_probe.extract.data.tables import read_rows

NAME = "DTD"
_JOINT = "labels/labels_joint_anno.txt"


def open_split(root: Path, split: str, *, limit: int | None = None) -> FileSource:
    """The images of a split, in the order of its file (by texture). Raises UserError."""
    match = re.fullmatch(r"(train|val|test)([1-9]|10)?", split)
    if not match:
        names = ("train", "val", "test")
        raise refuse_split(NAME, split, [*names, *(f"{name}1 to {name}10" for name in names)])
    listing = f"labels/{match[1]}{match[2] or 1}.txt"
    require(NAME, root, "images", listing)
    rows = read_rows(root / listing, _file, form="a file of images/, such as banded/banded_0002.jpg")
    files = [file for (file,) in rows]
    pictures = [Picture(file, root / "images" / file, f"dtd/{file}") for file in files]
    textures = [file.split("/")[0] for file in files]
    labels = [class_labels("texture", "detail", textures, note="the texture that the image was collected for")]
    if (root / _JOINT).exists():
        labels.append(_joint(root / _JOINT, files))
    return FileSource("dtd", split, pictures, labels, limit)


def _joint(path: Path, files: list[str]) -> Labels | None:
    shown = dict(read_rows(path, _file, str.split, form="<file> <texture> <texture> ..."))
    every = {texture for textures in shown.values() for texture in textures}
    present, absent = ([shown.get(file, ()) for file in files], [every if file in shown else () for file in files])
    note = "every texture that the joint annotation lists for the image"
    return multi_labels("textures", "detail", present, absent=absent, note=note)


def _file(cell: str) -> str:
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", cell):
        raise ValueError(cell)
    return cell
