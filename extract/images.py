"""From a PIL image to the square pixels a model sees. Knows pixels; not models, files or normalisation.

Importing it brings in no torch: processes that only read images start in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
Fit = Literal["pad", "crop", "stretch"]
Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
"""Pillow's filters, in the order of its numbers, which processors' files have."""
STRIP = 2**22  # pixels of the padded square in memory at a time
MOST = 2**26  # pixels of a resized image; of a larger one, hundreds of times as long as wide, only the middle is made


class Frame(NamedTuple):
    """How an image becomes the model's input. The pixels are those of transformers' processors on Pillow."""

    size: int
    """Pixels a side, R."""
    fit: Fit = "pad"
    """`pad` centres the image on a square of the mean colour, as LLaVA-1.5 was trained; `crop` cuts a square out of its
    middle, as CLIP's own processor does; `stretch` changes its proportions."""
    mean: Sequence[float] = CLIP_MEAN
    """What `pad` fills with, per channel in [0, 1]."""
    resize: int | None = None
    """Pixels of the resized square, or with `crop` of the shorter side, whose middle R pixels are kept; None for R."""
    resample: Resample = "bicubic"


def prepare(
    image: Image.Image,
    size: int,
    *,
    fit: Fit = "pad",
    mean: Sequence[float] = CLIP_MEAN,
    resize: int | None = None,
    resample: Resample = "bicubic",
) -> Tensor:
    """(3, size, size) float32 in [0, 1]; an RGB image of that size already keeps its pixels exactly.

    The arguments are those of a `Frame`.
    """
    import torch

    square = _square(image, Frame(size, fit, mean, resize, resample))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous().float() / 255


def thumbnail(
    image: Image.Image,
    size: int = 96,
    *,
    fit: Fit = "pad",
    mean: Sequence[float] = CLIP_MEAN,
    resize: int | None = None,
    resample: Resample = "bicubic",
) -> np.ndarray:
    """(size, size, 3) uint8, of the same square that `prepare` makes."""
    return np.array(_square(image, Frame(size, fit, mean, resize, resample)))


def square_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Field, then and now, where the configuration `now` makes other pixels of an image than that of a run, `before`.

    Nothing where the run has no configuration. Runs of version 0.1 lack the fields that it had one value of.
    """
    if "image_fit" not in before:
        return []
    before = {"image_resize": None, "image_resample": "bicubic"} | dict(before)
    names = ("image_fit", "image_resize", "image_resample", "image_mean", "image_std")
    pairs = [(name, _listed(before.get(name)), _listed(now[name])) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _square(image: Image.Image, frame: Frame) -> Image.Image:
    for name, value, choices in (("fit", frame.fit, get_args(Fit)), ("resample", frame.resample, get_args(Resample))):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; it is one of {', '.join(choices)}")
    image = image.convert("RGB")
    resized, resample = frame.resize or frame.size, Image.Resampling[frame.resample.upper()]
    if frame.fit == "pad" and image.width != image.height:
        square = _padded(image, resized, resample, tuple(int(255 * channel) for channel in frame.mean))
        return _middle(square, frame.size)
    target = (resized, resized)
    if frame.fit == "crop":
        short = min(image.size)
        target = int(resized * image.width / short), int(resized * image.height / short)
    if target[0] * target[1] > MOST:
        left, top, right, bottom = _middle_box(target, frame.size)
        x, y = image.width / target[0], image.height / target[1]
        return image.resize((frame.size, frame.size), resample, (left * x, top * y, right * x, bottom * y))
    # Pillow's filters widen with the reduction, so this is antialiased.
    return _middle(image if image.size == target else image.resize(target, resample), frame.size)


def _middle(image: Image.Image, size: int) -> Image.Image:
    return image if image.size == (size, size) else image.crop(_middle_box(image.size, size))


def _middle_box(whole: tuple[int, int], size: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the square in the middle, in which transformers rounds down."""
    left, top = ((side - size) // 2 for side in whole)
    return left, top, left + size, top + size


def _padded(image: Image.Image, size: int, resample: Image.Resampling, colour: tuple[int, ...]) -> Image.Image:
    """`image` in the middle of a square of its longer side, resized to `size`.

    Pillow resizes the rows of a square and then its columns. So does this, some rows at a time: the pixels are the
    same, and the square, which for a panorama of 40,000 x 4,000 pixels would take 5 GB, is never in memory.
    """
    side = max(image.size)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    narrow = Image.new("RGB", (size, side), colour)
    step = max(1, STRIP // side)
    for start in range(0, image.height, step):
        stop = min(start + step, image.height)
        rows = Image.new("RGB", (side, stop - start), colour)
        rows.paste(image.crop((0, start, image.width, stop)), (left, 0))
        narrow.paste(rows.resize((size, stop - start), resample), (0, top + start))
    return narrow.resize((size, size), resample)
