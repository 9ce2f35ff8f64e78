"""Where <voco> looks in two runs: on average over images, and in one image. Lays out."""

import shlex
from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from htc_probe.analysis.attention import rows as att
from htc_probe.dashboards import charts, data
from htc_probe.dashboards.charts.compare import PERCENT
from htc_probe.dashboards.charts.two import Two
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts.chart import draw, drawable, made, points
from htc_probe.dashboards.views.compare.two import columns_of
from htc_probe.dashboards.views.view import View, each_image

_ANALYSED = {
    "anchor_mass": ("attention on the anchors", PERCENT, 100),
    "anchor_share": ("anchors' share of the attention on anchors and patches", "%", 100),
    "anchor_lift": ("lift of the anchors over their uniform share", "times uniform", 1),
    "anchor_above_patch": ("an anchor gets more than a patch", "% of pairs", 100),
    "anchor_minus_top": ("anchors minus the most attended patches, as many", PERCENT, 100),
    "first_lift": ("lift of the first 4 anchors or patches", "times uniform", 1),
    "patch_mass": ("attention on the patches", PERCENT, 100),
    "voco_mass": ("attention on <voco> itself", PERCENT, 100),
    "text_mass": ("attention on text before <voco>", PERCENT, 100),
    "entropy_bits": ("entropy of the attention", "bits", 1),
    "effective_keys": ("effective number of keys", "keys", 1),
    "top_10": ("share of the 10% most attended patches in all patches", "%", 100),
    "patch_gini": ("Gini coefficient over patches", "0 to 1", 1),
}
"""Quantities of `htc-analyze attention`: words, unit, factor."""


def on_average(view: View, two: Two) -> None:
    """On average over images."""
    _overall(two)
    if shared := charts.compare.quantities(two):
        name = ui.select(
            "Quantity", list(shared), "compared", disabled=len(shared) == 1, help="The same as on the page Attention."
        )
        if two.same_cells:
            _by_layer(view, two, name, shared[name])
        else:
            told: dict[str, Any] = {"quantity": name, "images": view.selection.images}
            draw(made(charts.compare.depth, *two.paths, **told), "compare_depth")
            ui.how_to_read("Each run over its own layers; the last layer is at 100 %.")
    _roles_and_images(view, two)
    _patches(view, two)
    _first_tokens(view, two)


def _by_layer(view: View, two: Two, name: str, quantity: att.Quantity) -> None:
    """By layer and head, and over the layers."""
    selection = view.selection
    cells, _, band, _ = charts.compare.levels(two, quantity, selection.cell["head"])
    told: dict[str, Any] = {"quantity": name, "images": selection.images}
    left, right = ui.side_by_side([2, 3], "compare_levels", least=380)
    with left:
        figure = made(charts.compare.heads, *two.paths, **(told | selection.cell))
        draw(figure, "compare_heatmap", on_click=partial(ui.go_to_clicked, "compare_heatmap"))
        ui.how_to_read(
            f"Orange: more in this run; purple: less. Dot: significant at 5% (Holm-corrected); "
            f"{int(cells.marked.sum()):,} of {cells.p.size:,} cells are. Click a cell to select its layer and head."
        )
    with right:
        draw(made(charts.compare.curve, *two.paths, **told, head=selection.cell["head"]), "compare_curve")
        ui.how_to_read(
            "Left: both runs. Right: their difference, with the 95% interval of its mean over images (each layer by "
            "itself, not corrected)." + (" Grey: the differences of single images." if band is not None else "")
        )


def _overall(two: Two) -> None:
    """One line a quantity: mean over images, layers and heads."""
    sections = charts.compare.analysed(two)
    chosen, by_name, how = two.chosen, {}, {}
    if two.anchors:
        means = [values.mean(1) for values in two.mass(None)]
        pairs = two.pairs
        by_name["anchor_mass"] = pairs.differences(means[0], means[1])
        how["anchor_mass"] = two.images
    if sections is not None and not chosen:
        for name, (words, unit, _) in _ANALYSED.items():
            quantity = att.Quantity(name, words, unit, 0, 0)
            if name not in by_name and all(quantity.found(section) is not None for section in sections):
                overall = charts.compare.of_analysis(sections, two, quantity, lambda levels: levels.overall)
                by_name[name] = overall.map(lambda end: end[0])
                how[name] = charts.compare.how(by_name[name], sections)
    st.markdown("**Averages over images, layers and heads**")
    if by_name:
        lines = [line.times(_ANALYSED[name][2]) for name, line in by_name.items()]
        columns = {
            "quantity": [_ANALYSED[name][0] for name in by_name],
            "unit": [_ANALYSED[name][1] for name in by_name],
        }
        ui.table(
            columns | columns_of(lines, two.names) | {"images": [how[name] for name in by_name]}, "compare_overall"
        )
        ui.how_to_read(
            "p is corrected for the lines of this table (Holm). Where the runs have the same images, pairing makes the "
            "intervals narrower: `htc-analyze attention --against` pairs them."
        )
    if chosen:
        st.caption("Entropy, lift and similar quantities need all images; clear the selection to see them.")
    for path, header, against in zip(two.paths, two.headers, reversed(two.paths), strict=True):
        if data.sections(path, header).attention is None:
            reason = f"Lift, entropy and other averages of {ui.plain(path.stem)} are not computed yet."
            ui.fill(reason, f"htc-analyze attention --against {shlex.quote(str(against))}", path)


