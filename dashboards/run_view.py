"""The facts of a run: what made it, on what. Lays out what `data.header` holds."""

import streamlit as st

from dashboards import data
from dashboards.controls import plain
from extract.store import Task


def summary(header: data.Header) -> str:
    """A few words that tell runs apart."""
    info, images = header.info, header.shape.images
    words = [info.dataset, info.split, str(info.model.get("name", "unknown")), _count(images, "image")]
    return plain(" · ".join(words))


def facts(header: data.Header) -> str:
    """One line of Markdown that says what the run is."""
    info, shape = header.info, header.shape
    stand_in = "the token after the image stands in the place of &lt;voco&gt;"
    return " · ".join(
        [
            f"data **{plain(info.dataset)}**, split **{plain(info.split)}**",
            f"model **{plain(str(info.model.get('name', 'unknown')))}** ({plain(info.topology)})",
            _count(shape.images, "image"),
            f"{shape.layers} layers × {shape.heads} heads",
            f"{shape.anchors or 'no'} anchors, {shape.roles.count('patch'):,} patches, {shape.keys:,} keys",
            *([stand_in] if info.topology == "uncompressed" else []),
        ]
    )


def show(header: data.Header) -> None:
    """Draws the page about the run."""
    info, shape = header.info, header.shape
    st.table(
        [
            {"": "created", " ": plain(header.created[:19].replace("T", " ") + " UTC")},
            {"": "weights (sha256)", " ": plain(str(info.model.get("sha256", "unknown")))},
            {"": "hidden width", " ": f"{shape.width:,}"},
            {"": "layers of z_voco stored", " ": _ranges(shape.stack)},
            {"": "codes", " ": _codes(shape.codes)},
            {"": "labelled tasks", " ": f"{len(header.tasks)}" if header.tasks else "none"},
            {"": "images skipped", " ": f"{len(header.skipped):,}"},
        ],
        border="horizontal",
        hide_index=True,
        hide_header=True,
    )
    if header.skipped:
        with st.expander(f"{_count(len(header.skipped), 'image')} that could not be read"):
            rows = [{"path": plain(path), "reason": plain(reason)} for path, reason in header.skipped]
            st.table(rows, hide_index=True)
    if header.tasks:
        with st.expander("What the tasks ask", expanded=True):
            noted = any(task.note for task in header.tasks)
            st.table([_task(task, noted) for task in header.tasks], border="horizontal", hide_index=True)
    for title, content in (
        ("Settings of the extraction", info.config),
        ("Model configuration", info.model.get("config", {})),
        ("Library versions", info.environment),
    ):
        with st.expander(title):
            st.json(content)


def _task(task: Task, noted: bool) -> dict[str, str]:
    what = {"classes": f"{len(task.classes)} classes", "multilabel": f"{len(task.classes)} labels", "number": task.unit}
    shown = plain(what[task.kind]) or "number"
    note = {"note": plain(task.note)} if noted else {}
    return {"suite": task.suite, "task": plain(task.name), "answer": shown} | note


def _codes(shape: tuple[int, int, int] | None) -> str:
    return "none" if shape is None else " × ".join(map(str, shape)) + " (rows × columns × groups)"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _ranges(layers: tuple[int, ...]) -> str:
    whole = tuple(range(layers[0], layers[-1] + 1)) if layers else ()
    return (
        f"{layers[0]} to {layers[-1]}" if len(layers) > 2 and layers == whole else ", ".join(map(str, layers))
    )
