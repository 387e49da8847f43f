"""`sandhost client run`: a command there, joined to our streams here."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator

import click

from ..verbatim import VerbatimCommand
from .invoke import deadline_option, ref_option
from .service import Service, asks_service

__all__ = ["run"]

_PIECE = 64 << 10


@click.command(
    cls=VerbatimCommand,
    context_settings={"ignore_unknown_options": True},
    options_metavar="[OPTIONS]",
)
@click.argument("plugin", metavar="PLUGIN")
@click.argument("arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
@ref_option
@deadline_option
@asks_service
def run(
    service: Service,
    plugin: str,
    arguments: tuple[str, ...],
    ref: str | None,
    deadline: float | None,
) -> int:
    """Run a WASI command, with our standard input, output and error, and its exit status.

    Its input goes there as it comes, while it runs; what it writes comes back as it is written. With --json its
    output is kept, and one record printed.

    Options for the command stand after '--': sandhost client run tool -- --verbose

    \b
    Exit status:
      the command's own (0 to 125), or
      124  the time was over, or a limit ended it       125  the service refused it, or cannot be reached
      130  interrupted: it is ended there, too          134  it trapped
    """  # noqa: D301 - \b is click's mark for lines to keep
    import anyio

    task = _recorded if service.as_json else _joined
    return anyio.run(task, service, plugin, arguments, ref, deadline)


async def _joined(
    service: Service,
    plugin: str,
    arguments: tuple[str, ...],
    ref: str | None,
    deadline: float | None,
) -> int:
    outputs = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    async with (
        service.client_async() as client,
        client.command(plugin, *arguments, stdin=_stdin(), ref=ref, deadline_s=deadline) as command,
    ):
        async for stream, data in command:
            outputs[stream].write(data)
            outputs[stream].flush()
        assert command.status is not None
        return command.status


async def _recorded(
    service: Service,
    plugin: str,
    arguments: tuple[str, ...],
    ref: str | None,
    deadline: float | None,
) -> int:
    from ..output import print_json

    async with service.client_async() as client:
        done = await client.run(plugin, *arguments, stdin=_stdin(), ref=ref, deadline_s=deadline)
    print_json(
        {
            "status": done.status,
            "stdout": done.stdout.decode(errors="replace"),
            "stderr": done.stderr.decode(errors="replace"),
        }
    )
    return done.status


async def _stdin() -> AsyncIterator[bytes]:
    """Yield what comes, at once, with nothing kept behind in a buffer of Python's."""
    if sys.stdin is None or sys.stdin.closed:
        return
    number = sys.stdin.fileno()
    while True:
        await _readable(number)
        data = os.read(number, _PIECE)
        if not data:
            return
        yield data


async def _readable(number: int) -> None:
    """Wait without a thread: one that reads from a terminal would keep us from ending."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(number, ready.set)
    except PermissionError:  # of epoll: a file on the disk, which never lets anybody wait
        return
    try:
        await ready.wait()
    finally:
        loop.remove_reader(number)
