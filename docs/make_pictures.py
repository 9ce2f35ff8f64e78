"""Makes the pictures of the documentation anew: `python docs/make_pictures.py FOLDER_OF_RUNS [PAGE ...]`.

A page a picture (docs/dashboard-PAGE.png) and a figure a picture (docs/figures/FUNCTION.png), in the states below.
Needs Chromium, and in the folder `scenes-val` (`htc-probe semantic detail --layers all --curve`, `htc-analyze`), and of
its first 300 images `star`, `causal` (the same weights under a causal mask) and `random` (`--random-weights`), probed
and analysed, and `shallow` (random weights and two layers). Fails where docs/figures.md lacks a figure or its picture.
"""

import inspect
import io
import re
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.browser import Tab, chromium, serving, tab  # noqa: E402
from htc_probe.dashboards import figures  # noqa: E402
from htc_probe.probes.files import results  # noqa: E402
from htc_probe.probes.show import figures as probe_figures  # noqa: E402

WIDTH, SHOWN = 1500, 1200
"""Pixels of the window, and of the picture of it."""
MOST, FOOT = 1600, 100
"""Pixels of a picture's height, and of the page's empty end."""


class State(NamedTuple):
    """What a page shows, and which of its figures are kept."""

    page: str
    query: Mapping[str, Any]
    keep: Mapping[str, str] = types.MappingProxyType({})
    """Figure function -> key of its chart."""
    before: Callable[[Tab], None] | None = None
    """What is clicked."""
    picture: bool = False
    """Whether this is the page's picture."""
    cover: str = ""
    """Whether this is the picture of the README too: down to the chart with this key."""


def lasso(page: Tab) -> None:
    """Around the image that is shown, the last trace of the map."""
    x, y, reach = page.chart("map").evaluate("""plot => {
        const ring = plot._fullData.at(-1), [low, high] = plot._fullLayout.yaxis.range;
        return [ring.x[0], ring.y[0], 0.09 * (high - low)];
    }""")
    corners = [page.place("map", x + reach * dx, y + reach * dy) for dx, dy in ((1, 1), (-1, 1), (-1, -1), (1, -1))]
    page.page.mouse.move(*corners[0])
    page.page.mouse.down()
    for corner in [*corners[1:], corners[0]]:
        page.page.mouse.move(*corner, steps=4)
    page.page.mouse.up()
    page.page.get_by_text("selected: pages show these").wait_for()


def cell(page: Tab) -> None:
    """Ringed textures that the probe calls striped."""
    page.click_at("probe_confusion", 6, 5)


def code(page: Tab) -> None:
    """The code that goes with the answer most surely."""
    x, y = page.chart("codes_lifts").evaluate("""plot => {
        const {x, y} = plot._fullData.find(trace => trace.customdata);
        return [x[0], y[0]];
    }""")
    page.click_at("codes_lifts", x, y)


IMAGE = 147
ONE = {"run": "scenes-val", "image": IMAGE}
TWO = {"run": "star", "with": "causal", "image": IMAGE}
CODE = {"codegroup": 1, "codetask": "scene"}
STATES = [
    State("Overview", ONE, picture=True),
    State("Images", ONE | {"labels": "category: boat", "right": "wrong", "sort": "loss"}, picture=True),
    State(
        "Attention",
        ONE | {"layer": 3},
        {
            "head_heatmap": "heads",
            "share_curve": "curve",
            "role_bars": "roles",
            "distribution": "distribution",
            "patch_overlay": "overlay",
            "anchor_bars": "anchors",
        },
        picture=True,
    ),
    State("Attention", ONE | {"layer": 3, "figure3": "From this one on"}, {"first_tokens": "first_tokens"}),
    State("What causes what", ONE, {"token_map": "map_effect", "rank_dots": "ranks"}, picture=True, cover="ranks"),
    State(
        "What causes what",
        ONE | {"causes": "Groups of tokens"},
        {"group_bars": "groups", "window_lines": "windows", "shapley_bars": "shapley"},
    ),
    State(
        "What causes what",
        ONE | {"causes": "Anchors and patches interchanged"},
        {"follow_dots": "follow", "two_by_two": "cells_answer"},
    ),
    State(
        "Probes",
        ONE | {"suite": "detail"},
        {"probe_scores": "probe_scores", "probe_differences": "probe_compared"},
        picture=True,
    ),
    State("Probes", ONE | {"suite": "detail", "measure": "bits"}, {"probe_bits": "probe_scores"}),
    State("Probes", ONE | {"suite": "detail", "measure": "retention"}, {"probe_retention": "probe_scores"}),
    State(
        "Probes",
        ONE | {"suite": "detail", "measure": "kept"},
        {"probe_kept": "probe_scores", "probe_gaps": "probe_gaps"},
    ),
    State(
        "Probes",
        ONE | {"suite": "detail", "probes": "Layers and training images"},
        {"probe_layers": "probe_layers", "probe_learning": "probe_learning"},
    ),
    State("Probes", ONE | {"probes": "Image by image", "task": "texture"}, {"confusion": "probe_confusion"}, cell),
    State("Probes", ONE | {"probes": "Image by image", "task": "size"}, {"said_and_true": "probe_values"}),
    State(
        "Reading the token",
        ONE,
        {
            "lens_words": "lens_words",
            "lens_agreement": "lens_agreement",
            "lens_accuracy": "lens_accuracy",
            "likeness": "likeness",
            "dimensions": "dimensions",
            "probe_overlap": "probe_overlap",
            "probe_cosines": "probe_cosines",
            "answer_parts": "answer_parts",
        },
        picture=True,
    ),
    State("Map", ONE | {"map_colour": "count"}, {"latent_map": "map"}, lasso, picture=True),
    State("Map", ONE, {"kept_bars": "map_kept"}),
    State(
        "Codes",
        ONE | CODE,
        {
            "code_pictures": "codes_pictures",
            "code_grid": "codes_grid",
            "code_entropy": "codes_entropy",
            "code_usage": "codes_usage",
            "code_label_bits": "codes_bits",
            "code_label_map": "codes_map",
            "code_lifts": "codes_lifts",
            "code_places": "codes_places",
            "code_examples": "codes_examples",
        },
        code,
        picture=True,
    ),
    State(
        "Compare",
        TWO,
        {
            "difference_heatmap": "compare_heatmap",
            "difference_curve": "compare_curve",
            "role_differences": "compare_roles",
            "pairs_scatter": "compare_scatter",
        },
        picture=True,
    ),
    State(
        "Compare",
        TWO | {"part": "One image"},
        {
            "two_maps": "compare_overlay",
            "anchors_of_both": "compare_anchors",
            "difference_histogram": "compare_histogram",
        },
    ),
    State("Compare", TWO | {"part": "Probes"}, {"differences_by_name": "compare_semantic"}),
    State("Compare", {"run": "random", "with": "shallow"}, {"two_curves": "compare_depth"}),
]

