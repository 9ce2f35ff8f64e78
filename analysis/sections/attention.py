"""What `<voco>` looks at and what it takes.

Legend: N images, L layers, H heads, S keys of `<voco>`, A anchors, R roles, Q questions.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from htc_probe.analysis.records import Record
from htc_probe.analysis.stats.draws import Intervals


class Levels(Record):
    """A mean over images by head, and of its mean over heads and over layers, with 95% intervals over groups."""

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
    """Of the run, N."""
    patch_mass: Levels
    """Share of the attention on the patches, 0 to 1; all keys together get 1."""
    voco_mass: Levels
    """On `<voco>` itself."""
    text_mass: Levels | None = None
    """On the text before the image."""
    anchor_mass: Levels | None = None
    """On the anchors."""
    anchor_mass_each: LevelsEach | None = None
    """On each of them."""
    anchor_share: Levels | None = None
    """Anchors in what all hybrid tokens get, 0 to 1."""
    anchor_lift: Levels | None = None
    """That share in terms of the anchors' share of the hybrid tokens: 1 where attention is even."""
    top_patches_mass: Levels | None = None
    """On the A most attended patches, chosen anew in each row, which favours them."""
    anchor_minus_top: Levels | None = None
    """`anchor_mass` minus `top_patches_mass`."""
    anchor_above_patch: Levels | None = None
    """How likely an anchor gets more than a patch, 0 to 1; 0.5 by chance."""
    first_lift: Levels
    """As `anchor_lift`, of the first 4 hybrid tokens, whatever they are."""
    entropy_bits: Levels
    """Entropy of a row in bits, 0 to log2(S)."""
    effective_keys: Levels
    """2 to the power of it, 1 to S."""
    top_10: Levels
    """Share of the most attended 10% of patches in what all patches get."""
    patch_gini: Levels
    """Gini coefficient over patches: 0 where all get the same."""
    anchor_head: Annotated[np.ndarray, "L H int"] | None = None
    """1 where the anchors' lift is above 1 (max-T over all heads at 5%)."""
    anchor_heads: int | None = None
    """Their number."""
    mean_attention: Annotated[np.ndarray, "L H S"]
    """Over images; a row sums to 1."""
    paired_images: int | None = None
    """Images that a second run has as well; None without one."""
    difference: Differences | None = None
    """This run minus the second one."""


class Contributions(Record):
    """What every token contributes to `<voco>` on N images, see `attention.updates`."""

    VERSION = 2
    """1: of images that were not in the order of `again.order`."""

    images: Annotated[list[str], "N"]
    """Their ids."""
    roles: Annotated[list[str], "R"]
    """Among the keys."""
    questions: Annotated[list[str], "Q"]
    """None where the data have no questions."""
    norm: Annotated[np.ndarray, "N L S"]
    """Length of the sum over heads of what a key contributes."""
    share: Annotated[np.ndarray, "N L S"]
    """Of the update, summed over heads; signed."""
    share_by_role: Annotated[Intervals, "L R"]
    """Means over images."""
    attention_by_role: Annotated[Intervals, "L R"]
    lens: Annotated[np.ndarray, "N L S"] | None = None
    """Parts in the logit of the answer's first token by the lens, mean over questions, summed over heads; as what
    follows, None where the data have no questions."""
    lens_by_role: Annotated[Intervals, "Q R"] | None = None
    """Summed over layers."""
    answers: Annotated[np.ndarray, "N L S"] | None = None
    """The same on the path that answers take."""
    answers_by_role: Annotated[Intervals, "Q R"] | None = None
