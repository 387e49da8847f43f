"""Calls of exported functions: for each signature the shortest way from Python values to C and back.

Functions of up to four integers take the fast path: arguments and result cross as C integers. All
others go through cells, 16 bytes a value. Both are compiled once for each shape of signature.

An invoker is called as `invoker(guest, *arguments)`. One that lives for the call only is called as
`invoker(origin, *arguments)`, where the origin is what C spawns a guest from: plugin, snapshot,
tenant and limits. A call that can wait has no such moment when it is over: `Cells` packs and unpacks
for it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

from ._ffi import failure, ffi, lib, take_error
from .errors import GuestExit, printable
from .hostcalls import LETTERS, interrupted, pending
from .modules.types import FuncType

__all__ = ["Cells", "Invoker", "call_failure", "make_invoker"]

Invoker = Callable[..., Any]

_FAST_PARAMETERS = 4


def call_failure(reported: Any = None) -> BaseException:
    """Return what ended a guest's call: an error of ours, or what a callback raised."""
    reported = take_error() if reported is None else reported
    status = reported.status
    if status == lib.SH_HOST_ERROR and reported.guest in pending:
        return pending.pop(reported.guest)
    if status in (lib.SH_HOST_ERROR, lib.SH_INTERRUPTED) and interrupted:
        return interrupted.pop()
    return failure(reported)


def make_invoker(name: str, index: int, signature: FuncType, *, lives: bool = False) -> Invoker:
    """Return the invoker of the export with this index, or one that refuses by name.

    Args:
        lives: it spawns the guest that it calls, and closes it.
    """
    params = [LETTERS.get(t, "r") for t in signature.params]
    results = [LETTERS.get(t, "r") for t in signature.results]
    described = f"{printable(name)}{signature}"
    if "r" in params or "r" in results:
        return functools.partial(_refuse_references, described)
    integers = set(params + results) <= {"i", "l"}
    if integers and len(params) <= _FAST_PARAMETERS and len(results) <= 1:
        factory = _integer_factory(len(params), bool(results), lives)
    else:
        factory = _cell_factory("".join(params), "".join(results), lives)
    invoker: Invoker = factory(index, _Support(described, signature))
    invoker.__name__ = invoker.__qualname__ = name
    return invoker


def _refuse_references(described: str, _guest: object, *_arguments: object) -> Any:
    raise TypeError(f"{described} takes or returns a reference, which Python cannot hold")


class _Support:
    """What generated code calls when it is not on the straight way."""

    def __init__(self, described: str, signature: FuncType) -> None:
        self.described, self.signature = described, signature

    def failed(self) -> Any:
        """Return the honest result that equals the failure mark, or raise what went wrong."""
        reported = take_error()
        if reported.status == lib.SH_OK:
            return lib.SH_CALL_FAILED
        self.ended(reported)
        return None

    def ended(self, reported: Any) -> None:
        """Raise what ended the call, unless it was the clean exit of a command."""
        if reported.status == lib.SH_OVERFLOW:
            raise OverflowError(f"{self.described}: {failure(reported)}")
        error = call_failure(reported)
        try:
            if not self._is_clean_exit(error):
                raise error
        finally:
            del error  # its traceback has this frame: a cycle for each call that fails

    def _is_clean_exit(self, error: BaseException) -> bool:
        return (
            isinstance(error, GuestExit)
            and error.status == 0
            and self.described.startswith("_start(")
        )

    def miscounted(self, arguments: tuple[object, ...]) -> TypeError:
        wanted, given = len(self.signature.params), len(arguments)
        return TypeError(f"{self.described} takes {wanted} arguments, {given} were given")

    def signed(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments with unsigned 64-bit integers as the signed ones of the same bits.

        Raises:
            TypeError, OverflowError: an argument is no integer, or has more bits.
        """
        out = list(arguments)
        for k, (kind, value) in enumerate(zip(self.signature.params, arguments)):
            if kind in ("i32", "i64"):
                number = operator.index(value)
                if kind == "i64" and 2**63 <= number < 2**64:
                    number -= 2**64
                if not -(2**63) <= number < 2**63:
                    raise OverflowError(
                        f"{self.described}: argument {k + 1} does not fit an {kind}"
                    )
                out[k] = number
            elif isinstance(value, int):
                out[k] = float(value)  # OverflowError: an integer beyond all floats
        return tuple(out)


# Arity is checked by hand so that the error names the function and its types. `guest._id` is 0 once
# the guest is closed, which C answers with GuestClosed. No invoker refers to itself: it goes with its plugin, and
# leaves nothing to Python's collector.
_INTEGER_TEMPLATE = """
def make(index, support):
    def invoker(guest, *arguments):
        try:
            {names} = arguments
        except ValueError:
            raise support.miscounted(arguments) from None
        try:
            result = {call}
        except OverflowError:
            {names} = support.signed(arguments)
            result = {call}
        if result == FAILED:
            result = support.failed()
        return {returned}
    return invoker
"""


@functools.cache
def _integer_factory(count: int, has_result: bool, lives: bool) -> Callable[..., Invoker]:
    names = [f"a{k}" for k in range(count)]
    whom = "live_ints(*guest" if lives else "call_ints(guest._id"
    padding = ["0"] * (_FAST_PARAMETERS - count)
    source = _INTEGER_TEMPLATE.format(
        names=f"[{', '.join(names)}]",
        call=f"{whom}, {', '.join(['index', *names, *padding])})",
        returned="result" if has_result else "None",
    )
    return _compile(source)


def _cell_of(letter: str, index: int) -> str:
    """Return the Python expression for one value in `cells` or `reals` (16 bytes a value)."""
    return f"{'reals' if letter in 'fd' else 'cells'}[{2 * index}]"


_CELL_TEMPLATE = """
def make(index, support):
    def invoker(guest, *arguments):
        try:
            {names} = arguments
        except ValueError:
            raise support.miscounted(arguments) from None
        cells = new(CELLS, {width})
        reals = cast(REALS, cells)
        try:
            {store}
        except OverflowError:
            {names} = support.signed(arguments)
            {store}
        if {call}, index, cells):
            return support.failed()
        return {returned}
    return invoker
