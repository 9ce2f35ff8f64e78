"""--model reads every layout: small checkpoints in the official formats, against the libraries they come from."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from htc_probe.extract import models
from htc_probe.extract.again import find_model
from htc_probe.extract.cli import main
from htc_probe.extract.errors import UserError
from htc_probe.extract.info import main as info_main
from htc_probe.extract.models.layouts import BEFORE_IMAGE
from htc_probe.extract.store import open_run
from htc_probe.extract.vlm.config import CLIP_MEAN, CLIP_STD
from htc_probe.extract.vlm.invariants import check_invariants
from htc_probe.extract.vlm.model import HTCVLM
from made.checkpoints import (
    GOLDEN,
    LAYERS,
    LAYOUTS,
    PATCHES,
    SETTINGS_OF_CLIP,
    SETTINGS_OF_LLAMA,
    SIZE,
    answers_of,
    answers_of_transformers,
    copied,
    enlarged,
    load,
    lora_settings,
    merged_bins,
    original_config,
    some_input,
    space_of,
    write_original_adapter,
    write_tokenizer,
    write_weights,
)

# ---- checkpoints as others write them


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


# ---- what is refused


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
