"""Files of named tensors: safetensors, and what torch.save wrote, one or several a model.

Knows the two formats and which file holds which tensor; not what a name means. Nothing is unpickled but tensors.
torch and safetensors are imported where used.
"""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from htc_probe.extract.errors import UserError

if TYPE_CHECKING:
    import torch

_MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
FLOATS = ("torch.float64", "torch.float32", "torch.float16", "torch.bfloat16")
"""Types of weights that are numbers as they stand; smaller ones need a scale beside them."""


class Stored(NamedTuple):
    """A tensor in a file, not read yet."""

    path: Path
    key: str
    """Its name in the file."""
    shape: tuple[int, ...]
    dtype: str
    """As torch writes it, such as torch.float16."""


def weight_files(folder: Path, names: tuple[str, ...] = _MODEL_FILES) -> list[Path]:
    """The files of a folder's weights: the first of `names` that is there, whole or in shards. Raises UserError."""
    for name in names:
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file():
            return [single]
        if index.is_file():
            with reading(index):
                shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not all(
                isinstance(shard, str) and Path(shard).name == shard for shard in shards.values()
            ):
                raise UserError(f"{index} is damaged: weight_map names no files of this folder; copy it again")
            return [folder / shard for shard in sorted(set(shards.values()))]
    raise UserError(f"{folder} holds no {' or '.join(names)}, whole or with an index of shards; copy the model again")


def stored(paths: Iterable[Path]) -> list[Stored]:
    """All tensors of the files; reads names and shapes only. Raises UserError."""
    return [tensor for path in paths for tensor in _stored(path)]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Callable[[str], torch.Tensor]]:
    """The function that reads a tensor of the file by its name; it raises UserError.

    The file is mapped: a tensor takes memory once its numbers are used, and until it is dropped. Only files of
    torch before 1.6 are read whole.
    """
    from safetensors import safe_open

    with contextlib.ExitStack() as stack:
        with reading(path):
            if path.suffix == ".safetensors":
                get = stack.enter_context(safe_open(path, "pt")).get_tensor
            else:
                get = _unpickled(path).__getitem__

        def checked(key: str) -> torch.Tensor:
            with reading(path):
                return get(key)

        yield checked


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises OSError or ValueError."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}, not an object")
    return content


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Makes a UserError of whatever goes wrong with the file."""
    try:
        yield
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged, or a pickle that does more than hold tensors, which is never loaded; copy it again, "
            "or get it as safetensors"
        ) from error
    except Exception as error:  # of a damaged file: SafetensorError, RuntimeError, EOFError, KeyError, ...
        raise UserError(f"{path} cannot be read: {line(error)}; copy it again") from error


def line(error: BaseException) -> str:
    """What an error says, in one line that is not too long."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _stored(path: Path) -> list[Stored]:
    from safetensors import safe_open

    with reading(path):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        elif _is_zip(path):
            tensors = _unpickled(path)
        else:
            from torch._subclasses.fake_tensor import FakeTensorMode  # takes seconds to import

            with FakeTensorMode():
                tensors = _unpickled(path)
        return [Stored(path, key, tuple(tensor.shape), str(tensor.dtype)) for key, tensor in tensors.items()]


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided
        for key, value in content.items()
    ):
        raise UserError(f"{path} holds something other than named tensors; expected a state_dict")
    return content


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
