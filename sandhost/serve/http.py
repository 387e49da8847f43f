"""The door for HTTP: an ASGI application over a `Service`.

    PUT    /v1/plugins/{plugin}                       a module, as the next version; settings in the query
    GET    /v1/plugins[/{plugin}]                     what there is
    GET    /v1/plugins/{plugin}/versions/{number}     how far it is; ?wait=30 waits until it is ready
    PUT    /v1/plugins/{plugin}/aliases/{alias}       {"version": 3}; POST .../rollback goes back
    POST   /v1/plugins/{plugin}/call/{function}       {"arguments": [...]} -> {"results": [...]}
    POST   /v1/plugins/{plugin}/bytes/{function}      bytes in, bytes out
    POST   /v1/plugins/{plugin}/run                   a command: standard input in, lines of JSON out
    POST   /v1/plugins/{plugin}/sessions              a guest that stays; DELETE /v1/sessions/{session}

Which version: `?ref=`, a number or an alias, else the newest that is ready. Headers: `Authorization: Bearer`,
`Sandhost-Deadline` (seconds), `Sandhost-Session`, `Idempotency-Key`. What is wrong comes as RFC 9457 problems.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .._log import get_logger
from ..aio.pipe import Pipe
from .bag_asgi import BagMiddleware
from .problems import Internal, Invalid, Missing, Problem, TooLarge, problem_of
from .registry import Principal, Version, VersionSettings
from .service import Invocation, Service
from .tokens import Scope

__all__ = ["make_app"]

_PIPE_BYTES = 256 << 10
_LONGEST_WAIT_S = 60.0
_LONGEST_KEY = 200
_OCTETS = "application/octet-stream"

Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(service: Service, more: list[Route] | None = None) -> Any:
    """Return the application.

    Args:
        more: routes beside the API's: metrics, profiles, the console.
    """
    doors = _Doors(service)
    app = Starlette(
        routes=[*doors.routes(), *(more or [])],
        exception_handlers={Problem: _problem, Exception: _fault, 404: _nowhere, 405: _nowhere},
    )
    return BagMiddleware(app)


# ---- what is wrong ----


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_response(error)


def problem_response(problem: Problem) -> Response:
    """Return a problem as RFC 9457 has it."""
    headers = {"Content-Type": "application/problem+json"}
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(problem.retry_after_s)))
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {
        "type": f"urn:sandhost:{problem.code}",
        "title": problem.code,
        "status": int(problem.status),
        "detail": problem.detail,
        **problem.facts,
    }
    if problem.retry_after_s is not None:
        body["retry_after_s"] = problem.retry_after_s
    return Response(json.dumps(body), problem.status, headers)


async def _fault(request: Request, error: Exception) -> Response:
    get_logger("sandhost.serve").error("a request failed", path=request.url.path, exc_info=error)
    return problem_response(Internal("something went wrong on our side"))


async def _nowhere(_request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    problem = Missing("there is nothing here")
    if status == 405:
        problem = Invalid("not by this method")
    response = problem_response(problem)
    response.status_code = status
    return response


# ---- requests ----


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            if chunk:
                yield chunk
    except ClientDisconnect:
        raise Invalid("the request ended before its body did") from None


async def _body(request: Request, most: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise TooLarge(f"a body has at most {most:,} bytes here")
    pieces, size = [], 0
    async for chunk in _chunks(request):
        size += len(chunk)
        if size > most:
            raise TooLarge(f"a body has at most {most:,} bytes here")
        pieces.append(chunk)
    return b"".join(pieces)


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        raise Invalid("the body is no JSON") from None
    if not isinstance(value, dict):
        raise Invalid("the body is a JSON object")
    return value


def _seconds(text: str | None, what: str) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= 1e6:
        raise Invalid(f"{what} is a number of seconds, not {text[:40]!r}")
    return seconds


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise Invalid(f"a version is a number, not {text[:40]!r}")
    return int(text)


class _Doors:
    """One method for each kind of request."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.registry = service.registry

    def routes(self) -> list[Route]:
        """Return all of them."""
        plugin, version = "/v1/plugins/{plugin}", "/v1/plugins/{plugin}/versions/{number}"
        alias = "/v1/plugins/{plugin}/aliases/{alias}"
        table: list[tuple[str, str, Endpoint]] = [
            ("POST", f"{plugin}/call/{{function}}", self.call),  # the most frequent first
            ("POST", f"{plugin}/bytes/{{function}}", self.call_bytes),
            ("POST", f"{plugin}/run", self.run),
            ("POST", f"{plugin}/sessions", self.open_session),
            ("DELETE", "/v1/sessions/{session}", self.close_session),
            ("GET", "/v1/plugins", self.plugins),
            ("PUT", plugin, self.upload),
            ("GET", plugin, self.plugin),
            ("GET", version, self.version),
            ("DELETE", version, self.remove),
            ("PUT", alias, self.set_alias),
            ("POST", f"{alias}/rollback", self.roll_back),
            ("GET", "/healthz", self.healthy),
            ("GET", "/readyz", self.ready),
        ]
        return [Route(path, endpoint, methods=[method]) for method, path, endpoint in table]

    def _who(self, request: Request, scope: Scope) -> Principal:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        return self.service.who(token.strip() if kind.lower() == "bearer" else None, scope)

    def _what(self, request: Request) -> Invocation:
        headers = request.headers
        return Invocation(
            self._who(request, Scope.INVOKE),
            request.path_params["plugin"],
            request.query_params.get("ref", "latest"),
            request.path_params.get("function", ""),
            _seconds(headers.get("sandhost-deadline"), "Sandhost-Deadline"),
            headers.get("sandhost-session"),
        )

    async def _once(
        self, request: Request, who: Principal, body: bytes, work: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        key = request.headers.get("idempotency-key")
        if key is None:
            return await work()
        if not 0 < len(key) <= _LONGEST_KEY:
            raise Invalid(f"an Idempotency-Key has 1 to {_LONGEST_KEY} characters")
        meant = f"{request.url.path}?{request.url.query}\n".encode() + body
        return await self.service.once(who, key, meant, work)

    # ---- invoking ----

    async def call(self, request: Request) -> Response:
        """Numbers in, numbers out."""
        what = self._what(request)
        body = await _body(request, self.service.settings.body_bytes)
        arguments = _object(body).get("arguments", [])

        async def work() -> bytes:
            return json.dumps({"results": await self.service.call(what, arguments)}).encode()

        answer = await self._once(request, what.who, body, work)
        return Response(answer, media_type="application/json")

    async def call_bytes(self, request: Request) -> Response:
        """Bytes in, bytes out."""
        what = self._what(request)
        body = await _body(request, self.service.settings.body_bytes)
        answer = await self._once(
            request, what.who, body, lambda: self.service.call_bytes(what, body)
        )
        return Response(answer, media_type=_OCTETS)

    async def run(self, request: Request) -> Response:
        """A command: the body is its standard input, what it writes comes back as it is written."""
        what = self._what(request)
        argv = request.query_params.getlist("argv")
        stdin, stdout, stderr = Pipe(_PIPE_BYTES), Pipe(_PIPE_BYTES), Pipe(_PIPE_BYTES)

        async def feed() -> None:
            try:
                async for chunk in _chunks(request):
                    await stdin.send(chunk)
            finally:
                await stdin.aclose()

        return StreamingResponse(
            _frames(
                self.service.run(what, [what.plugin, *argv], stdin, stdout, stderr),
                feed(),
                stdout,
                stderr,
            ),
            media_type="application/x-ndjson",
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
        names = self.registry.plugins(who.tenant)
        return JSONResponse({"plugins": [self._plugin(who, name) for name in names]})

    async def plugin(self, request: Request) -> Response:
        """One plugin: its versions and aliases."""
        who = self._who(request, Scope.INVOKE)
        return JSONResponse(self._plugin(who, request.path_params["plugin"]))

    def _plugin(self, who: Principal, name: str) -> dict[str, Any]:
        return {
            "plugin": name,
            "versions": [_version(version) for version in self.registry.versions(who.tenant, name)],
            "aliases": {
                alias.name: alias.number for alias in self.registry.aliases(who.tenant, name)
            },
        }

    async def upload(self, request: Request) -> Response:
        """A module."""
        who = self._who(request, Scope.DEPLOY)
        settings = VersionSettings.parse(dict(request.query_params))
        version = await self.service.upload(
            who, request.path_params["plugin"], _chunks(request), settings
        )
        place = f"/v1/plugins/{version.plugin}/versions/{version.number}"
        return JSONResponse(_version(version), 202, {"Location": place})

    async def version(self, request: Request) -> Response:
        """How far a version is; with ?wait=, as soon as it is ready or has failed."""
        who = self._who(request, Scope.INVOKE)
        plugin, number = request.path_params["plugin"], _number(request.path_params["number"])
        wait_s = _seconds(request.query_params.get("wait"), "wait") or 0.0
        until = asyncio.get_running_loop().time() + min(wait_s, _LONGEST_WAIT_S)
        while True:
            version = self.registry.version(who.tenant, plugin, number)
            left = until - asyncio.get_running_loop().time()
            if version.state != "compiling" or left <= 0:
                break
            await asyncio.sleep(min(0.05, left))
        answer = _version(version)
        loaded = self.service.versions.get(version.id)
        if loaded is not None:
            answer["functions"] = loaded.functions()
        return JSONResponse(answer)

    async def remove(self, request: Request) -> Response:
        """A version that no alias names."""
        who = self._who(request, Scope.DEPLOY)
        plugin, number = request.path_params["plugin"], _number(request.path_params["number"])
        version = self.registry.version(who.tenant, plugin, number)
        await asyncio.to_thread(self.registry.remove_version, who, plugin, number)
        self.service.versions.drop(version.id)
        return Response(status_code=204)

    async def set_alias(self, request: Request) -> Response:
        """From now on the alias means this version."""
        who = self._who(request, Scope.DEPLOY)
        number = _object(await _body(request, 4096)).get("version")
        if not isinstance(number, int) or isinstance(number, bool):
            raise Invalid('"version" is the number of one')
        parameters = request.path_params
        alias = await asyncio.to_thread(
            self.registry.set_alias, who, parameters["plugin"], parameters["alias"], number
        )
        return JSONResponse(
            {"alias": alias.name, "version": alias.number, "previous": alias.previous}
        )

    async def roll_back(self, request: Request) -> Response:
        """The alias means again what it meant before."""
        who = self._who(request, Scope.DEPLOY)
        parameters = request.path_params
        alias = await asyncio.to_thread(
            self.registry.roll_back, who, parameters["plugin"], parameters["alias"]
        )
        return JSONResponse(
            {"alias": alias.name, "version": alias.number, "previous": alias.previous}
        )

    # ---- is it there ----

    async def healthy(self, _request: Request) -> Response:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        """It takes requests: it is not stopping, and has memory for them."""
        level = self.service.host.pressure.level
        ready = not self.service.stopping and level < 3
        return JSONResponse({"ready": ready, "pressure": level.name.lower()}, 200 if ready else 503)


def _version(version: Version) -> dict[str, Any]:
    return {
        "plugin": version.plugin,
        "version": version.number,
        "state": version.state,
        "error": version.error,
        "digest": version.digest,
        "bytes": version.size,
    }


async def _frames(
    command: Awaitable[int], feed: Awaitable[None], stdout: Pipe, stderr: Pipe
) -> AsyncIterator[bytes]:
    """Yield what a command writes as lines of JSON, and its exit status or problem as the last."""
    lines: asyncio.Queue[bytes | None] = asyncio.Queue(1)

    async def forward(name: str, pipe: Pipe) -> None:
        async for piece in pipe:
            await lines.put(_line({name: base64.b64encode(piece).decode()}))

    async def all_of_it() -> None:
        feeding = asyncio.ensure_future(feed)
        forwarding = [forward("stdout", stdout), forward("stderr", stderr)]
        try:
            result, *_ = await asyncio.gather(command, *forwarding, return_exceptions=True)
            if isinstance(result, Exception):
                problem = problem_of(result)
                facts = {"problem": problem.code, "detail": problem.detail, **problem.facts}
                await lines.put(_line(facts))
            else:
                await lines.put(_line({"exit": result}))
        finally:
            feeding.cancel()
            await lines.put(None)

    running = asyncio.ensure_future(all_of_it())
    try:
        while (line := await lines.get()) is not None:
            yield line
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _line(value: dict[str, object]) -> bytes:
    return json.dumps(value).encode() + b"\n"
