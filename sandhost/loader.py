"""The plugins of one host: loaded, found again, and named also when they are gone."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hostcalls import HostFunction
    from .modules.cache import CompileCache
    from .plugin import Plugin

# What loading needs is imported when something is loaded: a host starts without it.

__all__ = ["Loader"]

_MOST_GONE = 1 << 16  # plugins whose names are remembered for events that come late. Arbitrary


class Loader:
    """Makes plugins, and keeps none of them alive.

    Args:
        cache_limit: bytes of compiled code that are kept on the disk; None: none is.
    """

    def __init__(self, *, optimize: bool, cache_limit: int | None) -> None:
        self._optimize, self._cache_limit = optimize, cache_limit
        self.cache: CompileCache | None = None
        """Made when first needed."""
        self.names: dict[int, str] = {}
        """By id: of every plugin there is, and of those that went last."""
        self._gone: deque[int] = deque()
        self._plugins: weakref.WeakSet[Plugin] = weakref.WeakSet()
        self._lock = threading.Lock()

    def load(
        self,
        host: Any,
        source: str | os.PathLike[str] | bytes,
        functions: Mapping[tuple[str, str], HostFunction],
        *,
        fuel: bool,
        name: str | None,
    ) -> Plugin:
        """Compile a module, or take it from the cache; see `Host.load`."""
        from .modules.cache import CompileCache
        from .modules.compiled import compile_module, read_source
        from .plugin import Plugin

        if self.cache is None and self._cache_limit is not None:
            self.cache = CompileCache(None, self._cache_limit)
        path, wasm = read_source(source, self.cache)
        compiled = compile_module(
            host.native, wasm, fuel=fuel, optimize=self._optimize, cache=self.cache
        )
        title = name or (compiled.rewritten.info.name if path == "module" else path) or path
        plugin = Plugin(host, title, compiled, functions)
        with self._lock:
            self._plugins.add(plugin)
        self.names[plugin.id] = plugin.name
        weakref.finalize(plugin, self._ended, plugin.id).atexit = False
        return plugin

    def _ended(self, plugin_id: int) -> None:
        """Called by whichever thread lets go of a plugin, wherever it is: without a lock."""
        self._gone.append(plugin_id)
        if len(self._gone) > _MOST_GONE:
            self.names.pop(self._gone.popleft(), None)

    def all(self) -> list[Plugin]:
        """List the plugins that are in use."""
        with self._lock:
            return list(self._plugins)

    def find(self, module_digest: str) -> Plugin | None:
        """Return one of this module, if there is one."""
        for plugin in self.all():
            if plugin.module_digest() == module_digest:
                return plugin
        return None
