"""Every error that sandhost raises.

    SandhostError
    ├── ConfigError            a setting or argument that cannot be meant
    ├── ModuleError            bytes that are no module sandhost can load   .offset
    ├── SnapshotError          a file that is no snapshot, was altered, or is of another module
    ├── RegionFullError        no free region for another guest
    ├── Overloaded             the host takes no new guests         .retry_after_s
    ├── LimitExceeded          a guest reached a limit set for it
    │   ├── OutOfMemory
    │   ├── OutOfFuel
    │   ├── DeadlineExceeded
    │   └── QuotaExceeded      its tenant's, in a time              .retry_after_s
    ├── GuestError             the guest ended its own call
    │   ├── GuestTrap          .code, .frames
    │   ├── GuestExit          .status
    │   ├── GuestCancelled
    │   ├── GuestEvicted       the host ended the guest, for its memory
    │   └── OutOfBounds        an address outside the guest's memory (also an IndexError)
    ├── HostCallError          a host function returned what wasm has no value for
    ├── InvalidHandle          a handle that is stale, foreign or never was one
    ├── GuestClosed            use of a guest after its close
    ├── GuestBusy              use of a guest while another call is in it
    ├── InvalidBuffer          a pool's buffer that was released, or is another pool's
    ├── BufferBusy             release of a buffer that has views, of a pool that has buffers out (also a BufferError)
    ├── PoolEmpty              no buffer came back in time (also a TimeoutError)
    ├── PoolClosed             use of a pool after its close
    ├── Problem                what a service answers, in protocol/problems.py      .status, .retry_after_s
    └── NativeError            an operating-system call failed              .errno, .operation

A message says what happened, the figure and the limit, and what to do. All of them survive pickle
and copy with their attributes; as for every Python exception, the cause and traceback do not.
"""

from __future__ import annotations

import errno as _errno
import os
from typing import Any, NamedTuple

__all__ = [
    "BufferBusy",
    "ConfigError",
    "DeadlineExceeded",
    "Frame",
    "GuestBusy",
    "GuestCancelled",
    "GuestClosed",
    "GuestError",
    "GuestEvicted",
    "GuestExit",
    "GuestTrap",
    "HostCallError",
    "InvalidBuffer",
    "InvalidHandle",
    "LimitExceeded",
    "ModuleError",
    "NativeError",
    "OutOfBounds",
    "OutOfFuel",
    "OutOfMemory",
    "Overloaded",
    "PoolClosed",
    "PoolEmpty",
    "QuotaExceeded",
    "RegionFullError",
    "SandhostError",
    "SnapshotError",
]

# A stack overflow has thousands of frames; the innermost and outermost ones tell the story.
_SHOWN_INNER, _SHOWN_OUTER = 24, 8


def printable(name: str, most: int = 100) -> str:
    """Return a module's name for a message: without control characters, and not without end.

    Names are the module's, so they may try to forge lines of a log or to command a terminal.
    """
    shown = name if len(name) <= most else f"{name[: most - 1]}…"
    return shown if shown.isprintable() else repr(shown)[1:-1]


class Frame(NamedTuple):
    """One wasm frame of a trap, innermost first in `GuestTrap.frames`."""

    function: str | None
    """Name from the module's name section, None when it has none."""
    function_index: int
    """In the module, imports first."""
    offset: int | None
    """Byte offset of the instruction from the start of the module, None when it is not known."""
    module: str | None
    """Name of the module, None when it has none."""

    def __str__(self) -> str:
        function = (
            f"function {self.function_index}" if self.function is None else printable(self.function)
        )
        module = f" in {printable(self.module)}" if self.module is not None else ""
        at = "" if self.offset is None else f" at {self.offset:#x}"
        return f"{function}{module}{at}"


def _rebuild(
    cls: type[SandhostError], args: tuple[Any, ...], state: dict[str, Any]
) -> SandhostError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


