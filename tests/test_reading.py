"""What z_voco holds: every quantity on a case with a known answer, then the shipped model's own run."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from htc_probe.analysis import records, sentences
from htc_probe.analysis.attention import rows
from htc_probe.analysis.contents import codes, geometry, maps, reading
from htc_probe.analysis.stats import draws, ridge
from htc_probe.extract import models
from htc_probe.extract.cli import main
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Run, Task, open_run
from htc_probe.probes.files.weights import Probe
from htc_probe.probes.scores.intervals import effective_groups, group_sizes

CLASSES = Task("colour", "detail", "classes", ("red", "green", "blue"))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


# ---- neighbours


def test_neighbours_are_scikit_learns_but_never_of_the_own_group() -> None:
    x = normal(40, 5)
    groups = np.arange(40) // 2
    for found, metric in (
        (geometry.neighbours(x, np.arange(40), 4), "cosine"),
        (geometry.nearest(x, np.arange(40), 4), "euclidean"),
    ):
        wanted = NearestNeighbors(n_neighbors=5, metric=metric).fit(x).kneighbors(x, return_distance=False)[:, 1:]
        np.testing.assert_array_equal(found, wanted)
    x[1::2] = x[::2]  # twins, in pairs of one group
    near = geometry.neighbours(x, groups, 4)
    assert (groups[near] != groups[:, None]).all()
    few = geometry.neighbours(x[:6], groups[:6], 10)
    assert ((few >= 0).sum(1) == 4).all()


def test_images_that_are_equally_near_come_in_their_order() -> None:
    """Whatever a product of matrices makes of equal rows, and however many threads make it."""
    distinct_rows, which = normal(40, 300), np.random.default_rng(0).integers(0, 40, 500)
    x = distinct_rows[which]
    first, of = geometry.distinct(x)
    assert len(first) == 40 and (x[first][of] == x).all() and (np.diff(first) > 0).all()
    assert geometry.distinct(np.array([[0.0], [-0.0], [1.0]]))[1].tolist() == [0, 0, 1]
    for search in (geometry.neighbours, geometry.nearest):
        found = []
        for threads in (1, 2, 4):
            with threadpool_limits(threads):
                found.append(search(x, np.arange(500)))
        assert (found[0] == found[1]).all() and (found[0] == found[2]).all()
        for image, near in enumerate(found[0]):
            copies = [at for at in np.flatnonzero(which == which[image]) if at != image][:10]
            assert near[: len(copies)].tolist() == copies
    codes_NV = np.random.default_rng(1).integers(0, 3, (60, 5))  # few codes: many images are alike in as many
    like = maps.equal_codes(codes_NV)
    for image, near in enumerate(maps.nearest_by(like, np.arange(60))):
        others = [at for at in np.argsort(-like[image], kind="stable") if at != image]
        assert near.tolist() == others[:10]


def test_shared_neighbours() -> None:
    one, other = np.array([[1, 2], [3, 4]]), np.array([[2, 1], [4, 5]])
    assert geometry.shared(one, other).tolist() == [1.0, 0.5]


def test_votes() -> None:
    near = np.array([[1, 2, 3], [2, 3, 0], [0, 1, 3], [0, 1, 2]])
    labels = np.array([0, 0, 1, -1])
    errors, counted = geometry.vote(near, labels, CLASSES)
    # image 0 hears 0 and 1, and the nearer wins; 1 hears 1 and 0; 2 hears 0 and 0; 3 is unknown
    assert errors.tolist() == [0, 1, 1, 0] and counted.tolist() == [1, 1, 1, 0]
    assert geometry.floor(labels, CLASSES) == 2 / 3
    number = Task("size", "detail", "number", unit="m")
    errors, total = geometry.vote(near[:, :2], np.array([1.0, 2.0, 6.0, np.nan]), number)
    assert errors.tolist() == [9, 16, 4.5**2, 0] and total.tolist() == [4, 1, 9, 0]
    several = Task("there", "semantic", "multilabel", ("cat", "dog"))
    errors, counted = geometry.vote(near, np.array([[1, 0], [1, 1], [0, 0], [255, 255]]), several)
    assert errors.tolist() == [0.5, 1, 0.5, 0] and counted.tolist() == [1, 1, 1, 0]


# ---- likeness


def gram(x: np.ndarray, seed: int = 0) -> geometry.Gram:
    return geometry.gram(x, draws.blocks(np.arange(len(x)), seed))


def test_cka_of_turned_scaled_and_moved_features_is_1() -> None:
    x = normal(200, 6)
    turn, _ = np.linalg.qr(normal(6, 6, seed=1))
    found = geometry.cka([gram(x), gram(3 * x @ turn + 5), gram(np.zeros((200, 3)))])
    np.testing.assert_allclose(found.estimate[:2, :2], 1, atol=1e-5)
    assert np.isnan(found.estimate[2]).all()


def hsic(a: np.ndarray, b: np.ndarray) -> float:
    """HSIC_1 as its paper writes it."""
    n, one = len(a), np.ones(len(a))
    K, M = a @ a.T, b @ b.T
    np.fill_diagonal(K, 0), np.fill_diagonal(M, 0)
    whole = np.trace(K @ M) + one @ K @ one * (one @ M @ one) / ((n - 1) * (n - 2))
    return (whole - 2 / (n - 2) * (one @ K @ M @ one)) / (n * (n - 3))


def test_cka_is_hsic_1_by_its_formula() -> None:
    x, y = normal(30, 4), normal(30, 5, seed=1)
    y[:, :2] += x[:, :2]
    block = draws.blocks(np.arange(30), 0, 4)
    found = geometry.cka([geometry.gram(x, block), geometry.gram(y, block)])
    want = lambda a, b: hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b))  # noqa: E731
    assert found.estimate[0, 1] == pytest.approx(want(x, y), abs=1e-5)
    parts = np.array([want(x[block != b], y[block != b]) for b in range(4)])
    np.testing.assert_allclose(found.upper[0, 1], draws.jackknife(want(x, y), parts).upper, atol=1e-4)


def test_cka_of_independent_features_is_0_within_its_interval_however_wide_they_are() -> None:
    held, values = [], []
    for seed in range(40):
        found = geometry.cka([gram(normal(60, 300, seed=seed)), gram(normal(60, 200, seed=seed + 100))])
        values.append(found.estimate[0, 1])
        held.append(found.lower[0, 1] <= 0 <= found.upper[0, 1])
    assert abs(np.mean(values)) < 0.02  # the biased estimate is 0.8 here
    assert np.mean(held) > 0.85


@pytest.mark.parametrize(("dimension", "width"), [(2, 2), (3, 40), (6, 40)])
def test_two_nn_finds_the_dimension_of_a_turned_subspace(dimension: int, width: int) -> None:
    x = np.random.default_rng(0).random((2000, dimension)) @ np.linalg.qr(normal(width, dimension))[0].T
    found = geometry.two_nn(x, np.arange(2000), seed=0)
    assert found.lower < found.estimate < found.upper
    assert found.estimate == pytest.approx(dimension, rel=0.1)
    twins = np.concatenate([x, x])  # of the same group, so they are no neighbours
    again = geometry.two_nn(twins, np.tile(np.arange(2000), 2), seed=0)
    assert 0.5 * dimension < again.estimate


def test_participation_ratio() -> None:
    found = geometry.participation_ratio(gram(normal(400, 60)))
    assert found.lower < 60 < found.upper and found.estimate == pytest.approx(60, rel=0.03)
    x, block = normal(40, 6) + 3, draws.blocks(np.arange(40), 0, 5)
    ratio = lambda x: np.trace(np.cov(x.T)) ** 2 / hsic(x, x)  # noqa: E731
    found = geometry.participation_ratio(geometry.gram(x, block))
    parts = np.array([ratio(x[block != b]) for b in range(5)])
    np.testing.assert_allclose(found, draws.jackknife(ratio(x), parts), rtol=1e-4)
    line = geometry.participation_ratio(gram(normal(400, 1) @ normal(1, 30)))
    assert line.estimate == pytest.approx(1, abs=0.02)
    assert np.isnan(geometry.participation_ratio(gram(np.ones((30, 3)))).estimate)


def test_standardised_features() -> None:
    x = normal(50, 3) * [1, 1000, 0] + [0, 1e5, 7]
    found = geometry.standardised(x)
    np.testing.assert_allclose(found.std(0), [1, 1, 0], atol=1e-4)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)


# ---- angles


def test_angles_between_known_subspaces() -> None:
    axes = np.eye(6)
    tilted = np.cos(0.3) * axes[:, :1] + np.sin(0.3) * axes[:, 2:3]
    found = geometry.angles(axes[:, :2], np.concatenate([tilted, axes[:, 4:5]], 1), seed=0)
    np.testing.assert_allclose(np.arccos(found.cosines), [0.3, np.pi / 2], atol=1e-6)
    assert found.overlap == pytest.approx(np.cos(0.3) ** 2 / 2)


def test_random_subspaces_overlap_by_their_dimension() -> None:
    found = geometry.angles(np.eye(30)[:, :3], normal(30, 5), seed=1)
    assert found.null.shape == (geometry.NULL_DRAWS, 3)
    assert found.null_overlaps.mean() == pytest.approx(5 / 30, rel=0.1)
    low, high = np.quantile(found.null_overlaps, [0.001, 0.999])
    assert low < found.overlap < high


def test_read_out_angles_are_canonical_correlations() -> None:
    shared, noise = normal(500, 1), normal(500, 3, seed=1)
    x = np.concatenate([shared, shared + 1e-6 * noise[:, :1], noise[:, 1:]], 1)  # two features that are one
    first, second = np.eye(4)[:, :1], np.eye(4)[:, 1:2]
    assert geometry.angles(first, second, 0).overlap == 0
    assert geometry.read_out_angles(first, second, x, 0).overlap == pytest.approx(1, abs=1e-3)
    mixed = normal(4, 4, seed=2)
    other = geometry.read_out_angles(
        np.linalg.solve(mixed, np.eye(4)[:, :2]), np.linalg.solve(mixed, np.eye(4)[:, 2:]), x @ mixed, 0
    )
    one = geometry.read_out_angles(np.eye(4)[:, :2], np.eye(4)[:, 2:], x, 0)
    np.testing.assert_allclose(one.cosines[0], other.cosines[0], atol=1e-3)


# ---- ridge


def test_ridge_is_scikit_learns_and_its_left_out_errors_are_those_of_fitting_again() -> None:
    x, y = normal(30, 4) * [1, 10, 0.1, 1], normal(30, 2, 3, seed=1)
    y[:, 0] += x[:, :3]
    found = ridge.fit(x, y)
    scaled = (x - x.mean(0)) / x.std(0)
    level = (np.linalg.svd(scaled, compute_uv=False) ** 2).mean()
    for place, strength in enumerate(found.strength_P):
        model = Ridge(alpha=strength * level).fit(scaled, y[:, place])
        np.testing.assert_allclose(found.predict(x)[:, place], model.predict(scaled), atol=1e-4)
        for image in (0, 17):
            rest = np.arange(30) != image
            alone = Ridge(alpha=strength * level).fit(scaled[rest], y[rest, place]).predict(scaled[image : image + 1])
            np.testing.assert_allclose(found.left_out[image, place], y[image, place] - alone[0], atol=1e-3)
    assert found.strength_P[0] < found.strength_P[1] == ridge.STRENGTHS[-1], "what cannot be told is told the mean"


@pytest.mark.parametrize("width", [5, 300])
def test_the_patch_map_shows_which_patches_survived(width: int) -> None:
    """In a token with fewer and with more numbers than there are images."""
    N = 200
    seen, noise = normal(N, 2), normal(N, 3, 4, seed=1)
    z = seen @ normal(2, width, seed=5) + 0.01 * normal(N, width, seed=2)
    patches = np.stack([seen @ normal(2, 4, seed=3), seen @ normal(2, 4, seed=4) + noise[:, 1], noise[:, 2]], 1)
    share = 1 - noise[:, 1].var(0).sum() / patches[:, 1].var(0).sum()
    found = reading.patch_map(z, patches, np.arange(N), seed=0)
    r2 = found.intervals()
    assert r2.estimate[0] > 0.99 and abs(r2.estimate[2]) < 0.06
    assert r2.lower[1] < share < r2.upper[1] or abs(r2.estimate[1] - share) < 0.1
    total = ((patches - patches.mean(0)) ** 2).sum((0, 2))
    assert r2.estimate[3] == pytest.approx((r2.estimate[:3] * total).sum() / total.sum(), abs=0.01)


def test_patches_of_one_group_are_never_told_from_each_other() -> None:
    group = np.arange(100) // 4
    seen = normal(25, 40)[group]
    patches = normal(25, 2, 3, seed=1)[group]  # a picture of the group, which says nothing of other groups
    r2 = reading.patch_map(seen, patches, group, seed=0).estimate
    assert (r2 < 0.05).all()
    assert (reading.patch_map(seen, patches, np.arange(100), seed=0).estimate > 0.9).all(), "it could be told"


def test_patch_components_keep_what_varies() -> None:
    patches = normal(100, 4, 3) @ normal(3, 20, seed=1) + 100 * normal(4, 20, seed=2)
    kept, share = reading.patch_components(iter(np.split(patches, 10)), components=3)
    assert kept.shape == (100, 4, 3) and share == pytest.approx(1, abs=1e-4)
    both, part = reading.patch_components(iter([normal(500, 2, 8) * ([3] + 7 * [1])]), components=1)
    assert part == pytest.approx(9 / 16, abs=0.05)
    whole, everything = reading.patch_components(iter(np.split(patches, 10)), components=20)
    np.testing.assert_array_equal(whole, patches.astype(np.float32))
    assert everything == 1.0


# ---- words


def test_the_lens_reads_what_a_layer_points_at() -> None:
    words = np.eye(5)
    states = 20 * words[[0, 1, 1]]
    last = 20 * words[[0, 1, 2]]
    found = reading.lens(states, last, words, None, words=(1, 2))
    assert found.same_word.tolist() == [True, True, False]
    np.testing.assert_allclose(found.surprise, [0, 0, 20 / np.log(2)], atol=1e-3)
    np.testing.assert_allclose(found.mean, [1 / 3, 2 / 3, 0, 0, 0], atol=1e-4)
    np.testing.assert_allclose(found.chosen[1], [0, -20 / np.log(2)], atol=1e-4)
    even = reading.lens(np.zeros((3, 5)), last, words, None)
    np.testing.assert_allclose(even.entropy, np.log2(5), atol=1e-5)
    wide = reading.lens(states, np.zeros((3, 5)), words, None)  # sure of one word where the last layer is of none
    np.testing.assert_allclose(wide.surprise, 0.8 * 20 / np.log(2) - np.log2(5), rtol=1e-3)


def test_the_lens_is_the_models_norm_and_head() -> None:
    model = models.load(models.find("htc-tiny"), dtype=torch.float32, device="cpu").language_model
    state = torch.from_numpy(normal(3, 128)).float()
    with torch.no_grad():
        wanted = model.lm_head(model.model.norm(state)).log_softmax(-1) / np.log(2)
        norm = model.model.norm.weight.numpy(), model.model.norm.variance_epsilon
        found = reading.log_words(state.numpy(), model.lm_head.weight.numpy(), norm)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


# ---- codes


def test_usage_of_known_codes() -> None:
    even = np.random.default_rng(0).integers(0, 32, (300, 20, 1))
    few = np.random.default_rng(1).integers(0, 2, (300, 20, 1)) * 5
    found = codes.usage(np.concatenate([even, few], 2), 64, np.arange(300), seed=0)
    assert found.used.tolist() == [32, 2]
    np.testing.assert_allclose(2**found.entropy.estimate, [32, 2], rtol=2e-3)
    np.testing.assert_allclose(found.entropy.estimate, [5, 1], atol=3e-3)
    assert (found.entropy.lower <= found.entropy.estimate).all() and (found.entropy.upper <= 6).all()


def test_copies_of_images_are_no_more_draws_of_codes() -> None:
    drawn = np.random.default_rng(0).integers(0, 64, (20, 5, 2))
    once = codes.usage(drawn, 64, np.arange(20), seed=0)
    copies = codes.usage(np.repeat(drawn, 4, axis=0), 64, np.repeat(np.arange(20), 4), seed=0)
    assert once.draws == copies.draws == 100
    np.testing.assert_allclose(copies.entropy.estimate, once.entropy.estimate)
    np.testing.assert_allclose(copies.entropy.lower, once.entropy.lower)
    # Half of all images in one group tell about as much as three groups of even sizes.
    assert effective_groups(group_sizes([0] * 20 + list(range(1, 21)))) == pytest.approx(1600 / 420)


def test_few_draws_of_many_codes_are_told() -> None:
    drawn = np.random.default_rng(0).integers(0, 512, (30, 10, 1))
    found = codes.usage(drawn, 512, np.arange(30), seed=0)
    assert 2 ** found.entropy.estimate[0] < 400, "it is 512"
    assert re.search("too low: 300 draws.*512 codes", sentences.few_draws(found.draws, 512))
    assert sentences.few_draws(512, 512) == ""


def test_the_usage_interval_holds_the_entropy() -> None:
    held = []
    share = np.array([0.5, 0.25, 0.125, 0.125])  # 1.75 bits
    for seed in range(100):
        drawn = np.random.default_rng(seed).choice(4, (200, 1, 1), p=share)
        found = codes.usage(drawn, 4, np.arange(200), seed).entropy
        held.append(found.lower[0] < 1.75 < found.upper[0])
    assert np.mean(held) > 0.88


def test_most_frequent_codes_and_bins() -> None:
    found = codes.most_frequent(np.array([[7, 1], [7, 2], [3, 2], [9, 2]]), kept=2)
    assert found.tolist() == [[0, 1], [0, 0], [1, 0], [2, 0]]
    bins = codes.binned(np.array([*np.arange(16.0), np.nan]))
    assert np.bincount(bins[:-1]).tolist() == [2] * 8 and bins[-1] == -1
    assert len(set(codes.binned(np.array([0.0, 0, 0, 0, 0, 0, 0, 1])))) == 2


def test_independent_codes_say_nothing_within_the_interval() -> None:
    held, mean = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values, labels = rng.integers(0, 16, (500, 6)), rng.integers(0, 8, 500)
        found = codes.information(values, labels, np.arange(500), seed)
        assert found.chance.mean() > 0.15  # what counting alone would have found
        one = draws.interval_of_mean(found.pointwise.mean(1), np.arange(500), seed)
        held.append(one.lower <= 0 <= one.upper)
        mean.append(one.estimate)
    assert np.mean(held) > 0.93 and abs(np.mean(mean)) < 0.005


def test_independent_codes_of_groups_say_nothing_either() -> None:
    """Five images a group, all with the same code and label."""
    mean = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(60), 5)
        values, labels = rng.integers(0, 8, (60, 4))[group], rng.integers(0, 4, 60)[group]
        mean.append(codes.information(values, labels, group, seed).bits.mean())
    assert abs(np.mean(mean)) < 0.02


def test_information_counts_groups_not_images() -> None:
    rng = np.random.default_rng(0)
    values, labels = rng.integers(0, 4, (64, 6)), rng.integers(0, 4, 64)
    values[:, :3] = labels[:, None]
    once = codes.information(values, labels, np.arange(64), 0)
    group = np.repeat(np.arange(64), 4)
    copies = codes.information(values[group], labels[group], group, 0)
    np.testing.assert_allclose(copies.bits, once.bits, atol=1e-6)
    assert codes.values_for(np.arange(512)) == codes.values_for(np.repeat(np.arange(512), 3)) == 16
    assert codes.values_for(np.repeat(np.arange(64), 8)) == 2, "512 images, and 64 that differ"


def test_information_where_no_two_groups_have_one_size() -> None:
    group = np.repeat(np.arange(40), np.arange(1, 41))
    mean = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 3, 40)
        values = np.stack([labels, *rng.integers(0, 3, (6, 40))], 1)
        mean.append(codes.information(values[group], labels[group], group, seed).bits)
    bits = np.mean(mean, 0)
    assert 1.35 < bits[0] < np.log2(3) and (np.abs(bits[1:]) < 0.03).all()


def test_information_of_a_noisy_copy() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 4000)
    flip = rng.random(4000) < 0.3
    values = np.stack([labels, np.where(flip, rng.integers(0, 4, 4000), labels)], 1)
    labels[:7] = -1
    found = codes.information(values, labels, np.arange(4000), seed=0)
    right = 0.7 + 0.3 / 4
    wanted = 2 + right * np.log2(right) + (1 - right) * np.log2((1 - right) / 3)
    np.testing.assert_allclose(found.bits, [2, wanted], atol=0.04)
    assert found.entropy == pytest.approx(2, abs=0.01)
    assert np.isnan(found.pointwise[:7]).all()
    np.testing.assert_allclose(found.pointwise[7:].mean(0), found.bits, atol=1e-3)


def made_codes(N: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (N, 6), codes (N, 1, 2) of which the first group follows the features, and a codebook (2, 32, 4)."""
    codebook = normal(2, 32, 4)
    codebook /= np.linalg.norm(codebook, axis=2, keepdims=True)
    chosen = np.random.default_rng(1).integers(0, 32, (N, 1, 2))
    features = codebook[0, chosen[:, 0, 0]] @ normal(4, 6, seed=2) + noise * normal(N, 6, seed=3)
    return features, chosen, codebook


