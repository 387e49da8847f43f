"""What the end of a guest does with its memory, and what came back."""

from __future__ import annotations

import mmap
from typing import Any, Literal, NamedTuple, get_args

from ._ffi import ffi, lib
from .errors import ConfigError

__all__ = [
    "POLICIES",
    "Policy",
    "Reclaim",
    "new_figures",
    "policy_name",
    "policy_number",
    "reclaim_from",
]

Policy = Literal["immediate", "warm", "lazy"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
_NUMBERS = {
    "immediate": lib.SH_POLICY_IMMEDIATE,
    "warm": lib.SH_POLICY_WARM,
    "lazy": lib.SH_POLICY_LAZY,
}
_NAMES = {number: name for name, number in _NUMBERS.items()}


def policy_number(policy: str) -> int:
    """Return C's number of a reclaim policy."""
    if policy not in _NUMBERS:
        raise ConfigError(f"reclaim is {policy!r}; choose one of {', '.join(POLICIES)}")
    return int(_NUMBERS[policy])


def policy_name(number: int) -> str:
    """Return the reclaim policy that C calls by this number."""
    return _NAMES[number]


class Reclaim(NamedTuple):
    """What happened to a guest's memory when it ended.

    Only private pages count: what the guest wrote. Pages of an image that it merely read are
    shared by all guests of the plugin.
    """

    bytes: int
    """Bytes that were back with the operating system when close returned."""
    pages: int
    """The same in OS pages."""
    ns: int
    """Nanoseconds that resetting the memory took."""
    policy: str
    """"immediate", "warm" or "lazy"."""
    kept_bytes: int
    """Bytes reset in place that stay resident, ready for the next guest (warm)."""
    deferred_bytes: int
    """Bytes that go back a little later: queued (warm), or when the kernel wants them (lazy)."""


def new_figures() -> Any:
    """Return room for what C says of the end of a guest (`sh_end`)."""
    return _new(_FIGURES)


def reclaim_from(figures: Any) -> Reclaim:
    """Read what `sh_end` has filled in. Every close does, so it is one crossing and no field names."""
    returned, kept, deferred, ns, policy = _unpack(figures, _COUNT)
    return _make(Reclaim, (returned, returned // _OS_PAGE, ns, _NAMES[policy], kept, deferred))


_new, _unpack, _make = ffi.new, ffi.unpack, tuple.__new__
_COUNT = lib.SH_RECLAIM_FIGURES
_FIGURES = ffi.typeof(f"uint64_t[{_COUNT}]")
_OS_PAGE = mmap.PAGESIZE
