"""The page Reading the token: its figures, what it says of what is missing, and what a user does there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.browser import serving, tab
from htc_probe.analysis import records
from htc_probe.analysis.contents import reading
from htc_probe.dashboards import figures
from htc_probe.extract.store import open_run
from made.pages import add_section, charts, write_run

PAGE = "Reading the token"
N, LAYERS = 20, [0, 1, 2, 3]
WORDS = {"lens_words", "lens_agreement"}
ALIKE = {"likeness", "dimensions"}
ANGLES = {"probe_overlap", "probe_cosines"}
ANSWERS = {"answer_parts", "answer_parts_lens"}


def interval(name: str, estimate: np.ndarray) -> dict[str, np.ndarray]:
    """As they are stored: 0.1 wide on either side."""
    estimate = np.asarray(estimate, dtype=np.float32)
    return {name: estimate, f"{name}_lower": estimate - 0.1, f"{name}_upper": estimate + 0.1}


def lens(*, words: bool = True) -> dict[str, Any]:
    """What the model adds: 4 layers, 10 words; `words`: its tokenizer too."""
    section: dict[str, Any] = {"lens_layers": np.array(LAYERS), "lens_images": N}
    for name, values in {"surprise": [3, 2, 1, 0], "entropy": [4, 4, 3, 2], "same_word": [0, 0.2, 0.5, 1]}.items():
        section |= interval(f"lens_{name}", np.array(values))
    section["lens_tokens"] = np.arange(40).reshape(4, 10)
    section["lens_probability"] = np.linspace(0.5, 0.1, 40, dtype=np.float32).reshape(4, 10)
    if words:
        lines = [" | ".join(f"<b>{layer}-{rank}" for rank in range(10)) for layer in LAYERS]
        section |= {"lens_words": lines, "lens_tasks": ["object"], "lens_floor": np.array([0.5])}
        section |= interval("lens_accuracy", np.array([[0.4, 0.5, 0.6, 0.7]]))
    return section


def angles() -> dict[str, Any]:
    """What probes add: one semantic and two detail tasks, of which the second overlaps."""
    section: dict[str, Any] = {"angle_semantic": ["object"], "angle_detail": ["width", "size"]}
    for name, shift in (("angle", 0.0), ("read_out", 0.2)):
        section |= {
            f"{name}_overlap": np.array([[0.05, 0.3]]) + shift,
            f"{name}_overlap_chance": np.array([[0.1, 0.1]]),
            f"{name}_overlap_chance_upper": np.array([[0.2, 0.2]]) + shift,
            f"{name}_cosines": np.array([0.6, 0.2]),
            f"{name}_cosines_chance_lower": np.array([0.3, 0.1]),
            f"{name}_cosines_chance_upper": np.array([0.5, 0.4]),
            f"{name}_overlap_all": 0.2 + shift,
            f"{name}_overlap_all_chance": 0.1,
            f"{name}_overlap_all_chance_upper": 0.2,
        }
    return section


def contributions(*, questions: bool = True) -> dict[str, Any]:
    section: dict[str, Any] = {"images": ["val-000", "val-001"], "roles": ["anchor", "patch"]}
    section["questions"] = ["object", "width"] if questions else []
    if questions:
        section |= interval("answers_by_role", np.array([[1, 2], [3, 4]]))
        section |= interval("lens_by_role", np.array([[0, 1], [-1, 0]]))
    return section


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all that the page shows."""
    path = write_run(tmp_path_factory.mktemp("analysed") / "run.h5", N)
    with open_run(path) as run:
        add_section(path, "reading", records.flat(reading.analyse(run)) | lens() | angles())
    add_section(path, "contributions", contributions())
    return path


# ---- figures


