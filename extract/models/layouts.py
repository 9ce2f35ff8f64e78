"""What a model's folder means: its config.json, the names of its weights and, for LLaVA, its tokenizer.

Knows the layouts of HTC-VLM, of LLaVA-1.5 (Hugging Face's and the original one) and of VoCo-LLaMA. Reads no weight.
The text around the image is that of LLaVA's and VoCo-LLaMA's own prompts, made tokens as they do: what is before the
image and what is after it, each for itself.

Sources: haotian-liu/LLaVA and Yxxxb/VoCo-LLaMA (`llava/mm_utils.py`, `llava/conversation.py`,
`llava/eval/model_vqa_loader.py`), transformers (`models/llava`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from htc_probe.extract.errors import UserError
from htc_probe.extract.images import Fit
from htc_probe.extract.models import hub
from htc_probe.extract.models.processors import image_settings
from htc_probe.extract.models.weights import Stored, line, read_json, stored, weight_files

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerBase

    from htc_probe.extract.vlm.config import HTCConfig, Projector

BEFORE_IMAGE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: "
)
"""LLaVA-1.5's prompt up to the image. VoCo-LLaMA's begins with the image."""
_AFTER_IMAGE = "\n"
"""What follows the image: in LLaVA-1.5 the question comes next, in VoCo-LLaMA <voco>."""
_VOCO = "<voco>"
_EMBEDDING = "language_model.model.embed_tokens.weight"
_HEAD = "language_model.lm_head.weight"

# Names in the layouts, and in HTCVLM. No two contradict, so an adapter may use those of another layout than its base.
_NAMES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.(layers|embed_tokens|norm)\.", r"language_model.model.\1."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^(model\.)?vision_tower\.(vision_tower\.)?(vision_model\.)?", "vision_tower."),
    (r"^model\.mm_projector\.(weight|bias)$", r"patch_projector.0.\1"),
    (r"^model\.mm_projector\.", "patch_projector."),
    (r"^(model\.)?multi_modal_projector\.linear_1\.", "patch_projector.0."),
    (r"^(model\.)?multi_modal_projector\.linear_2\.", "patch_projector.2."),
)
# What old files hold beside the weights, and a whole CLIP beside its vision tower.
_CONSTANTS = re.compile(r"rotary_emb\.inv_freq$|embeddings\.position_ids$")
_REST_OF_CLIP = re.compile(r"^(text_model\.|(text|visual)_projection\.|logit_scale$)")


class Checkpoint(NamedTuple):
    """A model that is not loaded yet."""

    config: HTCConfig
    weights: dict[str, Stored]
    """Where the weights are, by HTCVLM's names; where only one of embedding and head is stored, and `config` ties
    them, both are there."""
    folders: tuple[list[Stored], ...]
    """Every tensor in the model's folder, and in that of its vision tower where it comes from another."""
    voco_token: int | None = None
    """The token whose embedding <voco> is; None where <voco> is a weight of its own."""


def read_config(folder: Path) -> HTCConfig:
    """The configuration of the model in `folder`, of any layout; an HTC-VLM needs no weights for it.

    Raises UserError.
    """
    from htc_probe.extract.vlm.config import HTCConfig

    if _raw_config(folder)["model_type"] != HTCConfig.model_type:
        return open_checkpoint(folder).config
    with _configuring(folder):
        return HTCConfig.from_pretrained(folder, local_files_only=True)


def open_checkpoint(folder: Path) -> Checkpoint:
    """The model in `folder`: its configuration, and the names and shapes of its weights. Raises UserError."""
    tensors = stored(weight_files(folder))
    raw = _raw_config(folder)
    if raw["model_type"] == "llava_llama" or (raw["model_type"] == "llava" and "mm_vision_tower" in raw):
        checkpoint = _original(folder, raw, tensors)
    elif raw["model_type"] == "llava":
        checkpoint = _hugging_face(folder, raw, tensors)
    else:
        checkpoint = Checkpoint(read_config(folder), _by_name(tensors), (tensors,))
    if checkpoint.config.text.tie_word_embeddings:
        for name, twin in ((_HEAD, _EMBEDDING), (_EMBEDDING, _HEAD)):
            if twin in checkpoint.weights:
                checkpoint.weights.setdefault(name, checkpoint.weights[twin])
    return checkpoint


