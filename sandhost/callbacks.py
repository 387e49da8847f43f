"""Functions of guests that host objects keep, to call them back."""

from __future__ import annotations

from typing import Any

from .errors import InvalidHandle
from .heap import HandleHeap

__all__ = ["Callback"]


class Callback:
    """One of a guest's functions, and the handle of the environment that it wants to be called with.

        holder, a host object ── link ──► environment, a guest's record ── its entries ──► … the holder?

    The edge is the heap's, and nothing here counts as an owner. So an environment that leads back to the
    holder keeps neither alive: a collection frees the ring when nobody else reaches it, whoever owns its parts.

    Args:
        holder: the handle of the object that keeps the callback; the environment lives as long.
        function: the export that is called.
        first: arguments before the environment: an index, where the export calls through a table.

    Raises:
        InvalidHandle: holder or environment is none, or the environment is not the guest's own.
        LimitExceeded: the holder refers to 65,536 others already.
    """

    def __init__(
        self,
        heap: HandleHeap,
        holder: int,
        guest: Any,
        function: str,
        *first: int,
        environment: int,
    ) -> None:
        if heap.info(environment).guest != guest.id:
            raise InvalidHandle(f"handle {environment:#x} belongs to another guest")
        heap.link(holder, environment)
        self._heap, self._holder, self._guest = heap, holder, guest
        self._function, self._first, self._environment = function, first, environment

    def __call__(self, *arguments: Any) -> Any:
        """Call the guest: `function(*first, environment, *arguments)`. Raises what `Guest.call` does."""
        self._heap.lend(self._environment)
        return self._guest.call(self._function, *self._first, self._environment, *arguments)

    def drop(self) -> None:
        """Let go of the environment: the holder calls back no more.

        Raises:
            InvalidHandle: the holder is gone, or the environment, as its guest has ended.
        """
        self._heap.unlink(self._holder, self._environment)
