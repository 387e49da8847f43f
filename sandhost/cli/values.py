"""What people type: sizes, times, grants, and wasm values, both ways."""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import ConfigError
from ..units import parse_bytes, parse_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..wasi import Dir

__all__ = [
    "as_size",
    "as_time",
    "guess_value",
    "jsonable",
    "parse_dirs",
    "parse_env",
    "parse_value",
    "value_text",
]

_T = TypeVar("_T")
_BITS = {"i32": 32, "i64": 64}
_VECTOR = re.compile(r"(?:0[xX])?([0-9a-fA-F]{32})")


def as_size(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    """Read a size; a callback for click's options."""
    return None if text is None else _read(parse_bytes, text)


def as_time(_context: click.Context, _parameter: click.Parameter, text: str | None) -> float | None:
    """Read a duration in seconds; a callback for click's options."""
    return None if text is None else _read(parse_seconds, text)


def _read(parse: Callable[[str], _T], text: str) -> _T:
    try:
        return parse(text)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


def parse_env(pairs: Sequence[str]) -> dict[str, str]:
    """Read "NAME=VALUE"; a bare "NAME" takes the value from our own environment.

    Raises:
        click.BadParameter: a bare name is not set, or a name is empty.
    """
    environment = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            if name not in os.environ:
                raise click.BadParameter(
                    f"{pair!r} is not set here; write NAME=VALUE", param_hint="--env"
                )
            value = os.environ[name]
        if not name:
            raise click.BadParameter(f"{pair!r} has no name", param_hint="--env")
        environment[name] = value
    return environment


def parse_dirs(texts: Sequence[str]) -> dict[str, Dir]:
    """Read "HOST", "HOST:GUEST" or "HOST:GUEST:rw"; return them by the guest's path.

    Raises:
        click.BadParameter: it is none of these, or two grants have the same path in the guest.
    """
    from ..wasi import Dir

    granted: dict[str, Dir] = {}
    for text in texts:
        host, *rest = text.split(":")
        mode = rest.pop() if len(rest) == 2 else "ro"
        if not host or len(rest) > 1 or mode not in ("ro", "rw"):
            raise click.BadParameter(
                f"{text!r}: write HOST, HOST:GUEST or HOST:GUEST:rw", param_hint="--dir"
            )
        if rest in (["rw"], ["ro"]):
            raise click.BadParameter(
                f"{text!r}: name the path in the guest as well: {host}:{host}:{rest[0]}",
                param_hint="--dir",
            )
        guest = rest[0] if rest and rest[0] else host
        if guest in granted:
            raise click.BadParameter(f"{guest!r} is granted twice", param_hint="--dir")
        granted[guest] = Dir(host, writable=mode == "rw")
    return granted


def parse_value(text: str, kind: str) -> Any:
    """Read one argument of a wasm function.

    Integers are decimal or 0x…, 0o…, 0b…, signed or unsigned; floats as Python reads them, with
    nan, inf and hexadecimal ones; a v128 is 32 hexadecimal digits, lowest address first.

    Raises:
        ValueError: it is no value of this type.
    """
    if kind in _BITS:
        return _parse_integer(text, _BITS[kind])
    if kind in ("f32", "f64"):
        try:
            return float.fromhex(text) if "0x" in text.lower() else float(text)
        except (ValueError, OverflowError):
            raise ValueError(f"{text!r} is no number") from None
    if kind == "v128":
        match = _VECTOR.fullmatch(text.replace("_", ""))
        if match is None:
            raise ValueError(f"{text!r} is no v128: write 32 hexadecimal digits")
        return bytes.fromhex(match[1])
    raise ValueError(f"a {kind} cannot be typed")


def _parse_integer(text: str, bits: int) -> int:
    try:
        if len(text) > 80:
            raise ValueError
        value = int(text, 10) if re.fullmatch(r"[+-]?[0-9]+", text) else int(text, 0)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no integer: write it in decimal or as 0x…") from None
    if not -(1 << bits - 1) <= value < 1 << bits:
        raise ValueError(f"{text} does not fit an i{bits}")
    return value


def guess_value(text: str) -> int | float | bytes:
    """Read an argument of a function whose types are not known here: an integer, a float or a vector.

    Raises:
        click.BadParameter: it is none of them.
    """
    for kind in ("v128", "i64", "f64"):
        try:
            value: int | float | bytes = parse_value(text, kind)
        except ValueError:
            continue
        return value
    raise click.BadParameter(f"{text[:40]!r} is no number, and no vector of 32 hexadecimal digits")


def value_text(value: Any, kind: str) -> str:
    """Write one result so that `parse_value` reads the same value back."""
    if kind == "v128":
        return bytes(value).hex()
    if kind == "f32":
        return _shortest_f32(value)
    return repr(value) if isinstance(value, float) else str(value)


def _shortest_f32(value: float) -> str:
    """Return the shortest decimal that is this f32; as an f64, 0.1 would show 17 digits."""
    for digits in range(1, 10):
        text = f"{value:.{digits}g}"
        try:
            if struct.pack("<f", float(text)) == struct.pack("<f", value):
                break
        except OverflowError:  # rounded up beyond the largest f32
            continue
    return repr(float(text))


def jsonable(value: Any, kind: str) -> Any:
    """Return a result as JSON has it: floats that JSON cannot hold, and vectors, as text."""
    if kind in _BITS:
        return value
    if kind in ("f32", "f64") and math.isfinite(value):
        return float(value_text(value, kind))
    return value_text(value, kind)
