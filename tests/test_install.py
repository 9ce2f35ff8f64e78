"""What is installed: all of it pinned, used by something, and nothing that came along unasked."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PLAIN = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = [Requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines]
FOR_OTHERS = {"sentencepiece": "transformers' tokenizers"}
"""Not imported here, with who imports them."""


def brought(wanted: Iterable[Requirement]) -> set[str]:
    """All that these bring, by the metadata of what is installed."""
    found: set[str] = set()
    waiting = list(wanted)
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        asked = {f"{name}[{extra}]" for extra in one.extras} | {name}
        if asked <= found:
            continue
        found |= asked
        try:
            lines = requires(name) or []
        except PackageNotFoundError:  # of an extra that is not here
            continue
        more = [Requirement(line) for line in lines]
        extras = ["", *one.extras]
        waiting += [need for need in more if not need.marker or any(need.marker.evaluate({"extra": e}) for e in extras)]
    return {name for name in found if "[" not in name}


def test_an_installation_without_extras_brings_no_wandb() -> None:
    plain = brought(PLAIN)
    assert {"torch", "streamlit", "pandas", "markupsafe"} <= plain, "what others bring is found"
    assert not plain & {"wandb", "transformer-lens", "ray", "opentelemetry-sdk", "ipykernel"}
    assert "wandb" in brought([Requirement("transformer-lens")]), "TransformerLens is why it is an extra"


def test_what_is_installed_is_pinned() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert list(pins) == sorted(pins) == [canonicalize_name(name) for name in pins]
    ours = [one for one in (*PLAIN, *EXTRAS) if canonicalize_name(one.name) != PROJECT["name"]]
    for one in ours:
        assert one.specifier.contains(pins[canonicalize_name(one.name)]), f"{one} and {pins[one.name]}"
    # A torch for GPUs pins what it brings itself.
    loose = {name for name in brought(ours) - pins.keys() if not re.match("nvidia-|cuda-|triton", name)}
    assert loose <= {PROJECT["name"], "pip"}, f"constraints.txt lacks {sorted(loose)}"


def test_nothing_is_installed_for_nothing() -> None:
    sources = [path for name in ("extract", "probes", "analysis", "dashboards") for path in (ROOT / name).rglob("*.py")]
    imported: set[str] = set()
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {name.split(".")[0] for name in [*names, getattr(node, "module", None) or ""]}
    of = packages_distributions()
    used = {canonicalize_name(name) for module in imported for name in of.get(module, ())}
    assert {canonicalize_name(one.name) for one in PLAIN} - used == set(FOR_OTHERS)


def test_it_says_which_pythons_it_runs_on() -> None:
    versions = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert f">={versions[0]}" == PROJECT["requires-python"]
    head = (ROOT / "constraints.txt").read_text().splitlines()[0]
    assert all(version in head for version in versions), "the constraints are of all of them"
    assert f"Python {versions[0]} to {versions[-1]}" in (ROOT / "README.md").read_text()
