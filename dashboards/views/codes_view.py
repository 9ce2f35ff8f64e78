"""What the discrete channel sees: pictures from codes, how codes are used, and which go with which label.

Lays out; reads through data, computes in `dashboards.codes`, draws by figures.
"""

from collections.abc import Callable

import numpy as np
import streamlit as st

from htc_probe.analysis import sentences
from htc_probe.analysis.contents import associations
from htc_probe.analysis.sections import Reading, Reconstruct
from htc_probe.dashboards import data, figures
from htc_probe.dashboards.figures.base import escape
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts.chart import draw, made, points
from htc_probe.dashboards.views.view import View
from htc_probe.probes.scores.intervals import effective_groups, group_sizes

_EXAMPLES = 12
_LISTED = 200  # codes in the table


def show(view: View) -> None:
    """Draws the page."""
    shape = view.header.shape
    if shape.codes is None:
        model = ui.plain(str(view.header.info.model.get("name", "unknown")))
        st.info(
            f"This run has no codes: its model, {model}, has no MGVQ, which makes them of the pixels. Only the models "
            "of HTC-VLM with anchors from codes have this channel; extract with one to fill this page."
        )
        return
    sections = data.sections(view.path, view.header)
    group, code = _choose(view, shape.codes[2])
    read = data.all_codes(view.key)
    if len(read.rows) < shape.images:
        st.caption(f"Counts are of {len(read.rows):,} evenly spaced images of {shape.images:,}: all would not fit.")

    image = view.selection.image
    left, right = ui.side_by_side([7, 5], "codes_image", least=380)
    with left:
        _picture(view, sections.reconstruct)
    with right:
        here_RC = data.codes_of_image(view.key, image)[..., group]
        # Where not all images were read, this one may hold a code that no other does.
        shares_K = np.pad(read.shares[group], (0, max(0, int(here_RC.max()) + 1 - read.size)))
        picture = data.thumbnail(view.key, image)
        groups = shape.codes[2]
        figure = made(figures.code_grid, here_RC, shares_K, group=group, groups=groups, image=picture, chosen=code)
        draw(figure, "codes_grid", on_click=_take("codes_grid", code=0))
        ui.how_to_read(
            "Bright cells hold codes that are rare in this run, dark ones codes that are common. Click a cell to "
            "follow its code below."
        )

    _usage(view, read, sections.reading, group, code)
    answer = _labels(view, read, sections.reading, group, code)
    _one_code(view, read, group, code, answer)


def _choose(view: View, groups: int) -> tuple[int, int | None]:
    """The group of codes, from 0, and the code that is followed, None where none is."""
    left, right, _ = ui.side_by_side([2, 2, 8], "codes_choice", least=150)
    names = [str(group) for group in range(1, groups + 1)]
    told = "The latent is cut into groups of channels, each with a codebook of its own."
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
        placeholder="none chosen",
        help="Followed through the page; click one in any figure.",
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
        ui.fill("What MGVQ's decoder makes of the codes is not stored.", "htc-analyze reconstruct", view.path)
        return
    row_of = data.row_of(view.key)
    rows = np.array(sorted(row_of[name] for name in section.images if name in row_of), dtype=int)
    if name not in section.images:
        st.image(thumbnail, width=330, alt=f"thumbnail of image {name}")
        st.caption(
            f"The picture from the codes is stored for {len(rows):,} of {len(view.header.ids):,} images, and not for "
            "this one."
        )
        if len(rows):
            following = [*rows[rows > image], rows[0]]
            st.button("The next that has one", on_click=ui.go_to_image, args=(int(following[0]),))
        return
    place = section.images.index(name)
    figure = made(figures.code_pictures, thumbnail, section.pictures[place], psnr=float(section.psnr_of[place]))
    draw(figure, "codes_pictures")
    if view.header.info.config.get("random_weights"):
        st.caption("The weights of this model were drawn at random, and so its pictures are noise.")
    mean, flat = ("{:.1f} [{:.1f}, {:.1f}]".format(*ends.only) for ends in (section.psnr, section.psnr_flat))
    ui.how_to_read(
        "What is lost between the two pictures, the discrete channel does not hold; what is kept, the anchors may "
        f"still lose. Mean of {len(rows):,} images: {mean} dB; of a picture in the image's mean colour alone, "
        f"{flat} dB (larger is nearer; 95 % intervals over groups of images)."
    )


# ---- usage