def test_codes_are_read_through_their_vectors() -> None:
    features, chosen, codebook = made_codes(600, noise=1e-3)
    found = codes.readable_vectors(features, chosen, codebook, np.arange(600), seed=0)
    bits, floor = found.bits.mean((0, 1)), found.floor.mean((0, 1))
    assert bits[0] > 0.9 * floor[0] and floor[0] == pytest.approx(5, abs=0.2)
    assert abs(bits[1]) < 0.1


def test_what_is_read_is_never_more_than_there_is() -> None:
    """Codes 0 and 1 for the sign of a number that is seen through noise: 1 - H(error) is what can be read."""
    N = 3000
    rng = np.random.default_rng(0)
    sign = rng.integers(0, 2, N)
    seen = 2.0 * sign - 1 + rng.normal(size=N)
    features = np.stack([seen, rng.normal(size=N)], 1)
    codebook = np.array([[[-1.0, 0, 0, 0], [1, 0, 0, 0]]])
    posterior = 1 / (1 + np.exp(-2 * seen * (2 * sign - 1)))
    truth = 1 + np.log2(posterior).mean()
    groups = np.arange(N)
    by_vectors = codes.readable_vectors(features, sign[:, None, None], codebook, groups, 0).bits.mean()
    by_class = codes.readable(features, sign[:, None], groups, np.zeros(1), 0).mean()
    for found in (by_vectors, by_class):
        assert 0.8 * truth < found < truth + 0.01


