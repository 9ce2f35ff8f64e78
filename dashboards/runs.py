"""Which runs the dashboard may open. Knows paths; not what is in a run, and nothing of Streamlit."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Run, open_run, open_shards
from htc_probe.extract.store.shards import folder_of, unfinished

_DEFAULT_FOLDER = Path("runs")
_SHARDS = ".shards"
# Of a run that can be shown in some gigabytes of memory; far above what is extracted, far below what a file can claim.
_MOST_IMAGES = 5_000_000
_MOST_LAYERS = 4096
_MOST_NUMBERS = 2**26


class RunFile(NamedTuple):
    """A run that may be opened."""

    name: str
    """Tells it apart from the other runs: its stem, with its folder where two runs share that. Links use it."""
    path: Path
    """Where it is, or will be when it is finished."""
    finished: bool = True


class Refused(NamedTuple):
    """A file that looks like a run and is not opened."""

    path: Path
    reason: str


class Found(NamedTuple):
    """What is under the folders given to the command."""

    runs: list[RunFile]
    """Folder by folder as given, the newest first within each."""
    refused: list[Refused]


def find_runs(roots: Sequence[Path]) -> Found:
    """Runs in the folders of `roots`, unfinished ones too, and the run files among `roots` themselves.

    Looked up anew at every call, so that a run which appears, vanishes or becomes a link is noticed. Roots that are
    gone give nothing.
    """
    runs: list[tuple[Path, bool]] = []
    refused: list[Refused] = []
    for root in roots:
        here: list[tuple[str, Path, bool]] = []
        for path in _candidates(root):
            finished = not path.name.endswith(_SHARDS)
            out = path if finished else path.with_name(path.name.removesuffix(_SHARDS))
            if not _is_text(path.name):
                refused.append(Refused(path, "its name is not UTF-8; give it another"))
                continue
            if not inside(path, root if root.is_dir() else root.parent) and path != root:
                refused.append(Refused(path, "it is a link that leads out of the folder"))
                continue
            try:
                here.append((_created(out, state_of(out)), out, finished))
            except UserError as error:
                refused.append(Refused(path, str(error)))
            except OSError as error:  # vanished while it was looked at, or not ours to read
                refused.append(Refused(path, error.strerror or "it cannot be read"))
        runs += [(path, finished) for _, path, finished in sorted(here, reverse=True)]
    unique = dict.fromkeys(runs)
    stems = Counter(path.stem for path, _ in unique)
    folders = Counter((path.parent.name, path.stem) for path, _ in unique)
    named = []
    for path, finished in unique:
        alone, told_apart = stems[path.stem] == 1, folders[path.parent.name, path.stem] == 1
        name = path.stem if alone else f"{path.parent.name}/{path.stem}" if told_apart else str(path.with_suffix(""))
        named.append(RunFile(name, path, finished))
    return Found(named, list(dict.fromkeys(refused)))


def state_of(out: Path) -> tuple[int, int]:
    """When the run at `out` changed last, in ns, and its size, -1 while it is being made. That a shard of a virtual run
    went is a change of it: what was read from it would be zeros. Raises OSError where there is no run.
    """
    try:
        shards = folder_of(out).stat().st_mtime_ns
    except OSError:
        shards = 0
    try:
        stat = out.stat()
    except OSError:
        if not shards:
            raise
        return shards, -1
    return max(shards, stat.st_mtime_ns), stat.st_size


@lru_cache(maxsize=1024)
def _created(out: Path, state: tuple[int, int]) -> str:
    """When a run was made that can be opened; opening one takes 10 ms, so that it is done once for each state of it.
    A cache besides that of the pages: the command looks for runs too, before there is a Streamlit. Raises UserError
    for any other file.
    """
    with open_any(out) as run:
        return run.created


def _candidates(root: Path) -> Iterator[Path]:
    """Files and folders of shards that may be runs."""
    if root.is_dir():
        try:
            paths = sorted(root.iterdir())
        except OSError:  # not ours to read
            return
        for path in paths:
            out = path.with_name(path.name.removesuffix(_SHARDS))
            if out.name.endswith(".h5") and not out.name.endswith(".analysis.h5") and (out == path or not out.exists()):
                yield path
    elif root.exists():
        yield root


def open_any(out: Path) -> Run:
    """The run at `out`, or what there is of it while it is being made. Raises UserError, also for one that is larger
    than can be shown.
    """
    run = _open_any(out)
    try:
        _check_size(run)
    except UserError:
        run.close()
        raise
    return run


def _open_any(out: Path) -> Run:
    folder = folder_of(out)
    if not out.exists() and folder.is_dir():
        if not inside(folder / "manifest.json", folder):
            raise UserError(f"{folder / 'manifest.json'} is a link that leads out of the folder")
        if (shards := unfinished(out)) is not None:
            return open_shards(out, [piece.path for piece in shards.pieces() if inside(piece.path, folder)])
    return open_run(out)


def _check_size(run: Run) -> None:
    shape = run.shape
    for what, count, most in (
        ("images", shape.images, _MOST_IMAGES),
        ("layers", shape.layers, _MOST_LAYERS),
        ("heads", shape.heads, _MOST_LAYERS),
        ("attention values per image", shape.layers * shape.heads * shape.keys, _MOST_NUMBERS),
        ("v_d values per image", shape.anchors * shape.width, _MOST_NUMBERS),
        ("codes per image", math.prod(shape.codes or ()), _MOST_NUMBERS),
    ):
        if count > most:
            raise UserError(f"{run.path.name} has {count:,} {what}; the dashboard shows up to {most:,}")


def inside(path: Path, folder: Path) -> bool:
    """Whether `path`, with every link followed, lies in `folder`."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


def _is_text(name: str) -> bool:
    """Whether a file's name can be shown, and put into a link."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_roots(roots: Sequence[Path]) -> None:
    """Raises UserError, with what to type, unless every root exists and at least one run may be opened."""
    for root in roots:
        if root.is_file():
            open_any(root).close()
        elif not root.exists() and root != _DEFAULT_FOLDER:  # not made before the first run
            raise UserError(f"{root} does not exist; expected a run (.h5) or a folder of runs")
    runs, refused = find_runs(roots)
    if not runs:
        names = ", ".join(f"{root}" for root in roots)
        why = "".join(f"; {path.name} is not opened: {reason}" for path, reason in refused[:3])
        raise UserError(f"no run in {names}{why}; make one with: htc-extract --split val")
