"""Reading ahead of the model and writing behind it change nothing but the time, and whatever fails ends in an error."""

import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from htc_probe.extract.capture import as_pixels, capture, fitting_batch_size, search_batch_size
from htc_probe.extract.data import FORMATS, open_source
from htc_probe.extract.data.source import ImageError, Item
from htc_probe.extract.errors import UserError
from htc_probe.extract.images import Frame, prepare, thumbnail
from htc_probe.extract.pipeline import Prepared, Rest, behind, default_workers, read_ahead, without_stand_ins
from htc_probe.extract.store import Batch, Task
from htc_probe.extract.vlm.config import HTCConfig
from htc_probe.extract.vlm.model import HTCVLM
from made.datasets_exact import write_3dshapes, write_clevr, write_datasets, write_gqa
from made.datasets_natural import make_coco, make_cub, make_dtd, make_paco

SIZE = 16
FRAME = Frame(SIZE, "pad", (0.5, 0.4, 0.3))


class Numbered(NamedTuple):
    """A source of coloured oblongs that writes down, in `folder`, which were read, and has trouble where it is told."""

    folder: str
    count: int = 40
    broken: tuple[int, ...] = ()
    deadly: int = -1
    faulty: int = -1
    name: str = "numbered"
    split: str = "val"
    tasks: tuple[Task, ...] = (Task("number", "detail", "number"),)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:  # type: ignore[override]
        if self.folder:
            Path(self.folder, str(index)).touch()
        if index in self.broken:
            raise ImageError(f"{index}.png", "planted")
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == self.faulty:
            raise ZeroDivisionError
        image = oblong(index)
        return Item(str(index), f"{index}.png", str(index // 2), image, {"number": float(index)})


def oblong(index: int) -> Image.Image:
    pixels = np.random.default_rng(index).integers(0, 256, (20, 30 + index % 7, 3))
    return Image.fromarray(pixels.astype(np.uint8))


class Limited(HTCVLM):
    """A model on a device with memory for `room` images, where every call takes the same time."""

    room = 3
    ran: list[int]

    def encode(self, pixel_values: torch.Tensor) -> Any:
        if len(pixel_values) > self.room:
            raise torch.cuda.OutOfMemoryError("planted")
        self.ran.append(len(pixel_values))
        time.sleep(0.2)  # far more than the model itself takes, also on a busy machine
        return super().encode(pixel_values)


def small(kind: type[HTCVLM] = HTCVLM) -> Any:
    torch.manual_seed(0)
    config = HTCConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "patch_size": 4,
        },
        text_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 30,
            "max_position_embeddings": 64,
        },
        mgvq={
            "widths": (16, 32, 32),
            "depths": (0, 1, 1),
            "groups": 4,
            "codebook_size": 64,
            "latent_channels": 16,
            "attention_stages": 1,
            "head_dim": 16,
        },
    )
    return kind(config).eval()


@pytest.fixture(scope="module")
def model() -> HTCVLM:
    return small()


