"""Linear probes of a run, and what they say. `probes.verdict` says what survived in the one token; `probes.load` gives
fitted probes back; `probes.frame` is a pandas frame of images, labels and what a probe says; `probes.Eraser` takes a
label out of features; `LogisticProbe`, `MultilabelProbe` and `RidgeProbe` are scikit-learn estimators.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "verdict": "show.verdict",
    "load": "files.weights",
    "frame": "files.frames",
    "Eraser": "solvers.erasure",
    "LogisticProbe": "solvers.estimators",
    "MultilabelProbe": "solvers.estimators",
    "RidgeProbe": "solvers.estimators",
}


def __getattr__(name: str) -> Any:
    # Not at import: commands that only parse need no numpy.
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
