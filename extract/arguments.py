"""A dataclass of settings as a command line: read from arguments, shown as help, completed by shells.

Knows dataclasses and plain types; no command. A field is a setting, and the first paragraph of its docstring is what
help says of it, in lines that are short enough for a terminal of 80 columns.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from htc_probe.extract.errors import UserError

Config = TypeVar("Config")
_COLUMNS = 80
_LEFT = 24  # columns of the settings' names; what is said of them stands in the rest
_FILES = ":files"  # said to a shell in place of words: complete names of files
_NAMES = {str: "TEXT", int: "N", float: "X", Path: "FILE"}
_WORDS = {str: "text", int: "a whole number", float: "a number", Path: "a path"}


class Shown(NamedTuple):
    """How the value of a setting is shown: `Annotated[int, Shown("K")]`."""

    value: str = ""
    """What stands for it in help; where that has FILE or FOLDER in it, shells complete those."""
    words: tuple[str, ...] = ()
    """What shells offer beside."""
    positional: bool = False
    """It is given without the name of the setting."""


class Told(Exception):
    """Raised in place of settings where a text was asked for, such as help: it is to be printed."""


class _Setting(NamedTuple):
    name: str
    kind: Any
    """Its type, without None; of a tuple, that of each."""
    many: bool
    default: Any
    lines: tuple[str, ...]
    shown: Shown
    group: str
    """What is said of the dataclass within the dataclass that it belongs to."""

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def value(self) -> str:
        """What stands for its value in help."""
        return self.shown.value or "|".join(_NAMES.get(kind, str(kind)) for kind in _alternatives(self.kind))

    def read(self, text: str) -> Any:
        """The value that `text` says. Raises UserError."""
        for kind in _alternatives(self.kind):
            if isinstance(kind, str):
                if text == kind:
                    return text
                continue
            try:
                return kind(text)
            except ValueError:
                pass
        words = [_WORDS.get(kind, str(kind)) for kind in _alternatives(self.kind)]
        name = self.value if self.shown.positional else self.flag
        raise UserError(f"{name} {text!r}: expected {' or '.join(filter(None, [', '.join(words[:-1]), words[-1]]))}")


def parse(
    kind: type[Config],
    arguments: Sequence[str],
    prog: str,
    *,
    given: Mapping[str, Any] | None = None,
    first: Shown | None = None,
) -> Config:
    """The settings that the arguments of the command `prog` say; the others are those in `given`, or their defaults.

    `first`: what else may stand before the settings, which the caller has taken away. Raises UserError for what cannot
    be read, and Told for --help, --version, --completion and what shells ask for.
    """
    settings = list(_settings(kind, given or {}))
    free = next((setting for setting in settings if setting.shown.positional), None)
    flags = {setting.flag: setting for setting in settings if setting is not free}
    if arguments[:1] == ["--complete"]:
        raise Told("\n".join(_completions(flags, free, first, arguments[1:])))
    if {"-h", "--help"} & set(arguments):
        raise Told(_help(kind, settings, prog, first))
    if "--version" in arguments:
        raise Told(f"{prog.split()[0]} {version('htc-probe')}")
    if arguments[:1] == ["--completion"]:
        raise Told(_script(arguments[1] if len(arguments) > 1 else "", prog.split()[0]))
    values, loose = _values(flags, arguments, prog)
    if free is not None and loose:
        if len(loose) > 1 and not free.many:
            raise UserError(f"{loose[1]} is one {free.value} too many; {prog} takes one")
        read = tuple(free.read(text) for text in loose)
        values[free.name] = read if free.many else read[0]
    elif loose:
        raise UserError(f"{loose[0]} is no setting of {prog}; `{prog} --help` shows them")
    lacking = [setting for setting in settings if setting.default is MISSING and setting.name not in values]
    if lacking:
        name = lacking[0].value if lacking[0] is free else f"{lacking[0].flag} {lacking[0].value}"
        raise UserError(f"{name} is needed; `{prog} --help` shows all settings")
    return _made(kind, {**{setting.name: setting.default for setting in settings}, **values})


def _values(flags: Mapping[str, _Setting], arguments: Sequence[str], prog: str) -> tuple[dict[str, Any], list[str]]:
    """The values by name that the arguments say, and the words that stand by themselves."""
    values: dict[str, Any] = {}
    loose: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word == "--":
            return values, loose + words
        if not word.startswith("-") or word == "-":
            loose.append(word)
            continue
        name, equals, text = word.partition("=")
        name = name.replace("_", "-")
        negated = name not in flags and name.startswith("--no-")
        setting = flags.get(f"--{name.removeprefix('--no-')}" if negated else name)
        if setting is None or (negated and setting.kind is not bool):
            near = difflib.get_close_matches(name, flags, n=1)
            hint = f"did you mean {near[0]}?" if near else "see"
            raise UserError(f"{word} is no setting of {prog}; {hint} `{prog} --help` shows all")
        if setting.kind is bool:
            if equals:
                raise UserError(f"{word}: {name} takes no value; give {name} or --no-{setting.flag[2:]}")
            values[setting.name] = not negated
        elif setting.many:
            texts = [text] if equals else list(itertools.takewhile(lambda word: not word.startswith("--"), words))
            del words[: 0 if equals else len(texts)]
            values[setting.name] = tuple(map(setting.read, texts))
        else:
            if not equals and (not words or words[0].startswith("--")):
                raise UserError(f"{name} needs a value: {name} {setting.value}")
            values[setting.name] = setting.read(text if equals else words.pop(0))
    return values, loose


# ---- what a dataclass says


def _settings(kind: type, given: Mapping[str, Any], prefix: str = "", group: str = "") -> Iterator[_Setting]:
    docs, hints = _docs(kind), get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint, shown, default = hints[field.name], Shown(), given.get(field.name, field.default)
        if get_origin(hint) is Annotated:
            hint, shown = get_args(hint)
        doc = docs.get(field.name, "")
        if is_dataclass(hint):
            inner = {each.name: getattr(default, each.name) for each in fields(default)}
            yield from _settings(hint, inner, f"{prefix}{field.name}.", doc)  # type: ignore[arg-type]
            continue
        many = get_origin(hint) is tuple
        lines = tuple(inspect.cleandoc(doc).split("\n\n")[0].splitlines())
        yield _Setting(prefix + field.name, get_args(hint)[0] if many else hint, many, default, lines, shown, group)


def _docs(kind: type) -> dict[str, str]:
    """The docstrings of its fields, which Python does not keep."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for before, after in itertools.pairwise(tree.body):
        match before, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                found[name] = doc
    return found


