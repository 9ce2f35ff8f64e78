"""A folder that somebody else filled: whatever lies in it, good runs beside it are shown, the rest is told with its
reason, nothing outside is opened, and no name becomes markup.
"""

import logging
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from benchmarks.browser import serving, tab
from htc_probe.analysis import results as analysis_results
from htc_probe.analysis.contents import reading
from htc_probe.analysis.sections import KINDS, Sections
from htc_probe.dashboards import data
from htc_probe.dashboards.app import PAGES
from htc_probe.dashboards.parts import controls
from htc_probe.dashboards.runs import find_runs, open_any
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Batch, RunInfo, RunShape, RunWriter, Task, open_run
from made.filled import filled, misshape
from made.pages import COLS, ROLES, ROWS, A, H, L, S, random_rows, write_run

EVIL = (
    "<img src=x onerror=hacked=1>",
    "![x](http:evil.example)",
    "$$x^2$$",
    ":red[x] :smile:",
    "[x](javascript:alert)",
    "<script>hacked=1<!--script>",
    "line\nbreak",
    "x" * 200,
    "%{x}<b>bold<!--b>",
    "**bold** `code` # x",
)
"""Names that may be those of files too."""
HUGE = 10**9


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("elsewhere") / "good.h5")


@pytest.fixture
def folder(tmp_path: Path, good: Path) -> Path:
    """With one good run in it."""
    made = tmp_path / "runs"
    made.mkdir()
    shutil.copy(good, made / "good.h5")
    return made


def copied(change: Callable[[h5py.File], object]) -> Callable[[Path, Path], object]:
    """Makes a run that is a good one but for `change`."""

    def make(path: Path, good: Path) -> None:
        shutil.copy(good, path)
        with h5py.File(path, "r+") as file:
            change(file)

    return make


def longer(file: h5py.File) -> None:
    def grow(_: str, dataset: Any) -> None:
        if isinstance(dataset, h5py.Dataset) and dataset.maxshape and dataset.maxshape[0] is None:
            dataset.resize(HUGE, axis=0)

    file.visititems(grow)


def instead(name: str, shape: tuple[int, ...], dtype: Any, **how: Any) -> Callable[[h5py.File], None]:
    """Puts a dataset that was never written in the place of another."""

    def change(file: h5py.File) -> None:
        attrs = dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, shape, dtype, **how).attrs.update(attrs)

    return change


def many_tasks(file: h5py.File) -> None:
    for number in range(10_001):
        file[f"labels/{number}"] = file["labels/object"]


