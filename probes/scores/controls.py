"""Labels and predictions that say what a probe's score is worth. Knows arrays; not probes, runs or files.

Two controls, and what each one says:

* Type-level labels (`type_labels`; Hewitt & Liang 2019): every type, such as an object category, gets one random
  label, so that all there is to learn is which type goes with which label. The score on it is what a probe gets
  by recognising the type and remembering. Selectivity = score(task) - score(control), on the same metric: high if
  the probe reads the label itself; near 0 if it may only have memorised types. (A random label for every image
  would be unlearnable for held-out images, and selectivity no more than the distance from chance.)
* The shortcut oracle (`oracle`): the best that anyone can predict who knows an image's category and nothing else.
  A probe of a detail that does not beat it may be reading the category.

Legend: n rows, K classes, C labels of a multi-label task, T types.
"""

import numpy as np

from htc_probe.extract.store import UNKNOWN, Kind, is_known
from htc_probe.probes.inputs import circular
from htc_probe.probes.scores.metrics import Gaussian, Prediction, VonMises

_NO_BETTER = 0.01  # than what the category alone tells


def type_labels(kind: Kind, y: np.ndarray, types: np.ndarray, seed: int) -> np.ndarray:
    """Like `y`: one random label for each type; rows without a label stay without. types (n,) of any values.

    A type's label is drawn from the labels as rows have them. The types of one draw lie side by side on the sorted
    labels, in random order, each as wide as it has rows, and take the label at their middle: so labels are as
    frequent as before, up to the size of a type. With few types a class may still be left out. Every label of a
    multi-label task is drawn by itself, as labels are known on different rows.
    """
    rng = np.random.default_rng(seed)
    known = is_known(kind, y)
    if kind == "multilabel":
        return np.stack([_one_for_each(y[:, label], known[:, label], types, rng) for label in range(y.shape[1])], 1)
    return _one_for_each(y, known, types, rng)


