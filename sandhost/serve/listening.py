"""Where HTTP is listened for, by how many files, with room for connections: so that those who connect do not wait.

libuv takes one connection from each listening file in a turn of its loop, and then does all else that is ready
(https://github.com/libuv/libuv/pull/3696). While a turn takes milliseconds, a hundred that connect would wait for
half a second. The queue in the kernel stays one: these are duplicates of one file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator

from ..errors import ConfigError

__all__ = ["duplicates", "listen", "make_room"]

_ACCEPTED = 8
"""Connections in a turn: they take as long as a tenant's share of it."""
_MOST_ROOM = 65_536
"""Half a mebibyte of the kernel's memory."""


def make_room(files: int) -> None:
    """Have the table of this process's open files made as large as it is going to be; before threads are started.

    It grows by doubling. In a process with threads whoever opens one more then waits until all processors have seen
    it, 5 to 16 ms on two (`expand_fdtable` in https://github.com/torvalds/linux/blob/v6.18/fs/file.c).
    """
    with open(os.devnull, "rb") as some:
        os.close(fcntl.fcntl(some, fcntl.F_DUPFD_CLOEXEC, min(files, _MOST_ROOM) - 1))


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


@contextlib.contextmanager
def duplicates(listener: socket.socket) -> Iterator[list[socket.socket]]:
    """Have a listening socket as often as an event loop should look at it in a turn; it stays its owner's."""
    with contextlib.ExitStack() as opened:
        yield [opened.enter_context(listener.dup()) for _ in range(_ACCEPTED)]
