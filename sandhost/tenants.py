"""Tenants: whose guests share quotas."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ._ffi import failure, ffi, lib
from .limits import UNLIMITED
from .quotas import Quotas

__all__ = ["Quotas", "Tenant", "TenantStats"]


class TenantStats(NamedTuple):
    """What one tenant holds and has done. Gauges, then counters since it was made."""

    memory_bytes: int
    """Committed in its guests' regions and stacks: what its memory limit is held against."""
    memory_peak_bytes: int
    handles: int
    handle_bytes: int
    """What the objects behind its guests' handles count for."""
    guests_live: int
    guests_peak: int
    spawns: int
    calls: int
    """Of guests that have ended."""
    cpu_ns: int
    """CPU time of its guests' calls, by the thread's clock. Counted where it has a quota of it."""
    refusals: int
    """Guests and calls refused by a quota in a time, or while the host was short of memory."""

    @property
    def held_bytes(self) -> int:
        """All that a share of memory is held against: regions, and objects behind handles."""
        return self.memory_bytes + self.handle_bytes


class Tenant:
    """Whose guests share quotas. Made by `host.tenant(name)`."""

    __slots__ = ("_host", "id", "name", "native", "quotas")

    def __init__(self, name: str, quotas: Quotas, host: Any) -> None:
        self.name, self.quotas = name, quotas
        limits = ffi.new(
            "sh_tenant_limits *",
            {
                "memory": _or_unlimited(quotas.memory_limit),
                "handles": _or_unlimited(quotas.handles),
                "handle_bytes": _or_unlimited(quotas.handle_memory),
                "guests": _or_unlimited(quotas.guests),
                # What was not used of the last second may be used at once.
                "starts_per_s": quotas.spawns_per_s or 0.0,
                "starts_burst": max(1, math.ceil(quotas.spawns_per_s or 0)),
                "cpus": quotas.cpus or 0.0,
                "cpu_burst_ns": round((quotas.cpus or 0) * 1e9),
            },
        )
        self.native = lib.sh_tenant_new(host, limits)
        if not self.native:
            raise failure()
        self.id = int(lib.sh_tenant_id(self.native))
        self._host = host  # the native one: it owns `native`

    @property
    def memory_limit(self) -> int | None:
        """Bytes that its guests' memories may have committed; None: no limit."""
        return self.quotas.memory_limit

    @property
    def weight(self) -> float:
        """Its part of the memory when that is short, beside the other tenants' weights."""
        return 1.0 if self.quotas.weight is None else self.quotas.weight

    def stats(self) -> TenantStats:
        """Return what it holds and has done."""
        native = ffi.new("sh_tenant_stats *")
        lib.sh_tenant_get_stats(self.native, native)
        return TenantStats._make(getattr(native, name) for name in TenantStats._fields)

    @property
    def memory_bytes(self) -> int:
        """Bytes committed in its guests' regions now."""
        return self.stats().memory_bytes

    @property
    def memory_peak_bytes(self) -> int:
        """The most it ever was."""
        return self.stats().memory_peak_bytes

    def __repr__(self) -> str:
        return f"<sandhost.Tenant {self.name!r}>"


def _or_unlimited(value: int | None) -> int:
    return UNLIMITED if value is None else value
