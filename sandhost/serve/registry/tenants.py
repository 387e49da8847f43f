"""Which tenants there are, and their quotas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ...tenants import Quotas
from ..problems import Conflict, Missing
from ..records import Tenant
from .changing import Changing
from .words import check_name

__all__ = ["OPERATOR", "Tenants"]

OPERATOR = "operator"
"""The tenant that the first admin token belongs to; one like any other."""

_NO_QUOTAS = Quotas()


class Tenants:
    """All tenants. To go through them is for the operator only."""

    def __init__(self, changing: Changing, kept: Iterable[Tenant]) -> None:
        self._changing = changing
        self._all = {tenant.name: tenant for tenant in kept}

    def add(self, name: str, quotas: Quotas = _NO_QUOTAS) -> Tenant:
        """Add a tenant.

        Raises:
            Invalid: the name cannot be one.
            Conflict: there is one of this name.
        """
        check_name("tenant", name)
        with self._changing as store:
            if name in self._all:
                raise Conflict(f"there is a tenant {name!r} already")
            tenant = Tenant(name, quotas)
            store.put_tenant(tenant)
            self._all[name] = tenant
            return tenant

    def update(self, name: str, quotas: Quotas) -> Tenant:
        """Give a tenant these quotas in place of those it had.

        Raises:
            Missing: there is none of this name.
        """
        with self._changing as store:
            self.find(name)
            tenant = Tenant(name, quotas)
            store.put_tenant(tenant)
            self._all[name] = tenant
            return tenant

    def find(self, name: str) -> Tenant:
        """Return a tenant; raises `Missing`."""
        tenant = self._all.get(name)
        if tenant is None:
            raise Missing(f"there is no tenant {name!r:.80}")
        return tenant

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def __iter__(self) -> Iterator[Tenant]:
        return iter(list(self._all.values()))

    def forget(self, name: str) -> None:
        """Let go of a tenant that the store has removed."""
        del self._all[name]
