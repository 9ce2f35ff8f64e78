"""Which public names of sources nothing outside their file uses. Knows syntax; imports nothing of what it reads."""

import ast
import re
from collections.abc import Iterator, Mapping

PACKAGE = "htc_probe"
Uses = set[tuple[str, str]]
"""Module and name."""


def unused(sources: Mapping[str, str], readers: Mapping[str, str], words: set[str]) -> dict[str, set[str]]:
    """Path -> its public names that neither another source nor a reader (tests and the like) takes, nor `words` has.

    A type that stands in the signature or the fields of a public name that is used is used as well.
    """
    trees = {path: ast.parse(text) for path, text in sources.items()}
    modules = {_module(path): _defined(tree) for path, tree in trees.items()}
    taken: dict[str, set[str]] = {}
    anywhere = words | {"main"}
    for path, tree in [*trees.items(), *((path, ast.parse(text)) for path, text in readers.items())]:
        for module, name in _uses(tree, set(modules)):
            if module != _module(path):
                taken.setdefault(module, set()).add(name)
        nodes = list(ast.walk(tree))
        if "import_module" in {getattr(node, "attr", getattr(node, "id", "")) for node in nodes}:  # names by their text
            anywhere |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
            anywhere |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    left = {}
    for path in sources:
        names = modules[_module(path)]
        used = {name for name in names if name in anywhere or name in taken.get(_module(path), ())}
        while more := {name for known in used for name in _shown(names[known]) if name in names} - used:
            used |= more
        left[path] = set(names) - used
    return {path: names for path, names in left.items() if names}


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _defined(tree: ast.Module) -> dict[str, ast.stmt]:
    """Public functions, classes and constants of a module, by name."""
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            parts = [part for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
            found |= {part.id: node for part in parts if isinstance(part.ctx, ast.Store)}
    return {name: node for name, node in found.items() if not name.startswith("_")}


def _uses(tree: ast.Module, modules: set[str]) -> Iterator[tuple[str, str]]:
    """What a file takes of our modules: imported, as `module.name`, and as text beside an imported module."""
    bound: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            source = (node.module or "").removeprefix(PACKAGE).removeprefix(".")
            for alias in node.names:
                yield source, alias.name
                if (full := f"{source}.{alias.name}".removeprefix(".")) in modules:
                    bound.setdefault(alias.asname or alias.name, set()).add(full)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname and alias.name.startswith(f"{PACKAGE}."):
                    bound.setdefault(alias.asname, set()).add(alias.name.removeprefix(f"{PACKAGE}."))
    imported = set().union(*bound.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            head, _, name = ast.unparse(node).rpartition(".")
            first, _, rest = head.partition(".")
            yield head.removeprefix(f"{PACKAGE}."), name
            yield from ((f"{module}.{rest}".removesuffix("."), name) for module in bound.get(first, ()))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from ((module, node.value) for module in imported)
            yield from re.findall(rf"{PACKAGE}\.([\w.]+)\.(\w+)", node.value)
            for module, names in re.findall(rf"from {PACKAGE}\.([\w.]+) import ([\w, ]+)", node.value):
                yield from ((module, name.strip()) for name in names.split(","))


def _shown(node: ast.stmt) -> set[str]:
    """Names in annotations, fields and bases."""
    parts: list[ast.expr | None] = []
    functions = [node] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else []
    if isinstance(node, ast.ClassDef):
        parts += node.bases
        parts += [item.annotation for item in node.body if isinstance(item, ast.AnnAssign)]
        functions += [item for item in node.body if isinstance(item, ast.FunctionDef)]
    elif isinstance(node, ast.AnnAssign):
        parts.append(node.annotation)
    elif isinstance(node, ast.Assign) and not ast.unparse(node.targets[0]).isupper():
        parts.append(node.value)  # an alias of types
    for function in functions:
        parts += [item.annotation for item in ast.walk(function.args) if isinstance(item, ast.arg)]
        parts.append(function.returns)
    return set(re.findall(r"\w+", " ".join(ast.unparse(part) for part in parts if part is not None)))
