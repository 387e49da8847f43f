"""Compiled modules on disk, and binaries of modules that came as text.

    <directory>/                          0700, ours, no symbolic link
        <key>.<16 hex digits>.cwasm       0600, native code as wasmtime serialized it, or a binary
        <key>.entry                       0600, one line: which file, size, sha256, stamp
        lock

The entry's rename is the moment when a new artifact counts; before it there is only a file that
nothing names, which the next eviction sweeps once it is an hour old. A hit renews the entry's
modification time, by which the least recently used are evicted; the artifact is never touched.

What makes a file trustworthy. To deserialize native code is to run it, so what protects the host
is that nobody else can write here: owner, mode and link are checked on open descriptors, each time.
Whoever runs as the same user can alter code, entry and digest alike (and the Python sources, for
that matter): no hash or key in the same place helps against that, and it is outside of the threat
model, as is a change between verification and use. What remains are accidents: truncation, a
restored backup, a stray write. Against those stands the sha256, but hashing 240 MB takes 0.17 s
and reads all of it from disk, where mapping it takes 0.005 s. So the entry also holds a stamp
(device, inode, size, mtime, ctime) taken when the digest was last known to match: no write and no
truncation leaves a file's ctime alone, so an equal stamp means equal bytes, and the file is hashed
again only when the stamp differs. Like git's index, this does not see a disk that silently returns
other bytes; `always_hash=True` does.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from .._log import get_logger
from ..errors import ConfigError
from .private import (
    NotPrivate,
    locked,
    open_directory,
    open_private,
    sha256_of,
    unlink_if_present,
    write_new,
)

__all__ = ["CacheStats", "CompileCache", "Entry", "default_directory"]

_LOGGER = "sandhost.cache"
_DEFAULT_MAX_BYTES = 4 * 2**30  # arbitrary: some 16 interpreters, or 500 plugins of 8 MB
_ORPHAN_AGE_S = 3600.0  # longer than any put takes
_RECORD_BYTES = 1024
_KEY = re.compile(r"[0-9a-f]{64}")
_ARTIFACT = re.compile(r"([0-9a-f]{64})\.[0-9a-f]{16}\.cwasm")
_RECORD_SUFFIX = ".entry"
_RECORD_FORMAT = "sandhost-cache-1"


def default_directory() -> Path | None:
    """Return $SANDHOST_CACHE_DIR, else sandhost in $XDG_CACHE_HOME, else ~/.cache/sandhost.

    None when none of them is known. A relative $XDG_CACHE_HOME is ignored, as its specification
    asks.
    """
    if own := os.environ.get("SANDHOST_CACHE_DIR"):
        return Path(own).absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if xdg.is_absolute():
        return xdg / "sandhost"
    try:
        return Path.home() / ".cache" / "sandhost"
    except RuntimeError:
        return None


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a cache did since it was made."""

    hits: int = 0
    misses: int = 0
    corrupt: int = 0
    """Entries that did not match their digest or could not be read; removed, and also a miss."""
    evicted: int = 0
    refused: int = 0
    """Times the directory or a file was not ours alone, and so ignored."""
    failed_writes: int = 0


class Entry:
    """A verified artifact, open. Deserialize from `path` while it is open; a mapping outlives it.

    `path` names this very descriptor, so what is loaded is the file that was verified, whatever
    happens to its name meanwhile.
    """

    def __init__(self, file: io.FileIO, size: int) -> None:
        self._file = file
        self.size = size
        """Length in bytes."""

    def read(self) -> bytes:
        """Return its bytes."""
        return self._file.readall()

    @property
    def path(self) -> str:
        """Path of the open descriptor; ValueError once it is closed."""
        return f"/proc/self/fd/{self._file.fileno()}"

    def close(self) -> None:
        """Close the descriptor; closing twice is harmless."""
        self._file.close()

    def __enter__(self) -> Entry:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Record:
    """The line in an entry."""

    artifact: str
    sha256: str
    stamp: tuple[int, ...]

    def encode(self) -> bytes:
        stamp = " ".join(map(str, self.stamp))
        return f"{_RECORD_FORMAT} {self.artifact} {self.sha256} {stamp}\n".encode()


