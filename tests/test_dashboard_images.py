"""The page Images: filters and orders as functions of arrays, and the page that browses, filters, sorts and selects."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.browser import serving, tab
from htc_probe.dashboards import data, selections
from htc_probe.dashboards.data import collection
from htc_probe.dashboards.notes import Note, notes_path, read, tag, write
from htc_probe.extract.store import Task
from htc_probe.probes.files import results
from htc_probe.probes.files.predictions import Asked, Predicted, Writer
from htc_probe.probes.scores.metrics import Gaussian
from made.pages import H, L, S, add_section, charts, press, write_run

PAGE = "Images"
N = 60
CLASSES = Task("object", "semantic", "classes", ("disc", "bar"))
LABELS = Task("present", "semantic", "multilabel", ("disc", "bar"))
NUMBER = Task("width", "detail", "number", unit="px")


# ---- functions of arrays


def test_classes_are_groups_and_several_are_any_of_them() -> None:
    label_N = np.array([0, 1, -1, 0])
    assert collection.groups(CLASSES, label_N) == ["disc", "bar", "unknown"]
    assert collection.groups(CLASSES, label_N[:2]) == ["disc", "bar"]
    assert collection.labelled(CLASSES, label_N, ["disc"]).tolist() == [True, False, False, True]
    assert collection.labelled(CLASSES, label_N, ["bar", "unknown"]).tolist() == [False, True, True, False]


def test_several_labels_of_one_task_are_all_of_them() -> None:
    flags = np.array([[1, 0], [1, 1], [255, 255], [0, 0]], np.uint8)
    assert collection.labelled(LABELS, flags, ["disc"]).tolist() == [True, True, False, False]
    assert collection.labelled(LABELS, flags, ["disc", "bar"]).tolist() == [False, True, False, False]
    assert collection.labelled(LABELS, flags, ["unknown"]).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    "values", [np.arange(100.0), np.array([1.0, np.nan, 2, 3]), np.full(5, 7.0), np.r_[np.zeros(90), np.ones(10)]]
)
def test_quarters_of_a_number_hold_every_image_once(values: np.ndarray) -> None:
    names = collection.groups(NUMBER, values)
    held = np.stack([collection.belonging(NUMBER, values, name) for name in names])
    assert (held.sum(0) == 1).all() and all(name == "unknown" or name.endswith("px") for name in names)
    if len(np.unique(values)) == 100:
        assert held.sum(1).tolist() == [25] * 4


def test_a_class_called_unknown_is_that_class() -> None:
    task = Task("object", "semantic", "classes", ("unknown", "bar"))
    assert collection.belonging(task, np.array([0, 1]), "unknown").tolist() == [True, False]


def test_orders_put_what_is_unknown_last_and_keep_equals() -> None:
    amount_N = np.array([2.0, np.nan, 1, 2, 0])
    rows = np.array([0, 1, 2, 3])
    assert collection.ordered(rows, amount_N, False).tolist() == [2, 0, 3, 1]
    assert collection.ordered(rows, amount_N, True).tolist() == [0, 3, 2, 1]


def said(kind: Any, y: np.ndarray, said: np.ndarray, prediction: Any, logs: np.ndarray) -> Predicted:
    rows = np.array([1, 2, 4])
    return Predicted(kind, ("a", "b"), rows, np.zeros(3, np.int16), y, said, prediction, logs, 0.0)


def test_right_and_loss_of_probes() -> None:
    logs = np.log(np.array([[0.9, 0.9], [0.6, 0.4], [0.5, 0.5]]))
    classes = said("classes", np.array([0, 1, 0]), np.array([0, 0, 0]), None, logs)
    np.testing.assert_array_equal(collection.right(classes, 5), [np.nan, 1, 0, np.nan, 1])
    np.testing.assert_allclose(collection.loss(classes, 5), [np.nan, *-np.log([0.9, 0.4]), np.nan, -np.log(0.5)])

    y = np.array([[1, 0], [1, 255], [255, 255]], np.uint8)
    logits = np.log(np.array([[4.0, 1 / 4], [1 / 4, 4], [4, 4]]))
    labels = said("multilabel", y, logits > 0, logits, np.empty((3, 0)))
    np.testing.assert_array_equal(collection.right(labels, 5), [np.nan, 1, 0, np.nan, np.nan])
    np.testing.assert_allclose(collection.loss(labels, 5), [np.nan, -np.log(0.8), -np.log(0.2), np.nan, np.nan])

    number = said("number", np.array([1.0, 2, 3]), np.array([2.0, 0, 3]), None, np.empty((3, 0)))
    assert np.isnan(collection.right(number, 5)).all()
    np.testing.assert_array_equal(collection.loss(number, 5), [np.nan, 1, 2, np.nan, 0])


def test_entropies_are_those_of_the_attention(tmp_path: Path) -> None:
    from htc_probe.analysis.attention import rows as att
    from htc_probe.extract.store import open_run

    path = write_run(tmp_path / "run.h5", 5)
    with open_run(path) as run:
        expected = att.measure(np.stack([run.attention(row) for row in range(5)]), run.shape.roles)["entropy_bits"]
    found = data.entropies(data.key_of(path))
    assert found.shape == (5, L, H)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# ---- the page


def write_said(run: Path, wrong: list[int]) -> None:
    """A probe of `object` from z_voco, wrong about some images, and one of `width`, off by their number."""
    from htc_probe.extract.store import open_run

    with open_run(run) as opened:
        y = opened.labels("object")
        rows = np.flatnonzero(y >= 0)
        flipped = np.isin(rows, wrong)
        chosen = np.where(flipped, 1 - y[rows], y[rows])
        p = np.linspace(0.6, 0.9, len(rows))
        logs = np.log(np.where(np.arange(2) == chosen[:, None], p[:, None], 1 - p[:, None])).astype(np.float32)
        asked = [
            Asked("object", "classes", ("disc", "bar"), rows, np.zeros(len(rows), np.int16), y[rows]),
            Asked("width", "number", (), np.arange(len(y)), np.zeros(len(y), np.int16), opened.labels("width")),
        ]
        number = Gaussian(np.arange(len(y), dtype=np.float32), np.ones(len(y), np.float32))
        path = results.predictions_path(results.default_path(run))
        with Writer(path, run.parent / "keep", {"created": opened.created}, asked, [("z_voco", L)]) as writer:
            writer.add([logs, number])
            writer.finish()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the same images, read by probes that are wrong about others."""
    folder = tmp_path_factory.mktemp("runs")
    write_said(write_run(folder / "one.h5", N), [1, 4, 7])
    write_said(write_run(folder / "other.h5", N), [4, 10])
    return folder


