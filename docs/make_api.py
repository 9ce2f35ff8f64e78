"""Writes docs/api.md from the docstrings of the modules that a notebook uses: `python docs/make_api.py`.

Knows Python's syntax; imports nothing of what it describes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "htc_probe"
CHARTS = (
    *("attention", "tokens", "groups", "interchange", "probes", "reading", "map", "codes"),
    *("compare", "compare_probes"),
)
"""Modules of charts, in the order of the pages."""
MODULES = (
    "extract.store",
    "extract.data",
    "extract.images",
    "extract.models",
    "extract.vlm.config",
    "extract.vlm.model",
    "extract.vlm.star",
    "extract.vlm.mgvq",
    "probes",
    "probes.files.results",
    "probes.files.weights",
    "probes.show.figures",
    "analysis.results",
    "analysis.bridge",
    *(f"dashboards.charts.{name}" for name in CHARTS),
    "dashboards.figures",
)
HEAD = """# From a notebook

What can be imported, by module, each with the first sentence of its docstring; `help()` has the rest. Made by
`python docs/make_api.py`.
"""
Definition = ast.FunctionDef | ast.ClassDef


def page() -> str:
    return "\n".join([HEAD, *(line for module in MODULES for line in _section(module))])


def _section(module: str) -> Iterator[str]:
    tree = _tree(module)
    yield from (f"## `{PACKAGE}.{module}`", "", _first_sentence(tree), "")
    for name, definition in _public(module):
        yield f"* `{_call(name, definition)}` — {_first_sentence(definition)}"
        if isinstance(definition, ast.ClassDef):
            for method in definition.body:
                if (
                    isinstance(method, ast.FunctionDef)
                    and not method.name.startswith("_")
                    and ast.get_docstring(method)
                ):
                    yield f"    * `.{_call(method.name, method)}` — {_first_sentence(method)}"
    yield ""


def _tree(module: str) -> ast.Module:
    return ast.parse(_path(module).read_text(encoding="utf-8"))


def _path(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _public(module: str) -> list[tuple[str, Definition]]:
    """The functions and classes of a module that have a docstring; of a folder that only hands on, what it hands on."""
    tree = _tree(module)
    found = {node.name: node for node in _definitions(tree) if not node.name.startswith("_")}
    for name, source, original in _handed_on(module, tree) if not found else []:
        found.update((name, node) for node in _definitions(_tree(source)) if node.name == original)
    return [(name, node) for name, node in found.items() if ast.get_docstring(node)]


def _handed_on(module: str, tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Name, module and name there of what a folder imports, and of what its `_PUBLIC` says where to find."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
            source = node.module.removeprefix(f"{PACKAGE}.")
            yield from ((alias.asname or alias.name, source, alias.name) for alias in node.names)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_PUBLIC":
            for name, source in ast.literal_eval(node.value).items():
                yield name, f"{module}.{source}", name


def _definitions(tree: ast.Module) -> list[Definition]:
    return [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def _call(name: str, definition: Definition) -> str:
    """`f(x, *, seed)` of a function, the bare name of a class or a property."""
    if isinstance(definition, ast.ClassDef) or any(
        ast.unparse(part) == "property" for part in definition.decorator_list
    ):
        return name
    signature = definition.args
    positional = [item.arg for item in [*signature.posonlyargs, *signature.args] if item.arg not in ("self", "cls")]
    rest = [f"*{signature.vararg.arg}"] if signature.vararg else ["*"] if signature.kwonlyargs else []
    last = [f"**{signature.kwarg.arg}"] if signature.kwarg else []
    return f"{name}({', '.join([*positional, *rest, *(item.arg for item in signature.kwonlyargs), *last])})"


def _first_sentence(node: ast.Module | Definition) -> str:
    text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[^.]\.) (?=[A-Z`])", text)[0]


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(page(), encoding="utf-8")
