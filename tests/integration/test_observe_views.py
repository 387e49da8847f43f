"""Looking at hosts: what a view says of a real one, and how another process gets at it."""

from __future__ import annotations

import json
import os
import pty
import select
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import pytest
from helpers import PAGE, WASM_PAGE, Background, collected, guest_file, wait_until

import sandhost
from sandhost.errors import ConfigError, SandhostError
from sandhost.observe import sharing
from sandhost.observe.asking import ask, ask_url, find
from sandhost.observe.picture import look
from sandhost.observe.records import from_json
from sandhost.observe.sharing import places, share
from sandhost.observe.views import View

SANDHOST = str(Path(sysconfig.get_path("scripts"), "sandhost"))


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    """A folder of its own for the sockets of each test."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "sandhost"


# ---- slots and views of a real host ----


def test_slots_say_whose_they_are_and_what_is_resident(host):
    plugin = host.load(guest_file("secrets"), name="secrets")
    with plugin.spawn(tenant="acme") as guest:
        guest.call("grow", 3)
        before = host.slots()[0].resident_bytes
        guest.memory.write(WASM_PAGE, b"x" * 5 * PAGE)
        (slot,) = host.slots()
        assert (slot.state, slot.guest) == ("live", guest.id)
        assert (slot.plugin, slot.tenant) == ("secrets", "acme")
        assert slot.resident_bytes == before + 5 * PAGE
        assert slot.committed_bytes == host.stats().committed_bytes
        assert host.slots(measure=False)[0].resident_bytes is None
    (slot,) = host.slots()
    assert (slot.state, slot.guest, slot.tenant) == ("warm", 0, None)
    assert slot.resident_bytes == host.stats().warm_bytes
    host.trim()
    assert [slot.state for slot in host.slots()] == ["cold"]


def test_a_guest_that_ended_with_a_view_alive_owns_its_slot_no_more(host):
    guest = host.load(guest_file("secrets")).spawn()
    view = guest.memory.view(0, 4)
    with pytest.raises(sandhost.GuestBusy):
        guest.close()
    assert host.slots()[0].guest == guest.id
    view.release()
    guest.close()
    assert host.slots()[0].guest == 0


def test_slots_are_listed_while_guests_come_and_go(host):
    plugin = host.load(guest_file("add"), name="add")
    bad = host.load(guest_file("start_trap"), name="bad")
    stop = threading.Event()

    def churn(tenant):
        while not stop.is_set():
            plugin.spawn(tenant=tenant).close()
            with pytest.raises(sandhost.GuestTrap):
                bad.spawn(tenant=tenant)

    churning = [Background(churn, tenant) for tenant in ("a", "b")]
    for _ in range(300):
        for slot in host.slots():
            assert slot.tenant in {"a", "b", None}
            assert slot.plugin in {"add", "bad", ""}
            assert slot.state == "live" or not slot.guest
    stop.set()
    for one in churning:
        one.result()


def test_looking_at_an_empty_host_makes_nothing(host):
    view = look(host)
    assert host.handles_and_gc is None
    assert host.made_pressure is None
    assert (view.pressure, view.collector, view.tenants, view.guests) == (None, None, (), ())
    assert view.slots.slots == 0
    assert view.figures.guests_live == 0


def test_a_view_says_who_holds_what(host):
    plugin = host.load(guest_file("secrets"), name="secrets")
    host.tenant("idle")
    host.tenant("big", memory_limit="8 MiB")
    with plugin.spawn(tenant="big") as big, plugin.spawn() as alone:
        big.call("grow", 5)
        big.memory.write(0, b"x" * PAGE)
        alone.call("grow", 1)
        view = look(host)
        assert [guest.id for guest in view.guests] == [big.id, alone.id]
    assert [tenant.name for tenant in view.tenants] == ["big", None, "idle"]
    first, rest, _ = view.tenants
    assert (first.memory_limit, first.guests) == (8 << 20, 1)
    assert first.resident_bytes == PAGE
    assert rest.guests == 1
    assert view.figures.committed_bytes == first.memory_bytes + rest.memory_bytes
    assert [(p.name, p.guests, p.memory_bytes) for p in view.plugins] == [
        ("secrets", 2, view.figures.committed_bytes)
    ]
    assert view.slots.counts["live"] == 2
    assert sum(view.slots.resident.values()) == PAGE
    assert view.latency["spawn"].total == 2


def test_a_view_shows_pressure_and_the_last_cycles():
    with sandhost.Host(cache=False, process_limit="64 GiB") as host:
        wait_until(lambda: host.pressure.stats().samples > 0)
        host.handles.new(b"x" * 1000)
        host.gc.collect()
        view = look(host)
        assert view.pressure is not None
        assert (view.pressure.level, view.pressure.limit_bytes) == ("calm", 64 << 30)
        assert {one.signal for one in view.pressure.opinions} >= {"usage", "time to limit"}
        assert view.collector is not None
        assert [cycle.number for cycle in view.collector.history] == [1]
        assert view.collector.history[0].reason == "explicit"
        assert view.collector.cycles == 1


def test_shares_are_of_the_smaller_limit():
    with sandhost.Host(cache=False, memory_limit="1 GiB") as host:
        host.tenant("a", weight=3.0)
        host.tenant("b", weight=1.0)
        shares = {tenant.name: tenant.share_bytes for tenant in look(host).tenants}
    assert shares["a"] in (3 << 28, 1 << 30)  # who holds nothing leaves its part to others
    assert shares["b"] in (1 << 28, 1 << 30)


# ---- another process ----

_CHILD = f"""
import sys, sandhost
from sandhost.observe.sharing import share
with sandhost.Host(cache=False) as host:
    plugin = host.load({str(guest_file("add"))!r}, name="<script>\\x1b[2J\\u202e")
    guests = [plugin.spawn(tenant=f"tenant {{n}}") for n in range(20)]
    share(host)
    print("ready", flush=True)
    sys.stdin.read()
