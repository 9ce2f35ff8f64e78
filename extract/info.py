"""`htc-info`: what is in a run file, and whether it is whole. Knows runs; no models, no pixels, no torch.

Parse, call, print. h5py and rich are imported once the work starts, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from htc_probe.extract import command
from htc_probe.extract.arguments import Shown
from htc_probe.extract.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from htc_probe.extract.store import Run, RunInfo, Stored, Task

_MADE = ("dtype", "device", "limit", "seed")
_STEP = 16 * 2**20  # bytes of a dataset in memory at a time
_PIPE = 1000  # columns of a table that no terminal shows: nothing is cut there
_SHOWN = 3  # failures of one check that are told


@dataclass(frozen=True)
class InfoConfig:
    """Print what is in a run: its model, data, sizes, tasks and versions; or, of a folder, the runs in it.

    Examples:
        htc-info                          # the newest run in runs/
        htc-info runs                     # every run in runs/, a line each
        htc-info runs/scenes-val.h5 --verify
    """

    run: Annotated[Path | None, Shown("FILE|FOLDER", positional=True)] = None
    """Run (.h5), finished or not, or a folder of runs.
    Left out: the newest run in runs/."""
    verify: bool = False
    """Read all of it and check every number that has a law.
    The exit status is 2 where something is wrong."""
    json: bool = False
    """Print JSON, for scripts."""


class Check(NamedTuple):
    """What was found of one law."""

    law: str
    failures: list[str]
    """Where it is broken, the first of them; none where it holds."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit status, see `extract.command.main`: 2 for a run that is unfinished or wrong."""
    return command.main("htc-info", InfoConfig, info, argv, interrupted="it only reads")


def info(config: InfoConfig) -> None:
    """Prints what is in the run, or in the folder. Raises UserError for a run that is missing, unfinished or wrong."""
    from htc_probe.extract.store import newest_run, open_run

    if config.run is not None and config.run.is_dir():
        if config.verify:
            raise UserError(f"--verify reads one run, and {config.run} is a folder; name a run in it")
        listed = list(_listed(config.run))
        if config.json:
            print(json.dumps(listed, indent=1))
        elif listed:
            _list(listed)
        if not listed:
            raise UserError(f"no run in {config.run}/; make one with: htc-extract --split val")
        return
    path = newest_run("runs" if config.run is None else config.run)
    if not path.exists() and (state := _unfinished(path)) is not None:
        if config.json:
            print(json.dumps(state, indent=1))
        raise UserError(
            f"{path} is not finished: {state['model']} on {state['dataset']} {state['split']}, {state['images']} of "
            f"{state['of']} images; the htc-extract command that began it goes on with it"
        )
    with open_run(path) as run:
        checks = verify(run) if config.verify else None
        if config.json:
            found = None if checks is None else [check._asdict() for check in checks]
            print(json.dumps(_described(run) | ({} if found is None else {"checks": found}), indent=1))
            whole = found is None or not any(check["failures"] for check in found)
        else:
            show(run)
            whole = checks is None or _show_checks(checks)
    if not whole:
        raise UserError(f"{path} is not whole ({'see checks' if config.json else 'see above'}); extract it again")


# ---- the runs of a folder


def _listed(folder: Path) -> Iterator[dict[str, Any]]:
    """What is said of every run of a folder in one line: the finished ones, newest first, then the others."""
    from htc_probe.extract.store import open_run

    finished = []
    for path in sorted(folder.glob("*.h5")):
        if not path.name.endswith(".analysis.h5"):
            try:
                with open_run(path) as run:
                    whole = {"images": len(run), "of": len(run), "created": run.created}
                    finished.append(_state(path, run.info) | whole)
            except UserError as error:
                print(f"htc-info: {error}", file=sys.stderr)
    yield from sorted(finished, key=lambda state: state["created"], reverse=True)
    for shards in sorted(folder.glob("*.h5.shards")):
        path = shards.with_suffix("")
        if not path.exists() and (state := _unfinished(path)) is not None:
            yield state


def _unfinished(path: Path) -> dict[str, Any] | None:
    """How far a run is, if there are shards of it."""
    from htc_probe.extract.store.shards import unfinished

    shards = unfinished(path)
    if shards is None:
        return None
    return _state(path, shards.job.info) | {"images": shards.done(), "of": shards.job.shape.images, "created": None}


def _state(path: Path, info: RunInfo) -> dict[str, Any]:
    """What a run is of, and the results beside it, None where they are not there."""
    beside = {"probes": path.with_suffix(".probes.json"), "analysis": path.with_suffix(".analysis.h5")}
    files = {name: str(file) if file.is_file() else None for name, file in beside.items()}
    return {"path": str(path), "model": info.model.get("name"), "dataset": info.dataset, "split": info.split, **files}


