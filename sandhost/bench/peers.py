"""Other runtimes, used as their documents say: wasmtime-py, also with its pooling allocator; Extism.

wasmtime-py: engine and module once, `Linker.instantiate_pre` once, a store for each guest, closed
by `Store.close()`. Its Python API cannot choose the pooling allocator, so that contender sets it
through the raw bindings of the same wheel.

Extism: a `CompiledPlugin` once, a `Plugin` for each guest, closed by leaving its `with` block.
Functions of an Extism plugin take no arguments, so it runs a module of its own that has the same
memory and data and dirties the same pages.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from ..errors import ConfigError
from .contenders import Contender, Samples
from .workload import OS_PAGE, WASM_PAGE, Workload

__all__ = ["PEERS", "Extism", "Wasmtime", "available", "open_peer"]

PEERS = ("wasmtime", "wasmtime-pooling", "extism")

_POOL_GUESTS = 1024


def available(peer: str) -> bool:
    """Return whether a peer is installed."""
    return importlib.util.find_spec(peer.partition("-")[0]) is not None


def open_peer(peer: str, workload: Workload) -> Contender:
    """Make a peer ready for a workload.

    Raises:
        ConfigError: it cannot run it; says why.
    """
    if peer == "extism":
        return Extism(workload)
    return Wasmtime(workload, pooling=peer == "wasmtime-pooling")


class Wasmtime:
    """wasmtime-py, with its on-demand or its pooling allocator."""

    how = "Store(engine), pre.instantiate(store) · instance.exports(store)[name](store, …) · store.close()"

    def __init__(self, workload: Workload, *, pooling: bool) -> None:
        import wasmtime

        self.name = "wasmtime-py pooled" if pooling else "wasmtime-py"
        self._exit = wasmtime.ExitTrap
        config = wasmtime.Config()
        if pooling:
            _choose_pooling(config, workload)
        try:
            self.engine = wasmtime.Engine(config)
            self._module = wasmtime.Module(self.engine, workload.wasm)
            self._linker = wasmtime.Linker(self.engine)
            self._wasi = any(i.module == "wasi_snapshot_preview1" for i in self._module.imports)
            if self._wasi:
                self._linker.define_wasi()
            self.pre = self._linker.instantiate_pre(self._module)
            self._new_store, self._new_wasi = wasmtime.Store, wasmtime.WasiConfig
            self._setup = tuple((call.function, call.arguments) for call in workload.setup)
            self._invoke = (workload.invoke.function, workload.invoke.arguments)
            self.hold(1)()
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(f"{self.name} cannot run {workload.plugin}: {reason}") from None

    def cycles(self, until_ns: int, samples: Samples) -> None:
        """See `Contender`."""
        clock, new_store, engine, setup = perf_counter_ns, self._new_store, self.engine, self._setup
        instantiate, wasi, exit_trap = self.pre.instantiate, self._wasi, self._exit
        name, arguments = self._invoke
        spawned, called, unloaded = (
            samples.spawn.append,
            samples.call.append,
            samples.unload.append,
        )
        ended = 0
        while ended < until_ns:
            started = clock()
            store = new_store(engine)
            if wasi:
                store.set_wasi(self._new_wasi())
            instance = instantiate(store)
            spawn_ended = clock()
            for function, values in setup:
                instance.exports(store)[function](store, *values)
            call_started = clock()
            try:
                instance.exports(store)[name](store, *arguments)
            except exit_trap:
                pass
            call_ended = clock()
            store.close()
            ended = clock()
            spawned(spawn_ended - started)
            called(call_ended - call_started)
            unloaded(ended - call_ended)

    def hold(self, guests: int) -> Callable[[], int | None]:
        """See `Contender`."""
        stores = []
        for _ in range(guests):
            store = self._new_store(self.engine)
            if self._wasi:
                store.set_wasi(self._new_wasi())
            exports = self.pre.instantiate(store).exports(store)
            for function, values in self._setup:
                exports[function](store, *values)
            with contextlib.suppress(self._exit):
                exports[self._invoke[0]](store, *self._invoke[1])
            stores.append(store)

        def close_all() -> None:
            for store in stores:
                store.close()
            stores.clear()

        return close_all

    def close(self) -> None:
        """See `Contender`."""
        for part in (self.pre, self._linker, self._module, self.engine):
            part.close()


def _choose_pooling(config: Any, workload: Workload) -> None:
    """Set the pooling allocator, with room for the workload and wasmtime's defaults otherwise."""
    from wasmtime import _bindings as raw

    memory_bytes = workload.memory_bytes or 2**32
    options = raw.wasmtime_pooling_allocation_config_new()
    raw.wasmtime_pooling_allocation_config_total_memories_set(options, _POOL_GUESTS)
    raw.wasmtime_pooling_allocation_config_total_core_instances_set(options, _POOL_GUESTS)
    raw.wasmtime_pooling_allocation_config_total_tables_set(options, _POOL_GUESTS)
    raw.wasmtime_pooling_allocation_config_max_memory_size_set(options, memory_bytes)
    raw.wasmtime_pooling_allocation_strategy_set(config.ptr(), options)
    raw.wasmtime_pooling_allocation_config_delete(options)


