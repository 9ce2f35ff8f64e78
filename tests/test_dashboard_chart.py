"""Charts: figures as plotly makes them, kept, drawn over one another, and what clicks in them tell."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from benchmarks.browser import serving, tab
from htc_probe.dashboards import server
from htc_probe.dashboards.figures.base import Figure
from htc_probe.dashboards.parts import chart
from made.pages import write_run

N = 12


@pytest.mark.parametrize("columns", [1, 2])
def test_a_layout_is_set_as_plotly_sets_it(columns: int) -> None:
    def filled(figure: go.Figure) -> go.Figure:
        if columns > 1:
            make_subplots(1, columns, figure=figure, subplot_titles=["a"] * columns, shared_yaxes=True)
            figure.update_xaxes(title="second", col=2)
        figure.add_scatter(x=[1, 2], y=np.array([3.0, 4.0]), line={"color": "red"})
        figure.update_layout(title={"text": "t", "x": 0}, margin={"l": 1}, legend={"orientation": "h"})
        figure.update_layout(margin={"t": 2}, title={"subtitle": {"text": "s"}}, barmode="group")
        figure.update_layout({"coloraxis2": {"cmin": 0}})
        figure.update_xaxes(title="x", range=[0, 1], showgrid=False)
        figure.update_layout(xaxis={"title": {"font": {"size": 9}}}, title_font_size=20)  # as in a notebook
        figure.update_layout({"legend": {"x": 1}}, overwrite=True)
        figure.update_xaxes({"ticks": "inside"}, selector={"showgrid": False})
        return figure.update_yaxes(tickvals=np.arange(3), ticktext=["a", "b", "c"], title={"standoff": 5})

    assert json.loads(filled(Figure()).to_json()) == json.loads(filled(go.Figure()).to_json())


def test_a_figure_is_made_once_for_the_same_arguments() -> None:
    calls = []

    def bars(values: np.ndarray, *, name: str) -> go.Figure | None:
        calls.append(name)
        return go.Figure(go.Bar(y=values), layout={"title": {"text": f"<b>{name}"}}) if len(values) else None

    one, again = (chart.made(bars, np.arange(3), name="a") for _ in range(2))
    assert one is again and one is not None and one.words.split() == ["a;", "None"] and '"template"' not in one.figure
    other = chart.made(bars, np.arange(3) + 1, name="a")
    assert other is not None and other.figure != one.figure
    assert chart.made(bars, np.arange(0), name="b") is None
    assert calls == ["a", "a", "b"]


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

        page.locator(".st-key-anchors").scroll_into_view_if_needed()
        shown.settle()
        assert shown.chart("anchors").count() == 1
        label = shown.chart("anchors").evaluate("plot => plot.closest('[role=figure]').ariaLabel")
        assert label.startswith("The anchors, one by one")

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

        page.get_by_role("radio", name="SVG").click()
        shown.settle()
        shown.chart("heads").hover()
        with page.expect_download() as download:
            page.locator('.st-key-heads [data-title^="Download"]').click()
        assert download.value.suggested_filename == "heads.svg"
        buttons = page.locator(".st-key-heads .modebar-btn").evaluate_all("all => all.map(one => one.dataset.title)")
        assert buttons == ["Download plot", "Reset axes", "Fullscreen"]  # and none that sends it away
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
        assert f"{n} image" in sidebar.inner_text() and "selected on the map" in sidebar.inner_text()
        page.keyboard.down("Shift")
        shown.click_at("distribution", other, m / 2)
        page.keyboard.up("Shift")
        assert f"{n + m} images selected" in sidebar.inner_text()
        shown.click_at("distribution", other, m / 2)
        assert f"{m} image" in sidebar.inner_text()
        shown.check()
