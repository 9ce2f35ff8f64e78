"""The interchange test: planted models give tables of 0 and 1, and what is mixed, read and counted is what it says."""

import csv
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from htc_probe.analysis import results
from htc_probe.analysis.causes import following, interchange, mixing, scene_questions
from htc_probe.analysis.causes.following import Measure
from htc_probe.analysis.causes.mixing import Half, Mix
from htc_probe.analysis.records import flat
from htc_probe.analysis.sections import Interchange
from htc_probe.extract import again, models
from htc_probe.extract.cli import main
from htc_probe.extract.data import open_source, scenes
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Run, Task, open_run
from htc_probe.extract.vlm.model import HTCVLM, Hybrid
from htc_probe.probes.files.weights import Key, Probe
from made.models import SIZE, small_model

IMAGES, CLASSES = 24, 3
TOML = """
[what]
suite = "semantic"
kind = "classes"
[which]
suite = "semantic"
kind = "multilabel"
[how]
suite = "detail"
kind = "classes"
[far]
suite = "detail"
kind = "number"
unit = "m"
"""
NAMES = ("a", "b", "c")


def planted(carrier: str) -> HTCVLM:
    """A model whose <voco> sees anchors and patches alike, and takes values of the `carrier` only.

    Anchors live in one half of the width and patches in the other, MLPs add nothing, and keys and values are blind to
    the half of those that do not carry.
    """
    model = small_model()
    d = model.config.text.hidden_size
    half = {"anchors": slice(0, d // 2), "patches": slice(d // 2, d)}
    assert model.anchor_projector is not None
    with torch.no_grad():
        last: Any = model.anchor_projector[2]
        last.weight.mul_(5)
        for weight in (last.weight, last.bias):
            weight.view(model.config.num_anchors, d, -1)[:, half["patches"]] = 0
        last = model.patch_projector[-1]
        last.weight[half["anchors"]] = 0
        last.bias[half["anchors"]] = 0
        blind = half["patches" if carrier == "anchors" else "anchors"]
        for layer in model.language_model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.k_proj.weight[:, blind] = 0
            layer.self_attn.v_proj.weight[:, blind] = 0
    return model


class Case(NamedTuple):
    model: HTCVLM
    run: Run
    probes: dict[Key, Probe]


def make(model: HTCVLM, folder: Path, labels: dict[str, list[str]] | None = None) -> Case:
    """A run over pictures whose labels are what random probes read from the model: right on every image."""
    model.save_pretrained(folder / "model")
    source = open_source("scenes", "val", limit=IMAGES, resolution=SIZE)
    val = folder / "pictures" / "val"
    val.mkdir(parents=True)
    for i in range(IMAGES):
        source[i].image.save(val / f"{i:02}.png")
    command = ["--model", str(folder / "model"), "--data", str(val.parent), "--device", "cpu"]
    command += ["--store-dtype", "float32"]
    assert main([*command, "--out", str(folder / "bare.h5")]) == 0
    with open_run(folder / "bare.h5") as bare:
        z, layers = bare.z_voco(), bare.shape.layers
    rng = np.random.default_rng(0)
    probes: dict[Key, Probe] = {}
    for name, kind in (("what", "classes"), ("which", "multilabel"), ("how", "classes"), ("far", "number")):
        width = 1 if kind == "number" else CLASSES
        weights = rng.normal(size=(z.shape[1], width)) / z.std(0)[:, None]
        intercepts = -z.mean(0) @ weights
        probes[name, "z_voco", layers] = Probe(kind, NAMES if width > 1 else (), weights, intercepts, z.mean(0))
    told = {name: probe.predict(z).tolist() for (name, _, _), probe in probes.items()}
    told["which"] = ["|".join(n for n, has in zip(NAMES, row, strict=True) if has) or "none" for row in told["which"]]
    with (val / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", *told])
        writer.writerows([f"{i:02}.png", *(values[i] for values in told.values())] for i in range(IMAGES))
    (val.parent / "tasks.toml").write_text(TOML)
    assert main([*command, "--out", str(folder / "run.h5")]) == 0
    return Case(model, open_run(folder / "run.h5"), probes)


@pytest.fixture(scope="module", params=["anchors", "patches"])
def case(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Case]]:
    made = make(planted(request.param), tmp_path_factory.mktemp(request.param))
    yield request.param, made
    made.run.close()


def row(section: dict[str, Any], prefix: str = "", **wanted: Any) -> int:
    """The one row with these values."""
    found = [
        i
        for i in range(len(section[prefix + "task"]))
        if all(section[prefix + key][i] == value for key, value in wanted.items())
    ]
    assert len(found) == 1, (wanted, found)
    return found[0]


# ---- planted models


def test_a_planted_model_gives_tables_of_0_and_1(case: tuple[str, Case], tmp_path: Path) -> None:
    carrier, (model, run, probes) = case
    seen: list[tuple[int, int]] = []
    made = interchange.analyse(
        model, run, None, probes, pairs=IMAGES, progress=lambda done, total: seen.append((done, total))
    )
    section = flat(made)
    assert seen[-1][0] == seen[-1][1] and section["answers"] == "only the built-in scenes come with questions"
    at, other = (0, 1) if carrier == "anchors" else (1, 0)
    for task, suite in (("what", "semantic"), ("which", "semantic"), ("how", "detail"), ("", "semantic")):
        for only_right in (0, 1):
            of = {"readout": "probe", "factor": "all", "task": task, "suite": suite, "only_right": only_right}
            swapped = row(section, mix="swapped", **of)
            assert section["counted"][swapped] > 6 and section["couples"][swapped] > 3
            share = section["share"][swapped]
            np.testing.assert_array_equal(share[[at, other, 2], 0], [1, 0, 0])
            end = 0.025 ** (1 / section["couples"][swapped])  # all couples alike: Clopper and Pearson
            np.testing.assert_allclose(share[[at, other, 2], 1:], [[end, 1], [0, 1 - end], [0, 1 - end]], rtol=1e-5)
            assert section["floor"][swapped][at] < 0.9, "nothing of this is for free"
            np.testing.assert_array_equal(section["share"][row(section, mix="unmixed", **of)][:, 0], [1, 1, 0])
            for how in ("noise", "mean"):  # the half that carries nothing may be anything
                kept = section["share"][row(section, mix=f"{('anchors', 'patches')[other]} {how}", **of)]
                assert kept[at, 0] == kept[at, 2] == 1
                assert np.isnan(kept[other]).all()
                lost = section["share"][row(section, mix=f"{carrier} {how}", **of)]
                assert lost[other, 0] < 1 and np.isnan(lost[at]).all()
                np.testing.assert_allclose(lost[other, 0] + lost[2, 0], 1, atol=1e-6)
    for mix, wanted in (("swapped", [1, 0]), ("unmixed", [1, 1])):
        weight = section["number_weight"][row(section, "number_", task="far", mix=mix, factor="all")]
        np.testing.assert_allclose(weight[[at, other]], np.array(wanted)[:, None] * np.ones(3), atol=1e-3)
    alike = section["share"][row(section, task="what", mix="anchors class", factor="all", only_right=0)]
    np.testing.assert_array_equal(alike[:, 0], [0, 1, 0])  # the same class: it stays what it was

    # Image by image: what is read from it alone is true, and mixed it is of the half that carries.
    true, unmixed, swapped = (section[f"read_{name}"] for name in ("true", "unmixed", "swapped"))
    labels = run.task("which").classes
    assert section["read_task"] == ["what", *["which"] * len(labels), "how", "far"]
    assert section["read_label"] == ["", *labels, "", ""] and set(section["read_readout"]) == {"probe"}
    assert section["read_classes"][0] == '["a", "b", "c"]'
    known = np.isfinite(true[0])
    assert not known.all() and known.sum() == CLASSES + 3, "a label that the probe does not know is not known"
    followed = true if carrier == "anchors" else true[section["partner"]]
    np.testing.assert_array_equal(unmixed[:, known][:, :-1], true[:, known][:, :-1])
    np.testing.assert_array_equal(swapped[:, known][:, :-1], followed[:, known][:, :-1])
    np.testing.assert_allclose(swapped[:, -1], followed[:, -1], atol=1e-3)

    results.write(tmp_path / "a.h5", "interchange", made, run={}, settings={}, libraries={}, seconds=0)
    stored = flat(results.read(tmp_path / "a.h5").record("interchange", Interchange))
    for name, value in section.items():
        np.testing.assert_array_equal(stored[name], value)


def test_every_row_is_a_whole(case: tuple[str, Case]) -> None:
    _, (model, run, probes) = case
    section = flat(interchange.analyse(model, run, None, probes, pairs=12, seed=3))
    again = flat(interchange.analyse(model, run, None, probes, pairs=12, seed=3))
    texts = [len(section[key]) for key in ("task", "suite", "kind", "readout", "factor", "mix")]
    assert set(texts) == {len(section[key]) for key in ("only_right", "share", "floor", "counted", "couples")}
    for key, value in section.items():
        np.testing.assert_array_equal(value, again[key])
    share = np.asarray(section["share"])[:, :, 0]
    of_one = np.isin(section["mix"], ["unmixed"])
    sums = np.nansum(share, 1) - np.where(of_one, share[:, 0], 0)
    np.testing.assert_allclose(sums[np.asarray(section["counted"]) > 0], 1, atol=1e-5)
    partner = section["partner"]
    assert len(section["images"]) == len(partner) == 12
    np.testing.assert_array_equal(partner[partner], np.arange(12))


# ---- the shipped model


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HTCVLM, Run]]:
    out = tmp_path_factory.mktemp("shipped") / "run.h5"
    assert main(["--limit", "40", "--out", str(out), "--device", "cpu"]) == 0
    model = models.load(models.find("htc-tiny"), dtype=torch.float32, device="cpu")
    with open_run(out) as run:
        yield model, run


