"""Probing a run from end to end: which tasks, which rows, what is kept, what is written, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Kind, Task, open_run
from htc_probe.probes.cli import main
from htc_probe.probes.files import results
from htc_probe.probes.files.results import Results, Row
from htc_probe.probes.inputs import tasks
from htc_probe.probes.inputs.labels import Labels
from htc_probe.probes.inputs.representations import Representation
from htc_probe.probes.scores import intervals, metrics
from htc_probe.probes.scores.metrics import Gaussian
from htc_probe.probes.show.verdict import verdict
from htc_probe.probes.study.codelength import Codelength
from htc_probe.probes.study.findings import probe
from htc_probe.probes.study.plan import Plan, make_plan
from htc_probe.probes.study.protocol import HeldOut
from htc_probe.probes.study.work import Code, Fold, Kept
from made.planted import COIN, PRESENT, SHAPE, SIZE, TASKS, WIDTH, N, make_run, planted_run, quick


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_run(tmp_path_factory.mktemp("runs") / "planted-val.h5").parent


@pytest.fixture(scope="module")
def found(folder: Path) -> Results:
    """What the command writes for the whole run with all layers."""
    out = folder / "all.json"
    argv = ["--run", str(folder), "--layers", "all", "--folds", "2", "--out", str(out), "--jobs", "1"]
    assert main(argv) == 0
    return results.read(out)


def by_name(found: Results) -> dict[tuple[str, str, int | None], Row]:
    return {(row.task, row.representation, row.layer): row for row in found.rows}


# ---- which tasks, and on which images


def test_rare_classes_are_dropped_and_unknown_labels_stay_unknown() -> None:
    groups, everywhere = np.arange(60) // 2, np.ones(60, bool)
    y = np.array([0] * 25 + [2] * 25 + [1] * 6 + [-1] * 4)
    task = Task("t", "semantic", "classes", ("a", "b", "c"))
    made, notes = tasks.prepare_one(task, y, groups, 6, everywhere)
    assert made is not None and made.classes == ("a", "c") and made.labels.n_classes == 2
    np.testing.assert_array_equal(made.labels.y, [0] * 25 + [1] * 25 + [-1] * 10)
    assert notes == [
        "t: 1 of 3 classes dropped, fewer than 6 groups: b",
        "t: 4 of 60 images have no label and are left out",
    ]
    made, notes = tasks.prepare_one(task, y, groups, 6, np.arange(60) < 30)  # `c` on 5 images that count
    assert made is None and notes[-1] == "t is skipped: 1 classes left"


def test_a_number_needs_groups_with_values_that_differ() -> None:
    groups, everywhere = np.arange(60) // 2, np.ones(60, bool)
    task = Task("size", "detail", "number")
    size = np.where(np.arange(60) < 10, np.nan, np.arange(60.0))
    size[10] = np.inf
    made, notes = tasks.prepare_one(task, size, groups, 6, everywhere)
    assert made is not None and notes == ["size: 11 of 60 images have no label and are left out"]
    np.testing.assert_array_equal(np.isnan(made.labels.y), np.arange(60) <= 10)
    none = np.where(groups < 5, size, np.nan)
    for values, reason in [(np.ones(60), "0 groups with another value than 1"), (none, "0 groups with a value")]:
        made, notes = tasks.prepare_one(task, values, groups, 6, everywhere)
        assert made is None and "size is skipped" in notes[0] and reason in notes[0]


def test_a_label_needs_groups_with_and_without_it() -> None:
    groups, everywhere = np.arange(60) // 2, np.ones(60, bool)
    many = np.stack([np.arange(60) % 2, np.arange(60) == 0, np.arange(60) != 0], 1).astype(np.uint8)
    many[5] = 255
    many[6, 0] = 255
    task = Task("m", "detail", "multilabel", ("x", "rare", "common"))
    made, notes = tasks.prepare_one(task, many, groups, 6, everywhere)
    assert made is not None and made.classes == ("x",)
    np.testing.assert_array_equal(made.labels.y, many[:, :1])
    assert notes[0] == "m: 2 of 3 labels dropped, fewer than 6 groups: rare, common"


def test_a_number_that_differs_in_one_group_alone_is_skipped(tmp_path: Path) -> None:
    """With that group held out, every probe would learn from one value, and be infinitely sure of it."""
    odd = np.zeros(N)
    odd[:2] = 5
    path = make_run(
        tmp_path / "run.h5",
        np.random.default_rng(0).standard_normal((N, 2, 4)),
        {SIZE: odd, COIN: np.arange(N) % 2},
        groups=[str(i // 2) for i in range(N)],
    )
    with open_run(path) as run:
        found = probe(make_plan(run, quick("detail")))
    results.write(found, tmp_path / "r.json")  # which takes finite numbers only
    assert {row.task for row in found.rows} == {"coin"}
    assert any("size is skipped" in warning for warning in found.warnings)


# ---- what is found


def test_every_probe_of_the_run_is_there_and_finds_what_was_planted(found: Results) -> None:
    rows = by_name(found)
    assert len(rows) == len(found.rows) == 4 * (3 + 6)
    for task, representation, layer, knows in [
        ("shape", "z_voco", 2, True),
        ("shape", "voco_read", None, False),
        ("size", "voco_read", None, True),
        ("present", "z_voco", 2, True),
        ("size", "z_voco", 2, True),
        ("size", "z_voco", 1, True),
        ("shape", "z_voco", 1, False),
        ("shape", "v_d", None, True),
        ("size", "v_d", None, False),
        ("size", "v_pooled", None, True),
        ("shape", "v_pooled", None, False),
        ("shape", "v_pooled+z_voco", None, True),
        ("size", "v_d+z_voco", None, True),
        ("size", "pixels", None, False),
        ("coin", "z_voco", 2, False),
    ]:
        row = rows[task, representation, layer]
        assert (row.lower > row.floor + 0.1) == knows, row
        assert row.lower <= row.estimate <= row.upper
        assert (row.bits > 0.2) == knows, row
    assert rows["shape", "v_d", None].n == N - 4 and rows["size", "v_d", None].n == N
    assert (rows["shape", "v_d", None].n_groups, rows["size", "v_d", None].n_groups) == (N // 2 - 2, N // 2)
    assert rows["shape", "v_d", None].classes == SHAPE.classes
    for task, options in [("shape", 3), ("coin", 2)]:  # the uniform code, a labelled image
        row = rows[task, "v_d", None]
        assert row.compression is not None and row.code_bits is not None
        assert row.code_bits * row.compression == pytest.approx(np.log2(options))
        told = row.compression_interval
        assert told is not None and told.estimate == row.compression
        assert told.lower is not None and told.upper is not None and told.lower < row.compression < told.upper
    by_code = {(one.task, one.a, one.b): one for one in found.code_comparisons}
    assert all(one.metric == "compression" and 0 <= one.p <= one.p_holm <= 1 for one in by_code.values())
    better, same = by_code["shape", "z_voco@2", "v_pooled"], by_code["coin", "z_voco@2", "v_pooled"]
    assert better.difference.lower is not None and better.difference.lower > 0 and better.p_holm < 0.01 < same.p_holm
    assert rows["shape", "v_d", None].width == 2 * WIDTH and rows["shape", "v_d+z_voco", None].width == 3 * WIDTH


def test_layer_0_scores_exactly_the_floor(found: Results) -> None:
    rows = [row for row in found.rows if row.layer == 0]
    assert len(rows) == 4
    for row in rows:
        assert row.estimate == pytest.approx(row.floor, abs=1e-12) and not row.at_edge
        assert abs(row.bits) < 0.03


def test_pixels_of_black_pictures_say_nothing(found: Results) -> None:
    for task in TASKS:
        row = by_name(found)[task.name, "pixels", None]
        assert row.estimate == pytest.approx(row.floor, abs=1e-12)


def test_suite_means_count_each_task_once(found: Results) -> None:
    assert len(found.suite_means) == 2 * (3 + 6)
    for mean in found.suite_means:
        of = [
            row
            for row in found.rows
            if (row.suite, row.representation, row.layer) == (mean.suite, mean.representation, mean.layer)
        ]
        assert mean.tasks == len(of) == 2
        assert mean.estimate == pytest.approx(sum(row.estimate for row in of) / 2)
        assert mean.bits.estimate == pytest.approx(sum(row.bits for row in of) / 2)
        assert mean.lower <= mean.estimate <= mean.upper


def test_every_two_columns_are_compared_on_the_same_images(found: Results) -> None:
    rows = {(row.task, results.label(row.representation, row.layer)): row for row in found.rows}
    by_task = [one for one in found.comparisons if one.task is not None and one.metric != "bits"]
    columns = {"voco_read", "z_voco@2", "v_d", "v_pooled", "v_d+z_voco", "v_pooled+z_voco", "pixels"}
    assert len(by_task) == 4 * 21 and {one.a for one in by_task} | {one.b for one in by_task} == columns
    for one in by_task:
        assert one.difference.estimate == pytest.approx(rows[one.task, one.a].estimate - rows[one.task, one.b].estimate)
        assert one.p <= one.p_holm <= 1
    shape = next(one for one in by_task if (one.task, one.a, one.b) == ("shape", "v_d", "v_pooled"))
    assert shape.difference.lower > 0.2 and shape.p_holm < 1e-6


def test_what_a_join_adds_is_what_it_saves_beyond_its_part(found: Results) -> None:
    rows = by_name(found)
    bits = [one for one in found.comparisons if one.metric == "bits"]
    assert {(one.a, one.b) for one in bits} == {
        ("v_d+z_voco", "v_d"),
        ("v_d+z_voco", "z_voco@2"),
        ("v_pooled+z_voco", "v_pooled"),
        ("v_pooled+z_voco", "z_voco@2"),
    }
    for one in bits:
        part = rows[one.task, *(("z_voco", 2) if one.b == "z_voco@2" else (one.b, None))]
        assert one.difference.estimate == pytest.approx(rows[one.task, one.a, None].bits - part.bits)


def test_the_category_alone_says_nothing_of_a_coin(found: Results) -> None:
    """It is the semantic task with the most classes, and the coin does not depend on it."""
    baseline = {one.task: one for one in found.baselines}
    assert set(baseline) == {"present", "size", "coin"}
    assert baseline["present"].bits.lower > 0.3 and abs(baseline["coin"].bits.estimate) < 0.1


def test_a_confusion_matrix_counts_every_labelled_image(found: Results) -> None:
    rows = by_name(found)
    assert {one.task for one in found.confusions} == {"shape", "coin"}
    for one in found.confusions:
        row = rows[one.task, one.representation, one.layer]
        counts = np.array(one.counts)
        assert counts.sum() == row.n and np.trace(counts) / row.n == pytest.approx(row.estimate)


# ---- files


def test_results_name_their_run_and_settings_and_survive_a_round_trip(found: Results, tmp_path: Path) -> None:
    assert found.run["file"] == "planted-val.h5" and found.run["sha256"] == "00"
    assert found.config["folds"] == 2 and found.config["suites"] == ["semantic", "detail"]
    assert found.config["protocol"]["images"] == N and found.config["protocol"]["groups"] == N // 2
    assert {"python", "numpy", "torch"} <= set(found.versions)
    path, listed, _ = results.write(found, tmp_path / "a" / "r.probes.json")
    assert results.read(path) == found
    assert listed.name == "r.probes.csv"
    with listed.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["task"] for line in lines] == [row.task for row in found.rows]
    assert [float(line["estimate"]) for line in lines] == [row.estimate for row in found.rows]
    assert sorted(p.name for p in path.parent.iterdir()) == ["r.probes.classes.csv", "r.probes.csv", "r.probes.json"]
    # v_pooled knows sizes and no shapes.
    undefined = {line["task"]: line["retention"] == "not defined (pooled V is at its floor)" for line in lines}
    assert undefined["shape"] and not undefined["size"]
    for row in found.rows:
        assert row.retention is not None and (None in row.retention) == undefined[row.task]
        assert not undefined[row.task] or set(row.retention) == {None}


def test_result_files_that_cannot_be_read_say_so(found: Results, tmp_path: Path) -> None:
    path, *_ = results.write(found, tmp_path / "r.json")
    body = json.loads(path.read_text())
    for change, message in [
        ({"schema": "x"}, "no probe results"),
        ({"schema_version": 9}, "schema version 9"),
        ({"schema_version": 1}, "run htc-probe again"),
        ({"rows": [{"task": "a"}]}, "damaged"),
        ({"rows": [body["rows"][0] | {"estimate": "high"}]}, "damaged"),
        ({"comparisons": 5}, "damaged"),
    ]:
        path.write_text(json.dumps(body | change))
        with pytest.raises(UserError, match=message):
            results.read(path)
    for content, message in [("{", "cannot be read as JSON"), ("[]", "no probe results")]:
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            results.read(path)
    with pytest.raises(UserError, match="htc-probe semantic detail"):
        results.read(tmp_path / "missing.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        results.write(found, tmp_path / "file" / "r.json")


# ---- what is kept between commands


def probe_until(plan: Plan, keep: Path, cells: int | None = None) -> Results | None:
    """Interrupted after so many cells, as Ctrl-C does; None: to the end."""
    done = 0

    def on_cell() -> None:
        nonlocal done
        done += 1
        if done == cells:
            raise KeyboardInterrupt

    if cells is None:
        return probe(plan, keep=keep, on_cell=on_cell)
    with pytest.raises(KeyboardInterrupt):
        probe(plan, keep=keep, on_cell=on_cell)
    return None


def stamps(keep: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in keep.iterdir()}


def test_an_interrupted_probing_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    with open_run(folder / "planted-val.h5") as run:
        plan = make_plan(run, quick("coin", "size", representations=("z_voco", "v_d"), types="coin", controls=True))
        whole = probe(plan)
        keep = tmp_path / "kept"
        probe_until(plan, keep, cells=5)  # of the folds and the code of two representations
        before = stamps(keep)
        assert len(plan.cells) == 8 and 5 <= len(before) < 8
        assert probe_until(plan, keep) == whole
        after = stamps(keep)
        assert len(after) == 8 and before.items() <= after.items()
        assert probe_until(plan, keep) == whole
        assert stamps(keep) == after


def test_with_another_representation_only_its_cells_are_computed(folder: Path, tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    with open_run(folder / "planted-val.h5") as run:
        probe_until(make_plan(run, quick("size")), keep)
        first = stamps(keep)
        plan = make_plan(run, quick("size", representations=("z_voco", "v_pooled")))
        probe_until(plan, keep)
        both = stamps(keep)
        assert (len(first), len(both)) == (4, 8) and first.items() <= both.items()
        for other in [
            replace(plan.settings, seed=1),
            replace(plan.settings, match_dim=3),
            replace(plan.settings, guided=True),
        ]:
            probe_until(make_plan(run, other), keep)
        assert first.items() <= stamps(keep).items() and len(stamps(keep)) >= 8 * 4 - 2


def test_a_file_that_changed_is_read_anew(folder: Path, tmp_path: Path) -> None:
    keep, path = tmp_path / "kept", tmp_path / "x.npy"
    rng = np.random.default_rng(0)
    with open_run(folder / "planted-val.h5") as run:
        y = run.labels("size")
        np.save(path, y[:, None] + 0.1 * rng.standard_normal((N, 3)))
        plan = make_plan(run, quick("size", representations=(str(path),)))
        assert probe(plan, keep=keep).rows[0].estimate > 0.9
        np.save(path, rng.standard_normal((N, 3)))
        os.utime(path, ns=(1, 1))
        assert probe(plan, keep=keep).rows[0].estimate < 0.1


def test_damaged_kept_cells_are_computed_anew(folder: Path, tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    with open_run(folder / "planted-val.h5") as run:
        plan = make_plan(run, quick("coin", "size"))
        whole = probe(plan, keep=keep)
        cut, emptied, flipped, replaced = sorted(keep.iterdir())
        cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
        emptied.write_bytes(b"")
        content = bytearray(flipped.read_bytes())
        content[len(content) // 3] ^= 1
        flipped.write_bytes(content)
        replaced.write_bytes(b"PK\x03\x04 and no more")
        before = stamps(keep)
        assert probe(plan, keep=keep) == whole
        assert all(stamps(keep)[name] > before[name] for name in before)


def test_no_flipped_bit_of_a_kept_cell_changes_what_it_says(tmp_path: Path) -> None:
    labels = [Labels("classes", np.arange(8) % 2, 2), Labels("number", np.arange(8.0))]
    half = np.arange(8) < 4
    log_p = np.log(np.full((4, 2), 0.5, np.float32))
    read = Representation("z_voco", 2)
    fold, code = Fold(read, 0, half, ~half), Code(read, half | True)
    number, eight = Gaussian(np.arange(4.0), np.ones(4)), np.arange(8.0)
    cells = [
        (fold, [HeldOut(log_p, log_p / 2, 0.1, 1.0, True, 1e-8), HeldOut(number, number, 1.0, 1.0, False, None)]),
        (code, [Codelength(eight, eight, (0, 3)), Codelength(np.ones(8), eight, ())]),
    ]
    kept = Kept(tmp_path)
    for number, (cell, answers) in enumerate(cells):
        path, good = tmp_path / f"{number}.npz", cell.pack(answers)
        kept.write(path, good)
        content = path.read_bytes()
        rng = np.random.default_rng(number)
        for place in range(number, len(content), 3):
            bad = bytearray(content)
            bad[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(bad)
            there = kept.read(path, cell, labels)
            again = good if there is None else cell.pack(there)
            assert all(np.array_equal(good[name], again[name], equal_nan=True) for name in good), place


@pytest.mark.slow
def test_processes_do_not_change_the_result(folder: Path) -> None:
    steps: list[int] = []
    with open_run(folder / "planted-val.h5") as run:
        plan = make_plan(run, quick("size", "shape", representations=("v_d",)))
        one = probe(plan, on_cell=lambda: steps.append(1))
        two = probe(make_plan(run, replace(plan.settings, jobs=2)))
        assert len(steps) == len(plan.cells) == 3 + 1
    assert one.rows == two.rows and one.comparisons == two.comparisons and one.suite_means == two.suite_means


# ---- a run to learn from, and one with random weights


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other images of the same world."""
    return planted_run(tmp_path_factory.mktemp("other") / "planted-train.h5", seed=7, prefix="train ")


