"""Scores of the linear probes, as `htc-probe` left them beside the run. Lays out; computes nothing."""

import streamlit as st

from dashboards import data
from dashboards.controls import plain
from probes.results import Interval, Results, Row, SuiteMean


def show(found: Results, header: data.Header) -> None:
    """Draws one table a suite, each score with its interval and its floor."""
    if found.run.get("created") != header.created:
        st.warning("These scores come from an earlier state of this run; run htc-probe again.")
    st.caption(
        "Scores of held-out images, larger is better, with 95 % intervals over groups of images. The floor is the same "
        "score without looking at the image; control, that of a probe of random labels of object categories. Bits: "
        "what the probe saves an image over knowing how often labels occur. Layers are those of z_voco; 0 is the "
        "embedding."
    )
    for warning in found.warnings:
        st.info(plain(warning))
    for suite in dict.fromkeys(row.suite for row in found.rows):
        st.subheader(plain(suite))
        means = [mean for mean in found.suite_means if mean.suite == suite]
        rows = [row for row in found.rows if row.suite == suite]
        st.dataframe([*map(_task_line, rows), *map(_mean_line, means)], hide_index=True, height="content")


def _task_line(row: Row) -> dict[str, str]:
    return {
        "task": row.task,
        "read from": _source(row),
        "metric": row.metric,
        "score": _number(row.estimate),
        "95 % interval": f"{_number(row.lower)} to {_number(row.upper)}",
        "floor": _number(row.floor),
        "control": _number(row.control),
        "bits": _bits(row.metrics.get("V-information")),
        "images": f"{row.n:,}",
        "groups": f"{row.n_groups:,}",
    }


def _mean_line(mean: SuiteMean) -> dict[str, str]:
    return {
        "task": f"mean of {mean.tasks} tasks",
        "read from": _source(mean),
        "metric": "",
        "score": _number(mean.estimate),
        "95 % interval": f"{_number(mean.lower)} to {_number(mean.upper)}",
        "floor": _number(mean.floor),
        "control": "",
        "bits": _bits(mean.bits),
        "images": "",
        "groups": "",
    }


def _source(line: Row | SuiteMean) -> str:
    return line.representation if line.layer is None else f"{line.representation}, layer {line.layer}"


def _bits(value: Interval | None) -> str:
    """With its interval."""
    if value is None or value.estimate is None:
        return ""
    return f"{value.estimate:.2f} [{_number(value.lower, 2)}, {_number(value.upper, 2)}]"


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"
