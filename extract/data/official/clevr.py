"""CLEVR v1.0 in its official layout. Knows its scene files; no model.

    ROOT/scenes/CLEVR_val_scenes.json     what stands where (train and val; the test scenes were never published)
    ROOT/images/val/CLEVR_val_000000.png  480 x 320 pixels, or as large as they were rendered

A question about one object is about the *main object*: the one nearest to the camera (of the smallest depth, the third
of its `pixel_coords`). Relations are those recorded, along the camera's directions on the ground. Where two objects
share the extreme that a task asks for, its label is unknown.

Scenes tell positions in pixels and not how large the image is. It is as large as the split's first file; where some
object lies outside of that, and the file is the official 480 x 320 made smaller, it is that. A file of another size
than the first is refused when it is read, but for one that was scaled as a whole.

The generator draws `rotation` as a number up to 360, and its renderer takes that as radians; so does this reader. Only
cubes show how they are turned, and only up to a quarter turn.
Format: https://github.com/facebookresearch/clevr-dataset-gen (image_generation/render_images.py, utils.py, issue 5).
"""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from htc_probe.extract.data.files import FileSource, Picture, beyond, read_image, refuse_split, require, scale
from htc_probe.extract.data.labels import class_labels, multi_labels, number_labels
from htc_probe.extract.data.source import ImageError
from htc_probe.extract.data.tables import field, read_json
from htc_probe.extract.errors import UserError

_SPLITS = ("train", "val")
_OFFICIAL = (480, 320)  # pixels of every image
_MANY = 20  # objects

_MAIN = "of the main object, the one nearest to the camera"


class _Object(NamedTuple):
    shape: str
    size: str
    material: str
    colour: str
    x: float
    """Of its centre, in pixels from the left; `y` from the top."""
    y: float
    depth: float
    turn: float
    """Radians from the camera's right, seen from above."""


class _Scene(NamedTuple):
    file: str
    objects: tuple[_Object, ...]
    related: dict[str, list[list[int]]]
    """By direction, for every object those that lie in that direction of it."""

    @property
    def main(self) -> _Object | None:
        lowest = _lowest([item.depth for item in self.objects])
        return None if lowest is None else self.objects[lowest]


def open_split(root: Path, split: str, *, limit: int | None = None) -> FileSource:
    """`limit` images of a split (None: all). Raises UserError for a split or files that are not there or not so."""
    if split not in _SPLITS:
        raise refuse_split("CLEVR v1.0 (its test scenes were never published)", split, _SPLITS)
    file = f"scenes/CLEVR_{split}_scenes.json"
    require("CLEVR v1.0", root, file, f"images/{split}")
    scenes = _read(root / file)
    folder = root / "images" / split
    width, height = _rendered(folder, scenes)
    objects = [scene.objects for scene in scenes]
    mains = [scene.main for scene in scenes]
    turns = [math.degrees(main.turn) % 90 if main and main.shape == "cube" else None for main in mains]
    turn_note = f"between a cube and the camera's right, {_MAIN}; a quarter turn does not show; unknown of other shapes"
    shown = [{f"{item.size} {item.material} {item.shape}" for item in items} for items in objects]
    shown_note = "which combinations of size, material and shape the image shows"
    sides = [_relation(scene, ("left", "right"), [item.depth for item in scene.objects]) for scene in scenes]
    side_note = "on which side of the object nearest to the camera the farthest one stands"
    depths = [_relation(scene, ("behind", "front"), [item.x for item in scene.objects]) for scene in scenes]
    depth_note = "whether the rightmost object stands behind the leftmost one or in front of it"
    x, y = [main and main.x / width for main in mains], [main and main.y / height for main in mains]
    labels = (
        multi_labels("presence", "semantic", shown, note=shown_note),
        number_labels("count", "semantic", [len(items) for items in objects], "objects"),
        class_labels("relation_side", "semantic", sides, note=side_note),
        class_labels("relation_depth", "semantic", depths, note=depth_note),
        class_labels("colour", "detail", [main and main.colour for main in mains], note=_MAIN),
        class_labels("size", "detail", [main and main.size for main in mains], note=_MAIN),
        number_labels("position_x", "detail", x, "image widths", note=_MAIN),
        number_labels("position_y", "detail", y, "image heights", note=_MAIN),
        number_labels("rotation", "detail", turns, "degrees", note=turn_note, period=90),
    )
    files = [scene.file for scene in scenes]
    pictures = [Picture(file, folder / file, f"clevr/{file}", size=(width, height)) for file in files]
    return FileSource("clevr", split, pictures, labels, limit)


