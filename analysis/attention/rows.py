"""Rows of `<voco>`'s attention: what they are like, where they look by chance, and means over a run's images.

Knows arrays and runs; not models or figures. Attention says what is read, not what it is worth: see `attention.updates`
and `causes.knockouts` for that. A row runs over the S keys that `<voco>` reads (prefix, anchors, patches, text after
the image, `<voco>` itself) and sums to 1; 16-bit storage moves that by up to 5e-4, and `measure` brings it back.

Legend: N images, B images of a block, L layers, H heads, S keys of `<voco>`, A anchors, P patches, F first tokens, R
rows and C columns of the patch grid.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from htc_probe.analysis.sections.attention import Attention, Difference, Differences, Levels, LevelsEach
from htc_probe.analysis.stats import draws
from htc_probe.extract.store import Run
from htc_probe.probes.scores.intervals import COVERAGE, Groups

ROLES = ("prefix", "anchor", "patch", "text", "voco")
PERCENTILES = (10, 90)
_TOP = 10  # per cent of the patches
_FIRST = 4  # hybrid tokens: as many as the paper has anchors
_BLOCK = 2**22  # numbers of attention read at a time
_STORED = 2.0**-11  # relative precision of float16


class Band(NamedTuple):
    """The middle 80% of images: how much images differ, not how sure a mean is."""

    low: np.ndarray
    """10th percentile."""
    high: np.ndarray
    """90th percentile."""


class Quantity(NamedTuple):
    """A number that each layer and head has, and the scale to draw it on."""

    name: str
    """As `measure` and `Attention` call it."""
    title: str
    unit: str
    uniform: float
    """Under attention that is the same for all keys."""
    most: float
    """The largest that it can be; the smallest is 0."""
    anchor: int | None = None
    """From 0, where `name` has one value an anchor."""

    def of(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Its (..., L, H) among those of `measure`."""
        return self._own(values[self.name])

    def found(self, section: Attention) -> Levels | None:
        """Its means over images; None where the model has none."""
        levels: Levels | LevelsEach | None = getattr(section, self.name)
        if not isinstance(levels, LevelsEach):
            return levels
        head = {name: self._own(getattr(levels, name)) for name in draws.Intervals._fields}
        by_layer, overall = (draws.Intervals(*map(self._own, ends)) for ends in (levels.by_layer, levels.overall))
        return Levels(**head, by_layer=by_layer, overall=overall)

    def difference(self, section: Attention) -> Difference | None:
        """From the second run; None where there was none, or that has none."""
        return getattr(section.difference, self.name, None)

    def _own(self, values: np.ndarray) -> np.ndarray:
        return values if self.anchor is None else values[..., self.anchor]


def analyse(run: Run, beside: Run | None = None, seed: int = 0) -> Attention:
    """Means over all images; `beside` is a second run, for example of the causal topology, to subtract."""
    groups = run.groups()
    values, mean_LHS = _stream(run)
    found: dict[str, Any] = {name: _levels(value, groups, seed) for name, value in values.items()}
    if run.shape.anchors:
        likely = anchor_heads(values["anchor_lift"], groups, seed).p < 1 - COVERAGE
        found |= {"anchor_head": likely.astype(np.uint8), "anchor_heads": int(likely.sum())}
    if beside is not None:
        place = {name: number for number, name in enumerate(beside.ids())}
        pairs = [(number, place[name]) for number, name in enumerate(run.ids()) if name in place]
        found["paired_images"] = len(pairs)
        if pairs:
            mine, theirs = map(list, zip(*pairs, strict=True))
            ours = {name: value[mine] for name, value in values.items()}
            others = {name: value[theirs] for name, value in _stream(beside)[0].items()}
            found["difference"] = _differences(ours, others, [groups[number] for number in mine], seed)
    return Attention(images=len(run), mean_attention=mean_LHS, **found)


