"""What happens to a host's guests, memory and handles, as it happens: `host.events`.

ring (C) ── stream.Events ──► read, follow      for programs
                  └─────────► log.EventLog      for logs, at chosen levels, with an upper bound
kinds                                           what each event says
"""

from .kinds import (
    KINDS,
    Cancel,
    Close,
    Commit,
    CycleBegin,
    CycleEnd,
    Deadline,
    Decommit,
    Event,
    HandleAlloc,
    HandleFree,
    MarkDone,
    Quarantine,
    Refused,
    Reset,
    Spawn,
    Trap,
)
from .stream import Events

__all__ = [
    "KINDS",
    "Cancel",
    "Close",
    "Commit",
    "CycleBegin",
    "CycleEnd",
    "Deadline",
    "Decommit",
    "Event",
    "Events",
    "HandleAlloc",
    "HandleFree",
    "MarkDone",
    "Quarantine",
    "Refused",
    "Reset",
    "Spawn",
    "Trap",
]
