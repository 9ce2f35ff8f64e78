"""Knock-outs equal the stock model under an edited mask; what is measured of them has known answers."""

import contextlib
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from htc_probe.analysis.causes import knockouts
from htc_probe.analysis.causes.effects import (
    coalitions,
    probe_changes,
    rank_correlation,
    ranks_of_attention,
    shapley,
    times_even,
)
from htc_probe.analysis.causes.knockouts import answers_of, gradients, knock_out, stand_ins
from htc_probe.analysis.records import flat
from htc_probe.extract.again import take
from htc_probe.extract.cli import main as extract_main
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import open_run
from htc_probe.extract.vlm import passes
from htc_probe.extract.vlm.model import HTCVLM
from htc_probe.probes.files.weights import Probe
from made.cases import CASES, LAYERS, WIDTH, A, B, Case, N, P, Q, tiny

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}


@torch.no_grad()
def stock(case: Case, *closed: int, window: range | None = None) -> tuple[Tensor, Tensor]:
    """The stock model, its mask edited: hidden states of <voco> (B, L+1, d), log-probability of the answers (B, Q)."""
    case.llm.config._attn_implementation = "eager"
    hidden, told = None, []
    for q in range(Q):
        text = case.llm.model.embed_tokens(case.texts.ids[:, q])
        x = torch.cat([case.prefix, case.hybrid, case.model.voco.expand(B, 1, -1), text], 1)
        with masked_in(case, window, case.mask(*closed)):
            mask = case.mask(*(closed if window is None else ())).expand(B, -1, -1, -1)
            out = case.llm(inputs_embeds=x, attention_mask=mask, output_hidden_states=True, use_cache=False)
        hidden = torch.stack([h[:, case.before] for h in out.hidden_states], 1)
        log = out.logits[:, case.before + 1 : -1].log_softmax(-1)
        labels = case.texts.labels[:, q, 1:]
        each = log.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels == -100, 0).sum(-1)
        told.append(each.masked_fill((labels == -100).all(1), torch.nan))
    assert hidden is not None
    return hidden, torch.stack(told, 1)


