"""What logistic solvers share: targets, the layout of their coefficients, loss, bound and fit. Knows labels and logits;
not features, steps or files.

Every problem minimises `mean cross-entropy over its known rows (nats) + strength / 2 * ||W||^2` with a free intercept,
as scikit-learn's LogisticRegression with C = 1 / (strength * rows). A task of two classes is one sigmoid column, one
of more a softmax; each label of a multi-label task is a sigmoid column and a problem of its own.

Where a class has no training row, or a label one value only, the minimum lies at infinity and is taken there: weights
of 0 and an intercept of minus or plus infinity, a probability of exactly 0 or 1. What has no known row at all gets
equal probabilities.

Legend: n training rows, m new rows, r rank of the basis, K classes of a task, C columns, P problems, T tasks, k classes
of a problem that have training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from htc_probe.extract.store import UNKNOWN


class Target(NamedTuple):
    y: np.ndarray
    """(n,) int from 0 to K - 1, -1 where unknown; or (n, K) uint8 of 0, 1 and 255 (unknown)."""
    classes: int
    """K, or 0 for a multi-label task."""


class Fit(NamedTuple):
    """The tasks of one call, in its order."""

    strength: float
    weights: Tensor
    """(r, C), in the basis."""
    intercepts: Tensor
    """(C,); infinite where the module's docstring says so."""
    columns: tuple[slice, ...]
    """Of each task: one for two classes, else one a class or label."""
    classes: tuple[int, ...]
    """K of each task, 0 for multi-label."""
    objective: np.ndarray
    """(T,) float64; of a multi-label task the mean over its labels."""
    gap: np.ndarray
    """(T,) float64: the objective exceeds its minimum by no more than this share of it; for every label."""

    @property
    def excess(self) -> np.ndarray:
        """(T,) the same in nats. Of classes that a weak penalty lets be told apart without error, objective and minimum
        are next to 0 and no share of them is proved; but no objective is further from its minimum than from 0.
        """
        return np.minimum(self.gap, 1) * self.objective


class Group(NamedTuple):
    """Problems of equal k side by side."""

    first: int
    """Column."""
    problems: int
    k: int
    """1 for sigmoid columns."""

    def view(self, columns: Tensor) -> Tensor:
        """(C, ...) -> (problems, k, ...), without a copy."""
        part = columns[self.first : self.first + self.problems * self.k]
        return part.view(self.problems, self.k, *part.shape[1:])


