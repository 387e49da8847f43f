"""One call that can wait, driven by the task that made it.

C runs the guest and says how far it came: it has ended, it is with the workers, it sleeps, or it waits
for a host function, which then runs here, in the caller's own task: with its context, its timeouts and
its cancellation. So what a host function awaits is what the call awaits, and nothing is left behind
when the task is cancelled.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

import anyio

from .._ffi import ffi, lib, take_error
from ..calls import Cells
from ..errors import GuestBusy, LimitExceeded, SandhostError
from ..hostcalls import awaited, pending
from .port import Port, current_port

if TYPE_CHECKING:
    from ..guest import Guest

__all__ = ["Call", "OnCancel", "call"]

OnCancel = Literal["close", "keep"]

_DEEPEST = 32
"""Calls of guests within host functions of guests. Each holds a stack; arbitrary."""

_NO_DEADLINE = 2**64 - 1

_serving: ContextVar[tuple[Call, ...]] = ContextVar("sandhost.serving", default=())
"""The calls whose host functions run in this context, outermost first."""


class Call:
    """A call on its way. The guest's innermost one is `guest.innermost_call`."""

    __slots__ = (
        "_cells",
        "_deadline",
        "_guest_id",
        "_scope",
        "_stopped",
        "guest",
        "level",
        "outer",
        "port",
        "waited",
    )

    def __init__(self, guest: Guest, cells: Any, port: Port, outer: Call | None) -> None:
        self.guest = guest
        self._guest_id = guest._id
        self._cells = cells
        self.port = port
        self.outer = outer
        self.level: int = 1 if outer is None else outer.level + 1
        self._scope: anyio.CancelScope | None = None
        self._stopped = False
        self._deadline: float | None = None  # of the event loop's clock; None: not asked yet
        self.waited = False
        """It was cancelled while it waited for a host function."""

    def interrupt(self) -> None:
        """End the wait for a host function; the guest is marked as cancelled. From any thread."""
        self.port.run_soon(self._interrupt)

    def _interrupt(self) -> None:
        self._stopped = True
        if self._scope is not None:
            self._scope.cancel()

    async def drive(self, step: int) -> bool:
        """Go on until the call has ended. Returns whether it is done, else failed.

        Raises:
            BaseException: what ended the task's wait: its cancellation above all. The call has
                ended then too.
        """
        ended = False
        try:
            while step not in (lib.SH_STEP_DONE, lib.SH_STEP_FAILED):
                if step == lib.SH_STEP_AWAY:
                    await self.port.wait_for(self._guest_id)
                    step = self._go_on()
                elif step == lib.SH_STEP_YIELD:
                    await anyio.lowlevel.checkpoint()
                    step = self._go_on()
                elif step == lib.SH_STEP_SLEEP:
                    step = await self._sleep()
                else:
                    step = await self._answer(awaited.pop(self._guest_id))
            ended = True
            return bool(step == lib.SH_STEP_DONE)
        except anyio.get_cancelled_exc_class():
            self.waited = step == lib.SH_STEP_AWAIT
            with anyio.CancelScope(shield=True):
                await self._end()
            ended = True
            raise
        finally:
            if not ended:  # the coroutine is closed, or the interpreter is interrupted
                lib.sh_fiber_abandon(self._guest_id)
            self.port.forget(self._guest_id)

    def _go_on(self) -> int:
        return int(lib.sh_fiber_go_on(self._guest_id, self.level, self._cells))

    def _stop(self, why: int) -> int:
        return int(lib.sh_fiber_stop(self._guest_id, self.level, why, self._cells))

    async def _end(self) -> None:
        """End the call, whose outcome nobody wants."""
        step = self._stop(lib.SH_CANCELLED)
        while step == lib.SH_STEP_AWAY:
            try:
                await self.port.wait_for(self._guest_id)
            except anyio.get_cancelled_exc_class():
                pass  # once more: no shield holds against asyncio's own Task.cancel
            step = self._stop(lib.SH_CANCELLED)
        if step == lib.SH_STEP_FAILED:
            take_error()
        pending.pop(self._guest_id, None)

    def _times(self) -> float:
        """Return how long the guest wants to sleep, in seconds; learn the deadline."""
        pause, left = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        if lib.sh_fiber_times(self._guest_id, pause, left):
            take_error()  # the host ended it; the next step says so
            return 0.0
        if self._deadline is None:
            endless = left[0] == _NO_DEADLINE
            self._deadline = math.inf if endless else anyio.current_time() + left[0] / 1e9
        return float(pause[0] / 1e9)

    async def _sleep(self) -> int:
        pause_s = self._times()
        with self._new_scope():
            await anyio.sleep(pause_s)
        self._scope = None
        return self._go_on()

    def _new_scope(self) -> anyio.CancelScope:
        """Return what ends a wait at the deadline, or when somebody cancels the guest."""
        if self._deadline is None:
            self._times()
        assert self._deadline is not None
        scope = self._scope = anyio.CancelScope(deadline=self._deadline)
        if self._stopped:
            scope.cancel()
        return scope

    async def _answer(self, awaitable: Awaitable[Any]) -> int:
        """Run what the guest waits for, and hand it over."""
        token = _serving.set((*_serving.get(), self))
        try:
            with self._new_scope() as scope:
                answer = await awaitable
        except anyio.get_cancelled_exc_class():
            raise
        except Exception as error:  # noqa: BLE001 - it goes on in call_async
            pending[self._guest_id] = error
            return self._stop(lib.SH_HOST_ERROR)
        finally:
            self._scope = None
            _serving.reset(token)
        if scope.cancelled_caught:
            return self._stop(lib.SH_CANCELLED if self._stopped else lib.SH_DEADLINE)
        return int(
            lib.sh_fiber_answer(
                self._guest_id, self.level, ffi.cast("void *", id(answer)), self._cells
            )
        )


