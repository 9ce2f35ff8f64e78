"""All that is compared runs once a round, in turn, so that a busy machine slows it alike. Knows a clock."""

import time
from collections.abc import Callable, Mapping
from typing import Any


def time_rounds(runs: Mapping[Any, Callable[[], float]], rounds: int) -> dict[Any, list[float]]:
    """What each of `runs` measures, once a round, after one round to warm up."""
    names = list(runs)
    found: dict[Any, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names:
            value = runs[name]()
            if number:
                found[name].append(value)
        names = [*names[1:], names[0]]
    return found


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
