"""The page Codes: what goes with a label and what is noise, its figures, and what a user does there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import fisher_exact

from benchmarks.browser import serving, tab
from htc_probe.analysis.contents import associations, reading
from htc_probe.dashboards import data, figures
from htc_probe.extract.store import Batch, RunInfo, RunShape, RunWriter, Task, is_labelled, open_run
from made.pages import COLS, ROLES, ROWS, A, H, L, add_section, charts, random_rows, write_run

PAGE = "Codes"
R, C, GROUPS, SIZE, N = 3, 3, 2, 32, 120
TASKS = (
    Task("scene", "semantic", "classes", ("sea", "room", "wood")),
    Task("present", "semantic", "multilabel", ("cup", "car")),
    Task("size", "detail", "number", unit="px"),
)
TOLD = 7
"""The code of group 2 that every sea holds in its upper left cell, and no other image anywhere."""


def coded() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    codes_NRCG = rng.integers(8, SIZE, (N, R, C, GROUPS))
    labels = {"scene": np.arange(N) % 3, "present": rng.integers(0, 2, (N, 2)), "size": np.linspace(0, 40, N)}
    codes_NRCG[labels["scene"] == 0, 0, 0, 1] = TOLD
    return codes_NRCG, labels


def write_coded(path: Path, *, tasks: tuple[Task, ...] = TASKS, mgvq: bool = True) -> Path:
    rng = np.random.default_rng(1)
    codes_NRCG, labels = coded()
    config = {"mgvq": {"codebook_size": SIZE * GROUPS, "groups": GROUPS}} if mgvq else {"mgvq": None}
    info = RunInfo({}, {"name": "small", "sha256": "1" * 64, "config": config}, "scenes", "val", "star", {})
    shape = RunShape(N, L, (0, L), H, 8, A, (R, C, GROUPS) if mgvq else None, ROLES, ROWS, COLS)
    batch = Batch(
        ids=[f"val-{at:03d}" for at in range(N)],
        paths=[f"val/{at}" for at in range(N)],
        groups=[f"group-{at}" for at in range(N)],
        thumbnails=rng.integers(0, 256, (N, 96, 96, 3), dtype=np.uint8),
        z_voco=rng.normal(size=(N, 2, 8)).astype(np.float32),
        v_d=rng.normal(size=(N, A, 8)).astype(np.float32),
        v_pooled=rng.normal(size=(N, 8)).astype(np.float32),
        codes=codes_NRCG if mgvq else None,
        attention=random_rows(N),
        labels={task.name: labels[task.name] for task in tasks},
    )
    with RunWriter(path, info, shape, tasks) as writer:
        writer.append(batch)
        return writer.finish()


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coded(tmp_path_factory.mktemp("runs") / "run.h5")


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the sections `reading`, and `reconstruct` of images 3 and 5."""
    path = write_coded(tmp_path_factory.mktemp("analysed") / "run.h5")
    with open_run(path) as run:
        add_section(path, "reading", reading.analyse(run))
        some = [2, 4]
        pictures = np.stack([run.thumbnail(at) for at in some]) // 2
        add_section(
            path,
            "reconstruct",
            {
                "images": [run.ids()[at] for at in some],
                "pictures": pictures,
                "psnr_of": np.array([21.5, 23.5], np.float32),
                "psnr": 22.5,
                "psnr_lower": 21.5,
                "psnr_upper": 23.5,
                "psnr_flat": 12.0,
                "psnr_flat_lower": 11.0,
                "psnr_flat_upper": 13.0,
            },
        )
    return path


def app_at(open_app: Any, path: Path) -> Any:
    app = open_app(path)
    app.session_state["page"] = PAGE
    return app.run()


# ---- arithmetic


def test_associations_are_those_of_fishers_test() -> None:
    codes_NRCG, labels = coded()
    codes_NP = codes_NRCG[..., 1].reshape(N, -1).astype(np.uint16)
    inside, counted = labels["scene"] == 0, np.arange(N) < 90
    found = associations.associations(associations.held(codes_NP), inside, counted, SIZE, tests=50)
    assert (found.n_inside, found.n_outside) == (30, 60) and found.code[0] == TOLD
    assert (found.inside[0], found.outside[0]) == (30, 0)
    assert found.lift[0] == pytest.approx((30.5 / 30.5) / (0.5 / 60.5))
    for at, code in enumerate(found.code):
        holds = (codes_NP == code).any(1)
        table = [[(holds & rows & counted).sum(), (~holds & rows & counted).sum()] for rows in (inside, ~inside)]
        assert (found.inside[at], found.outside[at]) == (table[0][0], table[1][0])
        assert found.p[at] == pytest.approx(min(1, 50 * fisher_exact(table, "greater")[1]))
    assert found.found.tolist() == [True] + [False] * (len(found.code) - 1)
    assert associations.chosen(found, found.found).code.tolist() == [TOLD]
    assert (found.lower < found.lift).all() and (found.lift < found.upper).all() and found.lower[0] > 1
    assert (np.diff(found.lower) <= 0).all()