def fit_of(raw: dict[str, Any]) -> Fit:
    """How LLaVA's own code makes images square under this config.json: CLIP's processor crops what is not padded."""
    return "pad" if raw.get("image_aspect_ratio") == "pad" else "crop"


def model_name(key: str) -> str:
    """HTCVLM's name of a weight that one of the layouts calls `key`."""
    for pattern, name in _NAMES:
        renamed, times = re.subn(pattern, name, key)
        if times:
            return renamed
    return key


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the model in `folder`. Raises UserError."""
    from transformers import AutoTokenizer, LlamaTokenizer

    whole = (folder / "tokenizer.json").is_file()
    if not whole and not (folder / "tokenizer.model").is_file():
        raise UserError(f"{folder} holds no tokenizer.json or tokenizer.model; copy the tokenizer's files there")
    # From a tokenizer.model alone, AutoTokenizer forgets <s> and the space in front where it does not know the model.
    reader: Any = AutoTokenizer if whole else LlamaTokenizer
    try:
        return reader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of a damaged file: OSError, ValueError, KeyError, Exception itself, ...
        raise UserError(f"the tokenizer in {folder} cannot be read: {line(error)}; copy its files again") from error


# ---- LLaVA


def _hugging_face(folder: Path, raw: dict[str, Any], tensors: list[Stored]) -> Checkpoint:
    """LlavaForConditionalGeneration."""
    from transformers import LlavaConfig

    with _configuring(folder):
        config: Any = LlavaConfig.from_dict(raw)
    _expect(folder, "vision_config.model_type", config.vision_config.model_type, "clip_vision_model")
    _expect(folder, "text_config.model_type", config.text_config.model_type, "llama")
    _expect(folder, "projector_hidden_act", config.projector_hidden_act, "gelu")
    _expect(folder, "vision_feature_select_strategy", config.vision_feature_select_strategy, "default")
    if not isinstance(config.vision_feature_layer, int):
        _expect(folder, "vision_feature_layer", config.vision_feature_layer, "one layer")
    vision, text, layer = config.vision_config, config.text_config, config.vision_feature_layer
    return _llava(folder, vision, text, layer, "mlp2x_gelu", _by_name(tensors), (tensors,), folder, pad=None)


def _original(folder: Path, raw: dict[str, Any], tensors: list[Stored]) -> Checkpoint:
    """LlavaLlamaForCausalLM, of LLaVA and of VoCo-LLaMA: LLaMA's configuration with LLaVA's `mm_` between."""
    from transformers import CLIPVisionConfig, LlamaConfig, PretrainedConfig

    projector = raw.get("mm_projector_type", "linear")
    _expect(folder, "mm_projector_type", projector, "linear", "mlp2x_gelu")
    _expect(folder, "mm_vision_select_feature", raw.get("mm_vision_select_feature"), None, "patch")
    _expect(folder, "mm_use_im_start_end", raw.get("mm_use_im_start_end"), None, False)
    _expect(folder, "image_aspect_ratio", raw.get("image_aspect_ratio"), None, "pad", "square")

    weights, folders = _by_name(tensors), [tensors]
    whole = any(name.startswith("vision_tower.") for name in weights)
    tower = _tower_folder(folder, raw.get("mm_vision_tower"), weights=not whole)
    if not whole:
        folders.append(stored(weight_files(tower)))
        for key, tensor in _by_key(folders[1]):
            if not _REST_OF_CLIP.match(key):
                weights["vision_tower." + key.removeprefix("vision_model.")] = tensor
    with _configuring(tower):
        vision = CLIPVisionConfig.from_pretrained(tower, local_files_only=True)
    known = {f.name for f in dataclasses.fields(cast(Any, LlamaConfig))} | {"rope_theta", "rope_scaling"}
    known -= {f.name for f in dataclasses.fields(cast(Any, PretrainedConfig))}
    with _configuring(folder):
        text = LlamaConfig(**{name: value for name, value in raw.items() if name in known})
    layer = raw.get("mm_vision_select_layer", -2)
    return _llava(folder, vision, text, layer, projector, weights, tuple(folders), tower, pad=fit_of(raw) == "pad")


def _llava(
    folder: Path,
    vision: CLIPVisionConfig,
    text: LlamaConfig,
    vision_layer: int,
    projector: Projector,
    weights: dict[str, Stored],
    folders: tuple[list[Stored], ...],
    processor: Path,
    *,
    pad: bool | None,
) -> Checkpoint:
    """What both have: LLaVA's text reads every patch, VoCo-LLaMA's reads <voco>, and a processor prepares images.

    `processor` is the folder of the image processor, `pad` as in `image_settings`.
    """
    from htc_probe.extract.vlm.config import HTCConfig

    tokenizer = read_tokenizer(folder)
    compresses = _VOCO in tokenizer.get_vocab()
    prefix = _tokens(tokenizer, "" if compresses else BEFORE_IMAGE)
    after = _tokens(tokenizer, _AFTER_IMAGE + _VOCO if compresses else _AFTER_IMAGE)
    if after[:1] == [tokenizer.bos_token_id]:
        del after[0]
    infix, voco = (after[:-1], after[-1:]) if compresses else ([], after[:1])
    words = weights.get(_EMBEDDING, weights.get(_HEAD))
    rows = words.shape[0] if words is not None and words.shape else text.vocab_size
    if not voco or voco[0] >= rows:
        raise UserError(
            f"the tokenizer in {folder} makes {after or 'nothing'} of the newline after the image; expected tokens "
            f"below {rows}: is it this model's?"
        )
    side: Any = vision.image_size
    images = image_settings(processor, side if isinstance(side, int) else side[0], pad=pad)
    with _configuring(folder):
        text.vocab_size = rows  # more than the tokenizer's, and than some config.json's
        given: dict[str, Any] = {"projector": projector, "prefix_ids": prefix, "infix_ids": infix, **images}
        given |= {"vision_config": vision, "text_config": text, "vision_layer": vision_layer}
        config = HTCConfig(num_anchors=0, topology="causal" if compresses else "uncompressed", **given)
    return Checkpoint(config, weights, folders, voco[0])


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(cast(Any, tokenizer(text)).input_ids)


def _tower_folder(folder: Path, name: Any, *, weights: bool) -> Path:
    """Where CLIP is that `mm_vision_tower` names: a directory, also one in `folder`, or a repository on the hub."""
    for path in (folder / str(name), Path(str(name))) if name else ():
        if path.is_dir():
            return path
    if isinstance(name, str) and hub.is_hub_name(name):
        return hub.download(name, weights=weights)
    raise UserError(
        f"{folder / 'config.json'} has mm_vision_tower {name!r}, which is not here; expected a directory with CLIP or "
        "a repository on the hub, such as openai/clip-vit-large-patch14-336: change that line"
    )


# ---- what all layouts need


def _raw_config(folder: Path) -> dict[str, Any]:
    with _configuring(folder):
        raw = read_json(folder / "config.json")
    kind = raw.get("model_type")
    if kind not in ("htc_vlm", "llava", "llava_llama"):
        raise UserError(
            f"{folder} is a model of type {kind!r}; expected htc_vlm, or LLaVA-1.5 or VoCo-LLaMA (llava, llava_llama)"
        )
    return raw


def _by_name(tensors: list[Stored]) -> dict[str, Stored]:
    named: dict[str, Stored] = {}
    for key, tensor in _by_key(tensors):
        first = named.setdefault(model_name(key), tensor)
        if first is not tensor:
            raise UserError(f"{tensor.path} holds {key}, which {first.path} holds as {first.key} too; remove either")
    return named


def _by_key(tensors: list[Stored]) -> list[tuple[str, Stored]]:
    return [(tensor.key, tensor) for tensor in tensors if not _CONSTANTS.search(tensor.key)]


def _expect(folder: Path, name: str, value: Any, *wanted: Any) -> None:
    if value not in wanted:
        raise UserError(
            f"{folder / 'config.json'} has {name} {value!r}; a LLaVA-1.5 that can be read here has "
            f"{' or '.join('none' if choice is None else str(choice) for choice in wanted)}"
        )


@contextlib.contextmanager
def _configuring(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers checks in many ways: OSError, ValueError, StrictDataclassError, ...
        raise UserError(f"{folder / 'config.json'} is no HTC-VLM configuration, nor LLaVA's: {line(error)}") from error
