"""What every analysis finds: a record each, and what a file of `htc-analyze` may hold. See `records` for how it is
declared, and for the names of values in the file. Knows no files, runs or models.
"""

from __future__ import annotations

from htc_probe.analysis.records import Record, fields
from htc_probe.analysis.sections.attention import Attention, Contributions
from htc_probe.analysis.sections.causes import Interchange, Knockouts
from htc_probe.analysis.sections.contents import Map, Reading, Reconstruct


class Sections(Record):
    """What was found of a run, by analysis; None where it was not made."""

    attention: Attention | None = None
    reconstruct: Reconstruct | None = None
    contributions: Contributions | None = None
    knockouts: Knockouts | None = None
    interchange: Interchange | None = None
    reading: Reading | None = None
    map: Map | None = None


KINDS: dict[str, type[Record]] = {field.name: field.type for field in fields(Sections)}
"""By analysis."""
