"""What every data source gives: images with an id, a group and labels. Knows no model and no folder layout."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from htc_probe.extract.store import Task


class Item(NamedTuple):
    """One image. `group` names what must not be split between train and test. `labels` holds, by task name, an int
    class (-1 unknown), a float (NaN unknown) or a (C,) u8 multi-label row (255 unknown)."""

    id: str
    path: str
    group: str
    image: Image.Image
    labels: dict[str, int | float | np.ndarray]


class ImageError(Exception):
    """An image that cannot be used: missing, truncated, or not an image."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class Source(Protocol):
    """A split of a data set: a sequence of items with the tasks that their labels answer."""

    name: str
    split: str
    tasks: tuple[Task, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item:
        """The item, with an RGB image. Raises ImageError when its image cannot be read."""
        ...


@runtime_checkable
class Tabled(Source, Protocol):
    """A source whose labels stand in files, so that all are known before an image is read."""

    notes: tuple[str, ...]
    """What whoever starts a run should know of the data: what was left out, or read in a way of its own."""

    def labels(self) -> dict[str, np.ndarray]:
        """By task, the labels of all items in their order, as in `Item.labels`."""
        ...
