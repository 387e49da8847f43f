"""Modules: what loads, what is refused and why, and code that was compiled before."""

from __future__ import annotations

import os
import random
import stat

import pytest
from helpers import GUESTS, balanced, guest_file, run_cleanly

import sandhost

ALL_TEXTS = sorted(path.stem for path in (GUESTS / "wat").glob("*.wat"))
NOT_LOADED = {
    "gc_types": "GC|reference|struct",
    "shared_memory": "shared",
    "imported_table": r"env\.table: table",
    "imported_global": r"env\.base: global",
    "hostile_import": "does not define",
    # wasmtime takes this for a part of the GC proposal, which is off
    "globals": "constant expression required",
    "hostcall": r"env\.nop",
    "deep_host": r"env\.descend",
}


def leb(number: int) -> bytes:
    out = b""
    while True:
        byte, number = number & 127, number >> 7
        if not number:
            return out + bytes([byte])
        out += bytes([byte | 128])


def module(*sections: tuple[int, bytes]) -> bytes:
    return b"\0asm\1\0\0\0" + b"".join(
        bytes([number]) + leb(len(payload)) + payload for number, payload in sections
    )


# ---- ways to give one ----


def test_a_module_is_given_by_path_or_bytes_as_text_or_binary(host):
    binary, text = GUESTS / "built" / "add.wasm", GUESTS / "wat" / "add.wat"
    sources = [binary, str(binary), text, str(text)]
    sources += [path.read_bytes() for path in (binary, text)]
    sources += [bytearray(binary.read_bytes()), memoryview(text.read_bytes())]
    for source in sources:
        with host.load(source).spawn() as guest:
            assert guest.call("add", 2, 3) == 5


@pytest.mark.parametrize("name", [n for n in ALL_TEXTS if n not in NOT_LOADED])
def test_every_guest_loads_and_most_spawn(host, name):
    host.function("env", "started", "()")(lambda: None)
    host.function("env", "now", "(i32) -> i32")(lambda x: x)
    host.function("env", "later", "(i32) -> i32")(lambda x: x)
    host.function("env", "open", "(i32) -> i64")(lambda x: x)
    host.function("env", "read", "(i64) -> i32")(lambda _: 0)
    plugin = host.load(guest_file(name))
    try:
        plugin.spawn(limits=sandhost.Limits(deadline=0.05)).close()
    except (sandhost.GuestTrap, sandhost.DeadlineExceeded):
        assert name in ("oob_data", "oob_data_empty", "oob_elem", "start_trap", "start_spin")


def test_a_module_that_only_the_rewrite_would_make_valid_is_refused(host):
    def with_element(function: int) -> bytes:
        return module(
            (1, b"\x01\x60\0\0"),
            (3, b"\x01\0"),
            (4, b"\x01\x70\0\x01"),
            (5, b"\x01\0\x01"),
            (9, b"\x01\0\x41\0\x0b\x01" + bytes([function])),
            (12, b"\x01"),
            (10, b"\x01\x02\0\x0b"),
            (11, b"\x01\x01\x01x"),  # passive: the rewrite adds functions that probe and drop it
        )

    host.load(with_element(0))
    for function in (1, 2, 3):
        with pytest.raises(sandhost.ModuleError, match="unknown function"):
            host.load(with_element(function))


