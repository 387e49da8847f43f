"""Limits of one guest: what it may take, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ConfigError
from .units import parse_bytes, parse_seconds

__all__ = ["UNLIMITED", "Limits"]

UNLIMITED = 2**64 - 1
"""In bytes, where None was given."""


@dataclass(frozen=True)
class Limits:
    """What one guest may use. Sizes are bytes or texts such as "16 MiB"; mistakes raise at once.

    Raises:
        ConfigError: a value cannot be meant.
    """

    memory: int | str | None = "256 MiB"
    """Bytes committed over all of the guest's memories; None: only tenant and host limit it."""
    deadline: float | str | None = None
    """Seconds (or "250 ms") that one call may take by the wall clock; None: no limit."""
    fuel: int | None = None
    """Instructions, roughly, that one call may execute. Needs `host.load(..., fuel=True)`."""
    table_elements: int = 1_000_000
    """Elements that each table may have."""

    def __post_init__(self) -> None:
        if self.fuel is not None and not (isinstance(self.fuel, int) and 0 < self.fuel < 2**63):
            raise ConfigError(f"fuel is {self.fuel!r}; give a positive number of instructions")
        if not (isinstance(self.table_elements, int) and 0 <= self.table_elements < 2**63):
            raise ConfigError(f"table_elements is {self.table_elements!r}; give a number of elements")
        _ = self.memory_bytes, self.deadline_ns

    @property
    def memory_bytes(self) -> int:
        """The memory limit in bytes, `UNLIMITED` for none."""
        return UNLIMITED if self.memory is None else parse_bytes(self.memory)

    @property
    def deadline_ns(self) -> int:
        """The deadline in nanoseconds, 0 for none."""
        if self.deadline is None:
            return 0
        nanoseconds = round(parse_seconds(self.deadline) * 1e9)
        if not 0 < nanoseconds < 2**62:
            raise ConfigError(f"deadline is {self.deadline!r}; give a positive time in seconds")
        return nanoseconds
