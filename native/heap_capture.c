#include "heap_capture.h"

#include <stdlib.h>
#include <string.h>

#include "guest.h"
#include "heap.h"

enum { WALKED_AT_ONCE = 256, EDGES_AT_ONCE = 8192, SWEEP_SLICE = 4096 };
/* The walk holds the lock for so long at once: much less than who waits may be kept, and much more than it takes to hand
 * the lock over and to get it back, some 50 us, on a busy machine ms. */
static const uint64_t turn_ns = 200000;

/* ---- cells ------------------------------------------------------------------------------------------------------------ */

static bool set_bit(sh_capture *capture, uint32_t index) { /* true: it was not set */
  uint8_t bit = (uint8_t)(1u << index % 8), *byte = &capture->saved[index / 8];
  bool was = *byte & bit;
  *byte |= bit;
  return !was;
}

/* Room for `count` edges of one cell; NULL: no memory. */
static uint64_t *room_for_edges(sh_capture *capture, uint32_t count, uint32_t *at) {
  if (!capture->chunk_count || SHI_CHUNK_EDGES - capture->chunk_used < count) {
    if (capture->chunk_count == capture->chunk_capacity) {
      uint32_t capacity = capture->chunk_capacity ? 2 * capture->chunk_capacity : 64;
      uint64_t **chunks =
          capacity > UINT32_MAX / SHI_CHUNK_EDGES ? NULL : realloc(capture->chunks, capacity * sizeof *chunks);
      if (!chunks) return NULL;
      capture->chunks = chunks;
      capture->chunk_capacity = capacity;
    }
    uint64_t *chunk = malloc(SHI_CHUNK_EDGES * sizeof *chunk);
    if (!chunk) return NULL;
    capture->chunks[capture->chunk_count++] = chunk;
    capture->chunk_used = 0;
  }
  *at = (capture->chunk_count - 1) * SHI_CHUNK_EDGES + capture->chunk_used;
  uint64_t *edges = capture->chunks[capture->chunk_count - 1] + capture->chunk_used;
  capture->chunk_used += count;
  return edges;
}

static bool save_edges(sh_capture *capture, const shi_edges *edges, sh_captured_cell *out) {
  uint64_t *to = room_for_edges(capture, edges->count, &out->edges);
  if (!to) return false;
  memcpy(to, edges->to, edges->count * sizeof *to);
  out->edge_count = edges->count;
  return true;
}

static void save(sh_capture *capture, const shi_heap *heap, uint32_t index) {
  const shi_hot *hot = &heap->hot[index];
  if (hot->tag >> 24 == 0 || capture->failed) return;
  if (capture->view.cell_count == capture->capacity) abort(); /* more cells than the heap has counted */
  const shi_cold *cold = &heap->cold[index];
  const shi_holder *holder = heap->holders[hot->owner];
  sh_captured_cell *out = &capture->cells[capture->view.cell_count++];
  *out = (sh_captured_cell){
      .handle = (uint64_t)hot->tag << 32 | index,
      .size = hot->size,
      .guest = holder->guest,
      .owners = cold->retained,
      .pins = cold->pins,
      .born = heap->origins[index].born,
      .site = (uint16_t)heap->origins[index].site,
      .flags = (uint16_t)((hot->flight ? SH_CELL_IN_CALL : 0) | (holder->scans ? SH_CELL_SCANNED : 0)),
  };
  if (hot->edged && cold->edges->count && !save_edges(capture, cold->edges, out)) capture->failed = true;
}

void shi_capture_save(sh_capture *capture, const shi_heap *heap, uint32_t index) {
  if (index >= capture->cursor && index < capture->end && set_bit(capture, index)) save(capture, heap, index);
}

/* ---- the instant, and the walk ---------------------------------------------------------------------------------------- */

/* Memory that is there before the lock is held: it is written under it. */
static void *touched(size_t bytes) {
  void *memory = malloc(bytes ? bytes : 1);
  if (memory) memset(memory, 0, bytes);
  return memory;
}

static bool make_room(sh_capture *capture, uint64_t cells, uint32_t indices) {
  free(capture->cells);
  free(capture->saved);
  capture->capacity = cells + cells / 8 + 1024;
  capture->end = indices + indices / 8 + 1024;
  capture->cells = malloc(capture->capacity * sizeof *capture->cells);
  capture->saved = touched(capture->end / 8 + 1);
  return capture->cells && capture->saved;
}

/* Leaves with the lock held, in a moment at which a capture can begin. */
static int wait_for_moment(sh_capture *capture, shi_heap *heap) {
  for (;;) {
    shi_heap_lock(heap);
    uint64_t cells = heap->live_cells;
    uint32_t indices = heap->count;
    bool fits = cells <= capture->capacity && indices <= capture->end, sweeps = heap->phase == SHI_HEAP_SWEEPING;
    if (fits && !sweeps) return SH_OK;
    shi_heap_unlock(heap);
    if (sweeps) shi_sweep(heap, SWEEP_SLICE);
    if (!fits && !make_room(capture, cells, indices)) return shi_fail_no_memory();
  }
}

