"""What `htc-analyze` found, as HDF5 beside the run (schema version 1). The only reader and writer of this format.

Knows h5py and numpy. Does not know what an analysis computes, nor models or figures, and imports no torch. Nothing in
a file is ever executed: numbers, text and JSON only, and every value must lie in the file itself.

    /attention, /reading, ...   a group an analysis, its section: one dataset a key, and as attributes the run that it
                                is of, its settings and versions (JSON), when it was made and in how many seconds
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from htc_probe.extract.errors import UserError
from htc_probe.extract.files import replaced
from htc_probe.extract.store import Run, hdf5

SCHEMA = "htc-analysis"
SCHEMA_VERSION = 1

Value = np.ndarray | list[str] | float | int | str
# A value of more bytes than this must be stored in at least a fiftieth of them: a claim alone takes no memory.
_UNCHECKED = 2**28
_MOST_PACKED = 50


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
        self.run: dict[str, Any] = hdf5.json_object(attrs, "run")
        """See `identity`."""
        self.settings: dict[str, Any] = hdf5.json_object(attrs, "settings")
        self.versions: dict[str, str] = hdf5.json_object(attrs, "versions")
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
        with hdf5.damage(partial(_damaged, self._path, f"{self.name}/{key}")):
            return _load(self._group, key)

    def fits(self, run: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
        """Whether the analysis of this run with these settings is what is here."""
        return same_run(self.run, run) and self.settings == json.loads(_json(settings))


class Analysis:
    """The sections of a file, open for reading. Opened by `read`."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self._file = path, file
        self._sections = {name: Section(path, name, hdf5.group(file, name)) for name in file}

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
    return hdf5.opened(
        path,
        partial(_parse, path),
        foreign=lambda why: f"{path} is no analysis, or cut short ({why}); remove it and analyze again",
        damaged=partial(_damaged, path, "its sections"),
    )


def _parse(path: Path, file: h5py.File) -> Analysis:
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
    with replaced(path, "free some space, or choose another place with --out") as unfinished:
        unfinished.write_bytes(_content(path, name, values, run, settings, versions, seconds))


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
                    with hdf5.damage(partial(_damaged, path, other)):
                        old._file.copy(old._file[other], new, other)
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
    if isinstance(value, str):
        group.create_dataset(key, data=value, dtype=hdf5.TEXT)
        return
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        group.create_dataset(key, data=np.array(value, dtype=object), dtype=hdf5.TEXT)
        return
    array = np.asarray(value)
    if array.dtype.kind == "U":
        group.create_dataset(key, data=array.astype(object), dtype=hdf5.TEXT)
    elif array.dtype.kind not in "biuf" or isinstance(value, list | tuple):
        raise TypeError(f"{group.name}/{key} is a {type(value).__name__}, expected an array, text, or a number")
    elif array.ndim and array.size:  # a checksum a chunk makes a flipped bit an error on reading
        group.create_dataset(key, data=array, chunks=True, compression="gzip", shuffle=True, fletcher32=True)
    else:
        group.create_dataset(key, data=array)


def _load(group: h5py.Group, key: str) -> Value:
    dataset = hdf5.dataset(group, key)
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > max(_UNCHECKED, _MOST_PACKED * stored):
        raise ValueError(f"it says that it holds {dataset.nbytes:,} bytes, and {stored:,} are stored")
    found = hdf5.values(dataset)
    if hdf5.is_text(dataset.dtype):
        return found if isinstance(found, str) else found.tolist() if found.ndim == 1 else found.astype(str)
    return found if dataset.ndim else found.item()


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _damaged(path: Path, where: str, why: str) -> str:
    return f"{path} is damaged at {where} ({why}); remove it and run htc-analyze again"