@contextlib.contextmanager
def masked_in(case: Case, window: range | None, mask: Tensor) -> Iterator[None]:
    """The stock layers of the window see this mask."""

    def swap(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, kwargs | {"attention_mask": mask.expand(B, -1, -1, -1)}

    layers = [] if window is None else [case.llm.model.layers[i] for i in window]
    hooks = [layer.register_forward_pre_hook(swap, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def one_each(case: Case) -> Tensor:
    return torch.eye(case.before, dtype=torch.bool)[None]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_every_knock_out_equals_the_stock_model_under_the_edited_mask(settings: dict[str, Any]) -> None:
    case = Case(**settings)
    with torch.no_grad():
        out = passes.run(case.model, case.shared, one_each(case))
        answers = answers_of(case.model, case.shared, out, case.texts)
        found = knock_out(case.model, case.shared, one_each(case), texts=case.texts)
    base, base_answers = stock(case)
    torch.testing.assert_close(case.shared.base.hidden[:, 0], base, **CLOSE)
    for token in range(case.before):
        hidden, told = stock(case, token)
        torch.testing.assert_close(out.hidden[:, token], hidden, **CLOSE)
        torch.testing.assert_close(answers[:, token], told, **CLOSE, equal_nan=True)
        torch.testing.assert_close(found.answers[:, token], told - base_answers, **CLOSE, equal_nan=True)
        change = (hidden - base).norm(dim=-1) / base.norm(dim=-1)
        torch.testing.assert_close(found.change[:, token], change, **CLOSE)
        cosine = torch.nn.functional.cosine_similarity(hidden, base, dim=-1)
        torch.testing.assert_close(found.cosine[:, token], cosine, **CLOSE)
    assert found.change[:, :, -1].max() > 0.05  # there was something to get wrong


@pytest.mark.parametrize("window", [range(0, 1), range(1, 3), range(2, 3)], ids=str)
def test_a_window_closes_a_key_in_its_layers_alone(window: range) -> None:
    case = Case(kv_heads=2)
    closed = one_each(case)
    with torch.no_grad():
        out = passes.run(case.model, case.shared, closed, start=window.start, stop=window.stop)
        answers = answers_of(case.model, case.shared, out, case.texts)
    for token in (0, 4, 11):
        hidden, told = stock(case, token, window=window)
        torch.testing.assert_close(out.hidden[:, token], hidden, **CLOSE)
        torch.testing.assert_close(answers[:, token], told, **CLOSE, equal_nan=True)


def test_rows_of_variants_sum_to_one_and_leave_out_what_is_closed() -> None:
    case = Case()
    everything = torch.ones(1, 1, case.before, dtype=torch.bool)
    out = passes.run(case.model, case.shared, torch.cat([one_each(case), everything], 1), rows=True)
    for rows in out.rows:
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))
        assert (rows[:, torch.arange(N), :, torch.arange(N)] == 0).all()
        torch.testing.assert_close(rows[:, -1, :, -1], torch.ones(B, 4))  # it is left with itself


@pytest.mark.parametrize("prefix", [(), (3, 5)])
def test_a_replaced_token_takes_its_own_path(prefix: tuple[int, ...]) -> None:
    """Equal to the whole model on embeddings in which the tokens are replaced."""
    case = Case(kv_heads=2, prefix=prefix)
    other = torch.randn(1, N, WIDTH, generator=torch.Generator().manual_seed(2))
    groups = torch.zeros(1, 2, case.before, dtype=torch.bool)
    groups[0, 0, len(prefix) + 2], groups[0, 1, len(prefix) + 1 :] = True, True
    with torch.no_grad():
        instead = stand_ins(case.model, case.shared, other)
        out = passes.run(case.model, case.shared, groups, instead=instead)
        for variant in range(2):
            swapped = groups[0, variant, len(prefix) :, None]
            edited = torch.where(swapped, other, case.hybrid)
            whole = passes.share(case.model, edited, case.prefix)
            torch.testing.assert_close(out.hidden[:, variant], whole.base.hidden[:, 0], **CLOSE)


def test_base_answers_are_those_of_read() -> None:
    case = Case()
    with torch.no_grad():
        ours = answers_of(case.model, case.shared, case.shared.base, case.texts)[:, 0]
        logits = case.model.read(case.model.compress(case.hybrid[:, :A], case.hybrid[:, A:]), case.texts.ids)
    log = logits.log_softmax(-1)
    assert ours[1, 1].isnan()
    torch.testing.assert_close(ours[0, 1], log[0, 1, 3, case.texts.ids[0, 1, 4]], **CLOSE)


def test_chunks_of_variants_change_nothing() -> None:
    case = Case()
    whole = knock_out(case.model, case.shared, one_each(case), texts=case.texts)
    chunks = knock_out(case.model, case.shared, one_each(case), texts=case.texts, most=1)
    for one, other in zip(whole, chunks, strict=True):
        torch.testing.assert_close(one, other, **CLOSE, equal_nan=True)


def test_models_without_an_exact_answer_are_refused() -> None:
    with pytest.raises(UserError, match="uncompressed"):
        Case(topology="uncompressed")
    causal = Case(topology="causal")
    with pytest.raises(ValueError, match="no path of their own"):
        stand_ins(causal.model, causal.shared, causal.hybrid)


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_gradients_are_slopes(settings: dict[str, Any]) -> None:
    """Of shrinking a token's embedding, and of weighing its key less, by central differences."""
    case = Case(**settings)
    case.model.double()
    case.hybrid, case.prefix = case.hybrid.double(), case.prefix.double()
    prefixed = case.prefix.shape[1]
    found = gradients(case.model, case.hybrid, case.prefix, case.texts)
    assert found.gate.shape == (B, LAYERS, case.hybrid.shape[1]) and (found.gate[:, -1] == 0).all()

    def target(hybrid: Tensor, shifts: list[Tensor]) -> Tensor:
        before = passes.share(case.model, hybrid, case.prefix).before
        shared = passes.base_pass(case.model, before, B, shifts)
        return answers_of(case.model, shared, shared.base, case.texts)[:, 0].double().nanmean(-1)

    step = 3e-3
    close: dict[str, Any] = {"rtol": 0.02, "atol": 5e-4}  # log-probabilities are float32
    even = [torch.zeros(B, case.before, dtype=torch.float64) for _ in range(LAYERS)]
    with torch.no_grad():
        for token in {int(found.gate[0, layer].abs().argmax()) for layer in range(LAYERS)}:
            for layer in range(LAYERS):
                ends = []
                for weight in (1 + step, 1 - step):
                    shifts = [shift.clone() for shift in even]
                    shifts[layer][:, prefixed + token] = np.log(weight)
                    ends.append(target(case.hybrid, shifts))
                slope = (ends[0] - ends[1]) / (2 * step)
                torch.testing.assert_close(found.gate[:, layer, token].double(), slope, **close)
            if found.times_input is None:
                assert case.model.config.topology != "star"
                continue
            scale = torch.ones(N, 1)
            scale[token] = 1 + step
            up = target(case.hybrid * scale, even)
            scale[token] = 1 - step
            slope = (up - target(case.hybrid * scale, even)) / (2 * step)
            torch.testing.assert_close(found.times_input[:, 0, token].double(), slope, **close)
    assert found.gate[:, 0].abs().max() > 0.02
    if found.times_input is not None:  # a norm hides how long the last state is that answers depend on
        assert found.times_input[:, 0].abs().max() > 5e-3 and found.times_input[:, -2].abs().max() < 1e-6


def test_a_key_of_no_weight_is_a_closed_one() -> None:
    case = Case(kv_heads=2)
    shifts = [torch.zeros(B, N) for _ in range(LAYERS)]
    for shift in shifts:
        shift[:, 7] = -torch.inf
    with torch.no_grad():
        shared = passes.base_pass(case.model, case.shared.before, B, shifts)
        closed = passes.run(case.model, case.shared, one_each(case)[:, 7:8])
    torch.testing.assert_close(shared.base.hidden, closed.hidden, **CLOSE)


# ---- what is measured, on known answers


def test_probe_changes() -> None:
    z, base = np.array([[[1.0, 0.0], [-2.0, 0.0]]]), np.array([[1.0, 0.0]])
    number = Probe("number", (), np.array([[3.0], [0.0]]), np.array([1.0]), np.zeros(2))
    change = probe_changes(number, z, base)
    np.testing.assert_allclose(change, [[0, -9]])
    two = Probe("classes", ("no", "yes"), np.array([[1.0], [0.0]]), np.zeros(1), np.zeros(2))
    change = probe_changes(two, z, base)
    said = np.log(1 / (1 + np.exp(2.0))) - np.log(1 / (1 + np.exp(-1.0)))
    np.testing.assert_allclose(change, [[0, said]])
    three = Probe("classes", ("a", "b", "c"), np.array([[1.0, -1.0, 0.0], [0, 0, 0]]), np.zeros(3), np.zeros(2))
    change = probe_changes(three, z, base)
    e = np.exp
    np.testing.assert_allclose(change, [[0, -2 - np.log(e(-2) + e(2) + 1) - 1 + np.log(e(1) + e(-1) + 1)]])
    many = Probe("multilabel", ("a", "b"), np.array([[1.0, 0.0], [0, 0]]), np.array([0.0, 1.0]), np.zeros(2))
    change = probe_changes(many, z, base)
    np.testing.assert_allclose(change, [[0, said / 2]])


def test_parts_are_multiples_of_an_even_one_and_keep_their_sign() -> None:
    np.testing.assert_allclose(times_even(np.array([1.0, -1.0, 2.0, 0.0])), [1, -1, 2, 0])
    np.testing.assert_allclose(times_even(np.full(5, 0.3)), np.ones(5))
    np.testing.assert_array_equal(times_even(np.zeros(3)), np.zeros(3))


def test_shapley_values_of_known_games() -> None:
    members = coalitions(5)
    assert members.shape == (32, 5) and len(np.unique(members, axis=0)) == 32
    assert not members[0].any() and members[-1].all()
    weights = np.array([3.0, -1, 0, 2, 5])
    np.testing.assert_allclose(shapley(members @ weights + 7), weights, atol=1e-12)

    # Two left gloves and a right one: a pair is worth 1. Its owner gets 2/3, the others 1/6.
    gloves = coalitions(3)
    pair = (gloves[:, 0] | gloves[:, 1]) & gloves[:, 2]
    np.testing.assert_allclose(shapley(np.stack([pair, 3 * pair])), [[1 / 6, 1 / 6, 2 / 3], [0.5, 0.5, 2]])
    np.testing.assert_allclose(shapley(np.array([2.0, 5.0])), [3])


def test_shapley_values_are_the_mean_over_all_orders() -> None:
    worth = np.random.default_rng(0).normal(size=2**4)
    gains = np.zeros(4)
    for order in permutations(range(4)):
        there = 0  # the number of the coalition, a bit a player
        for player in order:
            gains[player] += worth[there | 1 << player] - worth[there]
            there |= 1 << player
    np.testing.assert_allclose(shapley(worth), gains / 24)
    np.testing.assert_allclose(shapley(worth).sum(), worth[-1] - worth[0])


def test_players_are_few_enough_for_all_coalitions() -> None:
    """However many anchors there are, every token is of exactly one player."""
    for anchors, names in (
        (0, []),
        (1, ["anchor 1"]),
        (4, [f"anchor {at}" for at in (1, 2, 3, 4)]),
        (6, ["anchors 1 to 2", "anchors 3 to 4", "anchor 5", "anchor 6"]),
    ):
        places = knockouts._places(tiny(num_anchors=anchors))
        assert list(places.players)[:-4] == names
        np.testing.assert_array_equal(np.sort(np.concatenate(list(places.players.values()))), places.tokens)


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 5, (2, 3, 12)).astype(float), rng.normal(size=(2, 1, 12))
    found = rank_correlation(one, other)
    for i in range(2):
        for j in range(3):
            np.testing.assert_allclose(found[i, j], spearmanr(one[i, j], other[i, 0]).statistic)
    assert np.isnan(rank_correlation(np.ones((1, 4)), np.arange(4.0)[None])).all()
    assert np.isnan(rank_correlation(np.arange(4.0), np.array([0, 1, np.nan, 2])))