print("closed", flush=True)
"""


@pytest.fixture
def child():
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def run(*arguments, **more):
    return subprocess.run(
        [SANDHOST, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd="/",
        **more,
    )


def test_another_process_is_looked_at_over_its_socket(child, runtime):
    assert [(place.pid, place.name) for place in places()] == [(child.pid, str(child.pid))]
    view = ask(find(None))
    assert (view.process.pid, view.figures.guests_live) == (child.pid, 20)
    assert len(view.tenants) == 20
    assert runtime.stat().st_mode & 0o777 == 0o700
    for name in (str(child.pid), None):
        assert ask(find(name)).process.pid == child.pid
    with pytest.raises(ConfigError, match=str(child.pid)):
        find("1")


def test_the_commands_show_another_process(child, tmp_path):
    shown = run("top", "--once", "--interval", "0.1")
    assert shown.returncode == 0, shown.stderr
    assert f"{child.pid}" in shown.stdout
    assert "tenant 19" in shown.stdout
    assert all(character.isprintable() or character == "\n" for character in shown.stdout)

    printed = run("top", "--json", "--pid", str(child.pid))
    assert from_json(View, printed.stdout.encode()).process.pid == child.pid
    assert json.loads(printed.stdout)["doing"] == {"idle": 20, "running": 0, "waiting": 0}

    page = tmp_path / "page.html"
    assert run("report", "-o", str(page)).returncode == 0
    text = page.read_text(encoding="utf-8")
    assert "tenant 19" in text
    assert "<script" not in text
    assert run("report", "-o", "-").stdout.startswith("<!DOCTYPE html>")


def test_the_socket_goes_when_the_process_closes_its_host(child, runtime):
    child.stdin.close()
    assert child.stdout.readline() == "closed\n"
    assert child.wait(60) == 0
    assert list(runtime.iterdir()) == []


def test_commands_say_what_is_missing(tmp_path):
    nobody = run("top", "--once")
    assert (nobody.returncode, nobody.stdout) == (125, "")
    assert "no process shows its host" in nobody.stderr
    both = run("top", "--demo", "--pid", "1")
    assert both.returncode == 125
    assert "give one" in both.stderr
    nowhere = run("report", "-o", str(tmp_path / "no" / "page.html"))
    assert nowhere.returncode == 1


# ---- the socket ----


def test_a_host_is_shared_until_it_is_closed(runtime):
    with sandhost.Host(cache=False) as host:
        shared = share(host)
        assert ask(shared.path).process.pid == os.getpid()
    assert list(runtime.iterdir()) == []
    assert "sandhost-observe" not in {thread.name for thread in threading.enumerate()}
    shared.close()
    with pytest.raises(SandhostError, match="does not answer"):
        ask(shared.path)


def test_sharing_may_end_before_the_host(host, runtime):
    with share(host) as shared:
        ask(shared.path)
    assert list(runtime.iterdir()) == []
    with share(host) as again:
        assert again.path == shared.path
        ask(again.path)


def test_a_host_that_is_let_go_of_is_shared_no_more(runtime):
    host = sandhost.Host(cache=False)
    share(host)
    assert len(places()) == 1
    del host
    collected()
    wait_until(lambda: not places())
    wait_until(lambda: "sandhost-observe" not in {thread.name for thread in threading.enumerate()})


def test_another_user_is_refused(host, monkeypatch):
    shared = share(host)
    monkeypatch.setattr(sharing, "peer_uid", lambda connection: os.geteuid() + 1)
    with pytest.raises(SandhostError, match="does not let this user look"):
        ask(shared.path)
    monkeypatch.undo()
    assert ask(shared.path)


def test_the_kernel_names_the_user_at_the_other_end():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        assert sharing.peer_uid(ours) == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_process_of_another_user_can_not_look(host, tmp_path):
    shared = share(host)
    for folder in (tmp_path, *tmp_path.parents):  # all but the private one is open to it
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    code = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "try: s.connect(sys.argv[1])\n"
        "except PermissionError: sys.exit(13)\n"
        "sys.exit(len(s.recv(100)))\n"
    )
    asking = [sys.executable, "-c", code, str(shared.path)]
    assert subprocess.run(asking, check=False, timeout=60).returncode == 13
    # And if the folder were open: nothing is sent.
    shared.path.parent.chmod(0o755)
    shared.path.chmod(0o777)
    assert subprocess.run(asking, check=False, timeout=60).returncode == 0


def test_a_folder_that_others_can_look_into_is_refused(host, runtime):
    runtime.mkdir(mode=0o755)
    with pytest.raises(SandhostError, match="not a folder of this user's alone"):
        share(host)
    runtime.rmdir()
    (runtime.parent / "elsewhere").mkdir(mode=0o700)
    runtime.symlink_to(runtime.parent / "elsewhere")
    with pytest.raises(SandhostError, match="not a folder of this user's alone"):
        share(host)
    with pytest.raises(SandhostError, match="not a folder of this user's alone"):
        places()


def test_a_path_that_is_too_long_is_refused(host, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(ConfigError, match="XDG_RUNTIME_DIR"):
        share(host)


def test_what_processes_left_behind_is_removed(host, runtime):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    runtime.mkdir(mode=0o700)
    for name in (f"{gone.pid}.sock", f"{os.getpid()}.sock"):  # the latter: of an earlier boot, say
        with socket.socket(socket.AF_UNIX) as old:
            old.bind(str(runtime / name))
    (runtime / "notes.txt").write_text("not ours")
    with share(host) as shared:
        assert shared.path.name == f"{os.getpid()}.sock"
        assert ask(find(None)).process.pid == os.getpid()
        assert sorted(path.name for path in runtime.iterdir()) == sorted(
            ["notes.txt", shared.path.name]
        )


def test_two_hosts_of_one_process_have_two_names(host):
    with sandhost.Host(cache=False) as other, other.load(guest_file("add")).spawn():
        share(host)
        share(other)
        names = [place.name for place in places()]
        assert sorted(names) == sorted([f"{os.getpid()}", f"{os.getpid()}-2"])
        with pytest.raises(ConfigError, match=f"{os.getpid()}-2"):
            find(None)
        assert ask(find(f"{os.getpid()}-2")).figures.guests_live == 1


def test_who_connects_and_does_not_read_keeps_nobody_for_long(host, monkeypatch):
    monkeypatch.setattr(sharing, "_SEND_S", 0.2)
    monkeypatch.setattr(sharing, "to_json", lambda view: b" " * (8 << 20))
    shared = share(host)
    with socket.socket(socket.AF_UNIX) as idle:
        idle.connect(str(shared.path))
        time.sleep(0.1)
        monkeypatch.undo()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(shared.path.parents[1]))
        assert ask(shared.path).process.pid == os.getpid()


def test_a_look_that_fails_harms_nobody(host, monkeypatch):
    shared = share(host)
    monkeypatch.setattr(sharing, "look", lambda host: 1 / 0)
    with pytest.raises(SandhostError):
        ask(shared.path)
    monkeypatch.undo()
    assert ask(shared.path)


def test_a_child_of_fork_leaves_the_socket_to_its_parent(host):
    shared = share(host)
    child = os.fork()
    if not child:
        try:
            shared.close()
            host.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert ask(shared.path).process.pid == os.getpid()


def test_addresses_that_are_none_are_refused():
    for url in ("ftp://x", "nothing", "http://", "file:///etc/passwd"):
        with pytest.raises(ConfigError, match="no address"):
            ask_url(url)
    with pytest.raises(SandhostError, match="does not answer"):
        ask_url("http://127.0.0.1:9/")


def test_a_view_comes_over_http_too(host):
    import http.server

    from sandhost.observe.records import to_json

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            good = self.headers["Authorization"] == "Bearer secret"
            self.send_response(200 if good and self.path == "/debug/sandhost/view" else 403)
            self.end_headers()
            self.wfile.write(to_json(look(host)))

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert ask_url(url, "secret").process.pid == os.getpid()
        with pytest.raises(SandhostError, match="403"):
            ask_url(url, "wrong")
        server.shutdown()
        serving.join()


# ---- the live view ----


def test_top_is_live_on_a_terminal_and_gives_it_back(child):
    """Every key it knows, then q: it ends, and the terminal is as it was."""
    import fcntl
    import struct
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    before = termios.tcgetattr(follower)
    process = subprocess.Popen(
        [SANDHOST, "top", "--interval", "0.1"],
        stdin=follower,
        stdout=follower,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm"},
        cwd="/",
    )
    seen = bytearray()

    def read_until(text):
        deadline = time.monotonic() + 30
        while text not in seen:
            assert time.monotonic() < deadline, bytes(seen[-2000:])
            if select.select([leader], [], [], 0.1)[0]:
                seen.extend(os.read(leader, 65536))

    read_until(b"q quit")
    for key in b"ghm\x1b[Ap":
        os.write(leader, bytes([key]))
    read_until(b"paused")
    os.write(leader, b"q")
    while process.poll() is None:
        if select.select([leader], [], [], 0.1)[0]:
            seen.extend(os.read(leader, 65536))
    assert process.returncode == 0, process.stderr.read()
    process.stderr.close()
    assert termios.tcgetattr(follower) == before
    assert b"\x1b[?1049h" in seen
    assert b"tenant 7" in seen
    os.close(leader)
    os.close(follower)


def test_the_demo_has_something_to_show():
    shown = run("top", "--demo", "--interval", "0.2")
    assert shown.returncode == 0, shown.stderr
    for word in ("acme", "mallory", "bench", "slots", "collector", "rows"):
        assert word in shown.stdout
    assert "\x1b" not in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 100
