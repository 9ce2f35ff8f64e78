"""htc-dashboard: look at runs in the browser. Parses, checks, starts Streamlit; knows nothing of the pages.

Streamlit and plotly are imported when the server starts, so that --help and errors answer at once.
"""

import errno
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from htc_probe.extract import command
from htc_probe.extract.arguments import Shown
from htc_probe.extract.errors import UserError

_HOST = "127.0.0.1"
# Streamlit's own red on its tint, and its captions (60% of the text's colour), have less than 4.5 to 1 of contrast.
_LOOK = {
    "light.primaryColor": "#a62b3a",
    "light.textColor": "#121212",
    "light.codeTextColor": "#121212",
    "dark.primaryColor": "#ff8f98",
    "dark.codeTextColor": "#fafafa",
    "headingFontSizes": ["2rem", "1.5rem", "1.2rem"],
    "paddingTop": "0.5rem",
    "paddingBottom": "4rem",
}


@dataclass(frozen=True)
class DashboardConfig:
    """Look at runs in the browser: where <voco> looked, what causes what, what probes read, maps, codes, comparisons.

    Shows what htc-extract wrote and what htc-probe and htc-analyze left beside it, as it appears. Needs neither the
    model nor the images. Listens on this machine only, unless --host says otherwise; sends nothing; opens only the
    runs named here. Ctrl-C stops it.

    Examples:
        htc-dashboard                         # the runs in runs/
        htc-dashboard runs/scenes-val.h5 --port 8600
        htc-dashboard --no-browser            # print the address alone
    """

    runs: Annotated[tuple[Path, ...], Shown("FILE|FOLDER", positional=True)] = (Path("runs"),)
    """Runs (.h5), or folders of runs.
    Links that lead out of a folder are not followed."""
    port: int = 8501
    """1 to 65535. Where it is taken: the next free one."""
    host: Annotated[str, Shown("NAME")] = _HOST
    """Address to listen on. There is no password:
    whoever can reach it sees the runs."""
    public_name: Annotated[str, Shown("NAME")] = ""
    """Name by which a proxy asks, such as lab.example.
    Without it and --host, only this machine is answered."""
    base_path: Annotated[str, Shown("TEXT")] = ""
    """Path before all pages, where a proxy keeps one: /probe."""
    browser: bool = True
    """Open the browser."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command until it is stopped; gives its exit status, see `extract.command.main`."""
    return command.main("htc-dashboard", DashboardConfig, show, argv, interrupted="nothing was served")


def show(config: DashboardConfig) -> int:
    """Checks the settings and serves until it is stopped. Raises UserError."""
    from htc_probe.dashboards.gate import check_public_name

    if config.public_name:
        check_public_name(config.public_name)
    config = replace(config, base_path=checked_path(config.base_path))
    free_port(config.host, config.port)
    from htc_probe.dashboards.runs import check_roots

    check_roots(config.runs)
    return _serve_until_stopped(config)


def checked_path(path: str) -> str:
    """A base path without its outer slashes; "" for none. Raises UserError for what is no path of plain names."""
    parts = path.strip("/").split("/")
    if parts != [""] and not all(re.fullmatch(r"[\w.~-]*[\w~-][\w.~-]*", part, re.ASCII) for part in parts):
        raise UserError(
            f"--base-path {path} is no path of plain names; use letters, digits and - _ . ~ between slashes, such as "
            "/probe"
        )
    return "/".join(parts)


def free_port(host: str, port: int) -> int:
    """`port`, or the next one after it that can be listened on at `host`. Raises UserError where there is none."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port} is no port; choose one from 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET  # as Streamlit has it, also where a name has both
    try:
        _, _, _, _, (address, _, *rest) = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} is no address of this machine; leave it out to listen on {_HOST}") from error
    for candidate in range(port, 65536):
        with socket.socket(family) as probe:
            # As servers do: a port whose last connections are still closing counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, candidate, *rest))
                return candidate
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    raise UserError(
                        f"--host {host} is no address of this machine; leave it out to listen on {_HOST}"
                    ) from error
                if error.errno != errno.EADDRINUSE:
                    raise UserError(
                        f"port {candidate} cannot be used ({error.strerror}); choose another with --port"
                    ) from error
    raise UserError(f"no port from {port} to 65535 is free; choose a lower one with --port")


def settings(config: DashboardConfig) -> dict[str, Any]:
    """Streamlit's settings by name; they win over configuration files."""
    return {
        "server.address": config.host,
        "server.port": config.port,
        "server.baseUrlPath": config.base_path,
        "server.headless": True,  # it opens no browser for an app that is started like this one; server.py does
        "server.showEmailPrompt": False,
        "server.fileWatcherType": "none",
        "server.enableStaticServing": False,
        "runner.postScriptGC": False,  # it looks through all that is kept before an answer is sent
        "browser.serverAddress": config.host,
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "logger.hideWelcomeMessage": True,
        **{f"theme.{name}": value for name, value in _LOOK.items()},
    }


def names(config: DashboardConfig) -> list[str] | None:
    """What it may be asked for as, beside names of this machine itself; None for any name: it was opened to others."""
    from htc_probe.dashboards.gate import is_loopback, name_of

    if config.public_name:
        return [name_of(config.public_name)]
    return [] if is_loopback(config.host) else None


def _serve_until_stopped(config: DashboardConfig) -> int:
    """Serves until Ctrl-C or SIGTERM, and says where; returns the exit code. Raises UserError where no port is free.

    In a process of its own that is then killed, since Streamlit takes 11 seconds to stop while a page is
    open, and nothing is lost: the app only reads.
    """
    roots = [root.absolute() for root in config.runs]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        port = free_port(config.host, config.port)
        if port != config.port:
            print(f"htc-dashboard: port {config.port} is taken; the next free one is {port}", file=sys.stderr)
        started = replace(config, port=port)
        print(f"htc-dashboard: {address(started)}  (stop with Ctrl-C)", flush=True)
        page = address(started) if config.browser and _has_screen() else ""
        arguments = roots, settings(started), names(started), page
        server = multiprocessing.get_context("spawn").Process(target=_serve, args=arguments)
        try:
            server.start()
            server.join()
        except KeyboardInterrupt:
            return 0
        finally:
            server.kill()
            server.join()
        if not server.exitcode or free_port(config.host, port) == port:
            return server.exitcode or 0  # otherwise another program took the port while this one started


def address(config: DashboardConfig) -> str:
    """Where the pages are, for a browser on this machine."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{config.port}" + (f"/{config.base_path}/" if config.base_path else "")


def _has_screen() -> bool:
    """Without one, a browser of the terminal would take that over."""
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))


def _serve(roots: Sequence[Path], settings: Mapping[str, Any], names: Sequence[str] | None, page: str) -> None:
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"  # it keeps runs open, and others may add to them meanwhile
    from htc_probe.dashboards import server

    server.serve(roots, settings, names, page)


def _end_with_the_command() -> None:
    """A command that is killed outright cannot stop its server."""
    command = multiprocessing.parent_process()
    assert command is not None
    command.join()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
