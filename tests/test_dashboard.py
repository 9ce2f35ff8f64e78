"""The dashboard around its pages: what is read of a run, which runs are opened, the command, the sidebar."""

import ast
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from htc_probe.dashboards import cli, data
from htc_probe.dashboards.parts.glossary import TERMS
from htc_probe.dashboards.runs import RunFile, check_roots, find_runs
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Task
from htc_probe.probes.files import results
from htc_probe.probes.show.style import titled
from made.pages import PAGES, TASKS, charts, environment, failing, free_port, press, write_run


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "scenes-val.h5")


# ---- data


def test_a_run_written_again_is_read_anew(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.h5", 2)
    assert data.header(data.key_of(path)).shape.images == 2
    write_run(path, 3)
    assert data.header(data.key_of(path)).shape.images == 3


def test_labels_in_words() -> None:
    kind, present, width = TASKS
    assert [data.label_text(kind, at) for at in (0, 1, -1)] == ["disc", "bar", "unknown"]
    rows = [np.array(row) for row in ([1, 1], [0, 0], [255, 255])]
    assert [data.label_text(present, row) for row in rows] == ["disc, bar", "none", "unknown"]
    assert [data.label_text(width, value) for value in (2.5, np.nan)] == ["2.5 px", "unknown"]


# ---- which runs may be opened


def test_only_runs_under_the_given_folders_are_found(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    mine, other = write_run(inside / "mine.h5", 1), write_run(outside / "other.h5", 1)
    (inside / "link.h5").symlink_to(other)
    (inside / "alias.h5").symlink_to(mine)
    (inside / "text.h5").write_text("no run")
    found = find_runs([inside])
    assert {run.path for run in found.runs} == {mine, inside / "alias.h5"}
    assert {run.name for run in found.runs} == {"mine", "alias"} and all(run.finished for run in found.runs)
    link, text = found.refused
    assert link.path == inside / "link.h5" and "leads out of the folder" in link.reason
    assert text.path == inside / "text.h5" and "text.h5" in text.reason
    assert find_runs([other]).runs == [RunFile("other", other)]
    assert find_runs([tmp_path / "gone"]) == ([], [])


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        write_run(folder / "run.h5", 1)
    assert [run.name for run in find_runs(folders).runs] == ["a/run", "b/run"]


def test_a_folder_with_only_outside_links_holds_no_run(tmp_path: Path) -> None:
    other = write_run(tmp_path / "outside" / "other.h5", 1)
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "link.h5").symlink_to(other)
    with pytest.raises(UserError, match="leads out of the folder"):
        check_roots([folder])


# ---- command


def test_no_runs_says_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = str(free_port())
    assert "htc-extract --split val" in failing(capsys, str(tmp_path), "--port", port)
    monkeypatch.chdir(tmp_path)
    assert "htc-extract --split val" in failing(capsys, "--port", port)


def test_bad_paths_and_ports_are_refused(tmp_path: Path, run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = str(free_port())
    assert "does not exist" in failing(capsys, str(tmp_path / "nothing"), "--port", port)
    (tmp_path / "text.h5").write_text("no run")
    assert "text.h5" in failing(capsys, str(tmp_path / "text.h5"), "--port", port)
    assert "--port 70000" in failing(capsys, str(run_file), "--port", "70000")
    assert "--host 203.0.113.7 is no" in failing(capsys, str(run_file), "--port", port, "--host", "203.0.113.7")


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom htc_probe.dashboards.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as done: assert done.code == 0\n"
        "heavy = {'streamlit', 'plotly', 'torch', 'pandas', 'h5py'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment())
    assert shown.returncode == 0, shown.stderr
    assert "--port" in shown.stdout and "--no-browser" in shown.stdout


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_server_listens_on_loopback_only_and_stops(run_file: Path, how: signal.Signals) -> None:
    port = free_port()
    command = [sys.executable, "-m", "htc_probe.dashboards.cli", str(run_file), "--port", str(port), "--no-browser"]
    server = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        # A shell starts what it puts in the background, tests perhaps, with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert server.stdout is not None
        assert f"http://127.0.0.1:{port}" in server.stdout.readline()
        deadline = time.monotonic() + 60
        health = b""
        while health != b"ok" and time.monotonic() < deadline:
            try:
                health = urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).read()
            except OSError:
                time.sleep(0.1)
        assert health == b"ok"
        with socket.socket() as elsewhere:  # another address of this machine: nobody listens there
            assert elsewhere.connect_ex(("127.0.0.2", port)) != 0
        server.send_signal(how)
        assert server.wait(30) == (0 if how != signal.SIGKILL else -signal.SIGKILL)
        server.stdout.read()  # to its end, which comes when the last process has closed it
        with socket.socket() as gone:
            assert gone.connect_ex(("127.0.0.1", port)) != 0
    finally:
        server.kill()
        server.communicate()
    settings = cli.settings(cli.DashboardConfig(port=port))
    assert not settings["browser.gatherUsageStats"] and settings["server.address"] == "127.0.0.1"


# ---- figures


def test_long_titles_are_broken_and_make_room() -> None:
    short = titled([], "A title", "a subtitle · 3 images", 400).layout
    assert (short.title.text, short.title.subtitle.text, short.height) == ("A title", "a subtitle · 3 images", 400)
    words = "how sure a probe of z_voco is of the true category, &lt;by image&gt;, and of its answers"
    long = titled([], words, " · ".join(["mean of 2,000 images"] * 9), 400).layout
    lines, under = long.title.text.split("<br>"), long.title.subtitle.text.split("<br>")
    assert " ".join(lines) == words and max(map(len, lines)) <= 60 + len("&lt;&gt;") and len(under) == 3
    assert long.height - 400 == long.margin.t - short.margin.t == 20 + 14


# ---- pages


@pytest.mark.parametrize("page", PAGES)
def test_every_page_shows_a_bare_run(run_file: Path, open_app, page: str) -> None:
    app = open_app(run_file, page=page)
    assert app.session_state["page"] == page
    assert not app.exception and not app.error
    assert len(app.title) == 1


@pytest.mark.parametrize("page", PAGES)
def test_every_page_shows_a_model_without_anchors(tmp_path: Path, open_app, page: str) -> None:
    app = open_app(write_run(tmp_path / "causal.h5", 20, anchors=0), page=page)
    assert app.session_state["page"] == page
    assert not app.exception and not app.error


@pytest.mark.parametrize("page", PAGES)
def test_every_page_shows_one_image_without_labels(tmp_path: Path, open_app, page: str) -> None:
    app = open_app(write_run(tmp_path / "photos.h5", 1, tasks=()), page=page)
    assert app.session_state["page"] == page
    assert not app.exception and not app.error


def test_a_link_gives_run_page_image_layer_and_head(tmp_path: Path, open_app) -> None:
    runs = write_run(tmp_path / "a.h5"), write_run(tmp_path / "b.h5")
    app = open_app(*runs, run="b", page="Attention", image="3", layer="2", head="1")
    assert not app.exception
    assert app.selectbox(key="run").value == "b" and app.number_input(key="image").value == 3
    assert "Image 3 of 4" in [header.value for header in app.header]
    assert "layer 2, head 1" in charts(app)["overlay"]["layout"]["title"]["subtitle"]["text"]


@pytest.mark.parametrize(
    "query",
    [
        {"run": "../../etc/passwd"},
        {"image": "99999"},
        {"image": "-1"},
        {"layer": "77"},
        {"head": "<b>"},
        {"page": "nothing"},
    ],
)
def test_a_link_to_what_is_not_there_shows_what_is(run_file: Path, open_app, query: dict[str, str]) -> None:
    app = open_app(run_file, **query)
    assert not app.exception and not app.error
    assert app.selectbox(key="run").value == "scenes-val"
    assert 1 <= app.number_input(key="image").value <= 4
    app = open_app(run_file, **{"page": "Attention"} | query)
    app.session_state["page"] = "Attention"
    app.run()
    assert app.selectbox(key="layer").value == "mean" and app.selectbox(key="head").value == "mean"


def test_the_sidebar_has_what_does_something_on_the_page(run_file: Path, open_app) -> None:
    def shown() -> set[str]:
        return {widget.key for widget in [*app.selectbox, *app.number_input, *app.toggle]} & {*everywhere, *attention}

    everywhere, attention = {"run", "image"}, {"layer", "head", "log"}
    app = open_app(run_file, page="Attention", image="3", layer="2")
    assert shown() == everywhere | attention
    app.toggle(key="log").set_value(True).run()
    for page, there in {
        "Probes": everywhere,
        "Reading the token": {"run"},
        "Attention": everywhere | attention,
    }.items():
        app.session_state["page"] = page
        app.run()
        assert shown() == there, page
    chosen = app.number_input(key="image"), app.selectbox(key="layer"), app.toggle(key="log")
    assert [widget.value for widget in chosen] == [3, "2", True]


def test_the_sidebar_opens_the_glossary(run_file: Path, open_app) -> None:
    app = open_app(run_file)
    before = len(app.markdown)
    press(app, "Glossary")
    assert not app.exception and len(app.markdown) == before + 1
    assert all(f"**{term}**: {meaning}" in app.markdown[-1].value for term, meaning in TERMS.items())


def test_next_and_previous_walk_through_the_images(run_file: Path, open_app) -> None:
    app = open_app(run_file)
    image = app.number_input(key="image")
    for label, there in (("Previous", 1), ("Next", 2), ("Next", 3), ("Next", 4), ("Next", 4), ("Previous", 3)):
        press(app, label)
        assert app.number_input(key="image").value == there
    assert image.min == 1 and image.max == 4

    app.query_params["selection"] = "1_4"
    press(app, "Next")
    assert app.number_input(key="image").value == 4
    press(app, "Previous")
    assert app.number_input(key="image").value == 1
    press(app, "Clear selection")
    press(app, "Next")
    assert app.number_input(key="image").value == 2


def test_probe_scores_that_are_a_link_out_of_the_folder_are_not_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "run.h5", 1)
    (tmp_path / "elsewhere.json").write_text("{}")
    results.default_path(run).symlink_to(tmp_path / "elsewhere.json")
    assert data.probes_beside(run) is None


