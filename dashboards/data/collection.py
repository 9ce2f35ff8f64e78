"""The images of a run as a collection: what each belongs to, what was read of it right or wrong, and in what order they
come. Knows arrays; reads entropies from runs, 512 MB of attention at most.

N images of a run; amounts are NaN where nothing is known of an image.
"""

from collections.abc import Sequence

import numpy as np

from htc_probe.analysis.attention import rows as att
from htc_probe.analysis.sections import Interchange
from htc_probe.dashboards.data.attention import attention_blocks
from htc_probe.dashboards.data.kept import RunKey, kept
from htc_probe.dashboards.data.run import header
from htc_probe.extract.store import NUMERIC, UNKNOWN, Task
from htc_probe.probes.files.predictions import Predicted

_UNKNOWN = "unknown"
_MOST_BYTES = 2**29


def groups(task: Task, label_N: np.ndarray) -> list[str]:
    """What images can be filtered by: the classes, the labels, or the quarters of a number; and `unknown` where a label
    is.
    """
    names = list(task.classes)
    if task.kind in NUMERIC:
        ends = _ends(label_N)
        unit = f" {task.unit}".rstrip()
        names = [f"{low:.4g} to {high:.4g}{unit}" for low, high in zip(ends[:-1], ends[1:], strict=True)]
    return [*names, *([_UNKNOWN] if _unknown(task, label_N).any() else [])]


def belonging(task: Task, label_N: np.ndarray, name: str) -> np.ndarray:
    """(N,) bool, which images are in one of the `groups`."""
    if name == _UNKNOWN and name not in task.classes:
        return _unknown(task, label_N)
    place = groups(task, label_N).index(name)
    if task.kind == "multilabel":
        return np.asarray(label_N[:, place] == 1)
    if task.kind in NUMERIC:
        ends = _ends(label_N)
        last = place == len(ends) - 2
        return (label_N >= ends[place]) & (label_N <= ends[place + 1] if last else label_N < ends[place + 1])
    return np.asarray(label_N == place)


def labelled(task: Task, label_N: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(N,) bool, which images are in any of these groups; of a task that gives an image several labels, in all."""
    every = np.stack([belonging(task, label_N, name) for name in names])
    return np.asarray(every.all(0) if task.kind == "multilabel" else every.any(0))


def _ends(label_N: np.ndarray) -> np.ndarray:
    """Of the quarters of a number; fewer where many images have the same."""
    known = label_N[np.isfinite(label_N)]
    ends = np.unique(np.quantile(known, [0, 0.25, 0.5, 0.75, 1])) if len(known) else np.empty(0)
    return np.repeat(ends, 2) if len(ends) == 1 else ends


def _unknown(task: Task, label_N: np.ndarray) -> np.ndarray:
    if task.kind in NUMERIC:
        return ~np.isfinite(label_N)
    return np.asarray(~task.known(label_N).any(1) if task.kind == "multilabel" else label_N < 0)


# ---- what was read of them


def right(predicted: Predicted, images: int) -> np.ndarray:
    """(N,) 1 where a probe is right, 0 where it is wrong; of several labels, right is all that are known. Of numbers
    and circular values NaN: nothing about them is right or wrong.
    """
    found_N = np.full(images, np.nan)
    if predicted.kind == "multilabel":
        assert predicted.right is not None
        known = predicted.y != UNKNOWN
        found_N[predicted.rows] = np.where(known.any(1), (predicted.right | ~known).all(1), np.nan)
    elif predicted.right is not None:
        found_N[predicted.rows] = predicted.right
    return found_N


def loss(predicted: Predicted, images: int) -> np.ndarray:
    """(N,) what a probe loses: nats of the true class, the mean over known labels; of numbers, how far it is off."""
    found_N = np.full(images, np.nan)
    if predicted.error is not None:
        found_N[predicted.rows] = np.abs(predicted.error)
    elif predicted.kind == "multilabel":
        logits = predicted.prediction
        assert isinstance(logits, np.ndarray)
        known, sign = predicted.y != UNKNOWN, np.where(predicted.y == 1, -1, 1)
        lost = np.where(known, np.logaddexp(0, sign * logits), 0).sum(1)
        found_N[predicted.rows] = np.where(known.any(1), lost / np.maximum(known.sum(1), 1), np.nan)
    else:
        found_N[predicted.rows] = -predicted.logs[:, 1]
    return found_N


def answered(section: Interchange) -> list[str]:
    """The tasks that the model was asked about and that can be right or wrong."""
    read = section.read
    told = zip(read.task, read.readout, read.kind, strict=True)
    return list(dict.fromkeys(task for task, readout, kind in told if readout == "answer" and kind not in NUMERIC))


def answered_right(section: Interchange, rows: Sequence[int], task: str, images: int) -> np.ndarray:
    """(N,) the same as `right`, of the model's own answers. rows: of the section's images."""
    read = section.read
    told = zip(read.task, read.readout, strict=True)
    columns = [number for number, of in enumerate(told) if of == (task, "answer")]
    true, said = read.true[:, columns], read.unmixed[:, columns]
    known = np.isfinite(true) & np.isfinite(said)
    found_N = np.full(images, np.nan)
    found_N[list(rows)] = np.where(known.any(1), ((true == said) | ~known).all(1), np.nan)
    return found_N


@kept(2, "Measuring the entropy of attention")
def entropies(key: RunKey) -> np.ndarray:
    """(N, L, H) float32 in bits; of a run whose attention is larger than 512 MB, of evenly spaced images."""
    shape = header(key).shape
    found_NLH = np.full((shape.images, shape.layers, shape.heads), np.nan, np.float32)
    rows = att.evenly(range(shape.images), _MOST_BYTES // (4 * shape.layers * shape.heads * shape.keys))
    start = 0
    for block in attention_blocks(key, rows):
        found_NLH[rows[start : start + len(block)]] = att.measure(block, shape.roles)["entropy_bits"]
        start += len(block)
    return found_NLH


# ---- their order


def ordered(rows: np.ndarray, amount_N: np.ndarray, highest_first: bool) -> np.ndarray:
    """The rows by what each has of something; those of which nothing is known last, equals in the order of the run."""
    amount = amount_N[rows]
    return np.asarray(rows[np.argsort(-amount if highest_first else amount, kind="stable")])  # NaN goes to the end
