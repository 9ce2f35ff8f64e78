"""Rows of LLaVA instructions. Knows their format; not how they are read."""

import json

import numpy as np
from PIL import Image


def row(*turns, image=None):
    said = [{"from": speaker, "value": value} for speaker, value in turns]
    return {"id": "7"} | ({"image": image} if image else {}) | {"conversations": said}


def write_photos(folder):
    """A LLaVA instruction file with images, text-only rows and several turns."""
    (folder / "coco").mkdir(parents=True)
    rows = []
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 50 + i, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"coco/{i}.jpg")
        rows.append(row(("human", "<image>\nwhere is this ?"), ("gpt", "desert"), image=f"coco/{i}.jpg"))
    rows.append(row(("human", "how big is it ?"), ("gpt", "tiny"), ("human", "where is this ?"), ("gpt", "sea")))
    rows.append(row(("human", "what is its texture ?"), ("gpt", "plain")))
    (folder / "mix.json").write_text(json.dumps(rows))
    return folder
