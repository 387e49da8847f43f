"""A guest: one running instance of a plugin, in memory regions of its own."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from ._closing import Closing
from ._ffi import failure, ffi, lib
from .calls import Invoker
from .errors import ConfigError, GuestClosed, SandhostError
from .hostcalls import bindings, pending
from .memory import GuestMemory
from .regions import Reclaim, new_figures, reclaim_from

if TYPE_CHECKING:
    from .aio.call import Call, OnCancel
    from .plugin import Plugin
    from .snapshot import Snapshot

__all__ = ["BoundFunction", "Guest", "GuestStats"]

_STDOUT, _STDERR = 1, 2
_NO_OUTPUT = ((b"", 0), (b"", 0))
_LARGE_BYTES = 32 << 20
"""A close gives back 10 GiB a second. Below 64 MiB another thread does it, unless it has as much to do already."""

_mapping = threading.RLock()
"""Two threads that map a guest's memories at once would pin them twice, and unpin them once."""


class GuestStats(NamedTuple):
    """What one guest has done and holds."""

    calls: int
    """Calls from Python, finished ones."""
    host_calls: int
    """Calls of the guest into host functions."""
    fuel_used: int
    """Over all calls; 0 without fuel. Of a call that was ended (deadline, cancellation, fault) without
    what its innermost function has used since it last called another."""
    memory_bytes: int
    """Committed now, over all its memories."""
    memory_peak_bytes: int
    age_ns: int
    running: bool
    """Whether a thread is in a call."""


class BoundFunction(Protocol):
    """An exported function of one guest, as `Guest.func` returns it."""

    def __call__(self, *arguments: Any) -> Any:
        """Call it; see `Guest.call`."""

    async def call_async(self, *arguments: Any, on_cancel: OnCancel = "close") -> Any:
        """Call it from a task; see `Guest.call_async`."""


