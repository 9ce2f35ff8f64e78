"""What the sections of an analysis say, as tables and as the five sentences of a researcher, the fifth of which is of
the probes. Knows sections, results of probes and rich; not runs, models or how anything was measured.

No conclusion is written down here: each sentence follows the sign of a number and whether its 95 % interval leaves that
sign open, and says so where it does. Beside it stands what the paper claims (arXiv 2512.08240).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from htc_probe.analysis.causes.following import rows as rows_of
from htc_probe.analysis.sections import (
    Attention,
    Codes,
    Contributions,
    Interchange,
    Knockouts,
    Reading,
    Reconstruct,
    Sections,
)
from htc_probe.analysis.stats.draws import Interval, interval_of_mean
from htc_probe.probes.files.results import Results, SuiteMean
from htc_probe.probes.scores.intervals import mean_known

_GREY = "bright_black"
_MOST_LAYERS = 12  # in a table
_HARDLY = 0.1  # a preference that is surely less than this share of an even look is told as "hardly"
_SEED = 0  # of the intervals that are taken here, of differences within one section


class Sentence(NamedTuple):
    """One of the five; `text` holds its numbers with their intervals."""

    text: str
    claim: str
    """What the paper says to it, "" where it says nothing."""
    agrees: bool | None
    """Whether the measurement does; None where it cannot be told."""

    def told(self) -> str:
        words = {True: "this agrees", False: "this disagrees", None: "it cannot be told from this"}
        return self.text + (f" The paper: {self.claim}; {words[self.agrees]}." if self.claim else "")


def show(sections: Sections, probes: Results | None = None) -> None:
    """Prints the tables and the sentences of the sections that are there, and of the run's probes."""
    Console().print(render(sections, probes))


def render(sections: Sections, probes: Results | None = None) -> Group:
    """Tables of the sections that are there, the five sentences, and what a linear map tells of the patches."""
    parts: list[RenderableType] = []
    for name, table in _TABLES.items():
        if (section := getattr(sections, name)) is not None:
            parts += [Text(), *table(section)]
    parts.append(Text("\nIn five sentences\n", style="bold"))
    lines = Table.grid(padding=(0, 1))
    for number, sentence in zip("12345 ", [*sentences(sections, probes), patches(sections)], strict=True):
        lines.add_row(Text(number), Text(sentence.told() if isinstance(sentence, Sentence) else sentence))
    parts += [lines, Text("\n[a, b]: 95 % intervals over groups of images.", style=_GREY)]
    return Group(*parts)


def sentences(sections: Sections, probes: Results | None = None) -> list[Sentence | str]:
    """The five; of what was not analysed or probed, how to do that."""
    found: list[Sentence | str] = []
    for name, question, say in _SENTENCES:
        if (section := getattr(sections, name)) is not None:
            found.append(say(section))
        else:
            found.append(f"{question}: not analysed yet; htc-analyze {name}")
    return [*found, _survives(probes)]


def patches(sections: Sections) -> Sentence | str:
    """What a linear map tells of the patches and codes, which no claim of the paper is about; or how to measure it."""
    if sections.reading is None:
        return "What is told of each patch: not analysed yet; htc-analyze reading"
    return _patches(sections.reading)


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
        f"Entropy and perplexity of the codes are too low: {draws:,.0f} draws (groups of images x places) cannot show "
        f"how {size:,} codes are used. Extract more images."
    )


# ---- the sentences


def _looks(section: Attention) -> Sentence | str:
    if section.anchor_lift is None or section.anchor_minus_top is None or section.anchor_head is None:
        return "Whether <voco> prefers the anchors: the model has none."
    lift, above = section.anchor_lift.overall.only, section.anchor_minus_top.overall.only
    which = sign(lift, 1.0)
    layers = ", ".join(f"{value:.2f}" for value in section.anchor_lift.by_layer.estimate)
    hardly = "hardly " if abs(lift.upper - 1) < _HARDLY and abs(lift.lower - 1) < _HARDLY else ""
    text = {
        1: f"<voco> looks at the anchors {hardly}more than evenly",
        -1: f"<voco> looks at the anchors {hardly}less than evenly",
        0: "Whether <voco> prefers the anchors to an even look cannot be told",
    }[which]
    text += (
        f": they get {words(lift, 1.0)} times their share, the mean over images, heads and layers (by layer {layers}; "
        f"{section.anchor_heads} of {section.anchor_head.size} heads prefer them)"
    )
    text += {
        1: f", and {words(above)} of the attention more than as many patches, the most attended ones of each row.",
        -1: f", and {words(_minus(above))} of the attention less than as many patches, the most attended ones of each "
        "row.",
        0: f"; the difference to as many patches, the most attended ones of each row, is {words(above)}.",
    }[sign(above)]
    return Sentence(text, "the anchors get more than the patches (Figure 3 shows the first 12)", _agrees(which))


