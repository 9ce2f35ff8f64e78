"""Who is followed: counts of what was read from mixed images against the labels of both donors.

Knows arrays. Does not know models, images or how anything is read, and imports no torch.

Legend: n images, m mixed images, C labels of a multi-label task (1 of others), K rows of a table.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from htc_probe.analysis.stats import draws
from htc_probe.extract.store import NUMERIC, is_known
from htc_probe.probes.inputs import circular
from htc_probe.probes.scores.intervals import COVERAGE, resample_groups

if TYPE_CHECKING:
    from htc_probe.analysis.causes.mixing import Mix
    from htc_probe.analysis.sections.causes import Interchange, NumberRows

Readout = Literal["answer", "probe"]
WHOM = ("anchors' source", "patches' source", "neither")


class Measure(NamedTuple):
    """One thing that is read from <voco>, by a question or a probe."""

    readout: Readout
    task: str
    suite: str
    kind: str
    """classes, multilabel, number or circular."""
    period: float = 0.0
    """Of a circular value."""


Values = dict[Measure, np.ndarray]
"""What is true or was read: (n,) classes, -1 unknown; (n, C) 0, 1 and 255; or (n,) numbers, NaN unknown."""


class Block(NamedTuple):
    """K rows of a table, of one kind of mix."""

    measures: list[Measure]
    only_right: np.ndarray
    """(K,) 0 or 1"""
    values: np.ndarray
    """(K, ..., 3) float32: estimate, lower, upper."""
    floor: np.ndarray
    """(K, ...) float32"""
    counted: np.ndarray
    """(K,)"""
    couples: np.ndarray
    """(K,)"""


def shares(mix: Mix, said: Values, true: Values, unmixed: Values, seed: int, *, suites: bool = True) -> Block:
    """Of what is not a number, (K, 3, 3): the shares in which the anchors' donor, the patches' donor or neither is
    followed; once for all cases, once for those that are read right from both `unmixed` images; then the means of
    suites.
    """
    measures = [m for m in said if m.kind not in NUMERIC]
    over = np.zeros((len(mix.couple), len(measures), 2, 3))
    under = np.zeros((len(mix.couple), len(measures), 2))
    floor = np.zeros((len(measures), 2, 3))
    for number, m in enumerate(measures):
        follows_mC3, counts_mC = follows_whom(mix, said[m], true[m], m.kind)
        right_nC = _cells(unmixed[m] == true[m])
        right_mC = np.ones_like(counts_mC)
        for half in (mix.anchors, mix.patches):
            if half.of is not None:
                right_mC &= right_nC[half.of]
        for condition, counts in enumerate((counts_mC, counts_mC & right_mC)):
            over[:, number, condition] = (follows_mC3 & counts[..., None]).sum(1)
            under[:, number, condition] = counts.sum(1)
            floor[number, condition] = dealt(mix, said[m], true[m], m.kind, counts)
    drawn = draws.draws_of_ratios(over, np.broadcast_to(under[..., None], over.shape), mix.couple, seed)
    members = [([number], m) for number, m in enumerate(measures)]
    for readout, suite in sorted({(m.readout, m.suite) for m in measures}) if suites else ():
        of_suite = [number for number, m in enumerate(measures) if (m.readout, m.suite) == (readout, suite)]
        having = [number for number in of_suite if under[:, number].sum(0).all()]
        members.append((having or of_suite, Measure(readout, "", suite, "mean")))
    values, floors = np.empty((len(members), 2, 3, 3)), np.empty((len(members), 2, 3))
    counted, couples = np.empty((2, len(members), 2), dtype=np.int64)
    for number, (own, _) in enumerate(members):
        mean = draws.Draws(drawn.estimate[own].mean(0), drawn.draws[:, own].mean(1), drawn.n_groups)
        values[number], floors[number] = np.stack(mean.intervals(), -1), floor[own].mean(0)
        cases_m2 = under[:, own].sum(1)
        counted[number] = cases_m2.sum(0)
        couples[number] = [len(np.unique(mix.couple[cases > 0])) for cases in cases_m2.T]
    # Resampling cases that are all alike gives them all alike: there the ends are those of a binomial share of couples.
    beyond = (((1 - COVERAGE) / 2) ** (1 / np.maximum(couples, 1)))[..., None]
    values[..., 1] = np.where(values[..., 0] == 1, beyond, values[..., 1])
    values[..., 2] = np.where(values[..., 0] == 0, 1 - beyond, values[..., 2])
    for side, half in enumerate((mix.anchors, mix.patches)):
        if half.of is None:
            values[:, :, side], floors[:, :, side] = np.nan, np.nan
    return Block(
        [m for _, m in members for _ in range(2)],
        np.tile(np.array([0, 1], dtype=np.int8), len(members)),
        values.reshape(-1, 3, 3).astype(np.float32),
        floors.reshape(-1, 3).astype(np.float32),
        counted.ravel(),
        couples.ravel(),
    )


def dealt(mix: Mix, said: np.ndarray, true: np.ndarray, kind: str, counts_mC: np.ndarray) -> np.ndarray:
    """(3,) the shares to expect where what is said is dealt to the cases that count at random."""
    cells = _cells(said)
    total_C = counts_mC.sum(0)
    expected = np.zeros(3)
    for value in np.unique(cells):
        often_C = ((cells == value) & counts_mC).sum(0) / np.maximum(total_C, 1)
        follows_mC3, _ = follows_whom(mix, np.full_like(said, value), true, kind)
        expected += ((follows_mC3 & counts_mC[..., None]).sum(0) * often_C[:, None]).sum(0)
    return expected / total_C.sum() if total_C.sum() else np.full(3, np.nan)


def follows_whom(mix: Mix, said: np.ndarray, true: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(m, C, 3) bool, the anchors' donor, the patches' or neither is followed; (m, C) whether the case counts."""
    cells, labels = _cells(said), _cells(true)
    told = _cells(is_known(kind, true))
    counts, followed = np.ones(cells.shape, dtype=bool), np.zeros((*cells.shape, 3), dtype=bool)
    for side, half in enumerate((mix.anchors, mix.patches)):
        if half.of is not None:
            counts &= told[half.of]
            followed[..., side] = cells == labels[half.of]
    if mix.name == "swapped":
        assert mix.anchors.of is not None and mix.patches.of is not None
        counts &= labels[mix.anchors.of] != labels[mix.patches.of]
    elif mix.replaced is not None:
        replaced = 0 if mix.replaced == "anchors" else 1
        followed[..., replaced] &= ~followed[..., 1 - replaced]
    followed[..., 2] = ~followed[..., :2].any(-1)
    return followed, counts


