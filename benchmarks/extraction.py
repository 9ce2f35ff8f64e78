"""What an extraction costs, beside its peers and part by part: `python -m benchmarks.extraction [PART ...]`.

Knows clocks, peers and files. All that is compared runs once a round, in turn, so that a busy machine slows it alike;
ratios are taken within a round.

peers       <voco>'s attention rows and hidden states from one batch: this engine, the stock model with all attentions,
            the stock model with SDPA and the rows computed again from its hidden states, and TransformerLens' bridge
            with its cache cut to <voco>'s position; nnsight, saving only that position, where it is installed. Peak
            memory is measured in a process of its own for each
pipeline    whole extractions, from images to the finished run file, against the model alone on the same images
storage     HDF5's compressions and chunks on arrays of the shape that a 7B model gives
"""

import copy
import importlib.util
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

import h5py
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from benchmarks.rounds import time_rounds, timed
from benchmarks.storage import NOW, PACKED, storage
from htc_probe.extract import command, models
from htc_probe.extract.arguments import Shown
from htc_probe.extract.capture import as_pixels, capture, run_shape
from htc_probe.extract.data import open_source
from htc_probe.extract.environment import environment
from htc_probe.extract.pipeline import Prepared, behind, read_ahead
from htc_probe.extract.store import RunInfo, RunWriter
from htc_probe.extract.vlm.config import HTCConfig
from htc_probe.extract.vlm.model import HTCVLM
from htc_probe.extract.vlm.star import Direct, compress, direct_products, star_mask

Part = Literal["peers", "pipeline", "storage"]
ENGINE, EAGER, SDPA, BRIDGE = "this engine", "eager, attentions", "SDPA, rows again", "TransformerLens bridge"
NNSIGHT = "nnsight"
CONTENDERS = (ENGINE, EAGER, SDPA, BRIDGE, *([NNSIGHT] if importlib.util.find_spec("nnsight") else []))
WORKLOADS = {"random": "random weights, width 1024, 6 layers, 16 heads", "shipped": "the shipped model"}
BARE = "the model alone"


