"""Windows: memory of C's as a memoryview, and the moment when the last reader of it is gone."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from ._ffi import ffi

__all__ = ["open_window"]

_open: dict[int, tuple[weakref.ref[Any], Any]] = {}
"""Live windows by the id of the weakref to each (a cffi buffer has no hash), with the owner, which
it keeps alive. (A weakref that is dropped calls nobody.)"""


def open_window(address: Any, length: int, owner: object, ended: Callable[[], None]) -> memoryview:
    """Return `length` bytes at a `uint8_t *`, writable. The owner lives as long as they are seen.

    `ended` is called once: when nothing that was made from the view is left (slices, arrays, exports
    of those), or when this raises.
    """
    due = [ended]

    def window_ended(reference: weakref.ref[Any]) -> None:
        if due:
            due.pop()()
        _open.pop(id(reference), None)  # the owner may end here, if nobody else holds it

    try:
        window = ffi.buffer(address, length)
        reference = weakref.ref(window, window_ended)
        _open[id(reference)] = (reference, owner)
        return memoryview(window)
    except BaseException:
        if due:
            due.pop()()
        raise
