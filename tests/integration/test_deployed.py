"""The service as docs/deploying.md installs it, in a virtual machine of Debian's: under systemd, and in a container."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import ROOT

DOORS = (8080, 8081)
TENANTS_DOORS = (9080, 9081)
CALLS = "/opt/sandhost/bin/python /srv/inside/calls.py"
DROP_IN = "/etc/systemd/system/sandhost.service.d/memory.conf"
TENANTS_TOKEN = "sh_" + "T" * 43
GRPC = {"sandhost.v1.Invoker", "sandhost.v1.Plugins", "grpc.health.v1.Health"}

UNWANTED = ("Traceback", "guests are left", "cache.refused")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def machine() -> Iterator[Any]:
    """The machine, booted; tests change it one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        from tools.debian_vm.image import missing
        from tools.debian_vm.machine import machine

        if reason := missing():
            assert not os.environ.get("CI"), reason
            pytest.skip(f"no machine of Debian's can be made here: {reason}")
        with machine() as one:
            yield patient(one)


def patient(machine: Any) -> Any:
    """Give the units time to start: the machine is emulated, and the one outside may be busy."""
    for unit in ("sandhost", "sandhost@"):
        folder = f"/etc/systemd/system/{unit}.service.d"
        machine.run(
            f"mkdir {folder}; printf '[Service]\\nTimeoutStartSec=15min\\n' > {folder}/slow.conf"
        )
    machine.run("systemctl daemon-reload; systemctl restart sandhost")
    return machine


def calls(
    machine: Any, what: str, ports: tuple[int, int], *more: str, program: str = CALLS
) -> dict[str, Any]:
    """Have calls.py make its calls; return what came of them."""
    command = f"{program} {shlex.join([what, *map(str, ports), *more])}"
    found: dict[str, Any] = json.loads(machine.run(command).splitlines()[-1])
    return found


def shown(machine: Any, unit: str, *names: str) -> dict[str, str]:
    """Return properties of a unit."""
    said = machine.run(f"systemctl show {unit} --property={','.join(names)}")
    return dict(line.split("=", 1) for line in said.splitlines())


def group_file(machine: Any, name: str) -> str:
    """Return a file of the service's cgroup."""
    group = shown(machine, "sandhost", "ControlGroup")["ControlGroup"]
    return str(machine.run(f"cat /sys/fs/cgroup{group}/{name}")).strip()


def status_of(machine: Any, pid: str) -> dict[str, str]:
    """Return what /proc says of a process."""
    lines = machine.run(f"cat /proc/{pid}/status").splitlines()
    return dict(line.split(":\t", 1) for line in lines)


def loop_goes_first(machine: Any, pid: str) -> bool:
    """Whether the first thread of a process has a real-time priority; it may be busy at its start."""
    stat = machine.run(f"sleep 5; cat /proc/{pid}/stat").rpartition(")")[2].split()
    return int(stat[38]) == os.SCHED_FIFO  # proc_pid_stat(5): field 41, and here begins the third


def assert_serves(machine: Any, ports: tuple[int, int], limit: int, program: str = CALLS) -> None:
    """A plugin is uploaded, compiled and called by both doors; the limit is the cgroup's."""
    found = calls(machine, "serve", ports, program=program)
    assert found["deployed"]["state"] == "ready", found
    assert (found["http"], found["grpc"]["results"]) == ([5], [7])
    assert found["grpc"]["health"] == "SERVING"
    assert set(found["grpc"]["services"]) >= GRPC
    assert found["limit"] == limit


# ---- under systemd ----


def test_the_unit_starts_with_the_machine_and_serves(machine):
    assert machine.run("stat -f -c %T /sys/fs/cgroup").strip() == "cgroup2fs"
    assert machine.run("systemctl is-active sandhost").strip() == "active"
    assert group_file(machine, "memory.max") == str(2 << 30)
    assert_serves(machine, DOORS, limit=2 << 30)


def test_the_kernel_holds_the_process_to_the_unit(machine):
    pid = shown(machine, "sandhost", "MainPID")["MainPID"]
    status = status_of(machine, pid)
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0
    assert "0" not in status["Uid"].split()
    enter = f"nsenter --target {pid} --mount"
    assert "Read-only" in machine.run(f"{enter} touch /usr/x", status=1)
    assert machine.run(f"{enter} ls -A /root") == ""
    assert machine.run("stat -L -c %a /var/lib/sandhost").strip() == "700"


def test_the_event_loop_goes_first(machine):
    pid = shown(machine, "sandhost", "MainPID")["MainPID"]
    assert loop_goes_first(machine, pid)


