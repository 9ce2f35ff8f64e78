"""The page Compare: paired differences and their intervals, its figures, and what a user does there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import htc_probe.analysis.attention.rows
from benchmarks.browser import serving, tab
from htc_probe.analysis import compare
from htc_probe.analysis import results as analysed
from htc_probe.analysis.stats import draws
from htc_probe.dashboards import data, figures
from htc_probe.extract.store import Batch, RunInfo, RunShape, RunWriter, open_run
from htc_probe.probes.files import results
from htc_probe.probes.files.predictions import Asked, Predicted, Writer
from htc_probe.probes.scores import metrics
from htc_probe.probes.scores.metrics import Gaussian
from made.pages import COLS, ROLES, ROWS, TASKS, A, H, L, S, add_section, charts, press, tables

N = 40
PAGE = "Compare"
LAST = f"z_voco@{L}"


def write(
    path: Path,
    *,
    n: int = N,
    first: int = 0,
    more: float = 0.0,
    heads: int = H,
    anchors: int = A,
    topology: str = "star",
) -> Path:
    """Images `first` to `first + n`, by id; `more` is added to the scores of the anchors before the softmax. Two images
    make a group. The scores of an image are the same in all runs.
    """
    numbers = np.arange(first, first + n)
    keep = [at for at, role in enumerate(ROLES) if role != "anchor" or at <= anchors]
    scores = np.stack([np.random.default_rng(number).normal(size=(L, heads, S)) for number in numbers])
    scores[..., 1 : 1 + A] += more
    scores = scores[..., keep]
    rows = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    rng = np.random.default_rng(1)
    thumbnails = rng.integers(0, 256, (100, 96, 96, 3), dtype=np.uint8)
    info = RunInfo({"seed": 0}, {"name": "tiny", "sha256": "0" * 64, "config": {}}, "toy", "val", topology, {})
    tokens = (tuple(of[at] for at in keep) for of in (ROLES, ROWS, COLS))
    shape = RunShape(n, L, tuple(range(L + 1)), heads, 8, anchors, None, *tokens)
    batch = Batch(
        ids=[f"val-{at:03d}" for at in numbers],
        paths=[f"val/{at}" for at in numbers],
        groups=[f"group-{at // 2}" for at in numbers],
        thumbnails=thumbnails[numbers % 100],
        z_voco=rng.normal(size=(n, L + 1, 8)).astype(np.float32),
        v_d=rng.normal(size=(n, anchors, 8)).astype(np.float32),
        v_pooled=rng.normal(size=(n, 8)).astype(np.float32),
        codes=None,
        attention=rows.astype(np.float32),
        labels={"object": numbers % 2, "present": np.stack([numbers % 2, numbers % 3 == 0], 1), "width": numbers * 1.0},
    )
    with RunWriter(path, info, shape, TASKS) as writer:
        writer.append(batch)
        return writer.finish()


def write_probes(run: Path, right: float, *, predictions: bool = True) -> None:
    """Scores of one task beside the run, and what its probe said: it errs in every image but a share `right`."""
    with open_run(run) as opened:
        labels, of = opened.labels("object"), analysed.identity(opened) | {"last_layer": L}
    said = np.where(np.arange(len(labels)) < right * len(labels), labels, 1 - labels)
    bits = results.Interval(right, right - 0.1, right + 0.1)
    rows, confusions = [], []
    for name, layer in (("z_voco", 0), ("z_voco", L), ("v_d", None)):
        rows.append(
            results.Row(
                "semantic",
                "object",
                "classes",
                "",
                name,
                layer,
                8,
                "top-1",
                right,
                right - 0.1,
                right + 0.1,
                len(labels),
                len(labels) // 2,
                0.5,
                {"V-information": bits},
                right,
                None,
                None,
                None,
                None,
                None,
                results.Interval(right, right - 0.2, right + 0.2),
                1.0,
                1.0,
                False,
                1e-7,
                (right,),
                ("disc", "bar"),
            )
        )
        counts = np.zeros((2, 2), int)
        np.add.at(counts, (labels, said), 1)
        confusions.append(
            results.Confusion("object", name, layer, ("disc", "bar"), tuple(tuple(map(int, row)) for row in counts))
        )
    means = tuple(
        results.SuiteMean("semantic", of.representation, of.layer, right, right - 0.1, right + 0.1, 0.5, bits, None, 1)
        for of in rows
    )
    curves = tuple(results.CurvePoint("semantic", "object", "v_d", None, n, "top-1", bits, bits) for n in (8, 16))
    made = results.Results({}, of, {}, (), tuple(rows), means, confusions=tuple(confusions), curves=curves)
    path, *_ = results.write(made, results.default_path(run))
    if predictions:
        sure = np.log(np.where(said[:, None] == np.arange(2), 0.8, 0.2))
        every = np.arange(len(labels))
        asked = [Asked("object", "classes", ("disc", "bar"), every, every * 0, labels)]
        sources = [(row.representation, row.layer) for row in rows]
        with Writer(results.predictions_path(path), run.parent / ".keep", of, asked, sources) as writer:
            for _ in sources:
                writer.add([sure])
            writer.finish()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the same images, `more` looking at the anchors more and its probes right more often; and `less`."""
    folder = tmp_path_factory.mktemp("runs")
    more, less = write(folder / "more.h5", more=1.0), write(folder / "less.h5", topology="causal")
    write_probes(more, 0.9)
    write_probes(less, 0.6)
    return folder


