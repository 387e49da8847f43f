"""Host functions: what may be one, what they get, and how each way out of them ends the call."""

from __future__ import annotations

import math
import threading
import time
import weakref

import pytest
from helpers import DEADLINE, PATIENCE, Background, collected, guest_file

import sandhost
from sandhost import hostcalls


def importing(params: str, results: str, *, memory: str = "") -> bytes:
    """A guest whose `go` passes everything on to env.f."""
    count = len(params.split())
    gets = " ".join(f"(local.get {k})" for k in range(count))
    sign = f"(param {params}) (result {results})"
    return f"""(module (import "env" "f" (func $f {sign})) {memory}
        (func (export "go") {sign} (call $f {gets})))""".encode()


STARTS = b"""(module (import "env" "f" (func $f)) (import "env" "g" (func $g))
    (memory (export "memory") 1)
    (func (export "go") (call $f)) (func $s (call $f) (call $g)) (start $s))"""


# ---- types ----


@pytest.mark.parametrize(
    ("wasm", "annotation", "given", "seen"),
    [
        ("i32", int, 2**32 - 1, -1),
        ("i64", int, 2**63, -(2**63)),
        ("f32", float, 1e300, math.inf),
        ("f64", float, 0.1, 0.1),
        ("v128", bytes, bytes(range(16)), bytes(range(16))),
    ],
)
def test_values_cross_by_annotation(host, wasm, annotation, given, seen):
    got = []

    def f(value):
        got.append(value)
        return value

    f.__annotations__ = {"value": annotation, "return": annotation}
    host.function("env", "f")(f)
    with host.load(importing(wasm, wasm)).spawn() as guest:
        assert guest.call("go", given) == seen
    assert got == [seen]


def test_several_results_are_a_tuple(host):
    @host.function("env", "f")
    def f(a: int, b: float) -> tuple[float, int, bytes]:
        return b, a, b"v" * 16

    text = importing("i32 f64", "f64 i64 v128")
    with host.load(text).spawn() as guest:
        assert guest.call("go", 3, 0.5) == (0.5, 3, b"v" * 16)


def test_an_explicit_signature_needs_no_annotations(host):
    host.function("env", "f", "(i64, f32) -> i32")(lambda a, b: a + int(b))
    with host.load(importing("i64 f32", "i32")).spawn() as guest:
        assert guest.call("go", 2, 3.0) == 5


@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_calling_guest_is_passed_wherever_it_is_annotated(host, position):
    seen = []

    def first(guest: sandhost.Guest, a: int, b: int) -> int:
        seen.append(guest)
        return a - b

    def second(a: int, guest: sandhost.Guest, b: int) -> int:
        return first(guest, a, b)

    def third(a: int, b: int, guest: sandhost.Guest) -> int:
        return first(guest, a, b)

    host.function("env", "f")((first, second, third)[position])
    plugin = host.load(importing("i32 i32", "i32"))
    with plugin.spawn() as one, plugin.spawn() as two:
        assert one.call("go", 9, 4) == 5
        assert two.call("go", 9, 4) == 5
        assert seen == [one, two]


@pytest.mark.parametrize(
    "imports",
    ["import sandhost", "import sandhost as sh", "from sandhost import Guest"],
)
def test_the_calling_guest_may_be_named_by_what_only_a_function_knows(host, imports):
    name = imports.split()[-1] + ("" if "from" in imports else ".Guest")
    scope: dict[str, object] = {}
    exec(
        f"""from __future__ import annotations
def define(host):
    {imports}
    seen = []
    @host.function("env", "f")
    def f(a: int, guest: {name}, b: float) -> int:
        seen.append(guest)
        return a
    return seen
""",
        scope,
    )
    seen = scope["define"](host)
    with host.load(importing("i32 f64", "i32")).spawn() as guest:
        assert guest.call("go", 9, 0.5) == 9
        assert seen == [guest]


