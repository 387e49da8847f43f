"""Who may come in by HTTP, decided at the wire: before a request costs more than its head.

    head ─► whose token? ─► Admission ─┬─► application, with the place until its answer is out
              │ nobody's               └─► in line, or refused, with bytes that lie ready
              └─► refused

One loop does the work of all, so what it has begun makes everything else late. A request that waits behind
others in the application can no longer be refused in time, nor cheaply. So all requests pass here, also those
that start no guest: who asks for what does not exist takes the loop's time as well. Whoever has no
valid token shares one line with all others without.

A head that was refused will come again, by the thousand: it is kept, and the next one that equals it byte by
byte is not even parsed, if it is to be refused as well.

A request that will rest, for a session or for what takes long, gives its place back (`Place.leave`) and
asks the service again when it has work to do. One whose body is not here has none yet: it could keep it
for as long as it liked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, MutableMapping
from functools import lru_cache
from typing import Any, NamedTuple

from .overload import Admission, Request
from .problems import Problem, Unknown
from .requests import bearer, problem_response
from .service import Service
from .tokens import Scope

__all__ = ["PLACE", "Gate", "Place", "refusal"]

PLACE = "sandhost.place"
"""Where a request's place stands in the ASGI scope."""
_NOBODY = ""
_STARTS_GUESTS = ("call", "bytes", "run", "sessions")
_HINT_STEP_S = 0.05
_HEAD_ENDS = b"\r\n\r\n"
_MOST_KNOWN, _MOST_HEAD_BYTES = 4096, 2048
"""Arbitrary."""


class Place:
    """A request that may start, or waits for that."""

    __slots__ = ("_admission", "_deadline_s", "_request", "_tenant", "done")

    def __init__(self, admission: Admission, tenant: str, deadline_s: float | None) -> None:
        self._admission, self._tenant, self._deadline_s = admission, tenant, deadline_s
        self._request: Request | None = None
        self.done = True
        """Whether the request ends as it should; what fails says little of how long requests take."""

    def ask(self, settle: Callable[[Problem | None], None]) -> None:
        """Get in line: `settle` is called with None when it may start, else with why not; perhaps at once."""
        self._request = self._admission.ask(self._tenant, self._deadline_s, settle)

    def turn_away(self) -> Problem | None:
        """Return why it would not get one, as if it had asked; None: it may ask later."""
        return self._admission.turn_away(self._tenant)

    @property
    def held(self) -> bool:
        """Whether it has not left."""
        return self._request is not None

    def leave(self) -> None:
        """Give it back, or stop waiting; idempotent."""
        request, self._request = self._request, None
        if request is not None:
            self._admission.finish(request, done=self.done)


class _Known(NamedTuple):
    """What a head says that was refused."""

    token: str
    body_bytes: int


class Gate:
    """Decides for each request of a service."""

    def __init__(self, service: Service) -> None:
        self._service, self._admission = service, service.admission
        self._known: dict[bytes, _Known] = {}

    def place_for(self, scope: MutableMapping[str, Any]) -> Place | None:
        """Return what a request has to ask for a place with, also left in its scope. None: it needs none.

        Raises:
            Unknown: it has no valid token.
        """
        path: str = scope["path"]
        token = deadline = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                token = value
            elif name == b"sandhost-deadline":
                deadline = value
        text, tenant = bearer(token.decode("latin-1")) or "", _NOBODY
        try:
            if path.startswith("/v1/"):
                who = self._service.whose(text, _peer(scope["client"]))
            else:
                who = self._service.registry.tokens.who(text)
        except Unknown:
            if path.startswith("/v1/"):
                raise
        else:
            if Scope.ADMIN in who.scopes:
                return None
            tenant = who.tenant
        if not self._admission.places and not (scope["method"] == "POST" and _starts_guest(path)):
            return None  # short of memory: what starts no guest may free some
        place = scope[PLACE] = Place(self._admission, tenant, _seconds(deadline))
        return place

    def remember(self, data: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep the head of a request that its tenant had too many of.

        Args:
            data: the request, from its first byte.
            headers: as they were parsed; without Transfer-Encoding.
        """
        found = dict(headers)
        head = data[: data.find(_HEAD_ENDS) + len(_HEAD_ENDS)]
        if len(head) <= _MOST_HEAD_BYTES:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            token = bearer(found.get(b"authorization", b"").decode("latin-1")) or ""
            self._known[head] = _Known(token, int(found.get(b"content-length", b"0")))

    def refuses_again(self, data: bytes, client: tuple[str, int] | None) -> Problem | None:
        """Return why a request is refused, if it is known and here as a whole."""
        end = data.find(_HEAD_ENDS) + len(_HEAD_ENDS)
        known = self._known.get(data[:end])
        if known is None or len(data) != end + known.body_bytes:
            return None
        try:
            who = self._service.whose(known.token, _peer(client))
        except Unknown as problem:
            return problem
        return self._admission.turn_away(who.tenant)


def _peer(client: tuple[str, int] | None) -> str:
    """Return the address of a client, for the audit log."""
    return "" if client is None else client[0]


def _starts_guest(path: str) -> bool:
    words = path.split("/", 5)  # "", v1, plugins, NAME, call, FUNCTION
    return len(words) > 4 and words[4] in _STARTS_GUESTS


def _seconds(text: bytes) -> float | None:
    """Return a deadline; None also for nonsense, which the application will refuse with words."""
    try:
        value = float(text) if text else math.inf
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None


def refusal(problem: Problem, *, close: bool) -> tuple[bytes, bytes]:
    """Return the answer to a request that may not come in: its first line, and the rest of it."""
    hint_s = problem.retry_after_s
    if hint_s is not None:  # rounded, so that few answers are ever made
        hint_s = round(math.ceil(hint_s / _HINT_STEP_S) * _HINT_STEP_S, 2)
    # A class can be hashed; mypy looks at its instances.
    return _refusal(type(problem), problem.detail, hint_s, close)  # type: ignore[arg-type]


@lru_cache(maxsize=1024)
def _refusal(
    kind: type[Problem], detail: str, hint_s: float | None, close: bool
) -> tuple[bytes, bytes]:
    response = problem_response(kind(detail, retry_after_s=hint_s))
    if close:
        response.headers["connection"] = "close"
    first = f"HTTP/1.1 {int(kind.status)} {kind.status.phrase}\r\n".encode()
    lines = b"".join(b"%b: %b\r\n" % pair for pair in response.raw_headers)
    return first, lines + b"\r\n" + bytes(response.body)
