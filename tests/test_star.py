"""The star decoder equals the stock model under the same mask, costs no (S, S), and reproduces VoCo-LLaMA."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from htc_probe.extract.vlm.star import TOPOLOGIES, Compressed, Direct, Topology, compress, direct_products, star_mask

GOLDEN = Path(__file__).parent / "golden" / "voco_llama_tiny.safetensors"
# B images, P prefix, N hybrid, T text tokens
B, P, N, T, WIDTH, LAYERS = 2, 3, 12, 4, 32, 3


def small_llama(kv_heads: int = 4, **settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        vocab_size=20,
        **settings,
    )
    config._attn_implementation = "eager"  # the stock model of the comparison
    llama = LlamaForCausalLM(config).eval()
    for parameter in llama.parameters():  # large enough weights for peaked attention, and norms other than 1
        scale = 5.0 if parameter.ndim == 2 else 1.0
        parameter.data.mul_(scale).add_(0.1 * torch.randn_like(parameter))
    return llama


def inputs(prefixed: int) -> tuple[Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hybrid, prefix, voco = (
        torch.randn(*shape, generator=generator, requires_grad=True)
        for shape in ((B, N, WIDTH), (B, prefixed, WIDTH), (WIDTH,))
    )
    return hybrid, prefix if prefixed else None, voco


def text_logits(llama: LlamaForCausalLM, compressed: Compressed, ids: Tensor) -> Tensor:
    first = compressed.attention.shape[-1]
    positions = torch.arange(first, first + ids.shape[1])[None]
    return llama(input_ids=ids, past_key_values=compressed.cache, position_ids=positions).logits


def stock(
    llama: LlamaForCausalLM, hybrid: Tensor, prefix: Tensor | None, voco: Tensor, ids: Tensor, topology: Topology
):
    """Hidden states and rows of <voco> and the text's logits, from the stock model under the float mask."""
    parts = [hybrid, voco.expand(B, 1, WIDTH), llama.model.embed_tokens(ids)]
    sequence = torch.cat(parts if prefix is None else [prefix, *parts], 1)
    prefixed = 0 if prefix is None else prefix.shape[1]
    at = prefixed + N
    out = llama(
        inputs_embeds=sequence,
        attention_mask=star_mask(prefixed, N, T, topology=topology),
        output_attentions=True,
        output_hidden_states=True,
        use_cache=False,
    )
    hidden = torch.stack([state[:, at] for state in out.hidden_states], 1)
    rows = torch.stack([weights[:, :, at, : at + 1] for weights in out.attentions], 1)
    return hidden, rows, out.logits[:, at + 1 :]


