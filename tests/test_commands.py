"""What all six commands have in common: settings, help, version, completion, and how they end."""

import contextlib
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from htc_probe.extract import arguments, command
from htc_probe.extract.arguments import Shown, Told
from htc_probe.extract.errors import UserError
from made.typed import SCRIPTS, module, parsed

ROOT = Path(__file__).parents[1]
HELPS = [[name] for name in sorted(SCRIPTS)] + [["htc-train", "tiny"]]


def output(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says on stdout; it must end well and say nothing else."""
    assert module(words[0]).main(words[1:]) == 0
    said = capsys.readouterr()
    assert not said.err
    return said.out


# ---- help


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_help_fits_a_terminal_and_breaks_no_sentence(words: list[str], capsys: Any) -> None:
    text = output([*words, "--help"], capsys)
    assert text == output([*words, "-h"], capsys)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    for junk in ("None", "default:", "[]", "''", "typing", "Path(", "(required)"):
        assert junk not in text, junk
    settings = text.split("Settings:\n")[1].split("\nExamples:")[0]
    rows = re.split(r"\n(?=  \S|\n|\S)", settings.rstrip())
    assert len(rows) > 4
    for row in rows:
        told = [line[24:] for line in row.splitlines() if line[22:24] == "  " and not re.fullmatch(r" +\[.*\]", line)]
        assert len(told) <= 2, row
        assert all(line[-1] in ".;:,)" for line in told[:-1]), row


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_the_examples_of_help_are_read_by_the_command(words: list[str], capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "CONFIG.toml").write_text('init-from = "llava"')
    examples = output([*words, "--help"], capsys).split("Examples:\n")[1].replace("\\\n", " ").strip().splitlines()
    assert len(examples) >= 3
    for example in examples:
        typed = shlex.split(example, comments=True)
        if typed[0] in ("torchrun", "accelerate"):
            typed = ["htc-train", *typed[typed.index("htc_probe.extract.training.cli") + 1 :]]
        assert typed[0] == words[0], example
        assert parsed([str(tmp_path / word) if word == "CONFIG.toml" else word for word in typed])


def test_every_setting_is_told_of(capsys: Any) -> None:
    for words in HELPS:
        text = output([*words, "--help"], capsys)
        left = [line for line in text.splitlines() if re.match(r"  -", line)]
        bare = [line for line in left if not line[24:].strip()]
        after = text.splitlines()
        for line in bare:
            assert after[after.index(line) + 1].startswith(" " * 24), f"nothing is said of {line.strip()}"


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_version(name: str, capsys: Any) -> None:
    assert re.fullmatch(rf"{name} \d+\.\d+\.\d+\n", output([name, "--version"], capsys))


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_mistakes_are_one_line(name: str, capsys: Any) -> None:
    for typed in (["--nothing-of-this"], ["--completion", "cmd"], ["--versoin"]):
        assert module(name).main(typed) == 2
        said = capsys.readouterr()
        assert said.err.startswith(f"{name}: ") and said.err.count("\n") == 1 and not said.out


# ---- settings


@dataclass(frozen=True)
class Stage:
    """One."""

    steps: int
    """Steps."""
    rate: float = 0.5
    """Rate."""


@dataclass(frozen=True)
class Everything:
    """Every kind of setting."""

    needed: str
    """Has no default."""
    words: Annotated[tuple[str, ...], Shown("WORD", words=("one", "two"), positional=True)] = ("one",)
    """Stand by themselves."""
    number: int | None = None
    """A number."""
    size: int | Literal["auto"] = "auto"
    """Either."""
    place: Path = Path("here")
    """A place."""
    kind: Literal["a", "b"] = "a"
    """One of two."""
    quiet: bool = False
    """Off."""
    loud: bool = True
    """On."""
    names: tuple[str, ...] = ()
    """Several."""
    numbers: tuple[int, ...] = (1, 2)
    """Several numbers."""
    stage: Stage = Stage(3)
    """Of its own."""


def read(line: str, **given: Any) -> Everything:
    return arguments.parse(Everything, shlex.split(line), "prog", given={"needed": "x"} | given)


def test_settings_are_read() -> None:
    assert read("") == Everything("x")
    assert read("--needed y") == Everything("y")
    assert read("two three").words == ("two", "three")
    assert read("--number -3").number == -3 and read("--number=4").number == 4
    assert read("--size 8").size == 8 and read("--size auto").size == "auto"
    assert read("--place a/b").place == Path("a/b") and read("--kind b").kind == "b"
    assert read("--quiet --no-loud") == Everything("x", quiet=True, loud=False)
    assert read("--quiet --no-quiet") == Everything("x")
    assert read("--names a b --number 3 c") == Everything("x", ("c",), number=3, names=("a", "b"))
    assert read("--names").names == () and read("--numbers 5 -6").numbers == (5, -6)
    assert read("--stage.rate 2 --stage.steps 9").stage == Stage(9, 2.0)
    assert read("--needed -1,0").needed == "-1,0", "a value may begin with a minus"
    assert read("-- --number").words == ("--number",)
    assert read("--number 1 --number 2").number == 2, "the last one counts"
    assert read("", number=7).number == 7 and read("--number 8", number=7).number == 8


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--number x", "--number 'x': expected a whole number"),
        ("--size big", "--size 'big': expected a whole number or auto"),
        ("--kind c", "--kind 'c': expected a or b"),
        ("--numbers 1 x", "--numbers 'x': expected a whole number"),
        ("--stage.rate fast", "--stage.rate 'fast': expected a number"),
        ("--number", "--number needs a value: --number N"),
        ("--place --quiet", "--place needs a value: --place FILE"),
        ("--quiet=yes", "--quiet takes no value"),
        ("--numbr 3", "did you mean --number?"),
        ("--no-number", "no setting of prog"),
        ("-q", "-q is no setting of prog"),
    ],
)
def test_what_cannot_be_read_is_told(line: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        read(line)
    assert said in str(error.value)


def test_underscores_are_read_as_hyphens() -> None:
    @dataclass(frozen=True)
    class Long:
        """One setting."""

        a_b: int = 0
        """Both."""

    assert arguments.parse(Long, ["--a_b", "3"], "prog") == arguments.parse(Long, ["--a-b=3"], "prog") == Long(3)
    with pytest.raises(UserError, match="3 is no setting of prog"):
        arguments.parse(Long, ["3"], "prog")


def test_help_shows_true_defaults() -> None:
    with pytest.raises(Told) as told:
        read("--help")
    text = str(told.value)
    for words in (
        "usage: prog [WORD ...] [SETTINGS]",
        "  WORD ...              Stand by themselves. [one]",
        "  --number N            A number.\n",
        "  --size N|auto         Either. [auto]",
        "  --place FILE          A place. [here]",
        "  --kind a|b            One of two. [a]",
        "  --quiet               Off.\n",
        "  --[no-]loud           On. [on]",
        "  --names TEXT ...      Several.\n",
        "  --numbers N ...       Several numbers. [1 2]",
        "\nstage: Of its own.\n  --stage.steps N       Steps. [3]\n  --stage.rate X        Rate. [0.5]\n",
    ):
        assert words in text, words


# ---- completion


def offered(kind: type, *words: str) -> list[str]:
    with pytest.raises(Told) as told:
        arguments.parse(kind, ["--complete", *words], "prog")
    return str(told.value).splitlines()


def test_what_completion_offers() -> None:
    assert offered(Everything, "--n") == ["--needed", "--number", "--names", "--numbers", "--no-loud"]
    assert offered(Everything, "--kind", "") == ["a", "b"] and offered(Everything, "--kind", "b") == ["b"]
    assert offered(Everything, "--size", "a") == ["auto"]
    assert offered(Everything, "--number", "") == [], "a number is not guessed"
    assert offered(Everything, "--place", "he") == [":files"]
    assert offered(Everything, "") == ["one", "two"] and offered(Everything, "--quiet", "t") == ["two"]
    assert offered(Everything, "--names", "a", "") == [] and offered(Everything, "three") == []
    assert offered(Everything, "--completion", "") == ["bash", "zsh", "fish"]
    assert offered(Everything, "--place", "=", "he") == [":files"], "bash parts words at ="


def typed_in(shell: str, folder: Path, line: str) -> list[str]:
    """What a real shell offers at the end of the line, in a folder with one file and one folder."""
    (folder / "bin").mkdir(exist_ok=True)
    for name in SCRIPTS:
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m {SCRIPTS[name].split(":")[0]} "$@"\n')
        script.chmod(0o755)
    name, empty = line.split()[0], ' ""' if line.endswith(" ") else ""
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    if shell == "bash":
        code = (
            f"source <({name} --completion bash)\nCOMP_WORDS=({line}{empty})\n"
            "COMP_CWORD=$((${#COMP_WORDS[@]}-1))\n"
            f"_{name.replace('-', '_')} {name}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
        )
        typed = ["bash", "--norc", "-c", code]
    elif shell == "fish":
        typed = ["fish", "--no-config", "-c", f"{name} --completion fish | source; complete -C {shlex.quote(line)}"]
    else:
        # zsh completes at a prompt alone: its functions are called with the two that it would call in their place.
        code = (
            "compdef() { :; }; _files() { ls -p; }; compadd() { shift; print -l -- ${(P)1}; }\n"
            f"source <({name} --completion zsh)\nwords=({line}{empty}); CURRENT=${{#words}}\n"
            f"_{name.replace('-', '_')}\n"
        )
        typed = ["zsh", "-f", "-c", code]
    work = folder / "work"
    (work / "sub").mkdir(parents=True, exist_ok=True)
    (work / "run.h5").touch()
    env = os.environ | {"PATH": path, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(folder)}
    done = subprocess.run(typed, capture_output=True, text=True, cwd=work, env=env, check=True)
    assert not done.stderr, done.stderr
    return [each.split("\t")[0] for each in done.stdout.splitlines() if each]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_in_a_real_shell(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    assert typed_in(shell, tmp_path, "htc-extract --dty") == ["--dtype"]
    assert typed_in(shell, tmp_path, "htc-extract --dtype b") == ["bfloat16"]
    assert typed_in(shell, tmp_path, "htc-extract --limit ") == []
    assert {"sub", "run.h5"} <= {each.rstrip("/") for each in typed_in(shell, tmp_path, "htc-analyze --run ")}
    assert typed_in(shell, tmp_path, "htc-probe sem") == ["semantic"]
    assert typed_in(shell, tmp_path, "htc-train ti") == ["tiny"]
    assert typed_in(shell, tmp_path, "htc-train tiny --clip.s") == ["--clip.steps"]


# ---- progress


@pytest.mark.parametrize(
    ("done", "left", "seconds", "said"),
    [
        (0, 200, 12.0, "0:12 so far"),
        (50, 150, 10.0, "5.0/s, about 0:30 left"),
        (50, 150, 40.0, "1.2/s, about 2:00 left"),  # nothing came for half a minute: the time left grows
        (2, 10, 100.0, "50.0 s each, about 8:20 left"),
        (2, 10_000, 100.0, "50.0 s each, about 138:53:20 left"),
        (7, None, 14.0, "2.0 s each, 0:14 so far"),
        (9, 0, 3.0, "3.0/s, 0:03 so far"),  # all are done, what follows is not counted: never 0:00 left
    ],
)
def test_the_time_left_is_that_of_what_is_left(done: int, left: int | None, seconds: float, said: str) -> None:
    assert command._pace(done, left, seconds) == said


def on_a_terminal(code: str, **variables: str) -> tuple[str, str]:
    """What a program writes to stderr, a terminal of 80 columns, and to stdout, which is none."""
    ours, theirs = pty.openpty()
    env = {
        **os.environ,
        "COLUMNS": "80",
        "TERM": "xterm-256color",
        "PYTHONPATH": os.pathsep.join(sys.path),
        **variables,
    }
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError), os.fdopen(ours, "rb", buffering=0) as screen:
            while piece := screen.read(4096):
                shown += piece
        assert process.stdout is not None
        return shown.decode(), process.stdout.read().decode()


BAR = """
from htc_probe.extract import command
with command.progress("knockouts", "images", total=200, done=20) as bar:
    for _ in range(3):
        bar.advance(30)
        bar._bar.refresh()
    print("a result")
"""


def test_progress_is_shown_on_a_terminal_alone() -> None:
    coloured, printed = on_a_terminal(BAR)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", coloured)
    assert "knockouts" in shown and "110/200 images," in shown and re.search(r"\d/s, about 0:0\d left", shown)
    assert printed == "a result\n" and re.search(r"\x1b\[3\dm|\x1b\[38;", coloured), "in colours"
    plain, _ = on_a_terminal(BAR, NO_COLOR="1")
    assert "110/200" in plain and not re.search(r"\x1b\[3\dm|\x1b\[38;", plain)
    assert on_a_terminal(BAR, TERM="dumb")[0] == ""
    piped = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True, check=True)
    assert (piped.stdout, piped.stderr) == ("a result\n", "")


def test_what_a_bar_says_can_be_printed_where_none_is_shown() -> None:
    with command.progress("learning", "steps", total=4000, done=1000, shown=False) as bar:
        bar.advance(500)
        assert re.fullmatch(r"1,500 of 4,000 steps, .* left", bar.words())
        bar.reach(4000, 4000)
        assert re.fullmatch(r"4,000 of 4,000 steps, .* so far", bar.words())


# ---- the end


@pytest.mark.parametrize("words", [[name, "--help"] for name in sorted(SCRIPTS)], ids=" ".join)
def test_a_reader_that_has_enough_gets_no_traceback(words: list[str]) -> None:
    """As `htc-probe --help | head` is."""
    typed = [sys.executable, "-m", SCRIPTS[words[0]].split(":")[0], *words[1:]]
    with subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141
