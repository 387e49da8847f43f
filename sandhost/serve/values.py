"""Values of wasm in JSON, and back: what a plugin's function takes and returns.

i32, i64   whole numbers; what goes in may be given as the unsigned number of the same bits
f32, f64   numbers, and "NaN", "Infinity", "-Infinity", which JSON has no numbers for
v128       32 hexadecimal digits, the byte of the lowest address first

References are nothing that JSON could hold.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from ..modules.types import FuncType
from ..protocol.values import VECTOR, WORDS, in_json
from .problems import Invalid

__all__ = ["from_json", "has_json", "to_json"]

_KINDS = frozenset(("i32", "i64", "f32", "f64", "v128"))
_BOUNDS = {"i32": (-(1 << 31), 1 << 32), "i64": (-(1 << 63), 1 << 64)}


def has_json(signature: FuncType) -> bool:
    """Return whether all that a function takes and returns can be written in JSON."""
    return _KINDS.issuperset((*signature.params, *signature.results))


def from_json(name: str, signature: FuncType, arguments: object) -> list[int | float | bytes]:
    """Return what `Guest.call` takes.

    Raises:
        Invalid: there are too many or too few, or one does not fit its type; or the function takes
            or returns what JSON cannot hold.
    """
    _check_kinds(name, signature)
    if not isinstance(arguments, list):
        raise Invalid('"arguments" is a list')
    if len(arguments) != len(signature.params):
        raise Invalid(f"{name} takes {len(signature.params)} arguments, not {len(arguments)}")
    return [
        _argument(at, kind, value)
        for at, (kind, value) in enumerate(zip(signature.params, arguments))
    ]


@functools.lru_cache(maxsize=1024)  # looked up with each request
def _check_kinds(name: str, signature: FuncType) -> None:
    if not has_json(signature):
        kinds = (*signature.params, *signature.results)
        kind = next(kind for kind in kinds if kind not in _KINDS)
        raise Invalid(f"{name} is {signature}: there is no {kind} in JSON")


def _argument(at: int, kind: str, value: object) -> int | float | bytes:
    bounds = _BOUNDS.get(kind)
    if bounds is not None and isinstance(value, int) and not isinstance(value, bool):
        if bounds[0] <= value < bounds[1]:
            return value
        raise Invalid(f"argument {at}: {hex(value)[:40]} does not fit {kind}")
    if kind in ("f32", "f64"):
        if isinstance(value, str) and value in WORDS:
            return WORDS[value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
            raise Invalid(f"argument {at}: the number does not fit {kind}")
    if kind == "v128" and isinstance(value, str) and VECTOR.fullmatch(value):
        return bytes.fromhex(value)
    raise Invalid(f"argument {at} is no {kind}: {_shown(value)}")


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number with more digits than Python likes to write
        return "a very large number"
    return text if len(text) <= 40 else f"{text[:39]}…"


def to_json(signature: FuncType, returned: object) -> list[object]:
    """Return the list of results for what `Guest.call` returned."""
    results: Sequence[object]
    if not signature.results:
        results = ()
    elif len(signature.results) == 1:
        results = (returned,)
    else:
        assert isinstance(returned, tuple)
        results = returned
    return [in_json(value) for value in results]