def linked(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = h5py.ExternalLink("../elsewhere.h5", name)

    return change


TEXT = h5py.string_dtype("utf-8")
BAD = {
    "truncated": (lambda path, good: path.write_bytes(good.read_bytes()[:-4000]), "it is cut off"),
    "empty": (lambda path, good: path.write_bytes(b""), "it is empty"),
    "no HDF5": (lambda path, good: path.write_text("a run, surely"), "it is not an HDF5 file"),
    "foreign": (lambda path, good: h5py.File(path, "w").close(), "not a run of htc-extract"),
    "other schema": (copied(lambda file: file.attrs.update(schema="x" * 10**6)), "not a run of htc-extract"),
    "folder": (lambda path, good: path.mkdir(), "no run at"),
    "pipe": (lambda path, good: os.mkfifo(path), "no run at"),
    "link": (lambda path, good: path.symlink_to(good), "leads out of the folder"),
    "circle": (
        lambda path, good: path.symlink_to(path),
        "leads out of the folder"
        if sys.version_info < (3, 13)
        else "symbolic links",  # from 3.13, as the system says it
    ),
    "newer": (copied(lambda file: file.attrs.update(schema_version=2)), "schema version 2"),
    "infinite version": (copied(lambda file: file.attrs.update(schema_version=np.inf)), "damaged"),
    "many images": (copied(longer), "not stored"),
    "many roles": (copied(instead("tokens/role", (HUGE,), TEXT, chunks=(256,))), "not stored"),
    "wide texts": (copied(instead("images/path", (4,), f"S{HUGE}")), "not stored"),
    "large rows": (
        copied(instead("attention/voco", (4, HUGE, H, S), "f2", chunks=(1, 99, H, S))),
        "says that it holds",
    ),
    "large codes": (
        copied(
            lambda file: (
                instead("codes", (4, 2**20, 2**20, 1), "u2", chunks=(1, 64, 64, 1))(file),
                file.attrs.update(code_shape=f"[{2**20}, {2**20}, 1]"),
            )
        ),
        "says that it holds",
    ),
    "flat attention": (copied(instead("attention/voco", (4,), "f2")), "damaged"),
    "many tasks": (copied(many_tasks), "tasks, more than"),
    "deep settings": (copied(lambda file: file.attrs.update(config="[" * 10**5)), "damaged"),
    "long settings": (copied(lambda file: file.attrs.update(config='"' + "x" * 2**24 + '"')), "characters long"),
    "odd settings": (copied(lambda file: file.attrs.update(model="3")), "damaged"),
    "linked labels": (copied(linked("labels")), "missing or a link"),
    "linked codes": (copied(linked("codes")), "missing or a link"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_told_with_its_reason(folder: Path, good: Path, name: str) -> None:
    make, reason = BAD[name]
    shutil.copy(good, folder.parent / "elsewhere.h5")
    make(folder / "bad.h5", good)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = find_runs([folder])
    assert [run.name for run in found.runs] == ["good"]
    ((path, told),) = found.refused
    assert path.name == "bad.h5" and reason in told and len(told) < 700
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024, "kB"


def test_names_that_cannot_be_shown_or_are_the_same(folder: Path, good: Path) -> None:
    shutil.copy(good, os.fsencode(folder) + b"/\xff.h5")
    for place in ("a", "b"):
        (folder / place / "same").mkdir(parents=True)
        shutil.copy(good, folder / place / "same" / "run.h5")
    found = find_runs([folder, folder / "a" / "same", folder / "b" / "same"])
    assert [reason for _, reason in found.refused] == ["its name is not UTF-8; give it another"]
    assert len({run.name for run in found.runs}) == len(found.runs) == 3


def test_a_run_larger_than_can_be_shown_is_refused(folder: Path) -> None:
    """Its rows are zeros that were written, so that nothing is wrong with the file."""
    shape = RunShape(1, 4097, (0,), 1, 1, 1, None, ("anchor", "voco"), (-1, -1), (-1, -1))
    info = RunInfo({}, {"name": "deep", "sha256": "", "config": {}}, "x", "val", "star", {})
    with RunWriter(folder / "deep.h5", info, shape, ()) as writer:
        ones = np.ones((1, 1), np.float32)
        writer.append(
            Batch(
                ["a"],
                ["a"],
                ["a"],
                np.zeros((1, 96, 96, 3), np.uint8),
                ones[:, :, None],
                ones[:, :, None],
                ones,
                None,
                np.full((1, 4097, 1, 2), 0.5, np.float32),
                {},
            )
        )
        writer.finish()
    ((_, told),) = find_runs([folder]).refused
    assert "deep.h5 has 4,097 layers; the dashboard shows up to 4,096" in told


# ---- an unfinished run


def shards_of(folder: Path, good: Path, manifest: str) -> Path:
    place = folder / "bad.h5.shards"
    place.mkdir()
    (place / "manifest.json").write_text(manifest)
    shutil.copy(good, place / "00000000-00000004.h5")
    return place


def manifest(images: Any, shard_images: Any = 4) -> str:
    shape = f'{{"images": {images}, "layers": 1, "stack": [0], "heads": 1, "width": 1, "anchors": 0, "codes": null, '
    shape += '"roles": [], "rows": [], "cols": []}'
    info = '{"config": {}, "model": {}, "dataset": "", "split": "", "topology": "", "environment": {}}'
    return (
        f'{{"schema_version": 2, "info": {info}, "shape": {shape}, "tasks": [], "store_dtype": "float16", '
        f'"shard_images": {shard_images}}}'
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "damaged"),
        ("[" * 10**5, "damaged"),
        ("[]", "damaged"),
        (manifest('"many"'), "damaged"),
        (manifest(5, 0), "damaged"),
        (manifest(-1), "damaged"),
        (" " * (2**24 + 1), "damaged"),
    ],
)
def test_a_bad_manifest_is_told(folder: Path, good: Path, content: str, reason: str) -> None:
    shards_of(folder, good, content)
    ((path, told),) = find_runs([folder]).refused
    assert path.name == "bad.h5.shards" and reason in told and len(told) < 700


def test_a_manifest_may_claim_any_number_of_shards(folder: Path, good: Path) -> None:
    shards_of(folder, good, manifest(10**15))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert [run.finished for run in find_runs([folder]).runs].count(False) == 1
    with open_any(folder / "bad.h5") as run:
        assert len(run) == 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024, "kB"


def test_links_of_an_unfinished_run_are_not_followed(folder: Path, good: Path, tmp_path: Path) -> None:
    place = shards_of(folder, good, manifest(8))
    (place / "00000004-00000008.h5").symlink_to(good)
    with open_any(folder / "bad.h5") as run:
        assert len(run) == 4, "the linked shard is left out"
    shutil.move(place / "manifest.json", tmp_path)
    (place / "manifest.json").symlink_to(tmp_path / "manifest.json")
    ((_, told),) = find_runs([folder]).refused
    assert "leads out of the folder" in told
    shutil.move(place, tmp_path / "moved")
    place.symlink_to(tmp_path / "moved")
    ((_, told),) = find_runs([folder]).refused
    assert told == "it is a link that leads out of the folder"


def test_a_shard_of_another_shape_is_not_read(folder: Path, good: Path) -> None:
    place = shards_of(folder, good, manifest(8))
    shutil.copy(good, place / "00000004-00000008.h5")
    with h5py.File(place / "00000004-00000008.h5", "r+") as file:
        instead("latents/v_pooled", (4, 9), "f2", chunks=(4, 9))(file)
    ((_, told),) = find_runs([folder]).refused
    assert "v_pooled" in told


# ---- beside a run


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 10**11)


