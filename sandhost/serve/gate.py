"""Who may come in by HTTP, decided at the wire: before a request costs more than its head.

    head ─► whose token? ─┬─► Direct: answered or refused, here and now
              │ nobody's  └─► Admission ─┬─► application, with the place until its answer is out
              └─► refused                └─► in line, or refused, with bytes that lie ready

One loop does the work of all, so what it has begun makes everything else late. A request that waits behind
others in the application can no longer be refused in time, nor cheaply. So all requests pass here, also those
that start no guest: who asks for what does not exist takes the loop's time as well. Whoever has no
valid token shares one line with all others without, and a new connection is not in it: its token is looked for
before its head is read.

A head that was answered directly, or refused, will come again, by the thousand: it is kept, and the next one that
equals it byte by byte is not even parsed, if it has the same end.

A request that will rest, for a session or for what takes long, gives its place back (`Place.leave`) and
asks the service again when it has work to do. One whose body is not here has none yet: it could keep it
for as long as it liked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, NamedTuple

from .direct import Direct, Target, target_of
from .durations import SINCE, operation_of
from .line import Request
from .overload import Admission
from .problems import Problem, Unknown
from .records import Principal
from .replies import Reply, refusal, reply_to
from .requests import bearer
from .service import Service
from .shares import NOBODY
from .tokens import Scope

__all__ = ["PLACE", "Gate", "Place"]

PLACE = "sandhost.place"
"""Where a request's place stands in the ASGI scope."""
_STARTS_GUESTS = ("call", "bytes", "run", "sessions")
_HEAD_ENDS = b"\r\n\r\n"
_TOKEN = re.compile(rb"\r\nauthorization: *bearer +([^\r ]+)", re.IGNORECASE)
_MOST_KNOWN, _MOST_HEAD_BYTES = 4096, 2048
"""Arbitrary."""


class Place:
    """A request that may start, or waits for that."""

    __slots__ = (
        "_admission",
        "_deadline_s",
        "_request",
        "_tenant",
        "done",
        "since_s",
        "target",
        "who",
    )

    def __init__(
        self,
        admission: Admission,
        who: Principal | None,
        deadline_s: float | None,
        target: Target | None,
        since_s: float,
    ) -> None:
        self._admission, self._deadline_s = admission, deadline_s
        self._tenant = NOBODY if who is None else who.tenant
        self.who, self.target, self.since_s = who, target, since_s
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
    """What a head says."""

    token: str
    body_bytes: int
    target: Target | None
    operation: str


class Gate:
    """Decides for each request of a service."""

    def __init__(self, service: Service) -> None:
        self._service, self._admission = service, service.admission
        self.shares = service.admission.shares
        self._direct, self._durations = Direct(service), service.durations
        self._known: dict[bytes, _Known] = {}
        self._common: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")

    def tenant_of(self, data: bytes) -> str:
        """Return in whose line the first bytes of a connection get, by the token in them: nothing else is checked."""
        found = _TOKEN.search(data, 0, _MOST_HEAD_BYTES)
        if found is None:
            return NOBODY
        try:
            return self._service.registry.tokens.who(found[1].decode("latin-1")).tenant
        except Unknown:
            return NOBODY

    def place_for(self, scope: MutableMapping[str, Any]) -> tuple[str, Place | None]:
        """Return whose a request is, and what it has to ask for a place with, also left in its scope.

        None: it needs no place.

        Raises:
            Unknown: it has no valid token.
        """
        path: str = scope["path"]
        headers = _by_name(scope["headers"])
        token, deadline = headers.get(b"authorization", b""), headers.get(b"sandhost-deadline", b"")
        text, who, target = bearer(token.decode("latin-1")) or "", None, None
        deadline_s = _seconds(deadline)
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
                return who.tenant, None
            if deadline_s is not None or not deadline:
                target = target_of(scope, deadline_s)
        tenant = NOBODY if who is None else who.tenant
        if not self._admission.places and not (scope["method"] == "POST" and _starts_guest(path)):
            return tenant, None  # short of memory: what starts no guest may free some
        place = scope[PLACE] = Place(self._admission, who, deadline_s, target, scope[SINCE])
        return tenant, place

    def begin(self, scope: MutableMapping[str, Any]) -> None:
        """A request comes."""
        scope[SINCE] = self.shares.since_s()

    def over(self, scope: MutableMapping[str, Any], status: int) -> None:
        """A request is over without the application."""
        operation = operation_of(scope["method"], scope["path"])
        self._durations.add("http", operation, status, scope[SINCE])

    def answer(self, place: Place, body: bytes | bytearray) -> Reply | None:
        """Return the answer to a request that is all here; None: the application has it."""
        if place.who is None or place.target is None:
            return None
        answer = reply_to(self._direct.answer(place.target, place.who, body))
        if answer is not None:
            self._durations.add("http", "call", answer.status, place.since_s)
        return answer

    def lines_of(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return the headers that all answers have, as bytes: uvicorn makes a new list of them each second."""
        if headers is not self._common[0]:
            self._common = headers, b"".join(b"%b: %b\r\n" % pair for pair in headers)
        return self._common[1]

    def remember(self, data: bytes, scope: MutableMapping[str, Any], target: Target | None) -> None:
        """Keep the head of a request that was answered directly, or that its tenant had too many of.

        Args:
            data: the request and nothing else, else it is not kept.
            scope: as it was parsed; without Transfer-Encoding.
        """
        end = data.find(_HEAD_ENDS) + len(_HEAD_ENDS)
        head, found = data[:end], _by_name(scope["headers"])
        body_bytes = int(found.get(b"content-length", b"0"))
        # Whose end is where it was found: no line before the first, and none that ends in another way.
        plain = head[:1].isalpha() and head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r")
        if plain and end <= _MOST_HEAD_BYTES and len(data) == end + body_bytes:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            token = bearer(found.get(b"authorization", b"").decode("latin-1")) or ""
            operation = operation_of(scope["method"], scope["path"])
            self._known[head] = _Known(token, body_bytes, target, operation)

    def answer_again(self, data: bytes, client: tuple[str, int] | None) -> tuple[str, Reply | None]:
        """Return whose a request is whose head is known, and the answer; None: it is not, or not all here."""
        end = data.find(_HEAD_ENDS) + len(_HEAD_ENDS)
        known = self._known.get(data[:end])
        if known is None or len(data) != end + known.body_bytes:
            return NOBODY, None
        tenant, answer = self._answer_known(known, data[end:], client)
        if answer is not None:
            since_s = self.shares.since_s()
            self._durations.add("http", known.operation, answer.status, since_s)
        return tenant, answer

    def refuse_again(self, data: bytes, client: tuple[str, int] | None) -> tuple[str, Reply | None]:
        """The same for a head that was refused: refused once more, before it is its tenant's turn; else None."""
        known = self._known.get(data[: data.find(_HEAD_ENDS) + len(_HEAD_ENDS)])
        if known is None or known.target is not None:
            return NOBODY, None
        return self.answer_again(data, client)

    def _answer_known(
        self, known: _Known, body: bytes, client: tuple[str, int] | None
    ) -> tuple[str, Reply | None]:
        try:
            who = self._service.whose(known.token, _peer(client))
        except Unknown as problem:
            return NOBODY, refusal(problem, close=False)
        if known.target is None:
            return who.tenant, reply_to(self._admission.turn_away(who.tenant))
        return who.tenant, reply_to(self._direct.answer(known.target, who, body))


def _by_name(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return headers by their names: of several the first, as the application has it."""
    return dict(reversed(headers))


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