def test_answers_follow_the_only_half_that_differs(shipped: tuple[HTCVLM, Run]) -> None:
    _, run = shipped
    model = models.load(models.find("htc-tiny"), dtype=torch.float32, device="cpu")
    assert model.anchor_projector is not None
    with torch.no_grad():
        last: Any = model.anchor_projector[2]
        last.weight.zero_()  # the same anchors for all images
    section = flat(interchange.analyse(model, run, pairs=24))
    assert section["answers"] == "yes" and str(section["probes"]).startswith("no probes")
    counted, share = np.asarray(section["counted"]), np.asarray(section["share"])
    for i, (mix, right) in enumerate(zip(section["mix"], section["only_right"], strict=True)):  # type: ignore[arg-type]
        if mix == "swapped" and right and counted[i]:
            np.testing.assert_array_equal(share[i, :, 0], [0, 1, 0])
    one = [(f, t) for f, t in zip(section["factor"], section["task"], strict=True) if f != "all"]  # type: ignore[arg-type]
    assert {factor for factor, _ in one} == set(scene_questions.FACTORS)
    assert {task for _, task in one} == set(scene_questions.ANSWERS)
    assert all(task in scene_questions.FACTORS[factor] for factor, task in one)
    # The shares of the table are those of the single images.
    at = [
        i
        for i, (t, r) in enumerate(zip(section["read_task"], section["read_readout"], strict=True))  # type: ignore[arg-type]
        if (t, r) == ("shade", "answer")
    ]
    true, read, partner = section["read_true"][:, at[0]], section["read_swapped"][:, at[0]], section["partner"]  # type: ignore
    differ = np.isfinite(true) & np.isfinite(true[partner]) & (true != true[partner])
    of = {"task": "shade", "readout": "answer", "mix": "swapped", "factor": "all", "only_right": 0}
    found = share[row(section, **of), :, 0]
    np.testing.assert_allclose(found[1], (read == true[partner])[differ].mean(), atol=1e-6)
    assert section["read_classes"][at[0]] == json.dumps(scenes.SHADES)  # type: ignore[index]
    assert np.isfinite(read).all()
    numbers = {task for task, f in zip(section["number_task"], section["number_factor"], strict=True) if f == "all"}  # type: ignore[arg-type]
    assert numbers == {"size", "position_x", "position_y"}


