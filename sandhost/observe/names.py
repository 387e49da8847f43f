"""Names as labels: tenants and plugins are called what hostile people like, and there may be any number.

Each label value costs whoever stores it, for ever. So a name is cut and cleaned, and only the largest
have a value of their own; the rest are summed under "other", which nobody else can be called.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Hashable, Iterable
from typing import NamedTuple

from ..errors import printable

__all__ = ["OTHER", "Folder", "Row", "label"]

OTHER = "other"
_LONGEST = 64
_CUT = "…"


def label(name: str) -> str:
    """Return a name in at most some hundred characters, all printable. Other names, other labels.

    A name that cannot stay as it is gets eight digits of its hash, so that nobody is counted under
    somebody else's.
    """
    if len(name) <= _LONGEST and name.isprintable() and _CUT not in name and name != OTHER:
        return name
    digits = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{printable(name.replace(_CUT, '.'), _LONGEST - 10).rstrip(_CUT)}{_CUT}{digits}"


class Row(NamedTuple):
    """One of many: a tenant, a plugin."""

    key: Hashable
    """Who it is, as long as it is there."""
    name: str
    size: tuple[float, ...]
    """Whoever has the most is shown."""
    gauges: tuple[float | None, ...]
    counters: tuple[float, ...]


class Folder:
    """Sums rows under few labels. Not for several threads at once.

    A counter must not go down while its label is there, also when a row passes from "other" to a label
    of its own, or ends. So what is summed are increases, each under the label that its row has then.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._last: dict[Hashable, tuple[float, ...]] = {}
        self._totals: dict[str, list[float]] = {}

    def fold(self, rows: Iterable[Row]) -> dict[str, tuple[float | None, ...]]:
        """Return gauges and counters by label, the largest first. None: one of the sum has none."""
        groups: dict[str, list[Row]] = {}
        for row in rows:
            groups.setdefault(label(row.name), []).append(row)
        sizes = {name: tuple(map(sum, zip(*(r.size for r in g)))) for name, g in groups.items()}
        shown = heapq.nlargest(self._most, groups, key=sizes.__getitem__)
        parts = {name: groups.pop(name) for name in shown}
        if groups:
            parts[OTHER] = [row for group in groups.values() for row in group]
        self._count(parts)
        return {
            name: (*_sums([row.gauges for row in part]), *self._totals[name])
            for name, part in parts.items()
        }

    def _count(self, parts: dict[str, list[Row]]) -> None:
        last, totals = self._last, self._totals
        self._last, self._totals = {}, {}
        if OTHER in totals:
            self._totals[OTHER] = totals[OTHER]
        for name, part in parts.items():
            total = self._totals[name] = totals.get(name) or [0.0] * len(part[0].counters)
            for row in part:
                before = last.get(row.key) or [0.0] * len(row.counters)
                for k, (now, then) in enumerate(zip(row.counters, before)):
                    total[k] += now - then
                self._last[row.key] = row.counters


def _sums(columns: list[tuple[float | None, ...]]) -> list[float | None]:
    return [None if None in column else sum(column) for column in zip(*columns)]
