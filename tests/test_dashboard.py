"""The dashboard: figures hold the numbers given, pages work on any run, and only runs named are opened."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from dashboards import attention as att
from dashboards import cli, data, figures
from dashboards.runs import check_roots, find_runs
from extract.errors import UserError
from extract.store import Batch, RunInfo, RunShape, RunWriter, Task, open_run
from probes import results

# N images, L layers, H heads, A anchors, G x G patches, S keys
L, H, A, G = 3, 2, 4, 5
ROLES = ("prefix",) + ("anchor",) * A + ("patch",) * (G * G) + ("voco",)
S = len(ROLES)
ROWS = (-1,) * (1 + A) + tuple(at // G for at in range(G * G)) + (-1,)
COLS = (-1,) * (1 + A) + tuple(at % G for at in range(G * G)) + (-1,)
APP = str(Path(cli.__file__).with_name("app.py"))
TASKS = (
    Task("object", "semantic", "classes", ("disc", "bar")),
    Task("present", "semantic", "multilabel", ("disc", "bar")),
    Task("width", "detail", "number", unit="px"),
)


def random_rows(n: int, seed: int = 0) -> np.ndarray:
    """(n, L, H, S) float32 that sum to 1 over S."""
    rows = np.exp(np.random.default_rng(seed).normal(size=(n, L, H, S)))
    return (rows / rows.sum(-1, keepdims=True)).astype(np.float32)


def write_run(path: Path, n: int = 4, *, tasks: tuple[Task, ...] = TASKS, dataset: str = "scenes") -> Path:
    rng = np.random.default_rng(1)
    info = RunInfo(
        {"seed": 0}, {"name": "tiny", "sha256": "0" * 64, "config": {}}, dataset, "val", "star", {}
    )
    shape = RunShape(n, L, tuple(range(L + 1)), H, 8, A, (2, 2, 1), ROLES, ROWS, COLS)
    labels = {
        "object": np.arange(n) % 3 - 1,
        "present": np.tile([1, 0], (n, 1)),
        "width": np.arange(n) + 0.5,
    }
    batch = Batch(
        ids=[f"val-{at:03d}" for at in range(n)],
        paths=[f"val/{at}" for at in range(n)],
        groups=[f"group-{at}" for at in range(n)],
        thumbnails=rng.integers(0, 256, (n, 96, 96, 3), dtype=np.uint8),
        z_voco=rng.normal(size=(n, L + 1, 8)).astype(np.float32),
        v_d=rng.normal(size=(n, A, 8)).astype(np.float32),
        v_pooled=rng.normal(size=(n, 8)).astype(np.float32),
        codes=rng.integers(0, 9, (n, 2, 2, 1)),
        attention=random_rows(n),
        labels={task.name: labels[task.name] for task in tasks},
    )
    with RunWriter(path, info, shape, tasks) as writer:
        writer.append(batch)
        return writer.finish()


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "scenes-val.h5")


# ---- arithmetic


def test_shares_of_all_roles_sum_to_one() -> None:
    mass = att.role_mass(random_rows(2), ROLES)
    assert list(mass) == ["prefix", "anchor", "patch", "voco"]
    np.testing.assert_allclose(sum(mass.values()), np.ones((2, L, H)), rtol=1e-5)


def test_uniform_attention_gives_the_uniform_share() -> None:
    mass = att.role_mass(np.full((L, H, S), 1 / S, dtype=np.float32), ROLES)
    share = att.hybrid_share(mass["anchor"], mass["patch"])
    np.testing.assert_allclose(share, np.full((L, H), A / (A + G * G)), rtol=1e-5)
    assert att.uniform_share(("anchor",) * 4 + ("patch",) * 576 + ("voco",)) == 4 / 580


def test_share_without_any_hybrid_attention_is_unknown() -> None:
    assert np.isnan(att.hybrid_share(np.zeros(1), np.zeros(1))).all()


def test_patch_map_puts_every_patch_in_its_cell() -> None:
    row_S = np.arange(S, dtype=np.float32)
    grid = att.patch_map(row_S, ROLES, ROWS, COLS)
    assert grid is not None
    np.testing.assert_array_equal(grid, np.arange(1 + A, 1 + A + G * G).reshape(G, G))
    assert att.patch_map(row_S, ROLES, (-1,) * S, COLS) is None


def test_select_takes_one_or_the_mean() -> None:
    rows = random_rows(1)[0]
    np.testing.assert_array_equal(att.select(rows, 2, 1), rows[2, 1])
    np.testing.assert_allclose(att.select(rows, None, None), rows.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(att.select(rows, 1, None), rows[1].mean(0), rtol=1e-6)


# ---- figures


def test_heatmap_holds_the_masses_and_a_fixed_scale() -> None:
    mass_LH = random_rows(1)[0, :, :, :A].sum(-1)
    heat = figures.anchor_heatmap(mass_LH, A / S).data[0]
    np.testing.assert_allclose(heat.customdata[..., 0], mass_LH.T)
    np.testing.assert_allclose(2.0**heat.z * A / S, mass_LH.T, rtol=1e-5)
    assert (heat.zmin, heat.zmax) == (-math.log2(S / A), math.log2(S / A))


def test_heatmap_of_uniform_attention_is_the_middle_colour_and_zero_mass_the_lowest() -> None:
    heat = figures.anchor_heatmap(np.array([[A / S, 0.0]]), A / S).data[0]
    np.testing.assert_allclose(heat.z[:, 0], [0.0, heat.zmin])


def test_heatmap_outlines_the_selected_layer_and_head() -> None:
    (shape,) = figures.anchor_heatmap(np.full((L, H), 0.1), A / S, mark=(1, None)).layout.shapes
    assert (shape.x0, shape.x1, shape.y0, shape.y1) == (1.5, 2.5, 0.5, H + 0.5)


@pytest.mark.parametrize("log", [False, True])
def test_uniform_attention_lies_on_the_uniform_line(log: bool) -> None:
    uniform = 4 / 580
    figure = figures.share_curve(np.full(L, uniform), uniform, selection="mean over heads", log=log)
    anchors, reference, patches, patch_reference = figure.data
    np.testing.assert_allclose(anchors.y, uniform)
    np.testing.assert_allclose(reference.y, uniform)
    np.testing.assert_allclose(patches.y, 1 - uniform)
    np.testing.assert_allclose(patch_reference.y, 1 - uniform)
    np.testing.assert_array_equal(anchors.x, [1, 2, 3])


def test_curve_draws_the_band_of_the_anchors_and_its_mirror_for_the_patches() -> None:
    share_NL = np.linspace(0.1, 0.9, 11)[:, None] * np.ones(L)
    band = att.band(share_NL)
    figure = figures.share_curve(share_NL.mean(0), 0.2, selection="head 1", band=band, n=11)
    np.testing.assert_allclose(figure.data[0].y, [0.82] * L + [0.18] * L)
    np.testing.assert_allclose(figure.data[3].y, [0.82] * L + [0.18] * L)
    assert "mean of 11 images" in figure.layout.title.subtitle.text


def test_bars_hold_what_they_are_given() -> None:
    mass = {"anchor": np.array([0.2, 0.3]), "patch": np.array([0.8, 0.7])}
    figure = figures.role_bars(mass, selection="mean over heads")
    np.testing.assert_allclose(sum(np.asarray(bar.y) for bar in figure.data), [1, 1])
    bars, line = figures.anchor_bars(np.array([0.1, 0.4]), 0.05, selection="layer 1, head 1").data
    np.testing.assert_allclose(bars.y, [0.1, 0.4])
    np.testing.assert_allclose(line.y, [0.05, 0.05])


def test_overlay_lays_the_patches_over_the_whole_image_from_the_top_left() -> None:
    patch_RC = np.array([[0.5, 0.1], [0.2, 0.2]], dtype=np.float32)
    image = np.zeros((96, 96, 3), np.uint8)
    figure = figures.patch_overlay(patch_RC, 0.25, selection="head 1", image=image)
    heat = figure.data[0]
    np.testing.assert_allclose(heat.z, patch_RC / 0.25)
    np.testing.assert_array_equal(heat.x, [24, 72])
    assert tuple(figure.layout.yaxis.range) == (96, 0)
    assert (figure.layout.images[0].sizex, figure.layout.images[0].sizey) == (96, 96)
    assert figure.layout.images[0].source.startswith("data:image/png;base64,")
    assert (heat.zmin, heat.zmax) == (0, 2)


@pytest.mark.parametrize(("ratio", "words"), [(1.0, "1×"), (4.0, "4×"), (1 / 8, "1/8×"), (0.3, "0.3×")])
def test_ratios_in_words(ratio: float, words: str) -> None:
    assert figures.times(ratio) == words


# ---- data


def test_average_equals_the_mean_over_all_images(run_file: Path) -> None:
    mean = data.average(data.key_of(run_file))
    with open_run(run_file) as run:
        np.testing.assert_allclose(mean.attention, run.mean_attention(), atol=1e-6)
        np.testing.assert_allclose(
            mean.mass["anchor"], run.anchor_mass(), atol=2e-3
        )  # one is from 16-bit rows
    assert (mean.n, mean.total) == (4, 4)


def test_average_reads_no_more_than_allowed(run_file: Path) -> None:
    mean = data.average(data.key_of(run_file), most_bytes=2 * 4 * L * H * S)
    with open_run(run_file) as run:
        np.testing.assert_allclose(mean.attention, (run.attention(0) + run.attention(3)) / 2, atol=1e-6)
    assert (mean.n, mean.total) == (2, 4)


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
    found = find_runs([inside])
    assert set(found.runs) == {mine, inside / "alias.h5"}
    assert found.refused == [inside / "link.h5"]
    assert find_runs([other]).runs == [other]
    assert find_runs([tmp_path / "gone"]).runs == []


def test_a_folder_with_only_outside_links_holds_no_run(tmp_path: Path) -> None:
    other = write_run(tmp_path / "outside" / "other.h5", 1)
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "link.h5").symlink_to(other)
    with pytest.raises(UserError, match="lead out of the folder"):
        check_roots([folder])


# ---- command


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def failing(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that the command prints when it refuses."""
    assert cli.main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def test_no_runs_says_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = str(free_port())
    assert "htc-extract --split val" in failing(capsys, str(tmp_path), "--port", port)
    monkeypatch.chdir(tmp_path)
    assert "htc-extract --split val" in failing(capsys, "--port", port)