def honest(knockouts: Knockouts) -> Sentence | str:
    """Whether attention tells what knocking tokens out does."""
    predictors, effects = knockouts.rank_predictors, knockouts.rank_effects
    effect = effects.index("answers") if "answers" in effects else 0

    def mean(predictor: int, effect: int) -> Interval:
        return knockouts.mean.rank.at(predictor, effect, -1)

    attention = mean(0, effect)
    what = "the true answers" if "answers" in effects else "z_voco"
    text = {
        1: "The heat map goes with what causes what",
        -1: "The heat map goes against what causes what",
        0: "Whether the heat map says what causes what cannot be told",
    }[sign(attention)]
    text += (
        f": over an image's tokens, the rank correlation of attention with what knocking a token out does to {what} is "
        f"{words(attention)}"
    )
    if "answers" in effects and "z" in effects:
        text += f" (to z_voco: {words(mean(0, effects.index('z')))})"
    rank_NP = knockouts.rank[:, :, effect, -1]
    for number, predictor in enumerate(predictors[1:], 1):
        gain = interval_of_mean(rank_NP[:, number] - rank_NP[:, 0], knockouts.groups, _SEED)
        how = {1: "better", -1: "worse", 0: "not told apart from it"}[sign(gain)]
        name = _WEIGHTED if predictor == "attention x value x output" else predictor
        text += f"; {name} has {words(mean(number, effect))}, {how}"
    return Sentence(text + ". The paper shows attention and tests no causes.", "", None)


def matters(knockouts: Knockouts) -> Sentence | str:
    """Whether taking the anchors away changes more than taking as many patches."""
    group = knockouts.group
    anchors = knockouts.token.role.count("anchor")
    if not anchors:
        return "Whether the anchors matter causally: the model has none."
    number = {name: group.names.index(name) for name in ("anchors", "random patches", "attended patches")}
    zero = group.modes.index("zero")

    def more_than(values_NG: np.ndarray, name: str) -> Interval:
        return interval_of_mean(values_NG[:, number["anchors"]] - values_NG[:, number[name]], knockouts.groups, _SEED)

    change_NG = group.change[:, zero]
    against = {name: more_than(change_NG, name) for name in ("random patches", "attended patches")}
    which = sign(against["random patches"])
    mean_G = np.nanmean(change_NG, axis=0)
    text = {
        1: f"Taking all {anchors} anchors away changes z_voco more than taking {group.size} random patches",
        -1: f"Taking all {anchors} anchors away changes z_voco less than taking {group.size} random patches",
        0: f"Whether taking all {anchors} anchors away changes z_voco more than {group.size} random patches "
        "cannot be told",
    }[which]
    by = {name: f"{mean_G[place]:.3f}" for name, place in number.items()}
    text += (
        f": by {by['anchors']} of its length against {by['random patches']} (difference "
        f"{words(against['random patches'])}) and {by['attended patches']} for the {group.size} most attended "
        f"(difference {words(against['attended patches'])})"
    )
    if group.answers is None:
        return Sentence(text + ".", _MATTER, _agrees(which))
    loss_NG = -mean_known(group.answers[:, zero], -1)
    own = interval_of_mean(loss_NG[:, number["anchors"]], knockouts.groups, _SEED)
    cost = {
        1: "it costs the true answers",
        -1: "it costs the true answers less than nothing:",
        0: "its cost to the true answers cannot be told from none:",
    }
    text += f"; {cost[sign(own)]} {words(own)} nats"
    for name in ("random patches", "attended patches"):
        more = more_than(loss_NG, name)
        told = {1: "more than", -1: "less than", 0: "not told apart from"}[sign(more)]
        text += f", {told} {'the most ' if name == 'attended patches' else ''}{name} (difference {words(more)})"
        if name == "random patches":
            agrees = _agrees(sign(more))
    return Sentence(text + ".", _MATTER, agrees)


