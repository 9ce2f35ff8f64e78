"""The average over a run, with how far images differ. Lays out; reads through data, draws by figures."""

import numpy as np
import streamlit as st

from dashboards import attention as att
from dashboards import data, figures
from dashboards.controls import Selection, draw


def show(key: data.RunKey, header: data.Header, selection: Selection) -> None:
    """Draws the page for all images of the run."""
    shape = header.shape
    mean = data.average(key)
    if mean.n < mean.total:
        st.info(
            f"The attention record is large: this page reads {mean.n:,} of {mean.total:,} images, "
            "evenly spaced. The heat map of the anchors uses all of them."
        )
    low, high = att.PERCENTILES
    st.caption(
        f"Ranges hold the middle {high - low} % of images ({low}th to {high}th percentile): how much images "
        "differ, not how sure the mean is."
    )
    mass_nL = {role: att.head_mean(mass_nLH, selection.head) for role, mass_nLH in mean.mass.items()}
    left, right = st.columns(2)
    with left:
        if shape.anchors:
            mass_NLH = data.anchor_mass(key)
            figure = figures.anchor_heatmap(
                mass_NLH.mean(axis=0),
                shape.anchors / shape.keys,
                n=len(mass_NLH),
                band=att.band(mass_NLH),
                mark=(selection.layer, selection.head),
            )
            draw(figure, "average_heatmap")
        row_S = att.select(mean.attention, selection.layer, selection.head)
        patch_RC = att.patch_map(row_S, shape.roles, shape.rows, shape.cols)
        if patch_RC is not None:
            figure = figures.patch_overlay(patch_RC, 1 / shape.keys, selection=selection.words, n=mean.n)
            draw(figure, "average_overlay")
    with right:
        if shape.anchors:
            share_nL = att.hybrid_share(mass_nL["anchor"], mass_nL["patch"])
            figure = figures.share_curve(
                np.nanmean(share_nL, axis=0),
                att.uniform_share(shape.roles),
                selection=selection.head_words,
                n=mean.n,
                band=att.band(share_nL),
                log=selection.log,
            )
            draw(figure, "average_curve")
        mass_L = {role: mass.mean(axis=0) for role, mass in mass_nL.items()}
        draw(figures.role_bars(mass_L, selection=selection.head_words, n=mean.n), "average_roles")