def _one_for_each(y: np.ndarray, known: np.ndarray, types: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    drawn = y.copy()
    if not known.any():
        return drawn
    _, of_row, sizes = np.unique(types[known], return_inverse=True, return_counts=True)
    order = rng.permutation(len(sizes))
    middle = np.empty(len(sizes))
    middle[order] = np.cumsum(sizes[order]) - sizes[order] / 2
    # A turn of the whole by a random amount gives every type each label as often as rows have it.
    place = (middle + rng.uniform(0, len(of_row))) % len(of_row)
    drawn[known] = np.sort(y[known])[place.astype(int)][of_row]
    return drawn


def may_explain(lower: float, floor: float, alone: float) -> bool:
    """Whether a score that is above its floor, `lower` the lower end of its interval, is no better than what the
    category alone scores.
    """
    return floor < lower <= alone + _NO_BETTER


def floor(kind: Kind, y: np.ndarray, fold: np.ndarray, n_classes: int = 0, period: float = 0.0) -> Prediction:
    """The prediction without features: class frequencies (log probabilities), label frequencies (logits), mean and
    deviation, or mean direction and concentration, of the rows of all other folds; with add-one smoothing, so that no
    label is impossible.

    fold (n,): rows of one number are held out together; rows of a negative number are only learned from (their
    prediction is NaN). n_classes: K, of a task of classes. period: of a circular task.
    """
    return oracle(kind, y, np.zeros(len(y), dtype=int), fold, n_classes, period)


def oracle(
    kind: Kind, y: np.ndarray, categories: np.ndarray, fold: np.ndarray, n_classes: int = 0, period: float = 0.0
) -> Prediction:
    """The prediction that knows each row's category (n,) only: counts of the rows of all other folds.

    classes and labels: shares in the category's rows there and in K (2 of a label) more that are distributed as all
    rows there, themselves with one more of each label. This is add-one smoothing that leaves a rare category near
    the floor; plain ones would leave it near the uniform distribution, worse than knowing nothing. number: mean and
    deviation in the category, drawn to those of all rows the more the fewer it has. circular: the same of points on the
    circle, of which it takes direction and length. See `floor` for the rest.
    """
    category = np.unique(categories, return_inverse=True)[1]
    n_categories = int(category.max()) + 1
    if kind == "number":
        mean, scale = np.full(len(y), np.nan), np.full(len(y), np.nan)
        for held in _held_out(fold):
            train = (fold != fold[held[0]]) & np.isfinite(y)
            means, variances = _random_effects(y[train], category[train], n_categories)
            mean[held], scale[held] = means[category[held]], np.sqrt(variances)[category[held]]
        return Gaussian(mean, scale)
    if kind == "circular":
        points = circular.vectors(y, period)
        centre, kappa = np.full(len(y), np.nan), np.full(len(y), np.nan)
        for held in _held_out(fold):
            train = (fold != fold[held[0]]) & np.isfinite(y)
            means = _mean_points(points[train], category[train], n_categories)[category[held]]
            centre[held] = circular.values_of(means, period)
            lengths, place = np.unique(np.hypot(*means.T), return_inverse=True)
            kappa[held] = circular.concentration(lengths)[place]
        return VonMises(centre, kappa, period)
    if kind == "classes":
        log_p = np.full((len(y), n_classes), np.nan, np.float32)
        for held in _held_out(fold):
            train = (fold != fold[held[0]]) & (y >= 0)
            cells = category[train] * n_classes + y[train]
            counts = np.bincount(cells, minlength=n_categories * n_classes).reshape(n_categories, n_classes)
            shares = _smoothed(counts, n_classes)
            log_p[held] = np.log(shares)[category[held]]
        return log_p
    logits = np.full(y.shape, np.nan, np.float32)
    for held in _held_out(fold):
        train = fold != fold[held[0]]
        for label in range(y.shape[1]):
            rows = train & (y[:, label] != UNKNOWN)
            cells = category[rows] * 2 + y[rows, label]
            shares = _smoothed(np.bincount(cells, minlength=n_categories * 2).reshape(n_categories, 2), 2)
            logits[held, label] = np.log(shares[:, 1] / shares[:, 0])[category[held]]
    return logits


def _smoothed(counts: np.ndarray, n_classes: int) -> np.ndarray:
    """Shares of the classes in every category, (categories, K), see `oracle`."""
    total = counts.sum(0)
    everywhere = (total + 1) / (total.sum() + n_classes)
    return (counts + n_classes * everywhere) / (counts.sum(1, keepdims=True) + n_classes)


def _random_effects(values: np.ndarray, category: np.ndarray, n_categories: int) -> tuple[np.ndarray, np.ndarray]:
    """(means, variances) of a further value of every category, as if categories' means were drawn from a normal
    distribution too: a new category has the mean and the variance of all values.
    """
    count = np.bincount(category, minlength=n_categories)
    own = np.bincount(category, values, n_categories) / np.maximum(count, 1)
    squares = np.bincount(category, (values - own[category]) ** 2, n_categories)
    centre, total = values.mean(), values.var()
    freedom = len(values) - np.count_nonzero(count)
    # At least a thousandth of the deviation is left, so that no density is infinite.
    within = np.clip(squares.sum() / freedom if freedom else total, 1e-6 * total, total)
    weight = within / (max(total - within, 1e-6 * total) or 1.0)  # of the common mean, in rows
    means = (count * own + weight * centre) / (count + weight)
    variances = (squares + 2 * within) / (np.maximum(count - 1, 0) + 2) + within / (count + weight)
    return means, variances


def _mean_points(points_n2: np.ndarray, category: np.ndarray, n_categories: int) -> np.ndarray:
    """(categories, 2) the mean of a further point of every category, as `_random_effects` has it for numbers."""
    n, count = len(points_n2), np.bincount(category, minlength=n_categories)
    sums = np.stack([np.bincount(category, column, n_categories) for column in points_n2.T], 1)
    own = sums / np.maximum(count, 1)[:, None]
    centre = points_n2.mean(0)
    length = np.hypot(*centre)
    # n points all round have a mean of length 1 / sqrt(n), which is chance; its direction stays, for those who ask.
    chance = (1 - length**2) / max(n - 1, 1)
    centre *= max(np.sqrt(max(length**2 - chance, 0)) / length, 1e-6) if length else 0
    total = 1 - length**2
    freedom = n - np.count_nonzero(count)
    within = ((points_n2 - own[category]) ** 2).sum() / freedom if freedom else total
    within = np.clip(within, 1e-6 * total, total)
    weight = within / (max(total - within, 1e-6 * total) or 1.0)  # of the common mean, in rows
    return (sums + weight * centre) / (count + weight)[:, None]


def _held_out(fold: np.ndarray) -> list[np.ndarray]:
    """The rows of each fold."""
    return [np.flatnonzero(fold == k) for k in np.unique(fold) if k >= 0]
