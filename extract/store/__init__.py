"""The run file: what one extraction recorded, as HDF5. Knows h5py and numpy; not models, data sources or figures, and
imports no torch."""

from htc_probe.extract.store.assembly import assemble
from htc_probe.extract.store.read import Run, Stored, list_runs, newest_run, open_run, open_shards
from htc_probe.extract.store.schema import (
    CHUNK_BYTES,
    NUMERIC,
    THUMBNAIL,
    UNKNOWN,
    Batch,
    Kind,
    RunInfo,
    RunShape,
    StoreDtype,
    Suite,
    Task,
    estimate_bytes,
    is_known,
    is_labelled,
)
from htc_probe.extract.store.write import RunWriter

__all__ = [
    "Batch",
    "CHUNK_BYTES",
    "Kind",
    "NUMERIC",
    "Run",
    "RunInfo",
    "RunShape",
    "RunWriter",
    "StoreDtype",
    "Stored",
    "Suite",
    "THUMBNAIL",
    "Task",
    "UNKNOWN",
    "assemble",
    "estimate_bytes",
    "is_known",
    "is_labelled",
    "list_runs",
    "newest_run",
    "open_run",
    "open_shards",
]
