"""A coroutine whose steps are made in its tenant's turns, see shares.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar, cast

from .shares import Shares

__all__ = ["Steps"]

_T = TypeVar("_T")

_STEP_S = 0.0001
"""What a step is charged when it may go on, so that not all that wait do so in one turn. By measurement: most take
as long or longer."""


class Steps(Coroutine[Any, Any, _T]):
    """A coroutine, for a task or to be awaited. Where it would make a step, it waits for its tenant's turn first."""

    __slots__ = ("_paid_s", "_shares", "_tenant", "_work")

    def __init__(self, work: Coroutine[Any, Any, _T], shares: Shares, tenant: str) -> None:
        self._work, self._shares, self._tenant = work, shares, tenant
        self._paid_s = 0.0

    def send(self, value: Any) -> Any:
        """Make a step, or return the future that asyncio waits for before it asks again."""
        if not self._paid_s and self._shares.must_wait(self._tenant):
            turn = asyncio.get_running_loop().create_future()
            self._shares.wait(self._tenant, lambda: self._pay(turn))
            return next(turn.__await__())
        paid_s, self._paid_s = self._paid_s, 0.0
        began_s = time.monotonic()
        try:
            return self._work.send(value)
        finally:
            self._shares.charge(self._tenant, time.monotonic() - began_s - paid_s)

    def _pay(self, turn: asyncio.Future[None]) -> None:
        if not turn.done():  # else its task was cancelled
            self._paid_s = _STEP_S
            self._shares.charge(self._tenant, _STEP_S)
            turn.set_result(None)

    def throw(self, *raised: Any) -> Any:
        """Have an error raised where it waits, at once: it has waited."""
        return self._work.throw(*raised)

    def close(self) -> None:
        """End it."""
        self._work.close()

    def __await__(self) -> Generator[Any, Any, _T]:
        return cast("Generator[Any, Any, _T]", self)

    def __next__(self) -> Any:
        return self.send(None)

    def __getattr__(self, name: str) -> Any:
        """Return what asyncio and anyio ask of a coroutine: its frame, what it waits for, whether it runs."""
        return getattr(self._work, name)
