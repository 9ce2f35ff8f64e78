"""What `htc-analyze` found, as HDF5 beside the run (schema version 1). The only reader and writer of this format.

Knows h5py and numpy. Does not know what an analysis computes, nor models or figures, and imports no torch. Nothing in
a file is ever executed: numbers, text and JSON only, and every value must lie in the file itself.

    /attention, /reading, ...   a group an analysis, its section: one dataset a value of its record, and as attributes
                                the run that it is of, its settings and libraries (JSON), the version of the record,
                                when it was made and in how many seconds
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from htc_probe.analysis import records
from htc_probe.analysis.records import Form, R, Record, Value
from htc_probe.analysis.sections import KINDS, Sections
from htc_probe.extract.errors import UserError
from htc_probe.extract.files import replaced
from htc_probe.extract.store import Run, hdf5

_SCHEMA = "htc-analysis"
_SCHEMA_VERSION = 1

# A value of more bytes than this must be stored in at least a fiftieth of them: a claim alone takes no memory.
_UNCHECKED = 2**28
_MOST_PACKED = 50


def default_path(run: Path) -> Path:
    """`NAME.analysis.h5` next to the run."""
    return run.with_name(run.stem + ".analysis.h5")


def identity(run: Run) -> dict[str, Any]:
    """Which run a section is of. Two with the same `created` and `sha256` are one run, whatever its file is called."""
    info, model = run.info, run.info.model
    file = {"file": run.path.name, "created": run.created, "images": len(run)}
    source = {"dataset": info.dataset, "split": info.split, "topology": info.topology}
    return file | source | {"sha256": model.get("sha256"), "model": model.get("name")}


def same_run(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two identities are of one run."""
    return all(one.get(key) == other.get(key) for key in ("created", "sha256"))


class Made(NamedTuple):
    """How a section came about."""

    run: dict[str, Any]
    """See `identity`."""
    settings: dict[str, Any]
    libraries: dict[str, str]
    version: int
    """Of what the analysis finds, see `Record.VERSION`; 0 of files from before there were any."""
    created: str
    """In UTC, as ISO 8601."""
    seconds: float
    """That the analysis took."""

    def fits(self, run: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
        """Whether the analysis of this run with these settings is what is here."""
        return same_run(self.run, run) and self.settings == json.loads(_json(settings))


class Analysis:
    """What a file holds. It is open only while values are read. Made by `read`."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        groups = {name: hdf5.group(file, name) for name in file}
        self.made = {name: _made(group) for name, group in groups.items()}
        """By analysis, in the order of the file; also of those that are not known here."""
        self._forms = {name: _forms(group) for name, group in groups.items()}

    def __repr__(self) -> str:
        lines = []
        for name, made in self.made.items():
            now = KINDS[name].VERSION if name in KINDS else None
            old = "" if made.version == now else f"; made by another version ({made.version}, now {now})"
            settings = ", ".join(
                f"{key} {value}" for key, value in made.settings.items() if key != "probes" and value is not None
            )
            lines.append(f"{name:<15}{settings}{old}")
        of = next((made.run for made in self.made.values()), {})
        file, images, model = (of.get(key) for key in ("file", "images", "model"))
        return "\n".join([f"<Analysis {self.path.name} of {file}: {images} images, {model}>", *lines])

    def of(self, run: Mapping[str, Any]) -> Sections:
        """This run's sections of the present version. Asking for one that is not as declared raises UserError."""
        pending: dict[str, Callable[[], Any]] = {}
        for name, made in self.made.items():
            kind = KINDS.get(name)
            if kind is not None and same_run(made.run, run) and made.version == kind.VERSION:
                pending[name] = partial(self.record, name, kind)
        return records.lazy(Sections, pending)

    def outdated(self, run: Mapping[str, Any]) -> frozenset[str]:
        """Which of this run's sections another version of this package made; `of` leaves them out."""
        return frozenset(
            name
            for name, made in self.made.items()
            if same_run(made.run, run) and name in KINDS and made.version != KINDS[name].VERSION
        )

    def record(self, name: str, kind: type[R]) -> R:
        """The section as a record, read when asked for. Raises UserError where there is none, or not as declared."""
        if name not in self.made:
            there = ", ".join(self.made) or "none"
            raise UserError(f"{self.path} has no section {name!r} (it has {there}); make it with: htc-analyze {name}")
        try:
            return records.build(kind, self._forms[name], partial(self._value, name))
        except ValueError as error:
            raise UserError(f"{self.path} is damaged: {name}/{error}; remove it and run htc-analyze again") from error

    def _value(self, name: str, key: str) -> Value:
        """Read from the file as it is now. Raises UserError where it was made anew since."""
        with _opened(self.path) as file, hdf5.damage(partial(_damaged, self.path, f"{name}/{key}")):
            group = hdf5.group(file, name)
            if group.attrs["created"] != self.made[name].created:
                raise UserError(f"{name} in {self.path} was made anew just now; look at it again")
            value = _load(group, key)
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
        return value


def read(path: Path | str) -> Analysis:
    """What htc-analyze wrote. Raises UserError for a missing, foreign or damaged file, or one of another schema."""
    path = Path(path)
    with _opened(path) as file, hdf5.damage(partial(_damaged, path, "its sections")):
        return Analysis(path, file)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    if not path.is_file():
        raise UserError(f"no analysis at {path}; make it with: htc-analyze --run RUN")
    with hdf5.opened(
        path,
        partial(_checked, path),
        foreign=lambda why: f"{path} cannot be read as an analysis: {why}; remove it and run htc-analyze again",
        damaged=partial(_damaged, path, "its schema"),
    ) as file:
        yield file


def _checked(path: Path, file: h5py.File) -> h5py.File:
    if file.attrs.get("schema") != _SCHEMA:
        raise UserError(
            f"{path} is not of htc-analyze, but another HDF5 file (schema {str(file.attrs.get('schema'))[:40]!r}); "
            "name another file"
        )
    version = int(file.attrs["schema_version"])
    if version != _SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version}, expected {_SCHEMA_VERSION}; remove it and run htc-analyze again"
        )
    return file


