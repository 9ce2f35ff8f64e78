"""The star decoder against the stock model, side by side: `python -m benchmarks.star`.

Knows clocks and random weights; not images or checkpoints. Every contender runs once a round, in turn, so
that a busy machine slows them alike; ratios are taken within a round. Peak memory is measured in a process
of its own for each.
"""

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from htc_probe.extract import command
from htc_probe.extract.vlm.star import compress, direct_products, star_mask

STAR, EAGER, SDPA = "star", "eager, attentions", "SDPA, mask"
PRODUCTS = "matrix products left"
CONTENDERS = (STAR, EAGER, SDPA)


@dataclass(frozen=True)
class Settings:
    rounds: int = 10
    """Rounds; every contender runs once in each."""
    batch: int = 4
    """Images at once."""
    tokens: int = 580
    """Hybrid tokens."""
    width: int = 1024
    layers: int = 6
    heads: int = 16
    threads: int = 2
    """CPU threads."""


class Workload(NamedTuple):
    llama: LlamaModel
    hybrid: Tensor
    voco: Tensor
    mask: Tensor


def build(settings: Settings) -> Workload:
    """A random LLaMA, one batch of hybrid tokens and the mask that the stock model needs."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=settings.width,
        intermediate_size=int(settings.width * 2.6875),
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
    )
    hybrid = torch.randn(settings.batch, settings.tokens, settings.width)
    mask = star_mask(0, settings.tokens).expand(settings.batch, -1, -1, -1)
    return Workload(LlamaModel(config).eval(), hybrid, torch.randn(settings.width), mask)


def contender(name: str, work: Workload) -> Callable[[], list[Tensor]]:
    """A function that runs one forward pass and returns the <voco> rows (B, H, S) a layer, if it has them."""
    sequence = torch.cat([work.hybrid, work.voco.expand(len(work.hybrid), 1, -1)], 1)

    direct = direct_products(work.llama) if name == STAR else []  # once for all images, as htc-extract does

    def star() -> list[Tensor]:
        return list(compress(work.llama, work.hybrid, work.voco, direct=direct).attention.unbind(1))

    def stock() -> list[Tensor]:
        work.llama.config._attn_implementation = "eager" if name == EAGER else "sdpa"
        out = work.llama(
            inputs_embeds=sequence,
            attention_mask=work.mask,
            output_attentions=name == EAGER,
            output_hidden_states=True,
            use_cache=False,
        )
        return [] if out.attentions is None else [weights[:, :, -1] for weights in out.attentions]

    return star if name == STAR else stock


def products(work: Workload) -> Callable[[], list[Tensor]]:
    """The matrix products that star cannot avoid, with nothing in between and nothing to allocate."""
    x = work.hybrid.flatten(0, 1)
    wide = x.new_empty(len(x), work.llama.config.intermediate_size).normal_()
    to_width, to_wide = torch.empty_like(x), torch.empty_like(wide)

    def run() -> list[Tensor]:
        last = len(work.llama.layers) - 1
        for i, layer in enumerate(cast(Iterable[LlamaDecoderLayer], work.llama.layers)):
            attn, mlp = layer.self_attn, layer.mlp
            for module in (attn.k_proj,) if i == last else (attn.k_proj, attn.o_proj):  # direct has o_proj's shape
                torch.mm(x, module.weight.t(), out=to_width)
            if i < last:
                torch.mm(x, mlp.gate_proj.weight.t(), out=to_wide)
                torch.mm(x, mlp.up_proj.weight.t(), out=to_wide)
                torch.mm(wide, mlp.down_proj.weight.t(), out=to_width)
        return []

    return run


@torch.no_grad()
def time_rounds(settings: Settings) -> tuple[dict[str, list[float]], float]:
    """Seconds by contender and round, and the largest difference between star's rows and eager's."""
    work = build(settings)
    runs = {name: contender(name, work) for name in CONTENDERS} | {PRODUCTS: products(work)}
    rows = {name: run() for name, run in runs.items()}  # the first call of each warms up
    difference = max((a - b).abs().max().item() for a, b in zip(rows[STAR], rows[EAGER], strict=True))
    del rows
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for _ in range(settings.rounds):
        for name in names:
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
        names = [*names[1:], names[0]]
    return seconds, difference


@torch.no_grad()
def peak_memory(settings: Settings, name: str) -> float:
    """MiB that one forward pass adds to this process' peak, on Linux; call it in a fresh process."""
    torch.set_num_threads(settings.threads)
    run = contender(name, build(settings))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def peak_memories(settings: Settings) -> dict[str, float]:
    """`peak_memory` of every contender. Call it first: a process starts with its parent's peak."""
    processes = multiprocessing.get_context("spawn")
    peaks = {}
    for name in CONTENDERS:
        with processes.Pool(1) as pool:
            peaks[name] = pool.apply(peak_memory, (settings, name))
    return peaks


def main(settings: Settings) -> None:
    peaks = peak_memories(settings)
    torch.set_num_threads(settings.threads)
    seconds, difference = time_rounds(settings)
    table = Table("", "best s", "median s", "best ratio", "median ratio", "peak MiB")
    for name in CONTENDERS:
        ratios = [other / own for other, own in zip(seconds[name], seconds[STAR], strict=True)]
        table.add_row(
            name,
            f"{min(seconds[name]):.3f}",
            f"{statistics.median(seconds[name]):.3f}",
            "" if name == STAR else f"{max(ratios):.2f} x",
            "" if name == STAR else f"{statistics.median(ratios):.2f} x",
            f"{peaks[name]:.0f}",
        )
    shares = [floor / own for floor, own in zip(seconds[PRODUCTS], seconds[STAR], strict=True)]
    console = Console()
    console.print(
        f"{settings.tokens} hybrid tokens, width {settings.width}, {settings.layers} layers, "
        f"batch {settings.batch}, float32, {settings.threads} threads, {settings.rounds} interleaved rounds"
    )
    console.print(table)
    console.print(
        f"star reaches {max(shares):.0%} (best), {statistics.median(shares):.0%} (median) of the plain "
        f"matrix-product rate on the arithmetic left; its rows differ from eager's by {difference:.1e}"
    )


if __name__ == "__main__":
    sys.exit(command.main("python -m benchmarks.star", Settings, main, None, interrupted="nothing was kept"))