@dataclass
class Block:
    """Problems that are solved together; every tensor has a row a column or a problem."""

    problem: Tensor
    """(P,) numbers of the problems within the layout."""
    column: Tensor
    """(C,) numbers of the columns within the layout."""
    owner: Tensor
    """(C,) each column's problem, within the block."""
    groups: tuple[Group, ...]

    def sums(self, values: Tensor) -> Tensor:
        """(C,) -> (P,) float64."""
        sums = torch.zeros(len(self.problem), dtype=torch.float64, device=values.device)
        return sums.index_add_(0, self.owner, values.double())

    def spread(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """(P,) -> (C, 1)."""
        return values.to(dtype)[self.owner][:, None]

    def keep(self, stay: Tensor) -> tuple[Block, Tensor]:
        """The block of the problems where `stay` (P,) holds, and its columns within this one (C',)."""
        columns = stay[self.owner].nonzero()[:, 0]
        owner = (stay.cumsum(0) - 1)[self.owner[columns]]
        groups, problem, first, counts = [], 0, 0, stay.tolist()
        for group in self.groups:
            left = sum(counts[problem : problem + group.problems])
            problem += group.problems
            if left:
                groups.append(Group(first, left, group.k))
                first += left * group.k
        return Block(self.problem[stay], self.column[columns], owner, tuple(groups)), columns


class Problem(NamedTuple):
    """What converges on its own: a task, or one label of a multi-label task."""

    task: int
    columns: np.ndarray
    """(k,) of its classes that have training rows, within the columns of all tasks."""
    y: np.ndarray
    """(k, n) bool, False where unknown."""
    known: np.ndarray
    """(n,) bool"""


@dataclass(frozen=True)
class Layout:
    """Where the coefficients of tasks lie: all their columns, and those that there is something to solve of, which
    stand in `block` by the number of classes.
    """

    targets: Sequence[Target]
    columns: tuple[slice, ...]
    """Of each task, within all columns."""
    intercepts: Tensor
    """Of all columns; those that are solved hold 0."""
    block: Block
    task: Tensor
    """(P,)"""
    place: Tensor
    """(C,) of the columns solved, within all columns."""

    @classmethod
    def of(
        cls, targets: Sequence[Target], rows: int, labels: Callable[[Target], np.ndarray], like: Tensor
    ) -> tuple[Layout, list[Problem]]:
        """The layout and its problems, in the order of their columns.

        `labels` gives what of a target's y decides, each value that training rows have at least once; `like` has the
        type and device of the coefficients. Raises ValueError for a target that has not `rows` rows, or labels that it
        cannot have.
        """
        problems: list[Problem] = []
        columns: list[slice] = []
        intercepts, first = [np.zeros(0)], 0
        for task, target in enumerate(targets):
            if len(target.y) != rows:
                raise ValueError(f"target {task} has {len(target.y)} rows, the features have {rows}")
            own, intercept = _problems(task, labels(target), target.classes, first)
            problems += own
            intercepts.append(intercept)
            columns.append(slice(first, first + len(intercept)))
            first += len(intercept)
        problems.sort(key=lambda problem: len(problem.columns))
        sizes = np.array([len(problem.columns) for problem in problems], dtype=int)
        groups, first = [], 0
        for k in np.unique(sizes).tolist():
            groups.append(Group(first, int((sizes == k).sum()), k))
            first += k * groups[-1].problems

        def index(numbers: Sequence[int] | np.ndarray) -> Tensor:
            return torch.as_tensor(np.asarray(numbers, dtype=np.int64), device=like.device)

        owner = index(np.repeat(np.arange(len(problems)), sizes))
        block = Block(index(range(len(problems))), index(range(first)), owner, tuple(groups))
        task_P = index([problem.task for problem in problems])
        place = index([column for problem in problems for column in problem.columns])
        all_intercepts = torch.as_tensor(np.concatenate(intercepts), device=like.device).to(like)
        return cls(targets, tuple(columns), all_intercepts, block, task_P, place), problems

    def wanted(self, tasks: Sequence[int]) -> Tensor:
        """(P,) bool: the problems of these tasks."""
        return torch.isin(self.task, torch.tensor(tasks, dtype=torch.long, device=self.task.device))

    def start(self, share: Tensor) -> Tensor:
        """(C,) the best intercepts without weights, from the share of known rows that have each class or label."""
        start = share.logit()
        for group in self.block.groups:
            if group.k > 1:
                logs = group.view(share.log())
                group.view(start).copy_(logs - logs.mean(1, keepdim=True))
        return start

    def fit(self, w: Tensor, strength: float, tasks: Sequence[int], objective: Tensor, gap: Tensor) -> Fit:
        """Of `tasks`, from the solved coefficients w (C, r + 1), the last column the intercepts, and what is known of
        every problem: `objective` and `gap` (P,) float64.
        """
        coefficients = w.new_zeros(len(self.intercepts), w.shape[1])
        coefficients[:, -1] = self.intercepts
        coefficients[self.place] = w
        picked, columns, objectives, gaps = [w[:0]], [], [], []
        first = 0
        for task in tasks:
            own = self.columns[task]
            picked.append(coefficients[own])
            columns.append(slice(first, first := first + own.stop - own.start))
            solved = self.task == task
            labels = 1 if self.targets[task].classes else max(1, own.stop - own.start)
            objectives.append(float(objective[solved].sum()) / labels)
            gaps.append(float(gap[solved].max()) if solved.any() else 0.0)
        chosen = torch.cat(picked)
        classes = tuple(self.targets[task].classes for task in tasks)
        parts = strength, chosen[:, :-1].T, chosen[:, -1], tuple(columns), classes
        return Fit(*parts, np.array(objectives), np.array(gaps))


def probabilities(groups: Sequence[Group], z: Tensor, known: Tensor | None) -> Tensor:
    """(C, n), 0 on unknown rows, which then count nowhere."""
    p = torch.empty_like(z)
    for group in groups:
        if group.k == 1:
            torch.sigmoid(group.view(z), out=group.view(p))
        else:
            torch.softmax(group.view(z), 1, out=group.view(p))
    return p if known is None else p.mul_(known)


def jacobian_(groups: Sequence[Group], p: Tensor, u: Tensor) -> Tensor:
    """u <- (diag p - p p') u, row by row, with the probabilities p."""
    for group in groups:
        part, share = group.view(u), group.view(p)
        if group.k == 1:
            part.mul_(share).addcmul_(part, share, value=-1)
        else:
            part.mul_(share)
            part.addcmul_(share, part.sum(1, keepdim=True), value=-1)
    return u


def newton_weights(p: Tensor) -> Tensor:
    """(C,) sums over the rows of p (1 - p)."""
    return p.sum(1) - torch.linalg.vector_norm(p, dim=1).square()


def losses(
    groups: Sequence[Group], z: Tensor, y: Tensor, known: Tensor | None, dtype: torch.dtype, sums: torch.dtype
) -> Tensor:
    """(P,) cross-entropies (nats) of logits z and labels y (C, n), computed in `dtype` and summed in `sums`."""
    parts = []
    for group in groups:
        logits, is_class = group.view(z).to(dtype), group.view(y)
        if group.k == 1:
            loss = torch.nn.functional.softplus(torch.where(is_class > 0, -logits, logits))[:, 0]
        else:
            loss = torch.logsumexp(logits, 1) - (logits * is_class).sum(1)
        if known is not None:
            loss *= group.view(known)[:, 0]
        parts.append(loss.sum(1, dtype=sums))
    return torch.cat([z.new_zeros(0, dtype=sums), *parts])


def bound(
    block: Block, g: Tensor, slope: Tensor, residual: Tensor, top: Tensor, trace: Tensor, strength: float
) -> Tensor:
    """(P,) how far an objective lies above its minimum at most, from its gradient g (C, r) by the weights.

    With the intercepts at their optimum the objective is a strongly convex function of the weights, so that
    |g|^2 / (2 strength) bounds the gap; it is the Fenchel gap there. Two allowances make it hold for what was computed.
    What is left of the intercepts' gradient b, with Hessian H, is worth `slope`, b'H^-1 b, at most (twice the quadratic
    model, whose error is tiny so near the optimum), and moves g by no more than sqrt(top eigenvalue * b'H^-1 b / 2).
    Rounding moves g by about the precision times |x| |residual| (1 + |z|) / n, norms over the rows: sqrt(`trace` of x'x
    * `residual`) times the precision; an estimate from above, as the errors of many rows cancel.
    """
    moved = (top * slope / 2).sqrt()
    rounding = (trace * residual).sqrt() * torch.finfo(g.dtype).eps
    length = block.sums(g.square().sum(1)).sqrt()
    return (length + moved + rounding).square() / (2 * strength) + slope


def label_columns(target: Target) -> np.ndarray:
    """(n, C) 0 and 1, NaN where unknown: a column a class or label, one for two classes."""
    if not target.classes:
        return np.where(target.y == UNKNOWN, np.nan, target.y)
    columns = np.arange(1 if target.classes == 2 else 0, target.classes)
    return np.where((target.y < 0)[:, None], np.nan, target.y[:, None] == columns)


def log_probabilities(fit: Fit, x_mr: Tensor) -> list[np.ndarray]:
    """Of each task, for rows in the basis: (m, K) log probabilities (nats), or (m, labels) logits if multi-label.

    float64; minus infinity for a class that no training row had, as in the module's docstring.
    """
    z = torch.addmm(fit.intercepts, x_mr, fit.weights).double()
    parts = []
    for columns, classes in zip(fit.columns, fit.classes, strict=True):
        part = z[:, columns]
        if classes == 2:
            part = torch.nn.functional.logsigmoid(torch.cat([-part, part], 1))
        elif classes:
            part = part.log_softmax(1)
        parts.append(part.cpu().numpy())
    return parts


def _problems(task: int, y: np.ndarray, classes: int, first: int) -> tuple[list[Problem], np.ndarray]:
    """What there is to solve of a task, and the intercepts (K or 1,) of what is not."""
    if not classes:
        known, positive = y != UNKNOWN, y == 1
        wrong = known & (y != 0) & ~positive
        if wrong.any():
            raise ValueError(f"target {task} has the label {y[wrong][0]}; expected 0, 1 or {UNKNOWN}")
        labels = [(positive[:, label], known[:, label]) for label in range(y.shape[1])]
    else:
        known = y >= 0
        if y.max(initial=-1) >= classes:
            raise ValueError(f"target {task} has the class {y.max()}; expected less than {classes}")
        if classes != 2:
            present = np.unique(y[known])
            intercepts = np.full(classes, -np.inf if len(present) else 0.0)
            intercepts[present] = 0
            several = [Problem(task, first + present, y == present[:, None], known)] if len(present) > 1 else []
            return several, intercepts
        labels = [(y == 1, known)]
    problems, intercepts = [], np.zeros(len(labels))
    for label, (positive_n, known_n) in enumerate(labels):
        count, total = int(positive_n.sum()), int(known_n.sum())
        if 0 < count < total:
            problems.append(Problem(task, np.array([first + label]), positive_n[None], known_n))
        elif total:
            intercepts[label] = np.inf if count else -np.inf
    return problems, intercepts
