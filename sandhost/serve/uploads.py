"""A module as it comes in: looked at, gathered, and written by threads.

    pieces ──► the first bytes of a module? ──► 256 KiB at a time, to a thread ──► digested, written, durable
                      └─ no: refused, before the rest is read and anything is written

A thread for each piece costs the loop more than what it does there. What is gathered is little enough that
many uploads which stop in the middle hold little.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from ..errors import ModuleError
from ..modules.compiled import check_beginning
from .blobs import Blobs, Incoming
from .problems import problem_of
from .threads import in_thread

__all__ = ["receive"]

_AT_ONCE = 256 << 10
_TELLING = 64
"""Bytes by which noise shows itself, and a file of another kind."""


async def receive(blobs: Blobs, limit: int, pieces: AsyncIterator[bytes]) -> tuple[str, int]:
    """Keep a module; return its digest and size when it is durable.

    Raises:
        BadPlugin: no module begins so.
        TooLarge: it has more than `limit` bytes.
        OSError: it cannot be written.
    """
    upload = _Upload(blobs, limit)
    try:
        async for piece in pieces:
            if upload.take(piece):
                await in_thread(upload.write)
        return await in_thread(upload.finish)
    except BaseException:
        if upload.begun:
            await in_thread(upload.discard)
        raise


class _Upload:
    def __init__(self, blobs: Blobs, limit: int) -> None:
        self._blobs, self._limit = blobs, limit
        self._held = bytearray()
        self._incoming: Incoming | None = None
        self._looked = False

    @property
    def begun(self) -> bool:
        """Whether something of it is on the disk."""
        return self._incoming is not None

    def take(self, piece: bytes) -> bool:
        """Take a piece; return whether it is time to write."""
        self._held += piece
        if len(self._held) >= _TELLING:
            self._look()
        return len(self._held) >= _AT_ONCE

    def _look(self) -> None:
        if not self._looked:
            self._looked = True
            try:
                check_beginning(bytes(self._held[:_TELLING]))
            except ModuleError as error:
                raise problem_of(error) from None

    def write(self) -> Incoming:
        """Write what is gathered; blocks."""
        if self._incoming is None:
            self._incoming = self._blobs.receive(self._limit)
        self._incoming.write(memoryview(self._held))
        self._held = bytearray()
        return self._incoming

    def finish(self) -> tuple[str, int]:
        """Write the rest and return digest and size; blocks."""
        self._look()
        return self.write().finish()

    def discard(self) -> None:
        """Leave nothing on the disk; blocks."""
        assert self._incoming is not None
        self._incoming.__exit__(None, None, None)
