"""How long whole requests took, counted in the buckets of a histogram.

    first byte is read ──► line, work ──► the answer's last byte is handed on

By door, kind of operation and class of status: all of them are words of ours, so that no client makes a series
of its own. No request of HTTP (a head that nobody can read) is none here. Everything belongs to one event loop;
who reads sees figures that may be a moment apart.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from time import monotonic
from typing import Any, NamedTuple

__all__ = ["BOUNDS_S", "GONE", "SINCE", "Durations", "Taken", "TimedApp", "operation_of"]

BOUNDS_S = tuple(
    float(f"{step}e{power}")
    for power in range(-5, 2)
    for step in (1, 2, 5)
    if (step, power) != (1, -5)
)
"""From 20 µs, which a refusal at the wire takes, to 50 s. "At most", as Prometheus has it."""
GONE = 0
"""Where a status would be: the client went, or the service ended, before there was an answer."""
SINCE = "sandhost.since"
"""When a request began, in its ASGI scope."""

_CLASSES = ("gone", "1xx", "2xx", "3xx", "4xx", "5xx")
_OF_A_PLUGIN = {
    "call": "call",
    "bytes": "bytes",
    "run": "run",
    "sessions": "session",
    "versions": "version",
}

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]


class Taken(NamedTuple):
    """What is known of requests that are alike."""

    door: str
    operation: str
    status: str
    """Its class: "2xx"."""
    counts: tuple[int, ...]
    """By bucket, the last one for what took longer than all bounds."""
    sum_s: float


class _Row:
    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0


class Durations:
    """Counts the requests of a service."""

    def __init__(self) -> None:
        self._rows: defaultdict[tuple[str, str, int], _Row] = defaultdict(_Row)

    def add(self, door: str, operation: str, status: int, since_s: float) -> None:
        """A request is over now.

        Args:
            status: HTTP's, or what it would be there; GONE: there was nobody to get one.
            since_s: when it began, by time.monotonic().
        """
        # 0.4 µs for each call, of which there are ten thousand a second.
        elapsed_s = monotonic() - since_s
        row = self._rows[door, operation, status // 100]
        row.counts[bisect_left(BOUNDS_S, elapsed_s)] += 1
        row.sum_s += elapsed_s

    def taken(self) -> Iterator[Taken]:
        """Return what there was, in some order."""
        for (door, operation, status), row in list(self._rows.items()):
            yield Taken(door, operation, _CLASSES[status], tuple(row.counts), row.sum_s)


def operation_of(method: str, path: str) -> str:
    """Return what kind of operation a request of HTTP asks for, whether or not it may."""
    words = path.split("/", 5)  # "", v1, plugins, NAME, call, FUNCTION
    if words[1:2] != ["v1"] or len(words) < 3:
        return "other"
    if words[2] == "plugins":
        if len(words) > 4:
            return _OF_A_PLUGIN.get(words[4], "plugin")
        return "upload" if method == "PUT" else "plugin"
    return {"sessions": "session", "admin": "admin"}.get(words[2], "other")


class TimedApp:
    """Counts the requests that an application answers."""

    def __init__(self, app: _App, durations: Durations) -> None:
        self.app, self._durations = app, durations

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send
    ) -> None:
        """Serve one request."""
        since_s = scope.get(SINCE) or monotonic()
        operation = operation_of(scope["method"], scope["path"])
        begun, over = GONE, False

        async def sending(message: _Message) -> None:
            nonlocal begun, over
            if message["type"] == "http.response.start":
                begun = message["status"]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                over = True
                self._durations.add("http", operation, begun, since_s)

        try:
            await self.app(scope, receive, sending)
        finally:
            if not over:
                self._durations.add("http", operation, GONE, since_s)
