"""Rows of small pictures to click: one component for all of them, as a widget a picture would be slow."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import streamlit as st

from htc_probe.dashboards.parts.copies import key_here


class Picture(NamedTuple):
    """One picture of a gallery."""

    row: int
    """What a click on it gives."""
    source: str
    """A data URI."""
    name: str
    """In full where the pointer rests on it, and for screen readers."""
    lines: tuple[str, ...] = ()
    """Text under it."""
    current: bool = False
    """It is the image that all pages show."""
    marked: bool = False


_CSS = """
div.gallery { display: flex; flex-wrap: wrap; gap: 6px; padding: 3px; }
button {
    box-sizing: border-box; width: 90px; padding: 2px; border: 2px solid transparent; border-radius: 6px;
    background: none; color: var(--st-text-color); font: 12px/1.3 var(--st-font); text-align: left; cursor: pointer;
}
button:hover, button:focus-visible { border-color: var(--st-text-color); outline: none; }
button.marked { border-color: #0072b2; }
button.current { border-color: #d55e00; }
img { display: block; width: 100%; aspect-ratio: 1; border-radius: 3px; }
span { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; min-height: 1.3em; }
"""
_JS = """
export default function ({ data, parentElement, setTriggerValue }) {
    const made = data.pictures.map(({ row, source, name, lines, current, marked }) => {
        const button = document.createElement("button"), image = document.createElement("img");
        button.type = "button";
        button.title = button.ariaLabel = name;
        button.classList.toggle("current", current);
        button.classList.toggle("marked", marked);
        image.src = source;
        image.alt = "";
        button.append(image, ...lines.map((line) => {
            const text = document.createElement("span");
            text.textContent = line;
            return text;
        }));
        button.onclick = () => setTriggerValue("row", row);
        return button;
    });
    parentElement.querySelector(".gallery").replaceChildren(...made);
}
"""
_component = st.components.v2.component("htc_gallery", html='<div class="gallery"></div>', css=_CSS, js=_JS)


def short(name: str, most: int = 13) -> str:
    """The end of an id, as ids differ in how they end."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def show(pictures: Sequence[Picture], key: str, on_click: Callable[[int], None]) -> None:
    """Draws them; `on_click` is called with the row of one that is clicked, before the page is drawn again."""

    key = key_here(key)

    def click() -> None:
        if (row := st.session_state[key]["row"]) is not None:
            on_click(row)

    _component(key=key, data={"pictures": [picture._asdict() for picture in pictures]}, on_row_change=click)
