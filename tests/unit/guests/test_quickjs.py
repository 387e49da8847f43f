"""The QuickJS guest evaluates scripts, and tells of their errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from helpers.guest_sources import Running


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
