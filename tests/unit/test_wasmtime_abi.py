"""native/wasmtime_abi.h declares what the installed wasmtime's own ctypes declarations say.

Both sides are turned into *shapes*: nested tuples that tell what a call or a struct looks like to
the machine, and for pointers to what. What the wheel writes loosely is let pass: it cannot
tell a char's sign, and gives the pointers that callbacks return as size_t.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cffi
import pytest
from wasmtime import _bindings
from wasmtime import _ffi as wheel_constants

import sandhost._ffi

HEADER = Path(__file__).parents[2] / "native" / "wasmtime_abi.h"

LOOSE = {
    "wasmtime_val_raw_t": "wasmtime_val_raw",  # we name some of its members
    "wasmtime_extern_t": "wasmtime_extern",
    "wasmtime_val_t": "wasmtime_val",
    "wasmtime_memory_like_t": "wasmtime_memory",  # opaque; also global, table and tag
}
"""Structs and unions of which we name a part. All others are the same, field by field."""

ALIASES = dict.fromkeys(
    ("wasmtime_memory_like", "wasmtime_global", "wasmtime_table"), "wasmtime_memory"
)

CONSTANTS = {
    "WASMTIME_OPT_NONE": ("wasmtime_opt_level_enum", "WASMTIME_OPT_LEVEL_NONE"),
    "WASMTIME_OPT_SPEED": ("wasmtime_opt_level_enum", "WASMTIME_OPT_LEVEL_SPEED"),
}

UNNAMED = {"WASMTIME_EXNREF", "WASMTIME_UPDATE_DEADLINE_YIELD"}
"""Constants that only the C headers have."""

Shape = Any


# ---- our side: the header, read by cffi ----


def declarations(header: str) -> tuple[str, list[str]]:
    """The header as C that cffi reads, its table as prototypes, and the functions it names."""
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL).replace("\\\n", " ")
    (table,) = re.findall(r"#define SHI_WASMTIME_FUNCTIONS\(X\)(.*)", header)
    rows = re.findall(r"X\(\s*([\w\s*]+?)\s*,\s*(\w+)\s*,\s*(\(.*?\))\)\s*(?=X\(|$)", table)
    assert len(rows) == table.count("X(")
    prototypes = [f"{result} {name}{parameters};" for result, name, parameters in rows]
    plain = header.split("#define SHI_WASMTIME_FUNCTIONS", 1)[0]
    plain = re.sub(r"^#.*$", "", plain, flags=re.MULTILINE)
    return "\n".join([plain, *prototypes]), [name for _, name, _ in rows]


class Header:
    """What a text of the header declares."""

    def __init__(self, text: str) -> None:
        source, self.functions = declarations(text)
        self.ffi = cffi.FFI()
        self.ffi.cdef(source)
        self.library = self.ffi.dlopen(str(sandhost._ffi._library))
        self.structs = re.findall(r"^\} (\w+);", source, flags=re.MULTILINE)
        self.constants = {
            name: int(value)
            for enum in re.findall(r"enum \{(.*?)\};", source, flags=re.DOTALL)
            for name, value in re.findall(r"(\w+) = (\d+)", enum)
        }

    def function(self, name: str) -> Shape:
        return c_shape(self.ffi.typeof(getattr(self.library, name)))

    def struct(self, name: str) -> Any:
        return self.ffi.typeof(name)


def opaque(name: str) -> Shape:
    """A struct behind a pointer, by its name without what C adds."""
    name = re.sub(r"^(struct|union) ", "", name).removesuffix("_t")
    return ("struct", ALIASES.get(name, name))


def integer(ctype: str, size: int, *, signed: bool) -> Shape:
    return (
        ("char", 1) if size == 1 and ctype != "_Bool" else ("int", size, signed, ctype == "_Bool")
    )


def c_shape(ctype: Any) -> Shape:
    """The shape of a type as cffi knows it."""
    if ctype.kind == "void":
        return "void"
    if ctype.kind == "primitive":
        name = ctype.cname
        size = cffi.FFI().sizeof(name)
        if name in ("float", "double"):
            return ("float", size)
        return integer(name, size, signed=not re.match(r"u|size_t|_Bool", name))
    if ctype.kind == "pointer":
        if ctype.item.kind == "function":
            return c_shape(ctype.item)
        return ("pointer", c_shape(ctype.item))
    if ctype.kind == "array":
        return ("array", ctype.length, c_shape(ctype.item))
    if ctype.kind == "function":
        return ("function", c_shape(ctype.result), tuple(c_shape(one) for one in ctype.args))
    assert ctype.kind in ("struct", "union"), ctype
    return opaque(ctype.cname)


# ---- their side: ctypes ----

_SIGNED = (ctypes.c_int8, ctypes.c_int16, ctypes.c_int32, ctypes.c_int64, ctypes.c_ssize_t)


def ctypes_shape(ctype: Any) -> Shape:
    """The shape of a type as ctypes knows it."""
    if ctype is None:
        return "void"
    if ctype is ctypes.c_void_p:
        return ("pointer", "void")
    if ctype is ctypes.c_bool:
        return integer("_Bool", 1, signed=False)
    if ctype in (ctypes.c_float, ctypes.c_double):
        return ("float", ctypes.sizeof(ctype))
    if issubclass(ctype, ctypes._SimpleCData):
        return integer("", ctypes.sizeof(ctype), signed=ctype in _SIGNED)
    if issubclass(ctype, ctypes._Pointer):
        return ("pointer", ctypes_shape(ctype._type_))
    if issubclass(ctype, ctypes.Array):
        return ("array", ctype._length_, ctypes_shape(ctype._type_))
    if issubclass(ctype, ctypes._CFuncPtr):
        return function_shape(ctype._restype_, ctype._argtypes_)
    return opaque(ctype.__name__)


def function_shape(result: Any, arguments: Any) -> Shape:
    return ("function", ctypes_shape(result), tuple(ctypes_shape(one) for one in arguments))


def agree(ours: Shape, theirs: Shape, *, callback: bool = False) -> bool:
    """Whether two shapes are the same, as far as the wheel can say."""
    if isinstance(ours, tuple) and isinstance(theirs, tuple) and ours[0] == theirs[0] == "function":
        result = agree(ours[1], theirs[1])
        if callback and ours[1][0] == "pointer":  # ctypes cannot return pointers from callbacks
            result = theirs[1] == ("int", 8, False, False)
        return (
            result
            and len(ours[2]) == len(theirs[2])
            and all(agree(a, b, callback=True) for a, b in zip(ours[2], theirs[2], strict=True))
        )
    return bool(ours == theirs)


# ---- what differs ----


def differences(text: str) -> Iterator[str]:
    """Everything in which a text of the header differs from the wheel."""
    header = Header(text)
    for name in header.functions:
        theirs = getattr(_bindings, f"_{name}", None)
        if theirs is None:
            yield f"the wheel declares no {name}"
            continue
        shape = function_shape(theirs.restype, theirs.argtypes)
        if not agree(header.function(name), shape):
            yield f"{name}: {header.function(name)} here, {shape} there"
    for ours in set(header.structs) - LOOSE.keys():
        theirs = getattr(_bindings, ours, None) or getattr(_bindings, ours.removesuffix("_t"))
        mine = header.struct(ours)
        here = [(name, field.offset, c_shape(field.type)) for name, field in mine.fields]
        there = [
            (name, getattr(theirs, name).offset, ctypes_shape(kind))
            for name, kind in theirs._fields_
        ]
        same = len(here) == len(there) and all(
            a[:2] == b[:2] and agree(a[2], b[2], callback=True)
            for a, b in zip(here, there, strict=False)
        )
        if not same or header.ffi.sizeof(ours) != ctypes.sizeof(theirs):
            yield f"{ours}: {here} here, {there} there"
    for ours, theirs_name in LOOSE.items():
        theirs = getattr(_bindings, theirs_name)
        here = header.ffi.sizeof(ours), header.ffi.alignof(ours)
        there = ctypes.sizeof(theirs), ctypes.alignment(theirs)
        if here != there:
            yield f"{ours}: size and alignment {here} here, {there} there"
    yield from member_differences(header)
    yield from constant_differences(header)


def member_differences(header: Header) -> Iterator[str]:
    """The members that we name of structs and unions which we know in part."""
    there = dict(_bindings.wasmtime_val_raw._fields_)
    for name, field in header.struct("wasmtime_val_raw_t").fields:
        if field.offset or c_shape(field.type) != ctypes_shape(there[name]):
            yield f"wasmtime_val_raw_t.{name} differs"
    (kind, of) = (field for _, field in header.struct("wasmtime_extern_t").fields)
    theirs = _bindings.wasmtime_extern
    if (kind.offset, of.offset) != (theirs.kind.offset, theirs.of.offset):
        yield "wasmtime_extern_t: members are elsewhere"
    if c_shape(kind.type) != ctypes_shape(_bindings.wasmtime_extern_kind_t):
        yield "wasmtime_extern_t.kind differs"
    for other in ("wasmtime_global", "wasmtime_table", "wasmtime_tag"):
        if ctypes.sizeof(getattr(_bindings, other)) > header.ffi.sizeof("wasmtime_memory_like_t"):
            yield f"{other} is larger than wasmtime_memory_like_t"


def constant_differences(header: Header) -> Iterator[str]:
    """Constants, against those that the wheel names."""
    for name, value in header.constants.items():
        if name in UNNAMED:
            continue
        trap = name.replace("WASMTIME_TRAP_", "WASMTIME_TRAP_CODE_")
        if name in CONSTANTS:
            enum = getattr(_bindings, CONSTANTS[name][0])
            there = [member.name for member in enum].index(CONSTANTS[name][1])  # it counts from 1
        elif trap in _bindings.wasmtime_trap_code_enum.__members__:
            there = _bindings.wasmtime_trap_code_enum[trap].value
        else:
            newer = name.replace("WASM_", "WASMTIME_")  # wasm.h knows fewer types than wasmtime
            there = vars(wheel_constants).get(name, vars(wheel_constants).get(newer)).value
        if value != there:
            yield f"{name} is {value} here, {there} there"


# ---- tests ----


@pytest.fixture(scope="module")
def text() -> str:
    """The header as it stands."""
    return HEADER.read_text()


def test_the_header_equals_the_wheel(text: str) -> None:
    assert list(differences(text)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("X(void, wasmtime_module_delete, ", "X(int, wasmtime_module_delete, "),
        ("wasmtime_module_delete, (wasmtime_module_t *)", "wasmtime_module_delete, (void *)"),
        ("wasmtime_trap_new, (const char *, size_t)", "wasmtime_trap_new, (const char *)"),
        (
            "wasmtime_trap_new, (const char *, size_t)",
            "wasmtime_trap_new, (const char *, uint32_t)",
        ),
        ("wasmtime_trap_new, (const char *, size_t)", "wasmtime_trap_new, (size_t, const char *)"),
        (
            "wasmtime_context_set_fuel, (wasmtime_context_t *, uint64_t)",
            "wasmtime_context_set_fuel, (wasmtime_context_t *, int64_t)",
        ),
        ("bool, wasmtime_trap_code, ", "uint8_t, wasmtime_trap_code, "),
        (
            "(const wasmtime_linker_t *, const wasmtime_module_t *,",
            "(const wasmtime_module_t *, const wasmtime_linker_t *,",
        ),
        ("uint64_t *delta,", "uint32_t *delta,"),
        ("size_t minimum, size_t maximum,", "size_t minimum,"),
        ("  size_t size;\n  uint8_t *data;", "  uint8_t *data;\n  size_t size;"),
        ("  uint64_t store_id;\n  size_t __private;", "  uint32_t store_id;\n  size_t __private;"),
        ("uint8_t v128[16];", "uint8_t v128[8];"),
        (
            "wasmtime_error_t *(*grow_memory)(void *env, size_t new_size);",
            "int (*grow_memory)(void *env, size_t new_size);",
        ),
        ("uint32_t __private1, __private2, __private3;", "uint32_t __private1;"),
        ("  uint8_t kind;\n  union", "  uint32_t kind;\n  union"),
        ("WASM_F32 = 2, WASM_F64 = 3", "WASM_F32 = 3, WASM_F64 = 2"),
        ("WASMTIME_OPT_SPEED = 1", "WASMTIME_OPT_SPEED = 2"),
        ("WASMTIME_TRAP_OUT_OF_FUEL = 11", "WASMTIME_TRAP_OUT_OF_FUEL = 10"),
    ],
)
def test_an_altered_declaration_is_noticed(text: str, old: str, new: str) -> None:
    assert text.count(old) >= 1
    assert list(differences(text.replace(old, new, 1)))


def test_the_names_of_trap_codes_are_the_wheels() -> None:
    theirs = {member.value: member.name for member in _bindings.wasmtime_trap_code_enum}
    for code, (name, _) in sandhost._ffi._TRAP_CODES.items():
        assert theirs[code].startswith(f"WASMTIME_TRAP_CODE_{name.upper()}")
