"""Some images of a run as their model takes them: hybrid tokens, and the questions that have an answer.

Knows runs and an HTCVLM. Does not know what is done with them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from htc_probe.analysis.causes.scene_questions import speaks
from htc_probe.extract import again
from htc_probe.extract.capture import run_shape
from htc_probe.extract.data import scene_words, scenes
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Run
from htc_probe.extract.vlm.model import HTCVLM


class Texts(NamedTuple):
    """Questions with their true answers, N images by Q questions."""

    names: tuple[str, ...]
    ids: Tensor
    """(N, Q, T) question, answer and its end."""
    labels: Tensor
    """(N, Q, T): -100 but on the answer and its end; a question without an answer has none."""


class Sample(NamedTuple):
    """N images; tensors are on the CPU, in the model's precision."""

    rows: np.ndarray
    """(N,) where they are in the run."""
    ids: list[str]
    groups: list[str]
    hybrid: Tensor
    """(N, n, d) embeddings of all tokens between prefix and `<voco>`."""
    prefix: Tensor
    """(P, d), the same for all images."""
    texts: Texts | None
    """None where the data ask nothing, or the model was not taught the questions' words."""


def take(model: HTCVLM, run: Run, limit: int, seed: int) -> Sample:
    """`limit` images of the run, drawn at random; all where it has no more.

    Raises UserError where the model is of another shape than the run's, or an image is not what the run says.
    """
    if limit < 1:
        raise UserError(f"--images {limit} leaves no image; use 1 or more")
    shape = run_shape(model.config, len(run), run.shape.stack)
    if shape != run.shape or model.config.topology != run.info.topology:
        raise UserError(
            f"the model is not that of {run.path.name} ({run.info.model['name']}): layers, heads, width or tokens "
            "differ; give the model that made the run"
        )
    rows = again.sample(run, limit, seed)
    ids, groups = run.ids(), run.groups()
    with torch.inference_mode():
        tokens = [model.before_voco(*hybrid) for hybrid in again.encode(model, again.images(run, model, rows))]
    taken = [ids[row] for row in rows]
    return Sample(
        rows=rows,
        ids=taken,
        groups=[groups[row] for row in rows],
        hybrid=torch.cat([hybrid.cpu() for _, hybrid in tokens]),
        prefix=tokens[0][0][0].cpu(),
        texts=_texts(model, run, taken),
    )


def _texts(model: HTCVLM, run: Run, ids: list[str]) -> Texts | None:
    """The questions of the built-in scenes."""
    if run.info.dataset != "scenes" or not speaks(model):
        return None
    tokenizer = scene_words.build_tokenizer()
    whats = [scenes.scene(run.info.split, int(name.rsplit("-", 1)[1])) for name in ids]
    pairs = [scene_words.encode_answers(tokenizer, what) for what in whats]
    asked, labels = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
    return Texts(tuple(scenes.QUESTIONS), asked, labels)
