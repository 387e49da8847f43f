"""The client against a service in a process of its own, and against peers that behave badly."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from helpers import DEADLINE, PATIENCE, guest_file
from helpers.serving import ADMIN, Child, child

from sandhost.client import (
    AsyncClient,
    BadAnswer,
    BadPlugin,
    Client,
    ConfigError,
    Conflict,
    DeadlinePassed,
    Denied,
    GuestFailed,
    Invalid,
    Missing,
    NotReady,
    Progress,
    Quotas,
    Retry,
    TooLarge,
    TooMany,
    Unknown,
    Unreachable,
)

COUNTER = b"""(module
  (global $n (mut i32) (i32.const 0))
  (func (export "next") (result i32)
    (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n)))"""
SAME = b"""(module (memory (export "memory") 64)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "same") (param $at i32) (param $n i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32)) (i64.extend_i32_u (local.get $n)))))"""


def versioned(number: int) -> bytes:
    return f'(module (func (export "which") (result i32) (i32.const {number})))'.encode()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    with child(tmp_path_factory.mktemp("service") / "data") as one:
        yield one
        assert one.end() == 0, one.said()


@pytest.fixture
def admin(one: Child) -> Iterator[Client]:
    with Client(one.url, ADMIN) as admin:
        yield admin


@pytest.fixture
def token(admin: Client, request: pytest.FixtureRequest) -> str:
    """The token of a tenant that this test has for itself."""
    name = f"t{abs(hash(request.node.nodeid))}"
    admin.put_tenant(name)
    return admin.add_token(name).text


@pytest.fixture
def client(one: Child, token: str) -> Iterator[Client]:
    with Client(one.url, token) as client:
        yield client


# ---- plugins ----


def test_a_plugin_is_uploaded_with_progress_switched_and_rolled_back(client, tmp_path):
    seen: list[Progress] = []
    path = tmp_path / "one.wat"
    path.write_bytes(versioned(1))
    first = client.upload("p", path, progress=seen.append)
    assert (first.number, first.state, dict(first.functions)) == (
        1,
        "ready",
        {"which": "() -> (i32)"},
    )
    states = [progress.state for progress in seen]
    assert states[0] == "sending"
    assert states[-1] == "ready"
    assert seen[-1].sent_bytes == seen[-1].total_bytes == path.stat().st_size
    pieces = (bytes([byte]) for byte in versioned(2))
    assert client.upload("p", pieces).number == 2
    assert client.upload("p", versioned(3), wait=False).state in ("compiling", "ready")
    assert client.version("p", 3, wait_s=PATIENCE).state == "ready"
    client.set_alias("p", "live", 1)
    assert client.set_alias("p", "live", 3).previous == 1
    assert client.call("p", "which", ref="live") == 3
    assert client.roll_back("p", "live").version == 1
    assert client.call("p", "which", ref="live") == 1
    assert client.call("p", "which", ref=2) == 2
    with pytest.raises(Conflict):
        client.remove_version("p", 1)
    client.remove_alias("p", "live")
    client.remove_version("p", 1)
    (plugin,) = client.plugins()
    assert plugin == client.plugin("p")
    assert [version.number for version in plugin.versions] == [2, 3]
    assert (plugin.latest, dict(plugin.aliases)) == (3, {})


def test_settings_of_an_upload_hold(client):
    client.upload("echo", guest_file("echo"), argv=["first"], env={"COLOUR": "red & blue"})
    done = client.run("echo", "second", "0")
    assert done.stdout == b"arg echo\narg first\narg second\narg 0\nenv COLOUR=red & blue\n"
    client.upload("spin", guest_file("spin"), deadline=DEADLINE)
    with pytest.raises(DeadlinePassed):
        client.call("spin", "spin")
    client.upload("spin", guest_file("spin"), fuel=1000)
    with pytest.raises(GuestFailed) as caught:
        client.call("spin", "spin")
    assert caught.value.facts == {"limit": "OutOfFuel"}


def test_each_problem_is_an_error_of_its_own(one, client, admin):
    with pytest.raises(BadPlugin) as bad:
        client.upload("bad", b"rubbish")
    assert bad.value.facts["version"] == 1
    with pytest.raises(NotReady):
        client.call("bad", "f")
    with pytest.raises(Missing):
        client.plugin("none")
    client.upload("trap", guest_file("unreachable"))
    (function,) = list(client.version("trap", 1).functions)[:1]
    with pytest.raises(GuestFailed) as trap:
        client.call("trap", function)
    assert trap.value.facts["trap"] == "unreachable"
    with pytest.raises(Invalid):
        client.call("trap", function, 1, 2, 3)
    with pytest.raises(Denied):
        client.tenants()
    with pytest.raises(Unknown), Client(one.url, "sh_" + "x" * 43) as nobody:
        nobody.plugins()
    client.upload("same", SAME)
    with pytest.raises(TooLarge):
        client.call_bytes("same", "same", bytes(9 << 20))
    with pytest.raises(TooLarge):
        client.call_bytes("same", "same", (bytes(1 << 20) for _ in range(20)))


# ---- values and bytes ----


def test_values_come_back_as_they_went(client):
    client.upload("types", guest_file("types"))
    assert client.call("types", "all_numbers", -1, 2**64 - 1, 0.5, -0.0) == (-1, -1, 0.5, -0.0)
    assert client.call("types", "nothing") is None
    assert client.call("types", "v128", bytes(range(16))) == bytes(range(16))
    assert client.call("types", "f64", float("-inf")) == float("-inf")
    assert str(client.call("types", "f64", float("nan"))) == "nan"


def test_bytes_go_in_and_out_whole_or_in_pieces(client, tmp_path):
    client.upload("same", SAME)
    sent = os.urandom(2_000_000)
    path = tmp_path / "sent"
    path.write_bytes(sent)
    assert client.call_bytes("same", "same", sent) == sent
    assert client.call_bytes("same", "same", path) == sent
    assert client.call_bytes("same", "same", iter([sent[:7], sent[7:]])) == sent
    with path.open("rb") as file:
        assert client.call_bytes("same", "same", file) == sent
    with client.stream_bytes("same", "same", sent, deadline_s=PATIENCE) as pieces:
        got = list(pieces)
    assert b"".join(got) == sent
    assert len(got) > 1
    with pytest.raises(ConfigError):
        client.call_bytes("same", "same", "text")


def test_an_answer_that_is_too_long_is_not_taken(one, client, token):
    client.upload("same", SAME)
    with Client(one.url, token, answer_limit=1000) as small:
        with pytest.raises(BadAnswer, match="answer_limit"):
            small.call_bytes("same", "same", bytes(2000))
        assert small.call_bytes("same", "same", bytes(1000)) == bytes(1000)


# ---- commands ----


def test_a_command_gets_all_that_it_reads_while_it_writes(client):
    client.upload("echo", guest_file("echo"))
    sent = os.urandom(3_000_000)  # far more than fits between here and there
    done = client.run("echo", "7", stdin=sent)
    assert done.status == 7
    assert done.stdout == b"arg echo\narg 7\n" + sent
    assert done.stderr == b"echo: input ended\n"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_conversation_with_a_command_goes_to_and_fro(one, client, token, backend):
    client.upload("echo", guest_file("echo"))
    heard = bytearray()

    async def main() -> None:
        said = [anyio.Event() for _ in range(3)]

        async def stdin() -> AsyncIterator[bytes]:
            for number, event in enumerate(said):
                yield b"word %d;" % number
                await event.wait()  # for its echo

        async with AsyncClient(one.url, token) as asking:
            async with asking.command("echo", stdin=stdin(), deadline_s=PATIENCE) as command:
                async for stream, data in command:
                    if stream == "stdout":
                        heard.extend(data)
                    for number, event in enumerate(said):
                        if b"word %d;" % number in heard:
                            event.set()
            assert command.status == 0

    anyio.run(main, backend=backend)
    assert heard == b"arg echo\nword 0;word 1;word 2;"


def test_leaving_a_command_ends_it_there(one, client, admin):
    client.upload("echo", guest_file("echo"))
    stop = threading.Event()

    def forever() -> Iterator[bytes]:
        yield b"x"
        stop.wait()

    try:
        with client.command("echo", stdin=forever()) as command:
            assert next(iter(command)).data.startswith(b"arg echo")
        with pytest.raises(ZeroDivisionError):
            with client.command("echo", stdin=forever()):
                1 / 0
        with pytest.raises(DeadlinePassed):
            client.run("echo", stdin=forever(), deadline_s=0.2)
    finally:
        stop.set()


def test_what_goes_wrong_in_a_commands_input_is_told(client):
    client.upload("echo", guest_file("echo"))

    def broken() -> Iterator[bytes]:
        yield b"x"
        raise RuntimeError("the source is dry")

    with pytest.raises(RuntimeError, match="dry"):
        client.run("echo", stdin=broken())
    with pytest.raises(Missing):
        client.run("none", stdin=broken())


# ---- sessions, the operator's ----


def test_a_session_keeps_its_guest(client):
    client.upload("count", COUNTER)
    with client.session("count") as session:
        assert [session.call("next") for _ in range(3)] == [1, 2, 3]
        assert session.id not in repr(session)
    with pytest.raises(Missing):
        session.call("next")
    assert client.call("count", "next") == 1


def test_the_operator_sees_and_changes_what_is_his(one, admin):
    made = admin.put_tenant("op", Quotas(guests=7, memory_limit="1 MiB"))
    assert dict(made.quotas) == {"guests": 7, "memory_limit": 1 << 20}
    assert admin.tenant("op") in admin.tenants()
    token = admin.add_token("op", ["invoke"], label="web", expires_in_s=3600)
    assert token.text not in repr(token)
    assert [known.id for known in admin.tokens("op")] == [token.id]
    with Client(one.url, token.text) as client:
        assert client.plugins() == ()
        admin.revoke_token("op", token.id)
        with pytest.raises(Unknown):
            client.plugins()
    actions = [entry.action for entry in admin.audit(limit=3)]
    assert actions == ["token.revoke", "token.add", "tenant.put"]
    newest = admin.audit(limit=1)[0]
    assert admin.audit(limit=1, before=newest.at_ns)[0].at_ns < newest.at_ns


def test_health_needs_no_token(one):
    with Client(one.url) as nobody:
        assert nobody.health().ready


# ---- the other face ----


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_tasks_ask_at_once(one, token, backend):
    results: list[Any] = []

    async def main() -> None:
        async with AsyncClient(one.url, token) as client:
            assert repr(client) == f"<sandhost.client.AsyncClient {one.url}>"
            await client.upload("sum", guest_file("add"))
            await client.upload("same", SAME)

            async def ask(n: int) -> None:
                results.append(await client.call("sum", "add", n, 1))

            async with anyio.create_task_group() as tasks:
                for n in range(50):
                    tasks.start_soon(ask, n)

            async def pieces() -> AsyncIterator[bytes]:
                yield b"a"
                yield b"b"

            assert await client.call_bytes("same", "same", pieces()) == b"ab"
            async with client.stream_bytes("same", "same", b"xyz") as got:
                assert b"".join([piece async for piece in got]) == b"xyz"
            await client.upload("count", COUNTER)
            async with client.session("count") as session:
                assert [await session.call("next") for _ in range(2)] == [1, 2]
            with pytest.raises(Missing):
                await client.call("none", "f")

    anyio.run(main, backend=backend)
    assert sorted(results) == list(range(1, 51))


def test_a_task_that_is_cancelled_leaves_no_session(one, client, token):
    client.upload("count", COUNTER)

    async def main() -> str:
        async with AsyncClient(one.url, token) as asking:
            with anyio.move_on_after(0.2):
                async with asking.session("count") as session:
                    await anyio.sleep_forever()
            with pytest.raises(Missing):
                await session.call("next")
            return session.id

    assert asyncio.run(main())


# ---- peers that behave badly ----


@contextmanager
def peer(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Have an address at which `serve` is called with each connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    serve(connection)
                except OSError:
                    pass

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def whole_request(connection: socket.socket) -> bytes:
    """Read a request that has its length in its head, or no body."""
    text = b""
    while b"\r\n\r\n" not in text:
        text += connection.recv(65536) or b"\r\n\r\n"
    head, _, body = text.partition(b"\r\n\r\n")
    lengths = [
        line.split(b":")[1] for line in head.lower().split(b"\r\n") if b"content-length" in line
    ]
    while len(body) < int(lengths[0] if lengths else 0):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def answering(head: bytes, body: bytes = b"") -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        whole_request(connection)
        connection.sendall(b"HTTP/1.1 " + head + b"\r\nConnection: close\r\n\r\n" + body)

    return serve


@pytest.mark.parametrize("backend", ["sync", "asyncio", "trio"])
def test_a_deadline_bounds_the_wait_for_a_service_that_never_answers(backend):
    over = threading.Event()

    async def ask(url: str) -> None:
        async with AsyncClient(url, "x") as client:
            for asked in (client.call, client.run):
                with pytest.raises(DeadlinePassed):
                    await asked("p", "f", deadline_s=DEADLINE)

    def never(connection: socket.socket) -> None:
        whole_request(connection)
        connection.recv(1)  # until the client has gone

    before = time.monotonic()
    with peer(never) as url:
        if backend == "sync":
            with Client(url, "x") as client, pytest.raises(DeadlinePassed):
                client.call("p", "f", deadline_s=DEADLINE)
            with Client(url, "x", timeout_s=DEADLINE, retry=None) as client:
                with pytest.raises(Unreachable, match="silent") as caught:
                    client.call("p", "f")
                assert caught.value.sent
        else:
            anyio.run(ask, url, backend=backend)
    over.set()
    assert time.monotonic() - before < PATIENCE


@pytest.mark.parametrize(
    ("head", "body", "error"),
    [
        (b"200 OK\r\nContent-Type: text/html", b"<h1>Welcome</h1>", BadAnswer),
        (b"200 OK\r\nContent-Encoding: gzip", b"\x1f\x8b\x08rubbish", BadAnswer),
        (b"302 Found\r\nLocation: http://127.0.0.1:9/", b"", BadAnswer),
        (b"200 OK\r\nContent-Length: 100", b"cut off", Unreachable),
        (b"rubbish", b"", Unreachable),
    ],
)
def test_what_answers_and_is_no_service_is_told(head, body, error):
    with peer(answering(head, body)) as url, Client(url, "x", retry=None) as client:
        with pytest.raises(error):
            client.plugins()
        with pytest.raises((BadAnswer, Unreachable)):
            client.run("p")


def test_nobody_there_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with Client(url, "x", retry=None) as client:
        for asked in (client.plugins, lambda: client.run("p")):
            with pytest.raises(Unreachable) as caught:
                asked()
            assert str(caught.value) == f"no service can be reached at {url}: Connection refused"
            assert not caught.value.sent


class CutsOff:
    """Passes requests on to a service, and loses the first answers."""

    def __init__(self, one: Child, losses: int) -> None:
        self.port, self.losses, self.asked = one.port, losses, 0

    def __call__(self, connection: socket.socket) -> None:
        request = whole_request(connection).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        request = request.replace(b"Connection: keep-alive\r\n", b"")
        self.asked += 1
        with socket.create_connection(("127.0.0.1", self.port)) as service:
            service.sendall(request)
            answer = b"".join(iter(lambda: service.recv(65536), b""))
        if self.asked > self.losses:
            connection.sendall(answer)


def test_a_call_whose_answer_was_lost_is_done_once(one, client, token):
    client.upload("count", COUNTER)
    with client.session("count") as session:
        cut = CutsOff(one, 2)
        with peer(cut) as url, Client(url, token, retry=Retry(first_s=0.01)) as through:
            from sandhost.client import Session

            there = Session(through, "count", session.id)
            assert there.call("next", once=True) == 1
            assert cut.asked == 3
            cut.losses = cut.asked + 1
            with pytest.raises(Unreachable):
                there.call("next")  # without a key nobody knows whether it was done
        assert session.call("next") == 3


def test_refusals_are_waited_out_unless_that_is_turned_off(one, admin):
    admin.put_tenant("slow", Quotas(spawns_per_s=4))
    token = admin.add_token("slow").text
    with Client(one.url, token) as client, Client(one.url, token, retry=None) as hasty:
        client.upload("sum", guest_file("add"))
        assert [client.call("sum", "add", n, 1) for n in range(7)] == list(range(1, 8))
        with pytest.raises(TooMany) as caught:
            for _ in range(1000):
                hasty.call("sum", "add", 1, 1)
        assert caught.value.retry_after_s


def test_the_token_is_in_no_log_and_no_repr(one, client, token, caplog):
    caplog.set_level(logging.DEBUG)
    client.upload("sum", guest_file("add"))
    client.call("sum", "add", 1, 2)
    with pytest.raises(Invalid) as caught:
        client.run("sum")
    assert caplog.records
    assert token not in caplog.text
    assert token not in repr(client) + repr(vars(client)) + repr(caught.value)
