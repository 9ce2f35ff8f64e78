"""What all pages read of a run: its facts, images and labels. Knows runs; not analyses, probes or figures."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from htc_probe.dashboards.data.kept import RunKey, kept
from htc_probe.dashboards.runs import Found, find_runs, open_any
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import NUMERIC, Run, RunInfo, RunShape, Task
from htc_probe.extract.store.shards import unfinished


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
    finished: bool = True
    expected: int = 0
    """Images that the run will have; those it has where it is finished."""


class ImageRecord(NamedTuple):
    """What a run holds of one image."""

    thumbnail: np.ndarray
    """(96, 96, 3) uint8."""
    attention: np.ndarray
    """(L, H, S) float32, rows of <voco> that sum to 1."""
    anchor_mass: np.ndarray
    """(L, H) float32, their sum over the anchors, from before 16-bit storage."""


def available(roots: Sequence[Path]) -> Found:
    """`find_runs` at most every 5 seconds; runs that vanished since are left out."""
    runs, refused = listed(tuple(roots))
    return Found([run for run in runs if not run.finished or run.path.is_file()], refused)


@kept(1, seconds=5)
def listed(roots: tuple[Path, ...]) -> Found:
    return find_runs(roots)


@kept(8)
def opened(key: RunKey) -> Run:
    """The run, finished or not. Kept open, as opening one and checking what it says of itself takes 10 ms."""
    return open_any(Path(key.path))


@kept(16)
def header(key: RunKey) -> Header:
    run = opened(key)
    expected = len(run)
    if not run.finished and (shards := unfinished(Path(key.path))) is not None:
        expected = shards.job.shape.images
    facts = run.info, run.shape, run.tasks, run.created, run.skipped
    return Header(*facts, run.ids(), run.paths(), run.groups(), run.finished, expected)


@kept(16)
def image_record(key: RunKey, image: int) -> ImageRecord:
    run = opened(key)
    return ImageRecord(run.thumbnail(image), run.attention(image), run.anchor_mass_of(image))


@kept(256)
def thumbnail(key: RunKey, image: int) -> np.ndarray:
    """(96, 96, 3) uint8 of one image."""
    return opened(key).thumbnail(image)


@kept(4)
def row_of(key: RunKey) -> dict[str, int]:
    """The row of every image, by its id."""
    return {name: row for row, name in enumerate(header(key).ids)}


def rows_of(key: RunKey, names: Sequence[str]) -> list[int]:
    """The rows of these images. Raises UserError where the run has none of a name."""
    rows = row_of(key)
    if missing := [name for name in names if name not in rows]:
        raise UserError(f"the analysis beside {Path(key.path).name} is of {missing[0]!r}, which the run does not have")
    return [rows[name] for name in names]


@kept(16)
def labels(key: RunKey) -> dict[str, np.ndarray]:
    """Task -> the labels of all images, as stored."""
    run = opened(key)
    return {task.name: run.labels(task.name) for task in run.tasks}


def label_text(task: Task, value: np.ndarray | float) -> str:
    """One label in words; `unknown` where the data had none."""
    if task.kind == "multilabel":
        flags = np.asarray(value)
        if not task.known(flags).any():
            return "unknown"
        return ", ".join(name for name, flag in zip(task.classes, flags, strict=True) if flag == 1) or "none"
    if task.kind in NUMERIC:
        return "unknown" if np.isnan(value) else f"{float(value):.4g} {task.unit}".strip()
    return "unknown" if int(value) < 0 else task.classes[int(value)]


@kept(4)
def _pictures(key: RunKey) -> dict[int, str]:
    return {}


def pictures(key: RunKey, rows: Sequence[int]) -> list[str]:
    """Thumbnails of these images as data URIs (JPEG, 3 to 5 kB); the run is opened once for those not seen before."""
    seen = _pictures(key)
    if missing := [row for row in rows if row not in seen]:
        run = opened(key)
        for row in missing:
            buffer = io.BytesIO()
            Image.fromarray(run.thumbnail(row)).save(buffer, "JPEG", quality=90)
            seen[row] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return [seen[row] for row in rows]
