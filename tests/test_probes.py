"""Laws of the probes: planted signals are found, noise scores at the floor, nothing leaks between folds."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, r2_score
from sklearn.preprocessing import StandardScaler

from extract.errors import UserError
from extract.store import Batch, Kind, RunInfo, RunShape, RunWriter, Task, open_run
from probes import features, protocol, results, solver, suite, table, tasks
from probes.cli import main

KINDS: tuple[Kind, ...] = ("classes", "multilabel", "number")
N, D = 240, 12


def planted(kind: Kind, seed: int = 0, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D), and labels that a linear probe can read from them."""
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((N, 3))
    x = factor @ rng.standard_normal((3, D)) + noise * rng.standard_normal((N, D))
    if kind == "classes":
        return x, factor.argmax(1)
    return x, (factor > 0).astype(np.uint8) if kind == "multilabel" else factor[:, 0]


def cross_validate(
    kind: Kind, x: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None, folds: int = 4, seed: int = 0
) -> protocol.Score:
    groups = np.arange(len(y)) if groups is None else groups
    fold = protocol.split(kind, y, groups, folds, seed)
    prediction = np.empty(y.shape, dtype=int if kind == "classes" else float)
    floor = np.empty_like(prediction)
    for k in range(folds):
        prediction[fold == k], floor[fold == k], *_ = protocol.hold_out(kind, x, y, groups, fold == k, seed)
    draws = protocol.resample_groups(groups.max() + 1, seed, 400)
    return protocol.score(kind, y, prediction, floor, fold, groups, draws)