def follows(
    swapped_N: np.ndarray, true_N: np.ndarray, partner_N: np.ndarray, kind: str, period: float = 0.0
) -> np.ndarray:
    """(N,) whom the image with the anchors of N and the patches of its partner follows: 0 its own label, 1 the
    partner's, 2 neither, as in `WHOM`; -1 where the two do not differ, are not known (NaN), or there is no partner. Of
    numbers and circular values, the donor that is nearer.
    """
    other_N = np.where(partner_N >= 0, true_N[partner_N], np.nan)
    with np.errstate(invalid="ignore"):
        counts = np.isfinite(swapped_N) & np.isfinite(true_N) & np.isfinite(other_N) & (true_N != other_N)
        if kind in NUMERIC:
            off, other_off = (
                circular.difference(swapped_N, donor, period) if kind == "circular" else swapped_N - donor
                for donor in (true_N, other_N)
            )
            followed = (np.abs(other_off) < np.abs(off)).astype(int)
        else:
            followed = np.select([swapped_N == true_N, swapped_N == other_N], [0, 1], 2)
    return np.where(counts, followed, -1)


def _cells(values: np.ndarray) -> np.ndarray:
    """(n, C): one column where each image has one value."""
    return values.reshape(len(values), -1)


def weights(mix: Mix, said: Values, true: Values, seed: int) -> Block:
    """Of numbers, (K, 2, 3): the weights of the anchors' and the patches' donor's value in the least squares that
    explain what is read, with an intercept; NaN for a half of no image. Unmixed, both are that of the one image. Of
    circular values the same of their points on the circle, cosine and sine at one weight.
    """
    measures = [m for m in said if m.kind in NUMERIC]
    values = np.full((len(measures), 2, 3), np.nan, dtype=np.float32)
    counted, couples = np.zeros(len(measures), dtype=np.int64), np.zeros(len(measures), dtype=np.int64)
    donors = {side: half.of for side, half in enumerate((mix.anchors, mix.patches)) if half.of is not None}
    for number, m in enumerate(measures):
        sides = list(donors)[:1] if mix.name == "unmixed" else list(donors)
        given = np.stack([true[m][donors[side]] for side in sides], 1)
        use = np.isfinite(given).all(1)
        counted[number], couples[number] = use.sum(), len(np.unique(mix.couple[use]))
        if couples[number] > len(sides) + 1:
            y, x, couple = said[m][use], given[use], mix.couple[use]
            if m.kind == "circular":
                y, x = (_points(values, m.period) for values in (y, x))
                couple = np.tile(couple, 2)
            weight = np.stack(regress(y, x, couple, seed), -1)
            values[number, list(donors) if mix.name == "unmixed" else sides] = weight
    always = np.zeros(len(measures), dtype=np.int8)
    return Block(measures, always, values, np.full(values.shape[:-1], np.nan), counted, couples)


