"""Three laws that every extraction checks on its first batch: is the recorded bottleneck really there?

Knows an HTCVLM and what it captured. Does not write anything; a broken law is an exception. The reference
is the stock model's own eager attention, run a layer at a time under the mask as a float, for one image.
"""

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb, eager_attention_forward

from htc_probe.extract.vlm import star
from htc_probe.extract.vlm.model import HTCVLM, Hybrid

_ROW_SUM_TOLERANCE = 1e-5
"""Rows are float32 whatever the model computes in."""

_PATH_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Norm of the difference over the norm, between the captured and the reference pass in the same precision."""


class InvariantError(RuntimeError):
    """The captured numbers do not come from a model whose text reads <voco> alone."""


class Measured(NamedTuple):
    """How far each law was from broken."""

    row_sum_error: float
    """Largest distance of an attention row's sum from 1."""
    text_to_hybrid: float
    """Largest attention weight from text to a hybrid (or prefix) token under the mask; 0.0."""
    path_difference: float
    """Largest relative difference between the capture and that masked reference."""
    logit_change: float
    """Largest change of a text logit when the patches change but <voco>'s keys and values do not; 0.0."""


@torch.no_grad()
def check_invariants(
    model: HTCVLM,
    pixel_values: Tensor,
    compressed: star.Compressed | None = None,
    text_ids: Tensor | None = None,
    prefix: Tensor | None = None,
) -> Measured:
    """Check what was `compressed` from `pixel_values` (B, 3, R, R), or raise InvariantError.

    (a) rows sum to 1; (b) text has exactly no attention to hybrid tokens, and what was captured is that
    model; (c) the patches reach the text through <voco>'s keys and values alone. (a) covers the batch, (b)
    and (c) its first image. In an `uncompressed` model the text reads all: there (b) is about the capture
    alone, and (c) does not apply. `text_ids` (T,) stand for the text; the first words of the vocabulary by
    default.
    """
    if text_ids is None:
        text_ids = torch.arange(8, device=pixel_values.device) % model.config.text.vocab_size
    hybrid, _ = model.encode(pixel_values)
    if compressed is None:
        compressed = model.compress(*hybrid, prefix)
    hybrid = Hybrid(*(channel[:1] for channel in hybrid))
    first = star.Compressed(compressed.hidden[:1], compressed.attention[:1], _first(compressed.cache))
    prefix = None if prefix is None else prefix[:1]
    row_sum_error = _rows_sum_to_one(compressed.attention)
    weight, difference = _text_reads_voco_only(model, hybrid, first, text_ids[None], prefix)
    change = 0.0
    if model.config.topology != "uncompressed":
        change = patches_act_through_voco(model, hybrid, first, text_ids[None], prefix)
    return Measured(row_sum_error, weight, difference, change)


def _rows_sum_to_one(attention: Tensor) -> float:
    """Law (a) of rows (..., S): returns the largest |sum - 1|."""
    error = (attention.double().sum(-1) - 1).abs().max().item()
    if not error <= _ROW_SUM_TOLERANCE or attention.min() < 0:  # written so that NaN is caught
        raise InvariantError(
            f"(a) attention rows of <voco> must sum to 1: they are off by up to {error:.3g} (tolerance "
            f"{_ROW_SUM_TOLERANCE:g}), smallest weight {attention.min().item():.3g}"
        )
    return error


