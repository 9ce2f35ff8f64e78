"""What was read of single images: by probes, and in the model's own answers. Knows files beside a run and arrays."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from htc_probe.analysis.sections import Interchange
from htc_probe.dashboards.data.beside import said_beside, sections
from htc_probe.dashboards.data.collection import answered, answered_right, loss, right
from htc_probe.dashboards.data.kept import RunKey, key_of
from htc_probe.dashboards.data.probes import predicted, predictions
from htc_probe.dashboards.data.run import Header, header, row_of, rows_of
from htc_probe.extract.errors import UserError
from htc_probe.probes.inputs.representations import shown

ANSWERS = "the model's answers"


class Reader(NamedTuple):
    """Who reads what."""

    task: str
    source: str
    """A representation as a person reads it, or the model's answers."""


class Read(NamedTuple):
    """What a reader made of the N images of a run; NaN where it did not read one."""

    right_N: np.ndarray
    """1 or 0; NaN of numbers, about which nothing is right or wrong."""
    loss_N: np.ndarray | None
    """None of answers."""
    unit: str


def readers(run: Path, of: Header) -> dict[Reader, Callable[[], Read]]:
    """All that read images of this state of the run, each with what gives it."""
    found: dict[Reader, Callable[[], Read]] = {}
    if (place := _said(run, of)) is not None:
        units = {task.name: task.unit for task in of.tasks}
        for task, name, layer in predictions(place):
            read = partial(_by_probe, place, (task, name, layer), of.shape.images, units.get(task, ""))
            found[Reader(task, shown(name, layer, of.shape.layers))] = read
    try:
        section = sections(run, of).interchange
        if section is None:
            return found
        rows = rows_of(key_of(run), section.images)
    except UserError:  # the page of interchanges tells of it
        return found
    for task in answered(section):
        found[Reader(task, ANSWERS)] = partial(_by_answer, section, rows, task, of.shape.images)
    return found


def right_there(run: RunKey, other: Path, reader: Reader) -> np.ndarray | None:
    """(N,) what the same reader got right of the same images in another run; None where it has none such."""
    key = key_of(other)
    read = readers(other, header(key)).get(reader)
    if read is None:
        return None
    right_M, row_there = read().right_N, row_of(key)
    at = np.array([row_there.get(name, -1) for name in header(run).ids])
    return np.where(at >= 0, right_M[at], np.nan)


def _said(run: Path, of: Header) -> RunKey | None:
    """What probes said of this state of the run; None where there is nothing that can be read."""
    if (beside := said_beside(run)) is None:
        return None
    place = key_of(beside)
    try:
        return place if predictions(place).run.get("created") == of.created else None
    except UserError:  # the sidebar tells of it
        return None


def _by_probe(place: RunKey, probe: tuple[str, str, int | None], images: int, unit: str) -> Read:
    said = predicted(place, probe, images)
    return Read(right(said, images), loss(said, images), "nats" if said.error is None else unit)


def _by_answer(section: Interchange, rows: list[int], task: str, images: int) -> Read:
    return Read(answered_right(section, rows, task, images), None, "")
