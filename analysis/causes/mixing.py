"""Images with one half of another: the anchors of one image, the patches of another, noise or a mean.

Knows a run's images and an HTCVLM's tokens. Does not know what is read from them.

Images are sampled one a group and taken two by two, in couples that differ in as many tasks as possible, or in one
factor alone, and each couple is mixed both ways. No image is in two couples, so couples are independent.

Legend: n images, m mixed images, A anchors, P patches, d width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from htc_probe.analysis.causes import scene_questions
from htc_probe.extract import again
from htc_probe.extract.data.source import Source
from htc_probe.extract.store import Run, Task
from htc_probe.extract.vlm.model import HTCVLM, Hybrid

BATCH = 64
_ALL = "all"
Side = Literal["anchors", "patches"]


class Half(NamedTuple):
    """The anchors, or the patches, of mixed images."""

    tokens: Tensor
    """(some, A or P, d)"""
    rows: np.ndarray
    """(m,) which of the tokens each mixed image gets."""
    of: np.ndarray | None
    """(m,) the image whose labels they carry; None where they are of no image."""


class Mix(NamedTuple):
    """Mixed images of one kind."""

    name: str
    """unmixed; swapped; or what is replaced and by what, as in `anchors noise`."""
    anchors: Half
    patches: Half
    couple: np.ndarray
    """(m,) what is independent: the couple of images that it is made of."""
    replaced: Side | None = None
    """Where one half counts as kept, the other."""


class Design(NamedTuple):
    """Images, and which are mixed with which."""

    factor: str
    """What partners differ in; ALL: as many tasks as possible."""
    images: Source
    """n of them."""
    labels: dict[str, np.ndarray]
    """By task, (n, ...) as in a run."""
    answers: dict[str, np.ndarray] | None
    """By question, see `scene_questions.Truths`; None where none is asked."""
    partner: np.ndarray
    """(n,) of each image the number of its partner, whose partner it is; -1: it has none."""
    read: tuple[str, ...] | None = None
    """The tasks and questions that are read; None: all."""


# ---- which images


def one_a_group(groups: Sequence[str], most: int, seed: int) -> np.ndarray:
    """Ascending numbers of at most `most` images, no two of one group: those that come first in `again.order`."""
    order = again.order(len(groups), seed)
    _, first = np.unique(np.asarray(groups, dtype=str)[order], return_index=True)
    return np.sort(order[np.sort(first)[:most]])


def differing(tasks: Sequence[Task], labels: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n, n) in how many tasks two images differ, as far as it is known."""
    n = len(labels[tasks[0].name])
    count = np.zeros((n, n), dtype=int)
    for task in tasks:
        cells = labels[task.name].reshape(n, -1)
        known = task.known(cells)
        for image in range(n):
            count[image] += ((cells != cells[image]) & known & known[image]).any(1)
    return count


def couples_that_differ(count: np.ndarray) -> np.ndarray:
    """(n,) partners by `differing` counts (n, n): image by image, the free one that differs most; -1 for an odd one."""
    partner = np.full(len(count), -1)
    free = list(range(len(count)))
    while len(free) > 1:
        first = free.pop(0)
        second = free.pop(int(count[first, free].argmax()))
        partner[first], partner[second] = second, first
    return partner


def couples_alike(labels: np.ndarray) -> np.ndarray:
    """(n,) partners of the same known class (n,); -1 for those left over."""
    partner = np.full(len(labels), -1)
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        half = len(members) // 2
        partner[members[:half]], partner[members[half : 2 * half]] = members[half : 2 * half], members[:half]
    return partner


def all_factors(run: Run, source: Source, chosen: np.ndarray, asks: bool) -> Design:
    """The images `chosen` (n,) of the run, partners differing as much as possible; `asks`: with answers."""
    labels = {task.name: run.labels(task.name)[chosen] for task in run.tasks}
    told = scene_questions.truths(again.scenes_of(run, chosen)).answers if asks else None
    images = again.Chosen(run, source, chosen)
    return Design(_ALL, images, labels, told, couples_that_differ(differing(run.tasks, labels)))


def changed_scenes(
    model: HTCVLM, run: Run, chosen: np.ndarray, partner: np.ndarray, most: int, asks: bool
) -> Iterator[Design]:
    """By factor, at most `most` of the scenes `chosen` (n,), and the same with the factor of their `partner` (n,)."""
    pictures = again.scenes_of(run, chosen)
    for factor in scene_questions.FACTORS:
        pairs = [
            (picture, changed)
            for picture, giver in zip(pictures, partner, strict=True)
            if giver >= 0 and (changed := scene_questions.with_factor(picture, pictures[giver], factor)) is not None
        ][:most]
        if len(pairs) < 2:
            continue
        both = [picture for picture, _ in pairs] + [changed for _, changed in pairs]
        told = scene_questions.truths(both)
        drawn = scene_questions.Drawn(both, model.config.image_size)
        answers = told.answers if asks else None
        partners = np.roll(np.arange(len(both)), len(pairs))  # the second half are those of the first
        yield Design(factor, drawn, told.labels, answers, partners, scene_questions.FACTORS[factor])


