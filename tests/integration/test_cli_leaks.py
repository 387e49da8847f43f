"""`sandhost leaks`: a planted leak is named with its holder, a steady cache is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections import deque
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import sandhost
from sandhost.cli import cli
from sandhost.observe import capture


def leaks(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["leaks", *map(str, arguments)])


class Session:
    """What leaks."""


class Entry:
    """What a cache keeps a steady number of."""


class Scene:
    """An application with a registry that forgets nothing, and a cache that lets go of its oldest."""

    def __init__(self, host: sandhost.Host) -> None:
        self.host, self.heap = host, host.handles
        self.heap.kind(Session, size=4096)
        self.heap.kind(Entry, size=100)
        self.registry = self.heap.new(object(), label="sessions")
        self.heap.pin(self.registry)
        self.cache: deque[int] = deque()

    def turn(self, sessions: int, entries: int) -> None:
        for _ in range(sessions):
            session = self.heap.new(Session())
            self.heap.link(self.registry, session)
            self.heap.release(session)
        for _ in range(entries):
            self.cache.append(self.heap.new(Entry(), label="cache"))
            if len(self.cache) > 200:
                self.heap.release(self.cache.popleft())

    def save(self, path: Path) -> Path:
        capture(self.host, gc=True).write(path)
        return path


@pytest.fixture
def scene(host):
    return Scene(host)


def test_a_planted_leak_is_named_with_its_holder(scene, tmp_path):
    scene.turn(50, 300)
    before = scene.save(tmp_path / "before.pb.gz")
    scene.turn(40, 300)
    after = scene.save(tmp_path / "after.pb.gz")
    result = leaks(before, after)
    assert result.exit_code == 1
    assert "Session" in result.output
    assert "pinned > object [sessions]  (+40)" in result.output
    assert "+160 KiB" in result.output
    assert "the host" in result.output
    assert "Entry" not in result.output, "the cache is steady, though none of its entries is old"
    record = json.loads(leaks(before, after, "--json").output)
    (growth,) = record["grown"]
    assert (growth["kind"], growth["objects"], growth["allocs"]) == ("Session", [50, 90], 40)
    (holder,) = growth["holders"]
    assert (holder["path"], holder["objects"]) == ("pinned > object [sessions]", 40)
    assert 0 <= holder["median_age_ns"] <= holder["oldest_age_ns"] < 60e9


def test_nothing_is_said_of_a_steady_cache(scene, tmp_path):
    scene.turn(50, 300)
    looks = [scene.save(tmp_path / "0")]
    for number in range(1, 4):
        scene.turn(0, 1000)
        looks.append(scene.save(tmp_path / str(number)))
    result = leaks(*looks)
    assert (result.exit_code, result.output.startswith("Nothing grew within")) == (0, True)
    assert json.loads(leaks(*looks, "--json").output)["grown"] == []


def test_leaks_of_guests_are_told_by_tenant_and_plugin(host, tmp_path):
    from helpers import guest_file

    @host.function("env", "open")
    def open_session(number: int) -> sandhost.Handle[Session]:
        return Session()

    @host.function("env", "read")
    def read(session: sandhost.Handle[Session]) -> int:
        return 0

    plugin = host.load(guest_file("handles"), name="\x1b[31mshop")
    with plugin.spawn(tenant="acme") as bad, plugin.spawn(tenant="good") as good:
        bad.call("leak", 10), good.call("leak", 10)
        capture(host).write(tmp_path / "before")
        bad.call("leak", 30), good.call("churn", 1000)
        capture(host).write(tmp_path / "after")
    result = leaks(tmp_path / "before", tmp_path / "after", "--least", 5)
    assert "acme: \\x1b[31mshop" in result.output
    assert "good" not in result.output
    assert all(c == "\n" or c.isprintable() for c in result.output)


PROCESS = """
import sys, threading, time
import sandhost
from sandhost.observe import serve

class Session: pass
class Entry: pass

with sandhost.Host(cache=False) as host:
    heap = host.handles
    heap.kind(Session), heap.kind(Entry)
    registry = heap.new(object(), label="registry")
    heap.pin(registry)
    with serve(host) as server:
        print(server.url("heap", debug=1), flush=True)
        stop = threading.Event()
        def work():
            cache = []
            while not stop.is_set():
                session = heap.new(Session(), size=64)
                heap.link(registry, session)
                heap.release(session)
                cache.append(heap.new(Entry(), size=64))
                if len(cache) > 3:
                    heap.release(cache.pop(0))
                time.sleep(0.001)
        thread = threading.Thread(target=work)
        thread.start()
        sys.stdin.read()
        stop.set()
        thread.join()
"""


@pytest.fixture
def process(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROCESS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,  # the installed package, not the sources here
        text=True,
    ) as running:
        assert running.stdout is not None
        yield running.pid, running.stdout.readline().strip()
        assert running.stdin is not None
        running.stdin.close()
        assert running.wait(60) == 0


@pytest.mark.parametrize("how", ["--url", "--pid"])
def test_a_running_process_is_watched(process, how):
    pid, url = process
    result = leaks(how, url if how == "--url" else pid, "--for", "1.5s", "--json", "--least", 5)
    assert result.exit_code == 1, result.output
    record = json.loads(result.stdout)
    assert record["seconds"] >= 1
    (growth,) = record["grown"]
    assert growth["kind"] == "Session"
    assert len(growth["objects"]) == 4
    assert growth["holders"][0]["path"] == "pinned > object [registry]"


def test_who_does_not_answer_is_named(process):
    _, url = process
    refused = leaks("--url", url.replace("token=", "token=x"), "--for", "1s")
    assert (refused.exit_code, "answers 403: a token is needed" in refused.output) == (125, True)
    nobody = leaks("--url", "http://127.0.0.1:9/", "--for", "1s")
    assert "does not answer" in nobody.output
    stranger = leaks("--pid", os.getpid(), "--for", "1s")
    assert "does not serve profiles to you" in stranger.output


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["only-one"],
        ["--url", "file:///etc/passwd"],
        ["--url", "http:///x"],
        ["a", "b", "--pid", "1"],
        ["--pid", "1", "--url", "http://x"],
        ["--pid", "0"],
        ["--pid", "1", "--for", "soon"],
    ],
)
def test_wrong_usage_is_said_so(arguments):
    assert leaks(*arguments).exit_code == 2


def test_what_is_no_profile_is_named(tmp_path):
    (tmp_path / "a").write_bytes(b"hello")
    (tmp_path / "b").write_bytes(b"hello")
    result = leaks(tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 125
    assert "a: this is no profile" in result.output


def test_the_command_explains_itself():
    text = CliRunner().invoke(cli, ["leaks", "--help"]).output
    assert "sandhost leaks BEFORE AFTER" in text
    assert "--url" in text
