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

if TYPE_CHECKING:
    from .aio.spawn import SpawnAsync
    from .limits import Limits
    from .plugin import Plugin
    from .tenants import Tenant

__all__ = ["LONG", "live"]

LONG = object()
"""What `Plugin.call_here` returns for a call that is not made here."""


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
        origin: the `sh_snapshot *` it comes from, or NULL.
        spawn: makes the guest, where it cannot be called here.
    """
    result = plugin.call_here(origin, name, arguments, limits, tenant)
    if result is not LONG:
        return result
    async with spawn(limits=limits, tenant=tenant) as guest:
        return await guest.call_async(name, *arguments)
