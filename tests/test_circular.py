"""Laws of circular values: arithmetic round the circle, probes of angles, and what is written and shown of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.linear_model import Ridge

import htc_probe.probes
from htc_probe.analysis import compare
from htc_probe.analysis.causes import effects, following, mixing
from htc_probe.analysis.contents import associations, geometry
from htc_probe.dashboards import data
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Task, is_labelled, open_run
from htc_probe.probes import cli
from htc_probe.probes.files import results
from htc_probe.probes.files.predictions import load
from htc_probe.probes.files.weights import Probe
from htc_probe.probes.inputs import circular, tasks
from htc_probe.probes.scores import controls, metrics
from htc_probe.probes.scores.metrics import VonMises
from htc_probe.probes.show import answers
from made.pages import PAGES, charts
from made.planted import make_run

N = 400
ANGLE = Task("angle", "detail", "circular", unit="degrees", period=360.0)
RNG = np.random.default_rng(0)


def turned(seed: int = 0, noise: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """(features (N, 8) that hold the point of an angle, the angle in degrees)."""
    rng = np.random.default_rng(seed)
    y = rng.uniform(0, 360, N)
    points = circular.vectors(y, 360) @ rng.standard_normal((2, 8))
    return points + noise * rng.standard_normal((N, 8)), y


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Probed: an angle, the same as a number, the same turned and in other units, and a clock that nothing tells."""
    path = tmp_path_factory.mktemp("angles") / "run.h5"
    x, y = turned()
    stacked = np.stack([np.ones_like(x), x], 1)
    given = {
        ANGLE: y - 720,
        Task("line", "detail", "number", unit="degrees"): y,
        Task("radians", "detail", "circular", unit="rad", period=2 * np.pi): np.radians(y + 100),
        Task("clock", "detail", "circular", unit="h", period=24.0): RNG.uniform(0, 24, N),
        Task("what", "semantic", "classes", tuple("abcd")): RNG.integers(0, 4, N),
    }
    make_run(path, stacked, given)
    assert (
        cli.main(
            [
                "--all",
                "--run",
                str(path),
                "--jobs",
                "1",
                "--layers",
                "all",
                "--folds",
                "3",
                "--representations",
                "z_voco",
            ]
        )
        == 0
    )
    return path


# Arithmetic


def test_a_difference_goes_the_short_way_round() -> None:
    a, b = np.array([359.0, 1, 90, 270, 0]), np.array([1.0, 359, 270, 90, 0])
    np.testing.assert_allclose(circular.difference(a, b, 360), [-2, 2, -180, -180, 0])
    np.testing.assert_allclose(circular.values_of(3 * circular.vectors(a, 360), 360), a)
    assert circular.values_of(np.array([1.0, -1e-30]), 360) == 0


@pytest.mark.parametrize("kappa", [0.0, 0.3, 5.0, 1e3, circular.MOST])
def test_the_density_is_scipys_and_the_concentration_is_found_again(kappa: float) -> None:
    errors = np.array([-100.0, -0.1, 0, 0.001, 170])
    density = stats.vonmises.logpdf(np.radians(errors), kappa) + np.log(np.pi / 180)
    np.testing.assert_allclose(circular.bits(errors, np.full(5, kappa), 360), -density / np.log(2), rtol=1e-6)
    near = np.linspace(-180, 180, 400_001)
    pdf = 2 ** -circular.bits(near, np.array(kappa), 360)
    assert integrate.trapezoid(pdf, near) == pytest.approx(1, rel=1e-4)
    mean_cosine = integrate.trapezoid(pdf * np.cos(np.radians(near)), near)
    if kappa < 1e5:  # where the grid is fine enough
        assert circular.concentration(mean_cosine) == pytest.approx(kappa, rel=1e-3, abs=1e-6)
    np.testing.assert_array_equal(circular.concentration(np.array([-0.5, 0, 1])), [0, 0, circular.MOST])
    assert np.isnan(circular.concentration(np.nan))


# Scores and floors


