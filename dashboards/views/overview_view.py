"""The run in one look: what it is, the verdict of its probes, the five sentences of its analysis, its probes in small,
what made it.

Lays out; reads through data.
"""

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from htc_probe.analysis.attention import rows as att
from htc_probe.analysis.sentences import ANALYSES, Sentence
from htc_probe.dashboards import data
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts import gallery
from htc_probe.dashboards.views.view import View, scores
from htc_probe.extract.store import Task
from htc_probe.extract.words import counted
from htc_probe.probes.files.results import Results
from htc_probe.probes.show import verdict
from htc_probe.probes.show.table import columns, key_of, name_in, suites

_THUMBNAILS = 12
_PROBE = "htc-probe semantic detail"
_COLOURS = {True: "blue", False: "orange", None: "gray"}
"""Of a badge, by whether a measurement agrees with the paper."""


def summary(header: data.Header) -> str:
    """A few words that tell runs apart."""
    info, images = header.info, header.shape.images
    so_far = "" if header.finished else f" of {header.expected:,} so far (unfinished)"
    words = [info.dataset, info.split, str(info.model.get("name", "unknown")), counted(images, "image") + so_far]
    return ui.plain(" · ".join(words))


def _facts(header: data.Header) -> str:
    """One line of Markdown that says what the run is."""
    info, shape = header.info, header.shape
    stand_in = "the token after the image stands in the place of &lt;voco&gt;"
    return " · ".join(
        [
            f"data **{ui.plain(info.dataset)}**, split **{ui.plain(info.split)}**",
            f"model **{ui.plain(str(info.model.get('name', 'unknown')))}** ({ui.plain(info.topology)})",
            counted(shape.images, "image"),
            f"{shape.layers} layers × {shape.heads} heads",
            f"{shape.anchors or 'no'} anchors, {shape.roles.count('patch'):,} patches, {shape.keys:,} keys",
            *([stand_in] if info.topology == "uncompressed" else []),
        ]
    )


def show(view: View) -> None:
    """Draws the page about the run."""
    header = view.header
    st.title(ui.plain(view.path.stem))
    st.markdown(_facts(header))
    if not header.finished:
        st.warning(
            f"This run is unfinished: {header.shape.images:,} of {header.expected:,} images are there, and all pages "
            "show these. To finish it, start the same htc-extract command again; it continues where it stopped."
        )
    if header.skipped:
        st.warning(f"{counted(len(header.skipped), 'image')} could not be read and were skipped; see the list below.")
    results = None
    with ui.guarded():
        results = scores(view.path, header)
        if results is not None:
            _verdict(view, results)
    some = [int(row) for row in att.evenly(range(header.shape.images), _THUMBNAILS)]
    pictures = [
        gallery.Picture(row, source, f"{row + 1:,} · {header.ids[row]}", current=row == view.selection.image)
        for row, source in zip(some, data.pictures(view.key, some), strict=True)
    ]
    gallery.show(pictures, "overview_gallery", ui.go_to_image)
    ui.how_to_read(
        f"{len(some)} of the {header.shape.images:,} images, evenly spaced; click one to make it the image of all "
        "pages. The model squeezes each image into one "
        "token, &lt;voco&gt;. This run holds that token at every layer, and where it looked. Text reads &lt;voco&gt; "
        "as it enters each layer (voco\\_read). z\\_voco is what leaves the last layer; no text reads it."
    )
    _sentences(view)
    if results is not None:
        _probes(results)
    _details(view)


def _verdict(view: View, results: Results) -> None:
    """As `htc-probe` ends with it, but for a command that opens this page."""
    told = verdict.of(results, view.path, view.header.created)
    with st.container(border=True):
        first, *others = map(ui.plain, told.sentences)
        st.markdown("  \n".join([f"**{first}**", *others]))
        if "htc-dashboard" not in told.next.split(" ")[0]:
            st.caption("To go on, run:")
            st.code(told.next, language=None)


def _sentences(view: View) -> None:
    st.header("In five sentences")
    answers = data.sentences(view.path, view.header)
    told = {question: answer for question, answer in answers.items() if isinstance(answer, Sentence)}
    missing: dict[str, list[str]] = {}
    for answer in answers.values():
        if isinstance(answer, str):
            reason, _, command = answer.partition("; ")
            missing.setdefault(command, []).append(reason.removesuffix(": not analysed yet"))
    missing.pop(_PROBE, None)  # the table of probes says it
    if told:
        ui.how_to_read(
            "Left: what this run shows. Right: what the paper (arXiv 2512.08240) claims. In brackets: 95% intervals "
            "over groups of images. The badge says agrees or disagrees only where the interval is clear."
        )
    for question, answer in told.items():
        measured, claim = st.columns([7, 4], gap="medium", border=True)
        with measured:
            st.markdown(f"**{question}** {ui.plain(answer.text)}")
            st.caption(_sample(view, analysis) if (analysis := ANALYSES[question]) else _probed(view))
        with claim:
            st.markdown(_claim(answer))
    _missing(missing, view.path)


