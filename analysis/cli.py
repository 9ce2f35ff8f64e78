"""`htc-analyze`: where `<voco>` looks, what it takes, and what causes what.

Parse, call, print. torch and h5py are imported once the work starts, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from htc_probe.extract import command
from htc_probe.extract.arguments import Shown
from htc_probe.extract.errors import UserError
from htc_probe.extract.words import counted

if TYPE_CHECKING:
    from htc_probe.analysis.records import Record
    from htc_probe.extract.models import Place
    from htc_probe.extract.store import Run
    from htc_probe.extract.vlm.model import HTCVLM
    from htc_probe.probes.files.results import Results
    from htc_probe.probes.files.weights import Key, Probe

Name = Literal["attention", "reconstruct", "contributions", "knockouts", "interchange", "reading", "map"]
_PACKAGES = ("numpy", "scipy", "torch", "transformers", "umap-learn")
_Progress = Callable[[int, int], object]
"""Is told how much is done, and of how much."""


@dataclass(frozen=True)
class AnalyzeConfig:
    """Ask where <voco> looks (attention), what the codes hold of an image (reconstruct), what <voco> takes
    (contributions), what causes what (knockouts, interchange) and what its one token holds (reading, map).

    Results go to one file beside the run. What is there already is not made again: interrupted, the same command goes
    on with what is missing. attention and map need the run alone; the others run its model again.

    Examples:
        htc-analyze                                # all of the newest run
        htc-analyze attention map --run runs/scenes-val.h5
        htc-analyze attention --against runs/causal-val.h5
    """

    analyses: Annotated[tuple[Name, ...], Shown("ANALYSIS", positional=True)] = ()
    """Any of those above. Left out: all that the run allows."""
    run: Annotated[Path, Shown("FILE|FOLDER")] = Path("runs")
    """Run to read; of a folder, its newest run."""
    against: Path | None = None
    """A second run to compare: attention lays it beside."""
    probes: Path | None = None
    """Probes to follow (.safetensors, by htc-probe).
    Left out: those beside the run."""
    images: int = 200
    """Images: contributions, knockouts, reconstruct."""
    reading_images: int = 1000
    """Images for reading's map of z_voco to patches."""
    pairs: int = 300
    """Mixtures of each kind for interchange."""
    seed: int = 0
    """Of the resamples, the draws and the map."""
    model: Annotated[str | None, Shown("NAME|FOLDER")] = None
    """Where the run's model is now. Left out: where it was."""
    device: Annotated[str | None, Shown("NAME", words=("cpu", "cuda"))] = None
    """cpu, or a GPU such as cuda. Left out: the run's."""
    full: bool = False
    """Print all tables, too."""
    out: Path | None = None
    """Results (.h5). Left out: NAME.analysis.h5 beside it."""


class _Job(NamedTuple):
    """One analysis, with what its result depends on."""

    name: str
    needs_model: bool
    settings: dict[str, Any]


