"""The contents of the sections that sandhost describes or rewrites; code is skipped.

wasmtime validates the whole module later. What is checked here is what a rewrite depends on, and
what keeps a hostile module from costing more than its length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import ModuleError
from . import leb
from .binary import SECTION_NAMES, Reader, Section, SectionId, split
from .constant import Constant, Constants
from .types import (
    WASM_PAGE_BYTES,
    Export,
    ExternType,
    FuncType,
    GlobalType,
    Import,
    Kind,
    MemoryType,
    TableType,
    TagType,
)

__all__ = ["CustomSection", "DataSegment", "ImportEntry", "Module", "parse"]

# Ours, several times the largest modules known: what is kept per entry costs a hundred times its
# bytes, and reading a value type the slow way 0.3 µs a byte.
_MAX_IMPORTS = _MAX_EXPORTS = _MAX_GLOBALS = _MAX_TAGS = 100_000
_MAX_TYPE_SECTION_BYTES = 4 << 20
# The limits of wasmtime's validator (wasmparser, limits.rs): more is refused later anyway.
_MAX_TYPES = _MAX_FUNCTIONS = 1_000_000
_MAX_DATA_SEGMENTS = _MAX_ELEMENT_SEGMENTS = 100_000
_MAX_ELEMENTS = 10_000_000
_MAX_TABLES = _MAX_MEMORIES = 100
_MAX_PARAMS = _MAX_RESULTS = 1000

_VALUE_TYPES = {
    0x7F: "i32",
    0x7E: "i64",
    0x7D: "f32",
    0x7C: "f64",
    0x7B: "v128",
    0x70: "funcref",
    0x6F: "externref",
    0x69: "exnref",
    0x6E: "anyref",
    0x6D: "eqref",
    0x6C: "i31ref",
    0x6B: "structref",
    0x6A: "arrayref",
    0x74: "nullexnref",
    0x73: "nullfuncref",
    0x72: "nullexternref",
    0x71: "nullref",
}
_ONE_BYTE_TYPES = bytes(_VALUE_TYPES)
_REF, _REF_NULL = 0x64, 0x63
_HEAP_TYPES = {
    -0x10: "func",
    -0x11: "extern",
    -0x12: "any",
    -0x13: "eq",
    -0x14: "i31",
    -0x15: "struct",
    -0x16: "array",
    -0x17: "exn",
    -0x0C: "noexn",
    -0x0D: "nofunc",
    -0x0E: "noextern",
    -0x0F: "none",
}
# `(ref null func)` and `funcref` are one type, and so on.
_NULLABLE = {code - 0x80: name for code, name in _VALUE_TYPES.items() if code - 0x80 in _HEAP_TYPES}

_FUNC_FORM = 0x60
_GC_FORMS = {0x4E: "rec", 0x4F: "sub final", 0x50: "sub", 0x5E: "array", 0x5F: "struct"}

_KINDS: tuple[Kind, ...] = ("func", "table", "memory", "global", "tag")

_HAS_MAXIMUM, _SHARED, _IS_64, _PAGE_SIZE = 0x1, 0x2, 0x4, 0x8


class ImportEntry(NamedTuple):
    """An import with its bytes: data[start:end] is the entry, data[type_start:end] its type."""

    described: Import
    start: int
    type_start: int
    end: int


class DataSegment(NamedTuple):
    """A data segment: data[start:end] is all of it, data[bytes_start:end] what it writes."""

    memory: int | None
    """Index of the memory it is written to when the module starts, None when passive."""
    offset: Constant | None
    """Where it is written, None when passive or not known from the module alone."""
    start: int
    bytes_start: int
    end: int


class ElementSegment(NamedTuple):
    """An element segment: what tables are filled with."""

    passive: bool
    """Whether code may still use it once the module has started."""
    element: str
    length: int


class CustomSection(NamedTuple):
    """Name and length of a custom section."""

    name: str
    size: int


class FuncTypes:
    """The type section: positions only, since a module may define far more types than it shows."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._spans: list[tuple[int, int]] = []
        self._read: dict[int, FuncType] = {}

    def __len__(self) -> int:
        return len(self._spans)

    def add(self, start: int, end: int) -> None:
        """Note where the next type lies; it was skipped, and so checked, once."""
        self._spans.append((start, end))

    def __getitem__(self, index: int) -> FuncType:
        if index not in self._read:
            reader = Reader(self._data, *self._spans[index], "the type section")
            params = _read_value_types(reader, _MAX_PARAMS)
            self._read[index] = FuncType(params, _read_value_types(reader, _MAX_RESULTS))
        return self._read[index]


