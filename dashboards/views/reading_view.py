"""What is in the one token: words, likeness to other representations, dimensions, directions of probes and answers.

Lays out; reads through data, draws by figures. Parts that this run cannot have say why.
"""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from htc_probe.analysis.sections import Contributions
from htc_probe.analysis.sections.contents import Lens, Overlaps, Reading
from htc_probe.dashboards import data, figures
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts.chart import draw, made
from htc_probe.dashboards.parts.effects import ends
from htc_probe.dashboards.views.view import View
from htc_probe.probes.inputs.representations import shown

_DIRECTIONS, _READ_OUT = "directions", "what they read on images"


def show(view: View) -> None:
    """Draws the page."""
    found = data.sections(view.path, view.header)
    section = found.reading
    if section is None:
        ui.fill(
            "What z_voco holds of words, dimensions and directions was not measured.", "htc-analyze reading", view.path
        )
    else:
        _words(view, section.lens)
        _alike(view, section)
        _angles(view, section)
    _answers(view, found.contributions)


# ---- words


def _words(view: View, lens: Lens | None) -> None:
    st.header("Words")
    if lens is None:
        last = view.header.shape.layers
        st.info(
            f"z_voco was not read as words: that needs the model and the state of the last layer, {last}. Extract the "
            "run with all layers (htc-extract --layers all), and analyse it where its model is."
        )
        return
    layers, n = lens.layers.tolist(), lens.images
    left, right = ui.side_by_side(2, "reading_words", least=420)
    with left:
        if lens.words is not None:
            words = [line.split(" | ") for line in lens.words]
        else:
            words = [[f"token {token}" for token in line] for line in lens.tokens.tolist()]
        draw(made(figures.lens_words, words, lens.probability, layers, n=n), "lens_words")
        ui.how_to_read(
            "The logit lens: each layer's state of &lt;voco&gt;, read as if it were the last. &lt;voco&gt; is never "
            "trained to say a word itself, so this shows which words' directions it uses, not what the model would "
            "answer."
        )
        if lens.words is None:
            st.caption("The model has no tokenizer beside it, so words are shown by their numbers.")
    with right:
        surprise, entropy, same = map(ends, (lens.surprise, lens.entropy, lens.same_word))
        draw(made(figures.lens_agreement, surprise, entropy, same, layers, n=n), "lens_agreement")
        ui.how_to_read(
            "Left: how many bits a layer's words lack to be the last layer's, and how undecided they are. Right: how "
            "often both find the same word likeliest. A late drop: the words are only put in place at the end."
        )
    _accuracy(lens)


def _accuracy(lens: Lens) -> None:
    if lens.accuracy is None or lens.tasks is None or lens.floor is None:
        st.info(
            "Whether a layer says the true class is known where each class of a task is one word of the model's "
            "vocabulary; that is so of no task of this run, or its model has no tokenizer."
        )
        return
    figure = made(
        figures.lens_accuracy, ends(lens.accuracy), lens.floor, lens.tasks, lens.layers.tolist(), n=lens.images
    )
    draw(figure, "lens_accuracy")
    ui.how_to_read(
        "Of the words of a task's classes, the likeliest is taken as the answer; nothing is trained. Above its dotted "
        "line, the class is in the token along its own word's direction. A probe may still find it where this does "
        "not: the page Probes says how much is there at all."
    )


# ---- likeness and dimensions


def _alike(view: View, section: Reading) -> None:
    st.header("Likeness and dimensions")
    of, n = [_likened(name) for name in section.likeness_of], section.images
    names = [shown(*one, view.header.shape.layers) for one in of]
    left, right = ui.side_by_side(2, "reading_alike", least=380)
    with left:
        draw(made(figures.likeness, ends(section.cka), names, n=n), "likeness")
        ui.how_to_read(
            "Whether two representations find the same images alike (centered kernel alignment). 1: the same up to a "
            "rotation; 0: as independent ones. z_voco is given by layer; pooled V is the mean of the patches."
        )
    with right:
        two_nn, participation = ends(section.dimension.two_nn), ends(section.dimension.participation)
        draw(made(figures.dimensions, two_nn, participation, names, [name for name, _ in of], n=n), "dimensions")
        ui.how_to_read(
            "TwoNN: how many ways images differ from their nearest ones. Participation ratio: over how many flat "
            "directions the variance is spread. Many more of the second means that images lie on a curved surface."
        )


