"""Host functions: what may be one, and what they get."""

from __future__ import annotations

import math

import pytest
from helpers import guest_file
from helpers.importing import importing

import sandhost


@pytest.mark.parametrize(
    ("wasm", "annotation", "given", "seen"),
    [
        ("i32", int, 2**32 - 1, -1),
        ("i64", int, 2**63, -(2**63)),
        ("f32", float, 1e300, math.inf),
        ("f64", float, 0.1, 0.1),
        ("v128", bytes, bytes(range(16)), bytes(range(16))),
    ],
)
def test_values_cross_by_annotation(host, wasm, annotation, given, seen):
    got = []

    def f(value):
        got.append(value)
        return value

    f.__annotations__ = {"value": annotation, "return": annotation}
    host.function("env", "f")(f)
    with host.load(importing(wasm, wasm)).spawn() as guest:
        assert guest.call("go", given) == seen
    assert got == [seen]


def test_several_results_are_a_tuple(host):
    @host.function("env", "f")
    def f(a: int, b: float) -> tuple[float, int, bytes]:
        return b, a, b"v" * 16

    text = importing("i32 f64", "f64 i64 v128")
    with host.load(text).spawn() as guest:
        assert guest.call("go", 3, 0.5) == (0.5, 3, b"v" * 16)


def test_an_explicit_signature_needs_no_annotations(host):
    host.function("env", "f", "(i64, f32) -> i32")(lambda a, b: a + int(b))
    with host.load(importing("i64 f32", "i32")).spawn() as guest:
        assert guest.call("go", 2, 3.0) == 5


@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_calling_guest_is_passed_wherever_it_is_annotated(host, position):
    seen = []

    def first(guest: sandhost.Guest, a: int, b: int) -> int:
        seen.append(guest)
        return a - b

    def second(a: int, guest: sandhost.Guest, b: int) -> int:
        return first(guest, a, b)

    def third(a: int, b: int, guest: sandhost.Guest) -> int:
        return first(guest, a, b)

    host.function("env", "f")((first, second, third)[position])
    plugin = host.load(importing("i32 i32", "i32"))
    with plugin.spawn() as one, plugin.spawn() as two:
        assert one.call("go", 9, 4) == 5
        assert two.call("go", 9, 4) == 5
        assert seen == [one, two]


@pytest.mark.parametrize(
    "imports",
    ["import sandhost", "import sandhost as sh", "from sandhost import Guest"],
)
def test_the_calling_guest_may_be_named_by_what_only_a_function_knows(host, imports):
    name = imports.split()[-1] + ("" if "from" in imports else ".Guest")
    scope: dict[str, object] = {}
    exec(
        f"""from __future__ import annotations
def define(host):
    {imports}
    seen = []
    @host.function("env", "f")
    def f(a: int, guest: {name}, b: float) -> int:
        seen.append(guest)
        return a
    return seen
""",
        scope,
    )
    seen = scope["define"](host)
    with host.load(importing("i32 f64", "i32")).spawn() as guest:
        assert guest.call("go", 9, 0.5) == 9
        assert seen == [guest]


@pytest.mark.parametrize(
    ("annotate", "complaint"),
    [
        ("def f(a): ...", "annotate parameter a"),
        ("def f(a: str) -> int: ...", "annotate parameter a"),
        ("def f(a: int) -> str: ...", "annotate the result"),
        ("def f(a: int) -> tuple[int, str]: ...", "annotate the result"),
        ("def f(*a: int) -> int: ...", "not positional"),
        ("def f(*, a: int) -> int: ...", "not positional"),
        ("def f(a: 'Nowhere') -> int: ...", "cannot be read"),
        ("def f(g: 'lost.Guest', a: 'Nowhere') -> int: ...", "cannot be read"),
        ("f = 7", "not callable"),
    ],
)
def test_a_function_whose_types_cannot_be_told_is_refused(host, annotate, complaint):
    scope: dict[str, object] = {}
    exec(annotate, scope)
    with pytest.raises(sandhost.ConfigError, match=complaint):
        host.function("env", "f")(scope["f"])


@pytest.mark.parametrize("signature", ["i33", "(i32) -> what", "(i32,, i64) => i32", "funcref"])
def test_a_signature_that_is_not_understood_is_refused(host, signature):
    with pytest.raises(sandhost.ConfigError, match="not understood"):
        host.function("env", "f", signature)(lambda *a: None)


def test_missing_imports_are_all_named_with_their_types(host):
    host.function("env", "here", "() -> ()")(lambda: None)
    text = b"""(module (import "env" "gone" (func (param i32) (result i64)))
        (import "env" "here" (func)) (import "other" "lost" (global i32)))"""
    with pytest.raises(sandhost.ModuleError) as caught:
        host.load(text)
    assert "env.gone: function (i32) -> (i64)" in str(caught.value)
    assert "other.lost: global" in str(caught.value)
    assert "env.here" in str(caught.value)


def test_an_import_of_another_type_names_both_types(host):
    @host.function("env", "f")
    def f(a: float) -> None: ...

    with pytest.raises(sandhost.ModuleError, match=r"env\.f as \(i32\) -> \(i32\).*\(float\) -> "):
        host.load(importing("i32", "i32"))


def test_one_name_imported_with_two_types_is_a_module_error(host):
    host.function("env", "f", "(i32)")(lambda a: None)
    text = (
        b"""(module (import "env" "f" (func (param i32))) (import "env" "f" (func (param i64))))"""
    )
    with pytest.raises(sandhost.ModuleError):
        host.load(text)


def test_references_cannot_be_imported(host):
    host.function("env", "f", "(i32)")(lambda a: None)
    with pytest.raises(sandhost.ModuleError, match=r"env\.f as \(externref\)"):
        host.load(b"""(module (import "env" "f" (func (param externref))))""")


def test_a_hostile_import_name_does_not_write_to_a_terminal(host):
    with pytest.raises(sandhost.ModuleError) as caught:
        host.load(guest_file("hostile_import"))
    assert all(line.isprintable() for line in str(caught.value).splitlines())
    assert not any(line.startswith("ERROR") for line in str(caught.value).splitlines())


def test_a_function_defined_after_load_is_unknown_to_the_plugin(host):
    with pytest.raises(sandhost.ModuleError):
        host.load(importing("i32", "i32"))
    host.function("env", "f", "(i32) -> i32")(lambda a: a)
    plugin = host.load(importing("i32", "i32"))
    host.function("env", "f", "(i32) -> i32")(lambda a: -a)
    with plugin.spawn() as guest:
        assert guest.call("go", 1) == 1
