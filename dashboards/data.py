"""What the pages show, read from runs slice by slice; the only cache. Knows no figures and no layout.

Every cached value is keyed by the file's path, time and size, so that a run that was extracted again is read
anew. A file is open only while it is read: one that vanishes gives a UserError at the next look, never a
stale handle. Arrays are kept once for all visitors, and cannot be written to.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import streamlit as st
from PIL import Image

import htc_probe.analysis.results
import htc_probe.analysis.sentences
import htc_probe.probes.files.predictions
from htc_probe.analysis.contents import associations as of_codes
from htc_probe.dashboards import attention as att
from htc_probe.dashboards import compare
from htc_probe.dashboards.runs import Found, Refused, find_runs, inside, open_any, state_of
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import NUMERIC, Run, RunInfo, RunShape, Task
from htc_probe.extract.store.shards import unfinished
from htc_probe.probes.files import results

AVERAGE_BYTES = 64 * 2**20
"""Attention read for an average over images, at most; of more images, evenly spaced ones are read."""


class RunKey(NamedTuple):
    """One state of one file, or of the shards of a run that is being made."""

    path: str
    mtime_ns: int
    size: int


class Header(NamedTuple):
    """All of a run that is small: its facts, and the names of its images."""

    info: RunInfo
    shape: RunShape
    tasks: tuple[Task, ...]
    created: str
    skipped: tuple[tuple[str, str], ...]
    ids: list[str]
    paths: list[str]
    groups: list[str]
    finished: bool = True
    expected: int = 0
    """Images that the run will have; those it has where it is finished."""


class ImageRecord(NamedTuple):
    """What a run holds of one image."""

    thumbnail: np.ndarray
    """(96, 96, 3) uint8."""
    attention: np.ndarray
    """(L, H, S) float32, rows of <voco> that sum to 1."""
    anchor_mass: np.ndarray
    """(L, H) float32, their sum over the anchors, from before 16-bit storage."""


class Average(NamedTuple):
    """Attention over n images."""

    n: int
    attention: np.ndarray
    """(L, H, S) float32, the mean."""
    values: dict[str, np.ndarray]
    """`attention.measure` of each image, (n, L, H, ...) float32."""


def available(roots: Sequence[Path]) -> Found:
    """`find_runs` at most every 5 seconds; runs that vanished since are left out."""
    found = _found(tuple(roots))
    return Found([run for run in found.runs if not run.finished or run.path.is_file()], found.refused)


@st.cache_data(ttl=5, show_spinner=False)
def _found(roots: tuple[Path, ...]) -> Found:
    return find_runs(roots)


def key_of(path: Path) -> RunKey:
    """The file as it is now, or the shards of the run that will be there. Raises UserError when neither is there."""
    try:
        return RunKey(str(path), *state_of(path))
    except OSError as error:
        raise UserError(f"{path.name} cannot be read any more ({error.strerror}); pick another run") from error


@st.cache_resource(max_entries=8, show_spinner=False)
def opened(key: RunKey) -> Run:
    """The run, finished or not. Kept open, as opening one and checking what it says of itself takes 10 ms."""
    return open_any(Path(key.path))


@st.cache_resource(max_entries=16, show_spinner=False)
def header(key: RunKey) -> Header:
    run = opened(key)
    expected = len(run)
    if not run.finished and (shards := unfinished(Path(key.path))) is not None:
        expected = shards.job.shape.images
    return Header(
        run.info,
        run.shape,
        run.tasks,
        run.created,
        run.skipped,
        run.ids(),
        run.paths(),
        run.groups(),
        run.finished,
        expected,
    )


@st.cache_resource(max_entries=16, show_spinner=False)
def image_record(key: RunKey, image: int) -> ImageRecord:
    run = opened(key)
    return ImageRecord(run.thumbnail(image), run.attention(image), run.anchor_mass_of(image))


@st.cache_resource(max_entries=256, show_spinner=False)
def thumbnail(key: RunKey, image: int) -> np.ndarray:
    """(96, 96, 3) uint8 of one image."""
    return opened(key).thumbnail(image)


@st.cache_resource(max_entries=4, show_spinner=False)
def row_of(key: RunKey) -> dict[str, int]:
    """The row of every image, by its id."""
    return {name: row for row, name in enumerate(header(key).ids)}


@st.cache_resource(max_entries=16, show_spinner=False)
def labels(key: RunKey) -> dict[str, np.ndarray]:
    """Task -> the labels of all images, as stored."""
    run = opened(key)
    return {task.name: run.labels(task.name) for task in run.tasks}


@st.cache_resource(max_entries=4, show_spinner=False)
def anchor_mass(key: RunKey) -> np.ndarray:
    """(N, L, H) float32 of all images."""
    return opened(key).anchor_mass()


def refused_beside(run: Path) -> list[Refused]:
    """What of htc-probe and htc-analyze lies beside the run and is not opened, and why."""
    scores = results.default_path(run)
    paths = scores, results.predictions_path(scores), htc_probe.analysis.results.default_path(run)
    there = [path for path in paths if path.exists() or path.is_symlink()]
    return [Refused(path, reason) for path in there if (reason := _why_refused(path, run.parent))]


def _why_refused(path: Path, folder: Path) -> str:
    """ "" for a file that can be read."""
    if not inside(path, folder):
        return "it is a link that leads out of the folder"
    return _damage(key_of(path)) if path.is_file() else "it is no file"


@st.cache_resource(max_entries=64, show_spinner=False)
def _damage(key: RunKey) -> str:
    try:
        if key.path.endswith(".h5"):
            htc_probe.analysis.results.read(key.path).close()
        elif key.path.endswith(".json"):
            probe_results(key)
        else:
            htc_probe.probes.files.predictions.load(key.path)
    except UserError as error:
        return str(error)
    return ""


def probes_beside(run: Path) -> Path | None:
    """Where `htc-probe` left its results for this run, if it did; never a link that leads away."""
    return _file(results.default_path(run))


def said_beside(run: Path) -> Path | None:
    """Where it left what the probes said of each image; the same."""
    return _file(results.predictions_path(results.default_path(run)))


def _file(path: Path) -> Path | None:
    """`path`, where it is a file of its own folder."""
    return path if path.is_file() and inside(path, path.parent) else None


@st.cache_resource(max_entries=16, show_spinner=False)
def probe_results(key: RunKey) -> results.Results:
    """The results in the file `key`. Raises UserError when it is damaged."""
    return results.read(key.path)


class MissingValue(UserError, KeyError):
    """A section lacks what htc-analyze makes now."""

    __str__ = Exception.__str__  # KeyError's would put quotation marks around it


class Section(Mapping[str, Any]):
    """What one analysis found; each value is read when it is asked for, and kept. Made by `sections`."""

    def __init__(self, key: RunKey, found: htc_probe.analysis.results.Section) -> None:
        self.name, self.settings, self.created = found.name, found.settings, found.created
        self._key, self._names = key, found.keys()

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise MissingValue(
                f"{Path(self._key.path).name} has no {name!r} in {self.name}: another htc-analyze made it; remove the "
                "file and run htc-analyze again"
            )
        return _analysis_value(self._key, self.name, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def sections(run: Path, header: Header) -> dict[str, Section]:
    """What `htc-analyze` left beside the run, by analysis; {} where it left nothing, or what `refused_beside` tells of.
    Those of an earlier state of the run are left out.
    """
    path = htc_probe.analysis.results.default_path(run)
    if not path.is_file() or _why_refused(path, run.parent):
        return {}
    of_run = {"created": header.created, "sha256": header.info.model.get("sha256")}
    found = _sections(key_of(path))
    return {name: section for name, (section, of) in found.items() if htc_probe.analysis.results.same_run(of, of_run)}


@st.cache_resource(max_entries=8, show_spinner=False)
def _sections(key: RunKey) -> dict[str, tuple[Section, dict[str, Any]]]:
    with htc_probe.analysis.results.read(key.path) as found:
        return {name: (Section(key, found[name]), found[name].run) for name in found.sections()}


@st.cache_resource(max_entries=512, show_spinner=False)
def _analysis_value(key: RunKey, section: str, name: str) -> Any:
    with htc_probe.analysis.results.read(key.path) as found:
        value = found[section][name]
    if isinstance(value, np.ndarray):
        value.flags.writeable = False
    return value


def label_text(task: Task, value: np.ndarray | float) -> str:
    """One label in words; `unknown` where the data had none."""
    if task.kind == "multilabel":
        flags = np.asarray(value)
        if (flags == 255).all():
            return "unknown"
        return ", ".join(name for name, flag in zip(task.classes, flags, strict=True) if flag == 1) or "none"
    if task.kind in NUMERIC:
        return "unknown" if np.isnan(value) else f"{float(value):.4g} {task.unit}".strip()
    return "unknown" if int(value) < 0 else task.classes[int(value)]


# ---- attention


def average(key: RunKey, rows: Sequence[int] | np.ndarray, most_bytes: int = AVERAGE_BYTES) -> Average:
    """Attention averaged over these images, or over evenly spaced ones of them: `most_bytes` of float32 are read."""
    shape = header(key).shape
    return _average(key, att.evenly(rows, most_bytes // (4 * shape.layers * shape.heads * shape.keys)))


@st.cache_resource(max_entries=4, show_spinner="Averaging the attention")
def _average(key: RunKey, rows: np.ndarray) -> Average:
    run = opened(key)
    shape = run.shape
    total_LHS = np.zeros((shape.layers, shape.heads, shape.keys))
    parts: list[dict[str, np.ndarray]] = []
    step = max(1, 2**21 // total_LHS.size)
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        whole = block[-1] - block[0] + 1 == len(block)
        attention_BLHS = (
            run.rows("attention/voco", block[0], block[-1] + 1).astype(np.float32)
            if whole
            else np.stack([run.attention(int(row)) for row in block])
        )
        total_LHS += attention_BLHS.sum(axis=0, dtype=np.float64)
        parts.append(att.measure(attention_BLHS, shape.roles))
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Average(len(rows), (total_LHS / len(rows)).astype(np.float32), values)


@st.cache_resource(max_entries=32, show_spinner=False)
def anchor_curve(key: RunKey, rows: np.ndarray, head: int | None) -> tuple[np.ndarray, att.Band]:
    """What these images give the anchors, by layer (L,): the mean and how images differ; head None is the mean."""
    mass_NL = att.head_mean(anchor_mass(key), head)[rows]
    return mass_NL.mean(axis=0), att.band(mass_NL)


@st.cache_resource(max_entries=8, show_spinner=False)
def anchor_cells(key: RunKey, rows: np.ndarray) -> tuple[np.ndarray, att.Band]:
    """The same by layer and head, (L, H)."""
    mass_NLH = anchor_mass(key)[rows]
    return mass_NLH.mean(axis=0), att.band(mass_NLH)


@st.cache_resource(max_entries=16, show_spinner=False)
def anchor_values(key: RunKey, layer: int | None, head: int | None) -> np.ndarray:
    """(N,) what each image gives the anchors at this layer and head; None is the mean."""
    mass_NL = att.head_mean(anchor_mass(key), head)
    return mass_NL.mean(axis=1) if layer is None else mass_NL[:, layer]


def first_tokens(key: RunKey, rows: Sequence[int], count: int) -> np.ndarray:
    """(n, L, H, F) float32: what these images give to the first hybrid tokens."""
    return np.stack([_first_tokens(key, row, count) for row in rows])


@st.cache_resource(max_entries=128, show_spinner=False)
def _first_tokens(key: RunKey, image: int, count: int) -> np.ndarray:
    run = opened(key)
    return run.attention(image)[..., att.first_hybrid(run.shape.roles, count)]


def sentences(run: Path, header: Header) -> list[htc_probe.analysis.sentences.Sentence | str]:
    """The five of `htc-analyze`, and what a linear map tells of the patches; of what was not analysed or probed, how to
    do that.
    """
    found, scores = sections(run, header), _scores(run, header)
    made = tuple((name, section.created) for name, section in found.items())
    return _sentences(key_of(htc_probe.analysis.results.default_path(run)) if found else None, made, found, scores)


def _scores(run: Path, header: Header) -> RunKey | None:
    """The probes' results beside the run; None where they are of an earlier state of it, or cannot be read."""
    path = results.default_path(run)
    if not path.is_file() or _why_refused(path, run.parent):
        return None
    return key if probe_results(key := key_of(path)).run.get("created") == header.created else None


