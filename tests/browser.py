"""A dashboard in a real browser; see `benchmarks.browser`."""

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import browser
from benchmarks.browser import Tab, serving, tab

__all__ = ["Tab", "chromium", "serving", "tab"]


@pytest.fixture(scope="module")  # each module that imports it has its own, and Playwright runs once at a time
def chromium() -> Iterator[Any]:
    """The browser. Skips where there is none, as on a laptop without it."""
    if browser.CHROMIUM is None:
        pytest.skip("no Chromium here; install it to run these (Debian: apt install chromium)")
    with browser.chromium() as found:
        yield found
