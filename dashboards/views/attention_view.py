"""What <voco> looked at: over many images, in the paper's Figure 3, and in one image.

Lays out; reads through data, draws by figures. All images are the selected ones where there are some.
"""

from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from htc_probe.analysis.attention import rows as att
from htc_probe.analysis.sections import Attention
from htc_probe.dashboards import data, figures
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts.chart import draw, made, points
from htc_probe.dashboards.views.view import View

_MEAN, _ONE = "Mean", "This image"
_PLAIN, _WEIGHTED = "Attention", "Attention × value"
_FIRST, _CHOSEN, _HERE = "The first", "Selected", "From this one on"
_FIGURE_IMAGES, _FIGURE_TOKENS = 16, 16  # of the paper's Figure 3


def show(view: View) -> None:
    """Draws the page."""
    if not view.header.shape.anchors:
        st.info("The model of this run has no anchors: what this page says of anchors is left out.")
    rows = _rows(view)
    average = data.average(view.key, rows)
    section = None if view.selection.chosen else data.sections(view.path, view.header).attention
    _many(view, rows, average, section)
    left, right = ui.side_by_side([5, 7], "means", least=380)
    with left:
        _mean_map(view, rows, average, section)
    with right:
        _figure3(view)
    _one(view)


def _rows(view: View) -> np.ndarray:
    """(n,) the images that averages are over."""
    chosen = view.selection.chosen
    return np.asarray(chosen) if chosen else np.arange(view.header.shape.images)


# ---- over images


def _many(view: View, rows: np.ndarray, average: data.Average, section: Attention | None) -> None:
    st.header("Where the one token looks")
    selection, shape = view.selection, view.header.shape
    quantities = att.quantities(shape.roles)
    many = f"the {len(rows):,} selected images" if selection.chosen else f"all {len(rows):,} images"
    left, right = ui.side_by_side([4, 8], "what")
    of = ui.pick(f"Over {many}, or of image {selection.image + 1:,}", [_MEAN, _ONE], "of", place=left)
    quantity = quantities[ui.pick("Heat map", list(quantities), "quantity", place=right)]
    with st.container():  # there also when it is empty, so that the charts below keep their place
        if of == _MEAN and average.n < len(rows):
            st.info(
                f"An image's attention takes {4 * average.attention.size / 2**20:.1f} MB: {average.n:,} of the "
                f"{len(rows):,} images, evenly spaced, were read for what needs all of it. Titles say what is of how "
                "many images."
            )
        if of == _MEAN and section is None and not selection.chosen:
            ui.fill("Of each head's quantities there are no 95 % intervals.", "htc-analyze attention", view.path)
    left, right = ui.side_by_side(2, "heads", least=380)
    with left:
        _heatmap(view, of, quantity, rows, average, section)
    with right:
        _curve(view, of, rows, average, section)
    left, right = ui.side_by_side(2, "shares", least=380)
    with left:
        _roles(view, of, average, section)
    with right:
        _distribution(view)


def _heatmap(
    view: View, of: str, quantity: att.Quantity, rows: np.ndarray, average: data.Average, section: Attention | None
) -> None:
    selection, shape = view.selection, view.header.shape
    n, spread = 1, None
    if of == _ONE:
        record = data.image_record(view.key, selection.image)
        value_LH = quantity.of(att.measure(record.attention, shape.roles) | {"anchor_mass": record.anchor_mass})
    elif section is not None and (found := quantity.found(section)) is not None:
        value_LH, n = found.estimate, section.images
        spread = "95 % interval of the mean", att.Band(found.lower, found.upper)
    elif quantity.name == "anchor_mass":
        value_LH, band = data.anchor_cells(view.key, rows)
        n, spread = len(rows), (figures.BAND, band)
    else:
        value_nLH = quantity.of(average.values)
        value_LH, n, spread = np.nanmean(value_nLH, axis=0), average.n, (figures.BAND, att.band(value_nLH))
    mark = selection.layer, selection.head
    figure = made(figures.head_heatmap, value_LH, quantity, n=n, spread=spread, mark=mark)
    draw(figure, "heads", on_click=partial(_cell, mark))
    ui.how_to_read(
        "Each cell is one head. "
        + (
            "Bright: it looks at everything alike; dark: at few keys. "
            if quantity.unit == "bits"
            else "Orange: more than if it looked at all keys alike; purple: less. "
        )
        + "Click a cell to select its layer and head on all pages, click it again for the mean."
    )


