"""What codes and z_voco hold, and maps of both.

Legend: N or n images, P patches, M or R representations, U those with z_voco by layer, G groups of codes.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from htc_probe.analysis.records import Record
from htc_probe.analysis.stats.draws import Intervals


class Reconstruct(Record):
    """What the codes hold of an image: pictures that MGVQ's decoder makes of the codes of N images."""

    VERSION = 2
    """1: of images that were not in the order of `again.order`."""

    images: Annotated[list[str], "N"]
    """Their ids."""
    pictures: Annotated[np.ndarray, "N 96 96 3 int"]
    """0 to 255."""
    psnr_of: Annotated[np.ndarray, "N"]
    """dB at 96 x 96: -10 log10 of the mean squared error, in units of the whole range of a pixel; at most 55.9, what
    rounding to 8 bits leaves."""
    psnr: Annotated[Intervals, ""]
    """Their mean."""
    psnr_flat: Annotated[Intervals, ""]
    """Of a picture in the image's mean colour alone, the floor."""
    psnr_gain: Annotated[Intervals, ""]
    """The difference, paired."""


class Neighbours(Record):
    """What the 10 nearest images say of a task (cosine of standardised features, never of an image's own group)."""

    tasks: Annotated[list[str], "t"]
    metric: Annotated[list[str], "t"]
    floor: Annotated[np.ndarray, "t"]
    """The score without features."""
    score: Annotated[Intervals, "t R"] | None = None
    """None without a task."""


class Dimension(Record):
    """Intrinsic dimension of standardised features."""

    two_nn: Annotated[Intervals, "U"]
    """By the distances to the two nearest images."""
    participation: Annotated[Intervals, "U"]
    """Participation ratio of the covariance's eigenvalues: 1 to the width."""


class CodeLabels(Record):
    """What codes say of C tasks, at K places. Codes count in at most 16 values (cells of similar vectors with the
    model, else the most frequent and the rest), numbers in 8 ranges, labels of a multilabel task one by one.
    """

    bits: Annotated[Intervals, "C G"]
    """Mutual information of one code with the label, less chance, mean over places."""
    map: Annotated[np.ndarray, "C K"]
    """The same by place, mean over groups."""
    entropy: Annotated[np.ndarray, "C"]
    """Bits: the most that can be said."""


class Codes(Record):
    """How codes of G groups are used, what they say of labels, and what can be read of them at K places. Bits are of
    one code: those of a whole image would count what codes share more than once.
    """

    size: int
    """Codes that a group has."""
    used: Annotated[np.ndarray, "G int"]
    """Those that occur."""
    draws: float
    """Of a group's codes: effective groups of images, times places. With fewer than there are codes, `entropy` is too
    low."""
    entropy: Annotated[Intervals, "G"]
    """Bits, 0 to log2(size)."""
    rows: Annotated[np.ndarray, "K int"]
    cols: Annotated[np.ndarray, "K int"]
    """Of the code grid."""
    tasks: Annotated[list[str], "C"]
    label: CodeLabels | None = None
    """None without a task."""
    bits: Annotated[Intervals, "R G"]
    """That can be read of a code: of whole codes with the model, else of which frequent one it is."""
    entropy_read: Annotated[np.ndarray, "G"]
    """Of which that is a part."""


class Patches(Record):
    """How much of the patches a linear map tells, held out."""

    images: int
    r2: Annotated[Intervals, "R P"]
    r2_all: Annotated[Intervals, "R"]
    """Of all patches together."""
    r2_all_minus_pooled: Annotated[Intervals, "1"]
    """z_voco minus pooled V."""
    variance_kept: float
    """Share of the patches' variance in the numbers that are told, of which R2 is."""


class Lens(Record):
    """The words that `<voco>` is nearest to at each of l layers."""

    layers: Annotated[np.ndarray, "l int"]
    images: int
    surprise: Annotated[Intervals, "l"]
    """Bits: divergence of the last layer's words from this layer's, KL(last || this)."""
    entropy: Annotated[Intervals, "l"]
    """Bits, 0 to log2 of the vocabulary's size."""
    same_word: Annotated[Intervals, "l"]
    """Share of images whose most likely word is the last layer's."""
    tokens: Annotated[np.ndarray, "l w int"]
    """The most likely ones, by their mean over images."""
    probability: Annotated[np.ndarray, "l w"]
    words: Annotated[list[str], "l"] | None = None
    """The tokens as text, with " | " between; as `tasks`, None without a tokenizer."""
    tasks: Annotated[list[str], "t"] | None = None
    """Those whose classes are single words."""
    accuracy: Annotated[Intervals, "t l"] | None = None
    """Of the likeliest of these words; None without such a task, as the floor."""
    floor: Annotated[np.ndarray, "t"] | None = None


class Overlaps(Record):
    """Between the directions of probes of a semantic and b detail tasks, beside those of random subspaces."""

    overlap: Annotated[np.ndarray, "a b"]
    """Mean squared cosine of the principal angles: the share of the smaller subspace that lies in the other, 0 to 1."""
    overlap_chance: Annotated[np.ndarray, "a b"]
    overlap_chance_upper: Annotated[np.ndarray, "a b"]
    """97.5th percentile."""
    cosines: Annotated[np.ndarray, "k"]
    """Of the principal angles between all semantic and all detail directions, largest first."""
    cosines_chance_lower: Annotated[np.ndarray, "k"]
    cosines_chance_upper: Annotated[np.ndarray, "k"]
    overlap_all: float
    overlap_all_chance: float
    overlap_all_chance_upper: float


class Reading(Record):
    """What z_voco holds, read without training anything large, of R representations: z_voco of the last stored layer,
    v_d, v_pooled.
    """

    VERSION = 2
    """1: of images that were not in the order of `again.order`."""

    images: int
    representations: Annotated[list[str], "R"]
    neighbours: Neighbours
    likeness_of: Annotated[list[str], "U"]
    """The representations, and z_voco by layer."""
    cka: Annotated[Intervals, "U U"]
    """Linear CKA of standardised features, unbiased."""
    dimension: Dimension
    code: Codes | None = None
    """None where the run has no codes."""
    patch: Patches | None = None
    """None without the model, as the lens."""
    lens: Lens | None = None
    angle_semantic: Annotated[list[str], "a"] | None = None
    """Tasks with probes of the last layer; None without probes."""
    angle_detail: Annotated[list[str], "b"] | None = None
    angle: Overlaps | None = None
    """Of the directions themselves; None unless both suites have probes."""
    read_out: Overlaps | None = None
    """Of what they read on images: their cosines are canonical correlations."""


class Map(Record):
    """Maps of n images under M representations, in two dimensions, and how far to trust them."""

    VERSION = 2
    """1: of images that were not in the order of `again.order`."""

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
