"""What goes over HTTP as JSON: each shape once, for the type checker, for bodies that come, and for openapi.py.

An answer is built as its shape, so mypy finds a field that is missing here or there. A body is read by
`read`; a field that no shape has is refused. How values of wasm look is values.py's to say.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict  # pydantic wants these before Python 3.12

from .problems import Invalid
from .records import AuditEntry, State
from .tokens import Scope

__all__ = [
    "NAME",
    "Alias",
    "Audit",
    "Call",
    "Health",
    "NewToken",
    "Plugin",
    "Plugins",
    "Problem",
    "Progress",
    "Readiness",
    "Results",
    "Session",
    "SetAlias",
    "Tenant",
    "TenantSettings",
    "Tenants",
    "Token",
    "TokenWithText",
    "Tokens",
    "Value",
    "Version",
    "read",
]

_T = TypeVar("_T")

NAME = "^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$"
LABEL = "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]{0,200}$"
SESSION = "^[0-9a-f]{32}$"
ID = "^[0-9a-f]{16}$"
SIZE = "^([0-9]{1,18}|[0-9]{1,6}(\\.[0-9]{1,9})? ?[KMGT]i?B)$"
DURATION = "^([1-9][0-9]{0,5}(\\.[0-9]{1,9})?|0\\.[0-9]{0,5}[1-9]) ?(ms|s|min|h)?$"


def _whole(value: object) -> object:
    """Return 2 for 2.0: JSON has one kind of numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Name = Annotated[str, Field(pattern=NAME, examples=["sum"])]
_AliasName = Annotated[str, Field(pattern=NAME, examples=["live"])]
_Count = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_whole)]
_Size = Annotated[str, Field(pattern=SIZE, examples=["16 MiB"])] | _Count
_Rate = Annotated[float, Field(ge=1e-6, le=1e9)]
_Number = Annotated[int, Field(ge=1, lt=2**63), BeforeValidator(_whole)]

Value = (
    Annotated[int, Field(ge=-(2**63), lt=2**64)]
    | float
    | Literal["NaN", "Infinity", "-Infinity"]
    | Annotated[str, Field(pattern="^[0-9a-fA-F]{32}$")]
)
"""One of wasm: a number, a float that is none, or a v128 in hexadecimal."""

_answer = with_config(ConfigDict(use_attribute_docstrings=True))
_body = with_config(
    ConfigDict(use_attribute_docstrings=True, extra="forbid", strict=True, allow_inf_nan=False)
)


def read(shape: Callable[..., _T], text: bytes) -> _T:
    """Return a body that has this shape; an empty one is {}.

    Raises:
        Invalid: it has another one.
    """
    try:
        found: _T = _adapter(shape).validate_json(text or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(word)[:40] for word in first["loc"])
        raise Invalid(f"{place or 'the body'}: {first['msg']}") from None
    return found


@functools.cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


# ---- calls ----


@_body
class Call(TypedDict):
    """What a function is called with."""

    arguments: NotRequired[Annotated[list[Value], Field(examples=[[2, 3]])]]
    """As many as the function takes, of its types; none when this is left out."""


@_answer
class Results(TypedDict):
    """What a function returned."""

    results: Annotated[list[Value], Field(examples=[[5]])]


@_answer
class Session(TypedDict):
    """A guest that stays."""

    session: Annotated[str, Field(pattern=SESSION)]
    """For `Sandhost-Session`."""


# ---- plugins ----


@_answer
class Progress(TypedDict):
    """How far a version is that is being compiled."""

    step: Literal["waiting", "compiling"]
    before: NotRequired[Annotated[int, Field(ge=0)]]
    """Of the tenant's own, those that come first."""
    seconds: NotRequired[Annotated[float, Field(ge=0)]]
    """For how long it has been compiling."""


