"""What z_voco holds: words, codes, patches, neighbours, dimensions, read without training anything large.

Knows runs, arrays and, where given, the model that made the run. Does not know files, commands or figures.

Legend: N images, L layers, D width, P patches, G code groups, V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from htc_probe.analysis.contents import codes, geometry
from htc_probe.analysis.sections import Reading
from htc_probe.analysis.sections.contents import CodeLabels, Codes, Dimension, Lens, Neighbours, Overlaps, Patches
from htc_probe.analysis.stats import draws, ridge
from htc_probe.extract import again
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Run, Task, is_labelled
from htc_probe.extract.vlm.parts import readout
from htc_probe.probes.files.weights import Key, Probe
from htc_probe.probes.scores.intervals import Groups, mean_known

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from htc_probe.extract.vlm.model import HTCVLM

_LEAST_GROUPS = 10
_IMAGES = 2000  # of what compares images with each other
_LENS_IMAGES = 500
_PATCH_IMAGES = 1000
_COMPONENTS = 64  # of a patch that the map predicts
_BASIS_IMAGES = 32
_PLACES = 64  # of the code grid
_WORDS = 10


class LayerWords(NamedTuple):
    """What a layer says in words, on each of N images."""

    surprise: np.ndarray
    """(N,) bits: divergence of the last layer's words from this layer's, KL(last || this)."""
    entropy: np.ndarray
    """(N,) bits, 0 to log2(V)."""
    same_word: np.ndarray
    """(N,) bool: the most likely word is the last layer's."""
    mean: np.ndarray
    """(V,) mean probability of each word."""
    chosen: np.ndarray
    """(N, k) log2 probabilities of the words asked for."""


