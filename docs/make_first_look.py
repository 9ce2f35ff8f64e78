"""Makes docs/first-look.md anew: what `make demo` writes on a terminal of 80 columns and 24 lines.

    python docs/make_first_look.py FOLDER      a clone of this repository; where it is installed, that is not done again

Runs the demo on a terminal of its own, and keeps what stays on its screen: bars that are drawn over are not. Beside it
goes tests/golden/demo.probes.json, what the verdict needs of the demo's results, which README is held against.
"""

import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from dataclasses import replace
from fcntl import ioctl
from pathlib import Path
from typing import Any

from htc_probe.probes.files import results
from htc_probe.probes.files.results import Results
from htc_probe.probes.show.table import key_of
from htc_probe.probes.show.verdict import of, token_of

ROOT = Path(__file__).parents[1]
COLUMNS, LINES = 80, 24
_STEP = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|([\r\n\b])|([^\x1b\r\n\b]+)|\x1b")


def shown(written: str) -> list[str]:
    """The lines of a terminal after all of this, also those that have left the screen; colours are left out."""
    lines, row, column = [""], 0, 0
    for step in _STEP.finditer(written):
        number, letter, control, text = step.groups()
        count = int(number) if number and number.isdigit() else 1
        if control == "\n":
            row += 1
        elif control == "\r":
            column = 0
        elif letter == "A":
            row = max(0, row - count)
        elif letter == "K":
            lines[row] = "" if number == "2" else lines[row][:column]
        elif text:
            for sign in text:
                if column == COLUMNS:
                    row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
                line = lines[row].ljust(column)
                lines[row], column = line[:column] + sign + line[column + 1 :], column + 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines]


def run(folder: Path) -> list[str]:
    """What `make demo` shows there."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "PYTHONPATH")}
    env |= {"TERM": "xterm-256color", "PATH": os.pathsep.join(["/usr/local/bin", "/usr/bin", "/bin"])}
    process = subprocess.Popen(["make", "demo"], cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 2**16)
        except OSError:  # so Linux ends it
            break
        if not part:
            break
        written += part
    if process.wait():
        sys.exit(written.decode(errors="replace"))
    return shown(written.decode(errors="replace"))


def page(lines: list[str]) -> str:
    """The page of these lines."""
    while lines and not lines[-1]:
        lines.pop()
    before, last = lines[: -LINES + 1], lines[-LINES + 1 :]
    return _PAGE.format(before="\n".join(before).strip(), last="\n".join(last))


_PAGE = """# The first look

`make demo` on a terminal of 80 columns, as it is (made by `docs/make_first_look.py`, where the toolkit was installed
already; from nothing, the commands of its installation stand in between). First it says how long it takes and what it
does:

```
$ make demo
{before}
```

The verdict is on the last screen of 24 lines:

```
{last}
$
```

[What the numbers mean](probing.md). `htc-probe --full` prints all tables, and the last line above is what to type next.
"""


def kept(found: Results) -> Results:
    """What its verdict is made of, and no more."""
    token = token_of(found.rows)
    rows = (replace(row, metrics={}) for row in found.rows if key_of(row) == token)
    none: dict[str, Any] = dict.fromkeys(
        ("comparisons", "code_comparisons", "curves", "kept", "suite_gaps", "by_class", "ceilings", "confusions"), ()
    )
    return replace(found, rows=tuple(rows), **none)


def store(folder: Path) -> None:
    """Writes tests/golden/demo.probes.json. Raises ValueError where the verdict is not that of the whole."""
    found = results.read(folder / "runs" / "scenes-val.probes.json")
    if str(of(kept(found), None)) != str(of(found, None)):
        raise ValueError("the verdict needs more of the results than is kept")
    with tempfile.TemporaryDirectory() as place:
        written, *_ = results.write(kept(found), Path(place) / "demo.probes.json")
        shutil.copy(written, ROOT / "tests" / "golden" / written.name)


if __name__ == "__main__":
    (ROOT / "docs" / "first-look.md").write_text(page(run(Path(sys.argv[1]))), encoding="utf-8")
    store(Path(sys.argv[1]))
