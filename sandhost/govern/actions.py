"""What is done when memory gets short. An action belongs to a level and all above it.

    pressure.actions.append(MyAction())        # say, one that drops a cache of the application's

Each is told when its level is reached, again at every look while that holds, and when it is left.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from .ladder import Level
from .protocol import Ended, Governed

__all__ = ["Action", "CallBack", "EndGuests", "Evict", "Refuse", "Release"]


class Action(ABC):
    """Something that is done from a level on. Called on the controller's thread."""

    name: str = "custom"
    level: Level = Level.EVICT
    every_s: float = 0.0
    """Not more often than this while the level holds."""

    @abstractmethod
    def act(self, level: Level) -> object:
        """The level is this one now, at least the action's own. What it returns is logged, if true."""

    def end(self) -> None:  # noqa: B027
        """The level is below the action's own again."""


class Evict(Action):
    """Give back what is only kept for speed; begin a collection."""

    name, level, every_s = "evict", Level.EVICT, 0.5

    def __init__(self, governed: Governed) -> None:
        self._governed = governed

    def act(self, level: Level) -> object:  # noqa: ARG002
        """Return the bytes."""
        return self._governed.evict()


class Refuse(Action):
    """Refuse new guests: those of tenants above their share; from RELEASE on everybody's."""

    name, level, every_s = "refuse", Level.REFUSE, 0.05

    def __init__(
        self, governed: Governed, limit_bytes: Callable[[], int], retry_s: float = 0.25
    ) -> None:
        self._governed, self._limit_bytes, self.retry_s = governed, limit_bytes, retry_s

    def act(self, level: Level) -> object:
        """Return nothing: refusals are counted where they happen."""
        everybody = level >= Level.RELEASE
        retry_s = self.retry_s * (1 + level - self.level)
        self._governed.refuse(retry_s, self._limit_bytes(), everybody=everybody)
        return None

    def end(self) -> None:
        """Welcome all again."""
        self._governed.refuse(0.0, self._limit_bytes(), everybody=False)


class Release(Action):
    """Give all that is free back to the operating system."""

    name, level, every_s = "release", Level.RELEASE, 0.25

    def __init__(self, governed: Governed) -> None:
        self._governed = governed

    def act(self, level: Level) -> object:  # noqa: ARG002
        """Return what went back."""
        return self._governed.release()


class EndGuests(Action):
    """End guests of tenants above their share, one at each look, until the level is left."""

    name, level = "end guests", Level.END

    def __init__(
        self,
        governed: Governed,
        limit_bytes: Callable[[], int],
        ended: Callable[[Ended], object],
    ) -> None:
        self._governed, self._limit_bytes, self._ended = governed, limit_bytes, ended

    def act(self, level: Level) -> object:  # noqa: ARG002
        """Return whom it ended, and why."""
        ended = self._governed.end_one(self._limit_bytes())
        if ended is not None:
            self._ended(ended)
        return ended


class CallBack(Action):
    """A function of the application's: `act(level)`, and `end()` if there is one."""

    def __init__(
        self,
        name: str,
        level: Level,
        act: Callable[[Level], object],
        end: Callable[[], object] | None = None,
        every_s: float = 0.1,
    ) -> None:
        self.name, self.level, self.every_s = name, level, every_s
        self._act, self._end = act, end

    def act(self, level: Level) -> object:
        """Call it."""
        return self._act(level)

    def end(self) -> None:
        """Call the other one."""
        if self._end is not None:
            self._end()
