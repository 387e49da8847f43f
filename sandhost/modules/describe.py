"""What a module is, in frozen records: what it asks for, offers, and brings along."""

from __future__ import annotations

from dataclasses import dataclass

from .parse import CustomSection, Module, parse
from .types import Export, FuncType, Import, MemoryType, TableType

__all__ = ["WASI_MODULE", "DataSummary", "ModuleInfo", "describe", "summarize"]

WASI_MODULE = "wasi_snapshot_preview1"
"""Where imports of WASI preview 1 come from. Its predecessor, wasi_unstable, is not served."""


@dataclass(frozen=True, slots=True)
class DataSummary:
    """How many data segments a module has, and their bytes."""

    active_segments: int
    active_bytes: int
    passive_segments: int
    passive_bytes: int


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """A module as its author wrote it, before any rewrite."""

    name: str | None
    size: int
    """Length of the module in bytes."""
    imports: tuple[Import, ...]
    exports: tuple[Export, ...]
    memories: tuple[MemoryType, ...]
    tables: tuple[TableType, ...]
    functions: int
    """Number of functions, imported ones included."""
    mutable_globals: int
    """Number of mutable globals that the module defines itself."""
    data: DataSummary
    start: int | None
    """Index of the start function, which runs when the module is instantiated."""
    custom_sections: tuple[CustomSection, ...]

    @property
    def has_wasi(self) -> bool:
        """Whether it imports from WASI preview 1."""
        return any(wanted.module == WASI_MODULE for wanted in self.imports)

    def function(self, name: str) -> FuncType | None:
        """Return the type of the exported function of this name, None when there is none."""
        for export in self.exports:
            if export.name == name and isinstance(export.type, FuncType):
                return export.type
        return None


def describe(wasm: bytes) -> ModuleInfo:
    """Describe a module without compiling it.

    Raises:
        ModuleError: it is malformed, or holds something that sandhost does not load.
    """
    return summarize(parse(wasm))


def summarize(module: Module) -> ModuleInfo:
    """Describe a module that was parsed."""
    sizes = {True: [0, 0], False: [0, 0]}
    for segment in module.segments:
        tally = sizes[segment.memory is not None]
        tally[0] += 1
        tally[1] += segment.end - segment.bytes_start
    return ModuleInfo(
        name=module.name,
        size=len(module.data),
        imports=tuple(entry.described for entry in module.imports),
        exports=tuple(module.exports),
        memories=tuple(module.memories),
        tables=tuple(module.tables),
        functions=len(module.functions),
        mutable_globals=sum(g.mutable for g in module.globals[module.imported_globals :]),
        data=DataSummary(*sizes[True], *sizes[False]),
        start=module.start,
        custom_sections=tuple(module.customs),
    )
