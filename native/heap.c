/* The table of the handle heap: cells, who owns them, how many there may be. */
#include "heap.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bridge.h"

/* ---- the lock ------------------------------------------------------------------------------------------------------ */

static void note_stop(shi_heap *heap, uint64_t begun_ns) {
  uint64_t ns = shi_now_ns() - begun_ns;
  uint64_t longest = atomic_load_explicit(&heap->longest_stop_ns, memory_order_relaxed);
  while (ns > longest && !atomic_compare_exchange_weak(&heap->longest_stop_ns, &longest, ns)) {
  }
}

void shi_heap_lock(shi_heap *heap) {
  if (__builtin_expect(pthread_mutex_trylock(&heap->mutex) == 0, 1)) return;
  uint64_t begun_ns = shi_now_ns();
  atomic_fetch_add(&heap->waiting, 1);
  pthread_mutex_lock(&heap->mutex);
  atomic_fetch_sub(&heap->waiting, 1);
  note_stop(heap, begun_ns);
}

void shi_heap_unlock(shi_heap *heap) { pthread_mutex_unlock(&heap->mutex); }

void shi_heap_let_in(shi_heap *heap) {
  pthread_mutex_unlock(&heap->mutex);
  /* A mutex is not fair: who unlocks and locks again may keep it. Who waits may sleep, and then needs a while. */
  for (int tries = 0; tries < 100 && shi_heap_wanted(heap); tries++) sched_yield();
  pthread_mutex_lock(&heap->mutex);
}

uint64_t shi_thread_cpu_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- the heap ------------------------------------------------------------------------------------------------------ */

static const uint64_t hot_reserved = (uint64_t)SHI_CELLS_MOST * sizeof(shi_hot);
static const uint64_t cold_reserved = (uint64_t)SHI_CELLS_MOST * sizeof(shi_cold);
static const uint64_t origins_reserved = (uint64_t)SHI_CELLS_MOST * sizeof(shi_origin);

static void init_locks(shi_heap *heap) {
  pthread_mutexattr_t adaptive; /* it spins before it sleeps: whoever holds the lock gives it away soon */
  pthread_mutexattr_init(&adaptive);
  pthread_mutexattr_settype(&adaptive, PTHREAD_MUTEX_ADAPTIVE_NP);
  pthread_mutex_init(&heap->mutex, &adaptive);
  pthread_mutexattr_destroy(&adaptive);
  pthread_condattr_t monotonic;
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init(&heap->wake, &monotonic);
  pthread_cond_init(&heap->done, &monotonic);
  pthread_condattr_destroy(&monotonic);
}

int shi_heap_create(shi_account *handles, shi_account *bytes, shi_heap **out) {
  shi_heap *heap = calloc(1, sizeof *heap);
  if (!heap) return shi_fail_no_memory();
  heap->oldest_free = heap->newest_free = SHI_NONE;
  heap->handles = handles;
  heap->bytes = bytes;
  heap->goal_bytes = heap->trigger_bytes = UINT64_MAX;
  heap->plan.growth = -1;
  heap->share = 1;
  heap->born_ns = shi_now_ns();
  heap->events = &shi_no_events;
  init_locks(heap);
  int error = shi_os_pagemap_open(&heap->pagemap);
  if (!error) error = shi_os_reserve(hot_reserved, (uint8_t **)&heap->hot);
  if (!error) error = shi_os_reserve(cold_reserved, (uint8_t **)&heap->cold);
  if (!error) error = shi_os_reserve(origins_reserved, (uint8_t **)&heap->origins);
  int status = error ? shi_fail_native(error) : SH_OK;
  if (status == SH_OK && !(heap->sites = shi_sites_new())) status = shi_fail_no_memory();
  const shi_holder_request host = {.handles_limit = UINT64_MAX, .bytes_limit = UINT64_MAX};
  if (status == SH_OK && !shi_holder_new(heap, &host)) status = SH_NATIVE;
  if (status == SH_OK)
    *out = heap;
  else
    shi_heap_destroy(heap);
  return status;
}

