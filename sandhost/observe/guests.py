"""What guests do, as a profile: the counterpart of Go's profile of goroutines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .._ffi import failure, ffi, lib
from ..errors import printable
from .capture import Capture
from .pprof import Profile, Sample, ValueType

if TYPE_CHECKING:
    from ..govern.census import GuestRow
    from ..host import Host

__all__ = ["guests_profile"]

_TYPES = (
    ValueType("guests", "count"),
    ValueType("memory_space", "bytes"),
    ValueType("handles", "count"),
    ValueType("handle_space", "bytes"),
)
_PATIENCE_NS = 20_000_000
"""For guests to tell their stacks: ten ticks, of which they need one. Arbitrary."""
_MOST_FRAMES = 200
_MOST_SHOWN = 120


def guests_profile(host: Host, *, ages: bool = True) -> Profile:
    """Return all guests as a profile: how many, the memory they have committed, and their handles.

    The stack is tenant, plugin, what it does ("idle", "running", "waiting"), and below that its wasm functions, if it
    computes or waits in a call that can wait, and the host function that it is in or waits for. Stacks are told by the
    guests themselves, those that compute at their next look at the clock: some ms later than the rest.

    Args:
        ages: False leaves out the tag that makes two profiles of the same guests differ.
    """
    taken = Capture(host)
    stacks = _stacks(host)
    samples: dict[Sample, list[int]] = {}
    for row in taken.guests:
        key = Sample(_stack_of(row, stacks), (), _tags_of(row, ages))
        values = samples.setdefault(key, [0] * len(_TYPES))
        for k, value in enumerate((1, row.memory_bytes, row.handles, row.handle_bytes)):
            values[k] += value
    found = tuple(sample._replace(values=tuple(values)) for sample, values in samples.items())
    comment = f"sandhost: {len(taken.guests)} guests"
    return Profile(_TYPES, found, taken.time_ns, 0, "guests", (comment,))


def _name(text: str) -> str:
    return printable(text, _MOST_SHOWN)


def _stack_of(row: GuestRow, stacks: dict[int, tuple[str, ...]]) -> tuple[str, ...]:
    tenant = () if row.tenant is None else (f"tenant {_name(row.tenant)}",)
    outer = (*tenant, f"plugin {_name(row.plugin)}", row.doing)
    if row.doing == "idle":
        return outer
    outer += stacks.get(row.id, ())
    if row.doing == "running" and row.id in stacks:
        return outer
    name = ffi.new("char[]", 256)
    lib.sh_guest_inside(row.id, name, len(name))
    inside = _name(ffi.string(name).decode(errors="replace"))
    return (*outer, inside) if inside else outer


def _tags_of(row: GuestRow, ages: bool) -> tuple[tuple[str, str | int], ...]:
    tags: list[tuple[str, str | int]] = []
    if row.tenant is not None:
        tags.append(("tenant", _name(row.tenant)))
    tags += [("plugin", _name(row.plugin)), ("node", str(row.node)), ("doing", row.doing)]
    if ages:
        tags.append(("age", 1 << max(0, row.age_ns.bit_length() - 1)))
    return tuple(tags)


def _stacks(host: Host) -> dict[int, tuple[str, ...]]:
    """Return the wasm functions, outermost first, that guests were in, by their ids."""
    native = lib.sh_stacks_take(host.native, _PATIENCE_NS)
    if not native:
        raise failure()
    native = ffi.gc(native, lib.sh_stacks_free)
    data, length = ffi.new("uint8_t **"), ffi.new("size_t *")
    guests, count = ffi.new("uint64_t **"), ffi.new("uint32_t *")
    found: dict[int, tuple[str, ...]] = {}
    number = 0
    while lib.sh_stacks_of(native, number, data, length, guests, count):
        if count[0]:
            told = ffi.unpack(guests[0], count[0])
            found.update(zip(told, _read(bytes(ffi.buffer(data[0], length[0])))))
        number += 1
    return found


def _read(data: bytes) -> list[tuple[str, ...]]:
    """Read the stacks of a "processed profile" of Firefox's, which wasmtime writes."""
    profile = json.loads(data)
    thread = profile["threads"][0]
    tables = profile.get("shared", thread)  # newer ones share tables between threads
    strings, functions = tables["stringArray"], tables["funcTable"]["name"]
    frames, stacks = tables["frameTable"]["func"], tables["stackTable"]

    def stack(at: Any) -> tuple[str, ...]:
        names: list[str] = []
        while at is not None and len(names) < _MOST_FRAMES:
            names.append(_name(strings[functions[frames[stacks["frame"][at]]]]))
            at = stacks["prefix"][at]
        return tuple(reversed(names))

    return [stack(at) for at in thread["samples"]["stack"]]
