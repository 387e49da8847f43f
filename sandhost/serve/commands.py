"""A command between its requester's streams: what comes is its input, what it writes goes out, both at once.

body ──► stdin ──► command ──► stdout, stderr ──► write
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import anyio

from ..aio.pipe import Pipe
from ..protocol.frames import Stream

__all__ = ["run_command"]

_PIPE_BYTES = 256 << 10

_Run = Callable[[tuple[Pipe, Pipe, Pipe], Callable[[], object]], Awaitable[int]]


async def run_command(
    run: _Run,
    body: AsyncIterator[bytes],
    begin: Callable[[], Awaitable[None]],
    write: Callable[[Stream, bytes], Awaitable[None]],
) -> int:
    """Return the exit status, when all that was written is sent.

    Args:
        run: runs the command between three streams, and calls its second argument when it begins.
        body: what goes to its standard input. What it raises ends the command.
        begin: called when it has begun, before anything is written.
        write: gets "stdout" or "stderr" and a piece.

    Raises:
        Exception: what `run` or `body` raised; `begin` was not called if it had not begun.
    """
    stdin, stdout, stderr = Pipe(_PIPE_BYTES), Pipe(_PIPE_BYTES), Pipe(_PIPE_BYTES)
    ready, begun = anyio.Event(), False  # ready: it has begun, or never will
    status, fault = 0, None  # carried out by hand: a group would make a group of it

    def has_begun() -> None:
        nonlocal begun
        begun = True
        ready.set()

    async def command() -> None:
        nonlocal status, fault
        try:
            status = await run((stdin, stdout, stderr), has_begun)
        except Exception as error:  # noqa: BLE001 - raised below, unless it comes of the other's
            fault = fault or error
        ready.set()

    async def feed(running: anyio.abc.TaskGroup) -> None:
        nonlocal fault
        try:
            async for piece in body:
                await stdin.send(piece)
        except Exception as error:  # noqa: BLE001 - as above
            fault = fault or error
            running.cancel_scope.cancel()
        finally:
            await stdin.aclose()

    async def forward(name: Stream, pipe: Pipe) -> None:
        async for piece in pipe:
            await write(name, piece)

    async with anyio.create_task_group() as feeding:
        async with anyio.create_task_group() as running:
            feeding.start_soon(feed, running)
            running.start_soon(command)
            await ready.wait()
            if begun:
                await begin()
                running.start_soon(forward, "stdout", stdout)
                running.start_soon(forward, "stderr", stderr)
        feeding.cancel_scope.cancel()
    if fault is not None:
        raise fault
    return status
