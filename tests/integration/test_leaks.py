"""Nothing is left behind by what fails, however often: memory, files and figures stay level."""

from __future__ import annotations

import pytest
from helpers import balanced, collected, guest_file, open_files, private_bytes

import sandhost
from sandhost import Limits, hostcalls

ROUNDS = 400  # after as many to warm up
ALLOWED = 1 << 20  # bytes; a leak of one OS page a round is more


def raising(*_):
    raise LookupError


def scenarios(host):
    """Yield a name, and a function that fails once and cleans up after itself."""
    host.function("env", "nop", "()")(raising)
    host.function("env", "inc", "(i32) -> i32")(lambda n: "no integer")
    host.function("env", "f", "()")(raising)
    host.function("env", "view")(lambda: None)
    plugins = {
        name: host.load(guest_file(name))
        for name in [
            "unreachable",
            "oob",
            "recurse",
            "bss",
            "secrets",
            "hostcall",
            "echo",
            "start_trap",
            "oob_data",
            "exceptions",
            "many_tables",
            "grow_forever",
            "spin",
        ]
    }
    starting = host.load(b"""(module (import "env" "f" (func $f)) (memory (export "m") 1)
        (start $f))""")

    def calling(name, function, *arguments, error, limits=None, wasi=None):
        def once():
            with plugins[name].spawn(limits=limits, wasi=wasi, tenant="t") as guest:
                with pytest.raises(error):
                    guest.call(function, *arguments)

        return once

    def spawning(plugin, error, limits=None):
        def once():
            with pytest.raises(error):
                plugin.spawn(limits=limits, tenant="t")

        return once

    def loading(source):
        def once():
            with pytest.raises(sandhost.ModuleError):
                host.load(source)

        return once

    def viewing():
        guest = plugins["secrets"].spawn()
        view = guest.memory.view(0, 100)
        with pytest.raises(sandhost.GuestBusy):
            guest.close()
        with pytest.raises(sandhost.OutOfBounds):
            guest.memory.view(-1, 100)
        del view
        guest.close()

    wrong = b"(module (func (result i32)))"
    small = Limits(memory="1 MiB")
    yield "trap", calling("unreachable", "trap", error=sandhost.GuestTrap)
    yield "out of bounds", calling("oob", "load8", -1, error=sandhost.GuestTrap)
    yield "recursion", calling("recurse", "recurse", 1, error=sandhost.GuestTrap)
    yield (
        "growth",
        calling("grow_forever", "until_refused", error=sandhost.OutOfMemory, limits=small),
    )
    yield (
        "deadline",
        calling("spin", "spin", error=sandhost.DeadlineExceeded, limits=Limits(deadline=0.001)),
    )
    yield "host function", calling("hostcall", "call_nop", 1, error=LookupError)
    yield "misfit", calling("hostcall", "call_inc", 1, error=sandhost.HostCallError)
    yield (
        "exit",
        calling(
            "echo",
            "_start",
            error=sandhost.GuestExit,
            wasi=sandhost.Wasi(argv=["e", "3"], stdin=b"x"),
        ),
    )
    yield (
        "output callback",
        calling(
            "echo", "_start", error=LookupError, wasi=sandhost.Wasi(argv=["e", "0"], stdout=raising)
        ),
    )
    yield "exception", calling("exceptions", "throw_uncaught", 1, error=sandhost.GuestError)
    yield "wrong arguments", calling("unreachable", "trap", 1, error=TypeError)
    yield "too little memory", spawning(plugins["bss"], sandhost.OutOfMemory, small)
    yield (
        "table limit",
        spawning(plugins["many_tables"], sandhost.LimitExceeded, Limits(table_elements=1)),
    )
    yield "no fuel", spawning(plugins["bss"], sandhost.ConfigError, Limits(fuel=1))
    yield "start trap", spawning(plugins["start_trap"], sandhost.GuestTrap)
    yield "start host function", spawning(starting, LookupError)
    yield "data out of bounds", spawning(plugins["oob_data"], sandhost.GuestTrap)
    yield "invalid module", loading(wrong)
    yield "missing import", loading(guest_file("hostile_import"))
    yield "missing file", loading("/nonexistent")
    yield "views", viewing


NAMES = [
    "trap",
    "out of bounds",
    "recursion",
    "growth",
    "deadline",
    "host function",
    "misfit",
    "exit",
    "output callback",
    "exception",
    "wrong arguments",
    "too little memory",
    "table limit",
    "no fuel",
    "start trap",
    "start host function",
    "data out of bounds",
    "invalid module",
    "missing import",
    "missing file",
    "views",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_failure_leaves_nothing_behind_however_often_it_happens(host, name):
    once = dict(scenarios(host))[name]
    for _ in range(ROUNDS):
        once()
    collected()
    host.trim()
    files, memory, number = open_files(), private_bytes(), next(hostcalls._numbers)
    for _ in range(ROUNDS):
        once()
    collected()
    stats = balanced(host)
    assert open_files() == files
    assert private_bytes() - memory < ALLOWED
    assert next(hostcalls._numbers) - number <= 3, "numbers of host functions are used again"
    assert not hostcalls.pending
    assert not hostcalls.bindings
    assert stats.guests_peak <= 2


def test_every_scenario_is_run(host):
    assert [name for name, _ in scenarios(host)] == NAMES


def test_the_measure_would_notice_a_page_a_round():
    import mmap

    before = private_bytes()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    kept = [mmap.mmap(-1, mmap.PAGESIZE, flags) for _ in range(ROUNDS)]
    for one in kept:
        one.write(b"x" * len(one))
    assert private_bytes() - before > ALLOWED


@pytest.mark.parametrize("policy", ["immediate", "warm", "lazy"])
def test_thousands_of_whole_lives_leave_memory_level(policy):
    with sandhost.Host(cache=False, max_guests=64, reclaim=policy) as host:
        plugin = host.load(guest_file("bench"))

        def live(count):
            for k in range(count):
                with plugin.spawn(tenant=str(k % 3)) as guest:
                    guest.call("dirty", k % 60)
                    guest.memory.write(0, b"x")

        live(1000)
        host.trim()
        collected()
        before = private_bytes()
        live(4000)
        host.trim()
        collected()
        assert private_bytes() - before < ALLOWED
        assert balanced(host).spawns == 5000