# The protocol


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_linear_signal_is_found(kind: Kind) -> None:
    score = cross_validate(kind, *planted(kind))
    assert score.estimate > 0.9 > score.floor + 0.2
    assert score.lower <= score.estimate <= score.upper
    assert (score.n, score.n_groups, len(score.fold_scores)) == (N, N, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_labels_score_at_the_floor(kind: Kind) -> None:
    x, y = planted(kind)
    score = cross_validate(kind, x, np.random.default_rng(1).permutation(y))
    assert score.lower <= score.floor + 0.01 and score.floor - 0.01 <= score.upper


@pytest.mark.parametrize("kind", KINDS)
def test_features_that_do_not_vary_score_exactly_the_floor(kind: Kind) -> None:
    _, y = planted(kind)
    x = np.tile(np.array([0.1, -7.3, 1e4, 0], dtype="float32"), (N, 1))  # whose mean does not round to itself
    score = cross_validate(kind, x, y)
    assert score.estimate == score.floor


def test_grouped_folds_do_not_exploit_duplicates() -> None:
    rng = np.random.default_rng(3)
    sources = rng.standard_normal((60, 40))
    x = np.repeat(sources, 4, 0) + 1e-3 * rng.standard_normal((240, 40))
    groups = np.repeat(np.arange(60), 4)
    y = np.repeat(rng.permutation(np.arange(60) % 5), 4)
    leaky = cross_validate("classes", x, y, np.arange(240))
    assert leaky.estimate > 0.8  # the trap is real
    honest = cross_validate("classes", x, y, groups)
    assert honest.estimate < 0.4 and honest.lower < 0.2 < honest.upper
    assert honest.n_groups == 60
    assert honest.upper - honest.lower > leaky.upper - leaky.lower  # 60 facts, not 240


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grouped", [True, False])
def test_folds_hold_out_every_row_once_and_split_no_group(kind: Kind, grouped: bool) -> None:
    _, y = planted(kind)
    groups = np.arange(N) // (3 if grouped else 1)
    fold = protocol.split(kind, y, groups, 5, seed=4)
    assert set(fold) == set(range(5)) and np.bincount(fold).min() > N / 5 * 0.6
    assert all(len(set(fold[groups == group])) == 1 for group in set(groups))
    np.testing.assert_array_equal(fold, protocol.split(kind, y, groups, 5, seed=4))
    assert (fold != protocol.split(kind, y, groups, 5, seed=5)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_held_out_labels_do_not_matter_to_the_prediction(kind: Kind) -> None:
    x, y = planted(kind)
    test = np.arange(N) % 5 == 0
    other = y.copy()
    other[test] = np.roll(y[test], 7, axis=0)
    groups = np.arange(N)
    one, two = (protocol.hold_out(kind, x, labels, groups, test, seed=0) for labels in (y, other))
    np.testing.assert_array_equal(one.prediction, two.prediction)
    assert one.choice == two.choice


def test_the_edge_of_the_grid_is_flagged_only_where_more_could_be_had() -> None:
    x, y = planted("number", noise=0.01)
    groups = np.arange(N)
    assert protocol.choose_strength("number", x, y, groups, 0, [10.0, 1.0, 0.1]) == (0.1, True)
    assert not protocol.choose_strength("number", x, y, groups, 0, solver.STRENGTHS["number"]).at_edge
    flat = np.ones((N, 3))
    assert protocol.choose_strength("number", flat, y, groups, 0, [10.0, 1.0]) == (10.0, False)


# The metrics


def test_metrics_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    fold = np.zeros(50, dtype=int)
    y, p = rng.standard_normal(50), rng.standard_normal(50)
    assert protocol.evaluate("number", y, p, fold) == pytest.approx(r2_score(y, p))
    labels, scores = rng.integers(0, 2, (50, 3)), rng.integers(0, 9, (50, 3)) / 8  # with ties
    assert protocol.evaluate("multilabel", labels, scores, fold) == pytest.approx(
        average_precision_score(labels, scores, average="macro")
    )
    constant = protocol.evaluate("multilabel", labels, np.ones((50, 3)), fold)
    assert constant == pytest.approx(labels.mean())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_count_rows(kind: Kind) -> None:
    rng = np.random.default_rng(2)
    y = {
        "classes": rng.integers(0, 3, 40),
        "multilabel": rng.choice([0, 1, 255], (40, 2)),
        "number": rng.standard_normal(40),
    }[kind]
    guess = rng.integers(0, 3, 40) if kind == "classes" else rng.integers(0, 5, y.shape) / 4
    fold = np.arange(40) % 2
    weights = rng.integers(0, 4, 40)
    taken = np.repeat(np.arange(40), weights)
    counted = protocol.weighted(kind, y, guess, fold, weights[None].astype(float))
    assert counted[0] == pytest.approx(protocol.evaluate(kind, y[taken], guess[taken], fold[taken]))


def test_average_precision_without_a_positive_is_undefined_and_left_out() -> None:
    y = np.array([[0, 1], [0, 0], [0, 1], [0, 0]])
    scores = np.array([[0.1, 0.9], [0.2, 0.1], [0.3, 0.8], [0.4, 0.2]])
    assert protocol.evaluate("multilabel", y, scores, np.zeros(4, dtype=int)) == 1
    assert np.isnan(protocol.average_precision(y[:, 0] == 1, scores[:, 0], np.ones((1, 4))))


# The solver


@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_the_solver_equals_scikit_learn_by_hand(strength: float) -> None:
    n = 180
    for kind in KINDS:
        x, y = planted(kind, noise=1.0)
        scale = StandardScaler().fit(x[:n])
        train, test = scale.transform(x[:n]), scale.transform(x[n:])
        (found,) = solver.predict_path(kind, x[:n], y[:n], x[n:], [strength], tolerance=1e-8)
        logistic = LogisticRegression(C=1 / (strength * n), tol=1e-8, max_iter=5000)
        if kind == "classes":
            np.testing.assert_array_equal(found, logistic.fit(train, y[:n]).predict(test))
        elif kind == "number":
            ridge = Ridge(alpha=strength * n).fit(train, y[:n])
            np.testing.assert_allclose(found, ridge.predict(test), atol=1e-10)
        else:
            for label in range(3):
                by_hand = logistic.fit(train, y[:n, label]).decision_function(test)
                np.testing.assert_allclose(found[:, label], by_hand, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_ends_where_a_single_fit_ends(kind: Kind) -> None:
    x, y = planted(kind, noise=1.0)
    strengths = [10.0, 1.0, 0.1]
    along = list(solver.predict_path(kind, x[:180], y[:180], x[180:], strengths, tolerance=1e-7))
    for strength, found in zip(strengths, along, strict=True):
        (alone,) = solver.predict_path(kind, x[:180], y[:180], x[180:], [strength], tolerance=1e-7)
        np.testing.assert_allclose(found, alone, atol=1e-4)


def test_ridge_with_more_features_than_rows() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 200)), rng.standard_normal(50)
    x[:, 7] = 3.0  # constant
    (found,) = solver.predict_path("number", x[:40], y[:40], x[40:], [0.1])
    scale = StandardScaler().fit(x[:40])
    by_hand = Ridge(alpha=4.0).fit(scale.transform(x[:40]), y[:40]).predict(scale.transform(x[40:]))
    np.testing.assert_allclose(found, by_hand, atol=1e-10)


def test_a_feature_constant_in_training_is_ignored_where_it_varies_later() -> None:
    x, y = planted("number")
    x[:180, 0] = 1 / 3
    x[180:, 0] = 1e9
    (found,) = solver.predict_path("number", x[:180], y[:180], x[180:], [0.01])
    (without,) = solver.predict_path("number", x[:180, 1:], y[:180], x[180:, 1:], [0.01])
    np.testing.assert_allclose(found, without)


def test_unknown_multilabel_entries_are_left_out_of_fit_and_score() -> None:
    x, y = planted("multilabel")
    rng = np.random.default_rng(0)
    hidden = rng.random(y.shape) < 0.3
    y = np.where(hidden, 255, y).astype(np.uint8)
    score = cross_validate("multilabel", x, y)
    assert score.estimate > 0.9
    (one,) = solver.predict_path("multilabel", x, y[:, :1], x, [0.01])
    known = y[:, 0] != 255
    (two,) = solver.predict_path("multilabel", x[known], y[known, :1], x, [0.01])
    # The scaler sees all rows, the fit only the known: close, not equal.
    assert np.corrcoef(one[:, 0], two[:, 0])[0, 1] > 0.999
    flipped = np.where(hidden, 255, 1 - y).astype(np.uint8)
    (mirror,) = solver.predict_path("multilabel", x, flipped[:, :1], x, [0.01])
    np.testing.assert_allclose(mirror, -one, atol=1e-3)


# The tasks


def test_unknown_labels_are_masked_and_rare_classes_dropped_and_reported() -> None:
    groups = np.arange(60) // 2
    y = np.array([0] * 25 + [2] * 25 + [1] * 6 + [-1] * 4)
    made, notes = tasks.prepare_one(Task("t", "semantic", "classes", ("a", "b", "c")), y, groups, folds=3)
    assert made is not None and made.classes == ("a", "c")
    np.testing.assert_array_equal(made.rows, np.arange(50))
    np.testing.assert_array_equal(made.y, [0] * 25 + [1] * 25)
    np.testing.assert_array_equal(made.groups, groups[:50])
    assert notes == ["t: 1 of 3 classes dropped, fewer than 6 groups: b"]

    made, notes = tasks.prepare_one(Task("t", "detail", "classes", ("a", "b")), y[:20], groups[:20], 3)
    assert made is None and notes[-1] == "t is skipped: 1 classes left"

    size = np.where(np.arange(60) < 10, np.nan, np.arange(60))
    made, _ = tasks.prepare_one(Task("size", "detail", "number"), size, groups, 3)
    assert made is not None and made.rows[0] == 10 and np.isfinite(made.y).all()
    made, notes = tasks.prepare_one(Task("size", "detail", "number"), np.ones(60), groups, 3)
    assert made is None and "every image has the value 1" in notes[0]

    many = np.stack([np.arange(60) % 2, np.arange(60) == 0], 1).astype(np.uint8)
    many[5] = 255
    many[6, 0] = 255
    made, notes = tasks.prepare_one(Task("m", "detail", "multilabel", ("x", "y")), many, groups, 3)
    assert made is not None and made.classes == ("x",) and made.y.shape == (58, 1)
    assert "1 of 2 labels dropped" in notes[0]


# A run, from end to end

TASKS = (
    Task("shape", "semantic", "classes", ("disc", "box", "star")),
    Task("present", "semantic", "multilabel", ("cat", "dog", "hat")),
    Task("size", "detail", "number", unit="px"),
    Task("coin", "detail", "classes", ("heads", "tails")),
)


def write_run(path: Path, labelled: tuple[Task, ...] = TASKS, stack: tuple[int, ...] = (0, 1, 2)) -> Path:
    """z_voco holds nothing at layer 0, size at 1, all but the coin at 2; v_d shapes, v_pooled the size."""
    rng = np.random.default_rng(0)
    count, width = 120, 10
    groups = np.arange(count) // 2
    factor = np.repeat(rng.standard_normal((count // 2, 4)), 2, 0)

    def mixed(columns: list[int], *size: int) -> np.ndarray:
        value = 0.3 * rng.standard_normal((count, int(np.prod(size))))
        value += factor[:, columns] @ rng.standard_normal((len(columns), value.shape[1]))
        return value.reshape(count, *size).astype(np.float32)

    layers = [np.tile(rng.standard_normal(width).astype(np.float32), (count, 1)), mixed([3], width)]
    layers.append(mixed([0, 1, 2, 3], width))
    labels = {
        "shape": factor[:, :3].argmax(1),
        "present": (factor[:, :3] > 0).astype(np.uint8),
        "size": factor[:, 3],
        "coin": np.repeat(rng.integers(0, 2, count // 2), 2),
    }
    labels["shape"][:4] = -1
    roles = ("anchor", "anchor", "patch", "voco")
    shape = RunShape(count, 2, stack, 1, width, 2, (1, 1, 1), roles, (-1,) * 4, (-1,) * 4)
    info = RunInfo({}, {"name": "planted", "sha256": "00"}, "planted", "val", "star", {})
    with RunWriter(path, info, shape, labelled) as writer:
        writer.append(
            Batch(
                ids=[str(i) for i in range(count)],
                paths=[f"{i}.png" for i in range(count)],
                groups=[f"g{group}" for group in groups],
                thumbnails=np.zeros((count, 96, 96, 3), dtype=np.uint8),
                z_voco=np.stack([layers[layer] for layer in stack], 1),
                v_d=mixed([0, 1, 2], 2, width),
                v_pooled=mixed([3], width),
                codes=np.zeros((count, 1, 1, 1), dtype=int),
                attention=np.full((count, 2, 1, 4), 0.25, dtype=np.float32),
                labels={task.name: labels[task.name] for task in labelled},
            )
        )
        return writer.finish()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "planted-val.h5").parent


@pytest.fixture(scope="module")
def found(folder: Path) -> results.Results:
    """What the command writes for the whole run with all layers."""
    out = folder / "all.json"
    argv = ["--runs-folder", str(folder), "--layers", "all", "--folds", "2", "--out", str(out), "--jobs", "1"]
    assert main(argv) == 0
    return results.read(out)


def test_every_probe_of_the_run_is_there_and_finds_what_was_planted(found: results.Results) -> None:
    rows = {(row.task, row.representation, row.layer): row for row in found.rows}
    assert len(rows) == len(found.rows) == 4 * 5
    for task, representation, layer, knows in [
        ("shape", "z_voco", 2, True),
        ("present", "z_voco", 2, True),
        ("size", "z_voco", 2, True),
        ("size", "z_voco", 1, True),
        ("shape", "z_voco", 1, False),
        ("shape", "v_d", None, True),
        ("size", "v_d", None, False),
        ("size", "v_pooled", None, True),
        ("shape", "v_pooled", None, False),
        ("coin", "z_voco", 2, False),
    ]:
        row = rows[task, representation, layer]
        assert (row.lower > row.floor + 0.1) == knows, row
        assert row.lower <= row.estimate <= row.upper
    assert rows["shape", "v_d", None].n == 116 and rows["size", "v_d", None].n == 120
    assert rows["size", "v_d", None].n_groups == 60
    assert rows["shape", "v_d", None].classes == ("disc", "box", "star")


def test_layer_0_scores_exactly_the_floor(found: results.Results) -> None:
    rows = [row for row in found.rows if row.layer == 0]
    assert len(rows) == 4
    for row in rows:
        assert row.estimate == row.floor and not row.at_edge


def test_suite_means_count_each_task_once(found: results.Results) -> None:
    assert len(found.suite_means) == 2 * 5
    for mean in found.suite_means:
        of = [
            row.estimate
            for row in found.rows
            if (row.suite, row.representation, row.layer) == (mean.suite, mean.representation, mean.layer)
        ]
        assert mean.tasks == len(of) == 2
        assert mean.estimate == pytest.approx(sum(of) / 2)
        assert mean.lower <= mean.estimate <= mean.upper


def test_results_name_their_run_and_settings_and_survive_a_round_trip(
    found: results.Results, folder: Path, tmp_path: Path
) -> None:
    assert found.run["file"] == "planted-val.h5" and found.run["sha256"] == "00"
    assert found.config["folds"] == 2 and found.config["suites"] == ["semantic", "detail"]
    assert set(found.versions) == {"python", "numpy", "scipy", "scikit-learn"}
    path, listed = results.write(found, tmp_path / "a" / "r.probes.json")
    assert results.read(path) == found
    assert listed.name == "r.probes.csv"
    with listed.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["task"] for line in lines] == [row.task for row in found.rows]
    assert [float(line["estimate"]) for line in lines] == [row.estimate for row in found.rows]
    assert sorted(p.name for p in path.parent.iterdir()) == ["r.probes.csv", "r.probes.json"]


def test_result_files_that_cannot_be_read_say_so(found: results.Results, tmp_path: Path) -> None:
    path, _ = results.write(found, tmp_path / "r.json")
    body = json.loads(path.read_text())
    for change, message in [
        ({"schema": "x"}, "no probe results"),
        ({"schema_version": 9}, "schema version 9"),
        ({"rows": [{"task": "a"}]}, "damaged"),
    ]:
        path.write_text(json.dumps(body | change))
        with pytest.raises(UserError, match=message):
            results.read(path)
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        results.read(path)
    with pytest.raises(UserError, match="htc-probe semantic detail"):
        results.read(tmp_path / "missing.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        results.write(found, tmp_path / "file" / "r.json")


def test_processes_do_not_change_the_result(folder: Path) -> None:
    with open_run(folder / "planted-val.h5") as run:
        plan = suite.plan(run, ["size"], folds=3)
        steps: list[int] = []
        one = suite.probe(run, plan, jobs=1, on_fit=lambda: steps.append(1))
        two = suite.probe(run, plan, jobs=2)
    assert one == two
    assert len(steps) == plan.fits == 3 * 3


def test_the_table_shows_scores_beside_their_floor(found: results.Results) -> None:
    from rich.console import Console

    console = Console(width=110, record=True, file=io.StringIO())
    console.print(table.render(found))
    text = console.export_text()
    semantic, detail = text.split("detail: what")
    assert "shape (3)" in semantic and "coin" not in semantic and "coin (2)" in detail
    row = next(row for row in found.rows if (row.task, row.representation) == ("shape", "v_d"))
    line = next(line for line in semantic.splitlines() if "shape (3)" in line)
    assert f"{row.estimate:.2f} [{row.lower:.2f},{row.upper:.2f}]" in line
    assert line.rstrip().endswith(f"{row.floor:.2f}") and "top-1" in line and " 116 " in line
    assert "metrics differ" in " ".join(semantic.split()) and "mean of 2" in semantic
    assert "z_voco by layer" in semantic
    narrow = Console(width=80, record=True, file=io.StringIO())
    narrow.print(table.render(found))
    assert "…" not in narrow.export_text()


def test_the_command_as_typed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["detail", "shape", "--run", str(folder / "planted-val.h5"), "--folds", "2", "--jobs", "1"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "semantic: what" in out and "detail: what" in out and "present" not in out
    assert "planted-val.probes.json" in out.replace("\n", "") and "htc-dashboard" in out
    written = results.read(folder / "planted-val.probes.json")
    assert {row.task for row in written.rows} == {"shape", "coin", "size"}
    assert {row.layer for row in written.rows} == {2, None}
    assert (folder / "planted-val.probes.csv").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["colour"],
            "'colour' is neither a suite nor a task of planted-val.h5; it has semantic: shape, present",
        ),
        (["--layers", "7"], "layer 7 is not in planted-val.h5; it holds 0, 1, 2"),
        (["--layers", "first"], "neither 'all' nor numbers"),
        (["--folds", "1"], "use 2 or more"),
        (["--folds", "50"], "no task of planted-val.h5 can be probed: shape: 3 of 3 classes dropped"),
        (["--jobs", "-1"], "--jobs -1"),
        (["--out", "here.txt"], "must end in .json"),
        (["--runs-folder", "nowhere"], "no finished run in nowhere/; make one with: htc-extract --split val"),
        (["--run", "no.h5"], "no run at no.h5"),
    ],
)
def test_a_mistake_is_one_helpful_line(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main(["--runs-folder", str(folder), *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("htc-probe: ") and error.count("\n") == 1


def test_an_unknown_flag_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--fold", "3"])
    assert stopped.value.code == 2


def test_a_run_without_labels_is_refused_before_anything_is_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path / "bare.h5", labelled=())
    assert main(["--run", str(path)]) == 2
    assert "holds no labels" in capsys.readouterr().err
    only = write_run(tmp_path / "only.h5", labelled=TASKS[:1])
    assert main(["detail", "--run", str(only)]) == 2
    assert "no task of detail; it has shape (semantic)" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bare.h5", "only.h5"]


def test_a_run_without_its_last_layer_is_probed_at_the_highest_stored(tmp_path: Path) -> None:
    with open_run(write_run(tmp_path / "run.h5", stack=(0, 1))) as run:
        assert features.parse_layers(run, "") == (1,)
        assert features.parse_layers(run, "0") == (0, 1)
        with pytest.raises(UserError, match="it holds 0, 1"):
            features.parse_layers(run, "-1")
        plan = suite.plan(run, ["shape"], folds=3)
        assert plan.warnings == ("z_voco is read at layer 1: the run does not store the last one",)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, json, contextlib, io\n"
        "from probes.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:\n"
        "    main(['--help'])\n"
        "print(json.dumps([text.getvalue(), sorted(sys.modules)]))\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    text, modules = json.loads(done.stdout)
    assert "htc-probe" in text and "--layers" in text
    assert not {"sklearn", "scipy", "pandas", "torch", "h5py", "joblib"} & set(modules)
