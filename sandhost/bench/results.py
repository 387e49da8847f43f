"""The numbers a run leaves behind, and their JSON form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .checks import Check
from .contenders import OPERATIONS
from .latency import Histogram, Summary
from .machine import Machine

__all__ = ["SCHEMA", "Results", "Row", "load_results"]

SCHEMA = "sandhost-bench/1"


@dataclass
class Row:
    """One contender on one case, over all repetitions."""

    contender: str
    how: str
    plugin: str
    label: str
    pages: int | None
    memory_bytes: int | None
    threads: int
    histograms: dict[str, Histogram] = field(default_factory=dict, repr=False)
    repetitions: list[dict[str, float]] = field(default_factory=list)
    """Medians in ns by operation, and "cycles_per_s", one entry a repetition."""
    check: Check | None = None

    @property
    def case(self) -> tuple[str, str, int | None, int]:
        """What contenders are compared within."""
        return (self.plugin, self.label, self.memory_bytes, self.threads)

    def summary(self, operation: str) -> Summary:
        """Return the percentiles of one operation; empty if it was not measured."""
        histogram = self.histograms.get(operation)
        return histogram.summary() if histogram is not None and histogram.count else {}

    def median_of(self, key: str) -> float | None:
        """Return the median over the repetitions of one of their figures."""
        values = sorted(r[key] for r in self.repetitions if key in r)
        return values[len(values) // 2] if values else None

    def as_json(self) -> dict[str, Any]:
        """Return percentiles, repetitions and encoded histograms."""
        return {
            "contender": self.contender,
            "timed": self.how,
            "plugin": self.plugin,
            "label": self.label,
            "dirty_pages": self.pages,
            "memory_bytes": self.memory_bytes,
            "threads": self.threads,
            "ns": {op: self.summary(op) for op in OPERATIONS if self.summary(op)},
            "cycles_per_s": self.median_of("cycles_per_s"),
            "repetitions": self.repetitions,
            "reclaim_check": self.check.as_json() if self.check else None,
            "hdr": {op: h.encoded() for op, h in self.histograms.items() if h.count},
        }


@dataclass
class Results:
    """A whole run."""

    machine: Machine
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Contenders that did not run, and why."""
    seconds: float = 0.0

    def cases(self) -> Iterator[list[Row]]:
        """Yield the rows of each case, in the order in which they ran."""
        groups: dict[object, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.case, []).append(row)
        yield from groups.values()

    @property
    def mismatches(self) -> int:
        """Reported reclaims that the kernel's count contradicts."""
        return sum(row.check.mismatches for row in self.rows if row.check)

    def as_json(self) -> dict[str, Any]:
        """Return everything that was measured."""
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "settings": self.settings,
            "seconds": round(self.seconds, 1),
            "left_out": self.left_out,
            "rows": [row.as_json() for row in self.rows],
        }


def load_results(path: Path) -> dict[str, Any]:
    """Read what an earlier run wrote.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path} is no JSON") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ConfigError(f"{path} was not written by this version of sandhost bench ({SCHEMA})")
    return data
