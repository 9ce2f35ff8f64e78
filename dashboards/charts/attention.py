"""Charts of what <voco> looked at: over images, in the paper's Figure 3, and in one image.

In all of them `layer` and `head` are counted from 1, None is the mean; `images` are those that averages are over, all
where there are none.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from htc_probe.analysis.attention import rows as att
from htc_probe.analysis.sections import Attention
from htc_probe.dashboards import data, figures
from htc_probe.dashboards.charts.source import Nothing, Source, head_words, source, words
from htc_probe.extract.errors import UserError

_FIRST_TOKENS = 16  # of the paper's Figure 3
_FIRST_IMAGES = 16

Images = Sequence[int | str]


def heads(
    run: Path | str,
    *,
    quantity: str,
    image: int | str | None = None,
    images: Images = (),
    layer: int | None = None,
    head: int | None = None,
) -> go.Figure:
    """One number of each layer and head, such as `Anchors` or `Entropy`: of one `image`, or the mean over `images`;
    `layer` and `head` are outlined.
    """
    of, rows = source(run), source(run).rows(images)
    quantities = att.quantities(of.shape.roles)
    if quantity not in quantities:
        raise UserError(f"{of.path.name} has no quantity {quantity!r}; expected one of {', '.join(quantities)}")
    drawn, section = quantities[quantity], _analysed(of, images)
    n, spread = 1, None
    if image is not None:
        record = data.image_record(of.key, of.row(image))
        value_LH = drawn.of(att.measure(record.attention, of.shape.roles) | {"anchor_mass": record.anchor_mass})
    elif section is not None and (found := drawn.found(section)) is not None:
        value_LH, n = found.estimate, section.images
        spread = "95% interval of the mean", att.Band(found.lower, found.upper)
    elif drawn.name == "anchor_mass":
        value_LH, band = data.anchor_cells(of.key, rows)
        n, spread = len(rows), (figures.BAND, band)
    else:
        average = data.average(of.key, rows)
        value_nLH = drawn.of(average.values)
        value_LH, n, spread = np.nanmean(value_nLH, axis=0), average.n, (figures.BAND, att.band(value_nLH))
    return figures.head_heatmap(value_LH, drawn, n=n, spread=spread, mark=of.cell(layer, head))


def _analysed(of: Source, images: Images) -> Attention | None:
    """Means of `htc-analyze`, which are over all images."""
    return None if len(images) else of.sections.attention


def curve(
    run: Path | str, *, image: int | str | None = None, images: Images = (), head: int | None = None, log: bool = False
) -> go.Figure:
    """What anchors and patches get over the layers: in one `image`, or the mean over `images`. log: a logarithmic
    axis.
    """
    of, rows = source(run), source(run).rows(images)
    roles, place = of.shape.roles, of.cell(None, head)[1]
    uniform = {role: roles.count(role) / len(roles) for role in ("anchor", "patch") if role in roles}
    curves: dict[str, figures.Curve] = {}
    if image is not None:
        attention_LHS = data.image_record(of.key, of.row(image)).attention
        for role, mass_LH in att.role_mass(attention_LHS, roles).items():
            if role in uniform:
                curves[role] = figures.Curve(att.head_mean(mass_LH, place), uniform[role])
    else:
        if "anchor" in uniform:
            mean_L, band = data.anchor_curve(of.key, rows, place)
            curves["anchor"] = figures.Curve(mean_L, uniform["anchor"], len(rows), band, len(rows))
        average, section = data.average(of.key, rows), _analysed(of, images)
        patch_nL = att.head_mean(average.values["patch_mass"], place)
        mean_L, n = patch_nL.mean(axis=0), average.n
        if section is not None:
            mean_L, n = att.head_mean(section.patch_mass.estimate, place), section.images
        curves["patch"] = figures.Curve(mean_L, uniform["patch"], n, att.band(patch_nL), average.n)
    return figures.share_curve(curves, selection=head_words(head), log=log)


def roles(
    run: Path | str, *, image: int | str | None = None, images: Images = (), head: int | None = None
) -> go.Figure:
    """All attention by what it falls on, over the layers: of one `image`, or the mean over `images`."""
    of, n = source(run), 1
    if image is not None:
        attention_LHS = data.image_record(of.key, of.row(image)).attention
    else:
        attention_LHS, n = _mean(of, images)
    mean_LS = att.head_mean(attention_LHS.swapaxes(1, 2), of.cell(None, head)[1])
    mass = {role: mass_L1[:, 0] for role, mass_L1 in att.role_mass(mean_LS[:, None], of.shape.roles).items()}
    return figures.role_bars(mass, selection=head_words(head), n=n)


def distribution(run: Path | str, *, image: int | str, layer: int | None = None, head: int | None = None) -> go.Figure:
    """How many images give the anchors how much, and where one `image` is among them."""
    of, row = source(run), source(run).row(image)
    uniform = _with_anchors(of).shape.anchors / of.shape.keys
    value_N = data.anchor_values(of.key, *of.cell(layer, head))
    return figures.distribution(value_N, float(value_N[row]), uniform, selection=words(layer, head), image=row + 1)


def mean_map(run: Path | str, *, images: Images = (), layer: int | None = None, head: int | None = None) -> go.Figure:
    """What each patch gets, the mean over `images`."""
    of = source(run)
    attention_LHS, n = _mean(of, images)
    patch_RC = _patch_map(of, att.select(attention_LHS, *of.cell(layer, head)))
    return figures.patch_overlay(patch_RC, 1 / of.shape.keys, selection=words(layer, head), n=n)


def first_tokens(
    run: Path | str,
    *,
    images: Images = (),
    layer: int | None = None,
    head: int | None = None,
    shown: int | str | None = None,
) -> go.Figure:
    """The paper's Figure 3: what `images`, the first 16 where there are none, give to the first 16 hybrid tokens; the
    one that is `shown` is outlined.
    """
    of = source(run)
    rows = of.rows(images)[: len(images) or _FIRST_IMAGES]
    share_NF, shape = first_shares(of, rows, layer, head), of.shape
    return figures.first_tokens(
        share_NF,
        att.token_names(shape.roles, shape.rows, shape.cols, _FIRST_TOKENS),
        [int(row) + 1 for row in rows],
        [of.header.ids[row] for row in rows],
        1 / shape.keys,
        selection=words(layer, head),
        anchors=min(shape.anchors, _FIRST_TOKENS),
        shown=None if shown is None else of.row(shown) + 1,
    )


def first_shares(of: Source, rows: np.ndarray, layer: int | None, head: int | None) -> np.ndarray:
    """(n, F) what these images give to the first tokens."""
    token_NLHF = data.first_tokens(of.key, rows.tolist(), _FIRST_TOKENS)
    return np.stack([att.select(token_LHF, *of.cell(layer, head)) for token_LHF in token_NLHF])


def overlay(
    run: Path | str, *, image: int | str, layer: int | None = None, head: int | None = None, weighted: bool = False
) -> go.Figure:
    """What each patch of one image gets, over the image; weighted: what it contributes, attention × value, all heads
    together.
    """
    of, row = source(run), source(run).row(image)
    patch_RC = _patch_map(of, shares(of, row, layer, head, weighted))
    title, unit = ("Attention × value", "of the update") if weighted else ("Attention", "of all attention")
    told: dict[str, Any] = {"title": f"{title} on the patches", "of": unit, "signed": weighted}
    told["selection"] = _words(layer, head, weighted)
    return figures.patch_overlay(patch_RC, 1 / of.shape.keys, image=data.thumbnail(of.key, row), **told)


def anchors(
    run: Path | str, *, image: int | str, layer: int | None = None, head: int | None = None, weighted: bool = False
) -> go.Figure:
    """The same of each anchor."""
    of = _with_anchors(source(run))
    anchor_A = shares(of, of.row(image), layer, head, weighted)[att.role_mask(of.shape.roles, "anchor")]
    unit = "share of the update" if weighted else "share of all attention"
    return figures.anchor_bars(anchor_A, 1 / of.shape.keys, selection=_words(layer, head, weighted), of=unit)


def shares(of: Source, row: int, layer: int | None, head: int | None, weighted: bool) -> np.ndarray:
    """(S,) of the attention of one image; `weighted`: of the update of <voco>. Raises UserError where that was not
    measured.
    """
    place, head_place = of.cell(layer, head)
    if not weighted:
        return att.select(data.image_record(of.key, row).attention, place, head_place)
    section, name = of.analysed(of.sections.contributions, "contributions"), of.header.ids[row]
    if name not in section.images:
        raise Nothing(f"{name} has no contributions; they were computed for {', '.join(section.images)}")
    share_LS = section.share[section.images.index(name)]
    return share_LS.mean(axis=0) if place is None else share_LS[place]


def _words(layer: int | None, head: int | None, weighted: bool) -> str:
    if not weighted:
        return words(layer, head)
    return "mean over layers, all heads" if layer is None else f"layer {layer}, all heads"


def _mean(of: Source, images: Images) -> tuple[np.ndarray, int]:
    """(L, H, S) and the number of images that it is the mean of."""
    if (section := _analysed(of, images)) is not None:
        return section.mean_attention, section.images
    average = data.average(of.key, of.rows(images))
    return average.attention, average.n


def _patch_map(of: Source, row_S: np.ndarray) -> np.ndarray:
    """(R, C) of the patches. Raises Nothing where they have no positions."""
    patch_RC = att.patch_map(row_S, of.shape.roles, of.shape.rows, of.shape.cols)
    if patch_RC is None:
        raise Nothing(f"{of.path.name} has no patch positions, so attention cannot be drawn as a map")
    return patch_RC


def _with_anchors(of: Source) -> Source:
    if not of.shape.anchors:
        raise Nothing(f"the model of {of.path.name} has no anchors")
    return of
