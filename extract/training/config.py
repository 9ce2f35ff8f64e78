"""What `htc-train` can be told. Knows numbers and folders; imports nothing heavy, so that --help answers at once."""

from dataclasses import dataclass
from pathlib import Path


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
