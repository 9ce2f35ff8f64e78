"""`htc-extract`: run the model over images and write down what its one token holds.

Parse, check, call, print. torch, transformers and h5py are imported once the work starts, so that `--help` answers
at once.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import tyro

from extract.errors import UserError

if TYPE_CHECKING:
    from extract.data.source import ImageError, Source
    from extract.store import Run, RunInfo, RunShape
    from extract.vlm.model import HTCVLM

# Settings in which a run may differ and still be the same run: they decide how it is made and not what it says, or
# are compared by what they lead to (the weights, the number of images).
_FREE = {"out", "batch_size", "device", "model", "adapter", "random_weights", "limit"}


@dataclass(frozen=True)
class ExtractConfig:
    """Run HTC-VLM over the images of a split and write what <voco> holds and where it looked to a run file.

    The run holds z_voco at every layer, v_d, pooled V, the codes, <voco>'s attention, thumbnails and labels. With no
    arguments it needs no network and no GPU: a small model and rendered scenes come with the package.
    """

    split: str = "val"
    """Which split of the data."""
    model: str = "htc-tiny"
    """htc-tiny (shipped), a directory, or owner/model on the hub: of an HTC-VLM, LLaVA-1.5 or VoCo-LLaMA."""
    random_weights: bool = False
    """Draw the model's weights at random (--seed) instead of reading them: the floor that every probe has to beat,
    and a way to try a size, such as htc-7b, the paper's."""
    adapter: Path | None = None
    """A directory with a LoRA adapter (PEFT's files) that is merged into the model."""
    data: str = "scenes"
    """scenes (built in), a data set in its official files, NAME:PATH (cub, paco, coco, dtd, gqa, clevr, 3dshapes,
    datasets), or a folder of images: FOLDER/SPLIT/, labels in its metadata.csv and FOLDER/tasks.toml."""
    out: Path | None = None
    """Run file to write (.h5); runs/DATA-SPLIT.h5 when left out."""
    limit: int | None = None
    """Only this many images of the split: a fair sample, not the first of the first class."""
    batch_size: int = 32
    """Images in one pass of the model."""
    layers: str = "all"
    """Layers of z_voco to keep: all, or numbers such as 0,2,4; 0 is the embedding, -1 the last."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto is the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the arithmetic; auto is bfloat16 on a GPU and float32 on a CPU."""
    store_dtype: Literal["float16", "float32"] = "float16"
    """Precision of z_voco, v_d, pooled V and attention in the file."""
    on_error: Literal["stop", "skip"] = "stop"
    """What an unreadable image does: stop the extraction, or be skipped and recorded in the run."""
    seed: int = 0
    """Of --random-weights. Without it nothing is drawn, and the seed changes no number."""