def _alternatives(kind: Any) -> list[Any]:
    """Types and words that a value may be."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if get_origin(kind) in (UnionType, Union):
        return [each for part in get_args(kind) if part is not NoneType for each in _alternatives(part)]
    return [kind]


def _made(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """The dataclass `kind` of values by name, those of a dataclass within after its name and a dot."""
    own = {}
    for field in fields(kind):  # type: ignore[arg-type]
        inner = {name.partition(".")[2]: value for name, value in values.items() if name.startswith(f"{field.name}.")}
        own[field.name] = _made(type(field.default), inner) if inner else values[field.name]
    return kind(**own)


# ---- help


def _help(kind: type, settings: Sequence[_Setting], prog: str, first: Shown | None) -> str:
    doc = kind.__doc__ or ""
    if doc.startswith(f"{kind.__name__}("):  # Python's own, in place of none
        doc = getattr(inspect.getmodule(kind), "__doc__", None) or ""
    text, _, examples = inspect.cleandoc(doc).partition("\nExamples:\n")
    paragraphs = [textwrap.fill(part, _COLUMNS, break_on_hyphens=False) for part in text.strip().split("\n\n")]
    before = [f"[{first.value}]"] if first else []
    before += [f"[{_left(setting)}]" for setting in settings if setting.shown.positional]
    lines = [" ".join(["usage:", prog, *before, "[SETTINGS]"]), "", "\n\n".join(paragraphs), "", "Settings:"]
    group = ""
    for setting in settings:
        if setting.group != group:
            group = setting.group
            lines += ["", f"{setting.name.partition('.')[0]}: {group}"]
        lines += _rows(_left(setting), _right(setting))
    if group:
        lines.append("")
    lines += _rows("-h, --help", ["Show this help."])
    lines += _rows("--version", ["Show the version."])
    lines += _rows("--completion SHELL", ["Print what completes it in bash, zsh or fish."])
    if examples:
        lines += ["", "Examples:", textwrap.indent(textwrap.dedent(examples), "  ")]
    return "\n".join(lines)


def _left(setting: _Setting) -> str:
    """How it is written."""
    if setting.kind is bool:
        return f"--[no-]{setting.flag[2:]}" if setting.default else setting.flag
    value = setting.value + " ..." * setting.many
    return value if setting.shown.positional else f"{setting.flag} {value}"


def _right(setting: _Setting) -> list[str]:
    """What is said of it, with the default last, where there is one to be said."""
    default = setting.default
    if default is MISSING:
        words = "[needed]"
    elif default is None or default is False or default in ("", ()):
        words = ""
    else:
        words = f"[{' '.join(map(str, default)) if setting.many else 'on' if default is True else default}]"
    lines = list(setting.lines)
    if words and lines and len(lines[-1]) + 1 + len(words) <= _COLUMNS - _LEFT:
        lines[-1] += f" {words}"
    elif words:
        lines.append(words)
    return lines


def _rows(left: str, right: Sequence[str]) -> list[str]:
    """Both side by side; what is too long has a line of its own."""
    beside = len(left) <= _LEFT - 4
    lines = [" " * _LEFT + line for line in right]
    return [f"  {left}".ljust(_LEFT) + right[0], *lines[1:]] if beside and right else [f"  {left}", *lines]


# ---- completion


def _completions(
    flags: Mapping[str, _Setting], free: _Setting | None, first: Shown | None, words: Sequence[str]
) -> list[str]:
    """What may stand for the last of the words."""
    *before, word = [word for word in words if word != "="] or [""]  # bash parts words at = and :
    if before[-1:] == [":"]:
        return [_FILES]
    last = next((at for at in reversed(range(len(before))) if before[at].startswith("--")), None)
    setting = None if last is None else flags.get(before[last].replace("_", "-"))
    asked = setting is not None and setting.kind is not bool and (setting.many or last == len(before) - 1)
    if word.startswith("-") and not (asked and last == len(before) - 1):
        negated = [f"--no-{flag[2:]}" for flag, setting in flags.items() if setting.default is True]
        return [flag for flag in (*flags, *negated, "--help", "--version", "--completion") if flag.startswith(word)]
    if before == ["--completion"]:
        return [shell for shell in _SCRIPTS if shell.startswith(word)]
    setting = setting if asked else free
    name, known = ("", []) if setting is None else (setting.value, [*setting.shown.words])
    if setting is not None and not setting.shown.words:
        known = [kind for kind in _alternatives(setting.kind) if isinstance(kind, str)]
    if first is not None and not before:
        name, known = "FILE", [*known, *first.words]
    found = [each for each in known if each.startswith(word)]
    return found or ([_FILES] if "FILE" in name or "FOLDER" in name else [])


_SCRIPTS = {
    "bash": """
_NAME() {
  local IFS=$'\\n'
  COMPREPLY=($("$1" --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
  [[ ${COMPREPLY[0]} == :files ]] && COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o filenames -F _NAME PROG
""",
    "zsh": """#compdef PROG
_NAME() {
  local -a found
  found=("${(@f)$($words[1] --complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ $found[1] == :files ]]; then _files; elif [[ -n $found[1] ]]; then compadd -a found; fi
}
if [[ $funcstack[1] == _NAME ]]; then _NAME "$@"; else compdef _NAME PROG; fi
""",
    "fish": """
function _NAME
  set -l found (PROG --complete (commandline -opc)[2..-1] "$(commandline -ct)" 2>/dev/null)
  if test "$found" = :files
    __fish_complete_path (commandline -ct)
  else
    string join \\n -- $found
  end
end
complete -c PROG -f -a '(_NAME)'
""",
}


def _script(shell: str, prog: str) -> str:
    if shell not in _SCRIPTS:
        raise UserError(f"--completion {shell or '(nothing)'} is no shell that is known; use {', '.join(_SCRIPTS)}")
    return _SCRIPTS[shell].strip().replace("NAME", prog.replace("-", "_")).replace("PROG", prog)
