"""A reader that is not linear: how much more of a label is there to be read, as a ceiling for the linear probe. Knows
arrays; not runs, names, scores or files.

One hidden layer of rectified units adds to what the linear probe says, and starts at zero:

    said(x) = linear probe(x) + V relu(U x + a) + c

The linear probe is fitted first, at the strength that it was given, and stays as it is; U, a, V, c are learned by
AdamW on the same loss (numbers, cosine and sine: the squared error of standardised values). How long they learn, and
at which weight decay, is chosen for every task by the task's metric in the inner folds of the training rows, which
split no group, out of all that is in `_EPOCHS` and `_DECAYS`; not at all is one of the choices, and of equals it wins.
So what is linear is read as the linear probe reads it. Rows that are held out have no part in it.

A ceiling of this reader, after so many images: a larger one, or more images, may find more.

Legend: N rows, n training rows, m held-out rows, r rank of the basis, C columns that a task's reader says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from htc_probe.extract.store import NUMERIC, UNKNOWN, Kind
from htc_probe.probes.inputs import circular
from htc_probe.probes.inputs.labels import Labels
from htc_probe.probes.scores.metrics import METRIC, Gaussian, Prediction, VonMises, labelled
from htc_probe.probes.solvers import angles, ridge
from htc_probe.probes.solvers.basis import Basis
from htc_probe.probes.solvers.newton import Path
from htc_probe.probes.solvers.problems import Target, log_probabilities
from htc_probe.probes.study import protocol
from htc_probe.probes.study.protocol import INNER_FOLDS, Settings, basis_of

_HIDDEN = 64
_EPOCHS = tuple(range(5, 65, 5))
"""Passes over the training rows after which the reader may be taken."""
_DECAYS = (1.0, 10.0)
"""Of the weights, times the learning rate, a step. Less was worse in planted data: XOR of 2 of 128 directions, of 1,600
rows, is read to 0.63 at 0.1, 0.71 at 1 and 0.76 at 10; of 32 directions to 0.91, 0.92 and 0.87."""
_BATCH, _RATE = 256, 1e-2
_IMPOSSIBLE = -30.0
"""Log probability of a class that no training row has."""


class Reader(NamedTuple):
    """One task in one fold."""

    prediction: Prediction | None
    """For the m held-out rows, see `probes.metrics`; None: the linear probe's, as no hidden layer did better."""
    epochs: int
    decay: float


_LINEAR = Reader(None, 0, 0.0)


def hold_out(
    x_ND: np.ndarray,
    tasks: Sequence[Labels],
    groups: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    strengths: Sequence[float],
    settings: Settings,
) -> list[Reader]:
    """Readers of all tasks, of the rows `train` and used on the rows `test`, (N,) bool each. `strengths` are those of
    the linear probes. Deterministic in the seed of `settings`. Raises UserError for features that are not finite.
    """
    labels = [task.among(train) for task in tasks]
    inner = protocol.inner_folds(tasks, groups, train, settings.seed)[train]
    bases: dict[bool, tuple[Basis, Tensor]] = {}
    found = []
    for task, strength in zip(labels, strengths, strict=True):
        double = task.kind in NUMERIC  # as `protocol` has it
        if double not in bases:
            x_nD, x_mD = (x_ND[part].astype(np.float64 if double else np.float32) for part in (train, test))
            basis = basis_of(x_nD, settings, torch.float64 if double else torch.float32)
            bases[double] = basis, basis.rotate(x_mD)
        basis, test_mr = bases[double]
        found.append(_hold_out(basis, task, float(strength), inner, test_mr, settings.seed))
    return found


def _hold_out(basis: Basis, task: Labels, strength: float, inner_n: np.ndarray, test_mr: Tensor, seed: int) -> Reader:
    known = np.zeros(len(task.y), bool)
    known[labelled(task.kind, task.y)] = True
    if not known.any() or (task.kind in NUMERIC and np.ptp(task.y[known]) == 0):
        return _LINEAR
    parts = [np.flatnonzero(known & (inner_n == k)) for k in range(INNER_FOLDS)]
    said = []
    for k, part in enumerate(parts):
        held_out_mr = basis.train[torch.from_numpy(part)]
        said.append(dict(_path(basis, task, strength, known & (inner_n != k), held_out_mr, seed, _DECAYS)))
    costs = {choice: _cost(task, parts, [of[choice] for of in said]) for choice in said[0]}
    best = min(costs, key=lambda choice: (costs[choice], choice.epochs, -choice.decay))
    if best.epochs == 0:
        return _LINEAR
    values = dict(_path(basis, task, strength, known, test_mr, seed, [best.decay], best.epochs))[best]
    prediction: Prediction
    if task.kind == "number":
        # As wide as the errors of the inner folds, like the linear probe's.
        scale = max(np.sqrt(costs[best]), 1e-3 * np.nanstd(task.y))
        prediction = Gaussian(values[:, 0], np.full(len(values), scale))
    elif task.kind == "circular":
        kappa = float(circular.concentration(1 - costs[best]))
        prediction = VonMises(circular.values_of(values, task.period), np.full(len(values), kappa), task.period)
    else:
        prediction = values.astype(np.float32)
    return Reader(prediction, *best)


class _Choice(NamedTuple):
    epochs: int
    decay: float


