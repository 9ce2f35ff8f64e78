"""Results of probes as a command would leave them. Knows their file's rows; computes no probe."""

from collections.abc import Sequence
from dataclasses import replace

from htc_probe.probes.files.results import (
    GAINED,
    KEPT,
    LOST,
    NOTHING,
    UNDECIDED,
    Baseline,
    Ceiling,
    ClassScore,
    Comparison,
    Confusion,
    CurvePoint,
    Interval,
    Kept,
    Results,
    Row,
    SuiteGap,
    SuiteMean,
    label,
)

LAST = 4

DEFAULT = (("z_voco", LAST), ("v_d", None), ("v_pooled", None), ("v_d+z_voco", None), ("pixels", None))

SCORES = {"z_voco": 0.8, "v_d": 0.3, "v_pooled": 0.82, "v_d+z_voco": 0.81, "pixels": 0.25}

TASKS = (
    ("semantic", "category", "classes", ("boat", "car", "cup", "tree")),
    ("semantic", "present", "multilabel", ("boat", "car", "cup", "tree")),
    ("detail", "shade", "classes", ("dark", "light")),
    ("detail", "size", "number", ()),
)

METRIC = {"classes": "top-1", "multilabel": "mAP", "number": "R2"}


def around(value: float, reach: float = 0.02) -> Interval:
    return Interval(value, value - reach, value + reach)


def row(suite: str, task: str, kind: str, classes: tuple[str, ...], name: str, layer: int | None = None) -> Row:
    floor = 0.0 if kind == "number" else 0.2
    score = SCORES.get(name, 0.5)
    if layer is not None:
        score = floor + (score - floor) * layer / LAST
    # Layer 0 is the floor itself.
    reach = 0.02 if layer != 0 else 0.0
    bits = (score - floor) * 3
    return Row(
        suite=suite,
        task=task,
        kind=kind,
        unit="px" if kind == "number" else "",
        representation=name,
        layer=layer,
        width=128,
        metric=METRIC[kind],
        estimate=score,
        lower=score - reach,
        upper=score + reach,
        n=1601 if task == "shade" else 2000,
        n_groups=1601 if task == "shade" else 2000,
        floor=floor,
        metrics={METRIC[kind]: around(score), "cross-entropy": around(2 - bits), "V-information": around(bits)},
        bits=bits,
        compression=1 + score,
        compression_interval=around(1 + score),
        code_bits=1.2,
        control=0.15,
        selectivity=around(score - 0.15),
        retention=around((score - floor) / 0.6),
        strength=0.01,
        coded_strength=0.03,
        at_edge=False,
        gap=None if kind == "number" else 3e-7,
        fold_scores=(score,) * 5,
        classes=classes,
    )


def compare(suite: str, task: str | None, metric: str, a: str, b: str, by: float, p: float = 1e-6) -> Comparison:
    return Comparison(suite, task, a, b, metric, around(by), p, p)


