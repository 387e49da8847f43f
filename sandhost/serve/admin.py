"""Routes of the operator: tenants with quotas, tokens, the audit log. All of them want the scope "admin".

    GET     /v1/admin/tenants[/{tenant}]
    PUT     /v1/admin/tenants/{tenant}               {"quotas": {"guests": 10, "memory_limit": "1 GiB"}}
    GET     /v1/admin/tenants/{tenant}/tokens
    POST    /v1/admin/tenants/{tenant}/tokens        {"scopes": ["invoke"], "label": …, "expires_in_s": …}
    DELETE  /v1/admin/tenants/{tenant}/tokens/{id}
    GET     /v1/admin/audit                          ?tenant=, limit=, before= (the last entry's at_ns)

A token's text is in the answer that makes it, and nowhere else. Without the scope nobody learns from these
whether a tenant is there.
"""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import ConfigError
from ..tenants import Quotas
from .problems import Invalid
from .records import Principal, Tenant, Token
from .requests import (
    body,
    field,
    json_object,
    nothing_else,
    number,
    peer_of,
    route,
    seconds,
    token_of,
)
from .service import Service
from .threads import in_thread
from .tokens import Scope, digest_of, token_id

__all__ = ["admin_routes"]

_BODY = 16 << 10
_MOST_ENTRIES = 1000


def admin_routes(service: Service) -> list[Route]:
    """Return the routes."""
    desk = _Desk(service)
    tenant = "/v1/admin/tenants/{tenant}"
    return [
        route("GET", "/v1/admin/tenants", desk.tenants),
        route("GET", tenant, desk.tenant),
        route("PUT", tenant, desk.put_tenant),
        route("GET", f"{tenant}/tokens", desk.tokens),
        route("POST", f"{tenant}/tokens", desk.add_token),
        route("DELETE", f"{tenant}/tokens/{{id}}", desk.revoke_token),
        route("GET", "/v1/admin/audit", desk.audit),
    ]


class _Desk:
    """One method for each kind of request."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.registry = service.registry

    def _who(self, request: Request) -> Principal:
        return self.service.who(token_of(request), Scope.ADMIN, peer_of(request))

    async def tenants(self, request: Request) -> Response:
        """All of them."""
        self._who(request)
        return JSONResponse({"tenants": [_shown(t) for t in self.registry.tenants()]})

    async def tenant(self, request: Request) -> Response:
        """One."""
        self._who(request)
        return JSONResponse(_shown(self.registry.tenant(request.path_params["tenant"])))

    async def put_tenant(self, request: Request) -> Response:
        """Add one, or give it these quotas in place of those it had."""
        who, name = self._who(request), request.path_params["tenant"]
        record = json_object(await body(request, _BODY))
        quotas = _quotas(field(record, "quotas", dict, {}))
        nothing_else(record)
        is_new = await self.service.put_tenant(who, name, quotas)
        return JSONResponse(_shown(self.registry.tenant(name)), 201 if is_new else 200)

    async def tokens(self, request: Request) -> Response:
        """What is known of a tenant's tokens."""
        self._who(request)
        name = request.path_params["tenant"]
        self.registry.tenant(name)
        return JSONResponse({"tokens": [_token(token) for token in self.registry.tokens(name)]})

    async def add_token(self, request: Request) -> Response:
        """Make one, and show it this once."""
        who, name = self._who(request), request.path_params["tenant"]
        record = json_object(await body(request, _BODY))
        scopes = _scopes(field(record, "scopes", list, []))
        label = field(record, "label", str, "")
        left = record.pop("expires_in_s", None)
        nothing_else(record)
        left_s = None if left is None else seconds(str(left), "expires_in_s")
        expires = None if left_s is None else time.time() + left_s
        text = await self.service.change(
            who,
            "token.add",
            name,
            lambda: self.registry.add_token(name, scopes, label, expires),
        )
        made = token_id(digest_of(text))
        found = next(token for token in self.registry.tokens(name) if token.id == made)
        return JSONResponse({"token": text, **_token(found)}, 201)

    async def revoke_token(self, request: Request) -> Response:
        """It is nobody's from now on."""
        who = self._who(request)
        name, its_id = request.path_params["tenant"], request.path_params["id"]
        await self.service.change(
            who,
            "token.revoke",
            f"{name}/{its_id}",
            lambda: self.registry.revoke_token(name, its_id),
        )
        return Response(status_code=204)

    async def audit(self, request: Request) -> Response:
        """Who did what, the newest first."""
        self._who(request)
        query = request.query_params
        most = min(number(query.get("limit", "100"), "limit"), _MOST_ENTRIES)
        before = None if "before" not in query else number(query["before"], "before")
        if before is not None and before >= 2**63:
            raise Invalid("before is a time in nanoseconds")
        entries = await in_thread(
            lambda: self.registry.audit_log(query.get("tenant"), most, before)
        )
        return JSONResponse(
            {
                "entries": [
                    {name: getattr(entry, name) for name in entry.__slots__} for entry in entries
                ]
            }
        )


def _quotas(given: dict[str, Any]) -> Quotas:
    for name, value in given.items():
        if name not in Quotas._fields:
            raise Invalid(f"there is no quota {name[:40]!r}: there are {', '.join(Quotas._fields)}")
        if isinstance(value, bool):
            raise Invalid(f"{name} is {value!r}; give a number")
    try:
        return Quotas(**given)
    except (ConfigError, OverflowError) as error:
        raise Invalid(str(error)) from None


def _shown(tenant: Tenant) -> dict[str, Any]:
    own = {name: value for name, value in tenant.quotas._asdict().items() if value is not None}
    return {"tenant": tenant.name, "quotas": own}


def _scopes(words: list[Any]) -> list[Scope]:
    known = {scope.value: scope for scope in Scope}
    for word in words:
        if not isinstance(word, str) or word not in known:
            raise Invalid(f"there is no scope {word!r:.40}: there are {', '.join(known)}")
    return [known[word] for word in words]


def _token(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "tenant": token.tenant,
        "scopes": sorted(scope.value for scope in token.scopes),
        "label": token.label,
        "created": token.created,
        "expires": token.expires,
    }
