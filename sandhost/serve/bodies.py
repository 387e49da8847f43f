"""Large bodies: received into buffers of a `PagePool`, copied into the guest and out of it, sent in pieces.

    client ──pieces──► buffer ──► guest's memory          one copy each, and never the whole of it twice
    client ◄──pieces── buffer ◄── guest's memory          the guest is gone before the first is sent

The pool is the bound on what bodies take together: who finds no buffer free waits for a moment, and is then
refused. A request's buffer is in its bag, so that it goes back whatever ends the request; and a client that
does not read its answer has a time, like one that does not send its request.

Bodies below `SMALL` stay Python's bytes: see docs/pages.md for why a pool is no gain there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response

from ..memory import GuestMemory
from ..pages import Buffer, PagePool, PoolStats
from .bag import current_bag
from .problems import TooMany
from .requests import bounded
from .time_limit import TimeLimit

__all__ = ["SMALL", "Bodies", "BodyResponse", "Held"]

SMALL = 256 << 10
"""Bytes up to which a body is no matter. Arbitrary: the pool bounds memory, and is hardly faster at any size."""
_PIECE = 64 << 10
"""Bytes that are sent at once; a server keeps about as many for a client that does not read."""
_MEMORY = 256 << 20
"""Of all buffers together, when they are full. Arbitrary."""
_REST_S = 30.0
"""The longest time for which a client takes nothing of its answer. Arbitrary."""
_WHOLE_S = 120.0
"""And for all of it."""
_RETRY_S = 0.5


class Held:
    """A body in a buffer. A block of it gives a view of its bytes."""

    __slots__ = ("_view", "buffer", "size")

    def __init__(self, buffer: Buffer, size: int) -> None:
        self.buffer, self.size = buffer, size

    def __enter__(self) -> memoryview:
        self._view = self.buffer.view(0, self.size)
        return self._view

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._view.release()


class Bodies:
    """What holds the large bodies of a service.

    Args:
        most: the largest body.
        wait_s: how long a request waits for a buffer.
    """

    def __init__(self, most: int, wait_s: float) -> None:
        self._most, self._wait_s = most, wait_s
        self.buffers = max(2, _MEMORY // most)
        """How many requests can have one at once."""
        self._pool = PagePool(most, self.buffers)

    def stats(self) -> PoolStats:
        """Return the figures of the pool."""
        return self._pool.stats()

    async def receive(self, request: Request) -> bytes | Held:
        """Return the request's body; in a buffer when it is large.

        Raises:
            Invalid, TooLarge: it does not come in time; it is larger than may be.
            TooMany: no buffer came back in time.
        """
        pieces: list[bytes] = []
        buffer: Buffer | None = None
        size = 0
        async for piece in bounded(request, self._most):
            if buffer is None and size + len(piece) > SMALL:
                buffer, start = await self._buffer(), 0
                for earlier in pieces:
                    start = _put(buffer, start, earlier)
                pieces.clear()
            if buffer is None:
                pieces.append(piece)
            else:
                _put(buffer, size, piece)
            size += len(piece)
        return b"".join(pieces) if buffer is None else Held(buffer, size)

    async def take(
        self, memory: GuestMemory, address: int, length: int, given: bytes | Held
    ) -> bytes | Held:
        """Copy a result out of a guest; into a buffer when it is large.

        Args:
            given: what came with the request. Its buffer, if it has one, takes the result too.

        Raises:
            OutOfBounds: not all of it lies in the guest's memory.
            TooMany: no buffer came back in time.
        """
        if length <= SMALL:
            return memory.read(address, length)
        held = Held(given.buffer if isinstance(given, Held) else await self._buffer(), length)
        with held as view:
            memory.read_into(address, view)
        return held

    async def _buffer(self) -> Buffer:
        try:
            with anyio.fail_after(self._wait_s):
                buffer = await self._pool.acquire_async()
        except TimeoutError:
            raise TooMany(
                "there are as many large bodies as there is room for", retry_after_s=_RETRY_S
            ) from None
        return current_bag().add(buffer, self._pool.release)

    def close(self) -> None:
        """Give all of it back, when no request is left."""
        self._pool.close()


def _put(buffer: Buffer, start: int, piece: bytes) -> int:
    with buffer.view(start, len(piece)) as room:
        room[:] = piece
    return start + len(piece)


class BodyResponse(Response):
    """Sends a body from its buffer, a piece at a time, as fast as the client takes it.

    One that does not take it in time gets no more: the response ends early, and its connection with it.
    """

    def __init__(self, held: Held, media_type: str) -> None:
        super().__init__(media_type=media_type)
        self.headers["content-length"] = str(held.size)
        self._held = held

    async def __call__(
        self,
        _scope: MutableMapping[str, Any],
        _receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Send it."""
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        until_s = anyio.current_time() + _WHOLE_S
        with self._held as view:
            for at in range(0, len(view), _PIECE):
                end = min(at + _PIECE, len(view))
                message = {
                    "type": "http.response.body",
                    "body": bytes(view[at:end]),
                    "more_body": end < len(view),
                }
                try:
                    with TimeLimit(min(_REST_S, until_s - anyio.current_time())):
                        await send(message)
                except TimeoutError:
                    return
