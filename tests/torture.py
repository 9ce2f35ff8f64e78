"""`make torture`: 200 kills, which take minutes; not collected by `make test`, which kills ten times."""

from pathlib import Path

from test_resume import model, one_thread, torture

__all__ = ["model", "one_thread"]  # fixtures


def test_killed_two_hundred_times(model: Path, tmp_path: Path) -> None:  # noqa: F811
    torture(model, tmp_path, 100, seed=1)
