r"""Snapshots as files: written atomically, mapped when loaded, and read no earlier than they must.

    0                   40           40 + n              whole OS pages
    | magic, version, n | header: n  | …zeros | page data …            |
    | SHA-256 of header | bytes JSON |        | what is neither zeros nor as in the module |

The header says for each memory which pages are in the file and which are the module's own; all
others are zeros. It is bound to the module by a digest of its code and initial data, and to the
versions of the rewrite and of wasmtime. It has a checksum of its own, verified by `load`, and one of
the page data, verified by the first spawn, before a guest sees a byte of it.

The page data are mapped copy-on-write into guests, shared with every process that maps the file. So
a file that was loaded must not be changed in place, as with a shared library: replace it, as `save`
does.
"""

from __future__ import annotations

import base64
import hashlib
import json
import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ._ffi import WASMTIME_VERSION, failure, ffi, lib
from .errors import ConfigError, NativeError, SnapshotError
from .modules.rewrite import REWRITE_VERSION

if TYPE_CHECKING:
    from .plugin import Plugin
    from .snapshot import Snapshot

__all__ = ["FORMAT_VERSION", "Header", "PageCheck", "load", "read_header", "save"]

FORMAT_VERSION = 1
_MAGIC = b"\x89sandhost snapshot\r\n\x1a\n"
_PREFIX = struct.Struct("<24sII32s")
_MAX_HEADER_BYTES = 256 << 20  # tables of ten million elements, compressed; ours
_MAX_TABLE_ELEMENTS = 10_000_000  # wasmtime's limit of a table's initial size
_MAX_PARTS = 64  # each takes a mapping in every slot; see native/capture.c
_NEAR_PAGES = 16  # runs as near as this are stored as one, with the pages between them
_READ_BYTES = 4 << 20

_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, zlib.error)
"""What comes of a document that is not made as it should be."""

Part = tuple[int, int, bool, int]
"""Offset and length in the memory, whether the bytes are the module's, and where in the page data."""


class Header:
    """What a file says of itself, checked as far as it can be without its module."""

    def __init__(self, document: Any, data_start: int) -> None:
        self.document = document
        self.data_start = data_start
        self.module_digest: str = document["module"]["sha256"]
        self.module_name: str = document["module"]["name"]
        self.data_bytes: int = document["data"]["bytes"]
        self.data_digest: str = document["data"]["sha256"]
        self.reseed: str | None = document["reseed"]


# ---- save ----


def save(snapshot: Snapshot, path: str | os.PathLike[str]) -> int:
    """Write a snapshot to a file, atomically; return the file's length.

    Raises:
        OSError: it cannot be written.
    """
    plugin = snapshot.plugin
    target = Path(path)
    page = mmap.PAGESIZE
    memories, runs, at = [], [], 0
    for index in range(len(plugin.info.memories)):
        size, image = _image_of(snapshot, index)
        parts: list[Part] = []
        for start, end, is_module in _split(image, plugin.image(index), page):
            parts.append((start, end - start, is_module, 0 if is_module else at))
            if not is_module:
                runs.append(image[start:end])
                at += end - start
        memories.append({"size": size, "image": len(image), "parts": parts})
    digest = hashlib.sha256()
    for run in runs:
        digest.update(run)
    header = json.dumps(
        {
            "page": page,
            "rewrite": REWRITE_VERSION,
            "wasmtime": WASMTIME_VERSION,
            "module": {"sha256": plugin.module_digest(), "name": plugin.name},
            "data": {"bytes": at, "sha256": digest.hexdigest()},
            "reseed": snapshot.reseed,
            "memories": memories,
            "globals": list(_globals(snapshot)),
            "tables": list(_tables(snapshot)),
            "dropped": [
                position
                for position in range(len(plugin.state.segments))
                if lib.sh_snapshot_dropped(snapshot.native, position)
            ],
            "wasi": _wasi(snapshot),
        }
    ).encode()
    prefix = _PREFIX.pack(_MAGIC, FORMAT_VERSION, len(header), hashlib.sha256(header).digest())
    head = prefix + header
    padded = head + bytes(-len(head) % page)
    _write_atomically(target, [padded, *runs])
    return len(padded) + at


