"""3D Shapes in its official file. Knows that HDF5 file; no model.

    ROOT/3dshapes.h5    images (480000, 64, 64, 3) u8; labels (480000, 6) f8: floor hue, wall hue, object hue, scale,
                        shape, orientation

Every combination of factors is there exactly once, so held-out rows would hold nothing out: a test image's twins that
differ in one factor are all in training. Therefore whole combinations are held out: a split, and within it a group,
has every image of its combinations of the three hues. Of the 1,000, val and test have 200 each, drawn with a fixed seed
so that every single hue, and every pair of hues on two of the three surfaces, is in them equally often.

`limit` takes a random sample with a fixed seed. Images come in the file's order, as its chunks span many of them.
Format: https://github.com/google-deepmind/3d-shapes; the file's scales are 0.75 to 1.25, unlike its README says.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from htc_probe.extract.data.files import refuse_split, require
from htc_probe.extract.data.labels import Labels, class_labels, number_labels
from htc_probe.extract.data.source import ImageError, Item
from htc_probe.extract.errors import UserError

_SPLITS = {"train": range(4, 10), "val": range(0, 2), "test": range(2, 4)}  # of the ten parts of `_parts`
_SHAPES = ("cube", "cylinder", "sphere", "capsule")
_FILE = "3dshapes.h5"
_SEED = 0x3D5
_CACHE = 1 << 30  # bytes that HDF5 may at most keep of unpacked chunks


class Shapes3D:
    """One split of 3D Shapes as a data source. Opens the file when the first image is read, in every process anew."""

    name = "3dshapes"
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, split: str, rows: np.ndarray, groups: list[str], labels: list[Labels]) -> None:
        self.split = split
        self.tasks = tuple(task for task, _ in labels)
        self._labels = {task.name: values for task, values in labels}
        self._path, self._rows, self._groups = path, rows, groups
        self._images: h5py.Dataset | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Item:
        """Raises ImageError where the file is damaged."""
        row = int(self._rows[index])
        name = f"{_FILE}#{row}"
        try:
            if self._images is None:
                self._images = _open_images(self._path)
            pixels = self._images[row]
        except (OSError, RuntimeError, KeyError) as error:  # as h5py meets damage
            raise ImageError(str(self._path), f"image {row} cannot be read ({str(error).splitlines()[0]})") from error
        labels = {task: values[index] for task, values in self._labels.items()}
        return Item(name, f"{self._path}#{row}", self._groups[index], Image.fromarray(pixels), labels)

    def labels(self) -> dict[str, np.ndarray]:
        """See `Tabled`."""
        return self._labels

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_images": None}


def open_split(root: Path, split: str, *, limit: int | None = None) -> Shapes3D:
    """A sample of `limit` images of a split (None: all). Raises UserError for a split or a file that is not so."""
    if split not in _SPLITS:
        raise refuse_split("3D Shapes", split, tuple(_SPLITS))
    require("3D Shapes", root, _FILE)
    path = root / _FILE
    factors = _read_factors(path)
    rng = np.random.default_rng(_SEED)
    rows = np.flatnonzero(np.isin(_parts(factors[:, :3], rng), _SPLITS[split]))
    if not len(rows):
        raise UserError(f"{path} has no image in its split {split!r}; is it the official file?")
    factors = factors[rows]
    hues = [[f"{hue:g}" for hue in column] for column in factors[:, :3].T]
    by_part = zip(("floor", "wall", "object"), hues, strict=True)
    hue_note = "0 is red, about 0.3 green, about 0.6 blue"
    labels = (
        class_labels("shape", "semantic", [_SHAPES[int(shape)] for shape in factors[:, 4]]),
        *(class_labels(f"{part}_hue", "detail", values, note=hue_note) for part, values in by_part),
        number_labels("scale", "detail", factors[:, 3].tolist(), "of the medium size"),
        number_labels("orientation", "detail", factors[:, 5].tolist(), "degrees"),
    )
    groups = [f"3dshapes/{'-'.join(triple)}" for triple in zip(*hues, strict=True)]
    sample = np.sort(rng.permutation(len(rows))[:limit])
    sampled = [Labels(made.task, made.values[sample]) for made in labels if made]
    return Shapes3D(path, split, rows[sample], [groups[i] for i in sample], sampled)


def _read_factors(path: Path) -> np.ndarray:
    """(n, 6) the labels, rounded to what their values mean (0.30000000000000004 is the hue 0.3)."""
    try:
        with h5py.File(path, "r") as file:
            shapes = {name: getattr(file.get(name), "shape", None) for name in ("images", "labels")}
            images, labels = shapes["images"], shapes["labels"]
            if images is None or labels is None or images[1:] != (64, 64, 3) or labels != (images[0], 6):
                raise UserError(
                    f"{path} has images {images} and labels {labels}; expected (n, 64, 64, 3) and (n, 6) as in the "
                    "official file"
                )
            if file["images"].dtype != np.uint8 or file["labels"].dtype.kind != "f":
                raise UserError(
                    f"{path} has images of {file['images'].dtype} and labels of {file['labels'].dtype}; expected uint8 "
                    "and float64 as in the official file"
                )
            factors = file["labels"][:].round(6)
    except (OSError, RuntimeError, KeyError) as error:  # as h5py meets damage
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}; download it again") from error
    wrong = np.flatnonzero(~np.isfinite(factors).all(1) | ~np.isin(factors[:, 4], range(len(_SHAPES))))
    if len(wrong):
        raise UserError(f"{path} has labels {factors[wrong[0]].tolist()} in row {wrong[0]}; expected a shape of 0 to 3")
    return factors


def _parts(hues: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) which of ten parts each row (n, 3) of hues belongs to.

    With the ten hues of each surface in random order, the part is the last digit of the sum of the three places. Of
    any two surfaces, every pair of hues is then once in every part.
    """
    places = []
    for column in hues.T:
        values, place = np.unique(column, return_inverse=True)
        places.append(rng.permutation(len(values))[place])
    return np.sum(places, 0) % 10


def _open_images(path: Path) -> h5py.Dataset:
    """With a cache for all the chunks that one image lies in: each is then unpacked once, as rows are read in order."""
    with h5py.File(path, "r") as file:
        images = file["images"]
        together = images.chunks[0] * int(np.prod(images.shape[1:])) if images.chunks else 0
    cache = min(_CACHE, max(1 << 20, 2 * together))
    return h5py.File(path, "r", rdcc_nbytes=cache, rdcc_nslots=1_000_003)["images"]
