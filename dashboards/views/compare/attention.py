"""Where <voco> looks in two runs: on average over images, and in one image. Lays out."""

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from htc_probe.analysis import compare
from htc_probe.analysis.attention import rows as att
from htc_probe.analysis.compare import Differences
from htc_probe.analysis.results import same_run
from htc_probe.analysis.sections.attention import Attention, Difference, Levels
from htc_probe.analysis.stats.draws import Intervals
from htc_probe.dashboards import data, figures
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts.chart import draw, made, points
from htc_probe.dashboards.views.compare.two import Two, columns_of

_PERCENT = "% of all attention"
_TOKENS = 16
"""Of the paper's Figure 3."""
_ANALYSED = {
    "anchor_mass": ("attention on the anchors", _PERCENT, 100),
    "anchor_share": ("anchors' share of the attention on anchors and patches", "%", 100),
    "anchor_lift": ("lift of the anchors over their uniform share", "times uniform", 1),
    "anchor_above_patch": ("an anchor gets more than a patch", "% of pairs", 100),
    "anchor_minus_top": ("anchors minus the most attended patches, as many", _PERCENT, 100),
    "first_lift": ("lift of the first 4 anchors or patches", "times uniform", 1),
    "patch_mass": ("attention on the patches", _PERCENT, 100),
    "voco_mass": ("attention on <voco> itself", _PERCENT, 100),
    "text_mass": ("attention on text before <voco>", _PERCENT, 100),
    "entropy_bits": ("entropy of the attention", "bits", 1),
    "effective_keys": ("effective number of keys", "keys", 1),
    "top_10": ("share of the 10 % most attended patches in all patches", "%", 100),
    "patch_gini": ("Gini coefficient over patches", "0 to 1", 1),
}
"""Quantities of `htc-analyze attention`: words, unit, factor."""


def on_average(two: Two) -> None:
    """On average over images."""
    _overall(two)
    if shared := _quantities(two):
        told = "The same as on the page Attention."
        name = ui.select("Quantity", list(shared), "compared", disabled=len(shared) == 1, help=told)
        if two.same_cells:
            _by_layer(two, name, shared[name])
        else:
            _relative_depth(two, shared[name])
    _roles_and_images(two)
    _patches(two)
    _first_tokens(two)


def _by_layer(two: Two, name: str, quantity: att.Quantity) -> None:
    """By layer and head, and over the layers."""
    selection, unit = two.view.selection, _unit(quantity)
    cells, curve, band, words = _levels(two, quantity)
    left, right = ui.side_by_side([2, 3], "compare_levels", least=380)
    with left:
        given = two.words(f"{name}: where do the runs differ?", f"{unit} · {words}", unit)
        figure = made(figures.difference_heatmap, cells, mark=(selection.layer, selection.head), **given)
        draw(figure, "compare_heatmap", on_click=partial(ui.go_to_clicked, "compare_heatmap"))
        ui.how_to_read(
            f"Orange: more in this run; purple: less. Dot: significant at 5 % (Holm-corrected); "
            f"{int(cells.marked.sum()):,} of {cells.p.size:,} cells are. Click a cell to select its layer and head."
        )
    with right:
        given = two.words(f"{name}, over the layers", f"{selection.head_words} · {words}", unit)
        layers = np.arange(1, len(curve.estimate) + 1)
        draw(made(figures.difference_curve, curve, layers, band=band, **given), "compare_curve")
        ui.how_to_read(
            "Left: both runs. Right: their difference, with the 95 % interval of its mean over images (each layer by "
            "itself, not corrected)." + (" Grey: the differences of single images." if band is not None else "")
        )


def _quantities(two: Two) -> dict[str, att.Quantity]:
    mine, theirs = (att.quantities(header.shape.roles) for header in two.headers)
    return {name: quantity for name, quantity in mine.items() if name in theirs}


def _unit(quantity: att.Quantity) -> str:
    return _PERCENT if quantity.unit == "share of all attention" else quantity.unit