def test_an_image_swapped_with_itself_is_itself(shipped: tuple[HTCVLM, Run]) -> None:
    model, run = shipped
    source = again.open_images(run, model.config.image_size)
    tokens = mixing.encode(model, again.Chosen(run, source, np.arange(6)))
    sheet = scene_questions.Sheet(model, list(scenes.QUESTIONS))
    read = lambda compressed: {  # noqa: E731
        Measure("answer", name, "", "classes"): said for name, said in sheet(compressed).items()
    }
    unmixed, swapped = mixing.swaps(tokens, np.arange(6))
    first, second = (interchange.read_mix(model, mix, read) for mix in (unmixed, swapped))
    for measure, said in first.items():
        np.testing.assert_array_equal(said, second[measure])
    other = interchange.read_mix(model, list(mixing.swaps(tokens, np.array([1, 0, 3, 2, 5, 4])))[1], read)
    assert any((said != other[measure]).any() for measure, said in first.items())


def test_it_is_quick(shipped: tuple[HTCVLM, Run]) -> None:
    """300 pairs in under 60 s on one core: here a tenth of them."""
    model, run = shipped
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        started = time.process_time()
        interchange.analyse(model, run, pairs=30)
        assert time.process_time() - started < 15
    finally:
        torch.set_num_threads(threads)