def test_probes_of_one_run_are_scored_on_another(folder: Path, other: Path) -> None:
    with open_run(folder / "planted-val.h5") as run, open_run(other) as train:
        settings = quick("shape", "size", representations=("z_voco", "v_d"))
        found = probe(make_plan(run, settings, train=train))
        alone = probe(make_plan(run, settings))
    rows = by_name(found)
    assert rows["shape", "z_voco", 2].n == N - 4 and rows["size", "z_voco", 2].n == N  # of the scored run alone
    assert rows["shape", "z_voco", 2].lower > rows["shape", "z_voco", 2].floor + 0.2
    assert rows["size", "z_voco", 2].estimate > 0.9 and rows["size", "v_d", None].estimate < 0.2
    assert len(rows["size", "v_d", None].fold_scores) == 1
    assert found.run["file"] == "planted-val.h5" and found.run["train"]["file"] == "planted-train.h5"
    # The online code is sent of the scored images, whatever else was learned from.
    for row in alone.rows:
        assert rows[row.task, row.representation, row.layer].code_bits == pytest.approx(row.code_bits, rel=0.02)


def test_images_to_learn_from_in_groups_that_are_scored_are_left_out(folder: Path, tmp_path: Path) -> None:
    """Half the training images share groups with scored ones; changing them changes nothing."""
    scored = folder / "planted-val.h5"
    shared = [f"group {i // 2}" if i < N // 2 else f"own {i // 2}" for i in range(N)]
    one = planted_run(tmp_path / "one.h5", seed=7, groups=shared)
    with open_run(one) as train:
        z, labels = train.z_voco(2).copy(), train.labels("size").copy()
    found = []
    for name, change in [("kept", 0.0), ("changed", 1e3)]:
        x = z.copy()
        x[: N // 2] += change
        y = labels.copy()
        y[: N // 2] -= change
        path = make_run(tmp_path / f"{name}.h5", x[:, None], {SIZE: y}, groups=shared, stack=(0,))
        with open_run(scored) as run, open_run(path) as train:
            small = make_run(
                tmp_path / f"scored-{name}.h5",
                run.z_voco(2)[:, None],
                {SIZE: run.labels("size")},
                groups=run.groups(),
                stack=(0,),
            )
            with open_run(small) as target:
                plan = make_plan(target, quick("size"), train=train)
                assert any(f"{N // 2} images of {name}.h5 are left out" in warning for warning in plan.warnings)
                found.append(probe(plan))
    assert found[0].rows == found[1].rows
    assert found[0].rows[0].estimate > 0.9


def test_classes_of_two_runs_are_matched_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((2, N, 3))
    x = factor @ rng.standard_normal((3, 6))
    y = factor.argmax(2)
    here = Task("shape", "semantic", "classes", ("disc", "box", "star"))
    there = Task("shape", "semantic", "classes", ("ring", "star", "disc", "box"))  # no ring in the other run
    many_here = Task("present", "detail", "multilabel", ("cat", "dog"))
    many_there = Task("present", "detail", "multilabel", ("dog", "owl", "cat"))
    paths = [
        make_run(tmp_path / "val.h5", x[0, :, None], {here: y[0], many_here: (factor[0, :, :2] > 0).astype(np.uint8)}),
        make_run(
            tmp_path / "train.h5",
            x[1, :, None],
            {there: np.array([2, 3, 1])[y[1]], many_there: (factor[1][:, [1, 2, 0]] > 0).astype(np.uint8)},
            groups=[f"train {i}" for i in range(N)],
        ),
    ]
    with open_run(paths[0]) as run, open_run(paths[1]) as train:
        found = probe(make_plan(run, quick("semantic", "detail"), train=train))
    rows = {row.task: row for row in found.rows}
    assert rows["shape"].estimate > 0.9 and rows["shape"].classes == here.classes
    assert rows["present"].estimate > 0.95 and rows["present"].classes == many_here.classes


def test_classes_that_one_run_alone_has_are_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, 1, 4))
    y, many = x[:, 0, :3].argmax(1), (x[:, 0, :2] > 0).astype(np.uint8)

    def plan(ours: Sequence[str], theirs: Sequence[str], kind: Kind = "classes") -> Plan:
        """How they are asked for, with the other run's numbered the other way round."""
        paths = []
        for name, classes in (("val", ours), ("train", theirs)):
            task = Task("month", "detail", kind, tuple(classes))
            labels = y % len(classes) if kind == "classes" else many[:, : len(classes)]
            groups = [f"{name} {i}" for i in range(N)]
            paths.append(make_run(tmp_path / f"{name}.h5", x, {task: labels}, groups=groups))
        with open_run(paths[0]) as run, open_run(paths[1]) as train:
            return make_plan(run, quick("month"), train=train)

    for ours, theirs, kind, said in [
        ("012", ("0.0", "1.0", "2.0"), "classes", "val.h5 alone has '0', '1', '2' and train.h5 alone has '0.0', '1.0'"),
        (("A", "B"), ("a", "B"), "classes", "val.h5 alone has 'A' and train.h5 alone has 'a'"),  # one class is left
        (("cat", "dog"), ("cat ", "dog "), "multilabel", "val.h5 alone has 'cat', 'dog' and train.h5 alone has 'cat '"),
    ]:
        with pytest.raises(UserError) as refused:
            plan(ours, theirs, kind)  # type: ignore[arg-type]
        assert said in str(refused.value) and "of month differ" in str(refused.value) and "\n" not in str(refused.value)
        assert "fewer than" not in str(refused.value)
    told = plan("012", "210x")
    assert told.warnings[0] == (
        "month: the classes of the two runs differ, and these are left out: train.h5 alone has 'x'"
    )
    told = plan("0123", "210")
    assert told.warnings[0].endswith("left out: val.h5 alone has '3'")
    assert not any("differ" in one for one in plan("012", "210").warnings)


def test_tasks_that_the_other_run_cannot_teach_are_refused(folder: Path, other: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((N, 3, WIDTH))
    kinds = {Task("shape", "semantic", "number"): x[:, 0, 0]}
    units = {Task("size", "detail", "number", unit="cm"): x[:, 0, 0]}
    with open_run(folder / "planted-val.h5") as run:
        for labels, asked, said in [(kinds, "shape", "number"), (kinds, "size", "no such task"), (units, "size", "cm")]:
            with open_run(make_run(tmp_path / "train.h5", x, labels)) as train, pytest.raises(UserError) as refused:
                make_plan(run, quick(asked), train=train)
            assert said in str(refused.value) and "\n" not in str(refused.value)
        narrow = make_run(
            tmp_path / "narrow.h5", x[:, :, :5], {SIZE: x[:, 0, 0]}, groups=[f"train {i}" for i in range(N)]
        )
        with open_run(narrow) as train, pytest.raises(UserError, match="must come from the same model"):
            probe(make_plan(run, quick("size"), train=train))
        with open_run(folder / "planted-val.h5") as same, pytest.raises(UserError, match="no task"):
            make_plan(run, quick("size"), train=same)  # every group is scored


def test_a_task_that_the_scored_images_cannot_score_is_skipped(other: Path, tmp_path: Path) -> None:
    """Known in the run that is learned from, and here on no image, or constant."""
    x = np.random.default_rng(0).standard_normal((N, 3, WIDTH))
    labels = {SHAPE: np.full(N, -1), PRESENT: np.zeros((N, 3), np.uint8), SIZE: np.full(N, 2.0), COIN: np.arange(N) % 2}
    path = make_run(tmp_path / "bare.h5", x, labels)
    with open_run(path) as run, open_run(other) as train:
        found = probe(make_plan(run, quick("semantic", "detail"), train=train))
    results.write(found, tmp_path / "r.json")
    assert {row.task for row in found.rows} == {"coin"}
    for task in ("shape", "present", "size"):
        assert any(warning.startswith(f"{task} is skipped") for warning in found.warnings), task


def test_random_weights_are_one_more_column(folder: Path, tmp_path: Path) -> None:
    scored = folder / "planted-val.h5"
    with open_run(scored) as run:
        noise = np.random.default_rng(5).standard_normal((N, 3, WIDTH))
        ids, groups = run.ids(), run.groups()
        random = make_run(tmp_path / "random.h5", noise, {}, ids=ids, groups=groups)
        plain = make_plan(run, quick("shape", "size"))
        with open_run(random) as floor:
            plan = make_plan(run, plain.settings, random=floor)
            found = probe(plan)
        rows = by_name(found)
        for task in ("shape", "size"):
            row = rows[task, "z_voco (random weights)", None]
            assert row.lower < row.floor + 0.05 < rows[task, "z_voco", 2].lower
        assert by_name(probe(plain)).items() <= rows.items()  # the floor beside them changes nothing
        for wrong in [ids[::-1], [f"x{i}" for i in range(N)]]:
            path = make_run(tmp_path / "wrong.h5", noise, {}, ids=wrong, groups=groups)
            with open_run(path) as floor, pytest.raises(UserError, match="does not hold the images of"):
                make_plan(run, plain.settings, random=floor)


def test_random_weights_beside_a_run_to_learn_from_are_refused_before_anything_is_fitted(
    folder: Path, other: Path
) -> None:
    with (
        open_run(folder / "planted-val.h5") as run,
        open_run(other) as train,
        pytest.raises(UserError, match="leave it out with --train-run"),
    ):
        make_plan(run, quick("shape"), train=train, random=run)


# ---- labels that are hard on a fold


def test_a_class_that_a_training_part_lacks_costs_finitely_many_bits(tmp_path: Path) -> None:
    """Learning curves begin with few images: of a rare class there may be none, and of rare labels none at all."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, 1, 6))
    rare = np.where(np.arange(N) < 7, 2, np.arange(N) % 2)
    seldom = np.where(np.arange(N) % 30 == 0, x[:, 0, 0], np.nan)
    few = np.where((np.arange(N) % 20 == 0)[:, None], x[:, 0, :2] > 0, 255).astype(np.uint8)
    asked = np.where(np.arange(N) % 20 == 0, np.arange(N) // 20 % 2, -1)
    counted = np.where(np.arange(N) % 25 == 0, 1.0, 0.0)
    labels = {
        Task("rare", "semantic", "classes", ("a", "b", "c")): rare,
        Task("seldom", "detail", "number"): seldom,
        Task("few", "detail", "multilabel", ("p", "q")): few,
        Task("asked", "detail", "classes", ("no", "yes")): asked,
        Task("counted", "detail", "number"): counted,
    }
    path = make_run(tmp_path / "run.h5", x, labels)
    with open_run(path) as run:
        for guided in (False, True):
            plan = make_plan(run, quick("semantic", "detail", curve=True, guided=guided, controls=guided, folds=2))
            found = probe(plan)
            assert {row.task for row in found.rows} == {task.name for task in labels}
            assert all(np.isfinite([row.bits, row.metrics["cross-entropy"].estimate]).all() for row in found.rows)
            results.write(found, tmp_path / "r.json")
            for point in found.curves:
                if point.task in ("rare", "few", "asked"):
                    assert point.bits.estimate is not None and abs(point.bits.estimate) < 20


# ---- the command as typed


def test_the_command_as_typed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["detail", "shape", "--run", str(folder / "planted-val.h5"), "--folds", "2", "--jobs", "1"]
    argv += ["--representations", "z_voco", "v_d"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "240 images of planted val, 3 tasks" in out and "bits" not in out
    assert "shape: what" not in out and "semantic: what" in out and "detail: what" in out
    assert "planted-val.probes.json" in out.replace("\n", "")
    told = str(verdict(folder / "planted-val.h5"))
    assert " ".join(out.split()).endswith(" ".join(told.split())), "the last words are the verdict's"
    written = results.read(folder / "planted-val.probes.json")
    assert {row.task for row in written.rows} == {"shape", "coin", "size"}
    assert {(row.representation, row.layer) for row in written.rows} == {("z_voco", 2), ("v_d", None)}
    assert (folder / "planted-val.probes.csv").exists() and (folder / "planted-val.probes.safetensors").exists()
    assert not list(folder.glob("*.partial"))  # what was kept of the cells is not needed any more


def test_what_a_reviewer_asks_is_in_the_results_and_their_tables(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """z_voco holds shapes and the size, v_pooled the size alone; XOR of two directions takes a hidden layer."""
    out = tmp_path / "all.json"
    argv = [
        "--run",
        str(folder / "planted-val.h5"),
        "--folds",
        "2",
        "--jobs",
        "1",
        "--out",
        str(out),
        "--ceiling",
        "--full",
    ]
    argv += ["--representations", "z_voco", "v_pooled", "--no-controls", "--margin", "0.1"]
    assert main([*argv, "--report", str(tmp_path)]) == 0
    found = results.read(out)
    kept = {one.task: one for one in found.kept}
    assert {one.representation for one in found.kept} == {"z_voco"} and {one.margin for one in found.kept} == {0.1}
    assert kept["shape"].verdict in (results.GAINED, results.NOTHING) and kept["size"].verdict != results.LOST
    assert kept["coin"].verdict == results.NOTHING and found.config["protocol"]["margin"] == 0.1
    rows = by_name(found)
    for one in found.kept:
        if one.task is not None:
            whole = rows[one.task, "v_pooled", None]
            at = rows[one.task, one.representation, one.layer]
            assert one.difference.estimate == pytest.approx(at.estimate - whole.estimate)
    (gap,) = found.suite_gaps
    assert (gap.representation, gap.first, gap.second) == ("z_voco", "semantic", "detail")
    # Recalls, weighted by their images, make top-1.
    for name, layer in (("z_voco", 2), ("v_pooled", None)):
        here = [one for one in found.by_class if (one.task, one.representation) == ("shape", name)]
        assert {one.name for one in here} == set(SHAPE.classes) and sum(one.n for one in here) == N - 4
        hits = sum(one.n * (one.score.estimate or 0) for one in here)
        assert hits / (N - 4) == pytest.approx(rows["shape", name, layer].estimate)
    assert {one.task for one in found.by_class} == {"shape", "present", "coin"}
    with results.classes_path(out).open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["task"], line["name"], line["n"]) for line in lines] == [
        (one.task, one.name, str(one.n)) for one in found.by_class
    ]
    assert {(one.task, one.representation) for one in found.ceilings} == {
        (row.task, row.representation) for row in found.rows
    }
    for ceiling in found.ceilings:
        linear = rows[ceiling.task, ceiling.representation, ceiling.layer]
        assert ceiling.score.estimate == pytest.approx(linear.estimate + (ceiling.difference.estimate or 0))
        assert ceiling.folds > 0 or ceiling.difference.estimate == 0
    told = capsys.readouterr().out
    assert "ceiling" in told and "within 0.1?" in told


def test_all_means_every_task_and_match_dim_writes_no_weights(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.json"
    argv = ["--all", "--run", str(folder / "planted-val.h5"), "--folds", "2", "--jobs", "1", "--out", str(out)]
    assert main([*argv, "--representations", "z_voco", "--no-controls", "--match-dim", "4"]) == 0
    found = results.read(out)
    assert {row.task for row in found.rows} == {task.name for task in TASKS}
    written = ["all.classes.csv", "all.csv", "all.json", "all.predictions.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == written


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["colour"], "'colour' is neither a suite nor a task of planted-val.h5; it has semantic: shape, present"),
        (["--layers", "7"], "layer 7 is not in planted-val.h5; it holds 0, 1, 2"),
        (["--layers", "first"], "neither 'all' nor numbers"),
        (["--folds", "1"], "use 2 or more"),
        (["--margin", "0"], "--margin 0 is no part of a metric; use one between 0 and 1, such as 0.02"),
        (["--margin", "2"], "--margin 2 is no part of a metric"),
        (["--margin", "nan"], "--margin nan is no part of a metric"),
        (["--folds", "100"], "no task of planted-val.h5 can be probed: shape: 3 of 3 classes dropped"),
        (["--match-dim", "0"], "use 1 or more"),
        (["--jobs", "-1"], "--jobs -1"),
        (["--types", "size"], "--types size is no task with classes that is probed; there are shape, coin"),
        (["--representations", "z_vocos"], "representation 'z_vocos' is unknown; there are z_voco, voco_read, v_d"),
        (["--representations", "v_d.2"], "representation 'v_d.2' is unknown"),
        (["--representations", "v_d+"], "representation '' is unknown"),
        (["--representations", "codes"], "has no codes"),
        (["--representations", "nowhere.npy"], "no file at nowhere.npy"),
        (["--out", "here.txt"], "must end in .json"),
        (["--train-run", "no.h5"], "no run at no.h5"),
        (["--run", "nowhere"], "no finished run in nowhere/; make one with: htc-extract --split val"),
        (["--run", "no.h5"], "no run at no.h5"),
        (["--ceiling", "--memory", "1e-6"], "no --curve and no --ceiling; give more --memory"),
        (["--device", "abacus"], "--device abacus cannot be used"),
    ],
)
def test_a_mistake_is_one_helpful_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main(["--run", str(folder), "--out", str(tmp_path / "r.json"), *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("htc-probe: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_flag_is_an_error() -> None:
    assert main(["--fold", "3"]) == 2


def test_a_run_without_labels_is_refused_before_anything_is_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = planted_run(tmp_path / "bare.h5", labelled=())
    assert main(["--run", str(path)]) == 2
    assert "holds no labels" in capsys.readouterr().err
    only = planted_run(tmp_path / "only.h5", labelled=[SHAPE])
    assert main(["detail", "--run", str(only)]) == 2
    assert "no task of detail; it has shape (semantic)" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bare.h5", "only.h5"]


def test_a_run_without_its_last_layer_is_probed_at_the_highest_stored(tmp_path: Path) -> None:
    with open_run(planted_run(tmp_path / "run.h5", stack=(0, 1))) as run:
        plan = make_plan(run, quick("shape"))
        assert plan.warnings[-1] == "z_voco is read at layer 1: the run does not store the last one"
        assert [at.layer for at in plan.representations] == [1]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, json, contextlib, io\n"
        "from htc_probe.probes.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:\n"
        "    main(['--help'])\n"
        "print(json.dumps([text.getvalue(), sorted(sys.modules)]))\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    text, modules = json.loads(done.stdout)
    assert "htc-probe" in text and "--layers" in text
    assert not {"sklearn", "scipy", "pandas", "torch", "h5py", "joblib", "numpy"} & set(modules)


# ---- groups of different sizes


def test_a_group_that_decides_is_warned_of(tmp_path: Path) -> None:
    z_voco = np.random.default_rng(0).standard_normal((N, 2, 4))
    labels = {SIZE: z_voco[:, 1, 0], COIN: np.arange(N) % 2}
    for name, groups, told in [
        ("half", ["one"] * (N // 2) + [str(i) for i in range(N // 2)], "the largest of 121 groups holds 50% of"),
        ("pairs", [str(i // 2) for i in range(N)], None),
    ]:
        with open_run(make_run(tmp_path / f"{name}.h5", z_voco, labels, groups=groups)) as run:
            plan = make_plan(run, quick("detail"))
            found = [warning for warning in plan.warnings if "largest of" in warning]
            assert found == [] if told is None else told in found[0] and "like 4.0 groups" in found[0]


def test_few_groups_alike_are_called_few(tmp_path: Path) -> None:
    z_voco = np.random.default_rng(0).standard_normal((N, 2, 4))
    groups = [str(i % 30) for i in range(N)]
    with open_run(make_run(tmp_path / "few.h5", z_voco, {SIZE: z_voco[:, 1, 0]}, groups=groups)) as run:
        (told,) = [warning for warning in make_plan(run, quick("detail")).warnings if "groups" in warning]
    assert told.startswith("there are only 30 groups of images, for which intervals are too short")


def test_uneven_groups_count_for_fewer(tmp_path: Path) -> None:
    """Intervals are those of as many groups of one size as vary as much."""
    assert metrics.effective_groups(np.full(30, 7)) == pytest.approx(30)
    assert metrics.effective_groups(np.array([50] + [1] * 50)) == pytest.approx(100**2 / (50**2 + 50))
    y, said = np.arange(200) % 2, np.log(np.full((200, 2), 0.5))
    groups = np.minimum(np.arange(200), 100)  # one of 100
    scores = metrics.score("classes", y, said, said, np.zeros(200), groups, intervals.resample_groups(101, 0, 50))
    assert scores.n_groups == 101 and scores.effective_groups == pytest.approx(200**2 / (100**2 + 100))
