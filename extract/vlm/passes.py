"""`<voco>` run many times over keys and values that are computed once, and the texts that read each of these `<voco>`s.

Knows an HTCVLM and tensors. Does not know which tokens are worth closing, runs or files.

Closing a key in the `<voco>` row is editing the attention mask there. Under the star mask nobody else reads a hybrid
token, so this removes it; in the topologies `causal` and `full` it cuts the edge from the token to `<voco>`, and what
other tokens have read of it stays.

Suffixes: B images, V variants of `<voco>`, X keys before `<voco>` (prefix and hybrid), S = X + 1, L layers, H heads,
K key-value heads, G = H / K, D width of a head, d width, T text tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaModel

from htc_probe.extract.errors import UserError
from htc_probe.extract.vlm.model import HTCVLM
from htc_probe.extract.vlm.star import heads, rotate, star_mask


class Keys(NamedTuple):
    """What `<voco>` may read: one tensor a layer, each (B, K, X, D); keys are rotated to their positions."""

    keys: list[Tensor]
    values: list[Tensor]


class Passes(NamedTuple):
    """V `<voco>`s of B images."""

    hidden: Tensor
    """(B, V, L+1, d): 0 is the embedding, the last is after the final norm."""
    keys: list[Tensor]
    """(B, V, K, D) a layer, what text reads of it; V is 1 in layers where all variants are still the same."""
    values: list[Tensor]
    rows: list[Tensor]
    """(B, V, H, S) float32 a layer, where it looked; empty unless asked for."""


class Shared(NamedTuple):
    """All that the variants of an image have in common."""

    before: Keys
    base: Passes
    """`<voco>` as it is, V = 1, with its rows."""
    cos: Tensor
    """(1, 1, D), the rotation of `<voco>`'s position."""
    sin: Tensor


_NUMBERS = 2**27  # of the keys and values of the images of one batch


