"""What is compared of two runs, image by image. Knows both runs and `analysis.compare`; not figures."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from htc_probe.analysis import compare
from htc_probe.analysis.attention import rows as att
from htc_probe.dashboards.data.attention import anchor_mass, attention_blocks
from htc_probe.dashboards.data.kept import RunKey, kept
from htc_probe.dashboards.data.run import header, row_of
from htc_probe.probes.files.predictions import load

_PAIRED_BYTES = 48 * 2**20
"""Attention of two runs that is compared key by key: so much of float16 in each; of evenly spaced images."""


class Pairs(NamedTuple):
    """Which images of two runs are laid side by side."""

    rows: np.ndarray
    """(n,) of this run: those that both hold, or all where they share none."""
    other_rows: np.ndarray
    """(n,) the same images in the other run, or all of it."""
    groups: np.ndarray
    """(n,) int, the group of each."""
    other_groups: np.ndarray | None
    """None: paired. Otherwise the groups of the other run's images."""

    @property
    def paired(self) -> bool:
        return self.other_groups is None

    def differences(self, own: np.ndarray, others: np.ndarray) -> compare.Differences:
        """Of what was measured on each of them in this run and the other, see `compare.of_images`."""
        return compare.of_images(own, others, self.groups, self.other_groups)

    def evenly(self, most: int) -> "Pairs":
        """At most so many of them."""
        mine, theirs = (att.evenly(np.arange(len(rows)), most) for rows in (self.rows, self.other_rows))
        other_groups = None if self.other_groups is None else self.other_groups[theirs]
        return Pairs(self.rows[mine], self.other_rows[theirs], self.groups[mine], other_groups)


@kept(8)
def pairs(key: RunKey, other: RunKey, chosen: tuple[int, ...] = ()) -> Pairs:
    """The images of two runs, paired by id; of this run's `chosen` rows only, where there are some."""
    rows, other_rows = row_of(key), row_of(other)
    shared = [name for name in rows if name in other_rows]
    groups = _numbered(header(key).groups)
    if not shared:
        mine = np.array(chosen or range(len(rows)))
        return Pairs(mine, np.arange(len(other_rows)), groups[mine], _numbered(header(other).groups))
    if chosen:
        shared = [name for name in shared if rows[name] in set(chosen)]
    mine = np.array([rows[name] for name in shared], dtype=int)
    return Pairs(mine, np.array([other_rows[name] for name in shared], dtype=int), groups[mine], None)


def _numbered(names: Sequence[str]) -> np.ndarray:
    """(N,) int, equal where names are."""
    return np.unique(np.asarray(names), return_inverse=True)[1]


@kept(4, "Comparing the attention of all images")
def mass_differences(key: RunKey, other: RunKey, chosen: tuple[int, ...]) -> compare.Differences:
    """(L, H) of the attention on the anchors, over all pairs; both runs have as many layers and heads."""
    pair, mass, other_mass = pairs(key, other, chosen), anchor_mass(key), anchor_mass(other)
    parts = [
        pair.differences(mass[pair.rows, layer], other_mass[pair.other_rows, layer])
        for layer in range(mass.shape[1])  # a layer at a time, which is less to hold in float64
    ]
    return compare.joined(parts)


@kept(8)
def paired_mass(key: RunKey, other: RunKey, chosen: tuple[int, ...], head: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(n, L) float32 of each run: attention of the pairs' images on the anchors, at one head or the mean over heads."""
    pair = pairs(key, other, chosen)
    mass, other_mass = (att.head_mean(anchor_mass(run), head) for run in (key, other))
    return mass[pair.rows], other_mass[pair.other_rows]


@kept(1, "Reading the attention of both runs")
def paired_attention(key: RunKey, other: RunKey, chosen: tuple[int, ...]) -> tuple[att.Sample, att.Sample, Pairs]:
    """All attention of evenly spaced pairs, as many as `_PAIRED_BYTES` allow; and which they are."""
    shapes = [header(run).shape for run in (key, other)]
    most = min(_PAIRED_BYTES // (2 * shape.layers * shape.heads * shape.keys) for shape in shapes)
    pair = pairs(key, other, chosen).evenly(max(2, most))
    sample, other_sample = (
        att.sample(attention_blocks(run, rows), shape.roles)
        for run, rows, shape in zip((key, other), (pair.rows, pair.other_rows), shapes, strict=True)
    )
    return sample, other_sample, pair


@kept(2, "Comparing what the probes said of each image")
def paired_probes(
    key: RunKey,
    other: RunKey,
    said: RunKey,
    other_said: RunKey,
    asked: tuple[tuple[compare.ProbeKey, compare.ProbeKey], ...],
) -> dict[compare.ProbeKey, compare.Scored]:
    """Scores of the images that both runs' probes were asked about: `said` and `other_said` are the files of
    predictions, `asked` the probes to lay side by side; by this run's probe. Those of an earlier state of a run, and
    those that answered other questions (other classes, other labels), are left out.
    """
    pair = pairs(key, other)
    mine, theirs = (load(file.path) for file in (said, other_said))
    if not pair.paired or any(
        file.run.get("created") != header(run).created for file, run in ((mine, key), (theirs, other))
    ):
        return {}
    scores = {
        probe: compare.scored(mine[probe], theirs[like], pair.rows, pair.other_rows)
        for probe, like in asked
        if probe in mine and like in theirs
    }
    return {probe: scored for probe, scored in scores.items() if scored is not None}
