"""What an extraction will do: settings checked and resolved once, and what differs from a run that is there.

Knows models, data, runs and shards. Does not know the screen, nor how the work is done.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.filesize import decimal

from htc_probe.extract import command, models
from htc_probe.extract.capture import run_shape
from htc_probe.extract.data import absolute, open_source
from htc_probe.extract.data.source import Source
from htc_probe.extract.environment import environment
from htc_probe.extract.errors import UserError
from htc_probe.extract.images import square_changes
from htc_probe.extract.settings import ExtractConfig, RunSettings
from htc_probe.extract.store import RunInfo, RunShape, Task, open_run
from htc_probe.extract.store.shards import Job, Shards, Share, folder_of, shard_images

# Settings in which a run may differ and still be the same run: they decide how it is made and not what it says, or
# are compared by what they lead to (the weights, the number of images).
_FREE = {"out", "batch_size", "device", "model", "adapter", "random_weights", "limit", "shard_images", "workers"}


class Plan(NamedTuple):
    """All that is settled before the model is loaded; it can be sent to another machine."""

    out: Path
    place: models.Place
    source: Source
    shape: RunShape
    settings: RunSettings
    info: RunInfo
    auto: bool
    """The batch size is the largest that is still faster, and is halved where the GPU's memory runs out."""

    def with_batch_size(self, images: int) -> Plan:
        settings = replace(self.settings, batch_size=images)
        return self._replace(settings=settings, info=replace(self.info, config=asdict(settings)))


def parse_share(text: str | None) -> Share:
    """The part i/n of the work; without a text that of torchrun's or Slurm's process, or all."""
    if text is None:
        for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
            if rank in os.environ and world in os.environ:
                text = f"{os.environ[rank]}/{os.environ[world]}"
                break
        else:
            return Share(0, 1)
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--shard {text} is not a part of the work; use i/n with i from 0 to n-1, such as 0/4")
    return Share(int(index), int(count))


def run_path(config: ExtractConfig, name: str) -> Path:
    """Where the run of the data set `name` goes."""
    return Path("runs") / f"{name}-{config.split}.h5" if config.out is None else config.out


def make_plan(config: ExtractConfig, device: str, device_words: str) -> Plan:
    """Checks the settings against the model and the data, and resolves `auto`. Raises UserError.

    `device`: where the model runs, and in `device_words` what that is called.
    """
    if config.batch_size != "auto" and config.batch_size < 1:
        raise UserError(f"--batch-size {config.batch_size} is too small; use 1 or more")
    if config.shard_images is not None and config.shard_images < 1:
        raise UserError(f"--shard-images {config.shard_images} is too small; use 1 or more")
    if config.workers is not None and config.workers < 0:
        raise UserError(f"--workers {config.workers} is negative; use 0 or more")
    if config.out is not None and config.out.suffix != ".h5":
        raise UserError(f"--out {config.out} must end in .h5, so that htc-probe and htc-dashboard find it")
    folder = models.find(config.model)
    model = models.read_config(folder)
    source = open_source(config.data, config.split, limit=config.limit, resolution=model.image_size)
    last = model.text.num_hidden_layers

    def refusal(layer: int) -> str:
        return f"this model has no layer {layer}; its layers are 0 to {last}"

    stack = command.parse_layers(config.layers, last, range(last + 1), refusal)
    if config.random_weights and config.adapter is not None:
        raise UserError(
            f"--adapter {config.adapter} belongs to trained weights; leave out --adapter or --random-weights"
        )
    out = run_path(config, source.name)
    resolved = {
        "data": absolute(config.data),
        "adapter": None if config.adapter is None else str(config.adapter),
        "out": str(out),
        "batch_size": None if config.batch_size == "auto" else config.batch_size,
        "layers": list(stack),
        "device": device,
        "dtype": config.dtype if config.dtype != "auto" else "bfloat16" if device != "cpu" else "float32",
    }
    asked = {field.name: getattr(config, field.name) for field in fields(RunSettings)}
    settings = RunSettings(**asked | resolved)
    seed = config.seed if config.random_weights else None
    place = models.Place(folder, config.adapter, seed, settings.dtype, device)
    described = {
        "name": config.model + (" (random weights)" if config.random_weights else ""),
        "sha256": models.digest_of(place),
        "config": json.loads(model.to_json_string(use_diff=False)),
    }
    info = RunInfo(asdict(settings), described, source.name, config.split, model.topology, environment(device_words))
    shape = run_shape(model, len(source), stack)
    return Plan(out, place, source, shape, settings, info, config.batch_size == "auto")