def analysis(path: Path, values: dict[str, Any], run: Path, name: str = "attention") -> None:
    with open_run(run) as opened:
        of = analysis_results.identity(opened)
    analysis_results.write(path, name, filled(KINDS[name], {}), run=of, settings={}, libraries={}, seconds=0.0)
    misshape(path, name, values)


@pytest.mark.parametrize("name", ["good.probes.json", "good.probes.predictions.safetensors", "good.analysis.h5"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.symlink_to("/etc/passwd"), "leads out of the folder"),
        (lambda path: path.symlink_to("nowhere"), "no file"),
        (lambda path: path.mkdir(), "no file"),
        (lambda path: os.mkfifo(path), "no file"),
        (lambda path: path.write_bytes(b""), "good."),
        (lambda path: path.write_bytes(b"[" * 10**5), "good."),
        (lambda path: path.write_bytes(b"\x08\0\0\0\0\0\0\0{}      " + b"x" * 100), "good."),
        (sparse, "good."),
    ],
)
def test_what_lies_beside_a_run_is_told_and_not_opened(
    folder: Path, name: str, make: Callable[[Path], object], reason: str
) -> None:
    make(folder / name)
    ((path, told),) = data.refused_beside(folder / "good.h5")
    assert path.name == name and reason in told and len(told) < 700
    header = data.header(data.key_of(folder / "good.h5"))
    assert data.sections(folder / "good.h5", header) == Sections()


def test_an_analysis_may_not_claim_what_it_does_not_hold(folder: Path) -> None:
    run = folder / "good.h5"
    place = folder / "good.analysis.h5"
    analysis(place, {"images": 4}, run)
    with h5py.File(place, "r+") as file:
        section = file["attention"]
        for name in ("mean_attention", "anchor_head", "patch_mass", "entropy_bits"):
            if name in section:
                del section[name]
        section.create_dataset("mean_attention", (1, 1, HUGE), "f4", chunks=(1, 1, 64))
        section["patch_mass"] = h5py.ExternalLink("elsewhere.h5", "/codes")
        section.create_dataset("texts", (HUGE,), TEXT, chunks=(64,))  # of no name that is declared
    header = data.header(data.key_of(run))
    with pytest.raises(UserError, match="attention/patch_mass is missing"):
        data.sections(run, header).attention  # noqa: B018
    with h5py.File(place, "r+") as file:
        del file["attention/patch_mass"]
        file["attention/patch_mass"] = np.ones((1, 1), np.float32)
        file["attention/entropy_bits"] = np.ones((1, 1), np.float32)
    found = data.sections(run, header).attention
    assert found is not None and found.images == 4 and found.patch_mass.estimate.tolist() == [[1]]
    with pytest.raises(UserError, match="damaged at attention/mean_attention"):
        found.mean_attention  # noqa: B018