def write(
    path: Path,
    name: str,
    record: Record,
    *,
    run: Mapping[str, Any],
    settings: Mapping[str, Any],
    libraries: Mapping[str, str],
    seconds: float,
) -> None:
    """Adds a section to the file at `path`, or replaces it; makes the file where there is none.

    The file is made anew beside itself and renamed, so that at every moment it is either the old or the new one, whole.
    Sections of another run are not taken over: the file is that of one run. Processes that write to one file wait for
    each other. Raises UserError where the file there is no analysis, or nothing can be written, and ValueError where
    the record is not as it is declared.
    """
    values = records.flat(record)
    created = datetime.now(UTC).isoformat()
    made = Made(dict(run), dict(settings), dict(libraries), record.VERSION, created, float(seconds))
    with replaced(path, "free some space, or choose another place with --out") as unfinished:
        unfinished.write_bytes(_content(path, name, values, made))


def _content(path: Path, name: str, values: Mapping[str, Value], made: Made) -> bytes:
    """The bytes of the new file. Made in memory: HDF5 cannot back out of a disk that is full."""
    with contextlib.ExitStack() as stack:
        new = stack.enter_context(h5py.File("new", "w", driver="core", backing_store=False, track_order=True))
        new.attrs["schema"], new.attrs["schema_version"] = _SCHEMA, _SCHEMA_VERSION
        if path.exists():
            old = stack.enter_context(_opened(path))
            for other, there in read(path).made.items():
                if other != name and same_run(there.run, made.run):
                    with hdf5.damage(partial(_damaged, path, other)):
                        old.copy(old[other], new, other)
        group = new.create_group(name, track_order=True)
        for key, what in (("run", made.run), ("settings", made.settings), ("versions", made.libraries)):
            group.attrs[key] = _json(what)
        group.attrs["version"], group.attrs["created"], group.attrs["seconds"] = made[3:]
        for key, value in values.items():
            _save(group, key, value)
        new.flush()
        return new.id.get_file_image()


def _save(group: h5py.Group, key: str, value: Value) -> None:
    array = np.asarray(value)
    if array.dtype.kind == "U" or isinstance(value, list):
        group.create_dataset(key, data=array.astype(object), dtype=hdf5.TEXT)
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


def _forms(group: h5py.Group) -> dict[str, Form]:
    """Of the datasets of a section; what is not in this file itself counts as missing."""
    own = [key for key in group if isinstance(group.get(key, getlink=True), h5py.HardLink)]
    return {key: Form(group[key].shape, group[key].dtype.kind) for key in own if isinstance(group[key], h5py.Dataset)}


def _made(group: h5py.Group) -> Made:
    attrs = group.attrs
    run, settings, libraries = (hdf5.json_object(attrs, key) for key in ("run", "settings", "versions"))
    created, seconds = str(attrs["created"]), float(attrs["seconds"])
    return Made(run, settings, libraries, int(attrs.get("version", 0)), created, seconds)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _damaged(path: Path, where: str, why: str) -> str:
    return f"{path} is damaged at {where} ({why}); remove it and run htc-analyze again"
