"""The checkpoint that ships: small enough, whole, and as good as its card says."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from htc_probe.extract.data import scenes
from htc_probe.extract.models import find
from htc_probe.extract.training import tiny

FOLDER = find("htc-tiny")


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained(FOLDER).eval()


def test_it_is_whole_and_at_most_15_mb(model):
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir() if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "training.json"} <= set(files)
    assert sum(files.values()) < 15e6
    assert model.config.topology == "star" and model.config.num_anchors == 4


def test_it_answers_as_its_card_says(model, tmp_path):
    """On 300 scenes of val: within four standard errors of the recorded accuracy, question by question."""
    record = json.loads((FOLDER / "training.json").read_text())
    images = np.stack([np.asarray(scenes.render(scenes.scene("val", i), tiny.RESOLUTION)) for i in range(300)])
    features = tiny.cached_features(model, images, tmp_path, "val")
    accuracy = tiny.answer_accuracy(model, "val", features)
    for question, found in accuracy.items():
        told = record["accuracy"][question]
        error = np.sqrt(max(told * (1 - told), 0.01) / 240)
        assert abs(found - told) < 4 * error, question
        row = f"| {question} | {told:.1%} | {record['chance'][question]:.1%} |"
        assert row in (FOLDER / "README.md").read_text()


def test_voco_carries_the_answer(model):
    """With the <voco> of another image the same question gets the other image's answer."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    prompt = tokenizer(scenes.QUESTIONS["scene"], return_tensors="pt").input_ids.expand(20, -1)
    images = np.stack([np.asarray(scenes.render(scenes.scene("val", i), tiny.RESOLUTION)) for i in range(20)])
    with torch.no_grad():
        answers = tokenizer.batch_decode(
            model.generate(tiny.as_pixel_values(images[::-1]), prompt, max_new_tokens=3), skip_special_tokens=True
        )
    truth = [scenes.scene("val", i).answers["scene"] for i in reversed(range(20))]
    assert np.mean([a.strip() == t for a, t in zip(answers, truth, strict=True)]) > 0.8