void shi_heap_destroy(shi_heap *heap) {
  shi_cycle_thread_end(heap);
  for (uint32_t index = 0; index < heap->count; index++)
    if (heap->hot[index].edged) free(heap->cold[index].edges);
  for (uint32_t k = 0; k < heap->holder_count; k++) {
    if (heap->holders[k]) free(heap->holders[k]->flight);
    free(heap->holders[k]);
  }
  free(heap->holders);
  free(heap->dropped);
  shi_stack_free(&heap->stack);
  if (heap->hot) shi_os_unreserve((uint8_t *)heap->hot, hot_reserved);
  if (heap->cold) shi_os_unreserve((uint8_t *)heap->cold, cold_reserved);
  if (heap->origins) shi_os_unreserve((uint8_t *)heap->origins, origins_reserved);
  shi_sites_free(heap->sites);
  shi_os_pagemap_close(&heap->pagemap);
  pthread_cond_destroy(&heap->done);
  pthread_cond_destroy(&heap->wake);
  pthread_mutex_destroy(&heap->mutex);
  free(heap);
}

/* ---- free cells ----------------------------------------------------------------------------------------------------- */

static int commit_more(shi_heap *heap) {
  if (heap->committed == SHI_CELLS_MOST)
    return shi_fail_limit(SH_HANDLE_LIMIT, (uint64_t)SHI_CELLS_MOST + 1, SHI_CELLS_MOST,
                          "the handle heap is full: it holds %d handles", SHI_CELLS_MOST);
  int error = shi_os_protect((uint8_t *)(heap->hot + heap->committed), SHI_CELLS_STEP * sizeof(shi_hot), true);
  if (!error)
    error = shi_os_protect((uint8_t *)(heap->cold + heap->committed), SHI_CELLS_STEP * sizeof(shi_cold), true);
  if (!error)
    error = shi_os_protect((uint8_t *)(heap->origins + heap->committed), SHI_CELLS_STEP * sizeof(shi_origin), true);
  if (error) return shi_fail_native(error);
  heap->committed += SHI_CELLS_STEP;
  return SH_OK;
}

/* A cell that nobody has a valid handle of. Its tag holds its generation. */
static int take(shi_heap *heap, uint32_t *index) {
  bool full = heap->count == heap->committed;
  if (heap->free_count > SHI_QUARANTINE || (full && heap->committed == SHI_CELLS_MOST && heap->free_count)) {
    *index = heap->oldest_free;
    heap->oldest_free = heap->cold[*index].next;
    if (heap->oldest_free == SHI_NONE) heap->newest_free = SHI_NONE;
    heap->free_count--;
    return SH_OK;
  }
  int status = full ? commit_more(heap) : SH_OK;
  if (status != SH_OK) return status;
  *index = heap->count++;
  heap->hot[*index].tag = 1;
  return SH_OK;
}

static void put(shi_heap *heap, uint32_t index) {
  uint32_t generation = (heap->hot[index].tag & (SHI_GENERATIONS - 1)) + 1;
  heap->hot[index] = (shi_hot){.tag = generation & (SHI_GENERATIONS - 1)};
  if (generation == SHI_GENERATIONS) {
    heap->retired++;
    return;
  }
  heap->cold[index].next = SHI_NONE;
  if (heap->newest_free == SHI_NONE)
    heap->oldest_free = index;
  else
    heap->cold[heap->newest_free].next = index;
  heap->newest_free = index;
  heap->free_count++;
}

/* ---- holders -------------------------------------------------------------------------------------------------------- */

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

static void see_root(shi_heap *heap, uint32_t index) {
  heap->hot[index].root = heap->cold[index].retained || heap->cold[index].pins || heap->hot[index].flight;
}

/* The barrier, for roots. */
static void clear_root(shi_heap *heap, uint32_t index) {
  see_root(heap, index);
  if (!heap->hot[index].root && heap->phase == SHI_HEAP_MARKING) shi_shade(heap, index);
}

