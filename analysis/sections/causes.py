"""What causes what: knock-outs and the interchange.

Legend: N or n images, L layers, T hybrid tokens; other letters where they are declared.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from htc_probe.analysis.records import Record
from htc_probe.analysis.stats.draws import Intervals


class Knockouts(Record):
    """What taking tokens away does to z_voco, to the log-probability of true answers (nats) and to what probes read: of
    T hybrid tokens (anchors and patches) one by one, and of G groups of them in M ways. Q questions, P probes. What is
    about answers is missing where the data have no questions, and what is about probes without probes.
    """

    VERSION = 3
    """1: ranked effects on answers by a layer that no text reads, and sampled orders of players. 2: of images that were
    not in the order of `again.order`.
    """

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
    """Of z_voco at the last layer, mean over draws and source images."""
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
    """Which source readouts follow in mixtures (anchors of one image, patches of another): a table of K rows, which
    texts and numbers of a row are beside each other in; of numbers the W rows of `number`; and what was read of each of
    n images.
    """

    VERSION = 3
    """1: did not keep what was read of single images. 2: of images that were not in the order of `again.order`."""

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
    """1: only where the readout is right on the unmixed sources; 0: all."""
    floor: Annotated[np.ndarray, "K 3"]
    """The shares were the readouts dealt to the cases at random."""
    share: Annotated[np.ndarray, "K 3 3"]
    """Of cases that follow the anchors' source, the patches' source, or neither; estimate, lower and upper end of the
    95% interval (over couples; where all cases are alike, the exact binomial one). `swapped` counts where the sources'
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
    """As the rows of `Interchange`, of numbers: the readout is regressed on the sources' values (weight 1 follows
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
    """On the anchors' source, the patches' source; estimate, lower, upper."""


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