def test_words_are_told_by_layer_and_rank() -> None:
    probability = np.array([[0.5, 0.25], [0.4, 0.3]])
    figure = figures.lens_words([["sea", "<b>car"], ["cup", "tree"]], probability, [0, 4], n=3)
    heat, written = figure.data
    assert list(written.text) == ["sea", "cup", "&lt;b&gt;car", "tree"]
    np.testing.assert_array_equal(heat.z, probability.T)
    assert [list(row) for row in heat.text] == [["sea", "cup"], ["&lt;b&gt;car", "tree"]]
    assert heat.customdata[1, 1].tolist() == ["tree", 4]
    assert figure.layout.xaxis.ticktext == ("0", "4") and "mean of 3 images" in figure.layout.title.subtitle.text


def test_agreement_has_bits_on_the_left_and_shares_on_the_right() -> None:
    values = [np.arange(6.0).reshape(2, 3) + shift for shift in (0, 10, 20)]
    figure = figures.lens_agreement(*values, [1, 2], n=3)
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [trace.yaxis for trace in lines] == ["y", "y", "y2"]
    for line, value in zip(lines, values, strict=True):
        np.testing.assert_array_equal(line.y, value[:, 0])
        np.testing.assert_array_equal(line.customdata[:, :2], value[:, 1:])
    assert figure.layout.yaxis.title.text == "bits" and figure.layout.yaxis2.range == (0, 1.02)


def test_accuracy_lies_beside_the_most_frequent_class() -> None:
    accuracy = np.stack([np.array([[0.2, 0.1, 0.3], [0.6, 0.5, 0.7]])] * 2)
    figure = figures.lens_accuracy(accuracy, np.array([0.25, 0.5]), ["scene", "<i>"], [0, 1], n=3)
    floors = [trace for trace in figure.data if trace.line.dash == "dot"]
    assert [trace.y for trace in floors] == [(0.25, 0.25), (0.5, 0.5)]
    names = [trace.name for trace in figure.data if trace.mode == "lines+markers"]
    assert names == ["scene", "&lt;i&gt;"] and figure.data[1].y.tolist() == [0.2, 0.6]


def test_likeness_and_dimensions_hold_their_intervals() -> None:
    cka = np.stack([np.eye(2), np.eye(2) - 0.1, np.eye(2) + 0.1], -1)
    heat, written = figures.likeness(cka, ["z_voco 1", "v_d"], n=3).data
    assert (heat.zmin, heat.zmax) == (0, 1)
    np.testing.assert_array_equal(heat.z, np.eye(2))
    assert list(written.text) == ["1.00", "0.00", "0.00", "1.00"]
    assert list(written.textfont.color) == ["#000000", "#ffffff", "#ffffff", "#000000"]
    np.testing.assert_allclose(heat.customdata[0, 0], [0.9, 1.1])
    two_nn, participation = np.array([[4, 3, 6.0], [5, 5, 5]]), np.array([[9, 8, 9.5], [7, 7, 7]])
    near, flat = figures.dimensions(two_nn, participation, ["z_voco (layer 1)", "v_d"], ["z_voco", "v_d"], n=3).data
    assert near.x.tolist() == [4, 5] and flat.x.tolist() == [9, 7]
    assert near.error_x.array.tolist() == [2, 0] and near.error_x.arrayminus.tolist() == [1, 0]
    assert near.marker.color[0] != near.marker.color[1]


def test_overlap_is_told_against_chance() -> None:
    found = angles()
    overlap, chance, upper = (found[f"angle_overlap{end}"] for end in ("", "_chance", "_chance_upper"))
    heat, dots = figures.probe_overlap(overlap, chance, upper, ["object"], ["width", "size"], what="directions").data
    np.testing.assert_allclose(heat.z, [[-0.05, 0.2]])
    assert heat.zmax == -heat.zmin == pytest.approx(0.2)
    assert (dots.x.tolist(), dots.y.tolist()) == ([2], [1])
    cosines = np.array([0.9, 0.1])
    band, line = figures.probe_cosines(cosines, cosines - 0.1, cosines + 0.1, (0.5, 0.25), what="directions").data
    assert line.y.tolist() == [0.9, 0.1] and band.y.tolist() == pytest.approx([1.0, 0.2, 0.0, 0.8])


