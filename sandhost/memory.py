"""A guest's linear memory as Python reaches it: bounds-checked, and never after the guest's end.

One buffer covers all the address space the memory may grow into; its current size stands in a word
that C keeps, so a read is a comparison and a slice, with no call into C. The buffer pins the region
in C: whatever else goes wrong, the region is not given to another guest under a reader.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from ._ffi import failure, ffi, lib
from ._windows import open_window
from .errors import GuestBusy, GuestClosed, OutOfBounds

if TYPE_CHECKING:
    from .guest import Guest

__all__ = ["GuestMemory"]


class GuestMemory:
    """One linear memory of a guest. Addresses may be negative: wasm's i32 comes out signed."""

    __slots__ = (
        "_base",
        "_bytes",
        "_guest",
        "_guest_id",
        "_index",
        "_mask",
        "_pinned",
        "_size",
        "_views",
    )

    def __init__(self, guest: Guest, guest_id: int, index: int, is64: bool) -> None:
        native = ffi.new("sh_memory *")
        if lib.sh_memory_get(guest_id, index, native) or lib.sh_memory_pin(guest_id, index):
            raise failure()
        self._guest = weakref.ref(guest)
        self._guest_id = guest_id
        self._index = index
        self._mask = 2**64 - 1 if is64 else 2**32 - 1
        self._base = native.base
        self._size = lib.sh_memory_size(guest_id, index)
        self._bytes: memoryview | None = memoryview(ffi.buffer(native.base, native.capacity))
        self._views = 0
        self._pinned = True

    @property
    def size(self) -> int:
        """Bytes that the memory has now."""
        if self._bytes is None:
            raise GuestClosed("the guest has ended, and its memory with it")
        size = int(self._size[0])
        if not size:
            self._check_there()
        return size

    def read(self, address: int, length: int) -> bytes:
        """Copy `length` bytes out.

        Raises:
            OutOfBounds: not all of them lie in the memory.
            GuestClosed: the guest has ended.
        """
        start = self._start(address, length)
        return bytes(self._bytes[start : start + length])  # type: ignore[index]

    def read_into(self, address: int, target: bytearray | memoryview) -> int:
        """Copy as many bytes out as a writable, contiguous buffer has room for; return how many.

        Raises:
            OutOfBounds: not all of them lie in the memory.
            GuestClosed: the guest has ended.
        """
        room = memoryview(target).cast("B")
        start = self._start_for(address, room)
        room[:] = self._bytes[start : start + len(room)]  # type: ignore[index]
        return len(room)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copy the bytes of any contiguous buffer in.

        Raises:
            OutOfBounds: they do not all fit into the memory.
            GuestClosed: the guest has ended.
        """
        source = memoryview(data).cast("B")
        start = self._start_for(address, source)
        self._bytes[start : start + len(source)] = source  # type: ignore[index]

    def _start_for(self, address: int, others: memoryview) -> int:
        """Return where to copy to or from; if that is nowhere, let go of the other side, which errors would hold."""
        try:
            return self._start(address, len(others))
        except BaseException:
            others.release()
            raise

    def view(self, address: int, length: int) -> memoryview:
        """Return a writable window without copying. It pins the guest: use it in a `with` block.

        The guest sees what is written and the other way round. While the view, or anything made
        from it, is alive, `guest.close()` raises `GuestBusy`.

        Raises:
            OutOfBounds: not all of it lies in the memory.
            GuestClosed: the guest has ended.
        """
        self._views += 1  # before looking whether the memory is there: see release
        try:
            first = self._base + self._start(address, length)
        except BaseException:
            self._view_ended()
            raise
        return open_window(first, length, self._guest(), self._view_ended)

    def _view_ended(self) -> None:
        self._views -= 1
        self._unpin_if_unused()

    def _unpin_if_unused(self) -> None:
        if self._bytes is None and not self._views and self._pinned:
            self._pinned = False  # once: the pin of another reader must not be taken
            lib.sh_memory_unpin(self._guest_id, self._index)

    def _start(self, address: int, length: int) -> int:
        """Return the address as an unsigned offset at which `length` bytes exist."""
        if self._bytes is None:
            raise GuestClosed("the guest has ended, and its memory with it")
        start = address & self._mask if -(self._mask >> 1) - 1 <= address < 0 else address
        size = self._size[0]
        if start < 0 or length < 0 or start + length > size:
            if not size:
                self._check_there()
            raise OutOfBounds(
                f"{length} bytes at {address:#x} are not within a memory of {size} bytes"
            )
        return start

    def _check_there(self) -> None:
        """Tell an empty memory from one that is not there any more."""
        if lib.sh_memory_get(self._guest_id, self._index, ffi.new("sh_memory *")):
            raise failure()

    def release(self) -> None:
        """Let go of the region, because the guest is about to end. For `Guest.close`.

        Raises:
            GuestBusy: views are alive.
        """
        # First gone, then counted, and view() does it the other way round: if another thread asks for
        # a view at this moment, one of the two sees the other.
        held, self._bytes = self._bytes, None
        if held is None:
            return
        if self._views:
            self._bytes = held
            raise GuestBusy(
                f"{self._views} views of the guest's memory are alive; release them before close"
            )
        held.release()
        self._unpin_if_unused()

    def abandon(self) -> None:
        """Let go of the region; the last view does, if there are any. For a failed spawn."""
        held, self._bytes = self._bytes, None
        if held is not None:
            held.release()
            self._unpin_if_unused()
