"""Run a program under a seccomp profile of the OCI's format, by libseccomp, with no container around it.

    python -m tools.confined deploy/container/seccomp.json sandhost serve

https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#seccomp, of which this reads what
deploy/container/seccomp.json has: a default, allowed names, and comparisons of their arguments.
"""

import ctypes
import ctypes.util
import json
import os
import sys
from pathlib import Path
from typing import Any

ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
BAD_ARCHITECTURE = 2  # the attribute SCMP_FLTATR_ACT_BADARCH
COMPARISONS = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
NO_SUCH_CALL = -1  # not even under another processor's number


class Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp`: of a masked one, the first value is the mask."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def confine(profile: dict[str, Any]) -> None:
    """Confine this thread and what it starts, for good; raise OSError where that cannot be."""
    library = ctypes.CDLL(library_name() or "libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    if profile["defaultAction"] != "SCMP_ACT_ERRNO":
        raise ValueError(f"the default action {profile['defaultAction']} is not known here")
    context = ctypes.c_void_p(
        library.seccomp_init(ctypes.c_uint32(ERRNO | profile["defaultErrnoRet"]))
    )
    _check(library.seccomp_attr_set(context, BAD_ARCHITECTURE, ctypes.c_uint32(KILL_PROCESS)))
    for rule in profile["syscalls"]:
        if rule["action"] != "SCMP_ACT_ALLOW":
            raise ValueError(f"the action {rule['action']} is not known here")
        comparisons = [
            Comparison(a["index"], COMPARISONS[a["op"]], a["value"], a.get("valueTwo", 0))
            for a in rule.get("args", [])
        ]
        array = (Comparison * len(comparisons))(*comparisons)
        for name in rule["names"]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == NO_SUCH_CALL:
                raise ValueError(f"there is no system call {name!r}")
            _check(
                library.seccomp_rule_add_array(
                    context, ctypes.c_uint32(ALLOW), number, len(array), array
                )
            )
    _check(library.seccomp_load(context))  # sets no_new_privs as well
    library.seccomp_release(context)


def library_name() -> str | None:
    """Return where libseccomp is: what debian.py unpacked, or the machine's; None without one."""
    return os.environ.get("SANDHOST_TEST_LIBSECCOMP") or ctypes.util.find_library("seccomp")


def _check(status: int) -> None:
    if status < 0:
        raise OSError(-status, os.strerror(-status))


if __name__ == "__main__":
    confine(json.loads(Path(sys.argv[1]).read_text()))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606
