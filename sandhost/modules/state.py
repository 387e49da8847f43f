"""What makes up the state of an instance beside its memories, and how the rewrite opens it to C.

    state                              what is added to the module                     in C
    mutable global 3                   (export "sandhost:global:3" (global 3))         get, set
    table 0                            (export "sandhost:table:0" (table 0))           get, set, grow
    function 7, referred to somewhere  (export "sandhost:func:7" (func 7))             to know it again
    passive data segment 2             (func (export "sandhost:data:2:probe")          traps once dropped
                                         (memory.init 2 (i32.const 0) … 1 byte))
                                       (func (export "sandhost:data:2:drop") (data.drop 2))
    passive element segment 1          the same with table.init and elem.drop
    start function 5                   (export "sandhost:start" (func 5))              called by a spawn,
                                       instead of the start section                    not by a fork

Only functions that some element segment, constant or export names can be in a table or a global:
the specification makes code declare what it takes references of (C.refs). Nothing is added for
segments whose state no code can see: empty ones, and data segments of a module without data count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .leb import encode_unsigned
from .parse import Module

__all__ = [
    "RESERVED_PREFIX",
    "START_EXPORT",
    "AddedFunctions",
    "MutableGlobal",
    "Segment",
    "State",
    "StateTable",
    "function_export",
    "global_export",
    "memory_export",
    "segment_exports",
    "state_of",
    "table_export",
]

RESERVED_PREFIX = "sandhost:"
"""Names that begin so are the rewrite's."""
START_EXPORT = "sandhost:start"

_I32_ZERO, _I64_ZERO = b"\x41\x00", b"\x42\x00"
_ONE = b"\x41\x01"
_MEMORY_INIT, _DATA_DROP, _TABLE_INIT, _ELEM_DROP = (
    b"\xfc\x08",
    b"\xfc\x09",
    b"\xfc\x0c",
    b"\xfc\x0d",
)
_NO_LOCALS, _END = b"\x00", b"\x0b"


@dataclass(frozen=True, slots=True)
class MutableGlobal:
    """A mutable global that the module defines."""

    index: int
    type: str


@dataclass(frozen=True, slots=True)
class StateTable:
    """A table."""

    index: int
    element: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A passive segment that code may use, and drop."""

    kind: Literal["data", "elem"]
    index: int
    target: int
    """The memory or table that its probe writes one byte or element to, at 0."""
    is64: bool
    """Whether the target is addressed with 64 bits."""


@dataclass(frozen=True, slots=True)
class State:
    """Everything that a snapshot captures beside the memories."""

    globals: tuple[MutableGlobal, ...]
    tables: tuple[StateTable, ...]
    functions: tuple[int, ...]
    """Indices of the functions that tables and globals may refer to, ascending."""
    segments: tuple[Segment, ...]
    start: int | None
    """Index of the start function, () -> (): C calls it without a look at its type."""


def memory_export(index: int) -> str:
    """Return the name under which a rewritten module exports a memory."""
    return f"sandhost:memory:{index}"


def global_export(index: int) -> str:
    """Return the name under which a rewritten module exports a mutable global."""
    return f"sandhost:global:{index}"


def table_export(index: int) -> str:
    """Return the name under which a rewritten module exports a table."""
    return f"sandhost:table:{index}"


def function_export(index: int) -> str:
    """Return the name under which a rewritten module exports a function that may be referred to."""
    return f"sandhost:func:{index}"


def segment_exports(segment: Segment) -> tuple[str, str]:
    """Return the names of the functions that probe and that drop a segment."""
    name = f"sandhost:{segment.kind}:{segment.index}"
    return f"{name}:probe", f"{name}:drop"


def state_of(module: Module) -> State:
    """Return what of a module's instances changes while they run."""
    mutable = tuple(
        MutableGlobal(index, global_type.type)
        for index, global_type in enumerate(module.globals)
        if global_type.mutable and index >= module.imported_globals
    )
    numbers = {"i32", "i64", "f32", "f64", "v128"}
    referring = module.tables or any(entry.type not in numbers for entry in mutable)
    return State(
        globals=mutable,
        tables=tuple(StateTable(k, table.element) for k, table in enumerate(module.tables)),
        functions=tuple(sorted(_referable(module))) if referring else (),
        segments=(*_data_segments(module), *_element_segments(module)),
        start=_valid_start(module),
    )


def _valid_start(module: Module) -> int | None:
    """Return the start function, or None for one that wasmtime's validator must see to refuse it."""
    start = module.start
    if start is None or start >= len(module.functions):
        return None
    signature = module.types[module.functions[start]]
    return None if signature.params or signature.results else start


def _referable(module: Module) -> set[int]:
    exported = {export.index for export in module.exports if export.kind == "func"}
    known = len(module.functions)  # an index beyond is left for wasmtime's validator to refuse
    return {index for index in exported | module.constants.functions if index < known}


def _data_segments(module: Module) -> list[Segment]:
    if not module.counts_data or not module.memories:
        return []
    return [
        Segment("data", index, 0, module.memories[0].is64)
        for index, segment in enumerate(module.segments)
        if segment.memory is None and segment.end > segment.bytes_start
    ]


def _element_segments(module: Module) -> list[Segment]:
    found = []
    for index, segment in enumerate(module.elements):
        fitting = [k for k, table in enumerate(module.tables) if table.element == segment.element]
        if segment.passive and segment.length and fitting:
            found.append(Segment("elem", index, fitting[0], module.tables[fitting[0]].is64))
    return found


class AddedFunctions:
    """The probing and dropping functions, as entries for the module's sections.

    They are () -> () and come after all others, so that no index moves.
    """

    def __init__(self, module: Module, segments: tuple[Segment, ...]) -> None:
        self.types = b"\x60\x00\x00" if segments else b""
        """One entry of the type section."""
        type_index = encode_unsigned(len(module.types))
        self.count = 2 * len(segments)
        self.functions = type_index * self.count
        """Entries of the function section."""
        bodies = [body for segment in segments for body in _bodies(segment)]
        self.code = b"".join(encode_unsigned(len(body)) + body for body in bodies)
        """Entries of the code section."""
        names = [name for segment in segments for name in segment_exports(segment)]
        self.exports = list(zip(names, range(len(module.functions), 1 << 32)))
        """Name and function index of each."""


def _bodies(segment: Segment) -> tuple[bytes, bytes]:
    init, drop = (_MEMORY_INIT, _DATA_DROP) if segment.kind == "data" else (_TABLE_INIT, _ELEM_DROP)
    index = encode_unsigned(segment.index)
    to = _I64_ZERO if segment.is64 else _I32_ZERO
    probe = to + _I32_ZERO + _ONE + init + index + encode_unsigned(segment.target)
    return _NO_LOCALS + probe + _END, _NO_LOCALS + drop + index + _END
