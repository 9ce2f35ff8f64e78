"""A dashboard in a real browser: the command in a process of its own, and headless Chromium (Debian's `chromium`), for
benchmarks, tests and the pictures of the documentation.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Without these it asks its maker's servers for news at every start.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]

_WRONG = '[data-testid="stException"], [data-testid="stAlertContentError"]'
# True as soon as no script runs or is asked to, and nothing has changed on the page for a while: longer than the time
# from an event to what it asks for, such as a picture for the pointer.
_SETTLED = """() => new Promise((done) => {
    const start = performance.now();
    let last = start;
    const watch = new MutationObserver(() => { last = performance.now(); });
    watch.observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true });
    const timer = setInterval(() => {
        const now = performance.now();
        const state = document.querySelector('[data-test-script-state]')?.dataset.testScriptState;
        const waits = ['[data-testid="stStatusWidget"]', '[data-testid="stSkeleton"]', '[data-stale="true"]',
            '.chart[aria-busy]'].join();
        if (state !== 'notRunning' || document.querySelector(waits)) last = now;
        if (now - last < 200 && now - start < 60_000) return;
        clearInterval(timer);
        watch.disconnect();
        done(now - last >= 200);
    }, 20);
})"""


@contextlib.contextmanager
def serving(*roots: Path, options: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of a dashboard over `roots`, without a slash at its end. options: more of the command's; environment:
    variables beside this process's own.
    """
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "htc_probe.dashboards.cli",
        *map(str, roots),
        "--port",
        str(port),
        "--no-browser",
        *options,
    ]
    variables = {**os.environ, **(environment or {})}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=variables, text=True)
    try:
        assert server.stdout is not None
        told = server.stdout.readline()  # htc-dashboard: ADDRESS  (stop with Ctrl-C)
        assert "http" in told, "the dashboard did not start"
        address = told.split()[1].rstrip("/")
        wait_for(address)
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(address: str) -> None:
    """Until Streamlit answers there."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            if urllib.request.urlopen(f"{address}/_stcore/health", timeout=2).read() == b"ok":
                return
        assert time.monotonic() < deadline, "the dashboard did not start"
        time.sleep(0.1)


class Tab:
    """One page of the browser over one dashboard. What the page's console complains of is in `errors`, and addresses
    beside the dashboard's that it asked for in `strangers`.
    """

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.errors: list[str] = []
        self.strangers: list[str] = []
        page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._asked)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.address, self.address.replace("http", "ws"), "data:", "blob:")):
            self.strangers.append(request.url)

    def open(self, **query: Any) -> Tab:
        """Loads the dashboard with these query parameters, such as page="Attention", image=3, layer=2."""
        self.page.goto(f"{self.address}/?{urllib.parse.urlencode(query)}")
        self.page.wait_for_selector('[data-testid="stSidebar"]', state="attached", timeout=60_000)  # closed on a phone
        return self.settle()

    def settle(self) -> Tab:
        """Waits until the script has run and charts are drawn; keeps what the page then says that went wrong."""
        assert self.page.evaluate(_SETTLED), "the page did not settle within a minute"
        self.errors += self.page.locator(_WRONG).all_inner_texts()
        return self

    def chart(self, key: str) -> Any:
        """The element of the chart drawn with this key."""
        return self.page.locator(f".st-key-{key} .js-plotly-plot")

    def values(self, key: str) -> Any:
        """What the chart holds now: plotly's `data` and `layout`. Scrolls to it, as it is drawn when it comes near."""
        self.page.locator(f".st-key-{key}").scroll_into_view_if_needed()
        self.settle()
        return self.chart(key).evaluate("plot => JSON.parse(JSON.stringify({data: plot.data, layout: plot.layout}))")

    def place(self, key: str, x: float, y: float) -> tuple[float, float]:
        """Where a point of a chart, in the chart's own coordinates, is on the screen."""
        self.page.locator(f".st-key-{key}").scroll_into_view_if_needed()
        self.settle()
        left, top = self.chart(key).evaluate(
            """(plot, [x, y]) => {
                const box = plot.getBoundingClientRect(), {xaxis, yaxis} = plot._fullLayout;
                return [box.left + xaxis._offset + xaxis.d2p(x), box.top + yaxis._offset + yaxis.d2p(y)];
            }""",
            [x, y],
        )
        return left, top

    def click_at(self, key: str, x: float, y: float) -> Tab:
        """Clicks in a chart at its own coordinates."""
        at = self.place(key, x, y)
        self.page.mouse.move(*at)
        self.page.wait_for_timeout(100)
        self.page.mouse.click(*at)
        return self.settle()

    def text(self) -> str:
        return self.page.locator('[data-testid="stMain"]').inner_text()

    def check(self) -> None:
        """Nothing went wrong on the way, nor is it wrong now."""
        self.settle()
        assert not self.errors, self.errors
        assert not self.strangers, self.strangers


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """The browser, to be given to `tab`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def tab(chromium: Any, address: str, *, width: int = 1500, height: int = 1400, dark: bool = False) -> Iterator[Tab]:
    context = chromium.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", accept_downloads=True
    )
    try:
        yield Tab(context.new_page(), address)
    finally:
        context.close()
