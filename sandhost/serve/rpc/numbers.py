"""Values of wasm in messages, and back: what a plugin's function takes and returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...modules.types import FuncType
from ..problems import Invalid
from .messages import Value

__all__ = ["from_values", "to_values"]

_KINDS = frozenset(Value.DESCRIPTOR.fields_by_name)


def from_values(name: str, signature: FuncType, values: Sequence[Value]) -> list[Any]:
    """Return what `Guest.call` takes.

    Raises:
        Invalid: there are too many or too few, or one is not of its type; or the function takes or
            returns what no `Value` is.
    """
    for kind in (*signature.params, *signature.results):
        if kind not in _KINDS:
            raise Invalid(f"{name} is {signature}: there is no {kind} in messages")
    if len(values) != len(signature.params):
        raise Invalid(f"{name} takes {len(signature.params)} arguments, not {len(values)}")
    return [
        _argument(at, kind, value) for at, (kind, value) in enumerate(zip(signature.params, values))
    ]


def _argument(at: int, kind: str, value: Value) -> Any:
    given = value.WhichOneof("kind")
    if given != kind:
        raise Invalid(f"argument {at} is {given or 'empty'}, and has to be {kind}")
    argument = getattr(value, kind)
    if kind == "v128" and len(argument) != 16:
        raise Invalid(f"argument {at}: a v128 has 16 bytes, not {len(argument):,}")
    return argument


def to_values(signature: FuncType, returned: Any) -> list[Value]:
    """Return the results for what `Guest.call` returned."""
    kinds = signature.results
    if len(kinds) == 1:
        returned = (returned,)
    return [Value(**{kind: value}) for kind, value in zip(kinds, returned or ())]
