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


class Knockouts(Record):
    """What taking tokens away does to z_voco, to the log-probability of true answers (nats) and to what probes read: of
    T hybrid tokens (anchors and patches) one by one, and of G groups of them in M ways. Q questions, P probes. What is
    about answers is missing where the data ask nothing, and what is about probes without probes.
    """

    VERSION = 2
    """1: ranked effects on answers by a layer that no text reads, and sampled orders of players."""

    images: Annotated[list[str], "N"]
    groups: Annotated[list[str], "N"]
    """Of images, which intervals resample."""
    token: Tokens
    questions: Annotated[list[str], "Q"]
    probes: Annotated[list[str], "P"]
    """Tasks of the probes of z_voco at the last layer."""
    loo: LeaveOneOut
    window: Windows
    group: TokenGroups
    shapley: Shapley
    rank: Annotated[np.ndarray, "N E F L+1"]
    """Spearman over tokens of predictors E with the sizes of effects F: by layer, and of the mean over layers; of all
    for z_voco, of those that text reads for answers. NaN where a predictor is constant, as gradients at the last layer.
    """
    rank_predictors: Annotated[list[str], "E"]
    """attention; attention x value x output; with answers also the sizes of `knockouts.Gradients`."""
    rank_effects: Annotated[list[str], "F"]
    """z and, with answers, answers."""
    question_rank: Annotated[np.ndarray, "N 2 Q"] | None = None
    """Of the first two predictors' means, with each question; see `effects.AttentionRanks`."""
    probe_rank: Annotated[np.ndarray, "N 2 P+1"] | None = None
    """With each probe, and with the mean over those of classes and labels, NaN where there is none."""
    mean: KnockoutMeans


class Tokens(Record):
    """Hybrid tokens in the order of the row, with their place in the patch grid, -1 without one."""

    role: Annotated[list[str], "T"]
    row: Annotated[np.ndarray, "T int"]
    col: Annotated[np.ndarray, "T int"]


class LeaveOneOut(Record):
    """One token closed in all layers, see `knockouts.Effects`."""

    change: Annotated[np.ndarray, "N T L+1"]
    """Length of the difference over that of what z_voco was; layer 0 is the embedding."""
    answers: Annotated[np.ndarray, "N T Q"] | None = None
    """NaN where an image has no such answer."""
    probe_changes: Annotated[np.ndarray, "N T P"] | None = None
    """See `effects.probe_changes`."""


class Windows(Record):
    """One token closed in one decoder layer only."""

    change: Annotated[np.ndarray, "N L T"]
    """Of z_voco at the last layer."""
    rank: Annotated[np.ndarray, "N 2 L"]
    """Of the first two predictors in that layer, with these."""


class TokenGroups(Record):
    """Groups closed together; NaN for a way that the topology or the sample does not have."""

    names: Annotated[list[str], "G"]
    modes: Annotated[list[str], "M"]
    size: int
    """Tokens of the random and of the attended patches; these by mean attention in the layers that text reads."""
    change: Annotated[np.ndarray, "N M G"]
    """Of z_voco at the last layer, mean over draws and donors."""
    answers: Annotated[np.ndarray, "N M G Q"] | None = None
    window_change: Annotated[np.ndarray, "N L 2"]
    """All anchors and all patches closed in one layer only."""
    window_answers: Annotated[np.ndarray, "N L 2"] | None = None
    """Mean over questions; 0 in the last layer, which no text reads."""


class Shapley(Record):
    """What each of R players adds, exactly: all coalitions are run."""

    players: Annotated[list[str], "R"]
    """Anchors, or four parts of them, and the patches of each quadrant."""
    cosine: Annotated[np.ndarray, "N R"]
    """To z_voco's cosine with itself."""
    answers: Annotated[np.ndarray, "N R"] | None = None
    """Mean over questions."""


class KnockoutMeans(Record):
    """Means over images of what is called the same."""

    group_change: Annotated[Intervals, "M G"]
    group_answers: Annotated[Intervals, "M G Q"] | None = None
    group_answer: Annotated[Intervals, "M G"] | None = None
    """Over questions too."""
    group_window_change: Annotated[Intervals, "L 2"]
    group_window_answers: Annotated[Intervals, "L 2"] | None = None
    shapley_cosine: Annotated[Intervals, "R"]
    shapley_answers: Annotated[Intervals, "R"] | None = None
    rank: Annotated[Intervals, "E F L+1"]
    window_rank: Annotated[Intervals, "2 L"]
    question_rank: Annotated[Intervals, "2 Q"] | None = None
    probe_rank: Annotated[Intervals, "2 P+1"] | None = None


