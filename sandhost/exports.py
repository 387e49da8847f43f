"""The functions that a plugin exports, and what calls them: made for each when it is first asked for.

A module may export a hundred thousand functions, and is called by a few. So what is kept for all of them is
names, numbers and types, which many share; Python's collector, which goes through all that lives, finds one
dictionary there, and not seven objects a function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Generic, TypeVar

from .calls import Cells, Invoker, make_invoker
from .errors import ConfigError, printable
from .modules.types import FuncType

__all__ = ["Exports", "Made"]

_T = TypeVar("_T")


class _Functions:
    """Names, C's numbers and types."""

    def __init__(self) -> None:
        self.types: dict[str, FuncType] = {}
        self._numbers: dict[str, int] = {}

    def add(self, name: str, type_: FuncType) -> None:
        self._numbers[name] = len(self._numbers)
        self.types[name] = type_

    def find(self, name: str) -> tuple[int, FuncType]:
        """Return number and type.

        Raises:
            ConfigError: there is no such function.
        """
        number = self._numbers.get(name)
        if number is None:
            raise self._no_such(name)
        return number, self.types[name]

    def _no_such(self, name: object) -> ConfigError:
        shown = ", ".join(printable(known[:100]) for known in islice(self.types, 8))
        more = ", …" if len(self.types) > 8 else ""
        return ConfigError(
            f"the plugin exports no function {name!r:.200}; it exports {shown or 'none'}{more}"
        )


class Made(dict[str, _T], Generic[_T]):
    """What calls each function, by name. Asked for one that the plugin does not export, it raises ConfigError.

    Two threads may make the same one; either does.
    """

    def __init__(self, functions: _Functions, make: Callable[[str, int, FuncType], _T]) -> None:
        self._functions, self._make = functions, make

    def __missing__(self, name: str) -> _T:
        made = self[name] = self._make(name, *self._functions.find(name))
        return made


class Exports:
    """The exported functions of one plugin."""

    def __init__(self) -> None:
        functions = _Functions()
        self.add = functions.add
        """Called once for each, in the order of C's numbers for them."""
        self.types = functions.types
        """By name, in that order."""
        self.invokers: Made[Invoker] = Made(functions, make_invoker)
        self.lives: Made[Invoker] = Made(functions, partial(make_invoker, lives=True))
        """Those that spawn the guest that they call, and close it."""
        self.cells: Made[Cells] = Made(functions, Cells)
        """What calls on fibers pack and unpack with."""
