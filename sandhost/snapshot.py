"""A snapshot: what a guest was at one moment, and guests that go on from there."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._closing import Closing
from ._ffi import failure, ffi, lib
from .errors import ConfigError, GuestClosed
from .lives import LONG, live

if TYPE_CHECKING:
    from .aio.spawn import SpawnAsync
    from .guest import Guest
    from .limits import Limits
    from .plugin import Plugin
    from .tenants import Tenant
    from .wasi import Wasi

__all__ = ["Snapshot"]

_SEED_BYTES = {"i32": 4, "i64": 8}


class Snapshot(Closing):
    """Memory, globals and tables of a guest between two calls. Made by `guest.snapshot()`.

    Every guest that `spawn()` starts continues from there, on copy-on-write pages of its own; code
    is not compiled again. Threads may spawn from one snapshot at the same time. A snapshot keeps its
    plugin alive, and lives itself until it and all guests that came from it are closed.

    What forks share: everything in the guest's memory, so also what a random number generator in
    there was seeded with, and a hash secret. Clocks and WASI's `random_get` are not part of it; a
    fork reads them anew. Give `reseed` where that is not enough.
    """

    __slots__ = ("_check", "_handle", "_seed_bytes", "plugin", "reseed")

    plugin: Plugin
    """What the guest was spawned from."""
    reseed: str | None
    """The exported function that is called in every new fork, with random bits if it takes an
    i32 or i64."""

    def __init__(
        self,
        plugin: Plugin,
        native: Any,
        reseed: str | None,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.plugin = plugin
        self._handle = ffi.gc(native, lib.sh_snapshot_release)
        self.reseed = reseed
        self._check = check
        self._seed_bytes = () if reseed is None else _seed_bytes(plugin, reseed)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.memory_bytes} bytes of memory"
        return f"<sandhost.Snapshot of {self.plugin.name!r}, {state}>"

    @property
    def native(self) -> Any:
        """The `sh_snapshot *`. Not for users.

        Raises:
            GuestClosed: the snapshot is closed.
        """
        if self._handle is None:
            raise GuestClosed("the snapshot is closed")
        return self._handle

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._handle is None

    @property
    def memory_bytes(self) -> int:
        """Size of all memories of a guest that starts from here."""
        size, image_length = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        total = 0
        for index in range(len(self.plugin.info.memories)):
            lib.sh_snapshot_memory(self.native, index, size, image_length)
            total += size[0]
        return total

    def spawn(
        self,
        *,
        limits: Limits | None = None,
        tenant: str | Tenant | None = None,
        wasi: Wasi | None = None,
    ) -> Guest:
        """Start a guest that continues from here.

        Raises:
            GuestClosed: the snapshot is closed.
            SnapshotError: it came from a file whose data were altered; found at the first spawn.
            Exception: as `Plugin.spawn`; and what `reseed` raises, as `Guest.call`.
        """
        guest = self.plugin.spawn_from(self._checked(), limits, tenant, wasi)
        if self.reseed is not None:
            try:
                guest.call(self.reseed, *map(_random_bits, self._seed_bytes))
            except BaseException:
                guest.close()
                raise
        return guest

    def spawn_async(
        self,
        *,
        limits: Limits | None = None,
        tenant: str | Tenant | None = None,
        wasi: Wasi | None = None,
    ) -> SpawnAsync:
        """Start a fork from a task; see `Plugin.spawn_async`.

        Raises:
            Exception: as `spawn`.
        """
        from .aio.spawn import SpawnAsync

        return SpawnAsync(lambda: self.spawn(limits=limits, tenant=tenant, wasi=wasi), starts=False)

    def call(
        self,
        name: str,
        *arguments: Any,
        limits: Limits | None = None,
        tenant: str | Tenant | None = None,
    ) -> Any:
        """Spawn a fork, call one of its functions, and close it; see `Plugin.call`.

        Raises:
            Exception: as `spawn` and `Guest.call`.
        """
        if self.reseed is None:
            return self.plugin.call_from(self._checked(), name, arguments, limits, tenant)
        with self.spawn(limits=limits, tenant=tenant) as guest:
            return guest.call(name, *arguments)

    async def call_async(
        self,
        name: str,
        *arguments: Any,
        limits: Limits | None = None,
        tenant: str | Tenant | None = None,
    ) -> Any:
        """Spawn a fork, call one of its functions, and close it, from a task; see `Plugin.call_async`.

        Raises:
            Exception: as `spawn` and `Guest.call_async`.
        """
        if self.reseed is None:
            origin = self._checked()
            return await live(
                self.plugin, origin, name, arguments, limits, tenant, self.spawn_async
            )
        async with self.spawn_async(limits=limits, tenant=tenant) as guest:
            return await guest.call_async(name, *arguments)

    def call_at_once(
        self, name: str, arguments: tuple[Any, ...], limits: Limits | None, tenant: Tenant | None
    ) -> Any:
        """The first half of `call_async`, for who has no task yet: a result, or `lives.LONG`. Not for users."""
        if self.reseed is not None:
            return LONG
        return self.plugin.call_here(self._checked(), name, arguments, limits, tenant)

    def _checked(self) -> Any:
        native = self.native
        check = self._check  # another thread may be here too
        if check is not None:
            check()
            self._check = None
        return native

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write it to a file that `Host.load_snapshot` reads, atomically; return its bytes.

        Pages of zeros and pages that are as in the module are left out.

        Raises:
            OSError: the file cannot be written.
        """
        from .snapshot_file import save

        return save(self, path)

    def close(self) -> None:
        """Let go of it. Guests that came from it go on. Idempotent."""
        self._handle = None


def take(guest_id: int) -> Any:
    """Capture a guest; return the `sh_snapshot *`."""
    native = lib.sh_snapshot_take(guest_id)
    if not native:
        raise failure()
    return native


def _seed_bytes(plugin: Plugin, name: str) -> tuple[int, ...]:
    function = plugin.info.function(name)
    params = None if function is None else function.params
    if params is None or any(p not in _SEED_BYTES for p in params):
        raise ConfigError(
            f"reseed={name!r}: the plugin exports no such function, or it takes something else than "
            "integers"
        )
    return tuple(_SEED_BYTES[p] for p in params)


def _random_bits(length: int) -> int:
    return int.from_bytes(os.urandom(length), "little")
