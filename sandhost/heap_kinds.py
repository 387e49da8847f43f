"""What handles stand for: classes of the application's objects, each a kind with a number."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NamedTuple, TypeVar

from .errors import ConfigError

__all__ = ["Handle", "Kind", "Kinds", "handle_class"]

T = TypeVar("T")


class _Mark:
    """What tells `Handle[T]` from T in an annotation."""


_MARK = _Mark()

Handle = Annotated[T, _MARK]
"""In the annotations of a host function: `Handle[Table]` crosses to the guest as a handle, an i64.

A parameter receives the Table itself, after its handle was checked: it must be live, of that class
and the calling guest's own. It is borrowed: the guest owns it as before. A result is a Table, of
which the guest is given a handle that it owns.
"""

_FIRST, _LAST = 8, 127
_OF_GUESTS = {1: "list", 2: "map", 3: "record", 4: "weak"}
"""What guests make by themselves; native/heap.h, enum shi_kind."""


def handle_class(annotation: object) -> type | None:
    """Return T of an annotation `Handle[T]`, None of any other.

    Raises:
        ConfigError: T is no class.
    """
    if _MARK not in getattr(annotation, "__metadata__", ()):
        return None
    cls = annotation.__origin__  # type: ignore[attr-defined]
    if not isinstance(cls, type):
        raise ConfigError(f"Handle[{cls!r}]: give a class")
    return cls


class Kind(NamedTuple):
    """How the objects of one class are treated; see `HandleHeap.kind`."""

    number: int
    size: int | Callable[[Any], int] | None
    refs: Callable[[Any], Iterable[int]] | None
    finalize: Callable[[Any], object] | None

    def size_of(self, thing: Any) -> int:
        """Return the bytes that an object counts for."""
        if self.size is None:
            try:
                with memoryview(thing) as view:
                    return view.nbytes
            except TypeError:
                return sys.getsizeof(thing)
        return self.size if isinstance(self.size, int) else self.size(thing)


class Kinds:
    """The classes that one heap knows."""

    def __init__(self) -> None:
        self._of: dict[type, Kind] = {}
        self._by_number: dict[int, Kind] = {}

    def add(
        self,
        cls: type,
        size: int | Callable[[Any], int] | None,
        refs: Callable[[Any], Iterable[int]] | None,
        finalize: Callable[[Any], object] | None,
    ) -> int:
        """Return the number of a class, new or known already; see `HandleHeap.kind`."""
        known = self._of.get(cls)
        if known is not None and (size, refs, finalize) in ((None,) * 3, known[1:]):
            return known.number
        if known is not None:
            raise ConfigError(f"handles of {cls.__qualname__} were given out already, or are known")
        number = _FIRST + len(self._of)
        if number > _LAST:
            raise ConfigError(f"a heap has handles of {_LAST - _FIRST + 1} classes at most")
        self._of[cls] = self._by_number[number] = Kind(number, size, refs, finalize)
        return number

    def numbered(self, number: int) -> Kind:
        """Return the kind that has this number."""
        return self._by_number[number]

    def of(self, thing: object) -> Kind:
        """Return the kind of an object: its class's, or the nearest base's that is known."""
        return next(self._of[cls] for cls in type(thing).__mro__ if cls in self._of)

    def expect(self, thing: object, number: int) -> Kind:
        """Return the kind of this number, of which an object must be.

        Raises:
            TypeError: it is not of that class.
        """
        kind = self._by_number[number]
        if self._of.get(type(thing)) is not kind:
            cls = next(cls for cls, known in self._of.items() if known is kind)
            if not isinstance(thing, cls):
                raise TypeError(f"a {cls.__qualname__} is expected")
        return kind

    def names(self) -> dict[int, str]:
        """Return what handles of each kind stand for, by its number."""
        names = {known.number: cls.__qualname__ for cls, known in list(self._of.items())}
        return {**_OF_GUESTS, **names}
