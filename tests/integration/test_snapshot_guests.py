"""Snapshots of guests that keep their state in one place each: a fork goes on as the original would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from helpers import WASM_PAGE, guest_file

import sandhost

Call = tuple[Any, ...]
"""A function's name and its arguments."""


def drive(guest: sandhost.Guest, calls: Sequence[Call]) -> list[Any]:
    """What each call gave, or the code of its trap."""
    given: list[Any] = []
    for name, *arguments in calls:
        try:
            given.append(guest.call(name, *arguments))
        except sandhost.GuestTrap as trap:
            given.append(("trap", trap.code))
    return given


def trapped(given: Sequence[Any]) -> list[int]:
    """Which calls were traps."""
    return [k for k, one in enumerate(given) if isinstance(one, tuple) and one[0] == "trap"]


def memories(guest: sandhost.Guest) -> list[bytes]:
    count = len(guest.plugin.info.memories)
    return [guest.memory_at(k).read(0, guest.memory_at(k).size) for k in range(count)]


@dataclass
class Case:
    """A guest, the calls before its snapshot, and the calls that original and forks must answer alike."""

    guest: str
    warm: Sequence[Call]
    then: Sequence[Call]
    title: str = ""
    traps: Sequence[int] = ()
    """Which of `then` are traps."""

    def __str__(self) -> str:
        return f"{self.guest}-{self.title}" if self.title else self.guest


def each(name: str, *arguments: Any, upto: int) -> list[Call]:
    """One call for each number below a limit, the number first."""
    return [(name, k, *arguments) for k in range(upto)]


GETTERS = [(f"get_{name}",) for name in ("exported", "i32", "i64", "f32", "f64", "v128")]