_WEIGHTED = "attention weighted by what it carries (value x output projection)"
_MATTER = "the anchors carry the semantics that the answers need"


def follows(interchange: Interchange) -> Sentence | str:
    """Whom answers and probes follow."""
    text, agrees = [], []
    for suite, wanted in (("semantic", 1), ("detail", -1)):
        told = []
        for readout, name in (("answer", "answers"), ("probe", "probes")):
            found = follow(interchange, suite, readout)
            if found is None:
                continue
            anchors, patches, chance = found
            which = _apart(anchors, patches)
            whom = {1: "follow the anchors", -1: "follow the patches", 0: "cannot be told to follow either"}[which]
            told.append(
                f"{name} {whom} (anchors' image {words(anchors)}, patches' image {words(patches)}, chance {chance:.2f})"
            )
            agrees.append(None if which == 0 else which == wanted)
        if told:
            text.append(f"of {suite} tasks the {' and the '.join(told)}")
    if not text:
        return "Whom answers and probes follow: no task has classes that the mixed images differ in."
    verdict = False if False in agrees else None if None in agrees else True
    return Sentence(
        "With the anchors of one image and the patches of another, " + ", ".join(text) + ".",
        "semantics come from the anchors, details from the patches",
        verdict,
    )


def follow(interchange: Interchange, suite: str, readout: str) -> tuple[Interval, Interval, float] | None:
    """The shares in which the anchors' and the patches' image are followed where all is mixed, and the anchors' by
    chance, means of the suite's tasks. None without any.
    """
    for row in rows_of(interchange):
        if row.key == (suite, "", "mean", readout, "all", "swapped", False) and row.cases:
            anchors, patches = (Interval(*map(float, share)) for share in row.whom[:2])
            return anchors, patches, row.chance
    return None


def _survives(probes: Results | None) -> Sentence | str:
    if probes is None:
        return "What survives: not probed yet; htc-probe semantic detail"
    kept: list[str] = []
    of_anchors: list[str] = []
    signs: list[int] = []
    read_from = ""
    for suite in dict.fromkeys(mean.suite for mean in probes.suite_means):
        means = [mean for mean in probes.suite_means if mean.suite == suite]
        token = _token(means)
        if token is None or (share := _percent(token)) is None:
            continue
        read_from = _read_from(token, probes.run.get("last_layer"))
        signs.append(sign(share, 100.0))
        than = {1: "more than", -1: "less than", 0: "not told apart from"}[signs[-1]]
        of = " of what they read from the mean of the patches" if not kept else ""
        kept.append(f"{_share(share)}{of} in the {suite} suite ({token.tasks} tasks; {than} the mean)")
        for anchors in (mean for mean in means if mean.representation == "v_d"):
            signs.append(_apart(_score(token), _score(anchors)))
            if (share := _percent(anchors)) is not None:
                of_anchors.append(f"{_share(share)} in the {suite} suite")
    if not kept:
        return (
            "What survives: in no suite are there probes of both <voco> and v_pooled (htc-probe semantic detail makes "
            "them) with v_pooled over its floor"
        )
    text = f"Linear probes of {read_from} read {' and '.join(kept)}."
    if of_anchors:
        text += f" Probes of the anchors (v_d) read {' and '.join(of_anchors)}."
    verdict = False if -1 in signs else None if 0 in signs else True
    return Sentence(text + " Shares are of what a score has over its floor.", _READ, verdict)


_READ = "linear probes read more from z_voco than from v_d and from the mean of the patches"


def _token(means: Sequence[SuiteMean]) -> SuiteMean | None:
    """Of what the text reads of <voco>, where that was probed; otherwise of the last of its states that were."""
    for name in ("voco_read", "z_voco"):
        found = [mean for mean in means if mean.representation == name]
        if found:
            return max(found, key=lambda mean: -1 if mean.layer is None else mean.layer)
    return None


def _score(mean: SuiteMean) -> Interval:
    return Interval(mean.estimate, mean.lower, mean.upper)


def _read_from(token: SuiteMean, last_layer: int | None) -> str:
    if token.representation == "voco_read":
        return "what the text reads of <voco>"
    if token.layer == last_layer:
        return "z_voco (the last state of <voco>)"
    return f"the state of <voco> at layer {token.layer}"


