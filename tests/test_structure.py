"""Who may import whom, read from the source: data flows extract -> probes, analysis -> dashboards."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "htc_probe"
FOLDERS = ("extract", "probes", "analysis", "dashboards")
FILES = sorted(path for folder in (*FOLDERS, "benchmarks") for path in (ROOT / folder).rglob("*.py"))

# What a folder may import from another one; a module stands for itself and what is in it.
RUN = {"extract.store", "extract.errors", "extract.files", "extract.command"}
ALLOWED = {
    "extract": {"extract"},
    "probes": {"probes"} | RUN,
    # The model's parts only where the model runs.
    "analysis": {"analysis", "extract", "probes.files", "probes.inputs.circular", "probes.scores"},
    "dashboards": {"dashboards", "probes.files", "probes.show", "probes.scores", "probes.inputs.circular"}
    | {"analysis.results", "analysis.sentences", "analysis.stats", "analysis.attention.rows"}
    | {"analysis.contents.associations"}
    | RUN,
    "benchmarks": {"extract", "probes", "analysis"},
}
H5PY_AT = {
    "extract/store/hdf5.py",
    "extract/store/read.py",
    "analysis/results.py",
    "extract/data/official/shapes3d.py",
    "benchmarks/extraction.py",
    "benchmarks/stream.py",
}
# What opens runs or names data must not bring in what only running the model needs.
WITHOUT_TORCH = (
    "extract/store/",
    "extract/info.py",
    "extract/errors.py",
    "extract/files.py",
    "extract/environment.py",
    "extract/data/",
    "dashboards/",
)
LIGHT_COMMANDS = (
    "extract/command.py",
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
    outside = [module for module in found if module.split(".")[0] in (*FOLDERS, "tests")]
    assert not outside, f"{name} imports {outside}: ours is installed as {PACKAGE}"
    ours = [module.removeprefix(f"{PACKAGE}.") for module in found if within(module, PACKAGE)]
    allowed = ALLOWED[name.split("/")[0]]
    strangers = [module for module in ours if not any(within(module, room) for room in allowed)]
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


def test_all_packages_are_installed() -> None:
    """A folder that is not listed is missing from a plain install, and there alone."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {path.parent.relative_to(ROOT) for path in FILES if path.relative_to(ROOT).parts[0] in FOLDERS}
    assert sorted(listed) == sorted(f"{PACKAGE}.{'.'.join(folder.parts)}" for folder in there)


@pytest.mark.parametrize(
    "command", ["htc-extract", "htc-train", "htc-probe", "htc-analyze", "htc-info", "htc-dashboard"]
)
def test_commands_work_beside_folders_of_our_names(command: str, tmp_path: Path) -> None:
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("raise ImportError('a package of the user')")
    target = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"][command]
    module = target.split(":")[0]
    for arguments in (["-m", module, "--help"], ["-c", f"import {PACKAGE}.probes, {module}"]):
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for folder in FOLDERS:  # and theirs is still theirs
        done = subprocess.run([sys.executable, "-c", f"import {folder}"], cwd=tmp_path, capture_output=True, text=True)
        assert "a package of the user" in done.stderr


TESTS = sorted(path for path in Path(__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_what_tests_share_is_made_elsewhere(path: Path) -> None:
    modules = {other.stem for other in TESTS if other.parent == Path(__file__).parent}
    borrowed = [name for name in imports(ast.parse(path.read_text())) if name.split(".")[0] in modules]
    assert not borrowed, f"{path.name} imports {borrowed}: things belong in tests/made/, fixtures in conftest.py"
