"""What a service does now and then: removes modules that nobody names, and tells the audit log of refused tokens."""

from __future__ import annotations

import asyncio

from .._log import get_logger
from .refusals import Refusals
from .registry import Registry
from .store import StoreError
from .threads import in_thread

__all__ = ["Upkeep"]

_SWEEP_EVERY_S = 3600.0
_TELL_EVERY_S = 60.0


class Upkeep:
    """Of one registry. What the disk refuses is logged, and done the next time."""

    def __init__(self, registry: Registry, refusals: Refusals) -> None:
        self._registry, self._refusals = registry, refusals

    async def sweep_again(self) -> None:
        """Sweep once an hour, for ever."""
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            await self.sweep()

    async def sweep(self) -> None:
        """Remove modules that no version names."""
        try:
            await in_thread(self._registry.sweep)
        except OSError:
            log = get_logger("sandhost.serve")
            log.exception("modules that no version names could not be removed")

    async def tell_again(self) -> None:
        """Tell once a minute, for ever."""
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            await self.tell()

    async def tell(self) -> None:
        """Write which tokens were refused since the last time."""
        refusals = self._refusals.take()
        if refusals:
            try:
                await in_thread(lambda: self._registry.audit.refuse(refusals))
            except (OSError, StoreError) as error:
                log = get_logger("sandhost.serve")
                log.error("refusals could not be audited", count=len(refusals), exc_info=error)
