"""What `sandhost inspect` finds out: what a module is, what it needs, whether it can be loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ModuleError
from ..modules.binary import SECTION_NAMES, split
from ..modules.describe import WASI_MODULE, ModuleInfo, summarize
from ..modules.parse import DataSegment, Module, parse
from ..modules.rewrite import Rewritten, rewrite
from ..modules.types import ExternType, FuncType, GlobalType, Import, MemoryType, TableType
from ..units import format_bytes

__all__ = ["KeptSegment", "Survey", "as_record", "origin", "survey", "type_text"]

Kind = Literal["command", "reactor", "library", "unknown"]


@dataclass(frozen=True, slots=True)
class KeptSegment:
    """An active data segment that does not become part of an image, but is copied at each spawn."""

    index: int
    memory: int
    size: int
    reason: str


@dataclass(frozen=True, slots=True)
class Survey:
    """All that is known of a module without running it."""

    size: int
    """Length of the binary in bytes."""
    module: Module | None
    """None when it cannot be read to its end; then only the sections are known."""
    info: ModuleInfo | None
    sections: tuple[tuple[str, int], ...]
    """Name and bytes of each section; empty when the bytes are no module at all."""
    image_bytes: int
    """Initial data that guests share, copy-on-write."""
    kept: tuple[KeptSegment, ...]
    obstacles: tuple[str, ...]
    """Why sandhost cannot load it or no guest of it can start; empty when nothing is known."""

    @property
    def kind(self) -> Kind:
        """A command runs once, a reactor is initialized and then called, a library only called."""
        if self.info is None:
            return "unknown"
        if self.info.function("_start") is not None:
            return "command"
        return "reactor" if self.info.function("_initialize") is not None else "library"

    @property
    def host_functions(self) -> tuple[Import, ...]:
        """What a program must define with `@host.function` before it loads the module."""
        imports = self.info.imports if self.info is not None else ()
        return tuple(i for i in imports if i.kind == "func" and i.module != WASI_MODULE)

    @property
    def wasi_functions(self) -> tuple[str, ...]:
        """Names of what it uses of WASI preview 1."""
        imports = self.info.imports if self.info is not None else ()
        return tuple(i.name for i in imports if i.module == WASI_MODULE)

    @property
    def spawn_bytes(self) -> int:
        """Memory that a guest has when it starts, over all its memories."""
        memories = self.info.memories if self.info is not None else ()
        return sum(memory.minimum_bytes for memory in memories)


def survey(wasm: bytes) -> Survey:
    """Find out about a module, however broken it is."""
    try:
        module = parse(wasm)
        rewritten = rewrite(wasm)
    except ModuleError as error:
        return Survey(len(wasm), None, None, _sections(wasm), 0, (), (str(error),))
    info = summarize(module)
    images = sum(image.written_bytes for image in rewritten.images if image is not None)
    return Survey(
        size=len(wasm),
        module=module,
        info=info,
        sections=_sections(wasm),
        image_bytes=images,
        kept=_kept(module, rewritten),
        obstacles=tuple(_obstacles(info, rewritten)),
    )


def _sections(wasm: bytes) -> tuple[tuple[str, int], ...]:
    try:
        sections = split(wasm)
    except ModuleError:
        return ()
    return tuple((SECTION_NAMES.get(s.id, str(s.id)), s.end - s.payload) for s in sections)


def _kept(module: Module, rewritten: Rewritten) -> tuple[KeptSegment, ...]:
    """Compare the segments before and after the rewrite: what is still active was not lifted."""
    kept = []
    blocked: set[int] = set()
    after = parse(rewritten.wasm).segments
    for index, (segment, left) in enumerate(zip(module.segments, after)):
        if left.memory is None or segment.memory is None:
            continue
        size = segment.end - segment.bytes_start
        reason = _reason(index, segment, rewritten, segment.memory in blocked)
        kept.append(KeptSegment(index, segment.memory, size, reason))
        blocked.add(segment.memory)
    return tuple(kept)


def _reason(index: int, segment: DataSegment, rewritten: Rewritten, behind: bool) -> str:
    bad = rewritten.out_of_bounds
    if bad is not None and bad.segment == index:
        return "which lies outside the memory"
    if segment.offset is None:
        return "whose address is an imported global"
    return "which comes after one that must stay" if behind else "whose address has the wrong type"


def _obstacles(info: ModuleInfo, rewritten: Rewritten) -> list[str]:
    obstacles = []
    for wanted in info.imports:
        name = f"{wanted.module}.{wanted.name}"
        if wanted.kind in ("table", "global", "tag"):
            obstacles.append(f"it imports the {wanted.kind} {name}; a host defines functions only")
        elif isinstance(wanted.type, FuncType) and (
            references := [t for t in (*wanted.type.params, *wanted.type.results) if "ref" in t]
        ):
            obstacles.append(
                f"it imports {name} with a reference ({references[0]}), which cannot cross"
            )
    if rewritten.out_of_bounds is not None:
        obstacles.append(f"no guest can start: {rewritten.out_of_bounds}")
    return obstacles


def origin(wanted: Import) -> str:
    """Say who provides an import."""
    if wanted.module == WASI_MODULE:
        return "WASI"
    if wanted.kind == "memory":
        return "a region"
    return "host must define" if wanted.kind == "func" else "cannot be defined"


def type_text(described: ExternType) -> str:
    """Write a type as short as it can be read."""
    if isinstance(described, FuncType):
        results = described.results
        if not results:
            return f"({', '.join(described.params)})"
        shown = results[0] if len(results) == 1 else f"({', '.join(results)})"
        return f"({', '.join(described.params)}) → {shown}"
    if isinstance(described, MemoryType):
        most = described.maximum_bytes
        end = "" if most is None else f", at most {format_bytes(most)}"
        return f"{format_bytes(described.minimum_bytes)}{end}"
    if isinstance(described, TableType):
        end = "" if described.maximum is None else f", at most {described.maximum}"
        return f"{described.minimum} × {described.element}{end}"
    if isinstance(described, GlobalType):
        return f"{'mutable ' if described.mutable else ''}{described.type}"
    return f"({', '.join(described.params)})"


def as_record(found: Survey) -> dict[str, Any]:
    """Return a survey as JSON has it."""
    record: dict[str, Any] = {
        "size": found.size,
        "kind": found.kind,
        "loadable": not found.obstacles,
        "obstacles": list(found.obstacles),
        "sections": [{"name": name, "bytes": size} for name, size in found.sections],
    }
    info, module = found.info, found.module
    if info is None or module is None:
        return record
    return record | {
        "name": info.name,
        "functions": info.functions,
        "start_function": info.start,
        "imports": [
            {
                "module": i.module,
                "name": i.name,
                "kind": i.kind,
                "type": _type_record(i.type),
                "from": origin(i),
            }
            for i in info.imports
        ],
        "exports": [
            {"name": e.name, "kind": e.kind, "index": e.index, "type": _type_record(e.type)}
            for e in info.exports
        ],
        "memories": [_type_record(memory) for memory in info.memories],
        "tables": [_type_record(table) for table in info.tables],
        "globals": [_type_record(g) for g in module.globals],
        "data": {
            "active_segments": info.data.active_segments,
            "active_bytes": info.data.active_bytes,
            "passive_segments": info.data.passive_segments,
            "passive_bytes": info.data.passive_bytes,
            "image_bytes": found.image_bytes,
            "not_lifted": [
                {"segment": k.index, "memory": k.memory, "bytes": k.size, "reason": k.reason}
                for k in found.kept
            ],
        },
        "custom_sections": [{"name": c.name, "bytes": c.size} for c in info.custom_sections],
        "needs": {
            "memory_bytes": found.spawn_bytes,
            "wasi": bool(found.wasi_functions),
            "host_functions": [
                {"module": i.module, "name": i.name, "type": _type_record(i.type)}
                for i in found.host_functions
            ],
        },
    }


def _type_record(described: ExternType) -> dict[str, Any]:
    if isinstance(described, FuncType):
        return {"params": list(described.params), "results": list(described.results)}
    if isinstance(described, MemoryType):
        return {
            "minimum_pages": described.minimum,
            "maximum_pages": described.maximum,
            "page_bytes": described.page_size,
            "minimum_bytes": described.minimum_bytes,
            "maximum_bytes": described.maximum_bytes,
            "is64": described.is64,
            "shared": described.shared,
            "imported": described.imported,
        }
    if isinstance(described, TableType):
        return {
            "element": described.element,
            "minimum": described.minimum,
            "maximum": described.maximum,
            "is64": described.is64,
        }
    if isinstance(described, GlobalType):
        return {"type": described.type, "mutable": described.mutable}
    return {"params": list(described.params)}
