"""Runs in which is planted what a probe should find. Knows the run file; not models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from htc_probe.extract.store import Batch, RunInfo, RunShape, RunWriter, Task
from htc_probe.probes.study.protocol import Settings

N, WIDTH = 240, 12

SHAPE = Task("shape", "semantic", "classes", ("disc", "box", "star"))

PRESENT = Task("present", "semantic", "multilabel", ("cat", "dog", "hat"))

SIZE = Task("size", "detail", "number", unit="px")

COIN = Task("coin", "detail", "classes", ("heads", "tails"))

TASKS = (SHAPE, PRESENT, SIZE, COIN)


def make_run(
    path: Path,
    z_voco: np.ndarray,
    labels: dict[Task, np.ndarray],
    *,
    v_d: np.ndarray | None = None,
    v_pooled: np.ndarray | None = None,
    codes: np.ndarray | None = None,
    thumbnails: np.ndarray | None = None,
    ids: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    stack: tuple[int, ...] | None = None,
) -> Path:
    """A run of what is given, (n, layers, D) and (n, ...), random where it is not; its layers end in the last given."""
    n, given, width = z_voco.shape
    stack = tuple(range(given)) if stack is None else stack
    layers = max(given - 1, 1)
    rng = np.random.default_rng(9)
    v_d = rng.standard_normal((n, 2, width)) if v_d is None else v_d
    anchors = v_d.shape[1]
    roles = ("anchor",) * anchors + ("patch", "voco")
    keys = len(roles)
    shape = RunShape(
        n,
        layers,
        stack,
        1,
        width,
        anchors,
        None if codes is None else codes.shape[1:],
        roles,
        (-1,) * keys,
        (-1,) * keys,
    )
    info = RunInfo({}, {"name": "planted", "sha256": "00"}, "planted", "val", "star" if anchors else "patches", {})
    with RunWriter(path, info, shape, tuple(labels), store_dtype="float32") as writer:
        writer.append(
            Batch(
                ids=[f"image {i}" for i in range(n)] if ids is None else list(ids),
                paths=[f"{i}.png" for i in range(n)],
                groups=[f"group {i}" for i in range(n)] if groups is None else list(groups),
                thumbnails=np.zeros((n, 96, 96, 3), np.uint8) if thumbnails is None else thumbnails,
                z_voco=z_voco[:, list(stack)].astype(np.float32),
                v_d=v_d.astype(np.float32),
                v_pooled=(rng.standard_normal((n, width)) if v_pooled is None else v_pooled).astype(np.float32),
                codes=codes,
                attention=np.full((n, shape.layers, 1, keys), 1 / keys, dtype=np.float32),
                labels={task.name: values for task, values in labels.items()},
            )
        )
        return writer.finish()


def planted_run(
    path: Path,
    labelled: Sequence[Task] = TASKS,
    *,
    stack: tuple[int, ...] = (0, 1, 2),
    seed: int = 0,
    prefix: str = "",
    **changes,
) -> Path:
    """Groups of two images. z_voco holds nothing at layer 0, size at 1, all but the coin at 2; v_d shapes, v_pooled the
    size. `seed` draws other images of the same world.
    """
    world, rng = np.random.default_rng(0), np.random.default_rng([seed, 1])
    factor = np.repeat(rng.standard_normal((N // 2, 4)), 2, 0)
    embedding = world.standard_normal(WIDTH)

    def mixed(columns: list[int], *size: int) -> np.ndarray:
        signal = factor[:, columns] @ world.standard_normal((len(columns), int(np.prod(size))))
        return (signal + 0.3 * rng.standard_normal(signal.shape)).reshape(N, *size)

    z_voco = np.stack([np.tile(embedding, (N, 1)), mixed([3], WIDTH), mixed([0, 1, 2, 3], WIDTH)], 1)
    v_d, v_pooled = mixed([0, 1, 2], 2, WIDTH), mixed([3], WIDTH)
    labels = {
        SHAPE: factor[:, :3].argmax(1),
        PRESENT: (factor[:, :3] > 0).astype(np.uint8),
        SIZE: factor[:, 3],
        COIN: np.repeat(rng.integers(0, 2, N // 2), 2),
    }
    labels[SHAPE][:4] = -1
    given = {"v_d": v_d, "v_pooled": v_pooled, "groups": [f"{prefix}group {i // 2}" for i in range(N)]} | changes
    return make_run(path, z_voco, {task: labels[task] for task in labelled}, stack=stack, **given)


def quick(*names: str, representations: Sequence[str] = ("z_voco",), **more) -> Settings:
    """As little as answers a question."""
    rest = {"controls": False, "folds": 3, "jobs": 1} | more
    return Settings(names=names, representations=tuple(representations), **rest)
