"""Records of named tuples as JSON, and back: checked, since what comes back is another process's."""

from __future__ import annotations

import functools
import json
import types
import typing
from typing import Any, TypeVar

from ..errors import SandhostError

__all__ = ["from_json", "to_json"]

_Record = TypeVar("_Record")


def to_json(record: Any) -> bytes:
    """Return a record as JSON of ASCII only, whatever is in its texts."""
    return json.dumps(_plain(record), allow_nan=False, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        if hasattr(value, "_fields"):
            return {name: _plain(item) for name, item in zip(value._fields, value)}
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def from_json(cls: type[_Record], text: bytes) -> _Record:
    """Return the record of class `cls` that was made into `text`.

    Raises:
        SandhostError: it is none, or one of another version.
    """
    try:
        record: _Record = _read(cls, json.loads(text), cls.__name__)
    except (ValueError, RecursionError) as error:
        raise SandhostError(f"this is no {cls.__name__} of this version: {error}") from None
    return record


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _read(kind: Any, value: Any, where: str) -> Any:
    """Return a plain value as what a type hint says, or raise ValueError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):  # only ever `X | None` in records
        if value is None:
            return None
        return _read(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            return tuple(_read(arguments[0], item, where) for item in value)
        if len(arguments) == len(value):
            return tuple(_read(a, item, where) for a, item in zip(arguments, value))
    elif origin is dict and isinstance(value, dict):
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    elif hasattr(kind, "_fields") and isinstance(value, dict):
        missing = next((name for name in kind._fields if name not in value), None)
        if missing is not None:
            raise ValueError(f"{where} has no {missing}")
        hints = _hints(kind)
        return kind._make(
            _read(hints[name], value[name], f"{where}.{name}") for name in kind._fields
        )
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    raise ValueError(f"{where} is {value!r:.40}")
