"""What is kept of a training run: the model card, the log, the curves. Knows numbers and words; no tensors."""

import json
from collections.abc import Mapping
from math import nan
from pathlib import Path
from typing import Any

from htc_probe.extract.training.config import TinyConfig, plain

Logs = Mapping[str, list[dict[str, Any]]]


def write_card(
    folder: Path, config: TinyConfig, accuracy: Mapping[str, float], chance: Mapping[str, float], logs: Logs
) -> None:
    """README.md and training.json in `folder`.

    accuracy, chance: by question, the share of right answers on `val` and that of the most frequent answer.
    logs: by stage, the Trainer's log history.
    """
    answers = "\n".join(
        f"| {name} | {right:.1%} | {chance[name]:.1%} | {right / chance[name]:.1f} |"
        for name, right in accuracy.items()
    )
    last = {stage: _last_evaluation(log) for stage, log in logs.items()}
    clip = ", ".join(f"{k.removeprefix('eval_')} {v:.1%}" for k, v in last["clip"].items() if k[5:] in accuracy)
    stages = {"clip": config.clip, "mgvq": config.mgvq, "answers": config.answers}
    schedule = "\n".join(
        f"| {name} | {plan.steps:,} | {plan.batch} | {plan.learning_rate:g} | {last[name].get('eval_loss', nan):.3f} |"
        for name, plan in stages.items()
    )
    text = f"""---
license: apache-2.0
library_name: htc-probe
---
# htc-tiny

A small HTC-VLM: 64 px images, 64 CLIP patches and 4 MGVQ anchors through one `<voco>` token into a four-layer LLaMA
(d = 128). It exists so that `htc-extract`, `htc-probe` and `htc-dashboard` work on a laptop, offline; it knows nothing
but the rendered scenes it was trained on.

Made by `htc-train tiny` from {config.images:,} scenes (seed {config.seed}), in the paper's order: a CLIP on captions
with the pairwise sigmoid loss, an MGVQ on reconstruction, both then frozen; last P_v, P_d, `<voco>` and the LLaMA on
questions and answers, all questions of an image in one step. The CLIP is taught the probed facts directly: its
captions are cut into sentences, each patch is matched with the sentences about the object it shows, and its text tower
is locked with the sentences at right angles.

| stage | steps | images a step | learning rate | loss on `val` |
|---|---|---|---|---|
{schedule}

The loss of `clip` is in nats, summed over sentences: an image's plus three times a patch's; of `mgvq`, the mean
absolute error of pixels in [-1, 1] plus the quantizer's terms; of `answers`, in nats a token. `training.json`
holds all settings and losses.

## Answers on `val` ({config.val_images:,} scenes)

Greedy answers to questions about an image that the text can read through `<voco>` alone; right when equal word for
word. Chance is the share of the most frequent answer.

| question | right | chance | times chance |
|---|---|---|---|
{answers}

The frozen CLIP, on the same images, ranks the true caption sentence first for {clip}. This is
the mean of its patches against each question's sentences, before anything is compressed.
"""
    (folder / "README.md").write_text(text)
    record = {"config": plain(config), "accuracy": dict(accuracy), "chance": dict(chance), "log": dict(logs)}
    (folder / "training.json").write_text(json.dumps(record, indent=1))


def write_curves(path: Path, logs: Logs) -> None:
    """An HTML page with the losses and the validation measures of every stage over its steps."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=len(logs), cols=1, subplot_titles=list(logs))
    for row, (stage, log) in enumerate(logs.items(), 1):
        names = sorted({name for entry in log for name in entry if name == "loss" or _is_measure(name)})
        for name in names:
            points = [(entry["step"], entry[name]) for entry in log if name in entry]
            x, y = zip(*points, strict=True)
            figure.add_scatter(x=x, y=y, name=f"{stage} {name}", mode="lines", row=row, col=1)
    figure.update_layout(height=400 * len(logs), title="Training of htc-tiny; losses in nats (clip, answers)")
    figure.write_html(path, include_plotlyjs=True)


def _last_evaluation(log: list[dict[str, Any]]) -> dict[str, float]:
    entries = [entry for entry in log if "eval_loss" in entry]
    return {name: value for name, value in (entries[-1] if entries else {}).items() if _is_measure(name)}


def _is_measure(name: str) -> bool:
    return name.startswith("eval_") and not name.endswith(("runtime", "per_second"))
