"""What each token does to `<voco>`, exactly: it is taken away, and everything after it computed again.

Knows an HTCVLM, runs and the probes' weights. Does not know figures or result files. `analysis.passes` has the
arithmetic: keys and values of the other tokens are shared, so that taking away each token in turn is one batch of
single-token passes.

zero        the token's key is closed to `<voco>`, in all layers or in a window of them
mean        its embedding is the mean of that place over the sample, and its own path is computed again
resampled   its embedding is that of the same place in another image of the sample

The last two need a token whose path is its own, the star topology. In `causal` and `full`, closing a key cuts what
`<voco>` reads of the token; what other tokens have read of it stays. In bfloat16, changes of z_voco below some 0.005
are rounding.

Legend: N images, B of a batch, L layers, V variants, T hybrid tokens (anchors and patches), X keys before `<voco>`,
d width, Q questions, P probes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from scipy.special import comb
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from htc_probe.analysis.attention import updates
from htc_probe.analysis.attention.rows import mean_of_read_layers
from htc_probe.analysis.sample import Sample, Texts, take
from htc_probe.analysis.stats.draws import intervals_of_means
from htc_probe.extract.store import NUMERIC, Run
from htc_probe.extract.vlm import passes
from htc_probe.extract.vlm.model import HTCVLM
from htc_probe.extract.vlm.passes import Keys, Passes, Shared
from htc_probe.probes.files.weights import Key, Probe
from htc_probe.probes.inputs import circular
from htc_probe.probes.scores.intervals import mean_known

_NUMBERS = 2**25  # of the largest tensors of one chunk of variants


class Effects(NamedTuple):
    """What V variants of `<voco>` are beside the base pass, of B images."""

    cosine: Tensor
    """(B, V, L+1) between z_voco and what it was."""
    change: Tensor
    """(B, V, L+1), length of the difference over that of what it was."""
    answers: Tensor
    """(B, V, Q), true answer's log-probability less what it was, nats; NaN without an answer. Q is 0 without texts."""
    z: Tensor
    """(B, V, d), z_voco at the last layer."""


class Gradients(NamedTuple):
    """Of B images and all n tokens between prefix and `<voco>`."""

    gate: Tensor
    """(B, L, n): the slope along a weight of the token's key in one layer's attention, 1 as it is and 0 when it is
    closed: the first-order estimate of what closing it takes away."""
    times_input: Tensor | None
    """(B, L, n): gradient at the token's state before a layer times that state, the usual attribution; star only. The
    norm in front of keys and values hides how long a state is, so that this sees only how later layers turn the state,
    and is rounding from the last layer but one on."""


