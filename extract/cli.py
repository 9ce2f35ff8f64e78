"""`htc-extract`: run the model over images and write down what its one token holds.

Parse, check, call, print. torch, transformers and h5py are imported once the work starts, so that `--help` answers
at once.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from htc_probe.extract import command
from htc_probe.extract.errors import UserError

if TYPE_CHECKING:
    from htc_probe.extract.data.source import Source
    from htc_probe.extract.engine import Work
    from htc_probe.extract.store import RunInfo, RunShape, Task
    from htc_probe.extract.store.shards import Job, Shards, Share
    from htc_probe.extract.vlm.model import HTCVLM

# Settings in which a run may differ and still be the same run: they decide how it is made and not what it says, or
# are compared by what they lead to (the weights, the number of images).
_FREE = {"out", "batch_size", "device", "model", "adapter", "random_weights", "limit", "shard_images", "workers"}
# How the command is run; not kept in the run.
_HOW = {"shard", "merge", "virtual", "engine"}
_TASKS_SHOWN = 12  # of which the classes are counted on the screen


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
    batch_size: int | Literal["auto"] = "auto"
    """Images in one pass of the model. auto: 32 on a CPU; on a GPU as many as fit and pay, found by trying, and half as
    many from where its memory runs out."""
    workers: int | None = None
    """Processes that read images ahead of the model; when left out, up to 4 for a model on a GPU, and none for few
    images or beside a model on the CPU, which needs the cores itself. They change no byte of the run."""
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
    shard_images: int | None = None
    """Images written to the disk together, in whole batches: what is lost at most when the process is killed. Some
    128 MB when left out. The same command continues an unfinished run."""
    engine: Literal["local", "ray"] = "local"
    """local: this process. ray: the workers of a Ray cluster ($RAY_ADDRESS, or this machine), one a GPU; a lost
    worker's shard is done again by another. Needs pip install 'htc-probe[ray]'."""
    shard: str | None = None
    """i/n: do the i-th of n parts of the work, from 0, for job arrays. Under torchrun and Slurm it is found by itself.
    Put the parts together with --merge."""
    merge: bool = False
    """Put the parts that --shard wrote together; of the other settings, only the run's name and --virtual matter."""
    virtual: bool = False
    """Leave the large datasets in the shards beside the run, for runs too large to copy (HDF5 virtual datasets)."""


