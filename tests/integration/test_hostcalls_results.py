"""Host functions: what a result may be, and what an exception does to the call."""

from __future__ import annotations

import math

import pytest
from helpers import collected
from helpers.importing import STARTS, importing

import sandhost
from sandhost import hostcalls


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), GeneratorExit(), MemoryError()]
)
def test_an_exception_comes_out_as_the_same_object(host, error):
    def f(a: int) -> int:
        raise error

    host.function("env", "f")(f)
    with host.load(importing("i32", "i32")).spawn() as guest:
        for _ in range(2):
            with pytest.raises(type(error)) as caught:
                guest.call("go", 1)
            assert caught.value is error
    assert not hostcalls.pending


def test_an_exception_in_the_start_function_comes_out_of_spawn(host):
    error = LookupError("no")

    def f() -> None:
        raise error

    host.function("env", "f")(f)
    host.function("env", "g", "()")(lambda: None)
    plugin = host.load(STARTS)
    for _ in range(3):
        with pytest.raises(LookupError) as caught:
            plugin.spawn()
        assert caught.value is error
    assert not hostcalls.pending
    assert not hostcalls.bindings


def test_an_exception_in_the_start_function_comes_out_of_spawn_of_a_bound_guest(host):
    error = LookupError("no")

    def f(guest: sandhost.Guest) -> None:
        assert guest.memory.read(0, 1) == b"\0"
        raise error

    host.function("env", "f")(f)
    host.function("env", "g", "()")(lambda: None)
    plugin = host.load(STARTS)
    for _ in range(3):
        with pytest.raises(LookupError) as caught:
            plugin.spawn()
        assert caught.value is error
    del caught
    error.__traceback__ = None
    collected()
    assert not hostcalls.pending
    assert not hostcalls.bindings


@pytest.mark.parametrize(
    ("wasm", "result"),
    [
        ("i32", None),
        ("i32", "7"),
        ("i32", 1.5),
        ("i32", 2**32),
        ("i32", -(2**31) - 1),
        ("i64", 2**64),
        ("i64", math.nan),
        ("f32", "x"),
        ("f64", 10**400),
        ("v128", b"short"),
        ("v128", "0123456789abcdef"),
        ("v128", None),
        ("i32 i32", 1),
        ("i32 i32", (1,)),
        ("i32 i32", (1, 2, 3)),
        ("i32 i32", (1, "2")),
    ],
)
def test_a_result_that_does_not_fit_is_a_host_call_error_with_its_cause(host, wasm, result):
    host.function("env", "f", f"() -> ({', '.join(wasm.split())})")(lambda: result)
    with host.load(importing("", wasm)).spawn() as guest:
        with pytest.raises(sandhost.HostCallError, match=r"env\.f returned") as caught:
            guest.call("go")
    assert isinstance(caught.value.__cause__, (TypeError, ValueError, OverflowError))


@pytest.mark.parametrize(
    ("wasm", "given", "seen"), [("i32", 2**32 - 1, -1), ("i64", 2**64 - 1, -1)]
)
def test_a_result_may_be_the_unsigned_number_of_the_same_bits(host, wasm, given, seen):
    host.function("env", "f", f"() -> {wasm}")(lambda: given)
    with host.load(importing("", wasm)).spawn() as guest:
        assert guest.call("go") == seen


def test_a_misfit_error_stays_short_whatever_was_returned(host):
    host.function("env", "f", "() -> i32")(lambda: "x" * 10**6)
    with host.load(importing("", "i32")).spawn() as guest:
        with pytest.raises(sandhost.HostCallError) as caught:
            guest.call("go")
    assert len(str(caught.value)) < 1000


class Index:
    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


@pytest.mark.parametrize(
    ("wasm", "given", "seen"),
    [
        ("i32", True, 1),
        ("i32", Index(7), 7),
        ("i64", Index(2**64 - 2), -2),
        ("i64", -(2**63), -(2**63)),
        ("f64", 3, 3.0),
        ("f32", Index(2), 2.0),
        ("v128", bytearray(range(16)), bytes(range(16))),
        ("v128", memoryview(bytes(range(32)))[::2], bytes(range(0, 32, 2))),
        ("i32 f64", [1, 2], (1, 2.0)),
        ("i32 f64", iter((1, 2.5)), (1, 2.5)),
    ],
)
def test_results_may_be_what_converts_without_loss(host, wasm, given, seen):
    host.function("env", "f", f"() -> ({', '.join(wasm.split())})")(lambda: given)
    with host.load(importing("", wasm)).spawn() as guest:
        assert guest.call("go") == seen


@pytest.mark.parametrize("error", [KeyError("k"), OSError(5, "e"), KeyboardInterrupt()])
def test_what_a_result_raises_while_it_is_converted_comes_out_as_it_is(host, error):
    class Raising:
        def __index__(self):
            raise error

    host.function("env", "f", "() -> i32")(Raising)
    with host.load(importing("", "i32")).spawn() as guest:
        with pytest.raises(type(error)) as caught:
            guest.call("go")
    assert caught.value is error
