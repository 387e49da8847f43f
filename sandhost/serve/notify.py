"""What the service says to systemd, when that has started it: sd_notify(3), which is one datagram.

Also what else speaks it hears it so: podman, runc, s6's and runit's wrappers. Without NOTIFY_SOCKET nothing is sent.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket

from .._log import get_logger

__all__ = ["keep_watched", "notify", "stopping"]

_MARGIN_S = 5.0
"""For what comes after the drain: a module that is compiled just now, the database's end. Arbitrary."""

_PATIENCE_S = 0.1
"""With a manager that does not listen just now: the event loop stands still meanwhile. Arbitrary."""


def notify(state: str) -> None:
    """Tell the service manager, if there is one that wants to know."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(_PATIENCE_S)
            sender.sendto(state.encode(), address)
    except OSError:  # it is gone, or busy; the service is none the worse
        get_logger("sandhost.serve").warning("the service manager was not told", state=state)


def stopping(drain_s: float) -> None:
    """Say that the end has begun and how long it may take, whatever TimeoutStopSec= is."""
    notify(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={math.ceil((drain_s + _MARGIN_S) * 1e6)}")


async def keep_watched() -> None:
    """Say twice in each WatchdogSec= that the event loop turns; return if nobody watches."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(
        os.getpid()
    ):
        return
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(int(microseconds) / 2e6)
