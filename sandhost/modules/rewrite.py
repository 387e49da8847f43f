"""Turn a module into one whose memory starts as an image instead of being filled at each spawn.

    as written                                  as compiled                       beside it
    (import "env" "memory" (memory 2))          (memory 2)
    (global (mut i32) …)                        the same, and exports: state.py
    (data (i32.const 8) "hello")                (data "")  passive and empty      image: 8: "hello"
    (data (global.get $imported) "x")           the same, still active

Why an empty passive segment stands in: data indices stay as they are, and after instantiation an
active segment behaves as a dropped one, so `memory.init` and `data.drop` on it act alike.

Segments are written in order, later over earlier. So of each memory only those before its first
segment that must stay are lifted. One that lies out of bounds must stay: it makes instantiation
trap, which is what the specification asks for, and nothing of such a guest is ever seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import ModuleError
from .binary import ORDER, SectionId
from .describe import ModuleInfo, summarize
from .leb import encode_unsigned, read_unsigned
from .parse import Module, parse
from .state import (
    RESERVED_PREFIX,
    START_EXPORT,
    AddedFunctions,
    State,
    function_export,
    global_export,
    memory_export,
    state_of,
    table_export,
)
from .types import Export, MemoryType

__all__ = [
    "REWRITE_VERSION",
    "Image",
    "Rewritten",
    "SegmentOutOfBounds",
    "rewrite",
]

REWRITE_VERSION = 2
"""Changes whenever the same module is rewritten differently; part of a compile cache's key."""

_EXPORT_FUNC, _EXPORT_TABLE, _EXPORT_MEMORY, _EXPORT_GLOBAL = b"\x00", b"\x01", b"\x02", b"\x03"
_EMPTY_PASSIVE = b"\x01\x00"


@dataclass(frozen=True, slots=True)
class Image:
    """What a memory holds when it is created: bytes at offsets, zero elsewhere."""

    runs: tuple[tuple[int, memoryview], ...]
    """Offset and bytes, in the order in which they are written: later ones win where they overlap.
    The views keep the original module alive."""
    length: int
    """Where the last byte ends; a sparse image may be far longer than its bytes."""

    @property
    def written_bytes(self) -> int:
        """Sum of the lengths of all runs."""
        return sum(len(run) for _, run in self.runs)

    def write_to(self, buffer: memoryview) -> None:
        """Write the runs into a writable buffer of at least `length` bytes."""
        for offset, run in self.runs:
            buffer[offset : offset + len(run)] = run


@dataclass(frozen=True, slots=True)
class SegmentOutOfBounds:
    """The data segment for which every instantiation will trap."""

    segment: int
    memory: int
    offset: int
    length: int
    memory_bytes: int

    def __str__(self) -> str:
        return (
            f"data segment {self.segment} writes {self.length} bytes at {self.offset} of memory "
            f"{self.memory}, which starts with {self.memory_bytes} bytes"
        )


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A rewritten module and what was taken out of it."""

    wasm: bytes
    """The module to compile."""
    images: tuple[Image | None, ...]
    """Per memory, in index order; None where nothing is to be written."""
    memories: tuple[MemoryType, ...]
    """Per memory; `imported` tells what it was before."""
    state: State
    """What else of an instance changes while it runs, and is exported for snapshots."""
    info: ModuleInfo
    """The module as it was."""
    out_of_bounds: SegmentOutOfBounds | None
    """Set when instantiation is bound to trap with "out of bounds memory access"; the segment is
    still in `wasm`, so wasmtime raises the trap itself."""
    keeps_active_data: bool
    """Whether a data segment had to stay active: every instantiation writes it over the image."""


def rewrite(wasm: bytes) -> Rewritten:
    """Lift data segments into images, define imported memories, open the state for snapshots.

    Everything else stays byte for byte, and equal input gives equal output.

    Raises:
        ModuleError: the module is malformed, uses what sandhost does not load (shared memories,
            GC types, components), or exports a name that the rewrite would add.
    """
    module = parse(wasm)
    _refuse_reserved_names(module.exports)
    state = state_of(module)
    added = AddedFunctions(module, state.segments)
    exports = [
        *((memory_export(k), _EXPORT_MEMORY, k) for k in range(len(module.memories))),
        *((global_export(g.index), _EXPORT_GLOBAL, g.index) for g in state.globals),
        *((table_export(t.index), _EXPORT_TABLE, t.index) for t in state.tables),
        *((function_export(index), _EXPORT_FUNC, index) for index in state.functions),
        *((name, _EXPORT_FUNC, index) for name, index in added.exports),
    ]
    lifting = _Lifting(module)
    replaced: dict[int, bytes | None] = {}
    if any(memory.imported for memory in module.memories):
        replaced |= _define_memories(module)
    if state.start is not None:
        exports.append((START_EXPORT, _EXPORT_FUNC, state.start))
        replaced[SectionId.START] = None
    if exports:
        replaced[SectionId.EXPORT] = _append(module, SectionId.EXPORT, _export_entries(exports))
    if added.count:
        replaced[SectionId.TYPE] = _append(module, SectionId.TYPE, (1, added.types))
        replaced[SectionId.FUNCTION] = _append(
            module, SectionId.FUNCTION, (added.count, added.functions)
        )
        replaced[SectionId.CODE] = _append(module, SectionId.CODE, (added.count, added.code))
    if lifting.lifted:
        replaced[SectionId.DATA] = lifting.section()
    return Rewritten(
        wasm=_assemble(module, replaced),
        images=lifting.images(),
        memories=tuple(module.memories),
        state=state,
        info=summarize(module),
        out_of_bounds=lifting.out_of_bounds,
        keeps_active_data=any(
            segment.memory is not None and index not in lifting.lifted
            for index, segment in enumerate(module.segments)
        ),
    )


def _refuse_reserved_names(exports: Iterable[Export]) -> None:
    for export in exports:
        if export.name.startswith(RESERVED_PREFIX):
            raise ModuleError(
                f"the module exports {export.name!r}: names that begin with {RESERVED_PREFIX!r} "
                "are added by sandhost, so rename it (or is this a module that was rewritten "
                "before?)"
            )


class _Lifting:
    """Decides which data segments leave the module."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._view = memoryview(module.data)
        self._runs: list[list[tuple[int, memoryview]]] = [[] for _ in module.memories]
        self.lifted: set[int] = set()
        self.out_of_bounds: SegmentOutOfBounds | None = None
        self._decide()

    def _decide(self) -> None:
        memories = self._module.memories
        closed = [False] * len(memories)  # memories that have a segment which must stay
        for index, segment in enumerate(self._module.segments):
            memory = segment.memory
            # A memory that does not exist is left for wasmtime's validator to refuse.
            if memory is None or memory >= len(memories) or closed[memory]:
                continue
            memory_type = memories[memory]
            known = segment.offset
            if known is None or known.bits != (64 if memory_type.is64 else 32):
                closed[memory] = True
                continue
            offset, length = known.value, segment.end - segment.bytes_start
            if offset + length > memory_type.minimum_bytes:
                closed[memory] = True
                self.out_of_bounds = self.out_of_bounds or SegmentOutOfBounds(
                    index, memory, offset, length, memory_type.minimum_bytes
                )
                continue
            self.lifted.add(index)
            if length:
                self._runs[memory].append((offset, self._view[segment.bytes_start : segment.end]))

    def images(self) -> tuple[Image | None, ...]:
        return tuple(
            Image(tuple(runs), max(offset + len(run) for offset, run in runs)) if runs else None
            for runs in self._runs
        )

    def section(self) -> bytes:
        """Return the payload of the data section without what was lifted."""
        segments = self._module.segments
        parts: list[bytes | memoryview] = [encode_unsigned(len(segments))]
        for index, segment in enumerate(segments):
            kept = self._view[segment.start : segment.end]
            parts.append(_EMPTY_PASSIVE if index in self.lifted else kept)
        return b"".join(parts)


