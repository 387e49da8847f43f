"""Promise 6: the child of a fork is told that it has no guests, and the parent is untouched."""

from __future__ import annotations

import pytest
from helpers import run_cleanly

FORK = """
    import os, warnings, threading, time
    host = sandhost.Host(cache=False, max_guests=32, reclaim={policy!r})
    plugin = host.load(guest_file("secrets"))
    wasi = host.load(guest_file("echo"))
    guest, plain, commanded = plugin.spawn(tenant="t"), plugin.spawn(), wasi.spawn()
    guest.memory.write(0, b"of the parent")
    def in_child(function):
        child = os.fork()
        if not child:
            status = 1
            try:
                function()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0, function
    def parent_is_untouched():
        assert guest.memory.read(0, 13) == b"of the parent"
        assert guest.call("size") == 4
        guest.call("write", 7)
        assert guest.call("scan", 7) == 0
        guest.memory.write(0, b"of the parent")
        with plugin.spawn() as other:
            assert other.call("scan", 0) == 0
    def told(use):
        try:
            use()
        except sandhost.SandhostError as error:
            assert "fork" in str(error), repr(error)
        else:
            raise AssertionError("not told")
"""


def forking(body: str, policy: str = "warm", **options) -> str:
    return run_cleanly(FORK.format(policy=policy) + body, **options)


@pytest.mark.parametrize("policy", ["immediate", "warm", "lazy"])
def test_every_use_in_the_child_says_that_it_was_forked(policy):
    forking(
        """
    memory, size = guest.memory, guest.func("size")
    uses = {
        "call": lambda: guest.call("size"), "func": lambda: size(), "spawn": plugin.spawn,
        "spawn for a tenant": lambda: plugin.spawn(tenant="t"),
        "read": lambda: memory.read(0, 1), "write": lambda: memory.write(0, b"x"),
        "view": lambda: memory.view(0, 1), "memory": lambda: plain.memory,
        "guest stats": guest.stats, "stdout": lambda: commanded.stdout,
        "load": lambda: host.load(guest_file("add")), "new tenant": lambda: host.tenant("new"),
        "host": lambda: sandhost.Host(cache=False, max_guests=4),
    }
    for name, use in uses.items():
        in_child(lambda: told(use))
        parent_is_untouched()
    for g in (guest, plain, commanded): g.close()
    host.close(); balanced(host)
    """,
        policy=policy,
    )


def test_what_cannot_be_refused_in_the_child_is_harmless():
    forking("""
    def harmless():
        host.close(); host.trim(); host.stats(); plugin.stats(); host.latency("call")
        guest.cancel(); repr(guest); guest.closed; host.tenant("t").memory_bytes
        guest.close(); plain.close(); commanded.close()
    in_child(harmless)
    parent_is_untouched()
    for g in (guest, plain, commanded): g.close()
    host.close(); balanced(host)
    """)


def test_a_stale_view_in_the_child_reads_zeros():
    forking("""
    view = guest.memory.view(0, 13)
    def look():
        assert bytes(view) == bytes(13), bytes(view)
        view[:] = b"of the child!"
        del globals()["view"]
    in_child(look)
    assert bytes(view) == b"of the parent"
    del view
    parent_is_untouched()
    for g in (guest, plain, commanded): g.close()
    host.close()
    """)


@pytest.mark.parametrize("how", ["sys.exit(0)", "pass", "raise SystemExit(0)"])
def test_a_child_that_runs_to_its_end_exits_cleanly_and_silently(how):
    out = forking(f"""
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        parent_is_untouched()
        for g in (guest, plain, commanded): g.close()
        host.close()
        print("parent")
    else:
        {how}
    """)
    assert out.strip().splitlines()[-1] == "parent"


def test_objects_that_die_in_the_child_are_silent():
    forking("""
    warnings.simplefilter("error")
    def drop():
        for name in ("guest", "plain", "commanded", "plugin", "wasi", "host"):
            del globals()[name]
            collected()
    in_child(drop)
    parent_is_untouched()
    for g in (guest, plain, commanded): g.close()
    host.close()
    """)


def test_a_fork_while_other_threads_spawn_call_and_close():
    forking("""
    stop = threading.Event()
    spin = host.load(guest_file("spin"))
    def work():
        while not stop.is_set():
            with plugin.spawn(tenant="t") as g:
                g.memory.write(0, b"x")
                g.call("write", 3)
            with spin.spawn(limits=sandhost.Limits(deadline=0.003)) as g:
                try: g.call("spin")
                except sandhost.DeadlineExceeded: pass
    workers = [Background(work) for _ in range(3)]
    for _ in range(40):
        in_child(lambda: (told(plugin.spawn), told(lambda: guest.call("size")), host.stats(),
                          host.close(), host.trim()))
    stop.set()
    for w in workers: w.result()
    parent_is_untouched()
    for g in (guest, plain, commanded): g.close()
    host.close(); balanced(host)
    """)


def test_a_fork_inside_of_a_host_function():
    forking("""
    @host.function("env", "inc")
    def inc(n: int) -> int:
        in_child(lambda: told(plugin.spawn))
        return n + 1
    host.function("env", "nop", "()")(lambda: None)
    with host.load(guest_file("hostcall")).spawn() as caller:
        assert caller.call("call_inc", 3) == 3
    parent_is_untouched()
    for g in (guest, plain, commanded): g.close()
    host.close(); balanced(host)
    """)


def test_multiprocessing_with_fork_works_beside_live_guests():
    forking("""
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, range(-20, 0)) == list(range(20, 0, -1))
    parent_is_untouched()
    for g in (guest, plain, commanded): g.close()
    host.close()
    """)


def test_a_child_execs_as_if_nothing_were():
    forking("""
    import subprocess, sys
    assert subprocess.run([sys.executable, "-c", "import sandhost; print(1)"],
                          capture_output=True).stdout == b"1\\n"
    for g in (guest, plain, commanded): g.close()
    host.close()
    """)


def test_a_fork_before_any_host_leaves_both_free_to_make_one():
    run_cleanly("""
    import os
    child = os.fork()
    with sandhost.Host(cache=False, max_guests=4) as host:
        with host.load(guest_file("add")).spawn() as guest:
            assert guest.call("add", 1, 2) == 3
    if not child: os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    """)


def test_a_fork_after_the_last_host_has_gone_works_or_is_refused_but_never_hangs():
    """wasmtime's compiler threads are not in the child: a compile there must not wait for them."""
    run_cleanly(
        """
    import os
    def use():
        with sandhost.Host(cache=False, max_guests=4) as host:
            with host.load(guest_file("wordcount")).spawn() as guest:
                assert guest.call("alloc", 4)
    use(); collected()
    child = os.fork()
    if not child:
        try:
            use()
        except sandhost.SandhostError as error:
            assert "fork" in str(error), error
        os._exit(0)
    for _ in range(1000):
        done, status = os.waitpid(child, os.WNOHANG)
        if done: break
        import time; time.sleep(0.01)
    else:
        os.kill(child, 9); os.waitpid(child, 0)
        raise SystemExit("the child hung")
    assert status == 0
    """
    )
