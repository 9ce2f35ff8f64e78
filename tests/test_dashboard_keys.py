"""Keys, the search, and the browser's title."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.browser import Tab, serving, tab
from htc_probe.dashboards import data
from htc_probe.dashboards.app import PAGES
from made.pages import press, write_run

MINUTE = 60_000.0  # milliseconds

# ---- search: of four images the object is unknown, disc, bar, unknown; on all a disc is present; widths are 0.5 to 3.5


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("val-002", [2]),
        ("VAL-00", [0, 1, 2, 3]),
        ("object: disc", [1]),
        ("Object:  DISC", [1]),
        ("object: bar, val", [2]),
        ("object: bar, object: disc", []),
        ("present: disc", [0, 1, 2, 3]),
        ("bar", [2]),
        ("disc bar", [2]),
        ("unknown", [0, 3]),
        ("width: 2.5", [2]),
        ("2.5", []),
        ("colour: red", []),
        ("(*", []),
        (" ", []),
        ("", []),
    ],
)
def test_images_are_found_by_words_of_id_and_labels(tmp_path: Path, text: str, rows: list[int]) -> None:
    assert list(data.matching(data.key_of(write_run(tmp_path / "run.h5")), text)) == rows


def test_the_same_search_again_goes_to_the_next_image(tmp_path: Path, open_app) -> None:
    app = open_app(write_run(tmp_path / "run.h5"), image="2")

    def found(text: str) -> tuple[int, str]:
        app.text_input(key="find").set_value(text)
        press(app, "Find")
        told = [caption.value for caption in app.caption if "match" in caption.value or "No image" in caption.value]
        return app.number_input(key="image").value, told[0] if told else ""

    assert found("val") == (2, "2 of 4 that match.")  # it is one already
    assert [found("val")[0] for _ in range(4)] == [3, 4, 1, 2]
    assert found("object: bar") == (3, "1 of 1 that match.")
    assert found("*nothing*") == (3, r"No image has \*nothing\* in its id or labels.")
    assert found("") == (3, "")


# ---- keys


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, chromium: Any) -> Iterator[Tab]:
    run = write_run(tmp_path_factory.mktemp("runs") / "scenes-val.h5")
    with serving(run) as address, tab(chromium, address, width=1440, height=900) as opened:
        yield opened


def wait_for(shown: Tab, *, image: int | None = None, page: str | None = None) -> None:
    if image is not None:
        there = "number => document.querySelector('.st-key-image input')?.value === String(number)"
        shown.page.wait_for_function(there, arg=image, timeout=MINUTE)
    if page is not None:
        shown.page.wait_for_function("name => document.title.includes(` · ${name} · `)", arg=page, timeout=MINUTE)
    shown.settle()


def focused(shown: Tab) -> str:
    return shown.page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.tagName")


@pytest.mark.slow
def test_letters_and_arrows_step_through_the_images(shown: Tab) -> None:
    shown.open(page="Attention")
    for key, there in {"n": 2, "ArrowRight": 3, "N": 4, "p": 3, "ArrowLeft": 2, "P": 1}.items():
        shown.page.keyboard.press(key)
        wait_for(shown, image=there)

    shown.page.get_by_role("tab", name="Codes").click()  # a tab that was clicked leaves the arrows to the images
    wait_for(shown, page="Codes")
    shown.page.keyboard.press("ArrowRight")
    wait_for(shown, image=2, page="Codes")
    tabs = shown.page.get_by_role("tab")
    shown.page.keyboard.press("Shift+Tab")  # and one that was reached by keys has them for the tabs
    shown.page.keyboard.press("Tab")
    assert shown.page.evaluate("document.activeElement.role") == "tab"
    at = tabs.evaluate_all("all => all.findIndex(tab => tab === document.activeElement)")
    shown.page.keyboard.press("ArrowLeft")
    wait_for(shown, image=2, page=list(PAGES)[at - 1])
    shown.check()


@pytest.mark.slow
def test_digits_open_pages(shown: Tab) -> None:
    shown.open(image=2)
    for number, page in [*enumerate(PAGES, 1)][:9]:
        shown.page.keyboard.press(str(number))
        wait_for(shown, page=page)
        assert shown.page.title() == f"scenes-val · {page} · htc-dashboard"
        assert shown.page.get_by_role("tab", name=page, exact=True).get_attribute("aria-selected") == "true"
        assert shown.page.locator("h1").count() == 1
    shown.page.keyboard.press("2")
    wait_for(shown, image=2)
    shown.check()


@pytest.mark.slow
def test_a_slash_goes_to_the_search_where_keys_are_text(shown: Tab) -> None:
    shown.open(page="Attention", image=2)
    keyboard, field = shown.page.keyboard, shown.page.get_by_label("Find", exact=True).first
    keyboard.press("/")
    assert focused(shown) == "Find" and field.input_value() == ""
    keyboard.type("/np12?")
    assert field.input_value() == "/np12?" and not shown.page.locator("dialog").is_visible()
    keyboard.press("ArrowLeft")
    field.fill("object: bar")
    keyboard.press("Enter")
    wait_for(shown, image=3)
    field.fill("val")
    for there in (3, 4, 1):
        keyboard.press("Enter")
        wait_for(shown, image=there)
        shown.page.get_by_text(f"{there} of 4 that match").wait_for(timeout=MINUTE)
    keyboard.press("Escape")
    assert focused(shown) == "BODY"
    keyboard.press("n")
    wait_for(shown, image=2)

    shown.page.locator('[data-testid="stSidebarCollapseButton"] button').evaluate("button => button.click()")
    shown.page.locator('[data-testid="stSidebar"][data-collapsed="true"]').wait_for(state="attached", timeout=MINUTE)
    keyboard.press("n")
    wait_for(shown, image=3)
    keyboard.press("/")  # it opens the sidebar
    shown.page.wait_for_function("document.activeElement.ariaLabel === 'Find'", timeout=MINUTE)
    shown.page.locator('[data-testid="stSidebar"][data-collapsed="false"]').wait_for(timeout=MINUTE)
    shown.check()


@pytest.mark.slow
def test_a_question_mark_lists_the_keys(shown: Tab) -> None:
    shown.open(page="Attention", image=2)
    keyboard, dialog = shown.page.keyboard, shown.page.get_by_role("dialog", name="Keys")
    for close in (lambda: keyboard.press("Escape"), lambda: dialog.get_by_role("button", name="Close").click()):
        keyboard.press("?")
        assert "next image" in dialog.inner_text()
        for key in ("n", "ArrowRight", "3", "/"):
            keyboard.press(key)
        shown.settle()
        close()
        assert not dialog.is_visible()
    wait_for(shown, image=2, page="Attention")
    shown.page.get_by_role("button", name="Keys").click()
    assert dialog.is_visible()
    shown.check()