class Guest(Closing):
    """One running instance of a plugin. Made by `plugin.spawn()`, ended by `close()` or `with`.

    A guest belongs to one thread at a time: whoever calls it while another thread is in it gets
    `GuestBusy`. After its end every use raises `GuestClosed`.
    """

    __slots__ = (
        "__weakref__",
        "_id",
        "_invokers",
        "_memories",
        "_outputs",
        "_reclaim",
        "innermost_call",
        "plugin",
    )

    plugin: Plugin
    """What it was spawned from."""

    def __init__(self, plugin: Plugin, guest_id: int, invokers: dict[str, Invoker]) -> None:
        self.plugin = plugin
        self._id = guest_id  # 0 once closed
        self._invokers = invokers
        self._memories: dict[int, GuestMemory] | None = None
        self._outputs: tuple[tuple[bytes, int], ...] | None = None  # kept at close, with WASI
        self._reclaim: Reclaim | None = None
        self.innermost_call: Call | None = None
        """Of those that can wait: the one on its way. Not for users."""

    def adopt(self, guest_id: int) -> None:
        """Take the id that a callback has seen before `spawn` returned it. Not for users."""
        self._id = guest_id

    def __repr__(self) -> str:
        state = "closed" if self._reclaim is not None else f"id {self._id:#x}"
        return f"<sandhost.Guest of {self.plugin.name!r}, {state}>"

    @property
    def id(self) -> int:
        """What C and `HandleInfo.guest` call it; 0 once closed."""
        return self._id

    # ---- calls ----

    def call(self, name: str, *arguments: Any) -> Any:
        """Call an exported function.

        Integers, floats and bytes (v128) go in and come out; several results are a tuple, none is
        None. An i32 or i64 may be given as the unsigned number of the same bits.

        Raises:
            GuestTrap: it trapped, with `.code` and a backtrace in `.frames`.
            GuestExit: it exited through WASI (`_start` that exits with 0 returns None).
            LimitExceeded: it reached a limit; see the subclasses.
            GuestCancelled: another thread called `cancel()`.
            GuestClosed, GuestBusy: it has ended; another thread is in it.
            TypeError, OverflowError: the arguments do not fit the function.
            ConfigError: there is no such function.
            Exception: whatever a host function raised, as it was raised.
        """
        return self._invokers[name](self, *arguments)

    def func(self, name: str) -> BoundFunction:
        """Return an exported function bound to this guest: the fast path for many calls.

        It has a method `call_async` as well.

        Raises:
            ConfigError: there is no such function.
        """
        bound = functools.partial(self._invokers[name], self)
        bound.call_async = functools.partial(self.call_async, name)  # type: ignore[attr-defined]
        return cast("BoundFunction", bound)

    async def call_async(self, name: str, *arguments: Any, on_cancel: OnCancel = "close") -> Any:
        """Call an exported function from a task of an event loop, asyncio's or trio's.

        The guest runs on a stack of its own and waits without a thread: for host functions that are
        coroutine functions, for streams, for time. All host functions run in the calling task. A
        call that computes goes to one of the host's worker threads, unless its function has been
        short so far (some microseconds: then it runs here at once).

        From inside an asynchronous host function of its own, the guest can be called again. Guests
        that call guests are bounded: 32 deep, and never in a circle.

        When the task is cancelled, the call ends at the guest's next look at its deadline.

        Args:
            on_cancel: "close": a guest whose call was cancelled is closed. "keep": it stays open, if
                the call was waiting for a host function then; one that was in the middle of a
                computation is closed all the same. Its memory is as the call left it.

        Raises:
            Exception: as `call`; LimitExceeded and GuestBusy for calls too deep or in a circle.
        """
        from .aio.call import call  # imports anyio, some 40 ms, which others do without

        return await call(self, self.plugin.cells(name), arguments, on_cancel)

    def cancel(self) -> bool:
        """End the call that another thread is in; it raises `GuestCancelled` there.

        Returns at once, with whether there was a call. A guest inside a host function is stopped
        when that returns; one whose call waits for an asynchronous one, at once.
        """
        found = bool(lib.sh_cancel(self._id))
        waiting = self.innermost_call
        if waiting is not None:
            waiting.interrupt()
        return found

    # ---- memory ----

    @property
    def memory(self) -> GuestMemory:
        """The guest's first linear memory.

        Raises:
            ConfigError: it has none.
            GuestClosed: it has ended.
        """
        return self.memory_at(0)

    def memory_at(self, index: int) -> GuestMemory:
        """Return a linear memory by its index in the module."""
        memories = self._memories
        if memories is None:
            memories = self._map_memories()
        memory = memories.get(index)
        if memory is None:
            raise ConfigError(f"the guest has {len(memories)} memories; there is no memory {index}")
        return memory

    def _map_memories(self) -> dict[int, GuestMemory]:
        if self._reclaim is not None:
            raise GuestClosed("the guest has ended, and its memory with it")
        with _mapping:
            if self._memories is None:
                self.plugin.host_guests.add(self)
                self._memories = {
                    index: GuestMemory(self, self._id, index, memory.is64)
                    for index, memory in enumerate(self.plugin.info.memories)
                }
            return self._memories

    # ---- WASI output ----

    @property
    def stdout(self) -> bytes:
        """What the guest wrote to standard output, up to `Wasi.output_limit`; also after its end."""
        return self._output(_STDOUT)[0]

    @property
    def stderr(self) -> bytes:
        """What the guest wrote to standard error, up to `Wasi.output_limit`; also after its end."""
        return self._output(_STDERR)[0]

    @property
    def output_dropped(self) -> int:
        """Bytes of output beyond the limit, both streams together."""
        return self._output(_STDOUT)[1] + self._output(_STDERR)[1]

    def _output(self, stream: int) -> tuple[bytes, int]:
        if self._outputs is not None:
            return self._outputs[stream - 1]
        if not self.plugin.uses_wasi:
            return b"", 0
        length, dropped = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        data = ffi.new("uint8_t[]", 0)
        while True:
            if lib.sh_output(self._id, stream, data, len(data), length, dropped):
                raise failure()
            if length[0] <= len(data):
                return bytes(ffi.buffer(data, length[0])), dropped[0]
            data = ffi.new("uint8_t[]", length[0])

    # ---- snapshots ----

    def snapshot(self, *, reseed: str | None = None) -> Snapshot:
        """Capture memory, globals and tables, for others to go on from. The guest itself goes on too.

        Args:
            reseed: an exported function that every fork calls before anyone else does, with random
                bits if it takes an i32 or i64. See `Snapshot` for what forks share.

        Raises:
            GuestClosed, GuestBusy: it has ended; a thread is in a call of it.
            ConfigError: it holds what cannot be captured, which the message names; or there is no
                function `reseed`.
        """
        return self.plugin.snapshot_of(self._id, reseed)

    # ---- the end ----

    @property
    def closed(self) -> bool:
        """Whether the guest has ended."""
        return self._reclaim is not None

    def stats(self) -> GuestStats:
        """Return what the guest has done and holds.

        Raises:
            GuestClosed: it has ended.
        """
        native = ffi.new("sh_guest_stats *")
        if lib.sh_guest_get_stats(self._id, native):
            raise failure()
        return GuestStats(
            native.calls,
            native.host_calls,
            native.fuel_used,
            native.committed_bytes,
            native.peak_bytes,
            native.age_ns,
            bool(native.running),
        )

    def close(self) -> Reclaim:
        """End the guest and give its memory back, as the host's reclaim policy says. Idempotent.

        In the child of a fork, which has no guests, it does nothing.

        Raises:
            GuestBusy: a thread is in a call, or views of its memory are alive. Nothing has changed.
        """
        if self._reclaim is not None:
            return self._reclaim
        if self._memories is not None:
            self._unmap_memories(self._memories)
        if self.plugin.uses_wasi and self._outputs is None:
            try:
                if lib.sh_output_total(self._id) == 0:
                    self._outputs = _NO_OUTPUT
                else:
                    self._outputs = (self._output(_STDOUT), self._output(_STDERR))
            except GuestClosed:
                pass  # the host ended it
            except SandhostError:
                if not lib.sh_leaving():
                    raise
        figures = new_figures()
        status = lib.sh_end(self._id, figures)
        if status and status not in (lib.SH_CLOSED, lib.SH_FORKED):  # SH_CLOSED: the host ended it
            self._outputs = None
            raise failure()
        if bindings:
            bindings.pop(self._id, None)
        if pending:  # only of a call whose caller ran out of stack before it could take it
            pending.pop(self._id, None)
        self._id = 0
        reclaim = self._reclaim = reclaim_from(figures)
        return reclaim

    async def aclose(self) -> Reclaim:
        """End the call that another task has made, if there is one, then the guest; see `close`.

        The event loop does not wait while the kernel takes much memory back.

        Raises:
            GuestBusy: views of its memory are alive, or the guest is inside a host function that
                does not end.
        """
        if self.innermost_call is not None:
            from .aio.call import end_calls

            await end_calls(self)
        if self.is_large:
            from anyio.to_thread import run_sync

            return await run_sync(self.close)
        return self.close()

    @property
    def is_large(self) -> bool:
        """Whether closing it may take more than a few ms. Not for users."""
        try:
            return self.stats().memory_bytes >= _LARGE_BYTES
        except SandhostError:  # it has ended
            return False

    def abandon(self) -> None:
        """Let go of everything, because the spawn failed after the host was called. Not for users."""
        for memory in (self._memories or {}).values():
            memory.abandon()
        self._memories = None
        self._id = 0
        self.close()

    def _unmap_memories(self, memories: dict[int, GuestMemory]) -> None:
        if lib.sh_guest_running(self._id):
            return  # close will say why not, and the memories stay
        for memory in memories.values():
            memory.release()
        self._memories = None

    def __del__(self, leaving: Callable[[], int] = lib.sh_leaving) -> None:
        if self._reclaim is None and self._id and not leaving():
            try:
                warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self)
            finally:  # the warning may be an error
                self.close()
