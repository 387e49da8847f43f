"""One change at a time, each durable before anybody can read it."""

from __future__ import annotations

import threading
from types import TracebackType

from ..store import Store

__all__ = ["Changing"]


class Changing:
    """The store, behind the one lock of all changes.

        with changing as store:
            check, in memory        raises: nothing has happened
            store.…                 one transaction; raises: nothing has happened
            memory                  one entry of one dictionary

    That order is the invariant: what memory says is on the disk, also when the machine stops between any two
    steps. tests/property/test_serve_registry_machine.py stops it there. A change may be made within another
    (`Audit.change`), by the same thread.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        """For reading only, which waits for nobody."""
        self._lock = threading.RLock()

    def __enter__(self) -> Store:
        self._lock.acquire()
        return self.store

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()
