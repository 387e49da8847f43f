"""Keys of the compile cache: a digest over everything that changes the code that comes out."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path

from .rewrite import REWRITE_VERSION

__all__ = ["cache_key", "cpu_features", "fingerprint"]

_CPUINFO = Path("/proc/cpuinfo")
_FEATURE_LINES = ("flags", "Features")  # x86 and Arm


def cpu_features(cpuinfo: Path = _CPUINFO) -> str:
    """Return the machine and its CPU features, sorted; the features are "" where unknown.

    Cores that differ contribute all that any of them has: a code file is never shared between two
    machines of which one lacks a feature.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    features: set[str] = set()
    for line in set(lines):
        label, _, values = line.partition(":")
        if label.strip() in _FEATURE_LINES:
            features.update(values.split())
    return " ".join([platform.machine(), *sorted(features)])


def fingerprint(facts: Mapping[str, str]) -> bytes:
    """Return the bytes that stand for a way of compiling.

    `facts` names what the caller knows to matter: engine settings, wasmtime's version, sandhost's
    ABI. CPU features and the version of the rewrite are added here.
    """
    everything = {**facts, "sandhost.cpu": _own_cpu(), "sandhost.rewrite": str(REWRITE_VERSION)}
    return json.dumps(everything, sort_keys=True).encode()


@functools.cache  # a process stays where it is
def _own_cpu() -> str:
    return cpu_features()


def cache_key(module: bytes, fingerprint: bytes) -> str:
    """Return the key for a module compiled in this way.

    Pass the digest of `Rewritten.wasm`, what is really compiled: modules that differ only in their
    data then share one entry.
    """
    digest = hashlib.sha256(b"sandhost compile cache 2\0")
    digest.update(len(fingerprint).to_bytes(8, "little") + fingerprint)
    digest.update(module)
    return digest.hexdigest()
