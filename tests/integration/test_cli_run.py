"""`sandhost run`, in this process where that is enough, else in one of its own."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from helpers import guest_file, wait_until

from sandhost.cli import cli

SANDHOST = [str(Path(sysconfig.get_path("scripts"), "sandhost"))]
PATIENCE = 60.0


def invoke(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], **options)


def call(guest: str, function: str, *arguments: str) -> Result:
    return invoke("run", guest_file(guest), "--invoke", function, *arguments)


def shell(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [*SANDHOST, *map(str, arguments)]
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False, **options)


# ---- functions and their values ----


@pytest.mark.parametrize(
    ("guest", "function", "arguments", "printed"),
    [
        ("add", "add", ["2", "3"], "5"),
        ("add", "add", ["-2", "-3"], "-5"),
        ("add", "add", ["0x10", "0"], "16"),
        ("types", "i32", ["0xffffffff"], "-1"),
        ("types", "i32", ["007"], "7"),
        ("types", "i64", ["18446744073709551615"], "-1"),
        ("types", "f32", ["0.1"], "0.1"),
        ("types", "f32", ["3.4028235e38"], "3.4028235e+38"),
        ("types", "f64", ["-inf"], "-inf"),
        ("types", "f64", ["nan"], "nan"),
        ("types", "f64", ["0x1.8p1"], "3.0"),
        ("types", "f64", ["-1e-300"], "-1e-300"),
        ("types", "v128", ["00112233445566778899aabbccddeeff"], "00112233445566778899aabbccddeeff"),
        ("types", "swap", ["1", "2"], "2\n1"),
        ("types", "nothing", [], ""),
    ],
)
def test_values_are_read_and_printed_by_the_functions_types(
    guest: str, function: str, arguments: list[str], printed: str
) -> None:
    result = call(guest, function, *arguments)
    assert (result.exit_code, result.stdout.rstrip("\n")) == (0, printed), result.output


@pytest.mark.parametrize(
    ("guest", "arguments", "said"),
    [
        ("add", ["add", "1"], "takes 2 arguments, 1 was given"),
        ("add", ["add", "1", "2", "3"], "takes 2 arguments, 3 were given"),
        ("add", ["add", "1", "two"], "argument 2: 'two' is no integer"),
        ("add", ["add", "1", "1.5"], "is no integer"),
        ("types", ["i32", "4294967296"], "does not fit an i32"),
        ("types", ["i64", "-9223372036854775809"], "does not fit an i64"),
        ("types", ["f64", "1,5"], "is no number"),
        ("types", ["v128", "abcd"], "write 32 hexadecimal digits"),
        ("types", ["funcref", "0"], "reference"),
        ("types", ["swp"], "did you mean 'swap'?"),
        ("add", ["9" * 5000, "1"], "no function"),
        ("types", ["i32", "9" * 5000], "is no integer"),
    ],
)
def test_arguments_that_do_not_fit_are_wrong_usage(
    guest: str, arguments: list[str], said: str
) -> None:
    result = call(guest, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_module_without_start_names_its_functions() -> None:
    result = invoke("run", guest_file("add"))
    assert result.exit_code == 2
    assert "--invoke (it exports add(i32, i32)" in result.stderr


def test_a_reactor_is_initialized_first() -> None:
    result = call("wordcount", "alloc", "16")
    assert result.exit_code == 0
    assert int(result.stdout) > 0


# ---- commands ----


def test_a_command_gets_arguments_environment_and_input() -> None:
    done = shell(
        "run", guest_file("echo"), "one", "0", "--env", "A=b=c", "--env", "HERE",
        stdin=None, input=b"in\xff", env={**os.environ, "HERE": "x"},
    )  # fmt: skip
    assert done.returncode == 0
    for line in (b"arg echo.wasm\n", b"arg one\n", b"env A=b=c\n", b"env HERE=x\n", b"in\xff"):
        assert line in done.stdout
    assert b"PATH" not in done.stdout


def test_the_guests_status_is_the_exit_status() -> None:
    assert shell("run", guest_file("echo"), "7").returncode == 7


def test_options_for_the_guest_stand_after_two_dashes() -> None:
    result = invoke("run", guest_file("echo"), "--", "--json", "--dir", "0", input=b"")
    assert result.exit_code == 0
    assert "arg --json\narg --dir\n" in result.stdout


def test_a_mistyped_option_is_not_handed_to_the_guest() -> None:
    result = invoke("run", guest_file("echo"), "--memroy", "1 MiB", "0")
    assert result.exit_code == 2
    assert "did you mean --memory?" in result.stderr
    assert "arg" not in result.stdout


def test_input_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"from a file")
    result = invoke("run", guest_file("echo"), "0", "--stdin-from", tmp_path / "in")
    assert "from a file" in result.stdout


def test_directories_are_read_only_unless_granted_for_writing(tmp_path: Path) -> None:
    files = guest_file("files")
    (tmp_path / "there").write_text("text")
    assert "there" in invoke("run", files, "--dir", f"{tmp_path}:/d", "list", "/d").stdout
    assert invoke("run", files, "--dir", f"{tmp_path}:/d", "write", "/d/new", "x").exit_code != 0
    assert not (tmp_path / "new").exists()
    granted = f"{tmp_path}:/d:rw"
    assert invoke("run", files, "--dir", granted, "write", "/d/new", "x").exit_code == 0
    assert (tmp_path / "new").read_text().startswith("x")


@pytest.mark.parametrize("grant", ["", ":/d", "a:b:c", "a:b:rw:d", ".:rw", "/does/not/exist:/d"])
def test_grants_that_cannot_be_meant_are_wrong_usage(grant: str) -> None:
    result = invoke("run", guest_file("files"), "--dir", grant, "list", "/d")
    assert result.exit_code == 2
    assert result.stderr.startswith("sandhost: error:")


# ---- what goes wrong ----


def test_a_trap_shows_its_backtrace() -> None:
    result = call("unreachable", "trap")
    assert result.exit_code == 134
    assert result.stderr.startswith("sandhost: trap: the guest executed 'unreachable'")
    assert "0: inner at 0x" in result.stderr
    assert "1: trap at 0x" in result.stderr


def test_names_from_a_module_do_not_steer_the_terminal() -> None:
    result = call("hostile_names", 'trap\n  File "host.py", line 1')
    assert result.exit_code == 134
    assert "\x1b" not in result.stderr
    assert "\u202e" not in result.stderr
    assert '\n  File "host.py"' not in result.stderr
    assert "\x1b" not in call("hostile_import", "call").stderr


@pytest.mark.parametrize(
    ("guest", "function", "option", "said"),
    [
        ("spin", "spin", "--deadline=50 ms", "deadline of 50 ms; raise --deadline"),
        ("spin", "spin", "--fuel=1000", "fuel of 1000; raise --fuel"),
        ("bench", "sum", "--memory=64 KiB", "limit is 64 KiB"),
    ],
)
def test_a_limit_has_a_status_of_its_own(guest: str, function: str, option: str, said: str) -> None:
    result = invoke("run", option, guest_file(guest), "--invoke", function)
    assert result.exit_code == 124
    assert said in result.stderr


@pytest.mark.parametrize(
    "option", ["--memory=16 XB", "--memory=-1", "--deadline=soon", "--deadline=0", "--fuel=0"]
)
def test_quantities_that_cannot_be_meant_are_wrong_usage(option: str) -> None:
    result = invoke("run", option, guest_file("add"), "--invoke", "add", "1", "2")
    assert result.exit_code == 2
    assert result.stderr.startswith("sandhost: error:")


def test_files_that_are_no_modules_are_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(100))
    (tmp_path / "cut.wasm").write_bytes(guest_file("echo").read_bytes()[:500])
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 50)
    for path, said in (
        (tmp_path / "missing.wasm", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "zeros", "no WebAssembly"),
        (tmp_path / "cut.wasm", "at byte"),
        (tmp_path / "binary", "UTF-8"),
        (guest_file("shared_memory"), "shared memory"),
    ):
        result = invoke("run", path)
        assert result.exit_code == 125, path
        assert result.stderr.startswith("sandhost: error:")
        assert said in result.stderr


def test_a_traceback_is_shown_only_when_asked_for() -> None:
    plain = shell("run", "missing.wasm")
    assert (plain.returncode, plain.stderr.count(b"\n")) == (125, 1)
    assert b"Traceback" in shell("--debug", "run", "missing.wasm").stderr
    assert b"sandhost --debug run" in shell("run", "--debug", "missing.wasm").stderr


# ---- one JSON record ----


def test_the_record_holds_results_and_figures() -> None:
    result = invoke(
        "run", guest_file("types"), "--json", "--invoke", "all_numbers", "1", "2", "0.1", "nan"
    )
    record = json.loads(result.stdout)
    assert [r["value"] for r in record["results"]] == [1, 2, 0.1, "nan"]
    assert record["status"] == result.exit_code == 0
    assert record["reclaim"]["policy"] == "immediate"


def test_the_record_holds_output_and_status() -> None:
    result = invoke("run", guest_file("echo"), "--json", "x", "3", input=b"")
    record = json.loads(result.stdout)
    assert record["status"] == result.exit_code == 3
    assert "arg x\n" in record["stdout"]


def test_the_record_holds_a_trap() -> None:
    result = invoke("run", guest_file("unreachable"), "--json", "--invoke", "trap")
    record = json.loads(result.stdout)
    assert record["status"] == result.exit_code == 134
    assert record["error"]["code"] == "unreachable"
    assert record["error"]["frames"][0]["function"] == "inner"


def test_the_record_holds_a_spawn_that_failed() -> None:
    result = invoke("run", guest_file("start_trap"), "--json", "--invoke", "never")
    assert json.loads(result.stdout)["error"]["type"] == "GuestTrap"
    assert result.exit_code == 134


# ---- signals, pipes, terminals ----


def until_it_runs(process: subprocess.Popen[bytes]) -> None:
    """Wait until the command is at work, past its imports, and give the guest time to begin."""
    maps = Path(f"/proc/{process.pid}/maps")
    wait_until(lambda: "_libwasmtime" in maps.read_text(), PATIENCE)
    time.sleep(1.0)


@pytest.mark.parametrize(
    ("guest", "arguments"),
    [("spin", ["--invoke", "spin"]), ("sleeper", ["60000"]), ("start_spin", ["--invoke", "never"])],
)
def test_ctrl_c_ends_a_guest(guest: str, arguments: list[str]) -> None:
    command = [*SANDHOST, "run", str(guest_file(guest)), *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        until_it_runs(process)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert b"Traceback" not in stderr


def test_ctrl_c_ends_a_wait_for_input() -> None:
    command = [*SANDHOST, "run", str(guest_file("echo")), "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until_it_runs(process)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=PATIENCE)
    assert process.returncode == 130


def test_ctrl_c_ends_a_compilation(tmp_path: Path) -> None:
    big = large_module(tmp_path)
    command = [*SANDHOST, "run", str(big), "--invoke", "f", "1", "2"]
    master, terminal = pty.openpty()
    environment = {**os.environ, "SANDHOST_CACHE_DIR": str(tmp_path / "cache"), "TERM": "xterm"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=terminal, env=environment
    ) as process:
        os.close(terminal)
        shown = read_until(master, b"compiling")
        process.send_signal(signal.SIGINT)
        process.wait(timeout=PATIENCE)
    os.close(master)
    assert b"compiling" in shown
    assert process.returncode == 130


def large_module(folder: Path) -> Path:
    """Write a module that takes seconds to compile."""

    def number(value: int) -> bytes:
        out = bytearray()
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*out, value])

    def section(identifier: int, payload: bytes) -> bytes:
        return bytes([identifier]) + number(len(payload)) + payload

    count = 12_000
    step = bytes.fromhex("2000 4105 6c 2001 4103 77 6a 2100 2000 2001 73 2101".replace(" ", ""))
    body = b"\0" + step * 60 + bytes.fromhex("20000b")
    code = number(count) + (number(len(body)) + body) * count
    wasm = b"\0asm\1\0\0\0"
    wasm += section(1, bytes.fromhex("0160027f7f017f"))
    wasm += section(3, number(count) + b"\0" * count)
    wasm += section(7, b"\1\1f\0\0")
    wasm += section(10, code)
    path = folder / "big.wasm"
    path.write_bytes(wasm)
    return path


def read_until(master: int, wanted: bytes) -> bytes:
    seen = b""
    patience = time.monotonic() + PATIENCE
    while wanted not in seen and time.monotonic() < patience:
        if select.select([master], [], [], 0.2)[0]:
            try:
                seen += os.read(master, 4096)
            except OSError:  # the process is gone
                break
    return seen


def test_a_closed_pipe_ends_the_guest_quietly(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"y\n" * 500_000)
    command = [*SANDHOST, "run", str(guest_file("echo")), "0", "--stdin-from", str(tmp_path / "in")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        stderr = process.stderr.read()
        process.wait(timeout=PATIENCE)
    assert (process.returncode, stderr) == (141, b"")
