"""A small CLIP trained on scene captions. Knows CLIP and sentences; not the language model or files."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

_PATCH_WEIGHT = 3.0  # of the patches' loss beside the images'
_POSITION_SCALE = 0.3  # about the size of the embedded pixels


class CaptionCLIP(nn.Module):
    """CLIP with the pairwise sigmoid loss (Zhai et al. 2023) over every image and every sentence of a bank.

    A caption is a set of short sentences, and a sentence is a positive of each image it is true of. With a whole
    caption as one text, telling a batch's images apart needs only the easiest factors; sentence by sentence every
    factor has to be learned. The image embedding is the mean of the patches of `layer`, the ones the language model
    will read, so that what the captions teach ends up in those. Patches are matched as well, each with the sentences
    about what it shows (region-text contrast, as in RegionCLIP, Zhong et al. 2022).

    The text tower is locked, as the image tower is in LiT (Zhai et al. 2022), with a projection that starts its
    sentences at right angles. With both towers free, the sentences of a factor that is not learned yet drew together
    (cosines of 0.98 to 1.00 for category, orientation and position after 1,350 steps) and stayed at chance.

    sentences: (M, T) token ids `ids` and their attention `mask`, of all sentences that captions can hold.
    mean, deviation: of the pixels, three numbers each.
    """

    text: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        config: CLIPConfig,
        ids: Tensor,
        mask: Tensor,
        *,
        layer: int,
        mean: Sequence[float],
        deviation: Sequence[float],
    ):
        super().__init__()
        self.clip, self.layer = CLIPModel(config), layer
        # A step with 64 patches takes 1.7 times as long with SDPA, whose bfloat16 backward on a CPU is slow.
        self.clip.set_attn_implementation("eager")
        self.bias = nn.Parameter(torch.tensor(-2.0))
        for tower in (self.clip.text_model, self.clip.text_projection):
            tower.requires_grad_(False)
        with torch.no_grad():
            embeddings = self.clip.vision_model.embeddings
            grid = round((embeddings.num_positions - 1) ** 0.5)
            embeddings.position_embedding.weight[1:] = _grid_positions(grid, embeddings.embed_dim)
            self.clip.text_projection.weight.copy_(_right_angles(self.clip.text_model(ids, mask).pooler_output))
            text = F.normalize(self.clip.get_text_features(ids, mask).pooler_output, dim=-1)
        self.register_buffer("text", text, persistent=False)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixel_values: Tensor, truths: Tensor, regions: Tensor, owners: Tensor) -> dict[str, Tensor]:
        """Losses of B images with R regions (the background first) in P patches.

        pixel_values (B, 3, side, side) in [0, 1]; truths (B, M), 1 where the sentence is in the image's caption;
        regions (B, R, M), the same for each region; owners (B, P), the region that each patch shows most of.
        Returns the loss in nats (summed over sentences, mean over images and patches) and image logits (B, M).
        """
        pixels = (pixel_values - self.mean) / self.deviation
        states = self.clip.vision_model(pixels, output_hidden_states=True).hidden_states
        patches = self.clip.visual_projection(states[self.layer][:, 1:])
        logits = self._match(patches.mean(1))
        shown = regions[torch.arange(len(owners), device=owners.device)[:, None], owners.long()]
        loss = _sigmoid_loss(logits, truths) + _PATCH_WEIGHT * _sigmoid_loss(self._match(patches), shown)
        return {"loss": loss, "logits": logits}

    def _match(self, images: Tensor) -> Tensor:
        return F.normalize(images.float(), dim=-1) @ self.text.T * self.clip.logit_scale.exp() + self.bias


def _grid_positions(grid: int, width: int) -> Tensor:
    """(grid * grid, width) sines and cosines of each patch's row and column, the start of its position embedding.

    CLIP's own start, random numbers of 0.02, is small beside the pixels' part of the embedding.
    """
    row, col = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    frequency = 10 ** (-1.5 * torch.arange(width // 4) / (width / 4))
    angles = [at.flatten()[:, None] * frequency for at in (row, col)]
    return _POSITION_SCALE * torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)


def _right_angles(pooled: Tensor) -> Tensor:
    """(D, D) projection that makes the sentences `pooled` (M, D), M at most D, orthonormal."""
    projection = torch.eye(len(pooled), pooled.shape[1], dtype=torch.float64).T @ torch.linalg.pinv(pooled.double()).T
    return projection.to(pooled.dtype)


def _sigmoid_loss(logits: Tensor, truths: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, truths.to(logits.dtype), reduction="none").sum(-1).mean()
