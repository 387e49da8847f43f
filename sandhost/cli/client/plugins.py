"""`sandhost client plugins`, `versions` and `alias`: what there is, and which version is meant."""

from __future__ import annotations

from typing import Any

import click

from .service import Service, asks_service, one, rows

__all__ = ["alias", "plugins", "versions"]


@click.command()
@asks_service
def plugins(service: Service) -> None:
    """List the plugins of the token's tenant."""
    with service.client() as client:
        records: list[dict[str, Any]] = [
            {
                "plugin": plugin.name,
                "latest": plugin.latest,
                "versions": len(plugin.versions),
                "aliases": dict(plugin.aliases),
            }
            for plugin in client.plugins()
        ]
    rows(service, "plugins", ("plugin", "latest", "versions", "aliases"), records)


@click.command()
@click.argument("plugin", metavar="PLUGIN")
@click.option("--remove", type=int, metavar="NUMBER", help="Remove this one, if no alias names it.")
@asks_service
def versions(service: Service, plugin: str, remove: int | None) -> None:
    """List a plugin's versions, or remove one."""
    with service.client() as client:
        if remove is not None:
            client.remove_version(plugin, remove)
            record = {"plugin": plugin, "removed": remove}
            one(service, record, f"{plugin}: version {remove} is removed")
            return
        found = client.plugin(plugin)
    records = [
        {
            "version": version.number,
            "state": version.state,
            "aliases": [name for name, number in found.aliases.items() if number == version.number],
            "bytes": version.size,
            "digest": version.digest,
            "error": version.error,
        }
        for version in found.versions
    ]
    titles = ("version", "state", "aliases", "bytes", "digest", "error")
    rows(service, "versions", titles, records)


@click.group()
def alias() -> None:
    """Say which version a name means. A switch holds for requests that come after it.

    \b
      sandhost client alias set sum live 3
      sandhost client alias rollback sum live
    """  # noqa: D301 - \b is click's mark for lines to keep


@alias.command("set")
@click.argument("plugin", metavar="PLUGIN")
@click.argument("name", metavar="ALIAS")
@click.argument("version", metavar="VERSION", type=int)
@asks_service
def _set(service: Service, plugin: str, name: str, version: int) -> None:
    """Let ALIAS mean this version."""
    with service.client() as client:
        _show(service, plugin, client.set_alias(plugin, name, version))


@alias.command("rollback")
@click.argument("plugin", metavar="PLUGIN")
@click.argument("name", metavar="ALIAS")
@asks_service
def _rollback(service: Service, plugin: str, name: str) -> None:
    """Let ALIAS mean again what it meant before."""
    with service.client() as client:
        _show(service, plugin, client.roll_back(plugin, name))


@alias.command("remove")
@click.argument("plugin", metavar="PLUGIN")
@click.argument("name", metavar="ALIAS")
@asks_service
def _remove(service: Service, plugin: str, name: str) -> None:
    """Let ALIAS mean nothing any more."""
    with service.client() as client:
        client.remove_alias(plugin, name)
    one(service, {"plugin": plugin, "removed": name}, f"{plugin}: {name} means nothing any more")


def _show(service: Service, plugin: str, made: Any) -> None:
    record = {
        "plugin": plugin,
        "alias": made.name,
        "version": made.version,
        "previous": made.previous,
    }
    before = "" if made.previous is None else f", before {made.previous}"
    one(service, record, f"{plugin}: {made.name} is version {made.version}{before}")
