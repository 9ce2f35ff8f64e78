"""From images to pixels: exact where nothing has to change, LLaVA-1.5's square elsewhere."""

import numpy as np
import pytest
import torch
from PIL import Image

from extract.images import prepare, thumbnail
from extract.vlm.config import CLIP_MEAN


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
    assert torch.equal(
        prepare(red, 8, fit="stretch"), torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 8, 8)
    )
    with pytest.raises(ValueError, match="fit is 'crop'; it is one of pad, stretch"):
        prepare(red, 8, fit="crop")  # type: ignore[arg-type]


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