class Extism:
    """Extism, with a module of its own that does what the built-in plugin does."""

    how = "Plugin(compiled) · plugin.call('run', b'') · leaving its with block"

    def __init__(self, workload: Workload) -> None:
        if workload.plugin != "bench" or workload.pages is None:
            raise ConfigError("extism calls only functions without parameters: not in this run")
        from extism.extism import CompiledPlugin, Plugin  # the first is not re-exported

        self.name = "extism"
        self.compiled = CompiledPlugin(_extism_module(workload))
        self._new = Plugin

    def cycles(self, until_ns: int, samples: Samples) -> None:
        """See `Contender`."""
        clock, new, compiled = perf_counter_ns, self._new, self.compiled
        spawned, called, unloaded = (
            samples.spawn.append,
            samples.call.append,
            samples.unload.append,
        )
        ended = 0
        while ended < until_ns:
            started = clock()
            plugin = new(compiled)
            spawn_ended = clock()
            plugin.call("run", b"")
            call_ended = clock()
            plugin.__exit__(None, None, None)
            ended = clock()
            spawned(spawn_ended - started)
            called(call_ended - spawn_ended)
            unloaded(ended - call_ended)

    def hold(self, guests: int) -> Callable[[], int | None]:
        """See `Contender`."""
        plugins = [self._new(self.compiled) for _ in range(guests)]
        for plugin in plugins:
            plugin.call("run", b"")

        def close_all() -> None:
            for plugin in plugins:
                plugin.__exit__(None, None, None)
            plugins.clear()

        return close_all

    def close(self) -> None:
        """See `Contender`."""
        self.compiled.__del__()


def _extism_module(workload: Workload) -> bytes:
    import wasmtime

    assert workload.memory_bytes is not None
    size = workload.memory_bytes // WASM_PAGE
    data = "".join(f"{k:064x}" for k in range(WASM_PAGE // 64))
    text = f"""(module (memory (export "memory") {size} {size})
      (func (export "run") (result i32) (local $address i32) (local $left i32)
        (local.set $address (i32.const {WASM_PAGE}))
        (local.set $left (i32.const {workload.pages}))
        (block $done (loop $again
          (br_if $done (i32.eqz (local.get $left)))
          (i32.store8 (local.get $address) (i32.const 0xa5))
          (local.set $address (i32.add (local.get $address) (i32.const {OS_PAGE})))
          (local.set $left (i32.sub (local.get $left) (i32.const 1)))
          (br $again)))
        (i32.const 0))
      (data (i32.const 0) "{data}"))"""
    return bytes(wasmtime.wat2wasm(text))