def _usage(view: View, read: data.Codes, section: Reading | None, group: int, code: int | None) -> None:
    st.header("How codes are used")
    left, right = ui.side_by_side(2, "codes_usage_row", least=380)
    with left:
        ends: tuple[np.ndarray, np.ndarray] | None
        if section is not None and section.code is not None:
            entropy, lower, upper = section.code.entropy
            ends = lower, upper
            used, size, n = section.code.used, section.code.size, len(view.header.ids)
        else:
            entropy = np.array([associations.entropy(share_K) for share_K in read.shares])
            used, ends, size, n = (read.shares > 0).sum(1), None, read.size, len(read.rows)
        figure = made(figures.code_entropy, entropy, used, size, n=n, interval=ends, chosen=group)
        draw(figure, "codes_entropy", on_click=_take("codes_entropy", codegroup=0))
        ui.how_to_read(
            "A bar at the dashed line means that all codes of the group are used evenly; a low bar, that few codes do "
            "most of the work. Click a bar to choose its group."
        )
        rows, places = range(n) if ends is not None else read.rows, read.codes.shape[2]
        draws = effective_groups(group_sizes([view.header.groups[row] for row in rows])) * places
        if doubt := sentences.few_draws(draws, size):
            st.warning(doubt)
        if ends is None:
            ui.fill("Counted here, without intervals.", "htc-analyze reading", view.path)
    with right:
        figure = made(figures.code_usage, read.shares[group], group=group, n=len(read.rows), chosen=code)
        draw(figure, "codes_usage", on_click=_take("codes_usage", code=0))
        ui.how_to_read(
            "A steep fall means that a few codes cover most of every image. Click a point to follow its code."
        )


# ---- labels


def _labels(
    view: View, read: data.Codes, section: Reading | None, group: int, code: int | None
) -> tuple[str, int] | None:
    """Gives the task and the number of the answer that is looked at; None without labels."""
    st.header("Which codes go with which label")
    tasks = {task.name: task for task in view.header.tasks}
    if not tasks:
        st.info("The data of this run came without labels, so codes cannot be compared with any.")
        return None
    names = list(tasks)
    if st.session_state.get("codetask", names[0]) not in tasks:
        del st.session_state["codetask"]
    left, right, _ = ui.side_by_side([3, 3, 6], "codes_label", least=200)
    start = names.index(_most_told(names, section))
    task = tasks[left.selectbox("Label", names, start, key="codetask", bind="query-params")]
    values = data.labels(view.key)[task.name][read.rows]
    known = associations.answers(values, task.kind, task.classes, task.unit)
    options = [str(number) for number in range(1, len(known) + 1)]
    name_of = dict(zip(options, known, strict=True))
    number = options.index(ui.select("Answer", options, "answer", format_func=name_of.__getitem__, place=right))
    _bits(view, section, group, task.name)
    codes = data.codes_of_answer(view.key, group, task.name, number)
    if not codes.n_inside or not codes.n_outside:
        st.info(f"{codes.n_inside:,} images have this answer and {codes.n_outside:,} another: nothing to compare.")
        return task.name, number
    kept = associations.chosen(codes, codes.found)
    if not len(kept.code):
        st.info(
            f"No code of group {group + 1} is in images of {ui.plain(known[number])} more often than in others beyond "
            f"doubt: of {len(codes.code):,} codes in {codes.n_inside:,} such images, none has p below 0.05 once it is "
            f"corrected for the {codes.tests:,} pairs of a code and an answer that could be looked at."
        )
        return task.name, number
    figure = made(figures.code_lifts, kept, group=group, answer=f"{task.name}: {known[number]}", chosen=code)
    draw(figure, "codes_lifts", on_click=_take("codes_lifts", code=0))
    ui.how_to_read(
        f"Of {len(kept.code):,} codes that images with this answer hold more often than others, those that are surest "
        "to. A point at 3 means: three times as often as in other images. Each is tested by itself (Fisher's exact "
        "test) and corrected for all codes of all groups and all answers to this label (Bonferroni). Click a point to "
        "follow its code."
    )
    with st.expander(f"As a table: {len(kept.code):,} codes"):
        first = slice(_LISTED)
        columns = {
            "code": kept.code[first],
            "images with this answer": kept.inside[first],
            f"of {codes.n_inside:,}": np.round(kept.inside[first] / codes.n_inside, 4),
            "other images": kept.outside[first],
            f"of {codes.n_outside:,} others": np.round(kept.outside[first] / codes.n_outside, 4),
            "times as often": kept.lift[first].round(3),
            "lower": kept.lower[first].round(3),
            "upper": kept.upper[first].round(3),
            "p, corrected": kept.p[first],
        }
        ui.table({name: column.tolist() for name, column in columns.items()}, "codes_table")
    return task.name, number


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
        ui.fill("How much codes tell of each label, and where, was not measured.", "htc-analyze reading", view.path)
        return
    reading = section.code
    if reading is None or reading.label is None or view.header.shape.codes is None:
        st.info("No label of this run has two answers, so codes cannot tell of any.")
        return
    tasks, n = reading.tasks, min(section.images, view.header.shape.images)
    left, right = ui.side_by_side([7, 5], "codes_told", least=380)
    with left:
        place = tasks.index(task) if task in tasks else None
        mark = None if place is None else (place, group)
        figure = made(figures.code_label_bits, *reading.label.bits, reading.label.entropy, tasks, n=n, mark=mark)

        def taken() -> None:
            for point in points("codes_bits")[:1]:
                st.session_state["codegroup"] = str(int(point["x"]))
                st.session_state["codetask"] = tasks[int(point["y"]) - 1]

        draw(figure, "codes_bits", on_click=taken)
        ui.how_to_read(
            "Orange: knowing one code of the group, or rather which of at most 16 kinds of codes it is, tells some of "
            "the label; purple is noise below zero. With few groups of images some of the bits are lost. Bits of many "
            "codes of an image overlap and cannot be added. Click a cell to choose its label and group."
        )
    with right:
        if place is None:
            st.info(f"All images have the same answer to {ui.plain(task)}, or none, so codes cannot tell of it.")
            return
        cells = reading.rows.tolist(), reading.cols.tolist(), view.header.shape.codes[:2]
        draw(made(figures.code_label_map, reading.label.map[place], *cells, task=task, n=n), "codes_map")
        ui.how_to_read("Where in the image one code tells most of the label, the mean over groups.")


