"""The online codelength of labels given a representation: how many bits send them, learning on the way.

Knows arrays and, in `probes_of` alone, solvers; not runs, names or files. Sender and receiver share the
representation and the questions; the labels are sent in blocks, each with the probe that the labels sent before it
train (Voita & Titov, EMNLP 2020; Blier & Ollivier, NeurIPS 2018):

    L = t_1 log2 K - sum over i of log2 p_i(labels of block i + 1 | representation),    compression = n log2 K / L

with p_i trained on the first t_i rows. A representation from which little data is enough to read a label gets a
shorter code than one that needs much, though both may end at the same accuracy. Fractions and formula are the
paper's. Ours: blocks are whole groups in random order; the strength of p_i is the one that would have coded the block
before best (of equals, and for the first, the strongest), so that nothing is chosen with labels not yet sent; and bits
throughout (the authors' notebook adds the probes' losses, in nats, to the first block's bits). Not the one with the
shortest code of all blocks so far: few rows want a strong penalty and many a weak one, and what a weak one lost early
would keep it from the later, larger blocks.

What is sent for a row: a class, log2 K bits if every one is as likely; one bit for every known label of a multi-label
task; a number as one of its distinct values if these are no more than LEVELS, else to 1 / LEVELS of its range
(both known to the receiver, as K is), by the Gaussian around the probe's prediction. A circular value is sent so too,
its range the whole circle, by von Mises' distribution. The compression of a number
depends on that resolution: compare it between representations, not with classes.

Legend: n rows, t of them sent before, m of the next block, K classes, C labels, S strengths.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import special
from torch import Tensor

from htc_probe.extract.store import is_known
from htc_probe.probes.inputs import circular
from htc_probe.probes.inputs.labels import Labels, by_solver
from htc_probe.probes.scores.metrics import Gaussian, Prediction, VonMises
from htc_probe.probes.solvers import angles, ridge
from htc_probe.probes.solvers.basis import Basis
from htc_probe.probes.solvers.newton import Path
from htc_probe.probes.solvers.problems import Target, log_probabilities
from htc_probe.probes.study.strengths import FIRST, LADDER

FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
LEVELS = 256
_STRENGTHS = LADDER[FIRST.start : LADDER.index(1e-8) + 1 : 2]
"""Of logistic probes: the decades from 10^2 to 10^-8."""
_ENOUGH = 32  # rows from which ridge has something to point at
_WEAK = 1e-5
"""Weaker ones are fitted where ridge on the labels sent points at them; elsewhere this one stands for them."""
_TOLERANCE = 1e-5
"""Of the share by which a fit's objective may exceed its minimum: less than a thousandth of the code."""


class Codelength(NamedTuple):
    row_bits: np.ndarray
    """(n,) what each row costs, 0 where nothing is known: pairs up with another representation's on the same seed."""
    row_uniform: np.ndarray
    """(n,) what each row costs in the uniform code, to which every label is as likely as any other."""
    choices: tuple[int, ...]
    """The index of the strength chosen for each block after the first."""

    @property
    def bits(self) -> float:
        """L, the whole code."""
        return float(self.row_bits.sum())

    @property
    def uniform(self) -> float:
        """The whole uniform code."""
        return float(self.row_uniform.sum())

    @property
    def compression(self) -> float:
        """1: no shorter than if every label were as likely. Uneven labels give more than 1 without features: the code
        of permuted labels says how much.
        """
        return self.uniform / self.bits


Predict = Callable[[np.ndarray, np.ndarray], Sequence[Sequence[Prediction]]]
"""(training rows, other rows) -> for every task, the predictions for the others by candidate strength, strong to weak;
as many candidates in every call.
"""


def blocks(groups: np.ndarray, seed: int, fractions: Sequence[float] = FRACTIONS) -> list[np.ndarray]:
    """The rows of each block: groups in random order, cut where they first reach each fraction of the rows. A block
    that would be empty, as the smallest are with few rows or large groups, is left out.
    """
    names, of_row, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    reached = np.cumsum(sizes[order])
    ends = np.unique(np.searchsorted(reached, np.asarray(fractions) * len(groups) - 1e-6) + 1)
    block_of_group = np.empty(len(names), dtype=int)
    block_of_group[order] = np.searchsorted(ends, np.arange(len(names)), side="right")
    return [np.flatnonzero(block_of_group[of_row] == number) for number in range(len(ends))]


