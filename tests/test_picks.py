"""Continuous anchors are the patches they say, in an order that does not depend on chance."""

import torch
from sklearn.cluster import KMeans

from htc_probe.extract.vlm.picks import cluster_shares, pick_anchors


def blobs(counts: tuple[int, ...], images: int = 3, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (images, sum(counts), width) around far centres, shuffled, and which blob each is of."""
    generator = torch.Generator().manual_seed(1)
    of = torch.cat([torch.full((count,), i) for i, count in enumerate(counts)])
    of = torch.stack([of[torch.randperm(len(of), generator=generator)] for _ in range(images)])
    centres = 10 * torch.randn(images, len(counts), width, generator=generator)
    points = centres.gather(1, of[..., None].expand(-1, -1, width))
    return points + 0.1 * torch.randn(points.shape, generator=generator), of


def test_kmeans_finds_planted_clusters_largest_first() -> None:
    counts = (4, 20, 9, 13)
    points, of = blobs(counts)
    shares = cluster_shares(points, 4)
    assert shares.sum(-1).tolist() == [[20, 13, 9, 4]] * 3
    for image in range(3):
        for rank, blob in enumerate((1, 3, 2, 0)):
            assert torch.equal(shares[image, rank].bool(), of[image] == blob)
    anchors = pick_anchors(points, 4, "kmeans")
    torch.testing.assert_close(anchors[0, 0], points[0][of[0] == 1].mean(0))


def test_kmeans_is_about_as_tight_as_scikit_learn_s() -> None:
    points = torch.randn(4, 60, 5, generator=torch.Generator().manual_seed(0))
    shares = cluster_shares(points, 4)
    centres = (shares / shares.sum(-1, keepdim=True)) @ points
    ours = (torch.cdist(centres, points).amin(1) ** 2).sum(-1)
    for one, mine in zip(points, ours, strict=True):
        assert mine < 1.15 * KMeans(4, n_init=10, random_state=0).fit(one.numpy()).inertia_


def test_fewer_different_patches_than_anchors_leave_no_cluster_empty() -> None:
    shares = cluster_shares(torch.ones(1, 6, 3), 4)
    assert (shares.sum(-1) > 0).all()
    assert pick_anchors(torch.ones(1, 6, 3), 4, "kmeans").isfinite().all()


def test_the_most_attended_come_first_and_random_ones_are_the_same_places_in_every_image() -> None:
    patches = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    attended = torch.rand(2, 9, generator=torch.Generator().manual_seed(1))
    picked = pick_anchors(patches, 3, "attended", attended)
    order = attended.argsort(descending=True)
    assert torch.equal(picked, torch.stack([patches[i, order[i, :3]] for i in range(2)]))
    once, again = pick_anchors(patches, 4, "random"), pick_anchors(patches, 4, "random")
    assert torch.equal(once, again)
    places = [[(row == patches[i]).all(-1).nonzero().item() for row in once[i]] for i in range(2)]
    assert places[0] == places[1] and len(set(places[0])) == 4
    for kind in ("attended", "random", "kmeans"):
        (gradient,) = torch.autograd.grad(pick_anchors(patches, 3, kind, attended).sum(), patches)
        assert gradient.abs().sum() > 0
