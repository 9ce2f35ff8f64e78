"""What is in the one token: words, likeness to other representations, dimensions, directions of probes and answers.

Lays out; reads through data, draws by figures. Parts that this run cannot have say why.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import streamlit as st

from htc_probe.dashboards import data, figures
from htc_probe.dashboards.parts.chart import draw, made
from htc_probe.dashboards.parts.controls import fill, fragment, how_to_read, pick, plain, side_by_side
from htc_probe.dashboards.views.view import View

_DIRECTIONS, _READ_OUT = "directions", "what they read on images"
_MEASURED = {_DIRECTIONS: "angle", _READ_OUT: "read_out"}


def show(view: View) -> None:
    """Draws the page."""
    found = data.sections(view.path, view.header)
    section = found.reading
    if section is None:
        fill(
            "What z_voco holds of words, dimensions and directions was not measured.", "htc-analyze reading", view.path
        )
    else:
        _words(view, section)
        _alike(section)
        _angles(view, section)
    _answers(view, found.contributions)


# ---- words


def _words(view: View, section: Mapping[str, Any]) -> None:
    st.subheader("Words")
    if "lens_layers" not in section:
        last = view.header.shape.layers
        st.info(
            f"z_voco was not read as words: that needs the model and the state of the last layer, {last}. Extract the "
            "run with all layers (htc-extract --layers all), and analyse it where its model is."
        )
        return
    layers, n = section["lens_layers"].tolist(), int(section["lens_images"])
    left, right = side_by_side(2, "reading_words", least=420)
    with left:
        if "lens_words" in section:
            words = [line.split(" | ") for line in section["lens_words"]]
        else:
            words = [[f"token {token}" for token in line] for line in section["lens_tokens"].tolist()]
        draw(made(figures.lens_words, words, section["lens_probability"], layers, n=n), "lens_words")
        how_to_read(
            "The logit lens: each layer's state of &lt;voco&gt;, read as if it were the last. &lt;voco&gt; is never "
            "trained to say a word itself, so this shows which words' directions it uses, not what the model would "
            "answer."
        )
        if "lens_words" not in section:
            st.caption("The model has no tokenizer beside it, so words are shown by their numbers.")
    with right:
        surprise, entropy, same = (_ends(section, f"lens_{name}") for name in ("surprise", "entropy", "same_word"))
        draw(made(figures.lens_agreement, surprise, entropy, same, layers, n=n), "lens_agreement")
        how_to_read(
            "Left: how many bits a layer's words lack to be the last layer's, and how undecided they are. Right: how "
            "often both find the same word likeliest. A late drop: the words are only put in place at the end."
        )
    _accuracy(section, layers, n)


def _accuracy(section: Mapping[str, Any], layers: list[int], n: int) -> None:
    if "lens_accuracy" not in section:
        st.info(
            "Whether a layer says the true class is known where each class of a task is one word of the model's "
            "vocabulary; that is so of no task of this run, or its model has no tokenizer."
        )
        return
    tasks, floor_T = section["lens_tasks"], section["lens_floor"]
    draw(made(figures.lens_accuracy, _ends(section, "lens_accuracy"), floor_T, tasks, layers, n=n), "lens_accuracy")
    how_to_read(
        "Of the words of a task's classes, the likeliest is taken as the answer; nothing is trained. Above its dotted "
        "line, the class is in the token along its own word's direction. A probe may still find it where this does "
        "not: the page Probes says how much is there at all."
    )


# ---- likeness and dimensions


def _alike(section: Mapping[str, Any]) -> None:
    st.subheader("Likeness and dimensions")
    names, n = section["likeness_of"], int(section["images"])
    left, right = side_by_side(2, "reading_alike", least=380)
    with left:
        draw(made(figures.likeness, _ends(section, "cka"), names, n=n), "likeness")
        how_to_read(
            "Whether two representations find the same images alike (centered kernel alignment). 1: the same up to a "
            "rotation; 0: as independent ones. z_voco is given by layer; v_pooled is the mean of the patches."
        )
    with right:
        two_nn, participation = _ends(section, "dimension_two_nn"), _ends(section, "dimension_participation")
        draw(made(figures.dimensions, two_nn, participation, names, n=n), "dimensions")
        how_to_read(
            "TwoNN: how many ways images differ from their nearest ones. Participation ratio: over how many flat "
            "directions the variance is spread. Many more of the second means that images lie on a curved surface."
        )


# ---- directions


def _angles(view: View, section: Mapping[str, Any]) -> None:
    st.subheader("Directions of semantic and detail probes")
    if "angle_semantic" not in section:
        what = "Angles between probes need their weights beside the run."
        fill(what, "htc-probe semantic detail", view.path)
        st.caption("Then run htc-analyze reading again.")
        return
    if "angle_overlap" not in section:
        st.info(
            "Angles need probes of z_voco's last layer on a semantic and on a detail task; one suite has none here."
        )
        return
    _measured_angles(section)


@fragment
def _measured_angles(section: Mapping[str, Any]) -> None:
    what = pick("Compared", list(_MEASURED), "reading_angles")
    key = _MEASURED[what]
    overlap, chance, upper = (section[f"{key}_overlap{part}"] for part in ("", "_chance", "_chance_upper"))
    left, right = side_by_side(2, "reading_angles_row", least=380)
    tasks = section["angle_semantic"], section["angle_detail"]
    with left:
        draw(made(figures.probe_overlap, overlap, chance, upper, *tasks, what=what), "probe_overlap")
        how_to_read(
            "Orange: the two tasks share more than random directions would; purple: less, they are kept apart. "
            + ("Directions of the probes' weights." if what == _DIRECTIONS else "Correlations of what they read.")
        )
    with right:
        cosines, low, high = (section[f"{key}_cosines{end}"] for end in ("", "_chance_lower", "_chance_upper"))
        whole = section[f"{key}_overlap_all"], section[f"{key}_overlap_all_chance"]
        draw(made(figures.probe_cosines, cosines, low, high, whole, what=what), "probe_cosines")
        how_to_read(
            "All semantic against all detail directions. Within the band: as random subspaces of these sizes. "
            "Directions can be orthogonal and still read the same where features go together, hence the second "
            "comparison."
        )


# ---- answers


def _answers(view: View, section: Mapping[str, Any] | None) -> None:
    st.subheader("What answers read")
    if section is None:
        fill("What each token adds to the answers was not measured.", "htc-analyze contributions", view.path)
        return
    if "answers_by_role" not in section:
        data_set = plain(str(view.header.info.dataset))
        st.info(f"The data {data_set} ask nothing that the model answers, so no answer's direction is known.")
        return
    roles, n = section["roles"], len(section["images"])
    given: dict[str, Any] = {"questions": section["questions"], "roles": roles, "n": n}
    left, right = side_by_side(2, "reading_answers", least=420)
    with left:
        title = "Added to the answer by way of the text"
        draw(made(figures.answer_parts, _ends(section, "answers_by_role"), title=title, **given), "answer_parts")
        how_to_read(
            "What &lt;voco&gt; takes from anchors, patches and itself, followed to where the question's text attends "
            "to it. Only the direct path: what MLPs and later text make of it is left out."
        )
    with right:
        title = "Added to the answer at its own place"
        draw(made(figures.answer_parts, _ends(section, "lens_by_role"), title=title, **given), "answer_parts_lens")
        how_to_read(
            "The same parts read by the logit lens at &lt;voco&gt; itself, where no answer is given: whether what is "
            "taken already points at the answer's word."
        )


def _ends(section: Mapping[str, Any], name: str) -> np.ndarray:
    """(..., 3) estimate, lower and upper end."""
    return np.stack([section[name + end] for end in ("", "_lower", "_upper")], -1)
