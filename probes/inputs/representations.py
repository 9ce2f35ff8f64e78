"""The representations that are probed, as arrays. Knows runs and files of arrays; not labels, probes or scores.

N images of the run, D features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from safetensors import SafetensorError, safe_open

from htc_probe.extract import command
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Run

_DEFAULT = ("voco_read", "z_voco", "v_d", "v_pooled", "v_d+z_voco", "v_pooled+z_voco", "pixels")
"""The token as text reads it, its last state, what it was made from, what each adds to the other, and a floor without
the model."""
_FILES = (".npy", ".npz", ".safetensors")
_KNOWN = "z_voco, voco_read, v_d, v_d.0 (one anchor), v_pooled, codes, code_bag, pixels"
_CELLS, _HUES = 8, 16


class Representation(NamedTuple):
    name: str
    """As it was asked for, without the layer; with + between the parts of a join."""
    layer: int | None = None
    """Of z_voco: 0 is the embedding, L the last; None for the others."""

    @property
    def parts(self) -> tuple[str, ...]:
        """What it joins, or itself; of random weights the state that is read of them."""
        return ("z_voco",) if self == RANDOM_WEIGHTS else tuple(self.name.split("+"))

    @property
    def is_floor(self) -> bool:
        """What a trained model should beat: pixels, random weights, and <voco>'s embedding, which never changes."""
        return self.name == "pixels" or self == RANDOM_WEIGHTS or self.layer == 0

    def load(self, run: Run) -> np.ndarray:
        """(N, D) float32. Raises UserError where the run has none, or a file does not hold one row an image."""
        return np.concatenate([source.read(slice(None)) for source in self._sources(run)], 1)

    def rows(self, run: Run) -> Rows:
        """The same, read as rows are asked for."""
        return Rows(len(run), self._sources(run))

    def streams(self, run: Run) -> bool:
        """Whether it is made of latents of the run alone, which may be larger than memory and are read by rows."""
        return all(source.is_latent for source in self._sources(run))

    def _sources(self, run: Run) -> list[_Source]:
        return [_source(run, part, self.layer) for part in self.parts]


READ, WHOLE = Representation("voco_read"), Representation("v_pooled")
RANDOM_WEIGHTS = Representation("z_voco (random weights)")
"""Of a run of the same images through random weights."""


def shown(name: str, layer: int | None = None, layers: int | None = None) -> str:
    """The one name by which a person reads of a representation: `pooled V`, `z_voco (layer 4 of 4)`, `v_d + z_voco`,
    `v_d (anchor 1)`. `name` is what is typed and stored; layer: of z_voco, 0 the embedding; layers: how many the model
    has, where that is known.
    """
    words = " + ".join(map(_shown_part, name.split("+")))
    if layer is None:
        return words
    return f"{words} (layer {layer})" if layers is None else f"{words} (layer {layer} of {layers})"


def _shown_part(name: str) -> str:
    anchor = name.removeprefix("v_d.")
    if anchor != name and anchor.isdecimal():
        return f"v_d (anchor {int(anchor) + 1})"
    return "pooled V" if name == WHOLE.name else name


def parse_layers(run: Run, layers: str) -> tuple[int, ...]:
    """`""` (the last layer alone), `"all"`, or numbers such as `"0,2,-1"`, as layers that the run stores.

    Raises UserError for anything else, listing the layers there are.
    """
    stored = run.shape.stack
    if not stored:
        raise UserError(f"{run.path.name} stores no layer of z_voco; extract again with --layers")
    held = ", ".join(map(str, stored))

    def refusal(layer: int) -> str:
        return f"layer {layer} is not in {run.path.name}; it holds {held}"

    chosen = command.parse_layers(layers, run.shape.layers, stored, refusal) if layers else ()
    return tuple(sorted({*chosen, stored[-1]}))


def select(run: Run, names: Sequence[str], layers: Sequence[int]) -> tuple[Representation, ...]:
    """`names`, z_voco once for each of `layers`; joins take its last stored layer. Without names the default ones that
    the run has. Raises UserError for a name that is none, before anything is read.
    """
    found: dict[Representation, None] = {}
    for name in names or [name for name in _DEFAULT if _has(run, name)]:
        if name == "z_voco":
            found |= dict.fromkeys(Representation(name, layer) for layer in layers)
            continue
        for part in name.split("+"):
            _source(run, part)
        found[Representation(name)] = None
    return tuple(found)