def test_noise_is_seldom_found_among_thousands_of_codes() -> None:
    """Of 60 studies without any effect, 3 may find something; without the correction all would."""
    rng = np.random.default_rng(0)
    found_with, found_without = 0, 0
    for _ in range(60):
        held = associations.held(rng.integers(0, 512, (300, 40)).astype(np.uint16))
        inside = rng.integers(0, 4, 300) == 0
        for tests in (512, 1):
            found = associations.associations(held, inside, np.ones(300, bool), 512, tests).found.any()
            found_with, found_without = found_with + (tests > 1 and found), found_without + (tests == 1 and found)
    assert found_with <= 6 and found_without == 60


def test_one_image_of_each_group_is_counted() -> None:
    known = np.array([False, True, True, True, True])
    assert associations.one_of_each(["a", "a", "b", "a", "b"], known).tolist() == [False, True, True, False, False]


def test_usage_of_known_codes() -> None:
    codes_NP = np.array([[0, 0, 1, 2], [0, 0, 1, 2]], np.uint16)
    assert associations.shares(codes_NP, 4).tolist() == [0.5, 0.25, 0.25, 0]
    assert associations.entropy(associations.shares(codes_NP, 4)) == 1.5


def test_answers_of_every_kind() -> None:
    classes, several, number = TASKS
    labels = np.array([0, 2, -1])
    assert is_labelled("classes", labels).tolist() == [True, True, False]
    assert associations.answers(labels, classes.kind, classes.classes, "") == ["sea", "room", "wood"]
    assert associations.answering(labels, "classes", 2).tolist() == [False, True, False]
    flags = np.array([[1, 0], [0, 1], [255, 255]], np.uint8)
    assert is_labelled("multilabel", flags).tolist() == [True, True, False]
    assert associations.answering(flags, "multilabel", 0).tolist() == [True, False, False]
    sizes = np.array([1.0, 2, 3, 4, 5, np.nan])
    assert associations.answers(sizes, number.kind, (), "px") == [
        "below 2 px",
        "2 to 3 px",
        "3 to 4 px",
        "4 or more px",
    ]
    parts = np.stack([associations.answering(sizes, "number", at) for at in range(4)])
    assert parts.sum(0).tolist() == [1, 1, 1, 1, 1, 0] and parts.sum(1).tolist() == [1, 1, 1, 2]
    assert associations.answers(np.full(3, np.nan), "number", (), "px") == ["any"]
    assert associations.answers(np.ones(3), "number", (), "px") == ["any"]


# ---- data


def test_codes_are_read_whole_or_evenly_spaced(run_file: Path) -> None:
    key = data.key_of(run_file)
    codes_NRCG, labels = coded()
    read = data.all_codes(key)
    np.testing.assert_array_equal(read.codes, codes_NRCG.reshape(N, -1, GROUPS).transpose(2, 0, 1))
    assert read.size == SIZE and read.rows.tolist() == list(range(N))
    np.testing.assert_allclose(read.shares.sum(1), 1)
    np.testing.assert_array_equal(data.codes_of_image(key, 5), codes_NRCG[5])

    some = data.all_codes(key, most_bytes=2 * R * C * GROUPS * 70)
    assert some.rows.tolist() == list(range(64))  # whole blocks
    np.testing.assert_array_equal(some.codes, read.codes[:, :64])
    few = data.all_codes(key, most_bytes=2 * R * C * GROUPS * 20)
    assert len(few.rows) == 20


def test_what_goes_with_an_answer_is_corrected_for_all_codes_and_answers(run_file: Path) -> None:
    key = data.key_of(run_file)
    found = data.codes_of_answer(key, 1, "scene", 0)
    used = int((data.all_codes(key).shares > 0).sum())
    assert found.tests == 3 * used and associations.chosen(found, found.found).code.tolist() == [TOLD]
    assert not data.codes_of_answer(key, 0, "scene", 0).found.any()
    assert data.codes_of_answer(key, 0, "size", 3).tests == 4 * used


# ---- figures