def test_bad_paths_and_ports_are_refused(
    tmp_path: Path, run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = str(free_port())
    assert "does not exist" in failing(capsys, str(tmp_path / "nothing"), "--port", port)
    (tmp_path / "text.h5").write_text("no run")
    assert "text.h5" in failing(capsys, str(tmp_path / "text.h5"), "--port", port)
    assert "--port 70000" in failing(capsys, str(run_file), "--port", "70000")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "choose another with --port" in failing(
            capsys, str(run_file), "--port", str(taken.getsockname()[1])
        )


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom dashboards.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as done: assert done.code == 0\n"
        "heavy = {'streamlit', 'plotly', 'torch', 'pandas', 'h5py'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment())
    assert shown.returncode == 0, shown.stderr
    assert "--port" in shown.stdout and "--no-browser" in shown.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_server_listens_on_loopback_only_and_stops(run_file: Path, how: signal.Signals) -> None:
    port = free_port()
    command = [sys.executable, "-m", "dashboards.cli", str(run_file), "--port", str(port), "--no-browser"]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(),
        # A shell starts what it puts in the background, tests perhaps, with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
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
    flags = cli.server_arguments(cli.DashboardConfig(port=port))
    assert "--browser.gatherUsageStats=false" in flags and "--server.address=127.0.0.1" in flags


# ---- pages


@pytest.fixture
def open_app(monkeypatch: pytest.MonkeyPatch):
    """Runs the app over the given roots, as the command would."""
    from streamlit.testing.v1 import AppTest

    def start(*roots: Path) -> AppTest:
        monkeypatch.setattr(sys, "argv", [APP, *map(str, roots)])
        return AppTest.from_file(APP, default_timeout=60).run()

    return start


def charts(app) -> dict[str, dict]:
    """Key of the chart -> its plotly figure."""
    return {item.proto.id.rsplit("-", 1)[1]: json.loads(item.proto.spec) for item in app.get("plotly_chart")}


def test_changing_the_image_changes_what_is_shown(run_file: Path, open_app) -> None:
    app = open_app(run_file.parent)
    assert not app.exception and not app.error
    before = charts(app)
    assert set(before) == {"image_overlay", "image_anchors", "image_heatmap", "image_curve", "image_roles"}
    assert "Image 1 of 4" in app.caption[0].value and "unknown" in app.table[0].value.to_string()

    app.number_input(key="image_number").set_value(3).run()
    assert not app.exception
    after = charts(app)
    assert all(before[name]["data"] != after[name]["data"] for name in before)
    assert "Image 3 of 4" in app.caption[0].value and "bar" in app.table[0].value.to_string()
    assert app.slider(key="image_slider").value == 3 and app.selectbox(key="image_id").value == 2

    app.selectbox(key="image_id").set_value(0).run()
    assert charts(app) == before


def test_layer_and_head_select_what_is_drawn(run_file: Path, open_app) -> None:
    app = open_app(run_file)
    before = charts(app)
    app.selectbox(key="layer").set_value(2)
    app.selectbox(key="head").set_value(1)
    app.run()
    assert not app.exception
    after = charts(app)
    for name in ("image_overlay", "image_anchors"):
        assert "layer 2, head 1" in after[name]["layout"]["title"]["subtitle"]["text"]
        assert before[name]["data"] != after[name]["data"]
    assert "head 1" in after["image_curve"]["layout"]["title"]["subtitle"]["text"]
    assert after["image_heatmap"]["data"] == before["image_heatmap"]["data"]


def test_the_other_pages(run_file: Path, open_app) -> None:
    app = open_app(run_file)
    app.session_state["view"] = "Average over the run"
    app.toggle(key="log").set_value(True)
    app.run()
    assert not app.exception
    average = charts(app)
    assert set(average) == {"average_heatmap", "average_overlay", "average_curve", "average_roles"}
    assert "mean of 4 images" in average["average_curve"]["layout"]["title"]["subtitle"]["text"]
    app.session_state["view"] = "Probe scores"
    app.run()
    assert not app.exception and "htc-probe semantic detail" in app.info[0].value
    app.session_state["view"] = "About the run"
    app.run()
    assert not app.exception and not charts(app)
    assert "0 to 3" in app.table[0].value.to_string()


def test_one_image_without_labels(tmp_path: Path, open_app) -> None:
    app = open_app(write_run(tmp_path / "photos.h5", 1, tasks=()))
    assert not app.exception and not app.error
    assert any("without labels" in caption.value for caption in app.caption)
    app.session_state["view"] = "Average over the run"
    assert not app.run().exception


def write_probes(run: Path, created: str) -> Path:
    row = results.Row(
        suite="semantic",
        task="object",
        kind="classes",
        unit="",
        representation="z_voco",
        layer=L,
        width=8,
        metric="top-1",
        estimate=0.875,
        lower=0.75,
        upper=0.9375,
        n=4,
        n_groups=4,
        floor=0.5,
        metrics={"V-information": results.Interval(0.5, 0.25, 0.75)},
        bits=0.5,
        compression=None,
        code_bits=None,
        control=0.25,
        selectivity=None,
        retention=None,
        strength=1.0,
        at_edge=False,
        gap=1e-7,
        fold_scores=(0.875,),
        classes=("disc", "bar"),
    )
    bits = row.metrics["V-information"]
    mean = results.SuiteMean("semantic", "z_voco", L, 0.875, 0.75, 0.9375, 0.5, bits, None, tasks=1)
    made = results.Results({}, {"created": created}, {}, ("a warning",), (row,), (mean,))
    return results.write(made, results.default_path(run))[0]


def test_probe_scores_beside_the_run_are_shown_with_interval_and_floor(tmp_path: Path, open_app) -> None:
    run = write_run(tmp_path / "run.h5", 1)
    with open_run(run) as opened:
        write_probes(run, opened.created)
    app = open_app(run)
    app.session_state["view"] = "Probe scores"
    app.run()
    assert not app.exception and not app.warning
    line = app.dataframe[0].value.iloc[0]
    shown = ("object", f"z_voco, layer {L}", "0.875", "0.750 to 0.938", "0.500", "0.250", "0.50 [0.25, 0.75]", "4")
    names = ["task", "read from", "score", "95 % interval", "floor", "control", "bits", "images"]
    assert tuple(line[names]) == shown

    write_probes(run, "long ago")
    assert "earlier state" in app.run().warning[0].value


def test_probe_scores_that_are_a_link_out_of_the_folder_are_not_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "run.h5", 1)
    (tmp_path / "elsewhere.json").write_text("{}")
    results.default_path(run).symlink_to(tmp_path / "elsewhere.json")
    assert data.probes_beside(run) is None


