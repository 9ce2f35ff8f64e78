"""Runs docs/notebooks/first_look.ipynb and keeps what its cells show: `python docs/make_notebook.py`.

Figures are kept as pictures (drawn by Chromium), which GitHub shows; whoever runs the notebook gets them alive.
"""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import plotly.graph_objects as go
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebooks" / "first_look.ipynb"
FIGURE = "application/vnd.plotly.v1+json"
MINUTES = 60


def run(folder: Path) -> Any:
    """The notebook with what its cells show, run in `folder`. Raises CellExecutionError where one fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=20 * MINUTES, startup_timeout=20 * MINUTES, kernel_name="python3")
    client.execute(cwd=str(folder))
    return notebook


def _kept(shown: dict[str, Any], page: Any) -> dict[str, Any]:
    """Of the forms that a cell shows something in, the smallest that GitHub shows too."""
    if FIGURE in shown:
        figure = go.Figure(shown[FIGURE]["data"], shown[FIGURE]["layout"])
        page.set_content(figure.to_html(config={"staticPlot": True}))
        return {"image/png": base64.b64encode(page.locator(".svg-container").screenshot()).decode()}
    return {form: what for form, what in shown.items() if form != "image/png" or "image/jpeg" not in shown}


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.browser import chromium

    with tempfile.TemporaryDirectory() as folder:
        notebook = run(Path(folder))
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 760, "height": 700})
        for cell in notebook.cells:
            cell.metadata.clear()  # when it ran
            for output in cell.get("outputs", ()):
                output["data"] = _kept(output["data"], page)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