def matched(run: Run, source: Source, most: int, seed: int) -> Iterator[Design]:
    """By task, at most `most` couples of images that differ in it and, as far as the run knows, in nothing else."""
    rows = one_a_group(run.groups(), len(run), seed)
    labels = {task.name: run.labels(task.name)[rows] for task in run.tasks}
    for task in run.tasks if len(run.tasks) > 1 else ():
        own = labels[task.name].reshape(len(rows), -1)
        others = [values for name, values in labels.items() if name != task.name]
        rest = np.concatenate([values.reshape(len(rows), -1).astype(np.float64) for values in others], 1)
        known = task.known(own).all(1)
        for also in run.tasks:
            known &= also.known(labels[also.name].reshape(len(rows), -1)).all(1)
        _, same = np.unique(rest, axis=0, return_inverse=True)
        waiting: dict[int, list[int]] = {}
        pairs: list[tuple[int, int]] = []
        for number in np.flatnonzero(known).tolist():
            alike = waiting.setdefault(int(same[number]), [])
            different = next((image for image in alike if (own[image] != own[number]).any()), None)
            if different is None:
                alike.append(number)
            else:
                alike.remove(different)
                pairs.append((different, number))
        if len(pairs) < 2:
            continue
        used = np.array(pairs[:most])
        order = np.sort(used.ravel())
        partner = np.empty(len(order), dtype=int)
        ends = np.searchsorted(order, used)
        partner[ends[:, 0]], partner[ends[:, 1]] = ends[:, 1], ends[:, 0]
        images = again.Chosen(run, source, rows[order])
        chosen = {name: values[order] for name, values in labels.items()}
        yield Design(task.name, images, chosen, None, partner, (task.name,))


# ---- mixing


def encode(model: HTCVLM, images: Source) -> Hybrid:
    """Anchors (n, A, d) and patches (n, P, d) of all images, in the memory of the CPU."""
    batches = again.encode(model, again.prepared(model, images), BATCH)
    halves = [(hybrid.anchors.cpu(), hybrid.patches.cpu()) for hybrid in batches]
    return Hybrid(*(torch.cat(half) for half in zip(*halves, strict=True)))


def swaps(tokens: Hybrid, partner: np.ndarray) -> Iterator[Mix]:
    """The images as they are, and the anchors of each with the patches of its partner."""
    number = np.arange(len(partner))
    couple = np.where(partner < 0, number, np.minimum(number, partner))
    own = Half(tokens.anchors, number, number), Half(tokens.patches, number, number)
    yield Mix("unmixed", *own, couple)
    mixed = np.flatnonzero(partner >= 0)
    patches = Half(tokens.patches, partner[mixed], partner[mixed])
    yield Mix("swapped", Half(tokens.anchors, mixed, mixed), patches, couple[mixed])


def replacements(tokens: Hybrid, alike: np.ndarray, rng: np.random.Generator) -> Iterator[Mix]:
    """Each half replaced by noise and its mean; anchors by those of one of its class (`alike` (n,), -1 without)."""
    number = np.arange(len(tokens.anchors))
    own = {"anchors": Half(tokens.anchors, number, number), "patches": Half(tokens.patches, number, number)}
    side: Side
    for side in ("anchors", "patches"):
        kept = own[side].tokens
        mean = kept.float().mean(0, keepdim=True).to(kept.dtype)
        noise, zeros = Half(gaussian_like(kept, rng), number, None), np.zeros_like(number)
        for name, half in (("noise", noise), ("mean", Half(mean, zeros, None))):
            yield Mix(f"{side} {name}", **(own | {side: half}), couple=number, replaced=side)
    mixed = np.flatnonzero(alike >= 0)
    if len(mixed):
        donors = Half(tokens.anchors, alike[mixed], alike[mixed])
        couple = np.minimum(mixed, alike[mixed])
        yield Mix("anchors class", donors, Half(tokens.patches, mixed, mixed), couple, "anchors")


def gaussian_like(tokens: Tensor, rng: np.random.Generator) -> Tensor:
    """(n, T, d) Gaussian noise with the mean and the covariance, over all tokens and dimensions, of (n, T, d)."""
    n = len(tokens)
    # Random sums of the deviations have exactly their covariance, and that never has to be written down.
    sums = torch.from_numpy(rng.standard_normal((n, n)).astype(np.float32) / np.sqrt(max(1, n - 1), dtype=np.float32))
    made = torch.empty_like(tokens)
    for token in range(tokens.shape[1]):  # one at a time, for the memory
        values = tokens[:, token].float()
        mean = values.mean(0)
        made[:, token] = (mean + sums @ (values - mean)).to(tokens.dtype)
    return made
