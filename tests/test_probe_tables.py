"""Tables of probe results: what is shown, marked, greyed and doubted, at the width of a terminal."""

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from htc_probe.probes.files.results import UNDECIDED, Confusion, Interval, Results
from htc_probe.probes.inputs import representations
from htc_probe.probes.inputs.representations import Representation
from htc_probe.probes.show import table
from made.tables import DEFAULT, LAST, TASKS, compare, made, reviewed


def shown(results: Results, width: int = 100, encoding: str = "utf-8", **options: Any) -> str:
    """What a terminal of this width shows."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    Console(width=width, file=file, **options).print(table.render(results))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def line_of(text: str, task: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(task))


EIGHT = (*DEFAULT[:3], *((f"file{number}.npy", None) for number in range(4)), ("pixels", None))


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_nothing_is_cut_off_at_any_width(width: int) -> None:
    text = shown(reviewed(made(EIGHT, layers=range(LAST + 1))), width)
    assert "…" not in text and max(len(line.rstrip()) for line in text.splitlines()) <= width
    for name, _ in EIGHT:
        assert representations.shown(name) in text
    assert text.count(".80-.84") >= len(TASKS)  # pooled V's interval, in one piece


def test_eight_representations_stand_side_by_side_in_a_hundred_columns() -> None:
    heads = [line for line in shown(made(EIGHT)).splitlines() if line.split()[:2] == ["task", "z_voco"]]
    heads = [line for line in heads if "floor" in line]
    assert len(heads) == 2  # one a suite
    assert all(name in heads[0] for name in ("z_voco", "v_d", "pooled V", "pixels"))


def test_scores_stand_beside_their_floor_control_and_sample_size() -> None:
    text = shown(made())
    assert "semantic: what a linear probe reads (2,000 images in 2,000 groups, 5 folds)" in text
    assert "detail: what a linear probe reads (1,601 to 2,000 images in 1,601 to 2,000 groups, 5 folds)" in text
    assert line_of(text, "category").split() == ["category", "0.80", "0.30", "0.82", "0.25", "0.20"]
    below = line_of(text, "top-1 K=4 n=2000")
    assert below.split()[3:] == [".78-.82", ".28-.32", ".80-.84", ".23-.27"]
    assert line_of(text, "control").split() == ["control", *["0.15"] * 4]
    assert line_of(text, "category alone").split() == ["category", "alone", "0.22"]
    assert line_of(text, "mean of 2").split()[3:] == ["0.80", "0.30", "0.82", "0.25", "0.20"]
    trained = replace(made(), run=made().run | {"train": {"file": "scenes-train.h5"}})
    assert "none trained on)" in shown(trained)


def test_only_the_papers_suites_are_shown_beside_the_paper() -> None:
    text = " ".join(shown(made()).split())
    assert "26.67% top-1 for z_voco on semantic" in text and "30.70% top-1 for z_voco on detail" in text
    assert "The paper" not in shown(made(tasks=[("style", "era", "classes", ("old", "new"))]))


def test_the_best_is_marked_only_where_it_is_better_than_every_other_by_test() -> None:
    pairs = [(0.2, 1e-4), (0.1, 1e-4)]
    base = made((("z_voco", LAST), ("v_d", None), ("v_pooled", None)), tasks=TASKS[:1])
    estimates = {("z_voco", LAST): 0.8, ("v_d", None): 0.6, ("v_pooled", None): 0.7}

    def best(*with_p: tuple[str, str, float, float]) -> Representation | None:
        tests = tuple(compare("semantic", "category", "top-1", a, b, by, p) for a, b, by, p in with_p)
        return table.best(replace(base, comparisons=tests), "semantic", "category", estimates)

    first, second = ("z_voco@4", "v_d", *pairs[0]), ("z_voco@4", "v_pooled", *pairs[1])
    assert best(first, second) == ("z_voco", LAST)
    assert best(first, ("v_pooled", "z_voco@4", -0.1, 1e-4)) == ("z_voco", LAST)  # the other way round
    assert best(first) is None  # one pair was not tested
    assert best(first, ("z_voco@4", "v_pooled", 0.1, 0.06)) is None
    assert best(first, ("z_voco@4", "v_pooled", -0.1, 1e-4)) is None  # of other images: not better
    nothing_beside = {Representation("z_voco", LAST): 0.8}
    assert table.best(base, "semantic", "category", nothing_beside) is None

    tests = tuple(compare("semantic", "category", "top-1", "z_voco@4", b, 0.5) for b in ("v_d", "v_pooled"))
    rows = tuple(replace(one, estimate=0.3) if one.representation == "v_pooled" else one for one in base.rows)
    text = shown(replace(base, rows=rows, comparisons=tests))
    assert line_of(text, "category").split()[1:] == ["0.80*", "0.30", "0.30", "0.20"]
    assert "*" not in line_of(text, "mean of 1")


def test_floors_and_what_is_not_above_its_floor_are_grey() -> None:
    base = made(tasks=TASKS[:1])
    rows = tuple(replace(one, lower=0.19) if one.representation == "v_d" else one for one in base.rows)
    text = shown(replace(base, rows=rows), force_terminal=True, color_system="standard")
    line = next(line for line in text.splitlines() if "category" in line and "0.82" in line)
    assert re.findall(r"\x1b\[90m *([0-9.]+)\x1b\[0m", line) == ["0.30", "0.25", "0.20"]
    assert "0.80" in line and "0.82" in line
    assert Representation("z_voco (random weights)").is_floor and Representation("z_voco", 0).is_floor


def test_a_join_is_told_by_what_it_adds_and_shown_where_nothing_tells_it() -> None:
    results = made()
    assert ("v_d+z_voco", None) not in table.columns(results, "semantic")
    text = shown(results)
    told = text.split("bits an image that one adds to another")[1]
    assert line_of(told, "category").split() == ["category", "+1.500*", "+0.010"]
    assert told.split()[:8] == ["task", "z_voco", "given", "v_d", "v_d", "given", "z_voco", told.split()[7]]
    alone = made([("v_d+v_pooled", None)], layers=())
    assert table.columns(alone, "semantic") == [("v_d+v_pooled", None)]
    assert "v_d +" in shown(replace(alone, comparisons=()))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("v_d+z_voco", "v_d", ("z_voco", "v_d")),
        ("v_d+z_voco", "z_voco@32", ("v_d", "z_voco (layer 32 of 4)")),
        ("v_d+v_pooled+z_voco", "v_d+z_voco", ("pooled V", "v_d + z_voco")),
    ],
)
def test_what_is_added_is_what_was_not_known(a: str, b: str, expected: tuple[str, str]) -> None:
    assert table.added(made(), compare("semantic", "category", "bits", a, b, 0.1)) == expected


def test_layers_are_drawn_from_the_floor_to_a_perfect_score() -> None:
    results = made(layers=range(LAST + 1), tasks=TASKS[:1])
    text = shown(results)
    line = line_of(text.split("z_voco by layer")[1], "category")
    assert line.split() == ["category", "▁▂▃▅▆", "0.20", "0.80", "@4", "0.80", "0.20"]
    assert "by layer" not in shown(made())
    many = made(layers=range(0, 200), tasks=TASKS[:1])
    assert "…" not in shown(many) and line_of(shown(many).split("by layer")[1], "category").split()[-2] != "0.20"


def test_a_terminal_without_blocks_gets_ascii() -> None:
    assert shown(made(layers=range(LAST + 1)), encoding="ascii")


def test_differences_are_the_tokens_minus_each_other_whichever_way_they_were_tested() -> None:
    results = made()
    turned = compare("semantic", "category", "top-1", "pixels", "z_voco@4", -0.3, 0.01)
    elsewhere = compare("semantic", "category", "top-1", "pixels", "v_d", 0.4)
    results = replace(results, comparisons=(turned, elsewhere, *results.comparisons))
    found = table.against(results, "semantic")
    assert list(found)[-1] == (None, ("v_d", None)) and found["category", ("pixels", None)].b == "pixels"
    assert found["category", ("pixels", None)].difference == pytest.approx((0.3, 0.28, 0.32))
    text = shown(results).split("z_voco minus")[1]
    assert text.split()[:5] == ["task", "v_d", "pooled", "V", "pixels"]
    assert line_of(text, "category").split() == ["category", "+0.500*", "-0.020", "+0.300*"]
    assert line_of(text, "present").split() == ["present", "+0.500*", "-0.020"]
    assert ".480-.520" in text and "-.040 to .000" in text and "+0.400" not in text
    assert "minus" not in shown(replace(results, comparisons=()))


def test_without_the_token_differences_are_the_first_columns() -> None:
    results = made([("v_d", None), ("v_pooled", None)], layers=())
    test = compare("detail", "size", "R2", "v_pooled", "v_d", 0.25)
    assert "v_d minus" in shown(replace(results, comparisons=(test,)))


def test_bits_and_compression_have_a_table_of_their_own() -> None:
    text = shown(made(tasks=TASKS[:1])).split("bits an image that the probe saves")[1]
    assert line_of(text, "category").split() == ["category", "1.80", "0.30", "1.86", "0.15"]
    assert line_of(text, "compression").split() == ["compression", "1.80", "1.30", "1.82", "1.25"]


def test_what_is_kept_has_a_verdict_and_the_margin_is_said() -> None:
    text = shown(reviewed(made()))
    assert "semantic: does it keep pooled V's score, within 0.05?" in text
    part = text[text.index("does it keep") :]
    assert line_of(part, "category").split() == ["category", "kept", "lost", "?"]
    assert line_of(part, "present").split() == ["present", "-", "gained", "kept"]
    assert "within 0.05 of pooled V's score by two one-sided tests" in " ".join(text.split())
    none = [replace(one, difference=Interval(0.0, 0.0, 0.0), verdict=UNDECIDED) for one in reviewed(made()).kept]
    assert ".000-.000" not in (equal := shown(replace(reviewed(made()), kept=tuple(none)))) and "all equal" in equal
    assert "does it keep" not in shown(made()) and "one-sided" not in " ".join(shown(made()).split())


def test_shares_of_suites_and_ceilings_are_shown_where_there_are_some() -> None:
    text = shown(reviewed(made()))
    part = text[text.index("semantic minus detail") :]
    assert line_of(part, "retention").split() == ["retention", "+0.200*", "+0.200*", "not", "defined"]
    part = text[text.index("semantic: ceiling") :]
    assert line_of(part, "category").split() == ["category", *["0.90"] * 3]
    assert line_of(part, "over linear").split() == ["over", "linear", *["+0.100*"] * 3]
    for word in ("semantic minus detail", "ceiling", "Shares kept"):
        assert word not in shown(made())


def test_warnings_that_differ_in_their_subject_alone_are_told_together() -> None:
    results = made()
    several = tuple(f"shade from {name}: too weak" for name in "abcdef")
    told = table.doubts(replace(results, warnings=(*several, "no colon here", "nor here")))
    assert told == [
        "shade from a, shade from b, shade from c, shade from d and 2 more: too weak",
        "no colon here",
        "nor here",
    ]


def test_a_class_with_few_images_is_told() -> None:
    results = made()
    rare = Confusion("shade", "v_d", None, ("dark", "light"), ((15, 4), (10, 1500)))
    told = table.doubts(replace(results, warnings=(), confusions=(rare,)))
    assert told == ["shade: fewer than 20 images of some class"]
    rows = tuple(replace(one, n=70) for one in results.rows)  # 4 classes: 17 each
    told = table.doubts(replace(results, warnings=(), confusions=(), rows=rows))
    assert told == ["category: fewer than 20 images of some class"]


def test_names_are_shown_as_they_are() -> None:
    odd = [("semantic", "[red]x[/red]", "classes", ("a", "b"))]
    results = replace(made([("v_d", None), ("[b].npy", None)], tasks=odd), warnings=("[bold]careful[/bold]",))
    text = shown(results, 120)
    assert "[red]x[/red]" in text and "[b].npy" in text and "[bold]careful[/bold]" in text


@pytest.mark.parametrize("estimate", [None, 7.0])  # of a file that an earlier version wrote
def test_a_retention_that_is_not_defined_is_said_in_words(estimate: float | None) -> None:
    results = made()
    none = Interval(estimate, None, None)
    means = tuple(replace(mean, retention=none) if mean.suite == "detail" else mean for mean in results.suite_means)
    text = shown(replace(results, suite_means=means))
    told = text.split("detail: what a linear probe reads")[1].split("bits an image")[0]
    assert line_of(told, "retention").split() == ["retention", *["not", "defined"] * 4] and "7.0" not in told
    assert "retention of detail: not defined (pooled V is at its floor)." in " ".join(text.split())
    assert "unbounded" not in text and "not defined" not in shown(results)
    assert table.not_defined(results.rows) == []


def test_numbers_that_are_not_there_are_dashes() -> None:
    results = made(tasks=TASKS[-1:])
    gone = {"control": None, "compression": None, "metrics": {}, "retention": None}
    rows = tuple(replace(one, **gone, estimate=-3.456, lower=-4.0, upper=-2.0) for one in results.rows)
    text = shown(replace(results, rows=rows, baselines=(), comparisons=(), suite_means=()))
    assert "-3.46" in text and "control" not in text and "compression" not in text and "retention" not in text
