"""Linear probes of a run, and what they say. `probes.load` gives fitted ones back, see `probes.weights`;
`probes.Eraser` takes a label out of features, see `probes.erasure`.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # Not at import: commands that only parse need no numpy.
    if name == "load":
        from htc_probe.probes.files.weights import load

        return load
    if name == "Eraser":
        from htc_probe.probes.solvers.erasure import Eraser

        return Eraser
    raise AttributeError(f"module 'probes' has no attribute {name!r}")
