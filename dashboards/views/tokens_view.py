"""Token by token: what knocking out each does, beside its attention and what it hands over, on the picture; and how
well these tell the effects. Lays out; draws by figures.

Letters in names: N images, L layers, S keys, T hybrid tokens (anchors and patches), Q questions, P predictors.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import streamlit as st

from htc_probe.analysis import sentences
from htc_probe.analysis.attention import rows as att
from htc_probe.analysis.attention.rows import mean_of_read_layers
from htc_probe.analysis.causes.effects import times_even
from htc_probe.analysis.sections import Contributions, Knockouts
from htc_probe.analysis.stats.draws import Interval, Intervals
from htc_probe.dashboards import data, figures
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts.chart import draw, made
from htc_probe.dashboards.parts.effects import ANSWERS, PROBES, Z, ends, select_one
from htc_probe.dashboards.views.view import View, each_image, not_analysed
from htc_probe.extract.store import NUMERIC
from htc_probe.probes.scores.intervals import mean_known

_ALL = "all layers"
_NAMES = {"attention x value x output": "value-weighted attention"}


class _Ranks(NamedTuple):
    """How well predictors rank an image's tokens by the size of an effect."""

    rank_NP: np.ndarray
    mean_P3: np.ndarray


class _Effect(NamedTuple):
    """What knocking out each token does to one thing."""

    words: str
    values_NT: np.ndarray
    """By sampled image and token; above 0 something is lost, but for numbers, which change either way."""
    unit: str
    ranks: _Ranks
    read: bool = False
    """Whether it is on what text says, which hangs on the layers whose outcome text reads: all but the last."""
    layer: int | None = None
    """The one in which tokens are closed; None: in all."""

    @property
    def signed(self) -> bool:
        return self.words != Z

    def of_layers(self, values_LT: np.ndarray) -> np.ndarray:
        """(T,) of its layer, or the mean over those that it can hang on."""
        if self.layer is not None:
            return values_LT[self.layer]
        return mean_of_read_layers(values_LT) if self.read else values_LT.mean(0)

    @property
    def layers(self) -> str:
        """What `of_layers` gives, in words."""
        if self.layer is not None:
            return f"layer {self.layer + 1}"
        return "mean over the layers that text reads, all but the last" if self.read else "mean over layers"


class _Map(NamedTuple):
    """One number a hybrid token, to be drawn on the picture."""

    key: str
    title: str
    values_T: np.ndarray
    unit: str
    lines: tuple[str, ...]

    @property
    def even_T(self) -> np.ndarray:
        return times_even(self.values_T)


@ui.fragment
def show(view: View, knockouts: Knockouts, contributions: Contributions | None, here: int | None) -> None:
    """`here`: the number in the sample of the image that is looked at."""
    effect = _choose_effect(view, knockouts)
    each_image(view, partial(_image, knockouts=knockouts, contributions=contributions, effect=effect), "tokens")
    _dots(knockouts, effect, here)
    if contributions is None:
        not_analysed(view, "Value-weighted attention is not computed yet.", "contributions")


def _image(view: View, knockouts: Knockouts, contributions: Contributions | None, effect: _Effect) -> None:
    """The maps of one image, where it is in the sample."""
    name = view.header.ids[view.selection.image]
    if name not in knockouts.images:
        if view.selection.beside:  # else it was said above
            st.info(f"This image is not in the sample of {len(knockouts.images):,} whose tokens were knocked out.")
        return
    here = knockouts.images.index(name)
    if np.isfinite(effect.values_NT[here]).all():
        maps = _maps_of(view, knockouts, contributions, effect, here)
        unmeasured = 0 if contributions is None or len(maps) > 2 else len(contributions.images)
        _maps(view, knockouts, effect, maps, unmeasured)
    else:
        st.info(f"This image has no label for {ui.plain(effect.words)}, so there is no effect to show.")


# ---- the effect that is looked at


