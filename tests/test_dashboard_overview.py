"""The page Overview: what the run is, the sentences of its analysis, its probes in small."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import htc_probe.analysis.attention.rows
from htc_probe import probes
from htc_probe.analysis import records
from htc_probe.extract.command import typed
from htc_probe.extract.store import open_run
from htc_probe.probes.cli import main as probe
from htc_probe.probes.files import results
from made.pages import TASKS, L, add_section, tables, write_probes, write_run


def test_a_bare_run_says_what_fills_the_page(tmp_path: Path, open_app: Any) -> None:
    run = write_run(tmp_path / "run.h5", 20)
    app = open_app(run)
    assert not app.exception and app.title[0].value == "run"
    commands = [code.value for code in app.code]
    assert commands == [
        f"htc-probe semantic detail --run {run}",
        f"htc-analyze attention knockouts interchange reading --run {run}",
    ]
    assert "0 to 3" in tables(app)[0] and "20 images" in app.markdown[0].value


def test_no_probe_is_advised_that_would_be_refused(tmp_path: Path, open_app: Any, capsys: Any) -> None:
    few, bare = write_run(tmp_path / "few.h5", 10), write_run(tmp_path / "bare.h5", 40, tasks=())
    no_number = write_run(tmp_path / "no_number.h5", 19, tasks=tuple(task for task in TASKS if task.kind != "number"))
    for run, words in (
        (few, "few has 10 images. Its probes need at least 11"),
        (no_number, "number has 19 images. Its probes need at least 20"),
        (bare, "bare has no labels"),
    ):
        app = open_app(run)
        assert not app.exception and any(words in info.value for info in app.info)
        assert not any("htc-probe" in code.value for code in app.code)
        assert probe(["--run", str(run), "--jobs", "1"]) == 2, "it is refused"


def test_command_page_and_notebook_say_the_same(tmp_path: Path, open_app: Any, capsys: Any) -> None:
    """Before an analysis is there, and after."""
    run = write_run(tmp_path / "run.h5", 40)
    for analysed in (False, True):
        if analysed:
            with open_run(run) as opened:
                add_section(run, "attention", htc_probe.analysis.attention.rows.analyse(opened))
        assert probe(["--run", str(run), "--folds", "2", "--jobs", "1"]) == 0
        told = probes.verdict(run)
        said = " ".join(capsys.readouterr().out.split())
        assert said.endswith(" ".join(str(told).split())), "the last words of the command"
        app = open_app(run)
        assert not app.exception
        (line,) = (item.value.replace("\\", "") for item in app.markdown if "The one token" in item.value)
        assert line.replace("**", "").split("  \n") == list(told.sentences)
        assert (told.next in [code.value for code in app.code]) is not analysed
        assert told.next == (f"{typed('htc-dashboard')} {run}" if analysed else f"{typed('htc-analyze')} --run {run}")


def test_scores_of_an_earlier_state_are_told_as_such(tmp_path: Path, open_app: Any) -> None:
    run = write_run(tmp_path / "run.h5", 40)
    write_probes(run, "long ago")
    told = probes.verdict(run)
    assert "earlier state" in told.warnings and told.next == f"{typed('htc-probe')} --run {run}"
    app = open_app(run)
    assert told.next in [code.value for code in app.code] and any(
        "earlier state" in item.value for item in app.markdown
    )


def test_commands_can_be_pasted_whatever_the_folder_is_called(tmp_path: Path, open_app: Any) -> None:
    run = write_run(tmp_path / "my runs; $(rm)" / "it's.h5")
    for code in open_app(run).code:
        assert shlex.split(code.value)[-2:] == ["--run", str(run)]


def test_a_sentence_stands_with_its_sample_and_the_claim(tmp_path: Path, open_app: Any) -> None:
    path = write_run(tmp_path / "run.h5", 6)
    with open_run(path) as run:
        section = records.flat(htc_probe.analysis.attention.rows.analyse(run))
    for lift, verdict in ((2.0, "agrees"), (0.5, "disagrees")):
        for end, by in (("", 0), ("_lower", -0.1), ("_upper", 0.1)):
            section[f"anchor_lift_overall{end}"] = np.full(1, lift + by)
        add_section(path, "attention", section)
        app = open_app(path)
        assert not app.exception
        text = [item.value for item in app.markdown]
        assert any(f"{lift:.2f}".replace(".", r"\.") in line for line in text)
        assert any(f"[{verdict}]" in line for line in text)
        assert any("htc-analyze attention · 6 images" in line.value for line in app.caption)
        assert app.code[0].value == f"htc-analyze knockouts interchange reading --run {path}"


def test_what_survives_is_told_by_the_probes(tmp_path: Path, open_app: Any) -> None:
    """And not by the patches' R2, which is a line of its own without a claim."""
    path = write_run(tmp_path / "run.h5", 6)
    with open_run(path) as run:
        created = run.created
    add_section(
        path,
        "reading",
        {
            "images": 6,
            "representations": ["z_voco"],
            "patch_r2": np.full((1, 3), 0.33),
            "patch_images": 6,
            **{f"patch_r2_all{end}": np.full(1, 0.33) for end in ("", "_lower", "_upper")},
            **{f"patch_r2_all_minus_pooled{end}": np.full(1, -0.05) for end in ("", "_lower", "_upper")},
        },
    )
    beside = write_probes(path, created)
    found = results.read(beside)
    kept = results.Interval(0.991, 0.984, 0.998)
    means = tuple(dataclasses.replace(mean, retention=kept) for mean in found.suite_means)
    results.write(dataclasses.replace(found, run=found.run | {"layers": L, "last_layer": L}, suite_means=means), beside)
    app = open_app(path)
    assert not app.exception
    text = [item.value.replace("\\", "") for item in app.markdown]
    (survives,) = (line for line in text if "What survives in the one token?" in line)
    (patches,) = (line for line in text if "What survives of each single patch?" in line)
    assert "99.1% [98.4, 99.8]" in survives and "33.0%" not in survives
    assert "33.0%" in patches and "linear probes read more" in text[text.index(survives) + 1]
    assert "does not test this" in text[text.index(patches) + 1]
    assert any("4 images, held out" in line.value for line in app.caption)