def test_an_analysis_of_another_run_is_left_out(folder: Path) -> None:
    other = write_run(folder / "other.h5", 3)
    analysis(folder / "good.analysis.h5", {"kept": np.ones(3)}, other)
    run = folder / "good.h5"
    assert data.sections(run, data.header(data.key_of(run))) == Sections() and data.refused_beside(run) == []


CODE_KEYS = ("code_entropy", "code_entropy_lower", "code_entropy_upper", "code_used")
MISSHAPEN = {
    "Attention": ("attention", {"images": 4} | {f"anchor_mass{end}": np.ones(3) for end in ("", "_lower", "_upper")}),
    "What causes what": ("knockouts", {"images": 7}),
    "Map": ("map", {"rows": np.ones((2, 2)), "map_of": 3}),
    "Reading the token": ("reading", {"likeness_of": 3}),
    "Codes": ("reading", {"code_size": 9} | {name: np.ones((2, 3, 4)) for name in CODE_KEYS}),
}
"""Page -> an analysis of the right run that is not as htc-analyze writes it."""


def faults(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == controls.__name__]


@pytest.mark.parametrize("page", MISSHAPEN)
def test_an_analysis_that_is_misshapen_costs_its_page_alone(
    folder: Path, open_app: Any, caplog: pytest.LogCaptureFixture, page: str
) -> None:
    name, values = MISSHAPEN[page]
    analysis(folder / "good.analysis.h5", values, folder / "good.h5", name)
    app = open_app(folder, page=page)
    (told,) = {error.value for error in app.error}  # each part of the page that needs it says so
    assert not app.exception and ("made by another version" in told or "htc\\-analyze" in told)
    for record in faults(caplog):
        assert record.exc_info and page in record.getMessage()
    caplog.clear()
    for other in ({*PAGES} - {*MISSHAPEN}) - {"Overview"}:
        app = open_app(folder, page=other)
        assert not app.exception and not app.error and app.session_state["page"] == other


def test_a_fault_is_told_where_it_is_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    def script() -> None:
        import streamlit as st

        from htc_probe.dashboards.parts.controls import fragment, guarded

        @fragment
        def broken() -> None:
            st.text(f"{1 / 0}")

        broken()
        st.text("the rest")
        with guarded():
            st.stop()
        st.text("not reached")

    app = AppTest.from_function(script, default_timeout=60).run()
    assert not app.exception and [text.value for text in app.text] == ["the rest"]
    assert "ZeroDivisionError" in app.error[0].value
    (record,) = faults(caplog)
    assert record.exc_info is not None and record.exc_info[0] is ZeroDivisionError


# ---- in the browser


