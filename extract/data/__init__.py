"""Where images and labels come from, by name or by folder. Knows the sources there are; no model, no torch."""

from importlib import import_module
from pathlib import Path

from htc_probe.extract.data.source import Source
from htc_probe.extract.errors import UserError

# Data sets in their official formats: NAME:PATH on the command line. Each module has `open_split(root, split, limit)`.
FORMATS = {name: name for name in ("cub", "paco", "coco", "dtd", "gqa", "clevr")}
FORMATS |= {"3dshapes": "shapes3d", "datasets": "hf_datasets"}


def open_source(name_or_path: str, split: str, *, limit: int | None = None, resolution: int = 64) -> Source:
    """`limit` images (None: all) of a split of `scenes`, an official data set, or a folder of one's own.

    An official data set is NAME:PATH, as in cub:/data/CUB_200_2011; the names are those of `FORMATS`. A limit takes a
    fair sample, not the first images, where the order of the files could be by class. `resolution`, in pixels a side,
    is what rendered scenes are drawn at; files keep their own size. A folder that is itself called scenes is reached
    as ./scenes. Raises UserError for data, a split or a limit that is not there.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} leaves no image; use 1 or more")
    if name_or_path == "scenes":
        from htc_probe.extract.data.scenes import ScenesSource

        return ScenesSource(split, resolution=resolution, limit=limit)
    name, colon, path = name_or_path.partition(":")
    if colon and name in FORMATS:
        if not Path(path).is_dir():
            raise UserError(f"no folder {path!r} with {name} data; --data {name}:PATH names where it was unpacked")
        module = import_module(f"htc_probe.extract.data.official.{FORMATS[name]}")
        return module.open_split(Path(path), split, limit=limit)
    if Path(name_or_path).is_dir():
        from htc_probe.extract.data.imagefolder import ImageFolder

        return ImageFolder(Path(name_or_path), split, limit=limit)
    raise UserError(
        f"no data {name_or_path!r}: it is neither built in (scenes), nor an official data set "
        f"({', '.join(f'{known}:PATH' for known in FORMATS)}), nor a folder; a folder of your own images looks like "
        "FOLDER/val/*.jpg, with --data FOLDER --split val"
    )


def absolute(name_or_path: str) -> str:
    """The same data, named so that it means the same in every working directory."""
    name, colon, path = name_or_path.partition(":")
    if name_or_path == "scenes":
        return name_or_path
    return f"{name}:{Path(path).resolve()}" if colon and name in FORMATS else str(Path(name_or_path).resolve())
