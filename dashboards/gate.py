"""Who is answered: a request by an expected name, from a page of the dashboard itself. Knows ASGI; not Streamlit.

A page of another site can make its visitor's browser ask this machine, and can have its own name point here (DNS
rebinding). The browser then says so in `Host` or `Origin`, and is refused before anything else looks at the request.
"""

import re
import sys
from collections.abc import Sequence
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from htc_probe.extract.errors import UserError

_MOST_TOLD = 5  # refused pages, on the screen: whoever can ask could fill it
_NAME = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(?::\d{1,5})?", re.ASCII | re.IGNORECASE)


class Gate:
    """Answers 403 to requests that `refusal` refuses (pages, files, websockets), and passes on all others.

    A websocket's Origin stays here: Streamlit would check it again, and ask a server in the network for this machine's
    address to do so.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str] | None) -> None:
        self.app, self.names = app, names
        self.told: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        reason = refusal(headers.getlist("host"), headers.getlist("origin"), self.names)
        if scope["type"] == "http":
            answer = PlainTextResponse(f"htc-dashboard: {reason}\n", 403) if reason else self.app
            return await answer(scope, receive, send)
        if reason:
            self._tell(reason)
            return await send({"type": "websocket.close", "code": 1008})  # the server makes a 403 of it
        kept = [header for header in scope["headers"] if header[0] != b"origin"]
        await self.app({**scope, "headers": kept}, receive, send)

    def _tell(self, reason: str) -> None:
        """On the screen: a page whose websocket is refused stays empty, and cannot say why."""
        if reason not in self.told and len(self.told) < _MOST_TOLD:
            self.told.add(reason)
            print(f"htc-dashboard: {reason}", file=sys.stderr, flush=True)


def refusal(hosts: Sequence[str], origins: Sequence[str], names: Sequence[str] | None) -> str:
    """Why a request with these headers is not answered, and the way out; "" where it is.

    names: those that it may ask for beside the names of this machine itself; None for any. A page that asks must have
    one of them, or the name that it asks for.
    """
    asked = [name_of(host) for host in hosts]
    if len(asked) != 1 or not _expected(asked[0], names):
        return f"the request names the host {_shown(hosts)}, which is not this machine; {_WAY_OUT}"
    known = [*asked, *(names or ())]
    pages = [name_of(origin.partition("://")[2]) for origin in origins]
    if not all(_expected(page, known) for page in pages):
        return f"the request comes from a page of another site, {_shown(origins)}; {_WAY_OUT}"
    return ""


_WAY_OUT = "open http://localhost instead; behind a proxy, give the name that people type with --public-name"


def name_of(host: str) -> str:
    """The name in `name:port`, in lower case and without the brackets of an IPv6 address; "" where it is not that."""
    found = _NAME.fullmatch(host)
    return found[1].lower().strip("[]").removesuffix(".") if found else ""


def is_loopback(name: str) -> bool:
    """Whether it can only mean the machine of who asks."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def check_public_name(name: str) -> None:
    """Raises UserError unless it is a name without a scheme, port or path."""
    if not name or name_of(name) != name.lower().strip("[]").removesuffix("."):
        raise UserError(
            f"--public-name {name} is not the name of a machine; give the part of the address between // and the next "
            ": or /, such as lab.example"
        )


def _expected(name: str, names: Sequence[str] | None) -> bool:
    return bool(name) and (names is None or is_loopback(name) or name in names)


def _shown(values: Sequence[str]) -> str:
    return ", ".join(f"{value[:100]!a}" for value in values[:3]) or "nothing"