@dataclass(frozen=True)
class Settings:
    parts: Annotated[tuple[Part, ...], Shown(positional=True)] = ("peers", "pipeline", "storage")
    """What to measure."""
    rounds: int = 10
    """Rounds; everything that is compared runs once in each."""
    threads: int = 2
    """CPU threads."""
    batch: int = 4
    """peers: images at once."""
    tokens: int = 580
    """peers: hybrid tokens of the random model."""
    images: int = 1024
    """pipeline: images of an extraction."""
    batch_size: int = 32
    """pipeline: images at once."""
    workers: tuple[int, ...] = (0, 1, 2)
    """pipeline: processes that read, one extraction each."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """pipeline: where the model runs."""
    model: str = "htc-tiny"
    """pipeline: the model; htc-7b gets random weights, and so does "wide": htc-tiny's parts at 336 pixels, with 576
    patches and a language model of the size of peers."""
    stored: int = 64
    """storage: images in a file."""


def main(settings: Settings) -> None:
    """Measures the parts and prints a table for each."""
    console = Console(width=130)
    peaks = peak_memories(settings) if "peers" in settings.parts else {}  # first: a process starts with its parent's
    torch.set_num_threads(settings.threads)
    console.print(f"{settings.threads} threads, {settings.rounds} interleaved rounds")
    for part in settings.parts:
        if part == "peers":
            for workload in WORKLOADS:
                console.print(peers(settings, workload, peaks))
        elif part == "pipeline":
            console.print(pipeline(settings))
        else:
            for table in storage(settings.stored, settings.rounds):
                console.print(table)


# ---- peers


class Workload(NamedTuple):
    llm: LlamaForCausalLM
    hybrid: Tensor
    """(B, N, d)"""
    voco: Tensor
    """(d,)"""


class Record(NamedTuple):
    rows: Tensor
    """(B, L, H, S), the attention of <voco>."""
    hidden: Tensor
    """(B, L + 1, d), its hidden states."""
    handed: list[Tensor]
    """What the contender hands over to be kept, as it is."""


@torch.inference_mode()
def build(settings: Settings, workload: str) -> Workload:
    """A LLaMA and one batch of hybrid tokens."""
    torch.manual_seed(0)
    if workload == "random":
        config = LlamaConfig(
            vocab_size=32, hidden_size=1024, intermediate_size=2752, num_hidden_layers=6, num_attention_heads=16
        )
        hybrid = torch.randn(settings.batch, settings.tokens, 1024)
        return Workload(LlamaForCausalLM(config).eval(), hybrid, torch.randn(1024))
    model = models.load(models.find("htc-tiny"), dtype=torch.float32, device="cpu")
    pixels = as_pixels(pictures(model, settings.batch), model.device)
    _, hybrid = model.before_voco(*model.encode(pixels)[0])
    return Workload(model.language_model, hybrid, model.voco)


def pictures(model: HTCVLM, count: int) -> list[Prepared]:
    """The first scenes of val, as the model takes them."""
    source = open_source("scenes", "val", limit=count, resolution=model.config.image_size)
    return [image for image in read_ahead(source, model.config.frame) if isinstance(image, Prepared)]


def contender(name: str, work: Workload) -> Callable[[], Record]:
    """A function that runs one batch and gives the record of <voco>."""
    if name == ENGINE:
        direct = direct_products(work.llm.model)  # once for a whole extraction, as capture has them
        return lambda: engine_record(work, direct)
    sequence = torch.cat([work.hybrid, work.voco.expand(len(work.hybrid), 1, -1)], 1)
    mask = star_mask(0, work.hybrid.shape[1]).expand(len(sequence), -1, -1, -1)
    if name == BRIDGE:
        return bridge_recorder(work, sequence, mask)
    if name == NNSIGHT:
        return nnsight_recorder(work, sequence, mask)

    def stock() -> Record:
        work.llm.config._attn_implementation = "eager" if name == EAGER else "sdpa"
        out = work.llm.model(
            inputs_embeds=sequence,
            attention_mask=mask,
            output_attentions=name == EAGER,
            output_hidden_states=True,
            use_cache=False,
        )
        hidden = torch.stack([layer[:, -1] for layer in out.hidden_states], 1)
        if name == EAGER:
            rows = torch.stack([weights[:, :, -1] for weights in out.attentions], 1)
            return Record(rows, hidden, [*out.attentions, *out.hidden_states])
        rows = rows_again(work.llm, out.hidden_states)
        return Record(rows, hidden, [rows, *out.hidden_states])

    return stock


def engine_record(work: Workload, direct: Sequence[Direct]) -> Record:
    hidden, rows, _ = compress(work.llm.model, work.hybrid, work.voco, direct=direct)
    return Record(rows, hidden, [rows, hidden])


def rows_again(llm: LlamaForCausalLM, hidden: tuple[Tensor, ...]) -> Tensor:
    """The attention of the last position, computed from the input of every layer."""
    llama, rows = llm.model, []
    cos, sin = llama.rotary_emb(hidden[0], torch.arange(hidden[0].shape[1])[None])
    for layer, x in zip(cast(Iterable[LlamaDecoderLayer], llama.layers), hidden, strict=False):
        attn, xn = layer.self_attn, layer.input_layernorm(x)
        q = attn.q_proj(xn[:, -1:]).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
        k = attn.k_proj(xn).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
        q, _ = apply_rotary_pos_emb(q, q, cos[:, -1:], sin[:, -1:])
        k, _ = apply_rotary_pos_emb(k, k, cos, sin)
        k = k.repeat_interleave(attn.num_key_value_groups, 1)
        rows.append((q @ k.transpose(2, 3) * attn.scaling).softmax(-1, dtype=torch.float32)[:, :, 0])
    return torch.stack(rows, 1)


def eager_twin(llm: LlamaForCausalLM) -> LlamaForCausalLM:
    """Modules of its own, which a library may rewrite, and the same weights."""
    shared = {id(tensor): tensor for tensor in [*llm.parameters(), *llm.buffers()]}
    twin = copy.deepcopy(llm, shared)
    twin.config._attn_implementation = "eager"
    return twin


def nnsight_recorder(work: Workload, sequence: Tensor, mask: Tensor) -> Callable[[], Record]:
    from nnsight import NNsight

    llama = NNsight(eager_twin(work.llm).model)

    def record() -> Record:
        rows, hidden = [], []
        with llama.trace(inputs_embeds=sequence, attention_mask=mask, use_cache=False):
            for layer in llama.layers:
                hidden.append(layer.input[:, -1].save())
                rows.append(layer.self_attn.output[1][:, :, -1].save())
            hidden.append(llama.norm.output[:, -1].save())
        return Record(torch.stack(rows, 1), torch.stack(hidden, 1), [*rows, *hidden])

    return record


def bridge_recorder(work: Workload, sequence: Tensor, mask: Tensor) -> Callable[[], Record]:
    from transformer_lens.model_bridge.sources import build_bridge_from_module  # takes seconds to import

    twin = eager_twin(work.llm)
    bridge = build_bridge_from_module(twin, "LlamaForCausalLM", hf_config=twin.config, model_name="benchmark")
    layers = range(twin.config.num_hidden_layers)
    rows = [f"blocks.{i}.attn.hook_pattern" for i in layers]
    hidden = [*(f"blocks.{i}.hook_resid_pre" for i in layers), "ln_final.hook_out"]
    last = sequence.shape[1] - 1

    def record() -> Record:
        _, cache = bridge.run_with_cache(
            sequence, attention_mask=mask, names_filter=[*rows, *hidden], pos_slice=last, return_cache_object=False
        )
        return Record(
            torch.stack([cache[name][:, :, 0] for name in rows], 1),
            torch.cat([cache[name] for name in hidden], 1),
            list(cache.values()),
        )

    return record


@torch.inference_mode()
def peers(settings: Settings, workload: str, peaks: Mapping[tuple[str, str], float]) -> Table:
    """The contenders on one workload."""
    work = build(settings, workload)
    runs = {name: contender(name, work) for name in CONTENDERS}
    records = {name: run() for name, run in runs.items()}
    sizes = {name: sum(t.nbytes for t in record.handed) / settings.batch for name, record in records.items()}
    sizes[ENGINE] = stored_bytes(records[ENGINE]) / settings.batch
    wrong = {name: (record.rows - records[EAGER].rows).abs().max().item() for name, record in records.items()}
    del records
    seconds = time_rounds({name: partial(timed, run) for name, run in runs.items()}, settings.rounds)
    table = Table(
        "",
        "best s",
        "median s",
        "best ratio",
        "median ratio",
        "peak MiB",
        "kB kept an image",
        "rows off eager's by",
        title=f"{WORKLOADS[workload]}: {work.hybrid.shape[1]} hybrid tokens, batch {settings.batch}, float32",
        caption=f"kept: what is handed over as it is; {ENGINE}: its float16 as in the run file",
    )
    for name in CONTENDERS:
        ratios = [other / own for other, own in zip(seconds[name], seconds[ENGINE], strict=True)]
        table.add_row(
            name,
            f"{min(seconds[name]):.4f}",
            f"{statistics.median(seconds[name]):.4f}",
            f"{max(ratios):.2f} x",
            f"{statistics.median(ratios):.2f} x",
            f"{peaks[workload, name]:.0f}",
            f"{sizes[name] / 1000:,.1f}",
            f"{wrong[name]:.1e}",
        )
    return table


def stored_bytes(record: Record) -> int:
    """Of rows and hidden states in a run file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.h5"
        with h5py.File(path, "w") as file:
            sizes = []
            for name, tensor in (("rows", record.rows), ("hidden", record.hidden)):
                array = tensor.numpy().astype("float16")
                kept = file.create_dataset(name, data=array, chunks=array.shape, **PACKED[NOW])
                sizes.append(kept.id.get_storage_size())
    return sum(sizes)


