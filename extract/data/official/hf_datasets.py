"""Directories that Hugging Face `datasets` wrote with `save_to_disk`. Knows them through that library; no model.

    ROOT/tasks.toml                        the suite and kind of the columns that are labels (see `columns`)
    ROOT/dataset_dict.json, val/*.arrow    a DatasetDict; its splits are its keys
    ROOT/state.json, *.arrow               or a Dataset; its split is the one it was loaded as, else `all`

The image is the only column of images, or the one called `image`. Columns called `id` and `group` are the items' own;
columns that tasks.toml does not name are no labels. A ClassLabel's classes are those it declares.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from htc_probe.extract.data.columns import NOT_LABELS, cell_text, given, label_of, make_task, read_tasks
from htc_probe.extract.data.files import FileSource, Picture, read_image, refuse_split
from htc_probe.extract.data.labels import Labels
from htc_probe.extract.data.source import ImageError
from htc_probe.extract.data.tables import refuse_repeated
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import NUMERIC

if TYPE_CHECKING:
    from datasets import Dataset


class DiskDataset(FileSource):
    """Rows of a split as a data source: all, or `limit` of them, evenly spread; `name` is the folder's own.

    Raises UserError for a folder, columns or a tasks.toml that cannot be meant.
    """

    def __init__(self, root: Path, split: str, *, limit: int | None = None) -> None:
        from datasets import Image as ImageFeature

        table = _load(root, split)
        texts = [cell_text(name) for name in table.column_names]
        refuse_repeated(texts, "column", root)
        table = table.rename_columns(dict(zip(table.column_names, texts, strict=True)))
        self._column = _image_column(table, root)
        settings = _settings(table, root, self._column)
        own = [name for name in ("id", "group") if name in table.column_names]
        cells = _cells(table, [*settings, *own], root)
        toml = root / "tasks.toml"
        tasks = [make_task(name, setting, toml, root, cells[name]) for name, setting in settings.items()]
        places = [f"{split}/{row}" for row in range(len(table))]
        ids = _texts(cells.get("id"), places)
        refuse_repeated(ids, "id", root)
        if not len(table):
            raise UserError(f"{root} has no row in its split {split!r}")
        rows = zip(ids, places, _texts(cells.get("group"), ids), strict=True)
        pictures = [Picture(name, Path(f"{root}#{place}"), group) for name, place, group in rows]
        labels = []
        for task in tasks:
            where = f"{root}, {split}, {task.name}, row"
            values = [label_of(task, cell, f"{where} {i}") for i, cell in enumerate(cells[task.name])]
            labels.append(Labels(task, np.array(values)))
        super().__init__(root.resolve().name, split, pictures, labels, limit)
        self.notes = tuple(f"{task.name}: {task.note}" for task in tasks if task.note)
        images = table.select_columns([self._column]).with_format(None)
        self._images = images.cast_column(self._column, ImageFeature(decode=False))

    def _image(self, index: int) -> Image.Image:
        stored = self._images[index][self._column] or {}
        content, path = stored.get("bytes"), str(self._pictures[index].path)
        if content is None and not stored.get("path"):
            raise ImageError(path, "the row has no image")
        return read_image(path, content) if content is not None else read_image(stored["path"])


open_split = DiskDataset


def _load(root: Path, split: str) -> "Dataset":
    from datasets import DatasetDict, load_from_disk

    if not any((root / name).exists() for name in ("dataset_dict.json", "state.json")):
        raise UserError(
            f"{root} was not written by save_to_disk: it has neither dataset_dict.json nor state.json; load it with "
            "datasets.load_dataset and save that with save_to_disk"
        )
    try:
        loaded = load_from_disk(str(root))
    except Exception as error:  # damaged copies fail in all kinds of ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{root} cannot be loaded by datasets: {reason}; save or copy it again") from error
    splits = dict(loaded) if isinstance(loaded, DatasetDict) else {str(loaded.split or "all"): loaded}
    if split not in splits:
        raise refuse_split(str(root), split, list(splits))
    return splits[split]


def _image_column(table: "Dataset", root: Path) -> str:
    from datasets import Image

    columns = [name for name, feature in table.features.items() if isinstance(feature, Image)]
    if len(columns) != 1 and "image" not in columns:
        named = ", ".join(columns) or "columns: " + ", ".join(table.column_names)
        raise UserError(
            f"{root} has {len(columns)} columns of images ({named}); "
            "expected one, or one called image: use datasets' cast_column and rename_column"
        )
    return columns[0] if len(columns) == 1 else "image"


def _settings(table: "Dataset", root: Path, image: str) -> dict[str, dict[str, Any]]:
    """The settings of tasks.toml by column, with the classes that a ClassLabel declares."""
    kinds = {name: _kind(feature) for name, feature in table.features.items() if name not in {image, *NOT_LABELS}}
    usable = {name: kind for name, kind in kinds.items() if kind}
    toml = root / "tasks.toml"
    if usable and not toml.exists():
        name, kind = next(iter(usable.items()))
        raise UserError(
            f"{root} has the columns {', '.join(f'{name} ({kind})' for name, kind in usable.items())} and no {toml}; "
            f'write each label there, such as [{name}] with suite = "semantic" or "detail" and kind = "{kind}"; '
            "an empty file extracts without labels"
        )
    settings = read_tasks(toml)
    for name, setting in settings.items():
        if name not in usable:
            raise UserError(
                f"task {name!r} of {toml} is not a column of labels in {root} (these are: "
                f"{', '.join(usable) or 'none'}); remove or rename it"
            )
        declared = _declared(table.features[name])
        if declared and setting["kind"] not in NUMERIC:
            settings[name] = {"classes": [cell_text(label) for label in declared]} | setting
    return settings


def _kind(feature: Any) -> str | None:
    """What the labels of a column would be; None for what can be none (nested data, images, sounds)."""
    from datasets import ClassLabel, Value

    inner = getattr(feature, "feature", None)
    if inner is not None:
        return "multilabel" if _kind(inner) == "classes" else None
    if isinstance(feature, ClassLabel):
        return "classes"
    if not isinstance(feature, Value):
        return None
    if feature.dtype in ("string", "large_string", "bool"):
        return "classes"
    return "number" if feature.dtype.startswith(("int", "uint", "float")) else None


def _declared(feature: Any) -> list[str] | None:
    """The classes of a ClassLabel, or of a list of them."""
    return getattr(getattr(feature, "feature", None) or feature, "names", None)


def _cells(table: "Dataset", names: list[str], root: Path) -> dict[str, list[Any]]:
    """The columns `names` as plain values, classes by their names and None where they are unknown."""
    if not names:
        return {}
    columns: dict[str, list[Any]] = table.select_columns(names).with_format("arrow")[:].to_pydict()
    for name in names:
        if declared := _declared(table.features[name]):
            columns[name] = [_named(declared, cell, f"{root}, {name}") for cell in columns[name]]
    return columns


def _named(names: list[str], cell: Any, where: str) -> Any:
    """The class, or list of classes, of a cell; -1 is how data sets without public labels write an unknown one."""
    if isinstance(cell, list):
        return [_named(names, one, where) for one in cell]
    if cell is not None and cell >= len(names):
        raise UserError(f"{where}: class {cell} of {len(names)}; save the data set again with all its classes")
    return None if cell is None or cell < 0 else names[cell]


def _texts(cells: list[Any] | None, otherwise: list[str]) -> list[str]:
    return [given(cell) or other for cell, other in zip(cells or [None] * len(otherwise), otherwise, strict=True)]