def read_states(run: Run) -> tuple[int, ...]:
    """The states of `<voco>` that its keys and values are made of, 0 to L - 1: text reads nothing else of the image.
    State L, after the final norm, reaches no text. Empty where text reads more than `<voco>`, as in LLaVA.

    Raises UserError for a run that does not store all of them.
    """
    if run.info.topology == "uncompressed":
        return ()
    wanted = tuple(range(run.shape.layers))
    if lost := [state for state in wanted[1:] if state not in run.shape.stack]:
        raise UserError(
            f"{run.path.name} stores the states {', '.join(map(str, run.shape.stack)) or 'of no layer'} of <voco>, and "
            f"text reads {', '.join(map(str, lost))} too; extract again with all layers to probe voco_read"
        )
    return tuple(state for state in wanted if state in run.shape.stack)


def _has(run: Run, name: str) -> bool:
    """Whether a default representation is there to be probed."""
    if name == "voco_read":
        states = set(range(1, run.shape.layers))  # state 0 is the same for every image
        return bool(states) and states <= set(run.shape.stack) and run.info.topology != "uncompressed"
    return bool(run.shape.anchors) or "v_d" not in name


class Rows:
    """`rows[a:b]` is (b - a, D) float32. What is no latent of the run is held whole; only latents are too large for
    that.
    """

    def __init__(self, count: int, sources: Sequence[_Source]):
        self._reads = [source.read if source.is_latent else source.read(slice(None)).__getitem__ for source in sources]
        self.shape = count, self[0:1].shape[1]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.concatenate([read(rows) for read in self._reads], 1)


class After:
    """The rows of one and then those of another."""

    def __init__(self, first: Rows, second: Rows):
        if first.shape[1] != second.shape[1]:
            raise UserError(f"one run has {first.shape[1]} features and the other {second.shape[1]}; use one model's")
        self._parts, self._at = (first, second), first.shape[0]
        self.shape = first.shape[0] + second.shape[0], first.shape[1]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        cuts = [(start, min(stop, self._at)), (max(start - self._at, 0), stop - self._at)]
        found = [part[a:b] for part, (a, b) in zip(self._parts, cuts, strict=True) if a < b]
        return np.concatenate(found) if found else np.zeros((0, self.shape[1]), np.float32)


class _Source(NamedTuple):
    """Where one part of a representation comes from."""

    read: Callable[[slice], np.ndarray]
    """(n, D) float32 of the images of a slice."""
    is_latent: bool = False
    """Read from the run by rows; others are made whole, each time."""


def _source(run: Run, name: str, layer: int | None = None) -> _Source:
    """Reads nothing yet. Raises UserError for a name that is none and for what the run does not have."""
    if name == "z_voco":
        return _Source(partial(run.z_voco, run.shape.stack[-1] if layer is None else layer), True)
    if name == "voco_read":
        if states := read_states(run):
            return _Source(lambda images: np.concatenate([run.z_voco(state, images) for state in states], 1), True)
        raise UserError(f"{run.path.name} has no voco_read: text reads all tokens of an {run.info.topology} image")
    if name == "v_pooled":
        return _Source(run.v_pooled, True)
    if name == "pixels":
        return _Source(lambda images: np.stack([pixels(run.thumbnail(image)) for image in range(len(run))[images]]))
    if name.endswith(_FILES):
        if not Path(name).exists():
            raise UserError(f"no file at {name}")
        return _Source(lambda images: _from_file(run, Path(name))[images])
    if name == "v_d" or name.startswith("v_d."):
        number = name[4:]
        if not run.shape.anchors:
            raise UserError(f"{run.path.name} has no anchors, so no {name}; its topology is {run.info.topology}")
        if name == "v_d":
            return _Source(lambda images: (v_NAD := run.v_d(images)).reshape(len(v_NAD), -1), True)
        if number.isdecimal() and int(number) < run.shape.anchors:
            return _Source(lambda images: run.v_d(images)[:, int(number)], True)
    if name in ("codes", "code_bag"):
        if run.shape.codes is None:
            raise UserError(f"{run.path.name} has no codes, so no {name}: its anchors do not come from MGVQ")
        return _Source(lambda images: _one_hot(run.codes(), together=name == "code_bag")[images])
    shapes = {stored.name: stored.shape for stored in run.contents() if stored.dtype != "text"}
    by_image = [stored for stored, shape in shapes.items() if 2 <= len(shape) <= 3 and shape[0] == len(run)]
    if name in by_image:
        return _Source(lambda images: run.rows(name, 0, len(run)).astype(np.float32).reshape(len(run), -1)[images])
    raise UserError(
        f"representation {name!r} is unknown; there are {_KNOWN}, files ({', '.join(_FILES)}), datasets of the run "
        f"({', '.join(by_image)}), and joins with +"
    )


