"""Levels of memory pressure, and the arithmetic that moves between them. No clock, no memory.

            ┌───────────── up: at once, as far as a signal says ─────────────┐
    CALM ── EVICT ── REFUSE ── RELEASE ── END
            └──── down: one level, when no signal has held it for `dwell_s` ──┘

A signal says two levels: the one that it asks for, and the one that it would hold if pressure is there
already. The second is taken with thresholds that are `gap` lower, so that a value that trembles at a
threshold does not move anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple

from ..errors import ConfigError

__all__ = ["Ladder", "Level", "Opinion", "Thresholds"]


class Level(IntEnum):
    """How short memory is, and what is done about it from there on."""

    CALM = 0
    EVICT = 1
    """What is only kept for speed goes back: warm slots; and a collection begins."""
    REFUSE = 2
    """Tenants above their share start and grow no guests."""
    RELEASE = 3
    """Nobody starts guests; all that is free goes back to the operating system."""
    END = 4
    """Guests of the tenant furthest above its share are ended, one after the other."""


class Opinion(NamedTuple):
    """What one signal thinks."""

    signal: str
    asks: Level
    holds: Level
    """At least `asks`."""
    why: str
    """With the figure and the limit, for people."""


class Thresholds(NamedTuple):
    """Fractions of a limit at which EVICT, REFUSE, RELEASE and END begin."""

    evict: float = 0.75
    refuse: float = 0.85
    release: float = 0.95
    end: float = 0.97

    def checked(self) -> Thresholds:
        """Return it.

        Raises:
            ConfigError: they do not ascend between 0 and 1.
        """
        if not all(0 < low < high <= 1 for low, high in pairwise(self)):
            raise ConfigError(f"levels are {tuple(self)}; give ascending fractions of the limit")
        return self

    def level(self, fraction: float) -> Level:
        """Return the level of so much of the limit."""
        return Level(sum(fraction >= threshold for threshold in self))


class Ladder:
    """Where the pressure stands.

    Args:
        dwell_s: how long no signal may have held a level before it is left, one at a time.
    """

    def __init__(self, dwell_s: float = 0.2) -> None:
        self.dwell_s = dwell_s
        self.level = Level.CALM
        self._held_s = 0.0  # when the level was held last

    def update(self, now_s: float, opinions: Sequence[Opinion]) -> Level:
        """Take what the signals say now, and return the level from now on."""
        asks = max((opinion.asks for opinion in opinions), default=Level.CALM)
        holds = max((opinion.holds for opinion in opinions), default=Level.CALM)
        if asks > self.level:
            self.level, self._held_s = asks, now_s
        elif holds >= self.level:
            self._held_s = now_s
        elif now_s - self._held_s >= self.dwell_s:
            self.level, self._held_s = Level(self.level - 1), now_s
        return self.level
