"""sandhost/_native.pyi says what the compiled module offers: no more, no less."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sandhost
from sandhost._native import ffi, lib

STUB = Path(sandhost.__file__).with_name("_native.pyi")


def body_of(source: str, name: str) -> list[ast.stmt]:
    """The statements of one class of a stub."""
    tree = ast.parse(source)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return classes[name].body


def declared(source: str, name: str) -> dict[str, ast.FunctionDef | ast.AnnAssign]:
    """What a class of a stub declares, by name."""
    found: dict[str, ast.FunctionDef | ast.AnnAssign] = {}
    for node in body_of(source, name):
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


def python_type(ctype: object) -> str:
    """The Python type that stands for a C type in the stub."""
    kind, name = ctype.kind, ctype.cname  # type: ignore[attr-defined]
    if kind == "void":
        return "None"
    if kind == "enum" or (kind == "primitive" and name not in ("float", "double")):
        return "int"
    return "float" if kind == "primitive" else "_CData"


def differences(source: str) -> list[str]:
    """How the stub's `lib` differs from the module's."""
    stub = declared(source, "_Lib")
    found = [f"only in the stub: {name}" for name in sorted(stub.keys() - set(dir(lib)))]
    found += [f"not in the stub: {name}" for name in sorted(set(dir(lib)) - stub.keys())]
    for name in sorted(stub.keys() & set(dir(lib))):
        node, value = stub[name], getattr(lib, name)
        if isinstance(node, ast.AnnAssign):
            if ast.unparse(node.annotation) != "int" or not isinstance(value, int):
                found.append(f"{name} is {type(value).__name__} in the module")
            continue
        ctype = ffi.typeof(value)
        wanted = [python_type(argument) for argument in ctype.args], python_type(ctype.result)
        arguments = node.args.posonlyargs[1:]
        given = [ast.unparse(a.annotation) for a in arguments if a.annotation is not None]
        assert node.returns is not None
        if (given, ast.unparse(node.returns)) != wanted:
            found.append(f"{name} is {ctype} in the module")
    return found


def test_the_stub_equals_the_compiled_library() -> None:
    assert differences(STUB.read_text()) == []


def test_the_stub_names_only_what_ffi_has() -> None:
    assert set(declared(STUB.read_text(), "_FFI")) <= set(dir(ffi))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    SH_OK: int\n", ""),
        ("    SH_OK: int\n", "    SH_OK: int\n    SH_NEVER: int\n"),
        ("    def sh_exiting(self, /) -> None: ...\n", ""),
        ("def sh_exiting(self, /)", "def sh_exiting(self, code: int, /)"),
        (
            "def sh_cancel(self, guest: int, /) -> int",
            "def sh_cancel(self, guest: _CData, /) -> int",
        ),
        ("def sh_cancel(self, guest: int, /) -> int", "def sh_cancel(self, guest: int, /) -> None"),
    ],
)
def test_a_stub_that_went_stale_is_noticed(old: str, new: str) -> None:
    source = STUB.read_text()
    assert source.count(old) == 1
    assert differences(source.replace(old, new))
