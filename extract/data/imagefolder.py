"""A folder of one's own images, after Hugging Face's imagefolder convention. Knows files and labels; no model.

    FOLDER/tasks.toml            the suite and kind of every label column (see `columns`)
    FOLDER/val/metadata.csv      (or .tsv, .jsonl, .parquet) file_name, a column a task, optionally `id` and `group`
    FOLDER/val/street/1.jpg      images, in folders or not
    FOLDER/metadata.csv          instead of that in val: of all splits, with file names such as val/street/1.jpg

Images come in the order of the metadata, then those without a row, sorted by name, with unknown labels. A row whose
file is missing or damaged raises ImageError when it is read. A file is found also where its name on the disk differs in
Unicode form, case or the slash from that in the metadata, and no other does.

Without metadata, where every image lies in one of several folders of the split (val/cat/1.jpg, val/dog/1.jpg, as for
torchvision's ImageFolder), the folders are the classes of a task `label`: semantic, unless tasks.toml says otherwise;
an empty tasks.toml leaves it out. Else all images of the split are read, and there are no labels.
"""

import csv
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from htc_probe.extract.data.columns import NOT_LABELS, Label, cell_text, given, label_of, make_task, read_tasks
from htc_probe.extract.data.files import FileSource, Picture, printable
from htc_probe.extract.data.labels import Labels
from htc_probe.extract.data.tables import once, refuse_repeated
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import NUMERIC, Task

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")
_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}


class _Row(NamedTuple):
    """One image before it is opened."""

    file: str
    """Relative to the split's folder, with forward slashes."""
    id: str
    group: str
    labels: dict[str, Label]


class ImageFolder(FileSource):
    """`limit` images of FOLDER/SPLIT, evenly spread, or all (None), as a data source; `name` is the folder's own.

    Raises UserError for a layout, a table or a tasks.toml that cannot be meant.
    """

    def __init__(self, root: Path, split: str, *, limit: int | None = None) -> None:
        folder = _split_folder(root, split)
        files, left_out = _files(folder)
        toml = _named(root, ("tasks.toml",)) or root / "tasks.toml"
        if (lost := _named(folder, ("tasks.toml",))) is not None and not toml.is_file():
            raise UserError(f"{lost} lies in a split, where it is not read; move it to {toml}, which serves all splits")
        own, above = _named(folder, _METADATA), _named(root, _METADATA)
        metadata = own or above
        if metadata is None:
            tasks, rows, notes = _by_folder(folder, files, left_out, toml)
        else:
            cells = _of_split(metadata, _read_table(metadata), "" if own else split)
            tasks = _tasks(toml, metadata, [cell for _, _, cell in cells])
            rows = _rows(metadata, cells, tasks, _finder(files))
            notes = [f"{task.name}: {task.note}" for task in tasks if task.note]
            if own and above:
                notes.append(f"{own} is read, and {above} is not")
            left_out = [name for name in left_out if name != metadata.name]
        listed = {row.file for row in rows}
        unknown = {task.name: label_of(task, None, "") for task in tasks}
        rows += [_row(file, unknown) for file in files if file not in listed]
        if not rows:
            contents = f"; it has {_endings(left_out)}" if left_out else ""
            takes = ", ".join(sorted(_SUFFIXES))
            raise UserError(f"no images in {folder}; it takes {takes}, also in sub-folders{contents}")
        refuse_repeated([row.id for row in rows], "id", metadata or folder)
        pictures = [Picture(row.id, folder / row.file, row.group) for row in rows]
        labels = [Labels(task, np.array([row.labels[task.name] for row in rows])) for task in tasks]
        super().__init__(printable(root.resolve().name), split, pictures, labels, limit)
        if left_out:
            notes.append(f"left out {_endings(left_out)}; images among them can be read as JPEG or PNG")
        self.notes = tuple(notes)


# ---- the layout


def _split_folder(root: Path, split: str) -> Path:
    folder = root / split
    try:
        if PurePosixPath(split).name == split and folder.is_dir():
            return folder
        inside = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
        splits = [name for name in inside if (root / name).is_dir()]
    except PermissionError as error:  # of the folder itself or of one that it lies in
        raise UserError(f"{root} cannot be read ({error.strerror}); give yourself the right to read it") from error
    has = f"its splits: {', '.join(splits)}" if splits else "it has no folder that could be a split"
    loose = any(Path(name).suffix.lower() in _SUFFIXES for name in inside)
    move = f"; move the images that lie in {root} itself to {root}/{split}" if loose else ""
    raise UserError(f"{root} has no split {split!r}; {has}{move}")


