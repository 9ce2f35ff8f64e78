"""The language model through TransformerLens: the same numbers and knock-outs, and no wrong ones without a word."""

import copy
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaAttention

from htc_probe.analysis.bridge import bridge, sequence, voco_at
from htc_probe.analysis.causes.knockouts import knock_out
from htc_probe.extract.errors import UserError
from htc_probe.extract.vlm import passes
from htc_probe.extract.vlm.model import HTCVLM, Hybrid
from htc_probe.extract.vlm.star import Topology, star_mask
from made.models import LAYERS, small_model

TEXT = torch.tensor([3, 1, 4, 1, 5])
PATTERNS = [f"blocks.{layer}.attn.hook_pattern" for layer in range(LAYERS)]
STATES = [f"blocks.{layer}.hook_resid_pre" for layer in range(LAYERS)]
NORMS = [f"blocks.{LAYERS - 1}.ln1.hook_scale", f"blocks.{LAYERS - 1}.ln2.hook_normalized", "ln_final.hook_scale"]
SCORES = [f"blocks.{layer}.attn.hook_attn_scores" for layer in range(LAYERS)]


class Case(NamedTuple):
    model: HTCVLM
    lens: Any
    hybrid: Hybrid
    embeddings: Tensor
    """(B, S + T, d) with TEXT."""
    voco: int