@dataclass
class _Inputs:
    """What analyses work on; the model is loaded once, for the first that needs it."""

    config: AnalyzeConfig
    run: Run
    against: Run | None
    probes: dict[Key, Probe] | None
    place: Place | None = None

    @cached_property
    def model(self) -> HTCVLM:
        from htc_probe.extract import models

        assert self.place is not None
        return models.load_from(self.place)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit status, see `extract.command.main`."""
    interrupted = "the same command goes on with what is not finished"
    return command.main("htc-analyze", AnalyzeConfig, analyze, argv, interrupted=interrupted)


def analyze(config: AnalyzeConfig) -> None:
    """Makes the analyses that are missing, and prints what all of them say. Raises UserError."""
    from rich.console import Console

    from htc_probe.analysis import results, sentences, tables
    from htc_probe.extract.store import newest_run, open_run

    _check(config)
    path = newest_run(config.run)
    out = results.default_path(path) if config.out is None else config.out
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(open_run(path))
        against = None if config.against is None else stack.enter_context(open_run(config.against))
        probes_path, probes = _probes(config, path)
        jobs = _jobs(config, against, probes_path)
        if config.analyses:
            jobs = [job for job in jobs if job.name in config.analyses]
        print(
            f"{path}: {counted(len(run), 'image')} of {run.info.dataset} {run.info.split}, {run.info.model.get('name')}"
        )
        pending = _missing(jobs, out, results.identity(run))
        inputs = _Inputs(config, run, against, probes)
        for job in _possible(inputs, pending, probes_path):
            try:
                _make(job, inputs, out)
            except UserError as error:
                if config.analyses:
                    raise
                print(f"{job.name:<14}left out: {error}", flush=True)
        found, identity = results.read(out), results.identity(run)
        sections, console = found.of(identity), Console()
        if config.full:
            console.print(tables.tables(sections))
        print(f"{out} holds all of this; --full prints its tables.")
        answered = sentences.answers(sections, _scores(probes_path, run), found.outdated(identity))
        console.print(tables.last_words(answered))
    print(f"\nNext: {quote(command.typed('htc-dashboard'))} {quote(str(path))}")


def _check(config: AnalyzeConfig) -> None:
    for name in ("images", "reading_images", "pairs"):
        if getattr(config, name) < 4:
            option = name.replace("_", "-")
            raise UserError(f"--{option} {getattr(config, name)} is too few for an interval; use 4 or more")
    if config.seed < 0:
        raise UserError(f"--seed {config.seed} is negative; use 0 or more")
    if config.out is not None and config.out.suffix != ".h5":
        raise UserError(f"--out {config.out} must end in .h5")


def _probes(config: AnalyzeConfig, run: Path) -> tuple[Path | None, dict[Key, Probe] | None]:
    from htc_probe.probes.files import results, weights

    path = results.weights_path(results.default_path(run)) if config.probes is None else config.probes
    if config.probes is None and not path.is_file():
        return None, None
    return path, weights.load(path)


def _scores(weights: Path | None, run: Run) -> Results | None:
    """What htc-probe wrote beside the probes' weights; None where there is nothing, or it is of another run."""
    from htc_probe.probes.files import results

    if weights is None or not weights.with_suffix(".json").is_file():
        return None
    try:
        scores = results.read(weights.with_suffix(".json"))
    except UserError as error:
        print(f"probes        scores left out: {error}")
        return None
    return scores if scores.run.get("created") == run.created else None


def _jobs(config: AnalyzeConfig, against: Run | None, probes: Path | None) -> list[_Job]:
    """All analyses, in the order in which they are made: first those that answer soon."""
    from htc_probe.analysis import results

    seed = {"seed": config.seed}
    images = {"images": config.images}
    fitted = {"probes": None if probes is None else hashlib.sha256(probes.read_bytes()).hexdigest()}
    beside = None if against is None else results.identity(against)
    return [
        _Job("attention", False, seed | {"against": beside}),
        _Job("reconstruct", True, seed | images),
        _Job("contributions", True, seed | images),
        _Job("knockouts", True, seed | images | fitted),
        _Job("interchange", True, seed | {"pairs": config.pairs} | fitted),
        _Job("reading", True, seed | {"reading_images": config.reading_images} | fitted),
        _Job("map", False, seed),
    ]


def _missing(jobs: Sequence[_Job], out: Path, run: dict[str, Any]) -> list[_Job]:
    """Those that are not in the file as they would be made now; says of the others why."""
    from htc_probe.analysis import results
    from htc_probe.analysis.sections import KINDS

    if not out.exists():
        return list(jobs)
    missing, analysis = [], results.read(out)
    foreign = [name for name, made in analysis.made.items() if not results.same_run(made.run, run)]
    if foreign:
        print(f"{out} holds results of another run ({', '.join(foreign)}); removing them")
    for job in jobs:
        made, version = analysis.made.get(job.name), KINDS[job.name].VERSION
        if made is not None and job.name not in foreign:
            old, new = made.settings, job.settings
            changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
            words = f"was made with other settings ({', '.join(changed)})"
            if made.version != version:
                words = f"was made by another version ({made.version}, now {version})"
            elif made.fits(run, new):
                print(f"{job.name:<14}is there already")
                continue
            print(f"{job.name:<14}{words}; recomputing")
        missing.append(job)
    return missing