def _roles_and_images(view: View, two: Two) -> None:
    selection = view.selection
    left, right = ui.side_by_side(2, "compare_roles", least=380)
    with left:
        if two.same_cells:
            told: dict[str, Any] = {"images": selection.images, "head": selection.cell["head"]}
            draw(made(charts.compare.roles, *two.paths, **told), "compare_roles")
            ui.how_to_read("What one kind of key gains, the others lose: the lines sum to 0. Bars: 95% intervals.")
    with right:
        if two.pairs.paired and two.anchors:
            told = {"images": selection.images, **selection.cell}
            figure = made(charts.compare.scatter, *two.paths, **told, image=selection.number)
            draw(figure, "compare_scatter", on_click=_picked)
            own, others = charts.compare.masses(two, **selection.cell)
            share = float((own > others).mean())
            ui.how_to_read(
                f"Above the line this run looks at the anchors more: {share:.0%} of images. Click a point to show its "
                "image under *One image* and on all pages."
            )


def _patches(view: View, two: Two) -> None:
    """The average map of patches of both."""
    cell = view.selection.cell
    with ui.possible():
        draw(made(charts.compare.patches, *two.paths, images=view.selection.images, **cell), "compare_patches")
        differences = charts.compare.patch_differences(two, **cell)
        ui.how_to_read(
            f"The first two maps share a scale. Dot: significant at 5% (Holm-corrected); "
            f"{int(differences.marked.sum()):,} of {differences.p.size:,} patches are."
        )


def _first_tokens(view: View, two: Two) -> None:
    """The paper's Figure 3, as a difference."""
    cell = view.selection.cell
    with ui.possible():
        draw(made(charts.compare.tokens, *two.paths, images=view.selection.images, **cell), "compare_tokens")
        cells = charts.compare.token_differences(two, cell["head"]).p.size
        ui.how_to_read(f"The anchors and the first patches. Dot: significant at 5% (Holm-corrected, {cells:,} cells).")


def _picked() -> None:
    for point in points("compare_scatter")[:1]:
        if "customdata" in point:
            ui.go_to_image(int(np.ravel(point["customdata"])[0]))


def one_image(view: View, two: Two) -> None:
    """In the image that is shown, or in the pinned ones."""
    each_image(view, partial(_one_image, two=two), "compare_one")


def _one_image(view: View, two: Two) -> None:
    image, header = view.selection.image, view.header
    row = data.row_of(two.other.key).get(header.ids[image])
    if row is None:
        st.info(f"{ui.plain(two.names[1])} has no image {ui.plain(header.ids[image])}; choose another one.")
        return
    mine, theirs = data.thumbnail(view.key, image), data.thumbnail(two.other.key, row)
    told: dict[str, Any] = {"image": view.selection.number, **view.selection.cell}
    picture, maps = ui.side_by_side([1, 5], "compare_picture", least=150)
    with picture:
        st.image(mine, width=180, alt=f"thumbnail of image {header.ids[image]}")
        st.caption(f"Image {image + 1:,} of {len(header.ids):,} · id **{ui.plain(header.ids[image])}**")
        st.caption(ui.plain(header.paths[image]))
        if not np.array_equal(mine, theirs):
            st.warning("The other run has a different image with this id:")
            st.image(theirs, width=180, alt="the other run's thumbnail")
    with maps, ui.possible():
        draw(made(charts.compare.overlay, *two.paths, **told), "compare_overlay")
        ui.how_to_read(
            "The first two maps share a scale. Difference: orange where this run looks more, purple where less."
        )
        _handed_over(view, two)
    if not two.anchors:
        st.info("One of the runs has no anchors, so anchors are not compared.")
        return
    bars, cells, place = ui.side_by_side(3, "compare_anchors", least=300)
    with bars, ui.possible():
        draw(made(charts.compare.anchors, *two.paths, **told), "compare_anchors")
        ui.how_to_read("Dashed: the share of each key if attention were uniform.")
    with cells:
        if two.same_cells:
            figure = made(charts.compare.image_heads, *two.paths, **told)
            draw(figure, "compare_image_heatmap", on_click=partial(ui.go_to_clicked, "compare_image_heatmap"))
            ui.how_to_read("Orange: this run gives the anchors more. Click a cell to select its layer and head.")
    with place:
        draw(made(charts.compare.histogram, *two.paths, **told, images=view.selection.images), "compare_histogram")
        ui.how_to_read("The difference of the two runs in each image; the thin line is 0.")


def _handed_over(view: View, two: Two) -> None:
    """Attention x value in this image, where both runs have it."""
    told: dict[str, Any] = {"image": view.selection.number, "layer": view.selection.cell["layer"]}
    figure = drawable(charts.compare.handed_over, *two.paths, **told)
    if figure is None:
        st.caption(
            "Contributions (attention × value) are shown for images for which both runs have them: "
            "`htc-analyze contributions --images` sets how many."
        )
        return
    draw(figure, "compare_handed_over")
    ui.how_to_read("The share of the token's update that comes from each patch; purple works against it.")