def _decode_record(key: str, line: bytes) -> _Record:
    """Raise ValueError when the line is not one that `encode` wrote for this key."""
    text = line.decode("ascii")
    fields = text.split(" ")
    if len(fields) != 8 or fields[0] != _RECORD_FORMAT or not text.endswith("\n"):
        raise ValueError("the entry is cut off or of another format")
    match = _ARTIFACT.fullmatch(fields[1])
    if match is None or match[1] != key or not _KEY.fullmatch(fields[2]):
        raise ValueError("the entry names no artifact of its key")
    return _Record(fields[1], fields[2], tuple(int(field) for field in fields[3:]))


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes whenever a file's bytes are written; the size stands at [2]."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class CompileCache:
    """Compiled modules in a directory, shared by processes and threads of one user.

    Nothing here raises for the state of the disk: a directory that is missing, full, read-only or
    not private costs a compilation, a counter and one logged warning.

    Args:
        directory: where; None for `default_directory()`.
        max_bytes: the artifacts' total size stays at or below it after each `put`.
        always_hash: hash an artifact at every use, not only when it changed since it was hashed.
    """

    def __init__(
        self,
        directory: Path | None = None,
        max_bytes: int = _DEFAULT_MAX_BYTES,
        *,
        always_hash: bool = False,
    ) -> None:
        if max_bytes < 0:
            raise ConfigError(f"max_bytes of the compile cache is {max_bytes}: use 0 or more")
        self.directory = default_directory() if directory is None else directory.absolute()
        """Where it is; None when no directory is known, and then nothing is kept."""
        self.max_bytes = max_bytes
        self._always_hash = always_hash
        self._mutex = threading.Lock()
        self._stats = CacheStats()
        self._warned: set[str] = set()

    def stats(self) -> CacheStats:
        """Return the counters."""
        return self._stats

    def get(self, key: str) -> Path | None:
        """Return the path of a verified artifact.

        Another process may evict it before it is used; `open_verified` leaves no such gap.
        """
        found = self._find(key)
        if found is None:
            return None
        artifact, entry = found
        entry.close()
        return artifact

    def open_verified(self, key: str) -> Entry | None:
        """Return a verified artifact, open; the caller closes it."""
        found = self._find(key)
        return None if found is None else found[1]

    def put(self, key: str, data: bytes | memoryview) -> Path | None:
        """Keep an artifact and return its path, None when it could not be kept.

        An artifact above `max_bytes` is not kept. Least recently used ones make room.
        """
        _check_key(key)
        size = memoryview(data).nbytes
        if self.directory is None or size > self.max_bytes:
            return None
        try:
            with open_directory(self.directory, create=True) as directory:
                return self.directory / self._store(directory, key, data)
        except NotPrivate as reason:
            self._refuse(str(reason))
        except OSError as error:
            self._count(failed_writes=1)
            self._warn_once("cache.write_failed", error, "compiled modules are not kept")
        return None

    def _find(self, key: str) -> tuple[Path, Entry] | None:
        _check_key(key)
        found = None
        if self.directory is not None:
            try:
                with open_directory(self.directory, create=False) as directory:
                    found = self._open(directory, key)
            except FileNotFoundError:
                pass
            except NotPrivate as reason:
                self._refuse(str(reason))
            except OSError as error:
                self._warn_once("cache.read_failed", error, "modules are compiled again")
        if found is None or self.directory is None:
            self._count(misses=1)
            return None
        self._count(hits=1)
        return self.directory / found[0], found[1]

    def _open(self, directory: int, key: str) -> tuple[str, Entry] | None:
        """Return name and open artifact, None when it is absent or was found corrupt."""
        line = _read_line(directory, key)
        try:
            record = _decode_record(key, line)
            file = io.FileIO(open_private(directory, record.artifact), closefd=True)
        except (ValueError, FileNotFoundError) as problem:
            self._discard(directory, key, line, problem)
            return None
        try:
            if not self._verify(directory, key, record, file.fileno()):
                file.close()
                self._discard(directory, key, line, "its bytes do not match their sha256")
                return None
            return record.artifact, Entry(file, record.stamp[2])
        except BaseException:
            file.close()
            raise

    def _verify(self, directory: int, key: str, record: _Record, file: int) -> bool:
        stamp = _stamp(os.fstat(file))  # before the hash: a write meanwhile makes it stale
        name = key + _RECORD_SUFFIX
        unchanged = stamp == record.stamp
        if (not unchanged or self._always_hash) and sha256_of(file) != record.sha256:
            return False
        try:
            if unchanged:
                os.utime(name, dir_fd=directory, follow_symlinks=False)
            else:
                with locked(directory):
                    if _read_line(directory, key) == record.encode():
                        _write_record(directory, key, replace(record, stamp=stamp))
        except OSError as error:
            # A full or read-only disk. The bytes are good all the same; only their age is not
            # renewed, or they are hashed again next time.
            get_logger(_LOGGER).debug("cache.not_renewed", key=key, reason=str(error))
        return True

    def _store(self, directory: int, key: str, data: bytes | memoryview) -> str:
        artifact = f"{key}.{secrets.token_hex(8)}.cwasm"
        digest = hashlib.sha256(data).hexdigest()
        status = write_new(directory, artifact, data)
        kept = False
        try:
            with locked(directory):
                replaced = _artifact_of(directory, key)
                _write_record(directory, key, _Record(artifact, digest, _stamp(status)))
                kept = True
                if replaced is not None:
                    unlink_if_present(directory, replaced)
                evicted = _evict(directory, keep=key, max_bytes=self.max_bytes)
        finally:
            if not kept:
                unlink_if_present(directory, artifact)
        if evicted:
            self._count(evicted=evicted)
            get_logger(_LOGGER).info("cache.evicted", entries=evicted, max_bytes=self.max_bytes)
        return artifact

    def _discard(self, directory: int, key: str, line: bytes, problem: object) -> None:
        """Remove an entry, unless another process has replaced it since it was read."""
        with locked(directory):
            if _read_line(directory, key) != line:
                return
            artifact = _artifact_of(directory, key)
            unlink_if_present(directory, key + _RECORD_SUFFIX)
            if artifact is not None:
                unlink_if_present(directory, artifact)
        self._count(corrupt=1)
        get_logger(_LOGGER).warning(
            "cache.corrupt", key=key, problem=str(problem), action="removed"
        )

    def _count(self, **events: int) -> None:
        with self._mutex:
            now = self._stats
            self._stats = replace(
                now, **{name: getattr(now, name) + more for name, more in events.items()}
            )

    def _refuse(self, reason: str) -> None:
        self._count(refused=1)
        self._warn_once("cache.refused", reason, "modules are compiled again")

    def _warn_once(self, event: str, reason: object, effect: str) -> None:
        with self._mutex:
            if event in self._warned:
                return
            self._warned.add(event)
        get_logger(_LOGGER).warning(
            event, directory=str(self.directory), reason=str(reason), effect=effect
        )


