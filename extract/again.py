"""The model, the images, the texts and the questions of a run, opened again: what was extracted can be asked more.

Knows runs, models and data sources. Does not know analyses, their results or commands. torch is imported where used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from htc_probe.extract import models
from htc_probe.extract.command import usable_device
from htc_probe.extract.data import open_source, scene_words, scenes
from htc_probe.extract.data.source import ImageError, Item, Source
from htc_probe.extract.errors import UserError
from htc_probe.extract.images import square_changes
from htc_probe.extract.settings import RunSettings
from htc_probe.extract.store import Run

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from htc_probe.extract.pipeline import Prepared
    from htc_probe.extract.vlm.config import HTCConfig
    from htc_probe.extract.vlm.model import HTCVLM, Hybrid

_DTYPES = ("float32", "bfloat16", "float16")


def _settings_of(run: Run) -> RunSettings:
    """What the run was made with. Raises UserError where it does not say."""
    return RunSettings.of(run.info, run.path.name)


# ---- the model


def find_model(run: Run, *, model: str | None = None, device: str | None = None) -> models.Place:
    """The model that made `run`, at the place that the run names or at `model`, on its device or on `device`.

    Its weights are compared with those of the run by their digest, and so is how it makes images square. Raises
    UserError where they are others, or nowhere.
    """
    settings, wanted = _settings_of(run), run.info.model
    try:
        place = models.Place(
            models.find(settings.model if model is None else model),
            None if settings.adapter is None else Path(settings.adapter),
            settings.seed if settings.random_weights else None,
            settings.dtype,
            settings.device if device is None else device,
        )
        sha256 = models.digest_of(place)
    except UserError as error:
        raise UserError(f"the model of {run.path.name} is not where it was: {error}; say where with --model") from error
    if sha256 != wanted.get("sha256"):
        raise UserError(
            f"{place.folder} is not the model of {run.path.name} (its weights are {sha256[:8]}, the run's "
            f"{str(wanted.get('sha256'))[:8]}); say where {wanted.get('name')} is with --model, or extract again"
        )
    changes = square_changes(wanted.get("config") or {}, models.read_config(place.folder).to_dict())
    if changes:
        words = "; ".join(f"{name} was {old} and is {new}" for name, old, new in changes)
        raise UserError(
            f"{place.folder} does not make images square as when {run.path.name} was made ({words}); bring its "
            "preprocessor_config.json or config.json back, or extract again"
        )
    if place.dtype not in _DTYPES:
        raise UserError(
            f"{run.path.name} says that its model ran in {place.dtype!r}; expected one of {', '.join(_DTYPES)}"
        )
    return place._replace(device=str(usable_device(place.device)))


def check_model(run: Run, config: HTCConfig) -> None:
    """Raises UserError where a model of this configuration is of another shape than the run's."""
    from htc_probe.extract.capture import run_shape

    if run_shape(config, len(run), run.shape.stack) != run.shape or config.topology != run.info.topology:
        raise UserError(
            f"the model is not that of {run.path.name} ({run.info.model['name']}): layers, heads, width or tokens "
            "differ; give the model that made the run"
        )


def read_tokenizer(place: models.Place) -> PreTrainedTokenizerBase | None:
    """The model's; None where its folder has none."""
    try:
        return models.read_tokenizer(place.folder)
    except UserError:
        return None


# ---- the images


def open_images(run: Run, resolution: int) -> Source:
    """The run's data, scenes with `resolution` pixels a side. Raises UserError where they are gone, more or fewer."""
    settings = _settings_of(run)
    source = open_source(settings.data, run.info.split, limit=settings.limit, resolution=resolution)
    if len(source) != len(run) + len(run.skipped):
        raise UserError(
            f"{run.info.dataset} {run.info.split} has changed: it holds {len(source)} images now and held "
            f"{len(run) + len(run.skipped)} when {run.path.name} was made; bring the data back, or extract again"
        )
    return source


class Chosen:
    """Some images of a run, read again from its data; to be read in order. Images that the run skipped are passed."""

    def __init__(self, run: Run, source: Source, rows: Sequence[int] | np.ndarray) -> None:
        """`source`: of `open_images`; `rows`: ascending numbers of images in the run."""
        self.name, self.split, self.tasks = source.name, source.split, source.tasks
        self._source, self._rows, self._ids = source, rows, run.ids()
        self._skipped, self._run, self._passed = len(run.skipped), run.path.name, 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Item:
        """Raises UserError where the image is not there any more, cannot be read, or is another."""
        row = int(self._rows[number])
        wanted, reason = self._ids[row], "the data ends before it"
        while self._passed <= self._skipped and row + self._passed < len(self._source):
            try:
                item = self._source[row + self._passed]
                if item.id == wanted:
                    return item
                reason = f"{item.id!r} is in its place"
            except ImageError as error:
                reason = str(error)
            self._passed += 1
        raise UserError(
            f"image {wanted!r} of {self._run} is not where it was in the data ({reason}); bring the data back, or "
            "extract again"
        )


