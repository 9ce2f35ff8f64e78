"""The model and the images of a run, found again: what was extracted once can be asked more questions.

Knows runs, models and data sources. Does not know analyses, their results or commands. torch is imported where used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from htc_probe.extract.command import usable_device
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from htc_probe.extract.data.source import Item, Source
    from htc_probe.extract.pipeline import Prepared
    from htc_probe.extract.vlm.model import HTCVLM, Hybrid

_DTYPES = ("float32", "bfloat16", "float16")


class Place(NamedTuple):
    """Where the model of a run is, and how it is loaded."""

    folder: Path
    adapter: Path | None
    random_seed: int | None
    """Of weights drawn at random; None where they are read."""
    dtype: str
    device: str
    words: str
    """For the screen."""


def find_model(run: Run, *, model: str | None = None, device: str | None = None) -> Place:
    """The model that made `run`, at the place that the run names or at `model`, on its device or on `device`.

    Its weights are compared with those of the run by their digest, and so is how it makes images square. Raises
    UserError where they are others, or nowhere.
    """
    from htc_probe.extract import models
    from htc_probe.extract.images import square_changes

    settings, wanted = run.info.config, run.info.model
    name = _setting(run, "model") if model is None else model
    adapter = None if settings.get("adapter") is None else Path(settings["adapter"])
    seed = int(settings.get("seed", 0)) if settings.get("random_weights") else None
    try:
        folder = models.find(name)
        if seed is None:
            sha256 = models.digest(folder, adapter)
        else:
            sha256 = models.random_digest(models.read_config(folder), seed)
    except UserError as error:
        raise UserError(f"the model of {run.path.name} is not where it was: {error}; say where with --model") from error
    if sha256 != wanted.get("sha256"):
        raise UserError(
            f"{folder} is another model than that of {run.path.name} (its weights are {sha256[:8]}, the run's "
            f"{str(wanted.get('sha256'))[:8]}); say where {wanted.get('name')} is with --model, or extract again"
        )
    changes = square_changes(wanted.get("config") or {}, models.read_config(folder).to_dict())
    if changes:
        words = "; ".join(f"{name} was {old} and is {new}" for name, old, new in changes)
        raise UserError(
            f"{folder} makes images square otherwise than when {run.path.name} was made ({words}); bring its "
            "preprocessor_config.json or config.json back, or extract again"
        )
    device = str(usable_device(_setting(run, "device") if device is None else device))
    dtype = _setting(run, "dtype")
    if dtype not in _DTYPES:
        raise UserError(f"{run.path.name} says that its model ran in {dtype!r}; expected one of {', '.join(_DTYPES)}")
    return Place(folder, adapter, seed, dtype, device, f"{wanted.get('name')} {sha256[:8]}, {dtype} on {device}")


def load_model(place: Place) -> HTCVLM:
    """The model, ready to run. Raises UserError where it is damaged, or the device has too little memory."""
    import torch

    from htc_probe.extract import models

    dtype = getattr(torch, place.dtype)
    try:
        if place.random_seed is not None:
            config = models.read_config(place.folder)
            return models.random_model(config, dtype=dtype, device=place.device, seed=place.random_seed)
        return models.load(place.folder, dtype=dtype, device=place.device, adapter=place.adapter)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"the weights of {place.folder.name} in {place.dtype} do not fit into the memory of {place.device}; use "
            "another --device"
        ) from error


def read_tokenizer(place: Place) -> PreTrainedTokenizerBase | None:
    """The model's; None where its folder has none."""
    from htc_probe.extract import models

    try:
        return models.read_tokenizer(place.folder)
    except UserError:
        return None


def sample(run: Run, count: int, seed: int) -> np.ndarray:
    """(min(count, N),) rows of the run in ascending order, drawn without replacement; all when there are no more."""
    if count >= len(run):
        return np.arange(len(run))
    return np.sort(np.random.default_rng(seed).choice(len(run), count, replace=False))


def images(run: Run, model: HTCVLM, rows: Sequence[int] | np.ndarray) -> Iterator[Prepared]:
    """The images of these rows of the run as the model takes them, in order of their rows.

    Raises UserError where the data are not there any more, or are others.
    """
    from htc_probe.extract.capture import frame_of
    from htc_probe.extract.data.source import ImageError
    from htc_probe.extract.pipeline import read_ahead

    source, ids = _source(run, model.config.image_size), run.ids()
    wanted = sorted(int(row) for row in rows)
    # Images that were skipped have no row: where there are some, all images up to the last row are looked at.
    indices = _indices(run, source, wanted) if run.skipped else wanted
    found = read_ahead(_Chosen(source, indices), frame_of(model.config))
    for row, image in zip(wanted, found, strict=True):
        if isinstance(image, ImageError):
            raise UserError(f"{image}; it could be read when {run.path.name} was made: bring it back, or extract again")
        if image.id != ids[row]:
            raise UserError(
                f"{run.info.dataset} {run.info.split} has changed: image {row} is {image.id!r} now and was "
                f"{ids[row]!r}; bring the data back, or extract again"
            )
        yield image


def encode(model: HTCVLM, images: Iterator[Prepared], batch_size: int = 32) -> Iterator[Hybrid]:
    """Anchors and patches of the images, a batch at a time."""
    import torch

    from htc_probe.extract.capture import as_pixels

    while batch := list(islice(images, batch_size)):
        with torch.inference_mode():
            hybrid, _ = model.encode(as_pixels(batch, model.device))
        yield hybrid


class _Chosen:
    """Some images of a source, in the given order; a source itself."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.name, self.split, self.tasks = source.name, source.split, source.tasks
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Item:
        return self._source[self._indices[index]]


def _source(run: Run, resolution: int) -> Source:
    from htc_probe.extract.data import open_source

    source = open_source(
        _setting(run, "data"), run.info.split, limit=run.info.config.get("limit"), resolution=resolution
    )
    if len(source) != len(run) + len(run.skipped):
        raise UserError(
            f"{run.info.dataset} {run.info.split} has changed: it holds {len(source)} images now and held "
            f"{len(run) + len(run.skipped)} when {run.path.name} was made; bring the data back, or extract again"
        )
    return source


def _indices(run: Run, source: Source, rows: Sequence[int]) -> list[int]:
    """Where the images of these ascending rows are in the source, some of whose images cannot be read."""
    from htc_probe.extract.data.source import ImageError

    found: list[int] = []
    row, wanted = 0, set(rows)
    for index in range(len(source)):
        if len(found) == len(wanted):
            break
        try:
            source[index]
        except ImageError:
            continue
        if row in wanted:
            found.append(index)
        row += 1
    if len(found) < len(wanted):
        raise UserError(f"fewer images of {run.info.dataset} can be read now than when {run.path.name} was made")
    return found


def _setting(run: Run, name: str) -> str:
    value = run.info.config.get(name)
    if not isinstance(value, str):
        raise UserError(f"{run.path.name} does not say its {name}, so its model cannot be run again; extract it again")
    return value
