"""What every analysis finds: a record each, and what a file of `htc-analyze` may hold. See `records` for how it is
declared, and for the names of values in the file. Knows no files, runs or models.
"""

from __future__ import annotations

from htc_probe.analysis.records import Record, fields
from htc_probe.analysis.sections.attention import Attention, Contributions, Difference, Differences, Levels, LevelsEach
from htc_probe.analysis.sections.causes import (
    Interchange,
    KnockoutMeans,
    Knockouts,
    LeaveOneOut,
    NumberRows,
    Readouts,
    Shapley,
    TokenGroups,
    Tokens,
    Windows,
)
from htc_probe.analysis.sections.contents import (
    CodeLabels,
    Codes,
    Dimension,
    Lens,
    Map,
    Neighbours,
    Overlaps,
    Patches,
    Reading,
    Reconstruct,
)

__all__ = [
    "Attention",
    "CodeLabels",
    "Codes",
    "Contributions",
    "Difference",
    "Differences",
    "Dimension",
    "Interchange",
    "KINDS",
    "KnockoutMeans",
    "Knockouts",
    "LeaveOneOut",
    "Lens",
    "Levels",
    "LevelsEach",
    "Map",
    "Neighbours",
    "NumberRows",
    "Overlaps",
    "Patches",
    "Reading",
    "Readouts",
    "Reconstruct",
    "Sections",
    "Shapley",
    "TokenGroups",
    "Tokens",
    "Windows",
]


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
