"""What <voco> looked at: over many images, in the paper's Figure 3, and in one image.

Lays out; draws by charts. All images are the selected ones where there are some.
"""

from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from htc_probe.analysis.attention import rows as att
from htc_probe.dashboards import charts, data
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts.chart import draw, made, points
from htc_probe.dashboards.parts.copies import key_here
from htc_probe.dashboards.views.view import View, each_image, not_analysed

_MEAN, _ONE = "Mean", "This image"
_PLAIN, _WEIGHTED = "Attention", "Attention × value"
_FIRST, _CHOSEN, _HERE = "The first", "Selected", "From this one on"
_FIGURE_IMAGES, _FIGURE_TOKENS = 16, 16  # of the paper's Figure 3


def show(view: View) -> None:
    """Draws the page."""
    if not view.header.shape.anchors:
        st.info("This model has no anchors, so the parts about anchors are left out.")
    rows = _rows(view)
    average = data.average(view.key, rows)
    _many(view, rows, average)
    left, right = ui.side_by_side([5, 7], "means", least=380)
    with left:
        _mean_map(view)
    with right:
        _figure3(view)
    _one(view)


def _rows(view: View) -> np.ndarray:
    """(n,) the images that averages are over."""
    chosen = view.selection.chosen
    return np.asarray(chosen) if chosen else np.arange(view.header.shape.images)


# ---- over images


@ui.fragment
def _many(view: View, rows: np.ndarray, average: data.Average) -> None:
    selection, shape = view.selection, view.header.shape
    quantities = att.quantities(shape.roles)
    many = f"the {len(rows):,} selected images" if selection.chosen else f"all {len(rows):,} images"
    left, right = ui.side_by_side([4, 8], "what")
    of = ui.pick(f"Mean of {many}, or image {selection.image + 1:,} alone", [_MEAN, _ONE], "of", place=left)
    quantity = ui.pick("Heat map", list(quantities), "quantity", place=right)
    whose: dict[str, Any] = {"image": selection.number} if of == _ONE else {"images": selection.images}
    with st.container():  # there also when it is empty, so that the charts below keep their place
        if of == _MEAN and average.n < len(rows):
            st.info(
                f"The attention of one image takes {4 * average.attention.size / 2**20:.1f} MB, so some figures use "
                f"{average.n:,} of the {len(rows):,} images, evenly spaced. Every title says how many images it uses."
            )
        if of == _MEAN and not selection.chosen and view.source.sections.attention is None:
            not_analysed(view, "Per-head intervals are not computed yet.", "attention")
    left, right = ui.side_by_side(2, "heads", least=380)
    with left:
        _heatmap(view, quantities[quantity].unit, quantity=quantity, **whose)
    with right:
        _curve(view, of, **whose)
    left, right = ui.side_by_side(2, "shares", least=380)
    with left:
        draw(made(charts.attention.roles, view.path, head=selection.cell["head"], **whose), "roles")
        ui.how_to_read("What the token attends to, layer by layer. Each bar sums to 100 %.")
    with right:
        _distribution(view)


def _heatmap(view: View, unit: str, **told: Any) -> None:
    selection = view.selection
    figure = made(charts.attention.heads, view.path, **told, **selection.cell)
    draw(figure, "heads", on_click=partial(_cell, (selection.layer, selection.head)))
    ui.how_to_read(
        "Each cell is one head. "
        + (
            "Bright: it looks at all keys alike; dark: at few keys. "
            if unit == "bits"
            else "Orange: more than if it looked at all keys alike; purple: less. "
        )
        + "Click a cell to select its layer and head on all pages; click it again for the mean."
    )


def _curve(view: View, of: str, **whose: Any) -> None:
    selection = view.selection
    figure = made(charts.attention.curve, view.path, head=selection.cell["head"], log=selection.log, **whose)
    draw(figure, "curve")
    ui.how_to_read(
        "How much of its attention the token spends on anchors and on patches. Dashed: their share if it looked at all "
        "keys alike."
        + (" Shaded: the middle 80% of images; it shows how images differ, not how sure the mean is." * (of == _MEAN))
    )


def _distribution(view: View) -> None:
    selection, shape = view.selection, view.header.shape
    if not shape.anchors or shape.images < 2:
        return
    value_N = data.anchor_values(view.key, selection.layer, selection.head)
    figure = made(charts.attention.distribution, view.path, image=selection.number, **selection.cell)
    draw(figure, "distribution", on_click=partial(_bins, value_N))
    ui.how_to_read(
        "How much attention the anchors get, image by image. The green line is the image of the sidebar. Click a bar "
        "(with Shift, several) to select its images on all pages."
    )


def _mean_map(view: View) -> None:
    selection = view.selection
    with ui.possible():
        draw(made(charts.attention.mean_map, view.path, images=selection.images, **selection.cell), "mean_map")
        ui.how_to_read(
            "The mean over images, place by place. A pattern here is a habit of the head, whatever the image shows. "
            "Compare it with the map of one image below."
        )


# ---- the paper's Figure 3