static void begin(sh_capture *capture, shi_heap *heap) {
  sh_capture_view *view = &capture->view;
  atomic_store(&capture->instant_ns, view->instant_ns = shi_now_ns());
  view->now = shi_ticks_since(heap->born_ns);
  view->cycle = heap->cycle;
  view->site_count = heap->sites->site_count;
  view->source_count = heap->sites->source_count;
  memcpy(capture->sites, heap->sites->sites, view->site_count * sizeof *capture->sites);
  shi_heap_figures(heap, view->figures);
  capture->end = heap->count;
  heap->capture = capture;
}

static void walk_some(sh_capture *capture, const shi_heap *heap) {
  uint32_t left = capture->end - capture->cursor,
           stop = capture->cursor + (left < WALKED_AT_ONCE ? left : WALKED_AT_ONCE);
  for (uint64_t edges = 0; capture->cursor < stop && edges < EDGES_AT_ONCE; capture->cursor++) {
    if (set_bit(capture, capture->cursor)) save(capture, heap, capture->cursor);
    if (heap->hot[capture->cursor].edged) edges += heap->cold[capture->cursor].edges->count;
  }
}

static void walk(sh_capture *capture, shi_heap *heap) {
  pthread_mutex_lock(&heap->mutex); /* not as one who is kept waiting */
  uint64_t begun_ns = shi_now_ns(), cpu_ns = shi_thread_cpu_ns();
  while (capture->cursor < capture->end && !capture->failed) {
    walk_some(capture, heap);
    if (shi_now_ns() - begun_ns < turn_ns) continue;
    uint64_t held_ns = shi_thread_cpu_ns() - cpu_ns;
    if (held_ns > capture->view.longest_hold_ns) capture->view.longest_hold_ns = held_ns;
    shi_heap_let_in(heap);
    begun_ns = shi_now_ns();
    cpu_ns = shi_thread_cpu_ns();
  }
  shi_heap_unlock(heap);
}

static int capture_cells(sh_capture *capture, shi_heap *heap) {
  capture->sites = touched(SHI_SITES_MOST * sizeof *capture->sites);
  if (!capture->sites || !make_room(capture, 0, 0)) return shi_fail_no_memory();
  int status = wait_for_moment(capture, heap);
  if (status != SH_OK) return status;
  begin(capture, heap);
  shi_heap_unlock(heap);
  return SH_OK;
}

/* Sources never change, so they need not be copied at the instant. */
static int capture_sources(sh_capture *capture, const shi_heap *heap) {
  size_t bytes = capture->view.source_count * sizeof *capture->sources;
  capture->sources = malloc(bytes);
  if (!capture->sources) return shi_fail_no_memory();
  memcpy(capture->sources, heap->sites->sources, bytes);
  return SH_OK;
}

/* ---- guests ------------------------------------------------------------------------------------------------------------ */

static void add_guest(sh_capture *capture, shi_guest *guest, uint64_t id) {
  if (capture->view.guest_count == capture->guest_capacity) {
    uint32_t capacity = capture->guest_capacity ? 2 * capture->guest_capacity : 256;
    sh_guest_row *guests = realloc(capture->guests, capacity * sizeof *guests);
    if (!guests) capture->failed = true;
    if (!guests) return;
    capture->guests = guests;
    capture->guest_capacity = capacity;
  }
  capture->guests[capture->view.guest_count++] = shi_guest_row(guest, id, shi_now_ns());
}

void shi_capture_guest_ends(shi_guest *guest, uint64_t id) {
  sh_host *host = guest->plugin->host;
  pthread_mutex_lock(&host->mutex);
  sh_capture *capture = atomic_load(&host->capture);
  /* Before the instant it was none any more: what there was of its handles then is named by their source. */
  if (capture && guest->born_ns <= atomic_load(&capture->instant_ns)) add_guest(capture, guest, id);
  pthread_mutex_unlock(&host->mutex);
}

static void list_guests(sh_capture *capture, sh_host *host) {
  uint32_t size = shi_guest_table_size();
  for (uint32_t index = 0; index < size; index++) {
    shi_guest *guest = shi_guest_at(index);
    if (atomic_load_explicit(&guest->host, memory_order_relaxed) != host) continue;
    uint64_t id = shi_guest_id(guest);
    if (!shi_guest_hold(id)) continue;
    pthread_mutex_lock(&host->mutex);
    bool there = atomic_load_explicit(&guest->host, memory_order_relaxed) == host;
    if (there && guest->born_ns <= capture->view.instant_ns) add_guest(capture, guest, id);
    pthread_mutex_unlock(&host->mutex);
    shi_guest_let_go(guest);
  }
}

