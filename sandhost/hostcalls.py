"""Host functions: Python that guests may call, typed by annotations, and how a call reaches them.

C calls them itself (native/python.c): it finds one by number, makes integers, floats and bytes of the
guest's values, and takes the result back. What Python adds is looked up only when it is needed: the
guest's object, for a function that asks for it, and the error for a result that does not fit.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
import types
import typing
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ._ffi import ffi, lib
from .errors import ConfigError, HostCallError, ModuleError
from .heap_kinds import handle_class
from .modules.types import FuncType, Import

if typing.TYPE_CHECKING:
    from .guest import Guest

__all__ = [
    "HANDLE_MODULE",
    "LETTERS",
    "Binding",
    "HostFunction",
    "awaited",
    "bindings",
    "interrupted",
    "is_handle_import",
    "pending",
    "spawning",
    "unbind",
]

LETTERS = {"i32": "i", "i64": "l", "f32": "f", "f64": "d", "v128": "v"}
"""How C spells value types; anything else is a reference, "r"."""

HANDLE_MODULE = "sandhost"
"""What guests import retain, release, weak, kind, size and containers from; see native/heap_guest.c."""

_ACCEPTS = {int: ("i32", "i64"), float: ("f32", "f64"), bytes: ("v128",)}


class Binding:
    """What callbacks need to know of a guest: only made for guests that can be called back so."""

    __slots__ = ("guest", "streams")

    def __init__(self, guest: Callable[[], Guest | None], streams: Sequence[Any]) -> None:
        self.guest = guest
        self.streams = streams  # as in WasiGrant


bindings: dict[int, Binding] = {}
"""By guest id."""
spawning = threading.local()
"""`.binding`: of the guest that this thread is spawning; its id is not known before it runs."""
pending: dict[int, BaseException] = {}
"""By guest id: the exception that ended its call, on the way from the callback to the caller."""
awaited: dict[int, Awaitable[Any]] = {}
"""By guest id: what its call waits for, on the way from the callback to the task that calls."""
_numbers = itertools.count()
_free: list[int] = []
"""Numbers of host functions that were bound once; C's table stays as small as it can."""


def binding_of(guest_id: int) -> Binding:
    """Return the binding of a guest, also while it is being spawned."""
    binding = bindings.get(guest_id)
    if binding is None:
        binding = bindings[guest_id] = spawning.binding
        guest = binding.guest()
        if guest is not None:
            guest.adopt(guest_id)
    return binding