def test_runs_of_another_length_keep_the_selection_they_have(tmp_path: Path, open_app) -> None:
    long, short = write_run(tmp_path / "long.h5", 4), write_run(tmp_path / "short.h5", 2)
    app = open_app(long, short)
    app.number_input(key="image_number").set_value(4).run()
    app.selectbox(key="run").set_value(short).run()
    assert not app.exception
    assert "Image 2 of 2" in app.caption[0].value


def test_a_run_that_vanishes_while_open(tmp_path: Path, open_app) -> None:
    first, second = write_run(tmp_path / "first.h5", 1), write_run(tmp_path / "second.h5", 1)
    app = open_app(first, second)
    first.unlink()
    app.run()
    assert not app.exception and app.title[0].value == "second"
    assert "no longer there" in app.warning[0].value
    second.unlink()
    app.run()
    assert not app.exception and "htc\\-extract" in app.error[0].value


def test_names_from_a_run_are_shown_as_they_are_and_load_nothing(tmp_path: Path, open_app) -> None:
    app = open_app(write_run(tmp_path / "run.h5", 1, dataset="![x](http://localhost/x.png)"))
    shown = [item.value for item in [*app.markdown, *app.caption]]
    assert any(r"\!\[x\]\(http" in text for text in shown)
    assert not any("![x](" in text for text in shown)