static int by_id(const void *a, const void *b) {
  uint64_t one = ((const sh_guest_row *)a)->guest, other = ((const sh_guest_row *)b)->guest;
  return one < other ? -1 : one > other;
}

/* Who was listed and ended then is there twice. */
static void sort_guests(sh_capture *capture) {
  uint32_t count = capture->view.guest_count, kept = 0;
  if (!count) return;
  qsort(capture->guests, count, sizeof *capture->guests, by_id);
  for (uint32_t k = 0; k < count; k++)
    if (!kept || capture->guests[kept - 1].guest != capture->guests[k].guest)
      capture->guests[kept++] = capture->guests[k];
  capture->view.guest_count = kept;
}

/* As they were at the instant, and not when the guest was listed. */
static void count_handles(sh_capture *capture) {
  sh_guest_row *guests = capture->guests, *found = NULL;
  for (uint32_t k = 0; k < capture->view.guest_count; k++) guests[k].handles = guests[k].handle_bytes = 0;
  for (uint64_t k = 0; k < capture->view.cell_count; k++) {
    const sh_captured_cell *cell = &capture->cells[k];
    if (!cell->guest || !capture->view.guest_count) continue;
    const sh_guest_row wanted = {.guest = cell->guest};
    if (!found || found->guest != cell->guest)
      found = bsearch(&wanted, guests, capture->view.guest_count, sizeof wanted, by_id);
    if (!found) continue; /* it was ending already */
    found->handles++;
    found->handle_bytes += cell->size;
  }
}

/* ---- the whole ---------------------------------------------------------------------------------------------------------- */

static int take(sh_capture *capture, sh_host *host, shi_heap *heap) {
  int status = heap ? capture_cells(capture, heap) : SH_OK;
  if (status != SH_OK) return status;
  if (!heap) atomic_store(&capture->instant_ns, capture->view.instant_ns = shi_now_ns());
  list_guests(capture, host);
  if (heap) walk(capture, heap);
  return SH_OK;
}

static void detach(sh_capture *capture, sh_host *host, shi_heap *heap) {
  pthread_mutex_lock(&host->mutex);
  atomic_store(&host->capture, NULL);
  pthread_mutex_unlock(&host->mutex);
  if (!heap) return;
  shi_heap_lock(heap);
  if (heap->capture == capture) heap->capture = NULL;
  shi_heap_unlock(heap);
}

static int finish(sh_capture *capture, const shi_heap *heap) {
  if (capture->failed) return shi_fail_no_memory();
  free(capture->saved);
  capture->saved = NULL;
  sort_guests(capture);
  count_handles(capture);
  return heap ? capture_sources(capture, heap) : SH_OK;
}

sh_capture *sh_capture_take(sh_host *host) {
  if (atomic_load(&shi_forked))
    return shi_fail(SH_FORKED, "this process was forked from the one that has the handles; it has none"), NULL;
  uint64_t begun_ns = shi_now_ns(), cpu_ns = shi_thread_cpu_ns();
  sh_capture *capture = calloc(1, sizeof *capture);
  if (!capture) return shi_fail_no_memory(), NULL;
  capture->view.tick_ns = UINT64_C(1) << SHI_TICK_SHIFT;
  pthread_mutex_lock(&host->captures);
  pthread_mutex_lock(&host->mutex);
  shi_heap *heap = host->heap;
  atomic_store(&host->capture, capture);
  pthread_mutex_unlock(&host->mutex);
  int status = take(capture, host, heap);
  detach(capture, host, heap);
  pthread_mutex_unlock(&host->captures);
  if (status == SH_OK) status = finish(capture, heap);
  if (status == SH_OK) status = shi_capture_paths(capture);
  if (status != SH_OK) return sh_capture_free(capture), NULL;
  capture->view.took_ns = shi_now_ns() - begun_ns;
  capture->view.cpu_ns = shi_thread_cpu_ns() - cpu_ns;
  return capture;
}

void sh_capture_view_of(const sh_capture *capture, sh_capture_view *out) {
  *out = capture->view;
  out->cells = capture->cells;
  out->sites = capture->sites;
  out->sources = capture->sources;
  out->guests = capture->guests;
  out->groups = capture->groups;
  out->paths = capture->paths;
}

void sh_capture_free(sh_capture *capture) {
  for (uint32_t k = 0; k < capture->chunk_count; k++) free(capture->chunks[k]);
  free(capture->chunks);
  free(capture->cells);
  free(capture->saved);
  free(capture->sites);
  free(capture->sources);
  free(capture->guests);
  free(capture->cell_at);
  free(capture->holders);
  free(capture->roots);
  free(capture->path_at);
  free(capture->paths);
  free(capture->groups);
  free(capture);
}
