"""Let other processes of the same user look at a host: a unix socket in a private folder.

    share(host) ──► $XDG_RUNTIME_DIR/sandhost/PID.sock ◄── sandhost top --pid PID
                    (else /tmp/sandhost-UID/, mode 0700)

Who connects is sent one `View` as JSON, and the end. The folder keeps other users out, and so does the
kernel's word on who connected (SO_PEERCRED). Nobody can ask for anything, so nobody can do anything.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import struct
import tempfile
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .._closing import Closing
from .._log import get_logger
from ..errors import ConfigError, SandhostError
from .picture import look
from .records import to_json

if TYPE_CHECKING:
    from ..host import Host

__all__ = ["Place", "Shared", "places", "share"]

_LOGGER = "sandhost.observe"
_NAME = re.compile(r"([0-9]{1,10})(-[0-9]{1,6})?\.sock")
_SEND_S = 2.0
"""As long as one who connects and does not read may keep all others waiting."""
_JOIN_S = 5.0
_MOST_HOSTS = 1000


def folder() -> Path:
    """Return the folder of this user's sockets, which may not exist yet."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return (
        Path(runtime) / "sandhost"
        if runtime and os.path.isabs(runtime)
        else Path(tempfile.gettempdir()) / f"sandhost-{os.geteuid()}"
    )


def _check_private(path: Path) -> None:
    """Raise unless it is a folder, really there, that only this user can look into."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise SandhostError(
            f"{path} is not a folder of this user's alone: remove it, or set XDG_RUNTIME_DIR"
        )


class Place(NamedTuple):
    """Where a host can be looked at."""

    name: str
    """The process's number; of further hosts in one process with "-2", "-3" behind it."""
    pid: int
    path: Path


def places() -> list[Place]:
    """List the hosts that can be looked at; remove what processes that are gone left behind."""
    where = folder()
    try:
        _check_private(where)
    except FileNotFoundError:
        return []
    found = []
    for path in sorted(where.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        pid = int(match[1])
        if _is_alive(pid):
            found.append(Place(path.stem, pid, path))
        else:
            path.unlink(missing_ok=True)
    return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


class Shared(Closing):
    """A host that others may look at, until this or the host is closed. Made by `share`."""

    def __init__(self, host: Host) -> None:
        listener, self.path = _listen()
        host_ref = weakref.ref(host)
        self._end = weakref.finalize(host, _end, listener, self.path, os.getpid())
        self._thread = threading.Thread(
            target=_serve, args=(listener, host_ref), name="sandhost-observe", daemon=True
        )
        self._thread.start()
        host.on_close.append(self.close)

    def close(self) -> None:
        """Let nobody look any more. Idempotent."""
        self._end()
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)


def share(host: Host) -> Shared:
    """Let processes of the same user look at a host, as `sandhost top` does, until it is closed.

    Raises:
        SandhostError: the folder for the socket is somebody else's, or cannot be made.
        ConfigError: its path is too long for a socket.
    """
    return Shared(host)


def _listen() -> tuple[socket.socket, Path]:
    where = folder()
    try:
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(where)
    except OSError as error:
        raise SandhostError(f"the folder {where} cannot be made: {error.strerror}") from error
    places()  # removes what is stale
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        for number in range(1, _MOST_HOSTS):
            path = where / f"{os.getpid()}{'' if number == 1 else f'-{number}'}.sock"
            if _bind(listener, path):
                listener.listen(16)
                return listener, path
    except OSError as error:
        listener.close()
        if "too long" in str(error):
            raise ConfigError(
                f"{where} is too long for a socket's path: set XDG_RUNTIME_DIR to a shorter one"
            ) from None
        raise SandhostError(f"no socket can be made in {where}: {error}") from error
    listener.close()
    raise SandhostError(f"{where} has sockets of {_MOST_HOSTS} hosts of this process already")


def _bind(listener: socket.socket, path: Path) -> bool:
    """Bind to a path that is free, or left by a process of the same number that is gone."""
    for _ in range(2):
        try:
            listener.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return True
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            try:
                other.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                return False
            else:
                return False
    return False


def _end(listener: socket.socket, path: Path, pid: int) -> None:
    if os.getpid() != pid:  # a forked child: socket and file are the parent's
        listener.close()
        return
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
    listener.close()
    with contextlib.suppress(OSError):
        path.unlink()


def _serve(listener: socket.socket, host_ref: weakref.ReferenceType[Host]) -> None:
    """Answer one after the other until the listener is closed; hold nothing of the host meanwhile."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # closed
            return
        with connection:
            connection.settimeout(_SEND_S)
            host = host_ref()
            if host is None:
                return
            try:
                _answer(connection, host)
            except OSError:
                pass  # who asked has gone, or does not read
            except Exception:  # noqa: BLE001 - to be looked at must not harm a host
                get_logger(_LOGGER).exception("a look at the host failed")
            del host


def _answer(connection: socket.socket, host: Host) -> None:
    uid = peer_uid(connection)
    if uid not in (os.geteuid(), 0):
        get_logger(_LOGGER).warning("another user wanted to look at the host", uid=uid)
        return
    connection.sendall(to_json(look(host)))


def peer_uid(connection: socket.socket) -> int:
    """Return the user at the other end, by the kernel."""
    credentials = struct.Struct("3i")  # struct ucred: pid, uid, gid
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    return int(credentials.unpack(data)[1])
