"""Bytes between a guest and its host, no more of them than there is room for."""

from __future__ import annotations

import anyio
from anyio.abc import ByteStream

from ..errors import ConfigError
from ..units import parse_bytes

__all__ = ["Pipe"]


class Pipe(ByteStream):
    """A stream of bytes within one event loop: what is sent comes out, in order.

    A byte stream of anyio's, so `async for` gives pieces until it is closed, and
    `anyio.streams.buffered` and `.text` find lines and characters in it.

    Args:
        limit: bytes (or "64 KiB") that it holds; who sends more waits until somebody takes some.
    """

    def __init__(self, limit: int | str = "64 KiB") -> None:
        self._limit = parse_bytes(limit)
        if self._limit < 1:
            raise ConfigError(f"a pipe's limit is at least 1 byte, not {limit!r}")
        self._held = bytearray()
        self._ended = False
        self._changed: anyio.Event | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes that wait to be taken."""
        return len(self._held)

    async def send(self, item: bytes) -> None:
        """Put bytes in, waiting for room as often as it takes.

        Raises:
            anyio.ClosedResourceError: it was closed.
        """
        left = memoryview(item)
        while left:
            if self._ended:
                raise anyio.ClosedResourceError
            room = self._limit - len(self._held)
            if room <= 0:
                await self._wait()
                continue
            self._held += left[:room]
            left = left[room:]
            self._wake()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Take what is there, up to `max_bytes`, waiting until there is something.

        Raises:
            anyio.EndOfStream: it was closed, and all has been taken.
        """
        while not self._held:
            if self._ended:
                raise anyio.EndOfStream
            await self._wait()
        taken = bytes(self._held[:max_bytes])
        del self._held[:max_bytes]
        self._wake()
        return taken

    async def send_eof(self) -> None:
        """Let whoever receives see the end, after what is held."""
        self._ended = True
        self._wake()

    async def aclose(self) -> None:
        """The same: what is held can still be taken."""
        await self.send_eof()

    async def _wait(self) -> None:
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
