"""One stage of training: a module and arrays in, a trained module out, with transformers' Trainer in between.

Knows how to resume, log and skip what is done, and whose folder it is; not what the module is.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import EvalPrediction

from htc_probe.extract.errors import UserError
from htc_probe.extract.files import replaced
from htc_probe.extract.training.config import Schedule

EVERY_RUN: dict[str, Any] = {"lr_scheduler_type": "cosine", "report_to": "none", "remove_unused_columns": False}
EVERY_RUN |= {"save_total_limit": 1}
_WEIGHTS, _LOG = "model.safetensors", "log.json"


class Batches(Dataset):
    """`rows` examples that are fetched a whole batch at a time by `fetch(indices) -> tensors by name`."""

    def __init__(self, rows: int, fetch: Callable[[np.ndarray], dict[str, Tensor]]):
        self.rows, self.fetch = rows, fetch

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.fetch(np.array([index]))

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return self.fetch(np.array(indices))


def train_stage(
    module: nn.Module,
    train: Batches,
    schedule: Schedule,
    folder: Path,
    *,
    seed: int,
    validation: Batches | None = None,
    metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
    labels: str,
) -> list[dict[str, Any]]:
    """Train `module` in place (its forward returns a dict with "loss") and leave weights and log in `folder`.

    Returns the log. A stage that is finished there is loaded instead; one that was interrupted continues from its
    last checkpoint. `labels` names the input that is the target: `metrics` compares it with the first output, and
    without a target the Trainer measures no loss on `validation`. Weights are float32; products run in bfloat16 where
    the processor has the instructions.
    """
    from safetensors.torch import load_model, save_model

    if (folder / _WEIGHTS).exists():
        load_model(module, folder / _WEIGHTS)
        return json.loads((folder / _LOG).read_text())
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=schedule.steps,
        per_device_train_batch_size=schedule.batch,
        per_device_eval_batch_size=256,
        learning_rate=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        warmup_steps=max(1, schedule.steps // 20),
        seed=seed,
        logging_steps=max(1, schedule.steps // 100),
        save_steps=max(1, schedule.steps // 10),
        bf16=torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported(),
        use_cpu=not torch.cuda.is_available(),
        label_names=[labels],
        eval_strategy="steps" if validation is not None else "no",
        eval_steps=max(1, schedule.steps // 10),
        **EVERY_RUN,
    )
    data: dict[str, Any] = {"train_dataset": train, "eval_dataset": validation, "data_collator": _as_is}
    trainer = Trainer(model=module, args=arguments, compute_metrics=metrics, **data)
    checkpoint = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if validation is not None:
        trainer.evaluate()
    (folder / _LOG).write_text(json.dumps(trainer.state.log_history, indent=1))
    with replaced(folder / _WEIGHTS) as partial:  # last: its presence says that the stage is finished
        save_model(trainer.accelerator.unwrap_model(trainer.model), str(partial))
    return trainer.state.log_history


def last_checkpoint(folder: Path) -> Path | None:
    """The Trainer's newest checkpoint in `folder` that was written to its end, where the state of the run is."""
    whole = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json") if state.stat().st_size]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def claim(path: Path, settings: dict[str, Any], flag: str) -> None:
    """Write the settings of a run to `path`, or refuse the folder when it holds those of another.

    `flag` is the one that names another folder. Raises UserError that tells the settings apart.
    """
    if path.exists():
        begun = json.loads(path.read_text())
        differences = [f"{k} {begun.get(k)} instead of {v}" for k, v in settings.items() if begun.get(k) != v]
        if differences:
            words = "; ".join(differences)
            raise UserError(f"{path.parent} was begun with other settings ({words}); give another {flag}")
    with replaced(path) as partial:
        partial.write_text(json.dumps(settings, indent=1))


def _as_is(batch: Any) -> Any:
    return batch
