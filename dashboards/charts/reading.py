"""Charts of what is in the one token: words, likeness to other representations, directions of probes and answers."""

from pathlib import Path

import plotly.graph_objects as go

from htc_probe.analysis.sections.contents import Lens, Overlaps, Reading
from htc_probe.dashboards import figures
from htc_probe.dashboards.charts.source import Source, ends, some, source
from htc_probe.extract.errors import UserError
from htc_probe.probes.inputs.representations import shown

DIRECTIONS, READ_OUT = "directions", "readings on images"


def words(run: Path | str) -> go.Figure:
    """The words that the unembedding reads at each layer."""
    lens = _lens(source(run))
    if lens.words is not None:
        said = [line.split(" | ") for line in lens.words]
    else:
        said = [[f"token {token}" for token in line] for line in lens.tokens.tolist()]
    return figures.lens_words(said, lens.probability, lens.layers.tolist(), n=lens.images)


def agreement(run: Path | str) -> go.Figure:
    """How far a layer's words are from the last layer's, and how undecided they are."""
    lens = _lens(source(run))
    surprise, entropy, same = map(ends, (lens.surprise, lens.entropy, lens.same_word))
    return figures.lens_agreement(surprise, entropy, same, lens.layers.tolist(), n=lens.images)


def accuracy(run: Path | str) -> go.Figure:
    """How often the word of the true class is the likeliest among those of all classes, by layer."""
    of = source(run)
    lens = _lens(of)
    words = f"no task of {of.path.name} has classes that are words of the model's vocabulary"
    found, floor, tasks = some(lens.accuracy, words), some(lens.floor, words), some(lens.tasks, words)
    return figures.lens_accuracy(ends(found), floor, tasks, lens.layers.tolist(), n=lens.images)


def likeness(run: Path | str) -> go.Figure:
    """How alike representations find the same images (centered kernel alignment)."""
    of = source(run)
    section = _section(of)
    names = [shown(*one, of.shape.layers) for one in map(_likened, section.likeness_of)]
    return figures.likeness(ends(section.cka), names, n=section.images)


def dimensions(run: Path | str) -> go.Figure:
    """In how many ways the images of a representation differ."""
    of = source(run)
    section = _section(of)
    likened = [_likened(name) for name in section.likeness_of]
    names = [shown(*one, of.shape.layers) for one in likened]
    found = ends(section.dimension.two_nn), ends(section.dimension.participation)
    return figures.dimensions(*found, names, [name for name, _ in likened], n=section.images)


def _likened(name: str) -> tuple[str, int | None]:
    """A representation and its layer, such as `z_voco 3`."""
    name, _, layer = name.partition(" ")
    return name, int(layer) if layer else None


def probe_overlap(run: Path | str, *, what: str = DIRECTIONS) -> go.Figure:
    """How far a semantic task's probe and a detail task's share `directions`, or their `readings on images`."""
    section, found = _overlaps(source(run), what)
    values = found.overlap, found.overlap_chance, found.overlap_chance_upper
    return figures.probe_overlap(*values, section.angle_semantic or [], section.angle_detail or [], what=what)


def probe_cosines(run: Path | str, *, what: str = DIRECTIONS) -> go.Figure:
    """The same of all semantic against all detail tasks, direction by direction."""
    _, found = _overlaps(source(run), what)
    whole = found.overlap_all, found.overlap_all_chance
    band = found.cosines_chance_lower, found.cosines_chance_upper
    return figures.probe_cosines(found.cosines, *band, whole, what=what)


def answer_parts(run: Path | str, *, lens: bool = False) -> go.Figure:
    """What <voco> takes from each role of tokens, as it adds to the true answer by way of the text; lens: as the logit
    lens reads it at <voco> itself.
    """
    of = source(run)
    section = of.analysed(of.sections.contributions, "contributions")
    part = section.lens_by_role if lens else section.answers_by_role
    part_QG3 = ends(some(part, f"the data of {of.path.name} have no questions that the model answers"))
    title = "Does the token itself point at the answer?" if lens else "What reaches the answer through the text?"
    return figures.answer_parts(part_QG3, section.questions, section.roles, title=title, n=len(section.images))


def _section(of: Source) -> Reading:
    return of.analysed(of.sections.reading, "reading")


def _lens(of: Source) -> Lens:
    last = of.shape.layers
    return some(
        _section(of).lens, f"{of.path.name} was not read as words, which needs the state of the last layer, {last}"
    )


def _overlaps(of: Source, what: str) -> tuple[Reading, Overlaps]:
    section = _section(of)
    measured = {DIRECTIONS: section.angle, READ_OUT: section.read_out}
    if what not in measured:
        raise UserError(f"what={what!r} is not compared; expected one of {', '.join(map(repr, measured))}")
    return section, some(measured[what], f"{of.path.name} has no probes of a semantic and of a detail task to compare")
