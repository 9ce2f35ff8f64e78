"""Keys that do what a click does, and the list of them. Knows what is on every page; not runs.

N and P are shortcuts of their buttons; what no button of Streamlit's can have is in keys.js.
"""

import html
from pathlib import Path

import streamlit as st

_KEYS = {
    "N, →": "next image",
    "P, ←": "previous image",
    "1 to 9": "the page at that place",
    "/": "find an image by its id or labels; Enter again for the next one, Esc to leave the field",
    "?": "this list",
}
"""Keys, and what they do."""

_LINES = "".join(f"<dt>{html.escape(keys)}</dt><dd>{html.escape(what)}</dd>" for keys, what in _KEYS.items())
_HTML = f"""
<button class="open" type="button">Keys <kbd>?</kbd></button>
<dialog aria-labelledby="keys">
    <h2 id="keys">Keys</h2>
    <dl>{_LINES}</dl>
    <p>They rest while you type in a field. On the open list of keys, Esc closes it.</p>
    <form method="dialog"><button>Close</button></form>
</dialog>
"""
_CSS = """
button {
    padding: 4px 12px; border: 1px solid var(--st-border-color); border-radius: var(--st-button-radius);
    background: var(--st-background-color); color: var(--st-text-color); font: 14px/1.6 var(--st-font); cursor: pointer;
}
button:hover, button:focus-visible { border-color: var(--st-primary-color); color: var(--st-primary-color); }
dialog {
    box-sizing: border-box; width: min(480px, calc(100vw - 32px)); padding: 8px 24px 24px; border-radius: 8px;
    border: 1px solid var(--st-border-color); background: var(--st-background-color); color: var(--st-text-color);
    font: 16px/1.5 var(--st-font);
}
dialog::backdrop { background: rgba(0, 0, 0, 0.4); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 20px; }
dt { font-family: var(--st-code-font); font-weight: 700; }
dd { margin: 0; }
kbd { font: 13px var(--st-code-font); }
"""
_component = st.components.v2.component(
    "htc_keys", html=_HTML, css=_CSS, js=Path(__file__).with_name("keys.js").read_text()
)


def listen() -> None:
    """Keys work from here on, on all pages; draws the button that lists them."""
    _component(key="keys")
