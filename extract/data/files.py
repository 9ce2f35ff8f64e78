"""Sources that are tables over image files: what the readers of official data sets share. Knows files; no data set.

A reader parses its annotation files into a list of `Picture` and one `Labels` a task (see `labels`), and hands them
to `FileSource`.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from extract.data.labels import Labels
from extract.data.source import ImageError, Item
from extract.errors import UserError


class Picture(NamedTuple):
    """One image of a data set before it is opened."""

    id: str
    """Unique within the split."""
    path: Path
    group: str
    """What must not be split between train and test; DATASET/IMAGE of the image the pixels come from, so that data
    sets built on the same images agree on it."""
    box: tuple[float, float, float, float] | None = None
    """Cut out before anything else: left, top, right, bottom in pixels; what lies outside the image is left out."""


class FileSource:
    """Pictures with their labels, as a data source (`extract.data.source.Source`), in the official order.

    `limit` takes that many, see `spread`. Raises UserError where there is no picture.
    """

    def __init__(
        self, name: str, split: str, pictures: Sequence[Picture], labels: Sequence[Labels], *, limit: int | None = None
    ) -> None:
        if not pictures:
            raise UserError(f"{name} has no image in its split {split!r}")
        for task, values in labels:
            assert len(values) == len(pictures), f"{task.name}: {len(values)} labels for {len(pictures)} pictures"
        self.name, self.split = name, split
        self.tasks = tuple(task for task, _ in labels)
        self._labels = {task.name: values for task, values in labels}
        self._pictures = pictures
        self._chosen = spread(len(pictures), limit)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Item:
        """The item, its image upright and RGB. Raises ImageError for a file that is missing or no whole image."""
        index = self._chosen[index]
        at = self._pictures[index]
        image = read_image(str(at.path))
        if at.box is not None:
            image = cut(image, at.box, str(at.path))
        labels = {name: values[index] for name, values in self._labels.items()}
        return Item(at.id, str(at.path), at.group, image, labels)


def spread(count: int, limit: int | None) -> list[int]:
    """Which of `count` items a limit takes (None: all): evenly spread, because lists are often sorted by class and
    the first of them would show one class.
    """
    n = count if limit is None else min(limit, count)
    return [i * count // n for i in range(n)]


def cut(image: Image.Image, box: tuple[float, float, float, float], path: str) -> Image.Image:
    """The part of `image` within `box`, in whole pixels. Raises ImageError where nothing is left."""
    left, top = (max(0, int(np.floor(side))) for side in box[:2])
    right, bottom = min(image.width, int(np.ceil(box[2]))), min(image.height, int(np.ceil(box[3])))
    if left >= right or top >= bottom:
        raise ImageError(path, f"its box {tuple(box)} lies outside the image of {image.width} x {image.height} pixels")
    return image.crop((left, top, right, bottom))


def require(data: str, root: Path, *files: str) -> None:
    """Raises UserError that names what is missing of the official `files` (or folders) below `root`."""
    missing = [file for file in files if not (root / file).exists()]
    if missing:
        raise UserError(
            f"{root} is not a complete {data}: it has no {', no '.join(missing)} (looked for {', '.join(files)})"
        )


def refuse_split(data: str, split: str, splits: Sequence[str]) -> UserError:
    """The error for a split that the data set does not have."""
    return UserError(f"{data} has no split {split!r}; its splits: {', '.join(splits)}")


def read_image(path: str, content: bytes | None = None) -> Image.Image:
    """An RGB image, turned as its EXIF says; of an animation the first frame, of a 16-bit image the upper 8 bits.

    `content` is the file's, where it does not lie at `path` itself. Raises ImageError.
    """
    try:
        with Image.open(path if content is None else BytesIO(content)) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # convert() would clip instead of scale: nearly everything white
                return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8)).convert("RGB")
            return upright.convert("RGB")
    except FileNotFoundError:
        raise ImageError(path, "there is no such file") from None
    except UnidentifiedImageError:
        empty = (Path(path).stat().st_size if content is None else len(content)) == 0
        raise ImageError(path, "the file is empty" if empty else "not an image that Pillow can read") from None
    except Exception as error:  # Pillow's decoders meet damaged files with all kinds of exceptions
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ImageError(path, f"damaged or unreadable ({reason})") from error