def _named(folder: Path, names: Collection[str]) -> Path | None:
    """The file of one of these names, in any case, in `folder`."""
    try:
        files = sorted(path for path in folder.iterdir() if path.name.lower() in names)
    except PermissionError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); give yourself the right to read it") from error
    if len(files) > 1:
        raise UserError(f"{folder} has {' and '.join(path.name for path in files)}; keep one of them")
    return files[0] if files else None


def _files(folder: Path) -> tuple[list[str], list[str]]:
    """The image files below `folder`, and all others, but for hidden ones: relative to it and sorted."""

    def stop(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); allow it, or move it away") from error

    images: list[str] = []
    left_out: list[str] = []
    for parent, folders, files in os.walk(folder, onerror=stop):  # Path.rglob would pass over what it may not read
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                kind = images if Path(name).suffix.lower() in _SUFFIXES else left_out
                kind.append((Path(parent) / name).relative_to(folder).as_posix())
    return sorted(images), sorted(left_out)


def _endings(files: Sequence[str]) -> str:
    """How many files there are of each kind: 11 .heic, 1 .txt."""
    counts = Counter(PurePosixPath(file).suffix or "without an ending" for file in files)
    return ", ".join(f"{count} {printable(ending)}" for ending, count in counts.most_common())


def _by_folder(
    folder: Path, files: Sequence[str], left_out: Sequence[str], toml: Path
) -> tuple[tuple[Task, ...], list[_Row], list[str]]:
    """What a split without metadata has: the task `label` where every image lies in one of several folders, the images
    with their labels, and what there is to say. Raises UserError where metadata was meant to be there.
    """
    if not files:
        return (), [], []
    settings = read_tasks(toml)
    near = [f"{folder.name}/{name}" for name in left_out] + [path.name for path in sorted(toml.parent.iterdir())]
    tables = [name for name in near if PurePosixPath(name).name.lower().startswith("metadata.")]
    classes = {file: cell_text(file.split("/")[0]) if "/" in file else "" for file in files}
    names = sorted(set(classes.values()) - {""})
    of_folders = 1 < len(names) < len(files) and "" not in classes.values()
    if tables or set(settings) - ({"label"} if of_folders else set()):
        trouble = (
            f"{toml} declares {', '.join(settings)}, and no metadata is read" if settings else "no metadata is read"
        )
        besides = f" ({', '.join(map(printable, tables[:3]))} is not read)" if tables else ""
        raise UserError(
            f"{trouble}{besides}; put it in {folder}/metadata.csv (or .tsv, .jsonl, .parquet), with file_name and a "
            f"column a task, or in {folder.parent}/metadata.csv, with file names that begin with {folder.name}/; "
            "without both files, images are extracted without labels"
        )
    loose = [file for file, name in classes.items() if not name]
    if len(names) > 1 and loose:
        note = f"the folders of {folder} are not classes: {len(loose)} images lie beside them ({printable(loose[0])})"
        return (), [], [note]
    if not of_folders or (toml.exists() and not settings):
        return (), [], []
    setting = settings.get("label", {"suite": "semantic", "kind": "classes"})
    declared = {} if setting["kind"] in NUMERIC else {"classes": names}
    task = make_task("label", declared | setting, toml, folder, list(classes.values()))
    task = replace(task, note="the folder of the split that the image lies in")
    labels = {name: label_of(task, name, f"{folder}, folder {name}") for name in names}
    note = f"no metadata: the folders are the classes of the {task.suite} task label; an empty tasks.toml leaves it out"
    return (task,), [_row(file, {"label": labels[name]}) for file, name in classes.items()], [note]


def _row(file: str, labels: dict[str, Label]) -> _Row:
    """The image of a file that no table tells of."""
    name = cell_text(file)
    return _Row(file, name, name, labels)


# ---- the table


