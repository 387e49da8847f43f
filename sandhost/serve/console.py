"""Routes of the console: a page that shows what the service does, and calls functions.

    GET /console                           the page, and under it its styles and scripts, as they lie in page/
    GET /console/who                       whose token it is
    GET /console/view                      what there is to see: all of it for the scope "admin", else the tenant's own
    GET /console/functions/{plugin}?ref=   functions with their types, for the form; it calls them by the API

Page and scripts are for everybody: what they show comes with the token that the page sends as a header. What
a tenant has named stays text on its way: JSON here, text nodes there, and a Content-Security-Policy under which
nothing but these files runs.

    consoles ──► _Reader ──► one look at the host, a second old at the most, for all of them
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..observe.picture import look, tenant_view
from ..observe.records import to_json
from ..observe.views import PluginView, View
from .loaded import functions, origin_of
from .problems import Missing
from .records import Plugin, Principal, Tenant, Version
from .requests import peer_of, route, token_of
from .service import Service
from .threads import in_thread
from .tokens import Scope
from .values import has_json

__all__ = ["console_routes"]

_FRESH_S = 1.0
"""Looking at thousands of guests takes some milliseconds: worth a second's age. Arbitrary."""
_TENANTS_MOST, _PLUGINS_MOST, _VERSIONS_MOST, _FUNCTIONS_MOST = 1000, 500, 20, 500
_NAME_MOST = 200
_ONLY_OPERATORS = ("resident_bytes", "share_bytes")
"""Of a tenant's figures: a share tells of what others hold."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_STATIC = {**_HEADERS, "Cache-Control": "no-cache"}
_SECRET = {**_HEADERS, "Cache-Control": "no-store"}


def console_routes(service: Service) -> list[Route]:
    """Return the routes, none when the settings want no console."""
    if not service.settings.console:
        return []
    desk = _Desk(service)
    return [
        route("GET", "/console", desk.page),
        route("GET", "/console/who", desk.who),
        route("GET", "/console/view", desk.view),
        route("GET", "/console/functions/{plugin}", desk.functions),
        route("GET", "/console/{file}", desk.file),
    ]


class _Desk:
    """One method for each kind of request."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.registry = service.registry
        self._reader = _Reader(service)
        self._files = {
            path.name: path.read_bytes()
            for path in Path(__file__).with_name("page").iterdir()
            if path.suffix in _TYPES
        }

    # ---- for everybody ----

    async def page(self, _request: Request) -> Response:
        """The page."""
        return self._file("console.html")

    async def file(self, request: Request) -> Response:
        """What it is made of."""
        return self._file(request.path_params["file"])

    def _file(self, name: str) -> Response:
        content = self._files.get(name)
        if content is None:
            raise Missing("there is nothing here")
        headers = {**_STATIC, "Content-Type": _TYPES[Path(name).suffix]}
        return Response(content, headers=headers)

    # ---- for who has a token ----

    def _who(self, request: Request) -> Principal:
        return self.service.who(
            token_of(request), Scope.INVOKE, peer_of(request), or_scope=Scope.ADMIN
        )

    async def who(self, request: Request) -> Response:
        """Whose token it is, and what for."""
        who = self._who(request)
        scopes = sorted(scope.value for scope in who.scopes)
        return JSONResponse({"tenant": who.tenant, "scopes": scopes}, headers=_SECRET)

    async def view(self, request: Request) -> Response:
        """All that an operator sees; of all that, what a tenant sees."""
        who = self._who(request)
        reading = await self._reader.read()
        if Scope.ADMIN in who.scopes:
            return Response(reading.everything, headers=_SECRET, media_type="application/json")
        return JSONResponse(_own(self.service, who.tenant, reading), headers=_SECRET)

    async def functions(self, request: Request) -> Response:
        """What a version of one's own plugin exports."""
        who = self.service.who(token_of(request), Scope.INVOKE, peer_of(request))
        ref = request.query_params.get("ref", "latest")
        version = self.registry.plugins.resolve(who.tenant, request.path_params["plugin"], ref)
        found = functions((await self.service.loaded(version)).plugin)
        shown = [
            {
                "name": name,
                "params": type_.params,
                "results": type_.results,
                "has_json": has_json(type_),
            }
            for name, type_ in found.items()
            if len(name) <= _NAME_MOST
        ]
        answer = {"version": version.number, "functions": shown[:_FUNCTIONS_MOST]}
        return JSONResponse(answer, headers=_SECRET)


class _Reading(NamedTuple):
    """What all consoles see of one look."""

    taken_s: float
    level: str
    loaded: dict[str, PluginView]
    """By name, which is as `origin_of` says, and a number."""
    everything: bytes
    """What an operator sees, in JSON."""


