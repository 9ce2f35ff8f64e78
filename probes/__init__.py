"""Linear probes of a run, and what they say. `probes.load` gives fitted ones back, see `probes.weights`."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "load":  # not at import: commands that only parse need no numpy
        from probes.weights import load

        return load
    raise AttributeError(f"module 'probes' has no attribute {name!r}")
