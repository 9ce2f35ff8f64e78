"""How long the dashboard takes to answer a click on a run of 7B size: `python -m benchmarks.dashboard`.

Knows clocks, files and a browser. Makes a run of random numbers in the folder (10,000 images, 32 layers of 32 heads,
581 keys, width 4096; some 12 GB, once), lets htc-analyze find what it can without a model (attention, map), and clicks
through the pages in headless Chromium. A click takes from the mouse button to the last change of the page, drawing
included; the machine serves and draws at once. Memory is the server's, at its highest.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.browser import Tab, chromium, serving, tab
from extract.store import Batch, RunInfo, RunShape, RunWriter, Task

LAYERS = HEADS = 32
GRID, ANCHORS, WIDTH = 24, 4, 4096
CODES, CODEBOOK = (21, 21, 8), 2048
BATCH = 16
ROLES = ("anchor",) * ANCHORS + ("patch",) * GRID**2 + ("voco",)
TASKS = (
    Task("category", "semantic", "classes", tuple(f"category {at}" for at in range(80))),
    Task("present", "semantic", "multilabel", tuple(f"thing {at}" for at in range(20))),
    Task("texture", "detail", "classes", tuple(f"texture {at}" for at in range(47))),
    Task("size", "detail", "number", unit="px"),
)
# When the page changed last, and the moment of the last click, on one clock.
WATCH = """() => {
    if (window.lastChange !== undefined) return;
    window.lastChange = performance.now();
    new MutationObserver(() => { window.lastChange = performance.now(); })
        .observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true});
    document.addEventListener('mousedown', () => { window.lastClick = performance.now(); }, true);
    document.addEventListener('keydown', () => { window.lastClick = performance.now(); }, true);
}"""
QUIET = 500  # ms without a change after which an answer is taken to be complete


@dataclass(frozen=True)
class Settings:
    folder: Path = Path("/tmp/htc-dashboard-benchmark")
    """Where the run is, or will be made."""
    images: int = 10_000
    """Of the run."""
    rounds: int = 10
    """Each click, in turn."""


class Click(NamedTuple):
    """Something a person does on a page."""

    page: str
    name: str
    do: Callable[[Tab, int], Any]
    """With the round."""


def main(settings: Settings) -> None:
    run = settings.folder / "big.h5"
    if not run.exists():
        make(run, settings.images)
    analysis = [sys.executable, "-m", "analysis.cli", "attention", "map", "--run", str(run)]
    subprocess.run(analysis, check=True, stdout=subprocess.DEVNULL)
    with serving(settings.folder) as address, chromium() as browser, tab(browser, address) as page:
        times: dict[tuple[str, str], list[float]] = {}
        started = time.perf_counter()
        page.open()
        first = time.perf_counter() - started
        page.page.evaluate(WATCH)
        for turn in range(settings.rounds + 1):  # the first one fills the caches and is told apart
            here = None
            for click in CLICKS:
                if click.page != here:
                    here = click.page
                    took = answer(page, page.page.get_by_role("tab", name=here, exact=True).click)
                    times.setdefault((here, "open the page"), []).append(took)
                took = answer(page, partial(click.do, page, turn))
                times.setdefault((click.page, click.name), []).append(took)
        page.check()
        memory = peak(address)
    show(times, first, memory, run)


CLICKS: tuple[Click, ...] = (
    Click("Attention", "next image", lambda page, turn: page.page.keyboard.press("n")),
    Click("Attention", "a cell of the heat map", lambda page, turn: press(page, "heatmap", 1 + turn, 2 + turn)),
    Click("Probes", "next image", lambda page, turn: page.page.keyboard.press("n")),
    Click("Map", "next image", lambda page, turn: page.page.keyboard.press("n")),
    Click("Codes", "next image", lambda page, turn: page.page.keyboard.press("n")),
)


def press(page: Tab, key: str, x: float, y: float) -> None:
    """Clicks at a place of a chart, in its own coordinates."""
    page.page.mouse.click(*page.place(key, x, y))


def answer(page: Tab, act: Callable[[], Any]) -> float:
    """Milliseconds from the click that `act` makes to the last change of the page."""
    page.page.evaluate("() => { window.lastClick = undefined; }")
    act()
    page.page.wait_for_function(
        f"() => window.lastClick !== undefined && performance.now() - window.lastChange > {QUIET}", timeout=60_000
    )
    return float(page.page.evaluate("() => window.lastChange - window.lastClick"))


def peak(address: str) -> float:
    """GB, the highest resident memory of the process that listens at the address."""
    port = int(address.rsplit(":", 1)[1])
    wanted = f"0100007F:{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    inode = next(line.split()[9] for line in lines if line.split()[1] == wanted and line.split()[3] == "0A")
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if handle.readlink().name == f"socket:[{inode}]":
                status = (handle.parents[1] / "status").read_text()
                return int(status.split("VmHWM:")[1].split()[0]) / 1e6
        except OSError:
            continue
    return float("nan")


def show(times: dict[tuple[str, str], list[float]], first: float, memory: float, run: Path) -> None:
    table = Table("page", "click", "median ms", "worst ms", "first ms")
    for (page, name), took in times.items():
        rest = took[1:] or took
        table.add_row(page, name, f"{statistics.median(rest):.0f}", f"{max(rest):.0f}", f"{took[0]:.0f}")
    console = Console()
    console.print(table)
    size = run.stat().st_size / 1e9
    console.print(f"{run.name}: {size:.1f} GB. First page after {first:.1f} s. Memory of the server: {memory:.2f} GB.")


def make(path: Path, images: int) -> None:
    """Writes a run of random numbers of the shapes that a 7B model gives."""
    rng = np.random.default_rng(0)
    places = [(-1, -1)] * ANCHORS + [(at // GRID, at % GRID) for at in range(GRID**2)] + [(-1, -1)]
    rows, cols = (tuple(place[axis] for place in places) for axis in (0, 1))
    shape = RunShape(images, LAYERS, (LAYERS,), HEADS, WIDTH, ANCHORS, CODES, ROLES, rows, cols)
    config = {"mgvq": {"codebook_size": 8 * CODEBOOK, "groups": 8}}
    info = RunInfo({}, {"name": "random numbers", "sha256": "0" * 64, "config": config}, "random", "val", "star", {})
    path.parent.mkdir(parents=True, exist_ok=True)
    # Points in clusters by category, so that maps, neighbours and labels have something to show.
    centres = {name: rng.normal(size=(80, width)) for name, width in (("z", WIDTH), ("v", WIDTH))}
    with RunWriter(path, info, shape, TASKS) as writer:
        for start in track(range(0, images, BATCH), description=f"Writing {path}"):
            B = min(BATCH, images - start)
            names = [f"val-{start + at:06d}" for at in range(B)]
            category = rng.integers(0, 80, B)
            attention = rng.standard_exponential((B, LAYERS, HEADS, len(ROLES)), dtype=np.float32)
            writer.append(
                Batch(
                    names, [f"val/{name}.jpg" for name in names], names,
                    rng.integers(0, 256, (B, 96, 96, 3), dtype=np.uint8),
                    (centres["z"][category] + rng.normal(size=(B, WIDTH)))[:, None].astype(np.float32),
                    rng.normal(size=(B, ANCHORS, WIDTH)).astype(np.float32),
                    (centres["v"][category] + rng.normal(size=(B, WIDTH))).astype(np.float32),
                    rng.integers(0, CODEBOOK, (B, *CODES)),
                    attention / attention.sum(-1, keepdims=True),
                    {
                        "category": category, "present": rng.integers(0, 2, (B, 20)).astype(np.uint8),
                        "texture": rng.integers(0, 47, B), "size": rng.normal(100, 20, B),
                    },
                )
            )  # fmt: skip
        writer.finish()


if __name__ == "__main__":
    main(tyro.cli(Settings))
