"""README and docs say what is so: the tree is the folders', commands and options exist, code parses and imports."""

import ast
import importlib
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from htc_probe.probes.files import results
from htc_probe.probes.show import verdict
from made.typed import module, parsed

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
SOURCES = ("extract", "probes", "analysis", "dashboards")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.S | re.M)


def tree_of(page: str) -> list[str]:
    """The paths of the tree, a folder with a / at its end: names before two spaces, several parted by commas."""
    block = page.split("## The files\n")[1].split("```\n")[1]
    parents: list[str] = []
    paths = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        parents = parents[:depth]
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        paths += ["".join(parents) + name for name in names]
        parents.append(names[0])
    return paths


def test_the_tree_is_read_by_its_indents() -> None:
    tree = "a/           rooms\n  b.py, c.py   files\n  d/         a room\n    e.py     file\nf/   g\n"
    assert tree_of(f"## The files\n\n```\n{tree}```\n") == ["a/", "a/b.py", "a/c.py", "a/d/", "a/d/e.py", "f/"]


def test_the_tree_is_that_of_the_folders() -> None:
    told = tree_of((ROOT / "CONTRIBUTING.md").read_text())
    assert len(set(told)) == len(told)
    gone = [path for path in told if not (ROOT / path).exists() or path.endswith("/") != (ROOT / path).is_dir()]
    assert not gone, f"the tree of CONTRIBUTING names what is not there: {gone}"
    modules = [path.relative_to(ROOT) for folder in SOURCES for path in (ROOT / folder).rglob("*.py")]
    rooms = {"/".join(path.parts[:2]) + "/" for path in modules if len(path.parts) > 2}
    assert not rooms - set(told), "rooms that the tree of CONTRIBUTING lacks"
    listed = {str(Path(path).parent) for path in told if path.endswith(".py")}
    missing = {
        str(path)
        for path in modules
        if str(path.parent) in listed and path.name != "__init__.py" and str(path) not in told
    }
    assert not missing, "modules that the tree of CONTRIBUTING lacks, though it lists their folders' files"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        dead = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
        assert not dead, f"{page.name} leads to what is not there: {dead}"


def test_files_that_are_named_exist() -> None:
    for page in PAGES:
        named = re.findall(
            r"`((?:extract|probes|analysis|dashboards|tests|docs|benchmarks)/[\w./-]+)`", page.read_text()
        )
        gone = [path for path in named if "NAME" not in path and not (ROOT / path).exists()]
        assert not gone, f"{page.name} names what is not there: {gone}"


def resolves(dotted: str) -> bool:
    """Whether `folder.module.name` is a module, or its last part stands in one."""
    path = ROOT
    for number, part in enumerate(parts := dotted.split(".")):
        if not (path / part).is_dir() and not (path / f"{part}.py").exists():
            module = path / "__init__.py" if path.is_dir() else path
            return bool(re.search(rf"\b{parts[number]}\b", module.read_text()))
        path = path / part if (path / part).is_dir() else path / f"{part}.py"
    return True


def test_names_with_dots_exist() -> None:
    for page in PAGES:
        spans = re.findall(r"`((?:htc_probe\.)?(?:extract|probes|analysis|dashboards)\.[\w.]+)", page.read_text())
        gone = {name for name in spans if not resolves(name.removeprefix("htc_probe.").rstrip("."))}
        assert not gone or page.name == "CHANGELOG.md", f"{page.name} names what is not there: {sorted(gone)}"


def commands() -> dict[str, str]:
    """Every line of the pages that is typed, by the command that it calls."""
    lines: dict[str, str] = {}
    for page in PAGES:
        for language, block in BLOCK.findall(page.read_text()):
            if language in ("", "bash", "sh"):
                for line in block.replace("\\\n", " ").splitlines():
                    if match := re.match(r"(?:\$ )?(make|htc-[a-z]+)\b", line):
                        lines[match[1]] = f"{lines.get(match[1], '')}\n{line.split('  #')[0]}"
    return lines