def make(topology: Topology = "star", prefix: tuple[int, ...] = ()) -> Case:
    model = small_model()
    model.config.topology, model.config.prefix_ids = topology, prefix
    with torch.no_grad():
        hybrid, _ = model.encode(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
        return Case(model, bridge(model), hybrid, sequence(model, *hybrid, TEXT), voco_at(model))


def test_without_transformer_lens_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra: it brings wandb, and no command needs it."""
    for name in [name for name in sys.modules if name.split(".")[0] == "transformer_lens"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    with pytest.raises(UserError, match=r"a bridge needs TransformerLens .*: pip install 'htc-probe\[lens\]'"):
        bridge(small_model())


@pytest.fixture(scope="module")
def case() -> Case:
    return make()


def stock(case: Case, mask: Tensor) -> Any:
    """transformers' own eager model under a mask."""
    llm = copy.deepcopy(case.model.language_model)
    llm.set_attn_implementation("eager")
    with torch.no_grad():
        return llm(
            inputs_embeds=case.embeddings,
            attention_mask=mask,
            use_cache=False,
            output_attentions=True,
            output_hidden_states=True,
        )


def mask_of(case: Case) -> Tensor:
    prefix = len(case.model.config.prefix_ids)
    return star_mask(prefix, case.voco - prefix, len(TEXT), topology=case.model.config.topology)


def edits(warned: Any) -> list[str]:
    return [str(one.message) for one in warned if "edited" in str(one.message)]


def close(scores: Tensor, hook: Any, rows: int | slice, token: int) -> Tensor:
    scores[:, :, rows, token] = torch.finfo(scores.dtype).min
    return scores


@pytest.mark.parametrize(
    ("topology", "prefix"), [("star", ()), ("star", (1, 2)), ("causal", (1, 2)), ("full", ()), ("uncompressed", ())]
)
@torch.no_grad()
def test_it_is_the_stock_model_and_the_star_decoder(topology: Topology, prefix: tuple[int, ...]) -> None:
    case = make(topology, prefix)
    wanted = stock(case, mask_of(case))
    logits, cache = case.lens.run_with_cache(case.embeddings, names_filter=[*PATTERNS, *STATES])
    torch.testing.assert_close(logits, wanted.logits)
    compressed = case.model.compress(*case.hybrid)
    for layer, (pattern, state) in enumerate(zip(PATTERNS, STATES, strict=True)):
        torch.testing.assert_close(cache[pattern], wanted.attentions[layer])
        torch.testing.assert_close(cache[state], wanted.hidden_states[layer])
        row = cache[pattern][:, :, case.voco, : case.voco + 1]
        torch.testing.assert_close(row, compressed.attention[:, layer], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(cache[state][:, case.voco], compressed.hidden[:, layer], atol=1e-4, rtol=1e-4)
    read = case.model.read(compressed, TEXT.expand(2, -1))
    torch.testing.assert_close(logits[:, case.voco + 1 :], read, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_knock_out_by_a_hook_is_one_by_the_mask_and_one_of_ours(case: Case) -> None:
    shared = passes.share(case.model, case.model.before_voco(*case.hybrid)[1])
    for token in (0, case.voco - 1):
        edited = mask_of(case)
        edited[:, :, case.voco, token] = torch.finfo(edited.dtype).min
        hooks = [(name, partial(close, rows=case.voco, token=token)) for name in SCORES]
        logits = case.lens.run_with_hooks(case.embeddings, fwd_hooks=hooks)
        torch.testing.assert_close(logits, stock(case, edited).logits)
        torch.testing.assert_close(logits, case.lens(case.embeddings, attention_mask=edited))
        assert (logits - case.lens(case.embeddings)).abs().max() > 1e-3, "it does something"

        closed = (torch.arange(case.voco) == token)[None, None]
        ours = knock_out(case.model, shared, closed).z[:, 0]
        with case.lens.hooks(fwd_hooks=hooks):
            _, cache = case.lens.run_with_cache(case.embeddings, names_filter="ln_final.hook_out")
        theirs = cache["ln_final.hook_out"][:, case.voco]
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_values_can_be_replaced_by_name(case: Case) -> None:
    """Nothing but its own value comes from a token whose value is another's: as if that had been there all along."""
    layer, mine = LAYERS - 1, 5

    def take(value: Tensor, hook: Any) -> None:
        value[:, mine] = value[[1, 0], mine]  # in place, with nothing returned

    _, cache = case.lens.run_with_cache(case.embeddings, names_filter=f"blocks.{layer}.attn.hook_v")
    values = cache[f"blocks.{layer}.attn.hook_v"]
    moved = case.lens.run_with_hooks(case.embeddings, fwd_hooks=[(f"blocks.{layer}.attn.hook_v", take)])
    assert (moved - case.lens(case.embeddings)).abs().max() > 1e-4
    changed = values.clone()
    changed[:, mine] = values[[1, 0], mine]
    put = case.lens.run_with_hooks(
        case.embeddings, fwd_hooks=[(f"blocks.{layer}.attn.hook_v", lambda value, hook: changed)]
    )
    torch.testing.assert_close(moved, put)


@torch.no_grad()
def test_a_hook_cannot_spoil_what_it_is_given(case: Case) -> None:
    kept, before = case.embeddings.clone(), case.lens(case.embeddings)

    def zero(state: Tensor, hook: Any) -> None:
        state.zero_()

    with case.lens.hooks(fwd_hooks=[(STATES[0], zero)]):
        _, cache = case.lens.run_with_cache(case.embeddings, names_filter=STATES[0])
    assert (cache[STATES[0]] == 0).all(), "it acts, in the pass"
    torch.testing.assert_close(case.embeddings, kept, rtol=0, atol=0)
    torch.testing.assert_close(case.lens(case.embeddings), before, rtol=0, atol=0)

    _, cache = case.lens.run_with_cache(case.embeddings, names_filter=STATES[0])
    held = cache[STATES[0]].clone()
    case.lens.run_with_hooks(case.embeddings, fwd_hooks=[(STATES[0], zero)])
    torch.testing.assert_close(cache[STATES[0]], held, rtol=0, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_what_a_hook_leaves_as_it_is_is_no_edit(case: Case, mode: Callable[[], Any], recwarn: Any) -> None:
    """So that TransformerLens stays on its native path, and the numbers are those without hooks."""
    with mode():
        embeddings = sequence(case.model, *(part.detach().clone() for part in case.hybrid), TEXT)
        plain = case.lens(embeddings)
        cached, cache = case.lens.run_with_cache(embeddings)
        for name in NORMS:
            for look in (lambda tensor, hook: None, lambda tensor, hook: tensor):
                seen = case.lens.run_with_hooks(embeddings, fwd_hooks=[(name, look)])
                torch.testing.assert_close(seen, plain, rtol=0, atol=0)
    torch.testing.assert_close(cached, plain, rtol=0, atol=0)
    assert all(name in cache for name in [*NORMS, *PATTERNS]) and not edits(recwarn)


@pytest.mark.parametrize("in_place", [True, False])
@torch.no_grad()
def test_what_a_hook_changes_is_an_edit_however_it_does_that(case: Case, in_place: bool, recwarn: Any) -> None:
    def double(tensor: Tensor, hook: Any) -> Tensor | None:
        return None if tensor.mul_(2).numel() and in_place else tensor

    plain = case.lens(case.embeddings)
    for name in [*NORMS, STATES[0]]:
        assert (case.lens.run_with_hooks(case.embeddings, fwd_hooks=[(name, double)]) - plain).abs().max() > 1e-4
    assert edits(recwarn), "TransformerLens says that it computes these norms in another way"


def test_gradients_by_what_a_hook_kept(case: Case) -> None:
    kept: list[Tensor] = []
    for name in (STATES[1], PATTERNS[1], f"blocks.{LAYERS - 1}.attn.hook_v"):
        logits = case.lens.run_with_hooks(case.embeddings, fwd_hooks=[(name, lambda tensor, hook: kept.append(tensor))])
        (slope,) = torch.autograd.grad(logits[:, -1, 3].sum(), kept.pop())
        assert slope.abs().max() > 0


def test_weights_are_shared_and_the_model_stays_as_it_is(case: Case) -> None:
    llm = case.model.language_model
    mine = {tensor.data_ptr() for tensor in llm.parameters()}
    assert {tensor.data_ptr() for tensor in case.lens.parameters()} == mine
    assert llm.config._attn_implementation == "sdpa"
    assert type(llm.model.layers[0].self_attn) is LlamaAttention
    assert set(llm.state_dict()) == set(small_model().language_model.state_dict())
    with torch.no_grad():
        first, second = case.lens(case.embeddings), bridge(case.model)(case.embeddings)
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        _, cache = case.lens.run_with_cache(case.embeddings, names_filter=PATTERNS[0])
    assert PATTERNS[0] in cache, "the second bridge did not silence the first"


WRONG: dict[str, tuple[Callable[[Case], object], str]] = {
    "zeroed pattern": (
        lambda case: case.lens.run_with_hooks(
            case.embeddings, fwd_hooks=[(PATTERNS[0], lambda pattern, hook: pattern.index_fill(-1, torch.tensor(0), 0))]
        ),
        "without sharing it out.*hook_attn_scores",
    ),
    "whole column closed": (
        lambda case: case.lens.run_with_hooks(
            case.embeddings, fwd_hooks=[(SCORES[0], partial(close, rows=slice(None), token=0))]
        ),
        "closed every key of a row.*in <voco>'s row alone",
    ),
    "generate": (lambda case: case.lens.generate(case.embeddings), "cannot generate.*HTCVLM.generate"),
    "generate as transformers": (lambda case: case.lens.hf_generate(case.embeddings), "cannot generate"),
    "token ids": (lambda case: case.lens(TEXT[None]), "token ids leave out the image.*sequence"),
    "boolean mask": (
        lambda case: case.lens(case.embeddings, attention_mask=mask_of(case) == 0),
        "torch.bool.*leave it out",
    ),
    "flat mask": (
        lambda case: case.lens(case.embeddings, attention_mask=torch.ones(case.embeddings.shape[:2])),
        "shape .2, ",
    ),
    "cut short": (lambda case: case.lens(case.embeddings[:, :5]), "ends before <voco>"),
    "cache": (
        lambda case: case.lens(
            case.embeddings, past_key_values=case.lens(case.embeddings, return_type="logits_and_cache")[1]
        ),
        "with a cache",
    ),
}


@pytest.mark.parametrize("what", WRONG)
@torch.no_grad()
def test_wrong_ways_are_refused_with_a_reason(case: Case, what: str) -> None:
    way, reason = WRONG[what]
    with pytest.raises(ValueError, match=reason):
        way(case)
    assert case.lens(case.embeddings).isfinite().all(), "and nothing stays behind"


@torch.no_grad()
def test_a_pattern_that_is_shared_out_again_is_a_knock_out(case: Case) -> None:
    def drop(pattern: Tensor, hook: Any) -> Tensor:
        pattern[:, :, case.voco, 2] = 0
        return pattern / pattern.sum(-1, keepdim=True)

    closing = partial(close, rows=case.voco, token=2)
    torch.testing.assert_close(
        case.lens.run_with_hooks(case.embeddings, fwd_hooks=[(name, drop) for name in PATTERNS]),
        case.lens.run_with_hooks(case.embeddings, fwd_hooks=[(name, closing) for name in SCORES]),
    )
