"""--model reads every layout: small checkpoints in the official formats, against the libraries they come from."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import sentencepiece
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from htc_probe.extract import models
from htc_probe.extract.again import find_model
from htc_probe.extract.cli import main
from htc_probe.extract.errors import UserError
from htc_probe.extract.info import main as info_main
from htc_probe.extract.models.layouts import BEFORE_IMAGE
from htc_probe.extract.store import open_run
from htc_probe.extract.vlm.config import CLIP_MEAN, CLIP_STD, HTCConfig
from htc_probe.extract.vlm.invariants import check_invariants
from htc_probe.extract.vlm.model import HTCVLM

GOLDEN = Path(__file__).parent / "golden" / "voco_llama_tiny.safetensors"
SIZE, PATCHES, LAYERS = 28, 16, 3
SETTINGS_OF_CLIP: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 7,
}
SETTINGS_OF_LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_theta": 5000.0,
}
State = dict[str, Tensor]


def enlarged(model: Any) -> Any:
    """With weights large enough for attention that is not uniform, and norms other than 1."""
    for parameter in model.parameters():
        parameter.data.mul_(5 if parameter.ndim == 2 else 1).add_(0.1 * torch.randn_like(parameter))
    return model.eval()


# ---- checkpoints as others write them


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.model like LLaMA's: byte fallback, and a space in front."""
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text").write_text(f"{BEFORE_IMAGE} ASSISTANT: what is in this image\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def write_tokenizer(folder: Path, pieces: Path, *, added: str | None, fast: bool) -> int:
    """The files that transformers 4 wrote; gives the id of the token `added` to the 330."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config: dict[str, Any] = {**special, "tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True}
    if added is not None:
        entry = {"content": added, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        config["added_tokens_decoder"] = {"330": {**entry, "special": True}}
        config["additional_special_tokens"] = [added]
        (folder / "added_tokens.json").write_text(json.dumps({added: 330}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    shutil.copy(pieces, folder / "tokenizer.model")
    if fast:
        tokenizer = models.read_tokenizer(folder)
        tokenizer.save_pretrained(folder / "fast")
        shutil.copy(folder / "fast" / "tokenizer.json", folder)
        (folder / "tokenizer.model").unlink()
    return 330


def write_weights(folder: Path, state: State, *, stem: str = "model", shards: int = 1, zipped: bool = True) -> None:
    """`stem` is model for safetensors, pytorch_model for torch.save."""
    suffix = "safetensors" if stem == "model" else "bin"
    names = [f"{stem}.{suffix}"]
    if shards > 1:
        names = [f"{stem}-{i + 1:05}-of-{shards:05}.{suffix}" for i in range(shards)]
        index = {key: names[i % shards] for i, key in enumerate(state)}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for i, name in enumerate(names):
        part = {key: state[key].contiguous() for key in list(state)[i::shards]}
        if suffix == "bin":
            torch.save(part, folder / name, _use_new_zipfile_serialization=zipped)
        else:
            save_file(part, folder / name, {"format": "pt"})


def renamed(state: State, *changes: tuple[str, str]) -> State:
    def new(key: str) -> str:
        for old, name in changes:
            if key.startswith(old):
                return name + key.removeprefix(old)
        return key

    return {new(key): tensor.detach().clone() for key, tensor in state.items()}


OLD = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)
NEW = (("model.vision_tower.", "model.vision_tower.vision_model."),)
ORIGINAL = (
    ("model.language_model.", "model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
)


def original_config(folder: Path, **settings: Any) -> None:
    fields = {
        **SETTINGS_OF_LLAMA,
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "vocab_size": 32000,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "pad_token_id": 0,
        "torch_dtype": "float16",
        "mm_vision_tower": "clip",
        "mm_hidden_size": 16,
        "mm_projector_type": "mlp2x_gelu",
        "use_mm_proj": True,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "image_aspect_ratio": "pad",
        "tokenizer_padding_side": "left",
    }
    (folder / "config.json").write_text(json.dumps(fields | settings))


@pytest.fixture(scope="session")
def llava() -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    # More rows than tokens, as Hugging Face's have.
    text = LlamaConfig(vocab_size=336, rms_norm_eps=1e-6, **SETTINGS_OF_LLAMA)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SETTINGS_OF_CLIP),
        text_config=text,
        image_token_index=330,
        image_seq_length=PATCHES,
    )
    return enlarged(LlavaForConditionalGeneration(config))


def write_clip(folder: Path, state: State, *, whole: bool) -> None:
    """The vision tower of a LLaVA's `state`, alone or in a CLIP with its text half, in a folder of its own."""
    prefix = "model.vision_tower."
    vision = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    if not whole:
        tower = CLIPVisionModel(CLIPVisionConfig(**SETTINGS_OF_CLIP))
        tower.load_state_dict(vision)
        tower.save_pretrained(folder)
        return
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 50,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    clip = CLIPModel(CLIPConfig(vision_config=SETTINGS_OF_CLIP, text_config=text, projection_dim=8))
    clip.vision_model.load_state_dict(vision)
    clip.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors") | {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    (folder / "model.safetensors").unlink()
    write_weights(folder, weights, stem="pytorch_model")  # as on the hub


