"""Who may ask the dashboard for what, and whom it asks itself: nobody. Behind a real proxy too."""

import base64
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from benchmarks.browser import serving, tab
from htc_probe.dashboards import cli, gate
from htc_probe.extract.errors import UserError
from made.pages import environment, failing, free_port, write_run

LOCAL = ("localhost", "LOCALHOST:8501", "127.0.0.1:8501", "127.8.9.1", "[::1]:8501", "localhost.", "lab.localhost:80")
FOREIGN = (
    "evil.example",
    "evil.example:8501",
    "localhost.evil.example",
    "localhost@evil.example",
    "evil.example/localhost",
    "127.0.0.1.evil.example",
    "192.168.0.7:8501",
    "0.0.0.0:8501",
    "[::]:8501",
    "localhost:8501:8501",
    "localhost:x",
    "local host",
    "notlocalhost",
    "",
    ":8501",
    "[::1",
    "localhost,evil.example",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "run.h5")
    return folder


# ---- the rule


@pytest.mark.parametrize("host", LOCAL)
def test_names_of_this_machine_are_answered(host: str) -> None:
    assert gate.refusal([host], [], []) == "" == gate.refusal([host], [f"http://{host}"], [])


@pytest.mark.parametrize("host", FOREIGN)
def test_other_names_are_refused(host: str) -> None:
    assert "--public-name" in gate.refusal([host], [], [])
    assert "--public-name" in gate.refusal(["localhost:8501"], [f"http://{host}"], []), "as a page of that name"
    assert "--public-name" in gate.refusal([host], [], ["lab.example"])


@pytest.mark.parametrize(
    ("hosts", "origins"),
    [
        ([], []),
        (["localhost", "evil.example"], []),
        (["localhost"] * 2, []),
        (["localhost"], ["null"]),
        (["localhost"], ["evil.example"]),
        (["localhost"], ["http://localhost", "http://evil.example"]),
    ],
)
def test_headers_that_are_missing_doubled_or_no_origin_are_refused(hosts: list[str], origins: list[str]) -> None:
    assert gate.refusal(hosts, origins, [])


def test_a_proxy_may_pass_its_name_on_or_not() -> None:
    names = cli.names(cli.DashboardConfig(public_name="Lab.Example"))
    for host in ("lab.example", "lab.example:8443", "127.0.0.1:8501"):
        assert gate.refusal([host], ["https://lab.example"], names) == ""
        assert gate.refusal([host], ["https://evil.example"], names)


def test_opened_to_others_any_name_is_answered_but_no_page_of_another_site() -> None:
    names = cli.names(cli.DashboardConfig(host="0.0.0.0"))
    assert gate.refusal(["lab.example:8501"], ["http://lab.example:8501"], names) == ""
    assert gate.refusal(["lab.example:8501"], ["http://evil.example"], names)
    assert gate.refusal([""], [], names)
    for host in ("127.0.0.1", "localhost", "::1"):
        assert cli.names(cli.DashboardConfig(host=host)) == [], "still this machine alone"
    assert cli.names(cli.DashboardConfig(host="0.0.0.0", public_name="lab.example")) == ["lab.example"]


def test_what_is_refused_is_shown_short_and_harmless() -> None:
    reason = gate.refusal(["\x1b[2J<b>\n" + "x" * 10_000] * 9, [], [])
    assert len(reason) < 700 and reason.isprintable()


# ---- options


@pytest.mark.parametrize(
    ("path", "kept"),
    [("", ""), ("/", ""), ("probe", "probe"), ("/probe/", "probe"), ("/user/j.doe/proxy~1", "user/j.doe/proxy~1")],
)
def test_base_paths(path: str, kept: str) -> None:
    assert cli.checked_path(path) == kept
    assert cli.address(cli.DashboardConfig(base_path=kept)).endswith(f":8501/{kept}/" if kept else ":8501")


