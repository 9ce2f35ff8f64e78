"""Everybody can use the pages: axe-core on each, contrast also in charts, and nothing that is cut on a phone."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly.colors
import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from PIL import Image

from benchmarks.browser import Tab, serving, tab
from htc_probe.analysis.cli import main as analyze
from htc_probe.dashboards.app import PAGES
from htc_probe.dashboards.figures import base as figures
from htc_probe.extract.cli import main as extract
from htc_probe.probes.cli import main as probe
from htc_probe.probes.show.style import SHARES

IMAGES = 40
WIDTHS = 1440, 1024, 390  # a laptop, a tablet, a phone
TABS = [
    {"page": "What causes what", "causes": "Groups of tokens"},
    {"page": "What causes what", "causes": "Anchors and patches interchanged"},
    {"page": "Probes", "probes": "Layers and training images"},
    {"page": "Probes", "probes": "Image by image"},
    {"page": "Compare", "part": "One image"},
    {"page": "Compare", "part": "Probes"},
]
VIEWS = [*({"page": page} for page in PAGES), *TABS]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]

# What Streamlit itself does, and no setting of it mends: rule, selector, why.
STREAMLITS = [("scrollable-region-focusable", "[data-testid=stTable] > div", "a table that is too wide has no focus")]

AXE = """async ([rules, streamlits]) => {
    const { violations } = await axe.run(document, { runOnly: rules, resultTypes: ['violations'], elementRef: true });
    const known = (id, element) => streamlits.some(([rule, selector]) => rule === id && element?.matches(selector));
    return violations.flatMap(({ id, nodes }) => nodes.filter(({ element }) => !known(id, element)).map(
        ({ html, failureSummary }) => `${id}: ${html.slice(0, 200)} (${failureSummary})`));
}"""
# Of each text of a chart that is seen: itself, its colour over what is behind it, and its place.
TEXTS = """() => [...document.querySelectorAll('.js-plotly-plot svg text')].filter((text) => {
    const { width, height } = text.getBoundingClientRect(), style = getComputedStyle(text);
    return width && height && style.visibility === 'visible' && style.textShadow === 'none';
}).map((text) => {
    const { x, y, width, height } = text.getBoundingClientRect();
    return [text.textContent, getComputedStyle(text).fill, [x, y, x + width, y + height]];
})"""
# What is cut or hidden on a page of this width: the page, an open tab, a chart's text.
CUT = """() => {
    const found = [], page = document.scrollingElement, main = document.querySelector('[data-testid=stMain]');
    if (page.scrollWidth > innerWidth) found.push(`the page is ${page.scrollWidth} wide`);
    if (main.scrollWidth > main.clientWidth) found.push(`its main part is ${main.scrollWidth} wide`);
    for (const tab of document.querySelectorAll('.stTabs [role=tab][aria-selected=true]')) {
        const { left, right } = tab.getBoundingClientRect(), of = tab.parentElement.getBoundingClientRect();
        if (left < of.left - 1 || right > of.right + 1) found.push(`the open tab ${tab.innerText} is out of sight`);
    }
    for (const plot of document.querySelectorAll('.js-plotly-plot')) {
        const of = plot.getBoundingClientRect();
        const buttons = plot.querySelector('.modebar')?.getBoundingClientRect();
        for (const text of plot.querySelectorAll('svg text')) {
            const at = text.getBoundingClientRect(), title = text.closest('.g-gtitle');
            if (at.width && (at.left < of.left - 2 || at.right > of.right + 2 || at.bottom > of.bottom + 2))
                found.push(`"${text.textContent}" leaves its chart`);
            const under = title && at.top < buttons?.bottom && at.bottom > buttons?.top;
            if (under && buttons.width && at.right > buttons.left)
                found.push(`"${text.textContent}" is under the buttons`);
        }
    }
    return found;
}"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, all that is made of it, and a second run."""
    folder = tmp_path_factory.mktemp("runs")
    run = str(folder / "scenes-val.h5")
    common = ["--split", "val", "--limit", str(IMAGES), "--out"]
    assert extract([*common, run]) == extract([*common, str(folder / "scenes-random.h5"), "--random-weights"]) == 0
    assert probe(["semantic", "detail", "--run", run]) == analyze(["--run", run]) == 0
    return folder


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with serving(runs) as served:
        yield served


