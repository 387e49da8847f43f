"""Calls: every value that may cross comes back the same, every other is refused by name."""

from __future__ import annotations

import math
import struct

import pytest
from helpers import guest_file

import sandhost
from sandhost._native import lib

WIDE = """
(module
  (func (export "sum20") {params} (result i64) (local.get 0) {adds})
  (func (export "pick5") (param i32 i32 i32 i32 i32) (result i32) (local.get 4))
  (func (export "five") (result i32 i32 i32 i32 i32)
    (i32.const 1) (i32.const 2) (i32.const 3) (i32.const 4) (i32.const 5))
  (func (export "mixed") (param f32 v128 i64) (result i64 v128 f32)
    (local.get 2) (local.get 1) (local.get 0))
  (func (export "two64") (param i64 i64) (result i64) (i64.sub (local.get 0) (local.get 1)))
  (func (export "lucky") (result i64) (i64.const {lucky}))
  (func (export "lucky_second") (result i64 i64) (i64.const {lucky}) (i64.const {lucky}))
  (func (export "bits32") (param f32) (result i32) (i32.reinterpret_f32 (local.get 0)))
  (func (export "bits64") (param f64) (result i64) (i64.reinterpret_f64 (local.get 0)))
)
""".format(
    params=" ".join(["(param i64)"] * 20),
    adds=" ".join(f"(i64.add (local.get {k}))" for k in range(1, 20)),
    lucky=lib.SH_CALL_FAILED,
)


@pytest.fixture
def types(host):
    with host.load(guest_file("types")).spawn() as guest:
        yield guest


@pytest.fixture
def wide(host):
    with host.load(WIDE.encode()).spawn() as guest:
        yield guest


@pytest.mark.parametrize(
    ("name", "given", "comes_back"),
    [
        ("i32", 0, 0),
        ("i32", -1, -1),
        ("i32", 2**31 - 1, 2**31 - 1),
        ("i32", -(2**31), -(2**31)),
        ("i32", 2**31, -(2**31)),
        ("i32", 2**32 - 1, -1),
        ("i32", True, 1),
        ("i64", -(2**63), -(2**63)),
        ("i64", 2**63 - 1, 2**63 - 1),
        ("i64", 2**63, -(2**63)),
        ("i64", 2**64 - 1, -1),
        ("i64", lib.SH_CALL_FAILED, lib.SH_CALL_FAILED),
        ("f32", 1.5, 1.5),
        ("f32", 3, 3.0),
        ("f32", 0.1, struct.unpack("f", struct.pack("f", 0.1))[0]),
        ("f32", math.inf, math.inf),
        ("f32", -math.inf, -math.inf),
        ("f32", 1e300, math.inf),
        ("f64", 0.1, 0.1),
        ("f64", 5e-324, 5e-324),
        ("f64", -math.inf, -math.inf),
        ("f64", 2**53 + 1, float(2**53 + 1)),
        ("v128", bytes(range(16)), bytes(range(16))),
        ("v128", bytearray(b"\xff" * 16), b"\xff" * 16),
        ("v128", memoryview(b"0123456789abcdef"), b"0123456789abcdef"),
    ],
)
def test_a_value_comes_back_as_wasm_sees_it(types, name, given, comes_back):
    result = types.call(name, given)
    assert result == comes_back
    assert type(result) is type(comes_back)
    assert types.func(name)(given) == comes_back


@pytest.mark.parametrize("name", ["f32", "f64"])
def test_nan_stays_nan_and_zero_keeps_its_sign(types, name):
    assert math.isnan(types.call(name, math.nan))
    assert math.copysign(1, types.call(name, -0.0)) == -1


def test_the_payload_of_a_64_bit_nan_survives(wide):
    pattern = 0x7FF8_0000_DEAD_BEEF
    nan = struct.unpack("<d", struct.pack("<Q", pattern))[0]
    assert wide.call("bits64", nan) == pattern


