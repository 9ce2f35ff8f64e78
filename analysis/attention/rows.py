"""Where `<voco>` looks, against where it would look by chance. Knows arrays and runs; not models or figures.

Attention says what is read, not what it is worth: see `analysis.contributions` and `analysis.knockouts` for that. Rows
are brought to a sum of 1 again, as 16-bit storage moves it by up to 5e-4.

Legend: N images, B images of a block, L layers, H heads, S keys of `<voco>`, A anchors, P patches, F first tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from htc_probe.analysis.stats import draws
from htc_probe.extract.store import Run
from htc_probe.probes.scores.intervals import COVERAGE

Section = dict[str, Any]

TOPS = (1, 4, 10)  # per cent of the patches
FIGURE_IMAGES, FIGURE_TOKENS = 16, 16  # of the paper's Figure 3
FIRST = 4  # hybrid tokens: as many as the paper has anchors
BLOCK = 2**22  # numbers of attention read at a time
HEAD_PAIRS = 2048
STORED = 2.0**-11  # relative precision of float16


def analyse(run: Run, beside: Run | None = None, seed: int = 0) -> Section:
    """All of this module as one section; `beside` is a second run, for example of the causal topology.

    `NAME` is a quantity of `measure` (L, H), a mean over images; `NAME_by_layer` (L,) is of its mean over heads,
    `NAME_overall` (1,) over layers too. Each with `_lower` and `_upper`, 95 % over groups of images.

    * `anchor_head` (L, H) 1 where the anchors' lift is above 1, `anchor_head_p` (max-T over all heads),
      `anchor_head_lift_at_least` (L, H) simultaneous lower bounds, `anchor_heads` their number;
    * `patch_agreement` (L, H): correlation of the patch maps of two images, the mean over all pairs;
    * `head_order_spearman`, `head_order_kendall` (1,): of the heads' order by anchor lift, between two images;
    * `mean_attention` (L, H, S), `roles` of its keys, `rows` and `cols` of patches;
    * `first_tokens` (L, F): attention on each of the first hybrid tokens, over heads; `first_tokens_names`;
    * `figure3` (images, L, F): the same of single images, `figure3_ids`; its mean over layers is the paper's figure;
    * `top_counts`: how many patches are the top 1, 4 and 10 %; `uniform_share` of the anchors, A / (A + P).

    With `beside`, `beside_` is put before what is its own, and `difference_NAME_overall` and, where both have as many
    layers, `difference_NAME_by_layer` are this run minus it, paired on the `paired_images` that both have.
    """
    values, section = _one(run, seed)
    if beside is not None:
        others, found = _one(beside, seed, section["figure3_ids"])
        section |= {f"beside_{name}": value for name, value in found.items()}
        section |= _differences(run, values, beside, others, seed)
    return section


def measure(rows_BLHS: np.ndarray, role_S: Sequence[str]) -> dict[str, np.ndarray]:
    """What rows (B, L, H, S) of attention are like, by name, each (B, L, H) float32.

    * `patch_mass`, `voco_mass`, `text_mass` (prefix and text behind the image), `anchor_mass`: sums over these keys;
    * `anchor_share`: the anchors' part of what falls on hybrid tokens; `anchor_lift`: over the uniform A / (A + P);
      `anchor_lift_of_all`: `anchor_mass` over the uniform A / S. Even attention has lift 1;
    * `anchor_mass_each` (B, L, H, A);
    * `top_patches_mass`: on the A most attended patches, chosen anew in each row, which favours them;
      `anchor_minus_top`: `anchor_mass` minus that;
    * `anchor_above_patch`: how likely an anchor gets more than a patch, 0 to 1, 0.5 by chance; no patch is chosen here;
    * `first_lift`: of the first 4 hybrid tokens, whatever they are, to tell anchors from positions;
    * `entropy_bits`, 0 to log2(S), and `effective_keys`, 2 to its power;
    * `top_1`, `top_4`, `top_10`: share of the most attended 1, 4 and 10 % of patches in `patch_mass`, and the Gini
      coefficient `patch_gini`, 0 where all patches get the same, 1 - 1/P where one gets all.

    A model without anchors or text has no entries of these. Shares are NaN where nothing falls on what they share.
    """
    rows = rows_BLHS.astype(np.float32)
    rows /= rows.sum(-1, keepdims=True)
    role = np.asarray(role_S)
    mass = {name: rows[..., role == name].sum(-1) for name in dict.fromkeys(role_S)}
    found = {"patch_mass": mass["patch"], "voco_mass": mass["voco"]}
    if "prefix" in mass or "text" in mass:
        found["text_mass"] = mass.get("prefix", 0) + mass.get("text", np.float32(0))
    hybrid = mass["patch"] + mass.get("anchor", np.float32(0))
    is_hybrid = np.isin(role, ("anchor", "patch"))
    ordered = np.sort(rows[..., role == "patch"], axis=-1)  # ascending
    A, P = int((role == "anchor").sum()), ordered.shape[-1]
    if A:
        found["anchor_mass"] = mass["anchor"]
        found["anchor_mass_each"] = rows[..., role == "anchor"]
        found["anchor_share"] = _ratio(mass["anchor"], hybrid)
        found["anchor_lift"] = found["anchor_share"] * np.float32((A + P) / A)
        found["anchor_lift_of_all"] = mass["anchor"] * np.float32(len(role) / A)
        found["top_patches_mass"] = ordered[..., -A:].sum(-1)
        found["anchor_minus_top"] = mass["anchor"] - found["top_patches_mass"]
        found["anchor_above_patch"] = _above(rows[..., role == "anchor"], rows[..., role == "patch"])
    first = rows[..., np.flatnonzero(is_hybrid)[:FIRST]]
    found["first_lift"] = _ratio(first.sum(-1), hybrid) * np.float32((A + P) / first.shape[-1])
    logs = np.log2(rows, out=np.zeros_like(rows), where=rows > 0)
    found["entropy_bits"] = np.maximum(-(rows * logs).sum(-1), 0)
    found["effective_keys"] = np.exp2(found["entropy_bits"])
    for top, count in zip(TOPS, top_counts(P), strict=True):
        found[f"top_{top}"] = _ratio(ordered[..., -count:].sum(-1), mass["patch"])
    place = np.arange(1, P + 1, dtype=np.float32)
    found["patch_gini"] = _ratio(2 * (ordered @ place), P * mass["patch"]) - np.float32((P + 1) / P)
    return found


def top_counts(patches: int) -> list[int]:
    """How many patches are the top 1, 4 and 10 %, rounded up."""
    return [-(-top * patches // 100) for top in TOPS]


def anchor_heads(lift_NLH: np.ndarray, groups_N: draws.Groups, seed: int) -> draws.MaxT:
    """Which heads look at anchors more than evenly: tests of mean lift > 1, corrected for all L x H heads, and by more
    than float16 can make of 1.
    """
    return draws.max_t(draws.draws_of_means(lift_NLH, groups_N, seed), null=1 + STORED)


def agreement(blocks: Callable[[], Iterator[np.ndarray]]) -> np.ndarray:
    """(N, ...): each image's mean correlation with all others over the last axis; twice through blocks (B, ..., P).

    Vectors that are constant, as far as float16 can tell, have none: NaN. For pairs of images, see `stats.of_pairs`.
    """
    total, count = np.zeros(1), np.zeros(1)
    for block in blocks():
        unit = _unit(block)
        total = total + unit.sum(0, dtype=np.float64)
        count = count + unit.any(-1).sum(0)
    found = []
    for block in blocks():
        unit = _unit(block)
        with np.errstate(invalid="ignore", divide="ignore"):
            others = ((unit * total).sum(-1) - 1) / (count - 1)
        found.append(np.where(unit.any(-1), others, np.nan).astype(np.float32))
    return np.concatenate(found)


def order_agreement(values_NM: np.ndarray, groups_N: draws.Groups, seed: int) -> tuple[draws.Interval, draws.Interval]:
    """Spearman's and Kendall's correlation (tau-a) of the order of M things between two images, over all pairs of N.

    Kendall's is over at most 2,048 pairs of things, drawn by `seed`.
    """
    rho = agreement(lambda: iter([rankdata(values_NM, axis=1)]))
    one, other = np.triu_indices(values_NM.shape[1], 1)
    if len(one) > HEAD_PAIRS:
        chosen = np.random.default_rng(seed).choice(len(one), HEAD_PAIRS, replace=False)
        one, other = one[chosen], other[chosen]
    signs = np.sign(values_NM[:, one] - values_NM[:, other])
    tau = (signs @ signs.sum(0) - (signs**2).sum(1)) / max(len(one), 1) / max(len(values_NM) - 1, 1)
    return _over_pairs(rho, groups_N, seed).only, _over_pairs(tau, groups_N, seed).only


def mean_of_read_layers(values_LT: np.ndarray) -> np.ndarray:
    """(..., L, T) -> (..., T): the mean over the layers that answers can hang on. Text reads the states before each
    layer, so nothing that `<voco>` takes in the last one reaches it. 0 where there is one layer, as nothing does.
    """
    return values_LT[..., :-1, :].sum(-2) / max(values_LT.shape[-2] - 1, 1)


def figure3(run: Run, images: Sequence[int], tokens: int = FIGURE_TOKENS) -> np.ndarray:
    """(images, L, F) float32: attention on each of the first hybrid tokens, mean over heads."""
    at = _hybrid(run.shape.roles)[:tokens]
    return np.stack([run.attention(image).mean(1)[:, at] for image in images])


def token_names(run: Run, tokens: int = FIGURE_TOKENS) -> list[str]:
    """Of the first hybrid tokens: `anchor 1`, or `patch row,column`, from 0."""
    names, anchors = [], 0
    for at in _hybrid(run.shape.roles)[:tokens]:
        anchors += run.shape.roles[at] == "anchor"
        cell = f"patch {run.shape.rows[at]},{run.shape.cols[at]}"
        names.append(f"anchor {anchors}" if run.shape.roles[at] == "anchor" else cell)
    return names


def _one(run: Run, seed: int, figure_ids: Sequence[str] = ()) -> tuple[dict[str, np.ndarray], Section]:
    """`measure` of all images, and the section. Its figure shows `figure_ids` where the run has some of them."""
    groups, ids = run.groups(), run.ids()
    values, first_NLF, mean_LHS = _stream(run)
    section: Section = {"run": run.path.name, "topology": run.info.topology, "images": len(run)}
    for name, value in values.items():
        section |= _levels(name, value, groups, seed)
    shape = run.shape
    if shape.anchors:
        lift = values["anchor_lift"]
        test = anchor_heads(lift, groups, seed)
        section["anchor_head"] = (test.p < 1 - COVERAGE).astype(np.uint8)
        section["anchor_head_p"] = test.p.astype(np.float32)
        section["anchor_head_lift_at_least"] = test.lower.astype(np.float32)
        section["anchor_heads"] = int((test.p < 1 - COVERAGE).sum())
        section["uniform_share"] = shape.anchors / (shape.anchors + shape.roles.count("patch"))
        if shape.layers * shape.heads > 1:
            rho, tau = order_agreement(lift.reshape(len(run), -1), groups, seed)
            for name, found in (("spearman", rho), ("kendall", tau)):
                section |= _scalar(f"head_order_{name}", found)
    is_patch = np.asarray(shape.roles) == "patch"
    alike = agreement(lambda: (rows[..., is_patch] for rows in _blocks(run)))
    section |= _over_pairs(alike, groups, seed).section("patch_agreement")
    section["mean_attention"] = mean_LHS
    section["roles"] = list(shape.roles)
    section["rows"], section["cols"] = np.array(shape.rows), np.array(shape.cols)
    section["top_counts"] = np.array(top_counts(int(is_patch.sum())))
    section |= draws.intervals_of_means(first_NLF, groups, seed).section("first_tokens")
    section["first_tokens_names"] = token_names(run)
    place = {name: number for number, name in enumerate(ids)}
    shown = [place[name] for name in figure_ids if name in place] or list(range(min(FIGURE_IMAGES, len(run))))
    section["figure3"], section["figure3_ids"] = figure3(run, shown), [ids[image] for image in shown]
    return values, section


def _stream(run: Run) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """`measure` of all images (N, L, H), attention on the first tokens (N, L, F), and mean_LHS, block by block."""
    at = _hybrid(run.shape.roles)[:FIGURE_TOKENS]
    parts: dict[str, list[np.ndarray]] = {}
    first = []
    total_LHS = np.zeros((run.shape.layers, run.shape.heads, run.shape.keys))
    for rows in _blocks(run):
        for name, value in measure(rows, run.shape.roles).items():
            parts.setdefault(name, []).append(value)
        first.append(rows[..., at].mean(2, dtype=np.float32))
        total_LHS += rows.sum(0, dtype=np.float64)
    values = {name: np.concatenate(found) for name, found in parts.items()}
    return values, np.concatenate(first), (total_LHS / len(run)).astype(np.float32)


def _blocks(run: Run) -> Iterator[np.ndarray]:
    """(B, L, H, S) as stored, all images in order."""
    step = max(1, BLOCK // (run.shape.layers * run.shape.heads * run.shape.keys))
    for start in range(0, len(run), step):
        yield run.rows("attention/voco", start, min(start + step, len(run)))


def _levels(name: str, value_NLH: np.ndarray, groups: draws.Groups, seed: int) -> Section:
    """A quantity (N, L, H, ...) by head, by layer and over all, with intervals."""
    N, L, H, *rest = value_NLH.shape
    layer = value_NLH.mean(2)
    joined = np.concatenate([value_NLH.reshape(N, -1), layer.reshape(N, -1), layer.mean(1).reshape(N, -1)], 1)
    found = draws.intervals_of_means(joined, groups, seed)
    section: Section = {}
    each = int(np.prod(rest, dtype=int))
    start = 0
    for end, shape in (("", (L, H, *rest)), ("_by_layer", (L, *rest)), ("_overall", tuple(rest) or (1,))):
        stop = start + int(np.prod(shape))
        section |= draws.Intervals(*(part[start:stop].reshape(shape) for part in found)).section(name + end)
        start = stop
    assert start == (L * H + L + 1) * each
    return section


def _differences(
    run: Run, values: dict[str, np.ndarray], beside: Run, others: dict[str, np.ndarray], seed: int
) -> Section:
    """This run minus `beside`, on the images of both."""
    place = {name: number for number, name in enumerate(beside.ids())}
    ids, all_groups = run.ids(), run.groups()
    mine = [number for number, name in enumerate(ids) if name in place]
    theirs = [place[ids[number]] for number in mine]
    groups = [all_groups[number] for number in mine]
    section: Section = {"paired_images": len(mine)}
    for name in values if mine else ():
        if name not in others or values[name].ndim != 3:
            continue
        one, other = values[name][mine].mean(2), others[name][theirs].mean(2)
        found = draws.intervals_of_means((one.mean(1) - other.mean(1))[:, None], groups, seed)
        section |= found.section(f"difference_{name}_overall")
        if one.shape == other.shape:
            section |= draws.intervals_of_means(one - other, groups, seed).section(f"difference_{name}_by_layer")
    return section


def _over_pairs(first_N: np.ndarray, groups: draws.Groups, seed: int) -> draws.Intervals:
    """Of the mean over all pairs of images; a correlation, so that the interval stays within -1 to 1."""
    with np.errstate(invalid="ignore"):
        known = np.isfinite(first_N)
        mean = np.where(known, first_N, 0).sum(0) / np.maximum(known.sum(0), 1)
    found = draws.intervals_of_means(draws.of_pairs(first_N, mean), groups, seed)
    return draws.Intervals(found.estimate, np.maximum(found.lower, -1), np.minimum(found.upper, 1))


def _scalar(name: str, found: draws.Interval) -> Section:
    return {name: found.estimate, f"{name}_lower": found.lower, f"{name}_upper": found.upper}


def _unit(block: np.ndarray) -> np.ndarray:
    """Centred vectors of length 1 along the last axis; zeros where they are constant."""
    block = block.astype(np.float32)
    centred = block - block.mean(-1, keepdims=True)
    size = np.sqrt((centred**2).sum(-1, keepdims=True))
    varies = size > STORED * np.sqrt((block**2).sum(-1, keepdims=True))
    return np.divide(centred, size, out=np.zeros_like(centred), where=varies)


def _hybrid(role_S: Sequence[str]) -> np.ndarray:
    return np.flatnonzero(np.isin(np.asarray(role_S), ("anchor", "patch")))


def _above(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of pairs of the two last axes in which the first is larger; half of those that are equal."""
    total = np.zeros(one.shape[:-1], np.float32)
    for at in range(one.shape[-1]):
        value = one[..., at, None]
        total += ((other < value).mean(-1) + (other <= value).mean(-1)) / 2
    return total / one.shape[-1]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)
