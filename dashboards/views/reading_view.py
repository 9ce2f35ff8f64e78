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

_DIRECTIONS, _READ_OUT = "directions", "readings on images"


def show(view: View) -> None:
    """Draws the page."""
    found = data.sections(view.path, view.header)
    section = found.reading
    if section is None:
        ui.fill("Words, dimensions and directions of z_voco are not computed yet.", "htc-analyze reading", view.path)
    else:
        _words(view, section.lens)
        _alike(view, section)
        _angles(view, section)
    _answers(view, found.contributions)


# ---- words


def _words(view: View, lens: Lens | None) -> None:
    st.header("Which words does it say?")
    if lens is None:
        last = view.header.shape.layers
        st.info(
            f"To read z_voco as words, the analysis needs the model and layer {last}, the last. Extract the run with "
            "all layers (htc-extract --layers all), and analyse it where its model is."
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
            "The logit lens: each layer's state of &lt;voco&gt;, read as if it were the last. &lt;voco&gt; is not "
            "trained to say words, so this shows which words' directions it uses, not what the model would answer."
        )
        if lens.words is None:
            st.caption("This model has no tokenizer, so words are shown as numbers.")
    with right:
        surprise, entropy, same = map(ends, (lens.surprise, lens.entropy, lens.same_word))
        draw(made(figures.lens_agreement, surprise, entropy, same, layers, n=n), "lens_agreement")
        ui.how_to_read(
            "Left: how far a layer's words are from the last layer's, in bits, and how undecided they are. Right: how "
            "often both have the same likeliest word. A late drop means that the words appear only at the end."
        )
    _accuracy(lens)


def _accuracy(lens: Lens) -> None:
    if lens.accuracy is None or lens.tasks is None or lens.floor is None:
        st.info(
            "This figure needs a task whose classes are single words of the model's vocabulary, and a tokenizer. This "
            "run has no such task, or its model has no tokenizer."
        )
        return
    figure = made(
        figures.lens_accuracy, ends(lens.accuracy), lens.floor, lens.tasks, lens.layers.tolist(), n=lens.images
    )
    draw(figure, "lens_accuracy")
    ui.how_to_read(
        "The likeliest of the class words is taken as the answer; nothing is trained. Above its dotted line, the class "
        "lies in the token along the direction of its word. A probe may find more: the page *Probes* shows how much "
        "is there at all."
    )


# ---- likeness and dimensions


def _alike(view: View, section: Reading) -> None:
    st.header("How similar are the representations, and how many dimensions do they use?")
    of, n = [_likened(name) for name in section.likeness_of], section.images
    names = [shown(*one, view.header.shape.layers) for one in of]
    left, right = ui.side_by_side(2, "reading_alike", least=380)
    with left:
        draw(made(figures.likeness, ends(section.cka), names, n=n), "likeness")
        ui.how_to_read(
            "Whether the same images are similar in two representations (centered kernel alignment). 1: equal up to a "
            "rotation and a scale; 0: independent. Pooled V is the mean of the patches."
        )
    with right:
        two_nn, participation = ends(section.dimension.two_nn), ends(section.dimension.participation)
        draw(made(figures.dimensions, two_nn, participation, names, [name for name, _ in of], n=n), "dimensions")
        ui.how_to_read(
            "TwoNN: in how many ways an image differs from its nearest ones. Participation ratio: over how many "
            "directions the variance is spread. If the second is much larger, the images lie on a curved surface."
        )


def _likened(name: str) -> tuple[str, int | None]:
    """A representation and its layer, such as `z_voco 3`."""
    name, _, layer = name.partition(" ")
    return name, int(layer) if layer else None


# ---- directions


def _angles(view: View, section: Reading) -> None:
    st.header("Do semantic and detail probes share directions?")
    if section.angle_semantic is None:
        what = "Angles between probes need the probes' weights."
        ui.fill(what, "htc-probe semantic detail", view.path)
        st.caption("Then run `htc-analyze reading` again.")
        return
    if section.angle is None or section.read_out is None:
        st.info("Angles need probes of z_voco's last layer for a semantic and a detail task; one suite has none here.")
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
            "Orange: the two tasks share more than random directions; purple: less, so they are kept apart. "
            + ("Compared: the probes' weights." if what == _DIRECTIONS else "Compared: the probes' readings on images.")
        )
    with right:
        band = found.cosines_chance_lower, found.cosines_chance_upper
        whole = found.overlap_all, found.overlap_all_chance
        draw(made(figures.probe_cosines, found.cosines, *band, whole, what=what), "probe_cosines")
        ui.how_to_read(
            "All semantic against all detail directions. Inside the band they are like random directions. Orthogonal "
            "directions can still give the same readings, where features go together; *readings on images* shows that."
        )


# ---- answers


def _answers(view: View, section: Contributions | None) -> None:
    st.header("What do the answers read?")
    if section is None:
        ui.fill("What each token adds to the answers is not computed yet.", "htc-analyze contributions", view.path)
        return
    if section.answers_by_role is None:
        data_set = ui.plain(str(view.header.info.dataset))
        st.info(f"The data {data_set} have no questions that the model answers, so there are no answers to follow.")
        return
    roles, n = section.roles, len(section.images)
    given: dict[str, Any] = {"questions": section.questions, "roles": roles, "n": n}
    left, right = ui.side_by_side(2, "reading_answers", least=420)
    with left:
        title = "What reaches the answer through the text?"
        draw(made(figures.answer_parts, ends(section.answers_by_role), title=title, **given), "answer_parts")
        ui.how_to_read(
            "What &lt;voco&gt; takes from anchors, patches and itself, followed to the question's text that attends to "
            "it. Only the direct path; the effect through MLPs and later text is left out."
        )
    with right:
        title = "Does the token itself point at the answer?"
        draw(made(figures.answer_parts, ends(section.lens_by_role), title=title, **given), "answer_parts_lens")
        ui.how_to_read(
            "The same parts, read by the logit lens at &lt;voco&gt; itself: whether they already point at the word of "
            "the answer, before any text."
        )
