"""The page Attention: its arithmetic, its figures, what it reads, and what a user does there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import htc_probe.analysis.attention.rows
from benchmarks.browser import serving, tab
from htc_probe.analysis.attention import rows as att
from htc_probe.dashboards import data, figures
from htc_probe.extract.store import open_run
from made.pages import COLS, ROLES, ROWS, A, G, H, L, S, add_section, charts, press, random_rows, tables, write_run

PAGE = "Attention"
MAP = slice(1 + A, 1 + A + G * G)
"""The patches among the keys."""


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run.h5", 20)


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 images with the sections `attention`, and `contributions` of images 3 and 5."""
    path = write_run(tmp_path_factory.mktemp("analysed") / "run.h5", 20)
    with open_run(path) as run:
        add_section(path, "attention", htc_probe.analysis.attention.rows.analyse(run))
        share = np.linspace(-1, 1, 2 * L * S, dtype=np.float32).reshape(2, L, S)
        add_section(path, "contributions", {"images": [run.ids()[2], run.ids()[4]], "share": share})
    return path


def read(path: Path) -> np.ndarray:
    """(N, L, H, S) of all images."""
    with open_run(path) as run:
        return np.stack([run.attention(image) for image in range(len(run))])


# ---- arithmetic


def test_shares_of_all_roles_sum_to_one() -> None:
    mass = att.role_mass(random_rows(2), ROLES)
    assert list(mass) == ["prefix", "anchor", "patch", "voco"]
    np.testing.assert_allclose(sum(mass.values()), np.ones((2, L, H)), rtol=1e-5)


def test_even_attention_gives_every_quantity_its_even_value() -> None:
    found = att.measure(np.full((2, L, H, S), 1 / S, dtype=np.float32), ROLES)
    for quantity in att.quantities(ROLES).values():
        np.testing.assert_allclose(quantity.of(found), np.full((2, L, H), quantity.uniform), rtol=1e-5)
    assert att.uniform_share(("anchor",) * 4 + ("patch",) * 576 + ("voco",)) == 4 / 580


def test_attention_on_one_anchor_alone_is_the_most_there_is() -> None:
    row_S = np.zeros(S, dtype=np.float32)
    row_S[ROLES.index("anchor") + 1] = 1
    found, named = att.measure(row_S, ROLES), att.quantities(ROLES)
    values = {name: float(quantity.of(found)) for name, quantity in named.items()}
    assert values == {name: 0.0 for name in named} | {
        name: pytest.approx(named[name].most) for name in ("Anchors", "Anchors, lift", "Anchor 2")
    }


def test_lift_without_any_hybrid_attention_is_unknown() -> None:
    assert np.isnan(att.measure(np.eye(S, dtype=np.float32)[-1], ROLES)["anchor_lift"])


def test_a_model_without_anchors_has_the_entropy_alone() -> None:
    roles = ("patch",) * 4 + ("voco",)
    assert list(att.quantities(roles)) == ["Entropy"]
    assert set(att.measure(np.full(5, 0.2), roles)) == {"patch_mass", "voco_mass", "entropy_bits"}


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


def test_first_tokens_are_anchors_then_patches_wherever_they_stand() -> None:
    np.testing.assert_array_equal(att.first_hybrid(ROLES, 6), [1, 2, 3, 4, 5, 6])
    names = att.token_names(ROLES, ROWS, COLS, 6)
    assert names == ["anchor 1", "anchor 2", "anchor 3", "anchor 4", "patch 1,1", "patch 1,2"]


def test_evenly_spaced_rows_hold_the_first_and_the_last() -> None:
    np.testing.assert_array_equal(att.evenly(range(10), 4), [0, 3, 6, 9])
    np.testing.assert_array_equal(att.evenly([3, 5], 4), [3, 5])
    assert att.below(np.array([1.0, 2.0, 2.0, 3.0]), 2.0) == 0.5


# ---- figures


