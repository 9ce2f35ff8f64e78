"""A small MGVQ trained to reconstruct. Knows MGVQ and pixels; not files or language."""

import torch
from torch import Tensor, nn

from htc_probe.extract.vlm.mgvq import MGVQ, MGVQConfig

_RESEED_EVERY = 100  # steps; a code that no patch chose in that time starts anew from an encoder output
_COMMITMENT = 0.25  # van den Oord et al. 2017


class Reconstruction(nn.Module):
    """MGVQ with its training loss: L1 reconstruction, codebook and commitment terms, and dead codes reseeded."""

    used: Tensor
    step: Tensor

    def __init__(self, config: MGVQConfig, *, seed: int):
        super().__init__()
        self.mgvq = MGVQ(config)
        self.generator = torch.Generator().manual_seed(seed)
        self.register_buffer("used", torch.zeros(config.groups, config.codes_per_group, dtype=torch.bool))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """pixel_values (B, 3, R, R) in [0, 1]. Returns the loss and the reconstruction term alone ("error")."""
        pixels = 2 * pixel_values - 1
        if self.training and self.step % _RESEED_EVERY == _RESEED_EVERY - 1:
            with torch.no_grad():  # before the losses: their gradients need the codebook as they saw it
                self.mgvq.reseed_dead_codes(self.mgvq.encode(pixels).latent, self.used, self.generator)
            self.used.zero_()
        losses = self.mgvq.losses(pixels)
        if self.training:
            self.used[torch.arange(len(self.used)), losses.codes.flatten(0, 2)] = True
            self.step += 1
        loss = losses.reconstruction + losses.codebook + _COMMITMENT * losses.commitment
        return {"loss": loss, "error": losses.reconstruction.detach()}
