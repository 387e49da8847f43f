"""A command's connection: what it reads goes there while what it writes comes back.

httpx sends a request to its end before it reads an answer, so that a command which writes as it reads would wait
for us, and we for it. So this is a connection of its own, to the service itself and through no proxy of the
environment, with h11 for the words and anyio for the bytes.

           ┌── feed ──► Data … EndOfMessage ──►┐
    Content│                                   │ one connection
    Piece ◄└── Lines ◄── Data … EndOfMessage ◄─┘

Its input is sent from the moment that the service says the command has begun, so that a request which is refused
has taken nothing of it and can be made again; or after _FEED_ANYWAY_S, for proxies that want it all first.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator
from urllib.parse import urlencode, urlsplit

import anyio
import h11
import httpx
from anyio.abc import ByteStream, TaskGroup
from anyio.streams.tls import TLSStream

from ..protocol.frames import Lines, Piece
from ..protocol.problems import Problem
from .asks.ask import Steps
from .attempts import Send, run
from .bodies import Content
from .driving import drive
from .errors import BadAnswer, Unreachable
from .records import Completed
from .replies import Gathering, Reply
from .settings import Settings
from .transport import bound_s, failure, headers_of

__all__ = ["Running", "Written", "running"]

_FEED_ANYWAY_S = 1.0
_RECEIVE = 64 << 10
_LOST = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


class Running:
    """A command that runs: what it writes, piece by piece, and then its status."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._lines = Lines()
        self._pieces: list[Piece] = []

    async def next(self) -> Piece | None:
        """Return what it writes next; None at its end.

        Raises:
            Problem: it trapped, reached a limit, or was ended.
        """
        while not self._pieces:
            if self._lines.end is None:
                data = await self._connection.receive()
                if data is not None:
                    self._pieces = self._read(data)[::-1]
                    continue
                if self._lines.end is None:
                    raise Unreachable("the connection was lost under a command", sent=True)
            if isinstance(self._lines.end, Problem):
                raise self._lines.end
            return None
        return self._pieces.pop()

    def _read(self, data: bytes) -> list[Piece]:
        try:
            return self._lines.feed(data)
        except ValueError as error:
            raise BadAnswer(f"what answers is no service of sandhost's: {error}") from error

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._lines.end if isinstance(self._lines.end, int) else None


class Written:
    """All that a command writes, no more of it than is taken."""

    def __init__(self, most: int) -> None:
        self._streams = {"stdout": Gathering({}, most), "stderr": Gathering({}, most)}

    def add(self, piece: Piece) -> None:
        """Take the next piece."""
        self._streams[piece.stream].add(piece.data)

    def completed(self, status: int | None) -> Completed:
        """Return it, when the command has ended."""
        assert status is not None
        return Completed(status, self._streams["stdout"].body(), self._streams["stderr"].body())


@contextlib.asynccontextmanager
async def running(settings: Settings, steps: Steps[Reply]) -> AsyncIterator[Running]:
    """Have a command run within the block, which ends it if it has not ended.

    Args:
        steps: what `opened_command` returned.
    """
    failed: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        connection: _Connection | None = None
        try:
            flow = run(steps, settings.retry)
            reply = await drive(flow, lambda send: _send(settings, send, tasks))
            connection = reply.rest
            yield Running(reply.rest)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001 - a group would wrap it into another one
            failed = error
        finally:
            if connection is not None:
                with anyio.CancelScope(
                    shield=True
                ):  # a cancellation from outside is not to be lost
                    await connection.aclose()
            tasks.cancel_scope.cancel()
    if failed is not None:
        raise failed


async def _send(settings: Settings, send: Send, tasks: TaskGroup) -> Reply:
    connection = _Connection(settings, send)
    bound = bound_s(send)
    patience_s = settings.timeout_s if bound is None else bound
    opened = False
    try:
        with anyio.fail_after(min(settings.timeout_s, patience_s)):
            await connection.connect()
        with anyio.fail_after(patience_s):
            reply = await connection.begin(tasks)
            if reply.status in send.ask.statuses:
                opened = True
                return reply
            gathering = Gathering(reply.headers, settings.answer_limit)
            while (data := await connection.receive()) is not None:
                gathering.add(data)
            return reply._replace(body=gathering.body(), rest=None)
    except (*_LOST, h11.RemoteProtocolError) as error:
        raise failure(settings, send, error, sent=connection.begun) from error
    finally:
        if not opened:
            await connection.aclose()


