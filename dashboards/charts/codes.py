"""Charts of MGVQ's codes: on an image, how they are used, and which go with which label.

Groups of codes are counted from 1, codes from 0, as they are stored.
"""

from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from htc_probe.analysis.contents import associations
from htc_probe.analysis.sections.contents import CodeLabels, Codes
from htc_probe.dashboards import data, figures
from htc_probe.dashboards.charts.source import Nothing, Source, number, some, source
from htc_probe.dashboards.figures.base import escape
from htc_probe.extract.errors import UserError

EXAMPLES = 12


def pictures(run: Path | str, *, image: int | str) -> go.Figure:
    """An image, what MGVQ's decoder makes of its codes, and the difference."""
    of, row = _with_codes(run), source(run).row(image)
    section, name = of.analysed(of.sections.reconstruct, "reconstruct"), of.header.ids[row]
    if name not in section.images:
        raise Nothing(f"{name} has no reconstruction; {', '.join(section.images[:5])} have one")
    place = section.images.index(name)
    return figures.code_pictures(
        data.thumbnail(of.key, row), section.pictures[place], psnr=float(section.psnr_of[place])
    )


def grid(run: Path | str, *, image: int | str, group: int = 1, code: int | None = None) -> go.Figure:
    """The codes of one group over an image, by how rare each is in the run; one `code` is outlined."""
    of, row = _with_codes(run), source(run).row(image)
    place, read = _group(of, group), data.all_codes(of.key)
    here_RC = data.codes_of_image(of.key, row)[..., place]
    # Where not all images were read, this one may hold a code that no other does.
    shares_K = np.pad(read.shares[place], (0, max(0, int(here_RC.max()) + 1 - read.size)))
    picture, groups = data.thumbnail(of.key, row), len(read.shares)
    return figures.code_grid(here_RC, shares_K, group=place, groups=groups, image=picture, chosen=code)


def entropy(run: Path | str, *, group: int | None = None) -> go.Figure:
    """How evenly each group's codes are used; one `group` is outlined."""
    of = _with_codes(run)
    chosen = None if group is None else _group(of, group)
    section, read = of.sections.reading, data.all_codes(of.key)
    if section is not None and section.code is not None:
        found = section.code
        bits, lower, upper = found.entropy
        ends, n = (lower, upper), len(of.header.ids)
        return figures.code_entropy(bits, found.used, found.size, n=n, interval=ends, chosen=chosen)
    bits = np.array([associations.entropy(share_K) for share_K in read.shares])
    return figures.code_entropy(bits, (read.shares > 0).sum(1), read.size, n=len(read.rows), chosen=chosen)


def usage(run: Path | str, *, group: int = 1, code: int | None = None) -> go.Figure:
    """How often each code of a group occurs, the most frequent first; one `code` is marked."""
    of = _with_codes(run)
    place, read = _group(of, group), data.all_codes(of.key)
    return figures.code_usage(read.shares[place], group=place, n=len(read.rows), chosen=code)


def lifts(run: Path | str, *, task: str, label: str, group: int = 1, code: int | None = None) -> go.Figure:
    """Codes that images with a label of a task hold more often than others, beyond chance."""
    of = _with_codes(run)
    place = _group(of, group)
    found = data.codes_of_answer(of.key, place, task, _answer(of, task, label))
    kept = associations.chosen(found, found.found)
    if not len(kept.code):
        raise Nothing(f"no code of group {group} goes with {task}: {label} beyond chance")
    return figures.code_lifts(kept, group=place, answer=f"{task}: {label}", chosen=code)


def label_bits(run: Path | str, *, task: str | None = None, group: int | None = None) -> go.Figure:
    """What one code says of each label, by group of codes; the cell of a `task` and a `group` is outlined."""
    of = _with_codes(run)
    reading, label, n = _told(of)
    tasks, (bits, lower, upper) = reading.tasks, label.bits
    mark = (tasks.index(task), _group(of, group)) if task in tasks and group is not None else None
    return figures.code_label_bits(bits, lower, upper, label.entropy, tasks, n=n, mark=mark)


