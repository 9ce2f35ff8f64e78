"""htc-analyze: a kill loses no finished section, a section is made once, and the sentences follow the numbers."""

import dataclasses
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from htc_probe.analysis import cli, records, results, sentences, tables
from htc_probe.analysis.causes import mixing
from htc_probe.analysis.cli import AnalyzeConfig, main
from htc_probe.analysis.records import Record
from htc_probe.analysis.sections import Attention, Interchange, Knockouts, Map, Reading, Sections
from htc_probe.analysis.sentences import Sentence
from htc_probe.analysis.stats.draws import Interval, Intervals
from htc_probe.extract import again, models
from htc_probe.extract.cli import main as extract
from htc_probe.extract.data import scenes
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import open_run
from htc_probe.probes.files import results as probe_results
from htc_probe.probes.files import weights
from htc_probe.probes.files.results import Results, SuiteMean
from htc_probe.probes.files.weights import Probe
from made.filled import filled
from made.models import small_model

ROOT = Path(__file__).parents[1]
IMAGES, LAYERS = 24, 3
RUN = {"file": "run.h5", "created": "2026-01-01T00:00:00", "sha256": "ab", "images": 3}


class Lift(Record):
    estimate: Annotated[np.ndarray, "N"]
    overall: Annotated[Intervals, ""]


class Sample(Record):
    """One value of every kind that there is."""

    VERSION = 3

    rows: Annotated[np.ndarray, "N S"]
    unknown: Annotated[np.ndarray, "N"]
    is_anchor: Annotated[np.ndarray, "2 int"]
    none: Annotated[np.ndarray, "n 3"]
    share: float
    images: int
    metric: str
    tasks: Annotated[list[str], "T"]
    missing: int | None = None
    gain: Annotated[Intervals, "T"]
    lift: Lift
    other: Lift | None = None


class Small(Record):
    VERSION = 1

    share: float
    noise: Annotated[np.ndarray, "n"] | None = None


def ends(*values: float) -> Intervals:
    array = np.array(values if len(values) > 1 else values[0], np.float32)
    return Intervals(array, array - np.float32(0.5), array + np.float32(0.25))


SAMPLE = Sample(
    rows=np.arange(12, dtype=np.float32).reshape(3, 4),
    unknown=np.array([np.nan, 1.0, 2.0]),
    is_anchor=np.array([True, False]),
    none=np.zeros((0, 3)),
    share=1.25,
    images=3,
    metric="top-1 \u00e9",
    tasks=["shade", "count"],
    gain=ends(1, 2),
    lift=Lift(estimate=np.array([1.0, 2.0, 3.0]), overall=ends(4)),
)


def save(path: Path, name: str, section: Any = None, *, run: Any = None, settings: Any = None) -> None:
    results.write(
        path,
        name,
        SAMPLE if section is None else section,
        run=RUN if run is None else run,
        settings=settings or {},
        libraries={"numpy": np.__version__},
        seconds=1.5,
    )


# ---- the file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.analysis.h5"
    save(path, "sample", settings={"images": 3, "layers": (0, 1)})
    save(path, "other", Small(share=2.0))
    found = results.read(path)
    assert list(found.made) == ["sample", "other"]
    assert found.of(RUN) == Sections(), "of no analysis that there is"
    section = found.record("sample", Sample)
    assert section.missing is None and section.other is None
    for field in records.fields(Sample):
        mine, there = (getattr(record, field.name) for record in (SAMPLE, section))
        assert type(there) is type(mine)
        if not isinstance(mine, Record):
            np.testing.assert_array_equal(there, mine)
            assert getattr(there, "dtype", None) == getattr(mine, "dtype", None)
    np.testing.assert_array_equal(section.lift.estimate, SAMPLE.lift.estimate)
    assert section.lift.overall.only == (4, 3.5, 4.25) and section.gain.at(1) == (2, 1.5, 2.25)
    assert section.rows is section.rows and not section.rows.flags.writeable
    with h5py.File(path) as file:
        assert [name for name in file["sample"] if "lift" in name] == [
            "lift",
            "lift_overall",
            "lift_overall_lower",
            "lift_overall_upper",
        ]
    assert found.record("other", Small).share == 2.0
    made = found.made["sample"]
    assert (made.run, made.settings, made.seconds) == (RUN, {"images": 3, "layers": [0, 1]}, 1.5)
    assert made.libraries == {"numpy": np.__version__} and made.version == 3
    assert made.fits(RUN, {"images": 3, "layers": (0, 1)})
    assert made.fits(RUN | {"file": "moved.h5"}, {"images": 3, "layers": (0, 1)})
    assert not made.fits(RUN, {"images": 4, "layers": (0, 1)})
    assert not made.fits(RUN | {"created": "later"}, made.settings)
    with pytest.raises(UserError, match="no section 'map'.*sample, other.*htc-analyze map"):
        found.record("map", Sample)
    with pytest.raises(AttributeError, match="Sample has no 'lifts'"):
        section.lifts  # type: ignore[attr-defined]  # noqa: B018
    assert [at.name for at in path.parent.iterdir()] == [path.name]


