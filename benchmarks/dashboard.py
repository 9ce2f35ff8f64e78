"""How long the dashboard takes to answer a click on a run of 7B size: `python -m benchmarks.dashboard`.

Knows clocks, files and a browser. Makes a run of random numbers in the folder (10,000 images, 32 layers of 32 heads,
581 keys, width 4096; some 11 GB, once) and a link to it to compare it with, lets htc-analyze find what it can without
a model (attention, map; many minutes), and adds knock-outs of 200 images and probes' results that are random numbers
too. Then it clicks through the pages in headless Chromium, in a window as large as a laptop's. A click takes from the
mouse button or the key to the last change of the page, drawing of what is in the window included; one machine serves
and draws. The floor is a button on an empty Streamlit page, measured alike. Memory is the server's, at its highest.
"""

import os
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
from rich.console import Console
from rich.progress import track
from rich.table import Table

import htc_probe.analysis.results
from benchmarks.browser import Tab, chromium, free_port, serving, tab, wait_for
from htc_probe.analysis import records
from htc_probe.analysis.sections import Contributions, Knockouts
from htc_probe.analysis.stats.draws import intervals_of_means
from htc_probe.extract import command
from htc_probe.extract.store import Batch, Run, RunInfo, RunShape, RunWriter, Task, open_run
from htc_probe.probes.files import results
from htc_probe.probes.files.predictions import Asked, Writer
from htc_probe.probes.scores.metrics import Gaussian

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
WINDOW = {"width": 1440, "height": 900}  # of a laptop
QUIET = 500  # ms without a change after which an answer is taken to be complete
AIM = 300  # ms
EMPTY = """import streamlit as st
st.button("Count")
st.session_state.clicks = st.session_state.get("clicks", 0) + 1
st.text(st.session_state.clicks)
"""


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
    prepare(run)
    with serving(settings.folder) as address, chromium() as browser, tab(browser, address, **WINDOW) as page:
        times = {("an empty page", "a button"): floor(browser, settings)}
        started = time.perf_counter()
        page.open(run="big")
        first = time.perf_counter() - started
        page.page.evaluate(WATCH)
        for turn in track(range(settings.rounds + 1), description="Clicking"):  # the first one fills the caches
            here = None
            for click in CLICKS:
                if click.page != here:
                    here = click.page
                    took = answer(page, page.page.get_by_role("tab", name=here, exact=True).click)
                    times.setdefault((here, "the page"), []).append(took)
                took = answer(page, partial(click.do, page, turn))
                times.setdefault((click.page, click.name), []).append(took)
        page.check()
        memory = peak(address)
    show(times, first, memory, run)


def option(key: str) -> Callable[[Tab, int], None]:
    """A click on another of the options of a control."""

    def click(page: Tab, turn: int) -> None:
        options = page.page.locator(f".st-key-{key} [role=radio]:not([aria-checked=true])")
        options.nth(turn % options.count()).click()

    return click


def cell(key: str) -> Callable[[Tab, int], None]:
    """A click on another cell of a heat map of layers and heads."""
    return lambda page, turn: page.page.mouse.click(*page.place(key, 2 + turn, 3 + turn))


def following(page: Tab, turn: int) -> None:
    page.page.keyboard.press("n")


def sampled(page: Tab, turn: int) -> None:
    page.page.get_by_role("button", name="Next in the sample").click()


def point(page: Tab, turn: int) -> None:
    """A click on the map, on the point of an image."""
    x, y = page.chart("map").evaluate(
        """(plot, turn) => { const {x, y} = plot._fullData.find((trace) => trace.customdata && trace.x.length > turn);
            return [x[turn], y[turn]]; }""",
        turn,
    )
    at = page.place("map", x, y)
    page.page.mouse.move(*at)
    page.page.wait_for_timeout(100)  # plotly looks up what is under the pointer
    page.page.mouse.click(*at)


def picture(page: Tab, turn: int) -> None:
    page.page.locator(".st-key-images_gallery .gallery button").nth(turn + 3).click()


def turned(page: Tab, turn: int) -> None:
    page.page.get_by_label("Next page").click()


def grouped(page: Tab, turn: int) -> None:
    page.page.locator(".st-key-codegroup input").click()
    page.page.get_by_role("option").nth(1 + turn % 6).click()


CLICKS: tuple[Click, ...] = (
    Click("Overview", "next image", following),
    Click("Images", "next image", following),
    Click("Images", "an image", picture),
    Click("Images", "the next 48 images", turned),
    Click("Attention", "next image", following),
    Click("Attention", "a cell of the heat map", cell("heads")),
    Click("Attention", "another quantity", option("quantity")),
    Click("Attention", "of the image, of all", option("of")),
    Click("What causes what", "next image of the sample", sampled),
    Click("What causes what", "another effect", option("effect")),
    Click("Probes", "next image", following),
    Click("Probes", "scores, bits or retention", option("measure")),
    Click("Probes", "another part of the page", option("probes")),
    Click("Map", "next image", following),
    Click("Map", "another representation", option("map_of")),
    Click("Map", "a point", point),
    Click("Codes", "next image", following),
    Click("Codes", "another group", grouped),
    Click("Compare", "next image", following),
    Click("Compare", "a cell of the heat map", cell("compare_heatmap")),
)


