"""Annotation files, text tables and JSON, with every value checked. Knows files; no data set and no images."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from extract.errors import UserError

T = TypeVar("T")


def read_rows(path: Path, *columns: Callable[[str], Any], form: str) -> list[tuple]:
    """The lines of a text table, each cell through the function of its column; blank lines are left out.

    Cells are apart by blanks, and the last column takes the rest of the line. `form` says in an error what a line
    should look like. Raises UserError that names the line, or the file that has none.
    """
    rows = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            cells = line.strip().split(maxsplit=len(columns) - 1)
            if not cells:
                continue
            try:
                rows.append(tuple(column(cell) for column, cell in zip(columns, cells, strict=True)))
            except ValueError:
                raise UserError(f"{path} line {number} is {line!r}; expected {form}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}; expected UTF-8 text") from error
    if not rows:
        raise UserError(f"{path} is empty; expected lines of {form}")
    return rows


def read_json(path: Path, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """The object in a JSON file, fields called `without` left out wherever they are (large ones that nobody needs).

    Raises UserError for anything else than a JSON object.
    """

    def drop(found: dict[str, Any]) -> dict[str, Any]:
        for name in without:
            found.pop(name, None)
        return found

    try:
        with path.open("rb") as file:
            data = json.load(file, object_hook=drop if without else None)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}; is it whole? Unpack or download it again") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no JSON object but a {type(data).__name__}; expected the official file")
    return data


def records(path: Path, data: dict[str, Any], table: str, **fields: type) -> list[tuple]:
    """The named fields of every row of `data[table]`, as read from `path`, in the order given.

    Raises UserError that names the row where one is missing or not of its type, see `field`.
    """
    rows = field(data, table, list, str(path))
    return [
        tuple(field(row, name, kind, where) for name, kind in fields.items())
        for row, where in ((row, f"{path}: {table}[{number}]") for number, row in enumerate(rows))
    ]


def field(record: Any, name: str, kind: type[T], where: str) -> T:
    """`record[name]`, which is a `kind` in official files. Raises UserError that says `where` it is not.

    A whole number is a float too; infinities, NaN and true are none.
    """
    value = record.get(name) if isinstance(record, dict) else None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(cast(float, value))):
        named = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "an object"}[kind]
        raise UserError(f"{where} has {name} {str(value)[:60]!r}; expected {named}, as the official file has it")
    return value
