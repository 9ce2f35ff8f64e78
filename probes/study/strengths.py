"""Which strengths of the penalty are tried for a task, and which one is taken. Knows costs; not features or fits.

Strengths lie on a ladder of half decades. Of a task, every rung from 10^2 to 10^-4 is tried; then, wherever they lie,
those around the strength that ridge on the labels points at, which sees all of the ladder at once; and then stronger
and weaker ones, as long as an end of what was tried is the best for one of the criteria. The search never ends because
rungs did worse: a label that is read from directions of little variance costs more and more before it costs little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

LADDER = tuple(10.0 ** (power / 2) for power in range(12, -17, -1))
"""Strong to weak, 10^6 to 10^-8. A rung is an index into it."""
FIRST = range(LADDER.index(100.0), LADDER.index(1e-4) + 1)
"""The rungs that are tried of every task."""
_FLAT = {"cross-entropy": 5e-3}
"""Gains that are not worth a fit: bits an image. Of ranks and shares every gain is."""


class Search:
    """The rungs of one task that were tried, and what each cost by every criterion (less is better)."""

    def __init__(self, first: Iterable[int], pointed: Iterable[int] = ()) -> None:
        """`pointed`: rungs to try after the first ones, unless these leave nothing to gain."""
        self._first, self._pointed = sorted(set(first)), set(pointed)
        self.costs: dict[int, Mapping[str, float]] = {}

    def missing(self) -> list[int]:
        """The rungs to try next, strong to weak; none when the best rung of every criterion has both neighbours, or is
        an end that is no better than the rung before it, or an end of the ladder.
        """
        if not self.costs:
            return self._first
        found: set[int] = set()
        for criterion in next(iter(self.costs.values())):
            best = self.best(criterion)
            if self.costs[best][criterion] <= _FLAT.get(criterion, 0.0):
                continue  # no cost is less than 0
            found |= self._pointed
            for there, back in ((best - 1, best + 1), (best + 1, best - 1)):
                beyond = not min(self.costs) <= there <= max(self.costs)
                if 0 <= there < len(LADDER) and not (beyond and self._is_flat(criterion, best, back)):
                    found.add(there)
        return sorted(found - self.costs.keys())

    def best(self, criterion: str) -> int:
        """The rung of the least cost; of equals the strongest."""
        return min(sorted(self.costs), key=lambda rung: self.costs[rung][criterion])

    def at_edge(self, criterion: str) -> bool:
        """The best rung ends the ladder and is better than its neighbour: a still better one may lie outside."""
        best = self.best(criterion)
        back = {0: 1, len(LADDER) - 1: len(LADDER) - 2}.get(best)
        return back is not None and not self._is_flat(criterion, best, back)

    def _is_flat(self, criterion: str, best: int, back: int) -> bool:
        if back not in self.costs:
            return len(self.costs) > 1
        return self.costs[back][criterion] - self.costs[best][criterion] <= _FLAT.get(criterion, 0.0)