def _image_of(snapshot: Snapshot, index: int) -> tuple[int, memoryview]:
    size, length = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    data = lib.sh_snapshot_memory(snapshot.native, index, size, length)
    rounded = -(-length[0] // mmap.PAGESIZE) * mmap.PAGESIZE
    view = memoryview(ffi.buffer(data, rounded)) if rounded else memoryview(b"")
    return size[0], view


def _split(image: memoryview, module: memoryview, page: int) -> Iterator[tuple[int, int, bool]]:
    """Yield start, end and whether it is the module's of all that is not zeros, in order."""
    stored = _stored_runs(image, module, page)
    near = _NEAR_PAGES * page
    joined = _join(stored, near)
    while 2 * len(joined) + 1 > _MAX_PARTS:
        near *= 2
        joined = _join(stored, near)
    at, module_end = 0, min(len(image), -(-len(module) // page) * page)
    for start, end in [*joined, (len(image), len(image))]:
        if at < min(start, module_end):
            yield at, min(start, module_end), True
        if start < end:
            yield start, end, False
        at = end


def _stored_runs(image: memoryview, module: memoryview, page: int) -> list[tuple[int, int]]:
    """Return the runs of pages that are neither zeros beyond the module's image nor equal to it."""
    runs: list[tuple[int, int]] = []
    zeros = bytes(page)
    stride = 64 * page
    many_zeros = bytes(stride)
    module_end = -(-len(module) // page) * page
    for block in range(0, len(image), stride):
        whole = image[block : block + stride]
        if block >= module_end and whole == many_zeros[: len(whole)]:
            continue
        for start in range(block, block + len(whole), page):
            ours = image[start : start + page]
            theirs = bytes(module[start : start + page]).ljust(page, b"\0")
            if ours == (theirs if start < module_end else zeros):
                continue
            if runs and runs[-1][1] == start:
                runs[-1] = (runs[-1][0], start + page)
            else:
                runs.append((start, start + page))
    return runs


def _join(runs: list[tuple[int, int]], near: int) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in runs:
        if joined and start - joined[-1][1] <= near:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _globals(snapshot: Snapshot) -> Iterator[list[Any]]:
    for position in range(len(snapshot.plugin.state.globals)):
        value = lib.sh_snapshot_global(snapshot.native, position)
        yield [bytes(value.bytes).hex(), value.function]


def _tables(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    size = ffi.new("uint64_t *")
    for position in range(len(snapshot.plugin.state.tables)):
        functions = lib.sh_snapshot_table(snapshot.native, position, size)
        packed = zlib.compress(bytes(ffi.buffer(functions, 4 * size[0])) if size[0] else b"")
        yield {"size": size[0], "functions": base64.b64encode(packed).decode()}


def _wasi(snapshot: Snapshot) -> str | None:
    """Return WASI's table of files as C keeps it."""
    length = ffi.new("size_t *")
    files = lib.sh_snapshot_wasi(snapshot.native, length)
    return base64.b64encode(ffi.buffer(files, length[0])).decode() if length[0] else None


def _write_atomically(target: Path, chunks: list[Any]) -> None:
    number, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # mode 0600
    try:
        with open(number, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


# ---- load ----


def read_header(file: BinaryIO, name: str) -> Header:
    """Read and check what a file says of itself.

    Raises:
        SnapshotError: it is no snapshot, of another version, cut off or altered.
    """
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size or not prefix.startswith(_MAGIC):
        raise SnapshotError(f"{name} is no sandhost snapshot")
    _, version, length, digest = _PREFIX.unpack(prefix)
    if version != FORMAT_VERSION:
        raise SnapshotError(
            f"{name} is a snapshot of format {version}; this sandhost reads {FORMAT_VERSION}: "
            "make it anew"
        )
    header = file.read(min(length, _MAX_HEADER_BYTES))
    if len(header) < length:
        raise SnapshotError(f"{name} is cut off within its header")
    if hashlib.sha256(header).digest() != digest:
        raise SnapshotError(f"{name} was altered: its header does not match its checksum")
    page = mmap.PAGESIZE
    try:
        document = json.loads(header)
        if (document["rewrite"], document["wasmtime"]) != (REWRITE_VERSION, WASMTIME_VERSION):
            raise SnapshotError(
                f"{name} was made with wasmtime {document['wasmtime']}, rewrite "
                f"{document['rewrite']}; here are {WASMTIME_VERSION}, {REWRITE_VERSION}: make it anew"
            )
        if document["page"] % page:
            raise SnapshotError(f"{name} has pages of {document['page']} bytes, this system {page}")
        start = -(-(_PREFIX.size + length) // document["page"]) * document["page"]
        found = Header(document, start)
        if start + found.data_bytes != os.fstat(file.fileno()).st_size:
            raise SnapshotError(
                f"{name} is cut off: {start + found.data_bytes} bytes are announced"
            )
    except _MALFORMED as error:
        raise SnapshotError(f"{name} is no sandhost snapshot: its header is malformed") from error
    return found


def load(file: BinaryIO, name: str, header: Header, plugin: Plugin) -> Any:
    """Map the pages of a snapshot of this plugin; return the `sh_snapshot *`, to be released.

    Raises:
        SnapshotError: it belongs to another module, or does not fit it.
    """
    if header.module_digest != plugin.module_digest():
        raise SnapshotError(
            f"{name} is a snapshot of another module ({header.module_name}), "
            f"not of {plugin.name}, or that has changed since"
        )
    native = lib.sh_snapshot_new(plugin.native)
    if not native:
        raise failure()
    try:
        _fill(native, plugin, file, header)
    except (*_MALFORMED, ConfigError, NativeError) as error:
        lib.sh_snapshot_release(native)
        raise SnapshotError(f"{name} does not fit its module: {error}") from error
    except BaseException:
        lib.sh_snapshot_release(native)
        raise
    return native


def _fill(native: Any, plugin: Plugin, file: BinaryIO, header: Header) -> None:
    document, state = header.document, plugin.state
    counts = (len(plugin.info.memories), len(state.globals), len(state.tables))
    if tuple(len(document[key]) for key in ("memories", "globals", "tables")) != counts:
        raise ValueError("it has another number of memories, globals or tables")
    for index, memory in enumerate(document["memories"]):
        parts = [_part(part, header) for part in memory["parts"]]
        if len(parts) > _MAX_PARTS:
            raise ValueError(f"memory {index} is in {len(parts)} parts")
        array = ffi.new("sh_image_part[]", parts)
        sizes = ffi.new("uint64_t[2]", [memory["size"], memory["image"]])
        copy = os.dup(file.fileno())  # C takes it
        _do(lib.sh_snapshot_set_memory(native, index, sizes[0], sizes[1], array, len(parts), copy))
    for position, (number, function) in enumerate(document["globals"]):
        value = ffi.new("sh_global *", {"bytes": bytes.fromhex(number), "function": function})
        _do(lib.sh_snapshot_set_global(native, position, value))
    for position, table in enumerate(document["tables"]):
        _fill_table(native, position, table)
    for position in document["dropped"]:
        _do(lib.sh_snapshot_set_dropped(native, position))
    if document["wasi"] is not None:
        files = base64.b64decode(document["wasi"], validate=True)
        _do(lib.sh_snapshot_set_wasi(native, files, len(files)))


def _part(part: Any, header: Header) -> tuple[int, int, bool, int]:
    offset, length, is_module, at = part
    if not is_module and not 0 <= at <= at + length <= header.data_bytes:
        raise ValueError("a part lies outside of the page data")
    return offset, length, bool(is_module), 0 if is_module else header.data_start + at


def _fill_table(native: Any, position: int, table: Any) -> None:
    size = table["size"]
    if not 0 <= size <= _MAX_TABLE_ELEMENTS:
        raise ValueError(f"table {position} has {size} elements")
    unpacked = zlib.decompressobj().decompress(base64.b64decode(table["functions"]), 4 * size + 1)
    if len(unpacked) != 4 * size:
        raise ValueError(f"table {position} has {size} elements, and bytes for another number")
    functions = ffi.new("uint32_t[]", size)
    ffi.memmove(functions, unpacked, len(unpacked))
    _do(lib.sh_snapshot_set_table(native, position, functions, size))


def _do(status: int) -> None:
    if status:
        raise failure()


class PageCheck:
    """Verifies the page data of a loaded snapshot, before a guest sees them."""

    def __init__(self, file: BinaryIO, name: str, header: Header) -> None:
        self._descriptor = os.dup(file.fileno())
        self._name, self._header = name, header

    def __call__(self) -> None:
        """Read them all.

        Raises:
            SnapshotError: they are not what was saved.
        """
        digest, at = hashlib.sha256(), self._header.data_start
        while data := os.pread(self._descriptor, _READ_BYTES, at):
            digest.update(data)
            at += len(data)
        if digest.hexdigest() != self._header.data_digest:
            raise SnapshotError(f"{self._name} was altered: its pages do not match their checksum")

    def __del__(self) -> None:
        os.close(self._descriptor)