def shown(app: Any) -> list[int]:
    """The rows of the images in the gallery."""
    assert not app.exception and not app.error, app.exception or app.error
    for item in app.get("bidi_component"):
        if item.proto.id.endswith("images_gallery"):
            return [picture["row"] for picture in json.loads(item.proto.json)["pictures"]]
    return []


def count(app: Any) -> str:
    return next(item.value for item in app.markdown if " of " in item.value and item.value.startswith("**"))


def test_images_are_browsed_page_by_page(folder: Path, open_app: Any) -> None:
    app = open_app(folder, page=PAGE, run="one")
    assert shown(app) == list(range(48)) and count(app) == "**60 of 60 images**"
    app.session_state["images_page"] = 2
    app.run()
    assert shown(app) == list(range(48, 60))
    app.text_input(key="id_part").set_value("val-00").run()
    assert shown(app) == list(range(10)), "another list begins at its first page"


def test_filters_of_labels_ids_and_right_and_wrong_narrow_together(folder: Path, open_app: Any) -> None:
    app = open_app(folder, page=PAGE, run="one", labels="object: disc")
    assert shown(app) == list(range(1, 60, 3)) and count(app) == "**20 of 60 images**"
    app.text_input(key="id_part").set_value("AL-00").run()
    assert shown(app) == [1, 4, 7]
    app.multiselect(key="labels").set_value(["object: disc", "object: bar", "width: 0.5 to 15.25 px"]).run()
    assert shown(app) == [1, 2, 4, 5, 7, 8]
    app.segmented_control(key="right").set_value("wrong").run()
    assert shown(app) == [1, 4, 7] and count(app) == "**3 of 60 images**"
    app.selectbox(key="right_of").set_value("other").run()
    assert shown(app) == [1, 7], "wrong here, right there"
    app.segmented_control(key="right_there").set_value("wrong").run()
    assert shown(app) == [4]
    app.segmented_control(key="right").set_value("right").run()
    app.text_input(key="id_part").set_value("").run()
    assert shown(app) == [10]
    app.multiselect(key="labels").set_value(["object: bar"]).run()
    assert shown(app) == [] and "No image matches all filters" in app.info[0].value


