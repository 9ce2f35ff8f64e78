"""Settings of an extraction: as they are asked for on the command line, and as they are saved in the run.

Knows no model, no data and no file; imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_type_hints

from htc_probe.extract.arguments import Shown
from htc_probe.extract.errors import UserError

if TYPE_CHECKING:
    from htc_probe.extract.store import RunInfo

_OFFICIAL = ("cub:", "paco:", "coco:", "dtd:", "gqa:", "clevr:", "3dshapes:", "datasets:")


@dataclass(frozen=True)
class ExtractConfig:
    """Run HTC-VLM over images and write a run: for every image, what <voco> holds at every layer (z_voco) and where it
    looked, v_d, pooled V, the codes, a thumbnail and the labels.

    Without settings it needs no network and no GPU: a small model and rendered scenes come with the package.
    Interrupted, the same command goes on where it was; at most half a minute of work is lost.

    Examples:
        htc-extract                                # the small model, the scenes
        htc-extract --data ./photos --split train  # photos/train/CLASS/*.jpg
        htc-extract --model htc-7b --random-weights --limit 200 --device cuda
    """

    split: Annotated[str, Shown("NAME", words=("train", "val", "test"))] = "val"
    """Split of the data."""
    model: Annotated[str, Shown("NAME|FOLDER", words=("htc-tiny", "htc-7b"))] = "htc-tiny"
    """htc-tiny (shipped), a folder, or owner/model on the hub.
    HTC-VLM, LLaVA-1.5 or VoCo-LLaMA."""
    random_weights: bool = False
    """Draw the weights at random, with --seed.
    A probe has to beat such a model."""
    adapter: Annotated[Path | None, Shown("FOLDER")] = None
    """LoRA adapter (PEFT's files) to merge into the model."""
    data: Annotated[str, Shown("NAME:FOLDER", words=("scenes", *_OFFICIAL))] = "scenes"
    """scenes, a folder that has FOLDER/SPLIT/, or NAME:FOLDER:
    cub coco paco dtd gqa clevr 3dshapes datasets."""
    out: Path | None = None
    """Run to write (.h5). Left out: runs/DATA-SPLIT.h5."""
    limit: int | None = None
    """Only N images: a random sample, the same every time."""
    batch_size: int | Literal["auto"] = "auto"
    """Images at once. auto: 32 on a CPU;
    on a GPU, the largest size that is still faster."""
    workers: int | None = None
    """Processes that read images. Left out: 0 to 4, as fits.
    They do not change the output."""
    layers: str = "all"
    """Layers of z_voco to keep: all, or such as 0,2,4.
    0 is the embedding, -1 the last layer."""
    device: Annotated[str, Shown("NAME", words=("auto", "cpu", "cuda"))] = "auto"
    """cpu, cuda or cuda:1. auto: a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the arithmetic.
    auto: bfloat16 on a GPU, float32 on a CPU."""
    store_dtype: Literal["float16", "float32"] = "float16"
    """Precision of the numbers in the run."""
    on_error: Literal["stop", "skip"] = "stop"
    """Where an image cannot be read:
    stop, or skip it and note it in the run."""
    seed: int = 0
    """Of --random-weights; it changes nothing else."""
    shard_images: int | None = None
    """Images written together, at most. Left out: 128 MB."""
    engine: Literal["local", "ray"] = "local"
    """local: this process. ray: the workers of a Ray cluster;
    it needs pip install 'htc-probe[ray]'."""
    shard: Annotated[str | None, Shown("I/N")] = None
    """Do part I of N, from 0; then run --merge once.
    torchrun and Slurm set it by themselves."""
    merge: bool = False
    """Put together the parts that --shard wrote."""
    virtual: bool = False
    """Leave large datasets in the shards beside the run:
    nothing is copied (HDF5 virtual datasets)."""


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
