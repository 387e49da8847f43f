"""Buffers for requests and results: a bounded number of them, mapped once, used again and again.

The free ones are in a ring that C keeps without locks (native/page_pool.h), and who has a buffer is
checked there. What is here is waiting. Nobody waits while there is a free buffer; who finds none stands
in line, and a buffer that comes back goes to the first of the line.

    acquire, acquire_async ──► take ──► a buffer              the ring has one, nobody waits
                               take ──► line ──► a buffer     as soon as one is put back

Whoever puts a buffer back, or joins the line, serves it afterwards, until the ring or the line is
empty; so nobody waits while the ring has something. No lock is held: a buffer may be put back by a
finalizer, in the middle of anything.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from ._ffi import failure, ffi, lib
from ._windows import open_window
from .errors import (
    BufferBusy,
    ConfigError,
    InvalidBuffer,
    PoolClosed,
    PoolEmpty,
    SandhostError,
)
from .units import parse_bytes, parse_seconds

__all__ = ["Buffer", "PagePool", "PoolStats"]

_INDEX = lib.SH_LEASE_INDEX
_CLEAN = {"zero": 0, "poison": 1}


class PoolStats(NamedTuple):
    """What a pool holds, at one moment, and has done. Read without stopping anybody."""

    buffers: int
    buffer_bytes: int
    in_use: int
    free: int
    peak: int
    """Most that were in use at once."""
    resident_bytes: int
    """Written to and not given back to the operating system since, as the pool counts it: what was
    viewed, in whole OS pages once the buffer is back. Physical memory, but for what was swapped out."""
    acquired: int
    """Counter, as the next."""
    waits: int
    """Times that somebody stood in line."""
    refused: int
    """Times that somebody went without: `try_acquire` gave None, a timeout ended, a wait was cancelled."""
    trimmed_bytes: int
    """Given back to the operating system."""


class Buffer:
    """A buffer of a pool while it is somebody's. Released by the `with` block, or `pool.release`."""

    __slots__ = ("_lease", "_left", "_pool")

    def __init__(self, pool: PagePool, lease: int) -> None:
        self._pool = pool
        self._lease = lease
        self._left = False

    @property
    def size(self) -> int:
        """Bytes that it has."""
        return self._pool.buffer_bytes

    @property
    def released(self) -> bool:
        """Whether it has gone back to the pool."""
        return not self._lease

    def view(self, start: int = 0, length: int | None = None) -> memoryview:
        """Return a writable window without copying: the rest of the buffer, or `length` bytes of it.

        While it, or anything made from it, is alive, the buffer cannot be released. Bytes up to the
        highest that was viewed are written over on the way back, so view what you need.

        Raises:
            InvalidBuffer: it was released.
            ConfigError: not all of it lies in the buffer.
        """
        size = self._pool.buffer_bytes
        length = size - start if length is None else length
        if start < 0 or length < 0 or start + length > size:
            raise ConfigError(f"{length} bytes at {start} are not within a buffer of {size} bytes")
        if not self._pool.pin(self._lease, start + length):
            raise self._pool.refusal(self)
        first = self._pool.base + (self._lease & _INDEX) * size + start
        return open_window(first, length, self, self._view_ended)

    def _view_ended(self) -> None:
        self._pool.unpin(self._lease)
        if self._left:
            self._pool.take_back(self)

    def __enter__(self) -> Buffer:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if not self._lease:
            return
        try:
            self._pool.release(self)
        except BufferBusy:
            if error_type is None:
                raise
            # The error's own traceback may hold the view, and it says more than ours would.
            self._left = True
            self._pool.take_back(self)

    def __del__(self) -> None:
        if getattr(self, "_lease", 0) and self._pool.take_back(self):
            warnings.warn("a buffer of a sandhost.PagePool was never released", ResourceWarning)


_GONE = 0  # no lease is


class _Waiter:
    """Somebody in line, until it is settled: by a lease, or by going without."""

    __slots__ = ("_outcome", "wake")

    def __init__(self, wake: Callable[[], object]) -> None:
        self._outcome: dict[None, int] = {}
        self.wake = wake

    def settle(self, outcome: int) -> int:
        """Return what it was settled by: by this, unless by something before. One step, for threads."""
        return self._outcome.setdefault(None, outcome)


