/* Who holds cells: the host, and each guest. What its calls have in flight, where they stand, and its end. */
#include "heap.h"

#include <stdlib.h>
#include <string.h>

#include "bridge.h"

static int holder_slot(shi_heap *heap, uint32_t *slot) {
  for (*slot = heap->holder_hint; *slot < heap->holder_count; (*slot)++)
    if (!heap->holders[*slot]) return SH_OK;
  if (heap->holder_count == heap->holder_capacity) {
    uint32_t capacity = heap->holder_capacity ? 2 * heap->holder_capacity : 16;
    shi_holder **holders = realloc(heap->holders, capacity * sizeof *holders);
    if (!holders) return shi_fail_no_memory();
    heap->holders = holders;
    heap->holder_capacity = capacity;
  }
  heap->holders[heap->holder_count++] = NULL;
  return SH_OK;
}

shi_holder *shi_holder_new(shi_heap *heap, const shi_holder_request *request) {
  shi_holder *holder = calloc(1, sizeof *holder + 2 * request->global_count * sizeof holder->globals[0]);
  if (!holder) {
    shi_fail_no_memory();
    return NULL;
  }
  *holder = (shi_holder){
      .heap = heap,
      .first = SHI_NONE,
      .guest = request->guest,
      .plugin = request->plugin,
      .tenant = request->tenant,
      .scans = request->scans,
      .calls = request->in_call,
      .pieces = request->pieces,
      .context = request->context,
      .global_count = request->global_count,
      .handles = {.parent = request->handles ? request->handles : heap->handles, .limit = request->handles_limit},
      .bytes = {.parent = request->bytes ? request->bytes : heap->bytes, .limit = request->bytes_limit},
  };
  shi_heap_lock(heap);
  int status = holder_slot(heap, &holder->index);
  if (status == SH_OK) {
    heap->holders[holder->index] = holder;
    holder->source = shi_source_of(heap->sites, request->tenant, request->plugin_name, request->node);
    heap->holder_hint = holder->index + 1;
    holder->scanned_in = heap->cycle;
  }
  shi_heap_unlock(heap);
  if (status == SH_OK) return holder;
  free(holder);
  return NULL;
}

void shi_holder_call_begins(shi_holder *holder) { atomic_fetch_add(&holder->calls, 1); }

/* The last of those in flight. */
static void land_one(shi_holder *holder) {
  uint32_t index = holder->flight[--holder->flight_count];
  shi_hot *cell = &holder->heap->hot[index];
  if (!cell->flight || cell->owner != holder->index) return; /* it is gone, and was used again perhaps */
  shi_capture_before(holder->heap, index);
  cell->flight = 0;
  shi_see_root(holder->heap, index);
}

/* Without the barrier: what the guest has kept is in its memory, which is yet to be scanned, or was, and then what came
 * after was black or is still in the snapshot. */
static void land(shi_holder *holder) {
  shi_heap *heap = holder->heap;
  while (holder->flight_count) {
    land_one(holder);
    if (shi_heap_wanted(heap)) shi_heap_let_in(heap);
  }
}

bool shi_holder_land_some(shi_holder *holder) {
  enum { SOME = 2048 };
  for (int k = 0; k < SOME && holder->landing; k++, holder->landing--) land_one(holder);
  return holder->landing == 0;
}

static void take_globals(shi_holder *holder) {
  memcpy(holder->globals, shi_holder_new_globals(holder), holder->global_count * sizeof holder->globals[0]);
}

static void stand(shi_holder *holder, const uint8_t *stack, uint64_t bytes, bool alone) {
  take_globals(holder);
  holder->stack = stack;
  holder->stack_bytes = bytes;
  holder->landing = alone && !holder->lent ? holder->flight_count : 0;
}

void shi_holder_call_stands(shi_holder *holder, const uint8_t *stack, uint64_t bytes, bool alone) {
  shi_heap *heap = holder->heap;
  shi_heap_lock(heap);
  stand(holder, stack, bytes, alone);
  holder->stands = true;
  atomic_fetch_add(&holder->calls, 1);
  if (heap->phase == SHI_HEAP_MARKING && heap->asked_in == heap->cycle) pthread_cond_signal(&heap->wake);
  shi_heap_unlock(heap);
}

void shi_holder_call_goes_on(shi_holder *holder) {
  if (!holder->stands) return;
  holder->stands = false;
  atomic_fetch_add(&holder->calls, 1);
}

bool shi_holder_is_waited_for(shi_holder *holder) {
  shi_heap *heap = holder->heap;
  shi_heap_lock(heap);
  bool waited_for = heap->phase == SHI_HEAP_MARKING && heap->asked_in == heap->cycle &&
                    holder->scanned_in != heap->cycle && holder->kept_in != heap->cycle;
  shi_heap_unlock(heap);
  return waited_for;
}

void shi_holder_scan_standing(shi_holder *holder, const uint8_t *stack, uint64_t bytes, bool alone) {
  shi_heap *heap = holder->heap;
  shi_heap_lock(heap);
  stand(holder, stack, bytes, alone);
  if (heap->phase == SHI_HEAP_MARKING) shi_scan_own(holder);
  holder->scan_calls = 0; /* what was not finished begins again at the next stand: the guest goes on */
  holder->stack_bytes = holder->landing = 0;
  shi_heap_unlock(heap);
}

void shi_holder_call_ends(shi_holder *holder) {
  shi_heap_lock(holder->heap);
  take_globals(holder);
  holder->stack_bytes = holder->landing = 0;
  holder->lent = false;
  land(holder);
  atomic_fetch_add(&holder->calls, 1);
  if (holder->heap->phase == SHI_HEAP_MARKING && holder->heap->asked_in == holder->heap->cycle) shi_scan_own(holder);
  shi_heap_unlock(holder->heap);
}

/* Before a cell with many edges is freed while its edges are roots of the snapshot: a slice of them at a time. */
static void empty_in_slices(shi_heap *heap, uint32_t index) {
  enum { SLICE = 1024 };
  while (heap->hot[index].edged && heap->phase == SHI_HEAP_MARKING && heap->cold[index].edges->count > SLICE) {
    shi_edges *edges = heap->cold[index].edges;
    shi_capture_before(heap, index);
    for (int k = 0; k < SLICE; k++) shi_shade_handle(heap, edges->to[--edges->count]);
    shi_heap_let_in(heap);
  }
}

void shi_holder_close(shi_holder *holder) {
  shi_heap *heap = holder->heap;
  shi_heap_lock(heap);
  holder->closed = true;
  while (heap->scanning == holder) shi_heap_let_in(heap); /* its memory is about to go */
  while (holder->first != SHI_NONE) {
    empty_in_slices(heap, holder->first);
    shi_cell_free(heap, holder->first);
    if (shi_heap_wanted(heap)) shi_heap_let_in(heap);
  }
  heap->holders[holder->index] = NULL;
  if (holder->index < heap->holder_hint) heap->holder_hint = holder->index;
  shi_heap_unlock(heap);
  free(holder->flight);
  free(holder);
}