def _levels(two: Two, quantity: att.Quantity) -> tuple[Differences, Differences, att.Band | None, str]:
    """By layer and head (L, H); by layer at the selected head (L,), with how images differ; and of which images."""
    view, head = two.view, two.view.selection.head
    chosen, factor = view.selection.chosen, 100 if quantity.unit == "share of all attention" else 1
    if quantity.name == "anchor_mass":
        cells = data.mass_differences(view.key, two.key, chosen)
        own, others = two.mass(head)
        pairs, words = two.pairs, two.images
    else:
        mine, theirs, pairs = two.attention
        sections = _sections(two)
        if len(pairs.rows) < len(two.pairs.rows) and not chosen and sections is not None:
            cells = _analysed(sections, two, quantity, lambda part: part.by_head if isinstance(part, Levels) else None)
            curve = _analysed(sections, two, quantity, lambda part: part.by_layer)
            curve = curve if head is None else cells.map(lambda values: values[:, head])
            return cells.times(factor), curve.times(factor), None, _how(curve, sections)
        one_NLH, other_NLH = (quantity.of(sample.values) for sample in (mine, theirs))
        cells = pairs.differences(one_NLH, other_NLH)
        own, others = att.head_mean(one_NLH, head), att.head_mean(other_NLH, head)
        whole = len(pairs.rows) == len(two.pairs.rows)
        words = two.images if whole else f"{len(pairs.rows):,}, evenly spaced, of {two.images}"
    curve = pairs.differences(own, others)
    band = att.band((own - others) * factor) if pairs.paired else None
    return cells.times(factor), curve.times(factor), band, words


def _sections(two: Two) -> tuple[Attention, Attention] | None:
    """What `htc-analyze attention` left of each run; None where one has none."""
    mine, theirs = (data.sections(path, header).attention for path, header in zip(two.paths, two.headers, strict=True))
    return None if mine is None or theirs is None else (mine, theirs)


def _analysed(
    sections: tuple[Attention, Attention],
    two: Two,
    quantity: att.Quantity,
    level: Callable[[Levels | Difference], Intervals | None],
) -> Differences:
    """From what `htc-analyze attention` left of each run; paired where it was made `--against` the other one."""
    mine, theirs = (level(part) for section in sections if (part := quantity.found(section)) is not None)
    assert mine is not None and theirs is not None
    for own, against, sign in ((0, 1, 1), (1, 0, -1)):
        difference = quantity.difference(sections[own])
        ends = None if difference is None else level(difference)
        beside = data.made(two.paths[own], two.headers[own])["attention"].settings.get("against")
        if ends is not None and beside and same_run(beside, data.identity(two.headers[against])):
            lower, upper = sorted((sign * ends.lower, sign * ends.upper), key=lambda end: end.mean())
            return compare.of_interval(mine.estimate, theirs.estimate, [sign * ends.estimate, lower, upper])
    return compare.of_estimates(mine, theirs)


def _how(differences: Differences, sections: Sequence[Attention]) -> str:
    images = " and ".join(f"{section.images:,}" for section in sections)
    return f"htc-analyze, {images} images, {'paired' if differences.paired else 'taken as independent'}"


def _overall(two: Two) -> None:
    """One line a quantity: mean over images, layers and heads."""
    sections = _sections(two)
    chosen, by_name, how = two.view.selection.chosen, {}, {}
    if two.anchors:
        means = [values.mean(1) for values in two.mass(None)]
        pairs = two.pairs
        by_name["anchor_mass"] = pairs.differences(means[0], means[1])
        how["anchor_mass"] = two.images
    if sections is not None and not chosen:
        for name, (words, unit, _) in _ANALYSED.items():
            quantity = att.Quantity(name, words, unit, 0, 0)
            if name not in by_name and all(quantity.found(section) is not None for section in sections):
                overall = _analysed(sections, two, quantity, lambda levels: levels.overall)
                by_name[name] = overall.map(lambda end: end[0])
                how[name] = _how(by_name[name], sections)
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