class PagePool:
    """A bounded number of buffers of one size, for the bytes of requests and results.

    A buffer is one user's at a time, and clean when somebody gets it: no byte of one request reaches
    another. Who asks when none is free waits. Close it, or use it in a `with` block.

    Args:
        size: bytes of a buffer (or "64 KiB"), rounded up to whole OS pages.
        count: how many there are, 1 to 1,048,576.
        clean: "zero": a buffer's bytes are zeros when it is acquired. "poison": they are 0xDB, so that
            a program that reads what was never written shows.
        idle: seconds without use after which the free buffers' pages go back to the operating system.

    Raises:
        ConfigError: a value cannot be meant.
        NativeError: address space for the buffers cannot be reserved.
    """

    def __init__(
        self,
        size: int | str = "64 KiB",
        count: int = 64,
        *,
        clean: str = "zero",
        idle: float | str = 10.0,
    ) -> None:
        if clean not in _CLEAN:
            raise ConfigError(f"clean is {clean!r}; choose one of {', '.join(_CLEAN)}")
        if not isinstance(count, int) or not 0 < count < 2**32:
            raise ConfigError(f"count is {count!r}; give 1 to 1,048,576")
        idle_ns = min(round(parse_seconds(idle) * 1e9), 2**63 - 1)
        native = lib.sh_pages_new(parse_bytes(size), count, _CLEAN[clean], idle_ns)
        if not native:
            raise failure()
        self.native = ffi.gc(native, lib.sh_pages_free)
        functions: dict[str, Any] = {}
        if lib.sh_python_pages(native, ffi.cast("void *", id(functions))):
            raise failure()
        self.take, self.put = functions["take"], functions["put"]
        self.pin, self.unpin = functions["pin"], functions["unpin"]
        self.base = lib.sh_pages_base(native)
        page = os.sysconf("SC_PAGE_SIZE")
        self.buffer_bytes = -(-parse_bytes(size) // page) * page
        """Bytes of each buffer: whole OS pages."""
        self.count = count
        """How many buffers there are."""
        self._line: deque[_Waiter] = deque()
        self._closed = False
        self._pid = os.getpid()

    # ---- acquire ----

    def try_acquire(self) -> Buffer | None:
        """Return a buffer, or None: none is free, or others wait for one.

        Raises:
            PoolClosed: the pool is closed.
        """
        lease = 0 if self._line else self.take()
        if lease:
            return Buffer(self, lease)
        self._check_open()
        lib.sh_pages_count(self.native, False)
        return None

    def acquire(self, timeout: float | str | None = None) -> Buffer:
        """Return a buffer, waiting for one in line for up to `timeout` seconds; None: for ever.

        Raises:
            PoolEmpty: none came in time (also a TimeoutError).
            PoolClosed: the pool is closed.
        """
        lease = 0 if self._line else self.take()
        if lease:
            return Buffer(self, lease)
        seconds = -1.0 if timeout is None else min(parse_seconds(timeout), threading.TIMEOUT_MAX)
        asleep = threading.Lock()
        asleep.acquire()
        waiter = self._join_line(asleep.release)
        try:
            asleep.acquire(timeout=seconds)
            lease = self._leave_line(waiter)
            if lease:
                return Buffer(self, lease)
        except BaseException:
            self._decline(waiter)
            raise
        lib.sh_pages_count(self.native, False)
        raise PoolEmpty(
            f"no buffer came back within {seconds:g} s, and all {self.count} are in use: "
            "release them sooner, or make the pool larger"
        )

    async def acquire_async(self) -> Buffer:
        """Return a buffer, waiting for one in line without keeping the event loop.

        For a timeout use the loop's own, for example `anyio.fail_after`.

        Raises:
            PoolClosed: the pool is closed.
        """
        lease = 0 if self._line else self.take()
        if lease:
            return Buffer(self, lease)
        import anyio

        from .aio.port import current_port

        port, awake = current_port(), anyio.Event()
        waiter = self._join_line(lambda: port.run_soon(awake.set))
        try:
            await awake.wait()
            return Buffer(self, self._leave_line(waiter))
        except BaseException:
            self._decline(waiter)
            raise

    def _join_line(self, wake: Callable[[], object]) -> _Waiter:
        self._check_open()
        lib.sh_pages_count(self.native, True)
        waiter = _Waiter(wake)
        self._line.append(waiter)
        self._serve()
        return waiter

    def _leave_line(self, waiter: _Waiter) -> int:
        """Return the lease that it was given; _GONE: it was not, and will not be."""
        lease = waiter.settle(_GONE)
        if lease == _GONE:
            try:
                self._line.remove(waiter)
            except ValueError:  # somebody has it in hand, and will find it gone
                pass
        return lease

    def _decline(self, waiter: _Waiter) -> None:
        """Go without; what was given meanwhile goes on to the next."""
        lib.sh_pages_count(self.native, False)
        lease = self._leave_line(waiter)
        if lease and not self.put(lease):
            self._serve()

    def _serve(self) -> None:
        """Give what the ring has to who waits, first to first."""
        while self._line:
            lease = self.take()
            if not lease:
                return
            try:
                waiter = self._line.popleft()
                while waiter.settle(lease) != lease:
                    waiter = self._line.popleft()
                waiter.wake()
            except (
                IndexError,
                RuntimeError,
            ):  # all have left; or an event loop ended before its tasks
                self.put(lease)

    # ---- release ----

    def release(self, buffer: Buffer) -> None:
        """Take a buffer back: it is written over, and goes to who waits, or into the ring.

        Raises:
            InvalidBuffer: it was released before, or belongs to another pool.
            BufferBusy: views of it are alive (also a BufferError).
        """
        if buffer._pool is not self:
            raise InvalidBuffer("the buffer belongs to another pool")
        status = self.put(buffer._lease)
        if status:
            if status == lib.SH_BUSY:
                raise BufferBusy("views of the buffer are alive; release them before the buffer")
            raise self.refusal(buffer)
        buffer._lease = 0
        if self._line:
            self._serve()

    def take_back(self, buffer: Buffer) -> bool:
        """Take back what nobody uses any more; return whether it was out. For `Buffer`."""
        if self.put(buffer._lease):
            return False
        buffer._lease = 0
        self._serve()
        return True

    def refusal(self, buffer: Buffer) -> SandhostError:
        """Return why C refused a buffer. For `Buffer`."""
        if os.getpid() != self._pid:
            return SandhostError("this process was forked from the one that has the buffer")
        if not buffer._lease:
            return InvalidBuffer("the buffer was released, and may be another's by now")
        return InvalidBuffer("the buffer is not on loan from this pool")

    # ---- the rest ----

    def trim(self) -> int:
        """Give the pages of the free buffers back to the operating system; return the bytes."""
        given = int(lib.sh_pages_trim(self.native))
        self._serve()  # a buffer that was being trimmed was not in the ring
        return given

    def stats(self) -> PoolStats:
        """Return what the pool holds and has done."""
        native = ffi.new("sh_pages_stats *")
        lib.sh_pages_get_stats(self.native, native)
        return PoolStats(
            buffers=native.buffers,
            buffer_bytes=self.buffer_bytes,
            in_use=native.in_use,
            free=native.buffers - native.in_use,
            peak=native.peak,
            resident_bytes=native.resident_bytes,
            acquired=native.acquired,
            waits=native.waits,
            refused=native.refused,
            trimmed_bytes=native.trimmed_bytes,
        )

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise SandhostError("this process was forked from the one that made the pool")
        if self._closed:
            raise PoolClosed("the pool is closed")

    def close(self) -> None:
        """Give all of it back to the operating system. Idempotent.

        Raises:
            BufferBusy: buffers are in use; nothing has changed.
        """
        if os.getpid() != self._pid:
            return  # a forked child has no buffers
        if lib.sh_pages_close(self.native):
            in_use = self.stats().in_use
            raise BufferBusy(f"{in_use} buffers are in use; release them before closing the pool")
        self._closed = True

    def __enter__(self) -> PagePool:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except BufferBusy:
            if error_type is None:
                raise
