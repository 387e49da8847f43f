"""A port: how an event loop learns which of its guests have come back from the workers.

C makes a file readable while there are some (native/port.h). The loop watches the file, takes their
ids, and wakes the task of each. There is one port for each loop, made at its first call, gone with it.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections.abc import Callable
from typing import Any

import anyio

from .._ffi import failure, ffi, lib
from ..errors import ConfigError

__all__ = ["Port", "current_port"]

_AT_ONCE = 64


class Port:
    """What one event loop knows of its guests that are with the workers."""

    def __init__(self, loop: Any, run_soon: str) -> None:
        native = lib.sh_port_new()
        if not native:
            raise failure()
        self.native = ffi.gc(native, lib.sh_port_release)
        self.fd = int(lib.sh_port_fd(native))
        self._loop = weakref.ref(loop)  # which holds this
        self._run_soon = run_soon  # the name of its method
        self._taken = ffi.new("uint64_t[]", _AT_ONCE)
        self._waiting: dict[int, anyio.Event] = {}

    def run_soon(self, function: Callable[[], object]) -> None:
        """Have the loop call a function. From any thread."""
        loop = self._loop()
        if loop is not None:
            getattr(loop, self._run_soon)(function)

    async def wait_for(self, guest_id: int) -> None:
        """Wait until the guest has come back."""
        event = self._waiting.get(guest_id)
        if event is None:
            event = self._waiting[guest_id] = anyio.Event()
        try:
            await event.wait()
        finally:
            if event.is_set():
                self._waiting.pop(guest_id, None)

    def take(self) -> None:
        """Wake the tasks of those that have come back; a few at a time, so that others run between."""
        count = lib.sh_port_take(self.native, self._taken, _AT_ONCE)
        for guest_id in self._taken[0:count]:
            event = self._waiting.get(guest_id)
            if event is None:  # it came back before its task has begun to wait
                event = self._waiting[guest_id] = anyio.Event()
            event.set()

    def forget(self, guest_id: int) -> None:
        """Nobody waits for the guest any more."""
        self._waiting.pop(guest_id, None)


_ports: weakref.WeakKeyDictionary[Any, Port] = weakref.WeakKeyDictionary()
"""By event loop: asyncio's loop, or trio's token."""


def current_port() -> Port:
    """Return the port of the event loop that runs here.

    Raises:
        ConfigError: none does.
    """
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        token = trio.lowlevel.current_trio_token()
        return _ports.get(token) or _on_trio(trio, token)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigError("no event loop runs here: asyncio's or trio's") from None
    return _ports.get(loop) or _on_asyncio(loop)


def _on_asyncio(loop: asyncio.AbstractEventLoop) -> Port:
    port = _ports[loop] = Port(loop, "call_soon_threadsafe")
    loop.add_reader(port.fd, port.take)
    return port


def _on_trio(trio: Any, token: Any) -> Port:
    port = _ports[token] = Port(token, "run_sync_soon")

    async def watch() -> None:
        while True:
            await trio.lowlevel.wait_readable(port.fd)
            port.take()

    trio.lowlevel.spawn_system_task(watch)
    return port