@dataclass(slots=True)
class Module:
    """What was read. Index spaces (functions, tables, …) list imports first."""

    data: bytes
    sections: list[Section]
    types: FuncTypes
    imports: list[ImportEntry] = field(default_factory=list)
    functions: list[int] = field(default_factory=list)
    """Type index of each function."""
    tables: list[TableType] = field(default_factory=list)
    memories: list[MemoryType] = field(default_factory=list)
    globals: list[GlobalType] = field(default_factory=list)
    imported_globals: int = 0
    tags: list[TagType] = field(default_factory=list)
    exports: list[Export] = field(default_factory=list)
    start: int | None = None
    segments: list[DataSegment] = field(default_factory=list)
    elements: list[ElementSegment] = field(default_factory=list)
    counts_data: bool = False
    """Whether it has a data count section, without which no code can name a data segment."""
    customs: list[CustomSection] = field(default_factory=list)
    name: str | None = None
    constants: Constants = field(default_factory=Constants)


def parse(data: bytes) -> Module:
    """Read a module.

    Raises:
        ModuleError: it is malformed, or holds something that sandhost does not load.
    """
    module = Module(data, split(data), FuncTypes(data))
    for section in module.sections:
        read = _READERS.get(section.id)
        if read is not None:
            what = f"the {SECTION_NAMES[section.id]} section"
            reader = Reader(data, section.payload, section.end, what)
            read(reader, module)
            if section.id != SectionId.CUSTOM:
                reader.finish()
    return module


def _skip_value_types(reader: Reader, limit: int) -> None:
    count = reader.count(limit, 1)
    run = reader.data[reader.pos : reader.pos + count]
    if not run.translate(None, _ONE_BYTE_TYPES):
        reader.pos += count
        return
    for _ in range(count):
        _read_value_type(reader)


def _read_value_types(reader: Reader, limit: int) -> tuple[str, ...]:
    return tuple(_read_value_type(reader) for _ in range(reader.count(limit, 1)))


def _read_value_type(reader: Reader) -> str:
    code = reader.byte()
    if code in _VALUE_TYPES:
        return _VALUE_TYPES[code]
    if code not in (_REF, _REF_NULL):
        raise reader.fail(f"unknown value type {code:#04x}", reader.pos - 1)
    at = reader.pos
    heap = reader.signed(33)
    if heap < 0 and heap not in _HEAP_TYPES:
        raise reader.fail(f"unknown heap type {heap}", at)
    if code == _REF_NULL and heap in _NULLABLE:
        return _NULLABLE[heap]
    return f"(ref {'null ' if code == _REF_NULL else ''}{_HEAP_TYPES.get(heap, heap)})"


def _read_types(reader: Reader, module: Module) -> None:
    size = reader.end - reader.pos
    if size > _MAX_TYPE_SECTION_BYTES:
        raise reader.fail(f"{size} bytes are above the limit of {_MAX_TYPE_SECTION_BYTES}")
    for _ in range(reader.count(_MAX_TYPES, 2)):
        at = reader.pos
        form = reader.byte()
        if form in _GC_FORMS:
            raise ModuleError(
                f"a type of the GC proposal ({_GC_FORMS[form]}), which sandhost does not load", at
            )
        if form != _FUNC_FORM:
            raise reader.fail(f"unknown form of type {form:#04x}", at)
        start = reader.pos
        _skip_value_types(reader, _MAX_PARAMS)
        _skip_value_types(reader, _MAX_RESULTS)
        module.types.add(start, reader.pos)


def _checked_type_index(reader: Reader, module: Module) -> int:
    at = reader.pos
    index = reader.u32()
    if index >= len(module.types):
        raise reader.fail(f"type {index} is used, the module has {len(module.types)}", at)
    return index


def _read_limits(reader: Reader, is64: bool, has_maximum: bool) -> tuple[int, int | None]:
    read = reader.u64 if is64 else reader.u32
    return read(), read() if has_maximum else None


