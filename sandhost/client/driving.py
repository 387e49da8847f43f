"""Runs what `attempts` decides, on an event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from .attempts import Flow, Pause, Send
from .replies import Reply

__all__ = ["drive"]

_T = TypeVar("_T")


async def drive(flow: Flow[_T], send: Callable[[Send], Awaitable[Reply]]) -> _T:
    """Send and wait as the flow says; return what it returns."""
    given: Reply | None = None
    failed: Exception | None = None
    try:
        while True:
            step = flow.send(given) if failed is None else flow.throw(failed)
            given = failed = None
            if isinstance(step, Pause):
                await anyio.sleep(step.seconds)
                continue
            try:
                given = await send(step)
            except Exception as error:  # noqa: BLE001 - the flow decides
                failed = error
    except StopIteration as stop:
        result: _T = stop.value
        return result
    finally:
        flow.close()