def test_images_are_sorted_by_what_is_there(folder: Path, open_app: Any) -> None:
    run = folder / "one.h5"
    query = {"sort": "entropy of attention", "order": "highest first", "layer": "2", "head": "1"}
    app = open_app(folder, page=PAGE, run="one", **query)
    entropy_N = data.entropies(data.key_of(run))[:, 1, 0]
    assert shown(app) == np.argsort(-entropy_N, kind="stable")[:48].tolist()
    app.selectbox(key="sort").set_value("anchor share").run()
    share_N = data.anchor_values(data.key_of(run), 1, 0)
    assert shown(app) == np.argsort(-share_N, kind="stable")[:48].tolist()
    app.selectbox(key="sort").set_value("id").run()
    assert shown(app) == list(range(59, 11, -1))
    app.selectbox(key="sort").set_value("loss").run()
    assert shown(app)[:3] == [7, 4, 1], "wrong, the surest first"
    assert any("40 of these 60 images have a value" in caption.value for caption in app.caption)
    told = [item.value for item in app.code]
    assert f"htc-analyze knockouts --run {run}" in told and f"htc-analyze interchange --run {run}" in told


def test_what_was_analysed_filters_and_sorts(tmp_path: Path, open_app: Any) -> None:
    run = write_run(tmp_path / "run.h5", 12)
    ids = [f"val-{row:03d}" for row in (9, 3, 5)]
    change = np.zeros((3, 2, 2))
    change[:, 1, 0], change[:, :, 1] = [0.5, 0.1, 0.9], np.nan
    group = {"group_names": ["anchors", "patches"], "group_modes": ["mean", "zero"], "group_change": change}
    add_section(run, "knockouts", {"images": ids, **group})
    read = {"task": ["object", "present", "present", "width"], "readout": ["answer"] * 3 + ["probe"]}
    read |= {"kind": ["classes", "multilabel", "multilabel", "number"], "suite": ["semantic"] * 4}
    true = np.array([[0, 1, 0, 1], [1, np.nan, 1, 1], [1, np.nan, np.nan, 1]])
    said = np.array([[0, 1, 1, 1], [0, 0, 1, 1], [1, 0, 1, 1.0]])
    section = {"true": true, "unmixed": said, "swapped": said, "label": [""] * 4, "classes": [""] * 4, **read}
    section = {"images": ids, **{f"read_{name}": value for name, value in section.items()}}
    add_section(run, "interchange", {**section, "partner": np.array([1, 0, -1])})

    app = open_app(run, page=PAGE, sort="effect of knocking out anchors on z_voco", order="highest first")
    assert shown(app)[:4] == [5, 9, 3, 0]
    assert app.selectbox(key="sort").options[-1] == "effect of knocking out anchors on z_voco", "of what is known"
    assert app.selectbox(key="read").options == ["the model's answers"]
    app.segmented_control(key="right").set_value("wrong").run()
    assert shown(app) == [3]
    app.selectbox(key="task").set_value("present").run()
    assert shown(app) == [9], "one label of two is wrong"
    app.segmented_control(key="right").set_value("right").run()
    assert shown(app) == [3], "of labels that are known"


