"""Training: stages resume to the same weights, the recipe runs from end to end, captions teach every factor."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from htc_probe.extract.data import scene_words, scenes
from htc_probe.extract.training import tiny
from htc_probe.extract.training.cli import main
from htc_probe.extract.training.config import Schedule
from htc_probe.extract.training.stage import Batches, last_checkpoint, train_stage

SHORT = [
    "--images",
    "48",
    "--val-images",
    "20",
    "--clip.steps",
    "3",
    "--clip.batch",
    "8",
    "--mgvq.steps",
    "3",
    "--mgvq.batch",
    "8",
    "--answers.steps",
    "3",
    "--answers.batch",
    "8",
]


class Line(nn.Module):
    """y = w x + b, with dropout so that the random state matters."""

    def __init__(self):
        super().__init__()
        self.linear, self.dropout = nn.Linear(3, 1), nn.Dropout(0.2)

    def forward(self, x, y):
        return {"loss": (self.linear(self.dropout(x)) - y).square().mean()}


def line_batches(stop_after=None):
    """Batches of a known line; asking for more than `stop_after` of them is an interrupt."""
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    asked = []

    def fetch(rows):
        asked.append(rows)
        if stop_after is not None and len(asked) > stop_after:
            raise KeyboardInterrupt
        return {"x": x[rows], "y": x[rows].sum(1, keepdim=True)}

    return Batches(len(x), fetch)


def test_an_interrupted_stage_continues_to_the_same_weights(tmp_path):
    schedule = Schedule(steps=20, batch=8, learning_rate=0.1)
    states, logs = [], []
    for folder, stops in ((tmp_path / "whole", [None]), (tmp_path / "parts", [9, 7, None])):
        for stop in stops:
            torch.manual_seed(1)
            line = Line()
            if stop is None:
                logs.append(train_stage(line, line_batches(), schedule, folder, seed=3, labels="y"))
            else:
                kept = rf"\d+ of 20 steps of parts are kept in {folder}/checkpoint-\d+; .* goes on from there"
                with pytest.raises(KeyboardInterrupt, match=kept):
                    train_stage(line, line_batches(stop), schedule, folder, seed=3, labels="y")
        states.append(line.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]

    fresh = Line()  # a finished stage is loaded, not trained
    log = train_stage(fresh, line_batches(0), schedule, tmp_path / "whole", seed=3, labels="y")
    assert log == json.loads(json.dumps(logs[0]))
    assert torch.equal(fresh.linear.weight, states[0]["linear.weight"])


def test_a_stage_that_is_stopped_early_says_that_nothing_is_kept(tmp_path):
    schedule = Schedule(steps=20, batch=8, learning_rate=0.1)
    with pytest.raises(KeyboardInterrupt, match=r"had no checkpoint yet \(the first comes after 2 steps\); .* again"):
        train_stage(Line(), line_batches(1), schedule, tmp_path / "line", seed=3, labels="y")


@pytest.mark.parametrize("validated", [False, True])
def test_losses_are_printed_at_the_first_step_and_about_every_tenth(tmp_path, capfd, validated):
    """In lines of ours alone, of which the last is of the last step; nothing of transformers' beside them."""
    schedule = Schedule(steps=205, batch=8, learning_rate=0.1)
    validation = line_batches() if validated else None
    train_stage(Line(), line_batches(), schedule, tmp_path / "line", seed=3, labels="y", validation=validation)
    out, err = capfd.readouterr()
    lines = out.splitlines()
    val = r", on val \d\S*" if validated else ""
    assert re.fullmatch(r"line          2 of 205 steps, .* left; loss \d\S*", lines[0]) and 10 <= len(lines) <= 12
    assert all(re.fullmatch(rf"line          \d+ of 205 steps, .*; loss \d\S*{val}", line) for line in lines[1:])
    assert lines[-1].startswith("line          205 of 205 steps") and err == ""

    train_stage(Line(), line_batches(), schedule, tmp_path / "line", seed=3, labels="y", validation=validation)
    assert capfd.readouterr().out == "line          is there already\n"


@pytest.mark.slow
def test_the_recipe_runs_continues_and_makes_a_model_that_loads(tmp_path, capsys):
    from transformers import AutoModel, AutoTokenizer

    place = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "model")]
    assert main(["tiny", *SHORT, *place]) == 0
    assert "htc-extract --model" in capsys.readouterr().out
    model = AutoModel.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    prompt = tokenizer(scenes.QUESTIONS["scene"], return_tensors="pt").input_ids
    pixels = tiny.as_pixel_values(np.asarray(scenes.render(scenes.scene("val", 0), 64))[None])
    assert model.generate(pixels, prompt, max_new_tokens=3).shape[0] == 1

    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert set(record["accuracy"]) == set(scenes.QUESTIONS) and set(record["log"]) == {"clip", "mgvq", "answers"}
    card = (tmp_path / "model" / "README.md").read_text()
    assert all(f"| {question} |" in card for question in scenes.QUESTIONS)
    assert (tmp_path / "work" / "curves.html").stat().st_size > 10_000

    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert main(["tiny", *SHORT, *place]) == 0  # every stage is loaded
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights

    capsys.readouterr()
    assert main(["tiny", *SHORT, *place, "--seed", "7"]) == 2
    assert "seed 0 instead of 7" in capsys.readouterr().err


