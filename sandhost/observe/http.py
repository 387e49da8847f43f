"""What Go's programs offer under /debug/pprof/, for `go tool pprof`, a browser and curl.

    /debug/pprof/         what there is
    /debug/pprof/heap     handles in use, with what holds them: ?gc=1 collects first
    /debug/pprof/allocs   the same, shown by what was ever allocated
    /debug/pprof/guests   guests, what they do, and the wasm stacks of those that compute

    /debug/sandhost/view  everything that `sandhost top` and `sandhost report` show, as JSON

Each profile with ?debug=1 for text, ?seconds=N for what changed within N seconds, ?format=speedscope.
`handle` is all of it as a function, for a server that the application has; `serve` opens a small one, on the
loopback interface only, that answers who knows its token. A profile names tenants, plugins and what they hold:
it is not for everybody.
"""

from __future__ import annotations

import hmac
import http.server
import ipaddress
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, urlsplit

from .._closing import Closing
from .._log import get_logger
from ..errors import ConfigError
from .capture import capture
from .guests import guests_profile
from .picture import VIEW_PATH, look
from .pprof import Profile, encode
from .records import to_json
from .speedscope import speedscope
from .text import as_text

if TYPE_CHECKING:
    from ..host import Host

__all__ = ["ROOT", "Answer", "Server", "handle", "serve"]

ROOT = "/debug/pprof/"
_MOST_SECONDS = 300
_TEXT = "text/plain; charset=utf-8"
_SECURE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Answer(NamedTuple):
    """What is to be sent."""

    status: int
    content_type: str
    body: bytes


def _heap(host: Host, gc: bool, delta: bool) -> Profile:
    return capture(host, gc=gc).profile(ages=not delta)


def _allocs(host: Host, gc: bool, delta: bool) -> Profile:
    return _heap(host, gc, delta)._replace(shown="alloc_space")


def _guests(host: Host, _gc: bool, delta: bool) -> Profile:
    return guests_profile(host, ages=not delta)


_PROFILES: dict[str, tuple[Callable[[Host, bool, bool], Profile], str]] = {
    "heap": (_heap, "Handles in use, with what holds them. ?gc=1 collects first."),
    "allocs": (_allocs, "All handles ever given out, those of guests that are gone too."),
    "guests": (_guests, "Guests, what they do, and the wasm stacks of those that compute."),
}


def handle(host: Host, path: str, query: str | Mapping[str, str] = "") -> Answer:
    """Answer a request for a path that is named above. Who may ask is the caller's to decide.

    It takes as long as the query's `seconds`: call it on a thread of its own.
    """
    given = _query(query)
    if path == VIEW_PATH:
        return Answer(HTTPStatus.OK, "application/json", to_json(look(host)))
    name = path.removeprefix(ROOT) if path.startswith(ROOT) else None
    if path == ROOT.rstrip("/"):
        name = ""
    if name is None or (name and name not in _PROFILES):
        return _problem(HTTPStatus.NOT_FOUND, f"there is no such profile; see {ROOT}")
    if not name:
        return Answer(HTTPStatus.OK, _TEXT, _index().encode())
    try:
        seconds = float(given.get("seconds", "0"))
        debug = int(given.get("debug", "0"))
    except ValueError:
        return _problem(HTTPStatus.BAD_REQUEST, "seconds and debug are numbers")
    if not 0 <= seconds <= _MOST_SECONDS:
        return _problem(HTTPStatus.BAD_REQUEST, f"seconds are 0 to {_MOST_SECONDS}")
    take, _ = _PROFILES[name]
    gc, delta = given.get("gc", "0") not in ("", "0"), seconds > 0
    profile = take(host, gc, delta)
    if delta:
        time.sleep(seconds)
        profile = take(host, gc, delta).since(profile)
    if debug:
        return Answer(HTTPStatus.OK, _TEXT, as_text(profile).encode())
    if given.get("format") == "speedscope":
        return Answer(HTTPStatus.OK, "application/json", speedscope(profile))
    return Answer(HTTPStatus.OK, "application/octet-stream", encode(profile))


def _query(query: str | Mapping[str, str]) -> Mapping[str, str]:
    if not isinstance(query, str):
        return query
    try:
        return {key: values[-1] for key, values in parse_qs(query, max_num_fields=20).items()}
    except ValueError:
        return {}


def _problem(status: HTTPStatus, message: str) -> Answer:
    return Answer(status, _TEXT, f"{message}\n".encode())


