"""What governs memory asks of a host. `sandhost.governed` is one, the tests' simulated host another."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from .signals import Reading

__all__ = ["Ended", "Governed", "Released"]


class Released(NamedTuple):
    """What went back to the operating system. Bytes."""

    slots_bytes: int
    """Of free slots of guests' memories and stacks, as the kernel counted their pages."""
    resident_before: int | None
    """Of the whole process, by /proc/self/statm, before and after; other threads go on meanwhile."""
    resident_after: int | None

    @property
    def resident_bytes(self) -> int:
        """By how much the process got smaller; negative when it grew meanwhile."""
        return (self.resident_before or 0) - (self.resident_after or 0)


class Ended(NamedTuple):
    """A guest that was ended for its memory, and why that one."""

    guest: int
    plugin: str
    tenant: str | None
    held_bytes: int
    """By the guest: its memory, and objects behind its handles."""
    tenant_bytes: int
    """By its tenant."""
    share_bytes: int
    """What the tenant may hold while all want more than there is."""
    closed: bool
    """False: its call was told to end, and the guest ends after it."""

    def __str__(self) -> str:
        whose = "no tenant" if self.tenant is None else f"tenant {self.tenant!r}"
        return (
            f"guest {self.guest:#x} of {self.plugin!r}, {whose}: {self.tenant_bytes:,} bytes held, "
            f"{self.share_bytes:,} are its share; the guest's part was {self.held_bytes:,}"
        )


class Governed(Protocol):
    """A host whose memory is governed. All methods are called on the controller's thread."""

    def read(self, now_s: float, limit_bytes: int | None, /) -> Reading:
        """Read everything that signals look at."""

    def evict(self) -> int:
        """Give back what is only kept for speed, and ask for a collection; return bytes."""

    def refuse(self, retry_s: float, limit_bytes: int, *, everybody: bool) -> int:
        """Let tenants above their share of the limit, or everybody, start nothing new.

        Called again and again while it holds, since who is above its share changes. 0 seconds: all
        are welcome again.

        Returns:
            How many tenants are refused.
        """

    def release(self) -> Released:
        """Give all that is free back to the operating system."""

    def end_one(self, limit_bytes: int, /) -> Ended | None:
        """End the largest guest of the tenant that is furthest above its share; None: nobody is."""

    def scavenge(self) -> int:
        """Give back a part of what has been idle for long; return bytes. Bounded work."""
