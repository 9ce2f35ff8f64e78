"""Attention of <voco>, averaged over images or of each. Knows runs and `analysis.attention`; not figures."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from htc_probe.analysis.attention import rows as att
from htc_probe.dashboards.data.kept import RunKey, kept
from htc_probe.dashboards.data.run import header, opened

_AVERAGE_BYTES = 64 * 2**20
"""Attention read for an average over images, at most; of more images, evenly spaced ones are read."""


class Average(NamedTuple):
    """Attention over n images."""

    n: int
    attention: np.ndarray
    """(L, H, S) float32, the mean."""
    values: dict[str, np.ndarray]
    """`attention.measure` of each image, (n, L, H, ...) float32."""


def average(key: RunKey, rows: Sequence[int] | np.ndarray, most_bytes: int = _AVERAGE_BYTES) -> Average:
    """Attention averaged over these images, or over evenly spaced ones of them: `most_bytes` of float32 are read."""
    shape = header(key).shape
    return _average(key, att.evenly(rows, most_bytes // (4 * shape.layers * shape.heads * shape.keys)))


@kept(4, "Averaging the attention")
def _average(key: RunKey, rows: np.ndarray) -> Average:
    shape = header(key).shape
    total_LHS = np.zeros((shape.layers, shape.heads, shape.keys))
    parts: list[dict[str, np.ndarray]] = []
    for attention_BLHS in attention_blocks(key, rows):
        total_LHS += attention_BLHS.sum(axis=0, dtype=np.float64)
        parts.append(att.measure(attention_BLHS, shape.roles))
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Average(len(rows), (total_LHS / len(rows)).astype(np.float32), values)


@kept(4)
def anchor_mass(key: RunKey) -> np.ndarray:
    """(N, L, H) float32 of all images."""
    return opened(key).anchor_mass()


@kept(32)
def anchor_curve(key: RunKey, rows: np.ndarray, head: int | None) -> tuple[np.ndarray, att.Band]:
    """What these images give the anchors, by layer (L,): the mean and how images differ; head None is the mean."""
    mass_NL = att.head_mean(anchor_mass(key), head)[rows]
    return mass_NL.mean(axis=0), att.band(mass_NL)


@kept(8)
def anchor_cells(key: RunKey, rows: np.ndarray) -> tuple[np.ndarray, att.Band]:
    """The same by layer and head, (L, H)."""
    mass_NLH = anchor_mass(key)[rows]
    return mass_NLH.mean(axis=0), att.band(mass_NLH)


@kept(16)
def anchor_values(key: RunKey, layer: int | None, head: int | None) -> np.ndarray:
    """(N,) what each image gives the anchors at this layer and head; None is the mean."""
    mass_NL = att.head_mean(anchor_mass(key), head)
    return mass_NL.mean(axis=1) if layer is None else mass_NL[:, layer]


def first_tokens(key: RunKey, rows: Sequence[int], count: int) -> np.ndarray:
    """(n, L, H, F) float32: what these images give to the first hybrid tokens."""
    return np.stack([_first_tokens(key, row, count) for row in rows])


@kept(128)
def _first_tokens(key: RunKey, image: int, count: int) -> np.ndarray:
    run = opened(key)
    return run.attention(image)[..., att.first_hybrid(run.shape.roles, count)]


def attention_blocks(key: RunKey, rows: np.ndarray) -> Iterator[np.ndarray]:
    """(B, L, H, S) of some images, some 8 MB at a time."""
    return (block.astype(np.float32) for block in opened(key).attention_blocks(rows))