def _index() -> str:
    lines = [f"{ROOT}{name:8} {what}" for name, (_, what) in _PROFILES.items()]
    more = "?debug=1: as text; ?seconds=N: what changes within N seconds; ?format=speedscope"
    return "\n".join(("profiles of sandhost", "", *lines, "", more, ""))


# ---- a server ----


class Server(Closing):
    """What `serve` returns. Close it, or use it in a `with` block."""

    def __init__(self, host: Host, address: str, port: int, token: str | None) -> None:
        from .places import announce

        self.token = secrets.token_urlsafe(24) if token is None else token
        self._http = _Http((address, port), _handler(host, self.token))
        name, self.port = str(self._http.server_address[0]), int(self._http.server_address[1])
        self.base = f"http://{f'[{name}]' if ':' in name else name}:{self.port}"
        """Without the token."""
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.1,), name="sandhost-observe", daemon=True
        )
        self._thread.start()
        self._place = announce(self.base, self.token)
        get_logger("sandhost.observe").info("observe_serving", url=self.base)

    def url(self, profile: str = "heap", **query: object) -> str:
        """Return the address of a profile, token included: what `go tool pprof` is given."""
        words = [f"{key}={value}" for key, value in query.items()]
        words += [f"token={self.token}"] if self.token else []
        return f"{self.base}{ROOT}{profile}" + (f"?{'&'.join(words)}" if words else "")

    def close(self) -> None:
        """Stop answering. Idempotent."""
        if self._place is not None:
            self._place.unlink(missing_ok=True)
            self._place = None
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def serve(
    host: Host,
    port: int = 0,
    *,
    address: str = "127.0.0.1",
    token: str | None = None,
    exposed: bool = False,
) -> Server:
    """Answer requests for profiles from a thread, until the server is closed.

    Args:
        port: 0: a free one, see `Server.url`.
        address: an IP address. Other than the loopback's only with `exposed`.
        token: what a request has to bring, as `?token=` or `Authorization: Bearer`; None: a new random one. "" asks for
            none, and needs `exposed` as well: any program and any web page of this machine could ask.
        exposed: say that you mean it.

    Raises:
        ConfigError: the address is none, or needs `exposed`.
        OSError: it cannot be listened at.
    """
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        raise ConfigError(f"address is {address!r}; give an IP address") from None
    if not loopback and not exposed:
        raise ConfigError(
            f"{address} can be reached from other machines, and profiles name tenants and what they hold; "
            "pass exposed=True if that is meant"
        )
    if token is not None and (not token.isascii() or not token.isprintable() or " " in token):
        raise ConfigError("a token is ASCII text without spaces")
    if token == "" and not exposed:
        raise ConfigError("without a token anybody may ask; pass exposed=True if that is meant")
    return Server(host, address, port, token)


class _Http(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a request for ?seconds=300 does not keep close() waiting
    allow_reuse_address = True

    def __init__(
        self, where: tuple[str, int], handler: type[http.server.BaseHTTPRequestHandler]
    ) -> None:
        import socket

        self.address_family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        super().__init__(where, handler)

    def server_bind(self) -> None:
        """Bind, without asking anybody what the address is called."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """Keep to the log what the base class prints."""
        get_logger("sandhost.observe").debug("observe_request_failed", exc_info=True)


def _handler(host: Host, token: str) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 30  # of a client that does not say what it wants
        server_version, sys_version = "sandhost", ""

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = dict(_query(parts.query))
            if not self._may_ask(query.pop("token", "")):
                answer = _problem(HTTPStatus.FORBIDDEN, "a token is needed; see Server.url")
            else:
                try:
                    answer = handle(host, parts.path, query)
                except Exception as error:  # noqa: BLE001 - the next request is another's
                    get_logger("sandhost.observe").warning("observe_failed", exc_info=True)
                    status = HTTPStatus.INTERNAL_SERVER_ERROR
                    answer = _problem(status, f"{type(error).__name__}: {error}")
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            for key, value in _SECURE.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def _may_ask(self, given: str) -> bool:
            kind, _, bearer = (self.headers.get("Authorization") or "").partition(" ")
            offered = bearer.strip() if kind.lower() == "bearer" else given
            same = hmac.compare_digest(offered.encode(errors="replace"), token.encode())
            return not token or same

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing: the line would have the token in it."""

    return Handler
