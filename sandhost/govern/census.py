"""Who is there: one line for each live guest, read without stopping anybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .._ffi import ffi, lib

__all__ = ["GuestRow", "guest_row", "read_guests"]

_ROOM = 256
_DOING = {lib.SH_DOING_NOTHING: "idle", lib.SH_DOING_CALL: "running", lib.SH_DOING_WAIT: "waiting"}


class GuestRow(NamedTuple):
    """A live guest, and what it holds. Each row is true by itself; two may be a moment apart."""

    id: int
    """As `Guest.id`."""
    plugin: str
    """Its plugin's name; "" while that is being loaded."""
    tenant: str | None
    memory_bytes: int
    """Committed, over all its memories."""
    memory_peak_bytes: int
    handles: int
    handle_bytes: int
    """What the objects behind its handles count for."""
    age_ns: int
    calls: int
    """Calls from Python, finished ones."""
    node: int
    """NUMA node of its first memory, by the kernel's number."""
    doing: str
    """"idle", "running" (a thread is in a call), or "waiting" (its call waits, without a thread)."""


def read_guests(
    host: Any, plugins: Mapping[int, str], tenants: Mapping[int, str]
) -> list[GuestRow]:
    """List the live guests of a `sh_host`, given the names of plugins and tenants by their ids."""
    position, rows = ffi.new("uint32_t *"), ffi.new("sh_guest_row[]", _ROOM)
    found: list[GuestRow] = []
    while count := lib.sh_host_guests(host, position, rows, _ROOM):
        found.extend(guest_row(row, plugins, tenants) for row in rows[0:count])
    return found


def guest_row(row: Any, plugins: Mapping[int, str], tenants: Mapping[int, str]) -> GuestRow:
    """Read a `sh_guest_row`."""
    return GuestRow(
        row.guest,
        plugins.get(row.plugin, ""),
        tenants.get(row.tenant),
        row.committed_bytes,
        row.peak_bytes,
        row.handles,
        row.handle_bytes,
        row.age_ns,
        row.calls,
        row.node,
        _DOING[row.doing],
    )