def _outer_call(guest: Guest) -> Call | None:
    """Return the call of the guest whose host function makes this one.

    Raises:
        GuestBusy: a call of the guest is on its way, and this is not its host function's.
        LimitExceeded: guests call guests too deep.
    """
    chain = _serving.get()
    innermost = guest.innermost_call
    if innermost is None:
        if len(chain) >= _DEEPEST:
            raise LimitExceeded(
                f"guests call guests {len(chain)} deep through host functions; the limit is "
                f"{_DEEPEST}: {_path(chain, guest)}"
            )
        return None
    if chain and chain[-1] is innermost and len(chain) < _DEEPEST:
        return innermost
    if any(call.guest is guest for call in chain):
        raise GuestBusy(f"guests call each other in a circle: {_path(chain, guest)}")
    raise GuestBusy("another task's call of the guest is on its way")


def _path(chain: tuple[Call, ...], guest: Guest) -> str:
    names = [call.guest.plugin.name for call in chain] + [guest.plugin.name]
    shown = names if len(names) <= 8 else [*names[:4], "…", *names[-3:]]
    return " → ".join(f"{name:.40}" for name in shown)


async def call(guest: Guest, cells: Cells, arguments: tuple[Any, ...], on_cancel: OnCancel) -> Any:
    """Call a function of a guest from a task; see `Guest.call_async`."""
    outer = _outer_call(guest)
    packed = cells.pack(arguments)
    port = current_port()
    one = Call(guest, packed, port, outer)
    step = lib.sh_fiber_begin(guest._id, one.level, cells.index, packed, port.native)
    if step == lib.SH_STEP_DONE:
        return cells.unpack(packed)
    if step != lib.SH_STEP_FAILED:
        guest.innermost_call = one
        try:
            done = await one.drive(step)
        except BaseException:
            guest.innermost_call = outer
            if outer is None and not (on_cancel == "keep" and one.waited):
                _close(guest)
            raise
        guest.innermost_call = outer
        if done:
            return cells.unpack(packed)
    cells.ended()
    return None


def _close(guest: Guest) -> None:
    try:
        guest.close()
    except SandhostError:
        pass  # views of its memory are alive: whoever has them closes it


async def end_calls(guest: Guest) -> None:
    """End the calls of a guest that other tasks have made, and wait until they have."""
    while guest.innermost_call is not None:
        guest.cancel()
        await anyio.sleep(0.001)