def _read_table(reader: Reader) -> TableType:
    element = _read_value_type(reader)
    at = reader.pos
    flags = reader.byte()
    if flags & ~(_HAS_MAXIMUM | _IS_64):
        what = "a shared table" if flags & _SHARED else f"unknown table flags {flags:#04x}"
        raise reader.fail(f"{what}, which sandhost does not load", at)
    is64 = bool(flags & _IS_64)
    minimum, maximum = _read_limits(reader, is64, bool(flags & _HAS_MAXIMUM))
    return TableType(element, minimum, maximum, is64)


def _read_memory(reader: Reader, imported: bool) -> MemoryType:
    at = reader.pos
    flags = reader.byte()
    if flags & ~(_HAS_MAXIMUM | _SHARED | _IS_64 | _PAGE_SIZE):
        raise reader.fail(f"unknown memory flags {flags:#04x}", at)
    if flags & _SHARED:
        raise ModuleError(
            "the module has a shared memory, which sandhost does not load: build without threads",
            at,
        )
    is64 = bool(flags & _IS_64)
    minimum, maximum = _read_limits(reader, is64, bool(flags & _HAS_MAXIMUM))
    page_size = WASM_PAGE_BYTES
    if flags & _PAGE_SIZE:
        at = reader.pos
        log2 = reader.u32()
        if log2 not in (0, 16):
            raise reader.fail(f"a page size of 2^{log2} bytes; WebAssembly has 1 and 64 KiB", at)
        page_size = 1 << log2
    return MemoryType(minimum, maximum, page_size, is64, shared=False, imported=imported)


def _read_global_type(reader: Reader) -> GlobalType:
    value_type = _read_value_type(reader)
    mutability = reader.byte()
    if mutability > 1:
        raise reader.fail(f"unknown global flags {mutability:#04x}", reader.pos - 1)
    return GlobalType(value_type, mutability == 1)


def _read_tag(reader: Reader, module: Module) -> TagType:
    if (attribute := reader.byte()) != 0:
        raise reader.fail(f"unknown tag attribute {attribute:#04x}", reader.pos - 1)
    return TagType(module.types[_checked_type_index(reader, module)].params)


def _read_imports(reader: Reader, module: Module) -> None:
    for _ in range(reader.count(_MAX_IMPORTS, 4)):
        start = reader.pos
        module_name, name = reader.name(), reader.name()
        at = reader.pos
        code = reader.byte()
        if code >= len(_KINDS):
            raise reader.fail(f"import {module_name!r} {name!r} is of unknown kind {code:#04x}", at)
        type_start = reader.pos
        kind = _KINDS[code]
        imported: ExternType
        if kind == "func":
            index = _checked_type_index(reader, module)
            module.functions.append(index)
            imported = module.types[index]
        elif kind == "table":
            imported = _read_table(reader)
            module.tables.append(imported)
        elif kind == "memory":
            imported = _read_memory(reader, imported=True)
            module.memories.append(imported)
        elif kind == "global":
            imported = _read_global_type(reader)
            module.globals.append(imported)
            module.constants.globals.append(None)
            module.imported_globals += 1
        else:
            imported = _read_tag(reader, module)
            module.tags.append(imported)
        described = Import(module_name, name, kind, imported)
        module.imports.append(ImportEntry(described, start, type_start, reader.pos))


def _read_functions(reader: Reader, module: Module) -> None:
    count = reader.count(_MAX_FUNCTIONS, 1)
    at = reader.pos
    indices, reader.pos = leb.read_unsigned_vector(reader.data, at, reader.end, count)
    if indices and max(indices) >= len(module.types):
        raise reader.fail(f"type {max(indices)} is used, the module has {len(module.types)}", at)
    module.functions += indices


def _read_tables(reader: Reader, module: Module) -> None:
    for _ in range(reader.count(_MAX_TABLES, 3)):
        has_initializer = reader.pos < reader.end and reader.data[reader.pos] == 0x40
        if has_initializer:
            reader.byte()
            if (reserved := reader.byte()) != 0:
                raise reader.fail(f"unknown table form {reserved:#04x}", reader.pos - 1)
        module.tables.append(_read_table(reader))
        if has_initializer:
            module.constants.read(reader)


def _read_memories(reader: Reader, module: Module) -> None:
    for _ in range(reader.count(_MAX_MEMORIES, 2)):
        module.memories.append(_read_memory(reader, imported=False))


def _read_tags(reader: Reader, module: Module) -> None:
    for _ in range(reader.count(_MAX_TAGS, 2)):
        module.tags.append(_read_tag(reader, module))


