"""The checks of `sandhost doctor`, on machines that exist in a folder only."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandhost.doctor import REAL_PROBES, Finding, Machine, Probes, examine
from sandhost.doctor.kernel import kernel_findings
from sandhost.doctor.memory import memory_findings
from sandhost.doctor.software import software_findings

_WORKS = Probes(
    pagemap_scan=lambda: 0,
    process_madvise=lambda: 0,
    give_back=lambda: 0,
    give_back_lazily=lambda: 0,
    seal_memfd=lambda: 0,
    reserve=lambda _size: 0,
    limit=lambda _number: None,
    cpus=lambda: 4,
)
_FILES = {
    "proc/sys/kernel/osrelease": "6.18.1-test",
    "proc/sys/vm/max_map_count": "65530",
    "proc/sys/vm/overcommit_memory": "0",
    "proc/self/cgroup": "0::/app/web",
    "proc/self/status": "Name:\tpython\nSeccomp:\t0\n",
    "proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\nSwapTotal: 0 kB\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "sys/devices/system/node/online": "0",
    "sys/fs/cgroup/memory.current": "0",
}


def machine(root: Path, files: Mapping[str, str | None] | None = None, **probes: Any) -> Machine:
    for name, text in {**_FILES, **(files or {})}.items():
        if text is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text + "\n")
    return Machine(root, replace(_WORKS, **probes))


def memory(name: str, *arguments: Any, **probes: Any) -> Finding:
    return {f.name: f for f in memory_findings(machine(*arguments, **probes))}[name]


def kernel(name: str, *arguments: Any, **probes: Any) -> Finding:
    return {f.name: f for f in kernel_findings(machine(*arguments, **probes))}[name]


def test_a_good_machine_is_ok_in_every_line(tmp_path: Path) -> None:
    good = machine(tmp_path)
    for finding in (*kernel_findings(good), *memory_findings(good)):
        assert finding.status == "ok", finding
        assert finding.found
        assert finding.why.endswith(".")
        assert not finding.advice


def test_a_machine_without_proc_and_sys_is_described_without_an_error(tmp_path: Path) -> None:
    empty = Machine(tmp_path, _WORKS)
    findings = {f.name: f for f in (*kernel_findings(empty), *memory_findings(empty))}
    assert findings["vm.max_map_count"].found == findings["memory"].found == "unknown"
    assert all(finding.status != "problem" for finding in findings.values())


@pytest.mark.parametrize(
    ("probe", "line", "status"),
    [
        ("pagemap_scan", "PAGEMAP_SCAN", "note"),
        ("process_madvise", "process_madvise", "note"),
        ("give_back", "madvise(DONTNEED)", "problem"),
        ("give_back_lazily", "madvise(FREE)", "note"),
        ("seal_memfd", "sealed memfd", "problem"),
    ],
)
def test_what_the_kernel_refuses_is_named_with_what_to_do(
    tmp_path: Path, probe: str, line: str, status: str
) -> None:
    finding = kernel(line, tmp_path, **{probe: lambda: errno.EPERM})
    assert finding.status == status
    assert "EPERM" in finding.found
    assert finding.advice


def test_giving_back_without_effect_is_a_problem(tmp_path: Path) -> None:
    finding = kernel("madvise(DONTNEED)", tmp_path, give_back=lambda: -1)
    assert (finding.status, finding.found) == ("problem", "has no effect")


@pytest.mark.parametrize(
    ("release", "status"),
    [("6.18.1-cloud", "ok"), ("4.5.0", "ok"), ("4.4.302", "problem"), ("odd", "note")],
)
def test_a_kernel_that_is_too_old_is_a_problem(tmp_path: Path, release: str, status: str) -> None:
    assert kernel("version", tmp_path, {"proc/sys/kernel/osrelease": release}).status == status


def test_seccomp_filters_are_counted(tmp_path: Path) -> None:
    status = "Seccomp:\t2\nSeccomp_filters:\t3"
    finding = kernel("seccomp", tmp_path, {"proc/self/status": status})
    assert finding.found == "filters system calls (3 filters)"


@pytest.mark.parametrize(
    ("most", "status"), [("65530", "ok"), ("16384", "note"), ("1100", "problem"), ("0", "problem")]
)
def test_few_mappings_leave_room_for_few_guests(tmp_path: Path, most: str, status: str) -> None:
    assert (
        memory("vm.max_map_count", tmp_path, {"proc/sys/vm/max_map_count": most}).status == status
    )


@pytest.mark.parametrize(
    ("gib", "status", "found"),
    [
        (1 << 20, "ok", "room for 16,384 guests and more"),
        (1024, "note", "room for 128 guests"),
        (10, "problem", "room for 2 guests"),
        (1, "problem", "room for 0 guests"),
    ],
)
def test_a_limit_on_addresses_is_found_by_reserving(
    tmp_path: Path, gib: int, status: str, found: str
) -> None:
    def reserve(size: int) -> int:
        return errno.ENOMEM if size > gib << 30 else 0

    def limit(number: int) -> int | None:
        return gib << 30 if number == resource.RLIMIT_AS else None

    finding = memory("address space", tmp_path, reserve=reserve, limit=limit)
    assert (finding.status, finding.found) == (status, found)
    assert ("ulimit -v" in finding.advice) == (status != "ok")


def test_strict_overcommit_says_what_is_left(tmp_path: Path) -> None:
    meminfo = _FILES["proc/meminfo"] + "CommitLimit: 4096 kB\nCommitted_AS: 1024 kB\n"
    files = {"proc/sys/vm/overcommit_memory": "2", "proc/meminfo": meminfo}
    finding = memory("vm.overcommit_memory", tmp_path, files)
    assert (finding.status, finding.found) == ("note", "2, strict, 3 MiB left")


@pytest.mark.parametrize(
    ("files", "status", "found"),
    [
        ({"sys/fs/cgroup/app/memory.max": "max"}, "ok", "v2, no memory limit"),
        ({"sys/fs/cgroup/app/memory.max": "1073741824"}, "note", "v2, 512 MiB of 1 GiB used"),
        ({"sys/fs/cgroup/app/memory.max": "536870912"}, "problem", "v2, 512 MiB of 512 MiB used"),
        (
            {
                "sys/fs/cgroup/app/memory.max": "2147483648",
                "sys/fs/cgroup/app/web/memory.max": "1073741824",
                "sys/fs/cgroup/app/web/memory.current": "1048576",
            },
            "note",
            "v2, 1 MiB of 1 GiB used",
        ),
    ],
)
def test_the_tightest_cgroup_limit_counts(
    tmp_path: Path, files: dict[str, str], status: str, found: str
) -> None:
    used = {"sys/fs/cgroup/app/memory.current": "536870912"}
    finding = memory("cgroup", tmp_path, {**used, **files})
    assert (finding.status, finding.found) == (status, found)


@pytest.mark.parametrize(
    ("limit", "found"),
    [
        ("9223372036854771712", "v1, no memory limit"),
        ("1073741824", "v1, 1 MiB of 1 GiB used"),
    ],
)
def test_version_1_of_cgroups_is_read(tmp_path: Path, limit: str, found: str) -> None:
    files = {
        "proc/self/cgroup": "4:cpu:/x\n3:memory:/docker/abc\n0::/",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": limit,  # /docker/abc is not visible inside
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1048576",
    }
    assert memory("cgroup", tmp_path, files).found == found


def test_little_memory_is_noted(tmp_path: Path) -> None:
    meminfo = "MemTotal: 1048576 kB\nMemAvailable: 1024 kB\nSwapTotal: 2048 kB\n"
    finding = memory("memory", tmp_path, {"proc/meminfo": meminfo})
    assert (finding.status, finding.found) == ("note", "1 GiB, 1 MiB available")
    assert memory("swap", tmp_path, {"proc/meminfo": meminfo}).found == "2 MiB"


@pytest.mark.parametrize(
    ("online", "found"), [("0", "1 node"), ("0-3", "4 nodes"), ("0,2-3", "3 nodes")]
)
def test_nodes_are_counted(tmp_path: Path, online: str, found: str) -> None:
    assert memory("NUMA", tmp_path, {"sys/devices/system/node/online": online}).found == found


def test_a_quota_of_cpus_is_said(tmp_path: Path) -> None:
    finding = memory("CPUs", tmp_path, {"sys/fs/cgroup/cpu.max": "150000 100000"})
    assert finding.found == "4 CPUs, at most 1.5 of them by cgroup"


def test_a_small_stack_is_noted(tmp_path: Path) -> None:
    finding = memory("stack", tmp_path, limit=lambda _number: 1 << 20)
    assert (finding.status, finding.found) == ("note", "1 MiB")


def cache_finding() -> Finding:
    return {f.name: f for f in software_findings()}["compile cache"]


def test_a_cache_that_others_can_reach_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SANDHOST_CACHE_DIR", str(folder))
    assert cache_finding().found.endswith("not there yet")
    folder.mkdir(mode=0o700)
    (folder / "a.cwasm").write_bytes(b"x" * 2048)
    assert cache_finding().status == "ok"
    assert ", 1 module, 2 KiB, private" in cache_finding().found
    folder.chmod(0o755)
    assert cache_finding().status == "note"
    assert "mode 0755" in cache_finding().found
    link = tmp_path / "link"
    link.symlink_to(folder)
    monkeypatch.setenv("SANDHOST_CACHE_DIR", str(link))
    assert "symbolic link" in cache_finding().found


def test_this_machine_can_be_examined() -> None:
    findings = list(examine())
    assert {f.topic for f in findings} == {"kernel", "memory", "software", "trial"}
    assert len({f.name for f in findings}) == len(findings)
    for finding in findings:
        assert finding.status != "problem", finding
        assert finding.why.endswith("."), finding
        assert (not finding.advice) or finding.status != "ok", finding


def test_probes_answer_truthfully_where_the_kernel_can(tmp_path: Path) -> None:
    assert REAL_PROBES.give_back() == 0
    assert REAL_PROBES.seal_memfd() == 0
    assert REAL_PROBES.reserve(1 << 30) == 0
    assert REAL_PROBES.reserve(1 << 62) == errno.ENOMEM
    assert REAL_PROBES.cpus() == len(os.sched_getaffinity(0))
