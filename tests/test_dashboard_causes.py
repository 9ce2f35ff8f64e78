"""The page What causes what: its arithmetic, its figures hold the numbers given, and what it shows of a run."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from benchmarks.browser import serving, tab
from htc_probe.analysis import records, results
from htc_probe.analysis.causes.effects import times_even
from htc_probe.analysis.causes.following import follows
from htc_probe.analysis.stats.draws import intervals_of_means
from htc_probe.dashboards import data, figures
from htc_probe.dashboards.parts.effects import nearest
from made.pages import COLS, ROLES, ROWS, A, G, L, add_section, charts, press, random_rows, write_run

PAGE = "What causes what"
GROUPS, INTERCHANGE = "Groups of tokens", "Anchors and patches interchanged"
T = A + G * G
SAMPLE = (1, 3, 4)
"""Rows that were knocked out, of 6."""
PREDICTORS = ["attention", "attention x value x output", "gradient x gate", "gradient x input"]


# ---- arithmetic


def test_whom_a_mixed_image_follows() -> None:
    true, partner = np.array([0, 1, 2, 2, np.nan, 3]), np.array([1, 0, 3, 2, 0, -1])
    swapped = np.array([0, 0, 1, 2, 0, 3.0])
    np.testing.assert_array_equal(follows(swapped, true, partner, "classes"), [0, 1, -1, -1, -1, -1])
    swapped[1] = 5
    assert follows(swapped, true, partner, "classes")[1] == 2
    numbers = follows(np.array([0.4, 0.4]), np.array([0.0, 1.0]), np.array([1, 0]), "number")
    np.testing.assert_array_equal(numbers, [0, 1])


def test_the_nearest_of_the_sample() -> None:
    assert [nearest([3, 7, 20], row) for row in (0, 5, 6, 19, 7)] == [3, 3, 7, 20, 7]


# ---- figures


def test_a_map_holds_its_tokens_on_the_scale_it_is_given() -> None:
    patch_RC = np.arange(6, dtype=float).reshape(2, 3)
    image = np.zeros((96, 96, 3), np.uint8)
    given: dict[str, Any] = {"title": "t", "lines": ["one", "<i>"], "image": image}
    figure = figures.token_map(patch_RC, np.array([7.0, 8.0]), 9.0, **given)
    assert figure.layout.title.subtitle.text == "one<br>&lt;i&gt;"
    patches, anchors = figure.data
    np.testing.assert_array_equal(patches.z, patch_RC)
    np.testing.assert_array_equal(anchors.z, [[7, 8]])
    assert [(trace.zmin, trace.zmax) for trace in figure.data] == [(0, 9), (0, 9)]
    assert patches.x[0] == 0 and patches.x[-1] == 96 and patches.y[-1] == 96 < anchors.y[0]
    signed = figures.token_map(-patch_RC, np.array([]), 9.0, signed=True, **(given | {"title": "<img>"}))
    assert "<img>" not in signed.layout.title.text
    assert len(signed.data) == 1 and (signed.data[0].zmin, signed.data[0].zmax) == (-9, 9)
    assert signed.data[0].colorscale[4][1].endswith("0.0)"), "nothing lies over the picture where nothing happens"
    assert figures.token_map(patch_RC * 0, np.array([]), 0.0, **given).data[0].zmax == 1


def test_dots_and_bars_hold_estimates_intervals_and_the_image() -> None:
    rank_K3 = np.array([[0.5, 0.4, 0.7], [0.1, -0.1, 0.2]])
    figure = figures.rank_dots(["<b>", "b"], rank_K3, own_K=np.array([0.9, np.nan]), effect="z_voco", n=7)
    mean, own = figure.data
    np.testing.assert_allclose(mean.x, [0.5, 0.1])
    np.testing.assert_allclose(mean.error_x.array, [0.2, 0.1])
    np.testing.assert_allclose(mean.error_x.arrayminus, [0.1, 0.2])
    assert mean.y[0] == "&lt;b&gt;" and own.x[0] == 0.9 and "7 images" in figure.layout.title.subtitle.text

    effect_MG3 = np.arange(18, dtype=float).reshape(2, 3, 3)
    effect_MG3[1] = np.nan
    figure = figures.group_bars("abc", "xy", effect_MG3, own_MG=np.ones((2, 3)), unit="u", what="z", n=3)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    np.testing.assert_array_equal(np.concatenate([bar.y for bar in bars]), [0, 3, 6])
    assert [bar.yaxis for bar in bars] == ["y", "y2"], "all patches have an axis of their own"

    by_role = {"anchor": np.ones((4, 3)), "patch": np.full((4, 3), 2)}
    lines = figures.window_lines(by_role, own_by=None, unit="u", what="z", n=3).data
    assert [line.y[0] for line in lines] == [1, 2] and list(lines[0].x) == [1, 2, 3, 4]
    assert [line.name for line in lines] == ["all anchors", "all patches"]
    players = ["anchor 1", "lower left patches"]
    shapley = figures.shapley_bars(players, rank_K3, own_P=np.ones(2), unit="u", what="z", n=3)
    assert len(set(shapley.data[0].marker.color)) == 2
    np.testing.assert_array_equal(shapley.data[1].x, [1, 1])
    assert shapley.data[1].error_x.array is None, "the values of one image are exact"


def test_the_two_by_two_picture_mirrors_the_mixed_cells() -> None:
    own, mixed = np.array([0.9, 0.8, 1.0]), np.array([[0.1, 0.0, 0.2], [0.7, 0.6, 0.8]])
    given: dict[str, Any] = {"readout": "r", "what": "w", "chance": 0.25, "cases": 20, "couples": 10}
    figure = figures.two_by_two(own, mixed, **given)
    np.testing.assert_allclose(figure.data[0].z, [[0.9, -0.6], [0.6, -0.9]])
    assert (figure.data[0].zmin, figure.data[0].zmax) == (-1, 1)
    text = {(at.x, at.y): at.text for at in figure.layout.annotations}
    assert "A: <b>0.10</b> [0.00, 0.20]<br>B: <b>0.70</b> [0.60, 0.80]<br>neither: 0.20" in text[1, 0]
    assert "A: <b>0.70</b>" in text[0, 1] and "not A: 0.10" in text[0, 0] and "not B: 0.10" in text[1, 1]
    assert "20 labels in 10 pairs" in figure.layout.title.subtitle.text
    weights = figures.two_by_two(own, mixed, **given, measure="weight")
    assert not any("neither" in at.text or "not A" in at.text for at in weights.layout.annotations)


def test_follow_dots_hold_each_task_and_say_which_was_clicked() -> None:
    share = np.zeros((2, 2, 3))
    share[:, 0, 0], share[:, 1, 0] = [0.1, 0.2], [0.8, 0.7]
    figure = figures.follow_dots(["one", "<i>"], {"answers": share}, {"answers": np.array([0.3, np.nan])}, n=4)
    chance, anchors, patches = figure.data
    np.testing.assert_allclose(anchors.x, [0.1, 0.2])
    np.testing.assert_allclose(patches.x, [0.8, 0.7])
    np.testing.assert_array_equal(patches.customdata, [0, 1])
    assert chance.x[0] == 0.3 and figure.layout.yaxis.ticktext[1] == "&lt;i&gt;"


# ---- the page


def mean(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    found = intervals_of_means(values, [f"group-{row}" for row in SAMPLE], 0)
    return dict(zip(records.ends(name), found, strict=True))


def knockouts(ids: list[str]) -> dict[str, Any]:
    rng, n = np.random.default_rng(0), len(SAMPLE)
    arrays = {
        "group_change": rng.random((n, 3, 4)),
        "group_window_change": rng.random((n, L, 2)),
        "group_answers": -rng.random((n, 3, 4, 2)),
        "group_window_answers": -rng.random((n, L, 2)),
        "shapley_cosine": rng.random((n, A + 4)),
        "shapley_answers": rng.random((n, A + 4)),
        "rank": rng.uniform(-1, 1, (n, 4, 2, L + 1)),
        "window_rank": rng.uniform(-1, 1, (n, 2, L)),
        "question_rank": rng.uniform(-1, 1, (n, 2, 2)),
        "probe_rank": rng.uniform(-1, 1, (n, 2, 3)),
    }
    arrays["question_rank"][1, :, 1] = np.nan
    keys = slice(1, 1 + T)
    section: dict[str, Any] = {
        "images": [ids[row] for row in SAMPLE],
        "groups": [f"group-{row}" for row in SAMPLE],
        "token_role": list(ROLES[keys]),
        "token_row": np.array(ROWS[keys]),
        "token_col": np.array(COLS[keys]),
        "questions": ["what", "where"],
        "probes": ["object", "width"],
        "group_size": A,
        "group_names": ["anchors", "random patches", "attended patches", "patches"],
        "group_modes": ["zero", "mean", "resampled"],
        "rank_predictors": PREDICTORS,
        "rank_effects": ["z", "answers"],
        "shapley_players": [f"anchor {at + 1}" for at in range(A)]
        + [f"{where} patches" for where in ("upper left", "upper right", "lower left", "lower right")],
        "loo_change": rng.random((n, T, L + 1)),
        "loo_answers": rng.normal(size=(n, T, 2)),
        "loo_probe_changes": rng.normal(size=(n, T, 2)),
        "window_change": rng.random((n, L, T)),
        **arrays,
    }
    section["loo_answers"][1, :, 1] = np.nan
    for name, values in arrays.items():
        section |= mean(f"mean_{name}", values)
    return section | mean("mean_group_answer", arrays["group_answers"].mean(-1))


def contributions(ids: list[str]) -> dict[str, Any]:
    rows = (3, 1)  # others than were knocked out, in another order
    norm = np.random.default_rng(1).random((2, L, len(ROLES)))
    return {"images": [ids[row] for row in rows], "groups": ["a", "b"], "norm": norm}


def interchange(ids: list[str]) -> dict[str, Any]:
    kinds = [("object", "semantic", "classes"), ("", "semantic", "mean")]
    rows = [(*kind, mix, right) for kind in kinds for mix in ("unmixed", "swapped") for right in (0, 1)]
    share = np.array(
        [
            np.full((3, 3), 0.5) if mix == "unmixed" else [[0.2, 0.1, 0.3], [0.7, 0.6, 0.8], [0.1, 0, 0.2]]
            for *_, mix, _ in rows
        ]
    )
    share[3] = [[0.05, 0, 0.1], [0.95, 0.9, 1], [0, 0, 0.1]]
    section = {
        "task": [row[0] for row in rows],
        "suite": [row[1] for row in rows],
        "kind": [row[2] for row in rows],
        "readout": ["probe"] * len(rows),
        "factor": ["all"] * len(rows),
        "mix": [row[3] for row in rows],
        "counted": np.full(len(rows), 4),
        "couples": np.full(len(rows), 2),
        "share": share,
        "only_right": np.array([row[4] for row in rows]),
        "floor": np.full((len(rows), 3), 0.25),
        "number_weight": np.array([[[1, 1, 1], [1, 1, 1]], [[0.1, 0, 0.2], [0.9, 0.8, 1]]]),
        "number_counted": np.full(2, 4),
        "number_couples": np.full(2, 2),
        "number_mix": ["unmixed", "swapped"],
        **{
            f"number_{key}": [value] * 2
            for key, value in {
                "task": "width",
                "suite": "detail",
                "kind": "number",
                "readout": "probe",
                "factor": "all",
            }.items()
        },
        "answers": "none were asked",
        "probes": "yes",
        "images": [ids[row] for row in (0, 2, 3, 5)],
        "partner": np.array([2, 3, 0, 1]),
    }
    true = np.array([[0, 1, 0, 1.5], [1, 0, 1, 2.5], [1, 0, 1, 3.5], [0, 1, 1, 4.5]])
    swapped = true[section["partner"]]
    swapped[0, 0] = 0  # follows its anchors
    return section | {
        "read_task": ["object", "present", "present", "width"],
        "read_suite": ["semantic"] * 3 + ["detail"],
        "read_kind": ["classes", "multilabel", "multilabel", "number"],
        "read_readout": ["probe"] * 4,
        "read_label": ["", "disc", "bar", ""],
        "read_classes": ['["disc", "bar"]', "", "", ""],
        "read_true": true,
        "read_unmixed": true,
        "read_swapped": swapped,
    }


def write_analysis(run: Path, **sections: dict[str, Any]) -> None:
    for name, section in sections.items():
        add_section(run, name, section)


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("causes") / "scenes-val.h5", 6)
    ids = [f"val-{at:03d}" for at in range(6)]
    write_analysis(run, knockouts=knockouts(ids), contributions=contributions(ids), interchange=interchange(ids))
    return run


def test_knock_outs_of_pinned_images_are_seen_side_by_side(analysed: Path, open_app: Any) -> None:
    alone = charts(open_app(analysed, page=PAGE, image="4"))
    app = open_app(analysed, page=PAGE, pinned="2_4_6", beside="true")
    assert not app.exception and not app.error
    found = charts(app)
    assert {"map_effect_2", "map_attention_2", "map_effect_4"} <= set(found) and "map_effect_6" not in found
    assert found["map_effect_4"] == alone["map_effect"] != found["map_effect_2"]
    assert any("not in the sample of 3" in info.value for info in app.info)


def subtitle(chart: dict[str, Any]) -> str:
    return chart["layout"]["title"]["subtitle"]["text"]


def numbers(values: Any) -> np.ndarray:
    """What plotly holds, which sends arrays as base64."""
    if isinstance(values, dict):
        import base64

        found = np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
        return found.reshape([int(size) for size in values["shape"].split(",")]) if "shape" in values else found
    return np.asarray(values, dtype=float)


def same_ranks(app: Any, rank_NP: np.ndarray, predictors: list[str]) -> None:
    """The dots are the means of these, with their interval, and the diamonds those of the second image, if known."""
    dots, own = charts(app)["ranks"]["data"]
    wanted = intervals_of_means(rank_NP, [f"group-{row}" for row in SAMPLE], 0)
    np.testing.assert_allclose(numbers(dots["x"]), wanted.estimate, rtol=1e-5)
    np.testing.assert_allclose(numbers(dots["customdata"]), np.stack(wanted[1:], -1), rtol=1e-5)
    np.testing.assert_allclose(numbers(own["x"]), rank_NP[1], rtol=1e-5)
    assert len(dots["y"]) == len(predictors) and dots["y"][0] == "attention"


def test_without_analyses_it_says_what_fills_it(tmp_path: Path, open_app: Any) -> None:
    run = write_run(tmp_path / "run.h5", 2)
    app = open_app(run, page=PAGE)
    assert not app.exception and not charts(app)
    assert app.code[0].value == f"htc-analyze knockouts contributions --run {run}"
    bare = open_app(write_run(tmp_path / "bare" / "run.h5", 2, tasks=()), page=PAGE, causes=INTERCHANGE)
    assert not bare.code and any("no labels" in info.value for info in bare.info)
    app = open_app(run, page=PAGE, causes=INTERCHANGE)
    assert not app.exception and app.code[0].value == f"htc-analyze interchange --run {run}"


def test_an_analysis_of_an_older_version_is_not_shown_as_one_of_this(tmp_path: Path, open_app: Any) -> None:
    run, ids = write_run(tmp_path / "run.h5", 6), [f"val-{at:03d}" for at in range(6)]
    write_analysis(run, knockouts=knockouts(ids), interchange=interchange(ids))
    with h5py.File(results.default_path(run), "r+") as file:
        for name in file:
            file[name].attrs["version"] = 1
    for part, names in ((None, "knockouts contributions"), (GROUPS, "knockouts"), (INTERCHANGE, "interchange")):
        app = open_app(run, page=PAGE, **({} if part is None else {"causes": part}))
        assert not app.exception and not charts(app)
        assert app.code[0].value == f"htc-analyze {names} --run {run}"


def test_maps_of_an_image_of_the_sample_are_on_one_scale(analysed: Path, open_app: Any) -> None:
    app = open_app(analysed, page=PAGE, image="4")
    assert not app.exception and not app.error
    found = charts(app)
    assert set(found) == {"map_effect", "map_attention", "map_norm", "ranks"}
    section = knockouts([f"val-{at:03d}" for at in range(6)])
    maps = {name: found[name]["data"] for name in ("map_effect", "map_attention", "map_norm")}
    effect_T = section["loo_change"][1, :, -1]
    np.testing.assert_allclose(numbers(maps["map_effect"][0]["z"]).ravel(), (effect_T / effect_T.mean())[A:], rtol=1e-5)
    np.testing.assert_allclose(numbers(maps["map_effect"][1]["z"]).ravel(), (effect_T / effect_T.mean())[:A], rtol=1e-5)
    attention_T = random_rows(6)[3].mean((0, 1))[1 : 1 + T]
    np.testing.assert_allclose(
        numbers(maps["map_attention"][0]["z"]).ravel(), (attention_T / attention_T.mean())[A:], rtol=2e-3
    )
    norm_T = contributions([""] * 6)["norm"][0].mean(0)[1 : 1 + T]
    np.testing.assert_allclose(numbers(maps["map_norm"][1]["z"]).ravel(), (norm_T / norm_T.mean())[:A], rtol=1e-5)
    largest = max(float(numbers(trace["z"]).max()) for traces in maps.values() for trace in traces)
    (limit,) = {trace["zmax"] for traces in maps.values() for trace in traces}
    assert limit == pytest.approx(largest)
    assert f"with the effect {section['rank'][1, 0, 0, -1]:.2f}<br>" in subtitle(found["map_attention"])
    assert f"with the effect {section['rank'][1, 1, 0, -1]:.2f}<br>" in subtitle(found["map_norm"])
    same_ranks(app, section["rank"][:, :, 0, -1], PREDICTORS)

    app.toggle(key="own_scale").set_value(True).run()
    assert len({trace["zmax"] for name in maps for trace in charts(app)[name]["data"]}) == 3


def test_a_layer_alone_and_other_effects(analysed: Path, open_app: Any) -> None:
    app = open_app(analysed, page=PAGE, image="4")
    section = knockouts([f"val-{at:03d}" for at in range(6)])
    app.selectbox(key="window").set_value("layer 2").run()
    assert not app.exception
    found = charts(app)
    effect_NT = section["window_change"][:, 1]
    np.testing.assert_allclose(
        numbers(found["map_effect"]["data"][1]["z"]).ravel(), (effect_NT[1] / effect_NT[1].mean())[:A], rtol=1e-5
    )
    assert "layer 2 only" in subtitle(found["map_effect"])
    assert f"with the effect {section['window_rank'][1, 1, 1]:.2f}<br>" in subtitle(found["map_norm"])
    same_ranks(app, section["window_rank"][:, :, 1], PREDICTORS[:2])

    app.segmented_control(key="effect").set_value("the true answers").run()
    app.selectbox(key="question").set_value("what").run()
    assert not app.exception
    trace = charts(app)["map_effect"]["data"][1]
    loss_T = -section["loo_answers"][1, :, 0]
    np.testing.assert_allclose(numbers(trace["z"]).ravel(), times_even(loss_T)[:A], rtol=1e-5)
    assert trace["zmin"] == -trace["zmax"]
    same_ranks(app, section["question_rank"][:, :, 0], PREDICTORS[:2])
    # Text reads nothing of the last layer, so what lies beside the answers leaves it out, and says so.
    of_layers = {"map_attention": random_rows(6)[3].mean(1), "map_norm": contributions([""] * 6)["norm"][0]}
    for name, values_LS in of_layers.items():
        values_T = values_LS[:-1].mean(0)[1 : 1 + T]
        trace = charts(app)[name]["data"][1]
        np.testing.assert_allclose(numbers(trace["z"]).ravel(), times_even(values_T)[:A], rtol=2e-3)
        assert "layers that text reads, all but the last" in subtitle(charts(app)[name])
    app.selectbox(key="question").set_value("where").run()
    assert "map_effect" not in charts(app) and any("has no label for" in info.value for info in app.info)
    same_ranks(app, section["question_rank"][:, :, 1], PREDICTORS[:2])
    assert "2 images" in subtitle(charts(app)["ranks"])

    app.segmented_control(key="effect").set_value("the probes").run()
    same_ranks(app, section["probe_rank"][:, :, 2], PREDICTORS[:2])
    app.selectbox(key="probe").set_value("width").run()
    same_ranks(app, section["probe_rank"][:, :, 1], PREDICTORS[:2])
    trace = charts(app)["map_effect"]["data"][1]
    change_T = section["loo_probe_changes"][1, :, 1]
    np.testing.assert_allclose(numbers(trace["customdata"])[0, :, 2], change_T[:A], rtol=1e-5)


def test_an_image_that_was_not_sampled_leads_to_those_that_were(analysed: Path, open_app: Any) -> None:
    app = open_app(analysed, page=PAGE, image="6")
    assert "map_effect" not in charts(app) and "ranks" in charts(app)
    assert any("not in the sample of 3 of 6" in info.value for info in app.info)
    for label, there in (
        ("Go to image 5, the nearest in the sample", 5),
        ("Previous in the sample", 4),
        ("Previous in the sample", 2),
        ("Next in the sample", 4),
    ):
        press(app, label)
        assert app.number_input(key="image").value == there
        assert "map_effect" in charts(app)


def test_groups_by_question(analysed: Path, open_app: Any) -> None:
    app = open_app(
        analysed, page=PAGE, causes=GROUPS, image="2", group_effect="the true answers", group_question="where"
    )
    assert not app.exception and set(charts(app)) == {"groups", "windows", "shapley"}
    section = knockouts([f"val-{at:03d}" for at in range(6)])
    bars = [trace for trace in charts(app)["groups"]["data"] if trace["type"] == "bar"]
    loss_MG = -section["group_answers"].mean(0)[..., 1]
    np.testing.assert_allclose(numbers(bars[0]["y"]), loss_MG[0, :3], rtol=1e-5)
    assert (numbers(bars[0]["error_y"]["array"]) >= 0).all() and (numbers(bars[0]["error_y"]["arrayminus"]) >= 0).all()


def test_the_interchange_by_task(analysed: Path, open_app: Any) -> None:
    app = open_app(analysed, page=PAGE, causes=INTERCHANGE)
    assert app.selectbox(key="mixed").options == ["object", "mean, semantic", "width (weight)"]
    cells = charts(app)["cells_probe"]
    np.testing.assert_allclose(numbers(cells["data"][0]["z"]), [[0.5, -0.5], [0.5, -0.5]])
    app.toggle(key="only_right").set_value(True).run()
    np.testing.assert_allclose(numbers(charts(app)["cells_probe"]["data"][0]["z"])[0, 1], -0.9)
    app.selectbox(key="mixed").set_value("width (weight)").run()
    assert not app.exception
    np.testing.assert_allclose(numbers(charts(app)["cells_probe"]["data"][0]["z"])[0], [1, -0.8])
    app.session_state["all_rows"] = True
    app.run()
    rows = next(table.value for table in app.dataframe if "couples" in table.value)
    assert len(rows) == 10 and rows["patches' source"].iloc[-1] == 0.9


def test_pairs_say_what_was_read_of_both_mixtures(analysed: Path, open_app: Any) -> None:
    app = open_app(analysed, page=PAGE, causes=INTERCHANGE, image="1")
    pair = next(table.value for table in app.dataframe if "A is" in table.value).set_index("task")
    assert list(pair.loc["object", ["A is", "B is", "from A"]]) == ["disc", "bar", "disc"]
    assert list(pair.loc["object"])[1:3] == ["disc (A)", "disc (A)"]
    assert pair.loc["present", "anchors A, patches B"] == "bar (A: 0, B: 2 of 2)"
    assert pair.loc["width, px", "anchors A, patches B"] == "3.5 (nearer B)"
    assert any("image 4" in caption.value and caption.value.startswith("B") for caption in app.caption)

    app.segmented_control(key="pairs").set_value("anchors' source").run()
    assert app.number_input(key="pair").max == 1, "one mixed image follows its anchors"
    app.segmented_control(key="pairs").set_value("neither").run()
    assert not app.exception and any("does." in caption.value for caption in app.caption)


def test_an_analysis_of_other_images_is_refused(analysed: Path) -> None:
    with pytest.raises(Exception, match="which the run does not have"):
        data.rows_of(data.key_of(analysed), ["val-000", "<b>"])


@pytest.mark.slow
def test_in_a_browser(analysed: Path, chromium: Any) -> None:
    with serving(analysed) as address, tab(chromium, address) as shown:
        shown.open(page=PAGE, image=1)
        assert "not in the sample of 3 of 6" in shown.text()
        shown.page.get_by_role("button", name="the nearest in the sample").click()
        shown.settle()
        assert shown.values("map_effect")["layout"]["title"]["text"].count("Knock-out")
        with shown.page.expect_download() as download:
            shown.chart("map_effect").hover()
            shown.chart("map_effect").locator('[data-title="Download as PNG"]').click()
        assert download.value.suggested_filename == "map_effect.png"

        shown.page.get_by_role("tab", name=INTERCHANGE).click()
        shown.settle()
        before = shown.values("cells_probe")["layout"]["title"]["subtitle"]["text"]
        shown.click_at("follow", 0.9, 2)  # the weight of the patches' value
        assert "object" in before and "width" in shown.values("cells_probe")["layout"]["title"]["subtitle"]["text"]
        shown.page.get_by_role("button", name="Show B on all pages").click()
        shown.settle()
        assert "image=4" in shown.page.url
        shown.page.get_by_role("tab", name=GROUPS).click()
        assert "Image 4 is in the sample: 3 of" in shown.settle().text()
        shown.check()
