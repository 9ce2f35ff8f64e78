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


# ---- checkpoints and instructions


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.model like LLaMA's."""
    from made.checkpoints import train_pieces

    return train_pieces(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="session")
def llava() -> Any:
    """LLaVA-1.5 as transformers has it, of random weights."""
    from made.checkpoints import random_llava

    return random_llava()


@pytest.fixture(scope="session")
def llavas(llava: Any, pieces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same in a folder of each layout."""
    from made.checkpoints import LAYOUTS, write_llava

    folder = tmp_path_factory.mktemp("llava")
    return {layout: write_llava(folder / layout, layout, llava, pieces) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """That of the rendered scenes."""
    from htc_probe.extract.data import scene_words

    return scene_words.build_tokenizer()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A LLaVA instruction file with images, text-only rows and several turns."""
    from made.instructions import write_photos

    return write_photos(tmp_path / "photos")


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
