"""Where HTTP is listened for, and by how many files: a flood of one's connections does not keep out all others'.

libuv takes one connection from each listening file in a turn of its loop, and then does all else that is ready
(https://github.com/libuv/libuv/pull/3696). While a turn takes milliseconds, a hundred that connect would wait for
half a second. The queue in the kernel stays one: these are duplicates of one file.
"""

from __future__ import annotations

import socket

from ..errors import ConfigError

__all__ = ["Doors", "listen"]

_ACCEPTED = 8
"""Connections in a turn: they take as long as a tenant's share of it."""


def listen(host: str, port: int) -> socket.socket:
    """Listen.

    Raises:
        ConfigError: there is no such address here, or it is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        why = str(error.strerror or error).partition(" (while")[0]  # behind it: the address again
        raise ConfigError(f"cannot listen on {host}:{port}: {why}") from error


class Doors:
    """One listening socket, as often as an event loop should look at it in a turn.

    Args:
        listener: stays its owner's.
    """

    def __init__(self, listener: socket.socket) -> None:
        self.sockets = [listener.dup() for _ in range(_ACCEPTED)]

    def close(self) -> None:
        """Close all of them; idempotent."""
        for one in self.sockets:
            one.close()
