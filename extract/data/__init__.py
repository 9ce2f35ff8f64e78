"""Where images and labels come from, by name or by folder. Knows the sources there are; no model, no torch."""

from pathlib import Path

from extract.data.source import Source
from extract.errors import UserError


def open_source(name_or_path: str, split: str, *, limit: int | None = None, resolution: int = 64) -> Source:
    """The first `limit` images (None: all) of a split of `scenes`, or of a folder of one's own images.

    `resolution`, in pixels a side, is what rendered scenes are drawn at; files keep their own size. A folder that is
    itself called scenes is reached as ./scenes. Raises UserError for data, a split or a limit that is not there.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} leaves no image; use 1 or more")
    if name_or_path == "scenes":
        from extract.data.scenes import ScenesSource

        return ScenesSource(split, resolution=resolution, limit=limit)
    if Path(name_or_path).is_dir():
        from extract.data.imagefolder import ImageFolder

        return ImageFolder(Path(name_or_path), split, limit=limit)
    raise UserError(
        f"no data {name_or_path!r}: it is neither built in (scenes) nor a folder; a folder of your own images looks "
        "like FOLDER/val/*.jpg, with --data FOLDER --split val"
    )
