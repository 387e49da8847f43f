"""Labels of handles: C knows them by number."""

from __future__ import annotations

import itertools

__all__ = ["Labels"]

_MOST = 1 << 16  # an application may name each handle by what came in a request. Arbitrary
_NONE, _OTHERS = "", "others"


class Labels:
    """The labels of one heap. What comes when there are 65,536 is called "others", and counted as such.

    Threads may come here at the same time, and one in the middle of its own turn: there is no lock.
    """

    def __init__(self) -> None:
        self._numbers = {_NONE: 0, _OTHERS: 1}
        self._names = {0: _NONE, 1: _OTHERS}
        self._next = itertools.count(2)

    def number(self, label: str) -> int:
        """Return the number of a label."""
        number = self._numbers.get(label)
        if number is not None:
            return number
        if len(self._names) >= _MOST:
            return self._numbers[_OTHERS]
        number = next(self._next)
        self._names[number] = label  # first: who finds the number finds the name
        return self._numbers.setdefault(label, number)

    def name(self, number: int) -> str:
        """Return the label that has this number."""
        return self._names[number]
