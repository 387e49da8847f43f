"""What the tests of guests on the event loop share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

import sandhost

from . import guest_file

COMPUTES = b"""(module
  (import "env" "later" (func $later (param i32) (result i32)))
  (memory (export "memory") 1)
  (func $until_told (export "until_told") (loop (br_if 0 (i32.eqz (i32.load8_u (i32.const 0))))))
  (func (export "until_told_then_wait") (result i32) (call $until_told) (call $later (i32.const 2)))
  (func (export "wait") (result i32) (call $later (i32.const 1))))"""
"""Its guests compute until somebody writes into their memory."""


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
