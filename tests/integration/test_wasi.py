"""WASI: a guest gets what it was granted and nothing else, and its output is kept whole or counted."""

from __future__ import annotations

import os

import pytest
from helpers import Background, collected, guest_file, wait_until

import sandhost
from sandhost import Dir, Wasi, hostcalls

IMPORTS = """
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get"
    (func $environ (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_prestat_get"
    (func $prestat (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read"
    (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open" (func $open
    (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\10\\00\\00\\00\\05\\00\\00\\00")
  (data (i32.const 16) "hello")
"""
REACTOR = f"""(module {IMPORTS}
  (func (export "say") (param $fd i32) (result i32)
    (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
  (func (export "say_at") (param $fd i32) (param $iovs i32) (param $count i32) (result i32)
    (call $fd_write (local.get $fd) (local.get $iovs) (local.get $count) (i32.const 8)))
  (func (export "say_for_ever")
    (loop $again
      (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (br $again)))
  (func (export "exit") (param i32) (call $proc_exit (local.get 0)))
  (func (export "env_count") (result i32)
    (drop (call $environ (i32.const 64) (i32.const 68))) (i32.load (i32.const 64)))
  (func (export "arg_count") (result i32)
    (drop (call $args (i32.const 64) (i32.const 68))) (i32.load (i32.const 64)))
  (func (export "prestat") (param i32) (result i32)
    (call $prestat (local.get 0) (i32.const 64)))
  (func (export "read") (param i32) (result i32)
    (call $fd_read (local.get 0) (i32.const 0) (i32.const 1) (i32.const 8)))
  (func (export "open") (param $fd i32) (param $path i32) (param $length i32)
    (param $flags i32) (param $rights i64) (result i32)
    (call $open (local.get $fd) (i32.const 1) (local.get $path) (local.get $length)
      (local.get $flags) (local.get $rights) (i64.const 0) (i32.const 0) (i32.const 72)))
)""".encode()


@pytest.fixture
def echo(host):
    return host.load(guest_file("echo"))


@pytest.fixture
def files(host):
    return host.load(guest_file("files"))


def run(plugin, *argv, **grants):
    """Run a command; return its exit status, stdout and stderr."""
    with plugin.spawn(wasi=Wasi(argv=["program", *argv], **grants)) as guest:
        status = 0
        try:
            assert guest.call("_start") is None
        except sandhost.GuestExit as exited:
            status = exited.status
    return status, guest.stdout, guest.stderr


# ---- what goes in ----


def test_arguments_environment_and_input_arrive(echo):
    status, out, err = run(echo, "a", "ü b", env={"K": "v w", "L": ""}, stdin=b"\0in\xffput")
    assert (status, err) == (0, b"echo: input ended\n")
    expected = "arg program\narg a\narg ü b\nenv K=v w\nenv L=\n"
    assert out == expected.encode() + b"\0in\xffput"


