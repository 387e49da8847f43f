"""The one door to the compiled C module: opens wasmtime, and turns C's errors into exceptions."""

from __future__ import annotations

import re
from typing import Any

from . import _wasmtime
from .errors import (
    ConfigError,
    DeadlineExceeded,
    Frame,
    GuestBusy,
    GuestCancelled,
    GuestClosed,
    GuestEvicted,
    GuestExit,
    GuestTrap,
    InvalidHandle,
    LimitExceeded,
    ModuleError,
    NativeError,
    OutOfFuel,
    OutOfMemory,
    Overloaded,
    QuotaExceeded,
    RegionFullError,
    SandhostError,
)
from .units import format_bytes, format_ns

try:
    from ._native import ffi, lib
except ImportError as error:  # pragma: no cover - only in a broken installation
    raise ImportError(
        "sandhost's compiled part is missing or does not fit this Python; 'pip install .' in a "
        "clone builds it, with a C compiler; and in the clone's own folder Python finds the sources, without "
        f"it, before what is installed: this is {__file__}"
    ) from error

__all__ = [
    "WASMTIME_VERSION",
    "address_of",
    "failure",
    "ffi",
    "lib",
    "take_error",
    "trap_code_name",
]

_library, WASMTIME_VERSION = _wasmtime.locate()
if lib.sh_wasmtime_open(_library.encode()) != lib.SH_OK:
    raise ImportError(
        f"wasmtime {WASMTIME_VERSION} does not offer the C interface that sandhost was built for: "
        + bytes(ffi.string(lib.sh_last_error().message)).decode(errors="replace")
    )

# wasmtime.h, wasmtime_trap_code_enum
_TRAP_CODES = {
    0: ("stack_overflow", "the guest's stack is exhausted"),
    1: ("memory_out_of_bounds", "memory access out of bounds"),
    2: ("heap_misaligned", "misaligned atomic access"),
    3: ("table_out_of_bounds", "table access out of bounds"),
    4: ("indirect_call_to_null", "indirect call to a null table entry"),
    5: ("bad_signature", "indirect call with another signature"),
    6: ("integer_overflow", "integer overflow"),
    7: ("integer_division_by_zero", "integer division by zero"),
    8: ("bad_conversion_to_integer", "float cannot be converted to an integer"),
    9: ("unreachable", "the guest executed 'unreachable'"),
    12: ("atomic_wait_non_shared_memory", "atomic wait on a memory that is not shared"),
    13: ("null_reference", "null reference"),
}
_NO_CODE = "trap"
_NO_OFFSET = 2**64 - 1  # of the frame whose prologue found the stack exhausted
_LEVELS = ("the guest's limit", "its tenant's limit", "the host's limit")


def trap_code_name(code: int) -> str:
    """Return what `GuestTrap.code` is for a code of wasmtime's; -1: it has none."""
    return _TRAP_CODES[code][0] if code in _TRAP_CODES else _NO_CODE


def address_of(pointer: Any) -> int:
    """Return it as a number, for functions that do not go through cffi. The pointer must be held meanwhile."""
    return int(ffi.cast("uintptr_t", pointer))


def _text(chars: object) -> str:
    return bytes(ffi.string(chars)).decode(errors="replace")


def _frames(error: object) -> tuple[Frame, ...]:
    return tuple(
        Frame(
            function=_text(frame.function) or None,
            function_index=frame.function_index,
            offset=None if frame.module_offset == _NO_OFFSET else frame.module_offset,
            module=_text(frame.module) or None,
        )
        for frame in error.frames[0 : error.frame_count]  # type: ignore[attr-defined]
    )


def _cause(message: str) -> str:
    """Return the line of wasmtime's message that says what happened: the innermost cause."""
    lines = message.strip().split("\n")
    return lines[-1].strip() if "Caused by:" in message else lines[0]


_OFFSET = re.compile(
    r" \(at offset (0x[0-9a-f]+)\)|(?:\d: )?Invalid input WebAssembly code at offset (\d+): "
)


