"""Continuous anchors: a few patches, or means of patches, in the place of MGVQ's codes (the paper's ablation).

Knows patches as vectors; not CLIP, language models or images.
"""

import torch
from torch import Tensor

from htc_probe.extract.vlm.config import Anchors

_ROUNDS = 10  # of Lloyd's algorithm; each image's few hundred patches settle in fewer


def pick_anchors(patches: Tensor, count: int, kind: Anchors, attended: Tensor | None = None) -> Tensor:
    """Anchors (B, count, d) from `patches` (B, P, d), with gradients to them.

    `random`: the same places in every image, drawn once. `attended`: the patches of largest `attended` (B, P), what
    CLIP's CLS token looks at, the largest first. `kmeans`: the means of k-means clusters, the largest cluster first.
    """
    if kind == "random":
        places = torch.randperm(patches.shape[1], generator=torch.Generator().manual_seed(0))[:count].sort().values
        return patches[:, places.to(patches.device)]
    if kind == "attended":
        assert attended is not None
        return _take(patches, attended.topk(count, dim=1).indices)
    assert kind == "kmeans"
    shares = cluster_shares(patches.detach().float(), count)
    return (shares / shares.sum(-1, keepdim=True)).to(patches.dtype) @ patches


def cluster_shares(points: Tensor, count: int) -> Tensor:
    """(B, count, P), 1 where a point (B, P, d) is in a cluster, else 0; clusters by falling size, none is empty.

    Lloyd's algorithm from the farthest points: the first is the farthest from the mean, each other one the farthest
    from those before, so that the same image always has the same clusters.
    """
    distance = (points - points.mean(1, keepdim=True)).square().sum(-1)
    seeds = []
    for _ in range(count):
        seeds.append(distance.argmax(1))
        from_newest = (points - _take(points, seeds[-1][:, None])).square().sum(-1)
        distance = from_newest if len(seeds) == 1 else torch.minimum(distance, from_newest)
    chosen = torch.stack(seeds, 1)
    centres = _take(points, chosen)
    for _ in range(_ROUNDS):
        nearest = torch.cdist(centres, points).argmin(1)
        members = torch.nn.functional.one_hot(nearest, count).transpose(1, 2).to(points.dtype)
        sizes = members.sum(-1, keepdim=True)
        centres = torch.where(sizes > 0, members @ points / sizes.clamp(min=1), centres)
    # An empty cluster (fewer different points than clusters) keeps the point that it began with.
    seed = torch.nn.functional.one_hot(chosen, points.shape[1]).to(points.dtype)
    members = torch.where(sizes > 0, members, seed)
    order = members.sum(-1).argsort(dim=1, descending=True, stable=True)
    return _take(members, order)


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """(B, K, d) of `rows` (B, P, d) at `index` (B, K)."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))