@pytest.mark.parametrize("name", sorted(NOT_LOADED))
def test_what_is_not_supported_or_not_defined_is_refused_by_name(host, name):
    with pytest.raises(sandhost.ModuleError, match=NOT_LOADED[name]):
        host.load(guest_file(name))


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"\0",
        b"\0asm",
        b"\0asm\1\0\0",
        b"\0asm\2\0\0\0",
        b"\0asm\xff\xff\xff\xff",
        b"\0asm\x0d\0\1\0",  # a component
        b"\x7fELF\2\1\1\0",
        b"(module",
        b"(module (func (result i32)))",
        b'(module (func (export "f") (i32.add)))',
        b"(component)",
        b"\xff\xfe",
        b"   ",
        b"import os",
        b"(" * 100_000,
        os.urandom(64),
        b"\0asm\1\0\0\0" + b"\xff" * 64,
        b"\0asm\1\0\0\0\x01\xff\xff\xff\xff\x0f",
        b"\0asm\1\0\0\0\x00\x01\x80",
        module((1, b"\xff\xff\xff\xff\x0f")),
        module((2, b"\xff\xff\xff\xff\x0f")),
        module((3, b"\1\7")),
        module((5, b"\1\0\1"), (5, b"\1\0\1")),
        module((7, b"\1\1a\2\0")),
        module((7, b"\1\1\xff\0\0")),
        module((10, b"\1\2\0\x0b")),
        module((11, b"\1\0\x41\0\x0b\1x")),
    ],
    ids=lambda source: repr(bytes(source[:12])),
)
def test_what_is_no_module_is_a_module_error(host, source):
    with pytest.raises(sandhost.ModuleError) as caught:
        host.load(source)
    assert len(str(caught.value)) < 4000
    with host.load(guest_file("add")).spawn() as guest:
        assert guest.call("add", 2, 3) == 5


def test_a_component_is_named_as_what_it_is(host):
    with pytest.raises(sandhost.ModuleError, match="component"):
        host.load(b"\0asm\x0d\0\1\0")


@pytest.mark.parametrize("path", ["/nonexistent/file.wasm", "/", "/dev/null", "", "a\0b"])
def test_a_path_that_holds_no_module_is_a_module_error(host, path):
    with pytest.raises((sandhost.ModuleError, ValueError)):
        host.load(path)


def test_a_path_that_does_not_exist_is_named(host):
    with pytest.raises(sandhost.ModuleError, match="/nonexistent/file.wasm: No such file"):
        host.load("/nonexistent/file.wasm")


@pytest.mark.parametrize("source", [None, 7, ["x"], 1.5])
def test_what_is_neither_path_nor_bytes_is_a_type_error(host, source):
    with pytest.raises(TypeError):
        host.load(source)


def test_a_validation_error_says_at_which_byte(host):
    code = b"\1\4\0\x41\0\x0b"  # leaves an i32 on the stack of a function without result
    wrong = module((1, b"\1\x60\0\0"), (3, b"\1\0"), (10, code))
    with pytest.raises(sandhost.ModuleError, match="values remaining on stack") as caught:
        host.load(wrong)
    assert caught.value.offset == len(wrong) - 1
    assert str(caught.value).endswith(f"(at byte {len(wrong) - 1:#x})")
    with pytest.raises(sandhost.ModuleError) as caught:
        host.load(b"\0asm\1\0\0\0\x01\x05\x01")
    assert caught.value.offset is not None


@pytest.mark.parametrize("name", ["add", "secrets", "wordcount", "echo"])
def test_a_truncated_module_is_refused_wherever_it_is_cut(host, name):
    whole = (GUESTS / "built" / f"{name}.wasm").read_bytes()
    cuts = (
        range(len(whole)) if len(whole) < 300 else random.Random(1).sample(range(len(whole)), 200)
    )
    loaded = 0
    for cut in cuts:
        try:
            host.load(whole[:cut])
            loaded += 1
        except sandhost.ModuleError:
            pass
    assert loaded <= 10, "only a cut at a section's border leaves a module"


def test_the_offset_is_one_of_the_module_as_it_was_given(host):
    """Not of the rewritten one, whose data is gone and whose exports are more."""
    text = module(
        (1, b"\1\x60\0\0"),
        (3, b"\1\0"),
        (5, b"\1\0\1"),
        (10, b"\1\4\0\x41\0\x0b"),
        (11, b"\1\0\x41\0\x0b\x40" + b"x" * 64),
    )
    with pytest.raises(sandhost.ModuleError) as caught:
        host.load(text)
    assert caught.value.offset == text.index(b"\1\4\0\x41\0\x0b") + 5


# ---- features ----


def test_an_imported_memory_lives_in_a_region(host):
    plugin = host.load(guest_file("imported_memory"))
    with plugin.spawn() as one, plugin.spawn() as two:
        assert host.stats().regions_live == 2
        assert one.memory.size == 65536
        one.call("poke", 60000, 7)
        assert two.call("peek", 60000) == 0