class _Reader:
    """Looks at the service when somebody asks, once for all who ask within `_FRESH_S`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._began_s = 0.0
        self._task: asyncio.Future[_Reading] | None = None

    async def read(self) -> _Reading:
        """Return what is there now, or was a moment ago."""
        now_s, task = time.monotonic(), self._task
        if task is None or (task.done() and now_s - self._began_s >= _FRESH_S):
            self._began_s = now_s
            task = self._task = asyncio.ensure_future(self._look())
        return await asyncio.shield(task)  # others may wait for it too

    async def _look(self) -> _Reading:
        service = self._service
        # What belongs to the loop is read here, and the rest in a thread.
        admission, sessions = service.admission.stats(), service.sessions.stats()
        own = {
            "requests": admission._asdict(),
            "sessions": sessions._asdict(),
            "stopping": service.stopping,
        }
        by_tenant = {t.name: service.sessions.live_of(t.name) for t in service.registry.tenants}
        return await in_thread(lambda: _reading(service, own, by_tenant))


def _reading(service: Service, own: dict[str, Any], sessions: dict[str, int]) -> _Reading:
    view = look(service.host)
    loaded = {plugin.name: plugin for plugin in view.plugins}
    level = service.host.pressure.level.name.lower()
    held = {tenant.name: tenant._asdict() for tenant in view.tenants}
    tenants = sorted(
        service.registry.tenants,
        key=lambda tenant: held.get(tenant.name, {}).get("memory_bytes", -1),
        reverse=True,
    )
    plugins = [plugin for tenant in tenants for plugin in service.registry.plugins.of(tenant.name)]
    everything = {
        **own,
        "taken_s": view.taken_s,
        "level": level,
        "tenants": [
            _tenant(service, tenant, held.get(tenant.name), sessions.get(tenant.name, 0))
            for tenant in tenants[:_TENANTS_MOST]
        ],
        "tenants_in_all": len(tenants),
        "plugins": [_plugin(plugin, loaded) for plugin in plugins[:_PLUGINS_MOST]],
        "plugins_in_all": len(plugins),
    }
    # The view has a form of its own, which `sandhost top` reads too.
    text = json.dumps(everything).encode()
    return _Reading(view.taken_s, level, loaded, text[:-1] + b',"view":' + _shown(view) + b"}")


def _shown(view: View) -> bytes:
    """Return the view without what the page does not show."""
    return to_json(view._replace(guests=(), plugins=(), tenants=()))


def _own(service: Service, name: str, reading: _Reading) -> dict[str, Any]:
    """Return what a tenant sees. All of it is of its own, but for the level, which /readyz tells everybody."""
    tenant, plugins = service.registry.tenants.find(name), service.registry.plugins.of(name)
    known = next((one for one in service.host.tenants() if one.name == name), None)
    held = None if known is None else tenant_view(known)._asdict()
    row = _tenant(service, tenant, held, service.sessions.live_of(name))
    return {
        "taken_s": reading.taken_s,
        "level": reading.level,
        "stopping": service.stopping,
        "tenants": [{key: row[key] for key in row if key not in _ONLY_OPERATORS}],
        "tenants_in_all": 1,
        "plugins": [_plugin(plugin, reading.loaded) for plugin in plugins[:_PLUGINS_MOST]],
        "plugins_in_all": len(plugins),
    }


def _tenant(
    service: Service, tenant: Tenant, held: dict[str, Any] | None, sessions: int
) -> dict[str, Any]:
    return {
        **(held or {}),  # nothing: it has made no request since the start
        "name": tenant.name,
        "quotas": service.settings.quotas(tenant.quotas)._asdict(),
        "sessions": sessions,
    }


def _plugin(plugin: Plugin, loaded: dict[str, PluginView]) -> dict[str, Any]:
    newest = sorted(plugin.versions.values(), key=lambda version: version.number, reverse=True)
    named = {alias.number for alias in plugin.aliases.values()}
    shown = [v for at, v in enumerate(newest) if at < _VERSIONS_MOST or v.number in named]
    return {
        "tenant": plugin.tenant,
        "plugin": plugin.name,
        "latest": plugin.latest,
        "aliases": {alias.name: alias.number for alias in plugin.aliases.values()},
        "versions": [_version(version, loaded) for version in shown],
        "versions_in_all": len(newest),
    }


def _version(version: Version, loaded: dict[str, PluginView]) -> dict[str, Any]:
    running = loaded.get(f"{origin_of(version.tenant, version.plugin)}{version.number}")
    return {
        "version": version.number,
        "state": version.state,
        "error": version.error,
        "bytes": version.size,
        "created": version.created,
        "running": None
        if running is None
        else {
            name: getattr(running, name)
            for name in ("guests", "memory_bytes", "spawns", "calls", "traps")
        },
    }
