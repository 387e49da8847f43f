"""Versions of plugins as they run: compiled, warmed, ready to be spawned."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from ..aio.spawn import SpawnAsync
from ..host import Host
from ..limits import Limits
from ..modules.types import FuncType
from ..plugin import Plugin
from ..snapshot import Snapshot
from ..wasi import Wasi
from .problems import Invalid

__all__ = ["Loaded", "Versions"]


class Loaded(NamedTuple):
    """One version."""

    plugin: Plugin
    snapshot: Snapshot | None
    """What guests start from, if the version asks to be warmed."""
    limits: Limits

    def spawn(self, tenant: str, limits: Limits, wasi: Wasi | None = None) -> SpawnAsync:
        """Start a guest from a task; see `Plugin.spawn_async`."""
        origin = self.plugin if self.snapshot is None else self.snapshot
        return origin.spawn_async(limits=limits, tenant=tenant, wasi=wasi)

    def signature(self, function: str) -> FuncType:
        """Return the type of an exported function.

        Raises:
            Invalid: there is none of this name.
        """
        signature = self.plugin.info.function(function)
        if signature is None:
            names = ", ".join(self.functions()) or "none"
            raise Invalid(f"the plugin exports no function {function[:100]!r}; it has {names}")
        return signature

    def functions(self) -> dict[str, str]:
        """Return the exported functions and their types, as text."""
        return {
            export.name: str(export.type)
            for export in self.plugin.info.exports
            if isinstance(export.type, FuncType)
        }

    @property
    def is_command(self) -> bool:
        """Whether it is a command of WASI: a program with `_start`."""
        return "_start" in self.functions() and self.plugin.uses_wasi


class Versions:
    """What is loaded, by the version's own number. Loading is done by threads, one for each version."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loaded: dict[int, Loaded] = {}
        self._lock = threading.Lock()
        self._loading: dict[int, threading.Lock] = {}

    def get(self, number: int) -> Loaded | None:
        """Return it if it is loaded."""
        return self._loaded.get(number)

    def load(
        self, number: int, name: str, read: Callable[[], bytes], limits: Limits, warm: str | None
    ) -> Loaded:
        """Compile it, or take it from the cache, and warm it; blocks. The second caller waits.

        Args:
            number: of the version, over all tenants.
            name: what errors and statistics call it.
            read: returns the module's bytes.
            warm: the function that prepares a guest, of which all others are forks.

        Raises:
            SandhostError: it cannot be loaded, or could not be warmed.
        """
        with self._lock:
            alone = self._loading.setdefault(number, threading.Lock())
        with alone:
            loaded = self._loaded.get(number)
            if loaded is None:
                plugin = self._host.load(read(), name=name)
                snapshot = None if warm is None else _warm(plugin, warm, limits)
                loaded = self._loaded[number] = Loaded(plugin, snapshot, limits)
        return loaded

    def drop(self, number: int) -> None:
        """Forget it; guests that live keep what they need."""
        loaded = self._loaded.pop(number, None)
        self._loading.pop(number, None)
        if loaded is not None and loaded.snapshot is not None:
            loaded.snapshot.close()

    def __iter__(self) -> Any:
        return iter(list(self._loaded.items()))


def _warm(plugin: Plugin, function: str, limits: Limits) -> Snapshot:
    with plugin.spawn(limits=limits) as guest:
        guest.call(function)
        return guest.snapshot()