@ui.fragment
def _figure3(view: View) -> None:
    selection, header = view.selection, view.header
    shape, images = header.shape, header.shape.images
    which = _FIRST
    if images > _FIGURE_IMAGES:
        which = ui.pick(
            f"{_FIGURE_IMAGES} images", [_FIRST, *([_CHOSEN] if selection.chosen else []), _HERE], "figure3"
        )
    start = 0 if which == _FIRST else min(selection.image, max(0, images - _FIGURE_IMAGES))
    rows = tuple(range(start, min(start + _FIGURE_IMAGES, images)))
    if which == _CHOSEN:
        rows = selection.chosen[:_FIGURE_IMAGES]
    told: dict[str, Any] = {"images": tuple(row + 1 for row in rows), "shown": selection.number}
    figure = made(charts.attention.first_tokens, view.path, **told, **selection.cell)
    draw(figure, "first_tokens", on_click=partial(_image_at, rows))
    share_NF = charts.attention.first_shares(view.source, np.array(rows), **selection.cell)
    largest = int((share_NF.argmax(axis=1) < shape.anchors).sum())
    on_anchors = f" In {largest} of these {len(rows)} images the brightest token is an anchor."
    ui.how_to_read(
        "Rows are images, columns are tokens; brighter means more attention. The paper shows the mean over layers and "
        "heads, and reads bright anchors as a sign that they are used. The first patches are one corner of the image, "
        f"not a sample of it.{on_anchors if shape.anchors else ''} Click a row to go to its image."
    )


# ---- one image


@ui.fragment
def _one(view: View) -> None:
    images = len(view.selection.beside)
    title = f"{images} pinned images" if images else f"Image {view.selection.image + 1:,}"
    st.header(f"{title} of {view.header.shape.images:,}")
    how = ui.pick("Where it looks, or what each token contributes", [_PLAIN, _WEIGHTED], "by")
    each_image(view, partial(_one_image, how=how), "one")


def _one_image(view: View, how: str) -> None:
    header, selection = view.header, view.selection
    image, shape = selection.image, header.shape
    name, group, path = (ui.plain(of[image]) for of in (header.ids, header.groups, header.paths))
    st.caption(f"id **{name}** · group {group} · {path}")
    weighted = how == _WEIGHTED and _measured(view)
    told: dict[str, Any] = {"image": selection.number, "weighted": weighted, **selection.cell}
    picture, overlay, bars = ui.side_by_side([3, 5, 4], "image", least=250)
    with picture:
        st.image(data.thumbnail(view.key, image), width=270, alt=f"thumbnail of image {header.ids[image]}")
        _labels(view)
    with overlay, ui.possible():
        draw(made(charts.attention.overlay, view.path, **told), "overlay")
        ui.how_to_read(_WEIGHTED_WORDS if weighted else _PLAIN_WORDS)
    with bars:
        if shape.anchors:
            draw(made(charts.attention.anchors, view.path, **told), "anchors")
            row_S = charts.attention.shares(view.source, image, weighted=weighted, **selection.cell)
            anchors, patches = (row_S[att.role_mask(shape.roles, role)].sum() for role in ("anchor", "patch"))
            ui.how_to_read(
                f"The {shape.anchors} anchors together: **{anchors:.2%}**; all patches: **{patches:.2%}** of "
                f"{'the update' if weighted else 'all attention'}."
            )


_PLAIN_WORDS = (
    "Brighter patches get more attention; the image below is grey. Attention shows where the token looks, not what "
    "that causes: see the page *What causes what*."
)
_WEIGHTED_WORDS = (
    "What each patch contributes to the token's update at this layer: attention × value, as a share of the whole "
    "update; all tokens sum to 100 %. Orange adds to the update, purple works against it."
)


def _measured(view: View) -> bool:
    """Whether it was measured what this image's tokens hand over; says why not."""
    section = data.sections(view.path, view.header).contributions
    if section is None:
        not_analysed(view, "Contributions are not computed yet.", "contributions")
        return False
    rows_of = data.row_of(view.key)
    measured = np.array([rows_of.get(name, -1) for name in section.images])
    image = view.selection.image
    if image not in measured:
        ahead = measured[measured > image]
        following = int(ahead.min() if len(ahead) else measured.max())
        st.info(
            f"Contributions were computed for a random sample of {len(measured):,} images. This image is not in it, so "
            "its attention is shown instead. `htc-analyze contributions --images` sets the size of the sample."
        )
        words, key = f"Go to image {following + 1:,}, the next in the sample", key_here("next_measured")
        st.button(words, key=key, on_click=ui.go_to_image, args=(following,))
        return False
    return True


def _labels(view: View) -> None:
    if not view.header.tasks:
        st.caption("These data have no labels.")
        return
    values, image = data.labels(view.key), view.selection.image
    told = {task.name: data.label_text(task, values[task.name][image]) for task in view.header.tasks}
    ui.table({"task": list(told), "label": list(told.values())}, "image_labels")


# ---- clicks


def _cell(mark: tuple[int | None, int | None]) -> None:
    for point in points("heads")[:1]:
        cell = int(point["x"]) - 1, int(point["y"]) - 1
        ui.go_to_cell(*((None, None) if cell == mark else cell))


def _image_at(rows: tuple[int, ...]) -> None:
    for point in points("first_tokens")[:1]:
        ui.go_to_image(rows[int(point["y"]) - 1])


def _bins(value_N: np.ndarray) -> None:
    bins = [point["customdata"] for point in points("distribution") if point.get("customdata")]
    if not bins:  # a line
        return
    inside = np.zeros(len(value_N), dtype=bool)
    for low, high in bins:
        inside |= (value_N >= low) & (value_N <= high)
    ui.choose(np.flatnonzero(inside).tolist())
