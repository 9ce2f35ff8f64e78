"""What every token of one image does to `<voco>`, exactly, and what that costs: `python -m benchmarks.attribution`.

Knows clocks, peers and models. Compared, on one image with N hybrid tokens:

this engine             one forward pass, then all N knock-outs over its keys and values (analysis.passes)
stock, SDPA             the stock model once a knock-out, under the edited mask
TransformerLens bridge  its bridge once a knock-out, hooks closing the key in the scores of all layers

The latter two would take minutes to hours: a few knock-outs are timed, and N times the mean is reported, as it says.
Each is measured without text (`<voco>` at every layer) and with a text read behind each knocked-out `<voco>`. All that
is compared runs once a round, in turn; ratios are taken within a round. A knock-out of the engine and the same one of
a peer are compared before the clock starts.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, NamedTuple, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.extraction import eager_twin, pictures
from benchmarks.rounds import time_rounds, timed
from htc_probe.analysis.causes.knockouts import answers_of, knock_out
from htc_probe.extract import command, models
from htc_probe.extract.again import Texts
from htc_probe.extract.arguments import Shown
from htc_probe.extract.capture import as_pixels
from htc_probe.extract.data import scene_words, scenes
from htc_probe.extract.vlm import passes
from htc_probe.extract.vlm.config import HTCConfig
from htc_probe.extract.vlm.model import HTCVLM
from htc_probe.extract.vlm.star import compress, direct_products, star_mask

Workload = Literal["random", "shipped"]
ENGINE, STOCK, BRIDGE, FORWARD = "this engine", "stock, SDPA", "TransformerLens bridge", "one forward pass"


@dataclass(frozen=True)
class Settings:
    workloads: Annotated[tuple[Workload, ...], Shown(positional=True)] = ("random", "shipped")
    """random: width 1024, 6 layers, 16 heads, 580 hybrid tokens; shipped: the model of this package."""
    rounds: int = 3
    """Rounds; everything that is compared runs once in each."""
    threads: int = 2
    """CPU threads."""
    measured: int = 3
    """Knock-outs of a peer that are timed in each round."""


class Case(NamedTuple):
    model: HTCVLM
    hybrid: Tensor
    """(1, N, d)"""
    texts: Texts


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    console = Console(width=130)
    console.print(f"{settings.threads} threads, {settings.rounds} interleaved rounds")
    for workload in settings.workloads:
        case = build(workload)
        for with_text in (False, True):
            console.print(compare(case, settings, workload, with_text))


@torch.inference_mode()
def build(workload: Workload) -> Case:
    if workload == "shipped":
        model = models.load(models.find("htc-tiny"), dtype=torch.float32, device="cpu")
        pixels = as_pixels(pictures(model, 1), model.device)
        _, hybrid = model.before_voco(*model.encode(pixels)[0])
        told = scene_words.encode_answers(scene_words.build_tokenizer(), scenes.scene("val", 0))
        return Case(model, hybrid, Texts(tuple(scenes.QUESTIONS), *(torch.from_numpy(part)[None] for part in told)))
    torch.manual_seed(0)
    config = HTCConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 96,
            "patch_size": 4,
        },
        text_config={
            "hidden_size": 1024,
            "intermediate_size": 2752,
            "num_hidden_layers": 6,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "vocab_size": 1000,
        },
        mgvq={
            "widths": (16, 32),
            "depths": (0, 1),
            "groups": 4,
            "codebook_size": 64,
            "latent_channels": 16,
            "attention_stages": 1,
            "head_dim": 16,
        },
    )
    model = HTCVLM(config).eval()
    model.voco.data.normal_()
    ids = torch.randint(0, 1000, (1, 1, 8))
    labels = torch.full_like(ids, -100)
    labels[..., -1] = ids[..., -1]  # a prompt of 7 tokens and an answer of one
    return Case(model, torch.randn(1, 580, 1024), Texts(("one",), ids, labels))


@torch.inference_mode()
def compare(case: Case, settings: Settings, workload: str, with_text: bool) -> Table:
    count = case.hybrid.shape[1]
    tokens = [round(i * (count - 1) / max(1, settings.measured - 1)) for i in range(settings.measured)]
    mine = engine(case, with_text)
    peers = {STOCK: stock(case, with_text), BRIDGE: bridge(case, with_text)}
    ours = mine()
    off = {
        name: max((ours[token] - peer(token)).abs().max().item() for token in tokens) for name, peer in peers.items()
    }
    direct = direct_products(case.model.language_model.model)

    def forward() -> object:
        return compress(case.model.language_model.model, case.hybrid, case.model.voco, direct=direct)

    runs: dict[str, Callable[[], float]] = {FORWARD: partial(timed, forward), ENGINE: partial(timed, mine)}
    for name, peer in peers.items():
        runs[name] = partial(_mean_seconds, peer, tokens)
    seconds = time_rounds(runs, settings.rounds)
    for name in peers:
        seconds[name] = [each * count for each in seconds[name]]
    texts = case.texts
    read = f"{len(texts.names)} text(s) of up to {texts.ids.shape[-1]} tokens behind each" if with_text else "no text"
    table = Table(
        "",
        "best s",
        "median s",
        "forward passes (median)",
        "engine faster by (best)",
        "(median)",
        "off the engine by",
        title=f"{workload}: all {count} knock-outs of one image, {read}",
        caption=f"{STOCK} and {BRIDGE}: extrapolated from {settings.measured} knock-outs a round",
    )
    for name, taken in seconds.items():
        in_passes = [each / one for each, one in zip(taken, seconds[FORWARD], strict=True)]
        ratios = [each / own for each, own in zip(taken, seconds[ENGINE], strict=True)]
        row = [f"{min(taken):.4g}", f"{statistics.median(taken):.4g}", f"{statistics.median(in_passes):.2f}"]
        if name in off:
            row += [f"{max(ratios):.0f} x", f"{statistics.median(ratios):.0f} x", f"{off[name]:.1e}"]
        table.add_row(name, *row)
    return table


def engine(case: Case, with_text: bool) -> Callable[[], Tensor]:
    """(N, d) z_voco or, with text, (N, Q) log-probabilities, with the forward pass that comes first."""
    closed = torch.eye(case.hybrid.shape[1], dtype=torch.bool)[None]

    def all_of_them() -> Tensor:
        shared = passes.share(case.model, case.hybrid)
        if not with_text:
            return knock_out(case.model, shared, closed).z[0]
        base = answers_of(case.model, shared, shared.base, case.texts)
        found = knock_out(case.model, shared, closed, texts=case.texts, base_answers=base)
        return (found.answers + base)[0].nan_to_num()  # a question without an answer: 0, as the peers have it

    return all_of_them


def _sequence(case: Case, with_text: bool) -> Tensor:
    """(Q, S + T, d), or (1, S, d) without text."""
    whole = torch.cat([case.hybrid, case.model.voco.expand(1, 1, -1)], 1)
    if not with_text:
        return whole
    text = case.model.language_model.model.embed_tokens(case.texts.ids[0])
    return torch.cat([whole.expand(len(text), -1, -1), text], 1)


def _told(case: Case, logits: Tensor) -> Tensor:
    """(Q,) log-probability of the answers from logits (Q, S + T, vocabulary)."""
    labels = case.texts.labels[0, :, 1:]
    log = logits[:, case.hybrid.shape[1] + 1 : -1].log_softmax(-1)
    return log.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels == -100, 0).sum(-1)


def stock(case: Case, with_text: bool) -> Callable[[int], Tensor]:
    """One knock-out under the edited mask; all questions in one batch."""
    llm, at = case.model.language_model, case.hybrid.shape[1]
    llm.config._attn_implementation = "sdpa"
    sequence = _sequence(case, with_text)
    mask = star_mask(0, at, sequence.shape[1] - at - 1)

    def one(token: int) -> Tensor:
        edited = mask.clone()
        edited[0, 0, at, token] = torch.finfo(mask.dtype).min
        edited = edited.expand(len(sequence), -1, -1, -1)
        run = llm if with_text else llm.model
        out = run(inputs_embeds=sequence, attention_mask=edited, use_cache=False)
        return _told(case, out.logits) if with_text else out.last_hidden_state[0, -1]

    return one


def bridge(case: Case, with_text: bool) -> Callable[[int], Tensor]:
    """The same, the mask left as it is and the key closed by hooks."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module  # takes seconds to import

    twin = eager_twin(case.model.language_model)
    bridged = build_bridge_from_module(twin, "LlamaForCausalLM", hf_config=twin.config, model_name="benchmark")
    at = case.hybrid.shape[1]
    sequence = _sequence(case, with_text)
    mask = star_mask(0, at, sequence.shape[1] - at - 1).expand(len(sequence), -1, -1, -1)
    last: list[Tensor] = []

    def keep(state: Tensor, hook: object) -> None:
        last.append(state[0, -1].clone())

    def one(token: int) -> Tensor:
        def close(scores: Tensor, hook: object) -> Tensor:
            scores = scores.clone()
            scores[:, :, at, token] = torch.finfo(scores.dtype).min
            return scores

        hooks = [(f"blocks.{i}.attn.hook_attn_scores", close) for i in range(twin.config.num_hidden_layers)]
        last.clear()
        logits = bridged.run_with_hooks(sequence, attention_mask=mask, fwd_hooks=[*hooks, ("ln_final.hook_out", keep)])
        return _told(case, cast(Tensor, logits)) if with_text else last[0]

    return one


def _mean_seconds(peer: Callable[[int], Tensor], tokens: list[int]) -> float:
    return sum(timed(partial(peer, token)) for token in tokens) / len(tokens)


if __name__ == "__main__":
    sys.exit(command.main("python -m benchmarks.attribution", Settings, main, None, interrupted="nothing was kept"))
