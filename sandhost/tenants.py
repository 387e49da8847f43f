"""Tenants: whose guests share quotas."""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

from ._ffi import address_of, failure, ffi, lib
from .errors import ConfigError
from .limits import UNLIMITED
from .quotas import Quotas

__all__ = ["Quotas", "Tenant", "TenantStats", "Tenants"]


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
    """Whose guests share quotas. Made by `host.tenant(name)`.

    Args:
        memory: memory limit where the quotas have none; None: no limit.
    """

    __slots__ = ("_changing", "_host", "_memory", "address", "id", "name", "native", "quotas")

    def __init__(self, name: str, quotas: Quotas, host: Any, memory: int | None = None) -> None:
        self.name, self._memory = name, memory
        self.quotas = self._complete(quotas)
        """What holds now."""
        self.native = lib.sh_tenant_new(host, _limits(self.quotas))
        if not self.native:
            raise failure()
        self.address = address_of(self.native)
        self.id = int(lib.sh_tenant_id(self.native))
        self._host = host  # the native one: it owns `native`
        self._changing = threading.Lock()

    def set_quotas(self, quotas: Quotas) -> None:
        """Have these quotas hold in place of those before, from now on.

        A lower one ends no guest and no call: what is in use above it stays, and lets nothing more in. CPU
        time and starts are counted afresh where their quota is another; a call that runs is held to it too.

        Raises:
            ConfigError: a value cannot be meant.
        """
        wanted = self._complete(Quotas(*quotas))
        with self._changing:
            lib.sh_tenant_set_limits(self.native, _limits(wanted))
            self.quotas = wanted

    def _complete(self, quotas: Quotas) -> Quotas:
        return quotas if quotas.memory_limit is not None else Quotas(self._memory, *quotas[1:])

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


class Tenants:
    """The tenants of one host, by name. None of them ever goes.

    Args:
        memory: memory limit of those that have none of their own.
    """

    def __init__(self, host: Any, memory: int | None) -> None:
        self._host, self._memory = host, memory
        self._all: dict[str, Tenant] = {}
        self.names: dict[int, str] = {}
        """By id, for whoever reads what C says."""
        self._adding = threading.Lock()

    def get(self, name: str, wanted: Quotas) -> Tenant:
        """Return the tenant of this name, made with these quotas if there was none; see `Host.tenant`."""
        tenant = self._all.get(name)
        if tenant is None:
            with self._adding:
                tenant = self._all.get(name)
                if tenant is None:
                    tenant = Tenant(name, wanted, self._host, self._memory)
                    self._all[name] = tenant
                    self.names[tenant.id] = name
        other = wanted.differs_from(tenant.quotas)
        if other is not None:
            raise ConfigError(
                f"tenant {name!r} exists with {other}={getattr(tenant.quotas, other)}, "
                f"not {getattr(wanted, other)}: its set_quotas() changes them"
            )
        return tenant

    def all(self) -> list[Tenant]:
        """List them, in the order in which they were first named."""
        with self._adding:
            return list(self._all.values())

    def __contains__(self, name: str) -> bool:
        return name in self._all


def _limits(quotas: Quotas) -> Any:
    return ffi.new(
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


def _or_unlimited(value: int | None) -> int:
    return UNLIMITED if value is None else value
