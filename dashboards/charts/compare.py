"""Charts of where <voco> looks in two runs, this one minus the other: on average over images, and in one image.

In all of them `images` are those of the first run that are looked at, all where there are none; `layer` and `head` are
counted from 1, None is the mean.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from htc_probe.analysis import compare
from htc_probe.analysis.attention import rows as att
from htc_probe.analysis.compare import Differences
from htc_probe.analysis.results import same_run
from htc_probe.analysis.sections.attention import Attention, Difference, Levels
from htc_probe.analysis.stats.draws import Intervals
from htc_probe.dashboards import data, figures
from htc_probe.dashboards.charts.source import Nothing, Source, head_words, words
from htc_probe.dashboards.charts.two import Two, two
from htc_probe.extract.errors import UserError

PERCENT = "% of all attention"
_TOKENS = 16
"""Of the paper's Figure 3."""

Images = Sequence[int | str]


def heads(
    run: Path | str,
    other: Path | str,
    *,
    quantity: str,
    images: Images = (),
    layer: int | None = None,
    head: int | None = None,
) -> go.Figure:
    """The difference of one number of each layer and head, such as `Anchors`; `layer` and `head` are outlined."""
    both = two(run, other, images)
    drawn = _quantity(both, quantity)
    cells, _, _, which = levels(both, drawn, head)
    given = both.words(f"{quantity}: where do the runs differ?", f"{_unit(drawn)} · {which}", _unit(drawn))
    return figures.difference_heatmap(cells, mark=_same(both).one.cell(layer, head), **given)


def curve(
    run: Path | str, other: Path | str, *, quantity: str, images: Images = (), head: int | None = None
) -> go.Figure:
    """Both runs over the layers, and their difference with its interval."""
    both = two(run, other, images)
    drawn = _quantity(both, quantity)
    _, over, band, which = levels(_same(both), drawn, head)
    given = both.words(f"{quantity}, over the layers", f"{head_words(head)} · {which}", _unit(drawn))
    return figures.difference_curve(over, np.arange(1, len(over.estimate) + 1), band=band, **given)


def depth(run: Path | str, other: Path | str, *, quantity: str, images: Images = ()) -> go.Figure:
    """Curves of runs whose layers are not each other's."""
    both = two(run, other, images)
    drawn = _quantity(both, quantity)
    mine, theirs, pairs = both.attention
    factor = 100 if drawn.unit == "share of all attention" else 1
    other_groups = pairs.groups if pairs.other_groups is None else pairs.other_groups
    curves = []
    for sample, groups in ((mine, pairs.groups), (theirs, other_groups)):
        values = drawn.of(sample.values).mean(2) * factor
        mean = compare.of_images(values, np.zeros_like(values), groups)
        curves.append((mean.estimate, mean.lower, mean.upper))
    read = "" if len(pairs.rows) == len(both.pairs.rows) else f"{len(pairs.rows):,} of "
    subtitle = f"mean over heads, with its 95% interval · {read}{both.images}"
    given = both.words(f"{drawn.title}, over the depth", subtitle, _unit(drawn))
    return figures.two_curves(curves[0], curves[1], **given)


def roles(run: Path | str, other: Path | str, *, images: Images = (), head: int | None = None) -> go.Figure:
    """What one kind of key gains, the others lose, over the layers."""
    both = _same(two(run, other, images))
    mine, theirs, pairs = both.attention
    place = both.cell(None, head)[1]
    by_role = {}
    for role in att.ROLES:
        if role in mine.mass or role in theirs.mass:
            own, others = (
                att.head_mean(of_run.mass[role], place)
                if role in of_run.mass
                else np.zeros(of_run.by_layer_NLS.shape[:2], np.float32)
                for of_run in (mine, theirs)
            )
            by_role[role] = pairs.differences(own, others).times(100)
    unpaired = "" if pairs.paired else f" and {len(pairs.other_rows):,}"
    count = f"{len(pairs.rows):,}{unpaired} images{', unpaired' if unpaired else ''}"
    return figures.role_differences(by_role, subtitle=f"{head_words(head)} · {count}", names=both.names)


