"""What uvicorn lets a client do and this does not: begin a request and never end its headers.

connected ──► headers ──► application: has bounds of its own, see requests.py
   ▲   within _HEAD_S and _HEAD_BYTES, else the connection is closed
   └── next request: idle for as long as uvicorn's timeout_keep_alive
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["BoundedProtocol"]

_HEAD_S = 10.0
_HEAD_BYTES = 64 << 10


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a time and a size for the head of a request."""

    _head_bytes = 0
    """Of the head that is being read."""
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless the head is too long."""
        if self._head_timer is not None:
            if self._head_bytes > _HEAD_BYTES:
                self.transport.close()
                return
            self._head_bytes += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins; the first one did so with the connection."""
        super().on_message_begin()
        if self._head_timer is None:
            self._begin_head()

    def on_headers_complete(self) -> None:
        """Its head is here."""
        self._end_head()
        super().on_headers_complete()

    def _begin_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(_HEAD_S, self._give_up)

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        self.transport.close()