def _read_table(path: Path) -> list[dict[str, Any]]:
    """The rows as they stand, all with the same columns."""
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    try:
        rows = readers[path.suffix.lower()](path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}; expected UTF-8 text") from error
    if not rows:
        raise UserError(f"{path} has no rows; give it one an image, or remove it to extract without labels")
    columns = dict.fromkeys(name for row in rows for name in row)
    if "file_name" not in columns:
        raise UserError(f"{path} has no column file_name, which names the image of a row (it has {', '.join(columns)})")
    return [{name: row.get(name) for name in columns} for row in rows]


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows of a table with a header, its cells apart by what stands around file_name there."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        delimiter = next((one for one in _DELIMITERS if "file_name" in _header(header, one)), ",")
        reader = csv.DictReader(file, strict=True, delimiter=delimiter, skipinitialspace=True)
        columns = [cell_text(name) for name in reader.fieldnames or ()]
        refuse_repeated(columns, "column", path)
        reader.fieldnames = columns
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{path} line {reader.line_num} does not have the {len(columns)} cells of the header; put cells "
                    f"that hold {_DELIMITERS[delimiter]} in double quotes"
                )
            rows.append(dict(row))
    return rows


def _header(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=partial(once, where=f"{path} line {number}"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f'{path} line {number} is no object; expected {{"file_name": ..., ...}}')
        rows.append({cell_text(name): cell for name, cell in row.items()})
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is no parquet table: {str(error).splitlines()[0]}") from error
    columns = [cell_text(name) for name in table.column_names]
    refuse_repeated(columns, "column", path)
    return table.rename_columns(columns).to_pylist()


_Cells = tuple[str, str, dict[str, Any]]
"""Of one row of the metadata: where it stands, its file within the split, and its cells."""


def _of_split(path: Path, table: Sequence[dict[str, Any]], split: str) -> list[_Cells]:
    """The rows of a split; all with `split` "", as in metadata that lies in the split's own folder."""
    rows = []
    for number, cells in enumerate(table, 1):
        where = f"{path} row {number}"
        file = _file_name(cells["file_name"], where)
        folder, _, within = file.partition("/") if split else ("", "", file)
        if cell_text(folder) == cell_text(split):
            rows.append((where, within, cells))
    if not rows:
        raise UserError(
            f"{path} has no row of the split {split!r}: their file names begin with {split}/, and that of row 1 is "
            f"{str(table[0]['file_name'])!r}"
        )
    return rows


def _rows(path: Path, rows: Sequence[_Cells], tasks: Sequence[Task], find: Callable[[str], str]) -> list[_Row]:
    matched = []
    for where, name, cells in rows:
        file = find(name)
        labels = {task.name: label_of(task, cells[task.name], f"{where}, {task.name}") for task in tasks}
        identity = given(cells.get("id")) or cell_text(file)
        matched.append(_Row(file, identity, given(cells.get("group")) or identity, labels))
    refuse_repeated([row.file for row in matched], "file_name", path)
    return matched


def _file_name(cell: Any, where: str) -> str:
    name = PurePosixPath("" if cell is None else str(cell).strip().replace("\\", "/"))
    if name == PurePosixPath("."):
        raise UserError(f"{where} has no file_name; it says which image the row is")
    if name.is_absolute() or ".." in name.parts or "\0" in str(name):
        raise UserError(f"{where}: file_name {str(name)!r} leads out of the split's folder; move it in")
    return str(name)


def _finder(files: Sequence[str]) -> Callable[[str], str]:
    """What gives the one of `files` that a name means: itself, or else the only one that differs in the form of its
    letters alone; a name that means none is given back.
    """
    exact, forms = set(files), (_normal, lambda name: _normal(name).casefold())
    tables = []
    for form in forms:
        table: dict[str, list[str]] = {}
        for file in files:
            table.setdefault(form(file), []).append(file)
        tables.append(table)

    def find(name: str) -> str:
        if name in exact:
            return name
        for form, table in zip(forms, tables, strict=True):
            matches = table.get(form(name), [])
            if len(matches) == 1:
                return matches[0]
        return name

    return find


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


# ---- tasks and labels


def _tasks(toml: Path, metadata: Path, cells: Sequence[dict[str, Any]]) -> tuple[Task, ...]:
    """One task a label column, in the order of the columns."""
    settings = read_tasks(toml)
    columns = [name for name in cells[0] if name not in NOT_LABELS]
    for name in columns:
        if name not in settings:
            raise UserError(
                f"column {name!r} of {metadata} has no task in {toml}; add [{name}] with "
                f'suite = "semantic" or "detail" and kind = "classes", "multilabel", "number" or "circular"'
            )
    for name in settings:
        if name not in columns:
            raise UserError(
                f"task {name!r} of {toml} has no column in {metadata} (label columns: {', '.join(columns) or 'none'}); "
                "add the column, empty where the label is unknown, or remove the task"
            )
    return tuple(make_task(name, settings[name], toml, metadata, [row[name] for row in cells]) for name in columns)
