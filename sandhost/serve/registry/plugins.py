"""What tenants have: plugins and their versions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from ..problems import Conflict, Missing, NotReady, TooMany
from ..records import Bounds, Plugin, State, Version, VersionSettings
from .changing import Changing
from .tenants import Tenants
from .words import check_name, storable

__all__ = ["LATEST", "Plugins"]

LATEST = "latest"

_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_MOST_ERROR = 4000
_DEFAULT_SETTINGS = VersionSettings()


class Plugins:
    """The plugins of all tenants, each with its versions and aliases."""

    def __init__(
        self,
        changing: Changing,
        tenants: Tenants,
        bounds: Bounds,
        now: Callable[[], float],
        kept: Iterable[Plugin],
    ) -> None:
        self._changing, self._tenants = changing, tenants
        self._bounds, self._now = bounds, now
        self._of: dict[str, dict[str, Plugin]] = {}
        for plugin in kept:
            self.put(plugin)

    # ---- changing ----

    def add_version(
        self,
        tenant: str,
        plugin: str,
        digest: str,
        size: int,
        settings: VersionSettings = _DEFAULT_SETTINGS,
    ) -> Version:
        """Add a version, "compiling", of a module that `blobs` has; its plugin too if it is the first.

        Raises:
            Invalid: the plugin's name cannot be one.
            Missing: there is no such tenant.
            TooMany: the tenant has as many, or as much, as it may.
            Conflict: the module is not there any more.
        """
        check_name("plugin", plugin)
        with self._changing as store:
            self._tenants.find(tenant)
            found = self._of.get(tenant, {}).get(plugin)
            before = found or Plugin(tenant, plugin)
            self._check_bounds(before, is_new=found is None, size=size)
            if digest not in store.blobs:
                raise Conflict("the module is not there any more: upload it again")
            version = Version(
                tenant,
                plugin,
                before.next_number,
                digest,
                size,
                "compiling",
                None,
                settings,
                self._now(),
            )
            store.add_version(version)
            self.put(before.with_version(version))
            return version

    def _check_bounds(self, plugin: Plugin, *, is_new: bool, size: int) -> None:
        plugins = self.of(plugin.tenant)
        if is_new and len(plugins) >= self._bounds.plugins:
            raise TooMany(f"there are {len(plugins)} plugins, which is the most there may be")
        if len(plugin.versions) >= self._bounds.versions:
            raise TooMany(
                f"{plugin.name} has {len(plugin.versions)} versions, the most it may have: "
                "remove one"
            )
        stored = sum(v.size for p in plugins for v in p.versions.values())
        if stored + size > self._bounds.storage_bytes:
            raise TooMany(
                f"{size} bytes and the {stored} that are stored are above the limit of "
                f"{self._bounds.storage_bytes}: remove versions"
            )

    def mark_ready(self, version: Version) -> Version:
        """Say that a version is compiled; harmless when that is known.

        Raises:
            Missing: it is not there, or not any more.
            Conflict: it has failed.
        """
        return self._mark(version, "ready", None)

    def mark_failed(self, version: Version, error: str) -> Version:
        """Say that a version cannot be compiled, and why.

        Raises:
            Missing: it is not there, or not any more.
            Conflict: it is ready.
        """
        return self._mark(version, "failed", storable(error, _MOST_ERROR))

    def _mark(self, of: Version, state: State, error: str | None) -> Version:
        with self._changing as store:
            version = self.same(of)
            if version.state == state:
                return version
            if version.state != "compiling":
                raise Conflict(f"{of.plugin} {of.number} is {version.state} already")
            version = replace(version, state=state, error=error)
            store.set_state(version)
            self.put(self.find(of.tenant, of.plugin).with_version(version))
            return version

    def remove_version(self, tenant: str, plugin: str, number: int) -> None:
        """Remove a version. Its number is not given again; its module goes with a sweep.

        Raises:
            Missing: it is not there.
            Conflict: an alias names it.
        """
        with self._changing as store:
            version = self.version(tenant, plugin, number)
            before = self.find(tenant, plugin)
            names = [alias.name for alias in before.aliases.values() if alias.number == number]
            if names:
                raise Conflict(f"{plugin} {number} is what {names[0]!r} names: switch that first")
            store.remove_version(version)
            self.put(before.without_version(number))

    def remove(self, tenant: str, plugin: str) -> None:
        """Remove a plugin with its versions and aliases. Numbers begin at 1 if it comes again.

        Raises:
            Missing: the tenant has none of this name.
        """
        with self._changing as store:
            self.find(tenant, plugin)
            store.remove_plugin(tenant, plugin)
            del self._of[tenant][plugin]

    def put(self, plugin: Plugin) -> None:
        """Have this be what is known of a plugin, now that the store has it."""
        self._of.setdefault(plugin.tenant, {})[plugin.name] = plugin

    def forget(self, tenant: str) -> None:
        """Let go of what a tenant had that the store has removed."""
        self._of.pop(tenant, None)

    # ---- reading ----

    def of(self, tenant: str) -> list[Plugin]:
        """List a tenant's plugins, also those whose versions were all removed."""
        return list(self._of.get(tenant, {}).values())

    def find(self, tenant: str, plugin: str) -> Plugin:
        """Return a plugin with its versions and aliases; raises `Missing`."""
        found = self._of.get(tenant, {}).get(plugin)
        if found is None:
            raise Missing(f"there is no plugin {plugin!r:.80}")
        return found

    def has(self, tenant: str, plugin: str) -> bool:
        """Tell whether the tenant has one."""
        return plugin in self._of.get(tenant, {})

    def version(self, tenant: str, plugin: str, number: int) -> Version:
        """Return a version in whatever state it is; raises `Missing`."""
        version = self.find(tenant, plugin).versions.get(number)
        if version is None:
            raise Missing(f"{plugin} has no version {number}")
        return version

    def same(self, version: Version) -> Version:
        """Return that very version as it is now.

        Raises:
            Missing: it was removed; there may be another with its number, of a plugin that came again.
        """
        found = self.version(version.tenant, version.plugin, version.number)
        if found.id != version.id:
            raise Missing(f"{version.plugin} has no such version {version.number} any more")
        return found

    def resolve(self, tenant: str, plugin: str, ref: str | int = LATEST) -> Version:
        """Return the version that a request means.

        Args:
            ref: "latest", the highest number that is ready; an alias; or a number.

        Raises:
            Missing: the tenant has no such plugin or version.
            NotReady: it is being compiled, or has failed.
        """
        found = self.find(tenant, plugin)
        text = str(ref)
        if text == LATEST:
            if found.latest is None:
                if not found.versions:
                    raise Missing(f"{plugin} has no version")
                raise NotReady(f"no version of {plugin} is ready")
            return found.versions[found.latest]
        alias = found.aliases.get(text)
        if alias is not None:
            return found.versions[alias.number]
        if not _NUMBER.fullmatch(text):
            raise Missing(f"{plugin} has no version or alias {text!r:.80}")
        version = self.version(tenant, plugin, int(text))
        if version.state == "compiling":
            raise NotReady(f"{plugin} {text} is being compiled")
        if version.state == "failed":
            raise NotReady(f"{plugin} {text} could not be compiled: {version.error}")
        return version

    def unfinished(self) -> list[Version]:
        """List the versions of all tenants that are still to be compiled, after a restart too."""
        return [version for version in self._versions() if version.state == "compiling"]

    def digests(self) -> set[str]:
        """Return the digests of all modules that some version names."""
        return {version.digest for version in self._versions()}

    def _versions(self) -> list[Version]:
        return [
            version
            for plugins in list(self._of.values())
            for plugin in list(plugins.values())
            for version in plugin.versions.values()
        ]