class _Connection:
    """One request and its answer, both at once."""

    def __init__(self, settings: Settings, send: Send) -> None:
        self._settings, self._send = settings, send
        bound = bound_s(send)
        self._until_s = math.inf if bound is None else anyio.current_time() + bound
        self._http = h11.Connection(h11.CLIENT)
        self._stream: ByteStream | None = None
        self._head = anyio.Event()
        self._feeding = anyio.CancelScope()
        self._fed: Exception | None = None
        self.begun = False
        """Whether any of the request was sent."""

    async def connect(self) -> None:
        url = urlsplit(self._settings.url)
        assert url.hostname is not None  # it was checked
        tls = url.scheme == "https"
        self._stream = await anyio.connect_tcp(url.hostname, url.port or (443 if tls else 80))
        if tls:
            context = self._settings.tls or httpx.create_ssl_context()
            self._stream = await TLSStream.wrap(
                self._stream, hostname=url.hostname, ssl_context=context, standard_compatible=False
            )

    async def begin(self, tasks: TaskGroup) -> Reply:
        """Send the request's head, and return the answer's."""
        ask, url = self._send.ask, urlsplit(self._settings.url)
        headers = {"Host": url.netloc, **headers_of(self._settings, self._send)}
        if "Content-Length" not in headers:
            headers["Transfer-Encoding"] = "chunked"
        target = f"{url.path}{ask.path}?{urlencode(ask.query)}"
        head = h11.Request(
            method=ask.method, target=target.rstrip("?"), headers=list(headers.items())
        )
        self.begun = True
        await self._write(head)
        assert ask.body is not None
        tasks.start_soon(self._feed, ask.body)
        while True:
            event = await self._event()
            if isinstance(event, h11.Response):
                break
        self._head.set()
        named = {name.decode(): value.decode("latin-1") for name, value in event.headers}
        if event.status_code not in ask.statuses:
            self._feeding.cancel()
        return Reply(event.status_code, named, b"", self)

    async def _feed(self, body: Content) -> None:
        with self._feeding:
            with anyio.move_on_after(_FEED_ANYWAY_S):
                await self._head.wait()
            try:
                async for piece in body.pieces_async():
                    await self._write(h11.Data(data=piece))
                await self._write(h11.EndOfMessage())
            except _LOST:
                pass  # whoever reads the answer sees it too, or has all of it already
            except Exception as error:  # noqa: BLE001 - the input's, which whoever reads is told
                self._fed = error
                await self.aclose()

    async def receive(self) -> bytes | None:
        """Return some more of the answer's body; None at its end.

        Raises:
            DeadlinePassed, Unreachable: the time was over; the connection was lost.
        """
        try:
            with anyio.fail_at(self._until_s):
                while True:
                    event = await self._event()
                    if isinstance(event, h11.Data):
                        return bytes(event.data)
                    if isinstance(event, h11.EndOfMessage):
                        return None
        except (*_LOST, h11.RemoteProtocolError) as error:
            if self._fed is not None:
                raise self._fed from None
            raise failure(self._settings, self._send, error, sent=True) from error

    async def _event(self) -> h11.Event:
        assert self._stream is not None
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                assert not isinstance(event, type)  # nothing is asked for after the end
                return event
            try:
                data = await self._stream.receive(_RECEIVE)
            except anyio.EndOfStream:
                data = b""
            self._http.receive_data(data)

    async def _write(self, event: h11.Event) -> None:
        assert self._stream is not None
        data = self._http.send(event)
        if data:
            await self._stream.send(data)

    async def aclose(self) -> None:
        """Close the connection, whatever is under way: the service then ends the command."""
        if self._stream is not None:
            await anyio.aclose_forcefully(self._stream)
