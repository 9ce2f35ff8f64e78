"""Annotations and the pictures they are of: another size, shape or turn is told or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from htc_probe.extract.data import open_source
from htc_probe.extract.data.source import ImageError
from made.datasets_natural import BLUE, FORMATS, RED, items, make_coco, make_cub, make_paco

# ---- an image of another size than the one that was annotated


def resave(folder: Path, change: Callable[[Image.Image], Image.Image], **save: Any) -> None:
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            changed = change(image)
        changed.save(path, **save)


@pytest.mark.parametrize("factor", [0.5, 0.37, 2])
def test_boxes_and_positions_hold_for_images_scaled_as_a_whole(factor: float, tmp_path: Path) -> None:
    def scaled(image: Image.Image) -> Image.Image:
        return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.NEAREST)

    paco, coco = make_paco(tmp_path / "a"), make_coco(tmp_path / "b")
    whole = items(open_source(f"coco:{coco}", "val"))
    resave(paco, scaled)
    resave(coco, scaled)
    for item in items(open_source(f"paco:{paco}", "val")).values():
        colours = np.asarray(item.image.resize((9, 9), Image.Resampling.NEAREST))[1:-1, 1:-1].reshape(-1, 3)
        assert {tuple(colour) for colour in colours.tolist()} in ({RED}, {BLUE}), item.id
    for name, item in items(open_source(f"coco:{coco}", "val")).items():
        np.testing.assert_equal(item.labels, whole[name].labels)


@pytest.mark.parametrize("name", ["coco", "paco"])
@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((32, 32)),
        lambda image: image.crop((0, 0, image.width, image.height - 8)),
        lambda image: image.transpose(Image.Transpose.ROTATE_90),
    ],
)
def test_an_image_that_was_stretched_cut_or_turned_is_refused_with_both_sizes(
    name: str, change: Callable[[Image.Image], Image.Image], tmp_path: Path
) -> None:
    root = FORMATS[name].make(tmp_path)
    whole = open_source(f"{name}:{root}", "val")
    path = Path(whole[3].path)
    with Image.open(path) as image:
        before, changed = image.size, change(image)
    changed.save(path)
    there, now = (f"{width} x {height}" for width, height in (before, changed.size))
    with pytest.raises(ImageError, match=f"image of {there} pixels, and the upright file has {now}: "):
        whole[3]


def test_an_image_is_compared_as_it_stands_upright(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    resave(root, lambda image: image.transpose(Image.Transpose.ROTATE_90), exif=exif)
    source = open_source(f"coco:{root}", "val")
    assert source[0].image.size == (80, 40)
    exif[0x0112] = 1
    resave(root, lambda image: image.copy(), exif=exif)
    with pytest.raises(ImageError, match="80 x 40 pixels, and the upright file has 40 x 80"):
        source[0]


def test_a_bird_whose_head_lies_outside_of_its_file_is_refused(tmp_path: Path) -> None:
    source = open_source(f"cub:{make_cub(tmp_path)}", "test")
    resave(tmp_path, lambda image: image.resize((20, 40)))  # the beak is at x 26, or 17
    with pytest.raises(ImageError, match=r"reach to \(26, 18\) and the upright file has 20 x 40"):
        source[1]
    assert source[0].labels["head_x"] == pytest.approx(-0.6)  # 17 lies in it: a file cannot tell all
