"""Records: what is found, declared by the fields of a class, laid out under names and checked against the declaration.

Knows dataclasses and arrays; not files, nor what a record is of.

A field of a record is one of these, or one of these `| None = None`, which is absent where it is None:

    Annotated[np.ndarray, "L w 2"]    floats; an axis of a capital has one length in all of a section, one of a small
                                      letter in its record, and a number is a length
    Annotated[np.ndarray, "L H int"]  integers or flags
    Annotated[Intervals, "L H"]       estimates with the ends of their intervals, float32
    Annotated[list[str], "N"]         texts
    int, float, str                   one of them
    a record                          its fields

The name of a value is that of its field, `RECORD_FIELD` in a record; `estimate` adds nothing, so that of an interval X
the names are `X`, `X_lower` and `X_upper`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from htc_probe.analysis.stats.draws import Intervals

Value = np.ndarray | list[str] | float | int | str
_TEXT, _FLOATS, _WHOLE = "O", "f", "biu"  # kinds of numpy's types


class Form(NamedTuple):
    """What is known of a value before it is read."""

    shape: tuple[int, ...]
    kind: str
    """That of numpy's type; "O" for text."""


class Field(NamedTuple):
    """One field of a record, as declared."""

    name: str
    type: Any
    axes: tuple[str, ...]
    whole: bool
    """Of integers."""
    optional: bool

    def words(self, shape: tuple[int, ...]) -> str:
        """What a value of this shape is."""
        kind = {np.ndarray: "integers" if self.whole else "numbers", list[str]: "texts", Intervals: "intervals"}
        axes = [axis if axis.isdigit() else f"{axis} = {size}" for axis, size in zip(self.axes, shape, strict=False)]
        return kind.get(self.type, self.type.__name__) + (f" ({', '.join(axes)})" if axes else "")


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
class Record:
    """Base of all records: a class that is made of it is a frozen dataclass, whose values are given by name. Of one
    that is in a file, a value is read when it is asked for first, and kept.
    """

    VERSION: ClassVar[int]
    """Of a section: goes up when what is found with the same settings is another thing."""

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, kw_only=True, repr=False)(cls)
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if field.default is not dataclasses.MISSING:
                delattr(cls, field.name)  # or it would be found where a value is still to be read

    def __repr__(self) -> str:
        """What is there, with the lengths of its axes: reads no file."""
        there = [field for field in fields(type(self)) if self.__dict__.get(field.name, field) is not None]
        width = max((len(field.name) for field in there), default=0)
        shapes = self.__dict__.get("_shapes", {})
        lines = []
        for field in there:
            shape = shapes.get(field.name) or np.shape(self.__dict__.get(field.name, ())) if field.axes else ()
            lines.append(f"{field.name:<{width}}  {field.words(shape)}")
        return "\n".join([f"<{type(self).__name__}>", *lines])

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            pending = self.__dict__.get("_pending", {})
            if name not in pending:
                raise AttributeError(f"{type(self).__name__} has no {name!r}")
            value = self.__dict__[name] = pending[name]()
            return value


R = TypeVar("R", bound=Record)


def flat(record: Record) -> dict[str, Value]:
    """The values of a record by name. Raises ValueError where they are not as declared."""
    values = dict(_values(record, ""))
    build(type(record), {name: describe(value) for name, value in values.items()}, values.__getitem__)
    return values


def describe(value: Value) -> Form:
    """Of a value at hand."""
    array = np.asarray(value)
    return Form(array.shape, _TEXT if array.dtype.kind == "U" or isinstance(value, list) else array.dtype.kind)


def build(kind: type[R], forms: Mapping[str, Form], load: Callable[[str], Value]) -> R:
    """The record of values that are stored under its names; `load` is called when one is asked for. Raises ValueError
    with the name of the first that is missing or not as declared; names that are not declared are left alone.
    """
    return _build(kind, "", forms, load, {})


