"""The server behind htc-dashboard: Streamlit's, with plotly.js beside it. Knows Streamlit; not runs."""

import contextlib
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly
import streamlit as st
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

from htc_probe.dashboards.gate import Gate
from htc_probe.dashboards.parts import controls

_PLOTLY = Path(plotly.__file__).with_name("package_data") / "plotly.min.js"


def serve(roots: Sequence[Path], settings: Mapping[str, Any], names: Sequence[str] | None, page: str = "") -> None:
    """Serves the app for what is under `roots` (absolute), and does not return.

    settings: Streamlit's, by name. names: what it may be asked for as, see `gate.refusal`. page: what the browser opens
    as soon as it is served; "" for nothing.
    """

    @contextlib.asynccontextmanager
    async def listening(app: st.App) -> AsyncIterator[None]:
        if page:
            threading.Thread(target=webbrowser.open, args=[page], daemon=True).start()
        yield

    script = Path(__file__).with_name("app.py")
    sys.argv = [str(script), *map(str, roots)]
    path = "/".join(["", *filter(None, [settings["server.baseUrlPath"]]), _PLOTLY.name])
    app = st.App(
        script,
        routes=[Route(path, _plotly)],
        middleware=[Middleware(Gate, names=names)],
        lifespan=listening,
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
