"""What logistic probes cost, beside scikit-learn and end to end: `python -m benchmarks.probes [PART ...]`.

Knows clocks, synthetic features and scikit-learn; not runs or files. The features have a power-law spectrum, heavy
tails, four massive dimensions and float16, as hidden states do.

cells       the cells (task x strength) of one layer and one fold, against scikit-learn's LogisticRegression (lbfgs,
            float32, its own tolerance) on the same rows. The two take turns, a strength of scikit-learn's at a time.
            Gaps and agreement are against a fit in float64 whose own certificate is printed. All of scikit-learn's
            cells take a quarter of an hour: `--peer-tasks` and `--peer-strengths` choose some
layer       one layer end to end: float16 in, standardised, basis, all folds and strengths, choice, refit, test
probekit    those of two classes, which are all that it has, against its batched Newton-CG (float32, its own tolerance);
            only where `pip install --no-deps probekit` has been done, and not by default
"""

import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import scipy.fft
import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from htc_probe.extract import command
from htc_probe.extract.arguments import Shown
from htc_probe.probes.solvers.basis import Basis
from htc_probe.probes.solvers.newton import Path
from htc_probe.probes.solvers.problems import Fit, Target, log_probabilities
from htc_probe.probes.solvers.products import half_copy

Part = Literal["cells", "layer", "probekit"]


@dataclass(frozen=True)
class Settings:
    parts: Annotated[tuple[Part, ...], Shown(positional=True)] = ("cells", "layer")
    """What to measure."""
    rows: int = 8000
    """Training rows, all folds together."""
    test: int = 2000
    """Test rows."""
    width: int = 4096
    """Features."""
    tasks: tuple[int, ...] = (2, 2, 4, 5, 8, 10, 20, 40, 60, 100)
    """Classes of each task."""
    strengths: tuple[float, ...] = (1e2, 1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4)
    """Strong to weak."""
    folds: int = 5
    decay: float = 1.0
    """The features' i-th eigenvalue is i ** -decay, before they are standardised."""
    seed: int = 0
    threads: int = 2
    """CPU threads."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where the probes are solved."""
    peer_tasks: tuple[int, ...] = ()
    """cells: class counts of the tasks that scikit-learn solves; all by default."""
    peer_strengths: tuple[float, ...] = ()
    """cells: the strengths at which it solves them; all by default."""


class Work(NamedTuple):
    x: np.ndarray
    """(n, D) float16, the rows of a fold together."""
    ys: list[np.ndarray]
    """Of each task, (n,) int."""
    x_test: np.ndarray
    ys_test: list[np.ndarray]


def main(settings: Settings) -> None:
    """Measures the parts and prints a table for each."""
    console = Console(width=150)
    torch.set_num_threads(settings.threads)
    with threadpool_limits(settings.threads):
        work = build(settings)
        console.print(
            f"{settings.rows} x {settings.width} float16 features, {len(settings.tasks)} tasks "
            f"({sum(settings.tasks)} classes), {len(settings.strengths)} strengths, {settings.folds} folds, "
            f"{settings.threads} threads, {settings.device}"
        )
        for part in settings.parts:
            for table in {"cells": cells, "layer": layer, "probekit": probekit}[part](settings, work):
                console.print(table)


