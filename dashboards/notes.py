"""Notes and tags on the images of a run: NAME.notes.csv beside it, a line an image. The one reader and writer of it.

Knows the file; not runs, and nothing of Streamlit. It is keyed by the images' ids, so that it outlives a run that is
extracted again; what a spreadsheet saves as CSV is read as well. Who changes it reads it first, while all others wait,
and writes it whole or not at all: two that write at the same time, or one that is killed, lose nothing.
"""

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from htc_probe.extract.errors import UserError, reason
from htc_probe.extract.files import replaced

_HEAD = ["id", "tags", "note"]
_BETWEEN = "; "
_LONGEST_TAG = 40
_LONGEST_TEXT = 10_000
_WAY_OUT = "notes and tags need a folder that can be written to"


class Note(NamedTuple):
    """What is noted of one image."""

    tags: tuple[str, ...] = ()
    """In the order of the alphabet."""
    text: str = ""


def notes_path(run: Path) -> Path:
    """`runs/scenes-val.notes.csv` for `runs/scenes-val.h5`."""
    return run.with_suffix(".notes.csv")


def read(path: Path) -> dict[str, Note]:
    """The notes by id; none where there is no file. Raises UserError when it cannot be read or is something else."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {reason(error)}") from error
    notes: dict[str, Note] = {}
    try:
        lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        for number, line in enumerate(lines):
            if number == 0 and line != _HEAD:
                raise ValueError(f"it begins with {', '.join(line)[:60]!r}")
            if len(line) != len(_HEAD):
                raise ValueError(f"line {number + 1} has {len(line)} cells")
            if line[0] in notes:
                raise ValueError(f"image {line[0]!r} has two lines")
            if number:
                tags = {tag.strip() for tag in line[1].split(_BETWEEN.strip())} - {""}
                notes[line[0]] = Note(tuple(sorted(tags)), line[2])
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{path.name} is damaged: {error}; expected a table (CSV) of {', '.join(_HEAD)}. It is left as it is: mend "
            "it, or move it away to begin anew"
        ) from error
    return notes


def tag(path: Path, ids: Iterable[str], *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
    """Gives tags to images and takes some away; those that others gave stay. Raises UserError for a tag that is empty,
    longer than 40 characters or has `;` or a line's end in it, and when the file is damaged or cannot be written.
    """
    add, remove = [_checked(name) for name in add], set(remove)
    with _changed(path) as notes:
        for name in ids:
            note = notes.get(name, Note())
            notes[name] = note._replace(tags=tuple(sorted({*note.tags, *add} - remove)))


def write(path: Path, name: str, text: str, before: str) -> None:
    """Notes `text` of an image. `before`: what the writer saw; where another wrote meanwhile, both texts stay, one
    under the other. Raises UserError for one of more than 10,000 characters, and as `tag`.
    """
    text = text.replace("\0", "").strip()
    if len(text) > _LONGEST_TEXT:
        raise UserError(f"a note of {len(text):,} characters is too long; expected at most {_LONGEST_TEXT:,}")
    with _changed(path) as notes:
        note = notes.get(name, Note())
        if note.text not in (before, text):
            text = "\n\n".join(filter(None, [note.text, text]))
        notes[name] = note._replace(text=text)


def _checked(name: str) -> str:
    name = name.strip()
    if not 0 < len(name) <= _LONGEST_TAG or not name.isprintable() or ";" in name:
        raise UserError(f"{name[:60]!r} is not a tag; expected 1 to {_LONGEST_TAG} characters without ;")
    return name


@contextlib.contextmanager
def _changed(path: Path) -> Iterator[dict[str, Note]]:
    """The notes as they are, written as they are left. Others that would write wait."""
    with replaced(path, _WAY_OUT) as partial:
        notes = read(path)
        yield notes
        partial.write_text(_table(notes), encoding="utf-8", newline="")


def _table(notes: Mapping[str, Note]) -> str:
    text = io.StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow(_HEAD)
    lines.writerows([name, _BETWEEN.join(note.tags), note.text] for name, note in sorted(notes.items()) if any(note))
    return text.getvalue()
