"""Modules on disk, each under the SHA-256 of its bytes.

A module is written to a temporary file beside, made durable, and renamed. So under a digest there is
the whole module or nothing, whenever the machine stops:

    9f2c….part   ── write, fsync ──►   ── rename ──►   e3b0c442…   ── fsync of the folder ──►  acknowledged

What is renamed but was never named by a version, and what never got so far, is swept.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from .problems import TooLarge

__all__ = ["Blobs", "Incoming", "Step", "no_step"]

Step = Callable[[str], object]
"""Called at each step of a write with what has just been done, or is about to be. Tests stop there."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PART = ".part"


def no_step(_name: str) -> None:
    """Go on."""


class Blobs:
    """The modules in one folder, which belongs to this object alone."""

    def __init__(self, folder: Path, step: Step = no_step) -> None:
        self.folder = folder
        self._step = step
        self._naming = threading.Lock()
        """Held for each rename, so that a sweep removes no name that was just given."""
        folder.mkdir(mode=0o700, exist_ok=True)

    def receive(self, limit: int) -> Incoming:
        """Begin to take a module of `limit` bytes at the most; use it in a `with` block."""
        return Incoming(self.folder, limit, self._naming, self._step)

    def put(self, chunks: Iterable[bytes], limit: int) -> tuple[str, int]:
        """Keep what the chunks are together; return its digest and size when it is durable.

        Raises:
            TooLarge: it has more than `limit` bytes.
            OSError: it cannot be written.
        """
        with self.receive(limit) as incoming:
            for chunk in chunks:
                incoming.write(chunk)
            return incoming.finish()

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def open(self, digest: str) -> BinaryIO:
        """Open a module for reading; it can be read to its end even when it is swept meanwhile.

        Raises:
            FileNotFoundError: it is not there.
        """
        return self.path(digest).open("rb")

    def read(self, digest: str) -> bytes:
        """Return a module, when its bytes are still what they were.

        Raises:
            FileNotFoundError: it is not there.
            OSError: or the disk has altered it.
        """
        with self.open(digest) as file:
            module = file.read()
        if hashlib.sha256(module).hexdigest() != digest:
            raise OSError(errno.EIO, "the disk has altered it", str(self.path(digest)))
        return module

    def sweep(self, keep: Collection[str], older_than_s: float = 0.0) -> int:
        """Remove all modules but these, and unfinished ones; return how many files that were.

        Args:
            keep: digests.
            older_than_s: spare what was written to since. Longer than an upload rests between two
                writes, or between its end and the version that names it.
        """
        removed = 0
        newest = time.time() - older_than_s
        for name in os.listdir(self.folder):
            ours = name.endswith(_PART) or (_DIGEST.fullmatch(name) and name not in keep)
            path = self.folder / name
            with self._naming:
                if ours and (not older_than_s or _changed(path) < newest):
                    self._step("blob.sweep")
                    path.unlink(missing_ok=True)
                    removed += 1
        return removed

    def path(self, digest: str) -> Path:
        """Return where a module lies, if it is there."""
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest[:80]!r} is no SHA-256 in hexadecimal")
        return self.folder / digest


class Incoming:
    """A module that is being written: `write` its chunks, then `finish`. Made by `Blobs.receive`.

    Leaving the `with` block without `finish` leaves nothing behind.
    """

    def __init__(self, folder: Path, limit: int, naming: threading.Lock, step: Step) -> None:
        self._folder, self._limit, self._naming, self._step = folder, limit, naming, step
        self._part = folder / f"{secrets.token_hex(16)}{_PART}"
        self._hash = hashlib.sha256()
        self.size = 0
        """Bytes so far."""
        step("blob.create")
        self._file: int | None = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def write(self, chunk: bytes | memoryview) -> None:
        """Add a chunk.

        Raises:
            TooLarge: the module has more than `limit` bytes with it.
            OSError: it cannot be written.
        """
        assert self._file is not None, "it was finished"
        rest = memoryview(chunk).cast("B")
        self.size += len(rest)
        if self.size > self._limit:
            raise TooLarge(
                f"the module has more than {self._limit} bytes", facts={"limit": self._limit}
            )
        self._hash.update(rest)
        self._step("blob.write")
        while len(rest):
            rest = rest[os.write(self._file, rest) :]

    def finish(self) -> tuple[str, int]:
        """Return digest and size, when the module is durable under that digest."""
        assert self._file is not None, "it was finished"
        self._step("blob.sync")
        os.fsync(self._file)
        os.close(self._file)
        self._file = None
        digest = self._hash.hexdigest()
        self._step("blob.rename")
        # Also over one that is there: its time is new then, and spares it from the next sweep.
        with self._naming:
            os.rename(self._part, self._folder / digest)
        self._step("blob.sync folder")
        sync_folder(self._folder)
        self._step("blob.done")
        return digest, self.size

    def __enter__(self) -> Incoming:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._part.exists():
            self._step("blob.discard")
            self._part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()
