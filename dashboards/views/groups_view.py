"""Groups of tokens, taken away together: on z_voco or the true answers, in all layers or one, and who adds what.

Lays out; draws by figures. Letters in names: N images, M ways of taking away, G groups, L layers, P players; a last
axis of 3 is an estimate with its interval.
"""

from typing import Any, NamedTuple

import numpy as np

from htc_probe.analysis.sections import Knockouts
from htc_probe.dashboards import figures
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts.chart import draw, made
from htc_probe.dashboards.parts.effects import ANSWERS, Z, ends, select_one
from htc_probe.probes.scores.intervals import mean_known

_MODES = {"zero": "knocked out", "mean": "set to the mean", "resampled": "from another image"}


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
    note: str = ""
    """On windows."""


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


def _on_answers(knockouts: Knockouts, question: int | None) -> _Effect:
    """Of one question, or the mean of all."""
    group, shapley, mean = knockouts.group, knockouts.shapley, knockouts.mean
    assert group.answers is not None and group.window_answers is not None and shapley.answers is not None
    if question is None:
        what, group_MG3, group_NMG = ANSWERS, ends(mean.group_answer), mean_known(group.answers, -1)
    else:
        what, group_NMG = f"the true answer, {knockouts.questions[question]}", group.answers[..., question]
        group_MG3 = ends(mean.group_answers)[:, :, question]
    return _Effect(
        what=what,
        unit="nats lost",
        group_MG3=_lost(group_MG3),
        group_NMG=-group_NMG,
        over=f"{ANSWERS}, mean over questions",
        window_L23=_lost(ends(mean.group_window_answers)),
        window_NL2=-group.window_answers,
        worth="nats gained",
        shapley_P3=ends(mean.shapley_answers),
        shapley_NP=shapley.answers,
        note="Text reads &lt;voco&gt; as it enters the last layer, so the last layer has no effect on answers.",
    )


def _lost(change_3: np.ndarray) -> np.ndarray:
    """(..., 3) of a change, as a loss."""
    return -change_3[..., [0, 2, 1]]


@ui.fragment
def show(knockouts: Knockouts, here: int | None) -> None:
    """`here`: the number in the sample of the image that is looked at."""
    effect = _choose_effect(knockouts)
    n = len(knockouts.images)
    left, right = ui.side_by_side(2, "groups", least=380)
    with left:
        _bars(knockouts, effect, here, n)
    with right:
        roles = knockouts.token.role
        present = [(number, role) for number, role in enumerate(("anchor", "patch")) if role in roles]
        lines = {role: effect.window_L23[:, number] for number, role in present}
        own = None if here is None else {role: effect.window_NL2[here][:, number] for number, role in present}
        draw(made(figures.window_lines, lines, own_by=own, unit=effect.unit, what=effect.over, n=n), "windows")
        ui.how_to_read(f"&lt;voco&gt; cannot attend to them in this layer only. {effect.note}")
    own_P = None if here is None else effect.shapley_NP[here]
    players = knockouts.shapley.players
    told: dict[str, Any] = {"unit": effect.worth, "what": effect.over, "n": n}
    draw(made(figures.shapley_bars, players, effect.shapley_P3, own_P=own_P, **told), "shapley")
    ui.how_to_read(
        "How much each anchor and each quarter of the patches adds when they join one by one, averaged over all orders "
        "(Shapley values; exact, as all combinations were run). The bars add up to the effect of all tokens; joint "
        "effects are split evenly between them."
    )


def _choose_effect(knockouts: Knockouts) -> _Effect:
    if knockouts.group.answers is None:
        return _on_z(knockouts)
    left, right = ui.side_by_side([4, 6], "group_effect")
    chosen = ui.pick("Effect of a group on", [Z, ANSWERS], "group_effect", place=left)
    if chosen == Z:
        return _on_z(knockouts)
    with right:
        return _on_answers(knockouts, select_one("Question", knockouts.questions, "group_question"))


def _bars(knockouts: Knockouts, effect: _Effect, here: int | None, n: int) -> None:
    size, roles = knockouts.group.size, knockouts.token.role
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
    told: dict[str, Any] = {"unit": effect.unit, "what": effect.what, "n": n}
    draw(made(figures.group_bars, groups, modes, effect.group_MG3[:, known], own_MG=own_MG, **told), "groups")
    ui.how_to_read(
        "Bars: what is lost when &lt;voco&gt; cannot attend to a group, when its tokens are set to their mean over the "
        "sample, or when they come from another image. Compare the anchors with the same number of patches, at random "
        "or the most attended (in the layers that text reads). All patches have their own axis."
    )