@pytest.mark.parametrize("damage", ["{", "[" * 10**5])
def test_damaged_scores_leave_the_sentences(tmp_path: Path, open_app: Any, damage: str) -> None:
    path = write_run(tmp_path / "run.h5", 6)
    with open_run(path) as run:
        add_section(path, "attention", htc_probe.analysis.attention.rows.analyse(run))
    (tmp_path / "run.probes.json").write_text(damage)
    app = open_app(path)
    assert not app.exception and any("Does the token prefer" in item.value for item in app.markdown)


def test_probes_in_small_have_intervals_and_floors(tmp_path: Path, open_app: Any) -> None:
    path = write_run(tmp_path / "run.h5")
    with open_run(path) as run:
        write_probes(path, run.created)
    app = open_app(path)
    assert not app.exception and not app.warning
    line = app.dataframe[0].value.iloc[0].to_dict()
    assert line == {
        "suite": "semantic",
        "read from": f"z_voco (layer {L})",
        "mean score": "0.875",
        "95% interval": "0.750 to 0.938",
        "floor": "0.500",
        "bits": "0.50",
        "tasks": 1,
        "images": 4,
    }
    write_probes(path, "long ago")
    assert "earlier state" in app.run().warning[0].value


def test_skipped_images_are_listed_with_their_reasons(tmp_path: Path, open_app: Any) -> None:
    app = open_app(write_run(tmp_path / "run.h5", skipped=[("val/<b>.png", "it is truncated")]))
    assert not app.exception and "1 image could not be read" in app.warning[0].value
    shown = next(frame.value for frame in app.dataframe if "reason" in frame.value)
    assert shown.to_dict("records") == [{"path": "val/<b>.png", "reason": "it is truncated"}]
