"""L2-penalised logistic regression of many tasks at once. Knows arrays; not folds, scores or files.

Every problem minimises `mean cross-entropy over its known rows (nats) + strength / 2 * ||W||^2` with a free intercept,
as scikit-learn's LogisticRegression with C = 1 / (strength * rows). A task of two classes is one sigmoid column, one
of more a softmax; each label of a multi-label task is a sigmoid column and a problem of its own.

The method is Newton's, its steps found by conjugate gradients. The features come in the eigenbasis of their Gram
matrix, where the Hessian nearly falls apart into one small matrix over the classes a direction, whose inverse is the
preconditioner. All problems lie side by side in one matrix product, which they leave as they converge. Gradients and
steps are computed in the precision of the features; Hessian products may take bfloat16 copies of them, which changes
the number of steps and not where they lead. A line search costs no product, because logits are affine in the step.

Where a class has no training row, or a label one value only, the minimum lies at infinity and is taken there: weights
of 0 and an intercept of minus or plus infinity, a probability of exactly 0 or 1. What has no known row at all gets
equal probabilities.

Legend: n training rows, m new rows, r rank of the basis, K classes of a task, C columns, P problems, T tasks, k classes
of a problem that have training rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from htc_probe.probes.solvers.basis import Basis

UNKNOWN = 255  # of a label of a multi-label task

_MAX_STEPS = 50
_MAX_PRODUCTS = 60
"""Hessian products of one step."""
_MAX_TRIALS = 12
"""Lengths of one step."""
_SLOPE = 0.1
"""Where a whole step goes too far, the slope at the end of the step is less than this share of that at its start."""
_WORTH_HALF = 2**22
"""Numbers in the rows from which bfloat16 copies pay,"""
_FEW_COLUMNS = 8
"""and columns in a product."""
_FORCING = 0.07
"""A step near the optimum reduces the preconditioned gradient to this."""


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


class _Group(NamedTuple):
    """Problems of equal k side by side."""

    first: int
    """Column."""
    problems: int
    k: int
    """1 for sigmoid columns."""

    def of(self, columns: Tensor) -> Tensor:
        """(C, n) -> (problems, k, n), a view."""
        part = columns[self.first : self.first + self.problems * self.k]
        return part.view(self.problems, self.k, *part.shape[1:])


@dataclass
class _Block:
    """Problems that are solved together; every tensor has a row a column or a problem."""

    problem: Tensor
    """(P,) numbers of the problems within the path."""
    column: Tensor
    """(C,) numbers of the columns within the path."""
    owner: Tensor
    """(C,) each column's problem, within the block."""
    groups: tuple[_Group, ...]

    def sums(self, values: Tensor) -> Tensor:
        """(C,) -> (P,) float64."""
        return torch.zeros(len(self.problem), dtype=torch.float64, device=values.device).index_add_(
            0, self.owner, values.double()
        )

    def spread(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """(P,) -> (C, 1)."""
        return values.to(dtype)[self.owner][:, None]

    def keep(self, stay: Tensor) -> tuple[_Block, Tensor]:
        """The block of the problems where `stay` (P,) holds, and its columns within this one (C',)."""
        columns = stay[self.owner].nonzero()[:, 0]
        owner = (stay.cumsum(0) - 1)[self.owner[columns]]
        groups, problem, first, counts = [], 0, 0, stay.tolist()
        for group in self.groups:
            left = sum(counts[problem : problem + group.problems])
            problem += group.problems
            if left:
                groups.append(_Group(first, left, group.k))
                first += left * group.k
        return _Block(self.problem[stay], self.column[columns], owner, tuple(groups)), columns


def _probabilities(groups: Sequence[_Group], z: Tensor, known: Tensor | None) -> Tensor:
    """(C, n), 0 on unknown rows, which then count nowhere."""
    p = torch.empty_like(z)
    for group in groups:
        if group.k == 1:
            torch.sigmoid(group.of(z), out=group.of(p))
        else:
            torch.softmax(group.of(z), 1, out=group.of(p))
    return p if known is None else p.mul_(known)


def _jacobian_(groups: Sequence[_Group], p: Tensor, u: Tensor) -> Tensor:
    """u <- (diag p - p p') u, row by row, with the probabilities p."""
    for group in groups:
        part, share = group.of(u), group.of(p)
        if group.k == 1:
            part.mul_(share).addcmul_(part, share, value=-1)
        else:
            part.mul_(share)
            part.addcmul_(share, part.sum(1, keepdim=True), value=-1)
    return u


def _newton_weights(p: Tensor) -> Tensor:
    """(C,) sums over the rows of p (1 - p)."""
    return p.sum(1) - torch.linalg.vector_norm(p, dim=1).square()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(C, n), (C, n) -> (C,)"""
    return (a * b).sum(1)


class _Rows:
    """Products with the training rows, which may be several pieces of a matrix. w (C, r + 1) ends in the intercept."""

    def __init__(self, x_nr: Tensor, segments: Sequence[slice], half: Tensor | None) -> None:
        self.pieces = [x_nr[segment] for segment in segments]
        self.half = None if half is None else [half[segment] for segment in segments]
        ends = np.cumsum([0, *(len(piece) for piece in self.pieces)]).tolist()
        self.spans = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
        self.n = ends[-1]

    def logits(self, w: Tensor) -> Tensor:
        """(C, n): w'x + b."""
        out = w.new_empty(len(w), self.n)
        for span, piece in zip(self.spans, self.pieces, strict=True):
            torch.addmm(w[:, -1:], w[:, :-1], piece.T, out=out[:, span])
        return out

    def pull(self, v: Tensor) -> Tensor:
        """(C, n) -> (C, r + 1): the transpose of `logits`."""
        out = v.new_empty(len(v), self.pieces[0].shape[1] + 1)
        for i, (span, piece) in enumerate(zip(self.spans, self.pieces, strict=True)):
            out[:, :-1].addmm_(v[:, span], piece, beta=min(i, 1))
        out[:, -1] = v.sum(1)
        return out

    def coarse_logits(self, w: Tensor) -> Tensor:
        """`logits`, in bfloat16 where there is a copy of the rows."""
        if self.half is None:
            return self.logits(w)
        out, w16 = w.new_empty(len(w), self.n), w[:, :-1].bfloat16()
        for span, piece in zip(self.spans, self.half, strict=True):
            out[:, span] = w16 @ piece.T
        return out.add_(w[:, -1:])

    def coarse_pull(self, v: Tensor) -> Tensor:
        if self.half is None:
            return self.pull(v)
        out, v16 = v.new_empty(len(v), self.half[0].shape[1] + 1), v.bfloat16()
        for i, (span, piece) in enumerate(zip(self.spans, self.half, strict=True)):
            product = v16[:, span] @ piece
            if i:
                out[:, :-1] += product
            else:
                out[:, :-1] = product
        out[:, -1] = v.sum(1)
        return out


@dataclass
class _Live:
    """Where the problems that are being solved stand."""

    block: _Block
    w: Tensor
    """(C, r + 1), the last column the intercepts."""
    z: Tensor
    """(C, n) logits."""
    p: Tensor
    """(C, n) probabilities."""
    y: Tensor
    """(C, n) 0 or 1; 0 where unknown."""
    known: Tensor | None
    """(C, n) 0 or 1; None where all is known."""
    weight: Tensor
    """(C, 1) 1 / known rows."""
    objective: Tensor
    """(P,) float64, as good as stopping needs it."""
    close: Tensor
    """(P,) bool: the last step is expected to have reached the tolerance."""
    stuck: Tensor
    """(P,) bool: no length of the last step led down."""

    def keep(self, stay: Tensor) -> tuple[_Live, Tensor]:
        block, columns = self.block.keep(stay)
        w, z, p, y, weight = (t[columns] for t in (self.w, self.z, self.p, self.y, self.weight))
        known = None if self.known is None else self.known[columns]
        of_problem = self.objective[stay], self.close[stay], self.stuck[stay]
        return _Live(block, w, z, p, y, known, weight, *of_problem), columns


def _mean_curvature(live: _Live) -> list[Tensor]:
    """(problems, k, k) float64 of every group: the mean of diag p - p p', the Hessian of the intercepts; invertible."""
    found = []
    for group in live.block.groups:
        p, weight = group.of(live.p), group.of(live.weight.double())
        if group.k == 1:
            found.append((_newton_weights(p[:, 0]).double()[:, None, None] * weight).clamp_min(1e-12))
            continue
        between = (p @ p.mT).double().mul_(weight)
        between.diagonal(dim1=1, dim2=2).zero_()
        scale = between.sum((1, 2))[:, None, None] / group.k
        # The rows of the Hessian sum to 0; a constant in its null space makes it invertible, and the rest
        # where every row is predicted with certainty, so that it is 0.
        found.append(
            torch.diag_embed(between.sum(2))
            - between
            + scale / group.k
            + (1e-12 * scale + 1e-12) * torch.eye(group.k, dtype=torch.float64, device=p.device)
        )
    return found


@dataclass
class _Preconditioner:
    """The inverse of what the Hessian would be if features and probabilities were independent.

    Of a direction of the basis that is the mean of diag p - p p' times the direction's mean square, plus the penalty:
    diagonal in the eigenvectors of the mean.
    """

    groups: tuple[_Group, ...]
    turns: list[Tensor | None]
    """(problems, k, k) eigenvectors of every group; None where k is 1."""
    diagonal: Tensor
    """(C, r + 1)"""

    @classmethod
    def of(cls, live: _Live, scale: Tensor, penalty: Tensor) -> _Preconditioner:
        turns: list[Tensor | None] = []
        values = []
        for group, mean in zip(live.block.groups, _mean_curvature(live), strict=True):
            value, turn = torch.linalg.eigh(mean.cpu()) if group.k > 1 else (mean, None)  # small
            values.append(value.flatten().to(scale))
            turns.append(None if turn is None else turn.to(scale))
        diagonal = torch.cat(values)[:, None].clamp_min_(1e-10) * scale + penalty
        return cls(live.block.groups, turns, diagonal)

    def __call__(self, r: Tensor) -> Tensor:
        """(C, r + 1) -> the same."""
        out = torch.empty_like(r)
        for group, turn in zip(self.groups, self.turns, strict=True):
            part, diagonal = group.of(r), group.of(self.diagonal)
            if turn is None:
                torch.div(part, diagonal, out=group.of(out))
            else:
                torch.matmul(turn, (turn.mT @ part).div_(diagonal), out=group.of(out))
        return out

    def keep(self, block: _Block, stay: Tensor, columns: Tensor) -> _Preconditioner:
        """That of `block`: the problems where `stay` (P,) holds and their `columns`."""
        parts = stay.split([group.problems for group in self.groups])
        pairs = zip(self.turns, parts, strict=True)
        turns = [None if turn is None else turn[part] for turn, part in pairs if part.any()]
        return _Preconditioner(block.groups, turns, self.diagonal[columns])


class Path:
    """Tasks on the same rows, solved at one strength after another.

    `x_nr` and `eigenvalues` as a Basis has them, or any features and their mean squares; `y` of every target is given
    for all rows of `x_nr`, and `segments` says which of them are training rows (contiguous, so that nothing is copied).
    A step is the last where the gap that it leaves is predicted to be less than `tolerance` of the objective; float32
    reaches 1e-7. `half` is what `half_copy` gave for `x_nr`.

    Raises ValueError for a target that does not fit the rows or its own classes.
    """

    def __init__(
        self,
        x_nr: Tensor,
        eigenvalues: Tensor,
        targets: Sequence[Target],
        *,
        segments: Sequence[slice] | None = None,
        tolerance: float = 2e-7,
        half: Tensor | None = None,
    ) -> None:
        segments = [slice(0, len(x_nr))] if segments is None else segments
        self._rows, self._tolerance = _Rows(x_nr, segments, half), tolerance
        self._scale = torch.cat([eigenvalues.to(x_nr), x_nr.new_ones(1)])
        """(r + 1,) mean squares of the features and of the constant."""
        self._total = float(eigenvalues.double().sum()) * len(x_nr)
        """Squares of all features over all rows."""
        self._targets = targets
        self._columns: list[slice] = []
        problems, intercepts = [], [np.zeros(0)]
        first = 0
        for task, target in enumerate(targets):
            if len(target.y) != len(x_nr):
                raise ValueError(f"target {task} has {len(target.y)} rows, the features have {len(x_nr)}")
            y = np.concatenate([target.y[segment] for segment in segments])
            found, intercept = _problems(task, y, target.classes, first)
            problems += found
            intercepts.append(intercept)
            self._columns.append(slice(first, first + len(intercept)))
            first += len(intercept)
        self._lay_out(problems, np.concatenate(intercepts), x_nr)
        self._advanced = False

    def _lay_out(self, problems: list[_Problem], intercepts: np.ndarray, x: Tensor) -> None:
        problems = sorted(problems, key=lambda problem: len(problem.columns))
        sizes = np.array([len(problem.columns) for problem in problems], dtype=int)
        groups, first = [], 0
        for k in np.unique(sizes).tolist():
            groups.append(_Group(first, int((sizes == k).sum()), k))
            first += k * groups[-1].problems
        device, n = x.device, self._rows.n
        owner = torch.as_tensor(np.repeat(np.arange(len(problems)), sizes), device=device)
        self._block = _Block(
            torch.arange(len(problems), device=device), torch.arange(first, device=device), owner, tuple(groups)
        )
        self._task = torch.tensor([problem.task for problem in problems], dtype=torch.long, device=device)
        places = np.concatenate([np.zeros(0, dtype=int), *(problem.columns for problem in problems)])
        self._place = torch.as_tensor(places, device=device)
        """(C,) of the columns solved, within all columns of the tasks."""
        self._intercepts = torch.as_tensor(intercepts, device=device).to(x)
        y = np.concatenate([np.zeros((0, n), dtype=bool), *(problem.y for problem in problems)])
        known = np.stack([np.ones(n, dtype=bool), *(problem.known for problem in problems)])[1:]
        self._y = torch.as_tensor(y, device=device).to(x)
        counts = torch.as_tensor(known.sum(1), device=device)
        self._known = None if known.all() else torch.as_tensor(known, device=device).to(x)[owner]
        self._weight = (1 / counts.double())[owner][:, None].to(x)
        self._counts = counts.double()

        share = self._y.sum(1, dtype=torch.float64) / self._counts[owner]
        start = share.logit()
        for group in groups:
            if group.k > 1:
                logs = group.of(share.log())
                group.of(start).copy_(logs - logs.mean(1, keepdim=True))
        self._w = torch.cat([x.new_zeros(first, len(self._scale) - 1), start.to(x)[:, None]], 1)
        self._z = start.to(x)[:, None].repeat(1, n)
        self._earlier = self._w.clone(), self._z.clone()

    def advance(self, strength: float, tasks: Sequence[int] | None = None) -> Fit:
        """The fit of `tasks` (all of them) at a strength, from where the path left each of them.

        Strengths from strong to weak are fastest; any order is exact.
        """
        tasks = list(range(len(self._targets)) if tasks is None else tasks)
        wanted = torch.isin(self._task, torch.tensor(tasks, dtype=torch.long, device=self._task.device))
        objective, gap = torch.zeros(2, len(wanted), dtype=torch.float64, device=wanted.device)
        if wanted.any():
            self._solve(wanted, strength, objective, gap)
        return self._fit(strength, tasks, objective, gap)

    def _solve(self, wanted: Tensor, strength: float, objective: Tensor, gap: Tensor) -> None:
        """Newton steps for the problems where `wanted` (P,) holds; fills in their `objective` and `gap` (P,)."""
        penalty = torch.full_like(self._scale, strength)
        penalty[-1] = 0
        live = self._begin(wanted, strength)
        self._advanced = True
        curvature: list[Tensor] | None = None
        for step in range(_MAX_STEPS + 1):
            residual = live.p - live.y
            g = self._rows.pull(residual).mul_(live.weight).addcmul_(live.w, penalty)
            inverse = _Preconditioner.of(live, self._scale, penalty)
            energy = live.block.sums(_dot(g, inverse(g)))
            if curvature is not None:
                near = energy <= 2 * self._tolerance * live.objective * torch.where(live.close, 5, 0.2)
                done = near | live.stuck | (step == _MAX_STEPS)
                if done.any():
                    problems = live.block.problem
                    objective[problems], gap[problems] = self._certify(live, residual, g, strength, curvature)
                    self._settle(live.keep(done)[0])
                    live, columns = live.keep(~done)
                    if done.all():
                        break
                    g, energy, inverse = g[columns], energy[~done], inverse.keep(live.block, ~done, columns)
            s, forcing = self._newton_step(live, g, inverse, energy, penalty)
            self._move(live, g, s, forcing, strength)
            ends = live.close | live.stuck
            curvature = self._centre(live) if ends.any() or step == _MAX_STEPS - 1 else None

    def _begin(self, wanted: Tensor, strength: float) -> _Live:
        """From the best point in the span of the last two, found on cached logits."""
        block, columns = self._block.keep(wanted)
        w, z, y, weight = (t[columns] for t in (self._w, self._z, self._y, self._weight))
        known = None if self._known is None else self._known[columns]
        nothing = torch.zeros(len(block.problem), device=w.device)
        live = _Live(block, w, z, z, y, known, weight, nothing.double(), nothing.bool(), nothing.bool())
        if self._advanced:
            w1, z1 = self._earlier
            self._best_in_span(live, w1[columns], z1[columns], strength)
        live.p = _probabilities(block.groups, live.z, known)
        live.objective = self._objective(live, strength, z.dtype)
        return live

    def _best_in_span(self, live: _Live, w1: Tensor, z1: Tensor, strength: float) -> None:
        """live <- a0 live + a1 (w1, z1) by damped Newton steps in (a0, a1)."""
        block, w0, z0, dtype = live.block, live.w, live.z, live.z.dtype

        def mean(a: Tensor, b: Tensor) -> Tensor:
            return block.sums(_dot(a, b) * live.weight[:, 0])

        q00, q01, q11 = (strength * block.sums(_dot(a[:, :-1], b[:, :-1])) for a, b in ((w0, w0), (w0, w1), (w1, w1)))
        a0, a1 = torch.ones_like(q00), torch.zeros_like(q00)
        best0, best1, least = a0, a1, torch.full_like(q00, torch.inf)
        for _ in range(4):
            z = (z0 * block.spread(a0, dtype)).addcmul_(z1, block.spread(a1, dtype))
            p = _probabilities(block.groups, z, live.known)
            j0, j1 = (_jacobian_(block.groups, p, t.clone()) for t in (z0, z1))
            p -= live.y
            g0, g1 = mean(p, z0) + a0 * q00 + a1 * q01, mean(p, z1) + a0 * q01 + a1 * q11
            h00, h01, h11 = mean(j0, z0) + q00, mean(j0, z1) + q01, mean(j1, z1) + q11
            determinant = h00 * h11 - h01.square()
            apart = determinant > 1e-6 * h00 * h11
            d0, d1 = ((h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant)
            decrement = torch.where(apart, g0 * d0 + g1 * d1, torch.inf)
            better = decrement < least
            best0, best1, least = (
                torch.where(better, new, old) for new, old in ((a0, best0), (a1, best1), (decrement, least))
            )
            damp = 2 / torch.maximum(d0.abs(), d1.abs()).clamp_min(2)
            a0, a1 = torch.where(apart, a0 - damp * d0, a0), torch.where(apart, a1 - damp * d1, a1)
        c0, c1 = (block.spread(a, dtype) for a in (best0, best1))
        before = self._objective(live, strength, dtype)
        live.w, live.z = (w0 * c0).addcmul_(w1, c1), (z0 * c0).addcmul_(z1, c1)
        # Where rows are all but certain the quadratic model sees no bend and may lead anywhere.
        worse = block.spread(~(self._objective(live, strength, dtype) <= before), torch.bool)
        live.w, live.z = torch.where(worse, w0, live.w), torch.where(worse, z0, live.z)

    def _newton_step(
        self, live: _Live, g: Tensor, inverse: _Preconditioner, energy: Tensor, penalty: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The step (C, r + 1) by conjugate gradients, and how much of the energy is left (P,)."""
        block, p, weight = live.block, live.p, live.weight
        # Loose while far from the optimum, tight where the step is to be the last.
        relative = (energy / live.objective).clamp(max=1.0)
        forcing = relative.sqrt().clamp(_FORCING, 0.5).square()
        goal = forcing * energy
        s = torch.zeros_like(g)
        at: Tensor | None = None  # columns of this block that are still in the product; None: all
        r = -g
        direction = inverse(r)
        rho, going = energy.clone(), energy > 0
        for _ in range(_MAX_PRODUCTS):
            v = _jacobian_(block.groups, p, self._rows.coarse_logits(direction))
            product = self._rows.coarse_pull(v).mul_(weight).addcmul_(direction, penalty)
            bend = block.sums(_dot(direction, product))
            going &= bend > 0
            alpha = block.spread(torch.where(going, rho / bend, 0), g.dtype)
            if at is None:
                s.addcmul_(direction, alpha)
            else:
                s.index_add_(0, at, direction * alpha)
            r.addcmul_(product, alpha, value=-1)
            z = inverse(r)
            rho, last = block.sums(_dot(r, z)), rho
            going &= rho > goal
            if not going.any():
                break
            if going[block.owner].float().mean() < 0.8:
                block, columns = block.keep(going)
                at = columns if at is None else at[columns]
                inverse = inverse.keep(block, going, columns)
                r, z, direction, p, weight = (t[columns] for t in (r, z, direction, p, weight))
                rho, last, goal, going = rho[going], last[going], goal[going], going[going]
            beta = block.spread(torch.where(going, rho / last, 0), g.dtype)
            direction = z.addcmul_(direction, beta)
        return s, forcing

    def _move(self, live: _Live, g: Tensor, s: Tensor, forcing: Tensor, strength: float) -> None:
        """Moves along s to about where the objective is least, by a whole step at most.

        A row of large norm that a step throws from one side to the other is flat at both, so that the next step does
        not see what bends it and throws it back. To stop anywhere lower would leave it at one; near the least along
        the step it lies between them, where it bends.
        """
        block, dtype = live.block, live.z.dtype
        z, w = live.z, live.w
        u = self._rows.logits(w + s).sub_(z)  # a whole step then lands on logits without earlier rounding
        start = -block.sums(_dot(g, s))  # the slope at 0, without its sign
        labels = _dot(live.y, u)
        ws, ss = (strength * block.sums(_dot(a[:, :-1], s[:, :-1])) for a in (w, s))
        before, t = live.objective, (start > 0).double()
        low, high, slope_low, slope_high = torch.zeros_like(t), torch.ones_like(t), -start, start
        level = torch.maximum(_SLOPE * start, self._tolerance * before)
        for _ in range(_MAX_TRIALS):
            far = block.spread(t, dtype)
            live.z, live.w = torch.addcmul(z, u, far), torch.addcmul(w, s, far)
            live.p = _probabilities(block.groups, live.z, live.known)
            live.objective = self._objective(live, strength, dtype)
            # Near the optimum the fall drowns in rounding, and the slope does not: it is convex.
            slope = block.sums((_dot(live.p, u) - labels) * live.weight[:, 0]) + ws + t * ss
            falls = (live.objective <= before - 1e-4 * t * start) | (slope <= self._tolerance * before)
            found = falls & (slope <= level) & ((slope >= -level) | (t == 1)) | (start <= 0)
            if found.all():
                break
            over = ~(slope <= 0)  # also where a step into nowhere has none
            low, slope_low = torch.where(over, low, t), torch.where(over, slope_low, slope)
            high, slope_high = torch.where(over, t, high), torch.where(over, slope, slope_high)
            share = (slope_low / (slope_low - slope_high)).nan_to_num(0.2).clamp(0.2, 0.8)
            t = torch.where(found, t, low + share * (high - low))
        else:
            # Where rows are all but certain there is no bend to lead a step: better none than one that goes up.
            lost = ~(found | (live.objective <= before))
            if lost.any():
                stay = block.spread(lost, torch.bool)
                live.z, live.w = torch.where(stay, z, live.z), torch.where(stay, w, live.w)
                live.p = _probabilities(block.groups, live.z, live.known)
                live.objective = torch.where(lost, before, live.objective)
                live.stuck = lost
        relative = start / 2 / live.objective
        left = torch.where(t == 1, torch.maximum(forcing, (8 * relative).clamp(max=1.0)), 1.0)
        live.close = relative * left <= self._tolerance

    def _centre(self, live: _Live) -> list[Tensor]:
        """Brings the intercepts to their optimum; the inverse (problems, k, k) of their Hessian, of every group."""
        block = live.block
        inverses = [torch.linalg.inv(mean) for mean in _mean_curvature(live)]
        for _ in range(2):
            g = (live.p - live.y).sum(1, dtype=torch.float64).mul_(live.weight[:, 0])
            pairs = zip(block.groups, inverses, strict=True)
            shift = torch.cat([(inverse @ group.of(g)[..., None]).flatten() for group, inverse in pairs])
            shift = shift.clamp_(-1, 1).to(live.z.dtype)[:, None]
            live.w[:, -1:] -= shift
            live.z -= shift
            live.p = _probabilities(block.groups, live.z, live.known)
        return inverses

    def _certify(
        self, live: _Live, residual: Tensor, g: Tensor, strength: float, curvature: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Objectives (P,) and bounds on how far each lies above its minimum, as a share of it.

        With the intercepts at their optimum the objective is a strongly convex function of the weights, so that
        |g|^2 / (2 strength) bounds the gap; it is the Fenchel gap there. Two allowances make it hold for what was
        computed. What is left of the intercepts' gradient b, with Hessian H, is worth b'H^-1 b at most (twice the
        quadratic model, whose error is tiny so near the optimum), and moves g by no more than
        sqrt(top eigenvalue * b'H^-1 b / 2), in which the trace stands for the eigenvalue. Rounding moves g by about the
        precision times |x| |residual| (1 + |z|) / n, norms over the rows; an estimate from above, as the errors of many
        rows cancel.
        """
        block, weight = live.block, live.weight[:, 0]
        slope = torch.cat(
            [
                (group.of(g[:, -1]).double()[:, None] @ inverse @ group.of(g[:, -1]).double()[..., None]).flatten()
                for group, inverse in zip(block.groups, curvature, strict=True)
            ]
        )
        counts = self._counts[block.problem]
        squares = self._total / counts  # at least the top eigenvalue of the problem's own rows
        moved = (squares * slope / 2).sqrt()
        errors = block.sums((residual.square().sum(1) * weight) * (1 + live.z.square().sum(1) * weight))
        rounding = (squares * errors).sqrt() * torch.finfo(g.dtype).eps
        length = block.sums(g[:, :-1].square().sum(1)).sqrt()
        bound = (length + moved + rounding).square() / (2 * strength) + slope
        objective = self._objective(live, strength, torch.float64)
        # The objective is known to some roundings of the logits, so no bound claims less.
        return objective, bound / objective + 4 * torch.finfo(g.dtype).eps

    def _objective(self, live: _Live, strength: float, dtype: torch.dtype) -> Tensor:
        """(P,), computed in `dtype`."""
        losses = []
        for group in live.block.groups:
            z, y = group.of(live.z).to(dtype), group.of(live.y)
            if group.k == 1:
                loss = torch.nn.functional.softplus(torch.where(y > 0, -z, z))[:, 0]
            else:
                loss = torch.logsumexp(z, 1) - (z * y).sum(1)
            if live.known is not None:
                loss *= group.of(live.known)[:, 0]
            losses.append(loss.sum(1))
        penalty = 0.5 * strength * live.block.sums(live.w[:, :-1].to(dtype).square().sum(1))
        return torch.cat(losses) / self._counts[live.block.problem] + penalty

    def _settle(self, live: _Live) -> None:
        """Takes the problems' point as the path's last."""
        columns = live.block.column
        for earlier, last, new in zip(self._earlier, (self._w, self._z), (live.w, live.z), strict=True):
            earlier[columns] = last[columns]
            last[columns] = new

    def _fit(self, strength: float, tasks: Sequence[int], objective: Tensor, gap: Tensor) -> Fit:
        w = self._w.new_zeros(len(self._intercepts), len(self._scale))
        w[:, -1] = self._intercepts
        w[self._place] = self._w
        picked, columns, objectives, gaps = [], [], [], []
        first = 0
        for task in tasks:
            of_all = self._columns[task]
            picked.append(w[of_all])
            columns.append(slice(first, first + of_all.stop - of_all.start))
            first = columns[-1].stop
            mine = self._task == task
            labels = 1 if self._targets[task].classes else max(1, of_all.stop - of_all.start)
            objectives.append(float(objective[mine].sum()) / labels)
            gaps.append(float(gap[mine].max()) if mine.any() else 0.0)
        w = torch.cat([w[:0], *picked])
        return Fit(
            strength,
            w[:, :-1].T,
            w[:, -1],
            tuple(columns),
            tuple(self._targets[task].classes for task in tasks),
            np.array(objectives),
            np.array(gaps),
        )


class _Problem(NamedTuple):
    """What converges on its own: a task, or one label of a multi-label task."""

    task: int
    columns: np.ndarray
    """(k,) of its classes that have training rows, within the columns of all tasks."""
    y: np.ndarray
    """(k, n) bool, False where unknown."""
    known: np.ndarray
    """(n,) bool"""


def _problems(task: int, y: np.ndarray, classes: int, first: int) -> tuple[list[_Problem], np.ndarray]:
    """What there is to solve of a task, and the intercepts (K or 1,) of what is not."""
    if not classes:
        known, positive = y != UNKNOWN, y == 1
        wrong = known & (y != 0) & ~positive
        if wrong.any():
            raise ValueError(f"target {task} has the label {y[wrong][0]}; expected 0, 1 or {UNKNOWN}")
        pairs = [(positive[:, label], known[:, label]) for label in range(y.shape[1])]
    else:
        known = y >= 0
        if y.max(initial=-1) >= classes:
            raise ValueError(f"target {task} has the class {y.max()}; expected less than {classes}")
        if classes != 2:
            present = np.unique(y[known])
            intercepts = np.full(classes, -np.inf if len(present) else 0.0)
            intercepts[present] = 0
            found = [_Problem(task, first + present, y == present[:, None], known)] if len(present) > 1 else []
            return found, intercepts
        pairs = [(y == 1, known)]
    found, intercepts = [], np.zeros(len(pairs))
    for label, (positive_n, known_n) in enumerate(pairs):
        count, total = int(positive_n.sum()), int(known_n.sum())
        if 0 < count < total:
            found.append(_Problem(task, np.array([first + label]), positive_n[None], known_n))
        elif total:
            intercepts[label] = np.inf if count else -np.inf
    return found, intercepts


def log_probabilities(fit: Fit, x_mr: Tensor) -> list[np.ndarray]:
    """Of each task, for rows in the basis: (m, K) log probabilities (nats), or (m, labels) logits if multi-label.

    float64; minus infinity for a class that no training row had, as in the module's docstring.
    """
    z = torch.addmm(fit.intercepts, x_mr, fit.weights).double()
    found = []
    for columns, classes in zip(fit.columns, fit.classes, strict=True):
        part = z[:, columns]
        if classes == 2:
            part = torch.nn.functional.logsigmoid(torch.cat([-part, part], 1))
        elif classes:
            part = part.log_softmax(1)
        found.append(part.cpu().numpy())
    return found


def half_copy(x_nr: Tensor, columns: int = 64) -> Tensor | None:
    """The rows in bfloat16 where products with them are faster so, else None.

    The processor's instructions and the sizes decide, so that one machine always gives the same bytes: a stopwatch
    would let other work on the machine decide.
    """
    if x_nr.dtype != torch.float32 or x_nr.numel() < _WORTH_HALF or columns < _FEW_COLUMNS:
        return None
    return x_nr.bfloat16() if multiplies_bfloat16(x_nr.device) else None


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products have instructions of their own there; where they are emulated they are slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    features: dict = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch do not tell
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


# ---- scikit-learn estimators


class _Probe(ClassifierMixin, BaseEstimator):
    """What both estimators do: standardise, solve in the basis, and take the weights back to the features."""

    def __init__(self, strength: float = 0.01, *, tolerance: float = 2e-7, device: str = "cpu") -> None:
        self.strength = strength
        self.tolerance = tolerance
        self.device = device

    def _solve(self, X: np.ndarray, target: Target) -> None:
        """Sets coef_ (C, D), intercept_ (C,), objective_ and gap_, see Fit."""
        if not self.strength > 0:
            raise ValueError(f"strength={self.strength}; expected a number above 0")
        dtype = torch.float64 if X.dtype == np.float64 else torch.float32
        basis = Basis.fit(X, device=self.device, dtype=dtype)
        half = half_copy(basis.train, max(target.classes, target.y[0].size))
        path = Path(basis.train, basis.eigenvalues, [target], tolerance=self.tolerance, half=half)
        fit = path.advance(self.strength)
        self.coef_ = (basis.rotation @ fit.weights).T.double().cpu().numpy() * basis.scaler.factor
        self.intercept_ = fit.intercepts.double().cpu().numpy() - self.coef_ @ basis.scaler.mean
        self.objective_, self.gap_ = float(fit.objective[0]), float(fit.gap[0])

    def _logits(self, X: np.ndarray) -> np.ndarray:
        """(m, C) float64."""
        check_is_fitted(self)
        return validate_data(self, X, dtype=_FLOATS, reset=False).astype(np.float64) @ self.coef_.T + self.intercept_


class LogisticProbe(_Probe):
    """Logistic regression on standardised features, multinomial for more than two classes.

    It minimises `mean cross-entropy + strength / 2 * ||W||^2`: LogisticRegression(C=1 / (strength * n)) behind a
    StandardScaler. After `fit`: classes_, coef_ and intercept_ for the features as they come, objective_, and gap_, a
    bound on the share by which objective_ exceeds its minimum. One class is predicted without a fit.
    """

    def fit(self, X: np.ndarray, y: np.ndarray) -> LogisticProbe:
        """X (n, D) finite, y (n,) classes of any kind. Raises ValueError as scikit-learn does."""
        X, y = validate_data(self, X, y, dtype=_FLOATS)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        self._solve(X, Target(codes, len(self.classes_)))
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """(m, K) logits; (m,) that of the second of two classes."""
        z = self._logits(X)
        return z[:, 0] if len(self.classes_) == 2 else z

    def predict_log_proba(self, X: np.ndarray) -> np.ndarray:
        """(m, K), nats."""
        z = self._logits(X)
        if len(self.classes_) == 2:
            return -np.logaddexp(0, np.concatenate([z, -z], 1))
        z -= z.max(1, keepdims=True)
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """(m, K)"""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(m,) the likeliest classes."""
        likeliest = self.predict_log_proba(X).argmax(1)
        return self.classes_[likeliest]


class MultilabelProbe(_Probe):
    """One logistic regression a label, all at once, with unknown labels left out; otherwise as LogisticProbe.

    As scikit-learn's own, it takes two classes of any kind (y of one dimension) as the one-label case.
    """

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        tags.classifier_tags.multi_class = False
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: np.ndarray, y: np.ndarray) -> MultilabelProbe:
        """X (n, D) finite, y (n, labels) of 0, 1 and 255 where unknown. Raises ValueError as scikit-learn does."""
        X, y = validate_data(self, X, y, dtype=_FLOATS, multi_output=True)
        self._single = y.ndim == 1
        if self._single:
            check_classification_targets(y)
            self.classes_, y = np.unique(y, return_inverse=True)
            if len(self.classes_) > 2:
                raise ValueError(
                    "Only binary classification is supported. The type of the target is multiclass; "
                    f"use LogisticProbe for {len(self.classes_)} classes"
                )
            y = y[:, None]
        else:
            self.classes_ = np.array([0, 1], dtype=y.dtype)
        self._solve(X, Target(y, 0))
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """(m, labels) logits, infinite for a label with one known value; (m,) where y had one dimension."""
        z = self._logits(X)
        return z[:, 0] if self._single else z

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """(m, labels), of the label being 1; (m, 2) where y had one dimension."""
        z = self._logits(X)
        if self._single:
            z = np.concatenate([-z, z], 1)[:, : len(self.classes_)]
        return np.exp(-np.logaddexp(0, -z))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(m, labels) of 0 and 1, or (m,) classes."""
        positive = (self.decision_function(X) > 0).astype(int)
        return self.classes_[positive]


_FLOATS = [np.float64, np.float32, np.float16]
