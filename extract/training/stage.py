"""One stage of training: a module and arrays in, a trained module out, with transformers' Trainer in between.

Knows how to resume, log and skip what is done, what to say of it, and whose folder it is; not what the module is.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalPrediction

from htc_probe.extract import command
from htc_probe.extract.errors import UserError
from htc_probe.extract.files import replaced
from htc_probe.extract.training.config import Schedule

EVERY_RUN: dict[str, Any] = {"lr_scheduler_type": "cosine", "report_to": "none", "remove_unused_columns": False}
EVERY_RUN |= {"save_total_limit": 1, "disable_tqdm": True}
_LOSSES = {"loss": "loss", "eval_loss": "on val"}
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
        print(f"{folder.name:<14}is there already", flush=True)
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
    learn(trainer, folder.name)
    if validation is not None:
        trainer.evaluate()
    (folder / _LOG).write_text(json.dumps(trainer.state.log_history, indent=1))
    with replaced(folder / _WEIGHTS) as partial:  # last: its presence says that the stage is finished
        save_model(trainer.accelerator.unwrap_model(trainer.model), str(partial))
    return trainer.state.log_history


def learn(trainer: Trainer, name: str, *, shown: bool = True) -> None:
    """Run `trainer` from the last checkpoint in its folder, with a bar and, some ten times, a line with the losses.

    Of several processes, one is `shown`. A KeyboardInterrupt comes out with words on what is kept.
    """
    total, folder = trainer.args.max_steps, Path(cast(str, trainer.args.output_dir))
    checkpoint = last_checkpoint(folder)
    done = 0 if checkpoint is None else _step(checkpoint)
    trainer.remove_callback(PrinterCallback)
    try:
        with command.progress(name, "steps", total=total, done=done, shown=shown) as bar:
            trainer.add_callback(_Told(bar, name, done, shown=shown))
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except KeyboardInterrupt as stop:
        kept = last_checkpoint(folder)
        if kept is None:
            words = f"{name} had no checkpoint yet (the first comes after {trainer.args.save_steps:,} steps)"
            words += "; the same command begins it again"
        else:
            words = f"{_step(kept):,} of {total:,} steps of {name} are kept in {kept}"
            words += "; the same command goes on from there"
        raise type(stop)(words) from stop


class _Told(TrainerCallback):
    """Moves a bar, and prints the losses: the first, then those of validation or after every tenth of the steps."""

    def __init__(self, bar: command.Bar, name: str, done: int, *, shown: bool) -> None:
        self._bar, self._name, self._begun, self._said, self._shown = bar, name, done, done, shown
        self._losses: dict[str, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.reach(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        self._losses |= {name: logs[key] for key, name in _LOSSES.items() if key in logs}
        said, step = self._said, state.global_step
        if args.eval_strategy != "no":
            is_due = "eval_loss" in logs
        else:
            is_due = 10 * step // state.max_steps > 10 * said // state.max_steps
        if self._shown and self._losses and step > said and (is_due or said == self._begun):
            self._said = step
            losses = ", ".join(f"{name} {loss:.4g}" for name, loss in self._losses.items())
            print(f"{self._name:<14}{self._bar.words()}; {losses}", flush=True)


def last_checkpoint(folder: Path) -> Path | None:
    """The Trainer's newest checkpoint in `folder` that was written to its end, where the state of the run is."""
    whole = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json") if state.stat().st_size]
    return max(whole, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


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
