"""Sources that are tables over image files: what the readers of official data sets share. Knows files; no data set.

A reader parses its annotation files into a list of `Picture` and one `Labels` a task (see `labels`), and hands them
to `FileSource`.
"""

import os
import re
import stat
import warnings
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

from htc_probe.extract.data.labels import Labels
from htc_probe.extract.data.source import ImageError, Item
from htc_probe.extract.data.tables import refuse_repeated
from htc_probe.extract.errors import UserError

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # Pillow's others include programs, such as PostScript
_MOST_SIDE = 65_535  # pixels, the most that a JPEG can have; Pillow limits the pixels in all, but not a side


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
    size: tuple[float, float] | None = None
    """Width and height in pixels of the upright image that the annotations were made on; None where they do not say
    it. A file of another size is that image only where both sides differ by one factor; a box is scaled by it."""
    reach: tuple[float, float] | None = None
    """How far right and down a position lies that a label was made from, in pixels; None without one. A file that
    ends before it is another image, see `beyond`."""


class FileSource:
    """Pictures with their labels, as a data source (`extract.data.source.Source`), in the official order.

    `labels` may hold None for tasks that no image has labels of. `limit` takes that many, see `spread`. Raises
    UserError where there is no picture, or two have one id.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self, name: str, split: str, pictures: Sequence[Picture], labels: Iterable[Labels | None], limit: int | None
    ) -> None:
        if not pictures:
            raise UserError(f"{name} has no image in its split {split!r}")
        known = [made for made in labels if made is not None]
        for task, values in known:
            assert len(values) == len(pictures), f"{task.name}: {len(values)} labels for {len(pictures)} pictures"
        refuse_repeated((picture.id for picture in pictures), "id", f"{name}, split {split}")
        self.name, self.split = name, split
        self.tasks = tuple(task for task, _ in known)
        self._labels = {task.name: values for task, values in known}
        self._pictures = pictures
        self._chosen = spread(len(pictures), limit)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Item:
        """The item, its image upright and RGB. Raises ImageError for a file that is missing or no whole image, and for
        one that its annotations cannot have been made on.
        """
        index = self._chosen[index]
        picture = self._pictures[index]
        path = printable(str(picture.path))
        image = self._image(index)
        box = picture.box
        if picture.size is not None:
            across, down = scale(image.size, picture.size, path)
            box = box and (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
        if picture.reach is not None and beyond(image.size, picture.reach):
            right, bottom = picture.reach
            raise ImageError(
                path,
                f"its annotations reach to ({right:g}, {bottom:g}) and the upright file has "
                f"{image.width} x {image.height} pixels; use the official file, or one that was not resized",
            )
        if box is not None:
            image = _cut(image, box, path)
        labels = {name: values[index] for name, values in self._labels.items()}
        return Item(picture.id, path, picture.group, image, labels)

    def labels(self) -> dict[str, np.ndarray]:
        """See `Tabled`."""
        return {name: values[self._chosen] for name, values in self._labels.items()}

    def _image(self, index: int) -> Image.Image:
        return read_image(str(self._pictures[index].path))


def spread(count: int, limit: int | None) -> list[int]:
    """Which of `count` items a limit takes (None: all): evenly spread, because lists are often sorted by class and
    the first of them would show one class.
    """
    n = count if limit is None else min(limit, count)
    return [i * count // n for i in range(n)]


def scale(file: tuple[int, int], annotated: tuple[float, float], path: str) -> tuple[float, float]:
    """By how much the `file` is wider and higher than the image that was `annotated`; both are (width, height).

    Raises ImageError where no one factor makes both sides, each to less than a pixel: the file was then stretched, cut
    or turned.
    """
    least = max((side - 1) / of for side, of in zip(file, annotated, strict=True))
    most = min((side + 1) / of for side, of in zip(file, annotated, strict=True))
    if least >= most:
        raise ImageError(
            path,
            f"annotated as an image of {annotated[0]:g} x {annotated[1]:g} pixels, and the upright file has {file[0]} "
            f"x {file[1]}: no one factor scales both sides; use the file that was annotated, or one scaled as a whole",
        )
    return file[0] / annotated[0], file[1] / annotated[1]


def beyond(size: tuple[int, int], reach: tuple[float, float]) -> bool:
    """Whether positions that reach so far lie outside of an image of `size`, more than annotators' hands explain."""
    return any(far > 1.05 * side for far, side in zip(reach, size, strict=True))


