"""Snapshots of guests with an allocator and a collector of their own: Go and JavaScript."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import guest_file
from helpers.guest_sources import fresh, needs

import sandhost

# ---- Go


@pytest.fixture(scope="module")
def tokenize(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go guest, built where Go is installed."""
    needs("go")
    built = tmp_path_factory.mktemp("guests") / "tokenize.wasm"
    built.write_bytes(fresh("tokenize"))
    return built


def remember(guest: sandhost.Guest, text: str) -> int:
    data = text.encode()
    address = guest.call("alloc", len(data))
    guest.memory.write(address, data)
    count: int = guest.call("remember", address, len(data))
    guest.call("free", address)
    return count


def test_a_go_reactor_goes_on_with_its_heap(host: sandhost.Host, tokenize: Path) -> None:
    plugin = host.load(tokenize)
    with plugin.spawn() as original:
        original.call("_initialize")
        for _ in range(3):
            remember(original, "one")
        snapshot = original.snapshot()
        with snapshot.spawn() as fork, snapshot.spawn() as other:
            assert remember(original, "one") == 4
            assert [remember(fork, "one"), remember(fork, "two"), remember(fork, "one")] == [
                4,
                1,
                5,
            ]
            for k in range(2000):  # enough for Go's collector to run
                remember(fork, f"{k:>100}")
            assert remember(fork, "two") == 2
            assert remember(other, "two") == 1
            with fork.snapshot().spawn() as fork_of_fork:
                assert remember(fork_of_fork, "one") == 6


# ---- JavaScript


def evaluate(guest: sandhost.Guest, source: str) -> tuple[int, Any]:
    data = source.encode()
    address = guest.call("alloc", len(data))
    guest.memory.write(address, data)
    status = guest.call("run", address, len(data))
    guest.call("release", address)
    length = guest.call("value_length")
    text = guest.memory.read(guest.call("value"), length) if length else b""
    return status, json.loads(text) if text else ...


@pytest.fixture
def script(host: sandhost.Host) -> Iterator[sandhost.Guest]:
    with host.load(guest_file("quickjs")).spawn() as guest:
        guest.call("_initialize")
        yield guest


def test_quickjs_forks_keep_what_ran_before(script: sandhost.Guest) -> None:
    evaluate(script, "let made = []; const add = x => { made.push(x); return made.length }; add(1)")
    evaluate(
        script,
        "let resolve; const kept = new Promise(r => { resolve = r }).then(x => { made = x })",
    )
    snapshot = script.snapshot()
    with snapshot.spawn(wasi=sandhost.Wasi()) as one, snapshot.spawn() as two:
        assert evaluate(one, "add(2); resolve([7]); console.log('one'); made") == (0, [1, 2])
        assert evaluate(one, "made") == (0, [7])
        assert one.stdout == b"one\n"
        assert evaluate(two, "made") == (0, [1])
        assert evaluate(script, "add(3)") == (0, 2)


def test_quickjs_forks_draw_other_numbers_once_reseeded(script: sandhost.Guest) -> None:
    draw = "[Math.random(), Math.random()]"
    snapshot = script.snapshot()
    drawn = []
    for seed in (None, None, 1, 1, 2):
        with snapshot.spawn() as fork:
            if seed is not None:
                fork.call("reseed", seed)
            drawn.append(evaluate(fork, draw)[1])
    assert drawn[0] == drawn[1]
    assert drawn[2] == drawn[3]
    assert len({tuple(x) for x in drawn}) == 3


@pytest.mark.parametrize("warm", ["", "1+1", "Array.from({length: 20000}, (_, k) => ({k})).length"])
def test_quickjs_forks_collect_and_fail_as_ever(script: sandhost.Guest, warm: str) -> None:
    evaluate(script, warm)
    snapshot = script.snapshot()
    sources = [
        "function f() { return f() + 1 } f()",
        "let kept = []; for (let k = 0; k < 3e4; k++) { const a = {}; a.a = a; kept[k % 100] = a } kept.length",
        "try { null.x } catch (error) { String(error) }",
        "kept.every(a => a.a === a)",
    ]
    with snapshot.spawn() as fork:
        assert [evaluate(fork, source) for source in sources] == [
            evaluate(script, source) for source in sources
        ]


# ---- without a snapshot: what QuickJS does under limits


def test_quickjs_without_memory_is_an_exception(host: sandhost.Host) -> None:
    plugin = host.load(guest_file("quickjs"))
    with plugin.spawn(limits=sandhost.Limits(memory="8 MiB")) as guest:
        guest.call("_initialize")
        hog = "(() => { const hog = []; for (;;) hog.push('x'.repeat(1000) + hog.length) })()"
        assert evaluate(guest, hog) == (1, "InternalError: out of memory")
        assert evaluate(guest, "1 + 1") == (0, 2)


def test_quickjs_keeps_to_its_deadline(host: sandhost.Host) -> None:
    plugin = host.load(guest_file("quickjs"))
    with plugin.spawn(limits=sandhost.Limits(deadline=0.05)) as guest:
        guest.call("_initialize")
        with pytest.raises(sandhost.DeadlineExceeded):
            evaluate(guest, "for (;;);")
