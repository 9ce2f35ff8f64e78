"""What lies beside a run: scores and predictions of htc-probe, findings of htc-analyze, notes; what is not opened.

Knows where they are and whether they are of the run as it is; not what a page makes of them.
"""

from pathlib import Path
from typing import Any

import htc_probe.analysis.results
import htc_probe.dashboards.notes
import htc_probe.probes.files.predictions
from htc_probe.analysis.results import Analysis, Made, same_run
from htc_probe.analysis.sections import Sections
from htc_probe.analysis.sentences import Sentence, answers
from htc_probe.dashboards.data.kept import RunKey, kept, key_of
from htc_probe.dashboards.data.run import Header
from htc_probe.dashboards.notes import Note, notes_path
from htc_probe.dashboards.runs import Refused, inside
from htc_probe.extract.errors import UserError
from htc_probe.probes.files import results


def refused_beside(run: Path) -> list[Refused]:
    """What of htc-probe and htc-analyze lies beside the run and is not opened, and why."""
    paths = [path for path in (*_beside(run), notes_path(run)) if path.exists() or path.is_symlink()]
    return [Refused(path, reason) for path in paths if (reason := _why_refused(path, run.parent))]


def _why_refused(path: Path, folder: Path) -> str:
    """ "" for a file that can be read."""
    if not inside(path, folder):
        return "it is a link that leads out of the folder"
    return _damage(key_of(path)) if path.is_file() else "it is no file"


@kept(64)
def _damage(key: RunKey) -> str:
    try:
        if key.path.endswith(".h5"):
            _analysis(key)
        elif key.path.endswith(".json"):
            probe_results(key)
        elif key.path.endswith(".csv"):
            _notes(key)
        else:
            htc_probe.probes.files.predictions.load(key.path)
    except UserError as error:
        return str(error)
    return ""


def state(run: Path) -> tuple[RunKey | None, ...]:
    """The run's file as it is now, and each of those beside it. Raises UserError where there is no run."""
    return key_of(run), *(key_of(path) if path.is_file() else None for path in _beside(run))


def _beside(run: Path) -> tuple[Path, ...]:
    """Where htc-probe and htc-analyze leave what the pages read."""
    scores = results.default_path(run)
    return scores, results.predictions_path(scores), htc_probe.analysis.results.default_path(run)


def probes_beside(run: Path) -> Path | None:
    """Where `htc-probe` left its results for this run, if it did; never a link that leads away."""
    return _file(results.default_path(run))


def said_beside(run: Path) -> Path | None:
    """Where it left what the probes said of each image; the same."""
    return _file(results.predictions_path(results.default_path(run)))


def _file(path: Path) -> Path | None:
    """`path`, where it is a file of its own folder."""
    return path if path.is_file() and inside(path, path.parent) else None


@kept(16)
def probe_results(key: RunKey) -> results.Results:
    """The results in the file `key`. Raises UserError when it is damaged."""
    return results.read(key.path)


def notes(run: Path) -> dict[str, Note]:
    """Notes and tags by the ids of images; none where `refused_beside` tells of them."""
    path = notes_path(run)
    return _notes(key_of(path)) if path.is_file() and not _why_refused(path, run.parent) else {}


@kept(8)
def _notes(key: RunKey) -> dict[str, Note]:
    return htc_probe.dashboards.notes.read(Path(key.path))


def notes_place(run: Path) -> Path:
    """Where notes of this run are written. Raises UserError where what is there is not read either."""
    path = notes_path(run)
    if (path.exists() or path.is_symlink()) and (why := _why_refused(path, run.parent)):
        raise UserError(f"{path.name} is not written to: {why}")
    return path


def sections(run: Path, header: Header) -> Sections:
    """What `htc-analyze` left beside the run; nothing where it left nothing, or what `refused_beside` tells of. What is
    of an earlier state of the run is left out.
    """
    analysis = _analysis_beside(run)
    return Sections() if analysis is None else _sections(key_of(analysis.path), identity(header), analysis)


@kept(4)
def _sections(key: RunKey, run: dict[str, Any], _analysis: Analysis) -> Sections:
    """Kept with what was read of them: all charts of a page ask for the same arrays, at each click."""
    return _analysis.of(run)


def made(run: Path, header: Header) -> dict[str, Made]:
    """How these sections came about, by analysis."""
    analysis = _analysis_beside(run)
    of_run = identity(header)
    return {} if analysis is None else {name: how for name, how in analysis.made.items() if same_run(how.run, of_run)}


def outdated(run: Path, header: Header) -> frozenset[str]:
    """Analyses of this run that another version of `htc-analyze` made: they are not among `sections`."""
    analysis = _analysis_beside(run)
    return frozenset() if analysis is None else analysis.outdated(identity(header))


def identity(header: Header) -> dict[str, Any]:
    """What tells this state of the run from others, see `analysis.results.same_run`."""
    return {"created": header.created, "sha256": header.info.model.get("sha256")}


def _analysis_beside(run: Path) -> Analysis | None:
    path = htc_probe.analysis.results.default_path(run)
    return None if not path.is_file() or _why_refused(path, run.parent) else _analysis(key_of(path))


@kept(8)
def _analysis(key: RunKey) -> Analysis:
    return htc_probe.analysis.results.read(key.path)


def sentences(run: Path, header: Header) -> dict[str, Sentence | str]:
    """The answers of `htc-analyze`, by question."""
    analysed, scores, old = sections(run, header), _scores(run, header), outdated(run, header)
    times = tuple((name, how.created) for name, how in made(run, header).items())
    key = key_of(htc_probe.analysis.results.default_path(run)) if times else None
    return _sentences(key, times, analysed, scores, old)


def _scores(run: Path, header: Header) -> RunKey | None:
    """The probes' results beside the run; None where they are of an earlier state of it, or cannot be read."""
    path = results.default_path(run)
    if not path.is_file() or _why_refused(path, run.parent):
        return None
    return key if probe_results(key := key_of(path)).run.get("created") == header.created else None


@kept(16)
def _sentences(
    key: RunKey | None, times: tuple[tuple[str, str], ...], _found: Sections, scores: RunKey | None, old: frozenset[str]
) -> dict[str, Sentence | str]:
    probed = None if scores is None else probe_results(scores)
    return answers(_found, probed, old)