def test_codes_that_differ_in_frequency_and_place_are_read_as_far_as_they_can() -> None:
    N, places, shares = 3000, np.array([-1.0, 0, 2]), np.array([0.3, 0.5, 0.2])
    rng = np.random.default_rng(0)
    code = rng.choice(3, N, p=shares)
    seen = places[code] + 0.8 * rng.normal(size=N)
    density = shares * np.exp(-((seen[:, None] - places) ** 2) / (2 * 0.8**2))
    truth = np.log2(density[np.arange(N), code] / density.sum(1) / shares[code]).mean()
    features, groups = np.stack([seen, rng.normal(size=N)], 1), np.arange(N)
    codebook = np.zeros((1, 3, 4))
    codebook[0, :, 0] = places
    by_vectors = codes.readable_vectors(features, code[:, None, None], codebook, groups, 0).bits.mean()
    by_class = codes.readable(features, code[:, None], groups, np.zeros(1), 0).mean()
    assert 0.85 * truth < by_vectors < truth + 0.01
    assert 0.85 * truth < by_class < truth + 0.01


def test_frequent_codes_are_read_from_what_holds_them_and_nothing_from_noise() -> None:
    values = np.random.default_rng(0).integers(0, 8, (500, 3))
    hot = np.eye(8)[values[:, 0]]
    groups = np.arange(500)
    found = codes.readable(hot + 0.1 * normal(500, 8), values, groups, np.arange(3), seed=0).mean(0)
    assert found[0] > 2.5 and (np.abs(found[1:]) < 0.05).all()


