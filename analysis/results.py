"""What `htc-analyze` found, as HDF5 beside the run (schema version 1). The only reader and writer of this format.

Knows h5py and numpy. Does not know what an analysis computes, nor models or figures, and imports no torch. Nothing in
a file is ever executed: numbers, text and JSON only, and every value must lie in the file itself.

    /attention, /reading, ...   a group an analysis, its section: one dataset a key, and as attributes the run that it
                                is of, its settings and versions (JSON), when it was made and in how many seconds
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Run

SCHEMA = "htc-analysis"
SCHEMA_VERSION = 1

Value = np.ndarray | list[str] | float | int | str
_DAMAGE = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError)
"""What h5py and numpy say of bad bytes."""
# A value of more bytes than this must be stored in at least a fiftieth of them: a claim alone takes no memory.
_UNCHECKED = 2**28
_MOST_PACKED = 50
_TEXT_BYTES = 16  # of a text in its dataset: a length and where the text itself is
_MOST_JSON = 2**24  # characters


def default_path(run: Path) -> Path:
    """`NAME.analysis.h5` next to the run."""
    return run.with_name(run.stem + ".analysis.h5")


def identity(run: Run) -> dict[str, Any]:
    """Which run a section is of. Two with the same `created` and `sha256` are one run, whatever its file is called."""
    info = run.info
    return {
        "file": run.path.name,
        "created": run.created,
        "sha256": info.model.get("sha256"),
        "model": info.model.get("name"),
        "dataset": info.dataset,
        "split": info.split,
        "topology": info.topology,
        "images": len(run),
    }


def same_run(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two identities are of one run."""
    return all(one.get(key) == other.get(key) for key in ("created", "sha256"))


class Section:
    """What one analysis found; each key is read when it is asked for. Made by `Analysis`."""

    def __init__(self, path: Path, name: str, group: h5py.Group) -> None:
        attrs = group.attrs
        self.name = name
        self.run: dict[str, Any] = _read_json(attrs["run"])
        """See `identity`."""
        self.settings: dict[str, Any] = _read_json(attrs["settings"])
        self.versions: dict[str, str] = _read_json(attrs["versions"])
        self.created = str(attrs["created"])
        """In UTC, as ISO 8601."""
        self.seconds = float(attrs["seconds"])
        """That the analysis took."""
        self._path, self._group = path, group
        self._keys = tuple(group)

    def keys(self) -> tuple[str, ...]:
        """In the order in which the analysis gave them."""
        return self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __getitem__(self, key: str) -> Any:
        """An array, list of str, float, int or str, as the analysis gave it. Raises UserError where it is not there."""
        if key not in self._keys:
            raise UserError(
                f"{self.name} in {self._path} has no {key!r} (it has {', '.join(self._keys)}); remove the file and run "
                "htc-analyze again"
            )
        try:
            return _load(self._group, key)
        except _DAMAGE as error:
            raise UserError(_damaged(self._path, f"{self.name}/{key}", error)) from error

    def fits(self, run: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
        """Whether the analysis of this run with these settings is what is here."""
        return same_run(self.run, run) and self.settings == json.loads(_json(settings))


class Analysis:
    """The sections of a file, open for reading. Opened by `read`."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self._file = path, file
        self._sections = {name: Section(path, name, _group(file, name)) for name in file}

    def __enter__(self) -> Analysis:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def sections(self) -> tuple[str, ...]:
        return tuple(self._sections)

    def __contains__(self, name: object) -> bool:
        return name in self._sections

    def __getitem__(self, name: str) -> Section:
        """The section. Raises UserError that lists those there are."""
        if name not in self._sections:
            there = ", ".join(self._sections) or "none"
            raise UserError(f"{self.path} has no section {name!r} (it has {there}); make it with: htc-analyze {name}")
        return self._sections[name]


def read(path: Path | str) -> Analysis:
    """Opens what htc-analyze wrote. Raises UserError for a missing, foreign, damaged file or one of another version."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no analysis at {path}; make it with: htc-analyze --run RUN")
    try:
        file = h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        raise UserError(f"{path} is no analysis, or cut short ({_line(error)}); remove it and analyze again") from error
    try:
        if file.attrs.get("schema") != SCHEMA:
            raise UserError(
                f"{path} is HDF5 but no analysis of htc-analyze (its schema is {str(file.attrs.get('schema'))[:40]!r})"
            )
        version = int(file.attrs["schema_version"])
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{path} has schema version {version}, expected {SCHEMA_VERSION}; remove it and run htc-analyze again"
            )
        return Analysis(path, file)
    except UserError:
        file.close()
        raise
    except _DAMAGE as error:
        file.close()
        raise UserError(_damaged(path, "its sections", error)) from error