def write_evil(path: Path, n: int = 24) -> Path:
    """Names of markup wherever a run has names."""
    rng = np.random.default_rng(0)
    tasks = (
        Task(EVIL[0], "semantic", "classes", EVIL[:2], note=EVIL[1]),
        Task(EVIL[1], "semantic", "multilabel", EVIL[2:4]),
        Task(EVIL[2], "detail", "number", unit=EVIL[0]),
    )
    info = RunInfo(
        {EVIL[0]: EVIL[1]},
        {"name": EVIL[0], "sha256": EVIL[1], "config": {EVIL[0]: EVIL[5]}},
        EVIL[0],
        EVIL[1],
        EVIL[2],
        {EVIL[0]: EVIL[0]},
    )
    shape = RunShape(n, L, (0, L), H, 8, A, (2, 2, 1), ROLES, ROWS, COLS)
    labels = {EVIL[0]: np.arange(n) % 2, EVIL[1]: rng.integers(0, 2, (n, 2)), EVIL[2]: rng.random(n)}
    codes = rng.integers(8, 16, (n, 2, 2, 1))
    codes[::2, 0, 0] = 3  # goes with the first class
    batch = Batch(
        ids=[f"{EVIL[at % 10]}{at}" for at in range(n)],
        paths=[f"{EVIL[-at % 10]}{at}" for at in range(n)],
        groups=[f"{EVIL[0]}{at}" for at in range(n)],
        thumbnails=rng.integers(0, 256, (n, 96, 96, 3), dtype=np.uint8),
        z_voco=rng.normal(size=(n, 2, 8)).astype(np.float32),
        v_d=rng.normal(size=(n, A, 8)).astype(np.float32),
        v_pooled=rng.normal(size=(n, 8)).astype(np.float32),
        codes=codes,
        attention=random_rows(n),
        labels=labels,
    )
    with RunWriter(path, info, shape, tasks) as writer:
        writer.append(batch)
        return writer.finish([(EVIL[0], EVIL[1])])


QUERIES: tuple[dict[str, Any], ...] = (
    {"run": "../../../../etc/passwd", "image": -1, "layer": 99, "head": "0"},
    {"run": "/etc/passwd", "image": "1e9", "layer": EVIL[0], "page": "../x"},
    {"run": "elsewhere", "image": "abc", "head": -3, "page": "Codes", "code": -1, "codegroup": 99},
    {"run": "good", "image": 10**30, "page": "Codes", "code": "1e99", "codetask": EVIL[1], "codegroup": EVIL[2]},
    {"run": "good.h5", "selection": "[1]", "page": "Compare", "other": "../elsewhere", "against": "/etc/passwd"},
)


def untouched(page: Any) -> None:
    """No name became an element, ran, or asked for anything."""
    page.check()
    assert page.page.evaluate("typeof hacked") == "undefined"
    for what in ('img[src="x"]', 'img[src^="http:evil"]', ".katex", 'a[href^="javascript"]', "main b, main script"):
        assert page.page.locator(what).count() == 0, what


@pytest.mark.slow
def test_a_hostile_folder_in_the_browser(folder: Path, good: Path, chromium: Any) -> None:
    shutil.copy(good, folder.parent / "elsewhere.h5")
    for number, (make, _) in enumerate(BAD.values()):
        make(folder / f"{number:02}.h5", good)
    for name in EVIL:
        (folder / f"{name}.h5").write_bytes(b"no run")
    evil = write_evil(folder / f"{EVIL[0]}{EVIL[2]}.h5")
    with open_run(evil) as run:
        found, of = reading.analyse(run), analysis_results.identity(run)
    out = folder / f"{evil.stem}.analysis.h5"
    analysis_results.write(out, "reading", found, run=of, settings={}, libraries={}, seconds=0.0)
    (folder / "good.probes.json").symlink_to("/etc/passwd")

    with serving(folder) as address, tab(chromium, address) as page:
        for name in PAGES:
            page.open(page=name, run=evil.stem, code=3)
            assert EVIL[0] in page.page.locator('[data-testid="stSidebar"]').inner_text()
            untouched(page)
        page.open(run="good")
        page.page.get_by_text("files not opened").click()
        told = page.page.locator('[data-testid="stSidebar"] [data-testid="stExpander"]').inner_text()
        assert f"{len(BAD) + len(EVIL) + 1} files not opened" in told and "good.probes.json: it is a link" in told
        assert all(reason in told for _, reason in BAD.values())
        assert "root:" not in page.page.content(), "nothing of /etc/passwd"
        untouched(page)
        for query in QUERIES:
            page.open(**query)
            assert "4 images" in page.page.locator('[data-testid="stSidebar"]').inner_text(), "one of the runs is shown"
            assert "root:" not in page.page.content()
            untouched(page)

        analysis(folder / "good.analysis.h5", MISSHAPEN["Attention"][1], folder / "good.h5", "attention")
        page.open(run="good", page="Attention")
        with pytest.raises(AssertionError, match="damaged: attention/anchor_mass has shape"):
            page.check()