def _text_reads_voco_only(
    model: HTCVLM, hybrid: Hybrid, compressed: star.Compressed, text_ids: Tensor, prefix: Tensor | None = None
) -> tuple[float, float]:
    """Law (b) for one image: returns the largest text-to-hybrid weight and relative difference."""
    prefix, before = model.before_voco(*hybrid, prefix)
    voco = prefix.shape[1] + before.shape[1]
    topology = model.config.topology
    readable = voco + 1 if topology == "uncompressed" else 1
    positions = {compressed.cache.get_seq_length(i) for i in range(len(model.language_model.model.layers))}
    if positions != {readable}:
        raise InvariantError(
            f"(b) text must read {'one position' if readable == 1 else f'{readable} positions'} a layer ({topology}): "
            f"the cache holds {sorted(positions)}"
        )
    text = model.language_model.model.embed_tokens(text_ids)
    sequence = torch.cat([prefix, before, model.voco.expand(1, 1, -1), text], 1)
    mask = star.star_mask(prefix.shape[1], before.shape[1], text.shape[1], topology=topology, dtype=text.dtype)
    reference = _masked_pass(model.language_model.model, sequence, mask.to(text.device), voco)
    if reference.text_to_hybrid != 0 and topology != "uncompressed":
        raise InvariantError(
            f"(b) text must not attend to hybrid tokens: it does with a weight of up to {reference.text_to_hybrid:.3g}"
        )
    expected = {
        "hidden states of <voco>": (compressed.hidden, reference.hidden),
        "attention rows of <voco>": (compressed.attention, reference.attention),
        "logits of the text": (model.read(compressed, text_ids), model.language_model.lm_head(reference.text)),
    }
    tolerance, largest = _PATH_TOLERANCE[text.dtype], 0.0
    for name, (captured, wanted) in expected.items():
        difference = ((captured.float() - wanted.float()).norm() / wanted.float().norm()).item()
        if not difference <= tolerance:
            raise InvariantError(
                f"(b) the {name} must equal the masked model's ({topology}): they differ by "
                f"{difference:.3g} of their norm (tolerance {tolerance:g} in {text.dtype})"
            )
        largest = max(largest, difference)
    return 0.0, largest


def patches_act_through_voco(
    model: HTCVLM, hybrid: Hybrid, compressed: star.Compressed, text_ids: Tensor, prefix: Tensor | None = None
) -> float:
    """Law (c) for one image: returns the largest change of a logit.

    The changed image is compressed in full, and all that it hands to the text is kept except for <voco>'s
    own keys and values, which are put back. Whatever else could carry the patches would show.
    """
    changed = model.compress(hybrid.anchors, -hybrid.patches, prefix)
    held = [
        (torch.cat([new_k[:, :, :-1], k[:, :, -1:]], 2), torch.cat([new_v[:, :, :-1], v[:, :, -1:]], 2))
        for (new_k, new_v, _), (k, v, _) in zip(changed.cache, compressed.cache, strict=True)
    ]
    before = model.read(compressed, text_ids)
    after = model.read(changed._replace(cache=DynamicCache(held)), text_ids)
    change = (after - before).abs().max().item()
    if change != 0:
        raise InvariantError(
            "(c) other patches under the same keys and values of <voco> must change no logit: they change by "
            f"up to {change:.3g}"
        )
    return change


class _Reference(NamedTuple):
    hidden: Tensor
    attention: Tensor
    text: Tensor
    text_to_hybrid: float


def _masked_pass(llama: LlamaModel, x: Tensor, mask: Tensor, voco: int) -> _Reference:
    """The stock layers on a whole sequence (1, S+T, d) with <voco> at index `voco`, a layer at a time."""
    position_embeddings = llama.rotary_emb(x, torch.arange(x.shape[1], device=x.device)[None])
    hidden, rows, leak = [x[:, voco]], [], 0.0
    for layer in cast(Iterable[LlamaDecoderLayer], llama.layers):
        attn, xn = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (star.heads(project(xn), attn.head_dim) for project in (attn.q_proj, attn.k_proj, attn.v_proj))
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        mixed, weights = eager_attention_forward(attn, q, k, v, mask, attn.scaling)
        leak = max(leak, weights[:, :, voco + 1 :, :voco].max().item())
        rows.append(weights[:, :, voco, : voco + 1])
        x = x + attn.o_proj(mixed.flatten(2))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        hidden.append(x[:, voco])
    x = llama.norm(x)
    hidden[-1] = x[:, voco]
    return _Reference(torch.stack(hidden, 1), torch.stack(rows, 1), x[:, voco + 1 :], leak)


def _first(cache: DynamicCache) -> DynamicCache:
    return DynamicCache([(k[:1], v[:1]) for k, v, _ in cache])