def test_a_model_without_the_words_is_read_by_probes_alone(tmp_path: Path) -> None:
    """Single factors of the built-in scenes too."""
    model = planted("anchors")
    model.save_pretrained(tmp_path / "model")
    command = ["--model", str(tmp_path / "model"), "--device", "cpu", "--limit", "20", "--out"]
    assert main([*command, str(tmp_path / "run.h5")]) == 0
    rng = np.random.default_rng(0)
    with open_run(tmp_path / "run.h5") as run:
        z = run.z_voco()
        weights = rng.normal(size=(z.shape[1], 6)) / z.std(0)[:, None]
        probe = Probe("classes", scenes.SHADES[::-1], weights, -z.mean(0) @ weights, z.mean(0))
        section = flat(interchange.analyse(model, run, None, {("shade", "z_voco", run.shape.layers): probe}, pairs=20))
    assert str(section["answers"]).startswith("the model was not taught") and section["probes"] == "yes"
    assert set(section["factor"]) == {"all", "shade"} and set(section["readout"]) == {"probe"}  # type: ignore[arg-type]


# ---- questions


def whole_answer(model: HTCVLM, compressed: Any, question: str, answer: str) -> Tensor:
    """(B,) log-probability of the words, each given those before it."""
    tokenizer = scene_questions.scene_words.build_tokenizer()
    asked, words = tokenizer(question).input_ids, tokenizer(answer, add_special_tokens=False).input_ids
    ids = torch.tensor([*asked, *words]).expand(len(compressed.hidden), -1)
    told = model.read(compressed, ids).log_softmax(-1)
    return torch.stack([told[:, len(asked) - 1 + i, word] for i, word in enumerate(words)]).sum(0)


@torch.no_grad()
def test_a_sheet_says_how_likely_every_answer_is(shipped: tuple[HTCVLM, Run]) -> None:
    model, run = shipped
    tokens = mixing.encode(model, again.Chosen(run, again.open_images(run, model.config.image_size), np.arange(8)))
    compressed = model.compress(*tokens)
    found = scene_questions.Sheet(model, list(scenes.QUESTIONS))(compressed)
    assert set(found) == set(scenes.QUESTIONS)
    for name, answers in scene_questions.ANSWERS.items():
        wanted = torch.stack([whole_answer(model, compressed, scenes.QUESTIONS[name], a) for a in answers], 1)
        np.testing.assert_allclose(found[name], wanted.log_softmax(-1), atol=1e-4)
    truth = scene_questions.truths([scenes.scene("val", i) for i in range(8)])
    right = [(found[name].argmax(1) == truth.answers[name])[truth.answers[name] >= 0].mean() for name in truth.answers]
    assert np.mean(right) > 0.75, "the shipped model knows its answers"
    tokenizer = scene_questions.scene_words.build_tokenizer()
    ids = torch.tensor(tokenizer(scenes.QUESTIONS["present"]).input_ids).expand(8, -1)
    asked = ids.shape[1]
    for _ in range(6):
        ids = torch.cat([ids, model.read(compressed, ids)[:, -1:].argmax(-1)], 1)
    for image, words in enumerate(tokenizer.batch_decode(ids[:, asked:])):
        listed = words.split(" </s>")[0].split()
        assert [name in listed for name in scenes.CATEGORIES] == found["present"][image].tolist()