def _cut(image: Image.Image, box: tuple[float, float, float, float], path: str) -> Image.Image:
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


def printable(text: str) -> str:
    """`text` on one line that any file can hold: control characters, and bytes of a file's name that are no UTF-8
    (Python's surrogates), as they are written in a Python string: caf\\udce9.jpg.
    """
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", lambda match: match[0].encode("unicode_escape").decode(), text)


def read_image(path: str, content: bytes | None = None) -> Image.Image:
    """An RGB image of 8 bits, turned as its EXIF says; of an animation the first frame.

    `content` is the file's, where it does not lie at `path` itself. The content decides about the format, not the
    name. 16 bits are scaled to 8. Transparency is left out, as CLIP's and LLaVA's own loaders do, so that the colour
    stored under it shows; so are ICC profiles.

    Raises ImageError for all that is no whole image, values of 32 bits (what is white in them is not said), and more
    than Pillow's limit of 178,956,970 pixels or MOST_SIDE a side, which is told before any is decoded.
    """
    try:
        if content is None and not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise _Refused("a folder, not a file" if os.path.isdir(path) else "a device, pipe or socket, not a file")
        file = path if content is None else BytesIO(content)
        # Pillow's warnings are about large images and odd metadata, which harm no pixel.
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=_FORMATS) as image:
            return _upright_rgb(image)
    except Exception as error:  # Pillow's decoders meet damaged files with all kinds of exceptions
        raise ImageError(printable(path), _why(error, path, content)) from error


class _Refused(Exception):
    """Why an image is not read, in words."""


def _upright_rgb(image: Image.Image) -> Image.Image:
    if max(image.size) > _MOST_SIDE:
        raise _Refused(f"{image.width} x {image.height} pixels; expected at most {_MOST_SIDE} a side: cut or scale it")
    if image.mode in ("I", "F"):
        raise _Refused(f"values of Pillow's mode {image.mode}, in which no value is white; save it with 8 or 16 bits")
    ImageOps.exif_transpose(image, in_place=True)
    if not image.mode.startswith("I;16"):
        return image.convert("RGB")
    # convert() would clip instead of scale: nearly everything white.
    tags = getattr(image, "tag_v2", {})
    grey = (np.asarray(image) >> (tags.get(BITSPERSAMPLE, (16,))[0] - 8)).astype(np.uint8)
    white_is_zero = tags.get(PHOTOMETRIC_INTERPRETATION) == 0  # Pillow heeds it in 8 bits only
    return Image.fromarray(255 - grey if white_is_zero else grey).convert("RGB")


def _why(error: Exception, path: str, content: bytes | None) -> str:
    """What is wrong with an image whose reading failed, on one line."""
    match error:
        case _Refused():
            return str(error)
        case FileNotFoundError():
            return "a link to a file that is not there" if os.path.islink(path) else "there is no such file"
        case UnidentifiedImageError():
            if (os.path.getsize(path) if content is None else len(content)) == 0:
                return "the file is empty"
            return f"not an image of a format that is read ({', '.join(_FORMATS)}), or damaged at its start"
        case Image.DecompressionBombError():
            return "more than 178,956,970 pixels, perhaps a decompression bomb; scale it down"
    system = error.strerror if isinstance(error, OSError) else None
    return f"damaged or unreadable ({printable(system or str(error) or type(error).__name__)})"