class Plan(NamedTuple):
    """All that is settled before the model is loaded."""

    out: Path
    folder: Path
    """Of the model."""
    source: Source
    shape: RunShape
    info: RunInfo


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit status: 0, 2 for what the user can mend, 130 when interrupted."""
    config = tyro.cli(ExtractConfig, prog="htc-extract", args=None if argv is None else list(argv))
    try:
        extract(config)
    except UserError as error:
        print(f"htc-extract: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("htc-extract: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def extract(config: ExtractConfig) -> None:
    """Writes the run of `config`, or says that it is there already. Raises UserError."""
    _quiet_transformers()
    plan = make_plan(config)
    if plan.out.exists():
        refuse_other_run(plan)
        print(f"{plan.out} is there already, made with the same settings: nothing to do.")
        return
    announce(plan, config.store_dtype)
    started = time.monotonic()
    skipped = _write(plan, config)
    _report(plan, skipped, time.monotonic() - started)


# ---- before the work


def make_plan(config: ExtractConfig) -> Plan:
    """Checks the settings against the model and the data, and resolves `auto`. Raises UserError."""
    from extract import models
    from extract.capture import run_shape
    from extract.data import absolute, open_source
    from extract.environment import environment
    from extract.store import RunInfo

    if config.batch_size < 1:
        raise UserError(f"--batch-size {config.batch_size} leaves no image in a batch; use 1 or more")
    if config.out is not None and config.out.suffix != ".h5":
        raise UserError(f"--out {config.out} must end in .h5, so that htc-probe and htc-dashboard find it")
    folder = models.find(config.model)
    model = models.read_config(folder)
    source = open_source(config.data, config.split, limit=config.limit, resolution=model.image_size)
    stack = parse_layers(config.layers, model.text.num_hidden_layers)
    device, device_words = _device(config.device)
    out = Path("runs") / f"{source.name}-{config.split}.h5" if config.out is None else config.out
    settings = asdict(config) | {
        "data": absolute(config.data),
        "adapter": None if config.adapter is None else str(config.adapter),
        "out": str(out),
        "layers": list(stack),
        "device": device,
        "dtype": config.dtype if config.dtype != "auto" else "bfloat16" if device != "cpu" else "float32",
    }
    if config.random_weights and config.adapter is not None:
        raise UserError(f"--adapter {config.adapter} belongs to trained weights; leave out --random-weights, or it")
    if config.random_weights:
        sha256 = models.random_digest(model, config.seed)
    else:
        sha256 = models.digest(folder, config.adapter)
    info = RunInfo(
        config=settings,
        model={"name": _name(config), "sha256": sha256, "config": _jsonable(model)},
        dataset=source.name,
        split=config.split,
        topology=model.topology,
        environment=environment(device_words),
    )
    return Plan(out, folder, source, run_shape(model, len(source), stack), info)


def parse_layers(text: str, last: int) -> tuple[int, ...]:
    """The layers that `text` names, "all" or numbers with commas, ascending within 0 to `last`."""
    if text == "all":
        return tuple(range(last + 1))
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--layers {text} is not a list of numbers; use all, or numbers such as 0,{last}") from None
    for number in numbers:
        if not -last - 1 <= number <= last:
            raise UserError(f"--layers {text}: this model has no layer {number}; its layers are 0 to {last}")
    return tuple(sorted({number % (last + 1) for number in numbers}))


def refuse_other_run(plan: Plan) -> None:
    """Raises UserError when the file at `plan.out` is no run, or one of other settings or data."""
    from extract.store import open_run

    try:
        run = open_run(plan.out)
    except UserError as error:
        raise UserError(f"--out {plan.out} is taken: {error}; choose another --out, or remove the file") from error
    with run:
        differences = list(_differences(run, plan))
    if differences:
        raise UserError(
            f"{plan.out} is there already, made with other settings ({'; '.join(differences)}); "
            "choose another --out, or remove the file"
        )


def _differences(run: Run, plan: Plan) -> Iterator[str]:
    there, here = run.info.config, plan.info.config
    pairs = {key: (there.get(key), here[key]) for key in here if key not in _FREE}
    pairs["images"] = len(run) + len(run.skipped), plan.shape.images
    if run.info.model["sha256"] != plan.info.model["sha256"]:
        pairs["model"] = _model_words(run.info), _model_words(plan.info)
    for key, (old, new) in pairs.items():
        if old != new:
            yield f"{key}: {_words(old)} there, {_words(new)} now"
    changed = sorted({task.name for task in set(run.tasks) ^ set(plan.source.tasks)})
    if changed:
        yield f"tasks that changed: {_words(changed)}"


def announce(plan: Plan, store_dtype: Literal["float16", "float32"]) -> None:
    """Prints what will be done and how large it will be. Raises UserError when the disk has less room."""
    from rich.filesize import decimal

    from extract.store import estimate_bytes

    size = estimate_bytes(plan.shape, plan.source.tasks, store_dtype)
    settings, source, environment = plan.info.config, plan.source, plan.info.environment
    print(f"model  {_model_words(plan.info)}, {settings['dtype']} on {environment['device']}")
    labels = f"{len(source.tasks)} tasks" if source.tasks else "no labels, so nothing to probe"
    print(f"data   {source.name} {source.split}: {plan.shape.images} images, {labels}")
    print(f"file   {plan.out}, about {decimal(size)}", flush=True)
    free = shutil.disk_usage(next(folder for folder in plan.out.absolute().parents if folder.exists())).free
    if free < size:
        raise UserError(
            f"the run needs up to {decimal(size)} and the disk of {plan.out} has {decimal(free)} free; free some "
            "space, choose another disk with --out, or store less with --limit or --layers"
        )


def _device(name: str) -> tuple[str, str]:
    """The device to use, `auto` resolved, and what it is called."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used ({reason}); use cpu, or a GPU such as cuda:0") from error
    return name, torch.cuda.get_device_name(device) if device.type == "cuda" else name


