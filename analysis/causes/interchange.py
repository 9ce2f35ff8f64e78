"""Whose image do the answers and the probes follow, when <voco> gets the anchors of one and the patches of another?

Knows an HTCVLM and a run with labels. Does not know result files or screens. Which images are mixed is in `mixing`,
how the table is counted in `following`.

Attention is not causation; this is: under the star mask hybrid tokens do not mix, so the halves of two images are put
together exactly. (Under other topologies the halves are swapped before the first layer, and later tokens see earlier
ones.) Intervals resample the couples of images that are mixed with each other.

Legend: n images, m mixed images, C labels of a multi-label task, K rows of a table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import numpy as np
import torch

from htc_probe.analysis.causes import effects, following, mixing, scene_questions
from htc_probe.analysis.causes.following import Measure, Values
from htc_probe.analysis.causes.mixing import BATCH, Design, Mix
from htc_probe.analysis.sections.causes import Interchange, NumberRows, Readouts
from htc_probe.extract import again
from htc_probe.extract.data import scene_words
from htc_probe.extract.data.source import Source
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import NUMERIC, UNKNOWN, Run, Task, is_known
from htc_probe.extract.vlm.model import HTCVLM
from htc_probe.extract.vlm.star import Compressed, Direct
from htc_probe.probes.files.weights import Key, Probe

Reader = Callable[[Compressed], Values]


def analyse(
    model: HTCVLM,
    run: Run,
    source: Source | None = None,
    probes: Mapping[Key, Probe] | None = None,
    *,
    pairs: int = 300,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Interchange:
    """Whom readouts follow, for `pairs` mixed images of each kind (of single factors half as many).

    `model` is that of the run, `source` its data; opened again where it is None. `probes`: from `probes.weights.load`;
    those of z_voco at the last layer are read. They were fitted on the run's own, unmixed images. The built-in scenes'
    questions are asked where the run is of these and the model has their vocabulary: the readout is the likeliest of a
    question's answers (`present`: the greedy list). `progress` gets mixed images done and in all.

    Raises UserError: a model without anchors, a run without labels, data that is no longer the run's, nothing to read.
    """
    _check(model, run, pairs)
    readable, why_no_probes = _readable(run, probes)
    asks, why_no_answers = _asks(model, run)
    if not readable and not asks:
        raise UserError(f"nothing can be read from mixed images of {run.path.name}: {why_no_probes}; {why_no_answers}")

    source = again.open_images(run, model.config.image_size) if source is None else source
    chosen = mixing.one_a_group(run.groups(), pairs, seed)
    if len(chosen) < 4:
        raise UserError(f"{run.path.name} has images of {len(chosen)} groups, too few to mix; extract 4 or more")
    whole = mixing.all_factors(run, source, chosen, asks)
    most = max(2, pairs // 4)  # couples for each single factor
    if again.is_scenes(run):
        single = list(mixing.changed_scenes(model, run, chosen, whole.partner, most, asks))
    else:
        single = list(mixing.matched(run, source, most, seed))
    designs = [whole, *(design for design in single if _true_values(run.tasks, design, readable))]
    alike = _alike(run.tasks, whole)
    each: Readouts | None = None
    shares, numbers = following.Table(), following.Table()
    total = sum(len(design.partner) + int((design.partner >= 0).sum()) for design in designs)
    total += 4 * len(whole.partner) + int((alike >= 0).sum())
    direct, rng = model.direct_products(), np.random.default_rng(seed)
    done = 0
    for design in designs:
        tokens = mixing.encode(model, design.images)
        true = _true_values(run.tasks, design, readable)
        read = _reader(model, run.tasks, design, readable, true)
        unmixed: Values = {}
        more = mixing.replacements(tokens, alike, rng) if design is whole else ()
        for mix in chain(mixing.swaps(tokens, design.partner), more):
            said = read_mix(model, mix, read, direct)
            if design is whole and mix.name == "swapped":
                each = _readouts(run.tasks, true, unmixed, said, whole.partner)
            unmixed = unmixed or said
            shares.add(design.factor, mix, following.shares(mix, said, true, unmixed, seed, suites=design is whole))
            numbers.add(design.factor, mix, following.weights(mix, said, true, seed))
            done += len(mix.couple)
            if progress is not None:
                progress(done, total)
    assert each is not None
    return Interchange(
        **shares.columns(),
        only_right=shares.column("only_right"),
        floor=shares.column("floor"),
        share=shares.column("values"),
        number=NumberRows(**numbers.columns(), weight=numbers.column("values")),
        answers=why_no_answers or "yes",
        probes=why_no_probes or "yes",
        images=run.ids(chosen),
        partner=whole.partner.astype(np.int32),
        read=each,
    )


def _check(model: HTCVLM, run: Run, pairs: int) -> None:
    if pairs < 4:
        raise UserError(f"{pairs} pairs are too few for an interval; use 4 or more")
    again.check_model(run, model.config)
    if model.config.num_anchors == 0:
        raise UserError(f"the model of {run.path.name} has no anchors: there is nothing to interchange")
    if not run.tasks:
        raise UserError(f"{run.path.name} has no labels, so nothing can be followed; extract data that has some")


def _alike(tasks: Sequence[Task], design: Design) -> np.ndarray:
    """(n,) partners of one class (of `category`, or the first task with classes, a semantic one if there is), or -1."""
    having = [task for task in tasks if task.kind == "classes"]
    if not having:
        return np.full(len(design.partner), -1)
    task = min(having, key=lambda task: (task.name != "category", task.suite != "semantic"))
    return mixing.couples_alike(design.labels[task.name])


def _readouts(tasks: Sequence[Task], true: Values, unmixed: Values, swapped: Values, partner: np.ndarray) -> Readouts:
    """`swapped` is of those with a partner, in their order."""
    classes = {task.name: task.classes for task in tasks}
    columns: list[tuple[Measure, str, str]] = []
    blocks: list[tuple[np.ndarray, ...]] = []
    for m, labels in true.items():
        asked = m.readout == "answer" and m.kind == "classes"
        names = scene_questions.ANSWERS[m.task] if asked else classes[m.task]
        if m.kind == "multilabel":
            columns += [(m, name, "") for name in names]
        else:
            columns.append((m, "", json.dumps(names) if m.kind == "classes" else ""))
        told = np.where(is_known(m.kind, labels), labels, np.nan)
        mixed = np.full(told.shape, np.nan)
        mixed[partner >= 0] = swapped[m]
        parts = told, unmixed[m], mixed
        blocks.append(tuple(values.reshape(len(partner), -1).astype(np.float32) for values in parts))
    of_true, of_unmixed, of_swapped = (np.concatenate(parts, 1) for parts in zip(*blocks, strict=True))
    return Readouts(
        **{name: [getattr(m, name) for m, _, _ in columns] for name in ("task", "suite", "kind", "readout")},
        label=[label for _, label, _ in columns],
        classes=[names for _, _, names in columns],
        true=of_true,
        unmixed=of_unmixed,
        swapped=of_swapped,
    )


# ---- reading


@torch.inference_mode()
def read_mix(model: HTCVLM, mix: Mix, read: Reader, direct: Sequence[Direct] | None = None) -> Values:
    """What is read from <voco> of the mixed images, (m, ...) of each measure. `direct`: see `HTCVLM.compress`."""
    found: list[Values] = []
    for start in range(0, len(mix.couple), BATCH):
        some = slice(start, start + BATCH)
        anchors, patches = (half.tokens[torch.from_numpy(half.rows[some])] for half in (mix.anchors, mix.patches))
        found.append(read(model.compress(anchors.to(model.device), patches.to(model.device), direct=direct)))
    return {measure: np.concatenate([part[measure] for part in found]) for measure in found[0]}


def _readable(run: Run, probes: Mapping[Key, Probe] | None) -> tuple[dict[str, Probe], str]:
    """The probes of the run's tasks at z_voco, and why there are none. Raises UserError for those of other classes."""
    if probes is None:
        suites = dict.fromkeys(task.suite for task in run.tasks)
        return {}, f"no probes were given; make them with: htc-probe {' '.join(suites)}"
    readers = effects.probes_of_voco(probes, run.shape.layers, run.shape.width)
    tasks = [task for task in run.tasks if task.name in readers and readers[task.name].kind == task.kind]
    for task in tasks:
        if not set(readers[task.name].classes) <= set(task.classes):
            raise UserError(f"the probe of {task.name} has other classes than {run.path.name}; run htc-probe on it")
    found = {task.name: readers[task.name] for task in tasks}
    return found, "" if found else f"no probe is of z_voco at the last layer, {run.shape.layers}"


