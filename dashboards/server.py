"""The server behind htc-dashboard: Streamlit's, with plotly.js beside it. Knows Streamlit; not runs."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly
import streamlit as st
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

from dashboards import controls
from dashboards.gate import Gate

_PLOTLY = Path(plotly.__file__).with_name("package_data") / "plotly.min.js"


def serve(roots: Sequence[Path], settings: Mapping[str, Any], names: Sequence[str] | None) -> None:
    """Serves the app for what is under `roots` (absolute), and does not return.

    settings: Streamlit's, by name. names: what it may be asked for as, see `gate.refusal`.
    """
    script = Path(__file__).with_name("app.py")
    sys.argv = [str(script), *map(str, roots)]
    path = "/".join(["", *filter(None, [settings["server.baseUrlPath"]]), _PLOTLY.name])
    app = st.App(
        script,
        routes=[Route(path, _plotly)],
        middleware=[Middleware(Gate, names=names)],
        on_script_error=_tell,
    )
    app.run(config=settings)


async def _plotly(request: Request) -> FileResponse:
    return FileResponse(_PLOTLY, media_type="text/javascript", headers={"Cache-Control": "max-age=3600"})


def _tell(error: Exception) -> bool:
    """What goes wrong where no page could say it, as in what a click calls; nothing else is on the page then."""
    controls.tell(error)
    st.button("Look again")
    return True
