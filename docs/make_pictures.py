"""Makes the pictures of the documentation anew: `python docs/make_pictures.py FOLDER_OF_RUNS`.

Knows a browser and the dashboard's pages. A page a picture (docs/dashboard-PAGE.png), and every chart on it
(docs/figures/KEY.png), from the folder's newest run, which should have its probes and analyses beside it.
"""

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.browser import Tab, chromium, serving, tab  # noqa: E402

IMAGE, LAYER, WIDTH = 5, 3, 1500
MOST = 2600  # pixels of a page's height


def main(folder: Path) -> None:
    with serving(folder) as address, chromium() as browser, tab(browser, address, width=WIDTH) as page:
        page.open()
        for name in page.page.locator('[data-testid="stTab"]').all_inner_texts():
            page.page.set_viewport_size({"width": WIDTH, "height": 1000})
            page.open(page=name, image=IMAGE, layer=LAYER)
            # Streamlit scrolls a part of the page: seen whole only in a window as high as that.
            content = page.page.locator('[data-testid="stMainBlockContainer"]').bounding_box()
            page.page.set_viewport_size({"width": WIDTH, "height": min(MOST, int(content["height"]) + 40)})
            page.settle()
            save(page.page.screenshot(), ROOT / "docs" / f"dashboard-{slug(name)}.png")
            for key, chart in charts(page):
                save(chart.screenshot(), ROOT / "docs" / "figures" / f"{key}.png")
        page.check()


def charts(page: Tab) -> Iterator[tuple[str, Any]]:
    for chart in page.page.locator(".js-plotly-plot").all():
        names = chart.evaluate("plot => plot.closest('[class*=st-key-]').className")
        found = re.search(r"st-key-(\w+)", names)
        assert found is not None
        yield found.group(1), chart


def slug(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower())


def save(png: bytes, path: Path) -> None:
    """With 256 colours, which shows nowhere and makes it a quarter as large."""
    path.parent.mkdir(exist_ok=True)
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path.relative_to(ROOT), path.stat().st_size // 1000, "kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
