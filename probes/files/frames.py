"""What a probe says of every image, beside its id and labels, as a pandas frame. Knows runs and predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Task, open_run
from htc_probe.extract.store.frames import columns_of, label_names
from htc_probe.probes.files import predictions
from htc_probe.probes.files.predictions import Predicted
from htc_probe.probes.files.results import default_path, predictions_path

if TYPE_CHECKING:
    import pandas as pd


def frame(path: Path | str, representation: str = "voco_read", layer: int | None = None) -> pd.DataFrame:
    """`run.frame()` of the run at `path`, and a column `TASK said` for every task that was probed: what its probe of
    this representation says of images that it had not seen. Of classes and labels also `TASK sure`, the probability of
    the chosen class, or of each label. Missing where no probe was asked: an image without this label.

    `representation` by the name that htc-probe takes; `layer`: of z_voco, the last that was probed when left out.
    Raises UserError where there is no run or no prediction, where they are of another run, and for a representation
    that was not probed.
    """
    path = Path(path)
    said = predictions.load(predictions_path(default_path(path)))
    with open_run(path) as run:
        if said.run.get("created") != run.created:
            raise UserError(f"the predictions beside {path} are of another run of this name; run htc-probe again")
        table, tasks = run.frame(), run.tasks
    probed = {task for task, _, _ in said}
    if layer is None:
        layer = max((at for _, name, at in said if name == representation and at is not None), default=None)
    columns: dict[str, Any] = {}
    for task in tasks:
        if task.name in probed:
            columns |= _columns(task, said[task.name, representation, layer], len(table))
    return table.assign(**columns)


def _columns(task: Task, one: Predicted, images: int) -> dict[str, Any]:
    if task.kind == "multilabel":  # labels that were too rare for a probe have no column
        task = replace(task, classes=one.classes)
    values, told = task.unknown(images), one.said
    if task.kind == "classes":  # in the run's classes, so that both columns can be compared
        told = np.array([task.classes.index(name) for name in one.classes])[told]
    values[one.rows] = told
    columns = columns_of(task, values, " said")
    if one.sure is not None:
        names = label_names(task) if task.kind == "multilabel" else [task.name]
        sure = np.full((images, len(names)), np.nan)
        sure[one.rows] = one.sure.reshape(len(one.rows), -1)
        columns |= {f"{name} sure": column for name, column in zip(names, sure.T, strict=True)}
    return columns
