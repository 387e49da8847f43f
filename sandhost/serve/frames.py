"""A command over HTTP: the body is its standard input, the answer what it writes, both at once.

The lines of the answer are those of protocol/frames.py. What goes wrong before the command has begun is an
ordinary problem, with its status.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import anyio
from starlette.responses import Response

from ..aio.pipe import Pipe
from ..protocol.frames import MEDIA_TYPE, Stream, end_line, piece_line
from .problems import Problem, problem_of
from .requests import problem_response

__all__ = ["CommandResponse"]

_PIPE_BYTES = 256 << 10

_Run = Callable[[tuple[Pipe, Pipe, Pipe], Callable[[], object]], Awaitable[int]]


class CommandResponse(Response):
    """The answer while a command runs.

    Starlette's own streaming response cannot be one: it reads the body itself, to find a disconnect.

    Args:
        run: runs the command between three streams, and calls its second argument when it begins.
        body: what goes to its standard input.
    """

    def __init__(self, run: _Run, body: AsyncIterator[bytes]) -> None:
        super().__init__(media_type=MEDIA_TYPE)
        del self.headers["content-length"]
        self._run, self._body = run, body

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Run the command, and send what it writes."""
        stdin, stdout, stderr = Pipe(_PIPE_BYTES), Pipe(_PIPE_BYTES), Pipe(_PIPE_BYTES)
        ready, begun = anyio.Event(), False  # ready: it has begun, or never will
        result: int | Problem = 0

        def begin() -> None:
            nonlocal begun
            begun = True
            ready.set()

        async def command() -> None:
            nonlocal result
            try:
                result = await self._run((stdin, stdout, stderr), begin)
            except Exception as error:  # noqa: BLE001 - whatever it is, the requester gets an answer
                result = problem_of(error)
            ready.set()

        async def feed() -> None:
            try:
                async for piece in self._body:
                    await stdin.send(piece)
            except Problem:
                pass  # the client has gone: the middleware ends all of this
            finally:
                await stdin.aclose()

        async def forward(name: Stream, pipe: Pipe) -> None:
            async for piece in pipe:
                await line(piece_line(name, piece), more=True)

        async def line(text: bytes, *, more: bool) -> None:
            await send({"type": "http.response.body", "body": text, "more_body": more})

        async with anyio.create_task_group() as feeding:
            feeding.start_soon(feed)
            async with anyio.create_task_group() as running:
                running.start_soon(command)
                await ready.wait()
                if begun:
                    start = {"status": self.status_code, "headers": self.raw_headers}
                    await send({"type": "http.response.start", **start})
                    running.start_soon(forward, "stdout", stdout)
                    running.start_soon(forward, "stderr", stderr)
            feeding.cancel_scope.cancel()
        if not begun:
            assert isinstance(result, Problem)
            await problem_response(result)(scope, receive, send)
        else:
            await line(end_line(result), more=False)
