"""From images to pixels: exact where nothing has to change, LLaVA-1.5's square elsewhere."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from htc_probe.extract import images
from htc_probe.extract.images import Fit, Resample, prepare, thumbnail
from htc_probe.extract.vlm.config import CLIP_MEAN


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_an_image_of_the_right_size_keeps_every_pixel() -> None:
    image = noise(16, 16)
    pixels = prepare(image, 16)
    assert pixels.dtype == torch.float32 and pixels.is_contiguous()
    assert np.array_equal((pixels * 255).round().byte().permute(1, 2, 0).numpy(), np.array(image))
    assert np.array_equal(thumbnail(image, 16), np.array(image))


@pytest.mark.parametrize("size", [(16, 8), (8, 16)])
def test_padding_is_clips_mean_colour_around_the_untouched_image(size: tuple[int, int]) -> None:
    image = noise(*size)
    square = thumbnail(image, 16)
    if size == (8, 16):
        square = square.swapaxes(0, 1)
        image = image.transpose(Image.Transpose.TRANSPOSE)
    assert np.array_equal(square[4:12], np.array(image))
    border = np.concatenate([square[:4], square[12:]]).reshape(-1, 3)
    assert np.array_equal(np.unique(border, axis=0), [[int(255 * channel) for channel in CLIP_MEAN]])


def test_stretching_fills_the_square_and_wrong_names_are_refused() -> None:
    red = Image.new("RGB", (20, 10), (255, 0, 0))
    assert torch.equal(prepare(red, 8, fit="stretch"), torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 8, 8))
    with pytest.raises(ValueError, match="fit is 'fill'; it is one of pad, crop, stretch"):
        prepare(red, 8, fit="fill")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resample is 'sinc'; it is one of nearest, lanczos"):
        prepare(red, 8, resample="sinc")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(16, 8), (9, 16), (16, 16), (17, 16)])
def test_cropping_keeps_the_middle(size: tuple[int, int]) -> None:
    image = noise(*size)
    short = min(size)
    left, top = ((side - short) // 2 for side in size)
    middle = image.crop((left, top, left + short, top + short))
    assert np.array_equal(thumbnail(image, short, fit="crop"), np.array(middle))


@pytest.mark.parametrize("size", [(60, 41), (41, 60), (1, 300), (300, 1), (5, 3)])
@pytest.mark.parametrize("resample", get_args(Resample))
def test_what_is_resized_to_more_is_cut_to_its_middle(size: tuple[int, int], resample: Any) -> None:
    image, short = noise(*size), min(size)
    for fit in get_args(Fit):
        canvas = image
        if fit == "pad":
            canvas = Image.new("RGB", (max(size),) * 2, tuple(int(255 * channel) for channel in CLIP_MEAN))
            canvas.paste(image, ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2))
        width, height = (int(20 * side / short) for side in size) if fit == "crop" else (20, 20)
        whole = canvas.resize((width, height), Image.Resampling[resample.upper()])
        left, top = (width - 16) // 2, (height - 16) // 2
        wanted = np.array(whole.crop((left, top, left + 16, top + 16)))
        assert np.array_equal(thumbnail(image, 16, fit=fit, resize=20, resample=resample), wanted), fit


@pytest.mark.parametrize("size", [(60, 41), (41, 60), (7, 300), (300, 7)])
def test_of_an_image_too_long_to_be_resized_whole_the_same_middle_is_made(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = thumbnail(noise(*size), 16, fit="crop", resize=20).astype(int)
    monkeypatch.setattr(images, "MOST", 1)
    assert abs(thumbnail(noise(*size), 16, fit="crop", resize=20) - wanted).max() <= 8, "rounded elsewhere, no more"


def test_reduction_is_antialiased() -> None:
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = prepare(Image.fromarray(checkers), 8)
    assert (small - 0.5).abs().max() < 0.05, "a fine checkerboard is grey from afar"


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_mode_becomes_three_channels_between_0_and_1(mode: str) -> None:
    image = Image.new(mode, (9, 7))
    pixels = prepare(image, 12)
    assert pixels.shape == (3, 12, 12) and pixels.min() >= 0 and pixels.max() <= 1
    assert thumbnail(image).shape == (96, 96, 3) and thumbnail(image).dtype == np.uint8