def _curve(view: View, of: str, rows: np.ndarray, average: data.Average, section: Attention | None) -> None:
    selection, roles = view.selection, view.header.shape.roles
    uniform = {role: roles.count(role) / len(roles) for role in ("anchor", "patch") if role in roles}
    curves: dict[str, figures.Curve] = {}
    if of == _ONE:
        attention_LHS = data.image_record(view.key, selection.image).attention
        for role, mass_LH in att.role_mass(attention_LHS, roles).items():
            if role in uniform:
                curves[role] = figures.Curve(att.head_mean(mass_LH, selection.head), uniform[role])
    else:
        if "anchor" in uniform:
            mean_L, band = data.anchor_curve(view.key, rows, selection.head)
            curves["anchor"] = figures.Curve(mean_L, uniform["anchor"], len(rows), band, len(rows))
        patch_nL = att.head_mean(average.values["patch_mass"], selection.head)
        mean_L, n = patch_nL.mean(axis=0), average.n
        if section is not None:
            mean_L, n = att.head_mean(section.patch_mass.estimate, selection.head), section.images
        curves["patch"] = figures.Curve(mean_L, uniform["patch"], n, att.band(patch_nL), average.n)
    draw(made(figures.share_curve, curves, selection=selection.head_words, log=selection.log), "curve")
    ui.how_to_read(
        "How much of its attention the token spends on anchors and on patches. Dashed: what they would get if it "
        "looked at all keys alike."
        + (" Shaded: the middle 80 % of images, how much they differ, not how sure the mean is." if of == _MEAN else "")
    )


def _roles(view: View, of: str, average: data.Average, section: Attention | None) -> None:
    selection, n = view.selection, 1
    if of == _ONE:
        attention_LHS = data.image_record(view.key, selection.image).attention
    else:
        attention_LHS, n = _mean(average, section)
    mass = att.role_mass(att.head_mean(attention_LHS.swapaxes(1, 2), selection.head)[:, None], view.header.shape.roles)
    mass_L = {role: mass_L1[:, 0] for role, mass_L1 in mass.items()}
    draw(made(figures.role_bars, mass_L, selection=selection.head_words, n=n), "roles")
    ui.how_to_read("All of the token's attention by what it falls on; each bar is one layer and sums to 100 %.")


def _distribution(view: View) -> None:
    selection, shape = view.selection, view.header.shape
    if not shape.anchors or shape.images < 2:
        return
    value_N = data.anchor_values(view.key, selection.layer, selection.head)
    value, uniform = float(value_N[selection.image]), shape.anchors / shape.keys
    figure = made(figures.distribution, value_N, value, uniform, selection=selection.words, image=selection.image + 1)
    draw(figure, "distribution", on_click=partial(_bins, value_N))
    ui.how_to_read(
        "How many images give the anchors how much; the green line is the image of the sidebar. Click a bar, or "
        "several with Shift, to select its images on all pages."
    )


def _mean(average: data.Average, section: Attention | None) -> tuple[np.ndarray, int]:
    """(L, H, S) and the number of images that it is the mean of."""
    return (average.attention, average.n) if section is None else (section.mean_attention, section.images)


def _mean_map(view: View, rows: np.ndarray, average: data.Average, section: Attention | None) -> None:
    selection, shape = view.selection, view.header.shape
    attention_LHS, n = _mean(average, section)
    patch_RC = _map_of(att.select(attention_LHS, selection.layer, selection.head), shape)
    if patch_RC is None:
        st.info("This run has no patch positions, so attention cannot be drawn as a map.")
        return
    draw(made(figures.patch_overlay, patch_RC, 1 / shape.keys, selection=selection.words, n=n), "mean_map")
    ui.how_to_read(
        "The same place in all images: a pattern here is a habit of the head, whatever the picture shows. Compare it "
        "with the map of one image below."
    )


def _map_of(row_S: np.ndarray, shape: Any) -> np.ndarray | None:
    return att.patch_map(row_S, shape.roles, shape.rows, shape.cols)


# ---- the paper's Figure 3


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
    token_NLHF = data.first_tokens(view.key, rows, _FIGURE_TOKENS)
    share_NF = np.stack([att.select(token_LHF, selection.layer, selection.head) for token_LHF in token_NLHF])
    names = att.token_names(shape.roles, shape.rows, shape.cols, _FIGURE_TOKENS)
    numbers, ids = [row + 1 for row in rows], [header.ids[row] for row in rows]
    told: dict[str, Any] = {"anchors": min(shape.anchors, _FIGURE_TOKENS), "shown": selection.image + 1}
    given = share_NF, names, numbers, ids, 1 / shape.keys
    figure = made(figures.first_tokens, *given, selection=selection.words, **told)
    draw(figure, "first_tokens", on_click=partial(_image_at, rows))
    largest = int((share_NF.argmax(axis=1) < shape.anchors).sum())
    on_anchors = f" In {largest} of these {len(rows)} images the largest of the weights shown is on an anchor."
    ui.how_to_read(
        "One row an image, one column a token; the brighter, the more attention. The paper shows this as the mean over "
        "layers and heads, and reads bright anchors as use of the anchors; the first patches are a corner of the "
        f"image, not a sample of it.{on_anchors if shape.anchors else ''} Click a row to go to its image."
    )


