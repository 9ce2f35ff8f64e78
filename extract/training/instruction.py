"""Conversations with their images as training batches. Knows rows, image files and padding; no model, no optimizer."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, count, islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from htc_probe.extract import command
from htc_probe.extract.data import scenes
from htc_probe.extract.data.files import read_image
from htc_probe.extract.data.source import ImageError
from htc_probe.extract.errors import UserError
from htc_probe.extract.images import prepare
from htc_probe.extract.training.conversations import IGNORED_LABEL, Conversation, Encoder
from htc_probe.extract.vlm.config import HTCConfig

MISSING = "missing_images.txt"


class Instructions(Dataset):
    """Rows, with pixels in [0, 1] as the model of `config` wants them, tokens and labels; texts have zero pixels.

    `open_image` gives the image of a name. One that is damaged (ImageError) is a UserError, or, with `skip`, its row's
    place is taken by the next one.
    """

    def __init__(
        self,
        rows: Sequence[Conversation],
        encode: Encoder,
        open_image: Callable[[str], Image.Image],
        config: HTCConfig,
        *,
        skip: bool = False,
    ) -> None:
        self.rows, self.encode, self.open_image, self.skip = rows, encode, open_image, skip
        self._frame = config.frame._asdict()
        self._no_pixels = torch.zeros(3, config.image_size, config.image_size)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index]
        try:
            pixels = self._no_pixels if row.image is None else prepare(self.open_image(row.image), **self._frame)
        except ImageError as error:
            if not self.skip:
                raise UserError(f"{row.name}: {error}; mend it, or leave such rows out with --on-error skip") from error
            print(f"htc-train: {row.name}: {error}; the next row takes its place", file=sys.stderr)
            return self[(index + 1) % len(self)]
        ids, labels = map(torch.from_numpy, self.encode(row.turns))
        has_image = torch.tensor(row.image is not None)
        return {"pixel_values": pixels, "has_image": has_image, "input_ids": ids, "labels": labels}


def collate(examples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One batch: `pixel_values` (B, 3, R, R), `has_image` (B,), and texts (B, T), padded on the right."""
    batch = {name: torch.stack([example[name] for example in examples]) for name in ("pixel_values", "has_image")}
    ids = [example["input_ids"] for example in examples]
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    batch["input_ids"] = pad(ids)  # the padding's own id is never read
    batch["attention_mask"] = pad([torch.ones_like(row) for row in ids])
    batch["labels"] = pad([example["labels"] for example in examples], padding_value=IGNORED_LABEL)
    return batch


class WholeBatches(Sampler[int]):
    """The rows of `steps` steps of `batch` rows each, all epochs one after the other.

    Every epoch has an order of its own and leaves out what does not fill a last batch. It all depends on `seed` alone,
    so that any number of devices sees the same batches, and a run that continues finds its place by counting.
    """

    def __init__(self, rows: int, batch: int, steps: int, seed: int) -> None:
        self.rows, self.batch, self.steps, self.seed = rows, batch, steps, seed

    def __len__(self) -> int:
        return self.steps * self.batch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        whole = self.rows // self.batch * self.batch
        epochs = (torch.randperm(self.rows, generator=generator)[:whole].tolist() for _ in count())
        return islice(chain.from_iterable(epochs), len(self))


def with_images(rows: Sequence[Conversation], folder: Path, *, skip: bool, report: Path | None) -> list[Conversation]:
    """The rows whose image lies in `folder`, and those without one.

    What is missing is a UserError, or, with `skip`, said and listed in the file `report`.
    """
    names = sorted({row.image for row in rows if row.image is not None})
    missing = set()
    with command.progress("looking", "images", total=len(names), shown=report is not None) as bar:
        for name in names:
            if not os.path.exists(folder / name):
                missing.add(name)
            bar.advance()
    if not missing:
        return list(rows)
    kept = [row for row in rows if row.image not in missing]
    words = f"{len(missing)} of {len(names)} images are missing in {folder}: {', '.join(sorted(missing)[:3])}"
    words += ", ..." if len(missing) > 3 else ""
    if not skip:
        raise UserError(f"{words}; give their folder with --images, or leave their rows out with --on-error skip")
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text("".join(f"{name}\n" for name in sorted(missing)))
        print(f"{words}; {len(rows) - len(kept)} of {len(rows)} rows are left out, see {report}")
    return kept


def open_file(folder: Path, name: str) -> Image.Image:
    """The image of that name. Raises ImageError."""
    return read_image(str(folder / name))


def open_scene(size: int, name: str) -> Image.Image:
    """The built-in scene `SPLIT/INDEX`, `size` pixels a side."""
    split, index = name.split("/")
    return scenes.render(scenes.scene(split, int(index)), size)