def test_heatmap_holds_the_masses_and_a_fixed_scale() -> None:
    mass_LH = random_rows(1)[0, :, :, :A].sum(-1)
    (heat,) = figures.head_heatmap(mass_LH, att.quantities(ROLES)["Anchors"]).data
    np.testing.assert_allclose(2.0**heat.z * A / S, mass_LH.T, rtol=1e-5)
    np.testing.assert_allclose(heat.zmax, np.log2(S / A))
    assert heat.zmin == -heat.zmax
    assert (heat.x[2], heat.y[0]) == (3, 1)  # layer 3, head 1
    np.testing.assert_allclose(heat.customdata[0, 2], [mass_LH[2, 0], mass_LH[2, 0] * S / A], rtol=1e-5)


def test_heatmap_of_even_attention_is_the_middle_colour_and_zero_mass_the_lowest() -> None:
    heat = figures.head_heatmap(np.array([[A / S, 0.0]]), att.quantities(ROLES)["Anchors"]).data[0]
    np.testing.assert_allclose(heat.z[:, 0], [0.0, heat.zmin], atol=1e-12)


def test_heatmap_of_entropy_runs_from_nothing_to_all_its_bits() -> None:
    heat = figures.head_heatmap(np.full((L, H), 1.5), att.quantities(ROLES)["Entropy"]).data[0]
    assert (heat.zmin, heat.zmax) == (0, np.log2(S)) and (heat.z == 1.5).all()


def test_heatmap_outlines_the_selected_layer_and_head_and_tells_the_interval() -> None:
    value_LH = np.full((L, H), 0.1)
    spread = "95% interval of the mean", att.Band(value_LH - 0.01, value_LH + 0.01)
    figure = figures.head_heatmap(value_LH, att.quantities(ROLES)["Anchors"], n=7, spread=spread, mark=(1, None))
    (shape,) = figure.layout.shapes
    assert (shape.x0, shape.x1, shape.y0, shape.y1) == (1.5, 2.5, 0.5, H + 0.5)
    np.testing.assert_allclose(figure.data[0].customdata[0, 0, 2:], [0.09, 0.11], rtol=1e-5)
    assert "95% interval of the mean" in figure.data[0].hovertemplate
    assert "mean of 7 images" in figure.layout.title.subtitle.text


@pytest.mark.parametrize("log", [False, True])
def test_even_attention_lies_on_the_dashed_line(log: bool) -> None:
    curves = {"anchor": figures.Curve(np.full(L, 0.1), 0.1), "patch": figures.Curve(np.full(L, 0.8), 0.8)}
    figure = figures.share_curve(curves, selection="head 1", log=log)
    for at, share in ((0, 0.1), (2, 0.8)):
        curve, even = figure.data[at : at + 2]
        np.testing.assert_allclose([*curve.y, *even.y], share)
        np.testing.assert_allclose(curve.customdata[:, 0], 1)
        np.testing.assert_array_equal(curve.x, [1, 2, 3])
    assert "1 image" in figure.layout.title.subtitle.text


def test_curve_says_of_how_many_images_line_and_band_are() -> None:
    share_NL = np.linspace(0.1, 0.9, 11)[:, None] * np.ones(L)
    curves = {
        "anchor": figures.Curve(share_NL.mean(0), 0.1, 900, att.band(share_NL), 900),
        "patch": figures.Curve(share_NL.mean(0), 0.8, 900, att.band(share_NL), 11),
    }
    figure = figures.share_curve(curves, selection="head 1")
    np.testing.assert_allclose(figure.data[0].y, [0.82] * L + [0.18] * L)
    words = figure.layout.title.subtitle.text
    assert "anchors: mean of 900 images, shaded 10 to 90% of 900" in words
    assert "patches: mean of 900 images, shaded 10 to 90% of 11" in words


def test_bars_hold_what_they_are_given() -> None:
    mass = {"anchor": np.array([0.2, 0.3]), "patch": np.array([0.8, 0.7])}
    figure = figures.role_bars(mass, selection="mean over heads")
    np.testing.assert_allclose(sum(np.asarray(bar.y) for bar in figure.data), [1, 1])
    bars, line = figures.anchor_bars(np.array([-0.1, 0.4]), 0.05, selection="layer 1, head 1").data
    np.testing.assert_allclose(bars.y, [-0.1, 0.4])
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


