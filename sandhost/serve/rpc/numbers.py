"""Values of wasm in messages, and back: what a plugin's function takes and returns.

Every call passes here: what is as it should be takes the straight way, and `_misfit` finds out about all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...modules.types import FuncType
from ..problems import Invalid
from .messages import CallReply, Value

__all__ = ["from_values", "to_reply"]

_KINDS = frozenset(Value.DESCRIPTOR.fields_by_name)
_V128_BYTES = 16


def from_values(name: str, values: Sequence[Value], signature: FuncType) -> tuple[Any, ...]:
    """Return what `Guest.call` takes.

    Raises:
        Invalid: there are too many or too few, or one is not of its type; or the function takes or
            returns what no `Value` is.
    """
    kinds, arguments = signature.params, []
    for kind, value in zip(kinds, values):
        if value.WhichOneof("kind") != kind:
            raise _misfit(name, signature, values)
        arguments.append(getattr(value, kind))
        if kind == "v128" and len(arguments[-1]) != _V128_BYTES:
            raise _misfit(name, signature, values)
    if len(kinds) != len(values) or not _KINDS.issuperset(signature.results):
        raise _misfit(name, signature, values)
    return tuple(arguments)


def _misfit(name: str, signature: FuncType, values: Sequence[Value]) -> Invalid:
    """Return what is wrong with values that are not what the function takes."""
    for kind in (*signature.params, *signature.results):
        if kind not in _KINDS:
            return Invalid(f"{name} is {signature}: there is no {kind} in messages")
    if len(values) != len(signature.params):
        return Invalid(f"{name} takes {len(signature.params)} arguments, not {len(values)}")
    for at, (kind, value) in enumerate(zip(signature.params, values)):
        given = value.WhichOneof("kind")
        if given != kind:
            return Invalid(f"argument {at} is {given or 'empty'}, and has to be {kind}")
        if kind == "v128" and len(value.v128) != _V128_BYTES:
            return Invalid(f"argument {at}: a v128 has 16 bytes, not {len(value.v128):,}")
    raise AssertionError("they are what the function takes")


def to_reply(signature: FuncType, returned: Any) -> CallReply:
    """Return the answer with what `Guest.call` returned."""
    kinds, reply = signature.results, CallReply()
    if len(kinds) == 1:
        returned = (returned,)
    for kind, value in zip(kinds, returned or ()):
        setattr(reply.results.add(), kind, value)
    return reply
