"""Which problem an error of sandhost's is to whoever made the request. The problems are protocol/problems.py's."""

from __future__ import annotations

from ..errors import (
    ConfigError,
    DeadlineExceeded,
    GuestBusy,
    GuestCancelled,
    GuestClosed,
    GuestError,
    GuestEvicted,
    GuestExit,
    GuestTrap,
    LimitExceeded,
    ModuleError,
    Overloaded,
    QuotaExceeded,
    RegionFullError,
    SandhostError,
)
from ..protocol.problems import (
    BadPlugin,
    Conflict,
    DeadlinePassed,
    Denied,
    GuestFailed,
    Internal,
    Invalid,
    Missing,
    NotReady,
    Problem,
    TooLarge,
    TooMany,
    Unavailable,
    Unknown,
    WrongMethod,
)

__all__ = [
    "BadPlugin",
    "Conflict",
    "DeadlinePassed",
    "Denied",
    "GuestFailed",
    "Internal",
    "Invalid",
    "Missing",
    "NotReady",
    "Problem",
    "TooLarge",
    "TooMany",
    "Unavailable",
    "Unknown",
    "WrongMethod",
    "problem_of",
]

_EVICTED_RETRY_S = 0.5


def problem_of(error: Exception) -> Problem:
    """Return the problem that an error of sandhost's is to whoever made the request."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, (Overloaded, QuotaExceeded)):
        return TooMany(str(error), retry_after_s=error.retry_after_s)
    if isinstance(error, RegionFullError):
        return TooMany("all places for guests are taken", retry_after_s=_EVICTED_RETRY_S)
    if isinstance(error, GuestEvicted):
        return TooMany(str(error), retry_after_s=_EVICTED_RETRY_S)
    if isinstance(error, DeadlineExceeded):
        return DeadlinePassed(str(error))
    if isinstance(error, GuestTrap):
        return GuestFailed(
            str(error),
            facts={"trap": error.code, "frames": [str(frame) for frame in error.frames[:32]]},
        )
    if isinstance(error, GuestExit):
        return GuestFailed(str(error), facts={"exit": error.status})
    if isinstance(error, (GuestCancelled, GuestClosed)):
        return Unavailable("the call was ended before the guest returned")
    if isinstance(error, LimitExceeded):
        return GuestFailed(str(error), facts={"limit": type(error).__name__})
    if isinstance(error, (GuestError, GuestBusy)):
        return GuestFailed(str(error))
    if isinstance(error, ModuleError):
        return BadPlugin(str(error), facts={"offset": error.offset})
    if isinstance(error, (ConfigError, TypeError, OverflowError)):
        return Invalid(str(error))
    if isinstance(error, SandhostError):
        return GuestFailed(str(error))
    return Internal("something went wrong on our side")