def test_cells_hold_similar_codes() -> None:
    centres = normal(1, 4, 4) * 10
    codebook = (centres[:, :, None] + 0.1 * normal(1, 4, 8, 4, seed=1)).reshape(1, 32, 4)
    found = codes.cells(codebook, 4, seed=0)
    assert all(len(set(found[0, at * 8 : at * 8 + 8])) == 1 for at in range(4)) and len(set(found[0])) == 4


# ---- maps


def test_principal_components_are_those_of_the_features() -> None:
    x = normal(80, 5) * [5, 3, 2, 1, 0.5] + 10
    found = maps.principal(maps.inner_products(x), components=3)
    axes, sizes, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.scores), np.abs(axes * sizes)[:, :3], atol=1e-6)
    np.testing.assert_allclose(found.variance, (sizes**2 / (sizes**2).sum())[:3])
    assert maps.principal(np.ones((6, 6))).scores.shape == (6, 0)


def test_principal_components_of_rows_that_stand_for_several() -> None:
    x, which = normal(70, 60), np.repeat(np.arange(70), np.arange(70) % 3 + 1)
    once = maps.principal(maps.inner_products(x), np.bincount(which))
    every = maps.principal(maps.inner_products(x[which]))
    np.testing.assert_allclose(once.scores[which], every.scores, atol=1e-4)
    np.testing.assert_allclose(once.variance, every.variance, rtol=1e-5)