def test_ranks_of_attention_that_tells_all_or_the_reverse() -> None:
    """Of 2 images, 3 layers and 9 tokens."""
    rng = np.random.default_rng(0)
    attention = rng.random((2, 2, 3, 9))
    mean = attention.mean(2)  # (2, 2, 9)
    windows = np.stack([attention[:, 0, 0] ** 3, 1 - attention[:, 0, 1], rng.normal(size=(2, 9))], 1)
    sign = rng.choice([-1, 1], (2, 9))  # an effect's size is what is ranked
    effects = np.stack([np.log1p(mean[:, 0]) * sign, sign / mean[:, 1], np.ones((2, 9)), rng.normal(size=(2, 9))], -1)
    effects[1, 4, 3] = np.nan
    window, question, probe = ranks_of_attention(attention, windows, effects[..., :2], effects)
    assert question is not None and probe is not None
    assert [values.shape for values in (window, question, probe)] == [(2, 2, 3), (2, 2, 2), (2, 2, 4)]
    np.testing.assert_allclose(window[:, 0, :2], [[1, -1]] * 2)
    np.testing.assert_allclose(probe[:, 0, 0], 1)
    np.testing.assert_allclose(probe[:, 1, 1], -1)
    assert np.isnan(probe[:, :, 2]).all() and np.isnan(probe[1, :, 3]).all()
    alone = ranks_of_attention(attention, windows, None, effects[..., :1])
    assert alone.question is None
    np.testing.assert_array_equal(alone.probe, probe[..., :1])
    for image in range(2):
        for kind in range(2):
            expected = [
                spearmanr(attention[image, kind, layer], np.abs(windows[image, layer])).statistic for layer in range(3)
            ]
            np.testing.assert_allclose(window[image, kind], expected)
            expected = [spearmanr(mean[image, kind], np.abs(effects[image, :, at])).statistic for at in (0, 1)]
            np.testing.assert_allclose(probe[image, kind, :2], expected)
            # What is said hangs on the layers before the last alone.
            read = attention[image, kind, :2].mean(0)
            expected = [spearmanr(read, np.abs(effects[image, :, at])).statistic for at in (0, 1)]
            np.testing.assert_allclose(question[image, kind], expected)