def scatter(
    run: Path | str,
    other: Path | str,
    *,
    images: Images = (),
    layer: int | None = None,
    head: int | None = None,
    image: int | str | None = None,
) -> go.Figure:
    """Attention on the anchors in each image of both runs; `image` has a ring."""
    both = _anchors(two(run, other, images))
    own, others = masses(both, layer, head)
    subtitle = f"attention on the anchors, {_words(both, layer, head)} · {len(own):,} images"
    told: dict[str, Any] = {"names": both.names, "unit": PERCENT, "subtitle": subtitle}
    shown = -1 if image is None else both.one.row(image)
    return figures.pairs_scatter(own, others, both.pairs.rows, shown=shown, **told)


def patches(
    run: Path | str, other: Path | str, *, images: Images = (), layer: int | None = None, head: int | None = None
) -> go.Figure:
    """What each patch gets in both runs on average, and where they differ."""
    both = two(run, other, images)
    mine, theirs, pairs = both.attention
    rows = [sample.select(*both.cell(layer, head)) for sample in (mine, theirs)]
    maps = _both_maps(both, [values.mean(0) for values in rows])
    shape = both.one.shape
    marked_S = np.zeros(shape.keys)
    marked_S[att.role_mask(shape.roles, "patch")] = patch_differences(both, layer, head).marked
    marked = _map(marked_S, both.one)
    assert marked is not None
    sample_words = f"{len(pairs.rows):,} images, paired" if pairs.paired else "unpaired"
    subtitle = f"{_words(both, layer, head)} · {PERCENT}, a patch · {sample_words}"
    given = both.words("Where in the image do the runs look?", subtitle, PERCENT)
    return figures.two_maps(*maps, marked=marked > 0, **given)


def patch_differences(both: Two, layer: int | None, head: int | None) -> Differences:
    """(P,) of what each patch gets."""
    mine, theirs, pairs = both.attention
    of_patches = [
        sample.select(*both.cell(layer, head))[:, att.role_mask(header.shape.roles, "patch")]
        for sample, header in zip((mine, theirs), both.headers, strict=True)
    ]
    return pairs.differences(of_patches[0], of_patches[1])


def tokens(
    run: Path | str, other: Path | str, *, images: Images = (), layer: int | None = None, head: int | None = None
) -> go.Figure:
    """The paper's Figure 3 as a difference: attention on the first tokens, over the layers; `layer` is outlined."""
    both = two(run, other, images)
    names = _first_tokens(both)[0]
    differences, pairs = token_differences(both, head), both.attention[2]
    title = "How does attention on the first tokens differ? (the paper's Figure 3)"
    return figures.difference_heatmap(
        differences.map(lambda values: values.T),
        columns=names,
        axes=("decoder layer", "token"),
        mark=(None, both.one.cell(layer, None)[0]),
        **both.words(title, f"{head_words(head)} · {len(pairs.rows):,} images", PERCENT),
    )


def _first_tokens(both: Two) -> list[list[str]]:
    """Names of both runs' first tokens, which are the same. Raises Nothing where they are not."""
    shapes = [header.shape for header in both.headers]
    names = [att.token_names(shape.roles, shape.rows, shape.cols, _TOKENS) for shape in shapes]
    if not both.same_cells or names[0] != names[1]:
        raise Nothing("The runs have different first tokens, so the attention on them is not compared.")
    return names


def token_differences(both: Two, head: int | None) -> Differences:
    """(L, F) of what the first tokens get."""
    mine, theirs, pairs = both.attention
    place, ends = both.cell(None, head)[1], []
    for sample, header in zip((mine, theirs), both.headers, strict=True):
        keys = att.first_hybrid(header.shape.roles, _TOKENS)
        values = sample.by_layer_NLS if place is None else sample.rows_NLHS[:, :, place]
        ends.append(values[..., keys].astype(np.float32))
    return pairs.differences(ends[0], ends[1]).times(100)


# ---- one image


def overlay(
    run: Path | str, other: Path | str, *, image: int | str, layer: int | None = None, head: int | None = None
) -> go.Figure:
    """What each patch of one image gets in both runs, over the image."""
    both = two(run, other)
    rows = _of_image(both, image, layer, head)
    subtitle = f"{_words(both, layer, head)} · {PERCENT}, a patch · 1 image, so there is no interval"
    given = both.words("Where do the runs look in this image?", subtitle, PERCENT)
    return figures.two_maps(*_both_maps(both, rows), image=_thumbnail(both, image), **given)


