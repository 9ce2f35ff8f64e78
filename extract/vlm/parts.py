"""What every token hands to `<voco>`, as vectors, and where their directions lead.

Knows an HTCVLM and tensors. Does not know runs or files.

At each layer, attention adds an update to `<voco>`'s residual stream: a sum of one vector a source token and head,
attention x value x the head's part of the output projection (a bias of the output projection is nobody's, and kept
apart; that of the values is in the values). The decomposition is exact for any topology, given the values at that
layer: what a value of the topologies `causal` and `full` holds of *other* tokens is counted with the token that
hands it over.

Two linear paths lead from such a vector to a logit:

lens      `<voco>`'s own residual stream through the final norm, its scale held at what it is, to the unembedding of
          the answer's first token: what would be said *at `<voco>`'s position*. No text is read from there and the
          model is not trained on it, so this tells directions, not behaviour.
answers   the path that answers really take: text reads `<voco>`'s values. The vector is in the residual stream that
          later layers' input norms and value projections take; from there it goes, by the attention of the position
          that predicts the answer's first token, straight to that position's logits. Exact with all attention patterns
          and norm scales held at what they are, and only this direct path: what passes through an MLP or another text
          token on its way is not in it.

Logits are measured from their mean over the vocabulary, since a constant changes no probability.

Suffixes: B images, L layers, H heads, K key-value heads, D width of a head, S keys of `<voco>`, d width, Q questions,
T text tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from htc_probe.extract.vlm.model import HTCVLM
from htc_probe.extract.vlm.passes import Shared, text_states


class Parts(NamedTuple):
    """One layer's attention update of `<voco>`, per source token and head."""

    norms: Tensor
    """(B, H, S), lengths of the vectors, 0 and up."""
    token_norms: Tensor
    """(B, S), lengths of the vectors summed over heads."""
    shares: Tensor
    """(B, H, S), signed; with `bias_share` they sum to 1."""
    bias_share: Tensor
    """(B,), of the output projection's bias; 0 without one."""
    update: Tensor
    """(B, d), the whole, with the bias."""


class _Heads(NamedTuple):
    """A layer's pieces: value vectors weighted by attention, and each head's output projection."""

    weighted: Tensor
    """(B, H, S, D)"""
    output: Tensor
    """(H, D, d)"""
    bias: Tensor | None
    """(d,)"""


def decompose(model: HTCVLM, shared: Shared, layer: int) -> Parts:
    """The parts of the update at decoder layer `layer`, 0 to L-1."""
    weighted, output, bias = _pieces(model, shared, layer)
    summed = weighted.sum(2)
    update = torch.einsum("bhe,hed->bd", summed, output)
    whole = update if bias is None else update + bias
    gram = output @ output.transpose(1, 2)  # a vector's length needs D x D numbers a head, not its d numbers
    norms = ((weighted @ gram) * weighted).sum(-1).clamp(min=0).sqrt()
    by_token = weighted.transpose(1, 2).flatten(2) @ output.flatten(0, 1)
    square = (whole * whole).sum(-1)
    shares = _along(weighted, output, whole) / square[:, None, None]
    nothing = torch.zeros_like(square)
    return Parts(norms, by_token.norm(dim=-1), shares, nothing if bias is None else whole @ bias / square, whole)


def vectors(model: HTCVLM, shared: Shared, layer: int) -> Tensor:
    """(B, H, S, d): the parts themselves, for looks at one layer of a few images."""
    weighted, output, _ = _pieces(model, shared, layer)
    return weighted @ output


def along(model: HTCVLM, shared: Shared, layer: int, direction: Tensor) -> Tensor:
    """(B, ..., H, S): dot product of every part with directions (B, ..., d) of the residual stream."""
    weighted, output, _ = _pieces(model, shared, layer)
    return _along(weighted, output, direction)


def lens_direction(model: HTCVLM, shared: Shared, tokens: Tensor) -> Tensor:
    """(B, Q, d): what a residual vector is multiplied with to give the logits of `tokens` (B, Q) at `<voco>`'s
    position, above the mean of the vocabulary; the norm's scale is the actual one.
    """
    scale = _scale(model.language_model.model.norm, _residual(model, shared))
    return _unembed(model, tokens) * scale[:, None, None]


