"""Sections to test with, of the few values that a test is about; the rest are zeros, or left out where they may be."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from htc_probe.analysis import records
from htc_probe.analysis.records import Field, R


def filled(kind: type[R], values: Mapping[str, Any], **lengths: int) -> R:
    """A section whose values have these names in the file; other axes are 1 long, or as `lengths` say."""
    given = dict(values)
    needed = dict(_needed(kind, "", given))
    for name, field in needed.items():
        if name in given:
            lengths |= dict(zip(field.axes, np.shape(given[name]), strict=False))
    for name, field in needed.items():
        shape = [int(axis) if axis.isdigit() else lengths.get(axis, 1) for axis in field.axes]
        given.setdefault(name, _nothing(field, shape))
    return records.build(kind, {name: records.describe(value) for name, value in given.items()}, given.__getitem__)


def misshape(path: Path, section: str, values: Mapping[str, Any]) -> None:
    """Puts values into a section of a file, as they are."""
    with h5py.File(path, "r+") as file:
        for name, value in values.items():
            if name in file[section]:
                del file[section][name]
            file[section][name] = value


def _needed(kind: Any, prefix: str, given: Mapping[str, Any]) -> Iterator[tuple[str, Field]]:
    """The values that a record cannot be without, and those of its optional fields of which some are given."""
    for field in records.fields(kind):
        names = records.names(field, prefix)
        if field.optional and not any(name in given for name in names):
            continue
        if isinstance(field.type, type) and issubclass(field.type, records.Record):
            yield from _needed(field.type, records.joined(prefix, field.name), given)
        else:
            yield from ((name, field) for name in names)


def _nothing(field: Field, shape: list[int]) -> Any:
    if field.type == list[str]:
        return [""] * shape[0]
    if field.type is str:
        return ""
    if field.type in (int, float):
        return field.type()
    return np.zeros(shape, np.int64 if field.whole else np.float32)
