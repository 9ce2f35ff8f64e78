"""Labels in the columns of a table, with the suite and kind of each in a tasks.toml. Knows cells; no images.

    [texture]                       # the column
    suite = "detail"                # or "semantic"
    kind = "classes"                # or "multilabel", "number", "circular"
    classes = ["plain", "dotted"]   # optional; otherwise all values of the column in this split
    unit = ""                       # optional, of a number or an angle
    period = 360                    # of a circular task alone, in its unit: values so far apart mean the same

Cells. Empty, null, NaN and the words that tables write for them (`NA`, `N/A`, `nan`, `null`): the label is unknown,
unless `classes` lists the word; the task's note says how many words there were. Several labels: a list, or words
separated by `|` or `;` (a lone separator, or an empty list: none of them). Classes are kept sorted.

Text is compared in Unicode's normal form C, without blanks around it.
"""

import math
import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from htc_probe.extract.data.files import printable
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import NUMERIC, Kind, Suite, Task

NOT_LABELS = frozenset({"file_name", "id", "group"})
_UNKNOWN = frozenset({"na", "n/a", "#n/a", "<na>", "nan", "null"})  # in any case; of R, pandas, spreadsheets, databases

Label = int | float | np.ndarray
_WORDS = {"number": "number", "circular": "circular value"}


def read_tasks(path: Path) -> dict[str, dict[str, Any]]:
    """The checked settings of a tasks.toml by column; none without one. Raises UserError."""
    if not path.exists():
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    settings = {cell_text(name): task for name, task in tables.items()}
    choices = {"suite": get_args(Suite), "kind": get_args(Kind)}
    for name, task in settings.items():
        if not isinstance(task, dict):
            raise UserError(f'{path}: {name} is no table; expected [{name}] with suite = "..." and kind = "..."')
        for key, allowed in choices.items():
            if task.get(key) not in allowed:
                raise UserError(f"{path}: {key} of [{name}] is {task.get(key)!r}; it is one of {', '.join(allowed)}")
        unknown = sorted(set(task) - {"suite", "kind", "unit", "classes", "period"})
        if unknown:
            raise UserError(f"{path}: [{name}] has {unknown[0]!r}; it takes suite, kind, unit, classes and period")
        if task["kind"] in NUMERIC and "classes" in task:
            word = _WORDS[task["kind"]]
            raise UserError(f"{path}: [{name}] is a {word} and has classes; remove them or change its kind")
        _check_period(task, f"{path}: [{name}]")
        if not isinstance(task.get("unit", ""), str):
            raise UserError(f'{path}: unit of [{name}] is {task["unit"]!r}; it is text, such as "cm"')
        listed = task.get("classes", [])
        if not isinstance(listed, list) or not all(isinstance(label, str) and label for label in listed):
            raise UserError(f'{path}: classes of [{name}] are {listed!r}; expected a list such as ["a", "b"]')
        if listed:
            task["classes"] = [cell_text(label) for label in listed]
    return settings


def _check_period(task: dict[str, Any], where: str) -> None:
    period = task.get("period")
    if task["kind"] != "circular":
        if period is not None:
            raise UserError(f'{where} has a period and is of kind "{task["kind"]}"; write kind = "circular"')
    elif not isinstance(period, int | float) or isinstance(period, bool) or not 0 < period < math.inf:
        raise UserError(
            f"{where} is circular and its period is {period!r}; write after how much a value comes round, such as "
            "period = 360 for an angle in degrees, or 180 for the direction of a line without ends"
        )