def _check_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise ConfigError(f"{key[:80]!r} is no cache key: use cache_key()")


def _read_line(directory: int, key: str) -> bytes:
    """Return the bytes of an entry; FileNotFoundError when there is none."""
    file = open_private(directory, key + _RECORD_SUFFIX)
    try:
        return os.read(file, _RECORD_BYTES)
    finally:
        os.close(file)


def _write_record(directory: int, key: str, record: _Record) -> None:
    """Replace an entry atomically and durably; call under the lock."""
    temporary = f"{key}.{secrets.token_hex(8)}.tmp"
    write_new(directory, temporary, record.encode())
    try:
        os.rename(temporary, key + _RECORD_SUFFIX, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        unlink_if_present(directory, temporary)
        raise
    os.fsync(directory)


def _artifact_of(directory: int, key: str) -> str | None:
    """Return what an entry names, None when it is absent or unreadable."""
    try:
        return _decode_record(key, _read_line(directory, key)).artifact
    except (FileNotFoundError, ValueError, NotPrivate):
        return None


def _evict(directory: int, *, keep: str, max_bytes: int) -> int:
    """Remove the least recently used entries beyond `max_bytes`, and stale leftovers.

    Call under the lock. Returns the number of entries removed.
    """
    oldest_leftover = time.time() - _ORPHAN_AGE_S
    named: dict[str, str] = {}  # artifact -> key
    ages: list[tuple[int, str, str]] = []  # last use, key, artifact
    sizes: dict[str, int] = {}
    found: dict[str, os.stat_result] = {}
    for name in os.listdir(directory):
        with suppress(FileNotFoundError):  # a put that failed removes its file without the lock
            found[name] = os.stat(name, dir_fd=directory, follow_symlinks=False)
    for name, status in found.items():
        key = name.removesuffix(_RECORD_SUFFIX)
        if key != name and (artifact := _artifact_of(directory, key)) is not None:
            named[artifact] = key
            ages.append((status.st_mtime_ns, key, artifact))
    for name, status in found.items():
        if not name.endswith((".cwasm", ".tmp")):
            continue
        if name not in named and status.st_mtime < oldest_leftover:
            unlink_if_present(directory, name)
        else:
            sizes[name] = status.st_size
    total = sum(sizes.values())
    evicted = 0
    for _, key, artifact in sorted(ages):
        if total <= max_bytes:
            break
        if key == keep:
            continue
        unlink_if_present(directory, key + _RECORD_SUFFIX)
        unlink_if_present(directory, artifact)
        total -= sizes.get(artifact, 0)
        evicted += 1
    return evicted