def _entries(module: Module, section_id: int) -> tuple[int, bytes]:
    """Return count and bytes of the entries of a section, (0, b"") when it is absent."""
    for section in module.sections:
        if section.id == section_id:
            count, start = read_unsigned(module.data, section.payload, section.end, 32)
            return count, module.data[start : section.end]
    return 0, b""


def _define_memories(module: Module) -> dict[int, bytes]:
    """Return import and memory section with each imported memory moved from the one to the other.

    Imported memories come first in the index space, and do so still.
    """
    kept: list[bytes] = []
    moved: list[bytes] = []
    for entry in module.imports:
        if entry.described.kind == "memory":
            moved.append(module.data[entry.type_start : entry.end])
        else:
            kept.append(module.data[entry.start : entry.end])
    count, entries = _entries(module, SectionId.MEMORY)
    return {
        SectionId.IMPORT: encode_unsigned(len(kept)) + b"".join(kept),
        SectionId.MEMORY: encode_unsigned(len(moved) + count) + b"".join(moved) + entries,
    }


def _append(module: Module, section_id: int, added: tuple[int, bytes]) -> bytes:
    """Return the payload of a section with entries added at its end."""
    count, entries = _entries(module, section_id)
    return encode_unsigned(count + added[0]) + entries + added[1]


def _export_entries(exports: list[tuple[str, bytes, int]]) -> tuple[int, bytes]:
    parts = []
    for name, kind, index in exports:
        encoded = name.encode()
        parts.append(encode_unsigned(len(encoded)) + encoded + kind + encode_unsigned(index))
    return len(exports), b"".join(parts)


def _assemble(module: Module, replaced: dict[int, bytes | None]) -> bytes:
    """Return the module with the payloads of some sections replaced, left out (None) or added."""
    view = memoryview(module.data)
    parts: list[bytes | memoryview] = [view[:8]]
    missing = sorted(replaced, key=ORDER.__getitem__)
    for section in module.sections:
        if section.id == SectionId.CUSTOM:
            parts.append(view[section.start : section.end])
            continue
        while missing and ORDER[missing[0]] < ORDER[section.id]:
            parts.append(_section(missing[0], replaced[missing.pop(0)]))
        if missing and missing[0] == section.id:
            parts.append(_section(section.id, replaced[missing.pop(0)]))
        else:
            parts.append(view[section.start : section.end])
    parts += [_section(section_id, replaced[section_id]) for section_id in missing]
    return b"".join(parts)


def _section(section_id: int, payload: bytes | None) -> bytes:
    if payload is None:
        return b""
    return bytes([section_id]) + encode_unsigned(len(payload)) + payload