class Plan(NamedTuple):
    """All that is settled before the model is loaded."""

    out: Path
    folder: Path
    """Of the model."""
    source: Source
    shape: RunShape
    info: RunInfo


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit status, see `extract.command.main`."""
    return command.main("htc-extract", ExtractConfig, extract, argv, interrupted="nothing was written")


def extract(config: ExtractConfig) -> None:
    """Writes the run of `config`, or what is left of it, or says that it is there already. Raises UserError."""
    command.quiet_transformers()
    with command.terminable() as asked:
        if config.merge:
            return merge(config)
        share = parse_share(config.shard)
        if config.engine == "ray" and share.ranks > 1:
            raise UserError(
                "--engine ray shares out the work by itself; leave out --shard, or $RANK and $SLURM_PROCID, which say "
                f"that this is part {share.rank} of {share.ranks}"
            )
        with contextlib.ExitStack() as stack:
            if config.engine == "ray":
                from htc_probe.extract.on_ray import cluster

                stack.enter_context(cluster())
            _extract(config, share, asked)


def _extract(config: ExtractConfig, share: Share, asked: threading.Event) -> None:
    from htc_probe.extract.store.shards import open_shards

    plan = make_plan(config)
    if _is_there(plan):
        return
    work = make_work(plan, config)
    batch_size, model = settle_batch_size(plan, config, work)
    job = _job(plan, config, batch_size)
    with open_shards(plan.out, job, share) as shards:
        if _is_there(plan):  # another process finished it before this one had the lock
            return
        refuse_other_shards(shards, plan, job, auto=config.batch_size == "auto")
        announce(plan, shards, virtual=config.virtual)
        started, before = time.monotonic(), len(shards.missing())
        try:
            computed = _write(plan.source, work, shards, config, model, asked)
            if share.ranks == 1:
                _assemble(shards, virtual=config.virtual)
        except UserError as error:
            raise UserError(f"{error} ({shards.words()})" if shards.finished() else str(error)) from error
        except KeyboardInterrupt as stop:
            raise type(stop)(shards.words()) from stop
        if share.ranks == 1:
            _report(plan, computed, time.monotonic() - started)
        else:
            print(f"Part {share.rank} of {share.ranks}: {before} shards written; {shards.words()}.")
            print("Next:  the same command with --merge in place of --shard, once all parts are done")


def merge(config: ExtractConfig) -> None:
    """Makes the run of the shards that all processes wrote. Raises UserError while some are missing."""
    from htc_probe.extract.data import open_source
    from htc_probe.extract.store import open_run
    from htc_probe.extract.store.shards import open_shards

    if config.shard is not None:
        raise UserError(f"--merge puts together what all parts wrote; leave out --shard {config.shard}")
    name = "" if config.out else open_source(config.data, config.split, limit=config.limit).name
    out = Path("runs") / f"{name}-{config.split}.h5" if config.out is None else config.out
    if out.exists():
        open_run(out).close()
        print(f"{out} is there already: nothing to do.")
        return
    with open_shards(out, None) as shards:
        missing = shards.missing()
        if missing:
            raise UserError(
                f"{len(missing)} of {shards.job.shards} shards of {out} are missing, the first is {missing[0]}; run "
                "the parts that did not finish again"
            )
        if not config.virtual:
            require_room(out, sum(shards.path(shard).stat().st_size for shard in range(shards.job.shards)))
        try:
            _assemble(shards, virtual=config.virtual)
        except KeyboardInterrupt as stop:
            raise type(stop)(shards.words()) from stop
    with open_run(out) as run:
        print(f"Wrote {out}: {len(run)} images, {len(run.skipped)} skipped")


def parse_share(text: str | None) -> Share:
    """The part i/n of the work; without a text that of torchrun's or Slurm's process, or all."""
    from htc_probe.extract.store.shards import Share

    if text is None:
        for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
            if rank in os.environ and world in os.environ:
                text = f"{os.environ[rank]}/{os.environ[world]}"
                break
        else:
            return Share(0, 1)
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--shard {text} is no part of the work; use i/n with i from 0 to n-1, such as 0/4")
    return Share(int(index), int(count))


# ---- before the work


def make_plan(config: ExtractConfig) -> Plan:
    """Checks the settings against the model and the data, and resolves `auto`. Raises UserError."""
    from htc_probe.extract import models
    from htc_probe.extract.capture import run_shape
    from htc_probe.extract.data import absolute, open_source
    from htc_probe.extract.environment import environment
    from htc_probe.extract.store import RunInfo

    if config.batch_size != "auto" and config.batch_size < 1:
        raise UserError(f"--batch-size {config.batch_size} leaves no image in a batch; use 1 or more")
    if config.workers is not None and config.workers < 0:
        raise UserError(f"--workers {config.workers} is less than none; use 0 or more")
    if config.out is not None and config.out.suffix != ".h5":
        raise UserError(f"--out {config.out} must end in .h5, so that htc-probe and htc-dashboard find it")
    folder = models.find(config.model)
    model = models.read_config(folder)
    source = open_source(config.data, config.split, limit=config.limit, resolution=model.image_size)
    last = model.text.num_hidden_layers

    def refusal(layer: int) -> str:
        return f"this model has no layer {layer}; its layers are 0 to {last}"

    stack = command.parse_layers(config.layers, last, range(last + 1), refusal)
    device, device_words = _device(config)
    out = Path("runs") / f"{source.name}-{config.split}.h5" if config.out is None else config.out
    settings = {key: value for key, value in asdict(config).items() if key not in _HOW} | {
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


def make_work(plan: Plan, config: ExtractConfig) -> Work:
    """What the processes that run the model have to know."""
    from htc_probe.extract.engine import Work

    settings = plan.info.config
    return Work(
        model=plan.folder,
        adapter=config.adapter,
        random_weights=config.random_weights,
        seed=config.seed,
        dtype=settings["dtype"],
        device=settings["device"],
        workers=config.workers,
        skip=config.on_error == "skip",
        halve=config.batch_size == "auto",
    )


def settle_batch_size(plan: Plan, config: ExtractConfig, work: Work) -> tuple[int, HTCVLM | None]:
    """`auto` resolved: what finished shards were made with, or what fits; and the model where it had to be loaded."""
    from htc_probe.extract.store.shards import unfinished

    if config.batch_size != "auto":
        return config.batch_size, None
    there = unfinished(plan.out)
    if there is not None and there.finished():
        return int(there.job.info.config["batch_size"]), None
    images = plan.shape.images
    if config.engine == "ray":
        from htc_probe.extract import on_ray

        return on_ray.batch_size(work, images), None
    from htc_probe.extract.engine import find_batch_size, load_model

    model = load_model(work)
    return find_batch_size(model, images), model


def _job(plan: Plan, config: ExtractConfig, batch_size: int) -> Job:
    from htc_probe.extract.store.shards import Job, shard_images

    given = config.shard_images
    if given is not None and given < 1:
        raise UserError(f"--shard-images {given} leaves no image in a shard; use 1 or more")
    if given is None:
        images = shard_images(plan.shape, plan.source.tasks, config.store_dtype, batch_size)
    else:
        images = -(-given // batch_size) * batch_size
    info = replace(plan.info, config=plan.info.config | {"batch_size": batch_size})
    return Job(info, plan.shape, tuple(plan.source.tasks), config.store_dtype, images)


def _is_there(plan: Plan) -> bool:
    """Whether the run is finished, which is said. Raises UserError when another one has its name."""
    if not plan.out.exists():
        return False
    _refuse_other_run(plan)
    print(f"{plan.out} is there already, made with the same settings: nothing to do.")
    return True


def _refuse_other_run(plan: Plan) -> None:
    """Raises UserError when the file at `plan.out` is no run, or one of other settings or data."""
    from htc_probe.extract.store import open_run
    from htc_probe.extract.store.shards import folder_of

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


def refuse_other_shards(shards: Shards, plan: Plan, job: Job, *, auto: bool) -> None:
    """Raises UserError when the finished shards are not what this command would write, to the last bit.

    With `auto` the size of a batch is what it was there, and with it that of a shard.
    """
    there, plan = shards.job, plan._replace(info=job.info)
    strict = {"shard_images"} if auto else {"batch_size", "shard_images"}
    differences = list(_differences(there.info, there.shape.images, there.tasks, plan, _FREE - strict))
    same_batches = there.info.config["batch_size"] == job.info.config["batch_size"]
    if there.shard_images != job.shard_images and same_batches:
        differences.append(f"images of a shard: {there.shard_images} there, {job.shard_images} now")
    for name, version in plan.info.environment.items():
        before = there.info.environment.get(name)
        if before != version and name not in {"device", "platform"}:
            differences.append(f"{name}: {before} there, {version} now")
    if differences:
        raise UserError(
            f"{shards.folder} holds an unfinished run with other settings ({'; '.join(differences)}); go on with its "
            "settings, choose another --out, or remove the folder"
        )


def _differences(info: RunInfo, images: int, tasks: Sequence[Task], plan: Plan, free: set[str]) -> Iterator[str]:
    from htc_probe.extract.images import square_changes

    there, here = info.config, plan.info.config
    pairs: dict[str, Any] = {key: (there.get(key), here[key]) for key in here if key not in free}
    pairs["images"] = images, plan.shape.images
    if info.model["sha256"] != plan.info.model["sha256"]:
        pairs["model"] = _model_words(info), _model_words(plan.info)
    for key, old, new in square_changes(info.model.get("config") or {}, plan.info.model["config"]):
        pairs[key] = old, new  # a file of the model's folder says it, and no weight
    for key, (old, new) in pairs.items():
        if old != new:
            yield f"{key}: {_words(old)} there, {_words(new)} now"
    changed = sorted({task.name for task in set(tasks) ^ set(plan.source.tasks)})
    if changed:
        yield f"tasks that changed: {_words(changed)}"


def announce(plan: Plan, shards: Shards, *, virtual: bool) -> None:
    """Prints what will be done and how large it will be. Raises UserError when the disk has less room."""
    from rich.filesize import decimal

    from htc_probe.extract.info import square_words
    from htc_probe.extract.store import estimate_bytes

    job = shards.job
    size = estimate_bytes(plan.shape, job.tasks, job.store_dtype)
    settings, source, environment = plan.info.config, plan.source, plan.info.environment
    print(f"model  {_model_words(plan.info)}, {settings['dtype']} on {environment['device']}")
    print(f"image  {square_words(plan.info.model['config'])}")
    labels = f"{len(source.tasks)} tasks" if source.tasks else "no labels, so nothing to probe"
    print(f"data   {source.name} {source.split}: {plan.shape.images} images, {labels}")
    for line in _data_words(source):
        print(f"       {line}")
    done = shards.images(shards.finished())
    there = f"; {done} images are there from before" if done else ""
    print(f"file   {plan.out}, about {decimal(size)}{there}", flush=True)
    # The shards that are left, and the copy of all.
    need = int(size * shards.images(shards.missing()) / plan.shape.images)
    require_room(plan.out, need + (size if shards.share.ranks == 1 and not virtual else 0))


def require_room(out: Path, need: int) -> None:
    """Raises UserError when the disk has less than `need` bytes free for the run at `out`."""
    from rich.filesize import decimal

    free = shutil.disk_usage(next(folder for folder in out.absolute().parents if folder.exists())).free
    if free < need:
        raise UserError(
            f"the run needs up to {decimal(need)} while it is made and the disk of {out} has {decimal(free)} "
            "free; make room, choose another disk with --out, store less with --limit or --layers, or leave out the "
            "copy with --virtual"
        )


def _device(config: ExtractConfig) -> tuple[str, str]:
    """The device to use, `auto` resolved, and what it is called."""
    if config.engine == "ray":
        from htc_probe.extract import on_ray

        return on_ray.device(config.device)
    import torch

    device = command.usable_device(config.device)
    return str(device), torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


# ---- the work


def _write(
    source: Source, work: Work, shards: Shards, config: ExtractConfig, model: HTCVLM | None, asked: threading.Event
) -> int:
    """Writes the shards of this process that are missing; gives the number of their images."""
    missing = shards.missing()
    if not missing:
        return 0
    images = shards.job.shape.images
    count = shards.images(missing)
    unit = "images, {task.fields[rate]:.1f} images/s"
    with command.progress(unit=unit, total=images, done=images - count, asked=asked) as bar:
        if config.engine == "ray":
            from htc_probe.extract.on_ray import write_on_ray

            write_on_ray(shards, source, work, on_images=bar.advance)
        else:
            from htc_probe.extract.engine import load_model, write_shards

            write_shards(
                shards, missing, source, work, load_model(work) if model is None else model, on_images=bar.advance
            )
    return count


def _assemble(shards: Shards, *, virtual: bool) -> None:
    from htc_probe.extract.store import assemble

    job = shards.job
    paths = [shards.path(shard) for shard in range(job.shards)]
    assemble(shards.out, job.info, job.shape, job.tasks, paths, store_dtype=job.store_dtype, virtual=virtual)
    if not virtual:
        shards.remove()


def _report(plan: Plan, computed: int, seconds: float) -> None:
    from rich.filesize import decimal

    from htc_probe.extract.store import open_run

    with open_run(plan.out) as run:
        written, skipped = len(run), run.skipped
    pace = f"{math.ceil(seconds)} s, {computed / seconds:.1f} images/s with loading"
    print(f"Wrote {plan.out}: {written} images, {decimal(plan.out.stat().st_size)} ({pace})")
    if skipped:
        print(f"Skipped {len(skipped)}, recorded in the run; the first: {skipped[0][0]}: {skipped[0][1]}")
    suites = list(dict.fromkeys(task.suite for task in plan.source.tasks))
    found_alone = plan.out.parent == Path("runs")
    if suites:
        print(f"Next:  htc-probe {' '.join(suites)}" + ("" if found_alone else f" --run {plan.out}"))
    print("Look:  htc-dashboard" + ("" if found_alone else f" {plan.out}"))


# ---- words


def _jsonable(model: Any) -> dict[str, Any]:
    import json

    return json.loads(model.to_json_string(use_diff=False))


def _name(config: ExtractConfig) -> str:
    return config.model + (" (random weights)" if config.random_weights else "")


def _model_words(info: RunInfo) -> str:
    return f"{info.model['name']} {info.model['sha256'][:8]}"


def _data_words(source: Source) -> Iterator[str]:
    """What the data's files say, a line each: notes, and how often every class is there."""
    from htc_probe.extract.data.labels import summary
    from htc_probe.extract.data.source import Tabled

    if not isinstance(source, Tabled):
        return
    yield from source.notes
    labels = source.labels()
    for task in source.tasks[:_TASKS_SHOWN]:
        yield f"{task.name}: {summary(task, labels[task.name])}"
    if len(source.tasks) > _TASKS_SHOWN:
        yield f"and {len(source.tasks) - _TASKS_SHOWN} tasks more"


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