# ---- one code


def _one_code(view: View, read: data.Codes, group: int, code: int | None, answer: tuple[str, int] | None) -> None:
    st.header("One code")
    assert view.header.shape.codes is not None
    R, C, _ = view.header.shape.codes
    if code is None:
        st.info("Click a code in a figure above, or type its number at the top, to see which images hold it.")
        return
    here_NP = read.codes[group] == code
    holding = np.flatnonzero(here_NP.any(1))
    if not len(holding):
        st.info(f"No image of this run holds code {code} of group {group + 1}.")
        return
    left, right = ui.side_by_side([5, 7], "codes_one", least=380)
    with left:
        share_RC = here_NP.mean(0).reshape(R, C)
        draw(made(figures.code_places, share_RC, group=group, code=code, n=len(read.rows)), "codes_places")
        ui.how_to_read(
            f"{len(holding):,} of {len(read.rows):,} images hold it. A code that keeps to one edge goes with that "
            "place, such as sky or ground; one that is everywhere goes with what is there."
        )
    with right:
        words = "that hold most of it"
        if answer is not None:
            task = next(task for task in view.header.tasks if task.name == answer[0])
            values = data.labels(view.key)[task.name][read.rows]
            name = associations.answers(values, task.kind, task.classes, task.unit)[answer[1]]
            if st.toggle(
                f"Only images of {ui.plain(task.name)}: {ui.plain(name)}", key="codeonly", bind="query-params"
            ):
                holding = holding[associations.answering(values, task.kind, answer[1])[holding]]
                words = f"of {escape(task.name)}: {escape(name)} {words}"
        if not len(holding):
            st.info("No such image holds it.")
            return
        shown = holding[np.argsort(-here_NP[holding].sum(1), kind="stable")[:_EXAMPLES]]
        rows = [int(row) for row in read.rows[shown]]
        given = data.pictures(view.key, rows), here_NP[shown].reshape(-1, R, C), [view.header.ids[row] for row in rows]
        subtitle = f"outlined: cells with code {code} · {len(rows)} of {len(holding):,} images"
        figure = made(figures.code_examples, *given, title=f"Images {words}", subtitle=subtitle)

        def taken() -> None:
            for point in points("codes_examples")[:1]:
                ui.go_to_image(rows[int(point["customdata"][0])])

        draw(figure, "codes_examples", on_click=taken)
        ui.how_to_read("Click an image to show it on all pages.")
