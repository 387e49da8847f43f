"""From bytes to compiled code: read, rewrite, compile or take from the cache.

    text ── assemble ──► binary ── rewrite ──► as sandhost runs it ── compile ──► code
                          kept                                                    kept

A long text takes some 25 ms a megabyte to assemble: so the cache has what comes out of it, as it has code.
"""

from __future__ import annotations

import codecs
import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from .._ffi import WASMTIME_VERSION, failure, ffi, lib
from ..errors import ModuleError
from .cache import CompileCache
from .fingerprint import cache_key, fingerprint
from .rewrite import Rewritten, rewrite

__all__ = ["Compiled", "check_beginning", "compile_module", "read_source"]

_MAGIC = b"\0asm"
_LONG_TEXT = 32 << 10
"""Bytes above which a text's binary is kept: one below is assembled in the time that looking for it takes."""
_ASSEMBLER = f"text, by wasmtime {WASMTIME_VERSION}".encode()
_LOOKED_AT = 64
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


def read_source(
    source: str | os.PathLike[str] | bytes, cache: CompileCache | None = None
) -> tuple[str, bytes]:
    """Return a name for, and the binary of, a module given as path or bytes, as wasm or as wat text.

    Args:
        cache: where binaries of texts are kept.

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
    if not data.strip():
        raise _no_module(name)
    check_beginning(data[:_LOOKED_AT], name)
    return name, _binary_of(name, data, cache)


def check_beginning(data: bytes, name: str = "module") -> None:
    """Tell by the first bytes, four or more, whether a module can begin so; not whether it can end there.

    Raises:
        ModuleError: no binary and no text begins so.
    """
    if data.startswith(_SNAPSHOT_MAGIC):
        raise ModuleError(
            f"{name} is a saved snapshot, no module: Host.load_snapshot() reads it", 0
        )
    if not data.startswith(_MAGIC):
        if data[:1] == b"\0":
            raise _no_module(name)
        _check_text(name, data, whole=False)


def _no_module(name: str) -> ModuleError:
    return ModuleError(f"{name} is no WebAssembly: it does not start with '\\0asm'", 0)


def _check_text(name: str, text: bytes, *, whole: bool) -> None:
    try:
        codecs.utf_8_decode(text, "strict", whole)
    except UnicodeDecodeError as error:
        raise ModuleError(
            f"{name} is neither a WebAssembly binary nor text in UTF-8", error.start
        ) from error


def _binary_of(name: str, text: bytes, cache: CompileCache | None) -> bytes:
    if cache is None or len(text) <= _LONG_TEXT:
        return _assemble(name, text)
    key = cache_key(hashlib.sha256(text).digest(), _ASSEMBLER)
    entry = cache.open_verified(key)
    if entry is not None:
        with entry:
            return entry.read()
    binary = _assemble(name, text)
    cache.put(key, binary)
    return binary


def _assemble(name: str, text: bytes) -> bytes:
    _check_text(name, text, whole=True)
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
