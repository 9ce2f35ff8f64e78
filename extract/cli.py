"""`htc-extract`: run the model over images and write down what its one token holds.

Parse, check, call, print. torch, transformers and h5py are imported once the work starts, so that `--help` answers
at once.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from htc_probe.extract import command
from htc_probe.extract.errors import UserError
from htc_probe.extract.settings import ExtractConfig, RunSettings
from htc_probe.extract.words import counted

if TYPE_CHECKING:
    from htc_probe.extract.data.source import Source
    from htc_probe.extract.plan import Plan
    from htc_probe.extract.store import Run, Task
    from htc_probe.extract.store.shards import Shards, Share
    from htc_probe.extract.vlm.model import HTCVLM

_ENOUGH = 10  # groups of a class that htc-probe needs, two for each of its 5 folds
_TASKS_SHOWN = 12  # of which the classes are counted on the screen


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit status, see `extract.command.main`."""
    return command.main("htc-extract", ExtractConfig, extract, argv, interrupted="nothing was written")


def extract(config: ExtractConfig) -> None:
    """Writes the run of `config`, or what is left of it, or says that it is there already. Raises UserError."""
    command.quiet_transformers()
    if config.merge:
        return merge(config)
    from htc_probe.extract.plan import parse_share

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
        _extract(config, share)


def _extract(config: ExtractConfig, share: Share) -> None:
    from htc_probe.extract.plan import make_job, make_plan, refuse_other_shards
    from htc_probe.extract.store.shards import open_shards

    plan = make_plan(config, *_device(config))
    if _is_there(plan):
        return
    batch_size, model = _settle_batch_size(plan, config.engine)
    plan = plan.with_batch_size(batch_size)
    job = make_job(plan)
    with open_shards(plan.out, job, share) as shards:
        if _is_there(plan):  # another process finished it before this one had the lock
            return
        refuse_other_shards(shards, plan, job)
        _announce(plan, shards, virtual=config.virtual)
        started = time.monotonic()
        try:
            computed = _write(plan, shards, config.engine, model)
            if share.ranks == 1:
                _assemble(shards, virtual=config.virtual)
        except UserError as error:
            raise UserError(f"{error} ({shards.words()})" if shards.pieces() else str(error)) from error
        except KeyboardInterrupt as stop:
            raise type(stop)(shards.words()) from stop
        if share.ranks == 1:
            _report(plan, computed, time.monotonic() - started)
        else:
            print(f"Part {share.rank} of {share.ranks}: wrote {counted(computed, 'image')}; {shards.words()}.")
            print("Next:  the same command with --merge in place of --shard, once all parts are done")


def merge(config: ExtractConfig) -> None:
    """Makes the run of the shards that all processes wrote. Raises UserError while some are missing."""
    from htc_probe.extract.data import open_source
    from htc_probe.extract.plan import require_room, run_path
    from htc_probe.extract.store import open_run
    from htc_probe.extract.store.shards import open_shards

    if config.shard is not None:
        raise UserError(f"--merge puts together what all parts wrote; leave out --shard {config.shard}")
    out = run_path(config, "" if config.out else open_source(config.data, config.split, limit=config.limit).name)
    if out.exists():
        open_run(out).close()
        print(f"{out} is there already: nothing to do.")
        return
    with open_shards(out, None) as shards:
        if left := shards.left():
            raise UserError(
                f"{len(left)} of {shards.job.shards} shards of {out} are missing, the first is {next(iter(left))}; run "
                "the parts that did not finish again"
            )
        if not config.virtual:
            require_room(out, sum(piece.path.stat().st_size for piece in shards.pieces()))
        try:
            _assemble(shards, virtual=config.virtual)
        except KeyboardInterrupt as stop:
            raise type(stop)(shards.words()) from stop
    with open_run(out) as run:
        print(f"Wrote {out}: {counted(len(run), 'image')}, {len(run.skipped)} skipped")


# ---- the work


def _device(config: ExtractConfig) -> tuple[str, str]:
    """Where the model runs, `auto` resolved, and what that is called."""
    if config.engine == "ray":
        from htc_probe.extract import on_ray

        return on_ray.device(config.device)
    import torch

    device = command.usable_device(config.device)
    return str(device), torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _settle_batch_size(plan: Plan, engine: str) -> tuple[int, HTCVLM | None]:
    """`auto` resolved: what finished shards were made with, or what fits; and the model where it had to be loaded."""
    from htc_probe.extract.store.shards import unfinished

    if plan.settings.batch_size is not None:
        return plan.settings.batch_size, None
    shards = unfinished(plan.out)
    if shards is not None and shards.pieces():
        batch_size = RunSettings.of(shards.job.info, str(shards.folder)).batch_size
        assert batch_size is not None
        return batch_size, None
    if engine == "ray":
        from htc_probe.extract import on_ray

        return on_ray.batch_size(plan), None
    from htc_probe.extract import models
    from htc_probe.extract.capture import fitting_batch_size

    model = models.load_from(plan.place)
    return fitting_batch_size(model, plan.shape.images), model


