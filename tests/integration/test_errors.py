"""Errors: each says what happened, with its figures, and keeps them through pickle and copy."""

from __future__ import annotations

import copy
import pickle

import pytest
from helpers import guest_file

import sandhost
from sandhost import calls, hostcalls
from sandhost._ffi import lib, take_error

EVERY = [
    sandhost.ConfigError("x"),
    sandhost.ModuleError("x", 7),
    sandhost.RegionFullError("x"),
    sandhost.LimitExceeded("x"),
    sandhost.OutOfMemory("x"),
    sandhost.OutOfFuel("x"),
    sandhost.DeadlineExceeded("x"),
    sandhost.GuestTrap("x", code="unreachable", frames=(sandhost.Frame("f", 1, 2, None),)),
    sandhost.GuestExit(3),
    sandhost.GuestCancelled("x"),
    sandhost.OutOfBounds("x"),
    sandhost.HostCallError("x"),
    sandhost.InvalidHandle("x"),
    sandhost.GuestClosed("x"),
    sandhost.GuestBusy("x"),
    sandhost.NativeError(12, "mmap"),
]


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_every_error_is_a_sandhost_error_and_survives_pickle_and_copy(error):
    assert isinstance(error, sandhost.SandhostError)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


@pytest.mark.parametrize(
    ("child", "parent"),
    [
        (sandhost.OutOfMemory, sandhost.LimitExceeded),
        (sandhost.OutOfFuel, sandhost.LimitExceeded),
        (sandhost.DeadlineExceeded, sandhost.LimitExceeded),
        (sandhost.GuestTrap, sandhost.GuestError),
        (sandhost.GuestExit, sandhost.GuestError),
        (sandhost.OutOfBounds, IndexError),
    ],
)
def test_the_tree_is_as_documented(child, parent):
    assert issubclass(child, parent)


def test_a_trap_carries_its_code_and_named_frames_innermost_first(host):
    with host.load(guest_file("unreachable")).spawn() as guest:
        with pytest.raises(sandhost.GuestTrap) as caught:
            guest.call("trap")
    trap = caught.value
    assert trap.code == "unreachable"
    assert [frame.function for frame in trap.frames] == ["inner", "trap"]
    assert [frame.function_index for frame in trap.frames] == [0, 1]
    assert all(frame.offset > 0 for frame in trap.frames)
    assert "0: inner at 0x" in str(trap)
    assert "1: trap at 0x" in str(trap)


def test_a_long_backtrace_is_cut_in_the_middle(host):
    with host.load(guest_file("recurse")).spawn() as guest:
        with pytest.raises(sandhost.GuestTrap) as caught:
            guest.call("recurse", 1)
    trap = sandhost.GuestTrap("x", code="x", frames=caught.value.frames * 10)
    assert "more frames" in str(trap)
    assert len(str(trap).splitlines()) < 40
    assert len(str(caught.value).splitlines()) < 40


def test_a_trap_of_a_real_guest_survives_pickle(host):
    with host.load(guest_file("unreachable")).spawn() as guest:
        with pytest.raises(sandhost.GuestTrap) as caught:
            guest.call("trap")
    twin = pickle.loads(pickle.dumps(caught.value))
    assert (twin.code, twin.frames, str(twin)) == (
        caught.value.code,
        caught.value.frames,
        str(caught.value),
    )


def test_an_error_holds_no_guest_alive(host):
    guest = host.load(guest_file("unreachable")).spawn()
    with pytest.raises(sandhost.GuestTrap) as caught:
        guest.call("trap")
    error = caught.value.with_traceback(None)
    del caught
    guest.close()
    assert vars(error).keys() == {"code", "frames"}


