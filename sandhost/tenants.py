"""Tenants: whose guests share limits."""

from __future__ import annotations

from typing import Any

from ._ffi import lib

__all__ = ["Tenant"]


class Tenant:
    """Whose guests share a memory limit. Made by `host.tenant(name)`."""

    __slots__ = ("_host", "memory_limit", "name", "native")

    def __init__(self, name: str, memory_limit: int | None, native: Any, host: Any) -> None:
        self.name, self.memory_limit, self.native = name, memory_limit, native
        self._host = host  # the native one: it owns `native`

    @property
    def memory_bytes(self) -> int:
        """Bytes committed in its guests' regions now."""
        return int(lib.sh_tenant_used(self.native))

    @property
    def memory_peak_bytes(self) -> int:
        """The most it ever was."""
        return int(lib.sh_tenant_peak(self.native))

    @property
    def number(self) -> int:
        """What probes and events of C call it by. Not for users."""
        return int(lib.sh_tenant_number(self.native))

    def __repr__(self) -> str:
        return f"<sandhost.Tenant {self.name!r}>"