@pytest.mark.parametrize(
    ("annotate", "complaint"),
    [
        ("def f(a): ...", "annotate parameter a"),
        ("def f(a: str) -> int: ...", "annotate parameter a"),
        ("def f(a: int) -> str: ...", "annotate the result"),
        ("def f(a: int) -> tuple[int, str]: ...", "annotate the result"),
        ("def f(*a: int) -> int: ...", "not positional"),
        ("def f(*, a: int) -> int: ...", "not positional"),
        ("def f(a: 'Nowhere') -> int: ...", "cannot be read"),
        ("def f(g: 'lost.Guest', a: 'Nowhere') -> int: ...", "cannot be read"),
        ("f = 7", "not callable"),
    ],
)
def test_a_function_whose_types_cannot_be_told_is_refused(host, annotate, complaint):
    scope: dict[str, object] = {}
    exec(annotate, scope)
    with pytest.raises(sandhost.ConfigError, match=complaint):
        host.function("env", "f")(scope["f"])


@pytest.mark.parametrize("signature", ["i33", "(i32) -> what", "(i32,, i64) => i32", "funcref"])
def test_a_signature_that_is_not_understood_is_refused(host, signature):
    with pytest.raises(sandhost.ConfigError, match="not understood"):
        host.function("env", "f", signature)(lambda *a: None)


def test_missing_imports_are_all_named_with_their_types(host):
    host.function("env", "here", "() -> ()")(lambda: None)
    text = b"""(module (import "env" "gone" (func (param i32) (result i64)))
        (import "env" "here" (func)) (import "other" "lost" (global i32)))"""
    with pytest.raises(sandhost.ModuleError) as caught:
        host.load(text)
    assert "env.gone: function (i32) -> (i64)" in str(caught.value)
    assert "other.lost: global" in str(caught.value)
    assert "env.here" in str(caught.value)


def test_an_import_of_another_type_names_both_types(host):
    @host.function("env", "f")
    def f(a: float) -> None: ...

    with pytest.raises(sandhost.ModuleError, match=r"env\.f as \(i32\) -> \(i32\).*\(float\) -> "):
        host.load(importing("i32", "i32"))


def test_one_name_imported_with_two_types_is_a_module_error(host):
    host.function("env", "f", "(i32)")(lambda a: None)
    text = (
        b"""(module (import "env" "f" (func (param i32))) (import "env" "f" (func (param i64))))"""
    )
    with pytest.raises(sandhost.ModuleError):
        host.load(text)


def test_references_cannot_be_imported(host):
    host.function("env", "f", "(i32)")(lambda a: None)
    with pytest.raises(sandhost.ModuleError, match=r"env\.f as \(externref\)"):
        host.load(b"""(module (import "env" "f" (func (param externref))))""")


def test_a_hostile_import_name_does_not_write_to_a_terminal(host):
    with pytest.raises(sandhost.ModuleError) as caught:
        host.load(guest_file("hostile_import"))
    assert all(line.isprintable() for line in str(caught.value).splitlines())
    assert not any(line.startswith("ERROR") for line in str(caught.value).splitlines())


def test_a_function_defined_after_load_is_unknown_to_the_plugin(host):
    with pytest.raises(sandhost.ModuleError):
        host.load(importing("i32", "i32"))
    host.function("env", "f", "(i32) -> i32")(lambda a: a)
    plugin = host.load(importing("i32", "i32"))
    host.function("env", "f", "(i32) -> i32")(lambda a: -a)
    with plugin.spawn() as guest:
        assert guest.call("go", 1) == 1


# ---- what comes out ----


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


# ---- what they may do ----


def test_the_memory_of_the_caller_can_be_read_and_written(host):
    def f(guest: sandhost.Guest, address: int, length: int) -> int:
        data = guest.memory.read(address, length)
        guest.memory.write(address, data.upper())
        return len(data)

    host.function("env", "f")(f)
    text = importing("i32 i32", "i32", memory='(memory (export "m") 1) (data (i32.const 8) "abc")')
    with host.load(text).spawn() as guest:
        assert guest.call("go", 8, 3) == 3
        assert guest.memory.read(8, 3) == b"ABC"
        with pytest.raises(sandhost.OutOfBounds):
            guest.call("go", -2, 3)


def test_a_start_function_reaches_the_host_and_the_memory(host):
    order = []

    def f(guest: sandhost.Guest) -> None:
        guest.memory.write(0, b"f was here")
        order.append("f")

    host.function("env", "f")(f)
    host.function("env", "g", "()")(lambda: order.append("g"))
    with host.load(STARTS).spawn() as guest:
        assert order == ["f", "g"]
        assert guest.memory.read(0, 10) == b"f was here"


