"""One image: the picture, its labels, and where <voco> looked in it.

Lays out; reads through data, draws by figures.
"""

import streamlit as st

from dashboards import attention as att
from dashboards import data, figures
from dashboards.controls import Selection, draw, plain


def show(key: data.RunKey, header: data.Header, selection: Selection) -> None:
    """Draws the page for one image of the run."""
    image, shape = selection.image, header.shape
    record = data.image_record(key, image)
    row_S = att.select(record.attention, selection.layer, selection.head)

    picture, overlay, bars = st.columns([3, 5, 4])
    with picture:
        st.image(record.thumbnail, width="stretch", alt=f"thumbnail of image {header.ids[image]}")
        names = f"id **{plain(header.ids[image])}** · group {plain(header.groups[image])}"
        st.caption(f"Image {image + 1:,} of {shape.images:,} · {names}")
        st.caption(plain(header.paths[image]))
    with overlay:
        patch_RC = att.patch_map(row_S, shape.roles, shape.rows, shape.cols)
        if patch_RC is None:
            st.info("This run has no patch positions, so attention cannot be drawn on the image.")
        else:
            words, thumbnail = selection.words, record.thumbnail
            figure = figures.patch_overlay(patch_RC, 1 / shape.keys, selection=words, image=thumbnail)
            draw(figure, "image_overlay")
    with bars:
        if shape.anchors:
            anchors_A = row_S[att.role_mask(shape.roles, "anchor")]
            draw(figures.anchor_bars(anchors_A, 1 / shape.keys, selection=selection.words), "image_anchors")

    mass = {
        role: att.head_mean(mass_LH, selection.head)
        for role, mass_LH in att.role_mass(record.attention, shape.roles).items()
    }
    left, right = st.columns(2)
    with left:
        if shape.anchors:
            mark = selection.layer, selection.head
            figure = figures.anchor_heatmap(record.anchor_mass, shape.anchors / shape.keys, mark=mark)
            draw(figure, "image_heatmap")
        _labels(key, header, image)
    with right:
        if shape.anchors:
            share_L = att.hybrid_share(mass["anchor"], mass["patch"])
            uniform, words = att.uniform_share(shape.roles), selection.head_words
            draw(figures.share_curve(share_L, uniform, selection=words, log=selection.log), "image_curve")
        draw(figures.role_bars(mass, selection=selection.head_words), "image_roles")


def _labels(key: data.RunKey, header: data.Header, image: int) -> None:
    st.markdown("**Labels of this image**")
    if not header.tasks:
        st.caption("The data of this run came without labels.")
        return
    values = data.labels(key)
    st.table(
        [
            {"suite": task.suite, "task": plain(task.name), "label": plain(label)}
            for task in header.tasks
            for label in [data.label_text(task, values[task.name][image])]
        ],
        border="horizontal",
        hide_index=True,
    )
