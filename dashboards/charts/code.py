"""A chart as three lines for a notebook, written from its function and arguments. Knows no chart."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_PACKAGE = "htc_probe.dashboards"


def code(chart: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The lines that make the figure of `chart(*args, **kwargs)`; arguments that are the default are left out."""
    assert chart.__module__.startswith(f"{_PACKAGE}.charts."), "what a page draws, a notebook can draw"
    signature = inspect.signature(chart)
    named = {
        name: f"{name}={_text(value)}" for name, value in kwargs.items() if value != signature.parameters[name].default
    }
    given = ", ".join([*map(_text, args), *(named[name] for name in signature.parameters if name in named)])
    name = f"{chart.__module__}.{chart.__qualname__}".removeprefix(f"{_PACKAGE}.")
    return f"from {_PACKAGE} import charts\nfigure = {name}({given})\nfigure.show()"


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, Path | str):
        return json.dumps(str(value), ensure_ascii=False)  # as Python writes it too
    assert value is None or type(value) in (bool, int, float), f"{value!r} is nothing that a person types"
    return repr(value)
