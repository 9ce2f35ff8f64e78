"""HTC-VLM's language model for users of TransformerLens: a `TransformerBridge` that sees what <voco> sees.

Needs `pip install 'htc-probe[lens]'`. Knows an HTCVLM and TransformerLens' names. Does not know images, runs or our own
analyses, which are faster: they use that hybrid tokens do not mix, and a bridge runs the whole sequence under a mask.

    from htc_probe.analysis.bridge import bridge, sequence

    lens = bridge(model)
    embeddings = sequence(model, *model.encode(pixels)[0], text_ids)
    logits, cache = lens.run_with_cache(embeddings, names_filter="blocks.0.attn.hook_pattern", pos_slice=voco_at(model))

Every call of the bridge gets the mask of the model's topology and its positions, a hook gets a copy of its tensor
(edited in place or returned, both count; left as it is, nothing is edited), and what would give wrong numbers without a
word is refused. Names are TransformerLens' own: `blocks.{l}.attn.hook_pattern`, `hook_v`, `hook_attn_scores`,
`blocks.{l}.hook_resid_pre`, ... <voco>'s rows of `hook_pattern` are `Compressed.attention`, and its `hook_resid_pre` is
`Compressed.hidden`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from torch import Tensor

from htc_probe.extract.errors import UserError
from htc_probe.extract.vlm.model import HTCVLM
from htc_probe.extract.vlm.star import star_mask

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.model_bridge import TransformerBridge

_ROW_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""How far a row of attention may sum from 1, by what it is computed in."""


def bridge(model: HTCVLM) -> TransformerBridge:
    """The language model of `model`, bridged; its inputs are those of `sequence`.

    The bridge rewrites the modules that it is given, so it gets its own ones, with the same weights: no memory for
    them, and what is changed in one is changed in both. `model` itself stays as it is.

    Raises UserError where TransformerLens is not installed, which the extra `lens` brings.

    The bridge raises ValueError: token ids for an input, an attention mask that is not (1 or B, 1, n, n) floats, a
    cache, `generate` in all forms, a hook that leaves rows of `hook_pattern` that do not sum to 1, and one that closes
    all keys of a row of `hook_attn_scores`.
    """
    try:  # takes seconds, and changes loggers
        from transformer_lens.model_bridge.sources import build_bridge_from_module
    except ImportError as error:
        raise UserError(f"a bridge needs TransformerLens ({error}): pip install 'htc-probe[lens]'") from error

    llm = model.language_model
    shared = {id(tensor): tensor for tensor in [*llm.parameters(), *llm.buffers()]}
    twin = copy.deepcopy(llm, shared)
    twin.config._attn_implementation = "eager"  # the only one whose scores and pattern exist
    lens = build_bridge_from_module(twin, "LlamaForCausalLM", hf_config=twin.config, model_name=model.config.model_type)
    twin.register_forward_pre_hook(_bind(model), with_kwargs=True)
    for name in ("generate", "generate_stream", "hf_generate"):
        object.__setattr__(lens, name, _refuse_to_generate)
    for point in {id(point): point for point in lens.hook_dict.values()}.values():
        _guard(point)
    return lens


def voco_at(model: HTCVLM) -> int:
    """The position of <voco> in a `sequence`; S - 1."""
    config = model.config
    return len(config.prefix_ids) + config.num_anchors + config.num_patches + len(config.infix_ids)


def sequence(model: HTCVLM, anchors: Tensor, patches: Tensor, text_ids: Tensor | None = None) -> Tensor:
    """(B, S + T, d): embeddings of prefix, anchors and patches (B, *, d), <voco>, and texts (B, T) or (T,)."""
    prefix, hybrid = model.before_voco(anchors, patches)
    batch = len(hybrid)
    parts = [prefix, hybrid, model.voco.expand(batch, 1, -1)]
    if text_ids is not None:
        parts.append(model.language_model.model.embed_tokens(text_ids.expand(batch, -1)))
    return torch.cat(parts, 1)


