"""LoRA adapters, as PEFT and LLaVA save them.

Knows their files and what they add to which weight; not what the model is. A merged weight is W + s B A, with s
alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from htc_probe.extract.errors import UserError
from htc_probe.extract.images import Fit
from htc_probe.extract.models.layouts import fit_of, model_name
from htc_probe.extract.models.weights import ADAPTER_FILES, FLOATS, Stored, read_json, reading, stored, weight_files

if TYPE_CHECKING:
    import torch

# Fields of a LoraConfig that do not change what merging means, or are looked at. Any other must be off.
_KNOWN = (
    "peft_type r lora_alpha use_rslora init_lora_weights target_modules exclude_modules modules_to_save lora_dropout "
    "bias layers_to_transform layers_pattern task_type inference_mode auto_mapping base_model_name_or_path revision "
    "peft_version megatron_core qalora_group_size loftq_config eva_config corda_config lora_ga_config runtime_config "
    "ensure_weight_tying"
)
# The others of `init_lora_weights` change the weights that the adapter is added to.
_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


class Adapter(NamedTuple):
    """An adapter that is not loaded yet, by HTCVLM's names of weights. Without arguments, one that changes nothing."""

    scaling: float = 0.0
    """s."""
    added: Mapping[str, tuple[Stored, Stored]] = MappingProxyType({})
    """A (r, in) and B (out, r) of the weights (out, in) that they are added to."""
    replaced: Mapping[str, Stored] = MappingProxyType({})
    """Weights that were trained in full (PEFT's `modules_to_save`, LLaVA's non_lora_trainables.bin)."""
    tensors: Sequence[Stored] = ()
    """All of them."""
    image_fit: Fit | None = None
    """How images became square where it was trained; None where its folder does not say."""


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`, from its adapter_config.json and the names in its files. Raises UserError.

    Also where LLaVA's training wrote the folder and a part of it was not copied.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no adapter_config.json; an adapter is a directory that PEFT saved")
    with reading(path):
        config = read_json(path)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    unsupported = [name for name, value in config.items() if value and name not in _KNOWN.split()]
    if config.get("peft_type") != "LORA" or unsupported:
        words = ", ".join([f"peft_type {config.get('peft_type')}", *unsupported])
        raise UserError(f"{path} has {words}; expected plain LoRA, which is all that can be merged here")
    if config.get("init_lora_weights") not in _HARMLESS_STARTS:
        raise UserError(
            f"{path} has init_lora_weights {config['init_lora_weights']!r}, which changes the model too; save it "
            "converted to a plain LoRA"
        )
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        raise UserError(f"{path} has r {rank!r} and lora_alpha {alpha!r}; expected numbers, r 1 or more, alpha above 0")
    extra = folder / "non_lora_trainables.bin"
    tensors = stored([*weight_files(folder, ADAPTER_FILES), *([extra] if extra.is_file() else [])])
    halves: dict[str, dict[str, Stored]] = {}
    replaced = {}
    for tensor in tensors:
        # A base_layer is the weight that LoRA is beside, which PEFT saves where it is tied to another.
        key = tensor.key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        lora = re.fullmatch(r"(.+)\.lora_([AB])(\.default)?\.weight", key)
        if lora is None:
            replaced[model_name(key)] = tensor
        else:
            halves.setdefault(model_name(f"{lora[1]}.weight"), {})[lora[2]] = tensor
    image_fit = None
    if (folder / "config.json").is_file():  # LLaVA's training writes the model's there, PEFT does not
        with reading(folder / "config.json"):
            llava = read_json(folder / "config.json")
        if {"mm_projector_type", "mm_vision_tower"} & llava.keys():
            image_fit = fit_of(llava)
            if not extra.is_file() and not any(name.startswith("patch_projector.") for name in replaced):
                raise UserError(
                    f"{folder} is from LLaVA's LoRA training, by its config.json, and lacks non_lora_trainables.bin, "
                    "which holds the trained projector; copy that file there"
                )
    if not halves and not replaced:
        raise UserError(f"{folder} holds no weights of an adapter; copy them there")
    for name, pair in halves.items():
        if len(pair) != 2 or pair["A"].shape[:1] != (rank,):
            raise UserError(f"{folder} has no A and B of rank {rank} for {name}, as adapter_config.json has it")
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Adapter(
        scaling, {name: (pair["A"], pair["B"]) for name, pair in halves.items()}, replaced, tensors, image_fit
    )


def check_adapter(folder: Path, adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], image_fit: Fit) -> None:
    """Raises UserError unless all of it belongs to weights of these shapes, of a model that sees images like this."""
    if adapter.image_fit not in (None, image_fit):
        raise UserError(
            f"the adapter in {folder} was trained on images that were made square by {adapter.image_fit}, and its base "
            f"makes them square by {image_fit}; change image_aspect_ratio in either config.json, or the base's "
            "preprocessor_config.json"
        )
    if adapter.image_fit is not None:  # of LLaVA's training, which trains the projector in full
        projector = [name for name in shapes if name.startswith("patch_projector.")]
        if left := [name for name in projector if name not in adapter.replaced]:
            raise UserError(
                f"non_lora_trainables.bin in {folder} lacks {len(left)} of the {len(projector)} weights of the "
                "projector that LLaVA's training wrote there; copy the whole file"
            )
    lost = [tensor.key for name, tensor in adapter.replaced.items() if shapes.get(name) != tensor.shape]
    for name, (a, b) in adapter.added.items():
        if shapes.get(name) != (*b.shape[:-1], *a.shape[1:]) or b.shape[1:] != a.shape[:1]:
            lost.append(a.key)
    lost += [tensor.key for tensor in adapter.tensors if tensor.dtype not in FLOATS]
    if not lost:
        return
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING  # takes seconds to import

    prefixes = tuple(set(PEFT_TYPE_TO_PREFIX_MAPPING.values()))
    kinds = [tensor.key for tensor in adapter.tensors if _part(tensor).startswith(prefixes)]
    if kinds:
        raise UserError(
            f"the adapter in {folder} is more than LoRA of linear layers: {', '.join(kinds[:3])} ({len(kinds)} of "
            f"{len(adapter.tensors)} in all) cannot be merged here; expected plain LoRA"
        )
    raise UserError(
        f"the adapter in {folder} belongs to another model: this one has no place for {', '.join(lost[:3])} "
        f"({len(lost)} of {len(adapter.tensors)} in all); choose its base with --model"
    )


def _part(tensor: Stored) -> str:
    """What a tensor is in its adapter's kind, such as lora_embedding_A; nothing for what is merged here."""
    part = next((part for part in reversed(tensor.key.split(".")) if part not in ("weight", "default")), "")
    return "" if part in ("lora_A", "lora_B") and len(tensor.shape) == 2 else part


def merged(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """`weight` (out, in) with A (r, in) and B (out, r) added, in float32."""
    return weight.float().addmm(b.float(), a.float(), alpha=scaling)