def gradients(outputs: tuple[Tensor, ...], sources: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of one scalar that depends on every number of every output."""
    generator = torch.Generator().manual_seed(2)
    total = sum((output * torch.randn(output.shape, generator=generator)).sum() for output in outputs)
    assert isinstance(total, Tensor)
    found = torch.autograd.grad(total, list(sources.values()), allow_unused=True)
    return {
        name: torch.zeros_like(source) if gradient is None else gradient
        for (name, source), gradient in zip(sources.items(), found, strict=True)
    }


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("prefixed", [0, P])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_it_equals_the_stock_model_under_the_same_mask(kv_heads: int, prefixed: int, topology: Topology) -> None:
    llama = small_llama(kv_heads, attention_bias=kv_heads == 2)
    hybrid, prefix, voco = inputs(prefixed)
    ids = torch.arange(B * T).view(B, T)
    wanted = stock(llama, hybrid, prefix, voco, ids, topology)
    sources = dict(llama.named_parameters()) | {"hybrid": hybrid, "voco": voco}
    sources |= {} if prefix is None else {"prefix": prefix}
    wanted_gradients = gradients(wanted, sources)
    for checkpointing in (False, True):
        compressed = compress(
            llama.model, hybrid, voco, topology=topology, prefix=prefix, gradient_checkpointing=checkpointing
        )
        got = (compressed.hidden, compressed.attention, text_logits(llama, compressed, ids))
        for ours, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        for name, gradient in gradients(got, sources).items():
            scale = max(1.0, wanted_gradients[name].abs().max().item())
            difference = (gradient - wanted_gradients[name]).abs().max().item()
            assert difference <= 1e-5 * scale, (name, difference, scale)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("prefixed", [0, P])
def test_no_grad_takes_other_buffers_to_the_same_result(prefixed: int, topology: Topology) -> None:
    llama = small_llama(2)
    hybrid, prefix, voco = inputs(prefixed)
    before = hybrid.detach().clone()
    with_grad = compress(llama.model, hybrid, voco, topology=topology, prefix=prefix)
    with torch.no_grad():
        without = compress(llama.model, hybrid, voco, topology=topology, prefix=prefix)
    assert torch.equal(with_grad.hidden, without.hidden)
    assert torch.equal(with_grad.attention, without.attention)
    assert torch.equal(hybrid, before), "the caller's tensor was written to"


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("prefixed", [0, P])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_direct_products_change_nothing(kv_heads: int, prefixed: int, topology: Topology) -> None:
    llama = small_llama(kv_heads, attention_bias=kv_heads == 2)
    hybrid, prefix, voco = inputs(prefixed)
    wanted = compress(llama.model, hybrid, voco, topology=topology, prefix=prefix)
    direct = direct_products(llama.model)
    got = compress(llama.model, hybrid, voco, topology=topology, prefix=prefix, direct=direct)
    torch.testing.assert_close(got.hidden, wanted.hidden, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.attention, wanted.attention, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(got.cache, wanted.cache, strict=True):
        torch.testing.assert_close(ours[1], theirs[1], atol=1e-5, rtol=1e-5)
    if topology == "star" and not prefixed:
        zero = [Direct(torch.zeros_like(one.weight), None) for one in direct]
        other = compress(llama.model, hybrid, voco, direct=zero).hidden
        assert (other - wanted.hidden).abs().max() > 1e-3, "they should be what is used"


def test_direct_products_are_of_plain_matrices() -> None:
    llama = small_llama()
    llama.model.layers[1].self_attn.v_proj = torch.nn.Sequential(llama.model.layers[1].self_attn.v_proj)
    with pytest.raises(ValueError, match="v_proj is a Sequential"):
        direct_products(llama.model)


def test_it_names_its_shapes_and_holds_one_position() -> None:
    llama = small_llama(2)
    hybrid, prefix, voco = inputs(P)
    hidden, attention, cache = compress(llama.model, hybrid, voco, prefix=prefix)
    S = P + N + 1
    assert hidden.shape == (B, LAYERS + 1, WIDTH)
    assert attention.shape == (B, LAYERS, 4, S)
    assert attention.dtype == torch.float32
    assert [tuple(keys.shape) for keys, _, _ in cache] == [(B, 2, 1, WIDTH // 4)] * LAYERS
    assert torch.equal(hidden[:, 0], voco.expand(B, -1)), "layer 0 is the embedding, the same for every image"
    torch.testing.assert_close(attention.sum(-1), torch.ones(B, LAYERS, 4))


def test_images_of_a_batch_do_not_meet() -> None:
    llama = small_llama()
    hybrid, prefix, voco = inputs(P)
    assert prefix is not None
    together = compress(llama.model, hybrid, voco, prefix=prefix)
    alone = compress(llama.model, hybrid[1:], voco.expand(1, 1, WIDTH), prefix=prefix[1:])
    torch.testing.assert_close(together.hidden[1:], alone.hidden, atol=1e-5, rtol=1e-5)


def test_under_the_star_a_hybrid_token_changes_no_other_keys_weight_ratio() -> None:
    llama = small_llama()
    hybrid, _, voco = inputs(0)
    changed = hybrid.detach().clone()
    changed[:, 5] += 1
    rows, other = (compress(llama.model, x, voco).attention[:, 0] for x in (hybrid, changed))
    keep = [i for i in range(N) if i != 5]
    torch.testing.assert_close(rows[..., keep] / rows[..., [0]], other[..., keep] / other[..., [0]])


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 8,
        },  # scales cos and sin
    ],
)
def test_scaled_rope_is_honoured(rope: dict[str, Any]) -> None:
    llama = small_llama(rope_parameters=rope, max_position_embeddings=32)
    hybrid, prefix, voco = inputs(P)
    ids = torch.zeros(B, T, dtype=torch.long)
    hidden, rows, _ = stock(llama, hybrid, prefix, voco, ids, "star")
    compressed = compress(llama.model, hybrid, voco, prefix=prefix)
    torch.testing.assert_close(compressed.hidden, hidden, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(compressed.attention, rows, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_bfloat16_is_close_to_float32(topology: Topology) -> None:
    llama = small_llama(2)
    hybrid, prefix, voco = (None if t is None else t.detach() for t in inputs(P))
    assert hybrid is not None and prefix is not None and voco is not None
    exact = compress(llama.model, hybrid, voco, topology=topology, prefix=prefix)
    half = compress(
        llama.model.to(torch.bfloat16), hybrid.bfloat16(), voco.bfloat16(), topology=topology, prefix=prefix.bfloat16()
    )
    assert half.hidden.dtype == torch.bfloat16 and half.attention.dtype == torch.float32
    assert (half.hidden.float() - exact.hidden).norm() < 0.05 * exact.hidden.norm()
    assert (half.attention - exact.attention).norm() < 0.05 * exact.attention.norm()


def test_autocast_keeps_the_residual_stream_in_float32() -> None:
    llama = small_llama(2)
    hybrid, _, voco = inputs(0)
    with torch.autocast("cpu", torch.bfloat16):
        compressed = compress(llama.model, hybrid, voco)
        with torch.no_grad():
            again = compress(llama.model, hybrid, voco)
    assert compressed.hidden.dtype == again.hidden.dtype == torch.float32
    torch.testing.assert_close(compressed.hidden, again.hidden, atol=1e-5, rtol=1e-5)
    compressed.hidden.sum().backward()
    assert hybrid.grad is not None and hybrid.grad.isfinite().all()


class LargestTensor(TorchDispatchMode):
    """Counts the numbers of the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_memory_does_not_grow_with_the_square_of_the_sequence(topology: Topology) -> None:
    llama = small_llama()
    largest = []
    for tokens in (300, 600):
        with LargestTensor() as record, torch.no_grad():
            compress(llama.model, torch.randn(1, tokens, WIDTH), torch.randn(WIDTH), topology=topology)
        largest.append(record.numbers)
        assert record.numbers < tokens**2
    assert largest[1] <= 2.1 * largest[0]


def test_the_mask_is_the_graph_of_the_paper() -> None:
    sees = star_mask(1, 2, 2)[0, 0] == 0
    wanted = [  # prefix, two hybrid tokens, <voco>, two words
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1, 1],
    ]
    assert sees.int().tolist() == wanted
    assert (star_mask(1, 2, 2, topology="causal")[0, 0] == 0)[2].int().tolist() == [1, 1, 1, 0, 0, 0]
    assert (star_mask(1, 2, 2, topology="full")[0, 0] == 0)[1].int().tolist() == [1, 1, 1, 0, 0, 0]
    assert star_mask(1, 2, 2).is_floating_point(), "transformers' eager attention would add a boolean to the scores"


