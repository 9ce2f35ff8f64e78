"""The work of an extraction: the model loaded, images taken through it, shards written. Once for every process.

Knows models, sources and shards. Does not know commands, nor how many processes there are.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from htc_probe.extract.capture import capture
from htc_probe.extract.data.source import ImageError
from htc_probe.extract.errors import UserError
from htc_probe.extract.pipeline import Rest, behind, default_workers, without_stand_ins
from htc_probe.extract.plan import Plan
from htc_probe.extract.settings import RunSettings
from htc_probe.extract.store import RunWriter
from htc_probe.extract.store.shards import SECONDS, Shards
from htc_probe.extract.vlm.invariants import InvariantError
from htc_probe.extract.vlm.model import HTCVLM


def write_shards(
    shards: Shards,
    numbers: Sequence[int],
    plan: Plan,
    model: HTCVLM,
    *,
    check: bool = True,
    on_images: Callable[[int], object] = lambda count: None,
) -> None:
    """Writes what is missing of the shards `numbers`, one after the other; `on_images` is told how many images each
    batch had. A file is closed with its shard, or at the end of a batch once it was open for `shards.SECONDS`.

    `check`: whether the first batch is checked against the model's laws. Raises UserError for whatever the person can
    mend; the files before it are kept.
    """
    job = shards.job
    batch_size = RunSettings.of(job.info, str(shards.folder)).batch_size
    assert batch_size is not None
    left = shards.left()
    blocks = [left[number] for number in numbers if number in left]
    rest = Rest(plan.source, [index for block in blocks for index in block], skip=plan.settings.on_error == "skip")
    workers = plan.settings.workers
    if workers is None:
        workers = default_workers(len(rest), plan.settings.device)

    def halved(size: int) -> None:
        print(f"the GPU's memory ran out: batches of {size} images from here on", file=sys.stderr, flush=True)

    # One capture for all: a shard is whole batches, and only the last one of all may end with a smaller one.
    on_memory = halved if plan.auto else None
    batches = capture(
        model, rest, batch_size=batch_size, stack=job.shape.stack, workers=workers, check=check, on_memory=on_memory
    )
    try:
        with contextlib.closing(batches):
            for block in blocks:
                while block:
                    start, opened, skipped = block.start, time.monotonic(), list[tuple[str, str]]()
                    path, shape = shards.own / f"{start}.h5", replace(job.shape, images=len(block))
                    with RunWriter(path, job.info, shape, job.tasks, store_dtype=job.store_dtype) as writer:
                        with behind(writer.append) as write:
                            while block and (block.start == start or time.monotonic() - opened < SECONDS):
                                images = next(batches)
                                batch, left_out = without_stand_ins(images)
                                if batch.ids:
                                    write(batch)
                                skipped += left_out
                                assert len(images.ids) <= len(block), "a batch must not reach into the next shard"
                                block = range(block.start + len(images.ids), block.stop)
                                on_images(len(images.ids))
                        shards.keep(writer.finish(skipped, part=True), range(start, block.start))
    except ImageError as error:
        raise UserError(f"{error}; repair or remove it, or skip such images with --on-error skip") from error
    except InvariantError as error:
        raise UserError(
            f"the model failed the one-token checks, so nothing was written: {error}. Try --dtype float32; if "
            "that does not help, the model's code or its weights are broken"
        ) from error
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"the GPU has too little memory for batches of {batch_size} images; use a smaller --batch-size, or auto"
        ) from error
