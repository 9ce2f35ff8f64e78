"""Who may import whom, read from the source: data flows extract -> probes, analysis -> dashboards. And its measures:
no module reaches into another or needs itself, no file is long, no function is long without a reason.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from made.names import unused

ROOT = Path(__file__).parents[1]
PACKAGE = "htc_probe"
FOLDERS = ("extract", "probes", "analysis", "dashboards")
FILES = sorted(path for folder in (*FOLDERS, "benchmarks") for path in (ROOT / folder).rglob("*.py"))

# What a folder may import from another one; a module stands for itself and what is in it.
RUN = {"extract.store", "extract.errors", "extract.files", "extract.arguments", "extract.command", "extract.words"}
ALLOWED = {
    "extract": {"extract"},
    "probes": {"probes"} | RUN,
    # The model's parts only where the model runs.
    "analysis": {"analysis", "extract", "probes.files", "probes.scores"}
    | {"probes.inputs.circular", "probes.inputs.representations", "probes.show.table", "probes.show.verdict"},
    "dashboards": {"dashboards", "probes.files", "probes.show", "probes.scores"}
    | {"probes.inputs.circular", "probes.inputs.representations"}
    | {"analysis.compare", "analysis.results", "analysis.sections", "analysis.sentences", "analysis.stats"}
    | {"analysis.attention.rows", "analysis.causes.effects", "analysis.causes.following"}
    | {"analysis.contents.associations"}
    | RUN,
    "benchmarks": {"extract", "probes", "analysis"},
}
H5PY_AT = {
    "extract/store/hdf5.py",
    "extract/store/assembly.py",
    "extract/store/read.py",
    "extract/store/write.py",
    "analysis/results.py",
    "extract/data/official/shapes3d.py",
    "benchmarks/extraction.py",
    "benchmarks/storage.py",
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
    "extract/arguments.py",
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


# ---- measures

Sources = dict[str, str]
"""Path from the top -> text."""


def _modules(sources: Sources) -> dict[str, str]:
    """`extract.store.read` -> its path; a package by its folder."""
    return {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources}


def arrows(sources: Sources) -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports, for types alone aside."""
    modules, found = _modules(sources), {}
    for module, path in modules.items():
        names = [name.removeprefix(f"{PACKAGE}.") for name in _imports_that_run(ast.parse(sources[path]))]
        imported = {name if name in modules else name.rpartition(".")[0] for name in names}
        found[module] = {name for name in imported if name in modules} - {module}
    return found


