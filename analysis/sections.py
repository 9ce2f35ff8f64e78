"""What every analysis finds: a record each, and what a file of `htc-analyze` may hold. See `records` for how it is
declared, and for the names of values in the file. Knows no files, runs or models.

Legend: N images, L layers, H heads, S keys of `<voco>`, A anchors, P patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from htc_probe.analysis.records import Record, fields
from htc_probe.analysis.stats.draws import Intervals


class Levels(Record):
    """A mean over images by head, and of its mean over heads and over layers, with 95 % intervals over groups."""

    estimate: Annotated[np.ndarray, "L H"]
    lower: Annotated[np.ndarray, "L H"]
    upper: Annotated[np.ndarray, "L H"]
    by_layer: Annotated[Intervals, "L"]
    overall: Annotated[Intervals, "1"]

    @property
    def by_head(self) -> Intervals:
        return Intervals(self.estimate, self.lower, self.upper)


class LevelsEach(Record):
    """The same of each anchor."""

    estimate: Annotated[np.ndarray, "L H A"]
    lower: Annotated[np.ndarray, "L H A"]
    upper: Annotated[np.ndarray, "L H A"]
    by_layer: Annotated[Intervals, "L A"]
    overall: Annotated[Intervals, "A"]


class Difference(Record):
    """This run minus a second one, paired on the images of both."""

    overall: Annotated[Intervals, "1"]
    by_layer: Annotated[Intervals, "L"] | None = None
    """None where the second has another number of layers."""


class Differences(Record):
    """Of the quantities of `Attention` that both runs have."""

    patch_mass: Difference | None = None
    voco_mass: Difference | None = None
    text_mass: Difference | None = None
    anchor_mass: Difference | None = None
    anchor_share: Difference | None = None
    anchor_lift: Difference | None = None
    top_patches_mass: Difference | None = None
    anchor_minus_top: Difference | None = None
    anchor_above_patch: Difference | None = None
    first_lift: Difference | None = None
    entropy_bits: Difference | None = None
    effective_keys: Difference | None = None
    top_10: Difference | None = None
    patch_gini: Difference | None = None


class Attention(Record):
    """Where `<voco>` looks: quantities of `attention.rows.measure`; those of text or anchors where a model has some."""

    VERSION = 1

    images: int
    patch_mass: Levels
    voco_mass: Levels
    text_mass: Levels | None = None
    anchor_mass: Levels | None = None
    anchor_mass_each: LevelsEach | None = None
    anchor_share: Levels | None = None
    anchor_lift: Levels | None = None
    top_patches_mass: Levels | None = None
    anchor_minus_top: Levels | None = None
    anchor_above_patch: Levels | None = None
    first_lift: Levels
    entropy_bits: Levels
    effective_keys: Levels
    top_10: Levels
    patch_gini: Levels
    anchor_head: Annotated[np.ndarray, "L H int"] | None = None
    """1 where the anchors' lift is above 1 (max-T over all heads at 5 %)."""
    anchor_heads: int | None = None
    """Their number."""
    mean_attention: Annotated[np.ndarray, "L H S"]
    paired_images: int | None = None
    """Images that a second run has as well; None without one."""
    difference: Differences | None = None


class Map(Record):
    """Maps of n images under M representations, in two dimensions, and how far to trust them."""

    VERSION = 1

    map_of: Annotated[list[str], "M"]
    rows: Annotated[np.ndarray, "n int"]
    """Of the run, ascending."""
    pca: Annotated[np.ndarray, "M n 2"]
    umap: Annotated[np.ndarray, "M n 2"]
    pca_variance: Annotated[np.ndarray, "M 2"]
    """Shares of the variance."""
    pca_kept: Annotated[Intervals, "M"]
    """Share of an image's 10 nearest that are among its 10 nearest in the map."""
    umap_kept: Annotated[Intervals, "M"]
    kept_chance: float
    nearest_rows: Annotated[np.ndarray, "M n 10 int"]
    """Rows of the run, nearest first, none of the image's own group; -1 where there are not as many."""
    nearest_distance: Annotated[np.ndarray, "M n 10"]
    """Euclidean, over the root mean square distance of two of the images; NaN where there is none."""

    def place(self, row: int) -> int | None:
        """Where the image of this row is among the n; None where it is not on the map."""
        place = int(np.searchsorted(self.rows, row))
        return place if place < len(self.rows) and self.rows[place] == row else None


class Sections(Record):
    """What was found of a run, by analysis; None where it was not made."""

    attention: Attention | None = None
    reconstruct: Mapping[str, Any] | None = None
    contributions: Mapping[str, Any] | None = None
    knockouts: Mapping[str, Any] | None = None
    interchange: Mapping[str, Any] | None = None
    reading: Mapping[str, Any] | None = None
    map: Map | None = None


def kind_of(analysis: str) -> type[Record] | None:
    """What an analysis of this name finds; None where there is none of this name."""
    kinds = (field.type for field in fields(Sections) if field.name == analysis)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Record)), None)