def test_parts_of_answers_are_told_by_role() -> None:
    parts = np.arange(12.0).reshape(2, 2, 3)
    anchors, patches = figures.answer_parts(parts, ["a", "b"], ["anchor", "patch"], title="t", n=3).data
    assert (
        anchors.x.tolist() == [0, 6] and patches.x.tolist() == [3, 9] and anchors.marker.color != patches.marker.color
    )


# ---- the page


def test_all_that_was_measured_is_shown(analysed: Path, open_app: Any) -> None:
    app = open_app(analysed, page=PAGE)
    assert not app.exception and not app.error and not app.code and not app.info
    shown = charts(app)
    assert set(shown) == WORDS | ALIKE | ANGLES | ANSWERS | {"lens_accuracy"}
    assert shown["lens_words"]["data"][0]["text"][0][0] == "&lt;b&gt;0-0"
    assert "0.20, random 0.10" in shown["probe_cosines"]["layout"]["title"]["subtitle"]["text"]
    linked = open_app(analysed, page=PAGE, reading_angles="readings on images")
    assert "0.40, random 0.10" in charts(linked)["probe_cosines"]["layout"]["title"]["subtitle"]["text"]


def commands(app: Any) -> list[str]:
    return [item.value.split(" --run")[0] for item in app.code]


def test_a_run_without_analyses_says_how_to_make_them(tmp_path: Path, open_app: Any) -> None:
    app = open_app(write_run(tmp_path / "run.h5", N), page=PAGE)
    assert not app.exception and not charts(app)
    assert commands(app) == ["htc-analyze reading", "htc-analyze contributions"]


def test_without_model_probes_and_questions_the_rest_is_shown(tmp_path: Path, open_app: Any) -> None:
    path = write_run(tmp_path / "run.h5", N)
    with open_run(path) as run:
        add_section(path, "reading", records.flat(reading.analyse(run)))
    add_section(path, "contributions", contributions(questions=False))
    app = open_app(path, page=PAGE)
    assert not app.exception and not app.error and set(charts(app)) == ALIKE
    said = " ".join(item.value for item in app.info)
    assert "needs the model" in said and "no questions" in said and commands(app) == ["htc-probe semantic detail"]


def test_without_a_tokenizer_words_are_numbers(tmp_path: Path, open_app: Any) -> None:
    path = write_run(tmp_path / "run.h5", N)
    one_suite = {"angle_semantic": ["object"], "angle_detail": []}
    with open_run(path) as run:
        add_section(path, "reading", records.flat(reading.analyse(run)) | lens(words=False) | one_suite)
    app = open_app(path, page=PAGE)
    assert not app.exception and not app.error and set(charts(app)) == WORDS | ALIKE
    assert charts(app)["lens_words"]["data"][0]["text"][1][0] == "token 1"
    said = " ".join(item.value for item in app.info)
    assert "no tokenizer" in said and "one suite has none" in said


# ---- in the browser


@pytest.mark.slow
def test_a_user_compares_directions_and_saves_the_words(analysed: Path, chromium: Any) -> None:
    with serving(analysed) as address, tab(chromium, address) as page:
        page.open(page=PAGE)
        assert "page=Reading" in page.page.url
        page.page.locator(".st-key-lens_words").scroll_into_view_if_needed()
        page.settle()
        page.chart("lens_words").hover()
        with page.page.expect_download() as download:
            page.page.locator('.st-key-lens_words [data-title="Download as PNG"]').click()
        assert download.value.suggested_filename == "lens_words.png"
        page.page.get_by_role("radio", name="readings on images").click()
        page.settle()
        page.page.locator(".st-key-probe_overlap").scroll_into_view_if_needed()
        page.settle()
        title = page.values("probe_overlap")["layout"]["title"]["subtitle"]["text"]
        assert title.startswith("readings on images") and "reading_angles=" in page.page.url
        page.check()