def analyse(
    run: Run,
    model: HTCVLM | None = None,
    probes: Mapping[Key, Probe] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    images: int = _PATCH_IMAGES,
    seed: int = 0,
    *,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Reading:
    """What needs no model, and what `model` and `probes` allow.

    `images`: how many go through the model again, for the map of patches. At most 2,000 are compared with each other.
    `progress` gets steps done and in all.

    Raises UserError where the run has less than 10 groups of images.
    """
    groups = run.groups()
    if len(set(groups)) < _LEAST_GROUPS:
        raise UserError(
            f"{run.path.name} has images of {len(set(groups))} groups; reading holds some out and needs at least "
            f"{_LEAST_GROUPS}: extract more images"
        )
    rows = again.sample(run, _IMAGES, seed)
    features = representations(run, rows)
    some = run.groups(rows)
    steps: dict[str, Callable[[], Any]] = {
        "likeness": lambda: _likeness(run, rows, features, some, seed),
        "neighbours": lambda: _neighbours(run, rows, features, some, seed),
        "code": lambda: None if run.shape.codes is None else _codes(run, rows, features, some, model, seed),
        "patch": lambda: None if model is None else _patches(run, model, images, seed),
        "lens": lambda: None if model is None else _lens(run, model, tokenizer, seed),
        "angles": lambda: {} if probes is None else _angles(run, probes, rows, features["z_voco"], seed),
    }
    found: dict[str, Any] = {}
    for name, step in steps.items():
        found[name] = step()
        progress(len(found), len(steps))
    (names, cka, dimension), angles = found.pop("likeness"), found.pop("angles")
    about: dict[str, Any] = {"images": len(rows), "representations": list(features)}
    return Reading(**about, likeness_of=names, cka=cka, dimension=dimension, **found, **angles)


def representations(run: Run, rows: np.ndarray) -> dict[str, np.ndarray]:
    """z_voco of the last stored layer, v_d (where there is one) and v_pooled of these rows, each (n, D) float32."""
    found = {"z_voco": run.z_voco(run.shape.stack[-1])[rows]}
    if run.shape.anchors:
        found["v_d"] = run.v_d()[rows].reshape(len(rows), -1)
    return found | {"v_pooled": run.v_pooled()[rows]}


# ---- patches


def patch_map(z_ND: np.ndarray, patches_NPd: np.ndarray, groups_N: Groups, seed: int) -> draws.Draws:
    """(P + 1,) R2 of a linear map from z (N, D) to each patch of (N, P, d), and to all of them together.

    Ridge, tested on 5 folds of whole groups; the strength of each patch by leave-one-out within the training images. R2
    is 1 - squared errors / squared deviations from the training mean, both summed over images and the d numbers.
    """
    return ridge.held_out(z_ND, patches_NPd, groups_N, seed).r2(groups_N, seed)


def patch_components(batches: Iterator[np.ndarray], components: int = _COMPONENTS) -> tuple[np.ndarray, float]:
    """Patches (B, P, d) of many images in fewer numbers: (N, P, components) float32, and their share of the variance.

    The directions are the leading ones of differences between images at the same place, found on the first 32 images
    or so. Only the result is held, so patches of any width fit.
    """
    first: list[np.ndarray] = []
    for batch in batches:
        first.append(batch.astype(np.float32))
        if sum(map(len, first)) >= _BASIS_IMAGES:
            break
    start = np.concatenate(first)
    d = start.shape[2]
    if components >= d:
        return np.concatenate([start, *(batch.astype(np.float32) for batch in batches)]), 1.0
    off = (start - start.mean(0)).reshape(-1, d)
    basis = np.linalg.eigh(off.T @ off)[1][:, ::-1][:, :components].astype(np.float32)
    found, count = [], 0
    total, squares = np.zeros(start.shape[1:]), 0.0
    for batch in chain([start], batches):
        found.append(batch.astype(np.float32) @ basis)
        total += batch.sum(0, dtype=np.float64)
        squares += float((batch.astype(np.float64) ** 2).sum())
        count += len(batch)
    kept = np.concatenate(found)
    whole = squares - (total**2).sum() / count
    part = ((kept - kept.mean(0, dtype=np.float64)) ** 2).sum()
    return kept, float(part / whole) if whole > 0 else 1.0


# ---- words


def log_words(hidden_ND: np.ndarray, unembed_VD: np.ndarray, norm: tuple[np.ndarray, float] | None) -> np.ndarray:
    """(N, V) log2 probabilities of words at hidden states.

    `norm`: weight (D,) and epsilon of the model's final RMSNorm; None for the last layer of a stack, which is after it
    already.
    """
    hidden = hidden_ND.astype(np.float64)
    if norm is not None:
        weight, epsilon = norm
        hidden = hidden / np.sqrt((hidden**2).mean(1, keepdims=True) + epsilon) * weight
    logits = hidden.astype(np.float32) @ unembed_VD.T.astype(np.float32)
    logits -= logits.max(1, keepdims=True)
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))) / np.float32(np.log(2))


