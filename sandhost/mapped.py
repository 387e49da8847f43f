"""Guests of which Python has more to let go of than C does: memory that is mapped, output to keep."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING

from .errors import GuestBusy

if TYPE_CHECKING:
    from .guest import Guest

__all__ = ["MappedGuests"]

_PATIENCE_S = 0.1


class MappedGuests:
    """Those of one host. It keeps none of them alive."""

    def __init__(self) -> None:
        self._guests: weakref.WeakSet[Guest] = weakref.WeakSet()

    def add(self, guest: Guest) -> None:
        """Remember a guest; twice is harmless."""
        self._guests.add(guest)

    def all(self) -> list[Guest]:
        """List those that are there."""
        while True:
            try:
                return list(self._guests)
            except RuntimeError:  # another thread added one meanwhile
                continue

    def end(self) -> None:
        """Close them, cancelling their calls; leave those that cannot be closed."""
        patience = time.monotonic() + _PATIENCE_S
        for guest in self.all():
            while True:
                try:
                    guest.close()
                    break
                except GuestBusy:
                    if not guest.cancel() or time.monotonic() > patience:
                        break  # views are alive, or it is inside a host function
                    time.sleep(0.002)
