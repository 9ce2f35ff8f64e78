"""Small HTC-VLMs of random weights, and texts for one. Knows the model; not files."""

from typing import Any

import torch

from htc_probe.extract.vlm.config import HTCConfig
from htc_probe.extract.vlm.model import HTCVLM

SIZE, LAYERS = 16, 3


def small_model(kind: type[HTCVLM] = HTCVLM, **settings: Any) -> HTCVLM:
    torch.manual_seed(0)
    config = HTCConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "patch_size": 4,
        },
        text_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 30,
            "max_position_embeddings": 64,
        },
        mgvq={
            "widths": (16, 32, 32),
            "depths": (0, 1, 1),
            "groups": 4,
            "codebook_size": 64,
            "latent_channels": 16,
            "attention_stages": 1,
            "head_dim": 16,
        },
        **settings,
    )
    model = kind(config).eval()
    for parameter in [*model.language_model.parameters(), *model.patch_projector.parameters()]:
        if parameter.ndim == 2:
            parameter.data.mul_(5)  # otherwise attention is uniform, and errors in it do not show
    return model