CASES = [
    Case("number_globals", [], GETTERS, "untouched"),
    Case(
        "number_globals",
        [
            ("set_exported", 77),
            ("set_i32", -7),
            ("set_i64", -(2**62)),
            ("set_f32", 0x7FA00001),  # signalling NaNs
            ("set_f64", 0x7FF4000000000001),
            ("set_v128", -1, 2**62),
        ],
        [
            *GETTERS,
            ("set_exported", 78),
            ("set_f32", 1),
            ("set_v128", 3, -4),
            *GETTERS,
        ],
        "set",
    ),
    Case(
        "many_globals",
        [("step",)] * 3,
        [("sum",), *each("get", upto=40), ("step",), ("sum",), *each("get", upto=40)],
    ),
    Case(
        "table_changes",
        [
            ("set_own", 0),
            ("move", 3, 1),
            ("set_null", 1),
            ("copy", 2, 0, 4),
            ("init", 2, 1, 1),
            ("call", 0),
        ],
        [
            ("size",),
            ("size_second",),
            *each("is_null", upto=4),
            *each("is_null_second", upto=8),
            ("call", 0),
            ("call", 1),
            ("call", 2),
            ("call", 3),
            ("call_second", 2),
            ("call_second", 5),
            ("call_second", 3),
            ("init", 0, 0, 3),
            ("call", 0),
            ("call", 1),
            ("grow", 3),
            ("call", 6),
            ("call", 7),
        ],
        "set, moved, copied, initialized",
        traps=(15, 20, 26),
    ),
    Case(
        "table_changes",
        [("grow", 10), ("fill", 3, 5), ("set_null", 13), ("grow_second", 20), ("copy", 20, 2, 8)],
        [
            ("size",),
            ("size_second",),
            *each("is_null", upto=14),
            *each("is_null_second", upto=28),
            ("call", 3),
            ("call", 12),
            ("call_second", 27),
            ("grow", 50),
            ("grow", 51),
            ("size",),
        ],
        "grown and filled",
    ),
    Case(
        "passive_data",
        [("init_short", 0, 0, 19), ("drop_short",), ("init_large", 100, 5000, 120)],
        [
            ("init_short", 0, 0, 1),
            ("init_short", 0, 0, 0),
            ("init_other", 300, 4, 9),
            ("init_large", 4096, 0, 5120),
            ("drop_large",),
            ("init_large", 0, 0, 1),
            ("init_other", 0, 0, 17),
            ("peek", 64),
        ],
        traps=(0, 5),
    ),
    Case(
        "passive",
        [("init", 100, 0, 7)],
        [
            ("init_active", 0, 1),
            ("init_active", 0, 0),
            ("init", 200, 0, 13),
            ("drop",),
            ("init", 0, 0, 1),
        ],
        traps=(0, 4),
    ),
    Case(
        "passive",
        [("drop",)],
        [("init", 0, 0, 1), ("init", 0, 0, 0), ("drop",), ("peek", 0), ("drop_active",)],
        "dropped",
        traps=(0,),
    ),
    Case(
        "passive_elem",
        [("init", 2, 0, 2), ("drop",)],
        [
            ("init", 4, 0, 1),
            ("init", 4, 0, 0),
            ("call", 0),
            ("call", 2),
            ("call", 3),
            ("init_other", 5, 0, 2),
            ("call", 5),
            ("call", 6),
            ("init_active", 1),
            ("drop_other",),
            ("init_other", 5, 0, 1),
        ],
        traps=(0, 7, 8, 10),
    ),
    *(
        Case(
            name,
            [
                ("poke0", 20, 1),
                *((f"poke{k}", 70 + k, 200 + k) for k in range(count)),
                (f"grow{count - 1}", 2),
                (f"poke{count - 1}", (count + 1) * WASM_PAGE, 9),
                ("copy", 5000, 16, 15),
            ],
            [
                *((f"size{k}",) for k in range(count)),
                *((f"peek{k}", 70 + k) for k in range(count)),
                (f"peek{count - 1}", 5000),
                (f"peek{count - 1}", (count + 1) * WASM_PAGE),
                ("peek0", WASM_PAGE),
                *((f"grow{k}", 1) for k in range(count)),
                ("poke0", WASM_PAGE, 3),
                *((f"grow{k}", 8 * count) for k in range(count)),
                *((f"size{k}",) for k in range(count)),
            ],
            traps=(2 * count + 2,),
        )
        for name, count in (("two_memories", 2), ("four_memories", 4))
    ),
    Case(
        "grown",
        [("grow", 100), ("poke", 50 * WASM_PAGE + 5, 77)],
        [("size",), ("sum",), ("peek", 50 * WASM_PAGE + 5), ("grow", 3), ("sum",), ("size",)],
    ),
    Case(
        "grown",
        [("grow", 1)],
        [("peek", 2 * WASM_PAGE), ("grow", 1), ("peek", 3 * WASM_PAGE - 1), ("sum",)],
        "bounds",
        traps=(0,),
    ),
    Case(
        "externrefs",
        [("step",), ("step",), ("grow", 4)],
        [
            ("step",),
            ("size",),
            *each("is_null", upto=8),
            ("global_is_null",),
            ("grow", 9),
            ("grow", 10),
        ],
        traps=(9,),
    ),
    *(
        Case(
            "funcref_global",
            [("choose_two",), ("call",), (choice,)],
            [
                ("is_null",),
                ("call",),
                ("call",),
                ("choose_two",),
                ("call",),
                ("choose_none",),
                ("call",),
            ],
            choice,
            traps=(1, 2, 6) if choice == "choose_none" else (6,),
        )
        for choice in ("choose_one", "choose_two", "choose_none")
    ),
    Case(
        "heap_state",
        [("_initialize",), *((("put", k * 17, k)) for k in range(300)), ("drop", 34), ("print", 1)],
        [
            ("times_constructed",),
            ("get", 17),
            ("get", 34),
            ("put", 34, 5),
            ("drop", 17),
            ("get", 17 * 299),
            ("print", 2),
            ("flush",),
        ],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forks_answer_as_the_original(host: sandhost.Host, case: Case) -> None:
    plugin = host.load(guest_file(case.guest))
    with plugin.spawn() as original:
        drive(original, case.warm)
        snapshot = original.snapshot()
        before = memories(original)
        with snapshot.spawn() as untouched, snapshot.spawn() as fork:
            assert memories(fork) == before
            expected = drive(original, case.then)
            assert trapped(expected) == list(case.traps)
            assert drive(fork, case.then) == expected
            assert memories(fork) == memories(original)
            # What the other two did reached neither the snapshot nor the fork that waited.
            assert memories(untouched) == before
            assert drive(untouched, case.then) == expected
            assert memories(untouched) == memories(original)
    with snapshot.spawn() as late:  # the original has ended
        assert drive(late, case.then) == expected


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_snapshot_of_a_fork_goes_on_from_there(host: sandhost.Host, case: Case) -> None:
    plugin = host.load(guest_file(case.guest))
    half = len(case.then) // 2
    with plugin.spawn() as original:
        drive(original, case.warm)
        first = original.snapshot()
        expected = drive(original, case.then)
        after = memories(original)
    with first.spawn() as fork:
        assert drive(fork, case.then[:half]) == expected[:half]
        second = fork.snapshot()
        assert drive(fork, case.then[half:]) == expected[half:]
    with second.spawn() as fork_of_fork:
        assert drive(fork_of_fork, case.then[half:]) == expected[half:]
        assert memories(fork_of_fork) == after


def test_a_start_function_is_not_run_again(host: sandhost.Host) -> None:
    starts = []

    @host.function("env", "started")
    def started() -> None:
        starts.append(1)

    with host.load(guest_file("start_counts")).spawn() as original:
        snapshot = original.snapshot()
        with snapshot.spawn() as fork, fork.snapshot().spawn() as fork_of_fork:
            for guest in (original, fork, fork_of_fork):
                assert drive(guest, [("runs",), ("runs_in_memory",)]) == [1, 1]
    assert len(starts) == 1


def test_a_fork_calls_functions_of_its_own(host: sandhost.Host) -> None:
    """A function in a table or a global must not be the original's: it would count there."""
    with host.load(guest_file("table_changes")).spawn() as original:
        original.call("set_own", 2)
        snapshot = original.snapshot()
        with snapshot.spawn() as one, snapshot.spawn() as two:
            assert [one.call("call", 2) for _ in range(3)] == [101, 102, 103]
            assert two.call("call", 2) == 101
            assert original.call("call", 2) == 101
    with host.load(guest_file("funcref_global")).spawn() as original:
        original.call("choose_two")
        snapshot = original.snapshot()
        with snapshot.spawn() as one, snapshot.spawn() as two:
            assert [one.call("call") for _ in range(3)] == [1001, 1002, 1003]
            assert two.call("call") == original.call("call") == 1001


def test_forks_of_forks_to_some_depth(host: sandhost.Host) -> None:
    with host.load(guest_file("grown")).spawn() as guest:
        snapshot = guest.snapshot()
    for depth in range(1, 9):
        with snapshot.spawn() as fork:
            assert fork.call("grow", depth) == 1 + depth * (depth - 1) // 2
            fork.call("poke", 3, depth)
            snapshot = fork.snapshot()
    with snapshot.spawn() as fork:
        assert fork.call("size") == 1 + 36
        assert fork.call("peek", 3) == 8
        pages = sum(range(16, 37 * 16))
        assert fork.call("sum") == pages + (8 << 24)


def test_a_c_reactor_is_constructed_once_and_keeps_unwritten_output(host: sandhost.Host) -> None:
    with host.load(guest_file("heap_state")).spawn(wasi=sandhost.Wasi()) as original:
        original.call("_initialize")
        original.call("print", 1)
        snapshot = original.snapshot()
        with snapshot.spawn(wasi=sandhost.Wasi()) as fork:
            fork.call("print", 2)
            fork.call("flush")
            assert fork.stdout == b"constructed once: 1\nconstructed once: 2\n"
            assert fork.call("times_constructed") == 1
        assert original.stdout == b""
