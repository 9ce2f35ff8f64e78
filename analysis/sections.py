"""What every analysis finds: a record each, and what a file of `htc-analyze` may hold. See `records` for how it is
declared, and for the names of values in the file. Knows no files, runs or models.

Legend: N images, L layers, H heads, S keys of `<voco>`, A anchors, P patches, R representations, U those with z_voco by
layer, G groups of codes, Q questions.
"""

from __future__ import annotations

from typing import Annotated

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


class Reconstruct(Record):
    """What the codes hold of an image: pictures that MGVQ's decoder makes of the codes of N images."""

    VERSION = 1

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


class Contributions(Record):
    """What every token hands over to `<voco>` on N images, see `attention.updates`."""

    VERSION = 1

    images: Annotated[list[str], "N"]
    """Their ids."""
    roles: Annotated[list[str], "R"]
    """Among the keys."""
    questions: Annotated[list[str], "Q"]
    """None where the data ask nothing."""
    norm: Annotated[np.ndarray, "N L S"]
    """Length of the sum over heads of what a key hands over."""
    share: Annotated[np.ndarray, "N L S"]
    """Of the update, summed over heads; signed."""
    share_by_role: Annotated[Intervals, "L R"]
    """Means over images."""
    attention_by_role: Annotated[Intervals, "L R"]
    lens: Annotated[np.ndarray, "N L S"] | None = None
    """Parts in the logit of the answer's first token by the lens, mean over questions, summed over heads; as what
    follows, None where the data ask nothing."""
    lens_by_role: Annotated[Intervals, "Q R"] | None = None
    """Summed over layers."""
    answers: Annotated[np.ndarray, "N L S"] | None = None
    """The same on the path that answers take."""
    answers_by_role: Annotated[Intervals, "Q R"] | None = None


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

    VERSION = 1

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
    reconstruct: Reconstruct | None = None
    contributions: Contributions | None = None
    knockouts: Knockouts | None = None
    interchange: Interchange | None = None
    reading: Reading | None = None
    map: Map | None = None


KINDS: dict[str, type[Record]] = {field.name: field.type for field in fields(Sections)}
"""By analysis."""
