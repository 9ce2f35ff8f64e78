"""Shards written by the workers of a Ray cluster: one worker a GPU, or a machine where there is none.

Knows Ray. Whatever a lost worker had begun is done again by another. The folder of the run must be the same one on
every machine, as on a shared file system, and the package must be installed there in the same versions.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from htc_probe.extract import models
from htc_probe.extract.capture import fitting_batch_size
from htc_probe.extract.engine import write_shards
from htc_probe.extract.environment import environment
from htc_probe.extract.errors import UserError
from htc_probe.extract.plan import Plan
from htc_probe.extract.store.shards import Job, Shards, unfinished

try:
    import ray
    from ray.exceptions import RayActorError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:  # pragma: no cover - the extra is installed wherever the tests run
    raise UserError(f"--engine ray needs Ray ({error}); install it with: pip install 'htc-probe[ray]'") from error

_MOST_DEATHS = 3  # of workers on one shard, or of one worker in a row, before it is given up
_PATIENCE = 60  # seconds without any worker before that is said


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """Connected to the cluster of $RAY_ADDRESS, or the one that runs on this machine, or a new one of this machine."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; without it Ray warns
    try:
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot reach a Ray cluster: {reason}; start one with `ray start --head`") from error
    try:
        yield
    finally:
        ray.shutdown()


def device(wanted: str) -> tuple[str, str]:
    """Where the workers run the model, and what it is called; the machine of this process may be another kind."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {wanted} names one GPU, and Ray gives every worker its own; use auto, cuda or cpu")
    gpus = ray.cluster_resources().get("GPU", 0)
    if wanted == "cuda" and not gpus:
        raise UserError("--device cuda: the Ray cluster has no GPU; use auto or cpu")
    if wanted == "cpu" or not gpus:
        return "cpu", "cpu"
    return "cuda", _answer(ray.remote(_gpu_name).options(num_gpus=1).remote())


def batch_size(plan: Plan) -> int:
    """What fits into a worker's memory, see `extract.capture.fitting_batch_size`."""
    place, images = plan.place, plan.shape.images
    if place.device == "cpu":
        return _batch_size(place, images)
    return _answer(ray.remote(_batch_size).options(num_gpus=1).remote(place, images))


def write_on_ray(shards: Shards, plan: Plan, *, on_images: Callable[[int], object]) -> None:
    """Writes what is missing; `on_images` is told how many images a shard lacked that is finished now.

    A worker that dies is started again, and its shard goes to whichever worker is free. Raises UserError for what a
    worker raises, for a shard that `_MOST_DEATHS` workers died of, and when no worker is left.
    """
    left = shards.left()
    waiting = deque(left)
    order = ray.put((shards.out, shards.job, os.getcwd(), plan))
    # The shard that each worker writes, or None while it gets ready.
    busy: dict[Any, tuple[_Slot, Any, int | None]] = {}
    idle: list[tuple[_Slot, Any]] = []
    workers: list[Any] = []
    deaths, started = Counter[Any](), time.monotonic()

    def start(slot: _Slot) -> None:
        workers.append(ray.remote(_Worker).options(**slot.options()).remote(order))
        busy[workers[-1].ready.remote()] = slot, workers[-1], None

    try:
        for slot in _slots(plan.place.device, len(waiting)):
            start(slot)
        while waiting or any(shard is not None for _, _, shard in busy.values()):
            while idle and waiting:
                slot, worker = idle.pop()
                number = waiting.popleft()
                busy[worker.write.remote(number)] = slot, worker, number
            if not busy:
                raise UserError(
                    f"every Ray worker died {_MOST_DEATHS} times in a row, as they do when memory runs out; Ray's logs "
                    "say why (/tmp/ray/session_latest/logs)"
                )
            answers, _ = ray.wait(list(busy), timeout=_PATIENCE)
            if not answers and all(shard is None for _, _, shard in busy.values()):
                resources, waited = ray.available_resources(), time.monotonic() - started
                free = ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
                words = f"no Ray worker is ready after {waited:.0f} s; free in the cluster: {free}"
                print(words, file=sys.stderr, flush=True)
            for answer in answers:
                slot, worker, shard = busy.pop(answer)
                try:
                    _answer(answer)
                except RayActorError:
                    deaths[slot] += 1
                    if shard is not None:
                        deaths[shard] += 1
                        waiting.appendleft(shard)
                        if deaths[shard] == _MOST_DEATHS:
                            raise UserError(
                                f"{_MOST_DEATHS} Ray workers died while they worked on shard {shard}, as they do when "
                                "memory runs out; use a smaller --batch-size, or fewer --workers"
                            ) from None
                    if deaths[slot] < _MOST_DEATHS:
                        start(slot)
                    continue
                if shard is not None:
                    deaths[slot] = 0
                    on_images(len(left[shard]))
                idle.append((slot, worker))
    finally:
        for worker in workers:
            ray.kill(worker)


class _Worker:
    """A process with the model; Ray runs it."""

    def __init__(self, order: tuple[Path, Job, str, Plan]):
        out, self._job, folder, self._plan = order
        self._folder = Path(folder)
        self._out = self._folder / out
        self._shards: Shards | None = None

    def ready(self) -> None:
        """Loads the model; nothing a second time."""
        if self._shards is not None:
            return
        host = socket.gethostname()
        shards = Shards(self._out, self._job, own=f"ray-{uuid.uuid4().hex[:8]}")
        if unfinished(self._out) is None:
            raise UserError(f"{host} does not see {shards.folder}; put --out where all machines see the same files")
        os.chdir(self._folder)  # paths of images may be relative
        wanted, installed = self._job.info.environment, environment("")
        for name in installed.keys() - {"device", "platform"}:
            if installed[name] != wanted.get(name):
                raise UserError(f"{name} is {installed[name]} on {host} and {wanted.get(name)} here; install the same")
        self._model, self._checked = models.load_from(self._plan.place), False
        shards.own.mkdir(exist_ok=True)
        self._shards = shards

    def write(self, number: int) -> None:
        self.ready()  # this process may be a new one
        assert self._shards is not None
        write_shards(self._shards, [number], self._plan, self._model, check=not self._checked)
        self._checked = True


class _Slot(NamedTuple):
    """Where a worker runs: a GPU of a machine, or all its cores."""

    node: str
    number: int
    cpus: float
    gpus: int

    def options(self) -> dict[str, Any]:
        """`soft`: elsewhere when the machine is lost."""
        strategy = NodeAffinitySchedulingStrategy(self.node, soft=True)
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "scheduling_strategy": strategy}


def _slots(device: str, most: int) -> list[_Slot]:
    """At most `most`. Raises UserError where there is none."""
    slots: list[_Slot] = []
    for node in ray.nodes():
        resources = node["Resources"] if node["Alive"] else {}
        if device == "cuda":
            slots += [_Slot(node["NodeID"], number, 0, 1) for number in range(int(resources.get("GPU", 0)))]
        elif resources.get("CPU", 0):
            slots.append(_Slot(node["NodeID"], 0, resources["CPU"], 0))
    if not slots:
        raise UserError("the Ray cluster has no machine with a GPU or a CPU to give; add one with `ray start`")
    return slots[:most]


def _answer(reference: Any) -> Any:
    """What a worker gives back, or raises: our own errors as they were."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name()


def _batch_size(place: models.Place, images: int) -> int:
    return fitting_batch_size(models.load_from(place), images)
