"""HDF5 from elsewhere, read without trust. Knows h5py; not what a file is about.

Nothing in a file is ever executed: text, numbers and JSON only. Everything must lie in the file itself, as a link could
open another file of this machine, and the size of a text is a claim until as much is stored.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

import h5py
import hdf5plugin  # noqa: F401 -- its filters stay registered: with it, h5py reads a run as any other file
import numpy as np

from htc_probe.extract.errors import UserError, reason

TEXT = h5py.string_dtype("utf-8")
_DAMAGE = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError)
"""What h5py and numpy say of bad bytes."""
_TEXT_BYTES = 16  # of a text in its dataset, which is not packed: a length and where the text itself is
_MOST_JSON = 2**24  # characters
_T = TypeVar("_T")


def opened(
    path: Path, parse: Callable[[h5py.File], _T], *, foreign: Callable[[str], str], damaged: Callable[[str], str]
) -> _T:
    """What `parse` makes of the file, which stays open. Raises UserError, in these words, where it is no HDF5 or what
    is in it is damaged, and any that `parse` raises."""
    try:
        file = h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        raise UserError(foreign(_unopened(path, error))) from error
    try:
        with damage(damaged):
            return parse(file)
    except BaseException:
        file.close()
        raise


@contextlib.contextmanager
def damage(words: Callable[[str], str]) -> Iterator[None]:
    """Turns what h5py and numpy say of bad bytes into a UserError, in these words."""
    try:
        yield
    except UserError:
        raise
    except _DAMAGE as error:
        raise UserError(words(_plain(error))) from error


def _unopened(path: Path, error: OSError) -> str:
    """Why a file could not be opened, in plain words."""
    cut = re.search(r"truncated file: eof = (\d+), .*stored_eof = (\d+)", str(error))
    if cut:
        there, all_of_it = map(int, cut.groups())
        return f"it is cut off, {there:,} of {all_of_it:,} bytes are there"
    if path.stat().st_size == 0:
        return "it is empty"
    return "it is not an HDF5 file" if "signature not found" in str(error) else _plain(error)


def _plain(error: BaseException) -> str:
    """What went wrong, without the words of HDF5, which name its functions."""
    told = reason(error).strip("\"'")
    if not told.startswith(("Unable to ", "Can't ")):
        return told
    lost = re.search(r"can't locate attribute: '(.*?)'|object '(.*?)' doesn't exist", told)
    return f"it has no {lost[1] or lost[2]}" if lost else "bytes of it are damaged"


def group(file: h5py.Group, name: str) -> h5py.Group:
    """The group `name`, which must lie in this file."""
    found = _within(file, name)
    if not isinstance(found, h5py.Group):
        raise ValueError(f"{name} is no group")
    return found


def dataset(file: h5py.Group, name: str, sources: Collection[str] = ()) -> h5py.Dataset:
    """The dataset `name`, which must lie in this file, or under the same name in these ones."""
    found = _within(file, name)
    if not isinstance(found, h5py.Dataset) or found.external:
        raise ValueError(f"{name} is not stored in this file")
    if found.is_virtual:
        linked = found.virtual_sources()
        if not sources or not all(source.file_name in sources and source.dset_name == name for source in linked):
            raise ValueError(f"{name} is not stored in this file")
        return found
    if is_text(found.dtype):
        stored = found.id.get_storage_size() >= (_TEXT_BYTES * found.size if found.ndim else 0)
        if h5py.check_string_dtype(found.dtype).length is not None or not stored:
            raise ValueError(f"{name} says that it has {found.size:,} entries, which are not stored")
    return found


def values(found: h5py.Dataset, rows: Any = ()) -> Any:
    """What a dataset holds, text as str."""
    return (found.asstr() if is_text(found.dtype) else found)[rows]


def is_text(dtype: Any) -> bool:
    return h5py.check_string_dtype(np.dtype(dtype)) is not None


def text(value: Any) -> str:
    """An attribute that is text; "" where there is none."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if not isinstance(value, str | None):
        raise TypeError(f"expected text, found {value!r}")
    return value or ""


def json_object(attrs: h5py.AttributeManager, name: str) -> dict[str, Any]:
    """An attribute that is a JSON object."""
    said = text(attrs[name])
    if len(said) > _MOST_JSON:
        raise ValueError(f"{name} is {len(said):,} characters long")
    return dict(json.loads(said))


def _within(file: h5py.Group, name: str) -> Any:
    # The links first: following one could open another file.
    steps = name.split("/")
    for depth in range(1, len(steps) + 1):
        if not isinstance(file.get("/".join(steps[:depth]), getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is missing or a link")
    return file[name]
