"""What each token does to `<voco>`, exactly: it is taken away, and everything after it computed again.

Knows an HTCVLM, runs and the probes' weights. Does not know figures or result files. Keys and values of other tokens
are shared, so that taking away each token in turn is one batch of single-token passes.

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

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from htc_probe.analysis.attention.rows import mean_of_read_layers
from htc_probe.analysis.causes import effects
from htc_probe.analysis.records import Record, fields
from htc_probe.analysis.sections import Knockouts
from htc_probe.analysis.sections.causes import KnockoutMeans, LeaveOneOut, Shapley, TokenGroups, Tokens, Windows
from htc_probe.analysis.stats.draws import intervals_of_means
from htc_probe.extract.again import Sample, Texts, take
from htc_probe.extract.store import NUMERIC, Run
from htc_probe.extract.vlm import parts, passes
from htc_probe.extract.vlm.model import HTCVLM
from htc_probe.extract.vlm.passes import Keys, Passes, Shared
from htc_probe.probes.files.weights import Key, Probe
from htc_probe.probes.scores.intervals import mean_known

_NUMBERS = 2**25
_DRAWS = 8  # of random patches, per image
_DONORS = 2  # for resampling, per image


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
    texts: Texts | None = None,
    base_answers: Tensor | None = None,
    instead: Keys | None = None,
    layers: range | None = None,
    most: int = _NUMBERS,
) -> Effects:
    """The effects of closing the keys `closed` (B or 1, V, X) in `layers`, or all, see `passes.run`, and on the answers
    of `texts` (of these B images). `base_answers`: `answers_of` the base pass, where it is known. Variants are run in
    chunks whose largest tensors have `most` numbers.
    """
    base = shared.base.hidden.float()
    if texts is not None and base_answers is None:
        base_answers = answers_of(model, shared, shared.base, texts)
    start, stop = (0, None) if layers is None else (layers.start, layers.stop)
    chunks = []
    for part in closed.split(_chunk(model, shared, texts, most), 1):
        out = passes.run(model, shared, part, instead=instead, start=start, stop=stop)
        hidden = out.hidden.float()
        answers = hidden.new_zeros(*hidden.shape[:2], 0)
        if texts is not None:
            answers = answers_of(model, shared, out, texts) - cast(Tensor, base_answers)
        change = (hidden - base).norm(dim=-1) / base.norm(dim=-1)
        chunks.append(Effects(F.cosine_similarity(hidden, base, -1), change, answers, out.hidden[:, :, -1]))
    return Effects(*(torch.cat(parts, 1) for parts in zip(*chunks, strict=True)))


def answers_of(model: HTCVLM, shared: Shared, out: Passes, texts: Texts) -> Tensor:
    """(B, V, Q) log-probability, in nats, of the true answers with their end, read behind each variant."""
    position = shared.base.rows[0].shape[-1]
    pairs = zip(texts.ids.unbind(1), texts.labels.unbind(1), strict=True)
    columns = [passes.log_probabilities(model, out, ids, labels, position=position) for ids, labels in pairs]
    return torch.stack(columns, -1)


def stand_ins(model: HTCVLM, shared: Shared, hybrid: Tensor) -> Keys:
    """Keys and values of other tokens (B or 1, n, d) in the places of the hybrid ones; star only."""
    if model.config.topology != "star":
        raise ValueError(f"in a {model.config.topology} model tokens have no path of their own to compute again")
    prefixed = shared.before.keys[0].shape[2] - hybrid.shape[1]
    other, _ = passes.tokens_alone(model, hybrid, first=prefixed)
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
            own, states = passes.tokens_alone(model, x.requires_grad_(), first=first.shape[1])
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


class _Study(NamedTuple):
    """What is knocked out, and how; the same for all batches."""

    model: HTCVLM
    sample: Sample
    places: _Places
    probes: dict[str, Probe]
    """Of z_voco at the last layer, by task."""
    mean: Tensor
    """(1, n, d) of each hybrid token over the sample."""
    shifts: np.ndarray
    """How far on in the sample the images are that tokens are taken from."""


class _Batch(NamedTuple):
    """B images, and what all their variants share."""

    study: _Study
    images: np.ndarray
    """(B,) their numbers in the sample."""
    hybrid: Tensor
    """(B, n, d)"""
    prefix: Tensor
    shared: Shared
    texts: Texts | None
    base_answers: Tensor | None
    """(B, 1, Q)"""

    def effects(
        self, closed: np.ndarray, *, instead: Keys | None = None, layers: range | None = None, asked: bool = True
    ) -> Effects:
        """See `knock_out`; not `asked`: of z_voco alone."""
        keys = torch.from_numpy(closed).to(self.hybrid.device)
        texts = self.texts if asked else None
        return knock_out(self.study.model, self.shared, keys, texts, self.base_answers, instead, layers)


class _Measured(NamedTuple):
    """What the section holds of single images, B of a batch or all N; None of what there is not."""

    loo: LeaveOneOut
    window: Windows
    group: TokenGroups
    shapley: Shapley
    rank: np.ndarray
    question_rank: np.ndarray | None
    probe_rank: np.ndarray | None


def analyse(
    model: HTCVLM,
    run: Run,
    *,
    limit: int = 200,
    probes: Mapping[Key, Probe] | None = None,
    seed: int = 0,
    on_images: Callable[[int], object] | None = None,
) -> Knockouts:
    """Over `limit` images of the run; `on_images` is told how many are done."""
    sample = take(model, run, limit, seed)
    rng = np.random.default_rng(seed)
    mean = sample.hybrid.float().mean(0, keepdim=True).to(sample.hybrid.dtype)
    shifts = rng.choice(np.arange(1, len(sample.ids)), min(_DONORS, len(sample.ids) - 1), replace=False)
    text = model.config.text
    readable = effects.probes_of_voco(probes, text.num_hidden_layers, text.hidden_size)
    study = _Study(model, sample, _places(model), readable, mean.to(model.device), shifts)
    batches = []
    for images in passes.batches(model, len(sample.ids)):
        batches.append(_measure(study, images, rng))
        if on_images is not None:
            on_images(int(images[-1]) + 1)
    measured = _Measured(*map(_joined, zip(*batches, strict=True)))
    roles, rows, cols = (np.array(values)[study.places.tokens] for values in model.config.keys_of_voco())
    return Knockouts(
        images=sample.ids,
        groups=sample.groups,
        token=Tokens(role=roles.tolist(), row=rows.astype(np.int32), col=cols.astype(np.int32)),
        questions=[] if sample.texts is None else list(sample.texts.names),
        probes=list(study.probes),
        **measured._asdict(),
        rank_predictors=list(_PREDICTORS[: measured.rank.shape[1]]),
        rank_effects=["z"] if sample.texts is None else ["z", "answers"],
        mean=_means(measured, sample.groups, seed),
    )


def _joined(batches: Sequence[Any]) -> Any:
    """Records of batches as one: arrays one after the other, float32; all else is the same in each."""
    first = batches[0]
    if isinstance(first, Record):
        names = (field.name for field in fields(type(first)))
        return type(first)(**{name: _joined([getattr(batch, name) for batch in batches]) for name in names})
    return np.concatenate(batches).astype(np.float32) if isinstance(first, np.ndarray) else first


def _means(measured: _Measured, groups: list[str], seed: int) -> KnockoutMeans:
    single: dict[str, Any] = measured._asdict()
    for part in ("window", "group", "shapley"):
        single |= {f"{part}_{name}": values for name, values in vars(single[part]).items()}
    answers = measured.group.answers
    single["group_answer"] = None if answers is None else mean_known(answers, -1)
    known = (field.name for field in fields(KnockoutMeans) if single[field.name] is not None)
    return KnockoutMeans(**{name: intervals_of_means(single[name], groups, seed) for name in known})


_ANCHOR_PLAYERS = 4  # with four quadrants 256 coalitions, which are all run
_GROUPS = ("anchors", "random patches", "attended patches", "patches")
_MODES = ("zero", "mean", "resampled")
_PREDICTORS = ("attention", "attention x value x output", "gradient x gate", "gradient x input")


@torch.inference_mode()
def _measure(study: _Study, images: np.ndarray, rng: np.random.Generator) -> _Measured:
    batch = _open(study, images)
    tokens = _closed(study.places, *study.places.tokens[:, None])
    out = batch.effects(tokens[None])
    probe_changes, changes_and_mean = _of_probes(batch, out.z)
    answers = None if batch.texts is None else _numpy(out.answers)
    loo = LeaveOneOut(change=_numpy(out.change), answers=answers, probe_changes=probe_changes)
    window_change, window_answers = _windows(batch, tokens)
    single, together = np.split(window_change, [len(tokens)], -1)
    group = _groups(batch, together, window_answers, rng)
    shapley = _shapley(batch)
    attention = torch.stack([row[:, 0].mean(1) for row in batch.shared.base.rows], 1)
    layers = range(attention.shape[1])
    weighed = torch.stack([parts.decompose(study.model, batch.shared, layer).token_norms for layer in layers], 1)
    predicted = [_numpy(values)[..., study.places.tokens] for values in (attention, weighed)]
    ranks = effects.ranks_of_attention(np.stack(predicted, 1), single, loo.answers, changes_and_mean)
    if batch.texts is not None:
        slopes = gradients(study.model, batch.hybrid, batch.prefix, batch.texts)
        of_hybrid = study.places.tokens - batch.prefix.shape[1]
        predicted += [_numpy(slope)[..., of_hybrid] for slope in slopes if slope is not None]
    rank = _ranks(predicted, loo.change[..., -1], loo.answers)
    window = Windows(change=single, rank=ranks.window)
    return _Measured(loo, window, group, shapley, rank, ranks.question, ranks.probe)


def _open(study: _Study, images: np.ndarray) -> _Batch:
    model, sample = study.model, study.sample
    hybrid = sample.hybrid[images].to(model.device)
    prefix = sample.prefix.to(model.device).expand(len(images), -1, -1)
    shared = passes.share(model, hybrid, prefix)
    if sample.texts is None:
        return _Batch(study, images, hybrid, prefix, shared, None, None)
    texts = Texts(sample.texts.names, *(part[images].to(model.device) for part in sample.texts[1:]))
    return _Batch(study, images, hybrid, prefix, shared, texts, answers_of(model, shared, shared.base, texts))


def _of_probes(batch: _Batch, z: Tensor) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Changes (B, V, P) of what probes read of variants, and (B, V, P+1) with the mean over all but numbers'."""
    probes = batch.study.probes.values()
    if not probes:
        return None, None
    base = _numpy(batch.shared.base.hidden[:, 0, -1])
    changes = np.stack([effects.probe_changes(probe, _numpy(z), base) for probe in probes], -1)
    classes = np.where([probe.kind in NUMERIC for probe in probes], np.nan, changes)
    return changes, np.concatenate([changes, mean_known(classes, -1)[..., None]], -1)


