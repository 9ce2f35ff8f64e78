"""Lines that are typed, read by the commands themselves."""

import importlib
import tomllib
from pathlib import Path
from typing import Any

from htc_probe.extract import arguments

SCRIPTS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]


def module(name: str) -> Any:
    """That of a command."""
    return importlib.import_module(SCRIPTS[name].split(":")[0])


def parsed(typed: list[str]) -> Any:
    """The settings of a command line, by the command's own reader."""
    found = module(typed[0])
    if hasattr(found, "_parse"):
        return found._parse(typed[1:])
    (kind,) = (value for name, value in vars(found).items() if name.endswith("Config"))
    return arguments.parse(kind, typed[1:], typed[0])
