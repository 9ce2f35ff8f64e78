"""Every chart of the dashboard, as a function of a run's path and of simple values: what a page draws, and what a
notebook draws. Reads through dashboards.data, draws by dashboards.figures; knows nothing of pages.

Images, layers and heads are counted from 1; an image may be given by its id too. Raises UserError with what was
expected.
"""
# ruff: noqa: F401

import logging

from htc_probe.dashboards.charts import (
    attention,
    codes,
    compare,
    compare_probes,
    groups,
    interchange,
    map,
    probes,
    reading,
    tokens,
)

# Outside of a page there is none to say on that something is being read.
logging.getLogger("streamlit.runtime.scriptrunner_utils.script_run_context").setLevel(logging.ERROR)
