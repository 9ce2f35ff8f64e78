"""Model and images in, numpy arrays out: what `<voco>` was, where it looked, and what it was made of.

Knows an HTCVLM and a data source. Does not know commands, files or progress bars:

    for batch in capture(model, open_source("scenes", "val", limit=64)):
        batch.z_voco[:, -1]                                      # (images, d)
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from extract.data.source import ImageError, Item, Source
from extract.store import THUMBNAIL, Batch, RunShape, Task
from extract.vlm.config import HTCConfig
from extract.vlm.images import prepare, thumbnail
from extract.vlm.invariants import check_invariants
from extract.vlm.mgvq import MGVQEncoding
from extract.vlm.model import HTCVLM, Hybrid
from extract.vlm.star import Compressed

_LABEL_TYPES = {"classes": np.int32, "number": np.float64, "multilabel": np.uint8}


def run_shape(config: HTCConfig, images: int, stack: Sequence[int] | None = None) -> RunShape:
    """The sizes of a run of `images` images that keeps the layers `stack` (all by default) of z_voco."""
    roles, rows, cols = config.keys_of_voco()
    layers = config.text.num_hidden_layers
    return RunShape(
        images=images,
        layers=layers,
        stack=tuple(range(layers + 1) if stack is None else stack),
        heads=config.text.num_attention_heads,
        width=config.text.hidden_size,
        anchors=config.num_anchors,
        codes=config.code_shape,
        roles=roles,
        rows=rows,
        cols=cols,
    )


def capture(
    model: HTCVLM,
    source: Source,
    *,
    batch_size: int = 32,
    stack: Sequence[int] | None = None,
    on_error: Callable[[ImageError], object] | None = None,
) -> Iterator[Batch]:
    """Every image of `source` in order, `batch_size` at a time, with the layers `stack` (all by default) of z_voco.

    An image that cannot be read goes to `on_error` and is left out; without it, its ImageError is raised. The first
    batch is checked against the three laws of `extract.vlm.invariants`. Raises InvariantError when one is broken.
    """
    checked = False
    for items in _in_batches(source, batch_size, on_error):
        yield _run(model, items, source.tasks, stack, check=not checked)
        checked = True


def _in_batches(
    source: Source, batch_size: int, on_error: Callable[[ImageError], object] | None
) -> Iterator[list[Item]]:
    items: list[Item] = []
    for index in range(len(source)):
        try:
            items.append(source[index])
        except ImageError as error:
            if on_error is None:
                raise
            on_error(error)
        if len(items) == batch_size:
            yield items
            items = []
    if items:
        yield items


@torch.inference_mode()
def _run(
    model: HTCVLM, items: Sequence[Item], tasks: Sequence[Task], stack: Sequence[int] | None, *, check: bool
) -> Batch:
    fit, mean = model.config.image_fit, model.config.image_mean
    # float32 in any precision of the model: the codes must not depend on that.
    pixels = torch.stack([prepare(item.image, model.config.image_size, fit=fit, mean=mean) for item in items])
    pixels = pixels.to(model.device)
    hybrid, encoding = model.encode(pixels)
    compressed = model.compress(hybrid.anchors, hybrid.patches)
    if check:
        check_invariants(model, pixels, compressed)
    return as_batch(model.config, items, tasks, hybrid, encoding, compressed, stack)


def as_batch(
    config: HTCConfig,
    items: Sequence[Item],
    tasks: Sequence[Task],
    hybrid: Hybrid,
    encoding: MGVQEncoding | None,
    compressed: Compressed,
    stack: Sequence[int] | None = None,
) -> Batch:
    """What the model made of `items`, as the arrays of a run, with the layers `stack` (all by default) of z_voco."""
    fit, mean = config.image_fit, config.image_mean
    hidden = compressed.hidden if stack is None else compressed.hidden[:, list(stack)]
    return Batch(
        ids=[item.id for item in items],
        paths=[item.path for item in items],
        groups=[item.group for item in items],
        thumbnails=np.stack([thumbnail(item.image, THUMBNAIL, fit=fit, mean=mean) for item in items]),
        z_voco=_numpy(hidden),
        v_d=_numpy(hybrid.anchors),
        v_pooled=_numpy(hybrid.patches.float().mean(1)),
        codes=None if encoding is None else encoding.codes.cpu().numpy(),
        attention=_numpy(compressed.attention),
        labels={
            task.name: np.array([item.labels[task.name] for item in items], _LABEL_TYPES[task.kind]) for task in tasks
        },
    )


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
