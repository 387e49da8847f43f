"""The face for programs without an event loop."""

from __future__ import annotations

import contextlib
import math
import ssl
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal

from ..protocol.frames import Piece
from ..protocol.problems import Missing
from .asks import calling
from .asks.ask import Steps
from .asks.calling import Ref
from .attempts import Pause, Send, run
from .bodies import Body
from .duplex import Running, Written, running
from .operations import Face, Operations, SessionOperations
from .records import Completed
from .replies import Gathering, Reply
from .settings import Retry, Settings
from .transport import bound_s, failure, may_be_sent, passed, pool, request

__all__ = ["Client", "Command", "Session"]

_T = TypeVar("_T")


class Client(Operations, Face):
    """A service of plugins, from a program without an event loop. Threads may share it.

    Args:
        url: where it is, as "http://HOST:PORT"; else SANDHOST_URL.
        token: who asks; else SANDHOST_TOKEN.
        timeout_s: how long the service may be silent about a request without a deadline of its own.
        answer_limit: bytes (or "64 MiB") of the longest answer that is taken in one piece.
        retry: when a request is made again that may be; None: never.
        tls: how an address with https is checked; None: by the certificates that httpx trusts.

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
        self._http = httpx.Client(**pool(self._settings))

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<sandhost.client.Client {self._settings.url}>"

    # ---- what is read piece by piece ----

    @contextlib.contextmanager
    def stream_bytes(
        self,
        plugin: str,
        function: str,
        data: Body = b"",
        *,
        ref: Ref = None,
        deadline_s: float | None = None,
        once: bool | str = False,
    ) -> Iterator[Iterator[bytes]]:
        """Have what a function returns, in pieces as they come; as `call_bytes`, without its limit."""
        reply = self._do(calling.opened_bytes(plugin, function, data, ref, deadline_s, once))
        response, pieces = reply.rest
        with contextlib.closing(response):
            yield pieces

    @contextlib.contextmanager
    def command(
        self,
        plugin: str,
        *argv: str,
        stdin: Body = b"",
        ref: Ref = None,
        deadline_s: float | None = None,
    ) -> Iterator[Command]:
        """Have a command run within the block; iterating it gives what it writes, as `Piece`.

        Args:
            argv: its arguments.
            stdin: what it reads, sent while it writes: bytes, a path, a file, or pieces of bytes. A thread waits
                for the next piece, and with it the end of the process.
            ref: which version; see `Ref`.
            deadline_s: how long it may take.
        """
        steps = calling.opened_command(plugin, argv, stdin, ref, deadline_s)
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(running(self._settings, steps)) as one,
        ):
            yield Command(portal, one)

    def run(
        self,
        plugin: str,
        *argv: str,
        stdin: Body = b"",
        ref: Ref = None,
        deadline_s: float | None = None,
    ) -> Completed:
        """Run a command to its end, and return what it wrote; as `command`."""
        with self.command(plugin, *argv, stdin=stdin, ref=ref, deadline_s=deadline_s) as command:
            written = Written(self._settings.answer_limit)
            for piece in command:
                written.add(piece)
            return written.completed(command.status)

    @contextlib.contextmanager
    def session(
        self, plugin: str, *, ref: Ref = None, deadline_s: float | None = None
    ) -> Iterator[Session]:
        """Have a guest that stays between calls within the block."""
        session = Session(self, plugin, self._do(calling.open_session(plugin, ref, deadline_s)))
        try:
            yield session
        finally:
            with contextlib.suppress(Missing):  # it ended before, by disuse or a failed call
                self._do(calling.close_session(session.id))

    # ---- sending ----

    def _do(self, steps: Steps[_T]) -> _T:
        flow = run(steps, self._settings.retry)
        given: Reply | None = None
        failed: Exception | None = None
        try:
            while True:
                step = flow.send(given) if failed is None else flow.throw(failed)
                given = failed = None
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    continue
                try:
                    given = self._send(step)
                except Exception as error:  # noqa: BLE001 - the flow decides
                    failed = error
        except StopIteration as stop:
            result: _T = stop.value
            return result
        finally:
            flow.close()

    def _send(self, send: Send) -> Reply:
        bound = bound_s(send)
        until_s = math.inf if bound is None else time.monotonic() + bound
        body = send.ask.body
        content = None if body is None else body.whole_or(body.pieces)
        wanted = self._http.build_request(content=content, **request(self._settings, send))
        try:
            response = self._http.send(wanted, stream=True)
        except httpx.TransportError as error:
            raise failure(self._settings, send, error, sent=may_be_sent(error)) from error
        pieces = self._pieces(send, until_s, response)
        if send.ask.open and response.status_code in send.ask.statuses:
            return Reply(response.status_code, response.headers, b"", (response, pieces))
        with contextlib.closing(response):
            gathering = Gathering(response.headers, self._settings.answer_limit)
            for piece in pieces:
                gathering.add(piece)
        return Reply(response.status_code, response.headers, gathering.body())

    def _pieces(self, send: Send, until_s: float, response: httpx.Response) -> Iterator[bytes]:
        try:
            for piece in response.iter_raw():
                if time.monotonic() > until_s:
                    raise passed(send)
                yield piece
        except httpx.TransportError as error:
            raise failure(self._settings, send, error, sent=True) from error


class Command:
    """A command that runs. Iterating it gives what it writes, until it has ended."""

    def __init__(self, portal: BlockingPortal, running: Running) -> None:
        self._portal, self._running = portal, running

    def __iter__(self) -> Iterator[Piece]:
        while (piece := self._portal.call(self._running.next)) is not None:
            yield piece

    @property
    def status(self) -> int | None:
        """Its exit status; None until all that it wrote was read."""
        return self._running.status


class Session(SessionOperations, Face):
    """A guest that stays between calls. One call at a time is in it; others wait a little."""

    def __init__(self, client: Client, plugin: str, id: str) -> None:  # noqa: A002 - as everywhere
        self._client = client
        self.plugin = plugin
        self.id = id
        """What it is called by: whoever has it and the token can call the guest."""

    def _do(self, steps: Steps[_T]) -> _T:
        return self._client._do(steps)

    def __repr__(self) -> str:
        return f"<sandhost.client.Session of {self.plugin!r}>"
