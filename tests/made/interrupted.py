"""An extraction to be stopped, and what its file holds. Knows the command and the run file."""

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import h5py
import torch

from htc_probe.extract import engine
from htc_probe.extract.cli import main

IMAGES = 23


def command(model: Path, out: Path, images: int = IMAGES) -> list[str]:
    return [
        "--model",
        str(model),
        "--limit",
        str(images),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--batch-size",
        "2",
        "--shard-images",
        "4",
    ]


def content(path: Path) -> dict[str, Any]:
    """Every dataset of a file, as bytes or text."""
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            value = item[()]
            found[name] = item.dtype, item.shape, value.tolist() if value.dtype == object else value.tobytes()

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def killed_until_finished(arguments: list[str], kills: int, seed: int) -> int:
    """SIGKILLs the command at random moments, then lets it finish; some close a file with every batch, others with the
    shard. A fork costs no second import of torch.
    """
    rng, done = random.Random(seed), 0
    for _ in range(kills):
        seconds = rng.choice([0.0, engine.SECONDS])
        pid = os.fork()
        if pid == 0:
            engine.SECONDS = seconds
            torch.set_num_threads(1)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            os._exit(main(arguments))
        time.sleep(rng.uniform(0.05, 1.0))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        done += os.WIFSIGNALED(status)
    assert main(arguments) == 0
    return done


def torture(model: Path, folder: Path, kills: int, seed: int) -> None:
    for virtual in ([], ["--virtual"]):
        images = 80 if kills < 20 else 400
        reference = folder / f"reference{len(virtual)}.h5"
        assert main(command(model, reference, images)) == 0
        out = folder / f"killed{len(virtual)}.h5"
        done, killed = 0, 0
        while done < kills:
            out.unlink(missing_ok=True)
            shutil.rmtree(out.with_name(out.name + ".shards"), ignore_errors=True)
            killed = killed_until_finished([*command(model, out, images), *virtual], min(kills, 12), seed + done)
            assert content(out) == content(reference)
            assert not out.with_name(out.name + ".partial").exists()
            assert killed, "the command was never killed"
            done += killed
