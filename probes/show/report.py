"""Probe results as one HTML page with their figures and a methods text. Knows `Results`, figures and plotly; not runs
or solvers.

The page holds plotly.js once and loads nothing. Names of classes, tasks and files are shown as they are, never read as
HTML.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from htc_probe.extract.files import replaced
from htc_probe.extract.store import NUMERIC
from htc_probe.probes.files.results import NOT_DEFINED, Results
from htc_probe.probes.inputs.representations import shown
from htc_probe.probes.show import figures, table

_CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}
_HTML: dict[str, Any] = {"config": _CONFIG, "include_plotlyjs": False, "full_html": False}


def write(results: Results, folder: Path) -> Path:
    """Writes `folder`/NAME.html, NAME the run's, whole or not at all. Raises UserError when that fails."""
    path = folder / f"{Path(str(results.run.get('file', ''))).stem or 'probes'}.html"
    with replaced(path, "choose another place with --report") as partial:
        partial.write_text(page(results), encoding="utf-8")
    return path


# ---- the page


class Section(NamedTuple):
    heading: str
    caption: str
    figures: tuple[go.Figure, ...]


def sections(results: Results) -> list[Section]:
    """What the page shows, in order; only what the results have."""
    made = []
    for suite in table.suites(results):
        for kind, heading, figure in (
            ("scores", "scores", figures.scores),
            ("layers", "layers of z_voco", figures.layer_curves),
            ("bits", "bits", figures.bits),
            ("differences", "differences between representations", figures.differences),
            ("kept", "what is kept of pooled V", figures.kept),
            ("added", "what one representation adds to another", figures.bits_added),
            ("retention", "retention", figures.retention),
            ("ceilings", "ceiling", figures.ceilings),
            ("learning", "learning curves", figures.learning_curves),
        ):
            drawn = figure(results, suite)
            if drawn is not None:
                caption = figures.CAPTIONS[kind] + (f" {table.paper_reference(suite)}" if kind == "scores" else "")
                made.append(Section(f"{suite}: {heading}", caption, (drawn,)))
    gaps = figures.gaps(results)
    if gaps is not None:
        made.append(Section("Semantics and details", figures.CAPTIONS["gaps"], (gaps,)))
    by_class = tuple(figures.by_class(results, task) for task in dict.fromkeys(one.task for one in results.by_class))
    if by_class:
        made.append(Section("Single classes", figures.CAPTIONS["classes"], tuple(filter(None, by_class))))
    confused = dict.fromkeys(one.task for one in results.confusions)
    matrices = tuple(figures.confusions(results, task) for task in confused)
    if matrices:
        made.append(Section("Confusions", figures.CAPTIONS["confusions"], matrices))
    return made


def page(results: Results) -> str:
    """The whole HTML page. The same results give the same text."""
    name = html.escape(str(results.run.get("file", "")))
    what = f"{_images(results.run)}, extracted {str(results.run.get('created', ''))[:10]}."
    methods_below = "How it was done is at the end of the page, ready to paste."
    body = [f"<h1>Linear probes of {name}</h1>", f"<p>{html.escape(f'{what} {methods_below}')}</p>"]
    if found := table.doubts(results):
        body.append('<ul class="doubts">' + "".join(f"<li>{html.escape(one)}</li>" for one in found) + "</ul>")
    number = 0
    for section in sections(results):
        body.append(f"<h2>{html.escape(section.heading)}</h2>")
        body.append(f'<p class="caption">{html.escape(section.caption)}</p>')
        for figure in section.figures:
            number += 1
            figure.update_layout(template="plotly_white")
            body.append(plotly.io.to_html(figure, **_HTML, div_id=f"figure-{number}"))
    body.append("<h2>Methods</h2>")
    body += [f"<p>{html.escape(paragraph)}</p>" for paragraph in methods(results)]
    return _PAGE.format(title=name, script=get_plotlyjs(), body="\n".join(body))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}: linear probes</title>
<style>
:root {{ color-scheme: light; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1100px; margin: 0 auto;
  padding: 1rem; overflow-wrap: anywhere; }}
