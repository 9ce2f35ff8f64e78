"""Charts of the images as points: where they lie, by what they are coloured, and what a map keeps of their nearest."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from htc_probe.analysis.sections import Map
from htc_probe.analysis.stats.draws import Intervals
from htc_probe.dashboards import data, figures
from htc_probe.dashboards.charts.source import Source, some, source, words
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import NUMERIC, Task
from htc_probe.probes.files.predictions import Predicted
from htc_probe.probes.inputs.representations import shown

ANCHORS = "attention on the anchors"
METHODS: dict[str, Callable[[Map], tuple[np.ndarray, Intervals]]] = {
    "UMAP": lambda found: (found.umap, found.umap_kept),
    "PCA": lambda found: (found.pca, found.pca_kept),
}
_Colour = figures.Classes | figures.Amounts


class _Coloured(NamedTuple):
    words: str
    colour: _Colour


def images(
    run: Path | str,
    *,
    of: str = "z_voco",
    by: str = "UMAP",
    colour: str | None = None,
    label: str | None = None,
    probe: bool = False,
    layer: int | None = None,
    head: int | None = None,
    image: int | str | None = None,
    chosen: Sequence[int | str] = (),
) -> go.Figure:
    """A point an image, on a map of one representation.

    of: such as z_voco, v_d or codes. by: UMAP or PCA. colour: a task, `attention on the anchors` (at `layer` and
    `head`, None the mean), or None. label: the one class that is told from the others. probe: by how sure the task's
    probe is of what is true. image: the one with a ring. chosen: those that stand out.
    """
    run_of = source(run)
    maps = section(run_of)
    for what, value, known in (("of", of, maps.map_of), ("by", by, list(METHODS))):
        if value not in known:
            raise UserError(f"{run_of.path.name} has no map {what} {value!r}; expected one of {', '.join(known)}")
    number = maps.map_of.index(of)
    coloured = _coloured(run_of, maps.rows, of, colour, label, probe, (layer, head))
    points_MN2, kept = METHODS[by](maps)
    estimate, lower, upper = (end[number] for end in kept)
    first, second = (f"component {axis + 1} ({maps.pca_variance[number, axis]:.1%} of the variance)" for axis in (0, 1))
    total = run_of.shape.images
    of_all = "" if len(maps.rows) == total else f" of {total:,}"
    kept_words = f"{estimate:.1%} [{lower:.1%}, {upper:.1%}] of an image's 10 nearest<br>are its 10 nearest on this map"
    row = None if image is None else run_of.row(image)
    return figures.latent_map(
        points_MN2[number],
        maps.rows,
        None if coloured is None else coloured.colour,
        title=f"{by} of {shown(of)}" + ("" if coloured is None else f", coloured by {coloured.words}"),
        subtitle=f"{len(maps.rows):,}{of_all} images; {kept_words}, by chance {maps.kept_chance:.1%}",
        axes=(first, second) if by == "PCA" else ("", ""),
        chosen=np.flatnonzero(np.isin(maps.rows, run_of.rows(chosen))) if chosen else np.array([], int),
        current=None if row is None else maps.place(row),
        current_name="" if row is None else f"image {row + 1:,}",
    )


def kept(run: Path | str) -> go.Figure:
    """How many of an image's nearest each map keeps."""
    maps = section(source(run))
    of_method = {method: np.stack(look(maps)[1]) for method, look in METHODS.items()}
    names = [shown(name) for name in maps.map_of]
    return figures.kept_bars(of_method, maps.map_of, names, maps.kept_chance, n=len(maps.rows))


def section(of: Source) -> Map:
    """Raises Nothing where the run has no map, UserError where the map is of another run."""
    maps = of.analysed(of.sections.map, "map")
    data.check_map(maps, of.shape.images)
    return maps


def _coloured(
    of: Source,
    rows: np.ndarray,
    representation: str,
    colour: str | None,
    label: str | None,
    probe: bool,
    cell: tuple[int | None, int | None],
) -> _Coloured | None:
    tasks = {task.name: task for task in of.header.tasks}
    if colour is None:
        return None
    if colour == ANCHORS and colour not in tasks:
        mass_N = data.anchor_values(of.key, *of.cell(*cell))
        axis = f"share of all attention (uniform: {of.shape.anchors / of.shape.keys:.2%})"
        return _Coloured(f"{ANCHORS}, {words(*cell)}", figures.Amounts(mass_N[rows], axis, ".2%"))
    task = of.task(colour)
    if label is not None and label not in task.classes:
        raise UserError(f"{task.name} has no class {label!r}; expected one of {', '.join(task.classes)}")
    if probe:
        what = f"{of.path.name} has no predictions of {task.name} from {shown(representation)}"
        return _surely(of, rows, task, label, representation, some(predicted(of, task.name, representation), what))
    labels = data.labels(of.key)[task.name][rows]
    if task.kind in NUMERIC:
        return _Coloured(task.name, figures.Amounts(labels, f"{task.name} {task.unit}".strip()))
    if label is None:
        if task.kind == "multilabel":
            raise UserError(f"{task.name} has several labels an image; choose one, such as label={task.classes[0]!r}")
        return _Coloured(task.name, figures.Classes(task.classes, labels))
    return _Coloured(f"{task.name}: {label}", _one_class(task, labels, label))


def _one_class(task: Task, labels: np.ndarray, label: str) -> figures.Classes:
    place = task.classes.index(label)
    if task.kind == "multilabel":
        flags = labels[:, place]
        return figures.Classes((label, f"no {label}"), np.where(task.known(flags), 1 - flags.astype(int), -1), 0)
    return figures.Classes((label, f"not {label}"), np.where(labels < 0, -1, (labels != place).astype(int)), 0)


def predicted(of: Source, task: str, representation: str) -> Predicted | None:
    """What the probe of the task said from this representation, z_voco's last layer that was probed; None where there
    is none of this run. Raises UserError where the file is damaged.
    """
    beside = data.said_beside(of.path)
    if beside is None:
        return None
    key = data.key_of(beside)
    predictions = data.predictions(key)
    layers = [layer for name, from_, layer in predictions if (name, from_) == (task, representation)]
    if not layers or predictions.run.get("created") != of.header.created:
        return None
    last = max(layers, key=lambda layer: -1 if layer is None else layer)
    return data.predicted(key, (task, representation, last), of.shape.images)


def _surely(
    of: Source, rows: np.ndarray, task: Task, label: str | None, representation: str, said: Predicted
) -> _Coloured:
    """By how sure a probe is of what is true, or how far off it is. label: of a multilabel task."""
    values = np.full(of.shape.images, np.nan)
    reader = f"a probe of {shown(representation)}"
    if said.error is not None:
        values[said.rows] = np.abs(said.error)
        axis = f"error {task.unit}".strip()
        return _Coloured(f"error of {reader} for {task.name}", figures.Amounts(values[rows], axis))
    if said.kind == "classes":
        values[said.rows] = said.of_true
    elif label in said.classes and said.sure is not None:
        number = said.classes.index(label)
        sure, true = said.sure[:, number], said.y[:, number]
        values[said.rows] = np.where(task.known(true), np.where(true == 1, sure, 1 - sure), np.nan)
    what = f"probability that {reader} gives to the true {task.name}" + ("" if said.kind == "classes" else f": {label}")
    return _Coloured(what, figures.Amounts(values[rows], "probability of the true label", ".0%"))
