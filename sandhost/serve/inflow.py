"""What has come on a connection and waits for its tenant's turn, in pieces; and whether more is read meanwhile.

    socket ──► pieces of 8 KiB ──► one at a time, see shares.py
       ▲           │
       └───────────┴ not read from while more than one wait, while a request waits for the one before it, or while
                     uvicorn or the application wants no more

A socket has up to 256 KiB at once, which may be a thousand requests: a tenth of a second of the loop's time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection

from uvicorn.protocols.http.flow_control import FlowControl

__all__ = ["PIECE_BYTES", "Inflow"]

PIECE_BYTES = 8 << 10
"""Some fifty heads, or a good part of most bodies."""


class Inflow(FlowControl):
    """Of one connection, in place of uvicorn's."""

    _stopped = False
    _full = False

    def __init__(self, transport: asyncio.Transport, behind: Collection[object]) -> None:
        """`behind`: requests that wait for the one before. uvicorn reads on after each answer, and fifty may come."""
        super().__init__(transport)
        self._behind = behind
        self._pieces: deque[bytes] = deque()

    @property
    def holds(self) -> bool:
        """Whether something waits."""
        return bool(self._pieces)

    def hold(self, data: bytes) -> None:
        """Keep what has come until its turn."""
        self._pieces.extend(data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES))
        self._full = (
            len(self._pieces) > 1
        )  # one is all there is, mostly, and not worth two system calls
        self._read_or_not()

    def take(self) -> bytes:
        """Return the next piece; empty if there is none."""
        piece = self._pieces.popleft() if self._pieces else b""
        if self._full and not self._pieces:
            self._full = False
            self._read_or_not()
        return piece

    def pause_reading(self) -> None:
        """Read no more for uvicorn or the application."""
        self.read_paused = True
        self._read_or_not()

    def resume_reading(self) -> None:
        """Read again, as far as they are concerned."""
        self.read_paused = False
        self._read_or_not()

    def _read_or_not(self) -> None:
        stopped = self.read_paused or self._full or bool(self._behind)
        if stopped != self._stopped:
            self._stopped = stopped
            if stopped:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()