def _percent(mean: SuiteMean) -> Interval | None:
    """The retention in percent; None where it has no bounds, as pooled V is at its floor."""
    kept = mean.retention
    if kept is None or kept.estimate is None or kept.lower is None or kept.upper is None:
        return None
    return Interval(100 * kept.estimate, 100 * kept.lower, 100 * kept.upper)


def _share(percent: Interval) -> str:
    """99.1 % [98.4, 99.8]; with more decimals where an end would look as if it were all."""
    places = 1
    while places < 4 and any(end != 100 and round(end, places) == 100 for end in percent[1:]):
        places += 1
    estimate, lower, upper = (f"{value:.{places}f}" for value in percent)
    return f"{estimate} % [{lower}, {upper}]"


def _patches(section: Reading) -> Sentence | str:
    found = section.patch
    if found is None:
        return "What is told of each patch: no model was at hand; htc-analyze reading"
    z = section.representations.index("z_voco")
    r2, more = found.r2_all.at(z), found.r2_all_minus_pooled.only
    places = found.r2.estimate[z]
    text = (
        f"A linear map from z_voco tells {words(r2)} of the variance of the single patches (R2 over "
        f"{found.images:,} images; {places.min():.2f} to {places.max():.2f} by place)"
    )
    text += {
        1: f", more than one from their mean does ({words(more)})",
        -1: f", less than one from their mean does ({words(more)})",
        0: f", not told apart from what one from their mean does ({words(more)})",
    }[sign(more)]
    if section.code is not None:
        whole = np.mean(section.code.entropy_read)
        text += f", and {words(_code_bits(section.code, z))} of the {whole:.2f} bits of a code"
    return Sentence(text + ".", "", None)


def _code_bits(codes: Codes, representation: int) -> Interval:
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


_SENTENCES: tuple[tuple[str, str, Callable[[Any], Sentence | str]], ...] = (
    ("attention", "Whether <voco> prefers the anchors", _looks),
    ("knockouts", "Whether the heat map is honest", honest),
    ("knockouts", "Whether the anchors matter causally", matters),
    ("interchange", "Whom answers and probes follow", follows),
)


# ---- the tables


def _attention(section: Attention) -> Iterator[RenderableType]:
    quantities = {
        "anchors": section.anchor_mass,
        "times uniform": section.anchor_lift,
        "top patches": section.top_patches_mass,
        "entropy, bits": section.entropy_bits,
    }
    levels = {head: found for head, found in quantities.items() if found is not None}
    heads = [] if section.anchor_head is None else ["heads"]
    rows = []
    for layer in _some(len(section.mean_attention)):
        cells = [words(found.by_layer.at(layer)) for found in levels.values()]
        if section.anchor_head is not None:
            chosen = section.anchor_head[layer]
            cells.append(f"{int(chosen.sum())} of {len(chosen)}")
        rows.append([str(layer + 1), *cells])
    yield _table(f"Attention of <voco>, {section.images} images, mean over heads", ["layer", *levels, *heads], rows)
    yield Text(
        "times uniform: of what falls on anchors and patches, the anchors' part over a uniform look's; top patches: as "
        "many patches as anchors, chosen anew in each row; heads: those that prefer the anchors",
        style=_GREY,
    )


def _reconstruct(section: Reconstruct) -> Iterator[RenderableType]:
    found = {"decoded codes": section.psnr, "mean colour alone": section.psnr_flat, "difference": section.psnr_gain}
    title = f"Pictures from the codes, {len(section.images)} images: PSNR at 96 x 96, dB"
    yield _table(title, [*found], [[words(ends.only) for ends in found.values()]])


def _contributions(section: Contributions) -> Iterator[RenderableType]:
    rows = [
        [f"{layer + 1}" if at == 0 else "", role]
        + [words(ends.at(layer, at)) for ends in (section.attention_by_role, section.share_by_role)]
        for layer in _some(section.share.shape[1])
        for at, role in enumerate(section.roles)
    ]
    title = f"What <voco> takes at each layer, {len(section.images)} images"
    yield _table(title, ["layer", "from", "attention", "share of the update"], rows)