def test_an_error_of_one_thread_is_not_seen_by_another(host):
    import threading

    plugins = [host.load(guest_file(name)) for name in ("unreachable", "div_zero", "oob")]
    calls = [("trap",), ("div", 1, 0), ("load8", -1)]
    codes = ["unreachable", "integer_division_by_zero", "memory_out_of_bounds"]
    wrong = []

    def work(plugin, call, code):
        with plugin.spawn() as guest:
            for _ in range(300):
                try:
                    guest.call(*call)
                except sandhost.GuestTrap as trap:
                    if trap.code != code:
                        wrong.append(trap.code)

    threads = [
        threading.Thread(target=work, args=each) for each in zip(plugins * 2, calls * 2, codes * 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_native_errors_name_the_number_and_the_operation():
    error = sandhost.NativeError(12, "mmap of 4 GiB")
    assert (error.errno, error.operation) == (12, "mmap of 4 GiB")
    assert "ENOMEM" in str(error)


# ---- an error is that of its own call ----


def fail_in_many_ways(host, plugin):
    """What a signal handler or a finalizer may do between a failing call and its exception."""
    with plugin.spawn() as other:
        with pytest.raises(sandhost.GuestTrap):
            other.call("trap")
        with pytest.raises(sandhost.OutOfMemory):
            plugin.spawn(limits=sandhost.Limits(memory=1))
        other.memory.read(0, 1)
        with other.memory.view(0, 1):
            with pytest.raises(sandhost.GuestBusy):
                other.close()
    with pytest.raises(sandhost.GuestClosed):
        other.call("trap")
    dropped = sandhost.Host(cache=False, max_guests=4)
    guest = dropped.load(guest_file("add")).spawn()
    dropped.close()
    guest.close()  # the host has ended it: C refuses, and nobody asks why
    with pytest.raises(sandhost.ModuleError):
        host.load(b"\0asm\1\0\0\0\1")


def test_errors_of_calls_in_between_do_not_take_its_place(host, monkeypatch):
    plugin = host.load(guest_file_with_memory())
    depth = []

    def take_error():
        depth.append(1)
        if len(depth) <= 3:
            fail_in_many_ways(host, plugin)
        return taken()

    taken = calls.take_error
    with plugin.spawn() as guest:
        monkeypatch.setattr(calls, "take_error", take_error)
        with pytest.raises(sandhost.GuestTrap) as caught:
            guest.call("divide", 1, 0)
        assert caught.value.code == "integer_division_by_zero"
        depth.clear()
        assert guest.call("mark") == lib.SH_CALL_FAILED, "an honest result stays one"


def test_an_exception_of_a_start_function_is_found_whatever_happens_in_between(host, monkeypatch):
    host.function("env", "f", "()")(lambda: {}["its own"])
    failing = host.load(b"""(module (import "env" "f" (func $f)) (start $f))""")
    raised = []

    def take_error():
        if not raised:
            raised.append(1)
            with pytest.raises(KeyError, match="its own"):
                failing.spawn()
        return taken()

    taken = calls.take_error
    monkeypatch.setattr(calls, "take_error", take_error)
    with pytest.raises(KeyError, match="its own"):
        failing.spawn()
    assert not hostcalls.pending


def test_errors_that_nobody_takes_are_not_kept_for_ever(host):
    with host.load(guest_file_with_memory()).spawn() as guest:
        index = list(guest.plugin.functions).index("trap")
        for _ in range(100):
            assert lib.sh_call_ints(guest._id, index, 0, 0, 0, 0) == lib.SH_CALL_FAILED
        taken = [take_error().status for _ in range(12)]
    assert taken[0] == lib.SH_TRAP
    with pytest.raises(sandhost.GuestClosed):
        guest.call("trap")


def guest_file_with_memory() -> bytes:
    return f"""(module (memory (export "memory") 1)
      (func (export "trap") unreachable)
      (func (export "divide") (param i32 i32) (result i32)
        (i32.div_s (local.get 0) (local.get 1)))
      (func (export "mark") (result i64) (i64.const {lib.SH_CALL_FAILED})))""".encode()