def made(
    keys: Sequence[tuple[str, int | None]] = DEFAULT,
    layers: Sequence[int] = (LAST,),
    tasks: Sequence[tuple[str, str, str, tuple[str, ...]]] = TASKS,
) -> Results:
    """Results as a command with these representations, and these layers of z_voco, would leave them."""
    spread = [("z_voco", layer) for layer in layers] + [key for key in keys if key[0] != "z_voco"]
    rows = tuple(row(*task, *key) for task in tasks for key in spread)
    means, comparisons, baselines, curves, confusions = [], [], [], [], []
    for suite in dict.fromkeys(task[0] for task in tasks):
        for key in spread:
            of = [one for one in rows if (one.suite, one.representation, one.layer) == (suite, *key)]
            names = ("estimate", "floor", "bits")
            score, floor, bits = (sum(getattr(one, name) for one in of) / len(of) for name in names)
            kept = around(score / 0.82)
            means.append(SuiteMean(suite, *key, score, score - 0.01, score + 0.01, floor, around(bits), kept, len(of)))
    token = label("z_voco", LAST)
    for suite, task, kind, classes in tasks:
        comparisons += [
            compare(suite, task, METRIC[kind], token, "v_d", 0.5),
            compare(suite, task, METRIC[kind], token, "v_pooled", -0.02, 0.4),
            compare(suite, task, "bits", "v_d+z_voco", "v_d", 1.5),
            compare(suite, task, "bits", "v_d+z_voco", token, 0.01, 0.6),
        ]
        baselines.append(Baseline(suite, task, "category alone", METRIC[kind], around(0.22), around(0.1)))
        for images in (100, 400, 1600):
            curves += [
                CurvePoint(suite, task, *key, images, METRIC[kind], around(0.2 + images / most, 0.03), around(0.5))
                for key, most in ((("z_voco", LAST), 3000), (("v_d", None), 9000))
            ]
        if kind == "classes":
            size = len(classes)
            counts = tuple(tuple(400 if a == b else 30 for b in range(size)) for a in range(size))
            confusions += [Confusion(task, *key, classes, counts) for key in (("z_voco", LAST), ("v_d", None))]
    comparisons.append(compare("semantic", None, "mean", token, "v_d", 0.5))
    return Results(
        config={
            "seed": 0,
            "protocol": {
                "seed": 0,
                "match_dim": None,
                "guided": False,
                "types": None,
                "inner_folds": 3,
                "strengths": [100.0, 0.001],
                "ridge_strengths": [1000.0, 1e-6],
                "resamples": 1000,
                "control_draws": 3,
                "outer_folds": 5,
            },
        },
        run={
            "file": "scenes-val.h5",
            "created": "2026-11-22T20:31:29+00:00",
            "dataset": "scenes",
            "split": "val",
            "topology": "star",
            "images": 2000,
            "model": "htc-tiny",
            "sha256": "a6d3" * 16,
            "layers": LAST,
            "last_layer": LAST,
        },
        versions={"python": "3.11.7", "numpy": "2.4.6"},
        warnings=("detail: 1 class dropped",),
        rows=rows,
        suite_means=tuple(means),
        comparisons=tuple(comparisons),
        baselines=tuple(baselines),
        curves=tuple(curves),
        confusions=tuple(confusions),
    )


def reviewed(results: Results) -> Results:
    """With what is kept, classes by themselves, shares of the suites, and a reader that is not linear."""
    verdicts = (KEPT, LOST, UNDECIDED, NOTHING, GAINED)
    keys = [("z_voco", LAST), ("v_d", None), ("pixels", None)]
    kept, by_class, ceilings = [], [], []
    for suite, task, kind, classes in TASKS:
        for key in keys:
            verdict = verdicts[len(kept) % len(verdicts)]
            within = None if verdict == NOTHING else 0.01
            told = around({KEPT: 0.0, LOST: -0.3, GAINED: 0.4}.get(verdict, 0.01))
            kept.append(Kept(suite, task, *key, METRIC[kind], 0.05, told, within, within, 0.5, 1.0, verdict))
            ceilings.append(Ceiling(suite, task, *key, METRIC[kind], around(0.9), around(0.1), 1e-5, 1e-4, 5))
            by_class += [
                ClassScore(suite, task, *key, name, "recall", score, float(at == 0), 40 - at, 40 - at)
                for at, name in enumerate(classes)
                for score in (Interval(0.7, None, None) if at == 3 else around(0.7, 0.1),)
            ]
    for suite in ("semantic", "detail"):
        kept.append(Kept(suite, None, *keys[0], "mean", 0.05, around(0.0), 0.01, 0.01, 1.0, 1.0, KEPT))
    gaps = [SuiteGap(*key, "semantic", "detail", around(0.2), 1e-4, 2e-4) for key in keys[:2]]
    gaps.append(SuiteGap(*keys[2], "semantic", "detail", Interval(None, None, None), None, None))
    return replace(
        results, kept=tuple(kept), suite_gaps=tuple(gaps), by_class=tuple(by_class), ceilings=tuple(ceilings)
    )
