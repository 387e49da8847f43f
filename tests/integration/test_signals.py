"""Fault handlers and signals of the application, next to wasmtime's."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import threading
from pathlib import Path

import pytest
from helpers import run_cleanly, run_python, threads_of

import sandhost

TRAPPER = """
import ctypes, faulthandler, resource, signal
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
host = sandhost.Host(cache=False)
guest = host.load(b'''(module (memory 1)
  (func (export "unreachable") unreachable)
  (func (export "outside") (drop (i32.load (i32.const 0x7fffff00)))))''').spawn()

def trap():
    for name in ("unreachable", "outside"):
        for _ in range(2):
            try:
                guest.call(name)
            except sandhost.GuestTrap:
                pass
"""
CRASH = """
print("trapped", flush=True)
ctypes.string_at(0)
"""
needs_bindings = pytest.mark.skipif(
    not importlib.util.find_spec("wasmtime"), reason="wasmtime's bindings are not installed"
)


def dumps_once(source: str) -> None:
    done = run_python(TRAPPER + source + CRASH)
    assert (done.stdout, done.returncode) == ("trapped\n", -signal.SIGSEGV)
    assert done.stderr.count("Fatal Python error") == 1


def test_a_fault_of_the_host_is_dumped_once_however_handlers_are_chained():
    # The handler before faulthandler's is ours here, and faulthandler passes the fault on to it.
    dumps_once(
        """
trap()
for number in (signal.SIGSEGV, signal.SIGILL, signal.SIGFPE):
    signal.signal(number, signal.SIG_DFL)
trap()
faulthandler.enable()
trap()
"""
    )


def test_traps_survive_faulthandler_being_switched_on_and_off():
    dumps_once(
        """
for _ in range(3):
    faulthandler.enable()
    trap()
    faulthandler.disable()
    trap()
faulthandler.enable()
trap()
"""
    )


@needs_bindings
def test_a_host_is_refused_when_wasmtimes_handlers_are_out_of_reach():
    out = run_cleanly(
        """
        import faulthandler
        import wasmtime
        wasmtime.Engine()
        faulthandler.enable()
        for _ in range(2):
            try:
                sandhost.Host(cache=False)
            except sandhost.ConfigError as error:
                print(error)
        """
    )
    assert out.count("fault handlers were replaced") == 2


@needs_bindings
def test_a_host_shares_a_process_with_wasmtimes_own_bindings():
    run_cleanly(
        "import faulthandler, wasmtime\nfaulthandler.enable()\nwasmtime.Engine()\n"
        + TRAPPER
        + "trap()\nguest.close()\nhost.close()\n"
    )


def test_threads_of_a_host_leave_signals_to_the_application(host):
    blocked = {}
    for thread, name in threads_of().items():
        if name.startswith("sandhost-"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # of an earlier host
                status = Path(f"/proc/self/task/{thread}/status").read_text()
                line = next(line for line in status.splitlines() if line.startswith("SigBlk:"))
                blocked[name] = int(line.split()[1], 16)
    assert set(blocked) >= {"sandhost-ticker", "sandhost-memory"}
    for mask in blocked.values():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1):
            assert mask >> (number - 1) & 1


def test_a_signal_that_arrives_while_a_guest_computes_reaches_python(host):
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(guest.cancel()))
    try:
        with host.load(b'(module (func (export "spin") (loop (br 0))))').spawn() as guest:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with pytest.raises(sandhost.GuestCancelled, match="was cancelled"):
                guest.call("spin")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [True]
