"""htc-dashboard: look at runs in the browser. Parses, checks, starts Streamlit; knows nothing of the pages.

Streamlit and plotly are imported when the server starts, so that --help and errors answer at once.
"""

import errno
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from extract.errors import UserError

HOST = "127.0.0.1"


@dataclass(frozen=True)
class DashboardConfig:
    """Look at runs in the browser: where <voco> looked, what causes what, what probes read, maps, codes, comparisons.

    Shows what htc-extract wrote and what htc-probe and htc-analyze left beside it, as it appears; needs neither the
    model nor the images. Listens on this machine only unless --host says otherwise, sends nothing, and opens only the
    runs named here. Stop it with Ctrl-C.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),)
    """Folders of runs, or single run files (.h5). Links that lead out of a folder are not followed."""
    port: int = 8501
    """Port, 1 to 65535."""
    host: str = HOST
    """Address to listen on. Beyond this machine, whoever can reach it sees the runs: there is no password."""
    browser: bool = True
    """Open the browser; with --no-browser only the address is printed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command until it is stopped; returns the exit code (2 for a mistake of the caller)."""
    config = tyro.cli(DashboardConfig, args=argv, prog="htc-dashboard")
    try:
        check_address(config.host, config.port)
        from dashboards.runs import check_roots

        check_roots(config.runs)
    except UserError as error:
        print(f"htc-dashboard: {error}", file=sys.stderr)
        return 2
    name = f"[{config.host}]" if ":" in config.host else config.host
    print(f"htc-dashboard: http://{name}:{config.port}  (stop with Ctrl-C)", flush=True)
    return serve(config)


def check_address(host: str, port: int) -> None:
    """Raises UserError unless `port` can be listened on at `host`."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port} is no port; choose one from 1 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} is no address of this machine; leave it out to listen on {HOST}") from error
    with socket.socket(family) as probe:
        # As servers do: a port whose last connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UserError(
                    f"--host {host} is no address of this machine; leave it out to listen on {HOST}"
                ) from error
            raise UserError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from error


def settings(config: DashboardConfig) -> dict[str, Any]:
    """Streamlit's settings by name; they win over configuration files."""
    return {
        "server.address": config.host,
        "server.port": config.port,
        "server.headless": not config.browser,
        "server.showEmailPrompt": False,
        "server.fileWatcherType": "none",
        "server.enableStaticServing": False,
        "browser.serverAddress": config.host,
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "logger.hideWelcomeMessage": True,
    }


def serve(config: DashboardConfig) -> int:
    """Serves until Ctrl-C or SIGTERM; returns the exit code.

    In a process of its own that is then killed, since Streamlit takes 11 seconds to stop while a page is
    open, and nothing is lost: the app only reads.
    """
    roots = [root.absolute() for root in config.runs]
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(roots, settings(config)))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server.start()
        server.join()
        return server.exitcode or 0
    except KeyboardInterrupt:
        return 0
    finally:
        server.kill()
        server.join()


def _serve(roots: Sequence[Path], settings: Mapping[str, Any]) -> None:
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"  # it keeps runs open, and others may add to them meanwhile
    from dashboards import server

    server.serve(roots, settings)


def _end_with_the_command() -> None:
    """A command that is killed outright cannot stop its server."""
    command = multiprocessing.parent_process()
    assert command is not None
    command.join()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