def _imports_that_run(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            is_import = isinstance(node, ast.Import | ast.ImportFrom)
            yield from imports(ast.Module([node], [])) if is_import else _imports_that_run(node)


def in_circles(graph: dict[str, set[str]]) -> set[str]:
    """The nodes that reach themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = list(graph[start])
        while ahead:
            node = ahead.pop()
            if node not in seen:
                seen.add(node)
                ahead += graph[node]
        return seen

    return {node for node in graph if node in reached(node)}


def modules_in_circles(sources: Sources) -> set[str]:
    return in_circles(arrows(sources))


def rooms_in_circles(sources: Sources) -> set[str]:
    """A room is a folder in `extract`, `probes`, ... with all below it; a file beside the rooms is one by itself."""
    rooms: dict[str, set[str]] = {}
    for module, imported in arrows(sources).items():
        room, *others = (".".join(name.split(".")[:2]) for name in (module, *imported))
        rooms.setdefault(room, set()).update(other for other in others if other != room)
    return in_circles(rooms)


def borrowed_privates(sources: Sources) -> set[str]:
    """`path: name` of names with an underscore that are imported from another module, or taken as `module._name`."""
    found, modules = set(), _modules(sources)
    for path, text in sources.items():
        nodes = list(ast.walk(ast.parse(text)))
        ours = [node for node in nodes if isinstance(node, ast.ImportFrom) and within(node.module or "", PACKAGE)]
        private = {alias.name for node in ours for alias in node.names if alias.name.startswith("_")}
        bound = {
            alias.asname or alias.name
            for node in ours
            for alias in node.names
            if f"{node.module}.{alias.name}".removeprefix(f"{PACKAGE}.") in modules
        }
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in bound:
                hidden = node.attr.startswith("_") and not node.attr.endswith("__")
                private |= {f"{node.value.id}.{node.attr}"} if hidden else set()
        found |= {f"{path}: {name}" for name in private}
    return found


def long_files(sources: Sources) -> set[str]:
    return {path for path, text in sources.items() if len(text.splitlines()) > 500}


def long_functions(sources: Sources) -> set[str]:
    """`path: name` of functions over 80 lines without a comment `# long: why` at or above their `def`."""
    found = set()
    for path, text in sources.items():
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 80:
                first = min(part.lineno for part in (node, *node.decorator_list))
                head = lines[max(first - 2, 0) : node.body[0].lineno - 1]
                found |= set() if any("# long: " in line for line in head) else {f"{path}: {node.name}"}
    return found


MEASURES = modules_in_circles, rooms_in_circles, borrowed_privates, long_files, long_functions


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
def test_measures(measure: Callable[[Sources], set[str]]) -> None:
    assert not measure({path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in FILES})


PLANTED = {
    "extract/a.py": "from htc_probe.extract.room import b\nb._hidden()\nb.__doc__\n",
    "extract/room/b.py": "def f():\n    from htc_probe.extract import a\n",
    "extract/room/c.py": "if TYPE_CHECKING:\n    from htc_probe.extract import a\n",
    "extract/d.py": "from htc_probe.extract.room.c import _secret, open\n" + "\n" * 500,
    "extract/room/e.py": "import htc_probe.extract.f\n",
    "extract/f.py": "import htc_probe.extract.room.c\n",
    "extract/g.py": "def short():\n" + "    x\n" * 79 + "def long():\n" + "    x\n" * 80,
    "extract/h.py": "# long: a table\n@cached\ndef told():\n" + "    x\n" * 80,
}


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (modules_in_circles, {"extract.a", "extract.room.b"}),
        (rooms_in_circles, {"extract.a", "extract.f", "extract.room"}),
        (borrowed_privates, {"extract/a.py: b._hidden", "extract/d.py: _secret"}),
        (long_files, {"extract/d.py"}),
        (long_functions, {"extract/g.py: long"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_measures_find_what_is_planted(measure: Callable[[Sources], set[str]], expected: set[str]) -> None:
    assert measure(PLANTED) == expected


# ---- names


def test_what_one_file_alone_uses_begins_with_an_underscore() -> None:
    def texts(paths: Iterable[Path]) -> Sources:
        return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}

    sources = texts(path for path in FILES if path.relative_to(ROOT).parts[0] in FOLDERS)
    readers = texts([*TESTS, *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "docs").glob("*.py")])
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    code = re.findall(r"```.*?```|`[^`\n]+`", "\n".join(page.read_text() for page in pages), flags=re.S)
    found = unused(sources, readers, set(re.findall(r"\w+", " ".join(code))))
    assert not found


def test_names_of_one_file_are_found() -> None:
    sources = {
        "extract/a.py": "X = 1\nY: int = 2\n_Z = 3\nclass Shown: ...\nclass Hidden: ...\ndef f() -> Shown: return X\n",
        "extract/room/__init__.py": "def g(): ...\ndef h(): ...\ndef told(): ...\n",
        "extract/b.py": "from htc_probe.extract import a, room\na.f()\nroom.g()\ndef main(): h()\n",
    }
    readers = {"tests/t.py": "from htc_probe.extract import a\nmonkeypatch.setattr(a, 'Y', 3)\n"}
    found = unused(sources, readers, {"told"})
    assert found == {"extract/a.py": {"X", "Hidden"}, "extract/room/__init__.py": {"h"}}