@_answer
class Version(TypedDict):
    """One upload of a plugin."""

    plugin: _Name
    version: _Number
    state: State
    error: str | None
    """Why it failed."""
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the module."""
    bytes: Annotated[int, Field(ge=0)]
    progress: NotRequired[Progress]
    """Where one version is asked for that is being compiled."""
    functions: NotRequired[
        Annotated[dict[str, str], Field(examples=[{"add": "(i32, i32) -> (i32)"}])]
    ]
    """What it exports, of very many the first: where one version is asked for that this process has loaded."""


@_answer
class Plugin(TypedDict):
    """A plugin with all its versions."""

    plugin: _Name
    latest: _Number | None
    """The newest version that is ready: what a request without `ref` is for."""
    versions: list[Version]
    aliases: Annotated[dict[str, int], Field(examples=[{"live": 3}])]
    """Which version each one names."""


@_answer
class Plugins(TypedDict):
    """The tenant's plugins."""

    plugins: list[Plugin]


@_body
class SetAlias(TypedDict):
    """What an alias is to name."""

    version: Annotated[_Number, Field(examples=[1])]


@_answer
class Alias(TypedDict):
    """A name for a version."""

    alias: _AliasName
    version: _Number
    previous: _Number | None
    """What it named before: a roll back goes there."""


# ---- the operator's ----


@_body
class Quotas(TypedDict, total=False):
    """What the guests of a tenant may use together. What is left out has no quota of its own."""

    memory_limit: _Size | None
    handles: _Count | None
    handle_memory: _Size | None
    """What the objects behind handles may count for."""
    guests: Annotated[_Count | None, Field(examples=[100])]
    """Alive at once."""
    spawns_per_s: _Rate | None
    cpus: _Rate | None
    weight: _Rate | None
    """The tenant's part when memory is short."""


@_body
class TenantSettings(TypedDict):
    """What a tenant is to have."""

    quotas: NotRequired[Quotas]


@_answer
class Tenant(TypedDict):
    """Whose plugins are apart from all others'."""

    tenant: Annotated[str, Field(pattern=NAME, examples=["acme"])]
    quotas: Quotas
    """Its own. Of the others, those hold that the service's settings give to all."""


@_answer
class Tenants(TypedDict):
    """All of them."""

    tenants: list[Tenant]


@_body
class NewToken(TypedDict):
    """What a token is to be good for."""

    scopes: Annotated[list[Scope], Field(min_length=1, examples=[["deploy", "invoke"]])]
    label: NotRequired[Annotated[str, Field(pattern=LABEL, examples=["CI"])]]
    """What it is for, in your words."""
    expires_in_s: NotRequired[Annotated[float, Field(ge=0, le=1e9)] | None]
    """Without it, never."""


@_answer
class Token(TypedDict):
    """What is known of a token; its text is not."""

    id: Annotated[str, Field(pattern=ID)]
    tenant: str
    scopes: list[Scope]
    label: str
    created: float
    """Unix time."""
    expires: float | None


class TokenWithText(Token):
    """A token that was made just now."""

    token: Annotated[str, Field(pattern="^sh_[A-Za-z0-9_-]{43}$")]
    """Nobody can be shown this again."""


@_answer
class Tokens(TypedDict):
    """A tenant's."""

    tokens: list[Token]


@_answer
class Audit(TypedDict):
    """Who did what."""

    entries: list[AuditEntry]
    """The newest first; `before` with the last one's `at_ns` asks for the next page."""


# ---- is it there, is something wrong ----


@_answer
class Problem(TypedDict):
    """What is wrong with a request, as RFC 9457 has it."""

    type: Annotated[str, Field(pattern="^urn:sandhost:[a-z-]+$")]
    title: str
    """For programs: the one that is meant of those at the operation."""
    status: int
    detail: str
    """For people."""
    retry_after_s: NotRequired[Annotated[float, Field(ge=0)]]
    """Seconds after which to come again."""
    trap: NotRequired[str]
    """Of a guest that failed: by which trap."""
    frames: NotRequired[list[str]]
    """Where that was, the innermost first."""
    exit: NotRequired[int]
    """Of a guest that failed: by which exit status."""
    limit: NotRequired[int | str]
    """Bytes that are taken; of a guest that failed, which of its limits it reached."""
    offset: NotRequired[int | None]
    """Where in the module."""


@_answer
class Health(TypedDict):
    """The process answers."""

    status: Literal["ok"]


@_answer
class Readiness(TypedDict):
    """Whether requests are taken."""

    ready: bool
    pressure: Annotated[str, Field(examples=["calm"])]
    """How short memory is."""