def write_llava(folder: Path, layout: str, llava: LlavaForConditionalGeneration, pieces: Path) -> Path:
    """The same LLaVA in the layout of that name."""
    folder.mkdir(parents=True)
    state = llava.state_dict()
    if layout.startswith("original"):
        write_tokenizer(folder, pieces, added=None, fast=False)
        original_config(folder, **({"model_type": "llava"} if layout == "original, tower inside" else {}))
        weights = renamed(state, *ORIGINAL)
        if layout != "original, tower inside":
            weights = {key: tensor for key, tensor in weights.items() if "vision_tower" not in key}
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
        write_clip(folder / "clip", state, whole=layout != "original, tower alone")
        write_weights(folder, weights, stem="pytorch_model", shards=3)
        return folder
    if layout == "today":
        llava.save_pretrained(folder)
    else:
        llava.config.save_pretrained(folder)
        weights = renamed(state, *(OLD if layout == "old" else NEW))
        weights["model.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        write_weights(folder, weights, shards=2 if layout == "new" else 1)
    write_tokenizer(folder, pieces, added="<image>", fast=True)
    return folder


LAYOUTS = ["old", "new", "today", "original, tower alone", "original, whole CLIP", "original, tower inside"]


@pytest.fixture(scope="session")
def llavas(
    llava: LlavaForConditionalGeneration, pieces: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("llava")
    return {layout: write_llava(folder / layout, layout, llava, pieces) for layout in LAYOUTS}


def space_of(folder: Path) -> int:
    """The token of the space that LLaMA's tokenizer puts in front of a text."""
    return models.read_tokenizer(folder).get_vocab()["▁"]


def load(folder: Path, **settings: Any) -> HTCVLM:
    return models.load(folder, **({"dtype": torch.float32, "device": "cpu"} | settings))


@torch.no_grad()
def answers_of(model: HTCVLM, pixels: Tensor, text: Tensor) -> Tensor:
    """Logits at <voco> and at every token of the text after it."""
    compressed = model.compress(*model.encode(pixels)[0])
    own = model.language_model.lm_head(compressed.hidden[:, -1:])
    return torch.cat([own, model.read(compressed, text)], 1)


@torch.no_grad()
def answers_of_transformers(llava: Any, pixels: Tensor, config: HTCConfig, text: Tensor, first: int) -> Tensor:
    """The same from transformers, `first` being the token after the image."""
    before = torch.tensor([[*config.prefix_ids, *[330] * PATCHES, first]]).expand(len(pixels), -1)
    normal = (pixels - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    logits = llava(input_ids=torch.cat([before, text], 1), pixel_values=normal).logits
    return logits[:, before.shape[1] - 1 :]


def some_input() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, 3, SIZE, SIZE, generator=generator), torch.randint(3, 330, (2, 7), generator=generator)


# ---- LLaVA


@pytest.mark.parametrize("layout", LAYOUTS)
def test_llava_answers_as_in_transformers(layout: str, llavas: dict[str, Path], llava: Any) -> None:
    model = load(llavas[layout])
    config = model.config
    assert (config.topology, config.num_anchors, config.vision_layer) == ("uncompressed", 0, -2)
    assert (config.image_fit, config.infix_ids) == ("pad" if layout.startswith("original") else "crop", ())
    assert not model.training and model.mgvq is None and config == models.read_config(llavas[layout])
    pixels, text = some_input()
    space = space_of(llavas[layout])
    wanted = answers_of_transformers(llava, pixels, config, text, space)
    torch.testing.assert_close(answers_of(model, pixels, text), wanted, atol=1e-4, rtol=0)
    check_invariants(model, pixels)


def test_the_prompt_is_cut_as_a_processor_cuts_it(llavas: dict[str, Path]) -> None:
    tokenizer = models.read_tokenizer(llavas["today"])
    ids = tokenizer(f"{BEFORE_IMAGE}<image>\nwhat is in this image").input_ids
    image = ids.index(330)
    assert models.read_config(llavas["today"]).prefix_ids == tuple(ids[:image])
    assert ids[0] == 1 and tokenizer.convert_ids_to_tokens(ids[image + 1 : image + 3]) == ["▁", "<0x0A>"]
    original = models.read_config(llavas["original, whole CLIP"])
    assert original.prefix_ids == tuple(ids[:image]), "tokenizer.model and tokenizer.json say the same"


def copied(folder: Path, to: Path, **settings: Any) -> Path:
    """A copy whose config.json has these settings, and none of those that are `...`."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text()) | settings
    (to / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return to


PROCESSOR: dict[str, Any] = {"size": 40, "crop_size": SIZE, "resample": 2, "image_mean": [0.5, 0.4, 0.3]}


def test_images_become_square_as_the_checkpoint_s_processor_makes_them(
    llavas: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    """For the pixels, in the run and on the screen."""
    folder = copied(llavas["today"], tmp_path / "model")
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    (tmp_path / "data" / "val").mkdir(parents=True)
    for width in (50, 33):
        pixels = np.random.default_rng(width).integers(0, 256, (41, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "val" / f"{width}.png")
    run = tmp_path / "run.h5"
    command = ["--model", str(folder), "--data", str(tmp_path / "data"), "--split", "val", "--device", "cpu"]
    assert main([*command, "--out", str(run)]) == 0
    words = "the middle cropped to a square, 28 px of 40, bilinear"
    assert f"image  {words}" in capsys.readouterr().out
    assert info_main([str(run)]) == 0 and words in capsys.readouterr().out

    processor = CLIPImageProcessorPil.from_pretrained(folder)
    images = [Image.open(path) for path in sorted((tmp_path / "data" / "val").glob("*.png"))]
    model, wanted = load(folder), processor(images, return_tensors="pt").pixel_values.float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.config.image_mean, model.config.image_std))
    with open_run(run) as made, torch.no_grad():
        patches = model.encode(wanted * std + mean)[0].patches
        np.testing.assert_allclose(made.v_pooled(), patches.mean(1).numpy(), rtol=2e-3, atol=2e-3)  # float16
        assert made.info.model["config"]["image_fit"] == "crop"
        assert made.info.model["config"]["image_resize"] == 40
        assert find_model(made).folder == folder
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"resample": 3}))
    assert main([*command, "--out", str(run)]) == 2, "with the same weights it is another run"
    assert "image_resample: bilinear there, bicubic now" in capsys.readouterr().err
    with open_run(run) as made, pytest.raises(UserError, match="image_resample was bilinear and is bicubic"):
        find_model(made)


@pytest.mark.parametrize(("ratio", "fit"), [("pad", "pad"), (None, "crop"), (..., "crop"), ("square", "crop")])
@pytest.mark.parametrize("layout", ["original, tower alone", "original, tower inside"])
def test_image_aspect_ratio_is_what_llava_s_own_code_makes_of_it(
    ratio: Any, fit: str, layout: str, llavas: dict[str, Path], tmp_path: Path
) -> None:
    """It decides on the padding; the rest is said by the processor beside its CLIP."""
    folder = copied(llavas[layout], tmp_path / "model", image_aspect_ratio=ratio)
    assert models.read_config(folder).image_fit == fit
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    (folder / "preprocessor_config.json").write_text("not that of the tower")
    config = models.read_config(folder)
    assert (config.image_fit, config.image_resize, config.image_resample) == (fit, 40, "bilinear")
    assert config.image_mean == (0.5, 0.4, 0.3)


@pytest.mark.parametrize("layer", [-2, -1, 1])
def test_patches_are_a_hidden_state_of_clip(llavas: dict[str, Path], tmp_path: Path, layer: int) -> None:
    """Also with LLaVA's first, linear, projector."""
    folder = Path(shutil.copytree(llavas["original, tower alone"], tmp_path / "linear"))
    original_config(folder, mm_projector_type="linear", mm_vision_select_layer=layer, image_aspect_ratio=None)
    weights = merged_bins(folder)
    linear = {"weight": weights.pop("model.mm_projector.0.weight"), "bias": weights.pop("model.mm_projector.0.bias")}
    for name, tensor in linear.items():
        weights[f"model.mm_projector.{name}"] = tensor
        del weights[f"model.mm_projector.2.{name}"]
    write_weights(folder, weights)
    model, (pixels, _) = load(folder), some_input()
    tower = CLIPVisionModel.from_pretrained(folder / "clip").eval()
    normal = (pixels - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    with torch.no_grad():
        wanted = tower(normal, output_hidden_states=True).hidden_states[layer][:, 1:]
        torch.testing.assert_close(model.vision_features(pixels), wanted, atol=1e-5, rtol=0)
        projected = torch.nn.functional.linear(wanted, linear["weight"], linear["bias"])
        torch.testing.assert_close(model.encode(pixels)[0].patches, projected, atol=1e-5, rtol=0)


def merged_bins(folder: Path) -> State:
    state: State = {}
    for path in sorted(folder.glob("pytorch_model*.bin")):
        state |= torch.load(path, weights_only=True)
        path.unlink()
    return state


def test_bfloat16_and_what_is_computed(llavas: dict[str, Path], llava: Any) -> None:
    model = load(llavas["old"], dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    embedding = llava.get_input_embeddings().weight[space_of(llavas["old"])]
    assert torch.equal(model.voco, embedding.to(torch.bfloat16))
    rotary, own = model.language_model.model.rotary_emb, llava.model.language_model.rotary_emb
    assert torch.equal(rotary.inv_freq, own.inv_freq) and rotary.inv_freq.dtype == torch.float32
    assert model.vision_tower.embeddings.position_ids.tolist() == [list(range(PATCHES + 1))]
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("layout", ["old", "original, tower inside"])
def test_a_loaded_model_needs_its_files_no_more(layout: str, llavas: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llavas[layout], tmp_path / "model"))
    model = load(folder)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        with path.open("r+b") as file:  # in place, where a mapped file would show it
            file.write(bytes(path.stat().st_size))
    for name, tensor in load(llavas[layout]).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_an_htc_model_is_what_from_pretrained_makes_of_it() -> None:
    model = models.load(models.find("htc-tiny"), dtype=torch.bfloat16, device="cpu")
    wanted = HTCVLM.from_pretrained(models.find("htc-tiny"), dtype=torch.bfloat16).state_dict()
    found = model.state_dict()
    assert found.keys() == wanted.keys() and model.mgvq is not None and model.mgvq.codebook.dtype == torch.float32
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=0, check_dtype=tensor.is_floating_point())


# ---- VoCo-LLaMA


def write_voco(folder: Path, image: int, pieces: Path, *, stem: str, shards: int) -> Path:
    """The golden LLaMA as VoCo-LLaMA saves its own. The embeddings of one golden sequence become those of tokens:
    its last two image positions the newline before <voco>, and its text the tokens 50 to 55."""
    folder.mkdir()
    voco = write_tokenizer(folder, pieces, added="<voco>", fast=False)
    tensors = load_file(GOLDEN)
    inputs = tensors["in.inputs_embeds"][image]
    state = {key.removeprefix("weights."): t for key, t in tensors.items() if key.startswith("weights.")}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], torch.zeros(voco + 1 - 97, 64)])
    embeddings = state["model.embed_tokens.weight"]
    space = space_of(folder)
    embeddings[[space, 13, voco]], embeddings[50:56] = inputs[37:40], inputs[40:46]
    torch.manual_seed(0)
    shapes = {"0.weight": (64, 16), "0.bias": (64,), "2.weight": (64, 64), "2.bias": (64,)}
    state |= {f"model.mm_projector.{name}": torch.randn(shape) for name, shape in shapes.items()}
    enlarged(CLIPVisionModel(CLIPVisionConfig(**SETTINGS_OF_CLIP))).save_pretrained(folder / "clip")
    with safe_open(GOLDEN, "pt") as file:
        original_config(folder, **json.loads(file.metadata()["config"]))
    write_weights(folder, state, stem=stem, shards=shards)
    return folder


