"""Files that are whole or not there at all, and on the disk before they have their name. Knows paths; not what is in
them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from htc_probe.extract.errors import UserError, reason


@contextlib.contextmanager
def replaced(path: Path, way_out: str = "") -> Iterator[Path]:
    """NAME.partial beside `path`, empty, which takes its name when the block ends and is removed when that raises.

    Makes the folder. Processes that write to one path wait for each other, and take over what a killed one left.
    Raises OSError; with a `way_out`, such as another option, the UserError that ends with it.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial):
            try:
                yield partial
                settle(partial, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    partial.unlink()
                raise
    except OSError as error:
        if not way_out:
            raise
        raise UserError(f"cannot write {path}: {reason(error)}; {way_out}") from error


def settle(written: Path, path: Path) -> None:
    """Gives a whole file its name, once all of it is on the disk."""
    sync(written)
    os.replace(written, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until the file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """`partial`, empty and this process's own until the end of the block."""
    while True:
        with partial.open("ab") as handle:
            with contextlib.suppress(OSError):  # some file systems have no locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                if not os.path.samestat(os.fstat(handle.fileno()), partial.stat()):
                    continue  # renamed or removed while this process waited: another one is next
            except FileNotFoundError:
                continue
            handle.truncate(0)
            yield
            return
