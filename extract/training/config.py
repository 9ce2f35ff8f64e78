"""What `htc-train` can be told. Knows numbers and folders; imports nothing heavy, so that --help answers at once."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one stage learns: AdamW, a linear warm-up over 5 % of the steps, then a cosine to zero."""

    steps: int
    """Optimizer steps."""
    batch: int
    """Images a step."""
    learning_rate: float
    """The highest, after the warm-up."""
    weight_decay: float = 0.05
    """Of AdamW."""


@dataclass(frozen=True)
class TinyConfig:
    """Train the small HTC-VLM that ships with this package, from nothing, on the built-in scenes.

    In the paper's order: a CLIP from captions, an MGVQ from reconstruction; both frozen; then P_v, P_d, <voco> and
    the LLaMA from questions and answers. Interrupted, the same command continues from the last checkpoint.
    """

    out: Path = Path("train/tiny/htc-tiny")
    """Folder for the finished model: config, weights, tokenizer, log and model card."""
    work: Path = Path("train/tiny")
    """Folder for pictures, cached features and checkpoints (about 1.5 GB); what is finished there is reused."""
    images: int = 40_000
    """Scenes to train on."""
    val_images: int = 2_000
    """Scenes of `val` that losses and the final answers are measured on."""
    seed: int = 0
    """Of the initial weights and the order of the images."""
    clip: Schedule = Schedule(steps=8000, batch=64, learning_rate=1.5e-3)
    """Stage 1: CLIP on captions."""
    mgvq: Schedule = Schedule(steps=1500, batch=32, learning_rate=1e-3, weight_decay=0.0)
    """Stage 2: MGVQ on reconstruction."""
    answers: Schedule = Schedule(steps=4000, batch=64, learning_rate=1e-3)
    """Stage 3: questions and answers through the one token; a step sees all questions of its images."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Train an HTC-VLM: a LLaVA-1.5 checkpoint gets MGVQ's anchors, <voco> and the star, and learns to answer.

    The defaults are the paper's recipe, VoCo-LLaMA's, so that a file of paths is the whole of it:

        htc-train CONFIG.toml --dtype bfloat16    (init-from, mgvq, data, images, out; flags win over the file)
        htc-train --init-from LLAVA --mgvq mgvq_f16c32_g8.pt
        htc-train tiny --help                     (the small model that ships with this package, from nothing)

        torchrun --nproc_per_node 8 -m htc_probe.extract.training.cli CONFIG.toml
        accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP
            -m htc_probe.extract.training.cli CONFIG.toml

    Trained are P_v, P_d, <voco> and the language model; CLIP and MGVQ are frozen. Interrupted, the same command
    continues from the last checkpoint.
    """

    init_from: str
    """What to begin with, a folder or owner/model on the hub: a LLaVA-1.5 checkpoint, or an HTC-VLM or VoCo-LLaMA,
    whose own architecture then stays."""
    mgvq: Path | None = None
    """Official MGVQ file (.pt); needed where the anchors are mgvq and the checkpoint has no MGVQ yet."""
    mgvq_preset: str = "mgvq-f16c32-g8"
    """Which of the official models that file is."""
    data: str = "scenes"
    """Conversations: a JSON in the LLaVA instruction format (llava_v1_5_mix665k.json), or `scenes`, the built-in."""
    images: Path | None = None
    """Folder that the image names in `data` start from; that of the JSON by default."""
    out: Path = Path("train/htc-vlm")
    """Folder for the finished model, its log and, until then, checkpoints."""
    topology: Literal["star", "causal", "full"] = "star"
    """What the hybrid tokens see: themselves, earlier ones (VoCo-LLaMA), or each other."""
    anchors: Literal["mgvq", "none", "random", "attended", "kmeans"] = "mgvq"
    """Four from MGVQ's codes, none, or four continuous ones picked among the patches."""
    anchor_place: Literal["before", "after"] = "before"
    """Where the anchors stand, seen from the patches."""
    train: Literal["full", "lora"] = "full"
    """The language model in full, or LoRA on its linear layers, merged at the end."""
    lora_rank: int = 128
    """Rank of LoRA's updates (LLaVA's)."""
    lora_alpha: int = 256
    """LoRA's updates are multiplied by this, divided by the rank (LLaVA's)."""
    epochs: int = 2
    """Passes over the data; each leaves out what does not fill a last batch, other rows every time."""
    learning_rate: float = 2e-5
    """The highest of AdamW, after the warm-up; from there a cosine to zero. No weight decay."""
    warmup: float = 0.03
    """Share of the steps over which the learning rate rises."""
    batch: int = 128
    """Images an optimizer step, over all devices and accumulated passes."""
    device_batch: int = 8
    """Images at once on one device, at most; what is missing to `batch` is accumulated."""
    max_length: int = 2048
    """Tokens of text a conversation; what is longer is cut."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the arithmetic: bfloat16 (autocast, trained weights stay float32) or float32; auto takes bfloat16 where the
    hardware has it. With LoRA on a GPU (without FSDP), bfloat16 also holds the frozen weights."""
    gradient_checkpointing: bool = True
    """Compute every layer once more in the backward pass instead of keeping what it computed."""
    max_steps: int | None = None
    """Optimizer steps instead of `epochs`; the cosine then ends there."""
    save_steps: int = 500
    """Optimizer steps from checkpoint to checkpoint; the last one is kept."""
    workers: int = 4
    """Processes a device that read images."""
    seed: int = 0
    """Of P_d, of LoRA and of the order of the rows."""
    on_error: Literal["stop", "skip"] = "stop"
    """Of a missing image: stop, or leave its row out. A damaged one: stop, or take the next row in its place."""


def plain(config: TinyConfig | FinetuneConfig) -> dict[str, Any]:
    """The settings as JSON holds them, paths as text."""
    return json.loads(json.dumps(asdict(config), default=str))
