"""A directory that only this user can reach, and the files in it.

Everything works relative to an open directory descriptor whose owner and mode were checked, so a
path that is swapped afterwards changes nothing.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = [
    "NotPrivate",
    "locked",
    "open_directory",
    "open_private",
    "sha256_of",
    "unlink_if_present",
    "write_new",
]

_LOCK_NAME = "lock"
_LOCK_PATIENCE_S = 2.0  # holders rename, list and unlink; more than this is a stopped process
_LOCK_RETRY_S = 0.01
_READ_BYTES = 1 << 20


class NotPrivate(Exception):
    """A file or directory is not ours alone. The message says why and what to do."""


def _check_owner(status: os.stat_result, what: str, wanted_mode: str) -> None:
    if status.st_uid != os.geteuid():
        raise NotPrivate(f"{what} belongs to user {status.st_uid}, not to {os.geteuid()}")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise NotPrivate(f"{what} has mode {mode:04o}, others can reach it: chmod {wanted_mode} it")


@contextmanager
def open_directory(path: Path, *, create: bool) -> Iterator[int]:
    """Open a private directory.

    Raises:
        NotPrivate: it is a symbolic link or no directory, is not ours, or others can reach it.
        OSError: it cannot be opened, or does not exist and `create` is false.
    """
    if create:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Not exist_ok: that follows a symbolic link to make sure of a directory.
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise NotPrivate(f"{path} is a symbolic link or no directory") from None
        raise
    try:
        _check_owner(os.fstat(directory), str(path), "0700")
        yield directory
    finally:
        os.close(directory)


def open_private(directory: int, name: str) -> int:
    """Open a regular file that is ours alone for reading; the caller closes the descriptor.

    Raises:
        NotPrivate: it is a link or no regular file, is not ours, or others can reach it.
        OSError: it cannot be opened.
    """
    try:
        # O_NONBLOCK: a pipe in its place must not hang us.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotPrivate(f"{name} is a symbolic link") from None
        raise
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise NotPrivate(f"{name} is no regular file")
        _check_owner(status, name, "0600")
    except BaseException:
        os.close(file)
        raise
    return file


def write_new(directory: int, name: str, data: bytes | memoryview) -> os.stat_result:
    """Write a new file with mode 0600, make it durable, and return its status.

    Whatever goes wrong, no half-written file stays under the name.
    """
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
    try:
        rest = memoryview(data).cast("B")
        while len(rest):
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
        return os.fstat(file)
    except BaseException:
        unlink_if_present(directory, name)
        raise
    finally:
        os.close(file)


def unlink_if_present(directory: int, name: str) -> bool:
    """Remove a file and tell whether it was there."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def sha256_of(file: int) -> str:
    """Return the digest of a file's bytes in hexadecimal; reads it from its start to its end."""
    digest = hashlib.sha256()
    buffer = bytearray(_READ_BYTES)
    view = memoryview(buffer)
    position = 0
    while length := os.preadv(file, [view], position):
        digest.update(view[:length])
        position += length
    return digest.hexdigest()


@contextmanager
def locked(directory: int) -> Iterator[None]:
    """Hold the directory's lock, against other processes and other threads alike.

    Raises:
        TimeoutError: someone else held it for two seconds.
    """
    file = os.open(_LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=directory)
    try:
        patience = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            # flock, not lockf: it belongs to this descriptor, so it also holds between threads.
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > patience:
                    raise TimeoutError(
                        f"another process holds the lock for {_LOCK_PATIENCE_S} s"
                    ) from None
                time.sleep(_LOCK_RETRY_S)
        try:
            yield
        finally:
            # Closing is not enough: a child forked meanwhile shares the lock until it execs.
            fcntl.flock(file, fcntl.LOCK_UN)
    finally:
        os.close(file)