def build(settings: Settings) -> Work:
    """Features and labels from one seed; a task's labels follow from the same directions in training and test rows."""
    rng = np.random.default_rng(settings.seed)
    total, width = settings.rows + settings.test, settings.width
    latent = rng.standard_normal((total, width), "float32")
    latent *= 2 * rng.standard_gamma(4.0, (total, 1)).astype("float32") ** -0.5  # heavy tails
    spectrum = np.arange(1, width + 1) ** -settings.decay
    x = latent * np.sqrt(spectrum * width / spectrum.sum()).astype("float32")
    for _ in range(2):  # two of these mix all directions, as a random rotation would
        x = scipy.fft.dct(x * rng.choice([-1, 1], width).astype("float32"), norm="ortho", axis=1)
    x = x * np.exp(0.5 * rng.standard_normal(width, "float32")) + rng.standard_normal(width, "float32")
    massive = rng.choice(width, min(4, width), replace=False)
    x[:, massive] = 80 * x[:, massive] + 300

    ys = []
    for number, classes in enumerate(settings.tasks):
        decay = (0.5, 0.8, 1.1)[number % 3]  # from fine detail to what the largest directions say
        weights = rng.standard_normal((width, classes), "float32") * np.arange(1, width + 1)[:, None] ** -decay
        scores = latent @ weights.astype("float32")
        scores = 1.5 * scores / scores.std() + rng.gumbel(size=scores.shape) + 0.5 * rng.standard_normal(classes)
        ys.append(scores.argmax(1))
    n = settings.rows
    return Work(x[:n].astype("float16"), [y[:n] for y in ys], x[n:].astype("float16"), [y[n:] for y in ys])


def fold_pieces(settings: Settings) -> list[tuple[list[slice], slice]]:
    """Of each fold, the pieces of rows it is trained on and those held out."""
    ends = np.linspace(0, settings.rows, settings.folds + 1).astype(int).tolist()
    held_out = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    return [
        ([piece for piece in (slice(0, held.start), slice(held.stop, settings.rows)) if piece.stop > piece.start], held)
        for held in held_out
    ]


def targets_of(settings: Settings, work: Work) -> list[Target]:
    return [Target(y, classes) for y, classes in zip(work.ys, settings.tasks, strict=True)]


# ---- cells


class Cells(NamedTuple):
    """A way of solving them: by strength and task."""

    seconds: np.ndarray
    objective: np.ndarray
    likeliest: list[list[np.ndarray]]
    """Predictions on the rows held out and the test rows."""


def cells(settings: Settings, work: Work) -> list[Table]:
    """This engine and scikit-learn on the same cells of the last fold."""
    counts, strengths = settings.peer_tasks or settings.tasks, settings.peer_strengths or settings.strengths
    chosen = [task for task, classes in enumerate(settings.tasks) if classes in counts]
    started = time.perf_counter()
    basis = Basis.fit(work.x, device=settings.device)
    half = half_copy(basis.train, sum(settings.tasks))
    prepared = time.perf_counter() - started
    pieces, held = fold_pieces(settings)[-1]
    rows = torch.cat([basis.train[held], basis.rotate(work.x_test)])
    every = targets_of(settings, work)
    mine = [every[task] for task in chosen]

    def path(targets: Sequence[Target]) -> Path:
        return Path(basis.train, basis.eigenvalues, targets, segments=pieces, half=half)

    whole = walk(path(every), settings.strengths, rows)
    mean, factor = (part.astype("float32") for part in basis.scaler)
    x, x_test = ((part.astype("float32") - mean) * factor for part in (work.x, work.x_test))
    train, unseen = np.concatenate([x[piece] for piece in pieces]), np.concatenate([x[held], x_test])
    del x, x_test
    ys = [np.concatenate([target.y[piece] for piece in pieces]) for target in mine]
    totals, columns = [], []
    for strength in strengths:
        columns.append([peer_cell(train, y, strength, unseen) for y in ys])
        ours = walk(path(mine), strengths, rows)
        totals.append(ours.seconds.sum())
    peer = Cells(
        np.array([[seconds for seconds, _, _ in column] for column in columns]),
        np.array([[objective for _, objective, _ in column] for column in columns]),
        [[likeliest for _, _, likeliest in column] for column in columns],
    )
    exact = Path(basis.train.double(), basis.eigenvalues.double(), mine, segments=pieces, tolerance=1e-11)
    gaps: list[Fit] = []
    best = walk(exact, strengths, rows.double(), gaps)

    table = Table(
        "strength",
        "scikit-learn s",
        "this engine s",
        "ratio",
        "gap, scikit-learn",
        "gap, this engine",
        "agrees, scikit-learn",
        "agrees, this engine",
        title=f"{len(chosen)} tasks x {len(strengths)} strengths, one fold, {len(train)} x {settings.width}",
        caption="gap: largest share by which an objective exceeds the float64 optimum (certified to "
        f"{max(fit.gap.max() for fit in gaps):.0e}); agrees: mean (worst) share of {len(unseen)} unseen rows "
        "predicted as there",
    )
    for i, name in enumerate([*(f"{strength:g}" for strength in strengths), "all"]):
        at = slice(None) if name == "all" else slice(i, i + 1)
        own = statistics.median(totals) if name == "all" else ours.seconds[at].sum()
        table.add_row(
            name,
            f"{peer.seconds[at].sum():.2f}",
            f"{own:.3f}",
            f"{peer.seconds[at].sum() / own:.1f} x",
            *(f"{(way.objective[at] / best.objective[at] - 1).max():.1e}" for way in (peer, ours)),
            *(agreement(way.likeliest[at], best.likeliest[at]) for way in (peer, ours)),
        )
    work_table = Table("", "seconds", title="this engine alone")
    work_table.add_row("scaler, basis, bfloat16 measurement (serve all folds)", f"{prepared:.2f}")
    work_table.add_row(
        f"these cells: best, median, worst of {len(totals)} turns",
        ", ".join(f"{value:.2f}" for value in (min(totals), statistics.median(totals), max(totals))),
    )
    work_table.add_row(f"all {whole.seconds.size} cells, once, first", f"{whole.seconds.sum():.2f}")
    work_table.add_row("bfloat16 in Hessian products", "yes" if half is not None else "no")
    return [table, work_table]


