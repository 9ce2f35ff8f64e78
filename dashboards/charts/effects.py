"""What charts of knock-outs share: what is affected, by name, and where an image is in the sample."""

from htc_probe.analysis.sections import Knockouts
from htc_probe.dashboards.charts.source import Source
from htc_probe.extract.errors import UserError

Z, ANSWERS, PROBES = "z_voco", "the true answers", "the probes"


def knocked(of: Source) -> Knockouts:
    return of.analysed(of.sections.knockouts, "knockouts")


def place(of: Source, knockouts: Knockouts, image: int | str | None) -> int | None:
    """The number of an image in the sample; None where it is not in it, or is None."""
    name = None if image is None else of.header.ids[of.row(image)]
    return knockouts.images.index(name) if name in knockouts.images else None


def number_of(name: str, names: list[str], what: str) -> int:
    """Where `name` is among `names`. Raises UserError where it is not."""
    if name not in names:
        raise UserError(f"{name!r} is no {what} of this run; expected one of {', '.join(names) or 'none'}")
    return names.index(name)
