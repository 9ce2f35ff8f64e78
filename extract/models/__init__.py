"""Models by name: shipped with the package, a directory, or a repository on the Hugging Face hub.

Knows folders and safetensors files; not what a model computes. torch and transformers are imported where used.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extract.errors import UserError

if TYPE_CHECKING:
    import torch

    from extract.vlm.config import HTCConfig
    from extract.vlm.model import HTCVLM

_FILES = ("config.json", "model.safetensors.index.json", "*.safetensors")


def shipped() -> dict[str, Path]:
    """Name to directory of the models in this package."""
    here = Path(__file__).parent
    return {path.parent.name: path.parent for path in sorted(here.glob("*/config.json"))}


def find(name: str) -> Path:
    """The directory of a shipped model, of one that `save_pretrained` wrote, or of one downloaded from the hub.

    Only a name like owner/model that is no directory makes it ask the network. Raises UserError.
    """
    if name in shipped():
        return shipped()[name]
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path} holds no config.json; a model is a directory that HTCVLM.save_pretrained wrote")
        return path
    names = ", ".join(shipped()) or "none here"
    expected = f"expected a shipped model ({names}), a directory, or owner/model on the hub"
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise UserError(f"no model {name!r}; {expected}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"no model {name!r}; {expected} (the hub says: {str(error).splitlines()[0]})") from error


def read_config(folder: Path) -> HTCConfig:
    """The configuration of the model in `folder`. Raises UserError when it is no HTC-VLM."""
    from extract.vlm.config import HTCConfig

    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != HTCConfig.model_type:
            raise UserError(f"{folder} is a model of type {kind!r}; expected {HTCConfig.model_type}")
        return HTCConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'} is no HTC-VLM configuration: {_line(error)}") from error


def digest(folder: Path) -> str:
    """sha256 over every weight's name, type, shape and bytes, in the order of names; shards make no difference."""
    from safetensors import SafetensorError, safe_open

    total = hashlib.sha256()
    try:
        where = {key: path for path in _weight_files(folder) for key in _keys(path)}
        files = {path: safe_open(path, "pt") for path in set(where.values())}
        for key in sorted(where):
            tensor = files[where[key]].get_tensor(key)
            total.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            total.update(tensor.reshape(-1).contiguous().view(_byte()).numpy().data)
    except (SafetensorError, OSError) as error:
        raise UserError(f"the weights in {folder} cannot be read: {_line(error)}; copy the model again") from error
    return total.hexdigest()


def load(folder: Path, *, dtype: torch.dtype, device: str) -> HTCVLM:
    """The model in `folder`, for inference. Raises UserError when weights are missing or do not fit its config."""
    from safetensors import SafetensorError

    from extract.vlm.model import HTCVLM

    _weight_files(folder)
    try:
        loaded: Any = HTCVLM.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"the model in {folder} cannot be loaded: {_line(error)}") from error
    model, report = loaded
    # transformers fills these with random numbers and goes on.
    lost = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lost:
        raise UserError(f"{folder} has no fitting weights for {lost[0]} ({len(lost)} in all); copy the model again")
    return model.eval().to(device)


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise UserError(f"{folder} holds no model.safetensors; only that format is loaded, save the model in it")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index} is damaged ({_line(error)}); copy the model again") from error
    return [folder / name for name in names]


def _keys(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return list(file.keys())


def _byte() -> torch.dtype:
    import torch

    return torch.uint8


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
