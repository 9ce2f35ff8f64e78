"""Fixtures of several test modules. What they make is in `made/`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import browser


@pytest.fixture(autouse=True)
def main_stays_main() -> Iterator[None]:
    """Streamlit's AppTest leaves its script as `__main__`, which a process that is spawned later would then run."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


# ---- extraction


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """A fork computes with one thread, and the last bits of a sum may depend on their number."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model."""
    from made.models import small_model

    folder = tmp_path_factory.mktemp("model")
    small_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(model: Path) -> Path:
    """An uninterrupted run."""
    from htc_probe.extract.cli import main
    from made.interrupted import command

    out = model / "whole.h5"
    assert main(command(model, out)) == 0
    assert not out.with_name("whole.h5.shards").exists() and not out.with_name("whole.h5.partial").exists()
    return out


# ---- dashboard


@pytest.fixture
def open_app(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """Runs the app over the given roots, as the command would, at an address with this query. Fails at the end where a
    page told of a fault instead of showing it, unless the test let go of that with `caplog.clear()`.
    """
    from streamlit.testing.v1 import AppTest

    from htc_probe.dashboards import cli
    from htc_probe.dashboards.parts import controls

    script = str(Path(cli.__file__).with_name("app.py"))

    def start(*roots: Path, **query: str) -> AppTest:
        monkeypatch.setattr(sys, "argv", [script, *map(str, roots)])
        app = AppTest.from_file(script, default_timeout=60)
        for name, value in query.items():
            app.query_params[name] = value
        return app.run()

    yield start
    failed = [record for record in caplog.get_records("call") if record.name == controls.__name__]
    assert not failed, failed[0].exc_text or failed[0].exc_info


@pytest.fixture(scope="module")  # Playwright runs once at a time
def chromium() -> Iterator[Any]:
    """A real browser, driven as in `benchmarks.browser`. Skips where there is none, as on a laptop without it."""
    if browser.CHROMIUM is None:
        pytest.skip("no Chromium here; install it to run these (Debian: apt install chromium)")
    with browser.chromium() as started:
        yield started
