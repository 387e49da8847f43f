"""Deploying: uploads, versions, aliases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc

from .. import records
from ..loaded import functions
from ..problems import Invalid, TooLarge
from ..records import Answer, VersionSettings
from ..service import Service
from ..tokens import Scope
from .doors import Doors, Rpc
from .messages import (
    Alias,
    AliasRequest,
    Function,
    ListPluginsRequest,
    Plugin,
    PluginRequest,
    RemoveAliasReply,
    RemoveVersionReply,
    SetAliasRequest,
    UploadRequest,
    UploadSettings,
    Version,
    VersionRequest,
)

__all__ = ["Plugins"]

_LOOK_AGAIN_S = 0.05

if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[Any, Any]


class Plugins:
    """The RPCs of the service of this name."""

    def __init__(self, doors: Doors) -> None:
        self.service: Service = doors.service
        self.registry = doors.service.registry
        self._doors = doors
        one, many = doors.one, doors.many
        deploy, invoke = Scope.DEPLOY, Scope.INVOKE
        self.handlers: dict[str, _Handler] = {
            "Upload": doors.gathered("Upload", deploy, self.upload),
            "WatchVersion": many("WatchVersion", invoke, self.watch_version),
            "GetVersion": one("GetVersion", invoke, VersionRequest, self.get_version),
            "RemoveVersion": one("RemoveVersion", deploy, VersionRequest, self.remove_version),
            "ListPlugins": many("ListPlugins", invoke, self.list_plugins),
            "GetPlugin": one("GetPlugin", invoke, PluginRequest, self.get_plugin),
            "SetAlias": one("SetAlias", deploy, SetAliasRequest, self.set_alias),
            "RollBackAlias": one("RollBackAlias", deploy, AliasRequest, self.roll_back_alias),
            "RemoveAlias": one("RemoveAlias", deploy, AliasRequest, self.remove_alias),
        }

    async def upload(self, rpc: Rpc) -> Version:
        """A module."""
        first = await rpc.first(UploadRequest)
        if not first.HasField("settings"):
            raise Invalid("the first message is the settings")
        asked = first.settings
        settings = self._settings(asked)
        most = self.service.settings.upload_limit
        if asked.bytes > most:
            raise TooLarge(f"a module has at most {most:,} bytes here", facts={"limit": most})
        module = await self.service.receive(rpc.who, _pieces(rpc, asked.bytes))

        async def work() -> Answer:
            made = await self.service.deploy(rpc.who, asked.plugin, module, settings)
            kind = Version.DESCRIPTOR.full_name
            return Answer(202, kind, _version(made).SerializeToString())

        if not asked.idempotency_key:
            return Version.FromString((await work()).body)
        meant = b"Upload" + asked.SerializeToString(deterministic=True) + module[0].encode()
        answer = await self.service.retries.once(rpc.who, asked.idempotency_key, meant, work)
        return Version.FromString(answer.body)

    def _settings(self, asked: UploadSettings) -> VersionSettings:
        names = {
            "memory": "memory_bytes",
            "deadline": "deadline_s",
            "fuel": "fuel",
            "table_elements": "table_elements",
        }
        return VersionSettings.wanted(
            self.service.settings.guest_limits(),
            {name: getattr(asked, field) for name, field in names.items() if asked.HasField(field)},
            list(asked.argv),
            dict(asked.env),
            asked.warm or None,
        )

    async def watch_version(self, rpc: Rpc) -> None:
        """A version until it is ready or has failed."""
        request = await rpc.first(VersionRequest)
        state = None
        while state in (None, "compiling"):
            version = self.registry.plugins.version(rpc.who.tenant, request.plugin, request.version)
            if version.state != state:
                state = version.state
                await rpc.write(self._whole(version))
            else:
                self._doors.check_open()
                await asyncio.sleep(_LOOK_AGAIN_S)

    async def get_version(self, rpc: Rpc, request: VersionRequest) -> Version:
        """How far it is."""
        found = self.registry.plugins.version(rpc.who.tenant, request.plugin, request.version)
        return self._whole(found)

    def _whole(self, version: records.Version) -> Version:
        message = _version(version)
        loaded = self.service.versions.get(version)
        if loaded is not None:
            message.functions.extend(
                Function(name=name, params=type_.params, results=type_.results)
                for name, type_ in functions(loaded.plugin).items()
            )
        return message

    async def remove_version(self, rpc: Rpc, request: VersionRequest) -> RemoveVersionReply:
        """It goes, unless an alias names it."""
        await self.service.remove(rpc.who, request.plugin, request.version)
        return RemoveVersionReply()

    async def list_plugins(self, rpc: Rpc) -> None:
        """The tenant's plugins."""
        await rpc.first(ListPluginsRequest)
        for plugin in self.registry.plugins.of(rpc.who.tenant):
            await rpc.write(_plugin(plugin))

    async def get_plugin(self, rpc: Rpc, request: PluginRequest) -> Plugin:
        """One plugin: its versions and aliases."""
        return _plugin(self.registry.plugins.find(rpc.who.tenant, request.plugin))

    async def set_alias(self, rpc: Rpc, request: SetAliasRequest) -> Alias:
        """From now on the alias means this version."""
        made = await self.service.change(
            rpc.who,
            "alias.set",
            f"{request.plugin}/{request.alias}",
            lambda: self.registry.aliases.set(
                rpc.who.tenant, request.plugin, request.alias, request.version
            ),
        )
        return _alias(made)

    async def roll_back_alias(self, rpc: Rpc, request: AliasRequest) -> Alias:
        """The alias means again what it meant before."""
        made = await self.service.change(
            rpc.who,
            "alias.rollback",
            f"{request.plugin}/{request.alias}",
            lambda: self.registry.aliases.roll_back(rpc.who.tenant, request.plugin, request.alias),
        )
        return _alias(made)

    async def remove_alias(self, rpc: Rpc, request: AliasRequest) -> RemoveAliasReply:
        """The alias means nothing any more."""
        await self.service.change(
            rpc.who,
            "alias.remove",
            f"{request.plugin}/{request.alias}",
            lambda: self.registry.aliases.remove(rpc.who.tenant, request.plugin, request.alias),
        )
        return RemoveAliasReply()


async def _pieces(rpc: Rpc, length: int) -> AsyncIterator[bytes]:
    """Yield a module's pieces.

    A client that closes its side and one that goes away look alike here: it is the length that tells.
    """
    left = length
    while (message := await rpc.read(UploadRequest)) is not None:
        if not message.HasField("piece"):
            raise Invalid("after the settings come pieces")
        left -= len(message.piece)
        if left < 0:
            raise Invalid(f"more came than the {length:,} bytes that were announced")
        if message.piece:
            yield message.piece
    if left:
        raise Invalid(f"of {length:,} bytes that were announced, {left:,} did not come")


def _version(version: records.Version) -> Version:
    return Version(
        plugin=version.plugin,
        version=version.number,
        state=version.state.upper(),
        error=version.error or "",
        digest=version.digest,
        bytes=version.size,
    )


def _plugin(plugin: records.Plugin) -> Plugin:
    return Plugin(
        plugin=plugin.name,
        latest=plugin.latest or 0,
        versions=[_version(version) for version in plugin.versions.values()],
        aliases=[_alias(alias) for alias in plugin.aliases.values()],
    )


def _alias(alias: records.Alias) -> Alias:
    return Alias(alias=alias.name, version=alias.number, previous=alias.previous or 0)