# ---- the work


def _write(plan: Plan, config: ExtractConfig) -> list[ImageError]:
    import torch

    from extract.capture import capture
    from extract.data.source import ImageError
    from extract.store import RunWriter
    from extract.vlm.invariants import InvariantError

    source = plan.source
    skipped: list[ImageError] = []
    on_error = skipped.append if config.on_error == "skip" else None
    try:
        with RunWriter(plan.out, plan.info, plan.shape, source.tasks, store_dtype=config.store_dtype) as writer:
            model = _model(plan, config)
            with _progress(len(source)) as show:
                done = 0
                for batch in capture(
                    model, source, batch_size=config.batch_size, stack=plan.shape.stack, on_error=on_error
                ):
                    writer.append(batch)
                    done += len(batch.ids)
                    show(done + len(skipped))
            writer.finish([(error.path, error.reason) for error in skipped])
    except ImageError as error:
        raise UserError(f"{error}; mend or remove it, or leave such images out with --on-error skip") from error
    except InvariantError as error:
        raise UserError(
            f"what the model computes is not one token's compression, so nothing was written: {error}. "
            "Try --dtype float32; if that does not help, the model's code or its weights are broken"
        ) from error
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"the GPU has too little memory for --batch-size {config.batch_size}; use a smaller one"
        ) from error
    return skipped


def _model(plan: Plan, config: ExtractConfig) -> HTCVLM:
    import torch

    from extract import models

    dtype, device = getattr(torch, plan.info.config["dtype"]), plan.info.config["device"]
    if config.random_weights:
        architecture = models.read_config(plan.folder)
        return models.random_model(architecture, dtype=dtype, device=device, seed=config.seed)
    return models.load(plan.folder, dtype=dtype, device=device, adapter=config.adapter)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar with images a second and time left, where stderr is a terminal; gives the function that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images, {task.fields[rate]:.1f} images/s,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        at, started = bar.add_task("", total=total, rate=0.0), time.monotonic()
        yield lambda done: bar.update(at, completed=done, rate=done / (time.monotonic() - started))


def _report(plan: Plan, skipped: Sequence[ImageError], seconds: float) -> None:
    from rich.filesize import decimal

    written = plan.shape.images - len(skipped)
    pace = f"{math.ceil(seconds)} s, {written / seconds:.1f} images/s with loading"
    print(f"Wrote {plan.out}: {written} images, {decimal(plan.out.stat().st_size)} ({pace})")
    if skipped:
        print(f"Skipped {len(skipped)}, recorded in the run; the first: {skipped[0]}")
    suites = list(dict.fromkeys(task.suite for task in plan.source.tasks))
    found_alone = plan.out.parent == Path("runs")
    if suites:
        print(f"Next:  htc-probe {' '.join(suites)}" + ("" if found_alone else f" --run {plan.out}"))
    print("Look:  htc-dashboard" + ("" if found_alone else f" {plan.out}"))


# ---- words


def _quiet_transformers() -> None:
    """No bars and no advice of transformers between our own lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _jsonable(model: Any) -> dict[str, Any]:
    import json

    return json.loads(model.to_json_string(use_diff=False))


def _name(config: ExtractConfig) -> str:
    return config.model + (" (random weights)" if config.random_weights else "")


def _model_words(info: RunInfo) -> str:
    return f"{info.model['name']} {info.model['sha256'][:8]}"


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
