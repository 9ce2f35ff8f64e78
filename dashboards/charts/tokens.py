"""Charts of knock-outs token by token: on the image, beside attention, and which score predicts the effects.

Letters in names: N images, L layers, S keys, T hybrid tokens (anchors and patches), Q questions, P predictors.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from htc_probe.analysis import sentences
from htc_probe.analysis.attention import rows as att
from htc_probe.analysis.attention.rows import mean_of_read_layers
from htc_probe.analysis.causes.effects import times_even
from htc_probe.analysis.sections import Contributions, Knockouts
from htc_probe.analysis.stats.draws import Interval, Intervals
from htc_probe.dashboards import data, figures
from htc_probe.dashboards.charts.effects import ANSWERS, PROBES, Z, knocked, number_of, place
from htc_probe.dashboards.charts.source import Nothing, Source, ends, some, source
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import NUMERIC
from htc_probe.probes.scores.intervals import mean_known

MAPS = "effect", "attention", "norm"
"""What is laid on an image: the effects of knock-outs, attention, and value-weighted attention."""
_NAMES = {"attention x value x output": "value-weighted attention"}


def image(
    run: Path | str,
    *,
    image: int | str,
    show: str = "effect",
    on: str = Z,
    of: str | None = None,
    layer: int | None = None,
    own_scale: bool = False,
) -> go.Figure:
    """What each token has on an image of the sample.

    show: the `effect` of knocking it out, its `attention`, or `norm`, its value-weighted attention. on: the effect on
    `z_voco`, `the true answers` or `the probes`. of: the question or task; None is the mean. layer: in which alone
    tokens are knocked out. own_scale: colours up to the largest of this map, not of all three.
    """
    looked = source(run)
    knockouts, chosen = knocked(looked), effect(looked, on, of, layer)
    here = some(place(looked, knockouts, image), f"image {image} is not in the sample whose tokens were knocked out")
    if not np.isfinite(chosen.values_NT[here]).all():
        raise Nothing(f"image {image} has no label for {chosen.words}, so there is no effect to show")
    maps = {drawn.key: drawn for drawn in _maps_of(looked, knockouts, looked.sections.contributions, chosen, here)}
    if show not in MAPS:
        raise UserError(f"show={show!r} is not on images; expected one of {', '.join(MAPS)}")
    shown = some(maps.get(show), f"value-weighted attention was not computed for image {image}")
    roles, places = knockouts.token.role, (knockouts.token.row.tolist(), knockouts.token.col.tolist())
    words = f"{looked.path.name} has no patch positions, so maps cannot be drawn on the image"
    even_RC, raw_RC = (some(att.patch_map(of_T, roles, *places), words) for of_T in (shown.even_T, shown.values_T))
    anchors, drawn = att.role_mask(roles, "anchor"), [shown] if own_scale else list(maps.values())
    return figures.token_map(
        even_RC,
        shown.even_T[anchors],
        max(float(np.abs(one.even_T).max()) for one in drawn),
        title=shown.title,
        lines=list(shown.lines),
        image=data.thumbnail(looked.key, looked.row(image)),
        signed=chosen.signed,
        raw=(raw_RC, shown.values_T[anchors]),
        unit=shown.unit,
    )


def ranks(
    run: Path | str, *, on: str = Z, of: str | None = None, layer: int | None = None, image: int | str | None = None
) -> go.Figure:
    """How well each score ranks an image's tokens by the effects of knocking them out; `on`, `of` and `layer` as in
    `image`. Diamonds are those of one image.
    """
    looked = source(run)
    knockouts, chosen = knocked(looked), effect(looked, on, of, layer)
    here, found = place(looked, knockouts, image), chosen.ranks
    names = [_NAMES.get(name, name) for name in knockouts.rank_predictors[: len(found.mean_P3)]]
    own = None if here is None else found.rank_NP[here]
    known = int(np.isfinite(found.rank_NP).sum(0).max())
    where = chosen.words if layer is None else f"{chosen.words}, knock-out in layer {layer} only"
    return figures.rank_dots(names, found.mean_P3, own_K=own, effect=where, n=known)


class _Ranks(NamedTuple):
    """How well predictors rank an image's tokens by the size of an effect."""

    rank_NP: np.ndarray
    mean_P3: np.ndarray


class Effect(NamedTuple):
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


def effect(of_run: Source, on: str, of: str | None, layer: int | None) -> Effect:
    """What knocking out tokens does, see `image`."""
    knockouts = knocked(of_run)
    measured = {Z: knockouts.loo.change, ANSWERS: knockouts.loo.answers, PROBES: knockouts.loo.probe_changes}
    values = measured.get(on)
    if values is None:
        known = ", ".join(name for name, found in measured.items() if found is not None)
        raise UserError(f"the effect on {on!r} was not measured; expected one of {known}")
    if on == ANSWERS:
        return _on_answers(knockouts, -values, of)
    if on == PROBES:
        return _on_probes(of_run, knockouts, values, of)
    return _on_z(knockouts, of_run.cell(layer, None)[0])