def open_whole(shown: Tab, width: int, query: dict[str, Any]) -> None:
    """A page in a window as high as it is, so that all charts are drawn."""
    shown.page.set_viewport_size({"width": width, "height": 900})
    shown.open(run="scenes-val", image=3, **query)
    for _ in range(2):  # a chart may grow as it is drawn
        high = shown.page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
        shown.page.set_viewport_size({"width": width, "height": high + 50})
        shown.settle()


def violations(shown: Tab) -> list[str]:
    """What axe-core finds, but for what is Streamlit's."""
    return shown.page.evaluate(AXE, [RULES, STREAMLITS])


def faint(shown: Tab) -> list[str]:
    """Texts in charts with less than 4.5 to 1 of contrast to the middle colour of what is behind them: axe-core sees
    little of SVG. Texts with a shadow are left out.
    """
    texts = shown.page.evaluate(TEXTS)
    hidden = shown.page.add_style_tag(content=".js-plotly-plot svg text { visibility: hidden !important }")
    picture = np.asarray(Image.open(io.BytesIO(shown.page.screenshot())).convert("RGB"))
    hidden.evaluate("style => style.remove()")
    found = []
    for text, colour, place in texts:
        left, top, right, bottom = (max(0, round(at)) for at in place)
        behind = np.median(picture[top:bottom, left:right].reshape(-1, 3), axis=0)
        ink = np.array([float(part) for part in colour[colour.index("(") + 1 : -1].split(",")][:3])
        high, low = sorted((luminance(ink), luminance(behind)), reverse=True)
        if (ratio := (high + 0.05) / (low + 0.05)) < 4.5:
            found.append(f'"{text}": {ratio:.2f} to 1, {colour} on {behind}')
    return found


def luminance(colour: np.ndarray) -> float:
    """Relative, as WCAG 2 defines it, of (3,) red, green and blue from 0 to 255."""
    part = colour / 255
    return float(np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("colours", [figures.HEAT, figures.BELOW_ABOVE, SHARES])
def test_text_on_any_cell_of_a_heat_map_stands_out(colours: list[Any]) -> None:
    z = np.linspace(-1, 1, 201)
    scale = plotly.colors.make_colorscale([colour for _, colour in colours], [at for at, _ in colours])
    behind = plotly.colors.sample_colorscale(scale, (z + 1) / 2, colortype="tuple")
    for ink, cell in zip(figures.ink(z, (-1, 1), colours), behind, strict=True):
        high, low = sorted((float(ink == "#ffffff"), luminance(255 * np.array(cell))), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_luminance_is_that_of_wcag() -> None:
    assert luminance(np.array([255, 255, 255])) == pytest.approx(1) and luminance(np.zeros(3)) == 0
    grey = luminance(np.array([118, 118, 118]))  # the lightest grey that is allowed on white
    assert 4.5 < 1.05 / (grey + 0.05) < 4.6


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_passes_axe_and_cuts_nothing(address: str, chromium: Any, width: int) -> None:
    found: list[str] = []
    with tab(chromium, address, width=width) as shown:
        for query in VIEWS:
            open_whole(shown, width, query)
            shown.page.evaluate(Path(AXE_FILE_PATH).read_text())
            told = [*shown.page.evaluate(CUT)]
            for scheme in ("light", "dark"):
                shown.page.emulate_media(color_scheme=scheme)
                shown.settle()
                told += [f"{scheme}: {one}" for one in [*violations(shown), *faint(shown)]]
            found += [f"{', '.join(query.values())}: {one}" for one in told]
        shown.check()
    assert not found, "\n".join(found)
