"""What probe results amount to, in a few sentences: what survived in the one token, what least, whether memory of
categories could explain it, and what to type next. Knows `Results`; not what is in runs, solvers or pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from htc_probe.extract.command import typed
from htc_probe.extract.store import open_run
from htc_probe.extract.words import counted
from htc_probe.probes.files import results as files
from htc_probe.probes.files.results import Results, Row, SuiteMean, is_defined
from htc_probe.probes.inputs.representations import WHOLE, Representation
from htc_probe.probes.scores.controls import may_explain
from htc_probe.probes.show.table import doubts, key_of, name_in

_LINE = 79
"""Characters of a line on a terminal; the sentence of what survived least is cut to one."""


@dataclass(frozen=True, repr=False)
class Verdict:
    """Sentences; "" where there is nothing to say. As text it has a line for each."""

    survived: str
    """How much of what pooled V has is in the one token, by suite, with 95% intervals; or its scores."""
    beside: str
    """The same of the anchors and of pixels."""
    least: str
    """The task of which least survived."""
    memory: str
    """Whether memory of categories could explain the scores."""
    warnings: str
    """How many there are."""
    next: str
    """A command to type; "" where the run is not at hand."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """What there is to read, without the command."""
        told = self.survived, self.beside, self.least, self.memory, self.warnings
        return tuple(filter(None, told))

    def __str__(self) -> str:
        return "\n".join([*self.sentences, *([f"Next: {self.next}"] if self.next else [])])

    __repr__ = __str__


def verdict(path: Path | str) -> Verdict:
    """Of the probes of a run, `path` being NAME.h5 or what `htc-probe` left of it, NAME.probes.json.

    Raises UserError where there are no results, or they or the run cannot be read.
    """
    path = Path(path)
    found = files.read(path if path.suffix == ".json" else files.default_path(path))
    run = path if path.suffix != ".json" else path.with_name(str(found.run.get("file", "")))
    if not run.is_file():
        return of(found, None)
    with open_run(run) as opened:
        return of(found, run, opened.created)


def of(results: Results, run: Path | None, created: str | None = None) -> Verdict:
    """Of these results. run: the file that was probed, for the command; None where it is not at hand. created: since
    when it is as it is, where that is known.
    """
    if run is not None and created not in (None, results.run.get("created")):
        old = "These scores are of an earlier state of the run."
        return replace(of(results, run), warnings=old, next=f"{quote(typed('htc-probe'))} --run {quote(str(run))}")
    token = token_of(results.rows)
    if token is None:
        others = ", ".join(dict.fromkeys(name_in(results, key_of(row)) for row in results.rows))
        none = f"These probes read {others}, and not the one token (voco_read, z_voco)."
        return Verdict(none, "", "", "", _warnings(results), _next(run))
    return Verdict(
        *_survived(results, token), _least(results, token), _memory(results, token), _warnings(results), _next(run)
    )


def token_of(items: Iterable[Row | SuiteMean]) -> Representation | None:
    """What the text reads of `<voco>`, where that was probed; otherwise the last of its states that were; None without
    either.
    """
    keys = {key_of(item) for item in items}
    for name in ("voco_read", "z_voco"):
        if found := [key for key in keys if key.name == name]:
            return max(found, key=lambda key: -1 if key.layer is None else key.layer)
    return None


def share(ends: Sequence[float | None]) -> str:
    """99.1% [98.4, 99.8] of an estimate and the ends of its interval, none of them None; with more decimals where an
    end would look as if it were all.
    """
    percent = [100 * end for end in ends if end is not None]
    places = 1
    while places < 4 and any(end != 100 and round(end, places) == 100 for end in percent[1:]):
        places += 1
    estimate, lower, upper = (f"{value:z.{places}f}" for value in percent)
    return f"{estimate}% [{lower}, {upper}]"


# ---- the sentences


def _survived(results: Results, token: Representation) -> tuple[str, str]:
    """What survived, and the same of anchors and pixels: shares of pooled V where all suites have them, else scores."""
    own = _means(results, token)
    tasks = {row.suite: row.task for row in results.rows}
    where = "token after the image" if results.run.get("topology") == "uncompressed" else "one token"
    what = f"The {where}, {name_in(results, token)},"
    beside = [("the anchors (v_d)", Representation("v_d")), ("pixels", Representation("pixels"))]
    if kept := _shares(own):
        names = [mean.suite if mean.tasks > 1 else _cut(tasks[mean.suite]) for mean in own]
        told = [f"{one} of the {name} score" for one, name in zip(kept, names, strict=True)]
        shares = {name: [one.split(" [")[0] for one in _shares(_means(results, key))] for name, key in beside}
        return f"{what} keeps {' and '.join(told)} of pooled V, above the floor.", _beside(shares, "keep")
    names = [f"the {mean.suite} suite" if mean.tasks > 1 else _cut(tasks[mean.suite]) for mean in own]
    told = [
        f"{mean.estimate:z.2f} [{mean.lower:z.2f}, {mean.upper:z.2f}] on {name} (floor {mean.floor:z.2f})"
        for mean, name in zip(own, names, strict=True)
    ]
    beside = [("pooled V", WHOLE), *beside]
    scores = {name: [f"{mean.estimate:z.2f}" for mean in _means(results, key)] for name, key in beside}
    return f"{what} scores {' and '.join(told)}.", _beside(scores, "scores" if scores["pooled V"] else "score")


def _means(results: Results, key: Representation) -> list[SuiteMean]:
    return [mean for mean in results.suite_means if key_of(mean) == key]


def _shares(means: Sequence[SuiteMean]) -> list[str]:
    """[] where one has none."""
    kept = [share(mean.retention) for mean in means if is_defined(mean.retention)]
    return kept if len(kept) == len(means) else []


def _beside(told: Mapping[str, Sequence[str]], verb: str) -> str:
    """`The anchors (v_d) keep 28.7% and 32.3%, pixels 30.6% and 22.5%.`"""
    parts = [f"{name} {verb} {' and '.join(values)}" for name, values in told.items() if values]
    text = ", ".join([*parts[:1], *(part.replace(f" {verb} ", " ", 1) for part in parts[1:])])
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _least(results: Results, token: Representation) -> str:
    """The task of which least survived; "" of one task alone."""
    rows = [row for row in results.rows if key_of(row) == token]
    kept = [(row.retention, row) for row in rows if is_defined(row.retention)]
    if len(rows) < 2:
        return ""
    if kept:
        retention, row = min(kept, key=lambda one: one[0].estimate or 0.0)
        about = f", {share(retention)} ({row.metric} {row.estimate:z.2f}, floor {row.floor:z.2f})."
    else:
        row = min(rows, key=lambda row: (row.estimate - row.floor) / max(1 - row.floor, 1e-9))
        ends = f"[{row.lower:z.2f}, {row.upper:z.2f}]"
        about = f", {row.metric} {row.estimate:z.2f} {ends} (floor {row.floor:z.2f})."
    start = "Least survives: " if kept else "Lowest score: "
    return f"{start}{_cut(row.task, _LINE - len(start) - len(about))}{about}"


def _memory(results: Results, token: Representation) -> str:
    """Whether what the category alone tells could explain scores, beside the control."""
    alone = {one.task: one.score.estimate for one in results.baselines if one.score.estimate is not None}
    rows = [row for row in results.rows if key_of(row) == token and row.task in alone]
    if not rows:
        return "Memory of categories was not tested."
    above = [row for row in rows if row.lower > row.floor]
    known = [row.task for row in above if may_explain(row.lower, row.floor, alone[row.task])]
    controls = [row.control for row in rows if row.control is not None]
    ends = dict.fromkeys(f"{end:z.2f}" for end in (min(controls), max(controls))) if controls else {}
    control = f" Random labels of the categories (the control) score {' to '.join(ends)}." if ends else ""
    if not above:
        return f"Memory of categories has nothing to explain: no score is above its floor.{control}"
    if known:
        names = _cut(known[0]) if len(known) == 1 else f"{_cut(known[0])} and {len(known) - 1} more"
        return f"Memory of categories may explain {names} of {counted(len(rows), 'task')}.{control}"
    tasks = "the task" if len(rows) == 1 else f"all {len(rows)} tasks"
    if len(above) < len(rows):
        tasks = f"the {counted(len(above), 'task')} above the floor"
    return f"Memory of categories cannot explain it all: the category alone scores less in {tasks}.{control}"


def _cut(name: str, most: int = 16) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _warnings(results: Results) -> str:
    found = doubts(results)
    return f"{counted(len(found), 'warning')}: see the page Probes, or htc-probe --full." if found else "No warnings."


def _next(run: Path | None) -> str:
    if run is None:
        return ""
    analysed = run.with_name(run.stem + ".analysis.h5").is_file()
    name, before = ("htc-dashboard", "") if analysed else ("htc-analyze", "--run ")
    return f"{quote(typed(name))} {before}{quote(str(run))}"