def label_map(run: Path | str, *, task: str) -> go.Figure:
    """Where in the image a code says most of the label of a task, the mean over groups."""
    of = _with_codes(run)
    reading, label, n = _told(of)
    assert of.shape.codes is not None
    if task not in reading.tasks:
        raise Nothing(f"the codes of {of.path.name} were not read for {task}; choose one of {', '.join(reading.tasks)}")
    bits_P, shape = label.map[reading.tasks.index(task)], of.shape.codes[:2]
    return figures.code_label_map(bits_P, reading.rows.tolist(), reading.cols.tolist(), shape, task=task, n=n)


def places(run: Path | str, *, code: int, group: int = 1) -> go.Figure:
    """Where in the image a code lies."""
    of = _with_codes(run)
    assert of.shape.codes is not None
    place, read, (R, C, _) = _group(of, group), data.all_codes(of.key), of.shape.codes
    share_RC = (read.codes[place] == code).mean(0).reshape(R, C)
    return figures.code_places(share_RC, group=place, code=code, n=len(read.rows))


def examples(
    run: Path | str, *, code: int, group: int = 1, task: str | None = None, label: str | None = None
) -> go.Figure:
    """The images that hold most of a code, its cells outlined; of those with this label of a task alone, where they are
    given.
    """
    of = _with_codes(run)
    assert of.shape.codes is not None
    place, read, (R, C, _) = _group(of, group), data.all_codes(of.key), of.shape.codes
    held = holding(of, group, code, task, label)
    if not len(held):
        raise Nothing(f"no image of {of.path.name} has code {code} of group {group} and what else is asked for")
    shown = held[:EXAMPLES]
    rows = [int(row) for row in read.rows[shown]]
    which = "with most of this code"
    return figures.code_examples(
        data.pictures(of.key, rows),
        (read.codes[place][shown] == code).reshape(-1, R, C),
        [of.header.ids[row] for row in rows],
        title=f"Images {which}" if task is None else f"Images of {escape(task)}: {escape(label or '')} {which}",
        subtitle=f"outlined: cells with code {code} · {len(rows)} of {len(held):,} images",
    )


def holding(of: Source, group: int, code: int, task: str | None = None, label: str | None = None) -> np.ndarray:
    """Which of the images that were read (`data.all_codes`) hold a code, those that hold most of it first."""
    read = data.all_codes(of.key)
    here_NP = read.codes[_group(of, group)] == code
    held = np.flatnonzero(here_NP.any(1))
    if task is not None:
        values, kind = data.labels(of.key)[task][read.rows], of.task(task).kind
        held = held[associations.answering(values, kind, _answer(of, task, label))[held]]
    return held[np.argsort(-here_NP[held].sum(1), kind="stable")]


def answers(of: Source, task: str) -> list[str]:
    """The labels of a task, by which images are told apart."""
    asked = of.task(task)
    values = data.labels(of.key)[task][data.all_codes(of.key).rows]
    return list(associations.answers(values, asked.kind, asked.classes, asked.unit))


def _answer(of: Source, task: str, label: str | None) -> int:
    """Its number, from 0."""
    known = answers(of, task)
    if label not in known:
        raise UserError(f"{task} has no label {label!r}; expected one of {', '.join(known)}")
    return known.index(label)


def _with_codes(run: Path | str) -> Source:
    of = source(run)
    some(of.shape.codes, f"{of.path.name} has no codes, as its model has no MGVQ")
    return of


def _group(of: Source, group: int) -> int:
    assert of.shape.codes is not None
    return number("group of codes", group, of.shape.codes[2], of.path)


def _told(of: Source) -> tuple[Codes, CodeLabels, int]:
    """What codes tell of labels, and of how many images."""
    section = of.analysed(of.sections.reading, "reading")
    reading = some(section.code, f"the codes of {of.path.name} were not read")
    label = some(reading.label, f"no task of {of.path.name} has two different labels to read from the codes")
    return reading, label, min(section.images, of.shape.images)
