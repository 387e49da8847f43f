"""From bytes to compiled code: read, rewrite, compile or take from the cache."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from .._ffi import WASMTIME_VERSION, failure, ffi, lib
from ..errors import ModuleError
from .cache import CompileCache
from .fingerprint import cache_key, fingerprint
from .rewrite import Rewritten, rewrite

__all__ = ["Compiled", "compile_module", "read_source"]

_MAGIC = b"\0asm"
_SNAPSHOT_MAGIC = b"\x89sandhost snapshot"  # of snapshot_file.py


class Compiled(NamedTuple):
    """A rewritten module and its native code."""

    rewritten: Rewritten
    native: Any
    """A `sh_module *`; whoever makes a plugin of it gives it away."""
    digest: bytes
    """SHA-256 of the rewritten module."""
    cached: bool
    """Whether the code came from the cache."""


def read_source(source: str | os.PathLike[str] | bytes) -> tuple[str, bytes]:
    """Return a name for, and the binary of, a module given as path or bytes, as wasm or as wat text.

    Raises:
        ModuleError: there is no such file, or the text does not parse.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, data = "module", bytes(source)
    else:
        name = os.fspath(source)
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise ModuleError(f"cannot read {name}: {error.strerror or error}") from error
    if data.startswith(_MAGIC):
        return name, data
    if data.startswith(_SNAPSHOT_MAGIC):
        raise ModuleError(
            f"{name} is a saved snapshot, no module: Host.load_snapshot() reads it", 0
        )
    if data[:1] == b"\0" or not data.strip():
        raise ModuleError(f"{name} is no WebAssembly: it does not start with '\\0asm'", 0)
    return name, _assemble(name, data)


def _assemble(name: str, text: bytes) -> bytes:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise ModuleError(
            f"{name} is neither a WebAssembly binary nor text in UTF-8", error.start
        ) from error
    out, length = ffi.new("uint8_t **"), ffi.new("size_t *")
    if lib.sh_wat2wasm(text, len(text), out, length):
        raise ModuleError(f"{name}: {failure()}")
    try:
        return bytes(ffi.buffer(out[0], length[0]))
    finally:
        lib.sh_bytes_free(out[0], length[0])


def compile_module(
    host: Any, wasm: bytes, *, fuel: bool, optimize: bool, cache: CompileCache | None
) -> Compiled:
    """Rewrite a module and compile it, or map code that was compiled before.

    Raises:
        ModuleError: it is not valid, or uses what sandhost does not load.
    """
    rewritten = rewrite(wasm)
    digest = hashlib.sha256(rewritten.wasm).digest()
    key = ""
    if cache is not None:
        facts = {"wasmtime": WASMTIME_VERSION, "fuel": str(fuel), "optimize": str(optimize)}
        key = cache_key(digest, fingerprint(facts))
        native = _load(host, cache, key, fuel)
        if native is not None:
            return Compiled(rewritten, native, digest, cached=True)
    # As it was given: a function index that is out of range by one would mean one that the rewrite adds.
    if lib.sh_module_validate(host, wasm, len(wasm), fuel):
        raise failure()
    native = lib.sh_module_compile(host, rewritten.wasm, len(rewritten.wasm), fuel)
    if not native:
        raise failure()
    if cache is not None:
        _store(native, cache, key)
    return Compiled(rewritten, native, digest, cached=False)


def _load(host: Any, cache: CompileCache, key: str, fuel: bool) -> Any | None:
    entry = cache.open_verified(key)
    if entry is None:
        return None
    with entry:
        # NULL: wasmtime refuses it, say after a change of its settings. Then it is compiled anew.
        return lib.sh_module_load(host, entry.path.encode(), fuel) or None


def _store(native: Any, cache: CompileCache, key: str) -> None:
    out, length = ffi.new("uint8_t **"), ffi.new("size_t *")
    if lib.sh_module_serialize(native, out, length):
        return
    try:
        cache.put(key, memoryview(ffi.buffer(out[0], length[0])))
    finally:
        lib.sh_bytes_free(out[0], length[0])
