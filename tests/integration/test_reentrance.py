"""Callbacks that come back: into other guests, into the same one, in the middle of a spawn."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from helpers import WASM_PAGE, run_cleanly, run_python

import sandhost
from sandhost import Wasi

WRITER = rb"""(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "env" "mark" (func $mark (param i32)))
  (memory (export "memory") 1 64)
  (data (i32.const 64) "hello\n")
  (func $say (param $fd i32) (param $length i32) (result i32)
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (local.get $length))
    (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 16)))
  (func (export "nop"))
  (func (export "say") (param $fd i32) (result i32) (call $say (local.get $fd) (i32.const 6)))
  (func (export "say_and_mark")
    (drop (call $say (i32.const 1) (i32.const 6)))
    (drop (call $say (i32.const 1) (i32.const 3)))
    (call $mark (i32.const 1))
    (drop (call $say (i32.const 2) (i32.const 6)))
    (drop (call $say (i32.const 1) (i32.const 2)))
    (call $mark (i32.const 2)))
  (func (export "say_much") (param $length i32) (result i32)
    (drop (memory.grow (i32.const 32)))
    (call $say (i32.const 1) (local.get $length)))
  (func (export "say_and_spin")
    (drop (call $say (i32.const 1) (i32.const 6)))
    (loop (br 0))))"""


@pytest.fixture
def writer(host):
    host.marks = []
    host.function("env", "mark", "(i32) -> ()")(host.marks.append)
    return host.load(WRITER)


# ---- output ----


def test_output_is_heard_in_the_thread_that_runs_the_guest(writer):
    heard = []

    def hear(data):
        heard.append((threading.get_ident(), data))

    with writer.spawn(wasi=Wasi(stdout=hear)) as guest:
        assert guest.call("say", 1) == 0
    assert heard == [(threading.get_ident(), b"hello\n")]


def test_output_stands_before_the_host_call_that_follows_it(host, writer):
    order = host.marks
    with writer.spawn(wasi=Wasi(stdout=order.append, stderr=order.append)) as guest:
        guest.call("say_and_mark")
    first, second = order.index(1), order.index(2)
    assert b"".join(order[:first]) == b"hello\nhel"
    assert b"".join(order[first + 1 : second]) == b"hello\nhe"
    assert order[second + 1 :] == []


def test_output_of_a_call_without_end_is_heard_while_it_runs(writer):
    def hear(data):
        assert guest.cancel()

    with writer.spawn(wasi=Wasi(stdout=hear)) as guest:
        with pytest.raises(sandhost.GuestCancelled):
            guest.call("say_and_spin")


def test_an_output_callback_may_use_other_guests(writer):
    with writer.spawn() as other:

        def hear(data):
            other.call("say", 1)
            with writer.spawn() as another:
                another.call("say", 2)
                heard.append(another.stderr)

        heard = []
        with writer.spawn(wasi=Wasi(stdout=hear)) as guest:
            guest.call("say", 1)
        assert heard == [b"hello\n"]
        assert other.stdout == b"hello\n"


def test_an_output_callback_cannot_use_the_guest_it_interrupts(writer):
    refused = []

    def hear(data):
        for use in (lambda: guest.call("nop"), guest.close, lambda: guest.stdout):
            with pytest.raises(sandhost.GuestBusy) as caught:
                use()
            refused.append(str(caught.value))

    with writer.spawn(wasi=Wasi(stdout=hear)) as guest:
        guest.call("say", 1)
        assert len(refused) == 3
        guest.call("nop")


def test_output_of_a_start_function_is_heard(host):
    heard = []
    plugin = host.load(
        rb"""(module
          (import "wasi_snapshot_preview1" "fd_write"
            (func $fd_write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (data (i32.const 0) "\10\00\00\00\05\00\00\00")
          (data (i32.const 16) "early")
          (func $start
            (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
          (start $start))"""
    )
    with plugin.spawn(wasi=Wasi(stdout=heard.append)):
        assert heard == [b"early"]


def test_much_output_is_heard_in_pieces_and_needs_no_memory_of_the_guest(writer):
    heard = []
    limits = sandhost.Limits(memory=34 * WASM_PAGE)
    with writer.spawn(limits=limits, wasi=Wasi(stdout=heard.append)) as guest:
        length = 30 * WASM_PAGE
        assert guest.call("say_much", length) == 0
        assert sum(map(len, heard)) == length
        assert max(map(len, heard)) <= 64 << 10
        assert guest.stats().memory_bytes == 33 * WASM_PAGE


def test_a_signal_handler_cannot_use_the_guest_it_interrupts(writer):
    refused = []

    def handle(number, frame):
        with pytest.raises(sandhost.GuestBusy) as caught:
            guest.call("nop")
        refused.append(str(caught.value))
        with writer.spawn() as other:
            other.call("nop")
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, handle)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    try:
        with writer.spawn() as guest:
            with pytest.raises(KeyboardInterrupt):
                guest.call("say_and_spin")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(refused) == 1


# ---- spawns within spawns ----


def test_a_start_function_may_spawn_guests_of_other_plugins(host):
    callers = []

    def note(guest: sandhost.Guest) -> None:
        callers.append(guest)

    def spawn() -> None:
        with inner.spawn() as guest:
            assert guest.memory.read(0, 5) == b"inner"
            assert callers[-1] is guest

    host.function("env", "note")(note)
    host.function("env", "spawn")(spawn)
    module = b"""(module
      (import "env" "note" (func $note)) (import "env" "spawn" (func $spawn))
      (memory (export "memory") 1) (memory 2) (data (i32.const 0) "%s")
      (func $start (call $note) %s (call $note)) (start $start))"""
    inner = host.load(module % (b"inner", b""))
    outer = host.load(module % (b"outer", b"(call $spawn)"))
    with outer.spawn() as guest:
        assert guest.memory.read(0, 5) == b"outer"
        assert [caller is guest for caller in callers] == [True, False, False, True]


def test_a_failed_spawn_within_a_spawn_leaves_the_outer_one_whole(host):
    def spawn() -> None:
        with pytest.raises(sandhost.GuestTrap):
            inner.spawn()

    host.function("env", "spawn")(spawn)
    inner = host.load(b"(module (memory 1) (func $start unreachable) (start $start))")
    outer = host.load(
        b"""(module (import "env" "spawn" (func $spawn)) (memory (export "memory") 1)
          (func $start (call $spawn)) (start $start) (func (export "run") (result i32) i32.const 7))"""
    )
    with outer.spawn() as guest:
        assert guest.call("run") == 7


# ---- fork inside a host function ----


def test_a_child_forked_inside_a_host_function_is_told(host):
    out = run_cleanly(
        """
        import os
        host = sandhost.Host(cache=False)

        @host.function("env", "fork")
        def fork() -> None:
            global child
            child = os.fork()

        guest = host.load(b'''(module (import "env" "fork" (func $fork)) (memory (export "m") 1)
          (func (export "run") (result i32)
            (i32.store (i32.const 0) (i32.const 5)) (call $fork) (i32.load (i32.const 0))))''').spawn()
        try:
            result = guest.call("run")
        except sandhost.SandhostError as error:
            assert child == 0
            os.write(1, str(error).encode() + b"\\n")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert result == 5
        guest.close()
        host.close()
        """
    )
    assert "was forked" in out


def test_a_child_forked_inside_an_output_callback_is_told():
    out = run_cleanly(
        """
        import os
        from sandhost import Wasi
        host = sandhost.Host(cache=False)

        def fork(data):
            global child
            child = os.fork()

        guest = host.load(rb'''(module
          (import "wasi_snapshot_preview1" "fd_write"
            (func $fd_write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (data (i32.const 0) "\\10\\00\\00\\00\\05\\00\\00\\00")
          (func (export "run") (result i32)
            (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
          )''').spawn(wasi=Wasi(stdout=fork))
        try:
            result = guest.call("run")
        except sandhost.SandhostError as error:
            assert child == 0
            os.write(1, str(error).encode() + b"\\n")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert result == 0
        guest.close()
        host.close()
        """
    )
    assert "was forked" in out


# ---- greenlets ----

SWITCHING = b"""(module (import "env" "switch" (func $switch)) (func (export "nop"))
    (func (export "go") (result i32) (call $switch) (i32.const 7)))"""


def test_a_call_while_a_greenlet_has_left_a_host_function_is_refused(host):
    greenlet = pytest.importorskip("greenlet").greenlet
    main = greenlet.getcurrent()
    host.function("env", "switch", "()")(lambda: main.switch("inside") and None)
    plugin = host.load(SWITCHING)
    with plugin.spawn() as one, plugin.spawn() as two:

        def deep(levels):
            return deep(levels - 1) if levels else one.call("go")

        other = greenlet(lambda: max(map(deep, [20])))  # through C, so that it lies below us
        assert other.switch() == "inside"
        for refused in (plugin.spawn, lambda: two.call("nop")):
            with pytest.raises(sandhost.GuestBusy, match="greenlet"):
                refused()
        assert other.switch() == 7
        two.call("nop")


def test_greenlets_that_switch_between_calls_are_no_matter(host):
    greenlet = pytest.importorskip("greenlet").greenlet
    main = greenlet.getcurrent()
    host.function("env", "switch", "()")(lambda: None)

    def work():
        with host.load(SWITCHING).spawn() as guest:
            for _ in range(3):
                main.switch(guest.call("go"))

    workers = [greenlet(work) for _ in range(4)]
    for _ in range(3):
        assert [w.switch() for w in workers] == [7] * 4
    for w in workers:
        w.switch()


def test_host_functions_that_return_out_of_turn_end_the_process():
    pytest.importorskip("greenlet")
    result = run_python(
        """
        from greenlet import greenlet
        host = sandhost.Host(cache=False, max_guests=8)
        turns = iter(())

        @host.function("env", "switch")
        def switch() -> None:
            next(turns)()

        plugin = host.load(b'(module (import "env" "switch" (func $f)) (func (export "go") (call $f)))')
        first, second = greenlet(plugin.spawn().func("go")), greenlet(plugin.spawn().func("go"))
        turns = iter([second.switch, first.switch])
        first.switch()
        """
    )
    assert result.returncode == -signal.SIGABRT
    assert "greenlets cannot be switched in host functions" in result.stderr