def test_a_changed_scene_differs_in_its_factor_alone() -> None:
    pictures = [scenes.scene("val", i) for i in range(30)]
    changed_too = {"category": {"present"}, "count": {"present"}}
    for factor in scene_questions.FACTORS:
        made = 0
        for one, other in combinations(pictures[:12], 2):
            changed = scene_questions.with_factor(one, other, factor)
            if changed is None:
                continue
            made += 1
            answers, before = changed.answers, one.answers
            differ = {question for question in scenes.QUESTIONS if answers.get(question) != before.get(question)}
            assert factor in differ and differ <= {factor} | changed_too.get(factor, set()), (factor, differ)
            assert scenes.render(changed, SIZE).tobytes() != scenes.render(one, SIZE).tobytes()
        assert made > 5, factor
        assert scene_questions.with_factor(pictures[0], pictures[0], factor) is None
    assert scene_questions.with_factor(pictures[0], pictures[1], "shade") is None or pictures[0] != pictures[1]


def test_an_answer_in_words_as_a_number() -> None:
    values = scene_questions.values_of_answers(np.array([0, 0, 2, -1]), np.array([1.0, 3.0, 8.0, 4.0]), 4)
    np.testing.assert_array_equal(values, [2, 4, 8, 4])
    shares = np.log(np.array([[0.5, 0, 0.5, 0], [0, 0, 1, 0]]) + 1e-30)
    np.testing.assert_allclose(scene_questions.as_numbers(shares, values), [5, 8])


# ---- which images


def test_partners_differ_and_are_two_by_two() -> None:
    tasks = (
        Task("t", "semantic", "classes", ("a", "b")),
        Task("m", "detail", "multilabel", ("x", "y")),
        Task("n", "detail", "number"),
    )
    labels = {
        "t": np.array([0, 1, 0, -1]),
        "m": np.array([[0, 1], [0, 1], [1, 1], [255, 0]], np.uint8),
        "n": np.array([1.0, 1.0, 2.0, np.nan]),
    }
    count = mixing.differing(tasks, labels)
    np.testing.assert_array_equal(count, [[0, 1, 2, 1], [1, 0, 3, 1], [2, 3, 0, 1], [1, 1, 1, 0]])
    np.testing.assert_array_equal(mixing.couples_that_differ(count), [2, 3, 0, 1])
    np.testing.assert_array_equal(mixing.couples_that_differ(count[:3, :3]), [2, -1, 0])
    np.testing.assert_array_equal(mixing.couples_alike(np.array([5, 7, 5, -1, 7, 7])), [2, 4, 0, -1, 1, -1])


def test_no_two_images_of_a_group() -> None:
    groups = [f"g{i % 7}" for i in range(40)]
    for most, count in ((5, 5), (100, 7)):
        rows = mixing.one_a_group(groups, most, seed=0)
        assert len(rows) == count == len({groups[i] for i in rows}) and (np.diff(rows) > 0).all()
    drawn = {tuple(mixing.one_a_group(groups, 5, seed)) for seed in range(9)}
    assert len(drawn) > 5


def crossed(folder: Path) -> Path:
    """Pictures with every combination of two labels, twice, and one without."""
    val = folder / "crossed" / "val"
    val.mkdir(parents=True)
    source = open_source("scenes", "val", limit=17, resolution=SIZE)
    lines = ["file_name,colour,shape"]
    for i in range(17):
        source[i].image.save(val / f"{i:02}.png")
        lines.append(f"{i:02}.png,{'rgbw'[i % 4]},{'' if i == 16 else 'ox'[i // 4 % 2]}")
    (val / "metadata.csv").write_text("\n".join(lines))
    task = 'suite = "{}"\nkind = "classes"\n'
    (val.parent / "tasks.toml").write_text(f"[colour]\n{task.format('detail')}[shape]\n{task.format('semantic')}")
    return val.parent


def extracted(model: HTCVLM, data: Path, folder: Path, *more: str) -> Path:
    model.save_pretrained(folder / "model")
    out = folder / "run.h5"
    command = ["--model", str(folder / "model"), "--data", str(data), "--device", "cpu", "--out", str(out)]
    assert main([*command, *more]) == 0
    return out


