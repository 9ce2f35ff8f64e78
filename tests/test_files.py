"""docs/files.md says what is in the files, no more and no less."""

import runpy
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors import safe_open

from htc_probe.extract.store import Batch, RunInfo, RunShape, RunWriter, Task
from htc_probe.extract.store.schema import ATTRIBUTES, DATASETS, LABELS, OTHERS, SCHEMA, SCHEMA_VERSION
from htc_probe.probes.files import predictions, weights
from htc_probe.probes.scores.metrics import Gaussian, VonMises

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
N = 3
TASKS = (
    Task("shape", "semantic", "classes", ("ball", "cube")),
    Task("present", "semantic", "multilabel", ("ball", "cube")),
    Task("size", "detail", "number", unit="%"),
    Task("hue", "detail", "circular", unit="degrees", period=360),
)
LABELS_OF = {
    "shape": np.array([0, 1, -1]),
    "present": np.array([[0, 1], [255, 1], [1, 0]]),
    "size": np.array([0.5, 1, np.nan]),
    "hue": np.array([0.0, 359, np.nan]),
}


def test_the_page_has_the_tables_that_the_code_makes() -> None:
    docs = runpy.run_path(str(ROOT / "docs" / "make_files.py"))
    assert docs["made"](PAGE) == PAGE, "run: python docs/make_files.py"
    assert all(f"<!-- made: {name} -->" in PAGE for name in docs["TABLES"])


def test_a_run_holds_what_the_schema_says(tmp_path: Path) -> None:
    shape = RunShape(N, 1, (0, 1), 2, 6, 1, (2, 2, 1), ("anchor", "patch", "voco"), (-1, 0, -1), (-1, 0, -1))
    attention = np.full((N, 1, 2, 3), 1 / 3, np.float32)
    names = [str(number) for number in range(N)]
    vectors = np.ones((N, 2, 6), np.float32)
    pictures, codes = np.zeros((N, 96, 96, 3), np.uint8), np.zeros((N, 2, 2, 1), np.uint16)
    batch = Batch(names, names, names, pictures, vectors, vectors[:, :1], vectors[:, 0], codes, attention, LABELS_OF)
    with RunWriter(tmp_path / "run.h5", RunInfo({}, {}, "d", "val", "star", {}), shape, TASKS) as writer:
        writer.append(batch)
        path = writer.finish([("a.png", "empty")])
    expected = {item.name: item for item in (*DATASETS, *OTHERS)}
    expected |= {f"labels/{task.name}": LABELS[task.kind] for task in TASKS}
    with h5py.File(path) as file:
        held: dict[str, h5py.Dataset] = {}
        file.visititems(lambda name, item: held.update({name: item} if isinstance(item, h5py.Dataset) else {}))
        assert held.keys() == expected.keys()
        for name, item in expected.items():
            dtype = "text" if h5py.check_string_dtype(held[name].dtype) else held[name].dtype
            assert dtype == {"stored": "float16"}.get(item.dtype, item.dtype), name
            assert held[name].ndim == len(item.dims), name
        assert {*file.attrs, "shards"} == ATTRIBUTES.keys()
        assert (ATTRIBUTES["schema"], ATTRIBUTES["schema_version"]) == (SCHEMA, str(SCHEMA_VERSION))
        for task in TASKS:
            said = set(held[f"labels/{task.name}"].attrs)
            assert said == {"suite", "kind", "unit", "note", "classes"} | ({"period"} if task.period else set())
            assert all(f"`{name}`" in PAGE for name in said)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_probes_and_predictions_hold_what_the_page_says(tmp_path: Path, task: Task) -> None:
    rows = np.flatnonzero(task.known(LABELS_OF[task.name]).reshape(N, -1).any(1))
    n, y = len(rows), LABELS_OF[task.name][rows].astype(task.dtype)
    asked = predictions.Asked(task.name, task.kind, task.classes, rows, np.zeros(n, int), y, task.period)
    said = {"number": Gaussian(np.ones(n), np.ones(n)), "circular": VonMises(np.ones(n), np.ones(n), task.period)}
    path = tmp_path / "run.probes.predictions.safetensors"
    with predictions.Writer(path, tmp_path / "keep", {}, [asked], [("v_d", None)]) as writer:
        writer.add([said.get(task.kind, np.zeros((n, 2)))])
        writer.finish()
    words = {"classes": "of classes", "multilabel": "of labels", "number": "of numbers", "circular": "circular values"}
    with safe_open(str(path), "np") as file:
        assert {"schema", "run", "tasks", "representations"} == set(file.metadata())
        for name in file.keys():  # noqa: SIM118
            array = file.get_tensor(name)
            label = name.replace("0.0.", "t.r.").replace("0.", "t.", 1)
            lines = [line for line in PAGE.splitlines() if line.startswith(f"| `{label}`")]
            (line,) = [line for line in lines if len(lines) == 1 or words[task.kind] in line]
            _, _, shape, dtype, *_ = line.split("|")
            assert (len(shape.split(",")), dtype.strip()) == (array.ndim, str(array.dtype)), name
    probe = weights.Probe(task.kind, task.classes, np.ones((6, 2)), np.ones(2), np.ones(6), task.period)
    with safe_open(str(weights.save({(task.name, "v_d", None): probe}, tmp_path / "w.safetensors")), "np") as file:
        assert {"schema", "probes"} == set(file.metadata())
        for name in file.keys():  # noqa: SIM118
            array, axes = (
                file.get_tensor(name),
                "C" if name.endswith("intercepts") else ("D", "D, C")[name.endswith("s")],
            )
            assert f"| `i.{name.removeprefix('0.')}` | {axes} | {array.dtype} |" in PAGE
            assert array.ndim == len(axes.split(","))
