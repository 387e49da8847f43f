"""`sandhost client tenants`, `tokens`, `audit` and `health`: for who runs the service."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import click

from ..group import FAILED
from ..values import as_time
from .service import Service, asks_service, one, rows

if TYPE_CHECKING:
    from ...client import Tenant

__all__ = ["audit", "health", "tenants", "tokens"]


@click.command()
@click.option("--put", metavar="TENANT", help="Add it, or give it these quotas and no others.")
@click.option("--memory", "memory_limit", metavar="SIZE", help="Most memory of its guests.")
@click.option("--guests", type=int, metavar="N", help="Most guests at once.")
@click.option("--spawns-per-s", type=float, metavar="N", help="Most guests that begin in a second.")
@click.option("--cpus", type=float, metavar="N", help="Processors that its guests may use.")
@click.option(
    "--weight", type=float, metavar="N", help="Its part of what is short, beside others'."
)
@click.option("--handles", type=int, metavar="N", help="Most handles of its guests.")
@click.option("--handle-memory", metavar="SIZE", help="Most memory behind those.")
@asks_service
def tenants(service: Service, put: str | None, **quotas: Any) -> None:
    """List the tenants, or put one.

    \b
      sandhost client tenants --put acme --guests 100 --memory "1 GiB"
    """  # noqa: D301 - \b is click's mark for lines to keep
    from ...quotas import Quotas

    if put is None and any(value is not None for value in quotas.values()):
        raise click.UsageError("whose quotas are these? Name the tenant with --put")
    with service.client() as client:
        if put is None:
            found = [_tenant(tenant) for tenant in client.tenants()]
            rows(service, "tenants", ("tenant", "quotas"), found)
            return
        made = client.put_tenant(put, Quotas(**quotas))
    one(service, _tenant(made), f"{made.name}: its quotas are set")


def _tenant(tenant: Tenant) -> dict[str, Any]:
    return {"tenant": tenant.name, "quotas": dict(tenant.quotas)}


@click.command()
@click.argument("tenant", metavar="TENANT")
@click.option("--add", is_flag=True, help="Make one, and print it, this once.")
@click.option("--revoke", metavar="ID", help="Let the token of this id be nobody's.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["deploy", "invoke", "admin"]),
    multiple=True,
    help="What the new one is good for.  [default: deploy, invoke]",
)
@click.option("--label", default="", metavar="TEXT", help="What the new one is for.")
@click.option("--expires", callback=as_time, metavar="TIME", help='When it ends, as "24 h".')
@asks_service
def tokens(
    service: Service,
    tenant: str,
    add: bool,
    revoke: str | None,
    scopes: tuple[Any, ...],
    label: str,
    expires: float | None,
) -> None:
    """List a tenant's tokens, add one, or revoke one.

    \b
      sandhost client tokens acme --add --scope invoke --label web --expires "24 h"
    """  # noqa: D301 - \b is click's mark for lines to keep
    if add and revoke is not None:
        raise click.UsageError("--add and --revoke are two commands")
    with service.client() as client:
        if add:
            made = client.add_token(
                tenant, scopes or ("deploy", "invoke"), label=label, expires_in_s=expires
            )
            one(service, {"token": made.text, **_token(made)}, made.text)
        elif revoke is not None:
            client.revoke_token(tenant, revoke)
            one(service, {"tenant": tenant, "revoked": revoke}, f"{revoke} is nobody's any more")
        else:
            found = [_token(token) for token in client.tokens(tenant)]
            titles = ("id", "scopes", "label", "created", "expires")
            if not service.as_json:
                for record in found:
                    record["created"] = _time(record["created"])
                    record["expires"] = _time(record["expires"])
            rows(service, "tokens", titles, found)


def _token(token: Any) -> dict[str, Any]:
    return {
        "id": token.id,
        "tenant": token.tenant,
        "scopes": list(token.scopes),
        "label": token.label,
        "created": token.created,
        "expires": token.expires,
    }


def _time(at_s: float | None) -> str | None:
    if at_s is None:
        return None
    return dt.datetime.fromtimestamp(at_s).astimezone().isoformat(" ", "seconds")


@click.command()
@click.option("--tenant", metavar="TENANT", help="Of this one alone.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many.")
@click.option("--before", type=int, metavar="AT_NS", help="Older than this at_ns.")
@asks_service
def audit(service: Service, tenant: str | None, limit: int, before: int | None) -> None:
    """Show who changed what, the newest first."""
    with service.client() as client:
        entries = client.audit(tenant, limit=limit, before=before)
    names = ("at_ns", "tenant", "token_id", "action", "subject", "outcome")
    records = [{name: getattr(entry, name) for name in names} for entry in entries]
    titles = names
    if not service.as_json:
        titles = ("at", *names[1:])
        for record in records:
            record["at"] = _time(record["at_ns"] / 1e9)
    rows(service, "entries", titles, records)


@click.command()
@asks_service
def health(service: Service) -> int:
    """Tell whether the service takes requests: status 0, or 125 when it does not. Needs no token."""
    with service.client() as client:
        found = client.health()
    text = "it takes requests" if found.ready else "it takes no requests"
    one(
        service,
        {"ready": found.ready, "pressure": found.pressure},
        f"{text}; pressure: {found.pressure}",
    )
    return 0 if found.ready else FAILED
