"""`htc-probe`: which facts are linearly readable from `<voco>` and from what it was made of.

Parse, call, print. scikit-learn is imported once a run is open, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from extract.errors import UserError


@dataclass(frozen=True)
class ProbeConfig:
    """Fit one linear probe per task and representation (z_voco, v_d, pooled V) of a run, and print the
    scores.
    """

    suites: tyro.conf.Positional[tuple[str, ...]] = ("semantic", "detail")
    """Suites (semantic, detail) or names of single tasks."""
    run: Path | None = None
    """Run file to read; the newest of --runs-folder when left out."""
    runs_folder: Path = Path("runs")
    """Where to look for the newest run."""
    layers: str = ""
    """Layers of z_voco to probe beside the last stored one: "all", or numbers such as 0,2,4."""
    folds: Annotated[int, tyro.conf.arg(metavar="K")] = 5
    """Outer folds; every image is held out once, with its group."""
    seed: int = 0
    """Of the folds and the resamples."""
    out: Path | None = None
    """Result file (.json; a .csv goes beside it); NAME.probes.json next to the run when left out."""
    jobs: int = 0
    """Processes; 0 is one a core."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit status: 0, or 2 for a mistake that the user can mend."""
    config = tyro.cli(ProbeConfig, prog="htc-probe", args=None if argv is None else list(argv))
    try:
        probe(config)
    except UserError as error:
        print(f"htc-probe: {error}", file=sys.stderr)
        return 2
    return 0


def probe(config: ProbeConfig) -> None:
    """Opens the run, probes it, prints the tables and writes the results. Raises UserError."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from extract.store import newest_run, open_run
    from probes import results

    if config.jobs < 0:
        raise UserError(f"--jobs {config.jobs} is negative; use 0 for one process a core")
    path = newest_run(config.runs_folder) if config.run is None else config.run
    out = results.default_path(path) if config.out is None else config.out
    if out.suffix != ".json":
        raise UserError(f"--out {out} must end in .json; the table goes beside it as .csv")
    with open_run(path) as run:
        from probes import suite, table

        plan = suite.plan(run, config.suites, layers=config.layers, folds=config.folds, seed=config.seed)
        console = Console()
        print(f"{path}: {len(run)} images of {run.info.dataset} {run.info.split}, {len(plan.tasks)} tasks")
        bar = Progress(
            TextColumn("fitting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("folds,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
            transient=True,
        )
        with bar:
            at = bar.add_task("", total=plan.fits)
            found = suite.probe(
                run,
                plan,
                seed=config.seed,
                jobs=config.jobs,
                config={name: _plain(value) for name, value in asdict(config).items()},
                on_fit=lambda: bar.advance(at),
            )
    console.print(table.render(found))
    written = results.write(found, out)
    print(f"Wrote {written[0]} and {written[1]}. Look at the run with: htc-dashboard {path}")


def _plain(value: object) -> object:
    """A setting as JSON has it."""
    return str(value) if isinstance(value, Path) else value


if __name__ == "__main__":
    sys.exit(main())