class HostFunction:
    """A Python function under the name that guests import.

    Parameters and results are `int` (i32 or i64, as the guest imports it), `float` (f32 or f64) and
    `bytes` (v128); several results are a tuple. `sandhost.Handle[T]` crosses as an i64 that stands for
    a T. A parameter annotated `sandhost.Guest` is no wasm parameter: it receives the calling guest.
    """

    def __init__(
        self, module: str, name: str, function: Callable[..., Any], signature: str | None
    ) -> None:
        self.module, self.name, self.function = module, name, function
        self.asynchronous = inspect.iscoroutinefunction(function)
        """It can be called only by `call_async`, and answers when its coroutine has ended."""
        self.explicit = None if signature is None else _parse_signature(signature)
        self.wants_guest: int | None = None
        self._accepted: tuple[list[Any], list[Any]] | None = None
        if not callable(function):
            raise ConfigError(f"host function {module}.{name}: {function!r} is not callable")
        if self.explicit is None:
            self._accepted = self._read_annotations()
        else:
            self.wants_guest = _guest_parameter(function)

    def _read_annotations(self) -> tuple[list[Any], list[Any]]:
        where = f"host function {self.module}.{self.name}"
        try:
            self.wants_guest = _guest_parameter(self.function)
            hints = _hints(self.function, self.wants_guest)
        except NameError as error:
            raise ConfigError(f"{where}: its annotations cannot be read: {error}") from error
        params: list[Any] = []
        for position, (name, parameter) in enumerate(
            inspect.signature(self.function).parameters.items()
        ):
            if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                raise ConfigError(f"{where}: parameter {name} is not positional")
            if position == self.wants_guest:
                continue
            if not _crosses(hints.get(name)):
                raise ConfigError(
                    f"{where}: annotate parameter {name} with int, float, bytes, "
                    "sandhost.Handle[...] or sandhost.Guest, "
                    'or give signature="(i32, ...) -> ..."'
                )
            params.append(hints[name])
        returned = hints.get("return", type(None))
        several = typing.get_origin(returned) is tuple
        results = list(typing.get_args(returned)) if several else [returned]
        results = [] if results == [type(None)] else results
        if not all(map(_crosses, results)):
            raise ConfigError(
                f"{where}: annotate the result with int, float, bytes, sandhost.Handle[...], "
                "a tuple or None"
            )
        return params, results

    def check(self, wanted: FuncType) -> None:
        """Hold the function against the type that a module imports.

        Raises:
            ModuleError: it does not fit, saying both types.
        """
        if self.explicit is not None:
            fits = self.explicit == wanted
            ours = str(self.explicit)
        else:
            assert self._accepted is not None
            params, results = self._accepted
            fits = _fits(params, wanted.params) and _fits(results, wanted.results)
            ours = f"({_names(params)}) -> ({_names(results)})"
        if not fits:
            raise ModuleError(
                f"the module imports {self.module}.{self.name} as {wanted}; "
                f"the host function of that name is {ours}"
            )

    def bind(self, wanted: FuncType, host: Any) -> tuple[int, object]:
        """Make the function callable from C, for the imported type, and for handles of a host.

        Returns the number by which C calls it until `unbind`, and what somebody has to hold until
        then. It is not held here: a host function may refer to what holds the plugin.
        """
        held = (
            self.function,
            functools.partial(_misfit, self, wanted),
            _calling_guest,
            -1 if self.wants_guest is None else self.wants_guest,
            "".join(LETTERS[t] for t in wanted.params).encode(),
            "".join(LETTERS[t] for t in wanted.results).encode(),
            self.asynchronous,
            *self._handles(host),
        )
        try:
            number = _free.pop()
        except IndexError:
            number = next(_numbers)
        if lib.sh_python_bind(number, _address(held)):
            raise MemoryError
        return number, held

    def _handles(self, host: Any) -> tuple[Any, ...]:
        """Return what C needs for handles: kinds by position (0: no handle), heap, and the ways back."""
        params, results = (
            [handle_class(annotation) for annotation in side] for side in self._accepted or ((), ())
        )
        if not any(params) and not any(results):
            return ()
        heap = host.handles
        kinds = (bytes(heap.kind(cls) if cls else 0 for cls in side) for side in (params, results))
        return *kinds, _number(heap.native), heap.objects, heap.wrap, heap.refusal


def is_handle_import(wanted: Import) -> bool:
    """Whether C defines this import: it is one of module "sandhost", and has its type."""
    return wanted.module == HANDLE_MODULE and _handle_imports().get(wanted.name) == wanted.type


@functools.cache
def _handle_imports() -> dict[str, FuncType]:
    found: dict[str, FuncType] = {}
    params, results = ffi.new("char *[1]"), ffi.new("char *[1]")
    types_of = {letter: name for name, letter in LETTERS.items()}
    while name := lib.sh_handle_import(len(found), params, results):
        sides = (ffi.string(side[0]).decode() for side in (params, results))
        found[ffi.string(name).decode()] = FuncType(
            *(tuple(types_of[letter] for letter in side) for side in sides)
        )
    return found


def unbind(numbers: Sequence[int]) -> None:
    """Forget the host functions of a plugin that is gone."""
    for number in numbers:
        lib.sh_python_unbind(number)
        _free.append(number)


def _address(thing: object) -> Any:
    """Return CPython's pointer to an object, which the caller keeps alive."""
    return ffi.cast("void *", id(thing))


def _number(native: Any) -> int:
    return int(ffi.cast("uintptr_t", native))


def _names(annotations: Sequence[Any]) -> str:
    classes = [handle_class(annotation) for annotation in annotations]
    return ", ".join(
        f"Handle[{c.__name__}]" if c else a.__name__ for c, a in zip(classes, annotations)
    )


def _crosses(annotation: Any) -> bool:
    return handle_class(annotation) is not None or annotation in _ACCEPTS


def _fits(ours: Sequence[Any], wanted: Sequence[str]) -> bool:
    accepted = (("i64",) if handle_class(o) else _ACCEPTS[o] for o in ours)
    return len(ours) == len(wanted) and all(w in a for a, w in zip(accepted, wanted))


