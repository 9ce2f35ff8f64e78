"""A model of random weights with the tokens of two images and texts about them. Knows the model; not files."""

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from htc_probe.extract.again import Texts
from htc_probe.extract.vlm import passes
from htc_probe.extract.vlm.config import HTCConfig
from htc_probe.extract.vlm.model import HTCVLM
from htc_probe.extract.vlm.star import star_mask

# B images, A anchors, P patches, N hybrid, T text tokens, Q questions
B, A, P, T, Q, WIDTH, LAYERS, WORDS = 2, 4, 16, 6, 2, 32, 3, 80

N = A + P


def tiny(kv_heads: int = 4, words: int = WORDS, **settings: Any) -> HTCVLM:
    """A model of random weights, large enough for peaked attention, with norms other than 1 and with biases."""
    torch.manual_seed(0)
    config = HTCConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
        text_config={
            "hidden_size": WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": kv_heads,
            "vocab_size": words,
            "max_position_embeddings": 64,
            "attention_bias": True,
        },
        mgvq={
            "widths": (16, 32),
            "depths": (0, 1),
            "groups": 4,
            "codebook_size": 64,
            "latent_channels": 16,
            "attention_stages": 1,
            "head_dim": 16,
        },
        **settings,
    )
    model = HTCVLM(config).eval()
    for parameter in [*model.language_model.parameters(), *model.patch_projector.parameters()]:
        scale = 5.0 if parameter.ndim == 2 else 1.0
        parameter.data.mul_(scale).add_(0.1 * torch.randn_like(parameter))
    model.voco.data.normal_()
    return model


class Case:
    """A model with B images' tokens and texts."""

    def __init__(self, kv_heads: int = 4, prefix: tuple[int, ...] = (), **settings: Any) -> None:
        self.model = tiny(kv_heads, prefix_ids=prefix, **settings)
        draw = torch.Generator().manual_seed(1)
        anchors, patches = (torch.randn(B, count, WIDTH, generator=draw) for count in (A, P))
        ids = torch.randint(0, WORDS, (B, Q, T), generator=draw)
        labels = torch.full_like(ids, -100)
        labels[:, 0, 3:5], labels[0, 1, 4] = ids[:, 0, 3:5], ids[0, 1, 4]  # the second image has one answer
        self.texts = Texts(("one", "two"), ids, labels)
        with torch.no_grad():
            self.prefix, self.hybrid = self.model.before_voco(anchors, patches)
            self.shared = passes.share(self.model, self.hybrid, self.prefix)
        self.before = self.prefix.shape[1] + self.hybrid.shape[1]

    @property
    def llm(self) -> LlamaForCausalLM:
        return self.model.language_model

    def mask(self, *closed: int) -> Tensor:
        mask = star_mask(len(self.prefix[0]), len(self.hybrid[0]), T, topology=self.model.config.topology).clone()
        mask[0, 0, self.before, list(closed)] = torch.finfo(torch.float32).min
        return mask


CASES = [
    {"kv_heads": 4},
    {"kv_heads": 2},
    {"kv_heads": 2, "prefix": (3, 5, 7)},
    {"topology": "causal", "prefix": (3,)},
    {"topology": "causal", "infix_ids": (5, 6)},
    {"topology": "full", "prefix": (3, 4)},
    {"anchor_place": "after"},
]