def _relative_depth(two: Two, quantity: att.Quantity) -> None:
    """Curves of runs whose layers are not each other's."""
    mine, theirs, pairs = two.attention
    factor = 100 if quantity.unit == "share of all attention" else 1
    other_groups = pairs.groups if pairs.other_groups is None else pairs.other_groups
    curves = []
    for sample, groups in ((mine, pairs.groups), (theirs, other_groups)):
        values = quantity.of(sample.values).mean(2) * factor
        mean = compare.of_images(values, np.zeros_like(values), groups)
        curves.append((mean.estimate, mean.lower, mean.upper))
    read = "" if len(pairs.rows) == len(two.pairs.rows) else f"{len(pairs.rows):,} of "
    subtitle = f"mean over heads, with its 95 % interval · {read}{two.images}"
    words = two.words(f"{quantity.title}, over the depth", subtitle, _unit(quantity))
    draw(made(figures.two_curves, curves[0], curves[1], **words), "compare_depth")
    ui.how_to_read("Each run over its own layers; the last layer is at 100 %.")


def _roles_and_images(two: Two) -> None:
    selection = two.view.selection
    left, right = ui.side_by_side(2, "compare_roles", least=380)
    mine, theirs, pairs = two.attention
    unpaired = "" if pairs.paired else f" and {len(pairs.other_rows):,}"
    count = f"{len(pairs.rows):,}{unpaired} images{', unpaired' if unpaired else ''}"
    with left:
        if two.same_cells:
            by_role = {}
            for role in att.ROLES:
                if role in mine.mass or role in theirs.mass:
                    own, others = (
                        att.head_mean(of_run.mass[role], selection.head)
                        if role in of_run.mass
                        else np.zeros(of_run.by_layer_NLS.shape[:2], np.float32)
                        for of_run in (mine, theirs)
                    )
                    by_role[role] = pairs.differences(own, others).times(100)
            subtitle = f"{selection.head_words} · {count}"
            draw(made(figures.role_differences, by_role, subtitle=subtitle, names=two.names), "compare_roles")
            ui.how_to_read("What one kind of key gains, the others lose: the lines sum to 0. Bars: 95 % intervals.")
    with right:
        if two.pairs.paired and two.anchors:
            own, others, words = _masses(two)
            subtitle = f"attention on the anchors, {words} · {len(own):,} images"
            told: dict[str, Any] = {"names": two.names, "unit": _PERCENT, "subtitle": subtitle}
            figure = made(figures.pairs_scatter, own, others, two.pairs.rows, shown=selection.image, **told)
            draw(figure, "compare_scatter", on_click=_picked)
            share = float((own > others).mean())
            ui.how_to_read(
                f"Above the line this run looks at the anchors more: {share:.0%} of images. Click a point to show its "
                "image under *One image* and on all pages."
            )


def _masses(two: Two) -> tuple[np.ndarray, np.ndarray, str]:
    """(n,) of each run: attention on the anchors in %, at the selected layer and head; in words."""
    layer, head, words = _selected(two)
    own, others = two.mass(head)
    if layer is None:
        return own.mean(1) * 100, others.mean(1) * 100, words
    return own[:, layer] * 100, others[:, layer] * 100, words


def _selected(two: Two) -> tuple[int | None, int | None, str]:
    """The selected layer and head, where both runs have them; otherwise the mean over all."""
    selection = two.view.selection
    if two.same_cells:
        return selection.layer, selection.head, selection.words
    return None, None, "mean over layers and heads"


