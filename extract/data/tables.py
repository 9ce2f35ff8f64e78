"""Annotation files, text tables and JSON, with every value checked. Knows files; no data set and no images."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from htc_probe.extract.errors import UserError

T = TypeVar("T")


def read_rows(path: Path, *columns: Callable[[str], Any], form: str, key: int = 1) -> list[tuple]:
    """The lines of a text table, each cell through the function of its column; blank lines are left out.

    Cells are apart by blanks, and the last column takes the rest of the line. The first `key` cells say what a line is
    about, and no two lines may be about the same. `form` says in an error what a line should look like. Raises
    UserError that names the line, or the file that has none.
    """
    rows: list[tuple] = []
    lines: dict[tuple, int] = {}
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            cells = line.strip().split(maxsplit=len(columns) - 1)
            if not cells:
                continue
            try:
                rows.append(tuple(column(cell) for column, cell in zip(columns, cells, strict=True)))
            except ValueError:
                raise UserError(f"{path} line {number} is {line!r}; expected {form}") from None
            first = lines.setdefault(rows[-1][:key], number)
            if first != number:
                raise UserError(
                    f"{path} line {number} is {line!r}, and line {first} is about {' '.join(cells[:key])} too; keep one"
                )
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}; expected UTF-8 text") from error
    if not rows:
        raise UserError(f"{path} is empty; expected lines of {form}")
    return rows


def read_json(path: Path, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """The object in a JSON file, fields called `without` left out wherever they are (large ones that nobody needs).

    Raises UserError for anything else than a JSON object, and for an object that gives a field twice.
    """

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = once(pairs, str(path))
        for name in without:
            record.pop(name, None)
        return record

    try:
        with path.open("rb") as file:
            data = json.load(file, object_pairs_hook=build)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}; is it whole? Unpack or download it again") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no JSON object but a {type(data).__name__}; expected the official file")
    return data


def once(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    """A JSON object from its fields, for the `object_pairs_hook` of `json`, which alone keeps the last of two of one
    name. Raises UserError that says `where`.
    """
    record: dict[str, Any] = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{where}: {name[:60]!r} stands twice in one object; keep one")
    return record


def refuse_repeated(values: Iterable[Any], noun: str, where: object) -> None:
    """Raises UserError for the first value that stands twice."""
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise UserError(f"{noun} {value!r} stands twice in {where}; keep one")
        seen.add(value)


def records(path: Path, data: dict[str, Any], table: str, **fields: type) -> list[tuple]:
    """The named fields of every row of `data[table]`, as read from `path`, in the order given.

    Raises UserError that names the row where one is missing or not of its type, see `field`, and where two rows have
    one `id`.
    """
    rows = field(data, table, list, str(path))
    rows_read: list[tuple] = [
        tuple(field(row, name, kind, where) for name, kind in fields.items())
        for row, where in ((row, f"{path}: {table}[{number}]") for number, row in enumerate(rows))
    ]
    if "id" in fields:
        column = list(fields).index("id")
        refuse_repeated((row[column] for row in rows_read), "id", f"{path}: {table}")
    return rows_read


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