def test_runs_of_another_length_keep_the_selection_they_have(tmp_path: Path, open_app) -> None:
    long, short = write_run(tmp_path / "long.h5", 4), write_run(tmp_path / "short.h5", 2)
    app = open_app(long, short, page="Attention")
    app.number_input(key="image").set_value(4).run()
    app.query_params["selection"] = "2_4"
    app.selectbox(key="run").set_value("short").run()
    assert not app.exception
    assert "Image 2 of 2" in [header.value for header in app.header]
    assert any("1 image is selected" in caption.value for caption in app.caption)


def test_the_selection_is_that_of_the_address(run_file: Path, open_app) -> None:
    app = open_app(run_file, selection="2-3_9", page="Attention")
    assert any("2 images are selected" in caption.value for caption in app.caption)
    assert r"1 of the 3 selected images are not in this run\; the others are shown" in app.warning[0].value
    press(app, "Clear selection")
    assert "selection" not in app.query_params and not app.warning


@pytest.mark.parametrize("text", ["x", "0", "3-1", "1--2", "1.5", "~", "~x", "~~0", "~~" + "0" * 32, "٣", "1" * 40])
def test_an_address_whose_selection_cannot_be_read_shows_all_images(run_file: Path, open_app, text: str) -> None:
    app = open_app(run_file, selection=text)
    assert not app.exception and not app.error
    assert "All images are shown" in app.warning[0].value
    press(app, "Clear selection")
    assert not app.warning


