"""What lies beside a run: scores and predictions of htc-probe, findings of htc-analyze; what of it is not opened.

Knows where they are and whether they are of the run as it is; not what a page makes of them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import htc_probe.analysis.results
import htc_probe.analysis.sentences
import htc_probe.probes.files.predictions
from htc_probe.dashboards.data.kept import RunKey, kept, key_of
from htc_probe.dashboards.data.run import Header
from htc_probe.dashboards.runs import Refused, inside
from htc_probe.extract.errors import UserError
from htc_probe.probes.files import results


def refused_beside(run: Path) -> list[Refused]:
    """What of htc-probe and htc-analyze lies beside the run and is not opened, and why."""
    scores = results.default_path(run)
    paths = scores, results.predictions_path(scores), htc_probe.analysis.results.default_path(run)
    there = [path for path in paths if path.exists() or path.is_symlink()]
    return [Refused(path, reason) for path in there if (reason := _why_refused(path, run.parent))]


def _why_refused(path: Path, folder: Path) -> str:
    """ "" for a file that can be read."""
    if not inside(path, folder):
        return "it is a link that leads out of the folder"
    return _damage(key_of(path)) if path.is_file() else "it is no file"


@kept(64)
def _damage(key: RunKey) -> str:
    try:
        if key.path.endswith(".h5"):
            htc_probe.analysis.results.read(key.path).close()
        elif key.path.endswith(".json"):
            probe_results(key)
        else:
            htc_probe.probes.files.predictions.load(key.path)
    except UserError as error:
        return str(error)
    return ""


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


class MissingValue(UserError, KeyError):
    """A section lacks what htc-analyze makes now."""

    __str__ = Exception.__str__  # KeyError's would put quotation marks around it


class Section(Mapping[str, Any]):
    """What one analysis found; each value is read when it is asked for, and kept. Made by `sections`."""

    def __init__(self, key: RunKey, found: htc_probe.analysis.results.Section) -> None:
        self.name, self.settings, self.created = found.name, found.settings, found.created
        self._key, self._names = key, found.keys()

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise MissingValue(
                f"{Path(self._key.path).name} has no {name!r} in {self.name}: another htc-analyze made it; remove the "
                "file and run htc-analyze again"
            )
        return _analysis_value(self._key, self.name, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def sections(run: Path, header: Header) -> dict[str, Section]:
    """What `htc-analyze` left beside the run, by analysis; {} where it left nothing, or what `refused_beside` tells of.
    Those of an earlier state of the run are left out.
    """
    path = htc_probe.analysis.results.default_path(run)
    if not path.is_file() or _why_refused(path, run.parent):
        return {}
    of_run = {"created": header.created, "sha256": header.info.model.get("sha256")}
    found = _sections(key_of(path))
    return {name: section for name, (section, of) in found.items() if htc_probe.analysis.results.same_run(of, of_run)}


@kept(8)
def _sections(key: RunKey) -> dict[str, tuple[Section, dict[str, Any]]]:
    with htc_probe.analysis.results.read(key.path) as found:
        return {name: (Section(key, found[name]), found[name].run) for name in found.sections()}


@kept(512)
def _analysis_value(key: RunKey, section: str, name: str) -> Any:
    with htc_probe.analysis.results.read(key.path) as found:
        value = found[section][name]
    if isinstance(value, np.ndarray):
        value.flags.writeable = False
    return value


def sentences(run: Path, header: Header) -> list[htc_probe.analysis.sentences.Sentence | str]:
    """The five of `htc-analyze`, and what a linear map tells of the patches; of what was not analysed or probed, how to
    do that.
    """
    found, scores = sections(run, header), _scores(run, header)
    made = tuple((name, section.created) for name, section in found.items())
    return _sentences(key_of(htc_probe.analysis.results.default_path(run)) if found else None, made, found, scores)


def _scores(run: Path, header: Header) -> RunKey | None:
    """The probes' results beside the run; None where they are of an earlier state of it, or cannot be read."""
    path = results.default_path(run)
    if not path.is_file() or _why_refused(path, run.parent):
        return None
    return key if probe_results(key := key_of(path)).run.get("created") == header.created else None


@kept(16)
def _sentences(
    key: RunKey | None, made: tuple[tuple[str, str], ...], _found: Mapping[str, Section], scores: RunKey | None
) -> list[htc_probe.analysis.sentences.Sentence | str]:
    probed = None if scores is None else probe_results(scores)
    return [*htc_probe.analysis.sentences.sentences(_found, probed), htc_probe.analysis.sentences.patches(_found)]