def handed_over(run: Path | str, other: Path | str, *, image: int | str, layer: int | None = None) -> go.Figure:
    """What each patch contributes to the update of <voco> in one image, attention × value."""
    both = two(run, other)
    name, place = both.one.header.ids[both.one.row(image)], both.cell(layer, None)[0]
    maps = []
    for of in (both.one, both.other):
        section = of.sections.contributions
        if section is not None and name in section.images:
            share_LS = section.share[section.images.index(name)]
            maps.append(_map((share_LS.mean(0) if place is None else share_LS[place]) * 100, of))
    if len(maps) < 2 or maps[0] is None or maps[1] is None:
        raise Nothing(f"contributions of {name} (attention × value) were not computed for both runs")
    which = "mean over layers" if place is None else f"layer {place + 1}"
    subtitle = f"attention × value · {which}, all heads · 1 image"
    given = both.words("What does each patch contribute in this image?", subtitle, "% of the update")
    return figures.two_maps(maps[0], maps[1], image=_thumbnail(both, image), signed=True, **given)


def anchors(
    run: Path | str, other: Path | str, *, image: int | str, layer: int | None = None, head: int | None = None
) -> go.Figure:
    """What each anchor of one image gets in both runs."""
    both = two(run, other)
    of_anchors = [
        values[att.role_mask(header.shape.roles, "anchor")] * 100
        for values, header in zip(_of_image(both, image, layer, head), both.headers, strict=True)
    ]
    if len(of_anchors[0]) != len(of_anchors[1]) or not len(of_anchors[0]):
        raise Nothing("the runs have different numbers of anchors, or none")
    uniform, subtitle = 100 / both.one.shape.keys, f"{_words(both, layer, head)} · 1 image"
    return figures.anchors_of_both(of_anchors[0], of_anchors[1], uniform, subtitle=subtitle, names=both.names)


def image_heads(
    run: Path | str, other: Path | str, *, image: int | str, layer: int | None = None, head: int | None = None
) -> go.Figure:
    """The difference of attention on the anchors in one image, by layer and head, which are outlined."""
    both = _same(two(run, other))
    own, others = (record.anchor_mass * 100 for record in _records(both, image))
    unknown = np.full(own.shape, np.nan)
    differences = Differences(own, others, own - others, unknown, unknown, unknown, True)
    given = both.words("Anchors, by layer and head", f"{PERCENT} · 1 image", PERCENT)
    return figures.difference_heatmap(differences, mark=both.cell(layer, head), **given)


def histogram(
    run: Path | str,
    other: Path | str,
    *,
    image: int | str,
    images: Images = (),
    layer: int | None = None,
    head: int | None = None,
) -> go.Figure:
    """How far the two runs differ in each image in the attention on the anchors, and in one of them."""
    both = _anchors(two(run, other, images))
    own, others = masses(both, layer, head)
    here = np.flatnonzero(both.pairs.rows == both.one.row(image))
    shown = float((own - others)[here[0]]) if len(here) else None
    subtitle = f"attention on the anchors, {_words(both, layer, head)}<br>{len(own):,} images"
    told = {"title": "This image among all", "subtitle": subtitle, "unit": "% points"}
    return figures.difference_histogram(own - others, shown, **told)


# ---- what is drawn


def quantities(both: Two) -> dict[str, att.Quantity]:
    """Those that both runs have."""
    mine, theirs = (att.quantities(header.shape.roles) for header in both.headers)
    return {name: quantity for name, quantity in mine.items() if name in theirs}


def levels(
    both: Two, quantity: att.Quantity, head: int | None
) -> tuple[Differences, Differences, att.Band | None, str]:
    """By layer and head (L, H); by layer at one head (L,), with how images differ; and of which images."""
    head, chosen, factor = (
        both.cell(None, head)[1],
        both.chosen,
        100 if quantity.unit == "share of all attention" else 1,
    )
    if quantity.name == "anchor_mass":
        cells = data.mass_differences(both.one.key, both.other.key, chosen)
        own, others = both.mass(head)
        pairs, words = both.pairs, both.images
    else:
        mine, theirs, pairs = both.attention
        sections = analysed(both)
        if len(pairs.rows) < len(both.pairs.rows) and not chosen and sections is not None:
            cells = of_analysis(
                sections, both, quantity, lambda part: part.by_head if isinstance(part, Levels) else None
            )
            over = of_analysis(sections, both, quantity, lambda part: part.by_layer)
            over = over if head is None else cells.map(lambda values: values[:, head])
            return cells.times(factor), over.times(factor), None, how(over, sections)
        one_NLH, other_NLH = (quantity.of(sample.values) for sample in (mine, theirs))
        cells = pairs.differences(one_NLH, other_NLH)
        own, others = att.head_mean(one_NLH, head), att.head_mean(other_NLH, head)
        whole = len(pairs.rows) == len(both.pairs.rows)
        words = both.images if whole else f"{len(pairs.rows):,}, evenly spaced, of {both.images}"
    over = pairs.differences(own, others)
    band = att.band((own - others) * factor) if pairs.paired else None
    return cells.times(factor), over.times(factor), band, words


