"""What the discrete channel sees of an image: its stored codes, decoded to pixels again, and how near that is.

Knows runs, the model that made the run, and arrays. Does not know files, commands or figures. No image is read: the
codes and the thumbnails of the run are enough.

Legend: n images of the sample, h w rows and columns of the code grid, G code groups.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from htc_probe.analysis.sections import Reconstruct
from htc_probe.analysis.stats import draws
from htc_probe.extract import again
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import THUMBNAIL, Run
from htc_probe.extract.vlm.mgvq import MGVQ
from htc_probe.extract.vlm.model import HTCVLM

_BATCH = 16
# Of the roundings to 8 bits in both pictures: nearer than that cannot be told.
_LEAST_ERROR = 1 / 6


def analyse(
    model: HTCVLM, run: Run, *, limit: int, seed: int, on_images: Callable[[int], object] = lambda done: None
) -> Reconstruct:
    """Pictures of the codes of `limit` images of the run (see `again.sample`), at the size of its thumbnails (96 x 96),
    and their distance from these. `on_images` is told after each batch how many are done.

    Raises UserError where the run has no codes, or the model cannot decode them.
    """
    if run.shape.codes is None or model.mgvq is None:
        raise UserError(f"{run.path.name} has no codes to decode: its model ({run.info.model.get('name')}) has no MGVQ")
    rows = again.sample(run, limit, seed)
    pictures, psnr, flat = [], [], []
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        codes_BhwG = run.codes(some)
        for row, picture in zip(some, decode(model.mgvq, codes_BhwG), strict=True):
            seen = run.thumbnail(int(row))
            pictures.append(picture)
            psnr.append(peak_signal_to_noise(picture, seen))
            flat.append(peak_signal_to_noise(np.broadcast_to(seen.mean((0, 1)).round(), seen.shape), seen))
        on_images(len(pictures))
    groups = run.groups(rows)
    psnr_N, flat_N = np.array(psnr), np.array(flat)
    return Reconstruct(
        images=run.ids(rows),
        pictures=np.stack(pictures),
        psnr_of=psnr_N.astype(np.float32),
        psnr=draws.intervals_of_means(psnr_N, groups, seed),
        psnr_flat=draws.intervals_of_means(flat_N, groups, seed),
        psnr_gain=draws.intervals_of_means(psnr_N - flat_N, groups, seed),
    )


def decode(mgvq: MGVQ, codes_BhwG: np.ndarray) -> np.ndarray:
    """(B, 96, 96, 3) uint8 of codes (B, h, w, G). Raises UserError for codes that MGVQ does not have."""
    groups, size = mgvq.config.groups, mgvq.config.codes_per_group
    if codes_BhwG.shape[-1] != groups or codes_BhwG.max() >= size:
        raise UserError(
            f"the run's codes are of {codes_BhwG.shape[-1]} groups and go up to {codes_BhwG.max()}; this MGVQ has "
            f"{groups} groups of {size}: these are codes of another model"
        )
    codes = torch.from_numpy(codes_BhwG.astype(np.int64)).to(mgvq.codebook.device)
    unit = F.normalize(mgvq.codebook.float(), dim=-1).unflatten(0, (groups, size))
    quant = unit[torch.arange(groups, device=codes.device), codes].flatten(-2).movedim(-1, 1)
    pixels = (mgvq.decode(quant.to(mgvq.codebook.dtype)).float().clamp(-1, 1) + 1) * 127.5
    large = pixels.round().byte().movedim(1, -1).cpu().numpy()
    side = (THUMBNAIL, THUMBNAIL)
    return np.stack([np.array(Image.fromarray(one).resize(side, Image.Resampling.BICUBIC)) for one in large])


def peak_signal_to_noise(picture: np.ndarray, image: np.ndarray) -> float:
    """dB of two pictures (..., 0 to 255) of one shape."""
    error = ((picture.astype(np.float64) - image) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, _LEAST_ERROR)))
