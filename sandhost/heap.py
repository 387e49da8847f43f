"""The handle heap as Python sees it: host objects that guests hold by number, and their collector.

A guest never gets a Python object. It gets a handle: 64 bits that name a cell of the heap, which C
checks at every use (native/heap.h). The object itself stays here, in a list; the cell knows its place.
When nobody holds the cell any more, C hands the place back and the object is dropped, by
`run_finalizers`, outside all locks and outside every guest's call.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from ._ffi import failure, ffi, lib
from ._log import get_logger
from .errors import GuestClosed, SandhostError
from .heap_figures import HeapCycle, HeapFigures, read_cycle, read_figures
from .heap_kinds import Kind, Kinds
from .heap_labels import Labels
from .limits import UNLIMITED

__all__ = ["HandleHeap", "HandleInfo"]

T = TypeVar("T")


_ROOM = 1024
"""Places for objects that are made at once, and handed back at once."""
_STEP = 1 << 20
"""Bytes of scan work, where nobody gave a budget."""


class HandleInfo(NamedTuple):
    """What the heap knows of one handle."""

    size: int
    """Bytes as accounted."""
    guest: int
    """Id of the guest that owns it, 0: the host."""
    kind: int
    owners: int
    """How often it must be released."""
    pins: int
    label: str
    in_call: bool
    """Received or returned by a call that is not over."""


class HandleHeap:
    """Handles of one host. Made by the host, as `host.handles`."""

    def __init__(self, native_host: Any) -> None:
        self._host = native_host  # it owns `native`
        self.native = lib.sh_host_heap(native_host)
        if not self.native:
            raise failure()
        self.objects: list[Any] = []
        """By place; C keeps the places. Not for users."""
        self._free: list[int] = []
        self._chunks = itertools.count()
        self._kinds = Kinds()
        self._finalizers: dict[int, Callable[[Any], object]] = {}
        self._labels = Labels()
        self.on_trigger: Callable[[], object] | None = None
        """Called when allocation reaches the trigger, once for each cycle or goal, and when many objects
        wait for `run_finalizers`, by the thread that allocates or releases, in the middle of its call:
        it may wake others, not collect."""
        self.kind(object)
        _heaps[_address(self.native)] = self

    # ---- kinds ----

    def kind(
        self,
        cls: type[T],
        *,
        size: int | Callable[[T], int] | None = None,
        refs: Callable[[T], Iterable[int]] | None = None,
        finalize: Callable[[T], object] | None = None,
    ) -> int:
        """Return the number of a class's handles; say first how its objects are to be treated.

        Args:
            size: bytes that an object counts for; None: those of its buffer, else `sys.getsizeof`.
            refs: the handles that a new object refers to. Later changes: `link`, `unlink`.
            finalize: called once with each object whose handle is gone, unless `new` names another.

        Raises:
            ConfigError: the class is known already, with other answers; or there are 120 classes.
        """
        return self._kinds.add(cls, size, refs, finalize)

    # ---- handles ----

    def new(
        self,
        thing: object,
        *,
        guest: Any = None,
        kind: int | None = None,
        size: int | None = None,
        label: str = "",
        finalize: Callable[[Any], object] | None = None,
    ) -> int:
        """Return a new handle for an object, owned by a guest, or by the host until `release`.

        The handle of a guest that does not release by hand lives until the guest's next call has
        ended, or the one it is in; then as long as it is in the guest's memory, or what holds it is.
        What a host function takes or gives as `Handle[T]` may go before, when such a call stands still
        (it waits, or a tick has come) and has the handle nowhere.

        Args:
            kind: a number that `kind()` gave; None: of the object's class, if that is known.
            label: what to call it in captures. A heap keeps 65,536 different ones; more are "others".

        Raises:
            LimitExceeded: guest, tenant or host hold too many; OutOfMemory: or too large ones.
            GuestClosed, GuestBusy: the guest has ended; another thread is in it.
        """
        guest_id = 0 if guest is None else guest.id
        if guest is not None and not guest_id:
            raise GuestClosed("the guest has ended")
        of = self._kinds.numbered(kind) if kind else self._kinds.of(thing)
        handle = self._new(thing, guest_id, of, size, label, finalize)
        if guest_id:
            self.lend(handle)  # the guest does not know of it, and the caller does
        return handle

    def _new(
        self,
        thing: object,
        guest_id: int,
        kind: Kind,
        size: int | None,
        label: str,
        finalize: Callable[[Any], object] | None,
    ) -> int:
        if size is None:
            size = kind.size_of(thing)
        try:
            place = self._free.pop()
        except IndexError:
            place = self._make_room()
        self.objects[place] = thing
        finalize = finalize or kind.finalize
        if finalize is not None:
            self._finalizers[place] = finalize
        handle: int = lib.sh_handle_new(
            self.native,
            guest_id,
            kind.number,
            size,
            place,
            self._labels.number(label) if label else 0,
        )
        if not handle:
            self.objects[place] = None
            self._finalizers.pop(place, None)
            self._free.append(place)
            raise failure()
        if kind.refs is not None:
            for other in kind.refs(thing):
                self.link(handle, other)
        return handle

    def _make_room(self) -> int:
        start = next(self._chunks) * _ROOM  # each thread its own, whoever interrupts whom
        while len(self.objects) < start + _ROOM:
            self.objects.extend([None] * _ROOM)
        self._free.extend(range(start + 1, start + _ROOM))
        return start

    def wrap(self, guest_id: int, thing: object, number: int) -> int:
        """Return the handle of a host function's result. Called by C.

        Raises:
            TypeError: it is not of the class that the annotation names.
        """
        kind = self._kinds.expect(thing, number)
        return self._new(thing, guest_id, kind, None, "", None)

    def get(self, handle: int, *, guest: Any = None) -> Any:
        """Return the object of a handle; with `guest`, only of one that is that guest's own.

        Raises:
            InvalidHandle: it is none, stands for no object of the host's, or belongs to another.
            GuestClosed, GuestBusy: the guest has ended; another thread is in it.
        """
        if guest is not None and not guest.id:
            raise GuestClosed("the guest has ended")
        place = lib.sh_handle_object(self.native, 0 if guest is None else guest.id, handle, 0)
        if place < 0:
            raise failure()
        return self.objects[place]

    def info(self, handle: int) -> HandleInfo:
        """Return what the heap knows of a handle.

        Raises:
            InvalidHandle: it is none.
        """
        native = ffi.new("sh_handle_info *")
        self._do(lib.sh_handle_get_info(self.native, handle, native))
        label = self._labels.name(native.label)
        in_call = bool(native.in_call)
        return HandleInfo(
            native.size, native.guest, native.kind, native.owners, native.pins, label, in_call
        )

    def retain(self, handle: int) -> int:
        """Count one more owner. Of a weak handle: return the handle it stands for, 0 if it is gone.

        Raises:
            InvalidHandle: it is none.
        """
        out = ffi.new("uint64_t *")
        self._do(lib.sh_handle_retain(self.native, handle, out))
        return int(out[0])

    def release(self, handle: int) -> None:
        """Count one owner less. Without owner, pin and reference, the handle is gone.

        Raises:
            InvalidHandle: it is none, or has no owner.
        """
        self._do(lib.sh_handle_release(self.native, handle))

    def weak(self, handle: int) -> int:
        """Return a new handle, with the same owner, that does not keep the other alive.

        Raises:
            InvalidHandle: it is none.
        """
        out = ffi.new("uint64_t *")
        self._do(lib.sh_handle_weak(self.native, handle, out))
        return int(out[0])

    def pin(self, handle: int) -> None:
        """Keep a handle alive until `unpin`, whoever releases it.

        Raises:
            InvalidHandle: it is none.
        """
        self._do(lib.sh_handle_pin(self.native, handle, 1))

    def unpin(self, handle: int) -> None:
        """Undo one `pin`.

        Raises:
            InvalidHandle: it is none, or not pinned.
        """
        self._do(lib.sh_handle_pin(self.native, handle, -1))

    def lend(self, handle: int) -> None:
        """Keep a handle alive until its owner's next call ends: it is about to be an argument of it.

        For guests that do not release by hand; of others it does nothing.

        Raises:
            InvalidHandle: it is none.
        """
        self._do(lib.sh_handle_lend(self.native, handle))

    def link(self, source: int, target: int) -> None:
        """Let an object refer to another: that lives as long.

        Raises:
            InvalidHandle: one of them is none.
            LimitExceeded: it refers to 65,536 already.
        """
        self._do(lib.sh_handle_link(self.native, source, target))

    def unlink(self, source: int, target: int) -> None:
        """Undo one `link`.

        Raises:
            InvalidHandle: one of them is none.
            ConfigError: it does not refer to the other.
        """
        self._do(lib.sh_handle_unlink(self.native, source, target))

    # ---- the collector ----

    def begin_cycle(self) -> None:
        """Begin to mark: what can be reached from now on or is born from now on stays.

        Raises:
            SandhostError: a cycle is under way.
        """
        self._start(lib.sh_heap_begin(self.native))

    def mark(self, budget_bytes: int = _STEP) -> bool:
        """Mark on this thread for about so many bytes of scan work; return whether it is over."""
        return bool(lib.sh_heap_mark(self.native, budget_bytes))

    def finish_mark(self) -> None:
        """End marking, doing what has turned up since `mark` said that it is over.

        Raises:
            SandhostError: the heap is not being marked.
        """
        while (status := lib.sh_heap_finish_mark(self.native)) == lib.SH_BUSY:
            error = SandhostError(str(failure()))
            if self.figures().phase != "marking":
                raise error
            self.mark()
        self._do(status)

    def sweep(self, budget_cells: int = 65_536) -> bool:
        """Free what was not reached, among so many cells; return whether the cycle is over."""
        return bool(lib.sh_heap_sweep(self.native, budget_cells))

    def run_cycle_async(self) -> bool:
        """Start a cycle in the heap's own thread; False: one is under way. It needs nothing of Python's.

        Raises:
            NativeError: the thread cannot be started.
        """
        status = lib.sh_heap_start(self.native)
        if status == lib.SH_BUSY:
            failure()  # forgotten
            return False
        self._do(status)
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait for the cycle that the heap's thread runs; return whether it is over, or none runs."""
        return bool(lib.sh_heap_wait(self.native, max(0, round(timeout_s * 1e9))))

    def cycle(self) -> HeapCycle | None:
        """Return the oldest cycle of the heap's thread that was not forgotten yet, if there is one."""
        return read_cycle(self.native)

    def forget_cycle(self, number: int) -> None:
        """Forget the one that `cycle` gave, when it is over: the caller has taken it into account."""
        lib.sh_heap_forget_cycle(self.native, number)

    def set_goal(
        self,
        goal_bytes: int,
        trigger_bytes: int,
        assist_ratio: float,
        cores: float = 1.0,
        *,
        limited: bool = False,
        as_of: int | None = None,
        by_itself: tuple[float | None, int, int] | None = None,
    ) -> None:
        """Say when a cycle is wanted, and what it is to end with.

        Args:
            goal_bytes: of live heap; kept for `figures`.
            trigger_bytes: live bytes at which a cycle begins by itself and `on_trigger` is called; or
                only the latter, and `wants_cycle` is set.
            assist_ratio: bytes of scan work for each byte that a guest allocates while the heap is
                marked. It is taken from what the heap's thread has done, and then done by the guest.
            cores: share of its time that the thread marks; 1 or more: all. It holds at once, in a
                cycle that runs as well.
            limited: the memory limit has set the goal: cycles that begin by themselves say so.
            as_of: twice the number of the cycle that began last, less 1 if it runs, as the caller
                knows it. If there was another since, goal, trigger and ratio are not taken.
            by_itself: whether a cycle may begin by itself, and what its goal is until the next call:
                what is left and so many percent of it again (None: no goal), at least so many bytes,
                and at most so many.

        Raises:
            NativeError: the thread cannot be started.
        """
        percent, minimum, ceiling = by_itself or (None, 0, 0)
        plan = ffi.new(
            "sh_heap_plan *",
            (
                goal_bytes,
                trigger_bytes,
                assist_ratio,
                cores,
                UNLIMITED if as_of is None else as_of,
                limited,
                by_itself is not None,
                -1.0 if percent is None else percent / 100,
                minimum,
                ceiling,
            ),
        )
        self._do(lib.sh_heap_set_plan(self.native, plan))

    @property
    def wants_cycle(self) -> bool:
        """Whether live bytes have reached the trigger, and no cycle has begun since."""
        return bool(lib.sh_heap_wants_cycle(self.native))

    def run_finalizers(self) -> int:
        """Drop the objects whose handles are gone; return how many.

        What a finalizer raises is logged. In the middle of a guest's call it does nothing.
        """
        places = ffi.new("uint32_t[]", _ROOM)
        total = 0
        while count := lib.sh_heap_dropped(self.native, places, _ROOM):
            total += count
            for place in ffi.unpack(places, count):
                self._drop(place)
        return total

    def _drop(self, place: int) -> None:
        thing, self.objects[place] = self.objects[place], None
        finalize = self._finalizers.pop(place, None)
        self._free.append(place)
        if finalize is not None:
            try:
                finalize(thing)
            except Exception:  # noqa: BLE001 - the next object's turn comes all the same
                get_logger("sandhost.heap").warning("finalizer_failed", exc_info=True)

    def figures(self) -> HeapFigures:
        """Return the heap's figures."""
        return read_figures(self.native)

    def kind_names(self) -> dict[int, str]:
        """Return what handles of each kind stand for, by its number."""
        return self._kinds.names()

    def label_name(self, number: int) -> str:
        """Return a label by the number that C knows it by. Not for users."""
        return self._labels.name(number)

    def refusal(self) -> Exception:
        """Return the error that this thread's last use of a handle left. Called by C."""
        return failure()

    def _start(self, status: int) -> None:
        if status == lib.SH_BUSY:
            raise SandhostError(str(failure()))
        self._do(status)

    def _do(self, status: int) -> None:
        if status:
            raise failure()


_heaps: weakref.WeakValueDictionary[int, HandleHeap] = weakref.WeakValueDictionary()


def _address(native: Any) -> int:
    return int(ffi.cast("uintptr_t", native))


@ffi.def_extern()
def _triggered(native: Any) -> None:
    heap = _heaps.get(_address(native))
    if heap is not None and heap.on_trigger is not None:
        heap.on_trigger()


lib.sh_heap_set_trigger(lib._triggered)