def _windows(batch: _Batch, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Of one decoder layer at a time: z_voco's change (B, L, T+2) by each of `tokens` (T, X), all anchors and all
    patches; and of the latter two, the mean over questions (B, L, 2).
    """
    places, layers = batch.study.places, [range(layer, layer + 1) for layer in range(len(batch.shared.base.rows))]
    by_role = _closed(places, places.anchors, places.patches)
    singly = np.concatenate([tokens, by_role])[None]
    windows = [batch.effects(singly, layers=layer, asked=False).change[..., -1] for layer in layers]
    change = _numpy(torch.stack(windows, 1))
    if batch.texts is None:
        return change, None
    answers = [batch.effects(by_role[None], layers=layer).answers for layer in layers]
    return change, mean_known(_numpy(torch.stack(answers, 1)), -1)


def _groups(
    batch: _Batch, window_change: np.ndarray, window_answers: np.ndarray | None, rng: np.random.Generator
) -> TokenGroups:
    places = batch.study.places
    looks = batch.shared.base.rows[:-1] or batch.shared.base.rows  # text reads no other; a single layer nobody reads
    attention = _numpy(torch.stack([row[:, 0].mean(1) for row in looks], 1).mean(1))  # (B, S)
    size = min(len(places.anchors) or 4, len(places.patches))  # as many as anchors, the paper's 4 where there are none
    variants = []
    for looked in attention:
        most = places.patches[np.argsort(-looked[places.patches], kind="stable")[:size]]
        random = [rng.choice(places.patches, size, replace=False) for _ in range(_DRAWS)]
        variants.append(_closed(places, places.anchors, *random, most, places.patches))
    closed = np.array(variants)
    group_of = np.array([0, *[1] * _DRAWS, 2, 3])
    swaps = _swaps(batch)
    change = np.full((len(closed), len(_MODES), len(_GROUPS)), np.nan)
    answers = None if batch.texts is None else np.full((*change.shape, len(batch.texts.names)), np.nan)

    def by_group(outcomes: list[Tensor]) -> np.ndarray:
        values = np.mean([_numpy(outcome) for outcome in outcomes], 0)
        return np.stack([values[:, group_of == group].mean(1) for group in range(len(_GROUPS))], 1)

    for mode, name in enumerate(_MODES):
        results = [batch.effects(closed, instead=instead) for instead in swaps.get(name, [])]
        if results:
            change[:, mode] = by_group([result.change[..., -1] for result in results])
        if results and answers is not None:
            answers[:, mode] = by_group([result.answers for result in results])
    for values in (change, answers):
        if not len(places.anchors) and values is not None:  # nothing was closed
            values[:, :, 0] = np.nan
    return TokenGroups(
        names=list(_GROUPS),
        modes=list(_MODES),
        size=size,
        change=change,
        answers=answers,
        window_change=window_change,
        window_answers=window_answers,
    )


def _shapley(batch: _Batch) -> Shapley:
    players = batch.study.places.players
    belongs = _closed(batch.study.places, *players.values())
    out = batch.effects((~effects.coalitions(len(players))[:-1] @ belongs)[None])  # everybody is the base pass
    cosine = _numpy(out.cosine[..., -1])
    gained = None if batch.texts is None else mean_known(_numpy(out.answers), -1)
    return Shapley(
        players=list(players),
        cosine=effects.shapley(np.concatenate([cosine, np.ones_like(cosine[:, :1])], 1).astype(float)),
        answers=None if gained is None else effects.shapley(np.pad(gained.astype(float), ((0, 0), (0, 1)))),
    )


def _ranks(predicted: list[np.ndarray], change: np.ndarray, answers: np.ndarray | None) -> np.ndarray:
    """(B, predictors, effects, L+1) by predictors (B, L, T) each, of effects on z_voco (B, T) and answers (B, T, Q)."""
    sizes = [change] if answers is None else [change, np.abs(mean_known(answers, -1))]
    ranks = []
    for values in predicted:
        # (B, L+1, T), for z and for the answers; slopes have a sign until they are added up.
        means = (values.mean(1), mean_of_read_layers(values))
        each = [np.abs(np.concatenate([values, mean[:, None]], 1)) for mean in means]
        ranks.append([effects.rank_correlation(v, size[:, None]) for v, size in zip(each, sizes, strict=False)])
    return np.moveaxis(np.array(ranks), 2, 0)


def _swaps(batch: _Batch) -> dict[str, list[Keys | None]]:
    """By mode, what stands in for closed keys."""
    study = batch.study
    if study.model.config.topology != "star":
        return {"zero": [None]}
    hybrid = study.sample.hybrid
    others = [hybrid[(batch.images + shift) % len(hybrid)].to(study.mean.device) for shift in study.shifts]
    return {
        "zero": [None],
        "mean": [stand_ins(study.model, batch.shared, study.mean)],
        "resampled": [stand_ins(study.model, batch.shared, other) for other in others],
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


def _closed(places: _Places, *groups: np.ndarray) -> np.ndarray:
    """(groups, X) bool: the keys of each."""
    closed = np.zeros((len(groups), places.keys), dtype=bool)
    for row, keys in zip(closed, groups, strict=True):
        row[keys] = True
    return closed


def _chunk(model: HTCVLM, shared: Shared, texts: Texts | None, most: int) -> int:
    """Variants at once."""
    config, keys = model.config.text, shared.base.rows[0].shape[-1]
    images = len(shared.base.hidden)
    each = 4 * config.num_attention_heads * keys + 4 * config.intermediate_size
    if texts is not None:
        length = texts.ids.shape[-1]
        each = max(each, length * (4 * config.hidden_size + 3 * config.intermediate_size), 6 * config.vocab_size)
    return max(1, most // (images * each))


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
