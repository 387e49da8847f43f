"""Modules are compiled in processes of their own: in turns, bounded in time and memory, and ended with the service."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from helpers.serving import Desk, desk, in_desk

from sandhost.errors import ModuleError
from sandhost.serve.compiler import Compilers
from sandhost.serve.problems import BadPlugin, TooMany, Unavailable
from sandhost.serve.turns import Turns

SMALL = b'(module (func (export "seven") (result i32) (i32.const 7)))'


def leb(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def section(id_: int, content: bytes) -> bytes:
    return bytes([id_]) + leb(len(content)) + content


def large(functions: int) -> bytes:
    """A module that takes long to compile: each function some milliseconds."""
    add = bytes([0x20, 0, 0x41, 7, 0x6A, 0x22, 0, 0x20, 0, 0x6C, 0x21, 0])
    body = b"\0" + add * 2000 + bytes([0x20, 0, 0x0B])
    code = leb(functions) + (leb(len(body)) + body) * functions
    return (
        b"\0asm\1\0\0\0"
        + section(1, bytes([1, 0x60, 1, 0x7F, 1, 0x7F]))
        + section(3, leb(functions) + b"\0" * functions)
        + section(10, code)
    )


def keep(folder: Path, module: bytes) -> tuple[Path, str]:
    path = folder / "module"
    path.write_bytes(module)
    return path, hashlib.sha256(module).hexdigest()


async def unwanted() -> AsyncIterator[bytes]:
    """A body that nobody should have begun to read."""
    raise AssertionError
    yield b""


# ---- the processes ----


def test_a_module_that_takes_too_long_or_too_much_fails_and_the_next_is_compiled(tmp_path):
    path, digest = keep(tmp_path, large(2500))
    with Compilers(2 << 30, 0.2) as compilers, pytest.raises(BadPlugin, match=r"than the 0.2 s"):
        compilers.compile(path, digest, "large", fuel=False)
    with Compilers(256 << 20, 60) as compilers:
        with pytest.raises(BadPlugin, match="bytes of memory that it may"):
            compilers.compile(path, digest, "large", fuel=False)
        compilers.compile(*keep(tmp_path, SMALL), "small", fuel=False)


def test_what_is_wrong_with_a_module_is_said_as_the_host_says_it(tmp_path, host):
    with Compilers(2 << 30, 60) as compilers:
        for module in (b"no wasm", b"\0asm\1\0\0\0\1", b'(module (import "no" "where" (func)))'):
            with pytest.raises(ModuleError) as here:
                host.load(module, name="bad")
            with pytest.raises(ModuleError) as there:
                compilers.compile(*keep(tmp_path, module), "bad", fuel=False)
            assert str(there.value) == str(here.value)
            assert there.value.offset == here.value.offset
        path, _ = keep(tmp_path, SMALL)
        with pytest.raises(OSError, match="altered"):
            compilers.compile(path, "0" * 64, "small", fuel=False)


def test_a_process_that_has_gone_is_replaced_and_knows_no_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("SANDHOST_ADMIN_TOKEN", "sh_" + "S" * 43)
    with Compilers(2 << 30, 60) as compilers:
        path, digest = keep(tmp_path, SMALL)
        compilers.compile(path, digest, "small", fuel=False)
        [child] = compilers._idle
        pid = child._process.pid
        assert "SSSS" not in Path(f"/proc/{pid}/environ").read_text()
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(
            19, os.getpriority(os.PRIO_PROCESS, 0) + 10
        )
        compilers.compile(path, digest, "small", fuel=False)
        assert compilers._idle == [child]  # the same one
        child.kill()
        compilers.compile(path, digest, "small", fuel=False)
        assert compilers._idle != [child]
    with pytest.raises(Unavailable):
        compilers.compile(path, digest, "small", fuel=False)


# ---- turns ----


def test_turns_go_round_between_tenants_and_nobody_has_all_places():
    async def test() -> None:
        turns, order, ended = Turns(2, 3), [], asyncio.Event()

        async def work(tenant: str, wait: asyncio.Event) -> None:
            async with turns.take(tenant):
                order.append(tenant)
                await wait.wait()

        first = asyncio.Event()
        tasks = [asyncio.ensure_future(work("a", first))]
        tasks += [asyncio.ensure_future(work("a", ended)) for _ in range(3)]
        await asyncio.sleep(0)
        assert (order, turns.waiting("a")) == (["a"], 3)  # a place is left for others
        with pytest.raises(TooMany) as caught:
            turns.check_room("a")
        assert caught.value.retry_after_s
        turns.check_room("b")
        tasks += [asyncio.ensure_future(work(name, ended)) for name in "bbc"]
        await asyncio.sleep(0)
        assert order == ["a", "b"]
        tasks[2].cancel()  # one of a's leaves the line
        await asyncio.sleep(0)
        assert turns.waiting("a") == 2
        ended.set()
        first.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(order) == list("aaabbc")
        assert order.index("c") < len(order) - 1  # not behind all that came before
        assert turns.waiting() == 0

    asyncio.run(test())


def test_all_that_wait_may_be_cancelled_at_once():
    async def test() -> None:
        turns = Turns(1, 3)

        async def work() -> None:
            async with turns.take("a"):
                await asyncio.sleep(60)

        tasks = [asyncio.ensure_future(work()) for _ in range(4)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in ended] == [asyncio.CancelledError] * 4
        assert turns.waiting() == 0
        async with turns.take("a"):
            pass

    asyncio.run(test())


def test_a_tenant_that_rests_has_no_turn_until_then():
    async def test() -> None:
        turns, order = Turns(2, 3), []
        loop = asyncio.get_running_loop()

        async def work(tenant: str) -> None:
            async with turns.take(tenant):
                order.append(tenant)

        began_s = loop.time()
        turns.rest("a", 0.1)
        turns.rest("a", 0.1)
        resting = asyncio.ensure_future(work("a"))
        await asyncio.sleep(0)
        assert turns.waiting("a") == 1
        await work("b")
        assert order == ["b"]
        await resting
        assert order == ["b", "a"]
        assert loop.time() - began_s >= 0.19  # the clock of timers is coarse
        await work("a")

    asyncio.run(test())


# ---- the service ----


def test_a_tenants_modules_take_no_more_of_the_processors_than_its_quota(data):
    async def test(one: Desk) -> None:
        acme, other = await one.client("acme"), await one.client("other")
        began_s = time.monotonic()
        await acme.deploy("p", SMALL)
        await acme.ask("PUT", "/v1/plugins/p", 202, content=b"nothing to compile")
        third = (await acme.ask("PUT", "/v1/plugins/p", 202, content=SMALL))["version"]
        await other.deploy("p", SMALL)  # does not wait for it
        await acme.ask("GET", f"/v1/plugins/p/versions/{third}?wait=60", 200)
        # Two turns came before, and each is followed by a rest, also what was soon refused.
        assert time.monotonic() - began_s >= 2 * 0.1 / 0.25 - 0.02

    in_desk(data, test, tenant_cpus=0.25)


def test_what_keeps_a_version_from_being_noted_as_ready_is_logged(data, monkeypatch, caplog):
    def full(*_given: object) -> None:
        raise OSError(28, "No space left on device")

    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        monkeypatch.setattr(one.service.registry.plugins, "mark_ready", full)
        await acme.ask("PUT", "/v1/plugins/p", content=SMALL)
        while not caplog.records:
            await asyncio.sleep(0.01)

    with caplog.at_level(logging.ERROR, "sandhost.serve"):
        in_desk(data, test)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [OSError]


def test_a_long_compile_holds_up_neither_others_nor_the_end(data):
    async def both() -> None:
        async with desk(data, compile_time="5 min", tenant_compiles=1) as one:
            acme, other = await one.client("acme"), await one.client("other")
            put = "/v1/plugins/{}"
            await acme.ask("PUT", put.format("big"), 202, content=large(2500))
            await acme.ask("PUT", put.format("next"), 202, content=SMALL)
            unread = unwanted()
            refused = await acme.problem("PUT", put.format("more"), 429, "too-many", content=unread)
            assert refused["retry_after_s"] > 0
            assert (await acme.ask("GET", "/v1/plugins/more")).status_code == 404
            await other.deploy("p", SMALL)  # has its turn, and is called, meanwhile
            assert await other.call("p", "seven") == [7]
            big = await acme.ask("GET", "/v1/plugins/big/versions/1", 200)
            assert (big["state"], big["progress"]["step"]) == ("compiling", "compiling")
            waits = await acme.ask("GET", "/v1/plugins/next/versions/1", 200)
            assert waits["progress"] == {"step": "waiting", "before": 0}
        # Drained: it was ended, and is not forgotten.
        async with desk(data, compile_memory="256 MiB") as one:
            states = {}
            for _ in range(9000):
                states = {
                    name: one.service.registry.plugins.version("acme", name, 1).state
                    for name in ("big", "next")
                }
                if "compiling" not in states.values():
                    break
                await asyncio.sleep(0.02)
            assert states == {"big": "failed", "next": "ready"}
            error = one.service.registry.plugins.version("acme", "big", 1).error
            assert error is not None
            assert "bytes of memory that it may" in error

    asyncio.run(both())


def test_a_function_to_warm_is_bounded_and_ended_with_the_service(data):
    spins = b'(module (func (export "warm") (loop (br 0))))'

    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        made = await acme.ask(
            "PUT", "/v1/plugins/spin", 202, content=spins, params={"warm": "warm", "deadline": 1000}
        )
        for _ in range(12_000):
            if one.service.versions._warming:
                break
            await asyncio.sleep(0.01)
        assert one.service.versions._warming
        await one.service.drain()
        version = one.service.registry.plugins.version("acme", "spin", made["version"])
        assert version.state == "compiling"  # the next start goes on with it

    in_desk(data, test)

    async def again(one: Desk) -> None:
        for _ in range(12_000):
            version = one.service.registry.plugins.version("acme", "spin", 1)
            if version.state == "failed":
                break
            await asyncio.sleep(0.01)
        assert version.state == "failed"
        assert "deadline" in str(version.error)

    in_desk(data, again, compile_time=2)


def test_calls_that_give_up_leave_loading_to_the_others(data):
    async def both() -> None:
        async with desk(data) as one:
            acme = await one.client("acme")
            await acme.deploy("p", SMALL)
            token = acme.headers
        async with desk(data) as one:
            version = one.service.registry.plugins.version("acme", "p", 1)
            waiting = [asyncio.ensure_future(one.service.loaded(version)) for _ in range(50)]
            await asyncio.sleep(0)
            assert len(one.service.deployments._loading) == 1
            for task in waiting[:49]:
                task.cancel()
            assert (await waiting[49]).plugin.name == "acme/p@1"
            assert not one.service.deployments._loading
            answer = await one.http.post("/v1/plugins/p/call/seven", headers=token, json={})
            assert answer.json() == {"results": [7]}

    asyncio.run(both())
