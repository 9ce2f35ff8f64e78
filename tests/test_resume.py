"""An extraction that is stopped, at whatever moment, goes on: the data are an uninterrupted run's, byte for byte."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from htc_probe.extract import engine, files
from htc_probe.extract.cli import main
from htc_probe.extract.data import scenes
from htc_probe.extract.errors import UserError
from htc_probe.extract.info import main as info
from htc_probe.extract.plan import parse_share
from htc_probe.extract.store import assembly, list_runs, open_run, open_shards
from htc_probe.extract.store.shards import unfinished
from htc_probe.extract.vlm import star
from made.interrupted import IMAGES, command, content, torture

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[1]
honest_compress, honest_render = star.compress, scenes.render


def interrupted_after(images: int, monkeypatch: Any, error: BaseException) -> None:
    drawn = 0

    def render(*args: Any) -> Any:
        nonlocal drawn
        drawn += 1
        if drawn > images:
            raise error
        return honest_render(*args)

    monkeypatch.setattr(scenes, "render", render)


def start(arguments: list[str], **settings: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "htc_probe.extract.cli", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **settings,
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the model broke"), MemoryError()])
def test_what_was_finished_stays_and_the_same_command_continues(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, error: BaseException
) -> None:
    out = tmp_path / "run.h5"
    interrupted_after(11, monkeypatch, error)
    if isinstance(error, KeyboardInterrupt):
        assert main(command(model, out)) == 130
        assert f"8 of {IMAGES} images are kept" in capsys.readouterr().err
    else:
        with pytest.raises(type(error)):
            main(command(model, out))
    assert not out.exists() and not list_runs(tmp_path)
    capsys.readouterr()
    assert info([str(out)]) == 2 and f"8 of {IMAGES} images; the htc-extract" in capsys.readouterr().err
    monkeypatch.setattr(scenes, "render", honest_render)
    interrupted_after(IMAGES - 8, monkeypatch, AssertionError("a finished image was made again"))
    assert main(command(model, out)) == 0
    assert content(out) == content(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]
    assert main(command(model, out)) == 0 and "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("skipped", [(), (0, 1, 6, 12)])
def test_files_that_are_closed_by_time_give_the_same_run(
    model: Path, tmp_path: Path, monkeypatch: Any, skipped: tuple[int, ...]
) -> None:
    """A shard in one file, and in one a batch, in two goes."""
    folder = tmp_path / "images" / "val"
    folder.mkdir(parents=True)
    source = scenes.ScenesSource("val", resolution=64, limit=15)
    for at in range(len(source)):
        source[at].image.save(folder / f"{at:02}.png")
    for broken in skipped:
        (folder / f"{broken:02}.png").write_bytes(b"no image")
    base = ["--model", str(model), "--device", "cpu", "--batch-size", "2", "--data", str(tmp_path / "images")]
    base += ["--on-error", "skip", "--shard-images", "10", "--out"]
    assert main([*base, str(tmp_path / "one.h5")]) == 0
    monkeypatch.setattr(engine, "SECONDS", 0)
    for virtual in ([], ["--virtual"]):
        out = tmp_path / f"many{len(virtual)}.h5"
        assert main([*base, str(out), "--shard", "1/2"]) == 0
        shards = unfinished(out)
        assert shards is not None
        assert [(piece.images.start, piece.images.stop) for piece in shards.pieces()] == [(10, 12), (12, 14), (14, 15)]
        assert shards.left() == {0: range(10)} and shards.done() == 5
        assert main([*base, str(out), *virtual]) == 0
        assert content(out) == content(tmp_path / "one.h5")
        with open_run(out) as run:
            assert len(run) == 15 - len(skipped) and [Path(path).stem for path, _ in run.skipped] == [
                f"{at:02}" for at in skipped
            ]


def test_a_kill_loses_what_was_not_closed_alone(model: Path, whole: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "run.h5"
    arguments = [*command(model, out)[:-1], "100"]  # one shard
    pid = os.fork()
    if pid == 0:
        drawn = 0

        def render(*args: Any) -> Any:
            nonlocal drawn
            drawn += 1
            if drawn > 11:
                os.kill(os.getpid(), signal.SIGKILL)
            return honest_render(*args)

        scenes.render, engine.SECONDS = render, 0
        os._exit(main(arguments))
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)
    shards = unfinished(out)
    assert shards is not None and 8 <= shards.done() <= 10, "batches of 2, of which one was being made"
    interrupted_after(IMAGES - shards.done(), monkeypatch, AssertionError("an image that was kept was made again"))
    assert main(arguments) == 0
    assert content(out) == content(whole)


def test_files_of_two_workers_are_taken_once(model: Path, tmp_path: Path) -> None:
    """One that was taken for lost wrote on beside the one that took its place."""
    out = tmp_path / "run.h5"
    assert main([*command(model, out), "--shard", "0/2"]) == 0
    shards = unfinished(out)
    assert shards is not None
    for path in (shards.folder).glob("*-*.h5"):
        path.unlink()
    for name in ("0-2", "0-3", "2-4", "3-4", "5-8", "8-10", "8-9", "10-13", "20-22", "22-23", "23-24", "x-1", "4-4"):
        (shards.folder / f"{name}.h5").touch()
    kept = [(piece.images.start, piece.images.stop) for piece in shards.pieces()]
    assert kept == [(0, 3), (3, 4), (8, 10), (20, 22), (22, 23)]
    assert shards.left() == {1: range(4, 8), 2: range(10, 12), 3: range(12, 16), 4: range(16, 20)}


def test_what_another_version_left_is_called_so(model: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run.h5"
    assert main([*command(model, out), "--shard", "0/2"]) == 0
    manifest = out.with_name("run.h5.shards") / "manifest.json"
    for version in (1, 3):
        content = json.loads(manifest.read_text()) | {"schema_version": version}
        manifest.write_text(json.dumps(content))
        assert main(command(model, out)) == 2
        said = capsys.readouterr().err
        assert f"another version of htc-probe (schema version {version}, expected 2)" in said and "remove" in said
        assert list(manifest.parent.glob("*-*.h5")), "nothing of it was touched"


def test_other_settings_are_refused_while_a_run_is_unfinished(
    model: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    out = tmp_path / "run.h5"
    interrupted_after(5, monkeypatch, KeyboardInterrupt())
    assert main(command(model, out)) == 130
    before = sorted(path.name for path in out.with_name("run.h5.shards").iterdir())
    capsys.readouterr()
    assert main([*command(model, out), "--layers", "0", "--batch-size", "4", "--limit", "9"]) == 2
    said = capsys.readouterr().err
    for words in ("layers: 0,1,2,3 there, 0 now", "batch_size: 2 there, 4 now", "images: 23 there, 9 now"):
        assert words in said
    assert said.count("\n") == 1 and "00000000-00000004.h5" in before
    assert sorted(path.name for path in out.with_name("run.h5.shards").iterdir()) == before


def test_the_batch_size_that_was_found_is_kept(model: Path, whole: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "run.h5"
    auto = ["--model", str(model), "--limit", str(IMAGES), "--out", str(out), "--device", "cpu"]
    assert main(auto) == 0
    with open_run(out) as run:
        assert run.info.config["batch_size"] == 32, "what a CPU gets"
    out.unlink()
    interrupted_after(11, monkeypatch, KeyboardInterrupt())
    assert main(command(model, out)) == 130
    monkeypatch.setattr(scenes, "render", honest_render)
    assert main([*auto, "--shard-images", "4"]) == 0, "auto goes on with the batches that are there"
    assert content(out) == content(whole)


def test_parts_give_the_same_run(model: Path, whole: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    out = tmp_path / "run.h5"
    assert main(["--out", str(out), "--merge"]) == 2 and "no shards" in capsys.readouterr().err
    assert main([*command(model, out), "--shard", "0/2"]) == 0
    assert main(["--out", str(out), "--merge"]) == 2
    assert "3 of 6 shards" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command(model, out)) == 0 and not out.exists()
    assert main(["--out", str(out), "--merge"]) == 0
    assert content(out) == content(whole) and [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_what_is_finished_can_be_read_before_the_rest(model: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    assert main([*command(model, out), "--shard", "0/2"]) == 0
    there = [*range(0, 4), *range(8, 12), *range(16, 20)]
    shards = unfinished(out)
    assert shards is not None
    with open_shards(out, [piece.path for piece in shards.pieces()]) as run, open_run(whole) as full:
        assert not run.finished and full.finished and len(run) == len(there) and not run.skipped
        assert run.ids() == [full.ids()[at] for at in there] and run.tasks == full.tasks
        np.testing.assert_array_equal(run.z_voco(2), full.z_voco(2)[there])
        np.testing.assert_array_equal(run.anchor_mass(), full.anchor_mass()[there])
        np.testing.assert_array_equal(run.labels("category"), full.labels("category")[there])
        np.testing.assert_array_equal(run.attention(5), full.attention(9))
        np.testing.assert_array_equal(run.thumbnail(11), full.thumbnail(19))
        with pytest.raises(UserError, match="holds 0 to 11"):
            run.attention(12)
    with pytest.raises(UserError, match="no finished shard yet"):
        open_shards(out, [])


def test_a_part_is_named_or_found(monkeypatch: Any) -> None:
    assert parse_share(None) == (0, 1) and parse_share("2/3") == (2, 3)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert parse_share(None) == (3, 4) and parse_share("0/1") == (0, 1)
    for text in ("3/3", "1", "a/b", "-1/2", "0/0"):
        with pytest.raises(UserError, match="not a part of the work"):
            parse_share(text)


def test_a_virtual_run_is_the_same_and_needs_its_shards(model: Path, whole: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "100%b.h5"
    assert main([*command(model, out), "--virtual"]) == 0
    assert content(out) == content(whole)
    assert main(command(model, out)) == 0 and "nothing to do" in capsys.readouterr().out
    shard = tmp_path / "100%b.h5.shards" / "00000008-00000012.h5"
    with open_run(out) as run, open_run(whole) as copy:
        assert run.virtual and not copy.virtual
        for layer in range(4):
            np.testing.assert_array_equal(run.z_voco(layer), copy.z_voco(layer))
        for mine, theirs in zip(run.attention_blocks(), copy.attention_blocks(), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(run.codes(), copy.codes())
        for image in (0, 9, IMAGES - 1):
            np.testing.assert_array_equal(run.attention(image), copy.attention(image))
            np.testing.assert_array_equal(run.thumbnail(image), copy.thumbnail(image))
        kept = shard.read_bytes()
        shard.unlink()
        with pytest.raises(UserError, match="damaged at codes"):
            run.codes()
    with pytest.raises(UserError, match="00000008-00000012.h5 is missing"):
        open_run(out)
    shard.write_bytes(kept[:-1])
    with pytest.raises(UserError, match="has changed"):
        open_run(out)


def test_skipped_images_do_not_move_the_batches(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "val"
    folder.mkdir(parents=True)
    source = scenes.ScenesSource("val", resolution=64, limit=13)
    for at in range(len(source)):
        source[at].image.save(folder / f"{at:02}.png")
    for broken in (1, 4, 5, 6, 7):
        (folder / f"{broken:02}.png").write_bytes(b"no image")
    arguments = ["--data", str(tmp_path / "photos"), "--on-error", "skip"]
    base = command(model, tmp_path / "a.h5")
    del base[2:4]  # no --limit
    assert main([*base, *arguments]) == 0
    base[base.index(str(tmp_path / "a.h5"))] = str(tmp_path / "b.h5")
    for part in ("1/2", "0/2"):
        assert main([*base, *arguments, "--shard", part]) == 0
    assert main(["--out", str(tmp_path / "b.h5"), "--merge"]) == 0
    assert content(tmp_path / "a.h5") == content(tmp_path / "b.h5")
    with open_run(tmp_path / "b.h5") as run:
        assert len(run) == 8 and [Path(path).stem for path, _ in run.skipped] == ["01", "04", "05", "06", "07"]


def test_a_damaged_shard_or_copy_is_never_a_run(model: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    out = tmp_path / "run.h5"
    assert main([*command(model, out), "--shard", "0/2"]) == 0
    assert main([*command(model, out), "--shard", "1/2"]) == 0
    shard = tmp_path / "run.h5.shards" / "00000004-00000008.h5"
    with h5py.File(shard) as file:
        info = file["attention/voco"].id.get_chunk_info(1)
    data = bytearray(shard.read_bytes())
    data[info.byte_offset + info.size // 2] ^= 1
    shard.write_bytes(data)
    assert main(["--out", str(out), "--merge"]) == 2
    assert "00000004-00000008.h5 is damaged at attention/voco" in capsys.readouterr().err and not out.exists()
    shard.unlink()
    assert main(command(model, out)) == 0 and out.exists()


def test_a_second_process_is_told_and_harms_nothing(model: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    first = start(command(model, out))
    while not (tmp_path / "run.h5.shards" / "manifest.json").exists():
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)  # it holds the lock for as long as the test needs
    second = start(command(model, out))
    _, said = second.communicate(timeout=600)
    os.kill(first.pid, signal.SIGCONT)
    assert second.returncode == 2 and "another process is writing" in said and said.count("\n") == 1
    assert first.wait(60) == 0 and content(out) == content(whole)


@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_keep_what_is_finished(
    model: Path, tmp_path: Path, how: signal.Signals, status: int
) -> None:
    out = tmp_path / "run.h5"
    images = [*command(model, out, 400)]
    # A shell starts what it puts in the background, tests perhaps, with SIGINT ignored.
    process = start(images, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while not (tmp_path / "run.h5.shards" / "00000004-00000008.h5").exists():
        time.sleep(0.01)
    process.send_signal(how)
    _, said = process.communicate(timeout=600)
    assert process.returncode == status and "the same command goes on" in said and "Traceback" not in said
    assert not list((tmp_path / "run.h5.shards").glob("*/*"))


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # which would be a traceback
def test_a_sigterm_that_a_destructor_swallowed_is_answered_at_the_next_batch(
    model: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    class Late:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)  # in which the signal arrives, whose exception nobody can catch

    drawn = 0

    def render(*args: Any) -> Any:
        nonlocal drawn
        drawn += 1
        if drawn == 11:
            Late()
        return honest_render(*args)

    monkeypatch.setattr(scenes, "render", render)
    assert main(command(model, tmp_path / "run.h5")) == 143
    assert drawn < 16 and "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("room", [18_000_000, 25_150_000])
def test_a_full_disk_keeps_what_is_finished(model: Path, whole: Path, tmp_path: Path, room: int) -> None:
    """A small file system fills up before the first shard is finished, and after some are."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = 40_000_000
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        out, filler = disk / "run.h5", disk / "filler"
        filler.write_bytes(bytes(size - room))
        process = start(command(model, out))
        _, said = process.communicate(timeout=600)
        assert process.returncode == 2 and "no room left" in said and said.count("\n") == 1, said
        shards = list(disk.glob("run.h5.shards/*.h5"))
        assert bool(shards) == (room > 20_000_000) and bool(shards) == ("images are kept" in said)
        filler.unlink()
        assert not out.exists() and main(command(model, out)) == 0
        assert content(out) == content(whole)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_killed_at_random_moments(model: Path, tmp_path: Path) -> None:
    torture(model, tmp_path, 5, seed=0)


def test_killed_while_it_is_put_together(model: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    for part in ("0/2", "1/2"):
        assert main([*command(model, out), "--shard", part]) == 0
    for module, at in ((assembly, "_copy"), (assembly, "_same"), (files, "sync")):
        pid = os.fork()
        if pid == 0:
            honest, calls = getattr(module, at), 0

            def deadly(*args: Any, honest: Any = honest, at: str = at) -> Any:
                nonlocal calls
                calls += 1
                if calls > (20 if at != "sync" else 1):
                    os.kill(os.getpid(), signal.SIGKILL)
                return honest(*args)

            setattr(module, at, deadly)
            os._exit(main(["--out", str(out), "--merge"]))
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) and not out.exists() and not list_runs(tmp_path)
        assert out.with_name("run.h5.partial").exists()
    assert main(["--out", str(out), "--merge"]) == 0
    assert content(out) == content(whole) and [path.name for path in tmp_path.iterdir()] == ["run.h5"]