def measure(rows: np.ndarray, roles: Sequence[str]) -> dict[str, np.ndarray]:
    """What rows (..., S) of attention are like, by name, each (...) float32.

    * `patch_mass`, `voco_mass`, `text_mass` (prefix and text behind the image), `anchor_mass`: sums over these keys;
      `anchor_mass_each` (..., A);
    * `anchor_share`: the anchors' part of what falls on hybrid tokens; `anchor_lift`: over the uniform A / (A + P).
      Even attention has lift 1;
    * `entropy_bits`, 0 to log2(S).

    A model without anchors or text has no entries of these. Shares are NaN where nothing falls on what they share.
    """
    rows = _summing_to_one(rows)
    mass = {role: rows[..., role_mask(roles, role)].sum(-1) for role in dict.fromkeys(roles)}
    found = {"patch_mass": mass["patch"], "voco_mass": mass["voco"]}
    if "prefix" in mass or "text" in mass:
        found["text_mass"] = mass.get("prefix", 0) + mass.get("text", np.float32(0))
    if "anchor" in mass:
        found["anchor_mass"] = mass["anchor"]
        found["anchor_mass_each"] = rows[..., role_mask(roles, "anchor")]
        found["anchor_share"] = _ratio(mass["anchor"], mass["patch"] + mass["anchor"])
        times = len(first_hybrid(roles, len(roles))) / roles.count("anchor")
        found["anchor_lift"] = found["anchor_share"] * np.float32(times)
    logs = np.log2(rows, out=np.zeros_like(rows), where=rows > 0)
    found["entropy_bits"] = np.maximum(-(rows * logs).sum(-1), 0)
    return found


def measure_order(rows: np.ndarray, roles: Sequence[str]) -> dict[str, np.ndarray]:
    """What takes the order of the patches, by name as in `measure`.

    * `top_patches_mass`: on the A most attended patches, chosen anew in each row, which favours them;
      `anchor_minus_top`: attention on the anchors minus that;
    * `anchor_above_patch`: how likely an anchor gets more than a patch, 0 to 1, 0.5 by chance; no patch is chosen here;
    * `first_lift`: of the first 4 hybrid tokens, whatever they are, to tell anchors from positions;
    * `top_10`: share of the most attended 10% of patches in what all get, and the Gini coefficient `patch_gini`, 0
      where all patches get the same, 1 - 1/P where one gets all.
    """
    rows = _summing_to_one(rows)
    anchors, patches = (rows[..., role_mask(roles, role)] for role in ("anchor", "patch"))
    A, P = anchors.shape[-1], patches.shape[-1]
    mass = patches.sum(-1)
    ordered = np.sort(patches, axis=-1)  # ascending
    found = {}
    if A:
        found["top_patches_mass"] = ordered[..., -A:].sum(-1)
        found["anchor_minus_top"] = anchors.sum(-1) - found["top_patches_mass"]
        found["anchor_above_patch"] = _above(anchors, patches)
    first = rows[..., first_hybrid(roles, _FIRST)]
    hybrid = mass + anchors.sum(-1)
    found["first_lift"] = _ratio(first.sum(-1), hybrid) * np.float32((A + P) / first.shape[-1])
    found["top_10"] = _ratio(ordered[..., -top_count(P) :].sum(-1), mass)
    place = np.arange(1, P + 1, dtype=np.float32)
    found["patch_gini"] = _ratio(2 * (ordered @ place), P * mass) - np.float32((P + 1) / P)
    return found