def lens(
    hidden_ND: np.ndarray,
    last_ND: np.ndarray,
    unembed_VD: np.ndarray,
    norm: tuple[np.ndarray, float] | None,
    words: Sequence[int] = (),
) -> LayerWords:
    """The logit lens (nostalgebraist 2020) on a layer's states, against the last layer's, which are after the norm.

    <voco> is never trained to say the next word itself: its words show which directions of the vocabulary it uses.
    """
    mean, parts = np.zeros(len(unembed_VD)), []
    step = max(1, 2**24 // len(unembed_VD))
    for start in range(0, len(hidden_ND), step):
        here = log_words(hidden_ND[start : start + step], unembed_VD, norm)
        there = log_words(last_ND[start : start + step], unembed_VD, None)
        weight, last = np.exp2(here), np.exp2(there)
        mean += weight.sum(0, dtype=np.float64)
        same = here.argmax(1) == there.argmax(1)
        parts.append(((last * (there - here)).sum(1), -(weight * here).sum(1), same, here[:, list(words)]))
    surprise, entropy, same, chosen = (np.concatenate(part) for part in zip(*parts, strict=True))
    return LayerWords(np.maximum(surprise, 0), entropy, same, mean / len(hidden_ND), chosen)


# ---- the parts of the section


def _neighbours(
    run: Run, rows: np.ndarray, features: Mapping[str, np.ndarray], groups: Groups, seed: int
) -> Neighbours:
    near = [geometry.neighbours(geometry.standardised(values), groups) for values in features.values()]
    tasks = [task for task in run.tasks if not _empty(run, task, rows)]
    scores: list[draws.Draws] = []
    floors = []
    for task in tasks:
        labels = run.labels(task.name)[rows]
        votes = [geometry.vote(places, labels, task) for places in near]
        scores += [draws.draws_of_ratios(*errors, groups, seed).complement() for errors in votes]
        floors.append(geometry.floor(labels, task))
    metric = {"classes": "accuracy", "number": "R2", "circular": "circular R2", "multilabel": "mean accuracy"}
    return Neighbours(
        tasks=[task.name for task in tasks],
        metric=[metric[task.kind] for task in tasks],
        floor=np.array(floors),
        score=_table(scores, (len(tasks), len(near))) if tasks else None,
    )


def _likeness(
    run: Run, rows: np.ndarray, features: Mapping[str, np.ndarray], groups: Groups, seed: int
) -> tuple[list[str], draws.Intervals, Dimension]:
    """The names of what is compared, its CKA, and its dimension."""
    block = draws.blocks(groups, seed)
    layers = [layer for layer in run.shape.stack if layer > 0]  # the embedding is the same for all images
    names = [*(f"z_voco {layer}" for layer in layers), *(name for name in features if name != "z_voco")]
    grams, dimensions = [], []
    for name in names:
        values = run.z_voco(int(name.split()[1]))[rows] if name.startswith("z_voco ") else features[name]
        standard = geometry.standardised(values)
        grams.append(geometry.gram(standard, block))
        dimensions.append(geometry.two_nn(standard, groups, seed))
    ratios = [geometry.participation_ratio(one) for one in grams]
    return names, geometry.cka(grams), Dimension(two_nn=_joined(dimensions), participation=_joined(ratios))


def _codes(
    run: Run, rows: np.ndarray, features: Mapping[str, np.ndarray], groups: Groups, model: HTCVLM | None, seed: int
) -> Codes:
    all_NhwG = run.codes()
    N, h, w, G = all_NhwG.shape
    codebook = None if model is None or model.mgvq is None else _codebook(model)
    size = int(all_NhwG.max()) + 1 if codebook is None else codebook.shape[1]
    if codebook is None and run.info.codes_per_group:
        size = run.info.codes_per_group
    used = codes.usage(all_NhwG.reshape(N, h * w, G), size, run.groups(), seed)
    chosen = np.unique(np.linspace(0, h * w - 1, min(h * w, _PLACES)).round().astype(int))
    some = all_NhwG.reshape(N, h * w, G)[np.ix_(rows, chosen)].astype(int)
    n, P, _ = some.shape
    together = np.tile(np.arange(G), P)
    if codebook is None:
        values = codes.most_frequent(some.reshape(n, -1), codes.values_for(groups) - 1)
    else:
        values = codes.cells(codebook, codes.values_for(groups), seed)[np.arange(G), some].reshape(n, -1)

    bits, maps, entropies, tasks = [], [], [], []
    for task in run.tasks:
        if _empty(run, task, rows):
            continue
        found = [codes.information(values, one, groups, seed) for one in _as_classes(run.labels(task.name)[rows], task)]
        pointwise = mean_known(np.stack([one.pointwise for one in found]), 0).reshape(n, P, G)
        bits.append(draws.draws_of_means(pointwise.mean(1), groups, seed))
        maps.append(np.mean([one.bits for one in found], 0).reshape(P, G).mean(1))
        entropies.append(np.mean([one.entropy for one in found]))
        tasks.append(task.name)

    saved = []
    entropy_read_G = np.zeros(G)
    for feature in features.values():
        if codebook is None:
            saved.append(codes.readable(feature, values, groups, together, seed).reshape(n, P, G))
            continue
        read = codes.readable_vectors(feature, some, codebook, groups, seed)
        saved.append(read.bits)
        entropy_read_G = read.floor.mean((0, 1))
    if codebook is None:
        shares = (values.reshape(n, P, G, 1) == np.arange(values.max() + 1)).mean(0)
        logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
        entropy_read_G = -(shares * logs).sum(2).mean(0)
    label = None
    if tasks:
        bits_CG = _table(bits, (len(tasks), G))
        label = CodeLabels(bits=bits_CG, map=np.array(maps, np.float32), entropy=np.array(entropies))
    return Codes(
        size=size,
        used=used.used,
        draws=used.draws,
        entropy=used.entropy,
        rows=chosen // w,
        cols=chosen % w,
        tasks=tasks,
        label=label,
        bits=_table([draws.draws_of_means(one.mean(1), groups, seed) for one in saved], (len(saved), G)),
        entropy_read=entropy_read_G,
    )


def _patches(run: Run, model: HTCVLM, images: int, seed: int) -> Patches:
    rows = again.sample(run, images, seed)
    groups = run.groups(rows)
    hybrids = again.encode(model, again.images(run, model, rows))
    patches, kept = patch_components(hybrid.patches.float().cpu().numpy() for hybrid in hybrids)
    features = representations(run, rows)
    found = {name: patch_map(values, patches, groups, seed) for name, values in features.items()}
    ends = _table(list(found.values()), (len(found), patches.shape[1] + 1))
    z, pooled = found["z_voco"], found["v_pooled"]
    more = draws.Draws(z.estimate[-1:] - pooled.estimate[-1:], z.draws[:, -1:] - pooled.draws[:, -1:], z.n_groups)
    return Patches(
        images=len(rows),
        r2=draws.Intervals(*(part[:, :-1] for part in ends)),
        r2_all=draws.Intervals(*(part[:, -1] for part in ends)),
        r2_all_minus_pooled=more.intervals(),
        variance_kept=kept,
    )


def _lens(run: Run, model: HTCVLM, tokenizer: PreTrainedTokenizerBase | None, seed: int) -> Lens | None:
    last = run.shape.layers
    if last not in run.shape.stack:
        return None
    rows = again.sample(run, _LENS_IMAGES, seed)
    groups = run.groups(rows)
    unembed, weights, epsilon = readout(model)
    norm = weights, epsilon
    tasks = {} if tokenizer is None else _single_words(run, tokenizer, rows)
    words = sorted({word for ids in tasks.values() for word in ids})
    after_norm = run.z_voco(last)[rows]
    values: dict[str, list[np.ndarray]] = {"surprise": [], "entropy": [], "same_word": []}
    tokens, probability, right = [], [], []
    for layer in run.shape.stack:
        found = lens(run.z_voco(layer)[rows], after_norm, unembed, None if layer == last else norm, words)
        for name in values:
            values[name].append(getattr(found, name).astype(float))
        best = np.argsort(-found.mean, kind="stable")[:_WORDS]
        tokens.append(best)
        probability.append(found.mean[best])
        for task, ids in tasks.items():
            labels = run.labels(task)[rows]
            said = found.chosen[:, [words.index(word) for word in ids]].argmax(1)
            right.append(np.where(labels >= 0, said == labels, np.nan))
    stacks = {name: np.stack(by_layer, 1) for name, by_layer in values.items()}
    named: dict[str, Any] = {name: draws.intervals_of_means(stack, groups, seed) for name, stack in stacks.items()}
    if tokenizer is not None:
        named["words"] = [" | ".join(str(tokenizer.decode([int(one)])) for one in best) for best in tokens]
        named["tasks"] = list(tasks)
    if tasks:
        accuracy = np.stack(right, 1).reshape(len(rows), len(run.shape.stack), len(tasks)).swapaxes(1, 2)
        named["accuracy"] = draws.intervals_of_means(accuracy, groups, seed)
        named["floor"] = np.array([geometry.floor(run.labels(name)[rows], run.task(name)) for name in tasks])
    named |= {"tokens": np.array(tokens), "probability": np.array(probability, np.float32)}
    return Lens(layers=np.array(run.shape.stack), images=len(rows), **named)


def _angles(run: Run, probes: Mapping[Key, Probe], rows: np.ndarray, features: np.ndarray, seed: int) -> dict[str, Any]:
    """The fields of `Reading` that are about angles."""
    layer = run.shape.stack[-1]
    axes: dict[str, dict[str, np.ndarray]] = {"semantic": {}, "detail": {}}
    for task in run.tasks:
        probe = probes.get((task.name, "z_voco", layer))
        if probe is None:
            continue
        if len(probe.weights) != features.shape[1]:
            raise UserError(
                f"the probe of {task.name} takes {len(probe.weights)} features, z_voco of {run.path.name} has "
                f"{features.shape[1]}: these probes are of another run"
            )
        directions = probe.directions()
        if directions.shape[1]:
            axes[task.suite][task.name] = directions
    found: dict[str, Any] = {"angle_semantic": list(axes["semantic"]), "angle_detail": list(axes["detail"])}
    if axes["semantic"] and axes["detail"]:
        found["angle"] = _overlaps(axes, lambda one, other: geometry.angles(one, other, seed))
        found["read_out"] = _overlaps(axes, lambda one, other: geometry.read_out_angles(one, other, features, seed))
    return found


def _overlaps(
    axes: Mapping[str, Mapping[str, np.ndarray]], measured: Callable[[np.ndarray, np.ndarray], geometry.Angles]
) -> Overlaps:
    """Of the directions (D, k) of each task of the two suites, and of all of a suite together."""
    pairs = [[measured(one, other) for other in axes["detail"].values()] for one in axes["semantic"].values()]
    semantic, detail = (np.concatenate(list(axes[suite].values()), 1) for suite in ("semantic", "detail"))
    whole = measured(semantic, detail)
    lower, upper = np.quantile(whole.null, [0.025, 0.975], axis=0)
    return Overlaps(
        overlap=np.array([[pair.overlap for pair in row] for row in pairs]),
        overlap_chance=np.array([[pair.null_overlaps.mean() for pair in row] for row in pairs]),
        overlap_chance_upper=np.array([[np.quantile(pair.null_overlaps, 0.975) for pair in row] for row in pairs]),
        cosines=whole.cosines,
        cosines_chance_lower=lower,
        cosines_chance_upper=upper,
        overlap_all=whole.overlap,
        overlap_all_chance=float(whole.null_overlaps.mean()),
        overlap_all_chance_upper=float(np.quantile(whole.null_overlaps, 0.975)),
    )


def _codebook(model: HTCVLM) -> np.ndarray:
    """(groups, K, c) float32 unit vectors."""
    import torch

    assert model.mgvq is not None
    with torch.no_grad():
        unit = torch.nn.functional.normalize(model.mgvq.codebook.float(), dim=-1)
    return unit.unflatten(0, (model.mgvq.config.groups, -1)).cpu().numpy()


def _single_words(run: Run, tokenizer: PreTrainedTokenizerBase, rows: np.ndarray) -> dict[str, list[int]]:
    """Tasks whose classes are one word of the vocabulary each, with these words."""
    found = {}
    for task in run.tasks:
        if task.kind != "classes" or _empty(run, task, rows):
            continue
        ids = [tokenizer(name, add_special_tokens=False).input_ids for name in task.classes]
        known = all(len(one) == 1 and one[0] != tokenizer.unk_token_id for one in ids)
        if known and len({one[0] for one in ids}) == len(ids):
            found[task.name] = [one[0] for one in ids]
    return found


def _as_classes(labels: np.ndarray, task: Task) -> list[np.ndarray]:
    """(N,) ints each, -1 unknown: the classes, 8 equally frequent ranges of a number, or every label by itself."""
    if task.kind == "classes":
        return [labels]
    if task.kind == "number":
        return [codes.binned(labels)]
    if task.kind == "circular":
        return [codes.binned(labels % task.period)]
    return [np.where(task.known(one), one.astype(int), -1) for one in labels.T]


def _empty(run: Run, task: Task, rows: np.ndarray) -> bool:
    """Whether all of these images have the same label, or none."""
    labels = run.labels(task.name)[rows]
    return len(np.unique(labels[is_labelled(task.kind, labels)], axis=0)) < 2


def _table(cells: Sequence[draws.Draws], shape: tuple[int, ...]) -> draws.Intervals:
    found = [cell.intervals() for cell in cells]
    return draws.Intervals(*(np.stack(part).reshape(shape) for part in zip(*found, strict=True)))


def _joined(intervals: Sequence[draws.Interval]) -> draws.Intervals:
    return draws.Intervals(*(np.array(part) for part in zip(*intervals, strict=True)))
