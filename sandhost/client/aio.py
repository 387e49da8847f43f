"""The face for programs with an event loop, asyncio's or trio's."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TypeVar

import anyio
import httpx

from ..protocol.frames import Piece
from ..protocol.problems import Missing
from .asks import calling
from .asks.ask import Steps
from .asks.calling import Ref
from .attempts import Send, run
from .bodies import Body
from .driving import drive
from .duplex import Running, Written, running
from .operations import AsyncFace, Operations, SessionOperations
from .records import Completed
from .replies import Gathering, Reply
from .settings import Retry, Settings
from .transport import bound_s, failure, may_be_sent, passed, pool, request

__all__ = ["AsyncClient", "AsyncCommand", "AsyncSession"]

_T = TypeVar("_T")
_END_S = 5.0
"""For the word that a session is over, also when the task is cancelled. Arbitrary; disuse ends it, too."""


class AsyncClient(Operations, AsyncFace):
    """A service of plugins, from tasks of one event loop; every method of `Client`, to be awaited.

    Args:
        url, token, timeout_s, answer_limit, retry, tls: as for `Client`.

    Raises:
        ConfigError: there is no address, or a value cannot be meant.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout_s: float | str = 60.0,
        answer_limit: int | str = "64 MiB",
        retry: Retry | None = Retry(),  # noqa: B008 - it is frozen
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = Settings.make(url, token, timeout_s, answer_limit, retry, tls)
        self._http = httpx.AsyncClient(**pool(self._settings))

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<sandhost.client.AsyncClient {self._settings.url}>"

    # ---- what is read piece by piece ----

    @contextlib.asynccontextmanager
    async def stream_bytes(
        self,
        plugin: str,
        function: str,
        data: Body = b"",
        *,
        ref: Ref = None,
        deadline_s: float | None = None,
        once: bool | str = False,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Have what a function returns, in pieces as they come; as `call_bytes`, without its limit."""
        reply = await self._do(calling.opened_bytes(plugin, function, data, ref, deadline_s, once))
        response, pieces = reply.rest
        try:
            yield pieces
        finally:
            await response.aclose()

    @contextlib.asynccontextmanager
    async def command(
        self,
        plugin: str,
        *argv: str,
        stdin: Body = b"",
        ref: Ref = None,
        deadline_s: float | None = None,
    ) -> AsyncIterator[AsyncCommand]:
        """Have a command run within the block; iterating it gives what it writes. See `Client.command`."""
        steps = calling.opened_command(plugin, argv, stdin, ref, deadline_s)
        async with running(self._settings, steps) as one:
            yield AsyncCommand(one)

    async def run(
        self,
        plugin: str,
        *argv: str,
        stdin: Body = b"",
        ref: Ref = None,
        deadline_s: float | None = None,
    ) -> Completed:
        """Run a command to its end, and return what it wrote; as `command`."""
        async with self.command(
            plugin, *argv, stdin=stdin, ref=ref, deadline_s=deadline_s
        ) as command:
            written = Written(self._settings.answer_limit)
            async for piece in command:
                written.add(piece)
            return written.completed(command.status)

    @contextlib.asynccontextmanager
    async def session(
        self, plugin: str, *, ref: Ref = None, deadline_s: float | None = None
    ) -> AsyncIterator[AsyncSession]:
        """Have a guest that stays between calls within the block."""
        its_id = await self._do(calling.open_session(plugin, ref, deadline_s))
        try:
            yield AsyncSession(self, plugin, its_id)
        finally:
            with anyio.move_on_after(_END_S, shield=True):
                with contextlib.suppress(Missing):  # it ended before, by disuse or a failed call
                    await self._do(calling.close_session(its_id))

    # ---- sending ----

    async def _do(self, steps: Steps[_T]) -> _T:
        return await drive(run(steps, self._settings.retry), self._send)

    async def _send(self, send: Send) -> Reply:
        try:
            with anyio.fail_after(bound_s(send)):
                return await self._send_in_time(send)
        except TimeoutError:
            raise passed(send) from None

    async def _send_in_time(self, send: Send) -> Reply:
        body = send.ask.body
        content = None if body is None else body.whole_or(body.pieces_async)
        wanted = self._http.build_request(content=content, **request(self._settings, send))
        try:
            response = await self._http.send(wanted, stream=True)
        except httpx.TransportError as error:
            raise failure(self._settings, send, error, sent=may_be_sent(error)) from error
        pieces = self._pieces(send, response)
        if send.ask.open and response.status_code in send.ask.statuses:
            return Reply(response.status_code, response.headers, b"", (response, pieces))
        try:
            gathering = Gathering(response.headers, self._settings.answer_limit)
            async for piece in pieces:
                gathering.add(piece)
        finally:
            await response.aclose()
        return Reply(response.status_code, response.headers, gathering.body())

    async def _pieces(self, send: Send, response: httpx.Response) -> AsyncIterator[bytes]:
        try:
            async for piece in response.aiter_raw():
                yield piece
        except httpx.TransportError as error:
            raise failure(self._settings, send, error, sent=True) from error


class AsyncCommand:
    """A command that runs. Iterating it gives what it writes, until it has ended."""

    def __init__(self, running: Running) -> None:
        self._running = running

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while (piece := await self._running.next()) is not None:
            yield piece

    @property
    def status(self) -> int | None:
        """Its exit status; None until all that it wrote was read."""
        return self._running.status


class AsyncSession(SessionOperations, AsyncFace):
    """A guest that stays between calls. One call at a time is in it; others wait a little."""

    def __init__(self, client: AsyncClient, plugin: str, id: str) -> None:  # noqa: A002 - as everywhere
        self._client = client
        self.plugin = plugin
        self.id = id
        """What it is called by: whoever has it and the token can call the guest."""

    async def _do(self, steps: Steps[_T]) -> _T:
        return await self._client._do(steps)

    def __repr__(self) -> str:
        return f"<sandhost.client.AsyncSession of {self.plugin!r}>"