def test_a_float_is_rounded_to_nearest_even_when_it_becomes_an_f32(wide):
    assert wide.call("bits32", 1.0 + 2.0**-24) == 0x3F800000
    assert wide.call("bits32", 1.0 + 2.0**-24 + 2.0**-50) == 0x3F800001


def test_several_results_are_a_tuple_and_none_is_none(types, wide):
    assert types.call("nothing") is None
    assert types.call("swap", 1, -2) == (-2, 1)
    assert types.call("all_numbers", -1, 2**63, 0.5, 1e308) == (-1, -(2**63), 0.5, 1e308)
    assert wide.call("five") == (1, 2, 3, 4, 5)
    assert wide.call("mixed", 1.5, b"x" * 16, -3) == (-3, b"x" * 16, 1.5)


def test_more_than_four_parameters_cross_in_order(wide):
    assert wide.call("sum20", *range(20)) == sum(range(20))
    assert wide.call("sum20", *[2**64 - 1] * 20) == -20
    assert wide.call("pick5", 0, 0, 0, 0, 2**32 - 1) == -1


def test_a_result_that_equals_the_failure_mark_is_a_result(wide):
    for _ in range(3):
        assert wide.call("lucky") == lib.SH_CALL_FAILED
        with pytest.raises(OverflowError):
            wide.call("pick5", 0, 0, 0, 0, 2**32)
        with pytest.raises(OverflowError):
            wide.call("two64", 2**64, 0)
    assert wide.call("lucky_second") == (lib.SH_CALL_FAILED, lib.SH_CALL_FAILED)


def test_a_result_that_equals_the_failure_mark_is_a_result_after_a_trap(host):
    text = f"""(module (func (export "f") (param i32) (result i64)
        (if (local.get 0) (then unreachable)) (i64.const {lib.SH_CALL_FAILED})))"""
    with host.load(text.encode()).spawn() as guest:
        for _ in range(3):
            with pytest.raises(sandhost.GuestTrap):
                guest.call("f", 1)
            assert guest.call("f", 0) == lib.SH_CALL_FAILED


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("i32", ()),
        ("i32", (1, 2)),
        ("i32", ("1",)),
        ("i32", (None,)),
        ("i32", (1.0,)),
        ("i32", (b"1",)),
        ("i32", ([],)),
        ("i64", (1.5,)),
        ("f32", ("1",)),
        ("f64", (None,)),
        ("f64", (1j,)),
        ("v128", (b"short",)),
        ("v128", (b"x" * 17,)),
        ("v128", ("0123456789abcdef",)),
        ("v128", (7,)),
        ("v128", (list(range(16)),)),
        ("nothing", (0,)),
        ("swap", (1,)),
        ("swap", ("x", 2**64)),
        ("all_numbers", (1, 2, 3)),
        ("all_numbers", (1, 2**63, 0.0, "x")),
    ],
)
def test_arguments_of_wrong_number_or_type_are_a_type_error(types, name, arguments):
    with pytest.raises(TypeError):
        types.call(name, *arguments)
    assert types.call("i32", 7) == 7


def test_wrong_type_beside_an_unsigned_number_is_a_type_error(wide):
    with pytest.raises(TypeError):
        wide.call("two64", 2**63, "12")
    with pytest.raises(TypeError):
        wide.call("two64", 2**63, 1.0)


def test_the_type_error_names_the_function_its_types_and_the_count(types):
    with pytest.raises(TypeError, match=r"swap\(i32, i64\) -> \(i64, i32\) takes 2 arguments, 1 "):
        types.call("swap", 1)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("i32", 2**32),
        ("i32", -(2**31) - 1),
        ("i32", 2**63),
        ("i32", 2**64),
        ("i32", 10**100),
        ("i64", 2**64),
        ("i64", -(2**63) - 1),
        ("i64", 10**100),
        ("f64", 10**400),
        ("f32", -(10**400)),
    ],
)
def test_a_number_without_enough_bits_is_an_overflow_error(types, name, argument):
    with pytest.raises(OverflowError):
        types.call(name, argument)
    assert types.call("i64", -5) == -5


