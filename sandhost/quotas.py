"""Quotas of one tenant: what its guests may use together."""

from __future__ import annotations

import math
from typing import NamedTuple

from .errors import ConfigError
from .units import parse_bytes

__all__ = ["Quotas"]


class _Fields(NamedTuple):
    memory_limit: int | None
    handles: int | None
    handle_memory: int | None
    guests: int | None
    spawns_per_s: float | None
    cpus: float | None
    weight: float | None


class Quotas(_Fields):
    """What the guests of one tenant may use together; `Host.tenant` has what each means. None: no quota.

    Raises:
        ConfigError: a value cannot be meant.
    """

    __slots__ = ()

    def __new__(
        cls,
        memory_limit: int | str | None = None,
        handles: int | None = None,
        handle_memory: int | str | None = None,
        guests: int | None = None,
        spawns_per_s: float | None = None,
        cpus: float | None = None,
        weight: float | None = None,
    ) -> Quotas:
        """Check the values."""
        for name, count in (("handles", handles), ("guests", guests)):
            if count is not None and not (isinstance(count, int) and 0 <= count < 2**63):
                raise ConfigError(f"{name} is {count!r}; give a number of them")
        rates = {"spawns_per_s": spawns_per_s, "cpus": cpus, "weight": weight}
        for name, rate in rates.items():
            if rate is not None and not (
                isinstance(rate, (int, float)) and math.isfinite(rate) and 1e-6 <= rate <= 1e9
            ):
                raise ConfigError(f"{name} is {rate!r}; give a number above 0")
        memory = None if memory_limit is None else parse_bytes(memory_limit)
        handle_bytes = None if handle_memory is None else parse_bytes(handle_memory)
        return super().__new__(
            cls, memory, handles, handle_bytes, guests, spawns_per_s, cpus, weight
        )

    def differs_from(self, other: Quotas) -> str | None:
        """Return the name of the first quota that is given here and is another there."""
        for name, mine, theirs in zip(self._fields, self, other):
            if mine is not None and mine != theirs:
                return name
        return None