def test_components_of_less_than_full_rank_repeat_themselves() -> None:
    """A search that runs out of directions takes new ones, by a seed."""
    for likeness in (maps.inner_products(normal(300, 9)), maps.inner_products(np.repeat(normal(12, 80), 20, axis=0))):
        first = maps.principal(likeness)
        for _ in range(3):
            np.testing.assert_array_equal(maps.principal(likeness).scores, first.scores)


def test_equal_codes_are_counted() -> None:
    found = maps.equal_codes(np.array([[1, 2, 3], [1, 2, 0], [0, 0, 0]], dtype=np.uint16))
    assert found.tolist() == [[3, 2, 0], [2, 3, 1], [0, 1, 3]]


def test_distances_are_those_of_the_features() -> None:
    x = normal(40, 6) + 3
    near = np.tile([1, 2, -1], (40, 1))
    found = maps.distances(maps.inner_products(x), near)
    away = np.linalg.norm(x[:, None] - x, axis=2)
    typical = np.sqrt((away**2).sum() / (40 * 39))
    np.testing.assert_allclose(found[:, :2], away[:, 1:3] / typical, rtol=1e-4, atol=1e-4)
    assert np.isnan(found[:, 2]).all()
    assert maps.distances(np.ones((6, 6)), np.zeros((6, 1), int)).tolist() == [[0]] * 6


