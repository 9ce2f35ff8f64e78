"""The pages' one cache, and the states of files. Knows Streamlit's cache; not what is in a file.

Every value is kept by the path, time and size of its file, so that a run that was extracted again is read anew. A file
that vanishes gives a UserError at the next look, never a stale handle. Arrays are kept once for all visitors.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import streamlit as st

from htc_probe.dashboards.runs import state_of
from htc_probe.extract.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])


class RunKey(NamedTuple):
    """One state of one file, or of the shards of a run that is being made."""

    path: str
    mtime_ns: int
    size: int


def key_of(path: Path) -> RunKey:
    """The file as it is now, or the shards of the run that will be there. Raises UserError when neither is there."""
    try:
        return RunKey(str(path), *state_of(path))
    except OSError as error:
        raise UserError(f"{path.name} cannot be read any more ({error.strerror}); pick another run") from error


def kept(most: int, spinner: str | None = None, seconds: float | None = None) -> Callable[[F], F]:
    """Keeps the last `most` values of a function by its arguments, but for those that begin with `_`; for so many
    seconds, where they are given. `spinner`: what the page says meanwhile.
    """
    return cast(Any, st.cache_resource(max_entries=most, ttl=seconds, show_spinner=spinner or False))