def test_what_is_found_is_selected_on_all_pages(folder: Path, open_app: Any) -> None:
    app = open_app(folder, page=PAGE, run="one", labels="object: disc", id_part="val-00")
    press(app, "Select these 3 images")
    assert app.query_params["selection"] == "2_5_8"
    app.multiselect(key="labels").set_value([]).run()
    assert shown(app) == [1, 4, 7] and count(app) == "**3 of 3 selected images**"
    app.session_state["page"] = "Attention"
    app.run()
    assert any("3 images are selected" in caption.value for caption in app.caption)
    press(app, "Next")
    assert app.number_input(key="image").value == 2


def test_a_selection_that_no_address_holds_is_kept_while_the_dashboard_runs(
    folder: Path, open_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selections, "_READABLE", 1)
    monkeypatch.setattr(selections, "_MOST", 1)
    app = open_app(folder, page=PAGE, run="one", labels="object: disc")
    press(app, "Select these 20 images")
    text = app.query_params["selection"]
    assert selections.is_fingerprint(text)
    again = open_app(folder, page=PAGE, run="one", selection=text)
    assert count(again) == "**20 of 20 selected images**" and shown(again) == list(range(1, 60, 3))


@pytest.mark.parametrize("query", [{"labels": "object: nothing"}, {"sort": "x"}, {"order": "x"}, {"read": "x"}])
def test_an_address_that_asks_for_what_is_not_there_shows_all(folder: Path, open_app: Any, query: Any) -> None:
    assert len(shown(open_app(folder, page=PAGE, run="one", **query))) == 48


# ---- notes and tags


def test_tags_and_notes_are_kept_beside_the_run_and_filter(tmp_path: Path, open_app: Any) -> None:
    run = write_run(tmp_path / "run.h5", 6)
    app = open_app(run, page=PAGE, image="3")
    next(box for box in app.multiselect if box.label == "Tags of this image").set_value(["odd"]).run()
    app.text_area[0].set_value("two *objects*").run()
    place = notes_path(run)
    assert read(place) == {"val-002": Note(("odd",), "two *objects*")}
    tag(place, ["val-004"], add=["odd", "new"])  # by another tab
    app.multiselect(key="tags").set_value(["odd"]).run()
    assert shown(app) == [2, 4]
    app.multiselect(key="tags").set_value(["odd", "(has a note)"]).run()
    assert shown(app) == [2]
    app.multiselect(key="tags").set_value(["odd"]).run()
    app.text_input(key="tag_all").set_value("seen").run()
    press(app, "Add")
    assert {name: note.tags for name, note in read(place).items()} == {
        "val-002": ("odd", "seen"),
        "val-004": ("new", "odd", "seen"),
    }
    press(app, "Remove")
    assert all("seen" not in note.tags for note in read(place).values())
    assert app.get("download_button")


def test_two_tabs_lose_no_notes_of_each_other(tmp_path: Path, open_app: Any) -> None:
    run = write_run(tmp_path / "run.h5", 3)
    one, other = open_app(run, page=PAGE), open_app(run, page=PAGE)
    for app, name in ((one, "first"), (other, "second")):  # neither has seen what the other did
        next(box for box in app.multiselect if box.label == "Tags of this image").set_value([name]).run()
    assert read(notes_path(run))["val-000"].tags == ("first", "second")
    one, other = open_app(run, page=PAGE), open_app(run, page=PAGE)
    for app, text in ((one, "what one saw"), (other, "what the other saw")):
        app.text_area[0].set_value(text).run()
    assert read(notes_path(run))["val-000"].text == "what one saw\n\nwhat the other saw"


def test_damaged_notes_are_told_of_and_stay(tmp_path: Path, open_app: Any) -> None:
    run = write_run(tmp_path / "run.h5", 3)
    notes_path(run).write_text("mine,own\n")
    app = open_app(run, page=PAGE)
    assert not app.exception and any("notes\\.csv" in caption.value for caption in app.caption)
    app.text_area[0].set_value("text").run()
    assert not app.exception and "damaged" in app.error[0].value
    assert notes_path(run).read_text() == "mine,own\n"


