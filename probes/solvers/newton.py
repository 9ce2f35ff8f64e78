"""L2-penalised logistic regression of many tasks at once, on rows in memory: Newton's method. Knows arrays; not folds,
scores or files. What is solved, `problems` says.

The steps are found by conjugate gradients. The features come in the eigenbasis of their Gram matrix, where the Hessian
nearly falls apart into one small matrix over the classes a direction, whose inverse is the preconditioner. All problems
lie side by side in one matrix product, which they leave as they converge. Gradients and steps are computed in the
precision of the features; Hessian products may take bfloat16 copies of them, which changes the number of steps and not
where they lead. A line search costs no product, because logits are affine in the step.

Legend: as in `problems`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from htc_probe.probes.solvers import problems
from htc_probe.probes.solvers.problems import Block, Fit, Group, Layout, Target, jacobian_, probabilities
from htc_probe.probes.solvers.products import Rows

_MAX_STEPS = 50
_MAX_PRODUCTS = 60
"""Hessian products of one step."""
_MAX_TRIALS = 12
"""Lengths of one step."""
_SLOPE = 0.1
"""Where a whole step goes too far, the slope at the end of the step is less than this share of that at its start."""
_FORCING = 0.07
"""A step near the optimum reduces the preconditioned gradient to this."""


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(C, n), (C, n) -> (C,)"""
    return (a * b).sum(1)


@dataclass
class _Live:
    """Where the problems that are being solved stand."""

    block: Block
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
    means = []
    for group in live.block.groups:
        p, weight = group.view(live.p), group.view(live.weight.double())
        if group.k == 1:
            means.append((problems.newton_weights(p[:, 0]).double()[:, None, None] * weight).clamp_min(1e-12))
            continue
        between = (p @ p.mT).double().mul_(weight)
        between.diagonal(dim1=1, dim2=2).zero_()
        scale = between.sum((1, 2))[:, None, None] / group.k
        # The rows of the Hessian sum to 0; a constant in its null space makes it invertible, and the rest
        # where every row is predicted with certainty, so that it is 0.
        eye = (1e-12 * scale + 1e-12) * torch.eye(group.k, dtype=torch.float64, device=p.device)
        means.append(torch.diag_embed(between.sum(2)) - between + scale / group.k + eye)
    return means


