"""The door for HTTP: an ASGI application over a `Service`.

    PUT    /v1/plugins/{plugin}                       a module, as the next version; settings in the query
    GET    /v1/plugins[/{plugin}]                     what there is
    GET    /v1/plugins/{plugin}/versions/{number}     how far it is; ?wait=30 waits until it is ready
    DELETE /v1/plugins/{plugin}/versions/{number}     when no alias names it; without a version, the whole plugin
    PUT    /v1/plugins/{plugin}/aliases/{alias}       {"version": 3}; POST .../rollback goes back
    POST   /v1/plugins/{plugin}/call/{function}       {"arguments": [...]} -> {"results": [...]}
    POST   /v1/plugins/{plugin}/bytes/{function}      bytes in, bytes out
    POST   /v1/plugins/{plugin}/run                   a command: see frames.py
    POST   /v1/plugins/{plugin}/sessions              a guest that stays; DELETE /v1/sessions/{session}

Which version: `?ref=`, a number or an alias, else the newest that is ready. Headers: `Authorization: Bearer`,
`Sandhost-Deadline` (seconds), `Sandhost-Session`, `Idempotency-Key`. What is wrong comes as RFC 9457 problems.
"""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import Message, Receive, Send
from starlette.types import Scope as AsgiScope

from .._log import get_logger
from ..memory import GuestMemory
from . import shapes
from .bag_asgi import BagMiddleware
from .bodies import BodyResponse, Held
from .durations import TimedApp
from .frames import CommandResponse
from .gate import PLACE
from .invocation import Invocation
from .loaded import functions
from .openapi import openapi_route
from .problems import Internal, Missing, Problem, Unavailable, WrongMethod
from .records import Alias, Answer, Plugin, Principal, Version
from .registry import LATEST
from .requests import (
    arguments_of,
    body,
    chunks,
    header,
    number,
    peer_of,
    problem_response,
    route,
    seconds,
    token_of,
    version_settings,
)
from .service import Service
from .tokens import Scope

__all__ = ["make_app"]

_LONGEST_WAIT_S = 60.0
_LOOK_AGAIN_S = 0.05
_SMALL_BODY = 4096
_NUMBERS_BODY = 64 << 10
"""What numbers for the thousand parameters that a function may have fit into, as JSON. Reading it stops the loop."""
_JSON, _OCTETS = "application/json", "application/octet-stream"


def make_app(service: Service, more: list[Route] | None = None) -> TimedApp:
    """Return the application.

    Args:
        more: routes beside the API's: those of admin.py and observed.py.
    """
    routes = [*_Doors(service).routes(), *(more or [])]
    app = Starlette(
        routes=[*routes, openapi_route(routes)],
        exception_handlers={Problem: _problem, Exception: _fault, 404: _nowhere, 405: _nowhere},
    )
    app.router.redirect_slashes = False
    return TimedApp(BagMiddleware(_Ending(app, service), service.bags), service.durations)


class _Ending:
    """Says to whoever is cancelled, because the service ends, that it does."""

    def __init__(self, app: Starlette, service: Service) -> None:
        self.app, self._service = app, service

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except asyncio.CancelledError:
            if begun or not self._service.stopping:
                raise
            ended = Unavailable("the service ended before the request did")
            await problem_response(ended)(scope, receive, send)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    place = request.scope.get(PLACE)
    if place is not None:
        place.done = False
    return problem_response(error)


async def _fault(request: Request, error: Exception) -> Response:
    get_logger("sandhost.serve").error("a request failed", path=request.url.path, exc_info=error)
    return problem_response(Internal("something went wrong on our side"))


async def _nowhere(request: Request, _error: Exception) -> Response:
    # Starlette names the methods of the first route of a path, and here each method has its own.
    methods = {
        method
        for one in request.app.routes
        if one.matches(request.scope)[0] is not Match.NONE
        for method in one.methods
    }
    if not methods:
        return problem_response(Missing("there is nothing here"))
    response = problem_response(WrongMethod("not by this method"))
    response.headers["Allow"] = ", ".join(sorted(methods))
    return response