def test_an_unknown_topology_lists_the_known_ones() -> None:
    hybrid, _, voco = inputs(0)
    with pytest.raises(ValueError, match="'ring'; it is one of star, causal, full"):
        compress(small_llama().model, hybrid, voco, topology="ring")  # type: ignore[arg-type]


def test_causal_reproduces_the_reference_voco_llama() -> None:
    with safe_open(GOLDEN, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    llama = LlamaForCausalLM(LlamaConfig(**json.loads(metadata["config"]))).eval()
    weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    llama.load_state_dict(weights)
    sequence = tensors["in.inputs_embeds"]
    system, images, words = 3, 36, 6
    voco = system + images
    text = slice(voco + 1, voco + 1 + words)
    with torch.no_grad():
        compressed = compress(
            llama.model, sequence[:, system:voco], sequence[:, [voco]], topology="causal", prefix=sequence[:, :system]
        )
        positions = torch.arange(text.start, text.stop)[None]
        out = llama(
            inputs_embeds=sequence[:, text],
            past_key_values=compressed.cache,
            position_ids=positions,
            output_hidden_states=True,
        )
    for i in range(4):
        wanted = tensors[f"out.hidden.{i}"]
        torch.testing.assert_close(compressed.hidden[:, i], wanted[:, voco], atol=1e-4, rtol=0)
        torch.testing.assert_close(out.hidden_states[i], wanted[:, text], atol=1e-4, rtol=0)
    torch.testing.assert_close(out.logits, tensors["out.logits"][:, text], atol=1e-4, rtol=0)