def _choose_effect(view: View, knockouts: Knockouts) -> _Effect:
    on, of, scale = ui.side_by_side([4, 3, 3], "effect", least=260, align="bottom")
    told = "Shows the pattern of a map with small values."
    scale.toggle("Each map with its own colour scale", key="own_scale", help=told, bind="query-params")
    measured = {Z: knockouts.loo.change, ANSWERS: knockouts.loo.answers, PROBES: knockouts.loo.probe_changes}
    chosen = ui.pick("Effect on", [name for name, values in measured.items() if values is not None], "effect", place=on)
    with of:
        if chosen == ANSWERS and knockouts.loo.answers is not None:
            return _on_answers(knockouts, -knockouts.loo.answers)
        if chosen == PROBES and knockouts.loo.probe_changes is not None:
            return _on_probes(view, knockouts, knockouts.loo.probe_changes)
        return _on_z(view, knockouts)


def _on_z(view: View, knockouts: Knockouts) -> _Effect:
    options = [_ALL, *(f"layer {layer}" for layer in range(1, view.header.shape.layers + 1))]
    layer = options.index(ui.select("Knocked out in", options, "window")) - 1
    unit = "of the length of z_voco"
    if layer < 0:
        ranks = _ranks(knockouts.rank, knockouts.mean.rank, knockouts.rank_effects.index("z"), -1)
        return _Effect(Z, knockouts.loo.change[..., -1], unit, ranks)
    ranks = _ranks(knockouts.window.rank, knockouts.mean.window_rank, layer)
    return _Effect(Z, knockouts.window.change[:, layer], unit, ranks, layer=layer)


def _on_answers(knockouts: Knockouts, loss_NTQ: np.ndarray) -> _Effect:
    number = select_one("Question", knockouts.questions, "question")
    if number is None:
        ranks = _ranks(knockouts.rank, knockouts.mean.rank, knockouts.rank_effects.index("answers"), -1)
        return _Effect(ANSWERS, mean_known(loss_NTQ, -1), "nats lost", ranks, read=True)
    words = f"the true answer, {knockouts.questions[number]}"
    ranks = _ranks(knockouts.question_rank, knockouts.mean.question_rank, number)
    return _Effect(words, loss_NTQ[..., number], "nats lost", ranks, read=True)


def _on_probes(view: View, knockouts: Knockouts, change_NTP: np.ndarray) -> _Effect:
    names, tasks = knockouts.probes, {task.name: task for task in view.header.tasks}
    is_number_P = np.array([name in tasks and tasks[name].kind in NUMERIC for name in names])
    number = select_one("Probe", names, "probe", mean=not is_number_P.all())
    ranks = _ranks(knockouts.probe_rank, knockouts.mean.probe_rank, -1 if number is None else number)
    if number is None:
        words = f"the probes of {int((~is_number_P).sum())} tasks with classes"
        return _Effect(words, -change_NTP[..., ~is_number_P].mean(-1), "nats lost", ranks)
    words = f"the probe of {names[number]}"
    if is_number_P[number]:
        return _Effect(words, change_NTP[..., number], f"{tasks[names[number]].unit} more", ranks)
    return _Effect(words, -change_NTP[..., number], "nats lost", ranks)


def _ranks(rank_NP: np.ndarray | None, mean_P: Intervals | None, *place: int) -> _Ranks:
    """Those at a place after the axes of images and predictors."""
    assert rank_NP is not None, "ranks come with the effects that they are of"
    index: tuple[Any, ...] = (slice(None), *place)
    return _Ranks(rank_NP[:, *index], ends(mean_P)[index])


# ---- what is drawn