def _patches(two: Two) -> None:
    """The average map of patches of both."""
    layer, head, words = _selected(two)
    mine, theirs, pairs = two.attention
    rows = [sample.select(layer, head) for sample in (mine, theirs)]
    maps = _both_maps(two, [values.mean(0) for values in rows])
    if maps is None:
        return
    patches = [
        values[:, att.role_mask(header.shape.roles, "patch")] for values, header in zip(rows, two.headers, strict=True)
    ]
    differences = pairs.differences(patches[0], patches[1])
    shape = two.view.header.shape
    marked_S = np.zeros(shape.keys)
    marked_S[att.role_mask(shape.roles, "patch")] = differences.marked
    marked = _map(marked_S, two.view.header)
    assert marked is not None
    sample_words = f"{len(pairs.rows):,} images, paired" if pairs.paired else "unpaired"
    subtitle = f"{words} · {_PERCENT}, a patch · {sample_words}"
    given = two.words("Where in the image do the runs look?", subtitle, _PERCENT)
    draw(made(figures.two_maps, *maps, marked=marked > 0, **given), "compare_patches")
    ui.how_to_read(
        f"The first two maps share a scale. Dot: significant at 5 % (Holm-corrected); "
        f"{int(differences.marked.sum()):,} of {differences.p.size:,} patches are."
    )