def test_a_right_angle_scores_1_the_floor_0_and_whole_turns_and_units_do_not_matter() -> None:
    y = RNG.vonmises(1, 1.5, N) % (2 * np.pi)
    said = (y + 0.3 * RNG.standard_normal(N)) % (2 * np.pi)
    fold, each, draws = np.arange(N) % 5, np.arange(N), np.ones((2, N), np.uint16)
    found = {}
    for unit, period in ((1.0, 2 * np.pi), (180 / np.pi, 360.0)):
        values, floor = unit * y, controls.floor("circular", unit * y, fold, period=period)
        guess = VonMises(unit * said, np.full(N, 11.0), period)
        found[period] = metrics.score("circular", values, guess, floor, fold, each, draws)
        again = metrics.score("circular", values + 3 * period, guess, floor, fold, each, draws)
        for name, score in found[period].of.items():
            assert again.of[name].estimate == pytest.approx(score.estimate, abs=1e-9), name
    one, other = (found[period].of for period in (2 * np.pi, 360.0))
    missed = 1 - np.cos(said - y)
    floor = controls.floor("circular", y, fold, period=2 * np.pi)
    assert isinstance(floor, VonMises)
    without = 1 - np.cos(floor.mean - y)
    assert one["circular R2"].estimate == pytest.approx(1 - missed.mean() / without.mean())
    assert one["circular R2"].estimate == pytest.approx(other["circular R2"].estimate)
    assert other["MAE"].estimate == pytest.approx(np.degrees(one["MAE"].estimate))
    assert one["V-information"].estimate == pytest.approx(other["V-information"].estimate)
    moved = other["cross-entropy"].estimate - one["cross-entropy"].estimate
    assert moved == pytest.approx(np.log2(180 / np.pi))
    assert found[360.0].floor["circular R2"].estimate == found[360.0].floor["V-information"].estimate == 0
    perfect = VonMises(y + 2 * np.pi, np.full(N, 1e3), 2 * np.pi)
    assert metrics.evaluate("circular", y, perfect, fold, floor)["circular R2"] == pytest.approx(1)


def test_the_floor_is_even_all_round_where_labels_are_and_von_mises_where_they_lie_together() -> None:
    fold = np.arange(4000) % 4
    around = controls.floor("circular", RNG.uniform(0, 24, 4000), fold, period=24)
    together = controls.floor("circular", RNG.vonmises(0, 2, 4000) * 12 / np.pi % 24, fold, period=24)
    assert isinstance(around, VonMises) and isinstance(together, VonMises)
    assert (around.concentration < 0.1).all()
    np.testing.assert_allclose(together.concentration, 2, rtol=0.1)
    assert np.abs(circular.difference(together.mean, np.zeros(4000), 24)).max() < 0.5


def test_the_oracle_knows_the_direction_of_a_category_and_the_floor_where_it_says_nothing() -> None:
    category = RNG.integers(0, 3, 3000)
    y = (np.array([10.0, 130, 250])[category] + np.array([5, 20, 60])[category] * RNG.standard_normal(3000)) % 360
    fold = np.arange(3000) % 2
    said = controls.oracle("circular", y, category, fold, period=360)
    assert isinstance(said, VonMises)
    off = circular.difference(said.mean, np.array([10, 130, 250])[category], 360)
    assert np.abs(off).max() < 12
    order = [said.concentration[category == c].mean() for c in range(3)]
    assert order[0] > order[1] > order[2]
    floor = controls.floor("circular", y, fold, period=360)
    for rare in (np.arange(3000), RNG.integers(0, 1000, 3000)):
        guess = controls.oracle("circular", y, rare, fold, period=360)
        found = metrics.evaluate("circular", y, guess, fold, floor)
        assert found["V-information"] > -0.05


# The command


def test_an_angle_is_read_on_the_circle(run: Path) -> None:
    found = results.read(results.default_path(run))
    rows = {(row.task, row.representation, row.layer): row for row in found.rows}
    angle, line, radians, clock = (rows[task, "z_voco", 1] for task in ("angle", "line", "radians", "clock"))
    assert (angle.kind, angle.metric, angle.unit, angle.floor) == ("circular", "circular R2", "degrees", 0)
    assert angle.estimate > 0.95 > 0.7 > line.estimate and angle.lower < angle.estimate < angle.upper
    assert all(score is not None and score > 0.9 for score in angle.fold_scores)
    # Of the angle itself: turned, in radians and short of whole turns it is the same.
    assert radians.estimate == pytest.approx(angle.estimate, abs=0.02)
    assert radians.bits == pytest.approx(angle.bits, abs=0.1)
    assert radians.metrics["MAE"].estimate == pytest.approx(np.radians(angle.metrics["MAE"].estimate or 0), rel=0.1)
    assert (angle.compression or 0) > 1.2 and angle.bits > 1.5
    assert (angle.selectivity is not None) and (angle.selectivity.lower or 0) > 0.8
    assert clock.lower < 0.05 and abs(clock.bits) < 0.05 and (clock.compression or 0) < 1.05
    # Layer 0 is the same for every image.
    assert rows["angle", "z_voco", 0].estimate == pytest.approx(0, abs=1e-9)
    assert [one.task for one in found.baselines] == ["angle", "line", "radians", "clock"]


