"""Charts: figures as plotly makes them, kept, drawn over one another, and what clicks in them tell."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from benchmarks.browser import serving, tab
from htc_probe.analysis.attention.rows import analyse
from htc_probe.dashboards import charts, data, server
from htc_probe.dashboards.parts import chart
from htc_probe.extract.store import open_run
from htc_probe.probes.show.style import across, panels, titled
from made.pages import A, G, H, L, S, add_section, write_run

N = 12


def test_a_layout_given_at_once_is_what_plotly_makes_of_its_parts() -> None:
    traces = [go.Scatter(x=[1, 2], y=np.array([3.0, 4.0]), line={"color": "red"})]
    line = across(y=2.0, line={"color": "red"})
    parts = {"margin": {"l": 1}, "legend": {"x": 1}, "barmode": "group", "xaxis": {"title": "x", "range": [0, 1]}}
    stepwise = titled(traces, "t", "s", 300)
    stepwise.update_layout(margin={"l": 1}, legend={"x": 1}, barmode="group").update_xaxes(title="x", range=[0, 1])
    stepwise.add_hline(y=2.0, line={"color": "red"})
    assert json.loads(titled(traces, "t", "s", 300, **parts, shapes=[line]).to_json()) == json.loads(stepwise.to_json())


@pytest.mark.parametrize(("down", "beside", "gap_y"), [(1, 3, 0.0), (3, 2, 0.1)])
def test_panels_are_where_plotly_puts_them(down: int, beside: int, gap_y: float) -> None:
    places, titles = panels(down, beside, 0.05, gap_y), [f"panel {number}" for number in range(down * beside)]
    ours: dict[str, Any] = {"annotations": [panel.head(title) for panel, title in zip(places, titles, strict=True)]}
    for panel in places:
        ours |= panel.axes({"showgrid": False}, {"title": f"y of {panel.number}"})
    gaps = {"horizontal_spacing": 0.05, "vertical_spacing": gap_y}
    theirs = make_subplots(down, beside, subplot_titles=titles, **gaps).update_xaxes(showgrid=False)
    for number in range(down * beside):
        theirs.update_yaxes(title=f"y of {number}", row=number // beside + 1, col=number % beside + 1)
    layout = go.Figure(layout=ours).layout
    for panel in places:
        for name in (f"xaxis{panel.name}", f"yaxis{panel.name}"):
            mine, plotlys = layout[name].to_plotly_json(), theirs.layout[name].to_plotly_json()
            assert np.allclose(mine.pop("domain"), plotlys.pop("domain")) and mine == plotlys
    for mine, plotlys in zip(layout.annotations, theirs.layout.annotations, strict=True):
        assert np.allclose([mine.x, mine.y], [plotlys.x, plotlys.y])
        assert mine.update(x=0, y=0) == plotlys.update(x=0, y=0)


def test_a_figure_is_made_once_for_the_same_arguments_and_files(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.h5", N)
    one, again = (chart.made(charts.attention.roles, run) for _ in range(2))
    assert one is again and one.words.startswith("What does the token attend to?") and '"template"' not in one.figure
    assert chart.made(charts.attention.roles, run, head=1).figure != one.figure
    assert chart.drawable(charts.attention.overlay, run, image=1, weighted=True) is None  # was not analysed
    with open_run(run) as opened:
        add_section(run, "attention", analyse(opened))
    assert chart.made(charts.attention.roles, run) is not one


@pytest.mark.parametrize(
    ("error", "words"), [("UserError", "no <b>such</b> image"), ("KeyError", "A part of the page")]
)
def test_what_fails_in_a_click_is_told(error: str, words: str) -> None:
    from streamlit.testing.v1 import AppTest

    def page(error: str) -> None:
        from htc_probe.dashboards import server
        from htc_probe.extract.errors import UserError

        assert server._tell({"UserError": UserError, "KeyError": KeyError}[error]("no <b>such</b> image"))

    app = AppTest.from_function(page, args=(error,)).run()
    assert not app.exception and app.error[0].value.replace("\\", "").startswith(words)
    assert [button.label for button in app.button] == ["Look again"]
    assert server._PLOTLY.is_file()


@pytest.mark.slow
def test_charts_stay_and_only_those_that_differ_and_are_in_sight_are_drawn(tmp_path: Path, chromium: Any) -> None:
    run = write_run(tmp_path / "run.h5", N)
    with serving(run) as address, tab(chromium, address, height=900) as shown:
        page = shown.open(page="Attention").page
        drawn = page.locator("[class*=st-key-] .js-plotly-plot").count()
        assert shown.chart("anchors").count() == 0 and 0 < drawn < page.locator(".chart").count()  # it is below
        page.evaluate("""() => { window.draws = {};
            for (const plot of document.querySelectorAll('.js-plotly-plot')) {
                const key = plot.closest('[class*=st-key-]').className.match(/st-key-(\\S+)/)[1];
                plot.on('plotly_afterplot', () => { draws[key] = (draws[key] ?? 0) + 1; });
            } }""")
        page.keyboard.press("n")
        page.wait_for_function("location.search.includes('image=2')")
        shown.settle()
        assert page.evaluate("draws") == {"distribution": 1}  # of those in sight, the one that shows the image

        plots = page.locator(".js-plotly-plot").count()
        for image, draws in ((None, 1), (3, 2)):  # a page that is opened again has its charts as they were
            page.get_by_role("tab", name="Probes", exact=True).click()
            shown.settle()
            assert shown.chart("distribution").count() == 0
            if image is not None:
                page.keyboard.press("n")
                page.wait_for_function(f"location.search.includes('image={image}')")
                shown.settle()
            page.get_by_role("tab", name="Attention", exact=True).click()
            shown.settle()
            assert page.evaluate("draws") == {"distribution": draws}
            assert page.locator(".js-plotly-plot").count() == plots
        assert "image 3" in shown.values("distribution")["layout"]["title"]["subtitle"]["text"]

        page.locator(".st-key-anchors").scroll_into_view_if_needed()
        shown.settle()
        assert shown.chart("anchors").count() == 1
        label = shown.chart("anchors").evaluate("plot => plot.closest('[role=figure]').ariaLabel")
        assert label.startswith(shown.values("anchors")["layout"]["title"]["text"])

        widths = "plot => [plot._fullLayout.width, plot.clientWidth]"
        before = shown.chart("heads").evaluate(widths)
        page.set_viewport_size({"width": 1100, "height": 900})
        shown.settle()
        after = shown.chart("heads").evaluate(widths)
        assert before[0] == before[1] != after[0] == after[1]
        light = shown.values("heads")["layout"]["template"]["layout"]["paper_bgcolor"]
        page.emulate_media(color_scheme="dark")
        shown.settle()
        assert shown.values("heads")["layout"]["template"]["layout"]["paper_bgcolor"] != light

        buttons = page.locator(".st-key-heads .modebar-btn").evaluate_all("all => all.map(one => one.dataset.title)")
        ours = ["Copy as notebook code", "Download as PNG", "Download as SVG", "Download data as CSV", "Fullscreen"]
        assert buttons == ["Reset axes", *ours]  # and none that sends it away
        shown.check()


@pytest.mark.slow
def test_a_chart_is_saved_as_pictures_as_its_numbers_and_as_code(tmp_path: Path, chromium: Any) -> None:
    run, other = (write_run(tmp_path / name, N) for name in ("run.h5", "other.h5"))
    with serving(run, other) as address, tab(chromium, address) as shown:
        page = shown.open(page="Attention", image=2).page

        def saved(key: str, button: str) -> tuple[str, bytes]:
            shown.values(key)  # it is in sight
            shown.chart(key).hover()
            with page.expect_download() as download:
                page.locator(f'.st-key-{key} [data-title="{button}"]').click()
            return download.value.suggested_filename, Path(download.value.path()).read_bytes()

        def numbers(key: str) -> list[dict[str, str]]:
            name, text = saved(key, "Download data as CSV")
            assert name == f"{key}.csv"
            return list(csv.DictReader(io.StringIO(text.decode(), newline="")))

        assert saved("heads", "Download as PNG")[1].startswith(b"\x89PNG")
        name, picture = saved("heads", "Download as SVG")
        assert name == "heads.svg" and picture.startswith(b"<svg") and b"Attention on the anchors" in picture

        mass_LH, band = data.anchor_cells(data.key_of(run), np.arange(N))
        for line in (heat := numbers("heads")):
            at = int(line["decoder layer"]) - 1, int(line["head"]) - 1
            drawn = [float(line[name]) for name in ("share of all attention", "lower", "upper")]
            np.testing.assert_allclose(drawn, [values[at] for values in (mass_LH, *band)], rtol=1e-6)
            np.testing.assert_allclose(float(line["× uniform"]), mass_LH[at] * S / A, rtol=1e-6)
        assert len(heat) == L * H

        figure = charts.attention.roles(run)  # bars
        bars = {(trace.name, str(x)): y for trace in figure.data for x, y in zip(trace.x, trace.y, strict=True)}
        for line in (found := numbers("roles")):
            name = line["series"].replace("<", "&lt;").replace(">", "&gt;")
            np.testing.assert_allclose(
                float(line["share of all attention"]), bars[name, line["decoder layer"]], rtol=1e-6
            )
        assert len(found) == len(bars)

        (mean, *_) = (trace for trace in charts.attention.curve(run).data if trace.name == "patches")  # a line
        found = [line["share of all attention"] for line in numbers("curve") if line["series"] == "patches"]
        np.testing.assert_allclose([float(share) for share in found], mean.y, rtol=1e-6)

        patch_RC = charts.attention.shares(charts.source.source(run), 1, None, None, False)[1 + A : 1 + A + G * G]
        for line in (found := numbers("overlay")):  # on an image, whose axes have no numbers
            at = (int(line["row"]) - 1) * G + int(line["column"]) - 1
            np.testing.assert_allclose(float(line["share of all attention"]), patch_RC[at], rtol=1e-5)
        assert len(found) == G * G

        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        shown.values("heads")
        shown.chart("heads").hover()
        page.locator('.st-key-heads [data-title="Copy as notebook code"]').click()
        page.locator('.st-key-heads [data-title="Copied"]').wait_for()
        code = page.evaluate("navigator.clipboard.readText()")
        assert code == chart.made(charts.attention.heads, run, quantity="Anchors").code
        page.evaluate(
            "() => { navigator.clipboard.writeText = () => Promise.reject(); }"
        )  # as over http, by another name
        shown.chart("roles").hover()
        page.locator('.st-key-roles [data-title="Copy as notebook code"]').click()
        page.locator('.st-key-roles [data-title="Copied"]').wait_for()
        assert "charts.attention.roles(" in page.evaluate("navigator.clipboard.readText()")

        shown.open(page="Compare")  # points
        found = [line for line in numbers("compare_scatter") if line["series"] in ("", "an image")]
        assert [float(line["run, % of all attention"]) for line in found] == [
            float(line["other, % of all attention"]) for line in found
        ]
        shown.check()


@pytest.mark.slow
def test_clicks_are_told_each_time_and_with_shift_together(tmp_path: Path, chromium: Any) -> None:
    run = write_run(tmp_path / "run.h5", 4 * N)
    with serving(run) as address, tab(chromium, address) as shown:
        page = shown.open(page="Attention").page
        for layer in ("2", "mean", "2"):  # the same cell again and again
            shown.click_at("heads", 2, 1)
            assert (f"layer={layer}" in page.url) == (layer != "mean")

        bars = shown.chart("distribution").evaluate(
            """plot => { const [{x, y}, ...lines] = plot._fullData, apart = 0.6 * (x[1] - x[0]);  // not under a line
                const free = (middle) => lines.every((line) => Math.abs(middle - line.x[0]) > apart);
                return [...y].map((n, at) => [x[at], n]).filter(([middle, n]) => n > 0 && free(middle)); }"""
        )
        sidebar = page.locator('[data-testid="stSidebar"]')
        (x, n), (other, m) = bars[0], bars[-1]
        shown.click_at("distribution", x, n / 2)
        assert f"{n} image" in sidebar.inner_text() and "selected: pages show these" in sidebar.inner_text()
        page.keyboard.down("Shift")
        shown.click_at("distribution", other, m / 2)
        page.keyboard.up("Shift")
        assert f"{n + m} images are selected" in sidebar.inner_text()
        shown.click_at("distribution", other, m / 2)
        assert f"{m} image" in sidebar.inner_text()
        shown.check()