def test_images_that_differ_in_one_label_are_found(tmp_path: Path) -> None:
    data = crossed(tmp_path)
    with open_run(extracted(small_model(), data, tmp_path)) as run:
        source = again.open_images(run, SIZE)
        designs = list(mixing.matched(run, source, 100, seed=0))
        assert [design.factor for design in designs] == ["colour", "shape"]
        for design, other in zip(designs, ("shape", "colour"), strict=True):
            mine, partner = design.labels[design.factor], design.partner
            assert len(partner) == len(design.images) == 16 and (mine[partner] != mine).all()
            np.testing.assert_array_equal(design.labels[other][partner], design.labels[other])
            np.testing.assert_array_equal(partner[partner], np.arange(16))
            labels = [design.images[i].labels[design.factor] for i in range(16)]
            np.testing.assert_array_equal(labels, mine)


def test_images_that_were_skipped_are_passed_and_changed_data_is_refused(tmp_path: Path) -> None:
    data = crossed(tmp_path)
    (data / "val" / "03.png").write_bytes(b"no image")
    model = small_model()
    with open_run(extracted(model, data, tmp_path, "--on-error", "skip")) as run:
        source = again.open_images(run, SIZE)
        rows = np.array([0, 2, 3, 10])
        chosen = again.Chosen(run, source, rows)
        assert [chosen[i].id for i in range(4)] == [run.ids()[i] for i in rows]
        tokens = mixing.encode(model, again.Chosen(run, source, rows))
        np.testing.assert_allclose(tokens.patches.mean(1), run.v_pooled()[rows], rtol=2e-3, atol=1e-3)
        (data / "val" / "10.png").unlink()
        with pytest.raises(UserError, match="is not where it was.*extract again"):
            mixing.encode(model, again.Chosen(run, source, np.array([0, 9, 12])))


# ---- mixing and counting


def test_noise_has_the_mean_and_covariance_of_the_tokens() -> None:
    rng = np.random.default_rng(0)
    spun = rng.normal(size=(6, 6))
    tokens = torch.from_numpy((rng.normal(size=(2000, 6)) @ spun + 5).astype(np.float32)).view(2000, 2, 3)
    noise = mixing.gaussian_like(tokens, rng)
    flat, wanted = (t.reshape(2000, 6).double().numpy() for t in (noise, tokens))
    spread = np.sqrt(np.outer(*[np.diag(np.cov(wanted.T))] * 2))
    np.testing.assert_allclose(np.cov(flat.T) / spread, np.cov(wanted.T) / spread, atol=0.12)
    np.testing.assert_allclose(flat.mean(0), wanted.mean(0), atol=4 * np.sqrt(np.diag(np.cov(wanted.T)).max() / 2000))
    assert np.abs(np.corrcoef(flat[:, 0], wanted[:, 0])[0, 1]) < 0.1, "of no image"