def test_pictures_show_what_is_lost_on_one_scale() -> None:
    image = np.full((4, 4, 3), 51, np.uint8)
    figure = figures.code_pictures(image, image * 2, psnr=21.25)
    np.testing.assert_allclose(figure.data[0].z, 0.2, rtol=1e-6)
    assert (figure.data[0].zmin, figure.data[0].zmax) == (-0.5, 0.5) and len(figure.layout.images) == 2
    assert "21.2 dB" in figure.layout.title.subtitle.text


def test_the_grid_holds_codes_and_their_rarity() -> None:
    codes_RC = np.array([[3, 4], [3, 9]])
    shares_K = np.zeros(16)
    shares_K[[3, 4, 9, 10]] = 1 / 2, 1 / 4, 1 / 8, 1 / 16
    picture = np.zeros((8, 8, 3), np.uint8)
    figure = figures.code_grid(codes_RC, shares_K, group=1, groups=8, image=picture, chosen=3)
    np.testing.assert_allclose(figure.data[0].z, [[1, 2], [1, 3]])
    assert (figure.data[0].zmin, figure.data[0].zmax) == (1, 4)
    np.testing.assert_array_equal(figure.data[0].customdata[..., 0], codes_RC)
    assert list(zip(figure.data[1].x, figure.data[1].y, strict=True))[::6] == [(0.5, 0.5), (0.5, 1.5)]
    assert tuple(figure.layout.yaxis.range) == (2.5, 0.5)


def test_usage_bars_and_ranks() -> None:
    bars, line = figures.code_entropy(
        np.array([1.5, 2.0]), np.array([3, 4]), 4, n=2, interval=(np.array([1.0, 1.5]), np.array([1.75, 2.0]))
    ).data
    np.testing.assert_allclose(bars.y, [1.5, 2]), np.testing.assert_allclose(line.y, [2, 2])
    np.testing.assert_allclose([*bars.error_y.array, *bars.error_y.arrayminus], [0.25, 0, 0.5, 0.5])
    ranks = figures.code_usage(np.array([0.1, 0.6, 0.0, 0.3]), group=0, n=2, chosen=3).data
    np.testing.assert_array_equal(ranks[0].customdata[:, 0], [1, 3, 0])
    np.testing.assert_allclose(ranks[0].y, [0.6, 0.3, 0.1])
    assert (ranks[2].x[0], ranks[2].y[0]) == (2, 0.3)


def test_bits_are_centred_on_zero_and_places_without_a_value_stay_empty() -> None:
    bits = np.array([[0.2, -0.1]])
    figure = figures.code_label_bits(bits, bits - 0.1, bits + 0.1, np.array([1.0]), ["<b>x"], n=9, mark=(0, 1))
    assert (figure.data[0].zmin, figure.data[0].zmax) == (-0.2, 0.2)
    assert figure.layout.yaxis.ticktext == ("&lt;b&gt;x",) and figure.data[2].x[0] == 1.5
    figure = figures.code_label_map(np.array([0.3]), [1], [0], (2, 2), task="scene", n=9)
    np.testing.assert_array_equal(figure.data[0].z, np.array([[np.nan, np.nan], [0.3, np.nan]], np.float32))
    assert "1 of 4 cells" in figure.layout.title.subtitle.text


def test_lifts_hold_their_intervals_and_counts() -> None:
    codes_NRCG, labels = coded()
    held = associations.held(codes_NRCG[..., 1].reshape(N, -1).astype(np.uint16))
    found = associations.associations(held, labels["scene"] == 0, np.ones(N, bool), SIZE, 50)
    (points,) = figures.code_lifts(found, group=1, answer="<i>sea", most=4).data
    np.testing.assert_allclose(points.x, found.lift[:4])
    np.testing.assert_allclose(points.x + points.error_x.array, found.upper[:4])
    assert points.customdata[0, :3].tolist() == [TOLD, 40, 0] and len(points.x) == 4


def test_examples_outline_the_cells() -> None:
    cells = np.zeros((2, 2, 2), bool)
    cells[1, 0, 1] = True
    figure = figures.code_examples(["data:,", "data:,"], cells, ["<a>", "b"], title="t", subtitle="s")
    frames, points = figure.data
    assert frames.x[:2] == pytest.approx([1.56, 2.06]) and frames.y[1:3] == pytest.approx([0, 0.5])
    assert points.text == ("&lt;a&gt;", "b") and len(figure.layout.images) == 2


# ---- the page