def test_a_start_function_may_spawn_another_guest(host):
    depth = []

    def f() -> None:
        if len(depth) < 5:
            depth.append(1)
            with plugin.spawn() as inner:
                assert inner.memory.read(0, 5) == b"g was"

    def g(guest: sandhost.Guest) -> None:
        guest.memory.write(0, b"g was")

    host.function("env", "f")(f)
    host.function("env", "g")(g)
    plugin = host.load(STARTS)
    with plugin.spawn() as guest:
        assert guest.memory.read(0, 5) == b"g was"
    assert len(depth) == 5


def test_a_guest_is_entered_again_from_its_own_host_function(host):
    def descend(guest: sandhost.Guest, n: int) -> int:
        return guest.call("descend", n)

    host.function("env", "descend")(descend)
    with host.load(guest_file("deep_host")).spawn() as guest:
        assert guest.call("descend", 20) == 20
        assert guest.stats().host_calls == 20


@pytest.mark.parametrize("recursion_limit", [None, 10**6])
def test_turns_of_guest_and_host_without_end_end_in_a_clean_error(host, recursion_limit):
    import sys

    def descend(guest: sandhost.Guest, n: int) -> int:
        return guest.call("descend", n)

    host.function("env", "descend")(descend)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(recursion_limit or before)
    try:
        with host.load(guest_file("deep_host")).spawn() as guest:
            for _ in range(3):
                with pytest.raises((RecursionError, sandhost.LimitExceeded, sandhost.GuestTrap)):
                    guest.call("descend", 10**6)
                assert guest.call("descend", 3) == 3
    finally:
        sys.setrecursionlimit(before)


def test_a_chain_of_different_guests_without_end_ends_in_a_clean_error(host):
    guests = []

    def descend(n: int) -> int:
        guest = plugin.spawn()
        guests.append(guest)
        return guest.call("descend", n)

    host.function("env", "descend")(descend)
    plugin = host.load(guest_file("deep_host"))
    with plugin.spawn() as guest:
        with pytest.raises((RecursionError, sandhost.SandhostError)):
            guest.call("descend", 10**6)
        for inner in guests:
            inner.close()
        del guests[:]
        assert guest.call("descend", 2) == 2
    for inner in guests:
        inner.close()


def test_another_guest_can_be_called(host):
    with host.load(guest_file("add")).spawn() as adder:
        host.function("env", "f", "(i32, i32) -> i32")(adder.func("add"))
        with host.load(importing("i32 i32", "i32")).spawn() as guest:
            assert guest.call("go", 40, 2) == 42


def test_a_trap_of_another_guest_passes_through(host):
    with host.load(guest_file("unreachable")).spawn() as trapping:

        def f(a: int) -> int:
            trapping.call("trap")
            return a

        host.function("env", "f")(f)
        with host.load(importing("i32", "i32")).spawn() as guest:
            with pytest.raises(sandhost.GuestTrap) as caught:
                guest.call("go", 1)
            assert caught.value.frames[-1].function == "trap"


def test_an_inner_error_that_is_caught_does_not_end_the_outer_call(host):
    def descend(guest: sandhost.Guest, n: int) -> int:
        if n == 3:
            for wrong in (lambda: guest.call("nope"), lambda: guest.call("descend", 2**40)):
                with pytest.raises((sandhost.ConfigError, OverflowError)):
                    wrong()
            with pytest.raises(ZeroDivisionError):
                guest.call("descend", 2)
            return 0
        if n == 1:
            raise ZeroDivisionError
        return guest.call("descend", n)

    host.function("env", "descend")(descend)
    with host.load(guest_file("deep_host")).spawn() as guest:
        assert guest.call("descend", 6) == 3
    assert not hostcalls.pending


def test_a_guest_cannot_be_closed_from_inside_its_own_call(host):
    def nop(guest: sandhost.Guest) -> None:
        with pytest.raises(sandhost.GuestBusy, match="inside its own call"):
            guest.close()
        guest.memory_at  # still there

    host.function("env", "nop")(nop)
    host.function("env", "inc", "(i32) -> i32")(lambda n: n + 1)
    guest = host.load(guest_file("hostcall")).spawn()
    guest.call("call_nop", 3)
    assert not guest.closed
    assert guest.call("call_inc", 10) == 10
    guest.close()


