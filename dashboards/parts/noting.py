"""Notes and tags on a page: of the image that is shown, and tags of many at once. Knows Streamlit and the notes beside
a run; not what is in a run.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from htc_probe.dashboards import data, notes
from htc_probe.dashboards.parts.controls import plain
from htc_probe.extract.errors import UserError

NOTED = "(has a note)"
"""Stands among the tags."""
_FAILED = "notes_failed"


def show(run: Path, name: str) -> None:
    """Tags and note of the image called `name`, to be changed."""
    note = data.notes(run).get(name, notes.Note())
    # A widget keeps what was typed, also where the file says something else since: another state is another widget.
    tags_key, text_key = f"tags_of_{name}_{note.tags}", f"note_of_{name}_{note.text}"

    def tag() -> None:
        now, before = set(st.session_state[tags_key]), set(note.tags)
        _try(lambda: notes.tag(data.notes_place(run), [name], add=sorted(now - before), remove=before - now))

    def write() -> None:
        _try(lambda: notes.write(data.notes_place(run), name, st.session_state[text_key], note.text))

    known = sorted({tag for other in data.notes(run).values() for tag in other.tags})
    look: dict[str, Any] = {"accept_new_options": True, "placeholder": "type a tag", "on_change": tag}
    st.multiselect("Tags of this image", known, note.tags, key=tags_key, **look)
    st.text_area("Note on this image", note.text, key=text_key, on_change=write, height=90)
    _tell()


def tag_all(run: Path, names: Sequence[str]) -> None:
    """Gives a tag to many images, or takes it away."""
    with st.popover(f"Tag these {len(names):,}"):
        tag = st.text_input("Tag", key="tag_all")
        give, take = st.columns(2)
        look: dict[str, Any] = {"width": "stretch", "disabled": not tag.strip()}
        give.button("Add", on_click=_tag_all, args=(run, names, (tag,), ()), **look)
        take.button("Remove", on_click=_tag_all, args=(run, names, (), (tag.strip(),)), **look)


def export(run: Path) -> None:
    """The table as it lies beside the run, where there is one."""
    if data.notes(run):
        path = data.notes_place(run)
        st.download_button("Notes and tags as CSV", path.read_bytes, path.name, "text/csv", on_click="ignore")


def _tag_all(run: Path, names: Sequence[str], add: Sequence[str], remove: Sequence[str]) -> None:
    _try(lambda: notes.tag(data.notes_place(run), names, add=add, remove=remove))


def _try(change: Callable[[], None]) -> None:
    """Does it; what went wrong is told when the page is drawn."""
    try:
        change()
    except UserError as error:
        st.session_state[_FAILED] = str(error)


def _tell() -> None:
    if (failed := st.session_state.pop(_FAILED, None)) is not None:
        st.error(f"Not saved: {plain(failed)}.")
