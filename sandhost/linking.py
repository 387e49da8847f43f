"""From a compiled module to a plugin in C, which is told of memories, imports, exports and state one by one."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from ._ffi import failure, ffi, lib
from .errors import ModuleError, printable
from .exports import Exports
from .hostcalls import HANDLE_MODULE, LETTERS, HostFunction, is_handle_import, unbind
from .limits import UNLIMITED
from .modules.compiled import Compiled
from .modules.describe import WASI_MODULE
from .modules.rewrite import Rewritten
from .modules.state import State
from .modules.types import FuncType, Import

__all__ = ["Linked"]


class Linked:
    """A `sh_plugin *` that is ready to spawn from, and what lives as long: its host functions.

    Raises:
        ModuleError: the module imports what is not defined, or as something else.
    """

    def __init__(
        self,
        host: Any,
        name: str,
        compiled: Compiled,
        functions: Mapping[tuple[str, str], HostFunction],
    ) -> None:
        rewritten = compiled.rewritten
        self._host, self._info = host, rewritten.info
        self.native = ffi.gc(lib.sh_plugin_new(host.native, compiled.native), lib.sh_plugin_release)
        if not self.native:
            raise failure()
        self._do(lib.sh_plugin_name(self.native, printable(name).encode(errors="replace")))
        self.numbers: list[int] = []
        """Of the host functions that it imports, as C knows them."""
        self._adapters: list[Any] = []
        weakref.finalize(self, unbind, self.numbers).atexit = False
        self.calls_back = False
        """A host function wants to know the guest that calls it."""
        self.exports = Exports()
        self._add_memories(rewritten)
        self._add_imports(functions)
        self._add_exports()
        tables = self._info.tables
        largest = max((table.minimum for table in tables), default=0)
        lib.sh_plugin_tables(self.native, len(tables), largest)
        self._add_state(rewritten.state)
        self._do(lib.sh_plugin_link(self.native))

    def _do(self, status: int) -> None:
        if status == lib.SH_ARGUMENT:
            raise ModuleError(str(failure()))
        if status:
            raise failure()

    def _add_memories(self, rewritten: Rewritten) -> None:
        for memory, image in zip(rewritten.memories, rewritten.images):
            runs = image.runs if image is not None else ()
            views = [ffi.from_buffer(run) for _, run in runs]
            self._do(
                lib.sh_plugin_memory(
                    self.native,
                    min(memory.minimum_bytes, UNLIMITED),  # one more than 64 bits can be declared
                    UNLIMITED
                    if memory.maximum_bytes is None
                    else min(memory.maximum_bytes, UNLIMITED),
                    memory.page_size,
                    image.length if image is not None else 0,
                    len(runs),
                    [offset for offset, _ in runs],
                    [ffi.cast("uint8_t *", view) for view in views],
                    [len(run) for _, run in runs],
                )
            )

    def _add_imports(self, functions: Mapping[tuple[str, str], HostFunction]) -> None:
        if self._info.has_wasi:  # first, so that a host function may stand in for one of it
            exported = [e.index for e in self._info.exports if e.kind == "memory"]
            self._do(lib.sh_plugin_wasi(self.native, exported[0] if exported else 0))
        self._add_handles()
        missing = []
        seen = set()
        for wanted in self._info.imports:
            key = (wanted.module, wanted.name)
            function = functions.get(key)
            if wanted.kind == "memory" or (wanted.module == WASI_MODULE and function is None):
                continue
            if function is None and is_handle_import(wanted):
                continue
            if function is None or not isinstance(wanted.type, FuncType):
                missing.append(wanted)
            elif key not in seen:
                seen.add(key)
                self._add_function(function, wanted.type)
        if missing:
            raise ModuleError(_describe_missing(missing, functions))

    def _add_handles(self) -> None:
        names = {wanted.name for wanted in self._info.imports if wanted.module == HANDLE_MODULE}
        if names:
            _ = self._host.handles  # with it comes its collector
            self._do(lib.sh_plugin_handles(self.native, "release" in names))

    def _add_function(self, function: HostFunction, wanted: FuncType) -> None:
        function.check(wanted)
        params, results = _letters(wanted)
        if b"r" in params + results:
            raise ModuleError(
                f"the module imports {function.module}.{function.name} as {wanted}; "
                "references cannot cross"
            )
        number, adapter = function.bind(wanted, self._host)
        self.numbers.append(number)
        self._adapters.append(adapter)
        self.calls_back |= function.wants_guest is not None
        self._do(
            lib.sh_plugin_import(
                self.native,
                function.module.encode(),
                function.name.encode(),
                params,
                results,
                number,
                function.asynchronous,
            )
        )

    def _add_exports(self) -> None:
        letters: dict[FuncType, tuple[bytes, bytes]] = {}
        for export in self._info.exports:
            if not isinstance(export.type, FuncType):
                continue
            of_type = letters.get(export.type)
            if of_type is None:
                of_type = letters[export.type] = _letters(export.type)
            name = export.name.encode("utf-8", "surrogateescape")
            self._do(lib.sh_plugin_export(self.native, name, len(name), *of_type))
            self.exports.add(export.name, export.type)

    def _add_state(self, state: State) -> None:
        for variable in state.globals:
            letter = _state_letter(variable.type)
            self._do(lib.sh_plugin_global(self.native, variable.index, letter))
        for table in state.tables:
            letter = _state_letter(table.element)
            self._do(lib.sh_plugin_table(self.native, table.index, letter))
        for segment in state.segments:
            letter = ord("D" if segment.kind == "data" else "T")
            self._do(lib.sh_plugin_segment(self.native, segment.index, letter, segment.target))
        functions = state.functions
        self._do(
            lib.sh_plugin_functions(
                self.native, list(functions), len(functions), state.start is not None
            )
        )


def _letters(type_: FuncType) -> tuple[bytes, bytes]:
    """Return C's letters for parameters and results; "r" for what cannot cross."""
    params, results = (
        "".join(LETTERS.get(t, "r") for t in side).encode()
        for side in (type_.params, type_.results)
    )
    return params, results


def _state_letter(value_type: str) -> int:
    """Return C's letter for the type of a global or of a table's elements."""
    reference = "E" if "extern" in value_type else "X" if "exn" in value_type else "F"
    return ord(LETTERS.get(value_type, reference))


def _describe_missing(
    missing: list[Import], functions: Mapping[tuple[str, str], HostFunction]
) -> str:
    lines = []
    for wanted in missing[:10]:
        kind = "function" if wanted.kind == "func" else wanted.kind
        name = f"{printable(wanted.module)}.{printable(wanted.name)}"
        lines.append(f"  {name}: {kind} {wanted.type}")
    if len(missing) > 10:
        lines.append(f"  … and {len(missing) - 10} more")
    defined = ", ".join(sorted(f"{module}.{name}" for module, name in functions)) or "none"
    return (
        "the module imports what the host does not define:\n"
        + "\n".join(lines)
        + f"\nhost functions defined before load: {defined}"
    )