def _bind(model: HTCVLM) -> Callable[..., tuple[tuple, dict[str, Any]]]:
    """What gives every pass its mask and positions."""
    before, topology = voco_at(model), model.config.topology
    prefix = len(model.config.prefix_ids)

    def bind(_: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        embeddings = kwargs.get("inputs_embeds")
        if args or embeddings is None:
            raise ValueError("token ids leave out the image; give the bridge embeddings: analysis.bridge.sequence(...)")
        if kwargs.get("past_key_values") is not None:
            raise ValueError(
                "the bridge runs whole sequences: with a cache, text would continue under another mask and at other "
                "positions; leave past_key_values out"
            )
        length = embeddings.shape[1]
        if length <= before:
            raise ValueError(f"a sequence of {length} tokens ends before <voco>, which is token {before}; see sequence")
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = star_mask(prefix, before - prefix, length - before - 1, topology=topology, dtype=embeddings.dtype)
        elif not mask.is_floating_point() or mask.ndim != 4 or mask.shape[-2:] != (length, length):
            raise ValueError(
                f"the attention mask is {mask.dtype} of shape {tuple(mask.shape)}; TransformerLens and transformers "
                f"would add it to the scores or build another from it: leave it out, or give a float mask (1, 1, "
                f"{length}, {length}) as star_mask makes, with {embeddings.dtype}'s minimum where a row must not look"
            )
        positions = torch.arange(length, device=embeddings.device)[None]
        # A copy, because a hook at layer 0 that edits in place would change the caller's embeddings.
        own = {"inputs_embeds": embeddings.clone(), "attention_mask": mask.to(embeddings), "position_ids": positions}
        return args, kwargs | own

    return bind


def _guard(point: HookPoint) -> None:
    """Lets the point's forward hooks have copies, and looks at what they make of attention."""
    add = point.add_hook
    checks = {"hook_pattern": _check_rows, "hook_attn_scores": _check_scores}
    kind = (point.name or "").rpartition(".")[2]
    check, in_graph = checks.get(kind), kind not in ("hook_scale", "hook_normalized")

    def add_guarded(hook: Callable[..., Any], dir: Literal["fwd", "bwd"] = "fwd", **kwargs: Any) -> Any:
        if dir != "fwd":
            return add(hook, dir=dir, **kwargs)
        given_hook = hook

        def guarded(tensor: Any, *, hook: Any) -> Any:
            if not isinstance(tensor, Tensor):
                return given_hook(tensor, hook=hook)
            own = tensor.clone()
            made = given_hook(own, hook=hook)
            # TransformerLens takes what comes back for an edit, and computes an edited norm in another way. A gradient
            # by a copy that the hook kept needs it in the graph, which a norm that is not edited never has it in.
            made = own if made is None else made
            if made is own and not (in_graph and own.requires_grad) and torch.equal(own, tensor):
                return None
            if check is not None:
                check(made, point.name)
            return made

        return add(guarded, dir="fwd", **kwargs)

    object.__setattr__(point, "add_hook", add_guarded)


def _check_rows(pattern: Tensor, name: str | None) -> None:
    off = (pattern.float().sum(-1) - 1).abs().max().item()
    if not off <= _ROW_TOLERANCE.get(pattern.dtype, 1e-4):  # written so that NaN is caught
        raise ValueError(
            f"a hook left rows of {name} that sum to 1 +- {off:.3g}: zeroing a weight without sharing it out among the "
            "others is not the model without that token; to knock it out, fill its entry in <voco>'s row of "
            "hook_attn_scores with the dtype's minimum, or divide the rows by their sums"
        )


def _check_scores(scores: Tensor, name: str | None) -> None:
    if (scores.amax(-1) <= torch.finfo(scores.dtype).min / 2).any():
        raise ValueError(
            f"a hook closed every key of a row of {name}, and softmax would then look at all of them alike: a hybrid "
            "token needs its own key; fill the token's entry in <voco>'s row alone, scores[:, :, voco_at(model), token]"
        )


def _refuse_to_generate(*_: Any, **__: Any) -> NoReturn:
    raise ValueError(
        "a bridge cannot generate behind <voco>: it takes a mask of the first pass for the later ones, and the words "
        "are wrong from the second on; use HTCVLM.generate(compressed=...), or score whole texts with one pass each"
    )
