"""What probes amount to in a few sentences: the facts are those of the results, in every state that these can have."""

import io
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from htc_probe import probes
from htc_probe.extract.command import typed
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import open_run
from htc_probe.probes.files import results
from htc_probe.probes.files.results import Interval, Results
from htc_probe.probes.show import brief
from htc_probe.probes.show.table import doubts
from htc_probe.probes.show.verdict import of, share
from made.pages import write_run
from made.tables import DEFAULT, LAST, TASKS, around, made

READ = (("voco_read", None), *DEFAULT)
RUN = Path("runs/photos-validation.h5")


def screen(found: Results, run: Path | None = None, width: int = 80) -> list[str]:
    """The last lines of a terminal, from the verdict on."""
    console = Console(width=width, file=io.StringIO())
    for line, broken in brief.last_words(of(found, run)):
        console.print(line, soft_wrap=not broken)
    return console.file.getvalue().strip().splitlines()  # type: ignore[attr-defined]


def test_the_facts_are_those_of_the_results() -> None:
    found = made(READ)
    told = of(found, Path("runs/a.h5"))
    # The fixture's shares are means over 0.82: voco_read 0.5, the anchors 0.3, pixels 0.25.
    assert told.survived == (
        "The one token, voco_read, keeps 61.0% [59.0, 63.0] of the semantic score and 61.0% [59.0, 63.0] of the detail "
        "score of pooled V, above the floor."
    )
    assert told.beside == "The anchors (v_d) keep 36.6% and 36.6%, pixels 30.5% and 30.5%."
    assert told.least == "Least survives: category, 50.0% [48.0, 52.0] (top-1 0.50, floor 0.20)."
    assert told.memory == (
        "Memory of categories cannot explain it all: the category alone scores less in all 4 tasks. Random labels of "
        "the categories (the control) score 0.15."
    )
    assert told.warnings == "1 warning: see the page Probes, or htc-probe --full."
    assert told.next == f"{typed('htc-analyze')} --run runs/a.h5"
    assert str(told).splitlines() == [*told.sentences, f"Next: {told.next}"] == repr(told).splitlines()


def test_the_token_is_what_the_text_reads_else_its_last_state() -> None:
    assert of(made(layers=range(LAST + 1)), None).survived.startswith("The one token, z_voco (layer 4 of 4), keeps")
    assert of(made(), None).survived.startswith("The one token, z_voco, keeps")
    alone = of(made([("v_d", None), ("pixels", None)], layers=()), None)
    assert alone.sentences[0] == "These probes read v_d, pixels, and not the one token (voco_read, z_voco)."
    assert len(alone.sentences) == 2
    uncompressed = made()
    uncompressed = replace(uncompressed, run=uncompressed.run | {"topology": "uncompressed"})
    assert of(uncompressed, None).survived.startswith("The token after the image, z_voco, keeps")


def test_without_shares_of_pooled_v_scores_are_told() -> None:
    """Where it was not probed, and where it is at its floor in a suite."""
    none = Interval(None, None, None)
    for retention in (None, none):
        found = made(READ)
        found = replace(
            found,
            suite_means=tuple(replace(mean, retention=retention) for mean in found.suite_means),
            rows=tuple(replace(row, retention=retention) for row in found.rows),
        )
        told = of(found, None)
        assert told.survived == (
            "The one token, voco_read, scores 0.50 [0.49, 0.51] on the semantic suite (floor 0.20) and 0.50 [0.49, "
            "0.51] on the detail suite (floor 0.10)."
        )
        assert told.beside == "Pooled V scores 0.82 and 0.82, the anchors (v_d) 0.30 and 0.30, pixels 0.25 and 0.25."
        assert told.least == "Lowest score: category, top-1 0.50 [0.48, 0.52] (floor 0.20)."


def test_what_least_survives_is_the_lowest_share() -> None:
    found = made(READ)
    rows = [
        replace(row, retention=around(0.3)) if (row.task, row.representation) == ("size", "voco_read") else row
        for row in found.rows
    ]
    assert of(replace(found, rows=tuple(rows)), None).least.startswith("Least survives: size, 30.0% [28.0, 32.0] (R2")


def test_one_task_and_one_suite_are_called_by_their_names() -> None:
    told = of(made(READ, tasks=TASKS[:1]), None)
    assert "of the category score of pooled V" in told.survived and not told.least
    assert told.memory.startswith("Memory of categories cannot explain it all: the category alone scores less in the t")
    told = of(made(READ, tasks=TASKS[2:]), None)
    assert "of the detail score of pooled V" in told.survived and "semantic" not in str(told)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({}, "Memory of categories was not tested."),
        ({"category": 0.22, "shade": 0.1}, "Memory of categories cannot explain it all: the category alone scores"),
        ({"category": 0.22, "shade": 0.48}, "Memory of categories may explain shade of 2 tasks."),
        ({"category": 0.8, "present": 0.8, "size": 0.1}, "Memory of categories may explain category and 1 more of 3"),
    ],
)
def test_memory_explains_what_the_category_alone_scores_too(known: dict[str, float], words: str) -> None:
    found = made(READ)
    baselines = tuple(replace(one, score=around(known[one.task])) for one in found.baselines if one.task in known)
    assert of(replace(found, baselines=baselines), None).memory.startswith(words)