def _claim(sentence: Sentence) -> str:
    if not sentence.claim:
        return "The paper does not test this."
    return f"The paper: {ui.plain(sentence.claim)}. :{_COLOURS[sentence.agrees]}-badge[{sentence.stance}]"


def _missing(missing: dict[str, list[str]], path: Path) -> None:
    """Sentences that cannot be told, by the command that changes that; "" where none does."""
    for reason in missing.pop("", []):
        st.info(ui.plain(reason))
    if missing:
        names = dict.fromkeys(command.removeprefix("htc-analyze ") for command in missing)
        what = "; ".join(reason for reasons in missing.values() for reason in reasons)
        ui.fill(f"These questions are open: {ui.plain(what)}.", f"htc-analyze {' '.join(names)}", path)


def _sample(view: View, analysis: str) -> str:
    """How many images an analysis is of, and when it was made."""
    section = getattr(data.sections(view.path, view.header), analysis)
    count = section.images if isinstance(section.images, int) else len(section.images)
    what = "mixtures" if analysis == "interchange" else "images"
    time = _time(data.made(view.path, view.header)[analysis].created)
    return f"htc-analyze {analysis} · {count:,} {what} · {ui.plain(time)}"


def _probed(view: View) -> str:
    """How many images the probes are of."""
    beside = data.probes_beside(view.path)
    assert beside is not None
    rows = data.probe_results(data.key_of(beside)).rows
    return f"htc-probe · {max(row.n for row in rows):,} images, held out"


def _probes(results: Results) -> None:
    st.header("What can be read from it")
    lines = [
        (mean, max(row.n for row in results.rows if row.suite == suite))
        for suite in suites(results)
        for key in columns(results, suite)
        for mean in results.suite_means
        if (mean.suite, mean.representation, mean.layer) == (suite, *key)
    ]
    ui.table(
        {
            "suite": [mean.suite for mean, _ in lines],
            "read from": [name_in(results, key_of(mean)) for mean, _ in lines],
            "mean score": [f"{mean.estimate:.3f}" for mean, _ in lines],
            "95% interval": [f"{mean.lower:.3f} to {mean.upper:.3f}" for mean, _ in lines],
            "floor": [f"{mean.floor:.3f}" for mean, _ in lines],
            "bits": ["" if mean.bits.estimate is None else f"{mean.bits.estimate:.2f}" for mean, _ in lines],
            "tasks": [mean.tasks for mean, _ in lines],
            "images": [n for _, n in lines],
        },
        "overview_probes",
    )
    ui.how_to_read(
        "Scores of linear probes on held-out images, the mean over a suite's tasks; 1 is perfect. The floor is the "
        "score of a predictor that sees no features. Bits: what the probe tells of a label, an image, beyond how often "
        "labels occur. Images: those of the largest task. The page *Probes* has every task."
    )


def _details(view: View) -> None:
    header = view.header
    info, shape = header.info, header.shape
    st.header("How this run was made")
    rows = {
        "created": _time(header.created),
        "finished": "yes" if header.finished else f"no: {shape.images:,} of {header.expected:,} images",
        "weights (sha256)": str(info.model.get("sha256", "unknown"))[:16],
        "hidden width": f"{shape.width:,}",
        "layers of z_voco stored": _ranges(shape.stack),
        "codes": _codes(shape.codes),
        "labelled tasks": f"{len(header.tasks)}" if header.tasks else "none",
        "images skipped": f"{len(header.skipped):,}",
    }
    ui.table({"what": list(rows), "of this run": list(rows.values())}, "overview_details")
    if header.skipped:
        with st.expander(f"{counted(len(header.skipped), 'image')} that could not be read"):
            names = {"path": [path for path, _ in header.skipped], "reason": [reason for _, reason in header.skipped]}
            ui.table(names, "overview_skipped")
    if header.tasks:
        with st.expander("Tasks and their labels"):
            tasks = [_task(task) for task in header.tasks]
            ui.table({name: [line[name] for line in tasks] for name in tasks[0]}, "overview_tasks")
    for title, content in (
        ("Settings of the extraction", info.config),
        ("Model configuration", info.model.get("config", {})),
        ("Library versions", info.environment),
    ):
        with st.expander(title):
            st.json(content)


def _task(task: Task) -> dict[str, str]:
    what = {"classes": f"{len(task.classes)} classes", "multilabel": f"{len(task.classes)} labels"}
    shown = what.get(task.kind, task.unit) or "number"
    if task.kind == "circular":
        shown += f", {task.period:g} is 0 again"
    return {"suite": task.suite, "task": task.name, "answer": shown, "note": task.note}


def _time(iso: str) -> str:
    return iso[:19].replace("T", " ") + " UTC"


def _codes(shape: tuple[int, int, int] | None) -> str:
    return "none" if shape is None else " × ".join(map(str, shape)) + " (rows × columns × groups)"


def _ranges(layers: Sequence[int]) -> str:
    whole = tuple(range(layers[0], layers[-1] + 1)) if layers else ()
    return f"{layers[0]} to {layers[-1]}" if len(layers) > 2 and layers == whole else ", ".join(map(str, layers))
