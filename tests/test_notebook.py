"""The notebook of the documentation: short, and it runs as it is stored, offline, from nothing."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
MAKE = runpy.run_path(str(ROOT / "docs" / "make_notebook.py"))


def shown(notebook: Any) -> list[list[str]]:
    """The kinds of what each cell shows."""
    return [[output.output_type for output in cell.get("outputs", ())] for cell in notebook.cells]


def test_it_has_fifteen_cells_and_keeps_what_they_show() -> None:
    notebook = nbformat.read(MAKE["NOTEBOOK"], as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) == 15 and all(len(cell.source.splitlines()) <= 12 for cell in notebook.cells)
    kinds = [kind for kinds in shown(notebook) for kind in kinds]
    assert "error" not in kinds and "stream" not in kinds and len(kinds) >= 8
    assert MAKE["NOTEBOOK"].stat().st_size < 300_000
    forms = [form for cell in notebook.cells for output in cell.get("outputs", ()) for form in output.data]
    assert MAKE["FIGURE"] not in forms and forms.count("image/png") == 2, "figures that GitHub shows"


@pytest.mark.slow
def test_it_runs_as_it_is_stored(tmp_path: Path) -> None:
    stored, made = nbformat.read(MAKE["NOTEBOOK"], as_version=4), MAKE["run"](tmp_path)
    assert shown(made) == shown(stored)
    for old, new in zip(stored.cells, made.cells, strict=True):  # what follows from the labels alone is equal anywhere
        if "labels" in new.source.splitlines()[0] or new.source.endswith("\nrun"):
            assert [output.data["text/plain"] for output in new.outputs] == [o.data["text/plain"] for o in old.outputs]
    figures = [output.data[MAKE["FIGURE"]] for cell in made.cells[-2:] for output in cell.outputs]
    assert all(figure["data"] for figure in figures) and len(figures) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