@pytest.mark.parametrize("name", ["funcref", "externref"])
def test_functions_with_references_are_refused_by_name(types, name):
    with pytest.raises(TypeError, match=rf"{name}\({name}\).*reference"):
        types.call(name, None)
    with pytest.raises(TypeError, match="reference"):
        types.func(name)(None)


def test_a_bound_function_counts_as_calls_and_outlives_the_name_of_its_guest(host):
    add = host.load(guest_file("add")).spawn().func("add")
    assert [add(k, k) for k in range(5)] == [0, 2, 4, 6, 8]
    add.args[0].close()
    with pytest.raises(sandhost.GuestClosed):
        add(1, 2)


def test_every_use_after_close_says_that_the_guest_has_ended(host):
    guest = host.load(guest_file("secrets")).spawn()
    write, memory = guest.func("write"), guest.memory
    assert guest.close() == guest.close()
    assert guest.closed
    uses = [
        lambda: guest.call("size"),
        lambda: write(1),
        lambda: guest.memory,
        lambda: memory.read(0, 1),
        lambda: memory.write(0, b"x"),
        lambda: memory.view(0, 1),
        lambda: memory.size,
        lambda: guest.stats(),
    ]
    for use in uses:
        with pytest.raises(sandhost.GuestClosed):
            use()
    assert guest.cancel() is False


def test_an_id_of_an_ended_guest_never_reaches_the_next_one(host):
    plugin = host.load(guest_file("add"))
    old = plugin.spawn()
    add, old_id = old.func("add"), old._id
    old.close()
    old._id = old_id  # what a bug in Python could do at worst
    with plugin.spawn() as new:
        assert new._id != old_id
        assert new._id & 0xFFFFFFFF == old_id & 0xFFFFFFFF, "the slot of the table is used again"
        with pytest.raises(sandhost.GuestClosed):
            add(1, 2)
    old._id = 0


def test_a_function_that_is_not_there_is_refused_with_those_that_are(types):
    with pytest.raises(
        sandhost.ConfigError, match="exports no function 'nope'; it exports i32, i64, f32"
    ):
        types.call("nope")
    with pytest.raises(sandhost.ConfigError):
        types.func("nope")


def test_hostile_export_names_are_called_like_any_other(host):
    plugin = host.load(guest_file("hostile_names"))
    functions = [e.name for e in plugin.info.exports if e.kind == "func"]
    assert len(functions) >= 20
    with plugin.spawn() as guest:
        for name in functions:
            if name.startswith("trap"):
                with pytest.raises(sandhost.GuestTrap):
                    guest.call(name)
            else:
                assert isinstance(guest.call(name), int)
            with pytest.raises(TypeError):
                guest.call(name, 1)


def test_hostile_names_do_not_write_to_a_terminal_through_an_error(host):
    with host.load(guest_file("hostile_names")).spawn() as guest:
        with pytest.raises(sandhost.ConfigError) as caught:
            guest.call("nope")
        text = str(caught.value)
        assert text.isprintable(), repr(text)
        assert len(text) < 3000
        for export in guest.plugin.info.exports:
            if export.kind != "func":
                continue
            with pytest.raises(TypeError) as wrong:
                guest.call(export.name, 1)
            assert str(wrong.value).isprintable()
            assert len(str(wrong.value)) < 1000


def test_hostile_function_names_do_not_forge_lines_of_a_backtrace(host):
    with host.load(guest_file("hostile_names")).spawn() as guest:
        name = next(n for n in guest.plugin.functions if n.startswith("trap"))
        with pytest.raises(sandhost.GuestTrap) as caught:
            guest.call(name)
    assert caught.value.frames[0].function == name, "programs get the name as it is"
    lines = str(caught.value).splitlines()
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith('  File "host.py"') for line in lines)


def test_types_that_wasmtime_cannot_name_are_refused_and_the_process_lives(host):
    with pytest.raises(sandhost.ModuleError):
        host.load(guest_file("gc_types"))
