"""How a checkpoint's own image processor makes an image square, from its preprocessor_config.json.

Knows what transformers' CLIPImageProcessor and LlavaImageProcessor can be told, and what of it `extract.images` can
do. Reads no image and builds no processor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from htc_probe.extract.errors import UserError
from htc_probe.extract.images import Fit, Resample
from htc_probe.extract.models.weights import read_json, reading

FILES = ("processor_config.json", "preprocessor_config.json")
"""Where transformers 5 saves an image processor, within the whole processor, and where it lies on the hub."""
_KINDS = ("CLIPImageProcessor", "LlavaImageProcessor", "CLIPFeatureExtractor")


def image_settings(folder: Path, size: int, *, pad: bool | None = None) -> dict[str, Any]:
    """The `image_*` fields of an HTCConfig for a model of `size` pixels a side whose processor lies in `folder`.

    `pad`: whether images are padded before they go to the processor, as LLaVA's own code has it; None where the
    processor says it (LlavaImageProcessor's `do_pad`). A folder without a processor has CLIP's: the shorter side
    becomes `size` and the middle is cropped. Raises UserError for what cannot be done here, with the reason.
    """
    path, settings = _read(folder)
    default = size if path is None else 224  # transformers' own
    config = {"size": default, "crop_size": default, **settings}
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "LlavaImageProcessor")
    if kind.removesuffix("Fast").removesuffix("Pil") not in _KINDS:
        raise _refusal(path, f"the processor {kind}", f"images are prepared here as {' or '.join(_KINDS[:2])} does")
    if pad is None:
        pad = bool(settings.get("do_pad")) and kind.startswith("Llava")
    if not settings.get("do_resize", True):
        raise _refusal(path, "do_resize off", f"images of every size become {size} x {size} here")
    if not settings.get("do_rescale", True) or not _is(settings.get("rescale_factor", 1 / 255), 1 / 255):
        words = f"do_rescale {settings.get('do_rescale', True)} and rescale_factor {settings.get('rescale_factor')}"
        raise _refusal(path, words, "pixels are divided by 255 here")
    fit, resized = _resized(path, config, pad=pad)
    if config.get("do_center_crop", True):
        crop = _sides(path, "crop_size", config["crop_size"], "height")
        if set(crop) != {"height", "width"} or set(crop.values()) != {size}:
            raise _refusal(path, f"crop_size {config['crop_size']}", f"the model's images are {size} x {size}")
        if resized < size:
            raise _refusal(path, f"size {config['size']}", f"the middle {size} x {size} cannot be cut out of less")
    elif fit == "crop":
        raise _refusal(path, "do_center_crop off", "images that keep their proportions are not square")
    elif resized != size:
        raise _refusal(path, f"size {config['size']}", f"the model's images are {size} x {size}")
    normal = {name: _channels(path, name, settings[name]) for name in ("image_mean", "image_std") if name in settings}
    if not settings.get("do_normalize", True):
        normal = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
        if fit == "pad":
            raise _refusal(path, "do_normalize off", "images are padded here with the mean that normalises them")
    filters: dict[Any, Resample] = dict(enumerate(get_args(Resample)))
    resample = settings.get("resample", 3)
    if type(resample) is not int or resample not in filters:
        raise _refusal(path, f"resample {resample!r}", f"the filters of Pillow are 0 to {len(filters) - 1}")
    resize = None if resized == size else resized
    return {"image_fit": fit, "image_resize": resize, "image_resample": filters[resample], **normal}


def _read(folder: Path) -> tuple[Path | None, Mapping[str, Any]]:
    """The file that holds the settings of the image processor, and them; none where there is no such file."""
    whole, alone = (folder / name for name in FILES)
    if whole.is_file():
        with reading(whole):
            settings = read_json(whole).get("image_processor")
        if isinstance(settings, dict):
            return whole, settings
    if not alone.is_file():
        return None, {}
    with reading(alone):
        return alone, read_json(alone)


def _resized(path: Path | None, config: Mapping[str, Any], *, pad: bool) -> tuple[Fit, int]:
    """How the image becomes square, and the side of the square, or with `crop` the shorter side, it is resized to."""
    size = _sides(path, "size", config["size"], "shortest_edge")
    if set(size) == {"shortest_edge"}:
        return "pad" if pad else "crop", size["shortest_edge"]
    if set(size) == {"height", "width"} and len(set(size.values())) == 1:
        return "pad" if pad else "stretch", size["height"]
    raise _refusal(path, f"size {config['size']}", "expected one shortest_edge, or height and width of a square")


def _sides(path: Path | None, name: str, value: Any, alone: str) -> dict[str, int]:
    """A size as processors have it: names of sides with their pixels, or a number, which is the side `alone`."""
    if isinstance(value, int):
        value = {"height": value, "width": value} if alone == "height" else {alone: value}
    elif isinstance(value, list) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    sides = {side: pixels for side, pixels in value.items() if pixels is not None} if isinstance(value, dict) else {}
    if not sides or not all(type(pixels) is int and pixels > 0 for pixels in sides.values()):
        raise _refusal(path, f"{name} {value}", "expected pixels")
    return sides


def _channels(path: Path | None, name: str, value: Any) -> tuple[float, ...]:
    numbers = tuple(value) if isinstance(value, (list, tuple)) else ()
    real = all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)
    if len(numbers) != 3 or not real or (name == "image_std" and min(numbers) <= 0):
        raise _refusal(path, f"{name} {value}", "expected a number for each of the 3 channels, deviations above 0")
    return numbers


def _is(value: Any, wanted: float) -> bool:
    return isinstance(value, (int, float)) and math.isclose(value, wanted, rel_tol=1e-6)


def _refusal(path: Path | None, setting: str, why: str) -> UserError:
    return UserError(
        f"{path} has {setting}, which cannot be followed: {why}; change the file, or take another checkpoint"
    )