def test_several_memories_each_have_a_region(host):
    with host.load(guest_file("multi_memory")).spawn() as guest:
        assert host.stats().regions_live == 3
        assert guest.memory_at(2).read(16, 5) == b"third"


def test_more_memories_than_a_guest_may_have_are_refused_by_count(host):
    host.load(b"(module " + b"(memory 1)" * 16 + b")").spawn().close()
    with pytest.raises(sandhost.ModuleError, match="16 memories"):
        host.load(b"(module " + b"(memory 1)" * 17 + b")")


def test_exceptions_are_caught_inside_and_trap_outside(host):
    plugin = host.load(guest_file("exceptions"))
    with plugin.spawn() as guest:
        for k in range(100):
            assert guest.call("catch", k) == k + 1
        for _ in range(100):
            with pytest.raises(sandhost.SandhostError) as caught:
                guest.call("throw_uncaught", 3)
            assert isinstance(caught.value, sandhost.GuestError)
        assert guest.memory.read(0, 4) == b"data"


def test_exceptions_beside_an_empty_memory_work_or_are_refused_by_name(host):
    text = b"""(module (tag $e (param i32)) (memory (export "memory") 0 4)
        (func (export "grow") (result i32) (memory.grow (i32.const 1)))
        (func (export "f") (result i32)
          (block $c (result i32) (try_table (catch $e $c) (throw $e (i32.const 7))) (unreachable))))"""
    try:
        guest = host.load(text).spawn()
    except sandhost.ModuleError as error:
        assert "exceptions" in str(error)
        return
    with guest:
        assert guest.call("f") == 7
        assert guest.call("grow") == 0
        assert guest.memory.read(0, 4) == bytes(4)


def test_a_data_segment_out_of_bounds_fails_the_spawn_as_a_trap_and_leaves_no_byte(any_host):
    for name in ("oob_data", "oob_data_empty", "oob_elem"):
        plugin = any_host.load(guest_file(name))
        for _ in range(5):
            with pytest.raises(sandhost.GuestTrap) as caught:
                plugin.spawn()
            assert "out_of_bounds" in caught.value.code
    secrets = any_host.load(guest_file("secrets"))
    for _ in range(5):
        with secrets.spawn() as guest:
            assert guest.call("scan", 0) == 0


def test_lifted_data_acts_as_data_that_was_dropped(host):
    with host.load(guest_file("passive")).spawn() as guest:
        assert guest.memory.read(0, 6) == b"before"
        assert guest.memory.read(16, 5) == b"after"
        guest.call("init", 100, 0, 13)
        assert guest.memory.read(100, 13) == b"passive bytes"
        guest.call("init_active", 0, 0)
        with pytest.raises(sandhost.GuestTrap):
            guest.call("init_active", 0, 1)
        guest.call("drop")
        with pytest.raises(sandhost.GuestTrap):
            guest.call("init", 100, 0, 1)


@pytest.mark.parametrize(
    "memory", ["65537", "i64 65537", "i64 0x1000000000000", "0x10000000000000000"]
)
def test_a_memory_that_no_region_holds_is_refused(host, memory):
    with pytest.raises(sandhost.SandhostError):
        host.load(f"(module (memory {memory}))".encode()).spawn().close()
    balanced(host)


def test_a_module_of_its_largest_memory_spawns_and_costs_nothing_resident(host):
    plugin = host.load(b'(module (memory (export "m") 65536))')
    with plugin.spawn(limits=sandhost.Limits(memory=None)) as guest:
        assert guest.memory.size == 2**32
        guest.memory.write(-4, b"last")
        assert guest.memory.read(2**32 - 4, 4) == b"last"
        with pytest.raises(sandhost.OutOfBounds):
            guest.memory.read(-4, 5)


# ---- the compile cache ----


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SANDHOST_CACHE_DIR", str(folder))
    return folder