def walk(path: Path, strengths: Sequence[float], rows: torch.Tensor, fits: list[Fit] | None = None) -> Cells:
    """Down the path; a strength's seconds are spread evenly over its tasks. Predictions are not timed."""
    seconds, objective, likeliest = [], [], []
    for strength in strengths:
        started = time.perf_counter()
        fit = path.advance(strength)  # its objectives lie on the CPU, so it waits for a GPU
        seconds.append(np.full(len(fit.objective), (time.perf_counter() - started) / len(fit.objective)))
        objective.append(fit.objective)
        likeliest.append([logs.argmax(1) for logs in log_probabilities(fit, rows)])
        if fits is not None:
            fits.append(fit)
    return Cells(np.array(seconds), np.array(objective), likeliest)


def peer_cell(x: np.ndarray, y: np.ndarray, strength: float, unseen: np.ndarray) -> tuple[float, float, np.ndarray]:
    """scikit-learn's seconds, objective (float64) and predictions."""
    model = LogisticRegression(C=1 / (strength * len(y)), max_iter=1000)
    started = time.perf_counter()
    model.fit(x, y)
    seconds = time.perf_counter() - started
    coef, intercept = model.coef_.astype("float64"), model.intercept_.astype("float64")
    z = np.concatenate([rows @ coef.T for rows in np.array_split(x, max(1, len(x) // 1000))]) + intercept
    if len(model.classes_) == 2:
        z = np.concatenate([0 * z, z], 1)
    own = z[np.arange(len(y)), np.searchsorted(model.classes_, y)]
    loss = (np.logaddexp.reduce(z, 1) - own).mean()
    return seconds, float(loss + strength / 2 * (coef**2).sum()), model.predict(unseen)


def agreement(ours: list[list[np.ndarray]], best: list[list[np.ndarray]]) -> str:
    shares = [(a == b).mean() for row, other in zip(ours, best, strict=True) for a, b in zip(row, other, strict=True)]
    return f"{np.mean(shares):.2%} ({min(shares):.2%})"


# ---- layer


def layer(settings: Settings, work: Work) -> list[Table]:
    """One layer, once."""
    marks = [("", time.perf_counter())]

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter()))

    basis = Basis.fit(work.x, device=settings.device)
    mark("scaler and basis")
    half = half_copy(basis.train, sum(settings.tasks))
    mark("bfloat16 copy, measured")
    targets = targets_of(settings, work)
    right = np.zeros((len(settings.strengths), len(targets)))
    gap = 0.0
    for pieces, held in fold_pieces(settings):
        path = Path(basis.train, basis.eigenvalues, targets, segments=pieces, half=half)
        for i, strength in enumerate(settings.strengths):
            fit = path.advance(strength)
            gap = max(gap, fit.gap.max())
            logs = log_probabilities(fit, basis.train[held])
            right[i] += [(log.argmax(1) == y[held]).sum() for log, y in zip(logs, work.ys, strict=True)]
    mark(f"{settings.folds} folds x {len(settings.strengths)} strengths, scored")
    choice = right.argmax(0)
    path = Path(basis.train, basis.eigenvalues, targets, half=half)
    rows = basis.rotate(work.x_test)
    accuracy = np.zeros(len(targets))
    for i, strength in enumerate(settings.strengths[: choice.max() + 1]):
        going = np.flatnonzero(choice >= i).tolist()
        fit = path.advance(strength, going)
        gap = max(gap, fit.gap.max())
        for task, log in zip(going, log_probabilities(fit, rows), strict=True):
            accuracy[task] = (log.argmax(1) == work.ys_test[task]).mean()  # stays as of the last, chosen strength
    mark("refit to the chosen strengths, test")
    chosen = ", ".join(f"{settings.strengths[i]:g}" for i in choice)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    table = Table(
        "",
        "seconds",
        title="one layer end to end",
        caption=f"strengths chosen: {chosen}; test accuracy: {', '.join(f'{value:.3f}' for value in accuracy)}; "
        f"largest certified gap {gap:.0e}; peak memory of this process {peak:.2f} GiB",
    )
    for (_, before), (name, after) in zip(marks[:-1], marks[1:], strict=True):
        table.add_row(name, f"{after - before:.2f}")
    table.add_row("all", f"{marks[-1][1] - marks[0][1]:.2f}")
    return [table]


# ---- probekit


def probekit(settings: Settings, work: Work) -> list[Table]:
    """Both engines on the cells of two classes of the last fold, strength by strength."""
    from probekit.fitters.batch.logistic import fit_logistic_batch

    basis = Basis.fit(work.x, device=settings.device)
    pieces, _ = fold_pieces(settings)[-1]
    mine = [target for target in targets_of(settings, work) if target.classes == 2]
    half = half_copy(basis.train, len(mine))
    mean, factor = (part.astype("float32") for part in basis.scaler)
    train = np.concatenate([(work.x[piece].astype("float32") - mean) * factor for piece in pieces])
    ys = [np.concatenate([target.y[piece] for piece in pieces]) for target in mine]
    x, y = torch.tensor(train).expand(len(mine), -1, -1), torch.tensor(np.array(ys))
    exact = Path(basis.train.double(), basis.eigenvalues.double(), mine, segments=pieces, tolerance=1e-11)
    path = Path(basis.train, basis.eigenvalues, mine, segments=pieces, half=half)
    table = Table(
        "strength",
        "probekit s",
        "this engine s",
        "ratio",
        "gap, probekit",
        "gap, this engine",
        title=f"{len(mine)} tasks of two classes, one fold, {len(train)} x {settings.width}",
    )
    for strength in settings.peer_strengths or settings.strengths:
        started = time.perf_counter()
        fitted = fit_logistic_batch(x, y, c_param=1 / (strength * len(train)), normalize=False)
        seconds = time.perf_counter() - started
        weights, biases = (part.double().numpy() for part in fitted.to_tensor())
        started = time.perf_counter()
        fit = path.advance(strength)
        own = time.perf_counter() - started
        best = exact.advance(strength).objective
        theirs = []
        for w, bias, truth in zip(weights, biases, ys, strict=True):
            z = train @ w + bias
            theirs.append((np.logaddexp(0, z) - truth * z).mean() + strength / 2 * (w**2).sum())
        table.add_row(
            f"{strength:g}",
            f"{seconds:.2f}",
            f"{own:.3f}",
            f"{seconds / own:.1f} x",
            *(f"{(found / best - 1).max():.1e}" for found in (np.array(theirs), fit.objective)),
        )
    return [table]


if __name__ == "__main__":
    sys.exit(command.main("python -m benchmarks.probes", Settings, main, None, interrupted="nothing was kept"))