@pytest.mark.slow
def test_umap_keeps_clusters_apart_and_repeats_itself() -> None:
    x = np.concatenate([normal(60, 10), normal(60, 10, seed=1) + 20])
    found = maps.umap_of(x, seed=0)
    near = geometry.nearest(found, np.arange(120))
    assert ((near < 60) == (np.arange(120) < 60)[:, None]).all()
    np.testing.assert_array_equal(found, maps.umap_of(x, seed=0))
    assert maps.umap_of(np.zeros((6, 0)), seed=0).tolist() == [[0, 0]] * 6


# ---- the whole section


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("run") / "run.h5"
    assert main(["--limit", "60", "--out", str(out), "--device", "cpu"]) == 0
    with open_run(out) as opened:
        yield opened


def test_the_section_of_the_shipped_models_run(run: Run) -> None:
    folder = models.find("htc-tiny")
    model = models.load(folder, dtype=torch.float32, device="cpu")
    probes = {
        (name, "z_voco", 4): Probe("classes", ("a", "b", "c"), normal(128, 3, seed=at), np.zeros(3), np.zeros(128))
        for at, name in enumerate(("category", "scene", "texture"))
    }
    found = reading.analyse(run, model, probes, models.read_tokenizer(folder), images=40)
    assert found.representations == ["z_voco", "v_d", "v_pooled"]
    assert found.neighbours.score is not None and found.neighbours.score.estimate.shape == (11, 3)
    assert found.likeness_of == ["z_voco 1", "z_voco 2", "z_voco 3", "z_voco 4", "v_d", "v_pooled"]
    np.testing.assert_allclose(found.cka.estimate.diagonal(), 1, atol=1e-5)
    code, patch, lens = found.code, found.patch, found.lens
    assert code is not None and code.size == 256 and code.bits.estimate.shape == (3, 8)
    assert code.label is not None and code.label.bits.estimate.shape == (11, 8) and code.label.map.shape == (11, 16)
    assert patch is not None and patch.images == 40 and patch.r2.estimate.shape == (3, 64)
    _, anchors, pooled = patch.r2_all.estimate
    assert pooled > anchors, "pooled V holds more of the patches than anchors do"
    assert lens is not None and lens.words is not None and lens.tasks is not None and lens.accuracy is not None
    assert lens.surprise.estimate[-1] == pytest.approx(0, abs=1e-3) and lens.same_word.estimate[-1] == 1
    assert lens.tokens.shape == (5, 10) and len(lens.words) == 5
    assert "category" in lens.tasks and "shade" not in lens.tasks  # dark blue is two words
    assert lens.accuracy.estimate.shape == (len(lens.tasks), 5)
    assert found.angle_semantic == ["category", "scene"] and found.angle_detail == ["texture"]
    assert found.angle is not None and found.read_out is not None
    assert found.angle.overlap.shape == found.read_out.overlap.shape == (2, 1)
    assert found.angle.overlap_all < 2 * found.angle.overlap_all_chance_upper
    values = records.flat(found)
    for name, value in values.items():
        if name.endswith("_lower"):
            assert np.all((value <= (upper := values[f"{name[:-6]}_upper"])) | np.isnan(value) | np.isnan(upper)), name


