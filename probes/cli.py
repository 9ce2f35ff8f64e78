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

from htc_probe.extract import command
from htc_probe.extract.arguments import Shown
from htc_probe.extract.errors import UserError
from htc_probe.extract.words import counted

if TYPE_CHECKING:
    from htc_probe.extract.store import Run
    from htc_probe.probes.study.protocol import Settings

_REPRESENTATIONS = ("voco_read", "z_voco", "v_d", "v_pooled", "codes", "code_bag", "pixels")


@dataclass(frozen=True)
class ProbeConfig:
    """Ask what can be read linearly from <voco>'s one token: fit one probe for each task and representation of a run,
    and write scores with intervals, their floors and what survived.

    Interrupted, the same command goes on where it was. docs/probing.md says what each number means.

    Examples:
        htc-probe                                # the newest run in runs/
        htc-probe semantic --run runs/scenes-val.h5
        htc-probe category count --representations z_voco v_pooled --folds 10
    """

    suites: Annotated[tuple[str, ...], Shown("SUITE", words=("semantic", "detail"), positional=True)] = (
        "semantic",
        "detail",
    )
    """semantic, detail, or names of single tasks."""
    all: bool = False
    """Every task of the run, whatever its suite."""
    run: Annotated[Path, Shown("FILE|FOLDER")] = Path("runs")
    """Run to probe; of a folder, its newest run."""
    train_run: Path | None = None
    """Learn from this run and score on --run: no folds."""
    random_run: Path | None = None
    """Run of the same images and a model of random weights.
    It gives one more floor to beat."""
    layers: str = ""
    """Probe z_voco also at these layers: all, or 0,2,4."""
    representations: Annotated[tuple[str, ...], Shown("NAME", words=_REPRESENTATIONS)] = ()
    """voco_read, z_voco, v_d, v_d.0, v_pooled, codes, pixels,
    datasets of the run, files, joins such as v_d+z_voco."""
    match_dim: Annotated[int | None, Shown("K")] = None
    """Probe only the first K principal directions of each,
    so that none wins by its width."""
    curve: bool = False
    """Probe also from 5, 10, 20 and 40% of the images."""
    margin: float = 0.02
    """Largest loss against pooled V that counts as kept.
    0.02 is two points of top-1."""
    ceiling: bool = False
    """Probe also with a hidden layer: what linear ones miss.
    Takes several times as long."""
    controls: bool = True
    """Probe random labels by type, too:
    what remembering types alone would score."""
    types: Annotated[str | None, Shown("TASK")] = None
    """Task whose classes are those types.
    Left out: the semantic one with the most classes."""
    mode: Literal["exact", "guided"] = "exact"
    """exact: try all strengths.
    guided: only those near ridge's best, which is faster."""
    folds: Annotated[int, Shown("K")] = 5
    """Every image is held out once, with its group."""
    seed: int = 0
    """Of the folds, the resamples and the controls."""
    out: Path | None = None
    """Results (.json; .csv and .safetensors go beside it).
    Left out: NAME.probes.json beside the run."""
    full: bool = False
    """Print all tables, and warnings in full."""
    report: Annotated[Path | None, Shown("FOLDER")] = None
    """Write a page with figures and methods there, too."""
    device: Annotated[str, Shown("NAME", words=("cpu", "cuda"))] = "cpu"
    """cpu, or a GPU such as cuda."""
    jobs: int = 0
    """Processes; 0 is one a core."""
    memory: Annotated[float, Shown("GB")] = 8.0
    """Most that one representation may take in memory.
    Larger ones are read from the run again and again."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit status, see `extract.command.main`."""
    interrupted = "the same command goes on with what is finished"
    return command.main("htc-probe", ProbeConfig, probe, argv, interrupted=interrupted)


def probe(config: ProbeConfig) -> None:
    """Opens the run, probes it, writes the results and prints them, the verdict last. Raises UserError."""
    from rich.console import Console

    from htc_probe.extract.store import newest_run, open_run
    from htc_probe.probes.files import results

    _check(config)
    path = newest_run(config.run)
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
        from htc_probe.probes.show import brief, table, verdict
        from htc_probe.probes.study import findings
        from htc_probe.probes.study.plan import make_plan

        plan = make_plan(run, _settings(config, run), train=train, random=random)
        learned = "" if train is None else f", learned from {train.path}"
        images, tasks = counted(len(run), "image"), counted(len(plan.tasks), "task")
        print(f"{path}: {images} of {run.info.dataset} {run.info.split}{learned}, {tasks}")
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
        written = [*results.write(outcome, out), writer.finish()]
        if config.match_dim is None:
            written.append(weights.save(findings.refit(plan, outcome), results.weights_path(out)))
        told = f"Wrote {out} and {counted(len(written) - 1, 'file')} beside it"
        if config.report is not None:
            from htc_probe.probes.show import report  # plotly, which nothing else here needs

            told += f", and {report.write(outcome, config.report)}"
        shutil.rmtree(keep, ignore_errors=True)
    console = Console()
    console.print(table.render(outcome) if config.full else brief.render(outcome))
    print(f"{told}.")
    for line, broken in brief.last_words(verdict.of(outcome, path)):
        console.print(line, soft_wrap=not broken)


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