def answer(page: Tab, act: Callable[[], Any]) -> float:
    """Milliseconds from the click that `act` makes to the last change of the page."""
    page.page.evaluate("() => { window.lastClick = undefined; }")
    act()
    page.page.wait_for_function(
        f"""() => window.lastChange > window.lastClick && performance.now() - window.lastChange > {QUIET}
        && document.querySelector('[data-test-script-state]').dataset.testScriptState === 'notRunning'
        && !document.querySelector('.chart[aria-busy]')""",
        timeout=60_000,
        polling=50,  # to look at every frame would make the browser draw frames
    )
    return float(page.page.evaluate("() => window.lastChange - window.lastClick"))


def floor(browser: Any, settings: Settings) -> list[float]:
    """The same of a button on a page of Streamlit's that holds nothing but it and the number of its clicks."""
    script, port = settings.folder / "empty.py", free_port()
    script.write_text(EMPTY)
    options = {"server.port": port, "server.headless": "true", "server.fileWatcherType": "none"}
    options |= {"browser.gatherUsageStats": "false", "client.toolbarMode": "minimal", "runner.postScriptGC": "false"}
    command = [sys.executable, "-m", "streamlit", "run", str(script)]
    command += [f"--{name}={value}" for name, value in options.items()]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address)
        with tab(browser, address, **WINDOW) as page:
            page.page.goto(address)
            button = page.page.get_by_role("button", name="Count")
            button.wait_for()
            page.page.evaluate(WATCH)
            return [answer(page, button.click) for _ in range(settings.rounds + 1)]
    finally:
        server.terminate()
        server.wait()


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
    table = Table("page", "click", "median ms", "of the floor", "worst ms", "first ms", f"over {AIM} ms")
    medians = [statistics.median(took[1:] or took) for took in times.values()]
    for ((page, name), took), median in zip(times.items(), medians, strict=True):
        numbers = f"{median:.0f}", f"{median / medians[0]:.1f}×", f"{max(took[1:] or took):.0f}", f"{took[0]:.0f}"
        table.add_row(page, name, *numbers, "over" if median > AIM else "")
    console = Console(width=120)
    console.print(table)
    met = sum(median <= AIM for median in medians[1:])
    console.print(f"{met} of {len(medians) - 1} kinds of clicks take at most {AIM} ms in the median.")
    size = run.stat().st_size / 1e9
    console.print(f"{run.name}: {size:.1f} GB. First page after {first:.1f} s. Memory of the server: {memory:.2f} GB.")


def prepare(run: Path) -> None:
    """What lies beside the run, and a second run."""
    beside = htc_probe.analysis.results.default_path(run)
    # What is there and up to date stays.
    subprocess.run([sys.executable, "-m", "htc_probe.analysis.cli", "attention", "map", "--run", str(run)], check=True)
    with open_run(run) as opened:
        given: dict[str, Any] = {
            "run": htc_probe.analysis.results.identity(opened),
            "settings": {},
            "libraries": {},
            "seconds": 0,
        }
        there = htc_probe.analysis.results.read(beside).of(given["run"]).knockouts is not None
        sections = {} if there else random_knockouts(opened)
        scores = results.default_path(run)
        if not scores.exists():
            random_probes(opened, scores)
    for name, section in sections.items():
        htc_probe.analysis.results.write(beside, name, section, **given)
    for path in (run, beside, scores, results.predictions_path(scores)):
        other = path.with_name(path.name.replace("big", "other"))
        if not (other.exists() and other.samefile(path)):
            other.unlink(missing_ok=True)
            os.link(path, other)


def random_probes(run: Run, path: Path) -> None:
    """What htc-probe leaves for four tasks and three representations."""
    rng, n, keys = np.random.default_rng(2), len(run), (("z_voco", LAYERS), ("v_d", None), ("v_pooled", None))
    some = results.Interval(0.5, 0.4, 0.6)
    rows, asked = [], []
    for task in run.tasks:
        metric = {"classes": "top-1", "multilabel": "mAP", "number": "R2"}[task.kind]
        y = run.labels(task.name)
        asked.append(Asked(task.name, task.kind, task.classes, np.arange(n), np.arange(n) % 5, y))
        rows += [
            results.Row(
                suite=task.suite,
                task=task.name,
                kind=task.kind,
                unit=task.unit,
                representation=at,
                layer=layer,
                width=WIDTH,
                metric=metric,
                estimate=some.estimate,
                lower=some.lower,
                upper=some.upper,
                n=n,
                n_groups=n,
                floor=0.1,
                metrics={metric: some, "V-information": some},
                bits=0.5,
                compression=None,
                compression_interval=None,
                code_bits=None,
                control=None,
                selectivity=None,
                retention=some,
                strength=0.1,
                coded_strength=0.1,
                at_edge=False,
                gap=1e-6,
                fold_scores=(0.5,) * 5,
                classes=task.classes,
            )
            for at, layer in keys
        ]
    means = [
        results.SuiteMean(suite, at, layer, *some, 0.1, some, some, 2)
        for suite in ("semantic", "detail")
        for at, layer in keys
    ]
    confusions = [
        results.Confusion(
            task.name, at, layer, task.classes, tuple(map(tuple, rng.integers(0, 9, 2 * (len(task.classes),)).tolist()))
        )
        for task in run.tasks
        if task.kind == "classes"
        for at, layer in keys
    ]
    found = results.Results(
        {"suites": ["semantic", "detail"]},
        htc_probe.analysis.results.identity(run),
        {},
        (),
        tuple(rows),
        tuple(means),
        confusions=tuple(confusions),
    )
    results.write(found, path)
    with Writer(results.predictions_path(path), path.with_suffix(".keep"), found.run, asked, keys) as writer:
        for _ in keys:
            writer.add(
                [
                    Gaussian(rng.normal(100, 20, n), np.full(n, 20.0))
                    if task.kind == "number"
                    else rng.normal(size=(n, len(task.classes)))
                    for task in run.tasks
                ]
            )
        writer.finish()


