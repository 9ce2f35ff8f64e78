"""What `htc-train` can be told. Knows numbers and folders; imports nothing heavy, so that --help answers at once."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from htc_probe.extract.arguments import Shown


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one stage learns: AdamW, a linear warm-up over 5% of the steps, then a cosine to zero."""

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

    In the paper's order: a CLIP from captions, an MGVQ from reconstruction, both frozen; then P_v, P_d, <voco> and the
    LLaMA from questions and answers. Interrupted, the same command goes on from the last checkpoint.

    Examples:
        htc-train tiny
        htc-train tiny --seed 1 --out train/seed-1/model --work train/seed-1
        htc-train tiny --images 4000 --clip.steps 800 --answers.steps 400
    """

    out: Annotated[Path, Shown("FOLDER")] = Path("train/tiny/htc-tiny")
    """For the model: weights, tokenizer, log and model card."""
    work: Annotated[Path, Shown("FOLDER")] = Path("train/tiny")
    """For images, features and checkpoints, about 1.5 GB.
    What is finished there is used again."""
    images: int = 40_000
    """Scenes to train on."""
    val_images: int = 2_000
    """Scenes of val to measure losses and answers on."""
    seed: int = 0
    """Of the first weights and the order of the images."""
    clip: Schedule = Schedule(steps=8000, batch=64, learning_rate=1.5e-3)
    """Stage 1, CLIP on captions."""
    mgvq: Schedule = Schedule(steps=1500, batch=32, learning_rate=1e-3, weight_decay=0.0)
    """Stage 2, MGVQ on reconstruction."""
    answers: Schedule = Schedule(steps=4000, batch=64, learning_rate=1e-3)
    """Stage 3, answers; a step sees all questions of its images."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Train an HTC-VLM: a LLaVA-1.5 gets MGVQ's anchors, <voco> and the star, and learns to answer. Trained are P_v,
    P_d, <voco> and the language model; CLIP and MGVQ are frozen.

    The defaults are VoCo-LLaMA's recipe, the paper's. CONFIG.toml may hold any setting; those on the command line win.
    `htc-train tiny --help` tells of the small model that ships with this package. Interrupted, the same command goes on
    from the last checkpoint.

    Examples:
        htc-train CONFIG.toml --dtype bfloat16
        htc-train --init-from LLAVA --mgvq mgvq_f16c32_g8.pt --data mix665k.json
        torchrun --nproc_per_node 8 -m htc_probe.extract.training.cli CONFIG.toml
        accelerate launch --use_fsdp --fsdp_version 2 \\
            --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP \\
            -m htc_probe.extract.training.cli CONFIG.toml
    """

    init_from: Annotated[str, Shown("NAME|FOLDER")]
    """Start: a LLaVA-1.5, HTC-VLM or VoCo-LLaMA.
    A folder, or owner/model on the hub."""
    mgvq: Path | None = None
    """Official MGVQ file (.pt), unless the model has one."""
    mgvq_preset: Annotated[str, Shown("NAME")] = "mgvq-f16c32-g8"
    """Which of the official models that file is."""
    data: Annotated[str, Shown("NAME|FILE", words=("scenes",))] = "scenes"
    """scenes (built in), or conversations in LLaVA's JSON,
    such as llava_v1_5_mix665k.json."""
    images: Annotated[Path | None, Shown("FOLDER")] = None
    """Where the images of the JSON are.
    Left out: the folder of the JSON."""
    out: Annotated[Path, Shown("FOLDER")] = Path("train/htc-vlm")
    """For the model, its log and, until then, checkpoints."""
    topology: Literal["star", "causal", "full"] = "star"
    """star: hybrid tokens see themselves alone; full: all;
    causal: earlier ones, as in VoCo-LLaMA."""
    anchors: Literal["mgvq", "none", "random", "attended", "kmeans"] = "mgvq"
    """Four from MGVQ's codes, none, or four of the patches."""
    anchor_place: Literal["before", "after"] = "before"
    """Anchors stand before or after the patches."""
    train: Literal["full", "lora"] = "full"
    """The whole language model, or LoRA, merged at the end."""
    lora_rank: int = 128
    """Rank of LoRA's updates (LLaVA's)."""
    lora_alpha: int = 256
    """LoRA's updates are scaled by this over the rank."""
    epochs: int = 2
    """Passes over the data."""
    learning_rate: float = 2e-5
    """The highest, after the warm-up; then a cosine to 0."""
    warmup: float = 0.03
    """Share of the steps in which the learning rate rises."""
    batch: int = 128
    """Images a step, over all devices."""
    device_batch: int = 8
    """Images at once on one device, at most."""
    max_length: int = 2048
    """Tokens of text a conversation; the rest is cut."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the arithmetic.
    auto: bfloat16 where the hardware has it.

    Trained weights stay float32. With LoRA on a GPU (without FSDP), bfloat16 also holds the frozen weights."""
    gradient_checkpointing: bool = True
    """Compute layers twice instead of keeping their values."""
    max_steps: int | None = None
    """Optimizer steps, instead of epochs."""
    save_steps: int = 500
    """Steps from checkpoint to checkpoint; the last is kept."""
    workers: int = 4
    """Processes a device that read images."""
    seed: int = 0
    """Of P_d, of LoRA and of the order of the rows."""
    on_error: Literal["stop", "skip"] = "stop"
    """Where an image is missing or damaged:
    stop, or use another row."""


def plain(config: TinyConfig | FinetuneConfig) -> dict[str, Any]:
    """The settings as JSON holds them, paths as text."""
    return json.loads(json.dumps(asdict(config), default=str))
