"""Which runs the dashboard may open. Knows paths; not what is in a run, and nothing of Streamlit."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from extract.errors import UserError
from extract.store import list_runs, open_run

DEFAULT_FOLDER = Path("runs")


class Found(NamedTuple):
    """The runs under the folders given to the command."""

    runs: list[Path]
    """May be opened; folder by folder as given, the newest first within each."""
    refused: list[Path]
    """Links in one of the folders that lead out of it."""


def find_runs(roots: Sequence[Path]) -> Found:
    """Complete runs in the folders of `roots`, and the run files among `roots` themselves.

    Looked up anew at every call, so that a run which appears, vanishes or becomes a link is noticed. Roots
    that are gone give nothing.
    """
    runs: list[Path] = []
    refused: list[Path] = []
    for root in roots:
        if root.is_dir():
            for path in list_runs(root):
                (runs if inside(path, root) else refused).append(path)
        elif root.is_file():
            runs.append(root)
    return Found(list(dict.fromkeys(runs)), refused)


def inside(path: Path, folder: Path) -> bool:
    """Whether `path`, with every link followed, lies in `folder`."""
    return path.resolve().is_relative_to(folder.resolve())


def check_roots(roots: Sequence[Path]) -> None:
    """Raises UserError, with what to type, unless every root exists and at least one run may be opened."""
    for root in roots:
        if root.is_file():
            open_run(root).close()
        elif not root.exists() and root != DEFAULT_FOLDER:  # not made before the first run
            raise UserError(f"{root} does not exist; expected a run (.h5) or a folder of runs")
    runs, refused = find_runs(roots)
    if not runs:
        names = ", ".join(f"{root}" for root in roots)
        links = f" ({len(refused)} links that lead out of the folder are not opened)" if refused else ""
        raise UserError(f"no finished run in {names}{links}; make one with: htc-extract --split val")
