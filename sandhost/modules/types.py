"""What a module's imports and exports are made of, as frozen descriptions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "WASM_PAGE_BYTES",
    "Export",
    "ExternType",
    "FuncType",
    "GlobalType",
    "Import",
    "Kind",
    "MemoryType",
    "TableType",
    "TagType",
]

WASM_PAGE_BYTES = 65536

Kind = Literal["func", "table", "memory", "global", "tag"]


@dataclass(frozen=True, slots=True)
class FuncType:
    """Parameters and results, each a value type such as "i32", "f64", "externref", "(ref 3)"."""

    params: tuple[str, ...]
    results: tuple[str, ...]

    def __str__(self) -> str:
        return f"({', '.join(self.params)}) -> ({', '.join(self.results)})"


@dataclass(frozen=True, slots=True)
class TableType:
    """A table: the type and number of its elements."""

    element: str
    minimum: int
    maximum: int | None
    is64: bool


@dataclass(frozen=True, slots=True)
class MemoryType:
    """A linear memory. Sizes count wasm pages of `page_size` bytes."""

    minimum: int
    maximum: int | None
    page_size: int
    is64: bool
    shared: bool
    imported: bool

    @property
    def minimum_bytes(self) -> int:
        """Size of the memory when it is created."""
        return self.minimum * self.page_size

    @property
    def maximum_bytes(self) -> int | None:
        """Size that the module never grows beyond, None when it names no maximum."""
        return None if self.maximum is None else self.maximum * self.page_size


@dataclass(frozen=True, slots=True)
class GlobalType:
    """A global variable."""

    type: str
    mutable: bool


@dataclass(frozen=True, slots=True)
class TagType:
    """An exception tag: the types of what it carries."""

    params: tuple[str, ...]


ExternType = FuncType | TableType | MemoryType | GlobalType | TagType


@dataclass(frozen=True, slots=True)
class Import:
    """What a module asks for."""

    module: str
    name: str
    kind: Kind
    type: ExternType


@dataclass(frozen=True, slots=True)
class Export:
    """What a module offers. `index` counts within the kind, imports first."""

    name: str
    kind: Kind
    type: ExternType
    index: int