@pytest.mark.parametrize("path", ["a//b", "../a", "/a/./b", "a b", "a?b", "a#b", "{a}", "a\\b", "ä", "http://a", "a\n"])
def test_bad_base_paths_are_refused(path: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--base-path"):
        cli.checked_path(path)
    if path.isprintable():
        assert "such as /probe" in failing(capsys, str(runs), "--base-path", path)


@pytest.mark.parametrize("name", ["https://lab.example", "lab.example:8443", "lab.example/probe", "a b", "*"])
def test_bad_public_names_are_refused(name: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "such as lab.example" in failing(capsys, str(runs), "--public-name", name)


def test_a_taken_port_takes_the_next_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.free_port("127.0.0.1", port) > port
        assert cli.free_port("localhost", port) > port, "which may be an IPv6 address too"
    assert cli.free_port("127.0.0.1", port) == port


def test_where_no_port_is_free_it_is_refused(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 65535)):
        assert "no port from 65535 to 65535 is free" in failing(capsys, str(runs), "--port", "65535")


@pytest.mark.slow
def test_two_that_start_at_once_on_one_port_both_serve(runs: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "htc_probe.dashboards.cli", str(runs), "--port", str(port), "--no-browser"]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())
        for _ in range(2)
    ]
    try:
        deadline = time.monotonic() + 60
        while not (_healthy(port) and any(_healthy(port + more) for more in range(1, 5))):
            assert time.monotonic() < deadline, "one of them does not serve"
            time.sleep(0.2)
    finally:
        for server in both:
            server.terminate()
        said = [server.communicate(timeout=30)[0] for server in both]
    assert any(f"port {port} is taken; the next free one is" in each for each in said), said
    assert all("http://127.0.0.1:" in each for each in said)


def test_the_browser_opens_the_page(runs: Path, tmp_path: Path) -> None:
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$@" > {opened}.part && mv {opened}.part {opened}\n')
    browser.chmod(0o755)
    port = free_port()
    command = [sys.executable, "-m", "htc_probe.dashboards.cli", str(runs), "--port", str(port), "--base-path", "probe"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment() | {"BROWSER": str(browser)}) as server:
        try:
            deadline = time.monotonic() + 60
            while not opened.exists():
                assert time.monotonic() < deadline, "it opened nothing"
                time.sleep(0.1)
        finally:
            server.terminate()
    assert opened.read_text() == f"http://127.0.0.1:{port}/probe/\n"


def _healthy(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).read() == b"ok"
    except OSError:
        return False


# ---- a server


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[dict[str, str], list[bytes]]]:
    """The environment that names a proxy, and what that was asked: all that a program there asks of the network."""
    found: list[bytes] = []

    def take() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = trap.accept()
                with client:
                    found.append(client.recv(400).partition(b"\r\n")[0])

    with socket.create_server(("127.0.0.1", 0)) as trap:
        threading.Thread(target=take, daemon=True).start()
        proxy = f"http://127.0.0.1:{trap.getsockname()[1]}"
        names = [name for scheme in ("http", "https", "all") for name in (f"{scheme}_proxy", f"{scheme}_PROXY".upper())]
        yield dict.fromkeys(names, proxy) | {"no_proxy": "127.0.0.1,localhost"}, found


def status(address: str, path: str = "", *, websocket: bool = False, **headers: str) -> int:
    """The status that a request for address/path gets; headers may set Host and Origin."""
    place = urlsplit(address)
    lines = {"Host": place.netloc, "Connection": "close"} | headers
    if websocket:
        path = "/_stcore/stream"
        key = base64.b64encode(os.urandom(16)).decode()
        lines |= {"Connection": "Upgrade", "Upgrade": "websocket"}
        lines |= {"Sec-WebSocket-Key": key, "Sec-WebSocket-Version": "13"}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    with socket.create_connection((place.hostname, place.port), 10) as client:
        client.sendall(f"GET {place.path}{path} HTTP/1.1\r\n{head}\r\n".encode())
        return int(client.recv(100).split()[1])