def _possible(inputs: _Inputs, pending: Sequence[_Job], probes: Path | None) -> Sequence[_Job]:
    """Finds the model where one is needed, before the first analysis, so that a mistake is told at once. Where nothing
    was asked for by name, what needs a model that is gone is left out.
    """
    from htc_probe.extract import again

    config, need = inputs.config, [job.name for job in pending if job.needs_model]
    if not need:
        return pending
    command.quiet_transformers()
    try:
        inputs.place = again.find_model(inputs.run, model=config.model, device=config.device)
    except UserError as error:
        if not (config.analyses or config.model or config.device):
            print(f"left out      {', '.join(need)}: {error}", flush=True)
            return [job for job in pending if not job.needs_model]
        raise UserError(f"{error} ({', '.join(need)} need it; attention and map do not)") from error
    model, place = inputs.run.info.model, inputs.place
    words = f"{model.get('name')} {model['sha256'][:8]}, {place.dtype} on {place.device}"
    print(f"model         {words}, for {', '.join(need)}")
    follow = [job.name for job in pending if "probes" in job.settings]
    if follow:
        words = f"none beside the run, for {', '.join(follow)}; htc-probe makes them" if probes is None else str(probes)
        print(f"probes        {words}", flush=True)
    return pending


def _make(job: _Job, inputs: _Inputs, out: Path) -> None:
    from htc_probe.analysis import results

    started = time.monotonic()
    unit = {"interchange": "mixtures", "reading": "steps", "map": "maps", "attention": "steps"}.get(job.name, "images")
    with command.progress(job.name, unit) as bar:
        section = _compute(job.name, inputs, bar.reach)
    seconds = time.monotonic() - started
    libraries = {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}
    run = results.identity(inputs.run)
    results.write(out, job.name, section, run=run, settings=job.settings, libraries=libraries, seconds=seconds)
    print(f"{job.name:<14}{seconds:.1f} s", flush=True)


def _compute(name: str, inputs: _Inputs, progress: _Progress) -> Record:
    """Runs an analysis, which alone is imported."""
    config, run, seed = inputs.config, inputs.run, inputs.config.seed
    total = min(config.images, len(run))
    drawn: dict[str, Any] = {"limit": config.images, "seed": seed, "on_images": lambda done: progress(done, total)}
    match name:
        case "attention":
            from htc_probe.analysis.attention import rows

            return rows.analyse(run, inputs.against, seed=seed)
        case "reconstruct":
            from htc_probe.analysis.contents import reconstruction

            return reconstruction.analyse(inputs.model, run, **drawn)
        case "contributions":
            from htc_probe.analysis.attention import updates

            return updates.analyse(inputs.model, run, **drawn)
        case "knockouts":
            from htc_probe.analysis.causes import knockouts

            return knockouts.analyse(inputs.model, run, probes=inputs.probes, **drawn)
        case "interchange":
            from htc_probe.analysis.causes import interchange

            return interchange.analyse(
                inputs.model, run, None, inputs.probes, pairs=config.pairs, seed=seed, progress=progress
            )
        case "reading":
            from htc_probe.analysis.contents import reading
            from htc_probe.extract import again

            assert inputs.place is not None
            tokenizer = again.read_tokenizer(inputs.place)
            return reading.analyse(
                run, inputs.model, inputs.probes, tokenizer, config.reading_images, seed, progress=progress
            )
    from htc_probe.analysis.contents import maps

    return maps.analyse(run, seed, progress=progress)


if __name__ == "__main__":
    sys.exit(main())
