"""A folder of one's own images, after Hugging Face's imagefolder convention. Knows files and labels; no model.

    FOLDER/tasks.toml            the suite and kind of every label column (see `columns`)
    FOLDER/val/metadata.csv      (or .jsonl, .parquet) file_name, a column a task, optionally `id` and `group`
    FOLDER/val/street/1.jpg      images, in folders or not

Images come in the order of the metadata, then those without a row, sorted by name, with unknown labels. A row whose
file is missing or damaged raises ImageError when it is read. Without metadata all images of the split are read, and
there are no labels.
"""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from extract.data.columns import NOT_LABELS, Label, cell_text, label_of, make_task, read_tasks
from extract.data.files import printable, read_image, spread
from extract.data.source import Item
from extract.data.tables import refuse_repeated
from extract.errors import UserError
from extract.store import Task

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


class _Row(NamedTuple):
    """One image before it is opened."""

    file: str
    """Relative to the split's folder, with forward slashes."""
    id: str
    group: str
    labels: dict[str, Label]


class ImageFolder:
    """`limit` images of FOLDER/SPLIT, evenly spread, or all (None), as a data source; `name` is the folder's own.

    Raises UserError for a layout, a table or a tasks.toml that cannot be meant.
    """

    def __init__(self, root: Path, split: str, *, limit: int | None = None) -> None:
        self.name, self.split = printable(root.resolve().name), split
        self._folder = _split_folder(root, split)
        metadata = _metadata_of(self._folder)
        self.tasks: tuple[Task, ...] = ()
        rows: list[_Row] = []
        if metadata is not None:
            cells = _read_table(metadata)
            self.tasks = _tasks(root / "tasks.toml", metadata, cells)
            rows = _rows(metadata, cells, self.tasks)
        listed = {row.file for row in rows}
        unknown = {task.name: label_of(task, None, "") for task in self.tasks}
        for file in _images(self._folder):
            if file not in listed:
                rows.append(_Row(file, printable(file), printable(file), unknown))
        if not rows:
            raise UserError(f"no images in {self._folder}; it takes {', '.join(sorted(SUFFIXES))}, also in sub-folders")
        refuse_repeated([row.id for row in rows], "id", metadata or self._folder)
        self._rows = [rows[i] for i in spread(len(rows), limit)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Item:
        """The item, its image upright and RGB. Raises ImageError for a file that is missing or no whole image."""
        row = self._rows[index]
        path = str(self._folder / row.file)
        return Item(row.id, printable(path), row.group, read_image(path), row.labels)


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
    loose = any(Path(name).suffix.lower() in SUFFIXES or name in METADATA for name in inside)
    move = f"; move the images that lie in {root} itself to {root}/{split}" if loose else ""
    raise UserError(f"{root} has no split {split!r}; {has}{move}")


def _metadata_of(folder: Path) -> Path | None:
    found = [folder / name for name in METADATA if (folder / name).exists()]
    if len(found) > 1:
        raise UserError(f"{folder} has {' and '.join(path.name for path in found)}; keep one of them")
    return found[0] if found else None


def _images(folder: Path) -> list[str]:
    """Every image file below `folder`, but for hidden ones, relative to it and sorted."""

    def stop(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); allow it, or move it away") from error

    found = []
    for at, folders, files in os.walk(folder, onerror=stop):  # Path.rglob would pass over what it may not read
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in files if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")]
        found += [(Path(at) / name).relative_to(folder).as_posix() for name in names]
    return sorted(found)


# ---- the table


def _read_table(path: Path) -> list[dict[str, Any]]:
    """The rows as they stand, all with the same columns."""
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    try:
        rows = readers[path.suffix](path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}; expected UTF-8 text") from error
    if not rows:
        raise UserError(f"{path} has no rows; give it one an image, or remove it to extract without labels")
    columns = dict.fromkeys(name for row in rows for name in row)
    if "file_name" not in columns:
        raise UserError(f"{path} has no column file_name (it has {', '.join(columns)}); it says which image a row is")
    return [{name: row.get(name) for name in columns} for row in rows]


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        refuse_repeated(list(reader.fieldnames or ()), "column", path)
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{path} line {reader.line_num} has not the {len(reader.fieldnames or ())} cells of the header; "
                    "put cells that hold a comma in double quotes"
                )
            rows.append(dict(row))
    return rows


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f'{path} line {number} is no object; expected {{"file_name": ..., ...}}')
        rows.append(row)
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is no parquet table: {str(error).splitlines()[0]}") from error
    refuse_repeated(table.column_names, "column", path)
    return table.to_pylist()


def _rows(path: Path, cells: Sequence[dict[str, Any]], tasks: Sequence[Task]) -> list[_Row]:
    rows = []
    for number, cell in enumerate(cells, 1):
        where = f"{path} row {number}"
        file = _file_name(cell["file_name"], where)
        name = cell_text(cell.get("id")) or printable(file)
        labels = {task.name: label_of(task, cell[task.name], f"{where}, {task.name}") for task in tasks}
        rows.append(_Row(file, name, cell_text(cell.get("group")) or name, labels))
    refuse_repeated([row.file for row in rows], "file_name", path)
    return rows


def _file_name(cell: Any, where: str) -> str:
    name = PurePosixPath("" if cell is None else str(cell).strip())
    if name == PurePosixPath("."):
        raise UserError(f"{where} has no file_name; it says which image the row is")
    if name.is_absolute() or ".." in name.parts or "\0" in str(name):
        raise UserError(f"{where}: file_name {str(name)!r} leads out of the split's folder; move it in")
    return str(name)


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