def _likened(name: str) -> tuple[str, int | None]:
    """A representation and its layer, such as `z_voco 3`."""
    name, _, layer = name.partition(" ")
    return name, int(layer) if layer else None


# ---- directions


def _angles(view: View, section: Reading) -> None:
    st.header("Directions of semantic and detail probes")
    if section.angle_semantic is None:
        what = "Angles between probes need their weights beside the run."
        ui.fill(what, "htc-probe semantic detail", view.path)
        st.caption("Then run htc-analyze reading again.")
        return
    if section.angle is None or section.read_out is None:
        st.info(
            "Angles need probes of z_voco's last layer on a semantic and on a detail task; one suite has none here."
        )
        return
    measured = {_DIRECTIONS: section.angle, _READ_OUT: section.read_out}
    _measured_angles(measured, (section.angle_semantic, section.angle_detail or []))


@ui.fragment
def _measured_angles(measured: Mapping[str, Overlaps], tasks: tuple[list[str], list[str]]) -> None:
    """`tasks`: semantic and detail ones."""
    what = ui.pick("Compared", list(measured), "reading_angles")
    found = measured[what]
    left, right = ui.side_by_side(2, "reading_angles_row", least=380)
    with left:
        values = found.overlap, found.overlap_chance, found.overlap_chance_upper
        draw(made(figures.probe_overlap, *values, *tasks, what=what), "probe_overlap")
        ui.how_to_read(
            "Orange: the two tasks share more than random directions would; purple: less, they are kept apart. "
            + ("Directions of the probes' weights." if what == _DIRECTIONS else "Correlations of what they read.")
        )
    with right:
        band = found.cosines_chance_lower, found.cosines_chance_upper
        whole = found.overlap_all, found.overlap_all_chance
        draw(made(figures.probe_cosines, found.cosines, *band, whole, what=what), "probe_cosines")
        ui.how_to_read(
            "All semantic against all detail directions. Within the band: as random subspaces of these sizes. "
            "Directions can be orthogonal and still read the same where features go together, hence the second "
            "comparison."
        )


# ---- answers


def _answers(view: View, section: Contributions | None) -> None:
    st.header("What answers read")
    if section is None:
        ui.fill("What each token adds to the answers was not measured.", "htc-analyze contributions", view.path)
        return
    if section.answers_by_role is None:
        data_set = ui.plain(str(view.header.info.dataset))
        st.info(f"The data {data_set} ask nothing that the model answers, so no answer's direction is known.")
        return
    roles, n = section.roles, len(section.images)
    given: dict[str, Any] = {"questions": section.questions, "roles": roles, "n": n}
    left, right = ui.side_by_side(2, "reading_answers", least=420)
    with left:
        title = "Added to the answer by way of the text"
        draw(made(figures.answer_parts, ends(section.answers_by_role), title=title, **given), "answer_parts")
        ui.how_to_read(
            "What &lt;voco&gt; takes from anchors, patches and itself, followed to where the question's text attends "
            "to it. Only the direct path: what MLPs and later text make of it is left out."
        )
    with right:
        title = "Added to the answer at its own place"
        draw(made(figures.answer_parts, ends(section.lens_by_role), title=title, **given), "answer_parts_lens")
        ui.how_to_read(
            "The same parts read by the logit lens at &lt;voco&gt; itself, where no answer is given: whether what is "
            "taken already points at the answer's word."
        )
