"""--engine ray on a cluster of two machines within this one: one process's run, also when a worker is killed."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from htc_probe.extract.cli import main
from htc_probe.extract.data import scenes
from made.interrupted import command, content

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def machines() -> Iterator[Any]:
    """Two, with a core each, so that a worker computes with one thread as the run does that it is compared with."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture(autouse=True)
def address(machines: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("RAY_ADDRESS", machines.address)


def workers() -> list[int]:
    """The processes that write shards."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cmdline").read_bytes().startswith(b"ray::_Worker.write"):
                found.append(int(entry.name))
        except OSError:
            continue  # it ended just now
    return found


def test_a_killed_workers_shard_is_done_again(model: Path, whole: Path, tmp_path: Path) -> None:
    out, killed = tmp_path / "run.h5", []

    def kill() -> None:
        folder = tmp_path / "run.h5.shards"
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            if list(folder.glob("*.h5")) and (found := workers()):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    assert main([*command(model, out), "--engine", "ray"]) == 0
    killer.join()
    assert killed, "no worker was killed, so nothing was tested"
    assert content(out) == content(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_a_run_of_one_process_goes_on_with_ray(model: Path, whole: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run.h5"
    assert main([*command(model, out), "--shard", "0/2"]) == 0
    assert main([*command(model, out), "--engine", "ray"]) == 0
    assert "12 images are kept from before" in capsys.readouterr().out
    assert content(out) == content(whole)
    assert main([*command(model, out), "--engine", "ray"]) == 0 and "nothing to do" in capsys.readouterr().out


def test_what_stops_a_worker_is_one_line(model: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "photos" / "val"
    folder.mkdir(parents=True)
    for number in range(6):
        scenes.render(scenes.scene("val", number), 32).save(folder / f"{number}.png")
    (folder / "5.png").write_bytes(b"no picture")
    arguments = [
        "--model",
        str(model),
        "--data",
        str(folder.parent),
        "--out",
        str(tmp_path / "run.h5"),
        "--batch-size",
        "2",
        "--shard-images",
        "2",
        "--engine",
        "ray",
    ]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "5.png" in said and "--on-error skip" in said
    assert main([*arguments, "--on-error", "skip"]) == 2  # other settings than those of the shards that are there
    assert "on_error: stop there, skip now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--shard", "0/2"), "leave out --shard"),
        (("--device", "cuda:1"), "gives every worker its own"),
        (("--device", "cuda"), "has no GPU"),
    ],
)
def test_settings_that_ray_decides_are_refused(
    model: Path, tmp_path: Path, capsys: Any, given: tuple[str, ...], words: str
) -> None:
    assert main([*command(model, tmp_path / "run.h5"), "--engine", "ray", *given]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said
