"""Finds the library that wasmtime's wheel ships, without importing wasmtime's Python bindings.

Their import costs tens of milliseconds for thousands of ctypes declarations that nobody here uses.
For the same reason this file makes do with the cheapest of the standard library.
"""

from __future__ import annotations

import importlib.util
import os

__all__ = ["RELEASE", "locate"]

RELEASE = 50
"""The release line whose C API `native/wasmtime_abi.h` declares."""

_NEEDED = f"sandhost needs wasmtime {RELEASE}.x (pip install 'wasmtime>={RELEASE},<{RELEASE + 1}')"


def locate() -> tuple[str, str]:
    """Return the path of wasmtime's shared library and the wheel's version.

    Raises:
        ImportError: wasmtime is not installed, is of another release line, or not for this machine.
    """
    spec = importlib.util.find_spec("wasmtime")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{_NEEDED}; it is not installed")
    package = spec.submodule_search_locations[0]
    version = _version(os.path.dirname(package))
    if version.split(".")[0] != str(RELEASE):
        raise ImportError(f"{_NEEDED}; found {version} in {os.path.dirname(package)}")
    system, machine = os.uname().sysname, os.uname().machine
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    library = os.path.join(package, f"{system.lower()}-{machine}", "_libwasmtime.so")
    if not os.path.isfile(library):
        raise ImportError(
            f"wasmtime {version} brings no library for {system} on {machine} "
            f"(looked for {library}); sandhost runs on 64-bit Linux, x86-64 or aarch64"
        )
    return library, version


def _version(site_packages: str) -> str:
    """Read the version off the wheel's dist-info folder: reading its metadata would cost more."""
    prefix, suffix = "wasmtime-", ".dist-info"
    for name in os.listdir(site_packages):
        if name.startswith(prefix) and name.endswith(suffix) and name[len(prefix)].isdigit():
            return name[len(prefix) : -len(suffix)]
    return "of unknown version"
