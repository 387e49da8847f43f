"""Sizes and durations as people write them."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from .errors import ConfigError

if TYPE_CHECKING:
    import re
    from decimal import Decimal

__all__ = ["format_bytes", "format_ns", "parse_bytes", "parse_seconds"]

MAX_BYTES = 2**63 - 1
MAX_SECONDS = (2**63 - 1) // 10**9  # what a signed 64-bit count of nanoseconds holds

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_BYTES = {unit.lower(): 1024**power for power, unit in enumerate(_BINARY)} | {
    unit: 1000**power for power, unit in enumerate(("", "kb", "mb", "gb", "tb", "pb", "eb"))
}
_NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,  # micro sign, and below the Greek letter: keyboards have either
    "μs": 10**3,
    "ms": 10**6,
    "": 10**9,
    "s": 10**9,
    "min": 60 * 10**9,
    "h": 3600 * 10**9,
}


@functools.cache
def _quantity_pattern() -> re.Pattern[str]:
    import re  # when it is first needed, as Decimal: `import sandhost` is to be quick

    # Bounded digits: a text from a request must not cost a big-number conversion.
    return re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*([A-Za-zµμ]*)")


def _quantity(text: str, units: dict[str, int], what: str, examples: str) -> Decimal:
    from decimal import Decimal

    match = _quantity_pattern().fullmatch(text.strip())
    scale = units.get(match[2].lower()) if match else None
    if match is None or scale is None:
        raise ConfigError(f"{text[:40]!r} is not a {what}: write {examples}")
    return Decimal(match[1]) * scale


def parse_bytes(size: str | int) -> int:
    """Return a size in bytes.

    Takes an int, or text such as "65536", "16 MiB" (1024-based), "1.5GiB" or "16 MB" (1000-based).
    A bare "16M" is refused, since tools disagree about it. A fraction of a byte is cut off.

    Raises:
        ConfigError: it is no size, is negative, or is above 2**63 - 1 bytes.
    """
    if isinstance(size, str):
        exact = _quantity(size, _BYTES, "size", 'a number and a unit, such as "16 MiB" or "16 MB"')
        if exact > MAX_BYTES:
            raise ConfigError(f"{size!r} is above the largest size, {MAX_BYTES} bytes")
        return int(exact)
    if isinstance(size, bool) or not isinstance(size, int):
        raise ConfigError(f"a size is an int or text such as '16 MiB', not {size!r}")
    if not 0 <= size <= MAX_BYTES:
        raise ConfigError(f"a size lies between 0 and {MAX_BYTES} bytes, not {_shown(size)}")
    return size


def parse_seconds(duration: str | float) -> float:
    """Return a duration in seconds.

    Takes seconds as a number, or text such as "250 ms", "1.5s", "2 min" or "0.25".

    Raises:
        ConfigError: it is no duration, is negative or not finite, or is above 292 years.
    """
    if isinstance(duration, str):
        nanoseconds = _quantity(duration, _NANOSECONDS, "duration", 'for example "250 ms" or "2 s"')
        seconds = float(nanoseconds / 10**9)
    elif isinstance(duration, bool) or not isinstance(duration, (int, float)):
        raise ConfigError(f"a duration is seconds or text such as '250 ms', not {duration!r}")
    else:
        if isinstance(duration, float) and not math.isfinite(duration):
            raise ConfigError(f"a duration is finite, not {duration!r}")
        if not 0 <= duration <= MAX_SECONDS:
            raise ConfigError(
                f"a duration lies between 0 and {MAX_SECONDS} seconds, not {_shown(duration)}"
            )
        seconds = float(duration)
    if seconds > MAX_SECONDS:
        raise ConfigError(f"{duration!r} is above the longest duration, {MAX_SECONDS} s")
    return seconds


def _shown(number: float) -> str:
    """Return a number as text; Python itself refuses to print an int of many thousand digits."""
    if isinstance(number, int) and number.bit_length() > 256:
        return f"a number of {number.bit_length()} bits"
    return repr(number)


def _three_digits(value: float) -> str:
    """Return a value below 1024 with three significant digits and no trailing zeros."""
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_bytes(size: int) -> str:
    """Return a size as "16 MiB": three significant digits, 1024-based; differences too."""
    sign, size = ("-", -size) if size < 0 else ("", size)
    power = min(max(size.bit_length() - 1, 0) // 10, len(_BINARY) - 1)
    text = _three_digits(size / 1024**power)
    if text == "1024" and power + 1 < len(_BINARY):  # rounded up to the next unit
        text, power = "1", power + 1
    return f"{sign}{text} {_BINARY[power]}"


def format_ns(nanoseconds: int) -> str:
    """Return a duration as "320 ns", "1.5 ms", "12.3 s", "2 min 5 s" or "3 h 12 min"."""
    sign, ns = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    for scale, unit in ((1, "ns"), (10**3, "µs"), (10**6, "ms")):
        text = _three_digits(ns / scale)
        if ns < 1000 * scale and text != "1000":
            return f"{sign}{text} {unit}"
    if ns < 59_950_000_000:  # what would be rounded to 60 s is a minute
        return f"{sign}{_three_digits(ns / 10**9)} s"
    seconds = (ns + 5 * 10**8) // 10**9
    big, small, names = (
        (seconds // 60, seconds % 60, ("min", "s"))
        if seconds < 3600
        else (seconds // 3600, seconds % 3600 // 60, ("h", "min"))
    )
    return f"{sign}{big} {names[0]}" + (f" {small} {names[1]}" if small else "")
