"""Every request that can be made over HTTP, described: what the OpenAPI document is made of.

Who adds a route describes it here. Tests compare this list with the routes, both ways, and hold every answer
that they see against it: its status, its headers, and each field of its body.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import shapes
from .problems import (
    BadPlugin,
    Conflict,
    DeadlinePassed,
    Denied,
    GuestFailed,
    Internal,
    Invalid,
    Missing,
    NotReady,
    Problem,
    TooLarge,
    TooMany,
    Unavailable,
    Unknown,
)
from .tokens import Scope

__all__ = ["OPERATIONS", "Body", "Operation", "Parameter"]


class Body(NamedTuple):
    """What goes in or comes out."""

    text: str
    """What it is."""
    shape: Any = None
    """Of JSON: one of shapes.py, or a schema."""
    media_type: str = ""
    """"": JSON, if there is a shape, else there is no body."""
    example: str | None = None
    """Of what is no JSON; shapes have their own."""
    headers: tuple[str, ...] = ()
    """Of an answer, by their names in openapi.py; all of them are always there."""
    links: Mapping[str, Mapping[str, str]] = {}
    """Of an answer: which operations go on from it, with which of its fields as their parameters."""


class Parameter(NamedTuple):
    """A word in the query, or a header."""

    name: str
    schema: Mapping[str, Any]
    text: str
    where: str = "query"


class Operation(NamedTuple):
    """A request that can be made."""

    name: str
    """How clients call it."""
    method: str
    path: str
    summary: str
    scope: Scope | None
    """Which a token needs; None: no token is asked for."""
    answers: Mapping[int, Body]
    problems: tuple[type[Problem], ...] = ()
    """Beside those of every request: see `all_problems`."""
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    tag: str = "plugins"
    token_in_query: bool = False
    """Whether `?token=` is as good as the header."""

    @property
    def path_parameters(self) -> list[str]:
        """The names in the path, in their order."""
        return re.findall(r"{(\w+)}", self.path)

    @property
    def all_problems(self) -> tuple[type[Problem], ...]:
        """What can be wrong with the request."""
        everybodys = () if self.scope is None else (Unknown, Denied, TooMany)
        return (*everybodys, *self.problems, Internal)


_JSON, _OCTETS, _TEXT = "application/json", "application/octet-stream", "text/plain"
_WASM, _LINES = "application/wasm", "application/x-ndjson"
_WORD, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
_SECONDS = {"type": "number", "minimum": 0, "maximum": 1e6}
_WORDS = {"type": "array", "items": {"type": "string", "pattern": "^[^\\x00]*$"}}
_VARIABLES = {"type": "array", "items": {"type": "string", "pattern": "^[^=\\x00]+=[^\\x00]*$"}}

_REF = Parameter(
    "ref",
    {**_WORD, "default": "latest"},
    "A version's number, an alias, or the newest that is ready.",
)
_DEADLINE = Parameter(
    "Sandhost-Deadline", _SECONDS, "Seconds from now: what is not done by then is ended.", "header"
)
_SESSION = Parameter(
    "Sandhost-Session",
    {**_WORD, "pattern": shapes.SESSION},
    "In which session: one call at a time, in the order in which they come.",
    "header",
)
_KEY = Parameter(
    "Idempotency-Key",
    {**_WORD, "pattern": "^[!-~]{1,255}$"},
    "A request that comes again with its key gets the first one's answer for a day, and is not done again.",
    "header",
)
_SETTINGS = (
    Parameter("memory", {**_WORD, "pattern": shapes.SIZE, "examples": ["16 MiB"]}, "Of one guest."),
    Parameter(
        "deadline", {**_WORD, "pattern": shapes.DURATION, "examples": ["1 s"]}, "Of one call."
    ),
    Parameter("fuel", {**_COUNT, "minimum": 1}, "Instructions, roughly, of one call."),
    Parameter("table_elements", _COUNT, "That each table may have."),
    Parameter("warm", _WORD, "An export that prepares a guest; calls start from its snapshot."),
    Parameter("argv", _WORDS, "Arguments of a WASI command."),
    Parameter("env", _VARIABLES, "NAME=VALUE, of its environment."),
)

_INVOKING = (Invalid, Missing, Conflict, NotReady, BadPlugin, GuestFailed, TooMany, Unavailable)
_TIMED = (*_INVOKING, DeadlinePassed)
_DONE = {204: Body("It is done.")}

_PLUGIN = "/v1/plugins/{plugin}"
_VERSION = f"{_PLUGIN}/versions/{{number}}"
_ALIAS = f"{_PLUGIN}/aliases/{{alias}}"
_ADMIN = "/v1/admin"
_TENANT = f"{_ADMIN}/tenants/{{tenant}}"
_DEBUG = "/debug/pprof"

_CALLS = (
    Operation(
        "call",
        "POST",
        f"{_PLUGIN}/call/{{function}}",
        "Call a function with numbers",
        Scope.INVOKE,
        {200: Body("What it returned.", shapes.Results)},
        (*_TIMED, TooLarge),
        (_REF, _DEADLINE, _SESSION, _KEY),
        Body("Its arguments.", shapes.Call),
        tag="calls",
    ),
    Operation(
        "call_bytes",
        "POST",
        f"{_PLUGIN}/bytes/{{function}}",
        "Call a function with bytes",
        Scope.INVOKE,
        {200: Body("What it returned.", media_type=_OCTETS)},
        (*_TIMED, TooLarge),
        (_REF, _DEADLINE, _SESSION, _KEY),
        Body("What it is given.", media_type=_OCTETS, example="some bytes"),
        tag="calls",
    ),
    Operation(
        "run",
        "POST",
        f"{_PLUGIN}/run",
        "Run a WASI command",
        Scope.INVOKE,
        {
            200: Body(
                'Lines of JSON as it writes: {"stdout": BASE64}, {"stderr": BASE64}; the last is {"exit": STATUS} '
                'or {"problem": TITLE, "detail": TEXT}.',
                media_type=_LINES,
                example='{"stdout": "aGVsbG8K"}\n{"exit": 0}\n',
            )
        },
        _TIMED,
        (_REF, Parameter("argv", _WORDS, "More arguments."), _DEADLINE),
        Body("Its standard input.", media_type=_OCTETS, example="some text"),
        tag="calls",
    ),
    Operation(
        "open_session",
        "POST",
        f"{_PLUGIN}/sessions",
        "Start a guest that stays between calls",
        Scope.INVOKE,
        {
            201: Body(
                "It is there.",
                shapes.Session,
                links={"close_session": {"session": "session"}},
            )
        },
        _TIMED,
        (_REF, _DEADLINE),
        tag="calls",
    ),
    Operation(
        "close_session",
        "DELETE",
        "/v1/sessions/{session}",
        "End a guest that stayed",
        Scope.INVOKE,
        _DONE,
        (Missing,),
        tag="calls",
    ),
)

_UPLOADED = {"plugin": "plugin", "number": "version"}
_PLUGINS = (
    Operation(
        "list_plugins",
        "GET",
        "/v1/plugins",
        "What plugins there are",
        Scope.INVOKE,
        {200: Body("The tenant's plugins.", shapes.Plugins)},
    ),
    Operation(
        "deploy",
        "PUT",
        _PLUGIN,
        "Have a module become the next version",
        Scope.DEPLOY,
        {
            202: Body(
                "It is kept, and is compiled in the background.",
                shapes.Version,
                headers=("Location",),
                links={"get_version": _UPLOADED, "remove_version": _UPLOADED},
            )
        },
        (Invalid, BadPlugin, Conflict, TooLarge, TooMany, Unavailable),
        (*_SETTINGS, _KEY),
        Body("WebAssembly, binary or as text.", media_type=_WASM, example="(module)"),
    ),
    Operation(
        "get_plugin",
        "GET",
        _PLUGIN,
        "A plugin's versions and aliases",
        Scope.INVOKE,
        {200: Body("It is there.", shapes.Plugin)},
        (Missing,),
    ),
    Operation(
        "remove_plugin",
        "DELETE",
        _PLUGIN,
        "Remove a plugin with all versions and aliases",
        Scope.DEPLOY,
        _DONE,
        (Missing,),
    ),
    Operation(
        "get_version",
        "GET",
        _VERSION,
        "How far a version is",
        Scope.INVOKE,
        {200: Body("It is there.", shapes.Version)},
        (Invalid, Missing),
        (Parameter("wait", _SECONDS, "Wait until it is ready or has failed, a minute at most."),),
    ),
    Operation(
        "remove_version",
        "DELETE",
        _VERSION,
        "Remove a version that no alias names",
        Scope.DEPLOY,
        _DONE,
        (Invalid, Missing, Conflict),
    ),
    Operation(
        "set_alias",
        "PUT",
        _ALIAS,
        "Have an alias name a version from now on",
        Scope.DEPLOY,
        {200: Body("Requests that come from now on see it.", shapes.Alias)},
        (Invalid, Missing, NotReady, TooLarge, TooMany),
        body=Body("Which version.", shapes.SetAlias),
    ),
    Operation(
        "remove_alias",
        "DELETE",
        _ALIAS,
        "Have an alias name nothing",
        Scope.DEPLOY,
        _DONE,
        (Missing,),
    ),
    Operation(
        "roll_back",
        "POST",
        f"{_ALIAS}/rollback",
        "Have an alias name what it named before",
        Scope.DEPLOY,
        {200: Body("It does.", shapes.Alias)},
        (Missing, Conflict),
    ),
)

_OPERATORS = (
    Operation(
        "list_tenants",
        "GET",
        f"{_ADMIN}/tenants",
        "What tenants there are",
        Scope.ADMIN,
        {200: Body("All of them.", shapes.Tenants)},
        tag="admin",
    ),
    Operation(
        "get_tenant",
        "GET",
        _TENANT,
        "A tenant's quotas",
        Scope.ADMIN,
        {200: Body("It is there.", shapes.Tenant)},
        (Missing,),
        tag="admin",
    ),
    Operation(
        "put_tenant",
        "PUT",
        _TENANT,
        "Add a tenant, or give it these quotas in place of those it had",
        Scope.ADMIN,
        {200: Body("It has them.", shapes.Tenant), 201: Body("It is added.", shapes.Tenant)},
        (Invalid, TooLarge),
        body=Body("Its quotas.", shapes.TenantSettings),
        tag="admin",
    ),
    Operation(
        "remove_tenant",
        "DELETE",
        _TENANT,
        "Remove a tenant with its tokens, plugins and sessions",
        Scope.ADMIN,
        _DONE,
        (Missing, Conflict),
        tag="admin",
    ),
    Operation(
        "list_tokens",
        "GET",
        f"{_TENANT}/tokens",
        "What is known of a tenant's tokens",
        Scope.ADMIN,
        {200: Body("Not their texts.", shapes.Tokens)},
        (Missing,),
        tag="admin",
    ),
    Operation(
        "add_token",
        "POST",
        f"{_TENANT}/tokens",
        "Make a token",
        Scope.ADMIN,
        {
            201: Body(
                "Keep its text: nobody can be shown it again.",
                shapes.TokenWithText,
                links={"revoke_token": {"tenant": "tenant", "id": "id"}},
            )
        },
        (Invalid, Missing, TooLarge),
        body=Body("What it is good for.", shapes.NewToken),
        tag="admin",
    ),
    Operation(
        "revoke_token",
        "DELETE",
        f"{_TENANT}/tokens/{{id}}",
        "Have a token be nobody's from now on",
        Scope.ADMIN,
        _DONE,
        (Missing,),
        tag="admin",
    ),
    Operation(
        "list_changes",
        "GET",
        f"{_ADMIN}/audit",
        "Who changed what, and what was refused",
        Scope.ADMIN,
        {200: Body("The newest first.", shapes.Audit)},
        (Invalid,),
        (
            Parameter("tenant", _WORD, "Whose; of all without it."),
            Parameter("limit", {**_COUNT, "maximum": 1000, "default": 100}, "So many at most."),
            Parameter("before", _COUNT, "Those before this `at_ns`."),
        ),
        tag="admin",
    ),
)

_PROFILE = (
    Parameter("debug", {"type": "integer"}, "Not 0: as text."),
    Parameter("seconds", {"type": "number", "minimum": 0, "maximum": 300}, "What changes in them."),
    Parameter("format", {**_WORD, "examples": ["speedscope"]}, "Without it, pprof's."),
    Parameter("gc", {**_WORD, "examples": ["1"]}, "Not 0: collect first."),
)
_WATCHING = (
    Operation(
        "metrics",
        "GET",
        "/metrics",
        "Figures for Prometheus",
        Scope.ADMIN,
        {200: Body("In its text format.", media_type=_TEXT)},
        tag="operation",
        token_in_query=True,
    ),
    Operation(
        "view",
        "GET",
        "/debug/sandhost/view",
        "What `sandhost top` shows",
        Scope.ADMIN,
        {200: Body("Another one in each release.", {"type": "object"})},
        tag="operation",
        token_in_query=True,
    ),
    *(
        Operation(
            name,
            "GET",
            path,
            "What profiles there are",
            Scope.ADMIN,
            {200: Body("A line each.", media_type=_TEXT)},
            tag="operation",
            token_in_query=True,
        )
        for name, path in (("list_profiles", f"{_DEBUG}/"), ("list_profiles_too", _DEBUG))
    ),
    Operation(
        "profile",
        "GET",
        f"{_DEBUG}/{{profile}}",
        "A profile for `go tool pprof`",
        Scope.ADMIN,
        {200: Body("As `debug` and `format` say.", media_type="*/*")},
        (Invalid, Missing),
        _PROFILE,
        tag="operation",
        token_in_query=True,
    ),
    Operation(
        "healthy",
        "GET",
        "/healthz",
        "Does the process answer",
        None,
        {200: Body("It does.", shapes.Health)},
        tag="operation",
    ),
    Operation(
        "ready",
        "GET",
        "/readyz",
        "Does it take requests",
        None,
        {
            200: Body("It does.", shapes.Readiness),
            503: Body("It stops, or is short of memory.", shapes.Readiness),
        },
        tag="operation",
    ),
    Operation(
        "openapi",
        "GET",
        "/openapi.json",
        "This document",
        None,
        {200: Body("OpenAPI 3.1.", {"type": "object"})},
        tag="operation",
    ),
)

OPERATIONS = (*_CALLS, *_PLUGINS, *_OPERATORS, *_WATCHING)