# ---- arithmetic


def test_paired_means_and_their_errors_are_those_of_a_t_test() -> None:
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(0)
    this, other = rng.normal(size=(2, 30, 4))
    found = compare.of_images(this, other, np.arange(30))
    expected = ttest_rel(this, other)
    interval = expected.confidence_interval()
    np.testing.assert_allclose(found.estimate, (this - other).mean(0))
    np.testing.assert_allclose(found.p, expected.pvalue)
    np.testing.assert_allclose([found.lower, found.upper], [interval.low, interval.high])
    np.testing.assert_allclose([found.this, found.other], [this.mean(0), other.mean(0)])
    assert found.paired


def test_images_of_a_group_count_once() -> None:
    values = np.random.default_rng(0).normal(size=20)
    single = compare.of_images(values, np.zeros(20), np.arange(20))
    twice = compare.of_images(np.repeat(values, 2), np.zeros(40), np.repeat(np.arange(20), 2))
    np.testing.assert_allclose(twice[:6], single[:6])
    shuffled = np.random.default_rng(1).permutation(40)
    again = compare.of_images(np.repeat(values, 2)[shuffled], np.zeros(40), np.repeat(np.arange(20), 2)[shuffled])
    np.testing.assert_allclose(again[:6], single[:6])


def test_groups_of_any_size_agree_with_resampling() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), rng.integers(1, 6, 200))
    values = rng.normal(size=200)[groups] + rng.normal(size=len(groups)) + 0.3
    found = compare.of_images(values, np.zeros(len(groups)), groups)
    drawn = draws.interval_of_mean(values, groups, 0)
    np.testing.assert_allclose([found.lower, found.upper], drawn[1:], atol=0.15 * (drawn.upper - drawn.lower))


def test_unknown_values_are_left_out_and_one_group_has_no_interval() -> None:
    this = np.array([[1.0, 1.0], [3.0, np.nan], [5.0, 7.0]])
    found = compare.of_images(this, np.zeros((3, 2)), np.arange(3))
    np.testing.assert_allclose(found.estimate, [3, 4])
    lonely = compare.of_images(this, np.zeros((3, 2)), np.zeros(3, int))
    assert np.isnan([lonely.lower, lonely.upper, lonely.p]).all() and not lonely.marked.any()


