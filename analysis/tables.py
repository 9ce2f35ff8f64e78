"""What `htc-analyze` prints: a table a section, and the sentences.

Knows sections and rich; not how anything was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from htc_probe.analysis.causes.following import rows as rows_of
from htc_probe.analysis.sections import Attention, Contributions, Interchange, Knockouts, Reading, Reconstruct, Sections
from htc_probe.analysis.sentences import Sentence, code_bits, few_draws, words
from htc_probe.analysis.stats.draws import Interval
from htc_probe.probes.inputs.representations import shown

_GREY = "bright_black"
_MOST_LAYERS = 12


def tables(sections: Sections) -> Group:
    """A table or some of each section that is there."""
    there = {name: getattr(sections, name) for name in _TABLES}
    return Group(*(part for name, of in there.items() if of is not None for part in (Text(), *_TABLES[name](of))))


def last_words(found: Mapping[str, Sentence | str]) -> Group:
    """The five sentences, and what a linear map tells of the patches."""
    lines = Table.grid(padding=(0, 1))
    for number, sentence in zip("12345 ", found.values(), strict=True):
        lines.add_row(Text(number), Text(sentence.told() if isinstance(sentence, Sentence) else sentence))
    head = Text("\nIn five sentences", style="bold") + Text(" ([a, b]: 95% intervals over groups of images)\n", _GREY)
    return Group(head, lines)


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
    yield _table(f"Where <voco> looks, {section.images} images, mean over heads", ["layer", *levels, *heads], rows)
    lift = "times uniform: the anchors' share of the attention on anchors and patches, over their uniform share"
    top = "top patches: the most attended ones of each row, as many as there are anchors"
    yield Text(f"{lift}; {top}; heads: how many prefer the anchors", style=_GREY)


def _reconstruct(section: Reconstruct) -> Iterator[RenderableType]:
    found = {"decoded codes": section.psnr, "mean colour alone": section.psnr_flat, "difference": section.psnr_gain}
    title = f"Reconstructions from the codes, {len(section.images)} images: PSNR at 96 x 96, dB"
    yield _table(title, [*found], [[words(ends.only) for ends in found.values()]])


def _contributions(section: Contributions) -> Iterator[RenderableType]:
    rows = [
        [f"{layer + 1}" if at == 0 else "", role]
        + [words(ends.at(layer, at)) for ends in (section.attention_by_role, section.share_by_role)]
        for layer in _some(section.share.shape[1])
        for at, role in enumerate(section.roles)
    ]
    title = f"What <voco> takes from each kind of token, {len(section.images)} images"
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
    yield _table(f"Groups of tokens, knocked out together, {count}", ["", "replaced by", *there], rows)
    effects = [f"effect on {effect}" for effect in knockouts.rank_effects]
    rows = [
        [predictor] + [words(mean.rank.at(number, effect, -1)) for effect in range(len(effects))]
        for number, predictor in enumerate(knockouts.rank_predictors)
    ]
    title = f"Which score predicts the effect of a knock-out? Rank correlation over single tokens, {count}"
    yield _table(title, ["", *effects], rows)


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
    heads = [*(f"{name}s: {source}" for name in readouts for source in ("anchors", "patches")), "chance"]
    yield _table("Mixtures: which source's label is read, the anchors' or the patches'?", ["task", *heads], lines[:-1])
    note = (
        "A mixture has the anchors of one image and the patches of another, its sources. Shares are of the mixtures "
        "whose sources have different labels; numbers: the weight of each source's value. Chance: the anchors' share "
        "if the readings were shuffled."
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
        rows.append([of, *(words(code_bits(section.code, at)) for at in each), "0.00"])
    near = section.neighbours
    if near.score is not None:
        for task, (name, metric) in enumerate(zip(near.tasks, near.metric, strict=True)):
            found = (words(near.score.at(task, at)) for at in each)
            rows.append([f"{name}, {metric}", *found, f"{near.floor[task]:.2f}"])
    names = [*map(shown, section.representations)]
    yield _table(f"What can be read, {section.images} images", ["", *names, "floor"], rows)
    readouts = "patches: a linear map to each of them; bits of a code: a linear readout; both on held-out images"
    yield Text(f"{readouts}; tasks: 10 nearest neighbours", style=_GREY)
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
    look: Any = {"title_justify": "left", "box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}
    table = Table(*(Column(Text(name)) for name in head), title=Text(title), **look)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