def test_notes_that_are_a_link_out_of_the_folder_are_neither_read_nor_written(tmp_path: Path, open_app: Any) -> None:
    run = write_run(tmp_path / "runs" / "run.h5", 3)
    elsewhere = tmp_path / "elsewhere.csv"
    write(elsewhere, "val-000", "secret", "")
    before = elsewhere.read_bytes()
    notes_path(run).symlink_to(elsewhere)
    app = open_app(run, page=PAGE)
    assert app.text_area[0].value == ""
    app.text_area[0].set_value("text").run()
    assert "leads out of the folder" in app.error[0].value.replace("\\", "")
    assert elsewhere.read_bytes() == before and notes_path(run).is_symlink()


# ---- pins


def test_up_to_four_images_are_pinned_and_in_the_address(tmp_path: Path, open_app: Any) -> None:
    app = open_app(write_run(tmp_path / "run.h5", 6), page="Attention")
    for number in (1, 3, 2, 5):
        app.number_input(key="image").set_value(number).run()
        press(app, f"Pin image {number}")
    assert app.query_params["pinned"] == "1-3_5"
    app.number_input(key="image").set_value(6).run()
    press(app, "Pin image 6")
    assert not app.exception and app.query_params["pinned"] == "1-3_5"
    assert "Image 6 is not pinned: 4 images are" in app.warning[0].value
    app.number_input(key="image").set_value(3).run()
    assert not app.warning
    press(app, "Unpin image 3")
    assert app.query_params["pinned"] == "1-2_5"


SIDE_BY_SIDE = {
    "Attention": {"overlay", "anchors"},
    "Codes": {"codes_grid"},
    "Compare": {"compare_overlay", "compare_anchors", "compare_image_heatmap", "compare_histogram"},
}


@pytest.mark.parametrize("page", SIDE_BY_SIDE)
def test_figures_of_one_image_are_seen_for_those_that_are_pinned(folder: Path, open_app: Any, page: str) -> None:
    query = {"page": page, "run": "one", "part": "One image"}
    alone = charts(open_app(folder, image="5", **query))
    app = open_app(folder, image="5", pinned="2_5", beside="true", **query)
    assert not app.exception and not app.error
    both = charts(app)
    for name in SIDE_BY_SIDE[page]:
        assert name not in both and {f"{name}_2", f"{name}_5"} <= set(both)
        assert both[f"{name}_5"] == alone[name]
    assert any(both[f"{name}_5"] != both[f"{name}_2"] for name in SIDE_BY_SIDE[page])
    others = set(alone) - SIDE_BY_SIDE[page]
    assert others <= set(both), "what is of many images is there once"
    app.toggle(key="beside").set_value(False).run()
    assert set(charts(app)) == set(alone)


def test_one_pinned_image_that_was_not_analysed_says_so_for_itself(tmp_path: Path, open_app: Any) -> None:
    run = write_run(tmp_path / "run.h5", 6)
    section = {"images": ["val-001"], "groups": ["a"], "share": np.ones((1, L, S)), "norm": np.ones((1, L, S))}
    add_section(run, "contributions", section)
    app = open_app(run, page="Attention", pinned="2_4_5", beside="true", by="Attention × value")
    assert not app.exception
    assert [button.label for button in app.button].count("Go to image 2, the next in the sample") == 2


@pytest.mark.parametrize("text", ["x", "1-9", "9", "~~0"])
def test_pins_of_an_address_that_cannot_be_followed_are_told_of(tmp_path: Path, open_app: Any, text: str) -> None:
    app = open_app(write_run(tmp_path / "run.h5", 6), page="Attention", pinned=text, beside="true")
    assert not app.exception and app.warning
    press(app, "Unpin all")
    assert "pinned" not in app.query_params and not app.warning


# ---- in a browser


