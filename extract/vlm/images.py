"""From a PIL image to the square pixels a model sees. Knows pixels; not models, files or normalisation."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from extract.vlm.config import CLIP_MEAN, Fit


def prepare(image: Image.Image, size: int, *, fit: Fit = "pad", mean: Sequence[float] = CLIP_MEAN) -> Tensor:
    """(3, size, size) float32 in [0, 1]; an RGB image of that size already keeps its pixels exactly.

    `pad` centres the image on a square of the mean colour, as LLaVA-1.5 does; `stretch` changes its
    proportions.
    """
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
    side = max(image.size)
    if fit == "pad" and image.size != (side, side):
        canvas = Image.new("RGB", (side, side), tuple(int(255 * channel) for channel in mean))
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = canvas
    # Pillow's filters widen with the reduction, so this is antialiased.
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)
