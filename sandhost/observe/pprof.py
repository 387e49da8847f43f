"""Profiles in pprof's format: what `go tool pprof`, and many other programs, open.

The format is one small Protocol Buffers message (github.com/google/pprof, proto/profile.proto). It is
written and read here, a hundred lines, because it has not changed in years, while protobuf's package
would bring generated code that is bound to its own version.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ..errors import ConfigError

__all__ = ["Profile", "Sample", "ValueType", "decode", "encode"]

_MOST_BYTES = 1 << 30
"""Of a profile, unpacked. Arbitrary."""


class ValueType(NamedTuple):
    """What one value of each sample is, and its unit."""

    kind: str
    unit: str


class Sample(NamedTuple):
    """Values of one stack, and tags: texts, or numbers of nanoseconds."""

    stack: tuple[str, ...]
    """Outermost first."""
    values: tuple[int, ...]
    tags: tuple[tuple[str, str | int], ...] = ()


class Profile(NamedTuple):
    """Samples of one instant, or of the time between two."""

    types: tuple[ValueType, ...]
    samples: tuple[Sample, ...]
    time_ns: int
    """Since 1970."""
    duration_ns: int = 0
    shown: str = ""
    """The kind of value that is looked at first."""
    comments: tuple[str, ...] = ()

    def since(self, before: Profile) -> Profile:
        """Return what has changed since an earlier profile of the same kind; values may be below 0."""
        sums: dict[tuple[object, object], list[int]] = {}
        for sign, profile in ((-1, before), (1, self)):
            for sample in profile.samples:
                values = sums.setdefault((sample.stack, sample.tags), [0] * len(self.types))
                for k, value in enumerate(sample.values):
                    values[k] += sign * value
        samples = tuple(
            Sample(stack, tuple(values), tags)  # type: ignore[arg-type]
            for (stack, tags), values in sums.items()
            if any(values)
        )
        duration = self.time_ns - before.time_ns
        return self._replace(samples=samples, duration_ns=duration)


# ---- writing ----


def _varint(number: int) -> bytes:
    number &= 2**64 - 1  # a negative int64 is its two's complement
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number) if number else b""


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _packed(field: int, numbers: Iterable[int]) -> bytes:
    return _bytes(field, b"".join(map(_varint, numbers)))


class _Table(dict[str, int]):
    """Numbers for texts, in the order in which they were first asked for."""

    def __missing__(self, text: str) -> int:
        self[text] = number = len(self)
        return number


def encode(profile: Profile) -> bytes:
    """Return a profile as pprof's programs expect it, packed with gzip."""
    strings, functions = _Table({"": 0}), _Table()
    out = bytearray()
    for value in profile.types:
        out += _bytes(1, _number(1, strings[value.kind]) + _number(2, strings[value.unit]))
    for sample in profile.samples:
        out += _bytes(2, _sample(sample, strings, functions))
    # A mapping that says its functions are named: else pprof looks for a program to ask.
    out += _bytes(3, _number(1, 1) + _number(5, strings["sandhost"]) + _number(7, 1))
    for name, index in functions.items():
        line = _bytes(4, _number(1, index + 1))
        out += _bytes(4, _number(1, index + 1) + _number(2, 1) + line)
        out += _bytes(5, _number(1, index + 1) + _number(2, strings[name]))
    comments = [strings[comment] for comment in profile.comments]
    shown = strings[profile.shown]
    for text in strings:
        out += _bytes(6, text.encode(errors="replace"))
    out += _number(9, profile.time_ns) + _number(10, profile.duration_ns)
    if comments:
        out += _packed(13, comments)
    out += _number(14, shown)
    return gzip.compress(bytes(out), compresslevel=6, mtime=0)


def _sample(sample: Sample, strings: _Table, functions: _Table) -> bytes:
    locations = (functions[name] + 1 for name in reversed(sample.stack))  # pprof: innermost first
    out = _packed(1, locations) + _packed(2, sample.values)
    for key, value in sample.tags:
        label = _number(1, strings[key])
        if isinstance(value, str):
            label += _number(2, strings[value])
        else:
            label += _number(3, value) + _number(4, strings["nanoseconds"])
        out += _bytes(3, label)
    return out


# ---- reading ----

_Fields = dict[int, list[int | bytes]]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ConfigError("this is no profile: it ends in the middle of a number")
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number & (2**64 - 1), at


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        if key & 7 == 0:
            number, at = _read_varint(data, at)
            yield key >> 3, number
            continue
        length, at = _read_varint(data, at) if key & 7 == 2 else ({1: 8, 5: 4}.get(key & 7, -1), at)
        if length < 0 or at + length > len(data):
            raise ConfigError("this is no profile: a field of it has no end")
        yield key >> 3, data[at : at + length]
        at += length


def _message(data: int | bytes) -> _Fields:
    fields: _Fields = {}
    if isinstance(data, int):
        raise ConfigError("this is no profile: a number stands where a message should")
    for number, value in _fields(data):
        fields.setdefault(number, []).append(value)
    return fields


def _text(data: int | bytes) -> str:
    if isinstance(data, int):
        raise ConfigError("this is no profile: a number stands where a text should")
    return data.decode(errors="replace")


def _int(fields: _Fields, number: int) -> int:
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int):
        raise ConfigError("this is no profile: bytes stand where a number should")
    return value


def _ints(fields: _Fields, number: int) -> list[int]:
    out: list[int] = []
    for value in fields.get(number, []):
        if isinstance(value, int):
            out.append(value)
            continue
        at = 0
        while at < len(value):
            item, at = _read_varint(value, at)
            out.append(item)
    return out


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def decode(data: bytes) -> Profile:
    """Read a profile that any program wrote, packed or not.

    Raises:
        ConfigError: it is none.
    """
    if data[:2] == b"\x1f\x8b":
        data = _unpacked(data)
    top = _message(data)
    texts = [_text(text) for text in top.get(6, [])]
    functions = {_int(f, 1): _int(f, 2) for f in map(_message, top.get(5, []))}
    lines = {
        _int(f, 1): [functions.get(_int(_message(line), 1), 0) for line in f.get(4, [])]
        for f in map(_message, top.get(4, []))
    }
    try:
        return Profile(
            tuple(
                ValueType(texts[_int(f, 1)], texts[_int(f, 2)])
                for f in map(_message, top.get(1, []))
            ),
            tuple(_read_sample(_message(f), texts, lines) for f in top.get(2, [])),
            _signed(_int(top, 9)),
            _signed(_int(top, 10)),
            texts[_int(top, 14)],
            tuple(texts[number] for number in _ints(top, 13)),
        )
    except IndexError:
        raise ConfigError("this is no profile: it names a text that it does not have") from None


def _read_sample(fields: _Fields, texts: list[str], lines: Mapping[int, list[int]]) -> Sample:
    stack = [texts[name] for at in _ints(fields, 1) for name in lines.get(at, [])]
    tags: list[tuple[str, str | int]] = []
    for label in map(_message, fields.get(3, [])):
        text = _int(label, 2)
        tags.append((texts[_int(label, 1)], texts[text] if text else _signed(_int(label, 3))))
    values = tuple(map(_signed, _ints(fields, 2)))
    return Sample(tuple(reversed(stack)), values, tuple(tags))


def _unpacked(data: bytes) -> bytes:
    import zlib

    try:
        unpacker = zlib.decompressobj(wbits=31)
        out = unpacker.decompress(data, _MOST_BYTES)
    except zlib.error as error:
        raise ConfigError(f"this is no profile: {error}") from None
    if not unpacker.eof:
        raise ConfigError("this is no profile: it is cut off, or has no end")
    return out