class Interchange(Record):
    """Whom readouts follow, where images have the anchors of one and the patches of another: a table of K rows, which
    texts and numbers of a row are beside each other in; of numbers the W rows of `number`; and what was read of each of
    n images.
    """

    VERSION = 2
    """1: did not keep what was read of single images."""

    task: Annotated[list[str], "K"]
    """ "" for the mean of a suite's tasks that have a case, each counted once."""
    suite: Annotated[list[str], "K"]
    kind: Annotated[list[str], "K"]
    """Of the task, or `mean`; multi-label tasks (`present`) count every label of a pair."""
    readout: Annotated[list[str], "K"]
    """answer or probe."""
    factor: Annotated[list[str], "K"]
    """What the two images differ in: `all` (as many tasks as possible), or one factor alone."""
    mix: Annotated[list[str], "K"]
    """`unmixed`; `swapped`: anchors of one, patches of the other; `anchors noise`, `anchors mean`, `patches noise`,
    `patches mean`: that half replaced by Gaussian noise with the mean and covariance of the sample's, by the sample's
    mean; `anchors class`: by another image's of the same class (of `category`, or the first task with classes).
    """
    counted: Annotated[np.ndarray, "K int"]
    """Cases in the row."""
    couples: Annotated[np.ndarray, "K int"]
    """Couples of images that they come from."""
    only_right: Annotated[np.ndarray, "K int"]
    """1: only where the readout is right on the donors' unmixed images; 0: all."""
    floor: Annotated[np.ndarray, "K 3"]
    """The shares were the readouts dealt to the cases at random."""
    share: Annotated[np.ndarray, "K 3 3"]
    """Of cases that follow the anchors' donor, the patches' donor, or neither; estimate, lower and upper end of the
    95 % interval (over couples; where all cases are alike, the exact binomial one). `swapped` counts where the donors'
    labels differ. Otherwise all count, who follows both follows the half that was kept, and noise and means, who have
    no label, get NaN; `unmixed` follows its image in both or neither.
    """
    number: NumberRows
    answers: str
    """yes, or why no question was asked."""
    probes: str
    """yes, or why no probe was read."""
    images: Annotated[list[str], "n"]
    partner: Annotated[np.ndarray, "n int"]
    """The number of the image that each is mixed with; -1: none."""
    read: Readouts


class NumberRows(Record):
    """As the rows of `Interchange`, of numbers: the readout is regressed on the donors' values (weight 1 follows
    fully). A number that is asked for in words is the mean over the answers, weighted by how likely they are.
    """

    task: Annotated[list[str], "W"]
    suite: Annotated[list[str], "W"]
    kind: Annotated[list[str], "W"]
    readout: Annotated[list[str], "W"]
    factor: Annotated[list[str], "W"]
    mix: Annotated[list[str], "W"]
    counted: Annotated[np.ndarray, "W int"]
    couples: Annotated[np.ndarray, "W int"]
    weight: Annotated[np.ndarray, "W 2 3"]
    """On the anchors' donor, the patches' donor; estimate, lower, upper."""


class Readouts(Record):
    """What was read of every image, by itself and mixed, of factor `all`; C columns, one a task, of multi-label tasks
    one a label.
    """

    task: Annotated[list[str], "C"]
    suite: Annotated[list[str], "C"]
    kind: Annotated[list[str], "C"]
    readout: Annotated[list[str], "C"]
    label: Annotated[list[str], "C"]
    """Of multi-label tasks; "" of others."""
    classes: Annotated[list[str], "C"]
    """Names of the classes as a JSON list, "" where there are none."""
    true: Annotated[np.ndarray, "n C"]
    """The number of the image's class, 0 or 1 of a label, or a number; NaN where it is unknown, also to the probe."""
    unmixed: Annotated[np.ndarray, "n C"]
    """The same as read from the image."""
    swapped: Annotated[np.ndarray, "n C"]
    """The same as read from its anchors with the patches of its partner; NaN without a partner."""


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
    knockouts: Knockouts | None = None
    interchange: Interchange | None = None
    reading: Mapping[str, Any] | None = None
    map: Map | None = None


def kind_of(analysis: str) -> type[Record] | None:
    """What an analysis of this name finds; None where there is none of this name."""
    kinds = (field.type for field in fields(Sections) if field.name == analysis)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Record)), None)
