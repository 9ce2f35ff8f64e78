"""CLEVR, GQA, 3D Shapes and `save_to_disk` in their official formats, a few known images each. Knows the formats."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageColor, ImageDraw

from htc_probe.extract.data.source import Source
from htc_probe.extract.store import Task

COLOURS = ("blue", "brown", "cyan", "gray", "green", "purple", "red", "yellow")


def clevr_object(shape: str, colour: str, at: tuple[float, float], size: str = "large", turn: float = 0) -> dict:
    """On the ground `at` (to the right, away) as the camera sees it, which looks along (-1, 1) / sqrt 2."""
    right, away = at
    x, y = (right - away) / 2**0.5, (right + away) / 2**0.5
    pixel = [round(240 + 40 * right), round(160 - 25 * away), 11 + 0.8 * away]
    return {
        "color": colour,
        "size": size,
        "rotation": turn,
        "shape": shape,
        "3d_coords": [x, y, 0.35],
        "material": "metal",
        "pixel_coords": pixel,
    }


def clevr_scene(index: int, objects: list[dict]) -> dict:
    """With the relationships that the generator finds along the directions: more than 0.2 apart."""
    half = 0.5**0.5
    directions = {
        "right": [half, half, 0.0],
        "left": [-half, -half, 0.0],
        "behind": [-half, half, 0.0],
        "front": [half, -half, 0.0],
        "above": [0.0, 0.0, 1.0],
        "below": [0.0, 0.0, -1.0],
    }
    where = np.array([thing["3d_coords"] for thing in objects])
    related = {
        name: [
            [j for j in range(len(objects)) if (where[j] - where[i]) @ np.array(directions[name]) > 0.2]
            for i in range(len(objects))
        ]
        for name in ("right", "behind", "front", "left")
    }
    return {
        "image_index": index,
        "objects": objects,
        "relationships": related,
        "split": "val",
        "image_filename": f"CLEVR_val_{index:06d}.png",
        "directions": directions,
    }


PLANTED_CLEVR = [
    [  # the cube is nearest and leftmost, the cylinder is farthest, the sphere is rightmost
        clevr_object("sphere", "red", (2, 1)),
        clevr_object("cube", "cyan", (-1, -2), "small", turn=100),
        clevr_object("cylinder", "green", (0.5, 2)),
    ],
    [  # nearest is a cylinder, to the right of the farthest, which is also the leftmost
        clevr_object("cylinder", "blue", (1.5, -1), turn=30),
        clevr_object("cube", "red", (-2, 1), turn=30),
        clevr_object("cube", "gray", (0, 0.5), "small"),
    ],
]


def write_clevr(root: Path, n: int = 60) -> Path:
    rng = np.random.default_rng(0)
    scenes = [clevr_scene(i, objects) for i, objects in enumerate(PLANTED_CLEVR)]
    while len(scenes) < n:
        rights, aways = (rng.permutation(np.linspace(-2.5, 2.5, 10)) for _ in range(2))
        objects = [
            clevr_object(
                str(rng.choice(["cube", "cylinder", "sphere"])),
                str(rng.choice(COLOURS[:3])),
                (rights[i], aways[i]),
                str(rng.choice(["large", "small"])),
                360 * rng.random(),
            )
            for i in range(rng.integers(3, 11))
        ]
        scenes.append(clevr_scene(len(scenes), objects))
    folder = root / "images" / "val"
    folder.mkdir(parents=True)
    for scene in scenes:
        image = Image.new("RGB", (480, 320), (150, 150, 150))
        draw = ImageDraw.Draw(image)
        for thing in sorted(scene["objects"], key=lambda thing: -thing["pixel_coords"][2]):
            x, y, _ = thing["pixel_coords"]
            r = 30 if thing["size"] == "large" else 15
            shape = draw.ellipse if thing["shape"] == "sphere" else draw.rectangle
            shape([x - r, y - r, x + r, y + r], fill=thing["color"])
        image.save(folder / scene["image_filename"])
    (root / "scenes").mkdir()
    info = {"date": "2/14/2017", "version": "1.0", "split": "val", "license": "CC BY 4.0"}
    (root / "scenes" / "CLEVR_val_scenes.json").write_text(json.dumps({"info": info, "scenes": scenes}))
    return root


def gqa_object(name: str, box: tuple[float, float, float, float], *attributes: str) -> dict:
    x, y, w, h = box
    relations = [{"name": "to the left of", "object": "1058508"}]
    return {"name": name, "x": x, "y": y, "w": w, "h": h, "attributes": list(attributes), "relations": relations}


def write_gqa(root: Path, n: int = 60, folder: str = "sceneGraphs") -> Path:
    """Graph 0 to 3 are planted; in the others the main object is a wide car or a tall tree, red or green."""
    graphs: dict[str, dict[str, Any]] = {
        "2407890": {
            "width": 640,
            "height": 480,
            "location": "kitchen",
            "weather": "none",
            "objects": {
                # The larger box lies mostly outside of the image.
                "271881": gqa_object("car", (600, 400, 900, 900), "red"),
                "271882": gqa_object("tree", (-20, 100, 220, 300), "green", "wooden", "tall"),
            },
        },
        "2407891": {"width": 200, "height": 100, "objects": {}},
        "2407892": {
            "width": 200,
            "height": 100,
            "location": "cave",
            "weather": "rainy",
            "objects": {"1": gqa_object("car", (20, 10, 100, 50), "red", "green", "metal")},
        },
        "n100012": {"width": 200, "height": 100, "objects": {"1": gqa_object("unicorn", (0, 0, 200, 100), "dark")}},
    }
    rng, words = np.random.default_rng(0), ["metal", "wooden"]
    for i in range(n - len(graphs)):
        car = bool(rng.integers(2))
        box = (5, 20, 85, 30) if car else (int(rng.integers(10, 50)), 2, 30, int(rng.integers(60, 95)))
        graphs[str(i + 1)] = {
            "width": 100,
            "height": 100,
            "location": ["kitchen", "beach"][i % 2],
            "weather": ["sunny", "cloudy"][i % 3 // 2],
            "objects": {
                "7": gqa_object("sky", (0, 0, 20, 10), "blue"),
                "8": gqa_object("car" if car else "tree", box, *rng.choice(["red", "green"], 1), words[i % 2]),
            },
        }
    (root / "images").mkdir(parents=True)
    for image, graph in graphs.items():
        picture = Image.new("RGB", (graph["width"], graph["height"]), "white")
        for thing in graph["objects"].values():
            colour = next((word for word in thing["attributes"] if word in ("red", "green", "blue")), "black")
            x, y, w, h = (thing[key] for key in "xywh")
            ImageDraw.Draw(picture).rectangle([x, y, x + w, y + h], fill=colour)
        picture.save(root / "images" / f"{image}.jpg")
    (root / folder).mkdir(exist_ok=True)
    (root / folder / "val_sceneGraphs.json").write_text(json.dumps(graphs))
    return root


SHAPES = ("cube", "cylinder", "sphere", "capsule")


def write_3dshapes(root: Path, each: int = 2) -> Path:
    """`each` images of every one of the 1,000 combinations of hues, in the official order, with official values."""
    rng = np.random.default_rng(0)
    hues, scales = np.arange(10) * 0.1, np.linspace(0.75, 1.25, 8)
    orientations = np.linspace(-30, 30, 15)
    labels = []
    for triple in np.ndindex(10, 10, 10):
        for rest in sorted(rng.choice(8 * 4 * 15, each, replace=False)):
            scale, shape, orientation = np.unravel_index(rest, (8, 4, 15))
            labels.append([*hues[list(triple)], scales[scale], shape, orientations[orientation]])
    table = np.array(labels)
    palette = np.array([ImageColor.getrgb(f"hsv({360 * hue}, 90%, 90%)") for hue in hues])
    floor, wall, thing = (palette[np.rint(table[:, i] * 10).astype(int)] for i in range(3))
    images = np.empty((len(table), 64, 64, 3), np.uint8)
    images[:, :32], images[:, 32:] = wall[:, None, None], floor[:, None, None]
    row, col = np.mgrid[:64, :64]
    for image, colour, (scale, shape, orientation) in zip(images, thing, table[:, 3:], strict=True):
        radius = 18 * scale
        x, y = np.abs(col - 32 - orientation / 3), np.abs(row - 34)
        inside = [
            np.maximum(x, y) < radius,
            (x < radius / 2) & (y < radius),
            np.hypot(x, y) < radius,
            np.hypot(x / 2, y) < radius / 2,
        ][int(shape)]
        image[inside] = colour
    with h5py.File(root / "3dshapes.h5", "w") as file:
        file.create_dataset("images", data=images, chunks=(500, 16, 16, 1), compression="lzf")
        file.create_dataset("labels", data=table)
    return root


TOML = """
[shape]
suite = "semantic"
kind = "classes"
[tags]
suite = "semantic"
kind = "multilabel"
[size]
suite = "detail"
kind = "number"
unit = "px"
[colour]
suite = "detail"
kind = "classes"
[rounded]
suite = "detail"
kind = "classes"
"""

FEATURES = Features(
    picture=ImageFeature(),
    shape=ClassLabel(names=["square", "disc", "star"]),
    tags=Sequence(ClassLabel(names=["small", "big", "odd"])),
    size=Value("float32"),
    colour=Value("string"),
    rounded=Value("bool"),
    sides=Value("int64"),
    id=Value("string"),
    group=Value("int64"),
    extra=Features(nested=Value("string")),
)


def rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        disc, size, colour = bool(rng.integers(2)), float(rng.integers(6, 28)), str(rng.choice(["red", "blue"]))
        image = Image.new("RGB", (64, 64), "white")
        shape = ImageDraw.Draw(image).ellipse if disc else ImageDraw.Draw(image).rectangle
        shape([32 - size, 32 - size, 32 + size, 32 + size], fill=colour)
        found.append(
            {
                "picture": image,
                "shape": int(disc),
                "tags": [int(size > 16), *([2] if size % 2 else [])],
                "size": size,
                "colour": colour,
                "rounded": disc,
                "sides": 0 if disc else 4,
                "id": f"{seed}-{i}",
                "group": i // 2,
                "extra": {"nested": "x"},
            }
        )
    return found


UNKNOWN = {"shape": -1, "tags": None, "size": None, "colour": None, "rounded": None}


def saved(found: list[dict[str, Any]], features: Features = FEATURES, **more: Any) -> Dataset:
    return Dataset.from_list(found, features=features, **more)


def write_datasets(root: Path, n: int = 60) -> Path:
    """Rows 0 and 1 of val are planted; the others are drawn."""
    val = rows(n)
    val[0] |= {"shape": 0, "tags": [1, 2], "size": 2.5, "colour": "red", "rounded": False}
    val[1] |= UNKNOWN
    DatasetDict({"val": saved(val), "train": saved(rows(3, seed=1))}).save_to_disk(root)
    (root / "tasks.toml").write_text(TOML)
    return root


def task(source: Source, name: str) -> Task:
    return next(task for task in source.tasks if task.name == name)


def label(source: Source, index: int, name: str) -> str | float | None:
    """A class by its name, a number as it is; None where unknown."""
    value, what = source[index].labels[name], task(source, name)
    assert not isinstance(value, np.ndarray)
    if what.kind in ("number", "circular"):
        return None if np.isnan(value) else float(value)
    return None if value == -1 else what.classes[int(value)]


def shown(source: Source, index: int, name: str) -> set[str]:
    """The labels of a multi-label task that hold."""
    row, classes = source[index].labels[name], task(source, name).classes
    assert isinstance(row, np.ndarray) and len(row) == len(classes)
    return {label for label, mark in zip(classes, row, strict=True) if mark == 1}
