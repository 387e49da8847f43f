"""Finds the library that wasmtime's wheel ships, without importing wasmtime's Python bindings.

Their import costs tens of milliseconds for thousands of ctypes declarations that nobody here uses.
"""

from __future__ import annotations

import importlib.util
import platform
import re
from pathlib import Path

__all__ = ["RELEASE", "locate"]

RELEASE = 50
"""The release line whose C API `native/wasmtime_abi.h` declares."""

_NEEDED = f"sandhost needs wasmtime {RELEASE}.x (pip install 'wasmtime>={RELEASE},<{RELEASE + 1}')"


def locate() -> tuple[Path, str]:
    """Return the path of wasmtime's shared library and the wheel's version.

    Raises:
        ImportError: wasmtime is not installed, is of another release line, or not for this machine.
    """
    spec = importlib.util.find_spec("wasmtime")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{_NEEDED}; it is not installed")
    package = Path(spec.submodule_search_locations[0])
    version = _version(package)
    if version.split(".")[0] != str(RELEASE):
        raise ImportError(f"{_NEEDED}; found {version} in {package.parent}")
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    library = package / f"linux-{machine}" / "_libwasmtime.so"
    if not library.is_file():
        raise ImportError(
            f"wasmtime {version} brings no library for {platform.system()} on {machine} "
            f"(looked for {library}); sandhost runs on 64-bit Linux, x86-64 or aarch64"
        )
    return library, version


def _version(package: Path) -> str:
    """Read the version off the wheel's dist-info folder: reading its metadata would cost more."""
    for folder in package.parent.glob("wasmtime-*.dist-info"):
        match = re.fullmatch(r"wasmtime-(\d[^-]*)\.dist-info", folder.name)
        if match:
            return match[1]
    return "of unknown version"
