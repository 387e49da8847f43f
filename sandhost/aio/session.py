"""A command that runs beside the task that talks to it: a REPL, a filter, a language server.

Its `_start` is one long call. While it waits for input, or for its output to be taken, it holds a
stack and no thread.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream

from ..errors import GuestExit
from ..wasi import Wasi
from .pipe import Pipe

if TYPE_CHECKING:
    from ..guest import Guest
    from ..limits import Limits
    from ..plugin import Plugin
    from ..tenants import Tenant

__all__ = ["Session"]


class Session:
    """A running command. Made by `plugin.session()`, ended by its `async with` block.

    What it writes has to be taken: when `stdout` or `stderr` is full, it waits.
    """

    def __init__(
        self,
        plugin: Plugin,
        wasi: Wasi,
        limits: Limits | None,
        tenant: str | Tenant | None,
        buffer: int | str,
    ) -> None:
        self.stdin, self.stdout, self.stderr = Pipe(buffer), Pipe(buffer), Pipe(buffer)
        self._lines = BufferedByteReceiveStream(self.stdout)
        piped = Wasi(
            wasi.argv, wasi.env, self.stdin, self.stdout, self.stderr, wasi.dirs, wasi.output_limit
        )
        self._spawn = plugin.spawn_async(limits=limits, tenant=tenant, wasi=piped)
        self._ended = anyio.Event()
        self._tasks: TaskGroup | None = None
        self.guest: Guest | None = None
        self.status: int | None = None
        """Its exit status, once it has ended by itself."""

    async def send(self, data: bytes) -> None:
        """Give it input, waiting while its buffer is full."""
        await self.stdin.send(data)

    async def send_eof(self) -> None:
        """End its input."""
        await self.stdin.send_eof()

    async def receive(self) -> bytes:
        """Take some of its standard output.

        Raises:
            anyio.EndOfStream: it has ended, and all has been taken.
        """
        return await self._lines.receive()

    async def receive_until(self, delimiter: bytes, max_bytes: int = 65536) -> bytes:
        """Take its standard output up to a delimiter, which is left out.

        Raises:
            anyio.IncompleteRead: it has ended before the delimiter.
            anyio.DelimiterNotFound: there are `max_bytes` without it.
        """
        return await self._lines.receive_until(delimiter, max_bytes)

    async def wait(self) -> int | None:
        """Wait until it has ended; return its exit status, None if it was ended."""
        await self._ended.wait()
        return self.status

    async def _run(self, guest: Guest) -> None:
        try:
            await guest.call_async("_start")
            self.status = 0
        except GuestExit as ended:
            self.status = ended.status
        finally:
            await self.stdin.aclose()
            await self.stdout.aclose()
            await self.stderr.aclose()
            self._ended.set()

    async def __aenter__(self) -> Session:
        self.guest = await self._spawn.__aenter__()
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(self._run, self.guest)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        try:
            return await self._tasks.__aexit__(kind, error, traceback)
        finally:
            await self._spawn.__aexit__(None, None, None)