def test_the_attention_of_this_run_is_what_it_stored(run: Run) -> None:
    found = rows.analyse(run)
    assert found.anchor_mass is not None
    np.testing.assert_allclose(found.anchor_mass.estimate, run.anchor_mass().mean(0), rtol=1e-3)
    mean_LHS = np.concatenate(list(run.attention_blocks())).mean(0, dtype=float)
    np.testing.assert_allclose(found.mean_attention, mean_LHS, rtol=1e-3)
    total = sum(levels.overall.only.estimate for levels in (found.anchor_mass, found.patch_mass, found.voco_mass))
    assert total == pytest.approx(1, abs=1e-5)


def test_what_needs_no_model_is_read_without(run: Run) -> None:
    found = reading.analyse(run)
    assert found.patch is None and found.lens is None and found.angle is None and found.angle_semantic is None
    assert found.code is not None and found.code.bits.estimate.shape == (3, 8) and found.code.size == 256
    assert (found.code.bits.estimate < found.code.entropy_read).all()


def test_probes_of_another_width_are_refused(run: Run) -> None:
    probes = {("scene", "z_voco", 4): Probe("classes", ("a", "b"), normal(7, 1), np.zeros(1), np.zeros(7))}
    with pytest.raises(UserError, match="probe of scene takes 7 features.*128"):
        reading.analyse(run, None, probes)