ENDLESS = {
    "clip": ["tiny", *SHORT[:4], "--clip.steps", "9000", "--clip.batch", "8"],
    "fine-tuning": ["--init-from", "htc-tiny", "--max-steps", "9000", "--save-steps", "8", "--batch", "2"]
    + ["--device-batch", "2", "--workers", "2", "--max-length", "60"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDLESS)
def test_ctrl_c_says_what_is_kept(name, tmp_path):
    """Sent to all processes, as a terminal does, in the middle of many steps; nothing else is on stderr."""
    places = ["--out", "out"] + (["--work", "work"] if name == "clip" else [])
    typed = [sys.executable, "-m", "htc_probe.extract.training.cli", *ENDLESS[name], *places]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env, "cwd": tmp_path}
    with subprocess.Popen(typed, start_new_session=True, **given) as process:
        line = next(line for line in process.stdout if line.startswith(name))
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 130 and re.match(rf"{name} +\d+ of 9,000 steps, .* left; loss \d", line)
    if name == "clip":
        kept = "clip had no checkpoint yet (the first comes after 900 steps); the same command begins it again"
    else:
        folder = last_checkpoint(tmp_path / "out" / "checkpoints")
        step, there = int(folder.name.split("-")[1]), folder.relative_to(tmp_path)
        kept = f"{step:,} of 9,000 steps of fine-tuning are kept in {there}; the same command goes on from there"
    assert told == f"htc-train: interrupted; {kept}\n"


def test_unknown_flags_are_errors():
    assert main(["tiny", "--stepz", "3"]) == 2


def test_sentences_are_read_to_their_end():
    """transformers' CLIP reads the wrong token when </s> is 2; then every sentence of a kind looks the same."""
    from transformers import CLIPConfig, CLIPTextConfig

    from htc_probe.extract.training.contrastive import CaptionCLIP

    tokenizer = scene_words.build_tokenizer()
    ids, mask = map(torch.from_numpy, scene_words.encode_sentences(tokenizer, tiny.sentence_bank()))
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=ids.shape[1],
        num_hidden_layers=1,
        eos_token_id=tokenizer.eos_token_id,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=32,
    )
    config = CLIPConfig(vision_config=tiny._vision_config().to_dict(), text_config=text.to_dict(), projection_dim=32)
    clip = CaptionCLIP(config, ids, mask, layer=-1, mean=(0.5,) * 3, deviation=(0.5,) * 3).clip
    with torch.no_grad():
        embedded = clip.get_text_features(ids, mask).pooler_output
    assert torch.pdist(embedded).min() > 1e-3 * embedded.norm(dim=1).mean()


def test_zero_shot_accuracy_of_perfect_and_of_reversed_logits():
    from transformers.trainer_utils import EvalPrediction

    bank = tiny.sentence_bank()
    truths = tiny.truths_of("val", 60, bank).images.numpy()
    right = tiny.zero_shot(EvalPrediction(truths.astype(float), truths), bank)
    wrong = tiny.zero_shot(EvalPrediction(-truths.astype(float), truths), bank)
    assert set(right) == set(scenes.QUESTIONS) - {"present"}
    assert set(right.values()) == {1.0} and set(wrong.values()) == {0.0}


def test_patches_are_told_about_what_they_show():
    bank = tiny.sentence_bank()
    truths = tiny.truths_of("val", 30, bank)
    for i in range(30):
        what = scenes.scene("val", i)
        grid = truths.owners[i].view(8, 8)
        row, col = int(what.things[0].y * 8), int(what.things[0].x * 8)
        assert (grid[row - 1 : row + 2, col - 1 : col + 2] == 1).any()  # the main object is at its centre
        assert (grid == 0).any() and grid.max() <= len(what.things)
        told = [bank[j] for j in truths.regions[i, 0].nonzero()]
        assert told and all("object " not in sentence for sentence in told)  # the background is not the main object


def test_the_bottleneck_learns_answers_from_cached_features(tmp_path):
    """A few scenes, learned by heart: the generated answers are then right, read through <voco> alone."""
    torch.manual_seed(0)
    model = tiny.empty_model()
    features = tiny.Features(
        np.random.default_rng(0).normal(size=(4, model.config.num_patches, tiny.WIDTH)).astype(np.float16),
        np.random.default_rng(1).normal(size=(4, model.config.q_size)).astype(np.float16),
    )
    before = tiny.answer_accuracy(model, "train", features)
    log = tiny.train_bottleneck(model, features, features, Schedule(120, 4, 3e-3, 0.0), tmp_path, seed=0)
    after = tiny.answer_accuracy(model, "train", features)
    assert [e for e in log if "loss" in e][-1]["loss"] < 0.2
    assert np.mean(list(after.values())) > 0.9 > 0.3 > np.mean(list(before.values()))
