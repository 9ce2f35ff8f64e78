"""What is odd about features, before they are probed: rows far out, few dimensions with all variance, equal rows of
different groups. Knows arrays; not runs, labels or probes. It says what it sees, and changes nothing.

Legend: N rows, D features, S rows of a sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_FAR = 4.0
"""A row is an outlier this many times as far from the mean as 9 in 10 rows. In the built-in run none is beyond 2."""
_HANDFUL, _NEARLY_ALL = 5, 0.95
"""So many dimensions with this share of the variance are told, where there are more than 8 times as many."""
_COPIES = 20
"""With fewer distinct rows than one in so many, features take few values, and rows of different images may be equal."""
_SAMPLE = 512
_BLOCK = 2**24  # numbers of a block


def told(x: Any, used: np.ndarray, groups: np.ndarray, names: Sequence[str]) -> list[str]:
    """A sentence with its numbers for each oddity; none for features that are the same in every row.

    x: (N, D) as an array, or what gives rows for slices, which is read twice; used: (N,) bool, the rows that are
    probed; groups: (N,) numbers; names: of the N rows.
    """
    rows = np.flatnonzero(used)
    if len(rows) < 2:
        return []
    picked = np.zeros(len(used), bool)
    picked[rows[np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(int)]] = True
    shift = np.asarray(x[rows[0] : rows[0] + 1], dtype=np.float64)[0]  # sums around 0 would lose digits
    total, squares = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    digests: list[bytes] = []
    parts = []
    for at, block in _blocks(x, used):
        # Adding 0 makes -0 the 0 that it is equal to.
        digests += [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in block + np.float32(0)]
        parts.append(block[picked[at]])
        moved = block - shift
        total += moved.sum(0)
        squares += (moved**2).sum(0)
    mean = total / len(rows)
    variance = squares / len(rows) - mean**2
    varies = variance > 1e-12 * squares / len(rows)
    if not varies.any():
        return []
    far = np.concatenate([_distances(block - shift - mean, variance, varies) for _, block in _blocks(x, used)])
    ratio = (far / np.maximum(np.quantile(far, 0.9, axis=0), 1e-12)).max(1)
    sample_SD = np.concatenate(parts)[ratio[picked[rows]] <= _FAR].astype(np.float64)
    return [
        *_outliers(ratio, rows, names),
        *_equal_rows(digests, rows, groups, names),
        *(_few_dimensions(sample_SD) if len(sample_SD) > 1 else []),
    ]


def _blocks(x: Any, used: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(numbers of the rows, the rows), those that are used, in float32."""
    size = max(1, _BLOCK // max(1, x.shape[1]))
    for start in range(0, len(used), size):
        at = start + np.flatnonzero(used[start : start + size])
        if len(at):
            yield at, np.asarray(x[start : start + size], dtype=np.float32)[at - start]


def _distances(centred: np.ndarray, variance: np.ndarray, varies: np.ndarray) -> np.ndarray:
    """(n, 2) of rows from the mean: as they are, and standardised."""
    squared = centred[:, varies] ** 2
    return np.sqrt(np.stack([squared.sum(1), squared @ (1 / variance[varies])], 1))


def _outliers(ratio: np.ndarray, rows: np.ndarray, names: Sequence[str]) -> Iterator[str]:
    far = np.flatnonzero(ratio > _FAR)
    if len(far):
        order = far[np.argsort(-ratio[far], kind="stable")]
        yield (
            f"{len(far):,} of {len(rows):,} rows are outliers, up to {ratio.max():,.0f} times as far from the mean as "
            f"9 in 10 rows ({_some([names[row] for row in rows[order]])}); beside them the others look alike to a probe"
        )


def _equal_rows(digests: list[bytes], rows: np.ndarray, groups: np.ndarray, names: Sequence[str]) -> Iterator[str]:
    number = np.unique(digests, return_inverse=True)[1]
    distinct = int(number.max()) + 1
    if distinct < max(2, len(rows) / _COPIES):
        return
    least, most = np.full(distinct, np.iinfo(np.int64).max), np.full(distinct, -1)
    np.minimum.at(least, number, groups[rows])
    np.maximum.at(most, number, groups[rows])
    shared = (least < most)[number]
    if shared.any():
        first = np.flatnonzero(number == number[shared.argmax()])
        other = first[groups[rows[first]] != groups[rows[first[0]]]][0]
        yield (
            f"{int(shared.sum()):,} of {len(rows):,} rows are equal to a row of another group (such as "
            f"{names[rows[first[0]]]} and {names[rows[other]]}); images that show the same need one group"
        )


def _few_dimensions(sample_SD: np.ndarray) -> Iterator[str]:
    centred = sample_SD - sample_SD.mean(0)
    variance = np.where(np.ptp(sample_SD, axis=0) > 0, (centred**2).mean(0), 0.0)
    varies = variance > 0
    width = int(varies.sum())
    if not width:
        return
    order = np.argsort(-variance, kind="stable")
    if few := _handful(variance[order], width):
        yield (
            f"{few[0]} of {width:,} features hold {few[1]} of the variance (feature "
            f"{', '.join(map(str, order[: few[0]]))}); distances and maps see little else, probes standardise"
        )
    z_SD = centred[:, varies] / np.sqrt(variance[varies])
    gram = z_SD @ z_SD.T if len(z_SD) < width else z_SD.T @ z_SD
    if few := _handful(np.linalg.eigvalsh(gram)[::-1], width):
        yield (
            f"{few[0]} of {width:,} principal directions hold {few[1]} of the standardised features' variance; what "
            "the others tell needs weak strengths"
        )


def _handful(falling: np.ndarray, width: int) -> tuple[int, str] | None:
    """How few of the variances hold nearly all, and what share; None where that takes more than a handful."""
    shares = np.cumsum(falling[:_HANDFUL]) / falling.sum()
    if shares[-1] < _NEARLY_ALL:
        return None
    few = int((shares >= _NEARLY_ALL).argmax()) + 1
    return (few, f"{np.floor(shares[few - 1] * 1000) / 10:.1f}%") if width > 8 * few else None


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
