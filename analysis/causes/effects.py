"""Arithmetic on effects of knock-outs: on probes, ranks, Shapley values, multiples of an even part.

Knows arrays and the weights of probes; not models, runs, files or figures, and imports no torch.

Legend: B images, V variants, L layers, T hybrid tokens (anchors and patches), d width, Q questions, P probes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.special import comb
from scipy.stats import rankdata

from htc_probe.analysis.attention.rows import mean_of_read_layers
from htc_probe.probes.files.weights import Key, Probe
from htc_probe.probes.inputs import circular


def probes_of_voco(probes: Mapping[Key, Probe] | None, layer: int, width: int) -> dict[str, Probe]:
    """The probes of z_voco (`width` numbers) at `layer`, by task."""
    return {
        task: probe
        for (task, *place), probe in (probes or {}).items()
        if place == ["z_voco", layer] and len(probe.weights) == width
    }


def probe_changes(probe: Probe, z: np.ndarray, base: np.ndarray) -> np.ndarray:
    """(B, V) how what a probe says of z (B, V, d) differs from what it says of `base` (B, d): the log-probability of
    what it predicted from `base`, nats, mean over the classes of multilabel; for numbers the prediction, in its unit
    (the short way round of a circular value).
    """
    told = probe.logits(z.reshape(-1, z.shape[-1])).reshape(*z.shape[:2], -1)
    before = probe.logits(base)[:, None]
    if probe.kind == "number":
        return (told - before)[..., 0]
    if probe.kind == "circular":
        now, was = (circular.values_of(points, probe.period) for points in (told, before))
        return circular.difference(now, was, probe.period)
    if probe.kind == "multilabel" or told.shape[-1] == 1:
        sign = np.where(before > 0, 1, -1)
        return (np.logaddexp(0, -sign * before) - np.logaddexp(0, -sign * told)).mean(-1)
    predicted = before.argmax(-1)[..., None]
    log_now, log_before = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in (told, before))
    now = np.take_along_axis(log_now, np.broadcast_to(predicted, (*told.shape[:2], 1)), -1)
    return (now - np.take_along_axis(log_before, predicted, -1))[..., 0]


def coalitions(players: int) -> np.ndarray:
    """(2^players, players) bool: who is in each; the first is nobody, the last everybody."""
    return np.arange(2**players)[:, None] >> np.arange(players) & 1 == 1


def shapley(worth: np.ndarray) -> np.ndarray:
    """Exact Shapley values (..., players) of what all `coalitions` are worth (..., 2^players): what a player adds, the
    mean over all orders in which players may join. They sum to what everybody is worth more than nobody.
    """
    players = worth.shape[-1].bit_length() - 1
    members = coalitions(players)
    size = members.sum(1)[:, None]
    joining, staying = (1 / (players * np.maximum(comb(players - 1, before), 1)) for before in (size - 1, size))
    return worth @ np.where(members, joining, -staying)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's correlation along the last axis of arrays that broadcast; NaN where one is constant or has a NaN."""
    ranks = [rankdata(values, axis=-1) for values in (one, other)]
    ranks = [values - values.mean(-1, keepdims=True) for values in ranks]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ranks[0] * ranks[1]).sum(-1) / np.sqrt((ranks[0] ** 2).sum(-1) * (ranks[1] ** 2).sum(-1))


class AttentionRanks(NamedTuple):
    """How well kinds of attention rank the sizes of effects over an image's tokens, Spearman."""

    window: np.ndarray
    """(B, kinds, L): each layer's attention, with what closing a token in that layer only does."""
    question: np.ndarray | None
    """(B, kinds, Q): the mean over the layers that text reads, with the effects on answers, which hang on no other."""
    probe: np.ndarray | None
    """(B, kinds, P): the mean over layers, with the effects on what probes read."""


def ranks_of_attention(
    attention: np.ndarray, windows: np.ndarray, answers: np.ndarray | None, probes: np.ndarray | None
) -> AttentionRanks:
    """Of attention (B, kinds, L, T); effects: `windows` (B, L, T), on `answers` (B, T, Q), on `probes` (B, T, P)."""

    def ranks(mean: np.ndarray, effects: np.ndarray | None) -> np.ndarray | None:
        if effects is None:
            return None
        return rank_correlation(mean[:, :, None], np.abs(np.moveaxis(effects, -1, 1))[:, None])

    by_layer = rank_correlation(attention, np.abs(windows)[:, None])
    return AttentionRanks(by_layer, ranks(mean_of_read_layers(attention), answers), ranks(attention.mean(2), probes))


def times_even(values_T: np.ndarray) -> np.ndarray:
    """Each token's part of the sum of sizes, over 1/T; the sign stays. 1 is an even part; all 0 where nothing is."""
    total = np.abs(values_T).sum()
    return values_T * (len(values_T) / total) if total > 0 else np.zeros_like(values_T)