def test_a_host_function_that_closes_its_guest_and_lets_the_error_pass(host):
    def f(guest: sandhost.Guest, a: int) -> int:
        guest.close()
        return a

    host.function("env", "f")(f)
    with host.load(importing("i32", "i32", memory="(memory 1)")).spawn() as guest:
        guest.memory.write(0, b"kept")
        with pytest.raises(sandhost.GuestBusy):
            guest.call("go", 1)
        assert guest.memory.read(0, 4) == b"kept"


def test_a_host_function_that_closes_the_host_is_told_it_is_busy():
    host = sandhost.Host(cache=False, max_guests=8)

    def f(a: int) -> int:
        host.close()
        return a

    host.function("env", "f")(f)
    guest = host.load(importing("i32", "i32")).spawn()
    with pytest.raises((sandhost.GuestBusy, sandhost.GuestCancelled)):
        guest.call("go", 1)
    host.close()
    guest.close()


def test_a_host_function_that_sleeps_beyond_the_deadline_is_noticed_at_its_return(host):
    host.function("env", "f", "(i32) -> i32")(lambda a: time.sleep(3 * DEADLINE) or a)
    plugin = host.load(importing("i32", "i32"))
    with plugin.spawn(limits=sandhost.Limits(deadline=DEADLINE)) as guest:
        with pytest.raises(sandhost.DeadlineExceeded):
            guest.call("go", 1)
    assert host.stats().deadlines == 1


def test_a_guest_in_a_host_function_is_cancelled_at_its_return(host):
    inside, go_on = threading.Event(), threading.Event()

    def f(a: int) -> int:
        inside.set()
        assert go_on.wait(PATIENCE)
        return a

    host.function("env", "f")(f)
    with host.load(importing("i32", "i32")).spawn() as guest:
        call = Background(guest.call, "go", 1)
        assert inside.wait(PATIENCE)
        assert guest.cancel() is True
        go_on.set()
        with pytest.raises(sandhost.GuestCancelled):
            call.result()
        assert guest.call("go", 2) == 2, "the cancellation is used up"


def test_many_threads_call_through_guests_of_their_own(host):
    def f(guest: sandhost.Guest, a: int) -> int:
        assert guest.call("mine") == a
        return a + 1

    host.function("env", "f")(f)
    plugin = host.load(b"""(module (import "env" "f" (func $f (param i32) (result i32)))
        (global $g (mut i32) (i32.const 0))
        (func (export "mine") (result i32) (global.get $g))
        (func (export "go") (param i32) (result i32)
          (global.set $g (local.get 0)) (call $f (local.get 0))))""")
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        for k in range(50):
            with plugin.spawn() as guest:
                assert guest.call("go", number * 1000 + k) == number * 1000 + k + 1
        return True

    assert all([w.result() for w in [Background(work, n) for n in range(8)]])
    assert plugin.stats().host_calls == 400


def test_host_functions_are_unbound_with_their_plugin(host):
    host.function("env", "f", "(i32) -> i32")(lambda a: a)
    numbers = set()
    for _ in range(20):
        plugin = host.load(importing("i32", "i32"))
        numbers.update(plugin._numbers)
        plugin.spawn().close()
        del plugin
        collected()
    assert len(numbers) <= 5, "numbers are used again"


def test_a_host_function_that_holds_its_plugin_is_collected_with_it():
    class Marked:
        pass

    host = sandhost.Host(cache=False, max_guests=8)
    held = [Marked()]
    gone = weakref.ref(held[0])
    host.function("env", "f", "(i32) -> i32")(lambda a, held=held: a)
    held.append(host.load(importing("i32", "i32")))
    host.close()
    del host, held
    collected()
    assert gone() is None


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


def test_a_plugin_that_is_dropped_while_its_guest_lives_still_calls_back(host):
    host.function("env", "f", "(i32) -> i32")(lambda a: a + 1)
    guest = host.load(importing("i32", "i32")).spawn()
    collected()
    assert guest.call("go", 1) == 2
    guest.close()