def load_cached(name="add", **options):
    """Load through the cache of a host of its own; return what its cache counted."""
    with sandhost.Host(max_guests=4) as host:
        with host.load(guest_file(name), **options).spawn() as guest:
            assert guest.call("add", 2, 3) == 5
        assert host.loader.cache is not None
        return host.loader.cache.stats()


def test_the_second_load_is_a_hit(cache):
    assert (load_cached().misses, load_cached().hits) == (1, 1)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in cache.iterdir())


def test_other_settings_and_other_modules_are_other_entries(cache):
    load_cached()
    assert load_cached(fuel=True).misses == 1
    assert load_cached("bench").misses == 2, "the binary of a long text is kept, too"
    assert load_cached().hits == 1


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "garbage"])
def test_a_damaged_entry_is_compiled_anew_and_never_run(cache, damage):
    load_cached()
    (artifact,) = cache.glob("*.cwasm")
    data = bytearray(artifact.read_bytes())
    if damage == "truncate":
        del data[len(data) // 2 :]
    elif damage == "flip":
        data[len(data) // 2] ^= 0x40
    else:
        data = bytearray() if damage == "empty" else bytearray(os.urandom(len(data)))
    artifact.write_bytes(data)
    stats = load_cached()
    assert (stats.corrupt, stats.hits) == (1, 0)
    assert load_cached().hits == 1


def test_a_directory_that_cannot_be_written_is_no_reason_to_fail(tmp_path, monkeypatch):
    monkeypatch.setenv("SANDHOST_CACHE_DIR", "/proc/sandhost-cache")
    load_cached()
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("SANDHOST_CACHE_DIR", str(file))
    load_cached()


def load_text(text):
    """Load through the cache of a host of its own; return hits, misses and what was found damaged."""
    with sandhost.Host(max_guests=4) as host:
        assert host.load(text).call("f399") == 399
        assert host.loader.cache is not None
        stats = host.loader.cache.stats()
        return stats.hits, stats.misses, stats.corrupt


def test_a_long_text_is_assembled_once_and_again_when_what_came_of_it_is_damaged(cache):
    functions = (f'(func (export "f{i}") (result i32) (i32.const {i}))' for i in range(400))
    text = f"(module {' '.join(functions)} (; {'.' * 32768} ;))".encode()
    other = text.replace(b"...", b"..,", 1)
    assert load_text(text) == (0, 2, 0), "neither the binary nor the code is there"
    assert load_text(text) == (2, 0, 0)
    assert load_text(other) == (1, 1, 0), "another binary for all that is known, and the same code"
    for artifact in cache.glob("*.cwasm"):
        if artifact.read_bytes().startswith(b"\0asm"):
            artifact.write_bytes(artifact.read_bytes()[:-7])
    assert load_text(text) == (1, 1, 1)
    assert load_text(text) == (2, 0, 0)


def test_a_directory_that_others_can_write_is_not_trusted(cache):
    load_cached()
    cache.chmod(0o777)
    stats = load_cached()
    assert (stats.hits, stats.refused > 0) == (0, True)


def test_many_processes_at_once_share_one_directory(cache):
    program = """
        import subprocess, sys
        def load():
            with sandhost.Host(max_guests=4) as host:
                for _ in range(20):
                    with host.load(guest_file("add")).spawn() as guest:
                        assert guest.call("add", 2, 3) == 5
        if len(sys.argv) == 1:
            import os
            children = []
            for _ in range(4):
                child = os.fork()
                if not child:
                    load()
                    os._exit(0)
                children.append(child)
            assert [os.waitpid(c, 0)[1] for c in children] == [0] * 4
    """
    run_cleanly(program, env={"SANDHOST_CACHE_DIR": str(cache)})
    assert len(list(cache.glob("*.entry"))) == 1
    assert load_cached().hits == 1


def test_many_threads_load_at_once(host):
    from helpers import Background

    def load(number):
        text = f'(module (func (export "n") (result i32) (i32.const {number % 3})))'
        with host.load(text.encode()).spawn() as guest:
            return guest.call("n")

    loads = [Background(load, n) for n in range(24)]
    assert [one.result() for one in loads] == [n % 3 for n in range(24)]