def test_independent_estimates_add_their_variances() -> None:
    found = compare.of_estimates((0.5, 0.2, 0.8), (0.1, -0.3, 0.5))
    np.testing.assert_allclose([found.estimate, found.lower, found.upper], [0.4, -0.1, 0.9])
    assert 0.1 < found.p < 0.13 and not found.paired
    np.testing.assert_allclose(compare.of_estimates((1.0, 0.0, 2.0), (0.0, 0.0, 0.0)).p, 0.05)
    rng = np.random.default_rng(0)
    apart = compare.of_images(rng.normal(size=50), rng.normal(size=80), np.arange(50), np.arange(80))
    assert not apart.paired and apart.upper - apart.lower == pytest.approx(2 * 2 * np.sqrt(1 / 50 + 1 / 80), rel=0.15)


def test_marks_hold_over_all_cells() -> None:
    p = np.array([[0.001, 0.02], [0.03, np.nan]])
    of = compare.Differences(*[np.zeros((2, 2))] * 5, p, True)
    np.testing.assert_array_equal(of.marked, [[True, True], [True, False]])
    np.testing.assert_array_equal(of._replace(p=p * 2).marked, [[True, False], [False, False]])


def test_the_mean_over_tasks_keeps_means_and_spread() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 100))
    np.testing.assert_allclose(compare.mean_of([one, other]), (one + other) / 2)
    part = np.where(np.arange(100) < 50, other, np.nan)
    joint = compare.mean_of([one, part])
    assert joint.mean() == pytest.approx((one.mean() + other[:50].mean()) / 2)
    assert joint.std() == pytest.approx(np.sqrt(1 + 2) / 2, rel=0.2)


def predicted(kind: Any, y: np.ndarray, prediction: Any, rows: np.ndarray) -> Predicted:
    if kind == "number":
        said, logs = prediction.mean, np.empty((len(y), 0))
    elif kind == "multilabel":
        said, logs = prediction > 0, np.empty((len(y), 0))
    else:
        said = prediction.argmax(1)
        logs = np.take_along_axis(prediction, np.stack([said, y], 1), 1)
    return Predicted(kind, ("a", "b"), rows, np.zeros(len(y), int), y, said, prediction, logs)


