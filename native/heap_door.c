/* What Python calls of the handle heap. */
#include <string.h>

#include "guest.h"
#include "heap.h"

static bool refused(void) {
  if (__builtin_expect(!atomic_load_explicit(&shi_forked, memory_order_relaxed), 1)) return false;
  shi_fail(SH_FORKED, "this process was forked from the one that has the handles; it has none");
  return true;
}

/* ---- the collector tells that it is wanted ---------------------------------------------------------------------------- */

static sh_trigger_fn trigger;

void sh_heap_set_trigger(sh_trigger_fn callback) { trigger = callback; }

void shi_heap_tell(shi_heap *heap) {
  if (atomic_exchange(&heap->tells, false) && trigger && !atomic_load(&shi_exiting)) trigger(heap);
}

/* ---- handles ------------------------------------------------------------------------------------------------------------ */

/* The holder of a guest that the caller enters, to be left; of guest 0 the host's. NULL: it cannot be entered. */
static shi_holder *enter(sh_heap *heap, uint64_t id, shi_guest **guest) {
  *guest = NULL;
  if (!id) return heap->holders[0];
  if (shi_guest_enter(id, guest) != SH_OK) return NULL;
  shi_holder *holder = shi_guest_holder(*guest, (*guest)->depth > 1);
  if (holder && holder->heap != heap) {
    shi_fail(SH_ARGUMENT, "the guest is one of another host");
    holder = NULL;
  }
  if (!holder) shi_guest_leave(*guest);
  return holder;
}

static void leave(shi_guest *guest) {
  if (guest) shi_guest_leave(guest);
}

uint64_t sh_handle_new(sh_heap *heap, uint64_t id, uint32_t kind, uint64_t size, uint32_t object, uint32_t label) {
  if (refused()) return 0;
  shi_guest *guest;
  shi_holder *holder = enter(heap, id, &guest);
  if (!holder) return 0;
  const shi_cell_request request = {.kind = kind, .object = object, .label = label, .size = size};
  uint64_t handle;
  if (shi_cell_new(holder, &request, &handle) != SH_OK) handle = 0;
  leave(guest);
  if (atomic_load_explicit(&heap->tells, memory_order_relaxed)) shi_heap_tell(heap);
  return handle;
}

int64_t sh_handle_object(sh_heap *heap, uint64_t id, uint64_t handle, uint32_t kind) {
  if (refused()) return -1;
  shi_guest *guest = NULL;
  shi_holder *holder = id ? enter(heap, id, &guest) : NULL;
  if (id && !holder) return -1;
  uint32_t object;
  int status = shi_cell_object(heap, holder, handle, kind, &object);
  leave(guest);
  if (status == SH_OK && object == SHI_NONE) status = shi_fail_handle(handle, "stands for no object of the host's");
  return status == SH_OK ? (int64_t)object : -1;
}

int sh_handle_retain(sh_heap *heap, uint64_t handle, uint64_t *out) {
  return refused() ? SH_FORKED : shi_cell_retain(heap, NULL, handle, out);
}

int sh_handle_release(sh_heap *heap, uint64_t handle) {
  uint32_t left;
  return refused() ? SH_FORKED : shi_cell_release(heap, NULL, handle, &left);
}

int sh_handle_weak(sh_heap *heap, uint64_t handle, uint64_t *out) {
  return refused() ? SH_FORKED : shi_cell_weak(heap, NULL, handle, out);
}

int sh_handle_pin(sh_heap *heap, uint64_t handle, int by) {
  return refused() ? SH_FORKED : shi_cell_pin(heap, handle, by);
}

int sh_handle_lend(sh_heap *heap, uint64_t handle) { return refused() ? SH_FORKED : shi_cell_lend(heap, handle); }

int sh_handle_link(sh_heap *heap, uint64_t from, uint64_t to) {
  return refused() ? SH_FORKED : shi_link(heap, NULL, from, to);
}

