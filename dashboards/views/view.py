"""What a page is given."""

from pathlib import Path
from typing import NamedTuple

from dashboards import data
from dashboards.controls import Selection
from dashboards.runs import RunFile


class View(NamedTuple):
    """One run, and what of it is looked at."""

    path: Path
    """For messages and commands; files are read by `data` with `key`."""
    key: data.RunKey
    header: data.Header
    selection: Selection
    runs: tuple[RunFile, ...]
    """All that may be opened, this one among them."""