@dataclass
class _Preconditioner:
    """The inverse of what the Hessian would be if features and probabilities were independent.

    Of a direction of the basis that is the mean of diag p - p p' times the direction's mean square, plus the penalty:
    diagonal in the eigenvectors of the mean.
    """

    groups: tuple[Group, ...]
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
            part, diagonal = group.view(r), group.view(self.diagonal)
            if turn is None:
                torch.div(part, diagonal, out=group.view(out))
            else:
                torch.matmul(turn, (turn.mT @ part).div_(diagonal), out=group.view(out))
        return out

    def keep(self, block: Block, stay: Tensor, columns: Tensor) -> _Preconditioner:
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
        self._rows, self._tolerance = Rows(x_nr, segments, half), tolerance
        self._scale = torch.cat([eigenvalues.to(x_nr), x_nr.new_ones(1)])
        """(r + 1,) mean squares of the features and of the constant."""
        self._total = float(eigenvalues.double().sum()) * len(x_nr)
        """Squares of all features over all rows."""

        def labels(target: Target) -> np.ndarray:
            return np.concatenate([target.y[segment] for segment in segments])

        self._layout, solved = Layout.of(targets, len(x_nr), labels, x_nr)
        self._block, n, device = self._layout.block, self._rows.n, x_nr.device
        owner = self._block.owner
        y = np.concatenate([np.zeros((0, n), dtype=bool), *(problem.y for problem in solved)])
        known = np.stack([np.ones(n, dtype=bool), *(problem.known for problem in solved)])[1:]
        self._y = torch.as_tensor(y, device=device).to(x_nr)
        counts = torch.as_tensor(known.sum(1), device=device)
        self._known = None if known.all() else torch.as_tensor(known, device=device).to(x_nr)[owner]
        self._weight = (1 / counts.double())[owner][:, None].to(x_nr)
        self._counts = counts.double()
        start = self._layout.start(self._y.sum(1, dtype=torch.float64) / self._counts[owner]).to(x_nr)[:, None]
        self._w = torch.cat([x_nr.new_zeros(len(start), len(self._scale) - 1), start], 1)
        self._z = start.repeat(1, n)
        self._earlier = self._w.clone(), self._z.clone()
        self._advanced = False

    def advance(self, strength: float, tasks: Sequence[int] | None = None) -> Fit:
        """The fit of `tasks` (all of them) at a strength, from where the path left each of them.

        Strengths from strong to weak are fastest; any order is exact.
        """
        tasks = list(range(len(self._layout.targets)) if tasks is None else tasks)
        wanted = self._layout.wanted(tasks)
        objective, gap = torch.zeros(2, len(wanted), dtype=torch.float64, device=wanted.device)
        if wanted.any():
            self._solve(wanted, strength, objective, gap)
        return self._layout.fit(self._w, strength, tasks, objective, gap)

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
                    ended = live.block.problem
                    objective[ended], gap[ended] = self._certify(live, residual, g, strength, curvature)
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
        live.p = probabilities(block.groups, live.z, known)
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
            p = probabilities(block.groups, z, live.known)
            j0, j1 = (jacobian_(block.groups, p, t.clone()) for t in (z0, z1))
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
        running: Tensor | None = None  # columns of this block that are still in the product; None: all
        r = -g
        direction = inverse(r)
        rho, going = energy.clone(), energy > 0
        for _ in range(_MAX_PRODUCTS):
            v = jacobian_(block.groups, p, self._rows.coarse_logits(direction))
            product = self._rows.coarse_pull(v).mul_(weight).addcmul_(direction, penalty)
            bend = block.sums(_dot(direction, product))
            going &= bend > 0
            alpha = block.spread(torch.where(going, rho / bend, 0), g.dtype)
            if running is None:
                s.addcmul_(direction, alpha)
            else:
                s.index_add_(0, running, direction * alpha)
            r.addcmul_(product, alpha, value=-1)
            z = inverse(r)
            rho, last = block.sums(_dot(r, z)), rho
            going &= rho > goal
            if not going.any():
                break
            if going[block.owner].float().mean() < 0.8:
                block, columns = block.keep(going)
                running = columns if running is None else running[columns]
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
            live.p = probabilities(block.groups, live.z, live.known)
            live.objective = self._objective(live, strength, dtype)
            # Near the optimum the fall drowns in rounding, and the slope does not: it is convex.
            slope = block.sums((_dot(live.p, u) - labels) * live.weight[:, 0]) + ws + t * ss
            falls = (live.objective <= before - 1e-4 * t * start) | (slope <= self._tolerance * before)
            good = falls & (slope <= level) & ((slope >= -level) | (t == 1)) | (start <= 0)
            if good.all():
                break
            over = ~(slope <= 0)  # also where a step into nowhere has none
            low, slope_low = torch.where(over, low, t), torch.where(over, slope_low, slope)
            high, slope_high = torch.where(over, t, high), torch.where(over, slope, slope_high)
            share = (slope_low / (slope_low - slope_high)).nan_to_num(0.2).clamp(0.2, 0.8)
            t = torch.where(good, t, low + share * (high - low))
        else:
            # Where rows are all but certain there is no bend to lead a step: better none than one that goes up.
            lost = ~(good | (live.objective <= before))
            if lost.any():
                stay = block.spread(lost, torch.bool)
                live.z, live.w = torch.where(stay, z, live.z), torch.where(stay, w, live.w)
                live.p = probabilities(block.groups, live.z, live.known)
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
            shift = torch.cat([(inverse @ group.view(g)[..., None]).flatten() for group, inverse in pairs])
            shift = shift.clamp_(-1, 1).to(live.z.dtype)[:, None]
            live.w[:, -1:] -= shift
            live.z -= shift
            live.p = probabilities(block.groups, live.z, live.known)
        return inverses

    def _certify(
        self, live: _Live, residual: Tensor, g: Tensor, strength: float, curvature: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Objectives (P,) and bounds on how far each lies above its minimum, as a share of it.

        `curvature` is what `_centre` gave. The trace of x'x over all rows stands for that of the problem's own rows and
        for its largest eigenvalue.
        """
        block, weight = live.block, live.weight[:, 0]
        left = [group.view(g[:, -1]).double() for group in block.groups]
        pairs = zip(left, curvature, strict=True)
        slope = torch.cat([(b[:, None] @ inverse @ b[..., None]).flatten() for b, inverse in pairs])
        trace = self._total / self._counts[block.problem]
        errors = block.sums((residual.square().sum(1) * weight) * (1 + live.z.square().sum(1) * weight))
        above = problems.bound(block, g[:, :-1], slope, errors, trace, trace, strength)
        objective = self._objective(live, strength, torch.float64)
        # The objective is known to some roundings of the logits, so no bound claims less.
        return objective, above / objective + 4 * torch.finfo(g.dtype).eps

    def _objective(self, live: _Live, strength: float, dtype: torch.dtype) -> Tensor:
        """(P,), computed in `dtype`."""
        loss = problems.losses(live.block.groups, live.z, live.y, live.known, dtype, dtype)
        penalty = 0.5 * strength * live.block.sums(live.w[:, :-1].to(dtype).square().sum(1))
        return loss / self._counts[live.block.problem] + penalty

    def _settle(self, live: _Live) -> None:
        """Takes the problems' point as the path's last."""
        columns = live.block.column
        for earlier, last, new in zip(self._earlier, (self._w, self._z), (live.w, live.z), strict=True):
            earlier[columns] = last[columns]
            last[columns] = new
