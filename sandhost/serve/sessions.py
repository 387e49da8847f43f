"""Guests that stay between calls: a session has an id that nobody can guess, and ends when it is idle.

    id = await sessions.open("acme", spawn)              # spawn() returns a guest, or awaits one
    async with sessions.use(id, "acme") as guest:        # one call at a time, the others in order
        await guest.call_async("step")

    opening ──► idle ◄──► in use ──► closed
                 │ nobody for `idle_s`  ▲
                 └──────────────────────┘

A session of another tenant is as one that never was. No thread: it belongs to one event loop; calls may be
made in others.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import anyio

from ..errors import ConfigError, GuestBusy
from .bag import Bags, ResourceBag
from .problems import Conflict, Missing, TooMany, Unavailable

if TYPE_CHECKING:
    from ..guest import Guest

__all__ = ["SessionStats", "Sessions", "end_guest"]

_ID_BYTES = 16
_CLOSED_RETRY_S = 1.0
_LOOK_AGAIN_S = 0.001


async def end_guest(guest: Guest) -> None:
    """End a guest, and the call that a thread or a task may be making: for `bag.add(guest, end_guest)`.

    Without end, if a host function of it does not return: the bag has a time for it.
    """
    while True:
        try:
            await guest.aclose()
        except GuestBusy:
            guest.cancel()
            await asyncio.sleep(_LOOK_AGAIN_S)
        else:
            return


class SessionStats(NamedTuple):
    """Figures of this moment, and counters from `opened` on."""

    live: int
    in_use: int
    waiting: int
    """Calls that wait until another one of their session has ended."""
    opened: int
    idled: int
    """Closed since nobody used them."""
    failures: int
    """Of closing; the log has them."""


class _Session:
    __slots__ = ("bag", "closed", "guest", "lock", "used_s", "waiting")

    def __init__(self, bag: ResourceBag, guest: Guest, now_s: float) -> None:
        self.bag, self.guest, self.used_s = bag, guest, now_s
        self.lock = asyncio.Lock()  # first come, first served
        self.waiting = 0
        self.closed = False


class Sessions:
    """The sessions of a service.

    Args:
        idle_s: how long a session lives that nobody uses.
        most: how many there may be, and how many of one tenant (`most_of_tenant`, None: as many).
        wait_s: how long a call waits while another one is in the session.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        idle_s: float = 300.0,
        most: int = 1000,
        *,
        most_of_tenant: int | None = None,
        wait_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not idle_s > 0 or not wait_s >= 0 or most < 1:
            raise ConfigError(
                f"idle_s is more than 0, wait_s not less, most at least 1: {idle_s}, {wait_s}, {most}"
            )
        self._idle_s, self._most, self._wait_s, self._clock = idle_s, most, wait_s, clock
        self._most_of_tenant = most if most_of_tenant is None else most_of_tenant
        # By tenant first: who asks for another tenant's does not even look there.
        self._of: dict[str, dict[str, _Session]] = {}
        self._live = 0  # with those that are being opened
        self._opening: dict[str, int] = {}
        self._bags = Bags()
        self._opened = self._idled = 0
        self._draining = False

    def stats(self) -> SessionStats:
        """Return the figures. Also from other threads: of sessions that come and go meanwhile it may miss some."""
        sessions = [one for owned in list(self._of.values()) for one in list(owned.values())]
        return SessionStats(
            self._live,
            sum(one.lock.locked() for one in sessions),
            sum(one.waiting for one in sessions),
            self._opened,
            self._idled,
            self._bags.stats().failed,
        )

    def live_of(self, tenant: str) -> int:
        """Return how many a tenant has open."""
        return len(self._of.get(tenant, ()))

    async def open(self, tenant: str, factory: Callable[[], Guest | Awaitable[Guest]]) -> str:
        """Make a session of what `factory` returns or awaits, and return its id.

        Raises:
            TooMany: there are as many as there may be, in all or of this tenant.
            Unavailable: the service is stopping.
            Exception: what the factory raised.
        """
        self._check_room(tenant)
        self._live += 1
        self._opening[tenant] = self._opening.get(tenant, 0) + 1
        bag = self._bags.new()
        try:
            made = factory()
            guest = await made if inspect.isawaitable(made) else made
            bag.add(guest, end_guest)
            if self._draining:
                raise Unavailable("the service is stopping")
        except BaseException as error:
            self._live -= 1
            await bag.aclose(error)
            raise
        finally:
            self._opening[tenant] -= 1
            if not self._opening[tenant]:
                del self._opening[tenant]
        name = secrets.token_hex(_ID_BYTES)
        self._of.setdefault(tenant, {})[name] = _Session(bag, guest, self._clock())
        self._opened += 1
        return name

    def _check_room(self, tenant: str) -> None:
        if self._draining:
            raise Unavailable("the service is stopping")
        own = len(self._of.get(tenant, ())) + self._opening.get(tenant, 0)
        if own >= self._most_of_tenant:
            raise TooMany(f"there are {own} sessions, and there may be no more: close some")
        if self._live >= self._most:
            raise TooMany("there is no room for another session", retry_after_s=_CLOSED_RETRY_S)

    @asynccontextmanager
    async def use(self, name: str, tenant: str) -> AsyncIterator[Guest]:
        """Have a session's guest within the block, alone.

        Raises:
            Missing: there is no such session, or not any more, or it is another tenant's.
            Conflict: another call was in it for all of `wait_s`.
        """
        session = self._find(name, tenant)
        session.waiting += 1
        try:
            # Not asyncio.wait_for, which may lose a cancellation before Python 3.12.
            with anyio.move_on_after(self._wait_s) as waited:
                await session.lock.acquire()
        finally:
            session.waiting -= 1
        if waited.cancelled_caught:
            raise Conflict(
                f"another call has been in the session for {self._wait_s:g} s",
                retry_after_s=self._wait_s,
            )
        try:
            if session.closed:  # by whoever was in it, or while this waited
                raise Missing("there is no such session")
            yield session.guest
        finally:
            session.used_s = self._clock()
            session.lock.release()
            if session.guest.closed:  # it was cancelled, or evicted
                await self._end(name, tenant, session)

    async def close(self, name: str, tenant: str) -> None:
        """End a session: at once, also under a call, which then fails.

        Raises:
            Missing: there is no such session, or not any more, or it is another tenant's.
        """
        await self._end(name, tenant, self._find(name, tenant))

    async def close_all(self, tenant: str, which: Callable[[Guest], bool]) -> None:
        """End those of a tenant whose guests `which` names."""
        for name, session in list(self._of.get(tenant, {}).items()):
            if which(session.guest):
                await self._end(name, tenant, session)

    def _find(self, name: str, tenant: str) -> _Session:
        session = self._of.get(tenant, {}).get(name)
        if session is None:
            raise Missing("there is no such session")
        return session

    async def _end(self, name: str, tenant: str, session: _Session) -> None:
        if session.closed:
            return
        session.closed = True
        owned = self._of[tenant]
        del owned[name]
        if not owned:
            del self._of[tenant]
        try:
            await session.bag.aclose()
        finally:
            self._live -= 1

    async def sweep(self) -> int:
        """Close those that nobody has used for `idle_s`; return how many."""
        oldest_s = self._clock() - self._idle_s
        idle = [
            (name, tenant, session)
            for tenant, owned in self._of.items()
            for name, session in owned.items()
            if session.used_s <= oldest_s and not session.lock.locked() and not session.waiting
        ]
        for name, tenant, session in idle:
            # Closing the one before took a moment, in which somebody may have come.
            if session.used_s <= oldest_s and not session.lock.locked() and not session.waiting:
                self._idled += 1
                await self._end(name, tenant, session)
        return len(idle)

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Sweep again and again: the body of one task of the service. Cancel it at the end."""
        while True:
            await sleep(max(0.05, self._idle_s / 10))
            await self.sweep()

    async def drain(self) -> None:
        """Open no more, and close all, those in use as well. Waits for those that are being opened.

        Give the calls their time before.
        """
        self._draining = True
        with anyio.CancelScope(shield=True):
            for tenant, owned in list(self._of.items()):
                for name, session in list(owned.items()):
                    await self._end(name, tenant, session)
            await self._bags.idle()
