"""Writes the tables of docs/files.md from the code that reads and writes these files: `python docs/make_files.py`.

A table stands between `<!-- made: NAME -->` and `<!-- end -->`; tests/test_files.py holds that they are up to date.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from htc_probe.analysis import records
from htc_probe.analysis.sections import KINDS
from htc_probe.analysis.stats.draws import Intervals
from htc_probe.extract.store import schema
from htc_probe.probes.files import results

PAGE = Path(__file__).with_name("files.md")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def datasets() -> str:
    """Every dataset of a run file."""
    labels = [item._replace(name=f"{item.name}, {kind}") for kind, item in schema.LABELS.items()]
    rows = []
    for item in (*schema.DATASETS, *labels, *schema.OTHERS):
        name, _, kind = item.name.partition(", ")
        dtype = "float16 or float32" if item.dtype == "stored" else item.dtype
        rows.append((f"`{name}`{f' of kind {kind}' if kind else ''}", ", ".join(item.dims), dtype, item.meaning))
    return table(("dataset", "axes", "type", "what"), rows)


def attributes() -> str:
    """Every attribute of a run file."""
    return table(("attribute", "what"), [(f"`{name}`", meaning) for name, meaning in schema.ATTRIBUTES.items()])


def fields(record: type[Any]) -> str:
    """The fields of a dataclass, with the lines that its source has under them."""
    rows = ((f"`{name}`", f"`{kind}`", what) for name, (kind, what) in described(record).items())
    return table(("field", "type", "what"), rows)


def described(record: type[Any]) -> dict[str, tuple[str, str]]:
    """Field -> its type, and what stands under it in the source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(body, ast.ClassDef)
    found: dict[str, tuple[str, str]] = {}
    name = ""
    for line in body.body:
        if isinstance(line, ast.AnnAssign):
            name = ast.unparse(line.target)
            found[name] = ast.unparse(line.annotation), ""
        elif isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and name:
            found[name] = found[name][0], " ".join(str(line.value.value).split())
    return found


def analyses() -> str:
    """Every section of an analysis file, and after each the records in it."""
    parts: list[str] = []
    done: set[str] = set()

    def add(record: type[Any], title: str, start: str) -> None:
        rows, inner = [], []
        for field in records.fields(record):
            name = f"`{records.joined(start, field.name)}`" + (" (or none)" if field.optional else "")
            what = described(record)[field.name][1]
            if isinstance(field.type, type) and issubclass(field.type, records.Record):
                inner.append(field.type)
                kind = f"*{field.type.__name__}*"
            elif field.type is Intervals:
                kind = "float32, interval"
            else:
                kind = {list[str]: "text", str: "text"}.get(field.type, "integer" if field.whole else "float")
            rows.append((name, ", ".join(field.axes), kind, what))
        words = " ".join((record.__doc__ or "").split())
        parts.append(f"{title}: {words}\n\n{table(('dataset', 'axes', 'type', 'what'), rows)}")
        for kind in inner:
            if kind.__name__ not in done:
                done.add(kind.__name__)
                add(kind, f"*{kind.__name__}*", "...")

    for analysis, record in KINDS.items():
        add(record, f"**`/{analysis}`**, version {record.VERSION}", "")
    return "\n\n".join(parts)


TABLES: dict[str, Callable[[], str]] = {
    "run": datasets,
    "run attributes": attributes,
    "probes": lambda: fields(results.Results),
    "probes row": lambda: fields(results.Row),
    "analyses": analyses,
}


def made(page: str) -> str:
    """The page with its tables as the code has them."""

    def filled(match: re.Match[str]) -> str:
        return f"<!-- made: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- made: (.*?) -->\n.*?<!-- end -->", filled, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(made(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