def order(images: int, seed: int) -> np.ndarray:
    """(images,) rows of a run in the order in which analyses take them: the first image, which the dashboard opens
    with, then the others at random. Who takes the first k, also of those that pass a filter, has samples of which a
    larger one holds the smaller ones.
    """
    return np.concatenate([np.arange(min(images, 1)), 1 + np.random.default_rng(seed).permutation(max(images - 1, 0))])


def sample(run: Run, count: int, seed: int) -> np.ndarray:
    """(min(count, N),) ascending rows of the run, the first of `order`."""
    return np.sort(order(len(run), seed)[:count])


def images(run: Run, model: HTCVLM, rows: Sequence[int] | np.ndarray) -> Iterator[Prepared]:
    """Images of these rows as the model takes them, by row. Raises UserError, see `open_images` and `Chosen`."""
    return prepared(model, Chosen(run, open_images(run, model.config.image_size), np.sort(rows)))


def prepared(model: HTCVLM, source: Source) -> Iterator[Prepared]:
    """The images of `source` as the model takes them. Raises UserError where one cannot be read."""
    from htc_probe.extract.pipeline import read_ahead

    for image in read_ahead(source, model.config.frame):
        if isinstance(image, ImageError):
            raise UserError(f"{image}; bring it back, or extract again")
        yield image


def encode(model: HTCVLM, images: Iterator[Prepared], batch_size: int = 32) -> Iterator[Hybrid]:
    """Anchors and patches of the images, a batch at a time."""
    import torch

    from htc_probe.extract.capture import as_pixels

    while batch := list(islice(images, batch_size)):
        with torch.inference_mode():
            hybrid, _ = model.encode(as_pixels(batch, model.device))
        yield hybrid


# ---- the built-in scenes


def is_scenes(run: Run) -> bool:
    """Whether it is of the built-in scenes; a folder of that name is stored with its whole path."""
    return _settings_of(run).data == "scenes"


def scenes_of(run: Run, rows: Sequence[int] | np.ndarray) -> list[scenes.Scene]:
    """What the images of these rows show, in a run of the built-in scenes."""
    return [scenes.scene(run.info.split, int(name.rsplit("-", 1)[1])) for name in run.ids(rows)]


class Texts(NamedTuple):
    """Questions with their true answers, N images by Q questions."""

    names: tuple[str, ...]
    ids: Tensor
    """(N, Q, T) question, answer and its end."""
    labels: Tensor
    """(N, Q, T): -100 but on the answer and its end; a question without an answer has none."""


class Sample(NamedTuple):
    """N images as their model takes them; tensors are on the CPU, in the model's precision."""

    rows: np.ndarray
    """(N,) where they are in the run."""
    ids: list[str]
    groups: list[str]
    hybrid: Tensor
    """(N, n, d) embeddings of all tokens between prefix and `<voco>`."""
    prefix: Tensor
    """(P, d), the same for all images."""
    texts: Texts | None
    """None where the data have no questions, or the model was not taught the questions' words."""


def take(model: HTCVLM, run: Run, limit: int, seed: int) -> Sample:
    """`limit` images of the run, see `sample`; all where it has no more.

    Raises UserError where the model is of another shape than the run's, or an image is not what the run says.
    """
    import torch

    if limit < 1:
        raise UserError(f"--images {limit} leaves no image; use 1 or more")
    check_model(run, model.config)
    rows = sample(run, limit, seed)
    with torch.inference_mode():
        tokens = [model.before_voco(*hybrid) for hybrid in encode(model, images(run, model, rows))]
    return Sample(
        rows=rows,
        ids=run.ids(rows),
        groups=run.groups(rows),
        hybrid=torch.cat([hybrid.cpu() for _, hybrid in tokens]),
        prefix=tokens[0][0][0].cpu(),
        texts=_texts(model, run, rows),
    )


def _texts(model: HTCVLM, run: Run, rows: np.ndarray) -> Texts | None:
    """The questions of the built-in scenes."""
    import torch

    if not is_scenes(run) or not scene_words.speaks(model.config.text.vocab_size):
        return None
    tokenizer = scene_words.build_tokenizer()
    pairs = [scene_words.encode_answers(tokenizer, scene) for scene in scenes_of(run, rows)]
    ids, labels = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
    return Texts(tuple(scenes.QUESTIONS), ids, labels)
