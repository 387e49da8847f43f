"""LEB128, the variable-length integers of WebAssembly binaries.

Source: WebAssembly Core Specification, "Binary Format > Values > Integers". An encoding may be
padded with zero groups, but never beyond ceil(bits / 7) bytes or with bits that do not fit.
"""

from __future__ import annotations

from ..errors import ModuleError

__all__ = ["encode_unsigned", "read_signed", "read_unsigned", "read_unsigned_vector"]


def encode_unsigned(value: int) -> bytes:
    """Return the shortest encoding of a number that is not negative."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _groups(data: bytes, pos: int, end: int, bits: int) -> tuple[int, int]:
    """Return the 7-bit groups at `pos` joined, and the position after them."""
    value = shift = 0
    at = pos
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift >= bits:
            raise ModuleError(f"an integer of {bits} bits takes more bytes than it may", pos)
    raise ModuleError("the module ends inside an integer", pos)


def read_unsigned(data: bytes, pos: int, end: int, bits: int) -> tuple[int, int]:
    """Return the unsigned integer at `pos` and the position after it."""
    value, at = _groups(data, pos, end, bits)
    if value >> bits:
        raise ModuleError(f"an integer is above {bits} bits", pos)
    return value, at


def read_signed(data: bytes, pos: int, end: int, bits: int) -> tuple[int, int]:
    """Return the signed integer at `pos` and the position after it."""
    value, at = _groups(data, pos, end, bits)
    width = 7 * (at - pos)
    if value >> (width - 1):
        value -= 1 << width
    if not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
        raise ModuleError(f"an integer is outside the {bits}-bit signed range", pos)
    return value, at


def read_unsigned_vector(data: bytes, pos: int, end: int, count: int) -> tuple[list[int], int]:
    """Return `count` 32-bit unsigned integers and the position after them."""
    run = data[pos : min(pos + count, end)]
    if len(run) == count and run.isascii():  # all below 0x80: one byte each, no loop
        return list(run), pos + count
    values: list[int] = []
    for _ in range(count):
        value, pos = (
            (data[pos], pos + 1)
            if pos < end and data[pos] < 0x80
            else read_unsigned(data, pos, end, 32)
        )
        values.append(value)
    return values, pos
