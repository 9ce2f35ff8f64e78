"""Texts that readers stumbled over stay away: from pages, figures, commands, README and docs. They stand for a kind:
objects first, piled-up negations, doubt without a number, two names for one thing.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for folder in ("extract", "probes", "analysis", "dashboards") for path in (ROOT / folder).rglob("*.py")
)
PAGES = [
    path
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        ROOT / "benchmarks/README.md",
    )
    if path.name not in ("api.md", "files.md")
]
STUMBLES = (
    # on pages
    "of 2,000 images, more than",
    "of the attention less than as many patches",
    "goes with what causes what",
    "knocking a token out does to",
    "cannot be told from none",
    "told apart from",
    "tells 0.33 of the patches' variance",
    "no claim that this could be held against",
    "no chance finding",
    "Fill this with",
    "the discrete channel does not hold",
    "The next that has one",
    "what changes then",
    "What tells the effect",
    "open in all others",
    "what all are worth",
    "shares out what tokens",
    "two donors",
    "Listed are",
    "whom is asked for",
    "there are no 95",
    "is no longer there; showing",
    "Logarithmic shares",
    "Select all images again",
    "Whose image is read",
    # in README, docs and messages
    "as fit and pay",
    "change no byte either",
    "goes on where it was interrupted",
    "an unfinished one as far as it goes",
    "without looking",
    "owe something to the other",
    "names the scene always",
    "have since added about",
    "is of another run of this name",
    "less than nothing",
    "made anew in its place",
    "is not one token's compression",
    "not the first of the first class",
    "is less than none",
    "nobody can be followed",
    "what ridge points at",
    "the data ask nothing",
    # the kind
    r"\b[Ww]hom\b",
    r"\b[Oo]f (this|these|that|which) (\w+ )?nothing\b",
    r"\bthat of which\b",
    r"\bhands? over\b",
    r"\bdonors?\b",
    r"(?<=[\d}\]]) %(?![\w(\[{.%])(?! \d)",  # 95%, as figures and their axes have it
)
_STUMBLE = re.compile("|".join(f"(?:{phrase})" for phrase in STUMBLES))


def texts(source: str) -> Iterator[tuple[int, str]]:
    """The strings of a module with their lines, also those put together; without docstrings of modules and functions,
    which no user meets.
    """
    tree = ast.parse(source)
    unmet = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr):
                unmet.add(id(first.value))
        if isinstance(node, ast.JoinedStr):
            unmet |= {id(part) for part in node.values}
            whole = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, whole
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in unmet:
            yield node.lineno, node.value


def stumbles(text: str) -> list[str]:
    return [found[0] for found in _STUMBLE.finditer(" ".join(text.split()))]


def test_the_reader_of_texts_sees_those_that_are_put_together() -> None:
    source = (
        '"""whom"""\ndef f(x):\n    "whom"\n    return f"Of this "\\\n        f"nothing {x}", "Fill this " "with"\n'
    )
    found = [text for _, text in texts(source)]
    assert sorted(found) == ["Fill this with", "Of this nothing {}"]
    assert [stumbles(text) for text in sorted(found)] == [["Fill this with"], ["Of this nothing"]]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_of_the_source_is_one_to_stumble_over(path: Path) -> None:
    found = [(line, words) for line, text in texts(path.read_text()) for words in stumbles(text)]
    assert not found, f"{path.relative_to(ROOT)}: {found}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_of_the_docs_is_one_to_stumble_over(path: Path) -> None:
    assert not stumbles(path.read_text()), path.relative_to(ROOT)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_docs_name_pooled_v_as_pages_do_but_where_it_is_typed(path: Path) -> None:
    read = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL)
    assert "v_pooled" not in read, path.relative_to(ROOT)
