"""What a request holds, given back at its end: last in, first out, once, whatever ended it.

    async with ResourceBag() as bag:
        guest = bag.add(plugin.spawn())               # its aclose, close or release, whichever it has
        bag.add(handle, host.handles.unpin)           # or a function of it, with or without async
        buffer = await bag.enter(await pool.acquire_async())     # or a context manager

                 aclose                 nothing left
    open ─────────────────► closing ─────────────────► closed
    add: kept               add: released next         add: released at once, and BagClosed

A release that fails is counted, logged and kept in `failures`; the others still run, and the error that
ended the request stays the one that its caller sees. A release that awaits runs in a task of its own: no
cancellation of the request reaches it, but it has a time, and is cancelled when that is over. One that
does not end even then is left behind, and counted. A release without async runs at once, where the bag is
closed, and nobody can bound it.

Nothing here knows guests, gRPC or ASGI: see bag_grpc.py and bag_asgi.py for these.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar
from enum import Enum
from types import TracebackType
from typing import Any, NamedTuple, TypeVar, cast

import anyio

from .._log import get_logger
from ..errors import ConfigError, SandhostError, printable

__all__ = ["BagClosed", "BagStats", "Bags", "Failure", "ResourceBag", "current_bag"]

_Resource = TypeVar("_Resource")

_ASYNC_NAMES = ("aclose", "close", "release")
_SYNC_NAMES = ("close", "release", "aclose")

_LAST_WAIT_S = 0.5
"""For a release that was cancelled since its time was over. Arbitrary."""

_current: ContextVar[ResourceBag | None] = ContextVar("sandhost.bag", default=None)

_running: set[asyncio.Future[Any]] = set()
"""Tasks that nobody waits for; the loop itself holds them weakly."""


class BagClosed(SandhostError):
    """A bag was given something after its end. It was released."""


class Failure(NamedTuple):
    """A release that did not go well."""

    what: str
    """The resource's type, and what was called."""
    error: BaseException


class BagStats(NamedTuple):
    """What became of an application's bags. Counters, but for the first."""

    live: int
    """Bags that are not closed yet."""
    opened: int
    added: int
    released: int
    """Releases that have ended, well or not; `added` less this are still held."""
    failed: int
    """Of these, the ones that raised or timed out."""
    timed_out: int
    """Cancelled, since their time was over."""
    abandoned: int
    """Of these, the ones that did not end even so."""


class Bags:
    """Makes the bags of an application's requests, and counts. Safe for threads.

    Args:
        timeout_s: the most that one asynchronous release may take.
    """

    def __init__(self, timeout_s: float = 5.0) -> None:
        if not timeout_s > 0:
            raise ConfigError(f"a release's time is more than 0 seconds, not {timeout_s!r}")
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(BagStats._fields, 0)

    def new(self) -> ResourceBag:
        """Return a bag for one request."""
        return ResourceBag(self)

    def stats(self) -> BagStats:
        """Return the figures of this moment."""
        with self._lock:
            return BagStats(**self._counts)

    def count(self, **more: int) -> None:
        """Add to the figures. Not for users."""
        with self._lock:
            for name, number in more.items():
                self._counts[name] += number

    async def idle(self) -> None:
        """Wait until every bag is closed: then a host can be, whose guests are in them."""
        while self.stats().live:
            await asyncio.sleep(0.005)  # once in a service's life, at its end


class _Entry(NamedTuple):
    resource: object
    release: Callable[[], object] | None
    """None: a method of the resource."""


class _State(Enum):
    OPEN, CLOSING, CLOSED = range(3)


