"""Names for versions, switched at once for all requests."""

from __future__ import annotations

from ..problems import Conflict, Invalid, Missing, NotReady, TooMany
from ..records import Alias, Bounds, Plugin
from .changing import Changing
from .plugins import LATEST, Plugins
from .words import check_name

__all__ = ["Aliases"]


class Aliases:
    """What changes the aliases of plugins, which carry them; `Plugins.resolve` reads them."""

    def __init__(self, changing: Changing, plugins: Plugins, bounds: Bounds) -> None:
        self._changing, self._plugins, self._bounds = changing, plugins, bounds

    def set(self, tenant: str, plugin: str, alias: str, number: int) -> Alias:
        """Have an alias name a version, at once for all requests; harmless when it does.

        Raises:
            Invalid: the alias's name cannot be one.
            Missing: the tenant has no such version.
            NotReady: the version is being compiled, or has failed.
            TooMany: the plugin has as many aliases as it may.
        """
        check_name("alias", alias)
        if alias == LATEST or alias.isdigit():
            raise Invalid(f"{alias!r} cannot be an alias: it means a version already")
        with self._changing:
            version = self._plugins.version(tenant, plugin, number)
            if version.state != "ready":
                raise NotReady(
                    f"{plugin} {number} is {version.state}: an alias names what is ready"
                )
            of = self._plugins.find(tenant, plugin)
            before = of.aliases.get(alias)
            if before is None and len(of.aliases) >= self._bounds.aliases:
                raise TooMany(f"{plugin} has {len(of.aliases)} aliases, the most it may have")
            if before is not None and before.number == number:
                return before
            return self._switch(of, Alias(alias, number, None if before is None else before.number))

    def roll_back(self, tenant: str, plugin: str, alias: str) -> Alias:
        """Have an alias name what it named before; once more, and it is as it was.

        Raises:
            Missing: the plugin has no such alias.
            Conflict: it named nothing before, or that was removed.
        """
        with self._changing:
            of = self._plugins.find(tenant, plugin)
            before = _alias(of, alias)
            if before.previous is None:
                raise Conflict(f"there is no version that {alias!r} named before")
            return self._switch(of, Alias(alias, before.previous, before.number))

    def remove(self, tenant: str, plugin: str, alias: str) -> None:
        """Remove an alias; raises `Missing`."""
        with self._changing as store:
            of = self._plugins.find(tenant, plugin)
            _alias(of, alias)
            store.remove_alias(tenant, plugin, alias)
            self._plugins.put(of.without_alias(alias))

    def _switch(self, of: Plugin, alias: Alias) -> Alias:
        with self._changing as store:
            store.put_alias(of.tenant, of.name, alias)
            self._plugins.put(of.with_alias(alias))
            return alias


def _alias(of: Plugin, alias: str) -> Alias:
    found = of.aliases.get(alias)
    if found is None:
        raise Missing(f"{of.name} has no alias {alias!r:.80}")
    return found
