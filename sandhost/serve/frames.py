"""A command over HTTP: the body is its standard input, the answer what it writes, both at once.

The lines are those of protocol/frames.py. What goes wrong before it has begun is an ordinary problem, with its status.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import Response

from .._log import get_logger
from ..aio.pipe import Pipe
from ..protocol.frames import MEDIA_TYPE, Stream, end_line, piece_line
from .commands import run_command
from .problems import Internal, problem_of
from .requests import problem_response

__all__ = ["CommandResponse"]

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
        begun = False

        async def begin() -> None:
            nonlocal begun
            begun = True
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})

        async def write(name: Stream, piece: bytes) -> None:
            await line(piece_line(name, piece), more=True)

        async def line(text: bytes, *, more: bool) -> None:
            await send({"type": "http.response.body", "body": text, "more_body": more})

        try:
            status = await run_command(self._run, self._body, begin, write)
        except Exception as error:  # noqa: BLE001 - whatever it is, the requester gets an answer
            problem = problem_of(error)
            if isinstance(problem, Internal):
                get_logger("sandhost.serve").error("a command failed", exc_info=error)
            if begun:
                await line(end_line(problem), more=False)
            else:
                await problem_response(problem)(scope, receive, send)
        else:
            await line(end_line(status), more=False)
