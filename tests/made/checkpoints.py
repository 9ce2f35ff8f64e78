"""Checkpoints as others write them: LLaVA-1.5 in every layout, random weights. Knows the layouts, not their readers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from htc_probe.extract import models
from htc_probe.extract.models.layouts import BEFORE_IMAGE
from htc_probe.extract.vlm.config import CLIP_MEAN, CLIP_STD, HTCConfig
from htc_probe.extract.vlm.model import HTCVLM

GOLDEN = Path(__file__).parents[1] / "golden" / "voco_llama_tiny.safetensors"


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


def train_pieces(folder: Path) -> Path:
    """A tokenizer.model like LLaMA's: byte fallback, and a space in front."""
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


def random_llava() -> LlavaForConditionalGeneration:
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


def copied(folder: Path, to: Path, **settings: Any) -> Path:
    """A copy whose config.json has these settings, and none of those that are `...`."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text()) | settings
    (to / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return to


def merged_bins(folder: Path) -> State:
    state: State = {}
    for path in sorted(folder.glob("pytorch_model*.bin")):
        state |= torch.load(path, weights_only=True)
        path.unlink()
    return state


def lora_settings(**settings: Any) -> dict[str, Any]:
    return {
        "r": 3,
        "lora_alpha": 5,
        "init_lora_weights": False,
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        **settings,
    }


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


def changed_copy(folder: Path, to: Path, change: Callable[[State], Any]) -> Path:
    shutil.copytree(folder, to)
    state = load_file(to / "model.safetensors")
    change(state)
    write_weights(to, state)
    return to
