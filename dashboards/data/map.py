"""The map of a run's images, as `htc-analyze map` found it. Knows the analysis; not figures."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from htc_probe.dashboards.data.beside import Section
from htc_probe.extract.errors import UserError


class LatentMap(NamedTuple):
    """Maps of n images of a run in two dimensions, under M representations."""

    of: list[str]
    rows: np.ndarray
    """(n,) rows of the run, ascending."""
    at: dict[str, np.ndarray]
    """UMAP and PCA -> (M, n, 2) float32."""
    variance: np.ndarray
    """(M, 2) shares of the variance on the axes of PCA."""
    kept: dict[str, np.ndarray]
    """UMAP and PCA -> (3, M): share of the nearest images that are nearest in the map, and its interval."""
    chance: float
    near: np.ndarray | None
    """(M, n, 10) rows of the nearest images, -1 where there are not as many; None where they were not stored."""
    distance: np.ndarray | None
    """(M, n, 10) float32; 1 is as far as two images are."""

    def place(self, row: int) -> int | None:
        """Where the image of this row is among the n; None where it is not on the map."""
        place = int(np.searchsorted(self.rows, row))
        return place if place < len(self.rows) and self.rows[place] == row else None

    def places(self, rows: Sequence[int]) -> np.ndarray:
        """The places of those of these rows that are on the map, ascending."""
        return np.flatnonzero(np.isin(self.rows, rows))


def latent_map(section: Section, images: int) -> LatentMap:
    """What `htc-analyze map` found of a run of so many images. Raises UserError where it does not fit them."""
    try:
        found = LatentMap(
            section["map_of"],
            section["rows"],
            {"UMAP": section["umap"], "PCA": section["pca"]},
            section["pca_variance"],
            {
                name.upper(): np.stack([section[f"{name}_kept{end}"] for end in ("", "_lower", "_upper")])
                for name in ("umap", "pca")
            },
            section["kept_chance"],
            section.get("nearest_rows"),
            section.get("nearest_distance"),
        )
        M, n = len(found.of), len(found.rows)
        fits = all(at.shape == (M, n, 2) for at in found.at.values()) and found.variance.shape == (M, 2)
        fits &= all(kept.shape == (3, M) for kept in found.kept.values())
        fits &= n > 0 and found.rows[0] >= 0 and found.rows[-1] < images and bool((np.diff(found.rows) > 0).all())
        if found.near is not None:
            fits &= found.distance is not None and found.near.shape == found.distance.shape
            fits &= found.near.shape[:2] == (M, n) and int(found.near.max(initial=-1)) < images
    except (KeyError, ValueError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise UserError("The map beside this run does not fit it; make it again with: htc-analyze map")
    return found