def _rendered(folder: Path, scenes: Sequence[_Scene]) -> tuple[int, int]:
    """Width and height in pixels of the images that the scenes tell of. Raises UserError where their files are others.

    Where no file can be read it is the official size, and the files are told of one by one.
    """
    for scene in scenes:
        path = folder / scene.file
        try:
            size = read_image(str(path)).size
        except ImageError:
            continue
        break
    else:
        return _OFFICIAL
    objects = [item for scene in scenes for item in scene.objects]
    reach = max((item.x for item in objects), default=0), max((item.y for item in objects), default=0)
    # Objects of a larger render lie beyond the official size; where none of many does, the files are enlarged copies.
    enlarged = size[0] > _OFFICIAL[0] and len(objects) >= _MANY and not beyond(_OFFICIAL, reach)
    if not beyond(size, reach) and not enlarged:
        return size
    with contextlib.suppress(ImageError):
        scale(size, _OFFICIAL, str(path))
        if not beyond(_OFFICIAL, reach):
            return _OFFICIAL
    raise UserError(
        f"{path} has {size[0]} x {size[1]} pixels, and the scenes have objects as far as ({reach[0]:g}, {reach[1]:g}); "
        "use the images that were rendered, or the official ones scaled as a whole"
    )


def _read(path: Path) -> list[_Scene]:
    scenes, seen = [], set()
    for number, record in enumerate(field(read_json(path), "scenes", list, str(path))):
        where = f"{path} scene {number}"
        file = field(record, "image_filename", str, where)
        if Path(file).name != file or file in seen:
            raise UserError(f"{where} has image_filename {file!r}; expected a file name that no other scene has")
        seen.add(file)
        right = _numbers(field(record, "directions", dict, where), "right", where)
        yaw = math.atan2(right[1], right[0])
        objects = tuple(
            _object(entry, yaw, f"{where} object {i}") for i, entry in enumerate(field(record, "objects", list, where))
        )
        lists = field(record, "relationships", dict, where)
        related = {name: field(lists, name, list, where) for name in ("left", "right", "front", "behind")}
        for name, rows in related.items():
            if len(rows) != len(objects) or not all(isinstance(row, list) for row in rows):
                raise UserError(f"{where} has relationships {name} {str(rows)[:60]}; expected a list for each object")
        scenes.append(_Scene(file, objects, related))
    return scenes


def _object(record: Any, yaw: float, where: str) -> _Object:
    x, y, depth = _numbers(record, "pixel_coords", where)
    shape, size, material, colour = (field(record, name, str, where) for name in ("shape", "size", "material", "color"))
    return _Object(shape, size, material, colour, x, y, depth, field(record, "rotation", float, where) - yaw)


def _numbers(record: Any, name: str, where: str) -> list[float]:
    """The three coordinates called `name`."""
    values = field(record, name, list, where)
    if len(values) != 3:
        raise UserError(f"{where} has {name} {str(values)[:60]}; expected three numbers")
    axes = dict(zip("xyz", values, strict=True))
    return [field(axes, axis, float, f"{where}, {name},") for axis in "xyz"]


def _lowest(values: Sequence[float]) -> int | None:
    """Where the smallest value stands; None without a value, and where two are equally small."""
    lowest = min(range(len(values)), key=values.__getitem__, default=None)
    return lowest if lowest is not None and values.count(values[lowest]) == 1 else None


def _relation(scene: _Scene, names: Sequence[str], order: list[float]) -> str | None:
    """Which one of `names` the object of the highest `order` is to that of the lowest; None where that is unsaid."""
    highest, lowest = _lowest([-value for value in order]), _lowest(order)
    if highest is None or lowest is None:
        return None
    held = [name for name in names if highest in scene.related[name][lowest]]
    return held[0] if len(held) == 1 else None
