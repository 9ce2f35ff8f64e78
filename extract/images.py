"""From a PIL image to the square pixels a model sees. Knows pixels; not models, files or normalisation.

Importing it brings in no torch: processes that only read images start in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
Fit = Literal["pad", "stretch"]
STRIP = 2**22  # pixels of the padded square in memory at a time


def prepare(image: Image.Image, size: int, *, fit: Fit = "pad", mean: Sequence[float] = CLIP_MEAN) -> Tensor:
    """(3, size, size) float32 in [0, 1]; an RGB image of that size already keeps its pixels exactly.

    `pad` centres the image on a square of the mean colour, as LLaVA-1.5 does; `stretch` changes its
    proportions.
    """
    import torch

    square = _square(image, size, fit, mean)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous().float() / 255


def thumbnail(
    image: Image.Image, size: int = 96, *, fit: Fit = "pad", mean: Sequence[float] = CLIP_MEAN
) -> np.ndarray:
    """(size, size, 3) uint8, of the same square that `prepare` makes."""
    return np.array(_square(image, size, fit, mean))


def _square(image: Image.Image, size: int, fit: Fit, mean: Sequence[float]) -> Image.Image:
    if fit not in get_args(Fit):
        raise ValueError(f"fit is {fit!r}; it is one of {', '.join(get_args(Fit))}")
    image = image.convert("RGB")
    if fit == "pad" and image.width != image.height:
        return _padded(image, size, tuple(int(255 * channel) for channel in mean))
    # Pillow's filters widen with the reduction, so this is antialiased.
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def _padded(image: Image.Image, size: int, colour: tuple[int, ...]) -> Image.Image:
    """`image` in the middle of a square of its longer side, resized to `size`.

    Pillow resizes the rows and then the columns. So does this, some rows at a time: the pixels are the same, and the
    square, which for a panorama of 40,000 x 4,000 pixels would take 5 GB, is never in memory.
    """
    side = max(image.size)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    narrow = Image.new("RGB", (size, side), colour)
    step = max(1, STRIP // side)
    for start in range(0, image.height, step):
        stop = min(start + step, image.height)
        rows = Image.new("RGB", (side, stop - start), colour)
        rows.paste(image.crop((0, start, image.width, stop)), (left, 0))
        narrow.paste(rows.resize((size, stop - start), Image.Resampling.BICUBIC), (0, top + start))
    return narrow.resize((size, size), Image.Resampling.BICUBIC)