/* The last of those in flight. */
static void land_one(shi_holder *holder) {
  uint32_t index = holder->flight[--holder->flight_count];
  shi_hot *cell = &holder->heap->hot[index];
  if (!cell->flight || cell->owner != holder->index) return; /* it is gone, and was used again perhaps */
  shi_capture_before(holder->heap, index);
  cell->flight = 0;
  see_root(holder->heap, index);
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

/* ---- ownership ------------------------------------------------------------------------------------------------------ */

static void add_to_owner(shi_heap *heap, shi_holder *holder, uint32_t index) {
  heap->cold[index].previous = SHI_NONE;
  heap->cold[index].next = holder->first;
  if (holder->first != SHI_NONE) heap->cold[holder->first].previous = index;
  holder->first = index;
  holder->cells++;
}

static void remove_from_owner(shi_heap *heap, shi_holder *holder, uint32_t index) {
  uint32_t next = heap->cold[index].next, previous = heap->cold[index].previous;
  if (next != SHI_NONE) heap->cold[next].previous = previous;
  if (previous != SHI_NONE)
    heap->cold[previous].next = next;
  else
    holder->first = next;
  holder->cells--;
}

static int fly(shi_heap *heap, shi_holder *holder, uint32_t index) {
  shi_hot *cell = &heap->hot[index];
  if (cell->flight) return SH_OK;
  if (holder->flight_count == holder->flight_capacity) {
    uint32_t capacity = holder->flight_capacity ? 2 * holder->flight_capacity : 64;
    uint32_t *flight = realloc(holder->flight, capacity * sizeof *flight);
    if (!flight) return shi_fail_no_memory();
    holder->flight = flight;
    holder->flight_capacity = capacity;
  }
  holder->flight[holder->flight_count++] = index;
  shi_capture_before(heap, index);
  cell->flight = cell->root = 1;
  shi_barrier_store(heap, index);
  return SH_OK;
}

/* One more owner: of a holder that scans the call it is in, else the holder itself. */
static int own(shi_heap *heap, uint32_t index) {
  shi_holder *holder = heap->holders[heap->hot[index].owner];
  if (holder->scans) return fly(heap, holder, index);
  if (heap->cold[index].retained == UINT32_MAX)
    return shi_fail_limit(SH_HANDLE_LIMIT, UINT32_MAX, UINT32_MAX, "a handle is retained 4,294,967,295 times");
  shi_capture_before(heap, index);
  heap->cold[index].retained++;
  heap->hot[index].root = 1;
  return SH_OK;
}

/* ---- limits --------------------------------------------------------------------------------------------------------- */

static const char *const whose[] = {"the guest's limit", "its tenant's limit", "the host's limit"};

static shi_whose whose_is(const shi_holder *holder) {
  return (shi_whose){holder->guest, holder->plugin, holder->tenant};
}

static int charge(shi_holder *holder, uint64_t cells, uint64_t bytes) {
  shi_events *events = holder->heap->events;
  shi_account *full = cells ? shi_account_charge(&holder->handles, cells) : NULL;
  if (full) {
    shi_event_refused(events, whose_is(holder), SH_REFUSED_HANDLES, full->level, cells, full->limit);
    return shi_fail_limit(SH_HANDLE_LIMIT, atomic_load(&full->used) + cells, full->limit,
                          "%s of %" PRIu64 " handles is reached", whose[full->level], full->limit);
  }
  full = shi_account_charge(&holder->bytes, bytes);
  if (!full) return SH_OK;
  if (cells) shi_account_refund(&holder->handles, cells);
  shi_event_refused(events, whose_is(holder), SH_REFUSED_HANDLE_MEMORY, full->level, bytes, full->limit);
  int status = shi_fail_limit(SH_OUT_OF_MEMORY, bytes, full->limit, "what its handles hold");
  shi_error()->level = full->level;
  return status;
}

int shi_cell_resize(shi_heap *heap, uint32_t index, uint64_t size) {
  shi_hot *cell = &heap->hot[index];
  shi_holder *holder = heap->holders[cell->owner];
  uint64_t before = cell->size;
  int status = size > before ? charge(holder, 0, size - before) : SH_OK;
  if (status != SH_OK) return status;
  shi_capture_before(heap, index);
  uint64_t more = size > before ? size - before : 0, less = size < before ? before - size : 0;
  if (less) shi_account_refund(&holder->bytes, less);
  if (more && heap->phase == SHI_HEAP_MARKING) (void)shi_assist_owed(holder, more); /* its next new cell pays */
  heap->alloc_bytes += more;
  heap->free_bytes += less;
  shi_site_allocates(heap->sites, heap->origins[index].site, 0, more);
  shi_site_frees(heap->sites, heap->origins[index].site, 0, less);
  heap->live_bytes += size - before;
  cell->size = size;
  shi_look_at_trigger(heap);
  return SH_OK;
}

/* ---- cells ---------------------------------------------------------------------------------------------------------- */

static int room_for_object(shi_heap *heap) {
  if (heap->dropped_count + heap->objects < heap->dropped_capacity) return SH_OK;
  uint32_t capacity = heap->dropped_capacity ? 2 * heap->dropped_capacity : 1024;
  uint32_t *dropped = realloc(heap->dropped, capacity * sizeof *dropped);
  if (!dropped) return shi_fail_no_memory();
  heap->dropped = dropped;
  heap->dropped_capacity = capacity;
  return SH_OK;
}

static uint64_t handle_of(const shi_heap *heap, uint32_t index) { return (uint64_t)heap->hot[index].tag << 32 | index; }

int shi_cell_add(shi_heap *heap, shi_holder *holder, const shi_cell_request *request, uint32_t *index) {
  if (holder->closed) return shi_fail(SH_CLOSED, "the guest has ended");
  if (request->size >> 48) return shi_fail(SH_ARGUMENT, "a handle of %" PRIu64 " bytes", request->size);
  int status = request->object == SHI_NONE ? SH_OK : room_for_object(heap);
  if (status == SH_OK) status = charge(holder, 1, request->size);
  if (status != SH_OK) return status;
  status = take(heap, index);
  if (status != SH_OK) {
    shi_account_refund(&holder->handles, 1);
    shi_account_refund(&holder->bytes, request->size);
    return status;
  }
  shi_capture_before(heap, *index);
  heap->hot[*index] = (shi_hot){
      .tag = request->kind << 24 | heap->hot[*index].tag,
      .owner = holder->index,
      .size = request->size,
      .mark = heap->mark, /* born black */
  };
  heap->cold[*index] = (shi_cold){.object = request->object, .label = request->label};
  heap->origins[*index] = (shi_origin){
      .born = shi_ticks_since(heap->born_ns),
      .site = shi_site_of(heap->sites, holder->source, request->kind, request->label),
  };
  shi_site_allocates(heap->sites, heap->origins[*index].site, 1, request->size);
  add_to_owner(heap, holder, *index);
  heap->objects += request->object != SHI_NONE;
  heap->live_cells++;
  heap->live_bytes += request->size;
  heap->allocs++;
  heap->alloc_bytes += request->size;
  shi_event_handle_alloc(heap->events, whose_is(holder), handle_of(heap, *index), request->size, request->label);
  status = own(heap, *index);
  if (status != SH_OK) shi_cell_free(heap, *index);
  return status;
}

int shi_cell_new_with(shi_holder *holder, const shi_cell_request *request, shi_edges *edges, uint64_t *handle) {
  shi_heap *heap = holder->heap;
  shi_heap_lock(heap);
  uint32_t index;
  int status = shi_cell_add(heap, holder, request, &index);
  if (status == SH_OK) {
    *handle = handle_of(heap, index);
    heap->cold[index].edges = edges;
    heap->hot[index].edged = edges != NULL;
  }
  shi_look_at_trigger(heap);
  bool assists = status == SH_OK && heap->phase == SHI_HEAP_MARKING && shi_assist_owed(holder, request->size);
  bool sweeps = shi_sweep_owed(heap);
  shi_heap_unlock(heap);
  if (assists) shi_mark_assist(holder);
  if (sweeps) shi_sweep_assist(heap);
  return status;
}

int shi_cell_new(shi_holder *holder, const shi_cell_request *request, uint64_t *handle) {
  return shi_cell_new_with(holder, request, NULL, handle);
}

void shi_cell_free(shi_heap *heap, uint32_t index) {
  shi_hot *cell = &heap->hot[index];
  shi_cold *cold = &heap->cold[index];
  shi_holder *holder = heap->holders[cell->owner];
  shi_capture_before(heap, index);
  if (cell->edged) {
    bool white_or_grey = shi_is_white(heap, cell) || cell->grey || heap->partial == index;
    if (heap->phase == SHI_HEAP_MARKING && white_or_grey)
      for (uint32_t k = 0; k < cold->edges->count; k++) shi_shade_handle(heap, cold->edges->to[k]);
    if (heap->partial == index) heap->partial_left = 0;
    free(cold->edges);
  }
  if (cold->object != SHI_NONE) {
    heap->dropped[heap->dropped_count++] = cold->object;
    if (heap->dropped_count == SHI_DROPPED_MANY) atomic_store(&heap->tells, true);
    heap->objects--;
  }
  shi_account_refund(&holder->handles, 1);
  shi_account_refund(&holder->bytes, cell->size);
  heap->live_cells--;
  heap->live_bytes -= cell->size;
  heap->frees++;
  heap->free_bytes += cell->size;
  shi_site_frees(heap->sites, heap->origins[index].site, 1, cell->size);
  shi_event_handle_free(heap->events, whose_is(holder), handle_of(heap, index), cell->size);
  remove_from_owner(heap, holder, index);
  put(heap, index);
}

int shi_fail_handle(uint64_t handle, const char *why) {
  return shi_fail(SH_INVALID_HANDLE, "handle %#" PRIx64 " %s", handle, why);
}

shi_hot *shi_cell_find(shi_heap *heap, const shi_holder *holder, uint64_t handle, uint32_t kind) {
  uint32_t index = shi_index_of(handle);
  shi_hot *cell = index < heap->count ? &heap->hot[index] : NULL;
  const char *why = NULL;
  if (!cell || shi_kind_of(handle) == 0 || cell->tag != shi_tag_of(handle) || heap->holders[cell->owner]->closed ||
      (heap->phase == SHI_HEAP_SWEEPING && shi_is_white(heap, cell)))
    why = "is none: it was released, or never given out";
  else if (holder && cell->owner != holder->index)
    why = "belongs to another guest";
  else if (kind && shi_kind_of(handle) != kind)
    why = "is of another kind";
  if (__builtin_expect(!why, 1)) return cell;
  shi_fail_handle(handle, why);
  return NULL;
}

int shi_cell_object(shi_heap *heap, shi_holder *holder, uint64_t handle, uint32_t kind, uint32_t *object) {
  shi_heap_lock(heap);
  shi_hot *cell = shi_cell_find(heap, holder, handle, kind);
  int status = cell ? SH_OK : SH_INVALID_HANDLE;
  if (cell) {
    *object = heap->cold[shi_index_of(handle)].object;
    if (holder && holder->scans) status = fly(heap, holder, shi_index_of(handle));
  }
  shi_heap_unlock(heap);
  return status;
}

int shi_cell_size(shi_heap *heap, shi_holder *holder, uint64_t handle, uint64_t *size) {
  shi_heap_lock(heap);
  shi_hot *cell = shi_cell_find(heap, holder, handle, 0);
  if (cell) *size = cell->size;
  shi_heap_unlock(heap);
  return cell ? SH_OK : SH_INVALID_HANDLE;
}

/* Under the lock: one more owner of what is handed out. A weak handle's cell may be white: it was not to be kept. */
int shi_cell_own(shi_heap *heap, uint64_t handle) {
  if (heap->phase == SHI_HEAP_MARKING) shi_barrier_store(heap, shi_index_of(handle));
  return own(heap, shi_index_of(handle));
}

static void lend(shi_holder *holder) {
  holder->landing = 0;
  shi_holder_lends(holder);
}

int shi_cell_retain(shi_heap *heap, shi_holder *holder, uint64_t handle, uint64_t *out) {
  shi_heap_lock(heap);
  shi_hot *cell = shi_cell_find(heap, holder, handle, 0);
  int status = cell ? SH_OK : SH_INVALID_HANDLE;
  *out = handle;
  if (cell && shi_kind_of(handle) == SHI_KIND_WEAK) {
    *out = heap->cold[shi_index_of(handle)].target;
    cell = shi_cell_find(heap, holder, *out, 0);
    if (cell && heap->phase == SHI_HEAP_MARKING) shi_shade(heap, shi_index_of(*out));
    if (!cell) {
      shi_error_forget();
      *out = 0;
    }
  }
  if (cell) status = shi_cell_own(heap, *out);
  if (cell && !holder) lend(heap->holders[cell->owner]); /* it is the host that wants it */
  shi_heap_unlock(heap);
  return status;
}

int shi_cell_release(shi_heap *heap, shi_holder *holder, uint64_t handle, uint32_t *left) {
  shi_heap_lock(heap);
  shi_hot *cell = shi_cell_find(heap, holder, handle, 0);
  int status = cell ? SH_OK : SH_INVALID_HANDLE;
  uint32_t index = shi_index_of(handle);
  if (cell && !heap->cold[index].retained) status = shi_fail_handle(handle, "was released as often as it was owned");
  if (status == SH_OK) shi_capture_before(heap, index);
  if (status == SH_OK && (*left = --heap->cold[index].retained) == 0) {
    bool edges_matter = heap->phase == SHI_HEAP_MARKING && cell->edged;
    if (!cell->linked && !heap->cold[index].pins && !cell->flight && !edges_matter)
      shi_cell_free(heap, index);
    else
      clear_root(heap, index);
  }
  shi_heap_unlock(heap);
  return status;
}

int shi_cell_weak(shi_heap *heap, shi_holder *holder, uint64_t handle, uint64_t *out) {
  shi_heap_lock(heap);
  int status = shi_cell_find(heap, holder, handle, 0) ? SH_OK : SH_INVALID_HANDLE;
  if (status == SH_OK) {
    uint32_t index = shi_index_of(handle), weak;
    uint64_t target = shi_kind_of(handle) == SHI_KIND_WEAK ? heap->cold[index].target : handle;
    const shi_cell_request request = {.kind = SHI_KIND_WEAK, .object = SHI_NONE};
    status = shi_cell_add(heap, heap->holders[heap->hot[index].owner], &request, &weak);
    if (status == SH_OK) {
      heap->cold[weak].target = target;
      *out = handle_of(heap, weak);
    }
  }
  shi_heap_unlock(heap);
  return status;
}

int shi_cell_pin(shi_heap *heap, uint64_t handle, int by) {
  shi_heap_lock(heap);
  int status = shi_cell_find(heap, NULL, handle, 0) ? SH_OK : SH_INVALID_HANDLE;
  uint32_t index = shi_index_of(handle);
  if (status == SH_OK && by < 0 && heap->cold[index].pins == 0) status = shi_fail_handle(handle, "is not pinned");
  if (status == SH_OK) {
    shi_capture_before(heap, index);
    heap->cold[index].pins += (uint32_t)by;
    if (by > 0) {
      heap->hot[index].root = 1;
      shi_barrier_store(heap, index);
    } else {
      clear_root(heap, index);
    }
  }
  shi_heap_unlock(heap);
  return status;
}

int shi_cell_lend(shi_heap *heap, uint64_t handle) {
  shi_heap_lock(heap);
  shi_hot *cell = shi_cell_find(heap, NULL, handle, 0);
  int status = cell ? SH_OK : SH_INVALID_HANDLE;
  if (cell && heap->holders[cell->owner]->scans) {
    status = fly(heap, heap->holders[cell->owner], shi_index_of(handle));
    lend(heap->holders[cell->owner]);
  }
  shi_heap_unlock(heap);
  return status;
}

/* ---- invariants ------------------------------------------------------------------------------------------------------ */

#ifdef SANDHOST_DEBUG
static void must(bool holds, const char *what) {
  if (holds) return;
  fprintf(stderr, "handle heap: not true: %s\n", what);
  abort();
}

void shi_heap_check(shi_heap *heap) {
  uint64_t cells = 0, bytes = 0, objects = 0;
  for (uint32_t index = 0; index < heap->count; index++) {
    const shi_hot *cell = &heap->hot[index];
    if (cell->tag >> 24 == 0) continue;
    const shi_cold *cold = &heap->cold[index];
    cells++;
    bytes += cell->size;
    objects += cold->object != SHI_NONE;
    must(cell->root == (cold->retained || cold->pins || cell->flight), "root == retained || pins || flight");
    must(!cell->grey || cell->mark == heap->mark, "grey cells are marked");
  }
  must(cells == heap->live_cells && heap->allocs - heap->frees == cells, "allocs - frees == live_cells");
  must(bytes == heap->live_bytes && heap->alloc_bytes - heap->free_bytes == bytes, "live_bytes");
  must(cells + heap->free_count + heap->retired == heap->count, "every cell is live, free or retired");
  must(objects == heap->objects, "objects");
  for (uint32_t k = 0; k < heap->holder_count; k++) {
    const shi_holder *holder = heap->holders[k];
    uint64_t owned = 0, size = 0;
    for (uint32_t index = holder ? holder->first : SHI_NONE; index != SHI_NONE; index = heap->cold[index].next) {
      owned++;
      size += heap->hot[index].size;
    }
    must(!holder || (owned == holder->cells && owned == holder->handles.used), "a holder's list is what it owns");
    must(!holder || size == holder->bytes.used, "a holder's bytes are those of its cells");
  }
}
#endif
