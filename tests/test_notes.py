"""Notes and tags beside a run: nothing that was written is lost, by whom or whatever it is interrupted."""

import csv
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from htc_probe.dashboards.notes import Note, notes_path, read, tag, write
from htc_probe.extract.errors import UserError

ODD = ['a "quoted", id', "=1+1", "two\nlines", "\r", "ü/ß", " spaces "]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return notes_path(tmp_path / "scenes-val.h5")


def test_what_is_written_is_read_again(path: Path) -> None:
    assert path.name == "scenes-val.notes.csv" and read(path) == {}
    tag(path, ODD, add=["odd", " to check "])
    tag(path, ODD[:1], remove=["odd", "never given"])
    write(path, "ü/ß", 'it says "so", =twice\nand twice', "")
    notes = read(path)
    assert set(notes) == set(ODD)
    assert notes[ODD[0]] == Note(("to check",)) and notes[ODD[1]] == Note(("odd", "to check"))
    assert notes["ü/ß"] == Note(("odd", "to check"), 'it says "so", =twice\nand twice')
    with path.open(newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["id", "tags", "note"], "any spreadsheet reads it"


def test_an_image_without_a_note_has_no_line(path: Path) -> None:
    tag(path, ["a"], add=["x"])
    write(path, "b", "text", "")
    tag(path, ["a"], remove=["x"])
    write(path, "b", "  ", "text")
    assert read(path) == {}


def test_a_table_that_a_spreadsheet_saved_is_read(path: Path) -> None:
    path.write_bytes("\ufeffid,tags,note\r\na,x;y ; ,\r\n".encode())
    assert read(path) == {"a": Note(("x", "y"))}


def test_of_two_texts_at_the_same_time_both_stay(path: Path) -> None:
    write(path, "a", "first", "")
    write(path, "a", "second", "")  # by one who had not seen the first
    assert read(path)["a"].text == "first\n\nsecond"
    write(path, "a", "whole", "first\n\nsecond")
    write(path, "a", "whole", "")  # the same twice
    assert read(path)["a"].text == "whole"


def test_changes_at_the_same_time_lose_nothing(path: Path) -> None:
    def change(number: int) -> None:
        tag(path, [f"image {number % 5}"], add=[f"tag {number}"])
        write(path, f"own {number}", f"text {number}", "")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(40)))
    notes = read(path)
    assert {name for image in range(5) for name in notes[f"image {image}"].tags} == {f"tag {n}" for n in range(40)}
    assert all(notes[f"own {n}"].text == f"text {n}" for n in range(40))
    assert list(path.parent.iterdir()) == [path]


_WRITER = """
import sys
from pathlib import Path
from htc_probe.dashboards.notes import tag
path, who = Path(sys.argv[1]), sys.argv[2]
for number in range(10**6):
    tag(path, [f"{who} {number}"], add=["written"])
    print(number, flush=True)
"""


def test_writers_that_are_killed_lose_nothing_that_they_wrote(path: Path) -> None:
    command = [sys.executable, "-c", _WRITER, str(path)]
    writers = [subprocess.Popen([*command, who], stdout=subprocess.PIPE, text=True) for who in ("a", "b")]
    told: dict[str, list[str]] = {}
    try:
        for who, writer, most in zip("ab", writers, (7, 12), strict=True):
            assert writer.stdout is not None
            told[who] = [writer.stdout.readline().strip() for _ in range(most)]
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()
    notes = read(path)
    assert all(f"{who} {number}" in notes for who, numbers in told.items() for number in numbers)
    tag(path, ["after"], add=["written"])  # what a killed one left is in nobody's way
    assert set(read(path)) == {*notes, "after"}


@pytest.mark.parametrize(
    "content",
    [b"no table", b"\xff\xfe", b'id,tags,note\n"a', b"id,tags,note\na,b\n", b"id,tags,note\na,,x\na,,y\n", b"\0\0"],
)
def test_a_damaged_file_is_told_of_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for act in (lambda: read(path), lambda: tag(path, ["a"], add=["x"]), lambda: write(path, "a", "text", "")):
        with pytest.raises(UserError, match="scenes-val.notes.csv is damaged: .*left as it is"):
            act()
    assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


def test_where_nothing_can_be_written_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="folder that can be written to"):
        tag(tmp_path / "file" / "run.notes.csv", ["a"], add=["x"])


@pytest.mark.parametrize("name", ["", "  ", "a;b", "a\nb", "x" * 41])
def test_what_is_no_tag_is_refused(path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not a tag"):
        tag(path, ["a"], add=[name])
    with pytest.raises(UserError, match="too long"):
        write(path, "a", "x" * 10_001, "")
    assert not path.exists()
