"""What changed between two runs, beyond noise.

The peers are the yardstick: each repetition's figure is also divided by what the peers took in the
same repetition of the same case (the median of their cycles), since they ran in turn with it. If
wasmtime became slower too, it was the machine.

A figure of one contender on one case counts as changed when, both in plain time and by that
yardstick,

1. the repetitions do not overlap: each median now lies above, or each below, each one then. With 7
   repetitions a run, chance alone does that once in 1,716 figures (2 · 7!·7!/14!); and
2. their median moved by at least `THRESHOLD`.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ConfigError
from .machine import what_differs

__all__ = ["THRESHOLD", "Change", "Comparison", "compare"]

THRESHOLD = 0.10
"""Two runs of the same code on a busy virtual machine of two cores differed by up to 8 %."""
_FIGURES = ("spawn", "call", "unload", "cycle", "reclaim", "cycles_per_s")

_OURS = "sandhost"

_Yardsticks = dict[tuple[Any, ...], list[float]]
Verdict = Literal["faster", "slower", "same"]


@dataclass(frozen=True)
class Change:
    """One figure, then and now. Nanoseconds, or cycles a second."""

    contender: str
    label: str
    memory_bytes: int | None
    threads: int
    figure: str
    old: float
    new: float
    verdict: Verdict

    @property
    def ratio(self) -> float:
        """Now to then."""
        return self.new / self.old


@dataclass(frozen=True)
class Comparison:
    """Everything that both runs measured."""

    changes: list[Change]
    drift: float | None
    """The peers' time now to then, over all cases; None without peers in both runs."""
    differences: list[str]
    """In machine and versions."""

    @property
    def changed(self) -> list[Change]:
        """Only what changed beyond noise."""
        return [change for change in self.changes if change.verdict != "same"]


def compare(old: dict[str, Any], new: dict[str, Any]) -> Comparison:
    """Compare two runs as written by `--json`.

    Raises:
        ConfigError: they have no case in common.
    """
    before = {_key(row): row for row in old["rows"]}
    pairs = [(before[_key(row)], row) for row in new["rows"] if _key(row) in before]
    if not pairs:
        raise ConfigError("the two runs have no case in common")
    yardsticks = _yardsticks(old), _yardsticks(new)
    changes = [
        change
        for then, now in pairs
        if now["contender"].startswith(_OURS)
        for figure in _FIGURES
        if (change := _change(then, now, figure, yardsticks)) is not None
    ]
    return Comparison(changes, _drift(*yardsticks), what_differs(old["machine"], new["machine"]))


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["contender"], *_case(row))


def _case(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("plugin", "label", "memory_bytes", "threads"))


def _yardsticks(run: dict[str, Any]) -> _Yardsticks:
    """Return for each case, one a repetition, the median of the peers' cycle times."""
    peers: dict[tuple[Any, ...], list[list[float]]] = {}
    for row in run["rows"]:
        if not row["contender"].startswith(_OURS):
            peers.setdefault(_case(row), []).append([r["cycle"] for r in row["repetitions"]])
    return {
        case: [statistics.median(times) for times in zip(*rows, strict=True)]
        for case, rows in peers.items()
    }


def _drift(old: _Yardsticks, new: _Yardsticks) -> float | None:
    ratios = [
        statistics.median(new[case]) / statistics.median(old[case]) for case in new if case in old
    ]
    return statistics.median(ratios) if ratios else None


def _change(
    then: dict[str, Any],
    now: dict[str, Any],
    figure: str,
    yardsticks: tuple[_Yardsticks, _Yardsticks],
) -> Change | None:
    rows = (then, now)
    old, new = ([r[figure] for r in row["repetitions"] if r.get(figure)] for row in rows)
    if not old or not new:
        return None
    rate = figure == "cycles_per_s"
    verdicts = {_verdict(old, new, more_is_faster=rate)}
    scales = [yardstick.get(_case(row)) for row, yardstick in zip(rows, yardsticks, strict=True)]
    if all(scales) and len(old) == len(scales[0] or ()) and len(new) == len(scales[1] or ()):
        relative = [
            [v * s if rate else v / s for v, s in zip(values, scale or (), strict=True)]
            for values, scale in zip((old, new), scales, strict=True)
        ]
        verdicts.add(_verdict(*relative, more_is_faster=rate))
    return Change(
        now["contender"],
        now["label"],
        now["memory_bytes"],
        now["threads"],
        figure,
        statistics.median(old),
        statistics.median(new),
        verdicts.pop() if len(verdicts) == 1 else "same",
    )


def _verdict(old: list[float], new: list[float], *, more_is_faster: bool) -> Verdict:
    moved = statistics.median(new) / statistics.median(old)
    if min(new) > max(old) and moved >= 1 + THRESHOLD:
        return "faster" if more_is_faster else "slower"
    if max(new) < min(old) and moved <= 1 - THRESHOLD:
        return "slower" if more_is_faster else "faster"
    return "same"
