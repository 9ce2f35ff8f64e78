"""A run that is being made is shown as far as it goes, and as a whole once it is finished."""

import sys
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from benchmarks.browser import serving, tab
from htc_probe.dashboards import cli, data
from htc_probe.dashboards.runs import RunFile, check_roots, find_runs
from htc_probe.extract.cli import main
from htc_probe.extract.errors import UserError
from made.models import small_model
from made.pages import write_run

APP = str(Path(cli.__file__).with_name("app.py"))


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("model")
    small_model().save_pretrained(folder)
    return ["--model", str(folder), "--limit", "12", "--batch-size", "2", "--shard-images", "4", "--device", "cpu"]


def test_it_is_shown_as_far_as_it_goes(command: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "run.h5"
    assert main([*command, "--out", str(out), "--shard", "0/2"]) == 0
    check_roots([tmp_path])
    assert find_runs([tmp_path]).runs == [RunFile("run", out, finished=False)]
    before = data.key_of(out)
    header = data.header(before)
    assert len(header.ids) == 8 and header.expected == 12 and not header.finished
    assert data.image_record(before, 7).attention.shape == (3, 4, header.shape.keys)

    monkeypatch.setattr(sys, "argv", [APP, str(tmp_path)])
    app = AppTest.from_file(APP, default_timeout=60).run()
    assert not app.exception and not app.error
    assert app.selectbox(key="run").options == ["run (unfinished)"]
    assert any("8 images of 12 so far" in caption.value for caption in app.caption)

    assert main([*command, "--out", str(out), "--shard", "1/2"]) == 0
    after = data.key_of(out)
    assert after != before and len(data.header(after).ids) == 12
    assert main(["--out", str(out), "--merge"]) == 0
    assert data.header(data.key_of(out)).finished
    data.listed.clear()  # what is there is looked up every 5 seconds
    app.run()
    assert not app.exception and app.selectbox(key="run").options == ["run"]


def test_shards_that_are_links_are_not_followed(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "run.h5"
    assert main([*command, "--out", str(out), "--shard", "0/2"]) == 0
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "run.h5.shards").symlink_to(tmp_path / "elsewhere" / "run.h5.shards")
    found = find_runs([folder])
    assert not found.runs and "leads out of the folder" in found.refused[0].reason


def test_a_virtual_run_whose_shard_goes_while_it_is_open_is_refused(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    assert main([*command, "--out", str(out), "--virtual"]) == 0
    assert [run.name for run in find_runs([tmp_path]).runs] == ["run"]
    assert data.image_record(data.key_of(out), 0).attention.sum() > 0
    (tmp_path / "run.h5.shards" / "00000004-00000008.h5").unlink()
    with pytest.raises(UserError, match="missing"):
        data.image_record(data.key_of(out), 5)  # which would be zeros
    found = find_runs([tmp_path])
    assert not found.runs and "missing" in found.refused[0].reason


@pytest.mark.slow
def test_runs_appear_without_a_click(tmp_path: Path, chromium: Any) -> None:
    write_run(tmp_path / "first.h5")
    with serving(tmp_path) as address, tab(chromium, address) as shown:
        page = shown.open(page="Compare").page
        page.get_by_text("There is only one run here").wait_for()
        write_run(tmp_path / "second.h5")
        page.get_by_text("Compare with").wait_for(timeout=60_000)
        shown.check()