# ---- the section


IMAGES = 5


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> tuple[HTCVLM, Path]:
    """A model that speaks the scenes' words, and its run."""
    folder, model = tmp_path_factory.mktemp("model"), tiny(2)
    model.save_pretrained(folder)
    out = folder / "run.h5"
    assert extract_main(["--model", str(folder), "--limit", str(IMAGES), "--out", str(out), "--device", "cpu"]) == 0
    return model, out


def test_the_section(extracted: tuple[HTCVLM, Path]) -> None:
    model, path = extracted
    draw = np.random.default_rng(0)
    probe = Probe("classes", ("a", "b", "c"), draw.normal(size=(WIDTH, 3)), np.zeros(3), np.zeros(WIDTH))
    given = {("shade", "z_voco", LAYERS): probe, ("shade", "z_voco", 1): probe, ("shade", "v_d", None): probe}
    column, none = draw.normal(size=(WIDTH, 1)), np.zeros(1)
    given["size", "z_voco", LAYERS] = Probe("number", (), column, none, np.zeros(WIDTH))
    given["hue", "z_voco", LAYERS] = Probe("classes", ("a", "b"), -column, none, np.zeros(WIDTH))
    told: list[int] = []
    with open_run(path) as run:
        found = flat(knockouts.analyse(model, run, limit=4, probes=given, on_images=told.append))
        again = flat(knockouts.analyse(model, run, limit=4, probes=given))
        taken = take(model, run, 4, seed=0)
    assert taken.texts is not None
    assert told == [4] and found["images"] == taken.ids == [f"scenes-val-00000{row}" for row in taken.rows]
    assert found["token_role"] == ["anchor"] * A + ["patch"] * P and found["probes"] == ["shade", "size", "hue"]
    for name, value in found.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, again[name])

    with torch.no_grad():
        shared = passes.share(model, taken.hybrid, taken.prefix.expand(4, -1, -1))
        loo = knock_out(model, shared, torch.eye(N, dtype=torch.bool)[None], texts=taken.texts)
        out = passes.run(model, shared, torch.ones(1, 1, N, dtype=torch.bool))
        nothing = answers_of(model, shared, out, taken.texts)[:, 0].nanmean(-1)
        before = answers_of(model, shared, shared.base, taken.texts)[:, 0]
    np.testing.assert_allclose(found["loo_change"], loo.change, atol=1e-6)
    np.testing.assert_allclose(found["loo_answers"], loo.answers, atol=1e-5)
    assert (found["loo_change"][..., 0] == 0).all()  # layer 0 is the embedding
    np.testing.assert_allclose(found["shapley_answers"].sum(-1), before.nanmean(-1) - nothing, atol=1e-4)
    # In one layer only: the last layer's window is the last row's part of the whole.
    assert found["window_change"].shape == (4, LAYERS, N) and found["group_window_change"].shape == (4, LAYERS, 2)
    assert (found["group_window_answers"][:, -1] == 0).all() and (found["group_window_answers"][:, :-1] != 0).all()
    whole = knock_out(model, shared, torch.arange(N)[None, None] >= A)
    np.testing.assert_allclose(found["group_change"][:, 0, 3], whole.change[:, 0, -1], atol=1e-6)
    np.testing.assert_array_equal(found["mean_group_change"], found["group_change"].mean(0, dtype=float).astype("f4"))
    assert (found["mean_group_change_lower"] <= found["mean_group_change_upper"]).all()
    assert found["shapley_players"][A:] == [
        f"{name} patches" for name in ("upper left", "upper right", "lower left", "lower right")
    ]
    assert found["rank"].shape == (4, 4, 2, LAYERS + 1)
    assert np.isfinite(found["rank"][:, :2]).all() and np.isnan(found["rank"][:, 2:, :, LAYERS - 1]).all()
    effect = np.abs(np.nanmean(found["loo_answers"][0], -1))
    looked = shared.base.rows[1][0, 0].mean(0)[:N].numpy()
    np.testing.assert_allclose(found["rank"][0, 0, 1, 1], spearmanr(looked, effect).statistic, atol=1e-6)
    # Text reads nothing that the last layer makes, so what it looks at there tells no effect on answers, only on z.
    by_layer = torch.stack([row[0, 0].mean(0)[:N] for row in shared.base.rows])
    for at, (over, of) in enumerate(((by_layer, loo.change[0, :, -1].numpy()), (by_layer[:-1], effect))):
        wanted = spearmanr(over.mean(0).numpy(), of).statistic
        np.testing.assert_allclose(found["rank"][0, 0, at, -1], wanted, atol=1e-3)
    every = spearmanr(by_layer.mean(0).numpy(), effect).statistic
    assert abs(found["rank"][0, 0, 1, -1] - every) > 0.01, "the last layer would have changed it"
    most = by_layer[:-1].mean(0)[A:].topk(A).indices + A
    attended = knock_out(model, shared, torch.zeros(1, 1, N, dtype=torch.bool).index_fill(-1, most, True))
    np.testing.assert_allclose(found["group_change"][0, 0, 2], attended.change[0, 0, -1], atol=1e-6)
    # Shapley values are those of all coalitions, of each player's tokens together.
    half = (0, 1), (2, 3)
    quarters = [[A + 4 * row + col for row in rows for col in cols] for rows in half for cols in half]
    players = torch.zeros(A + 4, N, dtype=torch.bool)
    for player, tokens in enumerate([*([at] for at in range(A)), *quarters]):
        players[player, tokens] = True
    absent = torch.from_numpy(~coalitions(A + 4)).float() @ players.float() > 0
    worth = knock_out(model, shared, absent[None], texts=taken.texts)
    np.testing.assert_allclose(found["shapley_answers"], shapley(worth.answers.nanmean(-1).numpy()), atol=1e-4)
    np.testing.assert_allclose(found["shapley_cosine"], shapley(worth.cosine[..., -1].numpy()), atol=1e-5)
    assert not any("error" in name for name in found)
    check_ranks(found, shared.base.rows)
    assert all(isinstance(value, np.ndarray | list | float | int | str) for value in found.values())


