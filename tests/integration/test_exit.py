"""The interpreter ends with its own status, silently and at once, whatever is still alive."""

from __future__ import annotations

import pytest
from helpers import run_cleanly, run_python

START = """
    import atexit, gc, threading, time
    host = sandhost.Host(cache=False, max_guests=32)
    add, spin, secrets, echo = (
        host.load(guest_file(n)) for n in ("add", "spin", "secrets", "echo"))
"""


def test_a_live_guest_at_exit_is_silent():
    run_cleanly(START + "    guest = secrets.spawn(); guest.memory.write(0, b'x')")


def test_live_guests_of_every_kind_at_exit_are_silent():
    run_cleanly(
        START
        + """
    @host.function("env", "nop")
    def nop(guest: sandhost.Guest) -> None: ...
    host.function("env", "inc", "(i32) -> i32")(lambda n: n + 1)
    called = host.load(guest_file("hostcall")).spawn()
    called.call("call_nop", 2)
    wasi = echo.spawn(wasi=sandhost.Wasi(argv=["e"], stdout=print))
    view = secrets.spawn()
    window = view.memory.view(0, 4)
    bound = add.spawn().func("add")
    bound(1, 2)
    """
    )


def test_a_host_that_is_never_closed_warns_only_when_warnings_are_enabled():
    source = START + "    guest = secrets.spawn(); guest.memory"
    done = run_python(source, options=("-W", "default"))
    assert done.returncode == 0
    assert "ResourceWarning" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("end", ["", "; sys.exit(3)", "; raise SystemExit('text')", "; 1 / 0"])
def test_the_exit_status_is_the_programs_own(end):
    done = run_python(START + f"    guest = secrets.spawn(); guest.call('size'){end}")
    expected = {"": 0, "; sys.exit(3)": 3}.get(end, 1)
    assert done.returncode == expected
    if "exit(" in end or not end:
        assert done.stderr == ""
    elif "text" in end:
        assert done.stderr == "text\n"
    else:
        assert done.stderr.strip().endswith("ZeroDivisionError: division by zero")
        assert "ignored" not in done.stderr


def test_sys_exit_in_a_host_function_ends_the_program_with_its_status():
    done = run_python(
        START
        + """
    host.function("env", "nop", "()")(lambda: sys.exit(7))
    host.function("env", "inc", "(i32) -> i32")(lambda n: n + 1)
    guest = host.load(guest_file("hostcall")).spawn()
    guest.call("call_nop", 1)
    """
    )
    assert (done.returncode, done.stderr) == (7, "")


@pytest.mark.parametrize("count", [1, 4])
def test_daemon_threads_that_spin_in_guests_do_not_hold_up_the_exit(count):
    run_cleanly(
        START
        + f"""
    guests = [spin.spawn() for _ in range({count})]
    for guest in guests:
        threading.Thread(target=guest.call, args=("spin",), daemon=True).start()
    wait_until(lambda: all(guest.stats().running for guest in guests))
    """,
        timeout=20,
    )


def test_daemon_threads_that_keep_pythons_lock_in_guests_do_not_hold_up_the_exit():
    """What is ended since Python is going away stays in C for ever, and must not keep the lock there."""
    run_cleanly(
        START
        + """
    plugins = iter([host.load(guest_file("spin")) for _ in range(300)])  # each is tried once

    def calls() -> None:
        for plugin in plugins:
            plugin.call_here(sandhost._ffi.ffi.NULL, "spin", (), None, None)

    tell_c = sandhost.host._at_exit
    atexit.unregister(tell_c)
    atexit.register(time.sleep, 0.1)  # after C was told: for others to take the lock
    atexit.register(tell_c)
    for _ in range(3):
        threading.Thread(target=calls, daemon=True).start()
    wait_until(lambda: plugins.__length_hint__() < 290)
    """,
        timeout=20,
    )


def test_daemon_threads_that_sleep_in_guests_do_not_hold_up_the_exit():
    run_cleanly(
        START
        + """
    sleeper = host.load(guest_file("sleeper"))
    guest = sleeper.spawn(wasi=sandhost.Wasi(argv=["s", "3600000"]))
    threading.Thread(target=guest.call, args=("_start",), daemon=True).start()
    wait_until(lambda: guest.stats().running)
    """,
        timeout=20,
    )


@pytest.mark.parametrize("pause", ["0", "0.00001", "0.001", "3600"])
def test_daemon_threads_in_host_functions_do_not_end_the_process_badly(pause):
    """They are stopped by Python where they wait for the GIL, with wasm frames below them."""
    for _ in range(3):
        run_cleanly(
            START
            + f"""
    host.function("env", "nop", "()")(lambda: time.sleep({pause}))
    host.function("env", "inc", "(i32) -> i32")(lambda n: n + 1)
    plugin = host.load(guest_file("hostcall"))
    guests = [plugin.spawn() for _ in range(4)]
    for guest in guests:
        threading.Thread(target=guest.call, args=("call_nop", 2**31 - 1), daemon=True).start()
    wait_until(lambda: all(guest.stats().host_calls > 0 for guest in guests))
    """,
            timeout=20,
        )


