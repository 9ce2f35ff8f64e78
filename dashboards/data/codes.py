"""MGVQ's codes of a run's images. Knows runs and their labels; not figures."""

from typing import NamedTuple

import numpy as np

from htc_probe.analysis.contents import associations as of_codes
from htc_probe.dashboards.data.kept import RunKey, kept
from htc_probe.dashboards.data.run import Header, header, labels, opened
from htc_probe.extract.store import is_labelled

_CODES_BYTES = 256 * 2**20
"""Codes read of a run, at most; of a longer one, evenly spaced images."""


_CODES_TOGETHER = 64  # images that are read at once where not all are


class Codes(NamedTuple):
    """The codes of n images of a run."""

    rows: np.ndarray
    """(n,) where the images are in the run, ascending."""
    codes: np.ndarray
    """(groups, n, places) uint16, the places row by row."""
    size: int
    """Codes that a group has."""
    shares: np.ndarray
    """(groups, size) how often each occurs, of all places."""


@kept(2, "Reading the codes")
def all_codes(key: RunKey, most_bytes: int = _CODES_BYTES) -> Codes:
    run = opened(key)
    assert run.shape.codes is not None
    total, (h, w, G) = len(run), run.shape.codes
    n = min(total, max(1, most_bytes // (2 * h * w * G)))
    together = min(n, _CODES_TOGETHER if n < total else 4096)
    starts = np.linspace(0, total - together, n // together).astype(int) if n < total else range(0, n, together)
    blocks = [np.arange(start, min(start + together, total)) for start in starts]
    rows = np.concatenate(blocks)
    codes_GnP = np.empty((G, len(rows), h * w), dtype=np.uint16)
    done = 0
    for block in blocks:
        codes_BhwG = run.codes(block)
        codes_GnP[:, done : done + len(block)] = np.moveaxis(codes_BhwG, -1, 0).reshape(G, len(block), h * w)
        done += len(block)
    size = _code_size(header(key), int(codes_GnP.max()) + 1)
    return Codes(rows, codes_GnP, size, np.stack([of_codes.shares(group, size) for group in codes_GnP]))


def _code_size(header: Header, least: int) -> int:
    """Codes of a group, as the model's configuration says where that can be."""
    size = header.info.codes_per_group
    return size if size is not None and least <= size <= 2**16 else least


@kept(16)
def codes_of_image(key: RunKey, image: int) -> np.ndarray:
    """(rows, columns, groups) uint16 of one image."""
    run = opened(key)
    return run.codes([image])[0]


@kept(4)
def codes_held(key: RunKey, group: int) -> of_codes.Held:
    """Which image of `all_codes` holds which code of a group."""
    return of_codes.held(all_codes(key).codes[group])


@kept(64)
def codes_of_answer(key: RunKey, group: int, name: str, answer: int) -> of_codes.Associations:
    """Codes of a group that go with the answer of this number to a task, see `dashboards.codes.answers`; corrected for
    all codes that occur and all answers to the task.
    """
    read = all_codes(key)
    task = next(task for task in header(key).tasks if task.name == name)
    values = labels(key)[name][read.rows]
    groups = header(key).groups
    counted = of_codes.one_of_each([groups[row] for row in read.rows], is_labelled(task.kind, values))
    tests = int((read.shares > 0).sum()) * len(of_codes.answers(values, task.kind, task.classes, task.unit))
    inside = of_codes.answering(values, task.kind, answer)
    return of_codes.associations(codes_held(key, group), inside, counted, read.size, tests)
