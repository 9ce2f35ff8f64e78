"""Models by name: shipped with the package, a directory, or a repository on the Hugging Face hub.

Knows how a folder becomes an HTCVLM: its weights are compared with the configuration by name and shape before any
memory is taken, and then read one at a time. Formats are in `weights`, names in `layouts`, LoRA in `adapters`; not
what a model computes. torch and transformers are imported where used.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from htc_probe.extract.errors import UserError
from htc_probe.extract.models import hub
from htc_probe.extract.models.adapters import Adapter, check_adapter, merged, read_adapter
from htc_probe.extract.models.layouts import Checkpoint, open_checkpoint, read_config
from htc_probe.extract.models.layouts import read_tokenizer as read_tokenizer
from htc_probe.extract.models.weights import FLOATS, Stored, line, opened

if TYPE_CHECKING:
    import torch

    from htc_probe.extract.vlm.config import HTCConfig
    from htc_probe.extract.vlm.model import HTCVLM


class Place(NamedTuple):
    """Where a model is, and how it is loaded."""

    folder: Path
    adapter: Path | None
    random_seed: int | None
    """Of weights drawn at random; None where they are read."""
    dtype: str
    device: str


def shipped() -> dict[str, Path]:
    """Name to directory of the models in this package."""
    folder = Path(__file__).parent
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}


def find(name: str) -> Path:
    """The directory of a shipped model, of one on this machine, or of one downloaded from the hub.

    Only a name like owner/model that is no directory makes it ask the network. Raises UserError.
    """
    if name in shipped():
        return shipped()[name]
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path} holds no config.json; a model is a directory of an HTC-VLM, LLaVA or VoCo-LLaMA")
        return path
    names = ", ".join(shipped()) or "none here"
    expected = f"expected a shipped model ({names}), a directory, or owner/model on the hub"
    if not hub.is_hub_name(name):
        raise UserError(f"no model {name!r}; {expected}")
    try:
        return hub.download(name)
    except UserError as error:
        raise UserError(f"no model {name!r}; {expected} ({error})") from error


def digest(folder: Path, adapter: Path | None = None) -> str:
    """sha256 over every weight's name, type, shape and bytes, in the order of names; shards make no difference.

    The weights of a vision tower in a folder of its own follow, and those of an adapter. Raises UserError.
    """
    if folder in shipped().values() and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder.name} is a configuration without weights, which its authors have not published; train them with "
            "htc-train (docs/your-own-model.md), or add --random-weights"
        )
    total = hashlib.sha256()
    for tensors in open_checkpoint(folder).folders:
        _add(total, tensors)
    if adapter is not None:
        change = read_adapter(adapter)
        total.update(f"adapter {change.scaling}\n".encode())
        _add(total, change.tensors)
    return total.hexdigest()


def digest_of(place: Place) -> str:
    """`digest`, or `random_digest` where the weights are drawn. Raises UserError."""
    if place.random_seed is None:
        return digest(place.folder, place.adapter)
    return random_digest(read_config(place.folder), place.random_seed)


def load_from(place: Place) -> HTCVLM:
    """The model, ready to run. Raises UserError where it is damaged, or the device has too little memory."""
    import torch

    dtype = getattr(torch, place.dtype)
    try:
        if place.random_seed is None:
            return load(place.folder, dtype=dtype, device=place.device, adapter=place.adapter)
        config = read_config(place.folder)
        return random_model(config, dtype=dtype, device=place.device, seed=place.random_seed)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"the weights of {place.folder.name} in {place.dtype} do not fit into the memory of {place.device} "
            f"({str(error).splitlines()[0]}); use another --device, or extract with a smaller --dtype"
        ) from error


def load(folder: Path, *, dtype: torch.dtype, device: str, adapter: Path | None = None) -> HTCVLM:
    """The model in `folder`, with a LoRA adapter merged in, for inference.

    Takes the memory of the model and of one of its files. Raises UserError when weights are missing, unknown or of
    another shape than the configuration says, before any is read.
    """
    import torch
    from accelerate import init_empty_weights

    from htc_probe.extract.vlm.model import HTCVLM

    checkpoint = open_checkpoint(folder)
    shapes = _check_fit(folder, checkpoint)
    change = Adapter() if adapter is None else read_adapter(adapter)
    if adapter is not None:
        check_adapter(adapter, change, shapes, checkpoint.config.image_fit)

    with init_empty_weights(include_buffers=False):  # what is computed and not stored, such as RoPE's frequencies
        model = HTCVLM(checkpoint.config)
    weights = {**checkpoint.weights, **change.replaced}
    with contextlib.ExitStack() as stack:
        files = {tensor.path for pair in change.added.values() for tensor in pair}
        reads = {path: stack.enter_context(opened(path)) for path in files}
        added = {
            name: [partial(reads[tensor.path], tensor.key) for tensor in pair] for name, pair in change.added.items()
        }
        for path in sorted({tensor.path for tensor in weights.values()}):
            names = {name: tensor.key for name, tensor in weights.items() if tensor.path == path}
            _read_file(model, path, names, added, change.scaling, dtype=dtype, device=device)
    head, embed = model.language_model.lm_head, model.language_model.model.embed_tokens
    if checkpoint.config.text.tie_word_embeddings:
        if torch.equal(head.weight, embed.weight):
            head.weight = embed.weight
        else:  # as in transformers: what is stored, or an adapter's, wins over what config.json says
            model.config.text.tie_word_embeddings = False
    if checkpoint.voco_token is not None and "voco" not in weights:
        model.voco = torch.nn.Parameter(embed.weight[checkpoint.voco_token].clone())
    return model.eval().to(device)


def random_model(config: HTCConfig, *, dtype: torch.dtype, device: str, seed: int) -> HTCVLM:
    """A model with weights drawn at random, each as its kind of layer starts, for inference. MGVQ stays float32."""
    import torch

    from htc_probe.extract.vlm.model import HTCVLM

    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):  # drawn in place: a large model is there once
            model = HTCVLM(config)
    finally:
        torch.set_default_dtype(before)
    for part in HTCVLM._keep_in_fp32_modules_strict:
        if getattr(model, part) is not None:
            getattr(model, part).float()
    return model.eval()


def random_digest(config: HTCConfig, seed: int) -> str:
    """What stands for the digest of `random_model`'s weights: sha256 of what they follow from."""
    return hashlib.sha256(f"random {seed} {config.to_json_string(use_diff=False)}".encode()).hexdigest()


