"""What causes what: knock-outs of tokens, alone and together, beside attention; anchors and patches interchanged.

Lays out; reads through data, draws by figures.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import streamlit as st

from htc_probe.analysis import sentences
from htc_probe.analysis.attention.rows import mean_of_read_layers
from htc_probe.analysis.stats.draws import Interval
from htc_probe.dashboards import attention as att
from htc_probe.dashboards import causes, data, figures
from htc_probe.dashboards.parts.chart import draw, made, points
from htc_probe.dashboards.parts.controls import (
    fill,
    fragment,
    go_to_image,
    how_to_read,
    pick,
    plain,
    select,
    side_by_side,
    table,
)
from htc_probe.dashboards.views.view import View
from htc_probe.extract.store import NUMERIC
from htc_probe.probes.scores.intervals import mean_known

Z, ANSWERS, PROBES = "z_voco", "the true answers", "the probes"
_STORED = {Z: "loo_change", ANSWERS: "loo_answers", PROBES: "loo_probe_changes"}
_MEAN = "mean"
_ALL = "all layers"
_NAMES = {"attention x value x output": "value-weighted attention"}
_MODES = {"zero": "closed", "mean": "its mean", "resampled": "another image's"}


class Effect(NamedTuple):
    """What knocking out each token does to one thing."""

    words: str
    values_NT: np.ndarray
    """By sampled image and token; above 0 something is lost, but for numbers, which change either way."""
    unit: str
    signed: bool
    read: bool
    """Whether it is on what text says, which hangs on the layers whose outcome text reads: all but the last."""
    ranked: str
    """The entry of the section that says how well attention ranks it, (N, predictors, ...)."""
    at: tuple[int, ...]
    """Its place in that, after the first two axes."""


def show(view: View) -> None:
    """Draws the page."""
    sections = data.sections(view.path, view.header)
    st.caption(
        "Attention says where &lt;voco&gt; looks; it is no cause. Here tokens are taken away, or exchanged between two "
        "images, and everything after them is computed again: what changes then, they caused. z_voco is &lt;voco&gt; "
        "after the last layer, which no text reads: answers hang on what it is before that."
    )
    parts = st.tabs(list(_PARTS), key="causes", bind="query-params", on_change="rerun")  # computes only the open one
    for part, (name, command, content) in zip(parts, _PARTS.values(), strict=True):
        if part.open:
            with part:
                if name == "knockouts" and name in sections and "shapley_cosine_error" in sections[name]:
                    what = "This is of an older version, which counted a layer that no text reads and sampled orders."
                    fill(what, command, view.path)
                elif name in sections:
                    content(view, sections)
                elif name == "interchange" and not view.header.shape.anchors:
                    st.info("The model has no anchors: there is nothing to interchange.")
                elif name == "interchange" and not view.header.tasks:
                    st.info("The data of this run came without labels, so that nobody can be followed.")
                else:
                    fill("This is not analysed yet.", command, view.path)


def _single(view: View, sections: Mapping[str, data.Section]) -> None:
    section = sections["knockouts"]
    _sentence(section, "knockouts", 1)
    _tokens(view, sections, _within_sample(view, data.rows_of(view.key, section["images"])))


def _together(view: View, sections: Mapping[str, data.Section]) -> None:
    section = sections["knockouts"]
    _sentence(section, "knockouts", 2)
    _groups(view, section, _within_sample(view, data.rows_of(view.key, section["images"])))


def _interchanged(view: View, sections: Mapping[str, data.Section]) -> None:
    section = sections["interchange"]
    _sentence(section, "interchange", 3)
    _interchange(view, section)


_PARTS: dict[str, tuple[str, str, Callable[[View, Mapping[str, data.Section]], None]]] = {
    "Token by token": ("knockouts", "htc-analyze knockouts contributions", _single),
    "Groups of tokens": ("knockouts", "htc-analyze knockouts", _together),
    "Anchors and patches interchanged": ("interchange", "htc-analyze interchange", _interchanged),
}
"""The name of a part -> the analysis it shows, the command that makes it, and what draws it."""


def _sentence(section: data.Section, name: str, number: int) -> None:
    """What the analysis concludes, as `htc-analyze` prints it."""
    found = sentences.sentences({name: section})[number]
    st.markdown(plain(found.told() if isinstance(found, sentences.Sentence) else found))


# ---- the sample


def _within_sample(view: View, rows: Sequence[int]) -> int | None:
    """Says whether the image was knocked out, and offers those that were. Returns its number in the sample."""
    image = view.selection.image
    here = rows.index(image) if image in rows else None
    words, steps = side_by_side([6, 4], "sample", least=340, align="center")
    beside = steps.container(horizontal=True)
    earlier, later = [at for at in rows if at < image], [at for at in rows if at > image]
    if here is not None:
        words.caption(
            f"Image {image + 1:,} is one of the {len(rows):,} that were drawn at random of "
            f"{view.header.shape.images:,} and whose tokens were knocked out."
        )
    else:
        nearest = causes.nearest(rows, image)
        words.info(
            f"Image {image + 1:,} is not among the {len(rows):,} of {view.header.shape.images:,} whose tokens were "
            "knocked out. Means over these are below."
        )
        words.button(f"Go to the nearest, image {nearest + 1:,}", on_click=go_to_image, args=(nearest,))
    beside.button(
        "Previous of the sample",
        on_click=go_to_image,
        args=(max(earlier, default=image),),
        disabled=not earlier,
        width="stretch",
    )
    beside.button(
        "Next of the sample",
        on_click=go_to_image,
        args=(min(later, default=image),),
        disabled=not later,
        width="stretch",
    )
    return here


# ---- single tokens


@fragment
def _tokens(view: View, sections: Mapping[str, data.Section], here: int | None) -> None:
    section, shape = sections["knockouts"], view.header.shape
    effect, window = _choose_effect(view, section)
    contributions = sections.get("contributions")
    keys = np.flatnonzero(np.isin(shape.roles, ["anchor", "patch"]))
    ranks = _ranks(section, effect)
    if here is not None:
        told: list[tuple[str, ...]] = [(), ()]
        if ranks is not None:
            told = [
                (f"rank correlation with the effect {rank:.2f}", f"{sentences.words(Interval(*among))} over the sample")
                for rank, among in zip(ranks[0][here], ranks[1], strict=True)
            ]
        _maps(view, section, contributions, effect, window, here, keys, told)
    if ranks is None:
        what = "How well attention ranks these effects was not kept when this was made."
        fill(what, "htc-analyze knockouts", view.path)
    else:
        _dots(section, effect, window, here, *ranks)
    if contributions is None:
        fill("What each token hands over is not measured yet.", "htc-analyze contributions", view.path)


def _choose_effect(view: View, section: data.Section) -> tuple[Effect, int | None]:
    """The effect that is looked at, and the one layer in which tokens are closed, None for all."""
    on, of, scale = side_by_side([4, 3, 3], "effect", least=260, align="bottom")
    scale.toggle(
        "A colour scale for each map", key="own_scale", help="To see the pattern of a flat map.", bind="query-params"
    )
    with on:
        there = [name for name, stored in _STORED.items() if stored in section]
        chosen = pick("Effect on", there, "effect")
    if chosen == Z:
        with of:
            layers = [_ALL, *(f"layer {layer}" for layer in range(1, section["window_change"].shape[1] + 1))]
            window = select("Knocked out in", layers, "window")
        if window == _ALL:
            change_NT = section["loo_change"][..., -1]
            at = section["rank_effects"].index("z"), -1
            return Effect(Z, change_NT, "of the length of z_voco", False, False, "rank", at), None
        layer = layers.index(window) - 1
        change_NT = section["window_change"][:, layer]
        return Effect(Z, change_NT, "of the length of z_voco", False, False, "window_rank", (layer,)), layer
    if chosen == ANSWERS:
        names = section["questions"]
        with of:
            which = select("Question", [_MEAN, *names], "question", format_func=_or_mean)
        loss_NTQ = -section["loo_answers"]
        if which == _MEAN:
            at = section["rank_effects"].index("answers"), -1
            return Effect(ANSWERS, mean_known(loss_NTQ, -1), "nats lost", True, True, "rank", at), None
        number = names.index(which)
        words = f"the true answer, {which}"
        return Effect(words, loss_NTQ[..., number], "nats lost", True, True, "question_rank", (number,)), None
    names, change_NTP = section["probes"], section["loo_probe_changes"]
    numbers = np.isnan(section["loo_probe_flips"]).all((0, 1))
    with of:
        options = [*([_MEAN] if not numbers.all() else []), *names]
        which = select("Probe", options, "probe", format_func=_or_mean)
    if which == _MEAN:
        words = f"what {int((~numbers).sum())} probes of classes read"
        return Effect(words, -change_NTP[..., ~numbers].mean(-1), "nats lost", True, False, "probe_rank", (-1,)), None
    number = names.index(which)
    words, values_NT, unit = f"what the probe of {which} reads", -change_NTP[..., number], "nats lost"
    if numbers[number]:
        unit = next((task.unit for task in view.header.tasks if task.name == which), "") + " more"
        values_NT = -values_NT
    return Effect(words, values_NT, unit, True, False, "probe_rank", (number,)), None


def _or_mean(name: str) -> str:
    return "mean of all" if name == _MEAN else name


def _maps(
    view: View,
    section: data.Section,
    contributions: data.Section | None,
    effect: Effect,
    window: int | None,
    here: int,
    keys: np.ndarray,
    ranks: Sequence[tuple[str, ...]],
) -> None:
    """The knock-outs of this image, its attention, and what its tokens hand over, each on the picture; of the latter
    two, how they rank the effects, in words.
    """
    record = data.image_record(view.key, view.selection.image)
    row_LS = record.attention.mean(1)
    closed = "closed in all layers" if window is None else f"closed in layer {window + 1} only"
    layers = f"{_layers(effect, window)}, mean over heads"
    shown: list[tuple[str, str, np.ndarray, str, str]] = [
        ("effect", "Knock-out", effect.values_NT[here], effect.unit, closed),
        ("attention", "Attention", _of_window(row_LS, effect, window)[keys], "of all attention", layers),
    ]
    weighed = [] if contributions is None else contributions["images"]
    if contributions is not None and section["images"][here] in weighed:
        norm_T = _of_window(contributions["norm"][weighed.index(section["images"][here])], effect, window)[keys]
        shown.append(("norm", "Value-weighted attention", norm_T, "length of what is handed over", layers))
    if not np.isfinite(shown[0][2]).all():
        st.info(f"Of this image nothing is known of {plain(effect.words)}: it has no such answer.")
        return
    even = {key: causes.times_even(values_T) for key, _, values_T, _, _ in shown}
    largest = {key: float(np.abs(values_T).max()) for key, values_T in even.items()}
    own_scale = st.session_state.get("own_scale", False)
    roles = section["token_role"]
    anchors = att.role_mask(roles, "anchor")
    columns, told = side_by_side(3, "maps"), [(f"effect on {effect.words}", "exact, one token at a time"), *ranks]
    for column, words, (key, title, values_T, unit, how) in zip(columns, told, shown, strict=False):
        places = section["token_row"], section["token_col"]
        even_RC, raw_RC = (att.patch_map(values, roles, *places) for values in (even[key], values_T))
        if even_RC is None or raw_RC is None:
            column.info("This run has no patch positions, so maps cannot be drawn on the image.")
            return
        limit = largest[key] if own_scale else max(largest.values())
        figure = made(
            figures.token_map,
            even_RC,
            even[key][anchors],
            limit,
            title=title,
            image=record.thumbnail,
            signed=effect.signed,
            lines=[f"{how} · 1 image", *words],
            raw=(raw_RC, values_T[anchors]),
            unit=unit,
        )
        with column:
            draw(figure, f"map_{key}")
    if contributions is not None and len(shown) < 3:
        columns[2].info(f"This image is not among the {len(weighed):,} whose value-weighted attention was measured.")
    sign = " Orange: taking it away costs; purple: it helps (of numbers: more, less)." if effect.signed else ""
    if effect.words != Z:
        sign += " Single tokens are closed in all layers; in one layer only, they are measured by z_voco alone."
    scale = "a scale each, from 0 to its largest" if own_scale else "one scale, from 0 to the largest of all"
    how_to_read(
        f"Each map shows what part of its sum falls on a token, in multiples of a uniform part (1 / {len(keys)}), so "
        f"that an effect can be laid beside attention; colours have {scale}.{sign} Single effects do not add up to "
        "that of taking all away."
    )


def _ranks(section: data.Section, effect: Effect) -> tuple[np.ndarray, np.ndarray] | None:
    """How well each of P predictors ranks the tokens by the size of the effect: of the sampled images (N, P), and the
    mean with its interval (P, 3). None where the analysis was made before it kept that.
    """
    if effect.ranked not in section:
        return None
    at: tuple[Any, ...] = (slice(None), *effect.at)  # of all predictors
    return section[effect.ranked][(slice(None), *at)], _stored(section, f"mean_{effect.ranked}", 1)[at]


def _dots(
    section: data.Section,
    effect: Effect,
    window: int | None,
    here: int | None,
    rank_NP: np.ndarray,
    mean_P3: np.ndarray,
) -> None:
    names = [_NAMES.get(name, name) for name in section["rank_predictors"][: len(mean_P3)]]
    own = None if here is None else rank_NP[here]
    known = int(np.isfinite(rank_NP).sum(0).max())
    where = effect.words if window is None else f"{effect.words}, knocked out in layer {window + 1} only"
    draw(made(figures.rank_dots, names, mean_P3, own_K=own, effect=where, n=known), "ranks")
    gradients = " Gradients are first-order estimates of the effect on the true answers." if len(names) > 2 else ""
    how_to_read(
        f"1: the predictor ({_layers(effect, window)}) puts an image's tokens in the order of their effects; 0: it "
        f"says nothing of them. Value-weighted: the length of attention × value × output projection.{gradients} Dots "
        "are means over the sample, diamonds this image."
    )


def _of_window(values: np.ndarray, effect: Effect, window: int | None) -> np.ndarray:
    """(..., L, T) -> (..., T): of one layer, or the mean over those that the effect can hang on."""
    if window is not None:
        return values[..., window, :]
    return mean_of_read_layers(values) if effect.read else values.mean(-2)


def _layers(effect: Effect, window: int | None) -> str:
    """What `_of_window` gives, in words."""
    if window is not None:
        return f"layer {window + 1}"
    return "mean over all layers but the last, which no text reads" if effect.read else "mean over layers"


# ---- groups


@fragment
def _groups(view: View, section: data.Section, here: int | None) -> None:
    chosen, question = Z, _MEAN
    if "group_answers" in section:
        left, right = side_by_side([4, 6], "group_effect")
        with left:
            chosen = pick("Effect of a group on", [Z, ANSWERS], "group_effect")
        if chosen == ANSWERS:
            with right:
                options = [_MEAN, *section["questions"]]
                question = select("Question", options, "group_question", format_func=_or_mean)
    n, modes = len(section["images"]), [_MODES.get(name, name) for name in section["group_modes"]]
    size, tokens = section["group_size"], section["token_role"]
    names = {
        "anchors": f"all {tokens.count('anchor')} anchors",
        "random patches": f"{size} random patches",
        "attended patches": f"the {size} most attended",
        "patches": f"all {tokens.count('patch')} patches",
    }
    groups = [names.get(name, name) for name in section["group_names"]]
    unit, sign = ("of the length of z_voco", 1) if chosen == Z else ("nats lost", -1)
    what = chosen if question == _MEAN else f"the true answer, {question}"
    effect_NMG = section["group_change"] if chosen == Z else -_asked(section, section["group_answers"], question)
    if question == _MEAN:
        effect_MG3 = _stored(section, "mean_group_change" if chosen == Z else "mean_group_answer", sign)
    else:
        at = section["questions"].index(question)
        effect_MG3 = _stored(section, "mean_group_answers", sign)[:, :, at]
    window = "group_window_change" if chosen == Z else "group_window_answers"
    left, right = side_by_side(2, "groups", least=380)
    with left:
        known = np.isfinite(effect_MG3[..., 0]).any(0)  # a model may have no anchors
        groups = [name for name, has in zip(groups, known, strict=True) if has]
        own = None if here is None else effect_NMG[here][:, known]
        effect_MG3 = effect_MG3[:, known]
        draw(made(figures.group_bars, groups, modes, effect_MG3, own_MG=own, unit=unit, what=what, n=n), "groups")
        how_to_read(
            "Bars: what is lost when a group cannot be read, when its tokens are replaced by the sample's mean at "
            "their place, or by those of another image. Compare the anchors with as many patches, random ones and the "
            "most attended in the layers that text reads; all patches have an axis of their own."
        )
    mean = f"{ANSWERS}, mean over questions" if chosen == ANSWERS else chosen
    with right:
        if f"mean_{window}" in section:
            lines_L23 = _stored(section, f"mean_{window}", sign)
            present = [(at, role) for at, role in enumerate(("anchor", "patch")) if role in tokens]
            lines = {role: lines_L23[:, at] for at, role in present}
            own_by = None if here is None else {role: sign * section[window][here][:, at] for at, role in present}
            draw(made(figures.window_lines, lines, own_by=own_by, unit=unit, what=mean, n=n), "windows")
            how_to_read(
                "Closed to &lt;voco&gt; in one decoder layer and open in all others. "
                + ("Text reads &lt;voco&gt; as it enters the last layer: that one costs no answer." if sign < 0 else "")
            )
    shapley = "shapley_cosine" if chosen == Z else "shapley_answers"
    if shapley in section:
        value_P3 = _stored(section, f"mean_{shapley}", 1)
        own = None if here is None else section[shapley][here]
        unit = "cosine with the whole z_voco" if chosen == Z else "nats gained"
        players = section["shapley_players"]
        draw(made(figures.shapley_bars, players, value_P3, own_P=own, unit=unit, what=mean, n=n), "shapley")
        how_to_read(
            "What each adds when anchors and quarters of the patches join one by one, the mean over all orders: every "
            "coalition was run, so that an image's values are exact. They sum to what all are worth more than none. "
            "That shares out what tokens can only do together, which no single knock-out shows."
        )


def _asked(section: data.Section, answers: np.ndarray, question: str) -> np.ndarray:
    """(..., Q) -> (...): one question, or the mean of those that are answered."""
    return mean_known(answers, -1) if question == _MEAN else answers[..., section["questions"].index(question)]


def _stored(section: data.Section, name: str, sign: int) -> np.ndarray:
    """(..., 3) estimate, lower and upper of a mean, with its sign turned where `sign` is -1."""
    ends = ("", "_lower", "_upper") if sign > 0 else ("", "_upper", "_lower")
    return np.stack([sign * np.asarray(section[name + end]) for end in ends], -1)


# ---- the interchange


class Rows:
    """The rows of the interchange table, those of numbers too, found by what they are of."""

    def __init__(self, section: data.Section, prefix: str) -> None:
        self.prefix, self._section = prefix, section
        keys = ("task", "suite", "readout", "factor", "mix") + (() if prefix else ("only_right",))
        self._rows = {
            tuple(row): at for at, row in enumerate(zip(*(list(section[prefix + key]) for key in keys), strict=True))
        }

    def at(
        self, suite: str, task: str, readout: str, *, factor: str = "all", mix: str = "swapped", right: int = 0
    ) -> int | None:
        key: tuple[Any, ...] = (task, suite, readout, factor, mix)
        return self._rows.get(key if self.prefix else (*key, right))

    def factors(self, suite: str, task: str) -> list[str]:
        """In which the two images may differ, `all` first."""
        found = dict.fromkeys(key[3] for key in self._rows if key[:2] == (task, suite) and key[4] == "swapped")
        return sorted(found, key=lambda factor: factor != "all")

    def value(self, at: int) -> np.ndarray:
        """(3, 3) or, of numbers, (2, 3)."""
        return self._section["number_weight" if self.prefix else "share"][at]


@fragment
def _interchange(view: View, section: data.Section) -> None:
    shares, weights = Rows(section, ""), Rows(section, "number_")
    tasks = _tasks(section)
    labels = list(tasks)
    readouts = [name for name in ("answer", "probe") if name in [*section["readout"], *section["number_readout"]]]
    share_by, chance_by = {}, {}
    for readout in readouts:
        share_KQ3 = np.full((len(tasks), 2, 3), np.nan)
        chance_K = np.full(len(tasks), np.nan)
        for number, (suite, task, kind) in enumerate(tasks.values()):
            of = weights if kind in NUMERIC else shares
            if (at := of.at(suite, task, readout)) is not None:
                share_KQ3[number] = of.value(at)[:2]
                chance_K[number] = 0 if kind in NUMERIC else section["floor"][at][0]
        share_by[f"read by {readout}s"], chance_by[f"read by {readout}s"] = share_KQ3, chance_K

    def clicked() -> None:
        for point in points("follow")[:1]:
            st.session_state["mixed"] = labels[int(np.ravel(point["customdata"])[0])]

    n = int((section["partner"] >= 0).sum())
    draw(made(figures.follow_dots, labels, share_by, chance_by, n=n), "follow", on_click=clicked)
    missing = "".join(f" No {name}: {section[name]}." for name in ("answers", "probes") if section[name] != "yes")
    how_to_read(
        "Among mixed images whose two donors differ in the label: how often what is read is the label of the image "
        "that gave the anchors, and of the one that gave the patches. A number follows by its weight: 1 is the donor's "
        "value entirely. Click a point to see its task below." + plain(missing)
    )
    left, middle, right = side_by_side([4, 3, 3], "mixed", least=250, align="bottom")
    with left:
        task_words = select("Task", labels, "mixed")
    suite, task, kind = tasks[task_words]
    of = weights if kind in NUMERIC else shares
    with middle:
        words = {"all": "as much as possible", **{name: f"in {name} alone" for name in of.factors(suite, task)[1:]}}
        factor = select("The two images differ", list(words), "differ", format_func=words.__getitem__)
    only_right = False
    if kind not in NUMERIC:
        only_right = right.toggle(
            "Only what is read right unmixed", key="only_right", help="Of both images, each by itself."
        )
    cells = side_by_side(2, "cells", least=380)
    for column, readout in zip(cells, readouts, strict=False):
        with column:
            _two_by_two(section, of, suite, task, kind, readout, factor, words[factor], int(only_right))
    how_to_read(
        "If colours go by column, the patches decide what is read; if by row, the anchors. Each couple is mixed both "
        "ways, so the two mixed cells are one measurement, seen from A and from B. Unmixed cells are of all images, "
        "mixed ones of those whose labels differ."
    )
    _pairs(view, section, tasks, task_words)
    every = st.expander("All rows of the interchange", key="all_rows", on_change="rerun")
    if every.open:
        with every:
            _all_rows(section)


def _tasks(section: data.Section) -> dict[str, tuple[str, str, str]]:
    """What a task is called -> its suite, name and kind; semantic first, and each suite's mean after its tasks."""
    found: dict[str, tuple[str, str, str]] = {}
    for suite in sorted({*section["suite"], *section["number_suite"]}, key=lambda suite: suite != "semantic"):
        for prefix in ("", "number_"):
            columns = (section[prefix + key] for key in ("task", "suite", "kind", "factor"))
            for task, of, kind, factor in zip(*columns, strict=True):
                if of == suite and kind != "mean" and factor == "all":
                    found[f"{task} (weight)" if kind in NUMERIC else task] = (suite, task, kind)
        if suite in [of for of, kind in zip(section["suite"], section["kind"], strict=True) if kind == "mean"]:
            found[f"mean, {suite}"] = (suite, "", "mean")
    return found


