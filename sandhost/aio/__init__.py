"""Guests on the event loop: asyncio, or trio, also by way of anyio.

    session     a command that runs beside the task that talks to it
    spawn       `async with plugin.spawn_async(...)`
    call        one call that can wait, driven by the task that made it
    pipe, port  bytes between guest and host; how guests come back from the workers

`guest.call_async` is where it begins.
"""

from .pipe import Pipe
from .session import Session
from .spawn import SpawnAsync

__all__ = ["Pipe", "Session", "SpawnAsync"]