def test_what_was_made_anew_since_is_not_mixed_with_it(tmp_path: Path) -> None:
    path = tmp_path / "run.analysis.h5"
    save(path, "sample")
    section = results.read(path).record("sample", Sample)
    assert section.share == 1.25
    save(path, "sample")
    with pytest.raises(UserError, match="sample in .* was made anew just now"):
        section.rows  # noqa: B018
    assert section.share == 1.25, "what was read stays"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rows", None, "rows is missing"),
        ("lift_overall_upper", None, "lift_overall_upper is missing"),
        ("rows", np.zeros((3, 4, 1)), r"rows has shape \(3, 4, 1\), expected \(N, S\)"),
        ("unknown", np.zeros(4), r"unknown has shape \(4,\), expected \(N = 3\)"),
        ("is_anchor", np.zeros(3, int), r"is_anchor has shape \(3,\), expected \(2\)"),
        ("is_anchor", np.zeros(2), "is_anchor has values of type 'f', expected one of 'biu'"),
        ("images", 3.0, "images has values of type 'f'"),
        ("rows", np.zeros((3, 4), int), "rows has values of type 'i', expected one of 'f'"),
        ("tasks", np.zeros(2), "tasks has values of type 'f', expected one of 'O'"),
        ("metric", 1.0, "metric has values of type 'f'"),
        ("share", "much", "share has values of type 'O'"),
        ("gain_lower", np.zeros(3, np.float32), r"gain_lower has shape \(3,\), expected \(T = 2\)"),
        ("lift", np.zeros(2), r"lift has shape \(2,\), expected \(N = 3\)"),
        ("other", np.zeros(3), "other_overall is missing"),
    ],
)
def test_a_section_that_is_not_as_declared_is_one_line(tmp_path: Path, name: str, value: Any, words: str) -> None:
    path = tmp_path / "run.analysis.h5"
    save(path, "sample")
    with h5py.File(path, "r+") as file:
        if name in file["sample"]:
            del file["sample"][name]
        if value is not None:
            file["sample"][name] = value
    with pytest.raises(UserError, match=f"is damaged: sample/{words}.*run htc-analyze again") as error:
        results.read(path).record("sample", Sample)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_section_is_replaced_and_those_of_another_run_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "run.analysis.h5"
    save(path, "attention", Small(share=1.0))
    save(path, "reading", Small(share=0.5))
    save(path, "attention", Small(share=3.0))
    found = results.read(path)
    assert found.record("attention", Small).share == 3.0 and found.record("reading", Small).share == 0.5
    save(path, "map", Small(share=1.0), run=RUN | {"created": "later"})
    assert list(results.read(path).made) == ["map"]


@pytest.mark.parametrize("value", [{"a": 1}, [1, 2], np.array([object()]), 1j, np.zeros(3), "much", None])
def test_what_is_not_as_declared_is_not_stored_and_nothing_changes(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "run.analysis.h5"
    save(path, "attention")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="share"):
        save(path, "attention", Small(share=value))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


WRITER = """
import sys
import numpy as np
from pathlib import Path
from typing import Annotated
from htc_probe.analysis import results
from htc_probe.analysis.records import Record

class Numbered(Record):
    VERSION = 1
    rows: Annotated[np.ndarray, "n"]
    number: int

path, prefix, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for number in range(count):
    section = Numbered(rows=np.random.default_rng(number).random(200_000, dtype=np.float32), number=number)
    results.write(path, f"{prefix}{number}", section, run={"created": "a", "sha256": "b"}, settings={}, libraries={},
                  seconds=0.0)
    print(number, flush=True)
"""


class Numbered(Record):
    VERSION = 1

    rows: Annotated[np.ndarray, "n"]
    number: int


def writer(path: Path, prefix: str, count: int) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", WRITER, str(path), prefix, str(count)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def check_sections(path: Path, prefix: str, at_least: int) -> None:
    found = results.read(path)
    mine = [name for name in found.made if name.startswith(prefix)]
    assert len(mine) >= at_least
    for name in mine:
        number, section = int(name.removeprefix(prefix)), found.record(name, Numbered)
        wanted = np.random.default_rng(number).random(200_000, dtype=np.float32)
        assert section.number == number and np.array_equal(section.rows, wanted)


KILLS = 14


