"""Charts of groups of tokens that are taken away together: what is lost, in all layers or one, and who adds what.

In all of them `on` is `z_voco` or `the true answers`, `of` the question (None is the mean), and `image` the one whose
own values are drawn beside the means, where it is in the sample. Letters in names: N images, M ways of taking away, G
groups, L layers, P players; a last axis of 3 is an estimate with its interval.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from htc_probe.analysis.sections import Knockouts
from htc_probe.dashboards import figures
from htc_probe.dashboards.charts.effects import ANSWERS, Z, knocked, number_of, place
from htc_probe.dashboards.charts.source import ends, some, source
from htc_probe.extract.errors import UserError
from htc_probe.probes.scores.intervals import mean_known

_MODES = {"zero": "knocked out", "mean": "set to the mean", "resampled": "from another image"}
_UNASKED = "the data of this run have no questions that the model answers"


def bars(run: Path | str, *, on: str = Z, of: str | None = None, image: int | str | None = None) -> go.Figure:
    """What is lost when a group is knocked out, set to its mean, or comes from another image."""
    looked, effect = source(run), _effect(run, on, of)
    knockouts = knocked(looked)
    here, size, roles = place(looked, knockouts, image), knockouts.group.size, knockouts.token.role
    names = {
        "anchors": f"all {roles.count('anchor')} anchors",
        "random patches": f"{size} random patches",
        "attended patches": f"the {size} most attended patches",
        "patches": f"all {roles.count('patch')} patches",
    }
    known = np.isfinite(effect.group_MG3[..., 0]).any(0)  # a model may have no anchors
    groups = [names.get(name, name) for name, has in zip(knockouts.group.names, known, strict=True) if has]
    modes = [_MODES.get(name, name) for name in knockouts.group.modes]
    own_MG = None if here is None else effect.group_NMG[here][:, known]
    n, told = len(knockouts.images), effect.group_MG3[:, known]
    return figures.group_bars(groups, modes, told, own_MG=own_MG, unit=effect.unit, what=effect.what, n=n)


def windows(run: Path | str, *, on: str = Z, of: str | None = None, image: int | str | None = None) -> go.Figure:
    """What is lost when all anchors, or all patches, are closed in one layer only."""
    looked, effect = source(run), _effect(run, on, of)
    knockouts = knocked(looked)
    here = place(looked, knockouts, image)
    present = [(at, role) for at, role in enumerate(("anchor", "patch")) if role in knockouts.token.role]
    lines = {role: effect.window_L23[:, at] for at, role in present}
    own = None if here is None else {role: effect.window_NL2[here][:, at] for at, role in present}
    n = len(knockouts.images)
    return figures.window_lines(lines, own_by=own, unit=effect.unit, what=effect.over, n=n)


def shapley(run: Path | str, *, on: str = Z, of: str | None = None, image: int | str | None = None) -> go.Figure:
    """How much each anchor and each quarter of the patches adds, the mean over all orders."""
    looked, effect = source(run), _effect(run, on, of)
    knockouts = knocked(looked)
    here, n = place(looked, knockouts, image), len(knockouts.images)
    own_P, told = None if here is None else effect.shapley_NP[here], {"unit": effect.worth, "what": effect.over}
    return figures.shapley_bars(knockouts.shapley.players, effect.shapley_P3, own_P=own_P, n=n, **told)


class _Effect(NamedTuple):
    """What taking groups away does to one thing, as it is drawn: above 0 something is lost, or an image's is `own`."""

    what: str
    """In words."""
    unit: str
    group_MG3: np.ndarray
    group_NMG: np.ndarray
    over: str
    """The same words where it is the mean over questions, which is all that is known of windows and players."""
    window_L23: np.ndarray
    """Of all anchors and all patches."""
    window_NL2: np.ndarray
    worth: str
    """Unit of what players add."""
    shapley_P3: np.ndarray
    shapley_NP: np.ndarray


def _on_z(knockouts: Knockouts) -> _Effect:
    return _Effect(
        what=Z,
        unit="of the length of z_voco",
        group_MG3=ends(knockouts.mean.group_change),
        group_NMG=knockouts.group.change,
        over=Z,
        window_L23=ends(knockouts.mean.group_window_change),
        window_NL2=knockouts.group.window_change,
        worth="cosine with the whole z_voco",
        shapley_P3=ends(knockouts.mean.shapley_cosine),
        shapley_NP=knockouts.shapley.cosine,
    )


def _on_answers(knockouts: Knockouts, question: str | None) -> _Effect:
    """Of one question, or the mean of all."""
    group, shapley, mean = knockouts.group, knockouts.shapley, knockouts.mean
    answers = some(group.answers, _UNASKED)
    if question is None:
        what, group_MG3, group_NMG = ANSWERS, ends(some(mean.group_answer, _UNASKED)), mean_known(answers, -1)
    else:
        number = number_of(question, knockouts.questions, "question")
        what, group_NMG = f"the true answer, {question}", answers[..., number]
        group_MG3 = ends(some(mean.group_answers, _UNASKED))[:, :, number]
    return _Effect(
        what=what,
        unit="nats lost",
        group_MG3=_lost(group_MG3),
        group_NMG=-group_NMG,
        over=f"{ANSWERS}, mean over questions",
        window_L23=_lost(ends(some(mean.group_window_answers, _UNASKED))),
        window_NL2=-some(group.window_answers, _UNASKED),
        worth="nats gained",
        shapley_P3=ends(some(mean.shapley_answers, _UNASKED)),
        shapley_NP=some(shapley.answers, _UNASKED),
    )


def _lost(change_3: np.ndarray) -> np.ndarray:
    """(..., 3) of a change, as a loss."""
    return -change_3[..., [0, 2, 1]]


def _effect(run: Path | str, on: str, of: str | None) -> _Effect:
    knockouts = knocked(source(run))
    if on not in (Z, ANSWERS):
        raise UserError(f"the effect of groups on {on!r} was not measured; expected {Z} or {ANSWERS}")
    return _on_z(knockouts) if on == Z else _on_answers(knockouts, of)
