"""The forward pass up to <voco>, on the weights of a stock transformers LLaMA.

Knows LLaMA's modules and tensors. Does not know images, anchors, tokenizers or files.

The star mask (paper, section 3) lets a hybrid token see itself only, so its softmax has one entry: its
attention output is o_proj(v_proj(x)), without a query. The one real attention is the <voco> row, and that
row is the record that gets analysed. Nothing here grows with the square of the sequence.

Suffixes: B batch, P prefix, N hybrid, X = P + N, S = X + 1 keys, L layers, H heads, K key-value heads, G =
H / K, D width of a head, W = K * D width of all keys.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP

Topology = Literal["star", "causal", "full", "uncompressed"]
TOPOLOGIES: tuple[Topology, ...] = get_args(Topology)


class Compressed(NamedTuple):
    """What <voco> is, where it looked, and what the text may read."""

    hidden: Tensor
    """(B, L+1, d) hidden states of <voco>: 0 is its embedding, the last is after the final norm."""
    attention: Tensor
    """(B, L, H, S) float32 rows of <voco>; each sums to 1. Keys in order: prefix, hybrid, <voco>."""
    cache: DynamicCache
    """Keys and values of <voco> alone, one position a layer, or of all S where `uncompressed`; text continues at
    position S."""


class Direct(NamedTuple):
    """All that attention does to a token that sees itself alone: o_proj(v_proj(x)) as one product."""

    weight: Tensor
    """(d, d)."""
    bias: Tensor | None
    """(d,)."""


@torch.no_grad()
def direct_products(llama: LlamaModel) -> list[Direct]:
    """For `compress`, of every layer, to be made once for many images: it saves one product in eleven.

    They take d x d numbers a layer, and are those of the weights as they are now. Raises ValueError where the
    projections are more than matrices (LoRA that is not merged).
    """
    products = []
    for layer in llama.layers:
        attn = cast(LlamaAttention, layer.self_attn)
        v, o = attn.v_proj, attn.o_proj
        if type(v) is not nn.Linear or type(o) is not nn.Linear:
            raise ValueError(f"v_proj is a {type(v).__name__} and o_proj a {type(o).__name__}; merge them into Linear")

        def per_head(t: Tensor, attn: LlamaAttention = attn) -> Tensor:
            return t.unflatten(0, (-1, attn.head_dim)).repeat_interleave(attn.num_key_value_groups, 0).flatten(0, 1)

        products.append(Direct(o.weight @ per_head(v.weight), o.bias if v.bias is None else o(per_head(v.bias))))
    return products


def compress(
    llama: LlamaModel,
    hybrid: Tensor,
    voco: Tensor,
    *,
    topology: Topology = "star",
    prefix: Tensor | None = None,
    gradient_checkpointing: bool = False,
    direct: Sequence[Direct] | None = None,
) -> Compressed:
    """Run `hybrid` (B, N, d) and `voco` (d,) or (B, 1, d) through the decoder; text never enters here.

    The hybrid tokens see themselves only (`star`), prefix and earlier hybrid tokens (`causal`, VoCo-LLaMA),
    or prefix and all hybrid tokens (`full`). `uncompressed` is `causal`, and the text reads everything: plain
    LLaVA, with the token after the image in the place of <voco>. A `prefix` (B, P, d), text before the image, is
    causal and comes first. <voco> sees everything. Equal to `llama` under `star_mask`; attention dropout is never
    applied. `direct`, of the same weights, makes a `star` without prefix faster (see `direct_products`).
    """
    if topology not in TOPOLOGIES:
        raise ValueError(f"topology is {topology!r}; it is one of {', '.join(TOPOLOGIES)}")
    batch, _, width = hybrid.shape
    z = voco.expand(batch, 1, width)
    x = hybrid if prefix is None else torch.cat([prefix, hybrid], 1)
    prefixed = x.shape[1] - hybrid.shape[1]
    cos, sin = llama.rotary_emb(x, torch.arange(x.shape[1] + 1, device=x.device)[None])

    hidden, rows, cached = [z], [], []
    last = len(llama.layers) - 1
    for i, layer in enumerate(llama.layers):
        run = _whole_layer(cast(LlamaDecoderLayer, layer))
        product = None if direct is None else direct[i]
        x, z, row, key, value = run(gradient_checkpointing, x, z, cos, sin, prefixed, topology, i == last, product)
        hidden.append(z)
        rows.append(row)
        cached.append((key, value))
    hidden[-1] = llama.norm(z)
    return Compressed(torch.cat(hidden, 1), torch.stack(rows, 1), DynamicCache(cached))


def star_mask(
    prefix: int, hybrid: int, text: int = 0, *, topology: Topology = "star", dtype: torch.dtype = torch.float32
) -> Tensor:
    """The same model as an additive mask (1, 1, S+text, S+text): 0 where a row sees a column.

    It costs S squared, so it serves checks and comparisons only. It is float because transformers' eager
    attention adds a mask to the scores: a boolean one would add 0 and 1, and everything would stay visible.
    """
    voco = prefix + hybrid
    size = voco + 1 + text
    sees = torch.ones(size, size, dtype=torch.bool).tril()
    if topology == "star":
        sees[prefix:voco] = torch.eye(size, dtype=torch.bool)[prefix:voco]
    elif topology == "full":
        sees[prefix:voco, :voco] = True
    if topology != "uncompressed":
        sees[voco + 1 :, :voco] = False
    return torch.zeros(size, size, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)[None, None]


def _whole_layer(layer: LlamaDecoderLayer) -> Callable[..., Any]:
    """`_run_layer` of the layer, its weights gathered first where FSDP2 has sharded them over processes.

    FSDP gathers in front of a module's `forward`, and what runs here are its parts.
    """
    if not isinstance(layer, FSDPModule):
        return partial(_run_layer, layer)
    name = "_star_layer"
    if not hasattr(layer, name):
        setattr(layer, name, partial(_run_layer, layer))
        register_fsdp_forward_method(layer, name)
    return getattr(layer, name)


def _run_layer(layer: LlamaDecoderLayer, gradient_checkpointing: bool, *args: Any) -> Any:
    if gradient_checkpointing:
        return checkpoint(_layer, layer, *args, use_reentrant=False)
    return _layer(layer, *args)


def _layer(
    layer: LlamaDecoderLayer,
    x: Tensor,
    z: Tensor,
    cos: Tensor,
    sin: Tensor,
    prefixed: int,
    topology: Topology,
    last: bool,
    direct: Direct | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One decoder layer: x_BXd and z_B1d moved on, row_BHS, and the keys and values that the text may read: those of
    <voco> (B, K, 1, D), or of all (B, K, S, D)."""
    attn = layer.self_attn
    xn, zn = layer.input_layernorm(x), layer.input_layernorm(z)
    q_BKGD, key, value = _voco_projections(attn, zn, cos[:, -1:], sin[:, -1:])
    k_BXW = attn.k_proj(xn)
    direct = None if last or prefixed or topology != "star" else direct
    unread = direct is not None or (last and topology != "uncompressed")  # nobody needs the values one by one
    v_BXW = None if unread else attn.v_proj(xn)
    row_BHS = _row(q_BKGD, k_BXW, key, cos[:, :-1], sin[:, :-1], attn.scaling)

    weights = row_BHS.to(x.dtype)
    if v_BXW is None:  # values are linear: average the inputs, then project H averages instead of X tokens
        seen_BHW = attn.v_proj(weights[..., :-1] @ xn + weights[..., -1:] * zn)
    else:
        seen_BHW = weights[..., :-1] @ v_BXW + weights[..., -1:] * value.transpose(1, 2).flatten(2)
    z = _add(z, attn.o_proj(_own_block(seen_BHW, q_BKGD)))
    z = _add(z, layer.mlp(layer.post_attention_layernorm(z)))
    if topology == "uncompressed":
        keys = rotate(heads(k_BXW, attn.head_dim), cos[:, :-1], sin[:, :-1])
        key, value = torch.cat([keys, key], 2), torch.cat([heads(cast(Tensor, v_BXW), attn.head_dim), value], 2)
    if not last:  # after the last layer nothing reads the other tokens' states
        if direct is not None:
            update = F.linear(xn, *direct)
        else:
            v_BXW = cast(Tensor, v_BXW)
            update = attn.o_proj(_mix(attn, xn, k_BXW, v_BXW, cos[:, :-1], sin[:, :-1], prefixed, topology))
        x = _add(x, update)
        x = _add(x, _mlp(layer.mlp, layer.post_attention_layernorm(x)))
    return x, z, row_BHS, key, value


