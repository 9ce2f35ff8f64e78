"""What every token hands to `<voco>`, not only how much it is looked at (Kobayashi et al. 2020).

Knows a run and, through `extract.vlm.parts`, its model. Does not know figures or files.

Three things are measured of the vector c that a token hands over at a layer: its norm; its share, c.u / |u|^2 of the
whole update u (signed; with the bias' share they sum to 1 over sources and heads); its part in a logit along the two
linear paths of `extract.vlm.parts` (`analysis.causes.knockouts` has the whole effect).

Suffixes: B, N images, L layers, H heads, S keys of `<voco>`, Q questions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from htc_probe.analysis.attention.rows import ROLES
from htc_probe.analysis.sections import Contributions
from htc_probe.analysis.stats.draws import Intervals, intervals_of_means
from htc_probe.extract.again import Texts, take
from htc_probe.extract.store import Run
from htc_probe.extract.vlm.model import HTCVLM
from htc_probe.extract.vlm.parts import along, answer_directions, decompose, lens_direction
from htc_probe.extract.vlm.passes import Shared, batches, share


def analyse(
    model: HTCVLM, run: Run, *, limit: int = 200, seed: int = 0, on_images: Callable[[int], object] | None = None
) -> Contributions:
    """What tokens hand over on `limit` images of the run; `on_images` is told how many are done."""
    taken = take(model, run, limit, seed)
    roles, _, _ = model.config.keys_of_voco()
    present = [role for role in ROLES if role in roles]
    of_role = np.array([[role == name for name in present] for role in roles], dtype=np.float64)  # (S, R)
    collected: dict[str, list[np.ndarray]] = {}

    def keep(name: str, value: Tensor) -> None:
        collected.setdefault(name, []).append(value.float().cpu().numpy())

    with torch.inference_mode():
        for images in batches(model, len(taken.ids)):
            hybrid = taken.hybrid[images].to(model.device)
            shared = share(model, hybrid, taken.prefix.to(model.device).expand(len(hybrid), -1, -1))
            parts = [decompose(model, shared, layer) for layer in range(run.shape.layers)]
            keep("norm", torch.stack([part.token_norms for part in parts], 1))
            keep("share", torch.stack([part.shares.sum(1) for part in parts], 1))
            keep("attention", torch.stack([row[:, 0].mean(1) for row in shared.base.rows], 1))
            if taken.texts is not None:
                lens, answers = _logits(model, shared, taken.texts, images)
                keep("lens", lens)
                keep("answers", answers)
            if on_images is not None:
                on_images(int(images[-1]) + 1)
    arrays = {name: np.concatenate(values) for name, values in collected.items()}

    def by_role(values: np.ndarray) -> Intervals:
        return intervals_of_means(values @ of_role, taken.groups, seed)

    of_answers: dict[str, Any] = {}
    for name in ("lens", "answers"):
        if name in arrays:  # (N, Q, L, S)
            of_answers[name] = np.nanmean(arrays[name], 1)
            of_answers[f"{name}_by_role"] = by_role(arrays[name].sum(2))
    return Contributions(
        images=taken.ids,
        roles=present,
        questions=[] if taken.texts is None else list(taken.texts.names),
        norm=arrays["norm"],
        share=arrays["share"],
        share_by_role=by_role(arrays["share"]),
        attention_by_role=by_role(arrays["attention"]),
        **of_answers,
    )


def _logits(model: HTCVLM, shared: Shared, texts: Texts, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Parts in the logit of each answer's first token by the lens and on the answers' path, each (B, Q, L, S) summed
    over heads; NaN where a question has no answer.
    """
    ids, labels = (part[images].to(model.device) for part in (texts.ids, texts.labels))
    answered = (labels != -100).any(-1)
    first = (labels != -100).int().argmax(-1)
    tokens = ids.gather(-1, first[..., None])[..., 0]
    lens = lens_direction(model, shared, tokens)
    layers = range(len(shared.base.rows))
    answers = lens.new_zeros(*tokens.shape, len(layers) + 1, lens.shape[-1])
    for question in range(tokens.shape[1]):
        has = answered[:, question]
        if has.any():
            at = int(first[has, question][0]) - 1  # a question is of the same length in all images
            answers[:, question] = answer_directions(model, shared, ids[:, question], at, tokens[:, question])
    paths = [
        torch.stack([along(model, shared, layer, direction).sum(-2) for layer, direction in enumerate(directions)], 2)
        for directions in ([lens] * len(layers), [answers[:, :, layer + 1] for layer in layers])
    ]
    lensed, answering = (values.masked_fill(~answered[..., None, None], torch.nan) for values in paths)
    return lensed, answering
