"""LoRA adapters: merged as PEFT merges them, or refused with the reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from htc_probe.extract import models
from htc_probe.extract.errors import UserError
from made.checkpoints import (
    answers_of,
    answers_of_transformers,
    load,
    lora_settings,
    some_input,
    space_of,
    write_original_adapter,
)


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        ("today", {}),
        ("original, whole CLIP", {"use_rslora": True, "modules_to_save": ["multi_modal_projector"]}),
        ("old", {"target_modules": "all-linear"}),
    ],
)
def test_an_adapter_of_hugging_faces_llava(
    layout: str, settings: dict[str, Any], llavas: dict[str, Path], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    base = LlavaForConditionalGeneration.from_pretrained(llavas["today"])
    tuned = get_peft_model(base, LoraConfig(**lora_settings(**settings)))
    for name, parameter in tuned.named_parameters():
        if "modules_to_save" in name:
            parameter.data.mul_(1.5)
    tuned.save_pretrained(tmp_path)
    merged = tuned.merge_and_unload().eval()
    model, (pixels, text) = load(llavas[layout], adapter=tmp_path), some_input()
    space = space_of(llavas[layout])
    wanted = answers_of_transformers(merged, pixels, model.config, text, space)
    plain = answers_of(load(llavas[layout]), pixels, text)
    assert (plain - wanted).abs().max() > 0.1
    torch.testing.assert_close(answers_of(model, pixels, text), wanted, atol=1e-4, rtol=0)


def test_an_adapter_of_our_own_model(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    tiny = models.find("htc-tiny")
    tuned = get_peft_model(load(tiny), LoraConfig(**lora_settings(modules_to_save=["patch_projector"])))
    tuned.save_pretrained(tmp_path, safe_serialization=False)
    wanted, found = tuned.merge_and_unload().state_dict(), load(tiny, adapter=tmp_path).state_dict()
    changed = [name for name, tensor in load(tiny).state_dict().items() if not torch.equal(tensor, wanted[name])]
    assert len(changed) >= 3 and all("_proj" in name for name in changed)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("layout", ["original, whole CLIP", "today"])
def test_an_adapter_of_the_original_llava(layout: str, llavas: dict[str, Path], tmp_path: Path) -> None:
    parts = write_original_adapter(tmp_path)
    before, after = load(llavas[layout]).state_dict(), load(llavas[layout], adapter=tmp_path).state_dict()
    before["language_model.model.layers.1.self_attn.v_proj.weight"] += 3 * parts["b"] @ parts["a"]
    before |= {name: tensor for name, tensor in parts.items() if name.startswith("patch_projector.")}
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, before[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3; expected plain LoRA"),
        ({"use_dora": True}, "LORA, use_dora; expected plain LoRA"),
        ({"rank_pattern": {"q_proj": 4}}, "LORA, rank_pattern;"),
        ({"fan_in_fan_out": True}, "LORA, fan_in_fan_out;"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"r": 4}, "no A and B of rank 4"),
        ({"r": "2"}, "r '2'"),
        ({"lora_alpha": None}, "lora_alpha None"),
    ],
)
def test_adapters_that_are_more_than_lora(
    config: dict[str, Any], words: str, llavas: dict[str, Path], tmp_path: Path
) -> None:
    write_original_adapter(tmp_path, **config)
    with pytest.raises(UserError, match=words):
        load(llavas["today"], adapter=tmp_path)


def test_adapters_of_another_model(llavas: dict[str, Path], tmp_path: Path) -> None:
    write_original_adapter(tmp_path)
    with pytest.raises(UserError, match=r"no place for base_model.*mm_projector.0.weight.*\(5 of 6"):
        load(models.find("htc-tiny"), adapter=tmp_path)
    extra = {"base_model.model.model.layers.1.self_attn.v_proj.lora_magnitude_vector": torch.ones(1)}
    torch.save(extra, tmp_path / "non_lora_trainables.bin")
    with pytest.raises(UserError, match="more than LoRA of linear layers: .*lora_magnitude_vector"):
        load(llavas["today"], adapter=tmp_path)
    extra = {"base_model.model.model.mm_projector.0.weight": torch.ones(32, 16, dtype=torch.int8)}
    torch.save(extra, tmp_path / "non_lora_trainables.bin")
    with pytest.raises(UserError, match="no place for .*mm_projector"):
        load(llavas["today"], adapter=tmp_path)
    write_original_adapter(tmp_path)
    lora = torch.load(tmp_path / "adapter_model.bin", weights_only=True)
    torch.save(
        {key: tensor[..., :1] if "lora_B" in key else tensor for key, tensor in lora.items()},
        tmp_path / "adapter_model.bin",
    )
    with pytest.raises(UserError, match="no place for .*lora_A.weight"):
        load(llavas["today"], adapter=tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError, match="adapter_config.json cannot be read"):
        load(llavas["today"], adapter=tmp_path)
    with pytest.raises(UserError, match="no adapter_config.json"):
        load(llavas["today"], adapter=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (lambda: peft.LoraConfig(target_modules=["embed_tokens"]), r"more than LoRA .*lora_embedding_A, .*\(2 of"),
        (lambda: peft.LoraConfig(target_modules=["patch_embedding"]), r"more than LoRA .*patch_embedding.lora_A"),
        (lambda: peft.LoraConfig(target_modules=["q_proj"], use_dora=True), "use_dora; expected plain LoRA"),
        (lambda: peft.LoHaConfig(target_modules=["q_proj"]), "peft_type LOHA.*; expected plain LoRA"),
        (lambda: peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "IA3.*; expected plain LoRA"),
        (lambda: peft.VeraConfig(target_modules=["v_proj"], r=4), "peft_type VERA.*; expected plain LoRA"),
    ],
    ids=["embedding", "convolution", "dora", "loha", "ia3", "vera"],
)
def test_an_adapter_of_another_kind_is_named_as_that(
    settings: Callable[[], Any], words: str, llavas: dict[str, Path], tmp_path: Path
) -> None:
    """Not as one of another model; also where adapter_config.json says less than the weights."""
    base = LlavaForConditionalGeneration.from_pretrained(llavas["today"])
    peft.get_peft_model(base, settings()).save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(UserError, match=words):
        load(llavas["today"], adapter=tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 8}))
    with pytest.raises(UserError, match="more than LoRA of linear layers"):
        load(llavas["today"], adapter=tmp_path)


def test_a_folder_of_llava_s_lora_training_that_is_not_whole(llavas: dict[str, Path], tmp_path: Path) -> None:
    base, adapter = llavas["original, whole CLIP"], tmp_path / "adapter"
    write_original_adapter(adapter)
    shutil.copy(base / "config.json", adapter)
    load(base, adapter=adapter)
    projector = (adapter / "non_lora_trainables.bin").read_bytes()
    (adapter / "non_lora_trainables.bin").unlink()
    with pytest.raises(UserError, match="lacks non_lora_trainables.bin, .*; copy that file there"):
        load(base, adapter=adapter)
    with pytest.raises(UserError, match="lacks non_lora_trainables.bin"):
        models.digest(base, adapter)
    torch.save({}, adapter / "non_lora_trainables.bin")
    with pytest.raises(UserError, match="lacks 4 of the 4 weights of the projector"):
        load(base, adapter=adapter)
    half = {f"base_model.model.model.mm_projector.0.{name}": torch.ones(size) for name, size in (("bias", 32),)}
    torch.save(half, adapter / "non_lora_trainables.bin")
    with pytest.raises(UserError, match="lacks 3 of the 4 weights of the projector .* copy the whole file"):
        load(base, adapter=adapter)
    (adapter / "non_lora_trainables.bin").unlink()
    (adapter / "config.json").write_text(json.dumps({"model_type": "llama"}))
    load(base, adapter=adapter)  # of a language model: nothing else was trained

    (adapter / "non_lora_trainables.bin").write_bytes(projector)
    config = json.loads((base / "config.json").read_text())
    (adapter / "config.json").write_text(json.dumps(config | {"image_aspect_ratio": None}))
    with pytest.raises(UserError, match="square by crop, and its base .* by pad; change image_aspect_ratio"):
        load(base, adapter=adapter)