def _voco_projections(attn: LlamaAttention, zn: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query (B, K, G, D), key and value (B, K, 1, D) of <voco>, rotated to its position."""
    q, k, v = (heads(proj(zn), attn.head_dim) for proj in (attn.q_proj, attn.k_proj, attn.v_proj))
    return rotate(q, cos, sin).reshape(len(zn), k.shape[1], -1, attn.head_dim), rotate(k, cos, sin), v


def _row(q_BKGD: Tensor, k_BXW: Tensor, key_BK1D: Tensor, cos: Tensor, sin: Tensor, scaling: float) -> Tensor:
    """Softmax in float32 of <voco>'s scores over all keys, (B, H, S).

    A rotated key times a query is (k cos) q + (k sin) q', q' being the query turned by a right angle, so
    keys are never rearranged; one matrix product with the queries laid out block by block serves all heads.
    """
    k_BXKD = k_BXW.unflatten(-1, (q_BKGD.shape[1], -1))
    scores_BXH = (k_BXKD * cos[:, :, None]).flatten(2) @ _blocks(q_BKGD)
    scores_BXH = scores_BXH + (k_BXKD * sin[:, :, None]).flatten(2) @ _blocks(_quarter_turn(q_BKGD, -1))
    own_BH1 = (q_BKGD * key_BK1D).sum(-1).flatten(1)[..., None]
    return torch.cat([scores_BXH.transpose(1, 2), own_BH1], -1).mul(scaling).softmax(-1, dtype=torch.float32)


def _mix(
    attn: LlamaAttention,
    xn: Tensor,
    k_BXW: Tensor,
    v_BXW: Tensor,
    cos: Tensor,
    sin: Tensor,
    prefixed: int,
    topology: Topology,
) -> Tensor:
    """What attention hands to o_proj for prefix and hybrid tokens, (B, X, H*D)."""
    groups = attn.num_key_value_groups
    if topology == "star" and groups == 1 and not prefixed:
        return v_BXW
    v = heads(v_BXW, attn.head_dim).repeat_interleave(groups, 1)
    dense = prefixed if topology == "star" else xn.shape[1]  # tokens whose attention has more than one entry
    hybrid = v[:, :, prefixed:]
    if dense:
        q = rotate(heads(attn.q_proj(xn[:, :dense]), attn.head_dim), cos[:, :dense], sin[:, :dense])
        k = rotate(heads(k_BXW[:, :dense], attn.head_dim), cos[:, :dense], sin[:, :dense])
        k = k.repeat_interleave(groups, 1)
        if topology == "full":
            hybrid = F.scaled_dot_product_attention(q[:, :, prefixed:], k, v, scale=attn.scaling)
        causally = topology in ("causal", "uncompressed")
        first = dense if causally else prefixed
        causal = F.scaled_dot_product_attention(
            q[:, :, :first], k[:, :, :first], v[:, :, :first], is_causal=True, scale=attn.scaling
        )
        hybrid = causal if causally else torch.cat([causal, hybrid], 2)
    return hybrid.transpose(1, 2).flatten(2)


def _add(residual: Tensor, update: Tensor) -> Tensor:
    """Their sum, in the buffer of `update` where no gradient needs it; autocast keeps the wider type."""
    if torch.is_grad_enabled() or update.dtype != residual.dtype:
        return residual + update
    return update.add_(residual)


def _mlp(mlp: LlamaMLP, x: Tensor) -> Tensor:
    """`mlp(x)`, with one wide buffer less where no gradient needs it."""
    if torch.is_grad_enabled():
        return mlp(x)
    gate = mlp.gate_proj(x)
    gate = F.silu(gate, inplace=True) if isinstance(mlp.act_fn, nn.SiLU) else mlp.act_fn(gate)
    return mlp.down_proj(gate.mul_(mlp.up_proj(x)))


def heads(flat: Tensor, head_dim: int) -> Tensor:
    """(..., T, heads * D) to (..., heads, T, D)."""
    return flat.unflatten(-1, (-1, head_dim)).transpose(-2, -3)


def _quarter_turn(t: Tensor, sign: int = 1) -> Tensor:
    """LLaMA's rotate_half for sign 1, its inverse for -1."""
    first, second = t.chunk(2, -1)
    return torch.cat([-sign * second, sign * first], -1)


def rotate(t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads (..., T, D) at their positions, of which `cos` and `sin` (1, T, D) are the rotations."""
    return t * cos[:, None] + _quarter_turn(t) * sin[:, None]


def _blocks(q_BKGD: Tensor) -> Tensor:
    """Block-diagonal (B, K*D, K*G): column (k, g) has query (k, g) in the rows of key head k, else zero."""
    return torch.diag_embed(q_BKGD.permute(0, 3, 2, 1), dim1=1, dim2=3).flatten(3).flatten(1, 2)


def _own_block(seen_BHW: Tensor, q_BKGD: Tensor) -> Tensor:
    """Of every head's average over full-width values, the part of its own key-value head: (B, 1, H*D)."""
    _, heads, groups, dim = q_BKGD.shape
    own_BGDK = seen_BHW.unflatten(-1, (heads, dim)).unflatten(1, (heads, groups)).diagonal(dim1=1, dim2=3)
    return own_BGDK.permute(0, 3, 1, 2).flatten(1)[:, None]
