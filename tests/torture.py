"""`make torture`: 200 kills, which take minutes; not collected by `make test`, which kills ten times."""

from pathlib import Path

from made.interrupted import torture


def test_killed_two_hundred_times(model: Path, tmp_path: Path) -> None:
    torture(model, tmp_path, 100, seed=1)
