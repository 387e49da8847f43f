"""Random modules against a model and wasmtime, and broken modules against the parser's patience."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pytest
import wasmtime
from helpers import examples
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import sandhost
from sandhost.errors import ModuleError
from sandhost.modules import leb
from sandhost.modules.compiled import compile_module
from sandhost.modules.rewrite import memory_export, rewrite

Exports = Mapping[str, object]

PAGE = 65536
BASE = 40  # value of the imported global


@dataclass(frozen=True)
class Memory:
    pages: int
    page_size: int
    is64: bool
    imported: bool

    @property
    def size(self) -> int:
        return self.pages * self.page_size

    @property
    def type(self) -> str:
        custom = "" if self.page_size == PAGE else f" (pagesize {self.page_size})"
        return f"{'i64 ' if self.is64 else ''}{self.pages}{custom}"


@dataclass(frozen=True)
class Segment:
    memory: int
    offset: int
    data: bytes
    form: str  # "const", "sum", "global", "imported", "passive"


memories_strategy = st.lists(
    st.builds(
        Memory,
        pages=st.integers(0, 2),
        page_size=st.sampled_from([PAGE, PAGE, 1]),
        is64=st.booleans(),
        imported=st.booleans(),
    ).map(lambda m: Memory(m.pages * 50, 1, m.is64, m.imported) if m.page_size == 1 else m),
    min_size=1,
    max_size=3,
).map(lambda memories: sorted(memories, key=lambda memory: not memory.imported))


@st.composite
def modules(draw: st.DrawFn) -> tuple[list[Memory], list[Segment]]:
    memories = draw(memories_strategy)
    segments = []
    for _ in range(draw(st.integers(0, 8))):
        memory = draw(st.integers(0, len(memories) - 1))
        size = memories[memory].size
        data = draw(st.binary(max_size=40))
        near_the_end = st.integers(
            max(0, size - 45), size - len(data) + (draw(st.integers(0, 9)) > 8)
        )
        anywhere = st.integers(0, 90) | (near_the_end if size >= 45 else st.nothing())
        segments.append(
            Segment(
                memory,
                draw(anywhere if size > 45 else st.integers(0, 50)),
                data,
                draw(st.sampled_from(["const"] * 4 + ["sum", "global", "imported", "passive"])),
            )
        )
    return memories, segments


def text_of(memories: list[Memory], segments: list[Segment]) -> str:
    lines = [
        '(import "env" "base32" (global $base32 i32))(import "env" "base64" (global $base64 i64))'
    ]
    lines += [
        f'(import "env" "memory" (memory {memory.type}))' for memory in memories if memory.imported
    ]
    lines += [f"(memory {memory.type})" for memory in memories if not memory.imported]
    lines += [f'(export "m{index}" (memory {index}))' for index in range(len(memories))]
    for number, segment in enumerate(segments):
        data = "".join(f"\\{byte:02x}" for byte in segment.data)
        if segment.form == "passive":
            lines.append(f'(data "{data}")')
            continue
        width = 64 if memories[segment.memory].is64 else 32
        if segment.form == "const":
            offset = f"(i{width}.const {segment.offset})"
        elif segment.form == "sum":
            offset = f"(i{width}.add (i{width}.const {segment.offset - 7}) (i{width}.const 7))"
        elif segment.form == "global":
            lines.append(f"(global $g{number} i{width} (i{width}.const {segment.offset}))")
            offset = f"(global.get $g{number})"
        else:
            offset = f"(global.get $base{width})"
        lines.append(f'(data (memory {segment.memory}) (offset {offset}) "{data}")')
    return "(module\n" + "\n".join(lines) + ")"


@pytest.fixture(scope="module")
def engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.wasm_custom_page_sizes = True
    config.wasm_memory64 = True
    config.wasm_multi_memory = True
    return wasmtime.Engine(config)


@pytest.fixture(scope="module")
def native_host() -> Iterator[Any]:
    with sandhost.Host(cache=False) as host:
        yield host.native


def instantiate(
    engine: wasmtime.Engine, wasm: bytes, memories: list[Memory]
) -> tuple[wasmtime.Store, Exports] | None:
    """Return a running instance, None when it trapped."""
    store = wasmtime.Store(engine)
    module = wasmtime.Module(engine, wasm)
    given: list[wasmtime.Global | wasmtime.Memory] = []
    for wanted in module.imports:
        if wanted.name == "base32":
            kind = wasmtime.GlobalType(wasmtime.ValType.i32(), False)
            given.append(wasmtime.Global(store, kind, wasmtime.Val.i32(BASE)))
        elif wanted.name == "base64":
            kind = wasmtime.GlobalType(wasmtime.ValType.i64(), False)
            given.append(wasmtime.Global(store, kind, wasmtime.Val.i64(BASE)))
        else:
            assert isinstance(wanted.type, wasmtime.MemoryType)
            given.append(wasmtime.Memory(store, wanted.type))
    try:
        return store, cast("Exports", wasmtime.Instance(store, module, given).exports(store))
    except wasmtime.Trap as trap:
        if trap.trap_code != wasmtime.TrapCode.MEMORY_OUT_OF_BOUNDS:
            raise
        return None


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(modules())
def test_image_and_remaining_segments_make_the_original_memory(
    engine: wasmtime.Engine, drawn: tuple[list[Memory], list[Segment]]
) -> None:
    memories, segments = drawn
    wasm = bytes(wasmtime.wat2wasm(text_of(memories, segments)))
    rewritten = rewrite(wasm)
    original = instantiate(engine, wasm, memories)
    twin = instantiate(engine, rewritten.wasm, memories)

    # The naive model: apply in order, and say what may be lifted.
    whole = [bytearray(memory.size) for memory in memories]
    lifted = [bytearray(memory.size) for memory in memories]
    rest = [bytearray(memory.size) for memory in memories]
    closed = [False] * len(memories)
    traps = False
    for segment in segments:
        if segment.form == "passive":
            continue
        offset = BASE if segment.form == "imported" else segment.offset
        end = offset + len(segment.data)
        if end > memories[segment.memory].size:
            traps = closed[segment.memory] = True
            break
        closed[segment.memory] |= segment.form == "imported"
        part = rest if closed[segment.memory] else lifted
        whole[segment.memory][offset:end] = part[segment.memory][offset:end] = segment.data

    assert (original is None) == (twin is None) == traps
    if original is None or twin is None:
        return
    assert rewritten.out_of_bounds is None
    for index in range(len(memories)):
        for (store, exports), expected in ((original, whole), (twin, rest)):
            memory = exports[f"m{index}"]
            assert isinstance(memory, wasmtime.Memory)
            assert memory.read(store) == expected[index]
        assert isinstance(twin[1][memory_export(index)], wasmtime.Memory)
        written = bytearray(memories[index].size)
        image = rewritten.images[index]
        if image is not None:
            image.write_to(memoryview(written))
            assert 0 < image.length <= memories[index].size
        assert written == lifted[index]


SAMPLE = bytes(
    wasmtime.wat2wasm(
        """(module $sample
          (type $t (func (param i32 i64 f32 f64 v128 externref (ref null $t)) (result i32)))
          (import "env" "f" (func $f (type $t)))
          (import "env" "t" (table 1 funcref))
          (import "env" "memory" (memory 1 4))
          (import "env" "g" (global $g i32))
          (tag $e (param i32))
          (import "env" "e" (tag (param i64)))
          (table 2 (ref null func) (ref.null func))
          (memory 1) (memory i64 1 2)
          (global (mut i32) (i32.add (i32.const 1) (i32.const -70000)))
          (global v128 (v128.const i64x2 1 2))
          (global f64 (f64.const 1)) (global f32 (f32.const 1)) (global funcref (ref.func $f))
          (export "a" (memory 0)) (export "b" (func $s)) (export "c" (global 1))
          (export "d" (tag 0))
          (func $s (memory.init 1 (i32.const 0) (i32.const 0) (i32.const 0)))
          (start $s)
          (elem (table 0) (i32.const 0) func $s $s)
          (data (i32.const 200) "some bytes") (data "passive") (data (global.get $g) "late")
          (data (memory 1) (offset (i32.sub (i32.const 300) (i32.const 5))) "more")
          (data (memory 2) (i64.const 1) "64"))"""
    )
)


def refuse_or_rewrite(wasm: bytes) -> None:
    refused = None
    try:
        rewritten = rewrite(wasm)
    except ModuleError as error:
        refused = error
    if refused is not None:
        assert refused.offset is None or 0 <= refused.offset <= len(wasm)
        assert str(refused)
        return
    assert len(rewritten.images) == len(rewritten.memories)
    state = rewritten.state
    added = (rewritten.memories, state.globals, state.tables, state.functions, state.segments * 4)
    assert len(rewritten.wasm) < len(wasm) + 200 + 64 * sum(map(len, added))
    for image, memory in zip(rewritten.images, rewritten.memories, strict=True):
        assert image is None or image.length <= memory.minimum_bytes


def test_the_sample_is_accepted() -> None:
    assert rewrite(SAMPLE).images != (None, None, None)


@pytest.mark.parametrize("length", range(len(SAMPLE)))
def test_a_truncated_module_is_refused_or_read(length: int) -> None:
    refuse_or_rewrite(SAMPLE[:length])


@settings(max_examples=examples(1500), deadline=None)
@given(st.data())
def test_a_mutated_module_is_refused_or_read(data: st.DataObject) -> None:
    wasm = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(8, len(wasm) - 1))
        kind = data.draw(st.sampled_from(["set", "insert", "delete", "huge"]))
        if kind == "set":
            wasm[position] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            wasm[position:position] = data.draw(st.binary(min_size=1, max_size=6))
        elif kind == "huge":
            wasm[position : position + 1] = b"\xff\xff\xff\xff\x0f"
        else:
            del wasm[position : position + data.draw(st.integers(1, 4))]
        if len(wasm) < 10:
            break
    refuse_or_rewrite(bytes(wasm))


@settings(max_examples=examples(500), deadline=None)
@given(st.binary(max_size=200), st.integers(0, 14))
@example(b"\xff\xff\xff\xff\x0f", 1)
@example(b"\xff\xff\xff\xff\x0f", 11)
@example(b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80", 3)
def test_any_section_contents_are_refused_or_read(payload: bytes, section_id: int) -> None:
    head = b"\0asm\1\0\0\0" + bytes([section_id])
    refuse_or_rewrite(head + leb.encode_unsigned(len(payload)) + payload)
    refuse_or_rewrite(head + payload)


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_what_wasmtime_refuses_is_not_compiled(
    engine: wasmtime.Engine, native_host: Any, data: st.DataObject
) -> None:
    """The rewrite may make it valid: an index that is one too high then names what it adds."""
    wasm = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 2))):
        wasm[data.draw(st.integers(8, len(wasm) - 1))] = data.draw(st.integers(0, 255))
    assume(not is_valid(engine, bytes(wasm)))
    with pytest.raises(ModuleError):
        compile_module(native_host, bytes(wasm), fuel=False, optimize=False, cache=None)


def is_valid(engine: wasmtime.Engine, wasm: bytes) -> bool:
    try:
        wasmtime.Module.validate(engine, wasm)
    except wasmtime.WasmtimeError:
        return False
    return True


def section(section_id: int, payload: bytes) -> bytes:
    return bytes([section_id]) + leb.encode_unsigned(len(payload)) + payload


def repeated(count: int, entry: bytes) -> bytes:
    return leb.encode_unsigned(count) + entry * count


COSTLY = {
    "sections": (b"\0\1\0" * 10_001, "more than 10000 sections"),
    "types": (section(1, repeated(2_000_000, b"\x60\0\0")), "above the limit"),
    "imports": (section(2, repeated(100_001, b"\0\0\3\x7f\0")), "above the limit"),
    "globals": (section(6, repeated(100_001, b"\x7f\1\x41\0\x0b")), "above the limit"),
    "memories": (section(5, repeated(101, b"\0\0")), "above the limit"),
    "segments": (section(11, repeated(100_001, b"\1\0")), "above the limit"),
    "operators": (
        section(6, b"\1\x7f\0" + b"\x41\0" * 1_000_001 + b"\x0b"),
        "more than 1000000 constant operators",
    ),
    "parameters": (section(1, b"\1\x60" + repeated(1001, b"\x7f") + b"\0"), "above the limit"),
    "a count beyond the bytes": (section(5, b"\x0a\0\0"), "10 entries cannot fit into 2 bytes"),
}


@pytest.mark.parametrize(("sections", "reason"), COSTLY.values(), ids=COSTLY.keys())
def test_what_would_cost_far_more_than_its_length_is_refused(sections: bytes, reason: str) -> None:
    with pytest.raises(ModuleError, match=reason):
        rewrite(b"\0asm\1\0\0\0" + sections)


@given(st.integers(0, 2**64 - 1))
def test_unsigned_integers_survive_the_round_trip(value: int) -> None:
    encoded = leb.encode_unsigned(value)
    assert leb.read_unsigned(encoded, 0, len(encoded), 64) == (value, len(encoded))


@pytest.mark.parametrize(
    ("encoded", "bits", "value"),
    [
        (b"\x7f", 32, -1),
        (b"\x80\x7f", 32, -128),
        (b"\xff\x00", 32, 127),
        (b"\x80\x80\x80\x80\x78", 32, -(2**31)),
        (b"\xff\xff\xff\xff\x07", 32, 2**31 - 1),
        (b"\xff\xff\xff\xff\x7f", 32, -1),
        (b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x7f", 64, -(2**63)),
    ],
)
def test_signed_integers_are_read(encoded: bytes, bits: int, value: int) -> None:
    assert leb.read_signed(encoded, 0, len(encoded), bits) == (value, len(encoded))


@pytest.mark.parametrize(
    ("encoded", "bits", "signed"),
    [
        (b"", 32, False),
        (b"\x80", 32, False),
        (b"\xff\xff\xff\xff\x1f", 32, False),
        (b"\x80\x80\x80\x80\x80\x00", 32, False),
        (b"\xff\xff\xff\xff\x0f", 32, True),
        (b"\x80\x80\x80\x80\x70", 32, True),
        (b"\x80\x80\x80\x80\x80\x7f", 32, True),
        (b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x02", 64, False),
    ],
)
def test_integers_that_do_not_fit_are_refused(encoded: bytes, bits: int, signed: bool) -> None:
    read = leb.read_signed if signed else leb.read_unsigned
    with pytest.raises(ModuleError):
        read(encoded, 0, len(encoded), bits)