def same(batches: list[Batch], others: list[Batch]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for name, value in batch._asdict().items():
            if isinstance(value, np.ndarray):
                assert value.tobytes() == getattr(other, name).tobytes(), name
            elif name == "labels":
                assert {task: array.tobytes() for task, array in value.items()} == {
                    task: array.tobytes() for task, array in other.labels.items()
                }
            else:
                assert value == getattr(other, name)


# ---- ahead


def test_workers_change_no_byte_and_errors_keep_their_place(model: HTCVLM, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("read").mkdir()
    source = Numbered("read", broken=(0, 9, 10, 39))  # a relative path means the same in a worker
    found: dict[int, tuple[list[Batch], list[Any]]] = {}
    for workers in (0, 2):
        rest = Rest(source, range(len(source)), skip=True)
        parts = [without_stand_ins(batch) for batch in capture(model, rest, batch_size=7, workers=workers)]
        found[workers] = [batch for batch, _ in parts], [left_out for _, several in parts for left_out in several]
        errors = [each for each in read_ahead(source, FRAME, workers=workers, ahead=8) if isinstance(each, ImageError)]
        told = [(type(error), error.path, error.reason, str(error)) for error in errors]
        assert told == [(ImageError, f"{i}.png", "planted", f"{i}.png: planted") for i in source.broken]
    same(found[0][0], found[2][0])
    assert found[0][1] == found[2][1] == [(f"{i}.png", "planted") for i in source.broken]
    assert [len(batch.ids) for batch in found[2][0]] == [6, 5, 7, 7, 7, 4]
    ids = [int(name) for batch in found[2][0] for name in batch.ids]
    assert ids == [i for i in range(40) if i not in source.broken]


def test_the_first_error_is_raised_after_what_came_before(model: HTCVLM, tmp_path: Path) -> None:
    batches = capture(model, Numbered(str(tmp_path), broken=(9, 12)), batch_size=4)
    assert [next(batches).ids, next(batches).ids] == [["0", "1", "2", "3"], ["4", "5", "6", "7"]]
    with pytest.raises(ImageError, match="9.png: planted"):
        next(batches)


def test_a_killed_worker_is_one_line_and_what_was_read_before_it_arrives(tmp_path: Path) -> None:
    images = read_ahead(Numbered(str(tmp_path), deadly=12), FRAME, workers=2, ahead=8)
    assert [image.id for image in itertools.islice(images, 8) if isinstance(image, Prepared)] == list("01234567")
    with pytest.raises(UserError, match="killed by SIGKILL.*--workers 1 or 0") as caught:
        list(images)
    assert "\n" not in str(caught.value)


def test_processes_read_many_images_for_a_gpu() -> None:
    assert default_workers(100, "cuda") == default_workers(1_000_000, "cpu") == 0
    assert 0 <= default_workers(1_000_000, "cuda:1") < (os.cpu_count() or 1)


def test_a_fault_of_our_own_in_a_worker_is_no_mistake_of_the_user_s(tmp_path: Path, capfd: Any) -> None:
    with pytest.raises(RuntimeError, match="exit code 1; its own traceback is above"):
        list(read_ahead(Numbered(str(tmp_path), faulty=2), FRAME, workers=1, ahead=8))
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_workers_stay_a_little_ahead_and_end_when_nobody_wants_more(tmp_path: Path) -> None:
    threads, processes = set(threading.enumerate()), set(multiprocessing.active_children())
    images = read_ahead(Numbered(str(tmp_path), count=400), FRAME, workers=1, ahead=10)
    next(images)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 20 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)  # in which it could go on
    assert 20 <= len(list(tmp_path.iterdir())) <= 30
    images.close()
    assert set(multiprocessing.active_children()) <= processes and set(threading.enumerate()) <= threads


SOURCES: dict[str, Callable[[Path], object]] = {
    "3dshapes": write_3dshapes,
    "clevr": write_clevr,
    "datasets": write_datasets,
    "gqa": write_gqa,
    "coco": make_coco,
    "cub": make_cub,
    "dtd": make_dtd,
    "paco": make_paco,
}


def opened(name: str, folder: Path) -> Any:
    if name == "scenes":
        return open_source(name, "val", limit=3)
    if name == "folder":
        (folder / "val").mkdir()
        oblong(1).save(folder / "val" / "a.png")
        return open_source(str(folder), "val")
    root = SOURCES[name](folder)
    split = "test" if name in ("cub", "dtd") else "val"
    return open_source(f"{name}:{root}", split, limit=3)


@pytest.mark.parametrize("name", ["scenes", "folder", *FORMATS])
def test_every_source_can_be_sent_to_a_worker(name: str, tmp_path: Path) -> None:
    source = opened(name, tmp_path)
    wanted = source[0]  # with whatever it opens for that
    found = pickle.loads(pickle.dumps(source))[0]
    assert found.image.tobytes() == wanted.image.tobytes() and found.id == wanted.id
    assert set(found.labels) == {task.name for task in source.tasks}


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_what_is_read_is_what_the_model_and_the_run_see(fit: Any) -> None:
    frame = FRAME._replace(fit=fit)
    images = [image for image in read_ahead(Numbered("", count=3), frame) if isinstance(image, Prepared)]
    pixels = as_pixels(images, torch.device("cpu"))
    for i in range(3):
        assert torch.equal(pixels[i], prepare(oblong(i), SIZE, fit=fit, mean=frame.mean))
        np.testing.assert_array_equal(images[i].thumbnail, thumbnail(oblong(i), fit=fit, mean=frame.mean))


# ---- behind


def test_everything_is_consumed_in_order_in_another_thread() -> None:
    taken: list[int] = []
    threads: set[int] = set()

    def consume(number: int) -> None:
        time.sleep(0.001)
        threads.add(threading.get_ident())
        taken.append(number)

    with behind(consume) as put:
        for number in range(50):
            put(number)
    assert taken == list(range(50))
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_no_more_than_two_wait() -> None:
    handed, most = [0], [0]
    taken: list[int] = []

    def consume(number: int) -> None:
        time.sleep(0.005)
        most[0] = max(most[0], handed[0] - len(taken))
        taken.append(number)

    with behind(consume) as put:
        for number in range(20):
            put(number)
            handed[0] = number + 1
    assert most[0] == 2


def failing_at(bad: int, taken: list[int]) -> Callable[[int], None]:
    def consume(number: int) -> None:
        if number == bad:
            raise UserError(f"no room for {number}")
        taken.append(number)

    return consume


def test_a_failure_behind_comes_out_of_the_next_call_and_ends_it_all() -> None:
    taken: list[int] = []
    handed = 0
    with pytest.raises(UserError, match="no room for 3"), behind(failing_at(3, taken)) as put:
        for number in range(1000):
            put(number)
            handed += 1
    assert taken == [0, 1, 2] and handed <= 6


def test_a_failure_of_the_last_comes_out_of_the_end() -> None:
    taken: list[int] = []
    with pytest.raises(UserError, match="no room for 1"), behind(failing_at(1, taken)) as put:
        put(0)
        put(1)
    assert taken == [0]


def test_a_failure_ahead_is_the_one_that_shows_and_stops_what_waits() -> None:
    taken: list[int] = []
    running, go = threading.Event(), threading.Event()

    def consume(number: int) -> None:
        running.set()
        go.wait(10)
        taken.append(number)

    with pytest.raises(KeyError), behind(consume) as put:
        put(0)
        put(1)
        running.wait(10)
        threading.Timer(0.05, go.set).start()
        raise KeyError
    assert taken == [0], "what was begun is finished, and what waited is not"


def test_memory_does_not_grow_with_the_number_of_images(model: HTCVLM) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        with behind(lambda batch: time.sleep(0.002)) as put:
            for batch in capture(model, Numbered("", count=count), batch_size=10):
                put(batch)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)  # what is imported and cached on the way does not count
    assert peak(400) < 1.3 * peak(50)


