"""What a request wants to call, and what goes wrong in it said as the requester's problem."""

from __future__ import annotations

import time
from types import TracebackType
from typing import NamedTuple

import anyio

from ..errors import OutOfBounds, SandhostError
from ..modules.types import FuncType
from ..plugin import Plugin
from .loaded import signature
from .problems import DeadlinePassed, GuestFailed, Invalid, Problem, problem_of
from .records import Principal

__all__ = ["SOON_S", "Answering", "Invocation", "check_bytes_call"]

SOON_S = 0.1
"""Who waits for less than this has an eye on the time, which `Service.call_at_once` has not. Arbitrary."""


class Invocation(NamedTuple):
    """Which function of which plugin, for whom, and until when."""

    who: Principal
    plugin: str
    ref: str
    function: str
    until_s: float | None = None
    """By time.monotonic(); None: as long as the version's own limit allows."""
    session: str | None = None
    """Of a guest that was kept; None: a fresh one."""
    let_in: bool = False
    """It has a place already, which its door gives back."""

    def left_s(self) -> float | None:
        """Return the seconds that are left; None: there is no end."""
        return None if self.until_s is None else max(0.0, self.until_s - time.monotonic())


class Answering:
    """A request's work, within its time; what goes wrong in it is the requester's problem."""

    __slots__ = ("_scope",)

    def __init__(self, what: Invocation) -> None:
        left_s = what.left_s()
        self._scope = None if left_s is None else anyio.move_on_after(left_s)

    def __enter__(self) -> None:
        if self._scope is not None:
            self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        scope = self._scope
        if scope is not None and scope.__exit__(kind, error, traceback):
            raise DeadlinePassed("the request's time was over")
        if isinstance(error, OutOfBounds):
            raise GuestFailed(f"the plugin gave an address outside its memory: {error}") from error
        if isinstance(error, Problem):
            return  # it is one already
        if isinstance(error, (SandhostError, TypeError, OverflowError)):
            raise problem_of(error) from error


def check_bytes_call(plugin: Plugin, function: str) -> None:
    """Raise `Invalid` unless the plugin has what it takes to call this function with bytes."""
    wanted = {
        "alloc": FuncType(("i32",), ("i32",)),
        function: FuncType(("i32", "i32"), ("i64",)),
    }
    for name, type_ in wanted.items():
        if signature(plugin, name) != type_:
            raise Invalid(f"to take bytes, {name[:100]!r} has to be {type_}")