def top_count(patches: int) -> int:
    """How many patches are the top 10%, rounded up."""
    return -(-_TOP * patches // 100)


def anchor_heads(lift_NLH: np.ndarray, groups_N: Groups, seed: int) -> draws.MaxT:
    """Heads whose mean lift of anchors is above 1, by more than float16 can make of 1; for all L x H heads."""
    return draws.max_t(draws.draws_of_means(lift_NLH, groups_N, seed), null=1 + _STORED)


def mean_of_read_layers(values_LT: np.ndarray) -> np.ndarray:
    """(..., L, T) -> (..., T): the mean over the layers that answers can hang on. Text reads the states before each
    layer, so nothing that `<voco>` takes in the last one reaches it. 0 where there is one layer, as nothing does.
    """
    return values_LT[..., :-1, :].sum(-2) / max(values_LT.shape[-2] - 1, 1)


def band(values: np.ndarray) -> Band:
    """(N, ...) values of N images -> their percentiles, each (...); NaN is left out."""
    percentiles = np.nanpercentile if np.isnan(values).any() else np.percentile  # the one takes many times as long
    low, high = percentiles(values, PERCENTILES, axis=0)
    return Band(low, high)


def role_mask(roles: Sequence[str], role: str) -> np.ndarray:
    """(S,) bool: which keys have this role."""
    return np.asarray([name == role for name in roles], dtype=bool)


def role_mass(attention: np.ndarray, roles: Sequence[str]) -> dict[str, np.ndarray]:
    """Share of all attention that each role receives.

    attention: (..., S), rows that sum to 1. Returns role -> (...), for the roles that have a key at all, in
    the order of the keys. The values of one row sum to 1.
    """
    present = [role for role in ROLES if role in roles]
    return {role: attention[..., role_mask(roles, role)].sum(axis=-1, dtype=np.float32) for role in present}


def quantities(roles: Sequence[str]) -> dict[str, Quantity]:
    """What can be drawn of each layer and head, by its name for people; without anchors only the entropy."""
    S, A, P = len(roles), roles.count("anchor"), roles.count("patch")
    found = {}
    if A:
        share = "share of all attention"
        found = {
            "Anchors": Quantity("anchor_mass", "Attention on the anchors", share, A / S, 1.0),
            "Anchors, lift": Quantity(
                "anchor_lift", "Lift of the anchors over their uniform share", "times uniform", 1.0, (A + P) / A
            ),
        }
        for at in range(A) if A > 1 else ():
            title = f"Attention on anchor {at + 1}"
            found[f"Anchor {at + 1}"] = Quantity("anchor_mass_each", title, share, 1 / S, 1.0, at)
    bits = float(np.log2(S))
    return found | {"Entropy": Quantity("entropy_bits", "Entropy of the attention", "bits", bits, bits)}


def uniform_share(roles: Sequence[str]) -> float:
    """The anchors' part of hybrid tokens, and of uniform attention on them: 4/580 in the paper."""
    anchors, patches = roles.count("anchor"), roles.count("patch")
    return anchors / (anchors + patches)


def evenly(rows: Sequence[int] | np.ndarray, most: int) -> np.ndarray:
    """At most `most` of `rows`, evenly spaced, with the first and the last."""
    at = np.linspace(0, len(rows) - 1, min(len(rows), max(1, most))).round().astype(int)
    return np.asarray(rows)[at]


def first_hybrid(roles: Sequence[str], count: int) -> np.ndarray:
    """(F,) where the first hybrid tokens are among the keys: anchors, then patches."""
    return np.flatnonzero(role_mask(roles, "anchor") | role_mask(roles, "patch"))[:count]


def token_names(roles: Sequence[str], rows: Sequence[int], cols: Sequence[int], count: int) -> list[str]:
    """Of the first hybrid tokens: `anchor 1`, or `patch row,column`, all from 1."""
    anchors = [at for at, role in enumerate(roles) if role == "anchor"]
    return [
        f"anchor {anchors.index(at) + 1}" if roles[at] == "anchor" else f"patch {rows[at] + 1},{cols[at] + 1}"
        for at in first_hybrid(roles, count)
    ]


def below(values: np.ndarray, value: float) -> float:
    """Share of `values` that are smaller, half of those that are equal: 0.5 is the middle."""
    return float((values < value).mean() + (values == value).mean() / 2)


def select(attention: np.ndarray, layer: int | None, head: int | None) -> np.ndarray:
    """(L, H, S) -> (S,): one layer and head (from 0), or the mean over all of them where None."""
    per_head = attention.mean(axis=0) if layer is None else attention[layer]
    return per_head.mean(axis=0) if head is None else per_head[head]


def head_mean(values: np.ndarray, head: int | None) -> np.ndarray:
    """(..., L, H) -> (..., L): one head (from 0), or the mean over heads where None."""
    return values.mean(axis=-1) if head is None else values[..., head]


def patch_map(row: np.ndarray, roles: Sequence[str], rows: Sequence[int], cols: Sequence[int]) -> np.ndarray | None:
    """(S,) attention row -> (R, C) grid of what each patch receives; None where patches have no position.

    Cells of the grid without a patch are NaN.
    """
    patches = role_mask(roles, "patch")
    row_of, col_of = np.asarray(rows)[patches], np.asarray(cols)[patches]
    if not patches.any() or row_of.min() < 0 or col_of.min() < 0:
        return None
    grid = np.full((row_of.max() + 1, col_of.max() + 1), np.nan, dtype=np.float32)
    grid[row_of, col_of] = row[patches]
    return grid


class Sample(NamedTuple):
    """Attention of one run over n images, as far as pages ask for it."""

    rows_NLHS: np.ndarray
    """float16"""
    by_layer_NLS: np.ndarray
    """float32, the mean over heads."""
    by_head_NHS: np.ndarray
    """float32, the mean over layers."""
    mass: dict[str, np.ndarray]
    """role -> (n, L, H) float32, share of all attention."""
    values: dict[str, np.ndarray]
    """(n, L, H, ...) of `measure`."""

    def select(self, layer: int | None, head: int | None) -> np.ndarray:
        """(n, S) float32: one layer and head (from 0), or the mean over all of them where None."""
        if layer is None:
            return self.by_head_NHS.mean(1) if head is None else self.by_head_NHS[:, head]
        return self.by_layer_NLS[:, layer] if head is None else self.rows_NLHS[:, layer, head].astype(np.float32)


def sample(blocks: Iterable[np.ndarray], roles: Sequence[str]) -> Sample:
    """Of attention (B, L, H, S), block by block."""
    parts: list[Sample] = []
    for block in blocks:
        by_layer, by_head = (block.mean(axis, dtype=np.float32) for axis in (2, 1))
        values = measure(block.astype(np.float32), roles)
        parts.append(Sample(block.astype(np.float16), by_layer, by_head, role_mass(block, roles), values))
    rows, by_layer, by_head = (np.concatenate([part[at] for part in parts]) for at in range(3))
    mass = {name: np.concatenate([part.mass[name] for part in parts]) for name in parts[0].mass}
    values = {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}
    return Sample(rows, by_layer, by_head, mass, values)


def _stream(run: Run) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What all images' rows are like (N, L, H), and mean_LHS, block by block."""
    parts: dict[str, list[np.ndarray]] = {}
    total_LHS = np.zeros((run.shape.layers, run.shape.heads, run.shape.keys))
    for rows in run.attention_blocks(most=_BLOCK):
        for name, value in (measure(rows, run.shape.roles) | measure_order(rows, run.shape.roles)).items():
            parts.setdefault(name, []).append(value)
        total_LHS += rows.sum(0, dtype=np.float64)
    values = {name: np.concatenate(found) for name, found in parts.items()}
    values["effective_keys"] = np.exp2(values["entropy_bits"])
    return values, (total_LHS / len(run)).astype(np.float32)


def _levels(value_NLH: np.ndarray, groups: Groups, seed: int) -> Levels | LevelsEach:
    """A quantity (N, L, H), or one an anchor (N, L, H, A), by head, by layer and over all."""
    N, L, H, *each = value_NLH.shape
    layer = value_NLH.mean(2)
    joined = np.concatenate([value_NLH.reshape(N, -1), layer.reshape(N, -1), layer.mean(1).reshape(N, -1)], 1)
    ends = draws.intervals_of_means(joined, groups, seed)
    shapes = (L, H, *each), (L, *each), tuple(each) or (1,)
    starts = np.cumsum([np.prod(shape) for shape in shapes])
    assert starts[-1] == joined.shape[1]
    split = [np.split(end, starts[:-1]) for end in ends]
    by_head, by_layer, overall = (
        draws.Intervals(*(end.reshape(shape) for end in part))
        for part, shape in zip(zip(*split, strict=True), shapes, strict=True)
    )
    head = {name: np.asarray(end, np.float32) for name, end in by_head._asdict().items()}
    return (LevelsEach if each else Levels)(**head, by_layer=by_layer, overall=overall)


def _differences(
    values: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray], groups: Groups, seed: int
) -> Differences:
    """Of the same images, one by one: the first minus the second."""
    found: dict[str, Difference] = {}
    for name in values:
        if name in others and values[name].ndim == 3:
            one, other = values[name].mean(2), others[name].mean(2)
            overall = draws.intervals_of_means((one.mean(1) - other.mean(1))[:, None], groups, seed)
            by_layer = draws.intervals_of_means(one - other, groups, seed) if one.shape == other.shape else None
            found[name] = Difference(overall=overall, by_layer=by_layer)
    return Differences(**found)


def _summing_to_one(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    rows /= rows.sum(-1, keepdims=True)
    return rows


def _above(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of pairs of the two last axes in which the first is larger; half of those that are equal."""
    total = np.zeros(one.shape[:-1], np.float32)
    for at in range(one.shape[-1]):
        value = one[..., at, None]
        total += ((other < value).mean(-1) + (other <= value).mean(-1)) / 2
    return total / one.shape[-1]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)