class ResourceBag:
    """What one request holds. It may be filled from any thread, and belongs to one event loop.

    `async with` it, or `with` where there is no event loop; there a release that would have to be
    awaited fails. Bags nest: within the block, `current_bag()` is the innermost one.
    """

    def __init__(self, bags: Bags | None = None) -> None:
        self._bags = bags or Bags()
        self._lock = threading.Lock()
        self._entries: list[_Entry] = []
        self._state = _State.OPEN
        self._loop: asyncio.AbstractEventLoop | None = None
        self._outer: ResourceBag | None = None
        self._reason: BaseException | None = None  # what ended the request
        self._interrupt: BaseException | None = None  # a release's KeyboardInterrupt or SystemExit
        self.failures: list[Failure] = []
        """Releases that did not go well, in their order."""
        self._bags.count(live=1, opened=1)

    def __len__(self) -> int:
        return len(self._entries)

    def __bool__(self) -> bool:
        return True

    @property
    def closed(self) -> bool:
        """Whether all that it held was released."""
        return self._state is _State.CLOSED

    # ---- in ----

    def add(
        self, resource: _Resource, release: Callable[[_Resource], object] | None = None
    ) -> _Resource:
        """Put something in, and return it.

        Args:
            release: called with it at the end; what it returns is awaited if it can be. None: its
                method aclose, close or release, the first that it has.

        Raises:
            ConfigError: there is no `release`, and it has none of these methods.
            BagClosed: the request is over; it was released.
        """
        if release is not None:
            wanted = release  # for mypy: the lambda would see an optional
            self._push(_Entry(resource, lambda: wanted(resource)))
        elif any(callable(getattr(resource, name, None)) for name in _ASYNC_NAMES):
            self._push(_Entry(resource, None))
        else:
            raise ConfigError(
                f"a {type(resource).__name__} has no aclose, close or release: say how it is released"
            )
        return resource

    async def enter(
        self,
        manager: AbstractAsyncContextManager[_Resource] | AbstractContextManager[_Resource],
    ) -> _Resource:
        """Enter a context manager, to be left at the end, and return what it gives.

        At the end it sees the error that ended the request, as in a `with` block, but cannot suppress
        it. It is left in another task: one that is bound to its task (a cancel scope, a task group)
        needs a block of its own.

        Raises:
            BagClosed: the request is over; it was left.
            BaseException: what entering it raised.
        """
        value: _Resource
        leave: Callable[..., object]
        if isinstance(manager, AbstractAsyncContextManager):
            value, leave = await manager.__aenter__(), manager.__aexit__
        else:
            value, leave = manager.__enter__(), manager.__exit__
        self._push(_Entry(manager, lambda: leave(*_exc_info(self._reason))))
        return value

    def _push(self, entry: _Entry) -> None:
        self._bags.count(added=1)
        with self._lock:
            if self._state is not _State.CLOSED:
                self._entries.append(entry)
                return
        outcome = self._begin(entry, _ASYNC_NAMES)
        if outcome is None:
            pass
        elif self._loop is None or self._loop.is_closed():
            self._refuse(entry, outcome)
        else:
            waiting = self._wait_for(entry, outcome)
            self._loop.call_soon_threadsafe(_leave_running, waiting)
        raise BagClosed(f"the request is over; the {type(entry.resource).__name__} was released")

    # ---- out ----

    async def aclose(self, reason: BaseException | None = None) -> None:
        """Release all that is in it, last in, first out. Idempotent; a second caller does not wait.

        Raises no error of a release. A cancellation that comes meanwhile is raised at the end.

        Args:
            reason: the error that ended the request, for context managers.
        """
        if not self._close(reason):
            return
        self._loop = asyncio.get_running_loop()
        cancelled: asyncio.CancelledError | None = None
        while (entry := self._take()) is not None:
            outcome = self._begin(entry, _ASYNC_NAMES)
            if outcome is not None:
                cancelled = await self._wait_for(entry, outcome) or cancelled
        self._raise_interrupt()
        if cancelled is not None:
            try:
                raise cancelled
            finally:
                del cancelled  # its traceback has this frame

    def close(self, reason: BaseException | None = None) -> None:
        """The same, without an event loop: what would have to be awaited fails."""
        if not self._close(reason):
            return
        while (entry := self._take()) is not None:
            outcome = self._begin(entry, _SYNC_NAMES)
            if outcome is not None:
                self._refuse(entry, outcome)
        self._raise_interrupt()

    def _close(self, reason: BaseException | None) -> bool:
        with self._lock:
            if self._state is not _State.OPEN:
                return False
            self._state = _State.CLOSING
        self._reason = reason
        return True

    def _take(self) -> _Entry | None:
        with self._lock:
            if self._entries:
                return self._entries.pop()
            self._state = _State.CLOSED  # under the lock: nothing can be added in between
        self._reason = None  # its traceback holds the request's variables
        self._bags.count(live=-1)
        return None

    def _begin(self, entry: _Entry, names: tuple[str, ...]) -> Awaitable[object] | None:
        """Call a release. Returns what is to be awaited, None if it has ended."""
        release = entry.release
        try:
            if release is None:
                release = next(
                    method
                    for name in names
                    if callable(method := getattr(entry.resource, name, None))
                )
            outcome = release()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the others must run
            self._failed(entry, error)
            return None
        if inspect.isawaitable(outcome):
            return cast("Awaitable[object]", outcome)
        self._bags.count(released=1)
        return None

    async def _wait_for(
        self, entry: _Entry, outcome: Awaitable[object]
    ) -> asyncio.CancelledError | None:
        """Wait for a release, not without end. Returns the cancellation that came meanwhile."""
        task = asyncio.ensure_future(_awaited(outcome))
        cancelled = None
        # anyio would cancel again and again, at each turn of the loop.
        with anyio.CancelScope(shield=True):
            cancelled = await _settled(task, self._bags.timeout_s)
            if not task.done():
                task.cancel()
                cancelled = await _settled(task, _LAST_WAIT_S) or cancelled
                self._bags.count(timed_out=1, abandoned=not task.done())
                _running.add(task)
                task.add_done_callback(_forget)
                after = f"took longer than {self._bags.timeout_s:g} s"
                self._failed(entry, TimeoutError(f"the release {after}"))
                return cancelled
        if task.cancelled():
            self._failed(entry, asyncio.CancelledError("the release cancelled itself"))
        elif (error := task.exception()) is not None:
            self._failed(entry, error)
        else:
            self._bags.count(released=1)
        return cancelled

    def _refuse(self, entry: _Entry, outcome: Awaitable[object]) -> None:
        if inspect.iscoroutine(outcome):
            outcome.close()
        self._failed(entry, ConfigError("the release has to be awaited: close the bag with aclose"))

    def _failed(self, entry: _Entry, error: BaseException) -> None:
        self._bags.count(released=1, failed=1)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._interrupt = error
        what = type(entry.resource).__name__
        self.failures.append(Failure(what, error))
        get_logger("sandhost.bag").warning(
            "a release failed", resource=what, error=printable(repr(error))
        )

    def _raise_interrupt(self) -> None:
        error, self._interrupt = self._interrupt, None
        if error is not None:
            raise error

    def _close_beside(self, reason: BaseException) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self.close(reason)
        else:
            _leave_running(self.aclose(reason))

    # ---- blocks ----

    def _become_current(self) -> None:
        self._outer = _current.get()
        _current.set(self)

    def _be_current_no_more(self) -> None:
        # No token: a generator may be closed in another context than it began in.
        if _current.get() is self:
            _current.set(self._outer)
        self._outer = None

    async def __aenter__(self) -> ResourceBag:
        self._become_current()
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._be_current_no_more()
        if isinstance(error, GeneratorExit):
            # A coroutine that is closed may not await any more. (A generator might: nobody can tell.)
            self._close_beside(error)
            return
        try:
            await self.aclose(error)
        except asyncio.CancelledError:
            if error is None:
                raise
            if not isinstance(error, asyncio.CancelledError):
                _cancel_again()  # the first error stays, as in asyncio.TaskGroup

    def __enter__(self) -> ResourceBag:
        self._become_current()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._be_current_no_more()
        self.close(error)


