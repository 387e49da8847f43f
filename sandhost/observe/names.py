"""Names as labels: tenants and plugins are called what hostile people like, and there may be any number.

Each label value costs whoever stores it, for ever. So a name is cut and cleaned, and only the largest
have a value of their own; the rest are summed under "other", which nobody else can be called.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Hashable, Iterable, Mapping
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
    gauges: Mapping[str, float | None]
    counters: Mapping[str, float]


class Folder:
    """Sums rows under few labels. Not for several threads at once.

    A counter must not go down while its label is there, also when a row passes from "other" to a label
    of its own, or ends. So what is summed are increases, each under the label that its row has then.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._last: dict[Hashable, Mapping[str, float]] = {}
        self._totals: dict[str, dict[str, float]] = {}

    def fold(self, rows: Iterable[Row]) -> dict[str, dict[str, float | None]]:
        """Return the fields' sums by label, the largest first. None: one of the sum has none."""
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
            name: {**_sums([row.gauges for row in part]), **self._totals[name]}
            for name, part in parts.items()
        }

    def _count(self, parts: dict[str, list[Row]]) -> None:
        last, totals = self._last, self._totals
        self._last, self._totals = {}, {}
        if OTHER in totals:
            self._totals[OTHER] = totals[OTHER]
        for name, part in parts.items():
            total = self._totals[name] = totals.get(name) or dict.fromkeys(part[0].counters, 0.0)
            for row in part:
                before = last.get(row.key, {})
                for field, count in row.counters.items():
                    total[field] += count - before.get(field, 0.0)
                self._last[row.key] = row.counters


def _sums(rows: list[Mapping[str, float | None]]) -> dict[str, float | None]:
    summed: dict[str, float | None] = {}
    for field in rows[0]:
        column = [value for row in rows if (value := row[field]) is not None]
        summed[field] = sum(column) if len(column) == len(rows) else None
    return summed