@st.cache_resource(max_entries=16, show_spinner=False)
def _sentences(
    key: RunKey | None, made: tuple[tuple[str, str], ...], _found: Mapping[str, Section], scores: RunKey | None
) -> list[htc_probe.analysis.sentences.Sentence | str]:
    probed = None if scores is None else probe_results(scores)
    return [*htc_probe.analysis.sentences.sentences(_found, probed), htc_probe.analysis.sentences.patches(_found)]


# ---- compare

PAIRED_BYTES = 48 * 2**20
"""Attention of two runs that is compared key by key: so much of float16 in each; of evenly spaced images."""


class Pairs(NamedTuple):
    """Which images of two runs are laid side by side."""

    rows: np.ndarray
    """(n,) of this run: those that both hold, or all where they share none."""
    other_rows: np.ndarray
    """(n,) the same images in the other run, or all of it."""
    groups: np.ndarray
    """(n,) int, the group of each."""
    other_groups: np.ndarray | None
    """None: paired. Otherwise the groups of the other run's images."""

    @property
    def paired(self) -> bool:
        return self.other_groups is None

    def evenly(self, most: int) -> "Pairs":
        """At most so many of them."""
        one, two = (att.evenly(np.arange(len(rows)), most) for rows in (self.rows, self.other_rows))
        others = None if self.other_groups is None else self.other_groups[two]
        return Pairs(self.rows[one], self.other_rows[two], self.groups[one], others)