def random_knockouts(run: Run) -> dict[str, Knockouts | Contributions]:
    """Sections as large as those of `htc-analyze knockouts contributions`, of 200 images and 10 questions."""
    rng = np.random.default_rng(1)
    n, T, Q, shape = 200, run.shape.keys - 1, 10, run.shape
    rows = np.linspace(0, len(run) - 1, n).astype(int)
    ids, groups = ([names[row] for row in rows] for names in (run.ids(), run.groups()))
    arrays = {
        "group_change": rng.random((n, 3, 4)),
        "group_window_change": rng.random((n, LAYERS, 2)),
        "group_answers": -rng.random((n, 3, 4, Q)),
        "group_window_answers": -rng.random((n, LAYERS, 2)),
        "shapley_cosine": rng.random((n, ANCHORS + 4)),
        "shapley_answers": rng.random((n, ANCHORS + 4)),
        "rank": rng.uniform(-1, 1, (n, 4, 2, LAYERS + 1)),
        "window_rank": rng.uniform(-1, 1, (n, 2, LAYERS)),
        "question_rank": rng.uniform(-1, 1, (n, 2, Q)),
    }
    corners = [f"{where} patches" for where in ("upper left", "upper right", "lower left", "lower right")]
    knockouts: dict[str, Any] = {
        "images": ids,
        "groups": groups,
        "token_role": list(ROLES[:T]),
        "token_row": np.array(shape.rows[:T]),
        "token_col": np.array(shape.cols[:T]),
        "questions": [f"question {at}" for at in range(Q)],
        "probes": [],
        "group_names": ["anchors", "random patches", "attended patches", "patches"],
        "group_modes": ["zero", "mean", "resampled"],
        "group_size": ANCHORS,
        "rank_predictors": ["attention", "attention x value x output", "gradient x gate", "gradient x input"],
        "rank_effects": ["z", "answers"],
        "shapley_players": [f"anchor {at + 1}" for at in range(ANCHORS)] + corners,
        "loo_change": rng.random((n, T, LAYERS + 1), np.float32),
        "loo_answers": rng.normal(size=(n, T, Q)),
        "window_change": rng.random((n, LAYERS, T), np.float32),
        **arrays,
        **{f"mean_group_answer{end}": np.zeros((3, 4)) for end in ("", "_lower", "_upper")},
    }
    for name, values in arrays.items():
        knockouts |= zip(records.ends(f"mean_{name}"), intervals_of_means(values, groups, 0), strict=True)
    norm = rng.random((n, LAYERS, shape.keys), np.float32)
    by_role = intervals_of_means(np.zeros((n, LAYERS, 1)), groups, 0)
    contributions = Contributions(
        images=ids,
        roles=["patch"],
        questions=[],
        norm=norm,
        share=norm - np.float32(0.5),
        share_by_role=by_role,
        attention_by_role=by_role,
    )
    forms = {name: records.describe(value) for name, value in knockouts.items()}
    return {"knockouts": records.build(Knockouts, forms, knockouts.__getitem__), "contributions": contributions}


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
                    names,
                    [f"val/{name}.jpg" for name in names],
                    names,
                    rng.integers(0, 256, (B, 96, 96, 3), dtype=np.uint8),
                    (centres["z"][category] + rng.normal(size=(B, WIDTH)))[:, None].astype(np.float32),
                    rng.normal(size=(B, ANCHORS, WIDTH)).astype(np.float32),
                    (centres["v"][category] + rng.normal(size=(B, WIDTH))).astype(np.float32),
                    rng.integers(0, CODEBOOK, (B, *CODES)),
                    attention / attention.sum(-1, keepdims=True),
                    {
                        "category": category,
                        "present": rng.integers(0, 2, (B, 20)).astype(np.uint8),
                        "texture": rng.integers(0, 47, B),
                        "size": rng.normal(100, 20, B),
                    },
                )
            )
        writer.finish()


if __name__ == "__main__":
    sys.exit(command.main("python -m benchmarks.dashboard", Settings, main, None, interrupted="nothing was kept"))