def _two_by_two(
    section: data.Section,
    of: Rows,
    suite: str,
    task: str,
    kind: str,
    readout: str,
    factor: str,
    differ: str,
    right: int,
) -> None:
    mixed = of.at(suite, task, readout, factor=factor, right=right)
    own = of.at(suite, task, readout, factor=factor, mix="unmixed", right=right)
    if mixed is None or own is None or not section[of.prefix + "counted"][mixed]:
        st.info(f"No {readout} tells {plain(task or suite)} of images that differ {plain(differ)}.")
        return
    number = kind in NUMERIC
    figure = made(
        figures.two_by_two,
        of.value(own)[0],
        of.value(mixed)[:2],
        readout=f"Read by {readout}s",
        what=f"{task or 'mean, ' + suite}, images differ {differ}",
        chance=0.0 if number else float(section["floor"][mixed][0]),
        cases=int(section[of.prefix + "counted"][mixed]),
        couples=int(section[of.prefix + "couples"][mixed]),
        measure="weight" if number else "reads",
    )
    draw(figure, f"cells_{readout}")


def _all_rows(section: data.Section) -> None:
    columns: dict[str, list[Any]] = {
        key: [*section[key], *section[f"number_{key}"]] for key in ("suite", "task", "readout", "factor", "mix")
    }
    numbers = len(section["number_task"])
    columns["only right"] = [bool(value) for value in section["only_right"]] + [False] * numbers
    columns["measure"] = ["share"] * len(section["task"]) + ["weight"] * numbers
    for side, name in enumerate(causes.WHOM):
        for end, what in enumerate(("", ", lower", ", upper")):
            weight = section["number_weight"][:, side, end] if side < 2 else np.full(numbers, np.nan)
            columns[name + what] = np.concatenate([section["share"][:, side, end], weight]).round(4).tolist()
    columns["by chance"] = np.concatenate([section["floor"][:, 0], np.zeros(numbers)]).round(4).tolist()
    for key, name in (("counted", "cases"), ("couples", "couples")):
        columns[name] = np.concatenate([section[key], section[f"number_{key}"]]).tolist()
    table(columns, "interchange_rows")