def _read_globals(reader: Reader, module: Module) -> None:
    bits = {"i32": 32, "i64": 64}
    for _ in range(reader.count(_MAX_GLOBALS, 4)):
        global_type = _read_global_type(reader)
        value = module.constants.read(reader)
        known = value and not global_type.mutable and value.bits == bits.get(global_type.type)
        module.globals.append(global_type)
        module.constants.globals.append(value if known else None)


def _read_exports(reader: Reader, module: Module) -> None:
    spaces: dict[Kind, list[TableType] | list[MemoryType] | list[GlobalType] | list[TagType]] = {
        "table": module.tables,
        "memory": module.memories,
        "global": module.globals,
        "tag": module.tags,
    }
    for _ in range(reader.count(_MAX_EXPORTS, 3)):
        at = reader.pos
        name = reader.name()
        code = reader.byte()
        if code >= len(_KINDS):
            raise reader.fail(f"export {name!r} is of unknown kind {code:#04x}", reader.pos - 1)
        kind = _KINDS[code]
        index = reader.u32()
        size = len(module.functions) if kind == "func" else len(spaces[kind])
        if index >= size:
            raise reader.fail(f"export {name!r} is {kind} {index}, the module has {size}", at)
        exported: ExternType = (
            module.types[module.functions[index]] if kind == "func" else spaces[kind][index]
        )
        module.exports.append(Export(name, kind, exported, index))


def _read_start(reader: Reader, module: Module) -> None:
    module.start = reader.u32()


def _read_elements(reader: Reader, module: Module) -> None:
    for _ in range(reader.count(_MAX_ELEMENT_SEGMENTS, 3)):
        start = reader.pos
        flags = reader.u32()
        if flags > 7:
            raise reader.fail(f"unknown element segment flags {flags:#x}", start)
        active, has_index, expressions = not flags & 1, flags & 2, flags & 4
        if active:
            if has_index:
                reader.u32()
            module.constants.read(reader)
        element = "funcref"
        if not active or has_index:
            if expressions:
                element = _read_value_type(reader)
            elif (kind := reader.byte()) != 0:
                raise reader.fail(f"unknown kind of elements {kind:#04x}", reader.pos - 1)
        length = reader.count(_MAX_ELEMENTS, 1)
        if expressions:
            for _ in range(length):
                module.constants.read(reader)
        else:
            at = reader.pos
            functions, reader.pos = leb.read_unsigned_vector(reader.data, at, reader.end, length)
            module.constants.functions.update(functions)
        module.elements.append(ElementSegment(not active and not has_index, element, length))


def _read_data_count(reader: Reader, module: Module) -> None:
    reader.u32()
    module.counts_data = True


def _read_data(reader: Reader, module: Module) -> None:
    for _ in range(reader.count(_MAX_DATA_SEGMENTS, 2)):
        start = reader.pos
        mode = reader.u32()
        if mode > 2:
            raise reader.fail(f"unknown data segment flags {mode:#x}", start)
        memory = None if mode == 1 else reader.u32() if mode == 2 else 0
        offset = None if mode == 1 else module.constants.read(reader)
        bytes_start = reader.skip(reader.u32())
        module.segments.append(DataSegment(memory, offset, start, bytes_start, reader.pos))


def _read_custom(reader: Reader, module: Module) -> None:
    name = reader.name()
    module.customs.append(CustomSection(name, reader.end - reader.pos))
    if name == "name":
        try:
            module.name = _read_module_name(reader)
        except ModuleError:  # a custom section cannot make a module invalid
            module.name = None


def _read_module_name(reader: Reader) -> str | None:
    if reader.pos == reader.end or reader.byte() != 0:  # subsections are ordered, the name is first
        return None
    reader.u32()
    return reader.name()


_READERS: dict[int, Callable[[Reader, Module], None]] = {
    SectionId.CUSTOM: _read_custom,
    SectionId.TYPE: _read_types,
    SectionId.IMPORT: _read_imports,
    SectionId.FUNCTION: _read_functions,
    SectionId.TABLE: _read_tables,
    SectionId.MEMORY: _read_memories,
    SectionId.TAG: _read_tags,
    SectionId.GLOBAL: _read_globals,
    SectionId.EXPORT: _read_exports,
    SectionId.START: _read_start,
    SectionId.ELEMENT: _read_elements,
    SectionId.DATA_COUNT: _read_data_count,
    SectionId.DATA: _read_data,
}
