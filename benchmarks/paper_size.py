"""The paper's 7B model with random weights, stage by stage: `python -m benchmarks.paper_size`.

Knows clocks and arithmetic; not checkpoints. The same parts as in `htc-extract`, but for composed products: CLIP, MGVQ,
projectors, the star decoder, the run file. The arithmetic is counted while it runs, and compared with what plain
bfloat16 matrix products of the language model's own shape reach on the same device in the same run.
"""

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from htc_probe.extract import command, models
from htc_probe.extract.capture import as_batch, as_pixels, run_shape
from htc_probe.extract.data import open_source
from htc_probe.extract.environment import environment
from htc_probe.extract.pipeline import Prepared, read_ahead
from htc_probe.extract.store import RunInfo, RunWriter, Task
from htc_probe.extract.vlm.model import HTCVLM

T = TypeVar("T")
STAGES = ("CLIP", "MGVQ", "P_v and P_d", "LLM", "to arrays", "writing")


@dataclass(frozen=True)
class Settings:
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where the model runs."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32) if torch.cuda.is_available() else (1,)
    """Images at once, one measurement each."""
    rounds: int = 5
    """Passes of which the median is taken, after one to warm up."""
    model: str = "htc-7b"
    """A shipped configuration; its weights are drawn at random."""


def main(settings: Settings) -> None:
    """Measures every batch size and prints a table."""
    console, device = Console(), torch.device(settings.device)
    config = models.read_config(models.find(settings.model))
    started = time.monotonic()
    model = models.random_model(config, dtype=torch.bfloat16, device=settings.device, seed=0)
    model.requires_grad_(False)  # the counter of operations looks for gradients
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    print(f"{settings.model}: {size / 1e9:.1f} GB of random weights in {time.monotonic() - started:.0f} s")
    rate = matrix_rate(config.text.hidden_size, config.text.intermediate_size, device, settings.rounds)
    print(f"plain bfloat16 matrix products: {rate / 1e12:.3g} TFLOP/s on {settings.device}")

    columns = []
    for count in settings.batches:
        seconds, flops, peak = measure(model, count, settings.rounds)
        total = sum(seconds)
        pace, work, share = f"{count / total:.3g}", f"{flops / count / 1e12:.2f}", f"{flops / total / rate:.0%}"
        columns.append([*(f"{s:.3g} s" for s in seconds), pace, work, share, f"{peak / 1e9:.1f}"])
        print(f"batch {count}: {pace} images/s", flush=True)
    table = Table("images at once", *map(str, settings.batches))
    names = (*STAGES, "images/s", "TFLOP an image", "of the matrix rate", "peak GB")
    for name, *cells in zip(names, *columns, strict=True):
        table.add_row(name, *cells)
    console.print(table)


def matrix_rate(width: int, inner: int, device: torch.device, rounds: int) -> float:
    """Floating-point operations a second of (4096, width) x (width, inner) in bfloat16, the median of `rounds`."""
    a = torch.randn(4096, width, device=device, dtype=torch.bfloat16)
    b = torch.randn(width, inner, device=device, dtype=torch.bfloat16)
    seconds = [timed(lambda: a @ b, device)[0] for _ in range(rounds + 1)][1:]
    return 2 * 4096 * width * inner / statistics.median(seconds)


def measure(model: HTCVLM, count: int, rounds: int) -> tuple[list[float], int, int]:
    """Median seconds of every stage for a batch of `count` images, its floating-point operations, peak bytes."""
    device = model.device
    source = open_source("scenes", "val", limit=count, resolution=model.config.image_size)
    items = [item for item in read_ahead(source, model.config.frame) if isinstance(item, Prepared)]
    pixels = as_pixels(items, device)
    info = RunInfo({}, {"name": "random"}, "scenes", "val", model.config.topology, environment(str(device)))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    found: list[list[float]] = []
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        counter = FlopCounterMode(display=False)
        for at in range(rounds + 1):
            shape = run_shape(model.config, count)
            with RunWriter(Path(folder) / f"{at}.h5", info, shape, source.tasks) as writer:
                if at == 0:
                    with counter:
                        one_round(model, items, source.tasks, pixels, writer)
                else:
                    found.append(one_round(model, items, source.tasks, pixels, writer))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    return [statistics.median(stage) for stage in zip(*found, strict=True)], counter.get_total_flops(), peak


def one_round(
    model: HTCVLM, items: Sequence[Prepared], tasks: Sequence[Task], pixels: torch.Tensor, writer: RunWriter
) -> list[float]:
    """Seconds of every stage, in the order of STAGES."""
    clip, features = timed(lambda: model.vision_features(pixels), model.device)
    mgvq, encoding = timed(lambda: model.quantize(pixels), model.device)
    assert encoding is not None
    project, hybrid = timed(lambda: model.hybrid(features, encoding.quant.flatten(1)), model.device)
    llm, compressed = timed(lambda: model.compress(*hybrid), model.device)
    arrays, batch = timed(lambda: as_batch(items, tasks, hybrid, encoding, compressed), model.device)
    write, _ = timed(lambda: writer.append(batch), model.device)
    return [clip, mgvq, project, llm, arrays, write]


def timed(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Seconds until `work` is really done, and what it gave."""
    started = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, result


if __name__ == "__main__":
    sys.exit(command.main("python -m benchmarks.paper_size", Settings, main, None, interrupted="nothing was kept"))
