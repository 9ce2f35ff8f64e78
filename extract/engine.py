"""The work of an extraction: the model loaded, images taken through it, shards written. Once for every process.

Knows models, sources and shards. Does not know commands, nor how many processes there are.
"""

from __future__ import annotations

import contextlib
import sys
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
from htc_probe.extract.store.shards import Shards
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
    """Writes the shards `numbers` one after the other; `on_images` is told how many images each batch had.

    `check`: whether the first batch is checked against the model's laws. Raises UserError for whatever the person can
    mend; the shards before it are kept.
    """
    job = shards.job
    batch_size = RunSettings.of(job.info, str(shards.folder)).batch_size
    assert batch_size is not None
    indices = [index for number in numbers for index in job.images_of(number)]
    left = Rest(plan.source, indices, skip=plan.settings.on_error == "skip")
    workers = plan.settings.workers
    if workers is None:
        workers = default_workers(len(left), plan.settings.device)

    def halved(size: int) -> None:
        print(f"the GPU's memory ran out: batches of {size} images from here on", file=sys.stderr, flush=True)

    # One capture for all: a shard is whole batches, and only the last one of all may end with a smaller one.
    on_memory = halved if plan.auto else None
    batches = capture(
        model, left, batch_size=batch_size, stack=job.shape.stack, workers=workers, check=check, on_memory=on_memory
    )
    try:
        with contextlib.closing(batches):
            for number in numbers:
                wanted, skipped = len(job.images_of(number)), list[tuple[str, str]]()
                path, shape = shards.own / shards.path(number).name, replace(job.shape, images=wanted)
                with RunWriter(path, job.info, shape, job.tasks, store_dtype=job.store_dtype) as writer:
                    with behind(writer.append) as write:
                        while wanted:
                            images = next(batches)
                            batch, left_out = without_stand_ins(images)
                            if batch.ids:
                                write(batch)
                            skipped += left_out
                            wanted -= len(images.ids)
                            on_images(len(images.ids))
                    assert wanted == 0, "a batch must not reach into the next shard"
                    shards.keep(writer.finish(skipped, part=True))
    except ImageError as error:
        raise UserError(f"{error}; mend or remove it, or leave such images out with --on-error skip") from error
    except InvariantError as error:
        raise UserError(
            f"what the model computes is not one token's compression, so it was not written: {error}. "
            "Try --dtype float32; if that does not help, the model's code or its weights are broken"
        ) from error
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"the GPU has too little memory for batches of {batch_size} images; use a smaller --batch-size, or auto"
        ) from error