def test_daemon_threads_that_print_through_a_callback_do_not_end_the_process_badly():
    run_cleanly(
        START
        + """
    text = b'''(module (import "wasi_snapshot_preview1" "fd_write"
      (func $w (param i32 i32 i32 i32) (result i32))) (memory (export "memory") 1)
      (data (i32.const 0) "\\\\10\\\\00\\\\00\\\\00\\\\01\\\\00\\\\00\\\\00")
      (func (export "go") (loop $l
        (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) (br $l))))'''
    plugin = host.load(text)
    got = []
    wasi = sandhost.Wasi(stdout=lambda data: (got.append(1), time.sleep(0)))
    guests = [plugin.spawn(wasi=wasi) for _ in range(3)]
    for guest in guests:
        threading.Thread(target=guest.call, args=("go",), daemon=True).start()
    wait_until(lambda: len(got) > 100)
    """,
        timeout=20,
    )


def test_daemon_threads_that_spawn_and_close_do_not_end_the_process_badly():
    for _ in range(3):
        run_cleanly(
            START
            + """
    done = []
    def work():
        while True:
            with secrets.spawn() as guest:
                guest.memory.write(0, b"x")
                guest.call("write", 1)
            done.append(1)
    for _ in range(4):
        threading.Thread(target=work, daemon=True).start()
    wait_until(lambda: len(done) > 50)
    """,
            timeout=20,
        )


def test_a_daemon_thread_that_compiles_does_not_hold_up_the_exit():
    run_cleanly(
        START
        + """
    def work():
        while True:
            host.load(guest_file("wordcount"))
    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.1)
    """,
        timeout=30,
    )


def test_a_thread_that_is_no_daemon_is_waited_for():
    out = run_cleanly(
        START
        + """
    def work():
        time.sleep(0.2)
        with add.spawn() as guest:
            print(guest.call("add", 1, 2))
    threading.Thread(target=work).start()
    """
    )
    assert out == "3\n"


def test_guests_hosts_and_plugins_in_cycles_at_exit_are_silent():
    run_cleanly(
        START
        + """
    class Node: pass
    node = Node()
    node.self, node.guest, node.host, node.plugin = node, secrets.spawn(), host, secrets
    node.guest.memory.write(0, b"x")
    node.view = node.guest.memory.view(0, 4)
    host.node, secrets.node = node, node
    @host.function("env", "nop")
    def nop(guest: sandhost.Guest) -> None: node
    host.function("env", "inc", "(i32) -> i32")(lambda n: node and n)
    node.called = host.load(guest_file("hostcall")).spawn()
    node.called.call("call_nop", 1)
    del node, host, add, spin, secrets, echo
    """
    )


def test_a_host_in_a_cycle_is_collected_with_all_that_it_holds():
    run_cleanly(
        """
    import gc, weakref
    gc.disable()
    def make():
        host = sandhost.Host(cache=False, max_guests=8)
        host.function("env", "nop", "()")(lambda: host)
        host.function("env", "inc", "(i32) -> i32")(lambda n: host and n)
        plugin = host.load(guest_file("hostcall"))
        guest = plugin.spawn()
        guest.call("call_nop", 3)
        host.self, host.guest = host, guest
        return weakref.ref(host), open_files()
    make()[0]; gc.collect(); gc.collect()
    before = open_files()
    gone, _ = make()
    gc.collect(); gc.collect()
    assert gone() is None
    assert open_files() == before
    """
    )


@pytest.mark.parametrize("order", ["before", "after"])
def test_atexit_functions_may_use_or_close_guests_in_any_order(order):
    register = "atexit.register(last)"
    source = f"""
    import atexit
    def last():
        try:
            guest.memory.read(0, 1)
            guest.call("size")
        except sandhost.SandhostError:
            pass
        guest.close(); host.close()
        print("closed")
    {register if order == "after" else ""}
    host = sandhost.Host(cache=False, max_guests=8)
    guest = host.load(guest_file("secrets")).spawn()
    """
    if order == "before":
        source = source.replace("import atexit", "import atexit; atexit.register(lambda: last())")
        source = f"import atexit\nimport sys\n{''}" and source
    assert run_cleanly(source) == "closed\n"


def test_objects_kept_by_modules_and_finalizers_at_exit_are_silent():
    run_cleanly(
        START
        + """
    import weakref, builtins
    guest = secrets.spawn()
    builtins.kept = guest
    sys.modules["kept"] = guest
    threading.kept = [guest, host, secrets.spawn()]
    class Closer:
        def __init__(self): self.guest = secrets.spawn()
        def __del__(self): self.guest.close()
    closer = Closer(); closer.cycle = closer
    weakref.finalize(closer, secrets.spawn().close)
    """
    )


def test_an_exception_on_the_way_out_is_the_only_thing_said():
    done = run_python(
        START
        + """
    with secrets.spawn() as guest:
        guest.memory.write(0, b"x")
        raise RuntimeError("mine")
    """
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "RuntimeError: mine"
    assert done.stderr.count("Traceback") == 1


def test_guests_whose_host_was_closed_die_silently():
    run_cleanly(
        START
        + """
    import warnings
    guests = [secrets.spawn(), echo.spawn(), add.spawn()]
    guests[0].memory.write(0, b"x")
    host.close()
    del guests
    gc.collect()
    """
    )


def test_import_alone_ends_silently():
    run_cleanly("pass")
    run_cleanly("import sandhost._native")