def check_ranks(found: dict[str, Any], rows: list[Tensor]) -> None:
    """Those of attention in one layer, with questions and with probes are of what is stored beside them."""
    images, questions = len(found["images"]), len(found["questions"])
    assert found["window_rank"].shape == (images, 2, LAYERS) and found["question_rank"].shape == (images, 2, questions)
    assert found["probe_rank"].shape == (images, 2, 4)
    attention = np.stack([row[:, 0].mean(1)[:, :N] for row in rows], 1)  # (images, L, N)
    probes = found["loo_probe_changes"]
    of_classes = probes[..., [0, 2]].mean(-1, keepdims=True)
    for at in range(images):
        for name, looked, effects in (
            ("window_rank", attention[at], found["window_change"][at]),
            ("question_rank", attention[at, :-1].mean(0), found["loo_answers"][at].T),
            ("probe_rank", attention[at].mean(0), np.concatenate([probes, of_classes], -1)[at].T),
        ):
            looked = np.broadcast_to(looked, effects.shape)
            ranks = [spearmanr(one, np.abs(other)).statistic for one, other in zip(looked, effects, strict=True)]
            np.testing.assert_allclose(found[name][at, 0], ranks, atol=5e-3)  # effects are rounded as they are stored
    for name in ("window_rank", "question_rank", "probe_rank"):
        np.testing.assert_allclose(found[f"mean_{name}"], np.nanmean(found[name], 0), atol=1e-6)
        assert (found[f"mean_{name}_lower"] <= found[f"mean_{name}_upper"]).all()