def test_what_was_said_and_the_probe_are_written_with_the_period(run: Path) -> None:
    said = load(results.predictions_path(results.default_path(run)))["angle", "z_voco", 1]
    y = turned()[1]
    np.testing.assert_allclose(said.y, y)
    assert said.period == 360 and said.right is None and said.sure is None and said.error is not None
    np.testing.assert_allclose(np.abs(said.error), np.degrees(np.arccos(np.cos(np.radians(said.said - y)))), atol=1e-3)
    (row,) = (
        row
        for row in results.read(results.default_path(run)).rows
        if (row.task, row.representation, row.layer) == ("angle", "z_voco", 1)
    )
    assert np.abs(said.error).mean() == pytest.approx(row.metrics["MAE"].estimate, rel=1e-4)
    bits = metrics.row_bits("circular", said.y, said.prediction)  # type: ignore[arg-type]
    assert bits.mean() == pytest.approx(row.metrics["cross-entropy"].estimate, rel=1e-4)
    probe = htc_probe.probes.load(results.weights_path(results.default_path(run)))["angle", "z_voco", 1]
    with open_run(run) as opened:
        x = opened.z_voco(1).astype(float)
        assert opened.task("angle") == ANGLE
    scaled = (x - x.mean(0)) / x.std(0)
    theirs = Ridge(alpha=row.strength * N).fit(scaled, circular.vectors(y, 360)).predict(scaled)
    off = circular.difference(probe.predict(x), circular.values_of(theirs, 360), 360)
    np.testing.assert_allclose(off, 0, atol=1e-3)
    assert probe.directions().shape == (8, 2)


def test_files_without_circular_tasks_say_nothing_of_periods(tmp_path: Path) -> None:
    x, y = turned()
    path = make_run(tmp_path / "run.h5", x[:, None], {Task("line", "detail", "number", unit="m"): y})
    argv = ["--all", "--run", str(path), "--jobs", "1", "--no-controls", "--representations", "z_voco", "--folds", "2"]
    assert cli.main(argv) == 0
    assert b"period" not in path.read_bytes()
    for file in (results.weights_path, results.predictions_path):
        head = file(results.default_path(path)).read_bytes()[:20_000]
        assert b'"number", []]' in head.replace(b"\\", b"")  # and nothing behind it


@pytest.mark.parametrize(
    ("unit", "scale", "warned"),
    [
        ("degrees", 360, "360"),
        ("deg", 180, "360"),
        ("\u00b0", 300, "360"),
        ("Degrees from north", 360, "360"),
        ("radians", 2 * np.pi, "6.283185307"),
        ("rad", 3.0, "6.283185307"),
        ("degrees", 60, ""),
        ("rad", 1.0, ""),
        ("\u00b0C", 360, ""),
        ("degrees Celsius", 360, ""),
        ("degrees/s", 360, ""),
        ("rad per second", 7.0, ""),
        ("cm", 360, ""),
        ("", 360, ""),
        ("grade", 360, ""),
    ],
)
def test_a_number_in_an_angles_unit_that_may_come_round_is_warned_of(unit: str, scale: float, warned: str) -> None:
    """3D Shapes' orientation, -30 to 30 degrees, cannot."""
    y = np.linspace(-scale / 2, scale / 2, 100)
    each, every = np.arange(100), np.ones(100, bool)
    made, notes = tasks.prepare_one(Task("t", "detail", "number", unit=unit), y, each, 10, every)
    assert made is not None
    assert (len(notes) == 1 and "circular" in notes[0] and f"period = {warned}" in notes[0]) if warned else not notes
    of_a_turn = Task("t", "detail", "circular", unit=unit, period=scale)
    assert not tasks.prepare_one(of_a_turn, y, each, 10, every)[1]