def test_scores_of_images_have_the_means_that_the_metrics_have() -> None:
    rng = np.random.default_rng(0)
    n, rows = 60, np.arange(0, 120, 2)
    logits = rng.normal(size=(n, 2))
    of_kind = {
        "classes": (rng.integers(0, 2, n), logits - np.logaddexp(*logits.T)[:, None]),
        "multilabel": (np.where(rng.random((n, 2)) < (0, 0.1), 255, logits > 0.3).astype(np.uint8), logits),
        "number": (y := rng.normal(size=n), Gaussian(y + rng.normal(size=n) / 2, np.full(n, 0.5))),
    }
    for kind, (labels, prediction) in of_kind.items():
        one = predicted(kind, labels, prediction, rows)
        other = predicted(kind, labels, prediction, np.arange(n))
        found = compare.scored(one, other, np.arange(120), np.arange(120) // 2)
        assert found is not None and found.asked.sum() == n and np.isnan(found.score[0][1::2]).all()
        measured = metrics.evaluate(kind, labels, prediction, np.zeros(n, int))
        expected = {
            "classes": measured.get("top-1"),
            "number": measured.get("R2"),
            "multilabel": kind == "multilabel"
            and np.mean([((p > 0) == t)[t != 255].mean() for p, t in zip(logits, labels, strict=True)]),
        }[kind]
        assert np.nanmean(found.score[0]) == pytest.approx(expected)
        assert np.nanmean(found.score[1]) == pytest.approx(expected)
        np.testing.assert_allclose(np.nanmean(found.bits[0] - found.bits[1]), 0, atol=1e-12)
    for changed in (
        predicted("classes", 1 - of_kind["classes"][0], of_kind["classes"][1], rows),
        predicted("multilabel", *of_kind["multilabel"], rows),
    ):
        assert compare.scored(predicted("classes", *of_kind["classes"], rows), changed, rows, rows) is None


# ---- what is read


def test_images_are_paired_by_id(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one.h5", n=6), write(tmp_path / "other.h5", n=6, first=4)
    keys = data.key_of(one), data.key_of(other)
    at = data.pairs(*keys)
    assert at.paired and at.rows.tolist() == [4, 5] and at.other_rows.tolist() == [0, 1] and len(set(at.groups)) == 1
    assert data.pairs(*keys, (5,)).rows.tolist() == [5] and not len(data.pairs(*keys, (0,)).rows)
    apart = data.pairs(keys[0], data.key_of(write(tmp_path / "far.h5", n=3, first=50)))
    assert not apart.paired and (len(apart.rows), len(apart.other_rows)) == (6, 3)


def test_differences_of_attention_are_those_of_the_runs(folder: Path, tmp_path: Path) -> None:
    keys = data.key_of(folder / "more.h5"), data.key_of(folder / "less.h5")
    with open_run(folder / "more.h5") as more, open_run(folder / "less.h5") as less:
        mass = more.anchor_mass() - less.anchor_mass()
        rows = [np.stack([run.attention(image) for image in range(N)]) for run in (more, less)]
    found = data.mass_differences(*keys, ())
    np.testing.assert_allclose(found.estimate, mass.mean(0), rtol=1e-5)
    assert found.marked.all() and (found.lower > 0).all()
    one, other, at = data.paired_attention(*keys, ())
    assert at.paired and len(at.rows) == N
    for layer, head in ((None, None), (1, None), (None, 1), (2, 0)):
        part = np.s_[:, *(slice(None) if of is None else slice(of, of + 1) for of in (layer, head))]
        np.testing.assert_allclose(one.select(layer, head), rows[0][part].mean((1, 2)), atol=1e-3)
    np.testing.assert_allclose(sum(one.mass.values()) - sum(other.mass.values()), 0, atol=1e-3)
    few, _, at = data.paired_attention(*keys, (3, 5))
    np.testing.assert_allclose(few.rows_NLHS, rows[0][[3, 5]], atol=1e-3)


def test_rows_out_of_order_are_read_in_theirs(folder: Path) -> None:
    key = data.key_of(folder / "more.h5")
    blocks = list(data.attention_blocks(key, np.array([3, 5, 4, 6])))
    with open_run(folder / "more.h5") as run:
        np.testing.assert_array_equal(np.concatenate(blocks), np.stack([run.attention(row) for row in (3, 5, 4, 6)]))


def test_predictions_that_are_a_link_out_of_the_folder_are_not_read(tmp_path: Path) -> None:
    run = write(tmp_path / "runs" / "run.h5", n=4)
    write_probes(run, 0.5)
    path = data.said_beside(run)
    assert path is not None
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert data.said_beside(run) is None


# ---- figures


NAMES = ("<b>this</b>", "other %{x}")


def some(shape: tuple[int, ...], seed: int = 0) -> compare.Differences:
    rng = np.random.default_rng(seed)
    this, other = rng.normal(size=(2, *shape))
    p = np.full(shape, 0.5)
    p[(0,) * len(shape)] = 1e-6
    return compare.Differences(this, other, this - other, this - other - 1, this - other + 1, p, True)


def test_heat_map_holds_the_differences_around_0_and_marks_findings() -> None:
    found = some((L, H))
    figure = figures.difference_heatmap(found, title="t", subtitle="s", names=NAMES, unit="%", mark=(1, None))
    heat, dots = figure.data
    np.testing.assert_allclose(heat.z, found.estimate.T)
    assert heat.zmin == -heat.zmax == -np.abs(found.estimate).max()
    assert (list(dots.x), list(dots.y)) == ([1], [1])
    np.testing.assert_allclose(heat.customdata[..., 0].astype(float), found.this.T)
    (outline,) = figure.layout.shapes
    assert (outline.x0, outline.x1, outline.y0, outline.y1) == (1.5, 2.5, 0.5, H + 0.5)
    assert "<b>" not in heat.hovertemplate.replace("<br>", "") and "other %{" not in heat.hovertemplate


def test_curves_show_both_runs_and_the_interval_of_their_difference() -> None:
    found = some((L,))
    band = figures_band(found)
    figure = figures.difference_curve(
        found, np.arange(1, L + 1), title="t", subtitle="s", names=NAMES, unit="%", band=band
    )
    this, other, _, interval, difference = figure.data
    np.testing.assert_allclose([this.y, other.y, difference.y], [found.this, found.other, found.estimate])
    np.testing.assert_allclose(interval.y, np.concatenate([found.upper, found.lower[::-1]]))
    assert this.xaxis != difference.xaxis


def figures_band(found: compare.Differences) -> Any:
    from htc_probe.analysis.attention.rows import Band

    return Band(found.estimate - 3, found.estimate + 3)


def test_dots_are_filled_where_they_are_findings_among_all() -> None:
    found = {"z_voco": some((3,)), "v_d": some((3,), 1)._replace(p=np.full(3, np.nan))}
    labels = ["a", "<i>b</i>", "c"]
    figure = figures.differences_by_name(found, labels, title="t", subtitle="s", names=NAMES, unit="score")
    one, other = figure.data
    np.testing.assert_allclose(one.x, found["z_voco"].estimate)
    np.testing.assert_allclose(one.error_x.array, 1)
    assert [colour == "rgba(0,0,0,0)" for colour in one.marker.color] == [False, True, True]
    assert [colour == "rgba(0,0,0,0)" for colour in other.marker.color] == [True] * 3
    assert figure.layout.yaxis.ticktext[1] == "&lt;i&gt;b&lt;/i&gt;"


def test_maps_share_a_scale_and_the_difference_has_its_own_around_0() -> None:
    this, other = np.array([[1.0, 2.0], [3.0, np.nan]]), np.array([[2.0, 2.0], [2.0, np.nan]])
    marked = np.array([[True, False], [False, False]])
    picture = np.zeros((8, 8, 3), np.uint8)
    figure = figures.two_maps(this, other, title="t", subtitle="s", names=NAMES, unit="%", marked=marked, image=picture)
    one, two, difference, dots = figure.data
    np.testing.assert_array_equal([one.z, two.z, difference.z], [this, other, this - other])
    assert one.coloraxis == two.coloraxis and difference.coloraxis != one.coloraxis
    axis, apart = figure.layout.coloraxis, figure.layout.coloraxis2
    assert (axis.cmin, axis.cmax, apart.cmin, apart.cmax) == (0, 3, -1, 1)
    assert (list(dots.x), list(dots.y)) == ([0.5], [0.5]) and len(figure.layout.images) == 3


def test_other_figures_hold_their_numbers() -> None:
    found = some((L,))
    roles = figures.role_differences({"anchor": found, "patch": found}, subtitle="s", names=NAMES)
    np.testing.assert_allclose(roles.data[1].y, found.estimate)
    _, points, here = figures.pairs_scatter(
        found.this, found.other, np.array([4, 7, 9]), names=NAMES, subtitle="s", unit="%", shown=7
    ).data
    np.testing.assert_allclose([points.x, points.y], [found.other, found.this])
    assert [row[0] for row in points.customdata] == [4, 7, 9] and here.x[0] == found.other[1]
    bars = figures.anchors_of_both(np.ones(A), np.zeros(A), 0.5, subtitle="s", names=NAMES).data
    assert [bar.y[0] for bar in bars] == [1, 0, 0.5]
    worth = figures.two_maps(
        np.array([[1.0, -2.0]]), np.array([[0.5, 0.0]]), title="t", subtitle="s", names=NAMES, unit="%", signed=True
    )
    assert (worth.layout.coloraxis.cmin, worth.layout.coloraxis.cmax) == (-2, 2)
    histogram = figures.difference_histogram(np.arange(10.0), 3.0, title="t", subtitle="s", unit="%")
    assert sum(histogram.data[0].y) == 10 and histogram.data[1].x == (3.0, 3.0)
    curves = figures.two_curves(found[:3], some((2,))[:3], title="t", subtitle="s", names=NAMES, unit="%")
    assert [list(curve.x) for curve in curves.data[1::2]] == [[1 / 3, 2 / 3, 1], [0.5, 1]]


# ---- the page


def show(open_app: Any, folder: Path, part: str = "Attention", **query: str) -> Any:
    app = open_app(folder, page=PAGE, part=part, **query)
    assert not app.exception and not app.error, app.exception
    return app


def test_learning_curves_of_both_runs(folder: Path, open_app: Any) -> None:
    app = show(open_app, folder, "Probes", compare_source="v_d")
    assert "the learning curve" in charts(app)["compare_learning"]["layout"]["title"]["text"]


def table_with(column: str, app: Any) -> Any:
    """The first table that has it."""
    return next(table.value for table in app.dataframe if column in table.value)


def words(app: Any) -> str:
    return "\n".join(item.value for item in [*app.markdown, *app.caption, *app.info, *app.warning])


def test_it_says_what_tells_the_runs_apart_and_how_they_are_paired(folder: Path, open_app: Any) -> None:
    app = show(open_app, folder, run="more")
    assert app.selectbox(key="with").value == "less"
    assert "topology" in tables(app)[0] and "causal" in tables(app)[0] and "model" not in tables(app)[0]
    assert f"{N} images are in both" in words(app) and "htc-analyze attention --against" in app.code[0].value
    app.selectbox(key="run").set_value("less").run()
    assert not app.exception and app.selectbox(key="with").value == "more"


def test_attention_of_two_runs_as_differences(folder: Path, open_app: Any) -> None:
    app = show(open_app, folder, run="more")
    drawn = charts(app)
    assert set(drawn) == {
        "compare_heatmap",
        "compare_curve",
        "compare_roles",
        "compare_scatter",
        "compare_patches",
        "compare_tokens",
    }
    line = table_with("quantity", app).iloc[0]
    with open_run(folder / "more.h5") as more, open_run(folder / "less.h5") as less:
        mass = 100 * (more.anchor_mass().mean() - less.anchor_mass().mean())
    assert float(line["difference"]) == pytest.approx(mass, rel=0.01) and "paired" in line["images"]
    assert f"{L * H} of {L * H} cells are" in words(app)
    before = drawn["compare_curve"]["data"]
    app.selectbox(key="compared").set_value("Entropy").run()
    assert not app.exception and charts(app)["compare_curve"]["data"] != before
    app.selectbox(key="layer").set_value("2").run()
    assert not app.exception
    assert "layer 2, mean over heads" in charts(app)["compare_patches"]["layout"]["title"]["subtitle"]["text"]
    app.query_params["selection"] = "2_3_4"
    app.run()
    assert not app.exception and "3 images of the selection are in both" in words(app)


def test_analysis_of_one_against_the_other_is_paired(tmp_path: Path, open_app: Any) -> None:
    paths = [write(tmp_path / "one.h5", more=0.2), write(tmp_path / "other.h5")]
    with open_run(paths[0]) as one, open_run(paths[1]) as other:
        sections = (
            htc_probe.analysis.attention.rows.analyse(one, other),
            htc_probe.analysis.attention.rows.analyse(other),
        )
        for run, section, against in ((one, sections[0], analysed.identity(other)), (other, sections[1], None)):
            analysed.write(
                analysed.default_path(run.path),
                "attention",
                section,
                run=analysed.identity(run),
                settings={"against": against, "seed": 0},
                libraries={},
                seconds=0.0,
            )
    for name, sign in (("one", 1), ("other", -1)):
        found = table_with("quantity", show(open_app, tmp_path, run=name)).set_index("quantity")
        line = found.loc["entropy of the attention"]
        ends = [float(end) for end in line["95% interval"].split(" to ")]
        assert sections[0].difference is not None and sections[0].difference.entropy_bits is not None
        estimate = sign * sections[0].difference.entropy_bits.overall.only.estimate
        assert float(line["difference"]) == pytest.approx(estimate, rel=0.01) and "paired" in line["images"]
        assert ends[0] < float(line["difference"]) < ends[1] and len(found) > 8


def test_one_image_of_both_runs(folder: Path, open_app: Any) -> None:
    for path, share in ((folder / "more.h5", 0.02), (folder / "less.h5", -0.01)):
        with open_run(path) as run:
            section = {"images": [run.ids()[2]], "share": np.full((1, L, S), share, np.float32)}
        add_section(path, "contributions", section)
    app = show(open_app, folder, "One image", run="more", image="3")
    drawn = charts(app)
    always = {"compare_overlay", "compare_anchors", "compare_image_heatmap", "compare_histogram"}
    assert set(drawn) == always | {"compare_handed_over"}
    assert drawn["compare_handed_over"]["layout"]["coloraxis"]["cmax"] == pytest.approx(2)
    assert "Image 3 of 40" in words(app)
    app.number_input(key="image").set_value(4).run()
    assert charts(app)["compare_overlay"]["data"] != drawn["compare_overlay"]["data"] and set(charts(app)) == always


def test_probes_are_paired_by_image(folder: Path, open_app: Any) -> None:
    app = show(open_app, folder, "Probes", run="more")
    assert {"compare_semantic", "compare_layers", "compare_task_layers", "compare_confusion"} == set(charts(app))
    found = table_with("read from", app).set_index("read from")
    right = np.arange(N) < 0.9 * N, np.arange(N) < 0.6 * N
    expected = compare.of_images(right[0] * 1.0, right[1] * 1.0, np.arange(N) // 2)
    assert found.loc["v_d", "difference"] == "+0.3" and found.loc["v_d", "compared"] == "paired"
    assert found.loc["v_d", "95% interval"] == f"{expected.lower:+.3g} to {expected.upper:+.3g}"
    assert found.loc["v_d", "floor of more"] == "0.5" and f"z_voco (layer 0 of {L})" in found.index
    which = next(item for item in app.get("button_group") if item.proto.id.endswith("compare_which"))
    shown = [option.content.replace("\\", "") for option in which.proto.options]
    assert shown == ["only more (12)", "only less (0)", "both (24)", "neither (4)"]
    press(app, "Select these 12 images")
    assert app.query_params["selection"] == "25-36"
    app.session_state["versus"] = "Retention"
    app.run()
    assert not app.exception and set(table_with("read from", app)["compared"]) == {"as independent"}


def test_a_retention_that_is_not_defined_is_left_out_and_said(tmp_path: Path, open_app: Any) -> None:
    for name, right in (("one", 0.9), ("other", 0.6)):
        write_probes(write(tmp_path / f"{name}.h5"), right)
    path = results.default_path(tmp_path / "other.h5")
    found = results.read(path)
    none = results.Interval(None, None, None)
    kept = [replace(row, retention=none if row.representation == "v_d" else row.retention) for row in found.rows]
    results.write(replace(found, rows=tuple(kept)), path)
    app = show(open_app, tmp_path, "Probes", run="one")
    app.session_state["versus"] = "Retention"
    app.run()
    assert not app.exception and "v_d" not in set(table_with("read from", app)["read from"])
    assert "Left out, as retention is not defined (pooled V is at its floor) in one of the runs: object" in (
        words(app).replace("\\", "")
    )


def test_probes_without_predictions_are_independent_and_say_so(tmp_path: Path, open_app: Any) -> None:
    for name, right in (("one", 0.9), ("other", 0.6)):
        write_probes(write(tmp_path / f"{name}.h5"), right, predictions=False)
    app = show(open_app, tmp_path, "Probes", run="one")
    line = table_with("read from", app).set_index("read from").loc["v_d"]
    half = np.hypot(0.1, 0.1)
    assert line["95% interval"] == f"{0.3 - half:+.3g} to {0.3 + half:+.3g}" and line["compared"] == "as independent"
    assert "independent" in words(app) and "htc-probe semantic detail" in app.code[0].value


def test_runs_without_a_common_image_or_shape(tmp_path: Path, open_app: Any) -> None:
    write(tmp_path / "one.h5", n=8)
    write(tmp_path / "far.h5", n=6, first=50)
    write(tmp_path / "wide.h5", n=8, heads=H + 1)
    write(tmp_path / "bare.h5", n=8, anchors=0)
    app = show(open_app, tmp_path, run="one", **{"with": "far"})
    assert "share no image" in words(app) and "unpaired" in table_with("quantity", app).iloc[0]["images"]
    assert "compare_scatter" not in charts(app)
    app = show(open_app, tmp_path, run="one", **{"with": "wide"})
    assert "different numbers of layers or heads" in words(app)
    assert {"compare_depth", "compare_scatter", "compare_patches"} == set(charts(app))
    assert not show(open_app, tmp_path, "One image", run="one", **{"with": "wide"}).exception
    app = show(open_app, tmp_path, run="one", **{"with": "bare"})
    assert {"compare_heatmap", "compare_curve", "compare_roles", "compare_patches"} == set(charts(app))
    assert app.selectbox(key="compared").options == ["Entropy"] and "first tokens" in words(app)
    app = show(open_app, tmp_path, "One image", run="one", **{"with": "bare"})
    assert set(charts(app)) == {"compare_overlay"} and "no anchors" in words(app)


@pytest.mark.parametrize("part", ["Attention", "One image", "Probes"])
def test_names_with_markup_are_text_and_a_lone_run_says_what_to_do(tmp_path: Path, open_app: Any, part: str) -> None:
    write(tmp_path / "![x](http:__x)<img src=a>.h5", n=4)
    app = show(open_app, tmp_path, part)
    assert "only one run here" in words(app) and "--random-weights" in app.code[0].value
    write(tmp_path / "b.h5", n=4)
    app = show(open_app, tmp_path, part, run="b", **{"with": "gone"})
    assert "No run named" in words(app) and "![x](" not in words(app)
    for figure in charts(app).values():
        assert "<img" not in str(figure)


@pytest.mark.slow
def test_in_a_browser(folder: Path, chromium: Any) -> None:
    from playwright.sync_api import expect

    with serving(folder) as address, tab(chromium, address) as page:
        page.open(page=PAGE, run="more")
        main = page.page.locator('[data-testid="stMain"]')
        page.click_at("compare_heatmap", 2, 1)
        assert "layer=2" in page.page.url and "head=1" in page.page.url
        page.page.get_by_role("tab", name="One image").click()
        expect(main).to_contain_text("Image 1 of 40", timeout=30_000)
        page.settle()
        before = page.values("compare_overlay")["data"][2]["z"]
        page.page.get_by_role("button", name="Next").click()
        expect(main).to_contain_text("Image 2 of 40", timeout=30_000)
        page.settle()
        assert page.values("compare_overlay")["data"][2]["z"] != before and "image=2" in page.page.url
        page.page.get_by_role("tab", name="Probes", exact=True).last.click()
        page.page.get_by_role("button", name="25 · val-024").click()
        page.page.wait_for_url("**image=25**")
        assert "part=Probes" in page.page.url
        with page.page.expect_download() as download:
            page.chart("compare_semantic").hover()
            page.chart("compare_semantic").locator('[data-title="Download as PNG"]').click()
        assert download.value.suggested_filename == "compare_semantic.png"
        page.check()
