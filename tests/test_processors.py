"""A checkpoint's own image processor: its pixels are those of transformers, and what cannot be followed is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

from htc_probe.extract.errors import UserError
from htc_probe.extract.images import prepare
from htc_probe.extract.models.processors import image_settings
from htc_probe.extract.vlm.config import CLIP_MEAN, CLIP_STD, HTCConfig

SIZE = 24
SIZES = [(24, 24), (37, 25), (25, 37), (61, 24), (24, 61), (10, 7), (7, 90), (333, 5), (48, 48)]
# As llava-hf/llava-1.5-7b-hf has it, and, of the time before image processors, openai/clip-vit-large-patch14-336; of
# smaller images.
LLAVA: dict[str, Any] = {
    "crop_size": {"height": SIZE, "width": SIZE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": list(CLIP_MEAN),
    "image_processor_type": "CLIPImageProcessor",
    "image_std": list(CLIP_STD),
    "processor_class": "LlavaProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": SIZE},
}
CLIP: dict[str, Any] = {
    "crop_size": SIZE,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
    "resample": 3,
    "size": SIZE,
}
PADDED = {"image_processor_type": "LlavaImageProcessorFast", "do_pad": True}
FOLLOWED: dict[str, dict[str, Any]] = {
    "LLaVA": LLAVA,
    "CLIP": CLIP,
    "bilinear": LLAVA | {"resample": 2},
    "mean and deviation": LLAVA | {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]},
    "cut out of more": LLAVA | {"size": {"shortest_edge": 31}, "resample": 1},
    "stretched": LLAVA | {"size": {"height": SIZE, "width": SIZE}, "do_center_crop": False, "crop_size": 7},
    "cut out of a stretched one": LLAVA | {"size": [32, 32]},
    "padded": LLAVA | PADDED,
    "padded, and cut out of more": LLAVA | PADDED | {"size": {"shortest_edge": 30}, "resample": 5},
    "padded without a crop": LLAVA | PADDED | {"do_center_crop": False},
    "raw": LLAVA | {"do_normalize": False},
    "CLIP's do_pad pads to the largest of a batch": LLAVA | {"do_pad": True},
}


def write(folder: Path, settings: Any, *, whole: bool = False) -> Path:
    name, content = ("processor_config", {"image_processor": settings}) if whole else ("preprocessor_config", settings)
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def model_of(settings: dict[str, Any]) -> HTCConfig:
    text = {"hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 64}
    return HTCConfig(vision_config={"image_size": SIZE, "patch_size": 8}, text_config=text, num_anchors=0, **settings)


def pixel_values(config: HTCConfig, image: Image.Image) -> torch.Tensor:
    """CLIP's input, as `HTCVLM.vision_features` normalises it."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.image_mean, config.image_std))
    return (prepare(image, **config.frame._asdict()) - mean) / std


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("whole", [False, True])
def test_pixels_are_those_of_transformers(name: str, whole: bool, tmp_path: Path) -> None:
    settings = FOLLOWED[name]
    config = model_of(image_settings(write(tmp_path, settings, whole=whole), SIZE))
    padded = name.startswith("padded")
    processor = (LlavaImageProcessorPil if padded else CLIPImageProcessorPil).from_pretrained(tmp_path)
    for size in SIZES:
        wanted = processor(noise(*size), return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(pixel_values(config, noise(*size)), wanted.float(), atol=2e-6, rtol=2e-6)
    assert config.image_fit == ("pad" if padded else "stretch" if "stretched" in name else "crop")


def test_a_square_that_llava_s_own_code_padded_goes_through_clip_s_processor(tmp_path: Path) -> None:
    """As in LLaVA's process_images: expand2square, then the processor of the vision tower's folder."""
    write(tmp_path, CLIP | {"size": 30, "image_mean": [0.5, 0.4, 0.3]})
    config = model_of(image_settings(tmp_path, SIZE, pad=True))
    processor = CLIPImageProcessorPil.from_pretrained(tmp_path)
    for size in SIZES:
        side = max(size)
        square = Image.new("RGB", (side, side), tuple(int(255 * channel) for channel in config.image_mean))
        square.paste(noise(*size), ((side - size[0]) // 2, (side - size[1]) // 2))
        wanted = processor(square, return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(pixel_values(config, noise(*size)), wanted.float(), atol=2e-6, rtol=2e-6)


def test_without_a_processor_clip_s_own_for_that_size(tmp_path: Path) -> None:
    assert model_of(image_settings(tmp_path, SIZE)) == model_of(image_settings(write(tmp_path, LLAVA), SIZE))
    assert image_settings(tmp_path, SIZE)["image_fit"] == "crop"
    assert image_settings(tmp_path, SIZE, pad=True)["image_fit"] == "pad"
    # As on the hub: a processor_config.json that says nothing of images.
    (tmp_path / "processor_config.json").write_text(json.dumps({"patch_size": 14, "processor_class": "LlavaProcessor"}))
    write(tmp_path, LLAVA | {"resample": 2})
    assert image_settings(tmp_path, SIZE)["image_resample"] == "bilinear"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"do_resize": False}, "do_resize off.*every size"),
        ({"do_center_crop": False}, "do_center_crop off.*are not square"),
        ({"do_center_crop": None}, "do_center_crop off.*are not square"),
        ({"do_rescale": False}, "do_rescale False.*divided by 255"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor 0.0078.*divided by 255"),
        ({"crop_size": {"height": 32, "width": 24}}, "crop_size .*32.* the model's images are 24 x 24"),
        ({"crop_size": 224}, "crop_size 224.*24 x 24"),
        ({"crop_size": None}, "crop_size None.*expected pixels"),
        ({"size": {"shortest_edge": 20}}, "size .*20.*cannot be cut out of less"),
        ({"size": {"shortest_edge": 24, "longest_edge": 48}}, "longest_edge.*expected one shortest_edge"),
        ({"size": {"longest_edge": 24}}, "longest_edge.*expected one shortest_edge"),
        ({"size": {"height": 24, "width": 32}}, "width.*expected one shortest_edge, or height and width of a square"),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, "size .*the model's images are 24 x 24"),
        ({"size": "large"}, "size large.*expected pixels"),
        ({"size": {"shortest_edge": -24}}, "size .*expected pixels"),
        ({"resample": 6}, "resample 6.*0 to 5"),
        ({"resample": "bicubic"}, "resample 'bicubic'.*0 to 5"),
        ({"resample": [3]}, r"resample \[3\].*0 to 5"),
        ({"image_mean": [0.5]}, "image_mean .*3 channels"),
        ({"image_std": 0.5}, "image_std 0.5.*3 channels"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std .*3 channels"),
        ({**PADDED, "do_normalize": False}, "do_normalize off.*padded"),
        ({"image_processor_type": "SiglipImageProcessor"}, "SiglipImageProcessor.*CLIPImageProcessor or Llava"),
        ({"image_processor_type": "LlavaNextImageProcessor"}, "LlavaNextImageProcessor"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_the_reason(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"preprocessor_config.json has .*{words}") as caught:
        image_settings(write(tmp_path, LLAVA | change), SIZE)
    assert "\n" not in str(caught.value)


def test_sizes_that_are_left_out_are_transformers_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="crop_size 224"):
        image_settings(write(tmp_path, {"image_processor_type": "CLIPImageProcessor"}), SIZE)
    assert image_settings(tmp_path, 224)["image_fit"] == "crop"


@pytest.mark.parametrize("content", ["[]", "{", "\xff"])
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    for name in ("preprocessor_config.json", "processor_config.json"):
        (tmp_path / name).write_text(content, encoding="latin1")
        with pytest.raises(UserError, match=name):
            image_settings(tmp_path, SIZE)
