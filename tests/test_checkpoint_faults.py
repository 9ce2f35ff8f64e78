"""Checkpoints that are not whole, not of one model, or not harmless are refused in a sentence."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from htc_probe.extract import models
from htc_probe.extract.errors import UserError
from made.checkpoints import State, changed_copy, load


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("multi_modal_projector.linear_1.bias"), r"no fitting weights for patch_projector.0.bias \(1 "),
        (lambda s: s.update({"image_newline": torch.ones(32)}), r"unknown weights image_newline \(1 in"),
        (
            lambda s: s.update({"language_model.lm_head.weight": torch.ones(335, 32)}),
            r"or type language_model.lm_head.weight \(335, 32\) torch.float32 \(by config.json \(336, 32\)\)",
        ),
        (
            lambda s: s.update({"language_model.model.norm.weight": torch.ones(32, dtype=torch.int8)}),
            "another shape or type language_model.model.norm.weight .* torch.int8",
        ),
        (lambda s: s.update({"model.language_model.norm.weight": torch.ones(32)}), "norm.weight too; remove either"),
        (
            lambda s: s.update({"language_model.model.embed_tokens.weight": torch.ones(20, 32)}),
            "after the image; expected tokens below 20",
        ),
    ],
)
def test_wrong_weights(change: Callable[[State], Any], words: str, llavas: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load(changed_copy(llavas["today"], tmp_path / "wrong", change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "change", "words"),
    [
        ("today", {"vision_feature_layer": [1, 2]}, r"vision_feature_layer \[1, 2\]"),
        ("today", {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy 'full'"),
        ("today", {"vision_feature_layer": -9}, "vision_layer -9 is not a hidden state"),
        ("today", {"text_config": {"model_type": "mistral"}}, "text_config.model_type 'mistral'"),
        ("today", {"vision_config": {"model_type": "siglip_vision_model"}}, "model_type 'siglip_vision_model'"),
        ("today", {"text_config": 3}, "no HTC-VLM configuration, nor LLaVA's"),
        ("today", {"text_config": {"model_type": "llama", "hidden_size": "wide"}}, "'hidden_size': .*wide"),
        ("today", {"model_type": "llava_next"}, "type 'llava_next'; expected htc_vlm"),
        ("original, tower alone", {"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
        ("original, tower alone", {"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type 'mlp3x_gelu'"),
        ("original, tower alone", {"mm_use_im_start_end": True}, "mm_use_im_start_end True"),
        ("original, tower alone", {"mm_vision_tower": "/group/clip"}, "mm_vision_tower '/group/clip', which is not"),
        ("original, tower alone", {"mm_vision_tower": None}, "mm_vision_tower None"),
        ("original, tower alone", {"hidden_size": 0}, "config.json"),
        ("original, tower alone", {"num_attention_heads": 5}, "config.json"),
        ("original, tower alone", {"mm_vision_select_layer": "last"}, "nor LLaVA's"),
    ],
)
def test_wrong_configurations(
    layout: str, change: dict[str, Any], words: str, llavas: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(llavas[layout], tmp_path / "wrong"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_files(llavas: dict[str, Path], tmp_path: Path) -> None:
    def copy(layout: str, name: str) -> Path:
        return Path(shutil.copytree(llavas[layout], tmp_path / name))

    folder = copy("today", "no tokenizer")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer.json or tokenizer.model"):
        models.read_config(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer in .* cannot be read"):
        models.read_config(folder)

    folder = copy("new", "shard")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="00002-of-00002.safetensors cannot be read"):
        models.read_config(folder)
    index = folder / "model.safetensors.index.json"
    for content in ('{"weight_map": {"a": "../../etc/passwd"}}', "[]", "{}", "{"):
        index.write_text(content)
        with pytest.raises(UserError, match="index.json (is damaged|cannot be read)"):
            models.digest(folder)

    folder = copy("original, tower alone", "bin")
    path = folder / "pytorch_model-00001-of-00003.bin"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PK", b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="00001-of-00003.bin"):
            models.read_config(folder)
    torch.save([torch.ones(2)], path)
    with pytest.raises(UserError, match="expected a state_dict"):
        models.read_config(folder)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_does_nothing(zipped: bool, llavas: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llavas["original, tower alone"], tmp_path / "model"))
    path = folder / "pytorch_model-00001-of-00003.bin"
    done = tmp_path / "done"
    torch.save({"lm_head.weight": Malicious(done)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="a pickle that does more than hold tensors"):
        models.digest(folder)
    path.write_bytes(pickle.dumps(Malicious(done)))
    with pytest.raises(UserError, match="a pickle that does more than hold tensors"):
        load(folder)
    assert not done.exists()
