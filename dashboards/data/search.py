"""Images found by words in their id or labels. Knows runs; not the page."""

from collections.abc import Sequence

import numpy as np

from htc_probe.dashboards.data.kept import RunKey, kept
from htc_probe.dashboards.data.run import header, label_text, labels
from htc_probe.extract.store import NUMERIC, Task


@kept(16)
def matching(key: RunKey, text: str) -> tuple[int, ...]:
    """Rows of the images that `text` finds, ascending. A whole id finds that image alone. Otherwise each word must be
    in an image's id or in one of its labels in words, and after `task:` all words up to a comma in the label of that
    task; large and small letters are one. "" finds nothing.
    """
    text = " ".join(text.split())
    ids, tasks, of_task = header(key).ids, header(key).tasks, labels(key)
    if text in ids:
        return (ids.index(text),)
    lower = [name.lower() for name in ids]
    named = {task.name.lower(): task for task in tasks}
    found_N = np.full(len(ids), bool(text))
    for part in text.lower().split(","):
        before, colon, after = part.partition(":")
        if colon and (task := named.get(before.strip())):
            found_N &= _labelled(task, of_task[task.name], after.split())
            continue
        for word in part.split():
            found_N &= np.any(
                [
                    np.array([word in name for name in lower]),
                    # a word such as 0.3 would be in most numbers
                    *(_labelled(task, of_task[task.name], [word]) for task in tasks if task.kind not in NUMERIC),
                ],
                axis=0,
            )
    return tuple(np.flatnonzero(found_N).tolist())


def _labelled(task: Task, values: np.ndarray, words: Sequence[str]) -> np.ndarray:
    """(N,) whether a label has all words, in small letters. values: (N,), or (N, classes) of several labels."""
    each, of_N = np.unique(values, axis=0, return_inverse=True)
    told = [label_text(task, value).lower() for value in each]
    return np.array([all(word in text for word in words) for text in told])[of_N]