def online(
    tasks: Sequence[Labels], groups: np.ndarray, predict: Predict, seed: int, fractions: Sequence[float] = FRACTIONS
) -> list[Codelength]:
    """The online code of every task, all of them on the same blocks; fractions end at 1."""
    sent, *later = blocks(groups, seed, fractions)
    senders = [_Sender(task) for task in tasks]
    row_bits = [np.zeros(len(groups)) for _ in tasks]
    for bits, sender in zip(row_bits, senders, strict=True):
        bits[sent] = sender.uniform[sent]
    before: list[np.ndarray | float] = [0.0] * len(tasks)
    """(S,) what each strength took for the block before."""
    choices: list[list[int]] = [[] for _ in tasks]
    for block in later:
        for number, (sender, candidates) in enumerate(zip(senders, predict(sent, block), strict=True)):
            bits_Sm = np.stack([sender.bits(prediction, sent, block) for prediction in candidates])
            choice = int(np.argmin(np.broadcast_to(before[number], len(bits_Sm))))
            row_bits[number][block] = bits_Sm[choice]
            choices[number].append(choice)
            before[number] = bits_Sm.sum(1)
        sent = np.concatenate([sent, block])
    uniform = [sender.uniform for sender in senders]
    return list(map(Codelength, row_bits, uniform, map(tuple, choices)))


class _Sender:
    """Bits of one task's labels. A prediction is mixed with the uniform one, of weight 1 / (t + 1) after t labels:
    so a class not seen yet costs log2(K (t + 1)) bits and not infinitely many, and a probe that is always sure and
    right pays less than 1.5 bits for it in a block of t rows.
    """

    def __init__(self, task: Labels):
        self.kind, self.y, self.known = task.kind, task.y, is_known(task.kind, task.y)
        if task.kind == "multilabel":
            self.options = 2
        elif task.kind == "classes":
            self.options = task.n_classes
        else:
            values = np.unique(task.y[self.known])
            few = len(values) <= LEVELS
            if task.kind == "circular":
                # Arcs, each of which ends where the next one begins.
                before = np.append(values[-1] - task.period, values[:-1])
                starts = (before + values) / 2 if few else np.linspace(0, task.period, LEVELS, endpoint=False)
                self.edges = np.append(starts, starts[0] + task.period)
                self.options = len(starts)
                self.uniform = self.known * np.log2(self.options)
                return
            # Cells of the line, the outer ones open, so that a Gaussian's shares of them add up to 1.
            inner = (values[1:] + values[:-1]) / 2 if few else np.linspace(values[0], values[-1], LEVELS + 1)[1:-1]
            self.edges = np.concatenate([[-np.inf], inner, [np.inf]])
            self.options = len(self.edges) - 1
        self.uniform = self.known.reshape(len(task.y), -1).sum(1) * np.log2(self.options)

    def bits(self, prediction: Prediction, sent: np.ndarray, block: np.ndarray) -> np.ndarray:
        """(m,) for the rows of `block`."""
        y, known = self.y[block], self.known[block]
        if isinstance(prediction, Gaussian):
            cell = np.searchsorted(self.edges, np.where(known, y, 0), side="right") - 1
            ends = np.stack([self.edges[cell], self.edges[cell + 1]])
            low, high = special.ndtr((ends - prediction.mean) / prediction.scale)
            chance = high - low
        elif isinstance(prediction, VonMises):
            cell = np.searchsorted(self.edges, np.where(known, y, 0), side="right") - 1
            cell %= self.options
            low, high = self.edges[cell], self.edges[cell + 1]
            chance = circular.share(low, high, prediction.mean, prediction.concentration, prediction.period)
        elif self.kind == "multilabel":
            chance = special.expit(np.where(y == 1, 1.0, -1.0) * prediction)
        else:
            chance = np.exp(np.take_along_axis(prediction, np.maximum(y, 0)[:, None], 1)[:, 0].astype(np.float64))
        uniform_share = 1 / (self.known[sent].sum(0) + 1)
        bits = -np.log2((1 - uniform_share) * chance + uniform_share / self.options)
        return np.where(known, bits, 0).reshape(len(block), -1).sum(1)


