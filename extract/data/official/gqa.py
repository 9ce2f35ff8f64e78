"""GQA's scene graphs in their official layout. Knows the graphs; no model.

    ROOT/sceneGraphs/val_sceneGraphs.json  (or in ROOT itself) train and val; no graphs of test were published
    ROOT/images/2407890.jpg                images of Visual Genome, by their number there

A question about one object is about the *main object*: the one whose box covers most of the image, of equal ones the
first listed. A graph lists some of the attributes that hold and none that do not, so an attribute that is not listed
is unknown. Attributes are therefore asked by family: with exactly one of a family listed, that is the label, and with
none or several it is unknown. A file whose size is not the graph's, nor a multiple of it, is refused when it is read.
Format: https://cs.stanford.edu/people/dorarad/gqa/download.html; the families are types of GQA's attributes as
its questions use them, without the words of two such types (dark is a tone too; black stays, though it can be said of
a person).
"""

from pathlib import Path
from typing import Any, NamedTuple

from htc_probe.extract.data.files import FileSource, Picture, refuse_split, require
from htc_probe.extract.data.labels import Labels, class_labels, number_labels
from htc_probe.extract.data.tables import field, read_json
from htc_probe.extract.errors import UserError

_SPLITS = ("train", "val")

_FAMILIES = {
    "colour": (
        "beige, black, blond, blue, brown, brunette, cream colored, dark blue, dark brown, gold, gray, green, khaki, "
        "light blue, light brown, maroon, orange, pink, purple, red, silver, tan, teal, white, yellow"
    ),
    "material": (
        "aluminum, asphalt, bamboo, brass, brick, bronze, cardboard, chrome, clay, cloth, cobblestone, concrete, "
        "copper, cotton, crystal, denim, glass, granite, hardwood, iron, lace, leather, marble, mesh, metal, paper, "
        "plastic, porcelain, rock, rubber, silk, stainless steel, steel, stone, straw, styrofoam, tin, wicker, wire, "
        "wood, wooden, wool"
    ),
    "pattern": "checkered, dotted, striped",
    "pose": "bending, crouching, jumping, lying, running, sitting, standing, walking",
    "shape": "octagonal, rectangular, round, square, triangular",
}
_SAME = {"wooden": "wood"}
_MAIN = "of the main object, the one whose box covers most of the image"


class _Graph(NamedTuple):
    image: str
    """Its number in Visual Genome."""
    size: tuple[float, float]
    """Width and height in pixels."""
    location: str | None
    weather: str | None
    name: str | None
    """Of the main object; None where the graph has no object."""
    attributes: frozenset[str]
    x: float | None
    """Centre of its box, in image widths; `y` in image heights, `area` as a share of the image."""
    y: float | None
    area: float | None


def open_split(root: Path, split: str, *, limit: int | None = None) -> FileSource:
    """`limit` images of a split (None: all). Raises UserError for a split or files that are not there or not so."""
    if split not in _SPLITS:
        raise refuse_split("GQA (no scene graphs of test were published)", split, _SPLITS)
    file = f"{split}_sceneGraphs.json"
    if not (root / file).exists():
        file = f"sceneGraphs/{file}"
    require("GQA", root, file, "images")
    path = root / file
    # Nothing here needs relations, which are most of the file.
    graphs = [_graph(image, graph, path) for image, graph in read_json(path, without=["relations"]).items()]
    centre = f"centre {_MAIN}"
    labels = (
        class_labels("location", "semantic", [graph.location for graph in graphs]),
        class_labels("weather", "semantic", [graph.weather for graph in graphs]),
        class_labels("object", "semantic", [graph.name for graph in graphs], note=f"name {_MAIN}"),
        *(_family(name, words, graphs) for name, words in _FAMILIES.items()),
        number_labels("position_x", "detail", [graph.x for graph in graphs], "image widths from the left", note=centre),
        number_labels("position_y", "detail", [graph.y for graph in graphs], "image heights from the top", note=centre),
        number_labels("area", "detail", [graph.area for graph in graphs], "share of the image", note=f"box {_MAIN}"),
    )
    pictures = [
        Picture(graph.image, root / "images" / f"{graph.image}.jpg", f"vg/{graph.image}", size=graph.size)
        for graph in graphs
    ]
    return FileSource("gqa", split, pictures, labels, limit)


def _graph(image: str, record: Any, path: Path) -> _Graph:
    where = f"{path} image {image}"
    if Path(image).name != image:
        raise UserError(f"{where}: its name is not a number; expected the official file")
    width, height = (field(record, name, float, where) for name in ("width", "height"))
    if min(width, height) <= 0:
        raise UserError(f"{where} is {width:g} x {height:g} pixels; expected sizes above 0")
    covered, box, main, place = 0.0, None, None, where
    for number, entry in field(record, "objects", dict, where).items():
        spot = f"{where} object {number}"
        left, top, w, h = (field(entry, name, float, spot) for name in "xywh")
        left, top, right, bottom = max(left, 0), max(top, 0), min(left + w, width), min(top + h, height)
        area = max(0, right - left) * max(0, bottom - top)
        if area > covered:
            covered, box, main, place = area, (left, top, right, bottom), entry, spot
    location, weather = _said(record, "location", where), _said(record, "weather", where)
    if main is None or box is None:
        return _Graph(image, (width, height), location, weather, None, frozenset(), None, None, None)
    listed: list[str] = field(main, "attributes", list, place)
    if not all(isinstance(word, str) for word in listed):
        raise UserError(f"{place} has attributes {str(listed)[:60]}; expected a list of words")
    name, words = field(main, "name", str, place), frozenset(_SAME.get(word, word) for word in listed)
    x, y, area = (box[0] + box[2]) / 2 / width, (box[1] + box[3]) / 2 / height, covered / (width * height)
    return _Graph(image, (width, height), location, weather, name, words, x, y, area)


def _said(record: dict[str, Any], name: str, where: str) -> str | None:
    """An optional word about the whole image; some copies write none."""
    if record.get(name) is None:
        return None
    word = field(record, name, str, where)
    return None if word in ("", "none") else word


def _family(name: str, words: str, graphs: list[_Graph]) -> Labels | None:
    listed = [graph.attributes.intersection(words.split(", ")) for graph in graphs]
    values = [next(iter(own)) if len(own) == 1 else None for own in listed]
    note = f"{_MAIN}; unknown where the graph lists none or several of {words}"
    return class_labels(name, "detail", values, note=note)