@st.cache_resource(max_entries=8, show_spinner=False)
def pairs(key: RunKey, other: RunKey, chosen: tuple[int, ...] = ()) -> Pairs:
    """The images of two runs, paired by id; of this run's `chosen` rows only, where there are some."""
    rows, others = row_of(key), row_of(other)
    shared = [name for name in rows if name in others]
    groups = _numbered(header(key).groups)
    if not shared:
        at = np.array(chosen or range(len(rows)))
        return Pairs(at, np.arange(len(others)), groups[at], _numbered(header(other).groups))
    if chosen:
        shared = [name for name in shared if rows[name] in set(chosen)]
    at = np.array([rows[name] for name in shared], dtype=int)
    return Pairs(at, np.array([others[name] for name in shared], dtype=int), groups[at], None)


def _numbered(names: Sequence[str]) -> np.ndarray:
    """(N,) int, equal where names are."""
    return np.unique(np.asarray(names), return_inverse=True)[1]


@st.cache_resource(max_entries=4, show_spinner="Comparing the attention of all images")
def mass_differences(key: RunKey, other: RunKey, chosen: tuple[int, ...]) -> compare.Differences:
    """(L, H) of the attention on the anchors, over all pairs; both runs have as many layers and heads."""
    at, one, two = pairs(key, other, chosen), anchor_mass(key), anchor_mass(other)
    parts = [
        compare.of_images(one[at.rows, layer], two[at.other_rows, layer], at.groups, at.other_groups)
        for layer in range(one.shape[1])  # a layer at a time, which is less to hold in float64
    ]
    return compare.joined(parts)