def _cost(task: Labels, parts: Sequence[np.ndarray], pieces: Sequence[np.ndarray]) -> float:
    """By the task's metric, on the held-out rows of the inner folds; less is better."""
    y, values = task.y[np.concatenate(parts)], np.concatenate(pieces)
    if task.kind == "number":
        return float(np.mean((y - values[:, 0]) ** 2))
    if task.kind == "circular":
        return float(np.mean(1 - circular.cosine(circular.values_of(values, task.period), y, task.period)))
    ends = np.cumsum([0, *map(len, parts)])
    slices = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    return protocol.costs(task._replace(y=y), slices, pieces)[METRIC[task.kind]]


def _path(
    basis: Basis,
    task: Labels,
    strength: float,
    used_n: np.ndarray,
    others_mr: Tensor,
    seed: int,
    decays: Sequence[float],
    last: int = _EPOCHS[-1],
) -> Iterator[tuple[_Choice, np.ndarray]]:
    """What readers of the rows `used_n` say of the others (m, C): log probabilities, logits, numbers, or cosine and
    sine. First the linear probe by itself, which has 0 epochs.
    """
    rows = torch.from_numpy(np.flatnonzero(used_n))
    x_nr = basis.train[rows]
    linear = _linear(basis, task, strength, used_n)
    said_nC, said_mC = linear(x_nr), linear(others_mr)
    y_n = torch.from_numpy(_points(task)[rows.numpy()])
    centre_C, scale_C = torch.zeros(said_nC.shape[1]), torch.ones(said_nC.shape[1])
    if task.kind in NUMERIC:
        centre_C, scale_C = y_n.mean(0), y_n.std(0, correction=0).clamp_min(1e-12)
        y_n = ((y_n - centre_C) / scale_C).float()

    def told(added_mC: Tensor) -> np.ndarray:
        values = said_mC + added_mC.cpu().double() * scale_C
        if task.kind in NUMERIC:
            return values.numpy()
        if task.kind == "classes":
            values = values.log_softmax(1)
        return protocol.smoothed(task, values.numpy(), len(rows))

    yield _Choice(0, 0.0), told(torch.zeros_like(said_mC))
    device = x_nr.device
    offset_nC = ((said_nC - centre_C) / scale_C).float().to(device)
    for decay in decays:
        layer = _Hidden(x_nr.shape[1], offset_nC.shape[1], decay, seed, device)
        for epochs in layer.learn(x_nr.float(), offset_nC, y_n.to(device), task.kind, last):
            yield _Choice(epochs, decay), told(layer(others_mr.float()).detach())


def _linear(basis: Basis, task: Labels, strength: float, used_n: np.ndarray) -> Callable[[Tensor], Tensor]:
    """The linear probe of the rows `used_n`: rows in the basis to what it says of them, (m, C) float64."""
    if task.kind in NUMERIC:
        y_n = np.where(used_n, task.y, np.nan)
        if task.kind == "number":
            fit = ridge.fit(basis, y_n[:, None], [strength])
        else:
            fit = angles.at_strength(basis, y_n, task.period, strength)
        return lambda x_mr: torch.from_numpy(ridge.predict(fit, x_mr))
    y = task.y.copy()
    y[~used_n] = -1 if task.kind == "classes" else UNKNOWN
    logistic = Path(basis.train, basis.eigenvalues, [Target(y, task.n_classes)]).advance(strength)
    # A finite logit for a class that no row has, so that the layer's sums stay finite.
    return lambda x_mr: torch.from_numpy(log_probabilities(logistic, x_mr)[0]).clamp_min(_IMPOSSIBLE)


def _points(task: Labels) -> np.ndarray:
    """What is learned: classes (n,), labels (n, C), or numbers (n, C)."""
    if task.kind == "circular":
        return circular.vectors(task.y, task.period)
    return task.y[:, None] if task.kind == "number" else task.y


class _Hidden:
    """What the layer adds to the linear probe: nothing, before it has learned."""

    def __init__(self, width: int, columns: int, decay: float, seed: int, device: torch.device):
        self.random = torch.Generator().manual_seed(seed)
        into_rH = torch.randn(width, _HIDDEN, generator=self.random) / max(width, 1) ** 0.5
        out = (torch.zeros(_HIDDEN), torch.zeros(_HIDDEN, columns), torch.zeros(columns))
        self.parameters = [one.to(device).requires_grad_() for one in (into_rH, *out)]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=_RATE, weight_decay=decay)

    def __call__(self, x_mr: Tensor) -> Tensor:
        into_rH, a_H, out_HC, c_C = self.parameters
        return torch.addmm(c_C, torch.addmm(a_H, x_mr, into_rH).relu(), out_HC)

    def learn(self, x_nr: Tensor, offset_nC: Tensor, y_n: Tensor, kind: Kind, last: int) -> Iterator[int]:
        """Stops at every one of `_EPOCHS` up to `last` and gives its number."""
        for epoch in range(1, last + 1):
            order = torch.randperm(len(x_nr), generator=self.random).to(x_nr.device)
            for rows in order.split(_BATCH):
                self.optimiser.zero_grad()
                _loss(kind, offset_nC[rows] + self(x_nr[rows]), y_n[rows]).backward()
                self.optimiser.step()
            if epoch in _EPOCHS:
                yield epoch


def _loss(kind: Kind, said_nC: Tensor, y_n: Tensor) -> Tensor:
    if kind == "classes":
        return cross_entropy(said_nC, y_n)
    if kind == "multilabel":
        known = y_n != UNKNOWN
        return binary_cross_entropy_with_logits(said_nC[known], (y_n[known] == 1).float())
    return mse_loss(said_nC, y_n)
