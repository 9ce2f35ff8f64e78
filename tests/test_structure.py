"""Who may import whom, read from the source: data flows extract -> probes, analysis -> dashboards."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("extract", "probes", "analysis", "dashboards", "benchmarks")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# What a folder may import from another one; a module stands for itself and what is in it.
ALLOWED = {
    "extract": {"extract"},
    "probes": {"probes", "extract.store", "extract.errors"},
    "analysis": {
        "analysis",
        "extract.store",
        "extract.errors",
        "probes.weights",
        "probes.results",
        "probes.circular",
        # Only where the model runs.
        "extract.vlm",
        "extract.models",
        "extract.data",
        "extract.pipeline",
        "extract.images",
        "extract.capture",
    },
    "dashboards": {
        "dashboards",
        "extract.store",
        "extract.shards",
        "extract.errors",
        "probes.results",
        "probes.table",
        "probes.figures",
        "probes.predictions",
        "probes.inference",
        "probes.metrics",
        "probes.circular",
        "analysis.results",
        "analysis.summary",
        "analysis.stats",
        "analysis.attention",
    },
}
H5PY_AT = {
    "extract/store.py",
    "analysis/results.py",
    "extract/data/shapes3d.py",
    "benchmarks/extraction.py",
    "benchmarks/stream.py",
}
# What opens runs or names data must not bring in what only running the model needs.
WITHOUT_TORCH = (
    "extract/store.py",
    "extract/info.py",
    "extract/errors.py",
    "extract/environment.py",
    "extract/data/",
    "dashboards/",
)
LIGHT_COMMANDS = (
    "extract/cli.py",
    "extract/info.py",
    "extract/training/cli.py",
    "probes/cli.py",
    "analysis/cli.py",
    "dashboards/cli.py",
)
HEAVY = {"torch", "transformers", "diffusers", "transformer_lens", "umap", "sklearn", "h5py", "streamlit", "plotly"}


def imports(tree: ast.AST, *, everywhere: bool = True) -> Iterator[str]:
    """Full names of what is imported; not `everywhere`: only what importing the module itself runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif everywhere or not _runs_later(node):
            yield from imports(node, everywhere=everywhere)


def _runs_later(node: ast.AST) -> bool:
    types_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    return types_only or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_follow_the_flow_of_data(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = list(imports(tree))
    ours = [module for module in found if module.split(".")[0] in (*FOLDERS, "tests")]
    allowed = ALLOWED.get(name.split("/")[0], {"extract", "probes", "analysis", "benchmarks"})
    strangers = [module for module in ours if not any(within(module, at) for at in allowed)]
    assert not strangers, f"{name} imports {strangers}; it may import {sorted(allowed)}"
    if name not in H5PY_AT:
        assert not [module for module in found if within(module, "h5py")], f"only {sorted(H5PY_AT)} import h5py"
    if name.startswith(WITHOUT_TORCH):
        assert not [module for module in imports(tree, everywhere=False) if within(module, "torch")]


@pytest.mark.parametrize("name", LIGHT_COMMANDS)
def test_a_command_imports_nothing_heavy_until_it_works(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    assert not {module.split(".")[0] for module in imports(tree, everywhere=False)} & HEAVY


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b", ["a.b"]),
        ("from a import b, c", ["a.b", "a.c"]),
        ("def f():\n    from a import b", ["a.b"]),
        ("if TYPE_CHECKING:\n    import a", ["a"]),
    ],
)
def test_the_reader_of_imports_sees_them(source: str, expected: list[str]) -> None:
    assert list(imports(ast.parse(source))) == expected


def test_the_reader_of_imports_refuses_relative_ones() -> None:
    with pytest.raises(AssertionError, match="relative"):
        list(imports(ast.parse("from . import store")))


def test_what_runs_at_import_leaves_out_functions_and_types() -> None:
    source = "import a\nif TYPE_CHECKING:\n    import b\nwith x:\n    import c\ndef f():\n    import d"
    assert list(imports(ast.parse(source), everywhere=False)) == ["a", "c"]
