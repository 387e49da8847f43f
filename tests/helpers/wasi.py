"""A guest that is nothing but WASI: it exports all 46 functions of preview 1 as it imports them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SIGNATURES = {
    "args_get": "ii",
    "args_sizes_get": "ii",
    "clock_res_get": "ii",
    "clock_time_get": "ili",
    "environ_get": "ii",
    "environ_sizes_get": "ii",
    "fd_advise": "illi",
    "fd_allocate": "ill",
    "fd_close": "i",
    "fd_datasync": "i",
    "fd_fdstat_get": "ii",
    "fd_fdstat_set_flags": "ii",
    "fd_fdstat_set_rights": "ill",
    "fd_filestat_get": "ii",
    "fd_filestat_set_size": "il",
    "fd_filestat_set_times": "illi",
    "fd_pread": "iiili",
    "fd_prestat_dir_name": "iii",
    "fd_prestat_get": "ii",
    "fd_pwrite": "iiili",
    "fd_read": "iiii",
    "fd_readdir": "iiili",
    "fd_renumber": "ii",
    "fd_seek": "ilii",
    "fd_sync": "i",
    "fd_tell": "ii",
    "fd_write": "iiii",
    "path_create_directory": "iii",
    "path_filestat_get": "iiiii",
    "path_filestat_set_times": "iiiilli",
    "path_link": "iiiiiii",
    "path_open": "iiiiillii",
    "path_readlink": "iiiiii",
    "path_remove_directory": "iii",
    "path_rename": "iiiiii",
    "path_symlink": "iiiii",
    "path_unlink_file": "iii",
    "poll_oneoff": "iiii",
    "proc_exit": "i",
    "proc_raise": "i",
    "random_get": "ii",
    "sched_yield": "",
    "sock_accept": "iii",
    "sock_recv": "iiiiii",
    "sock_send": "iiiii",
    "sock_shutdown": "ii",
}
"""Every function and its parameters: i is i32, l is i64. All but proc_exit return an errno."""


def _types(parameters: str) -> str:
    return " ".join("i32" if letter == "i" else "i64" for letter in parameters)


def _import(name: str, parameters: str) -> str:
    result = "" if name == "proc_exit" else "(result i32)"
    function = f"(func ${name} (param {_types(parameters)}) {result})"
    return f'(import "wasi_snapshot_preview1" "{name}" {function})'


def _export(name: str, parameters: str) -> str:
    """Return a function that does no more than call; runtimes look for the caller's memory."""
    result = "" if name == "proc_exit" else "(result i32)"
    arguments = " ".join(f"(local.get {k})" for k in range(len(parameters)))
    return (
        f'(func (export "{name}") (param {_types(parameters)}) {result} (call ${name} {arguments}))'
    )


MODULE = f"""(module
  {" ".join(_import(name, parameters) for name, parameters in SIGNATURES.items())}
  (memory (export "memory") 8)
  {" ".join(_export(name, parameters) for name, parameters in SIGNATURES.items())}
)""".encode()

OK, AGAIN, BADF, EXIST, FAULT, INVAL, ISDIR, LOOP, MFILE = 0, 6, 8, 20, 21, 28, 31, 32, 33
NAMETOOLONG, NFILE, NOENT, NOTDIR, NOTEMPTY, NOTSUP, NXIO = 37, 41, 44, 54, 55, 58, 60
PERM, SPIPE, NOTCAPABLE = 63, 70, 76

CREAT, DIRECTORY, EXCL, TRUNC = 1, 2, 4, 8
READ, WRITE, EVERYTHING = 1 << 1, 1 << 6, 2**28 - 1
APPEND, NONBLOCK = 1, 4

_PATH, _PATH2, _VECTORS, _RESULT, _DATA = 0, 8192, 16384, 24576, 65536