def pixels(thumbnail: np.ndarray) -> np.ndarray:
    """(D,) what a picture (size, size, 3) uint8 shows without a model: the mean colours of 8 x 8 cells, a histogram of
    hues weighted by saturation, and histograms of saturation and value.
    """
    colour = thumbnail.astype(np.float32) / 255
    cell = len(colour) // _CELLS
    square = colour[: cell * _CELLS, : cell * _CELLS]
    cells = square.reshape(_CELLS, cell, _CELLS, cell, 3).mean((1, 3)).ravel()
    high, low = colour.max(2), colour.min(2)
    spread = high - low
    saturation = np.divide(spread, high, out=np.zeros_like(high), where=high > 0)
    red, green, blue = np.moveaxis(colour, 2, 0)
    step = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0)
    hue = np.where(
        high == red, (green - blue) * step, np.where(high == green, 2 + (blue - red) * step, 4 + (red - green) * step)
    )
    count = colour.shape[0] * colour.shape[1]
    hues = np.histogram(hue % 6, _HUES, (0, 6), weights=saturation)[0] / count
    rest = [np.histogram(values, 8, (0, 1))[0] / count for values in (saturation, high)]
    return np.concatenate([cells, hues, *rest]).astype(np.float32)


def _one_hot(codes_NRCG: np.ndarray, *, together: bool) -> np.ndarray:
    """(N, D): a column for each code that occurs at each place of each group, or, `together`, anywhere in the group:
    then how often.
    """
    count, *_, groups = codes_NRCG.shape
    codes_NPG = codes_NRCG.reshape(count, -1, groups)
    columns = []
    for group in range(groups):
        for places in [slice(None)] if together else [slice(at, at + 1) for at in range(codes_NPG.shape[1])]:
            used, at = np.unique(codes_NPG[:, places, group], return_inverse=True)
            hot = np.zeros((count, len(used)), np.float32)
            np.add.at(hot, (np.arange(count)[:, None], at.reshape(count, -1)), 1)
            columns.append(hot)
    return np.concatenate(columns, 1)


def _from_file(run: Run, path: Path) -> np.ndarray:
    """Rows of a file in the run's order: by its ids where it has some, else it must have as many rows as the run."""
    try:
        array, ids = _read(path)
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile, SafetensorError) as error:
        raise UserError(
            f"{path} is no array to probe ({error}); expected .npy of one row an image, .npz with `ids` and one more "
            "array, or .safetensors with one tensor and a JSON list of ids in its metadata"
        ) from error
    if array.ndim not in (2, 3) or array.dtype.kind not in "fiub" or not array.size:
        raise UserError(f"{path} holds {array.dtype} of shape {array.shape}; expected numbers, (images, ..., features)")
    if ids is None:
        if len(array) != len(run):
            raise UserError(f"{path} has {len(array)} rows without ids, {run.path.name} {len(run)} images")
        rows = np.arange(len(run))
    else:
        place = {name: number for number, name in enumerate(ids)}
        lost = [name for name in run.ids() if name not in place]
        if lost or not len(place) == len(ids) == len(array):
            raise UserError(
                f"{path} has {len(place)} different ids for {len(array)} rows and lacks {len(lost)} of the run's images"
                + (f", such as {lost[0]!r}" if lost else "")
            )
        rows = np.array([place[name] for name in run.ids()])
    x = array[rows].astype(np.float64).reshape(len(run), -1)
    small = np.abs(x) <= np.finfo(np.float32).max
    if not small.all():
        image, feature = np.argwhere(~small)[0]
        raise UserError(f"{path} has {x[image, feature]} for {run.ids()[image]}; a probe needs finite 32-bit features")
    return x.astype(np.float32)


def _read(path: Path) -> tuple[np.ndarray, list[str] | None]:
    if path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            (name,) = file.keys()
            ids = (file.metadata() or {}).get("ids")
            return file.get_tensor(name), None if ids is None else [str(one) for one in json.loads(ids)]
    content = np.load(path, allow_pickle=False)
    if isinstance(content, np.ndarray):
        return content, None
    with content:
        (name,) = (key for key in content.files if key != "ids")
        return content[name], [str(one) for one in content["ids"]]