# ---- one image


def _one(view: View) -> None:
    header, selection = view.header, view.selection
    image, shape = selection.image, header.shape
    st.header(f"Image {image + 1:,} of {shape.images:,}")
    name, group, path = (ui.plain(of[image]) for of in (header.ids, header.groups, header.paths))
    st.caption(f"id **{name}** · group {group} · {path}")
    record = data.image_record(view.key, image)
    how = ui.pick("What it looks at, or what each token hands over", [_PLAIN, _WEIGHTED], "by")
    row_S, words = att.select(record.attention, selection.layer, selection.head), selection.words
    weighted = _weighted(view) if how == _WEIGHTED else None
    signed = weighted is not None
    if weighted is not None:
        row_S = weighted
        words = "mean over layers, all heads" if selection.layer is None else f"layer {selection.layer + 1}, all heads"

    picture, overlay, bars = ui.side_by_side([3, 5, 4], "image", least=250)
    with picture:
        st.image(record.thumbnail, width=270, alt=f"thumbnail of image {header.ids[image]}")
        _labels(view)
    with overlay:
        patch_RC = _map_of(row_S, shape)
        if patch_RC is None:
            st.info("This run has no patch positions, so attention cannot be drawn on the image.")
        else:
            title, unit = ("Attention × value", "of the update") if signed else ("Attention", "of all attention")
            told: dict[str, Any] = {"title": f"{title} on the patches", "of": unit, "selection": words}
            figure = made(
                figures.patch_overlay, patch_RC, 1 / shape.keys, image=record.thumbnail, signed=signed, **told
            )
            draw(figure, "overlay")
            ui.how_to_read(_WEIGHTED_WORDS if signed else _PLAIN_WORDS)
    with bars:
        if shape.anchors:
            anchors_A = row_S[att.role_mask(shape.roles, "anchor")]
            of = "share of the update" if signed else "share of all attention"
            draw(made(figures.anchor_bars, anchors_A, 1 / shape.keys, selection=words, of=of), "anchors")
            ui.how_to_read(
                f"The {shape.anchors} anchors together: **{anchors_A.sum():.2%}**; all patches: "
                f"**{row_S[att.role_mask(shape.roles, 'patch')].sum():.2%}** {of.removeprefix('share ')}."
            )


_PLAIN_WORDS = (
    "Over the picture in grey: the brighter a patch, the more the token looks at it. Attention says what is read, not "
    "what it is worth: see the page *What causes what*."
)
_WEIGHTED_WORDS = (
    "What each patch adds to the token at this layer: attention times its value, projected on the whole update; all "
    "tokens sum to 100 %. Orange adds to the update, purple works against it."
)


def _weighted(view: View) -> np.ndarray | None:
    """(S,) shares of the update of <voco> in this image, at the layer or the mean over layers. None, and why, where
    they were not measured.
    """
    section = data.sections(view.path, view.header).contributions
    if section is None:
        ui.fill("What each token hands over was not measured.", "htc-analyze contributions", view.path)
        return None
    rows_of = data.row_of(view.key)
    measured = np.array([rows_of.get(name, -1) for name in section.images])
    layer, image = view.selection.layer, view.selection.image
    at = np.flatnonzero(measured == image)
    if not len(at):
        ahead = measured[measured > image]
        following = int(ahead.min() if len(ahead) else measured.max())
        st.info(
            f"What each token hands over was measured on {len(measured):,} images, a random sample, and this is not "
            "one of them; its attention is shown instead. `htc-analyze contributions --images` sets how many are."
        )
        st.button(f"Go to image {following + 1:,}, which is one", on_click=ui.go_to_image, args=(following,))
        return None
    share_LS = section.share[at[0]]
    return share_LS.mean(axis=0) if layer is None else share_LS[layer]


def _labels(view: View) -> None:
    if not view.header.tasks:
        st.caption("The data of this run came without labels.")
        return
    values, image = data.labels(view.key), view.selection.image
    told = {task.name: data.label_text(task, values[task.name][image]) for task in view.header.tasks}
    lines = [{"task": ui.plain(name), "label": ui.plain(label)} for name, label in told.items()]
    st.table(lines, border="horizontal", hide_index=True)


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