def test_an_overlay_with_signs_has_zero_in_the_middle() -> None:
    heat = figures.patch_overlay(np.array([[0.5, -0.1]]), 0.25, selection="layer 1", signed=True).data[0]
    assert (heat.zmin, heat.zmax) == (-2, 2)


def test_first_tokens_outline_the_image_and_part_the_anchors() -> None:
    share_NF = np.arange(12, dtype=np.float32).reshape(2, 6) / 66
    names = att.token_names(ROLES, ROWS, COLS, 6)
    figure = figures.first_tokens(share_NF, names, [8, 9], ["<b>", "c"], 1 / S, selection="layer 1", anchors=A, shown=9)
    np.testing.assert_allclose(figure.data[0].z, share_NF * S)
    line, outline = figure.layout.shapes
    assert line.x0 == A + 0.5 and (outline.y0, outline.y1) == (1.5, 2.5)
    assert figure.data[0].customdata[0][0][3] == "&lt;b&gt;"
    assert list(figure.layout.xaxis.ticktext) == ["A1", "A2", "A3", "A4", "1,1", "1,2"]


def test_distribution_counts_every_image_once_and_marks_one() -> None:
    values = np.random.default_rng(0).random(100)
    bars, even, here = figures.distribution(values, 0.25, 0.5, selection="layer 1", image=7).data
    assert bars.y.sum() == 100
    assert list(here.x) == [0.25, 0.25] and list(even.x) == [0.5, 0.5]
    inside = [((values >= low) & (values <= high)).sum() for low, high in bars.customdata]
    np.testing.assert_array_equal(inside, bars.y)


@pytest.mark.parametrize(("ratio", "words"), [(1.0, "1×"), (4.0, "4×"), (1 / 8, "1/8×"), (0.3, "0.3×")])
def test_ratios_in_words(ratio: float, words: str) -> None:
    assert figures.times(ratio) == words


# ---- data


@pytest.mark.parametrize("rows", [range(20), [1, 4, 17]])
def test_average_equals_the_mean_over_these_images(run_file: Path, rows: Any) -> None:
    mean, attention = data.average(data.key_of(run_file), rows), read(run_file)[list(rows)]
    np.testing.assert_allclose(mean.attention, attention.mean(0), atol=1e-6)
    assert mean.n == len(rows) and mean.values["anchor_mass_each"].shape == (len(rows), L, H, A)
    np.testing.assert_allclose(mean.values["anchor_mass"], attention[..., 1 : 1 + A].sum(-1), atol=2e-3)


def test_average_reads_no_more_than_allowed(run_file: Path) -> None:
    mean = data.average(data.key_of(run_file), range(20), most_bytes=2 * 4 * L * H * S)
    np.testing.assert_allclose(mean.attention, read(run_file)[[0, 19]].mean(0), atol=1e-6)
    assert mean.n == 2


# ---- the page


def test_it_shows_the_run_and_the_image(run_file: Path, open_app: Any) -> None:
    app = open_app(run_file, page=PAGE)
    assert not app.exception and not app.error
    before, attention = charts(app), read(run_file)
    assert set(before) == {"heads", "curve", "roles", "distribution", "mean_map", "first_tokens", "overlay", "anchors"}
    assert "mean of 20 images" in subtitle(before["heads"]) and "mean of 20 images" in subtitle(before["mean_map"])
    assert app.code[0].value == f"htc-analyze attention --run {run_file}"

    app.number_input(key="image").set_value(3).run()
    after = charts(app)
    same = {"heads", "curve", "roles", "mean_map"}
    assert {name for name in before if before[name]["data"] == after[name]["data"]} == same | {"first_tokens"}
    bars = after["anchors"]["data"][0]
    np.testing.assert_allclose(array(bars["y"]), attention[2, ..., 1 : 1 + A].mean((0, 1)), rtol=1e-5)
    assert any("bar" in table for table in tables(app))


