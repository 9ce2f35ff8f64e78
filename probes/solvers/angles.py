"""Ridge probes of circular values: cosine and sine are probed side by side, and say an angle together. Knows arrays and
a basis; not folds, runs or scores.

Both share one strength, the one whose held-out angles are nearest to the true ones, by the mean of 1 - cosine of the
error: a strength each would bend the circle. How wide the predicted von Mises distribution is comes from these errors.
float64 throughout, as in `ridge`.

Legend: n training rows, m other rows, D features, r rank of the basis, S strengths.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from htc_probe.probes.inputs import circular
from htc_probe.probes.scores.metrics import VonMises
from htc_probe.probes.solvers import ridge
from htc_probe.probes.solvers.basis import Basis


class AngleProbe(NamedTuple):
    fit: ridge.Fit
    """Of cosine and sine."""
    strength: float
    at_edge: bool
    """The strength ends the grid and its neighbour is worse: a still better one may lie outside."""
    concentration: float
    """Of the held-out errors at that strength."""
    period: float

    def predict(self, x_mr: Tensor) -> VonMises:
        """For rows in the coordinates of the basis."""
        angles = circular.values_of(ridge.predict(self.fit, x_mr), self.period)
        return VonMises(angles, np.full(len(angles), self.concentration), self.period)


def fit(basis: Basis, y_n: np.ndarray, period: float, blocks_n: np.ndarray) -> AngleProbe:
    """The probe of values (n,), NaN where unknown, at the strength that does best where whole blocks are left out."""
    u_n2 = circular.vectors(y_n, period)
    said_Sn = circular.values_of(ridge.leave_out(basis, u_n2, ridge.STRENGTHS, blocks_n), period)
    missed_S = np.nanmean(1 - circular.cosine(said_Sn, y_n, period), 1)
    choice = ridge.choose(missed_S[:, None], ridge.STRENGTHS)
    strength = float(choice.strengths[0])
    kappa = float(circular.concentration(1 - missed_S.min()))
    return AngleProbe(at_strength(basis, y_n, period, strength), strength, bool(choice.at_edge[0]), kappa, period)


def at_strength(basis: Basis, y_n: np.ndarray, period: float, strength: float) -> ridge.Fit:
    return ridge.fit(basis, circular.vectors(y_n, period), [strength, strength])
