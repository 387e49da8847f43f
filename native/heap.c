/* The table of the handle heap: cells, who owns them, how many there may be. */
#include "heap.h"

#include <inttypes.h>
#include <sched.h>
#include <stdlib.h>
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

/* The barrier, for roots. */
static void clear_root(shi_heap *heap, uint32_t index) {
  shi_see_root(heap, index);
  if (!heap->hot[index].root && heap->phase == SHI_HEAP_MARKING) shi_shade(heap, index);
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