def mix_of(name: str, anchors: list[int] | None, patches: list[int] | None, replaced: Any = None) -> Mix:
    count = len(anchors or patches or [])
    nothing = torch.zeros(count, 1, 1)
    rows = np.arange(count)
    halves = [Half(nothing, rows, None if of is None else np.array(of)) for of in (anchors, patches)]
    return Mix(name, *halves, couple=rows // 2, replaced=replaced)


def test_shares_are_counted_by_hand() -> None:
    what = Measure("probe", "what", "semantic", "classes")
    true = {what: np.array([0, 1, 2, 2, -1])}
    unmixed = {what: np.array([0, 1, 2, 1, 0])}  # image 3 is read wrong
    swapped = mix_of("swapped", [0, 1, 2, 3, 0, 4], [1, 0, 3, 2, 3, 0])
    said = {what: np.array([0, 0, 2, 2, 1, 0])}
    found = following.shares(swapped, said, true, unmixed, seed=0, suites=False)
    # Cases with two labels: 0 to the anchors, 1 to the patches, 4 to neither; 0 and 1 are right on both.
    np.testing.assert_allclose(found.values[0, :, 0], [1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(found.values[1, :, 0], [1 / 2, 1 / 2, 0], rtol=1e-6)
    assert found.counted.tolist() == [3, 2] and found.couples.tolist() == [2, 1]

    noise = mix_of("anchors noise", None, [0, 1, 2, 4], "anchors")
    found = following.shares(noise, {what: np.array([0, 0, 2, 2])}, true, unmixed, seed=0, suites=False)
    np.testing.assert_allclose(found.values[0, :, 0], [np.nan, 2 / 3, 1 / 3], rtol=1e-6)

    lists = Measure("answer", "which", "semantic", "multilabel")
    true = {lists: np.array([[1, 0, 255], [0, 0, 1]], np.uint8)}
    said = {lists: np.array([[1, 1, 0], [0, 0, 1]], bool)}
    found = following.shares(
        mix_of("swapped", [0, 1], [1, 0]), said, true, {lists: true[lists].astype(bool)}, seed=0, suites=False
    )
    assert found.counted[0] == 2, "one label differs and is known in both"
    np.testing.assert_allclose(found.values[0, :, 0], [1, 0, 0])


def test_the_floor_is_what_readouts_dealt_at_random_would_give() -> None:
    rng = np.random.default_rng(1)
    true = rng.integers(3, size=30)
    mix = mix_of("swapped", list(range(30)), list(rng.permutation(30)))
    said = rng.integers(3, size=30)
    follows, counts = following.follows_whom(mix, said, true, "classes")
    counted = np.flatnonzero(counts[:, 0])
    dealt = []
    for _ in range(3000):
        shuffled = said.copy()
        shuffled[counted] = said[rng.permutation(counted)]
        dealt.append(following.follows_whom(mix, shuffled, true, "classes")[0][counted, 0].mean(0))
    found = following.dealt(mix, said, true, "classes", counts)
    np.testing.assert_allclose(found, np.mean(dealt, 0), atol=0.01)


def test_weights_are_found_and_their_intervals_hold() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2)) + 3
    exact = following.regress(x @ [0.7, -0.2] + 1, x, np.arange(80) // 2, seed=0)
    for value in exact:
        np.testing.assert_allclose(value, [0.7, -0.2], atol=1e-9)
    inside = []
    for _ in range(60):
        y = x @ [0.7, -0.2] + np.repeat(rng.normal(size=40), 2) + rng.normal(size=80) * 0.1
        _, lower, upper = following.regress(y, x, np.arange(80) // 2, seed=0)
        inside.append((lower <= [0.7, -0.2]) & (upper >= [0.7, -0.2]))
    assert 0.86 < np.mean(inside) <= 1


# ---- what is refused


def test_what_cannot_be_interchanged_is_refused(case: tuple[str, Case], shipped: tuple[HTCVLM, Run]) -> None:
    _, (model, run, probes) = case
    with pytest.raises(UserError, match="nothing can be read.*no probes were given.*only the built-in scenes"):
        interchange.analyse(model, run)
    first = {(name, "v_d", None): probe for (name, _, _), probe in probes.items()}
    with pytest.raises(UserError, match="no probe is of z_voco at the last layer, 3"):
        interchange.analyse(model, run, None, first)
    others = {key: replace(probe, classes=("a", "b", "z")) for key, probe in probes.items() if key[0] == "how"}
    with pytest.raises(UserError, match="the probe of how has other classes than run.h5"):
        interchange.analyse(model, run, None, others)
    with pytest.raises(UserError, match="3 pairs are too few"):
        interchange.analyse(model, run, None, probes, pairs=3)
    with pytest.raises(UserError, match="the model is not that of"):
        interchange.analyse(shipped[0], run, None, probes)


def test_a_model_without_anchors_and_a_run_without_labels_are_refused(tmp_path: Path) -> None:
    model = small_model()
    config = model.config.to_dict() | {"num_anchors": 0, "mgvq": None}
    bare = HTCVLM(type(model.config)(**config)).eval()
    with (
        open_run(extracted(bare, crossed(tmp_path), tmp_path)) as run,
        pytest.raises(UserError, match="no anchors.*nothing to interchange"),
    ):
        interchange.analyse(bare, run)
    folder = tmp_path / "unlabelled"
    (folder / "val").mkdir(parents=True)
    for path in (tmp_path / "crossed" / "val").glob("*.png"):
        path.rename(folder / "val" / path.name)
    (tmp_path / "more").mkdir()
    with open_run(extracted(model, folder, tmp_path / "more")) as run, pytest.raises(UserError, match="no labels"):
        interchange.analyse(model, run)


def test_hybrids_are_of_all_images(shipped: tuple[HTCVLM, Run]) -> None:
    model, run = shipped
    source = again.open_images(run, model.config.image_size)
    many = mixing.BATCH + 1
    rows = np.arange(min(many, len(run)))
    tokens: Hybrid = mixing.encode(model, again.Chosen(run, source, rows))
    np.testing.assert_allclose(tokens.anchors, run.v_d()[rows], rtol=2e-3, atol=1e-3)