# ---- single pairs


class Read(NamedTuple):
    """One thing that was read of every image: a task, by answers or probes."""

    readout: str
    task: str
    suite: str
    kind: str
    columns: np.ndarray
    """Of the arrays `read_true`, `read_unmixed` and `read_swapped`; a label each where `kind` is multilabel."""
    names: list[str]
    """Of the classes or labels."""
    period: float
    """Of a circular value; else 0."""


def _reads(section: data.Section, view: View) -> list[Read]:
    periods = {task.name: task.period for task in view.header.tasks}
    keys = ("readout", "task", "suite", "kind", "label", "classes")
    found: dict[tuple[str, str, str, str], tuple[list[int], list[str]]] = {}
    for at, (*of, label, classes) in enumerate(zip(*(section[f"read_{key}"] for key in keys), strict=True)):
        columns, names = found.setdefault((of[0], of[1], of[2], of[3]), ([], []))
        columns.append(at)
        names += [label] if label else json.loads(classes) if classes else []
    return [Read(*of, np.array(columns), names, periods.get(of[1], 0.0)) for of, (columns, names) in found.items()]


def _pairs(view: View, section: data.Section, tasks: Mapping[str, tuple[str, str, str]], task_words: str) -> None:
    st.markdown("**Pairs of images**")
    if "read_true" not in section:
        fill("What is read of each image was not kept when this was made.", "htc-analyze interchange", view.path)
        return
    suite, task, _ = tasks[task_words]
    partner, reads = section["partner"], _reads(section, view)
    wanted = [read for read in reads if read.suite == suite and task in ("", read.task)]
    which = ["all", *causes.WHOM]
    words = {"all": "all", **{whom: f"that follow {'the ' * (whom != 'neither')}{whom}" for whom in causes.WHOM}}
    left, right = side_by_side([6, 4], "pairs", least=300, align="bottom")
    with left:
        whom = pick("Mixed images", which, "pairs", format_func=words.__getitem__)
    numbers = np.flatnonzero(partner >= 0)
    if whom != "all":
        asked = which.index(whom) - 1
        numbers = numbers[_any_follows(section, wanted, asked)[numbers]]
    if not len(numbers):
        st.caption(f"In {plain(task_words)} there is none.")
        return
    rows = data.rows_of(view.key, section["images"])
    sampled = [rows[number] for number in numbers]
    # Another image or another list begins at the image itself, or the nearest in the sample.
    state, here = st.session_state, (view.key, view.selection.image, task_words, whom)
    if state.get("pairs_of") != here:
        state["pairs_of"], state["pair"] = here, sampled.index(causes.nearest(sampled, view.selection.image)) + 1
    with right:
        at = st.number_input(f"Mixed image, of {len(numbers):,}", 1, len(numbers), key="pair") - 1
    a = int(numbers[at])
    b = int(partner[a])
    one, other, told = side_by_side([2, 2, 4], "pair", least=150)
    for column, letter, of in ((one, "A", a), (other, "B", b)):
        with column:
            name = section["images"][of]
            st.image(data.thumbnail(view.key, rows[of]), width="stretch", alt=f"thumbnail of image {name}")
            st.caption(f"{letter}: image {rows[of] + 1:,}, {plain(name)}")
            if st.button(f"Show {letter} on all pages", key=f"show_{letter}", on_click=go_to_image, args=(rows[of],)):
                st.rerun()  # of the whole page, which a button in a fragment does not cause
    with told:
        how_to_read(
            "Listed are mixed images, A's anchors with B's patches, of which an answer or a probe of the chosen task "
            "(of any of its suite, for a mean) follows whom is asked for. The table has what is read of all tasks, the "
            "chosen first, from the two mixed both ways and from each alone, and in brackets whose label that is, "
            "where theirs differ; of numbers, whose is nearer; of lists, how many of the labels that differ."
        )
    rest = [read for read in reads if not any(read is other for other in wanted)]
    table(_told(section, [*wanted, *rest], a, b, view), "pair_table")


