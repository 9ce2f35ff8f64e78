"""What the sections of an analysis and the probes say, as the sentences of a researcher.

Knows sections and results of probes; not runs, models, how anything was measured, or where it is shown.

No conclusion is written down here: each sentence follows the sign of a number and whether its 95% interval leaves that
sign open, and says so where it does. Beside it stands what the paper claims (arXiv 2512.08240).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

from htc_probe.analysis.causes.following import rows as rows_of
from htc_probe.analysis.sections import Attention, Interchange, Knockouts, Sections
from htc_probe.analysis.sections.contents import Codes, Reading
from htc_probe.analysis.stats.draws import Interval, interval_of_mean
from htc_probe.extract.words import counted
from htc_probe.probes.files.results import Results, SuiteMean, is_defined
from htc_probe.probes.inputs.representations import READ, shown
from htc_probe.probes.scores.intervals import mean_known
from htc_probe.probes.show.table import key_of
from htc_probe.probes.show.verdict import share, token_of

_HARDLY = 0.1  # a preference that is surely less than this share of an even look is told as "hardly"
_SEED = 0  # of the intervals that are taken here, of differences within one section


PREFERENCE = "Does the token prefer the anchors?"
HONESTY = "Is a heat map of attention honest?"
CAUSE = "Do the anchors matter causally?"
FOLLOWING = "Swap the patches: does the answer change with them?"
SURVIVAL = "What survives in the one token?"
PATCHES = "What survives of each single patch?"


class Sentence(NamedTuple):
    """An answer; `text` holds its numbers with their intervals."""

    text: str
    claim: str
    """What the paper says to it, "" where it says nothing."""
    agrees: bool | None
    """Whether the measurement does; None where it cannot be told."""
    hardly: bool = False
    """What was measured has a sign, and next to no size."""

    def told(self) -> str:
        words = "leaves it open" if self.agrees is None else self.stance
        return self.text + (f" The paper: {self.claim}; this run {words}." if self.claim else "")

    @property
    def stance(self) -> str:
        """In a word or some."""
        found = {True: "agrees", False: "disagrees", None: "open"}[self.agrees]
        return f"{found} in sign, hardly in size" if self.hardly and self.agrees else found


def answers(
    sections: Sections, probes: Results | None = None, outdated: Collection[str] = ()
) -> dict[str, Sentence | str]:
    """To each question in `ANALYSES`; of what was not analysed or probed, how to do that. outdated: analyses that
    another version made, see `results.Analysis`.
    """
    found: dict[str, Sentence | str] = {}
    for question, (analysis, subject, say) in _ANSWERS.items():
        asked = getattr(sections, analysis) if analysis else probes
        why = "made by another version" if analysis in outdated else "not analysed yet"
        way = f"{why}; htc-analyze {analysis}" if analysis else "not probed yet; htc-probe semantic detail"
        found[question] = f"{subject}: {way}" if asked is None else say(asked)
    return found


def sign(interval: Interval, null: float = 0.0) -> int:
    """1: above the null, -1: below it, 0: the interval leaves it open, or there is none."""
    if not all(map(math.isfinite, interval)):
        return 0
    return int(interval.lower > null) - int(interval.upper < null)


def words(interval: Interval, null: float = 0.0) -> str:
    """0.73 [0.72, 0.74], with as many decimals as the interval's width deserves, and as show on which side of the null
    its ends are: 2 to 4.
    """
    width = interval.upper - interval.lower
    if not math.isfinite(width):
        return f"{interval.estimate:.2f} [too few groups for an interval]"
    places = 2 if width <= 0 else min(max(math.ceil(-math.log10(width)), 2), 3)
    while places < 4 and any(end != null and round(end, places) == null for end in interval[1:]):
        places += 1
    estimate, lower, upper = (f"{value:.{places}f}" for value in interval)
    return f"{estimate} [{lower}, {upper}]"


def few_draws(draws: float, size: int) -> str:
    """A warning that a codebook of `size` codes has more of them than were drawn; "" where it has not."""
    if draws >= size:
        return ""
    return (
        f"Entropy and perplexity of the codes come out too low: {draws:,.0f} draws (groups of images x places) are "
        f"fewer than the {size:,} codes. Extract more images."
    )


# ---- the sentences


def _looks(section: Attention) -> Sentence | str:
    if section.anchor_lift is None or section.anchor_minus_top is None or section.anchor_head is None:
        return "Whether <voco> prefers the anchors: this model has no anchors."
    lift, above = section.anchor_lift.overall.only, section.anchor_minus_top.overall.only
    which = sign(lift, 1.0)
    layers = ", ".join(f"{value:.2f}" for value in section.anchor_lift.by_layer.estimate)
    hardly = "hardly " if abs(lift.upper - 1) < _HARDLY and abs(lift.lower - 1) < _HARDLY else ""
    text = {
        1: f"<voco> looks at an anchor {hardly}more than at a patch",
        -1: f"<voco> looks at an anchor {hardly}less than at a patch",
        0: "It remains open whether <voco> looks at an anchor more than at a patch",
    }[which]
    text += (
        f": the anchors get {words(lift, 1.0)} times their uniform share, on average over images, heads and layers (by "
        f"layer {layers}; {section.anchor_heads} of {section.anchor_head.size} heads prefer them)."
    )
    text += {
        1: f" All anchors together get {words(above)} more of the attention than the same number of patches, chosen as "
        "the most attended.",
        -1: f" The most attended patches, as many as there are anchors, together get {words(_minus(above))} more of "
        "the attention than the anchors.",
        0: " The most attended patches, as many as there are anchors, do not measurably differ from them (difference "
        f"{words(above)}).",
    }[sign(above)]
    claim = "the anchors get more than the patches (Figure 3 shows the first 12)"
    return Sentence(text, claim, _agrees(which), bool(hardly))


def honest(knockouts: Knockouts) -> Sentence | str:
    """Whether attention tells what knocking tokens out does."""
    predictors, effects = knockouts.rank_predictors, knockouts.rank_effects
    effect = effects.index("answers") if "answers" in effects else 0

    def mean(predictor: int, effect: int) -> Interval:
        return knockouts.mean.rank.at(predictor, effect, -1)

    attention = mean(0, effect)
    what = "the true answers" if "answers" in effects else "z_voco"
    strength = "weakly" if abs(attention.estimate) < _WEAK else "strongly"
    strength = "moderately" if _WEAK <= abs(attention.estimate) < _STRONG else strength
    text = {
        1: f"Attention ranks an image's tokens {strength} like their measured effect on {what}",
        -1: f"Attention ranks an image's tokens {strength} against their measured effect on {what}",
        0: f"It remains open whether attention ranks an image's tokens like their measured effect on {what}",
    }[sign(attention)]
    text += f" (rank correlation {words(attention)}"
    if "answers" in effects and "z" in effects:
        text += f"; with the effect on z_voco {words(mean(0, effects.index('z')))}"
    text += "). The effect of a token is what changes when it is knocked out."
    rank_NP = knockouts.rank[:, :, effect, -1]
    for number, predictor in enumerate(predictors[1:], 1):
        gain = interval_of_mean(rank_NP[:, number] - rank_NP[:, 0], knockouts.groups, _SEED)
        how = {
            1: "ranks them better than attention",
            -1: "ranks them worse than attention",
            0: "does not measurably differ",
        }
        name = _WEIGHTED if predictor == "attention x value x output" else predictor
        text += f" {name[0].upper()}{name[1:]} {how[sign(gain)]} ({words(mean(number, effect))})."
    return Sentence(text + " The paper shows attention and does not test causes.", "", None)


def matters(knockouts: Knockouts) -> Sentence | str:
    """Whether taking the anchors away changes more than taking as many patches."""
    group = knockouts.group
    anchors = knockouts.token.role.count("anchor")
    if not anchors:
        return "Whether the anchors matter causally: this model has no anchors."
    number = {name: group.names.index(name) for name in ("anchors", "random patches", "attended patches")}
    zero = group.modes.index("zero")

    def more_than(values_NG: np.ndarray, name: str) -> Interval:
        return interval_of_mean(values_NG[:, number["anchors"]] - values_NG[:, number[name]], knockouts.groups, _SEED)

    change_NG = group.change[:, zero]
    against = {name: more_than(change_NG, name) for name in ("random patches", "attended patches")}
    which = sign(against["random patches"])
    mean_G = np.nanmean(change_NG, axis=0)
    text = {
        1: f"Knocking out all {anchors} anchors changes z_voco more than knocking out {group.size} random patches",
        -1: f"Knocking out all {anchors} anchors changes z_voco less than knocking out {group.size} random patches",
        0: f"It remains open whether knocking out all {anchors} anchors changes z_voco more than knocking out "
        f"{group.size} random patches",
    }[which]
    by = {name: f"{mean_G[place]:.3f}" for name, place in number.items()}
    text += (
        f": by {by['anchors']} of its length against {by['random patches']} (difference "
        f"{words(against['random patches'])}); the {group.size} most attended patches: {by['attended patches']} "
        f"(difference {words(against['attended patches'])})."
    )
    if group.answers is None:
        return Sentence(text, _MATTER, _agrees(which))
    loss_NG = -mean_known(group.answers[:, zero], -1)
    own = interval_of_mean(loss_NG[:, number["anchors"]], knockouts.groups, _SEED)
    text += {
        1: f" Without the anchors the true answers lose {words(own)} nats",
        -1: f" Without the anchors the true answers gain {words(_minus(own))} nats",
        0: f" The true answers do not get measurably worse without the anchors ({words(own)} nats lost)",
    }[sign(own)]
    patches = {
        "random patches": f"{group.size} random patches",
        "attended patches": f"the {group.size} most attended patches",
    }
    for name, called in patches.items():
        more = more_than(loss_NG, name)
        told = {1: "more than without", -1: "less than without", 0: "no measurable difference from"}[sign(more)]
        text += f"{', and' * (name == 'attended patches') or ':'} {told} {called} (difference {words(more)})"
        if name == "random patches":
            agrees = _agrees(sign(more))
    return Sentence(text + ".", _MATTER, agrees)


_WEIGHTED = "value-weighted attention (attention x value x output projection)"
_WEAK, _STRONG = 0.3, 0.6  # rank correlations that are told as weak, moderate and strong
_MATTER = "the anchors carry the semantics that the answers need"


def follows(interchange: Interchange) -> Sentence | str:
    """Which source of a mixture answers and probes follow."""
    text, agrees = [], []
    for suite, wanted in (("semantic", 1), ("detail", -1)):
        told = []
        for readout, name in (("answer", "answers"), ("probe", "probes")):
            found = _follow(interchange, suite, readout)
            if found is None:
                continue
            anchors, patches, chance = found
            which = _apart(anchors, patches)
            source = {1: "follow the anchors", -1: "follow the patches", 0: "follow neither clearly"}[which]
            shares = f"anchors' source {words(anchors)}, patches' source {words(patches)}"
            told.append(f"{name} {source} ({shares}, chance {chance:.2f})")
            agrees.append(None if which == 0 else which == wanted)
        if told:
            text.append(f"In {suite} tasks the {' and the '.join(told)}.")
    if not text:
        return (
            "Which source answers and probes follow: in no task do the sources of the mixtures have different labels."
        )
    verdict = False if False in agrees else None if None in agrees else True
    whole = f"A mixture has the anchors of one image and the patches of another, its sources. {' '.join(text)}"
    return Sentence(whole, "semantics come from the anchors, details from the patches", verdict)


def _follow(interchange: Interchange, suite: str, readout: str) -> tuple[Interval, Interval, float] | None:
    """The suite's mean shares of anchors and patches where all is mixed, and the former's chance; None without any."""
    for row in rows_of(interchange):
        if row.key == (suite, "", "mean", readout, "all", "swapped", False) and row.cases:
            anchors, patches = (Interval(*map(float, share)) for share in row.whom[:2])
            return anchors, patches, row.chance
    return None


def _survives(probes: Results) -> Sentence | str:
    kept: list[str] = []
    of_anchors: list[str] = []
    signs: list[int] = []
    key = token_of(probes.suite_means)
    for suite in dict.fromkeys(mean.suite for mean in probes.suite_means):
        means = [mean for mean in probes.suite_means if mean.suite == suite]
        token = next((mean for mean in means if key_of(mean) == key), None)
        if token is None or not is_defined(token.retention):
            continue
        signs.append(sign(Interval(*(end or 0.0 for end in token.retention)), 1.0))
        than = {1: "more than pooled V", -1: "less than pooled V", 0: "no measurable difference"}[signs[-1]]
        kept.append(f"{share(token.retention)} in the {suite} suite ({counted(token.tasks, 'task')}; {than})")
        for anchors in (mean for mean in means if mean.representation == "v_d"):
            signs.append(_apart(_score(token), _score(anchors)))
            if is_defined(anchors.retention):
                of_anchors.append(f"{share(anchors.retention)} in the {suite} suite")
    if key is None or not kept:
        return (
            "What survives: no suite has probes of both <voco> and pooled V with pooled V above its floor (htc-probe "
            "semantic detail makes them)"
        )
    read_from = "What text reads of <voco> (voco_read)" if key == READ else shown(*key, probes.run.get("layers"))
    text = f"{read_from} keeps {' and '.join(kept)} of what linear probes read from pooled V, the mean of the patches."
    if of_anchors:
        text += f" The anchors (v_d) keep {' and '.join(of_anchors)}."
    verdict = False if -1 in signs else None if 0 in signs else True
    return Sentence(text + " A share compares scores above their floors.", _READ, verdict)


_READ = "linear probes read more from z_voco than from v_d and from pooled V"


def _score(mean: SuiteMean) -> Interval:
    return Interval(mean.estimate, mean.lower, mean.upper)


def _patches(section: Reading) -> Sentence | str:
    found = section.patch
    if found is None:
        return "What z_voco tells of each patch: the model was not at hand; htc-analyze reading"
    z = section.representations.index("z_voco")
    r2, more = found.r2_all.at(z), found.r2_all_minus_pooled.only
    places = found.r2.estimate[z]
    text = (
        f"{share(r2)} of the patches' variance can be predicted linearly from z_voco ({places.min():.0%} to "
        f"{places.max():.0%} by position; R2 over {found.images:,} images). "
    )
    text += {
        1: f"That is more than from pooled V (difference {_points(more)}).",
        -1: f"That is less than from pooled V (difference {_points(more)}).",
        0: f"It does not measurably differ from pooled V (difference {_points(more)}).",
    }[sign(more)]
    if section.code is not None:
        whole = np.mean(section.code.entropy_read)
        text += f" Of the {whole:.2f} bits of a code, z_voco tells {words(code_bits(section.code, z))}."
    return Sentence(text, "", None)


def _points(share: Interval) -> str:
    estimate, lower, upper = (f"{100 * end:+.1f}" for end in share)
    return f"{estimate} points [{lower}, {upper}]"


def code_bits(codes: Codes, representation: int) -> Interval:
    """The mean over code groups. The ends are the means of the groups' ends: as all are of the same images, that is at
    least as wide as an interval of the mean.
    """
    groups = [codes.bits.at(representation, group) for group in range(codes.bits.estimate.shape[1])]
    return Interval(*map(float, np.mean(groups, axis=0)))


def _agrees(which: int) -> bool | None:
    return None if which == 0 else which > 0


def _minus(interval: Interval) -> Interval:
    return Interval(-interval.estimate, -interval.upper, -interval.lower)


def _apart(one: Interval, other: Interval) -> int:
    """1: one is larger, -1: the other, 0: their intervals meet."""
    return int(one.lower > other.upper) - int(one.upper < other.lower)


_ANSWERS: dict[str, tuple[str, str, Callable[[Any], Sentence | str]]] = {
    PREFERENCE: ("attention", "Whether <voco> prefers the anchors", _looks),
    HONESTY: ("knockouts", "Whether a heat map of attention is honest", honest),
    CAUSE: ("knockouts", "Whether the anchors matter causally", matters),
    FOLLOWING: ("interchange", "Which source answers and probes follow", follows),
    SURVIVAL: ("", "What survives", _survives),
    PATCHES: ("reading", "What z_voco tells of each patch", _patches),
}
ANALYSES = {question: analysis for question, (analysis, _, _) in _ANSWERS.items()}
"""The five questions, and what no claim of the paper is about -> the analysis that answers; "" is the probes."""