def _maps_of(
    view: View, knockouts: Knockouts, contributions: Contributions | None, effect: _Effect, here: int
) -> list[_Map]:
    """The knock-outs of this image, its attention, and what its tokens hand over; of the latter two, how they rank the
    effects, in words.
    """
    keys = np.flatnonzero(np.isin(view.header.shape.roles, ["anchor", "patch"]))
    ranks = [
        (f"rank correlation with the effect {rank:.2f}", f"{sentences.words(Interval(*mean))} over the sample")
        for rank, mean in zip(effect.ranks.rank_NP[here], effect.ranks.mean_P3, strict=True)
    ]
    closed = "knocked out in all layers" if effect.layer is None else f"knocked out in layer {effect.layer + 1} only"
    exact = (f"{closed} · 1 image", f"effect on {effect.words}", "exact, one token at a time")
    row_LS = data.image_record(view.key, view.selection.image).attention.mean(1)
    layers = f"{effect.layers}, mean over heads · 1 image"
    maps = [
        _Map("effect", "Knock-out", effect.values_NT[here], effect.unit, exact),
        _Map("attention", "Attention", effect.of_layers(row_LS)[keys], "of all attention", (layers, *ranks[0])),
    ]
    image = knockouts.images[here]
    if contributions is not None and image in contributions.images:
        norm_LS, unit = contributions.norm[contributions.images.index(image)], "length of the contribution"
        norm_T = effect.of_layers(norm_LS)[keys]
        maps.append(_Map("norm", "Value-weighted attention", norm_T, unit, (layers, *ranks[1])))
    return maps


def _maps(view: View, knockouts: Knockouts, effect: _Effect, maps: Sequence[_Map], unmeasured: int) -> None:
    """`unmeasured`: how many other images have the last of the maps, where this one has not."""
    largest = {shown.key: float(np.abs(shown.even_T).max()) for shown in maps}
    own_scale = st.session_state.get("own_scale", False)
    roles, places = knockouts.token.role, (knockouts.token.row.tolist(), knockouts.token.col.tolist())
    anchors = att.role_mask(roles, "anchor")
    thumbnail = data.image_record(view.key, view.selection.image).thumbnail
    columns = ui.side_by_side(3, "maps")
    for column, shown in zip(columns, maps, strict=False):
        even_RC, raw_RC = (att.patch_map(values_T, roles, *places) for values_T in (shown.even_T, shown.values_T))
        if even_RC is None or raw_RC is None:
            column.info("This run has no patch positions, so maps cannot be drawn on the image.")
            return
        limit, raw = largest[shown.key] if own_scale else max(largest.values()), (raw_RC, shown.values_T[anchors])
        told: dict[str, Any] = {"title": shown.title, "lines": list(shown.lines), "unit": shown.unit, "raw": raw}
        given = even_RC, shown.even_T[anchors], limit
        with column:
            figure = made(figures.token_map, *given, image=thumbnail, signed=effect.signed, **told)
            draw(figure, f"map_{shown.key}")
    if unmeasured:
        columns[2].info(f"Value-weighted attention was computed for {unmeasured:,} other images, not for this one.")
    sign = ""
    if effect.signed:
        sign = (
            " Orange: without the token there is a loss; purple: a gain (for numbers: more, less). For a knock-out in "
            "one layer only, choose z\\_voco."
        )
    scale = "each map has its own colour scale" if own_scale else "all maps share one colour scale"
    ui.how_to_read(
        f"Each map shows a token's share of the map's total, in multiples of a uniform share (1 / {len(roles)}); "
        f"{scale}.{sign} The effects of single tokens do not add up to that of knocking out all of them."
    )


def _dots(knockouts: Knockouts, effect: _Effect, here: int | None) -> None:
    ranks = effect.ranks
    names = [_NAMES.get(name, name) for name in knockouts.rank_predictors[: len(ranks.mean_P3)]]
    own = None if here is None else ranks.rank_NP[here]
    known = int(np.isfinite(ranks.rank_NP).sum(0).max())
    where = effect.words if effect.layer is None else f"{effect.words}, knock-out in layer {effect.layer + 1} only"
    draw(made(figures.rank_dots, names, ranks.mean_P3, own_K=own, effect=where, n=known), "ranks")
    gradients = " Gradients estimate the effect on the true answers to first order." if len(names) > 2 else ""
    ui.how_to_read(
        f"1: the score ({effect.layers}) ranks an image's tokens exactly by their effects; 0: it predicts nothing. "
        f"Value-weighted attention: the length of attention × value × output projection.{gradients} Dots are means "
        "over the sample, diamonds this image."
    )
