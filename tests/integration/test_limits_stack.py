"""Limits of the stack: recursion without end, and threads whose stack is short."""

from __future__ import annotations

import pytest
from helpers import (
    guest_file,
    run_cleanly,
)

import sandhost


def test_recursion_without_end_is_a_trap_of_the_guest(host):
    with host.load(guest_file("recurse")).spawn() as guest:
        for _ in range(3):
            with pytest.raises(sandhost.GuestTrap) as caught:
                guest.call("recurse", 1)
            assert caught.value.code == "stack_overflow"
            assert len(caught.value.frames) > 10
            assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize("stack", ["64 KiB", "1536 KiB"])
def test_a_host_chooses_how_deep_its_guests_may_recurse(stack):
    text = b"""(module (func $f (export "f") (param i32) (result i32)
      (if (result i32) (local.get 0)
        (then (i32.add (i32.const 1) (call $f (i32.sub (local.get 0) (i32.const 1)))))
        (else (i32.const 0)))))"""
    with sandhost.Host(cache=False, max_guests=4, stack=stack) as host:
        with host.load(text).spawn() as guest:
            if stack == "64 KiB":
                with pytest.raises(sandhost.GuestTrap, match="stack"):
                    guest.call("f", 20_000)
            else:
                assert guest.call("f", 20_000) == 20_000


@pytest.mark.parametrize("kib", [64, 128, 256, 512, 1024, 2048])
def test_a_thread_with_a_short_stack_is_refused_not_overrun(kib):
    run_cleanly(f"""
        import threading
        host = sandhost.Host(cache=False, max_guests=8)
        wasi = sandhost.Wasi(argv=["echo"])
        plugins = [host.load(guest_file(n)) for n in ("recurse", "add", "unreachable")]
        live = [p.spawn() for p in plugins]
        seen = []
        def attempt(what):
            try:
                what()
                seen.append("done")
            except sandhost.LimitExceeded as error:
                assert "stack" in str(error) and "threading.stack_size" in str(error), error
                seen.append("refused")
            except sandhost.GuestTrap as error:
                seen.append(error.code)
        def work():
            for guest, call in zip(live, (("recurse", 1), ("add", 1, 2), ("trap",))):
                attempt(lambda: guest.call(*call))
            for plugin in plugins:
                attempt(lambda: plugin.spawn().close())
        threading.stack_size({kib} * 1024)
        thread = threading.Thread(target=work)
        thread.start(); thread.join()
        threading.stack_size(0)
        expected = (["refused"] * 6 if {kib} < 700 else
                    ["stack_overflow", "done", "unreachable", "done", "done", "done"])
        assert seen == expected, seen
        assert live[1].call("add", 1, 2) == 3
        for guest in live: guest.close()
        host.close(); balanced(host)
    """)


@pytest.mark.parametrize("kib", [64, 128, 256])
def test_loading_in_a_thread_with_a_short_stack_does_not_end_the_process(kib):
    run_cleanly(f"""
        import threading
        host = sandhost.Host(cache=False, max_guests=8)
        def work():
            try:
                host.load(guest_file("types"))
                host.load(guest_file("bench"))
                host.load(guest_file("wordcount"))
            except sandhost.SandhostError as error:
                assert "stack" in str(error), error
        threading.stack_size({kib} * 1024)
        thread = threading.Thread(target=work)
        thread.start(); thread.join()
        host.close()
    """)


@pytest.mark.parametrize("limit", ["unlimited", "700", "4096"])
def test_the_main_threads_own_stack_limit_is_respected(limit):
    out = run_cleanly(
        """
        host = sandhost.Host(cache=False, max_guests=8)
        try:
            guest = host.load(guest_file("recurse")).spawn()
            guest.call("recurse", 1)
        except sandhost.GuestTrap as error:
            print(error.code)
        except sandhost.LimitExceeded as error:
            print("refused")
        host.close()
        """,
        prefix=("sh", "-c", f'ulimit -s {limit}; exec "$@"', "sh"),
    )
    assert out.strip() in ("stack_overflow", "refused")
    if limit != "700":
        assert out.strip() == "stack_overflow"