@torch.inference_mode()
def peak_memory(settings: Settings, workload: str, name: str) -> float:
    """MiB that one batch adds to this process' peak, on Linux; call it in a fresh process."""
    torch.set_num_threads(settings.threads)
    run = contender(name, build(settings, workload))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record = run()
    assert record.rows.numel()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def peak_memories(settings: Settings) -> dict[tuple[str, str], float]:
    """`peak_memory` of every contender, by workload and name."""
    processes, peaks = multiprocessing.get_context("spawn"), {}
    for workload in WORKLOADS:
        for name in CONTENDERS:
            with processes.Pool(1) as pool:
                peaks[workload, name] = pool.apply(peak_memory, (settings, workload, name))
    return peaks


# ---- pipeline


def pipeline(settings: Settings) -> Table:
    """Images a second of whole extractions, and the share of the bare model's that they reach."""
    dtype = torch.bfloat16 if settings.model == "htc-7b" else torch.float32
    if settings.model in ("htc-7b", "wide"):
        config = wide() if settings.model == "wide" else models.read_config(models.find(settings.model))
        model = models.random_model(config, dtype=dtype, device=settings.device, seed=0)
    else:
        config = models.read_config(models.find(settings.model))
        model = models.load(models.find(settings.model), dtype=dtype, device=settings.device)
    images = pictures(model, settings.images)
    paces: dict[Any, Callable[[], float]] = {BARE: lambda: bare_pace(model, images, settings.batch_size)}
    starts: dict[int, list[float]] = {workers: [] for workers in settings.workers}

    def whole(workers: int) -> float:
        start, pace = extraction(model, settings, workers)
        starts[workers].append(start)
        return pace

    for workers in settings.workers:
        paces[workers] = partial(whole, workers)
    found = time_rounds(paces, settings.rounds)
    table = Table(
        "",
        "best images/s",
        "median images/s",
        "best share",
        "median share",
        "s to the first batch",
        title=f"{settings.model} in {dtype} on {settings.device}: {settings.images} scenes, "
        f"{config.image_size} px, {settings.batch_size} at once",
        caption="the pace of an extraction is that after its first batch, up to the finished file",
    )
    for name, pace in found.items():
        shares = [own / bare for own, bare in zip(pace, found[BARE], strict=True)]
        table.add_row(
            name if name == BARE else f"extraction, workers {name}",
            f"{max(pace):.1f}",
            f"{statistics.median(pace):.1f}",
            f"{max(shares):.0%}",
            f"{statistics.median(shares):.0%}",
            "" if name == BARE else f"{statistics.median(starts[name]):.2f}",
        )
    return table