class _Doors:
    """One method for each kind of request."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.registry = service.registry
        self._bodies = service.bodies

    def routes(self) -> list[Route]:
        """Return all of them."""
        plugin, version = "/v1/plugins/{plugin}", "/v1/plugins/{plugin}/versions/{number}"
        alias = "/v1/plugins/{plugin}/aliases/{alias}"
        return [
            route("POST", f"{plugin}/call/{{function}}", self.call),  # the most frequent first
            route("POST", f"{plugin}/bytes/{{function}}", self.call_bytes),
            route("POST", f"{plugin}/run", self.run),
            route("POST", f"{plugin}/sessions", self.open_session),
            route("DELETE", "/v1/sessions/{session}", self.close_session),
            route("GET", "/v1/plugins", self.plugins),
            route("PUT", plugin, self.upload),
            route("GET", plugin, self.plugin),
            route("DELETE", plugin, self.remove_plugin),
            route("GET", version, self.version),
            route("DELETE", version, self.remove),
            route("PUT", alias, self.set_alias),
            route("DELETE", alias, self.remove_alias),
            route("POST", f"{alias}/rollback", self.roll_back),
            route("GET", "/healthz", self.healthy),
            route("GET", "/readyz", self.ready),
        ]

    def _who(self, request: Request, scope: Scope) -> Principal:
        return self.service.who(token_of(request), scope, peer_of(request))

    def _what(self, request: Request) -> Invocation:
        who = self._who(request, Scope.INVOKE)
        left_s = seconds(header(request, b"sandhost-deadline"), "Sandhost-Deadline")
        session = header(request, b"sandhost-session")
        if session is not None or header(request, b"idempotency-key") is not None:
            _leave(request)  # it may wait for the one before
        place = request.scope.get(PLACE)
        names = request.path_params
        return Invocation(
            who,
            names["plugin"],
            request.query_params.get("ref", LATEST) if request.scope["query_string"] else LATEST,
            names.get("function", ""),
            None if left_s is None else time.monotonic() + left_s,
            session,
            let_in=place is not None and place.held,
        )

    async def _once(
        self, request: Request, who: Principal, meant: bytes, work: Callable[[], Awaitable[Answer]]
    ) -> Response:
        """Answer, with what was answered before if the request's key says that it comes again."""
        key = header(request, b"idempotency-key")
        if key is None:
            answer = await work()
        else:
            session = header(request, b"sandhost-session") or ""
            place = f"{request.method} {request.url.path}?{request.url.query} {session}\n"
            answer = await self.service.retries.once(who, key, place.encode() + meant, work)
        return Response(answer.body, answer.status, media_type=answer.media_type)

    # ---- invoking ----

    async def call(self, request: Request) -> Response:
        """Numbers in, numbers out."""
        what = self._what(request)
        text = await body(request, min(self.service.settings.body_limit, _NUMBERS_BODY))
        arguments = arguments_of(text)

        async def work() -> Answer:
            results = await self.service.call(what, arguments)
            return Answer(200, _JSON, json.dumps({"results": results}).encode())

        return await self._once(request, what.who, text, work)

    async def call_bytes(self, request: Request) -> Response:
        """Bytes in, bytes out."""
        what = self._what(request)
        if header(request, b"idempotency-key") is None:
            self.service.check_bytes(what)  # before megabytes come for nothing
            return await self._exchange(what, await self._bodies.receive(request))
        given = await body(request, self.service.settings.body_limit)

        async def work() -> Answer:
            return Answer(200, _OCTETS, await self.service.call_bytes(what, given))

        return await self._once(request, what.who, given, work)

    async def _exchange(self, what: Invocation, given: bytes | Held) -> Response:
        async def take(memory: GuestMemory, address: int, length: int) -> bytes | Held:
            return await self._bodies.take(memory, address, length, given)

        if isinstance(given, Held):
            with given as view:
                result = await self.service.call_buffer(what, view, take)
        else:
            result = await self.service.call_buffer(what, given, take)
        if isinstance(result, Held):
            return BodyResponse(result, _OCTETS)
        return Response(result, media_type=_OCTETS)

    async def run(self, request: Request) -> Response:
        """A command: the body is its standard input, what it writes comes back as it is written."""
        what = self._what(request)
        argv = request.query_params.getlist("argv")
        # Its input may rest for as long as it waits for it: the command's own time is the bound.
        return CommandResponse(
            functools.partial(self.service.run, what, argv), chunks(request, None)
        )

    async def open_session(self, request: Request) -> Response:
        """A guest that stays."""
        session = await self.service.open_session(self._what(request))
        return JSONResponse({"session": session}, 201)

    async def close_session(self, request: Request) -> Response:
        """It ends."""
        who = self._who(request, Scope.INVOKE)
        await self.service.close_session(who, request.path_params["session"])
        return Response(status_code=204)

    # ---- plugins ----

    async def plugins(self, request: Request) -> Response:
        """The tenant's plugins."""
        who = self._who(request, Scope.INVOKE)
        return JSONResponse({"plugins": [_plugin(p) for p in self.registry.plugins.of(who.tenant)]})

    async def plugin(self, request: Request) -> Response:
        """One plugin: its versions and aliases."""
        who = self._who(request, Scope.INVOKE)
        return JSONResponse(
            _plugin(self.registry.plugins.find(who.tenant, request.path_params["plugin"]))
        )

    async def upload(self, request: Request) -> Response:
        """A module."""
        who, plugin = self._who(request, Scope.DEPLOY), request.path_params["plugin"]
        _leave(request)
        settings = version_settings(
            request.query_params.multi_items(), self.service.settings.guest_limits()
        )
        module = await self.service.receive(who, chunks(request))

        async def work() -> Answer:
            version = await self.service.deploy(who, plugin, module, settings)
            return Answer(202, _JSON, json.dumps(_version(version)).encode())

        response = await self._once(request, who, module[0].encode(), work)
        made = json.loads(bytes(response.body))
        response.headers["Location"] = f"/v1/plugins/{plugin}/versions/{made['version']}"
        return response

    async def version(self, request: Request) -> Response:
        """How far a version is; with ?wait=, as soon as it is ready or has failed."""
        who = self._who(request, Scope.INVOKE)
        plugin = request.path_params["plugin"]
        its_number = number(request.path_params["number"], "a version")
        _leave(request)
        wait_s = seconds(request.query_params.get("wait"), "wait") or 0.0
        until_s = time.monotonic() + min(wait_s, _LONGEST_WAIT_S)
        while True:
            version = self.registry.plugins.version(who.tenant, plugin, its_number)
            left_s = until_s - time.monotonic()
            if version.state != "compiling" or left_s <= 0 or self.service.stopping:
                break
            await asyncio.sleep(min(_LOOK_AGAIN_S, left_s))
        answer = _version(version)
        progress = self.service.deployments.progress(version)
        if progress is not None:
            answer["progress"] = progress
        loaded = self.service.versions.get(version)
        if loaded is not None:
            answer["functions"] = {k: str(type_) for k, type_ in functions(loaded.plugin).items()}
        return JSONResponse(answer)

    async def remove(self, request: Request) -> Response:
        """A version that no alias names."""
        who = self._who(request, Scope.DEPLOY)
        its_number = number(request.path_params["number"], "a version")
        await self.service.remove(who, request.path_params["plugin"], its_number)
        return Response(status_code=204)

    async def remove_plugin(self, request: Request) -> Response:
        """A plugin with its versions and aliases."""
        who = self._who(request, Scope.DEPLOY)
        await self.service.remove_plugin(who, request.path_params["plugin"])
        return Response(status_code=204)

    # ---- aliases ----

    async def set_alias(self, request: Request) -> Response:
        """From now on the alias means this version."""
        who = self._who(request, Scope.DEPLOY)
        wanted = shapes.read(shapes.SetAlias, await body(request, _SMALL_BODY))
        tenant, (plugin, alias) = who.tenant, _names(request)
        made = await self.service.change(
            who,
            "alias.set",
            f"{plugin}/{alias}",
            lambda: self.registry.aliases.set(tenant, plugin, alias, wanted["version"]),
        )
        return JSONResponse(_alias(made))

    async def roll_back(self, request: Request) -> Response:
        """The alias means again what it meant before."""
        who = self._who(request, Scope.DEPLOY)
        tenant, (plugin, alias) = who.tenant, _names(request)
        made = await self.service.change(
            who,
            "alias.rollback",
            f"{plugin}/{alias}",
            lambda: self.registry.aliases.roll_back(tenant, plugin, alias),
        )
        return JSONResponse(_alias(made))

    async def remove_alias(self, request: Request) -> Response:
        """The alias means nothing any more."""
        who = self._who(request, Scope.DEPLOY)
        tenant, (plugin, alias) = who.tenant, _names(request)
        await self.service.change(
            who,
            "alias.remove",
            f"{plugin}/{alias}",
            lambda: self.registry.aliases.remove(tenant, plugin, alias),
        )
        return Response(status_code=204)

    # ---- is it there ----

    async def healthy(self, _request: Request) -> Response:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        """It takes requests."""
        ready, pressure = self.service.ready, self.service.host.pressure.level.name.lower()
        return JSONResponse({"ready": ready, "pressure": pressure}, 200 if ready else 503)


def _leave(request: Request) -> None:
    """Give back the place of a request that will rest."""
    place = request.scope.get(PLACE)
    if place is not None:
        place.leave()


def _names(request: Request) -> tuple[str, str]:
    return request.path_params["plugin"], request.path_params["alias"]


def _plugin(plugin: Plugin) -> shapes.Plugin:
    return {
        "plugin": plugin.name,
        "latest": plugin.latest,
        "versions": [_version(version) for version in plugin.versions.values()],
        "aliases": {alias.name: alias.number for alias in plugin.aliases.values()},
    }


def _version(version: Version) -> shapes.Version:
    return {
        "plugin": version.plugin,
        "version": version.number,
        "state": version.state,
        "error": version.error,
        "digest": version.digest,
        "bytes": version.size,
    }


def _alias(alias: Alias) -> shapes.Alias:
    return {"alias": alias.name, "version": alias.number, "previous": alias.previous}
