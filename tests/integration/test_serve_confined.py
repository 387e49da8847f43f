"""The service under deploy/'s seccomp profile: it does all it does without, and what it never does is refused."""

from __future__ import annotations

import asyncio
import ctypes.util
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from helpers import ROOT, children_of, guest_file
from helpers.rpcs import with_stub
from helpers.serving import ADMIN, Client, child

DEPLOY = ROOT / "deploy"
PROFILE = json.loads((DEPLOY / "container/seccomp.json").read_text())
CONFINED = [sys.executable, str(ROOT / "tools/confined.py"), str(DEPLOY / "container/seccomp.json")]
ALLOWED = {name for rule in PROFILE["syscalls"] for name in rule["names"]}
NEVER = """
    ptrace process_vm_readv process_vm_writev kcmp mount umount2 pivot_root chroot setns unshare
    bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register clone3 fork
    tkill init_module finit_module delete_module kexec_load reboot swapon keyctl add_key
    request_key personality setuid setgid setresuid setgroups capset open_by_handle_at quotactl
    acct settimeofday clock_settime adjtimex iopl ioperm modify_ldt seccomp mknod mknodat chown
    fchown symlink link
""".split()  # noqa: SIM905 (a list of words)


@pytest.fixture(scope="module", autouse=True)
def _libseccomp() -> None:
    """Skip without the library that loads the profile, but in CI fail."""
    if not (os.environ.get("SANDHOST_TEST_LIBSECCOMP") or ctypes.util.find_library("seccomp")):
        assert not os.environ.get("CI"), "CI has to have libseccomp"
        pytest.skip("there is no libseccomp here: Debian's package libseccomp2 has it")


@pytest.fixture(scope="module")
def syscalls() -> ModuleType:
    spec = importlib.util.spec_from_file_location("syscalls", DEPLOY / "syscalls.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_profile_is_what_its_script_builds(syscalls):
    assert json.loads(syscalls.profile()) == PROFILE, "run python deploy/syscalls.py"


def test_the_units_allow_what_the_profile_allows(syscalls):
    for file in syscalls.UNITS:
        unit = file.read_text()
        assert syscalls.with_filters(unit) == unit, "run python deploy/syscalls.py"
        named = " ".join(re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE)).split()
        assert set(named) == ALLOWED
        assert f"RestrictAddressFamilies={' '.join(syscalls.FAMILIES)}\n" in unit


def test_what_breaks_out_is_not_allowed():
    assert PROFILE["defaultAction"] == "SCMP_ACT_ERRNO"
    assert ALLOWED.isdisjoint(NEVER)


def test_a_tenant_is_served_from_upload_to_drain(tmp_path):
    async def test() -> None:
        async with one.http() as http:
            admin = Client(http, ADMIN)
            await admin.ask("PUT", "/v1/admin/tenants/acme", 201, json={"quotas": {"guests": 10}})
            path = "/v1/admin/tenants/acme/tokens"
            made = await admin.ask("POST", path, 201, json={"scopes": ["deploy", "invoke"]})
            acme = Client(http, made["token"])
            await acme.deploy("add", guest_file("add"))
            await acme.deploy("echo", guest_file("echo"))
            assert await acme.call("add", "add", 2, 3) == [5]
            opened = await acme.ask("POST", "/v1/plugins/add/sessions", 201)
            session = {"Sandhost-Session": opened["session"]}
            assert await acme.call("add", "add", 3, 4, headers=session) == [7]
            run = await acme.ask("POST", "/v1/plugins/echo/run?argv=one", content=b"two\n")
            assert (run.status_code, json.loads(run.text.splitlines()[-1])) == (200, {"exit": 0}), (
                run.text
            )
            for place in (
                "/metrics",
                "/debug/sandhost/view",
                "/debug/pprof/heap",
                "/v1/admin/audit",
            ):
                assert (await admin.ask("GET", place)).status_code == 200, place

    with child(tmp_path / "data", under=CONFINED) as one:
        assert is_confined(one.process.pid)
        asyncio.run(test())
        assert one.end() == 0, one.said()
        assert b"Traceback" not in one.said(), one.said()


def test_grpc_is_answered_and_a_process_compiles(tmp_path):
    def reflected(port: int) -> bool:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
            return "Call" in pool.FindServiceByName("sandhost.v1.Invoker").methods_by_name

    async def test(acme: Any) -> None:
        await acme.deploy("add", guest_file("add"))
        compilers = children_of(one.process.pid)
        assert compilers
        assert all(is_confined(pid) for pid in compilers)
        assert await acme.call("add", "add", 2, 3) == [5]
        check = acme.channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"", timeout=60) == b"\x08\x01"  # SERVING
        assert await asyncio.to_thread(reflected, one.grpc_port)

    with child(tmp_path / "data", under=CONFINED) as one:
        with_stub(one, test)
        assert one.end() == 0, one.said()
        assert b"Traceback" not in one.said(), one.said()


def is_confined(pid: int) -> bool:
    """Return whether a filter of system calls holds for a process."""
    return "\nSeccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text()


ATTEMPTS = """
import ctypes, errno, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def refused(call, *arguments):
    status = libc.syscall(ctypes.c_long(call), *map(ctypes.c_long, arguments))
    return status == -1 and ctypes.get_errno() == errno.ENOSYS
def opened(family):
    try:
        socket.socket(family, socket.SOCK_RAW if family == socket.AF_NETLINK else socket.SOCK_STREAM).close()
        return True
    except OSError:
        return False
clone = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
unshare = {"x86_64": 272, "aarch64": 97}[os.uname().machine]
pidfd_open = 434
print(json.dumps({
    "unshare": refused(unshare, 0),
    "pidfd_open": refused(pidfd_open, os.getpid(), 0),
    "clone of a namespace": refused(clone, 0x10000000 | 0x10000, 0, 0, 0, 0),  # EINVAL if not
    "netlink": not opened(socket.AF_NETLINK),
    "internet": not opened(socket.AF_INET),
}))
"""


def attempts(*under: str) -> dict[str, bool]:
    """Return what of ATTEMPTS is refused."""
    command = [*under, sys.executable, "-c", ATTEMPTS]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, bool] = json.loads(done.stdout)
    return found


def test_what_the_service_never_does_is_refused_by_the_kernel():
    free, confined = attempts(), attempts(*CONFINED)
    assert not any(free.values()), free
    assert confined == {name: name != "internet" for name in free}
