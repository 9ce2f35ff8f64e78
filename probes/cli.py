"""`htc-probe`: which facts are linearly readable from `<voco>` and from what it was made of.

Parse, call, print. torch and scikit-learn are imported once a run is open, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from htc_probe.extract import command
from htc_probe.extract.errors import UserError

if TYPE_CHECKING:
    from htc_probe.extract.store import Run
    from htc_probe.probes.study.protocol import Settings


@dataclass(frozen=True)
class ProbeConfig:
    """Fit one linear probe per task and representation of a run, and print what they read: scores with intervals,
    bits, controls, and which differences hold.

    An interrupted command goes on where it was; docs/probing.md says what each number means.
    """

    suites: tyro.conf.Positional[tuple[str, ...]] = ("semantic", "detail")
    """Suites (semantic, detail) or names of single tasks."""
    all: bool = False
    """Every task of the run, whatever its suite."""
    run: Path | None = None
    """Run file to read; the newest of --runs-folder when left out."""
    runs_folder: Path = Path("runs")
    """Where to look for the newest run."""
    train_run: Path | None = None
    """Learn from this run and score on --run, in place of folds of one run."""
    random_run: Path | None = None
    """The same images through the same model with random weights (htc-extract --random-weights): one more floor."""
    layers: str = ""
    """Layers of z_voco to probe beside the last stored one: "all", or numbers such as 0,2,4."""
    representations: tuple[str, ...] = ()
    """What to probe: voco_read (what text reads: states 0 to L - 1 of <voco>), z_voco (its last state, which no text
    reads), v_d, v_d.0 (one anchor), v_pooled, codes, code_bag, pixels, datasets of the run, files (.npy, .npz,
    .safetensors), joins such as v_d+z_voco. When left out: voco_read, z_voco, v_d, v_pooled, what z_voco adds to the
    last two, and pixels."""
    match_dim: Annotated[int | None, tyro.conf.arg(metavar="K")] = None
    """Probe the first K principal directions of every representation (fitted on training folds, not whitened), so that
    none wins by its width."""
    curve: bool = False
    """Also probe from 5, 10, 20 and 40 % of the training images."""
    margin: float = 0.02
    """Of the metric (0.02 is two points of top-1): a representation is said to keep what v_pooled has where it is known
    to score within this margin of it, and to lose where it is known to score lower by more."""
    ceiling: bool = False
    """Also read every task with a hidden layer on top of the linear probe: what there is to be read that a linear probe
    does not reach. Takes several times as long."""
    controls: bool = True
    """Also probe random labels by type: what remembering types alone would score."""
    types: Annotated[str | None, tyro.conf.arg(metavar="TASK")] = None
    """The task whose classes are those types; the semantic one with the most classes when left out."""
    mode: Literal["exact", "guided"] = "exact"
    """exact tries every strength of the grid first; guided, which is faster, those that ridge points at alone. Both go
    on as long as an end of what was tried is the best."""
    folds: Annotated[int, tyro.conf.arg(metavar="K")] = 5
    """Outer folds; every image is held out once, with its group."""
    seed: int = 0
    """Of the folds, the resamples and the controls."""
    out: Path | None = None
    """Result file (.json; .csv and two .safetensors go beside it); NAME.probes.json next to the run when left out."""
    report: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Also write a page with figures and a methods paragraph to DIR."""
    device: str = "cpu"
    """cpu, or a GPU such as cuda."""
    jobs: int = 0
    """Processes; 0 is one a core."""
    memory: Annotated[float, tyro.conf.arg(metavar="GB")] = 8.0
    """What a representation may take while it is probed. Larger ones are read again and again from the run, and one
    fold is held out, so that a million images can be probed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit status, see `extract.command.main`."""
    interrupted = "the same command goes on with what is finished"
    return command.main("htc-probe", ProbeConfig, probe, argv, interrupted=interrupted)


def probe(config: ProbeConfig) -> None:
    """Opens the run, probes it, prints the tables and writes the results. Raises UserError."""
    from rich.console import Console

    from htc_probe.extract.store import newest_run, open_run
    from htc_probe.probes.files import results

    _check(config)
    path = newest_run(config.runs_folder) if config.run is None else config.run
    out = results.default_path(path) if config.out is None else config.out
    if out.suffix != ".json":
        raise UserError(f"--out {out} must end in .json; the table goes beside it as .csv")
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(open_run(path))
        train, random = (
            None if other is None else stack.enter_context(open_run(other))
            for other in (config.train_run, config.random_run)
        )
        from htc_probe.probes.files import predictions, weights
        from htc_probe.probes.show import table
        from htc_probe.probes.study import findings
        from htc_probe.probes.study.plan import make_plan

        plan = make_plan(run, _settings(config, run), train=train, random=random)
        learned = "" if train is None else f", learned from {train.path}"
        print(f"{path}: {len(run)} images of {run.info.dataset} {run.info.split}{learned}, {len(plan.tasks)} tasks")
        keep = out.with_suffix(".partial")
        place = results.predictions_path(out)
        writer = stack.enter_context(predictions.Writer(place, keep, plan.identity, plan.asked(), plan.representations))
        with command.progress("fitting", "folds", total=len(plan.cells)) as bar:
            outcome = findings.probe(
                plan,
                keep=keep,
                config=json.loads(json.dumps(asdict(config), default=str)),
                on_cell=bar.advance,
                on_predictions=writer.add,
            )
        Console().print(table.render(outcome))
        written = [*results.write(outcome, out), writer.finish()]
        if config.match_dim is None:
            written.append(weights.save(findings.refit(plan, outcome), results.weights_path(out)))
        if config.report is not None:
            from htc_probe.probes.show import report  # plotly, which nothing else here needs

            written.append(report.write(outcome, config.report))
        shutil.rmtree(keep, ignore_errors=True)
    print(f"Wrote {', '.join(map(str, written))}. Look at the run with: htc-dashboard {path}")


def _settings(config: ProbeConfig, run: Run) -> Settings:
    """The flags as the study takes them, under the same names but two."""
    from htc_probe.probes.study.protocol import Settings

    alike = [item.name for item in fields(Settings) if item.name not in ("names", "guided")]
    return Settings(
        names=tuple({task.name: None for task in run.tasks}) if config.all else config.suites,
        guided=config.mode == "guided",
        **{name: getattr(config, name) for name in alike},
    )


def _check(config: ProbeConfig) -> None:
    if config.seed < 0:
        raise UserError(f"--seed {config.seed} is negative; use 0 or more")
    if config.jobs < 0:
        raise UserError(f"--jobs {config.jobs} is negative; use 0 for one process a core")
    if config.device != "cpu":
        command.usable_device(config.device)


if __name__ == "__main__":
    sys.exit(main())