@pytest.mark.slow
def test_maps_of_a_run(run: Run) -> None:
    found = maps.analyse(run, seed=1)
    assert found.map_of == ["z_voco", "v_d", "v_pooled", "codes"]
    assert found.pca.shape == found.umap.shape == (4, 60, 2)
    assert (found.umap_kept.lower > found.kept_chance).all()
    near, away = found.nearest_rows, found.nearest_distance
    assert near.shape == away.shape == (4, 60, 10) and near.dtype == np.int32 and away.dtype == np.float32
    z = geometry.standardised(run.z_voco(-1))
    from_seven = np.linalg.norm(z - z[7], axis=1)
    assert near[0, 7].tolist() == np.argsort(from_seven)[1:11].tolist() and (np.diff(away, axis=2) >= -1e-6).all()
    again = maps.analyse(run, seed=1)
    np.testing.assert_array_equal(found.umap, again.umap)


@pytest.mark.slow
def test_maps_of_images_that_come_more_than_once_repeat_themselves(tmp_path: Path) -> None:
    (tmp_path / "photos" / "val").mkdir(parents=True)
    for at in range(60):
        colours = np.random.default_rng(at % 12).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((64, 64)).save(tmp_path / "photos" / "val" / f"{at:02d}.png")
    out = tmp_path / "run.h5"
    assert main(["--data", str(tmp_path / "photos"), "--split", "val", "--out", str(out), "--device", "cpu"]) == 0
    found = []
    for threads in (1, 2, 2):
        with threadpool_limits(threads), open_run(out) as run:
            found.append(records.flat(maps.analyse(run, seed=1)))
    for name, value in found[0].items():
        for again in found[1:]:
            np.testing.assert_array_equal(value, again[name])


def test_runs_that_are_too_small_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    assert main(["--limit", "4", "--out", str(out), "--device", "cpu"]) == 0
    with open_run(out) as small:
        with pytest.raises(UserError, match="4 groups.*at least 10"):
            reading.analyse(small)
        with pytest.raises(UserError, match="4 images.*at least 5"):
            maps.analyse(small)