def subtitle(chart: dict[str, Any]) -> str:
    return chart["layout"]["title"]["subtitle"]["text"]


def array(value: Any) -> np.ndarray:
    """What plotly sends as base64, or as a list."""
    if not isinstance(value, dict):
        return np.asarray(value)
    import base64

    found = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"])
    return found.reshape([int(size) for size in str(value.get("shape", len(found))).split(",")])


def test_layer_and_head_select_what_is_drawn(run_file: Path, open_app: Any) -> None:
    app = open_app(run_file, page=PAGE, layer="2", head="1")
    after, attention = charts(app), read(run_file)
    for name in ("overlay", "anchors", "mean_map", "distribution", "first_tokens"):
        assert "layer 2, head 1" in subtitle(after[name])
    assert "head 1" in subtitle(after["curve"])
    mean = attention[:, 1, 0, MAP].mean(0).reshape(G, G)
    np.testing.assert_allclose(array(after["mean_map"]["data"][0]["z"]), mean * S, rtol=1e-4)
    first = attention[:16, 1, 0, 1:17]
    np.testing.assert_allclose(array(after["first_tokens"]["data"][0]["z"]), first * S, rtol=1e-4)
    assert f"In {(first.argmax(1) < A).sum()} of these 16 images" in " ".join(one.value for one in app.caption)


