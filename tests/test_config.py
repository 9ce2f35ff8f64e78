"""The configuration: the paper's sizes, which key is what, and what does not fit."""

from typing import Any

import pytest
import torch
from transformers import CLIPVisionModel

from htc_probe.extract import models
from htc_probe.extract.vlm.model import HTCVLM
from made.variants import images, small_config, small_model


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_papers_configuration_has_the_papers_sizes() -> None:
    config = models.read_config(models.find("htc-7b"))
    assert (config.num_patches, config.q_size, config.sequence) == (576, 14112, 581)
    assert config.code_shape == (21, 21, 8)
    with torch.device("meta"):
        model = HTCVLM(config)
    d = 4096
    clip_layer = 4 * (1024**2 + 1024) + 2 * 2 * 1024 + (1024 * 4096 + 4096) + (4096 * 1024 + 1024)
    clip = 1024 + 3 * 14 * 14 * 1024 + 577 * 1024 + 24 * clip_layer + 2 * 2 * 1024
    assert parameters(model.vision_tower) == clip == 303_507_456
    llama = 2 * 32000 * d + 32 * (4 * d * d + 3 * d * 11008 + 2 * d) + d
    assert parameters(model.language_model) == llama == 6_738_415_616
    assert round(parameters(model.mgvq.encoder) / 1e6, 2) == 87.07
    assert round(parameters(model.mgvq) / 1e6, 1) == 215.8
    assert parameters(model.patch_projector) == 1024 * d + d + d * d + d
    assert parameters(model.anchor_projector) == 14112 * d + d + d * 4 * d + 4 * d
    parts = (model.vision_tower, model.mgvq, model.patch_projector, model.anchor_projector, model.language_model)
    assert parameters(model) == sum(map(parameters, parts)) + d
    assert isinstance(model.vision_tower, CLIPVisionModel)


def test_every_key_has_a_role_and_patches_their_place() -> None:
    config = small_config(prefix_ids=(3, 1), infix_ids=(7,), topology="causal")
    roles, rows, cols = config.keys_of_voco()
    assert len(roles) == len(rows) == len(cols) == config.sequence
    assert roles == ("prefix",) * 2 + ("anchor",) * 4 + ("patch",) * 16 + ("text", "voco")
    swapped = small_config(anchor_place="after").keys_of_voco().roles
    assert swapped == ("patch",) * 16 + ("anchor",) * 4 + ("voco",)
    patches = [(row, col) for role, row, col in zip(roles, rows, cols, strict=True) if role == "patch"]
    assert patches == [(row, col) for row in range(4) for col in range(4)]
    assert {(r, c) for role, r, c in zip(roles, rows, cols, strict=True) if role != "patch"} == {(-1, -1)}


def test_patches_lie_where_the_image_has_them() -> None:
    model, pixels = small_model(vision_layer=0), images(1)
    _, rows, cols = model.config.keys_of_voco()
    changed = pixels.clone()
    changed[..., 8:16, 24:32] = 0  # second row of patches, last column
    moved = (model.vision_features(changed) != model.vision_features(pixels)).any(-1)[0].nonzero().flatten()
    assert [(rows[4 + i], cols[4 + i]) for i in moved.tolist()] == [(1, 3)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"projector": "resampler"}, "projector is 'resampler'; it is one of linear, mlp2x_gelu"),
        ({"topology": "ring"}, "topology is 'ring'; it is one of star, causal, full"),
        ({"image_fit": "fill"}, "image_fit is 'fill'; it is one of pad, crop, stretch"),
        ({"num_anchors": -1}, "num_anchors is -1"),
        ({"anchors": "kmeans", "num_anchors": 17}, "num_anchors is 17; it is 0 to 16"),
        ({"anchors": "codes"}, "anchors is 'codes'; it is one of mgvq, random, attended, kmeans"),
        ({"infix_ids": (1,)}, "infix_ids .1,. are text that sees what is before it"),
        ({"prefix_ids": (40,)}, "prefix_ids .40,. are not all within the vocabulary of 40"),
        ({"vision_layer": 4}, "vision_layer 4 is not a hidden state of a CLIP of 3 layers"),
        ({"image_std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"text": {"max_position_embeddings": 21}}, "21 image positions leave no room"),
        ({"vision_config": {"image_size": 36, "patch_size": 8}}, "36 is not a multiple of CLIP's patch_size 8"),
        ({"vision_config": {"image_size": 30, "patch_size": 6}}, "expected a multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**settings)