def write(
    path: Path,
    name: str,
    values: Mapping[str, Value],
    *,
    run: Mapping[str, Any],
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    seconds: float,
) -> None:
    """Adds a section to the file at `path`, or replaces it; makes the file where there is none.

    The file is made anew beside itself and renamed, so that at every moment it is either the old or the new one, whole.
    Sections of another run are not taken over: the file is that of one run. Processes that write to one file wait for
    each other. Raises UserError where the file there is no analysis, or nothing can be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(path.name + ".partial")) as (handle, partial):
            content = _content(path, name, values, run, settings, versions, seconds)
            handle.truncate()
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
            os.replace(partial, path)
            _sync(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {_line(error)}; free some space, or choose another place with --out"
        ) from error


@contextlib.contextmanager
def _locked(partial: Path) -> Iterator[tuple[Any, Path]]:
    """The file `partial`, open and this process's own until the end of the block; a killed one's is taken over."""
    while True:
        with partial.open("ab") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not _is_at(handle, partial):  # renamed or removed while this process waited: another one is next
                continue
            try:
                handle.seek(0)
                yield handle, partial
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            return


def _is_at(handle: Any, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _content(
    path: Path,
    name: str,
    values: Mapping[str, Value],
    run: Mapping[str, Any],
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    seconds: float,
) -> bytes:
    """The bytes of the new file. Made in memory: HDF5 cannot back out of a disk that is full."""
    with contextlib.ExitStack() as stack:
        new = stack.enter_context(h5py.File("new", "w", driver="core", backing_store=False, track_order=True))
        new.attrs["schema"], new.attrs["schema_version"] = SCHEMA, SCHEMA_VERSION
        if path.exists():
            old = stack.enter_context(read(path))
            for other in old.sections():
                if other != name and same_run(old[other].run, run):
                    try:
                        old._file.copy(old._file[other], new, other)
                    except _DAMAGE as error:
                        raise UserError(_damaged(path, other, error)) from error
        group = new.create_group(name, track_order=True)
        for key, what in (("run", run), ("settings", settings), ("versions", versions)):
            group.attrs[key] = _json(what)
        group.attrs["created"], group.attrs["seconds"] = datetime.now(UTC).isoformat(), float(seconds)
        for key, value in values.items():
            _save(group, key, value)
        new.flush()
        return new.id.get_file_image()


def _save(group: h5py.Group, key: str, value: Value) -> None:
    if not key or "/" in key or key == ".":
        raise ValueError(f"{group.name} has a key {key!r}, which cannot be stored")
    text = h5py.string_dtype("utf-8")
    if isinstance(value, str):
        group.create_dataset(key, data=value, dtype=text)
        return
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        group.create_dataset(key, data=np.array(value, dtype=object), dtype=text)
        return
    array = np.asarray(value)
    if array.dtype.kind == "U":
        group.create_dataset(key, data=array.astype(object), dtype=text)
    elif array.dtype.kind not in "biuf" or isinstance(value, list | tuple):
        raise TypeError(f"{group.name}/{key} is a {type(value).__name__}, expected an array, text, or a number")
    elif array.ndim and array.size:  # a checksum a chunk makes a flipped bit an error on reading
        group.create_dataset(key, data=array, chunks=True, compression="gzip", shuffle=True, fletcher32=True)
    else:
        group.create_dataset(key, data=array)


def _load(group: h5py.Group, key: str) -> Value:
    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
        raise ValueError("it is a link")
    dataset = group[key]
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise ValueError("it is not stored in this file")
    text, stored = h5py.check_string_dtype(dataset.dtype), dataset.id.get_storage_size()
    if text is not None and (text.length is not None or (dataset.ndim and stored < _TEXT_BYTES * dataset.size)):
        raise ValueError(f"it says that it has {dataset.size:,} entries, which are not stored")
    if dataset.nbytes > max(_UNCHECKED, _MOST_PACKED * stored):
        raise ValueError(f"it says that it holds {dataset.nbytes:,} bytes, and {stored:,} are stored")
    if text is not None:
        found = dataset.asstr()[()]
        return found if isinstance(found, str) else found.tolist() if found.ndim == 1 else found.astype(str)
    found = dataset[()]
    return found if dataset.ndim else found.item()


def _group(file: h5py.File, name: str) -> h5py.Group:
    # The link first: following one could open another file of this machine.
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Group):
        raise ValueError(f"{name} is no section")
    return file[name]


def _read_json(text: str) -> dict[str, Any]:
    if len(text) > _MOST_JSON:
        raise ValueError(f"a setting is {len(text):,} characters long")
    return dict(json.loads(text))


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _damaged(path: Path, where: str, error: BaseException) -> str:
    return f"{path} is damaged at {where} ({_line(error)}); remove it and run htc-analyze again"


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.splitlines()[0]
    return (str(error) or type(error).__name__).splitlines()[0][:300]


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
