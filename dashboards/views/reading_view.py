"""What is in the one token: words, likeness to other representations, dimensions, directions of probes and answers.

Lays out; draws by charts. Parts that this run cannot have say why.
"""

import streamlit as st

from htc_probe.analysis.sections import Contributions
from htc_probe.analysis.sections.contents import Lens, Reading
from htc_probe.dashboards import charts, data
from htc_probe.dashboards.charts.reading import DIRECTIONS, READ_OUT
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts.chart import draw, made
from htc_probe.dashboards.views.view import View, not_analysed


def show(view: View) -> None:
    """Draws the page."""
    found = data.sections(view.path, view.header)
    section = found.reading
    if section is None:
        not_analysed(view, "Words, dimensions and directions of z_voco are not computed yet.", "reading")
    else:
        _words(view, section.lens)
        _alike(view)
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
    left, right = ui.side_by_side(2, "reading_words", least=420)
    with left:
        draw(made(charts.reading.words, view.path), "lens_words")
        ui.how_to_read(
            "The logit lens: each layer's state of &lt;voco&gt;, read as if it were the last. &lt;voco&gt; is not "
            "trained to say words, so this shows which words' directions it uses, not what the model would answer."
        )
        if lens.words is None:
            st.caption("This model has no tokenizer, so words are shown as numbers.")
    with right:
        draw(made(charts.reading.agreement, view.path), "lens_agreement")
        ui.how_to_read(
            "Left: how far a layer's words are from the last layer's, in bits, and how undecided they are. Right: how "
            "often both have the same likeliest word. A late drop means that the words appear only at the end."
        )
    _accuracy(view, lens)


def _accuracy(view: View, lens: Lens) -> None:
    if lens.accuracy is None:
        st.info(
            "This figure needs a task whose classes are single words of the model's vocabulary, and a tokenizer. This "
            "run has no such task, or its model has no tokenizer."
        )
        return
    draw(made(charts.reading.accuracy, view.path), "lens_accuracy")
    ui.how_to_read(
        "The likeliest of the class words is taken as the answer; nothing is trained. Above its dotted line, the class "
        "lies in the token along the direction of its word. A probe may find more: the page *Probes* shows how much "
        "is there at all."
    )


# ---- likeness and dimensions


def _alike(view: View) -> None:
    st.header("How similar are the representations, and how many dimensions do they use?")
    left, right = ui.side_by_side(2, "reading_alike", least=380)
    with left:
        draw(made(charts.reading.likeness, view.path), "likeness")
        ui.how_to_read(
            "Whether the same images are similar in two representations (centered kernel alignment). 1: equal up to a "
            "rotation and a scale; 0: independent. Pooled V is the mean of the patches."
        )
    with right:
        draw(made(charts.reading.dimensions, view.path), "dimensions")
        ui.how_to_read(
            "TwoNN: in how many ways an image differs from its nearest ones. Participation ratio: over how many "
            "directions the variance is spread. If the second is much larger, the images lie on a curved surface."
        )


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
    _measured_angles(view)


@ui.fragment
def _measured_angles(view: View) -> None:
    what = ui.pick("Compared", [DIRECTIONS, READ_OUT], "reading_angles")
    left, right = ui.side_by_side(2, "reading_angles_row", least=380)
    with left:
        draw(made(charts.reading.probe_overlap, view.path, what=what), "probe_overlap")
        ui.how_to_read(
            "Orange: the two tasks share more than random directions; purple: less, so they are kept apart. "
            + ("Compared: the probes' weights." if what == DIRECTIONS else "Compared: the probes' readings on images.")
        )
    with right:
        draw(made(charts.reading.probe_cosines, view.path, what=what), "probe_cosines")
        ui.how_to_read(
            "All semantic against all detail directions. Inside the band they are like random directions. Orthogonal "
            "directions can still give the same readings, where features go together; *readings on images* shows that."
        )


# ---- answers


def _answers(view: View, section: Contributions | None) -> None:
    st.header("What do the answers read?")
    if section is None:
        not_analysed(view, "What each token adds to the answers is not computed yet.", "contributions")
        return
    if section.answers_by_role is None:
        data_set = ui.plain(str(view.header.info.dataset))
        st.info(f"The data {data_set} have no questions that the model answers, so there are no answers to follow.")
        return
    left, right = ui.side_by_side(2, "reading_answers", least=420)
    with left:
        draw(made(charts.reading.answer_parts, view.path), "answer_parts")
        ui.how_to_read(
            "What &lt;voco&gt; takes from anchors, patches and itself, followed to the question's text that attends to "
            "it. Only the direct path; the effect through MLPs and later text is left out."
        )
    with right:
        draw(made(charts.reading.answer_parts, view.path, lens=True), "answer_parts_lens")
        ui.how_to_read(
            "The same parts, read by the logit lens at &lt;voco&gt; itself: whether they already point at the word of "
            "the answer, before any text."
        )
