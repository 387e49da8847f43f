"""Limits of one guest: what it may take, and for how long."""

from __future__ import annotations

from typing import NamedTuple

from .errors import ConfigError
from .units import parse_bytes, parse_seconds

__all__ = ["UNLIMITED", "Limits"]

UNLIMITED = 2**64 - 1
"""In bytes, where None was given."""


class _Fields(NamedTuple):
    memory: int | str | None
    deadline: float | str | None
    fuel: int | None
    table_elements: int
    handles: int
    handle_memory: int | str | None


class Limits(_Fields):
    """What one guest may use. Immutable; mistakes raise at once.

    Args:
        memory: bytes (or "16 MiB") committed over all of the guest's memories; None: only tenant
            and host limit it.
        deadline: seconds (or "250 ms") that one call may take by the wall clock; None: no limit.
        fuel: instructions, roughly, that one call may execute. Needs `host.load(..., fuel=True)`.
        table_elements: elements that each table may have. All tables together take no more bytes, 8
            an element, than `memory`.
        handles: handles that the guest may hold at once.
        handle_memory: bytes (or "16 MiB") that the objects behind them may count for; None: only
            tenant and host limit it.

    Raises:
        ConfigError: a value cannot be meant.
    """

    __slots__ = ()

    def __new__(
        cls,
        memory: int | str | None = "256 MiB",
        deadline: float | str | None = None,
        fuel: int | None = None,
        table_elements: int = 1_000_000,
        handles: int = 1_000_000,
        handle_memory: int | str | None = "256 MiB",
    ) -> Limits:
        """Check the values."""
        limits = super().__new__(
            cls, memory, deadline, fuel, table_elements, handles, handle_memory
        )
        if fuel is not None and not (isinstance(fuel, int) and 0 < fuel < 2**63):
            raise ConfigError(f"fuel is {fuel!r}; give a positive number of instructions")
        if not (isinstance(table_elements, int) and 0 <= table_elements < 2**63):
            raise ConfigError(f"table_elements is {table_elements!r}; give a number of elements")
        if not (isinstance(handles, int) and 0 <= handles < 2**63):
            raise ConfigError(f"handles is {handles!r}; give a number of handles")
        _ = limits.memory_bytes, limits.deadline_ns, limits.handle_bytes
        return limits

    @property
    def memory_bytes(self) -> int:
        """The memory limit in bytes, `UNLIMITED` for none."""
        return UNLIMITED if self.memory is None else parse_bytes(self.memory)

    @property
    def handle_bytes(self) -> int:
        """The limit of `handle_memory` in bytes, `UNLIMITED` for none."""
        return UNLIMITED if self.handle_memory is None else parse_bytes(self.handle_memory)

    @property
    def deadline_ns(self) -> int:
        """The deadline in nanoseconds, 0 for none."""
        if self.deadline is None:
            return 0
        nanoseconds = round(parse_seconds(self.deadline) * 1e9)
        if not 0 < nanoseconds < 2**62:
            raise ConfigError(f"deadline is {self.deadline!r}; give a positive time in seconds")
        return nanoseconds