@pytest.mark.slow
def test_a_kill_loses_no_finished_section(tmp_path: Path) -> None:
    """At whatever instant: killed while it writes, again and again, each time a little later."""
    path = tmp_path / "run.analysis.h5"
    for attempt in range(KILLS):
        process = writer(path, f"{attempt}-", 1000)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.007 * attempt)
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read().split()
        process.wait()
        check_sections(path, f"{attempt}-", 1 + len(said))
    assert {at.name for at in tmp_path.iterdir()} <= {path.name, path.name + ".partial"}
    save(path, "last", run={"created": "a", "sha256": "b"})
    assert [at.name for at in tmp_path.iterdir()] == [path.name], "what the killed one left is taken over"
    for attempt in range(KILLS):
        check_sections(path, f"{attempt}-", 1)


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "run.analysis.h5"
    processes = [writer(path, prefix, 12) for prefix in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    for prefix in "ab":
        check_sections(path, prefix, 12)


def not_ours(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = "htc-run"


def newer(path: Path) -> None:
    save(path, "attention")
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 2


def cut(path: Path) -> None:
    save(path, "attention")
    path.write_bytes(path.read_bytes()[:-500])


def without_identity(path: Path) -> None:
    save(path, "attention")
    with h5py.File(path, "r+") as file:
        del file["attention"].attrs["run"]


def with_a_link(path: Path) -> None:
    save(path, "attention")
    save(path.with_name("other.h5"), "reading")
    with h5py.File(path, "r+") as file:
        file["reading"] = h5py.ExternalLink("other.h5", "/reading")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no analysis at .*htc-analyze"),
        (lambda path: path.write_text("hello"), "as an analysis: it is not an HDF5 file; remove it"),
        (lambda path: path.write_bytes(b""), "as an analysis: it is empty; remove it"),
        (not_ours, "another HDF5 file .schema 'htc-run'"),
        (newer, "schema version 2, expected 1"),
        (cut, "it is cut off, .* bytes are there; remove it"),
        (without_identity, "damaged"),
        (with_a_link, "damaged"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, make: Callable[[Path], Any], words: str) -> None:
    path = tmp_path / "run.analysis.h5"
    make(path)
    with pytest.raises(UserError, match=words) as error:
        results.read(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    if path.exists():  # nor is it written over: it may be somebody's
        before = path.read_bytes()
        with pytest.raises(UserError, match=words):
            save(path, "map")
        assert path.read_bytes() == before


def test_a_flipped_byte_is_told_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "run.analysis.h5"
    noise = np.random.default_rng(0).random(1000)
    save(path, "noisy", Small(share=1.0, noise=noise))
    with h5py.File(path) as file:
        at = file["noisy/noise"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[at + 100] ^= 1
    path.write_bytes(content)
    found = results.read(path).record("noisy", Small)
    assert found.share == 1.0
    with pytest.raises(UserError, match="damaged at noisy/noise"):
        found.noise  # noqa: B018
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        results.read(tmp_path)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.analysis.h5"
    save(path, "attention")
    before = path.read_bytes()
    code = (  # a limit on the size of files stands for the disk: writing beyond it fails in the same way
        "import resource, sys, numpy as np\nfrom pathlib import Path\nfrom typing import Annotated\n"
        "from htc_probe.analysis import results\nfrom htc_probe.analysis.records import Record\n"
        "class Big(Record):\n    VERSION = 1\n    x: Annotated[np.ndarray, 'n']\n"
        "from htc_probe.extract.errors import UserError\nresource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n    results.write(Path(sys.argv[1]), 'big', Big(x=np.random.default_rng(0).random(90_000)), run={},\n"
        "                  settings={}, libraries={}, seconds=0.0)\n"
        "except UserError as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "cannot write" in said.stdout and said.stdout.count("\n") == 1
    assert path.read_bytes() == before and [at.name for at in tmp_path.iterdir()] == [path.name]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        save(tmp_path / "file" / "run.analysis.h5", "attention")
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(UserError, match="cannot write"):
            save(tmp_path / "run.analysis.h5", "attention")


# ---- the command


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its run of some scenes, and probes of two tasks, which know nothing."""
    folder = tmp_path_factory.mktemp("made")
    small_model().save_pretrained(folder / "model")
    assert extract(arguments(folder)) == 0
    rng, width = np.random.default_rng(0), 32
    found = {
        (task, "z_voco", LAYERS): Probe(
            "classes", classes, rng.normal(size=(width, len(classes))), np.zeros(len(classes)), np.zeros(width)
        )
        for task, classes in (("category", scenes.CATEGORIES), ("texture", scenes.TEXTURES))
    }
    weights.save(found, folder / "run.probes.safetensors")
    return folder


def arguments(folder: Path, name: str = "run") -> list[str]:
    return [
        "--model",
        str(folder / "model"),
        "--limit",
        str(IMAGES),
        "--out",
        str(folder / f"{name}.h5"),
        "--device",
        "cpu",
    ]


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it; the run still names the model where it was first."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def analyze(folder: Path, *names: str) -> int:
    return main([*names, "--run", str(folder / "run.h5"), "--images", "6", "--reading-images", "20", "--pairs", "12"])


def sections(folder: Path) -> dict[str, str]:
    """When each was made."""
    return {name: made.created for name, made in results.read(folder / "run.analysis.h5").made.items()}


def found_in(folder: Path) -> Sections:
    with open_run(folder / "run.h5") as run:
        return results.read(folder / "run.analysis.h5").of(results.identity(run))


@pytest.mark.slow
def test_all_analyses_and_what_they_say(folder: Path, made: Path, capsys: Any) -> None:
    assert analyze(folder) == 0
    said = capsys.readouterr()
    assert "for reconstruct, contributions, knockouts, interchange, reading" in said.out and not said.err
    assert "In five sentences" in said.out and "not analysed yet" not in said.out
    assert sorted(at.name for at in folder.iterdir()) == [
        "model",
        "run.analysis.h5",
        "run.h5",
        "run.probes.safetensors",
    ]
    found = results.read(folder / "run.analysis.h5")
    assert list(found.made) == [
        "attention",
        "reconstruct",
        "contributions",
        "knockouts",
        "interchange",
        "reading",
        "map",
    ]
    with open_run(folder / "run.h5") as run:
        assert all(made.run == results.identity(run) for made in found.made.values())
    attention, knockouts, interchange = (
        found_in(folder).attention,
        found_in(folder).knockouts,
        found_in(folder).interchange,
    )
    settings = found.made["knockouts"].settings
    assert attention is not None and knockouts is not None and interchange is not None
    assert attention.images == IMAGES and len(knockouts.images) == 6
    assert knockouts.probes == ["category", "texture"]
    assert settings["images"] == 6 and len(settings["probes"]) == 64
    assert found.made["interchange"].settings["pairs"] == 12
    latents, pictures, handed = found_in(folder).map, found_in(folder).reconstruct, found_in(folder).contributions
    assert latents is not None and latents.map_of[0] == "z_voco"
    assert pictures is not None and handed is not None
    with open_run(folder / "run.h5") as run:  # no page opens on an image that was not looked at
        assert {found.images[0] for found in (knockouts, interchange, pictures, handed)} == {run.ids()[0]}
        assert latents.place(0) == 0 and interchange.partner[0] >= 0
    assert attention.anchor_lift is not None
    lift = attention.anchor_lift.overall.only.estimate
    assert f"{lift:.2f}" in said.out

    before = sections(folder)
    shutil.rmtree(made / "model")  # nothing is made again, so nothing needs it
    try:
        assert analyze(folder) == 0
        assert sections(folder) == before and capsys.readouterr().out.count("is there already") == 7
    finally:
        shutil.copytree(folder / "model", made / "model")


def test_other_settings_are_made_anew_and_only_they(folder: Path, capsys: Any) -> None:
    assert analyze(folder, "attention", "contributions") == 0
    before = sections(folder)
    capsys.readouterr()
    assert main(["attention", "contributions", "--run", str(folder / "run.h5"), "--images", "5"]) == 0
    said = capsys.readouterr().out
    assert "attention     is there already" in said
    assert "contributions was made with other settings (images); recomputing" in said
    after = sections(folder)
    assert after["attention"] == before["attention"] and after["contributions"] != before["contributions"]
    found = found_in(folder).contributions
    assert found is not None and len(found.images) == 5


def test_sections_of_an_older_version_are_made_anew(folder: Path, capsys: Any) -> None:
    with open_run(folder / "run.h5") as run:
        of = results.identity(run)
    path, names = folder / "run.analysis.h5", ("attention", "map")
    for name in names:
        save(path, name, Small(share=1.0), run=of, settings={"seed": 0})
    with h5py.File(path, "r+") as file:
        del file["attention"].attrs["version"]  # as files were before there were any
        file["map"].attrs["version"] = Map.VERSION + 1
    assert found_in(folder) == Sections(), "pages take them as missing"
    outdated = results.read(path).outdated(of)
    assert outdated == set(names) and not results.read(path).outdated(of | {"created": "at another time"})
    told = sentences.answers(Sections(), None, outdated)
    assert (
        told[sentences.PREFERENCE]
        == "Whether <voco> prefers the anchors: made by another version; htc-analyze attention"
    )
    assert "not analysed yet" in str(told[sentences.CAUSE])
    jobs = [job for job in cli._jobs(AnalyzeConfig(names), None, None) if job.name in names]
    assert [job.name for job in cli._missing(jobs, path, of)] == list(names)
    said = capsys.readouterr().out
    for name, there, here in (("attention", 0, Attention.VERSION), ("map", Map.VERSION + 1, Map.VERSION)):
        assert f"{name:<14}was made by another version ({there}, now {here}); recomputing" in said


def test_another_run_of_the_same_name(folder: Path, capsys: Any) -> None:
    assert analyze(folder, "attention", "contributions") == 0
    (folder / "run.h5").unlink()
    assert extract([*arguments(folder), "--limit", "20"]) == 0
    capsys.readouterr()
    assert analyze(folder, "attention") == 0
    assert "holds results of another run (attention, contributions); removing them" in capsys.readouterr().out
    found = results.read(folder / "run.analysis.h5")
    assert list(found.made) == ["attention"]
    attention = found_in(folder).attention
    assert attention is not None and attention.images == 20


def test_a_second_run_beside_it(folder: Path, capsys: Any) -> None:
    other = folder / "other.h5"
    assert extract([*arguments(folder, "other"), "--random-weights"]) == 0
    assert main(["attention", "--run", str(folder / "run.h5"), "--against", str(other)]) == 0
    found = results.read(folder / "run.analysis.h5")
    assert found.made["attention"].settings["against"]["file"] == "other.h5"
    attention = found_in(folder).attention
    assert attention is not None and attention.paired_images == IMAGES
    capsys.readouterr()
    assert analyze(folder, "attention") == 0
    assert "was made with other settings (against); recomputing" in capsys.readouterr().out


def test_only_what_needs_the_model_asks_for_it(folder: Path, made: Path, capsys: Any) -> None:
    moved = folder / "elsewhere"
    shutil.move(made / "model", moved)
    try:
        assert analyze(folder, "attention") == 0
        assert analyze(folder, "contributions") == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert all(words in said for words in ("--model", "contributions need it", "attention and map do not")), said
        assert main(["contributions", "--run", str(folder / "run.h5"), "--images", "6", "--model", str(moved)]) == 0
        assert set(sections(folder)) == {"attention", "contributions"}
        (folder / "run.analysis.h5").unlink()
        assert analyze(folder) == 0  # all that can be made
        told = capsys.readouterr().out
        assert "left out      reconstruct, contributions, " in told and "say where with --model" in told
        assert set(sections(folder)) == {"attention", "map"} and "In five sentences" in told
    finally:
        shutil.move(moved, made / "model")


def test_another_model_is_refused(folder: Path, capsys: Any) -> None:
    tensors = load_file(folder / "model" / "model.safetensors")
    tensors["voco"] += 1
    save_file(tensors, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    assert main(["contributions", "--run", str(folder / "run.h5"), "--model", str(folder / "model")]) == 2
    said = capsys.readouterr().err
    assert "is not the model of run.h5" in said and said.count("\n") == 1
    assert not (folder / "run.analysis.h5").exists()


def test_random_weights_are_drawn_again(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "random.h5"
    assert extract([*arguments(made), "--random-weights", "--seed", "3", "--out", str(out)]) == 0
    with open_run(out) as run:
        place = again.find_model(run)
        model = models.load_from(place)
        assert place.random_seed == 3
        assert not torch.equal(model.voco, models.load(made / "model", dtype=torch.float32, device="cpu").voco)
        hybrid = next(again.encode(model, again.images(run, model, [4, 2])))
        np.testing.assert_allclose(hybrid.patches.mean(1), run.v_pooled()[[2, 4]], rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(hybrid.anchors, run.v_d()[[2, 4]], rtol=2e-3, atol=1e-4)


def test_images_are_found_again_beside_skipped_ones(made: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos" / "val"
    photos.mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (20, 20), (40 * number, 0, 0)).save(photos / f"{number}.png")
    for name in ("1.png", "4.png"):
        (photos / name).write_bytes(b"no picture")
    out = tmp_path / "run.h5"
    given = ["--data", str(photos.parent), "--on-error", "skip", "--out", str(out)]
    assert extract([*arguments(made), *given]) == 0
    with open_run(out) as run:
        model = models.load_from(again.find_model(run))
        assert [image.id for image in again.images(run, model, [3, 0, 1])] == [run.ids()[at] for at in (0, 1, 3)]
        Image.new("RGB", (20, 20)).save(photos / "1.png")  # mended: what is now second was not in the run
        assert [image.id for image in again.images(run, model, [0, 1])] == run.ids()[:2]
        (photos / "0.png").write_bytes(b"no picture")
        with pytest.raises(UserError, match="image '0.png' .* is not where it was"):
            list(again.images(run, model, [0]))
        (photos / "5.png").unlink()
        with pytest.raises(UserError, match="it holds 5 images now and held 6"):
            list(again.images(run, model, [0]))


def test_a_folder_called_scenes_is_not_of_the_built_in_scenes(tmp_path: Path) -> None:
    """It has no questions, also where the model was taught theirs."""
    photos = tmp_path / "scenes" / "val"
    photos.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (20, 20), (40 * number, 0, 0)).save(photos / f"{number}.png")
    out = tmp_path / "run.h5"
    assert extract(["--data", str(photos.parent), "--device", "cpu", "--out", str(out)]) == 0
    with open_run(out) as run:
        assert run.info.dataset == "scenes" and not again.is_scenes(run)
        assert again.take(models.load_from(again.find_model(run)), run, 2, 0).texts is None


def test_a_larger_sample_holds_the_smaller_ones(made: Path) -> None:
    """And any the image that the dashboard opens with; also where some images are left out."""
    with open_run(made / "run.h5") as run:
        last: set[int] = {0}
        for count in range(1, IMAGES + 3):
            some = again.sample(run, count, 0)
            assert len(some) == min(count, IMAGES) and (np.diff(some) > 0).all() and last <= set(some.tolist())
            last = set(some.tolist())
        assert last == set(range(IMAGES))
        np.testing.assert_array_equal(again.sample(run, 7, 0), again.sample(run, 7, 0))
        assert len({tuple(again.sample(run, 7, seed)) for seed in range(9)}) > 5
    for images in (0, 1, 2, 50):
        order = again.order(images, 3)
        np.testing.assert_array_equal(np.sort(order), np.arange(images))
        assert not images or order[0] == 0
    counts = np.bincount([again.order(5, seed)[1] for seed in range(400)], minlength=5)
    assert counts[0] == 0 and counts[1:].min() > 60, "the others are drawn evenly"
    groups = [f"g{number % 17}" for number in range(50)]
    taken = [mixing.one_a_group(groups, most, 3).tolist() for most in range(1, 19)]
    for smaller, larger in itertools.pairwise(taken):
        assert 0 in smaller and set(smaller) <= set(larger)


def test_ctrl_c_keeps_what_is_finished(folder: Path, monkeypatch: Any, capsys: Any) -> None:
    def interrupted(*_: Any) -> Image.Image:
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "render", interrupted)
    assert analyze(folder, "attention", "contributions") == 130
    assert "goes on with what is not finished" in capsys.readouterr().err and set(sections(folder)) == {"attention"}
    monkeypatch.undo()
    assert analyze(folder, "attention", "contributions") == 0
    assert "attention     is there already" in capsys.readouterr().out


@pytest.mark.slow
def test_what_a_run_does_not_allow(made: Path, tmp_path: Path, capsys: Any) -> None:
    """An error where it was asked for; left out, and said, where everything was."""
    photos = tmp_path / "photos" / "val"
    photos.mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (20, 20), (30 * number, 0, 0)).save(photos / f"{number}.png")
    out = tmp_path / "run.h5"
    assert extract([*arguments(made), "--data", str(photos.parent), "--out", str(out)]) == 0
    assert main(["interchange", "--run", str(out)]) == 2
    said = capsys.readouterr().err
    assert "has no labels" in said and said.count("\n") == 1

    assert main(["--run", str(out)]) == 0
    told = capsys.readouterr().out
    assert "interchange   left out: run.h5 has no labels" in told
    assert "reading       left out: run.h5 has images of 8 groups" in told
    assert set(sections(tmp_path)) == {"attention", "reconstruct", "contributions", "knockouts", "map"}
    assert "not analysed yet; htc-analyze interchange" in " ".join(told.split())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--run", "{tmp}/none.h5"], "no run at"),
        (["--run", "{tmp}"], "no finished run"),
        (["--run", "{run}", "--images", "1"], "--images 1 is too few"),
        (["--run", "{run}", "--pairs", "0"], "--pairs 0 is too few"),
        (["--run", "{run}", "--reading-images", "0"], "--reading-images 0 is too few"),
        (["--run", "{run}", "--seed", "-1"], "--seed -1"),
        (["--run", "{run}", "--out", "{tmp}/a.csv"], "must end in .h5"),
        (["--run", "{run}", "--probes", "{tmp}/none.safetensors"], "no probes at"),
        (["--run", "{run}", "--probes", "{run}"], "cannot be read"),
        (["--run", "{run}", "--against", "{tmp}/none.h5"], "no run at"),
        (["--run", "{run}", "--out", "{run}"], "is not of htc-analyze"),
        (["contributions", "--run", "{run}", "--model", "nowhere"], "no model 'nowhere'"),
        (["contributions", "--run", "{run}", "--device", "cuda:77"], "device cuda:77 cannot be used"),
        (["contributions", "--run", "{run}", "--device", "tpux"], "device tpux cannot be used"),
    ],
)
def test_bad_input_is_one_line(made: Path, tmp_path: Path, capsys: Any, given: list[str], words: str) -> None:
    before = (made / "run.h5").read_bytes()
    assert main([part.format(tmp=tmp_path, run=made / "run.h5") for part in given]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1, said
    assert not list(tmp_path.iterdir()) and (made / "run.h5").read_bytes() == before


def test_a_run_that_does_not_say_its_model(folder: Path, capsys: Any) -> None:
    with h5py.File(folder / "run.h5", "r+") as file:
        file.attrs["config"] = "{}"
    assert main(["contributions", "--run", str(folder / "run.h5")]) == 2
    said = capsys.readouterr().err
    assert "does not say its model" in said and said.count("\n") == 1


def test_unknown_analyses_and_flags_are_errors() -> None:
    for given in (["attentoin"], ["--imagse", "3"]):
        assert main(given) == 2


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, io\nfrom htc_probe.analysis.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        "assert '--against' in said.getvalue()\n"
        "print([name for name in ('torch', 'transformers', 'h5py', 'numpy', 'scipy', 'umap') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"


# ---- the sentences


def around(name: str, estimate: Any, spread: float = 0.1) -> dict[str, np.ndarray]:
    """A quantity of a section, with its interval."""
    values = np.asarray(estimate, dtype=np.float32)
    return {name: values, f"{name}_lower": values - spread, f"{name}_upper": values + spread}


def attention(lift: float, above: float, spread: float = 0.1) -> Attention:
    values = {
        **around("anchor_lift_overall", [lift], spread),
        **around("anchor_minus_top_overall", [above]),
        **around("anchor_lift_by_layer", [lift, lift]),
        "anchor_heads": 3,
        "anchor_head": np.zeros((2, 2), int),
    }
    return filled(Attention, values)


@pytest.mark.parametrize(
    ("lift", "above", "words", "agrees"),
    [
        (
            1.5,
            0.3,
            [
                "more than at a patch",
                "1.50 [1.40, 1.60]",
                "anchors together get 0.30 [0.20, 0.40] more of the attention",
            ],
            True,
        ),
        (
            0.5,
            -0.3,
            ["less than at a patch", "0.50 [0.40, 0.60]", "as there are anchors, together get 0.30 [0.20, 0.40] more"],
            False,
        ),
        (1.05, 0.0, ["remains open", "1.05 [0.95, 1.15]", "difference 0.00 [-0.10, 0.10]"], None),
    ],
)
def test_the_sentence_on_attention(lift: float, above: float, words: list[str], agrees: bool | None) -> None:
    found = sentences.answers(Sections(attention=attention(lift, above)))[sentences.PREFERENCE]
    assert isinstance(found, Sentence) and found.agrees is agrees
    assert all(part in found.text for part in words), found.text


def knockouts(rank: float, anchors: float, random: float, attended: float, questions: int = 2) -> Knockouts:
    """12 images on which all is the same but for some noise of 0.01."""
    rng = np.random.default_rng(0)
    effect_G = np.array([anchors, random, attended, 2.0])
    noise = 0.01 * rng.normal(size=(12, 1, 4))
    noise -= noise.mean(0)
    effects = ["z", "answers"] if questions else ["z"]
    ranks = np.broadcast_to(np.array([rank, 0.2])[:, None, None], (2, len(effects), 3))
    values: dict[str, Any] = {
        "images": ["a"] * 12,
        "groups": [str(at) for at in range(12)],
        "questions": ["what ?"] * questions,
        "group_names": ["anchors", "random patches", "attended patches", "patches"],
        "group_modes": ["zero"],
        "group_size": 4,
        "token_role": ["anchor"] * 4 + ["patch"] * 9,
        "group_change": effect_G + noise,
        "rank_predictors": ["attention", "gradient x input"],
        "rank_effects": effects,
        **around("mean_rank", ranks),
        "rank": ranks + 0.01 * rng.normal(size=(12, *ranks.shape)),
    }
    if questions:
        values["group_answers"] = -np.repeat((effect_G + noise)[..., None], questions, -1)
    return filled(Knockouts, values)


@pytest.mark.parametrize(
    ("rank", "words"),
    [
        (
            0.7,
            [
                "strongly like",
                "the true answers (rank correlation 0.70 [0.60, 0.80]",
                "worse than attention (0.20 [0.10, 0.30])",
            ],
        ),
        (0.45, ["moderately like"]),
        (0.25, ["weakly like"]),
        (-0.7, ["strongly against", "-0.70 [-0.80, -0.60]", "better"]),
        (0.05, ["remains open", "0.05 [-0.05, 0.15]"]),
    ],
)
def test_the_sentence_on_the_heat_map(rank: float, words: list[str]) -> None:
    found = sentences.answers(Sections(knockouts=knockouts(rank, 1, 1, 1)))[sentences.HONESTY]
    assert isinstance(found, Sentence) and not found.claim, "the paper tests no causes"
    assert all(part in found.text for part in words), found.text


@pytest.mark.parametrize(
    ("effects", "words", "agrees"),
    [
        (
            (0.9, 0.2, 0.5),
            [
                "changes z_voco more than",
                "the true answers lose 0.90",
                "more than without 4 random",
                "more than without the 4 most attended",
            ],
            True,
        ),
        (
            (0.2, 0.5, 0.9),
            [
                "changes z_voco less than",
                "the true answers lose 0.20",
                "less than without 4 random",
                "less than without the 4 most attended",
            ],
            False,
        ),
        ((0.5, 0.5, 0.5), ["remains open", "difference from 4 random", "difference from the 4 most attended"], None),
        ((0.0, -0.5, 0.5), ["do not get measurably worse"], True),
        ((-0.3, -0.5, 0.5), ["the true answers gain 0.30"], True),
    ],
)
def test_the_sentence_on_the_anchors(effects: Any, words: list[str], agrees: bool | None) -> None:
    found = sentences.answers(Sections(knockouts=knockouts(0.5, *effects)))[sentences.CAUSE]
    assert isinstance(found, Sentence) and found.agrees is agrees
    assert all(part in found.text for part in words), found.text


def test_without_questions_the_anchors_are_judged_by_z_voco() -> None:
    found = sentences.answers(Sections(knockouts=knockouts(0.5, 0.9, 0.2, 0.5, questions=0)))[sentences.CAUSE]
    assert isinstance(found, Sentence) and found.agrees is True and "answers" not in found.text


def interchange(semantic: float, detail: float, spread: float = 0.1) -> Interchange:
    """Answers that follow the anchors with these shares, and the patches otherwise."""
    shares = []
    for anchors in (semantic, detail):
        each = np.array([anchors, 1 - anchors, 0])
        shares.append(np.stack([each, each - spread, each + spread], -1))
    values = {
        "task": ["", ""],
        "suite": ["semantic", "detail"],
        "kind": ["mean"] * 2,
        "readout": ["answer"] * 2,
        "factor": ["all"] * 2,
        "mix": ["swapped"] * 2,
        "only_right": np.zeros(2, int),
        "counted": np.array([40, 40]),
        "share": np.array(shares, np.float32),
        "floor": np.full((2, 3), 0.25),
    }
    return filled(Interchange, values)


@pytest.mark.parametrize(
    ("shares", "words", "agrees"),
    [
        (
            (0.9, 0.1),
            ["In semantic tasks the answers follow the anchors", "In detail tasks the answers follow the p"],
            True,
        ),
        ((0.1, 0.1), ["semantic tasks the answers follow the patches", "0.10 [0.00, 0.20]", "chance 0.25"], False),
        ((0.9, 0.9), ["detail tasks the answers follow the anchors"], False),
        ((0.9, 0.5), ["detail tasks the answers follow neither clearly"], None),
    ],
)
def test_the_sentence_on_the_interchange(shares: Any, words: list[str], agrees: bool | None) -> None:
    found = sentences.answers(Sections(interchange=interchange(*shares)))[sentences.FOLLOWING]
    assert isinstance(found, Sentence) and found.agrees is agrees
    assert all(part in found.text for part in words), found.text
    assert "probes" not in found.text, "there are none"


@pytest.mark.parametrize(
    ("lift", "spread", "words"),
    [
        (1.03, 0.01, "hardly more than at a patch"),
        (0.96, 0.03, "hardly less than at a patch"),
        (1.2, 0.01, "an anchor more than"),
        (1.08, 0.05, "an anchor more than"),
        (0.8, 0.01, "an anchor less than"),
    ],
)
def test_a_preference_of_some_per_cent_is_hardly_one(lift: float, spread: float, words: str) -> None:
    section = attention(lift, 0.0, spread)
    found = sentences.answers(Sections(attention=section))[sentences.PREFERENCE]
    assert isinstance(found, Sentence) and words in found.text and ("hardly" in found.text) == ("hardly" in words)
    assert found.told().endswith("this run agrees in sign, hardly in size.") is (words == "hardly more than at a patch")


def mean(suite: str, representation: str, kept: float | None, layer: int | None = None) -> SuiteMean:
    """A score that keeps this share, give or take 0.01, of what is between a floor of 0.2 and v_pooled's 0.8."""
    score = 0.2 + 0.6 * (kept or 0)
    told = None if kept is None else probe_results.Interval(kept, kept - 0.01, kept + 0.01)
    bits = probe_results.Interval(1.0, 0.9, 1.1)
    return SuiteMean(suite, representation, layer, score, score - 0.006, score + 0.006, 0.2, bits, told, tasks=3)


def probed(*means: SuiteMean) -> Results:
    return Results({}, {"layers": 4}, {}, (), (), means)


@pytest.mark.parametrize(
    ("kept", "anchors", "words", "agrees"),
    [
        (1.05, 0.5, ["105.0% [104.0, 106.0] in the", "more than pooled V", "(v_d) keep 50.0% [49.0, 51.0]"], True),
        (0.95, 0.5, ["95.0% [94.0, 96.0]", "less than pooled V"], False),
        (1.005, 0.5, ["100.5% [99.5, 101.5]", "no measurable difference"], None),
        (1.05, 1.055, ["105.5%"], None),
        (1.05, 1.2, ["120.0%"], False),
    ],
)
def test_what_survives_is_what_the_probes_keep(
    kept: float, anchors: float, words: list[str], agrees: bool | None
) -> None:
    means = [
        mean(suite, name, share, layer)
        for suite in ("semantic", "detail")
        for name, share, layer in (
            ("z_voco", 0.1, 0),
            ("z_voco", kept, 4),
            ("v_d", anchors, None),
            ("v_pooled", 1.0, None),
        )
    ]
    found = sentences.answers(Sections(), probed(*means))[sentences.SURVIVAL]
    assert isinstance(found, Sentence) and found.agrees is agrees, found
    every = ("z_voco (layer 4 of 4) keeps", "semantic suite (3 t", "detail suite (3 t")
    for part in (*every, *words):
        assert part in found.text, found.text
    assert "R2" not in found.text


def test_what_survives_is_of_what_the_text_reads_where_that_was_probed() -> None:
    means = mean("detail", "z_voco", 0.9, 4), mean("detail", "voco_read", 0.7), mean("detail", "v_pooled", 1.0)
    told = str(sentences.answers(Sections(), probed(*means))[sentences.SURVIVAL])
    assert "What text reads of <voco> (voco_read) keeps 70.0%" in told and "90.0" not in told and "v_d)" not in told
    assert "z_voco (layer 2 of 4) keeps 80.0%" in str(
        sentences.answers(Sections(), probed(mean("detail", "z_voco", 0.8, 2)))[sentences.SURVIVAL]
    )


@pytest.mark.parametrize("means", [(), (mean("detail", "v_d", 0.3),), (mean("detail", "z_voco", None, 4),)])
def test_without_probes_of_both_nothing_is_said_to_survive(means: tuple[SuiteMean, ...]) -> None:
    assert "no suite has probes of both <voco> and pooled V" in str(
        sentences.answers(Sections(), probed(*means))[sentences.SURVIVAL]
    )


def test_the_command_tells_what_the_probes_beside_the_run_keep(folder: Path, capsys: Any) -> None:
    def said(created: str) -> str:
        means = mean("detail", "z_voco", 0.95, 4), mean("detail", "v_pooled", 1.0)
        found = Results({}, {"layers": 4, "created": created}, {}, (), (), means)
        probe_results.write(found, folder / "run.probes.json")
        assert analyze(folder, "attention") == 0
        return " ".join(capsys.readouterr().out.split())

    with open_run(folder / "run.h5") as run:
        assert "keeps 95.0% [94.0, 96.0] in the detail suite" in said(run.created)
    assert "not probed yet" in said("long ago"), "they are of an earlier state of the run"
    (folder / "run.probes.json").write_text("{")
    assert analyze(folder, "attention") == 0
    assert "scores left out: " in capsys.readouterr().out


def test_an_end_that_is_not_all_does_not_look_like_all() -> None:
    close = probe_results.Interval(0.99, 0.98, 0.99996)
    found = sentences.answers(
        Sections(), probed(dataclasses.replace(mean("detail", "z_voco", 0.99, 4), retention=close))
    )[sentences.SURVIVAL]
    assert "99.000% [98.000, 99.996]" in str(found)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (0.2, "more than from pooled V (difference +20.0 points [+10.0, +30.0])"),
        (-0.2, "less than from pooled V (difference -20.0"),
        (0.05, "does not measurably differ from pooled V"),
    ],
)
def test_the_line_on_single_patches(more: float, words: str) -> None:
    values = {
        "representations": ["v_d", "z_voco"],
        **around("patch_r2_all", [0.1, 0.6]),
        **around("patch_r2_all_minus_pooled", [more]),
        "patch_r2": np.array([[0, 0], [0.3, 0.9]]),
        "patch_images": 1000,
        **around("code_bits", [[0, 0], [1.0, 2.0]]),
        "code_entropy_read": np.array([8.0, 8.0]),
    }
    found = sentences.answers(Sections(reading=filled(Reading, values)))[sentences.PATCHES]
    assert isinstance(found, Sentence) and not found.claim, "the paper says nothing of it"
    numbers = (
        "60.0% [50.0, 70.0]",
        "R2 over 1,000 images",
        "30% to 90%",
        "8.00 bits of a code, z_voco tells 1.50 [1.40, 1.60]",
    )
    for part in (words, *numbers):
        assert part in found.text, found.text
    assert "the model was not at hand" in str(
        sentences.answers(Sections(reading=filled(Reading, {})))[sentences.PATCHES]
    )


def test_what_is_missing_is_said_with_the_way_to_it() -> None:
    found = sentences.answers(Sections()).values()
    assert [str(one).partition("; ")[2] for one in found] == [
        "htc-analyze attention",
        "htc-analyze knockouts",
        "htc-analyze knockouts",
        "htc-analyze interchange",
        "htc-probe semantic detail",
        "htc-analyze reading",
    ]
    console = Console(width=100, file=io.StringIO())
    console.print(tables.last_words(sentences.answers(Sections())))
    assert "In five sentences" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("interval", "sign", "text"),
    [
        ((0.5, 0.4, 0.6), 1, "0.50 [0.40, 0.60]"),
        ((-0.5, -0.6, -0.4), -1, "-0.50 [-0.60, -0.40]"),
        ((0.1, -0.1, 0.3), 0, "0.10 [-0.10, 0.30]"),
        ((0.02, 0.004, 0.036), 1, "0.020 [0.004, 0.036]"),  # an end of 0.00 would hide on which side it is
        ((1.0, 1.0, 1.0), 1, "1.00 [1.00, 1.00]"),
        ((0.0, 0.0, 0.0), 0, "0.00 [0.00, 0.00]"),
        ((0.5, np.nan, np.nan), 0, "0.50 [too few groups for an interval]"),
    ],
)
def test_intervals_in_words(interval: tuple[float, float, float], sign: int, text: str) -> None:
    assert sentences.sign(Interval(*interval)) == sign and sentences.words(Interval(*interval)) == text