def lazy(kind: type[R], pending: Mapping[str, Callable[[], Any]]) -> R:
    """A record whose values are made by these when they are asked for; None where there is none of a name."""
    record = object.__new__(kind)
    record.__dict__.update({field.name: None for field in fields(kind) if field.name not in pending})
    record.__dict__["_pending"] = pending
    return record


def fields(kind: Any) -> tuple[Field, ...]:
    """Of a record, as declared, in order."""
    return _fields(kind)


@cache
def _fields(kind: Any) -> tuple[Field, ...]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return tuple(_field(field.name, hints[field.name]) for field in dataclasses.fields(kind))


def names(field: Field, prefix: str = "") -> list[str]:
    """Of the values of a field of a record."""
    start = joined(prefix, field.name)
    if dataclasses.is_dataclass(field.type):
        return [name for part in fields(field.type) for name in names(part, start)]
    return ends(start) if field.type is Intervals else [start]


def ends(name: str) -> list[str]:
    """The names of an interval's values."""
    return [joined(name, end) for end in Intervals._fields]


def joined(prefix: str, name: str) -> str:
    """The name of a field of what is called `prefix`; "" for a section."""
    return prefix if name == "estimate" else f"{prefix}_{name}" if prefix else name


def _field(name: str, hint: Any) -> Field:
    optional = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    if optional:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    axes: tuple[str, ...] = ()
    if typing.get_origin(hint) is typing.Annotated:
        hint, words = typing.get_args(hint)
        axes = tuple(words.split())
    whole = hint is int or axes[-1:] == ("int",)
    return Field(name, hint, axes[:-1] if axes[-1:] == ("int",) else axes, whole, optional)


def _values(record: Record, prefix: str) -> Iterator[tuple[str, Value]]:
    for field in fields(type(record)):
        value = getattr(record, field.name)
        name = joined(prefix, field.name)
        if value is None and field.optional:
            continue
        if isinstance(value, Record):
            yield from _values(value, name)
        elif isinstance(value, Intervals):
            yield from zip(names(field, prefix), (np.asarray(part, np.float32) for part in value), strict=True)
        else:
            yield name, value


def _build(
    kind: type[R], prefix: str, forms: Mapping[str, Form], load: Callable[[str], Value], lengths: dict[str, int]
) -> R:
    pending: dict[str, Callable[[], Any]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    nested: dict[str, Record] = {}
    for field in fields(kind):
        of = names(field, prefix)
        if field.optional and not any(name in forms for name in of):
            continue
        if dataclasses.is_dataclass(field.type):
            start = joined(prefix, field.name)
            nested[field.name] = _build(typing.cast(Any, field.type), start, forms, load, lengths)
        else:
            for name in of:
                _check(name, field, forms, lengths, prefix)
            pending[field.name] = partial(_load, field, of, load)
            shapes[field.name] = forms[of[0]].shape
    record = lazy(kind, pending)
    record.__dict__.update(nested, _shapes=shapes)
    return record


def _check(name: str, field: Field, forms: Mapping[str, Form], lengths: dict[str, int], prefix: str) -> None:
    if name not in forms:
        raise ValueError(f"{name} is missing")
    shape, kind = forms[name]
    wanted = _TEXT if field.type in (str, list[str]) else _WHOLE if field.whole else _FLOATS
    if kind not in wanted:
        raise ValueError(f"{name} has values of type {kind!r}, expected one of {wanted!r}")
    long = {axis: axis if axis.isupper() else f"{prefix} {axis}" for axis in field.axes}
    if len(shape) == len(field.axes):
        sizes = zip(field.axes, shape, strict=True)
        if all(size == (int(axis) if axis.isdigit() else lengths.setdefault(long[axis], size)) for axis, size in sizes):
            return
    expected = ", ".join(f"{axis} = {lengths[key]}" if key in lengths else axis for axis, key in long.items())
    raise ValueError(f"{name} has shape {shape}, expected ({expected})")


def _load(field: Field, of: list[str], load: Callable[[str], Value]) -> Any:
    values = [load(name) for name in of]
    return Intervals(*map(np.asarray, values)) if field.type is Intervals else values[0]
