"""What a probe said of images, as one question with one answer an image. Knows arrays; not runs, files or figures.

n images that have a label, K answers.
"""

from typing import NamedTuple

import numpy as np

from htc_probe.extract.store import NUMERIC, UNKNOWN
from htc_probe.probes.files.predictions import Predicted
from htc_probe.probes.inputs import circular


class Answers(NamedTuple):
    """Of one probe to one question."""

    rows: np.ndarray
    """(n,) rows of the run, ascending."""
    true: np.ndarray
    """(n,) the true answer's number, or the true value."""
    said: np.ndarray
    """(n,) the same as the probe said."""
    sure: np.ndarray | None
    """(n,) the probability that the probe gave to what it said; None for numbers."""
    names: tuple[str, ...]
    """Of the answers; () for numbers and circular values."""
    period: float = 0.0
    """Of a circular value, in its unit."""

    def among(self, rows: np.ndarray) -> "Answers":
        """Of these images alone."""
        here = np.isin(self.rows, rows)
        sure = None if self.sure is None else self.sure[here]
        return self._replace(rows=self.rows[here], true=self.true[here], said=self.said[here], sure=sure)

    def counts(self) -> np.ndarray:
        """(K, K) images by true answer (row) and by what was said (column)."""
        counts_KK = np.zeros((len(self.names), len(self.names)), int)
        np.add.at(counts_KK, (self.true, self.said), 1)
        return counts_KK

    def cell(self, true: int, said: int) -> np.ndarray:
        """Which of the n are called `said` and are `true`; the surest first."""
        return self._surest((self.true == true) & (self.said == said))

    @property
    def error(self) -> np.ndarray:
        """(n,) what was said minus what is true, of circular values the short way round."""
        return circular.difference(self.said, self.true, self.period) if self.period else self.said - self.true

    def wrong(self) -> np.ndarray:
        """Which of the n the probe gets wrong, the surest first; of numbers all, the largest error first."""
        if self.sure is None:
            return np.argsort(-np.abs(self.error), kind="stable")
        return self._surest(self.said != self.true)

    def _surest(self, which: np.ndarray) -> np.ndarray:
        assert self.sure is not None
        at = np.flatnonzero(which)
        return at[np.argsort(-self.sure[at], kind="stable")]


def of(predicted: Predicted, label: int = 0) -> Answers:
    """`label`: of a multi-label task, the one that is asked about: no (0) or yes (1)."""
    y, said, sure = predicted.y, predicted.said, predicted.sure
    if predicted.kind != "multilabel":
        return Answers(predicted.rows, y, said, sure, predicted.classes, predicted.period)
    assert sure is not None
    known = y[:, label] != UNKNOWN
    yes, p = said[known, label], sure[known, label]
    name = predicted.classes[label]
    true, sure = y[known, label].astype(int), np.where(yes, p, 1 - p)
    return Answers(predicted.rows[known], true, yes.astype(int), sure, (f"no {name}", name))


class Answer(NamedTuple):
    """What a probe said of one image."""

    true: str
    said: str
    wrong: bool


def of_image(predicted: Predicted, row: int) -> Answer | None:
    """In words; None for an image that was not scored. A number or circular value is never called wrong."""
    at = int(np.searchsorted(predicted.rows, row))
    if at == len(predicted.rows) or predicted.rows[at] != row:
        return None
    y, said, sure = predicted.y[at], predicted.said[at], predicted.sure
    if predicted.kind in NUMERIC:
        return Answer(f"{y:.4g}", f"{said:.4g}", False)
    assert sure is not None
    if predicted.kind == "classes":
        return Answer(predicted.classes[y], f"{predicted.classes[said]} {sure[at]:.2f}", bool(y != said))
    true = ", ".join(name for name, flag in zip(predicted.classes, y, strict=True) if flag == 1)
    told = zip(predicted.classes, said, sure[at], strict=True)
    words = ", ".join(f"{name} {p:.2f}" for name, yes, p in told if yes)
    return Answer(true or "none", words or "none", bool(((y != said) & (y != UNKNOWN)).any()))