class Raw:
    """Calls WASI as a guest's libc does. `call(name, *arguments)` calls an export.

    The memory is written and read through the two functions, so that any runtime can stand behind.
    """

    def __init__(
        self,
        call: Callable[..., int],
        write: Callable[[int, bytes], object],
        read: Callable[[int, int], bytes],
    ) -> None:
        self.call, self.write, self.read = call, write, read

    def _path(self, path: str | bytes, at: int = _PATH) -> tuple[int, int]:
        data = path.encode() if isinstance(path, str) else path
        self.write(at, data)
        return at, len(data)

    def _u32(self, at: int) -> int:
        return int.from_bytes(self.read(at, 4), "little")

    def _u64(self, at: int) -> int:
        return int.from_bytes(self.read(at, 8), "little")

    # ---- opening ----

    def open(
        self,
        path: str | bytes,
        oflags: int = 0,
        rights: int = READ | 0x2E00024,
        *,
        fd: int = 3,
        follow: bool = True,
        inheriting: int = EVERYTHING,
        fdflags: int = 0,
    ) -> tuple[int, int]:
        """Return errno and the new number."""
        error = self.call(
            "path_open",
            fd,
            int(follow),
            *self._path(path),
            oflags,
            rights,
            inheriting,
            fdflags,
            _RESULT,
        )
        return error, self._u32(_RESULT) if not error else -1

    def opened(self, *arguments: Any, **options: Any) -> int:
        """Return the number of a file that can be opened."""
        error, number = self.open(*arguments, **options)
        assert error == OK, error
        return number

    # ---- bytes ----

    def _vectors(self, *pieces: tuple[int, int]) -> tuple[int, int]:
        flat = [word for piece in pieces for word in piece]
        self.write(_VECTORS, b"".join(word.to_bytes(4, "little") for word in flat))
        return _VECTORS, len(pieces)

    def put(self, fd: int, data: bytes, offset: int | None = None) -> tuple[int, int]:
        """Write; return errno and how much."""
        self.write(_DATA, data)
        half = len(data) // 2  # several vectors, but for what fits into one
        pieces = [(_DATA, half), (0, 0), (_DATA + half, len(data) - half)]
        vectors = self._vectors(*(pieces if half else [(_DATA, len(data))]))
        if offset is None:
            error = self.call("fd_write", fd, *vectors, _RESULT)
        else:
            error = self.call("fd_pwrite", fd, *vectors, offset, _RESULT)
        return error, self._u32(_RESULT) if not error else -1

    def get(self, fd: int, length: int = 4096, offset: int | None = None) -> tuple[int, bytes]:
        """Read; return errno and the bytes."""
        vectors = self._vectors((_DATA, length))
        if offset is None:
            error = self.call("fd_read", fd, *vectors, _RESULT)
        else:
            error = self.call("fd_pread", fd, *vectors, offset, _RESULT)
        return error, self.read(_DATA, self._u32(_RESULT)) if not error else b""

    def seek(self, fd: int, offset: int, whence: int) -> tuple[int, int]:
        error = self.call("fd_seek", fd, offset, whence, _RESULT)
        return error, self._u64(_RESULT) if not error else -1

    def tell(self, fd: int) -> tuple[int, int]:
        error = self.call("fd_tell", fd, _RESULT)
        return error, self._u64(_RESULT) if not error else -1

    # ---- attributes ----

    def stat(self, fd: int) -> tuple[int, tuple[int, ...]]:
        """Return errno, and type, links, size and the three times."""
        error = self.call("fd_filestat_get", fd, _RESULT)
        return error, self._filestat() if not error else ()

    def stat_at(
        self, path: str | bytes, *, fd: int = 3, follow: bool = True
    ) -> tuple[int, tuple[int, ...]]:
        error = self.call("path_filestat_get", fd, int(follow), *self._path(path), _RESULT)
        return error, self._filestat() if not error else ()

    def _filestat(self) -> tuple[int, ...]:
        kind = self.read(_RESULT + 16, 1)[0]
        return (kind, *(self._u64(_RESULT + at) for at in (24, 32, 40, 48, 56)))

    def fdstat(self, fd: int) -> tuple[int, tuple[int, int, int, int]]:
        """Return errno, and type, flags and both rights."""
        error = self.call("fd_fdstat_get", fd, _RESULT)
        kind, flags = self.read(_RESULT, 1)[0], int.from_bytes(self.read(_RESULT + 2, 2), "little")
        return error, (kind, flags, self._u64(_RESULT + 8), self._u64(_RESULT + 16))

    def prestat(self, fd: int) -> tuple[int, bytes]:
        """Return errno and the name of a preopened directory."""
        error = self.call("fd_prestat_get", fd, _RESULT)
        if error:
            return error, b""
        length = self._u32(_RESULT + 4)
        error = self.call("fd_prestat_dir_name", fd, _DATA, length)
        return error, self.read(_DATA, length)

    def names(self, fd: int, room: int = 4096) -> tuple[int, list[tuple[bytes, int]]]:
        """Return errno, and names and types of a directory, read with a buffer of `room` bytes."""
        found: list[tuple[bytes, int]] = []
        cookie = 0
        while True:
            error = self.call("fd_readdir", fd, _DATA, room, cookie, _RESULT)
            if error:
                return error, found
            used = self._u32(_RESULT)
            data, at = self.read(_DATA, used), 0
            while at + 24 <= used:
                length = int.from_bytes(data[at + 16 : at + 20], "little")
                if at + 24 + length > used:
                    break
                cookie = int.from_bytes(data[at : at + 8], "little")
                found.append((data[at + 24 : at + 24 + length], data[at + 20]))
                at += 24 + length
            if used < room:
                return OK, found
            assert at, "the buffer holds no entry"

    # ---- names ----

    def at(self, name: str, path: str | bytes, *, fd: int = 3) -> int:
        """Call a function of one path: path_create_directory and its like."""
        return self.call(name, fd, *self._path(path))

    def two(
        self, name: str, old: str | bytes, new: str | bytes, *, fd: int = 3, to: int = 3
    ) -> int:
        """Call path_rename, path_link or path_symlink."""
        before, after = self._path(old), self._path(new, _PATH2)
        if name == "path_symlink":
            return self.call(name, *before, to, *after)
        flags = (0,) if name == "path_link" else ()
        return self.call(name, fd, *flags, *before, to, *after)

    def readlink(self, path: str | bytes, room: int = 4096, *, fd: int = 3) -> tuple[int, bytes]:
        error = self.call("path_readlink", fd, *self._path(path), _DATA, room, _RESULT)
        return error, self.read(_DATA, self._u32(_RESULT)) if not error else b""

    def set_times(self, path: str, accessed: int, modified: int, flags: int, *, fd: int = 3) -> int:
        return self.call(
            "path_filestat_set_times", fd, 1, *self._path(path), accessed, modified, flags
        )


def raw(guest: Any) -> Raw:
    """Return WASI as a guest of `MODULE` has it."""
    return Raw(
        guest.call, guest.memory.write, lambda at, length: bytes(guest.memory.read(at, length))
    )