def regress(y: np.ndarray, x: np.ndarray, couples: np.ndarray, seed: int) -> draws.Intervals:
    """(k,) weights of the columns of x (m, k) in the least squares of y (m,), resampling couples (m,)."""
    _, couple = np.unique(couples, return_inverse=True)
    count = int(couple.max()) + 1
    design = np.column_stack([x - x.mean(0), np.ones(len(x))])
    size = design.shape[1]
    moments = np.zeros((count, size, size + 1))
    np.add.at(moments, couple, design[:, :, None] * np.column_stack([design, y])[:, None, :])
    drawn = resample_groups(count, seed).astype(float)
    every = np.concatenate([np.ones((1, count)), drawn]) @ moments.reshape(count, -1)
    sums = every.reshape(-1, size, size + 1)
    solved = (np.linalg.pinv(sums[..., :-1], hermitian=True) @ sums[..., -1:])[:, :-1, 0]
    return draws.Draws(solved[0], solved[1:], count).intervals()


def _points(values: np.ndarray, period: float) -> np.ndarray:
    """(2 m, ...) the cosines of circular values (m, ...), then their sines, each without its mean."""
    points = circular.vectors(values, period)
    points -= points.mean(0)
    return np.concatenate([points[..., 0], points[..., 1]])


class Table:
    """Rows as they come."""

    def __init__(self) -> None:
        self._texts: list[tuple[str, ...]] = []
        self._blocks: list[Block] = []

    def add(self, factor: str, mix: Mix, block: Block) -> None:
        self._texts += [(m.task, m.suite, m.kind, str(m.readout), factor, mix.name) for m in block.measures]
        self._blocks.append(block)

    def columns(self) -> dict[str, Any]:
        """What shares and numbers both have, by its name in a section."""
        texts = map(list, zip(*self._texts, strict=True)) if self._texts else ([] for _ in range(6))
        names = ("task", "suite", "kind", "readout", "factor", "mix")
        counts = {name: self.column(name) for name in ("counted", "couples")}
        return dict(zip(names, texts, strict=True)) | counts

    def column(self, name: str) -> np.ndarray:
        """Of all blocks."""
        return np.concatenate([getattr(block, name) for block in self._blocks])


class Row(NamedTuple):
    """One row of the table: which source one readout follows in mixtures of one kind."""

    suite: str
    task: str
    kind: str
    readout: str
    factor: str
    mix: str
    only_right: bool
    whom: np.ndarray
    """(3, 3) shares of WHOM, or of numbers (2, 3) weights; estimate, lower, upper."""
    chance: float
    """The anchors' share were the readouts dealt at random; 0 for weights."""
    cases: int
    couples: int

    @property
    def key(self) -> tuple[str | bool, ...]:
        return self[:7]


def rows(section: Interchange) -> list[Row]:
    """Shares, then weights."""
    texts, counts = _columns(section)
    right, chance = section.only_right.astype(bool).tolist(), section.floor[:, 0].tolist()
    shares = zip(*texts, right, section.share, chance, *counts, strict=True)
    texts, counts = _columns(section.number)
    weights = zip(*texts, repeat(False), section.number.weight, repeat(0.0), *counts, strict=False)
    return [Row(*row) for row in (*shares, *weights)]


def _columns(table: Interchange | NumberRows) -> tuple[list[list[str]], list[list[int]]]:
    texts = [table.suite, table.task, table.kind, table.readout, table.factor, table.mix]
    return texts, [table.counted.tolist(), table.couples.tolist()]
