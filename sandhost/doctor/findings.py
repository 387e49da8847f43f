"""What a check returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Status"]

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a machine.

    A note costs speed, room or convenience. A problem keeps sandhost from working, or from working
    as it promises.
    """

    topic: str
    """"kernel", "memory", "software" or "trial"."""
    name: str
    status: Status
    found: str
    """What is there, in a few words."""
    why: str
    """Why it matters, in one sentence."""
    advice: str = ""
    """What to do about it; empty when it is ok, or when nothing can be done."""
