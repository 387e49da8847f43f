"""A guest for one call, made from a task: spawned, called and closed.

    live ──► here, in one crossing ──► result         its calls have been short, and this one is
              │ it imports functions, or was long
              └──► as any guest, on a fiber and with the workers

What imports nothing does nothing that anybody sees before it returns. So a call that turns out to be long is
ended, and made once more where it may take its time; and the short ones have no fiber, whose stack costs more
than all else of their guests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._ffi import lib

if TYPE_CHECKING:
    from .aio.spawn import SpawnAsync
    from .limits import Limits
    from .plugin import Plugin
    from .tenants import Tenant

__all__ = ["LONG", "at_once", "live"]

LONG = object()
"""What `at_once` returns for a call that is not made here."""


def at_once(
    plugin: Plugin,
    origin: Any,
    name: str,
    arguments: tuple[Any, ...],
    limits: Limits | None,
    tenant: str | Tenant | None,
) -> Any:
    """Call a function of a new guest here and now; return what it returns, or `LONG`.

    Args:
        origin: the `sh_snapshot *` it comes from, or NULL.

    Raises:
        Exception: as `Plugin.call_async`.
    """
    cells = plugin.cells(name)
    packed = cells.pack(arguments)
    status = plugin.call_here(origin, cells.index, packed, limits, tenant)
    if status == lib.SH_OK:
        return cells.unpack(packed)
    if status == lib.SH_LONG:
        return LONG
    cells.ended()
    return None


async def live(
    plugin: Plugin,
    origin: Any,
    name: str,
    arguments: tuple[Any, ...],
    limits: Limits | None,
    tenant: str | Tenant | None,
    spawn: Callable[..., SpawnAsync],
) -> Any:
    """Call a function of a new guest; see `Plugin.call_async`.

    Args:
        spawn: makes the guest, where it cannot be called here.
    """
    result = at_once(plugin, origin, name, arguments, limits, tenant)
    if result is not LONG:
        return result
    async with spawn(limits=limits, tenant=tenant) as guest:
        return await guest.call_async(name, *arguments)