@pytest.mark.slow
def test_a_collection_is_browsed_filtered_selected_pinned_and_noted(folder: Path, chromium: Any) -> None:
    with serving(folder) as address, tab(chromium, address) as shown:
        page = shown.open(page=PAGE, run="one").page
        gallery, sidebar = page.locator(".st-key-images_gallery"), page.locator('[data-testid="stSidebar"]')
        assert "60 of 60 images" in shown.text() and gallery.locator("button").count() == 48
        page.locator(".st-key-images_page button").filter(has_text="2").click()
        shown.settle()
        assert gallery.locator("button").count() == 12 and "images_page=2" in page.url

        page.locator(".st-key-labels input").fill("disc")
        page.get_by_role("option", name="object: disc").click()
        page.keyboard.press("Escape")
        shown.settle()
        assert "20 of 60 images" in shown.text() and "labels=object%3A+disc" in page.url
        page.locator(".st-key-id_part input").fill("val-00")
        page.keyboard.press("Enter")
        shown.settle()
        assert "3 of 60 images" in shown.text() and gallery.locator("button").count() == 3

        gallery.locator("button").nth(1).click()
        page.wait_for_function("location.search.includes('image=5')")
        shown.settle()
        assert "Image 5: val-004" in shown.text() and gallery.locator("button.current").count() == 1
        page.get_by_role("button", name="Select these 3 images").click()
        page.wait_for_function("location.search.includes('selection=2_5_8')")
        shown.settle()
        assert "3 images are selected" in sidebar.inner_text()

        page.get_by_role("tab", name="Attention").click()
        shown.settle()
        assert "3 selected images" in shown.text() and "selection=2_5_8" in page.url
        sidebar.get_by_role("button", name="Next").click()
        page.wait_for_function("location.search.includes('image=8')")
        page.reload()
        page.wait_for_selector('[data-testid="stSidebar"]')
        shown.settle()
        assert "3 images are selected" in sidebar.inner_text(), "what is in the address is there after a reload"

        sidebar.get_by_role("button", name="Pin image 8").click()
        page.wait_for_function("location.search.includes('pinned=8')")
        shown.settle()
        sidebar.get_by_role("button", name="Previous").click()
        page.wait_for_function("location.search.includes('image=5')")
        sidebar.get_by_role("button", name="Pin image 5").click()
        page.wait_for_function("location.search.includes('pinned=5_8')")
        shown.settle()
        sidebar.get_by_text("Pinned side by side").click()
        page.wait_for_function("location.search.includes('beside=true')")
        shown.settle()
        one, other = (shown.values(f"overlay_{number}")["data"][0] for number in (5, 8))
        assert one["z"] != other["z"] and "2 pinned images of 60" in shown.text()
        assert shown.chart("overlay").count() == 0
        shown.check()


@pytest.mark.slow
def test_tags_and_notes_are_kept_in_a_browser(tmp_path: Path, chromium: Any) -> None:
    run = write_run(tmp_path / "run.h5", 12)
    with serving(run) as address, tab(chromium, address) as shown:
        page = shown.open(page=PAGE, image=3).page
        box = page.get_by_label("Tags of this image")
        box.fill("odd")
        box.press("Enter")
        page.wait_for_function("document.body.innerText.includes('odd')")
        shown.settle()
        assert read(notes_path(run)) == {"val-002": Note(("odd",))}
        note = page.get_by_label("Note on this image")
        note.fill("two objects")
        note.press("Control+Enter")
        shown.settle()
        with tab(chromium, address) as other:  # has the notes of the first
            other.open(page=PAGE, image=3, tags="odd")
            assert "1 of 12 images" in other.text()
            assert other.page.get_by_label("Note on this image").input_value() == "two objects"
            with other.page.expect_download() as download:
                other.page.get_by_text("Notes and tags as CSV").click()
            saved = Path(download.value.path()).read_bytes()
            assert download.value.suggested_filename == "run.notes.csv" and saved == notes_path(run).read_bytes()
            other.check()
        assert read(notes_path(run)) == {"val-002": Note(("odd",), "two objects")}
        shown.check()
