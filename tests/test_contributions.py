"""The parts of <voco>'s update sum to what the stock model adds, and the paths to the logits to the logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from htc_probe.analysis import records
from htc_probe.analysis.attention import updates
from htc_probe.extract.cli import main as extract_main
from htc_probe.extract.store import open_run
from htc_probe.extract.vlm.parts import along, answer_directions, decompose, lens_direction, vectors
from htc_probe.extract.vlm.star import star_mask
from made.cases import CASES, LAYERS, WIDTH, WORDS, B, Case, T, tiny

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


@torch.no_grad()
def stock_parts(case: Case) -> dict[str, list[Tensor]]:
    """What the stock model's attention and MLP add to <voco> at each layer, and its stream before the final norm."""
    found: dict[str, list[Tensor]] = {"attention": [], "mlp": [], "stream": []}
    hooks = []
    for layer in case.llm.model.layers:
        hooks += [
            layer.self_attn.register_forward_hook(lambda _m, _i, out: found["attention"].append(out[0][:, -1])),
            layer.mlp.register_forward_hook(lambda _m, _i, out: found["mlp"].append(out[:, -1])),
        ]
    norm = case.llm.model.norm
    hooks.append(norm.register_forward_pre_hook(lambda _m, given: found["stream"].append(given[0][:, -1])))
    case.llm.config._attn_implementation = "eager"
    x = torch.cat([case.prefix, case.hybrid, case.model.voco.expand(B, 1, -1)], 1)
    mask = star_mask(case.prefix.shape[1], case.hybrid.shape[1], topology=case.model.config.topology)
    case.llm.model(inputs_embeds=x, attention_mask=mask.expand(B, -1, -1, -1), use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_the_parts_sum_to_the_update_of_the_stock_model(settings: dict[str, Any]) -> None:
    case = Case(**settings)
    added = stock_parts(case)["attention"]
    for layer in range(LAYERS):
        with torch.no_grad():
            parts, each = decompose(case.model, case.shared, layer), vectors(case.model, case.shared, layer)
        bias = case.llm.model.layers[layer].self_attn.o_proj.bias
        torch.testing.assert_close(each.sum((1, 2)) + bias, added[layer], **CLOSE)
        torch.testing.assert_close(parts.update, added[layer], **CLOSE)
        torch.testing.assert_close(parts.shares.sum((1, 2)) + parts.bias_share, torch.ones(B), **CLOSE)
        torch.testing.assert_close(parts.norms, each.norm(dim=-1), **CLOSE)
        torch.testing.assert_close(parts.token_norms, each.sum(1).norm(dim=-1), **CLOSE)
        share = (each @ added[layer][:, None, :, None])[..., 0] / added[layer].square().sum(-1)[:, None, None]
        torch.testing.assert_close(parts.shares, share, **CLOSE)


def test_a_value_of_zero_hands_over_nothing_however_much_it_is_looked_at() -> None:
    case = Case()
    case.shared.before.values[1][:, :, 5] = 0
    with torch.no_grad():
        parts = decompose(case.model, case.shared, 1)
    assert case.shared.base.rows[1][..., 5].min() > 0
    assert (parts.norms[..., 5] == 0).all() and (parts.shares[..., 5] == 0).all()


def test_the_lens_gives_the_logits_at_vocos_position() -> None:
    case = Case(kv_heads=2)
    stream = stock_parts(case)["stream"][0]
    tokens = torch.tensor([[3, 8], [4, 79]])
    with torch.no_grad():
        directions = lens_direction(case.model, case.shared, tokens)
        logits = case.llm.lm_head(case.llm.model.norm(stream))
        parts = along(case.model, case.shared, 1, directions)
        each = vectors(case.model, case.shared, 1)
    wanted = logits.gather(1, tokens) - logits.mean(1, keepdim=True)
    torch.testing.assert_close((directions @ stream[..., None])[..., 0], wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts, torch.einsum("bhsd,bqd->bqhs", each, directions), **CLOSE)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_answers_path_is_what_the_text_takes_from_voco(kv_heads: int) -> None:
    """Its parts, with the embedding's and the MLPs', are what <voco>'s values add to the answer's logit."""
    case = Case(kv_heads)
    at, token = 3, torch.tensor([7, 50])
    ids = case.texts.ids[:, 0]
    case.llm.config._attn_implementation = "eager"
    streams: list[Tensor] = []
    hook = case.llm.model.norm.register_forward_pre_hook(lambda _m, given: streams.append(given[0][:, -T:]))
    x = torch.cat([case.hybrid, case.model.voco.expand(B, 1, -1), case.llm.model.embed_tokens(ids)], 1)
    mask = star_mask(0, case.hybrid.shape[1], T).expand(B, -1, -1, -1)
    with torch.no_grad():
        out = case.llm.model(inputs_embeds=x, attention_mask=mask, use_cache=False, output_attentions=True)
    hook.remove()
    stream, norm, head = streams[0][:, at], case.llm.model.norm, case.llm.lm_head.weight
    scale = (stream.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt() * norm.weight
    end = (head[token] - head.mean(0)) * scale
    wanted = torch.zeros(B)
    with torch.no_grad():
        directions = answer_directions(case.model, case.shared, ids, at, token)
        for layer in range(LAYERS):
            attn = case.llm.model.layers[layer].self_attn
            look = out.attentions[layer][:, :, x.shape[1] - T + at, case.before]  # (B, H)
            value = case.shared.base.values[layer][:, 0] - attn.v_proj.bias.unflatten(0, (kv_heads, -1))
            value = value.repeat_interleave(4 // kv_heads, 1) * look[..., None]
            wanted += ((value.flatten(1) @ attn.o_proj.weight.T) * end).sum(-1)
        found = (case.model.voco * directions[:, 0]).sum(-1)
        mlps = stock_parts(case)["mlp"]
        for layer in range(LAYERS):
            found += along(case.model, case.shared, layer, directions[:, layer + 1]).sum((1, 2))
            bias = case.llm.model.layers[layer].self_attn.o_proj.bias
            found += ((mlps[layer] + bias) * directions[:, layer + 1]).sum(-1)
    assert directions.shape == (B, LAYERS + 1, WIDTH) and (directions[:, -1] == 0).all()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert wanted.abs().max() > 0.1


def test_the_section(tmp_path: Path) -> None:
    model = tiny(2)
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "run.h5"
    arguments = ["--model", str(tmp_path / "model"), "--limit", "3", "--out", str(out), "--device", "cpu"]
    assert extract_main(arguments) == 0
    with open_run(out) as run:
        found = updates.analyse(model, run)
        rows = np.stack([run.attention(image) for image in range(3)])
    assert model.config.text.vocab_size == WORDS and len(found.questions) == 10
    assert found.roles == ["anchor", "patch", "voco"] and found.norm.shape == found.share.shape == (3, LAYERS, 21)
    attention, share = found.attention_by_role.estimate, found.share_by_role
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(attention[:, 0], rows[..., :4].sum(-1).mean((0, 2)), atol=2e-3)
    np.testing.assert_allclose(share.estimate[:, 1], found.share[..., 4:20].sum(-1).mean(0), atol=1e-5)
    assert (share.lower <= share.upper).all()
    assert found.answers is not None and found.lens is not None and found.answers_by_role is not None
    assert found.answers.shape == found.lens.shape == (3, LAYERS, 21)
    assert (found.answers[:, -1] == 0).all() and np.abs(found.answers[:, :-1]).max() > 0
    assert found.answers_by_role.estimate.shape == (10, 3)
    assert records.flat(found).keys() >= {"norm", "answers_by_role_lower", "lens"}