def test_a_run_of_another_period_is_not_learned_from(run: Path, tmp_path: Path) -> None:
    x, y = turned()
    half = Task("angle", "detail", "circular", unit="degrees", period=180.0)
    other = make_run(tmp_path / "other.h5", np.stack([x, x], 1), {half: y})
    with open_run(run) as one, open_run(other) as two, pytest.raises(UserError, match="period 360.*period 180"):
        tasks.together(two, one, [ANGLE])


@pytest.mark.parametrize(
    "task",
    [
        Task("t", "detail", "circular"),
        Task("t", "detail", "circular", period=-1.0),
        Task("t", "detail", "number", period=1.0),
        Task("t", "detail", "circular", period=float("inf")),
    ],
)
def test_a_period_belongs_to_circular_tasks_alone(task: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="period"):
        make_run(tmp_path / "run.h5", np.ones((4, 1, 2)), {task: np.arange(4.0)})


# Analyses and pages


def test_neighbours_vote_round_the_circle() -> None:
    labels = np.array([350.0, 10, 0, 355, 5, 180])
    near = np.array([[1, 2], [0, 2], [0, 1], [4, 2], [3, 2], [0, 1]])
    errors, whole = geometry.vote(near, labels, ANGLE)
    np.testing.assert_allclose(errors[[2, 5]], [0, 2], atol=1e-9)
    assert (errors[:5] < 0.1).all() and whole.min() >= 0
    assert geometry.floor(labels, ANGLE) == 0


def test_changes_and_donors_of_angles_go_the_short_way() -> None:
    probe = Probe("circular", (), np.eye(2), np.zeros(2), np.zeros(2), 360.0)
    z, base = (circular.vectors(np.array(values), 360) for values in ([[2.0, 90]], [358.0]))
    changes = effects.probe_changes(probe, z, base)
    np.testing.assert_allclose(changes, [[4, 92]])
    said, true, partner = np.array([355.0, 40]), np.array([90.0, 10]), np.array([1, 0])
    assert following.follows(said, true, partner, "circular", 360).tolist() == [1, 0]
    m, own = 200, np.arange(200)
    donors = RNG.uniform(0, 360, m)
    mix = mixing.Mix(
        "swapped", mixing.Half(None, own, own), mixing.Half(None, own, own[::-1].copy()), np.minimum(own, own[::-1])
    )  # type: ignore[arg-type]
    points = 0.2 * circular.vectors(donors, 360) + 0.8 * circular.vectors(donors[::-1], 360)
    measure = following.Measure("probe", "angle", "detail", "circular", 360.0)
    found = following.weights(mix, {measure: circular.values_of(points, 360)}, {measure: donors}, 0)
    assert found.values[0, 1, 0] > 0.6 > 0.4 > found.values[0, 0, 0]


def test_pages_show_angles(run: Path) -> None:
    place = load(results.predictions_path(results.default_path(run)))
    one, same = place["angle", "z_voco", 1], place["angle", "z_voco", 0]
    said = answers.of(one)
    assert np.abs(said.error).max() <= 180 and said.wrong()[0] == np.abs(said.error).argmax()
    assert answers.of_image(one, 0) is not None
    rows = np.arange(N)
    both = compare.scored(one, same, rows, rows)
    assert both is not None and both.floor == 0
    assert np.mean(both.score[0]) > 0.95 and abs(np.mean(both.score[1])) < 0.1
    rows_of = results.read(results.default_path(run)).rows
    (bits,) = (row.bits for row in rows_of if (row.task, row.representation, row.layer) == ("angle", "z_voco", 1))
    assert np.mean(both.bits[0]) == pytest.approx(bits, abs=0.05)
    assert data.label_text(ANGLE, 359.5) == "359.5 degrees" and data.label_text(ANGLE, np.nan) == "unknown"
    y = turned()[1]
    assert is_labelled("circular", y).all()
    parts = np.stack([associations.answering(y, "circular", at) for at in range(4)])
    assert parts.sum(0).tolist() == [1] * N and len(associations.answers(y, "circular", (), "degrees")) == 4


BY_IMAGE = {"page": "Probes", "probes": "Image by image", "task": "angle"}


@pytest.mark.parametrize("query", [*({"page": page} for page in PAGES), BY_IMAGE])
def test_every_page_shows_a_run_with_angles(run: Path, open_app: Any, query: dict[str, str]) -> None:
    app = open_app(run, **query)
    assert not app.exception and not app.error
    if "task" in query:
        assert "the short way round" in str(charts(app)["probe_values"]["layout"])