"""


def _cell_code(params: str, results: str) -> tuple[list[str], list[str], str]:
    """Return the names of the arguments, statements that store them, and what is returned."""
    names = [f"a{k}" for k in range(len(params))]
    stores = [
        f"put_vector(cells, {k}, a{k})" if letter == "v" else f"{_cell_of(letter, k)} = a{k}"
        for k, letter in enumerate(params)
    ]
    loads = [
        f"bytes(buffer(cells + {2 * k}, 16))" if letter == "v" else _cell_of(letter, k)
        for k, letter in enumerate(results)
    ]
    returned = loads[0] if len(loads) == 1 else f"({', '.join(loads)})" if loads else "None"
    return names, stores, returned


@functools.lru_cache(maxsize=256)
def _cell_factory(params: str, results: str, lives: bool) -> Callable[..., Invoker]:
    names, stores, returned = _cell_code(params, results)
    source = _CELL_TEMPLATE.format(
        call="live(*guest" if lives else "call(guest._id",
        names=f"[{', '.join(names)}]",
        width=2 * max(len(params), len(results), 1),
        store="; ".join(stores) or "pass",
        returned=returned,
    )
    return _compile(source)


class Cells:
    """What a call that can wait packs its arguments into, and finds its results in."""

    __slots__ = ("_pack", "_support", "_unpack", "index")

    def __init__(self, name: str, index: int, signature: FuncType) -> None:
        params = "".join(LETTERS.get(t, "r") for t in signature.params)
        results = "".join(LETTERS.get(t, "r") for t in signature.results)
        self._support = _Support(f"{printable(name)}{signature}", signature)
        if "r" in params + results:
            _refuse_references(self._support.described, None)
        self.index = index
        self._pack, self._unpack = _cells_factory(params, results)

    def pack(self, arguments: tuple[Any, ...]) -> Any:
        """Return new cells with the arguments.

        Raises:
            TypeError, OverflowError: they do not fit the function.
        """
        try:
            return self._pack(arguments)
        except ValueError:
            raise self._support.miscounted(arguments) from None
        except OverflowError:
            return self._pack(self._support.signed(arguments))

    def unpack(self, cells: Any) -> Any:
        """Return the results: a value, a tuple, or None."""
        return self._unpack(cells)

    def ended(self) -> None:
        """Raise what ended the call, unless it was the clean exit of a command."""
        self._support.ended(take_error())


_CELLS_TEMPLATE = """
def make():
    def pack(arguments):
        {names} = arguments
        cells = new(CELLS, {width})
        reals = cast(REALS, cells)
        {store}
        return cells
    def unpack(cells):
        reals = cast(REALS, cells)
        return {returned}
    return pack, unpack
"""


@functools.lru_cache(maxsize=256)
def _cells_factory(
    params: str, results: str
) -> tuple[Callable[[tuple[Any, ...]], Any], Callable[[Any], Any]]:
    names, stores, returned = _cell_code(params, results)
    source = _CELLS_TEMPLATE.format(
        names=f"[{', '.join(names)}]",
        width=2 * max(len(params), len(results), 1),
        store="; ".join(stores) or "pass",
        returned=returned,
    )
    made: tuple[Any, Any] = _compile(source)()  # type: ignore[assignment]
    return made


def _put_vector(cells: Any, index: int, value: bytes) -> None:
    if len(value) != 16:
        raise TypeError(f"a v128 is 16 bytes, {len(value)} were given")
    ffi.buffer(cells + 2 * index, 16)[:] = value


def _compile(source: str) -> Callable[..., Invoker]:
    scope: dict[str, Any] = {
        "call": lib.sh_call,
        "call_ints": lib.sh_call_ints,
        "live": lib.sh_live,
        "live_ints": lib.sh_live_ints,
        "FAILED": lib.SH_CALL_FAILED,
        "new": ffi.new,
        "cast": ffi.cast,
        "buffer": ffi.buffer,
        "CELLS": ffi.typeof("int64_t[]"),
        "REALS": ffi.typeof("double *"),
        "put_vector": _put_vector,
    }
    exec(source, scope)
    made: Callable[..., Invoker] = scope["make"]
    return made