def answer_directions(model: HTCVLM, shared: Shared, ids: Tensor, at: int, token: Tensor) -> Tensor:
    """(B, L+1, d): what a vector in `<voco>`'s residual stream *before* decoder layer l (L: after the last, where no
    text reads it, 0) is multiplied with to give its direct part in the logit of `token` (B,), above the mean of the
    vocabulary, at position `at` of texts `ids` (B, T).

    A vector that attention adds at layer l goes with row l + 1.
    """
    llama = model.language_model.model
    position = shared.base.rows[0].shape[-1]
    streams: list[Tensor] = []
    hook = llama.norm.register_forward_pre_hook(lambda _module, given: streams.append(given[0]))
    try:
        _, looks = text_states(model, shared.base, ids[:, : at + 1], first=at, position=position)
    finally:
        hook.remove()
    end = _unembed(model, token[:, None])[:, 0] * _scale(llama.norm, streams[0][:, 0, 0])[:, None]
    directions = [torch.zeros_like(end)]
    for number in range(len(llama.layers) - 1, -1, -1):
        layer = cast(Any, llama.layers[number])
        attn = layer.self_attn
        look = looks[number][:, 0, :, -1, 0]  # (B, H), of the position that predicts
        back = torch.einsum("bd,hed->bhe", end.float(), _output(attn)) * look[..., None]
        back = back.unflatten(1, (-1, attn.num_key_value_groups)).sum(2).flatten(1)  # (B, K * D)
        back = back @ attn.v_proj.weight.float()
        z = shared.base.hidden[:, 0, number]
        back = back * layer.input_layernorm.weight.float() * _scale(layer.input_layernorm, z)[:, None]
        directions.append(directions[-1] + back)
    return torch.stack(directions[::-1], 1)


def readout(model: HTCVLM) -> tuple[np.ndarray, np.ndarray, float]:
    """The unembedding, (vocabulary, d) float32, and of the final norm before it the weights (d,) and epsilon."""
    llama: Any = model.language_model
    unembed, weight = (part.weight.detach().float().cpu().numpy() for part in (llama.lm_head, llama.model.norm))
    return unembed, weight, float(llama.model.norm.variance_epsilon)


def _pieces(model: HTCVLM, shared: Shared, layer: int) -> _Heads:
    attn = cast(Any, model.language_model.model.layers[layer]).self_attn
    own = shared.base.values[layer][:, 0, :, None]  # (B, K, 1, D)
    values = torch.cat([shared.before.values[layer], own], 2).float().repeat_interleave(attn.num_key_value_groups, 1)
    rows = shared.base.rows[layer][:, 0]  # (B, H, S)
    bias = attn.o_proj.bias
    return _Heads(rows[..., None] * values, _output(attn), None if bias is None else bias.float())


def _output(attn: Any) -> Tensor:
    """(H, D, d): each head's part of the output projection."""
    return attn.o_proj.weight.float().T.unflatten(0, (-1, attn.head_dim))


def _along(weighted: Tensor, output: Tensor, direction: Tensor) -> Tensor:
    """(B, ..., H, S) of weighted values (B, H, S, D) and directions (B, ..., d)."""
    back = torch.einsum("b...d,hed->b...he", direction.float(), output)
    return torch.einsum("bhse,b...he->b...hs", weighted, back)


def _residual(model: HTCVLM, shared: Shared) -> Tensor:
    """(B, d): <voco>'s residual stream before the final norm, which the hidden states do not hold."""
    layer = cast(Any, model.language_model.model.layers[-1])
    z = shared.base.hidden[:, 0, -2]
    z = z + decompose(model, shared, len(shared.base.rows) - 1).update.to(z.dtype)
    return z + layer.mlp(layer.post_attention_layernorm(z))


def _scale(norm: Any, x: Tensor) -> Tensor:
    """(...,) what an RMS norm multiplies a vector with, before its weights."""
    return (x.float().square().mean(-1) + norm.variance_epsilon).rsqrt()


def _unembed(model: HTCVLM, tokens: Tensor) -> Tensor:
    """(..., d): the unembedding of tokens, less the vocabulary's mean, times the final norm's weights."""
    weight = model.language_model.lm_head.weight.float()
    return (weight[tokens] - weight.mean(0)) * model.language_model.model.norm.weight.float()
