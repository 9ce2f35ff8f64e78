"""CUB, DTD, COCO and PACO-LVIS in their official formats, a few known images each. Knows the formats."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from htc_probe.extract.data.source import Item, Source
from htc_probe.extract.store import Task

RED, GREEN, BLUE, GREY = (200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 90)


def draw(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (48, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def make_cub(folder: Path) -> Path:
    """50 test and 2 train images of three species, the third with 4 images; returns CUB_200_2011/."""
    root = folder / "CUB_200_2011"
    species = {i: 1 if i <= 24 else 2 if i <= 48 else 3 for i in range(1, 53)}
    names = {1: "001.Black_footed_Albatross", 2: "002.Laysan_Albatross", 3: "003.Sooty_Albatross"}
    files = {i: f"{names[of]}/{names[of][4:]}_{i:04d}_{796000 + i}.png" for i, of in species.items()}
    for i, file in files.items():
        draw(root / "images" / file, (RED, GREEN, BLUE)[species[i] - 1])
    write(root / "images.txt", [f"{i} {file}" for i, file in files.items()])
    write(root / "classes.txt", [f"{number} {name}" for number, name in names.items()])
    write(root / "image_class_labels.txt", [f"{i} {of}" for i, of in species.items()])
    write(root / "train_test_split.txt", [f"{i} {int(i in (1, 25))}" for i in species])
    attributes = (
        "has_bill_shape::dagger",
        "has_bill_shape::cone",
        "has_wing_color::blue",
        "has_wing_color::rufous",
        "has_wing_color::buff",
    )
    write(folder / "attributes.txt", [f"{i} {name}" for i, name in enumerate(attributes, 1)])
    marks = []
    for i, of in species.items():
        present = (of == 1, of != 1, i % 2 == 0, i % 2 == 1, i in (2, 3))  # buff has 2 images
        for number, there in enumerate(present, 1):
            hidden = number > 2 and i % 5 == 0
            stray = " 0" if i == 7 else ""  # as some lines of the official file have it
            marks.append(f"{i} {number} {int(there)} {1 if hidden else 2 + i % 3}{stray} 12.7150")
    write(root / "attributes" / "image_attribute_labels.txt", marks)
    parts = (
        "back",
        "beak",
        "belly",
        "breast",
        "crown",
        "forehead",
        "left eye",
        "left leg",
        "left wing",
        "nape",
        "right eye",
        "right leg",
        "right wing",
        "tail",
        "throat",
    )
    write(root / "parts" / "parts.txt", [f"{i} {name}" for i, name in enumerate(parts, 1)])
    places = []
    for i in species:
        at = {"nape": (20.0, 10.0), "beak": (26.0, 18.0) if i % 2 else (17.0, 6.0)}
        if i % 7 == 0:
            del at["nape"]
        for number, part in enumerate(parts, 1):
            x, y = at.get(part, (0.0, 0.0))
            places.append(f"{i} {number} {x} {y} {int(part in at)}")
    write(root / "parts" / "part_locs.txt", places)
    return root


def make_dtd(folder: Path) -> Path:
    """Test lists 1 and 2 with 36 and 12 images of banded, dotted and grid; returns dtd/."""
    root = folder / "dtd"
    files = [f"{texture}/{texture}_{i:04d}.png" for texture in ("banded", "dotted", "grid") for i in range(16)]
    for file in files:
        draw(root / "images" / file, {"b": RED, "d": GREEN, "g": BLUE}[file[0]])
    write(root / "labels" / "test1.txt", [file for file in files if int(file[-8:-4]) < 12])
    write(root / "labels" / "test2.txt", [file for file in files if int(file[-8:-4]) >= 12])
    # Lines end in a blank; the file's own texture comes first. The last image of each texture is not listed.
    also = {"banded": "grid ", "dotted": "", "grid": "banded "}
    joint = [f"{file} {file.split('/')[0]} {also[file.split('/')[0]]}" for file in files if "_0015" not in file]
    write(root / "labels" / "labels_joint_anno.txt", joint)
    return root


def make_coco(folder: Path) -> Path:
    """60 images of val: 30 of one object each, 10 of two, 5 with a crowd, one of a crowd alone, 14 of nothing."""
    root = folder / "coco"
    categories = [
        {"supercategory": "person", "id": 1, "name": "person"},
        {"supercategory": "animal", "id": 17, "name": "cat"},
        {"supercategory": "animal", "id": 18, "name": "dog"},
        {"supercategory": "appliance", "id": 80, "name": "toaster"},
    ]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    def add(image: int, category: int, box: list[float], crowd: int = 0) -> None:
        shape: Any = {"counts": [272, 2, 4], "size": [40, 80]} if crowd else [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]
        annotations.append(
            {
                "segmentation": shape,
                "area": box[2] * box[3] / 2,
                "iscrowd": crowd,
                "image_id": image,
                "bbox": box,
                "category_id": category,
                "id": 900 + len(annotations),
            }
        )

    for i in range(60):
        number, name = 1000 + 7 * i, f"{1000 + 7 * i:012d}.png"
        draw(root / "val2017" / name, (RED, GREEN, BLUE)[i % 3], (80, 40))
        images.append(
            {
                "license": 4,
                "file_name": name,
                "coco_url": f"http://images.cocodataset.org/val2017/{name}",
                "height": 40,
                "width": 80,
                "date_captured": "2013-11-14 17:02:52",
                "id": number,
            }
        )
        if i < 30:
            add(number, (1, 18)[i % 2], [float(i), 5 + i % 4, 20, 10 + 2 * (i % 3)])
        elif i < 40:
            add(number, 1, [0, 0, 10, 10])
            add(number, 17, [50, 20, 10.5, 10])
        elif i < 45:
            add(number, 80, [0, 0, 10, 10])
            add(number, 1, [0, 0, 80, 40], crowd=1)
        elif i == 45:
            add(number, 1, [0, 0, 80, 40], crowd=1)
    annotations.reverse()  # the official file is not sorted by image either
    data = {
        "info": {"year": 2017},
        "licenses": [{"id": 4}],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    write(root / "annotations" / "instances_val2017.json", [json.dumps(data)])
    return root


PACO_TYPES = {
    "color": ["black", "light_blue", "red", "other(color)"],
    "pattern_marking": ["plain", "striped"],
    "material": ["wood", "other(material)"],
    "transparency": ["opaque", "transparent"],
}


def make_paco(folder: Path) -> Path:
    """60 objects, mugs and tables by turns, in 30 images of COCO's two folders, each with a part."""
    root = folder / "coco"
    attributes, kinds = [], {}
    for kind, names in PACO_TYPES.items():
        kinds[kind] = list(range(len(attributes), len(attributes) + len(names)))
        attributes += [{"supercategory": "ATTR", "id": len(attributes) + i, "name": n} for i, n in enumerate(names)]
    ids = {row["name"]: row["id"] for row in attributes}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(30):
        file = f"{('train2017', 'val2017')[i % 2]}/{500 + i:012d}.png"
        canvas = Image.new("RGB", (64, 48), GREY)
        canvas.paste(RED, (4, 8, 24, 38))
        canvas.paste(BLUE, (30, 10, 64, 48))
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        canvas.save(root / file)
        images.append(
            {
                "id": 500 + i,
                "file_name": file,
                "width": 64,
                "height": 48,
                "neg_category_ids": [7],
                "not_exhaustive_category_ids": [],
                "license": 1,
            }
        )
        for side, box in enumerate(([4, 8, 20, 30], [30.0, 10.0, 34.0, 38.0])):
            number = 10 * i + 4 * side
            listed = ["red" if side else "black", "striped" if i % 2 else "plain", "opaque", "other(material)"]
            flags = {f"unknown_{kind}": 0 for kind in PACO_TYPES}
            if i % 3 == 0:  # nobody annotated it
                listed, flags = [], {f"unknown_{kind}": 1 for kind in PACO_TYPES}
            elif i % 3 == 1 and side:
                flags["unknown_transparency"] = 1
                listed.remove("opaque")
                listed.append("light_blue")
            row = {
                "bbox": box,
                "area": 5.0,
                "category_id": (7, 9)[side],
                "image_id": 500 + i,
                "obj_ann_id": number,
                "attribute_ids": [ids[name] for name in listed],
                "dom_color_ids": [],
                **flags,
            }
            annotations.append({**row, "id": number, "segmentation": [[4, 8, 24, 8, 24, 38]]})
            annotations.append(
                {
                    **row,
                    "id": 5000 + number,
                    "category_id": 200,
                    "bbox": [5, 9, 3, 3],
                    "segmentation": {"counts": "abc", "size": [48, 64]},
                }
            )
    data = {
        "images": images,
        "annotations": annotations,
        "attributes": attributes,
        "attr_type_to_attr_idxs": kinds,
        "categories": [
            {"supercategory": "OBJECT", "id": 7, "name": "mug", "synset": "mug.n.04", "frequency": "f"},
            {"supercategory": "OBJECT", "id": 9, "name": "table", "synset": "table.n.02", "frequency": "f"},
            {"supercategory": "PART", "id": 200, "name": "mug:handle"},
        ],
        "part_categories": [{"supercategory": "PART", "id": 1, "name": "handle"}],
    }
    write(root / "annotations" / "paco_lvis_v1_val.json", [json.dumps(data)])
    return root


class Format(NamedTuple):
    make: Callable[[Path], Path]
    split: str


FORMATS = {
    "cub": Format(make_cub, "test"),
    "dtd": Format(make_dtd, "test"),
    "coco": Format(make_coco, "val"),
    "paco": Format(make_paco, "val"),
}


def items(source: Source) -> dict[str, Item]:
    return {item.id: item for item in (source[i] for i in range(len(source)))}


def task(source: Source, name: str) -> Task:
    return next(one for one in source.tasks if one.name == name)


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
