"""`sandhost serve` as a process: sockets, streams in both directions, signals, and the end by force."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from helpers import children_of, guest_file, threads_of, wait_until
from helpers.serving import ADMIN, Child, Client, child

ANSWER = b'(module (func (export "which") (result i32) (i32.const 1)))'
BUSY = b"""(module (func (export "work") (param $n i32) (result i32)
  (loop $next (br_if $next (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
  (local.get $n)))"""


async def tenant(one: Child, http: httpx.AsyncClient, name: str = "acme") -> Client:
    """Return a client of a tenant that is new, or known from another life of the process."""
    admin = Client(http, ADMIN)
    response = await admin.ask("PUT", f"/v1/admin/tenants/{name}", json={})
    assert response.status_code in (200, 201)
    made = await admin.ask(
        "POST", f"/v1/admin/tenants/{name}/tokens", 201, json={"scopes": ["deploy", "invoke"]}
    )
    return Client(http, made["token"])


def with_client(one: Child, test: Callable[[Client], Awaitable[None]]) -> None:
    """Run a test as a tenant."""

    async def run() -> None:
        async with one.http() as http:
            await test(await tenant(one, http))

    asyncio.run(run())


def guests(one: Child) -> int:
    """Return how many guests are alive in it."""
    return one.guests()


def frames(text: str) -> tuple[bytes, bytes, dict[str, object]]:
    """Return what a command wrote, and the last line."""
    out, lines = {"stdout": b"", "stderr": b""}, [json.loads(line) for line in text.splitlines()]
    for line in lines[:-1]:
        ((name, piece),) = line.items()
        out[name] += base64.b64decode(piece)
    return out["stdout"], out["stderr"], lines[-1]


def test_a_command_gets_and_gives_all_that_it_can(data):
    async def test(acme: Client) -> None:
        await acme.deploy("echo", guest_file("echo"), env="COLOUR=red")
        sent = os.urandom(300_000)
        response = await acme.ask("POST", "/v1/plugins/echo/run?argv=one&argv=7", 200, content=sent)
        stdout, stderr, last = frames(response.text)
        assert stdout == b"arg echo\narg one\narg 7\nenv COLOUR=red\n" + sent
        assert stderr == b"echo: input ended\n"
        assert last == {"exit": 7}
        await acme.deploy("spin", guest_file("spin"))
        await acme.problem("POST", "/v1/plugins/spin/run", 400, "invalid")

    with child(data) as one:
        with_client(one, test)
        assert guests(one) == 0
        assert one.end() == 0, one.said()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="one processor")
@pytest.mark.parametrize("background", ["off", "on"])
def test_long_calls_and_compilers_run_in_the_background_where_the_operator_says_so(
    data, background
):
    async def test(acme: Client) -> None:
        await acme.deploy("spin", b'(module (func (export "spin") (loop (br 0))))')
        deadline = {"Sandhost-Deadline": "0.2"}
        await acme.ask("POST", "/v1/plugins/spin/call/spin", 504, headers=deadline)

    # In a session of its own, like a control group to Linux (sched(7), autogroup): others compute beside it.
    with child(data, "--background", background, under=["setsid"]) as one:
        with_client(one, test)
        threads = threads_of(one.process.pid)
        workers = [thread for thread, name in threads.items() if name == "sandhost-worker"]
        compilers = children_of(one.process.pid)
        assert workers
        assert compilers
        found = {os.sched_getscheduler(thread) for thread in workers + compilers}
        assert found == {os.SCHED_IDLE if background == "on" else os.SCHED_OTHER}
        assert os.sched_getscheduler(one.process.pid) == os.SCHED_OTHER
        nice = {os.getpriority(os.PRIO_PROCESS, thread) for thread in workers + compilers}
        assert min(nice) > os.getpriority(os.PRIO_PROCESS, one.process.pid)
        assert one.end() == 0, one.said()


@pytest.mark.parametrize("realtime", ["off", "on"])
def test_the_event_loop_goes_first_where_the_operator_says_so(data, realtime):
    async def test(acme: Client) -> None:
        await acme.deploy("spin", b'(module (func (export "spin") (loop (br 0))))')
        for _ in range(3):
            deadline = {"Sandhost-Deadline": "0.2"}
            await acme.ask("POST", "/v1/plugins/spin/call/spin", 504, headers=deadline)

    with child(data, "--realtime", realtime) as one:
        with_client(one, test)
        found: dict[str, set[tuple[int, int]]] = {}
        for thread, name in threads_of(one.process.pid).items():
            role = "loop" if thread == one.process.pid else name
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                policy = os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK
                priority = os.sched_getparam(thread).sched_priority
                found.setdefault(role, set()).add((policy, priority))
        ordinary = {(os.SCHED_OTHER, 0)}
        if realtime == "on" and b"realtime is on, and" in one.said():
            assert all(policies == ordinary for policies in found.values())
            pytest.skip("this process may not have a real-time priority")
        first = {(os.SCHED_FIFO, 1)}, {(os.SCHED_FIFO, 2)}
        wanted = first if realtime == "on" else (ordinary, ordinary)
        assert (found.pop("loop"), found.pop("sandhost-ticker")) == wanted
        assert "sandhost-worker" in found
        assert all(policies == ordinary for policies in found.values()), found
        assert one.end() == 0, one.said()


def test_a_commands_input_and_output_go_both_ways_at_once(data):
    async def test(acme: Client, one: Child) -> None:
        await acme.deploy("echo", guest_file("echo"))
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        authorization = acme.headers["Authorization"]
        writer.write(
            b"POST /v1/plugins/echo/run HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            + f"Authorization: {authorization}\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")  # before anything of the input was sent
        assert b" 200 " in head.splitlines()[0]

        async def hear(wanted: bytes) -> None:
            seen = b""
            while wanted not in seen:
                line = await asyncio.wait_for(reader.readline(), 20)
                assert line
                with contextlib.suppress(ValueError):  # the sizes of chunks
                    record = json.loads(line)
                    if isinstance(record, dict):
                        seen += base64.b64decode(record.get("stdout", b""))

        await hear(b"arg echo\n")
        for word in (b"first", b"second", b"third"):
            writer.write(b"%x\r\n%b\r\n" % (len(word), word))
            await hear(word)  # which the guest has read and written, while the request goes on
        assert guests(one) == 1
        writer.write(b"0\r\n\r\n")
        rest = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 20)
        assert b'{"exit": 0}' in rest
        writer.close()

    with child(data) as one:
        with_client(one, lambda acme: test(acme, one))
        assert one.end() == 0, one.said()


def test_a_client_that_goes_takes_its_guest_with_it(data):
    async def test(acme: Client, one: Child) -> None:
        await acme.deploy("spin", guest_file("spin"), deadline="1 h")
        await acme.deploy("echo", guest_file("echo"), deadline="1 h")
        for path in ("/v1/plugins/spin/call/spin", "/v1/plugins/echo/run"):
            reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
            head = (
                f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {acme.headers['Authorization']}"
            )
            length = 0 if "call" in path else 100
            writer.write(f"{head}\r\nContent-Length: {length}\r\n\r\n".encode())
            await asyncio.to_thread(wait_until, lambda: guests(one) == 1)
            writer.close()
            await asyncio.to_thread(wait_until, lambda: guests(one) == 0)
            del reader

    with child(data) as one:
        with_client(one, lambda acme: test(acme, one))
        assert one.end() == 0, one.said()


# ---- what no client should send ----


def raw(port: int, data: bytes, *, half_close: bool = False, wait_s: float = 20) -> bytes:
    """Send bytes, and return all that comes until the connection is closed."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as one:
        with contextlib.suppress(ConnectionError):
            one.sendall(data)
            if half_close:
                _end_writing(one)
            while piece := one.recv(65536):
                received += piece
    return received


def _end_writing(one: socket.socket) -> None:
    try:
        one.shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        raise ConnectionResetError from error  # just before


def test_requests_that_are_none_leave_nothing_behind(data):
    head = f"Host: x\r\nAuthorization: Bearer {ADMIN}\r\n".encode()
    bad = [
        b"\x16\x03\x01\x02\x00\x01\x00",  # TLS
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0" * 1000,
        b"POST /v1/plugins/p/call/f HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/plugins/p/call/f HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"PUT /v1/plugins/p HTTP/1.1\r\n"
        + head
        + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PUT /v1/plugins/p HTTP/1.1\r\n" + head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 400_000,  # a head without an end
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100_000,
    ]
    with child(data) as one:
        for request in bad:
            answer = raw(one.port, request, half_close=True)
            assert answer == b"" or answer.split()[1] in (b"400", b"401", b"404"), answer
        # Bodies that end too early: the client closes its side, or says less than it promised.
        for path, method in (("/v1/plugins/p", "PUT"), ("/v1/plugins/p/bytes/f", "POST")):
            request = f"{method} {path} HTTP/1.1\r\n".encode() + head
            for rest in (
                b"Content-Length: 1000\r\n\r\nhalf",
                b"Transfer-Encoding: chunked\r\n\r\n4\r\nha",
            ):
                raw(one.port, request + rest, half_close=True)
        wait_until(lambda: os.listdir(data / "blobs") == [])
        with_client(one, lambda acme: acme.ask("GET", "/v1/plugins", 200))
        assert b"Traceback" not in one.said()
        assert guests(one) == 0
        assert one.end() == 0, one.said()


def test_who_begins_a_request_and_does_not_end_it_is_sent_away_while_others_are_served(data):
    async def test(acme: Client, one: Child) -> None:
        await acme.deploy("p", ANSWER)
        slow = [await asyncio.open_connection("127.0.0.1", one.port) for _ in range(60)]
        over = asyncio.gather(*(reader.read() for reader, _ in slow))
        for number in range(100):  # 20 s; they have 10
            for reader, writer in slow[:50]:  # the last ten say nothing at all
                if not reader.at_eof():
                    writer.write(b"GET / HTTP/1.1\r\n" if not number else b"x-%d: y\r\n" % number)
            assert await acme.call("p", "which") == [1]
            if over.done():
                break
            await asyncio.sleep(0.2)
        assert await asyncio.wait_for(over, 1) == [b""] * 60
        for _, writer in slow:
            writer.close()

    with child(data) as one:
        with_client(one, lambda acme: test(acme, one))
        assert one.end() == 0, one.said()


# ---- the end ----


def test_a_term_signal_under_load_ends_nothing_that_was_begun(data):
    statuses: list[int] = []

    async def test(acme: Client, one: Child) -> None:
        await acme.deploy("busy", BUSY, deadline="1 h")
        await acme.ask("POST", "/v1/plugins/busy/sessions", 201)
        long = [asyncio.ensure_future(acme.call("busy", "work", 2**31 - 1)) for _ in range(3)]
        await asyncio.to_thread(wait_until, lambda: guests(one) == 4)
        stopped = False

        async def load() -> None:
            path = "/v1/plugins/busy/call/work"
            while not stopped:
                try:
                    response = await acme.ask("POST", path, json={"arguments": [20_000_000]})
                except httpx.ConnectError:  # nobody listens any more
                    return
                statuses.append(response.status_code)

        loads = [asyncio.ensure_future(load()) for _ in range(6)]
        while len(statuses) < 12:
            await asyncio.sleep(0.05)
        one.process.send_signal(signal.SIGTERM)
        async with one.http() as http:
            for _ in range(100):
                response = await http.get("/readyz")
                if response.status_code == 503:
                    break
                await asyncio.sleep(0.005)
            assert response.status_code == 503  # the door is still open, for who looks
        assert not any(call.done() for call in long)
        assert await asyncio.gather(*long) == [[0]] * 3
        status = await asyncio.to_thread(one.process.wait, 30)
        assert status == 0, one.said()
        stopped = True
        # What a connection that was kept alive makes of the end is the client's: it may ask again.
        ended = await asyncio.gather(*loads, return_exceptions=True)
        broken = [e for e in ended if isinstance(e, Exception)]
        assert all(isinstance(e, (httpx.RemoteProtocolError, httpx.ReadError)) for e in broken)

    with child(data) as one:
        with_client(one, lambda acme: test(acme, one))
        assert set(statuses) <= {200, 429, 503}, statuses
        assert statuses.count(200) >= 12
        assert b"Traceback" not in one.said(), one.said()


@pytest.mark.parametrize("signals", [1, 2])
def test_what_does_not_end_in_its_time_is_cancelled(data, signals):
    """With a second signal at once, else after the time to drain."""

    async def test(acme: Client, one: Child) -> None:
        await acme.deploy("spin", guest_file("spin"), deadline="1 h")
        call = asyncio.ensure_future(acme.ask("POST", "/v1/plugins/spin/call/spin"))
        await asyncio.to_thread(wait_until, lambda: guests(one) == 1)
        for _ in range(signals):
            one.process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.2)
        assert await asyncio.to_thread(one.process.wait, 30) == 0, one.said()
        assert (await call).status_code == 503

    with child(data, "--drain-time", "1 s" if signals == 1 else "1 h") as one:
        with_client(one, lambda acme: test(acme, one))
        assert b"guests are left" not in one.said()
        assert b"Traceback" not in one.said(), one.said()


def test_a_kill_in_the_middle_of_an_upload_leaves_nothing_half_there(data):
    async def before(acme: Client, one: Child) -> None:
        await acme.deploy("p", ANSWER)
        await acme.ask("PUT", "/v1/plugins/p/aliases/live", 200, json={"version": 1})

        async def endless():
            while True:
                yield b" " * 10_000
                await asyncio.sleep(0.001)

        async def upload() -> None:
            await acme.ask("PUT", "/v1/plugins/p", content=endless())

        uploads = [asyncio.ensure_future(upload()) for _ in range(3)]
        parts = data / "blobs"
        await asyncio.to_thread(
            wait_until,
            lambda: sum(p.stat().st_size > 50_000 for p in parts.glob("*.part")) == 3,
        )
        one.process.kill()
        await asyncio.to_thread(one.process.wait)
        await asyncio.gather(*uploads, return_exceptions=True)
        assert len(list(parts.glob("*.part"))) == 3

    async def after(acme: Client) -> None:
        assert await acme.call("p", "which", params={"ref": "live"}) == [1]
        found = await acme.ask("GET", "/v1/plugins/p", 200)
        assert [v["version"] for v in found["versions"]] == [1]
        assert await acme.deploy("p", ANSWER) == 2

    with child(data) as one:
        with_client(one, lambda acme: before(acme, one))
    with child(data) as one:
        assert len(os.listdir(data / "blobs")) == 1  # two versions of one module, later
        with_client(one, after)
        assert len(os.listdir(data / "blobs")) == 1
        assert one.end() == 0, one.said()


def test_the_service_manager_hears_of_the_beginning_and_the_end(data, monkeypatch):
    address = str(data.parent / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        with child(data, "--drain-time", "2 s") as one:
            assert httpx.get(f"{one.url}/readyz").status_code == 200
            assert manager.recv(4096) == b"READY=1"
            assert {manager.recv(4096) for _ in range(3)} == {b"WATCHDOG=1"}
            one.process.send_signal(signal.SIGTERM)
            while (said := manager.recv(4096)) == b"WATCHDOG=1":
                pass
            assert said == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=7000000"
            assert one.process.wait(30) == 0


# ---- the command ----


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `sandhost serve` to its end, which is at once when something is wrong."""
    return subprocess.run(
        [sys.executable, "-m", "sandhost", "serve", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--http", "nonsense"], "HOST:PORT"),
        (["--http-port", "lots"], "--http-port"),
        (["--http", "127.0.0.1:0", "--grpc", "nonsense"], "HOST:PORT"),
        (["--grpc-port", "lots"], "--grpc-port"),
        (["--config", "absent.toml"], "absent.toml cannot be read"),
        (["--http", "192.0.2.1:80"], "cannot listen on 192.0.2.1:80"),
        (["--http", "127.0.0.1:0", "--grpc", "192.0.2.1:80"], "cannot listen on 192.0.2.1:80"),
        (["--admin-token", "guess me"], "--admin-token"),
        (["--data", "/dev/null/x"], "/dev/null"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_what_cannot_be_meant_is_said_in_one_line(tmp_path, arguments, words):
    ended = command(*arguments, cwd=tmp_path)
    assert ended.returncode in (2, 125)
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len([line for line in ended.stderr.splitlines() if "error" in line]) == 1


def test_help_lists_every_setting(tmp_path):
    from sandhost.serve.config import Settings, flag_of

    ended = command("--help", cwd=tmp_path)
    assert ended.returncode == 0
    for name in Settings.model_fields:
        assert flag_of(name) in ended.stdout


def test_a_start_says_nothing_of_libraries(data):
    for _ in range(2):  # makes the database; finds it
        with child(data) as one:
            assert httpx.get(f"{one.url}/healthz").status_code == 200
            assert one.end() == 0
        assert b"alembic" not in one.said()


def test_a_second_process_does_not_get_the_folder(data):
    with child(data) as one:
        free = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
        ended = command("--data", str(data), *free, cwd=data.parent)
        assert ended.returncode == 125
        assert str(data) in ended.stderr
        ended = command(
            "--data", str(data) + "2", "--http", f"127.0.0.1:{one.port}", cwd=data.parent
        )
        assert ended.returncode == 125
        assert f"cannot listen on 127.0.0.1:{one.port}: Address already in use\n" in ended.stderr
        assert not (data.parent / "data2").exists()


def test_there_is_room_for_connections_before_they_come(data):
    with child(data) as one:
        status = Path(f"/proc/{one.process.pid}/status").read_text()
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert int(status.split("FDSize:")[1].split()[0]) >= min(files, 65_536)
        assert one.end() == 0


def test_the_first_admin_token_is_shown_once(data):
    shown = b"admin token, shown this once: "
    with child(data, "--admin-token", "none") as one:
        token = one.said().split(shown)[1].split()[0].decode()
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{one.url}/v1/admin/tenants", headers=headers).status_code == 200
        assert one.end() == 0
    with child(data, "--admin-token", "none") as one:
        assert shown not in one.said()
        assert httpx.get(f"{one.url}/v1/admin/tenants", headers=headers).status_code == 200
