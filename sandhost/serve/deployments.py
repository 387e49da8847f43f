"""From a version that was acknowledged to one that is ready: in line, compiled, loaded, warmed.

    deploy ─► the tenant's line ─► a turn ─► compiled in a child ─► loaded, warmed in a thread ─► ready, or failed
    call of what is not loaded ────────────────────────────────────► the same, in turns of their own

Both are fair between tenants, and bounded in time: a module by `compile_time` of the processor in the child, and its
`warm` function by the same by the clock. So calls of other tenants wait for neither. A tenant with a quota of
processors rests after each module, until its part of the time since that one began is what the quota says.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from .._log import get_logger
from ..errors import SandhostError
from ..tenants import Tenant
from .background import in_background
from .compiler import Compilers
from .config import Settings
from .loaded import Loaded, Versions, name_of
from .problems import Missing, Unavailable, problem_of
from .records import Version
from .registry import Registry
from .shapes import Progress
from .threads import in_thread
from .turns import Turns

__all__ = ["Deployments"]

_LOGGER = "sandhost.serve"
_COMPILED_AT_ONCE = 2
"""wasmtime uses several threads for each. Arbitrary, as the next."""
_LOADED_AT_ONCE = 4
_LEAST_S = 0.1
"""What a module counts for, however soon it has failed: the service has received it, and written it to the disk
and to the registry. Measured for 256 KiB of noise and 1 MB of text: 10 to 50 ms."""

_T = TypeVar("_T")
_Key = tuple[str, str, int, float]


class Deployments:
    """What is being made ready. Made and used on one event loop.

    Args:
        tenant: returns who pays for a guest that is warmed.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        versions: Versions,
        compilers: Compilers,
        tenant: Callable[[str], Tenant],
    ) -> None:
        self._registry, self._versions, self._compilers = registry, versions, compilers
        self._tenant = tenant
        self._turns = Turns(_COMPILED_AT_ONCE, settings.tenant_compiles)
        self._loads = Turns(_LOADED_AT_ONCE, 0)
        self._threads = ThreadPoolExecutor(_COMPILED_AT_ONCE + _LOADED_AT_ONCE, "sandhost-load")
        self._begun: dict[_Key, float | None] = {}
        """In the order in which they came; None: it waits."""
        self._tasks: set[asyncio.Future[None]] = set()
        self._loading: dict[_Key, asyncio.Task[Loaded]] = {}

    def start(self) -> None:
        """Go on with what a stop has interrupted."""
        for version in self._registry.plugins.unfinished():
            self.begin(version)

    def check_room(self, tenant: str) -> None:
        """Raise `TooMany` when no more of the tenant's modules may wait."""
        self._turns.check_room(tenant)

    def waiting(self) -> int:
        """Return how many wait for their turn."""
        return self._turns.waiting()

    def begin(self, version: Version) -> None:
        """Make a version ready in the background, when it is the tenant's turn."""
        task = in_background(self._compile(version))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def progress(self, version: Version) -> Progress | None:
        """Return how far a version is: "waiting", behind how many of the tenant's own, or "compiling" for how long.

        None when nothing is being done about it.
        """
        key = version.id
        if key not in self._begun:
            return None
        begun_s = self._begun[key]
        if begun_s is not None:
            return {"step": "compiling", "seconds": round(time.monotonic() - begun_s, 3)}
        before = 0
        for other, since_s in self._begun.items():
            if other == key:
                break
            before += other[0] == key[0] and since_s is None
        return {"step": "waiting", "before": before}

    async def _compile(self, version: Version) -> None:
        key = version.id
        self._begun[key] = None
        why = None
        try:
            async with self._turns.take(version.tenant):
                self._registry.plugins.same(version)
                begun_s = self._begun[key] = time.monotonic()
                try:
                    await self._in_thread(lambda: self._compile_now(version))
                    await self._load_now(version)
                finally:
                    self._rest(version.tenant, time.monotonic() - begun_s)
        except (Missing, Unavailable):
            return  # it was removed meanwhile; or the service is, and goes on at its next start
        except Exception as error:  # a module may fail in any way; its owner is told
            why = problem_of(error).detail
            log = get_logger(_LOGGER)
            if isinstance(error, SandhostError) or type(problem_of(error)) is type(error):
                log.info("a plugin cannot be loaded", version=key, why=why)
            else:
                log.error("a plugin could not be loaded", version=key, exc_info=error)
        finally:
            del self._begun[key]
        with contextlib.suppress(Missing):
            if why is None:
                await in_thread(lambda: self._registry.plugins.mark_ready(version))
            else:
                await in_thread(lambda: self._registry.plugins.mark_failed(version, why))

    def _rest(self, tenant: str, took_s: float) -> None:
        """Keep the tenant's modules to its quota of processors, if it has one; as much again as its calls have."""
        with contextlib.suppress(Missing):  # it was removed meanwhile
            cpus = self._tenant(tenant).quotas.cpus
            if cpus is not None:
                self._turns.rest(tenant, max(0.0, max(took_s, _LEAST_S) / cpus - took_s))

    def _compile_now(self, version: Version) -> None:
        fuel = version.settings.limits.fuel is not None
        path = self._registry.blobs.path(version.digest)
        self._compilers.compile(path, version.digest, name_of(version), fuel=fuel)

    async def load(self, version: Version) -> Loaded:
        """Return a version, loaded; from the compile cache, unless that has lost it.

        Whoever does not wait to the end leaves it to the others; it ends in its own time.
        """
        key = version.id
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.ensure_future(self._load(version))
            task.add_done_callback(lambda done: self._loaded(key, done))
        return await asyncio.shield(task)

    async def _load(self, version: Version) -> Loaded:
        async with self._loads.take(version.tenant):
            return self._versions.get(version) or await self._load_now(version)

    def _loaded(self, key: _Key, task: asyncio.Task[Loaded]) -> None:
        del self._loading[key]
        if not task.cancelled():
            task.exception()  # seen: perhaps nobody waits any more

    async def _load_now(self, version: Version) -> Loaded:
        tenant = self._tenant(version.tenant)
        blobs = self._registry.blobs
        loaded = await self._in_thread(
            lambda: self._versions.load(version, tenant, lambda: blobs.read(version.digest))
        )
        try:
            self._registry.plugins.same(version)
        except Missing:
            self._versions.drop(version)
            raise
        return loaded

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def close(self) -> None:
        """Leave what is not ready as it is: the next start goes on with it. Waits for no module."""
        tasks: list[asyncio.Future[Any]] = [*self._tasks, *self._loading.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._compilers.close()
        self._versions.close()
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
