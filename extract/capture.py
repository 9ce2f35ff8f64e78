"""Model and images in, numpy arrays out: what `<voco>` was, where it looked, and what it was made of.

Knows an HTCVLM and a data source. Does not know commands, files or progress bars:

    for batch in capture(model, open_source("scenes", "val", limit=64)):
        batch.z_voco[:, -1]                                      # (images, d)
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import numpy as np
import torch

from htc_probe.extract.data.source import ImageError, Source
from htc_probe.extract.errors import UserError
from htc_probe.extract.pipeline import Prepared, read_ahead
from htc_probe.extract.store import Batch, RunShape, Task
from htc_probe.extract.vlm.config import HTCConfig
from htc_probe.extract.vlm.invariants import check_invariants
from htc_probe.extract.vlm.mgvq import MGVQEncoding
from htc_probe.extract.vlm.model import HTCVLM, Hybrid
from htc_probe.extract.vlm.star import Compressed, Direct

_CPU_BATCH_SIZE = 32
_WORTH_DOUBLING = 1.1  # times the pace; less than that does not pay for the memory


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
    on_memory: Callable[[int], object] | None = None,
    workers: int = 0,
    check: bool = True,
) -> Generator[Batch, None, None]:
    """Every image of `source` in order, `batch_size` at a time, with the layers `stack` (all by default) of z_voco.

    Raises the ImageError of one that cannot be read; `extract.pipeline.Rest` has stand-ins instead. `workers`
    processes read images ahead of the model (see `extract.pipeline.read_ahead`) and change no byte of the result.
    With `on_memory`, a batch that the GPU has no memory for is halved until it fits, and so are those after it;
    `on_memory` is told the new size. Other sizes may change last bits. Without it, the OutOfMemoryError is raised.

    The first batch is checked against the three laws of `extract.vlm.invariants`, unless `check` is False. Raises
    InvariantError when one is broken.
    """
    checked, size, direct = not check, batch_size, model.direct_products()
    images = read_ahead(source, model.config.frame, workers=workers, ahead=batch_size)
    with contextlib.closing(images):
        for waiting in _in_batches(images, batch_size):
            while waiting:
                try:
                    batch = _run(model, waiting[:size], source.tasks, stack, direct, check=not checked)
                except torch.cuda.OutOfMemoryError:
                    size = min(size, len(waiting)) // 2
                    if on_memory is None or size == 0:
                        raise
                    on_memory(size)
                    continue  # the exception, and with it the tensors that its frames hold, is gone by then
                checked, waiting = True, waiting[size:]
                yield batch


def fitting_batch_size(model: HTCVLM, images: int = 256) -> int:
    """How many of `images` to run at once: on a GPU a power of 2, doubled until memory runs out or the pace stops
    growing; at most 256.

    It is measured, so the next call may find another: what it gives belongs in the settings of a run. Raises UserError
    where not even one image fits.
    """
    if model.device.type == "cpu":
        return _CPU_BATCH_SIZE
    try:
        return search_batch_size(model, most=max(1, min(256, images)))
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"beside the model, the memory of {model.device} has no room for one image "
            f"({str(error).splitlines()[0]}); use --dtype bfloat16, or another --device"
        ) from error


def search_batch_size(model: HTCVLM, *, most: int) -> int:
    """The search of `fitting_batch_size`, on any device."""
    best, pace, size = 1, 0.0, 1
    while size <= most:
        try:
            seconds = min(_seconds(model, size) for _ in range(2))  # the first may compile and tune
        except torch.cuda.OutOfMemoryError:
            if size == 1:
                raise
            break
        if size / seconds < _WORTH_DOUBLING * pace:
            break
        best, pace, size = size, size / seconds, 2 * size
    torch.cuda.empty_cache()  # what the largest size took is not needed again
    return best


@torch.inference_mode()
def _seconds(model: HTCVLM, images: int) -> float:
    started = time.perf_counter()
    hybrid, _ = model.encode(torch.zeros(images, 3, *2 * [model.config.image_size], device=model.device))
    model.compress(*hybrid).hidden.cpu()  # waits for the GPU
    return time.perf_counter() - started


def _in_batches(images: Iterable[Prepared | ImageError], batch_size: int) -> Iterator[list[Prepared]]:
    batch: list[Prepared] = []
    for image in images:
        if isinstance(image, ImageError):
            raise image
        batch.append(image)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


@torch.inference_mode()
def _run(
    model: HTCVLM,
    images: Sequence[Prepared],
    tasks: Sequence[Task],
    stack: Sequence[int] | None,
    direct: Sequence[Direct] | None,
    *,
    check: bool,
) -> Batch:
    pixels = as_pixels(images, model.device)
    hybrid, encoding = model.encode(pixels)
    compressed = model.compress(hybrid.anchors, hybrid.patches, direct=direct)
    made = {"v_d": hybrid.anchors, "patches": hybrid.patches, "z_voco": compressed.hidden}
    for name, values in (made | {"attention": compressed.attention}).items():
        whole = values.isfinite().flatten(1).all(1)
        if not whole.all():  # told here, where the image is known; the laws below would only say that they are broken
            raise UserError(
                f"{name} of image {images[int((~whole).nonzero()[0])].id!r} holds NaN or infinite values: the model's "
                "arithmetic broke down; extract again with --dtype float32, and check the checkpoint if that does not "
                "help"
            )
    if check:
        check_invariants(model, pixels, compressed)
    return as_batch(images, tasks, hybrid, encoding, compressed, stack)


def as_pixels(images: Sequence[Prepared], device: torch.device) -> torch.Tensor:
    """(B, 3, R, R) float32 in [0, 1], as `images.prepare`, in any precision: the codes must not depend on that."""
    bytes_BRRC = torch.from_numpy(np.stack([image.pixels for image in images])).to(device)
    # By a tensor: a GPU would multiply by 1 / 255 instead of dividing by a number.
    return bytes_BRRC.permute(0, 3, 1, 2).contiguous().float() / torch.tensor(255.0, device=device)


def as_batch(
    images: Sequence[Prepared],
    tasks: Sequence[Task],
    hybrid: Hybrid,
    encoding: MGVQEncoding | None,
    compressed: Compressed,
    stack: Sequence[int] | None = None,
) -> Batch:
    """What the model made of `images`, as the arrays of a run, with the layers `stack` (all by default) of z_voco."""
    hidden = compressed.hidden if stack is None else compressed.hidden[:, list(stack)]
    return Batch(
        ids=[image.id for image in images],
        paths=[image.path for image in images],
        groups=[image.group for image in images],
        thumbnails=np.stack([image.thumbnail for image in images]),
        z_voco=_numpy(hidden),
        v_d=_numpy(hybrid.anchors),
        v_pooled=_numpy(hybrid.patches.float().mean(1)),
        codes=None if encoding is None else encoding.codes.cpu().numpy(),
        attention=_numpy(compressed.attention),
        labels={task.name: np.array([image.labels[task.name] for image in images], task.dtype) for task in tasks},
    )


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