# ---- the size of a batch


def test_halving_loses_no_image_and_keeps_the_order(model: HTCVLM) -> None:
    limited, told = small(Limited), []
    limited.ran = []
    batches = list(capture(limited, Numbered("", count=21), batch_size=16, on_memory=told.append))
    assert told == [8, 4, 2] and max(limited.ran) == 2
    assert [name for batch in batches for name in batch.ids] == [str(i) for i in range(21)]
    whole = list(capture(model, Numbered("", count=21), batch_size=2))
    same(batches, whole)


def test_without_leave_to_halve_the_error_is_raised() -> None:
    limited = small(Limited)
    limited.ran = []
    with pytest.raises(torch.cuda.OutOfMemoryError):
        next(capture(limited, Numbered("", count=8), batch_size=4))
    limited.room = 0
    told: list[int] = []
    with pytest.raises(torch.cuda.OutOfMemoryError):
        next(capture(limited, Numbered("", count=8), batch_size=4, on_memory=told.append))
    assert told == [2, 1]


def test_the_largest_batch_that_fits_is_found() -> None:
    limited = small(Limited)
    for room, most, wanted in ((1, 64, 1), (5, 64, 4), (64, 8, 8)):
        limited.room, limited.ran = room, []
        assert search_batch_size(limited, most=most) == wanted
    limited.room = 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        search_batch_size(limited, most=8)


def test_on_a_cpu_the_size_is_not_measured(model: HTCVLM) -> None:
    assert fitting_batch_size(model) == fitting_batch_size(model) >= 8
    assert model.config.frame.size == SIZE


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    before = set(multiprocessing.active_children())  # of test files that ran before in this process
    yield
    assert set(multiprocessing.active_children()) <= before
