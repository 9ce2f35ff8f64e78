"""HTC-VLMs of random weights in all variants, and their input. Knows the model; not files."""

from typing import Any

import torch
from torch import Tensor

from htc_probe.extract.vlm.config import HTCConfig
from htc_probe.extract.vlm.model import HTCVLM

# B images, Q pairs an image, T tokens a text
B, Q, T, VOCABULARY, SIZE = 2, 3, 6, 40, 32


MGVQ_FIELDS: dict[str, Any] = {
    "widths": (16, 32, 32),
    "depths": (0, 1, 1),
    "groups": 4,
    "codebook_size": 64,
    "latent_channels": 16,
    "attention_stages": 1,
    "head_dim": 16,
}


def small_config(*, text: dict[str, Any] | None = None, **settings: Any) -> HTCConfig:
    defaults: dict[str, Any] = {
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "patch_size": 8,
        },
        "text_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": VOCABULARY,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": None,
            "max_position_embeddings": 128,
        }
        | (text or {}),
        "mgvq": MGVQ_FIELDS,
    }
    return HTCConfig(**(defaults | settings))


def small_model(**settings: Any) -> HTCVLM:
    torch.manual_seed(0)
    model = HTCVLM(small_config(**settings)).eval()
    for name, parameter in model.named_parameters():  # large enough that what <voco> saw changes the answers
        if "vision_tower" not in name and "mgvq" not in name and parameter.ndim == 2:
            parameter.data.mul_(6)
    return model


def images(count: int = B) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