class SandhostError(Exception):
    """Base of every error that sandhost raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException would call cls(*args), which no keyword-only argument survives.
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class ConfigError(SandhostError):
    """A setting or argument cannot be meant as it stands."""


class ModuleError(SandhostError):
    """The bytes are no WebAssembly module that sandhost can load."""

    def __init__(self, message: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.offset = offset
        """Byte offset in the module where reading stopped, None when no byte is to blame."""

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.offset is None else f"{message} (at byte {self.offset:#x})"


class SnapshotError(SandhostError):
    """A file is no snapshot, was cut off or altered, or belongs to another module or version."""


class RegionFullError(SandhostError):
    """No region is free for another guest."""


class Overloaded(SandhostError):
    """The host is short of memory and takes no new guests; those that live go on."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """When to try again, in seconds."""


class LimitExceeded(SandhostError):
    """A guest reached a limit that was set for it."""


class OutOfMemory(LimitExceeded):
    """A guest asked for more memory than its limit, its tenant's or the host's."""


class OutOfFuel(LimitExceeded):
    """A guest executed more instructions than its fuel allowed."""


class DeadlineExceeded(LimitExceeded):
    """A guest's call ran past its deadline."""


class QuotaExceeded(LimitExceeded):
    """A tenant has as many guests as it may, or has used what it may use in a time."""

    def __init__(self, message: str, *, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """When it has some again, in seconds; None: when one of its guests ends."""


class GuestError(SandhostError):
    """The guest ended its own call."""


class GuestTrap(GuestError):
    """The guest trapped. `str()` shows the message and the wasm backtrace."""

    def __init__(self, message: str, *, code: str, frames: tuple[Frame, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        """Which trap it was, for programs: "unreachable", "memory_out_of_bounds", …"""
        self.frames = frames
        """Wasm frames, innermost first."""

    def __str__(self) -> str:
        message = super().__str__()
        if not self.frames:
            return message
        lines = [f"    {number}: {frame}" for number, frame in enumerate(self.frames)]
        hidden = len(lines) - _SHOWN_INNER - _SHOWN_OUTER
        if hidden > 0:
            lines[_SHOWN_INNER:-_SHOWN_OUTER] = [f"    … {hidden} more frames"]
        return "\n".join([message, "  wasm backtrace:", *lines])


class GuestExit(GuestError):
    """The guest asked to exit, as a WASI command does at its end."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the guest exited with status {status}")
        self.status = status
        """What the guest passed to `proc_exit`."""


class GuestCancelled(GuestError):
    """The call was cancelled from the host's side before the guest returned."""


class GuestEvicted(GuestError):
    """The host ended the guest, and with it this call, since it was short of memory."""


class OutOfBounds(GuestError, IndexError):
    """An address or length that the guest gave, or that is used on its memory, lies outside it."""


class HostCallError(SandhostError):
    """A host function returned what the guest cannot be given; see `__cause__`.

    An exception that a host function raises comes out of the guest's call as it is.
    """


class InvalidHandle(SandhostError):
    """A handle is stale, belongs to another guest, or never was one."""


class GuestClosed(SandhostError):
    """The guest was used after its close."""


class GuestBusy(SandhostError):
    """The guest was used while another call was in it."""


class InvalidBuffer(SandhostError):
    """A buffer was released before, or belongs to another pool."""


class BufferBusy(SandhostError, BufferError):
    """A buffer was to be released while views of it are alive, or a pool closed with buffers in use."""


class PoolEmpty(SandhostError, TimeoutError):
    """No buffer came back to the pool within the time that was given."""


class PoolClosed(SandhostError):
    """The pool was used after its close."""


class NativeError(SandhostError):
    """An operating-system call failed."""

    def __init__(self, errno: int, operation: str) -> None:
        name = _errno.errorcode.get(errno, "unknown")
        super().__init__(f"{operation} failed: {os.strerror(errno)} ({name}, errno {errno})")
        self.errno = errno
        """The error number, as in `errno.ENOMEM`."""
        self.operation = operation
        """What was being done, for example "mmap of 4 GiB"."""
