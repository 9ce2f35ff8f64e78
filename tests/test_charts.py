"""Charts as a notebook calls them: what is not there is told in words, and the code of one is three lines."""

import ast
import inspect
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from htc_probe.dashboards import charts
from htc_probe.dashboards.charts.code import code
from htc_probe.dashboards.views import attention_view
from htc_probe.extract.errors import UserError
from made.pages import in_a_notebook, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "it's a run.h5")


@pytest.mark.parametrize(
    ("name", "told", "words"),
    [
        ("heads", {"quantity": "Anchor"}, "no quantity 'Anchor'; expected one of Anchors,"),
        ("heads", {"quantity": "Anchors", "layer": 4}, "no layer 4; expected 1 to 3, or None for the mean over layers"),
        ("roles", {"head": 0}, "no head 0; expected 1 to 2"),
        ("curve", {"image": 5}, "no image 5; expected 1 to 4"),
        ("curve", {"images": [1, 9]}, "no image 9; expected 1 to 4"),
        ("overlay", {"image": "val-9"}, "no image of it's a run.h5 has the id 'val-9'; expected one such as 'val-000'"),
        ("overlay", {"image": 1, "weighted": True}, "make it with: htc-analyze contributions --run"),
    ],
)
def test_what_is_not_there_is_told(run: Path, name: str, told: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        getattr(charts.attention, name)(run, **told)
    assert words in str(error.value)


def test_a_run_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match="no run at no/such.h5, seen from /"):
        charts.attention.roles("no/such.h5")


def test_the_code_leaves_out_what_is_the_default_and_names_an_image_by_number_or_id(run: Path) -> None:
    lines = code(charts.attention.curve, (run,), {"log": False, "head": 2, "images": (1, 3), "image": None})
    assert lines == (
        "from htc_probe.dashboards import charts\n"
        f'figure = charts.attention.curve("{run}", images=[1, 3], head=2)\n'
        "figure.show()"
    )
    one, same = (in_a_notebook(code(charts.attention.overlay, (run,), {"image": name})) for name in (2, "val-001"))
    assert one == same


def test_every_chart_is_drawn_by_a_page() -> None:
    """And pages draw nothing else, see `charts.code.code`."""
    modules = {name: part for name, part in vars(charts).items() if inspect.ismodule(part)}
    there = {
        f"charts.{name}.{chart}"
        for name, part in modules.items()
        for chart, function in vars(part).items()
        if inspect.isfunction(function) and inspect.signature(function).return_annotation is go.Figure
    }
    views = Path(attention_view.__file__).parent.rglob("*.py")
    drawn = {
        ast.unparse(node)
        for view in views
        for node in ast.walk(ast.parse(view.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    assert len(there) > 50 and not there - drawn