@pytest.mark.parametrize(("image", "stem", "shards"), [(0, "pytorch_model", 3), (1, "model", 1)])
def test_voco_llama_reproduces_the_golden_vectors(
    tmp_path: Path, pieces: Path, image: int, stem: str, shards: int
) -> None:
    model = load(write_voco(tmp_path / "voco", image, pieces, stem=stem, shards=shards))
    config, golden = model.config, load_file(GOLDEN)
    assert (config.topology, config.num_anchors, config.prefix_ids, config.text.vocab_size) == ("causal", 0, (1,), 331)
    assert config.infix_ids[1:] == (13,) and len(config.infix_ids) == 2
    inputs = golden["in.inputs_embeds"][image : image + 1]
    with torch.no_grad():
        compressed = model.compress(inputs[:, :0], inputs[:, 3:37], inputs[:, :3])
        logits = model.read(compressed, torch.arange(50, 56)[None])
    for layer in range(4):
        wanted = golden[f"out.hidden.{layer}"][image, 39]
        torch.testing.assert_close(compressed.hidden[0, layer], wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[0, :, :97], golden["out.logits"][image, 40:46], atol=1e-4, rtol=0)
    check_invariants(model, some_input()[0])


# ---- adapters


def lora_settings(**settings: Any) -> dict[str, Any]:
    return {
        "r": 3,
        "lora_alpha": 5,
        "init_lora_weights": False,
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        **settings,
    }


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


