"""What the pages show, read from runs slice by slice; the only cache. Knows no figures and no layout.

Every cached value is keyed by the file's path, time and size, so that a run that was extracted again is read
anew. A file is open only while it is read: one that vanishes gives a UserError at the next look, never a
stale handle.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import streamlit as st

from dashboards import attention as att
from dashboards.runs import Found, find_runs, inside
from extract.errors import UserError
from extract.store import RunInfo, RunShape, Task, open_run
from probes import results

AVERAGE_BYTES = 256 * 2**20
"""Attention read for the average over a run, at most; a longer run is averaged over evenly spaced images."""


class RunKey(NamedTuple):
    """One state of one file."""

    path: str
    mtime_ns: int
    size: int


class Header(NamedTuple):
    """All of a run that is small: its facts, and the names of its images."""

    info: RunInfo
    shape: RunShape
    tasks: tuple[Task, ...]
    created: str
    skipped: tuple[tuple[str, str], ...]
    ids: list[str]
    paths: list[str]
    groups: list[str]


class ImageRecord(NamedTuple):
    """What a run holds of one image."""

    thumbnail: np.ndarray
    """(96, 96, 3) uint8."""
    attention: np.ndarray
    """(L, H, S) float32, rows of <voco> that sum to 1."""
    anchor_mass: np.ndarray
    """(L, H) float32, their sum over the anchors, from before 16-bit storage."""


class Average(NamedTuple):
    """Attention over n images of a run."""

    n: int
    total: int
    """Images in the run; n of them, evenly spaced, were read."""
    attention: np.ndarray
    """(L, H, S) float32, the mean."""
    mass: dict[str, np.ndarray]
    """role -> (n, L, H) float32, share of all attention."""


def available(roots: Sequence[Path]) -> Found:
    """`find_runs`, which opens every file, at most every 5 seconds; runs that vanished since are left out."""
    found = _found(tuple(roots))
    return Found([path for path in found.runs if path.is_file()], found.refused)


@st.cache_data(ttl=5, show_spinner=False)
def _found(roots: tuple[Path, ...]) -> Found:
    return find_runs(roots)


def key_of(path: Path) -> RunKey:
    """The file as it is now. Raises UserError when it is gone."""
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(
            f"{path.name} cannot be read any more ({error.strerror}); pick another run"
        ) from error
    return RunKey(str(path), stat.st_mtime_ns, stat.st_size)


@st.cache_data(max_entries=16, show_spinner=False)
def header(key: RunKey) -> Header:
    with open_run(key.path) as run:
        return Header(
            run.info, run.shape, run.tasks, run.created, run.skipped, run.ids(), run.paths(), run.groups()
        )


@st.cache_data(max_entries=64, show_spinner=False)
def image_record(key: RunKey, image: int) -> ImageRecord:
    with open_run(key.path) as run:
        return ImageRecord(run.thumbnail(image), run.attention(image), run.anchor_mass_of(image))


@st.cache_data(max_entries=16, show_spinner=False)
def labels(key: RunKey) -> dict[str, np.ndarray]:
    """Task -> the labels of all images, as stored."""
    with open_run(key.path) as run:
        return {task.name: run.labels(task.name) for task in run.tasks}


@st.cache_data(max_entries=16, show_spinner=False)
def anchor_mass(key: RunKey) -> np.ndarray:
    """(N, L, H) float32 of all images."""
    with open_run(key.path) as run:
        return run.anchor_mass()


@st.cache_data(max_entries=4, show_spinner="Averaging the attention over the run")
def average(key: RunKey, most_bytes: int = AVERAGE_BYTES) -> Average:
    """Attention averaged over the run, read one image at a time, `most_bytes` of float32 at most."""
    with open_run(key.path) as run:
        shape, total = run.shape, len(run)
        n = min(total, max(1, most_bytes // (4 * shape.layers * shape.heads * shape.keys)))
        mean_LHS = np.zeros((shape.layers, shape.heads, shape.keys))
        masses: list[dict[str, np.ndarray]] = []
        for image in np.linspace(0, total - 1, n).round().astype(int):
            rows_LHS = run.attention(int(image))
            mean_LHS += rows_LHS / n
            masses.append(att.role_mass(rows_LHS, shape.roles))
    mass = {role: np.stack([one[role] for one in masses]) for role in masses[0]}
    return Average(n, total, mean_LHS.astype(np.float32), mass)


def probes_beside(run: Path) -> Path | None:
    """Where `htc-probe` left its results for this run, if it did; never a link that leads away."""
    path = results.default_path(run)
    return path if path.is_file() and inside(path, run.parent) else None


@st.cache_data(max_entries=16, show_spinner=False)
def probe_results(key: RunKey) -> results.Results:
    """The results in the file `key`. Raises UserError when it is damaged."""
    return results.read(key.path)


def label_text(task: Task, value: np.ndarray | float) -> str:
    """One label in words; `unknown` where the data had none."""
    if task.kind == "multilabel":
        flags = np.asarray(value)
        if (flags == 255).all():
            return "unknown"
        return ", ".join(name for name, flag in zip(task.classes, flags, strict=True) if flag == 1) or "none"
    if task.kind == "number":
        return "unknown" if np.isnan(value) else f"{float(value):.4g} {task.unit}".strip()
    return "unknown" if int(value) < 0 else task.classes[int(value)]
