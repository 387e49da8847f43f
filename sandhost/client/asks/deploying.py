"""What a tenant has: plugins, versions, aliases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

from ...protocol.problems import BadPlugin, DeadlinePassed
from ..bodies import Body, Content
from ..records import Alias, Plugin, Progress, Version, each
from ..replies import of_object
from .ask import Ask, Steps, deleting, getting, json_of, key_of, one, path_of

__all__ = [
    "plugin",
    "plugins",
    "remove_alias",
    "remove_version",
    "roll_back",
    "set_alias",
    "upload",
    "version",
]

_LOOK_S = 20.0
"""How long one request waits for a version to be ready. The service takes up to 60 s."""


def plugins() -> Steps[tuple[Plugin, ...]]:
    """Return the tenant's plugins."""
    return one(getting(path_of("plugins"), each("plugins", Plugin.read)))


def plugin(plugin: str) -> Steps[Plugin]:
    """Return one plugin: its versions and aliases."""
    return one(getting(path_of("plugins", plugin), Plugin.read))


def version(plugin: str, number: int, *, wait_s: float = 0.0) -> Steps[Version]:
    """Return how far a version is.

    Args:
        wait_s: how long to wait until it is ready or has failed; 0: not at all.
    """
    until_s = time.monotonic() + wait_s
    while True:
        look_s = max(0.0, min(_LOOK_S, until_s - time.monotonic()))
        path = path_of("plugins", plugin, "versions", str(number))
        query = (("wait", f"{look_s:.3f}"),) if look_s else ()
        found = yield from one(getting(path, Version.read, query=query, rests_s=look_s))
        if found.state != "compiling" or time.monotonic() >= until_s:
            return found


def upload(
    plugin: str,
    module: Body | str,
    *,
    memory: int | str | None = None,
    deadline: float | str | None = None,
    fuel: int | None = None,
    table_elements: int | None = None,
    warm: str | None = None,
    argv: Iterable[str] = (),
    env: Mapping[str, str] | None = None,
    wait: bool = True,
    deadline_s: float | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> Steps[Version]:
    """Make a module the plugin's next version, and return it, by default as soon as it is ready.

    Args:
        module: a path, bytes, or pieces of bytes. It may be sent again if the connection is lost, with a key
            that keeps it from becoming two versions, unless it comes in pieces.
        memory: bytes (or "16 MiB") that a guest may have; this and the following limits: None is the service's own.
        deadline: seconds (or "250 ms") that a call may take.
        fuel: instructions, roughly, that a call may execute.
        table_elements: elements that each table may have.
        warm: a function that prepares a guest; calls then start from its snapshot.
        argv: arguments that commands get before those of a run.
        env: the environment of commands.
        wait: whether to wait until it is ready, for which the token needs the scope "invoke" too.
        deadline_s: how long all of it may take.
        progress: is told how far it is.

    Raises:
        BadPlugin: the service cannot load it; only when it waits.
    """
    until_s = None if deadline_s is None else time.monotonic() + deadline_s
    settings = {
        "memory": memory,
        "deadline": deadline,
        "fuel": fuel,
        "table_elements": table_elements,
        "warm": warm,
    }
    query = [(name, str(value)) for name, value in settings.items() if value is not None]
    query += [("argv", word) for word in argv]
    query += [("env", f"{name}={value}") for name, value in (env or {}).items()]

    def tell(state: Literal["sending", "compiling", "ready"], sent: int) -> None:
        if progress is not None:
            progress(Progress(state, sent, size))

    content = Content(
        Path(module) if isinstance(module, str) else module,
        None if progress is None else lambda sent: tell("sending", sent),
    )
    size = content.size()
    tell("sending", 0)
    made = yield from one(
        Ask(
            "PUT",
            path_of("plugins", plugin),
            of_object(Version.read),
            (202,),
            tuple(query),
            key_of(True),
            content,
            deadline_s,
            harmless=True,
        )
    )
    if not wait:
        return made
    while made.state == "compiling":
        tell("compiling", made.size)
        left_s = _LOOK_S if until_s is None else until_s - time.monotonic()
        if left_s <= 0:
            raise DeadlinePassed(f"version {made.number} was not ready within {deadline_s:g} s")
        made = yield from version(plugin, made.number, wait_s=min(left_s, _LOOK_S))
    if made.state == "failed":
        raise BadPlugin(made.error or "it cannot be loaded", facts={"version": made.number})
    tell("ready", made.size)
    return made


def remove_version(plugin: str, number: int) -> Steps[None]:
    """Remove a version that no alias names."""
    return one(deleting(path_of("plugins", plugin, "versions", str(number))))


def set_alias(plugin: str, alias: str, version: int) -> Steps[Alias]:
    """Let an alias, new or not, mean this version: requests that come from now on see it."""
    path = path_of("plugins", plugin, "aliases", alias)
    return one(Ask("PUT", path, of_object(Alias.read), body=json_of({"version": version})))


def roll_back(plugin: str, alias: str) -> Steps[Alias]:
    """Let an alias mean again what it meant before."""
    path = path_of("plugins", plugin, "aliases", alias, "rollback")
    return one(Ask("POST", path, of_object(Alias.read)))


def remove_alias(plugin: str, alias: str) -> Steps[None]:
    """Let an alias mean nothing any more."""
    return one(deleting(path_of("plugins", plugin, "aliases", alias)))