def test_by_default_a_guest_gets_nothing(host, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_HOST", "x")
    plugin = host.load(REACTOR)
    for wasi in (None, Wasi()):
        with plugin.spawn(wasi=wasi) as guest:
            assert guest.call("env_count") == 0
            assert guest.call("arg_count") == 0
            assert guest.call("read", 0) == 0
            assert guest.memory.read(8, 4) == bytes(4), "no byte of input"
            assert [guest.call("prestat", fd) for fd in range(3, 20)] == [8] * 17, "EBADF each"
            for path in (b"/etc/passwd", b".", b"/"):
                guest.memory.write(100, path)
                for fd in (0, 1, 2, 3, 4, -100):
                    assert guest.call("open", fd, 100, len(path), 0, 2) != 0


def test_a_large_input_arrives_whole(echo):
    data = os.urandom(1 << 20)
    status, out, _ = run(echo, stdin=data, output_limit="2 MiB")
    assert out.endswith(data)
    assert status == 0


# ---- exit ----


def test_start_that_exits_with_0_returns_none(echo):
    with echo.spawn(wasi=Wasi(argv=["e", "0"])) as guest:
        assert guest.call("_start") is None


@pytest.mark.parametrize("status", [1, 3, 125])
def test_another_exit_status_is_a_guest_exit(echo, status):
    with echo.spawn(wasi=Wasi(argv=["e", str(status)])) as guest:
        with pytest.raises(sandhost.GuestExit) as caught:
            guest.call("_start")
    assert caught.value.status == status
    assert guest.stdout == f"arg e\narg {status}\n".encode()


def test_exit_inside_of_a_reactor_is_a_guest_exit_even_with_0(host):
    with host.load(REACTOR).spawn() as guest:
        for status in (0, 1, 77):
            with pytest.raises(sandhost.GuestExit) as caught:
                guest.call("exit", status)
            assert caught.value.status == status
        assert guest.call("arg_count") == 0
        with pytest.raises(sandhost.SandhostError):
            guest.call("exit", -1)


# ---- output ----


def test_output_beyond_the_limit_is_dropped_and_counted_each_stream_by_itself(host):
    with host.load(REACTOR).spawn(wasi=Wasi(output_limit=12)) as guest:
        assert [guest.call("say", 1) for _ in range(4)] == [0] * 4, "the guest is not told"
        guest.call("say", 2)
        assert (guest.stdout, guest.stderr, guest.output_dropped) == (b"hellohellohe", b"hello", 8)
    assert (guest.stdout, guest.stderr, guest.output_dropped) == (b"hellohellohe", b"hello", 8)


def test_a_limit_of_0_keeps_nothing(host):
    with host.load(REACTOR).spawn(wasi=Wasi(output_limit=0)) as guest:
        guest.call("say", 1)
        assert (guest.stdout, guest.output_dropped) == (b"", 5)


def test_endless_output_is_bounded_and_stopped(host):
    limits = sandhost.Limits(deadline=0.1)
    with host.load(REACTOR).spawn(limits=limits, wasi=Wasi(output_limit=1000)) as guest:
        with pytest.raises(sandhost.DeadlineExceeded):
            guest.call("say_for_ever")
        assert guest.stdout == b"hello" * 200
        assert guest.output_dropped > 0


def test_output_is_readable_after_the_host_has_ended_the_guest():
    with sandhost.Host(cache=False, max_guests=4) as host:
        guest = host.load(REACTOR).spawn()
        guest.call("say", 1)
    assert guest.stdout == b"hello"
    assert guest.closed
    guest.close()


def test_output_of_a_guest_without_memory_is_empty(host):
    with host.load(guest_file("add")).spawn() as guest:
        assert (guest.stdout, guest.stderr, guest.output_dropped) == (b"", b"", 0)
    assert guest.stdout == b""


def test_output_is_not_read_while_another_thread_writes_it(host):
    wasi = Wasi(output_limit="64 MiB")
    with host.load(REACTOR).spawn(limits=sandhost.Limits(deadline=0.3), wasi=wasi) as guest:
        call = Background(guest.call, "say_for_ever")
        wait_until(lambda: guest.stats().running or call.done)
        refused = 0
        while not call.done:
            try:
                assert set(guest.stdout) <= set(b"helo")
            except sandhost.GuestBusy:
                refused += 1
        with pytest.raises(sandhost.DeadlineExceeded):
            call.result()
        assert refused
        assert guest.stdout.startswith(b"hellohello")


def test_streams_go_to_callbacks_as_the_guest_writes(host):
    out, err = [], []
    with host.load(REACTOR).spawn(wasi=Wasi(stdout=out.append, stderr=err.append)) as guest:
        guest.call("say", 1)
        assert out == [b"hello"]
        guest.call("say", 2)
        guest.call("say", 1)
        assert (b"".join(out), b"".join(err)) == (b"hellohello", b"hello")
        assert guest.stdout == b""
    assert not hostcalls.bindings


def test_the_first_error_of_a_callback_ends_the_call_and_comes_out(host):
    raised = []

    def refuse(data):
        raised.append(OSError(f"no {len(raised)}"))
        raise raised[-1]

    with host.load(REACTOR).spawn(wasi=Wasi(stdout=refuse)) as guest:
        for turn in range(3):
            with pytest.raises(OSError) as caught:
                guest.call("say_for_ever")
            assert caught.value is raised[turn]
            assert len(raised) == turn + 1, "it is not called again"
            with pytest.raises(OSError):
                guest.call("say", 1)
            raised.pop()
        assert guest.call("say", 2) == 0
    assert not hostcalls.pending


def test_pointers_outside_the_memory_are_refused(host):
    with host.load(REACTOR).spawn() as guest:
        for iovs, count in [(-1, 1), (65536, 1), (65532, 1), (0, 2**31), (0, -1)]:
            try:
                assert guest.call("say_at", 1, iovs, count) != 0
            except sandhost.GuestTrap:
                pass
        guest.memory.write(32, (65535).to_bytes(4, "little") + (2**32 - 1).to_bytes(4, "little"))
        try:
            assert guest.call("say_at", 1, 32, 1) != 0
        except sandhost.GuestTrap:
            pass
        assert guest.stdout == b""
        guest.call("say", 1)
        assert guest.stdout == b"hello"


@pytest.mark.parametrize(
    ("at", "out", "count"),
    [
        (-48, 0, 1),
        (65536 - 47, 0, 1),
        (0, 65536 - 31, 1),
        (0, -1, 1),
        (0, 0, 2**32 - 1),
        (0, 0, 2**31),
    ],
)
def test_poll_oneoff_reads_and_writes_only_the_memory(host, at, out, count):
    text = b"""(module (import "wasi_snapshot_preview1" "poll_oneoff"
        (func $poll (param i32 i32 i32 i32) (result i32))) (memory (export "memory") 1 1)
        (func (export "poll") (param i32 i32 i32 i32) (result i32)
          (call $poll (local.get 0) (local.get 1) (local.get 2) (local.get 3))))"""
    with host.load(text).spawn(limits=sandhost.Limits(deadline=1)) as guest:
        assert guest.call("poll", at, out, count, 60000) == 21, "EFAULT"
        assert guest.call("poll", 0, 0, 0, 60000) == 28, "EINVAL"
        assert guest.call("poll", 0, 1024, 1, 65533) == 21
        assert guest.call("poll", 0, 1024, 1, 60000) == 0, "a clock that is due"


def test_poll_oneoff_takes_no_more_subscriptions_than_a_deadline_can_bear(host):
    text = b"""(module (import "wasi_snapshot_preview1" "poll_oneoff"
        (func $poll (param i32 i32 i32 i32) (result i32))) (memory (export "memory") 49)
        (func (export "poll") (param i32) (result i32)
          (call $poll (i32.const 8) (i32.const 8) (local.get 0) (i32.const 0))))"""
    with host.load(text).spawn() as guest:
        assert guest.call("poll", 65536) == 0
        assert guest.call("poll", 65537) == 28, "EINVAL"


# ---- directories ----


@pytest.fixture
def tree(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside / "sub", outside):
        folder.mkdir(parents=True)
    (inside / "hello.txt").write_text("hello")
    (inside / "sub" / "deep.txt").write_text("deep")
    (outside / "secret.txt").write_text("secret")
    (inside / "link").symlink_to(outside / "secret.txt")
    (inside / "dirlink").symlink_to(outside)
    (inside / "uplink").symlink_to("../outside/secret.txt")
    return inside


def test_a_granted_directory_is_read(files, tree):
    grants = {"dirs": {"/data": tree}}
    assert run(files, "read", "/data/hello.txt", **grants) == (0, b"hello", b"")
    assert run(files, "read", "/data/sub/../sub/deep.txt", **grants)[1] == b"deep"
    names = run(files, "list", "/data", **grants)[1].split()
    assert sorted(names) == [b"dirlink", b"hello.txt", b"link", b"sub", b"uplink"]


def test_a_directory_is_read_only_unless_said_otherwise(files, tree):
    for grant in (tree, str(tree), Dir(tree)):
        status, _, err = run(files, "write", "/data/new.txt", "x", dirs={"/data": grant})
        assert status == 1
        assert b"errno" in err
        assert run(files, "write", "/data/hello.txt", "x", dirs={"/data": grant})[0] == 1
    assert (tree / "hello.txt").read_text() == "hello"
    assert not (tree / "new.txt").exists()


def test_a_writable_directory_is_written(files, tree):
    grants = {"dirs": {"/data": Dir(tree, writable=True)}}
    assert run(files, "write", "/data/new.txt", "written", **grants)[0] == 0
    assert (tree / "new.txt").read_text() == "written"


@pytest.mark.parametrize(
    "path",
    [
        "/data/../outside/secret.txt",
        "/data/sub/../../outside/secret.txt",
        "/data/link",
        "/data/uplink",
        "/data/dirlink/secret.txt",
        "{outside}/secret.txt",
        "../outside/secret.txt",
        "/etc/passwd",
        "/proc/self/environ",
    ],
)
@pytest.mark.parametrize("writable", [False, True])
def test_no_path_leads_out_of_a_directory(files, tree, path, writable):
    outside = tree.parent / "outside"
    grants = {"dirs": {"/data": Dir(tree, writable=writable)}}
    path = path.format(outside=outside)
    status, out, _ = run(files, "read", path, **grants)
    assert (status, out) == (1, b"")
    assert run(files, "write", path, "overwritten", **grants)[0] == 1
    assert (outside / "secret.txt").read_text() == "secret"
    assert os.listdir(outside) == ["secret.txt"]


def test_two_guests_of_different_tenants_see_their_own_directories(files, tmp_path):
    for tenant in ("a", "b"):
        (tmp_path / tenant).mkdir()
        (tmp_path / tenant / "who").write_text(tenant)
    for tenant in ("a", "b", "a"):
        assert run(files, "read", "/who", dirs={"/": tmp_path / tenant})[1] == tenant.encode()


# ---- grants that cannot be meant ----


@pytest.mark.parametrize(
    "wrong",
    [
        {"argv": ["a\0b"]},
        {"argv": [7]},
        {"argv": ["\udc80"]},
        {"env": {"K\0": "v"}},
        {"env": {"K": 7}},
        {"env": {"K": "\udc80"}},
        {"dirs": {"/": "/nonexistent/folder"}},
        {"dirs": {"/": __file__}},
        {"dirs": {"/\0": "/"}},
        {"output_limit": "16 XB"},
        {"output_limit": -1},
        {"stdin": "text"},
        {"stdin": None},
    ],
)
def test_a_grant_that_cannot_be_meant_is_refused_before_a_guest_exists(echo, wrong):
    with pytest.raises((sandhost.ConfigError, TypeError)):
        echo.spawn(wasi=Wasi(**wrong))
    assert run(echo, "fine")[0] == 0


def test_a_directory_that_vanished_since_fails_the_spawn_by_name(echo, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    wasi = Wasi(argv=["e"], dirs={"/": folder})
    folder.rmdir()
    with pytest.raises(sandhost.ConfigError, match="gone"):
        echo.spawn(wasi=wasi)
    collected()


def test_wasi_for_a_plugin_that_imports_none_is_refused(host):
    with pytest.raises(sandhost.ConfigError, match="imports nothing of WASI"):
        host.load(guest_file("add")).spawn(wasi=Wasi())


def test_an_unknown_wasi_function_is_a_module_error(host):
    with pytest.raises(sandhost.ModuleError, match="fd_frobnicate"):
        host.load(b"""(module (import "wasi_snapshot_preview1" "fd_frobnicate" (func)))""")


def test_a_host_function_may_stand_in_for_one_of_wasi(host):
    host.function("wasi_snapshot_preview1", "proc_exit", "(i32)")(
        lambda status: seen.append(status)
    )
    seen: list[int] = []
    text = b"""(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (func (export "go") (call $exit (i32.const 5))))"""
    with host.load(text).spawn() as guest:
        guest.call("go")
    assert seen == [5]


def test_a_pointer_outside_the_memory_is_an_errno(host):
    with host.load(REACTOR).spawn() as guest:
        assert guest.call("say_at", 1, -1, 1) == 21, "EFAULT"
        assert guest.stdout == b""