def write_original_adapter(folder: Path, *, rank: int = 2, **config: Any) -> State:
    """LoRA as the scripts of LLaVA save it; gives the weights that it is of."""
    generator = torch.Generator().manual_seed(5)
    prefix = "base_model.model.model.layers.1.self_attn.v_proj"
    a, b = torch.randn(rank, 32, generator=generator), torch.randn(16, rank, generator=generator)
    sizes = {"0.weight": (32, 16), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,)}
    projector = {name: torch.randn(*size, generator=generator) for name, size in sizes.items()}
    folder.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "fan_in_fan_out": False, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    torch.save({f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}, folder / "adapter_model.bin")
    trained = {f"base_model.model.model.mm_projector.{name}": tensor for name, tensor in projector.items()}
    torch.save(trained, folder / "non_lora_trainables.bin")
    return {"a": a, "b": b} | {f"patch_projector.{name}": tensor for name, tensor in projector.items()}


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


# ---- what is refused


def changed_copy(folder: Path, to: Path, change: Callable[[State], Any]) -> Path:
    shutil.copytree(folder, to)
    state = load_file(to / "model.safetensors")
    change(state)
    write_weights(to, state)
    return to


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("multi_modal_projector.linear_1.bias"), r"no fitting weights for patch_projector.0.bias \(1 "),
        (lambda s: s.update({"image_newline": torch.ones(32)}), r"unknown weights image_newline \(1 in"),
        (
            lambda s: s.update({"language_model.lm_head.weight": torch.ones(335, 32)}),
            r"or type language_model.lm_head.weight \(335, 32\) torch.float32 \(by config.json \(336, 32\)\)",
        ),
        (
            lambda s: s.update({"language_model.model.norm.weight": torch.ones(32, dtype=torch.int8)}),
            "another shape or type language_model.model.norm.weight .* torch.int8",
        ),
        (lambda s: s.update({"model.language_model.norm.weight": torch.ones(32)}), "norm.weight too; remove either"),
        (
            lambda s: s.update({"language_model.model.embed_tokens.weight": torch.ones(20, 32)}),
            "after the image; expected tokens below 20",
        ),
    ],
)
def test_wrong_weights(change: Callable[[State], Any], words: str, llavas: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load(changed_copy(llavas["today"], tmp_path / "wrong", change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "change", "words"),
    [
        ("today", {"vision_feature_layer": [1, 2]}, r"vision_feature_layer \[1, 2\]"),
        ("today", {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy 'full'"),
        ("today", {"vision_feature_layer": -9}, "vision_layer -9 is not a hidden state"),
        ("today", {"text_config": {"model_type": "mistral"}}, "text_config.model_type 'mistral'"),
        ("today", {"vision_config": {"model_type": "siglip_vision_model"}}, "model_type 'siglip_vision_model'"),
        ("today", {"text_config": 3}, "no HTC-VLM configuration, nor LLaVA's"),
        ("today", {"text_config": {"model_type": "llama", "hidden_size": "wide"}}, "'hidden_size': .*wide"),
        ("today", {"model_type": "llava_next"}, "type 'llava_next'; expected htc_vlm"),
        ("original, tower alone", {"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
        ("original, tower alone", {"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type 'mlp3x_gelu'"),
        ("original, tower alone", {"mm_use_im_start_end": True}, "mm_use_im_start_end True"),
        ("original, tower alone", {"mm_vision_tower": "/group/clip"}, "mm_vision_tower '/group/clip', which is not"),
        ("original, tower alone", {"mm_vision_tower": None}, "mm_vision_tower None"),
        ("original, tower alone", {"hidden_size": 0}, "config.json"),
        ("original, tower alone", {"num_attention_heads": 5}, "config.json"),
        ("original, tower alone", {"mm_vision_select_layer": "last"}, "nor LLaVA's"),
    ],
)
def test_wrong_configurations(
    layout: str, change: dict[str, Any], words: str, llavas: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(llavas[layout], tmp_path / "wrong"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_files(llavas: dict[str, Path], tmp_path: Path) -> None:
    def copy(layout: str, name: str) -> Path:
        return Path(shutil.copytree(llavas[layout], tmp_path / name))

    folder = copy("today", "no tokenizer")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer.json or tokenizer.model"):
        models.read_config(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer in .* cannot be read"):
        models.read_config(folder)

    folder = copy("new", "shard")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="00002-of-00002.safetensors cannot be read"):
        models.read_config(folder)
    index = folder / "model.safetensors.index.json"
    for content in ('{"weight_map": {"a": "../../etc/passwd"}}', "[]", "{}", "{"):
        index.write_text(content)
        with pytest.raises(UserError, match="index.json (is damaged|cannot be read)"):
            models.digest(folder)

    folder = copy("original, tower alone", "bin")
    path = folder / "pytorch_model-00001-of-00003.bin"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PK", b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="00001-of-00003.bin"):
            models.read_config(folder)
    torch.save([torch.ones(2)], path)
    with pytest.raises(UserError, match="expected a state_dict"):
        models.read_config(folder)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_does_nothing(zipped: bool, llavas: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llavas["original, tower alone"], tmp_path / "model"))
    path = folder / "pytorch_model-00001-of-00003.bin"
    done = tmp_path / "done"
    torch.save({"lm_head.weight": Malicious(done)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="a pickle that does more than hold tensors"):
        models.digest(folder)
    path.write_bytes(pickle.dumps(Malicious(done)))
    with pytest.raises(UserError, match="a pickle that does more than hold tensors"):
        load(folder)
    assert not done.exists()


# ---- digests


def test_the_digest_is_of_the_weights(llavas: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llavas["original, tower alone"], tmp_path / "model"))
    first = models.digest(folder)
    state = merged_bins(folder)
    for how in ({"stem": "pytorch_model", "zipped": False}, {"stem": "pytorch_model"}, {"shards": 4}, {}):
        write_weights(folder, state, **how)  # safetensors go before what is there already
        assert models.digest(folder) == first, how
    (folder / "model.safetensors").unlink()
    state["lm_head.weight"][0, 0] += 1
    write_weights(folder, state)
    second = models.digest(folder)
    assert second != first
    tower = load_file(folder / "clip" / "model.safetensors")
    tower["post_layernorm.bias"][0] += 1
    write_weights(folder / "clip", tower)
    assert models.digest(folder) != second, "the vision tower counts"

    adapter = tmp_path / "adapter"
    write_original_adapter(adapter)
    merged = models.digest(folder, adapter)
    write_original_adapter(adapter, lora_alpha=7)
    assert len({models.digest(folder), merged, models.digest(folder, adapter)}) == 3


def test_the_digest_of_the_shipped_model_stays() -> None:
    known = "a6d38d88d7c8b2e2e729cfaa72beab80f49b63a4e3b387b51141494767940f71"
    assert models.digest(models.find("htc-tiny")) == known


def test_files_of_torch_before_1_6(llavas: dict[str, Path], llava: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llavas["original, tower alone"], tmp_path / "model"))
    write_weights(folder, merged_bins(folder), stem="pytorch_model", zipped=False)
    torch.testing.assert_close(load(folder).language_model.lm_head.weight, llava.lm_head.weight)


def test_a_tied_head_may_be_left_out(pieces: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=330, tie_word_embeddings=True, **SETTINGS_OF_LLAMA)
    state = LlamaForCausalLM(config).state_dict()
    del state["lm_head.weight"]
    shapes = {"0.weight": (32, 16), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,)}
    state |= {f"model.mm_projector.{name}": torch.randn(shape) for name, shape in shapes.items()}
    CLIPVisionModel(CLIPVisionConfig(**SETTINGS_OF_CLIP)).save_pretrained(tmp_path / "clip")
    write_tokenizer(tmp_path, pieces, added=None, fast=False)
    original_config(tmp_path, tie_word_embeddings=True)
    write_weights(tmp_path, state)
    embedding = state.pop("model.embed_tokens.weight")
    names = ("model.embed_tokens.weight", "lm_head.weight")
    for stored in ((names[0],), (names[1],), names):  # either of them stands for both
        write_weights(tmp_path, state | {name: embedding.clone() for name in stored})
        model = load(tmp_path)
        language = model.language_model
        assert language.lm_head.weight is language.model.embed_tokens.weight, stored
        assert torch.equal(language.lm_head.weight, embedding) and model.config.text.tie_word_embeddings


def write_tied(folder: Path, pieces: Path) -> tuple[Path, LlamaForCausalLM]:
    """An original LLaVA whose config.json ties head and embedding, and its language model."""
    torch.manual_seed(0)
    folder.mkdir()
    words = LlamaForCausalLM(LlamaConfig(vocab_size=330, tie_word_embeddings=True, **SETTINGS_OF_LLAMA)).eval()
    shapes = {"0.weight": (32, 16), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,)}
    state = {f"model.mm_projector.{name}": torch.randn(shape) for name, shape in shapes.items()}
    state |= {name: tensor.clone() for name, tensor in words.state_dict().items()}
    CLIPVisionModel(CLIPVisionConfig(**SETTINGS_OF_CLIP)).save_pretrained(folder / "clip")
    write_tokenizer(folder, pieces, added=None, fast=False)
    original_config(folder, tie_word_embeddings=True)
    write_weights(folder, state)
    return folder, words


def test_a_stored_head_wins_over_a_configuration_that_ties_it(pieces: Path, tmp_path: Path) -> None:
    """As in transformers."""
    folder, words = write_tied(tmp_path / "model", pieces)
    state = load_file(folder / "model.safetensors")
    head = torch.randn_like(state["lm_head.weight"])
    write_weights(folder, state | {"lm_head.weight": head})
    words.save_pretrained(tmp_path / "words")
    write_weights(tmp_path / "words", words.state_dict() | {"lm_head.weight": head})
    wanted = LlamaForCausalLM.from_pretrained(tmp_path / "words").state_dict()
    model = load(folder)
    for name, tensor in model.language_model.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    assert torch.equal(model.language_model.lm_head.weight, head)
    assert not torch.equal(model.language_model.model.embed_tokens.weight, head)
    model.save_pretrained(tmp_path / "saved")  # nothing is lost on the way to a file and back
    for again in (load(tmp_path / "saved"), HTCVLM.from_pretrained(tmp_path / "saved")):
        assert torch.equal(again.language_model.lm_head.weight, head)


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {},
    ],
    ids=str,
)
def test_what_an_adapter_trains_of_tied_embeddings(settings: dict[str, Any], pieces: Path, tmp_path: Path) -> None:
    """The head that an adapter brings, or changes, is used; and what it leaves alone stays the base's."""
    folder, words = write_tied(tmp_path / "model", pieces)
    torch.manual_seed(1)
    tuned = peft.get_peft_model(words, peft.LoraConfig(**lora_settings(**settings))).eval()
    for name, parameter in tuned.named_parameters():
        if "modules_to_save" in name:
            parameter.data.add_(torch.randn_like(parameter))
    tuned.save_pretrained(tmp_path / "adapter")
    model, ids = load(folder, adapter=tmp_path / "adapter"), torch.randint(3, 330, (2, 7))
    with torch.no_grad():  # not merged: PEFT's merging puts what is added to a head into the embedding too
        wanted, found = tuned(input_ids=ids).logits, model.language_model(input_ids=ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert model.config.text.tie_word_embeddings == (not settings)


# ---- memory

MEASURED = """
import json, sys, time
from pathlib import Path
import torch
from htc_probe.extract import models
from htc_probe.extract.errors import UserError

def memory(kind):
    return int(Path("/proc/self/status").read_text().split(kind + ":")[1].split()[0]) * 1024

def growth(work):
    "What `work` gives, and how far memory went above what it was"
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    result = work()
    return result, memory("VmHWM") - before

def load(folder):
    try:
        return models.load(folder, dtype=torch.float32, device="cpu")
    except UserError as error:
        return str(error)

big, small = map(Path, sys.argv[1:])
load(small)  # what is imported is none of the model's
config = json.loads((small / "config.json").read_text())
(small / "config.json").write_text(json.dumps(config | {"hidden_size": 2**16, "intermediate_size": 2**20}))
said, refused = growth(lambda: load(small))
_, named = growth(lambda: models.read_config(big))
model, loaded = growth(lambda: load(big))
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps(dict(said=said, refused=refused, named=named, loaded=loaded, size=size)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")
@pytest.mark.parametrize("stem", ["model", "pytorch_model"])
def test_memory(stem: str, llavas: dict[str, Path], pieces: Path, tmp_path: Path) -> None:
    """A model takes its own size and one file's to load; a wrong one takes nothing to refuse."""
    small = Path(shutil.copytree(llavas["original, tower alone"], tmp_path / "small"))
    big = tmp_path / "big"
    big.mkdir()
    wide = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 8}
    write_tokenizer(big, pieces, added=None, fast=False)
    original_config(big, **wide, num_key_value_heads=8, mm_projector_type="linear")
    shutil.copytree(small / "clip", big / "clip")
    with torch.device("meta"):
        config = LlamaConfig(**SETTINGS_OF_LLAMA | wide | {"num_key_value_heads": 8, "vocab_size": 330})
        wanted = LlamaForCausalLM(config)
    state = {name: torch.randn(tensor.shape) for name, tensor in wanted.state_dict().items()}
    state |= {"model.mm_projector.weight": torch.randn(1024, 16), "model.mm_projector.bias": torch.randn(1024)}
    write_weights(big, state, stem=stem, shards=5)
    shard = max(path.stat().st_size for path in big.glob(f"{stem}-*"))
    done = subprocess.run([sys.executable, "-c", MEASURED, str(big), str(small)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["size"] > 190e6 and 40e6 < shard < 60e6
    assert "another shape" in found["said"] and found["refused"] < 30e6
    assert found["named"] < 30e6, "names and shapes are read alone"
    assert found["loaded"] < found["size"] + shard + 20e6


# ---- the command


@pytest.mark.parametrize("layout", ["today", "original, whole CLIP", "voco"])
def test_a_run_of_every_layout(layout: str, llavas: dict[str, Path], pieces: Path, tmp_path: Path, capsys: Any) -> None:
    voco = layout == "voco"
    folder = tmp_path / "voco" if voco else llavas[layout]
    if voco:
        write_voco(folder, 0, pieces, stem="pytorch_model", shards=2)
    command = ["--model", str(folder), "--split", "val", "--limit", "4", "--device", "cpu"]
    out = ["--out", str(tmp_path / "run.h5")]
    assert main([*command, *out]) == 0, capsys.readouterr().err
    with open_run(tmp_path / "run.h5") as run:
        assert run.shape.anchors == 0 and run.shape.codes is None and len(run) == 4
        assert run.info.topology == ("causal" if voco else "uncompressed")
        assert run.info.config["adapter"] is None and run.info.model["sha256"] == models.digest(folder)
        assert run.shape.roles.count("patch") == PATCHES and run.shape.roles.count("text") == (2 if voco else 0)
        assert run.z_voco(LAYERS).shape == (4, 64 if voco else 32)
    assert main([*command, *out]) == 0 and "nothing to do" in capsys.readouterr().out
    if not voco:
        write_original_adapter(tmp_path / "adapter")
        adapter = ["--adapter", str(tmp_path / "adapter")]
        assert main([*command, *adapter, *out]) == 2 and "other settings (model" in capsys.readouterr().err
        assert main([*command, *adapter, "--out", str(tmp_path / "tuned.h5")]) == 0
        with open_run(tmp_path / "run.h5") as plain, open_run(tmp_path / "tuned.h5") as tuned:
            assert tuned.info.config["adapter"] == str(tmp_path / "adapter")
            assert abs(plain.z_voco(LAYERS) - tuned.z_voco(LAYERS)).max() > 0.01