def _check_fit(folder: Path, checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights that the configuration needs. Raises UserError where the files have others."""
    import torch

    from htc_probe.extract.vlm.model import HTCVLM

    config, weights = checkpoint.config, checkpoint.weights
    layers = config.text.num_hidden_layers + config.vision.num_hidden_layers
    if layers > len(weights):  # building them, even empty, could take for ever
        raise UserError(f"{folder} has {len(weights)} weights for {layers} layers in config.json; copy the model again")
    try:
        with torch.device("meta"):
            wanted = HTCVLM(config).state_dict()
    except (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"{folder / 'config.json'} describes no model that can be built: {line(error)}") from error
    optional = {"voco"} if checkpoint.voco_token is not None else set()
    missing = [name for name in wanted if name not in weights and name not in optional]
    unknown = [tensor.key for name, tensor in weights.items() if name not in wanted]
    misfits = [
        f"{tensor.key} {tensor.shape} {tensor.dtype} (by config.json {tuple(wanted[name].shape)})"
        for name, tensor in weights.items()
        if name in wanted and (tensor.shape != wanted[name].shape or not _same_kind(tensor.dtype, wanted[name]))
    ]
    faults = {"no fitting weights for": missing, "unknown weights": unknown}
    faults["weights of another shape or type"] = misfits
    words = "; ".join(f"{what} {', '.join(names[:3])} ({len(names)} in all)" for what, names in faults.items() if names)
    if words:
        raise UserError(f"{folder} has {words}: its files and its config.json are not of one model; copy it again")
    return {name: tuple(tensor.shape) for name, tensor in wanted.items()}


def _same_kind(dtype: str, wanted: torch.Tensor) -> bool:
    return dtype in FLOATS if wanted.is_floating_point() else dtype == str(wanted.dtype)


def _read_file(
    model: HTCVLM,
    path: Path,
    keys: Mapping[str, str],
    added: Mapping[str, Sequence[Callable[[], torch.Tensor]]],
    scaling: float,
    *,
    dtype: torch.dtype,
    device: str,
) -> None:
    """Puts the weights of one file, {name: key}, into the model, A and B of `added` merged in."""
    import torch

    with opened(path) as read, torch.no_grad():
        for name, key in keys.items():
            weight = read(key)
            if name in added:
                a, b = (get().to(device) for get in added[name])
                weight = merged(weight.to(device), a, b, scaling)
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            own = getattr(module, leaf).dtype
            fixed = name.split(".")[0] in model._keep_in_fp32_modules_strict or not own.is_floating_point
            # A copy: the tensor of the file is a view of the file.
            weight = torch.empty(weight.shape, dtype=own if fixed else dtype, device=device).copy_(weight)
            setattr(module, leaf, torch.nn.Parameter(weight) if leaf in module._parameters else weight)


def _add(total: hashlib._Hash, tensors: Sequence[Stored]) -> None:
    import torch

    with contextlib.ExitStack() as stack:
        reads = {path: stack.enter_context(opened(path)) for path in {tensor.path for tensor in tensors}}
        for tensor in sorted(tensors, key=lambda tensor: tensor.key):
            total.update(f"{tensor.key} {tensor.dtype} {tensor.shape}\n".encode())
            flat = reads[tensor.path](tensor.key).detach().reshape(-1).contiguous()
            total.update(flat.view(torch.uint8).numpy().data)