def _knockouts(knockouts: Knockouts) -> Iterator[RenderableType]:
    count, mean = f"{len(knockouts.images)} images", knockouts.mean
    columns = {"change of z_voco": mean.group_change, "true answers, nats": mean.group_answer}
    there = {head: intervals for head, intervals in columns.items() if intervals is not None}
    rows = [
        [group if m == 0 else "", mode] + [words(intervals.at(m, g)) for intervals in there.values()]
        for g, group in enumerate(knockouts.group.names)
        for m, mode in enumerate(knockouts.group.modes)
        if np.isfinite(mean.group_change.estimate[m, g])
    ]
    yield _table(f"Taken away together, {count}", ["", "replaced by", *there], rows)
    effects = [f"effect on {effect}" for effect in knockouts.rank_effects]
    yield _table(
        f"What tells the effect of taking single tokens away: rank correlation, mean of layers, {count}",
        ["", *effects],
        [
            [predictor] + [words(mean.rank.at(number, effect, -1)) for effect in range(len(effects))]
            for number, predictor in enumerate(knockouts.rank_predictors)
        ],
    )


def _interchange(interchange: Interchange) -> Iterator[RenderableType]:
    every = rows_of(interchange)
    readouts = [name for name in ("answer", "probe") if any(row.readout == name for row in every)]
    lines: list[list[str]] = []
    for suite in ("semantic", "detail"):
        cells: dict[str, dict[str, list[str]]] = {}  # by task, by readout
        chance: dict[str, str] = {}
        for row in every:
            if (row.suite, row.factor, row.mix, row.only_right) == (suite, "all", "swapped", False):
                is_number = len(row.whom) == 2
                name = f"{row.task} (weight)" if is_number else row.task or f"mean, {suite}"
                whom = [words(Interval(*map(float, share))) for share in row.whom[:2]]
                cells.setdefault(name, {})[row.readout] = whom
                chance.setdefault(name, "0" if is_number else f"{row.chance:.2f}")
        for name in sorted(cells, key=lambda name: name.startswith("mean, ")):  # after its tasks
            of_task = (cell for readout in readouts for cell in cells[name].get(readout, ["", ""]))
            lines.append([name, *of_task, chance[name]])
        lines.append([])
    heads = [*(f"{name}s: {whose}" for name in readouts for whose in ("anchors'", "patches'")), "chance"]
    yield _table("Anchors of one image, patches of another: whose label is read", ["task", *heads], lines[:-1])
    note = (
        "Shares of the mixed images whose donors differ in the label; chance: the anchors' share if what is read were "
        "dealt out at random. Of numbers, the weights on the donors' values."
    )
    why_not = {"answers": interchange.answers, "probes": interchange.probes}
    yield Text(note + "".join(f" No {name}: {why}." for name, why in why_not.items() if why != "yes"), style=_GREY)


def _reading(section: Reading) -> Iterator[RenderableType]:
    each = range(len(section.representations))
    rows = []
    if section.patch is not None:
        rows.append(["patches, R2", *(words(section.patch.r2_all.at(at)) for at in each), "0.00"])
    if section.code is not None:
        of = f"bits of a code, of {np.mean(section.code.entropy_read):.2f}"
        rows.append([of, *(words(_code_bits(section.code, at)) for at in each), "0.00"])
    near = section.neighbours
    if near.score is not None:
        for task, (name, metric) in enumerate(zip(near.tasks, near.metric, strict=True)):
            found = (words(near.score.at(task, at)) for at in each)
            rows.append([f"{name}, {metric}", *found, f"{near.floor[task]:.2f}"])
    yield _table(f"What can be read from each, {section.images} images", ["", *section.representations, "floor"], rows)
    yield Text(
        "patches: a linear map to each, held out; bits of a code: a linear readout, held out; tasks: 10 nearest "
        "neighbours",
        style=_GREY,
    )
    if section.code is not None and (doubt := few_draws(section.code.draws, section.code.size)):
        yield Text(f"! {doubt}", style="yellow")


_TABLES: dict[str, Callable[[Any], Iterator[RenderableType]]] = {
    "attention": _attention,
    "reconstruct": _reconstruct,
    "contributions": _contributions,
    "knockouts": _knockouts,
    "interchange": _interchange,
    "reading": _reading,
}


def _some(layers: int) -> list[int]:
    """At most 12 of the layers, with the first and the last."""
    return sorted({round(at) for at in np.linspace(0, layers - 1, min(layers, _MOST_LAYERS))})


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    columns = (Column(Text(name)) for name in head)
    table = Table(
        *columns, title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for row in rows:
        table.add_row(*map(Text, row))
    return table
