"""What the discrete channel sees: pictures from codes, how codes are used, and which go with which label.

Lays out; reads through data, draws by charts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from htc_probe.analysis import sentences
from htc_probe.analysis.contents import associations
from htc_probe.analysis.sections import Reading, Reconstruct
from htc_probe.dashboards import charts, data
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts.chart import draw, made, points
from htc_probe.dashboards.parts.copies import key_here
from htc_probe.dashboards.views.view import View, each_image, not_analysed
from htc_probe.probes.scores.intervals import effective_groups, group_sizes

_LISTED = 200  # codes in the table


def show(view: View) -> None:
    """Draws the page."""
    shape = view.header.shape
    if shape.codes is None:
        model = ui.plain(str(view.header.info.model.get("name", "unknown")))
        st.info(
            f"This run has no codes. MGVQ makes codes from the pixels, and the model {model} has no MGVQ. Extract "
            "with an HTC-VLM model whose anchors come from codes to see this page."
        )
        return
    sections = data.sections(view.path, view.header)
    group, code = _choose(view, shape.codes[2])
    read = data.all_codes(view.key)
    if len(read.rows) < shape.images:
        st.caption(f"Counts use {len(read.rows):,} of {shape.images:,} images, evenly spaced, to save memory.")

    each_image(view, partial(_image, section=sections.reconstruct, group=group, code=code), "codes")
    _usage(view, read, sections.reading, group, code)
    answer = _labels(view, sections.reading, group, code)
    _one_code(view, read, group, code, answer)


def _image(view: View, section: Reconstruct | None, group: int, code: int | None) -> None:
    """What the codes of one image are."""
    left, right = ui.side_by_side([7, 5], "codes_image", least=380)
    with left:
        _picture(view, section)
    with right:
        figure = made(charts.codes.grid, view.path, image=view.selection.number, group=group + 1, code=code)
        draw(figure, "codes_grid", on_click=_take("codes_grid", code=0))
        ui.how_to_read(
            "Bright cells hold codes that are rare in this run, dark ones codes that are common. Click a cell to "
            "follow its code below."
        )


def _choose(view: View, groups: int) -> tuple[int, int | None]:
    """The group of codes, from 0, and the code that is followed, None where none is."""
    left, right, _ = ui.side_by_side([2, 2, 8], "codes_choice", least=150)
    names = [str(group) for group in range(1, groups + 1)]
    told = "Each group of channels has its own codebook."
    group = ui.select("Group of codes", names, "codegroup", place=left, help=told)
    size = data.all_codes(view.key).size
    if (st.session_state.get("code") or 0) >= size:
        st.session_state["code"] = None
    code = right.number_input(
        "Code",
        0,
        size - 1,
        None,
        key="code",
        bind="query-params",
        placeholder="none",
        help="The code that the page follows; click one in any figure.",
    )
    return int(group) - 1, None if code is None else int(code)


def _take(key: str, **where: int) -> Callable[[], None]:
    """A callback that chooses what was clicked in the chart `key`. where: state -> its place in `customdata`."""

    def chosen() -> None:
        for point in points(key)[:1]:
            for state, place in where.items():
                value = int(point["customdata"][place])
                st.session_state[state] = str(value + 1) if state == "codegroup" else value

    return chosen


# ---- the image


def _picture(view: View, section: Reconstruct | None) -> None:
    image, name = view.selection.image, view.header.ids[view.selection.image]
    thumbnail = data.thumbnail(view.key, image)
    if section is None:
        st.image(thumbnail, width=330, alt=f"thumbnail of image {name}")
        not_analysed(view, "Reconstructions are not computed yet.", "reconstruct")
        return
    row_of = data.row_of(view.key)
    rows = np.array(sorted(row_of[name] for name in section.images if name in row_of), dtype=int)
    if name not in section.images:
        st.image(thumbnail, width=330, alt=f"thumbnail of image {name}")
        st.caption(f"This image has no reconstruction; {len(rows):,} of {len(view.header.ids):,} images have one.")
        if len(rows):
            following = [*rows[rows > image], rows[0]]
            key = key_here("next_reconstruction")
            st.button("Next image with a reconstruction", key=key, on_click=ui.go_to_image, args=(int(following[0]),))
        return
    draw(made(charts.codes.pictures, view.path, image=view.selection.number), "codes_pictures")
    if view.header.info.config.get("random_weights"):
        st.caption("This model has random weights, so its reconstructions are noise.")
    mean, flat = ("{:.1f} [{:.1f}, {:.1f}]".format(*ends.only) for ends in (section.psnr, section.psnr_flat))
    ui.how_to_read(
        "What the reconstruction loses is not in the codes; what it keeps may reach the anchors. PSNR, mean of "
        f"{len(rows):,} images: {mean} dB; with the image's mean colour everywhere: {flat} dB (larger is nearer; 95% "
        "intervals over groups of images)."
    )


# ---- usage


def _usage(view: View, read: data.Codes, section: Reading | None, group: int, code: int | None) -> None:
    st.header("Which codes are used?")
    left, right = ui.side_by_side(2, "codes_usage_row", least=380)
    with left:
        figure = made(charts.codes.entropy, view.path, group=group + 1)
        draw(figure, "codes_entropy", on_click=_take("codes_entropy", codegroup=0))
        ui.how_to_read(
            "At the dashed line all codes of the group are used evenly. Low bar: few codes are used most of the time. "
            "Click a bar to choose its group."
        )
        found, places = None if section is None else section.code, read.codes.shape[2]
        rows, size = (read.rows, read.size) if found is None else (range(len(view.header.ids)), found.size)
        draws = effective_groups(group_sizes([view.header.groups[row] for row in rows])) * places
        if doubt := sentences.few_draws(draws, size):
            st.warning(doubt)
        if found is None:
            not_analysed(view, "These counts have no intervals yet.", "reading")
    with right:
        figure = made(charts.codes.usage, view.path, group=group + 1, code=code)
        draw(figure, "codes_usage", on_click=_take("codes_usage", code=0))
        ui.how_to_read("Steep fall: a few codes cover most of every image. Click a point to follow its code.")


# ---- labels


def _labels(view: View, section: Reading | None, group: int, code: int | None) -> dict[str, str]:
    """Gives the task and the label that are looked at; nothing without labels."""
    st.header("Which codes go with which label?")
    tasks = {task.name: task for task in view.header.tasks}
    if not tasks:
        st.info("These data have no labels to compare codes with.")
        return {}
    names = list(tasks)
    if st.session_state.get("codetask", names[0]) not in tasks:
        del st.session_state["codetask"]
    left, right, _ = ui.side_by_side([3, 3, 6], "codes_label", least=200)
    start = names.index(_most_told(names, section))
    task = tasks[left.selectbox("Task", names, start, key="codetask", bind="query-params")]
    known = charts.codes.answers(view.source, task.name)
    options = [str(number) for number in range(1, len(known) + 1)]
    name_of = dict(zip(options, known, strict=True))
    number = options.index(ui.select("Label", options, "answer", format_func=name_of.__getitem__, place=right))
    told = {"task": task.name, "label": known[number]}
    _bits(view, section, group, task.name)
    codes = data.codes_of_answer(view.key, group, task.name, number)
    if not codes.n_inside or not codes.n_outside:
        st.info(f"{codes.n_inside:,} images have this label and {codes.n_outside:,} another: nothing to compare.")
        return told
    kept = associations.chosen(codes, codes.found)
    if not len(kept.code):
        st.info(
            f"No code of group {group + 1} is significantly more frequent in images of {ui.plain(known[number])} than "
            f"in others: none of the {len(codes.code):,} codes in {codes.n_inside:,} such images has p < 0.05 after "
            f"correction for {codes.tests:,} pairs of a code and a label."
        )
        return told
    figure = made(charts.codes.lifts, view.path, **told, group=group + 1, code=code)
    draw(figure, "codes_lifts", on_click=_take("codes_lifts", code=0))
    ui.how_to_read(
        f"{len(kept.code):,} codes are significantly more frequent in images with this label; these are the most "
        "significant. A point at 3: three times as often as in other images. Fisher's exact test, corrected for all "
        "codes of all groups and all labels of this task (Bonferroni). Click a point to follow its code."
    )
    with st.expander(f"As a table: {len(kept.code):,} codes"):
        first = slice(_LISTED)
        columns = {
            "code": kept.code[first],
            "images with this label": kept.inside[first],
            f"of {codes.n_inside:,}": np.round(kept.inside[first] / codes.n_inside, 4),
            "other images": kept.outside[first],
            f"of {codes.n_outside:,} others": np.round(kept.outside[first] / codes.n_outside, 4),
            "times as often": kept.lift[first].round(3),
            "lower": kept.lower[first].round(3),
            "upper": kept.upper[first].round(3),
            "p, corrected": kept.p[first],
        }
        ui.table({name: column.tolist() for name, column in columns.items()}, "codes_table")
    return told


def _most_told(names: list[str], section: Reading | None) -> str:
    """The label of which a code says most, as a share of what can be said; the first where that was not measured."""
    reading = None if section is None else section.code
    if reading is None or reading.label is None:
        return names[0]
    share_T = reading.label.bits.estimate.max(1) / np.maximum(reading.label.entropy, 1e-9)
    best = reading.tasks[int(share_T.argmax())]
    return best if best in names else names[0]


def _bits(view: View, section: Reading | None, group: int, task: str) -> None:
    if section is None:
        not_analysed(view, "What codes tell of each task is not computed yet.", "reading")
        return
    reading = section.code
    if reading is None or reading.label is None or view.header.shape.codes is None:
        st.info("No task of this run has two different labels, so codes have nothing to tell.")
        return
    tasks = reading.tasks
    left, right = ui.side_by_side([7, 5], "codes_told", least=380)
    with left:
        figure = made(charts.codes.label_bits, view.path, task=task, group=group + 1)

        def taken() -> None:
            for point in points("codes_bits")[:1]:
                st.session_state["codegroup"] = str(int(point["x"]))
                st.session_state["codetask"] = tasks[int(point["y"]) - 1]

        draw(figure, "codes_bits", on_click=taken)
        ui.how_to_read(
            "Orange: one code of the group (sorted into at most 16 kinds) tells something of the label; purple: noise "
            "below zero. With few groups of images the estimate is too low. Bits of several codes overlap, so they "
            "cannot be added. Click a cell to choose its task and group."
        )
    with right:
        if task not in tasks:
            st.info(f"All images have the same {ui.plain(task)}, or none, so codes have nothing to tell.")
            return
        draw(made(charts.codes.label_map, view.path, task=task), "codes_map")
        ui.how_to_read("Where in the image a code tells most of the label; mean over groups.")


# ---- one code


def _one_code(view: View, read: data.Codes, group: int, code: int | None, answer: dict[str, str]) -> None:
    st.header("One code")
    if code is None:
        st.info("Click a code in a figure above, or type its number at the top, to see the images with it.")
        return
    holding = charts.codes.holding(view.source, group + 1, code)
    if not len(holding):
        st.info(f"No image of this run has code {code} of group {group + 1}.")
        return
    which: dict[str, Any] = {"group": group + 1, "code": code}
    left, right = ui.side_by_side([5, 7], "codes_one", least=380)
    with left:
        draw(made(charts.codes.places, view.path, **which), "codes_places")
        ui.how_to_read(
            f"{len(holding):,} of {len(read.rows):,} images have it. A code at one edge goes with the place, such as "
            "sky or ground; a code found everywhere goes with the content."
        )
    with right:
        words = f"Only images of {ui.plain(answer['task'])}: {ui.plain(answer['label'])}" if answer else ""
        if words and st.toggle(words, key="codeonly", bind="query-params"):
            which |= answer
            holding = charts.codes.holding(view.source, **which)
        if not len(holding):
            st.info("No such image has this code.")
            return
        rows = read.rows[holding[: charts.codes.EXAMPLES]]

        def taken() -> None:
            for point in points("codes_examples")[:1]:
                ui.go_to_image(int(rows[int(point["customdata"][0])]))

        draw(made(charts.codes.examples, view.path, **which), "codes_examples", on_click=taken)
        ui.select_button(read.rows[holding], "codes_select")
        ui.how_to_read("Click an image to show it on all pages.")
