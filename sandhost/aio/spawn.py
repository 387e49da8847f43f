"""A guest for the length of an `async with` block."""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio

from .._ffi import lib
from ..calls import Cells
from ..modules.types import FuncType
from .call import call

if TYPE_CHECKING:
    from ..guest import Guest

__all__ = ["SpawnAsync"]

_START = Cells("start", lib.SH_START, FuncType((), ()))


class SpawnAsync:
    """What `spawn_async` returns: to be awaited, or entered with `async with`."""

    def __init__(self, spawn: Callable[[], Guest], *, starts: bool) -> None:
        self._spawn = spawn
        self._starts = starts  # a start function is still to be called
        self._guest: Guest | None = None

    async def _run(self) -> Guest:
        guest = self._spawn()
        if self._starts:
            try:
                await call(guest, _START, (), "close")
            except BaseException:
                guest.close()
                raise
        return guest

    def __await__(self) -> Generator[Any, Any, Guest]:
        return self._run().__await__()

    async def __aenter__(self) -> Guest:
        self._guest = await self._run()
        return self._guest

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        assert self._guest is not None
        if self._guest.innermost_call is None and not self._guest.is_large:
            self._guest.close()
            return
        with anyio.CancelScope(shield=True):  # it is short, and what is left behind would be worse
            await self._guest.aclose()