def _asks(model: HTCVLM, run: Run) -> tuple[bool, str]:
    """Whether the scenes' questions can be asked, and why not."""
    if not again.is_scenes(run):
        return False, "only the built-in scenes come with questions"
    if not scene_words.speaks(model.config.text.vocab_size):
        return False, "the model was not taught the words of the built-in scenes"
    return True, ""


def _true_values(tasks: Sequence[Task], design: Design, probes: Mapping[str, Probe]) -> Values:
    """What is to be read in this design, and what the images' labels say of it."""

    def wanted(name: str) -> bool:
        return design.read is None or name in design.read

    true: Values = {}
    for task in tasks:
        if task.name in probes and wanted(task.name):
            labels, classes = design.labels[task.name], probes[task.name].classes
            if task.kind == "classes":  # a class that the probe does not know cannot be followed
                told = [number for number, name in enumerate(task.classes) if name in classes]
                labels = np.where(np.isin(labels, told), labels, -1)
            elif task.kind == "multilabel":
                labels = np.where([name in classes for name in task.classes], labels, UNKNOWN)
            true[Measure("probe", task.name, task.suite, task.kind, task.period)] = labels
    if design.answers is not None:
        for question, answers in design.answers.items():
            if wanted(question):
                true[Measure("answer", question, scene_questions.suite_of(question), "classes")] = answers
        if wanted("present"):
            true[Measure("answer", "present", "semantic", "multilabel")] = design.labels["present"]
        for name, question in scene_questions.NUMBERS.items():
            if wanted(name):
                true[Measure("answer", name, scene_questions.suite_of(question), "number")] = design.labels[name]
    return true