def current_bag() -> ResourceBag:
    """Return the bag of the request that is being served here.

    Raises:
        ConfigError: there is none: no interceptor, no middleware, no block of a bag.
    """
    bag = _current.get()
    if bag is None:
        raise ConfigError(
            "no bag here: this is not within a request, or nothing gives requests bags"
        )
    return bag


async def _awaited(outcome: Awaitable[object]) -> None:
    await outcome


async def _settled(task: asyncio.Future[Any], timeout_s: float) -> asyncio.CancelledError | None:
    """Wait until a task has ended, for so long. Returns the cancellation that came meanwhile."""
    now = asyncio.get_running_loop().time
    until_s = now() + timeout_s
    cancelled = None
    while not task.done() and (left_s := until_s - now()) > 0:
        try:
            await asyncio.wait({task}, timeout=left_s)
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


def _leave_running(work: Any) -> None:
    task = asyncio.ensure_future(work)
    _running.add(task)
    task.add_done_callback(_forget)


def _forget(task: asyncio.Future[Any]) -> None:
    _running.discard(task)
    if not task.cancelled():
        task.exception()  # it was counted as a failure already


def _cancel_again() -> None:
    task = asyncio.current_task()
    assert task is not None
    if hasattr(task, "uncancel"):  # Python 3.11
        task.uncancel()
    task.cancel()


def _exc_info(
    error: BaseException | None,
) -> tuple[type[BaseException] | None, BaseException | None, TracebackType | None]:
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)
