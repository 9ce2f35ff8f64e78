"""Laws of the run file: what is written is read back, and a broken file is refused with a way out."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from htc_probe.extract.errors import UserError
from htc_probe.extract.store import (
    Batch,
    RunInfo,
    RunShape,
    RunWriter,
    Task,
    assemble,
    estimate_bytes,
    list_runs,
    newest_run,
    open_run,
    open_shards,
)

TASKS = (
    Task("shape", "semantic", "classes", ("disc", "box", "star")),
    Task("present", "semantic", "multilabel", ("cat", "dög")),
    Task("size", "detail", "number", unit="fraction of the width"),
    Task("a later name", "detail", "classes", ("x", "y")),
)
INFO = RunInfo(
    config={"split": "val", "limit": None},
    model={"name": "tiny", "sha256": "ab", "config": {"layers": 3}},
    dataset="scenes",
    split="val",
    topology="star",
    environment={"numpy": np.__version__},
)
ROLES = ("prefix", "anchor", "anchor", "patch", "patch", "patch", "patch", "voco")


def shape_of(images: int, stack: tuple[int, ...] = (0, 1, 2, 3), width: int = 6) -> RunShape:
    return RunShape(
        images=images,
        layers=3,
        stack=stack,
        heads=2,
        width=width,
        anchors=2,
        codes=(3, 3, 2),
        roles=ROLES,
        rows=(-1, -1, -1, 0, 0, 1, 1, -1),
        cols=(-1, -1, -1, 0, 1, 0, 1, -1),
    )


def batch_of(shape: RunShape, first: int, count: int) -> Batch:
    rng = np.random.default_rng(first)

    def normal(*size: int) -> np.ndarray:
        return rng.standard_normal((count, *size)).astype(np.float32)

    attention = rng.dirichlet(np.ones(shape.keys), (count, shape.layers, shape.heads)).astype(np.float32)
    size = rng.random(count)
    size[0] = np.nan
    return Batch(
        ids=[f"scene-{first + i} ✓" for i in range(count)],
        paths=[f"val/{first + i}.png" for i in range(count)],
        groups=[f"g{(first + i) // 2}" for i in range(count)],
        thumbnails=rng.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8),
        z_voco=normal(len(shape.stack), shape.width),
        v_d=normal(shape.anchors, shape.width),
        v_pooled=normal(shape.width),
        codes=rng.integers(0, 2**16, (count, *shape.codes)),
        attention=attention,
        labels={
            "shape": rng.integers(-1, 3, count),
            "present": rng.choice([0, 1, 255], (count, 2)),
            "size": size,
            "a later name": np.full(count, -1),
        },
    )


def write(path: Path, shape: RunShape, batches: list[Batch], *, dtype: str = "float16", **finish) -> Path:
    with RunWriter(path, INFO, shape, TASKS, store_dtype=dtype) as writer:  # type: ignore[arg-type]
        for batch in batches:
            writer.append(batch)
        return writer.finish(**finish)


def joined(batches: list[Batch], name: str) -> np.ndarray:
    return np.concatenate([getattr(batch, name) for batch in batches])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_field_survives_a_round_trip(tmp_path: Path, dtype: str) -> None:
    shape = shape_of(7)
    batches = [batch_of(shape, 0, 4), batch_of(shape, 4, 3)]
    path = write(tmp_path / "a" / "run.h5", shape, batches, dtype=dtype, skipped=[("bad ✗.png", "truncated")])
    assert [p.name for p in path.parent.iterdir()] == ["run.h5"]
    with open_run(path) as run:
        assert (run.info, run.shape, run.tasks, len(run)) == (INFO, shape, TASKS, 7)
        assert run.skipped == (("bad ✗.png", "truncated"),)
        for name in ("ids", "paths", "groups"):
            assert getattr(run, name)() == [text for batch in batches for text in getattr(batch, name)]
        z_voco = joined(batches, "z_voco").astype(dtype).astype(np.float32)
        for layer in range(4):
            np.testing.assert_array_equal(run.z_voco(layer), z_voco[:, layer])
            np.testing.assert_array_equal(run.z_voco(layer - 4), z_voco[:, layer])
        for name in ("v_d", "v_pooled"):
            value = getattr(run, name)()
            assert value.dtype == np.float32
            np.testing.assert_array_equal(value, joined(batches, name).astype(dtype).astype(np.float32))
        np.testing.assert_array_equal(run.codes(), joined(batches, "codes"))
        attention = joined(batches, "attention")
        stored = attention.astype(dtype).astype(np.float32)
        mass = attention[..., 1:3].sum(-1)  # the keys whose role is anchor, before rounding
        for image in range(7):
            np.testing.assert_array_equal(run.attention(image), stored[image])
            np.testing.assert_array_equal(run.anchor_mass_of(image), run.anchor_mass()[image])
            np.testing.assert_array_equal(run.thumbnail(image), joined(batches, "thumbnails")[image])
        np.testing.assert_allclose(run.anchor_mass(), mass, rtol=1e-6)
        for most in (1, 2 * attention[0].size, 2**21):
            np.testing.assert_array_equal(np.concatenate(list(run.attention_blocks(most=most))), stored)
            np.testing.assert_array_equal(
                np.concatenate(list(run.attention_blocks([0, 4, 5, 2], most=most))), stored[[0, 4, 5, 2]]
            )
        np.testing.assert_array_equal(run.codes([6, 1, 2]), run.codes()[[6, 1, 2]])
        for task in TASKS:
            given = np.concatenate([batch.labels[task.name] for batch in batches])
            np.testing.assert_array_equal(run.labels(task.name), given)  # unknown labels and NaN too
            np.testing.assert_array_equal(task.known(given), ~np.isin(given, (-1, 255)) & np.isfinite(given))
            unknown = task.unknown(3)
            assert unknown.dtype == run.labels(task.name).dtype and unknown.shape == given[:3].shape
            assert not task.known(unknown).any() and task.allowed(unknown).all()


def test_of_an_unfinished_run_all_shards_count(tmp_path: Path) -> None:
    """Also one that kept none of its images."""
    out, shape = tmp_path / "run.h5", shape_of(5)
    shards = [out.with_name("run.h5.shards") / f"0000{number}.h5" for number in range(3)]
    write(shards[0], dataclasses.replace(shape, images=3), [batch_of(shape, 0, 3)], skipped=[("a.png", "empty")])
    with RunWriter(shards[1], INFO, dataclasses.replace(shape, images=2), TASKS) as writer:
        writer.finish([("b.png", "truncated"), ("c.png", "empty")], part=True)
    write(shards[2], dataclasses.replace(shape, images=2), [batch_of(shape, 3, 2)])
    assemble(tmp_path / "whole.h5", INFO, shape, TASKS, shards)
    with open_shards(out, shards) as run, open_run(tmp_path / "whole.h5") as whole:
        assert run.skipped == whole.skipped == (("a.png", "empty"), ("b.png", "truncated"), ("c.png", "empty"))
        stored = [(item.name, item.dims, item.shape, item.dtype, item.checked) for item in run.contents()]
        assert stored == [(item.name, item.dims, item.shape, item.dtype, item.checked) for item in whole.contents()]
        assert all(item.nbytes > 0 for item in run.contents() if item.dtype != "text")
        assert run.nbytes == sum(shard.stat().st_size for shard in shards)


def test_a_run_of_a_model_without_anchors_says_so(tmp_path: Path) -> None:
    shape = shape_of(4)
    roles = ("prefix", "patch", "patch", "patch", "patch", "text", "text", "voco")
    bare = dataclasses.replace(shape, anchors=0, codes=None, roles=roles)
    batch = batch_of(shape, 0, 4)._replace(v_d=np.zeros((4, 0, shape.width), np.float32), codes=None)
    with open_run(write(tmp_path / "run.h5", bare, [batch])) as run:
        assert run.shape == bare
        assert run.anchor_mass().sum() == 0
        np.testing.assert_array_equal(run.v_pooled(), batch.v_pooled.astype(np.float16).astype(np.float32))
        with pytest.raises(UserError, match="has no v_d: its model .* has no anchors"):
            run.v_d()
        with pytest.raises(UserError, match="has no codes: its model .* has no MGVQ"):
            run.codes()


def test_a_run_written_before_these_models_still_opens(tmp_path: Path) -> None:
    path = write(tmp_path / "run.h5", shape_of(4), [batch_of(shape_of(4), 0, 4)])
    with h5py.File(path, "r+") as file:
        del file.attrs["code_shape"]
        del file["labels/shape"].attrs["note"]
    with open_run(path) as run:
        assert run.shape == shape_of(4) and run.tasks == TASKS


def test_one_layer_of_all_images_is_read_from_whole_chunks(tmp_path: Path) -> None:
    path = write(tmp_path / "run.h5", shape_of(5), [batch_of(shape_of(5), 0, 5)])
    with h5py.File(path) as file:
        rows, layers, width = file["latents/z_voco"].chunks
        assert layers == 1 and width == 6 and rows > 5
        assert file["attention/voco"].chunks == (1, 3, 2, len(ROLES))
        assert file["images/thumbnail"].chunks[0] == 1


def test_a_subset_of_layers_is_found_by_its_number(tmp_path: Path) -> None:
    shape = shape_of(4, stack=(0, 3))
    batch = batch_of(shape, 0, 4)
    with open_run(write(tmp_path / "run.h5", shape, [batch], dtype="float32")) as run:
        assert run.shape.stack == (0, 3)
        np.testing.assert_array_equal(run.z_voco(-1), batch.z_voco[:, 1])
        np.testing.assert_array_equal(run.z_voco(3), batch.z_voco[:, 1])
        np.testing.assert_array_equal(run.z_voco(-4), batch.z_voco[:, 0])
        with pytest.raises(UserError, match="layer 1 is not stored.*0, 3.*--layers"):
            run.z_voco(1)
        for layer in (4, -5):
            with pytest.raises(UserError, match="its layers are 0 to 3"):
                run.z_voco(layer)
        with pytest.raises(UserError, match="image -1.*0 to 3"):
            run.attention(-1)
        with pytest.raises(UserError, match="'colour'.*shape, present, size"):
            run.labels("colour")


def test_fewer_images_than_announced_are_trimmed_and_none_is_refused(tmp_path: Path) -> None:
    shape = shape_of(9)
    with open_run(write(tmp_path / "run.h5", shape, [batch_of(shape, 0, 4)])) as run:
        assert len(run) == run.shape.images == len(run.labels("shape")) == len(run.codes()) == 4
    with pytest.raises(UserError, match="no image.*x.png: truncated"):
        write(tmp_path / "none.h5", shape, [], skipped=[("x.png", "truncated")])
    with pytest.raises(ValueError, match="announced with 3"):
        write(tmp_path / "more.h5", shape_of(3), [batch_of(shape_of(3), 0, 4)])
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]


def test_leaving_the_writer_leaves_nothing_and_spares_an_older_run(tmp_path: Path) -> None:
    shape = shape_of(4)
    path = write(tmp_path / "old.h5", shape, [batch_of(shape, 0, 4)])
    before = path.read_bytes()
    for target in (tmp_path / "new.h5", path):
        with pytest.raises(KeyboardInterrupt), RunWriter(target, INFO, shape, TASKS) as writer:
            writer.append(batch_of(shape, 0, 2))
            assert writer.partial.exists()
            raise KeyboardInterrupt
    with RunWriter(tmp_path / "new.h5", INFO, shape, TASKS) as writer:
        writer.append(batch_of(shape, 0, 4))  # no finish()
    assert [p.name for p in tmp_path.iterdir()] == ["old.h5"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["z_voco", "v_d", "v_pooled", "attention"])
def test_a_value_that_float16_cannot_hold_stops_the_run(tmp_path: Path, name: str) -> None:
    shape = shape_of(4)
    batch = batch_of(shape, 0, 4)
    getattr(batch, name)[2].flat[0] = 70_000
    with pytest.raises(UserError, match=r"(latents|attention)/.*7e\+04.*--store-dtype float32"):
        write(tmp_path / "run.h5", shape, [batch])
    assert not list(tmp_path.iterdir())
    with open_run(write(tmp_path / "run.h5", shape, [batch], dtype="float32")) as run:
        assert len(run) == 4


def test_nan_names_the_tensor_and_the_image(tmp_path: Path) -> None:
    shape = shape_of(4)
    batch = batch_of(shape, 0, 4)
    batch.v_d[2, 1, 3] = np.nan
    for dtype in ("float16", "float32"):
        with pytest.raises(UserError, match="latents/v_d of image 'scene-2 ✓' holds NaN"):
            write(tmp_path / "run.h5", shape, [batch], dtype=dtype)
    batch.v_d[2, 1, 3] = np.inf
    with pytest.raises(UserError, match="scene-2 ✓' holds an infinite value"):
        write(tmp_path / "run.h5", shape, [batch])
    assert not list(tmp_path.iterdir())


def test_labels_and_shapes_that_break_the_format_are_our_error(tmp_path: Path) -> None:
    shape = shape_of(4)
    good = batch_of(shape, 0, 4)
    for wrong, message in [
        (good._replace(labels=good.labels | {"shape": np.full(4, 3)}), "labels/shape holds 3"),
        (good._replace(labels=good.labels | {"present": np.full((4, 2), 7)}), "labels/present holds 7"),
        (good._replace(labels=good.labels | {"size": np.full(4, np.inf)}), "labels/size holds inf"),
        (good._replace(labels={"shape": good.labels["shape"]}), "labels of"),
        (good._replace(codes=good.codes + 2**16), "codes run from"),
        (good._replace(v_d=good.v_d[:, :1]), "latents/v_d has shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "run.h5", shape, [wrong])
    assert not list(tmp_path.iterdir())


def test_task_names_that_cannot_be_stored_are_refused(tmp_path: Path) -> None:
    for tasks, message in [
        ([Task("a/b", "semantic", "number")], "without '/'"),
        ([Task("a", "semantic", "number"), Task("a", "detail", "number")], "two tasks"),
        ([Task("a", "semantic", "classes")], "lists no classes"),
        ([Task("a", "semantic", "text")], "kinds: classes, multilabel, number"),  # type: ignore[arg-type]
    ]:
        with pytest.raises(UserError, match=message):
            RunWriter(tmp_path / "run.h5", INFO, shape_of(4), tasks)
    assert not list(tmp_path.iterdir())


def test_a_run_without_tasks(tmp_path: Path) -> None:
    shape = shape_of(2)
    with RunWriter(tmp_path / "run.h5", INFO, shape, ()) as writer:
        writer.append(batch_of(shape, 0, 2)._replace(labels={}))
        path = writer.finish()
    with open_run(path) as run:
        assert run.tasks == () and run.skipped == ()
        with pytest.raises(UserError, match="none: the data had no labels"):
            run.task("shape")


def test_files_that_are_no_finished_run_are_refused(tmp_path: Path) -> None:
    shape = shape_of(4)
    path = write(tmp_path / "run.h5", shape, [batch_of(shape, 0, 4)])
    data = path.read_bytes()

    def damaged(change) -> Path:
        copy = tmp_path / "damaged.h5"
        copy.write_bytes(data)
        with h5py.File(copy, "r+") as file:
            change(file)
        return copy

    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "empty.h5").touch()
    (tmp_path / "cut.h5").write_bytes(data[: len(data) // 2])
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    for name, message in [
        ("missing.h5", "htc-extract --split val"),
        ("text.h5", "as a run: it is not an HDF5 file; copy or extract it again"),
        ("empty.h5", "as a run: it is empty"),
        ("cut.h5", f"it is cut off, {len(data) // 2:,} of {len(data):,} bytes are there"),
        ("other.h5", "not a run of htc-extract"),
    ]:
        with pytest.raises(UserError, match=message) as told:
            open_run(tmp_path / name)
        assert "synchronously" not in str(told.value), "HDF5's own words"
    for change, message in [
        (lambda f: f.attrs.__setitem__("complete", False), "incomplete"),
        (lambda f: f.attrs.__setitem__("schema_version", 2), "schema version 2"),
        (lambda f: f.attrs.__setitem__("config", "{"), "damaged"),
        (lambda f: f.attrs.__delitem__("model"), "damaged run: it has no model"),
        (lambda f: f.__delitem__("codes"), "damaged.*codes"),
        (lambda f: f["labels/shape"].resize(3, axis=0), "labels/shape has shape"),
        (lambda f: f["labels/shape"].attrs.__setitem__("kind", "guess"), "damaged.*guess"),
    ]:
        with pytest.raises(UserError, match=message) as told:
            open_run(damaged(change))
        assert "synchronously" not in str(told.value)


@pytest.mark.parametrize("how", ["external link", "soft link", "external storage", "virtual"])
def test_a_run_cannot_read_other_files(tmp_path: Path, how: str) -> None:
    shape = shape_of(4)
    path = write(tmp_path / "run.h5", shape, [batch_of(shape, 0, 4)])
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(4 * 18 * 2))
    write(tmp_path / "other.h5", shape, [batch_of(shape, 0, 4)])
    with h5py.File(path, "r+") as file:
        del file["codes"]
        if how == "external link":
            file["codes"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "codes")
        elif how == "soft link":
            file["codes"] = h5py.SoftLink("/labels")
        elif how == "external storage":
            file.create_dataset("codes", (4, 3, 3, 2), "uint16", external=[(str(secret), 0, 4 * 18 * 2)])
        else:
            layout = h5py.VirtualLayout((4, 3, 3, 2), "uint16")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "codes", (4, 3, 3, 2))
            file.create_virtual_dataset("codes", layout)
    with pytest.raises(UserError, match="damaged.*codes"):
        open_run(path)


def test_runs_are_listed_newest_first_and_only_when_complete(tmp_path: Path) -> None:
    shape = shape_of(2)
    with pytest.raises(UserError, match="htc-extract --split val"):
        newest_run(tmp_path / "nowhere")
    for name in ("b", "c", "a"):
        write(tmp_path / f"{name}.h5", shape, [batch_of(shape, 0, 2)])
        time.sleep(0.002)
    (tmp_path / "x.h5").write_text("no run")
    with RunWriter(tmp_path / "z.h5", INFO, shape, TASKS) as writer:
        writer.append(batch_of(shape, 0, 2))
        assert [path.stem for path in list_runs(tmp_path)] == ["a", "c", "b"]
    assert newest_run(tmp_path).stem == "a"


def test_two_writers_of_one_name(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.h5", INFO, shape_of(2), TASKS) as writer:
        with pytest.raises(UserError, match="no other extraction writes there"):
            RunWriter(tmp_path / "run.h5", INFO, shape_of(2), TASKS)
        writer.append(batch_of(shape_of(2), 0, 2))
        writer.finish()
    assert len(open_run(tmp_path / "run.h5")) == 2


@pytest.mark.parametrize("room", [0, 1_000_000, 18_000_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, room: int) -> None:
    """A limit on the size of a file stands in for the size of the disk."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    code = (
        "import sys; from pathlib import Path; from test_store import *\n"
        "shape = shape_of(100)\n"
        "try:\n"
        "    write(Path(sys.argv[1]) / 'run.h5', shape, [batch_of(shape, 0, 100)])\n"
        "except UserError as error:\n"
        "    print(error); sys.exit(2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        preexec_fn=limit,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith("no room left for") and "--out" in done.stdout
    assert done.stdout.count("\n") == 1 and not done.stderr
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write.*--out"):
        RunWriter(tmp_path / "file" / "run.h5", INFO, shape_of(2), TASKS)


def test_the_estimate_bounds_the_file_from_above_but_not_by_much(tmp_path: Path) -> None:
    shape = shape_of(64, width=512)
    path = write(tmp_path / "run.h5", shape, [batch_of(shape, i, 16) for i in range(0, 64, 16)])
    assert 0.6 < path.stat().st_size / estimate_bytes(shape, TASKS, "float16") < 1.05
    paper = RunShape(
        1, 32, tuple(range(33)), 32, 4096, 4, (21, 21, 8), ("anchor",) * 4 + ("patch",) * 577, *[(0,) * 581] * 2
    )
    attention, stack = 32 * 32 * 581 * 2, 33 * 4096 * 2
    assert attention + stack < estimate_bytes(paper, (), "float16") < 1.1 * (attention + stack) + 64 * 1024


def test_the_store_imports_no_torch() -> None:
    code = "import htc_probe.extract.store, sys, json; print(json.dumps(sorted(sys.modules)))"
    root = Path(__file__).parents[1]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert not {"torch", "transformers", "sklearn", "scipy"} & set(json.loads(out.stdout))
