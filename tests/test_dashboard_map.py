"""The map page: figures hold the numbers given, neighbours are those of the file, hover, lasso and clicks work."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.browser import serving, tab
from htc_probe.analysis import results
from htc_probe.analysis.sections import Map
from htc_probe.dashboards import data, figures
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Task, open_run
from htc_probe.probes.files import results as probe_results
from htc_probe.probes.files.predictions import Asked, Writer
from htc_probe.probes.scores.metrics import Gaussian
from made.filled import filled, misshape
from made.pages import charts, write_run

N = 40
OF = ["z_voco", "v_d", "v_pooled", "codes"]


def write_map(run: Path, **other: Any) -> Path:
    """The map of N images: even ones left, odd ones right; the nearest of an image are those after it."""
    rng = np.random.default_rng(0)
    at = rng.uniform(-1, 1, (4, N, 2)) + 6.0 * (np.arange(N) % 2)[:, None] * [1, 0]
    near = (np.arange(N)[:, None] + np.arange(1, 11)) % N
    values: dict[str, Any] = {
        "map_of": OF,
        "rows": np.arange(N),
        "pca": at.astype(np.float32),
        "umap": (-at).astype(np.float32),
        "pca_variance": np.full((4, 2), 0.25),
        "kept_chance": 10 / (N - 1),
    }
    for method, kept in (("pca", 0.3), ("umap", 0.6)):
        for end, add in (("", 0), ("_lower", -0.1), ("_upper", 0.05)):
            values[f"{method}_kept{end}"] = np.full(4, kept + add)
    values["nearest_rows"] = np.stack([near, near, (near + 4) % N, near]).astype(np.int32)
    values["nearest_distance"] = np.full((4, N, 10), 0.5, np.float32)
    with open_run(run) as opened:
        of = results.identity(opened)
    out = results.default_path(run)
    results.write(out, "map", filled(Map, values), run=of, settings={}, libraries={}, seconds=0.0)
    misshape(out, "map", other)
    return out


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "scenes-val.h5", N)
    write_map(run)
    return run


# ---- figures


def test_seven_classes_of_many_keep_a_colour() -> None:
    names = [f"class {at}" for at in range(10)]
    at_n = np.repeat(np.arange(10), [1, 5, 5, 5, 2, 5, 5, 5, 5, 3])
    found = figures.Classes(names, np.append(at_n, -1)).told_apart()
    assert list(found.names) == [*(names[at] for at in (1, 2, 3, 5, 6, 7, 8)), "other (3 classes)"]
    new = [7, 0, 1, 2, 7, 3, 4, 5, 6, 7]
    assert found.at_n.tolist() == [*np.array(new)[at_n], -1]
    few = figures.Classes(names[:8], np.arange(8))
    assert few.told_apart() is few


def test_a_point_an_image_with_its_row_colour_and_place() -> None:
    at = np.random.default_rng(0).normal(size=(6, 2))
    rows = np.array([2, 3, 5, 7, 11, 13])
    colour = figures.Classes(["<b>disc</b>", "bar"], np.array([0, 1, -1, 0, 1, 1]))
    figure = figures.latent_map(
        at, rows, colour, title="t", subtitle="s", chosen=np.array([1, 3]), current=4, current_name="image 12"
    )
    *legend, unknown, known, halo, ring = figure.data
    assert [trace.name for trace in legend] == ["&lt;b&gt;disc&lt;/b&gt;", "bar"]
    assert [trace.type for trace in (unknown, known, halo, ring)] == ["scattergl"] * 4
    places = {row: place for place, row in enumerate(rows)}
    for trace, expected in ((unknown, {5}), (known, {2, 3, 7, 11, 13})):
        assert set(trace.customdata) == expected
        found = [places[row] for row in trace.customdata]
        np.testing.assert_allclose(np.stack([trace.x, trace.y], 1), at[found], rtol=1e-6)
        selected = {int(trace.customdata[point]) for point in trace.selectedpoints}
        assert selected == {3, 7} & expected
    assert [known.marker.color[list(known.customdata).index(row)] for row in (2, 3, 7, 11, 13)] == [0, 1, 0, 1, 1]
    assert known.text[list(known.customdata).index(7)] == "&lt;b&gt;disc&lt;/b&gt;"
    assert [known.marker.colorscale[2 * of][1] for of in (0, 1)] == [trace.marker.color for trace in legend]
    assert halo.customdata is None and ring.customdata is None and ring.x[0] == pytest.approx(at[4, 0])
    assert ring.name == "image 12"
    everything = figures.latent_map(at, rows, None, title="t", subtitle="s", chosen=np.array([], int))
    assert everything.data[0].selectedpoints is None and len(everything.data) == 1


def test_one_class_is_drawn_over_the_others() -> None:
    at_n = np.repeat([0, 1], [5, 95])
    figure = figures.latent_map(
        np.zeros((100, 2)), np.arange(100), figures.Classes(["one", "others"], at_n, 0), title="t", subtitle="s"
    )
    assert sorted(figure.data[-1].customdata[-5:]) == [0, 1, 2, 3, 4]


def test_amounts_are_coloured_between_their_percentiles() -> None:
    values = np.append(np.arange(101.0), np.nan)
    figure = figures.latent_map(
        np.zeros((102, 2)), np.arange(102), figures.Amounts(values, "size px"), title="t", subtitle="s"
    )
    unknown, known = figure.data
    assert unknown.customdata.tolist() == [101] and unknown.name == "unknown"
    np.testing.assert_array_equal(known.marker.color, values[known.customdata])
    assert (known.marker.cmin, known.marker.cmax) == (1, 99)
    same = figures.Amounts(np.ones(3), "x")
    constant = figures.latent_map(np.zeros((3, 2)), np.arange(3), same, title="t", subtitle="s")
    assert constant.data[0].marker.cmin < constant.data[0].marker.cmax


def test_bars_of_what_a_map_keeps() -> None:
    kept = {"UMAP": np.array([[0.5, 0.4], [0.4, 0.3], [0.55, 0.45]]), "PCA": np.full((3, 2), 0.1)}
    figure = figures.kept_bars(kept, ["z_voco", "codes"], ["z_voco", "codes"], 0.02, n=30)
    umap, pca = figure.data
    np.testing.assert_allclose(umap.y, [0.5, 0.4])
    np.testing.assert_allclose(umap.error_y.array, [0.05, 0.05])
    np.testing.assert_allclose(umap.error_y.arrayminus, [0.1, 0.1])
    assert (umap.name, pca.name) == ("UMAP", "PCA") and figure.layout.shapes[0].y0 == 0.02
    assert "30 images" in figure.layout.title.subtitle.text


# ---- data


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": np.arange(N) + 1},
        {"rows": np.zeros(N, int)},
        {"umap": np.zeros((4, N - 1, 2))},
        {"map_of": ["z_voco"]},
        {"nearest_rows": np.full((4, N, 10), N)},
        {"nearest_distance": np.zeros((4, N, 9))},
        {"umap_kept": "much"},
    ],
)
def test_a_map_that_does_not_fit_the_run_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    run = write_run(tmp_path / "run.h5", N)
    write_map(run, **wrong)
    header = data.header(data.key_of(run))
    with pytest.raises(UserError, match="does not fit.*htc-analyze map|is damaged: map/.*run htc-analyze again"):
        data.check_map(data.sections(run, header).map, N)


def test_pictures_are_the_thumbnails(run_file: Path) -> None:
    key = data.key_of(run_file)
    first, again = data.pictures(key, [3, 3])
    assert first == again and first.startswith("data:image/jpeg;base64,")
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(first.split(",")[1]))))
    assert picture.shape == (96, 96, 3)
    assert abs(picture.mean() - data.thumbnail(key, 3).mean()) < 3


# ---- the page


def page(open_app: Any, run: Path, **state: Any) -> Any:
    app = open_app(run)
    app.session_state["page"] = "Map"
    for name, value in state.items():
        app.session_state[name] = value
    app.run()
    assert not app.exception and not app.error, app.exception or app.error
    return app


def galleries(app: Any) -> dict[str, list[dict[str, Any]]]:
    """Key of the gallery -> its pictures."""
    found = {
        item.proto.id.rsplit("-", 1)[1]: json.loads(item.proto.json or "null") for item in app.get("bidi_component")
    }
    return {key: value["pictures"] for key, value in found.items() if value and "pictures" in value}


def test_neighbours_of_the_image_under_each_representation(run_file: Path, open_app: Any) -> None:
    app = page(open_app, run_file, image=4)
    found = galleries(app)
    near = [(3 + step) % N for step in range(1, 11)]
    assert [item["row"] for item in found["map_near_0"]] == near
    assert [item["row"] for item in found["map_near_2"]] == [row + 4 for row in near]
    both = {row for row in near if row - 4 in near}
    assert {item["row"] for item in found["map_near_0"] if item["marked"]} == both and len(both) == 6
    assert not any(item["marked"] for item in found["map_near_1"])
    assert found["map_near_0"][0]["lines"] == ["disc", "0.50"] and "val-004" in found["map_near_0"][0]["name"]
    words = " ".join(item.value for item in app.markdown)
    assert "6 of the 10" in words and "same object: 3 of 6, by chance 3.0" not in words
    title = charts(app)["map"]["layout"]["title"]
    assert "UMAP of z_voco, coloured by object" in title["text"]
    assert "60.0% [50.0%, 65.0%]" in title["subtitle"]["text"]


def test_what_is_mapped_how_and_its_colours(run_file: Path, open_app: Any) -> None:
    app = page(open_app, run_file, map_by="PCA", map_of="v_pooled", map_colour="width")
    figure = charts(app)["map"]
    assert "PCA of pooled V, coloured by width" in figure["layout"]["title"]["text"]
    assert "25.0% of the variance" in figure["layout"]["xaxis"]["title"]["text"]
    app.selectbox(key="map_colour").set_value("present").run()
    app.selectbox(key="map_class").set_value("bar").run()
    assert not app.exception
    assert [trace["name"] for trace in charts(app)["map"]["data"][:-3]] == ["bar", "no bar"]
    app.selectbox(key="map_colour").set_value("attention on the anchors").run()
    assert not app.exception and "attention on the anchors, mean" in charts(app)["map"]["layout"]["title"]["text"]
    app.selectbox(key="map_colour").set_value("one colour").run()
    assert not app.exception and charts(app)["map"]["layout"]["title"]["text"] == "PCA of pooled V"


def test_how_sure_a_probe_is(tmp_path: Path, open_app: Any) -> None:
    run = write_run(tmp_path / "run.h5", N)
    write_map(run)
    rows = np.flatnonzero(np.arange(N) % 3)  # the others have no label
    y = (rows % 3 - 1).astype(np.int32)
    sure = np.linspace(0.1, 0.9, len(rows))
    logs = np.log(np.where(np.arange(2) == y[:, None], sure[:, None], 1 - sure[:, None])).astype(np.float32)
    whole = np.arange(N)
    asked = [
        Asked("object", "classes", ("disc", "bar"), rows, np.zeros(len(rows), np.int16), y),
        Asked("present", "multilabel", ("disc", "bar"), whole, np.zeros(N), np.tile([1, 0], (N, 1)).astype(np.uint8)),
        Asked("width", "number", (), whole, np.zeros(N), whole + 0.5),
    ]
    logits = np.tile(np.log([4, 4]), (N, 1)).astype(np.float32)
    number = Gaussian((whole + 2.5).astype(np.float32), np.ones(N, np.float32))
    with open_run(run) as opened:
        path = probe_results.predictions_path(probe_results.default_path(run))
        with Writer(path, tmp_path / "keep", {"created": opened.created}, asked, [("z_voco", 3)]) as writer:
            writer.add([logs, logits, number])
            writer.finish()

    app = page(open_app, run, map_score="probe")
    values = shown(app, "probability that a probe of z_voco gives to the true object")
    assert sorted(values) == list(rows)
    np.testing.assert_allclose([values[row] for row in rows], sure, atol=2e-3)
    app.selectbox(key="map_colour").set_value("present").run()
    assert set(np.round([*shown(app, "true present: disc").values()], 3)) == {0.8}
    app.selectbox(key="map_class").set_value("bar").run()
    assert set(np.round([*shown(app, "true present: bar").values()], 3)) == {0.2}
    app.selectbox(key="map_colour").set_value("width").run()
    assert set(shown(app, "error of a probe of z_voco for width").values()) == {2.0}
    app.segmented_control(key="map_of").set_value("codes").run()
    assert not app.exception and "coloured by width" in charts(app)["map"]["layout"]["title"]["text"]


def shown(app: Any, title: str) -> dict[int, float]:
    """The amount of each row on the map."""
    assert not app.exception
    figure = charts(app)["map"]
    assert title in figure["layout"]["title"]["text"].replace("<br>", " ")
    (trace,) = [trace for trace in figure["data"] if trace["name"] == "images"]
    rows, values = (
        np.frombuffer(base64.b64decode(packed["bdata"]), packed["dtype"])
        for packed in (trace["customdata"], trace["marker"]["color"])
    )
    return dict(zip(rows.tolist(), values.tolist(), strict=True))


def test_the_selection_is_shown_page_by_page(run_file: Path, open_app: Any) -> None:
    app = page(open_app, run_file)
    app.query_params["selection"] = f"1-{N}"
    app.run()
    assert [item["row"] for item in galleries(app)["map_chosen"]] == list(range(24))
    app.session_state["map_page"] = 2
    app.run()
    assert [item["row"] for item in galleries(app)["map_chosen"]] == list(range(24, N))
    app.query_params["selection"] = "6_8"
    app.run()
    assert not app.exception and [item["row"] for item in galleries(app)["map_chosen"]] == [5, 7]
    assert sum(len(trace.get("selectedpoints", [])) for trace in charts(app)["map"]["data"][:-2]) == 2
    app.button(key="map_clear").click().run()
    assert "map_chosen" not in galleries(app)


def test_without_a_map_the_page_says_what_makes_it(tmp_path: Path, open_app: Any) -> None:
    run = write_run(tmp_path / "run.h5", N)
    app = page(open_app, run)
    assert "no map" in app.info[0].value and app.code[0].value == f"htc-analyze map --run {run}"
    write_map(run)
    app.run()
    assert "map" in charts(app) and galleries(app)


def test_images_that_were_not_drawn_for_the_map(tmp_path: Path, open_app: Any) -> None:
    run = write_run(tmp_path / "run.h5", N + 5)
    write_map(run)
    app = page(open_app, run, image=N + 3)
    assert "is not on the map, which has 40 of 45" in app.info[0].value
    assert "40 of 45 images" in charts(app)["map"]["layout"]["title"]["subtitle"]["text"]


def test_a_run_without_labels_has_a_map(tmp_path: Path, open_app: Any) -> None:
    run = write_run(tmp_path / "run.h5", N, tasks=())
    write_map(run)
    app = page(open_app, run, map_colour="a task of another run")
    assert "attention on the anchors" in charts(app)["map"]["layout"]["title"]["text"]


def test_names_with_markup_are_text(tmp_path: Path, open_app: Any) -> None:
    run = write_run(tmp_path / "run.h5", N, tasks=(Task("object", "semantic", "classes", ("<img src=x>", "%{x} $x$")),))
    write_map(run)
    app = page(open_app, run)
    assert "<img" not in json.dumps(charts(app)["map"])
    app.selectbox(key="map_class").set_value("<img src=x>").run()
    figure = charts(app)["map"]
    assert "<img" not in json.dumps(figure) and "&lt;img src=x&gt;" in figure["layout"]["title"]["text"]


# ---- in the browser


@pytest.mark.slow
def test_hover_click_lasso_and_gallery(run_file: Path, chromium: Any) -> None:
    with serving(run_file) as address, tab(chromium, address, height=1000) as shown:
        shown.open(page="Map", image=2, map_by="PCA")
        page, chart = shown.page, shown.chart("map")
        points = {
            row: (x, y)
            for trace in chart.evaluate(
                """plot => plot._fullData.filter(trace => trace.customdata).map(
                    trace => [...trace.customdata].map((row, at) => [row, trace.x[at], trace.y[at]]))"""
            )
            for row, x, y in trace
        }
        assert sorted(points) == list(range(N))

        picture = page.locator(".st-key-map_hover .picture")

        def hover(row: int) -> None:
            x, y = shown.place("map", *points[row])
            page.mouse.move(x + 3, y)
            page.mouse.move(x, y)
            picture.wait_for(state="visible", timeout=5000)
            assert f"val-{row:03d}" in picture.inner_text()
            assert picture.locator("img").get_attribute("src").startswith("data:image/jpeg")

        hover(11)
        page.mouse.move(*shown.place("map", 3.0, 0.0))
        picture.wait_for(state="hidden", timeout=5000)
        hover(11)  # not asked for again

        def wait(what: str) -> None:
            page.wait_for_function(what, timeout=20_000)
            shown.settle()

        page.mouse.click(*shown.place("map", *points[11]))
        wait("location.search.includes('image=12')")
        assert picture.is_hidden()
        hover(20)  # the chart was drawn anew
        assert chart.evaluate("plot => plot._ev.listenerCount('plotly_hover')") == 1

        page.mouse.move(*shown.place("map", -1.3, -1.3))
        page.mouse.down()
        for corner in ((1.3, -1.3), (1.3, 1.3), (-1.3, 1.3), (-1.3, -1.3)):
            page.mouse.move(*shown.place("map", *corner), steps=2)
        page.mouse.up()
        sidebar = """document.querySelector('[data-testid="stSidebar"]').innerText"""
        wait(f"{sidebar}.includes('20 images are selected')")
        selected = chart.evaluate("plot => plot._fullData.slice(0, -2).map(trace => trace.selectedpoints?.length ?? 0)")
        assert sum(selected) == 20

        with page.expect_download() as download:
            page.locator('.st-key-map [data-title="Download as PNG"]').click()
        assert download.value.suggested_filename == "map.png"
        page.locator(".st-key-map_chosen button").nth(3).click()
        wait("location.search.includes('image=7')")
        page.mouse.move(*shown.place("map", 3.0, 0.5))
        page.mouse.dblclick(*shown.place("map", 3.0, 0.0))
        wait(f"!{sidebar}.includes('selected: pages')")
        shown.check()
