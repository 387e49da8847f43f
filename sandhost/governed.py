"""A host as what governs its memory sees it: figures, and hands. See govern/protocol.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._ffi import ffi, lib
from .errors import GuestBusy, GuestClosed
from .govern.census import GuestRow
from .govern.cgroup import MemoryGroup, find_group, stall_file
from .govern.protocol import Ended, Released
from .govern.shares import Holding, furthest_over, shares
from .govern.signals import Reading
from .limits import UNLIMITED

if TYPE_CHECKING:
    from .host import Host
    from .tenants import Tenant

__all__ = ["GovernedHost", "release_os_memory"]

_FRESH_NS = 50_000_000
"""Slots that were in use so lately stay warm at the first level: their tenants are at work."""
_SHARED = 0.75
"""Of what all hold, when it has to be less."""
_GROUP_EVERY_S = 1.0
_DYING_S = 0.05
"""How long a call that was told to end may take before another guest is looked at."""


class GovernedHost:
    """What a `Pressure` governs."""

    def __init__(self, host: Host, clock: Callable[[], float] = time.monotonic) -> None:
        self._host, self._clock = host, clock
        self._group: MemoryGroup | None = find_group()
        self._group_s = clock()
        stall = stall_file(group=self._group)
        usage = self._group.usage_file if self._group is not None else None
        lib.sh_host_watch(
            host.native,
            ffi.NULL if usage is None else str(usage).encode(),
            ffi.NULL if stall is None else str(stall).encode(),
        )
        self._refused: list[Tenant] = []
        self._dying: dict[int, float] = {}  # by id: when they were told

    # ---- figures ----

    def read(self, now_s: float, limit_bytes: int | None) -> Reading:
        """Read everything that signals look at."""
        if now_s - self._group_s >= _GROUP_EVERY_S:  # who runs the machine may change the limit
            self._group, self._group_s = find_group(), now_s
        stats = self._host.stats()
        group = self._group
        limited = group is not None and group.limit_bytes is not None
        used = stats.cgroup_bytes
        return Reading(
            now_s,
            limit_bytes,
            stats.process_rss_bytes,
            group.limit_bytes if group is not None else None,
            used - group.idle_file_bytes() if limited and group and used is not None else None,
            group.hits() if limited and group else None,
            None if stats.stall_us is None else stats.stall_us / 1e6,
            *self._handles(),
        )

    def _handles(self) -> tuple[int | None, int | None]:
        made = self._host.handles_and_gc
        return (
            (None, None) if made is None else (made[1].memory_limit, made[0].figures().marked_bytes)
        )

    # ---- hands ----

    def evict(self) -> int:
        """Give back what is only kept for speed, and ask for a collection; return bytes."""
        if self._host.handles_and_gc is not None:
            self._host.handles_and_gc[1].triggers.pressure.request()
        return int(lib.sh_host_trim(self._host.native, _FRESH_NS))

    def refuse(self, retry_s: float, limit_bytes: int, *, everybody: bool) -> int:
        """Let tenants above their share, or everybody, start nothing new."""
        retry_ns = round(retry_s * 1e9)
        lib.sh_host_refuse(self._host.native, retry_ns if everybody else 0)
        over: dict[Tenant, int] = {}
        if retry_ns:
            tenants = self._host.tenants()
            holdings = [Holding(t.name, t.weight, t.stats().held_bytes) for t in tenants]
            total = _total(holdings, limit_bytes)
            over = {
                tenant: share
                for tenant, holding, share in zip(tenants, holdings, shares(holdings, total))
                if holding.held_bytes > share
            }
        for tenant in self._refused:
            if tenant not in over:
                lib.sh_tenant_refuse(tenant.native, 0, UNLIMITED)
        for tenant, share in over.items():
            lib.sh_tenant_refuse(tenant.native, retry_ns, share)
        self._refused = list(over)
        return len(over)

    def release(self) -> Released:
        """Give all that is free back to the operating system."""
        return release_os_memory(self._host)

    def scavenge(self) -> int:
        """Give back what the C library keeps free; return by how much the process got smaller."""
        before = self._host.stats().process_rss_bytes
        lib.sh_trim_malloc()
        after = self._host.stats().process_rss_bytes
        return max(0, (before or 0) - (after or 0))

    def end_one(self, limit_bytes: int) -> Ended | None:
        """End the largest guest of the tenant that is furthest above its share; None: nobody is."""
        rows = self._host.guests()
        now_s, alive = self._clock(), {row.id for row in rows}
        self._dying = {id_: told_s for id_, told_s in self._dying.items() if id_ in alive}
        if any(now_s - told_s < _DYING_S for told_s in self._dying.values()):
            return None  # its memory comes back in a moment
        weights = {tenant.name: tenant.weight for tenant in self._host.tenants()}
        held: dict[str | None, int] = {}
        for row in rows:
            held[row.tenant] = held.get(row.tenant, 0) + _held(row)
        holdings = [
            Holding(name, 1.0 if name is None else weights.get(name, 1.0), bytes_)
            for name, bytes_ in held.items()
        ]
        most = furthest_over(holdings, _total(holdings, limit_bytes))
        if most is None:
            return None
        (tenant, _, tenant_bytes), share = most
        candidates = [row for row in rows if row.tenant == tenant]
        for row in sorted(candidates, key=lambda row: (row.id not in self._dying, _held(row)))[
            ::-1
        ]:
            closed = self._end(row.id)
            if closed is None:
                continue
            if not closed:
                self._dying[row.id] = now_s
            return Ended(row.id, row.plugin, tenant, _held(row), tenant_bytes, share, closed)
        return None

    def _end(self, guest_id: int) -> bool | None:
        """True: it is closed. False: its call was told to end. None: it is gone, or has views."""
        status = lib.sh_evict(guest_id, ffi.new("sh_reclaim *"))
        if not status:
            return True
        lib.sh_take_error(ffi.new("sh_error *"))
        if status != lib.SH_BUSY:
            return None
        if lib.sh_guest_running(guest_id):
            return False
        for guest in self._host.mapped_guests.all():  # Python has more of it to let go of
            if guest.id == guest_id:
                try:
                    guest.close()
                except (GuestBusy, GuestClosed):
                    return None
                return True
        return None


def _held(row: GuestRow) -> int:
    return row.memory_bytes + row.handle_bytes


def _total(holdings: list[Holding], limit_bytes: int) -> int:
    """Return what all may hold together now: less than they do, or nobody would be above a share."""
    held = sum(holding.held_bytes for holding in holdings)
    return int(_SHARED * (min(held, limit_bytes) if limit_bytes else held))


def release_os_memory(host: Any) -> Released:
    """Give all that is free back: slots of guests, and what the C library keeps."""
    before = host.stats().process_rss_bytes
    slots = host.trim()
    lib.sh_trim_malloc()
    return Released(slots, before, host.stats().process_rss_bytes)