def _any_follows(section: data.Section, reads: Sequence[Read], asked: int) -> np.ndarray:
    """(n,) whether anything of `reads` follows whom is asked for."""
    swapped, true, partner = section["read_swapped"], section["read_true"], section["partner"]
    found = [
        causes.follows(swapped[:, at], true[:, at], partner, read.kind, read.period) == asked
        for read in reads
        for at in read.columns
    ]
    return np.any(found, 0) if found else np.zeros(len(section["partner"]), dtype=bool)


def _told(section: data.Section, reads: Sequence[Read], a: int, b: int, view: View) -> dict[str, list[str]]:
    """What is true and was read of images number a and b, and of both mixtures; a row a task and readout."""
    units = {task.name: task.unit for task in view.header.tasks}
    heads = ("task", "read by", "anchors A, patches B", "anchors B, patches A", "A is", "B is", "from A", "from B")
    columns: dict[str, list[str]] = {head: [] for head in heads}
    arrays = [section[f"read_{name}"] for name in ("true", "unmixed", "swapped")]
    for read in reads:
        true, alone, mixed = (values[:, read.columns] for values in arrays)
        said = [
            _text(read, mixed[first]) + _whose(read, mixed[first], true[first], true[second], letters)
            for first, second, letters in ((a, b, "AB"), (b, a, "BA"))
        ]
        said += [_text(read, values) for values in (true[a], true[b], alone[a], alone[b])]
        task = f"{read.task}, {units[read.task]}" if read.kind in NUMERIC and units.get(read.task) else read.task
        for head, cell in zip(heads, (task, f"{read.readout}s", *said), strict=True):
            columns[head].append(cell)
    return columns


def _text(read: Read, values: np.ndarray) -> str:
    if not np.isfinite(values).any():
        return "unknown"
    if read.kind == "multilabel":
        return ", ".join(name for name, value in zip(read.names, values, strict=True) if value == 1) or "none"
    if read.kind in NUMERIC:
        return f"{float(values[0]):.3g}"
    return read.names[int(values[0])]


def _whose(read: Read, said: np.ndarray, anchors: np.ndarray, patches: np.ndarray, letters: str) -> str:
    """Whose label it is, in brackets; of lists, how many of the labels that differ are whose."""
    stacked = np.stack([anchors, patches])
    found = [
        int(causes.follows(np.array([value, np.nan]), stacked[:, at], np.array([1, -1]), read.kind, read.period)[0])
        for at, value in enumerate(said)
    ]
    told = [whom for whom in found if whom >= 0]
    if not told:
        return ""
    if read.kind == "multilabel":
        return f" ({letters[0]}: {told.count(0)}, {letters[1]}: {told.count(1)} of {len(told)})"
    whom = "neither" if told[0] == 2 else letters[told[0]]
    return f" (nearer {whom})" if read.kind in NUMERIC else f" ({whom})"