def numbers(of: Source, probes: list[str]) -> np.ndarray:
    """(P,) bool: which probes are of numbers, whose changes have no mean with those of classes."""
    kinds = {task.name: task.kind for task in of.header.tasks}
    return np.array([kinds.get(name) in NUMERIC for name in probes])


def _on_z(knockouts: Knockouts, layer: int | None) -> Effect:
    """layer: from 0."""
    unit = "of the length of z_voco"
    if layer is None:
        ranks = _ranks(knockouts.rank, knockouts.mean.rank, knockouts.rank_effects.index("z"), -1)
        return Effect(Z, knockouts.loo.change[..., -1], unit, ranks)
    ranks = _ranks(knockouts.window.rank, knockouts.mean.window_rank, layer)
    return Effect(Z, knockouts.window.change[:, layer], unit, ranks, layer=layer)


def _on_answers(knockouts: Knockouts, loss_NTQ: np.ndarray, question: str | None) -> Effect:
    if question is None:
        ranks = _ranks(knockouts.rank, knockouts.mean.rank, knockouts.rank_effects.index("answers"), -1)
        return Effect(ANSWERS, mean_known(loss_NTQ, -1), "nats lost", ranks, read=True)
    number = number_of(question, knockouts.questions, "question")
    words = f"the true answer, {question}"
    ranks = _ranks(knockouts.question_rank, knockouts.mean.question_rank, number)
    return Effect(words, loss_NTQ[..., number], "nats lost", ranks, read=True)


def _on_probes(of: Source, knockouts: Knockouts, change_NTP: np.ndarray, probe: str | None) -> Effect:
    names, tasks = knockouts.probes, {task.name: task for task in of.header.tasks}
    is_number_P = numbers(of, names)
    number = None if probe is None else number_of(probe, names, "probe")
    ranks = _ranks(knockouts.probe_rank, knockouts.mean.probe_rank, -1 if number is None else number)
    if number is None:
        words = f"the probes of {int((~is_number_P).sum())} tasks with classes"
        return Effect(words, -change_NTP[..., ~is_number_P].mean(-1), "nats lost", ranks)
    words = f"the probe of {names[number]}"
    if is_number_P[number]:
        return Effect(words, change_NTP[..., number], f"{tasks[names[number]].unit} more", ranks)
    return Effect(words, -change_NTP[..., number], "nats lost", ranks)


def _ranks(rank_NP: np.ndarray | None, mean_P: Intervals | None, *place: int) -> _Ranks:
    """Those at a place after the axes of images and predictors."""
    assert rank_NP is not None and mean_P is not None, "ranks come with the effects that they are of"
    index: tuple[Any, ...] = (slice(None), *place)
    return _Ranks(rank_NP[:, *index], ends(mean_P)[index])


def _maps_of(
    of: Source, knockouts: Knockouts, contributions: Contributions | None, effect: Effect, here: int
) -> list[_Map]:
    """The knock-outs of this image, its attention, and what its tokens hand over; of the latter two, how they rank the
    effects, in words.
    """
    keys = np.flatnonzero(np.isin(of.shape.roles, ["anchor", "patch"]))
    ranks = [
        (f"rank correlation with the effect {rank:.2f}", f"{sentences.words(Interval(*mean))} over the sample")
        for rank, mean in zip(effect.ranks.rank_NP[here], effect.ranks.mean_P3, strict=True)
    ]
    closed = "knocked out in all layers" if effect.layer is None else f"knocked out in layer {effect.layer + 1} only"
    exact = (f"{closed} · 1 image", f"effect on {effect.words}", "exact, one token at a time")
    image = knockouts.images[here]
    row_LS = data.image_record(of.key, of.row(image)).attention.mean(1)
    layers = f"{effect.layers}, mean over heads · 1 image"
    maps = [
        _Map("effect", "Knock-out", effect.values_NT[here], effect.unit, exact),
        _Map("attention", "Attention", effect.of_layers(row_LS)[keys], "of all attention", (layers, *ranks[0])),
    ]
    if contributions is not None and image in contributions.images:
        norm_LS, unit = contributions.norm[contributions.images.index(image)], "length of the contribution"
        norm_T = effect.of_layers(norm_LS)[keys]
        maps.append(_Map("norm", "Value-weighted attention", norm_T, unit, (layers, *ranks[1])))
    return maps