int sh_handle_unlink(sh_heap *heap, uint64_t from, uint64_t to) {
  return refused() ? SH_FORKED : shi_unlink(heap, NULL, from, to);
}

int sh_handle_get_info(sh_heap *heap, uint64_t handle, sh_handle_info *out) {
  if (refused()) return SH_FORKED;
  shi_heap_lock(heap);
  const shi_hot *cell = shi_cell_find(heap, NULL, handle, 0);
  if (cell) {
    const shi_cold *cold = &heap->cold[shi_index_of(handle)];
    *out = (sh_handle_info){
        .size = cell->size,
        .guest = heap->holders[cell->owner]->guest,
        .kind = shi_kind_of(handle),
        .owners = cold->retained,
        .pins = cold->pins,
        .label = cold->label,
        .in_call = cell->flight,
    };
  }
  shi_heap_unlock(heap);
  return cell ? SH_OK : SH_INVALID_HANDLE;
}

/* ---- the collector ------------------------------------------------------------------------------------------------------ */

int sh_heap_begin(sh_heap *heap) { return refused() ? SH_FORKED : shi_mark_begin(heap); }
int sh_heap_mark(sh_heap *heap, uint64_t budget) { return refused() || shi_mark(heap, budget); }
int sh_heap_finish_mark(sh_heap *heap) { return refused() ? SH_FORKED : shi_mark_finish(heap); }
int sh_heap_sweep(sh_heap *heap, uint64_t cells) { return refused() || shi_sweep(heap, cells); }
int sh_heap_start(sh_heap *heap) { return refused() ? SH_FORKED : shi_cycle_start(heap); }
int sh_heap_wait(sh_heap *heap, uint64_t timeout_ns) { return refused() || shi_cycle_wait(heap, timeout_ns); }
int sh_heap_set_plan(sh_heap *heap, const sh_heap_plan *plan) {
  if (refused()) return SH_FORKED;
  shi_heap_lock(heap);
  int error = plan->begins ? shi_cycle_thread_begin(heap) : 0;
  shi_cycle_take_plan(heap, plan);
  shi_heap_unlock(heap);
  return error ? shi_fail_native(error) : SH_OK;
}

int sh_heap_wants_cycle(sh_heap *heap) { return atomic_load_explicit(&heap->wants_cycle, memory_order_relaxed); }

uint32_t sh_heap_dropped(sh_heap *heap, uint32_t *objects, uint32_t room) {
  if (atomic_load(&shi_forked) || shi_within_host_function()) return 0;
  shi_heap_lock(heap);
  uint32_t count = heap->dropped_count < room ? heap->dropped_count : room;
  for (uint32_t k = 0; k < count; k++) objects[k] = heap->dropped[--heap->dropped_count];
  shi_heap_unlock(heap);
  return count;
}

void sh_heap_get_figures(sh_heap *heap, uint64_t *out) {
  memset(out, 0, SH_HEAP_FIGURES * sizeof *out);
  if (atomic_load(&shi_forked)) return; /* who holds the lock is not here */
  shi_heap_lock(heap);
  shi_heap_figures(heap, out);
  shi_heap_unlock(heap);
}

int sh_heap_get_cycle(sh_heap *heap, sh_heap_cycle *out) {
  if (atomic_load(&shi_forked)) return 0;
  shi_heap_lock(heap);
  bool any = heap->unknown_count > 0;
  if (any) *out = heap->cycles_of_thread[heap->first_unknown];
  shi_heap_unlock(heap);
  return any;
}

void sh_heap_forget_cycle(sh_heap *heap, uint64_t number) {
  if (atomic_load(&shi_forked)) return;
  shi_heap_lock(heap);
  const sh_heap_cycle *oldest = &heap->cycles_of_thread[heap->first_unknown];
  if (heap->unknown_count && oldest->number == number && oldest->ended_ns) {
    heap->first_unknown = (heap->first_unknown + 1) % SHI_UNKNOWN_MOST;
    heap->unknown_count--;
  }
  shi_heap_unlock(heap);
}