def _module_error(message: str) -> ModuleError:
    """Return wasmtime's refusal of a module: its innermost cause, and the byte it blames."""
    cause = _cause(message)
    found = _OFFSET.search(cause)
    if found is None:
        return ModuleError(message.strip())
    offset = int(found[1] or found[2], 0)
    return ModuleError(f"the module is not valid: {_OFFSET.sub('', cause)}", offset)


def _quota_exceeded(what: str, most: int, wait_ns: int) -> QuotaExceeded:
    if most:
        return QuotaExceeded(
            f"the tenant's quota of {what} is {most}; close some, or raise it",
            retry_after_s=None,
        )
    when = f"in {format_ns(wait_ns)}" if wait_ns else "now"  # its bucket fills while this is said
    return QuotaExceeded(
        f"the tenant's quota of {what} is used up; it has some again {when}",
        retry_after_s=wait_ns / 1e9,
    )


_new_error = ffi.new_allocator(should_clear_after_alloc=False)


def take_error() -> Any:
    """Return what this thread's last C call reported. To be called once for each that failed."""
    error = _new_error("sh_error *")
    lib.sh_take_error(error)
    return error


def failure(reported: Any = None) -> SandhostError:
    """Return the exception for what was taken, or for what this thread's last C call reported."""
    error = take_error() if reported is None else reported
    status, message = error.status, _text(error.message)
    if status == lib.SH_TRAP:
        code, meaning = _TRAP_CODES.get(error.trap_code, (_NO_CODE, _cause(message)))
        return GuestTrap(meaning, code=code, frames=_frames(error))
    if status == lib.SH_EXIT:
        return GuestExit(error.exit_status)
    if status == lib.SH_DEADLINE:
        return DeadlineExceeded(
            f"the call ran past its deadline of {format_ns(error.limit)}; "
            "raise Limits(deadline=...) if it is meant to take longer"
        )
    if status == lib.SH_OUT_OF_FUEL:
        return OutOfFuel(f"the call used up its fuel of {error.limit}; raise Limits(fuel=...)")
    if status == lib.SH_OUT_OF_MEMORY:
        return OutOfMemory(
            f"the guest asked for {format_bytes(error.wanted)} of memory; "
            f"{_LEVELS[error.level]} is {format_bytes(error.limit)}"
        )
    if status == lib.SH_TABLE_LIMIT:
        return LimitExceeded(
            f"a table starts with {error.wanted} elements; the limit is {error.limit}, "
            "raise Limits(table_elements=...), or memory, which bounds all tables together"
        )
    if status == lib.SH_HANDLE_LIMIT:
        return LimitExceeded(f"{message}; raise Limits(handles=...), or release some")
    if status == lib.SH_QUOTA:
        return _quota_exceeded(message, error.wanted, error.limit)
    if status == lib.SH_REFUSED:
        return Overloaded(
            f"{message}; try again in {format_ns(error.limit)}", retry_after_s=error.limit / 1e9
        )
    if status == lib.SH_EVICTED:
        return GuestEvicted("the host ended the guest: it is short of memory")
    if status == lib.SH_CANCELLED:
        return GuestCancelled("the call was cancelled before the guest returned")
    if status == lib.SH_STACK:
        return LimitExceeded(message)
    if status == lib.SH_REGION_FULL:
        return RegionFullError(f"{message}; close guests or raise Host(max_guests=...)")
    if status == lib.SH_NATIVE:
        return NativeError(error.os_errno, _text(error.operation))
    if status == lib.SH_WASMTIME:
        return _module_error(message)
    return _PLAIN.get(status, SandhostError)(message)


_PLAIN: dict[int, type[SandhostError]] = {
    lib.SH_CLOSED: GuestClosed,
    lib.SH_BUSY: GuestBusy,
    lib.SH_ARGUMENT: ConfigError,
    lib.SH_WAITS: ConfigError,
    lib.SH_INVALID_HANDLE: InvalidHandle,
    lib.SH_CANCELLED: GuestCancelled,
}
