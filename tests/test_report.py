"""The HTML report: figures hold the results' numbers, the page loads nothing, names are text, methods say what was
done.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from htc_probe.extract.errors import UserError
from htc_probe.probes.files.results import GAINED, KEPT, LOST, Confusion, Interval, Results
from htc_probe.probes.show import figures, report, table
from made.tables import LAST, TASKS, compare, made, reviewed


def named(figure: go.Figure, name: str) -> go.Scatter | go.Bar:
    return next(trace for trace in figure.data if trace.name == name)


def all_figures(results: Results) -> list[go.Figure]:
    return [figure for section in report.sections(results) for figure in section.figures]


# ---- figures


def test_bars_have_the_estimates_and_reach_to_the_ends_of_the_intervals() -> None:
    results = made()
    figure = figures.scores(results, "semantic")
    bar = named(figure, "v_d")
    rows = [row for row in results.rows if (row.suite, row.representation) == ("semantic", "v_d")]
    mean = next(m for m in results.suite_means if (m.suite, m.representation) == ("semantic", "v_d"))
    np.testing.assert_allclose(bar.x, [row.estimate for row in rows] + [mean.estimate])
    np.testing.assert_allclose(bar.x + np.array(bar.error_x.array), [row.upper for row in rows] + [mean.upper])
    np.testing.assert_allclose(bar.x - np.array(bar.error_x.arrayminus), [row.lower for row in rows] + [mean.lower])
    floor = [x for x in named(figure, "floor").x if x is not None]
    np.testing.assert_allclose(floor[::2], [row.floor for row in rows] + [mean.floor])
    np.testing.assert_allclose(named(figure, "category alone").x, [0.22, 0.22])
    np.testing.assert_allclose(named(figure, "control labels").x, [0.15, 0.15])
    assert "2,000 images in 2,000 groups, 5 folds" in figure.layout.title.subtitle.text
    assert "n 2,000" in figure.layout.yaxis.ticktext[0] and "K 4" in figure.layout.yaxis.ticktext[0]


def test_bars_of_a_task_stand_around_its_label_and_do_not_overlap() -> None:
    figure = figures.scores(made(), "semantic")
    bars = [trace for trace in figure.data if isinstance(trace, go.Bar)]
    first = sorted((bar.y[0] - bar.width / 2, bar.y[0] + bar.width / 2) for bar in bars)
    assert first[0][0] > -0.5 and first[-1][1] < 0.5 and len(bars) == 4
    assert all(below <= above for (_, below), (above, _) in zip(first[:-1], first[1:], strict=True))


def test_layers_run_from_the_floor_of_the_embedding_within_their_band() -> None:
    assert figures.layer_curves(made(), "semantic") is None
    figure = figures.layer_curves(made(layers=range(LAST + 1)), "semantic")
    assert figure is not None
    curve, band = named(figure, "z_voco"), figure.data[0]
    np.testing.assert_allclose(curve.y, np.linspace(0.2, 0.8, LAST + 1))
    np.testing.assert_array_equal(curve.x, range(LAST + 1))
    np.testing.assert_allclose(band.y[: LAST + 1], np.array(curve.y) + [0, 0.02, 0.02, 0.02, 0.02])
    np.testing.assert_allclose(named(figure, "floor").y, [0.2, 0.2])
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["category (top-1, n 2,000)", "present (mAP, n 2,000)"]


def test_learning_curves_are_ordered_by_images() -> None:
    results = made()
    assert figures.learning_curves(replace(results, curves=()), "detail") is None
    figure = figures.learning_curves(replace(results, curves=results.curves[::-1]), "detail")
    assert figure is not None
    assert list(named(figure, "v_d").x) == [100, 400, 1600]
    assert figure.layout.xaxis.type == "log"


def test_signed_axes_are_centred_on_zero() -> None:
    for figure in (figures.differences(made(), "semantic"), figures.bits_added(made(), "semantic")):
        assert figure is not None
        low, high = figure.layout.xaxis.range
        assert low == -high and high >= max(abs(x) for x in figure.data[0].x)
    assert figures.bits_added(replace(made(), comparisons=()), "semantic") is None


def test_only_significant_differences_are_filled() -> None:
    figure = figures.differences(made(tasks=[("detail", "shade", "classes", ("dark", "light"))]), "detail")
    assert figure is not None
    assert list(figure.data[0].marker.symbol) == ["circle", "circle-open"]  # against v_d, against v_pooled
    assert list(figure.layout.yaxis.ticktext) == ["shade: z_voco - v_d", "shade: z_voco - pooled V"]


@pytest.mark.parametrize("estimate", [None, 7.0])  # of a file that an earlier version wrote
def test_a_retention_that_is_not_defined_is_said_and_not_drawn(estimate: float | None) -> None:
    results = made()
    none = Interval(estimate, None, None)
    rows = tuple(replace(row, retention=none) if row.task == "shade" else row for row in results.rows)
    results = replace(results, rows=rows)
    figure = figures.retention(results, "detail")
    assert figure is not None
    assert list(named(figure, "z_voco").y) == pytest.approx([1, 2], abs=0.5)  # size and the mean
    said = ["not defined (pooled V is at its floor)" in tick for tick in figure.layout.yaxis.ticktext]
    assert said == [True, False, False]
    assert "; of shade it is not defined (pooled V is at its floor)." in " ".join(report.methods(results))
    everywhere = (
        [replace(row, retention=none) for row in rows],
        [replace(mean, retention=none) for mean in results.suite_means],
    )
    results = replace(results, rows=tuple(everywhere[0]), suite_means=tuple(everywhere[1]))
    figure = figures.retention(results, "detail")
    assert figure is not None and all("not defined (pooled V" in tick for tick in figure.layout.yaxis.ticktext)
    assert "7.0" not in figure.to_json()
    assert report.page(results)


def test_retention_is_of_what_v_pooled_has() -> None:
    results = made()
    assert "it is not defined" not in " ".join(report.methods(results))
    figure = figures.retention(results, "detail")
    assert figure is not None
    assert "pooled V" not in [trace.name for trace in figure.data]  # it is the whole
    assert figure.layout.xaxis.range[1] < 3
    assert figures.retention(replace(results, rows=(), suite_means=()), "detail") is None


def test_rows_of_a_confusion_matrix_add_up_to_one() -> None:
    results = made()
    one = Confusion("category", "z_voco", LAST, ("a", "b"), ((3, 1), (0, 0)))
    figure = figures.confusions(replace(results, confusions=(one,)), "category")
    np.testing.assert_allclose(figure.data[0].z, [[0.75, 0.25], [0, 0]])
    assert list(figure.data[0].customdata[0][1]) == ["a", "b", 1]
    assert "n = 4 images" in figure.layout.title.subtitle.text
    assert figure.layout.yaxis.autorange == "reversed"


def test_what_is_kept_is_drawn_with_its_margin_and_filled_where_it_is_decided() -> None:
    results = reviewed(made())
    figure = figures.kept(results, "semantic")
    assert figure is not None and figures.kept(made(), "semantic") is None
    told = list(table.kept(results, "semantic").values())
    assert list(figure.data[0].x) == [one.difference.estimate for one in told]
    filled = [one.verdict in (KEPT, LOST, GAINED) for one in told]
    assert [symbol == "circle" for symbol in figure.data[0].marker.symbol] == filled and not all(filled)
    band = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert [(shape.x0, shape.x1) for shape in band] == [(-0.05, 0.05)]
    assert all(one.verdict in name for one, name in zip(told, figure.layout.yaxis.ticktext, strict=True))


def test_classes_have_their_numbers_and_none_has_whiskers_without_an_interval() -> None:
    results = reviewed(made())
    figure = figures.by_class(results, "category")
    assert figure is not None and figures.by_class(results, "size") is None
    assert [name.split("<")[0] for name in figure.layout.yaxis.ticktext] == list(TASKS[0][3])
    assert "n 40" in figure.layout.yaxis.ticktext[0] and "n 37" in figure.layout.yaxis.ticktext[3]
    dots = named(figure, "v_d")
    np.testing.assert_allclose(dots.error_x.array, [0.1, 0.1, 0.1, 0])
    many = replace(results, by_class=tuple(replace(results.by_class[0], name=f"<b>{at}") for at in range(90)))
    figure = figures.by_class(many, "category")
    assert figure is not None and len(figure.layout.yaxis.ticktext) == 40
    assert "40 most frequent of 90" in figure.layout.title.text and "<b>" not in figure.layout.yaxis.ticktext[0]


def test_gaps_and_ceilings_are_drawn_where_they_are_defined() -> None:
    results = reviewed(made())
    gaps, further = figures.gaps(results), figures.ceilings(results, "detail")
    assert gaps is not None and list(gaps.layout.yaxis.ticktext) == ["z_voco", "v_d"]
    assert further is not None and list(further.data[0].x) == [0.1] * 6
    assert figures.gaps(made()) is None and figures.ceilings(made(), "detail") is None
    headings = [section.heading for section in report.sections(results)]
    assert {"semantic: what is kept of pooled V", "detail: ceiling", "Semantics and details", "Single classes"} <= set(
        headings
    )


def test_a_representation_has_one_colour_everywhere_and_floors_are_grey() -> None:
    results = made(layers=range(LAST + 1))
    found: dict[str, set[str]] = {}
    for figure in all_figures(results):
        for trace in figure.data:
            if isinstance(trace, go.Bar):
                found.setdefault(trace.name, set()).add(trace.marker.color)
            elif isinstance(trace, go.Scatter) and trace.name in ("v_d", "pixels"):
                found.setdefault(trace.name, set()).add(trace.line.color or trace.marker.color)
    assert all(len(colours) == 1 for colours in found.values())
    assert found["pixels"] == {"#8a8a8a"}
    own = [found[name] for name in ("z_voco (layer 4 of 4)", "v_d", "pooled V")]
    assert len(set.union(*own)) == 3


def test_every_figure_says_how_many_images() -> None:
    for figure in all_figures(made(layers=range(LAST + 1))):
        assert re.search(r"n = \d+", figure.layout.title.subtitle.text), figure.layout.title


# ---- the page


def outside_plotly(page: str) -> str:
    """The page without plotly.js, which quotes addresses in its own messages."""
    return page.replace(report.get_plotlyjs(), "")


def test_the_page_holds_plotly_once_and_loads_nothing() -> None:
    page = report.page(made(layers=range(LAST + 1)))
    assert page.count(report.get_plotlyjs()) == 1
    rest = outside_plotly(page)
    assert not re.search(r"""(src|href)\s*=|url\(|@import|https?:""", rest)
    assert "default-src 'none'" in rest
    assert rest.count("Plotly.newPlot(") == len(all_figures(made(layers=range(LAST + 1)))) > 10


EVIL = """</script><img src=x onerror="alert('1')">&amp;"""


def test_names_are_text_and_never_html() -> None:
    tasks = [("semantic", EVIL, "classes", (EVIL, "b")), ("detail", "shade", "classes", ("<b>", "c"))]
    results = made([("z_voco", LAST), ("v_d", None), (EVIL, None)], tasks=tasks)
    results = replace(results, run=results.run | {"file": EVIL, "dataset": EVIL}, warnings=(f"{EVIL}: careful",))
    rest = outside_plotly(report.page(results))
    assert "<img" not in rest and "\\u003cimg" not in rest
    assert rest.count("<script") == rest.count("</script>") == 1 + rest.count("Plotly.newPlot(")
    # What plotly reads as HTML, too, gives back the name.
    drawn = figures.confusions(results, EVIL).data[0].customdata[0][0][0]
    assert "<" not in drawn and drawn.endswith("&amp;amp;")


def test_the_same_results_give_the_same_page() -> None:
    assert report.page(made()) == report.page(made())


def test_figures_on_the_page_are_valid_json_without_nan() -> None:
    for figure in all_figures(made(layers=range(LAST + 1))):
        json.loads(figure.to_json(), parse_constant=pytest.fail)


def test_results_of_one_task_without_extras_make_a_page() -> None:
    results = made([("v_d", None)], layers=(), tasks=[("own", "size", "number", ())])
    gone = {"control": None, "selectivity": None, "retention": None, "compression": None, "code_bits": None}
    rows = tuple(replace(row, **gone, metrics={}) for row in results.rows)
    means = tuple(replace(mean, retention=None) for mean in results.suite_means)
    results = replace(
        results,
        config={},
        versions={},
        run={},
        rows=rows,
        suite_means=means,
        comparisons=(),
        baselines=(),
        curves=(),
        confusions=(),
        warnings=(),
    )
    assert [section.heading for section in report.sections(results)] == ["own: scores", "own: bits"]
    assert "None" not in " ".join(report.methods(results))
    assert "Linear probes" in report.page(results)


def test_it_is_written_whole_under_the_runs_name_or_not_at_all(tmp_path: Path) -> None:
    path = report.write(made(), tmp_path / "reports")
    assert path == tmp_path / "reports" / "scenes-val.html"
    assert path.read_text(encoding="utf-8") == report.page(made())
    assert [one.name for one in path.parent.iterdir()] == ["scenes-val.html"]
    away = replace(made(), run={"file": "../../away.h5"})
    assert report.write(away, tmp_path / "reports").parent == tmp_path / "reports"
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"choose another place with --report") as failed:
        report.write(made(), tmp_path / "taken")
    assert "\n" not in str(failed.value)
    (tmp_path / "blocked" / "scenes-val.html").mkdir(parents=True)
    with pytest.raises(UserError):
        report.write(made(), tmp_path / "blocked")
    assert [one.name for one in (tmp_path / "blocked").iterdir()] == ["scenes-val.html"]


# ---- methods


def test_methods_say_what_was_done_and_nothing_else() -> None:
    results = made()
    text = " ".join(report.methods(results))
    for fact in (
        "2000 images of scenes val through htc-tiny",
        "a6d3a6d3a6d3",
        "category (4 classes, n = 2,000 in 2,000 groups)",
        "held out once in 5 folds",
        "from 100 to 0.001 (logistic)",
        "from 1000 to 1e-06 (ridge)",
        "3 grouped inner folds",
        "at most 3e-07",
        "1000 resamples",
        "over 8 comparisons of tasks and over 1 of suite means",
        "correction over 8 comparisons.",
        "in 3 random draws",
        "seed 0",
        "numpy 2.4.6",
    ):
        assert fact in text, fact
    for absent in ("principal directions", "circular", "only those around", "trained on a run of its own"):
        assert absent not in text
    bare = replace(results, comparisons=(), curves=(), baselines=())
    text = " ".join(report.methods(bare))
    assert "Holm" not in text and "Learning curves" not in text and "category alone" not in text


def test_methods_say_the_margin_and_what_the_ceiling_is() -> None:
    text = " ".join(report.methods(reviewed(made())))
    for words in ("a margin of 0.05", "two one-sided tests", "delta method", "Wilson's interval", "hidden layer"):
        assert words in text and words not in " ".join(report.methods(made()))


def test_methods_follow_the_settings() -> None:
    results = made()
    settings = results.config["protocol"] | {"match_dim": 64, "guided": True}
    other = {"file": "scenes-train.h5", "images": 6000, "dataset": "scenes", "split": "train", "model": "htc-tiny"}
    results = replace(results, config={"protocol": settings}, run=results.run | {"train": other})
    text = " ".join(report.methods(results))
    assert "the first 64 principal directions" in text and "only those around the one that leave-one-out ridge" in text
    assert "6000 images of scenes train" in text and "No scored image" in text and "held out once" not in text
    text = " ".join(report.methods(made(tasks=[("semantic", "category", "classes", ("a", "b"))])))
    assert "ridge regressions" not in text and "R2" not in text


def test_the_conditional_figure_names_what_is_added() -> None:
    results = replace(made(), comparisons=(compare("semantic", "category", "bits", "v_d+z_voco", "v_d", 0.4),))
    figure = figures.bits_added(results, "semantic")
    assert figure is not None and list(figure.layout.yaxis.ticktext) == ["category: z_voco given v_d"]
    assert ("v_d+z_voco", None) not in table.columns(results, "semantic")