# ---- probes of a representation


def probes_of(
    x_nD: np.ndarray,
    tasks: Sequence[Labels],
    groups: np.ndarray,
    strengths: Sequence[float] = _STRENGTHS,
    device: str = "cpu",
) -> Predict:
    """Linear probes trained on the rows sent: logistic ones side by side along `strengths` (strong to weak), numbers by
    ridge, whose one strength and deviation come from leaving out groups of the rows sent.
    """
    logistic, numbers, turning = by_solver(tasks)

    def predict(train: np.ndarray, test: np.ndarray) -> list[list[Prediction]]:
        made: list[list[Prediction]] = [[] for _ in tasks]
        if logistic:
            basis = Basis.fit(x_nD[train], device=device)
            test_mr = basis.rotate(x_nD[test])
            targets = [Target(tasks[i].y[train], tasks[i].n_classes) for i in logistic]
            path = Path(basis.train, basis.eigenvalues, targets, tolerance=_TOLERANCE)
            pointed = ridge.brackets(basis, targets, LADDER) if len(train) >= _ENOUGH else [() for _ in targets]
            weakest = [min(of, default=np.inf) for of in pointed]
            for strength in strengths:
                here = [t for t, least in enumerate(weakest) if strength >= _WEAK or least < _WEAK]
                fitted = log_probabilities(path.advance(strength, here), test_mr)
                said = dict(zip(here, fitted, strict=True))
                for t, i in enumerate(logistic):
                    made[i].append(said[t] if t in said else made[i][-1])
        if numbers or turning:
            # Centred in double precision too, which leaving out all but one group of a few rows needs.
            basis = Basis.fit(x_nD[train].astype(np.float64), device=device, dtype=torch.float64)
            test_mr = basis.rotate(x_nD[test].astype(np.float64))
        if numbers:
            y_nT = np.stack([tasks[i].y for i in numbers], 1)
            for i, gaussian in zip(numbers, _gaussians(basis, test_mr, y_nT, groups, train), strict=True):
                made[i].append(gaussian)
        for i in turning:
            made[i].append(_von_mises(basis, test_mr, tasks[i], groups, train))
        return made

    return predict


def _gaussians(
    basis: Basis, test_mr: Tensor, y_nT: np.ndarray, groups: np.ndarray, train: np.ndarray
) -> Iterator[Gaussian]:
    """What is predicted of every number: where it is known for fewer than two groups yet, the middle of its range."""
    lowest, highest = np.nanmin(y_nT, 0), np.nanmax(y_nT, 0)
    mean_mT = np.tile((lowest + highest) / 2, (len(test_mr), 1))
    scale_T = highest - lowest
    known_nT = np.isfinite(y_nT[train])
    enough = [t for t, known in enumerate(known_nT.T) if len(np.unique(groups[train][known])) >= 2]
    if enough:
        y_kT = y_nT[train][:, enough]
        held_out_SkT = ridge.leave_out(basis, y_kT, ridge.STRENGTHS, groups[train])
        variance_ST = ridge.residual_variance(held_out_SkT, y_kT)
        fit = ridge.fit(basis, y_kT, np.take(ridge.STRENGTHS, variance_ST.argmin(0)))
        mean_mT[:, enough] = ridge.predict(fit, test_mr)
        scale_T[enough] = np.maximum(np.sqrt(variance_ST.min(0)), 1e-6 * scale_T[enough])
    return (Gaussian(mean_m, np.full(len(mean_m), scale)) for mean_m, scale in zip(mean_mT.T, scale_T, strict=True))


def _von_mises(basis: Basis, test_mr: Tensor, task: Labels, groups: np.ndarray, train: np.ndarray) -> VonMises:
    """What is predicted of a circular task: anything alike where it is known for fewer than two groups yet."""
    known = np.isfinite(task.y[train])
    if len(np.unique(groups[train][known])) < 2:
        return VonMises(np.zeros(len(test_mr)), np.zeros(len(test_mr)), task.period)
    return angles.fit(basis, task.y[train], task.period, groups[train]).predict(test_mr)
