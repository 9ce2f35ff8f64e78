"""L2-penalised logistic regression of many tasks at once, on streamed features: L-BFGS. Knows what `survey` gives; not
runs, layers or scores. What is solved, `problems` says.

A pass over all rows gives the loss and the gradient at a trial point, so a step costs one pass. The step is Newton's on
the Hessian of the survey's sample, corrected by what the last passes told about the curvature: L-BFGS (Liu and Nocedal
1989) whose first guess is that Hessian.

Legend: as in `problems`; b rows of a tile, s of the sample, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from htc_probe.extract.store import UNKNOWN
from htc_probe.probes.solvers import problems
from htc_probe.probes.solvers.problems import Block, Fit, Layout, Target, jacobian_, newton_weights, probabilities
from htc_probe.probes.solvers.products import Rows
from htc_probe.probes.solvers.survey import PAIRS, Features, Survey, label_sums, tiles

_MAX_PASSES = 60
_MAX_PRODUCTS = 40
"""Products with the sample of one step."""
_FORCING = 0.1
"""A step reduces the preconditioned gradient to this."""


@dataclass
class _Point:
    """Where problems stand, and what a pass told about it. Sums are over the known training rows."""

    w: Tensor
    """(C, r + 1) in the basis, the last column the intercepts."""
    g: Tensor
    """(C, r + 1) gradient of the mean loss."""
    h: Tensor
    """(C, 1) mean of p (1 - p)."""
    loss: Tensor
    """(P,) mean, float64."""
    bend: Tensor
    """(P,) float64: b'H^-1 b of the intercepts' gradient b and Hessian H."""
    residual: Tensor
    """(P,) float64: mean squared residual, summed over the columns."""

    def take(self, columns: Tensor, chosen: Tensor) -> _Point:
        """Of these columns and problems alone."""
        sums = self.loss[chosen], self.bend[chosen], self.residual[chosen]
        return _Point(self.w[columns], self.g[columns], self.h[columns], *sums)

    def put(self, columns: Tensor, chosen: Tensor, point: _Point) -> None:
        self.w[columns], self.g[columns], self.h[columns] = point.w, point.g, point.h
        self.loss[chosen], self.bend[chosen], self.residual[chosen] = point.loss, point.bend, point.residual


class StreamedPath:
    """Tasks on the same rows, solved at one strength after another; `newton.Path` with streamed features.

    `features` are those of the survey, `y` of every target is given for all their rows, and `training_n` (bool) says
    which of them the probes are fitted on: any of the survey's training rows.

    `passes` counts how often the features were read. Raises ValueError for a target that does not fit the rows or its
    own classes.
    """

    def __init__(
        self,
        features: Features,
        survey: Survey,
        targets: Sequence[Target],
        training_n: np.ndarray,
        *,
        tolerance: float = 2e-7,
    ) -> None:
        self.passes = 0
        self._features, self._survey, self._training, self._tolerance = features, survey, training_n, tolerance
        self._device = survey.rotation.device

        def kinds(target: Target) -> np.ndarray:
            return _kinds_of_labels(target, training_n)

        self._layout, _ = Layout.of(targets, len(training_n), kinds, survey.rotation)
        totals = [(np.zeros(0), np.zeros(0)), *(label_sums(target, training_n) for target in targets)]
        counts, sums = (torch.from_numpy(np.concatenate(part)).to(self._device) for part in zip(*totals, strict=True))
        place, block = self._layout.place, self._layout.block
        self._known_rows = counts[place].double()
        """(C,)"""
        self._problem_rows = self._known_rows[torch.searchsorted(block.owner, block.problem)]
        """(P,) known training rows."""
        self._scale = torch.cat([survey.eigenvalues, survey.eigenvalues.new_ones(1)])
        self._start = self._scale.new_zeros(len(place), len(self._scale))
        self._start[:, -1] = self._layout.start(sums[place] / self._known_rows)
        self._last: _Point | None = None
        self._pairs: list[tuple[Tensor, Tensor]] = []
        """(C, r + 1) each: where the last trials led from their points, and how the gradients of the loss changed."""
        _, known = self._labels(survey.rows, place.cpu().numpy())
        is_training = torch.from_numpy(training_n[survey.rows]).to(self._start)
        if not is_training.all():
            known = is_training.expand(len(place), -1) if known is None else known.mul_(is_training)
        self._known_in_sample = known

    def advance(self, strength: float, tasks: Sequence[int] | None = None) -> Fit:
        """See `newton.Path.advance`."""
        tasks = list(range(len(self._layout.targets)) if tasks is None else tasks)
        if self._last is None:
            self._last = self._evaluate(self._layout.block, self._start)
        block, columns = self._layout.block.keep(self._layout.wanted(tasks))
        point = self._last.take(columns, block.problem)
        penalty = torch.full_like(self._scale, strength)
        penalty[-1] = 0
        objective = torch.zeros(len(self._problem_rows), dtype=torch.float64, device=self._device)
        gap = torch.zeros_like(objective)
        t = torch.ones_like(point.loss)
        for count in range(_MAX_PASSES + 1):
            step = self._step(block, point, penalty)
            g = torch.addcmul(point.g, point.w, penalty)
            start = -block.sums((g * step).sum(1))  # the slope without its sign
            value = point.loss + 0.5 * strength * block.sums(point.w[:, :-1].square().sum(1))
            done = (start <= 2 * self._tolerance * value) | (count == _MAX_PASSES)
            if done.any():
                settled, columns = block.keep(done)
                last = point.take(columns, done)
                self._last.put(settled.column, settled.problem, last)
                objective[settled.problem] = value[done]
                gap[settled.problem] = self._bound(settled, last, penalty, strength) / value[done]
                block, columns = block.keep(~done)
                point = point.take(columns, ~done)
                step, t, start, value = step[columns], t[~done], start[~done], value[~done]
            if not len(block.problem):
                break
            trial = self._evaluate(block, torch.addcmul(point.w, step, block.spread(t, step.dtype)))
            self._remember(block, point, trial)
            slope = block.sums((torch.addcmul(trial.g, trial.w, penalty) * step).sum(1))
            better = slope <= 0.5 * start + self._tolerance * value
            _, columns = block.keep(better)
            point.put(columns, better, trial.take(columns, better))
            # A trial that went too far tells the curvature on the way, so the next step is a new one.
            t = torch.where(better, 1.0, t / 2)
        return self._layout.fit(self._last.w, strength, tasks, objective, gap)

    def _remember(self, block: Block, before: _Point, after: _Point) -> None:
        # By the loss alone, so that what was learned at one strength serves the next; 0 for problems that rest.
        move, change = torch.zeros_like(self._start), torch.zeros_like(self._start)
        move[block.column], change[block.column] = after.w - before.w, after.g - before.g
        self._pairs = [*self._pairs[1 - PAIRS :], (move, change)]

    def _evaluate(self, block: Block, w: Tensor) -> _Point:
        """One pass over the training rows."""
        self.passes += 1
        survey, columns = self._survey, self._layout.place[block.column].cpu().numpy()
        flat_CD = w[:, :-1] @ survey.rotation.T
        gradient_CD = torch.zeros_like(flat_CD, dtype=torch.float64)
        loss_P = torch.zeros(len(block.problem), dtype=torch.float64, device=self._device)
        sums_C3 = torch.zeros(len(w), 3, dtype=torch.float64, device=self._device)
        between = [torch.zeros(g.problems, g.k, g.k, dtype=torch.float64, device=self._device) for g in block.groups]
        for first, tile in tiles(self._features, survey.plan.tile):
            rows = np.flatnonzero(self._training[first : first + len(tile)])
            x_bD = survey.standardise(torch.from_numpy(tile if len(rows) == len(tile) else tile[rows]))
            y, known = self._labels(first + rows, columns)
            z = torch.addmm(w[:, -1:], flat_CD, x_bD.T)
            p = probabilities(block.groups, z, known)
            loss_P += problems.losses(block.groups, z, y, known, z.dtype, torch.float64)
            for group, of_group in zip(block.groups, between, strict=True):
                of_group += group.view(p) @ group.view(p).mT
            newton = newton_weights(p)
            residual = p.sub_(y)
            gradient_CD += residual @ x_bD
            sums_C3 += torch.stack([residual.sum(1), newton, residual.square().sum(1)], 1)
        count_C = self._known_rows[block.column]
        sums_C3 /= count_C[:, None]
        g = torch.cat([(gradient_CD / count_C[:, None]).float() @ survey.rotation, sums_C3[:, :1].float()], 1)
        bends = []
        for group, of_group in zip(block.groups, between, strict=True):
            b, h = group.view(sums_C3[:, 0]), group.view(sums_C3[:, 1])
            hessian = -of_group / group.view(count_C)[..., None]
            hessian.diagonal(dim1=1, dim2=2).copy_(h)
            # Of a softmax the rows of the Hessian sum to 0; a constant in its null space makes it invertible.
            hessian += (h.mean(1) if group.k > 1 else h[:, 0] * 0 + 1e-12)[:, None, None]
            bends.append((b * torch.linalg.solve(hessian, b)).sum(1))
        h, loss = sums_C3[:, 1:2].float().clamp_min(1e-10), loss_P / self._problem_rows[block.problem]
        return _Point(w, g, h, loss, torch.cat([loss_P[:0], *bends]), block.sums(sums_C3[:, 2]))

    def _labels(self, rows: np.ndarray, columns: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """(C, b) 0 or 1, 0 where unknown; and which are known, None where all are."""
        parts = [problems.label_columns(Target(target.y[rows], target.classes)) for target in self._layout.targets]
        y_bC = np.concatenate(parts, 1)[:, columns]
        known_bC = ~np.isnan(y_bC)
        y = torch.from_numpy(np.nan_to_num(y_bC).T.astype(np.float32)).to(self._device)
        if known_bC.all():
            return y, None
        return y, torch.from_numpy(known_bC.T.astype(np.float32)).to(self._device)

    def _step(self, block: Block, point: _Point, penalty: Tensor) -> Tensor:
        """(C, r + 1), by the two loops of L-BFGS around the step of the model."""
        r = -torch.addcmul(point.g, point.w, penalty)
        pairs = []
        for move, change in reversed(self._pairs):
            dw, dg = move[block.column], torch.addcmul(change[block.column], move[block.column], penalty)
            bend = block.sums((dw * dg).sum(1))
            inverse = torch.where(bend > 0, 1 / bend, 0)
            along = inverse * block.sums((dw * r).sum(1))
            r.addcmul_(dg, block.spread(along, r.dtype), value=-1)
            pairs.append((dw, dg, inverse, along))
        s = self._model_step(block, point, r, penalty)
        for dw, dg, inverse, along in reversed(pairs):
            s.addcmul_(dw, block.spread(along - inverse * block.sums((dg * s).sum(1)), s.dtype))
        return s

    def _model_step(self, block: Block, point: _Point, r: Tensor, penalty: Tensor) -> Tensor:
        """(C, r + 1) the model's inverse Hessian times r, by conjugate gradients.

        The model mixes the sample's Hessian with one that needs no sample: the eigenvalues of all rows times mean
        `diag p - p p'`, as if features and probabilities were independent. k rows of equal p (1 - p) know the more of r
        directions the more there are of them, so the sample gets the share k / (k + r).
        """
        survey = self._survey
        sample = Rows(survey.sample, [slice(None)], survey.sample if survey.sample.dtype == torch.bfloat16 else None)
        known = None if self._known_in_sample is None else self._known_in_sample[block.column]
        count = r.new_full((len(r), 1), sample.n) if known is None else known.sum(1, keepdim=True)
        p = probabilities(block.groups, sample.coarse_logits(point.w), known)
        newton = p * (1 - p)
        rows = newton.sum(1, keepdim=True).square() / newton.square_().sum(1, keepdim=True).clamp_min_(1e-30)
        is_all = count == self._known_rows[block.column][:, None]  # then it is no sample
        share = torch.where(is_all, 1, rows / (rows + len(self._scale)))
        weight = 1 / count.clamp_min(1)
        means = []
        for group, newton_of in zip(block.groups, [g.view(newton_weights(p)) for g in block.groups], strict=True):
            mean = -group.view(p) @ group.view(p).mT
            mean.diagonal(dim1=1, dim2=2).copy_(newton_of)
            means.append(mean * group.view((1 - share) * weight))
        weight *= share
        diagonal = point.h * self._scale + penalty
        s, r = torch.zeros_like(r), r.clone()
        z = r / diagonal
        direction = z.clone()
        rho = block.sums((r * z).sum(1))
        goal = _FORCING**2 * rho
        for _ in range(_MAX_PRODUCTS):
            product = sample.coarse_pull(jacobian_(block.groups, p, sample.coarse_logits(direction))).mul_(weight)
            product.addcmul_(direction, penalty)
            for group, mean in zip(block.groups, means, strict=True):
                group.view(product).addcmul_(mean @ group.view(direction), self._scale)
            bend = block.sums((direction * product).sum(1))
            alpha = block.spread(torch.where((rho > goal) & (bend > 0), rho / bend, 0), s.dtype)
            s.addcmul_(direction, alpha)
            r.addcmul_(product, alpha, value=-1)
            z = r / diagonal
            rho, last = block.sums((r * z).sum(1)), rho
            if not (rho > goal).any():
                break
            direction = z.addcmul_(direction, block.spread(torch.where(last > 0, rho / last, 0), s.dtype))
        return s

    def _bound(self, block: Block, point: _Point, penalty: Tensor, strength: float) -> Tensor:
        """(P,), see `problems.bound`."""
        g = torch.addcmul(point.g, point.w, penalty)[:, :-1]
        # The largest eigenvalue and the trace of x'x over the known rows are no larger than over all rows.
        more = self._survey.n / self._problem_rows[block.problem]
        top, trace = float(self._scale[0]) * more, float(self._scale[:-1].double().sum()) * more
        return problems.bound(block, g, point.bend, point.residual, top, trace, strength)


def _kinds_of_labels(target: Target, training_n: np.ndarray) -> np.ndarray:
    """Which values the training rows have, in as few rows as tell them; what is laid out does not depend on more."""
    y = target.y[training_n]
    if target.classes:
        return np.unique(y)
    kinds = np.full((len(values := np.unique(y)), y.shape[1]), UNKNOWN, dtype=y.dtype)
    for kind, value in zip(kinds, values, strict=True):
        kind[(y == value).any(0)] = value
    return kinds
