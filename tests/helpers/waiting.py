"""What the tests of guests on the event loop share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

import sandhost

from . import guest_file


def load_waiting(
    host: sandhost.Host,
    later: Callable[[int], Awaitable[int]] | None = None,
    now: Callable[[int], int] | None = None,
    *,
    start: bool = False,
) -> sandhost.Plugin:
    """Load waits.wat; `later` is awaited, `now` answers at once. By default both add one."""

    async def add_later(x: int) -> int:
        await anyio.lowlevel.checkpoint()
        return x + 1

    host.function("env", "later", "(i32) -> i32")(later or add_later)
    host.function("env", "now", "(i32) -> i32")(now or (lambda x: x + 1))
    text = guest_file("waits").read_bytes()
    if start:
        text = text.replace(b"(memory (export", b"(start $start) (memory (export", 1)
    return host.load(text, name="waits")


async def turns(count: int) -> None:
    """Let the other tasks run so many times."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def until(condition: Callable[[], Any]) -> None:
    """Wait until it holds; a test that hangs fails by its timeout."""
    while not condition():
        await anyio.sleep(0.001)