def test_no_site_gets_in_and_nothing_goes_out(runs: Path, asked: tuple[dict[str, str], list[bytes]]) -> None:
    variables, found = asked
    with serving(runs, environment=variables) as address:
        page = urllib.request.urlopen(f"{address}/").read().decode()
        asset = re.search(r'src="\./(static/js/[^"]+)"', page)
        assert asset, "a script of the page"
        for path in ("/", "/plotly.min.js", f"/{asset[1]}", "/_stcore/health", "/_stcore/host-config", "/a/page"):
            assert status(address, path) == 200, path
            assert status(address, path, Host="evil.example") == 403, path
            assert status(address, path, Host="") in (400, 403), path
            assert status(address, path, Origin="https://evil.example") == 403, path
        port = urlsplit(address).port
        for origin in ("", address, f"http://localhost:{port}", "http://localhost:8080"):
            assert status(address, websocket=True, Origin=origin) == 101, origin
        for origin in ("https://evil.example", "null", "http://192.168.0.7", f"http://evil.example:{port}"):
            assert status(address, websocket=True, Origin=origin) == 403, origin
        for origin in ("", "http://evil.example", "http://localhost"):
            assert status(address, websocket=True, Host="evil.example", Origin=origin) == 403, origin
    assert found == [], "the dashboard asked the network"


def test_by_a_public_name_nothing_goes_out_either(runs: Path, asked: tuple[dict[str, str], list[bytes]]) -> None:
    variables, found = asked
    options = ("--public-name", "lab.example", "--base-path", "/probe")
    with serving(runs, options=options, environment=variables) as address:
        assert address.endswith("/probe") and status(address, "/plotly.min.js") == 200
        assert status(address.removesuffix("/probe"), "/") == 404
        for host in ("lab.example", urlsplit(address).netloc):
            assert status(address, "/", Host=host) == 200
            assert status(address, websocket=True, Host=host, Origin="https://lab.example") == 101
            assert status(address, websocket=True, Host=host, Origin="https://evil.example") == 403
    assert found == [], "the dashboard asked the network"


# ---- behind a proxy

_NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location /lab/probe/ {{
            proxy_pass {address};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            {more}
        }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path, address: str, more: str = "") -> Iterator[str]:
    """The address at which a real nginx passes on what lies below /lab/probe/."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("no nginx here; install it to run this (Debian: apt install nginx-light)")
    port = free_port()
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, port=port, address=address, more=more))
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as proxy:
        try:
            deadline = time.monotonic() + 20
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert time.monotonic() < deadline and proxy.poll() is None, (folder / "error.log").read_text()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/lab/probe"
        finally:
            proxy.terminate()


def test_nginx_by_a_public_name(runs: Path, tmp_path: Path) -> None:
    """It sends the dashboard's own address as Host, unless it is told to pass on the one it was asked by."""
    options = ("--base-path", "/lab/probe", "--public-name", "lab.example")
    with serving(runs, options=options) as served:
        for more in ("", "proxy_set_header Host $host;", "proxy_set_header Host $http_host;"):
            with nginx(tmp_path, served.removesuffix("/lab/probe"), more) as address:
                for path in ("/", "/plotly.min.js", "/_stcore/health"):
                    assert status(address, path, Host="lab.example") == 200, (more, path)
                assert status(address, websocket=True, Host="lab.example", Origin="https://lab.example") == 101, more
                assert status(address, websocket=True, Host="lab.example", Origin="https://evil.example") == 403, more


@pytest.mark.slow
def test_pages_behind_nginx_in_the_browser(runs: Path, tmp_path: Path, chromium: Any) -> None:
    with (
        serving(runs, options=("--base-path", "lab/probe")) as served,
        nginx(tmp_path, served.removesuffix("/lab/probe")) as address,
        tab(chromium, address) as page,
    ):
        page.open(page="Attention")
        assert page.page.locator(".js-plotly-plot").count() > 0, "a chart is drawn"
        page.open()
        assert page.page.locator("button img").count() > 0, "thumbnails are shown"
        page.check()
