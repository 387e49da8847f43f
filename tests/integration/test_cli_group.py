"""The group of commands: help, version, doctor, commands that are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import guest_file

import sandhost
from sandhost.cli import cli
from sandhost.cli.group import SandhostGroup
from sandhost.cli.output import visible

SANDHOST = [str(Path(sysconfig.get_path("scripts"), "sandhost"))]


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd="/",
    ).stdout


def test_the_library_imports_nothing_of_the_command_line() -> None:
    found = python(
        "import sys, sandhost; print([m for m in ('click', 'rich', 'sandhost.cli') if m in sys.modules])"
    )
    assert found.strip() == "[]"


def test_help_imports_no_command_and_no_rich() -> None:
    code = (
        "import sys; sys.argv = ['sandhost', '--help']\n"
        "from sandhost.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('rich', 'sandhost.cli.run', 'sandhost.doctor') if m in sys.modules])"
    )
    shown = python(code)
    assert shown.endswith("[]\n")
    for name in ("run", "inspect", "doctor"):
        assert f"\n  {name}" in shown


def test_no_command_shows_help() -> None:
    result = CliRunner().invoke(cli, [])
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage:")


@pytest.mark.parametrize("command", ["run", "inspect", "doctor"])
def test_each_command_has_help(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")


def test_the_exit_statuses_are_documented() -> None:
    lines = CliRunner().invoke(cli, ["run", "--help"]).stdout.splitlines()
    for status in ("2", "124", "125", "130", "134", "141"):
        assert any(line.split()[:1] == [status] for line in lines), status


def test_version_names_what_a_report_needs() -> None:
    result = CliRunner().invoke(cli, ["--version"])
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert names == ["sandhost", "wasmtime", "CPython", "Linux"]
    assert sandhost.__version__ in result.stdout


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "sandhost", "--version"]
    shown = subprocess.run(command, capture_output=True, check=True, timeout=60, cwd="/").stdout
    assert shown.startswith(b"sandhost ")


def test_a_command_that_is_not_installed_is_not_listed() -> None:
    group = SandhostGroup("x", commands_at={"gone": ("sandhost.gone.command:gone", "Gone.")})
    assert "gone" not in CliRunner().invoke(group, ["--help"]).stdout
    result = CliRunner().invoke(group, ["gone"])
    assert result.exit_code == 2
    assert result.stderr.startswith("sandhost: error: No such command")


def test_doctor_explains_this_machine() -> None:
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "sandhost works here" in result.stdout
    for name in ("PAGEMAP_SCAN", "vm.max_map_count", "cgroup", "compile cache", "its memory"):
        assert name in result.stdout


def test_doctor_gives_its_findings_as_json() -> None:
    record = json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).stdout)
    assert record["problems"] == 0
    assert {"topic", "name", "status", "found", "why", "advice"} == set(record["findings"][0])


def test_doctor_fails_where_guests_cannot_live() -> None:
    code = (
        "import resource, sys; from sandhost.cli import cli\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        "cli(['doctor', '--json'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd="/",
    )
    assert done.returncode == 1, done.stderr
    problems = {f["name"] for f in json.loads(done.stdout)["findings"] if f["status"] == "problem"}
    assert "address space" in problems


def test_output_into_a_pipe_has_no_colour_even_when_the_terminal_has() -> None:
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("FORCE_COLOR", None)
    for arguments in (["inspect", str(guest_file("echo"))], ["doctor"]):
        shown = subprocess.run(
            [*SANDHOST, *arguments], capture_output=True, check=True, env=environment, timeout=60
        )
        assert b"\x1b" not in shown.stdout


def test_a_terminal_without_unicode_is_no_reason_to_fail() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(
        [*SANDHOST, "doctor"], capture_output=True, check=False, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert b"\\u2713 ok" in done.stdout


def test_what_could_steer_a_terminal_is_escaped() -> None:
    assert visible("a\x1b[2J\u202eb\r\nc") == "a\\x1b[2J\\u202eb\\r\nc"