def wide() -> HTCConfig:
    """A model that costs far more than its images."""
    parts = models.read_config(models.find("htc-tiny")).to_dict()
    parts["vision_config"] |= {"image_size": 336, "patch_size": 14}
    parts["text_config"] |= {
        "hidden_size": 1024,
        "intermediate_size": 2752,
        "num_hidden_layers": 6,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 64,
        "max_position_embeddings": 1024,
    }
    return HTCConfig(**parts)


@torch.inference_mode()
def bare_pace(model: HTCVLM, images: list[Prepared], batch_size: int) -> float:
    """Images a second of the model on pixels that are there already."""
    batches = [as_pixels(images[at : at + batch_size], model.device) for at in range(0, len(images), batch_size)]
    started = time.perf_counter()
    for pixels in batches:
        hybrid, _ = model.encode(pixels)
        model.compress(*hybrid).hidden.cpu()  # waits for a GPU
    return len(images) / (time.perf_counter() - started)


def extraction(model: HTCVLM, settings: Settings, workers: int) -> tuple[float, float]:
    """Seconds to the first batch, and images a second from there."""
    source = open_source("scenes", "val", limit=settings.images, resolution=model.config.image_size)
    info = RunInfo({}, {"name": "benchmark"}, "scenes", "val", model.config.topology, environment(settings.device))
    shape, started, first, done = run_shape(model.config, len(source)), time.perf_counter(), 0.0, 0
    with (
        tempfile.TemporaryDirectory() as folder,
        RunWriter(Path(folder) / "run.h5", info, shape, source.tasks) as writer,
    ):
        with behind(writer.append) as put:
            for batch in capture(model, source, batch_size=settings.batch_size, workers=workers):
                put(batch)
                if first:
                    done += len(batch.ids)
                else:
                    first = time.perf_counter()
        writer.finish()
        return first - started, done / (time.perf_counter() - first)


if __name__ == "__main__":
    sys.exit(command.main("python -m benchmarks.extraction", Settings, main, None, interrupted="nothing was kept"))
