"""What is sent: bytes, a file by its path, or pieces as they come; to be sent once, or again."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import anyio.to_thread

from ..errors import ConfigError

__all__ = ["Body", "Content"]

Body = bytes | bytearray | memoryview | Path | Iterable[bytes] | AsyncIterable[bytes]
"""A file that is open for reading is one, too: an iterable."""

_T = TypeVar("_T")
_PIECE = 64 << 10


class Content:
    """A body, on its way.

    Args:
        source: where it comes from.
        sent: is told after each piece how many bytes were sent of it, counted from the last beginning.

    Invariant: `again` is False from the moment that a piece was taken that nobody can give once more.
    """

    def __init__(self, source: Body, sent: Callable[[int], object] | None = None) -> None:
        if isinstance(source, str):
            raise ConfigError("a body is bytes, a pathlib.Path, or pieces of bytes; not text")
        self._source = bytes(source) if isinstance(source, (bytearray, memoryview)) else source
        self._sent = sent
        self.again = True
        """Whether it can be sent from its beginning."""

    def size(self) -> int | None:
        """Return its bytes; None when only its end will tell."""
        if isinstance(self._source, bytes):
            return len(self._source)
        if isinstance(self._source, Path):
            return self._source.stat().st_size
        return None

    def whole_or(self, pieces: Callable[[], _T]) -> bytes | _T:
        """Return all of it, when it is here and nobody wants to know how it goes; else `pieces()`."""
        if isinstance(self._source, bytes) and self._sent is None:
            return self._source
        return pieces()

    def pieces(self) -> Iterator[bytes]:
        """Yield it from its beginning, to a program without an event loop."""
        done = 0
        for piece in self._pieces():
            yield piece
            done = self._count(done, piece)

    async def pieces_async(self) -> AsyncIterator[bytes]:
        """Yield it from its beginning; files and iterators may keep a thread waiting."""
        done = 0
        if isinstance(self._source, AsyncIterable):
            self.again = False
            async for piece in self._source:
                yield piece
                done = self._count(done, piece)
            return
        pieces = self._pieces()
        while True:
            taken = await anyio.to_thread.run_sync(next, pieces, None, abandon_on_cancel=True)
            if taken is None:
                return
            yield taken
            done = self._count(done, taken)

    def _pieces(self) -> Iterator[bytes]:
        source = self._source
        if isinstance(source, bytes):
            for at in range(0, len(source), _PIECE):
                yield source[at : at + _PIECE]
        elif isinstance(source, Path):
            with source.open("rb") as file:
                yield from iter(lambda: file.read(_PIECE), b"")
        elif isinstance(source, AsyncIterable):
            raise ConfigError("pieces that come asynchronously are for an AsyncClient")
        else:
            self.again = False
            read = getattr(source, "read1", None) or getattr(source, "read", None)
            yield from iter(source) if read is None else iter(lambda: read(_PIECE), b"")

    def _count(self, done: int, piece: bytes) -> int:
        done += len(piece)
        if self._sent is not None:
            self._sent(done)
        return done
