"""What is read out of a module."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import wasmtime

from sandhost._log import get_logger
from sandhost.errors import ModuleError
from sandhost.modules.describe import DataSummary, describe
from sandhost.modules.types import (
    Export,
    FuncType,
    GlobalType,
    Import,
    MemoryType,
    TableType,
    TagType,
)

EVERYTHING = """(module $sample
  (type $t (func (param i32 i64 f32 f64 v128 externref funcref (ref null $t) (ref $t) (ref func))
    (result i32 exnref)))
  (import "wasi_snapshot_preview1" "fd_write" (func (param i32) (result i32)))
  (import "env" "t" (table 1 2 externref))
  (import "env" "m" (memory 1 4))
  (import "env" "g" (global (mut i64)))
  (import "env" "e" (tag (param i32 f32)))
  (table i64 5 funcref)
  (memory i64 3)
  (memory 100 200 (pagesize 1))
  (global (mut f32) (f32.const 1)) (global i32 (i32.const 1))
  (func $f (type $t) unreachable)
  (func $go)
  (start $go)
  (export "f" (func $f)) (export "mem" (memory 2)) (export "tab" (table 1))
  (export "glob" (global 1)) (export "tag" (tag 0))
  (data (i32.const 0) "12345") (data "123") (data (memory 1) (i64.const 0) "12"))"""


def test_everything_is_described() -> None:
    wasm = bytes(wasmtime.wat2wasm(EVERYTHING))
    info = describe(wasm)
    imported = MemoryType(1, 4, 65536, is64=False, shared=False, imported=True)
    table, tag = TableType("externref", 1, 2, is64=False), TagType(("i32", "f32"))
    assert info.imports == (
        Import("wasi_snapshot_preview1", "fd_write", "func", FuncType(("i32",), ("i32",))),
        Import("env", "t", "table", table),
        Import("env", "m", "memory", imported),
        Import("env", "g", "global", GlobalType("i64", mutable=True)),
        Import("env", "e", "tag", tag),
    )
    function = FuncType(
        (
            *("i32", "i64", "f32", "f64", "v128", "externref", "funcref"),
            *("(ref null 0)", "(ref 0)", "(ref func)"),
        ),
        ("i32", "exnref"),
    )
    bytewise = MemoryType(100, 200, 1, is64=False, shared=False, imported=False)
    own_table = TableType("funcref", 5, None, is64=True)
    assert info.exports == (
        Export("f", "func", function, 1),
        Export("mem", "memory", bytewise, 2),
        Export("tab", "table", own_table, 1),
        Export("glob", "global", GlobalType("f32", mutable=True), 1),
        Export("tag", "tag", tag, 0),
    )
    assert info.memories == (
        imported,
        MemoryType(3, None, 65536, is64=True, shared=False, imported=False),
        bytewise,
    )
    assert info.tables == (table, own_table)
    assert info.data == DataSummary(2, 7, 1, 3)
    assert (info.name, info.size, info.functions, info.mutable_globals) == (
        "sample",
        len(wasm),
        3,
        1,
    )
    assert (info.start, info.has_wasi) == (2, True)
    assert [section.name for section in info.custom_sections] == ["name"]
    assert info.function("f") == function
    assert info.function("mem") is None
    assert (bytewise.minimum_bytes, bytewise.maximum_bytes) == (100, 200)
    assert info.memories[1].maximum_bytes is None
    assert str(FuncType(("i32", "f64"), ("i64",))) == "(i32, f64) -> (i64)"


def test_an_empty_module_is_described() -> None:
    info = describe(b"\0asm\1\0\0\0")
    assert (info.imports, info.exports, info.memories, info.name) == ((), (), (), None)
    assert not info.has_wasi


def test_a_broken_name_section_gives_no_name() -> None:
    assert describe(b"\0asm\1\0\0\0" + b"\0\x09\4name\0\x05\x7fa").name is None


@pytest.mark.parametrize(
    ("wasm", "reason", "offset"),
    [
        (b"", "no WebAssembly module", 0),
        (b"\x7fELF", "no WebAssembly module", 0),
        (b"  (module)", "WebAssembly text", 0),
        (b"\0asm", "unknown WebAssembly version nothing", 4),
        (b"\0asm\2\0\0\0", "unknown WebAssembly version 02000000", 4),
        (b"\0asm\x0d\0\1\0", "component", 4),
        (b"\0asm\1\0\0\0\x63\0", "unknown section id 99", 8),
        (b"\0asm\1\0\0\0\1\5", "type section announces 5 bytes, 0 are left", 8),
        (b"\0asm\1\0\0\0\3\1\0\1\1\0", "the type section is repeated or out of order", 11),
        (b"\0asm\1\0\0\0\5\4\1\0\1\0", "memory section: 1 bytes follow", 13),
        (b"\0asm\1\0\0\0\5\3\1\x10\1", "unknown memory flags 0x10", 11),
        (b"\0asm\1\0\0\0\5\4\1\x08\1\3", "page size of 2", 13),
        (b"\0asm\1\0\0\0\2\7\1\1a\1b\x7f\0", "import 'a' 'b' is of unknown kind 0x7f", 15),
        (b"\0asm\1\0\0\0\7\5\1\1a\2\0", "export 'a' is memory 0, the module has 0", 11),
        (b"\0asm\1\0\0\0\7\5\1\1\xff\2\0", "not UTF-8", 12),
        (b"\0asm\1\0\0\0\3\2\1\0", "type 0 is used, the module has 0", 11),
    ],
)  # fmt: skip
def test_errors_say_what_and_where(wasm: bytes, reason: str, offset: int) -> None:
    with pytest.raises(ModuleError, match=reason) as caught:
        describe(wasm)
    assert caught.value.offset == offset


def test_loggers_are_silent_until_someone_listens() -> None:
    program = (
        "from sandhost._log import get_logger as get; get('sandhost.test').error('guest.closed');"
        "import logging; logging.basicConfig(); get('sandhost.test').error('guest.heard')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=os.sep,  # where no source folder shadows the installed package
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "ERROR:sandhost.test:guest.heard\n")


def test_records_show_their_fields_and_keep_them(caplog: pytest.LogCaptureFixture) -> None:
    log = get_logger("sandhost.test")
    with caplog.at_level(logging.INFO, "sandhost"):
        log.info("guest.closed", guest="100% %s", pages=3)
        log.debug("guest.detail")
    (record,) = caplog.records
    assert record.getMessage() == "guest.closed guest='100% %s' pages=3"
    assert vars(record)["pages"] == 3
    assert record.name == "sandhost.test"
