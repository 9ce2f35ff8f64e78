"""Folders on the Hugging Face hub, downloaded once and then taken from its cache.

Knows names and which files of a repository are a model; not what is in them.
"""

from __future__ import annotations

import re
from pathlib import Path

from htc_probe.extract.errors import UserError
from htc_probe.extract.models import processors

_DESCRIPTION = (
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    *processors.FILES,
)
_SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def is_hub_name(name: str) -> bool:
    """Whether `name` looks like owner/model."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def download(name: str, *, weights: bool = True) -> Path:
    """The local folder of owner/model; its pickles are fetched only where it has no safetensors.

    Raises UserError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [*_DESCRIPTION, *(_SAFETENSORS if weights else ())]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
        if weights and not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_DESCRIPTION, *_PICKLES]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(f"the hub does not give the model {name!r}: {str(error).splitlines()[0]}") from error
    return folder