def _write(plan: Plan, shards: Shards, engine: str, model: HTCVLM | None) -> int:
    """Writes the shards of this process that are missing; gives the number of their images."""
    left = shards.left()
    if not left:
        return 0
    images = shards.job.shape.images
    count = sum(map(len, left.values()))
    with command.progress("extracting", "images", total=images, done=images - count) as bar:
        if engine == "ray":
            from htc_probe.extract.on_ray import write_on_ray

            write_on_ray(shards, plan, on_images=bar.advance)
        else:
            from htc_probe.extract import models
            from htc_probe.extract.engine import write_shards

            model = models.load_from(plan.place) if model is None else model
            write_shards(shards, list(left), plan, model, on_images=bar.advance)
    return count


def _assemble(shards: Shards, *, virtual: bool) -> None:
    from htc_probe.extract.store import assemble

    job = shards.job
    if shards.left():
        raise UserError(f"two commands wrote into {shards.folder}; run this one again, alone")
    paths = [piece.path for piece in shards.pieces()]
    how: dict[str, Any] = {"store_dtype": job.store_dtype, "virtual": virtual}
    with command.progress("joining", "files", total=2 * len(paths)) as bar:  # copied, and compared
        assemble(shards.out, job.info, job.shape, job.tasks, paths, **how, on_file=bar.advance)
    if not virtual:
        shards.remove()


# ---- the screen


def _is_there(plan: Plan) -> bool:
    """Whether the run is finished, which is said. Raises UserError when another one has its name."""
    from htc_probe.extract.plan import is_finished

    if not is_finished(plan):
        return False
    print(f"{plan.out} is there already, made with the same settings: nothing to do.")
    return True


def _announce(plan: Plan, shards: Shards, *, virtual: bool) -> None:
    """Prints what will be done and how large it will be. Raises UserError when the disk has less room."""
    from rich.filesize import decimal

    from htc_probe.extract.info import square_words
    from htc_probe.extract.plan import model_words, require_room
    from htc_probe.extract.store import estimate_bytes

    job, source = shards.job, plan.source
    size = estimate_bytes(plan.shape, job.tasks, job.store_dtype)
    print(f"model  {model_words(plan.info)}, {plan.settings.dtype} on {plan.info.environment['device']}")
    print(f"image  {square_words(plan.info.model['config'])}")
    labels = counted(len(source.tasks), "task") if source.tasks else "no labels: htc-probe cannot be used"
    print(f"data   {source.name} {source.split}: {counted(plan.shape.images, 'image')}, {labels}")
    if plan.settings.data == "scenes" and Path("scenes").is_dir():
        print("       these are the built-in scenes; for the folder `scenes` here, give --data ./scenes")
    for line in _data_words(source):
        print(f"       {line}")
    done = shards.done()
    kept = f"; {done} images are kept from before" if done else ""
    print(f"file   {plan.out}, about {decimal(size)}{kept}", flush=True)
    # The shards that are left, and the copy of all.
    need = int(size * sum(map(len, shards.left().values())) / plan.shape.images)
    require_room(plan.out, need + (size if shards.share.ranks == 1 and not virtual else 0))


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
        yield f"and {len(source.tasks) - _TASKS_SHOWN} more tasks"


def _report(plan: Plan, computed: int, seconds: float) -> None:
    from rich.filesize import decimal

    from htc_probe.extract.store import open_run

    with open_run(plan.out) as run:
        written, skipped = len(run), run.skipped
        suites = list(dict.fromkeys(task.suite for task in run.tasks))
        enough = any(_can_be_probed(run, task) for task in run.tasks)
    pace = f"{math.ceil(seconds)} s, {computed / seconds:.1f} images/s with loading"
    print(f"Wrote {plan.out}: {counted(written, 'image')}, {decimal(plan.out.stat().st_size)} ({pace})")
    if skipped:
        print(
            f"Skipped {counted(len(skipped), 'image')}; the run says which. The first: {skipped[0][0]}: {skipped[0][1]}"
        )
    is_newest = plan.out.parent == Path("runs")  # the other commands find it by themselves
    place = quote(str(plan.out))
    if enough:
        print(
            f"Next:  {quote(command.typed('htc-probe'))} {' '.join(suites)}" + ("" if is_newest else f" --run {place}")
        )
    elif suites:
        print(f"Next:  extract more images; htc-probe needs {_ENOUGH} of a class, and two such classes")
    print(f"Look:  {quote(command.typed('htc-dashboard'))}" + ("" if is_newest else f" {place}"))


def _can_be_probed(run: Run, task: Task) -> bool:
    """Whether htc-probe, with its usual folds, has enough labels of the task."""
    import numpy as np

    labels, groups = run.labels(task.name), np.unique(run.groups(), return_inverse=True)[1]

    def enough(chosen: np.ndarray) -> bool:
        return len(np.unique(groups[chosen])) >= _ENOUGH

    if task.kind == "classes":
        return sum(enough(labels == number) for number in range(len(task.classes))) >= 2
    if task.kind == "multilabel":
        return any(all(enough(column == side) for side in (0, 1)) for column in labels.T)
    values, counts = np.unique(labels[np.isfinite(labels)], return_counts=True)
    return len(values) > 0 and enough(np.isfinite(labels) & (labels != values[counts.argmax()]))


if __name__ == "__main__":
    sys.exit(main())