def _guest_parameter(function: Callable[..., Any]) -> int | None:
    """Return the position of the parameter annotated `Guest`."""
    for position, parameter in enumerate(inspect.signature(function).parameters.values()):
        annotation = parameter.annotation
        name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
        if name.rsplit(".", 1)[-1].strip("\"'") == "Guest":
            return position
    return None


def _hints(function: Callable[..., Any], guest_at: int | None) -> dict[str, Any]:
    """Return the types of parameters and result; of the calling guest only where it can be read.

    Where annotations are kept as text, `Guest` may be a name of a function's, which nobody can look
    up from outside.
    """
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError:
        if guest_at is None:
            raise
    plain = inspect.unwrap(function)
    guest = list(inspect.signature(plain).parameters)[guest_at]
    others = {name: hint for name, hint in plain.__annotations__.items() if name != guest}
    without = types.SimpleNamespace(__annotations__=others)
    return typing.get_type_hints(without, getattr(plain, "__globals__", {}), include_extras=True)


def _parse_signature(signature: str) -> FuncType:
    """Read "(i32, i64) -> f64", "() -> ()" or "(i32)"."""
    params, _, results = signature.partition("->")
    sides = []
    for side in (params, results):
        names = [n.strip() for n in side.strip().removeprefix("(").removesuffix(")").split(",")]
        names = [n for n in names if n]
        if any(n not in LETTERS for n in names):
            raise ConfigError(
                f"signature {signature!r} is not understood; write it like '(i32, i64) -> f64'"
            )
        sides.append(tuple(names))
    return FuncType(*sides)


def _calling_guest(guest_id: int) -> Guest:
    guest = binding_of(guest_id).guest()
    assert guest is not None, "a guest that runs is held by its caller"
    return guest


def _misfit(
    function: HostFunction, wanted: FuncType, result: object, cause: Exception
) -> Exception:
    error = HostCallError(
        f"host function {function.module}.{function.name} returned {result!r:.200}; "
        f"the guest expects ({', '.join(wanted.results)})"
    )
    error.__cause__ = cause
    return error


interrupted: list[BaseException] = []
"""What a signal handler raised on the main thread while a guest ran there."""


def _keep_signal(_type: object, error: BaseException, _traceback: object) -> None:
    interrupted[:] = [error]


@ffi.def_extern(error=lib.SH_RAISED, onerror=_keep_signal)
def _output(guest_id: int, stream: int, data: Any, length: int, may_wait: int) -> int:
    try:
        callback, waits = binding_of(guest_id).streams[stream]
        if not waits:
            callback(bytes(ffi.buffer(data, length)))
        elif may_wait:
            awaited[guest_id] = callback(bytes(ffi.buffer(data, length)))
            return int(lib.SH_SAID_LATER)
        else:
            raise ConfigError(
                "the guest's output goes to a coroutine; use `await guest.call_async(...)`"
            )
    except BaseException as error:  # noqa: BLE001 - it goes on in Guest.call
        pending[guest_id] = error
        return int(lib.SH_RAISED)
    return int(lib.SH_SAID)


@ffi.def_extern(error=lib.SH_RAISED, onerror=_keep_signal)
def _input(guest_id: int, length: int) -> int:
    try:
        awaited[guest_id] = binding_of(guest_id).streams[0].call(length)
    except BaseException as error:  # noqa: BLE001 - it goes on in Guest.call_async
        pending[guest_id] = error
        return int(lib.SH_RAISED)
    return int(lib.SH_SAID_LATER)


@ffi.def_extern(error=1, onerror=_keep_signal)
def _signals() -> int:
    return 0  # by getting here, Python has run its signal handlers


lib.sh_python_keep(_address(pending), _address(awaited))
lib.sh_set_callbacks(
    ffi.new(
        "sh_callbacks *",
        {
            "hostcall": ffi.addressof(lib, "sh_python_hostcall"),
            "answer": ffi.addressof(lib, "sh_python_answer"),
            "output": lib._output,
            "input": lib._input,
            "take": ffi.addressof(lib, "sh_python_take"),
            "signals": lib._signals,
        },
    )
)