@torch.inference_mode()
def knock_out(
    model: HTCVLM,
    shared: Shared,
    closed: Tensor,
    *,
    texts: Texts | None = None,
    base_answers: Tensor | None = None,
    instead: Keys | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Effects:
    """The effects of closing the keys `closed` (B or 1, V, X), see `passes.run`, and on the answers of `texts` (of
    these B images). `base_answers`: `answers_of` the base pass, where it is known.
    """
    base = shared.base.hidden.float()
    if texts is not None and base_answers is None:
        base_answers = answers_of(model, shared, shared.base, texts)
    found = []
    for part in closed.split(_chunk(model, shared, texts), 1):
        out = passes.run(model.language_model.model, shared, part, instead=instead, start=start, stop=stop)
        hidden = out.hidden.float()
        answers = hidden.new_zeros(*hidden.shape[:2], 0)
        if texts is not None:
            answers = answers_of(model, shared, out, texts) - cast(Tensor, base_answers)
        change = (hidden - base).norm(dim=-1) / base.norm(dim=-1)
        found.append(Effects(F.cosine_similarity(hidden, base, -1), change, answers, out.hidden[:, :, -1]))
    return Effects(*(torch.cat(parts, 1) for parts in zip(*found, strict=True)))


def answers_of(model: HTCVLM, shared: Shared, out: Passes, texts: Texts) -> Tensor:
    """(B, V, Q) log-probability, in nats, of the true answers with their end, read behind each variant."""
    position = shared.base.rows[0].shape[-1]
    columns = [
        passes.log_probabilities(model, out, texts.ids[:, q], texts.labels[:, q], position=position)
        for q in range(len(texts.names))
    ]
    return torch.stack(columns, -1)


def probe_changes(probe: Probe, z: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How a probe's predictions from z (B, V, d) differ from those from `base` (B, d), both (B, V).

    First the share that flips: 0 or 1 for classes, of the classes for multilabel, NaN for numbers. Then the change of
    the log-probability of what it predicted from `base`, nats, mean over the classes of multilabel; for numbers, of
    the prediction, in its unit (the short way round of a circular value).
    """
    told = probe.logits(z.reshape(-1, z.shape[-1])).reshape(*z.shape[:2], -1)
    before = probe.logits(base)[:, None]
    if probe.kind == "number":
        return np.full(z.shape[:2], np.nan), (told - before)[..., 0]
    if probe.kind == "circular":
        now, was = (circular.values_of(points, probe.period) for points in (told, before))
        return np.full(z.shape[:2], np.nan), circular.difference(now, was, probe.period)
    if probe.kind == "multilabel" or told.shape[-1] == 1:
        sign = np.where(before > 0, 1, -1)
        return ((told > 0) != (before > 0)).mean(-1), (
            np.logaddexp(0, -sign * before) - np.logaddexp(0, -sign * told)
        ).mean(-1)
    at = before.argmax(-1)[..., None]
    log_now, log_before = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in (told, before))
    change = np.take_along_axis(log_now, np.broadcast_to(at, (*told.shape[:2], 1)), -1)
    return (told.argmax(-1) != at[..., 0]).astype(float), (change - np.take_along_axis(log_before, at, -1))[..., 0]


def stand_ins(model: HTCVLM, shared: Shared, hybrid: Tensor) -> Keys:
    """Keys and values of other tokens (B or 1, n, d) in the places of the hybrid ones; star only."""
    if model.config.topology != "star":
        raise ValueError(f"in a {model.config.topology} model tokens have no path of their own to compute again")
    prefixed = shared.before.keys[0].shape[2] - hybrid.shape[1]
    other, _ = passes.tokens_alone(model.language_model.model, hybrid, first=prefixed)
    return _in_places(shared.before, other, prefixed)


def gradients(model: HTCVLM, hybrid: Tensor, prefix: Tensor, texts: Texts) -> Gradients:
    """First-order estimates for the mean log-probability of the true answers, nats.

    Text reads what enters the last layer, not what leaves it, so that its answers have no gradient there: 0.
    """
    star = model.config.topology == "star"
    with torch.inference_mode(False), torch.enable_grad():
        x, first = hybrid.clone(), prefix.clone()
        with torch.no_grad():
            before = passes.share(model, x, first).before
        states: list[Tensor] = []
        if star:
            own, states = passes.tokens_alone(model.language_model.model, x.requires_grad_(), first=first.shape[1])
            before = _in_places(before, own, first.shape[1])
        shape = before.keys[0].shape
        gates = [x.new_zeros(len(x), shape[2], requires_grad=True) for _ in before.keys]
        shared = passes.base_pass(model, before, len(x), gates)
        texts = Texts(texts.names, texts.ids.clone(), texts.labels.clone())
        target = answers_of(model, shared, shared.base, texts)[:, 0].nanmean(-1)
        found = torch.autograd.grad(target.sum(), [*gates, *states], materialize_grads=True)
    gate = torch.stack(found[: len(gates)], 1)[..., first.shape[1] :].float()
    pairs = zip(found[len(gates) :], states, strict=True)
    products = [(slope.float() * state.detach().float()).sum(-1) for slope, state in pairs]
    return Gradients(gate, torch.stack(products, 1) if star else None)


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


def ranks_of_attention(
    attention: np.ndarray, windows: np.ndarray, effects: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """How well kinds of attention (B, kinds, L, T) rank the sizes of effects over an image's tokens, Spearman.

    `window_rank` (B, kinds, L): each layer's attention with `windows` (B, L, T), what closing a token in that layer
    only does. Then, by the names of `effects` (B, T, K), (B, kinds, K): the mean over layers with each of these; over
    those that text reads for `question_rank`, as what it says hangs on no other.
    """
    yield "window_rank", rank_correlation(attention, np.abs(windows)[:, None])
    for name, values in effects.items():
        mean = mean_of_read_layers(attention) if name == "question_rank" else attention.mean(2)
        yield name, rank_correlation(mean[:, :, None], np.abs(np.moveaxis(values, -1, 1))[:, None])


# ---- the section


class _Places(NamedTuple):
    """Which keys are what, as indices into the X keys before `<voco>`."""

    tokens: np.ndarray
    """Anchors and patches, in the order of the row."""
    anchors: np.ndarray
    patches: np.ndarray
    players: dict[str, np.ndarray]
    """Each anchor, or four parts of them where there are more, and the patches of each quadrant."""
    keys: int
    """X."""


def analyse(
    model: HTCVLM,
    run: Run,
    *,
    limit: int = 200,
    probes: Mapping[Key, Probe] | None = None,
    seed: int = 0,
    draws: int = 8,
    donors: int = 2,
    on_images: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """The section `knockouts`, over `limit` images of the run; `on_images` is told how many are done.

    `draws` of random patches and `donors` for resampling, per image.

    images, groups: lists of N. token_role (T,), token_row, token_col: the hybrid tokens. questions: list of Q.
    Leave-one-out: loo_cosine, loo_change (N, T, L+1) and loo_answers (N, T, Q), see `Effects`; base_answers (N, Q);
    probes (list of P tasks), loo_probe_flips and loo_probe_changes (N, T, P), see `probe_changes`, for the probes of
    z_voco at the last layer. window_change (N, L, T): of the last layer, each token closed in one decoder layer only.
    mean_loo_anchor_change, mean_loo_patch_change: means over such tokens, last layer; *_answers (Q).
    Groups: group_names (G), group_modes (M), group_cosine, group_change (N, M, G) at the last layer, group_answers
    (N, M, G, Q), over draws and donors; mean_group_cosine, mean_group_change (M, G), mean_group_answers (M, G, Q),
    mean_group_answer (M, G) over questions too. NaN where a mode does not exist for the topology or the sample.
    group_size: tokens in a random and in the attended group, the latter by the mean attention of the layers that text
    reads. group_window_change (N, L, 2): anchors and patches, closed
    in one layer only; group_window_answers (N, L, 2), mean over questions: 0 in the last layer, which no text reads.
    Shapley: shapley_players, shapley_answers (N, players; nats, mean over questions) and shapley_cosine, what each adds
    to the answers and to z_voco's cosine with itself, exactly: all coalitions are run.
    Ranks: rank_predictors (attention; attention x value x output; sizes of `Gradients`, with answers), rank_effects (z,
    answers), rank (N, predictors, effects, L+1): Spearman over the T tokens with the size of the effect, the last with
    the mean over layers as predictor: over all of them for z, over those that text reads for answers; NaN where a
    predictor is constant, as gradients at the last layer are. Of the first two predictors also, see
    `ranks_of_attention`: window_rank (N, 2, L) with window_change; question_rank (N, 2, Q) with loo_answers; probe_rank
    (N, 2, P+1) with loo_probe_changes, the last with their mean over the probes of classes and labels, NaN where all
    are of numbers.
    mean_X are means of X over images; all come with _lower and _upper, 95 % intervals over groups of images. What is
    about answers is missing where the data ask nothing, and what is about probes without probes.
    """
    taken = take(model, run, limit, seed)
    places = _places(model)
    readers = _readers(model, probes or {})
    rng = np.random.default_rng(seed)
    mean = taken.hybrid.float().mean(0, keepdim=True).to(taken.hybrid.dtype)
    shifts = rng.choice(np.arange(1, len(taken.ids)), min(donors, len(taken.ids) - 1), replace=False)
    found: dict[str, list[np.ndarray]] = {}
    for images in passes.batches(model, len(taken.ids)):
        others = [taken.hybrid[(images + shift) % len(taken.ids)].to(model.device) for shift in shifts]
        batch = _of_batch(model, taken, images, places, readers, mean.to(model.device), others, draws, rng)
        for name, values in batch:
            found.setdefault(name, []).append(np.asarray(values, dtype=np.float32))
        if on_images is not None:
            on_images(int(images[-1]) + 1)
    arrays = {name: np.concatenate(values) for name, values in found.items()}
    roles, rows, cols = model.config.keys_of_voco()
    section: dict[str, Any] = {
        "images": taken.ids,
        "groups": taken.groups,
        "token_role": [roles[at] for at in places.tokens],
        "token_row": np.array(rows, dtype=np.int32)[places.tokens],
        "token_col": np.array(cols, dtype=np.int32)[places.tokens],
        "questions": [] if taken.texts is None else list(taken.texts.names),
        "probes": [task for task, _ in readers],
        "group_names": list(_GROUPS),
        "group_modes": list(_MODES),
        "group_size": _group_size(places),
        "shapley_players": list(places.players),
        "rank_predictors": list(_PREDICTORS[: arrays["rank"].shape[1]]),
        "rank_effects": ["z", "answers"] if taken.texts is not None else ["z"],
        **arrays,
    }
    for name, values in _summaries(arrays, section["token_role"]):
        section |= intervals_of_means(values, taken.groups, seed).section(name)
    return section


_ANCHOR_PLAYERS = 4  # with four quadrants 256 coalitions, which are all run
_GROUPS = ("anchors", "random patches", "attended patches", "patches")
_MODES = ("zero", "mean", "resampled")
_PREDICTORS = ("attention", "attention x value x output", "gradient x gate", "gradient x input")


def _summaries(arrays: Mapping[str, np.ndarray], roles: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values (N, ...) of what is averaged over images."""
    with np.errstate(invalid="ignore"):
        for role in ("anchor", "patch"):
            of = np.array([name == role for name in roles])
            if of.any():
                yield f"mean_loo_{role}_change", arrays["loo_change"][:, of, -1].mean(1)
                if "loo_answers" in arrays:
                    yield f"mean_loo_{role}_answers", arrays["loo_answers"][:, of].mean(1)
        for name in ("group_cosine", "group_change", "group_window_change", "group_window_answers"):
            if name in arrays:
                yield f"mean_{name}", arrays[name]
        if "group_answers" in arrays:
            yield "mean_group_answers", arrays["group_answers"]
            yield "mean_group_answer", mean_known(arrays["group_answers"], -1)
    yield "mean_window_change", arrays["window_change"]
    for name in ("shapley_cosine", "shapley_answers", "rank", "window_rank", "question_rank", "probe_rank"):
        if name in arrays:
            yield f"mean_{name}", arrays[name]


def _of_batch(
    model: HTCVLM,
    taken: Sample,
    images: np.ndarray,
    places: _Places,
    readers: list[tuple[str, Probe]],
    mean: Tensor,
    others: list[Tensor],
    draws: int,
    rng: np.random.Generator,
) -> Iterator[tuple[str, np.ndarray]]:
    """Everything of these B images, by its name in the section."""
    device = model.device
    with torch.inference_mode():
        hybrid = taken.hybrid[images].to(device)
        prefix = taken.prefix.to(device).expand(len(images), -1, -1)
        shared = passes.share(model, hybrid, prefix)
        texts, base_answers = None, None
        if taken.texts is not None:
            texts = Texts(taken.texts.names, *(part[images].to(device) for part in taken.texts[1:]))
            base_answers = answers_of(model, shared, shared.base, texts)

        def effects(
            closed: np.ndarray, instead: Keys | None = None, asked: Texts | None = texts, **window: int
        ) -> Effects:
            where, known = torch.from_numpy(closed).to(device), base_answers
            return knock_out(model, shared, where, texts=asked, base_answers=known, instead=instead, **window)

        loo = effects(np.eye(places.keys, dtype=bool)[None, places.tokens])
        yield from (("loo_cosine", _numpy(loo.cosine)), ("loo_change", _numpy(loo.change)))
        ranked: dict[str, np.ndarray] = {}
        if base_answers is not None:
            ranked["question_rank"] = _numpy(loo.answers)
            yield from (("loo_answers", _numpy(loo.answers)), ("base_answers", _numpy(base_answers[:, 0])))
        if readers:
            z, before = _numpy(loo.z), _numpy(shared.base.hidden[:, 0, -1])
            told = [probe_changes(probe, z, before) for _, probe in readers]
            flips, changes = (np.stack(parts, -1) for parts in zip(*told, strict=True))
            among = np.where([probe.kind in NUMERIC for _, probe in readers], np.nan, changes)
            ranked["probe_rank"] = np.concatenate([changes, mean_known(among, -1)[..., None]], -1)
            yield from (("loo_probe_flips", flips), ("loo_probe_changes", changes))

        layers = range(len(shared.base.rows))
        by_role = np.stack([_closed(places, part) for part in (places.anchors, places.patches)])
        singly = np.concatenate([np.eye(places.keys, dtype=bool)[places.tokens], by_role])[None]
        windows = [effects(singly, asked=None, start=layer, stop=layer + 1).change[..., -1] for layer in layers]
        change = _numpy(torch.stack(windows, 1))
        yield from (("window_change", change[..., :-2]), ("group_window_change", change[..., -2:]))
        if texts is not None:
            answers = [effects(by_role[None], start=layer, stop=layer + 1).answers for layer in layers]
            yield "group_window_answers", mean_known(_numpy(torch.stack(answers, 1)), -1)

        yield from _of_groups(shared, places, effects, _swaps(model, shared, mean, others), draws, rng)
        yield from _of_players(places, effects, base_answers)

        predictors = [torch.stack([row[:, 0].mean(1) for row in shared.base.rows], 1)]
        predictors += [torch.stack([updates.decompose(model, shared, layer).token_norms for layer in layers], 1)]
    predicted = [_numpy(values)[..., places.tokens] for values in predictors]
    yield from ranks_of_attention(np.stack(predicted, 1), change[..., :-2], ranked)
    sizes = [_numpy(loo.change[..., -1])]
    if texts is not None:
        sizes.append(np.abs(mean_known(_numpy(loo.answers), -1)))
        slopes = gradients(model, hybrid, prefix, texts)
        for slope in (slopes.gate, slopes.times_input):
            if slope is not None:
                predicted.append(_numpy(slope)[..., places.tokens - prefix.shape[1]])
    ranks = []
    for values in predicted:
        # (B, L+1, T), for z and for the answers; slopes have a sign until they are added up.
        means = (values.mean(1), mean_of_read_layers(values))
        each = [np.abs(np.concatenate([values, mean[:, None]], 1)) for mean in means]
        ranks.append([rank_correlation(one, size[:, None]) for one, size in zip(each, sizes, strict=False)])
    yield "rank", np.moveaxis(np.array(ranks), 2, 0)


def _of_groups(
    shared: Shared,
    places: _Places,
    effects: Callable[..., Effects],
    swaps: Mapping[str, list[Keys | None]],
    draws: int,
    rng: np.random.Generator,
) -> Iterator[tuple[str, np.ndarray]]:
    looks = shared.base.rows[:-1] or shared.base.rows  # what text reads hangs on; a single layer is read by nobody
    attention = _numpy(torch.stack([row[:, 0].mean(1) for row in looks], 1).mean(1))  # (B, S)
    size = _group_size(places)
    variants = []
    for looked in attention:
        most = places.patches[np.argsort(-looked[places.patches], kind="stable")[:size]]
        random = [rng.choice(places.patches, size, replace=False) for _ in range(draws)]
        variants.append([_closed(places, part) for part in (places.anchors, *random, most, places.patches)])
    closed = np.array(variants)
    of_group = np.array([0, *[1] * draws, 2, 3])
    by_mode: dict[str, list[np.ndarray]] = {"cosine": [], "change": [], "answers": []}
    for mode in _MODES:
        results = [effects(closed, instead) for instead in swaps.get(mode, [])]
        for name, found in by_mode.items():
            if results:
                values = np.mean([_numpy(getattr(result, name)) for result in results], 0)
                values = values if name == "answers" else values[..., -1]
                found.append(np.stack([values[:, of_group == group].mean(1) for group in range(len(_GROUPS))], 1))
            else:
                found.append(np.full_like(by_mode[name][0], np.nan))
    if not len(places.anchors):  # nothing was closed
        for found in by_mode.values():
            for values in found:
                values[:, 0] = np.nan
    for name, found in by_mode.items():
        if found[0].size:  # no answers without texts
            yield f"group_{name}", np.stack(found, 1)


def _of_players(
    places: _Places, effects: Callable[..., Effects], base_answers: Tensor | None
) -> Iterator[tuple[str, np.ndarray]]:
    belongs = np.stack([_closed(places, part) for part in places.players.values()])  # (players, X)
    out = effects((~coalitions(len(belongs))[:-1] @ belongs)[None])  # everybody is the base pass
    cosine = _numpy(out.cosine[..., -1])
    yield "shapley_cosine", shapley(np.concatenate([cosine, np.ones_like(cosine[:, :1])], 1).astype(float))
    if base_answers is not None:
        gained = mean_known(_numpy(out.answers), -1)
        yield "shapley_answers", shapley(np.concatenate([gained, 0 * gained[:, :1]], 1).astype(float))


def _swaps(model: HTCVLM, shared: Shared, mean: Tensor, others: list[Tensor]) -> dict[str, list[Keys | None]]:
    """By mode, what stands in for closed keys."""
    if model.config.topology != "star":
        return {"zero": [None]}
    return {
        "zero": [None],
        "mean": [stand_ins(model, shared, mean)],
        "resampled": [stand_ins(model, shared, other) for other in others],
    }


def _in_places(old: Keys, new: Keys, prefixed: int) -> Keys:
    """The old keys and values of the prefix, and the new ones after it."""
    if not prefixed:
        return new

    def joined(olds: list[Tensor], news: list[Tensor]) -> list[Tensor]:
        return [torch.cat([one[: len(two), :, :prefixed], two], 2) for one, two in zip(olds, news, strict=True)]

    return Keys(joined(old.keys, new.keys), joined(old.values, new.values))


def _places(model: HTCVLM) -> _Places:
    roles, rows, cols = (np.array(part) for part in model.config.keys_of_voco())
    anchors, patches = np.flatnonzero(roles == "anchor"), np.flatnonzero(roles == "patch")
    middle = model.config.grid / 2
    players = {}
    for part in np.array_split(np.arange(len(anchors)), min(len(anchors), _ANCHOR_PLAYERS) or 1):
        if len(part):
            name = f"anchor {part[0] + 1}" if len(part) == 1 else f"anchors {part[0] + 1} to {part[-1] + 1}"
            players[name] = anchors[part]
    for name, low, left in (("upper left", 0, 1), ("upper right", 0, 0), ("lower left", 1, 1), ("lower right", 1, 0)):
        inside = ((rows[patches] >= middle) == low) & ((cols[patches] < middle) == left)
        if inside.any():
            players[f"{name} patches"] = patches[inside]
    return _Places(np.sort(np.concatenate([anchors, patches])), anchors, patches, players, len(roles) - 1)


def _group_size(places: _Places) -> int:
    """As many patches as there are anchors, the paper's 4 where there are none."""
    return min(len(places.anchors) or 4, len(places.patches))


def _closed(places: _Places, at: np.ndarray) -> np.ndarray:
    """(X,) bool."""
    closed = np.zeros(places.keys, dtype=bool)
    closed[at] = True
    return closed


def _readers(model: HTCVLM, probes: Mapping[Key, Probe]) -> list[tuple[str, Probe]]:
    """Task and probe of z_voco at the last layer."""
    last, width = model.config.text.num_hidden_layers, model.config.text.hidden_size
    return [
        (task, probe)
        for (task, representation, layer), probe in probes.items()
        if representation == "z_voco" and layer == last and len(probe.weights) == width
    ]


def _chunk(model: HTCVLM, shared: Shared, texts: Texts | None) -> int:
    """Variants at once."""
    config, keys = model.config.text, shared.base.rows[0].shape[-1]
    images = len(shared.base.hidden)
    each = 4 * config.num_attention_heads * keys + 4 * config.intermediate_size
    if texts is not None:
        length = texts.ids.shape[-1]
        each = max(each, length * (4 * config.hidden_size + 3 * config.intermediate_size), 6 * config.vocab_size)
    return max(1, _NUMBERS // (images * each))


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
