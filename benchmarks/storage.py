"""HDF5's compressions and chunks on arrays of the shape that a 7B model gives, for `benchmarks.extraction`."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from rich.table import Table

from benchmarks.rounds import time_rounds, timed
from htc_probe.extract.store import CHUNK_BYTES

NOW = "blosc lz4, bits shuffled (now)"
PACKED: dict[str, dict[str, Any]] = {
    NOW: dict(hdf5plugin.Blosc(cname="lz4", shuffle=hdf5plugin.Blosc.BITSHUFFLE)),
    "blosc zstd-1, bits shuffled": dict(hdf5plugin.Blosc(cname="zstd", clevel=1, shuffle=hdf5plugin.Blosc.BITSHUFFLE)),
    "blosc zstd-1, shuffle": dict(hdf5plugin.Blosc(cname="zstd", clevel=1)),
    "gzip-1, shuffle": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
    "gzip-4, shuffle": {"compression": "gzip", "compression_opts": 4, "shuffle": True},
    "lzf, shuffle": {"compression": "lzf", "shuffle": True},
    "none": {},
}
LAYERS, HEADS, KEYS, WIDTH = 32, 32, 581, 4096


def storage(count: int, rounds: int) -> list[Table]:
    """Attention and z_voco of 7B for `count` images in every compression and two ways of chunking each."""
    rng = np.random.default_rng(0)
    tables = []
    for name, array, chunks, read, words in (
        (
            "attention/voco",
            attention_like(rng, count),
            {"an image (now)": (1, LAYERS, HEADS, KEYS), "a layer of an image": (1, 1, HEADS, KEYS)},
            lambda data: data[count // 2],
            "one image",
        ),
        (
            "latents/z_voco",
            rng.standard_normal((count, LAYERS + 1, WIDTH), "float32").astype("float16"),
            {
                "a layer of many images (now)": (min(count, CHUNK_BYTES // (2 * WIDTH)), 1, WIDTH),
                "an image": (1, LAYERS + 1, WIDTH),
            },
            lambda data: data[:, LAYERS // 2],
            "one layer of all images",
        ),
    ):
        with tempfile.TemporaryDirectory() as folder:
            tables.append(storage_table(rounds, name, array, chunks, read, words, Path(folder)))
    return tables


def attention_like(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, L, H, S) float16 rows that sum to 1: a softmax of normal scores (deviation 2), without any likeness
    between rows, so real ones are hardly harder to pack.
    """
    rows = np.empty((count, LAYERS, HEADS, KEYS), "float16")
    for row in rows:
        scores = np.exp(2 * rng.standard_normal(row.shape, "float32"))
        row[:] = scores / scores.sum(-1, keepdims=True)
    return rows


def storage_table(
    rounds: int,
    name: str,
    array: np.ndarray,
    chunks: Mapping[str, tuple[int, ...]],
    read: Callable[[h5py.Dataset], np.ndarray],
    words: str,
    folder: Path,
) -> Table:
    """Writing in batches of 32, and reading from the system's cache with the file opened anew."""
    ways = [(chunk, packed) for chunk in chunks for packed in PACKED]
    paths = {way: folder / f"{number}.h5" for number, way in enumerate(ways)}

    def write(way: tuple[str, str]) -> float:
        started, shape, chunk = time.perf_counter(), array.shape, chunks[way[0]]
        cache = 2 * array[:1].nbytes * chunk[0]  # room for every chunk that is open at once, as RunWriter has
        with h5py.File(paths[way], "w", rdcc_nbytes=cache) as file:
            data = file.create_dataset(
                name, (0, *shape[1:]), array.dtype, maxshape=(None, *shape[1:]), chunks=chunk, **PACKED[way[1]]
            )
            for at in range(0, len(array), 32):
                data.resize(min(at + 32, len(array)), axis=0)
                data[at : at + 32] = array[at : at + 32]
        return time.perf_counter() - started

    def look(way: tuple[str, str]) -> float:
        with h5py.File(paths[way], "r") as file:
            return timed(lambda: read(file[name]))

    writes = time_rounds({way: partial(write, way) for way in ways}, rounds)
    reads = time_rounds({way: partial(look, way) for way in ways}, rounds)
    table = Table(
        "chunk",
        "packed",
        "size",
        "write MB/s",
        f"read {words}, ms",
        title=f"{name} {array.shape} float16, {array.nbytes / 1e6:.0f} MB; medians",
    )
    for way in ways:
        table.add_row(
            *way,
            f"{paths[way].stat().st_size / array.nbytes:.1%}",
            f"{array.nbytes / 1e6 / statistics.median(writes[way]):.0f}",
            f"{1000 * statistics.median(reads[way]):.2f}",
        )
    return table