@st.cache_resource(max_entries=8, show_spinner=False)
def paired_mass(key: RunKey, other: RunKey, chosen: tuple[int, ...], head: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(n, L) float32 of each run: attention of the pairs' images on the anchors, at one head or the mean over heads."""
    at = pairs(key, other, chosen)
    one, two = (att.head_mean(anchor_mass(of), head) for of in (key, other))
    return one[at.rows], two[at.other_rows]


@st.cache_resource(max_entries=1, show_spinner="Reading the attention of both runs")
def paired_attention(
    key: RunKey, other: RunKey, chosen: tuple[int, ...]
) -> tuple[compare.Sample, compare.Sample, Pairs]:
    """All attention of evenly spaced pairs, as many as `PAIRED_BYTES` allow; and which they are."""
    shapes = [header(of).shape for of in (key, other)]
    most = min(PAIRED_BYTES // (2 * shape.layers * shape.heads * shape.keys) for shape in shapes)
    at = pairs(key, other, chosen).evenly(max(2, most))
    one, two = (
        compare.sample(_attention_blocks(of, rows), shape.roles)
        for of, rows, shape in zip((key, other), (at.rows, at.other_rows), shapes, strict=True)
    )
    return one, two, at


def _attention_blocks(key: RunKey, rows: np.ndarray) -> Iterator[np.ndarray]:
    """(B, L, H, S) of some images, some 8 MB at a time."""
    run = opened(key)
    step = max(1, 2**21 // (run.shape.layers * run.shape.heads * run.shape.keys))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        if (np.diff(block) == 1).all():
            yield run.rows("attention/voco", int(block[0]), int(block[-1]) + 1).astype(np.float32)
        else:
            yield np.stack([run.attention(int(row)) for row in block])


@st.cache_resource(max_entries=2, show_spinner="Comparing what the probes said of each image")
def paired_probes(
    key: RunKey,
    other: RunKey,
    said: RunKey,
    other_said: RunKey,
    asked: tuple[tuple[compare.ProbeKey, compare.ProbeKey], ...],
) -> dict[compare.ProbeKey, compare.Scored]:
    """Scores of the images that both runs' probes were asked about: `said` and `other_said` are the files of
    predictions, `asked` the probes to lay side by side; by this run's probe. Those of an earlier state of a run, and
    those that answered other questions (other classes, other labels), are left out.
    """
    at = pairs(key, other)
    one, two = (htc_probe.probes.files.predictions.load(of.path) for of in (said, other_said))
    if not at.paired or any(of.run.get("created") != header(run).created for of, run in ((one, key), (two, other))):
        return {}
    found = {}
    for mine, theirs in asked:
        if mine in one and theirs in two:
            scored = compare.scored(one[mine], two[theirs], at.rows, at.other_rows)
            if scored is not None:
                found[mine] = scored
    return found


# ---- map


class LatentMap(NamedTuple):
    """Maps of n images of a run in two dimensions, under M representations."""

    of: list[str]
    rows: np.ndarray
    """(n,) rows of the run, ascending."""
    at: dict[str, np.ndarray]
    """UMAP and PCA -> (M, n, 2) float32."""
    variance: np.ndarray
    """(M, 2) shares of the variance on the axes of PCA."""
    kept: dict[str, np.ndarray]
    """UMAP and PCA -> (3, M): share of the nearest images that are nearest in the map, and its interval."""
    chance: float
    near: np.ndarray | None
    """(M, n, 10) rows of the nearest images, -1 where there are not as many; None where they were not stored."""
    distance: np.ndarray | None
    """(M, n, 10) float32; 1 is as far as two images are."""

    def place(self, row: int) -> int | None:
        """Where the image of this row is among the n; None where it is not on the map."""
        place = int(np.searchsorted(self.rows, row))
        return place if place < len(self.rows) and self.rows[place] == row else None

    def places(self, rows: Sequence[int]) -> np.ndarray:
        """The places of those of these rows that are on the map, ascending."""
        return np.flatnonzero(np.isin(self.rows, rows))


def latent_map(section: Section, images: int) -> LatentMap:
    """What `htc-analyze map` found of a run of so many images. Raises UserError where it does not fit them."""
    try:
        found = LatentMap(
            section["map_of"],
            section["rows"],
            {"UMAP": section["umap"], "PCA": section["pca"]},
            section["pca_variance"],
            {
                name.upper(): np.stack([section[f"{name}_kept{end}"] for end in ("", "_lower", "_upper")])
                for name in ("umap", "pca")
            },
            section["kept_chance"],
            section.get("nearest_rows"),
            section.get("nearest_distance"),
        )
        M, n = len(found.of), len(found.rows)
        fits = all(at.shape == (M, n, 2) for at in found.at.values()) and found.variance.shape == (M, 2)
        fits &= all(kept.shape == (3, M) for kept in found.kept.values())
        fits &= n > 0 and found.rows[0] >= 0 and found.rows[-1] < images and bool((np.diff(found.rows) > 0).all())
        if found.near is not None:
            fits &= found.distance is not None and found.near.shape == found.distance.shape
            fits &= found.near.shape[:2] == (M, n) and int(found.near.max(initial=-1)) < images
    except (KeyError, ValueError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise UserError("The map beside this run does not fit it; make it again with: htc-analyze map")
    return found


@st.cache_resource(max_entries=4, show_spinner=False)
def _pictures(key: RunKey) -> dict[int, str]:
    return {}


def pictures(key: RunKey, rows: Sequence[int]) -> list[str]:
    """Thumbnails of these images as data URIs (JPEG, 3 to 5 kB); the run is opened once for those not seen before."""
    seen = _pictures(key)
    if missing := [row for row in rows if row not in seen]:
        run = opened(key)
        for row in missing:
            buffer = io.BytesIO()
            Image.fromarray(run.thumbnail(row)).save(buffer, "JPEG", quality=90)
            seen[row] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return [seen[row] for row in rows]


# ---- codes

CODES_BYTES = 256 * 2**20
"""Codes read of a run, at most; of a longer one, evenly spaced images."""
_CODES_TOGETHER = 64  # images that are read at once where not all are


class Codes(NamedTuple):
    """The codes of n images of a run."""

    rows: np.ndarray
    """(n,) where the images are in the run, ascending."""
    codes: np.ndarray
    """(groups, n, places) uint16, the places row by row."""
    size: int
    """Codes that a group has."""
    shares: np.ndarray
    """(groups, size) how often each occurs, of all places."""


@st.cache_resource(max_entries=2, show_spinner="Reading the codes")
def codes(key: RunKey, most_bytes: int = CODES_BYTES) -> Codes:
    run = opened(key)
    assert run.shape.codes is not None
    total, (h, w, G) = len(run), run.shape.codes
    n = min(total, max(1, most_bytes // (2 * h * w * G)))
    together = min(n, _CODES_TOGETHER if n < total else 4096)
    starts = np.linspace(0, total - together, n // together).astype(int) if n < total else range(0, n, together)
    blocks = [np.arange(start, min(start + together, total)) for start in starts]
    rows = np.concatenate(blocks)
    found = np.empty((G, len(rows), h * w), dtype=np.uint16)
    at = 0
    for block in blocks:
        read = run.rows("codes", int(block[0]), int(block[-1]) + 1)
        found[:, at : at + len(block)] = np.moveaxis(read, -1, 0).reshape(G, len(block), h * w)
        at += len(block)
    size = _code_size(header(key), int(found.max()) + 1)
    return Codes(rows, found, size, np.stack([of_codes.shares(group, size) for group in found]))


def _code_size(header: Header, least: int) -> int:
    """Codes of a group, as the model's configuration says where that can be."""
    config = header.info.model.get("config")
    mgvq = config.get("mgvq") if isinstance(config, dict) else None
    if isinstance(mgvq, dict):
        total, groups = mgvq.get("codebook_size"), mgvq.get("groups")
        if isinstance(total, int) and isinstance(groups, int) and groups > 0 and least <= total // groups <= 2**16:
            return total // groups
    return least


@st.cache_resource(max_entries=16, show_spinner=False)
def codes_of_image(key: RunKey, image: int) -> np.ndarray:
    """(rows, columns, groups) uint16 of one image."""
    run = opened(key)
    return run.rows("codes", image, image + 1)[0]


@st.cache_resource(max_entries=4, show_spinner=False)
def codes_held(key: RunKey, group: int) -> of_codes.Held:
    """Which image of `codes` holds which code of a group."""
    return of_codes.held(codes(key).codes[group])


@st.cache_resource(max_entries=64, show_spinner=False)
def codes_of_answer(key: RunKey, group: int, name: str, answer: int) -> of_codes.Associations:
    """Codes of a group that go with the answer of this number to a task, see `dashboards.codes.answers`; corrected for
    all codes that occur and all answers to the task.
    """
    read = codes(key)
    task = next(task for task in header(key).tasks if task.name == name)
    values = labels(key)[name][read.rows]
    groups = header(key).groups
    counted = of_codes.one_of_each([groups[row] for row in read.rows], of_codes.known(values, task.kind))
    tests = int((read.shares > 0).sum()) * len(of_codes.answers(values, task.kind, task.classes, task.unit))
    inside = of_codes.answering(values, task.kind, answer)
    return of_codes.associations(codes_held(key, group), inside, counted, read.size, tests)


# ---- causes


def rows_of(key: RunKey, names: Sequence[str]) -> list[int]:
    """The rows of these images. Raises UserError where the run has none of a name."""
    rows = row_of(key)
    if missing := [name for name in names if name not in rows]:
        raise UserError(f"the analysis beside {Path(key.path).name} is of {missing[0]!r}, which the run does not have")
    return [rows[name] for name in names]


# ---- probes


@st.cache_resource(max_entries=8, show_spinner=False)
def predictions(key: RunKey) -> htc_probe.probes.files.predictions.Predictions:
    """Which probes the file `key` has predictions of. Raises UserError when it is damaged."""
    return htc_probe.probes.files.predictions.load(key.path)


@st.cache_resource(max_entries=96, show_spinner=False)
def predicted(key: RunKey, probe: compare.ProbeKey, images: int) -> htc_probe.probes.files.predictions.Predicted:
    """What one probe said of a run of so many images. Raises UserError when the file is damaged or of other images."""
    found = predictions(key)[probe]
    if len(found.rows) and not 0 <= found.rows.min() <= found.rows.max() < images:
        raise UserError(f"{Path(key.path).name} is of more than {images:,} images; run htc-probe again")
    return found