REPORTS = "reports"
OF_REPORTS = {"differences": "detail", "bits_added": "detail", "confusions": "texture"}
"""Figures of probes.show.figures that no page draws, and of which suite or task they are here."""
UNSEEN = {figures.probe_classes, figures.probe_ceilings}
"""Without a picture."""


def main(folder: Path, only: list[str]) -> None:
    by_pages = {getattr(figures, name) for state in STATES for name in state.keep}
    alone = {name: maker for name, maker in makers(probe_figures).items() if maker not in by_pages | UNSEEN}
    assert alone.keys() == OF_REPORTS.keys(), "figures of probes.show.figures that neither a page nor OF_REPORTS has"
    text = (ROOT / "docs" / "figures.md").read_text()
    for name, maker in makers(figures).items():
        assert maker in by_pages | UNSEEN, f"no picture of {name}"
        for needed in (f"### `{name}{arguments(maker)}`", *([] if maker in UNSEEN else [f"](figures/{name}.png)"])):
            assert needed in text, f"docs/figures.md lacks {needed}"
    with serving(folder) as address, chromium() as browser:
        for state in STATES:
            if not only or state.page in only:
                with tab(browser, address, width=WIDTH, height=1000) as page:
                    take(page, state)
                    page.check()
        if not only or REPORTS in only:
            found = results.read(folder / "scenes-val.probes.json")
            for name, of in OF_REPORTS.items():
                page = browser.new_page(viewport={"width": 1000, "height": 1400})
                figure = alone[name](found, of).update_layout(template="plotly_white")
                page.set_content(figure.to_html(config={"staticPlot": True}))
                page.wait_for_function("document.querySelector('.js-plotly-plot .main-svg .infolayer')")
                save(page.locator(".js-plotly-plot").screenshot(), ROOT / "docs" / "figures" / f"probes-{name}.png")


def makers(module: types.ModuleType) -> dict[str, Callable[..., Any]]:
    """Its functions that make figures, by name."""
    return {
        name: function
        for name in getattr(module, "__all__", vars(module))
        if inspect.isfunction(function := getattr(module, name))
        and "Figure" in str(inspect.signature(function).return_annotation)
        and not name.startswith("_")
        and function.__module__.startswith("htc_probe.")
    }


def arguments(maker: Callable[..., Any]) -> str:
    """As they are called, without their types."""
    signature = inspect.signature(maker)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def take(page: Tab, state: State) -> None:
    page.open(page=state.page, **state.query)
    fit(page)
    if state.before is not None:
        state.before(page)
        fit(page)
    if state.picture:
        name = re.sub(r"[^a-z]+", "-", state.page.lower())
        save(seen(page, height(page) - FOOT), ROOT / "docs" / f"dashboard-{name}.png", SHOWN)
    if state.cover:
        end = page.page.locator(f".st-key-{state.cover}").bounding_box()
        save(seen(page, int(end["y"])), ROOT / "docs" / "dashboard.png", SHOWN)
    page.page.add_style_tag(content=".modebar { display: none !important; }")
    for function, key in state.keep.items():
        save(page.chart(key).screenshot(), ROOT / "docs" / "figures" / f"{function}.png")


def seen(page: Tab, most: int) -> bytes:
    """The top of the window."""
    return page.page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": min(most, MOST * WIDTH // SHOWN)})


def height(page: Tab) -> int:
    """Of the whole page, in pixels."""
    return int(page.page.locator('[data-testid="stMainBlockContainer"]').bounding_box()["height"])


def fit(page: Tab) -> None:
    """A window as high as the page, which scrolls within it and draws what is seen; waits for all that is drawn."""
    for _ in range(3):
        page.settle()
        size = {"width": WIDTH, "height": max(1000, height(page))}
        if page.page.viewport_size == size:
            break
        page.page.set_viewport_size(size)
    page.page.wait_for_function(
        """() => [...document.querySelectorAll('.chart')].every(chart => chart.querySelector('.infolayer .gtitle'))
        && [...document.images].every(image => image.complete)"""
    )
    page.page.mouse.move(WIDTH - 5, 5)
    page.page.wait_for_timeout(700)


def save(png: bytes, path: Path, width: int | None = None) -> None:
    """A figure as it is; a page as wide as that and with 256 colours, which makes it a quarter as large."""
    path.parent.mkdir(exist_ok=True)
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
        # The default, a median cut, gives up colours that are rare, such as those of a legend.
        image = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    print(path.relative_to(ROOT), *image.size, path.stat().st_size // 1000, "kB", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
