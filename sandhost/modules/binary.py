r"""A WebAssembly binary as a list of sections, and the reader that checks every step into them.

    00 61 73 6d   01 00 00 00     id  size  payload      id  size  payload   …
    "\\0asm"       version 1       └── Section ────┘      └── Section ────┘

The bytes are hostile. Nothing here allocates by a number that the module claims: a count is held
against the bytes that are left before anything is read for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ModuleError
from . import leb

__all__ = ["ORDER", "SECTION_NAMES", "Reader", "Section", "SectionId", "split"]


class SectionId:
    """Section ids of the core specification and the exception-handling proposal."""

    CUSTOM = 0
    TYPE = 1
    IMPORT = 2
    FUNCTION = 3
    TABLE = 4
    MEMORY = 5
    GLOBAL = 6
    EXPORT = 7
    START = 8
    ELEMENT = 9
    CODE = 10
    DATA = 11
    DATA_COUNT = 12
    TAG = 13


SECTION_NAMES = {
    value: name.lower().replace("_", " ")
    for name, value in vars(SectionId).items()
    if name.isupper()
}

ORDER = {
    section_id: rank
    for rank, section_id in enumerate(
        (
            SectionId.TYPE,
            SectionId.IMPORT,
            SectionId.FUNCTION,
            SectionId.TABLE,
            SectionId.MEMORY,
            SectionId.TAG,
            SectionId.GLOBAL,
            SectionId.EXPORT,
            SectionId.START,
            SectionId.ELEMENT,
            SectionId.DATA_COUNT,
            SectionId.CODE,
            SectionId.DATA,
        )
    )
}
"""Rank of each known section in a module; custom sections stand anywhere."""

_MAGIC = b"\0asm"
_VERSION = b"\x01\0\0\0"
# As in wasmtime's validator (wasmparser, limits.rs): a longer name is refused later anyway.
_MAX_NAME_BYTES = 100_000
# Ours: the known sections are 13, and compilers add some ten of their own.
_MAX_SECTIONS = 10_000


@dataclass(frozen=True, slots=True)
class Section:
    """Where a section lies: data[start:end] is all of it, data[payload:end] its contents."""

    id: int
    start: int
    payload: int
    end: int


class Reader:
    """A cursor over data[pos:end] that never leaves it."""

    __slots__ = ("data", "end", "pos", "what")

    def __init__(self, data: bytes, pos: int, end: int, what: str) -> None:
        self.data = data
        self.pos = pos
        self.end = end
        self.what = what

    def fail(self, message: str, offset: int | None = None) -> ModuleError:
        """Return the error for something wrong at `offset`, by default here."""
        return ModuleError(f"{self.what}: {message}", self.pos if offset is None else offset)

    def byte(self) -> int:
        """Read one byte."""
        pos = self.pos
        if pos >= self.end:
            raise self.fail("it ends too early")
        self.pos = pos + 1
        return self.data[pos]

    def u32(self) -> int:
        """Read an unsigned 32-bit LEB128."""
        pos = self.pos
        if pos < self.end and (byte := self.data[pos]) < 0x80:  # most are one byte
            self.pos = pos + 1
            return byte
        value, self.pos = leb.read_unsigned(self.data, pos, self.end, 32)
        return value

    def u64(self) -> int:
        """Read an unsigned 64-bit LEB128."""
        value, self.pos = leb.read_unsigned(self.data, self.pos, self.end, 64)
        return value

    def signed(self, bits: int) -> int:
        """Read a signed LEB128 of `bits` bits."""
        value, self.pos = leb.read_signed(self.data, self.pos, self.end, bits)
        return value

    def skip(self, length: int) -> int:
        """Step over `length` bytes and return where they began."""
        pos = self.pos
        if length > self.end - pos:
            raise self.fail(f"{length} bytes are announced, {self.end - pos} are left")
        self.pos = pos + length
        return pos

    def name(self) -> str:
        """Read a name: its length in bytes, then UTF-8."""
        length = self.u32()
        if length > _MAX_NAME_BYTES:
            raise self.fail(f"a name of {length} bytes is above the limit of {_MAX_NAME_BYTES}")
        start = self.skip(length)
        try:
            return self.data[start : self.pos].decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail("a name is not UTF-8", start) from None

    def count(self, limit: int, smallest: int) -> int:
        """Read the number of entries of a vector whose entries take at least `smallest` bytes."""
        at = self.pos
        count = self.u32()
        if count > limit:
            raise self.fail(f"{count} entries are above the limit of {limit}", at)
        if count * smallest > self.end - self.pos:
            raise self.fail(f"{count} entries cannot fit into {self.end - self.pos} bytes", at)
        return count

    def finish(self) -> None:
        """Check that all was read."""
        if self.pos != self.end:
            raise self.fail(f"{self.end - self.pos} bytes follow its last entry")


def _check_preamble(data: bytes) -> None:
    head = data[:8]
    if head[:4] != _MAGIC:
        if head.lstrip()[:1] == b"(":
            raise ModuleError("this is WebAssembly text: assemble it first, e.g. with wat2wasm", 0)
        raise ModuleError(f"this is no WebAssembly module: it begins with {head[:4]!r}", 0)
    if head[4:] == _VERSION:
        return
    if head[6:8] == b"\x01\x00":
        raise ModuleError(
            "this is a WebAssembly component: sandhost loads core modules, so build for wasip1 "
            "or take the core module out of it",
            4,
        )
    raise ModuleError(f"unknown WebAssembly version {head[4:].hex() or 'nothing'}", 4)


def split(data: bytes) -> list[Section]:
    """Return the sections of a module in order.

    Raises:
        ModuleError: it is no core module, or a section is unknown, repeated, misplaced or cut off.
    """
    _check_preamble(data)
    sections: list[Section] = []
    reader = Reader(data, 8, len(data), "the module")
    last_rank = -1
    while reader.pos < reader.end:
        start = reader.pos
        if len(sections) == _MAX_SECTIONS:
            raise ModuleError(f"the module has more than {_MAX_SECTIONS} sections", start)
        section_id = reader.byte()
        if section_id not in SECTION_NAMES:
            raise ModuleError(f"unknown section id {section_id}", start)
        name = SECTION_NAMES[section_id]
        size = reader.u32()
        if size > reader.end - reader.pos:
            left = reader.end - reader.pos
            raise ModuleError(f"the {name} section announces {size} bytes, {left} are left", start)
        payload = reader.skip(size)
        if section_id != SectionId.CUSTOM:
            rank = ORDER[section_id]
            if rank <= last_rank:
                raise ModuleError(f"the {name} section is repeated or out of order", start)
            last_rank = rank
        sections.append(Section(section_id, start, payload, reader.pos))
    return sections