def make_task(name: str, setting: dict[str, Any], toml: Path, table: Path, column: Sequence[Any]) -> Task:
    """The task of one column of `table`, with `setting` from `toml`. Raises UserError for a column without a label."""
    kind = cast(Kind, setting["kind"])
    classes = set(setting.get("classes", ()))
    unlabelled = (cell for cell in column if _unknown(kind, cell, classes) and isinstance(cell, str | list))
    words = Counter(
        "|".join(map(cell_text, cell)) if isinstance(cell, list) else cell_text(cell) for cell in unlabelled
    )
    del words[""]
    if kind not in NUMERIC and not classes:
        where = f"{table}, column {name}"
        classes = {label for cell in column if not _unknown(kind, cell) for label in _words(kind, cell, where)}
        if not classes:
            raise UserError(
                f"column {name!r} of {table} is empty in every row; remove it with its task in {toml}, or list its "
                "classes there"
            )
    note = f"unknown in {words.total()} cells that say {' or '.join(sorted(words))}" if words else ""
    unit, period = setting.get("unit", ""), float(setting.get("period", 0))
    return Task(name, setting["suite"], kind, tuple(sorted(classes)), unit, note, period=period)


def label_of(task: Task, cell: Any, where: str) -> Label:
    """The label of one cell, in the form of `store.Task`. Raises UserError that says `where`."""
    if task.kind in NUMERIC:
        if _unknown(task.kind, cell):
            return math.nan
        try:
            number = float(cell)
        except (TypeError, ValueError, OverflowError):
            number = math.inf
        if math.isinf(number):
            raise UserError(f"{where}: {cell!r} is no finite number; leave the cell empty where it is unknown")
        return number % task.period % task.period if task.kind == "circular" else number  # twice: -1e-20 % 360 is 360
    if _unknown(task.kind, cell, task.classes):
        return cast(Label, task.unknown(1)[0])
    index = _index(task.classes)
    chosen = _words(task.kind, cell, where)
    for label in chosen:
        if label not in index:
            raise UserError(f"{where}: {label!r} is not among the classes of tasks.toml ({', '.join(task.classes)})")
    if task.kind == "classes":
        return index[chosen[0]]
    row = np.zeros(len(task.classes), np.uint8)
    row[[index[label] for label in chosen]] = 1
    return row


@lru_cache
def _index(classes: tuple[str, ...]) -> dict[str, int]:
    return {label: i for i, label in enumerate(classes)}


def _words(kind: Kind, cell: Any, where: str) -> list[str]:
    """The class names in one cell."""
    if kind == "multilabel":
        parts = _parts(cell)
        if odd := [part for part in parts if isinstance(part, list | dict)]:
            raise UserError(f"{where}: {odd[0]!r} is no label; expected a list of words")
        return [word for word in map(cell_text, parts) if word]
    if isinstance(cell, list | dict):
        raise UserError(f'{where}: {cell!r} is no single class; its kind in tasks.toml should be "multilabel"')
    return [cell_text(cell)]


def _parts(cell: Any) -> list[Any]:
    """Of a cell of several labels."""
    return cell if isinstance(cell, list) else re.split(r"[|;]", cell_text(cell))


def _unknown(kind: Kind, cell: Any, classes: Collection[str] = ()) -> bool:
    """Of several labels, all are unknown where one is: which of them it stands for, nobody knows."""
    if kind == "multilabel" and (isinstance(cell, list) or cell_text(cell)):
        return any(_says_nothing(part, classes) for part in _parts(cell) if part is None or cell_text(part))
    return not isinstance(cell, list) and (not cell_text(cell) or _says_nothing(cell, classes))


def _says_nothing(cell: Any, classes: Collection[str]) -> bool:
    """A word that stands for an unknown label, or null."""
    text = cell_text(cell)
    return cell is None or (text.casefold() in _UNKNOWN and not (isinstance(cell, str) and text in classes))


def given(cell: Any) -> str:
    """The text of a cell that is no label; "" where it is unknown."""
    return "" if _unknown("classes", cell) else cell_text(cell)


def cell_text(cell: Any) -> str:
    """What a cell says, on one line and in Unicode's form C; "" for null."""
    return "" if cell is None else unicodedata.normalize("NFC", printable(str(cell).strip()))