def test_what_is_counted_from_the_run_alone(run_file: Path, open_app: Any) -> None:
    app = app_at(open_app, run_file)
    assert not app.exception and not app.error
    assert {"codes_grid", "codes_entropy", "codes_usage"} == set(charts(app))
    said = [item.value for item in app.code]
    assert [line.split(" --run")[0] for line in said] == ["htc-analyze reconstruct"] + 2 * ["htc-analyze reading"]
    assert any("No code of group 1" in item.value for item in app.info)

    app.selectbox(key="codegroup").set_value("2").run()
    assert not app.exception
    lifts = charts(app)["codes_lifts"]
    assert "scene: sea" in lifts["layout"]["title"]["text"]
    app.number_input(key="code").set_value(TOLD).run()
    shown = charts(app)
    assert {"codes_places", "codes_examples"} <= set(shown)
    assert "12 of 40 images" in shown["codes_examples"]["layout"]["title"]["subtitle"]["text"]
    app.selectbox(key="answer").set_value("2").run()
    app.toggle(key="codeonly").set_value(True).run()
    assert not app.exception and any("No such image" in item.value for item in app.info)

    linked = open_app(run_file, page="Codes", codegroup="2", answer="room", code=f"{TOLD}", codeonly="true")
    assert linked.selectbox(key="answer").value == "2" and linked.toggle(key="codeonly").value


def test_with_the_analyses_beside_it(analysed: Path, open_app: Any) -> None:
    app = app_at(open_app, analysed)
    assert not app.exception and not app.error and not app.code
    assert {"codes_bits", "codes_map"} <= set(charts(app)) and "codes_pictures" not in charts(app)
    assert "2 of 120 images have one" in " ".join(item.value for item in app.caption)
    next(item for item in app.button if item.label == "Next image with a reconstruction").click().run()
    assert app.number_input(key="image").value == 3
    assert "21.5 dB" in charts(app)["codes_pictures"]["layout"]["title"]["subtitle"]["text"]
    assert any("22.5 [21.5, 23.5] dB" in item.value for item in app.caption)


def test_more_codes_than_draws_are_told(tmp_path: Path, run_file: Path, open_app: Any) -> None:
    app = app_at(open_app, write_run(tmp_path / "run.h5", 2))
    assert not app.exception and any("8 draws" in item.value and "9 codes" in item.value for item in app.warning)
    assert not app_at(open_app, run_file).warning


def test_a_run_without_codes_says_why_it_is_empty(tmp_path: Path, open_app: Any) -> None:
    app = app_at(open_app, write_coded(tmp_path / "run.h5", mgvq=False))
    assert not app.exception and not charts(app) and "no MGVQ" in app.info[0].value


def test_a_run_without_labels_still_shows_its_codes(tmp_path: Path, open_app: Any) -> None:
    app = app_at(open_app, write_coded(tmp_path / "run.h5", tasks=()))
    assert not app.exception and "codes_grid" in charts(app)
    assert any("no labels" in item.value for item in app.info)


def test_another_run_with_fewer_groups_and_codes_keeps_what_it_has(tmp_path: Path, open_app: Any) -> None:
    many, few = write_coded(tmp_path / "a.h5"), write_run(tmp_path / "b.h5")
    app = open_app(many, few)
    app.session_state["page"] = PAGE
    app.run()
    app.selectbox(key="run").set_value("a").run()
    app.selectbox(key="codegroup").set_value("2").run()
    app.number_input(key="code").set_value(SIZE - 1).run()
    app.selectbox(key="run").set_value("b").run()
    assert not app.exception and app.selectbox(key="codegroup").value == "1"
    assert app.number_input(key="code").value is None


# ---- in the browser


@pytest.mark.slow
def test_a_user_follows_a_code_to_its_images(analysed: Path, chromium: Any) -> None:
    codes_NRCG, labels = coded()
    with serving(analysed) as address, tab(chromium, address) as page:
        page.open(page=PAGE, image=3, codegroup=2)
        assert page.chart("codes_pictures").count() == 1
        page.click_at("codes_grid", 2, 3)
        assert f"code={codes_NRCG[2, 2, 1, 1]}" in page.page.url
        told = data.codes_of_answer(data.key_of(analysed), 1, "scene", 0)
        page.click_at("codes_lifts", told.lift[0], 1)
        assert f"code={TOLD}&" in page.page.url + "&"
        page.click_at("codes_examples", 1.56, 0.5)
        shown = int(page.page.url.split("image=")[1].split("&")[0]) - 1
        assert labels["scene"][shown] == 0 and shown != 2
        page.check()