def test_what_was_deployed_outlives_a_restart(machine):
    machine.run("systemctl restart sandhost")
    found = calls(machine, "again", DOORS)
    assert (found["http"], found["grpc"]["results"]) == ([5], [7])


def test_the_service_stays_below_its_memory_by_itself(machine):
    """With a limit by a drop-in, as the unit says: guests fill it, and the kernel kills nobody."""
    drop_in = shlex.quote("[Service]\nMemoryMax=400M\n")
    machine.run(f"printf %s {drop_in} > {DROP_IN}")
    machine.run("systemctl daemon-reload && systemctl restart sandhost")
    assert group_file(machine, "memory.max") == str(400 << 20)
    assert_serves(machine, DOORS, limit=400 << 20)
    found = calls(machine, "fill", DOORS)
    assert 0 < found["kept"] < 400 // 32
    assert found["refused"] is not None
    assert found["http"] == [5]
    events = dict(line.split() for line in group_file(machine, "memory.events").splitlines())
    assert (events["oom"], events["oom_kill"]) == ("0", "0")
    assert shown(machine, "sandhost", "NRestarts") == {"NRestarts": "0"}
    machine.run(f"rm {DROP_IN}; systemctl daemon-reload")


def test_a_stop_lets_a_call_end(machine):
    found = calls(machine, "stop", DOORS, "systemctl stop sandhost")
    assert found == {"answers": [[0]], "stopped": 0}
    after = shown(machine, "sandhost", "ActiveState", "Result", "ExecMainCode", "ExecMainStatus")
    ended = {"ExecMainCode": "1", "ExecMainStatus": "0"}  # CLD_EXITED
    assert after == {"ActiveState": "inactive", "Result": "success", **ended}
    journal = machine.run("journalctl --unit sandhost --output cat")
    assert not [word for word in UNWANTED if word in journal], journal


def test_a_tenants_unit_serves_that_tenant(machine):
    settings = f"http_port = {TENANTS_DOORS[0]}\\ngrpc_port = {TENANTS_DOORS[1]}\\n"
    machine.run(f"""umask 077 && cd /etc/sandhost
        (printf '{settings}'; grep observe_token sandhost.toml) > acme.toml
        printf %s {TENANTS_TOKEN} > acme.token""")
    machine.run("systemctl start sandhost@acme")
    with_token = f"TOKEN={TENANTS_TOKEN} {CALLS}"
    assert_serves(machine, TENANTS_DOORS, limit=2 << 30, program=with_token)
    machine.run("systemctl start sandhost")
    users = {
        status_of(machine, shown(machine, unit, "MainPID")["MainPID"])["Uid"]
        for unit in ("sandhost", "sandhost@acme")
    }
    assert len(users) == 2
    machine.run("systemctl stop sandhost@acme")
    journal = machine.run("journalctl --unit sandhost@acme --output cat")
    assert not [word for word in (*UNWANTED, TENANTS_TOKEN) if word in journal], journal


# ---- in a container ----

COMPOSE = "cd /srv/sandhost/deploy/container && podman-compose --no-ansi"
NAME = "sandhost_sandhost_1"
HEALTHY = f"timeout 600 sh -c 'until podman healthcheck run {NAME}; do sleep 1; done'"


def test_the_image_serves_as_the_compose_file_says(machine):
    machine.run(
        "systemctl stop sandhost && cd /srv/sandhost && chmod 700 . && "
        "install -m 644 sandhost.toml observe_token deploy/container"
    )
    machine.run(f"{COMPOSE} up --detach sandhost && {HEALTHY}")
    assert_serves(machine, DOORS, limit=2 << 30)
    pid = machine.run(f"podman inspect --format '{{{{.State.Pid}}}}' {NAME}").strip()
    status = status_of(machine, pid)
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert int(status["CapBnd"], 16) == 0
    assert status["Uid"].split() == ["65532"] * 4
    assert loop_goes_first(machine, pid)
    writes = f"podman exec {NAME} python -c \"open('/opt/x', 'w')\""
    assert "Read-only" in machine.run(writes, status=1)


def test_a_container_that_is_stopped_lets_a_call_end(machine):
    found = calls(machine, "stop", DOORS, f"{COMPOSE} stop sandhost")
    assert found == {"answers": [[0]], "stopped": 0}
    assert machine.run(f"podman inspect --format '{{{{.State.ExitCode}}}}' {NAME}").strip() == "0"
    said = machine.run(f"podman logs {NAME} 2>&1")
    assert not [word for word in UNWANTED if word in said], said


def test_what_was_deployed_outlives_the_container(machine):
    machine.run(f"{COMPOSE} down && {COMPOSE} up --detach sandhost && {HEALTHY}")
    assert calls(machine, "again", DOORS)["http"] == [5]
    machine.run(f"{COMPOSE} down")