def _list(states: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for state in states:
        images = f"{state['images']:,}" + ("" if state["created"] else f" of {state['of']:,}")
        beside = ", ".join(name for name in ("probes", "analysis") if state[name])
        when = state["created"][:16].replace("T", " ") if state["created"] else "not finished"
        rows.append((Path(state["path"]).name, images, str(state["model"]), when, beside))
    _print_table(("run", "images", "model", "made (UTC)", "beside it"), rows)


# ---- what is in a run


def _described(run: Run) -> dict[str, Any]:
    """What is in the run, as JSON has it; sizes in bytes."""
    contents = [
        {"name": each.name, "axes": each.dims, "shape": each.shape, "type": each.dtype, "bytes": each.nbytes}
        for each in run.contents()
    ]
    about = _state(run.path, run.info) | {"images": len(run), "of": len(run), "created": run.created}
    return about | {
        "skipped": len(run.skipped),
        "sha256": run.info.model.get("sha256"),
        "topology": run.info.topology,
        "bytes": run.nbytes,
        "virtual": run.virtual,
        "settings": run.info.config,
        "environment": run.info.environment,
        "tasks": [asdict(task) for task in run.tasks],
        "datasets": contents,
    }


def show(run: Run) -> None:
    """Prints what is in the run, without reading the numbers."""
    from rich.filesize import decimal

    info, settings = run.info, run.info.config
    model = info.model.get("config") or {}
    lines = {
        "run": f"{run.path}, complete, {run.created[:19]}, {decimal(run.nbytes)}",
        "model": f"{info.model.get('name')} {str(info.model.get('sha256'))[:8]}, {info.topology}",
        **({"image": square_words(model)} if "image_fit" in model else {}),
        "data": f"{info.dataset} {info.split}: {len(run)} images, {len(run.skipped)} skipped",
        "made": ", ".join(f"{key} {settings[key]}" for key in _MADE if settings.get(key) is not None),
        "with": ", ".join(f"{name} {version}" for name, version in info.environment.items()),
    }
    for name, words in lines.items():
        print(f"{name:<7}{words}")
    if run.virtual:
        print("       its large datasets lie in the shards beside it")
    rows = []
    for dataset in run.contents():
        size = "in the shards" if run.virtual and dataset.nbytes == 0 else decimal(dataset.nbytes)
        shape = " x ".join(map(str, dataset.shape))
        rows.append((dataset.name, ", ".join(dataset.dims), shape, dataset.dtype, size))
    _print_table(("dataset", "axes", "shape", "type", "on disk"), rows)
    if run.tasks:
        ordered = sorted(run.tasks, key=lambda task: task.suite, reverse=True)
        _print_table(("suite", "task", "kind", "what"), [(t.suite, t.name, t.kind, _what(t)) for t in ordered])


def square_words(config: Mapping[str, Any]) -> str:
    """How the model with this configuration, as a run keeps it, makes its images square, in words."""
    verbs = {"pad": "padded to a square", "crop": "the middle cropped to a square", "stretch": "stretched to a square"}
    side, resize = config.get("vision_config", {}).get("image_size"), config.get("image_resize")
    scaled, resample = f" of {resize}" if resize else "", config.get("image_resample", "bicubic")
    return f"{verbs.get(config['image_fit'], 'made square')}, {side} px{scaled}, {resample}"


def _what(task: Task) -> str:
    if task.kind == "number":
        return task.unit
    if task.kind == "circular":
        return f"{task.unit}, period {task.period:g}".removeprefix(", ")
    names = ", ".join(task.classes[:4])
    return f"{len(task.classes)} classes: {names}{', ...' if len(task.classes) > 4 else ''}"


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*head, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))  # Text: a task's name is no markup
    console = Console(width=None if sys.stdout.isatty() else _PIPE)
    print()
    console.print(table)


# ---- whether it is whole


def verify(run: Run) -> Iterator[Check]:
    """Every law of a run, with where it is broken. Reads the whole run, some MB at a time.

    A chunk whose checksum does not fit is found by reading it; runs of before checksums have none to fit.
    """
    contents = run.contents()
    without = [stored.name for stored in contents if not stored.checked and stored.nbytes and stored.dtype != "text"]
    ids: list[str] = []
    for dataset in contents:
        if not dataset.shape[0] or 0 in dataset.shape:
            continue
        failures: list[str] = []
        for start, rows in _blocks(run, dataset, failures):
            failures += _broken(run, dataset.name, start, rows)
            if dataset.name == "images/id":
                ids += map(str, rows)
        if dataset.name == "images/id" and not failures:
            failures += [f"image {name!r} is there {n} times" for name, n in Counter(ids).items() if n > 1]
        checked = "" if dataset.name not in without or run.virtual else " (it has no checksums)"
        law = _LAWS.get(dataset.name) or _LAWS.get(dataset.name.split("/")[0], "can be read")
        yield Check(f"{dataset.name} {law}{checked}", failures)


