"""Values of wasm in JSON: numbers are numbers, but for those that JSON has none for; a vector is text.

NaN and the infinities   "NaN", "Infinity", "-Infinity"
v128, as 16 bytes        32 hexadecimal digits, the byte of the lowest address first

A type of wasm is not needed to tell them apart, in either direction.
"""

from __future__ import annotations

import math
import re

__all__ = ["VECTOR", "WORDS", "Value", "in_json", "of_json"]

Value = int | float | bytes

VECTOR = re.compile("[0-9a-fA-F]{32}")
WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def in_json(value: object) -> object:
    """Return what JSON holds in a value's place."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def of_json(held: object) -> Value:
    """Return the value that JSON holds the place of.

    Raises:
        ValueError: it holds no value's place.
    """
    if isinstance(held, (int, float)) and not isinstance(held, bool):
        return held
    if isinstance(held, str):
        if held in WORDS:
            return WORDS[held]
        if VECTOR.fullmatch(held):
            return bytes.fromhex(held)
    raise ValueError(f"{held!r:.40} is no value of wasm")
