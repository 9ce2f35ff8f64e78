"""A dataclass from a TOML file. Knows names and plain types; not what the settings mean."""

import tomllib
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from htc_probe.extract.errors import UserError

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path (text)"}


def read_settings(path: Path, kind: type) -> dict[str, Any]:
    """The settings in a TOML file by field name of the dataclass `kind`; keys may have - for _.

    Raises UserError for a file that is no TOML, an unknown key and a value that is not of the field's type.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as TOML: {error}; htc-train --help shows what it can hold") from error
    types, settings = get_type_hints(kind), {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in types:
            raise UserError(f"{path} has an unknown key {key!r}; known: {', '.join(f.name for f in fields(kind))}")
        if name in settings:
            raise UserError(f"{path} has {name!r} twice, with - and with _; keep one")
        settings[name] = _as(types[name], value, f"{path}: {key}")
    return settings


def _as(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: a plain type, a Literal of texts, or either or None."""
    if get_origin(kind) is UnionType:
        (kind,) = (one for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UserError(f"{where} is {value!r}; expected one of {', '.join(get_args(kind))}")
        return value
    accepted: Any = {Path: str, float: (int, float)}.get(kind, kind)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{where} is {value!r}; expected {_WORDS[kind]}")
    return kind(value)