def batches(model: HTCVLM, images: int) -> Iterator[np.ndarray]:
    """Indices of the images that go together, 8 at most: fewer where their keys and values are large."""
    layers = _layers(model.language_model.model)
    width = layers[0].self_attn.k_proj.weight.shape[0]
    size = min(8, max(1, _NUMBERS // (2 * len(layers) * model.config.sequence * width)))
    for start in range(0, images, size):
        yield np.arange(start, min(start + size, images))


def share(model: HTCVLM, hybrid: Tensor, prefix: Tensor | None = None) -> Shared:
    """The base pass over `hybrid` (B, N, d) and the `prefix` (B, P, d), as `HTCVLM.before_voco` gives them.

    Raises UserError for an uncompressed model.
    """
    prefix = hybrid[:, :0] if prefix is None else prefix
    topology = model.config.topology
    if topology == "uncompressed":
        raise UserError(
            "the text of an uncompressed model reads the image itself, so what it says hangs on more than <voco>; use "
            "a model of the topology star, causal or full"
        )
    llama = model.language_model.model
    if topology == "star":
        before = tokens_alone(model, hybrid, first=prefix.shape[1])[0]
        if prefix.shape[1]:
            before = _after(_stock_keys(llama, prefix, star_mask(prefix.shape[1] - 1, 0, dtype=prefix.dtype)), before)
    else:
        whole = torch.cat([prefix, hybrid, model.voco.expand(len(hybrid), 1, -1)], 1)
        mask = star_mask(prefix.shape[1], hybrid.shape[1], topology=topology, dtype=hybrid.dtype)
        cached = _stock_keys(llama, whole, mask)
        before = Keys(*([t[:, :, :-1] for t in part] for part in cached))
    return base_pass(model, before, len(hybrid))


def base_pass(model: HTCVLM, before: Keys, images: int, shifts: Sequence[Tensor] = ()) -> Shared:
    """`<voco>` over these keys and values of B images. `shifts`: (B, X) a layer, added to the scores of all heads: with
    log g, a key has g times its weight.
    """
    llama, voco = model.language_model.model, model.voco.expand(images, 1, -1)
    position = before.keys[0].shape[2]
    cos, sin = _rotation(llama, voco, torch.tensor([position], device=voco.device))
    nothing = torch.zeros(1, 1, position, dtype=torch.bool, device=voco.device)
    embedded = Shared(before, Passes(voco[:, :, None], [], [], []), cos, sin)
    return embedded._replace(base=run(model, embedded, nothing, stop=0, rows=True, shifts=shifts))


def tokens_alone(model: HTCVLM, x: Tensor, *, first: int) -> tuple[Keys, list[Tensor]]:
    """Keys and values of tokens (B, N, d) at positions from `first` on that see themselves alone, and their states
    (B, N, d) before every layer.
    """
    llama = model.language_model.model
    cos, sin = _rotation(llama, x, torch.arange(first, first + x.shape[1], device=x.device))
    cached, states = Keys([], []), []
    for number, layer in enumerate(_layers(llama)):
        attn, xn = layer.self_attn, layer.input_layernorm(x)
        states.append(x)
        value = attn.v_proj(xn)
        cached.keys.append(rotate(heads(attn.k_proj(xn), attn.head_dim), cos, sin))
        cached.values.append(heads(value, attn.head_dim))
        if number < len(llama.layers) - 1:
            groups = attn.num_key_value_groups
            if groups > 1:
                value = cached.values[-1].repeat_interleave(groups, 1).transpose(1, 2).flatten(2)
            x = x + attn.o_proj(value)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
    return cached, states


def run(
    model: HTCVLM,
    shared: Shared,
    closed: Tensor,
    *,
    instead: Keys | None = None,
    start: int = 0,
    stop: int | None = None,
    rows: bool = False,
    shifts: Sequence[Tensor] = (),
) -> Passes:
    """`<voco>` without the keys in `closed`, (B or 1, V, X) bool, in the layers `start` to `stop` (excluded; all).

    Before `start` it is as in the base pass; from `stop` on it sees everything again. `instead`: these keys stand in
    for the closed ones (B or 1 images). Its own key is always open. `shifts`: see `base_pass`.
    """
    llama = model.language_model.model
    stop = len(llama.layers) if stop is None else stop
    # Until the first layer with something closed, z, its query and its scores are those of one variant: V is 1 there
    # and grows by broadcasting.
    z = shared.base.hidden[:, :, start]
    hidden = [shared.base.hidden[:, :, layer] for layer in range(start + 1)]
    passes = Passes(z, shared.base.keys[:start], shared.base.values[:start], shared.base.rows[:start] if rows else [])
    for number, layer in enumerate(_layers(llama)[start:], start):
        attn, zn = layer.self_attn, layer.input_layernorm(z)
        q = rotate(heads(attn.q_proj(zn), attn.head_dim), shared.cos, shared.sin)  # (B, H, V, D)
        key = rotate(heads(attn.k_proj(zn), attn.head_dim), shared.cos, shared.sin)  # (B, K, V, D)
        value = heads(attn.v_proj(zn), attn.head_dim)
        q = q.unflatten(1, (key.shape[1], -1))  # (B, K, G, V, D)
        now = closed[:, None, None] if number < stop else None  # (B, 1, 1, V, X)
        scores = _over(q, shared.before.keys[number].transpose(2, 3))
        if now is not None:
            stand_in = -torch.inf if instead is None else _over(q, instead.keys[number].transpose(2, 3))
            scores = torch.where(now, stand_in, scores)
        own = (q * key[:, :, None]).sum(-1, keepdim=True).expand(*scores.shape[:-1], 1)
        if shifts:
            scores = scores + shifts[number][:, None, None, None] / attn.scaling
        weights = (torch.cat([scores, own], -1) * attn.scaling).softmax(-1, dtype=torch.float32)
        if rows:
            passes.rows.append(weights.flatten(1, 2).transpose(1, 2))
        weights = weights.to(z.dtype)
        looked = weights[..., :-1]
        if now is None or instead is None:
            seen = _over(looked, shared.before.values[number])
        else:
            seen = _over(looked.masked_fill(now, 0), shared.before.values[number])
            seen = seen + _over(looked.masked_fill(~now, 0), instead.values[number])
        seen = seen + weights[..., -1:] * value[:, :, None]
        z = z + attn.o_proj(seen.flatten(1, 2).transpose(1, 2).flatten(2))
        z = z + layer.mlp(layer.post_attention_layernorm(z))
        hidden.append(z)
        passes.keys.append(key.transpose(1, 2))
        passes.values.append(value.transpose(1, 2))
    hidden[-1] = llama.norm(z)
    variants = max(z.shape[1], closed.shape[1])
    return passes._replace(hidden=torch.stack([h.expand(-1, variants, -1) for h in hidden], 2))


def log_probabilities(model: HTCVLM, passes: Passes, ids: Tensor, labels: Tensor, *, position: int) -> Tensor:
    """(B, V) log-probability in nats of the labelled tokens of texts `ids` (B, T), each read behind every variant.

    `labels` (B, T) are -100 but at the tokens to predict, which stand at their own place; NaN where a text has none.
    `position`: of the first text token, S. Equal to `HTCVLM.read` behind each variant. What variants share is computed
    once: their first layer, and the queries, keys and values of the second; the last layer runs where something is
    predicted.
    """
    where = (labels != -100).any(0).nonzero()[:, 0]
    variants = passes.hidden.shape[1]
    if not len(where):
        return passes.hidden.new_full((len(ids), variants), torch.nan, dtype=torch.float32)
    first, stop = int(where[0]) - 1, int(where[-1])
    h, _ = text_states(model, passes, ids[:, :stop], first=first, position=position)
    told = model.language_model.lm_head(h).float().log_softmax(-1)  # (B, V, stop - first, vocabulary)
    wanted = labels[:, first + 1 : stop + 1]
    told = told.gather(-1, wanted.clamp(min=0)[:, None, :, None].expand(-1, told.shape[1], -1, -1))[..., 0]
    total = told.masked_fill((wanted == -100)[:, None], 0).sum(-1)
    return total.masked_fill((wanted == -100).all(1)[:, None], torch.nan).expand(-1, variants)


def text_states(
    model: HTCVLM, passes: Passes, ids: Tensor, *, first: int, position: int
) -> tuple[Tensor, list[Tensor]]:
    """States after the final norm of texts (B, T) from token `first` on, (B, V, T - first, d), and by layer the
    attention to `<voco>` of all text tokens that ran there, (B, V, H, T, 1). V is 1 while all variants are the same.
    """
    llama = model.language_model.model
    h = llama.embed_tokens(ids)[:, None]
    cos, sin = _rotation(llama, h[:, 0], torch.arange(position, position + ids.shape[1], device=ids.device))
    hidden_from = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).triu(1)
    looks = []
    for number, layer in enumerate(_layers(llama)):
        attn, hn = layer.self_attn, layer.input_layernorm(h)
        low = first if number == len(llama.layers) - 1 else 0  # nothing reads the others after the last layer
        K, groups = passes.keys[number].shape[2], attn.num_key_value_groups
        q = rotate(heads(attn.q_proj(hn[:, :, low:]), attn.head_dim), cos[:, low:], sin[:, low:])
        k = rotate(heads(attn.k_proj(hn), attn.head_dim), cos, sin)
        v = heads(attn.v_proj(hn), attn.head_dim)
        q = q.unflatten(2, (K, groups)).flatten(3, 4)  # (B, V, K, G * T, D)
        own = q @ passes.keys[number][..., None]
        among = (q @ k.transpose(-1, -2)).unflatten(3, (groups, -1))
        among = among.masked_fill(hidden_from[low:], -torch.inf).flatten(3, 4)
        among = among.expand(-1, own.shape[1], -1, -1, -1)
        weights = (torch.cat([own, among], -1) * attn.scaling).softmax(-1, dtype=torch.float32)
        looks.append(weights[..., :1].unflatten(3, (groups, -1)).flatten(2, 3))
        weights = weights.to(h.dtype)
        seen = weights[..., 1:] @ v + weights[..., :1] * passes.values[number][..., None, :]
        seen = seen.unflatten(3, (groups, -1)).flatten(2, 3).transpose(2, 3).flatten(3)  # (B, V, T, H * D)
        h = h[:, :, low:] + attn.o_proj(seen)
        h = h + layer.mlp(layer.post_attention_layernorm(h))
    return llama.norm(h), looks


def _over(left: Tensor, right: Tensor) -> Tensor:
    """(B, K, G, V, a) times (B or 1, K, a, b), as one product a key head."""
    groups = left.shape[2]
    return (left.flatten(2, 3) @ right).unflatten(2, (groups, -1))


def _stock_keys(llama: LlamaModel, x: Tensor, mask: Tensor) -> Keys:
    """Keys and values that the stock model caches for tokens (B, X, d) under a float mask."""
    cache = DynamicCache()
    llama(
        inputs_embeds=x,
        attention_mask=mask.to(x.device).expand(len(x), -1, -1, -1),
        position_ids=torch.arange(x.shape[1], device=x.device)[None],
        past_key_values=cache,
        use_cache=True,
    )
    keys, values, *_ = zip(*cast(Iterable[Any], cache), strict=True)
    return Keys(list(keys), list(values))


def _after(first: Keys, then: Keys) -> Keys:
    return Keys(*([torch.cat(pair, 2) for pair in zip(*parts, strict=True)] for parts in zip(first, then, strict=True)))


def _layers(llama: LlamaModel) -> Sequence[Any]:
    return cast(Sequence[Any], llama.layers)


def _rotation(llama: LlamaModel, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, (1, T, D) each."""
    return llama.rotary_emb(like, positions[None])