_LAWS = {
    "images/id": "can be read, each image once",
    "latents": "is finite",
    "attention": "is finite and adds up",
    "codes": "holds codes of the model",
    "labels": "holds labels of its task",
}


def _blocks(run: Run, dataset: Stored, failures: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """The dataset in pieces, each with the number of its first row; what cannot be read becomes a failure."""
    width = 64 if dataset.dtype == "text" else 8
    step = max(1, _STEP // (width * math.prod(dataset.shape[1:])))
    for start in range(0, dataset.shape[0], step):
        stop = min(start + step, dataset.shape[0])
        try:
            yield start, run.rows(dataset.name, start, stop)
        except UserError as error:
            failures.append(f"{_first_unreadable(run, dataset, start, stop)}{error}")


def _first_unreadable(run: Run, dataset: Stored, start: int, stop: int) -> str:
    for row in range(start, stop):
        try:
            run.rows(dataset.name, row, row + 1)
        except UserError:
            return f"from {_image(run, row)} on: " if dataset.dims[0] == "image" else f"from row {row} on: "
    return ""


def _image(run: Run, row: int) -> str:
    try:
        return f"image {str(run.rows('images/id', row, row + 1)[0])!r}"
    except UserError:
        return f"image number {row}"


def _broken(run: Run, name: str, start: int, rows: np.ndarray) -> Iterator[str]:
    """Where rows of a dataset, from row `start` on, break its law."""
    import numpy as np

    from htc_probe.extract.store import UNKNOWN

    def told(bad_N: np.ndarray, failure: str) -> Iterator[str]:
        for row in np.flatnonzero(bad_N)[:_SHOWN]:
            yield f"{_image(run, start + int(row))}: {failure}"

    def of_images(bad: np.ndarray) -> np.ndarray:
        return np.asarray(bad.reshape(len(bad), -1).any(1))

    group, _, task_name = name.partition("/")
    if group in ("latents", "attention"):
        wrong_N = of_images(~np.isfinite(rows))
        yield from told(wrong_N, "a value that is no finite number")
        if group == "attention":
            excess, failure = _excess(run, name, start, rows)
            with np.errstate(invalid="ignore"):
                yield from told(~wrong_N & of_images(excess > 0), failure)
    elif group == "codes":
        codes = run.info.codes_per_group
        if codes is not None:
            yield from told(of_images(rows >= codes), f"a code beyond 0 to {codes - 1}")
    elif group == "labels":
        task = run.task(task_name)
        words = {
            "classes": f"a class beyond -1 to {len(task.classes) - 1}",
            "multilabel": f"a label other than 0, 1 and {UNKNOWN} (unknown)",
        }
        yield from told(of_images(~task.allowed(rows)), words.get(task.kind, "an infinite number"))


def _excess(run: Run, name: str, start: int, rows: np.ndarray) -> tuple[np.ndarray, str]:
    """How much further than allowed sums over keys are from what they must be; and that in words."""
    import numpy as np

    # Of a weight, float16 keeps 11 bits, and of the smallest ones steps of 2**-24: this much a sum may be off.
    half = 2**-11 + run.shape.keys * 2**-25 if run.store_dtype == np.float16 else 0.0
    allowed = half + 1e-4
    if name == "attention/voco":
        return np.abs(rows.sum(-1, dtype=np.float64) - 1) - allowed, "attention that does not sum to 1"
    is_anchor_S = np.array([role == "anchor" for role in run.shape.roles])
    off = np.zeros(rows.shape)
    first = 0
    try:
        for attention in run.attention_blocks(np.arange(start, start + len(rows)), most=_STEP // 8):
            part = slice(first, first := first + len(attention))
            off[part] = np.abs(attention[..., is_anchor_S].sum(-1, dtype=np.float64) - rows[part])
    except UserError:  # told where attention itself is read
        pass
    return off - allowed, "anchor_mass that is not the attention of the anchors"


def _show_checks(checks: Iterator[Check]) -> bool:
    """Prints a line a check as it is done, and gives whether all hold."""
    print()
    good = True
    for law, failures in checks:
        print(f"{'WRONG' if failures else 'ok':<7}{law}", flush=True)
        for failure in failures[:_SHOWN]:
            print(f"       {failure}")
        if len(failures) > _SHOWN:
            print(f"       and {len(failures) - _SHOWN} more")
        good = good and not failures
    return good


if __name__ == "__main__":
    sys.exit(main())
