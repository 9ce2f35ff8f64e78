"""Settings of an extraction: as they are asked for on the command line, and as they are saved in the run.

Knows no model, no data and no file; imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_type_hints

from htc_probe.extract.errors import UserError

if TYPE_CHECKING:
    from htc_probe.extract.store import RunInfo


@dataclass(frozen=True)
class ExtractConfig:
    """Run HTC-VLM over the images of a split and write what <voco> holds and where it looked to a run file.

    The run holds z_voco at every layer, v_d, pooled V, the codes, <voco>'s attention, thumbnails and labels. With no
    arguments it needs no network and no GPU: a small model and rendered scenes come with the package.
    """

    split: str = "val"
    """Which split of the data."""
    model: str = "htc-tiny"
    """htc-tiny (shipped), a directory, or owner/model on the hub: of an HTC-VLM, LLaVA-1.5 or VoCo-LLaMA."""
    random_weights: bool = False
    """Draw the model's weights at random (--seed) instead of reading them: the floor that every probe has to beat,
    and a way to try a size, such as htc-7b, the paper's."""
    adapter: Path | None = None
    """A directory with a LoRA adapter (PEFT's files) that is merged into the model."""
    data: str = "scenes"
    """scenes (built in), a data set in its official files, NAME:PATH (cub, paco, coco, dtd, gqa, clevr, 3dshapes,
    datasets), or a folder of images: FOLDER/SPLIT/, labels in its metadata.csv and FOLDER/tasks.toml."""
    out: Path | None = None
    """Run file to write (.h5); runs/DATA-SPLIT.h5 when left out."""
    limit: int | None = None
    """Only this many images of the split: a fair sample, not the first of the first class."""
    batch_size: int | Literal["auto"] = "auto"
    """Images in one pass of the model. auto: 32 on a CPU; on a GPU as many as fit and pay, found by trying, and half as
    many from where its memory runs out."""
    workers: int | None = None
    """Processes that read images ahead of the model; when left out, up to 4 for a model on a GPU, and none for few
    images or beside a model on the CPU, which needs the cores itself. They change no byte of the run."""
    layers: str = "all"
    """Layers of z_voco to keep: all, or numbers such as 0,2,4; 0 is the embedding, -1 the last."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto is the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the arithmetic; auto is bfloat16 on a GPU and float32 on a CPU."""
    store_dtype: Literal["float16", "float32"] = "float16"
    """Precision of z_voco, v_d, pooled V and attention in the file."""
    on_error: Literal["stop", "skip"] = "stop"
    """What an unreadable image does: stop the extraction, or be skipped and recorded in the run."""
    seed: int = 0
    """Of --random-weights. Without it nothing is drawn, and the seed changes no number."""
    shard_images: int | None = None
    """Images written to the disk together, in whole batches: what is lost at most when the process is killed. Some
    128 MB when left out. The same command continues an unfinished run."""
    engine: Literal["local", "ray"] = "local"
    """local: this process. ray: the workers of a Ray cluster ($RAY_ADDRESS, or this machine), one a GPU; a lost
    worker's shard is done again by another. Needs pip install 'htc-probe[ray]'."""
    shard: str | None = None
    """i/n: do the i-th of n parts of the work, from 0, for job arrays. Under torchrun and Slurm it is found by itself.
    Put the parts together with --merge."""
    merge: bool = False
    """Put the parts that --shard wrote together; of the other settings, only the run's name and --virtual matter."""
    virtual: bool = False
    """Leave the large datasets in the shards beside the run, for runs too large to copy (HDF5 virtual datasets)."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run was made with, every `auto` resolved; saved in it as JSON (`RunInfo.config`)."""

    split: str = ""
    model: str
    random_weights: bool = False
    adapter: str | None = None
    data: str
    """As `extract.data.absolute` has it."""
    out: str = ""
    limit: int | None = None
    batch_size: int | None = None
    """None until the largest that fits was found."""
    workers: int | None = None
    layers: list
    """Numbers of the layers of z_voco, ascending."""
    device: str
    dtype: str
    store_dtype: str = "float16"
    on_error: str = "stop"
    seed: int = 0
    shard_images: int | None = None

    @classmethod
    def of(cls, info: RunInfo, name: str) -> RunSettings:
        """Those of a run; one that was not a setting yet has its default. Raises UserError where the run, called
        `name`, does not say one that has none.
        """
        types = get_type_hints(cls)
        values = {field.name: info.config.get(field.name, field.default) for field in fields(cls)}
        for setting, value in values.items():
            if not isinstance(value, types[setting]):
                raise UserError(
                    f"{name} does not say its {setting}, so its model cannot be run again; extract it again"
                )
        return cls(**values)