def test_what_is_typed_exists() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    typed = commands()
    assert set(typed) - {"make"} <= set(scripts) and "htc-extract" in typed
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"make ([a-z-]+)", typed["make"])) <= targets


@pytest.mark.parametrize("command", [name for name in sorted(commands()) if name != "make"])
def test_options_that_are_typed_exist(command: str) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module = scripts[command].split(":")[0]
    shown = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True).stdout
    if command == "htc-train":
        for recipe in ("tiny",):
            more = subprocess.run([sys.executable, "-m", module, recipe, "--help"], capture_output=True, text=True)
            shown += more.stdout
    shown += shown.replace("--[no-]", "--no-")
    missing = set(re.findall(r"(?<=\s)--[a-z-]+", commands()[command])) - set(re.findall(r"--[a-z-]+", shown))
    assert not missing, f"{command} has no {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_parses_and_its_imports_resolve(page: Path) -> None:
    for language, block in BLOCK.findall(page.read_text()):
        if language == "python":
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.Import):
                    for alias in node.names:
                        importlib.import_module(alias.name)
                elif isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(node.module or "")
                    for alias in node.names:
                        if not hasattr(module, alias.name):
                            importlib.import_module(f"{node.module}.{alias.name}")


def test_api_is_that_of_the_docstrings() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_api.py"))["page"]()
    assert (ROOT / "docs" / "api.md").read_text() == made, "run: python docs/make_api.py"


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 200
    assert len(re.findall(r"^!\[", "\n".join(lines), flags=re.M)) == 1, "one picture"
    assert sum(line.startswith("|---") for line in lines) == 1, "one table"


def test_what_the_readme_types_is_read_by_the_commands(tmp_path: Path) -> None:
    (tmp_path / "htc-7b.toml").write_text('init-from = "llava"')
    lines = [
        line
        for language, block in BLOCK.findall((ROOT / "README.md").read_text())
        if not language
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("htc-")
    ]
    assert len(lines) >= 8
    for line in lines:
        typed = shlex.split(line, comments=True)
        assert parsed([str(tmp_path / word) if word == "htc-7b.toml" else word for word in typed]), line


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first commands of README were typed, with fewer images, and in which a photo lies."""
    folder = tmp_path_factory.mktemp("demo")
    run = ["--run", str(folder / "runs" / "scenes-val.h5")]
    assert module("htc-extract").main(["--split", "val", "--limit", "80", "--out", run[1]]) == 0
    sources = ["voco_read", "z_voco", "v_d", "v_pooled"]
    assert module("htc-probe").main(["texture", "--representations", *sources, *run]) == 0
    Image.fromarray(np.full((48, 64, 3), 99, np.uint8)).save(folder / "photo.jpg")
    return folder


def test_what_the_readme_shows_in_python_runs(demo: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(demo)
    blocks = [block for language, block in BLOCK.findall((ROOT / "README.md").read_text()) if language == "python"]
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "voco_read" in capsys.readouterr().out, "the verdict"


def test_the_glossary_is_that_of_the_dashboard() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_glossary.py"))["page"]()
    assert (ROOT / "docs" / "glossary.md").read_text() == made, "run: python docs/make_glossary.py"


def test_pages_quote_the_verdict_that_the_code_gives() -> None:
    """Of the demo's results, as `docs/make_first_look.py` keeps them."""
    told = verdict.of(results.read(ROOT / "tests" / "golden" / "demo.probes.json"), None)
    for name in ("README.md", "docs/first-look.md"):
        text = (ROOT / name).read_text()
        (block,) = (block for _, block in BLOCK.findall(text) if "The one token" in block)
        assert " ".join(told.sentences) in " ".join(block.split()), f"{name} quotes another verdict than {told}"
    last = block.splitlines()[-23:]
    assert last[-2].startswith("Next: ") and any(line.startswith("The one token") for line in last)
    assert max(map(len, block.splitlines())) <= 80