def make_job(plan: Plan) -> Job:
    """What the shards of the run have in common; the batch size is settled."""
    wanted, batch_size = plan.settings.shard_images, plan.settings.batch_size
    assert batch_size is not None
    tasks = tuple(plan.source.tasks)
    store_dtype: Any = plan.settings.store_dtype
    if wanted is None:
        images = shard_images(plan.shape, tasks, store_dtype, batch_size)
    else:
        images = -(-wanted // batch_size) * batch_size
    return Job(plan.info, plan.shape, tasks, store_dtype, images)


# ---- what is there


def is_finished(plan: Plan) -> bool:
    """Whether the run is there. Raises UserError where `plan.out` is no run, or one of other settings or data."""
    if not plan.out.exists():
        return False
    try:
        run = open_run(plan.out)
    except UserError as error:
        raise UserError(f"--out {plan.out} is taken: {error}; choose another --out, or remove the file") from error
    with run:
        differences = list(_differences(run.info, len(run) + len(run.skipped), run.tasks, plan, _FREE))
    if differences:
        raise UserError(
            f"{plan.out} is there already, made with other settings ({'; '.join(differences)}); "
            "choose another --out, or remove the file"
        )
    if not run.virtual:
        shutil.rmtree(folder_of(plan.out), ignore_errors=True)  # a kill may have come between the copy and this
    return True


def refuse_other_shards(shards: Shards, plan: Plan, job: Job) -> None:
    """Raises UserError when the finished shards are not what this command would write, to the last bit.

    Where the batch size is `auto` it is what it was there, and with it that of a shard.
    """
    stored = shards.job
    strict = {"shard_images"} if plan.auto else {"batch_size", "shard_images"}
    differences = list(_differences(stored.info, stored.shape.images, stored.tasks, plan, _FREE - strict))
    batch_size = RunSettings.of(stored.info, str(shards.folder)).batch_size
    if stored.shard_images != job.shard_images and batch_size == plan.settings.batch_size:
        differences.append(f"images of a shard: {stored.shard_images} there, {job.shard_images} now")
    for name, version in plan.info.environment.items():
        before = stored.info.environment.get(name)
        if before != version and name not in {"device", "platform"}:
            differences.append(f"{name}: {before} there, {version} now")
    if differences:
        raise UserError(
            f"{shards.folder} holds an unfinished run with other settings ({'; '.join(differences)}); go on with its "
            "settings, choose another --out, or remove the folder"
        )


def _differences(info: RunInfo, images: int, tasks: Sequence[Task], plan: Plan, free: set[str]) -> Iterator[str]:
    """What a run with `info`, `images` and `tasks` has otherwise than the plan, but for the settings in `free`."""
    stored = asdict(RunSettings.of(info, str(plan.out)))
    settings = asdict(plan.settings)
    pairs: dict[str, Any] = {name: (stored[name], settings[name]) for name in settings if name not in free}
    pairs["images"] = images, plan.shape.images
    if info.model["sha256"] != plan.info.model["sha256"]:
        pairs["model"] = model_words(info), model_words(plan.info)
    for name, old, new in square_changes(info.model.get("config") or {}, plan.info.model["config"]):
        pairs[name] = old, new  # a file of the model's folder says it, and no weight
    for name, (old, new) in pairs.items():
        if old != new:
            yield f"{name}: {_words(old)} there, {_words(new)} now"
    changed = sorted({task.name for task in set(tasks) ^ set(plan.source.tasks)})
    if changed:
        yield f"tasks that changed: {_words(changed)}"


def require_room(out: Path, need: int) -> None:
    """Raises UserError when the disk has less than `need` bytes free for the run at `out`."""
    free = shutil.disk_usage(next(folder for folder in out.absolute().parents if folder.exists())).free
    if free < need:
        raise UserError(
            f"the run needs up to {decimal(need)} while it is made and the disk of {out} has {decimal(free)} "
            "free; make room, choose another disk with --out, store less with --limit or --layers, or leave out the "
            "copy with --virtual"
        )


def model_words(info: RunInfo) -> str:
    """For the screen."""
    return f"{info.model['name']} {info.model['sha256'][:8]}"


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return str(value)
