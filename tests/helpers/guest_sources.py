"""guests/build.py as a module, and its guests running in wasmtime's own Python bindings."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import wasmtime

GUESTS = Path(__file__).parents[2] / "guests"
WAT_NAMES = sorted(path.stem for path in GUESTS.glob("wat/*.wat"))


def load_build(folder: Path) -> ModuleType:
    """The build.py of a folder as a module of its own."""
    spec = importlib.util.spec_from_file_location(
        f"guests_build_{folder.parent.name}", folder / "build.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


build = load_build(GUESTS)


def needs(kind: str) -> None:
    """Skip the test where the compiler of this kind of source is missing."""
    try:
        build.tool_version(kind)
        if kind == "js":
            build._fetch_quickjs()
    except build.ToolMissingError as missing:
        pytest.skip(str(missing))


@functools.cache
def fresh(name: str) -> bytes:
    """The guest's bytes as its source gives them now."""
    return bytes(build.build(build.all_guests()[name]))


def wasm_of(name: str) -> bytes:
    """The guest's bytes: the committed ones of what is compiled from C, else a fresh build."""
    guest = build.all_guests()[name]
    if name not in build.SHIPPED or guest.kind == "wat":
        return fresh(name)
    return bytes((build.BUILT / f"{name}.wasm").read_bytes())


@functools.lru_cache
def compiled(engine: wasmtime.Engine, name: str) -> wasmtime.Module:
    """The guest in machine code; a second of work for QuickJS."""
    return wasmtime.Module(engine, wasm_of(name))


class Running:
    """One instance, its exports callable as attributes, its memory as bytes."""

    def __init__(self, engine: wasmtime.Engine, name: str) -> None:
        self.store = wasmtime.Store(engine)
        self.store.set_fuel(50_000_000)
        self.store.set_wasi(wasmtime.WasiConfig())
        self.module = compiled(engine, name)
        linker = wasmtime.Linker(engine)
        linker.define_wasi()
        self.exports = linker.instantiate(self.store, self.module).exports(self.store)

    def __getattr__(self, name: str) -> Any:
        function = self.exports[name]
        assert isinstance(function, wasmtime.Func)
        return lambda *arguments: function(self.store, *arguments)

    @property
    def memory(self) -> wasmtime.Memory:
        memory = self.exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        return memory

    def put(self, data: bytes) -> int:
        address: int = self.alloc(len(data))
        self.memory.write(self.store, data, address)
        return address

    def take(self, packed: int) -> bytes:
        """The bytes of an `address << 32 | length`, freed behind them."""
        address, length = packed >> 32, packed & 0xFFFFFFFF
        data = bytes(self.memory.read(self.store, address, address + length))
        self.free(address)
        return data


def host_part(store: wasmtime.Store, wanted: wasmtime.ImportType) -> Any:
    """Something that satisfies an import."""
    kind = wanted.type
    if isinstance(kind, wasmtime.FuncType):
        return wasmtime.Func(store, kind, lambda *arguments: arguments[0] if arguments else None)
    if isinstance(kind, wasmtime.MemoryType):
        return wasmtime.Memory(store, kind)
    if isinstance(kind, wasmtime.TableType):
        return wasmtime.Table(store, kind, None)
    assert isinstance(kind, wasmtime.GlobalType)
    return wasmtime.Global(store, kind, 40)


# Sources