def test_a_run_that_vanishes_while_open(tmp_path: Path, open_app) -> None:
    first, second = write_run(tmp_path / "first.h5", 1), write_run(tmp_path / "second.h5", 1)
    app = open_app(first, second)
    first.unlink()
    app.run()
    assert not app.exception and app.title[0].value == "second"
    assert "No run named" in app.warning[0].value
    second.unlink()
    app.run()
    assert not app.exception and "htc\\-extract" in app.error[0].value


@pytest.mark.parametrize("page", PAGES)
def test_names_from_a_run_are_shown_as_they_are_and_load_nothing(tmp_path: Path, open_app, page: str) -> None:
    evil = "![x](http://localhost/x.png) <b>"
    task = Task("object", "semantic", "classes", (evil, "bar"), note=evil)
    app = open_app(write_run(tmp_path / "run.h5", tasks=(task,), dataset=evil), page=page)
    assert not app.exception
    shown = [item.value for item in [*app.markdown, *app.caption, *app.warning, *app.info]]
    assert any(r"\!\[x\]\(http" in text for text in shown)
    assert not any("![x](" in text or "<b>" in text for text in [*shown, *map(json.dumps, charts(app).values())])


def test_controls_of_two_pages_share_a_key_only_where_they_are_alike() -> None:
    """They share their value, too: both are of one session. `select` and `pick` let go of what is none of theirs."""
    controls: dict[str, set[tuple[str, str]]] = {}
    places = {"pick": 2, "select": 2, "_pick": 2, "_several": 2, "select_one": 2, "tabs": 1, "table": 1}
    for path in sorted(Path(cli.__file__).parent.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute | ast.Name):
                kind = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
                keys = [word.value for word in call.keywords if word.arg == "key"]
                for key in keys + call.args[places.get(kind, 99) :][:1]:
                    if isinstance(key, ast.Constant) and isinstance(key.value, str):
                        controls.setdefault(key.value, set()).add((path.name, kind))
    shared = {key: {kind for _, kind in of} for key, of in controls.items() if len(of) > 1}
    assert len(controls) > 50 and all(kinds in ({"select"}, {"pick"}) for kinds in shared.values()), shared
