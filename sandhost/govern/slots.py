"""The slots of a host's regions: what each is, whose, and how much of it is resident."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .._ffi import ffi, lib
from ..limits import UNLIMITED

__all__ = ["STATES", "SlotRow", "read_slots"]

_ROOM = 64
STATES = {
    lib.SH_SLOT_COLD: "cold",
    lib.SH_SLOT_WARM: "warm",
    lib.SH_SLOT_STALE: "stale",
    lib.SH_SLOT_LIVE: "live",
    lib.SH_SLOT_QUEUED: "queued",
    lib.SH_SLOT_QUARANTINED: "quarantined",
}


class SlotRow(NamedTuple):
    """A slot that was used at least once. Each row is true by itself; two may be a moment apart."""

    state: str
    """"live"; free: "cold" (holds nothing), "warm" (keeps clean pages), "stale" (the kernel takes its
    pages when it wants them); "queued" (its pages go back soon); "quarantined" (never used again)."""
    committed_bytes: int
    """Live: what its guest may touch. Else: what the slot still maps for the next one."""
    resident_bytes: int | None
    """Private pages. None: of a live one, and nobody asked the kernel."""
    guest: int
    """Live: as `Guest.id`. 0: nobody's any more, or only a view keeps it."""
    plugin: str
    tenant: str | None
    node: int


def read_slots(
    host: Any, plugins: Mapping[int, str], tenants: Mapping[int, str], *, measure: bool
) -> list[SlotRow]:
    """List the slots of a `sh_host`, given the names of plugins and tenants by their ids."""
    position, rows = ffi.new("uint64_t *"), ffi.new("sh_slot_row[]", _ROOM)
    found: list[SlotRow] = []
    while count := lib.sh_host_slots(host, position, rows, _ROOM, measure):
        found.extend(
            SlotRow(
                STATES[row.state],
                row.committed_bytes,
                None if row.resident_bytes == UNLIMITED else row.resident_bytes,
                row.guest,
                plugins.get(row.plugin, ""),
                tenants.get(row.tenant),
                row.node,
            )
            for row in rows[0:count]
        )
    return found