@pytest.mark.parametrize(("file", "words"), [("run_file", figures.BAND), ("analysed", "95% interval of the mean")])
def test_the_heat_map_is_of_the_run_or_of_the_image(
    file: str, words: str, open_app: Any, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(file)
    app, values = open_app(path, page=PAGE, image="5"), att.measure(read(path), ROLES)

    def holds(value_NLH: np.ndarray, *, interval: bool) -> None:
        assert not app.exception
        (heat,) = charts(app)["heads"]["data"]
        np.testing.assert_allclose(array(heat["customdata"])[..., 0], value_NLH.mean(0).T, atol=2e-3)
        assert (words in heat["hovertemplate"]) == interval

    for name, quantity in att.quantities(ROLES).items():
        if name not in ("Anchor 1", "Anchor 3", "Anchor 4"):
            app.segmented_control(key="quantity").set_value(name).run()
            holds(quantity.of(values), interval=True)
    app.segmented_control(key="of").set_value("This image").run()
    holds(values["entropy_bits"][4:5], interval=False)
    app.segmented_control(key="quantity").set_value("Anchors, lift").run()
    holds(values["anchor_lift"][4:5], interval=False)


def test_the_images_of_figure_3_are_the_users_choice(run_file: Path, open_app: Any) -> None:
    def shown(app: Any) -> list[str]:
        return charts(app)["first_tokens"]["layout"]["yaxis"]["ticktext"]

    app = open_app(run_file, page=PAGE, image="3")
    app.segmented_control(key="figure3").set_value("From this one on").run()
    assert shown(app) == [str(number) for number in range(3, 19)]
    app.number_input(key="image").set_value(20).run()
    assert shown(app) == [str(number) for number in range(5, 21)]
    app.query_params["selection"] = "2_8"
    app.run()
    app.segmented_control(key="figure3").set_value("Selected").run()
    assert shown(app) == ["2", "8"]
    press(app, "Clear selection")
    assert not app.exception and shown(app) == [str(number) for number in range(1, 17)]


def test_averages_are_over_the_selected_images(analysed: Path, open_app: Any) -> None:
    app = open_app(analysed, page=PAGE, layer="1", head="2")
    app.query_params["selection"] = "3_4_12"
    app.run()
    assert not app.exception
    found, attention = charts(app), read(analysed)[[2, 3, 11]]
    for name in ("heads", "curve", "roles", "mean_map"):
        assert "mean of 3 images" in subtitle(found[name])
    mean = attention[:, 0, 1, MAP].mean(0).reshape(G, G)
    np.testing.assert_allclose(array(found["mean_map"]["data"][0]["z"]), mean * S, rtol=1e-4)


def test_value_weighted_where_it_was_measured(run_file: Path, analysed: Path, open_app: Any) -> None:
    app = open_app(run_file, page=PAGE, by="Attention × value")
    assert any("htc-analyze contributions" in code.value for code in app.code)
    plain = charts(app)["overlay"]
    app = open_app(analysed, page=PAGE, by="Attention × value", layer="2")
    assert any("sample of 2 images" in info.value for info in app.info)
    assert "of all attention" in charts(app)["overlay"]["data"][0]["hovertemplate"] and plain["data"]
    press(app, "Go to image 3, the next in the sample")
    overlay = charts(app)["overlay"]
    share = np.linspace(-1, 1, 2 * L * S).reshape(2, L, S)[0, 1]
    np.testing.assert_allclose(array(overlay["data"][0]["z"]).ravel(), share[MAP] * S, rtol=1e-4)
    assert "layer 2, all heads" in subtitle(overlay)
    np.testing.assert_allclose(array(charts(app)["anchors"]["data"][0]["y"]), share[1 : 1 + A], rtol=1e-4)


def test_without_anchors_the_rest_is_shown(tmp_path: Path, open_app: Any) -> None:
    app = open_app(write_run(tmp_path / "causal.h5", 20, anchors=0), page=PAGE)
    assert not app.exception and "no anchors" in app.info[0].value
    found = charts(app)
    assert set(found) == {"heads", "curve", "roles", "mean_map", "first_tokens", "overlay"}
    assert app.segmented_control(key="quantity").options == ["Entropy"]
    assert found["first_tokens"]["layout"]["xaxis"]["ticktext"][0] == "1,1"
    assert "the patches get" in found["curve"]["layout"]["title"]["text"]


def test_a_large_run_says_how_many_images_were_read(
    tmp_path: Path, open_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file = write_run(tmp_path / "run.h5", 20)
    monkeypatch.setattr(data.average, "__defaults__", (4 * L * H * S * 5,))
    app = open_app(run_file, page=PAGE)
    assert any("5 of the 20 images" in info.value for info in app.info)
    assert "anchors: mean of 20 images" in subtitle(charts(app)["curve"])
    assert "patches: mean of 5 images" in subtitle(charts(app)["curve"])


# ---- in the browser


@pytest.mark.slow
def test_clicks_select_everywhere(analysed: Path, chromium: Any) -> None:
    with serving(analysed) as address, tab(chromium, address) as here:

        def says(key: str, words: str) -> None:
            here.page.locator(f".st-key-{key}").scroll_into_view_if_needed()
            here.page.wait_for_function(
                """([key, words]) => [...document.querySelectorAll(`.st-key-${key} .js-plotly-plot`)].every(
                    plot => plot.layout?.title.subtitle.text.includes(words))""",
                arg=[key, words],
            )
            here.settle()

        here.open(page=PAGE, image=2)
        here.click_at("heads", 2.7, 2.3)  # anywhere in the cell
        says("overlay", "layer 3, head 2")
        assert "layer=3" in here.page.url and "head=2" in here.page.url
        here.click_at("heads", 3, 2)
        says("overlay", "mean over layers and heads")

        here.click_at("first_tokens", 2, 6)
        says("distribution", "image 6:")
        assert "image=6" in here.page.url and "Image 6 of 20" in here.text()
        here.page.locator("body").press("n")
        says("distribution", "image 7:")

        bars = here.values("distribution")["data"][0]
        middles, counts = array(bars["x"]), array(bars["y"])
        most = int(np.argmax(counts))
        here.click_at("distribution", middles[most], counts[most] / 2)
        says("mean_map", f"mean of {counts[most]} images")
        assert f"{counts[most]} images are selected" in here.page.locator('[data-testid="stSidebar"]').inner_text()

        here.chart("overlay").hover()
        with here.page.expect_download() as download:
            here.page.locator('.st-key-overlay [data-title="Download as PNG"]').click()
        assert download.value.suggested_filename == "overlay.png"
        here.check()