h2 {{ margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1rem; }}
.caption {{ color: #444; max-width: 50rem; }}
.doubts {{ background: #fff6dd; border-left: 4px solid #e69f00; padding: .5rem 1rem .5rem 2rem; }}
</style>
<script>{script}</script>
</head>
<body>
{body}
</body>
</html>
"""


# ---- methods


def methods(results: Results) -> list[str]:
    """What was done, in paragraphs of plain text that can go into a paper."""
    return [" ".join(part) for part in (_data(results), _probes(results), _statistics(results), _limits(results))]


def _images(run: Mapping[str, Any]) -> str:
    images = f"{run.get('images', '?')} images of {run.get('dataset', '?')} {run.get('split', '')}"
    return f"{images} through {run.get('model') or 'an unnamed model'}"


def _run_words(run: Mapping[str, Any]) -> str:
    weights = f" (weights sha256 {str(run['sha256'])[:12]})" if run.get("sha256") else ""
    return f"{_images(run)}{weights}, topology {run.get('topology', '?')} (run {run.get('file', '?')})"


def _data(results: Results) -> Iterator[str]:
    yield f"We probed {_run_words(results.run)}."
    if train := results.run.get("train"):
        yield f"The probes were trained on a run of its own, {_run_words(train)}."
    widths = {row.representation: row.width for row in results.rows}
    yield "Representations: " + ", ".join(f"{shown(name)} ({width} features)" for name, width in widths.items()) + "."
    if layers := sorted({row.layer for row in results.rows if row.layer is not None}):
        yield f"z_voco is <voco>'s hidden state at layer {', '.join(map(str, layers))} (0 is the embedding)."
    if any("+" in row.representation for row in results.rows):
        yield "A + joins the features of two."
    for suite in table.suites(results):
        told = []
        for task, of in table.tasks(results, suite).items():
            kind = {"classes": "classes", "multilabel": "labels"}.get(of[0].kind, of[0].unit or "a number")
            what = f"{len(of[0].classes)} {kind}" if of[0].classes else kind
            told.append(f"{task} ({what}, n = {of[0].n:,} in {of[0].n_groups:,} groups)")
        yield f"{suite.capitalize()} tasks: " + ", ".join(told) + "."
    yield "Images with an unknown label are left out of its task, or of that label's loss and score."


def _probes(results: Results) -> Iterator[str]:
    said = results.config.get("protocol", {})
    kinds = {row.kind for row in results.rows}
    if "train" in results.run:
        yield "No scored image, and none of its group, was trained on."
    else:
        folds = len(results.rows[0].fold_scores) if results.rows else 0
        yield (
            f"Every image was held out once in {folds} folds that split no group of images and spread the labels of "
            "all tasks; the probes of a fold were fitted on the others."
        )
    yield "Features were standardised with the means and deviations of the images trained on."
    if dims := said.get("match_dim"):
        yield f"Of every representation the first {dims} principal directions of these were kept, not whitened."
    if kinds - set(NUMERIC):
        yield (
            "Probes of classes and labels are logistic regressions (softmax; a sigmoid for two classes and for each "
            "label) that minimise the mean cross-entropy + strength / 2 * ||W||^2 with a free intercept."
        )
    if "number" in kinds:
        yield (
            "Probes of numbers are ridge regressions that minimise half the mean squared error + strength / 2 * "
            "||w||^2 with a free intercept."
        )
    if "circular" in kinds:
        yield (
            "Probes of circular values are ridge regressions of cosine and sine at one strength, whose direction they "
            "say."
        )
    grids = [
        f"{len(said[name])} strengths from {max(said[name]):g} to {min(said[name]):g} ({what})"
        for name, what, used in (
            ("strengths", "logistic", kinds - set(NUMERIC)),
            ("ridge_strengths", "ridge", kinds & set(NUMERIC)),
        )
        if used and said.get(name)
    ]
    if grids:
        yield (
            f"Strengths were chosen for every task, representation and fold out of {' and '.join(grids)} in "
            f"{said.get('inner_folds', '?')} grouped inner folds of the training images, each number's by that number: "
            + ", ".join(rule for kind, rule in _CHOSEN_BY.items() if kind in kinds)
            + "."
        )
        if kinds - set(NUMERIC):
            begun = "only those" if said.get("guided") else "all of these, those"
            ladder = said.get("ladder", [])
            yield (
                f"Of logistic probes {begun} around the one that leave-one-out ridge points at, and further ones as "
                "long as an end was the best were tried"
                + (f", between {max(ladder):g} and {min(ladder):g}" if ladder else "")
                + "."
            )
        yield "The probe was then fitted on all training images."
    gaps = [row.gap for row in results.rows if row.gap is not None]
    if gaps:
        yield (
            "The solver certifies by how much a logistic objective may exceed its minimum: at most "
            f"{max(gaps):.1g} nats, in the median of the probes {median(gaps):.1g}."
        )
    if kinds - set(NUMERIC):
        yield "Held-out probabilities were mixed with the uniform distribution of weight 1 / (training images + 1)."


_CHOSEN_BY = {
    "classes": "top-1 by right answers and bits by cross-entropy",
    "multilabel": "mAP by mAP and bits by cross-entropy",
    "number": "R2 and bits by squared error",
    "circular": "circular R2 and bits by the cosine of the error",
}


def _statistics(results: Results) -> Iterator[str]:
    said = results.config.get("protocol", {})
    metrics = list(dict.fromkeys(row.metric for row in results.rows))
    yield "Metrics: " + ", ".join(f"{name} ({table.METRICS.get(name, '')})" for name in metrics) + "."
    yield (
        "The floor is the same metric without features: class frequencies, a random ranking, or the mean of the "
        "training images. A suite's score is the mean over its tasks, each counted once."
    )
    yield (
        "V-information is the floor's cross-entropy minus the probe's, held out, in bits an image (Xu et al., ICLR "
        "2020)."
    )
    yield (
        f"The 95% intervals of scores are percentiles of {said.get('resamples', '?')} resamples of groups of scored "
        "images, widened for the number of groups"
        + (
            f" and, by sqrt(1 + 1 / {folds - 1}), for the choice of training images."
            if (folds := said.get("outer_folds", 1)) > 1
            else "; they cover the choice of these images, given the probes."
        )
    )
    scores_of = [one for one in results.comparisons if one.metric != "bits"]
    if scores_of:
        tasks, means = (sum((one.task is None) == mean for one in scores_of) for mean in (False, True))
        yield (
            "Representations were compared on the same images and resamples (Student's t with the bootstrap's standard "
            f"error, two-sided), with Holm's correction (1979) over {tasks} comparisons of tasks"
            + (f" and over {means} of suite means." if means else ".")
        )
    if joins := len(results.comparisons) - len(scores_of):
        yield (
            "What a representation adds to another is the cross-entropy of a probe of one minus that of a probe of "
            f"both (conditional probing; Hewitt et al., EMNLP 2021), with Holm's correction over {joins} comparisons."
        )
    yield from _beside_scores(results)
    yield from _claims(results)


def _beside_scores(results: Results) -> Iterator[str]:
    """What a score is held against."""
    protocol = results.config.get("protocol", {})
    if any(row.control is not None for row in results.rows):
        draws = protocol.get("control_draws")
        yield (
            "Control labels give each object category one random label, as frequent as the true ones (Hewitt and "
            "Liang, EMNLP 2019); the same probes were fitted on them"
            + (f" in {draws} random draws" if draws else "")
            + ", and selectivity is the score minus the mean control score."
        )
    if results.baselines:
        yield "The category alone predicts each label by its frequency in the image's category among training images."
    if any(row.compression is not None for row in results.rows):
        yield (
            "Compression is the length of the uniform code over that of the online code of the labels, sent in blocks "
            "with the probe of the blocks before (Voita and Titov, EMNLP 2020)."
        )
    if any(row.retention is not None for row in results.rows):
        undefined = table.not_defined(results.rows)
        yield (
            "Retention is (score - floor) / (pooled V's score - floor), with Fieller's interval"
            + (f"; of {', '.join(undefined)} it is {NOT_DEFINED}." if undefined else ".")
        )


def _claims(results: Results) -> Iterator[str]:
    if results.kept:
        made = results.kept[0]
        tests, means = (sum((one.task is None) == mean for one in results.kept) for mean in (False, True))
        yield (
            f"A representation is said to keep pooled V's score within a margin of {made.margin:g} of the metric by "
            "two one-sided tests (Schuirmann 1987), and to lose or gain more than that by a two-sided test of the "
            f"margin, at p < 0.05 after Holm's correction over {tests} tests of tasks"
            + (f" and {means} of suite means" if means else "")
            + "; where pooled V is not clearly further than the margin above its floor, there is nothing to keep."
        )
    if any(one.p is not None for one in results.suite_gaps):
        one = results.suite_gaps[0]
        yield (
            f"The retention of the mean of {one.first} tasks minus that of {one.second} tasks was tested on the same "
            "resamples, with linearised ratios (delta method; Student's t, two-sided, Holm's correction over "
            f"{len(results.suite_gaps)} representations)."
        )
    if results.by_class:
        yield (
            "Recall of single classes and average precision of single labels have Wilson's interval, of as many images "
            "as would vary by themselves as much as the resamples do."
        )
    if results.ceilings:
        yield (
            "As a ceiling, a hidden layer of rectified units was added to each linear probe, which stayed as it was, "
            "and trained by AdamW; the passes over the images and the weight decay, or no layer at all, were chosen by "
            "the task's metric on the grouped inner folds. Ceiling and linear probe were compared on the same images "
            f"(Student's t, two-sided, Holm's correction over {len(results.ceilings)} comparisons)."
        )
    if results.curves:
        yield "Learning curves train on random parts of the groups of every training fold, each part within the next."


def _limits(results: Results) -> Iterator[str]:
    yield (
        "A score says what a linear probe decodes after that many images: not what the representation contains, and "
        "not whether the model uses it (Pimentel et al., ACL 2020; Belinkov, Computational Linguistics 2022)."
    )
    seed = results.config.get("protocol", {}).get("seed", results.config.get("seed"))
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    yield f"Computed by htc-probe{'' if seed is None else f' with seed {seed}'}; {versions}."
