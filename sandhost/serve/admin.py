"""Routes of the operator: tenants with quotas, tokens, the audit log. All of them want the scope "admin".

    GET     /v1/admin/tenants[/{tenant}]
    PUT     /v1/admin/tenants/{tenant}               {"quotas": {"guests": 10, "memory_limit": "1 GiB"}}
    DELETE  /v1/admin/tenants/{tenant}               with tokens, plugins, sessions
    GET     /v1/admin/tenants/{tenant}/tokens
    POST    /v1/admin/tenants/{tenant}/tokens        {"scopes": ["invoke"], "label": …, "expires_in_s": …}
    DELETE  /v1/admin/tenants/{tenant}/tokens/{id}
    GET     /v1/admin/audit                          ?tenant=, limit=, before= (the last entry's at_ns)

A token's text is in the answer that makes it, and nowhere else. Without the scope nobody learns from these
whether a tenant is there.
"""

from __future__ import annotations

import time
from typing import cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import ConfigError
from ..tenants import Quotas
from . import shapes
from .problems import Invalid
from .records import Principal, Tenant, Token
from .requests import body, number, peer_of, route, token_of
from .service import Service
from .threads import in_thread
from .tokens import Scope, digest_of, token_id

__all__ = ["admin_routes"]

_BODY = 16 << 10
_MOST_ENTRIES = 1000


def admin_routes(service: Service) -> list[Route]:
    """Return the routes; none where one tenant is served alone."""
    if service.settings.tenant is not None:
        return []
    desk = _Desk(service)
    tenant = "/v1/admin/tenants/{tenant}"
    return [
        route("GET", "/v1/admin/tenants", desk.tenants),
        route("GET", tenant, desk.tenant),
        route("PUT", tenant, desk.put_tenant),
        route("DELETE", tenant, desk.remove_tenant),
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
        return JSONResponse({"tenants": [_shown(t) for t in self.registry.tenants]})

    async def tenant(self, request: Request) -> Response:
        """One."""
        self._who(request)
        return JSONResponse(_shown(self.registry.tenants.find(request.path_params["tenant"])))

    async def put_tenant(self, request: Request) -> Response:
        """Add one, or give it these quotas in place of those it had."""
        who, name = self._who(request), request.path_params["tenant"]
        wanted = shapes.read(shapes.TenantSettings, await body(request, _BODY))
        quotas = _quotas(wanted.get("quotas", {}))
        is_new = await self.service.put_tenant(who, name, quotas)
        return JSONResponse(_shown(self.registry.tenants.find(name)), 201 if is_new else 200)

    async def remove_tenant(self, request: Request) -> Response:
        """It is nobody any more."""
        who = self._who(request)
        await self.service.remove_tenant(who, request.path_params["tenant"])
        return Response(status_code=204)

    async def tokens(self, request: Request) -> Response:
        """What is known of a tenant's tokens."""
        self._who(request)
        name = request.path_params["tenant"]
        self.registry.tenants.find(name)
        return JSONResponse({"tokens": [_token(token) for token in self.registry.tokens.of(name)]})

    async def add_token(self, request: Request) -> Response:
        """Make one, and show it this once."""
        who, name = self._who(request), request.path_params["tenant"]
        wanted = shapes.read(shapes.NewToken, await body(request, _BODY))
        left_s = wanted.get("expires_in_s")
        expires = None if left_s is None else time.time() + left_s
        text = await self.service.change(
            who,
            "token.add",
            name,
            lambda: self.registry.tokens.add(
                name, wanted["scopes"], wanted.get("label", ""), expires
            ),
        )
        made = token_id(digest_of(text))
        found = next(token for token in self.registry.tokens.of(name) if token.id == made)
        return JSONResponse({"token": text, **_token(found)}, 201)

    async def revoke_token(self, request: Request) -> Response:
        """It is nobody's from now on."""
        who = self._who(request)
        name, its_id = request.path_params["tenant"], request.path_params["id"]
        await self.service.change(
            who,
            "token.revoke",
            f"{name}/{its_id}",
            lambda: self.registry.tokens.revoke(name, its_id),
        )
        return Response(status_code=204)

    async def audit(self, request: Request) -> Response:
        """Who did what, the newest first."""
        self._who(request)
        query = request.query_params
        most = number(query.get("limit", "100"), "limit")
        if most > _MOST_ENTRIES:
            raise Invalid(f"limit is {_MOST_ENTRIES} at the most")
        before = None if "before" not in query else number(query["before"], "before")
        if before is not None and before >= 2**63:
            raise Invalid("before is a time in nanoseconds")
        entries = await in_thread(
            lambda: self.registry.audit.log(query.get("tenant"), most, before)
        )
        return JSONResponse(
            {
                "entries": [
                    {name: getattr(entry, name) for name in entry.__slots__} for entry in entries
                ]
            }
        )


def _quotas(given: shapes.Quotas) -> Quotas:
    try:
        return Quotas(**given)
    except ConfigError as error:
        raise Invalid(str(error)) from None


def _shown(tenant: Tenant) -> shapes.Tenant:
    own = {name: value for name, value in tenant.quotas._asdict().items() if value is not None}
    return {"tenant": tenant.name, "quotas": cast("shapes.Quotas", own)}


def _token(token: Token) -> shapes.Token:
    return {
        "id": token.id,
        "tenant": token.tenant,
        "scopes": sorted(token.scopes),
        "label": token.label,
        "created": token.created,
        "expires": token.expires,
    }
