"""`sandhost client`: what it prints, what it ends with, how it is joined to a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers import guest_file, wait_until
from helpers.serving import ADMIN, Child, child

from sandhost.cli import cli
from sandhost.client import Client

SANDHOST = [sys.executable, "-m", "sandhost", "client"]
COUNTER = """(module
  (global $n (mut i32) (i32.const 0))
  (func (export "add") (param i32) (result i32)
    (global.set $n (i32.add (global.get $n) (local.get 0))) (global.get $n)))"""


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    with child(tmp_path_factory.mktemp("service") / "data") as one:
        with Client(one.url, ADMIN) as admin:
            admin.put_tenant("acme")
            with Client(one.url, admin.add_token("acme").text) as acme:
                acme.upload("sum", guest_file("add"))
                acme.upload("echo", guest_file("echo"))
                acme.upload("trap", guest_file("unreachable"))
                acme.upload("spin", guest_file("spin"))
                acme.upload("count", COUNTER.encode())
        yield one
        assert one.end() == 0, one.said()


@pytest.fixture
def token(one: Child) -> str:
    with Client(one.url, ADMIN) as admin:
        return admin.add_token("acme").text


@pytest.fixture
def environment(one: Child, token: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("SANDHOST_URL", one.url)
    monkeypatch.setenv("SANDHOST_TOKEN", token)
    return dict(os.environ)


def sandhost(*arguments: str, **more: object) -> Result:
    return CliRunner().invoke(cli, ["client", *arguments], **more)  # type: ignore[arg-type]


def test_a_plugin_is_deployed_called_and_switched(environment, tmp_path):
    path = tmp_path / "which.wat"
    for number in (1, 2):
        path.write_text(f'(module (func (export "which") (result i32) (i32.const {number})))')
        done = sandhost("deploy", str(path), "--alias", "live", "--memory", "1 MiB")
        assert done.stdout == f"which: version {number} is ready, and is 'live' now\n", done.stderr
        assert sandhost("call", "which", "which", "--ref", "live").stdout == f"{number}\n"
    assert sandhost("alias", "rollback", "which", "live").stdout.startswith(
        "which: live is version 1"
    )
    assert sandhost("call", "which", "which", "--ref", "live").stdout == "1\n"
    listed = json.loads(sandhost("plugins", "--json").stdout)["plugins"]
    assert {"plugin": "which", "latest": 2, "versions": 2, "aliases": {"live": 1}} in listed
    rows = sandhost("versions", "which").stdout.splitlines()
    assert [row.split()[:3] for row in rows[1:]] == [["1", "ready", "live"], ["2", "ready", "–"]]
    assert sandhost("versions", "which", "--remove", "2").exit_code == 0
    assert sandhost("alias", "set", "which", "live", "2").exit_code == 125
    assert sandhost("alias", "remove", "which", "live").exit_code == 0


def test_numbers_are_read_as_people_type_them(environment):
    assert sandhost("call", "sum", "add", "2", "-3").stdout == "-1\n"
    assert sandhost("call", "sum", "add", "0x10", "1", "--once").stdout == "17\n"
    assert json.loads(sandhost("call", "sum", "add", "1", "1", "--json").stdout) == {"results": [2]}
    assert sandhost("call", "sum", "add", "two", "1").exit_code == 2
    assert sandhost("call", "sum", "add", "--reff", "1").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("call", "none", "f"), 125, "missing:"),
        (("call", "trap", "trap"), 134, "trap:"),
        (("call", "spin", "spin", "--deadline", "50 ms"), 124, "deadline-passed:"),
        (("tenants",), 125, "denied:"),
        (("tenants", "--guests", "3"), 2, "--put"),
        (("deploy", "absent.wasm"), 2, "absent.wasm"),
        (("plugins", "--url", "http://127.0.0.1:9", "--no-retry"), 125, "Connection refused"),
        (("plugins", "--url", "nowhere"), 125, "no address"),
    ],
)
def test_what_goes_wrong_is_a_line_and_a_status(environment, arguments, status, said):
    done = sandhost(*arguments)
    assert done.exit_code == status, done.output
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_problem_is_json_where_json_is_wanted(environment):
    done = sandhost("call", "trap", "trap", "--json")
    assert done.exit_code == 134
    assert json.loads(done.stdout)["problem"] == "guest-failed"


def test_a_token_comes_from_a_file_and_is_warned_of_in_the_open(one, token, tmp_path, monkeypatch):
    monkeypatch.delenv("SANDHOST_TOKEN", raising=False)
    monkeypatch.setenv("SANDHOST_URL", one.url)
    file = tmp_path / "token"
    file.write_text(f"{token}\n")
    assert sandhost("plugins", "--token-file", str(file)).exit_code == 0
    done = sandhost("plugins", "--token", token)
    assert done.exit_code == 0
    assert "--token-file" in done.stderr
    assert token not in done.output
    assert sandhost("plugins").exit_code == 125
    assert sandhost("health").stdout.startswith("it takes requests")


def test_the_operator_sees_tenants_tokens_and_the_audit_log(environment, monkeypatch):
    monkeypatch.setenv("SANDHOST_TOKEN", ADMIN)
    assert sandhost("tenants", "--put", "other", "--guests", "3").exit_code == 0
    assert "guests=3" in sandhost("tenants").stdout
    made = json.loads(sandhost("tokens", "other", "--add", "--scope", "invoke", "--json").stdout)
    assert made["id"] in sandhost("tokens", "other").stdout
    assert sandhost("tokens", "other", "--revoke", made["id"]).exit_code == 0
    assert made["id"] not in sandhost("tokens", "other").stdout
    log = sandhost("audit", "--limit", "2").stdout
    assert "token.revoke" in log
    assert "tenant.put" not in log
    assert len(json.loads(sandhost("audit", "--json").stdout)["entries"]) > 2


def test_a_session_is_called_line_by_line(environment):
    done = sandhost("session", "count", input="add 2\n\n# nothing\nadd 3\n")
    assert done.stdout == "2\n5\n", done.stderr
    done = sandhost("session", "count", input="add 2\nnone\nadd 3\n")
    assert done.stdout == "2\n"
    assert done.exit_code == 125
    assert "exports no function" in done.stderr


def test_bytes_go_through(environment, tmp_path):
    path = tmp_path / "same.wat"
    path.write_text("""(module (memory (export "memory") 64)
      (func (export "alloc") (param i32) (result i32) (i32.const 1024))
      (func (export "same") (param $at i32) (param $n i32) (result i64)
        (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32)) (i64.extend_i32_u (local.get $n)))))""")
    assert sandhost("deploy", str(path)).exit_code == 0
    sent = os.urandom(500_000)
    done = subprocess.run(
        [*SANDHOST, "bytes", "same", "same"],
        input=sent,
        capture_output=True,
        env=environment,
        cwd=tmp_path,
        timeout=60,
        check=True,
    )
    assert done.stdout == sent


def test_a_command_has_our_streams_and_we_have_its_status(environment, tmp_path):
    sent = os.urandom(500_000)
    done = subprocess.run(
        [*SANDHOST, "run", "echo", "--", "--loud", "7"],
        input=sent,
        capture_output=True,
        env=environment,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == 7
    assert done.stdout == b"arg echo\narg --loud\narg 7\n" + sent
    assert done.stderr == b"echo: input ended\n"


def test_a_commands_input_may_be_a_file_or_nothing(environment, tmp_path):
    (tmp_path / "input").write_bytes(b"from a file")
    for path, wanted in (
        (tmp_path / "input", b"arg echo\nfrom a file"),
        ("/dev/null", b"arg echo\n"),
    ):
        with open(path, "rb") as file:
            done = subprocess.run(
                [*SANDHOST, "run", "echo"],
                stdin=file,
                capture_output=True,
                env=environment,
                cwd=tmp_path,
                timeout=60,
                check=True,
            )
        assert done.stdout == wanted


def begun(environment: dict[str, str], tmp_path: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start a command on a terminal of its own, and wait until it has said its first word."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*SANDHOST, "run", "echo"],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=tmp_path,
        start_new_session=True,
    )
    os.close(theirs)
    heard = b""
    while b"arg echo" not in heard:
        heard += os.read(ours, 1000)
    return process, ours


def test_a_command_talks_with_a_terminal(environment, tmp_path):
    process, terminal = begun(environment, tmp_path)
    for word in (b"first\n", b"second\n"):
        os.write(terminal, word)
        heard = b""
        while heard.count(word.strip()) < 2:  # the terminal's own echo, and the command's
            heard += os.read(terminal, 1000)
    os.write(terminal, b"\x04")  # the end of the input
    assert process.wait(20) == 0
    os.close(terminal)
    assert process.stderr is not None
    assert process.stderr.read() == b"echo: input ended\n"
    process.stderr.close()


def test_ctrl_c_ends_the_command_here_and_there(one, environment, tmp_path):
    process, terminal = begun(environment, tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    os.close(terminal)
    with Client(one.url, ADMIN) as admin:
        headers = {"Authorization": f"Bearer {ADMIN}"}
        wait_until(
            lambda: not admin._http.get("/debug/sandhost/view", headers=headers).json()["guests"]
        )


def test_every_command_has_help_that_begins_with_what_it_does(environment):
    listed = sandhost("--help").stdout.partition("Commands:")[2].split("\n")
    names = [line.split()[0] for line in listed if line.strip()]
    assert len(names) == 12
    for name in names:
        shown = sandhost(name, "--help")
        assert shown.exit_code == 0
        assert shown.stdout.startswith("Usage: ")
