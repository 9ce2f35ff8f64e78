"""Values on a circle: angles, hours, anything that comes round after a period. Knows arrays; not tasks, probes, files.

Values are in a unit of their own, in which the circle is `period` long: 1 and 361 are the same of a period of 360. The
distribution on the circle is von Mises'. Its concentration kappa is 0 where every value is as likely, and about
1 / variance, in radians, where it is high (Mardia and Jupp, Directional Statistics, 2000).
"""

import numpy as np
from scipy import optimize, special, stats

MOST = 1e6
"""The highest concentration, a deviation of a thousandth of a radian, so that no density is infinite."""


def difference(a: np.ndarray, b: np.ndarray, period: float) -> np.ndarray:
    """a - b the short way round, from -period / 2 up to period / 2."""
    return (np.asarray(a, dtype=float) - b + period / 2) % period - period / 2


def cosine(a: np.ndarray, b: np.ndarray, period: float) -> np.ndarray:
    """Of the angle between a and b: 1 where they are the same, -1 where they are opposite."""
    return np.cos((a - b) * (2 * np.pi / period))


def vectors(values: np.ndarray, period: float) -> np.ndarray:
    """(..., 2) the points of values (...) on the unit circle: cosine and sine. NaN stays NaN."""
    angles = np.asarray(values, dtype=float) * (2 * np.pi / period)
    return np.stack([np.cos(angles), np.sin(angles)], -1)


def values_of(vectors: np.ndarray, period: float) -> np.ndarray:
    """(...) where points (..., 2) of any length lie, from 0 to below the period."""
    # Twice, as -1e-20 % 360 is 360.
    return np.arctan2(vectors[..., 1], vectors[..., 0]) * (period / (2 * np.pi)) % period % period


def errors_of_others(values: np.ndarray, period: float) -> np.ndarray:
    """(n,) 1 - cosine between each of the values (n,) and the mean direction of all others: what is missed without any
    feature. By the others, as a few values always lie towards a mean of their own.
    """
    points = vectors(values, period)
    return 1 - cosine(values_of(points.sum(0) - points, period), values, period)


def concentration(mean_cosine: np.ndarray | float) -> np.ndarray:
    """(...) of the von Mises distribution whose values have this mean cosine with its centre: 0, where that is not
    positive, to MOST.
    """

    def solve(wanted: float) -> float:
        def missing(kappa: float) -> float:
            return float(special.ive(1, kappa) / special.ive(0, kappa)) - wanted

        if np.isnan(wanted):
            return np.nan
        if wanted <= 0:
            return 0.0
        return MOST if missing(MOST) <= 0 else float(optimize.brentq(missing, 0, MOST))

    return np.vectorize(solve, otypes=[float])(mean_cosine)


def bits(errors: np.ndarray, kappa: np.ndarray, period: float) -> np.ndarray:
    """-log2 of von Mises' density, by the unit of the values, at `errors` from its centre: log2(period) of kappa 0."""
    turned = 1 - cosine(errors, np.zeros(1), period)
    return (kappa * turned + np.log(special.ive(0, kappa))) / np.log(2) + np.log2(period)


def share(lower: np.ndarray, upper: np.ndarray, centre: np.ndarray, kappa: np.ndarray, period: float) -> np.ndarray:
    """The probability of the arc from `lower` up to `upper`, no longer than the period."""
    ends = (np.stack([lower, upper]) - centre) * (2 * np.pi / period)
    below, above = stats.vonmises.cdf(ends, kappa)
    return np.clip(above - below, 0, 1)