def _reader(model: HTCVLM, tasks: Sequence[Task], design: Design, probes: Mapping[str, Probe], true: Values) -> Reader:
    """A function that reads all measures of `true` from compressed images."""
    questions = [m.task for m in true if m.readout == "answer" and m.kind != "number"]
    sheet = scene_questions.Sheet(model, questions) if questions else None
    classes = {task.name: task.classes for task in tasks}
    means: dict[Measure, np.ndarray] = {}
    for m in true:
        if m.readout == "answer" and m.kind == "number":
            assert design.answers is not None
            question = scene_questions.NUMBERS[m.task]
            count = len(scene_questions.ANSWERS[question])
            means[m] = scene_questions.values_of_answers(design.answers[question], true[m], count)

    def read(compressed: Compressed) -> Values:
        z = compressed.hidden[:, -1].float().cpu().numpy()
        told = {} if sheet is None else sheet(compressed)
        said: Values = {}
        for m in true:
            if m.readout == "probe":
                said[m] = _predicted(probes[m.task], classes[m.task], z)
            elif m.kind == "number":
                said[m] = scene_questions.as_numbers(told[scene_questions.NUMBERS[m.task]], means[m])
            else:
                said[m] = told[m.task].argmax(1) if m.kind == "classes" else told[m.task]
        return said

    return read


def _predicted(probe: Probe, classes: tuple[str, ...], z: np.ndarray) -> np.ndarray:
    """The probe's predictions in the run's classes."""
    predicted = probe.predict(z)
    if probe.kind in NUMERIC:
        return predicted
    if probe.kind == "classes":
        place = {name: number for number, name in enumerate(classes)}
        return np.array([place[name] for name in predicted.tolist()])
    every = np.zeros((len(z), len(classes)), dtype=bool)
    every[:, [classes.index(name) for name in probe.classes]] = predicted
    return every
