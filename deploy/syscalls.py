"""The system calls that the service may make, and the files that say so: `python deploy/syscalls.py`.

container/seccomp.json    for OCI runtimes, Docker and Podman; looks at arguments too
systemd/*.service         SystemCallFilter=; for arguments, RestrictAddressFamilies= and RestrictNamespaces=

The lists are what `strace -f` saw of the service while its tests ran, and what other kernels, processors and
releases of glibc and Python use in place of those: a name that a processor has not is passed over.

All else is answered with ENOSYS, as by a kernel that has not got it. Then libraries take their other way: glibc starts
threads by clone where there is no clone3, libuv waits by epoll where there is no io_uring. EPERM is an error to them.
"""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PROFILE = HERE / "container/seccomp.json"
UNITS = (HERE / "systemd/sandhost.service", HERE / "systemd/sandhost@.service")

CALLS = {
    "Beginning and end; execve is how the runtime starts the program": """
        execve exit exit_group arch_prctl prctl prlimit64 rseq set_robust_list set_tid_address uname
        getpid getppid gettid getuid geteuid getgid getegid getgroups getresuid getresgid""",
    "Threads and signals": """
        futex sched_yield sched_getaffinity sched_getparam sched_getscheduler sched_setscheduler getcpu membarrier
        restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack tgkill""",
    "Processes that compile modules: started, given what is left of the processors, ended": """
        vfork chdir setpriority getpriority kill wait4 waitid""",
    "Memory; mprotect makes compiled guests executable, the last four are for NUMA and for many regions at once": """
        brk mmap mremap munmap mprotect madvise memfd_create mincore
        get_mempolicy mbind move_pages process_madvise""",
    "Files; pagemap's PAGEMAP_SCAN is an ioctl": """
        access faccessat faccessat2 close close_range dup dup2 dup3 fcntl ioctl
        open openat openat2 read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek sendfile
        copy_file_range fadvise64 fallocate flock fsync fdatasync ftruncate
        stat lstat fstat newfstatat statx statfs fstatfs getcwd getdents64 readlink readlinkat umask
        chmod fchmod fchmodat mkdir mkdirat rename renameat renameat2 rmdir unlink unlinkat utimensat""",
    "Connections": """
        accept accept4 bind connect getpeername getsockname getsockopt setsockopt listen shutdown socketpair
        recvfrom recvmsg recvmmsg sendto sendmsg sendmmsg""",
    "Waiting": """
        epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2 pipe pipe2 poll ppoll select pselect6
        timerfd_create timerfd_settime nanosleep clock_nanosleep""",
    "Clocks, chance, figures of the process": """
        clock_getres clock_gettime gettimeofday time times getrandom getrusage sysinfo""",
}

FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}
"""Of sockets. Netlink is not among them: glibc then takes it that the machine has both internets."""

NAMESPACES = 0x7E02_0080
"""Of clone(2)'s flags all CLONE_NEW*: threads and processes are made, no namespaces."""


def rule(*names: str, argument: dict[str, Any] | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"names": list(names), "action": "SCMP_ACT_ALLOW"}
    if argument is not None:
        made["args"] = [{"index": 0, **argument}]
    return made


def profile() -> str:
    """Return the text of seccomp.json: of what Docker's format and the OCI's have in common."""
    names = [name for group in CALLS.values() for name in group.split()]
    no_namespace = {"value": NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    families = [{"value": family, "op": "SCMP_CMP_EQ"} for family in FAMILIES.values()]
    made = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [
            rule(*sorted(names)),
            rule("clone", argument=no_namespace),
            *(rule("socket", argument=family) for family in families),
        ],
    }
    return json.dumps(made, indent=2) + "\n"


def filters() -> list[str]:
    """Return the lines of a unit: one for each group, the argument-checked ones first."""
    groups = ["clone socket", *CALLS.values()]
    return [f"SystemCallFilter={' '.join(group.split())}" for group in groups]


def with_filters(unit: str) -> str:
    """Return the text of a unit with its lines SystemCallFilter= made anew, where the first one stands."""
    lines = unit.splitlines()
    old = [n for n, line in enumerate(lines) if line.startswith("SystemCallFilter=")]
    kept = [line for n, line in enumerate(lines) if n not in old[1:]]
    kept[old[0] : old[0] + 1] = filters()
    return "\n".join(kept) + "\n"


if __name__ == "__main__":
    PROFILE.write_text(profile())
    for unit in UNITS:
        unit.write_text(with_filters(unit.read_text()))
        sys.stdout.write(f"{unit.name}\n")
