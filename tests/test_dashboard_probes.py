"""The page of the probes: figures hold the numbers given, and what a click shows are the images that it is about."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.browser import serving, tab
from htc_probe.dashboards import data, figures
from htc_probe.extract.store import open_run
from htc_probe.probes.files import results
from htc_probe.probes.files.predictions import Asked, Predicted, Writer, load
from htc_probe.probes.files.results import Confusion, label
from htc_probe.probes.scores.metrics import Gaussian
from htc_probe.probes.show import answers
from made.pages import charts, write_run
from made.tables import LAST, made, reviewed

N = 60
TASKS = (
    ("semantic", "object", "classes", ("disc", "bar")),
    ("semantic", "present", "multilabel", ("disc", "bar")),
    ("detail", "width", "number", ()),
)
KEYS = (("z_voco", LAST), ("v_d", None), ("v_pooled", None))
WRONG = {4: 0.95, 5: 0.6, 10: 0.75, 20: 0.99}
"""Rows that z_voco gets wrong, and how sure of it the probe is."""


def log_odds(yes: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.log(np.stack([1 - np.asarray(yes), np.asarray(yes)], 1))


def write_results(run: Path, *, created: str | None = None, predictions: bool = True, **changes: Any) -> Path:
    """Results of three tasks, and what three representations said: z_voco of the object as in `WRONG`, of the width 0.1
    times the row too much; the others are right.
    """
    with open_run(run) as opened:
        created = opened.created if created is None else created
        labels = opened.labels("object")
    rows = np.flatnonzero(labels >= 0)
    y = labels[rows]
    said = np.where(np.isin(rows, list(WRONG)), 1 - y, y)
    sure = np.array([WRONG.get(int(row), 0.8) for row in rows])
    bar = np.where(said == 1, sure, 1 - sure)
    counts = np.zeros((2, 2), int)
    np.add.at(counts, (y, said), 1)
    found = made(KEYS, tasks=TASKS)
    confusion = Confusion("object", "z_voco", LAST, ("disc", "bar"), tuple(map(tuple, counts.tolist())))
    identity = found.run | {"created": created, "sha256": "0" * 64}
    found = replace(found, run=identity, confusions=(confusion,), **changes)
    path = results.write(found, results.default_path(run))[0]
    every = np.arange(N)
    present = np.tile(np.array([1, 0], np.uint8), (N, 1))
    present[:2, 1] = 255
    asked = [
        Asked("object", "classes", ("disc", "bar"), rows, rows % 5, y),
        Asked("present", "multilabel", ("disc", "bar"), every, every % 5, present),
        Asked("width", "number", (), every, every % 5, every + 0.5),
    ]
    if predictions:
        with Writer(results.predictions_path(path), run.with_suffix(".keep"), found.run, asked, KEYS) as writer:
            for at, _ in KEYS:
                right = at != "z_voco"
                writer.add(
                    [
                        log_odds(np.where(y == 1, 0.9, 0.1) if right else bar),
                        np.stack([np.full(N, 3.0), np.where(every == 7, 2.0, -2.0)], 1),
                        Gaussian(every + 0.5 + (0 if right else 0.1 * every), np.ones(N)),
                    ]
                )
            writer.finish()
    return path


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "scenes-val.h5", N)
    write_results(run)
    return run


def said_of(run: Path, task: str, representation: str = "z_voco", layer: int | None = LAST) -> Predicted:
    return load(results.predictions_path(results.default_path(run)))[task, representation, layer]


# ---- answers


def test_the_wrong_ones_are_sorted_by_how_sure_the_probe_was(run_file: Path) -> None:
    found = answers.of(said_of(run_file, "object"))
    assert found.rows[found.wrong()].tolist() == [20, 4, 10, 5]
    counts = found.counts()
    assert counts.sum() == len(found.rows) == 40 and counts[0, 1] + counts[1, 0] == 4
    # Of the rows 1, 4, 7 ... the label is disc, of 2, 5, 8 ... bar.
    assert found.rows[found.cell(0, 1)].tolist() == [4, 10] and found.rows[found.cell(1, 0)].tolist() == [20, 5]
    few = found.among(np.array([5, 6, 20]))
    assert few.rows.tolist() == [5, 20] and few.counts().tolist() == [[0, 0], [2, 0]]


def test_one_label_of_several_is_a_question_of_yes_and_no(run_file: Path) -> None:
    found = answers.of(said_of(run_file, "present"), 1)
    assert found.names == ("no bar", "bar") and found.rows.tolist() == list(range(2, N))  # of the first two not known
    assert found.rows[found.wrong()].tolist() == [7]
    assert found.sure is not None
    np.testing.assert_allclose(found.sure, 1 / (1 + np.exp(-2)), rtol=1e-3)


def test_numbers_are_sorted_by_their_error(run_file: Path) -> None:
    found = answers.of(said_of(run_file, "width"))
    assert found.rows[found.wrong()].tolist() == list(range(N - 1, -1, -1)) and found.sure is None


def test_an_image_in_words(run_file: Path) -> None:
    told = answers.of_image(said_of(run_file, "object"), 20)
    assert told == answers.Answer("bar", "disc 0.99", True)
    assert answers.of_image(said_of(run_file, "object"), 0) is None  # without a label
    assert answers.of_image(said_of(run_file, "object"), N + 1) is None
    assert answers.of_image(said_of(run_file, "present"), 7) == answers.Answer("disc", "disc 0.95, bar 0.88", True)
    assert answers.of_image(said_of(run_file, "present"), 0) == answers.Answer("disc", "disc 0.95", False)
    assert answers.of_image(said_of(run_file, "width"), 10) == answers.Answer("10.5", "11.5", False)


# ---- figures


def test_a_confusion_holds_shares_and_its_cells_are_clicked() -> None:
    counts = np.array([[3, 1], [0, 0]])
    figure = figures.confusion(counts, ("<b>", "bar"), title="t", subtitle="s", mark=(0, 1))
    heat, written = figure.data
    assert list(written.text) == ["3", "1", "0", "0"]
    assert list(zip(written.x, written.y, strict=True)) == [(1, 1), (2, 1), (1, 2), (2, 2)]
    np.testing.assert_allclose(heat.z, [[0.75, 0.25], [0, 0]])
    np.testing.assert_array_equal(heat.text, counts)
    assert (heat.zmin, heat.zmax) == (0, 1)
    assert list(heat.x) == list(heat.y) == [1, 2]
    assert list(heat.customdata[0][1]) == ["&lt;b&gt;", "bar", 1, 0.25]
    assert figure.layout.yaxis.range == (2.5, 0.5) and list(figure.layout.yaxis.ticktext) == ["&lt;b&gt;", "bar"]
    (box,) = figure.layout.shapes
    assert (box.x0, box.x1, box.y0, box.y1) == (1.5, 2.5, 0.5, 1.5)


def test_numbers_lie_around_the_line_of_truth() -> None:
    true, said, rows = np.array([1.0, 4.0]), np.array([1.5, 3.0]), np.array([3, 8])
    line, dots, mark = figures.said_and_true(true, said, rows, unit="px", title="t", subtitle="s", mark=8).data
    assert list(line.x) == list(line.y) == [1, 4]
    assert (list(dots.x), list(dots.y), list(dots.customdata)) == ([1, 4], [1.5, 3], [3, 8])
    assert (list(mark.x), list(mark.y)) == ([4], [3])


def test_two_representations_are_compared_in_either_order() -> None:
    found = made()
    one = figures.probe_differences(found, "semantic", ("z_voco", LAST), ("v_d", None))
    other = figures.probe_differences(found, "semantic", ("v_d", None), ("z_voco", LAST))
    assert one is not None and other is not None
    assert list(one.data[0].x) == [0.5, 0.5, 0.5] and list(other.data[0].x) == [-0.5, -0.5, -0.5]
    np.testing.assert_allclose(other.data[0].error_x.array, one.data[0].error_x.arrayminus)
    assert list(one.layout.yaxis.ticktext) == ["category", "present", "mean of the suite"]
    assert "z_voco minus v_d" in one.layout.title.text and "n = 2,000" in one.layout.title.subtitle.text
    assert figures.probe_differences(found, "semantic", ("v_d", None), ("pixels", None)) is None


def test_no_line_is_black_or_white() -> None:
    """They would not be seen on a dark or a light page."""
    found = made(layers=range(LAST + 1))
    drawn = [figures.probe_scores(found, "semantic"), figures.probe_layers(found, "semantic")]
    drawn += [figures.probe_learning(found, "semantic"), figures.probe_retention(found, "semantic")]
    drawn += [figures.probe_differences(found, "semantic", ("z_voco", LAST), ("v_d", None))]
    for figure in drawn:
        text = figure.update_layout(template="none").to_json()
        for colour in ("#000", "#fff", "#333", "#222", "black", "white"):
            assert f'"{colour}' not in text, (figure.layout.title.text, colour)


# ---- the page


def pictures(app) -> list[dict]:
    """Of the gallery."""
    found = {
        item.proto.id.rsplit("-", 1)[1]: json.loads(item.proto.json or "null") for item in app.get("bidi_component")
    }
    return found["probe_gallery"]["pictures"] if "probe_gallery" in found else []


def commands(app) -> list[str]:
    return [code.value.split(" --run ")[0] for code in app.code]


def test_without_results_it_says_how_to_get_them(tmp_path: Path, open_app) -> None:
    app = open_app(write_run(tmp_path / "run.h5", 20), page="Probes")
    assert not app.exception and commands(app) == ["htc-probe semantic detail"]


def test_scores_and_any_two_representations(run_file: Path, open_app) -> None:
    app = open_app(run_file, page="Probes")
    assert not app.exception and not app.warning
    shown = charts(app)
    assert set(shown) == {"probe_scores", "probe_compared"}
    assert "semantic: what can be read?" in shown["probe_scores"]["layout"]["title"]["text"]
    scores = app.dataframe[0].value
    line = scores[(scores["task"] == "object") & (scores["read from"] == "v_d")].iloc[0]
    assert (line["score"], line["floor"], line["control"], line["images"]) == (0.3, 0.2, 0.15, 2000)
    assert scores["task"].iloc[-1] == "mean of 2 tasks"
    assert app.selectbox(key="a").value == "z_voco" and app.selectbox(key="b").value == "v_d"
    app.selectbox(key="a").set_value("v_d").run()
    assert app.selectbox(key="b").value == "z_voco"
    assert "v_d minus z_voco" in charts(app)["probe_compared"]["layout"]["title"]["text"]
    assert app.dataframe[1].value["difference"].tolist() == [-0.5, -0.5, -0.5]
    app.session_state["suite"], app.session_state["measure"] = "detail", "bits"
    app.run()
    assert not app.exception and "how many bits can be read?" in charts(app)["probe_scores"]["layout"]["title"]["text"]


def test_what_is_kept_and_single_classes_are_on_the_page(run_file: Path, open_app) -> None:
    told = reviewed(made())
    write_results(run_file, kept=told.kept, suite_gaps=told.suite_gaps, by_class=told.by_class, ceilings=told.ceilings)
    app = open_app(run_file, page="Probes")
    assert not app.exception
    assert set(charts(app)) == {"probe_scores", "probe_classes", "probe_gaps", "probe_compared"}
    assert "category: recall by class" in charts(app)["probe_classes"]["layout"]["title"]["text"]
    app.session_state["measure"] = "kept"
    app.run()
    assert not app.exception
    assert "is the score of pooled V kept?" in charts(app)["probe_scores"]["layout"]["title"]["text"]


def test_curves_that_were_not_measured_say_how(run_file: Path, open_app) -> None:
    query = {"page": "Probes", "probes": "Layers and training images"}
    app = open_app(run_file, **query)
    assert not app.exception and set(charts(app)) == {"probe_learning"}
    assert commands(app) == ["htc-probe semantic detail --layers all"]
    run = run_file
    write_results(run, curves=(), config={"suites": ["object", "a b"], "layers": "0,4", "curve": False})
    app = open_app(run, **query)
    assert commands(app) == ["htc-probe object 'a b' --layers all", "htc-probe object 'a b' --layers 0,4 --curve"]
    layers = made(KEYS, layers=range(LAST + 1), tasks=TASKS)
    write_results(run, rows=layers.rows)
    assert set(charts(open_app(run, **query))) == {"probe_layers", "probe_learning"}


IMAGES = {"page": "Probes", "probes": "Image by image"}


def test_images_that_a_probe_gets_wrong(run_file: Path, open_app) -> None:
    app = open_app(run_file, **IMAGES, image="21")
    assert not app.exception and not app.info
    heat = charts(app)["probe_confusion"]
    assert "object from z_voco" in heat["layout"]["title"]["text"]
    assert "40 held-out images" in heat["layout"]["title"]["subtitle"]["text"]
    assert "90.0% right" in heat["layout"]["title"]["subtitle"]["text"]
    shown = pictures(app)
    assert [picture["row"] for picture in shown] == [20, 4, 10, 5]
    assert shown[0]["lines"] == ["val-020", "true bar", "probe disc", "p 0.990"]
    assert shown[0]["source"].startswith("data:image/jpeg;base64,")
    assert [picture["current"] for picture in shown] == [True, False, False, False]
    table = app.dataframe[0].value
    assert list(table.columns) == ["task", "true", "z_voco", "v_d", "pooled V"]
    assert table.iloc[0].tolist() == ["object", "bar", "≠ disc 0.99", "bar 0.90", "bar 0.90"]
    assert table.iloc[2].tolist() == ["width", "20.5", "22.5", "20.5", "20.5"]
    assert any("width in px" in caption.value for caption in app.caption)

    cell = app.session_state["probe_cell"]
    app.session_state["probe_cell"] = cell._replace(marked=(0, 1))  # as a click does
    app.run()
    assert [picture["row"] for picture in pictures(app)] == [4, 10]
    assert any("of disc that the probe calls bar" in text.value for text in app.markdown)
    app.selectbox(key="read").set_value("v_d").run()
    assert not app.exception and not pictures(app) and "no images of disc that the probe calls bar" in app.info[0].value
    next(button for button in app.button if button.label.startswith("All errors")).click().run()
    assert not app.exception and "no images that the probe gets wrong" in app.info[0].value


def test_labels_and_numbers(run_file: Path, open_app) -> None:
    app = open_app(run_file, **IMAGES, task="present")
    assert not app.exception and app.selectbox(key="label").value == "disc"
    app.selectbox(key="label").set_value("bar").run()
    assert [(picture["row"], picture["lines"][1:3]) for picture in pictures(app)] == [(7, ["true no bar", "probe bar"])]
    app.selectbox(key="task").set_value("width").run()
    assert not app.exception and set(charts(app)) == {"probe_values"}
    shown = pictures(app)
    assert [picture["row"] for picture in shown] == list(range(N - 1, N - 25, -1))
    assert shown[0]["lines"] == ["val-059", "true 59.5", "probe 65.4"]
    app.session_state["probe_page_1"] = 3
    app.run()
    assert [picture["row"] for picture in pictures(app)] == list(range(11, -1, -1))


def test_a_selection_narrows_the_images_and_is_made_of_them(run_file: Path, open_app) -> None:
    app = open_app(run_file, **IMAGES)
    app.query_params["selection"] = "5_6_8_9"
    app.run()
    assert "4 selected held-out images" in charts(app)["probe_confusion"]["layout"]["title"]["subtitle"]["text"]
    assert [picture["row"] for picture in pictures(app)] == [4, 5]
    next(button for button in app.button if button.label.startswith("Select these 2")).click().run()
    assert app.query_params["selection"] == "5-6"


def test_predictions_that_are_missing_stale_or_damaged_are_told(run_file: Path, open_app) -> None:
    place = results.predictions_path(results.default_path(run_file))
    whole = charts(open_app(run_file, **IMAGES))["probe_confusion"]
    place.unlink()
    app = open_app(run_file, **IMAGES)
    assert not app.exception and set(charts(app)) == {"probe_counts"} and not pictures(app)
    assert "no predictions" in app.info[0].value and commands(app) == ["htc-probe semantic detail"]
    alone = charts(app)["probe_counts"]
    assert alone["data"][0] == whole["data"][0] and "n = 40" in alone["layout"]["title"]["subtitle"]["text"]
    write_results(run_file, created="long ago")
    app = open_app(run_file, **IMAGES)
    assert not app.exception and "earlier state" in app.warning[0].value and "earlier state" in app.info[0].value
    write_results(run_file)
    place.write_bytes(place.read_bytes()[:-5])
    app = open_app(run_file, **IMAGES)
    assert not app.exception and "cannot be read" in app.error[0].value.replace("\\", "")


def test_predictions_of_more_images_than_the_run_has_are_refused(tmp_path: Path, open_app) -> None:
    run = write_run(tmp_path / "run.h5", N)
    write_results(run)
    place = data.key_of(results.predictions_path(results.default_path(run)))
    assert len(data.predicted(place, ("width", "v_d", None), N).rows) == N
    with pytest.raises(Exception, match="run htc-probe again"):
        data.predicted(place, ("width", "v_d", None), N - 1)


def test_names_are_shown_as_text(run_file: Path, open_app) -> None:
    evil = "![x](http://localhost/x.png)<img src=x>"
    found = made(KEYS, tasks=[(evil, evil, "classes", (evil, "b"))])
    with open_run(run_file) as opened:
        found = replace(found, run=found.run | {"created": opened.created}, warnings=(evil,))
    results.write(found, results.default_path(run_file))
    for part in ("Scores", "Layers and training images", "Image by image"):
        app = open_app(run_file, page="Probes", probes=part)
        assert not app.exception
        assert not any("![x](" in item.value for item in [*app.markdown, *app.caption, *app.info])
        assert "<img" not in json.dumps(charts(app)).replace("\\u003c", "<")
    assert label(*KEYS[0]) == "z_voco@4"


@pytest.mark.slow
def test_a_click_shows_the_images_of_a_cell_and_then_the_image(run_file: Path, chromium: Any) -> None:
    from playwright.sync_api import expect

    with serving(run_file.parent) as address, tab(chromium, address) as page:
        page.page.add_init_script("window.showSaveFilePicker = undefined")  # which would ask where to save
        page.open(**IMAGES)
        gallery = page.page.locator(".st-key-probe_gallery button")
        expect(gallery).to_have_count(4)
        page.click_at("probe_confusion", 2, 1)
        expect(gallery).to_have_count(2)
        assert [text.split("\n")[0] for text in gallery.all_inner_texts()] == ["val-004", "val-010"]
        page.page.get_by_role("button", name="All errors of the probe").click()
        expect(gallery).to_have_count(4)
        page.settle().click_at("probe_confusion", 2, 1)
        expect(gallery).to_have_count(2)
        gallery.first.click()
        expect(page.page.get_by_text("Image 5: val-004")).to_be_visible()
        assert "image=5" in page.settle().page.url
        page.page.get_by_role("tab", name="Scores").click()
        page.settle().page.get_by_text("All scores as a table").click()
        page.settle()
        assert "semantic: z_voco minus v_d" in page.values("probe_compared")["layout"]["title"]["text"]
        page.page.get_by_test_id("stDataFrame").first.hover()
        with page.page.expect_download() as download:
            page.page.get_by_role("button", name="Download as CSV").first.click()
        text = Path(download.value.path()).read_text(encoding="utf-8-sig")
        assert text.startswith("task,read from,layer,metric,score") and "mean of 2 tasks" in text
        page.check()
