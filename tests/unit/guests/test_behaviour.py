"""Each guest does what its first line says, which the rest of the tests lean on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import wasmtime
from helpers.guest_sources import GUESTS, WAT_NAMES, Running, build, host_part, needs, wasm_of

FAILS_TO_START = {
    "oob_data": "out of bounds memory access",
    "oob_data_empty": "out of bounds memory access",
    "oob_elem": "out of bounds table access",
    "shared_memory": "shared memory support is disabled",
    "start_spin": "all fuel consumed",
    "start_trap": "unreachable",
}


@pytest.mark.parametrize("name", WAT_NAMES)
def test_every_text_guest_starts_or_fails_as_it_is_meant_to(
    name: str, engine: wasmtime.Engine
) -> None:
    store = wasmtime.Store(engine)
    store.set_fuel(10_000_000)
    module = wasmtime.Module(engine, wasm_of(name))
    imports = [host_part(store, wanted) for wanted in module.imports]
    if name in FAILS_TO_START:
        with pytest.raises((wasmtime.WasmtimeError, wasmtime.Trap), match=FAILS_TO_START[name]):
            wasmtime.Instance(store, module, imports)
    else:
        wasmtime.Instance(store, module, imports)


@pytest.mark.parametrize("name", ["imported_global", "imported_memory", "imported_table"])
def test_a_guest_with_imports_does_not_start_without_them(
    name: str, engine: wasmtime.Engine
) -> None:
    with pytest.raises(wasmtime.WasmtimeError, match="unknown import"):
        Running(engine, name)


@pytest.mark.parametrize("name", sorted(build.all_guests()))
def test_the_first_line_of_a_source_names_the_guest_and_its_behaviour(name: str) -> None:
    guest = build.all_guests()[name]
    first_line = (GUESTS / guest.source).read_text(encoding="utf-8").partition("\n")[0]
    opening = {"wat": ";; ", "c": "/* ", "go": "// ", "js": "/* "}[guest.kind]
    assert first_line.startswith(f"{opening}{name}: ")
    assert guest.behaviour().endswith(".")


def test_bench_counts_its_data_and_dirties_what_it_is_told(engine: wasmtime.Engine) -> None:
    guest = Running(engine, "bench")
    data = "".join(hashlib.sha256(str(i).encode()).hexdigest() for i in range(1024)).encode()
    checksum = 2166136261
    for start in range(0, len(data), 4):
        checksum = (checksum ^ int.from_bytes(data[start : start + 4], "little")) * 16777619 % 2**32
    assert guest.sum() % 2**32 == checksum

    guest.dirty(3)
    guest.dirty_data(2)
    before, after = data + bytes(2**20), bytes(guest.memory.read(guest.store))
    dirtied = [address for address in range(len(before)) if before[address] != after[address]]
    assert dirtied == [0, 4096, 65536, 65536 + 4096, 65536 + 8192]
    guest.dirty(256)
    with pytest.raises(wasmtime.Trap, match="out of bounds"):
        guest.dirty(257)


def test_secrets_finds_each_byte_that_differs(engine: wasmtime.Engine) -> None:
    guest = Running(engine, "secrets")
    assert guest.scan(0) == 0
    guest.write(0x5A)
    assert (guest.scan(0x5A), guest.scan(0)) == (0, 4 * 65536)
    assert guest.grow(1) == 4
    assert guest.scan(0) == 4 * 65536


def test_an_exception_is_caught_inside_or_ends_the_call(engine: wasmtime.Engine) -> None:
    guest = Running(engine, "exceptions")
    assert guest.catch(41) == 42
    with pytest.raises(wasmtime.Trap, match="thrown Wasm exception"):
        guest.throw_uncaught(1)


def test_every_hostile_name_leads_to_the_function(engine: wasmtime.Engine) -> None:
    guest = Running(engine, "hostile_names")
    names = [
        export.name for export in guest.module.exports if isinstance(export.type, wasmtime.FuncType)
    ]
    assert {"", "__class__", "a" * 4096, "nul\0byte"} <= set(names)
    answers = {name: guest.__getattr__(name)() for name in names if not name.startswith("trap")}
    assert set(answers.values()) == {1}


def test_imported_data_is_placed_where_the_host_says(engine: wasmtime.Engine) -> None:
    store = wasmtime.Store(engine)
    store.set_fuel(1000)
    module = wasmtime.Module(engine, wasm_of("imported_global"))
    exports = wasmtime.Instance(store, module, [host_part(store, module.imports[0])]).exports(store)
    peek = exports["peek"]
    assert isinstance(peek, wasmtime.Func)
    assert bytes(peek(store, 40 + i) for i in range(6)) == b"placed"


# C guests, from built/, so that they are proved where Zig is missing


def test_wordcount_counts_and_ranks_words(engine: wasmtime.Engine) -> None:
    guest = Running(engine, "wordcount")
    guest._initialize()
    text = "The cat, the dog; THE caf\u00e9 \u2014 cat 42".encode()
    address = guest.put(text)
    assert guest.count_words(address, len(text)) == 9  # the dash is bytes from 128 on
    assert guest.take(guest.top_words(address, len(text), 2)) == b"3 the\n2 cat\n"
    guest.uppercase(address, len(text))
    assert bytes(guest.memory.read(guest.store, address, address + 8)) == b"THE CAT,"
    assert guest.take(guest.top_words(address, 0, 5)) == b""


def test_wordcount_keeps_count_of_more_words_than_its_first_table_holds(
    engine: wasmtime.Engine,
) -> None:
    guest = Running(engine, "wordcount")
    text = b" ".join(b"w%d" % (i % 1000) for i in range(1500))
    lines = guest.take(guest.top_words(guest.put(text), len(text), 2000)).decode().splitlines()
    assert lines == [f"2 w{i}" for i in range(500)] + [f"1 w{i}" for i in range(500, 1000)]


def test_blur_averages_and_leaves_a_plain_picture_alone(engine: wasmtime.Engine) -> None:
    guest = Running(engine, "blur")
    guest._initialize()
    plain = bytes([10, 20, 30, 255]) * 12
    address = guest.put(plain)
    assert guest.blur(address, 4, 3, 2) == 0
    assert bytes(guest.memory.read(guest.store, address, address + len(plain))) == plain

    point = bytes([0] * 16 + [90] * 4 + [0] * 16)  # 3 by 3, a bright pixel in the middle
    address = guest.put(point)
    assert guest.blur(address, 3, 3, 1) == 0
    assert bytes(guest.memory.read(guest.store, address, address + len(point))) == bytes([10]) * 36
    assert [
        guest.blur(address, 0, 3, 1),
        guest.blur(address, 3, 3, 0),
        guest.blur(address, 16385, 1, 1),
    ] == [1, 1, 1]


def run_command(
    engine: wasmtime.Engine, folder: Path, name: str, *arguments: str, stdin: bytes = b""
) -> tuple[int, str, str]:
    """Run a command with `folder` opened as /; returns status, standard output and standard error."""
    streams = {stream: folder.parent / f"{name}.{stream}" for stream in ("in", "out", "err")}
    streams["in"].write_bytes(stdin)
    wasi = wasmtime.WasiConfig()
    wasi.argv = [name, *arguments]
    wasi.env = [("COLOUR", "blue")]
    wasi.stdin_file = str(streams["in"])
    wasi.stdout_file = str(streams["out"])
    wasi.stderr_file = str(streams["err"])
    wasi.preopen_dir(str(folder), "/")
    store = wasmtime.Store(engine)
    store.set_fuel(10_000_000)
    store.set_wasi(wasi)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    start = linker.instantiate(store, wasmtime.Module(engine, wasm_of(name))).exports(store)[
        "_start"
    ]
    assert isinstance(start, wasmtime.Func)
    status = 0
    try:
        start(store)
    except wasmtime.ExitTrap as end:
        status = end.code
    store.close()
    return status, streams["out"].read_text(), streams["err"].read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    opened = tmp_path / "opened"
    opened.mkdir()
    return opened


def test_echo_gives_back_all_it_gets(engine: wasmtime.Engine, folder: Path) -> None:
    status, out, error = run_command(engine, folder, "echo", "one", "7", stdin=b"line\n" * 2000)
    assert status == 7
    assert out == "arg echo\narg one\narg 7\nenv COLOUR=blue\n" + "line\n" * 2000
    assert error == "echo: input ended\n"


def test_files_reads_writes_and_lists_what_is_opened_to_it(
    engine: wasmtime.Engine, folder: Path
) -> None:
    assert run_command(engine, folder, "files", "write", "/new.txt", "text") == (0, "", "")
    assert (folder / "new.txt").read_text() == "text"
    assert run_command(engine, folder, "files", "read", "/new.txt") == (0, "text", "")
    assert run_command(engine, folder, "files", "list", "/") == (0, "new.txt\n", "")
    (folder.parent / "outside").write_text("not yours")
    status, out, error = run_command(engine, folder, "files", "read", "/../outside")
    assert (status, out) == (1, "")
    assert error.startswith("files: open /../outside: errno ")
    assert run_command(engine, folder, "files")[0] == 2


def test_sleeper_sleeps_and_says_so(engine: wasmtime.Engine, folder: Path) -> None:
    assert run_command(engine, folder, "sleeper", "1") == (0, "slept\n", "")


def test_tokenize_splits_and_greets(engine: wasmtime.Engine) -> None:
    needs("go")
    guest = Running(engine, "tokenize")
    guest._initialize()
    assert guest.add(2, 3) == 5
    assert [guest.remember(guest.put(word), 1) for word in (b"a", b"b", b"a")] == [1, 1, 2]
    for function, text, expected in [
        ("greet", "Zo\u00eb", "Hello, Zo\u00eb!"),
        ("tokenize", "H\u00e9llo, World! 42 \u2014 ok", "h\u00e9llo\nworld\n42\nok"),
        ("tokenize", "", ""),
    ]:
        data = text.encode()
        assert (
            guest.take(guest.__getattr__(function)(guest.put(data), len(data))).decode() == expected
        )