def _both_maps(two: Two, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """Of each run's (S,), in %; None, and why, where they have no patches at the same places."""
    mine, theirs = (_map(values * 100, header) for values, header in zip(rows, two.headers, strict=True))
    if mine is None or theirs is None or mine.shape != theirs.shape:
        st.info("The runs have different grids of patches, so their maps are not compared.")
        return None
    return mine, theirs


def _map(values_S: np.ndarray, header: data.Header) -> np.ndarray | None:
    shape = header.shape
    return att.patch_map(values_S, shape.roles, shape.rows, shape.cols)


def _first_tokens(two: Two) -> None:
    """The paper's Figure 3, as a difference."""
    shapes = [header.shape for header in two.headers]
    tokens = [att.token_names(shape.roles, shape.rows, shape.cols, _TOKENS) for shape in shapes]
    if not two.same_cells or tokens[0] != tokens[1]:
        st.caption("The runs have different first tokens, so the attention on them is not compared.")
        return
    head = two.view.selection.head
    mine, theirs, pairs = two.attention
    ends = []
    for sample, shape in zip((mine, theirs), shapes, strict=True):
        keys = att.first_hybrid(shape.roles, _TOKENS)
        values = sample.by_layer_NLS if head is None else sample.rows_NLHS[:, :, head]
        ends.append(values[..., keys].astype(np.float32))
    differences = pairs.differences(ends[0], ends[1]).times(100)
    title = "How does attention on the first tokens differ? (the paper's Figure 3)"
    words = two.words(title, f"{two.view.selection.head_words} · {len(pairs.rows):,} images", _PERCENT)
    figure = made(
        figures.difference_heatmap,
        differences.map(lambda values: values.T),
        columns=tokens[0],
        axes=("decoder layer", "token"),
        mark=(None, two.view.selection.layer),
        **words,
    )
    draw(figure, "compare_tokens")
    ui.how_to_read(
        f"The anchors and the first patches. Dot: significant at 5 % (Holm-corrected, {differences.p.size:,} cells)."
    )


def _picked() -> None:
    for point in points("compare_scatter")[:1]:
        if "customdata" in point:
            ui.go_to_image(int(np.ravel(point["customdata"])[0]))


def one_image(two: Two) -> None:
    view = two.view
    image, header = view.selection.image, view.header
    row = data.row_of(two.key).get(header.ids[image])
    if row is None:
        st.info(f"{ui.plain(two.names[1])} has no image {ui.plain(header.ids[image])}; choose another one.")
        return
    mine, theirs = data.image_record(view.key, image), data.image_record(two.key, row)
    layer, head, words = _selected(two)
    picture, maps = ui.side_by_side([1, 5], "compare_picture", least=150)
    with picture:
        st.image(mine.thumbnail, width=180, alt=f"thumbnail of image {header.ids[image]}")
        st.caption(f"Image {image + 1:,} of {len(header.ids):,} · id **{ui.plain(header.ids[image])}**")
        st.caption(ui.plain(header.paths[image]))
        if not np.array_equal(mine.thumbnail, theirs.thumbnail):
            st.warning("The other run has a different image with this id:")
            st.image(theirs.thumbnail, width=180, alt="the other run's thumbnail")
    with maps:
        rows = [att.select(record.attention, layer, head) for record in (mine, theirs)]
        maps_of_both = _both_maps(two, rows)
        if maps_of_both is not None:
            subtitle = f"{words} · {_PERCENT}, a patch · 1 image, so there is no interval"
            given = two.words("Where do the runs look in this image?", subtitle, _PERCENT)
            draw(made(figures.two_maps, *maps_of_both, image=mine.thumbnail, **given), "compare_overlay")
            ui.how_to_read(
                "The first two maps share a scale. Difference: orange where this run looks more, purple where less."
            )
            _handed_over(two, mine.thumbnail)
    if not two.anchors:
        st.info("One of the runs has no anchors, so anchors are not compared.")
        return
    bars, cells, place = ui.side_by_side(3, "compare_anchors", least=300)
    with bars:
        anchors = [
            values[att.role_mask(run.shape.roles, "anchor")] * 100
            for values, run in zip(rows, two.headers, strict=True)
        ]
        if len(anchors[0]) == len(anchors[1]):
            uniform = 100 / header.shape.keys
            subtitle = f"{words} · 1 image"
            figure = made(figures.anchors_of_both, anchors[0], anchors[1], uniform, subtitle=subtitle, names=two.names)
            draw(figure, "compare_anchors")
            ui.how_to_read("Dashed: the share of each key if attention were uniform.")
    with cells:
        if two.same_cells:
            own, others = mine.anchor_mass * 100, theirs.anchor_mass * 100
            unknown = np.full(own.shape, np.nan)
            differences = Differences(own, others, own - others, unknown, unknown, unknown, True)
            given = two.words("Anchors, by layer and head", f"{_PERCENT} · 1 image", _PERCENT)
            figure = made(figures.difference_heatmap, differences, mark=(layer, head), **given)
            draw(figure, "compare_image_heatmap", on_click=partial(ui.go_to_clicked, "compare_image_heatmap"))
            ui.how_to_read("Orange: this run gives the anchors more. Click a cell to select its layer and head.")
    with place:
        own, others, _ = _masses(two)
        own_place = np.flatnonzero(two.pairs.rows == image)
        shown = float((own - others)[own_place[0]]) if len(own_place) else None
        subtitle, unit = f"attention on the anchors, {words}<br>{len(own):,} images", "% points"
        told = {"title": "This image among all", "subtitle": subtitle, "unit": unit}
        draw(made(figures.difference_histogram, own - others, shown, **told), "compare_histogram")
        ui.how_to_read("The difference of the two runs in each image; the thin line is 0.")


def _handed_over(two: Two, thumbnail: np.ndarray) -> None:
    """Attention x value in this picture, where both runs have it."""
    name, layer = two.view.header.ids[two.view.selection.image], _selected(two)[0]
    maps = []
    for path, header in zip(two.paths, two.headers, strict=True):
        section = data.sections(path, header).contributions
        if section is not None and name in section.images:
            share_LS = section.share[section.images.index(name)]
            maps.append(_map((share_LS.mean(0) if layer is None else share_LS[layer]) * 100, header))
    if len(maps) < 2 or maps[0] is None or maps[1] is None:
        st.caption(
            "Contributions (attention × value) are shown for images for which both runs have them: "
            "`htc-analyze contributions --images` sets how many."
        )
        return
    words = "mean over layers" if layer is None else f"layer {layer + 1}"
    subtitle = f"attention × value · {words}, all heads · 1 image"
    given = two.words("What does each patch contribute in this image?", subtitle, "% of the update")
    figure = made(figures.two_maps, maps[0], maps[1], image=thumbnail, signed=True, **given)
    draw(figure, "compare_handed_over")
    ui.how_to_read("The share of the token's update that comes from each patch; purple works against it.")
