"""HTC-VLM: loss and answers are those of the full masked sequence; it saves, loads and stays frozen."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, GenerationConfig, Trainer, TrainingArguments

from htc_probe.extract import models
from htc_probe.extract.vlm.mgvq import MGVQConfig
from htc_probe.extract.vlm.model import HTCVLM
from htc_probe.extract.vlm.star import TOPOLOGIES, star_mask
from made.variants import MGVQ_FIELDS, VOCABULARY, B, Q, T, images, small_model


def texts(*shape: int) -> Tensor:
    return torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(4))


def masked_logits(model: HTCVLM, pixels: Tensor, ids: Tensor) -> Tensor:
    """Logits of texts (B, T) from the stock model over the whole sequence, under the float mask."""
    llama = model.language_model
    anchors, patches = model.encode(pixels)[0]
    hybrid_parts = [anchors, patches] if model.config.anchor_place == "before" else [patches, anchors]
    before, between = (
        llama.model.embed_tokens(torch.tensor(words, dtype=torch.long)).expand(len(pixels), -1, -1)
        for words in (model.config.prefix_ids, model.config.infix_ids)
    )
    voco = model.voco.expand(len(pixels), 1, -1)
    parts = [before, *hybrid_parts, between, voco, llama.model.embed_tokens(ids)]
    hybrid = model.config.sequence - 1
    prefix = len(model.config.prefix_ids)
    mask = star_mask(prefix, hybrid - prefix, ids.shape[1], topology=model.config.topology)
    out = llama(inputs_embeds=torch.cat(parts, 1), attention_mask=mask, use_cache=False)
    return out.logits[:, hybrid + 1 :]


def masked_greedy(model: HTCVLM, pixels: Tensor, ids: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        ids = torch.cat([ids, masked_logits(model, pixels, ids)[:, -1:].argmax(-1)], 1)
    return ids[:, -steps:]


VARIANTS: dict[str, dict[str, Any]] = {
    **{topology: {"topology": topology} for topology in TOPOLOGIES},
    "prefix": {"prefix_ids": (5, 9)},
    "VoCo-LLaMA": {"topology": "causal", "num_anchors": 0, "prefix_ids": (1,), "infix_ids": (29, 13)},
    "LLaVA": {"topology": "uncompressed", "num_anchors": 0, "prefix_ids": (1, 7, 8)},
    "no anchors": {"num_anchors": 0},
    "after": {"anchor_place": "after"},
    "random": {"anchors": "random"},
    "attended": {"anchors": "attended", "anchor_place": "after"},
    "kmeans": {"anchors": "kmeans"},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_the_loss_is_that_of_the_full_masked_sequence(settings: dict[str, Any]) -> None:
    model, pixels, ids = small_model(**settings), images(), texts(B, Q, T)
    labels = ids.clone()
    labels[..., :2] = -100
    labels[0, 1, 4:] = -100
    out = model(pixels, input_ids=ids, labels=labels)
    wanted = torch.stack([masked_logits(model, pixels, ids[:, pair]) for pair in range(Q)], 1)
    torch.testing.assert_close(out.logits, wanted, atol=1e-4, rtol=1e-5)
    loss = F.cross_entropy(wanted[..., :-1, :].reshape(-1, VOCABULARY), labels[..., 1:].reshape(-1))
    torch.testing.assert_close(out.loss, loss, atol=1e-5, rtol=1e-5)
    trained = [p for p in model.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(x, trained, allow_unused=True) for x in (out.loss, loss))
    for one, other in zip(ours, theirs, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_cached_features_replace_the_frozen_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels, ids = small_model(), images(), texts(B, T)
    wanted = model(pixels, input_ids=ids, labels=ids)
    features, q = model.vision_features(pixels), model.quantize(pixels).quant.flatten(1)

    def never(*_: Any) -> None:
        raise AssertionError("a frozen tower ran")

    monkeypatch.setattr(model.vision_tower.embeddings, "forward", never)
    monkeypatch.setattr(model.mgvq, "encode", never)
    again = model(vision_features=features, q=q, input_ids=ids, labels=ids)
    assert torch.equal(again.logits, wanted.logits) and torch.equal(again.loss, wanted.loss)
    with pytest.raises(ValueError, match="give pixel_values, or both vision_features and q"):
        model(q=q, input_ids=ids)


def test_pairs_read_voco_and_themselves_only() -> None:
    model, pixels, ids = small_model(), images(), texts(B, Q, T)
    before = model(pixels, input_ids=ids).logits
    changed = ids.clone()
    changed[:, 1] = changed[:, 1].flip(-1)
    after = model(pixels, input_ids=changed).logits
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])
    assert not torch.allclose(after[:, 1], before[:, 1])
    alone = model(pixels, input_ids=ids[:, 2]).logits
    torch.testing.assert_close(before[:, 2], alone, atol=1e-5, rtol=1e-5)


def test_text_depends_on_its_image_and_on_the_position_after_it() -> None:
    model, pixels, ids = small_model(), images(), texts(1, T).expand(B, T)
    logits = model(pixels, input_ids=ids).logits
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    compressed = model.compress(*model.hybrid(model.vision_features(pixels), model.quantize(pixels).quant.flatten(1)))
    torch.testing.assert_close(model.read(compressed, ids), logits)
    torch.testing.assert_close(model.read(compressed, ids), logits)  # reading does not write to the cache
    assert compressed.cache.get_seq_length() == 1
    ignored = compressed._replace(attention=compressed.attention[..., 1:])  # one position too early
    assert (model.read(ignored, ids) - logits).abs().max() > 1e-4


def test_a_text_without_an_image_is_the_plain_language_model_s() -> None:
    model, pixels, ids = small_model(), images(), texts(B, T)
    ids[0, 4:] = 0
    mask = (ids != 0).long()
    logits = model(pixels, input_ids=ids, attention_mask=mask, has_image=torch.tensor([False, True])).logits
    alone = model.language_model(input_ids=ids[:1, :4]).logits
    torch.testing.assert_close(logits[:1, :4], alone, atol=1e-5, rtol=1e-5)
    with_image = model(pixels, input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(logits[1], with_image[1], atol=1e-5, rtol=1e-5)
    assert (logits[0, :4] - with_image[0, :4]).abs().max() > 1e-3


def test_losses_of_parts_add_up_to_the_whole_batch_s() -> None:
    model, pixels, ids = small_model(), images(), texts(B, T)
    labels = ids.clone()
    labels[0, :3] = -100  # so that the parts have different numbers of labels
    count = int((labels[:, 1:] != -100).sum())
    whole = model(pixels, input_ids=ids, labels=labels).loss
    parts = [
        model(pixels[i : i + 1], input_ids=ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=count).loss
        for i in range(B)
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)
    assert abs(parts[0] - parts[1]) > 0.01


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str) -> None:
    model, pixels, ids = small_model(), images(), texts(B, T)
    wanted = model(pixels, input_ids=ids).logits
    padding = torch.zeros(B, 2, dtype=torch.long)
    parts, kept = ([padding, ids], slice(2, None)) if side == "left" else ([ids, padding], slice(0, T))
    padded = torch.cat(parts, 1)
    masked = model(pixels, input_ids=padded, attention_mask=(padded != 0).long()).logits[:, kept]
    torch.testing.assert_close(masked, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_generate_equals_greedy_decoding_of_the_full_masked_sequence(settings: dict[str, Any]) -> None:
    model, pixels, ids = small_model(**settings), images(4), texts(4, 3)
    wanted = masked_greedy(model, pixels, ids, 8)
    assert torch.equal(model.generate(pixels, ids, max_new_tokens=8), wanted)
    assert len({tuple(answer) for answer in wanted.tolist()}) > 1, "the images should matter"
    encoding = model.quantize(pixels)
    given = {"vision_features": model.vision_features(pixels), "q": encoding and encoding.quant.flatten(1)}
    assert torch.equal(model.generate(**given, input_ids=ids, max_new_tokens=8), wanted)


def test_generate_takes_prompts_of_different_lengths_padded_on_the_left() -> None:
    model, pixels = small_model(), images()
    long, short = texts(1, 5), texts(1, 3)
    padded = torch.cat([long, F.pad(short, (2, 0))])
    together = model.generate(pixels, padded, attention_mask=(padded != 0).long(), max_new_tokens=6)
    assert torch.equal(together[:1], masked_greedy(model, pixels[:1], long, 6))
    assert torch.equal(together[1:], masked_greedy(model, pixels[1:], short, 6))


def test_generate_stops_at_the_end_token() -> None:
    model, pixels, ids = small_model(), images(1), texts(1, 3)
    free = model.generate(pixels, ids, max_new_tokens=8)[0].tolist()
    end = free[3]
    stopped = model.generate(pixels, ids, max_new_tokens=8, eos_token_id=end)[0].tolist()
    assert stopped == free[: free.index(end) + 1]
    with pytest.raises(ValueError, match="needs input_ids"):
        model.generate(pixels)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_answers_do_not_depend_on_a_cache_being_asked_for(topology: Any, tmp_path: Path) -> None:
    """The cache holds <voco>: without it the text would not see the image. Checkpoints after training ask for none."""
    model, pixels, ids = small_model(topology=topology), images(), texts(B, T)
    wanted, logits = model.generate(pixels, ids, max_new_tokens=6), model(pixels, input_ids=ids).logits
    assert torch.equal(model.generate(pixels, ids, max_new_tokens=6, use_cache=False), wanted)
    given = GenerationConfig(max_new_tokens=6, use_cache=False, pad_token_id=0)
    assert torch.equal(model.generate(pixels, ids, generation_config=given), wanted)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["text_config"]["use_cache"] = saved["use_cache"] = False
    (tmp_path / "config.json").write_text(json.dumps(saved))
    for loaded in (HTCVLM.from_pretrained(tmp_path), models.load(tmp_path, dtype=torch.float32, device="cpu")):
        assert not loaded.config.text.use_cache
        assert torch.equal(loaded.generate(pixels, ids, max_new_tokens=6), wanted)
        torch.testing.assert_close(loaded(pixels, input_ids=ids).logits, logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 2}, "asked for beam search with 1 answers"),
        ({"num_beams": 3, "num_return_sequences": 2}, "beam search with 2 answers"),
        ({"num_beams": 2, "do_sample": True}, "beam sample"),
        ({"num_return_sequences": 2, "do_sample": True}, "sample with 2 answers"),
        ({"generation_config": GenerationConfig(num_beams=2)}, "beam search"),
        ({"prompt_lookup_num_tokens": 2}, "assisted generation"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search"),
        ({"return_dict_in_generate": True}, "leave out return_dict_in_generate"),
        ({"input_ids": torch.ones(3, 2, dtype=torch.long)}, "3 prompts for 2 images"),
    ],
    ids=str,
)
def test_searches_that_generate_cannot_do_are_refused_in_a_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        small_model().generate(images(2), **({"input_ids": texts(2, 3)} | settings))
    assert "\n" not in str(caught.value)


def test_sampling_gives_one_answer_an_image() -> None:
    model, pixels, ids = small_model(), images(), texts(B, 3)
    torch.manual_seed(0)
    free = model.generate(pixels, ids, do_sample=True, temperature=2.0, max_new_tokens=5)
    torch.manual_seed(0)
    assert torch.equal(model.generate(pixels, ids, do_sample=True, temperature=2.0, max_new_tokens=5), free)
    assert not torch.equal(model.generate(pixels, ids, do_sample=True, temperature=2.0, max_new_tokens=5), free)


@pytest.mark.parametrize("shape", [(B, T), (B, Q, T)])
def test_labels_that_are_all_ignored_are_an_error(shape: tuple[int, ...]) -> None:
    model, pixels, ids = small_model(), images(), texts(*shape)
    nothing = torch.full_like(ids, -100)
    first = nothing.clone()
    first[..., 0] = ids[..., 0]  # which no token is before
    for labels in (nothing, first):
        with pytest.raises(ValueError, match="all labels are -100"):
            model(pixels, input_ids=ids, labels=labels)
    with pytest.raises(ValueError, match="all labels are -100"):
        model(pixels, input_ids=ids, labels=ids, num_items_in_batch=torch.tensor(0))
    # A part of a larger batch may have no label of its own.
    assert model(pixels, input_ids=ids, labels=nothing, num_items_in_batch=7).loss == 0
    one = nothing.clone()
    one[0, ..., -1] = 5
    assert model(pixels, input_ids=ids, labels=one).loss.isfinite()


@pytest.mark.parametrize("layer", [0, 2, -2])
def test_attention_of_cls_is_clip_s_own(layer: int) -> None:
    model = small_model(anchors="attended", vision_layer=layer)
    for parameter in model.vision_tower.parameters():
        parameter.data.mul_(3)
    pixels = images()
    features = model.vision_features(pixels)
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.config.image_mean, model.config.image_std))
    model.vision_tower.set_attn_implementation("eager")
    out = model.vision_tower((pixels - mean) / std, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(features[..., :-1], out.hidden_states[layer][:, 1:], atol=1e-4, rtol=1e-4)
    row = out.attentions[max(0, model.config.vision_depth - 1)][:, :, 0, 1:].mean(1)
    torch.testing.assert_close(features[..., -1], row, atol=1e-4, rtol=1e-4)


def test_the_vision_layer_is_a_hugging_face_hidden_state() -> None:
    for layer in (0, 1, -1, -2):
        model = small_model(vision_layer=layer)
        pixels = images()
        mean, std = (torch.tensor(v)[:, None, None] for v in (model.config.image_mean, model.config.image_std))
        states = model.vision_tower((pixels - mean) / std, output_hidden_states=True).hidden_states
        assert torch.equal(model.vision_features(pixels), states[layer][:, 1:])
    with pytest.raises(ValueError, match=r"pixel_values have shape .* takes \(images, 3, 32, 32\)"):
        model.vision_features(torch.rand(1, 3, 16, 16))


def test_frozen_parts_stay_frozen_whatever_train_says() -> None:
    model, pixels, ids = small_model(), images(), texts(B, T)
    model.train()
    state = {name: value.clone() for name, value in model.mgvq.state_dict().items()}
    model(pixels, input_ids=ids, labels=ids).loss.backward()
    assert model.training and model.language_model.training
    assert not any(m.training for part in (model.vision_tower, model.mgvq) for m in part.modules())
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("vision_tower.", "mgvq."))
        assert parameter.requires_grad != frozen
        assert (parameter.grad is None) == frozen, name
    assert all(torch.equal(value, state[name]) for name, value in model.mgvq.state_dict().items())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("topology", ["star", "uncompressed"])
def test_checkpointing_gives_the_same_gradients_and_keeps_voco(topology: str, attention: str) -> None:
    model, pixels, ids = small_model(topology=topology).train(), images(), texts(B, Q, T)
    model.language_model.set_attn_implementation(attention)
    ids[0, 0, 4:] = ids[1, 2, :2] = 0  # padding on either side
    labels = ids.masked_fill(ids == 0, -100)
    labels[1, 2, 2] = -100  # predicted from padding, which may attend to anything
    inputs = {"input_ids": ids, "labels": labels, "has_image": torch.tensor([True, False])}

    def run(**more: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        out = model(pixels, **inputs, **more)
        out.loss.backward()
        return out.logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    for more in ({"attention_mask": (ids != 0).long()}, {}):
        model.gradient_checkpointing = False
        logits, wanted = run(**more)
        model.activation_checkpointing_enable()
        assert model.gradient_checkpointing
        again, gradients = run(**more)
        seen = ids != 0
        torch.testing.assert_close(again[seen], logits[seen], atol=1e-5, rtol=1e-5)
        assert gradients.keys() == wanted.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-3, msg=name)
    model.language_model.activation_checkpointing_enable()  # this one would lose the cache
    with pytest.raises(ValueError, match="enable it on the HTCVLM"):
        model(pixels, **inputs)


def test_checkpointing_keeps_little_of_the_text_for_the_backward_pass() -> None:
    model, pixels = small_model(text={"num_hidden_layers": 4}).train(), images(1)
    ids = texts(1, 60)
    kept = {}
    for checkpointing in (False, True):
        model.gradient_checkpointing, total = checkpointing, 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel() if not isinstance(tensor, torch.nn.Parameter) else 0
            return tensor

        compressed = model.compress(*model.encode(pixels)[0])
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model.read(compressed, ids)
        kept[checkpointing] = total
    assert kept[True] < kept[False] / 4


@pytest.mark.parametrize("tied", [False, True])
def test_it_saves_and_loads_also_by_its_auto_class(tmp_path: Path, tied: bool) -> None:
    model, pixels, ids = small_model(text={"tie_word_embeddings": tied}), images(), texts(B, T)
    wanted = model(pixels, input_ids=ids).logits
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict().keys() == model.config.to_diff_dict().keys()
    for loaded in (HTCVLM.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is HTCVLM and loaded.config.mgvq_config == MGVQConfig(**MGVQ_FIELDS)
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
        assert torch.equal(loaded(pixels, input_ids=ids).logits, wanted)
        assert not any(p.requires_grad for p in loaded.vision_tower.parameters())
        assert torch.equal(loaded.generate(pixels, ids), model.generate(pixels, ids))


def test_bfloat16_runs_and_leaves_the_codes_exact(tmp_path: Path) -> None:
    model, pixels, ids = small_model(), images(), texts(B, T)
    model.save_pretrained(tmp_path)
    half = HTCVLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.voco.dtype == half.language_model.dtype == torch.bfloat16
    assert torch.equal(half.quantize(pixels).quant, model.quantize(pixels).quant)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half.quantize(pixels).quant, model.quantize(pixels).quant)
    wanted = model(pixels, input_ids=ids).logits
    out = half(pixels, input_ids=ids, labels=ids)
    assert out.loss.isfinite() and (out.logits - wanted).norm() < 0.1 * wanted.norm()
    out.loss.backward()
    assert half.generate(pixels, ids, max_new_tokens=2).shape == (B, 2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_trainer_of_transformers_trains_it(tmp_path: Path, checkpointing: bool) -> None:
    model = small_model(projector="linear")
    pixels, ids = images(4), texts(4, Q, T)
    rows = [{"pixel_values": p, "input_ids": i, "labels": i} for p, i in zip(pixels, ids, strict=True)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        max_steps=12,
        learning_rate=1e-2,
        gradient_checkpointing=checkpointing,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    before = model(pixels, input_ids=ids, labels=ids).loss.item()
    data: Any = rows
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < before - 0.5