def analysed(both: Two) -> tuple[Attention, Attention] | None:
    """What `htc-analyze attention` left of each run; None where one has none."""
    mine, theirs = (
        data.sections(path, header).attention for path, header in zip(both.paths, both.headers, strict=True)
    )
    return None if mine is None or theirs is None else (mine, theirs)


def of_analysis(
    sections: tuple[Attention, Attention],
    both: Two,
    quantity: att.Quantity,
    level: Callable[[Levels | Difference], Intervals | None],
) -> Differences:
    """From what `htc-analyze attention` left of each run; paired where it was made `--against` the other one."""
    mine, theirs = (level(part) for section in sections if (part := quantity.found(section)) is not None)
    assert mine is not None and theirs is not None
    for own, against, sign in ((0, 1, 1), (1, 0, -1)):
        difference = quantity.difference(sections[own])
        ends = None if difference is None else level(difference)
        beside = data.made(both.paths[own], both.headers[own])["attention"].settings.get("against")
        if ends is not None and beside and same_run(beside, data.identity(both.headers[against])):
            lower, upper = sorted((sign * ends.lower, sign * ends.upper), key=lambda end: end.mean())
            return compare.of_interval(mine.estimate, theirs.estimate, [sign * ends.estimate, lower, upper])
    return compare.of_estimates(mine, theirs)


def how(differences: Differences, sections: Sequence[Attention]) -> str:
    images = " and ".join(f"{section.images:,}" for section in sections)
    return f"htc-analyze, {images} images, {'paired' if differences.paired else 'taken as independent'}"


def masses(both: Two, layer: int | None, head: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(n,) of each run: attention on the anchors in %, at a layer and head where both runs have them."""
    place, head_place = both.cell(layer, head)
    own, others = both.mass(head_place)
    if place is None:
        return own.mean(1) * 100, others.mean(1) * 100
    return own[:, place] * 100, others[:, place] * 100


def _quantity(both: Two, name: str) -> att.Quantity:
    known = quantities(both)
    if name not in known:
        raise UserError(f"the runs share no quantity {name!r}; expected one of {', '.join(known)}")
    return known[name]


def _unit(quantity: att.Quantity) -> str:
    return PERCENT if quantity.unit == "share of all attention" else quantity.unit


def _words(both: Two, layer: int | None, head: int | None) -> str:
    return words(layer, head) if both.same_cells else words(None, None)


def _same(both: Two) -> Two:
    if not both.same_cells:
        raise Nothing("the runs have different numbers of layers or heads, so no layers can be paired")
    return both


def _anchors(both: Two) -> Two:
    if not both.anchors or not both.pairs.paired:
        raise Nothing("the runs share no images with anchors")
    return both


def _records(both: Two, image: int | str) -> list[data.ImageRecord]:
    row = both.one.row(image)
    name = both.one.header.ids[row]
    beside = data.row_of(both.other.key).get(name)
    if beside is None:
        raise Nothing(f"{both.other.path.name} has no image {name}")
    return [data.image_record(both.one.key, row), data.image_record(both.other.key, beside)]


def _of_image(both: Two, image: int | str, layer: int | None, head: int | None) -> list[np.ndarray]:
    """(S,) of each run."""
    return [att.select(record.attention, *both.cell(layer, head)) for record in _records(both, image)]


def _thumbnail(both: Two, image: int | str) -> np.ndarray:
    return data.thumbnail(both.one.key, both.one.row(image))


def _both_maps(both: Two, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of each run's (S,), in %. Raises Nothing where they have no patches at the same places."""
    mine, theirs = (_map(values * 100, of) for values, of in zip(rows, (both.one, both.other), strict=True))
    if mine is None or theirs is None or mine.shape != theirs.shape:
        raise Nothing("The runs have different grids of patches, so their maps are not compared.")
    return mine, theirs


def _map(values_S: np.ndarray, of: Source) -> np.ndarray | None:
    return att.patch_map(values_S, of.shape.roles, of.shape.rows, of.shape.cols)
