"""A bag for each request of an ASGI application, over HTTP and WebSocket. Pure ASGI, for asyncio.

    app = BagMiddleware(app)
    ...
    guest = current_bag().add(plugin.spawn())     # in whatever serves the request

A request ends when the application returns, and so after its background work. When the client goes before
it has its whole response, a server only says so to who asks (`receive` gives "http.disconnect"), and an
application that computes or streams does not ask. So messages are read ahead here, while the application waits
for something else:

    server ──receive──► pump ──► messages ──receive──► application
                          │ a disconnect
                          └────► after `grace_s`: the application is cancelled

One message ahead, so that a client cannot send more than there is room for; and, once the body is over,
for as long as it takes, since only the disconnect can follow. Nothing is read before the application
reads, when there is a body: reading is what makes a server send "100 Continue".
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import anyio

from .bag import Bags

__all__ = ["BagMiddleware"]

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]

_DISCONNECTS = ("http.disconnect", "websocket.disconnect")
_LAST_UNLESS_MORE = ("http.response.body", "websocket.http.response.body")
_LAST = ("http.response.pathsend", "websocket.close")


class BagMiddleware:
    """Gives each request a bag, which is closed when the application has ended, in whatever way.

    Args:
        app: the application.
        bags: makes the bags and counts; share it between doors of one application.
        grace_s: how long the application may go on after a client has gone that does not have its
            whole response. Who listens for the disconnect is done by then, and who does not is
            cancelled. Background work, after the response, is never.
    """

    def __init__(self, app: _App, bags: Bags | None = None, *, grace_s: float = 0.5) -> None:
        self.app = app
        self.bags = bags or Bags()
        self.grace_s = grace_s

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send
    ) -> None:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        async with self.bags.new():
            await _Connection(receive, send, self.grace_s).serve(self.app, scope)


class _Connection:
    """One request's messages, and what is known of its client.

    The application itself reads while it waits for a message; when it waits for something else, which
    a loop's turn shows, the pump begins to read ahead. Who answers at once never has one.
    """

    def __init__(self, receive: _Receive, send: _Send, grace_s: float) -> None:
        self._receive, self._send, self._grace_s = receive, send, grace_s
        self._messages: deque[_Message] = deque()
        self._end: _Message | Exception | None = None  # what every further `receive` gives
        self._arrived, self._taken = asyncio.Event(), asyncio.Event()
        self._answered = self._reading = False
        self._serving = anyio.CancelScope()
        self._soon: asyncio.Handle | None = None
        self._pump: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def serve(self, app: _App, scope: MutableMapping[str, Any]) -> None:
        if scope["type"] == "websocket" or not _has_body(scope):
            self._read_ahead_soon()
        try:
            with self._serving:
                await app(scope, self.receive, self.send)
        finally:
            for started in (self._timer, self._soon, self._pump):
                if started is not None:
                    started.cancel()
            self._pump = (
                None  # which ends with an error that leads back here: a cycle for each request
            )

    async def receive(self) -> _Message:
        if self._pump is None and self._end is None and not self._reading:
            return await self._read()
        while not self._messages:
            if isinstance(self._end, Exception):
                raise self._end
            if self._end is not None:
                return self._end
            self._arrived.clear()
            await self._arrived.wait()
        self._taken.set()
        return self._messages.popleft()

    async def send(self, message: _Message) -> None:
        kind = message["type"]
        if kind in _LAST or (kind in _LAST_UNLESS_MORE and not message.get("more_body", False)):
            self._answered = True  # before it is sent: a server then says that the client has gone
        await self._send(message)

    async def _read(self) -> _Message:
        if self._soon is not None:
            self._soon.cancel()
        self._reading = True
        try:
            message = await self._receive()
        except Exception as error:
            self._ends(error)
            raise
        finally:
            self._reading = False
            self._read_ahead_soon()  # also when the wait was cancelled
        if message["type"] in _DISCONNECTS:
            self._ends(message)
        return message

    def _read_ahead_soon(self) -> None:
        self._soon = asyncio.get_running_loop().call_soon(self._read_ahead)

    def _read_ahead(self) -> None:
        if self._end is None:
            self._pump = asyncio.ensure_future(self._run_pump())

    async def _run_pump(self) -> None:
        try:
            while True:
                message = await self._receive()
                if message["type"] in _DISCONNECTS:
                    break
                self._messages.append(message)
                self._arrived.set()
                if message["type"] == "http.request" and not message.get("more_body", False):
                    continue  # only the disconnect can follow
                while self._messages:
                    self._taken.clear()
                    await self._taken.wait()
            self._ends(message)
        except Exception as error:  # noqa: BLE001 - the application gets it, where it asks
            self._ends(error)

    def _ends(self, end: _Message | Exception) -> None:
        """No message follows."""
        self._end = end
        if not isinstance(end, Exception) and not self._answered:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._grace_s, self._give_up)
        self._arrived.set()

    def _give_up(self) -> None:
        if not self._answered:
            self._serving.cancel()


def _has_body(scope: MutableMapping[str, Any]) -> bool:
    """Whether the headers announce one."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0"):
            return True
    return False