def test_a_sample_is_what_the_run_was_made_of(extracted: tuple[HTCVLM, Path]) -> None:
    model, path = extracted
    with open_run(path) as run:
        taken = take(model, run, 100, 0)
        assert taken.ids == run.ids() and taken.groups == run.groups()
        with torch.no_grad():
            shared = passes.share(model, taken.hybrid)
        np.testing.assert_allclose(run.z_voco(), shared.base.hidden[:, 0, -1], rtol=2e-3, atol=2e-3)
        with pytest.raises(UserError, match="--images 0"):
            take(model, run, 0, 0)
        with pytest.raises(UserError, match="not that of run.h5"):
            take(tiny(2, topology="full"), run, 2, 0)


def test_one_image_and_a_model_without_anchors_have_their_sections(tmp_path: Path) -> None:
    model = tiny(2, words=30, num_anchors=0, topology="causal")  # and it was not taught the questions
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "run.h5"
    arguments = ["--model", str(tmp_path / "model"), "--limit", "1", "--out", str(out), "--device", "cpu"]
    assert extract_main(arguments) == 0
    with open_run(out) as run:
        found = flat(knockouts.analyse(model, run))
    assert not found["questions"] and found["rank_effects"] == ["z"] and not any("answers" in name for name in found)
    assert found["window_rank"].shape == (1, 2, LAYERS) and not {"question_rank", "probe_rank"} & found.keys()
    assert len(found["shapley_players"]) == 4 and found["group_size"] == 4
    assert np.isnan(found["group_change"][:, 1:]).all() and np.isnan(found["group_change"][:, 0, 0]).all()
    assert np.isfinite(found["group_change"][:, 0, 1:]).all() and found["rank"].shape[1] == 2