def test_memory_has_nothing_to_explain_at_the_floor() -> None:
    found = made(READ)
    low = tuple(replace(row, floor=0.9) if row.representation == "voco_read" else row for row in found.rows)
    assert "nothing to explain: no score is above" in of(replace(found, rows=low), None).memory
    some = tuple(replace(row, floor=0.9) if row.task == "size" else row for row in found.rows)
    assert (
        "the category alone scores less in the 3 tasks above the floor." in of(replace(found, rows=some), None).memory
    )


@pytest.mark.parametrize("width", [80, 120])
def test_it_has_at_most_eight_lines_whatever_the_names(width: int) -> None:
    long = [(suite, name * 9, kind, classes) for suite, name, kind, classes in TASKS]
    for tasks in (TASKS, long, long[:1], long[2:], TASKS[3:]):
        for keys, layers in ((READ, (LAST,)), (DEFAULT, range(LAST + 1)), (READ[:1], ()), (READ[2:3], ())):
            found = made(keys, layers=layers, tasks=tasks)
            found = replace(found, rows=tuple(replace(row, metric="circular R2") for row in found.rows))
            told, shown = of(found, RUN), screen(found, RUN, width)
            assert len(shown) <= 8 and max(map(len, shown)) <= width, shown
            assert " ".join(" ".join(shown).split()) == " ".join(str(told).split())


def test_warnings_are_counted_as_they_are_listed() -> None:
    found = made(READ)
    assert of(replace(found, warnings=()), None).warnings == "No warnings."
    many = replace(found, warnings=tuple(f"task{number}: doubt {number}" for number in range(30)))
    assert of(many, None).warnings.startswith(f"{len(doubts(many))} warnings")
    console = Console(width=80, file=io.StringIO())
    console.print(brief.render(many))
    lines = [line for line in console.file.getvalue().splitlines() if line.startswith("!")]  # type: ignore[attr-defined]
    assert len(lines) == 6 and lines[-1].rstrip() == "! 25 more"


def test_a_table_in_brief_fits_eighty_columns() -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(brief.render(made(READ)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80 and text.count("task ") == 2  # one table a suite
    (line,) = (line for line in lines if line.strip().startswith("category"))
    scores = ("0.80", "0.50", "0.30", "0.82", "0.25")
    assert line.split() == ["category", *(part for score in scores for part in (score, "±.02")), "0.20"]
    assert sum(line.strip().startswith("mean") for line in lines) == 2


def test_a_share_that_is_not_all_does_not_look_like_all() -> None:
    assert share((0.991, 0.984, 0.998)) == "99.1% [98.4, 99.8]"
    assert share((1.006, 0.9997, 1.0129)) == "100.60% [99.97, 101.29]"
    assert share((1.0, 1.0, 1.0)) == "100.0% [100.0, 100.0]"
    assert share((-0.0001, -0.01, 0.01)) == "0.0% [-1.0, 1.0]"


def test_a_path_is_enough(tmp_path: Path) -> None:
    run = tmp_path / "scenes-val.h5"
    with pytest.raises(UserError, match="no probe results at"):
        probes.verdict(run)
    path = results.default_path(run)
    results.write(made(READ), path)
    assert probes.verdict(path).next == ""  # the run itself is not here
    write_run(run)
    with open_run(run) as opened:
        found = replace(made(READ), run=made().run | {"created": opened.created})
    results.write(found, path)
    assert str(probes.verdict(run)) == str(probes.verdict(path)) == str(of(found, run))
    assert probes.verdict(str(run)).next == f"{typed('htc-analyze')} --run {run}"
    (tmp_path / "scenes-val.analysis.h5").touch()
    assert probes.verdict(run).next == f"{typed('htc-dashboard')} {run}"


def test_the_command_can_be_typed_whatever_the_run_is_called(tmp_path: Path) -> None:
    run = Path("my runs/it's.h5")
    assert shlex.split(of(made(), run).next) == [typed("htc-analyze"), "--run", str(run)]
    assert re.fullmatch(r"Next: .*", screen(made(), Path("x" * 200 + ".h5"))[-1])  # not broken over lines


def test_a_command_is_typed_by_its_place_where_the_shell_does_not_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / ".venv" / "bin" / "htc-analyze"
    place.parent.mkdir(parents=True)
    place.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(place.with_name("python")))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert typed("htc-analyze") == ".venv/bin/htc-analyze" and typed("htc-other") == "htc-other"
    monkeypatch.chdir("/")
    assert Path(typed("htc-analyze")).is_file()
    monkeypatch.setenv("PATH", str(place.parent))
    assert typed("htc-analyze") == "htc-analyze"


def test_a_notebook_shows_it_as_text(tmp_path: Path) -> None:
    told: Any = of(made(READ), None)
    assert repr(told).startswith("The one token") and "Verdict(" not in repr(told)
