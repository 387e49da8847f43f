"""Versions of plugins as they run: compiled, warmed, ready to be spawned."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Iterable
from itertools import islice
from typing import Any, NamedTuple

from ..aio.spawn import SpawnAsync
from ..guest import Guest
from ..host import Host
from ..limits import Limits
from ..lives import LONG
from ..modules.types import FuncType
from ..plugin import Plugin
from ..snapshot import Snapshot
from ..tenants import Tenant
from ..wasi import Wasi
from .problems import Invalid, Unavailable
from .records import Grants, Version

__all__ = ["LONG", "Loaded", "Versions", "functions", "name_of", "origin_of", "signature"]

_Key = tuple[str, str, int, float]

_MOST = 256
"""Arbitrary: code is mapped from the cache's files, and costs memory where it runs."""
_SHOWN_BYTES = 128 << 10
"""Of an answer that lists functions, roughly. A module may have a hundred thousand, and they would stop the loop for
0.1 s each time that its owner asks."""


class Loaded(NamedTuple):
    """One version."""

    plugin: Plugin
    snapshot: Snapshot | None
    """What guests start from, if the version asks to be warmed."""
    limits: Limits
    grants: Grants
    wasi: Wasi | None
    """What guests get that are no commands; None for plugins without WASI."""

    def spawn(self, tenant: Tenant, wasi: Wasi | None = None) -> SpawnAsync:
        """Start a guest from a task; see `Plugin.spawn_async`."""
        origin = self.plugin if self.snapshot is None else self.snapshot
        return origin.spawn_async(limits=self.limits, tenant=tenant, wasi=wasi or self.wasi)

    def call(
        self, tenant: Tenant, function: str, arguments: Iterable[Any]
    ) -> Coroutine[Any, Any, Any]:
        """Call a function of a guest that is there for this call; see `Plugin.call_async`."""
        if self.wasi is not None:
            return self._call_with_wasi(tenant, function, arguments)
        origin = self.plugin if self.snapshot is None else self.snapshot
        return origin.call_async(function, *arguments, limits=self.limits, tenant=tenant)

    def call_at_once(self, tenant: Tenant, function: str, arguments: Iterable[Any]) -> Any:
        """The same, made before this returns, or `LONG`: then nothing has been done, as always with imports."""
        origin = self.plugin if self.snapshot is None else self.snapshot
        return origin.call_at_once(function, tuple(arguments), self.limits, tenant)

    async def _call_with_wasi(self, tenant: Tenant, function: str, arguments: Iterable[Any]) -> Any:
        async with self.spawn(tenant) as guest:
            return await guest.call_async(function, *arguments)

    @property
    def is_command(self) -> bool:
        """Whether it is a command of WASI: a program with `_start`."""
        return self.plugin.uses_wasi and "_start" in self.plugin.functions


def functions(plugin: Plugin) -> dict[str, FuncType]:
    """Return the exported functions as they are shown: of very many, or with very long names, the first."""
    shown, room = {}, _SHOWN_BYTES
    for name, type_ in plugin.functions.items():
        room -= 64 + len(name) + 8 * (len(type_.params) + len(type_.results))
        if room < 0:
            break
        shown[name] = type_
    return shown


def signature(plugin: Plugin, function: str) -> FuncType:
    """Return the type of an exported function.

    Raises:
        Invalid: there is none of this name.
    """
    found = plugin.functions.get(function)
    if found is None:
        names = ", ".join(name[:100] for name in islice(plugin.functions, 50)) or "none"
        raise Invalid(f"the plugin exports no function {function[:100]!r}; it has {names:.500}")
    return found


class Versions:
    """What is loaded, and was used last. Loading is done by threads, one for each version.

    Args:
        most: how many are kept. Others are loaded again when they are called, from the compile cache.
        warm_s: the longest that a function to warm may run, whatever the version's own deadline is.
    """

    def __init__(self, host: Host, most: int = _MOST, warm_s: float = 60.0) -> None:
        self._host, self._most, self._warm_s = host, most, warm_s
        self._warming: set[Guest] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._loaded: dict[_Key, Loaded] = {}
        """The one that was used last is the last."""
        self._loading: dict[_Key, threading.Lock] = {}

    def get(self, version: Version) -> Loaded | None:
        """Return it if it is loaded."""
        key = version.id
        with self._lock:
            loaded = self._loaded.pop(key, None)
            if loaded is not None:
                self._loaded[key] = loaded
            return loaded

    def load(self, version: Version, tenant: Tenant, read: Callable[[], bytes]) -> Loaded:
        """Compile it, or take it from the cache, and warm it; blocks. The second caller waits.

        Args:
            tenant: who pays for the guest that is warmed.
            read: returns the module's bytes.

        Raises:
            SandhostError: it cannot be loaded, or could not be warmed.
        """
        key = version.id
        with self._lock:
            alone = self._loading.setdefault(key, threading.Lock())
        try:
            with alone:
                loaded = self.get(version)
                if loaded is None:
                    loaded = self._load(version, tenant, read())
                    with self._lock:
                        self._loaded[key] = loaded
                        if len(self._loaded) > self._most:
                            del self._loaded[next(iter(self._loaded))]
                return loaded
        finally:
            with self._lock:
                self._loading.pop(key, None)

    def _load(self, version: Version, tenant: Tenant, module: bytes) -> Loaded:
        limits, grants, warm = (
            version.settings.limits,
            version.settings.grants,
            version.settings.warm,
        )
        plugin = self._host.load(module, name=name_of(version), fuel=limits.fuel is not None)
        wasi = Wasi(grants.argv, dict(grants.env)) if plugin.uses_wasi else None
        snapshot = None
        if warm is not None:
            snapshot = self._warm(plugin, warm, limits, tenant, wasi)
        return Loaded(plugin, snapshot, limits, grants, wasi)

    def _warm(
        self, plugin: Plugin, warm: str, limits: Limits, tenant: Tenant, wasi: Wasi | None
    ) -> Snapshot:
        own_s = limits.deadline_ns / 1e9 if limits.deadline_ns else self._warm_s
        bounded = Limits(**{**limits._asdict(), "deadline": min(own_s, self._warm_s)})
        with plugin.spawn(limits=bounded, tenant=tenant, wasi=wasi) as guest:
            with self._lock:
                if self._closed:
                    raise Unavailable("the service is stopping")
                self._warming.add(guest)
            try:
                guest.call(warm)
                return guest.snapshot()
            finally:
                with self._lock:
                    self._warming.discard(guest)

    def drop(self, version: Version) -> None:
        """Forget it. Whoever has it, or a guest of it, goes on with it."""
        with self._lock:
            self._loaded.pop(version.id, None)

    def drop_all(self, tenant: str, plugin: str | None = None) -> None:
        """Forget those of a plugin, or of a tenant."""
        with self._lock:
            for key in list(self._loaded):
                if key[0] == tenant and plugin in (None, key[1]):
                    del self._loaded[key]

    def close(self) -> None:
        """Forget all of them, and end guests that are being warmed."""
        with self._lock:
            self._closed = True
            self._loaded.clear()
            for guest in self._warming:
                guest.cancel()


def origin_of(tenant: str, plugin: str) -> str:
    """Return how the names of all versions of a plugin begin, and no others: "/" and "@" are in none."""
    return f"{tenant}/{plugin}@"


def name_of(version: Version) -> str:
    """Return how a version is called in errors and figures."""
    return f"{origin_of(version.tenant, version.plugin)}{version.number}"
